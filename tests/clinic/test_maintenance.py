"""Backups that can be trusted, restores that harm nothing, and a check that finds what is wrong."""

import os
import re
import shutil
import sqlite3
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from lungkit import cli
from lungkit.clinic.records import audit_trail, keys, maintenance, pixels
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import AuditEvent, Patient, SeriesSlice, SignIn, Study, User

needs_pg_dump = pytest.mark.skipif(not shutil.which("pg_dump"), reason="pg_dump is not installed")


@pytest.fixture
def clinic(store):
    """One doctor, who is signed in, and one patient with an image."""
    if not store.path and not shutil.which("pg_dump"):
        pytest.skip("pg_dump is not installed (Debian: apt install postgresql-client)")
    with store.write() as db:
        user = User(name="ada", full_name="Ada", role="doctor", password_hash="-")
        db.add(user)
        db.flush()
        db.add(SignIn(user_id=user.id, token_sha256="a" * 64, address="::1"))
        audit_trail.append(db, user.id, "session.start", "session:1")
    add_patient(store, "P1")
    return store


def add_patient(store, number) -> None:
    with store.write() as db:
        user_id = db.scalar(sa.select(User.id))
        study = Study(kind="CT", units="HU", sha256="0" * 64, width=4, height=4, tags={"a": "ü"},
                      uploaded_by=user_id, pixels=bytes(range(256)) * 100)  # fmt: skip
        db.add(Patient(number=number, name=f"Name of {number}", created_by=user_id, studies=[study]))
        audit_trail.append(db, user_id, "study.save", f"patient:{number}")


def numbers(store) -> list[str]:
    with store.read() as db:
        return sorted(db.scalars(sa.select(Patient.number)))


def beside(store) -> list[str]:
    """What lies in the database's folder but the database itself."""
    return sorted(file.name for file in store.path.parent.iterdir() if not file.name.startswith("clinic.db"))


# --- backup and restore


def test_a_restored_backup_has_all_that_was_there_when_it_was_made(clinic, tmp_path):
    file = maintenance.backup(clinic, tmp_path / "backup")
    add_patient(clinic, "P2")
    maintenance.restore(clinic, file)
    assert numbers(clinic) == ["P1"]
    with clinic.read() as db:
        study = db.scalars(sa.select(Study)).one()
        assert (study.pixels, study.tags, study.patient.name) == (
            bytes(range(256)) * 100, {"a": "ü"}, "Name of P1")  # fmt: skip
    assert maintenance.check(clinic) == []
    add_patient(clinic, "P3")


def test_a_restored_backup_has_the_slices_of_a_series(clinic, tmp_path, signed_in, ct_series, series_said):
    doctor = Records(signed_in("doctor", "bert"))
    saved = doctor.save_series(NewPatient("P9", "Test Series"), ct_series, series_said(ct_series))
    file = maintenance.backup(clinic, tmp_path / "backup")
    with clinic.write() as db:
        db.execute(sa.delete(SeriesSlice))
    maintenance.restore(clinic, file)
    doctor = Records(signed_in("doctor", "cleo"))
    doctor.case(saved.reading_id)
    stored = pixels.decode(doctor.series_slices(saved.reading_id, [7])[0], "HU")
    assert (stored == ct_series.slice(7).pixels).all()
    assert doctor.series(saved.reading_id).carrying == (3, 4)
    assert maintenance.check(clinic) == []


def test_the_trail_notes_a_restore_with_the_head_that_it_replaced(clinic, tmp_path):
    file = maintenance.backup(clinic, tmp_path / "backup")
    add_patient(clinic, "P2")
    with clinic.read() as db:
        before = audit_trail.head(db)
    maintenance.restore(clinic, file)
    with clinic.read() as db:
        last = db.scalars(sa.select(AuditEvent).order_by(AuditEvent.number.desc())).first()
    assert (last.action, last.object, last.detail) == ("records.restore", "backup:backup", {"trail_before": before})
    assert audit_trail.verify(clinic) == 3


def test_a_restore_signs_everybody_out(clinic, tmp_path):
    """A session that was ended after the backup must not hold again."""
    file = maintenance.backup(clinic, tmp_path / "backup")
    with clinic.write() as db:
        db.execute(sa.delete(SignIn))
    maintenance.restore(clinic, file)
    with clinic.read() as db:
        assert db.scalars(sa.select(SignIn)).one().revoked_at is not None


def test_a_restore_revokes_every_key_since_some_may_have_been_revoked_after_the_backup(store, tmp_path):
    with store.write() as db:
        key = keys.add_key(db, "pacs", ["read"])
    backup = maintenance.backup(store, tmp_path / "backup")
    with store.write() as db:
        keys.revoke_key(db, key)
    maintenance.restore(store, backup)
    with pytest.raises(keys.KeyRefused):
        keys.KeyAccess(store, key, "read").limits()


def test_a_restore_keeps_the_earlier_records_and_they_can_be_restored(clinic, tmp_path):
    file = maintenance.backup(clinic, tmp_path / "backup")
    add_patient(clinic, "P2")
    kept = maintenance.restore(clinic, file)
    if clinic.path:
        assert stat.S_IMODE(Path(kept).stat().st_mode) == 0o600
        assert Path(kept).parent == clinic.path.parent
        maintenance.restore(clinic, kept)
        assert numbers(clinic) == ["P1", "P2"]
    else:
        with clinic.engine.connect() as connection:
            schema = kept.removeprefix("schema ")
            found = connection.exec_driver_sql(f"SELECT number FROM {schema}.patients ORDER BY number")
            assert found.scalars().all() == ["P1", "P2"]


def test_a_second_backup_and_restore_work_like_the_first(clinic, tmp_path):
    maintenance.restore(clinic, maintenance.backup(clinic, tmp_path / "first"))
    add_patient(clinic, "P2")
    maintenance.restore(clinic, maintenance.backup(clinic, tmp_path / "second"))
    assert numbers(clinic) == ["P1", "P2"]
    assert maintenance.check(clinic) == []


def test_open_connections_see_the_restored_records_at_once(clinic, tmp_path):
    other = Store(clinic.url.render_as_string(hide_password=False))
    file = maintenance.backup(clinic, tmp_path / "backup")
    add_patient(other, "P2")
    assert numbers(other) == ["P1", "P2"]
    maintenance.restore(clinic, file)
    assert numbers(other) == ["P1"]
    add_patient(other, "P3")
    assert numbers(clinic) == ["P1", "P3"]
    assert maintenance.check(clinic) == []
    other.close()


def test_a_restore_stops_with_a_message_while_someone_writes(clinic, tmp_path):
    file = maintenance.backup(clinic, tmp_path / "backup")
    add_patient(clinic, "P2")
    hasty = Store(clinic.url.render_as_string(hide_password=False), busy_seconds=0.5)
    with clinic.write() as db:
        db.execute(sa.update(Patient).values(name="x"))
        with pytest.raises(StoreError, match="nothing was changed"):
            maintenance.restore(hasty, file)
    assert numbers(clinic) == ["P1", "P2"]
    hasty.close()


def test_a_backup_is_readable_by_its_owner_only_and_leaves_nothing_else(clinic, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    before = os.umask(0)
    try:
        file = maintenance.backup(clinic, folder)
    finally:
        os.umask(before)
    assert re.fullmatch(r"lungkit-\d{8}_\d{6}_\d{6}\.(db|pgdump)", file.name)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [file] == list(folder.iterdir())


def test_a_backup_never_overwrites_a_file(clinic, tmp_path):
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    with pytest.raises(StoreError, match="exists already; give the backup a new name"):
        maintenance.backup(clinic, file)
    assert file.read_text() == "years of work"


def test_a_backup_needs_a_folder_and_tables(database_url, tmp_path):
    store = Store(database_url)
    with pytest.raises(StoreError, match="`lungkit db upgrade` makes them"):
        maintenance.backup(store, tmp_path / "backup")
    maintenance.upgrade(store)
    with pytest.raises(StoreError, match=r"there is no folder .*backups for the backup"):
        maintenance.backup(store, f"{tmp_path}/backups/")
    assert not (tmp_path / "backups").exists()
    with pytest.raises(StoreError, match="there is no folder"):
        maintenance.backup(store, tmp_path / "nowhere" / "backup")
    store.close()


def test_a_backup_made_while_people_write_contains_whole_writes(clinic, tmp_path):
    stop = threading.Event()

    def write():
        number = 2
        while not stop.is_set():
            add_patient(clinic, f"P{number}")
            number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        time.sleep(0.3)
        files = [maintenance.backup(clinic, tmp_path / f"backup{number}") for number in range(3)]
    finally:
        stop.set()
        writing.join()
    assert len(numbers(clinic)) > 3
    for file in files:
        maintenance.restore(clinic, file)
        assert maintenance.check(clinic) == []
        with clinic.read() as db:
            patients = db.scalar(sa.select(sa.func.count()).select_from(Patient))
            studies = db.scalar(sa.select(sa.func.count()).select_from(Study))
            saves = db.scalar(
                sa.select(sa.func.count()).select_from(AuditEvent).where(AuditEvent.action == "study.save")
            )
        assert patients == studies == saves


def test_a_backup_can_be_restored_where_the_records_are_gone(clinic, tmp_path, request):
    file = maintenance.backup(clinic, tmp_path / "backup")
    if clinic.path:
        clinic.close()
        clinic.path.unlink()
        empty = clinic
    else:
        with clinic.engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        empty = Store(clinic.url.render_as_string(hide_password=False))
    maintenance.restore(empty, file)
    assert numbers(empty) == ["P1"]
    assert maintenance.check(empty) == []
    empty.close()


# --- what is refused, and nothing touched


def newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def foreign(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE letters (body TEXT)")


def orphaned(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM users")


def broken_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 4096 // 2 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: -len(file.read_bytes()) // 3])


def no_database(file: Path) -> None:
    file.write_text("Dear colleague, " * 1000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (newer, "by a newer lungkit"),
        (foreign, "not a backup of lungkit's records"),
        (orphaned, "damaged .*a row of .* refers to nothing"),
        (broken_page, "damaged"),
        (cut_short, "damaged"),
        (no_database, "damaged"),
        (lambda file: file.write_bytes(b""), "not a backup of lungkit's records"),
        (lambda file: file.unlink(), "there is no backup"),
    ],
)
def test_a_file_that_is_not_a_sound_backup_is_refused_before_anything_changes(sqlite_store, tmp_path, spoil, message):
    with sqlite_store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    add_patient(sqlite_store, "P1")
    file = maintenance.backup(sqlite_store, tmp_path / "backup")
    add_patient(sqlite_store, "P2")
    spoil(file)
    with pytest.raises(StoreError, match=message):
        maintenance.restore(sqlite_store, file)
    assert numbers(sqlite_store) == ["P1", "P2"]
    assert beside(sqlite_store) == []


@needs_pg_dump
@pytest.mark.parametrize("spoil", [cut_short, no_database, lambda file: file.write_bytes(b"")])
def test_an_archive_that_is_not_a_sound_backup_is_refused_before_anything_changes(postgresql_url, tmp_path, spoil):
    store = Store(postgresql_url)
    maintenance.upgrade(store)
    with store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    for number in range(30):
        add_patient(store, f"P{number}")
    file = maintenance.backup(store, tmp_path / "backup")
    spoil(file)
    with pytest.raises(StoreError, match="nothing was changed"):
        maintenance.restore(store, file)
    assert len(numbers(store)) == 30
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_namespace WHERE nspname ~ 'before'").scalar() == 0
    store.close()


@needs_pg_dump
@pytest.mark.parametrize(("schema", "message"), [("9999", "by a newer lungkit"), (None, "not a backup of lungkit")])
def test_an_archive_of_a_newer_or_another_program_is_refused(postgresql_url, tmp_path, schema, message):
    store = Store(postgresql_url)
    maintenance.upgrade(store)
    statement = f"UPDATE alembic_version SET version_num = '{schema}'" if schema else "DROP TABLE alembic_version"
    file = tmp_path / "backup"
    with store.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    maintenance._run("pg_dump", store, "--format=custom", f"--file={file}")
    with pytest.raises(StoreError, match=message):
        maintenance.restore(store, file)
    store.close()


def test_the_database_itself_is_not_a_backup(sqlite_store):
    with pytest.raises(StoreError, match="the database itself"):
        maintenance.restore(sqlite_store, sqlite_store.path)


def test_postgresqls_programs_are_named_where_they_are_missing(postgresql_url, tmp_path, monkeypatch):
    store = Store(postgresql_url)
    maintenance.upgrade(store)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="pg_dump is not installed"):
        maintenance.backup(store, tmp_path / "backup")
    store.close()


def test_a_password_is_not_among_the_arguments_of_postgresqls_programs(tmp_path, monkeypatch):
    program = tmp_path / "pg_dump"
    program.write_text('#!/bin/sh\necho "$@ password=$PGPASSWORD" >&2\nexit 1\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    store = Store("postgresql://ada:se%20cret@db.example/clinic")
    with pytest.raises(StoreError) as failed:
        maintenance._run("pg_dump", store, "--format=custom")
    assert "user=ada" in str(failed.value)
    assert "host=db.example" in str(failed.value)
    assert str(failed.value).count("se cret") == 1
    assert "password=se cret" in str(failed.value)


# --- a damaged database


def test_damaged_records_are_put_aside_as_they_are_and_the_backup_takes_their_place(sqlite_store, tmp_path):
    with sqlite_store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    add_patient(sqlite_store, "P1")
    file = maintenance.backup(sqlite_store, tmp_path / "backup")
    sqlite_store.close()
    sqlite_store.path.write_bytes(b"nothing of a database" * 1000)
    assert ["is damaged" in complaint for complaint in maintenance.check(sqlite_store)] == [True]
    kept = Path(maintenance.restore(sqlite_store, file))
    assert kept.read_bytes().startswith(b"nothing of a database")
    assert numbers(sqlite_store) == ["P1"]
    assert maintenance.check(sqlite_store) == []


def test_a_log_of_a_database_that_is_gone_is_not_taken_for_that_of_the_restored_one(sqlite_store, tmp_path):
    with sqlite_store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    file = maintenance.backup(sqlite_store, tmp_path / "backup")
    for number in range(20):
        add_patient(sqlite_store, f"P{number}")
    log = Path(f"{sqlite_store.path}-wal")
    content = log.read_bytes()
    sqlite_store.close()
    sqlite_store.path.unlink()
    log.write_bytes(content)
    maintenance.restore(sqlite_store, file)
    assert numbers(sqlite_store) == []
    assert maintenance.check(sqlite_store) == []
    assert len(beside(sqlite_store)) == 1


def test_the_files_of_a_database_that_was_copied_by_hand_are_restored_with_their_log(sqlite_store, tmp_path):
    with sqlite_store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    add_patient(sqlite_store, "P1")
    for end in ("", "-wal"):
        shutil.copy(f"{sqlite_store.path}{end}", tmp_path / f"copy.db{end}")
    add_patient(sqlite_store, "P2")
    maintenance.restore(sqlite_store, tmp_path / "copy.db")
    assert numbers(sqlite_store) == ["P1"]


# --- check


def test_a_sound_database_has_no_complaints(clinic):
    assert maintenance.check(clinic) == []


def test_files_that_others_can_read_are_reported(sqlite_store):
    sqlite_store.path.chmod(0o640)
    sqlite_store.path.parent.chmod(0o755)
    told = maintenance.check(sqlite_store)
    assert [complaint.split(" is open to other users")[0] for complaint in told] == [
        str(sqlite_store.path.parent), str(sqlite_store.path)]  # fmt: skip
    assert "chmod 600" in told[1]


def test_rows_that_refer_to_nothing_are_reported(sqlite_store):
    with sqlite3.connect(sqlite_store.path) as connection:
        connection.execute("INSERT INTO sessions VALUES ('a', 'b', 99, '::1', '2026-01-01', '2026-01-01', NULL)")
    assert ["a row of sessions refers to nothing" in complaint for complaint in maintenance.check(sqlite_store)] == [
        True
    ]


def test_a_damaged_page_is_reported(sqlite_store):
    with sqlite_store.write() as db:
        db.add(User(name="ada", full_name="Ada", role="doctor", password_hash="-"))
    for number in range(10):
        add_patient(sqlite_store, f"P{number}")
    sqlite_store.close()
    broken_page(sqlite_store.path)
    assert ["is damaged" in complaint for complaint in maintenance.check(sqlite_store)] == [True]


def test_a_missing_trigger_of_the_trail_is_reported(clinic):
    drop = "DROP TRIGGER audit_follows" if clinic.path else "ALTER TABLE audit DISABLE TRIGGER audit_follows"
    with clinic.engine.begin() as connection:
        connection.exec_driver_sql(drop)
    assert maintenance.check(clinic) == ["the audit trail has lost its guard audit_follows; its rows can be changed"]


def test_a_broken_trail_is_reported(sqlite_store):
    with sqlite_store.write() as db:
        audit_trail.append(db, None, "case.open", "case:1")
    with sqlite3.connect(sqlite_store.path) as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET user_id = 3")
    told = maintenance.check(sqlite_store)
    assert "lost its guard audit_no_update" in told[0]
    assert "broken at row 1" in told[1]


def test_records_that_cannot_be_reached_are_a_complaint():
    told = maintenance.check(Store("postgresql://ada@127.0.0.1:1/clinic"))
    assert ["cannot be reached" in complaint for complaint in told] == [True]


# --- the command


@pytest.fixture
def lungkit(monkeypatch, capsys, sqlite_url):
    """Run the command as a person does, on records of its own; returns (exit code, standard output, error)."""
    monkeypatch.setenv("LUNGKIT_DATABASE", sqlite_url)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lungkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def test_the_command_makes_backs_up_restores_and_checks_the_records(lungkit, sqlite_url, tmp_path):
    assert lungkit("db", "check")[0] == 1
    assert lungkit("db", "upgrade") == (0, "the records are up to date\n", "")
    with Store(sqlite_url).write() as db:
        audit_trail.append(db, None, "case.open", "case:1")
    code, out, _ = lungkit("db", "backup", tmp_path / "backup.db")
    assert (code, out.splitlines()[0]) == (0, str(tmp_path / "backup.db"))
    assert re.search(r": 1:[0-9a-f]{64}$", out)
    code, out, _ = lungkit("db", "restore", tmp_path / "backup.db")
    assert code == 0
    assert re.search(r"backup\.db is in place; the earlier records: .*clinic\.before_restore_\S+\.db\n$", out)
    assert lungkit("db", "check") == (0, "the records are sound\n", "")


def test_the_command_reports_what_is_wrong_and_fails(lungkit, sqlite_url, tmp_path):
    lungkit("db", "upgrade")
    Store(sqlite_url).path.chmod(0o644)
    code, out, _ = lungkit("db", "check")
    assert code == 1
    assert re.fullmatch(r"- \S+clinic\.db is open to other users of this machine; `chmod 600 \S+`\n", out)
    code, out, err = lungkit("db", "restore", tmp_path / "nothing")
    assert (code, out, err) == (1, "", f"error: there is no backup {tmp_path / 'nothing'}\n")


def test_the_command_verifies_the_trail_against_a_head_noted_before(lungkit, sqlite_url):
    lungkit("db", "upgrade")
    with Store(sqlite_url).write() as db:
        audit_trail.append(db, None, "case.open", "case:1")
    code, out, _ = lungkit("audit", "verify")
    assert (code, out.split(";")[0]) == (0, "1 rows")
    head = out.split()[-1]
    code, out, _ = lungkit("audit", "verify", "--since", head)
    assert code == 0
    assert out.startswith(
        "1 rows; those up to 1 are the ones whose head was noted, and none between them and the last "
    )
    code, out, err = lungkit("audit", "verify", "--since", f"9{head[1:]}")
    assert (code, out) == (1, "")
    assert "broken at row 2: it is missing; the trail had 9 rows" in err


def test_verify_does_not_claim_that_the_end_of_the_trail_is_complete(lungkit, sqlite_url):
    lungkit("db", "upgrade")
    with Store(sqlite_url).write() as db:
        for case in "12":
            audit_trail.append(db, None, "case.open", f"case:{case}")
    head = lungkit("audit", "verify")[1].split()[-1]
    with sqlite3.connect(Store(sqlite_url).path) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("DELETE FROM audit WHERE number = 2")
    code, out, _ = lungkit("audit", "verify")
    assert code == 0
    assert out.startswith("1 rows; none before the last one was changed, removed or inserted. Only --since HEAD")
    assert "--since" in out
    assert "broken at row 2" in lungkit("audit", "verify", "--since", head)[2]
