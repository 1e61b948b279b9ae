"""A made-up clinic, for notebook 09: drawn patients come day by day, a model reads them, and a reader reviews them.

Its records are like those of any clinic, but in a folder of their own. Nobody in them is a person.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from PIL import Image as Picture

from lungkit import files, progress
from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records import accounts, maintenance, settings
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import Reading, Review, Study, now
from lungkit.data import images
from lungkit.data.phantom.anatomy import LENGTH_MM
from lungkit.data.phantom.patient import COVID, NORMAL, SyntheticPatient
from lungkit.data.phantom.scanners import A, Scanner


@dataclass(frozen=True, eq=False)
class Clinic:
    """Its records, and what its only doctor may do with them."""

    store: Store
    doctor: Records


@dataclass(frozen=True)
class Phase:
    """So many days with one scanner. reviewed: share of the readings that the reader labels."""

    days: int
    scanner: Scanner
    reviewed: float


@dataclass(frozen=True)
class Reader:
    """blind: share of the images that are read without the model's answer. wrong: share of wrong labels."""

    blind: float = 0.0
    wrong: float = 0.0


def apart(folder: Path) -> None:
    """From now on, this process has its registry, its data and its reports in `folder`, and touches no others."""
    os.environ.update({f"LUNGKIT_{name.upper()}": str(folder / name) for name in ("artifacts", "data", "reports")})


def opened(folder: Path) -> Clinic:
    """A clinic with new records in a folder."""
    store = Store(f"sqlite:///{folder / 'records.db'}")
    maintenance.upgrade(store)
    with store.write() as db:
        password = accounts.add_user(db, "reader", "Made-up Reader", "doctor")
    access = accounts.Access(store, accounts.sign_in(store, "reader", password, "127.0.0.1"))
    return Clinic(store, Records(access))


def live(
    clinic: Clinic,
    predictor: Predictor,
    phases: Sequence[Phase],
    reader: Reader,
    a_day: int,
    size: int,
    seed: int = 7,
) -> None:
    """Let days pass, of which the last one is today: `a_day` patients each, every second one with COVID-19.

    size: pixels of a side of the slices, one of each patient.
    """
    random, times = np.random.default_rng(seed), dict[str, datetime]()
    total = sum(phase.days for phase in phases)
    with clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, reader.blind)
    days = progress.bar(_days(phases), total=total, label="days of the clinic", unit="day")
    for day, phase in enumerate(days):
        for number in range(a_day):
            who, label = f"visitor-{day}-{number}", (NORMAL, COVID)[number % 2]
            reading_id = visit(clinic.doctor, predictor, who, label, phase.scanner, size, seed)
            times[reading_id] = now() - timedelta(days=total - 1 - day, minutes=a_day - number)
            if random.random() < phase.reviewed:
                _review(clinic.doctor, reading_id, label, reader, random)
    _date(clinic.store, times)


def visit(
    doctor: Records, predictor: Predictor, who: str, label: str, scanner: Scanner, size: int, seed: int = 7
) -> str:
    """A patient who is new comes to a scanner, and a slice is read; the id of the reading."""
    image = _image(who, label, scanner, size, seed)
    content = files.sha256(image.pixels.tobytes())
    return doctor.save_case(NewPatient(who, "Made-up"), image, content, predictor.read(image)).reading_id


def home_set(folder: Path, patients: int, size: int, seed: int = 7) -> Path:
    """The images from before there were reviews, a data set in a new folder: patients of scanner A, a slice of each."""
    with files.new_folder(folder) as draft:
        lines = ["file,label,patient_id,source"]
        for number in progress.bar(range(patients), label=folder.name, unit="patient"):
            who, label = f"{folder.name}-{number:04d}", (NORMAL, COVID)[number % 2]
            greys = np.rint(_image(who, label, A, size, seed).pixels * 255).astype(np.uint8)
            Picture.fromarray(greys).save(draft / f"{who}.png")
            lines.append(f"{who}.png,{label},{who},{folder.name}")
        (draft / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")
        (draft / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": [NORMAL, COVID]}), "utf-8")
    return folder


def one_patient(shown_by: Mapping[str, Scanner], size: int, seed: int = 7) -> dict[str, np.ndarray]:
    """A patient with COVID-19 as each scanner shows it, by its name: greys 0..1 (size, size)."""
    return {name: _image("example", COVID, scanner, size, seed).pixels for name, scanner in shown_by.items()}


def _days(phases: Sequence[Phase]) -> Iterator[Phase]:
    for phase in phases:
        yield from [phase] * phase.days


def _image(who: str, label: str, scanner: Scanner, size: int, seed: int) -> images.Image:
    """A slice through the middle of the lungs of a drawn patient, as a scanner shows it."""
    patient = SyntheticPatient(who, label, seed, size)
    drawn, _, _ = patient.draw(LENGTH_MM / 2, scanner.table_hu)
    pixels = scanner.picture(patient, drawn, [seed, len(who)])
    return images.Image(pixels.astype(np.float32) / 255, "intensity", "CT", f"{who}.png", {})


def _review(records: Records, reading_id: str, truth: str, reader: Reader, random: np.random.Generator) -> None:
    label = truth if random.random() >= reader.wrong else {NORMAL: COVID, COVID: NORMAL}[truth]
    records.review(reading_id, label)


def _date(store: Store, times: dict[str, datetime]) -> None:
    """Give the readings, their studies and their reviews the times when they would have been made."""
    with store.write() as db:
        for reading in db.scalars(sa.select(Reading).where(Reading.id.in_(times))):
            at = times[reading.id]
            reading.read_at = at
            db.execute(sa.update(Study).where(Study.id == reading.study_id).values(uploaded_at=at))
            db.execute(sa.update(Review).where(Review.reading_id == reading.id).values(at=at + timedelta(minutes=1)))
