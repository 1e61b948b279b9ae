"""A data set: a manifest (one row per image) and its class names, made once from a source and kept.

What a source may be is in `sources`. Source files are never changed; the manifest is kept in the data folder of
lungkit.config.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lungkit
from lungkit import config, files, progress
from lungkit.data import decisions as decided
from lungkit.data import images, preprocess, sources, splits
from lungkit.data.notes import DatasetError, Note, alike, note
from lungkit.data.sources import COLUMNS
from lungkit.progress import say_once

SIDES = [*splits.PARTS, splits.SET_ASIDE, splits.REFUSED, splits.EXCLUDED]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels and patients.

    name: folder name or file stem, with "-column" where another column is the label.
    classes: the normal-like class first, then alphabetical, or as dataset.json in the folder says.
    manifest: DataFrame with COLUMNS, sorted by file; no missing values, empty strings instead.
    root: the folder that `file` and `mask` are relative to.
    synthetic: made by the phantom, not taken from people.
    notes: what else the source contains, and what is odd in it.
    recipe: what load_split made the manifest from.

    For a method's `split`, None means every image except the refused and the excluded ones.
    """

    name: str
    classes: tuple[str, ...]
    manifest: pd.DataFrame
    root: Path
    label_column: str = "label"
    synthetic: bool = False
    notes: tuple[Note, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)

    def part(self, split: str | None = None) -> pd.DataFrame:
        """The manifest's rows of a split."""
        if split is None:
            return self.manifest[~self.manifest["split"].isin([splits.REFUSED, splits.EXCLUDED])]
        if split not in SIDES:
            raise DatasetError(f"no split '{split}'; accepted: {', '.join(SIDES)}")
        return self.manifest[self.manifest["split"] == split]

    def files(self, split: str | None = None) -> list[Path]:
        """The image files of a split, in the manifest's order."""
        return [self.root / file for file in self.part(split)["file"]]

    def labels(self, split: str | None = None) -> np.ndarray:
        """Class numbers (positions in `classes`), int64 (n,), in the order of `files`."""
        return self.part(split)["label"].map(self.classes.index).to_numpy(np.int64)

    def patients(self, split: str | None = None) -> np.ndarray:
        """Patient ids, str (n,), in the order of `files`."""
        return self.part(split)["patient_id"].to_numpy(str)

    def sources(self, split: str | None = None) -> np.ndarray:
        """The source of each image (hospital or collection), str (n,), in the order of `files`."""
        return self.part(split)["source"].to_numpy(str)

    @property
    def source_names(self) -> list[str]:
        """Where the images come from, sorted."""
        return sorted(set(self.manifest["source"]))

    def input_size(self, at_most: int) -> tuple[int, int]:
        """Height and width of a model's square input: `at_most` pixels, but never more than the largest image."""
        side = min(at_most, int(self.manifest[["width", "height"]].to_numpy().max()))
        return side, side

    def masks(self, split: str | None, size: tuple[int, int]) -> np.ndarray:
        """Lesion masks, bool (n, height, width), scaled as `preprocess.prepare` does; empty without a mask."""
        spec = preprocess.Preprocessing(size=size)
        fitted = np.zeros((len(self.part(split)), *size), bool)
        for i, mask in enumerate(self.part(split)["mask"]):
            if mask:
                fitted[i] = preprocess.prepare(images.read(self.root / mask), spec).tensor[..., 0] > 0.5
        return fitted

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the classes and of each row's file, label, patient, split and content.

        Also of its source, where there are several.
        """
        return _fingerprint(self.classes, self.manifest)

    def summary(self) -> pd.DataFrame:
        """Split by class: columns (class or "all", "images" or "patients"); last row "all"."""
        rows = {side: self.manifest[self.manifest["split"] == side] for side in SIDES}
        rows = {side: part for side, part in rows.items() if len(part) or side in splits.PARTS}
        return pd.DataFrame({side: self._counts(part) for side, part in (rows | {"all": self.manifest}).items()}).T

    def by_source(self) -> pd.DataFrame:
        """Source by class: columns as in `summary`; last row "all"."""
        rows = {name: self.manifest[self.manifest["source"] == name] for name in self.source_names}
        return pd.DataFrame({name: self._counts(part) for name, part in (rows | {"all": self.manifest}).items()}).T

    def _counts(self, rows: pd.DataFrame) -> pd.Series:
        by_class = {name: rows[rows["label"] == name] for name in self.classes} | {"all": rows}
        return pd.Series(
            {
                (name, what): count
                for name, part in by_class.items()
                for what, count in (("images", len(part)), ("patients", part["patient_id"].nunique()))
            }
        )

    def save(self, folder: str | Path) -> None:
        """Write manifest.csv, then dataset.json with its hash: `open` notices if the process was killed in between."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = self.manifest[COLUMNS].to_csv(index=False, lineterminator="\n").encode()
        record = {
            "name": self.name,
            "classes": list(self.classes),
            "root": str(self.root),
            "label_column": self.label_column,
            "synthetic": self.synthetic,
            "fingerprint": self.fingerprint,
            "manifest_sha256": files.sha256(table),
            "notes": [note.to_dict() for note in self.notes],
            "recipe": self.recipe,
        }
        files.replace(folder / "manifest.csv", table)
        files.replace(folder / "dataset.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def open(cls, folder: str | Path) -> "Dataset":
        """The data set saved in a folder. Raises DatasetError if it is missing, damaged or half written."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "dataset.json").read_text("utf-8"))
            table = (folder / "manifest.csv").read_bytes()
            if files.sha256(table) != record["manifest_sha256"]:
                raise DatasetError(f"{folder}: manifest.csv is not the one dataset.json was written for; prepare again")
            manifest = pd.read_csv(io.BytesIO(table), dtype=str, keep_default_na=False)
            return cls(
                record["name"],
                tuple(record["classes"]),
                manifest.astype({"width": int, "height": int}),
                Path(record["root"]),
                record["label_column"],
                record["synthetic"],
                tuple(map(Note.from_dict, record.get("notes", []))),
                record["recipe"],
            )
        except FileNotFoundError as error:
            raise DatasetError(f"{folder} holds no saved data set: {Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{folder} holds a damaged data set ({error}); prepare it again") from None


Merged = Mapping[str, Sequence[str]] | None  # class to the labels that become one in it


def load(
    source: str | Path,
    *,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 7,
    max_images: int | None = None,
    merged: Merged = None,
) -> Dataset:
    """The data set of a source, its split as published (train, val, test) or empty; no pixel is decoded.

    source: "phantom" (made at the first call), "pneumoniamnist" (fetched before), a folder with labels.csv, a
        folder per class, a MedMNIST .npz or a folder with one.
    label_column: the column of labels.csv with the class; "label" by default.
    limit: the most images, as whole patients in the proportions of classes and published splits (at least one
        patient of each); for the phantom, the number of slices.
    max_images: the most images, as fewer images of each patient, evenly spaced.
    merged: class to the labels that become one in it, for labels with too few images; a note says how many.
    Raises DatasetError.
    """
    return _with_headers(_for_training(_merged(sources.choose(source, label_column, limit, seed, max_images), merged)))


def as_given(
    source: str | Path,
    *,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 7,
    merged: Merged = None,
) -> Dataset:
    """Like load, to score a model: one class is enough, and classes that dataset.json names may be missing."""
    return _with_headers(_merged(sources.choose(source, label_column, limit, seed), merged))


def name_of(
    source: str | Path,
    *,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 7,
    decisions: str | Path | None = None,
) -> str:
    """The name of the data set that `load` or `load_split` returns; no phantom is made, and no image is opened.

    decisions: does not change the name; here so that a recipe of load_split can be given as a whole.
    """
    if source == "phantom":
        return sources.phantom_folder(limit or 1500, seed).name
    return sources.read(source, label_column, limit, seed).name


def load_split(
    source: str | Path,
    *,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 7,
    overlap: str = "refuse",
    fold: str | None = None,
    by: str = "patient",
    leave_out: str | None = None,
    max_images: int | None = None,
    merged: Merged = None,
    decisions: str | Path | None = None,
    quiet: bool = False,
    kept_as: Callable[[Dataset], preprocess.Preprocessing] | None = None,
) -> Dataset:
    """load, then read each image once (unreadable ones get split "refused"), then split by patient (splits.assign).

    overlap, fold, by: as in splits.assign. leave_out: a source whose images are not in the set (see source_named).
    merged: as in load.
    decisions: a CSV of lungkit.data.decisions, or the SHA-256 of one that was kept: images that a person excluded or
        relabelled. The split is that without them; they are applied to it.

    The result, without the decisions, is saved in manifests/<name> of the data folder. Later calls use it again as long
    as the source's content and the parameters stay the same. A process killed at any time leaves the saved one, or
    none.
    kept_as: how the images will be preprocessed, if that is known. This reading is then the only decoding, because the
        tensors are kept for preprocess.prepared.
    quiet: do not write on standard error what is left out or odd. A set whose notes have an error is refused.
    Raises DatasetError, decisions.DecisionsGone, splits.SplitError.
    """
    given = decided.find(decisions) if decisions else None
    chosen = sources.choose(source, label_column, limit, seed, max_images)
    listing = _for_training(_merged(_without(chosen, leave_out), merged))
    recipe: dict[str, Any] = {
        "source": _fingerprint(listing.classes, listing.rows),
        "label_column": label_column,
        "limit": limit,
        "seed": seed,
        "overlap": overlap,
        "fold": fold,
        "by": by,
        "lungkit": lungkit.__version__,
    }
    recipe |= {name: value for name, value in (("leave_out", leave_out), ("max_images", max_images)) if value}
    recipe |= {"merged": {name: list(labels) for name, labels in merged.items()}} if merged else {}
    if wrong := [str(note) for note in listing.notes if note.severity == "error"]:
        raise DatasetError(f"{listing.root}: {' '.join(wrong)}")
    for each in () if quiet else listing.notes:  # before anything can fail for a reason that they explain
        say_once(f"{listing.name}: {each}")
    folder = config.data_dir() / "manifests" / listing.name
    dataset = _saved(folder, recipe, listing)
    if not dataset:
        dataset = _with_headers(listing)
        manifest = splits.assign(_read_once(dataset, kept_as), seed=seed, overlap=overlap, fold=fold, by=by)
        if by == "patient":
            splits.refuse_leaks(manifest)
        dataset = replace(dataset, manifest=manifest, recipe=recipe)
        dataset.save(folder)
    for each in () if quiet else _not_used(dataset):
        say_once(f"{dataset.name}: {each}")
    return _after(dataset, given, quiet) if given else dataset


def _after(dataset: Dataset, given: decided.Decided, quiet: bool) -> Dataset:
    """The set after a person's decisions, with notes on what they change."""
    manifest, notes = decided.apply(dataset.manifest, dataset.classes, given)
    for each in () if quiet else notes:
        say_once(f"{dataset.name}: {each}")
    recipe = dataset.recipe | {"decisions": given.sha256}
    return replace(dataset, manifest=manifest, notes=(*dataset.notes, *notes), recipe=recipe)


def source_notes(source: str | Path, label_column: str | None = None) -> list[str]:
    """One line for each thing that a source leaves out, or that is odd in it; no image is read. Raises DatasetError."""
    return [str(each) for each in sources.read(source, label_column, None, 7).notes]


def _not_used(dataset: Dataset) -> list[Note]:
    """Notes on the images that were refused or set aside when the set was prepared."""
    unread = [f"{one['file']}: {one['reason']}" for one in refused(dataset)]
    aside = dataset.part(splits.SET_ASIDE)["file"]
    return [
        *note("images that cannot be read", "warning", unread, "They were left out."),
        *note("images set aside", "warning", aside, "Their patients are also in another part of the split."),
    ]


def refused(dataset: Dataset) -> list[dict[str, str]]:
    """File and reason of each image that could not be read when the set was prepared."""
    rows = dataset.part(splits.REFUSED)
    return [
        {"file": file, "reason": note.removeprefix(f"{dataset.root / file}: ")}
        for file, note in zip(rows["file"], rows["note"], strict=True)
    ]


def _saved(folder: Path, recipe: dict[str, Any], listing: sources.Listing) -> Dataset | None:
    """The saved data set if this recipe made it, from the same sources, with the present root and notes."""
    try:
        dataset = Dataset.open(folder)
    except DatasetError:
        return None
    if dataset.recipe != recipe or dataset.source_names != sorted(set(listing.rows["source"])):
        return None
    if (dataset.root, dataset.notes) != (listing.root, listing.notes):
        dataset = replace(dataset, root=listing.root, notes=listing.notes)
        dataset.save(folder)
    return dataset


# --- what preparing a set does


def source_named(names: Iterable[str], text: str) -> str:
    """The source that `text` names: the whole name or a part of it that only one has, whatever its case."""
    names = sorted(set(names))
    whole = [name for name in names if alike(name) == alike(text)]
    fitting = whole or [name for name in names if alike(text) in alike(name)]
    if len(fitting) != 1:
        why = "is in the names of several sources" if fitting else "is no source of these images"
        raise DatasetError(f"'{text}' {why}; there are: {'; '.join(fitting or names)}")
    return fitting[0]


def _without(listing: sources.Listing, source: str | None) -> sources.Listing:
    """The listing without the images of a source; its name says so."""
    if not source:
        return listing
    name = source_named(listing.rows["source"], source)
    rows = listing.rows[listing.rows["source"] != name].reset_index(drop=True)
    if rows.empty:
        raise DatasetError(f"{listing.root}: every image is of {name}; there is nothing without it")
    if lost := set(listing.rows["label"]) - set(rows["label"]):
        raise DatasetError(f"{listing.root}: without {name} there is no image of {', '.join(sorted(lost))}")
    return replace(listing, name=f"{listing.name}-without-{name.replace('/', '_')}", rows=rows)


def _merged(listing: sources.Listing, merged: Merged) -> sources.Listing:
    """The listing with labels that become one class, and a note that says so; nothing where it has none of them."""
    names = {alike(label): name for name, labels in (merged or {}).items() for label in labels}
    became = listing.rows["label"].map(lambda label: names.get(alike(label), label))
    counts = listing.rows["label"][became != listing.rows["label"]].value_counts().sort_index()
    if counts.empty:
        return listing
    each = ", ".join(f"{label} ({n:,}) as {names[alike(str(label))]}" for label, n in counts.items())
    order = listing.order and tuple(dict.fromkeys(names.get(alike(label), label) for label in listing.order))
    joined = Note("images of merged classes", "info", int(counts.sum()), f"One class: {each}.")
    rows = listing.rows.assign(label=became)
    return replace(listing, rows=rows, order=order, notes=(*listing.notes, joined))


def _for_training(listing: sources.Listing) -> sources.Listing:
    """The listing. Raises DatasetError if its classes are not those of dataset.json, or if there is only one."""
    classes, order = listing.classes, listing.order
    if order and set(classes) != set(order):
        raise DatasetError(
            f"{listing.root}: its classes should be {', '.join(order)}, but the labels found are "
            f"{', '.join(sorted(classes))}"
        )
    if len(classes) < 2:
        raise DatasetError(f"{listing.root}: every image is of class '{classes[0]}'; two classes or more are needed")
    return listing


def _with_headers(listing: sources.Listing) -> Dataset:
    """The data set with the size and modality that each file's header states."""
    rows = listing.rows
    headers = list(progress.parallel(_header, [listing.root / file for file in rows["file"]]))
    stated = pd.DataFrame(headers, columns=["width", "height", "modality", "note"], index=rows.index)
    modality = rows["modality"].where(rows["modality"] != "", stated["modality"])
    rows = rows.assign(width=stated["width"], height=stated["height"], modality=modality, note=stated["note"])
    facts = listing.label_column, listing.synthetic, listing.notes
    return Dataset(listing.name, listing.classes, rows[COLUMNS], listing.root, *facts)


def _read_once(dataset: Dataset, kept_as: Callable[[Dataset], preprocess.Preprocessing] | None) -> pd.DataFrame:
    """The manifest with split "refused", and the reason in note, where an image cannot be read."""
    label, paths = f"reading {dataset.name}", dataset.files()
    if kept_as:
        read = preprocess.prepared_or_refused(paths, kept_as(dataset), label=label)
        reasons = [str(one) if isinstance(one, images.ImageRefused) else "" for one in read]
    else:
        reasons = list(progress.parallel(_refusal, paths, label=label))
    manifest = dataset.manifest.assign(note=reasons)
    is_refused = manifest["note"] != ""
    manifest.loc[is_refused, "split"] = splits.REFUSED
    lost = set(dataset.classes) - set(manifest.loc[~is_refused, "label"])
    if lost:
        raise DatasetError(
            f"{dataset.root}: no image of {', '.join(sorted(lost))} can be read. The first refusal: "
            f"{manifest['note'][is_refused].iloc[0]}"
        )
    return manifest


def _header(path: Path) -> tuple[int, int, str, str]:
    """(width, height, modality, why it cannot be read or "")."""
    try:
        return (*images.probe(path), "")
    except images.ImageRefused as error:
        return 0, 0, "", str(error)


def _refusal(path: Path) -> str:
    """Why an image cannot be read, or ""."""
    try:
        images.read(path)
    except images.ImageRefused as error:
        return str(error)
    return ""


def _fingerprint(classes: Iterable[str], rows: pd.DataFrame) -> str:
    columns = ["file", "label", "patient_id", "split", "sha256", "mask"]
    if rows["source"].nunique() > 1:  # fingerprints from before sources counted stay valid for all other sets
        columns.append("source")
    content = rows[columns].sort_values(["file", "split"]).to_numpy().tolist()
    return files.sha256(json.dumps([list(classes), content]).encode())
