"""Notes on a data set's source: what was left out of it, and what to know before it is used."""

import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lungkit.data.folders import Survey, below, few, one_line
from lungkit.errors import LungkitError

KEPT = 10  # names, of however many


class DatasetError(LungkitError):
    """A source that is not a usable data set; the message names the file, column or rows, and what is accepted."""


class ColumnMissing(DatasetError):
    """A column that was asked for is not in labels.csv, or there is no labels.csv."""


@dataclass(frozen=True)
class Note:
    """One finding: how often it occurs, its first files or rows, and what it means.

    severity: "info" (for completeness), "warning" (to be judged), or "error" (the set cannot be used for training).
    """

    finding: str
    severity: str
    count: int
    meaning: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        names = f" ({few([*self.examples, *[''] * (self.count - len(self.examples))])})" if self.examples else ""
        return f"{self.finding}: {self.count:,}{names}. {self.meaning}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; Note(**it) is the note again."""
        return asdict(self) | {"examples": list(self.examples)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Note":
        """The reverse of `to_dict`."""
        return cls(**record | {"examples": tuple(record["examples"])})


def note(finding: str, severity: str, names: Iterable[str], meaning: str) -> list[Note]:
    """A list with a note on these names; empty if there are no names."""
    names = list(names)
    return [Note(finding, severity, len(names), meaning, tuple(map(one_line, names[:KEPT])))] if names else []


_LEFT_OUT = {  # lists of a survey: how they are called, how serious that is, and what it means
    "passed_over": ("files passed over", "info", "They are no images, or hidden."),
    "archives": ("archives", "warning", "What is in them was not looked at: unpack them first."),
    "broken": ("links passed over", "warning", "They lead to nothing, or to a folder above."),
    "closed": ("folders that may not be opened", "warning", "What is in them was not looked at."),
}


class Tally:
    """Counts what is left out of `root` and keeps the first names: it stays small, however many files there are."""

    def __init__(self, root: Path):
        self._root = root
        self._counts = dict.fromkeys(_LEFT_OUT, 0)
        self._examples: dict[str, list[str]] = {kind: [] for kind in _LEFT_OUT}

    def add(self, kind: str, path: Path) -> None:
        """Count a path of one list of a survey, such as "archives"; images are not left out."""
        if kind not in _LEFT_OUT or path == self._root / "dataset.json":
            return
        self._counts[kind] += 1
        if len(self._examples[kind]) < KEPT:
            self._examples[kind].append(one_line(below(path, self._root)))

    def notes(self) -> list[Note]:
        """A note for each kind of thing that there is."""
        return [
            Note(finding, severity, self._counts[kind], meaning, tuple(self._examples[kind]))
            for kind, (finding, severity, meaning) in _LEFT_OUT.items()
            if self._counts[kind]
        ]


def survey_notes(survey: Survey, root: Path) -> list[Note]:
    """Notes on what a survey of `root` left out besides images."""
    tally = Tally(root)
    for kind in _LEFT_OUT:
        for path in getattr(survey, kind):
            tally.add(kind, path)
    return tally.notes()


def alike(text: str) -> str:
    """A name without case, blanks, invisible characters and differences of Unicode form.

    >>> alike("No  Finding") == alike("nofinding"), alike("CT-0") == alike("CT-1")
    (True, False)
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) != "Cf")


def spelled_differently(names: Iterable[str]) -> list[str]:
    """The names that differ from another one only in what `alike` removes: "'Covid' and 'COVID'", …"""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(alike(name), []).append(name)
    return [" and ".join(f"'{name}'" for name in group) for group in groups.values() if len(group) > 1]


def spelling_notes(names: Iterable[str]) -> list[Note]:
    """An error if class names differ in spelling only."""
    meaning = "Class names that differ in case, blanks or Unicode form only: give each class one spelling."
    return note("classes in two spellings", "error", spelled_differently(names), meaning)
