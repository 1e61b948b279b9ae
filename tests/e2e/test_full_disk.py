"""A clinic whose disk is really full, records and temporary files alike, seen by people at a browser.

They sign in, open earlier cases and review them. A new image is refused in words, and nothing is lost.
"""

import gc
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import expect

from lungkit.clinic.records.tables import AuditEvent, Review
from lungkit.data import phantom
from tests.e2e.conftest import Clinic
from tests.e2e.test_faults import assert_reads_again, assert_whole, kill, load_again, saved, type_in

FULL = "disk is full or failing; nothing was saved. Tell an administrator, then try again"
STILL = "The disk with the records is full. Signing in, opening cases and reviews still work"
SIZE = 48 * 2**20  # bytes of the disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A small disk of its own, which has the clinic's data and its temporary files."""
    folder = tmp_path_factory.mktemp("clinic") / "data"
    folder.mkdir()
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk may not be mounted here: {mounted.stderr.strip()}")
    (folder / "tmp").mkdir()
    yield folder
    gc.collect()  # connections of the commands that ran in this process
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def clinic(start_clinic, disk) -> Iterator[Clinic]:
    clinic = start_clinic(disk.parent, pool=0, LUNGKIT_HANG_SECONDS="300", TMPDIR=str(disk / "tmp"))
    yield clinic
    clinic.close()


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Iterator[Path]:
    """DICOM files as large as a scanner's, without end; test_faults says more."""
    folder = tmp_path_factory.mktemp("scans")
    cut = phantom.make_patient("demo", "Normal", seed=46, slices=3, size=512)[1]
    return (phantom.write_dicom(replace(cut, index=i), folder / f"scan-{i:02}.dcm") for i in count())


def fill(disk: Path) -> Path:
    """A file that takes all the room there is left, also what the records' log of writes would use again."""
    deadline = time.monotonic() + 30
    with closing(sqlite3.connect(disk / "clinic" / "clinic.db", isolation_level=None)) as records:
        while records.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:  # someone reads
            assert time.monotonic() < deadline
            time.sleep(0.05)
    ballast, size = disk / "ballast", 2**20
    with ballast.open("wb", buffering=0) as file:
        while size >= 512:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    assert shutil.disk_usage(disk).free == 0
    return ballast


def noted(clinic, action: str) -> int:
    """How often the trail says that this was done."""
    with clinic.store.read() as db:
        return db.scalar(sa.select(sa.func.count()).where(AuditEvent.action == action))


def open_first_case(visitor) -> None:
    """The first case of the worklist."""
    visitor.go("Worklist")
    visitor.page.locator("tbody tr").first.click()
    visitor.page.get_by_role("button", name="Open case").click()


def test_on_a_full_disk_people_sign_in_open_cases_and_review_and_an_upload_is_refused_in_words(
    visit, clinic, disk, scans
):
    ada, eve, late = visit("ada", ends=True), visit("eve", ends=True), visit()
    ada.new_patient("D-1", "Demo Patient One")
    ada.upload(next(scans))
    eve.go("Health")
    expect(eve.page.locator(".health")).to_contain_text("are kept for signing in, opening cases and reviews")
    late.page.goto(clinic.url)
    before, kept, scan = saved(clinic), clinic.store.reserve.bytes(), next(scans)
    assert kept > 2**22
    ballast = fill(disk)

    type_in(late, "ben")  # a new session, and a new page with a process of its own
    late.page.locator(".clinic-nav").wait_for()
    open_first_case(late)
    late.sees("D-1", "Demo Patient One")
    late.page.get_by_role("button", name="Agree: Normal").click()
    late.sees("Reviews")
    with clinic.store.read() as db:
        assert db.scalar(sa.select(sa.func.count(Review.id))) == 1
    assert noted(clinic, "case.open") >= 1

    ada.page.get_by_role("button", name="More images of this patient").click()
    for _ in range(20):  # what signing in left free is used up first
        ada.upload(scan)
        if FULL in ada.line(scan):
            break
        before, scan = saved(clinic), next(scans)
    assert FULL in ada.line(scan)
    assert saved(clinic) == before
    eve.page.get_by_role("button", name="Check again").click()
    expect(eve.page.locator(".health")).to_contain_text(STILL)
    eve.go("Usage")
    eve.sees(STILL)  # on every screen
    late.page.get_by_role("button", name="Sign out").click()
    late.page.get_by_role("textbox", name="User name").wait_for()
    assert_whole(clinic)

    kill(clinic)
    clinic.start()
    load_again(ada)
    open_first_case(ada)
    ada.sees("D-1")
    assert_whole(clinic)

    ballast.unlink()
    ada.go("New case")
    assert_reads_again(ada, "D-1", scan)
    assert len(saved(clinic)) == len(before) + 1
    assert 0 < clinic.store.reserve.bytes() <= kept
    assert_whole(clinic)


def test_a_reserve_that_is_used_up_lets_no_one_open_a_case_without_a_row_and_loses_nothing(visit, clinic, disk, scans):
    ada, eve, late = visit("ada"), visit("eve"), visit()
    ada.new_patient("D-2", "Demo Patient Two")
    ada.upload(next(scans))
    late.page.goto(clinic.url)
    before, scan = saved(clinic), next(scans)
    reserve = clinic.store.reserve.path
    os.truncate(reserve, 0)
    ballast = fill(disk)
    ada.page.get_by_role("button", name="Agree: Normal").click()
    ada.sees(FULL)
    ada.page.get_by_role("button", name="More images of this patient").click()
    ada.upload(scan)
    assert FULL in ada.line(scan)
    type_in(late, "ben")
    expect(late.page.get_by_role("alert")).to_contain_text(FULL)
    eve.go("Health")
    eve.sees("The disk with the records is full, and the reserve is used up. Nothing can be saved")
    assert saved(clinic) == before
    assert_whole(clinic)

    ballast.unlink()
    ada.upload(scan)  # the patient is still chosen
    assert len(saved(clinic)) == len(before) + 1
    assert_whole(clinic)
