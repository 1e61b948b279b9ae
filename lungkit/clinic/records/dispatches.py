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
    Reading,
    ReadingSource,
    Study,
    new_id,
    now,
)
from lungkit.errors import LungkitError

LEASE = timedelta(minutes=3)  # how long one object may take to send
BACK_OFF = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 7200, 21600, 43200, 86400))
MOST_TRIES = len(BACK_OFF) + 1
_OF_DICOM = ("report", "capture", "segmentation")  # objects that need the headers of the images
_OF_REVIEW = ("report", "bundle", "message")  # objects that tell of a review


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


@dataclass(frozen=True)
class ClaimedDispatch:
    """A result that a sender sends now."""

    id: str
    lease: str
    reading_id: str
    object: str  # one of tables.OBJECTS
    review_id: str  # the review to tell of; empty: the reading itself
    destination: DestinationRow


def enqueue(db: orm.Session, reading_id: str, destinations: Iterable[int]) -> int:
    """List a new reading for these destinations, as far as they are active; returns the number of objects."""
    number = 0
    for row in _active(db, destinations):
        for wanted in row.objects:
            if wanted not in _OF_DICOM or _has_source(db, reading_id):
                db.add(Dispatch(reading_id=reading_id, destination_id=row.id, object=wanted))
                number += 1
    return number


def enqueue_review(db: orm.Session, reading_id: str, review_id: str) -> int:
    """List a review for all destinations that the reading was listed for; returns the number of objects."""
    told = sa.select(Dispatch.destination_id).where(Dispatch.reading_id == reading_id).distinct()
    pairs = [
        (row.id, wanted) for row in _active(db, db.scalars(told)) for wanted in row.objects if wanted in _OF_REVIEW
    ]
    db.add_all(
        Dispatch(reading_id=reading_id, destination_id=to, object=wanted, review_id=review_id) for to, wanted in pairs
    )
    return len(pairs)


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
        return ClaimedDispatch(row.id, str(row.lease), row.reading_id, row.object, row.review_id, to)


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
    """Send one that failed again, at once. The caller has checked that `by` is an administrator."""
    row = db.get(Dispatch, dispatch_id)
    if row is None or row.state not in (FAILED, CANCELLED):
        raise LungkitError("only a result that could not be sent can be sent again")
    row.state, row.tries, row.reason, row.ended_at, row.due_at = QUEUED, 0, "", None, now()
    audit_trail.append(db, by, "result.again", f"reading:{row.reading_id}", destination=row.destination_id)


def give_up(db: orm.Session, dispatch_id: str, by: int | None = None) -> None:
    """Stop trying to send one. The caller has checked that `by` is an administrator."""
    row = db.get(Dispatch, dispatch_id)
    if row is None or row.state not in (QUEUED, RUNNING, FAILED):
        raise LungkitError("that result was sent, or is not on the list any more")
    row.state, row.lease, row.ended_at = CANCELLED, None, now()
    audit_trail.append(db, by, "result.give_up", f"reading:{row.reading_id}", destination=row.destination_id)


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
