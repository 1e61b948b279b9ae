"""The database: one way in for reading and one for writing, on SQLite or PostgreSQL.

Each clinician's kernel is a process of its own that writes. On SQLite: WAL, a busy timeout, foreign keys, and
BEGIN IMMEDIATE for writers, so that two of them wait for each other instead of failing half-way (see "Transactions
with SQLite" in SQLAlchemy's dialect notes). Nothing slow, such as a model, runs while a transaction is open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import config
from lungkit.errors import LungkitError

BUSY_SECONDS = 10.0


class StoreError(LungkitError):
    """The records cannot be read or written just now; nothing was half-saved."""


class Store:
    """The records behind a database URL.

    url: default config.database_url(): an SQLite file that only its owner can read, below the data folder.
    """

    def __init__(self, url: str | None = None):
        self.url = sa.make_url(url or config.database_url())
        self.sqlite = self.url.get_backend_name() == "sqlite"
        if self.sqlite:
            if not self.url.database or self.url.database == ":memory:":
                raise StoreError("the records need a file: sqlite:////folder/clinic.db")
            _private(Path(self.url.database))
        options = {} if self.sqlite else {"pool_pre_ping": True}
        self.engine = sa.create_engine(
            self.url, connect_args={"timeout": BUSY_SECONDS} if self.sqlite else {}, **options
        )
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _sqlite_connected)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        self._writer = self.engine.execution_options(lungkit_writes=True)

    @contextmanager
    def read(self) -> Iterator[orm.Session]:
        """A session that sees one state of the records and changes nothing."""
        with _in_words(self), orm.Session(self.engine) as db:
            yield db
            db.rollback()

    @contextmanager
    def write(self) -> Iterator[orm.Session]:
        """A session that is committed at the end as a whole; any error undoes all of it."""
        with _in_words(self), orm.Session(self._writer, expire_on_commit=False) as db, db.begin():
            yield db


def _private(path: Path) -> None:
    """The folder and the file belong to their owner alone, whatever the umask."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600, exist_ok=True)


def _sqlite_connected(connection, _record) -> None:
    connection.isolation_level = None  # SQLAlchemy, not the driver, says when a transaction begins
    for pragma in ("journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection) -> None:
    writes = connection.get_execution_options().get("lungkit_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _in_words(store: Store) -> Iterator[None]:
    """What a database cannot do, said to a person."""
    try:
        yield
    except sa.exc.OperationalError as error:
        reason = str(error.orig)
        if "locked" in reason or "busy" in reason:
            raise StoreError("the records are busy; nothing was saved. Try again in a moment") from error
        if "full" in reason or "disk I/O" in reason:
            raise StoreError("the disk is full; nothing was saved. Tell an administrator, then try again") from error
        if "no such table" in reason:
            raise StoreError("the records have no tables yet; run `lungkit db upgrade`") from error
        raise StoreError(f"the records cannot be reached: {reason.splitlines()[0]}. Tell an administrator") from error
