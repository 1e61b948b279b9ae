"""A hyperparameter search by several processes.

The command that is given hands out the trials and keeps KerasTuner's record of them. Its workers are processes of the
same command that find a name of their own in KERASTUNER_TUNER_ID, KerasTuner's variable for it. They share the folder
of the search, and speak through files in queue/ there:

    NAME.request.json   from a worker: a trial, please; and what became of the one before
    NAME.trial.json     the answer

A worker that dies is started again and trains its trial again. When the command itself is killed, its workers end with
it: trials that have ended are kept, those in training are lost, and the same command trains them again. A worker on
another host takes part when the same command is given there with a name in KERASTUNER_TUNER_ID and with the same
folders. No port is opened: who can write to the folder can take part.
"""

import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial

from lungkit import files
from lungkit.errors import LungkitError
from lungkit.models.search import ENDED, Search, SearchResult
from lungkit.training.workers import Ended, Workers, end_with_parent

# A trial fails when so many processes died while they trained it: some settings need more memory than there is.
ATTEMPTS = 3
# The search ends when a worker dies so often before it asks for a trial.
FAILED_STARTS = 3
_FINISHED = "finished"  # in the search's folder, when no trial is left


@dataclass(frozen=True)
class TimedResult:
    """`result`; `seconds` of this call; `whole`: seconds by number of workers, of searches run from first to last."""

    result: SearchResult
    seconds: float
    whole: dict[int, float]

    def speed_up(self, workers: int) -> str:
        """How many times faster than one worker, in words; empty where either was not measured."""
        if workers == 1 or not {1, workers} <= self.whole.keys():
            return ""
        alone, together = self.whole[1], self.whole[workers]
        return f"{together:.0f} s with {workers} workers, {alone:.0f} s with one: {alone / together:.2f} times as fast"


def worker_name() -> str:
    """The name of this process as a worker, or "" where it is none."""
    if os.environ.get("KERASTUNER_ORACLE_IP"):
        raise LungkitError(
            "KERASTUNER_ORACLE_IP is set, but a search has no server; unset it (KERASTUNER_TUNER_ID and "
            "the shared folders are enough for a worker on another host)"
        )
    return os.environ.get("KERASTUNER_TUNER_ID", "")


# --- in a worker


def take_part(search: Search) -> None:
    """Train trials until the search has ended."""
    end_with_parent()
    name = worker_name()
    (search.folder / f"{name}.json").unlink(missing_ok=True)  # KerasTuner would load the state, which others write
    tuner = search.new_tuner()
    tuner.oracle = _TrialsFromFolder(tuner.oracle.objective, search.folder, name)
    search.train_trials(tuner)


class _TrialsFromFolder:
    """What a worker's tuner has for an oracle: it passes KerasTuner's calls on to the command that started it."""

    def __init__(self, objective: Any, folder: Path, name: str) -> None:
        self.objective, self._finished = objective, folder / _FINISHED
        self._request, self._answer = _files_of(folder, name)
        self._trial: Trial | None = None
        self._report: dict[str, Any] = {}

    def create_trial(self, tuner_id: str) -> Trial:
        """Report the last trial and wait for the next one."""
        self._answer.unlink(missing_ok=True)
        while not self._answer.exists():
            if self._finished.exists():
                return Trial(keras_tuner.HyperParameters(), status="STOPPED")
            if not self._request.exists() and not self._answer.exists():  # also after a new start of the command
                files.replace(self._request, json.dumps(self._report, default=float))
            time.sleep(0.1)
        self._trial, self._report = Trial.from_state(json.loads(self._answer.read_text())), {}
        return self._trial

    def get_trial(self, trial_id: str) -> Trial:
        """The trial in training."""
        return self._trial

    def update_trial(self, trial_id: str, metrics: dict, step: int = 0) -> None:
        """Keep what the trial measured for the next report."""
        self._report |= {"metrics": metrics, "step": step}

    def end_trial(self, trial: Trial) -> None:
        """Keep how the trial ended for the next report."""
        self._report |= {"trial": trial.get_state()}

    def save(self) -> None:
        """Nothing: the command keeps the state of the search."""


def _files_of(folder: Path, name: str) -> tuple[Path, Path]:
    """The request and the answer of a worker."""
    return folder / "queue" / f"{name}.request.json", folder / "queue" / f"{name}.trial.json"


# --- in the command that hands out the trials


def search_with_workers(command: list[str], search: Search, workers: int = 1) -> TimedResult:
    """`search` with `workers` processes, timed; 1: in this process.

    command: argument list of a process that calls `take_part` with the same search. Any number of workers can continue
    the search in its folder, which keeps each process's log in logs/; the seconds are kept next to the folder. Ctrl-C
    or an error ends all processes.

    Raises SearchFailed as Search.run does, and LungkitError with the last words of a worker that cannot start.
    """
    if workers < 1:
        raise LungkitError(f"a search needs at least 1 worker, not {workers}")
    is_new = not any(search.folder.glob("trial_*"))
    started = time.perf_counter()
    if workers == 1:
        result = search.run()
        (search.folder / _FINISHED).touch()
    else:
        result = _search_by_processes(command, search, workers)
    seconds = time.perf_counter() - started
    return TimedResult(result, seconds, _whole(search.folder, workers, seconds if is_new else None))


def _whole(folder: Path, workers: int, seconds: float | None) -> dict[int, float]:
    """Record this search's seconds next to its folder, and return what was recorded for the same settings."""
    record = folder.with_name(f"{folder.name}_seconds.json")
    settings = json.loads((folder / "settings.json").read_text())
    kept = json.loads(record.read_text()) if record.exists() else {}
    seconds_by_workers = kept.get("seconds", {}) if kept.get("settings") == settings else {}
    if seconds is not None:
        seconds_by_workers[str(workers)] = round(seconds, 1)
        files.replace(record, json.dumps({"settings": settings, "seconds": seconds_by_workers}, indent=1))
    return {int(number): value for number, value in sorted(seconds_by_workers.items())}


def _search_by_processes(command: list[str], search: Search, workers: int) -> SearchResult:
    tuner, folder, stopped_early = search.open(), search.folder, None
    if not (folder / _FINISHED).exists():
        with (
            search.bar(tuner, f"search by {workers} workers") as bar,
            Workers(command, folder / "logs", workers) as processes,
        ):
            handout = _Handout(tuner, search, bar)
            for number in range(1, workers + 1):
                processes.start(f"worker{number}", KERASTUNER_TUNER_ID=f"worker{number}")
            try:
                while not handout.finished:
                    time.sleep(0.05)
                    handout.answer_requests()
                    for ended in processes.failed():
                        handout.take_back(ended, processes)
                        processes.start(ended.name)
                    if not len(processes) and not handout.finished:
                        raise LungkitError(f"all workers ended before the search did; see {folder / 'logs'}")
            except RuntimeError as error:  # KerasTuner's own limit on trials that failed one after another
                stopped_early = error
            (folder / _FINISHED).touch()
    return search.result(tuner, stopped_early)


class _Handout:
    """Gives the trials of a search to workers, and records what becomes of them."""

    def __init__(self, tuner: keras_tuner.Tuner, search: Search, bar: Any) -> None:
        self._tuner, self._search, self._folder, self._bar = tuner, search, search.folder, bar
        self._no_trial_left = False
        self._deaths, self._failed_starts = Counter[str](), Counter[str]()
        (self._folder / "queue").mkdir(exist_ok=True)
        for request in self._requests():  # of workers that ended with an earlier call; others ask again
            self._record(**json.loads(request.read_text()))
            request.unlink()

    def _requests(self) -> list[Path]:
        return sorted((self._folder / "queue").glob("[!.]*.request.json"))

    @property
    def finished(self) -> bool:
        """Whether every trial of the search has ended."""
        return self._no_trial_left and not self._tuner.oracle.ongoing_trials

    def answer_requests(self) -> None:
        """Record every report, and give each worker that asks a trial where there is one for it now."""
        for request in self._requests():
            name = request.name.removesuffix(".request.json")
            del self._failed_starts[name]
            self._record(**json.loads(request.read_text()))
            trial = self._tuner.oracle.create_trial(name)
            self._no_trial_left |= trial.status == "STOPPED"
            if trial.status == "RUNNING":
                files.replace(_files_of(self._folder, name)[1], json.dumps(trial.get_state()))
                request.unlink()

    def _record(self, trial: dict | None = None, metrics: dict | None = None, step: int = 0) -> None:
        """What a worker reports of a trial; a report that is read a second time changes nothing."""
        oracle = self._tuner.oracle
        if trial is None or oracle.trials[trial["trial_id"]].status in ENDED:
            return
        if metrics is not None:
            oracle.update_trial(trial["trial_id"], metrics, step)
        oracle.end_trial(Trial.from_state(trial))
        self._tuner.save()
        best = min((one.score for one in oracle.trials.values() if one.score is not None), default=float("nan"))
        self._bar.set_postfix_str(f"{len(oracle.trials)} trials, lowest validation loss {best:.3f}")
        self._bar.update(self._search.epochs_of(oracle.trials[trial["trial_id"]]))

    def take_back(self, ended: Ended, processes: Workers) -> None:
        """Say that a worker died. Its trial waits for it, or fails where it ended every worker that tried it."""
        self._bar.write(f"{ended.name} of the search died ({ended.how}); it is started again", file=sys.stderr)
        trial = self._tuner.oracle.ongoing_trials.get(ended.name)
        if trial is None:
            self._failed_starts[ended.name] += 1
            if self._failed_starts[ended.name] >= FAILED_STARTS:
                raise LungkitError(
                    f"{ended.name} of the search died {FAILED_STARTS} times before it asked for a trial ({ended.how}); "
                    f"finished trials are kept. Its last words ({self._folder / 'logs' / ended.name}.log):\n"
                    + processes.last_words(ended.name)
                )
            return
        self._deaths[trial.trial_id] += 1
        if self._deaths[trial.trial_id] >= ATTEMPTS:
            reason = f"{ATTEMPTS} processes died while they trained it; most often the memory was not enough"
            self._record(trial.get_state() | {"status": "FAILED", "message": reason})
