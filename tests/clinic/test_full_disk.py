"""A disk that is really full: who signs in and opens what is still written, with room that was kept for it."""

import errno
import gc
import os
import shutil
import sqlite3
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from lungkit import files
from lungkit.clinic.records import accounts, audit_trail, maintenance, reserve
from lungkit.clinic.records.accounts import Access, StoreError
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.reserve import STEP, Reserve
from lungkit.clinic.records.store import TRIES, DiskFull, Store, also_on_a_full_disk, in_words
from lungkit.clinic.records.tables import AuditEvent, SignIn
from lungkit.errors import LungkitError

ADDRESS = "127.0.0.1"
FULL = "disk is full or failing; nothing was saved"


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request, tmp_path):
    """A disk of its own with 24 MiB; only root may mount one."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", folder]
    if request.param == "ext4":
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("no mkfs.ext4 here")
        with image.open("wb") as file:
            file.truncate(24 * 2**20)
        # Blocks of a page, as larger disks have. SQLite makes room for a page that it maps by writing one byte of it;
        # with the smaller blocks of a small disk the rest may be missing, which ends the process (SIGBUS).
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-m", "0", image], check=True)
        command = ["mount", "-o", "loop", image, folder]
    mounted = subprocess.run(command, capture_output=True, text=True) if os.geteuid() == 0 else None
    if mounted is None or mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    gc.collect()  # connections of sessions that failed
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def store(disk):
    """Records on the small disk, with a reserve."""
    store = Store(f"sqlite:///{disk / 'clinic' / 'clinic.db'}")
    maintenance.upgrade(store)
    store.reserve.keep()
    yield store
    store.close()


@pytest.fixture
def passwords(store, cheap_passwords):
    with store.write() as db:
        return {
            name: accounts.add_user(db, name, f"Test {name}", role)
            for name, role in (("ada", "doctor"), ("eve", "admin"))
        }


@pytest.fixture
def records(store, passwords):
    """The records as a doctor uses them."""
    return Records(Access(store, sign_in(store, passwords, "ada")))


@pytest.fixture
def save(records, chest_image, prediction):
    """A function that saves a case of a new patient with this number, and returns the reading's identifier."""

    def save(number: str) -> str:
        new = NewPatient(number, "Test Patient")
        digest = files.sha256(number.encode())
        return records.save_case(new, chest_image(seed=int(digest[:6], 16)), digest, prediction()).reading_id

    return save


@pytest.fixture
def saved(save) -> str:
    """A case that was saved while there was room."""
    return save("P1")


def sign_in(store, passwords, name: str) -> str:
    return accounts.sign_in(store, name, passwords[name], ADDRESS)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is, also what the records' log of writes would use again."""
    for _ in range(2):
        with sa.create_engine(f"sqlite:///{disk / 'clinic' / 'clinic.db'}").connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        gc.collect()
    ballast = disk / "ballast"
    size = 2**20
    with ballast.open("ab", buffering=0) as file:
        while size >= 512:
            try:
                file.write(bytes(size))
                os.fsync(file.fileno())
            except OSError:
                size //= 2
    assert shutil.disk_usage(disk).free < 2**14
    return ballast


def opened(store) -> int:
    """How often the trail says that a case was opened."""
    with store.read() as db:
        return db.scalar(sa.select(sa.func.count()).where(AuditEvent.action == "case.open"))


def test_on_a_full_disk_a_person_signs_in_opens_an_earlier_case_reviews_it_and_signs_out(store, passwords, saved, disk):
    before = store.reserve.bytes()
    assert before >= 4 * STEP
    fill(disk)
    token = sign_in(store, passwords, "ada")
    records = Records(Access(store, token))
    case = records.open_case(saved)
    assert case.patient.number == "P1" and case.pixels.size
    assert [row.reading_id for row in records.patient(case.patient.id).cases] == [saved]
    records.review(saved, case.label, "seen on a full disk")
    assert [review.comment for review in records.case(saved).reviews] == ["seen on a full disk"]
    accounts.sign_out(store, token)
    with pytest.raises(accounts.SignedOut):
        records.worklist()
    assert opened(store) == 2
    assert maintenance.check(store) == []
    assert 0 < store.reserve.bytes() < before


def test_on_a_full_disk_an_administrator_ends_a_persons_sessions_and_exports(store, passwords, saved, records, disk):
    fill(disk)
    eve = Administration(Access(store, sign_in(store, passwords, "eve")))
    assert b"Test Patient" in eve.export_csv()
    eve.disable("ada")
    with pytest.raises(accounts.SignedOut):
        records.worklist()
    assert maintenance.check(store) == []


def test_on_a_full_disk_a_refused_attempt_is_on_the_trail(store, passwords, records, disk):
    fill(disk)
    with pytest.raises(accounts.Forbidden):
        Administration(records.access).people()
    with pytest.raises(accounts.SignInRefused):
        accounts.sign_in(store, "ada", "not the password", ADDRESS)
    with store.read() as db:
        assert {"access.refused", "session.refused"} <= set(db.scalars(sa.select(AuditEvent.action)))


def test_names_without_an_account_take_nothing_from_the_reserve_and_are_refused_like_others(store, passwords, disk):
    fill(disk)
    before = store.reserve.bytes()

    def refused(name: str) -> str:
        with pytest.raises(LungkitError) as caught:
            accounts.sign_in(store, name, "not the password", ADDRESS)
        return str(caught.value)

    assert {refused(f"made up {number}") for number in range(300)} == {accounts.REFUSED}
    assert store.reserve.bytes() == before
    assert refused("ada") == accounts.REFUSED
    os.truncate(store.reserve.path, 0)
    fill(disk)
    for number in range(50):  # the last free bytes may take some
        refused(f"another {number}")
    assert FULL in refused("eve") and refused("eve") == refused("not-a-user")


def test_a_session_in_use_does_not_end_because_the_disk_is_full(store, records, disk):
    with store.write() as db:
        db.execute(sa.update(SignIn).values(seen_at=accounts.now() - 2 * accounts.TOUCH))
    fill(disk)
    records.worklist()
    with store.read() as db:
        assert accounts.now() - db.scalar(sa.select(SignIn.seen_at)) < accounts.TOUCH


def test_an_upload_on_a_full_disk_is_refused_leaves_the_reserve_alone_and_succeeds_later(
    store, records, save, saved, disk
):
    ballast, before = fill(disk), store.reserve.bytes()
    with pytest.raises(StoreError, match=FULL):
        for number in range(50):  # the last free bytes may take some
            save(f"X{number}")
    assert store.reserve.bytes() == before
    assert {row.number for row in records.worklist()} == {"P1", *(f"X{one}" for one in range(number))}
    records.case(saved)
    ballast.unlink()
    save("P2")
    assert store.reserve.keep() == before
    assert maintenance.check(store) == []


def test_records_are_opened_on_a_full_disk_by_a_program_that_just_started(store, passwords, saved, disk):
    """SQLite needs a file of 32 KiB before it reads anything; it went when the last program ended."""
    store.close()
    assert not Path(f"{store.path}-shm").exists()
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**14))
    again = Store(f"sqlite:///{store.path}")
    maintenance.upgrade(again)
    assert Records(Access(again, sign_in(again, passwords, "ada"))).case(saved).patient.number == "P1"
    again.close()


def test_once_the_reserve_is_used_up_no_case_is_opened_without_a_row_on_the_trail(store, records, saved, disk):
    os.truncate(store.reserve.path, 0)
    fill(disk)
    openings = 0
    with pytest.raises(DiskFull, match=FULL):
        for _ in range(200):  # the last free bytes may take some
            records.case(saved)
            openings += 1
    assert opened(store) == openings
    assert len(records.worklist()) == 1  # what leaves no row can still be read
    assert maintenance.check(store) == []


def test_many_processes_at_once_share_the_reserve(store, passwords, saved, disk):
    before = store.reserve.bytes()
    fill(disk)
    stores = [Store(f"sqlite:///{store.path}") for _ in range(4)]
    failed = []

    def work(own: Store) -> None:
        try:
            records = Records(Access(own, sign_in(own, passwords, "ada")))
            for _ in range(5):
                records.case(saved)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert opened(store) == 20
    assert audit_trail.verify(store) > 20
    assert store.reserve.bytes() >= before - 4 * STEP
    for own in stores:
        own.close()


# --- the reserve itself


def test_the_reserve_takes_at_most_a_quarter_of_the_room_and_is_really_there(disk):
    kept = Reserve(disk / "reserve")
    free = shutil.disk_usage(disk).free
    size = kept.keep()
    assert free // 4 - STEP <= size == kept.bytes() <= free // 4
    assert (disk / "reserve").stat().st_blocks * 512 >= size
    assert (disk / "reserve").stat().st_mode & 0o777 == 0o600
    assert kept.keep() == size  # does not take a quarter of the rest


def test_the_reserve_grows_again_only_when_there_is_room(disk):
    kept = Reserve(disk / "reserve")
    size = kept.keep()
    (disk / "clinic").mkdir()
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    assert kept.release(always=False)
    assert kept.keep() == size - STEP
    ballast.unlink()
    assert kept.keep() == size


def test_a_reserve_is_given_only_once_to_processes_that_ask_at_the_same_time(tmp_path):
    kept = Reserve(tmp_path / "reserve")
    size = kept.keep()
    assert kept.release(always=False)  # there is room again
    assert kept.bytes() == size
    assert kept.release(always=True)
    assert kept.bytes() == size - STEP


def test_a_disk_that_does_not_work_gets_nothing_of_the_reserve_while_it_has_room(tmp_path):
    kept = Reserve(tmp_path / "reserve")
    size = kept.keep()
    tries = []

    def broken(code: int) -> None:
        tries.append(code)
        error = sqlite3.OperationalError("it failed")
        error.sqlite_errorcode = code
        with in_words(kept):
            raise error

    with pytest.raises(DiskFull):
        also_on_a_full_disk(broken)(sqlite3.SQLITE_IOERR_WRITE)
    assert (kept.bytes(), len(tries)) == (size, TRIES + 1)
    with pytest.raises(DiskFull):
        also_on_a_full_disk(broken)(sqlite3.SQLITE_FULL)
    assert kept.bytes() == size - (TRIES - 1) * STEP


def test_a_used_up_quota_counts_as_a_full_disk(tmp_path, monkeypatch):
    kept = Reserve(tmp_path / "reserve")
    size = kept.keep()

    def over(*_: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(reserve.os, "pwrite", over)
    assert kept.release(always=False)
    assert kept.bytes() == size - STEP


def test_records_that_cannot_be_opened_take_a_few_steps_of_the_reserve_at_most(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'clinic.db'}")
    size = store.reserve.keep()

    class Broken:
        def execute(self, _: str) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    with pytest.raises(sqlite3.OperationalError):
        store._sqlite_connected(Broken(), None)
    assert store.reserve.bytes() == size - TRIES * STEP


@pytest.mark.parametrize("call", ["ftruncate", "fsync", "open"])
def test_a_reserve_that_cannot_be_used_is_a_full_disk_and_no_other_error(tmp_path, monkeypatch, caplog, call):
    kept = Reserve(tmp_path / "reserve")
    kept.keep()

    def broken(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reserve.os, call, broken)
    assert not kept.release(always=True)
    assert "cannot be used: [Errno 28] No space left" in caplog.text


def test_a_database_elsewhere_has_no_reserve():
    server = Store("postgresql://ada@127.0.0.1:1/clinic").reserve
    assert (server.keep(), server.bytes(), server.release(always=True)) == (0, 0, False)


def test_a_disk_that_fails_otherwise_is_no_reason_to_go_on_without_a_reserve_in_silence(tmp_path, monkeypatch):
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reserve.os, "pwrite", broken)
    with pytest.raises(OSError, match="Input/output"):
        Reserve(tmp_path / "reserve").keep()
