"""Images that were saved for the wrong patient, or by mistake: withdrawn, or moved to the right one.

A withdrawn image is kept, and says who withdrew it and why; it counts in no figure. Each query behind a figure has the
condition `still_counts`. A move takes along all that belongs to the image: readings, reviews, the drawing for blind
reading, slices and the headers of DICOM images. Whether a model is for the patient's age is asked again. Where the
image was read again, both concern all its studies. The functions act in the caller's transaction, where the role was
checked.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, dispatches, studies
from lungkit.clinic.records.accounts import Actor
from lungkit.clinic.records.patients import PatientRow, RecordRefused, age_at, patient_row, text_of
from lungkit.clinic.records.tables import (
    CLASS,
    CtSeries,
    Patient,
    Reading,
    Study,
    StudyHash,
    StudyMove,
    User,
    Withdrawal,
)
from lungkit.data.image import OLDEST_SHOWN, Stated, years_in
from lungkit.errors import LungkitError
from lungkit.models import population, registry
from lungkit.models.prediction import AGE, REVIEW, Check, decided, is_outside, refusal
from lungkit.models.rule import DecisionRule

SAME_IMAGE = "same image"  # as the audit trail notes the question about an image that another patient has
_OF_AGE = (AGE, population.AGE_KNOWN)
_NOT_ASKED = "it was refused for another patient and not looked at further: send the series again to have it read"


@dataclass(frozen=True)
class Withdrawn:
    """By whom an image was withdrawn, when and why."""

    by: str  # full name
    at: datetime
    reason: str = field(repr=False)


@dataclass(frozen=True)
class Moved:
    """A move of an image to the patient it belongs to. before: the patient's number; empty if erased since."""

    before: str
    by: str  # full name
    at: datetime
    reason: str = field(repr=False)


@dataclass(frozen=True)
class Corrections:
    """What was corrected about an image: its withdrawal, which cannot be undone, and its moves, oldest first."""

    withdrawn: Withdrawn | None = None
    moves: tuple[Moved, ...] = ()


def still_counts(study_id: Any = Study.id) -> sa.ColumnElement[bool]:
    """Whether an image counts in figures: it was not withdrawn. study_id: the column that names the image."""
    condition: sa.ColumnElement[bool] = study_id.not_in(sa.select(Withdrawal.study_id))
    return condition


def reading_still_counts(reading_id: Any) -> sa.ColumnElement[bool]:
    """As `still_counts`, for a query that has the column of a reading and not the image."""
    study = orm.aliased(Study)  # not that of a query around it
    readings = orm.aliased(Reading)
    gone = sa.select(readings.id).join(study, study.id == readings.study_id).where(~still_counts(study.id))
    condition: sa.ColumnElement[bool] = reading_id.not_in(gone)
    return condition


class SavedElsewhere(RecordRefused):
    """Another patient has the same image, and no one was asked about that; nothing was saved."""

    def __init__(self, owners: Sequence[PatientRow]):
        super().__init__(f"{' '.join(map(saved_for, owners))} Nothing was saved")
        self.owners = owners


def saved_for(owner: PatientRow) -> str:
    """That a patient has the same image, as a sentence."""
    return f"The same image is already saved for patient {owner.number}, {owner.name}."


def others_with(db: orm.Session, sha256: str, patient_id: str, pixels_sha256: str = "") -> list[PatientRow]:
    """The patients who have the same file, or one with the same pixels, without this one."""
    counting = sa.select(Study.patient_id).where(still_counts())
    of_pixels = counting.join(StudyHash).where(StudyHash.pixels_sha256 == pixels_sha256)
    same = counting.where(Study.sha256 == sha256).union(of_pixels)
    owners = sa.select(Patient).where(Patient.id.in_(same), Patient.id != patient_id).order_by(Patient.number)
    return [patient_row(row) for row in db.scalars(owners)]


def withdraw(db: orm.Session, actor: Actor, reading: Reading, reason: str) -> None:
    """Take the image of a reading out of all figures. What waits to be sent of it is not sent any more.

    Systems that may have results of it are told.
    Raises RecordRefused without a reason, or if the image was withdrawn before.
    """
    reason = _reason(reason)
    if db.get(Withdrawal, reading.study_id) is not None:
        raise RecordRefused("this image was withdrawn before; nothing was changed")
    for study in studies.of_same_image(db, reading.study):
        if db.get(Withdrawal, study.id) is not None:
            continue
        readings = studies.readings_of([study])
        had = dispatches.sent_for(db, readings)
        db.add(Withdrawal(study_id=study.id, reason=reason, user_id=actor.user_id))
        stopped, told = dispatches.enqueue_withdrawal(db, readings, "the image was withdrawn")
        audit_trail.append(db, actor.user_id, "case.withdraw", f"reading:{_opened(study, reading)}", study=study.id,
                           patient=study.patient_id, sent=had, not_sent=stopped, told=told)  # fmt: skip


def move(db: orm.Session, actor: Actor, reading: Reading, to: Patient, reason: str) -> None:
    """Give the image of a reading, with all that belongs to it, to another patient.

    Its readings become those that their versions give for a patient of that age. FHIR and HL7 systems that may have
    results of it are told. Raises RecordRefused without a reason, and if the image is this patient's already or this
    patient has the same one.
    """
    reason = _reason(reason)
    if reading.study.patient_id == to.id:
        raise RecordRefused(f"this image is already one of patient {to.number}; nothing was changed")
    moved = studies.of_same_image(db, reading.study)
    same = sa.select(Study.id).where(Study.patient_id == to.id, Study.sha256 == reading.study.sha256, still_counts())
    if db.scalar(same.limit(1)) is not None:
        raise RecordRefused(f"patient {to.number} has the same image already; withdraw this one instead")
    for study in moved:
        before, study.patient_id = study.patient_id, to.id
        db.add(
            StudyMove(study_id=study.id, from_patient=before, to_patient=to.id, reason=reason, user_id=actor.user_id)
        )
        changed = [one.id for one in study.readings if _ask_age_again(db, one, study, to.birth_year)]
        number = sa.select(sa.func.count()).where(StudyMove.study_id == study.id)
        told = dispatches.enqueue_move(db, studies.readings_of([study]), db.scalar(number) or 0)
        audit_trail.append(db, actor.user_id, "case.move", f"reading:{_opened(study, reading)}", study=study.id,
                           before=before, after=to.id, sent=sent(db, [study]), told=told,
                           age_checked_again=changed)  # fmt: skip


def _opened(study: Study, reading: Reading) -> str:
    """Which reading of a study an event is about: the one that a person had open, or the study's latest one."""
    return reading.id if reading.study_id == study.id else study.readings[-1].id


def _ask_age_again(db: orm.Session, reading: Reading, study: Study, birth_year: int | None) -> bool:
    """Ask whether the version is for a patient born in this year, as when it read; whether that changed the reading.

    What else was computed stays: the decision becomes the one that the version would give for this patient.
    """
    before = [Check(**check) for check in reading.checks if check["name"] in _OF_AGE]
    now = _age_checks(reading, study, birth_year, bool(before))
    if now == before:
        return False
    others = [check for check in reading.checks if check["name"] not in _OF_AGE]
    reading.checks = [*others, *map(asdict, now)]
    series = db.get(CtSeries, reading.id)
    if series:
        said = {check.words.rpartition(" slices that decide: ")[2] for check in before}
        failed = [check.words for check in now if not check.passed]
        refused = [_NOT_ASKED] if any(map(is_outside, before)) else []
        series.reasons = failed + (refused or [reason for reason in series.reasons if reason not in said])
    if not all(check.passed for check in now):
        reading.decision = REVIEW
    elif not all(check.passed for check in before):
        rule, checks = DecisionRule.from_dict(reading.point), [Check(**check) for check in reading.checks]
        of_image = decided(reading.label, reading.probabilities, rule, checks)
        reading.decision = of_image if series is None else REVIEW if series.reasons else reading.label
    hidden = refusal(Check(**check) for check in reading.checks)
    for review in reading.reviews:
        if review.kind == CLASS:
            review.agrees = None if hidden else review.label == reading.label
    return True


def _age_checks(reading: Reading, study: Study, birth_year: int | None, asked: bool) -> list[Check]:
    """What the version's card says of the patient's age; asked: whether it said something when the image was read."""
    stated, by_year = years_in(study.tags.get("age", "")), age_at(birth_year, study.tags)
    try:
        card = registry.find(f"{reading.model}@{reading.version}").card
    except LungkitError:
        words = "the image was moved to another patient, and the version that read it is no longer there to say whether"
        return [Check(population.AGE_KNOWN, False, 0.0, 1.0, f"{words} it is for this age")] if asked else []
    return [check for check in population.checks(card, Stated(stated), by_year) if check.name in _OF_AGE]


def of_study(db: orm.Session, study_id: str) -> Corrections:
    """What was corrected about an image."""
    row = db.get(Withdrawal, study_id, options=[orm.joinedload(Withdrawal.user)])
    withdrawn = Withdrawn(row.user.full_name, row.at, row.reason) if row else None
    moves = (
        sa.select(Patient.number, User.full_name, StudyMove.at, StudyMove.reason)
        .join(User, User.id == StudyMove.user_id)
        .outerjoin(Patient, Patient.id == StudyMove.from_patient)
        .where(StudyMove.study_id == study_id)
        .order_by(StudyMove.at, StudyMove.id)
    )
    return Corrections(withdrawn, tuple(Moved(row[0] or "", *row[1:]) for row in db.execute(moves)))


def doubts(db: orm.Session, study: Study, to: PatientRow) -> list[str]:
    """What speaks against a move, in words, as far as the records can tell: they keep no name of a file's header."""
    now = patient_row(study.patient)
    said = []
    if now.birth_year and to.birth_year and now.birth_year != to.birth_year:
        said.append(f"Patient {now.number} was born in {now.birth_year}, patient {to.number} in {to.birth_year}.")
    if "unknown" not in (now.sex, to.sex) and now.sex != to.sex:
        said.append(f"Patient {now.number} is {now.sex}, patient {to.number} is {to.sex}.")
    said += _doubt_of_age(study, to)
    return said


def _doubt_of_age(study: Study, to: PatientRow) -> list[str]:
    """What the age that a file states says against a patient's birth year, which tells an age to the year."""
    age = years_in(study.tags.get("age", ""))
    if age is None or to.birth_year is None:
        return []
    taken = "study_year" in study.tags
    by_year = age_at(to.birth_year, study.tags if taken else {"study_year": str(study.uploaded_at.year)}) or 0.0
    if not taken or age >= OLDEST_SHOWN:  # older by these years, the patient may still have been of that age
        by_year = min(by_year, age)
    if abs(by_year - age) <= 1:  # a birth year tells no more
        return []
    which = "younger" if by_year < age else "older"
    return [f"The file states an age of {age:.0f} years, and patient {to.number} is {which}."]


def sent(db: orm.Session, of_image: list[Study]) -> int:
    """How many results about an image, with all its studies, other systems have, or may have by now."""
    return dispatches.sent_for(db, studies.readings_of(of_image))


def _reason(text: str) -> str:
    reason = text_of("reason", text)
    if not reason:
        raise RecordRefused("write the reason first; nothing was changed")
    return reason
