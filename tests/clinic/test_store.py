"""The store under what happens to records: many writers, kills, full disks, locks, wrong hands."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import maintenance, tables
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import Patient, Study, User


def add_user(store, name="ada") -> int:
    with store.write() as db:
        user = User(name=name, full_name="0", role="doctor", password_hash="-")
        db.add(user)
        db.flush()
        return user.id


def patient(user_id, number="P1", studies=1, **values) -> Patient:
    return Patient(number=number, created_by=user_id, **{"name": f"Name of {number}"} | values,
                   studies=[study(user_id) for _ in range(studies)])  # fmt: skip


def study(user_id, pixels=b"png") -> Study:
    return Study(kind="CT", units="HU", sha256="0" * 64, width=4, height=4, tags={}, uploaded_by=user_id, pixels=pixels)


def numbers(store) -> list[str]:
    with store.read() as db:
        return sorted(db.scalars(sa.select(Patient.number)))


def start(store, code: str, **options) -> subprocess.Popen:
    """Another process on the same records: `store`, and what this module has, are there."""
    preamble = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_store import *
        store = Store({store.url.render_as_string(hide_password=False)!r}, busy_seconds=60)
    """
    script = textwrap.dedent(preamble) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, **options)


# --- many at once


def test_two_processes_that_write_at_once_lose_nothing(store):
    user_id = add_user(store)
    # Each process reads, adds one, and writes; a read before the other's write would lose a count.
    adding = f"""
        for _ in range(60):
            with store.write() as db:
                user = db.get(User, {user_id})
                user.full_name = str(int(user.full_name) + 1)
    """
    processes = [start(store, adding) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    with store.read() as db:
        assert db.get(User, user_id).full_name == "120"


def test_processes_that_open_and_make_a_new_database_at_once_all_succeed(database_url):
    store = Store(database_url)
    code = """
        from lungkit.clinic.records import maintenance
        print("ready", flush=True)
        input()
        maintenance.upgrade(store)
        add_user(store, str(os.getpid()))
    """
    processes = [start(store, code, stdin=subprocess.PIPE) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        print("go", file=process.stdin, flush=True)
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    with store.read() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(User)) == 3
    assert maintenance.check(store) == []
    store.close()


def test_readers_do_not_wait_for_writers_and_see_one_state(store):
    user_id = add_user(store)
    with store.read() as db:
        assert db.scalars(sa.select(Patient.number)).all() == []
        with store.write() as writer:
            writer.add(patient(user_id))
        assert db.scalars(sa.select(Patient.number)).all() == []
    assert numbers(store) == ["P1"]


def test_a_second_writer_gives_up_in_words_when_the_first_keeps_it_waiting(store):
    add_user(store)
    hasty = Store(store.url.render_as_string(hide_password=False), busy_seconds=0.3)
    with store.write() as db:
        db.scalar(sa.select(User.id))
        began = time.monotonic()
        with pytest.raises(StoreError, match="busy; nothing was saved"):
            add_user(hasty, "eve")
        assert 0.25 < time.monotonic() - began < 5
    add_user(hasty, "eve")
    hasty.close()


def test_a_second_writer_waits_for_the_first(store):
    with store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
        db.flush()
        second = threading.Thread(target=add_user, args=(store, "eve"))
        second.start()
        second.join(0.3)
        assert second.is_alive()
    second.join(10)
    with store.read() as db:
        assert db.scalars(sa.select(User.name).order_by(User.name)).all() == ["ada", "eve"]


# --- whole or not at all


def test_an_error_undoes_all_of_a_write(store):
    user_id = add_user(store)
    with pytest.raises(ZeroDivisionError), store.write() as db:
        db.add(patient(user_id))
        db.flush()
        1 / 0  # noqa: B018
    assert numbers(store) == []


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_state(store):
    user_id = add_user(store)
    code = f"""
        with store.write() as db:
            db.add(patient({user_id}, studies=50))
            db.flush()
            print("in the middle", flush=True)
            time.sleep(600)
    """
    process = start(store, code)
    assert process.stdout.readline() == "in the middle\n"
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert numbers(store) == []
    with store.write() as db:  # its lock went with it
        db.add(patient(user_id))
    assert numbers(store) == ["P1"]
    assert maintenance.check(store) == []


def test_kills_at_any_moment_leave_only_whole_writes(sqlite_store):
    user_id = add_user(sqlite_store)
    code = f"""
        for number in range(100_000):
            with store.write() as db:
                pixels = os.urandom(30_000)
                db.add(Patient(number=f"{{os.getpid()}}-{{number}}", name="x", created_by={user_id},
                               studies=[study({user_id}, pixels), study({user_id}, pixels)]))
            print(number, flush=True)
    """
    lines = 0
    for milliseconds in (1, 17):
        process = start(sqlite_store, code)
        for _ in range(5):
            process.stdout.readline()
        time.sleep(milliseconds / 1000)
        process.kill()
        lines += 5 + len(process.stdout.readlines())
        process.wait(10)
        assert maintenance.check(sqlite_store) == []
    with sqlite_store.read() as db:
        counts = db.scalars(sa.select(sa.func.count()).select_from(Study).group_by(Study.patient_id)).all()
    # What a process said is saved is saved; the last one may have been saved and not said.
    assert set(counts) == {2}
    assert lines <= len(counts) <= lines + 2


# --- no room


def test_a_full_disk_gives_a_message_and_loses_nothing(sqlite_store):
    """The system lets the process write no further, as on a disk that is full; then there is room again."""
    user_id = add_user(sqlite_store)
    code = f"""
        import resource
        with store.write() as db:
            db.add(patient({user_id}, "before"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        try:
            with store.write() as db:
                db.add(Patient(number="too much", name="x", created_by={user_id},
                               studies=[study({user_id}, bytes(2_000_000))]))
        except StoreError as error:
            print(error)
        print(numbers(store), maintenance.check(store))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with store.write() as db:
            db.add(patient({user_id}, "after"))
    """
    output, _ = start(sqlite_store, code).communicate(timeout=60)
    assert output == (
        "the disk is full or failing; nothing was saved. Tell an administrator, then try again\n['before'] []\n"
    )
    assert numbers(sqlite_store) == ["after", "before"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB; only root may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_fills_up_stops_writes_only(small_disk):
    store = Store(f"sqlite:///{small_disk / 'clinic.db'}")
    maintenance.upgrade(store)
    user_id = add_user(store)
    saved = []
    with pytest.raises(StoreError, match="disk is full"):
        for number in range(100):
            with store.write() as db:
                db.add(Patient(number=str(number), name="x", created_by=user_id,
                               studies=[study(user_id, os.urandom(100_000))]))  # fmt: skip
            saved.append(str(number))
    assert len(saved) > 2
    assert numbers(store) == sorted(saved)
    with pytest.raises(StoreError, match=r"disk is full|No space left"):
        maintenance.backup(store, small_disk / "backup.db")
    assert sorted(file.name for file in small_disk.iterdir()) == ["clinic.db", "clinic.db-shm", "clinic.db-wal"]
    store.close()
    again = Store(f"sqlite:///{small_disk / 'clinic.db'}")
    assert numbers(again) == sorted(saved)
    assert maintenance.check(again) == []
    again.close()


# --- what cannot be opened


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url", "cannot be understood; accepted are sqlite:////whole/path"),
        ("sqlite://", "need a file with its whole path"),
        ("sqlite:///clinic.db", "whole path, not 'clinic.db'"),
        ("mysql://ada:secret@host/clinic", "not kept in mysql; accepted are"),
        ("postgresql://ada:secret@127.0.0.1:1/clinic", "cannot be reached: .*refused"),
        ("sqlite:////proc/no/clinic.db", "/proc/no/clinic.db cannot be made: No such file"),
    ],
)
def test_the_message_for_an_unusable_database_has_no_password(url, message):
    with pytest.raises(StoreError, match=message) as refused:
        add_user(Store(url))
    assert "secret" not in str(refused.value)


def test_a_stores_own_text_has_no_password():
    assert "secret" not in repr(Store("postgresql://ada:secret@127.0.0.1:1/clinic"))


def test_a_file_that_is_not_a_database_is_reported_as_damaged(sqlite_store):
    sqlite_store.close()
    sqlite_store.path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        add_user(sqlite_store)


def test_records_without_tables_tell_how_to_make_them(database_url):
    store = Store(database_url)
    with pytest.raises(StoreError, match="run `lungkit db upgrade`"):
        add_user(store)
    store.close()


def test_a_value_that_postgresql_cannot_store_gives_a_message(postgresql_url):
    store = Store(postgresql_url)
    maintenance.upgrade(store)
    user_id = add_user(store)
    for number in ("n" * 65, "nul\0"):
        with pytest.raises(StoreError, match="too long, or has characters"), store.write() as db:
            db.add(patient(user_id, number))
    store.close()


# --- in whose hands


def test_only_the_owner_can_read_the_files_whatever_the_umask(sqlite_url):
    before = os.umask(0)
    try:
        store = Store(sqlite_url)
        maintenance.upgrade(store)
    finally:
        os.umask(before)
    add_user(store)
    modes = {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in store.path.parent.iterdir()}
    assert modes == dict.fromkeys(["clinic.db", "clinic.db-wal", "clinic.db-shm"], "0o600")
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    store.close()


def test_a_store_that_is_not_used_makes_no_file(sqlite_url):
    store = Store(sqlite_url)
    assert maintenance.check(store) == [f"there are no records at {store.path} yet; `lungkit db upgrade` makes them"]
    assert not store.path.parent.exists()


def test_errors_do_not_show_the_values_that_were_to_be_saved(store):
    user_id = add_user(store)
    with pytest.raises(sa.exc.IntegrityError) as refused, store.write() as db:
        db.add(patient(user_id, name="Mary Shelley", sex="?"))
    assert "Shelley" not in str(refused.value).replace(str(refused.value.orig), "")


def test_erased_rows_are_gone_from_the_files(sqlite_store):
    user_id = add_user(sqlite_store)
    marks = [b"Shelley-the-name", b"pixels-of-the-image"]
    with sqlite_store.write() as db:
        db.add(Patient(number="P1", name=marks[0].decode(), created_by=user_id,
                       studies=[study(user_id, marks[1] * 5000)]))  # fmt: skip
    with sqlite_store.write() as db:
        db.execute(sa.delete(Patient))
    sqlite_store.scrub()
    files = [file.read_bytes() for file in sqlite_store.path.parent.iterdir()]
    assert not any(mark in content for mark in marks for content in files)


def test_scrubbing_works_on_both_databases(store):
    store.scrub()
    add_user(store)


# --- reading


def test_a_reading_session_can_change_nothing(store):
    add_user(store)
    with pytest.raises((StoreError, sa.exc.DBAPIError)), store.read() as db:
        db.execute(sa.update(User).values(role="admin"))
        db.commit()
    with store.read() as db:
        assert db.scalar(sa.select(User.role)) == "doctor"
    add_user(store, "eve")  # the connection, used again, can write


def test_loaded_rows_can_be_used_after_the_transaction(store):
    user_id = add_user(store)
    with store.write() as db:
        written = patient(user_id)
        db.add(written)
    with store.read() as db:
        read = db.scalar(sa.select(Patient))
    assert (written.number, read.number, read.created_at) == ("P1", "P1", written.created_at)


# --- tables


def test_every_table_and_column_says_what_it_is():
    for table in tables.Base.metadata.tables.values():
        assert table.comment, table
        assert [column.name for column in table.columns if not column.comment] == []


def test_the_comments_reach_the_database(postgresql_url):
    store = Store(postgresql_url)
    maintenance.upgrade(store)
    inspector = sa.inspect(store.engine)
    for table in tables.Base.metadata.tables.values():
        assert inspector.get_table_comment(table.name) == {"text": table.comment}
        comments = {column["name"]: column["comment"] for column in inspector.get_columns(table.name)}
        assert comments == {column.name: column.comment for column in table.columns}
    store.close()


def test_foreign_keys_are_enforced(store):
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        db.add(patient(user_id=99))
    user_id = add_user(store)
    with store.write() as db:
        db.add(patient(user_id, studies=2))
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        db.execute(sa.delete(User))
    with store.write() as db:
        db.execute(sa.delete(Patient))
    with store.read() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(Study)) == 0


@pytest.mark.parametrize("values", [{"role": "root"}, {"full_name": None}])
def test_a_value_outside_its_column_is_refused(store, values):
    known = {"name": "ada", "full_name": "Ada", "role": "doctor", "password_hash": "-"}
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        db.execute(sa.insert(User).values(**known | values))


def test_images_are_not_loaded_with_lists_and_never_missing(store):
    user_id = add_user(store)
    with store.write() as db:
        db.add(patient(user_id))
    with store.read() as db:
        assert "pixels" in sa.inspect(db.scalar(sa.select(Study))).unloaded
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        db.add(patient(user_id, "P2", studies=0))
        db.add(Study(patient_id=tables.new_id(), kind="CT", units="HU", sha256="0" * 64, width=4, height=4, tags={},
                     uploaded_by=user_id))  # fmt: skip


def test_large_values_stand_last_in_their_rows():
    for table in tables.Base.metadata.tables.values():
        large = [isinstance(column.type, sa.LargeBinary) for column in table.columns]
        assert large == sorted(large), table


def test_times_come_back_as_utc_and_need_a_zone(store):
    user_id = add_user(store)
    in_india = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5.5)))
    with store.write() as db:
        db.get(User, user_id).created_at = in_india
    with store.read() as db:
        read = db.get(User, user_id).created_at
    assert (read, read.tzinfo) == (in_india, UTC)
    with pytest.raises(sa.exc.StatementError, match="no time zone"), store.write() as db:
        db.get(User, user_id).created_at = datetime(2026, 1, 2)
