"""What a doctor does with the records: save, open and review readings.

Every action checks the role inside its own transaction (`accounts.Access`). What belongs together is saved in one
transaction, so there is never a patient without a study, or a study without its reading. The audit trail notes who
opened which case or patient, by random identifiers only.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, blind, corrections, dispatches, pixels, reviewing, stacks, studies
from lungkit.clinic.records.accounts import Actor, Entry
from lungkit.clinic.records.corrections import SAME_IMAGE, Corrections, SavedElsewhere, Withdrawn, still_counts
from lungkit.clinic.records.patients import (
    NewPatient,
    PatientRow,
    RecordMissing,
    RecordRefused,
    StatedPatient,
    find_patient,
    identifier,
    namesakes,
    owner_of,
    patient_row,
    search_patients,
    text_of,
    values_for,
)
from lungkit.clinic.records.reviewing import ReviewRow, Said
from lungkit.clinic.records.store import also_on_a_full_disk
from lungkit.clinic.records.tables import (
    CLASS,
    PROGRAM,
    CtSeries,
    Job,
    Patient,
    Reading,
    ReadingSource,
    Review,
    SeriesSlice,
    Study,
    StudyHash,
    User,
    Withdrawal,
    new_id,
)
from lungkit.data import images
from lungkit.data.series import Series
from lungkit.errors import LungkitError
from lungkit.models.prediction import Check, GradeRange, Prediction, grade_range, refusal
from lungkit.models.rule import DecisionRule

_NO_CASE = "that case is not in the records: its patient was erased, or it was never saved. Go back to the worklist"


class AnswerHidden(LungkitError):
    """The answer to that reading is withheld from this reader, who has not given a label yet."""

    def __init__(self) -> None:
        super().__init__("this image is read blind: open it, give your label, and the model's answer is shown")


class ChangedMeanwhile(RecordRefused):
    """An image is another patient's, or was withdrawn or replaced, since a page has shown it; nothing was saved."""

    def __init__(self, what: str):
        super().__init__(f"this image was {what} meanwhile, so nothing was saved. Open it again")


@dataclass(frozen=True)
class Shown:
    """What a page shows of an image, on which all rests that a person does there."""

    patient_id: str
    withdrawn: bool = False
    superseded: bool = False


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
    corrections: Corrections = field(default=Corrections(), kw_only=True)

    @property
    def shown(self) -> Shown:
        """What a page shows of the image, for what is done there."""
        return Shown(self.patient.id, self.corrections.withdrawn is not None, self.superseded)


@dataclass(frozen=True, eq=False)
class BlindCase(CaseImage):
    """A reading for someone who gives a label before the answer is shown. `pixels` of a series: its middle slice."""

    stack: stacks.Stack | None  # None for one image
    latest_review: str  # its id, which says only that someone has reviewed it; empty where no one has


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
    def refusal(self) -> str:
        """ "Not for this patient", or image, where its checks say so; else empty."""
        return refusal(self.checks)

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
    agrees: bool | None  # None: not reviewed, or the review gives no class
    review_kind: str | None = None  # one of tables.REVIEW_KINDS
    slices: int | None = None  # of a CT series; None for one image
    affected: float | None = None  # share of the slices of a series, 0..1
    hidden: bool = False
    superseded: bool = False  # a later reading replaces this one: late images of its series came, or it was turned
    refusal: str = ""  # "Not for this patient", or image; label and probability are None then, as they mean nothing
    withdrawn: Withdrawn | None = None
    urgent: bool = False  # the program that sent the image said so; only in the worklist
    thumbnail: bytes = field(default=b"", repr=False)  # PNG, at most pixels.THUMBNAIL_SIDE a side; on a patient's page


@dataclass(frozen=True)
class PriorRow:
    """An earlier image of the same patient and kind."""

    reading_id: str
    uploaded_at: datetime


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
        confirmed: Sequence[str] = (),
    ) -> SavedCase:
        """Save an upload with its reading, and its patient if new: all of it or nothing.

        patient: the id of one in the records, a new one, or what a program states of either. sha256: of the uploaded
        file, hex. reading_id: which no reading has yet; default: a random one. confirmed: what differed, and a person
        said to save it for this patient anyway: `identity.Question.asked`, for the audit trail.
        Raises RecordRefused if a new patient's number is taken, PatientDiffers if another patient has the number that
        was stated, RecordMissing if the patient has been erased; for a person SavedElsewhere, if another patient has
        the same file or pixels by now and SAME_IMAGE was not confirmed.
        """
        study = _study(image, sha256, notes)
        row = Reading(id=reading_id or new_id(), study=study, **_reading_columns(reading))
        with self.access.writes("doctor", PROGRAM) as (db, actor):
            return _save(db, actor, patient, row, confirmed)

    def save_again(
        self, reading_id: str, image: images.Image, reading: Prediction, shown: Shown | None = None
    ) -> SavedCase:
        """Save what was read of the image of an earlier reading, turned or by another model, in that one's place.

        The earlier reading and its image stay, as replaced by this one. When it was uploaded and by whom stays, too;
        the audit trail notes who read it again. Systems that the image was listed for get the new result. image: of
        the pixels in the records. shown: what the page shows of the earlier one, such as the patient whose age counted.
        Raises RecordMissing, AnswerHidden as `case`, ChangedMeanwhile, and RecordRefused if the image was withdrawn or
        a later reading replaces that one already.
        """
        row = Reading(id=new_id(), **_reading_columns(reading))
        stored = _pixels(image)
        with self.access.writes("doctor") as (db, actor):
            whole = orm.joinedload(Reading.study).undefer(Study.pixels)
            earlier = _find_reading(db, reading_id, whole)
            study = earlier.study
            _require_shown(db, actor, earlier)
            _require_as_shown(db, earlier, shown)
            if db.get(Withdrawal, study.id) is not None:
                raise RecordRefused("this image was withdrawn, so it is not read again")
            if _is_superseded(db, earlier):
                raise RecordRefused("a later reading replaces that one already: open it from the worklist")
            height, width = image.pixels.shape
            on_its_side = (height < width) != (study.height < study.width)
            sides = (study.height, study.width) if on_its_side else (study.width, study.height)
            row.study = Study(
                kind=study.kind, units=study.units, sha256=study.sha256, width=sides[0], height=sides[1],
                **stored, tags=image.tags | {studies.INSTEAD_OF: earlier.id}, notes=study.notes,
                uploaded_at=study.uploaded_at, uploaded_by=study.uploaded_by,
            )  # fmt: skip
            told = dispatches.destinations_of(db, studies.readings_of(studies.of_same_image(db, study)))
            saved = _save(db, actor, study.patient_id, row, None, instead_of=earlier.id)
            if source := db.get(ReadingSource, earlier.id, options=[orm.undefer(ReadingSource.headers)]):
                of_images = {name: getattr(source, name) for name in ("study_uid", "series_uid", "headers")}
                db.add(ReadingSource(reading_id=row.id, supersedes=earlier.id, **of_images))
                db.flush()
            dispatches.enqueue(db, row.id, told)
            return saved

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
        confirmed: Sequence[str] = (),
    ) -> SavedCase:
        """Save a series with its slices, its reading, and its patient if new: all of it or nothing.

        The study's picture, and the heat maps next to it, are those of the slice that counts most, `CaseSeries.key`.
        sha256: of the series, which `Series.sha256` computes; default: computed here. tell: called with the number of
        slices that are encoded. patient, reading_id, confirmed: as in `save_case`.
        Raises as `save_case`, RecordRefused also for a series of more than stacks.MOST_SLICES, and ImageRefused if a
        slice cannot be decoded.
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
            saved = _save(db, actor, patient, row, confirmed, slices=len(series.slices))
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

    def series_slices(self, reading_id: str, numbers: Sequence[int]) -> list[bytes]:
        """Several slices (from 0) of a series as PNG of 16 bits, for pixels.decode, for who has opened the case before.

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
        """The latest reading of a file with the same bytes for the same patient, or None; not of withdrawn images."""
        with self.access.reads("doctor") as (db, _):
            same = (Study.patient_id == identifier(patient_id)) & (Study.sha256 == _require_sha256(sha256))
            found = sa.select(Reading.id).join(Study).where(same, still_counts())
            return db.scalar(found.order_by(Reading.read_at.desc()).limit(1))

    def worklist(self) -> list[CaseRow]:
        """All readings, newest first, without thumbnails."""
        with self.access.reads("doctor") as (db, actor):
            readings = with_review(blind.hidden_column(actor), _urgent())
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

    @also_on_a_full_disk
    def _blind_case(self, reading_id: str) -> BlindCase:
        with self.access.writes("doctor") as (db, actor):
            reading = _find_reading(db, reading_id, orm.joinedload(Reading.study))
            study, series = reading.study, db.get(CtSeries, reading.id)
            patient, uploader = patient_row(study.patient), study.uploader.full_name
            png = db.scalars(shown_blind(series is not None).where(Reading.id == reading.id)).one()
            superseded = _is_superseded(db, reading)
            corrected = corrections.of_study(db, study.id)
            latest = reviewing.latest_id(db, reading.id)
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
            "latest_review": latest,
            "superseded": superseded,
            "corrections": corrected,
        }
        return BlindCase(**values_for(study, BlindCase, made) | values_for(reading, BlindCase, made) | made)

    @also_on_a_full_disk
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
            patient, uploader = patient_row(study.patient), study.uploader.full_name
            reviews = [reviewing.row_of(review, actor.user_id) for review in reading.reviews]
            superseded = _is_superseded(db, reading)
            corrected = corrections.of_study(db, study.id)
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
            "superseded": superseded,
            "corrections": corrected,
            "pixels": pixels.decode(study.pixels, study.units),
            "heat": pixels.decode_heat(reading.heat, len(classes)),
        }
        return Case(**values_for(study, Case) | values_for(reading, Case) | made)

    def source(self, reading_id: str) -> SourceRow | None:
        """The DICOM images of a reading; None where it has none. Raises RecordMissing."""
        with self.access.reads("doctor", PROGRAM) as (db, actor):
            reading = _find_reading(db, reading_id, orm.joinedload(Reading.study))
            _require_visible(actor, reading.study)
            row = db.get(ReadingSource, reading.id, options=[orm.undefer(ReadingSource.headers)])
            return SourceRow(row.headers, row.supersedes) if row else None

    def priors(self, reading_id: str) -> list[PriorRow]:
        """The patient's earlier images of the same kind and view that this one can be compared with, newest first.

        A series is compared with series. Left out: images that were withdrawn, whose answer is withheld from this
        reader, or that a later reading replaces, and the same file. Raises as `case`.
        """
        with self.access.reads("doctor") as (db, actor):
            reading = _find_reading(db, reading_id, orm.joinedload(Reading.study))
            _require_shown(db, actor, reading)
            study, hidden = reading.study, blind.hidden_from(db, actor)
            of_series = Reading.id.in_(sa.select(CtSeries.reading_id))
            earlier = (
                sa.select(Study.id, Reading.id.label("reading_id"), Study.uploaded_at, Study.tags)
                .join(Study, Study.id == Reading.study_id)
                .where(Study.patient_id == study.patient_id, Study.kind == study.kind, Study.sha256 != study.sha256)
                .where(Study.uploaded_at < study.uploaded_at, ~_superseded())
                .where(of_series if db.get(CtSeries, reading.id) else ~of_series)
                .where(still_counts())
                .order_by(Study.uploaded_at.desc(), Reading.read_at.desc())
            )
            found: dict[str, PriorRow] = {}  # by study: the latest reading of each
            for row in db.execute(earlier):
                views = {study.tags.get("view"), row.tags.get("view")} - {None, ""}
                if row.reading_id not in hidden and len(views) < 2:
                    found.setdefault(row.id, PriorRow(row.reading_id, row.uploaded_at))
        return list(found.values())

    def person(self, patient_id: str) -> PatientRow:
        """A patient without the readings. Raises RecordMissing."""
        with self.access.reads("doctor") as (db, _):
            return patient_row(find_patient(db, patient_id))

    def patient(self, patient_id: str) -> PatientPage:
        """A patient with all readings, oldest first; the audit trail notes the opening. Raises RecordMissing."""
        return open_patient(self.access, "doctor", patient_id)

    @also_on_a_full_disk
    def review(
        self, reading_id: str, label: str, comment: str = "", kind: str = CLASS, finding: str = "",
        seen: str | None = None, shown: Shown | None = None,
    ) -> None:  # fmt: skip
        """Save what a reviewer says; earlier reviews stay, the latest counts.

        The records compare it with the model's label, and note whether this reader could have seen an answer for the
        image (`blind.could_have_seen`). label, kind, finding: as `reviewing.Said`.
        seen: the latest review that the reader was shown, empty for none; None: not compared. shown: what the page
        shows of the image; None: not compared.
        Raises RecordRefused for a label that is not one of the reading's classes, ReviewedMeanwhile where another
        person's review came after `seen`, and ChangedMeanwhile.
        """
        with self.access.writes("doctor") as (db, actor):
            reading = _find_reading(db, reading_id)
            _require_as_shown(db, reading, shown)
            reviewing.save(db, actor, reading, Said(label, comment, kind, finding), seen)

    @also_on_a_full_disk
    def withdraw(self, reading_id: str, reason: str, shown: Shown | None = None) -> None:
        """Take an image out of all figures; it stays, marked. shown: as in `review`.

        Raises as `corrections.withdraw`, RecordMissing and ChangedMeanwhile.
        """
        with self.access.writes("doctor") as (db, actor):
            reading = _find_reading(db, reading_id)
            _require_as_shown(db, reading, shown)
            corrections.withdraw(db, actor, reading, reason)

    @also_on_a_full_disk
    def move(self, reading_id: str, patient_id: str, reason: str, shown: Shown | None = None) -> None:
        """Give an image to the patient it belongs to. shown: as in `review`.

        Raises as `corrections.move`, RecordMissing and ChangedMeanwhile.
        """
        with self.access.writes("doctor") as (db, actor):
            reading = _find_reading(db, reading_id)
            _require_as_shown(db, reading, shown)
            corrections.move(db, actor, reading, find_patient(db, patient_id), reason)

    def before_correction(self, reading_id: str, patient_id: str = "") -> tuple[int, list[str]]:
        """How many results about an image were sent, and what speaks against moving it to this patient."""
        with self.access.reads("doctor") as (db, _):
            study = _find_reading(db, reading_id).study
            to = patient_row(find_patient(db, patient_id)) if patient_id else None
            had = corrections.sent(db, studies.of_same_image(db, study))
            return had, corrections.doubts(db, study, to) if to else []


# --- shared with Administration


def latest_review() -> sa.Subquery:
    """The latest review of each reading that has one."""
    turn = sa.func.row_number().over(partition_by=Review.reading_id, order_by=(Review.at.desc(), Review.id.desc()))
    ranked = sa.select(Review, turn.label("turn")).subquery()
    return sa.select(ranked).where(ranked.c.turn == 1).subquery()


def with_review(*more: Any, of_review: tuple[str, ...] = ()) -> "sa.Select[*tuple[Any, ...]]":
    """All readings with their patient, their study and their latest review.

    more: other columns of patient, study or reading. of_review: other columns of the review, named review_….
    """
    latest, reviewer, uploader, withdrew = latest_review(), *(orm.aliased(User) for _ in range(3))
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
            latest.c.kind.label("review_kind"),
            CtSeries.slices,
            CtSeries.affected,
            _superseded().label("superseded"),
            withdrew.full_name.label("withdrawn_by"),
            Withdrawal.at.label("withdrawn_at"),
            Withdrawal.reason.label("withdrawn_reason"),
            *(latest.c[name].label(f"review_{name}") for name in of_review),
            *more,
        )
        .join(Study, Study.id == Reading.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .join(uploader, uploader.id == Study.uploaded_by)
        .outerjoin(CtSeries, CtSeries.reading_id == Reading.id)
        .outerjoin(latest, latest.c.reading_id == Reading.id)
        .outerjoin(reviewer, reviewer.id == latest.c.reviewer_id)
        .outerjoin(Withdrawal, Withdrawal.study_id == Study.id)
        .outerjoin(withdrew, withdrew.id == Withdrawal.user_id)
    )


def _superseded() -> sa.ColumnElement[bool]:
    """Whether a later reading replaces a reading: late images of its series came, or its image was read again.

    For a query of readings with their studies. A reading of an image that was withdrawn, or that is another patient's,
    replaces none.
    """
    later, its_reading = orm.aliased(Study), orm.aliased(Reading)
    source = (
        sa.select(later.id)
        .join(its_reading, its_reading.study_id == later.id)
        .join(ReadingSource, ReadingSource.reading_id == its_reading.id)
    )
    late = source.where(ReadingSource.supersedes == Reading.id)
    again = sa.select(later.id).where(later.sha256 == Study.sha256, studies.instead_of(later) == Reading.id)
    counts = (later.patient_id == Study.patient_id) & still_counts(later.id)
    return sa.or_(*(which.where(counts).correlate(Reading, Study).exists() for which in (late, again)))


def _is_superseded(db: orm.Session, reading: Reading) -> bool:
    """As `_superseded`, of one reading."""
    return bool(db.scalar(sa.select(_superseded()).join_from(Reading, Study).where(Reading.id == reading.id)))


def _urgent() -> sa.ColumnElement[bool]:
    """Whether the program that sent the image asked for it to be read first; also after the image was read again."""
    sent = sa.select(Job.id).where(Job.priority == "urgent")
    first = orm.aliased(Study)
    files = sa.select(first.patient_id, first.sha256).join(Reading, Reading.study_id == first.id)
    again = sa.tuple_(Study.patient_id, Study.sha256).in_(files.where(Reading.id.in_(sent)).correlate(None))
    return sa.or_(Reading.id.in_(sent), studies.instead_of().is_not(None) & again).label("urgent")


@also_on_a_full_disk
def open_patient(access: Entry, role: str, patient_id: str) -> PatientPage:
    """A patient's page, on the audit trail as opened; for people with this role."""
    with access.writes(role) as (db, actor):
        patient = patient_row(find_patient(db, patient_id))
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
        **_pixels(image),
        tags=dict(image.tags),
        notes=text_of("notes", notes),
    )


def _pixels(image: images.Image) -> dict[str, Any]:
    png = pixels.encode(image)
    digest = pixels.digest(pixels.decode(png, image.units), image.units)
    return {"pixels": png, "hash": StudyHash(pixels_sha256=digest)}


def _save(
    db: orm.Session,
    actor: Actor,
    patient: str | NewPatient | StatedPatient,
    row: Reading,
    confirmed: Sequence[str] | None,
    **more: Any,
) -> SavedCase:
    """Add a reading with its study, and its patient if new; more: what the trail notes besides.

    Before an image is read, a person is asked about other patients with the same file. Other files may have the same
    pixels, and reading a series takes minutes, so the question is asked again here, unless confirmed is None: the image
    was there before.
    """
    owner, is_new = owner_of(db, patient, actor.user_id)
    study = row.study
    asked = actor.role == PROGRAM or confirmed is None or SAME_IMAGE in confirmed
    of_pixels = study.hash.pixels_sha256 if study.hash else ""
    if not asked and (others := corrections.others_with(db, study.sha256, owner.id, of_pixels)):
        raise SavedElsewhere(others)
    study.patient_id, study.uploaded_by = owner.id, study.uploaded_by or actor.user_id
    db.add(study)
    db.flush()
    made = {"study": study.id, "patient": owner.id, "new_patient": is_new, "model": f"{row.model}@{row.version}"}
    made |= {"blind": True} if blind.draw(db, actor, row) else {}
    if is_new and (alike := namesakes(db, owner)):
        made["same_name_and_year"] = [one.id for one in alike]
    made |= {"saved_although": list(confirmed)} if confirmed else {}
    audit_trail.append(db, actor.user_id, "case.save", f"reading:{row.id}", **made, **more)
    return SavedCase(row.id, patient_row(owner), blind.is_hidden(db, actor, row))


# --- rows


def _case_row(row: sa.Row[Any], thumbnail: bytes = b"") -> CaseRow:
    gone = Withdrawn(row.withdrawn_by, row.withdrawn_at, row.withdrawn_reason) if row.withdrawn_at else None
    shared = values_for(row, CaseRow) | {"withdrawn": gone}
    if row.hidden:
        withheld = dict.fromkeys(
            ("label", "decision", "reviewer", "reviewer_label", "agrees", "review_kind", "affected")
        )
        return CaseRow(**shared | withheld, probability=None, flagged=False, thumbnail=thumbnail)
    checks = [Check(**check) for check in row.checks]
    if refused := refusal(checks):
        meaningless = dict.fromkeys(("label", "affected", "agrees"))
        return CaseRow(**shared | meaningless, probability=None, flagged=True, refusal=refused, thumbnail=thumbnail)
    flagged = not all(check.passed for check in checks)
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


def _find_reading(db: orm.Session, reading_id: str, *options: Any) -> Reading:
    reading = db.get(Reading, identifier(reading_id), options=options)
    if reading is None:
        raise RecordMissing(_NO_CASE)
    return reading


def _require_visible(actor: Actor, study: Study) -> None:
    """A program learns of another's case as little as of one that is not there."""
    if not actor.sees_all and study.uploaded_by != actor.user_id:
        raise RecordMissing(_NO_CASE)


def _require_shown(db: orm.Session, actor: Actor, reading: Reading) -> None:
    if blind.is_hidden(db, actor, reading):
        raise AnswerHidden()


def _require_as_shown(db: orm.Session, reading: Reading, shown: Shown | None) -> None:
    """Raises ChangedMeanwhile if the image of a reading is no longer what a page shows; None: nothing is compared."""
    if shown is None:
        return
    if reading.study.patient_id != shown.patient_id:
        raise ChangedMeanwhile(f"moved to patient {reading.study.patient.number}")
    if not shown.withdrawn and db.get(Withdrawal, reading.study_id) is not None:
        raise ChangedMeanwhile("withdrawn")
    if not shown.superseded and _is_superseded(db, reading):
        raise ChangedMeanwhile("replaced by a later reading")


def _require_sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise RecordRefused(f"{digest[:80]!r} is not the SHA-256 of a file; accepted are 64 hexadecimal digits")
    return digest
