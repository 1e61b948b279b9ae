"""The compact CNN trained by several processes that share each batch: tf.distribute's MultiWorkerMirroredStrategy.

Every worker holds the whole model, works on its part of each batch, and all of them add up their gradients before
they change the weights in the same way. `fit_with_workers` starts them on this machine; they find each other through
TF_CONFIG, which set by hand for `python -m lungkit.training.multiworker` does the same across hosts. Their ports have
no authentication: the loopback address here, a private network across hosts.

Keras' own Model.fit cannot do this (Keras 3.15 with TensorFlow 2.21; keras-team/keras issue 20585): it averages the
first batch over workers to learn its shape, which fails with "Attempt to convert a value (PerReplica…) with an
unsupported type to a Tensor", and past that it reduces the metrics, single numbers, along an axis they do not have
("Invalid reduction dimension 0 for input with 0 dimensions"). Hence a training loop of our own.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pandas as pd

from lungkit.errors import LungkitError
from lungkit.models import cnn, distributed_search


def fit_with_workers(
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folder: Path,
    *,
    workers: int = 2,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 7,
    network: dict | None = None,
    compiled: dict | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train a new compact CNN with `workers` processes on this machine's processor; returns it and its history.

    images: float32 (n, height, width, 1), preprocessed; labels: (n,) integers 0 … n_classes-1. `batch_size` counts
    the images of all workers together and must be a multiple of `workers`. Each epoch's order follows from `seed`
    alone, and every worker takes its slice of each batch, so that the number of workers changes what is computed
    where, not what is learned: gradients and the statistics of batch normalisation are those of the whole batch. Only
    dropout is drawn by each worker for itself. `network` and `compiled`: arguments of cnn.build and
    cnn.compile_classifier. The last batch of an epoch is left out where it is not full.

    `folder` gets model.keras, history.csv and each worker's log. History: one row an epoch: epoch, loss (mean over
    images), accuracy, seconds. A worker that dies ends all, with LungkitError and its last words.
    """
    if workers < 1 or batch_size % workers:
        raise LungkitError(f"a batch of {batch_size} images cannot be shared evenly by {workers} workers")
    if len(images) < batch_size:
        raise LungkitError(f"{len(images)} images do not fill one batch of {batch_size}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lungkit-") as shared:
        np.savez(Path(shared) / "images.npz", images=images, labels=labels)
        arguments = {
            "n_classes": n_classes,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
            "network": network or {},
            "compiled": compiled or {},
        }
        _run([shared + "/images.npz", str(folder), "--arguments", json.dumps(arguments)], folder, workers)
    return keras.saving.load_model(folder / "model.keras"), pd.read_csv(folder / "history.csv")


def _run(arguments: list[str], folder: Path, workers: int) -> None:
    """One process for each worker, until all have ended well; none is left when this returns."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _free_ports(workers)]}
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    running = []
    try:
        for index in range(workers):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            variables = {
                "TF_CONFIG": json.dumps(config),
                "no_grpc_proxy": "127.0.0.1",  # a proxy has no way to the loopback address
                "TF_NUM_INTRAOP_THREADS": threads,
                distributed_search.PARENT: str(os.getpid()),
                "CUDA_VISIBLE_DEVICES": "-1",  # workers cannot share a GPU
            }
            with (folder / f"worker{index}.log").open("wb") as log:
                command = [sys.executable, "-m", "lungkit.training.multiworker", *arguments]
                running.append(
                    subprocess.Popen(
                        command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                )
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                break  # the others would wait for it
            time.sleep(0.2)
        for index, process in enumerate(running):
            if process.poll():
                lines = (folder / f"worker{index}.log").read_text(errors="replace").strip().splitlines()
                raise LungkitError(
                    f"worker {index} of {workers} ended with status {process.poll()}: " + "\n".join(lines[-5:])
                )
    finally:
        for process in running:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for free in held:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in held]
    finally:
        for free in held:
            free.close()


def _synchronized(layer):
    """A copy of the layer; batch normalisation gets the statistics of the whole batch instead of one worker's part."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["synchronized"] = True
    return type(layer).from_config(config)


def train(images, labels, folder: Path, *, n_classes, epochs, batch_size, seed, network, compiled) -> None:
    """One worker's part, as TF_CONFIG says which; the first writes the model and the history. See fit_with_workers."""
    import tensorflow as tf

    # Has to be made before anything else is asked of TensorFlow.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index, workers = strategy.cluster_resolver.task_id or 0, strategy.num_replicas_in_sync
    if len(strategy.extended.worker_devices) > 1:
        raise LungkitError("a worker takes one GPU; choose it with CUDA_VISIBLE_DEVICES")
    keras.utils.set_random_seed(seed)  # the same first weights everywhere
    alone = cnn.build(images.shape[1:], n_classes, **network)
    with strategy.scope():
        model = keras.models.clone_model(alone, clone_function=_synchronized)
        model.set_weights(alone.get_weights())
        cnn.compile_classifier(model, **compiled)
    part = batch_size // workers

    @tf.function
    def step(x, y):
        def on_this_worker(x, y):
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
                # The optimizer adds up the workers' gradients: each worker's is that of its share of the mean.
                loss = tf.reduce_sum(losses) / batch_size
            model.optimizer.apply_gradients(
                zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
            )
            hits = tf.reduce_mean(tf.cast(tf.argmax(logits, axis=1) == y, tf.float32)) / workers
            return loss, hits

        return [strategy.reduce("SUM", value, axis=None) for value in strategy.run(on_this_worker, args=(x, y))]

    rows, random = [], np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        started, figures = time.perf_counter(), []
        order = random.permutation(len(images))
        for first in range(0, len(images) - batch_size + 1, batch_size):
            mine = order[first + index * part : first + (index + 1) * part]
            figures.append([float(value) for value in step(tf.constant(images[mine]), tf.constant(labels[mine]))])
        loss, accuracy = np.mean(figures, axis=0)
        if not np.isfinite(loss):
            raise LungkitError(f"the loss became {loss} in epoch {epoch}; try a smaller learning rate")
        rows.append(
            {"epoch": epoch, "loss": loss, "accuracy": accuracy, "seconds": round(time.perf_counter() - started, 2)}
        )
    alone.set_weights(model.get_weights())
    if index == 0:
        cnn.compile_classifier(alone, **compiled).save(folder / "model.keras")
        pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)


if __name__ == "__main__":
    distributed_search.end_with_parent()
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("images", type=Path, help=".npz with images and labels")
    parser.add_argument("folder", type=Path, help="where the first worker leaves model.keras and history.csv")
    parser.add_argument("--arguments", type=json.loads, required=True, help="the other arguments of train, as JSON")
    given = parser.parse_args()
    with np.load(given.images) as arrays:
        train(arrays["images"], arrays["labels"].astype("int64"), given.folder, **given.arguments)
