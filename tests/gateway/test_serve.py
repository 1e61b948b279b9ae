"""`lungkit gateway` and `lungkit key`: what is unsafe is refused, and a stop or a kill leaves no job half done."""

import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from typer.testing import CliRunner

from lungkit import cli
from lungkit.clinic.records import jobs, keys, maintenance, routing
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import Job, Reading
from lungkit.errors import LungkitError
from lungkit.gateway import serve
from lungkit.gateway.dicom import Settings
from tests.clinic.rows import count, events
from tests.gateway.conftest import MODEL

LUNGKIT = [sys.executable, "-c", "from lungkit import cli; cli.main()"]


@pytest.fixture
def records(tmp_path) -> Store:
    """The records of the test's own data folder."""
    store = Store()
    maintenance.upgrade(store)
    yield store
    store.close()


@pytest.fixture
def start(tmp_path):
    """A function: the address and the process of a gateway."""
    started = []

    def run(*options: str) -> tuple[str, subprocess.Popen]:
        log = tmp_path / f"gateway-{len(started)}.log"
        with log.open("wb") as sink:
            started.append(subprocess.Popen([*LUNGKIT, "gateway", "--port", "0", *options], stdout=sink, stderr=sink))
        for _ in range(600):
            if found := re.search(r"https?://[^\s/]+", log.read_text(errors="replace")):
                return found[0], started[-1]
            assert started[-1].poll() is None, log.read_text(errors="replace")
            time.sleep(0.05)
        raise AssertionError(f"it did not start: {log.read_text(errors='replace')}")

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def _send(url: str, key: str, content: bytes, number: int) -> None:
    answer = requests.post(
        f"{url}/api/v1/predictions",
        headers={"Authorization": f"Bearer {key}"},
        files={"file": content},
        data={"patient_number": f"T-{number}", "patient_name": "Anna Invented", "wait": 0},
        timeout=30,
    )
    assert answer.status_code == 202, answer.text


def _until_done(store: Store, number: int) -> None:
    until = time.monotonic() + 40
    while jobs.counts(store) != {"done": number}:
        assert time.monotonic() < until, jobs.counts(store)
        time.sleep(0.1)


def test_a_gateway_that_is_stopped_or_killed_loses_no_job_and_reads_none_twice(records, start, slices):
    with records.write() as db:
        key = keys.add_key(db, "pacs", ["predict"], per_minute=1000)
    url, process = start("--workers", "2")
    for number in range(8):
        _send(url, key, slices[number % len(slices)].read_bytes(), number)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert jobs.counts(records).keys() <= {"done", "queued"}  # none half done
    url, process = start()
    for number in range(8, 16):
        _send(url, key, slices[number % len(slices)].read_bytes(), number)
    process.kill()
    process.wait()
    with records.write() as db:  # as if the time had passed after which they are looked for
        for job in db.scalars(sa.select(Job)):
            job.due_at -= jobs.LEASE + timedelta(seconds=1)
    start()
    _until_done(records, 16)
    assert count(records, Reading) == 16
    saved = [event.object for event in events(records, "case.save")]
    assert len(saved) == len(set(saved)) == 16


@pytest.mark.skipif(shutil.which("dcmsend") is None, reason="DCMTK is not there (Debian: dcmtk)")
def test_a_gateway_that_is_killed_before_a_study_is_complete_loses_none_of_it(records, start, chest, tmp_path):
    with records.write() as db:
        routing.add_caller(db, "SCANNER1")
        row = routing.add_route(db, Rule(name="CT", model=MODEL, modality="CT"))
        routing.note_trial(db, row.id)
        routing.set_route(db, row.id, True)
    _, process = start("--dicom-port", "0", "--quiet", "1000")
    said = (tmp_path / "gateway-0.log").read_text()
    port = re.search(r"dicom://LUNGKIT@127.0.0.1:(\d+)", said)[1]
    called = ["-aet", "SCANNER1", "-aec", "LUNGKIT", "127.0.0.1", port]
    subprocess.run(["dcmsend", *called, "+sd", chest], check=True, timeout=60)
    process.kill()
    process.wait()
    assert jobs.counts(records) == {}
    start("--dicom-port", "0", "--quiet", "1")
    _until_done(records, 1)
    assert count(records, Reading) == 1


def test_images_do_not_cross_the_network_in_clear_text_by_dicom(records):
    with pytest.raises(LungkitError, match="give --dicom-tls-cert and --dicom-tls-key"):
        serve.serve(0, dicom=Settings(port=0, host="0.0.0.0"))


@pytest.fixture
def certificate(tmp_path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]], capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    return files


def test_the_command_makes_the_key_that_a_gateway_with_tls_accepts_and_revokes_it(records, start, certificate):
    def lungkit(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    key = lungkit("key", "add", "pacs", "--scope", "predict", "--scope", "read", "--expires", "30").strip()
    url, process = start("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    assert url.startswith("https://")

    def ask() -> requests.Response:
        key_header = {"Authorization": f"Bearer {key}"}
        return requests.get(f"{url}/api/v1/models", headers=key_header, verify=str(certificate[0]), timeout=30)

    assert [model["name"] for model in ask().json()] == [MODEL]
    key_id = key.split("_")[1]
    listed = lungkit("key", "list")
    assert key_id in listed
    assert key.split("_", 2)[2] not in listed
    lungkit("key", "revoke", key_id)
    assert ask().status_code == 401
    with pytest.raises(LungkitError, match="is taken by another program"):
        serve.serve(int(url.rpartition(":")[2]))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


# --- what is refused first


def test_keys_and_images_do_not_cross_the_network_in_clear_text(records):
    with pytest.raises(LungkitError, match="in clear text; give --tls-cert and --tls-key"):
        serve.serve(0, "0.0.0.0")


def test_a_certificate_that_cannot_be_used_is_refused_in_words(records, tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(LungkitError, match="no TLS with certificate"):
        serve.serve(0, certfile=tmp_path / "cert.pem")
