"""Fine-tuning of a backbone by a recipe: its head, then its later stages, once per seed; members become one graph."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np
import pandas as pd
import scipy.special

from lungkit import files, resume, wording
from lungkit.data import dataset, decisions, preprocess
from lungkit.errors import LungkitError
from lungkit.models import backbones, cnn, ensemble, lungs, registry
from lungkit.models.card import Ages, Measured, Outside
from lungkit.models.card_text import METRICS
from lungkit.models.rule import DecisionRule, log_odds
from lungkit.progress import bar
from lungkit.training import calibration, evaluation, fit, heads, multiworker, outside, pipeline, recipes, release
from lungkit.training.heads import PENALTIES
from lungkit.training.recipes import Recipe

_BATCH = 64


@dataclass(frozen=True, eq=False)
class RecipeData:
    """A recipe's images: the split, and the tensors of two parts in memory."""

    data: dataset.Dataset
    how: dict[str, Any]  # the arguments of dataset.load_split that give this split again
    spec: preprocess.Preprocessing
    train: np.ndarray  # float32 (n, height, width, 1), or (…, 2) of the square of the lungs
    validation: np.ndarray
    square: lungs.LungSquare | None = None
    counts: np.ndarray | None = None  # (n,), for how many images of its class each training image counts; None: one

    @property
    def network_spec(self) -> preprocess.Preprocessing:
        """How what the network sees was made of greys 0..1."""
        if self.square:
            return preprocess.Preprocessing(size=(self.square.side,) * 2, mean=lungs.MEAN, std=lungs.STD)
        return self.spec

    def read(self, files: list[Path], label: str = "") -> np.ndarray:
        """What the network sees of files."""
        return seen(preprocess.read_batch(files, self.spec, label=label), self.square)


def recipe_data(recipe: Recipe, source: str | Path, limit: int | None = None) -> RecipeData:
    """Read the images of a recipe from `source`, as dataset.load_split takes it; `limit`: at most so many."""
    how = dict[str, Any](label_column=recipe.label_column, limit=limit, seed=7, fold=recipe.fold, by=recipe.by)
    how |= {"leave_out": recipe.leave_out} if recipe.leave_out else {}
    how |= {"max_images": recipe.max_images} if recipe.max_images else {}
    how |= {"merged": recipe.merged} if recipe.merged else {}
    how |= (
        {"decisions": decisions.kept(recipe.decisions)} if recipe.decisions else {}
    )  # by content: the file may change
    side = lungs.WHOLE if recipe.lungs else recipe.side
    plain = preprocess.Preprocessing(size=(side, side))
    data = dataset.load_split(source, **how, overlap="set_aside", kept_as=lambda _: plain)
    return made_ready(recipe, data, how, preprocess.training_statistics(data.files("train"), plain))


def made_ready(
    recipe: Recipe,
    data: dataset.Dataset,
    how: dict[str, Any],
    spec: preprocess.Preprocessing,
    counts: np.ndarray | None = None,
) -> RecipeData:
    """A split's images as a recipe's network sees them. how, counts: as in RecipeData. spec: of the whole images."""
    square = lungs.LungSquare(recipe.modality, recipe.side, spec.mean, spec.std, name="lungs") if recipe.lungs else None
    train, validation = (
        seen(preprocess.read_batch(data.files(part), spec, label=label), square)
        for part, label in (("train", "training images"), ("val", "validation images"))
    )
    return RecipeData(data, how, spec, train, validation, square, counts)


def seen(tensors: np.ndarray, square: lungs.LungSquare | None) -> np.ndarray:
    """What the network sees of whole images (n, height, width, 1)."""
    if square is None or not len(tensors):
        return tensors
    parts = (tensors[start : start + _BATCH] for start in range(0, len(tensors), _BATCH))
    return np.concatenate([keras.ops.convert_to_numpy(square(part)[0]) for part in parts])


def member(
    recipe: Recipe,
    tensors: RecipeData,
    folder: Path,
    seed: int,
    workers: int | None = None,
    head: Path | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """One network, trained with this seed, and its history; everything is kept in `folder`, where a call continues.

    workers: how many processes share each batch (multiworker.fit_with_workers); None: Keras' own training.
    head: the file that keeps the solved head; default: one in `folder`.

    A backbone gets the best linear head on its frozen features first: from a random one, the first steps would undo
    what they know (Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022); `epochs` 0 leaves it there.
    History: as fit.fit gives, with the head as epoch 0, of which there are only the seconds.
    """
    if workers and (recipe.balanced_sources or tensors.counts is not None):
        raise LungkitError("weights of single images are kept by a single process only: leave out workers")
    settings = recipe.settings() | {"seed": seed, "data": tensors.data.fingerprint}
    resume.same_settings(folder, settings, "training")
    begun = start(recipe, tensors, head or folder / "head.npz", seed)
    model, history = begun.model, begun.history
    if recipe.epochs:
        before = model.get_weights()
        if workers:
            model, epochs = multiworker.fit_with_workers(
                model,
                (tensors.train, tensors.data.labels("train")),
                (tensors.validation, tensors.data.labels("val")),
                folder / "workers",
                workers=workers,
                epochs=recipe.epochs,
                batches=_batches(recipe, tensors, seed) | {"augment": _varying(recipe, tensors, seed)},
                compiled=begun.compiled,
                seed=seed,
            )
        else:
            cnn.compile_classifier(model, **begun.compiled)
            model, epochs = fit.fit(
                model, *streams(recipe, tensors, seed), folder / "stages", epochs=recipe.epochs, patience=recipe.epochs,
                settings=settings,
            )  # fmt: skip
        history += epochs.to_dict("records")
        if recipe.tuned_share < 1:
            _between(model, before, recipe.tuned_share)
    return model, pd.DataFrame(history)


@dataclass(frozen=True, eq=False)
class Start:
    """A member before its training."""

    model: keras.Model
    history: list[Any]  # a mapping for each row
    compiled: dict[str, Any]  # the arguments of cnn.compile_classifier for it


def calibrated(model: keras.Model, tensors: RecipeData) -> np.ndarray:
    """Probabilities (n, classes) of the validation images, calibrated on them."""
    raw = release.logits(model, tensors.validation)
    temperature = calibration.temperature(tensors.data.labels("val"), raw)
    return DecisionRule(kind="argmax", temperature=temperature).calibrate(raw)


def start(recipe: Recipe, tensors: RecipeData, head: Path, seed: int) -> Start:
    """What `member` trains by this recipe; `head`: the file that keeps the solved head."""
    keras.utils.set_random_seed(seed)
    shape, classes = tensors.train.shape[1:], len(tensors.data.classes)
    scratch, history = recipe.backbone == "cnn", []
    if scratch:
        model = cnn.build(shape, classes, dropout=recipe.dropout)
    else:
        model = backbones.build(
            recipe.backbone, shape, classes, preprocessing=tensors.network_spec, dropout=recipe.dropout,
            until=recipe.until,
            equalised=recipe.equalised, shrink=recipe.side // (recipe.sees or recipe.side),
        )  # fmt: skip
        seconds = _with_head(recipe, model, tensors, seed, head)
        history.append({"epoch": 0, "seconds": seconds})
        backbones.unfreeze(model, recipe.unfrozen)
    compiled = {
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "decay_steps": max(1, recipe.epochs) * math.ceil(len(tensors.train) / recipe.batch_size),
        "layer_rates": None if scratch else backbones.layer_rates(model, recipe.layer_factor),
        "label_smoothing": recipe.label_smoothing,
        "ema": recipe.ema,
    }
    return Start(model, history, compiled)


def streams(recipe: Recipe, tensors: RecipeData, seed: int) -> tuple[pipeline.InMemory, pipeline.InMemory]:
    """Training and validation images as `Model.fit` takes them, the former varied and blended."""
    classes, batches = len(tensors.data.classes), _batches(recipe, tensors, seed)
    augment = pipeline.augmentation(**_varying(recipe, tensors, seed))
    return (
        pipeline.InMemory(tensors.train, tensors.data.labels("train"), classes, augment=augment, **batches),
        pipeline.InMemory(
            tensors.validation, tensors.data.labels("val"), classes, 64, weights=_weights(recipe, tensors, "val")
        ),
    )


def _varying(recipe: Recipe, tensors: RecipeData, seed: int) -> dict[str, Any]:
    spec = tensors.network_spec
    return {"mean": spec.mean, "std": spec.std, "seed": 100 * seed, **recipe.augmentation}


def _batches(recipe: Recipe, tensors: RecipeData, seed: int) -> dict[str, Any]:
    mixing = {"mixup": recipe.mixup, "cutmix": recipe.cutmix}
    return {"batch_size": recipe.batch_size, "weights": _weights(recipe, tensors, "train"), "seed": seed} | mixing


def _weights(recipe: Recipe, tensors: RecipeData, part: str) -> dict[int, float] | np.ndarray:
    """In the loss: of each class in training or, where sources are balanced, of each of the part's images."""
    if recipe.balanced_sources or (part == "train" and tensors.counts is not None):
        return _image_weights(recipe, tensors, part)
    return fit.class_weights(tensors.data.labels("train"), len(tensors.data.classes))


def _image_weights(recipe: Recipe, tensors: RecipeData, part: str) -> np.ndarray:
    data = tensors.data
    sources = data.sources(part) if recipe.balanced_sources else None
    counts = tensors.counts if part == "train" else None
    return fit.image_weights(data.labels(part), len(data.classes), sources, counts)


def _between(model: keras.Model, before: list[np.ndarray], share: float) -> None:
    """Give the model the weights between those before its fine-tuning and its own, at this share of the way.

    There, what was learned works better on images from elsewhere (Wortsman et al., "Robust fine-tuning of zero-shot
    models", CVPR 2022).
    """
    after = model.get_weights()
    model.set_weights([share * late + (1 - share) * early for early, late in zip(before, after, strict=True)])


def _with_head(recipe: Recipe, model: keras.Model, tensors: RecipeData, seed: int, kept: Path) -> float:
    """Give the model the best dense layer on its features as they are: logistic regression on the training images as
    they are and varied once, with the penalty that suits the validation images best; by `recipe.head_under_change`
    these as they are and changed. Returns the seconds it took; `kept`: the file that keeps it for the next call.
    """
    if not kept.exists():
        started = time.perf_counter()
        varied = pipeline.augmentation(**_varying(recipe, tensors, seed))
        features = keras.Model(model.input, model.get_layer("embedding").output)
        varied_once = np.concatenate([
            keras.ops.convert_to_numpy(varied(tensors.train[i : i + 256], training=True))
            for i in range(0, len(tensors.train), 256)
        ])  # fmt: skip
        spec, validation = tensors.network_spec, [tensors.validation]
        if recipe.head_under_change:
            validation.append(next(pipeline.changed(tensors.validation, spec.mean, spec.std)))
        both = {"train": [tensors.train, varied_once], "val": validation}
        seen, labels, weights = (
            [np.concatenate([features.predict(part, verbose=0) for part in parts]) for parts in both.values()],
            [np.tile(tensors.data.labels(part), len(parts)) for part, parts in both.items()],
            [np.tile(_image_weights(recipe, tensors, part), len(parts)) for part, parts in both.items()],
        )
        kernel, bias = linear_head(seen[0], labels[0], seen[1], labels[1], *weights)
        seconds = round(time.perf_counter() - started, 2)
        with files.draft(kept) as draft:  # several workers of a search may write this file
            np.savez(draft, kernel=kernel, bias=bias, seconds=seconds)
            files.put(draft, kept, durable=False)
    with np.load(kept) as head:
        model.get_layer("logits").set_weights([head["kernel"], head["bias"]])
        return float(head["seconds"])


def linear_head(
    features: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    weights: np.ndarray,
    validation_weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (width, classes) and bias (classes,) of a dense layer that gives logits, float32.

    features, validation: (n, width); brought to unit spread for the fit, but not what varies least. weights: (n,) of
    the images. Of PENALTIES, the one with the lowest log loss on validation.
    """
    tried = heads.fitted(features, labels, weights, bar(PENALTIES, label="linear head", unit="penalty"))
    best = heads.least_loss(tried, validation, validation_labels, validation_weights)
    return best.kernel.astype(np.float32), best.bias.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a recipe's training."""

    model: keras.Model  # all members as one graph, of what `tensors` holds
    of_whole_images: keras.Model  # the same as it is registered
    tensors: RecipeData
    history: pd.DataFrame  # one row an epoch of any member: seed, epoch, loss, accuracy, val_loss, … seconds


def members(recipe: Recipe, source: str | Path, folder: Path, workers: int | None = None) -> Trained:
    """Train the members of each seed, on the recipe's own fold, and join them; finished ones are not trained again."""
    return members_of(recipe, recipe_data(recipe, source), folder, workers)


def members_of(recipe: Recipe, tensors: RecipeData, folder: Path, workers: int | None = None) -> Trained:
    """As `members`, on these images."""
    models, histories, heads = [], [], dict[Any, Path]()
    for number, (one, seed) in enumerate(recipe.each_member()):
        place = number % len(recipe.members)
        named = f"seed-{seed}-member-{place + 1}" if place else f"seed-{seed}"
        key = (seed, one.features)
        shared = key in heads  # then its time is already counted
        head = heads.setdefault(key, folder / named / "head.npz")
        model, rows = member(one, tensors, folder / named, seed, workers, head)
        if shared and len(rows):
            rows.loc[rows["epoch"] == 0, "seconds"] = 0.0
        models.append(model)
        histories.append(rows.assign(seed=seed, member=place + 1))
    join = partial(ensemble.combine, models, recipe.name, recipe.mirrored)
    model = join()
    whole = join((tensors.square, tensors.spec.size[0])) if tensors.square else model
    return Trained(model, whole, tensors, pd.concat(histories))


def cross_validate(
    recipe: Recipe, source: str | Path, folder: Path, workers: int | None = None
) -> tuple[Measured, float]:
    """Train and test on each fold in turn; figures over all patients, each tested once, and the seconds of training.

    Temperature and operating point are those of each fold's own validation patients. To be counted together, two
    classes' probabilities are shifted so that every fold's operating point lies at 0.5; figures of calibration, which
    that changes, are left out. "auc_of_each_fold" compares within a fold only.
    """
    answers, named, aucs, seconds = [], [], [], 0.0
    for number in range(1, recipe.folds + 1):
        one = replace(recipe, fold=f"{number}/{recipe.folds}")
        trained = members(one, source, _folder(folder, one), workers)
        seconds += float(trained.history["seconds"].sum())
        data = trained.tensors.data
        of_fold = _rule(one, trained)
        scores = of_fold.calibrate(release.logits(trained.model, trained.tensors.read(data.files("test"))))
        named.append(of_fold.prediction_set(scores))
        answers.append((data.labels("test"), _at_half(of_fold, scores), data.patients("test"), data.sources("test")))
        threshold = None if of_fold.threshold is None else 0.5
        rule = DecisionRule(kind=of_fold.kind, threshold=threshold, grades=recipe.grades)
        auc, *_ = evaluation.evaluate(*answers[-1][:3], data.classes, rule).value("auc")
        aucs.append(None if np.isnan(auc) else auc)
    labels, scores, patients, sources = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    pooled = evaluation.evaluate(labels, scores, patients, data.classes, rule, sources=sources).record
    alone = {name: _uncalibrated(of) for name, of in (pooled.sources or {}).items()}
    pooled = replace(_uncalibrated(pooled), sources=alone or None)
    if recipe.grades:
        sets = calibration.sets_figures(np.concatenate(named), labels, patients, calibration.LEVEL, sources)
        pooled = replace(pooled, conformal=sets)
    return replace(pooled, folds=recipe.folds, by=recipe.by, auc_of_each_fold=tuple(aucs)), seconds


def _uncalibrated(measured: Measured) -> Measured:
    """The record without the figures of calibration."""
    return replace(
        measured, figures={name: of for name, of in measured.figures.items() if name not in ("ece", "brier")}
    )


def left_out(
    recipe: Recipe, source: str | Path, folder: Path, data: dataset.Dataset, name: str, workers: int | None = None
) -> tuple[Outside, float]:
    """Train a recipe without the source `name`; figures on all of that source, and the seconds of training.

    data: the whole set, whose unreadable images are known. Images whose content is also in another source are left out.
    """
    one = replace(recipe, leave_out=name)
    trained = members(one, source, folder / f"without-{registry.plain_name(name)}", workers)
    of, rows = trained.tensors.data, data.part()
    rows = rows[rows["source"] == name].drop_duplicates("file")
    seen = rows["sha256"].isin({*of.part("train")["sha256"], *of.part("val")["sha256"]})
    there = replace(data, manifest=rows[~seen], classes=of.classes)
    rule = _rule(recipe, trained)
    tensors = trained.tensors.read(there.files(), label=name)
    scores = rule.calibrate(release.logits(trained.model, tensors))
    measured = evaluation.evaluate(there.labels(), scores, there.patients(), of.classes, rule).record
    measured = replace(measured, at_half=None, times_scored=1)
    outside_it = Outside(source=name, data=data.name, measured=measured, left_out=True, seen=int(seen.sum()))
    return outside_it, float(trained.history["seconds"].sum())


def _rule(recipe: Recipe, trained: Trained) -> DecisionRule:
    """The decision rule that the validation patients give."""
    data, tensors = trained.tensors.data, trained.tensors
    answer = partial(release.logits, trained.model)
    rule, _ = release.chosen_rule(
        answer, tensors.validation, data.labels("val"), tensors.network_spec, data.classes, recipe.grades
    )
    return rule


def _at_half(rule: DecisionRule, scores: np.ndarray) -> np.ndarray:
    """Calibrated probabilities (n, classes); of two classes, shifted so that the operating point lies at 0.5."""
    if rule.threshold is None:
        return scores
    second, threshold = np.clip(scores[:, 1], 1e-9, 1 - 1e-9), np.clip(rule.threshold, 1e-9, 1 - 1e-9)
    shifted = scipy.special.expit(log_odds(second) - log_odds(threshold))
    return np.stack([1 - shifted, shifted], axis=1)


def _folder(folder: Path, recipe: Recipe) -> Path:
    return folder / f"fold-{(recipe.fold or '').replace('/', '-of-')}{'' if recipe.by == 'patient' else '-by-image'}"


def train_recipe(
    recipe: Recipe,
    source: str | Path,
    folder: Path,
    *,
    probes: Callable[[release.Candidate, dataset.Dataset], dict[str, Any]] | None = None,
    compact: bool = False,
    int8: bool = False,
    workers: int | None = None,
    each_left_out: bool = False,
    command: str = "",
    population: str = "",
    licence: str = "",
    ages: Ages | None = None,
    views: Sequence[str] = (),
) -> tuple[registry.Version, pd.DataFrame]:
    """Train a recipe and register it; a recipe with folds is measured on each, and its own fold's model registered.

    A set with other classes or of another modality is refused before anything is trained.
    command, population, licence, ages, views: for the card, as in recipes.Recipe.about.
    folder: keeps every member's training; a killed one continues from there. probes: what else to ask of the version
    before it is registered, given its own data. compact, int8: as in release.register.
    workers: as in `member`. Returns the version and the history of its members.
    each_left_out: also train it without each source in turn, and measure that model on all of the source, for the card.
    A recipe that leaves a source out is trained once, without folds, and its version is then measured on all of that
    source, as lungkit.training.outside does.
    """
    whole = dataset.load(source, label_column=recipe.label_column, max_images=recipe.max_images, merged=recipe.merged)
    recipe.check(whole)
    names = whole.source_names if each_left_out else []
    if len(names) == 1:
        raise LungkitError(f"every image of {whole.name} is of {names[0]}; to leave each source out takes two or more")
    command = command or recipes.command(
        recipe.name, source, compact=compact, int8=int8, workers=workers, leave_out="each" if each_left_out else ""
    )
    measured, seconds = {}, 0.0
    if recipe.folds and not recipe.leave_out:
        together, seconds = cross_validate(recipe, source, folder, workers)
        measured[f"{recipe.folds} folds by patient or group"] = together
        if recipe.leak:
            leaking, _ = cross_validate(replace(recipe, by="image"), source, folder, workers)
            measured["the same by image (leaks: what not to believe)"] = leaking
    trained = members(recipe, source, _folder(folder, recipe) if recipe.fold else folder, workers)
    if not measured:
        seconds = float(trained.history["seconds"].sum())
    unseen = [left_out(recipe, source, folder, trained.tensors.data, name, workers) for name in names]
    seconds += sum(taken for _, taken in unseen)
    version = release.register(
        trained.of_whole_images,
        recipe.name,
        trained.tensors.data,
        trained.tensors.spec,
        architecture={
            "network": recipe.backbone,
            "members": len(recipe.each_member()),
            "mirrored": recipe.mirrored,
            "parameters": trained.model.count_params(),
        },
        training=recipe.settings()
        | {"tuned_share": recipe.tuned_share, "members": list(recipe.members), "seconds": round(seconds, 1)},
        recipe=trained.tensors.how,
        modality=recipe.modality,
        grades=recipe.grades,
        about=recipe.about(whole, command, population, licence, ages, views),
        measured=measured,
        probes=(lambda candidate: probes(candidate, trained.tensors.data)) if probes else None,
        test_too=True,
        scored_before=recipe.scored_before if recipe.owns(whole) else 0,
        outside=tuple(one for one, _ in unseen),
        compact=compact,
        int8=int8,
    )
    if recipe.leave_out:
        rows = whole.manifest[whole.manifest["source"] == recipe.leave_out]
        for one in outside.measure(version, replace(whole, manifest=rows)):
            version = registry.record_outside(version, one)
    return version, trained.history


# --- ways of training, compared


@dataclass(frozen=True, eq=False)
class Way:
    """A way of training, and its results on the validation patients."""

    model: keras.Model
    history: pd.DataFrame
    evaluation: evaluation.Evaluation


def compare(ways: dict[str, Recipe], tensors: RecipeData, folder: Path, seed: int = 1) -> dict[str, Way]:
    """Train each way on the same images, and measure it on the validation patients: a choice is made on them, never on
    the test patients. Probabilities are calibrated on the same patients, which does not change the AUC and flatters
    the other figures alike.

    folder: keeps every training, so a killed one can continue.
    """
    data = tensors.data
    labels, patients, sources, classes = data.labels("val"), data.patients("val"), data.sources("val"), data.classes
    # Ways whose head is solved on the same features share it.
    features = [way.features for way in ways.values()]
    results = {}
    for number, (name, recipe) in enumerate(ways.items(), 1):
        head = folder / f"head-{features.index(features[number - 1]) + 1}.npz"
        model, history = member(recipe, tensors, folder / f"way-{number}", seed, head=head)
        scores = calibrated(model, tensors)
        rule = evaluation.operating_point(labels, scores, classes, recipe.grades)
        measured = evaluation.evaluate(labels, scores, patients, classes, rule, sources=sources)
        results[name] = Way(model, history, measured)
    return results


def validation_loss(way: Way, tensors: RecipeData, label_smoothing: float) -> float:
    """The loss of a way's network on the validation images as training computes it, before any calibration."""
    true = np.eye(len(tensors.data.classes))[tensors.data.labels("val")]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    return float(loss(true, release.logits(way.model, tensors.validation)))


def comparison(results: dict[str, Way]) -> pd.DataFrame:
    """A row per way for people: its figures with their intervals, and what its training took.

    The last row is what always answering the largest class gives.
    """
    figures = ("auc", "accuracy", "macro_f1")
    rows = {
        name: [*(wording.figure(*way.evaluation.value(figure)) for figure in figures), *_effort(way)]
        for name, way in results.items()
    }
    largest, share = next(iter(results.values())).evaluation.largest_class
    rows[f"always '{largest}'"] = ["0.500", f"{share:.3f}", "", "", ""]
    columns = [*(METRICS[figure] for figure in figures), "weights trained", "training"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _effort(way: Way) -> tuple[str, str]:
    """How many weights were trained, in how many seconds."""
    only_head = (way.history["epoch"] == 0).all()
    weights = way.model.get_layer("logits").weights if only_head else way.model.trainable_weights
    return f"{sum(math.prod(weight.shape) for weight in weights):,}", f"{way.history['seconds'].sum():.0f} s"
