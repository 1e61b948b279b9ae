"""Training that shows its progress, keeps its history and continues after a kill."""

import json
import time
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pandas as pd

from lungkit import files, progress, resume
from lungkit.errors import LungkitError


def class_weights(labels: np.ndarray, n_classes: int) -> dict[int, float]:
    """Weights inversely proportional to class frequency, mean 1 over images (King & Zeng 2001).

    labels: (n,) integers 0 … n_classes-1; a class without an image is refused.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise LungkitError(f"class number {np.argmin(counts)} has no training image; every class needs at least one")
    return {i: float(len(labels) / (n_classes * count)) for i, count in enumerate(counts)}


def prior_loss(labels: np.ndarray) -> float:
    """The lowest cross-entropy, in nats, of one answer for every image: the frequencies of the classes in these labels.

    labels: (n,) integers. A network below it has learned something from the images.
    """
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    return float(-(share @ np.log(share)))


def image_weights(
    labels: np.ndarray, n_classes: int, sources: np.ndarray | None = None, counts: np.ndarray | None = None
) -> np.ndarray:
    """The loss weight of each image, mean 1: with these all classes weigh alike, and in each the sources that have it.

    labels: (n,) integers 0 … n_classes-1. sources: (n,); None: one. counts: (n,), above 0, for how many images of its
    class each counts; None: one. They have no use with sources.
    """
    per_class = class_weights(labels, n_classes)
    weights = np.array([per_class[label] for label in labels.tolist()])
    if sources is None and counts is not None:
        return weights * counts * (np.bincount(labels) / np.bincount(labels, counts))[labels]
    if sources is None:
        return weights
    _, source = np.unique(sources, return_inverse=True)
    counts = np.zeros((source.max() + 1, n_classes))
    np.add.at(counts, (source, labels), 1)
    alike = counts.sum(axis=0) / (counts > 0).sum(axis=0)  # images of a class in each source, if all had as many
    return weights * alike[labels] / counts[source, labels]


class _Checkpoint(keras.callbacks.Callback):
    """The whole state of a training after each epoch, so a kill costs at most one epoch.

    Keras' BackupAndRestore forgets how long the validation loss has not improved and which weights were best;
    this keeps both. state.json is written last and names the files that belong to it, so it never points
    at a half-written one.
    """

    def __init__(self, folder: Path, patience: int, state: dict, average: keras.callbacks.SwapEMAWeights | None):
        super().__init__()
        self.folder, self.patience, self.state, self.average = folder, patience, state, average

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {name: float(value) for name, value in logs.items()}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.perf_counter() - self.started, 2)
        if not np.isfinite(row["loss"]):
            raise LungkitError(f"the loss became {row['loss']} in epoch {epoch + 1}; try a smaller learning rate")
        state = self.state
        state["history"].append(row)
        if row["val_loss"] < state["best_loss"]:
            state |= {"best_loss": row["val_loss"], "best_epoch": epoch + 1, "best": f"best-{epoch + 1}.weights.h5"}
            self._save_weights(self.folder / state["best"])
        state |= {"epoch": epoch + 1, "last": f"last-{epoch + 1}.keras"}
        self.model.save(self.folder / state["last"])
        state["finished"] = epoch + 1 - state["best_epoch"] >= self.patience
        self._commit()
        self.model.stop_training = state["finished"]

    def _save_weights(self, file: Path):
        if self.average:  # what validation has just judged
            self.average.on_test_begin()
        self.model.save_weights(file)
        if self.average:
            self.average.on_test_end()

    def on_train_end(self, logs=None):
        self.state["finished"] = True
        self._commit()

    def _commit(self):
        files.replace(self.folder / "state.json", json.dumps(self.state, indent=1))
        kept = {self.state["last"], self.state["best"]}
        for file in self.folder.glob("*-*.*"):
            if file.name not in kept and file.name.startswith(("last-", "best-")):
                file.unlink()


class _Bar(keras.callbacks.Callback):
    """One line for the whole training: finished batches, the epoch, and the figures of validation."""

    def __init__(self, bar):
        super().__init__()
        self.bar = bar

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.set_description_str(f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update(1)

    def on_epoch_end(self, epoch, logs=None):
        accuracy = f", accuracy {logs['val_accuracy']:.3f}" if "val_accuracy" in logs else ""
        self.bar.set_postfix_str(f"validation: loss {logs['val_loss']:.3f}{accuracy}")


def fit(
    model: keras.Model,
    train,
    validation,
    folder: Path,
    *,
    epochs: int,
    patience: int = 10,
    weights: dict[int, float] | None = None,
    settings: dict | None = None,
) -> tuple[keras.Model, pd.DataFrame]:
    """Train a compiled model and return it with the weights of its best epoch, and the history.

    train, validation: what `Model.fit` takes, with a known number of batches. Stops after `patience` epochs
    without a lower validation loss. `weights`: loss weight of each class. Everything is kept in `folder` after
    each epoch: a call with the same folder continues after the last finished epoch (optimizer state, schedule,
    best weights and patience included), or returns at once when the training had finished. Of a model compiled with
    a moving average of its weights it is the average that validation judges and that is returned. `settings`
    (for instance the data's fingerprint) is recorded; a call with others is refused with resume.SettingsDiffer.

    History: one row an epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, seconds.
    """
    settings = {"epochs": epochs, "patience": patience, "parameters": model.count_params()} | (settings or {})
    resume.same_settings(folder, settings, "training")
    state = _restore(folder)
    if state["last"]:
        model = keras.saving.load_model(folder / state["last"])
    if not state["finished"]:
        steps = len(train)
        average = keras.callbacks.SwapEMAWeights() if model.optimizer.use_ema else None
        with progress.bar(total=steps * epochs, unit="batch") as bar:
            bar.update(steps * state["epoch"])
            model.fit(
                train,
                validation_data=validation,
                epochs=epochs,
                initial_epoch=state["epoch"],
                class_weight=weights,
                shuffle=False,  # the pipeline does that
                callbacks=[*filter(None, [average]), _Bar(bar), _Checkpoint(folder, patience, state, average)],
                verbose=0,
            )
    model.load_weights(folder / state["best"])
    return model, pd.DataFrame(state["history"])


def _restore(folder: Path) -> dict:
    """The state a former call left in `folder`, or a fresh one."""
    record = folder / "state.json"
    if record.exists():
        return json.loads(record.read_text())
    return {
        "epoch": 0, "history": [], "finished": False, "last": "",
        "best": "", "best_epoch": 0, "best_loss": float("inf"),
    }  # fmt: skip
