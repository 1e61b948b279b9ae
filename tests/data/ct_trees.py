"""Public CT sets as their publishers lay them out, filled with phantom slices: small, but with all their lists."""

from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom

from lungkit.data import phantom

LETTERS = {"Normal": "normal", "Pneumonia": "cap", "COVID-19": "P"}


@cache
def patient(label: str, number: int, slices: int) -> list[phantom.Slice]:
    """Slices of one synthetic patient, drawn once."""
    return phantom.make_patient(f"{label}{number}", label, seed=number, slices=slices, size=64)


def picture(cut: phantom.Slice, path: Path) -> None:
    """An 8-bit picture of a slice, in the lung window."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.clip((cut.hu.astype(float) + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(grey).save(path)


COVIDX = {  # the name of a scan's files, in each part: class number, patient, source
    "train": [
        ("NCP_101_1300_00{:02}", 2, "NCP_101", "CNCB"),
        ("NCP_101_1301_00{:02}", 2, "NCP_101", "CNCB"),
        ("volume-covid19-A-0012-00{:02}", 2, "volume-covid19-A-0012", "TCIA"),
        ("CP_0_3131_00{:02}", 1, "CP_0", "CNCB"),
        ("COVIDCTMD-cap012-IM00{:02}", 1, "COVIDCTMD-cap012", "COVID-CT-MD"),
        ("Normal_1681_10_00{:02}", 0, "Normal_1681", "CNCB"),
        ("137covid_patient1_SR_2_IM000{:02}", 0, "patient1", "COVID-CTSet"),
    ],
    "val": [
        ("NCP_1013_2577_00{:02}", 2, "NCP_1013", "CNCB"),
        ("CP_10_3153_00{:02}", 1, "CP_10", "CNCB"),
        ("COVIDCTMD-normal074-IM00{:02}", 0, "COVIDCTMD-normal074", "COVID-CT-MD"),
    ],
    "test": [
        ("HUST-Patient518-00{:02}", 2, "HUST-Patient518", "iCTCF"),
        ("CP_1068_3107_00{:02}", 1, "CP_1068", "CNCB"),
        ("Normal_1682_11_00{:02}", 0, "Normal_1682", "CNCB"),
    ],
}


def covidx(root: Path, slices: int = 3) -> Path:
    """COVIDx CT-3A: 3A_images, a list for each part, metadata.csv."""
    columns = "patient id,source,country,sex,age,finding,verified finding,slice selection,view,modality"
    about = {columns: None}
    for part, scans in COVIDX.items():
        lines = []
        for pattern, number, patient_id, source in scans:
            label = ("Normal", "Pneumonia", "COVID-19")[number]
            chosen = "Automatic" if source == "TCIA" else "Expert"
            about[f"{patient_id},{source},China,,,{label},Yes,{chosen},Axial,CT"] = None
            for cut in patient(label, len(pattern) + 100 * len(about), slices):
                name = f"{pattern.format(cut.index)}.png"
                picture(cut, root / "3A_images" / name)
                lines.append(f"{name} {number} 0 9 64 60\n")
        (root / f"{part}_COVIDx_CT-3A.txt").write_text("".join(lines))
    (root / "metadata.csv").write_text("\n".join(about) + "\n")
    return root


def cc_ccii(root: Path) -> Path:
    """CC-CCII: CLASS/PATIENT/SCAN/slice, lesions_slices.csv without the first slice of a scan, unzip_filenames.csv."""
    lesions, scans = ["imgpath"], ["zip_file,label,patient_id,scan_id,n_slice"]
    labels = {"NCP": "COVID-19", "CP": "Pneumonia", "Normal": "Normal"}
    for start, (folder, label) in enumerate(labels.items()):
        for number in range(4):
            scan = f"{folder}/{number}/{1000 * (start + 1) + number}"
            scans.append(f"{folder}-1.zip,{folder},{number},{scan.split('/')[2]},3")
            for cut in patient(label, number, 3):
                name = f"{scan}/{cut.index:04}.{'jpg' if number else 'png'}"
                picture(cut, root / name)
                lesions += [name] if cut.index and label != "Normal" else []
    (root / "lesions_slices.csv").write_text("\n".join(lesions) + "\n")
    (root / "unzip_filenames.csv").write_text("\n".join(scans) + "\n")
    return root


def covid_ct_md(root: Path, skipped: int | None = None) -> Path:
    """COVID-CT-MD: DICOM of 3 slices, P004 and cap004 without labels; the last two slices from the head are infected.

    Names of files run from the feet to the head. skipped: a Label Index that Index.csv leaves out.
    """
    folders = {"Normal": "Normal Cases", "Pneumonia": "Cap Cases", "COVID-19": "COVID-19 Cases"}
    for label, folder in folders.items():
        for number in range(1, 5):
            place = root / folder / f"{LETTERS[label]}{number:03}"
            place.mkdir(parents=True)
            for cut in patient(label, number, 3):
                file = phantom.write_dicom(cut, place / f"IM{9 - cut.index:04}.dcm", compressed=False)
                header = pydicom.dcmread(file)
                header.SliceLocation = f"{-cut.position_mm:.1f}"
                header.save_as(file)
    people = [f"{LETTERS[label]}{number:03}" for label in ("COVID-19", "Pneumonia") for number in range(1, 4)]
    numbers = [number for number in range(7) if number != skipped][:6]
    rows = [
        f"{number},{'CAP' if name.startswith('cap') else 'COVID-19'},./COVID-19/,{name}"
        for number, name in zip(numbers, people, strict=True)
    ]
    (root / "Index.csv").write_text("\n".join(["Label Index,Diagnosis,Relative Path,Folder/ID", *rows]))
    np.save(root / "Slice-level-labels.npy", np.tile([0, 1, 1, 0, 0], (6, 1)).astype(float))
    np.save(root / "Lobe-level-labels.npy", np.zeros((6, 5, 5)))
    (root / "Clinical-data.csv").write_text("Patient ID,Age\nP001,50\n")
    return root


def ct_cov19(root: Path) -> Path:
    """CT-COV19: Train, Val and Test; the patients COV/01 and Normal/01, and Normal/1, a collection in all parts."""
    folders = {
        "Train": ("COV/01", "Normal/01", "Normal/1", "OtherPneumonia/pneu_1"),
        "Val": ("COV/30", "Normal/1", "OtherPneumonia/2"),
        "Test": ("COV/21", "Normal/1", "OtherPneumonia/3"),
    }
    labels = {"COV": "COVID-19", "Normal": "Normal", "OtherPneumonia": "Pneumonia"}
    places = [f"{part}/{folder}" for part, below in folders.items() for folder in below]
    for seed, place in enumerate(places):
        for cut in patient(labels[place.split("/")[1]], seed, 3):
            picture(cut, root / place / f"FILE{seed}{cut.index:03}.png")
    return root
