"""DICOM over the web: what is sent is taken, or named with the reason; nothing is dropped and called stored."""

import http.client
import io
import socket
import time
import zipfile
from datetime import timedelta

import pydicom
import pytest
import sqlalchemy as sa
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session

from lungkit import config
from lungkit.clinic.records import jobs, keys
from lungkit.clinic.records.tables import Job, ReceivedFile, ReceivedStudy
from lungkit.gateway import inbox, requests, worker
from tests.clinic.rows import count
from tests.gateway.conftest import Running, problem

pytestmark = pytest.mark.usefixtures("rules")
PATH = "/dicom-web/studies"
BOUNDARY = "a-boundary"
RELATED = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@pytest.fixture
def door(start_gateway, sqlite_store) -> Running:
    return start_gateway(sqlite_store, quiet=timedelta(hours=1))


@pytest.fixture
def one(chest) -> bytes:
    return (chest / "05.dcm").read_bytes()


def related(*parts: bytes, end: str = f"--{BOUNDARY}--\r\n", kind: str = "application/dicom") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + end.encode()


def send(door: Running, body: bytes, kind: str = RELATED, path: str = PATH, key: str | None = None):
    return door.ask("POST", path, key, data=body, headers={"Content-Type": kind})


def said(answer) -> tuple[int, int, list[int]]:
    """The status, how many files are referenced, and the reasons of the others."""
    assert answer.headers["Content-Type"] == "application/dicom+json", answer.text
    body = answer.json()
    assert set(body) <= {"00081199", "00081198"}
    failed = body.get("00081198", {"Value": []})["Value"]
    reasons = [item["00081197"]["Value"][0] for item in failed]
    return answer.status_code, len(body.get("00081199", {"Value": []})["Value"]), reasons


def kept() -> int:
    return sum(path.is_file() for path in config.inbox_dir().rglob("*"))


# --- what is taken


def test_a_study_from_a_dicomweb_client_is_read(start_gateway, sqlite_store, chest, monkeypatch):
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.2)
    door = start_gateway(sqlite_store, quiet=timedelta(seconds=1))
    session = create_session()
    session.headers["Authorization"] = f"Bearer {door.key}"
    client = DICOMwebClient(f"{door.url}/api/v1/dicom-web", session=session)
    stored = client.store_instances([pydicom.dcmread(path) for path in sorted(chest.iterdir())])
    assert len(stored.ReferencedSOPSequence) == 12
    assert "FailedSOPSequence" not in stored
    end = time.monotonic() + 60
    while not jobs.counts(sqlite_store).get("done"):
        assert time.monotonic() < end
        time.sleep(0.1)
    with sqlite_store.read() as db:
        job = db.scalar(sa.select(Job))
    result = door.ask("GET", f"/results/{job.id}").json()
    assert result["label"] == "Pneumonia"


@pytest.mark.parametrize(
    "kind",
    [
        RELATED,
        f"multipart/related; type=application/dicom; boundary={BOUNDARY}",
        f'Multipart/Related; boundary="{BOUNDARY}"; type="application/dicom"; charset=utf-8',
    ],
)
def test_the_type_may_be_quoted_or_not(door, one, kind):
    assert said(send(door, related(one), kind)) == (200, 1, [])


def test_the_boundary_may_be_as_long_as_orthancs(door, one):
    longer = "0" * 73
    body = related(one).replace(BOUNDARY.encode(), longer.encode())
    assert said(send(door, body, RELATED.replace(BOUNDARY, longer))) == (200, 1, [])


def test_a_file_alone_is_taken_too(door, one):
    assert said(send(door, one, "application/dicom")) == (200, 1, [])


def test_a_boundary_that_is_cut_between_two_packets_is_found(door, one):
    body = related(one, one)
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))
    assert said(send(door, chunks)) == (200, 2, [])


# --- what is not


def test_some_that_fail_are_named_next_to_those_that_were_taken(door, one):
    sr = pydicom.dcmread(io.BytesIO(one))
    sr.SOPClassUID = sr.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    stream = io.BytesIO()
    sr.save_as(stream)
    answer = send(door, related(one, b"no dicom", stream.getvalue()))
    assert said(answer) == (202, 1, [0xC000, 0x0122])
    unreadable, unsupported = answer.json()["00081198"]["Value"]
    assert set(unreadable) == {"00081197"}
    assert unsupported["00081155"]["Value"] == [sr.SOPInstanceUID]
    assert "cannot be understood" in answer.headers["Warning"]
    assert kept() == count(door.store, ReceivedFile) == 1


def test_an_error_of_the_program_is_a_reason_too_and_says_nothing_more(door, one, monkeypatch, caplog):
    def fail(*_, **__):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(inbox, "looked_at", fail)
    answer = send(door, related(one))
    assert said(answer) == (409, 0, [0x0110])
    assert "secret" not in answer.headers["Warning"]
    assert kept() == 0


def test_where_nothing_was_taken_the_answer_is_a_conflict(door, one):
    assert said(send(door, related(b"no dicom"))) == (409, 0, [0xC000])
    assert said(send(door, related(one), path=f"{PATH}/1.2.3")) == (409, 0, [0xA900])
    assert said(send(door, related(one, kind="image/jpeg"))) == (409, 0, [0xC000])
    assert kept() == 0


@pytest.mark.parametrize(
    ("kind", "body", "status", "name"),
    [
        ("application/json", b"{}", 415, "media-type"),
        ("multipart/form-data; boundary=a", b"--a--", 415, "media-type"),
        (f"multipart/related; boundary={BOUNDARY}", b"", 415, "media-type"),
        (f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}', b"", 415, "media-type"),
        ('multipart/related; type="application/dicom"', b"x", 400, "bad-request"),
        (f'multipart/related; type="application/dicom"; boundary={"b" * 201}', b"x", 400, "bad-request"),
        (RELATED, b"", 400, "bad-request"),
        (RELATED, b"--another\r\n\r\nx\r\n--another--", 400, "bad-request"),
        (RELATED, f"--{BOUNDARY}--\r\n".encode(), 400, "bad-request"),
        (RELATED, related(b"half", end=""), 400, "bad-request"),
        (RELATED, f"--{BOUNDARY}\r\n{'X' * 5000}: y\r\n\r\nz".encode(), 400, "bad-request"),
        ("application/dicom", b"", 400, "bad-request"),
        ("", b"x", 415, "media-type"),
    ],
)
def test_a_request_that_cannot_be_understood_is_never_called_a_success(door, kind, body, status, name):
    problem(send(door, body, kind), status, name)
    assert (kept(), count(door.store, ReceivedStudy)) == (0, 0)
    assert door.app.state.gateway.uploads == 0


def test_a_body_that_is_cut_off_after_a_file_says_what_was_taken(door, one):
    body = related(one, one[: len(one) // 2], end="")[:-2]
    assert said(send(door, body)) == (400, 1, [0xC000])
    assert kept() == 1


def test_a_connection_that_ends_in_the_middle_leaves_no_file(door, one):
    with socket.create_connection(("127.0.0.1", int(door.url.rpartition(":")[2])), timeout=20) as connection:
        head = (
            f"POST /api/v1{PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {door.key}\r\n"
            f"Content-Type: application/dicom\r\nContent-Length: {len(one)}\r\n\r\n"
        )
        connection.sendall(head.encode() + one[:-100])
    end = time.monotonic() + 20
    while kept() or door.app.state.gateway.uploads:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert count(door.store, ReceivedFile) == 0


def test_without_a_key_or_its_scope_nothing_is_read(door, one):
    assert send(door, related(one), key="").status_code == 401
    assert send(door, related(one), key=door.make_key("read", name="viewer")).status_code == 403
    assert kept() == 0


def test_a_key_that_is_revoked_in_the_middle_stores_nothing_more(door, one, monkeypatch):
    take, key = inbox.take, door.make_key("predict", name="leaver")

    def revoked_after(*given, **more):
        with door.store.write() as db:
            keys.revoke_key(db, key)
        return take(*given, **more)

    monkeypatch.setattr(inbox, "take", revoked_after)
    assert said(send(door, related(one, one), key=key)) == (202, 1, [0x0124])


def test_bodies_that_are_too_large_are_refused_and_what_came_before_is_named(door, one, monkeypatch):
    monkeypatch.setattr(requests, "STUDY_BYTES", len(one) + 500)

    def slowly():
        yield related(one, b"", end="")
        time.sleep(0.5)
        yield one

    assert said(send(door, slowly())) == (413, 1, [0xC000])
    monkeypatch.setattr(inbox, "MOST_BYTES", 1000)
    monkeypatch.setattr(requests, "STUDY_BYTES", 2**30)
    answer = send(door, related(one))
    assert said(answer) == (503, 0, [0xA700])
    assert "too large" in answer.headers["Warning"]


def test_without_room_on_the_disk_the_sender_is_asked_to_come_back(door, one, monkeypatch):
    monkeypatch.setattr(inbox, "LEAST_FREE", 2**60)
    answer = send(door, related(one))
    problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "60"


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(door):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.dcm", "w") as member:
        for _ in range(100):
            member.write(bytes(2**20))
    began = time.monotonic()
    assert said(send(door, related(stream.getvalue()))) == (409, 0, [0xC000])
    assert time.monotonic() - began < 10
    assert kept() == 0


def test_a_body_is_never_whole_in_memory(door, monkeypatch):
    most = 0
    write = inbox.Incoming.write

    def watched(file, content):
        nonlocal most
        most = max(most, len(content))
        return write(file, content)

    monkeypatch.setattr(inbox.Incoming, "write", watched)
    assert said(send(door, related(bytes(2**24)))) == (409, 0, [0xC000])
    assert most < 2**20


def test_other_methods_are_not_for_this_address(door):
    connection = http.client.HTTPConnection(door.url.removeprefix("http://"), timeout=20)
    connection.request("GET", f"/api/v1{PATH}")
    assert connection.getresponse().status == 405
    connection.close()
