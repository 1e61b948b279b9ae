"""What administrators have set for all of the clinic: each setting has a name, a default, and what is accepted.

A value is checked when it is set, and again when it is read: a backup or another program may have written the row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail
from lungkit.clinic.records.tables import Setting
from lungkit.errors import LungkitError

BLIND_SHARE = "blind_share"  # of uploads that are read blind, 0..1


class SettingRefused(LungkitError):
    """The value is not one that the setting accepts; nothing was changed."""


@dataclass(frozen=True)
class Kind:
    """What a setting may be. accepted: in words, for the person whose value is refused."""

    default: Any
    accepted: str
    check: Callable[[Any], bool]


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # a bool is an int, and NaN is in no range


KINDS = {BLIND_SHARE: Kind(0.0, "a share of 0 to 1", _is_share)}


def get(db: orm.Session, name: str) -> Any:
    """What a setting is now. Raises SettingRefused if the records have a value that is not accepted."""
    kind = KINDS[name]
    stored = db.execute(sa.select(Setting.value).where(Setting.name == name)).one_or_none()
    return _checked(name, stored.value) if stored else kind.default


def put(db: orm.Session, name: str, value: Any, by: int | None = None) -> None:
    """Change a setting; the audit trail has the value before. Raises SettingRefused.

    The caller has checked that `by` is an administrator; None for the command line.
    """
    value = _checked(name, value)
    row = db.get(Setting, name)
    before = row.value if row else KINDS[name].default
    if row is None:
        db.add(Setting(name=name, value=value, changed_by=by))
    else:
        row.value, row.changed_by = value, by
    audit_trail.append(db, by, "setting.change", f"setting:{name}", value=value, before=before)


def _checked(name: str, value: Any) -> Any:
    kind = KINDS[name]
    if not kind.check(value):
        raise SettingRefused(f"the setting {name} is {str(value)[:80]!r}: accepted is {kind.accepted}")
    return value
