"""A server of the clinic that hangs, crashes or takes too much memory is replaced; the port and the sessions stay."""

import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import psutil
import pytest

from lungkit.clinic.web import door, folders, serve, supervisor
from lungkit.errors import LungkitError
from tests.clinic.browser import eventually, kernels_of, server_of, signed_in_as

SERVES = """
import json, os, sys, time
given = json.loads(sys.argv[-1])
say = lambda words: os.write(given["line"], (words + chr(10)).encode())
"""


@pytest.fixture
def servers(monkeypatch):
    """A function: run servers of this code; its `opened` counts how often one was open."""
    monkeypatch.setattr(supervisor, "END_SECONDS", 2)

    def run(code: str) -> int:
        monkeypatch.setattr(supervisor, "_COMMAND", [sys.executable, "-c", SERVES + code])
        opened = []
        try:
            supervisor._keep_running({}, [], lambda: opened.append(1))
        finally:
            run.opened = len(opened)

    return run


def test_a_server_that_crashes_again_and_again_stays_stopped_with_the_reason(servers, monkeypatch, capfd):
    monkeypatch.setattr(supervisor, "RESTARTS", 2)
    with pytest.raises(LungkitError, match=r"ended with exit status 3; it was started again 2 times in 10 minutes"):
        servers("say('open'); time.sleep(0.2); os._exit(3)")
    assert servers.opened == 1  # its address is announced once
    log = capfd.readouterr().err
    assert len(re.findall(r"^[-0-9: ]+ The server ended with exit status 3\. It starts again", log, re.MULTILINE)) == 2


def test_a_server_that_fails_before_it_is_open_is_not_tried_again(servers):
    with pytest.raises(LungkitError, match="the server ended with exit status 3 before it was open"):
        servers("os._exit(3)")
    assert servers.opened == 0


@pytest.mark.parametrize("before", ["", "say('alive'); say('open'); "])
def test_a_problem_that_a_person_has_to_fix_is_reported_in_the_servers_words_and_not_tried_again(servers, before):
    with pytest.raises(LungkitError, match=r"^no notebook here$"):
        servers(before + "say('problem ' + json.dumps('no notebook here')); sys.exit(1)")


def test_a_silent_server_is_replaced(servers, monkeypatch):
    monkeypatch.setattr(supervisor, "RESTARTS", 0)
    monkeypatch.setenv("LUNGKIT_HANG_SECONDS", "1")
    with pytest.raises(LungkitError, match=r"the server has not answered for 1 s"):
        servers("say('open')\nfor _ in range(8): say('alive'); time.sleep(0.15)\ntime.sleep(99)")
    assert servers.opened == 1


def test_a_server_that_takes_too_much_memory_is_replaced(servers, monkeypatch):
    monkeypatch.setattr(supervisor, "RESTARTS", 0)
    monkeypatch.setenv("LUNGKIT_SERVER_MB", "200")
    with pytest.raises(LungkitError, match="took more than 200 MiB of memory"):
        servers("say('open'); held = bytearray(os.urandom(2**20)) * 300\nwhile True: say('alive'); time.sleep(0.3)")


def test_a_server_that_someone_else_stopped_is_not_started_again(servers):
    servers("say('open'); sys.exit(0)")
    assert servers.opened == 1


def test_a_signal_also_ends_a_server_that_ignores_signals(servers, capfd):
    threading.Timer(1.5, signal.raise_signal, [signal.SIGTERM]).start()
    start = time.monotonic()
    servers("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); say('open')\nwhile True: time.sleep(1)")
    assert 1 < time.monotonic() - start < 20  # 3.5 s on a quiet machine
    assert "did not stop within 2 s and is killed" in capfd.readouterr().err


def test_a_supervisor_that_does_not_read_cannot_block_the_server():
    read, write = (end.detach() for end in socket.socketpair())
    line = serve.Line(write)
    for _ in range(100_000):
        line.say("alive")
    assert select.select([read], [], [], 0)[0]
    for end in (read, write):
        socket.close(end)


def test_a_server_that_hangs_or_crashes_is_replaced_on_its_port_and_a_stop_ends_a_hanging_one(start_clinic, tmp_path):
    clinic = start_clinic(tmp_path, pool=0, LUNGKIT_HANG_SECONDS="3")
    anna = signed_in_as(clinic, "anna")
    anna.open_page()
    before, kernels = server_of(clinic), kernels_of(clinic)
    assert kernels
    before.suspend()
    start = time.monotonic()
    # It waits, and the next server answers; anna is still signed in. 503: her page takes longer to start.
    assert anna.get("/").status in (200, 503)
    print(f"answered again after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start > 2
    assert not before.is_running()
    assert eventually(lambda: not any(kernel.is_running() for kernel in kernels))
    assert anna.open_page()
    signed_in_as(clinic, "bert")

    hung, crashed = before.pid, server_of(clinic)
    crashed.kill()
    assert eventually(lambda: anna.get("/login").to == "/", 60)
    anna.open_page()
    assert len({hung, crashed.pid, server_of(clinic).pid}) == 3
    family = psutil.Process(clinic.process.pid).children(recursive=True)
    (folder,) = {kernel.cmdline()[-1].rsplit("/", 2)[0] for kernel in kernels_of(clinic)}

    server_of(clinic).suspend()
    start = time.monotonic()
    assert clinic.stop() == 0
    assert time.monotonic() - start < supervisor.END_SECONDS + 5
    assert not any(process.is_running() for process in family)
    assert not Path(folder).exists()
    with socket.create_server(("127.0.0.1", urllib.parse.urlsplit(clinic.url).port)):
        pass
    log = clinic.log.read_text()
    for words in ("has not answered for 3 s. It starts again", "was ended by SIGKILL. It starts again", "is open at"):
        assert len(re.findall(words, log)) == 1, words
    assert "Traceback" not in log


# --- a full disk


def test_a_log_on_a_full_disk_stops_no_server(monkeypatch):
    with open("/dev/full", "w") as full:  # noqa: PTH123  (each write says that there is no room)
        monkeypatch.setattr(sys, "stderr", full)
        supervisor._log("The server does not answer.")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is still to be written goes nowhere


def test_the_private_folder_is_in_memory_and_goes_with_what_kernels_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(supervisor, "IN_MEMORY", tmp_path / "memory")
    supervisor.IN_MEMORY.mkdir()
    with supervisor.private_folder() as folder:
        assert folder.parent == supervisor.IN_MEMORY
        monkeypatch.setenv(door.DOOR, str(folder / "door"))
        monkeypatch.setenv("VOILA_KERNEL_ID", "one")
        kept = door.folder()
        assert kept.parent == tmp_path and door.folder() == kept
    assert list(supervisor.IN_MEMORY.iterdir()) == [] and not kept.exists()


def test_folders_in_use_stay_and_those_that_a_killed_server_and_its_kernels_left_are_removed(tmp_path, monkeypatch):
    """Also where the other server is in a container, in which its process may have any number."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(supervisor, "IN_MEMORY", tmp_path / "memory")
    supervisor.IN_MEMORY.mkdir()
    code = (
        "import sys; from lungkit.clinic.web import folders\n"
        "for place in sys.argv[1:]: print(folders.make(folders.PREFIX, place))\n"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(supervisor.IN_MEMORY), str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
        supervisor.private_folder() as folder,
    ):
        made = [Path(line.strip()) for line in iter(other.stdout.readline, "\n")]
        supervisor.clear_folders()
        assert folder.exists() and all(each.exists() for each in made)
        other.kill()
        other.communicate()
        supervisor.clear_folders()
        assert folder.exists() and not any(each.exists() for each in made)
    assert len(made) == 2


def test_a_folder_that_another_server_took_for_one_that_was_left_is_made_again(tmp_path, monkeypatch):
    lock, taken = fcntl.flock, []

    def after_the_other(number, how):
        if not taken:
            taken.extend(tmp_path.iterdir())
            folders.remove_if_left(taken[0])
        lock(number, how)

    monkeypatch.setattr(folders.fcntl, "flock", after_the_other)
    folder = folders.make(folders.PREFIX, tmp_path)
    assert folder.exists() and [folder] == list(tmp_path.iterdir()) != taken


def test_a_private_folder_is_made_where_no_temporary_file_can_be_written(tmp_path, monkeypatch):
    def full() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    monkeypatch.setattr(supervisor, "IN_MEMORY", tmp_path)
    with supervisor.private_folder() as folder:
        assert folder.parent == tmp_path


def test_an_unknown_time_zone_is_refused_before_the_server_starts(monkeypatch):
    monkeypatch.setenv("LUNGKIT_TIME_ZONE", "Berlin")
    with pytest.raises(LungkitError, match="such as Europe/Berlin or UTC"):
        supervisor.serve(port=0)
