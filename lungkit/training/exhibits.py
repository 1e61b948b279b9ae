"""Figures and tables of a run, as files that a report can number: what notebooks show, kept with its caption.

A run's folder holds figures/<name>.png, .svg and .pdf, and tables/<name>.csv, each with <name>.json, its caption. Names
begin with the notebook's number ("04_roc"), so that no notebook replaces the exhibit of another, and the order of a
report is that of the notebooks.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lungkit import files
from lungkit.errors import LungkitError
from lungkit.models.schema import checked

FIGURES, TABLES = "figures", "tables"
_DPI = 150  # of the PNG, which a report shows on screen and in a Word file; SVG and PDF are drawn at any size
_FORMS = {FIGURES: ("png", "svg", "pdf"), TABLES: ("csv",)}
_NO_DATE = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Exhibit:
    """A figure or a table of a run."""

    kind: str  # FIGURES or TABLES
    name: str  # "04_roc"
    caption: str
    place: int  # from 1, in the order in which its notebook kept them

    @property
    def notebook(self) -> str:
        """The notebook's number, "04"; "" for an exhibit that is of none."""
        return self.name[:2] if self.name[:2].isdigit() else ""


def figure(figure: Figure, folder: Path, name: str, caption: str = "") -> Figure:
    """Keep a figure, as PNG to look at, SVG and PDF to print; return it: a notebook shows it as the cell's result.

    caption: what a reader of a report should know; default: the figure's title.
    """
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "lungkit", "svg.fonttype": "none"}):
        for suffix, metadata in _NO_DATE.items():
            path = folder / FIGURES / f"{name}.{suffix}"
            figure.savefig(path, bbox_inches="tight", dpi=_DPI, metadata=metadata)
    plt.close(figure)  # pyplot would show one of its own a second time
    _note(folder, FIGURES, name, caption or " ".join(figure.get_suptitle().split()))
    return figure


def table(frame: pd.DataFrame, folder: Path, name: str, caption: str) -> pd.DataFrame:
    """Keep a table as CSV, with its index where that has a meaning; return it. Headings of several rows become one."""
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    written, counted = frame, isinstance(frame.index, pd.RangeIndex)
    if isinstance(frame.columns, pd.MultiIndex):
        written = frame.set_axis([", ".join(map(str, names)) for names in frame.columns], axis=1)
    files.replace(folder / TABLES / f"{name}.csv", written.to_csv(index=not counted))
    _note(folder, TABLES, name, caption)
    return frame


def listed(folder: Path, kind: str, refuse: Callable[[str], None] | None = None) -> list[Exhibit]:
    """The exhibits of one kind in a run's folder, in the order of the notebooks and of their cells.

    One that `figure` or `table` cannot have written is left out: `refuse` gets a sentence about it.
    """
    found = []
    for file in sorted((folder / kind).glob("*.json")):
        try:
            found.append(_read(file, kind))
        except (LungkitError, OSError, ValueError, RecursionError) as error:
            if refuse:
                refuse(f"The {kind.removesuffix('s')} {file.stem} cannot be read: {error}".rstrip(".") + ".")
    return sorted(found, key=lambda one: (one.notebook, one.place, one.name))


def _read(file: Path, kind: str) -> Exhibit:
    """An exhibit by its caption's file. A folder can come from anyone: links and other names are refused."""
    forms = [file.with_name(f"{file.stem}.{form}") for form in _FORMS[kind]]
    for each in (file.parent, file, *forms):
        if each.is_symlink() or (each.exists() and each.is_dir() != (each == file.parent)):
            raise LungkitError(f"{each.name} is a link or no plain {'folder' if each == file.parent else 'file'}")
    values, types = json.loads(file.read_text("utf-8")), get_type_hints(Exhibit)
    if not isinstance(values, dict) or set(values) != set(types):
        raise LungkitError(f"its caption is not a JSON object with the keys {', '.join(types)}")
    found = Exhibit(**{key: checked(value, types[key], key) for key, value in values.items()})
    if (found.kind, found.name) != (kind, file.stem) or not found.name.isprintable():
        raise LungkitError(f"its caption is of another exhibit, {ascii(found.name)[:60]}")
    return found


def _note(folder: Path, kind: str, name: str, caption: str) -> None:
    """Write an exhibit's caption; one that is kept again keeps its place."""
    before = listed(folder, kind)
    one = Exhibit(kind, name, caption, 0)
    own = {each.place: each.name for each in before if each.notebook == one.notebook}
    places = (place for place in itertools.count(1) if own.get(place, name) == name)
    place = next((place for place, its in own.items() if its == name), None) or next(places)
    record = asdict(Exhibit(kind, name, caption, place))
    files.replace(folder / kind / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False))
