"""Search by several processes: every trial once, whatever dies, and nothing left running.

Run as a program, this file is the chief or a worker of such a search.
"""

import contextlib
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import psutil
import pytest

from lungkit.errors import LungkitError
from lungkit.models import distributed_search, search

OPTIONS = {"strategy": "hyperband", "trials": 6, "epochs": 3, "seed": 7}
SHORT = {"strategy": "bayesian", "trials": 2, "epochs": 1}
BUILT = []


def dense(hp):
    BUILT.append(hp)
    width = hp.Int("width", 2, 8, step=2)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(2)])
    rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def batches(hold: Path | None = None):
    """Four batches; the first of each epoch is not given out while the file `hold` is there."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, (x[:, 0] > 0).astype("int64"))).batch(16)

    def wait(number):
        while hold and hold.exists():
            time.sleep(0.05)
        return number

    numbers = tf.data.Dataset.range(4).map(lambda n: tf.numpy_function(wait, [n], tf.int64))
    return tf.data.Dataset.zip(numbers, data).map(lambda _, pair: pair), data


class Events(threading.Thread):
    """Beside a search by processes: `happens` once both workers are in mid-trial, then lets them go on."""

    def __init__(self, folder: Path, happens=lambda processes: None):
        super().__init__(daemon=True)
        self.folder, self.happens, self.hold = folder, happens, folder.parent / "hold"
        self.hold.touch()
        self.processes, self.port = {}, 0

    def run(self):
        while len({line.split()[0] for line in attempts(self.folder)}) < 2:
            time.sleep(0.1)
        self.processes = children()
        self.port = int(self.processes["chief"].environ()["KERASTUNER_ORACLE_PORT"])
        self.happens(self.processes)
        self.hold.unlink(missing_ok=True)


def children() -> dict[str, psutil.Process]:
    """The processes of a search that this one has started, by KerasTuner's name for them."""
    found = {}
    for process in psutil.Process().children():
        try:
            found[process.environ().get("KERASTUNER_TUNER_ID", "")] = process
        except psutil.Error:
            continue
    return {name: process for name, process in found.items() if name}


def attempts(folder: Path) -> list[str]:
    return [line for file in folder.glob("trial_*/attempts") for line in file.read_text().splitlines()]


def by_processes(folder: Path, command=None, **options) -> distributed_search.Measured:
    options = OPTIONS | options
    command = command or [sys.executable, __file__, str(folder), json.dumps(options)]
    options = {"workers": 2} | options
    return distributed_search.search(command, dense, *batches(), folder, **options)


def nothing_is_left(port: int) -> bool:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))  # refused while anyone listens there
    return not children()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "search"
    events = Events(folder)
    events.start()
    return folder, by_processes(folder), events


def test_a_chief_and_two_workers_run_every_trial_once(clean):
    folder, found, events = clean
    assert found.result.trials.status.eq("COMPLETED").all()
    assert len(found.result.trials) == 6
    assert found.result.trials.score.is_monotonic_increasing
    assert found.result.best == {knob: found.result.trials.iloc[0][knob] for knob in ("width", "learning_rate")}
    assert [file.read_text().count("\n") for file in folder.glob("trial_*/attempts")] == [1] * 6
    assert {line.split()[0] for line in attempts(folder)} == {"tuner0", "tuner1"}
    assert nothing_is_left(events.port)


def test_what_has_ended_is_not_run_again_by_processes_or_without(clean):
    folder, found, _ = clean
    table = found.result.trials
    again = by_processes(folder, command=["false"], workers=3)
    assert again.result.trials.equals(table)
    BUILT.clear()
    assert search.search(dense, *batches(), folder, **OPTIONS).trials.equals(table)
    assert BUILT == []


def test_seconds_are_kept_for_whole_searches_only_and_by_number_of_workers(clean, tmp_path):
    folder, found, _ = clean
    assert found.whole == {2: pytest.approx(found.seconds, abs=0.1)}
    assert by_processes(folder, command=["false"], workers=3).whole == found.whole

    alone, record, one = tmp_path / "search", tmp_path / "search_seconds.json", SHORT | {"trials": 1, "workers": 1}
    assert by_processes(alone, **one).whole.keys() == {1}
    record.write_text(record.read_text().replace('"1":', '"4":'))
    shutil.rmtree(alone)
    assert by_processes(alone, **one).whole.keys() == {1, 4}
    shutil.rmtree(alone)
    other = by_processes(alone, **one, settings={"data": "another"})
    assert other.whole.keys() == {1}, "seconds of other settings are no comparison"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A search in mid-trial of both workers: one is killed, and the chief while the other one speaks to it."""
    folder = tmp_path_factory.mktemp("killed") / "search"
    held = {}

    def kill(processes):
        held.update({trial.parent.name: trial.read_text().split()[0] for trial in folder.glob("trial_*/attempts")})
        (unharmed,) = (trial for trial, worker in held.items() if worker == "tuner0")
        processes["chief"].suspend()
        processes["tuner1"].kill()
        (folder.parent / "hold").unlink()
        while not (folder / unharmed / "checkpoint.weights.h5").exists():
            time.sleep(0.1)
        time.sleep(1)  # it has trained, and waits for the chief's answer
        processes["chief"].kill()

    events = Events(folder, kill)
    events.start()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found = by_processes(folder, **SHORT | {"trials": 3})
    return folder, found, events, held, said.getvalue()


def test_the_trial_of_a_killed_worker_is_trained_anew(killed):
    folder, found, _, held, said = killed
    assert "tuner1 of the search died (signal 9) and is started again" in said
    (interrupted,) = (trial for trial, worker in held.items() if worker == "tuner1")
    assert [line.split()[0] for line in (folder / interrupted / "attempts").read_text().splitlines()] == ["tuner1"] * 2
    assert found.result.trials.status.eq("COMPLETED").all()


def test_a_killed_chief_is_started_again_and_no_trial_is_lost_or_run_twice(killed):
    folder, found, events, held, said = killed
    assert "chief of the search died (signal 9) and is started again" in said
    assert len(found.result.trials) == 3
    interrupted = [trial for trial, worker in held.items() if worker == "tuner1"]
    for file in folder.glob("trial_*/attempts"):
        assert file.read_text().count("\n") == (2 if file.parent.name in interrupted else 1)
    assert nothing_is_left(events.port)


def test_a_trial_that_ended_as_the_chief_died_is_not_run_again(clean, tmp_path):
    folder = shutil.copytree(clean[0], tmp_path / "search")
    state = json.loads((folder / "oracle.json").read_text())
    state["ongoing_trials"] = {"tuner0": "0005"}  # KerasTuner writes this at the end of a trial, before it lets go
    (folder / "oracle.json").write_text(json.dumps(state))
    assert distributed_search._open(dense, folder, keep_ongoing=True, **OPTIONS).oracle.ongoing_trials == {}
    BUILT.clear()
    distributed_search._settled(dense, folder, OPTIONS)
    search.search(dense, *batches(), folder, **OPTIONS)
    assert BUILT == []


def test_a_trial_that_ends_every_process_fails_and_the_search_goes_on(tmp_path):
    folder = tmp_path / "search"
    (folder / "trial_0").mkdir(parents=True)
    (folder / "trial_0" / "attempts").write_text("tuner0\n" * distributed_search.ATTEMPTS)
    tuner = distributed_search._open(dense, folder, keep_ongoing=False, **(OPTIONS | SHORT))
    tuner.run_trial = distributed_search._noting_attempts(tuner)
    train, validation = batches()
    tuner.search(train, validation_data=validation, verbose=0)
    table = search.trials_table(tuner)
    assert table[table.status == "FAILED"].trial.tolist() == ["0"]
    assert "3 processes died while they trained it" in table.reason.iloc[-1]
    assert table.status.tolist() == ["COMPLETED", "FAILED"]


def test_a_process_that_cannot_begin_ends_the_search_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('the disk is full')"]
    with pytest.raises(LungkitError, match=r"(?s)died 3 times before it got to work.*the disk is full"):
        by_processes(tmp_path / "search", command)
    assert not children()


@pytest.mark.parametrize("started", [1, 3])
def test_ctrl_c_ends_every_process(tmp_path, started):
    def interrupt():
        while len(children()) < started:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        by_processes(tmp_path / "search", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert not children()


def test_processes_end_when_the_one_that_started_them_is_killed():
    script = """
import time
from lungkit.models import distributed_search
distributed_search.end_with_parent()
print("ready")
time.sleep(60)
"""
    start = f"""
import os, subprocess, sys, time
variables = os.environ | {{"{distributed_search.PARENT}": str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-uc", {script!r}], env=variables, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        child.wait(10)
    finally:
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_no_worker_is_refused(tmp_path):
    with pytest.raises(LungkitError, match="at least 1 worker, not 0"):
        by_processes(tmp_path / "search", workers=0)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    distributed_search.take_part(dense, *batches(place.parent / "hold"), place, **json.loads(sys.argv[2]))
