"""Data sets of reviews as `lungkit learn collect` writes them: whose images they have, and which came before.

A version names the images that it learned from by the hashes of their files. The same image has another file in a set
that was collected from another reading of it, and other images of its patient have other files. A set of reviews knows
patients, by random identifiers that stay the same, and pixels, by their hash.
"""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lungkit import files
from lungkit.errors import LungkitError

MANIFEST = "manifest.json"
TABLES = ("labels.csv", "aside.csv")  # with MANIFEST, what a set has besides its images


@dataclass(frozen=True)
class ReviewSet:
    """One set. sha256: of its manifest. rows: those of labels.csv, each with "sha256" of its file."""

    folder: Path
    sha256: str
    manifest: dict[str, Any]
    rows: tuple[dict[str, str], ...]

    @property
    def locked(self) -> bool:
        """Whether its labels were given without the model's answer, and nothing may learn from it."""
        return bool(self.manifest["asked"]["locked"])

    @property
    def content_sha256(self) -> str:
        """Over what was asked for and the tables, as they are now; `lungkit learn collect` notes it on the trail."""
        listed = self.manifest["files"]
        content = self.manifest["asked"] | {name: listed.get(name) for name in TABLES}
        return files.sha256(json.dumps(content, sort_keys=True).encode())

    @property
    def oldest(self) -> datetime:
        """When the first of its labels was given. LungkitError where that is not known."""
        try:
            at = min(datetime.fromisoformat(row["reviewed_at"]) for row in self.rows)
            return at if at.tzinfo else at.replace(tzinfo=UTC)
        except (KeyError, TypeError, ValueError) as error:
            raise LungkitError(f"{self.folder}: labels.csv does not say when each label was given ({error})") from None

    @property
    def answer_shown(self) -> float:
        """Share of its labels that were given with an answer on screen."""
        return sum(row["answer_shown"] == "yes" for row in self.rows) / len(self.rows)


def read(folder: Path) -> ReviewSet:
    """The set in a folder. LungkitError where it is none, or where a file was changed, added or removed."""
    found = _read(folder.resolve())
    sealed = found.manifest["files"]
    there = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    differing = sorted((there - {MANIFEST}) ^ sealed.keys()) or sorted(
        name for name, digest in sealed.items() if files.sha256(found.folder / name) != digest
    )
    if differing:
        raise LungkitError(
            f"{found.folder} is not as it was collected: {differing[0]} was changed, added or removed. Restore it, or "
            "collect the reviews again"
        )
    return found


def line(of: ReviewSet) -> list[ReviewSet]:
    """All sets of the same collection, oldest first: FOLDER/NAME-v1, -v2, …"""
    home, number = of.folder.parent, re.fullmatch(r"(.+)-v(\d+)", of.folder.name)
    if not number:
        return [of]
    named = {
        int(match[1]): path
        for path in home.iterdir()
        if (match := re.fullmatch(rf"{re.escape(number[1])}-v(\d+)", path.name)) and (path / MANIFEST).is_file()
    }
    return [of if named[n] == of.folder else _read(named[n]) for n in sorted(named)]


def before(of: ReviewSet) -> list[ReviewSet]:
    """The sets that it grew from, and itself, oldest first."""
    whole = line(of)
    return whole[: [one.folder for one in whole].index(of.folder) + 1]


def learned(seen: set[str], sets: Iterable[ReviewSet]) -> tuple[set[str], set[str]]:
    """(patients, hashes of pixels) of the images whose files are among `seen`, by all of these sets."""
    rows = [row for one in sets for row in one.rows if row["sha256"] in seen]
    return {row["patient_id"] for row in rows}, {row["pixels_sha256"] for row in rows}


def _read(folder: Path) -> ReviewSet:
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        with (folder / "labels.csv").open(encoding="utf-8", newline="") as table:
            rows = tuple(row | {"sha256": manifest["files"][row["file"]]} for row in csv.DictReader(table))
        found = ReviewSet(folder, files.sha256(content), manifest, rows)
        complete = {"file", "patient_id", "pixels_sha256", "answer_shown", "sha256"}
        if (
            not rows
            or not all(complete <= row.keys() for row in rows)
            or not isinstance(manifest["asked"]["locked"], bool)
        ):
            raise ValueError("columns are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LungkitError(f"{folder} is no data set of reviews ({error}); {accepted(folder)}") from None
    return found


def accepted(folder: Path) -> str:
    """What to name instead of this folder, which is no data set of reviews."""
    last = [path for path in folder.glob(f"{folder.name}-v*") if (path / MANIFEST).is_file()]
    example = f", such as {max(last, key=lambda path: path.stat().st_mtime)}" if last else ""
    return f"name a data set that `lungkit learn collect` wrote, FOLDER/NAME-vN{example}"
