"""A search by several processes: every trial ends, whatever dies, and no process is left.

Run as a program, this file is a worker of such a search.
"""

import contextlib
import gc
import io
import json
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from lungkit.backend import keras

import keras_tuner
import numpy as np
import psutil
import pytest

from lungkit.errors import LungkitError
from lungkit.models import search
from lungkit.training import search_parallel
from lungkit.training.workers import Ended

OPTIONS = {"strategy": "hyperband", "trials": 6, "epochs": 3, "seed": 7}
SHORT = {"strategy": "bayesian", "trials": 2, "epochs": 1, "seed": 7}
BUILT = []
gc.freeze()  # as in test_search.py of the models


class Noting(keras_tuner.HyperModel):
    """A dense model. Each training is noted in a file, and waits as long as the file `hold` exists."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def build(self, hp):
        BUILT.append(hp)
        width = hp.Int("width", 2, 8, step=2)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(2)])
        rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], run_eagerly=True)
        return model

    def fit(self, hp, model, *args, **options):
        name = search_parallel.worker_name()
        if name:
            trial = json.loads((self.folder / "queue" / f"{name}.trial.json").read_text())["trial_id"]
            with (self.folder.parent / "trainings").open("a") as file:
                file.write(f"{name} {trial}\n")
        while (self.folder.parent / "hold").exists():
            time.sleep(0.05)
        return model.fit(*args, **options)


def batches():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, (x[:, 0] > 0).astype("int64"))).batch(64)
    return data, data


def children() -> dict[str, psutil.Process]:
    """The workers that this process has started, by name."""
    named = {}
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            named[process.environ().get("KERASTUNER_TUNER_ID", "")] = process
    return {name: process for name, process in named.items() if name}


def trainings(folder: Path) -> list[tuple[str, str]]:
    """(worker, trial) of each training that has begun."""
    file = folder.parent / "trainings"
    return [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []


def searching(folder: Path, **options) -> search.Search:
    return search.Search(Noting(folder), *batches(), folder, **options)


def by_processes(folder: Path, command=None, workers=2, **options) -> search_parallel.TimedResult:
    options = OPTIONS | options
    command = command or [sys.executable, __file__, str(folder), json.dumps(options)]
    return search_parallel.search_with_workers(command, searching(folder, **options), workers)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search by two workers, of which the second is killed while both train."""
    folder = tmp_path_factory.mktemp("parallel") / "search"
    hold = folder.parent / "hold"
    hold.touch()

    def kill():
        while {worker for worker, _ in trainings(folder)} != {"worker1", "worker2"}:
            time.sleep(0.05)
        children()["worker2"].kill()
        hold.unlink()

    threading.Thread(target=kill, daemon=True).start()
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        timed = by_processes(folder)
    return folder, timed, printed.getvalue()


def test_a_killed_worker_is_started_again_and_no_trial_is_lost_or_trained_twice_without_need(searched):
    folder, timed, printed = searched
    assert "worker2 of the search died (signal 9); it is started again" in printed
    trials = timed.result.trials
    assert trials.status.tolist() == ["COMPLETED"] * 6
    assert trials.score.is_monotonic_increasing
    assert timed.result.best == {knob: trials.iloc[0][knob] for knob in ("width", "learning_rate")}
    begun = trainings(folder)
    (interrupted,) = (trial for worker, trial in begun[:2] if worker == "worker2")
    assert sorted(trial for _, trial in begun) == sorted([*trials.trial, interrupted])
    assert begun.count(("worker2", interrupted)) == 2
    assert not children()


def test_finished_trials_are_not_trained_again_by_processes_or_without(searched):
    folder, timed, _ = searched
    table = timed.result.trials
    again = by_processes(folder, command=["false"], workers=3)
    assert again.result.trials.equals(table)
    BUILT.clear()
    assert searching(folder, **OPTIONS).run().trials.equals(table)
    assert BUILT == []


def test_a_trial_that_ended_as_the_command_was_killed_is_not_trained_again(searched, tmp_path):
    folder = shutil.copytree(searched[0], tmp_path / "search")
    state = json.loads((folder / "oracle.json").read_text())
    state["ongoing_trials"] = {"worker1": "0005"}  # KerasTuner writes this at the end of a trial, before it lets go
    (folder / "oracle.json").write_text(json.dumps(state))
    BUILT.clear()
    searching(folder, **OPTIONS).run()
    assert BUILT == []


def test_seconds_are_kept_for_whole_searches_only_and_by_number_of_workers(searched, tmp_path):
    folder, timed, _ = searched
    assert timed.whole == {2: pytest.approx(timed.seconds, abs=0.1)}
    assert by_processes(folder, command=["false"], workers=3).whole == timed.whole

    alone, record, one = tmp_path / "search", tmp_path / "search_seconds.json", SHORT | {"trials": 1, "workers": 1}
    assert by_processes(alone, **one).whole.keys() == {1}
    record.write_text(record.read_text().replace('"1":', '"4":'))
    shutil.rmtree(alone)
    assert by_processes(alone, **one).whole.keys() == {1, 4}
    shutil.rmtree(alone)
    other = by_processes(alone, **one, settings={"data": "another"})
    assert other.whole.keys() == {1}, "seconds of other settings are no comparison"


# --- without processes: the two sides of the shared folder


class Bar:
    """What the hand-out of trials needs of a bar."""

    n = 0

    def update(self, epochs):
        self.n += epochs

    def set_postfix_str(self, text):
        pass

    def write(self, text, file):
        pass


def opened(folder: Path):
    short = searching(folder, **SHORT)
    tuner = short.open()
    return tuner, search_parallel._Handout(tuner, short, Bar())


def worker(folder: Path, name: str, handout):
    """A worker's side that gets its answers at once."""
    side = search_parallel._TrialsFromFolder(keras_tuner.Objective("val_loss", "min"), folder, name)
    answering = threading.Event()

    def answer():
        while not answering.wait(0.02):
            handout.answer_requests()

    def next_trial():
        answering.clear()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        trial = side.create_trial(name)
        answering.set()
        thread.join()
        return trial

    return side, next_trial


def test_a_killed_command_costs_the_trials_in_training_and_keeps_the_others(tmp_path):
    folder = tmp_path / "search"
    _, handout = opened(folder)
    side, next_trial = worker(folder, "worker1", handout)
    first = next_trial()
    side.update_trial(first.trial_id, {"val_loss": 0.5})
    first.status = "COMPLETED"
    side.end_trial(first)
    second = next_trial()

    tuner, handout = opened(folder)  # as after a kill
    assert tuner.oracle.trials[first.trial_id].score == 0.5
    _, next_trial = worker(folder, "worker2", handout)
    again = next_trial()
    assert again.trial_id == second.trial_id != first.trial_id
    assert again.hyperparameters.values == second.hyperparameters.values


def test_what_a_worker_reported_while_no_command_ran_is_recorded(tmp_path):
    folder = tmp_path / "search"
    _, handout = opened(folder)
    side, next_trial = worker(folder, "elsewhere", handout)
    trial = next_trial()
    side.update_trial(trial.trial_id, {"val_loss": 0.25})
    trial.status = "COMPLETED"
    side.end_trial(trial)
    request = search_parallel._files_of(folder, "elsewhere")[0]
    asking = threading.Thread(target=side.create_trial, args=("elsewhere",), daemon=True)
    asking.start()
    while not request.exists():
        time.sleep(0.01)

    tuner, handout = opened(folder)
    assert tuner.oracle.trials[trial.trial_id].score == 0.25
    while asking.is_alive():  # it asks again, as its request is gone, and the report changes nothing now
        handout.answer_requests()
        time.sleep(0.01)
    assert tuner.oracle.ongoing_trials.keys() == {"elsewhere"}
    assert tuner.oracle.trials[trial.trial_id].score == 0.25


def test_a_trial_that_ends_every_process_fails_and_the_search_continues(tmp_path):
    folder = tmp_path / "search"
    tuner, handout = opened(folder)
    for attempt in range(search_parallel.ATTEMPTS):
        side, next_trial = worker(folder, "worker1", handout)
        assert next_trial().trial_id == "0", attempt
        handout.take_back(Ended("worker1", "signal 9"), None)
    assert tuner.oracle.trials["0"].status == "FAILED"
    side, next_trial = worker(folder, "worker1", handout)
    last = next_trial()
    side.update_trial(last.trial_id, {"val_loss": 0.5})
    last.status = "COMPLETED"
    side.end_trial(last)
    statuses = []
    asking = threading.Thread(target=lambda: statuses.append(side.create_trial("worker1").status), daemon=True)
    asking.start()
    while not handout.finished:
        handout.answer_requests()
        time.sleep(0.01)
    (folder / "finished").touch()
    asking.join(10)
    assert statuses == ["STOPPED"]
    table = searching(folder, **SHORT).result(tuner).trials
    assert table.status.tolist() == ["COMPLETED", "FAILED"]
    assert "3 processes died while they trained it" in table.reason.iloc[-1]


def test_a_worker_that_cannot_start_ends_the_search_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('the disk is full')"]
    with pytest.raises(LungkitError, match=r"(?s)died 3 times before it asked for a trial.*the disk is full"):
        by_processes(tmp_path / "search", command)
    assert not children()


def test_workers_that_end_without_a_word_end_the_search(tmp_path):
    with pytest.raises(LungkitError, match="all workers ended before the search did"):
        by_processes(tmp_path / "search", ["true"])


@pytest.mark.parametrize("started", [1, 2])
def test_ctrl_c_ends_every_process(tmp_path, started):
    def interrupt():
        while len(children()) < started:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        by_processes(tmp_path / "search", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert not children()


def test_no_worker_is_refused(tmp_path):
    with pytest.raises(LungkitError, match="at least 1 worker, not 0"):
        by_processes(tmp_path / "search", workers=0)


def test_the_address_of_a_server_is_refused(monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(LungkitError, match="a search has no server; unset it"):
        search_parallel.worker_name()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    arguments = json.loads(sys.argv[2])
    arguments.pop("settings", None)
    search_parallel.take_part(searching(place, **arguments))
