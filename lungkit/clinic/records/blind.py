"""Blind reading: a share of uploads shows the model's answer to a reader only after that reader has given a label.

Chance chooses an upload in the transaction that saves it. All readings of one file are blind, or none of them is: a
second reading of a blind file, whoever saves it and for whatever patient, is blind too, and a file whose answer could
be seen before is never chosen. The same picture in another file is another file here.
"""

import random
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, settings
from lungkit.clinic.records.accounts import Actor
from lungkit.clinic.records.tables import PROGRAM, BlindReading, Reading, Review, Study

_chance = random.SystemRandom()  # no one can foresee it


def draw(db: orm.Session, actor: Actor, reading: Reading) -> bool:
    """Decide whether a new reading is blind, and note it; returns that. In the transaction that saves the reading.

    What a program saves is not chosen: the program gets the answer, and may show it to people.
    """
    others = sa.select(Reading.id).join(Study).where(Study.sha256 == reading.study.sha256, Reading.id != reading.id)
    if db.scalar(others.limit(1)) is not None:
        blind = db.scalar(_of_file(reading).limit(1)) is not None
    else:
        blind = actor.role != PROGRAM and _chance.random() < settings.get(db, settings.BLIND_SHARE)
    if blind:
        db.add(BlindReading(reading_id=reading.id))
        db.flush()
    return blind


def hidden_column(actor: Actor) -> sa.Label[bool]:
    """Whether the answer to a reading is withheld from this person, as the column "hidden" of a query of readings."""
    hidden = Reading.id.in_(_hidden(actor)) if _is_reader(actor) else sa.false()
    return hidden.label("hidden")


def hidden_from(db: orm.Session, actor: Actor) -> set[str]:
    """The readings whose answer is withheld from this person; none from administrators and programs."""
    return set(db.scalars(_hidden(actor))) if _is_reader(actor) else set()


def is_hidden(db: orm.Session, actor: Actor, reading: Reading) -> bool:
    """Whether the answer to this reading is withheld, as `hidden_from`."""
    this = _hidden(actor).where(BlindReading.reading_id == reading.id)
    return _is_reader(actor) and db.scalar(this) is not None


def has_labelled(db: orm.Session, actor: Actor, reading: Reading) -> bool:
    """Whether this person has given a label for a reading of the same file."""
    return bool(db.scalar(sa.select(sa.literal(reading.study.sha256).in_(_labelled(actor)))))


def could_have_seen(db: orm.Session, actor: Actor, reading: Reading) -> bool:
    """Whether this reader could have seen an answer for the same file, by whatever model.

    Not while it is withheld; but a reader who was an administrator since the file was chosen could see all answers.
    """
    if not is_hidden(db, actor, reading):
        return True
    chosen = db.scalar(_of_file(reading).order_by(BlindReading.drawn_at).limit(1))
    return audit_trail.noted(db, "user.role", f"user:{actor.user_id}", since=chosen)


def _of_file(reading: Reading) -> sa.Select[datetime]:
    """When readings of the same file were made blind."""
    rows = sa.select(BlindReading.drawn_at).join(Reading, Reading.id == BlindReading.reading_id).join(Study)
    return rows.where(Study.sha256 == reading.study.sha256)


def _labelled(actor: Actor) -> sa.Select[str]:
    """The files that this person has labelled."""
    study, reading = orm.aliased(Study), orm.aliased(Reading)  # not those of a query around it
    rows = sa.select(study.sha256).join(reading, reading.study_id == study.id)
    return rows.join(Review, Review.reading_id == reading.id).where(Review.reviewer_id == actor.user_id)


def _hidden(actor: Actor) -> sa.Select[str]:
    reading, study = orm.aliased(Reading), orm.aliased(Study)  # not those of a query around it
    rows = sa.select(BlindReading.reading_id).join(reading, reading.id == BlindReading.reading_id)
    return rows.join(study, study.id == reading.study_id).where(study.sha256.not_in(_labelled(actor)))


def _is_reader(actor: Actor) -> bool:
    return actor.role == "doctor"
