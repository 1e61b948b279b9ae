"""Hyperparameter search with KerasTuner: resumable, with every failed trial's reason kept.

A trial's score is one number from one random start. `Search.repeat` trains the best settings again from several
starts: what is called best did not win by a lucky one.
"""

import contextlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import keras_tuner
import numpy as np
import pandas as pd
from keras_tuner.engine.trial import Trial

from lungkit import files, progress, resume
from lungkit.errors import LungkitError

STRATEGIES = ("hyperband", "bayesian")
ENDED = ("COMPLETED", "FAILED")
_FACTOR = 3  # of Hyperband: one of so many trials is trained longer, so many times as long


class SearchFailed(LungkitError):
    """No trial finished; the message carries the reason of each."""


@dataclass(frozen=True)
class SearchResult:
    """`best`: values of the best trial; `trials`: one row each (trial, status, score, epochs, values, reason).

    score: the lowest validation loss that an epoch of the trial ended with. epochs: how many it was trained for.
    """

    best: dict[str, Any]
    trials: pd.DataFrame
    tuner: keras_tuner.Tuner


@dataclass(frozen=True)
class Repeated:
    """`best`: the values with the lowest mean validation loss; `runs`: a row a training, trial by trial.

    Columns of `runs`: trial, whose values were repeated; seed; loss and accuracy on validation, of the epoch with the
    lowest loss; searched, the validation loss that the search itself gave the trial.
    """

    best: dict[str, Any]
    runs: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Search:
    """A search of the knobs of `build` for the lowest validation loss; it continues where an earlier call stopped.

    build: from KerasTuner's hyperparameters to a compiled model. train, validation: what `Model.fit` takes.
    strategy: "hyperband" (Li et al., JMLR 2018; its number of trials follows from `epochs`) or "bayesian" (Gaussian
    process, `trials` trials of `epochs` epochs).
    folder: keeps every trial, and `settings` (for instance the data's fingerprint): a call with others is refused,
    because its trials could not be compared.
    """

    build: Callable[[keras_tuner.HyperParameters], keras.Model] | keras_tuner.HyperModel
    train: Any
    validation: Any
    folder: Path
    strategy: str = "hyperband"
    trials: int = 10
    epochs: int = 10
    seed: int = 7
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)  # further options of `Model.fit`

    def run(self) -> SearchResult:
        """Train the trials that are left. Raises SearchFailed, with each trial's reason, where none completes."""
        tuner = self.open()
        stopped_early = None
        with self.bar(tuner, "search") as bar:
            try:
                self.train_trials(tuner, callbacks=[_TrialBar(bar)])
            except RuntimeError as error:  # KerasTuner's own limit on trials that failed one after another
                stopped_early = error
        return self.result(tuner, stopped_early)

    def train_trials(self, tuner: keras_tuner.Tuner, **options: Any) -> None:
        """Train the trials that the tuner's oracle gives, until it has no more."""
        # The pipeline shuffles; Hyperband sets its own epochs, which replace these.
        fit = {"shuffle": False, "epochs": self.epochs, **self.fit}
        tuner.search(self.train, validation_data=self.validation, verbose=0, **fit, **options)

    def new_tuner(self) -> keras_tuner.Tuner:
        """KerasTuner's search in the folder. It builds a model once, to read the space."""
        shared = {
            "objective": keras_tuner.Objective("val_loss", "min"),
            "directory": str(self.folder.parent),
            "project_name": self.folder.name,
            "overwrite": False,
            "seed": self.seed,
            # A trial that cannot be built or trained is recorded, and the search continues.
            "max_consecutive_failed_trials": max(3, self.trials),
        }
        check_strategy(self.strategy)
        with contextlib.redirect_stdout(io.StringIO()):  # KerasTuner prints the folder that it continues in
            if self.strategy == "bayesian":
                return keras_tuner.BayesianOptimization(self.build, max_trials=self.trials, **shared)
            return keras_tuner.Hyperband(
                self.build, max_epochs=self.epochs, factor=_FACTOR, hyperband_iterations=1, **shared
            )

    def open(self) -> keras_tuner.Tuner:
        """The tuner of a new search, or of the one in the folder; trials that were in training come next.

        Raises resume.SettingsDiffer for another search, and SearchFailed where the model cannot be built.
        """
        recorded = {"strategy": self.strategy, "epochs": self.epochs, "seed": self.seed, **self.settings}
        if self.strategy == "bayesian":
            recorded |= {"trials": self.trials}
        resume.same_settings(self.folder, recorded, "search")
        try:
            tuner = self.new_tuner()
        except LungkitError:
            raise
        except Exception as error:
            raise SearchFailed(
                f"the model cannot be built with the first values of its search space: {error}"
            ) from error
        # KerasTuner saves before it counts an ended trial as ended. After a kill in between it would be trained again.
        tuner.oracle.verbose = 0
        state = tuner.oracle.get_state()
        waiting = {trial for trial in state["retry_queue"] if tuner.oracle.trials[trial].status not in ENDED}
        tuner.oracle.set_state(state | {"retry_queue": sorted(waiting, reverse=True)})
        tuner.save()  # KerasTuner continues only a search that was saved once, which it does after the first trial
        return tuner

    def bar(self, tuner: keras_tuner.Tuner, label: str) -> Any:
        """A bar over the epochs of all trials, moved by those that an earlier call completed."""
        total = self.trials * self.epochs if self.strategy == "bayesian" else _hyperband_epochs(self.epochs)
        bar = progress.bar(total=total, label=label, unit="epoch")
        bar.update(sum(self.epochs_of(trial) for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"))
        return bar

    def epochs_of(self, trial: Trial) -> int:
        """How many epochs a trial takes in this search, without those of the trial that it continues."""
        values = trial.hyperparameters.values
        return int(values.get("tuner/epochs", self.epochs) - values.get("tuner/initial_epoch", 0))

    def result(self, tuner: keras_tuner.Tuner, stopped_by: Exception | None = None) -> SearchResult:
        """The result of a search that has ended; SearchFailed, with each trial's reason, where no trial completed."""
        rows = [self._row(trial) for trial in tuner.oracle.trials.values()]
        if not any(row["status"] == "COMPLETED" for row in rows):
            reasons = "\n".join(f"  trial {row['trial']} ({row['status']}): {row['reason']}" for row in rows)
            raise SearchFailed(f"no trial of the search in {self.folder.name} completed:\n{reasons}") from stopped_by
        table = pd.DataFrame(rows).sort_values("score", na_position="last", ignore_index=True)
        return SearchResult(_knobs(tuner.get_best_hyperparameters(1)[0].values), table, tuner)

    def _row(self, trial: Trial) -> dict[str, Any]:
        values, lines = trial.hyperparameters.values, (trial.message or "").strip().splitlines()
        trained = values.get("tuner/epochs", self.epochs) if trial.status == "COMPLETED" else 0
        row = {"trial": trial.trial_id, "status": trial.status, "score": trial.score, "epochs": trained}
        return row | _knobs(values) | {"reason": lines[-1].strip() if lines else ""}  # what a person needs first

    def repeat(
        self,
        result: SearchResult,
        train: Callable[[int], Any],
        folder: Path,
        *,
        seeds: Sequence[int],
        finalists: int = 2,
    ) -> Repeated:
        """Train the values of the best trials again from each seed, and call best what does best on the mean.

        train: from a seed to what `Model.fit` takes: no training depends on what ran before it. folder: keeps every
        finished training for a later call.
        """
        completed = result.trials[result.trials["status"] == "COMPLETED"]
        knobs = completed.columns.difference(["trial", "status", "score", "epochs", "reason"])
        # A trial that continues another with the same values for more epochs is not another candidate.
        rows, runs = completed[~completed[knobs].duplicated()].head(finalists), []
        with progress.bar(total=len(rows) * len(seeds), label="best settings again", unit="training") as bar:
            for trial, searched in rows[["trial", "score"]].itertuples(index=False):
                for seed in seeds:
                    record = folder / f"{trial}-seed-{seed}-epochs-{self.epochs}.json"
                    if not record.is_file():
                        values = result.tuner.oracle.trials[trial].hyperparameters.copy()
                        measured = self._train_again(values, train, seed)
                        folder.mkdir(parents=True, exist_ok=True)
                        files.replace(record, json.dumps(measured))
                    measured = json.loads(record.read_text())
                    runs.append({"trial": trial, "seed": seed} | measured | {"searched": searched})
                    bar.update(1)
        table = pd.DataFrame(runs)
        winner = table.groupby("trial", sort=False)["loss"].mean().idxmin()
        return Repeated(_knobs(result.tuner.oracle.trials[winner].hyperparameters.values), table)

    def _train_again(
        self, values: keras_tuner.HyperParameters, train: Callable[[int], Any], seed: int
    ) -> dict[str, float]:
        keras.utils.set_random_seed(seed)
        model = self.build(values)
        fit = {"shuffle": False, "epochs": self.epochs, **self.fit}
        history = model.fit(train(seed), validation_data=self.validation, verbose=0, **fit).history
        lowest = int(np.argmin(history["val_loss"]))
        return {name: float(history[f"val_{name}"][lowest]) for name in ("loss", "accuracy")}


def check_strategy(strategy: str) -> None:
    """Refuse a strategy that there is not."""
    if strategy not in STRATEGIES:
        raise LungkitError(f"no search strategy '{strategy}'; there are: {', '.join(STRATEGIES)}")


class _TrialBar(keras.callbacks.Callback):
    """Moves the search's one bar: a step for each epoch of any trial."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar = bar

    def __deepcopy__(self, _memo: Any) -> "_TrialBar":  # KerasTuner copies its callbacks for every execution
        return _TrialBar(self.bar)

    def on_epoch_end(self, _epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.bar.update(1)
        if logs and "val_accuracy" in logs:
            self.bar.set_postfix_str(f"validation accuracy {logs['val_accuracy']:.3f}")


def _hyperband_epochs(most: int) -> int:
    """How many epochs all trials of one Hyperband take together (Li et al., 2018), rounded as KerasTuner does."""
    brackets = sum(most / _FACTOR**bracket >= 1 for bracket in range(most.bit_length()))
    last = math.ceil(1 + math.log(most, _FACTOR))
    total = 0
    for bracket in range(brackets):
        for left in range(bracket + 1):  # rounds until the longest one
            before = math.ceil(most / _FACTOR ** (left + 1)) if left < bracket else 0
            total += math.ceil(last / (bracket + 1) * _FACTOR**left) * (math.ceil(most / _FACTOR**left) - before)
    return total


def _knobs(values: Mapping[str, Any]) -> dict[str, Any]:
    """The searched values without KerasTuner's own, and without the tail of a float that counts in tenths."""
    knobs = {name: value for name, value in values.items() if not name.startswith("tuner/")}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in knobs.items()}
