"""Work on the database as a whole: make and upgrade its tables, back it up, restore it, check it.

A backup is one file: a compacted SQLite database, or a pg_dump archive. It holds what the records hold, patients'
names and images included, so it is readable by its owner only and must be kept like the records. It cannot be undone
in it that a patient was erased later.
"""

import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

from lungkit import files
from lungkit.clinic.records import audit_trail
from lungkit.clinic.records.store import BUSY_SECONDS, WRITERS_LOCK, Store, StoreError, in_words
from lungkit.clinic.records.tables import Base, SignIn, now
from lungkit.errors import LungkitError

TRIGGERS = {"sqlite": {"audit_no_update", "audit_no_delete", "audit_follows"},
            "postgresql": {"audit_no_change", "audit_follows"}}  # fmt: skip
OLD = "before_restore"  # how what a restore put aside is called
_one_upgrade = threading.Lock()  # Alembic keeps its state in a module


# --- the schema


def upgrade(store: Store) -> None:
    """Make the tables, or take them through the steps they lack: all of them or none.

    Of several processes that start at once one does it, the others wait for it. StoreError for a database that a
    newer lungkit wrote, and for one with tables that are somebody else's.
    """
    with _one_upgrade, store.migrate() as connection:
        schema = _schema(connection)
        if schema is None and (others := set(sa.inspect(connection).get_table_names()) & set(Base.metadata.tables)):
            raise StoreError(
                f"the database has a table '{min(others)}' that lungkit did not make; give it a database of its own"
            )
        _require_known(schema, "the database")
        configuration = alembic.config.Config()
        configuration.set_main_option("script_location", str(_steps()).replace("%", "%%"))
        configuration.attributes["connection"] = connection
        alembic.command.upgrade(configuration, "head")


def _steps() -> Path:
    return Path(str(resources.files("lungkit.clinic.records") / "migrations"))


def _known() -> list[str]:
    """The schema versions that this program knows, newest first."""
    return [step.revision for step in ScriptDirectory(str(_steps())).walk_revisions()]


def _schema(connection: sa.Connection) -> str | None:
    """The version of the tables; None where lungkit has made none."""
    return MigrationContext.configure(connection).get_current_revision()


def _require_known(schema: str | None, what: str) -> None:
    known = _known()
    if schema is not None and schema not in known:
        raise StoreError(
            f"{what} was written by a newer lungkit (schema {schema}; this one knows up to {known[0]}); nothing was "
            "changed. Use that lungkit, or restore a backup from before"
        )


# --- backup


def backup(store: Store, path: Path | str) -> Path:
    """Copy the records, as they are at one moment, to a new file while people go on working; returns the file.

    path: a new file, or a folder, in which the file is named by the time. It appears whole or not at all.
    """
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        path /= f"lungkit-{_stamp()}{'.db' if store.path else '.pgdump'}"
    if path.exists():
        raise StoreError(f"{path} is there already; give the backup a new name")
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent} for the backup; make it first")
    _require_tables(store)
    with _draft(path) as draft:
        if store.path:
            _copy(store, draft)
            with _opened(draft) as copy:
                _require_sound(copy, "the records, and with them the backup,")
        else:
            _run("pg_dump", store, "--format=custom", "--no-owner", "--no-privileges",
                 f"--exclude-schema={OLD}_*", f"--file={draft}")  # fmt: skip
        files.put(draft, path)
    return path


def _require_tables(store: Store) -> None:
    if store.path and not store.path.exists():
        raise StoreError(f"there are no records at {store.path} yet; `lungkit db upgrade` makes them")
    with store.read() as db:
        if _schema(db.connection()) is None:
            raise StoreError("the records have no tables yet; `lungkit db upgrade` makes them")


def _copy(store: Store, to: Path) -> None:
    """One moment of a live SQLite database, without its free pages; writers go on meanwhile."""
    with _opened(store.path) as live:
        live.execute("VACUUM INTO ?", (str(to),))


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file next to `path` that only its owner reads; it is removed at the end unless it was moved."""
    try:
        with files.draft(path, mode=0o600) as draft:
            yield draft
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def _opened(path: Path, busy_seconds: float = BUSY_SECONDS) -> Iterator[sqlite3.Connection]:
    """An SQLite file as it is, without the store's settings, and without trust in what its schema calls."""
    uri = f"file:{quote(str(path))}?mode=rw"
    with in_words(), closing(sqlite3.connect(uri, timeout=busy_seconds, uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        yield connection


def _stamp() -> str:
    """The time for a name; to the microsecond, so that none is given twice."""
    return datetime.now().strftime("%Y%m%d_%H%M%S_%f")


# --- restore


def restore(store: Store, path: Path | str) -> str:
    """Put a backup in the place of the records, in one step; returns where what was there before is kept.

    The backup is looked at first: a damaged or foreign file, or one of a newer lungkit, is refused and nothing is
    changed. An older one is upgraded. Everybody is signed out, since sessions that were ended after the backup would
    hold again, and the trail gets a row that tells which head it had before.
    Stop the server first: what people save while this runs may be only in what is put aside.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise StoreError(f"there is no backup {path}")
    return _restore_sqlite(store, path) if store.path else _restore_postgresql(store, path)


def _restore_sqlite(store: Store, path: Path) -> str:
    if store.path.exists() and path.samefile(store.path):
        raise StoreError(f"{path} is the database itself; give a backup")
    store.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _draft(store.path) as draft:
        # What is looked at is what is used, also if somebody changes the file meanwhile.
        shutil.copyfile(path, draft)
        if (log := Path(f"{path}-wal")).exists():  # not one of our backups, but the files of a database itself
            shutil.copyfile(log, f"{draft}-wal")
        with _opened(draft) as copy:
            _require_sound(copy, str(path))
        with closing(Store(f"sqlite:///{draft}")) as prepared:
            with prepared.read() as db:
                _require_ours(db.connection(), str(path))
            upgrade(prepared)
            _close_trail(prepared, path, _head(store))
        store.close()
        kept = _put_aside(store)
        if store.path.exists():
            _put_in(draft, store)
        else:
            files.put(draft, store.path)
    return str(kept) if kept else ""


def _put_aside(store: Store) -> Path | None:
    """Keep the present database beside itself: as a copy, or, where it is too damaged to be read, as its files."""
    kept = store.path.with_name(f"{store.path.stem}.{OLD}_{_stamp()}{store.path.suffix}")
    if not store.path.exists():
        _move_aside(store.path, kept)  # SQLite would take the log of a database that is gone for that of the new one
        return None
    try:
        with _draft(kept) as draft:
            _copy(store, draft)
            files.put(draft, kept)
    except StoreError as error:
        if not _is_damaged(error.__cause__):
            raise
        _move_aside(store.path, kept)
    return kept


def _move_aside(database: Path, kept: Path) -> None:
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{database}{end}").rename(f"{kept}{end}")


def _is_damaged(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _put_in(draft: Path, store: Store) -> None:
    """Write a database over the live one as one transaction of it: whoever has it open sees the one or the other."""
    give_up = time.monotonic() + store.busy_seconds

    def in_time(*_):
        if time.monotonic() > give_up:
            raise StoreError("the records are in use; nothing was changed. Stop the server, then restore again")

    # It is `in_time` that waits: each call of it is a try.
    with _opened(draft) as new, _opened(store.path, busy_seconds=0) as live:
        new.backup(live, progress=in_time, sleep=0.05)
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _restore_postgresql(store: Store, path: Path) -> str:
    kept = f"{OLD}_{_stamp()}"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restore.sql"
        # Made from the whole archive, so a damaged one shows here.
        _run("pg_restore", None, "--no-owner", "--no-privileges", f"--file={script}", str(path),
             refused=f"{path} is damaged, or no backup of records on PostgreSQL; nothing was changed")  # fmt: skip
        _require_known(_schema_in(script, path), str(path))
        before = _head(store)
        _run("psql", store, "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1",
             f"--command=SET lock_timeout = {int(store.busy_seconds * 1000)}",
             f"--command=SELECT pg_advisory_xact_lock({WRITERS_LOCK})",
             f"--command=ALTER SCHEMA public RENAME TO {kept}", "--command=CREATE SCHEMA public",
             f"--file={script}", "--command=UPDATE public.sessions SET revoked_at = now() WHERE revoked_at IS NULL",
             refused="the backup could not be put in; nothing was changed")  # fmt: skip
    store.close()
    upgrade(store)
    _close_trail(store, path, before)
    return f"schema {kept}"


def _schema_in(script: Path, path: Path) -> str:
    """The schema version in an SQL script that pg_restore wrote."""
    with script.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("COPY public.alembic_version "):
                return next(lines, "").strip()
    raise StoreError(f"{path} is no backup of lungkit's records; nothing was changed")


def _require_sound(connection: sqlite3.Connection, what: str) -> None:
    """Every page, index and reference fits; StoreError says what does not."""
    try:
        wrong = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
        wrong += [f"a row of {row[0]} refers to nothing" for row in connection.execute("PRAGMA foreign_key_check")][:1]
    except sqlite3.DatabaseError as error:
        if not _is_damaged(error):
            raise
        wrong = [str(error)]
    if wrong:
        raise StoreError(f"{what} is damaged ({wrong[0].splitlines()[-1]}); nothing was changed")


def _require_ours(connection: sa.Connection, what: str) -> None:
    schema = _schema(connection)
    if schema is None or not {"users", "patients", "audit"} <= set(sa.inspect(connection).get_table_names()):
        raise StoreError(f"{what} is no backup of lungkit's records; nothing was changed")
    _require_known(schema, what)


def _head(store: Store) -> str | None:
    """The head of the trail that is about to be put aside; None where it cannot be read."""
    if store.path and not store.path.exists():
        return None
    try:
        with store.read() as db:
            return audit_trail.head(db)
    except StoreError:
        return None


def _close_trail(store: Store, path: Path, before: str | None) -> None:
    with store.write() as db:
        db.execute(sa.update(SignIn).where(SignIn.revoked_at.is_(None)).values(revoked_at=now()))
        audit_trail.append(db, None, "records.restore", f"backup:{path.name[-180:]}", trail_before=before)


# --- check


def check(store: Store) -> list[str]:
    """What is wrong with the records, in words for an administrator; an empty list where all is well."""
    if store.path and not store.path.exists():
        return [f"there are no records at {store.path} yet; `lungkit db upgrade` makes them"]
    found = _open_to_others(store.path) if store.path else []
    try:
        if store.path:
            with _opened(store.path) as connection:
                _require_sound(connection, str(store.path))
        with store.read() as db:
            found += _schema_complaints(db.connection())
        audit_trail.verify(store)
    except LungkitError as error:
        found.append(str(error))
    return found


def _open_to_others(database: Path) -> list[str]:
    """The database's files and folder that somebody else than their owner may read or write."""
    places = [database.parent, database, *(Path(f"{database}{end}") for end in ("-wal", "-shm"))]
    return [
        f"{place} is open to other users of this machine; `chmod {'700' if place.is_dir() else '600'} {place}`"
        for place in places
        if place.exists() and place.stat().st_mode & 0o077
    ]


def _schema_complaints(connection: sa.Connection) -> list[str]:
    schema, newest = _schema(connection), _known()[0]
    if schema is None:
        return ["the records have no tables yet; `lungkit db upgrade` makes them"]
    _require_known(schema, "the database")
    if schema != newest:
        return [f"the tables are of schema {schema}, this lungkit needs {newest}; run `lungkit db upgrade`"]
    missing = TRIGGERS[connection.dialect.name] - _triggers(connection)
    return [f"the audit trail has lost its guard {name}; its rows can be changed" for name in sorted(missing)]


def _triggers(connection: sa.Connection) -> set[str]:
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit'"
    else:
        query = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'audit'::regclass AND tgenabled IN ('O', 'A')"
    return set(connection.exec_driver_sql(query).scalars())


# --- PostgreSQL's own programs


def _run(program: str, store: Store | None, *arguments: str, refused: str = "the backup could not be made") -> None:
    """Run one of PostgreSQL's client programs on the store's database; the password is not among the arguments."""
    if not shutil.which(program):
        raise StoreError(f"{program} is not installed; it comes with PostgreSQL's client (Debian: postgresql-client)")
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    if store:
        connection = dict(store.url.translate_connect_args(username="user", database="dbname")) | dict(store.url.query)
        if password := connection.pop("password", ""):
            environment["PGPASSWORD"] = password
        arguments = (f"--dbname={make_conninfo(**connection)}", *arguments)
    done = subprocess.run([program, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"{program} ended with {done.returncode}"]
        raise StoreError(f"{refused} ({said[0]})")
