"""Fine-tunes a backbone by a recipe: the head, then its later stages, once a seed; the members become one graph."""

import time
from dataclasses import dataclass
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pandas as pd

from lungkit.data import dataset, images
from lungkit.models import backbones, cnn, ensemble, registry
from lungkit.training import fit, pipeline, release
from lungkit.training.recipes import Recipe


@dataclass(frozen=True, eq=False)
class Material:
    """A recipe's images, split, and as tensors in memory."""

    data: dataset.Dataset
    how: dict  # the arguments of dataset.prepare that give this split again
    spec: images.Preprocessing
    train: np.ndarray  # float32 (n, height, width, 1)
    validation: np.ndarray


def material(recipe: Recipe, source: str | Path) -> Material:
    """Reads the images of a recipe from `source`, as dataset.prepare takes it."""
    how = {"label_column": recipe.label_column, "limit": None, "seed": 7, "fold": recipe.fold, "by": recipe.by}
    data = dataset.prepare(source, **how, overlap="set_aside")
    spec = images.training_statistics(data.files("train"), images.Preprocessing(size=(recipe.side, recipe.side)))
    train = images.read_batch(data.files("train"), spec, label="training images")
    return Material(data, how, spec, train, images.read_batch(data.files("val"), spec, label="validation images"))


def member(recipe: Recipe, of: Material, folder: Path, seed: int) -> tuple[keras.Model, pd.DataFrame]:
    """One network, trained with this seed, and its history; everything is kept in `folder`, where a call goes on.

    History: as fit.fit gives, with `phase`: "head", then "stages".
    """
    keras.utils.set_random_seed(seed)
    shape, classes = of.train.shape[1:], len(of.data.classes)
    labels = of.data.labels("train")
    weights = fit.class_weights(labels, classes)
    varied = pipeline.augmentation(mean=of.spec.mean, std=of.spec.std, seed=100 * seed, **recipe.augmentation)
    train = pipeline.InMemory(
        of.train, labels, classes, recipe.batch_size, augment=varied, mixup=recipe.mixup, weights=weights, seed=seed
    )
    validation = pipeline.InMemory(of.validation, of.data.labels("val"), classes, 64, weights=weights)
    settings = recipe.to_dict() | {"seed": seed, "data": of.data.fingerprint}
    model = backbones.build(recipe.backbone, shape, classes, preprocessing=of.spec, dropout=recipe.dropout)
    histories = []
    for phase, stage, epochs in (("head", "head", recipe.head_epochs), ("stages", recipe.unfrozen, recipe.epochs)):
        if not epochs:
            continue
        backbones.unfreeze(model, stage)
        cnn.compile_classifier(
            model,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            decay_steps=epochs * len(train),
            layer_rates=backbones.layer_rates(model, recipe.layer_factor),
            label_smoothing=recipe.label_smoothing,
        )
        model, history = fit.fit(
            model, train, validation, folder / phase, epochs=epochs, patience=epochs, settings=settings
        )
        histories.append(history.assign(phase=phase))
    return model, pd.concat(histories, ignore_index=True)


def train(recipe: Recipe, source: str | Path, folder: Path) -> tuple[registry.Version, pd.DataFrame]:
    """Train every member of a recipe and register them as one version; what is done already is not done again.

    folder: keeps each member's training, so that a killed one goes on. Returns the version and the members' history,
    one row an epoch: seed, phase, epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, seconds.
    """
    started = time.perf_counter()
    of = material(recipe, source)
    trained = [member(recipe, of, folder / f"seed-{seed}", seed) for seed in recipe.seeds]
    models = [model for model, _ in trained]
    history = pd.concat([rows.assign(seed=seed) for seed, (_, rows) in zip(recipe.seeds, trained, strict=True)])
    whole = ensemble.combine(models, recipe.name, mirrored=recipe.mirrored)
    version = release.register(
        whole,
        recipe.name,
        of.data,
        of.spec,
        architecture={
            "network": recipe.backbone,
            "members": len(models),
            "mirrored": recipe.mirrored,
            "parameters": whole.count_params(),
        },
        training=recipe.to_dict() | {
            "epochs_seconds": round(float(history["seconds"].sum()), 1),
            "seconds": round(time.perf_counter() - started, 1),
        },
        recipe=of.how,
    )  # fmt: skip
    return version, history
