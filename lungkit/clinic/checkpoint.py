"""A file from which an interrupted `lungkit predict` continues: a line for what was asked, then one for each answer.

Every line is a JSON object, appended once and never changed: the records that `lungkit predict --json` prints. They are
written before they are printed, and all of them are printed again when the command continues. Its output is therefore
whole, and a file that it is sent into has every line once.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import lungkit
from lungkit.data import folders
from lungkit.errors import LungkitError
from lungkit.models import registry

_COMMAND = "lungkit predict"
_SYNC = 2.0  # seconds between two writes to the disk itself; what a killed process wrote is safe without

Record = dict[str, Any]


class CheckpointRefused(LungkitError):
    """The file belongs to another command, is none of ours, is damaged, or is in use."""


def asked(
    version: registry.Version, fingerprint: str, patterns: list[str], heatmaps: Path | None, age: float | None = None
) -> Record:
    """What a command was asked, as the first line says it: all that its answers depend on."""
    of_age = {} if age is None else {"age": age}
    return of_age | {
        "command": _COMMAND,
        "lungkit": lungkit.__version__,
        "model": str(version),
        "sha256": fingerprint,
        "files": patterns,
        "heatmaps": str(heatmaps) if heatmaps else None,
        "folder": str(Path.cwd()),
    }


def continued(
    path: Path, asked: Record, files: Iterable[Path], read: Callable[[Iterable[Path]], Iterator[Record]]
) -> Iterator[Record]:
    """The records of all files: those in the file at `path`, then those that `read` gives for the rest, which are kept.

    files: in the same order each time. A file that was removed since keeps its record; one that was added is read at
    the end. Raises CheckpointRefused.
    """
    with _opened(path, asked) as kept:
        found, out_of_turn = iter(files), set()
        upcoming = next(found, None)
        for record in kept.records():
            if upcoming is not None and record["file"] == str(upcoming):
                upcoming = next(found, None)
            else:
                out_of_turn.add(record["file"])
            yield record
        rest = chain([] if upcoming is None else [upcoming], found)
        for record in read(file for file in rest if str(file) not in out_of_turn):
            kept.append(record)
            yield record


@contextmanager
def _opened(path: Path, asked: Record) -> Iterator["_Checkpoint"]:
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointRefused(f"{path}: another command is writing to it; wait for its end") from None
        kept = _Checkpoint(path, file)
        kept.begin(asked)
        try:
            yield kept
        finally:
            kept.sync()


class _Checkpoint:
    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self._synced = path, file, time.monotonic()

    def begin(self, asked: Record) -> None:
        """Write the first line, or compare it."""
        self._file.seek(0)
        line = self._file.readline()
        if not line:
            self.append(asked)
            self.sync()
            return
        before = _parsed(line)
        if before is None or before.get("command") != _COMMAND:
            raise CheckpointRefused(f"{self._path} is not a checkpoint of {_COMMAND}; give another file")
        changed = [
            f"{key} was {_shown(before.get(key))}, is {_shown(asked.get(key))}"
            for key in [*asked, *(before.keys() - asked.keys())]
            if before.get(key) != asked.get(key)
        ]
        if changed:
            raise CheckpointRefused(
                f"{self._path} is the checkpoint of another command: {'; '.join(changed)}. "
                "Give another file, or delete this one to begin again"
            )

    def records(self) -> Iterator[Record]:
        """What was answered so far. A last line that was not written whole is cut off."""
        end = self._file.tell()
        for line in iter(self._file.readline, b""):
            record = _parsed(line)
            if record is None or "file" not in record:
                if self._file.read(1):
                    raise CheckpointRefused(f"{self._path} is damaged after {end:,} bytes; delete it to begin again")
                self._file.truncate(end)
                return
            end += len(line)
            yield record

    def append(self, record: Record) -> None:
        """Add a line. The system has it at once, the disk after at most some seconds of further lines."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _parsed(line: bytes) -> Record | None:
    """The object of a line; None where it is not a whole one."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return folders.few(value)
    return "none" if value is None else folders.one_line(value)
