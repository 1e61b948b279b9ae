"""Versions of trained models: sealed folders under artifacts/<model>/<version>/, and one pointer to the active one.

    artifacts/<model>/v1/          the files that training wrote, and
                     v1/card.json  what the version is, for programs
                     v1/README.md  the same card, for people
                     v1/SHA256SUMS hashes of all of these (`sha256sum -c SHA256SUMS` checks them without lungkit)
    artifacts/<model>/active.json  {"version", "history", "sums"}: the active version, the ones active before it
                                   (latest last), and the SHA-256 of each promoted version's SHA256SUMS
    artifacts/<model>/v1.outside.json  what was measured since on sources that the version has not seen; the card that
                                   `find` gives contains it

A version appears whole, by one rename, and is never changed afterwards; the pointer moves by one replace. A process
killed at any moment leaves the version that was active active, and at most a hidden staging folder, which the next
`add` removes.

What the hashes protect from: damaged disks, broken copies, a file or card edited by hand. They are not signatures:
whoever can write everything under artifacts/ can also rewrite the hashes. Keep that folder writable for the people
who train only.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import lungkit
from lungkit import config, files
from lungkit.errors import LungkitError
from lungkit.models import card_text
from lungkit.models.card import SCHEMA, FileRecord, ModelCard, Outside
from lungkit.models.rule import DecisionRule
from lungkit.models.schema import Malformed, checked

CARD, README, SUMS, POINTER = "card.json", "README.md", "SHA256SUMS", "active.json"


class ModelMissing(LungkitError):
    """No such model or version; the message lists what there is."""


class ModelDamaged(LungkitError):
    """A file of a version is not the one that was registered; the message names it."""


@dataclass(frozen=True)
class Version:
    """One registered version; the hashes of its files are not checked until `verify`."""

    model: str
    version: str  # "v1", "v2", …
    folder: Path
    card: ModelCard

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def rule(self) -> DecisionRule:
        """How its probabilities become an answer."""
        return self.card.rule


# --- reading


def models() -> list[str]:
    """Names of all models with at least one version, sorted."""
    root = config.artifacts_dir()
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(f.name for f in folders if _is_model_name(f.name) and _numbers(f))


def versions(model: str) -> list[str]:
    """Versions of a model, oldest first: ["v1", "v2", …, "v10"]; ModelMissing where there are none."""
    numbers = _numbers(_model_folder(model))
    if not numbers:
        raise ModelMissing(f"no model '{model}'; there are: {', '.join(models()) or 'none yet'}")
    return [f"v{number}" for number in numbers]


def find(ref: str) -> Version:
    """The version that "NAME@v2" names, or the active one for "NAME". Hashes are not checked: see `verify`."""
    model, at, version = ref.partition("@")
    return _read(model, version) if at else active(model)


def usual_name(data: str) -> str:
    """The name of the model that notebook 03 trains on the data set of this name: plain letters, 100 at most."""
    return f"{plain_name(data)}-cnn".lstrip("-")


def plain_name(text: str) -> str:
    """A text in letters that a model's name may have, 96 at most."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("._-")[:96]


def for_notebook(ref: str, data: str) -> Version:
    """The version that `ref` names or, where it is empty, the active one that notebook 03 trained on this data set.

    data: the data set's name. ModelMissing says to run notebook 03, or which other model to name.
    """
    usual = usual_name(data)
    if ref or usual in models():
        return find(ref or usual)
    others = {version.model: version.card.data.name.split("-")[0] for version in in_use()}
    alike = [f"model_name='{name}'" for name, kind in others.items() if kind == data.split("-")[0]]
    named = f", or set {' or '.join(alike)}" if alike else ""
    if others and not alike:
        named = f", or name another model in model_name: {', '.join(others)}"
    raise ModelMissing(f"no model was trained on {data} yet: run notebook 03 first (`lungkit run 03`){named}")


def active(model: str) -> Version:
    """The version in use; ModelMissing where none has been promoted."""
    there_are = versions(model)
    in_use = active_name(model)
    if in_use is None:
        raise ModelMissing(f"{model} has no active version; promote one of: {', '.join(there_are)}")
    return _read(model, in_use)


def in_use() -> list[Version]:
    """The active version of each model that has one whose card can be read, sorted by name."""
    there_are = []
    for model in models():
        with suppress(ModelMissing, ModelDamaged):
            there_are.append(active(model))
    return there_are


def size(version: Version) -> int:
    """Bytes of all files of a version."""
    return sum(file.stat().st_size for file in version.folder.rglob("*") if file.is_file())


def active_name(model: str) -> str | None:
    """Which version is in use, its card unread; None where none has been promoted."""
    return _pointer(model)["version"]


def verify(version: Version) -> None:
    """Check every file of a version against its hashes; ModelDamaged names the first that is not as registered.

    Changed, missing and added files are refused, and so is a SHA256SUMS that is not the one that was promoted.
    """

    def refuse(file: str, reason: str) -> NoReturn:
        raise ModelDamaged(
            f"{version}: {file} {reason}. Restore the folder {version.folder} from a copy, or promote another version"
        )

    sums = version.folder / SUMS
    if not sums.is_file():
        refuse(SUMS, "is missing")
    promoted = _pointer(version.model)["sums"].get(version.version)
    if promoted is not None and files.sha256(sums) != promoted:
        refuse(SUMS, "is not the one that was promoted")
    registered = _parse_sums(version)
    present = set(_files(version.folder)) - {SUMS}
    for file in sorted(registered.keys() | present):
        if file not in present:
            refuse(file, "is missing")
        if file not in registered:
            refuse(file, "was not registered with this version")
        if files.sha256(version.folder / file) != registered[file]:
            refuse(file, "was changed after it was registered")


def fingerprint(version: Version) -> str:
    """The SHA-256 of its SHA256SUMS: the same for the same files, in whatever registry; ModelDamaged as in `verify`."""
    verify(version)
    return files.sha256(version.folder / SUMS)


# --- writing


def add(model: str, card: ModelCard, write: Callable[[Path], None], promote: bool = True) -> Version:
    """Register a new version and, unless told otherwise, make it the active one.

    model: lower-case letters, digits, ".", "_" and "-".
    card: the registry sets its model, version, created, lungkit and files.
    write: called with an empty folder, writes the model's files into it. If it raises, nothing is registered.
    """
    _check_json(card)
    folder = _model_folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    with files.draft_folder(folder, "staging") as staging:
        write(staging)
        if taken := {CARD, README, SUMS} & set(_files(staging)):
            raise LungkitError(f"{', '.join(sorted(taken))}: written by the registry itself; choose another file name")
        contents = {
            name: FileRecord(sha256=files.sha256(staging / name), bytes=(staging / name).stat().st_size)
            for name in _files(staging)
        }
        with files.locked(folder / ".lock"):
            version = f"v{_next_number(model)}"
            created, by = datetime.now(UTC).isoformat(timespec="seconds"), lungkit.__version__
            _seal(staging, replace(card, model=model, version=version, created=created, lungkit=by, files=contents))
            files.put(staging, folder / version)
    return _activate(model, version) if promote else _read(model, version)


def _check_json(card: ModelCard) -> None:
    for key, value in card.to_dict().items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise LungkitError(f"the model card's '{key}' cannot be written as JSON: {error}") from None


def record_outside(version: Version, measured: Outside) -> Version:
    """Keep what was measured on a source that a version has not seen, in place of an earlier measurement there.

    The version itself, its card and its hashes stay as they were registered.
    """
    path = _outside_file(version.folder)
    with files.locked(version.folder.parent / ".lock"):
        others = [one for one in _outside(path, str(version)) if one.source != measured.source]
        kept = sorted([*others, measured], key=lambda one: one.source)
        content = {"schema": SCHEMA, "outside": [one.to_dict() for one in kept]}
        files.replace(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", durable=True)
    return _read(version.model, version.version)


@contextmanager
def registering(model: str) -> Iterator[None]:
    """Keeps other registrations of this model waiting: the active version cannot change within the block."""
    folder = _model_folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / ".registering"):
        yield


def promote(model: str, version: str) -> Version:
    """Make a version the active one, after verifying it."""
    return _activate(model, version)


def rollback(model: str) -> Version:
    """Make the version that was active before the present one active again, after verifying it.

    Each further call goes one step further back; ModelMissing where there is nothing to go back to.
    """
    versions(model)
    with files.locked(_model_folder(model) / ".lock"):
        pointer = _pointer(model)
        if not pointer["history"]:
            raise ModelMissing(
                f"{model}: no version was active before {pointer['version'] or 'now'}, nothing to go back to"
            )
        *history, previous = pointer["history"]
        version = _read(model, previous)
        verify(version)
        _point(model, pointer | {"version": previous, "history": history})
    return version


def _activate(model: str, name: str) -> Version:
    version = _read(model, name)
    with files.locked(version.folder.parent / ".lock"):
        verify(version)
        pointer = _pointer(model)
        if pointer["version"] != name:
            before = [pointer["version"]] if pointer["version"] else []
            sums = pointer["sums"] | {name: files.sha256(version.folder / SUMS)}
            _point(model, {"version": name, "history": pointer["history"] + before, "sums": sums})
    return version


# --- names and what lies on disk


def _is_model_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", name) is not None


def _is_version_name(name: str) -> bool:
    return re.fullmatch(r"v[1-9][0-9]*", name) is not None


def _model_folder(model: str) -> Path:
    if not _is_model_name(model):
        raise LungkitError(
            f"'{model}' cannot name a model; accepted are up to 100 lower-case letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return config.artifacts_dir() / model


def _numbers(folder: Path) -> list[int]:
    names = (f.name for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else ()
    return sorted(int(name[1:]) for name in names if _is_version_name(name))


def _next_number(model: str) -> int:
    # A number that was promoted once is never given again, even if its folder was deleted.
    used = _numbers(_model_folder(model)) + [int(name[1:]) for name in _pointer(model)["sums"]]
    return max(used, default=0) + 1


def _read(model: str, version: str) -> Version:
    there_are = versions(model)
    if version not in there_are:
        raise ModelMissing(f"{model} has no version '{version}'; there are: {', '.join(there_are)}")
    folder = _model_folder(model) / version
    values = _read_json(folder / CARD, f"{model}@{version}")
    try:
        card = ModelCard.from_dict(values)
        later = _outside(_outside_file(folder), f"{model}@{version}")
        together = (*(card.outside or ()), *later)
        return Version(model, version, folder, replace(card, outside=together or None))
    except Malformed as error:
        raise ModelDamaged(f"{model}@{version}: {folder / CARD}: {error}. Restore the folder from a copy") from None


def _outside_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.outside.json")


def _outside(path: Path, whose: str) -> tuple[Outside, ...]:
    """What a version's file of measurements elsewhere contains; empty where there is none."""
    if not path.exists():
        return ()
    values = _read_json(path, whose)
    try:
        if checked(values.get("schema", 0), int, "schema") > SCHEMA:
            raise Malformed(f"'schema' is {values['schema']}; this lungkit reads up to {SCHEMA}: install a newer one")
        return checked(values.get("outside"), tuple[Outside, ...], "outside")
    except Malformed as error:
        raise ModelDamaged(f"{whose}: {path}: {error}. Restore the file from a copy, or remove it") from None


def _read_json(path: Path, whose: str) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelDamaged(f"{whose}: {path.name} is missing from {path.parent}; restore it from a copy") from None
    except ValueError as error:
        raise ModelDamaged(f"{whose}: {path.name} is not JSON ({error}); restore it from a copy") from None
    if not isinstance(content, dict):
        raise ModelDamaged(f"{whose}: {path.name} is not a JSON object; restore it from a copy")
    return content


def _pointer(model: str) -> dict:
    """The active pointer; before the first promotion one that points nowhere."""
    path = _model_folder(model) / POINTER
    empty: dict = {"version": None, "history": [], "sums": {}}
    if not path.exists():
        return empty
    pointer = _read_json(path, model)
    kinds = {"version": str, "history": list, "sums": dict}
    well_formed = {key: type(value) for key, value in pointer.items()} == kinds
    if not well_formed or not all(map(_is_version_name, [pointer["version"], *pointer["history"], *pointer["sums"]])):
        raise ModelDamaged(f"{model}: {POINTER} does not hold version, history and sums; restore it from a copy")
    return pointer


def _files(folder: Path) -> list[str]:
    """Every file below a folder, as relative POSIX paths, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _parse_sums(version: Version) -> dict[str, str]:
    registered = {}
    for line in (version.folder / SUMS).read_text("utf-8", errors="replace").removesuffix("\n").split("\n"):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not match:
            raise ModelDamaged(f"{version}: {SUMS} has a line that is not a hash and a file name: {line[:80]!r}")
        registered[match[2]] = match[1]
    return registered


# --- writes that a kill cannot leave half done


def _seal(staging: Path, card: ModelCard) -> None:
    """Write the card, its README and the hashes."""
    (staging / CARD).write_text(json.dumps(card.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    (staging / README).write_text(card_text.markdown(card), "utf-8")
    sums = {name: entry.sha256 for name, entry in card.files.items()}
    sums |= {name: files.sha256(staging / name) for name in (CARD, README)}
    (staging / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), "utf-8")


def _point(model: str, pointer: dict) -> None:
    files.replace(_model_folder(model) / POINTER, json.dumps(pointer, indent=2) + "\n", durable=True)
