"""Hyperparameter search with KerasTuner: resumable, with every failed trial's reason kept.

A trial's score is one number from one random start. `repeat` trains the best settings again from several starts, so
that what is called best did not win by a lucky one.
"""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lungkit.backend import keras

import keras_tuner
import numpy as np
import pandas as pd

from lungkit import files, progress, resume
from lungkit.errors import LungkitError

STRATEGIES = ("hyperband", "bayesian")


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


def tuner_for(strategy: str, build, folder: Path, trials: int, epochs: int, seed: int) -> keras_tuner.Tuner:
    """KerasTuner's search in `folder`, with what an earlier call left there; arguments as for `search`."""
    shared = {
        "objective": keras_tuner.Objective("val_loss", "min"),
        "directory": str(folder.parent),
        "project_name": folder.name,
        "overwrite": False,
        "seed": seed,
        # A trial that cannot be built or trained is recorded and the search continues.
        "max_consecutive_failed_trials": max(3, trials),
    }
    if strategy == "hyperband":
        return keras_tuner.Hyperband(build, max_epochs=epochs, factor=3, hyperband_iterations=1, **shared)
    if strategy == "bayesian":
        return keras_tuner.BayesianOptimization(build, max_trials=trials, **shared)
    raise LungkitError(f"no search strategy '{strategy}'; there are: {', '.join(STRATEGIES)}")


def planned_epochs(strategy: str, tuner: keras_tuner.Tuner, trials: int, epochs: int) -> int:
    """How many epochs all trials of a search take together."""
    if strategy == "bayesian":
        return trials * epochs
    oracle = tuner.oracle
    return sum(
        oracle._get_size(bracket, turn)
        * (oracle._get_epochs(bracket, turn) - (oracle._get_epochs(bracket, turn - 1) if turn else 0))
        for bracket in range(oracle._get_num_brackets())
        for turn in range(oracle._get_num_rounds(bracket))
    )


def _done_epochs(tuner: keras_tuner.Tuner, epochs: int) -> int:
    """How many epochs an earlier call's completed trials took together."""
    done = [trial.hyperparameters.values for trial in tuner.oracle.trials.values() if trial.status == "COMPLETED"]
    return sum(values.get("tuner/epochs", epochs) - values.get("tuner/initial_epoch", 0) for values in done)


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


def search(
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
    # The pipeline shuffles; Hyperband sets its own epochs, which go before these.
    fit = {"shuffle": False, "epochs": epochs} | fit_options
    same_search(folder, strategy, trials, epochs, seed, settings)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # KerasTuner prints the folder that it takes up
            tuner = tuner_for(strategy, build, folder, trials, epochs, seed)  # builds once, to read the space
    except LungkitError:
        raise
    except Exception as error:
        raise SearchFailed(f"the model cannot be built with the first values of its search space: {error}") from error
    stopped_early = None
    with progress.bar(total=planned_epochs(strategy, tuner, trials, epochs), label="search", unit="epoch") as bar:
        bar.update(_done_epochs(tuner, epochs))
        try:
            tuner.search(train, validation_data=validation, callbacks=[_TrialBar(bar)], verbose=0, **fit)
        except RuntimeError as error:  # KerasTuner's own limit on trials that failed one after another
            stopped_early = error
    return result(tuner, folder, stopped_early)


def same_search(folder: Path, strategy: str, trials: int, epochs: int, seed: int, settings: dict | None) -> None:
    """Record what the search in `folder` is, or refuse to continue another (resume.SettingsDiffer)."""
    recorded = {"strategy": strategy, "epochs": epochs, "seed": seed} | (settings or {})
    resume.same_settings(folder, recorded | ({"trials": trials} if strategy == "bayesian" else {}), "search")


def result(tuner: keras_tuner.Tuner, folder: Path, stopped_by: Exception | None = None) -> SearchResult:
    """What a search that has ended found; SearchFailed, with each trial's reason, where no trial completed."""
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
    found: SearchResult,
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
    further options as for `search`. `folder` keeps every finished training: a later call takes it up.
    """
    completed = found.trials[found.trials["status"] == "COMPLETED"]
    knobs = completed.columns.difference(["trial", "status", "score", "epochs", "reason"])
    # A trial that continues another's values for more epochs is not another candidate.
    chosen = completed[~completed[knobs].duplicated()].head(finalists)
    runs, fit = [], {"shuffle": False, "epochs": epochs} | fit_options
    with progress.bar(total=len(chosen) * len(seeds), label="best settings again", unit="training") as bar:
        for trial in chosen.itertuples():
            for seed in seeds:
                record = folder / f"{trial.trial}-seed-{seed}-epochs-{epochs}.json"
                measured = _kept(record) or _trained_again(found, str(trial.trial), seed, build, train, validation, fit)
                _keep(record, measured)
                runs.append({"trial": trial.trial, "seed": seed} | measured | {"searched": trial.score})
                bar.update(1)
    table = pd.DataFrame(runs)
    winner = table.groupby("trial", sort=False)["loss"].mean().idxmin()
    return Repeated(_knobs(found.tuner.oracle.trials[winner].hyperparameters.values), table)


def _trained_again(found: SearchResult, trial: str, seed: int, build, train, validation, fit: dict) -> dict:
    keras.utils.set_random_seed(seed)
    model = build(found.tuner.oracle.trials[trial].hyperparameters.copy())
    history = model.fit(train(seed), validation_data=validation, verbose=0, **fit).history
    lowest = int(np.argmin(history["val_loss"]))
    return {name: float(history[f"val_{name}"][lowest]) for name in ("loss", "accuracy")}


def _kept(record: Path) -> dict | None:
    return json.loads(record.read_text()) if record.is_file() else None


def _keep(record: Path, measured: dict) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    files.replace(record, json.dumps(measured))
