"""Hyperparameter search by several processes: KerasTuner's chief hands out trials, its workers train them.

One command is run once as the chief and once for each worker. Which of them it is, it reads from KerasTuner's
variables: KERASTUNER_TUNER_ID ("chief", or "tuner0", "tuner1" …), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT
(where the chief listens). All share the search's folder. `search` starts the processes on this machine, starts those
that die again, and ends all of them with itself. The same variables, set by hand for the same command, spread a search
over several hosts that share the folder.

The chief's port has no authentication: who reaches it can read the search and change its results. Here it is bound to
the loopback address, which every account of the machine reaches; across hosts use a private network only.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lungkit.backend import keras

import keras_tuner

from lungkit import progress
from lungkit.errors import LungkitError
from lungkit.models import search as in_process
from lungkit.models.search import SearchFailed, SearchResult

# Processes that train one trial, one after the other, before it counts as failed: some settings need more memory
# than there is, and would end every worker.
ATTEMPTS = 3
# How often a process may die again before any trial has begun or ended.
BARREN_DEATHS = 3
ENDED = ("COMPLETED", "FAILED")
PARENT = "LUNGKIT_SEARCH_PARENT"


@dataclass(frozen=True)
class Measured:
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


def role() -> str:
    """What KerasTuner's variables make of this process: "chief", a worker's name, or "" for none of them."""
    return os.environ.get("KERASTUNER_TUNER_ID", "")


# --- in the chief and in the workers


def take_part(build, train, validation, folder: Path, *, strategy: str, trials: int, epochs: int, seed: int, **fit):
    """Be the chief or the worker that `role` says, until the search has ended. Arguments as in models.search.search.

    A worker notes in trial_*/attempts of `folder` that it begins a trial, one line each.
    """
    end_with_parent()
    chief = "chief" in role()
    options = {"strategy": strategy, "trials": trials, "epochs": epochs, "seed": seed}
    tuner = _open(build, folder, keep_ongoing=chief, **options)
    if not chief:
        tuner.oracle.stub = _patient_stub()
        # A worker without work asks again at once; the pause leaves the processor to those that train.
        tuner.pre_create_trial = lambda: time.sleep(0.2)
        tuner.run_trial = _noting_attempts(tuner)
    tuner.search(train, validation_data=validation, verbose=0, **({"shuffle": False, "epochs": epochs} | fit))
    if chief:
        tuner.save()  # KerasTuner's last word on a trial still counts it as running


def end_with_parent() -> None:
    """End this process when the one that started it has gone, however that ended."""
    parent = os.environ.get(PARENT)
    if not parent:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _patient_stub():
    """KerasTuner's connection to the chief, but one that outlives a new start of the chief.

    A call that was under way is sent again, and the port is tried every few seconds, not after up to two minutes.
    """
    import grpc
    from keras_tuner.src import protos

    again = {"maxAttempts": 5, "initialBackoff": "1s", "maxBackoff": "5s", "backoffMultiplier": 2}
    policy = {"methodConfig": [{"name": [{}], "retryPolicy": again | {"retryableStatusCodes": ["UNAVAILABLE"]}}]}
    channel = grpc.insecure_channel(
        f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}",
        [("grpc.service_config", json.dumps(policy)), ("grpc.max_reconnect_backoff_ms", 2000)],
    )
    return protos.get_service_grpc().OracleStub(channel)


def _noting_attempts(tuner: keras_tuner.Tuner) -> Callable:
    run_trial = tuner.run_trial

    def run(trial, *args, **options):
        attempts = Path(tuner.get_trial_dir(trial.trial_id)) / "attempts"
        before = attempts.read_text().splitlines() if attempts.exists() else []
        if len(before) >= ATTEMPTS:
            raise keras_tuner.errors.FailedTrialError(
                f"{len(before)} processes died while they trained it; most often the memory was not enough"
            )
        with attempts.open("a") as file:
            file.write(f"{tuner.tuner_id} {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        return run_trial(trial, *args, **options)

    return run


def _open(build, folder: Path, *, keep_ongoing: bool, strategy: str, trials: int, epochs: int, seed: int):
    """The search as `folder` holds it, or a new one.

    KerasTuner reads the kept state only where a file of this process's name lies next to it, gives trials that were
    running to whoever asks next, and counts the last ended one among them. With `keep_ongoing` trials stay with the
    workers that train them: a chief that died is not noticed by them, and no trial is trained twice.
    """
    state, own = folder / "oracle.json", folder / f"{role() or 'tuner0'}.json"
    running = {}
    if state.exists():
        running = json.loads(state.read_text())["ongoing_trials"]
        own.write_text("{}")
    with contextlib.redirect_stdout(io.StringIO()):
        tuner = in_process.tuner_for(strategy, build, folder, trials, epochs, seed)
    oracle = tuner.oracle
    if not isinstance(oracle, keras_tuner.Oracle):  # a worker's: it asks the chief
        return tuner
    # KerasTuner's own limit is raised inside the chief, which would leave it locked.
    oracle.max_consecutive_failed_trials = None
    waiting = {trial for trial in oracle._retry_queue if oracle.trials[trial].status not in ENDED}
    if keep_ongoing:
        oracle.ongoing_trials = {worker: oracle.trials[trial] for worker, trial in running.items() if trial in waiting}
        oracle.tuner_ids = set(oracle.ongoing_trials)
        waiting -= set(running.values())
    oracle._retry_queue = sorted(waiting, reverse=True)
    return tuner


# --- in the process that starts them


def search(
    command: list[str],
    build: Callable[[keras_tuner.HyperParameters], keras.Model],
    train,
    validation,
    folder: Path,
    *,
    workers: int = 1,
    strategy: str = "hyperband",
    trials: int = 10,
    epochs: int = 10,
    seed: int = 7,
    settings: dict | None = None,
    **fit_options,
) -> Measured:
    """models.search.search with `workers` processes, timed; 1: in this process.

    `command`: argument list of a process that calls `take_part` with the same arguments. `folder` can be continued
    by any number of workers; it keeps what each process wrote in logs/, and the seconds lie next to it. Ctrl-C or an
    error ends all processes. A process that dies is reported and started again: a worker trains its trial again, the
    chief reads its state from `folder`.

    Raises SearchFailed as models.search.search does, and LungkitError with the last words of a process that keeps
    dying before it gets to work.
    """
    if workers < 1:
        raise LungkitError(f"a search needs at least 1 worker, not {workers}")
    options = {"strategy": strategy, "trials": trials, "epochs": epochs, "seed": seed}
    begun_here = not any(folder.glob("trial_*"))
    started = time.perf_counter()
    if workers == 1:
        result = in_process.search(build, train, validation, folder, **options, settings=settings, **fit_options)
    else:
        result = _search_by_processes(command, build, folder, workers, options, settings)
    seconds = time.perf_counter() - started
    return Measured(result, seconds, _whole(folder, workers, seconds if begun_here else None))


def _whole(folder: Path, workers: int, seconds: float | None) -> dict[int, float]:
    """Record this search's seconds next to its folder, and return what was recorded for the same settings."""
    record, settings = (
        folder.with_name(f"{folder.name}_seconds.json"),
        json.loads((folder / "settings.json").read_text()),
    )
    kept = json.loads(record.read_text()) if record.exists() else {}
    seconds_by_workers = kept.get("seconds", {}) if kept.get("settings") == settings else {}
    if seconds is not None:
        seconds_by_workers[str(workers)] = round(seconds, 1)
        record.write_text(json.dumps({"settings": settings, "seconds": seconds_by_workers}, indent=1))
    return {int(number): value for number, value in sorted(seconds_by_workers.items())}


def _search_by_processes(command, build, folder: Path, workers: int, options: dict, settings) -> SearchResult:
    strategy, trials, epochs = options["strategy"], options["trials"], options["epochs"]
    in_process.same_search(folder, strategy, trials, epochs, options["seed"], settings)
    try:
        tuner = _settled(build, folder, options)
    except LungkitError:
        raise
    except Exception as error:
        raise SearchFailed(f"the model cannot be built with the first values of its search space: {error}") from error
    finished = folder / "finished"
    if not finished.exists():
        for left in folder.glob("trial_*/attempts"):  # those of an earlier call were ended from outside
            left.unlink()
        total = in_process.planned_epochs(strategy, tuner, trials, epochs)
        with progress.bar(total=total, label=f"search by {workers} workers", unit="epoch") as bar:
            processes = _Processes(command, folder, workers, bar)
            trials_seen = _Trials(folder, epochs, bar)
            try:
                while processes.at_work(trials_seen.events()):
                    time.sleep(0.25)
            finally:
                processes.end()
                trials_seen.events()
                tuner = _settled(build, folder, options)
        finished.touch()
    return in_process.result(tuner, folder)


def _settled(build, folder: Path, options: dict) -> keras_tuner.Tuner:
    """The search while no process works on it; what was running waits for the next worker, as the folder now says."""
    tuner = _open(build, folder, keep_ongoing=False, **options)
    if (folder / "oracle.json").exists():
        tuner.save()
    return tuner


class _Trials:
    """Moves the bar by the epochs of each trial that has ended, as the files in the shared folder say."""

    def __init__(self, folder: Path, epochs: int, bar):
        self._folder, self._epochs, self._bar = folder, epochs, bar
        self._ended, self._best = set(), float("inf")

    def events(self) -> int:
        """How many attempts have begun and trials have ended until now."""
        for file in self._folder.glob("trial_*/trial.json"):
            if file.parent in self._ended:
                continue
            try:
                trial = json.loads(file.read_text())
            except json.JSONDecodeError:  # being written
                continue
            if trial["status"] in ENDED:
                self._ended.add(file.parent)
                values = trial["hyperparameters"]["values"]
                self._bar.update(values.get("tuner/epochs", self._epochs) - values.get("tuner/initial_epoch", 0))
                self._best = min(self._best, trial["score"] or self._best)
                self._bar.set_postfix_str(f"{len(self._ended)} trials, lowest validation loss {self._best:.3f}")
        attempts = sum(file.read_text().count("\n") for file in self._folder.glob("trial_*/attempts"))
        return attempts + len(self._ended)


@contextlib.contextmanager
def _uninterrupted():
    """Ctrl-C waits for the end of the block: it must not come between a process's start and our knowing of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


class _Processes:
    """The chief and its workers on this machine."""

    def __init__(self, command: list[str], folder: Path, workers: int, bar):
        self._command, self._bar, self._workers = command, bar, workers
        self._logs = folder / "logs"
        shutil.rmtree(self._logs, ignore_errors=True)
        self._logs.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._running: dict[str, subprocess.Popen] = {}
        self._deaths, self._events = Counter(), 0
        try:
            for name in ("chief", *(f"tuner{i}" for i in range(workers))):
                self._start(name)
        except BaseException:
            self.end()
            raise

    def _start(self, name: str) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        # Workers share the cores and the memory of a GPU; the chief trains nothing.
        shares = {
            "TF_NUM_INTRAOP_THREADS": str(max(1, cores // self._workers)),
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        }
        variables = {
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(self._port),
            "no_grpc_proxy": "127.0.0.1",  # a proxy has no way to the loopback address
            PARENT: str(os.getpid()),
        } | ({"CUDA_VISIBLE_DEVICES": "-1"} if name == "chief" else {})
        with _uninterrupted(), (self._logs / f"{name}.log").open("ab") as log:
            # In a session of its own: Ctrl-C reaches this process, which ends the others.
            self._running[name] = subprocess.Popen(
                self._command,
                env=shares | os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def at_work(self, events: int) -> bool:
        """False when the search has ended; starts again what died. `events` grows with each trial begun or ended."""
        if events != self._events:
            self._events = events
            self._deaths.clear()
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            if code == 0:
                del self._running[name]
                if name == "chief":  # it ends by itself only after the last trial
                    return False
                continue
            self._deaths[name] += 1
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            if self._deaths[name] >= BARREN_DEATHS:
                raise LungkitError(
                    f"{name} of the search died {BARREN_DEATHS} times before it got to work ({how}); "
                    f"what is finished is kept. Its last words ({self._logs / name}.log):\n{self._last_words(name)}"
                )
            self._bar.write(f"{name} of the search died ({how}) and is started again", file=sys.stderr)
            self._start(name)
        # A chief waits long before it looks whether all workers have gone.
        return set(self._running) != {"chief"}

    def _last_words(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-5:])

    def end(self) -> None:
        """No process is left when this returns."""
        with _uninterrupted():
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
