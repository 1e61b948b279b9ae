"""Reads jobs: threads of the gateway take numbers from the queue, and a sweep puts back what was lost."""

import logging
import threading
import time

from huey.consumer import Consumer

from lungkit import files
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import jobs
from lungkit.clinic.records.cases import RecordMissing, RecordRefused, Records
from lungkit.clinic.records.jobs import Claimed, JobAccess, LeaseLost
from lungkit.clinic.records.store import Store, StoreError
from lungkit.data import images
from lungkit.errors import LungkitError
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.queue import open_queue, priority_number

SWEEP_SECONDS = 5.0
SAME_SECONDS = 60.0  # between two messages of the queue that say the same
STOP_SECONDS = 60.0  # at most, for the images that are being read
_log = logging.getLogger(__name__)


class _Threads(Consumer):
    """Huey's threads within a program that has signal handlers of its own."""

    def _set_signal_handlers(self) -> None:
        pass


class _Seldom(logging.Filter):
    """Lets a message of a logger through once a minute: without its queue, Huey repeats itself ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message was not there in the last minute."""
        at = time.monotonic()
        if at - self._last.get(record.msg, -SAME_SECONDS) < SAME_SECONDS:
            return False
        self._last[record.msg] = at
        return True


for _part in ("Worker", "Scheduler"):
    logging.getLogger(f"huey.consumer.{_part}").addFilter(_Seldom())


class Worker:
    """The threads that read, and the one that sweeps. Any thread may call."""

    def __init__(self, store: Store, pool: ModelPool, metrics: Metrics, threads: int = 1):
        self._store, self._pool, self._metrics = store, pool, metrics
        self._queue = open_queue()
        self._task = self._queue.task(name="read")(self.read)
        self._threads = _Threads(
            self._queue, threads, periodic=False, initial_delay=0.01, max_delay=0.1, shutdown_timeout=STOP_SECONDS
        )
        self._stopping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_often, name="sweep", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._threads.start()
        self._sweeper.start()

    def stop(self) -> None:
        """Finish the images that are being read, and begin no other; what waits stays in the records."""
        self._stopping.set()
        self._threads.stop(graceful=True)
        self._sweeper.join(SWEEP_SECONDS)

    def alive(self) -> bool:
        """Whether all threads run."""
        return self._sweeper.is_alive() and all(thread.is_alive() for _, thread in self._threads.worker_threads)

    def put(self, job_id: str, priority: str) -> None:
        """Put a job into the queue. Where that fails the sweep does it later."""
        try:
            self._queue.enqueue(self._task.s(job_id, priority=priority_number(priority)))
        except Exception:
            _log.exception("job %s could not be queued; it is queued again in a minute", job_id)

    # --- reading

    def read(self, job_id: str) -> None:
        """Read a job, if it waits, and save what comes of it."""
        try:
            claimed = jobs.claim(self._store, job_id)
            if claimed is not None:
                self._metrics.reading(self._outcome(claimed))
        except StoreError as error:  # the lease ends, and the sweep finds the job
            _log.error("job %s: %s", job_id, error)
        except LeaseLost:
            self._metrics.reading("lost")

    def _outcome(self, claimed: Claimed) -> str:
        """Try to read it. Raises StoreError and LeaseLost."""
        try:
            self._save(claimed)
        except LeaseLost:
            raise
        except (images.ImageRefused, RecordRefused, RecordMissing) as refused:
            jobs.fail(self._store, claimed, str(refused), final=True)
            return "refused"
        except LungkitError as error:  # no model, a damaged one, a full disk: a person may mend it
            jobs.fail(self._store, claimed, str(error), final=False)
            return "error"
        except Exception as error:
            _log.exception("job %s", claimed.id)
            jobs.fail(self._store, claimed, f"an error of the program ({type(error).__name__})", final=False)
            return "error"
        return "done"

    def _save(self, claimed: Claimed) -> None:
        started = time.perf_counter()
        image = images.read(claimed.content, "the image")
        answer = self._pool.get(claimed.model).read(image, started, claimed.age)
        records = Records(JobAccess(self._store, claimed))
        records.save_case(claimed.patient, image, files.sha256(claimed.content), answer, reading_id=claimed.id)

    # --- sweeping

    def sweep(self) -> None:
        """Queue what is due, and what a worker that has ended left behind."""
        for job_id, priority in jobs.sweep(self._store):
            self.put(job_id, priority)

    def _sweep_often(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            try:
                self.sweep()
                self._threads.check_worker_health()
            except Exception:  # the next sweep may succeed
                _log.exception("sweep")
