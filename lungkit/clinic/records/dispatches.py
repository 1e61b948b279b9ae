"""Results to send to other systems: a list that survives a restart, which the gateway works off.

A result is put on the list in the transaction that saves it, and a review in the transaction that saves the review.
A sender claims one entry for LEASE. One that fails is tried again after BACK_OFF; an object has the same UID each time,
so a system that got it already knows it again.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, routing
from lungkit.clinic.records.accounts import Actor
from lungkit.clinic.records.routing import DestinationRow
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import (
    CANCELLED,
    DONE,
    FAILED,
    PROGRAM,
    QUEUED,
    RUNNING,
    Destination,
    Dispatch,
    Patient,
    Reading,
    ReadingSource,
    Study,
    StudyMove,
    Withdrawal,
    new_id,
    now,
)
from lungkit.data import turning
from lungkit.errors import LungkitError
from lungkit.models.prediction import Check, refusal

LEASE = timedelta(minutes=3)  # how long one object may take to send
BACK_OFF = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 7200, 21600, 43200, 86400))
MOST_TRIES = len(BACK_OFF) + 1
_OF_DICOM = ("report", "capture", "segmentation")  # objects that need the headers of the images
_OF_REVIEW = ("report", "bundle", "message")  # objects that tell of a review
_OF_PATIENT = ("bundle", "message")  # objects that name the patient of the records; the others, that of the images
WITHDRAWAL, MOVE = "withdrawal", "move"  # in place of a review; a move with its number, since there may be several
NOT_AS_THE_FILE = "the image was turned before it was read, so its places are not those of the DICOM image"


class DispatchLost(LungkitError):
    """Another sender has the entry, or it was cancelled."""


@dataclass(frozen=True)
class DispatchRow:
    """A result to send, for the people who watch over it."""

    id: str
    reading_id: str
    destination_id: int
    object: str
    review_id: str
    state: str  # one of tables.STATES
    reason: str
    tries: int
    due_at: datetime
    created_at: datetime
    ended_at: datetime | None

    @property
    def what(self) -> str:
        """The object, and whether it tells of a review, a withdrawal or a move."""
        first = self.review_id.partition(" ")[0]
        about = first if first in (WITHDRAWAL, MOVE) else "review" if first else ""
        told_by = "rejection note" if about == WITHDRAWAL and self.object == "report" else self.object
        return f"{about} as {told_by}" if about else self.object


@dataclass(frozen=True)
class ClaimedDispatch:
    """A result that a sender sends now."""

    id: str
    lease: str
    reading_id: str
    object: str  # one of tables.OBJECTS
    review_id: str  # the review to tell of, WITHDRAWAL, or MOVE with a number; empty: the reading itself
    destination: DestinationRow
    # Of a withdrawal: the DICOM objects that the destination may have, with the review that each tells of.
    sent: tuple[tuple[str, str], ...] = ()
    # Of a withdrawal or a move: the ids of patients under whom the destination may have the result, and when it left.
    before: tuple[tuple[str, datetime], ...] = ()


def enqueue(db: orm.Session, reading_id: str, destinations: Iterable[int]) -> int:
    """List a new reading for these destinations, as far as they are active; returns the number of objects.

    What cannot be made of it is listed as cancelled, with the reason: a segmentation where the version is not for the
    patient or the image, and objects of places in the image where it was turned before it was read.
    """
    number, none = 0, _not_made(db, reading_id)
    for row in _active(db, destinations):
        for wanted in row.objects:
            if wanted not in _OF_DICOM or _has_source(db, reading_id):
                made = Dispatch(reading_id=reading_id, destination_id=row.id, object=wanted)
                if reason := none.get(wanted):
                    made.state, made.ended_at, made.reason = CANCELLED, now(), reason
                db.add(made)
                number += 1
    return number


def destinations_of(db: orm.Session, readings: sa.Select[str]) -> list[int]:
    """The systems that any of these readings was listed for."""
    listed = sa.select(Dispatch.destination_id).where(Dispatch.reading_id.in_(readings)).distinct()
    return list(db.scalars(listed.order_by(Dispatch.destination_id)))


def enqueue_review(db: orm.Session, reading_id: str, review_id: str) -> int:
    """List a review for all destinations that the reading was listed for; returns the number of objects.

    None of an image that was withdrawn.
    """
    if _is_withdrawn(db, reading_id):
        return 0
    told = destinations_of(db, sa.select(Reading.id).where(Reading.id == reading_id))
    pairs = [(row.id, wanted) for row in _active(db, told) for wanted in row.objects if wanted in _OF_REVIEW]
    db.add_all(
        Dispatch(reading_id=reading_id, destination_id=to, object=wanted, review_id=review_id) for to, wanted in pairs
    )
    return len(pairs)


def enqueue_withdrawal(db: orm.Session, readings: sa.Select[str], reason: str) -> tuple[int, int]:
    """Stop what waits to be sent about these readings, and list the withdrawal for those who may have results of them.

    FHIR and HL7 can say that a result does not count, and a PACS gets a note that rejects its objects. Returns how many
    entries were stopped, and how many are new.
    """
    due = _begun(db, readings, (*_OF_DICOM, *_OF_PATIENT))
    stopped = cancel_for(db, readings, reason)
    return stopped, _list(db, WITHDRAWAL, due)


def enqueue_move(db: orm.Session, readings: sa.Select[str], number: int) -> int:
    """List the move of an image for the FHIR and HL7 systems that may have results of it; returns how many entries.

    number: which move of the image it is, from 1. The objects of a PACS name the patient of the images' headers.
    """
    return _list(db, f"{MOVE} {number}", _begun(db, readings, _OF_PATIENT))


def _begun(db: orm.Session, readings: sa.Select[str], kinds: Collection[str]) -> dict[tuple[str, int, str], datetime]:
    """When to tell which system, by reading, destination and the object that tells, of what it may have of these kinds.

    A system that is switched off is told once it is on again. One that a result is being sent to is told after that: an
    older result that arrives last would count there.
    """
    begun = (Dispatch.tries > 0) & Dispatch.object.in_(kinds) & Dispatch.reading_id.in_(readings)
    due: dict[tuple[str, int, str], datetime] = {}
    for row in db.scalars(sa.select(Dispatch).where(begun).order_by(Dispatch.created_at, Dispatch.id)):
        told_by = "report" if row.object in _OF_DICOM else row.object  # one note for all objects
        which = (row.reading_id, row.destination_id, told_by)
        due[which] = max(due.get(which, now()), row.due_at if row.state == RUNNING else now())
    return due


def _list(db: orm.Session, about: str, due: dict[tuple[str, int, str], datetime]) -> int:
    db.add_all(
        Dispatch(reading_id=reading, destination_id=to, object=wanted, review_id=about, due_at=at)
        for (reading, to, wanted), at in due.items()
    )
    return len(due)


def claim(store: Store, resting: Collection[int] = ()) -> ClaimedDispatch | None:
    """The entry that is due for the longest time, for this sender alone until its lease ends; None if there is none.

    resting: destinations to which nothing is sent now.
    A review is sent after the reading that it is about: the other system then has its predecessor.
    """
    at, earlier = now(), orm.aliased(Dispatch)
    before = (
        sa.select(earlier.id)
        .where(
            earlier.reading_id == Dispatch.reading_id,
            earlier.destination_id == Dispatch.destination_id,
            earlier.object == Dispatch.object,
            earlier.created_at < Dispatch.created_at,
            earlier.state.in_((QUEUED, RUNNING)),
        )
        .exists()
    )
    due = (
        sa.select(Dispatch)
        .join(Destination)
        .where(Dispatch.state.in_((QUEUED, RUNNING)), Dispatch.due_at <= at, Destination.active, ~before)
        .where(Destination.id.not_in(list(resting)))
        .order_by(Dispatch.due_at)
        .limit(1)
    )
    with store.read() as db:
        if db.scalar(due) is None:
            return None
    with store.write() as db:
        row = db.scalar(due)
        if row is None:
            return None
        row.state, row.lease, row.tries, row.due_at = RUNNING, new_id(), row.tries + 1, at + LEASE
        to = routing.destination(db, row.destination_id)
        sent = _may_have(db, row) if row.review_id == WITHDRAWAL else ()
        left = _patients_before(db, row) if row.review_id.startswith((WITHDRAWAL, MOVE)) else ()
        return ClaimedDispatch(row.id, str(row.lease), row.reading_id, row.object, row.review_id, to, sent, left)


class DispatchAccess:
    """A sender's way to the records while its lease lasts: it acts for the program whose image was read."""

    def __init__(self, store: Store, claimed: ClaimedDispatch):
        self.store, self._claimed = store, claimed

    @contextmanager
    def reads(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A read transaction. Raises DispatchLost."""
        with self.store.read() as db:
            yield db, _actor(db, _leased(db, self._claimed))

    @contextmanager
    def writes(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A write transaction. Raises DispatchLost."""
        with self.store.write() as db:
            yield db, _actor(db, _leased(db, self._claimed))


def sent(store: Store, claimed: ClaimedDispatch, note: str = "") -> None:
    """Note that the destination has the object. note: what it said besides, for people. Raises DispatchLost."""
    with store.write() as db:
        row = _leased(db, claimed)
        row.state, row.lease, row.reason, row.ended_at = DONE, None, note[:1000], now()
        where = {"destination": row.destination_id, "what": row.object}
        audit_trail.append(db, None, "result.send", f"reading:{row.reading_id}", **where)


def fail(
    store: Store, claimed: ClaimedDispatch, reason: str, final: bool = False, after: timedelta = timedelta()
) -> None:
    """Note why it was not sent; it is tried again later unless that is `final` or it was the last try.

    reason: for people; nothing that names a patient. after: no sooner than this. Raises DispatchLost.
    """
    with store.write() as db:
        row = _leased(db, claimed)
        row.lease, row.reason = None, reason[:1000]
        if final or row.tries >= MOST_TRIES:
            row.state, row.ended_at = FAILED, now()
            audit_trail.append(db, None, "result.not_sent", f"reading:{row.reading_id}", destination=row.destination_id)
        else:
            row.state, row.due_at = QUEUED, now() + max(BACK_OFF[row.tries - 1], min(after, BACK_OFF[-1]))


def again(db: orm.Session, dispatch_id: str, by: int | None = None) -> None:
    """Send one that failed again, at once. The caller has checked that `by` is an administrator.

    Raises LungkitError for others, and where the image was withdrawn since, but for what tells of that.
    """
    row = db.get(Dispatch, dispatch_id)
    if row is None or row.state not in (FAILED, CANCELLED):
        raise LungkitError("only a result that could not be sent can be sent again")
    if row.review_id != WITHDRAWAL and _is_withdrawn(db, row.reading_id):
        raise LungkitError("the image of that result was withdrawn, so the result is not sent any more")
    tries = min(row.tries, 1)  # a withdrawal has to know that it was begun before
    row.state, row.tries, row.reason, row.ended_at, row.due_at = QUEUED, tries, "", None, now()
    audit_trail.append(db, by, "result.again", f"reading:{row.reading_id}", destination=row.destination_id)


def give_up(db: orm.Session, dispatch_id: str, by: int | None = None) -> None:
    """Stop trying to send one. The caller has checked that `by` is an administrator."""
    row = db.get(Dispatch, dispatch_id)
    if row is None or row.state not in (QUEUED, RUNNING, FAILED):
        raise LungkitError("that result was sent, or is not on the list any more")
    row.state, row.lease, row.ended_at = CANCELLED, None, now()
    audit_trail.append(db, by, "result.give_up", f"reading:{row.reading_id}", destination=row.destination_id)


def cancel_for(db: orm.Session, readings: sa.Select[str], reason: str) -> int:
    """Stop what waits to be sent, or failed, about these readings; returns how many entries that were."""
    waiting = Dispatch.reading_id.in_(readings) & Dispatch.state.in_((QUEUED, RUNNING, FAILED))
    rows = db.scalars(sa.select(Dispatch).where(waiting)).all()
    for row in rows:
        row.state, row.lease, row.reason, row.ended_at = CANCELLED, None, reason, now()
    return len(rows)


def sent_for(db: orm.Session, readings: sa.Select[str]) -> int:
    """How many results about these readings were sent, or are being sent now and may arrive."""
    done = Dispatch.state.in_((DONE, RUNNING)) & Dispatch.reading_id.in_(readings)
    return db.scalar(sa.select(sa.func.count()).where(done)) or 0


def latest(db: orm.Session, state: str = "", limit: int = 100) -> list[DispatchRow]:
    """The newest entries, or those in this state. The caller has checked who asks."""
    rows = sa.select(Dispatch).order_by(Dispatch.created_at.desc(), Dispatch.id).limit(limit)
    return [
        DispatchRow(**{field.name: getattr(row, field.name) for field in fields(DispatchRow)})
        for row in db.scalars(rows.where(Dispatch.state == state) if state else rows)
    ]


def counts(store: Store) -> dict[tuple[str, str], int]:
    """How many entries there are of each kind of destination and state that has any."""
    which = (Destination.kind, Dispatch.state)
    with store.read() as db:
        rows = db.execute(sa.select(*which, sa.func.count()).join(Destination).group_by(*which))
        return {(kind, state): number for kind, state, number in rows}


def _active(db: orm.Session, destinations: Iterable[int]) -> list[Destination]:
    which = Destination.id.in_(list(destinations)) & Destination.active
    return list(db.scalars(sa.select(Destination).where(which).order_by(Destination.id)))


def _not_made(db: orm.Session, reading_id: str) -> dict[str, str]:
    """Why an object is not made of a reading, by object."""
    of_reading = sa.select(Reading.checks, Study.tags).join(Study).where(Reading.id == reading_id)
    checks, tags = db.execute(of_reading).one()
    if turning.TURNED in tags:
        return dict.fromkeys(("capture", "segmentation"), NOT_AS_THE_FILE)
    refused = refusal(Check(**check) for check in checks)
    return {"segmentation": f"{refused}: the model gives no finding, so there is no segmentation"} if refused else {}


def _may_have(db: orm.Session, withdrawal: Dispatch) -> tuple[tuple[str, str], ...]:
    """The DICOM objects of the reading that the destination may have, with the review that each tells of."""
    of_reading = (Dispatch.reading_id == withdrawal.reading_id) & (Dispatch.destination_id == withdrawal.destination_id)
    begun = of_reading & Dispatch.object.in_(_OF_DICOM) & (Dispatch.tries > 0) & (Dispatch.review_id != WITHDRAWAL)
    rows = sa.select(Dispatch.object, Dispatch.review_id).where(begun).order_by(Dispatch.object, Dispatch.review_id)
    return tuple((kind, review) for kind, review in db.execute(rows))


def _patients_before(db: orm.Session, told: Dispatch) -> tuple[tuple[str, datetime], ...]:
    """The patients under whom the destination may have the result, and when it left each; not the patient it is with.

    Nor one who was erased since: nothing can be said of them any more.
    """
    earlier = (Dispatch.reading_id == told.reading_id) & (Dispatch.destination_id == told.destination_id)
    earlier &= (Dispatch.object == told.object) & (Dispatch.tries > 0) & (Dispatch.id != told.id)
    first = sa.select(sa.func.min(Dispatch.created_at)).where(earlier).scalar_subquery()
    left = (
        sa.select(Patient.id, StudyMove.at)
        .join(StudyMove, StudyMove.from_patient == Patient.id)
        .join(Study, Study.id == StudyMove.study_id)
        .join(Reading, Reading.study_id == Study.id)
        .where(Reading.id == told.reading_id, StudyMove.at > first, Patient.id != Study.patient_id)
        .order_by(StudyMove.at)
    )
    last = {row.id: row.at for row in db.execute(left)}  # a patient may have had it twice
    return tuple(last.items())


def _is_withdrawn(db: orm.Session, reading_id: str) -> bool:
    withdrawn = sa.select(Reading.id).join(Withdrawal, Withdrawal.study_id == Reading.study_id)
    return db.scalar(withdrawn.where(Reading.id == reading_id)) is not None


def _has_source(db: orm.Session, reading_id: str) -> bool:
    return db.scalar(sa.select(ReadingSource.reading_id).where(ReadingSource.reading_id == reading_id)) is not None


def _actor(db: orm.Session, row: Dispatch) -> Actor:
    reading = db.get_one(Reading, row.reading_id, options=[orm.joinedload(Reading.study).joinedload(Study.uploader)])
    user = reading.study.uploader
    return Actor(user.id, user.name, user.full_name, PROGRAM, row.id, sees_all=False)


def _leased(db: orm.Session, claimed: ClaimedDispatch) -> Dispatch:
    row = db.get(Dispatch, claimed.id)
    if row is None or row.state != RUNNING or row.lease != claimed.lease:
        raise DispatchLost("another sender has this result, or it was cancelled")
    return row
