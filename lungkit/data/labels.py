"""labels.csv as people and spreadsheets write it: any usual separator and encoding, and lines as an editor counts them.

Every cell stays text: patient 007 is not 7, and class NA is not missing.
"""

import codecs
import csv
import io
import re
import stat
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import category, normalize

import pandas as pd

from lungkit.data import folders
from lungkit.data.notes import ColumnMissing, DatasetError, Note, alike, note

_SEPARATORS = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS = {  # the longer ones first: UTF-16's begin them
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_KNOWN = ("file", "label", "patient_id", "group_id", "split", "mask", "modality", "source")
_ROUNDED = re.compile(r"\d[.,]\d+E\+\d+", re.IGNORECASE)  # 1.23457E+11
_NUMBER = re.compile(r"\d+([.,]0*)?")


def read(path: Path, column: str = "label") -> tuple[pd.DataFrame, list[Note]]:
    """The table, whose index is the line that each row starts in, and notes on what is odd in it.

    column: the column with the class. The names of columns may differ in case and blanks from the known ones.
    Raises DatasetError if the table cannot be read, has no column "file" or `column`, or has no row.
    """
    text = _decoded(path)
    separator, skipped = _separator(text, column)
    lines, rows = _rows(path, text, separator, skipped)
    if not rows:
        raise DatasetError(f"{path} is empty; it needs a first line that names the columns file and {column}")
    header = _header(rows[0], column)
    for name in ("file", column):
        if name not in header:
            there = ", ".join(map(folders.one_line, filter(None, header)))
            raise ColumnMissing(f"{path} has no column '{name}'; it has: {there}")
    if len(rows) == 1:
        raise DatasetError(f"{path} has no rows: below the names of the columns, each line stands for an image")
    _check_lengths(path, header, lines, rows)
    cells = [[cell.strip() for cell in row[: len(header)]] + [""] * (len(header) - len(row)) for row in rows[1:]]
    table = pd.DataFrame(cells, columns=header, index=pd.Index(lines[1:], name="line"), dtype=str)
    doubled = _doubled(table)
    table = table.loc[:, ~table.columns.duplicated()].drop(columns="", errors="ignore")
    return table, doubled + _oddities(table, column)


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if not encoding:  # UTF-16 without its mark has a zero in every other byte of plain letters
        zeros = tuple(byte == 0 for byte in content[:2])
        encoding = "utf-16-be" if zeros == (True, False) else "utf-16-le" if zeros == (False, True) else "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{path} is not a CSV table in UTF-8 (line {line} has a character in another encoding); save it again as "
            "UTF-8, in Excel: Save As, 'CSV UTF-8'"
        ) from None


def _separator(text: str, column: str) -> tuple[str, int]:
    """What separates the cells, and how many lines come before the table (Excel's "sep=;")."""
    declared = re.match(r"\s*\"?sep=(.)\"?[ \t]*(\r\n|\r|\n)", text, re.IGNORECASE)
    if declared:
        return declared[1], 1
    first = next((line for line in text.splitlines() if line.strip()), "")

    def fitness(separator: str) -> tuple[int, int]:
        names = _header(next(csv.reader([first], delimiter=separator), []), column)
        return len({"file", column} & set(names)), len(names)

    return max(_SEPARATORS, key=fitness), 0


def _rows(path: Path, text: str, separator: str, skipped: int) -> tuple[list[int], list[list[str]]]:
    """The line that each row starts in, as an editor counts, and its cells. Empty lines are no rows."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines, rows, start = [], [], 1
    try:
        for row in reader:
            if start > skipped and (len(row) > 1 or any(cell.strip() for cell in row)):
                lines.append(start)
                rows.append(row)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(
            f"{path} is not a CSV table: a quotation mark is open or out of place in the row of line {start} ({error})"
        ) from None
    return lines, rows


def _header(names: list[str], column: str) -> list[str]:
    """The names of the columns, the known ones in their own spelling whatever their case."""
    names = [name.strip("\ufeff \t\r\n\xa0") for name in names]
    for known in _KNOWN if column in names else (*_KNOWN, column):
        names = [known if alike(name) == alike(known) else name for name in names]
    return names


def _check_lengths(path: Path, header: list[str], lines: list[int], rows: list[list[str]]) -> None:
    for line, row in zip(lines, rows, strict=True):
        if any(cell.strip() for cell in row[len(header) :]):
            raise DatasetError(
                f"{path} has {len(row)} values in line {line}, but names {len(header)} columns; put a value that has a "
                "separator in it between quotation marks"
            )


def _doubled(table: pd.DataFrame) -> list[Note]:
    """Columns with the same name. If they contradict each other, the set cannot be used for training."""
    notes: list[Note] = []
    for name in dict.fromkeys(table.columns[table.columns.duplicated()]):
        columns = table.loc[:, [other == name for other in table.columns]]
        differ = columns.nunique(axis=1) > 1
        if name and differ.any():
            where = [f"'{name}' in line {line}" for line in table.index[differ]]
            notes += note("columns of one name that differ", "error", where, "The first one was taken: rename one.")
        elif name:
            notes += note("columns of one name", "warning", [name], "They say the same; the first one was taken.")
    return notes


def _oddities(table: pd.DataFrame, column: str) -> list[Note]:
    """What a table may contain although it is most often a mistake."""
    ids = [name for name in ("patient_id", "group_id") if name in table]
    odd = [
        f"{name} {cell!r} in line {line}"
        for name in ("file", column, *ids)
        for line, cell in table[name].items()
        if not cell.isprintable() and any(category(c) in ("Cc", "Zl", "Zp") for c in cell)
    ]
    rounded = [name for column in ids for name in sorted(set(table[column])) if _ROUNDED.fullmatch(name)]
    return [
        *note(
            "cells with a line break or a control character", "warning", odd, "Most often a quotation mark is missing."
        ),
        *note(
            "patient ids in two spellings",
            "warning",
            (pair for name in ids for pair in _one_person(table[name])),
            "They count as different patients, who may be on both sides of the split: is it one person?",
        ),
        *note(
            "patient ids that a spreadsheet rounded",
            "warning",
            rounded,
            "Different patients may have become one: format the column as text and export it again.",
        ),
    ]


def _one_person(ids: pd.Series) -> list[str]:
    """Ids that are the same number, or differ in case, blanks or Unicode form only: "'007' and '7.0'", …"""
    spellings: dict[str, list[str]] = {}
    for name in sorted(set(ids) - {""}):
        key = alike(name)
        if _NUMBER.fullmatch(key):
            key = re.split("[.,]", key)[0].lstrip("0") or "0"
        spellings.setdefault(key, []).append(name)
    return [" and ".join(map(repr, names)) for names in spellings.values() if len(names) > 1]


# Files ----------------------------------------------------------------------------------------------------------


class Files:
    """Finds the files that a table names in its folder, even if a name is written as on another system."""

    def __init__(self, root: Path):
        self._root = root

    def find(self, name: str) -> str | None:
        """The POSIX path below the folder, for any kind of slashes and any Unicode form; None if there is no file."""
        for written in dict.fromkeys((name, name.replace("\\", "/"))):
            path = PurePosixPath(written)
            if stat.S_ISREG(folders.mode(self._root / path)):
                return path.as_posix()
        paths = self._by_spelling.get(normalize("NFC", PurePosixPath(name.replace("\\", "/")).as_posix()), [])
        return paths[0] if len(paths) == 1 else None

    def hint(self, name: str) -> str:
        """Where else a file of this name is, or one in another case; empty if there is none."""
        wanted = PurePosixPath(name.replace("\\", "/")).name.casefold()
        there = [path for paths in self._by_spelling.values() for path in paths]
        near = [path for path in there if PurePosixPath(path).name.casefold() == wanted]
        return near[0] if near else ""

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        spellings: dict[str, list[str]] = {}
        for path in self._root.rglob("*"):
            name = path.relative_to(self._root).as_posix()
            spellings.setdefault(normalize("NFC", name), []).append(name)
        return spellings


def escapes(name: str) -> bool:
    """Whether a path leads out of its folder, as any system would read it."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    return path.is_absolute() or ".." in path.parts or bool(windows.anchor) or ".." in windows.parts


def refuse_rows(
    table: pd.DataFrame, wrong: pd.Series, fault: str, names: pd.Series | None = None, more: str = ""
) -> None:
    """DatasetError that names the lines of the wrong rows, and the first of `names` there."""
    if wrong.any():
        named = f": {folders.few(names[wrong])}" if names is not None else ""
        raise DatasetError(f"labels.csv has {fault} in line {folders.few(table.index[wrong], 10)}{named}{more}")
