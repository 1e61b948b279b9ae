"""Class folders of CT sets that name the three classes in their own way, as CT-COV19 does: COV, Normal, OtherPneumonia.

CT-COV19: github.com/m2dgithub/CT-COV19; Train, Val and Test with CLASS/FOLDER/slice.
"""

from collections import defaultdict

from lungkit.data.classfolders import ClassFolders
from lungkit.data.ct_sets.tables import Layout
from lungkit.data.notes import alike, note

_OF_CT = {"cp": "Pneumonia", "cap": "Pneumonia", "otherpneumonia": "Pneumonia", "ncp": "COVID-19", "cov": "COVID-19"}
_USUAL = {"normal": "Normal", "pneumonia": "Pneumonia"} | dict.fromkeys(("covid", "covid19", "covid-19"), "COVID-19")


def common_names(read: ClassFolders) -> Layout:
    """The images with the common names of the three classes, if their folders mean these; otherwise as they are.

    X-ray sets use names such as COVID, too, so one name has to be of CT sets only. Numbers of patients start again in
    each class, so the same number in two classes is two patients; a folder in several parts of a class is no patient.
    """
    names = {row["label"]: (_OF_CT | _USUAL).get(alike(row["label"]), "") for row in read.rows}
    if len(names) != 3 or len({*names.values()} - {""}) != 3 or not any(alike(name) in _OF_CT for name in names):
        return Layout(read.rows, read.notes, order=())
    parts: dict[str, set[str]] = defaultdict(set)
    for row in read.rows:
        parts[_folder(row)].add(row["split"])
    shared = sorted(folder for folder, of in parts.items() if len(of) > 1 and not folder.endswith("/"))
    patients = {folder: "" if folder in shared or folder.endswith("/") else folder for folder in parts}
    rows = [row | {"label": names[row["label"]], "patient_id": patients[_folder(row)]} for row in read.rows]
    meant = [f"{own} is {common}" for own, common in names.items() if own != common]
    notes = [
        *(each for each in read.notes if each.finding != "patients named by folders"),
        *note("classes by another name", "info", meant, "They are the three classes of chest CT sets."),
        *note("patients named by folders", "info", sorted({*patients.values()} - {""}), "Within a class."),
        *note("folders in several parts of the split", "warning", shared,
              "They are collections: each of their images counts as a patient, who may be in several parts."),
    ]  # fmt: skip
    return Layout(rows, notes)


def _folder(row: dict[str, str]) -> str:
    return f"{row['label']}/{row['patient_id']}"
