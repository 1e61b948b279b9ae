"""Training by several processes that share each batch: tf.distribute's MultiWorkerMirroredStrategy.

Every worker has the whole model and works on its part of each batch. All of them add up their gradients and then
change the weights in the same way. `fit_with_workers` starts them on this machine; they find each other through
TF_CONFIG, which, set by hand for `python -m lungkit.training.multiworker` does the same across hosts. Their ports have
no authentication: the loopback address here, a private network across hosts.

Keras' own Model.fit cannot do this (Keras 3.15 with TensorFlow 2.21; keras-team/keras issue 20585): it averages the
first batch over workers to learn its shape, which fails with "Attempt to convert a value (PerReplica…) with an
unsupported type to a Tensor", and past that it reduces the metrics, single numbers, along an axis they do not have
("Invalid reduction dimension 0 for input with 0 dimensions"). This module therefore has its own training loop.
"""

import argparse
import contextlib
import json
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np
import pandas as pd

from lungkit import files, progress
from lungkit.errors import LungkitError
from lungkit.models import (
    backbones,  # noqa: F401 - its layers have to be known where a model is loaded
    cnn,
)
from lungkit.training import pipeline
from lungkit.training.workers import Workers, end_with_parent

_HISTORY, _BEST, _DRAFT = "history.csv", "best.weights.h5", "unfinished.csv"


def fit_with_workers(
    model: keras.Model,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    folder: Path,
    *,
    workers: int,
    epochs: int,
    batches: dict,
    compiled: dict,
    seed: int = 7,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train a model with `workers` processes on this machine's processor; returns it with its best epoch's weights,
    and the history.

    train, validation: images float32 (n, height, width, 1), preprocessed, and labels (n,) integers. batches: arguments
    of pipeline.InMemory; its `augment` those of pipeline.augmentation. `batch_size` counts the images of all workers
    together. compiled: arguments of cnn.compile_classifier, label_smoothing among them. Every worker varies each batch
    in the same way and takes its part of it. The number of workers therefore changes where things are computed, not
    what is learned: gradients and the statistics of batch normalisation are those of the whole batch. Dropout alone
    differs from worker to worker.

    `folder` gets history.csv, the best weights and each worker's log; a call for a folder that has all of them returns
    them. A training that was killed starts again from the first epoch. History: as fit.fit gives. A worker that dies
    ends all, with LungkitError and its last words.
    """
    if not 1 <= workers <= batches["batch_size"]:
        raise LungkitError(f"a batch of {batches['batch_size']} images cannot be shared by {workers} workers")
    if compiled.get("ema"):
        raise LungkitError("a moving average of the weights (ema) is kept by a single process only: leave out workers")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _HISTORY).exists():
        with tempfile.TemporaryDirectory(prefix="lungkit-") as shared:
            np.savez(Path(shared) / "images.npz", *train, *validation)
            model.save(Path(shared) / "start.keras")
            arguments = {"epochs": epochs, "batches": batches, "compiled": compiled, "seed": seed}
            _run([shared, str(folder), "--arguments", json.dumps(arguments)], folder, workers, epochs)
    model.load_weights(folder / _BEST)
    return model, pd.read_csv(folder / _HISTORY)


def _run(arguments: list[str], folder: Path, workers: int, epochs: int) -> None:
    """One process for each worker, until all have ended well; none is left when this returns."""
    command = [sys.executable, "-m", "lungkit.training.multiworker", *arguments]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(workers)]}
    (folder / _DRAFT).unlink(missing_ok=True)
    with (
        progress.bar(total=epochs, label=f"training by {workers} workers", unit="epoch") as bar,
        Workers(command, folder / "logs", workers) as processes,
    ):
        for index in range(workers):
            processes.start(
                f"worker{index}",
                TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
                no_grpc_proxy="127.0.0.1",  # a proxy has no way to the loopback address
                CUDA_VISIBLE_DEVICES="-1",  # workers cannot share a GPU
            )
        while len(processes):
            time.sleep(0.2)
            for name, how in processes.failed():  # the others would wait for it
                raise LungkitError(f"{name} of {workers} ended with {how}: {processes.last_words(name)}")
            with contextlib.suppress(FileNotFoundError):
                bar.update(max(0, (folder / _DRAFT).read_text().count("\n") - 1 - bar.n))
        bar.update(epochs - bar.n)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in bound:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in bound]


def _synchronized(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A copy of the layer; batch normalisation gets the statistics of the whole batch instead of one worker's part."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["synchronized"] = True
    return type(layer).from_config(config)


def train_as_worker(shared: Path, folder: Path, *, epochs: int, batches: dict, compiled: dict, seed: int) -> None:
    """One worker's part, as TF_CONFIG says which; the first writes the weights and the history. See fit_with_workers.

    shared: a folder with start.keras and images.npz.
    """
    import tensorflow as tf

    # Has to be made before anything else is asked of TensorFlow.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index, workers = strategy.cluster_resolver.task_id or 0, strategy.num_replicas_in_sync
    if len(strategy.extended.worker_devices) > 1:
        raise LungkitError("a worker takes one GPU; choose it with CUDA_VISIBLE_DEVICES")
    keras.utils.set_random_seed(seed)
    with np.load(shared / "images.npz") as arrays:
        train_images, train_labels, val_images, val_labels = (arrays[f"arr_{i}"] for i in range(4))
    alone = keras.saving.load_model(shared / "start.keras", compile=False)
    cnn.compile_classifier(alone, **compiled)
    with strategy.scope():
        model = keras.models.clone_model(alone, clone_function=_synchronized)
        model.set_weights(alone.get_weights())
        cnn.compile_classifier(model, **compiled)
    classes = alone.output_shape[1]
    options = batches | {"augment": pipeline.augmentation(**batches["augment"]) if batches.get("augment") else None}
    weights = {int(label): weight for label, weight in (batches.get("weights") or {}).items()}  # JSON's keys are text
    whole = pipeline.InMemory(train_images, train_labels, classes, **options | {"weights": weights})
    held_out = pipeline.InMemory(val_images, val_labels, classes, 64, weights=weights)

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any, weight: Any, count: Any) -> list[Any]:
        def on_this_worker(x: Any, y: Any, weight: Any, count: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                losses = keras.losses.categorical_crossentropy(
                    y, logits, from_logits=True, label_smoothing=compiled["label_smoothing"]
                )
                # The optimizer adds up the workers' gradients: each worker's is that of its share of the mean.
                loss = tf.reduce_sum(losses * weight) / count
            model.optimizer.apply_gradients(
                zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
            )
            hits = tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == tf.argmax(y, axis=1), tf.float32)) / count
            return loss, hits

        return [
            strategy.reduce("SUM", value, axis=None) for value in strategy.run(on_this_worker, (x, y, weight, count))
        ]

    rows: list = []
    for epoch in range(1, epochs + 1):
        started, figures, counts = time.perf_counter(), [], []
        for number in range(len(whole)):
            batch = whole[number]
            mine = [np.array_split(part, workers)[index] for part in batch]
            counts.append(len(batch[0]))
            means = step(*map(tf.constant, mine), tf.constant(float(counts[-1])))
            figures.append([float(value) for value in means])
        whole.on_epoch_end()
        loss, accuracy = np.average(figures, axis=0, weights=counts)
        if not np.isfinite(loss):
            raise LungkitError(f"the loss became {loss} in epoch {epoch}; try a smaller learning rate")
        row = {"epoch": epoch, "loss": loss, "accuracy": accuracy}
        if index == 0:
            alone.set_weights(model.get_weights())
            validated = alone.evaluate(held_out, verbose=0, return_dict=True)
            row |= {f"val_{figure}": validated[figure] for figure in ("loss", "accuracy")}
            row["learning_rate"] = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
            if row["val_loss"] < min((before["val_loss"] for before in rows), default=np.inf):
                alone.save_weights(folder / _BEST)
        rows.append(row | {"seconds": round(time.perf_counter() - started, 2)})
        if index == 0:
            finished = epoch == epochs
            files.replace(folder / (_HISTORY if finished else _DRAFT), pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    end_with_parent()
    parser = argparse.ArgumentParser(description=train_as_worker.__doc__)
    parser.add_argument("shared", type=Path, help="a folder with start.keras and images.npz")
    parser.add_argument("folder", type=Path, help="where the first worker leaves the weights and the history")
    parser.add_argument("--arguments", type=json.loads, required=True, help="the other arguments, as JSON")
    arguments = parser.parse_args()
    train_as_worker(arguments.shared, arguments.folder, **arguments.arguments)
