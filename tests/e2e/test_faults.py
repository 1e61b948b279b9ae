"""Faults around the clinic: a killed process, locked records, a damaged file of a model; test_full_disk has another.

After each fault, saved data is still there, nothing is partly saved, the page says what happened and what to do, and
the clinic continues in the same folder at the same address.
"""

import re
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from playwright.sync_api import expect
from typer.testing import CliRunner

from lungkit import cli
from lungkit.clinic.records import pixels
from lungkit.clinic.records.tables import AuditEvent, Patient, Reading, Review, Study
from lungkit.data import phantom
from tests.e2e.conftest import Clinic

BUSY = "records are busy; nothing was saved. Try again in a moment"


@pytest.fixture(scope="module")
def clinic(start_clinic) -> Clinic:
    """The clinic that all tests here share."""
    return start_clinic(pool=0, LUNGKIT_HANG_SECONDS="300")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Iterator[Path]:
    """DICOM files as large as a scanner's, without end, that the committed model is sure of."""
    folder = tmp_path_factory.mktemp("scans")
    cut = phantom.make_patient("demo", "Normal", seed=46, slices=3, size=512)[1]

    def scan(i: int) -> Path:
        hu = cut.hu.copy()
        hu[0, 0] += i + 1  # another image: the same one under another patient would be asked about
        return phantom.write_dicom(replace(cut, index=i, hu=hu), folder / f"scan-{i:02}.dcm")

    return (scan(i) for i in count())


# --- what must be true after every fault


def saved(clinic) -> set[tuple[str, str, str]]:
    """Every reading that can be reached from its patient: (patient's number, hash of the upload, reading)."""
    found = sa.select(Patient.number, Study.sha256, Reading.id).join(Study, Study.patient_id == Patient.id)
    with clinic.store.read() as db:
        return {tuple(row) for row in db.execute(found.join(Reading, Reading.study_id == Study.id))}


def assert_whole(clinic) -> None:
    """The records are sound, and nothing in them or next to them is incomplete."""
    for check in (("db", "check"), ("audit", "verify")):
        ran = CliRunner().invoke(cli.app, check, env=clinic.environment)
        assert ran.exit_code == 0, ran.output
    with clinic.store.read() as db:
        studies = db.scalars(sa.select(Study).options(sa.orm.undefer(Study.pixels))).all()
        assert all(len(study.readings) == 1 for study in studies)
        assert all(pixels.decode(study.pixels, study.units).shape == (study.height, study.width) for study in studies)
        assert set(db.scalars(sa.select(Patient.id))) == {study.patient_id for study in studies}
        told = db.scalars(sa.select(AuditEvent.object).where(AuditEvent.action == "case.save")).all()
        assert sorted(told) == sorted(f"reading:{study.readings[0].id}" for study in studies)
    files = {path.name for path in clinic.store.path.parent.iterdir()}
    assert files <= {"clinic.db", "clinic.db-wal", "clinic.db-shm", "clinic.db-reserve", "errors.log"}


def assert_reads_again(visitor, number: str, scan: Path) -> None:
    """A page that was just loaded finds an earlier patient and reads another image."""
    choose(visitor, number)
    visitor.upload(scan)
    assert_read(visitor, scan)


def assert_read(visitor, scan: Path) -> None:
    expect(visitor.page.locator(".file-line", has_text=scan.name).last).to_have_class(re.compile("file-read"))


def choose(visitor, number: str) -> None:
    """Find a patient on the page New case."""
    visitor.page.get_by_label("Patient number or name").fill(number)
    visitor.sees("1 found. Select one:")  # before, a click could hit an old list
    visitor.page.get_by_role("button", name=number).click()


def load_again(visitor) -> None:
    """Follow the link that a page shows when its process has ended."""
    visitor.page.get_by_role("heading", name="This page has ended").wait_for()
    visitor.sees("What was saved before is safe")
    visitor.page.get_by_role("link", name="Load the page again").click()
    visitor.page.locator(".clinic-nav").wait_for()


def send(visitor, scan: Path) -> None:
    """Choose a file without waiting."""
    visitor.page.locator("input[type=file]:enabled").set_input_files(scan)


def kill(clinic, *stopped: psutil.Process) -> None:
    """End the server as a power cut would; returns when the processes of its pages have noticed.

    stopped: those of them that were suspended; they resume now.
    """
    kernels = clinic.kernels()
    clinic.kill()
    for kernel in stopped:
        kernel.resume()
    _, left = psutil.wait_procs(kernels, timeout=15)
    assert not left


# --- a process is killed while it saves


def kernel_of(visitor) -> psutil.Process:
    """The process of a visitor's page."""
    kernel_id = visitor.page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId")
    (kernel,) = [process for process in visitor.clinic.kernels() if kernel_id in process.cmdline()[-1]]
    return kernel


class Watch:
    """What another program sees of the records at each moment."""

    def __init__(self, clinic):
        self._connection = sqlite3.connect(clinic.store.path, timeout=0, isolation_level=None)
        self.close = self._connection.close

    def studies(self) -> int:
        return self._connection.execute("SELECT count(*) FROM studies").fetchone()[0]

    def someone_writes(self) -> bool:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        self._connection.execute("ROLLBACK")
        return False


def stop_while_saving(visitor, scans: Iterator[Path]) -> tuple[psutil.Process, Path]:
    """Upload until the page's process is suspended in the middle of a save: that process, and the file."""
    kernel = kernel_of(visitor)
    with closing(Watch(visitor.clinic)) as watch:
        for scan in islice(scans, 8):
            before, end = watch.studies(), time.monotonic() + 30
            send(visitor, scan)
            while watch.studies() == before and time.monotonic() < end:
                if not watch.someone_writes():
                    time.sleep(0.0002)  # or else the save waits for those who watch it
                    continue
                kernel.suspend()
                while kernel.status() != psutil.STATUS_STOPPED:
                    time.sleep(0.001)
                if watch.someone_writes() and watch.studies() == before:
                    return kernel, scan
                kernel.resume()
            assert_read(visitor, scan)
    raise AssertionError("no save could be stopped half-way")


def stop_when_saved(visitor, scan: Path) -> psutil.Process:
    """Upload, and suspend the page's process as soon as the study is visible; returns that process."""
    kernel = kernel_of(visitor)
    with closing(Watch(visitor.clinic)) as watch:
        before, end = watch.studies(), time.monotonic() + 30
        send(visitor, scan)
        while watch.studies() == before:
            assert time.monotonic() < end
        kernel.suspend()
    return kernel


def test_a_kernel_killed_while_it_saves_leaves_all_of_a_reading_or_nothing(visit, clinic, scans):
    ada = visit("ada")
    ada.new_patient("F-1", "Demo Patient One")
    ada.upload(next(scans))
    kernel, unsaved = stop_while_saving(ada, scans)
    before = saved(clinic)
    kernel.kill()
    load_again(ada)
    assert saved(clinic) == before
    assert_whole(clinic)
    assert_reads_again(ada, "F-1", unsaved)

    scan = next(scans)
    stop_when_saved(ada, scan).kill()
    load_again(ada)
    assert len(saved(clinic)) == len(before) + 2
    assert_whole(clinic)
    choose(ada, "F-1")
    ada.upload(scan)
    assert "This image was already read for this patient" in ada.line(scan)
    assert len(saved(clinic)) == len(before) + 2


# --- the server does not answer


@contextmanager
def hanging(clinic) -> Iterator[None]:
    """In this block the server does not answer."""
    server = clinic.server()
    server.suspend()
    try:
        yield
    finally:
        server.resume()


def test_a_page_whose_server_hangs_says_so_and_continues_when_it_answers(visit, clinic, scans):
    ada, late = visit("ada"), visit()
    late.page.goto(clinic.url)
    late.page.evaluate("document.querySelector('form').dispatchEvent(new Event('submit'))")  # as if it were sent
    ada.new_patient("H-1", "Demo Patient, hanging")
    ada.upload(next(scans))
    warning = ada.page.get_by_role("alert").filter(has_text="The clinic is not answering")
    note = ada.page.get_by_label("Comment (kept with your review)")
    note.fill("Typed before it hung")
    with hanging(clinic):
        ada.page.get_by_role("button", name="Agree: Normal").click()  # within seconds, since something was done
        expect(warning).to_contain_text("What you typed is still on this page, but nothing is saved until it is back.")
        expect(note).to_have_value("Typed before it hung")
        assert ada.usable() == []
        expect(late.page.get_by_role("alert")).to_contain_text("The clinic is not answering yet")
    expect(warning).to_have_count(0)
    ada.sees("Reviews")
    of_patient = sa.select(Review.comment).join(Reading).join(Study).join(Patient).where(Patient.number == "H-1")
    with clinic.store.read() as db:
        assert db.scalars(of_patient).all() == ["Typed before it hung"]  # clicked meanwhile
    ada.page.get_by_role("button", name="More images of this patient").click()
    ada.upload(next(scans))
    assert sum(number == "H-1" for number, *_ in saved(clinic)) == 2


# --- the records cannot be written


@contextmanager
def written_by_another(clinic) -> Iterator[None]:
    """In this block another program is the one writer that the records allow."""
    with closing(sqlite3.connect(clinic.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def type_in(visitor, name: str) -> None:
    """Name and password on the sign-in page, and the button."""
    visitor.page.get_by_role("textbox", name="User name").fill(name)
    visitor.page.get_by_label("Password").fill(visitor.clinic.passwords[name])
    visitor.page.get_by_role("button", name="Sign in").click(no_wait_after=True)


def test_while_the_records_are_locked_everyone_sees_a_message_and_nothing_is_saved(visit, clinic, scans):
    ada, ben, late = visit("ada"), visit("ben"), visit()
    ada.new_patient("F-3", "Demo Patient Three")
    ada.upload(next(scans))
    late.page.goto(clinic.url)
    before, scan = saved(clinic), next(scans)
    with written_by_another(clinic):
        # All of them wait at the same time, since each waits for some seconds before giving up.
        send(ada, scan)
        ben.page.get_by_role("button", name="Sign out").click(no_wait_after=True)
        type_in(late, "ben")
        with urllib.request.urlopen(f"{clinic.url}login", timeout=5) as answer:  # no one else waits with them
            assert answer.status == 200
        expect(ada.page.locator(".file-line", has_text=scan.name)).to_contain_text(BUSY)
        expect(late.page.get_by_role("alert")).to_contain_text(BUSY)
        expect(ben.page.locator("body")).to_contain_text("The records could not note it, so the session itself ends")
    assert saved(clinic) == before
    assert_whole(clinic)
    ada.upload(scan)
    assert_read(ada, scan)
    assert clinic.token("ben")
    assert len(saved(clinic)) == len(before) + 1
    assert_whole(clinic)


# --- the server ends or hangs


def test_a_server_that_is_killed_in_the_middle_of_a_save_or_hangs_is_back_with_all_that_was_saved(visit, clinic, scans):
    ada = visit("ada")
    ada.new_patient("F-2", "Demo Patient Two")
    ada.upload(next(scans))
    kernel, _ = stop_while_saving(ada, scans)
    before = saved(clinic)
    kill(clinic, kernel)
    ada.sees("The server cannot be reached. What you enter now is not saved.")
    after = saved(clinic)
    assert before <= after  # the interrupted save is complete or missing
    assert_whole(clinic)
    clinic.start(LUNGKIT_HANG_SECONDS="6")  # until the next start
    load_again(ada)
    assert_reads_again(ada, "F-2", next(scans))
    before, url = saved(clinic), clinic.url
    assert len(before) == len(after) + 1
    assert_whole(clinic)

    clinic.server().suspend()
    load_again(ada)  # still signed in
    assert ada.page.url.partition("#")[0] == url
    assert saved(clinic) == before
    assert_whole(clinic)
    assert_reads_again(ada, "F-2", next(scans))
    assert "The server has not answered for 6 s. It starts again" in clinic.log_text()


# --- a model's file is damaged


def test_a_damaged_model_reads_nothing_and_reads_again_once_repaired(visit, clinic, scans):
    graph = clinic.artifacts / "ct-infection" / "v2" / "graph.bin"
    content = graph.read_bytes()
    ada = visit("ada")
    ada.new_patient("F-5", "Demo Patient Five")
    graph.write_bytes(content[: len(content) // 2])
    ada.upload(next(scans))  # with what was checked when the page was made ready
    before, scan = saved(clinic), next(scans)
    assert {number for number, *_ in before} >= {"F-5"}

    clinic.stop()
    clinic.start()  # earlier readings can be opened
    load_again(ada)
    choose(ada, "F-5")
    ada.upload(scan)
    for words in (
        "The model ct-infection is damaged",
        "nothing was saved",
        "tell an administrator",
        "graph.bin was changed",
    ):
        assert words in ada.line(scan)
    eve = visit("eve")
    for screen in ("Models", "Health"):
        eve.go(screen)
        eve.sees("ct-infection@v2: graph.bin was changed after it was registered. Restore the folder")
    assert saved(clinic) == before
    assert_whole(clinic)

    graph.write_bytes(content)
    ada.upload(scan)
    assert_read(ada, scan)
    eve.page.get_by_role("button", name="Check again").click()
    expect(eve.page.locator(".health")).not_to_contain_text("graph.bin")
    assert len(saved(clinic)) == len(before) + 1
    assert_whole(clinic)
