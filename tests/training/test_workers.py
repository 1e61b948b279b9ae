"""Worker processes: their variables and logs, and that they end with the process that started them."""

import subprocess
import sys
import time

import psutil

from lungkit.training.workers import PARENT, Ended, Workers

SCRIPT = """
import os, sys
print(os.environ["PART"], os.environ["TF_NUM_INTRAOP_THREADS"], flush=True)
sys.exit(int(os.environ["CODE"]))
"""


def test_each_has_its_variables_and_its_log_and_failures_are_reported_once(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "old.log").touch()
    with Workers([sys.executable, "-c", SCRIPT], tmp_path / "logs", number=1000) as workers:
        workers.start("well", PART="a", CODE="0")
        workers.start("badly", PART="b", CODE="3")
        failed = []
        while len(workers):
            failed += workers.failed()
            time.sleep(0.02)
        assert failed == [Ended("badly", "exit status 3")]
        workers.start("badly")  # with the same variables
        while not (again := workers.failed()):
            time.sleep(0.02)
        assert again == failed
        assert workers.last_words("badly") == "b 1\nb 1"
        assert workers.last_words("well") == "a 1"
    assert not (tmp_path / "logs" / "old.log").exists()


def test_none_is_left_after_an_error(tmp_path):
    before = psutil.Process().children()  # of other tests, such as a server they share
    try:
        with Workers([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "logs", 1) as workers:
            workers.start("one")
            raise RuntimeError
    except RuntimeError:
        pass
    now = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    assert not set(now) - set(before)


def test_a_worker_ends_when_the_process_that_started_it_is_killed():
    script = """
import time
from lungkit.training.workers import end_with_parent
end_with_parent()
print("ready")
time.sleep(60)
"""
    start = f"""
import os, subprocess, sys, time
variables = os.environ | {{"{PARENT}": str(os.getpid())}}
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
