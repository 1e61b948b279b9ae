"""What the gateway does by itself from time to time, in a thread of its own: it must not keep images waiting.

Each task decides in the records whether there is anything to do, so several gateways, or one that was started again,
do nothing twice.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from lungkit import config
from lungkit.clinic.learning import nightly, shadow
from lungkit.clinic.records import maintenance
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import now
from lungkit.errors import LungkitError
from lungkit.gateway import alerts

LOOK_SECONDS = 60.0  # between two looks for what is due
NIGHT = 2  # o'clock, UTC: from then on the last day is over everywhere that counts
STOP_SECONDS = 5.0
SHADOWED = 100  # images that a challenger reads at a time
_log = logging.getLogger(__name__)

Due = Callable[[datetime | None, datetime], bool]  # when it was begun last (None: not yet), and the time now


@dataclass
class _Task:
    name: str
    run: Callable[[], object]
    due: Due
    begun: datetime | None = None


def each_night(begun: datetime | None, at: datetime) -> bool:
    """Once a day (UTC), from two o'clock on; also later, where nothing ran at two."""
    return at.hour >= NIGHT and (begun is None or begun.date() < at.date())


def every(pause: timedelta) -> Due:
    """Again and again, with this pause between two beginnings."""
    return lambda begun, at: begun is None or at - begun >= pause


class Periodic:
    """Runs tasks, one after the other."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look_often, name="periodic", daemon=True)

    def register(self, name: str, run: Callable[[], object], due: Due) -> None:
        """Run this whenever it is due; before `start`."""
        self._tasks.append(_Task(name, run, due))

    def start(self) -> None:
        """Begin to look for what is due; the first time after a minute."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more. What runs is not waited for: it is done again if it was not finished."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def look(self, at: datetime) -> None:
        """Run what is due at this time."""
        for task in self._tasks:
            if task.due(task.begun, at) and not self._stopping.is_set():
                task.begun = at
                try:
                    task.run()
                except LungkitError as error:
                    _log.error("%s: %s", task.name, error)
                except Exception:  # the next time may succeed
                    _log.exception(task.name)

    def _look_often(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self.look(now())


def register(periodic: Periodic, store: Store) -> None:
    """The gateway's own tasks."""
    periodic.register("drift", lambda: watch_drift(store), each_night)
    periodic.register("room for a full disk", lambda: maintenance.keep_reserve(store), every(timedelta(minutes=5)))
    periodic.register("shadow", lambda: shadow.run(store, most=SHADOWED), every(timedelta(minutes=5)))


def watch_drift(store: Store) -> None:
    """Look at the days up to yesterday, unless that was done today; the one that keeps a day also tells people.

    Raises NotSent.
    """
    if nightly.keep(store, config.clinic_name()).new:
        alerts.tell(store)
