"""What is sent of readings: made from the records, to servers that may be away, hostile, or of another mind."""

import io
import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from fhir.resources.R4B.diagnosticreport import DiagnosticReport
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)

from lungkit.clinic.app import describe
from lungkit.clinic.app.reading import AGAIN, REPLACED, heading
from lungkit.clinic.records import dispatches, pixels, routing
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.dispatches import DispatchAccess
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.stacks import Stack
from lungkit.clinic.records.tables import NOT_ASSESSABLE, Dispatch, Patient, now
from lungkit.data import images, phantom, turning
from lungkit.errors import LungkitError
from lungkit.gateway import objects, sending, store_scu, web_client
from lungkit.gateway.addresses import NotSent
from lungkit.gateway.deliveries import Delivery, NoSource
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.sending import Sender
from tests.gateway.conftest import problem
from tests.gateway.readings import NAME, NUMBER, Readings
from tests.gateway.test_objects import ADULT, HOSTILE, changed
from tests.test_cli import lungkit  # noqa: F401

UID = "1.2.3"
STORED = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [UID]}}]}}


def failed(reason: int) -> dict:
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}


@pytest.fixture
def readings(sqlite_store, cheap_passwords) -> Readings:
    return Readings(sqlite_store)


@pytest.fixture
def sender(sqlite_store) -> Sender:
    return Sender(sqlite_store, Metrics())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[bytes]:
    """The slices of a phantom's series."""
    folder = tmp_path_factory.mktemp("series")
    made = phantom.make_patient("P1", "Pneumonia", seed=3, slices=3, size=64)
    return [phantom.write_dicom(one, folder / f"{one.index}.dcm").read_bytes() for one in made]


def rows(readings: Readings) -> list[dispatches.DispatchRow]:
    with readings.store.read() as db:
        return dispatches.latest(db)


# --- headers in the records


@pytest.mark.parametrize("tags", [{}, HOSTILE, {"PatientID": "A\\B", "PatientName": "Ünsal^Ayşe=김^희중"}])
def test_headers_say_the_same_after_they_were_in_the_records(files, tags):
    headers = [objects.source_header(changed(file, **tags)) for file in files]
    before, after = objects.source_of(headers), objects.source_of(objects.unpacked(objects.packed(headers)))
    assert after.headers == before.headers
    assert after.notes == before.notes
    assert before.notes or not tags.get("StudyDate")


def test_only_what_objects_need_is_in_the_records(files):
    text = zlib.decompress(objects.packed([objects.source_header(changed(files[0], InstitutionName="St Elsewhere"))]))
    assert b"Elsewhere" not in text
    (kept,) = objects.unpacked(objects.packed([pydicom.dcmread(io.BytesIO(files[0]))]))
    assert {element.keyword for element in kept} <= {*objects.source.KEPT}


@pytest.mark.parametrize(
    "content",
    [b"", b"no zlib", zlib.compress(b"no JSON"), zlib.compress(b'[{"00100010": 7}]'), zlib.compress(b"[7]"),
     zlib.compress(b"[]")[:-2], zlib.compress(b'[{"zz": {"vr": "UT", "Value": ["x"]}}]'),
     zlib.compress(b'[{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "A"}]}}]')],
)  # fmt: skip
def test_damaged_headers_are_named(content):
    with pytest.raises(objects.SourceRefused, match="restore a backup"):
        objects.unpacked(content)


def test_headers_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr("lungkit.gateway.objects.source._MOST_UNPACKED", 10_000)
    with pytest.raises(objects.SourceRefused, match="damaged"):
        objects.unpacked(zlib.compress(b"[" + b" " * 20_000 + b"]"))


# --- objects from the records


@pytest.fixture
def delivery(readings, files, prediction):
    """A function: what is made of a reading of these slices, in a fresh look at the records."""

    def look(sent=1, reading_id: str = "") -> Delivery:
        reading_id = reading_id or readings.save(files[:sent], prediction())
        return Delivery(readings.doctor(f"doctor{next(look.number)}"), reading_id)

    look.number = itertools.count()
    return look


def test_the_report_of_the_records_is_the_one_that_was_sent_before(delivery):
    first = delivery()
    again = delivery(reading_id=first.case.reading_id)
    assert objects.encoded(first.report()) == objects.encoded(again.report())
    assert objects.encoded(first.capture()) == objects.encoded(again.capture())


def test_a_review_names_the_report_before_it_and_the_next_review_names_that_one(delivery, readings):
    told = delivery()
    reading, doctor = told.case.reading_id, readings.doctor()
    doctor.review(reading, "Normal")
    doctor.review(reading, "", kind=NOT_ASSESSABLE)
    one, two = readings.review_ids(reading)
    told = delivery(reading_id=reading)
    reports = [told.report(), told.reviewed(one), told.reviewed(two)]
    assert [named(report) for report in reports] == [None, reports[0].SOPInstanceUID, reports[1].SOPInstanceUID]
    assert told.reviewed().SOPInstanceUID == reports[2].SOPInstanceUID


def named(report: pydicom.Dataset) -> str | None:
    """The instance that a report names as the one before it."""
    before = report.get("PredecessorDocumentsSequence")
    return before and before[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID


def test_a_reading_that_supersedes_another_names_its_report(delivery, readings, files, prediction):
    first = delivery(2)
    second = delivery(reading_id=readings.save(files[:3], prediction()))
    assert named(first.report()) is None
    assert named(second.report()) == first.report().SOPInstanceUID
    assert len(second.source.instances) == 3


def test_a_doctor_sees_that_a_reading_is_replaced_by_a_later_one(delivery, readings, files, prediction):
    first, second = delivery(2).case.reading_id, readings.save(files[:3], prediction())
    doctor = readings.doctor()
    rows = {row.reading_id: row for row in doctor.worklist()}
    assert [describe.review_words(rows[one]) for one in (first, second)] == [
        "Replaced by a later reading", "Not reviewed"
    ]  # fmt: skip
    stack = Stack(
        reading_id=first, study_id="", slices=2, spacing=(1.0, 1.0, 1.0), positions=(0.0, 1.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), readable="volume", findings=(),
    )  # fmt: skip
    for series, words in ((stack, REPLACED), (None, AGAIN)):
        assert words in heading(doctor.case(first), series)
        assert words not in heading(doctor.case(second), series)


def test_a_reading_that_supersedes_another_replaces_its_report_in_fhir(delivery, readings, files, prediction):
    first, second = delivery(2), delivery(reading_id=readings.save(files[:3], prediction()))
    before, after = (json.loads(told.bundle({}))["entry"][-1]["resource"] for told in (first, second))
    DiagnosticReport.model_validate(after)
    assert "extension" not in before
    (replaces,) = after["extension"]
    assert replaces["url"].endswith("/diagnosticReport-replaces")
    assert replaces["valueReference"]["identifier"] in before["identifier"]


def test_the_capture_of_a_series_has_no_heat_map_whose_slice_is_not_known(delivery):
    told = delivery(2)
    assert told.result.heat == {} and told.result.instances == ()
    assert told.capture().SourceImageSequence[0].ReferencedSOPInstanceUID == told.source.instances[0]


def test_the_heat_map_of_one_image_is_that_image_s(delivery):
    told = delivery()
    assert [*told.result.heat] == [*told.result.instances] == [*told.source.instances]


def test_a_ct_is_drawn_as_the_model_saw_it(delivery):
    told = delivery()
    assert told.case.units == "HU"
    assert told.result.seen == "CT seen at level -600 HU, width 1500 HU"
    assert np.ptp(told.capture().pixel_array) > 100


def test_report_and_capture_can_be_fetched(gateway, files, prediction):
    reading = Readings(gateway.store).save(files[:1], prediction())
    admin = gateway.make_key("admin", name="ops")
    for path, kind in (("sr", Comprehensive3DSRStorage), ("capture", SecondaryCaptureImageStorage)):
        answer = gateway.ask("GET", f"/results/{reading}/{path}", admin)
        assert answer.headers["Content-Type"] == "application/dicom"
        assert pydicom.dcmread(io.BytesIO(answer.content)).SOPClassUID == kind
        problem(gateway.ask("GET", f"/results/{reading}/{path}"), 404, "not-found")  # of another program


def test_no_object_is_made_of_an_image_that_did_not_come_as_dicom(gateway, png):
    reading = gateway.predict(png).json()["reading_id"]
    for path in ("sr", "capture"):
        told = problem(gateway.ask("GET", f"/results/{reading}/{path}"), 404, "not-found")
        assert "did not come as DICOM" in told["detail"]


# --- servers that are not as they should be


@contextmanager
def serving(talk, tls: ssl.SSLContext | None = None):
    """A server on loopback; talk(connection) answers each. Gives its port and the number of connections it had."""
    listening, had = socket.create_server(("127.0.0.1", 0)), []

    def run() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            had.append(line)
            threading.Thread(target=answer, args=(line,), daemon=True).start()

    def answer(line: socket.socket) -> None:
        with suppress(OSError), tls.wrap_socket(line, server_side=True) if tls else line as open_line:
            talk(open_line)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield listening.getsockname()[1], had
    finally:
        listening.close()
        for line in had:
            line.close()


def request_of(line: socket.socket) -> bytes:
    """A whole request over HTTP."""
    got = _more(line)
    while b"\r\n\r\n" not in got:
        got += _more(line)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += _more(line)
    return head + b"\r\n\r\n" + body


def _more(line: socket.socket) -> bytes:
    """What comes next. Raises OSError at the end: a thread that went on reading would take all of a processor."""
    if not (part := line.recv(65536)):
        raise ConnectionError("the other side has closed the connection")
    return part


def answering(status: int, body: bytes | dict | list = b"", **headers: str):
    """How a server talks that gives every request this answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", *(f"{n}: {v}" for n, v in headers.items())]
    return lambda line: (request_of(line), line.sendall("\r\n".join([*lines, "", ""]).encode() + content))


def stow(port: int, **address: str) -> str:
    return web_client.stow({"url": f"http://127.0.0.1:{port}/web"} | address, UID, b"file")


def refused(send) -> NotSent:
    with pytest.raises(NotSent) as caught:
        send()
    return caught.value


@pytest.mark.parametrize(
    ("talk", "words", "final"),
    [
        (answering(200, failed(0x0122)), "it does not take objects of this class", True),
        (answering(200, STORED | failed(0xA700)), "A700H", False),
        (answering(202, failed(0x0110)), "could not process", False),
        (answering(409, failed(0xC000)), "C000H", True),
        (answering(409, b""), "not stored", True),
        (answering(200, {}), "does not say that the object was stored", False),
        (answering(200, b"<html>Sign in</html>"), "does not say", False),
        (answering(200, b"[" * 100_000), "does not say", False),
        (answering(200, {"00081199": {"Value": [{"00081155": {"Value": ["9.9"]}}, 7]}}), "does not say", False),
        (answering(400), "400", True),
        (answering(401), "the token is missing or not valid", False),
        (answering(404), "no such address", True),
        (answering(413), "too large", True),
        (answering(503), "503", False),
        (lambda line: (request_of(line), line.sendall(b"SSH-2.0-OpenSSH\r\n")), "does not answer as a web", False),
        (lambda line: line.close(), "cannot be reached", False),
    ],
)
def test_an_answer_over_the_web_is_understood(talk, words, final):
    with serving(talk) as (port, _):
        error = refused(lambda: stow(port))
    assert words in str(error)
    assert error.final == final


def test_what_a_server_stored_is_noted_with_its_warning():
    warned = {"00081199": {"Value": [STORED["00081199"]["Value"][0] | {"00081196": {"Value": [0xB000]}}]}}
    for body, note in ((STORED, ""), ([STORED], ""), (warned, "stored with the warning B000H")):
        with serving(answering(200, body)) as (port, _):
            assert stow(port) == note


def test_the_file_is_sent_as_a_part_of_a_body_whose_type_says_so():
    got = []
    with serving(lambda line: (got.append(request_of(line)), answer_with(line, STORED))) as (port, _):
        stow(port)
    head, _, body = got[0].partition(b"\r\n\r\n")
    boundary = re.search(rb'multipart/related; type="application/dicom"; boundary=(\S+)', head)[1]
    assert head.startswith(b"POST /web/studies HTTP/1.1")
    assert body == b"--%b\r\nContent-Type: application/dicom\r\n\r\nfile\r\n--%b--\r\n" % (boundary, boundary)


def answer_with(line: socket.socket, body: dict) -> None:
    content = json.dumps(body).encode()
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)


def test_a_redirect_is_not_followed():
    with serving(answering(200, STORED)) as (elsewhere, had):
        for status in (301, 302, 307, 308):
            there = answering(status, Location=f"http://127.0.0.1:{elsewhere}/web/studies")
            with serving(there) as (port, _):
                error = refused(lambda port=port: stow(port))
            assert "redirect" in str(error) and error.final
    assert not had


def endless(line: socket.socket) -> None:
    request_of(line)
    line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        line.sendall(b"x" * 65536)


def endless_headers(line: socket.socket) -> None:
    request_of(line)
    line.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        line.sendall(b"X: y\r\n" * 1000)


def endless_continue(line: socket.socket) -> None:
    request_of(line)
    while True:
        line.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def dripping(line: socket.socket) -> None:
    while True:
        line.sendall(b"H")
        time.sleep(0.02)


def silent(line: socket.socket) -> None:
    time.sleep(60)


@pytest.mark.parametrize("talk", [endless, endless_headers, endless_continue, dripping, silent])
def test_a_server_that_never_ends_is_left(talk, monkeypatch):
    monkeypatch.setattr(web_client, "DEADLINE", 1.0)
    monkeypatch.setattr(web_client, "SILENCE_SECONDS", 0.5)
    began = time.monotonic()
    with serving(talk) as (port, _):
        error = refused(lambda: stow(port))
    assert not error.final
    assert time.monotonic() - began < 10


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> dict[str, str]:
    """A certificate for localhost that no one else signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made = {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", made["key"], "-out", made["cert"]],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@pytest.fixture
def server_tls(certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate["cert"], certificate["key"])
    return context


def test_a_certificate_counts_only_if_it_is_trusted_and_has_the_name(certificate, server_tls):
    trusted = {"tls_ca": certificate["cert"]}
    with serving(answering(200, STORED), server_tls) as (port, _):
        assert stow(port, url=f"https://localhost:{port}/web", **trusted) == ""
        for address in ({"url": f"https://localhost:{port}"}, {"url": f"https://127.0.0.1:{port}", **trusted}):
            assert "certificate is not accepted" in str(refused(lambda a=address: stow(port, **a)))


def test_a_token_is_read_at_each_use_and_kept_from_others(tmp_path):
    file, got = tmp_path / "token", []
    with serving(lambda line: (got.append(request_of(line)), answer_with(line, STORED))) as (port, _):
        for secret in ("first", "second\n"):
            file.write_text(secret)
            file.chmod(0o600)
            stow(port, token_file=str(file))
        file.chmod(0o640)
        assert "chmod 600" in str(refused(lambda: stow(port, token_file=str(file))))
        file.chmod(0o600)
        for wrong in ("", "two words", "line\nline", "x" * 20_000):
            file.write_text(wrong)
            assert "no token" in str(refused(lambda: stow(port, token_file=str(file))))
        assert "cannot be read" in str(refused(lambda: stow(port, token_file=str(tmp_path / "none"))))
        file.write_text("first")
        clear = {"url": "http://pacs.example/web", "token_file": str(file)}
        assert "only sent over https" in str(refused(lambda: stow(port, **clear)))
    assert [re.search(rb"Authorization: (.*)\r", request)[1] for request in got] == [b"Bearer first", b"Bearer second"]


def test_a_fhir_server_has_to_say_that_everything_is_stored():
    done = {"response": {"status": "201 Created"}}
    answers = {
        "": {"resourceType": "Bundle", "entry": [done, {"response": {"status": "200"}}]},
        "every resource": {"resourceType": "Bundle", "entry": [done, {"response": {"status": "422"}}]},
        "say": {"resourceType": "OperationOutcome"},
        "that": [],
    }
    for words, body in answers.items():
        with serving(answering(200, body)) as (port, _):
            address = {"url": f"http://127.0.0.1:{port}/fhir"}
            if not words:
                assert web_client.transact(address, b"{}") == ""
            else:
                assert words in str(refused(lambda a=address: web_client.transact(a, b"{}")))
    with serving(answering(412)) as (port, _):
        assert refused(lambda: web_client.transact({"url": f"http://127.0.0.1:{port}"}, b"{}")).final


# --- DICOM systems


@contextmanager
def dicom_server(status: int = 0, classes=(Comprehensive3DSRStorage,), **settings):
    entity = AE("PACS")
    for sop_class in (*classes, "1.2.840.10008.1.1"):
        entity.add_supported_context(sop_class)
    tls = settings.pop("ssl_context", None)
    for name, value in settings.items():
        setattr(entity, name, value)
    got = []

    def stored(event: evt.Event) -> int:
        got.append(event.dataset)
        return status

    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, stored)], ssl_context=tls
    )
    try:
        yield {"host": "127.0.0.1", "port": server.socket.getsockname()[1], "ae_title": "PACS"}, got
    finally:
        server.shutdown()


@pytest.fixture
def report(delivery) -> pydicom.Dataset:
    return delivery().report()


@pytest.mark.parametrize(
    ("status", "words", "final"),
    [(0xA700, "out of resources", False), (0x0110, "could not process", False), (0xA900, "does not match", True),
     (0xC123, "cannot understand", True), (0x0122, "does not take", True), (0x0124, "not authorised", True)],
)  # fmt: skip
def test_a_status_of_c_store_that_is_no_success_is_understood(report, status, words, final):
    with dicom_server(status) as (address, _):
        error = refused(lambda: store_scu.store(address, "LUNGKIT", report))
    assert words in str(error) and f"{status:04X}H" in str(error)
    assert error.final == final


@pytest.mark.parametrize(
    ("status", "note"),
    [(0, ""), (0xB000, "stored with the warning B000H"), (0xB007, "stored with the warning B007H"),
     (0x0111, "it had the object already")],
)  # fmt: skip
def test_a_status_of_c_store_that_is_a_success_is_noted(report, status, note):
    with dicom_server(status) as (address, got):
        assert store_scu.store(address, "LUNGKIT", report) == note
        store_scu.echo(address, "LUNGKIT")
    assert [one.SOPInstanceUID for one in got] == [report.SOPInstanceUID]


def test_a_system_that_refuses_us_or_our_objects_is_named(report):
    with dicom_server(classes=[]) as (address, _):
        error = refused(lambda: store_scu.store(address, "LUNGKIT", report))
        assert "takes no objects of the class Comprehensive 3D SR" in str(error) and error.final
    with dicom_server(require_calling_aet=["OTHER"]) as (address, _):
        error = refused(lambda: store_scu.store(address, "LUNGKIT", report))
        assert "does not know our AE title, 'LUNGKIT'" in str(error) and not error.final
    with dicom_server(require_called_aet=True) as (address, _):
        error = refused(lambda: store_scu.store(address | {"ae_title": "ELSE"}, "LUNGKIT", report))
        assert "another AE title than 'ELSE'" in str(error)
    assert "nothing answers" in str(refused(lambda: store_scu.store(address, "LUNGKIT", report)))


taken = [0]  # bytes that were taken of an endless answer


def huge_pdu(line: socket.socket) -> None:
    line.sendall(b"\x02\x00\xff\xff\xff\xff")
    endless_bytes(line)


def endless_bytes(line: socket.socket) -> None:
    while True:
        line.sendall(b"\x00" * 65536)
        taken[0] += 65536


@pytest.mark.parametrize("talk", [huge_pdu, endless_bytes, dripping, silent, lambda line: line.close()])
def test_a_dicom_system_that_never_ends_is_left(report, talk, monkeypatch):
    monkeypatch.setattr(store_scu, "DEADLINE", 2.0)
    monkeypatch.setattr(store_scu, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(store_scu, "SILENCE_SECONDS", 1.0)
    began, taken[0] = time.monotonic(), 0
    with serving(talk) as (port, _):
        address = {"host": "127.0.0.1", "port": port, "ae_title": "PACS"}
        assert not refused(lambda: store_scu.store(address, "LUNGKIT", report)).final
    assert time.monotonic() - began < 20
    assert taken[0] < 2**25  # the buffers of two sockets


def test_dicom_over_tls_needs_a_certificate_that_is_trusted(report, certificate, server_tls, tmp_path):
    with dicom_server(ssl_context=server_tls) as (address, got):
        here = address | {"host": "localhost"}
        assert store_scu.store(here | {"tls_ca": certificate["cert"]}, "LUNGKIT", report) == ""
        wrong = [
            here | {"tls_cert": certificate["cert"], "tls_key": certificate["key"]},  # trusts the system's only
            address | {"tls_ca": certificate["cert"]},  # another name
            here | {"tls_ca": str(tmp_path / "none.pem")},
        ]
        for one in wrong:
            assert re.search("TLS", str(refused(lambda a=one: store_scu.store(a, "LUNGKIT", report))))
    assert len(got) == 1


# --- the list


def test_a_server_is_asked_again_no_sooner_than_it_wants(readings, sender, files, prediction):
    with serving(answering(503, **{"Retry-After": "7200"})) as (port, _):
        readings.destination("web", "stow", {"url": f"http://127.0.0.1:{port}"}, ["report"])
        readings.save(files[:1], prediction())
        assert sender.send_next()
    (row,) = rows(readings)
    assert (row.state, row.tries) == ("queued", 1)
    assert timedelta(minutes=119) < row.due_at - now() < timedelta(minutes=121)


def test_a_system_that_is_away_does_not_hold_up_the_others(readings, sender, files, prediction):
    with serving(answering(503)) as (away, tried), serving(answering(404)) as (port, _):
        readings.destination("away", "stow", {"url": f"http://127.0.0.1:{away}"})
        readings.destination("here", "stow", {"url": f"http://127.0.0.1:{port}"})
        readings.save(files[:1], prediction())
        while sender.send_next():
            pass
        assert len(tried) == 1  # of two objects: the other waits, and it does not count as a try
    assert sorted((row.state, row.tries) for row in rows(readings)) == [
        ("failed", 1), ("failed", 1), ("queued", 0), ("queued", 1)
    ]  # fmt: skip


def test_no_reason_names_a_patient_even_if_the_server_does(readings, sender, files, prediction):
    said = f"{NAME} {NUMBER} is not known here".encode()
    talks = [answering(status, said) for status in (200, 400, 409, 422, 500)]
    with serving(lambda line: talks[len(had) % len(talks)](line)) as (port, had):
        for number in range(len(talks)):
            readings.destination(f"web{number}", "stow", {"url": f"http://127.0.0.1:{port}"}, ["report"])
        readings.destination("hl7", "hl7", {"host": "127.0.0.1", "port": rejecting(said)})
        readings.save(files[:1], prediction())
        while sender.send_next():
            pass
    told = rows(readings)
    assert len(told) == 6 and all(row.reason for row in told)
    assert not [row.reason for row in told if NAME in row.reason or NUMBER in row.reason]


def rejecting(words: bytes) -> int:
    """The port of an HL7 receiver that rejects one message."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listening, listening.accept()[0] as line:
            control = line.recv(65536).split(b"|")[9]
            line.sendall(b"\x0bMSH|^~\\&|\rMSA|AR|" + control + b"|" + words + b"\r\x1c\r")

    threading.Thread(target=run, daemon=True).start()
    return listening.getsockname()[1]


def test_fhir_and_hl7_get_the_reading_its_review_and_its_withdrawal(readings, sender, files, prediction):
    with record_and_ris(readings) as (bundles, messages):
        reading = readings.save(files[:1], prediction())
        while sender.send_next():
            pass
        doctor = readings.doctor()
        doctor.review(reading, "Pneumonia")
        while sender.send_next():
            pass
        doctor.withdraw(reading, f"of a brother of {NAME}")
        while sender.send_next():
            pass
    assert {row.state for row in rows(readings)} == {"done"}
    assert {row.what for row in rows(readings)} >= {"bundle", "review as message", "withdrawal as bundle"}
    kinds = [[entry["resource"]["resourceType"] for entry in bundle["entry"]] for bundle in bundles]
    assert all("DiagnosticReport" in one and "ImagingStudy" in one for one in kinds)
    statuses = [bundle["entry"][-1]["resource"]["status"] for bundle in bundles]
    assert statuses == ["preliminary", "final", "entered-in-error"]
    assert "brother" not in json.dumps(bundles[-1]) and "brother" not in messages[-1]
    assert "urn:oid:1.2.3" in json.dumps(bundles[0])
    for message, status in zip(messages, "PFC", strict=True):
        assert f"|RAD|{status}" in message
    assert "|RIS|" in messages[0].split("\r")[0]


def test_a_withdrawal_goes_only_where_a_result_may_have_arrived(readings, files, prediction):
    readings.destination("record", "fhir", {"url": "http://127.0.0.1:9/fhir"})
    readings.destination("pacs", "stow", {"url": "http://127.0.0.1:9"}, ["report"])
    waits, begun = readings.save(files[:1], prediction()), readings.save(files[1:2], prediction())
    with readings.store.write() as db:
        db.execute(sa.text("UPDATE dispatches SET tries = 1 WHERE reading_id = :id"), {"id": begun})
    readings.doctor().withdraw(waits, "by mistake")  # both are of one series
    left = sorted((row.reading_id, row.what) for row in rows(readings) if row.state == "queued")
    assert left == [(begun, "withdrawal as bundle"), (begun, "withdrawal as rejection note")]


def test_a_pacs_gets_one_note_that_rejects_what_it_has_of_a_withdrawn_image(readings, sender, files, prediction):
    kept = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, KeyObjectSelectionDocumentStorage)
    with dicom_server(classes=kept) as (address, got):
        readings.destination("pacs", "dicom", address, ["report", "capture", "segmentation"])
        reading, doctor = readings.save(files[:1], prediction()), readings.doctor()
        with readings.store.write() as db:
            db.execute(sa.update(Dispatch).where(Dispatch.object == "segmentation").values(state="cancelled"))
        doctor.review(reading, "Pneumonia")
        while sender.send_next():
            pass
        *had, _ = *got, doctor.withdraw(reading, f"of a brother of {NAME}")
        while sender.send_next():
            pass
    told = [(row.state, row.reason) for row in rows(readings) if row.what == "withdrawal as rejection note"]
    assert told == [("done", "")]
    assert len(had) == 3
    (note,) = got[3:]
    named = [item.ReferencedSOPSequence[0] for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    assert {one.ReferencedSOPInstanceUID for one in named} == {one.SOPInstanceUID for one in had}
    assert "brother" not in str(note)


def test_a_withdrawal_waits_for_what_is_being_sent_and_for_systems_that_are_off(readings, files, prediction):
    readings.destination("record", "fhir", {"url": "http://127.0.0.1:9/fhir"})
    off = readings.destination("ris", "hl7", {"host": "127.0.0.1", "port": 9, "application": "RIS"})
    reading = readings.save(files[:1], prediction())
    until = now() + timedelta(minutes=3)
    with readings.store.write() as db:
        running = {"state": "running", "lease": "x", "due_at": until, "tries": 1}
        db.execute(sa.update(Dispatch).where(Dispatch.object == "bundle").values(**running))
        db.execute(sa.update(Dispatch).where(Dispatch.object == "message").values(state="failed", tries=1))
        routing.set_destination(db, off, False)
    doctor = readings.doctor()
    assert doctor.before_correction(reading)[0] == 1, "what is being sent may arrive"
    doctor.withdraw(reading, "by mistake")
    waits = {row.object: row.due_at for row in rows(readings) if row.state == "queued"}
    assert waits["bundle"] == until and waits["message"] <= now()
    assert dispatches.claim(readings.store) is None
    with readings.store.write() as db:
        routing.set_destination(db, off, True)
    assert dispatches.claim(readings.store).object == "message"


def test_a_result_of_a_withdrawn_image_is_not_sent_again_and_its_withdrawal_is(readings, files, prediction):
    readings.destination("record", "fhir", {"url": "http://127.0.0.1:9/fhir"})
    reading = readings.save(files[:1], prediction())
    with readings.store.write() as db:
        db.execute(sa.update(Dispatch).values(tries=1))
    readings.doctor().withdraw(reading, "by mistake")
    result, told = sorted(rows(readings), key=lambda row: row.review_id)
    with readings.store.write() as db:
        dispatches.give_up(db, told.id)
        with pytest.raises(LungkitError, match="was withdrawn, so the result is not sent any more"):
            dispatches.again(db, result.id)
        dispatches.again(db, told.id)
    assert {row.id: row.state for row in rows(readings)} == {result.id: "cancelled", told.id: "queued"}


OF_THE_FILE = ("capture", "segmentation")


@pytest.mark.parametrize("turned", [True, False])
def test_what_is_read_again_goes_to_the_systems_that_got_the_first_reading(readings, files, prediction, turned):
    readings.destination("pacs", "stow", {"url": "http://127.0.0.1:9"}, ["report", *OF_THE_FILE])
    readings.destination("record", "fhir", {"url": "http://127.0.0.1:9/fhir"})
    first, doctor = readings.save(files[:1], prediction()), readings.doctor()
    case = doctor.case(first)
    image = pixels.image_of(case.pixels, case.units, case.kind, case.tags)
    read = turning.upright(image, (True, 0)) if turned else image
    second = doctor.save_again(first, read, prediction()).reading_id
    doctor.review(second, "Pneumonia")
    listed = {row.what: row.state for row in rows(readings) if row.reading_id == second}
    made = dict.fromkeys(OF_THE_FILE, "cancelled" if turned else "queued")
    assert listed == made | dict.fromkeys(("report", "bundle", "review as report", "review as bundle"), "queued")
    assert all("turned" in row.reason for row in rows(readings) if row.state == "cancelled")
    before, after = (Delivery(readings.doctor(name), one) for name, one in (("anna", first), ("bert", second)))
    assert named(after.report()) == before.report().SOPInstanceUID
    (replaces,) = json.loads(after.bundle({}))["entry"][-1]["resource"]["extension"]
    assert replaces["url"].endswith("/diagnosticReport-replaces")
    for kind in OF_THE_FILE if turned else ():
        with pytest.raises(NoSource, match="turned before it was read"):
            after.dicom(kind)
    third = doctor.save_again(second, read, prediction()).reading_id  # by another model, and not turned any more
    of_third = {row.what: row.state for row in rows(readings) if row.reading_id == third}
    assert {kind: of_third[kind] for kind in OF_THE_FILE} == made


@contextmanager
def record_and_ris(readings) -> Iterator[tuple[list[dict], list[str]]]:
    """A FHIR server and an HL7 receiver that take everything, and what they got."""
    bundles, messages = [], []
    done = {"resourceType": "Bundle", "entry": [{"response": {"status": "201"}}]}

    def fhir(line: socket.socket) -> None:
        bundles.append(json.loads(request_of(line).partition(b"\r\n\r\n")[2]))
        answer_with(line, done)

    def hl7(line: socket.socket) -> None:
        messages.append(line.recv(65536).decode())
        line.sendall(b"\x0bMSH|^~\\&|\rMSA|AA|" + messages[-1].split("|")[9].encode() + b"\r\x1c\r")

    with serving(fhir) as (web, _), serving(hl7) as (port, _):
        fhir_address = {"url": f"http://127.0.0.1:{web}/fhir", "patient_numbers": "urn:oid:1.2.3"}
        readings.destination("record", "fhir", fhir_address)
        readings.destination("ris", "hl7", {"host": "127.0.0.1", "port": port, "application": "RIS"})
        yield bundles, messages


def patients_of(bundle: dict) -> list[str]:
    """The numbers of the patients whom a bundle names."""
    of = [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == "Patient"]
    return [patient["identifier"][0]["value"] for patient in of]


def another_patient(doctor, files, prediction) -> str:
    """The id of the patient T-2, who has an image too."""
    image = images.read(files[-1], "the image")
    saved = doctor.save_case(NewPatient("T-2", "Other Person"), image, "f" * 64, prediction())
    return doctor.case(saved.reading_id).patient.id


def test_of_a_series_with_late_images_both_readings_are_withdrawn_and_moved(readings, files, prediction):
    first, second = readings.save(files[:1], prediction()), readings.save(files[:2], prediction())
    doctor = readings.doctor()
    assert (doctor.case(first).superseded, doctor.case(second).superseded) == (True, False)
    doctor.move(second, another_patient(doctor, files, prediction), "of another person")
    assert [doctor.case(one).patient.number for one in (first, second)] == ["T-2", "T-2"]
    assert doctor.case(first).superseded
    doctor.withdraw(first, "by mistake")
    assert all(doctor.case(one).corrections.withdrawn for one in (first, second))


def test_a_withdrawal_goes_where_a_result_may_be_although_an_administrator_sends_it_again(readings, files, prediction):
    readings.destination("record", "fhir", {"url": "http://127.0.0.1:9/fhir"})
    reading = readings.save(files[:1], prediction())
    with readings.store.write() as db:
        db.execute(sa.text("UPDATE dispatches SET tries = 9, state = 'failed'"))
        dispatches.again(db, db.scalar(sa.text("SELECT id FROM dispatches")))
    readings.doctor().withdraw(reading, "by mistake")
    assert [row.what for row in rows(readings) if row.state == "queued"] == ["withdrawal as bundle"]


def test_after_a_move_a_result_is_taken_back_from_the_patient_before_and_told_of_the_right_one(
    readings, sender, files, prediction
):
    with record_and_ris(readings) as (bundles, messages):
        reading, doctor = readings.save(files[:1], prediction()), readings.doctor()
        while sender.send_next():
            pass
        doctor.move(reading, another_patient(doctor, files, prediction), f"not of {NAME}")
        while sender.send_next():
            pass
    assert {row.what for row in rows(readings)} == {"bundle", "message", "move as bundle", "move as message"}
    assert {row.state for row in rows(readings)} == {"done"}
    told = [(patients_of(one), one["entry"][-1]["resource"]["status"]) for one in bundles]
    assert told == [(["T-1"], "preliminary"), (["T-1"], "entered-in-error"), (["T-2"], "preliminary")]
    assert len({one["entry"][-1]["request"]["url"] for one in bundles}) == 1, "the server replaces its report"
    first, back, right = messages
    assert [NUMBER in first, NUMBER in back, NUMBER in right] == [True, True, False]
    assert "T-2" in right and "Other Person" in right and "|W" not in right
    assert set(re.findall(r"\rOBX(?:\|[^|\r]*){10}\|(\w)", back)) == {"W"}
    for said in (json.dumps(bundles[1]), back):
        assert "moved this image to another patient" in said
        assert "T-2" not in said and "Other" not in said and "0.97" not in said


def test_an_image_that_was_moved_on_or_back_is_taken_back_where_a_result_may_be(readings, sender, files, prediction):
    with record_and_ris(readings) as (bundles, messages):
        reading, doctor = readings.save(files[:1], prediction()), readings.doctor()
        right, first = another_patient(doctor, files, prediction), doctor.case(reading).patient.id
        doctor.move(reading, right, "before anything was sent")
        assert not [row.what for row in rows(readings) if row.what.startswith("move")]
        while sender.send_next():
            pass
        doctor.move(reading, first, "an error")
        doctor.withdraw(reading, "an error too")  # before the move was told
        while sender.send_next():
            pass
    assert [patients_of(one) for one in bundles] == [["T-2"], ["T-2"], ["T-1"]]
    statuses = [one["entry"][-1]["resource"]["status"] for one in bundles]
    assert statuses == ["preliminary", "entered-in-error", "entered-in-error"]
    assert ["T-2" in one for one in messages] == [True, True, False]
    assert all("|W" in one for one in messages[1:])


def test_nothing_is_told_of_a_patient_who_was_erased_after_a_move(readings, sender, files, prediction):
    with record_and_ris(readings) as (bundles, messages):
        reading, doctor = readings.save(files[:1], prediction()), readings.doctor()
        while sender.send_next():
            pass
        doctor.move(reading, another_patient(doctor, files, prediction), "of another person")
        with readings.store.write() as db:
            db.execute(sa.delete(Patient).where(Patient.number == NUMBER))
        while sender.send_next():
            pass
    assert [patients_of(one) for one in bundles] == [["T-1"], ["T-2"]]
    assert [NUMBER in one for one in messages] == [True, False]


def test_of_a_withdrawn_image_no_object_is_filed_and_fhir_says_so(gateway, files, prediction):
    readings = Readings(gateway.store)
    reading, admin = readings.save(files[:1], prediction()), gateway.make_key("admin", name="ops")
    readings.doctor().withdraw(reading, f"of a brother of {NAME}")
    for path in ("sr", "capture"):
        told = problem(gateway.ask("GET", f"/results/{reading}/{path}", admin), 404, "not-found")
        assert "withdrawn" in told["detail"]
    bundle = gateway.ask("GET", f"/results/{reading}/fhir", admin).json()
    said = [entry["resource"] for entry in bundle["entry"]]
    ours = [one for one in said if one["resourceType"] in ("DiagnosticReport", "Observation")]
    assert len(ours) > 1 and {one["status"] for one in ours} == {"entered-in-error"}
    assert "ImagingStudy" in [one["resourceType"] for one in said]
    assert "A clinician has withdrawn this image." in ours[-1]["conclusion"]
    assert "brother" not in json.dumps(bundle)


def test_a_reading_without_dicom_is_told_to_fhir_without_a_study(readings, sender, files, prediction):
    reading = readings.save(files[:1], prediction())
    with readings.store.write() as db:
        db.execute(sa.text("DELETE FROM reading_sources"))
    bundle = json.loads(Delivery(readings.doctor(), reading).bundle({}))
    assert "ImagingStudy" not in [entry["resource"]["resourceType"] for entry in bundle["entry"]]


def test_an_object_that_cannot_be_made_is_given_up_with_words(readings, sender, files, prediction):
    readings.destination("web", "stow", {"url": "http://127.0.0.1:9"}, ["report"])
    readings.save(files[:1], prediction())
    with readings.store.write() as db:
        db.execute(sa.text("UPDATE reading_sources SET headers = :none"), {"none": b"damaged"})
    sender.send_next()
    (row,) = rows(readings)
    assert row.state == "failed" and "restore a backup" in row.reason


def test_of_a_refused_reading_no_segmentation_waits_and_the_list_says_why(readings, files, prediction):
    readings.destination("pacs", "stow", {"url": "http://127.0.0.1:9"}, ["report", "capture", "segmentation"])
    readings.save(files[:1], prediction(decision="uncertain: review", checks=(ADULT,)))
    told = {row.object: (row.state, row.reason) for row in rows(readings)}
    assert told.pop("segmentation") == (
        "cancelled", "Not for this patient: the model gives no finding, so there is no segmentation"
    )  # fmt: skip
    assert told == {"report": ("queued", ""), "capture": ("queued", "")}


def test_an_error_of_the_program_is_tried_again_and_ends_no_thread(
    readings, sender, files, prediction, monkeypatch, caplog
):
    readings.destination("web", "stow", {"url": "http://127.0.0.1:9"}, ["report"])
    readings.save(files[:1], prediction())

    def breaks(*_):
        raise ValueError(f"no value of LO: {NAME}")

    monkeypatch.setattr(sending, "Delivery", breaks)
    sender.send_next()
    (row,) = rows(readings)
    assert (row.state, row.reason) == ("queued", "an error of the program (ValueError)")
    assert "ValueError" in caplog.text and NAME not in caplog.text


def test_a_patient_who_is_erased_while_a_result_is_sent_leaves_no_trace(readings, sender, files, prediction):
    def erases(line: socket.socket) -> None:
        request_of(line)
        with readings.store.write() as db:
            db.execute(sa.delete(Patient))
        answer_with(line, STORED)

    with serving(erases) as (port, _):
        readings.destination("web", "stow", {"url": f"http://127.0.0.1:{port}"}, ["report"])
        readings.save(files[:1], prediction())
        assert sender.send_next()
    assert rows(readings) == []
    assert not sender.send_next()


def test_a_sender_sees_only_the_reading_of_its_program_and_only_for_its_lease(readings, files, prediction):
    readings.destination("web", "stow", {"url": "http://127.0.0.1:9"}, ["report"])
    reading = readings.save(files[:1], prediction())
    claimed = dispatches.claim(readings.store)
    records = Records(DispatchAccess(readings.store, claimed))
    assert records.case(reading).reading_id == reading
    with readings.store.write() as db:
        db.get(Dispatch, claimed.id).lease = "another"
    for look in (records.case, records.source):
        with pytest.raises(dispatches.DispatchLost):
            look(reading)


def test_threads_send_what_comes_and_end_when_they_are_told(readings, files, prediction, monkeypatch):
    monkeypatch.setattr(sending, "POLL_SECONDS", 0.05)
    metrics = Metrics()
    sender = Sender(readings.store, metrics)
    sender.start()
    assert sender.alive()
    with dicom_server() as (address, got):
        readings.destination("PACS", "dicom", address, ["report"])
        readings.save(files[:1], prediction())
        until = time.monotonic() + 30
        while rows(readings)[0].state != "done" and time.monotonic() < until:
            time.sleep(0.05)
    sender.stop()
    assert len(got) == 1 and not sender.alive()
    shown = metrics.text({}, dispatches.counts(readings.store)).decode()
    assert 'lungkit_gateway_sendings_total{kind="dicom",outcome="sent"} 1.0' in shown
    assert 'lungkit_gateway_dispatches{kind="dicom",state="done"} 1.0' in shown
    assert 'lungkit_gateway_dispatches{kind="stow",state="queued"} 0.0' in shown


# --- the command line


def test_destinations_are_entered_tried_and_removed(lungkit, monkeypatch, sqlite_url):  # noqa: F811
    monkeypatch.setenv("LUNGKIT_DATABASE", sqlite_url)
    with dicom_server() as (address, _):
        port = str(address["port"])
        added = lungkit("destination", "add", "PACS", "dicom", "--host", "127.0.0.1", "--port", port,
                        "--ae-title", "PACS")  # fmt: skip
        assert added[0] == 0 and "report, capture" in added[1]
        assert lungkit("destination", "try", "PACS") == (0, "'PACS': it answers a C-ECHO\n", "")
    assert "no association" in lungkit("destination", "try", "PACS")[2]
    with serving(answering(200, b"[]")) as (web, _):
        lungkit("destination", "add", "web", "stow", "--url", f"http://127.0.0.1:{web}", "--send", "report")
        assert lungkit("destination", "try", "web") == (0, "'web': it answers 200\n", "")
        lungkit("destination", "add", "ris", "hl7", "--host", "127.0.0.1", "--port", str(web))
        assert lungkit("destination", "try", "ris") == (0, "'ris': it takes connections\n", "")
    assert lungkit("destination", "off", "web")[0] == 0
    shown = lungkit("destination", "list")[1]
    assert f"PACS@127.0.0.1:{port}" in shown and "off" in shown
    assert lungkit("destination", "on", "web")[0] == 0
    assert lungkit("destination", "remove", "web")[0] == 0
    assert "no destination is called 'web'; there are: PACS, ris" in lungkit("destination", "try", "web")[2]
    assert "accepted are" in lungkit("destination", "add", "x", "ftp")[2]


def test_what_failed_is_listed_and_sent_again(lungkit, readings, sender, files, prediction, monkeypatch, sqlite_url):  # noqa: F811
    monkeypatch.setenv("LUNGKIT_DATABASE", sqlite_url)
    with serving(answering(404)) as (port, _):
        readings.destination("web", "stow", {"url": f"http://127.0.0.1:{port}"})
        readings.save(files[:1], prediction())
        while sender.send_next():
            pass
    shown = lungkit("dispatch", "list", "--state", "failed")[1]
    assert "no such address" in shown and NAME not in shown and NUMBER not in shown
    assert lungkit("dispatch", "again", "--to", "web")[1] == "2 results are sent again\n"
    assert {row.state for row in rows(readings)} == {"queued"}
    first = rows(readings)[0].id
    assert lungkit("dispatch", "give-up", first)[0] == 0
    assert sorted(row.state for row in rows(readings)) == ["cancelled", "queued"]
    assert lungkit("dispatch", "again", first)[0] == 0
    assert "name at least one" in lungkit("dispatch", "give-up")[2]
    assert "accepted are" in lungkit("dispatch", "list", "--state", "lost")[2]
