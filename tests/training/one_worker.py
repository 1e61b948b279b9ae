"""The only worker of a training as this process: another one would first have to import everything again."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lungkit.training import multiworker


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Within it, multiworker.fit_with_workers(…, workers=1) starts no process; all else is as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiworker, "_run", _train_here)
        yield


def _train_here(arguments: list[str], folder: Path, workers: int, _epochs: int) -> None:
    assert workers == 1
    multiworker.train_as_worker(Path(arguments[0]), folder, **json.loads(arguments[-1]))
