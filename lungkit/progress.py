"""One progress bar for terminals and notebooks, and work that several threads do while it moves.

tqdm's own notebook bar is a widget, and a saved page with a widget loads scripts from the network. Here a notebook
shows the same line as plain text that replaces itself: the executed copy keeps one line.
"""

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from tqdm import tqdm

_LARGEST_MAPPED = 31 * 2**20  # bytes; glibc adapts to at most 32 MiB

Item = TypeVar("Item")
Result = TypeVar("Result")


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


class _NotebookBar(tqdm):  # type: ignore[type-arg]  # tqdm takes no parameter at run time
    def __init__(self, *args: Any, **kwargs: Any):
        from IPython import display

        untyped: Any = display
        self._wrap = untyped.Pretty
        self._handle = untyped.display(self._wrap(""), display_id=True)
        super().__init__(*args, **(kwargs | {"ncols": 88, "ascii": " ━", "gui": False, "mininterval": 0.5}))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self._handle.update(self._wrap(str(self) if msg is None else msg))

    def clear(self, *args: Any, **kwargs: Any) -> None:
        pass

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self.display()
            cast(Any, self)._decr_instances(self)


def bar(iterable: Iterable[Any] | None = None, *, total: int | None = None, label: str = "", unit: str = "it") -> Any:
    """A tqdm bar (iterate it, or call update): text on a terminal's stderr, one line in a notebook."""
    kind = _NotebookBar if _in_notebook() else tqdm
    return kind(iterable, total=total, desc=label, unit=unit, leave=True)


def parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    label: str = "",
    unit: str = "image",
    workers: int | None = None,
) -> Iterator[Result]:
    """work(item) of each item, in their order, done by threads. A label shows a progress bar.

    For work that releases the interpreter's lock, such as reading, hashing and decoding. workers: default, the
    machine's processors and one. Only a few results are kept ahead of the caller. The first exception ends it.
    """
    workers = workers or min(32, (os.cpu_count() or 1) + 1)
    _keep_freed_memory()
    results = _ahead(work, items, workers)
    yield from bar(results, total=len(items), label=label, unit=unit) if label else results


@functools.cache
def _keep_freed_memory() -> None:
    """Let threads use their memory again instead of giving each picture's back to the system.

    By default, glibc maps a new piece for each array of a picture, and the threads wait for each other while the system
    clears it. It stops doing so for all sizes up to that of the largest piece that was ever freed.
    """
    bytearray(_LARGEST_MAPPED)


def _ahead(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) >= 8 * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


@functools.cache
def say_once(line: str) -> None:
    """A line on standard error, above any bar; a line that was already written is not repeated."""
    tqdm.write(line, file=sys.stderr)
