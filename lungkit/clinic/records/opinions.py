"""Second and third readers: which images wait for another doctor's label, and which of several labels counts.

A reader who gives no class has a say too: where most say that no class fits, the image is settled as not usable.
The lists say which image it is, never what a reader or the model said. Patients who are excluded from learning, and
images that were withdrawn, are in none of them.
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
from lungkit.clinic.records.corrections import still_counts
from lungkit.clinic.records.reviewing import ReviewRow
from lungkit.clinic.records.tables import CLASS, Patient, Reading, Review, Study

NO_CLASS = ""  # the vote of a reader who says that no class fits, for whatever reason
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
    """What the readers of an image say.

    label: the one that counts; empty where the image stays aside. unusable: they are settled that no class fits.
    """

    said: dict[str, str]  # full name to the latest label, or why there is none, in the order of the first reviews
    label: str
    unusable: bool


def vote(kind: str, label: str) -> str:
    """What a review counts as: its class, or NO_CLASS. A label that comes with another finding is no vote for it."""
    return label if kind == CLASS else NO_CLASS


def settled(votes: Sequence[str]) -> str | None:
    """The vote of all readers or, of three readers or more, of most of them: a class or NO_CLASS; None: they differ.

    votes: that of the latest review of each reader.
    """
    if not votes:
        return None
    said, number = Counter(votes).most_common(1)[0]
    return said if number == len(votes) or (len(votes) >= _THIRD and 2 * number > len(votes)) else None


def standing(reviews: Iterable[ReviewRow]) -> Standing:
    """What the reviews of a reading come to; reviews: oldest first."""
    latest = {review.reviewer_id: review for review in reviews}
    counts = settled([vote(review.kind, review.label) for review in latest.values()])
    return Standing({one.reviewer: one.says for one in latest.values()}, counts or "", counts == NO_CLASS)


def to_read_again(access: Entry) -> list[WaitingRow]:
    """Images that one other doctor has read without the answer, and no one else, oldest reading first.

    Also where that doctor says that no class fits.
    """

    def wanted(reviews: _Reviews) -> bool:
        return len(_latest(reviews)) == 1 and not reviews[0].answer_shown

    return _waiting(access, wanted)


def readers_differ(access: Entry) -> list[WaitingRow]:
    """Images of which two other doctors say different things, and no one else anything, oldest reading first."""

    def wanted(reviews: _Reviews) -> bool:
        return len(latest := _latest(reviews)) == 2 and settled(list(latest.values())) is None

    return _waiting(access, wanted)


def _waiting(access: Entry, wanted: Callable[[_Reviews], bool]) -> list[WaitingRow]:
    with access.reads("doctor") as (db, actor):
        rows = [reviews[0] for reviews in _others(db, actor) if wanted(reviews)]
    names = [field.name for field in fields(WaitingRow)]
    found = (WaitingRow(**{name: getattr(row, name) for name in names}) for row in rows)
    return sorted(found, key=lambda row: (row.read_at, row.reading_id))


def _latest(reviews: _Reviews) -> dict[int, str]:
    """Each reader's latest vote."""
    return {review.reviewer_id: vote(review.said, review.label) for review in reviews}


def _others(db: orm.Session, actor: Actor) -> list[_Reviews]:
    """The reviews of each image that this person has not reviewed: readings of one file by one model."""
    query = (
        sa.select(
            Review.reviewer_id, Review.kind.label("said"), Review.label, Review.answer_shown, Review.reading_id,
            Study.sha256, Study.kind, Reading.model, Reading.read_at, Patient.number, Patient.name, Patient.excluded,
        )
        .join(Reading, Reading.id == Review.reading_id)
        .join(Study, Study.id == Reading.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .where(still_counts())
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
