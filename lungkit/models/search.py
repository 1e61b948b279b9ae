"""Hyperparameter search with KerasTuner: resumable, with every failed trial's reason kept.

A trial's score is one number from one random start. `repeat` trains the best settings again from several starts, so
that what is called best did not win by a lucky one.
"""

import contextlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import keras_tuner
import numpy as np
import pandas as pd

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

    best: dict
    trials: pd.DataFrame
    tuner: keras_tuner.Tuner


class _TrialBar(keras.callbacks.Callback):
    """Moves the search's one bar: a step for each epoch of any trial."""

    def __init__(self, bar):
        super().__init__()
        self.bar = bar

    def __deepcopy__(self, memo):  # KerasTuner copies its callbacks for every execution
        return _TrialBar(self.bar)

    def on_epoch_end(self, epoch, logs=None):
        self.bar.update(1)
        if logs and "val_accuracy" in logs:
            self.bar.set_postfix_str(f"validation accuracy {logs['val_accuracy']:.3f}")


def new_tuner(strategy: str, build, folder: Path, trials: int, epochs: int, seed: int) -> keras_tuner.Tuner:
    """KerasTuner's search in `folder`; arguments as for `run_search`. It builds a model once, to read the space."""
    shared = {
        "objective": keras_tuner.Objective("val_loss", "min"),
        "directory": str(folder.parent),
        "project_name": folder.name,
        "overwrite": False,
        "seed": seed,
        # A trial that cannot be built or trained is recorded, and the search continues.
        "max_consecutive_failed_trials": max(3, trials),
    }
    with contextlib.redirect_stdout(io.StringIO()):  # KerasTuner prints the folder that it continues in
        if strategy == "hyperband":
            return keras_tuner.Hyperband(build, max_epochs=epochs, factor=_FACTOR, hyperband_iterations=1, **shared)
        if strategy == "bayesian":
            return keras_tuner.BayesianOptimization(build, max_trials=trials, **shared)
    raise LungkitError(f"no search strategy '{strategy}'; there are: {', '.join(STRATEGIES)}")


def open_search(build, folder: Path, *, strategy: str, trials: int, epochs: int, seed: int) -> keras_tuner.Tuner:
    """A new search, or the one that an earlier call left in `folder`; trials that were in training come next.

    Raises SearchFailed where the model cannot be built.
    """
    try:
        tuner = new_tuner(strategy, build, folder, trials, epochs, seed)
    except LungkitError:
        raise
    except Exception as error:
        raise SearchFailed(f"the model cannot be built with the first values of its search space: {error}") from error
    # KerasTuner saves before it counts an ended trial as ended. After a kill in between it would be trained again.
    tuner.oracle.verbose = 0
    state = tuner.oracle.get_state()
    waiting = {trial for trial in state["retry_queue"] if tuner.oracle.trials[trial].status not in ENDED}
    tuner.oracle.set_state(state | {"retry_queue": sorted(waiting, reverse=True)})
    tuner.save()  # KerasTuner continues only a search that was saved once, which it does after the first trial
    return tuner


def epochs_bar(tuner: keras_tuner.Tuner, label: str, strategy: str, trials: int, epochs: int):
    """A bar over the epochs of all trials of a search, moved by those that an earlier call completed."""
    total = trials * epochs if strategy == "bayesian" else _hyperband_epochs(epochs)
    bar = progress.bar(total=total, label=label, unit="epoch")
    bar.update(sum(epochs_of(trial, epochs) for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"))
    return bar


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


def epochs_of(trial, epochs: int) -> int:
    """How many epochs a trial takes; `epochs`: those of every trial, where the strategy does not vary them."""
    values = trial.hyperparameters.values
    return values.get("tuner/epochs", epochs) - values.get("tuner/initial_epoch", 0)


def _reason(trial) -> str:
    """The last line of a trial's traceback: what a person needs first."""
    lines = [line for line in (trial.message or "").strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _knobs(values: dict) -> dict:
    """The searched values without KerasTuner's own, and without the tail of a float that counts in tenths."""
    knobs = {name: value for name, value in values.items() if not name.startswith("tuner/")}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in knobs.items()}


def trials_table(tuner: keras_tuner.Tuner, epochs: int | None = None) -> pd.DataFrame:
    """One row for each trial, best first: trial, status, score (validation loss), epochs, its values, reason.

    epochs: those of every completed trial, where the strategy gives all the same; default: up to its best one.
    """
    rows = []
    for trial in tuner.oracle.trials.values():
        values = trial.hyperparameters.values
        trained = values.get("tuner/epochs", epochs or (trial.best_step or 0) + 1)
        knobs = _knobs(values)
        rows.append(
            {
                "trial": trial.trial_id,
                "status": trial.status,
                "score": trial.score,
                "epochs": trained if trial.status == "COMPLETED" else 0,
            }
            | knobs
            | {"reason": _reason(trial)}
        )
    return pd.DataFrame(rows).sort_values("score", na_position="last", ignore_index=True)


def run_search(
    build: Callable[[keras_tuner.HyperParameters], keras.Model],
    train,
    validation,
    folder: Path,
    *,
    strategy: str = "hyperband",
    trials: int = 10,
    epochs: int = 10,
    seed: int = 7,
    settings: dict | None = None,
    **fit_options,
) -> SearchResult:
    """Search the knobs of `build` for the lowest validation loss; continues where an earlier call stopped.

    `build` maps KerasTuner hyperparameters to a compiled model; `train` and `validation` are what
    `Model.fit` takes. `strategy`: "hyperband" (Li et al., JMLR 2018; its number of trials follows from `epochs`)
    or "bayesian" (Gaussian process, `trials` trials of `epochs` epochs). `folder` keeps every trial;
    `settings` (for instance the data's fingerprint) is kept there too, and a later call with others is refused,
    because its trials could not be compared. Further options go to `Model.fit`.

    Raises SearchFailed, with each trial's reason, when no trial completes.
    """
    # The pipeline shuffles; Hyperband sets its own epochs, which replace these.
    fit = {"shuffle": False, "epochs": epochs} | fit_options
    options: dict[str, Any] = {"strategy": strategy, "trials": trials, "epochs": epochs, "seed": seed}
    same_search(folder, settings=settings, **options)
    tuner = open_search(build, folder, **options)
    stopped_early = None
    with epochs_bar(tuner, "search", strategy, trials, epochs) as bar:
        try:
            tuner.search(train, validation_data=validation, callbacks=[_TrialBar(bar)], verbose=0, **fit)
        except RuntimeError as error:  # KerasTuner's own limit on trials that failed one after another
            stopped_early = error
    return result_of(tuner, folder, stopped_early)


def same_search(folder: Path, *, strategy: str, trials: int, epochs: int, seed: int, settings: dict | None) -> None:
    """Record what the search in `folder` is, or refuse to continue another one (resume.SettingsDiffer)."""
    recorded = {"strategy": strategy, "epochs": epochs, "seed": seed} | (settings or {})
    resume.same_settings(folder, recorded | ({"trials": trials} if strategy == "bayesian" else {}), "search")


def result_of(tuner: keras_tuner.Tuner, folder: Path, stopped_by: Exception | None = None) -> SearchResult:
    """The result of a search that has ended; SearchFailed, with each trial's reason, where no trial completed."""
    table = pd.DataFrame(columns=["trial", "status", "reason"])
    if tuner.oracle.trials:
        table = trials_table(tuner, _recorded_epochs(folder))
    if not (table["status"] == "COMPLETED").any():
        reasons = "\n".join(f"  trial {row.trial} ({row.status}): {row.reason}" for row in table.itertuples())
        raise SearchFailed(f"no trial of the search in {folder.name} completed:\n{reasons}") from stopped_by
    return SearchResult(_knobs(tuner.get_best_hyperparameters(1)[0].values), table, tuner)


def _recorded_epochs(folder: Path) -> int | None:
    record = folder / "settings.json"
    return json.loads(record.read_text()).get("epochs") if record.is_file() else None


# --- the best settings again, from several starts


@dataclass(frozen=True)
class Repeated:
    """`best`: the values with the lowest mean validation loss; `runs`: a row a training, trial by trial.

    Columns of `runs`: trial, whose values were repeated; seed; loss and accuracy on validation, of the epoch with the
    lowest loss; searched, the validation loss that the search itself gave the trial.
    """

    best: dict
    runs: pd.DataFrame


def repeat(
    result: SearchResult,
    build: Callable[[keras_tuner.HyperParameters], keras.Model],
    train: Callable[[int], object],
    validation,
    folder: Path,
    *,
    seeds: Sequence[int],
    finalists: int = 2,
    epochs: int = 10,
    **fit_options,
) -> Repeated:
    """Train the values of the best trials again from each seed, and call best what does best on the mean.

    train: from a seed to what `Model.fit` takes: no training depends on what ran before it. build, validation and
    further options as for `run_search`. `folder` keeps every finished training for a later call.
    """
    completed = result.trials[result.trials["status"] == "COMPLETED"]
    knobs = completed.columns.difference(["trial", "status", "score", "epochs", "reason"])
    # A trial that continues another with the same values for more epochs is not another candidate.
    finalist_rows = completed[~completed[knobs].duplicated()].head(finalists)
    runs, fit = [], {"shuffle": False, "epochs": epochs} | fit_options
    with progress.bar(total=len(finalist_rows) * len(seeds), label="best settings again", unit="training") as bar:
        for trial in finalist_rows.itertuples():
            for seed in seeds:
                record = folder / f"{trial.trial}-seed-{seed}-epochs-{epochs}.json"
                if not record.is_file():
                    measured = _train_again(result, str(trial.trial), seed, build, train, validation, fit)
                    folder.mkdir(parents=True, exist_ok=True)
                    files.replace(record, json.dumps(measured))
                measured = json.loads(record.read_text())
                runs.append({"trial": trial.trial, "seed": seed} | measured | {"searched": trial.score})
                bar.update(1)
    table = pd.DataFrame(runs)
    winner = table.groupby("trial", sort=False)["loss"].mean().idxmin()
    return Repeated(_knobs(result.tuner.oracle.trials[winner].hyperparameters.values), table)


def _train_again(result: SearchResult, trial: str, seed: int, build, train, validation, fit: dict) -> dict:
    keras.utils.set_random_seed(seed)
    model = build(result.tuner.oracle.trials[trial].hyperparameters.copy())
    history = model.fit(train(seed), validation_data=validation, verbose=0, **fit).history
    lowest = int(np.argmin(history["val_loss"]))
    return {name: float(history[f"val_{name}"][lowest]) for name in ("loss", "accuracy")}
