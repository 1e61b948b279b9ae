"""How often test images were read, whichever model read them and whatever the data set was called.

Each look at a test is a chance to choose by it, so the looks are counted. A ledger is a file of JSON lines in
looks/ of the data folder, named by the content of the images that were read. Its first line lists these images by their
SHA-256, and each further line is one look. Lines are only added. Another name of the model or of the set, another
folder, other labels and a training that is repeated therefore begin no new count. A test part that shares an image with
one that was read before shares its looks.

The ledger is of one data folder. It does not know of looks in another, and anyone who can write there can remove it.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from lungkit import config, files

_UNKNOWN = "not known: the line is damaged"


@dataclass(frozen=True)
class Look:
    """One reading of test images."""

    at: str  # ISO 8601, UTC
    model: str  # "NAME@v2"
    data: str  # name of the data set
    images: int
    by: str  # "lungkit evaluate"
    plan: str = ""  # SHA-256 of the plan that was fixed before it; empty without one
    metric: str = ""  # the plan's primary metric

    @property
    def counts(self) -> bool:
        """Whether it is a reading of its own; a line that names a plan belongs to the reading before it."""
        return not self.plan


def fingerprint(images: Iterable[str]) -> str:
    """The SHA-256 of the sorted SHA-256 of the images: the same for the same pictures, in any order and folder."""
    return files.sha256("\n".join(sorted(set(images))).encode())


def add(images: Iterable[str], look: Look) -> None:
    """Add a line to the ledger of these images (SHA-256 of each), which is made if need be."""
    known = sorted(set(images))
    folder = config.looks_dir()
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / f"{fingerprint(known)}.jsonl"
    with files.locked(folder / ".lock"):
        if not ledger.exists():
            files.replace(ledger, json.dumps({"images": known}) + "\n", durable=True)
        with ledger.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = file.read(1) != b"\n"  # a process was killed while it wrote
            file.seek(0, os.SEEK_END)
            file.write(b"\n" * torn + json.dumps(asdict(look), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def count(images: Iterable[str], model: str, data: str, by: str) -> None:
    """Count one reading of these images (SHA-256 of each); without an image there is nothing to count."""
    known = set(images)
    if known:
        add(known, Look(now(), model, data, len(known), by))


def of(images: Iterable[str]) -> list[Look]:
    """Every line on readings of these images or of some of them, the oldest first."""
    wanted = set(images)
    ledgers = sorted(config.looks_dir().glob("*.jsonl"))
    found = [look for ledger in ledgers for look in _read(ledger, wanted)]
    return sorted(found, key=lambda look: look.at)


def now() -> str:
    """The time of a look, to the microsecond: readings are put in order by it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _read(ledger: Path, wanted: set[str]) -> list[Look]:
    first, *lines = ledger.read_text("utf-8").splitlines()
    return [] if wanted.isdisjoint(json.loads(first)["images"]) else [_look(line) for line in lines if line]


def _look(line: str) -> Look:
    """A line of a ledger. One that is damaged still counts as a look: only the line's content is lost."""
    try:
        return Look(**json.loads(line))
    except (ValueError, TypeError):
        return Look("", _UNKNOWN, _UNKNOWN, 0, _UNKNOWN)
