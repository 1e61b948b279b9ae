"""The DICOM door: systems that may send get their studies read; everything else is refused with a reason."""

import contextlib
import io
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import CTImageStorage, JPEG2000Lossless
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification
from sqlalchemy import orm

from lungkit import config
from lungkit.clinic.records import jobs, routing
from lungkit.clinic.records.tables import Job, Reading, ReadingSource, ReceivedFile, SeriesSlice, Study
from lungkit.errors import LungkitError
from lungkit.gateway import dicom, inbox, worker
from lungkit.gateway.dicom import Settings
from tests.clinic.rows import count, events
from tests.gateway.conftest import Running

pytestmark = pytest.mark.usefixtures("rules")
needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not there (Debian: dcmtk)")


@pytest.fixture
def door(start_gateway, sqlite_store) -> Running:
    """A gateway with an open DICOM port, whose studies are never complete."""
    return start_gateway(sqlite_store, quiet=timedelta(hours=1), dicom=Settings(port=0))


@pytest.fixture
def scu(door):
    """A function: an association with the door, which may be rejected."""
    opened = []

    def associate(title: str = "SCANNER1", called: str = "LUNGKIT", **more):
        entity = AE(title)
        entity.add_requested_context(Verification)
        entity.add_requested_context(CTImageStorage, JPEG2000Lossless)
        opened.append(entity.associate("127.0.0.1", door.dicom_port, ae_title=called, **more))
        return opened[-1]

    yield associate
    for each in opened:
        if each.is_established:
            each.release()


@pytest.fixture
def one_slice(chest) -> pydicom.Dataset:
    return pydicom.dcmread(chest / "05.dcm")


def until(condition, seconds: float = 60):
    """What `condition` returns when that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def kept() -> list[str]:
    """Everything in the inbox that is a file."""
    return [path.name for path in config.inbox_dir().rglob("*") if path.is_file()]


# --- what is taken


@needs_dcmtk
def test_a_series_from_storescu_becomes_one_reading_of_the_series(start_gateway, sqlite_store, chest, monkeypatch):
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.2)
    door = start_gateway(sqlite_store, quiet=timedelta(seconds=1), dicom=Settings(port=0))
    command = [
        "storescu",
        "-aet",
        "SCANNER1",
        "-aec",
        "LUNGKIT",
        "-xv",
        "127.0.0.1",
        str(door.dicom_port),
        "+sd",
        chest,
    ]
    subprocess.run(command, check=True, timeout=60)
    assert count(sqlite_store, ReceivedFile) == 12
    until(lambda: jobs.counts(sqlite_store).get("done"))
    with sqlite_store.read() as db:
        job = db.scalar(sa.select(Job))
        reading = db.scalar(sa.select(Reading).options(orm.joinedload(Reading.study)))
        source = db.get(ReadingSource, reading.id, options=[orm.undefer(ReadingSource.headers)])
    assert (reading.id, reading.label) == (job.id, "Pneumonia")
    assert count(sqlite_store, SeriesSlice) == 12
    assert source.series_uid == job.series_uid
    assert count(sqlite_store, Study) == 1
    figures = door.ask("GET", "//metrics").text
    assert 'lungkit_gateway_instances_total{door="dicom",outcome="taken"} 12.0' in figures
    assert 'lungkit_gateway_studies_total{outcome="jobs"} 1.0' in figures


@needs_dcmtk
def test_echoscu_and_dcmsend_are_answered(door, chest):
    called = ["-aet", "SCANNER1", "-aec", "LUNGKIT", "127.0.0.1", str(door.dicom_port)]
    subprocess.run(["echoscu", *called], check=True, timeout=60)
    subprocess.run(["dcmsend", *called, "+sd", chest], check=True, timeout=60)
    assert count(door.store, ReceivedFile) == 12


def test_a_file_that_was_sent_before_is_answered_as_success_and_kept_once(scu, door, one_slice):
    association = scu()
    assert [association.send_c_store(one_slice).Status for _ in range(2)] == [0, 0]
    assert len(kept()) == count(door.store, ReceivedFile) == 1


# --- who is refused


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ({"title": "OTHER"}, (1, 1, 3)),
        ({"called": "OTHER"}, (1, 1, 7)),
        ({"title": "FAR"}, (1, 1, 3)),
        ({"title": "OFF"}, (1, 1, 3)),
    ],
)
def test_an_association_is_rejected_with_the_reason_and_noted_once_a_minute(scu, door, call, answer):
    with door.store.write() as db:
        routing.add_caller(db, "FAR", ["10.0.0.0/8"])
        routing.set_caller(db, routing.add_caller(db, "OFF").id, active=False)
    for _ in range(3):
        association = scu(**call)
        assert association.is_rejected
        refusal = association.acceptor.primitive
        assert (refusal.result, refusal.result_source, refusal.diagnostic) == answer
    (noted,) = events(door.store, "caller.refused")
    assert noted.detail["address"] == "127.0.0.1"


def test_strangers_cannot_fill_the_audit_trail(scu, door):
    for number in range(5):
        assert scu(f"STRANGER{number}").is_rejected
    assert len(events(door.store, "caller.refused")) == 1


def test_a_system_that_is_switched_off_in_the_middle_sends_nothing_more(scu, door, one_slice):
    association = scu()
    with door.store.write() as db:
        routing.set_caller(db, routing.list_callers(db)[0].id, active=False)
    assert association.send_c_store(one_slice).Status == 0x0124
    assert kept() == []


def test_an_error_while_it_is_decided_rejects(scu, door, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(dicom.routing, "admitted", fail)
    assert scu().is_rejected


def test_more_associations_than_are_served_are_rejected_for_now(scu, monkeypatch):
    monkeypatch.setattr(dicom, "MOST_ASSOCIATIONS", 1)
    assert scu().is_established
    refusal = scu().acceptor.primitive
    assert (refusal.result, refusal.result_source, refusal.diagnostic) == (2, 3, 2)


# --- what is refused


def test_without_room_on_the_disk_associations_wait_and_a_file_in_the_middle_gets_a700(scu, one_slice, monkeypatch):
    association = scu()
    monkeypatch.setattr(inbox, "LEAST_FREE", 2**60)
    answer = association.send_c_store(one_slice)
    assert (answer.Status, answer.ErrorComment[:15]) == (0xA700, "too little room")
    refusal = scu().acceptor.primitive
    assert (refusal.result, refusal.result_source, refusal.diagnostic) == (2, 3, 1)
    assert kept() == []


def test_a_file_that_is_too_large_is_not_kept(scu, one_slice, monkeypatch):
    monkeypatch.setattr(inbox, "MOST_BYTES", 1000)
    assert scu().send_c_store(one_slice).Status == 0xA700
    assert kept() == []


def test_a_file_that_cannot_be_understood_or_is_another_one_is_refused_and_the_association_lasts(scu, door, one_slice):
    association = scu()
    del one_slice.StudyInstanceUID
    assert association.send_c_store(one_slice).Status == 0xC000
    assert kept() == []
    assert association.send_c_echo().Status == 0
    assert 'outcome="refused"} 1.0' in door.ask("GET", "//metrics").text


def test_an_error_of_the_program_is_answered_and_nothing_is_kept(scu, one_slice, monkeypatch, caplog):
    def fail(*_, **__):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(inbox, "looked_at", fail)
    assert scu().send_c_store(one_slice).Status == 0x0110
    assert kept() == []
    assert "Invented" not in caplog.text


# --- connections


def _connect(door) -> socket.socket:
    return socket.create_connection(("127.0.0.1", door.dicom_port), timeout=20)


def _resources() -> tuple[int, int]:
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def test_ports_that_are_opened_and_closed_leave_no_thread_and_no_descriptor(door, scu):
    assert scu().send_c_echo().Status == 0
    before = _resources()
    for number in range(300):
        with _connect(door) as connection:
            if number % 3 == 1:
                connection.sendall(b"\x01\x00\x00\x00")
            if number % 3 == 2:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    until(lambda: all(now <= then + 2 for now, then in zip(_resources(), before, strict=True)), 30)
    assert scu().send_c_echo().Status == 0


def test_a_connection_that_asked_for_nothing_takes_no_ones_place_once_it_is_closed(door):
    with _connect(door):
        until(lambda: door.app.state.gateway.door._server.active_associations, 5)
    until(lambda: not door.app.state.gateway.door._server.active_associations, dicom.ACSE_SECONDS / 2)


def test_a_pdu_that_says_it_has_four_gigabytes_ends_the_connection(door):
    with _connect(door) as connection:
        connection.sendall(struct.pack(">BBI", 1, 0, 2**32 - 1) + bytes(1000))
        assert _is_closed(connection)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection, after what it still says."""
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_message_without_an_end_is_not_kept_in_memory(scu, door):
    association = scu()
    connection = association.dul.socket.socket
    part = b"\x01\x01" + bytes(100_000)  # of a command set, and not the last one
    pdv = struct.pack(">I", len(part)) + part
    with contextlib.suppress(OSError):
        for _ in range(40):
            connection.sendall(struct.pack(">BBI", 4, 0, len(pdv)) + pdv)
    until(lambda: not door.app.state.gateway.door._server.active_associations)
    assert scu().send_c_echo().Status == 0


def test_a_sender_that_does_not_wait_for_answers_opens_few_files(scu, one_slice, monkeypatch):
    open_files, most, take = set(), 0, inbox.take
    begin, close = inbox.Incoming.__init__, inbox.Incoming.close

    def counted(file):
        nonlocal most
        begin(file)
        open_files.add(file.name)
        most = max(most, len(open_files))

    def slow(*given, **more):
        time.sleep(0.05)
        return take(*given, **more)

    monkeypatch.setattr(inbox, "take", slow)
    monkeypatch.setattr(inbox.Incoming, "__init__", counted)
    monkeypatch.setattr(inbox.Incoming, "close", lambda file: (open_files.discard(file.name), close(file)))
    association = scu()
    (context,) = [one for one in association.accepted_contexts if one.abstract_syntax == CTImageStorage]
    for number in range(25):
        request = C_STORE()
        request.MessageID, request.Priority = number + 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, one_slice.SOPInstanceUID
        request.DataSet = io.BytesIO(encode(one_slice, False, True))
        association.dimse.send_msg(request, context.context_id)
    until(lambda: most and not open_files)
    assert most <= dicom.MOST_WAITING + 3


def test_more_connections_than_are_served_are_closed(door, monkeypatch):
    monkeypatch.setattr(dicom, "MOST_CONNECTIONS", 2)
    with _connect(door), _connect(door):
        until(lambda: len(door.app.state.gateway.door._server.active_associations) == 2)
        with _connect(door) as third:
            assert _is_closed(third)


def test_a_pdu_that_does_not_come_ends_the_connection(door, monkeypatch):
    monkeypatch.setattr(dicom, "DIMSE_SECONDS", 0.3)
    with _connect(door) as connection:
        connection.sendall(struct.pack(">BBI", 1, 0, 1000) + bytes(10))
        began = time.monotonic()
        assert _is_closed(connection)
        assert time.monotonic() - began < 5


def test_a_sender_that_breaks_off_leaves_nothing(scu, door, one_slice, monkeypatch):
    association = scu()
    started = threading.Event()
    write = inbox.Incoming.write
    monkeypatch.setattr(inbox.Incoming, "write", lambda *given: started.set() or write(*given))
    sent, send = [], association.dul.socket.send

    def cut(content: bytes) -> None:
        sent.append(content)
        send(content if len(sent) < 3 else content[: len(content) // 2])
        if len(sent) >= 3:
            association.dul.socket.socket.shutdown(socket.SHUT_RDWR)

    one_slice.add_new(0x00290010, "LO", "LUNGKIT")
    one_slice.add_new(0x00291000, "OB", bytes(500_000))
    monkeypatch.setattr(association.dul.socket, "send", cut)
    with contextlib.suppress(Exception):
        association.send_c_store(one_slice)
    assert started.wait(20)
    until(lambda: kept() == [], 30)
    assert count(door.store, ReceivedFile) == 0
    monkeypatch.undo()
    assert scu().send_c_echo().Status == 0


# --- TLS


@pytest.fixture
def certificates(tmp_path):
    """A function: certificate and key, signed by themselves."""

    def make(name: str):
        files = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]], capture_output=True,
        )  # fmt: skip
        if made.returncode:
            pytest.skip("openssl cannot make a certificate here")
        return files

    return make


def test_with_tls_only_systems_with_a_certificate_get_in_and_one_that_is_silent_holds_up_no_other(
    start_gateway, sqlite_store, certificates, chest
):
    own, scanner = certificates("gateway"), certificates("scanner")
    settings = Settings(port=0, tls_cert=own[0], tls_key=own[1], tls_ca=scanner[0])
    door = start_gateway(sqlite_store, quiet=timedelta(hours=1), dicom=settings)

    def answer(with_certificate: bool):
        context = ssl.create_default_context(cafile=str(own[0]))
        if with_certificate:
            context.load_cert_chain(*scanner)
        entity = AE("SCANNER1")
        entity.add_requested_context(Verification)
        association = entity.associate(
            "127.0.0.1", door.dicom_port, ae_title="LUNGKIT", tls_args=(context, "127.0.0.1")
        )
        try:
            return association.is_established and association.send_c_echo().Status
        finally:
            association.release()

    with _connect(door):  # says nothing
        assert answer(True) == 0
        assert answer(False) is False


def test_settings_that_cannot_be_are_refused_in_words(sqlite_store, tmp_path, certificates):
    with pytest.raises(LungkitError, match="AE title"):
        Settings(port=0, ae_title="A" * 17)
    with pytest.raises(LungkitError, match="--dicom-tls-ca needs"):
        Settings(port=0, tls_ca=tmp_path / "ca.pem").tls()
    own = certificates("gateway")
    with pytest.raises(LungkitError, match="no file of certificates"):
        Settings(port=0, tls_cert=own[0], tls_key=own[1], tls_ca=own[1]).tls()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(LungkitError, match="cannot be opened"):
        dicom.Door(sqlite_store, dicom.Metrics(), Settings(port=taken.getsockname()[1]))


def test_a_port_that_is_closed_is_named_by_the_health_check(door):
    door.app.state.gateway.door.close()
    assert "the DICOM port is not open" in door.ask("GET", "//health/ready").text


def test_connections_in_a_handshake_count_like_those_that_have_greeted(
    start_gateway, sqlite_store, certificates, monkeypatch
):
    own = certificates("gateway")
    settings = Settings(port=0, tls_cert=own[0], tls_key=own[1])
    secured = start_gateway(sqlite_store, dicom=settings)
    monkeypatch.setattr(dicom, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(dicom, "ACSE_SECONDS", 30.0)  # none of them ends by itself
    opened = [_connect(secured) for _ in range(3)]
    try:
        until(lambda: secured.app.state.gateway.door._server._new == 3)
        with _connect(secured) as fourth:
            assert _is_closed(fourth)
    finally:
        for each in opened:
            each.close()
    until(lambda: secured.app.state.gateway.door._server._new == 0)
