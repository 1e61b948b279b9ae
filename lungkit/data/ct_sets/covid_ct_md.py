"""COVID-CT-MD: DICOM slices in COVID-19, Cap and Normal Cases, a folder for each patient, and labels of slices.

Layout: github.com/ShahinSHH/COVID-CT-MD and its Figshare page; Afshar et al., Scientific Data 2021,
doi:10.1038/s41597-021-00900-3. Index.csv gives some patients a row of Slice-level-labels.npy (patients x slices), with
a 1 where infection is seen. Its columns follow the slices from the highest SliceLocation to the lowest, the order in
the authors' own code (github.com/ShahinSHH/COVID-FACT). Of sick patients, only slices with a 1 are taken.
"""

import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from lungkit import progress
from lungkit.data import folders
from lungkit.data.ct_sets.tables import Layout, files_named, other_files, refuse_two_classes, table
from lungkit.data.dicom_header import checked_header
from lungkit.data.image import Broken
from lungkit.data.notes import DatasetError, note

_PATIENT = re.compile(r"(covid-?19|cap|normal)([ _-]*(?:cases|subjects))?/((?:P|cap|normal)\d+)/.+", re.IGNORECASE)
_LABELS = r"slice[-_ ]level[-_ ]labels.*\.npy"
_CLASSES = {"cap": "Pneumonia", "normal": "Normal"}
_OF_ONE = "give both files of one release"


def read(root: Path, contents: folders.Survey) -> Layout | None:
    """The slices of a folder laid out like COVID-CT-MD; None if it is none. Raises DatasetError."""
    patients: dict[tuple[str, str], list[Path]] = defaultdict(list)  # (class, patient) to slices
    outside, named = [], bool(files_named(root, _LABELS))
    for path in contents.images:
        if match := _PATIENT.fullmatch(folders.below(path, root)):
            patients[_CLASSES.get(match[1].lower(), "COVID-19"), match[3]].append(path)
            named |= bool(match[2])
        else:
            outside.append(folders.below(path, root))
    if not named or {label for label, _ in patients} <= {"Normal"}:
        return None
    refuse_two_classes(root, ({"label": label, "patient_id": patient} for label, patient in patients))
    index, array = _lists(root)
    marks = _marks(index, array)
    sick = {patient: slices for (label, patient), slices in patients.items() if label != "Normal"}
    ordered = {patient: _from_head(slices) for patient, slices in sick.items() if patient in marks}
    shows = {path for patient, slices in ordered.items() for path in _infected(array, patient, slices, marks[patient])}
    rows = [
        {"file": folders.below(path, root), "label": label, "patient_id": patient}
        for (label, patient), slices in patients.items()
        for path in slices
        if label == "Normal" or path in shows
    ]
    healthy = [folders.below(path, root) for slices in ordered.values() for path in slices if path not in shows]
    here = {patient for _, patient in patients}
    unknown = "Which of their slices show infection is not known, so none is used."
    notes = [
        *other_files(contents, root, [index, array]),
        *note("images outside any patient", "warning", outside, "They were passed over."),
        *note("labels of slices", "info", [array.name], "They were used; labels of lobes were not."),
        *note("slices without infection", "warning", healthy, "Their patients are sick, but they show no infection."),
        *note("patients without labels of slices", "warning", sorted(sick.keys() - marks.keys()), unknown),
        *note("patients whose slices have no order", "warning", [name for name in ordered if not ordered[name]],
              f"SliceLocation is missing or not unique. {unknown}"),
        *note("patients who are not here", "info", sorted(marks.keys() - here), f"{index.name} names them."),
    ]  # fmt: skip
    return Layout(rows, notes)


def _lists(root: Path) -> tuple[Path, Path]:
    """The index and the labels of slices; of several files with labels, the corrected one."""
    index, arrays = files_named(root, r".*index\.csv"), files_named(root, _LABELS)
    arrays = [path for path in arrays if "updated" in path.name.casefold()] or arrays
    if len(index) != 1 or len(arrays) != 1:
        there = folders.few([path.name for path in (*index, *arrays)], 6) or "neither"
        raise DatasetError(
            f"{root} looks like COVID-CT-MD. Give one Index.csv and one Slice-level-labels.npy there, which say which "
            f"slices show infection: other slices of a patient must not be learned as sick. There is: {there}"
        )
    return index[0], arrays[0]


def _marks(index: Path, array: Path) -> dict[str, np.ndarray]:
    """The row of labels of each patient in the index."""
    try:
        labels = np.load(array, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{array} cannot be read ({error}); download it again") from None
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise DatasetError(f"{array} holds {labels.dtype} {labels.shape}; accepted: 0 and 1, patients x slices")
    numbers = {row["Folder/ID"]: row["Label Index"] for row in table(index, "Label Index", "Folder/ID")}
    if odd := [number for number in numbers.values() if not number.isdigit()]:
        raise DatasetError(f"{index} has the Label Index {folders.few(odd)}; accepted: whole numbers")
    rows = sorted({int(number) for number in numbers.values()})
    if rows and rows[-1] < len(labels):
        return {patient: labels[int(number)] for patient, number in numbers.items()}
    if len(rows) != len(labels):
        raise DatasetError(f"{index} has {len(rows)} patients, but {array.name} has {len(labels)} rows; {_OF_ONE}")
    # One release leaves a number out of the index, but not a row out of the labels.
    return {patient: labels[rows.index(int(number))] for patient, number in numbers.items()}


def _infected(array: Path, patient: str, slices: list[Path], marks: np.ndarray) -> list[Path]:
    """The slices that show infection. Raises DatasetError if the labels are of another number of slices."""
    last = int(np.flatnonzero(marks).max(initial=-1)) + 1
    if slices and not last <= len(slices) <= len(marks):
        raise DatasetError(
            f"{patient} has {len(slices)} slices, but {array} has labels of {len(marks)}, and infection in number "
            f"{last}; copy the patient's folder again, or {_OF_ONE}"
        )
    return [path for path, mark in zip(slices, marks, strict=False) if mark]


def _from_head(slices: list[Path]) -> list[Path]:
    """The slices from the highest SliceLocation to the lowest; none if one lacks it, or two have the same."""
    heights = list(progress.parallel(_location, slices))
    if any(map(math.isnan, heights)) or len(set(heights)) < len(heights):
        return []
    return [path for _, path in sorted(zip(heights, slices, strict=True), reverse=True)]


def _location(path: Path) -> float:
    """SliceLocation, in mm; NaN if it cannot be read."""
    try:
        with path.open("rb") as stream:
            height = checked_header(stream).number("SliceLocation")
    except (OSError, Broken):
        return math.nan
    return math.nan if height is None else height
