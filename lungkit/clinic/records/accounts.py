"""People who sign in: passwords, sessions that can be ended at any time, and who may do what.

The browser has a random token, the database only its SHA-256. Every action asks the database who is behind a token
(`Access`), so a session that was ended or a role that was changed takes effect with the next click.

Guessing passwords is slowed down by user name. An attempt counts as failed before its password is checked, and the
count is taken back if the password was right: attempts at the same time count like attempts in a row. Attempts that
come too early are not counted, so no wait is longer than 15 minutes. Failures for other names never make anyone wait.

No one can lock a colleague out. A browser in which the person signed in before shows that (`known_value`), and only
failures in that browser count there. In another browser, at an address where the person signed in before, only failures
at that address count. Everywhere else all failures for the name count, so more addresses give no more guesses.
"""

import functools
import ipaddress
import math
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import argon2
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import config, files
from lungkit.clinic.records import audit_trail
from lungkit.clinic.records.store import DiskFull, Store, StoreError, also_on_a_full_disk
from lungkit.clinic.records.tables import PROGRAM, ROLES, AuditEvent, SignIn, SignInFailure, User, now
from lungkit.errors import LungkitError
from lungkit.wording import count

P = ParamSpec("P")
T = TypeVar("T")
COOKIE = "lungkit_session"
KNOWN_COOKIE = "lungkit_known"  # says that someone signed in with this browser before; it opens nothing
KNOWN = timedelta(days=180)  # that a browser and an address are remembered after a sign-in
SHORTEST, LONGEST = 12, 1024  # of a password, characters
# Easy to read aloud and to copy by hand: no l, 1, o, 0, i.
READABLE = "abcdefghjkmnpqrstuvwxyz23456789"
FREE_BY_NAME = 5  # failures that cost nothing yet
FIRST_WAIT = timedelta(seconds=15)  # doubles with each further failure
LONGEST_WAIT = timedelta(minutes=15)
NOTED = timedelta(minutes=1)  # refused names without an account are on the trail at most this often
RENEWED = timedelta(seconds=5)  # a page that says more often that someone is there is not written down
TOUCH = timedelta(minutes=1)  # reading alone renews the idle expiry at most this often
REFUSED = "User name or password is not right, or the account is disabled."

# One of the equal minimums of OWASP's Password Storage Cheat Sheet: 46 MiB, one pass, one lane. The library's default,
# four lanes, takes all processors of a small server for a fifth of a second at every sign-in and every guess.
_hasher = argon2.PasswordHasher(time_cost=1, memory_cost=46 * 1024, parallelism=1)


class SignedOut(LungkitError):
    """No one is signed in with this token (any more); nothing was done."""


class Forbidden(LungkitError):
    """The person who is signed in is not allowed to do that; nothing was done."""


class SignInRefused(LungkitError):
    """The sign-in failed. wait_seconds: how long until the next attempt is checked; 0: no wait."""

    def __init__(self, message: str, wait_seconds: int = 0):
        super().__init__(message)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Actor:
    """The person or program that acts. For a program, `session_id` is the number of its API key or job."""

    user_id: int
    name: str
    full_name: str
    role: str  # one of tables.ROLES, or tables.PROGRAM
    session_id: str
    sees_all: bool = True  # False: a program that sees only what it sent itself


@dataclass(frozen=True)
class TimeLeft:
    """How long a session lasts from now, in seconds.

    extendable: it would end because nothing is done, so `renew` extends it; otherwise it is as old as it may be.
    """

    seconds: float
    extendable: bool


@dataclass(frozen=True)
class Account:
    """A person's account, for the people who manage accounts."""

    user_id: int
    name: str
    full_name: str
    role: str
    active: bool
    created_at: datetime
    last_sign_in: datetime | None
    last_seen: datetime | None
    sessions: int  # open now


# --- signing in and out


def sign_in(store: Store, name: str, password: str, address: str, known: str = "") -> str:
    """A new session's token for the right password.

    known: `known_value` of an earlier session of this browser, if there was one. Raises SignInRefused, with the same
    message and after the same work for an unknown name, a wrong password and a disabled account.
    """
    name = _as_tried(name)
    with store.read() as db:
        known_hash = db.scalar(sa.select(User.password_hash).where(User.name == name, is_person()))
    failure = _with_reserve(known_hash is not None, _count_attempt, store, name, address, known)
    matches = _matches(known_hash, password)  # slow on purpose: never while a transaction is open
    new_hash = _hash(password) if known_hash and matches and _hasher.check_needs_rehash(known_hash) else known_hash
    matched = known_hash if matches else None
    token = _with_reserve(known_hash is not None, _let_in, store, name, address, failure, matched, new_hash)
    with suppress(StoreError):  # the next attempt tidies as well
        _tidy(store)
    if not token:
        raise SignInRefused(REFUSED)
    return token


def queue(store: Store, name: str, address: str, known: str = "") -> tuple[bool, str]:
    """Whether an attempt is a stranger's, and the name of the queue in which it should wait for its check.

    People have a queue of their own where they signed in before; the attempts there are limited by their waits.
    Strangers share that of their network.
    """
    name, network = _as_tried(name), _network(address)
    with store.read() as db:
        in_browser, in_network = _signed_in_before(db, name, network, known)
    if in_browser:
        return False, known
    return (False, f"{network} {name}") if in_network else (True, network)


def _with_reserve(
    exists: bool, action: Callable[Concatenate[Store, P], T], store: Store, *args: P.args, **kwargs: P.kwargs
) -> T | None:
    """Do the action, on a full disk with room from the reserve if there is such an account.

    Anyone can make up names: what they leave is not written on a full disk. The answer stays the same.
    """
    if exists:
        return also_on_a_full_disk(action)(store, *args, **kwargs)
    try:
        return action(store, *args, **kwargs)
    except DiskFull:
        if not store.reserve.bytes():
            raise
        return None


def _count_attempt(store: Store, name: str, address: str, known: str) -> int:
    """Count an attempt as failed; returns the failure's number. Raises SignInRefused for a wait."""
    network = _network(address)
    with store.write() as db:
        in_browser, in_network = _signed_in_before(db, name, network, known)
        known = known if in_browser else ""
        wait = _wait(db, name, network if in_network else "", known)
        if wait:
            raise SignInRefused(f"Too many failed attempts. Try again in {_in_words(wait)}.", wait)
        failure = SignInFailure(name=name, address=network, known=known)
        db.add(failure)
        db.flush()
        return failure.id


def _let_in(
    store: Store, name: str, address: str, failure: int | None, matched: str | None, new_hash: str | None
) -> str:
    """A new session's token, or empty. failure: the attempt's own; matched: the hash that the password fits, or None.

    Only the attempt's own failure is taken back: the browser's new `known_value` has none, and others go on waiting.
    """
    own = SignInFailure.id == failure
    with store.write() as db:
        user = db.scalar(sa.select(User).where(User.name == name, is_person()).with_for_update())
        # The account may have been disabled, or its password reset, while the password was checked.
        if matched and user and user.active and user.password_hash == matched:
            user.password_hash = new_hash or matched
            db.execute(sa.delete(SignInFailure).where(own))
            return _start(db, user, address)
        if user:
            audit_trail.append(db, None, "session.refused", f"user:{user.id}", address=address[:64])
        else:  # a write as well: the time until the answer does not tell who has an account
            db.execute(sa.update(SignInFailure).where(own).values(at=SignInFailure.at))
    return ""


def _tidy(store: Store) -> None:
    """Delete old failures. Before that, those of names without an account come on the trail, in one row together."""
    at = now()
    with store.write() as db:
        unknown: sa.ColumnElement[bool] = SignInFailure.name.not_in(sa.select(User.name).where(is_person()))
        if last := _last_noted(db):
            unknown &= SignInFailure.at > last
        if last is None or at - last >= NOTED:
            times = sa.func.count()
            networks = sa.select(SignInFailure.address, times).where(unknown).group_by(SignInFailure.address)
            if found := db.execute(networks.order_by(times.desc(), SignInFailure.address)).all():
                most, attempts = found[0].address, sum(row[1] for row in found)
                detail = {"address": most, "addresses": len(found), "attempts": attempts}
                audit_trail.append(db, None, "session.refused", "user:unknown", **detail)
        db.execute(sa.delete(SignInFailure).where(SignInFailure.at <= at - LONGEST_WAIT))


def _last_noted(db: orm.Session) -> datetime | None:
    """When a refused name without an account came on the trail last."""
    rows = (AuditEvent.action == "session.refused") & (AuditEvent.object == "user:unknown")
    return db.scalar(sa.select(AuditEvent.at).where(rows).order_by(AuditEvent.number.desc()).limit(1))


def _start(db: orm.Session, user: User, address: str) -> str:
    token = secrets.token_urlsafe(32)
    session = SignIn(user_id=user.id, token_sha256=files.sha256(token.encode()), address=_network(address))
    db.add(session)
    db.flush()
    audit_trail.append(db, user.id, "session.start", f"session:{session.id}", address=address[:64])
    return token


def known_value(token: str) -> str:
    """What a browser keeps of a session's token after its end; no session can be opened or continued with it."""
    return files.sha256(token.encode())


@also_on_a_full_disk
def sign_out(store: Store, token: str) -> None:
    """End the session; an unknown token, or one whose session has ended, is not an error."""
    with store.read() as db:  # made-up tokens do not keep those who write waiting
        if (session := _session(db, token)) is None or session.revoked_at is not None:
            return
    with store.write() as db:
        session = _session(db, token, lock=True)
        if session and session.revoked_at is None:
            session.revoked_at = now()
            audit_trail.append(db, session.user_id, "session.end", f"session:{session.id}")


def whoami(store: Store, token: str) -> Actor:
    """Who is signed in with this token; does not count as an action. Raises SignedOut."""
    with store.read() as db:
        return _actor(_signed_in(db, token))


def time_left(store: Store, token: str) -> TimeLeft:
    """How long this session lasts if nothing is done; does not count as an action. Raises SignedOut."""
    with store.read() as db:
        return _time_left(_signed_in(db, token))


@also_on_a_full_disk
def renew(store: Store, token: str) -> TimeLeft:
    """The person is there: the time until the idle session ends begins again. Raises SignedOut.

    Writes at most once in RENEWED, however often a page asks.
    """
    with store.read() as db:
        session = _signed_in(db, token)
        if now() - session.seen_at < RENEWED:
            return _time_left(session)
    with store.write() as db:
        session = _signed_in(db, token, lock=True)
        session.seen_at = now()
        return _time_left(session)


def ended(store: Store, session_ids: set[str]) -> set[str]:
    """Those of these sessions that have ended."""
    with store.read() as db:
        sessions = db.scalars(sa.select(SignIn).where(SignIn.id.in_(session_ids)).options(orm.joinedload(SignIn.user)))
        return session_ids - {session.id for session in sessions if not _why_ended(session)}


def _as_tried(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().lower()[:64]


def _network(address: str) -> str:
    """The address as attempts are counted: with IPv6 one line has 2**64 addresses, which count as one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))


def _signed_in_before(db: orm.Session, name: str, network: str, known: str) -> tuple[bool, bool]:
    """Whether this person signed in within KNOWN: with the browser that has this `known_value`, and in this network."""
    sessions = sa.select(SignIn.id).join(User).where(User.name == name, SignIn.created_at > now() - KNOWN).limit(1)
    in_browser, in_network = sessions.where(SignIn.token_sha256 == known), sessions.where(SignIn.address == network)
    return db.scalar(in_browser) is not None, db.scalar(in_network) is not None


def _wait(db: orm.Session, name: str, network: str, known: str) -> int:
    """Seconds until the next attempt for this name is checked.

    network, known: if not empty, the person signed in there before, and only failures there count.
    """
    at = now()
    counted = (SignInFailure.name == name) & (SignInFailure.at > at - LONGEST_WAIT)
    if known:
        counted &= SignInFailure.known == known
    elif network:
        counted &= SignInFailure.address == network
    latest: datetime
    failures: int
    failures, latest = db.execute(sa.select(sa.func.count(), sa.func.max(SignInFailure.at)).where(counted)).one()
    if failures < FREE_BY_NAME:
        return 0
    until = latest + min(FIRST_WAIT * 2.0 ** min(failures - FREE_BY_NAME, 10), LONGEST_WAIT)
    return max(0, math.ceil((until - at).total_seconds()))


def _in_words(seconds: int) -> str:
    return count(seconds, "second") if seconds < 60 else count(math.ceil(seconds / 60), "minute")


# --- each action


class Entry(Protocol):
    """A way to the records: a person's session (`Access`), a program's key or a job that is being read."""

    def reads(self, *roles: str) -> AbstractContextManager[tuple[orm.Session, Actor]]:
        """A read transaction for those with one of `roles`."""

    def writes(self, *roles: str) -> AbstractContextManager[tuple[orm.Session, Actor]]:
        """A write transaction for those with one of `roles`."""


class Access:
    """One person's way to the records: each transaction looks up who is behind the token."""

    def __init__(self, store: Store, token: str):
        self.store = store
        self.token = token

    @contextmanager
    def reads(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A read transaction for people with one of `roles` (none given: anyone signed in).

        Raises SignedOut or Forbidden.
        """
        with self._refusals_noted(), self.store.read() as db:
            session = _signed_in(db, self.token)
            actor = _allowed(_actor(session), roles)
            idle = now() - session.seen_at
            yield db, actor
        if idle > TOUCH:
            with suppress(StoreError):  # who reads need not wait for others who write
                self._touch(actor.session_id)

    @also_on_a_full_disk
    def _touch(self, session_id: str) -> None:
        """Renew the idle expiry."""
        with self.store.write() as db:
            db.execute(sa.update(SignIn).where(SignIn.id == session_id).values(seen_at=now()))

    @contextmanager
    def writes(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A write transaction, as Store.write, for people with one of `roles` (none given: anyone signed in).

        The session stays locked until the commit: it cannot end during the transaction. Raises SignedOut or Forbidden.
        """
        with self._refusals_noted(), self.store.write() as db:
            session = _signed_in(db, self.token, lock=True)
            actor = _allowed(_actor(session), roles)
            session.seen_at = now()
            yield db, actor

    @contextmanager
    def _refusals_noted(self) -> Iterator[None]:
        """Put refused actions on the trail: no one presses a hidden button by accident."""
        try:
            yield
        except Forbidden:
            with suppress(SignedOut):
                self._note_refusal()
            raise

    @also_on_a_full_disk
    def _note_refusal(self) -> None:
        with self.store.write() as db:
            actor = _actor(_signed_in(db, self.token))
            audit_trail.append(db, actor.user_id, "access.refused", f"session:{actor.session_id}", role=actor.role)


def _session(db: orm.Session, token: str, lock: bool = False) -> SignIn | None:
    with_token = sa.select(SignIn).where(SignIn.token_sha256 == files.sha256(token.encode()))
    return db.scalar(with_token.with_for_update() if lock else with_token)


def _signed_in(db: orm.Session, token: str, lock: bool = False) -> SignIn:
    session = _session(db, token, lock)
    if session is None:
        raise SignedOut("You are not signed in. Sign in to continue.")
    if why := _why_ended(session):
        raise SignedOut(f"{why} Sign in again to continue.")
    return session


def _why_ended(session: SignIn) -> str:
    """Why the session has ended; empty while it is open."""
    at = now()
    if session.revoked_at is not None or not session.user.active:
        return "You are signed out."
    too_old, idle = _ends(session)
    if at >= too_old:
        return f"You were signed out after {config.session_hours():g} hours."
    if at >= idle:
        return f"You were signed out after {config.idle_minutes():g} minutes without an action."
    return ""


def _ends(session: SignIn) -> tuple[datetime, datetime]:
    """When the session is as old as it may be, and when it ends if nothing is done."""
    age, idle = timedelta(hours=config.session_hours()), timedelta(minutes=config.idle_minutes())
    return session.created_at + age, session.seen_at + idle


def _time_left(session: SignIn) -> TimeLeft:
    too_old, idle = _ends(session)
    return TimeLeft(max(0.0, (min(too_old, idle) - now()).total_seconds()), extendable=idle < too_old)


def is_person() -> sa.ColumnElement[bool]:
    """Accounts of people, as a condition on users; programs never sign in."""
    return User.role != PROGRAM


def is_open() -> sa.ColumnElement[bool]:
    """Sessions for which `_why_ended` is empty, as a condition on sessions; of active accounts."""
    return (
        SignIn.revoked_at.is_(None)
        & (SignIn.created_at > now() - timedelta(hours=config.session_hours()))
        & (SignIn.seen_at > now() - timedelta(minutes=config.idle_minutes()))
    )


def _actor(session: SignIn) -> Actor:
    user = session.user
    return Actor(user.id, user.name, user.full_name, user.role, session.id)


def _allowed(actor: Actor, roles: tuple[str, ...]) -> Actor:
    if roles and actor.role not in roles:
        raise Forbidden(f"This needs the role {' or '.join(roles)}; you are signed in as {actor.role}.")
    return actor


# --- accounts; the caller has the transaction, and has checked that `by` is an administrator (None: the command line)


def add_user(
    db: orm.Session, name: str, full_name: str, role: str, password: str | None = None, by: int | None = None
) -> str:
    """Make an account; returns its password, which is random if none was given."""
    name, full_name = user_name(name), _full_name(full_name)
    _known_role(role)
    if db.scalar(sa.select(User.id).where(User.name == name)) is not None:
        raise LungkitError(f"there is a user '{name}' already; choose another name, or reset the password")
    password = _new_password(name, password)
    user = User(name=name, full_name=full_name, role=role, password_hash=_hash(password))
    db.add(user)
    db.flush()
    audit_trail.append(db, by, "user.add", f"user:{user.id}", role=role)
    return password


def list_users(db: orm.Session) -> list[Account]:
    """Every person's account, by name."""
    last = sa.func.max(SignIn.created_at), sa.func.max(SignIn.seen_at), sa.func.count().filter(is_open())
    accounts = sa.select(User, *last).where(is_person()).group_by(User.id).order_by(User.name)
    return [
        Account(user.id, user.name, user.full_name, user.role, user.active, user.created_at, signed_in, seen, sessions)
        for user, signed_in, seen, sessions in db.execute(accounts.outerjoin(SignIn, SignIn.user_id == User.id))
    ]


def disable_user(db: orm.Session, name: str, by: int | None = None) -> None:
    """End the person's sessions now and refuse further sign-ins; not for oneself, nor for the last admin."""
    user = _user(db, name)
    _not_oneself(user, by, "disable your own account")
    if user.active:
        _not_the_last_admin(db, user)
        user.active = False
        _end_sessions(db, user)
        audit_trail.append(db, by, "user.disable", f"user:{user.id}")


def enable_user(db: orm.Session, name: str, by: int | None = None) -> None:
    """Let the person sign in again, with the same password as before."""
    user = _user(db, name)
    if not user.active:
        user.active = True
        audit_trail.append(db, by, "user.enable", f"user:{user.id}")


def set_role(db: orm.Session, name: str, role: str, by: int | None = None) -> None:
    """Give the person another role from the next action on, also in open sessions; not oneself, nor the last admin."""
    user = _user(db, name)
    _not_oneself(user, by, "change your own role")
    _known_role(role)
    if role != user.role:
        _not_the_last_admin(db, user)
        user.role = role
        audit_trail.append(db, by, "user.role", f"user:{user.id}", role=role)


def reset_password(db: orm.Session, name: str, password: str | None = None, by: int | None = None) -> str:
    """Set a new password, a random one if none is given, and return it; the person's sessions end now."""
    user = _user(db, name)
    password = _new_password(user.name, password)
    user.password_hash, user.password_changed_at = _hash(password), now()
    _end_sessions(db, user)
    audit_trail.append(db, by, "user.password", f"user:{user.id}")
    return password


def _user(db: orm.Session, name: str) -> User:
    user = db.scalar(sa.select(User).where(User.name == _as_tried(name), is_person()).with_for_update())
    if user is None:
        raise LungkitError(f"no user '{name}'; `lungkit user list` shows all users")
    return user


def user_name(name: str) -> str:
    """The name in the form in which it is stored; raises LungkitError, which says what is accepted."""
    name = unicodedata.normalize("NFKC", name).strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9._@-]{1,63}", name):
        raise LungkitError(
            f"'{name}' cannot be a user name; accepted: 2 to 64 of a-z, 0-9 and . _ @ -, a letter or digit first"
        )
    return name


def _full_name(text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > 200 or not text.isprintable():
        raise LungkitError("give the person's full name, at most 200 characters")
    return text


def _known_role(role: str) -> None:
    if role not in ROLES:
        raise LungkitError(f"no role '{role}'; there are: {', '.join(ROLES)}")


def _not_oneself(user: User, by: int | None, action: str) -> None:
    if user.id == by:
        raise LungkitError(f"you cannot {action}; ask another admin")


def _not_the_last_admin(db: orm.Session, user: User) -> None:
    if user.role != "admin" or not user.active:
        return
    # All admins are locked: two admins who disable each other at the same time cannot both succeed.
    admins = db.scalars(sa.select(User).where(User.role == "admin", User.active).with_for_update()).all()
    if len(admins) == 1:
        raise LungkitError(f"'{user.name}' is the only admin who can sign in; make another one first")


def _end_sessions(db: orm.Session, user: User) -> None:
    is_open = (SignIn.user_id == user.id) & SignIn.revoked_at.is_(None)
    db.execute(sa.update(SignIn).where(is_open).values(revoked_at=now()))


# --- passwords


def generate_password() -> str:
    """A random password of 16 readable characters in groups (79 bits)."""
    return "-".join("".join(secrets.choice(READABLE) for _ in range(4)) for _ in range(4))


def _new_password(name: str, password: str | None) -> str:
    if password is None:
        return generate_password()
    if not SHORTEST <= len(password) <= LONGEST:
        raise LungkitError(f"a password needs at least {SHORTEST} characters (at most {LONGEST})")
    if name in password.lower() and len(password) - len(name) < SHORTEST // 2:
        raise LungkitError("the password must not be little more than the user name")
    if len(set(password)) < 5:
        raise LungkitError("a password needs at least 5 different characters")
    return password


def _plain(password: str) -> str:
    """The same characters, whichever way a keyboard composed them."""
    return unicodedata.normalize("NFKC", password[: LONGEST + 1])


def _hash(password: str) -> str:
    return _hasher.hash(_plain(password))


def _matches(password_hash: str | None, password: str) -> bool:
    """Whether this is the password; takes as long if there is no such user."""
    try:
        return _hasher.verify(password_hash or _no_ones_hash(), _plain(password)) and password_hash is not None
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


@functools.cache
def _no_ones_hash() -> str:
    return _hasher.hash(secrets.token_urlsafe(32))
