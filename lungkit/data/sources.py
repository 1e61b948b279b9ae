"""What a data set can be made from, and what it states of its images before any of them is opened.

Sources: the phantom, PneumoniaMNIST, a folder with labels.csv (read by `labels`), a public CT set as it is published
(`ct_sets`), a folder per class (`classfolders`), a MedMNIST .npz. Source files are never changed; what is made from
them lies in the data folder of lungkit.config.
"""

import json
import re
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as Picture

from lungkit import config, files, progress
from lungkit.data import classfolders, ct_sets, folders, labels, phantom, splits
from lungkit.data.notes import ColumnMissing, DatasetError, Note, note, spelling_notes, survey_notes

COLUMNS = [
    "file",  # POSIX path below the data set's root
    "label",
    "patient_id",
    "split",  # train, val, test; set_aside, refused, excluded (note says why); before splitting, as published or empty
    "sha256",  # of the file's bytes
    "source",  # the hospital or collection that the image comes from; never empty
    "width",  # pixels; 0 where unreadable
    "height",
    "modality",  # DICOM modality or as labels.csv says; empty where unknown
    "mask",  # POSIX path of a mask of the finding, or empty
    "note",
]
_NORMAL = re.compile(r"normal|healthy|no[ _-]?finding|non.*|no_?tumou?r|no_.*", re.IGNORECASE)
_MEDMNIST_CLASSES = {"pneumoniamnist": ("normal", "pneumonia")}


@dataclass(frozen=True)
class Listing:
    """What a source states of its images before any of them is opened."""

    name: str
    root: Path
    rows: pd.DataFrame  # COLUMNS, sorted by file; sha256, width, height and note not yet known
    label_column: str = "label"
    order: tuple[str, ...] | None = None  # of the classes, if the source states one
    synthetic: bool = False
    notes: tuple[Note, ...] = ()
    classes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        labels = set(self.rows["label"])
        in_order = [name for name in self.order or () if name in labels]
        rest = sorted(labels - set(in_order), key=lambda name: (not _NORMAL.fullmatch(name), name.lower(), name))
        object.__setattr__(self, "classes", (*in_order, *rest))


def read(source: str | Path, label_column: str | None, limit: int | None, seed: int) -> Listing:
    if limit is not None and limit < 1:
        raise DatasetError(f"limit is {limit}; accepted: 1 or more images, or none for all")
    if source == "phantom":
        slices = limit or 1500
        folder = phantom_folder(slices, seed)
        return _folder(phantom.make_dataset(folder, n_slices=slices, seed=seed), label_column)
    if source == "pneumoniamnist":
        path = config.data_dir() / "pneumoniamnist" / "pneumoniamnist.npz"
        if not path.is_file():
            raise DatasetError(f"{path} is not there: run `lungkit data fetch pneumoniamnist`, or give a path")
        return _npz(path, "pneumoniamnist", label_column)

    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _npz(path, path.stem, label_column)
    if not path.is_dir():
        raise DatasetError(
            f"no data set '{source}'; accepted: phantom, pneumoniamnist, a folder with labels.csv, a folder per class, "
            "a MedMNIST .npz"
        )
    return _folder(path.resolve(), label_column)


def choose(
    source: str | Path, label_column: str | None, limit: int | None, seed: int, max_images: int | None = None
) -> Listing:
    """The source's images within the limits, each with its sha256; an image of an unknown patient is its own patient.

    limit: the most images, as whole patients. max_images: the most, as fewer images of each patient.
    """
    listing = read(source, label_column, limit, seed)
    if max_images and len(listing.rows) > max_images:
        listing = _thinned(listing, max_images)
    rows = listing.rows
    hashes = list(progress.parallel(files.sha256, [listing.root / file for file in rows["file"]]))
    own = "image-" + pd.Series(hashes, index=rows.index).str[:16]
    rows = rows.assign(sha256=hashes, patient_id=rows["patient_id"].where(rows["patient_id"] != "", own))
    if limit is not None and source != "phantom":  # the phantom was made with that many slices
        kept = _limited(rows, limit, seed)
        beyond = sorted(set(rows["file"]) - set(kept["file"]))
        meaning = f"At most {limit:,} images were asked for, taken as whole patients."
        more = note("images beyond the limit", "info", beyond, meaning)
        return replace(listing, rows=kept, notes=(*listing.notes, *more))
    return replace(listing, rows=rows)


def _thinned(listing: Listing, most: int) -> Listing:
    """At most so many images, but one of each patient: as many of each, evenly spaced in the order of their files."""
    rows = listing.rows
    patients = rows["patient_id"].where(rows["patient_id"] != "", rows["file"])
    sizes = patients.value_counts().to_numpy()
    each = max((n for n in range(1, sizes.max() + 1) if np.minimum(sizes, n).sum() <= most), default=1)
    size, place = patients.map(patients.value_counts()), patients.groupby(patients).cumcount()
    kept = (size <= each) | ((place + 1) * each // size > place * each // size)
    meaning = f"Their neighbours show almost the same: {each} evenly spaced images of each patient are used."
    more = note("images between others of a patient", "info", rows["file"][~kept], meaning)
    return replace(listing, rows=rows[kept].reset_index(drop=True), notes=(*listing.notes, *more))


def _limited(rows: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """Whole patients in reproducible random order: from each (split, source, class) its share of the limit, at least
    one patient.
    """
    if len(rows) <= limit:
        return rows
    rarity = rows["label"].map(rows["label"].value_counts().rank(method="first"))
    by_patient = rows.assign(rarity=rarity).groupby("patient_id")  # a patient with two labels counts for the rarer
    facts = {name: (name, "min") for name in ("split", "source", "rarity")}
    patients = by_patient.agg(size=("file", "size"), **facts)
    patients = patients.sort_index(key=lambda names: names.map(lambda name: splits.chance(name, seed)))
    kept = []
    for _, stratum in patients.groupby(list(facts)):
        quota = int(limit * stratum["size"].sum() / len(rows))
        taken = 0
        for patient, size in stratum["size"].items():
            if taken == 0 or taken + size <= quota:
                kept.append(patient)
                taken += size
    return rows[rows["patient_id"].isin(kept)].reset_index(drop=True)


# --- folders


def _folder(path: Path, label_column: str | None) -> Listing:
    """A folder's data set: its labels.csv, a published layout, its only .npz, its only folder or its class folders."""
    if not folders.is_text(path):
        raise DatasetError(f"{folders.one_line(path)}: the folder's name is not in UTF-8; rename it")
    if table := next((file for file in sorted(path.iterdir()) if file.name.casefold() == "labels.csv"), None):
        return _labels_csv(table, label_column)
    contents = folders.survey(path)
    if layout := ct_sets.read(path, contents):
        _refuse_label_column(path, label_column)
        return _of_layout(path, layout)
    archives = sorted(path.glob("*.npz"))
    if len(archives) == 1 and not contents.images:
        return _npz(archives[0], path.name, label_column)
    if below := classfolders.inner(path, contents):
        listing = _folder(below, label_column)
        taken = note(
            "folder that was taken", "info", [below.name], "It is the only one there, and contains the data set."
        )
        return replace(listing, notes=(*taken, *listing.notes, *survey_notes(_outside(contents, below), path)))
    _refuse_label_column(path, label_column)
    read = classfolders.read(path, contents)
    named = "classes" in _about(path)  # by whoever made the folder
    return _of_layout(path, ct_sets.Layout(read.rows, read.notes, ()) if named else ct_sets.common_names(read))


def _outside(contents: folders.Survey, below: Path) -> folders.Survey:
    """What a survey found outside one of its folders."""
    kept = {kind: [path for path in paths if not path.is_relative_to(below)] for kind, paths in vars(contents).items()}
    return folders.Survey(**kept)


def phantom_folder(slices: int, seed: int) -> Path:
    """The folder of a phantom: another seed draws other patients, and a phantom is never overwritten."""
    return config.data_dir() / (f"phantom-{slices}" if seed == 7 else f"phantom-{slices}-seed{seed}")


def _refuse_label_column(path: Path, label_column: str | None) -> None:
    if label_column not in (None, "label"):
        raise ColumnMissing(f"{path} has no labels.csv, so there is no column '{label_column}' to take as the label")


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with every column of COLUMNS, sorted by file."""
    rows = rows.reindex(columns=COLUMNS, fill_value="").assign(width=0, height=0, sha256="", note="")
    return rows.sort_values(["file", "split"], ignore_index=True)


def _labels_csv(path: Path, label_column: str | None) -> Listing:
    root, column = path.parent, label_column or "label"
    table, notes = labels.read(path, column)
    labels.refuse_rows(table, table["file"] == "", "no file")
    if column == "label":
        labels.refuse_rows(table, table[column] == "", f"no {column}")
    listed, table, unlabelled = table, table[table[column] != ""], table.index[table[column] == ""]
    if table.empty:
        raise ColumnMissing(f"{path} has no value in column '{column}'; choose a column that labels images")
    lines = [f"line {line}" for line in unlabelled]
    notes += note(f"rows without {column}", "warning", lines, "They have no label there, so they were left out.")
    blank = pd.Series("", index=table.index)
    group, patient = table.get("group_id", blank), table.get("patient_id", blank)
    published, source = table.get("split", blank), table.get("source", blank)
    files = labels.Files(root)
    rows = table.drop(columns="label", errors="ignore").assign(
        file=_below(files, table["file"], "file"),
        mask=_below(files, table.get("mask", blank), "mask"),
        label=table[column],
        patient_id=group.where(group != "", patient),
        split=published.map(lambda name: splits.part_named(name) or name),
        source=source.where(source != "", root.name),
    )
    # A file may be listed twice. Rows that differ in split are kept: splitting then finds the file on two sides.
    again = rows.duplicated(["file", "label", "patient_id", "split"])
    meaning = "Their rows are the same, and count once."
    notes += note("rows that name a file again", "info", dict.fromkeys(rows["file"][again]), meaning)
    rows = rows[~again]
    contradicted = rows.groupby("file")[["label", "patient_id"]].transform("nunique").gt(1).any(axis=1)
    labels.refuse_rows(rows, contradicted, "a file with two labels or patients", rows["file"])
    about = _about(root)
    return Listing(
        root.name if column == "label" else f"{root.name}-{column}",
        root,
        _table(rows),
        column,
        tuple(about["classes"]) if column == "label" and "classes" in about else None,
        bool(about.get("synthetic", False)),
        (*notes, *spelling_notes(rows["label"]), *_not_listed(root, listed, rows)),
    )


def _not_listed(root: Path, listed: pd.DataFrame, rows: pd.DataFrame) -> list[Note]:
    """Notes on images in the folder that no cell of labels.csv names, and on what else could contain images."""
    contents = folders.survey(root)
    used = {*rows["file"], *rows["mask"]}
    rest = [name for name in (folders.below(path, root) for path in contents.images) if name not in used]
    mentioned = set(listed.to_numpy().ravel()) if rest else set()
    meaning = "They are in the folder, but not in labels.csv, so they were passed over."
    return [
        *note(
            "images that labels.csv does not name", "info", (name for name in rest if name not in mentioned), meaning
        ),
        *survey_notes(replace(contents, passed_over=[]), root),
    ]


def _of_layout(root: Path, layout: ct_sets.Layout) -> Listing:
    """The data set of a layout, with its classes in their own order where it has all of them."""
    about, rows = _about(root), pd.DataFrame(layout.rows).reindex(columns=COLUMNS, fill_value="")
    order = layout.order if {*rows["label"]} == {*layout.order} else None
    return Listing(
        root.name,
        root,
        _table(rows.assign(source=rows["source"].where(rows["source"] != "", root.name))),
        order=tuple(about["classes"]) if "classes" in about else order,
        synthetic=bool(about.get("synthetic")),
        notes=tuple(layout.notes),
    )


def _about(root: Path) -> dict[str, Any]:
    """dataset.json of a source folder (classes in order, synthetic), or {}."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text("utf-8"))
        if not isinstance(about, dict) or not all(isinstance(name, str) for name in about.get("classes", [])):
            raise ValueError("it must be an object whose classes are a list of names")
    except ValueError as error:
        raise DatasetError(f"{path} cannot be used: {error}") from None
    return about


def _below(files: labels.Files, names: pd.Series, column: str) -> pd.Series:
    """The paths in one spelling. Raises DatasetError if one leaves the folder or is not there."""
    table = names.to_frame()
    labels.refuse_rows(table, names.map(labels.escapes), f"a {column} outside the data set's folder", names)
    paths = names.map(lambda name: files.find(name) if name else "")
    gone = paths.isna()
    if gone.any() and (there := files.hint(names[gone].iloc[0])):
        more = f". There is {folders.one_line(there)}: give each path as it is below the folder of labels.csv"
        labels.refuse_rows(table, gone, f"a {column} that is not there", names, more)
    labels.refuse_rows(table, gone, f"a {column} that is not there", names)
    return paths


# MedMNIST -------------------------------------------------------------------------------------------------------


def _npz(path: Path, name: str, label_column: str | None) -> Listing:
    """The images of a MedMNIST file, written once as PNG into the data folder; the .npz is only read."""
    _refuse_label_column(path, label_column)
    digest = files.sha256(path)
    root = config.data_dir() / name / f"images-{digest[:12]}"
    order_file = root / "classes.json"
    if not order_file.is_file():
        with files.new_folder(root) as draft:
            _write_pngs(path, draft)
    rows = [
        {"file": file.relative_to(root).as_posix(), "label": file.parent.name, "split": part, "source": name}
        for part in splits.PARTS
        for file in (root / part).glob("*/*.png")
    ]
    order = tuple(json.loads(order_file.read_text("utf-8")))
    return Listing(name, root, _table(pd.DataFrame(rows)), order=order)


def _write_pngs(path: Path, folder: Path) -> None:
    """PART/CLASS/NUMBER.png for each image, NUMBER its place in the part's array, and classes.json."""
    arrays = _medmnist_arrays(path)
    top = max(int(labels.max()) for _, labels in arrays.values())
    known = next((names for stem, names in _MEDMNIST_CLASSES.items() if path.stem.startswith(stem)), None)
    classes = known if known and top < len(known) else tuple(f"class{number}" for number in range(top + 1))
    used = sorted({int(number) for _, labels in arrays.values() for number in np.unique(labels)})
    with progress.bar(
        total=sum(len(pixels) for pixels, _ in arrays.values()), label=f"unpacking {path.name}", unit="image"
    ) as shown:
        for part, (pixels, labels) in arrays.items():
            for number in used:
                (folder / part / classes[number]).mkdir(parents=True)
            for index, (picture, number) in enumerate(zip(pixels, labels, strict=True)):
                Picture.fromarray(picture).save(folder / part / classes[number] / f"{index:06d}.png")
                shown.update()
    (folder / "classes.json").write_text(json.dumps([classes[number] for number in used]), "utf-8")


def _medmnist_arrays(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{part: (images uint8 (n, h, w) or (n, h, w, 3), labels int (n,))}; nothing pickled is loaded."""
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for part in splits.PARTS:
                pixels, labels = archive[f"{part}_images"], archive[f"{part}_labels"]
                if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] == 3)):
                    raise DatasetError(
                        f"{path}: {part}_images is {pixels.dtype} {pixels.shape}; accepted: uint8 (n, h, w) or "
                        "(n, h, w, 3)"
                    )
                if labels.dtype.kind not in "iu" or labels.size != len(pixels) or labels.size == 0 or labels.min() < 0:
                    raise DatasetError(
                        f"{path}: {part}_labels is {labels.dtype} {labels.shape}; accepted: one whole number from 0 "
                        f"for each of the {len(pixels)} images"
                    )
                arrays[part] = pixels, labels.reshape(-1).astype(int)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is not a MedMNIST file with train, val and test: {error}") from None
    return arrays
