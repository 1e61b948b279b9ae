"""Several hosts: workers that share the records and a queue in Redis read each job once, also when Redis goes away."""

import shutil
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import jobs, keys
from lungkit.clinic.records.jobs import Jobs
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.patients import StatedPatient
from lungkit.clinic.records.tables import Job, Reading, now
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.worker import Worker
from tests.clinic.rows import count, events
from tests.gateway.conftest import MODEL


@pytest.fixture
def start_redis(monkeypatch):
    """A function: a Redis server of the test's own, always at the same address."""
    if not shutil.which("redis-server"):
        pytest.skip("Redis is not installed (Debian: apt install redis-server)")
    folder = Path(tempfile.mkdtemp(prefix="lungkit-redis-"))  # the path of a socket is short
    address, started = f"unix://{folder}/socket?db=0", []
    monkeypatch.setenv("LUNGKIT_REDIS", address)

    def start() -> subprocess.Popen:
        command = ["redis-server", "--port", "0", "--unixsocket", folder / "socket", "--save", "", "--dir", folder]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        for _ in range(200):
            try:
                redis.from_url(address).ping()
                return started[-1]
            except redis.ConnectionError:
                time.sleep(0.02)
        raise AssertionError("Redis did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def submit(sqlite_store, slices):
    """A function: the id of a new job with a slice."""
    with sqlite_store.write() as db:
        program = Jobs(KeyAccess(sqlite_store, keys.add_key(db, "pacs", ["predict"]), "predict"))

    def send(number: int) -> str:
        patient = StatedPatient(f"T-{number}", "Anna Invented")
        return program.submit(slices[number % len(slices)].read_bytes(), MODEL, patient)[0].id

    return send


def _worker(store) -> Worker:
    return Worker(store, ModelPool(), Metrics())


def _until_done(store, number: int) -> None:
    until = time.monotonic() + 30
    while jobs.counts(store) != {"done": number}:
        assert time.monotonic() < until, jobs.counts(store)
        time.sleep(0.05)


def test_two_hosts_with_one_redis_read_each_job_once_and_the_most_urgent_first(sqlite_store, start_redis, submit):
    start_redis()
    hosts = [_worker(sqlite_store), _worker(sqlite_store)]
    for number, priority in enumerate(("batch", "routine", "urgent")):
        hosts[number % 2].put(f"nothing {priority}", priority)
    order = [hosts[0]._queue.dequeue().args[0] for _ in range(3)]
    assert order == ["nothing urgent", "nothing routine", "nothing batch"]
    for number in range(10):
        job_id = submit(number)
        for host in hosts:
            host.put(job_id, "routine")
    for host in hosts:
        host.start()
    _until_done(sqlite_store, 10)
    started = time.monotonic()
    for host in hosts:
        host.stop()
    assert time.monotonic() - started < 10
    saved = [event.object for event in events(sqlite_store, "case.save")]
    assert len(set(saved)) == len(saved) == count(sqlite_store, Reading) == 10


def test_jobs_that_come_while_redis_is_gone_are_read_when_it_is_back(sqlite_store, start_redis, submit, caplog):
    first, host = start_redis(), _worker(sqlite_store)
    host.start()
    host.put(submit(0), "routine")
    _until_done(sqlite_store, 1)
    first.kill()
    first.wait()
    host.put(submit(1), "routine")
    assert "could not be queued" in caplog.text
    time.sleep(1)
    assert caplog.text.count("Error reading from queue") <= 1  # not ten times a second
    start_redis()
    with sqlite_store.write() as db:  # as if a minute had passed
        db.execute(sa.update(Job).where(Job.state == "queued").values(due_at=now() - timedelta(seconds=1)))
    _until_done(sqlite_store, 2)
    host.stop()
