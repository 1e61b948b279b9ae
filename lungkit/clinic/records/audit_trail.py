"""The audit trail: who did what, on what, when; rows are only ever added, each carrying the hash of the one before.

What the chain shows: a row that was changed, deleted, put in between or moved, since some hash no longer fits. What it
cannot show by itself: that its last rows are gone, or that somebody who can write to the database file built all of it
anew, since a hash needs no secret. Both show against a head noted elsewhere (`head`, `lungkit audit verify` prints it,
and so does each backup): a trail that grew from that head still has it.
Triggers in the database keep the program itself, and anyone using the tables as they are, from changing a row.
"""

import hashlib
import json
import re
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import AuditEvent, now
from lungkit.errors import LungkitError

START = "0" * 64  # what the first row names as the hash before it
_LIMITS = {"action": 64, "object": 200}
# As the driver gives them: with the columns' own types, a value that is no time or no JSON would stop a whole batch.
_UNREAD = [sa.type_coerce(column, sa.types.NULLTYPE).label(column.name) for column in AuditEvent.__table__.columns]


class AuditBroken(LungkitError):
    """A row of the trail does not fit; `number` says which."""

    def __init__(self, number: int, reason: str):
        super().__init__(
            f"the audit trail is broken at row {number}: {reason}. Keep the database as it is for whoever looks into "
            "it, and compare it with a backup"
        )
        self.number = number


def append(db: orm.Session, user_id: int | None, action: str, object: str, **detail) -> None:
    """Add an event in the caller's write transaction: it is kept if and only if what it tells of is.

    user_id: None for the command line, and where nobody is signed in.
    action: such as "reading.save", at most 64 characters. object: "kind:identifier", at most 200, never a name.
    detail: JSON-ready; nothing that names a patient.
    db must come from `store.write()`: there writers wait for each other, so that no two rows follow the same one.
    """
    for name, text in (("action", action), ("object", object)):
        if not text or len(text) > _LIMITS[name]:
            raise ValueError(f"the {name} of an audit event has 1 to {_LIMITS[name]} characters, this one {len(text)}")
    number, previous = _last(db)
    row = {
        "number": number + 1,
        "at": now(),
        "user_id": user_id,
        "action": action,
        "object": object,
        # As it will be read again: keys as text, tuples as lists.
        "detail": json.loads(json.dumps(detail, allow_nan=False)),
        "previous": previous,
    }
    db.execute(sa.insert(AuditEvent).values(**row, hash=_hash(row)))


def head(db: orm.Session) -> str:
    """The end of the trail as "number:hash", to be noted where the database's keeper cannot change it."""
    number, last = _last(db)
    return f"{number}:{last}"


def verify(store: Store, since: str = "") -> int:
    """Read the whole trail and return its number of rows; AuditBroken names the first row that does not fit.

    since: a head noted earlier; that row must still be there as it was.
    """
    noted, noted_hash = _parsed(since)
    number, previous = 0, START
    with store.read() as db:
        rows = iter(db.execute(sa.select(*_UNREAD).order_by(AuditEvent.number).execution_options(yield_per=1000)))
        while (row := _next(rows, number + 1)) is not None:
            number += 1
            if row["number"] != number:
                raise AuditBroken(number, f"it is missing; the next there is has the number {row['number']}")
            if row["previous"] != previous:
                raise AuditBroken(number, "it does not follow the row before")
            if row["hash"] != _hash(row):
                raise AuditBroken(number, "it was changed after it was written")
            previous = row["hash"]
            if number == noted and previous != noted_hash:
                raise AuditBroken(number, "it is not the row whose hash was noted")
    if number < noted:
        raise AuditBroken(number + 1, f"it is missing; the trail had {noted} rows when its head was noted")
    return number


def _last(db: orm.Session) -> tuple[int, str]:
    last = db.execute(
        sa.select(AuditEvent.number, AuditEvent.hash).order_by(AuditEvent.number.desc()).limit(1)
    ).one_or_none()
    return (last.number, last.hash) if last else (0, START)


def _hash(row: dict) -> str:
    """SHA-256 over the row's fields as canonical JSON; the hash of the row before is one of them."""
    fields = {name: value for name, value in row.items() if name != "hash"} | {"at": row["at"].isoformat()}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _next(rows, number: int) -> dict | None:
    """The next row; one whose values are not of their column's type was not written by `append`."""
    row = next(rows, None)
    if row is None:
        return None
    row = dict(row._mapping)
    try:
        if isinstance(row["at"], str):  # SQLite
            row |= {"at": datetime.fromisoformat(row["at"]).replace(tzinfo=UTC), "detail": json.loads(row["detail"])}
        row["at"] = row["at"].astimezone(UTC)
        _hash(row)
    except (AttributeError, TypeError, ValueError):
        raise AuditBroken(number, "it was changed after it was written") from None
    return row


def _parsed(head: str) -> tuple[int, str]:
    if not head:
        return 0, START
    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", head.strip())
    if not match:
        raise LungkitError(
            f"'{head}' is no head of an audit trail; accepted is NUMBER:HASH as `audit verify` prints it"
        )
    return int(match[1]), match[2]
