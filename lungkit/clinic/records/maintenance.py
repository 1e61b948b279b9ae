"""Work on the database as a whole: make and upgrade its tables, back it up, restore it, check it.

A backup is one file: a compacted SQLite database, or a pg_dump archive. It contains all that the records do, including
patients' names and images, so only its owner can read it, and it must be kept like the records. If a patient is erased
later, the backup still contains the patient.
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
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lungkit import files, times
from lungkit.clinic.records import audit_trail
from lungkit.clinic.records.store import BUSY_SECONDS, WRITERS_LOCK, Store, StoreError, in_words
from lungkit.clinic.records.tables import ApiKey, Base, SignIn, now
from lungkit.errors import LungkitError

TRIGGERS = {"sqlite": {"audit_no_update", "audit_no_delete", "audit_follows"},
            "postgresql": {"audit_no_change", "audit_follows"}}  # fmt: skip
FULL = 2**24  # bytes: with less on the disk it counts as full
OLD = "before_restore"  # part of the name of what a restore replaced
_one_upgrade = threading.Lock()  # Alembic keeps its state in a module


# --- the schema


def upgrade(store: Store) -> None:
    """Make the tables, or bring them up to date: all steps or none.

    If several processes start at once, one does it and the others wait. Raises StoreError for a database that a newer
    lungkit wrote, and for one with tables of another program.
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


def keep_reserve(store: Store) -> None:
    """Make the room that is kept for a full disk, or as much of it as there is room for. Raises StoreError."""
    try:
        store.reserve.keep()
    except OSError as error:
        raise StoreError(f"{store.reserve.path} cannot be made: {error.strerror}") from error


def full_disk(store: Store) -> str:
    """What an administrator has to know of a full disk, in words; empty while there is room."""
    if store.path is None or shutil.disk_usage(store.path.parent).free >= FULL:
        return ""
    left = store.reserve.bytes() >> 20
    if not left:
        return (
            "The disk with the records is full, and the reserve is used up. Nothing can be saved, signing in fails and "
            "no case can be opened. Free up space now."
        )
    return (
        f"The disk with the records is full. Signing in, opening cases and reviews still work, with {left} MiB that "
        "were kept for this. New images may be refused. Free up space now."
    )


def _steps() -> Path:
    return Path(str(resources.files("lungkit.clinic.records") / "migrations"))


def _known() -> list[str]:
    """The schema versions that this program knows, newest first."""
    return [step.revision for step in ScriptDirectory(str(_steps())).walk_revisions()]


def _schema(connection: sa.Connection) -> str | None:
    """The version of the tables; None if lungkit has made none."""
    return MigrationContext.configure(connection).get_current_revision()


def _require_known(schema: str | None, what: str) -> None:
    known = _known()
    if schema is not None and schema not in known:
        raise StoreError(
            f"{what} was written by a newer lungkit (schema {schema}; this one knows up to {known[0]}); nothing was "
            "changed. Use that lungkit, or restore an earlier backup"
        )


# --- backup


def backup(store: Store, path: Path | str) -> Path:
    """Copy one state of the records to a new file while people continue to work; returns the file.

    path: a new file, or a folder, in which the file is named by the time. It appears complete or not at all.
    """
    in_folder = str(path).endswith("/")
    path = Path(path).expanduser().resolve()
    if in_folder and not path.is_dir():
        raise StoreError(f"there is no folder {path} for the backup; make it first")
    if path.is_dir():
        path /= f"lungkit-{_stamp()}{'.db' if store.path else '.pgdump'}"
    if path.exists():
        raise StoreError(f"{path} exists already; give the backup a new name")
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent} for the backup; make it first")
    _require_tables(store)
    with _draft(path) as draft:
        if store.path:
            _copy(store.path, draft)
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


def _copy(database: Path, to: Path) -> None:
    """Copy one state of a live SQLite database, without its free pages; writers need not wait."""
    with _opened(database) as live:
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
    """An SQLite file without the store's settings; functions that its schema calls are not trusted."""
    uri = f"file:{quote(str(path))}?mode=rw"
    with in_words(), closing(sqlite3.connect(uri, timeout=busy_seconds, uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        yield connection


def _stamp() -> str:
    """The time as part of a name; to the microsecond, so that no name comes twice."""
    return f"{times.now():%Y%m%d_%H%M%S_%f}"


# --- restore


def restore(store: Store, path: Path | str) -> str:
    """Replace the records by a backup, in one step; returns where the earlier records are kept (empty: none).

    The backup is checked first: a damaged or foreign file, or one of a newer lungkit, is refused and nothing changes.
    An older one is upgraded. Everyone is signed out and every API key is revoked, because sessions that ended and keys
    that were revoked after the backup would be valid again. The trail gets a row with the head that it had before.
    Stop the server first: what people save while this runs may end up in the earlier records only.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise StoreError(f"there is no backup {path}")
    return _restore_sqlite(store, store.path, path) if store.path else _restore_postgresql(store, path)


def _restore_sqlite(store: Store, database: Path, path: Path) -> str:
    if database.exists() and path.samefile(database):
        raise StoreError(f"{path} is the database itself; give a backup")
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _draft(database) as draft:
        # The copy is both checked and used, in case someone changes the file in the meantime.
        shutil.copyfile(path, draft)
        if (log := Path(f"{path}-wal")).exists():  # not a backup, but the files of a live database
            shutil.copyfile(log, f"{draft}-wal")
        with _opened(draft) as copy:
            _require_sound(copy, str(path))
        with closing(Store(f"sqlite:///{draft}")) as prepared:
            with prepared.read() as db:
                _require_ours(db.connection(), str(path))
            upgrade(prepared)
            _close_trail(prepared, path, _head(store))
        store.close()
        kept = _put_aside(database)
        if database.exists():
            _overwrite(database, draft, store.busy_seconds)
        else:
            files.put(draft, database)
    return str(kept) if kept else ""


def _put_aside(database: Path) -> Path | None:
    """Keep the present database next to itself: as a copy, or as its files if it is too damaged to read."""
    kept = database.with_name(f"{database.stem}.{OLD}_{_stamp()}{database.suffix}")
    if not database.exists():
        _move_aside(database, kept)  # SQLite would take the log of a missing database for that of the new one
        return None
    try:
        with _draft(kept) as draft:
            _copy(database, draft)
            files.put(draft, kept)
    except StoreError as error:
        if not _is_damaged(error.__cause__):
            raise
        _move_aside(database, kept)
    return kept


def _move_aside(database: Path, kept: Path) -> None:
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{database}{end}").rename(f"{kept}{end}")


def _is_damaged(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _overwrite(database: Path, new: Path, busy_seconds: float) -> None:
    """Replace the content of a live database in one transaction: other processes see the old state or the new one."""
    give_up = time.monotonic() + busy_seconds

    def stop_if_late(*_: object) -> None:
        """SQLite calls this after each try, and tries again."""
        if time.monotonic() > give_up:
            raise StoreError("the records are in use; nothing was changed. Stop the server, then restore again")

    with _opened(new) as source, _opened(database, busy_seconds=0) as live:
        source.backup(live, progress=stop_if_late, sleep=0.05)
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _restore_postgresql(store: Store, path: Path) -> str:
    kept = f"{OLD}_{_stamp()}"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restore.sql"
        # This reads the whole archive, so a damaged one is found here.
        _run("pg_restore", None, "--no-owner", "--no-privileges", f"--file={script}", str(path),
             refused=f"{path} is damaged, or not a backup of records on PostgreSQL; nothing was changed")  # fmt: skip
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
    """The schema version in an SQL script of pg_restore."""
    with script.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("COPY public.alembic_version "):
                return next(lines, "").strip()
    raise StoreError(f"{path} is not a backup of lungkit's records; nothing was changed")


def _require_sound(connection: sqlite3.Connection, what: str) -> None:
    """Check every page, index and reference; StoreError says what is wrong."""
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
        raise StoreError(f"{what} is not a backup of lungkit's records; nothing was changed")
    _require_known(schema, what)


def _head(store: Store) -> str | None:
    """The head of the trail that will be replaced; None if it cannot be read."""
    if store.path and not store.path.exists():
        return None
    try:
        with store.read() as db:
            return audit_trail.head(db)
    except StoreError:
        return None


def _close_trail(store: Store, path: Path, before: str | None) -> None:
    with store.write() as db:
        for table in (SignIn, ApiKey):
            db.execute(sa.update(table).where(table.revoked_at.is_(None)).values(revoked_at=now()))
        audit_trail.append(db, None, "records.restore", f"backup:{path.name[-180:]}", trail_before=before)


# --- check


def check(store: Store) -> list[str]:
    """What is wrong with the records, in sentences for an administrator; an empty list if nothing is."""
    if store.path and not store.path.exists():
        return [f"there are no records at {store.path} yet; `lungkit db upgrade` makes them"]
    complaints = _open_to_others(store.path) if store.path else []
    try:
        if store.path:
            with _opened(store.path) as connection:
                _require_sound(connection, str(store.path))
        with store.read() as db:
            complaints += _schema_complaints(db.connection())
        audit_trail.verify(store)
    except LungkitError as error:
        complaints.append(str(error))
    return complaints


def _open_to_others(database: Path) -> list[str]:
    """A complaint for the folder and each file of the database that other users can read or write."""
    places = [database.parent, database, *(Path(f"{database}{end}") for end in ("-wal", "-shm", "-reserve"))]
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
        return [f"the tables have schema {schema}, this lungkit needs {newest}; run `lungkit db upgrade`"]
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
    """Run one of PostgreSQL's client programs on the store's database; the password is not in its arguments."""
    if not shutil.which(program):
        raise StoreError(f"{program} is not installed; it comes with PostgreSQL's client (Debian: postgresql-client)")
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    if store:
        from psycopg.conninfo import make_conninfo  # of the extra `postgresql`

        connection = dict(store.url.translate_connect_args(username="user", database="dbname")) | dict(store.url.query)
        if password := connection.pop("password", ""):
            environment["PGPASSWORD"] = password
        arguments = (f"--dbname={make_conninfo(**connection)}", *arguments)
    done = subprocess.run([program, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"{program} ended with {done.returncode}"]
        raise StoreError(f"{refused} ({words[0]})")
