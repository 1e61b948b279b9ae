"""What is known of a run: its record, its notebooks' questions, the model's card, the data, the figures and tables.

Everything is read from files. What is missing is None; what cannot be read is in `unknown`, in a sentence.
"""

import ast
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from lungkit import config, files
from lungkit.data import dataset
from lungkit.data.dataset import Dataset
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import Measured, ModelCard
from lungkit.models.schema import Part, checked
from lungkit.study.provenance import RunRecord, Stage
from lungkit.training import exhibits
from lungkit.training.exhibits import Exhibit
from lungkit.wording import listed

SCORE, PLAN = "evaluation.json", "plan.json"
DATASET = "dataset"  # the folder with the manifest of the run's data
NO_PATIENT = "image-"  # begins the patient id of an image whose patient is not known
_TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # the columns that a CSV file has to have: all,
    "audit.csv": (("finding", "severity", "count", "share", "meaning"), ("count", "share")),  # and those of numbers
    "trials.csv": ((), ()),
    "repeats.csv": ((), ()),
    "randomisation.csv": ((), ()),
    "localisation.csv": ((), ()),
}
_ABOUT = ("SOURCE.md", "README.md")  # in a data set's folder
_MOST = 1200  # characters of those

_NO_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)  # ast, of a text that is no Python

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Review(Part):
    share: float | None = None
    errors_held: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Largest(Part):
    share: float
    # and "class", which no field can be called


@dataclass(frozen=True, kw_only=True)
class _Score(Part):
    """What reports read of evaluation.json besides Measured."""

    model: str
    data: str
    split: str
    scope: str | None = None
    seen_in_training: int | None = None
    absent_classes: tuple[str, ...] | None = None
    unreadable: tuple[Any, ...] | None = None
    review: _Review | None = None
    largest_class: _Largest | None = None


@dataclass(frozen=True, kw_only=True)
class _Plan(Part):
    """plan.json."""

    plan: Mapping[str, Any]
    sha256: str
    fixed_at: str
    looks: int | None = None
    deviations: tuple[str, ...] | None = None
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Notebook:
    """A notebook of a run."""

    stage: Stage
    title: str  # "Evaluation"
    question: str  # what it asks, in its own words; "" if its first cell has no such sentence
    page: str  # name of its HTML page; "" without one
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the cell with its parameters

    @property
    def number(self) -> str:
        """ "04"; "" for a notebook without a number."""
        return self.stage.name[:2] if self.stage.name[:2].isdigit() else ""


@dataclass(frozen=True, eq=False)
class Material:
    """All of it. folder: of the run; nothing is read from, or written to, another folder that its record names."""

    folder: Path
    record: RunRecord
    notebooks: tuple[Notebook, ...]
    score: Mapping[str, Any] | None  # evaluation.json
    measured: Measured | None  # the same, read
    version: str  # "NAME@vN" that the run registered or scored; "" without one
    card: ModelCard | None
    data: Dataset | None  # of the test, if there was one
    plan: Mapping[str, Any] | None
    figures: tuple[Exhibit, ...]  # of the notebooks, in their order
    tables: tuple[Exhibit, ...]
    frames: Mapping[str, pd.DataFrame]  # the CSV files of the run that reports read, by their names
    unknown: tuple[str, ...]
    unread: frozenset[str]  # SCORE and PLAN, where there is such a file that cannot be read

    @property
    def source(self) -> str:
        """The data set as the command named it; of a path, the last part."""
        return Path(str(self.record.parameters.get("data", "phantom"))).name

    @property
    def profile(self) -> str:
        """quick, full or smoke."""
        return str(self.parameter("profile", "quick"))

    def parameter(self, name: str, default: Any = None, notebook: str = "") -> Any:
        """A parameter's value: as the command gave it, or as the notebooks have it (only those of that number)."""
        given = self.record.parameters
        fitting = [one.defaults for one in self.notebooks if notebook in ("", one.number) and name in one.defaults]
        return given[name] if name in given else fitting[0][name] if fitting else default

    def ran(self, number: str) -> bool:
        """Whether the notebook of this number ran to its end."""
        return any(one.number == number and one.stage.status == "done" for one in self.notebooks)

    def csv(self, name: str) -> pd.DataFrame | None:
        """A CSV file of the run; None where there is none, or none that can be read."""
        return self.frames.get(name)

    def kept(self, name: str) -> pd.DataFrame | None:
        """A table that a notebook kept, its cells as text; None where there is none, or none that can be read."""
        if any(one.name == name for one in self.tables):
            with suppress(OSError, ValueError):
                return pd.read_csv(self.folder / exhibits.TABLES / f"{name}.csv", keep_default_na=False, dtype=str)
        return None

    @cached_property
    def trials(self) -> pd.DataFrame | None:
        """The trials of the search of settings; columns as lungkit.models.search.SearchResult has them."""
        return self.csv("trials.csv")

    @cached_property
    def findings(self) -> pd.DataFrame | None:
        """What the audit of the data set found; columns as lungkit.data.quality.QualityReport has them."""
        return self.csv("audit.csv")

    @cached_property
    def described(self) -> tuple[str, str] | None:
        """Name and text of the file by which a data set's folder describes itself; None without one."""
        root = self.data.root if self.data else None
        for name in _ABOUT if root else ():
            if content := _plain(Path(root or "") / name, []):
                text = content.decode("utf-8", "replace").strip()
                return name, text if len(text) <= _MOST else f"{text[:_MOST].rsplit(' ', 1)[0]} …"
        return None

    @cached_property
    def without_patient(self) -> int:
        """Images whose patient is not known; each counts as a patient."""
        return 0 if self.data is None else int(self.data.manifest["patient_id"].str.startswith(NO_PATIENT).sum())


def gather(folder: Path) -> Material:
    """Read a run's folder, and what it names in the registry and among the data sets. LungkitError if it is no run."""
    record = RunRecord.open(folder)
    unknown: list[str] = []
    score = _or_none(partial(_object, folder / SCORE, _Score), unknown, SCORE)
    measured = _or_none(partial(_measured, score), unknown, SCORE) if score else None
    plan = _or_none(partial(_plan, folder / PLAN), unknown, PLAN)
    registered = _or_none(partial(_object, folder / config.REGISTERED), unknown, config.REGISTERED) or {}
    version = str((score or {}).get("model") or registered.get("version") or "")
    found = _or_none(lambda: registry.find(version), unknown, f"The card of {version}") if version else None
    notebooks = tuple(_notebook(folder, stage, unknown) for stage in record.stages)
    figures, tables = (
        tuple(exhibits.listed(folder, kind, unknown.append)) for kind in (exhibits.FIGURES, exhibits.TABLES)
    )
    read = {name: _or_none(partial(_frame, folder / name), unknown, name) for name in _TABLES}
    frames = {name: frame for name, frame in read.items() if frame is not None}
    unread = {
        name for name, values in ((SCORE, measured), (PLAN, plan)) if values is None and os.path.lexists(folder / name)
    }
    unknown.extend(_elsewhere(folder, record))
    bare = Material(
        folder, record, notebooks, score if measured else None, measured, version, found.card if found else None, None,
        plan, figures, tables, frames, (), frozenset(unread),
    )  # fmt: skip
    data = _data(bare, unknown)
    if data:
        for name in _ABOUT:
            _plain(data.root / name, unknown)
    return Material(**vars(bare) | {"data": data, "unknown": tuple(unknown)})


def _elsewhere(folder: Path, record: RunRecord) -> Iterable[str]:
    """A sentence where the notebooks wrote to another folder than this one."""
    given = record.parameters.get("report") or str(folder)
    if Path(str(given)).name != folder.name and not any(
        os.path.lexists(folder / name) for name in (SCORE, exhibits.FIGURES)
    ):
        yield (
            "The notebooks kept figures and tables in another folder, which the parameter report names. The report "
            "shows what is in the run's own."
        )


# --- one file


def _text(path: Path) -> str | None:
    """A file's text; None without it. LungkitError, OSError or ValueError where it is a link or no text."""
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        raise LungkitError("it is a link or no plain file")
    return path.read_text("utf-8")


def _object(path: Path, kind: type[Part] | None = None) -> dict[str, Any] | None:
    """The object in a JSON file, its values of the types in `kind`; None without the file."""
    if (text := _text(path)) is None:
        return None
    values = json.loads(text)
    if not isinstance(values, dict):
        raise LungkitError("it is not a JSON object")
    if kind:
        kind.from_dict(values)
    return values


def _plain(path: Path, unknown: list[str]) -> bytes | None:
    """The content of a file that is there and is no link, which could lead to any file of this machine."""
    return _or_none(partial(files.plain, path), unknown, path.name) if os.path.lexists(path) else None


def _plan(path: Path) -> dict[str, Any] | None:
    """plan.json, if its hash is the one of the plan in it: else someone changed one of them after it was fixed."""
    from lungkit.study import plan

    if (record := _object(path, _Plan)) is not None and plan.of(record["plan"]).sha256 != record["sha256"]:
        raise LungkitError("its SHA-256 is not that of the plan in it, so it was changed after it was fixed")
    return record


def _measured(score: dict[str, Any]) -> Measured:
    """The figures in evaluation.json. LungkitError if it is not what notebook 04 writes."""
    measured = Measured.from_dict(score)
    if measured.largest_class:
        checked(measured.largest_class.get("class"), str, "largest_class.class")
    sizes = {len(measured.classes or ()), *map(len, measured.confusion or ())} if measured.confusion else set()
    if sizes - {len(measured.confusion or ())}:
        raise LungkitError("'confusion' has not a row and a column for each class")
    if len({frozenset(figures) for figures in measured.by_class.values()}) > 1:
        raise LungkitError("'per_class' has not the same figures for each class")
    return measured


def _frame(path: Path) -> pd.DataFrame | None:
    """A CSV file of _TABLES; None without it. LungkitError or ValueError where a column is missing or no number."""
    columns, numbers = _TABLES[path.name]
    if (text := _text(path)) is None:
        return None
    frame = pd.read_csv(io.StringIO(text), keep_default_na=not columns, dtype=str if columns else None)
    if lacking := [name for name in columns if name not in frame]:
        raise LungkitError(f"it has no column {listed(lacking, 'and')}")
    frame = frame.assign(**{name: pd.to_numeric(frame[name].replace("", None)) for name in numbers})
    if "count" in numbers:
        if frame["count"].isna().any():
            raise LungkitError("a count is empty")
        frame = frame.astype({"count": int})
    return frame


def _or_none(read: Callable[[], T], unknown: list[str], what: str) -> T | None:
    """What `read` gives; None where it fails, with a sentence in `unknown`."""
    try:
        return read()
    except (LungkitError, OSError, ValueError, RecursionError) as error:
        unknown.append(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}".rstrip(".") + ".")
        return None


def _data(known: Material, unknown: list[str]) -> Dataset | None:
    """The saved data set that the run used: of the test, else the one that the model learned from, else the named."""
    names = [str((known.score or {}).get("data") or ""), known.card.data.name if known.card else "", _named(known)]
    others = False
    for name in dict.fromkeys(filter(None, names)):
        for folder in (known.folder / DATASET, config.data_dir() / "manifests" / name):
            found = _or_none(partial(_saved, folder), unknown, f"The manifest of {name}")
            if found and found.name == name and _is_the_runs(found, known):
                return found
            others = others or found is not None
    if others:
        unknown.append(
            f"The manifest of {names[0] or names[-1]} on this machine is of another selection or state of the data set "
            "than this run used, so nothing here comes from it."
        )
    return None


def _saved(folder: Path) -> Dataset | None:
    """The data set saved in a folder; None without one."""
    for file in (folder, folder / "dataset.json", folder / "manifest.csv"):
        if file.is_symlink():
            raise LungkitError(f"{file.name} is a link")
    return Dataset.open(folder) if (folder / "dataset.json").is_file() else None


def keep(known: Material) -> None:
    """Keep the manifest in the run's folder: a later notebook or run can prepare another selection of the data set."""
    if known.data is not None:
        known.data.save(known.folder / DATASET)


def _is_the_runs(found: Dataset, known: Material) -> bool:
    """Whether a saved data set is the one that a run used: a later run can have saved another under the same name."""
    card = known.card
    if card and card.data.name == found.name and card.data.fingerprint:
        return card.data.fingerprint == found.fingerprint
    limit = _limit(known)
    column = known.parameter("label_column") or None
    return (known.score is not None or found.recipe.get("limit") == limit) and found.label_column == (column or "label")


def _limit(known: Material) -> int | None:
    """How many images the run's profile takes of its data set."""
    profile = config.PROFILES.get(known.profile)
    return profile.limit(str(known.record.parameters.get("data", "phantom"))) if profile else None


def _named(known: Material) -> str:
    """The name of the data set that the command named; "" if it cannot be told."""
    source, column = str(known.record.parameters.get("data", "phantom")), known.parameter("label_column") or None
    try:
        return dataset.name_of(source, label_column=column, limit=_limit(known), seed=known.parameter("seed", 7))
    except (LungkitError, OSError, TypeError, ValueError):
        return ""  # a folder that is gone, or a source that is none: nothing is claimed of it


def _notebook(folder: Path, stage: Stage, unknown: list[str]) -> Notebook:
    """A notebook's title, question and parameters, from its executed copy."""
    title, question = stage.name[3:].replace("_", " ").capitalize(), ""
    copy = f"{stage.name}.ipynb"
    cells = _or_none(partial(_cells, folder / copy), unknown, copy) or []
    text = cells[0][0] if cells else ""
    if head := re.search(r"^# (?:\d\d\s*[·.:-]\s*)?(.+)$", text, re.MULTILINE):
        title = head[1].strip()
    if asked := re.search(r"\*\*(.+?\?)\*\*", text, re.DOTALL):
        question = " ".join(asked[1].split())
    page = f"{stage.name}.html" if (folder / f"{stage.name}.html").is_file() else ""
    return Notebook(stage, title, question, page, _parameters(cells))


def _cells(path: Path) -> list[tuple[str, set[str]]]:
    """Source and tags of each cell of a notebook; none without the file."""
    try:
        found = (_object(path) or {"cells": []})["cells"]
        return [("".join(cell["source"]), {*cell.get("metadata", {}).get("tags", ())}) for cell in found]
    except (KeyError, TypeError, AttributeError):
        raise LungkitError("it is not a notebook") from None


def _parameters(cells: Iterable[tuple[str, set[str]]]) -> dict[str, Any]:
    """Name to value of the plain assignments in the cells of parameters; what a run gave comes last, and counts."""
    values: dict[str, Any] = {}
    for source, tags in cells:
        if not {"parameters", "injected-parameters"} & tags:
            continue
        try:
            assigned = [line for line in ast.parse(source).body if isinstance(line, ast.Assign)]
        except _NO_PYTHON:
            continue
        for line in assigned:
            try:
                values[ast.unparse(line.targets[0])] = ast.literal_eval(line.value)
            except _NO_PYTHON:
                continue
    return values
