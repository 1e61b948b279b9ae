"""The worker: jobs are read once whatever ends in the middle, and a stop leaves none half done."""

import io
import threading
import time
import zipfile
from datetime import timedelta

import pytest
import sqlalchemy as sa

from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import jobs, keys
from lungkit.clinic.records.jobs import Jobs
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.patients import StatedPatient
from lungkit.clinic.records.store import StoreError
from lungkit.clinic.records.tables import Job, JobFile, Reading, Study
from lungkit.gateway import queue, worker
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.worker import Worker
from lungkit.models import registry
from tests.clinic.rows import count, events
from tests.gateway.conftest import MODEL


@pytest.fixture
def program(sqlite_store) -> Jobs:
    with sqlite_store.write() as db:
        key = keys.add_key(db, "pacs", ["predict", "read"])
    return Jobs(KeyAccess(sqlite_store, key, "predict"))


@pytest.fixture
def submit(program, slices):
    """A function: the id of a job with a slice."""

    def send(number: int = 0, content: bytes | None = None, model: str = MODEL) -> str:
        content = slices[number % len(slices)].read_bytes() if content is None else content
        return program.submit(content, model, StatedPatient(f"T-{number}", "Anna Invented"))[0].id

    return send


@pytest.fixture
def make_worker(sqlite_store):
    """A function: a worker, not started."""
    return lambda threads=1: Worker(sqlite_store, ModelPool(), Metrics(), threads)


def _late(store, by: timedelta) -> None:
    with store.write() as db:
        for job in db.scalars(sa.select(Job)):
            job.due_at -= by


def _until_done(store, number: int, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while jobs.counts(store).get("done", 0) < number:
        assert time.monotonic() < until, jobs.counts(store)
        time.sleep(0.05)


def test_urgent_jobs_come_before_routine_ones_and_those_before_batch(make_worker):
    reader, order = make_worker(), []
    for number, priority in enumerate(("batch", "routine", "urgent", "routine", "urgent")):
        reader.put(f"{priority} {number}", priority)
    while task := reader._queue.dequeue():
        order.append(task.args[0])
    assert order == ["urgent 2", "urgent 4", "routine 1", "routine 3", "batch 0"]


def test_the_queue_holds_numbers_as_json_and_only_its_owner_can_read_it(make_worker, tmp_path):
    make_worker().put("a job", "routine")
    (path,) = (tmp_path / "data").rglob("queue.db")
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"pickle" not in path.read_bytes()
    assert b'["a job"]' in b"".join(file.read_bytes() for file in path.parent.glob("queue.db*"))


def test_a_queue_in_redis_is_used_where_one_is_named(monkeypatch):
    monkeypatch.setenv("LUNGKIT_REDIS", "redis://127.0.0.1:1/0")
    assert type(queue.open_queue()).__name__ == "PriorityRedisHuey"


def test_a_queue_that_cannot_be_reached_loses_no_job(sqlite_store, make_worker, submit, monkeypatch, caplog):
    monkeypatch.setenv("LUNGKIT_REDIS", "redis://127.0.0.1:1/0")
    make_worker().put(job_id := submit(), "routine")
    assert f"job {job_id} could not be queued" in caplog.text
    monkeypatch.delenv("LUNGKIT_REDIS")
    _late(sqlite_store, jobs.UNHEARD)
    reader = make_worker()
    reader.sweep()
    reader.start()
    _until_done(sqlite_store, 1)
    reader.stop()


def test_a_worker_killed_in_the_middle_leaves_a_job_that_is_read_once(sqlite_store, make_worker, submit, monkeypatch):
    job_id, killed = submit(), make_worker()

    class Killed(BaseException):
        """What nothing in the worker catches, as nothing catches SIGKILL."""

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(worker.Records, "save_case", die)
        killed.read(job_id)
    assert jobs.counts(sqlite_store) == {"running": 1}
    assert count(sqlite_store, Study) == 0
    reader = make_worker()
    reader.read(job_id)  # its lease has not ended
    assert jobs.counts(sqlite_store) == {"running": 1}
    _late(sqlite_store, jobs.LEASE)
    reader.sweep()
    reader.start()
    _until_done(sqlite_store, 1)
    reader.put(job_id, "routine")  # a queue may repeat a number
    reader.stop()
    reader.read(job_id)
    assert [count(sqlite_store, table) for table in (Study, Reading, JobFile)] == [1, 1, 0]
    assert len(events(sqlite_store, "case.save")) == 1


def test_many_jobs_and_workers_read_each_job_once(sqlite_store, make_worker, submit):
    ids = [submit(number) for number in range(12)]
    readers = [make_worker(2), make_worker(1)]
    for reader in readers:
        reader.start()
        assert reader.alive()
    for job_id in ids:
        for reader in readers:
            reader.put(job_id, "routine")
    _until_done(sqlite_store, len(ids))
    for reader in readers:
        reader.stop()
        assert not reader.alive()
    assert count(sqlite_store, Reading) == len(ids)
    assert sorted(event.object for event in events(sqlite_store, "case.save")) == sorted(f"reading:{i}" for i in ids)


def test_a_stop_finishes_the_image_that_is_being_read_and_begins_no_other(
    sqlite_store, make_worker, submit, monkeypatch
):
    begun, reader, read = threading.Event(), make_worker(), worker.images.read

    def slow(*arguments):
        begun.set()
        time.sleep(0.5)
        return read(*arguments)

    monkeypatch.setattr(worker.images, "read", slow)
    first, second = submit(0), submit(1)
    reader.start()
    for job_id in (first, second):
        reader.put(job_id, "routine")
    assert begun.wait(10)
    reader.stop()
    assert jobs.counts(sqlite_store) == {"done": 1, "queued": 1}


# --- what goes wrong


def test_an_image_that_only_the_worker_refuses_fails_at_once_with_the_readers_words(
    sqlite_store, program, make_worker, submit
):
    job_id = submit(content=b"not an image")
    make_worker().read(job_id)
    job = program.job(job_id)
    assert (job.state, job.tries) == ("failed", 1)
    assert "not an image" in job.reason
    assert count(sqlite_store, JobFile) == 0


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_model_that_cannot_read_is_tried_again_and_the_job_can_be_started_when_it_is_mended(
    sqlite_store, program, make_worker, submit, damage
):
    job_id, reader = submit(), make_worker()
    weights = registry.active(MODEL).folder / "graph.bin"
    content = weights.read_bytes()
    weights.unlink() if damage == "missing" else weights.write_bytes(content[:-1])
    for _ in range(jobs.MOST_TRIES):
        reader.read(job_id)
        assert count(sqlite_store, JobFile) == 1
    job = program.job(job_id)
    assert (job.state, job.tries) == ("failed", jobs.MOST_TRIES)
    assert "graph.bin" in job.reason
    weights.write_bytes(content)
    program.again(job_id)
    reader.read(job_id)
    assert program.job(job_id).state == "done"


def test_an_error_of_the_program_is_logged_and_the_job_says_only_its_kind(
    program, make_worker, submit, monkeypatch, caplog
):
    def fail(*_):
        raise ZeroDivisionError("secret of the program")

    monkeypatch.setattr(worker.images, "read", fail)
    job_id = submit()
    make_worker().read(job_id)
    job = program.job(job_id)
    assert (job.state, job.reason) == ("queued", "an error of the program (ZeroDivisionError)")
    assert "secret of the program" in caplog.text
    assert "Invented" not in caplog.text


def test_records_that_cannot_be_written_leave_the_job_to_the_sweep(sqlite_store, make_worker, submit, monkeypatch):
    def busy(*_, **__):
        raise StoreError("the records are busy")

    job_id, reader = submit(), make_worker()
    with monkeypatch.context() as patch:
        patch.setattr(worker.Records, "save_case", busy)
        patch.setattr(worker.jobs, "fail", busy)
        reader.read(job_id)
    _late(sqlite_store, jobs.LEASE)
    assert jobs.sweep(sqlite_store) == [(job_id, "routine")]
    reader.read(job_id)
    assert count(sqlite_store, Reading) == 1


def test_a_reason_does_not_repeat_the_names_of_files_in_a_zip(slices):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("INVENTED_ANNA/IM1.dcm", slices[0].read_bytes())
    words = "the zip file: INVENTED_ANNA/IM1.dcm: damaged: its pixels end early"
    assert worker._without_names(words, packed.getvalue()) == "image 1: damaged: its pixels end early"
    assert worker._without_names(words, b"an image") == words
