"""What a doctor does with the records: find and enter patients, save, open and review readings.

Every action checks the role inside its own transaction (`accounts.Access`). What belongs together is saved in one
transaction, so there is never a patient without a study, or a study without its reading. The audit trail notes who
opened which case or patient, by random identifiers only.
"""

import re
import unicodedata
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, blind, dispatches, pixels, stacks
from lungkit.clinic.records.accounts import Actor, Entry
from lungkit.clinic.records.tables import (
    PROGRAM,
    SEXES,
    CtSeries,
    Patient,
    Reading,
    ReadingSource,
    Review,
    SeriesSlice,
    Study,
    User,
    new_id,
    now,
)
from lungkit.data import images
from lungkit.data.series import Series
from lungkit.errors import LungkitError
from lungkit.models.prediction import Check, GradeRange, Prediction, grade_range
from lungkit.models.rule import DecisionRule

LONGEST_NUMBER, LONGEST_NAME, LONGEST_TEXT = 64, 200, 4000  # characters
FIRST_BIRTH_YEAR = 1900
# Invisible characters that names need: they join letters in Persian and Indian scripts.
_JOINERS = "\u200c\u200d"
_NO_CASE = "that case is not in the records: its patient was erased, or it was never saved. Go back to the worklist"


class RecordRefused(LungkitError):
    """What was entered cannot be saved; nothing was saved."""


class RecordMissing(LungkitError):
    """That patient or case is not in the records (any more)."""


class AnswerHidden(LungkitError):
    """The answer to that reading is withheld from this reader, who has not given a label yet."""

    def __init__(self) -> None:
        super().__init__("this image is read blind: open it, give your label, and the model's answer is shown")


class PatientDiffers(RecordRefused):
    """The patient with that number is another one than was stated."""


@dataclass(frozen=True)
class PatientRow:
    """A patient, as search results and headings show one."""

    id: str
    number: str
    name: str
    birth_year: int | None
    sex: str
    excluded: bool = False  # not to be learned from


@dataclass(frozen=True)
class NewPatient:
    """A patient to enter. Raises RecordRefused, which says what is accepted, for values that cannot be saved."""

    number: str
    name: str
    birth_year: int | None = None
    sex: str = "unknown"

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", _line("patient number", self.number, LONGEST_NUMBER))
        object.__setattr__(self, "name", _line("name", self.name, LONGEST_NAME, _JOINERS))
        year, this_year = self.birth_year, now().year
        if year is not None and (type(year) is not int or not FIRST_BIRTH_YEAR <= year <= this_year):
            raise RecordRefused(
                f"birth year {year!r}: accepted are {FIRST_BIRTH_YEAR} to {this_year}, or nothing if it is not known"
            )
        if self.sex not in SEXES:
            raise RecordRefused(f"sex {self.sex!r}: accepted are {', '.join(SEXES)}")


@dataclass(frozen=True)
class StatedPatient:
    """What a program states of a patient. Raises RecordRefused for values that cannot be saved.

    name: may be empty for a patient who is in the records. birth_year None, sex "unknown": not stated.
    """

    number: str
    name: str = ""
    birth_year: int | None = None
    sex: str = "unknown"

    def __post_init__(self) -> None:
        patient = NewPatient(self.number, self.name or "not stated", self.birth_year, self.sex)
        object.__setattr__(self, "number", patient.number)
        object.__setattr__(self, "name", patient.name if self.name else "")


def age_of(patient: PatientRow | NewPatient) -> float | None:
    """In years this year, where the birth year is known."""
    return None if patient.birth_year is None else float(now().year - patient.birth_year)


@dataclass(frozen=True)
class ReviewRow:
    """What one clinician said about a reading."""

    reviewer: str  # full name
    agrees: bool
    label: str
    comment: str
    at: datetime
    id: str = ""
    reviewer_id: int = 0


@dataclass(frozen=True)
class SourceRow:
    """The DICOM images of a reading, as far as the records keep them."""

    headers: bytes = field(repr=False)  # as the gateway packed them
    supersedes: str | None = None  # the reading of the same images before late ones came


class SavedCase(NamedTuple):
    """What was saved: the new reading, and the patient it belongs to. hidden: whoever saved it gives a label first."""

    reading_id: str
    patient: PatientRow
    hidden: bool = False


@dataclass(frozen=True, eq=False)
class CaseImage:
    """What was read, and by which model, without what it says."""

    reading_id: str
    study_id: str
    patient: PatientRow
    kind: str  # one of tables.KINDS
    units: str  # of the pixels: "HU" or "intensity"
    width: int  # of the upload; `pixels` has fewer if it was very large
    height: int
    sha256: str  # of the uploaded file
    tags: dict[str, str]
    notes: str
    uploaded_at: datetime
    uploaded_by: str  # full name
    model: str
    version: str
    classes: tuple[str, ...]  # in the order of heat
    rule: DecisionRule  # of the version, the same for all images
    superseded: bool  # late images of the series came, and a later reading replaces this one
    pixels: np.ndarray = field(repr=False)  # float32 (height, width), HU or 0..1


@dataclass(frozen=True, eq=False)
class BlindCase(CaseImage):
    """A reading for someone who gives a label before the answer is shown. `pixels` of a series: its middle slice."""

    stack: stacks.Stack | None  # None for one image


@dataclass(frozen=True, eq=False)
class Case(CaseImage):
    """One reading with all that belongs to it."""

    probabilities: dict[str, float]
    label: str
    decision: str
    checks: tuple[Check, ...]
    milliseconds: float
    read_at: datetime
    reviews: tuple[ReviewRow, ...]  # oldest first; the latest counts
    heat: np.ndarray = field(repr=False)  # float32 (classes, height, width) 0..1

    @property
    def grades(self) -> GradeRange | None:
        """The range of grades that the reading names, where the classes are grades."""
        return grade_range(self.rule, {name: self.probabilities[name] for name in self.classes})


@dataclass(frozen=True)
class CaseRow:
    """One reading in a list; review fields are those of the latest review.

    hidden: the answer, and what others said, are withheld from this reader until a label is given: None or False.
    """

    reading_id: str
    patient_id: str
    number: str  # of the patient
    name: str  # of the patient
    kind: str
    model: str
    version: str
    label: str | None
    decision: str | None
    probability: float | None  # of the label, or of the range of grades that is the decision
    read_at: datetime
    read_by: str  # full name
    flagged: bool  # an image check failed
    reviewed: bool  # by anyone, also where it is hidden by whom
    reviewer: str | None  # full name
    reviewer_label: str | None
    agrees: bool | None
    slices: int | None = None  # of a CT series; None for one image
    affected: float | None = None  # share of the slices of a series, 0..1
    hidden: bool = False
    superseded: bool = False  # late images of the series came, and a later reading replaces this one
    thumbnail: bytes = field(default=b"", repr=False)  # PNG, at most pixels.THUMBNAIL_SIDE a side; on a patient's page


@dataclass(frozen=True)
class PatientPage:
    """A patient with all readings, oldest first."""

    patient: PatientRow
    cases: tuple[CaseRow, ...]


class Records:
    """The actions of a doctor; each raises SignedOut or Forbidden before anything is read or written.

    A program may save cases, and open those that it saved.
    """

    def __init__(self, access: Entry):
        self.access = access

    def find_patients(self, text: str, limit: int = 20) -> list[PatientRow]:
        """Patients whose number or name contains every word of `text`; all if it is empty. The exact number first."""
        with self.access.reads("doctor") as (db, _):
            return search_patients(db, text, limit)

    def save_case(
        self,
        patient: str | NewPatient | StatedPatient,
        image: images.Image,
        sha256: str,
        reading: Prediction,
        notes: str = "",
        reading_id: str | None = None,
    ) -> SavedCase:
        """Save an upload with its reading, and its patient if new: all of it or nothing.

        patient: the id of one in the records, a new one, or what a program states of either. sha256: of the uploaded
        file, hex. reading_id: which no reading has yet; default: a random one.
        Raises RecordRefused if a new patient's number is taken, PatientDiffers if another patient has the number that
        was stated, RecordMissing if the patient has been erased.
        """
        study = _study(image, sha256, notes)
        row = Reading(id=reading_id or new_id(), study=study, **_reading_columns(reading))
        with self.access.writes("doctor", PROGRAM) as (db, actor):
            return _save(db, actor, patient, row)

    # --- CT series

    def save_series(
        self,
        patient: str | NewPatient | StatedPatient,
        series: Series,
        said: stacks.SeriesSaid,
        sha256: str = "",
        notes: str = "",
        reading_id: str | None = None,
        tell: Callable[[int], None] = lambda done: None,
    ) -> SavedCase:
        """Save a series with its slices, its reading, and its patient if new: all of it or nothing.

        The study's picture, and the heat maps next to it, are those of the slice that counts most, `CaseSeries.key`.
        sha256: of the series, which `Series.sha256` computes; default: computed here. tell: called with the number of
        slices that are encoded. patient, reading_id: as in `save_case`. Raises as `save_case`, RecordRefused also for a
        series of more than stacks.MOST_SLICES, and ImageRefused if a slice cannot be decoded.
        """
        if len(series.slices) > stacks.MOST_SLICES:
            raise RecordRefused(f"{len(series.slices)} slices are too many; accepted are up to {stacks.MOST_SLICES}")
        key = stacks.key_of(said).number
        study = _study(series.slice(key), sha256 or series.sha256(), notes)
        study.tags = study.tags | {
            "note": f"slice {key + 1} of a series of {len(series.slices)}, from the lowest position"
        }
        row = Reading(id=reading_id or new_id(), study=study, **_reading_columns(stacks.reading_of(said)))
        whole = stacks.columns(series, said)
        with stacks.spooled(series, tell) as slices, self.access.writes("doctor", PROGRAM) as (db, actor):
            saved = _save(db, actor, patient, row, slices=len(series.slices))
            db.add(CtSeries(reading_id=row.id, **whole))
            for some in slices(study.id):
                db.execute(sa.insert(SeriesSlice), some)
        return saved

    def series(self, reading_id: str) -> stacks.CaseSeries | None:
        """The series of a reading, without pixels; None for a reading of one image. Raises as `case`."""
        with self.access.reads("doctor", PROGRAM) as (db, actor):
            reading = _find_reading(db, reading_id)
            _require_visible(actor, reading.study)
            _require_shown(db, actor, reading)
            row = db.get(CtSeries, reading.id, options=[orm.undefer(CtSeries.heat)])
            study_id, label, classes = reading.study_id, reading.label, len(reading.probabilities)
        return stacks.case_series(row, study_id, label, classes) if row else None

    def series_slice(self, reading_id: str, number: int) -> bytes:
        """A slice (from 0) of a series as PNG of 16 bits, for pixels.decode; as `series_slices`."""
        return self.series_slices(reading_id, [number])[0]

    def series_slices(self, reading_id: str, numbers: Sequence[int]) -> list[bytes]:
        """Several slices of a series, in this order, for who has opened the case before.

        Slices come by the hundred, so the trail does not note each: it has noted the opening. Raises RecordMissing.
        """
        with self.access.reads("doctor", PROGRAM) as (db, actor):
            reading = _find_reading(db, reading_id)
            _require_visible(actor, reading.study)
            if not audit_trail.noted(db, "case.open", f"reading:{reading.id}", actor.user_id):
                raise RecordMissing("slices are shown to who has opened the case: open it first")
            of_these = (SeriesSlice.study_id == reading.study_id) & SeriesSlice.number.in_(numbers)
            rows = db.execute(sa.select(SeriesSlice.number, SeriesSlice.pixels).where(of_these))
            found = {row.number: row.pixels for row in rows}
        if missing := [number for number in numbers if number not in found]:
            raise RecordMissing(f"slice {missing[0]} is not in the records of that case")
        return [found[number] for number in numbers]

    # --- looking

    def same_upload(self, patient_id: str, sha256: str) -> str | None:
        """The latest reading of a file with the same bytes for the same patient, or None."""
        with self.access.reads("doctor") as (db, _):
            same = (Study.patient_id == _identifier(patient_id)) & (Study.sha256 == _require_sha256(sha256))
            return db.scalar(sa.select(Reading.id).join(Study).where(same).order_by(Reading.read_at.desc()).limit(1))

    def worklist(self) -> list[CaseRow]:
        """All readings, newest first, without thumbnails."""
        with self.access.reads("doctor") as (db, actor):
            readings = with_review(blind.hidden_column(actor))
            rows = db.execute(readings.order_by(Reading.read_at.desc(), Reading.id)).all()
        return [_case_row(row) for row in rows]

    def open_case(self, reading_id: str, label_first: bool = False) -> Case | BlindCase:
        """A reading as this reader may see it now: a BlindCase until a label is given where the answer is withheld.

        label_first: also where it is not withheld, for a reader who has not labelled the image. Raises RecordMissing.
        """
        with self.access.reads("doctor") as (db, actor):
            reading = _find_reading(db, reading_id)
            first = blind.is_hidden(db, actor, reading) or (label_first and not blind.has_labelled(db, actor, reading))
        return self._blind_case(reading_id) if first else self.case(reading_id)

    def _blind_case(self, reading_id: str) -> BlindCase:
        with self.access.writes("doctor") as (db, actor):
            reading = _find_reading(db, reading_id, orm.joinedload(Reading.study))
            study, series = reading.study, db.get(CtSeries, reading.id)
            patient, uploader = _patient_row(study.patient), study.uploader.full_name
            png = db.scalars(shown_blind(series is not None).where(Reading.id == reading.id)).one()
            superseded = db.scalar(sa.select(_superseded()).where(Reading.id == reading.id))
            audit_trail.append(db, actor.user_id, "case.open", f"reading:{reading.id}", patient=patient.id, blind=True)
        made = {
            "reading_id": reading.id,
            "study_id": study.id,
            "patient": patient,
            "uploaded_by": uploader,
            "classes": tuple(reading.probabilities),
            "rule": DecisionRule.from_dict(reading.point),
            # Of a series, the note says which slice the model found to count most.
            "tags": {name: text for name, text in study.tags.items() if not (series and name == "note")},
            "pixels": pixels.decode(png, study.units),
            "stack": stacks.stack(series, study.id) if series else None,
            "superseded": bool(superseded),
        }
        return BlindCase(**_shared(study, BlindCase, made) | _shared(reading, BlindCase, made) | made)

    def case(self, reading_id: str) -> Case:
        """Everything about one reading; the audit trail notes the opening.

        Raises RecordMissing, and AnswerHidden while the answer is withheld from this reader: see `open_case`.
        """
        with self.access.writes("doctor", PROGRAM) as (db, actor):
            whole = (orm.undefer(Reading.heat), orm.joinedload(Reading.study).undefer(Study.pixels))
            reading = _find_reading(db, reading_id, *whole)
            study = reading.study
            _require_visible(actor, study)
            _require_shown(db, actor, reading)
            patient, uploader = _patient_row(study.patient), study.uploader.full_name
            reviews = [
                ReviewRow(r.reviewer.full_name, r.agrees, r.label, r.comment, r.at, r.id, r.reviewer_id)
                for r in reading.reviews
            ]
            superseded = db.scalar(sa.select(_superseded()).where(Reading.id == reading.id))
            audit_trail.append(db, actor.user_id, "case.open", f"reading:{reading.id}", patient=patient.id)
        # Decoded after the transaction, because it takes longer than everything in it.
        classes = tuple(reading.probabilities)
        made = {
            "reading_id": reading.id,
            "study_id": study.id,
            "patient": patient,
            "uploaded_by": uploader,
            "classes": classes,
            "rule": DecisionRule.from_dict(reading.point),
            "checks": tuple(Check(**check) for check in reading.checks),
            "reviews": tuple(reviews),
            "superseded": bool(superseded),
            "pixels": pixels.decode(study.pixels, study.units),
            "heat": pixels.decode_heat(reading.heat, len(classes)),
        }
        return Case(**_shared(study, Case) | _shared(reading, Case) | made)

    def source(self, reading_id: str) -> SourceRow | None:
        """The DICOM images of a reading; None where it has none. Raises RecordMissing."""
        with self.access.reads("doctor", PROGRAM) as (db, actor):
            reading = _find_reading(db, reading_id, orm.joinedload(Reading.study))
            _require_visible(actor, reading.study)
            row = db.get(ReadingSource, reading.id, options=[orm.undefer(ReadingSource.headers)])
            return SourceRow(row.headers, row.supersedes) if row else None

    def patient(self, patient_id: str) -> PatientPage:
        """A patient with all readings, oldest first; the audit trail notes the opening. Raises RecordMissing."""
        return open_patient(self.access, "doctor", patient_id)

    def review(self, reading_id: str, agrees: bool | None, label: str, comment: str = "") -> None:
        """Save whether the model's label is right, or which class is; earlier reviews stay, the latest counts.

        agrees: None lets the records compare. Where the answer is withheld from this reader they do so in any case.
        They also note whether this reader could have seen an answer for the image (`blind.could_have_seen`).
        Raises RecordRefused for a label that is not one of the reading's classes, or that contradicts `agrees`.
        """
        comment = _text("comment", comment)
        with self.access.writes("doctor") as (db, actor):
            reading = _find_reading(db, reading_id)
            if label not in tuple(reading.probabilities):
                raise RecordRefused(f"{label!r} is none of this reading's classes: {', '.join(reading.probabilities)}")
            right = label == reading.label
            # A refusal would tell the answer to someone who may not see it yet.
            if agrees not in (None, right) and not blind.is_hidden(db, actor, reading):
                raise RecordRefused(
                    f"the model says {reading.label}: choose that class to agree, or another one to correct it"
                )
            shown = blind.could_have_seen(db, actor, reading)
            row = Review(
                reading_id=reading.id, reviewer_id=actor.user_id, agrees=right, label=label, comment=comment,
                answer_shown=shown,
            )  # fmt: skip
            db.add(row)
            db.flush()
            dispatches.enqueue_review(db, reading.id, row.id)
            audit_trail.append(db, actor.user_id, "case.review", f"reading:{reading.id}", agrees=right, label=label,
                               answer_shown=shown)  # fmt: skip


# --- shared with Administration


def search_patients(db: orm.Session, text: str, limit: int) -> list[PatientRow]:
    """Patients whose number or name contains every word of `text` in any case; the exact number comes first.

    The caller has checked the role.
    """
    text = _one_line(text, _JOINERS)[:LONGEST_NAME]
    patients = sa.select(Patient).where(*(_contains(word) for word in text.split()))
    exact_first = patients.order_by((Patient.number == text).desc(), Patient.name, Patient.number)
    return [_patient_row(patient) for patient in db.scalars(exact_first.limit(limit))]


def latest_review() -> sa.Subquery:
    """The latest review of each reading that has one."""
    turn = sa.func.row_number().over(partition_by=Review.reading_id, order_by=(Review.at.desc(), Review.id))
    ranked = sa.select(Review, turn.label("turn")).subquery()
    return sa.select(ranked).where(ranked.c.turn == 1).subquery()


def with_review(*more: Any, of_review: tuple[str, ...] = ()) -> "sa.Select[*tuple[Any, ...]]":
    """All readings with their patient, their study and their latest review.

    more: other columns of patient, study or reading. of_review: other columns of the review, named review_….
    """
    latest, reviewer, uploader = latest_review(), orm.aliased(User), orm.aliased(User)
    return (
        sa.select(
            Reading.id.label("reading_id"),
            Study.patient_id,
            Patient.number,
            Patient.name,
            Study.kind,
            Reading.model,
            Reading.version,
            Reading.label,
            Reading.decision,
            Reading.probabilities,
            Reading.point,
            Reading.checks,
            Reading.read_at,
            uploader.full_name.label("read_by"),
            latest.c.id.is_not(None).label("reviewed"),
            reviewer.full_name.label("reviewer"),
            latest.c.label.label("reviewer_label"),
            latest.c.agrees,
            CtSeries.slices,
            CtSeries.affected,
            _superseded().label("superseded"),
            *(latest.c[name].label(f"review_{name}") for name in of_review),
            *more,
        )
        .join(Study, Study.id == Reading.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .join(uploader, uploader.id == Study.uploaded_by)
        .outerjoin(CtSeries, CtSeries.reading_id == Reading.id)
        .outerjoin(latest, latest.c.reading_id == Reading.id)
        .outerjoin(reviewer, reviewer.id == latest.c.reviewer_id)
    )


def _superseded() -> sa.ColumnElement[bool]:
    """Whether a later reading of the same series replaces a reading, because late images came."""
    later = sa.select(ReadingSource.supersedes).where(ReadingSource.supersedes.is_not(None))
    return Reading.id.in_(later)


def open_patient(access: Entry, role: str, patient_id: str) -> PatientPage:
    """A patient's page, on the audit trail as opened; for people with this role."""
    with access.writes(role) as (db, actor):
        patient = _patient_row(find_patient(db, patient_id))
        readings = with_review(Study.units, Study.pixels, blind.hidden_column(actor)).where(
            Study.patient_id == patient.id
        )
        rows = db.execute(readings.order_by(Reading.read_at, Reading.id)).all()
        pictures = [_thumbnail_of(db, row) for row in rows]
        audit_trail.append(db, actor.user_id, "patient.open", f"patient:{patient.id}")
    # Thumbnails take time, so they are made after the transaction.
    cases = [_case_row(row, pixels.thumbnail(png, row.units)) for row, png in zip(rows, pictures, strict=True)]
    return PatientPage(patient, tuple(cases))


def _thumbnail_of(db: orm.Session, row: sa.Row[Any]) -> bytes:
    """The picture that is made small for a row of a patient's page."""
    if row.hidden and row.slices is not None:
        return db.scalars(shown_blind(True).where(Reading.id == row.reading_id)).one()
    png: bytes = row.pixels
    return png


def shown_blind(series: bool) -> sa.Select[bytes]:
    """The picture of a reading whose answer is withheld: of a series the middle slice, not the one that counts most."""
    if not series:
        return sa.select(Study.pixels).join(Reading, Reading.study_id == Study.id)
    slices = sa.select(SeriesSlice.pixels).join(Reading, Reading.study_id == SeriesSlice.study_id)
    return slices.join(CtSeries, CtSeries.reading_id == Reading.id).where(SeriesSlice.number == CtSeries.slices // 2)


# --- saving


def _study(image: images.Image, sha256: str, notes: str) -> Study:
    return Study(
        kind=pixels.kind_of(image),
        units=image.units,
        sha256=_require_sha256(sha256),
        width=image.pixels.shape[1],
        height=image.pixels.shape[0],
        pixels=pixels.encode(image),
        tags=dict(image.tags),
        notes=_text("notes", notes),
    )


def _save(
    db: orm.Session, actor: Actor, patient: str | NewPatient | StatedPatient, row: Reading, **more: int
) -> SavedCase:
    """Add a reading with its study, and its patient if new; more: what the trail notes besides."""
    owner, is_new = _owner(db, patient, actor.user_id)
    study = row.study
    study.patient_id, study.uploaded_by = owner.id, actor.user_id
    db.add(study)
    db.flush()
    made = {"study": study.id, "patient": owner.id, "new_patient": is_new, "model": f"{row.model}@{row.version}"}
    made |= {"blind": True} if blind.draw(db, actor, row) else {}
    audit_trail.append(db, actor.user_id, "case.save", f"reading:{row.id}", **made, **more)
    return SavedCase(row.id, _patient_row(owner), blind.is_hidden(db, actor, row))


# --- rows


def _shared(row: Any, kind: type, but: Collection[str] = ()) -> dict[str, Any]:
    """The values of a row that a dataclass has under the same names, but for these."""
    columns = row._fields if isinstance(row, sa.Row) else sa.inspect(row).mapper.columns.keys()
    return {field.name: getattr(row, field.name) for field in fields(kind) if field.name in {*columns} - {*but}}


def _patient_row(patient: Patient) -> PatientRow:
    return PatientRow(**_shared(patient, PatientRow))


def _case_row(row: sa.Row[Any], thumbnail: bytes = b"") -> CaseRow:
    shared = _shared(row, CaseRow)
    if row.hidden:
        withheld = dict.fromkeys(("label", "decision", "reviewer", "reviewer_label", "agrees", "affected"))
        return CaseRow(**shared | withheld, probability=None, flagged=False, thumbnail=thumbnail)
    flagged = not all(check["passed"] for check in row.checks)
    graded = grade_range(DecisionRule.from_dict(row.point), row.probabilities) if "grades" in row.point else None
    together = graded is not None and graded.name == row.decision
    probability = graded.probability if graded and together else row.probabilities[row.label]
    return CaseRow(**shared, probability=probability, flagged=flagged, thumbnail=thumbnail)


def _reading_columns(reading: Prediction) -> dict[str, Any]:
    """The columns of a reading, JSON-ready; the order of the classes is that of the heat maps."""
    if reading.heat is None:
        raise ValueError("a reading is saved with its heat maps; read the image with heat=True")
    return {
        "model": reading.model,
        "version": reading.version,
        "probabilities": {name: float(p) for name, p in zip(reading.classes, reading.probabilities, strict=True)},
        "label": reading.label,
        "decision": reading.decision,
        "point": reading.rule.to_dict(),
        "checks": [
            asdict(c) | {"passed": bool(c.passed), "value": float(c.value), "limit": float(c.limit)}
            for c in reading.checks
        ],
        "milliseconds": float(reading.milliseconds),
        "heat": pixels.encode_heat(reading.heat),
    }


# --- finding


def find_patient(db: orm.Session, patient_id: str) -> Patient:
    patient = db.get(Patient, _identifier(patient_id))
    if patient is None:
        raise RecordMissing("that patient is not in the records: erased, or never saved. Search again")
    return patient


def _find_reading(db: orm.Session, reading_id: str, *options: Any) -> Reading:
    reading = db.get(Reading, _identifier(reading_id), options=options)
    if reading is None:
        raise RecordMissing(_NO_CASE)
    return reading


def known_patient(db: orm.Session, stated: StatedPatient) -> Patient | None:
    """The patient with the stated number, or None. Raises PatientDiffers if anything else that was stated differs."""
    patient = db.scalar(sa.select(Patient).where(Patient.number == stated.number))
    if patient is None:
        return None
    differ = [
        words
        for words, given, known in (
            ("name", stated.name, patient.name),
            ("year of birth", stated.birth_year, patient.birth_year),
            ("sex", stated.sex if stated.sex != "unknown" else "", patient.sex),
        )
        if given and known != given
    ]
    if differ:
        raise PatientDiffers(
            f"the patient with that number has another {' and another '.join(differ)} in the records; check the "
            "number, or leave out what differs"
        )
    return patient


def require_name(stated: StatedPatient) -> NewPatient:
    """The stated patient as a new one. Raises RecordRefused without a name."""
    if not stated.name:
        raise RecordRefused("there is no patient with that number yet, so a name is needed too")
    return NewPatient(stated.number, stated.name, stated.birth_year, stated.sex)


def _require_visible(actor: Actor, study: Study) -> None:
    """A program learns of another's case as little as of one that is not there."""
    if not actor.sees_all and study.uploaded_by != actor.user_id:
        raise RecordMissing(_NO_CASE)


def _require_shown(db: orm.Session, actor: Actor, reading: Reading) -> None:
    if blind.is_hidden(db, actor, reading):
        raise AnswerHidden()


def _identifier(text: str) -> str:
    """`text` if it can be an identifier, else one that nothing has."""
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        return ""


def _contains(word: str) -> sa.ColumnElement[bool]:
    """Whether number or name contains the word; databases ignore case only for a to z, hence the usual spellings."""
    spellings = {word, word.lower(), word.upper(), word.title()}
    return sa.or_(*(c.icontains(s, autoescape=True) for s in spellings for c in (Patient.number, Patient.name)))


def _owner(db: orm.Session, patient: str | NewPatient | StatedPatient, user_id: int) -> tuple[Patient, bool]:
    """Whose case it is, and whether that patient was entered just now."""
    if isinstance(patient, str):
        return find_patient(db, patient), False
    if isinstance(patient, NewPatient):
        return _enter_patient(db, patient, user_id), True
    if known := known_patient(db, patient):
        return known, False
    return _enter_patient(db, require_name(patient), user_id), True


def _enter_patient(db: orm.Session, new: NewPatient, user_id: int) -> Patient:
    if db.scalar(sa.select(Patient.id).where(Patient.number == new.number)) is not None:
        raise RecordRefused(
            f"the patient number {new.number!r} is taken already; search for that patient, or check the number"
        )
    patient = Patient(**asdict(new), created_by=user_id)
    db.add(patient)
    db.flush()
    return patient


# --- what people typed


def _visible(text: str, keep: str) -> str:
    """Text in one composition and without invisible characters, which would make two numbers look the same."""
    text = unicodedata.normalize("NFC", text)
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def _one_line(text: str, keep: str) -> str:
    return " ".join(_visible(text, keep + "\t\n\r").split())


def _line(what: str, text: str, longest: int, keep: str = "") -> str:
    line = _one_line(text, keep) if isinstance(text, str) else ""
    if not line.strip(keep + " "):
        raise RecordRefused(f"the {what} is empty; accepted are 1 to {longest} characters")
    return _within(what, line, longest)


def _text(what: str, text: str) -> str:
    return _within(what, _visible("\n".join(text.splitlines()), _JOINERS + "\n\t").strip(), LONGEST_TEXT)


def _within(what: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise RecordRefused(f"{len(text)} characters are too many for the {what}; accepted are up to {longest}")
    return text


def _require_sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise RecordRefused(f"{digest[:80]!r} is not the SHA-256 of a file; accepted are 64 hexadecimal digits")
    return digest
