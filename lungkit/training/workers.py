"""Processes that work side by side on this machine, each with its variables and its log; they end together."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

PARENT = "LUNGKIT_PARENT"  # the process that started a worker


class Ended(NamedTuple):
    """A process that ended with an error; how: "signal 9" or "exit status 1"."""

    name: str
    how: str


class Workers:
    """Processes of one command, by name. When the block of `with` ends, none of them is left.

    logs: a folder, emptied here, that gets NAME.log of each process. number: how many share the processor cores.
    """

    def __init__(self, command: list[str], logs: Path, number: int):
        self._command, self._logs = command, logs
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._defaults = {
            "TF_NUM_INTRAOP_THREADS": str(max(1, cores // number)),
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # they share a GPU's memory too
        }
        self._variables: dict[str, dict[str, str]] = {}
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _interrupts_later():
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def start(self, name: str, **variables: str) -> None:
        """Start a process with these variables; a process that is started again keeps those of its first start."""
        own = self._variables.setdefault(name, variables)
        with _interrupts_later(), (self._logs / f"{name}.log").open("ab") as log:
            # In a session of its own: Ctrl-C reaches this process alone, which then ends the others.
            self._running[name] = subprocess.Popen(
                self._command,
                env=self._defaults | os.environ | own | {PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __len__(self) -> int:
        """How many processes have not been seen to end."""
        return len(self._running)

    def failed(self) -> list[Ended]:
        """The processes that ended with an error since the last call."""
        codes = {name: process.poll() for name, process in self._running.items()}
        for name in [name for name, code in codes.items() if code is not None]:
            del self._running[name]
        return [
            Ended(name, f"signal {-code}" if code < 0 else f"exit status {code}")
            for name, code in codes.items()
            if code
        ]

    def last_words(self, name: str) -> str:
        """The last lines of a process's log."""
        return "\n".join((self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()[-5:])


def end_with_parent() -> None:
    """Called by a worker: end this process soon after the one that started it has ended, in whatever way."""
    parent = os.environ.get(PARENT)
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: it must not come between a process's start and our record of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
