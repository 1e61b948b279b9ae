"""What is taken into the inbox, what is said of it, and what is never left behind; and what becomes of it."""

import io
import json
import os
import random
import time
import zipfile
import zlib
from datetime import timedelta
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from lungkit import config
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import jobs, received, routing
from lungkit.clinic.records.tables import Job, Patient, Reading, ReadingSource, ReceivedFile, ReceivedStudy
from lungkit.gateway import inbox
from lungkit.gateway.inbox import Incoming, NotTaken
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.worker import Worker
from tests.clinic.rows import count
from tests.gateway.conftest import MODEL, problem

AT_ONCE = timedelta(0)


@pytest.fixture
def sender(sqlite_store, rules) -> int:
    with sqlite_store.read() as db:
        return routing.admitted(db, "SCANNER1", "127.0.0.1")[0]


@pytest.fixture
def take(sqlite_store, sender):
    """A function: bytes, or a changed data set, go into the inbox."""

    def taken(content: bytes | pydicom.Dataset, **more) -> inbox.Taken:
        return inbox.take(sqlite_store, sender, "SCANNER1", arriving(content), **more)

    return taken


def arriving(content: bytes | pydicom.Dataset) -> Incoming:
    if not isinstance(content, bytes):
        stream = io.BytesIO()
        content.save_as(stream)
        content = stream.getvalue()
    file = Incoming()
    file.write(content)
    return file


def kept() -> list[Path]:
    return [path for path in config.inbox_dir().rglob("*") if path.is_file()]


@pytest.fixture
def one_slice(chest) -> pydicom.Dataset:
    return pydicom.dcmread(chest / "05.dcm")


# --- what is taken


def test_a_file_lies_under_a_random_name_that_only_its_owner_can_read(take, sqlite_store, one_slice):
    taken = take(one_slice)
    (path,) = kept()
    with sqlite_store.read() as db:
        row = db.scalar(sa.select(ReceivedFile))
    assert path == received.inbox(row.id)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert config.inbox_dir().stat().st_mode & 0o777 == 0o700
    assert taken.instance_uid == one_slice.SOPInstanceUID
    assert taken.instance_uid not in str(path)


@pytest.mark.parametrize(
    ("tags", "patient"),
    [
        ({"PatientName": "Invented^Anna^Maria^Dr"}, {"name": "Anna Maria Invented"}),
        ({"PatientName": "=김^희철"}, {"name": "희철 김"}),
        ({"PatientName": ""}, {"name": ""}),
        ({"PatientName": "A" * 64 + "^" + "B" * 64}, {"name": "B" * 64 + " " + "A" * 64}),
        ({"PatientBirthDate": "19700131"}, {"birth_year": 1970}),
        ({"PatientBirthDate": "00010101"}, {"birth_year": None}),
        ({"PatientSex": "F"}, {"sex": "female"}),
        ({"PatientSex": "O"}, {"sex": "other"}),
        ({"PatientSex": ""}, {"sex": "unknown"}),
    ],
)
def test_the_patient_is_stated_as_the_records_have_patients(take, sqlite_store, one_slice, tags, patient):
    one_slice.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in tags.items():
        setattr(one_slice, keyword, value)
    take(one_slice)
    with sqlite_store.read() as db:
        stated = db.scalar(sa.select(ReceivedStudy)).patient
    assert patient.items() <= stated.items()


def test_a_number_that_the_records_do_not_accept_is_left_out_and_never_shortened(take, sqlite_store, one_slice):
    one_slice.add(pydicom.DataElement("PatientID", "LO", "9" * 65))
    take(one_slice)
    with sqlite_store.read() as db:
        assert db.scalar(sa.select(ReceivedStudy.patient_number)) == ""


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"ImageType": ["original", "primary", "Localizer"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "SCOUT VIEW"]}, "localizer"),
        ({"PixelData": None}, "no image"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "Manufacturer": "lungkit"}, "a result of lungkit"),
        ({"SOPClassUID": ComprehensiveSRStorage, "PixelData": None}, "no image"),
    ],
)
def test_what_is_no_slice_is_set_aside_by_name(take, sqlite_store, one_slice, tags, words):
    for keyword, value in tags.items():
        if value is None:
            del one_slice[keyword]
        else:
            setattr(one_slice, keyword, value)
    take(one_slice)
    with sqlite_store.read() as db:
        assert db.scalar(sa.select(ReceivedFile.set_aside)) == words


def test_without_an_instance_uid_in_the_data_set_the_one_that_was_said_counts(take, one_slice):
    said = one_slice.SOPInstanceUID
    one_slice.SOPInstanceUID = ""
    assert take(one_slice, stated=(one_slice.SOPClassUID, said)).instance_uid == said


def test_a_name_of_megabytes_is_not_read(take, sqlite_store, one_slice):
    one_slice.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one_slice.PixelData = bytes(64)
    one_slice.add(pydicom.DataElement("PatientName", "UN", b"A" * 2**21))
    take(one_slice)
    with sqlite_store.read() as db:
        assert db.scalar(sa.select(ReceivedStudy)).patient["name"] == ""


# --- what is not


@pytest.mark.parametrize(
    ("change", "stated", "status"),
    [
        ({"StudyInstanceUID": ""}, {}, 0xC000),
        ({"SeriesInstanceUID": "1" * 65}, {}, 0xC000),
        ({"SOPClassUID": MRImageStorage}, {}, 0x0122),
        ({}, {"stated": (MRImageStorage, "")}, 0xA900),
        ({}, {"stated": ("", "1.2.3")}, 0xA900),
        ({}, {"study_uid": "1.2.3"}, 0xA900),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pydicom")
def test_a_file_that_is_refused_has_a_status_and_leaves_nothing(
    take, sqlite_store, one_slice, change, stated, status, recwarn
):
    for keyword, value in change.items():
        one_slice.add(pydicom.DataElement(keyword, "UI", value))
    with pytest.raises(NotTaken) as refused:
        take(one_slice, **stated)
    assert refused.value.status == status
    assert kept() == []
    assert count(sqlite_store, ReceivedStudy) == 0


def test_a_file_of_another_patient_is_not_kept(take, one_slice):
    take(one_slice)
    one_slice.PatientID, one_slice.SOPInstanceUID = "T-78", generate_uid()
    with pytest.raises(NotTaken, match="another PatientID"):
        take(one_slice)
    assert len(kept()) == 1


def test_a_corrected_file_takes_the_place_of_the_one_before(take, one_slice):
    take(one_slice)
    (before,) = kept()
    one_slice.SeriesDescription = "corrected"
    take(one_slice)
    (after,) = kept()
    assert before != after


@pytest.mark.parametrize(
    "content", [b"", b"x" * 10, bytes(128) + b"DICM", b"%PDF-1.7" + bytes(500), b"PK\3\4" + bytes(200)]
)
def test_what_is_no_dicom_is_refused(take, content):
    with pytest.raises(NotTaken) as refused:
        take(content)
    assert refused.value.status == 0xC000


def test_whatever_a_file_contains_it_is_taken_or_refused(take, one_slice):
    stream = io.BytesIO()
    one_slice.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one_slice.PixelData = bytes(64)
    one_slice.save_as(stream)
    content, rng = stream.getvalue(), random.Random(3)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(132, len(damaged))] = rng.choice((0, 255, 0x5C, 0x1B, rng.randrange(256)))
        del damaged[rng.choice((len(damaged), rng.randrange(132, len(damaged)))) :]
        try:
            take(bytes(damaged))
        except NotTaken as refused:
            assert refused.status in (0xC000, 0xA900, 0x0122)
    assert all(path.parent.name != "arriving" for path in kept())


def test_sequences_within_sequences_and_a_name_of_many_megabytes_cost_nothing(take, one_slice):
    stream = io.BytesIO()
    one_slice.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one_slice.save_as(stream)
    start, rest = stream.getvalue()[:400], b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    began = time.monotonic()
    for hostile in (start + rest * 100_000, start + b"\x10\x00\x10\x00UN\0\0\x00\x00\x00\x02" + bytes(2**25)):
        with pytest.raises(NotTaken):
            take(hostile)
    assert time.monotonic() - began < 20


# --- tidying


def test_files_are_deleted_with_their_study_and_so_is_what_a_sender_left(take, sqlite_store, one_slice):
    take(one_slice)
    left = arriving(b"half a file")
    orphan = received.inbox("ab345678-0000-0000-0000-000000000000")
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"no row")
    inbox.tidy(sqlite_store)
    assert len(kept()) == 3
    for path in kept():
        os.utime(path, (time.time() - inbox.LEFT_OVER - 1,) * 2)
    inbox.tidy(sqlite_store)
    (path,) = kept()
    with sqlite_store.write() as db:
        study = db.scalar(sa.select(ReceivedStudy))
        study.state, study.last_at = "closed", study.last_at - received.KEPT - timedelta(1)
    inbox.tidy(sqlite_store)
    assert not path.exists()
    assert left.name


# --- what becomes of it


@pytest.fixture
def worker(sqlite_store) -> Worker:
    """A worker that is not started; every study is complete at once."""
    return Worker(sqlite_store, ModelPool(), Metrics(), quiet=AT_ONCE)


def _read_all(worker: Worker, store) -> list[Job]:
    worker.sweep()
    with store.read() as db:
        ids = list(db.scalars(sa.select(Job.id).where(Job.state == "queued")))
    for job_id in ids:
        worker.read(job_id)
    with store.read() as db:
        return list(db.scalars(sa.select(Job).order_by(Job.created_at)))


def test_late_slices_are_read_together_with_the_others_and_supersede(take, worker, sqlite_store, chest):
    for path in sorted(chest.iterdir())[:8]:
        take(path.read_bytes())
    (first,) = _read_all(worker, sqlite_store)
    for path in sorted(chest.iterdir())[8:]:
        take(path.read_bytes())
    _, second = _read_all(worker, sqlite_store)
    with sqlite_store.read() as db:
        source = db.get(ReadingSource, second.id, options=[sa.orm.undefer(ReadingSource.headers)])
    headers = json.loads(zlib.decompress(source.headers))
    assert (source.supersedes, len(headers)) == (first.id, 12)
    assert headers[0]["00100020"]["Value"] == ["T-77"]
    assert count(sqlite_store, Reading) == 2


def test_one_slice_alone_is_read_as_an_image(take, worker, sqlite_store, chest):
    take((chest / "05.dcm").read_bytes())
    (job,) = _read_all(worker, sqlite_store)
    assert job.state == "done"
    assert count(sqlite_store, ReadingSource) == 1


def test_a_patient_without_a_name_is_called_by_the_number(take, worker, sqlite_store, one_slice):
    one_slice.PatientName = ""
    take(one_slice)
    assert [job.state for job in _read_all(worker, sqlite_store)] == ["done"]
    with sqlite_store.read() as db:
        assert db.scalar(sa.select(Patient.name)) == "T-77"


def test_a_series_that_is_refused_fails_for_good_with_the_rule(take, worker, sqlite_store, chest):
    for path in sorted(chest.iterdir()):
        take(path.read_bytes())
    twice = pydicom.dcmread(chest / "03.dcm")
    twice.SOPInstanceUID = generate_uid()
    twice.PixelData = pydicom.dcmread(chest / "04.dcm").PixelData
    take(twice)
    (job,) = _read_all(worker, sqlite_store)
    assert (job.state, job.tries) == ("failed", 1)
    assert "two slices at one position" in job.reason
    assert str(config.inbox_dir()) not in job.reason


def test_a_job_whose_file_is_gone_is_tried_again(take, worker, sqlite_store, one_slice):
    take(one_slice)
    for path in kept():
        path.unlink()
    (job,) = _read_all(worker, sqlite_store)
    assert (job.state, job.tries) == ("queued", 1)
    assert "no longer in the inbox" in job.reason


# --- a series over REST


def _zipped(paths) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return stream.getvalue()


def test_a_zip_of_a_series_is_read_as_one(gateway, chest):
    answer = gateway.predict(_zipped(chest.iterdir()), wait=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "Pneumonia"
    with gateway.store.read() as db:
        assert db.scalar(sa.select(ReadingSource.series_uid)) == pydicom.dcmread(chest / "00.dcm").SeriesInstanceUID


def test_a_zip_without_a_series_is_refused_at_once(gateway, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    problem(gateway.predict(_zipped([tmp_path / "notes.txt"])), 422, "image-refused")
    assert count(gateway.store, Job) == 0


def test_a_slice_over_rest_keeps_its_headers_too(gateway, chest):
    assert gateway.predict((chest / "05.dcm").read_bytes(), wait=30).status_code == 200
    assert count(gateway.store, ReadingSource) == 1
    assert MODEL
    assert jobs.counts(gateway.store) == {"done": 1}
