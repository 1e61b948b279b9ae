"""API keys of programs: made and revoked by an administrator, and looked up again in each transaction.

A key is `lk_<id>_<secret>`. The records keep the SHA-256 of the secret, which is enough because the secret is 32 random
bytes. A program is an account with the role "program": it has keys in place of a password and never signs in.
"""

import hmac
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import files
from lungkit.clinic.records import accounts, audit_trail
from lungkit.clinic.records.accounts import Actor, Forbidden
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import PROGRAM, SCOPES, ApiKey, User, now
from lungkit.errors import LungkitError

DAYS, MOST_DAYS = 365, 3650  # until a key expires
PER_MINUTE, MOST_PER_MINUTE = 120, 1_000_000  # requests
TOUCH = timedelta(minutes=1)  # the last use is written at most this often
NOTED = timedelta(minutes=1)  # a refused key is on the trail at most this often
NO_PASSWORD = "!"
_KEY = re.compile(r"lk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
REFUSED = "the API key is missing, unknown, expired or revoked; give it as `Authorization: Bearer lk_…`"


class KeyRefused(LungkitError):
    """The API key is not one that may be used now; nothing was done."""


@dataclass(frozen=True)
class KeyRow:
    """A key, for the people who manage keys; without its secret."""

    id: str
    program: str
    scopes: tuple[str, ...]
    per_minute: int
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def state(self) -> str:
        """ "in use", "expired" or "revoked"."""
        if self.revoked_at:
            return "revoked"
        return "in use" if now() < self.expires_at else "expired"


# --- making and revoking; the caller has the transaction, and has checked that `by` is an administrator


def add_key(
    db: orm.Session,
    name: str,
    scopes: list[str],
    days: float = DAYS,
    per_minute: int = PER_MINUTE,
    by: int | None = None,
) -> str:
    """Make a key for the program called `name`, and its account if it is new; returns the key, which is shown once.

    A program may have several keys: make the next one, change it in the program, then revoke the one before.
    """
    if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
        what = f"no scope '{unknown[0]}'" if scopes else "a key needs a scope"
        raise LungkitError(f"{what}; there are: {', '.join(SCOPES)}")
    if not 0 < days <= MOST_DAYS:
        raise LungkitError(f"{days:g} days: accepted are more than 0 and at most {MOST_DAYS}")
    if not 1 <= per_minute <= MOST_PER_MINUTE:
        raise LungkitError(f"{per_minute} requests a minute: accepted are 1 to {MOST_PER_MINUTE}")
    program = program_account(db, name)
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=secrets.token_hex(6),
        user_id=program.id,
        secret_sha256=files.sha256(secret.encode()),
        scopes=[scope for scope in SCOPES if scope in scopes],
        per_minute=per_minute,
        expires_at=now() + timedelta(days=days),
    )
    db.add(key)
    db.flush()
    audit_trail.append(db, by, "key.add", f"key:{key.id}", program=program.id, scopes=key.scopes)
    return f"lk_{key.id}_{secret}"


def list_keys(db: orm.Session) -> list[KeyRow]:
    """Every key, by program and age; revoked ones too."""
    keys = sa.select(ApiKey, User.name).join(User).order_by(User.name, ApiKey.created_at, ApiKey.id)
    return [
        KeyRow(key.id, name, tuple(key.scopes), key.per_minute, key.created_at, key.expires_at, key.last_used_at,
               key.revoked_at)
        for key, name in db.execute(keys)
    ]  # fmt: skip


def revoke_key(db: orm.Session, key_id: str, by: int | None = None) -> None:
    """Refuse the key from now on; its jobs that no worker reads yet are cancelled when their turn comes."""
    key = db.get(ApiKey, key_id.removeprefix("lk_").partition("_")[0], with_for_update=True)
    if key is None:
        raise LungkitError(f"no key '{key_id[:40]}'; `lungkit key list` shows all keys")
    if key.revoked_at is None:
        key.revoked_at = now()
        audit_trail.append(db, by, "key.revoke", f"key:{key.id}")


def program_account(db: orm.Session, name: str) -> User:
    """The account of a program, which is made if it is new. Raises LungkitError if a person has that name."""
    name = accounts.user_name(name)
    user = db.scalar(sa.select(User).where(User.name == name))
    if user is None:
        user = User(name=name, full_name=name, role=PROGRAM, password_hash=NO_PASSWORD)
        db.add(user)
        db.flush()
    elif user.role != PROGRAM:
        raise LungkitError(f"'{name}' is a person's user name; give the program another one")
    return user


# --- each request


class KeyAccess:
    """A program's way to the records: each transaction looks the key up again, and checks its scope.

    scopes: one of them is enough. A key with the scope "admin" sees what all programs sent, others what theirs did.
    """

    def __init__(self, store: Store, key: str, *scopes: str):
        self.store = store
        self.scopes = scopes
        self._key = key

    def limits(self) -> tuple[str, int]:
        """The key's id, and the most requests a minute that it allows. Raises KeyRefused or Forbidden."""
        with self._refusals_noted():
            with self.store.read() as db:
                key = self._found(db)
            if key.last_used_at is None or now() - key.last_used_at > TOUCH:
                with suppress(StoreError), self.store.write() as db:  # reading also works on a full disk
                    db.execute(sa.update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=now()))
        return key.id, key.per_minute

    @contextmanager
    def reads(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A read transaction; roles: none, or "program" among them. Raises KeyRefused or Forbidden."""
        with self._refusals_noted(), self.store.read() as db:
            yield db, self._actor(db, roles)

    @contextmanager
    def writes(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A write transaction, as `reads`."""
        with self._refusals_noted(), self.store.write() as db:
            yield db, self._actor(db, roles)

    def _actor(self, db: orm.Session, roles: tuple[str, ...]) -> Actor:
        key = self._found(db)
        if roles and PROGRAM not in roles:
            raise Forbidden(f"This needs the role {' or '.join(roles)}; an API key does not have it.")
        return Actor(key.user_id, key.user.name, key.user.full_name, PROGRAM, key.id, "admin" in key.scopes)

    def _found(self, db: orm.Session) -> ApiKey:
        parts = _KEY.fullmatch(self._key)
        key = db.get(ApiKey, parts[1], options=[orm.joinedload(ApiKey.user)]) if parts else None
        known = key.secret_sha256 if key else "0" * 64
        given = files.sha256((parts[2] if parts else "").encode())
        if not hmac.compare_digest(given, known) or key is None:
            raise KeyRefused(REFUSED)
        if key.revoked_at is not None or now() >= key.expires_at or not key.user.active:
            raise KeyRefused(REFUSED)
        if not set(self.scopes) & set(key.scopes):
            raise Forbidden(f"this needs a key with the scope {' or '.join(self.scopes)}; this key does not have it")
        return key

    @contextmanager
    def _refusals_noted(self) -> Iterator[None]:
        """Put refused keys on the trail, each at most once in NOTED: no one can fill it from outside."""
        try:
            yield
        except (KeyRefused, Forbidden) as refused:
            with suppress(StoreError):
                self._note(type(refused).__name__)
            raise

    def _note(self, why: str) -> None:
        with self.store.read() as db:
            parts = _KEY.fullmatch(self._key)
            known = parts and db.get(ApiKey, parts[1])
            name, since = f"key:{known.id if known else 'unknown'}", now() - NOTED
            if audit_trail.noted(db, "key.refused", name, since=since):
                return
        with self.store.write() as db:
            if not audit_trail.noted(db, "key.refused", name, since=since):
                audit_trail.append(db, None, "key.refused", name, why=why, scopes=list(self.scopes))
