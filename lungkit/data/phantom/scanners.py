"""Two scanners, and the same synthetic patients as each of them shows them: pictures in 8 bits, with their source.

They differ in what tells real CT scanners apart: noise, reconstruction kernel, table and window. A patient's anatomy,
breathing and grains of noise are the same under each, so pictures can be compared in pairs.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from lungkit import files, progress
from lungkit.data import preprocess
from lungkit.data.phantom import VERSION
from lungkit.data.phantom.anatomy import AIR, LENGTH_MM, TABLE
from lungkit.data.phantom.patient import COVID, NORMAL, SyntheticPatient


@dataclass(frozen=True)
class Scanner:
    """How a scanner shows a patient."""

    noise_hu: float  # standard deviation
    kernel_px: float  # of a Gaussian; a sharp kernel is narrow
    table_hu: float  # AIR: no table shows under the body
    window: tuple[float, float]  # level and width in HU

    def picture(self, patient: SyntheticPatient, drawn: np.ndarray, seed: list[int]) -> np.ndarray:
        """A slice as SyntheticPatient.draw gives it, as this scanner shows it: uint8 (size, size)."""
        hu = patient.scan(drawn, np.random.default_rng(seed), self.noise_hu, self.kernel_px)
        return np.asarray(np.rint(255 * preprocess.window_level(hu, *self.window)), np.uint8)


A = Scanner(noise_hu=24.0, kernel_px=0.85, table_hu=AIR, window=(-600.0, 1500.0))
B = Scanner(noise_hu=42.0, kernel_px=0.45, table_hu=TABLE, window=(-500.0, 1200.0))
# A after its protocol was changed: other slices look as different as those of another hospital.
CHANGED = Scanner(noise_hu=24.0, kernel_px=3.0, table_hu=TABLE, window=(-750.0, 700.0))
PLAIN, OTHER = "scanner A", "scanner B"
VIEWS = {  # the two scanners, and A with one property of B
    PLAIN: A,
    "noise": replace(A, noise_hu=B.noise_hu),
    "kernel": replace(A, kernel_px=B.kernel_px),
    "table": replace(A, table_hu=B.table_hu),
    "window": replace(A, window=B.window),
    OTHER: B,
}


def pictures(
    patient: SyntheticPatient, views: Mapping[str, Scanner], slices: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Each of the patient's slices, by the name of the scanner that shows it."""
    for index, z_mm in enumerate((np.arange(slices) + 0.5) / slices * LENGTH_MM):
        drawn = {hu: patient.draw(z_mm, hu)[0] for hu in {scanner.table_hu for scanner in views.values()}}
        yield {name: one.picture(patient, drawn[one.table_hu], [seed, index]) for name, one in views.items()}


def uneven(sick: np.ndarray, share: float) -> np.ndarray:
    """Which patients scanner B shows, bool (n,): of every ten sick ones this share, of ten others as many fewer.

    sick: bool (n,). share: 0..1, in tenths. At 0.5 the scanner says nothing about the disease.
    """
    place = np.where(sick, np.cumsum(sick), np.cumsum(~sick)) - 1
    return np.asarray(place % 10 < np.rint(10 * np.where(sick, share, 1 - share)))


def make_set(
    parent: Path, name: str, patients: int, share: float | None, *, slices: int = 2, seed: int = 7, size: int = 96
) -> Path:
    """A data set in a folder below `parent`, every second patient with COVID-19; a picture's source is its scanner.

    share: as in `uneven`, one scanner for each patient; None: every patient in all VIEWS. Another name has other
    patients. The folder's name is `name` and a mark of all that decides the pixels; one that is there is kept.
    """
    mark = files.sha256(repr((VERSION, VIEWS, patients, share, slices, seed, size)).encode())[:8]
    folder = parent / f"{name}-{mark}"
    if folder.is_dir():
        return folder
    sick, rows = np.arange(patients) % 2 == 1, []
    by_b = uneven(sick, share or 0.0)
    with files.new_folder(folder) as draft:
        for view in VIEWS:
            (draft / view).mkdir()
        for number in progress.bar(range(patients), label=name, unit="patient"):
            who, label = f"{name}-{number:03d}", (NORMAL, COVID)[int(sick[number])]
            patient, taken = SyntheticPatient(who, label, seed, size), VIEWS
            if share is not None:
                taken = {view: VIEWS[view] for view in [(PLAIN, OTHER)[int(by_b[number])]]}
            for index, of_slice in enumerate(pictures(patient, taken, slices, seed + number)):
                for view, picture in of_slice.items():
                    Picture.fromarray(picture).save(draft / view / f"{who}-{index}.png")
                    rows.append((f"{view}/{who}-{index}.png", label, who, view))
        with (draft / "labels.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([("file", "label", "patient_id", "source"), *rows])
        (draft / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": [NORMAL, COVID]}), "utf-8")
    return folder


DEVICES = {"A": A, "B": B, "A, new protocol": CHANGED}


def make_ward(parent: Path, patients: int, *, slices: int = 2, seed: int = 7, size: int = 96) -> Path:
    """A data set in a folder below `parent`: each patient under one of DEVICES in turn, every second with COVID-19.

    The column `device` of its labels.csv says which: an attribute, and not the source. The folder's name has a mark of
    all that decides the pixels; one that is there is kept.
    """
    mark = files.sha256(repr((VERSION, DEVICES, patients, slices, seed, size)).encode())[:8]
    folder = parent / f"ward-{mark}"
    if folder.is_dir():
        return folder
    rows = []
    with files.new_folder(folder) as draft:
        for number in progress.bar(range(patients), label="ward", unit="patient"):
            who, label = f"ward-{number:03d}", (NORMAL, COVID)[number % 2]
            device = list(DEVICES)[number // 2 % len(DEVICES)]
            shown = pictures(SyntheticPatient(who, label, seed, size), {device: DEVICES[device]}, slices, seed + number)
            for index, of_slice in enumerate(shown):
                Picture.fromarray(of_slice[device]).save(draft / f"{who}-{index}.png")
                rows.append((f"{who}-{index}.png", label, who, device))
        with (draft / "labels.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([("file", "label", "patient_id", "device"), *rows])
        (draft / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": [NORMAL, COVID]}), "utf-8")
    return folder
