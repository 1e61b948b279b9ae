"""The DICOM door: whoever may send gets a study read; everyone else, and everything else, is refused with a reason."""

import shutil
import subprocess
import time
from datetime import timedelta

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import jobs, received, routing
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.tables import Job, Reading, ReadingSource, ReceivedFile, ReceivedStudy, Study
from lungkit.data import phantom
from lungkit.gateway import worker
from lungkit.gateway.dicom import Settings
from tests.clinic.rows import count, events
from tests.gateway.conftest import MODEL, Running

QUIET = timedelta(seconds=1)
needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed (Debian: dcmtk)")


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A folder with the 12 slices of a phantom's CT."""
    path = tmp_path_factory.mktemp("chest")
    for cut in phantom.make_patient("T-77", "Pneumonia", 46, 12, 224):
        phantom.write_dicom(cut, path / f"{cut.index:02}.dcm", original=True)
    return path


@pytest.fixture
def rules(sqlite_store):
    """SCANNER1 may send, and a rule reads its CT."""
    with sqlite_store.write() as db:
        routing.add_caller(db, "SCANNER1")
        row = routing.add_route(db, Rule(name="CT", model=MODEL, modality="CT"))
        routing.note_trial(db, row.id)
        routing.set_route(db, row.id, True)


@pytest.fixture
def door(start_gateway, sqlite_store, rules, monkeypatch) -> Running:
    """A gateway with an open DICOM port."""
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.2)
    return start_gateway(sqlite_store, quiet=QUIET, dicom=Settings(port=0))


def storescu(port: int, *more, title: str = "SCANNER1", called: str = "LUNGKIT") -> subprocess.CompletedProcess:
    command = ["storescu", "-v", "-aet", title, "-aec", called, "127.0.0.1", str(port), *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def until(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@needs_dcmtk
def test_a_series_from_storescu_becomes_one_reading_of_the_series(door, chest, sqlite_store):
    sent = storescu(door.dicom_port, "-xv", "+sd", chest)
    assert sent.returncode == 0, sent.stderr
    assert count(sqlite_store, ReceivedFile) == 12
    until(lambda: jobs.counts(sqlite_store).get("done"))
    with sqlite_store.read() as db:
        job = db.scalar(sa.select(Job))
        reading = db.scalar(sa.select(Reading).options(sa.orm.joinedload(Reading.study)))
        source = db.get(ReadingSource, reading.id)
        assert (reading.id, reading.label) == (job.id, "Pneumonia")
        assert "rests on" in reading.study.notes
        assert source.study_uid
    assert count(sqlite_store, Study) == 1
