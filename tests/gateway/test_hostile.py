"""Requests from strangers: bodies that are too large, end early, never come or are no image: nothing is kept."""

import http.client
import io
import socket
import struct
import time
import zipfile
import zlib

import pytest

from lungkit.clinic.records.tables import Job, JobFile, Patient
from lungkit.gateway import requests as bounds
from lungkit.gateway import serve
from tests.clinic.rows import count
from tests.gateway.conftest import PATIENT, picture, problem

QUERY = "/api/v1/predictions?patient_number=T-1&patient_name=Anna"
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def nothing_is_stored(gateway):
    """Whatever a test here sends, no job and no patient comes of it, and the gateway answers the next request."""
    yield
    assert [count(gateway.store, table) for table in (Job, JobFile, Patient)] == [0, 0, 0]
    assert gateway.ask("GET", "//health/live").status_code == 200
    assert gateway.app.state.gateway.uploads == 0


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setenv("LUNGKIT_UPLOAD_MB", "1")


def _connect(gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=30)


def _head(gateway, *lines: str) -> bytes:
    lines = (f"POST {QUERY} HTTP/1.1", "Host: x", f"Authorization: Bearer {gateway.key}", *lines)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


# --- too large


def test_a_body_that_says_it_is_too_large_is_refused_unread(gateway, small_limit):
    with _connect(gateway) as connection:
        connection.sendall(_head(gateway, "Content-Type: image/png", f"Content-Length: {3 * MEGABYTE}"))
        status, body = _answer(connection)
    assert status == 413
    assert b"1 MiB at most" in body


@pytest.mark.parametrize("form", [False, True])
def test_a_body_without_a_length_is_refused_at_the_limit(gateway, small_limit, form):
    edge = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    kind = "multipart/form-data; boundary=edge" if form else "image/png"
    part = b"%x\r\n" % 65536 + b"x" * 65536 + b"\r\n"
    with _connect(gateway) as connection:
        connection.sendall(_head(gateway, f"Content-Type: {kind}", "Transfer-Encoding: chunked"))
        connection.sendall(b"%x\r\n" % len(edge) + edge + b"\r\n")
        try:
            for _ in range(200):
                connection.sendall(part)
        except OSError:  # closed, as it should be
            pass
        else:
            raise AssertionError("12 MiB were taken")


def test_a_length_that_is_too_small_does_not_let_more_through(gateway, small_limit):
    with _connect(gateway) as connection:
        connection.sendall(_head(gateway, "Content-Type: image/png", "Content-Length: 4") + b"x" * 1000)
        assert _answer(connection)[0] == 422  # of the four bytes


def test_a_file_just_above_the_limit_is_refused(gateway, small_limit):
    problem(gateway.predict(b"x" * (MEGABYTE + 1)), 413, "too-large")


def test_only_so_many_files_arrive_at_the_same_time(gateway, monkeypatch, png):
    monkeypatch.setattr(bounds, "MOST_UPLOADS", 0)
    answer = gateway.predict(png)
    problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0


# --- too slow


def test_a_body_that_does_not_come_is_given_up(gateway, monkeypatch):
    monkeypatch.setattr(bounds, "PART_SECONDS", 0.2)
    with _connect(gateway) as connection:
        connection.sendall(_head(gateway, "Content-Type: image/png", "Content-Length: 1000") + b"x")
        assert _answer(connection)[0] == 408


def test_a_body_that_comes_a_byte_at_a_time_is_given_up(gateway, monkeypatch):
    monkeypatch.setattr(bounds, "BODY_SECONDS", 0.5)
    with _connect(gateway) as connection:
        connection.sendall(_head(gateway, "Content-Type: image/png", "Content-Length: 1000"))
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < started + 10:
                connection.sendall(b"x")
                time.sleep(0.05)
            raise AssertionError("it was never given up")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("first", [b"", b"GET /health/live HT"])
def test_a_connection_without_a_request_is_closed(gateway, monkeypatch, first):
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.2)
    with _connect(gateway) as connection:
        connection.sendall(first)
        assert connection.recv(100) == b""


def test_many_connections_that_open_and_close_leave_nothing_behind(gateway):
    for _ in range(300):
        _connect(gateway).close()
    until = time.monotonic() + 10
    while gateway.server.server_state.connections:
        assert time.monotonic() < until
        time.sleep(0.05)


# --- no image


def test_a_form_that_ends_early_is_refused(gateway, png):
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    for body in (head + png[:100], head, b"--edge\r\n", b"", b"nothing of a form"):
        answer = gateway.ask(
            "POST", "/predictions", data=body, params=PATIENT,
            headers={"Content-Type": "multipart/form-data; boundary=edge"},
        )  # fmt: skip
        assert answer.status_code in (400, 422), answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_connection_that_ends_within_a_file_leaves_nothing(gateway, png):
    with _connect(gateway) as connection:
        connection.sendall(_head(gateway, "Content-Type: image/png", f"Content-Length: {len(png)}") + png[:500])
    time.sleep(0.2)


def test_a_form_with_more_than_it_may_have_is_refused(gateway, png):
    many = [(f"field{n}", "x") for n in range(50)]
    problem(gateway.ask("POST", "/predictions", files={"file": png}, data=many), 400, "bad-request")
    problem(gateway.ask("POST", "/predictions", files=[("file", png), ("file", png)], data=PATIENT), 400, "bad-request")
    problem(gateway.predict(png, patient_name="x" * 70_000), 400, "bad-request")


def _png_bomb() -> bytes:
    """A PNG that says it has 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * MEGABYTE))
        + chunk(b"IEND", b"")
    )


def _zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../etc/passwd.png", b"\0" * 10 * MEGABYTE)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"<html>", b"\x89PNG\r\n\x1a\n", b"\0" * 128 + b"DICM", picture()[:200], _png_bomb(), _zip_bomb(),
     b"MZ" + b"\0" * 126 + b"DICM" + b"\0" * 100],
    ids=["empty", "one byte", "a page", "a signature", "dicom without tags", "cut off", "png bomb", "zip bomb", "exe"],
)  # fmt: skip
def test_what_is_no_image_is_refused_in_the_readers_words(gateway, content):
    refused = problem(gateway.predict(content), 422, "image-refused")
    assert refused["detail"].startswith(("the image", "the zip file"))
    problem(
        gateway.ask("POST", QUERY.removeprefix("/api/v1"), data=content, headers={"Content-Type": "application/dicom"}),
        422,
        "image-refused",
    )


@pytest.mark.parametrize("kind", ["", "text/plain", "application/json", "application/gzip", "image/gif"])
def test_a_body_of_another_type_is_refused(gateway, png, kind):
    refused = problem(
        gateway.ask("POST", QUERY.removeprefix("/api/v1"), data=png, headers={"Content-Type": kind}), 415, "media-type"
    )
    assert "multipart/form-data" in refused["detail"]


def test_names_of_files_are_not_used(gateway, png):
    for name in ("../../../etc/cron.d/x", "Doe^John.dcm"):
        answer = gateway.ask("POST", "/predictions", files={"file": (name, b"no image")}, data=PATIENT)
        assert "Doe" not in answer.text
        problem(answer, 422, "image-refused")


# --- other addresses and methods


def test_an_address_or_method_that_is_not_there_is_a_problem(gateway):
    problem(gateway.ask("GET", "//"), 404, "not-found")
    problem(gateway.ask("GET", "//docs"), 404, "not-found")
    problem(gateway.ask("GET", "/results/../../../etc/passwd"), 404, "not-found")
    problem(gateway.ask("GET", f"/results/{'%00' * 20}"), 404, "not-found")
    answer = gateway.ask("PUT", "/predictions")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"


def test_every_answer_may_not_be_kept_or_taken_for_another_type(gateway):
    for path in ("//health/live", "/models", "//none"):
        headers = gateway.ask("GET", path).headers
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert "Server" not in headers


def test_an_error_of_the_program_is_a_problem_that_tells_nothing(gateway, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("secret of the program")

    monkeypatch.setattr("lungkit.gateway.models.registry.active", fail)
    answer = gateway.ask("GET", "/models")
    problem(answer, 500, "program-error")
    assert "secret" not in answer.text
    monkeypatch.undo()
