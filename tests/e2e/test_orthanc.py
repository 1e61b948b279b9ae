"""Results arrive in a real PACS: Orthanc, by C-STORE and by STOW-RS, once, and in the order of their making."""

import io
import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import requests
from dicomweb_client import DICOMwebClient

from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import dispatches
from lungkit.data import images, phantom
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.sending import Sender
from tests.clinic.conftest import cheap_passwords, sqlite_store, sqlite_tables, sqlite_url  # noqa: F401
from tests.gateway.readings import Readings

MODEL = "ct-infection"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PROGRAM = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
pytestmark = pytest.mark.skipif(
    not (Path(PROGRAM).exists() and PLUGIN.exists()), reason="needs Orthanc (Debian: orthanc, orthanc-dicomweb)"
)
REPORT, CAPTURE = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Orthanc:
    """A PACS that takes what LUNGKIT sends from this machine; it keeps its files when it is stopped."""

    def __init__(self, folder: Path):
        self.port, self.dicom_port, self.process = _free_port(), _free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"
        self._config, self._log = folder / "orthanc.json", folder / "orthanc.log"
        settings = {
            "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
            "HttpPort": self.port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomPort": self.dicom_port, "DicomAet": "ORTHANC", "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": False, "DicomAlwaysAllowEcho": False, "DicomCheckModalityHost": True,
            "DicomModalities": {"gateway": ["LUNGKIT", "127.0.0.1", 104]},
            "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True},
        }  # fmt: skip
        self._config.write_text(json.dumps(settings))

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([PROGRAM, str(self._config)], stdout=log, stderr=log)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                requests.get(f"{self.url}/system", timeout=5)
                socket.create_connection(("127.0.0.1", self.dicom_port), 5).close()
                return
            except OSError:
                assert self.process.poll() is None, self._log.read_text(errors="replace")[-2000:]
                time.sleep(0.1)
        raise AssertionError("Orthanc did not answer")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    @property
    def dicom(self) -> dict:
        return {"host": "127.0.0.1", "port": self.dicom_port, "ae_title": "ORTHANC"}

    @property
    def stow(self) -> dict:
        return {"url": f"{self.url}/dicom-web"}

    def instances(self) -> list[str]:
        return requests.get(f"{self.url}/instances", timeout=30).json()

    def files(self) -> list[pydicom.Dataset]:
        """Every object that it holds."""
        got = (requests.get(f"{self.url}/instances/{one}/file", timeout=30).content for one in self.instances())
        return [pydicom.dcmread(io.BytesIO(content)) for content in got]

    def empty(self) -> None:
        for one in requests.get(f"{self.url}/patients", timeout=30).json():
            requests.delete(f"{self.url}/patients/{one}", timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pacs = Orthanc(tmp_path_factory.mktemp("orthanc"))
    pacs.start()
    yield pacs
    pacs.stop()


@pytest.fixture
def pacs(server) -> Orthanc:
    """A PACS that runs and is empty."""
    if server.process is None:
        server.start()
    server.empty()
    return server


@dataclass
class Read:
    """Records with a reading of a phantom's slice by a real model, on the list for a PACS."""

    readings: Readings
    sender: Sender

    def all(self) -> None:
        while self.sender.send_next():
            pass

    def states(self) -> dict[tuple[str, str], str]:
        with self.readings.store.read() as db:
            return {(row.object, row.review_id): row.state for row in dispatches.latest(db)}


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("phantom")
    made = phantom.make_patient("P1", "Pneumonia", seed=3, slices=3, size=128)
    return [phantom.write_dicom(one, folder / f"{one.index}.dcm").read_bytes() for one in made]


@pytest.fixture
def prediction(own_folders, shipped, tmp_path, slices):
    shutil.copytree(shipped / MODEL, tmp_path / "artifacts" / MODEL)
    return ModelPool().get(MODEL).read(images.read(slices[0], "a slice"), time.perf_counter(), None)


@pytest.fixture
def read(sqlite_store, cheap_passwords) -> Read:  # noqa: F811
    return Read(Readings(sqlite_store), Sender(sqlite_store, Metrics()))


@pytest.mark.parametrize("kind", ["dicom", "stow"])
def test_report_and_capture_arrive_and_are_found(pacs, read, slices, prediction, kind):
    read.readings.destination("PACS", kind, pacs.dicom if kind == "dicom" else pacs.stow)
    read.readings.save(slices[:1], prediction)
    read.all()
    assert set(read.states().values()) == {"done"}, [*dispatches_of(read)]
    study = pydicom.dcmread(io.BytesIO(slices[0])).StudyInstanceUID
    found = DICOMwebClient(f"{pacs.url}/dicom-web").search_for_instances(study_instance_uid=study)
    assert {one["00080016"]["Value"][0] for one in found} == {REPORT, CAPTURE}


def dispatches_of(read: Read):
    with read.readings.store.read() as db:
        return dispatches.latest(db)
