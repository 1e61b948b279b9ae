"""Second and third readers: which images wait for another doctor's label, and which of several labels counts.

The lists say which image it is, never what a reader or the model said. Patients who are excluded from learning are in
none of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records.accounts import Actor, Entry
from lungkit.clinic.records.cases import ReviewRow
from lungkit.clinic.records.tables import Patient, Reading, Review, Study

_THIRD = 3  # with so many readers, most of them decide
_Reviews = list[sa.Row[tuple[Any, ...]]]  # of one image, oldest first


@dataclass(frozen=True)
class WaitingRow:
    """An image that waits for another reader."""

    reading_id: str
    number: str  # of the patient
    name: str  # of the patient
    kind: str
    model: str
    read_at: datetime


@dataclass(frozen=True)
class Standing:
    """What the readers of an image say. label: the one that counts; empty where the image stays aside."""

    labels: dict[str, str]  # full name to the latest label, in the order of the first labels
    label: str


def label_that_counts(labels: Sequence[str]) -> str:
    """The label of all readers or, of three readers or more, of most of them; empty where there is none.

    labels: the latest label of each reader.
    """
    if not labels:
        return ""
    label, votes = Counter(labels).most_common(1)[0]
    return label if votes == len(labels) or (len(labels) >= _THIRD and 2 * votes > len(labels)) else ""


def standing(reviews: Iterable[ReviewRow]) -> Standing:
    """What the reviews of a reading come to; reviews: oldest first."""
    latest = {review.reviewer_id: review for review in reviews}
    return Standing(
        {review.reviewer: review.label for review in latest.values()},
        label_that_counts([review.label for review in latest.values()]),
    )


def to_read_again(access: Entry) -> list[WaitingRow]:
    """Images that one other doctor has labelled without the answer, and no one else, oldest reading first."""

    def wanted(reviews: _Reviews) -> bool:
        return len(_latest(reviews)) == 1 and not reviews[0].answer_shown

    return _waiting(access, wanted)


def readers_differ(access: Entry) -> list[WaitingRow]:
    """Images that two other doctors have labelled differently, and no one else, oldest reading first."""

    def wanted(reviews: _Reviews) -> bool:
        return len(latest := _latest(reviews)) == 2 and not label_that_counts(list(latest.values()))

    return _waiting(access, wanted)


def _waiting(access: Entry, wanted: Callable[[_Reviews], bool]) -> list[WaitingRow]:
    with access.reads("doctor") as (db, actor):
        rows = [reviews[0] for reviews in _others(db, actor) if wanted(reviews)]
    names = [field.name for field in fields(WaitingRow)]
    found = (WaitingRow(**{name: getattr(row, name) for name in names}) for row in rows)
    return sorted(found, key=lambda row: (row.read_at, row.reading_id))


def _latest(reviews: _Reviews) -> dict[int, str]:
    """Each reader's latest label."""
    return {review.reviewer_id: review.label for review in reviews}


def _others(db: orm.Session, actor: Actor) -> list[_Reviews]:
    """The reviews of each image that this person has not labelled: readings of one file by one model."""
    query = (
        sa.select(
            Review.reviewer_id, Review.label, Review.answer_shown, Review.reading_id, Study.sha256, Study.kind,
            Reading.model, Reading.read_at, Patient.number, Patient.name, Patient.excluded,
        )
        .join(Reading, Reading.id == Review.reading_id)
        .join(Study, Study.id == Reading.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .order_by(Study.sha256, Reading.model, Review.at, Review.id)
    )  # fmt: skip
    rows: Sequence[Any] = db.execute(query).all()
    of_files = [list(of_file) for _, of_file in groupby(rows, lambda row: row.sha256)]
    return [
        list(of_image)
        for of_file in of_files
        if not any(row.reviewer_id == actor.user_id or row.excluded for row in of_file)
        for _, of_image in groupby(of_file, lambda row: row.model)
    ]
