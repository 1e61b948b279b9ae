"""The reviewed readings whose label looks wrong by the model's own probabilities, as a list to look at again."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

import numpy as np
import sqlalchemy as sa

from lungkit.clinic.learning import reviews
from lungkit.clinic.learning.reviews import Asked, Reviewed
from lungkit.clinic.records import blind
from lungkit.clinic.records.accounts import Entry
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import Patient, Reading, Study
from lungkit.models.confident import doubtful

MANY = 0.2  # share of doubts; ten well-known data sets have 0.2 to 10 % wrong labels (Northcutt et al., NeurIPS 2021)


@dataclass(frozen=True)
class Doubt:
    """A label that looks wrong. looks_like: the class that it looks like, and the probability of that."""

    reading_id: str
    model: str
    label: str
    looks_like: str
    probability: float


@dataclass(frozen=True)
class DoubtRow:
    """A doubt with its patient, for a doctor's list."""

    doubt: Doubt
    number: str  # of the patient
    name: str  # of the patient
    kind: str
    read_at: datetime


def of_records(store: Store, asked: Asked) -> tuple[list[Doubt], int]:
    """The doubts, the largest first, and how many labels were looked at: those of the locked set too.

    Not looked at are labels of images that the version is not for, as its probabilities mean nothing there.
    """
    images = [
        image
        for locked in (False, True)
        for image in reviews.selected(store, Asked(asked.model, asked.since, locked)).labelled
        if not image.refused
    ]
    reviews.refuse_other_classes(images)
    return _doubts(images), len(images)


def look_again(access: Entry, most: int = 50) -> tuple[list[DoubtRow], int]:
    """The doubts for a doctor, the largest first, and how many there are; none whose answer is withheld or refused.

    most: so many at most about models with the same classes, which are judged together.
    The same file counts once. Pixels are not compared, which `of_records` does, and which takes long.
    """
    with access.reads("doctor") as (db, actor):
        images = [image for image in reviews.labelled_files(db, Asked()) if not image.refused]
        hidden = blind.hidden_from(db, actor)
        images.sort(key=_classes)
        found = [
            [doubt for doubt in _doubts(alike) if doubt.reading_id not in hidden]
            for _, alike in groupby(images, _classes)
        ]
        doubts = [one for some in found for one in some[:most]]
        of = (
            sa.select(Reading.id, Patient.number, Patient.name, Study.kind, Reading.read_at)
            .join(Study, Study.id == Reading.study_id)
            .join(Patient, Patient.id == Study.patient_id)
            .where(Reading.id.in_([doubt.reading_id for doubt in doubts]))
        )
        rows = {row.id: row for row in db.execute(of)}
    shown = [(doubt, rows[doubt.reading_id]) for doubt in doubts]
    return [DoubtRow(doubt, row.number, row.name, row.kind, row.read_at) for doubt, row in shown], sum(map(len, found))


def _classes(image: Reviewed) -> tuple[str, ...]:
    return tuple(sorted(image.probabilities))


def _doubts(of: Iterable[Reviewed]) -> list[Doubt]:
    """The doubts about images whose readings have the same classes, the largest first."""
    if not (images := list(of)):
        return []
    classes = _classes(images[0])
    probabilities = np.array([[image.probabilities[name] for name in classes] for image in images])
    found = doubtful(probabilities, np.array([classes.index(image.label) for image in images]))
    return [
        Doubt(images[at].reading_id, images[at].model, images[at].label, classes[like], float(probabilities[at, like]))
        for at, like in found
    ]
