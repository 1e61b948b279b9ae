"""Ctrl-C ends a command with exit code 130 and at most one line, from the import of this module on."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

EXIT_CODE = 130  # as a shell reports a process that Ctrl-C ended

# What an interrupted command leaves, by its first words; the first match counts.
KEPT = {
    "run": "the same command continues a search or a training where it stopped",
    "search": "the same command, without --fresh, continues where it stopped",
    "train": "the same command continues where it stopped",
    "evaluate": "no result was kept",
    "predict": "files without a line were not read; with --checkpoint, the same command continues",
    "data fetch": "nothing was kept",
    "data phantom": "nothing was kept",
    "data audit": "no result was kept",
    "serve": "",
    "gateway": "",
}


def message(arguments: list[str]) -> str:
    """The line for an interrupted command with these arguments: "interrupted", and what it leaves."""
    typed = " ".join(arguments)
    kept = next((text for verb, text in KEPT.items() if f"{typed} ".startswith(f"{verb} ")), "")
    return f"interrupted; {kept}" if kept else "interrupted"


@contextmanager
def ignored() -> Iterator[None]:
    """Ctrl-C does nothing within the block, which must be finished: it ends processes or tidies up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _excepthook(
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    before: Callable[..., Any] = sys.excepthook,
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os._exit(EXIT_CODE)
    before(kind, error, trace)


sys.excepthook = _excepthook
