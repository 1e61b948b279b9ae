"""CC-CCII (China Consortium of Chest CT Image Investigation): NCP, CP and Normal, each PATIENT/SCAN/slice.

Layout: ncov-ai.big.ac.cn/download, and docs/dataset.md with dataset_construction/cncb.py of
github.com/haydengunraj/COVIDNet-CT; Zhang et al., Cell 2020, doi:10.1016/j.cell.2020.04.045. lesions_slices.csv names
the slices that show a lesion: of patients with pneumonia (CP) or COVID-19 (NCP), only these are taken.
"""

from collections import Counter
from pathlib import Path, PurePosixPath

from lungkit.data import folders
from lungkit.data.ct_sets.tables import Layout, files_named, other_files, table
from lungkit.data.notes import DatasetError, Note, note

_CLASSES = {"NCP": "COVID-19", "CP": "Pneumonia", "Normal": "Normal"}


def read(root: Path, contents: folders.Survey) -> Layout | None:
    """The slices of a folder laid out like CC-CCII; None if it is none. Raises DatasetError."""
    images = {folders.below(path, root): path.relative_to(root).parts for path in contents.images}
    slices = {name: parts for name, parts in images.items() if len(parts) == 4 and parts[0] in _CLASSES}
    lesion_lists, scan_lists = files_named(root, r"lesions?_slices\.csv"), files_named(root, r"unzip_filenames\.csv")
    numbered = {parts[0] for parts in slices.values() if parts[1].isdigit() and parts[2].isdigit()}
    if not (lesion_lists or scan_lists or {"NCP", "CP"} <= numbered):
        return None
    if not (slices and lesion_lists):
        what = "lesions_slices.csv, which names the slices that show disease," if slices else "CLASS/PATIENT/SCAN/slice"
        raise DatasetError(
            f"{root} looks like CC-CCII, but {what} is not there; accepted: the folders NCP, CP and Normal, as the "
            "archives contain them, next to lesions_slices.csv. Other slices of a patient must not be learned as sick"
        )
    lesions = {_place(row["imgpath"]) for row in table(lesion_lists[0], "imgpath")}
    scans = Counter(map(_scan, slices))
    if lost := sorted(name for name in lesions if name not in slices and _scan(name) in scans):
        raise DatasetError(
            f"{lesion_lists[0]} names {folders.few(lost)}, which are not there; unpack the archives again"
        )
    taken = {name: parts for name, parts in slices.items() if parts[0] == "Normal" or name in lesions}
    patients = {name: f"{parts[0]}-{parts[1]}" for name, parts in slices.items()}
    healthy = [name for name in slices if name not in taken]
    gone = {patients[name] for name in healthy} - {patients[name] for name in taken}
    rows = [{"file": name, "label": _CLASSES[parts[0]], "patient_id": patients[name]} for name, parts in taken.items()]
    notes = [
        *other_files(contents, root, [*lesion_lists, *scan_lists]),
        *note(
            "images outside any scan",
            "warning",
            sorted(images.keys() - slices.keys()),
            "They are not in NCP, CP or Normal.",
        ),
        *note(
            "slices without a lesion", "warning", healthy, "Their patients are sick, but no lesion is marked in them."
        ),
        *note("patients without a lesion", "warning", sorted(gone), "No slice is marked, so none is used."),
        *_absent(scans, {_scan(name) for name in lesions}, scan_lists),
    ]
    return Layout(rows, notes)


def _place(text: str) -> str:
    """CLASS/PATIENT/SCAN/slice of a path in a list."""
    return "/".join(PurePosixPath(text.replace("\\", "/")).parts[-4:])


def _scan(name: str) -> str:
    return name.rpartition("/")[0]


def _absent(scans: Counter[str], with_lesions: set[str], lists: list[Path]) -> list[Note]:
    """Notes on the scans that a list names and that are not here, or not with all slices."""
    rows = [row for path in lists for row in table(path, "label", "patient_id", "scan_id", "n_slice")]
    stated = {f"{row['label']}/{row['patient_id']}/{row['scan_id']}": row["n_slice"] for row in rows}
    absent = sorted((with_lesions | stated.keys()) - scans.keys())
    other = [
        f"{scan} has {scans[scan]} of {n}" for scan, n in stated.items() if scan in scans and str(scans[scan]) != n
    ]
    return [
        *note("scans that are not here", "warning", absent, "The lists of CC-CCII name them: unpack all archives."),
        *note("scans with another number of slices", "warning", other, "unzip_filenames.csv states another number."),
    ]
