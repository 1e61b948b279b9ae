"""What is known of a run: its record, its notebooks' questions, the model's card, the data, the figures and tables.

Everything is read from files. What is missing is None; what cannot be read is in `unknown`, in a sentence.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
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
from lungkit.study.provenance import RunRecord, Stage
from lungkit.training import exhibits
from lungkit.training.exhibits import Exhibit
from lungkit.wording import listed

PLAN = "plan.json"
DATASET = "dataset"  # the folder with the manifest of the run's data
NO_PATIENT = "image-"  # begins the patient id of an image whose patient is not known
_ABOUT = ("SOURCE.md", "README.md")  # in a data set's folder
_MOST = 1200  # characters of those

T = TypeVar("T")


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
    """All of it. folder: of the run. kept: the folder with its figures, tables and CSV files; mostly the same."""

    folder: Path
    kept: Path
    record: RunRecord
    notebooks: tuple[Notebook, ...]
    score: Mapping[str, Any] | None  # evaluation.json
    measured: Measured | None  # the same, read
    version: str  # "NAME@vN" that the run registered or scored; "" without one
    card: ModelCard | None
    data: Dataset | None  # of the test, if there was one
    plan: Mapping[str, Any] | None
    unknown: tuple[str, ...]

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
        try:
            return pd.read_csv(self.kept / name)
        except (OSError, ValueError):
            return None

    @cached_property
    def figures(self) -> list[Exhibit]:
        """The figures of the notebooks, in their order."""
        return exhibits.listed(self.kept, exhibits.FIGURES)

    @cached_property
    def tables(self) -> list[Exhibit]:
        """The tables of the notebooks, in their order."""
        return exhibits.listed(self.kept, exhibits.TABLES)

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
    kept = Path(record.parameters.get("report") or folder)
    unknown: list[str] = []
    score = _json(kept / "evaluation.json", unknown)
    registered = _json(kept / config.REGISTERED, unknown) or {}
    version = str((score or {}).get("model") or registered.get("version") or "")
    found = _or_none(lambda: registry.find(version), unknown, f"The card of {version}") if version else None
    notebooks = tuple(_notebook(folder, stage) for stage in record.stages)
    card = found.card if found else None
    measured = _or_none(partial(_measured, score), unknown, "evaluation.json") if score else None
    bare = Material(
        folder, kept, record, notebooks, score, measured, version, card, None, _json(kept / PLAN, unknown), ()
    )
    data = _data(bare, unknown)
    if data:
        for name in _ABOUT:
            _plain(data.root / name, unknown)
    return Material(**vars(bare) | {"data": data, "unknown": tuple(unknown)})


def _measured(score: dict[str, Any]) -> Measured:
    """The figures in evaluation.json. LungkitError if it is not what notebook 04 writes."""
    if lacking := [name for name in ("model", "data", "split") if not isinstance(score.get(name), str)]:
        raise LungkitError(f"it does not name {listed(lacking, 'and')}")
    return Measured.from_dict(score)


def _json(path: Path, unknown: list[str]) -> dict[str, Any] | None:
    """The object in a JSON file; None without the file."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        unknown.append(f"{path.name} cannot be read: {error}.")
        return None
    if not isinstance(values, dict):
        unknown.append(f"{path.name} is not a JSON object.")
        return None
    return values


def _plain(path: Path, unknown: list[str]) -> bytes | None:
    """The content of a file that is there and is no link, which could lead to any file of this machine."""
    try:
        return _or_none(partial(files.plain, path), unknown, path.name)
    except OSError:
        return None


def _or_none(read: Callable[[], T], unknown: list[str], what: str) -> T | None:
    try:
        return read()
    except LungkitError as error:
        unknown.append(f"{what} cannot be read: {error}".rstrip(".") + ".")
        return None


def _data(known: Material, unknown: list[str]) -> Dataset | None:
    """The saved data set that the run used: of the test, else the one that the model learned from, else the named."""
    names = [str((known.score or {}).get("data") or ""), known.card.data.name if known.card else "", _named(known)]
    others = False
    for name in dict.fromkeys(filter(None, names)):
        for folder in (known.kept / DATASET, config.data_dir() / "manifests" / name):
            if not (folder / "dataset.json").is_file():
                continue
            found = _or_none(partial(Dataset.open, folder), unknown, f"The manifest of {name}")
            if found and found.name == name and _is_the_runs(found, known):
                return found
            others = others or found is not None
    if others:
        unknown.append(
            f"The manifest of {names[0] or names[-1]} on this machine is of another selection or state of the data set "
            "than this run used, so nothing here comes from it."
        )
    return None


def keep(known: Material) -> None:
    """Keep the manifest in the run's folder: a later notebook or run can prepare another selection of the data set."""
    if known.data is not None:
        known.data.save(known.kept / DATASET)


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
    except (LungkitError, OSError, TypeError):
        return ""  # a folder that is gone, or a source that is none: nothing is claimed of it


def _notebook(folder: Path, stage: Stage) -> Notebook:
    """A notebook's title, question and parameters, from its executed copy."""
    title, question, defaults = stage.name[3:].replace("_", " ").capitalize(), "", {}
    try:
        cells = json.loads((folder / f"{stage.name}.ipynb").read_text("utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        cells = []
    if cells:
        text = "".join(cells[0]["source"])
        if head := re.search(r"^# (?:\d\d\s*[·.:-]\s*)?(.+)$", text, re.MULTILINE):
            title = head[1].strip()
        if asked := re.search(r"\*\*(.+?\?)\*\*", text, re.DOTALL):
            question = " ".join(asked[1].split())
        defaults = _parameters(cells)
    page = f"{stage.name}.html" if (folder / f"{stage.name}.html").is_file() else ""
    return Notebook(stage, title, question, page, defaults)


def _parameters(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Name to value of the plain assignments in the cells of parameters; what a run gave comes last, and counts."""
    values: dict[str, Any] = {}
    for cell in cells:
        if not {"parameters", "injected-parameters"} & set(cell.get("metadata", {}).get("tags", ())):
            continue
        try:
            assigned = [line for line in ast.parse("".join(cell["source"])).body if isinstance(line, ast.Assign)]
        except SyntaxError:
            continue
        for line in assigned:
            try:
                values[ast.unparse(line.targets[0])] = ast.literal_eval(line.value)
            except ValueError:
                continue
    return values
