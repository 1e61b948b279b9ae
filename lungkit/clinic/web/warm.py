"""Pages' processes that are started before someone needs them, and given out in the order in which people came.

A start takes a core for some seconds, so only as many start at once as there are cores: the first of many people gets
a page after one start, not after all of them. A process is started only if every page that is open could still grow to
`config.page_bytes()`. Where there is no room people wait; no page that someone has open is ended for memory.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from lungkit import config
from lungkit.clinic import memory
from lungkit.clinic.web.waiting import Queue
from lungkit.wording import count

AT_ONCE = memory.cores()  # starts
MOST_AHEAD = 6  # processes that wait for people who look at the sign-in page
SIGNING_IN = 60.0  # s for which a sign-in page that was opened counts
SPARE = 300.0  # s that a process waits which is more than the pool needs
SLOWEST = 120.0  # s that a start may take
TICK = 0.5  # s between looks at memory and processes
SOON, LATER = 3.0, 1.0  # s that a browser waits for an answer: its page is starting; others go first

log = logging.getLogger(__name__)


class Pages:
    """The processes that wait, and the people who wait. clinic: serve.Clinic; pool: how many are always ahead."""

    def __init__(self, clinic: Any, pool: int, left: Callable[[], int] = memory.left):
        self.queue = Queue()
        self.full = False  # someone waits, and there is no room
        self._clinic, self._pool, self._left = clinic, pool, left
        self._started: dict[asyncio.Task[Any], float] = {}  # Voila's tasks: when each began
        self._ready: dict[str, float] = {}  # kernel to the time when it began to wait, the oldest first
        self._signing_in: deque[float] = deque()
        self._seconds = 3.0  # that a start took lately
        self._failures, self._pause_until = 0, 0.0
        self._changed = asyncio.Event()  # the next change sets it, once; then there is another
        self._asking: dict[str, object] = {}  # the call of `turn` that waits for each person
        self._ending: set[asyncio.Future[None]] = set()

    # --- people

    async def turn(self, person: str, there: Callable[[], bool] = lambda: True) -> int:
        """0 when this person's page is there: `take` it before the next await. Otherwise the place, after a while.

        there: whether the browser still waits for the answer; one that left gets no page. A later call for the same
        person takes over: this one then returns the place.
        """
        if person in self._asking or person not in self.queue:
            self.wake()
        this = self._asking[person] = object()
        try:
            return await self._turn(person, lambda: there() and self._asking.get(person) is this)
        finally:
            if self._asking.get(person) is this:
                del self._asking[person]

    async def _turn(self, person: str, waits: Callable[[], bool]) -> int:
        asked, place = time.monotonic(), self.queue.ask(person)
        while True:
            self._bury()
            if place <= len(self._ready):
                return 0
            soon = place <= len(self._ready) + len(self._started)
            if self.full:
                await self._end_lost(person)
            left = asked + (SOON if soon else LATER) - time.monotonic()
            if left <= 0:
                return place
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, TICK))
            if not waits():
                return place
            place = self.queue.ask(person)

    def take(self, person: str) -> None:
        """Put the process that waits longest in front of Voila's pool, which gives it out."""
        self.queue.leave(person)
        kernel_id = next(iter(self._ready))
        del self._ready[kernel_id]
        pool = self._pool_of_voila()
        pool.sort(key=lambda task: not (_succeeded(task) and task.result()["kernel_id"] == kernel_id))
        with suppress(IndexError):
            self._signing_in.popleft()
        self.wake()

    def expect(self) -> None:
        """Someone looks at the sign-in page."""
        self._signing_in.append(time.monotonic())
        self.wake()

    def seconds(self, place: int) -> int:
        """About how long the person at this place waits; 0: no one can tell."""
        if self.full or self._failures:
            return 0
        longest = max((time.monotonic() - began for began in self._started.values()), default=0.0)
        return max(1, round(max(self._seconds, longest) * math.ceil((place - len(self._ready)) / AT_ONCE)))

    def words(self, place: int) -> str:
        """What a person who waits is told."""
        number = f"You are number {place} in the queue." if place > 1 else "You are next."
        if self._failures:
            return (
                f"{number} A page could not be started. The clinic tries again; if this goes on, tell an administrator."
            )
        if self.full:
            return (
                f"{number} The clinic is full: the pages that are open need all of its memory. Your page opens when a "
                "colleague closes one."
            )
        return f"{number} It takes about {count(self.seconds(place), 'second')}."

    # --- processes

    def wake(self) -> None:
        """Something changed: a person came or left, or a process is ready.

        Each waiter waits for the next change. An event that stayed set would let `turn` go round without a
        pause, because `asyncio.wait_for` does not yield then (since Python 3.12), and nothing else could run.
        """
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def keep(self) -> None:
        """Start, replace and end processes, until this is cancelled."""
        while True:
            try:
                self._look()
                self._end_spare()
            except Exception:
                log.exception("pages could not be started")  # people wait; the next round may help
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), TICK)

    def _look(self) -> None:
        """Note what is ready and what has died; start what is missing."""
        now = time.monotonic()
        for task, began in list(self._started.items()):
            self._note(task, began, now)
        self._bury()
        wanted = len(self.queue) + self._ahead(now)
        missing = wanted - len(self._ready) - len(self._started)
        self.full = False
        while missing > 0 and len(self._started) < AT_ONCE and now >= self._pause_until:
            needed = len(self.queue) > len(self._ready) + len(self._started)
            if self._room() < (1 if needed else 2) * config.page_bytes():
                self.full = needed
                break
            self._start(now)
            missing -= 1

    def _bury(self) -> None:
        """Drop processes that died while they waited."""
        for kernel_id in [each for each in self._ready if not self._lives(each)]:
            self._drop(kernel_id)

    def _ahead(self, now: float) -> int:
        while self._signing_in and now - self._signing_in[0] > SIGNING_IN:
            self._signing_in.popleft()
        return max(self._pool, min(MOST_AHEAD, len(self._signing_in))) if self._pool else 0

    def _start(self, now: float) -> None:
        """Let Voila start one more process for its pool, which otherwise fills itself."""
        manager, pool = self._clinic.kernel_manager, self._pool_of_voila()
        manager.kernel_pools_config = {"default": {"pool_size": len(pool) + 1}}
        manager.fill_if_needed(delay=0, notebook_name=manager.notebook_path)
        manager.kernel_pools_config = {"default": {"pool_size": 0}}
        self._started[pool[-1]] = now
        pool[-1].add_done_callback(lambda _: self.wake())

    def _note(self, task: asyncio.Task[Any], began: float, now: float) -> None:
        """Look at one start: it goes on, it failed, or its process waits for a person."""
        kernel_id, failed = "", now - began > SLOWEST
        if task.done() and not failed:
            kernel_id = task.result()["kernel_id"] if _succeeded(task) else ""
            failed = not self._lives(kernel_id)
        if failed:
            del self._started[task]
            self._failures += 1
            self._pause_until = now + min(30, 2 ** (self._failures - 1))
            log.warning("a page's process did not start (%d in a row)", self._failures)
            self._forget(task)
        elif kernel_id and (self._clinic.door.asked(kernel_id) or task.result()["task"].done()):
            del self._started[task]
            self._failures = 0
            self._seconds += 0.3 * (now - began - self._seconds)
            self._ready[kernel_id] = now
            self.wake()

    def _room(self) -> int:
        """Bytes that are left if every page grows to its full size."""
        own, shared = [], 0
        for process in [psutil.Process(), *self._processes()]:
            with suppress(psutil.Error):
                now = process.memory_info()
                among_others = getattr(now, "shared", 0)  # macOS does not tell
                own.append(now.rss - among_others)
                shared = max(shared, among_others)
        allowed = config.clinic_bytes() - sum(own) - shared
        return min(self._left(), allowed) - self._growth(own[1:]) - reserve()

    def _growth(self, sizes: list[int]) -> int:
        """Bytes that pages of these sizes may still take, and those whose process is not there yet."""
        of_page = config.page_bytes()
        return sum(max(0, of_page - size) for size in sizes) + of_page * sum(not task.done() for task in self._started)

    def _processes(self) -> list[psutil.Process]:
        manager, found = self._clinic.kernel_manager, []
        for kernel_id in manager.list_kernel_ids():
            with suppress(KeyError, AttributeError, psutil.Error):
                found.append(psutil.Process(manager.get_kernel(kernel_id).provisioner.process.pid))
        return found

    def _lives(self, kernel_id: str) -> bool:
        """Whether its process runs, now: the manager itself looks only every few seconds."""
        manager = self._clinic.kernel_manager
        if kernel_id not in manager:
            return False
        process = getattr(manager.get_kernel(kernel_id).provisioner, "process", None)
        return process is not None and process.poll() is None

    def _end_spare(self) -> None:
        """End processes that no one needs: more than the pool, for a while; or any, where memory gets short."""
        if len(self.queue) or not self._ready:
            return
        now = time.monotonic()
        kernel_id, since = next(iter(self._ready.items()))
        surplus = len(self._ready) > self._ahead(now) and now - since > SPARE
        if surplus or self._room() < 0:
            self._drop(kernel_id)

    async def _end_lost(self, person: str) -> None:
        """End pages of one who waits whose browser is gone, so this person does not wait for them."""
        gone = [each for each in self._clinic.owners.of_person(person) if self._clinic.gates[each].lost()]
        if gone:
            await self._clinic.stop_kernels(gone)

    def _drop(self, kernel_id: str) -> None:
        self._ready.pop(kernel_id, None)
        for task in self._pool_of_voila():
            if _succeeded(task) and task.result()["kernel_id"] == kernel_id:
                self._forget(task)
                return

    def _forget(self, task: asyncio.Task[Any]) -> None:
        """Take a start out of Voila's pool, and end what it started."""
        with suppress(ValueError):
            self._pool_of_voila().remove(task)
        task.cancel()
        if _succeeded(task):
            task.result()["task"].cancel()
            ending = asyncio.ensure_future(self._clinic.stop_kernels([task.result()["kernel_id"]]))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    def _pool_of_voila(self) -> list[asyncio.Task[Any]]:
        manager = self._clinic.kernel_manager
        tasks: list[asyncio.Task[Any]] = manager._pools.setdefault(manager.notebook_path, [])
        return tasks


def reserve() -> int:
    """Bytes that stay free for the server: two uploaded files of the largest size, at least 128 MiB."""
    return max(2**27, 2 * config.upload_bytes())


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
