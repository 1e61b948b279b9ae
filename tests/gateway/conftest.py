"""What the gateway's tests share: a real server on loopback with a small model, keys, and images to send."""

import io
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import requests
from pynetdicom import _config, dimse_messages

from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import keys, routing
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import supervisor
from lungkit.gateway.app import make_app
from lungkit.gateway.serve import Server
from lungkit.gateway.worker import Worker

# The records on both databases, as the clinic's tests have them.
from tests.clinic.conftest import (  # noqa: F401
    cheap_passwords,
    postgresql_server,
    postgresql_tables,
    postgresql_url,
    prediction,
    sqlite_store,
    sqlite_tables,
    sqlite_url,
)

MODEL = "ct-infection"
PATIENT = {"patient_number": "T-1", "patient_name": "Anna Invented"}


@pytest.fixture(autouse=True)
def pynetdicom_as_it_comes(monkeypatch):
    """A gateway's port changes it for the whole process, where the DICOM servers of other tests are too."""
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)
    monkeypatch.setattr(_config, "LOG_HANDLER_LEVEL", _config.LOG_HANDLER_LEVEL)
    monkeypatch.setattr(dimse_messages, "NamedTemporaryFile", tempfile.NamedTemporaryFile)


@pytest.fixture(autouse=True)
def small_model(own_folders, shipped, tmp_path):
    """A registry with the smallest model that lungkit ships for CT, which a test may damage."""
    shutil.copytree(shipped / MODEL, tmp_path / "artifacts" / MODEL)


@pytest.fixture(scope="session")
def slices(tmp_path_factory) -> list[Path]:
    """Synthetic CT slices, DICOM, of 128 pixels."""
    from lungkit.data import phantom

    folder = phantom.make_dataset(tmp_path_factory.mktemp("phantom"), n_slices=6, seed=5, size=128)
    return sorted(folder.rglob("*.dcm"))


@pytest.fixture(scope="session")
def chest(tmp_path_factory) -> Path:
    """A folder with the 12 slices of a phantom's CT, of one series."""
    from lungkit.data import phantom

    path = tmp_path_factory.mktemp("chest")
    for cut in phantom.make_patient("T-77", "Pneumonia", 46, 12, 224):
        phantom.write_dicom(cut, path / f"{cut.index:02}.dcm", original=True)
    return path


@pytest.fixture
def rules(sqlite_store) -> None:  # noqa: F811
    """SCANNER1 may send; a rule reads its CT, and what came over the web."""
    with sqlite_store.write() as db:
        routing.add_caller(db, "SCANNER1")
        row = routing.add_route(db, Rule(name="CT", model=MODEL, modality="CT"))
        routing.note_trial(db, row.id)
        routing.set_route(db, row.id, True)


@pytest.fixture
def png() -> bytes:
    """A picture that the reader takes."""
    return picture()


def picture(side: int = 96, seed: int = 0) -> bytes:
    """A PNG of noise."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@dataclass
class Running:
    """A gateway that answers, and a key with the scopes that most programs have."""

    url: str
    store: Store
    server: Server
    thread: threading.Thread
    app: object
    key: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def worker(self) -> Worker:
        return self.app.state.gateway.worker

    @property
    def pool(self) -> ModelPool:
        return self.app.state.gateway.pool

    @property
    def dicom_port(self) -> int:
        return self.app.state.gateway.door.port

    def make_key(self, *scopes: str, name: str = "pacs", rate: int = 100_000, **more) -> str:
        with self.store.write() as db:
            return keys.add_key(db, name, list(scopes), per_minute=rate, **more)

    def ask(self, method: str, path: str, key: str | None = None, **request) -> requests.Response:
        """One request; path: below /api/v1, or a whole one from the root. key: "" sends none."""
        key = self.key if key is None else key
        headers = ({"Authorization": f"Bearer {key}"} if key else {}) | request.pop("headers", {})
        path = path[1:] if path.startswith("//") else f"/api/v1{path}"
        return requests.request(method, self.url + path, headers=headers, timeout=60, **request)

    def predict(self, content: bytes, key: str | None = None, headers=None, **fields) -> requests.Response:
        """Send an image of a made-up patient as a form."""
        fields = {name: value for name, value in (PATIENT | fields).items() if value is not None}
        return self.ask("POST", "/predictions", key, files={"file": content}, data=fields, headers=headers or {})

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def start_gateway():
    """A function that starts gateways on records; they end with the test."""
    started = []

    def start(store: Store, **settings) -> Running:
        listening = supervisor.bind(0, "127.0.0.1")
        opened = threading.Event()
        app = make_app(store, **settings)
        server = Server(app, opened.set)
        thread = threading.Thread(target=server.run, args=(listening,), daemon=True)
        thread.start()
        assert opened.wait(30)
        running = Running(f"http://127.0.0.1:{listening[0].getsockname()[1]}", store, server, thread, app)
        running.key = running.make_key("predict", "read")
        started.append((running, listening))
        return running

    yield start
    for running, listening in started:
        running.stop()
        for each in listening:
            each.close()


@pytest.fixture
def gateway(start_gateway, sqlite_store) -> Running:  # noqa: F811
    """A gateway on records in SQLite."""
    return start_gateway(sqlite_store)


@pytest.fixture
def idle(gateway, monkeypatch) -> Running:
    """A gateway whose worker is not told of jobs: a test reads them by `worker.read`."""
    monkeypatch.setattr(gateway.worker, "put", lambda *_: None)
    return gateway


def problem(answer: requests.Response, status: int, kind: str) -> dict:
    """The problem that an answer is; fails if it is another one, or none."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"]) == (f"urn:lungkit:problem:{kind}", status)
    assert body["title"]
    assert body["detail"]
    return body
