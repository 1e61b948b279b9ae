"""Two clinics and two gateways behind nginx share PostgreSQL and Redis; one of each is killed in the middle."""

import copy
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from lungkit.clinic.records import audit_trail, jobs, keys
from lungkit.clinic.records.tables import AuditEvent, Job, JobFile, Patient, Reading, Study
from lungkit.data import phantom
from lungkit.gateway.client import Client, GatewayError

# The records' database on a server of the tests' own, as the clinic's tests have it.
from tests.clinic.browser import Browser
from tests.clinic.conftest import postgresql_server, postgresql_tables, postgresql_url  # noqa: F401
from tests.e2e.conftest import Clinic

STUDIES = 200
KILLED_AFTER = 60  # studies that were read
NGINX = """
worker_processes 1; user root; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 65m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream gateways {{ server 127.0.0.1:{gateways[0]} max_fails=1; server 127.0.0.1:{gateways[1]} max_fails=1; }}
  upstream clinics {{ hash $cookie_lungkit_session consistent;
    server 127.0.0.1:{clinics[0]} max_fails=1; server 127.0.0.1:{clinics[1]} max_fails=1; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{ listen 127.0.0.1:{ports[0]};
    location / {{ proxy_pass http://gateways; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; }} }}
  server {{ listen 127.0.0.1:{ports[1]};
    location / {{ proxy_pass http://clinics; proxy_http_version 1.1; proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-Proto http; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; }} }}
}}
"""


class Gateway:
    """`lungkit gateway` as a process of its own."""

    def __init__(self, environment: dict[str, str], log: Path):
        self.log = log.open("wb")
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("lungkit"), "gateway", "--port", "0"],
            env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True,
        )  # fmt: skip
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.process.stdout.readline())
        assert found, log.read_text()
        self.port = int(found[1])

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(90)
        self.process.stdout.close()
        self.log.close()


@pytest.fixture
def redis_address() -> Iterator[str]:
    """A Redis server of the test's own."""
    if not shutil.which("redis-server"):
        pytest.skip("Redis is not installed (Debian: apt install redis-server)")
    folder = Path(tempfile.mkdtemp(prefix="lungkit-redis-"))  # the path of a socket is short
    command = ["redis-server", "--port", "0", "--unixsocket", folder / "socket", "--save", "", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"unix://{folder}/socket?db=0"
    _until(lambda: _answers(address))
    yield address
    server.kill()
    server.wait()
    shutil.rmtree(folder)


def _answers(address: str) -> bool:
    try:
        return bool(redis.from_url(address).ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def hospital(postgresql_url, redis_address, tmp_path):  # noqa: F811
    """Two clinics, two gateways and nginx: (address of the gateways, address of the clinics, gateways, clinics)."""
    if not (nginx := shutil.which("nginx") or shutil.which("/usr/sbin/nginx")):
        pytest.skip("nginx is not installed (Debian: apt install nginx)")
    first = Clinic(tmp_path, pool=0, LUNGKIT_DATABASE=postgresql_url, LUNGKIT_REDIS=redis_address)
    second = copy.copy(first)
    clinics, gateways, proxy = [first, second], list[Gateway](), None
    try:
        for number, clinic in enumerate(clinics):
            clinic.log = tmp_path / f"clinic-{number}.log"
            clinic.start()
            gateways.append(Gateway(first.environment, tmp_path / f"gateway-{number}.log"))
        ports = [_free_port(), _free_port()]
        folder, conf = tmp_path / "nginx", tmp_path / "nginx.conf"
        folder.mkdir()
        of = {"gateways": [one.port for one in gateways], "clinics": [one.port for one in clinics]}
        conf.write_text(NGINX.format(folder=folder, ports=ports, **of))
        proxy = subprocess.Popen([nginx, "-p", folder, "-c", conf], stderr=subprocess.DEVNULL)
        _until(lambda: all(_listens(port) for port in ports))
        yield *(f"http://127.0.0.1:{port}" for port in ports), gateways, clinics
    finally:
        if proxy:
            proxy.terminate()
            proxy.wait(10)
        for gateway in gateways:
            gateway.end()
        for clinic in clinics:
            if clinic.process and clinic.process.poll() is None:
                clinic.stop()
        first.store.close()


def test_two_hundred_studies_are_read_once_although_a_gateway_and_a_clinic_are_killed(hospital, tmp_path):
    address, clinic_address, gateways, clinics = hospital
    store = clinics[0].store
    with store.write() as db:
        key = keys.add_key(db, "pacs", ["predict", "read"], per_minute=100_000)
    slices = sorted(phantom.make_dataset(tmp_path / "phantom", n_slices=8, seed=5, size=96).rglob("*.dcm"))
    doctor = Browser(clinic_address)
    assert doctor.sign_in("ada", clinics[0].passwords["ada"]).to == "/"
    page = doctor.open_page()
    there = [clinic for clinic in clinics if _has_kernel(clinic, page)]
    assert len(there) == 1

    def send(number: int) -> str:
        """As a program does it that does not give up."""
        client = Client(address, key, timeout=30)
        fields = {"patient_name": "Anna Invented", "idempotency_key": f"study-{number}"}
        for _ in range(20):
            try:
                return client.submit(slices[number % len(slices)], f"T-{number}", **fields)["id"]
            except (OSError, GatewayError):  # requests' errors are OSErrors
                time.sleep(0.5)
        raise AssertionError(f"study {number} was never taken")

    def kill() -> None:
        _until(lambda: jobs.counts(store).get("done", 0) >= KILLED_AFTER, 120)
        gateways[0].end(signal.SIGKILL)
        there[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(4) as programs:
        ids = list(programs.map(send, range(STUDIES)))
    killer.join()
    with store.write() as db:  # as if the killed worker's lease had run out
        db.execute(sa.update(Job).where(Job.state == "running").values(due_at=sa.func.now()))
    _until(lambda: jobs.counts(store) == {"done": STUDIES}, 180)

    assert len(set(ids)) == STUDIES
    with store.read() as db:
        numbers = [db.scalar(sa.select(sa.func.count()).select_from(table)) for table in (Patient, Study, Reading)]
        saved = list(db.scalars(sa.select(AuditEvent.object).where(AuditEvent.action == "case.save")))
        assert db.scalar(sa.select(sa.func.count()).select_from(JobFile)) == 0
    assert numbers == [STUDIES] * 3
    assert len(set(saved)) == len(saved) == STUDIES
    audit_trail.verify(store)
    # The doctor is still signed in, and gets a page of the other clinic.
    assert json.loads(doctor.get(f"/clinic/there/{page}").text)["state"] == "gone"
    other = next(clinic for clinic in clinics if clinic is not there[0])
    assert _has_kernel(other, doctor.open_page())


def _has_kernel(clinic: Clinic, kernel: str) -> bool:
    return any(kernel in " ".join(process.cmdline()) for process in clinic.kernels())


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _until(true, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.2)
