"""From a scanner to the PACS: a study comes by C-STORE, is read, and its report and picture are filed next to it."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest

from lungkit.clinic.records import dispatches, jobs, received
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.cases import Records
from lungkit.data import phantom
from tests.e2e.conftest import Clinic
from tests.e2e.test_orthanc import CAPTURE, REPORT, free_port, pacs, server  # noqa: F401

pytestmark = pytest.mark.skipif(
    not (shutil.which("storescu") and Path("/usr/sbin/Orthanc").exists()),
    reason="needs dcmtk and Orthanc (Debian: dcmtk, orthanc, orthanc-dicomweb)",
)


@pytest.fixture
def clinic(tmp_path):
    """Records and models of the test's own; no server runs on them."""
    made = Clinic(tmp_path)
    yield made
    made.close()


@pytest.fixture
def run(clinic):
    """A function: what a verb of lungkit prints."""

    def verb(*words: str) -> str:
        command = [Path(sys.executable).with_name("lungkit"), *words]
        done = subprocess.run(command, env=clinic.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return verb


@pytest.fixture
def dicom_port(clinic):
    """The port of a gateway that runs on these records."""
    log, port = (clinic.folder / "gateway.log").open("wb"), free_port()
    command = [
        Path(sys.executable).with_name("lungkit"),
        "gateway",
        "--port",
        "0",
        "--quiet",
        "1",
        "--dicom-port",
        str(port),
    ]
    process = subprocess.Popen(command, env=clinic.environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert "The gateway is open" in process.stdout.readline(), (clinic.folder / "gateway.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        log.close()


def _send(folder: Path, port: int) -> None:
    command = ["storescu", "-aet", "SCANNER1", "-aec", "LUNGKIT", "-xv", "+sd", "127.0.0.1", str(port), str(folder)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)


def _until(true, seconds: float = 120):
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.2)
    return found


def test_a_series_from_a_scanner_is_read_by_a_tried_rule_and_answered_in_the_pacs(
    clinic,
    run,
    dicom_port,
    pacs,  # noqa: F811
    tmp_path,
):
    store = clinic.store
    run("caller", "add", "SCANNER1", "--network", "127.0.0.1")
    run("destination", "add", "PACS", "dicom", *_options(pacs.dicom))
    run("route", "add", "chest", "--modality", "CT", "--model", "ct-infection", "--to", "PACS")
    studies = []
    for name, kind in (("first", "Normal"), ("second", "Pneumonia")):
        folder = tmp_path / name
        folder.mkdir()
        for cut in phantom.make_patient(name, kind, 11, 12, 128, (40, 110) if kind != "Normal" else None):
            phantom.write_dicom(cut, folder / f"{cut.index}.dcm", original=True)
        studies.append(folder)

    _send(studies[0], dicom_port)  # no rule is on yet: the study is kept, to try the rule on
    row = _until(lambda: _closed(store))
    assert "no rule fits" in row.outcome
    assert "12" in run("route", "try", "chest", "--study", row.id)
    run("route", "on", "chest")

    _send(studies[1], dicom_port)
    _until(lambda: jobs.counts(store).get("done") == 1)
    _until(lambda: {state for _, state in dispatches.counts(store)} == {"done"})
    made = {one.SOPClassUID: one for one in pacs.files()}
    assert set(made) == {REPORT, CAPTURE}
    assert {one.StudyInstanceUID for one in made.values()} == {_study_uid(studies[1])}
    (case,) = Records(Access(store, clinic.token("ada"))).worklist()
    assert (case.label, case.slices) == ("Pneumonia", 12)


def _options(address: dict) -> list[str]:
    return [word for name, value in address.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _closed(store):
    with store.read() as db:
        return next((row for row in received.latest(db) if row.state == "closed"), None)


def _study_uid(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)
