"""What the clinic's tests share: its records on both databases, people who are signed in, readings."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import argon2
import nbformat
import numpy as np
import pytest
import sqlalchemy as sa

from lungkit import config
from lungkit.clinic.records import accounts, maintenance
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.stacks import Extent
from lungkit.clinic.records.store import Store
from lungkit.clinic.series_reading import SeriesReading, SliceReading
from lungkit.data import images, phantom, preprocess, series
from lungkit.models import registry
from lungkit.models.prediction import Check, Prediction
from lungkit.models.rule import DecisionRule
from tests.cards import model_card

# --- records: an SQLite file, and a PostgreSQL server of the tests' own


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request) -> str:
    """URL of an empty database; a test that takes it, or `store`, runs once on each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def store(database_url):
    """Records with all tables and no rows."""
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def sqlite_store(sqlite_url):
    """Records on SQLite, for what only files have, and where the kind of database does not matter."""
    store = Store(sqlite_url)
    yield store
    store.close()


def _needs_tables(request) -> bool:
    """Whether a test uses `store` or `sqlite_store`: its database is a copy of one with tables, which saves time."""
    return not {"store", "sqlite_store"}.isdisjoint(request.fixturenames)


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory) -> Path:
    """An SQLite database with all tables and no rows, to copy."""
    path = tmp_path_factory.mktemp("tables") / "clinic.db"
    _make_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_tables(postgresql_server) -> str:
    """The name of a PostgreSQL database with all tables and no rows, to copy."""
    with _administered(postgresql_server) as connection:
        connection.exec_driver_sql("CREATE DATABASE with_tables")
    _make_tables(_url_of(postgresql_server, "with_tables"))
    return "with_tables"


def _make_tables(url: str) -> None:
    store = Store(url)
    maintenance.upgrade(store)
    store.close()


@pytest.fixture
def sqlite_url(tmp_path, request) -> str:
    path = tmp_path / "clinic" / "clinic.db"
    if _needs_tables(request):
        path.parent.mkdir(mode=0o700)
        shutil.copy(request.getfixturevalue("sqlite_tables"), path)
    return f"sqlite:///{path}"


_database_number = count(1)


@pytest.fixture
def postgresql_url(postgresql_server, request):
    """URL of a database on the tests' own server, dropped at the end."""
    name = f"clinic_{next(_database_number)}"
    template = request.getfixturevalue("postgresql_tables") if _needs_tables(request) else "template1"
    with _administered(postgresql_server) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _url_of(postgresql_server, name)
    with _administered(postgresql_server) as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def _administered(server: str) -> sa.Connection:
    return sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect()


def _url_of(server: str, database: str) -> str:
    return sa.make_url(server).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgresql_server():
    """URL of a PostgreSQL server that ends with the tests; reached through a socket in a folder of its own."""
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt install postgresql)")
    # Not below tmp_path: another user's server has to get there, and the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="lungkit-pg-"))
    as_user = ["setpriv", "--pdeathsig", "INT"]  # the server also ends when the tests are killed
    if os.geteuid() == 0:  # as root it refuses to run
        shutil.chown(folder, "postgres", "postgres")
        as_user += ["--reuid", "postgres", "--regid", "postgres", "--init-groups"]
    data = folder / "data"
    subprocess.run(
        [*as_user, programs / "initdb", "--no-sync", "--username=lungkit", "--auth=trust", "--encoding=UTF8",
         "--locale=C.UTF-8", "--pgdata", data], check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    # What makes it fast also lets it lose everything in a power cut: for tests only.
    settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "full_page_writes": "off",
                "synchronous_commit": "off", "max_connections": 60, "shared_buffers": "32MB"}  # fmt: skip
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [*as_user, programs / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder
    )
    try:
        url = f"postgresql+psycopg://lungkit@/postgres?host={folder}"
        _wait_until_it_answers(url, server, folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # "fast shutdown"
        server.wait(30)
        log.close()
        shutil.rmtree(folder)


def _postgresql_programs() -> Path | None:
    """The folder of the newest PostgreSQL server here, if any; Debian keeps it off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        return None
    return found[-1].parent if found else Path(on_path).resolve().parent


def _wait_until_it_answers(url: str, server: subprocess.Popen, log: Path) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    for _ in range(300):
        try:
            with engine.connect():
                return
        except sa.exc.OperationalError:
            assert server.poll() is None, log.read_text(errors="replace")
            time.sleep(0.1)
    raise AssertionError(f"PostgreSQL did not answer: {log.read_text(errors='replace')}")


# --- people who are signed in, and what they save


@pytest.fixture
def cheap_passwords(monkeypatch):
    """Hashing that takes no time; how hard passwords are to guess is tested where they are."""
    monkeypatch.setattr(accounts, "_hasher", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def signed_in(store, cheap_passwords):
    """A function: the access of a new person with a role, signed in; the name says who is acting."""

    def sign_in(role: str, name: str | None = None) -> accounts.Access:
        name = name or role
        with store.write() as db:
            password = accounts.add_user(db, name, f"Test {name.title()}", role)
        return accounts.Access(store, accounts.sign_in(store, name, password, "192.0.2.1"))

    return sign_in


@pytest.fixture
def access(signed_in) -> accounts.Access:
    """Of Dr Anna, who is signed in."""
    return signed_in("doctor", "anna")


@pytest.fixture
def records(access) -> Records:
    """The records as Dr Anna sees them."""
    return Records(access)


@pytest.fixture
def chest_image():
    """A function: a picture as the reader gives it, no two sides alike."""

    def make(units="intensity", modality="DX", shape=(48, 64), seed=0) -> images.Image:
        pixels = np.random.default_rng(seed).random(shape, np.float32)
        if units == "HU":
            pixels = np.rint(pixels * 2000 - 1000)
        return images.Image(pixels, units, modality, "chest.dcm", {"view": "PA"})

    return make


@pytest.fixture
def prediction():
    """A function: a reading as the predictor gives it."""

    def make(label="Pneumonia", probability=0.8, model="lung", version="v1", decision=None, **changes) -> Prediction:
        classes = ("Pneumonia", "Normal")
        heat = np.zeros((2, 6, 8), np.float32)
        heat[classes.index(label), 2, 3] = 1
        values = {
            "model": model,
            "version": version,
            "classes": classes,
            "probabilities": np.array([probability if name == label else 1 - probability for name in classes]),
            "label": label,
            "decision": decision or label,
            "rule": DecisionRule(kind="threshold", positive="Pneumonia", threshold=0.42),
            "heat": heat,
            "checks": (Check("kind", True, 0.5, 1.0, "Looks like a chest X-ray."),),
            "milliseconds": 120.0,
        }
        return Prediction(**values | changes)

    return make


@pytest.fixture(scope="session")
def ct_folder(tmp_path_factory) -> Path:
    """A phantom's CT series in a folder: eight slices of 64 pixels, and a note that is no image."""
    folder = tmp_path_factory.mktemp("ct")
    for cut in phantom.make_patient("stack", "Pneumonia", seed=3, slices=8, size=64):
        phantom.write_dicom(cut, folder / f"cut-{cut.index}.dcm", compressed=False, original=True)
    (folder / "Jane Doe.txt").write_text("a note")
    return folder


@pytest.fixture
def ct_series(ct_folder) -> series.Series:
    """The series in that folder."""
    (only,) = series.read(ct_folder).series
    return only


@pytest.fixture
def series_said(prediction):
    """A function: the reading of a series as series_reading gives it; its middle slices are the least normal."""

    def make(of: series.Series, decision="Pneumonia", reasons=(), **changes) -> SeriesReading:
        middle = (len(of.slices) - 1) / 2
        chances = [0.95 - 0.1 * abs(number - middle) for number in range(len(of.slices))]
        said = [prediction(*(("Pneumonia", p) if p > 0.7 else ("Normal", 1 - p)), **changes) for p in chances]
        slices = tuple(
            SliceReading(number, one.position, one.source, reading)
            for number, (one, reading) in enumerate(zip(of.slices, said, strict=True))
        )
        return SeriesReading(
            model="lung", version="v1", classes=("Pneumonia", "Normal"), probabilities=np.array([0.9, 0.1]),
            label="Pneumonia", decision=decision, reasons=reasons, slices=slices, carrying=(3, 4), without_lungs=0,
            absent="Normal", milliseconds=900.0, extent=Extent(3900.0, False, 0.25, 0.072, 0.021),
        )  # fmt: skip

    return make


# --- the clinic's server, a process of its own

TINY_PAGE = """
import ipywidgets as widgets
from lungkit.clinic.records import accounts
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import door
who = accounts.whoami(Store(), door.token())
widgets.HTML(f"<p class='who'>{who.full_name}</p>")
"""


@dataclass
class Clinic:
    """A running server: where it answers, its records, the passwords of its people, and its process."""

    url: str
    store: Store
    passwords: dict[str, str]
    process: subprocess.Popen
    log: Path
    home: Path

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Stop it as `how` says, and wait; returns the exit status."""
        self.process.send_signal(how)
        return self.process.wait(30)


def _start(home: Path, *options: str, notebook: Path | None = None, pool: int = 1, **variables: str) -> Clinic:
    """Run `lungkit serve` on a free port with a doctor, a second doctor and an admin.

    home: a folder of its own, where artifacts/ may hold models already; a second start there finds the same people.
    notebook: default: a page that shows who is there. variables: more of the environment.
    """
    environment = os.environ | {
        "LUNGKIT_HOME": str(home),
        "LUNGKIT_DATA": str(home / "data"),
        "LUNGKIT_ARTIFACTS": str(home / "artifacts"),
        "LUNGKIT_REPORTS": str(home / "reports"),
        "LUNGKIT_DATABASE": f"sqlite:///{home / 'data' / 'clinic' / 'clinic.db'}",
    }
    environment |= variables
    page = home / "notebooks" / "app.ipynb"
    page.parent.mkdir(parents=True, exist_ok=True)
    if notebook:
        shutil.copy(notebook, page)
    elif not page.exists():
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cells = [nbformat.v4.new_code_cell(TINY_PAGE)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), page)
    if not (home / "artifacts").exists():
        _some_model(home / "artifacts")
    store = Store(environment["LUNGKIT_DATABASE"])
    maintenance.upgrade(store)
    people = {"anna": "doctor", "bert": "doctor", "chief": "admin"}
    with store.write() as db:
        known = {account.name for account in accounts.list_users(db)}
        passwords = {
            name: accounts.add_user(db, name, f"{name.title()} Test", role)
            for name, role in people.items()
            if name not in known
        }
    log = home / "server.log"
    with log.open("wb") as sink:
        command = [Path(sys.executable).parent / "lungkit", "serve", "--port", "0", "--pool", str(pool), *options]
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=sink, cwd=home)
    return Clinic(_announced(process, log), store, passwords, process, log, home)


def _some_model(folder: Path) -> None:
    """A registry with an active version, for a page that reads no images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(folder))
        registry.add("some", model_card(), lambda staging: (staging / "weights").write_bytes(b"1"))


def _announced(process: subprocess.Popen, log: Path) -> str:
    """The address that the server says it is open at."""
    for _ in range(1200):
        output = log.read_text(errors="replace")
        if found := re.search(r"https?://\S+", output):
            return found[0].rstrip("/")
        assert process.poll() is None, output
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')}")


@pytest.fixture(scope="session")
def start_clinic():
    """A function that starts servers, as `_start` does; they end with the tests."""
    started = []

    def start(home: Path, *options: str, **more) -> Clinic:
        started.append(_start(home, *options, **more))
        return started[-1]

    yield start
    for clinic in started:
        if clinic.process.poll() is None:
            clinic.stop()
        clinic.store.close()


@pytest.fixture(scope="session")
def clinic_server(start_clinic, tmp_path_factory) -> Clinic:
    """A server for all tests that leave it as it is; the page only shows who is there."""
    return start_clinic(tmp_path_factory.mktemp("clinic"))


# --- trained versions


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A registry with "tiny-cnn", trained for some seconds on synthetic CT slices of 96 pixels. Do not write to it."""
    from lungkit.data import phantom

    folder = tmp_path_factory.mktemp("trained")
    source = phantom.make_dataset(folder / "phantom", n_slices=90, seed=3, size=96)
    return _trained(folder, str(source), "tiny-cnn")


@pytest.fixture(scope="session")
def trained_on_xrays(tmp_path_factory, shared_data) -> Path:
    """A registry with "xray-cnn", trained for some seconds on real chest X-rays. Do not write to it."""
    return _trained(tmp_path_factory.mktemp("xrays"), str(shared_data / "chest_xray_paediatric_224"), "xray-cnn", 400)


def _trained(folder: Path, source: str, name: str, limit: int | None = None) -> Path:
    from lungkit.backend import keras

    from lungkit.data import dataset
    from lungkit.models import cnn
    from lungkit.training import pipeline, release

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_DATA", str(folder / "data"))
        patch.setenv("LUNGKIT_ARTIFACTS", str(folder / "artifacts"))
        recipe = {"label_column": None, "limit": limit, "seed": 7}
        chest = dataset.load_split(source, overlap="set_aside", **recipe)
        spec = preprocess.training_statistics(chest.files("train"), preprocess.Preprocessing(size=(64, 64)))
        keras.utils.set_random_seed(1)
        model = cnn.compile_classifier(cnn.build((64, 64, 1), len(chest.classes), filters=8, blocks=2))
        batches = pipeline.batches(chest, "train", spec, 16, shuffle=True)
        model.fit(batches, epochs=6, shuffle=False, verbose=0)
        release.register(model, name, chest, spec, architecture={}, training={}, recipe=recipe)
    return folder / "artifacts"


@pytest.fixture
def tiny_version(trained) -> registry.Version:
    """The version trained on synthetic CT, in the test's own registry: it may be damaged."""
    shutil.copytree(trained, config.artifacts_dir(), dirs_exist_ok=True)
    return registry.find("tiny-cnn")


@pytest.fixture
def xray_version(trained_on_xrays) -> registry.Version:
    """The version trained on real chest X-rays, in the test's own registry: it may be damaged."""
    shutil.copytree(trained_on_xrays, config.artifacts_dir(), dirs_exist_ok=True)
    return registry.find("xray-cnn")


@pytest.fixture
def slice_files(trained) -> list[Path]:
    """The synthetic slices, DICOM, that tiny-cnn was validated on."""
    from lungkit.data import dataset

    (folder,) = (trained.parent / "data" / "manifests").glob("*")
    return dataset.Dataset.open(folder).files("val")
