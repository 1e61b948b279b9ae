"""COVIDx CT, versions 2 and 3: a list of slices for each part, and metadata.csv with patients and sources.

Layout and meaning: docs/dataset.md and dataset.py of github.com/haydengunraj/COVIDNet-CT (2022); Gunraj et al.,
Frontiers in Medicine 2022, doi:10.3389/fmed.2021.729287. A line of a list is: file, class number, and the box of the
body (xmin, ymin, xmax, ymax), which is not used here.
"""

import re
from collections import defaultdict
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from lungkit.data import folders
from lungkit.data.ct_sets.tables import CLASSES, Layout, files_named, lines_of, other_files, refuse_two_classes, table
from lungkit.data.notes import DatasetError, Note, note

_LIST = r"(train|val|test)_COVIDx[-_]CT(.*)\.txt"


class _Slice(NamedTuple):
    """A line of a list."""

    name: str  # of the file
    label: str
    part: str

    @property
    def scan(self) -> str:
        """The name without its last part, the number of the slice: NCP_1013_2577 of NCP_1013_2577_0042.png."""
        return re.sub(r"[-_][^-_]*$", "", Path(self.name).stem)


def read(root: Path, contents: folders.Survey) -> Layout | None:
    """The slices of a folder with the lists of COVIDx CT; None if there are none. Raises DatasetError."""
    lists = files_named(root, _LIST)
    if not lists:
        return None
    if len({path.name.casefold().partition("_")[2] for path in lists}) > 1:
        names = folders.few((path.name for path in lists), 6)
        raise DatasetError(f"{root} has lists of several versions of COVIDx CT: {names}. Keep those of one version")
    slices = list(dict.fromkeys(one for path in lists for one in _slices(path)))
    about = _patients(root)
    patients = {scan: _patient(scan, about) for scan in {one.scan for one in slices}}
    folder = _image_folder(root, contents, slices)
    rows = [
        {
            "file": folders.below(folder / one.name, root),
            "label": one.label,
            "split": one.part,
            "patient_id": patients[one.scan] or one.scan,
            "source": about.get(patients[one.scan], {}).get("source", ""),
        }
        for one in slices
    ]
    refuse_two_classes(root, rows)
    listed = {folder / one.name for one in slices}
    rest = [folders.below(path, root) for path in contents.images if path not in listed]
    notes = [
        *other_files(contents, root, [*lists, root / "metadata.csv"]),
        *note("images that no list names", "info", rest, "They are in no part, so they were passed over."),
        *_notes({one.name: about.get(patients[one.scan], {}) for one in slices}),
    ]
    return Layout(rows, notes)


def _slices(path: Path) -> list[_Slice]:
    """The lines of a list, in which a file's name may contain blanks."""
    part, found = path.name.partition("_")[0].lower(), []
    for number, line in enumerate(lines_of(path), 1):
        name, *values = line.rsplit(maxsplit=5) or [""]
        if name and (len(values) != 5 or Path(name).name != name):
            text = folders.one_line(line)[:80]
            raise DatasetError(f"{path}, line {number}: '{text}'; accepted: file, class, xmin, ymin, xmax, ymax")
        if name and values[0] not in ("0", "1", "2"):
            raise DatasetError(
                f"{path}, line {number}: {name} has class {folders.one_line(values[0])}; accepted: 0 (Normal), "
                "1 (Pneumonia), 2 (COVID-19)"
            )
        found += [_Slice(name, CLASSES[int(values[0])], part)] if name else []
    return found


def _patients(root: Path) -> dict[str, dict[str, str]]:
    """The row of each patient in metadata.csv."""
    path = root / "metadata.csv"
    if not path.is_file():
        raise DatasetError(
            f"{path} is not there; it names the patients and their sources. It comes with the images, and is in "
            "github.com/haydengunraj/COVIDNet-CT"
        )
    return {row["patient id"]: row for row in table(path, "patient id", "source")}


def _patient(scan: str, known: Container[str]) -> str:
    """The longest id among the runs of a name's parts, as in COVIDCTMD-cap012; "" if none is known."""
    words = re.split(r"([-_])", scan)
    runs = ["".join(words[i : j + 1]) for i in range(0, len(words), 2) for j in range(i, len(words), 2)]
    return max((run for run in runs if run in known and not run.isdigit()), key=len, default="")


def _image_folder(root: Path, contents: folders.Survey, slices: list[_Slice]) -> Path:
    """The folder with the listed images. Raises DatasetError if it lacks one of them."""
    there: dict[Path, set[str]] = defaultdict(set)
    for path in contents.images:
        there[path.parent].add(path.name)
    listed = {one.name for one in slices}
    folder = max(there, key=lambda place: len(there[place] & listed), default=root)
    if missing := sorted(listed - there[folder]):
        raise DatasetError(
            f"{root}: {len(missing):,} of the {len(listed):,} images in the lists are not in {folder.name}: "
            f"{folders.few(missing)}. Unpack all images into one folder next to the lists"
        )
    return folder


def _notes(about: dict[str, dict[str, str]]) -> list[Note]:
    """Notes on what metadata.csv says of images, by their names."""
    unknown = [name for name, row in about.items() if not row]
    chosen = [name for name, row in about.items() if row.get("slice selection") == "Automatic"]
    assumed = [name for name, row in about.items() if row.get("verified finding") == "No"]
    return [
        *note("images of no patient in metadata.csv", "warning", unknown, "Each scan counts as a patient."),
        *note("images that a network chose", "info", chosen, "No expert saw disease there, but a network did."),
        *note("images of unverified cases", "warning", assumed, "Their diagnosis is assumed."),
        Note("boxes of the body", "info", len(about), "They are not used: each image is read whole."),
    ]
