"""A data set: a manifest (one row per image) and its class names.

Sources: the phantom, PneumoniaMNIST, a folder with labels.csv (read by `labels`), a folder per class (`classfolders`),
a MedMNIST .npz. Raw data is never changed; what is made from it lies in the data folder of lungkit.config.
"""

import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as Picture

import lungkit
from lungkit import config, files, progress
from lungkit.data import classfolders, folders, images, labels, phantom, preprocess, splits
from lungkit.data.notes import ColumnMissing, DatasetError, Note, note, spelling_notes
from lungkit.progress import say_once

COLUMNS = [
    "file",  # POSIX path below the data set's root
    "label",
    "patient_id",
    "split",  # train, val, test; set_aside or refused (note says why); before splitting, as published or empty
    "sha256",  # of the file's bytes
    "source",  # where the image comes from
    "width",  # pixels; 0 where unreadable
    "height",
    "modality",  # DICOM modality or as labels.csv says; empty where unknown
    "mask",  # POSIX path of a mask of the finding, or empty
    "note",
]
SIDES = [*splits.PARTS, splits.SET_ASIDE, splits.REFUSED]

_NORMAL = re.compile(r"normal|healthy|no[ _-]?finding|non.*|no_?tumou?r|no_.*", re.IGNORECASE)
_MEDMNIST_CLASSES = {"pneumoniamnist": ("normal", "pneumonia")}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels and patients.

    name: folder name or file stem, with "-column" where another column is the label.
    classes: the normal-like class first, then alphabetical, or as dataset.json in the folder says.
    manifest: DataFrame with COLUMNS, sorted by file; no missing values, empty strings instead.
    root: the folder that `file` and `mask` are relative to.
    synthetic: made by the phantom, not taken from people.
    notes: what the source holds besides these images, and what is odd in it.

    Where a method takes `split`, None means every image but the refused ones.
    """

    name: str
    classes: tuple[str, ...]
    manifest: pd.DataFrame
    root: Path
    label_column: str = "label"
    synthetic: bool = False
    notes: tuple[Note, ...] = ()

    def part(self, split: str | None = None) -> pd.DataFrame:
        """The manifest's rows of a split."""
        if split is None:
            return self.manifest[self.manifest["split"] != splits.REFUSED]
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

    def input_size(self, at_most: int) -> tuple[int, int]:
        """Height and width of a square that suits a model: `at_most` pixels, but never more than the largest image."""
        side = min(at_most, int(self.manifest[["width", "height"]].to_numpy().max()))
        return side, side

    def masks(self, split: str | None, size: tuple[int, int]) -> np.ndarray:
        """Lesion masks, bool (n, height, width), fitted as `preprocess.prepare` fits the images; empty where none."""
        spec = preprocess.Preprocessing(size=size)
        fitted = np.zeros((len(self.part(split)), *size), bool)
        for i, mask in enumerate(self.part(split)["mask"]):
            if mask:
                fitted[i] = preprocess.prepare(images.read(self.root / mask), spec).tensor[..., 0] > 0.5
        return fitted

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the classes and of each row's file, label, patient, split and content."""
        return _fingerprint(self.classes, self.manifest)

    def summary(self) -> pd.DataFrame:
        """Split by class: columns (class or "all", "images" or "patients"); last row "all"."""
        rows = {side: self.manifest[self.manifest["split"] == side] for side in SIDES}
        rows = {side: part for side, part in rows.items() if len(part) or side in splits.PARTS}
        return pd.DataFrame({side: self._counts(part) for side, part in (rows | {"all": self.manifest}).items()}).T

    def _counts(self, rows: pd.DataFrame) -> pd.Series:
        by_class = {name: rows[rows["label"] == name] for name in self.classes} | {"all": rows}
        return pd.Series(
            {
                (name, what): count
                for name, part in by_class.items()
                for what, count in (("images", len(part)), ("patients", part["patient_id"].nunique()))
            }
        )

    def save(self, folder: str | Path, recipe: dict | None = None) -> None:
        """Writes manifest.csv, then dataset.json, which holds its hash: a kill in between is noticed by `open`.

        recipe: what the manifest was made from (see prepare), kept in dataset.json.
        """
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
            "recipe": recipe or {},
        }
        files.replace(folder / "manifest.csv", table)
        files.replace(folder / "dataset.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def open(cls, folder: str | Path) -> "Dataset":
        """The data set saved in a folder; DatasetError where it is missing, damaged or half written."""
        return cls._opened(Path(folder))[0]

    @classmethod
    def _opened(cls, folder: Path) -> tuple["Dataset", dict]:
        try:
            record = json.loads((folder / "dataset.json").read_text("utf-8"))
            table = (folder / "manifest.csv").read_bytes()
            if files.sha256(table) != record["manifest_sha256"]:
                raise DatasetError(f"{folder}: manifest.csv is not the one dataset.json was written for; prepare again")
            manifest = _text_table(folder / "manifest.csv").astype({"width": int, "height": int})
            dataset = cls(
                record["name"],
                tuple(record["classes"]),
                manifest,
                Path(record["root"]),
                record["label_column"],
                record["synthetic"],
                tuple(map(Note.from_dict, record.get("notes", []))),
            )
            return dataset, record["recipe"]
        except FileNotFoundError as error:
            raise DatasetError(f"{folder} holds no saved data set: {Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{folder} holds a damaged data set ({error}); prepare it again") from None


def load(source: str | Path, *, label_column: str | None = None, limit: int | None = None, seed: int = 7) -> Dataset:
    """The data set of a source, its split as published (train, val, test) or empty; no pixel is decoded.

    source: "phantom" (made at the first call), "pneumoniamnist" (fetched before), a folder with labels.csv, a
    folder per class, a MedMNIST .npz or a folder with one.
    label_column: the column of labels.csv that holds the class; "label" by default.
    limit: most images, as whole patients that keep the proportions of classes and published splits (at least one
    patient of each); for the phantom the number of slices made.
    Raises DatasetError.
    """
    return _with_headers(_for_training(_chosen(source, label_column, limit, seed)))


def as_given(
    source: str | Path, *, label_column: str | None = None, limit: int | None = None, seed: int = 7
) -> Dataset:
    """load, for a model to be scored on: one class is enough, and classes that dataset.json names may be missing."""
    return _with_headers(_chosen(source, label_column, limit, seed))


def name_of(source: str | Path, *, label_column: str | None = None, limit: int | None = None, seed: int = 7) -> str:
    """The name of the data set that `load` or `prepare` gives; no phantom is made, and no image is opened."""
    if source == "phantom":
        return _phantom_folder(limit or 1500, seed).name
    return _listing(source, label_column, limit, seed).name


def prepare(
    source: str | Path,
    *,
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 7,
    overlap: str = "refuse",
    fold: str | None = None,
    by: str = "patient",
    told: bool = True,
) -> Dataset:
    """load, then each image read once (the unreadable get split "refused"), then split by patient (splits.assign).

    overlap, fold, by: as in splits.assign.

    The result is saved in manifests/<name> of the data folder, and reused by later calls while the source's
    content and the parameters stay the same. A kill at any time leaves the saved one, or none.
    told: what is left out or odd is said on standard error, once. A set with an error among its notes is refused.
    Raises DatasetError, splits.SplitError.
    """
    listing = _for_training(_chosen(source, label_column, limit, seed))
    recipe = {
        "source": _fingerprint(listing.classes, listing.rows),
        "label_column": label_column,
        "limit": limit,
        "seed": seed,
        "overlap": overlap,
        "fold": fold,
        "by": by,
        "lungkit": lungkit.__version__,
    }
    if wrong := [str(note) for note in listing.notes if note.severity == "error"]:
        raise DatasetError(f"{listing.root}: {' '.join(wrong)}")
    for each in listing.notes if told else ():  # before anything can fail for a reason that they explain
        say_once(f"{listing.name}: {each}")
    folder = config.data_dir() / "manifests" / listing.name
    dataset = _saved(folder, recipe, listing)
    if not dataset:
        dataset = _with_headers(listing)
        manifest = splits.assign(_read_once(dataset), seed=seed, overlap=overlap, fold=fold, by=by)
        if by == "patient":
            splits.check(manifest)
        dataset = replace(dataset, manifest=manifest)
        dataset.save(folder, recipe)
    for each in _not_used(dataset) if told else ():
        say_once(f"{dataset.name}: {each}")
    return dataset


def source_notes(source: str | Path, label_column: str | None = None) -> list[str]:
    """One line for each thing that a source leaves out, or that is odd in it; no file of it is read. DatasetError."""
    return [str(each) for each in _listing(source, label_column, None, 7).notes]


def _not_used(dataset: Dataset) -> list[Note]:
    """What was refused, and set aside, when the set was prepared."""
    unread = [f"{one['file']}: {one['reason']}" for one in refused(dataset)]
    aside = dataset.part(splits.SET_ASIDE)["file"]
    return [
        *note("images that cannot be read", "warning", unread, "They were left out."),
        *note("images set aside", "warning", aside, "Their patients are also in another part of the split."),
    ]


def refused(dataset: Dataset) -> list[dict]:
    """File and reason of each image that could not be read when the set was prepared."""
    rows = dataset.part(splits.REFUSED)
    return [
        {"file": file, "reason": note.removeprefix(f"{dataset.root / file}: ")}
        for file, note in zip(rows["file"], rows["note"], strict=True)
    ]


def _saved(folder: Path, recipe: dict, listing: "_Listing") -> Dataset | None:
    """The saved data set if it was made by this recipe; with the root and notes of now, should they have changed."""
    try:
        dataset, made_by = Dataset._opened(folder)
    except DatasetError:
        return None
    if made_by != recipe:
        return None
    if (dataset.root, dataset.notes) != (listing.root, listing.notes):
        dataset = replace(dataset, root=listing.root, notes=listing.notes)
        dataset.save(folder, recipe)
    return dataset


# Sources --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listing:
    """What a source says of its images before any of them is opened."""

    name: str
    root: Path
    rows: pd.DataFrame  # COLUMNS, sorted by file; sha256, width, height and note not yet known
    label_column: str = "label"
    order: tuple[str, ...] | None = None  # of the classes, where the source says one
    synthetic: bool = False
    notes: tuple[Note, ...] = ()
    classes: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        labels = set(self.rows["label"])
        in_order = [name for name in self.order or () if name in labels]
        rest = sorted(labels - set(in_order), key=lambda name: (not _NORMAL.fullmatch(name), name.lower(), name))
        object.__setattr__(self, "classes", (*in_order, *rest))


def _for_training(listing: _Listing) -> _Listing:
    """The listing; refused where its classes are not those that it should have, or where there is only one."""
    classes, order = listing.classes, listing.order
    if order and set(classes) != set(order):
        raise DatasetError(
            f"{listing.root}: its classes should be {', '.join(order)}, but the labels found are "
            f"{', '.join(sorted(classes))}"
        )
    if len(classes) < 2:
        raise DatasetError(f"{listing.root}: every image is of class '{classes[0]}'; two classes or more are needed")
    return listing


def _listing(source: str | Path, label_column: str | None, limit: int | None, seed: int) -> _Listing:
    if limit is not None and limit < 1:
        raise DatasetError(f"limit is {limit}; accepted: 1 or more images, or none for all")
    if source == "phantom":
        slices = limit or 1500
        folder = _phantom_folder(slices, seed)
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


def _folder(path: Path, label_column: str | None) -> _Listing:
    """A folder's data set: its labels.csv, else its class folders, else its one .npz, else that of its one folder."""
    if not folders.is_text(path):
        raise DatasetError(f"{folders.shown(path)}: the folder's name is not in UTF-8; rename it")
    if table := next((file for file in sorted(path.iterdir()) if file.name.casefold() == "labels.csv"), None):
        return _labels_csv(table, label_column)
    found = folders.survey(path)
    archives = sorted(path.glob("*.npz"))
    if len(archives) == 1 and not found.images:
        return _npz(archives[0], path.name, label_column)
    if below := classfolders.inner(path, found):
        listing = _folder(below, label_column)
        taken = note("folder that was taken", "info", [below.name], "It is the only one there, and holds the data set.")
        return replace(listing, notes=(*taken, *listing.notes, *classfolders.survey_notes(_beside(found, below), path)))
    _refuse_label_column(path, label_column)
    return _class_folders(path, found)


def _beside(found: folders.Survey, below: Path) -> folders.Survey:
    """What a survey found outside one of its folders."""
    kept = {kind: [path for path in paths if not path.is_relative_to(below)] for kind, paths in vars(found).items()}
    return folders.Survey(**kept)


def _phantom_folder(slices: int, seed: int) -> Path:
    """Another seed draws other patients: a folder of their own, since a made phantom is never overwritten."""
    return config.data_dir() / (f"phantom-{slices}" if seed == 7 else f"phantom-{slices}-seed{seed}")


def _refuse_label_column(path: Path, label_column: str | None) -> None:
    if label_column not in (None, "label"):
        raise ColumnMissing(f"{path} has no labels.csv, so there is no column '{label_column}' to take as the label")


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with every column of COLUMNS, sorted by file."""
    rows = rows.reindex(columns=COLUMNS, fill_value="").assign(width=0, height=0, sha256="", note="")
    return rows.sort_values(["file", "split"], ignore_index=True)


def _labels_csv(path: Path, label_column: str | None) -> _Listing:
    root, column = path.parent, label_column or "label"
    table, notes = labels.read(path, column)
    labels.refuse_rows(table, table["file"] == "", "no file")
    labels.refuse_rows(table, table[column] == "", f"no {column}")
    blank = pd.Series("", index=table.index)
    group, patient = table.get("group_id", blank), table.get("patient_id", blank)
    published = table.get("split", blank)
    files = labels.Files(root)
    rows = table.drop(columns="label", errors="ignore").assign(
        file=_below(files, table["file"], "file"),
        mask=_below(files, table.get("mask", blank), "mask"),
        label=table[column],
        patient_id=group.where(group != "", patient),
        split=published.map(lambda name: splits.part_named(name) or name),
        source=table.get("source", blank),
    )
    # A file may be listed twice; if its rows differ in split they stay, so that splitting notices it on two sides.
    again = rows.duplicated(["file", "label", "patient_id", "split"])
    meaning = "They say the same of it, and count once."
    notes += note("rows that name a file again", "info", dict.fromkeys(rows["file"][again]), meaning)
    rows = rows[~again]
    contradicted = rows.groupby("file")[["label", "patient_id"]].transform("nunique").gt(1).any(axis=1)
    labels.refuse_rows(rows, contradicted, "a file with two labels or patients", rows["file"])
    about = _about(root)
    return _Listing(
        root.name if column == "label" else f"{root.name}-{column}",
        root,
        _table(rows),
        column,
        tuple(about["classes"]) if column == "label" and "classes" in about else None,
        bool(about.get("synthetic", False)),
        (*notes, *spelling_notes(rows["label"]), *_not_listed(root, table, rows)),
    )


def _not_listed(root: Path, table: pd.DataFrame, rows: pd.DataFrame) -> list[Note]:
    """Notes on images in the folder that no cell of the table names, and on what else could hold images."""
    found = folders.survey(root)
    used = {*rows["file"], *rows["mask"]}
    rest = [name for name in (folders.below(path, root) for path in found.images) if name not in used]
    mentioned = set(table.to_numpy().ravel()) if rest else set()
    meaning = "They are in the folder, but not in labels.csv, so they were passed over."
    return [
        *note(
            "images that labels.csv does not name", "info", (name for name in rest if name not in mentioned), meaning
        ),
        *classfolders.survey_notes(replace(found, passed_over=[]), root),
    ]


def _class_folders(root: Path, found: folders.Survey) -> _Listing:
    layout = classfolders.read(root, found)
    about = _about(root)
    return _Listing(
        root.name,
        root,
        _table(pd.DataFrame(layout.rows).assign(source=root.name)),
        order=tuple(about["classes"]) if "classes" in about else None,
        synthetic=bool(about.get("synthetic")),
        notes=tuple(layout.notes),
    )


def _about(root: Path) -> dict:
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


def _text_table(path: Path) -> pd.DataFrame:
    """A manifest of ours; every cell is text, and none is missing."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a manifest: {error}") from None


def _below(files: labels.Files, names: pd.Series, column: str) -> pd.Series:
    """The paths in one spelling; refused where one leaves the folder or is not there."""
    table = names.to_frame()
    labels.refuse_rows(table, names.map(labels.escapes), f"a {column} outside the data set's folder", names)
    found = names.map(lambda name: files.find(name) if name else "")
    gone = found.isna()
    if gone.any() and (there := files.hint(names[gone].iloc[0])):
        more = f". There is {folders.shown(there)}: give each path as it is below the folder of labels.csv"
        labels.refuse_rows(table, gone, f"a {column} that is not there", names, more)
    labels.refuse_rows(table, gone, f"a {column} that is not there", names)
    return found


# MedMNIST -------------------------------------------------------------------------------------------------------


def _npz(path: Path, name: str, label_column: str | None) -> _Listing:
    """The images of a MedMNIST file, written once as PNG into the data folder; the .npz is only read."""
    _refuse_label_column(path, label_column)
    digest = files.sha256(path)
    root = config.data_dir() / name / f"images-{digest[:12]}"
    order_file = root / "classes.json"
    if not order_file.is_file():
        with files.new_folder(root) as draft:
            _write_pngs(path, draft)
    found = [
        {"file": file.relative_to(root).as_posix(), "label": file.parent.name, "split": part, "source": path.name}
        for part in splits.PARTS
        for file in (root / part).glob("*/*.png")
    ]
    order = tuple(json.loads(order_file.read_text("utf-8")))
    return _Listing(name, root, _table(pd.DataFrame(found)), order=order)


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


# Files ----------------------------------------------------------------------------------------------------------


def _chosen(source: str | Path, label_column: str | None, limit: int | None, seed: int) -> _Listing:
    """The source's images within the limit, each with its sha256; one whose patient is not known is its own patient."""
    listing = _listing(source, label_column, limit, seed)
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


def _with_headers(listing: _Listing) -> Dataset:
    """The data set with the size and modality that each file's header states."""
    rows = listing.rows
    headers = list(progress.parallel(_header, [listing.root / file for file in rows["file"]]))
    found = pd.DataFrame(headers, columns=["width", "height", "modality", "note"], index=rows.index)
    modality = rows["modality"].where(rows["modality"] != "", found["modality"])
    rows = rows.assign(width=found["width"], height=found["height"], modality=modality, note=found["note"])
    facts = listing.label_column, listing.synthetic, listing.notes
    return Dataset(listing.name, listing.classes, rows[COLUMNS], listing.root, *facts)


def _limited(rows: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """Whole patients in a reproducible shuffle, from each (split, class) its share of the limit, at least one."""
    if len(rows) <= limit:
        return rows
    rarity = rows["label"].map(rows["label"].value_counts().rank(method="first"))
    patients = rows.assign(rarity=rarity).groupby("patient_id")  # a patient with two labels counts for the rarer
    patients = patients.agg(size=("file", "size"), split=("split", "min"), rarity=("rarity", "min"))
    patients = patients.sort_index(key=lambda names: names.map(lambda name: splits.chance(name, seed)))
    kept = []
    for _, stratum in patients.groupby(["split", "rarity"]):
        quota = int(limit * stratum["size"].sum() / len(rows))
        taken = 0
        for patient, size in stratum["size"].items():
            if taken == 0 or taken + size <= quota:
                kept.append(patient)
                taken += size
    return rows[rows["patient_id"].isin(kept)].reset_index(drop=True)


def _read_once(dataset: Dataset) -> pd.DataFrame:
    """The manifest with split "refused", and the reason in note, where an image cannot be read."""
    read = progress.parallel(_refusal, dataset.files(), label=f"reading {dataset.name}")
    reasons = pd.Series(list(read), index=dataset.manifest.index)
    manifest = dataset.manifest.assign(note=reasons)
    manifest.loc[reasons != "", "split"] = splits.REFUSED
    lost = set(dataset.classes) - set(manifest.loc[reasons == "", "label"])
    if lost:
        raise DatasetError(
            f"{dataset.root}: no image of {', '.join(sorted(lost))} can be read. The first refusal: "
            f"{reasons[reasons != ''].iloc[0]}"
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
    content = (
        rows[["file", "label", "patient_id", "split", "sha256", "mask"]]
        .sort_values(["file", "split"])
        .to_numpy()
        .tolist()
    )
    return files.sha256(json.dumps([list(classes), content]).encode())
