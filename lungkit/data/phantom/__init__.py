"""Synthetic chest CT: axial slices in Hounsfield units drawn by numpy from a seed.

Everything here is synthetic. No image, shape or statistic was taken from a patient, and nothing learned
from it says anything about patients. The phantom exists so that the whole pipeline can be run, tested
and shown without real data, with the lesion masks that real data lack, and as a stand-in for a scanner.

`anatomy` holds the reference adult, `patient` draws one patient from it; here are the slices,
their DICOM files and the data set.
"""

import csv
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungkit.interrupts import ignored

import numpy as np
from joblib import Parallel, delayed
from PIL import Image as Picture
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from lungkit import files, progress
from lungkit.data.phantom.anatomy import EMPTY, LENGTH_MM
from lungkit.data.phantom.patient import CLASSES, THICKNESS_MM, SyntheticPatient
from lungkit.errors import LungkitError

VERSION = 1  # of the drawing; raise it when the same seed gives other pixels
SYNTHETIC = "Synthetic phantom, not a patient"

HU_STEP = 4  # of compressed files: far below the noise, and a quarter of the size
Row = tuple[str, ...]  # of labels.csv
_WORTH_PROCESSES = 120  # slices
SLICES_A_PATIENT = 5.5  # on average, in a data set


@dataclass(frozen=True)
class Slice:
    """One synthetic axial slice, never of a patient.

    hu: int16 (size, size), Hounsfield units, -1024..3071. lesion, lungs: bool (size, size), lesion within
    lungs and empty for Normal. index: place in the series from the head, from 0. position_mm: z from the
    aortic arch to the feet. seed and patient_id name the series: equal ones give equal DICOM identifiers.
    """

    hu: np.ndarray
    lesion: np.ndarray
    lungs: np.ndarray
    label: str
    patient_id: str
    index: int
    pixel_spacing_mm: float
    position_mm: float
    seed: int


def make_patient(
    patient_id: str,
    label: str,
    seed: int,
    slices: int = 6,
    size: int = 224,
    affected_mm: tuple[float, float] = (0.0, LENGTH_MM),
) -> list[Slice]:
    """Slices of one synthetic patient from the aortic arch to the lung bases, evenly spaced.

    The same arguments give the same pixels. Every slice of Pneumonia and COVID-19 within `affected_mm` from the aortic
    arch (default: all) holds a lesion of at least about 150 mm²; the others are those of the same patient without
    disease. Raises LungkitError for an unknown label, no slices, or a size outside 64..1024.
    """
    if label not in CLASSES:
        raise LungkitError(f"no class '{label}' in the phantom; there are: {', '.join(CLASSES)}")
    if slices < 1 or not 64 <= size <= 1024:
        raise LungkitError(f"{slices} slices of {size} pixels; a patient has 1 or more slices of 64 to 1024 pixels")
    patient = SyntheticPatient(patient_id, label, seed, size, affected_mm)
    series = []
    for index, z_mm in enumerate((np.arange(slices) + 0.5) / slices * LENGTH_MM):
        hu, lesion, lungs = patient.slice(z_mm)
        hu = np.clip(np.rint(hu), EMPTY, 3071).astype(np.int16)
        series.append(Slice(hu, lesion, lungs, label, patient_id, index, patient.pixel_mm, float(z_mm), seed))
    return series


# --- files ------------------------------------------------------------------------------------------


def write_dicom(slice: Slice, path: str | Path, compressed: bool = True, original: bool = False) -> Path:
    """Write one slice as DICOM CT Image Storage that says in several places that it is synthetic.

    compressed: JPEG 2000 lossless of values in steps of HU_STEP, so read back within 2 HU; otherwise
    uncompressed and exact. Identifiers depend on seed, patient and index only: the slices of one patient
    form one series in one study. original: ImageType states an original image, as a scanner's slices do; such slices
    are a volume, others only slices. Returns the path.
    """
    step = HU_STEP if compressed else 1
    series = ("lungkit phantom", str(slice.seed), slice.patient_id)
    instance = generate_uid(entropy_srcs=[*series, "image", str(slice.index)])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, instance
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*series, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*series, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*series, "frame"])
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if original else ["DERIVED", "SECONDARY", "AXIAL"]
    ds.Manufacturer, ds.ManufacturerModelName = "lungkit", f"phantom {VERSION}"
    ds.PatientName, ds.PatientID = "SYNTHETIC^PHANTOM", slice.patient_id
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ds.StudyID = ds.PositionReferenceIndicator = ds.KVP = ds.AcquisitionNumber = ""
    ds.Modality, ds.BodyPartExamined, ds.PatientPosition = "CT", "CHEST", "HFS"
    ds.SeriesDescription = ds.ImageComments = SYNTHETIC
    ds.SeriesNumber, ds.InstanceNumber, ds.BurnedInAnnotation = 1, slice.index + 1, "NO"
    corner = -(len(slice.hu) - 1) / 2 * slice.pixel_spacing_mm
    ds.ImagePositionPatient = [round(corner, 4), round(corner, 4), round(-slice.position_mm, 4)]
    ds.ImageOrientationPatient, ds.SliceThickness = [1, 0, 0, 0, 1, 0], THICKNESS_MM
    ds.PixelSpacing = [slice.pixel_spacing_mm] * 2
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = slice.hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = step, EMPTY, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500
    stored = np.rint((slice.hu.astype(np.int32) - EMPTY) / step).astype("<u2")
    ds.PixelData = stored.tobytes()
    if compressed:
        ds.compress(JPEG2000Lossless, stored, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    path = Path(path)
    ds.save_as(path, enforce_file_format=True)
    return path


def make_dataset(
    folder: str | Path, n_slices: int = 1500, seed: int = 7, size: int = 224, workers: int | None = None
) -> Path:
    """A synthetic data set in `folder`: slices/*.dcm, masks/*.png (lesions, 0 or 255), labels.csv, dataset.json.

    Classes are balanced, with five or six slices a patient; patients carry numbers that say nothing of their class.
    `workers` processes draw (default: one a processor, of few slices this one). The folder appears whole or not at all.
    One that is there already is returned at once if it was made with the same parameters. Raises LungkitError if it
    holds anything else, or for fewer than one slice a class.
    """
    if n_slices < len(CLASSES) or seed < 0 or not 64 <= size <= 1024:
        raise LungkitError(
            f"phantom of {n_slices} slices, seed {seed}, {size} pixels; accepted: {len(CLASSES)} or more slices, "
            "a seed from 0, 64 to 1024 pixels"
        )
    folder = Path(folder)
    parameters = {
        "name": "phantom",
        "synthetic": True,
        "note": SYNTHETIC,
        "version": VERSION,
        "classes": list(CLASSES),
        "n_slices": n_slices,
        "seed": seed,
        "size": size,
    }
    if _made_before(folder, parameters):
        return folder
    with files.new_folder(folder) as draft:
        (draft / "slices").mkdir()
        (draft / "masks").mkdir()
        jobs = (delayed(_write_patient)(draft, *patient, seed, size) for patient in _patients(n_slices, seed))
        with ignored():  # by the workers too, which begin here: Ctrl-C is this process's to answer
            here = n_slices < _WORTH_PROCESSES  # sooner drawn than other processes have begun
            written = Parallel(n_jobs=workers or (1 if here else os.cpu_count()), return_as="generator_unordered")(jobs)
        rows = []
        with progress.bar(total=n_slices, label="phantom", unit="slice") as bar:
            for of_patient in written:
                rows += of_patient
                bar.update(len(of_patient))
        with (draft / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["file", "label", "patient_id", "split", "source", "mask"])
            table.writerows(sorted(rows))
        (draft / "dataset.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(_README.format(**parameters), encoding="utf-8")
    if not _made_before(folder, parameters):  # someone else made another folder there meanwhile
        raise LungkitError(f"{folder} could not be made; give another folder")
    return folder


_README = """# Phantom: synthetic chest CT

**Synthetic.** Computer-drawn images, not of patients and not made from images of patients. Nothing learned
or measured here says anything about people. {n_slices} slices of {size}x{size} pixels, seed {seed}, drawing
version {version}.

- `slices/`: DICOM CT, JPEG 2000 lossless, Hounsfield units in steps of 4
- `masks/`: lesion masks (0 or 255), for slices that hold a lesion
- `labels.csv`: file, label, patient_id, split (empty), source, mask
- `dataset.json`: the parameters that this folder was made with
"""


def _made_before(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether `folder` holds this very data set; False if absent or empty, LungkitError if it holds another."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        there = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise LungkitError(f"{folder} exists and is no phantom data set; give a new or an empty folder")
    differing = [key for key in parameters if there.get(key) != parameters[key]]
    if differing:
        differences = ", ".join(f"{key} {there.get(key)} instead of {parameters[key]}" for key in differing)
        raise LungkitError(f"{folder} holds another data set ({differences}); give another folder, or delete it")
    return True


def _patients(n_slices: int, seed: int) -> list[tuple[str, str, int]]:
    """(patient_id, label, slices) of each patient; the numbers are dealt out at random over the classes."""
    patients = []
    for place, label in enumerate(CLASSES):
        slices = n_slices // len(CLASSES) + (place < n_slices % len(CLASSES))
        number = math.ceil(slices / SLICES_A_PATIENT)
        patients += [(label, slices // number + (k < slices % number)) for k in range(number)]
    order = np.random.default_rng(seed).permutation(len(patients))
    return [(f"P{place + 1:04d}", *patients[k]) for place, k in enumerate(order)]


def _write_patient(folder: Path, patient_id: str, label: str, slices: int, seed: int, size: int) -> list[Row]:
    """Draw one patient into the data set; returns the rows of labels.csv. Runs in a worker process."""
    rows: list[Row] = []
    for cut in make_patient(patient_id, label, seed, slices, size):
        name = f"{patient_id}_{cut.index + 1:02d}"
        write_dicom(cut, folder / "slices" / f"{name}.dcm")
        mask = ""
        if cut.lesion.any():
            mask = f"masks/{name}.png"
            Picture.fromarray(cut.lesion).save(folder / mask)
        rows.append((f"slices/{name}.dcm", label, patient_id, "", "phantom", mask))
    return rows
