"""The audit trail: who did what, to what, when. Rows are only added, and each one contains the hash of the one before.

The chain shows a row that was changed, deleted, inserted or moved, because a hash no longer matches. Alone it cannot
show that its last rows are missing, or that someone who can write to the database rebuilt all of it, because a hash
needs no secret. Both show when the chain is compared with a head noted elsewhere (`lungkit audit verify` and each
backup print it): a trail that grew from that head still has it.
Triggers in the database stop the program itself, and anyone who uses the tables as they are, from changing a row.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import AuditEvent, now
from lungkit.errors import LungkitError

START = "0" * 64  # what the first row names as the hash before it
_LIMITS = {"action": 64, "object": 200}
# Read without the columns' types, with which a value that is not a time or not JSON would stop a whole batch.
_UNREAD = [sa.type_coerce(column, sa.types.NULLTYPE).label(column.name) for column in AuditEvent.__table__.columns]


class AuditBroken(LungkitError):
    """A row of the trail does not match; `number` says which."""

    def __init__(self, number: int, reason: str):
        super().__init__(
            f"the audit trail is broken at row {number}: {reason}. Do not change the database until this has been "
            "investigated, and compare it with a backup"
        )
        self.number = number


def append(db: orm.Session, user_id: int | None, action: str, object: str, **detail: Any) -> None:
    """Add an event in the caller's write transaction: it is saved exactly if the change that it reports is saved.

    user_id: None for the command line, and if no one is signed in.
    action: such as "reading.save", at most 64 characters. object: "kind:identifier", at most 200, never a name.
    detail: JSON-ready; nothing that names a patient.
    db: from `store.write()`, where writers wait for each other, so no two rows can follow the same one.
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
        # As it will be read back: keys as text, tuples as lists.
        "detail": json.loads(json.dumps(detail, allow_nan=False)),
        "previous": previous,
    }
    db.execute(sa.insert(AuditEvent).values(**row, hash=_hash(row)))


def noted(db: orm.Session, action: str, object: str, user_id: int | None = None, since: datetime | None = None) -> bool:
    """Whether that was done to the object: by this person or by anyone, since this time or at any time."""
    same = (AuditEvent.object == object) & (AuditEvent.action == action)
    same = same if user_id is None else same & (AuditEvent.user_id == user_id)
    same = same if since is None else same & (AuditEvent.at > since)
    return db.scalar(sa.select(AuditEvent.number).where(same).limit(1)) is not None


def head(db: orm.Session) -> str:
    """The end of the trail as "number:hash"; note it where the keeper of the database cannot change it."""
    number, last = _last(db)
    return f"{number}:{last}"


def verify(store: Store, since: str = "") -> int:
    """Read the whole trail and return its number of rows; AuditBroken names the first row that does not match.

    since: a head noted earlier; its row must be in the trail unchanged.
    """
    noted, noted_hash = _parsed(since)
    number, previous = 0, START
    with store.read() as db:
        rows = iter(db.execute(sa.select(*_UNREAD).order_by(AuditEvent.number).execution_options(yield_per=1000)))
        while (row := _next(rows, number + 1)) is not None:
            number += 1
            if row["number"] != number:
                raise AuditBroken(number, f"it is missing; the next row has the number {row['number']}")
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


def _hash(row: dict[str, Any]) -> str:
    """SHA-256 over the row's fields as canonical JSON; the hash of the row before is one of them."""
    fields = {name: value for name, value in row.items() if name != "hash"} | {"at": row["at"].isoformat()}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _next(rows: Iterator[Any], number: int) -> dict[str, Any] | None:
    """The next row; `append` did not write one whose values do not have their column's type."""
    stored = next(rows, None)
    if stored is None:
        return None
    row = dict(stored._mapping)
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
            f"'{head}' is not the head of an audit trail; accepted is NUMBER:HASH as `lungkit audit verify` prints it"
        )
    return int(match[1]), match[2]
