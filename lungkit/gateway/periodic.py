"""What the gateway does every now and then next to its work: one line for each task."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lungkit.clinic.learning import shadow
from lungkit.clinic.records.store import Store

STOP_SECONDS = 5.0  # that a task may take to end with the gateway; what it has saved stays
_LOOK_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is done, and how many seconds lie between its end and its next start."""

    name: str
    seconds: float
    run: Callable[[Store], object]


TASKS = (Task("shadow", 300.0, lambda store: shadow.run(store, most=100)),)


class Periodic:
    """A thread that runs the tasks one after the other; one that fails is logged, and runs again at its time."""

    def __init__(self, store: Store, tasks: tuple[Task, ...] = TASKS):
        self._store, self._tasks = store, tasks
        self._due = {task.name: time.monotonic() + task.seconds for task in tasks}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="periodic", daemon=True)

    def start(self) -> None:
        """Begin to wait for the first task."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no other task."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def run_due(self) -> None:
        """Run the tasks whose time has come."""
        for task in self._tasks:
            if time.monotonic() >= self._due[task.name] and not self._stopping.is_set():
                try:
                    task.run(self._store)
                except Exception:  # the next time may succeed
                    _log.exception("%s", task.name)
                self._due[task.name] = time.monotonic() + task.seconds

    def _run(self) -> None:
        wait = min([_LOOK_SECONDS, *(task.seconds for task in self._tasks)])
        while not self._stopping.wait(wait):
            self.run_due()
