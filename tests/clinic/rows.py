"""What tests look up in the records."""

import sqlalchemy as sa

from lungkit.clinic.records.tables import AuditEvent, Base


def count(store, table) -> int:
    with store.read() as db:
        return db.scalar(sa.select(sa.func.count()).select_from(table))


def events(store, action=None) -> list[AuditEvent]:
    """The audit trail, or its events of one action."""
    with store.read() as db:
        trail = db.scalars(sa.select(AuditEvent).order_by(AuditEvent.number)).all()
    return [event for event in trail if action in (None, event.action)]


def everything(store) -> dict[str, list]:
    """All rows of the records, except refusals on the trail and the times when sessions were last used."""
    with store.read() as db:
        rows = {name: db.execute(sa.select(table)).mappings().all() for name, table in Base.metadata.tables.items()}
    rows["audit"] = [row for row in rows["audit"] if row["action"] != "access.refused"]
    rows["sessions"] = [dict(row) | {"seen_at": None} for row in rows["sessions"]]
    return rows
