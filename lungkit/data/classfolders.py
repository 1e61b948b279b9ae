"""A folder per class, also below train, val and test: the class, part and patient of each image.

A set whose folders have two possible meanings is refused, with both named. Whatever is not used becomes a note.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from lungkit.data import folders, splits
from lungkit.data.notes import DatasetError, Note, alike, note, spelling_notes, survey_notes

ACCEPTED = (
    "accepted: labels.csv with the columns file and label; images in CLASS/ or in train/CLASS/, val/CLASS/, "
    "test/CLASS/ (also in a folder for each patient below CLASS/); one MedMNIST .npz"
)

# Below a class: folders that only contain its images, and folders with other pictures of the same names.
_CONTAINER = re.compile(
    r"images?|imgs?|pics?|pictures?|photos?|data|dicom|dcm|png|jpe?g|jpg|tiff?|slices?|frames?", re.I
)
_MASKS = re.compile(
    r"((lungs?|lesions?|infections?|roi|seg\w*|binary|gt)[-_ ])?masks?([-_ ].*)?"
    r"|segmentations?|annotations?|ground[-_ ]?truth|heat[-_ ]?maps?",
    re.I,
)


@dataclass(frozen=True)
class ClassFolders:
    """`rows` of file (POSIX, below the root), label, patient_id ("" if unknown) and split, and the notes."""

    rows: list[dict[str, str]]
    notes: list[Note]


@dataclass(frozen=True)
class _Tree:
    """The images below a folder, as paths relative to it, and the folders directly in it."""

    root: Path
    images: list[PurePosixPath]

    @cached_property
    def _below(self) -> dict[str, "_Tree"]:
        """The folders with an image in them, at any depth."""
        inside: dict[str, list[PurePosixPath]] = {}
        for path in self.images:
            if len(path.parts) > 1:
                inside.setdefault(path.parts[0], []).append(PurePosixPath(*path.parts[1:]))
        return {name: _Tree(self.root / name, inside[name]) for name in sorted(inside)}

    def within(self, name: str) -> "_Tree":
        """The part of the tree in one of its folders."""
        return self._below.get(name) or _Tree(self.root / name, [])

    @cached_property
    def folders(self) -> list[str]:
        """All folders, also those without an image, but not those of operating systems, nor hidden ones."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(name for name in names if not folders.is_rubbish(name))

    @property
    def filled(self) -> list[str]:
        """The folders with an image in them or below them."""
        return list(self._below)

    @cached_property
    def direct(self) -> list[PurePosixPath]:
        """The images in the folder itself."""
        return [path for path in self.images if len(path.parts) == 1]


def read(root: Path, contents: folders.Survey) -> ClassFolders:
    """The classes of a folder that was surveyed. Raises DatasetError."""
    named = [path for path in contents.images if folders.is_text(path)]
    tree = _Tree(root, [PurePosixPath(folders.below(path, root)) for path in named])
    notes = survey_notes(contents, root)
    notes += note(
        "files whose name is not text",
        "warning",
        (folders.below(path, root) for path in contents.images if not folders.is_text(path)),
        "Their names are not in UTF-8, so they were passed over: rename them.",
    )
    if not tree.filled:
        what = f"{len(tree.direct):,} images, but no class folders" if tree.direct else "no images"
        besides = "".join(f"; {each}" for each in notes)
        raise DatasetError(f"{root} holds {what}; {ACCEPTED}{besides}")
    parts, passed = _parts(tree)
    label_trees = [(tree.within(name), name, "") for name in tree.folders if name not in passed]
    if parts:
        label_trees = [
            (tree.within(part).within(name), f"{part}/{name}", splits.part_named(part) or "")
            for part in parts
            for name in tree.within(part).folders
        ]
    rows, masks, empty = [], [], []
    for below, place, split in label_trees:
        taken, left = _rows(below, place, split)
        rows += taken
        masks += left
        empty += [] if taken else [place]
    if not rows:
        raise DatasetError(f"{root} holds images, but none in a class folder; {ACCEPTED}")
    outside = [str(path) for path in tree.direct]
    outside += [f"{part}/{path}" for part in parts for path in tree.within(part).direct]
    notes += _notes(rows, empty, outside, masks)
    others = [f"{name} ({len(tree.within(name).images):,} images)" for name in passed]
    meaning = "They are no classes of this set: a copy, another set, or masks."
    notes += note("folders passed over", "warning", others, meaning)
    return ClassFolders(rows, notes)


def inner(root: Path, contents: folders.Survey) -> Path | None:
    """The only folder in a folder, if it is the data set, as in many unpacked archives; otherwise None."""
    tree = _Tree(root, [PurePosixPath(folders.below(path, root)) for path in contents.images])
    if len(tree.folders) != 1 or tree.direct:
        return None
    name = tree.folders[0]
    within = tree.within(name)
    if splits.part_named(name) or within.direct:
        return within.root if _has_table(within.root) else None
    deeper = len(within.filled) > 1 or any(map(splits.part_named, within.filled)) or len(within.folders) == 1
    return within.root if (tree.images and deeper) or _has_table(within.root) else None


def _has_table(folder: Path) -> bool:
    return any(path.name.casefold() == "labels.csv" or path.suffix.casefold() == ".npz" for path in folder.iterdir())


def _parts(tree: _Tree) -> tuple[list[str], list[str]]:
    """The folders of a published split, if there is one, and the folders that are neither parts nor classes."""
    filled = tree.filled
    passed = [name for name in filled if _MASKS.fullmatch(name)]
    parts = [name for name in tree.folders if splits.part_named(name) and tree.within(name).folders]
    parts = parts if any(tree.within(name).filled for name in parts) else []
    spellings = Counter(map(alike, filled))
    copies = [name for name in filled if name not in (*parts, *passed) and _is_copy(tree, name, spellings)]
    others = [name for name in filled if name not in (*parts, *passed, *copies)]
    kinds = {splits.part_named(name) for name in parts}
    if parts and (not others or {"train", "test"} <= kinds or {"train", "val"} <= kinds):
        return parts, [*passed, *copies, *others]
    if parts:
        raise DatasetError(
            f"{tree.root} can be read in two ways: {folders.few(parts)} as part of a split, and {folders.few(others)} "
            f"as classes next to it. Keep one of the two; {ACCEPTED}"
        )
    if all(splits.part_named(name) for name in others):
        raise DatasetError(
            f"{tree.root}: {folders.few(others or filled)} hold images, but no class folders; {ACCEPTED}"
        )
    _refuse_sets(tree, others)
    return [], [*passed, *copies]


def _is_copy(tree: _Tree, name: str, spellings: Counter[str]) -> bool:
    """Whether a folder is a copy of this set, or another set: its folders are named as its neighbours or parts."""
    below = tree.within(name)
    inside = set(map(alike, below.filled))
    neighbours = all(spellings[folder] > (folder == alike(name)) for folder in inside)
    return not below.direct and bool(inside) and (neighbours or any(map(splits.part_named, below.filled)))


def _refuse_sets(tree: _Tree, names: list[str]) -> None:
    """Refuse several sets next to each other: each has the same folders, and their names are not those of patients."""
    inside = [
        {alike(f) for f in tree.within(name).filled if not (_CONTAINER.fullmatch(f) or _MASKS.fullmatch(f))}
        for name in names
    ]
    same = len(names) > 1 and len(inside[0]) > 1 and all(each == inside[0] for each in inside)
    if same and not any(tree.within(name).direct for name in names) and not any(map(str.isdigit, "".join(inside[0]))):
        there = folders.few(tree.within(names[0]).filled)
        raise DatasetError(
            f"{tree.root} holds several sets: {folders.few(names)} each have the folders {there}. Give one of them"
        )


def _rows(tree: _Tree, place: str, split: str) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a class folder, and the files in it that were left out as masks."""
    label = PurePosixPath(place).name
    rows, masks = [], []
    for path in tree.images:
        between = path.parts[:-1]
        if any(_MASKS.fullmatch(folder) for folder in between):
            masks.append(f"{place}/{path}")
            continue
        patients = [folder for folder in between if not _CONTAINER.fullmatch(folder)]
        rows.append({"file": f"{place}/{path}", "label": label, "patient_id": next(iter(patients), ""), "split": split})
    return rows, masks


def _notes(rows: list[dict[str, str]], empty: list[str], outside: list[str], masks: list[str]) -> list[Note]:
    """Notes on the class folders: those without an image, and the images that were not used."""
    there = {alike(row["label"]) for row in rows}
    lost = [place for place in empty if alike(PurePosixPath(place).name) not in there]
    return [
        *note(
            "classes without an image",
            "error",
            lost,
            "If it is a class, its images are missing; if it is not, take the folder away.",
        ),
        *note(
            "class folders without an image",
            "warning",
            [place for place in empty if place not in lost],
            "This part of the split lacks the class.",
        ),
        *note("images outside any class folder", "warning", outside, "They have no label, so they were passed over."),
        *note("masks passed over", "info", masks, "They lie in a folder for masks, so they were not taken as images."),
        *note(
            "patients named by folders",
            "info",
            sorted({row["patient_id"] for row in rows} - {""}),
            "Below a class, a folder's name was taken as the patient's id, the same person in every class and part.",
        ),
        *spelling_notes(row["label"] for row in rows),
    ]
