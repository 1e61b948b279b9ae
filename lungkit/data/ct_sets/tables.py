"""What the loaders of public CT sets share: the classes, their result, and how lists next to the images are read."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lungkit.data import folders
from lungkit.data.notes import DatasetError, Note, survey_notes

CLASSES = ("Normal", "Pneumonia", "COVID-19")  # Pneumonia: of any other cause


@dataclass(frozen=True)
class Layout:
    """`rows` of file (POSIX, below the root), label and patient_id, maybe split and source; and the notes."""

    rows: list[dict[str, str]]
    notes: list[Note]
    order: tuple[str, ...] = CLASSES  # of the classes, if it has these


def files_named(root: Path, pattern: str) -> list[Path]:
    """The files directly in a folder whose whole name fits a pattern, whatever its case."""
    return sorted(path for path in root.iterdir() if re.fullmatch(pattern, path.name, re.IGNORECASE) and path.is_file())


def lines_of(path: Path) -> list[str]:
    """The lines of a list in UTF-8. Raises DatasetError."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not text in UTF-8; download it again") from None


def table(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file, without blanks around names and values. Raises DatasetError if it lacks a column."""
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(lines_of(path)) if any(row)] or [[]]
    if missing := [name for name in columns if name not in header]:
        there = folders.few(header, 10)
        raise DatasetError(f"{path} has no column '{missing[0]}'; it has: {there}. Give the file as it was published")
    return [dict(zip(header, row + [""] * len(header), strict=False)) for row in rows]


def refuse_two_classes(root: Path, rows: Iterable[dict[str, str]]) -> None:
    """DatasetError that names the patients with images of two classes."""
    classes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        classes[row["patient_id"]].add(row["label"])
    if twice := [f"{name} is {' and '.join(sorted(of))}" for name, of in classes.items() if len(of) > 1]:
        raise DatasetError(f"{root} has a patient in two classes: {folders.few(twice)}. Give each patient one class")


def other_files(contents: folders.Survey, root: Path, used: Iterable[Path]) -> list[Note]:
    """Notes on what is in the folder besides images and the lists that were used."""
    lists = set(used)
    return survey_notes(replace(contents, passed_over=[p for p in contents.passed_over if p not in lists]), root)
