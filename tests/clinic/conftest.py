"""What the clinic's tests share: its records on both databases, people who are signed in, readings."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import argon2
import numpy as np
import pytest
import sqlalchemy as sa

from lungkit.clinic import accounts
from lungkit.clinic.predictor import Check, Reading
from lungkit.clinic.store import Store
from lungkit.data import images

# --- records: an SQLite file, and a PostgreSQL server of the tests' own


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request) -> str:
    """URL of an empty database; a test that takes it, or `store`, runs once on each kind."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def store(database_url):
    """Records with all tables and no rows."""
    store = Store(database_url)
    store.upgrade()
    yield store
    store.close()


@pytest.fixture
def sqlite_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'clinic' / 'clinic.db'}"


@pytest.fixture
def sqlite_store(sqlite_url):
    """Records on SQLite, for what only files have, and where the kind of database does not matter."""
    store = Store(sqlite_url)
    store.upgrade()
    yield store
    store.close()


_database_number = count(1)


@pytest.fixture
def postgresql_url(postgresql_server):
    """URL of an empty database on the tests' own server, dropped at the end."""
    name = f"clinic_{next(_database_number)}"
    server = sa.create_engine(postgresql_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


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
def chest_image():
    """A function: a picture as the reader gives it, no two sides alike."""

    def make(units="intensity", modality="DX", shape=(48, 64), seed=0) -> images.Image:
        pixels = np.random.default_rng(seed).random(shape, np.float32)
        if units == "HU":
            pixels = np.rint(pixels * 2000 - 1000)
        return images.Image(pixels, units, modality, "chest.dcm", {"view": "PA"})

    return make


@pytest.fixture
def said():
    """A function: a reading as the predictor gives it."""

    def make(label="Pneumonia", probability=0.8, model="lung", version="v1", decision=None, **changes) -> Reading:
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
            "point": {"kind": "threshold", "positive": "Pneumonia", "threshold": 0.42},
            "heat": heat,
            "checks": (Check("kind", True, 0.5, 1.0, "Looks like a chest X-ray."),),
            "milliseconds": 120.0,
        }
        return Reading(**values | changes)

    return make
