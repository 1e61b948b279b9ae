"""A study in one archive: what a stranger needs to check its figures, and to do it again with the same data.

It has the run's results and executed notebooks, the model version, the code, the environment, the plan, and the SHA-256
of every image; the images themselves are never in it. `lungkit.study.verify` checks it. The same run and the same
options give the same bytes.

Paths of this machine are replaced in the texts of the run (HOME, DATA and so on); nothing else of them is changed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import lungkit
from lungkit import config, files
from lungkit.data import dataset
from lungkit.data.sources import COLUMNS
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.study import capsule_texts, provenance, sealed_zip
from lungkit.study.capsule_layout import (
    ABOUT,
    CODE,
    DATA,
    EVALUATION,
    LIGHT,
    LOCK,
    MANIFEST,
    METRICS,
    MODEL,
    PATCH,
    PLAN,
    PREDICTIONS,
    RUN,
    SCHEMA,
    SOURCE,
)
from lungkit.study.capsule_texts import About, Contents, LeftOut
from lungkit.study.provenance import RunRecord
from lungkit.training import evaluation
from lungkit.wording import count

# What the source needs to be installed and to run.
_CODE = ("lungkit", "notebooks", "pyproject.toml", "setup.py", "README.md", "LICENSE", "CITATION.cff", LOCK)
_TEXTS = (".ipynb", ".html", ".json", ".csv", ".md", ".svg", ".txt", ".tex", ".yaml", ".log")
_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf", ".html", ".docx", ".gif", ".webp")


@dataclass
class _Gathered:
    """What goes into the capsule, by name, and what does not."""

    members: dict[str, bytes] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def make(run: Path, out: Path, about: About, with_model: bool = True, with_pictures: bool = True) -> Contents:
    """Write the capsule of a run's folder to `out`; what is in it.

    with_model: False leaves the model's weights out; its card and hashes stay.
    with_pictures: False leaves out all pictures and pages, which can show images of the data.
    LungkitError where the folder is no run whose notebook 04 was done, or where `out` exists.
    """
    record, scored = RunRecord.open(run), _scored(run)
    if out.exists():
        raise LungkitError(f"{out} exists already; give the name of a new file")
    version = registry.find(scored["model"])
    registry.verify(version)
    gathered = _Gathered()
    _add_run(gathered, run, _places(run, record), with_pictures)
    _add_plan(gathered)
    _add_model(gathered, version, with_model)
    _add_data(gathered, run, version, scored, record)
    _add_code(gathered, record)
    contents = Contents(about, record, scored, version, tuple(gathered.left_out), f"lungkit {lungkit.__version__}")
    members = gathered.members | {ABOUT: _json(_about(contents, gathered.members))}
    members |= capsule_texts.files(contents, members)
    sums = "".join(f"{files.sha256(members[name])}  {name}\n" for name in sorted(members))
    sealed_zip.write(out, members | {MANIFEST: sums.encode()})
    return contents


def _scored(run: Path) -> dict[str, Any]:
    """evaluation.json of the run, as notebook 04 leaves it."""
    missing = [name for name in (EVALUATION, PREDICTIONS, METRICS) if not (run / name).is_file()]
    if missing:
        raise LungkitError(f"{run} has no {missing[0]}: notebook 04 was not done. `lungkit run all` does it")
    scored = _object(run / EVALUATION, files.plain(run / EVALUATION))
    if lacking := [name for name in ("model", "data", "split") if not isinstance(scored.get(name), str)]:
        raise LungkitError(
            f"{run / EVALUATION} names no {lacking[0]}: notebook 04 stopped before its end. Run it again"
        )
    return scored


def _object(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in a file of the run. LungkitError names the file that has none."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LungkitError(f"{path} is damaged: {error}. Run the notebook that writes it again") from None
    if not isinstance(values, dict):
        raise LungkitError(f"{path} is damaged: it is not a JSON object. Run the notebook that writes it again")
    return values


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def _about(contents: Contents, members: Mapping[str, bytes]) -> dict[str, Any]:
    """capsule.json: what programs need to know of the capsule."""
    card, scored = contents.version.card, contents.scored
    return {
        "schema": SCHEMA,
        "title": contents.title,
        "made_by": contents.made_by,
        "run_started": contents.record.started,
        "model": scored["model"],
        "data": scored["data"],
        "split": scored["split"],
        "code": contents.record.code,
        "seeds": {
            "split": card.data.recipe.get("seed"),
            "training": (card.training or {}).get("seed"),
            "bootstrap": evaluation.SEED,
            "resamples": evaluation.RESAMPLES,
        },
        "left_out": [{"what": one.what, "why": one.why} for one in contents.left_out],
        "members": len(members),
    }


# --- the run


def _add_run(gathered: _Gathered, run: Path, places: Mapping[str, str], with_pictures: bool) -> None:
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not path.is_symlink() and (path.is_dir() or hidden):
            continue
        if not with_pictures and path.suffix.lower() in _PICTURES:
            gathered.left_out.append(LeftOut(f"{RUN}/{name}", "pictures were left out on request"))
            continue
        content = files.plain(path)
        if path.suffix == ".ipynb" and not with_pictures:
            content = _without_pictures(path, content)
        gathered.members[f"{RUN}/{name}"] = _without_places(content, places) if path.suffix in _TEXTS else content


def _add_plan(gathered: _Gathered) -> None:
    """The plan as a file for `lungkit run --plan`: JSON is YAML."""
    if record := gathered.members.get(f"{RUN}/plan.json"):
        gathered.members[PLAN] = _json(json.loads(record)["plan"])


def _without_pictures(path: Path, notebook: bytes) -> bytes:
    """A notebook whose outputs keep their texts; a note stands where a picture was."""
    document = _object(path, notebook)
    try:
        for output in (output for cell in document["cells"] for output in cell.get("outputs", ())):
            kept = {kind: of for kind, of in output.get("data", {}).items() if kind in ("text/plain", "text/markdown")}
            if "data" in output and len(kept) < len(output["data"]):
                output["data"] = kept | {"text/plain": "(a picture or page was left out of the capsule)"}
    except (KeyError, TypeError, AttributeError):
        raise LungkitError(f"{path} is no notebook. Run it again, or remove it") from None
    return _json(document)


def _places(run: Path, record: RunRecord) -> dict[str, str]:
    """Folders of this machine and what stands in their place, the longest first."""
    found = {
        str(run.resolve()): RUN,
        str(config.data_dir()): "DATA",
        str(config.artifacts_dir()): "ARTIFACTS",
        str(config.reports_dir()): "REPORTS",
        str(config.home()): "LUNGKIT",
        str(provenance.checkout()): "LUNGKIT",
        str(Path.home()): "HOME",
    }
    for notebook in sorted(run.glob("*.ipynb")):  # where it was executed, if the folder was moved since
        metadata = _object(notebook, files.plain(notebook)).get("metadata")
        known = metadata.get("papermill") if isinstance(metadata, dict) else None
        ran = {"input_path": "LUNGKIT/notebooks", "output_path": RUN}
        told = [(known.get(key), name) for key, name in ran.items()] if isinstance(known, dict) else []
        found |= {str(Path(place).parent): name for place, name in told if place and isinstance(place, str)}
    given = {str(value): key.upper() for key, value in record.parameters.items() if str(value).startswith("/")}
    places = {place: name for place, name in (given | found).items() if len(Path(place).parts) > 2}
    return dict(sorted(places.items(), key=lambda one: -len(one[0])))


def _without_places(content: bytes, places: Mapping[str, str]) -> bytes:
    """A text without paths of this machine."""
    for place, name in places.items():
        content = re.sub(rb"(?<![\w.:/-])" + re.escape(place.encode()) + rb"(?![\w-])", name.encode(), content)
    return content


# --- the model and the data


def _add_model(gathered: _Gathered, version: registry.Version, whole: bool) -> None:
    folder = f"{MODEL}/{version.model}/{version.version}"
    for path in sorted(one for one in version.folder.rglob("*") if one.is_symlink() or not one.is_dir()):
        name = path.relative_to(version.folder).as_posix()
        if whole or name in LIGHT:
            gathered.members[f"{folder}/{name}"] = files.plain(path)
        else:
            gathered.left_out.append(LeftOut(f"{folder}/{name}", "the model's weights were left out on request"))


def _add_data(
    gathered: _Gathered, run: Path, version: registry.Version, scored: Mapping[str, Any], record: RunRecord
) -> None:
    """The data set's manifest, and SOURCE.md where the set has one."""
    try:
        predicted = pd.read_csv(run / PREDICTIONS, usecols=["file"], dtype=str, keep_default_na=False)["file"]
    except ValueError as error:
        raise LungkitError(f"{run / PREDICTIONS} is damaged: {error}. Run notebook 04 again") from None
    try:
        data = _data(version, scored, record, set(predicted))
    except LungkitError as error:
        gathered.left_out.append(LeftOut(f"{DATA}/manifest.csv", f"the data set could not be read: {error}"))
        return
    table = data.manifest[COLUMNS].to_csv(index=False, lineterminator="\n").encode()
    described = {
        "name": data.name,
        "classes": list(data.classes),
        "label_column": data.label_column,
        "synthetic": data.synthetic,
        "fingerprint": data.fingerprint,
        "manifest_sha256": files.sha256(table),
        "notes": [note.to_dict() for note in data.notes],
        "recipe": data.recipe,
    }
    gathered.members |= {f"{DATA}/manifest.csv": table, f"{DATA}/dataset.json": _json(described)}
    for name in ("SOURCE.md", *(["README.md"] if data.synthetic else [])):  # README.md: of the phantom
        try:
            gathered.members[f"{DATA}/{name}"] = files.plain(data.root / name)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it has none, or the folder is gone
        except LungkitError as error:
            gathered.left_out.append(LeftOut(f"{DATA}/{name}", str(error).replace(str(data.root), data.name)))


def _data(
    version: registry.Version, scored: Mapping[str, Any], record: RunRecord, predicted: set[str]
) -> dataset.Dataset:
    """The data set that was scored: as it was prepared, else read again."""
    try:
        prepared = dataset.Dataset.open(config.data_dir() / "manifests" / scored["data"])
        scope = None if scored["split"] == "all" else scored["split"]
        if predicted <= set(prepared.part(scope)["file"]):
            return prepared
    except LungkitError:
        pass  # it was scored as it is given, which leaves no manifest
    from lungkit.training import release

    return release.data_for(
        version, str(record.parameters.get("data", "phantom")), record.parameters.get("label_column")
    )


# --- the code


def _add_code(gathered: _Gathered, record: RunRecord) -> None:
    """The source as of the run's commit, and a patch where the checkout differed from it."""
    commit: str = record.code.get("commit") or ""
    there = [name for name in _CODE if commit and provenance.git("cat-file", "-e", f"{commit}:{name}") is not None]
    source = provenance.git("archive", "--format=tar", commit, "--", *there) if there else None
    if source is None:
        why = f"commit {commit} is not in this checkout" if commit else "the run was made without a checkout"
        gathered.left_out.append(LeftOut(SOURCE, why))
        return
    gathered.members[SOURCE] = source
    if lock := provenance.git("show", f"{commit}:{LOCK}"):
        gathered.members[f"{CODE}/{LOCK}"] = lock
    if record.code.get("changed"):
        _add_patch(gathered, record, commit)


def _add_patch(gathered: _Gathered, record: RunRecord, commit: str) -> None:
    """How the checkout differs from the commit, if it is still as it was when the run was made."""
    now = provenance.patch(commit)
    if files.sha256(now) == record.code.get("patch"):
        gathered.members[PATCH] = now
    else:
        gathered.left_out.append(LeftOut(PATCH, "the checkout was changed when the run was made, and again since"))
    untracked = provenance.git("ls-files", "--others", "--exclude-standard", "--", *provenance.PARTS) or b""
    why = "it is in no commit, and may have been there when the run was made"
    gathered.left_out += [LeftOut(f"{CODE}/{name}", why) for name in untracked.decode().splitlines()]


def warnings(contents: Contents, with_pictures: bool) -> list[str]:
    """What a person should look at before the capsule is published."""
    reasons = Counter(one.why for one in contents.left_out)
    said = [f"not in it: {count(number, 'file')}, because {why}" for why, number in reasons.items()]
    if not contents.scored.get("synthetic"):
        said.append("tables name patients and files as the data set does: check that these names may be published")
        said += (
            ["pictures and notebooks can show images of patients: check the data's licence"] if with_pictures else []
        )
    return said
