"""What a model said of images, image by image: read from a run's predictions.csv, or scored now; and lined up.

A table of predictions (Evaluation.save writes it) has a row for each image, and the columns file, patient, true,
predicted and "probability CLASS" for two classes or more. It may come from elsewhere, so each cell is checked, and what
is wrong is named with its line and column.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lungkit.data.folders import one_line
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.rule import DecisionRule
from lungkit.training import evaluation
from lungkit.training.evaluation import Evaluation

if TYPE_CHECKING:
    from lungkit.training.release import Scored

FILE = "predictions.csv"
PROBABILITY = "probability "  # begins the name of a class's column
_COLUMNS = ("file", "patient", "true", "predicted")
_LARGEST = 2**30  # bytes of a table that is read: a hundred bytes for each of ten million images


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers to images, each of which is there once."""

    name: str
    files: np.ndarray  # (n,) str, relative to the data set's root
    classes: tuple[str, ...]
    true: np.ndarray  # (n,) class indices
    predicted: np.ndarray  # (n,) class indices
    probabilities: np.ndarray  # (n, classes)
    patients: np.ndarray  # (n,) str
    sources: np.ndarray  # (n,) str; "" where they are not known
    rule: DecisionRule

    def of(self, files: Sequence[str]) -> "Answers":
        """The answers to these images, in this order; each has to be there."""
        row = {file: at for at, file in enumerate(self.files)}
        at = np.array([row[file] for file in files], int)
        names = ("files", "true", "predicted", "probabilities", "patients", "sources")
        return replace(self, **{name: getattr(self, name)[at] for name in names})

    def in_order(self, classes: tuple[str, ...]) -> "Answers":
        """With the classes in this order. LungkitError where the answers have others."""
        own = [alike(name) for name in self.classes]
        if set(own) != {alike(name) for name in classes} or len(own) != len(classes):
            raise LungkitError(
                f"{self.name} answers {', '.join(map(one_line, self.classes))}, and not "
                f"{', '.join(map(one_line, classes))}: they cannot be compared"
            )
        order = np.array([own.index(alike(name)) for name in classes])
        place = np.argsort(order)
        return replace(
            self,
            classes=classes,
            true=place[self.true],
            predicted=place[self.predicted],
            probabilities=self.probabilities[:, order],
        )

    def evaluated(self) -> Evaluation:
        """What the answers are worth."""
        given = self.true, self.probabilities, self.patients, self.classes, self.rule
        return evaluation.evaluate(*given, sources=self.sources, predicted=self.predicted)


Contender = registry.Version | Answers


def of_scored(scored: "Scored") -> Answers:
    """The answers that a version has just given."""
    of = scored.evaluation
    files = np.array(scored.files, str)
    return Answers(
        str(scored.version), files, of.classes, of.true, of.predicted, of.probabilities, of.patients, of.sources,
        of.rule,
    )  # fmt: skip


def lined_up(answers: Sequence[Answers]) -> list[Answers]:
    """All answers to the images that every model answered for, in the order of the first one, with its classes.

    LungkitError where there is no such image, or where two disagree on classes, true labels or patients.
    """
    first = answers[0]
    ordered = [of.in_order(first.classes) for of in answers]
    everywhere = set.intersection(*(set(of.files) for of in answers))
    files = [file for file in first.files if file in everywhere]
    if not files:
        examples = ", ".join(f"'{one_line(of.files[0])}' of {of.name}" for of in answers if len(of.files))
        raise LungkitError(
            f"no image is common to {', '.join(of.name for of in answers)}: files are matched by name ({examples}); "
            "compare models on the same data set"
        )
    same = [of.of(files) for of in ordered]
    for of in same[1:]:
        names = np.array(first.classes)
        _refuse_other("true class", same[0], of, names[same[0].true], names[of.true])
        _refuse_other("patient", same[0], of, same[0].patients, of.patients)
    return same


def _refuse_other(what: str, one: Answers, other: Answers, ones: np.ndarray, others: np.ndarray) -> None:
    """LungkitError where two have different values for an image: then it is not the same image."""
    unlike = ones != others
    if unlike.any():
        at = int(np.argmax(unlike))
        raise LungkitError(
            f"the {what} of {one_line(one.files[at])} is '{one_line(ones[at])}' in {one.name} and "
            f"'{one_line(others[at])}' in {other.name} ({int(unlike.sum()):,} of {len(unlike):,} images differ): these "
            "are not the same data"
        )


def contender(text: str) -> Contender:
    """What a person names: NAME or NAME@v2 of the registry, a run's folder, or its predictions.csv.

    A name is a model's where the registry has it, also where a folder of that name lies here: that one is "./name".
    """
    path = Path(text).expanduser()
    separators = [mark for mark in (os.sep, os.altsep) if mark]
    if any(mark in text for mark in separators) or path.suffix.lower() == ".csv":
        return read(path)
    if text.partition("@")[0] not in registry.models() and path.is_dir():
        return read(path)
    return registry.find(text)


# --- a run's table


def read(path: Path) -> Answers:
    """The answers in a run's folder, or in its predictions.csv. LungkitError that names file, line and column."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise LungkitError(
            f"{path} has no {FILE}: give a model (NAME or NAME@v2), a run's folder, or its {FILE}. Data sets follow "
            "--data"
        )
    header, lines, rows = _table(file)
    classes = tuple(name.removeprefix(PROBABILITY) for name in header if name.startswith(PROBABILITY))
    _refuse_header(file, header, classes)
    column = {name: [row[at] for row in rows] for at, name in enumerate(header)}
    _refuse_cells(file, lines, column)
    folder = file.resolve().parent.name
    return Answers(
        name=one_line(folder if file.name == FILE and folder else file.stem),
        files=np.array(column["file"], str),
        classes=classes,
        true=_indices(file, lines, "true", column["true"], classes),
        predicted=_indices(file, lines, "predicted", column["predicted"], classes),
        probabilities=_probabilities(file, lines, column, classes),
        patients=np.array(column["patient"], str),
        sources=np.full(len(rows), ""),
        rule=DecisionRule(kind="argmax"),  # what was decided is in the table
    )


def _table(file: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """The header, and, of each row, the line that it ends in and its cells."""
    if file.stat().st_size > _LARGEST:
        raise LungkitError(f"{file} has {file.stat().st_size:,} bytes; accepted: a table of at most {_LARGEST:,}")
    lines, rows = [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            for row in reader:
                lines.append(reader.line_num)
                rows.append(row)
    except UnicodeDecodeError:
        raise LungkitError(f"{file} is damaged: it is not text in UTF-8") from None
    except csv.Error as error:
        raise LungkitError(f"{file} is damaged: {error} (line {len(rows) + 2})") from None
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise LungkitError(f"{file}, line {line}: {len(row)} cells; its first line names {len(header)} columns")
    if not rows:
        raise LungkitError(f"{file} has no rows; it needs one for each image")
    return header, lines, rows


def _refuse_header(file: Path, header: list[str], classes: tuple[str, ...]) -> None:
    there = ", ".join(map(one_line, header))
    if missing := [name for name in _COLUMNS if name not in header]:
        raise LungkitError(f"{file} has no column '{missing[0]}'; it has: {there}")
    if len(classes) < 2:
        raise LungkitError(
            f"{file} needs a column 'probability CLASS' for each of two classes or more; it has: {there}"
        )
    names = [alike(name) for name in classes]
    doubled = [name for name in header if header.count(name) > 1]
    doubled += [PROBABILITY + name for name in classes if names.count(alike(name)) > 1]
    if doubled:
        raise LungkitError(f"{file} has the column '{one_line(doubled[0])}' twice")


def _refuse_cells(file: Path, lines: list[int], column: Mapping[str, list[str]]) -> None:
    for name in ("file", "patient"):
        if "" in column[name]:
            raise LungkitError(f"{file}, line {lines[column[name].index('')]}: the column '{name}' is empty")
    first: dict[str, int] = {}
    for line, name in zip(lines, column["file"], strict=True):
        if name in first:
            raise LungkitError(f"{file}, line {line}: '{one_line(name)}' is there twice, first in line {first[name]}")
        first[name] = line


def _indices(file: Path, lines: list[int], name: str, cells: list[str], classes: tuple[str, ...]) -> np.ndarray:
    place = {alike(cls): at for at, cls in enumerate(classes)}
    found = [place.get(alike(cell), -1) for cell in cells]
    if -1 in found:
        at = found.index(-1)
        raise LungkitError(
            f"{file}, line {lines[at]}: '{one_line(cells[at])}' in the column '{name}' is none of the classes "
            f"{', '.join(map(one_line, classes))}"
        )
    return np.array(found, np.int64)


def _probabilities(
    file: Path, lines: list[int], column: Mapping[str, list[str]], classes: tuple[str, ...]
) -> np.ndarray:
    """(n, classes), each from 0 to 1, rows summing to 1."""
    values = np.column_stack([_numbers(file, lines, PROBABILITY + name, column) for name in classes])
    sums = values.sum(axis=1)
    if (wrong := abs(sums - 1) > 1e-3).any():
        at = int(np.argmax(wrong))
        raise LungkitError(f"{file}, line {lines[at]}: the probabilities sum to {sums[at]:.4g}; accepted: 1")
    return values


def _numbers(file: Path, lines: list[int], name: str, column: Mapping[str, list[str]]) -> np.ndarray:
    def number(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            return np.nan

    values = np.array([number(cell) for cell in column[name]])
    if (wrong := ~((values >= 0) & (values <= 1.001))).any():
        at = int(np.argmax(wrong))
        raise LungkitError(
            f"{file}, line {lines[at]}: '{one_line(column[name][at])}' in the column '{one_line(name)}'; accepted: a "
            "number from 0 to 1"
        )
    return values
