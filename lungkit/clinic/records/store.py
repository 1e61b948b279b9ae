"""The database: one way in for reading and one for writing, on SQLite or PostgreSQL.

Each clinician's kernel is a process of its own that writes. On both databases one writer waits for the other: on
SQLite by BEGIN IMMEDIATE (see "Transactions with SQLite" in SQLAlchemy's dialect notes), on PostgreSQL by a lock of
the transaction. What a writer has read therefore cannot change before it writes. Readers never wait, and see one state
from their first query on. Nothing slow, such as a model, runs while a transaction is open.
"""

import functools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import config
from lungkit.clinic.records.reserve import Reserve
from lungkit.errors import LungkitError

P = ParamSpec("P")
T = TypeVar("T")
BUSY_SECONDS = 10.0
TRIES = 4  # on a full disk, each with more room; other programs may take what was meant for the first
WRITERS_LOCK = 0x6C756E67  # PostgreSQL's advisory lock that writers take ("lung"); any number will do

_BUSY = "the records are busy; nothing was saved. Try again in a moment"
_FULL = "the disk is full or failing; nothing was saved. Tell an administrator, then try again"
_DAMAGED = "the records are damaged; tell an administrator: `lungkit db check` says more, `lungkit db restore` helps"
_CLOSED = "this program is not allowed to open or write the records; an administrator has to check who owns the files"
_NO_TABLES = "the records have no tables yet, or tables that are too old; run `lungkit db upgrade`"
_NO_SUCH_VALUE = "a value is too long, or has characters that the database cannot store; nothing was saved"

# Primary result codes of SQLite, and SQLSTATEs of PostgreSQL (a code or its class).
_SQLITE = {5: _BUSY, 6: _BUSY, 8: _CLOSED, 10: _FULL, 11: _DAMAGED, 13: _FULL, 14: _CLOSED, 26: _DAMAGED}
_POSTGRESQL = {
    "55P03": _BUSY, "40P01": _BUSY, "40001": _BUSY, "53300": _BUSY,
    "53100": _FULL, "58030": _FULL, "XX001": _DAMAGED, "XX002": _DAMAGED, "28": _CLOSED, "42501": _CLOSED,
    "25006": _CLOSED, "42P01": _NO_TABLES, "42703": _NO_TABLES, "22": _NO_SUCH_VALUE,
}  # fmt: skip


class StoreError(LungkitError):
    """The records cannot be read or written now; nothing was partly saved."""


class DiskFull(StoreError):
    """The disk has no room, or does not work. reserve: of the store that could not write; error: the driver's."""

    def __init__(self, reserve: Reserve, error: BaseException):
        super().__init__(_FULL)
        self._reserve = reserve
        self._sure = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL

    def make_room(self, always: bool) -> bool:
        """As Reserve.release; a disk that does not work gets nothing."""
        return self._reserve.release(always and self._sure)


def also_on_a_full_disk(action: Callable[P, T]) -> Callable[P, T]:
    """For an action that is small and has to work: on a full disk it is done again, with room from the reserve.

    It may have one write transaction, and nothing else that must not happen twice. Raises DiskFull if the reserve is
    used up.
    """

    @functools.wraps(action)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        for attempt in range(TRIES):
            try:
                return action(*args, **kwargs)
            except DiskFull as full:
                if not full.make_room(always=attempt > 0):
                    raise
        return action(*args, **kwargs)

    return run


class Store:
    """The records behind a database URL.

    url: default config.database_url(): an SQLite file that only its owner can read, below the data folder.
    busy_seconds: how long to wait for another writer before a StoreError.
    """

    def __init__(self, url: str | None = None, busy_seconds: float = BUSY_SECONDS):
        self.url = _accepted(url or config.database_url())
        sqlite = self.url.get_backend_name() == "sqlite"
        self.path = Path(self.url.database or "") if sqlite else None
        self.reserve = Reserve(self.path and Path(f"{self.path}-reserve"))
        self.busy_seconds = busy_seconds
        # Logs and tracebacks show statements without their values, which are people's names.
        self.engine = sa.create_engine(self.url, hide_parameters=True, **self._options())
        if path := self.path:
            sa.event.listen(self.engine, "do_connect", lambda *_: _make_private(path))
            sa.event.listen(self.engine, "connect", self._sqlite_connected)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
            self._reader = self.engine.execution_options(lungkit="read")
        else:
            sa.event.listen(self.engine, "begin", self._postgresql_begin)
            self._reader = self.engine.execution_options(
                lungkit="read", isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self._writer = self.engine.execution_options(lungkit="write")
        self._migrator = self.engine.execution_options(lungkit="migrate")

    def __repr__(self) -> str:
        return f"Store({self.url.render_as_string(hide_password=True)!r})"

    def _options(self) -> dict[str, Any]:
        if self.path:
            return {"connect_args": {"timeout": self.busy_seconds}}
        # A server allows about 100 connections from all kernels together, so each keeps only one open.
        return {"pool_pre_ping": True, "pool_size": 1, "connect_args": {"connect_timeout": 10}}

    @contextmanager
    def read(self) -> Iterator[orm.Session]:
        """A session that sees one state of the records and cannot write; what it loaded can be used afterwards."""
        with in_words(self.reserve), orm.Session(self._reader) as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[orm.Session]:
        """A session that is committed as a whole at the end; any error undoes all of it.

        Other writers wait from its first query on, so what it reads stays true until it ends.
        """
        with in_words(self.reserve), orm.Session(self._writer, expire_on_commit=False) as db, db.begin():
            yield db

    @contextmanager
    def migrate(self) -> Iterator[sa.Connection]:
        """A connection to change the tables with, completely or not at all; other writers wait.

        SQLite changes a table by making a new one. Foreign keys would empty the tables that refer to it, so they are
        checked once, at the end.
        """
        with in_words(self.reserve), self._migrator.connect() as connection, connection.begin():
            yield connection
            if self.path and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
                raise StoreError(f"after the change, a row of {broken[0]} would refer to nothing; nothing was changed")

    def scrub(self) -> None:
        """Clear what erased rows left in the database's own files. Backups made earlier still contain those rows."""
        with in_words(self.reserve):
            if self.path:
                with closing(self.engine.raw_connection()) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.exec_driver_sql("VACUUM")

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.engine.dispose()

    def _sqlite_connected(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy, not the driver, begins transactions
        give_up, tries = time.monotonic() + self.busy_seconds, TRIES
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # On a full disk there may be no room for the file through which processes share the log of writes.
                full = DiskFull(self.reserve, error) if _words(error) == _FULL else None
                if tries and full and full.make_room(always=True):
                    tries -= 1
                    continue
                # While another process prepares the same new file, SQLite fails at once instead of waiting.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
        # FULL: a commit survives a power cut. secure_delete: erased data is overwritten. temp_store: what is sorted
        # names patients, and a file for it needs a disk that is not full.
        for pragma in ("synchronous = FULL", "secure_delete = ON", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")

    def _postgresql_begin(self, connection: sa.Connection) -> None:
        if connection.get_execution_options().get("lungkit") in ("write", "migrate"):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(self.busy_seconds * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")


@contextmanager
def in_words(reserve: Reserve | None = None) -> Iterator[None]:
    """Turn the database's errors into a StoreError for people; other errors pass unchanged.

    reserve: of the store, which a DiskFull names.
    """
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        words = _words(getattr(error, "orig", error))
        if words == _FULL:
            raise DiskFull(reserve or Reserve(None), getattr(error, "orig", error)) from error
        if words:
            raise StoreError(words) from error
        raise
    except sa.exc.TimeoutError as error:  # every connection of this process is in use
        raise StoreError(_BUSY) from error


def _words(error: BaseException) -> str | None:
    """What a driver's exception means and what to do; None if the database's state is not the cause."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if code := getattr(error, "sqlite_errorcode", None):
        if reason.startswith(("no such table", "no such column")):
            return _NO_TABLES
        return _SQLITE.get(code & 0xFF)
    state = getattr(error, "sqlstate", None) or "none"
    if words := _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2]):
        return words
    kinds = {kind.__name__ for kind in type(error).__mro__}  # the driver's own classes, without loading the driver
    if "DataError" in kinds:
        return _NO_SUCH_VALUE
    if "OperationalError" in kinds:  # no connection, or it broke
        return f"the records cannot be reached: {reason}. Tell an administrator, and check if the last step was saved"
    return None


def _accepted(url: str) -> sa.URL:
    # The messages do not repeat the URL, which may contain a password.
    accepted = "accepted are sqlite:////whole/path/clinic.db and postgresql://user:password@host/database"
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise StoreError(f"the database's URL cannot be understood; {accepted}") from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"the records are not kept in {parsed.drivername}; {accepted}")
    if not parsed.database or not Path(parsed.database).is_absolute():
        # Each kernel could take a relative path for a different file.
        raise StoreError(f"the records need a file with its whole path, not '{parsed.database or ''}'; {accepted}")
    return parsed


def _make_private(path: Path) -> None:
    """Let only the owner read folder and file, whatever the umask; SQLite gives its other files the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}") from error


def _sqlite_begin(connection: sa.Connection) -> None:
    use = connection.get_execution_options().get("lungkit")
    connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if use == 'read' else 'OFF'}")
    connection.exec_driver_sql(f"PRAGMA foreign_keys = {'OFF' if use == 'migrate' else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if use in ("write", "migrate") else "BEGIN")
