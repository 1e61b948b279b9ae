"""Reads jobs: threads of the gateway take numbers from the queue, and a sweep puts back what was lost.

The sweep also makes the jobs of studies that came as DICOM and are complete, and tidies the inbox.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from huey.consumer import Consumer
from pydicom.uid import EnhancedCTImageStorage

from lungkit import files
from lungkit.clinic import series_reading
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import jobs, patients, received
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.jobs import Claimed, JobAccess, LeaseLost
from lungkit.clinic.records.patients import RecordMissing, RecordRefused, StatedPatient, age_at
from lungkit.clinic.records.store import Store, StoreError
from lungkit.data import images, series
from lungkit.data.archive import Archive, is_zip
from lungkit.data.dicom_header import walked_header
from lungkit.data.image import ImageRefused
from lungkit.data.series import Series
from lungkit.errors import LungkitError
from lungkit.gateway import inbox
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.queue import open_queue, priority_number

SWEEP_SECONDS = 5.0
TIDY_SECONDS = 600.0  # between two looks for files that no one needs
QUIET = timedelta(seconds=30)  # without a new file: then a study is complete
SAME_SECONDS = 60.0  # between two messages of the queue that say the same
STOP_SECONDS = 60.0  # at most, for the images that are being read
ZIP = "the zip file"
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

    def __init__(self, store: Store, pool: ModelPool, metrics: Metrics, threads: int = 1, quiet: timedelta = QUIET):
        self._store, self._pool, self._metrics, self._quiet = store, pool, metrics, quiet
        self._tidied = -TIDY_SECONDS
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
            jobs.fail(self._store, claimed, _without_names(str(refused), claimed.content), final=True)
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
        given: list[Path | bytes] = [*inbox.paths(claimed)] or [claimed.content]
        if len(given) > 1 or is_series(given[0]):
            self._read_series(claimed, given)
        else:
            self._read_image(claimed, given[0])

    def _read_image(self, claimed: Claimed, given: Path | bytes) -> None:
        started = time.perf_counter()
        image = images.read(given, "the image")
        answer = self._pool.get(claimed.model).read(image, started, age_at(claimed.birth_year, image.tags))
        access = JobAccess(self._store, claimed, inbox.source_of([given]))
        patient = _named(access, claimed)
        Records(access).save_case(patient, image, files.sha256(given), answer, reading_id=claimed.id)

    def _read_series(self, claimed: Claimed, given: Sequence[Path | bytes]) -> None:
        one, content = only_series(given)
        said = series_reading.read(self._pool.get(claimed.model), one, claimed.birth_year)
        used = dict.fromkeys(each.source for each in one.slices)
        access = JobAccess(self._store, claimed, inbox.source_of(map(content, used)))
        Records(access).save_series(_named(access, claimed), one, said, reading_id=claimed.id)

    # --- sweeping

    def sweep(self) -> None:
        """Queue what is due, what a worker that has ended left behind, and what studies that are complete need."""
        for job_id, priority in jobs.sweep(self._store):
            self.put(job_id, priority)
        for study in received.complete(self._store, self._quiet):
            made = received.close(self._store, study, self._quiet)
            self._metrics.study("jobs" if made else "nothing")
            for job_id, priority in made:
                self.put(job_id, priority)
        if time.monotonic() - self._tidied >= TIDY_SECONDS:
            self._tidied = time.monotonic()
            inbox.tidy(self._store)

    def _sweep_often(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            try:
                self.sweep()
                self._threads.check_worker_health()
            except Exception:  # the next sweep may succeed
                _log.exception("sweep")


# --- what is read

Content = Callable[[str], Path | bytes]  # a file's name in a series to the file


def only_series(given: Sequence[Path | bytes]) -> tuple[Series, Content]:
    """The CT series in files, or in one zip file; of one that falls into parts, the largest part that can be read.

    Raises ImageRefused if there is none or there are several, and if no part can be read.
    """
    content: Content
    if is_zip(given[0]):
        contents, archive = series.read(given[0], ZIP), Archive(given[0], ZIP)
        number_of = {name: number for number, name in enumerate(archive.names())}
        content = lambda name: archive.read(number_of[name])  # noqa: E731
    else:
        named = {f"image {number}": one for number, one in enumerate(given, 1)}
        contents, content = series.read(list(named.items())), named.__getitem__
    if not contents.series:
        why = "; ".join(dict.fromkeys(f"{aside.rule}: {aside.words}" for aside in contents.set_aside[:3]))
        raise ImageRefused("the series", why or "no file is in it", "Send the CT slices of one series.")
    readable = [one for one in contents.series if one.readable != "refused"]
    if (number := len({(one.study_uid, one.uid) for one in readable})) > 1:
        raise ImageRefused("the series", f"there are {number} series", "Send one series at a time.")
    largest = max(readable or contents.series, key=lambda one: len(one.slices))
    if not readable:
        largest.slice(0)  # says why it is refused
    return largest, content


def _without_names(words: str, content: bytes) -> str:
    """Words without the names of files in a zip file, which may name a patient."""
    names = Archive(content, ZIP).names() if is_zip(content) else []
    for number, name in enumerate(names, 1):
        words = words.replace(name, f"image {number}")
    return words


def is_series(content: bytes | Path) -> bool:
    """Whether a file may contain a series: a zip file, or an enhanced CT."""
    if is_zip(content):
        return True
    try:
        with images.opened(content, "the image", inbox.MOST_BYTES) as (stream, kind, _):
            return kind == "DICOM" and walked_header(stream)[0].kind == EnhancedCTImageStorage
    except ImageRefused:
        return False


def _named(access: JobAccess, claimed: Claimed) -> StatedPatient:
    """The patient; one of DICOM files without a PatientName is known under the number, or else called by it."""
    patient = claimed.patient
    if patient.name or not claimed.files:
        return patient
    with access.reads() as (db, _):
        known = patients.known_patient(db, patient)
    return patient if known else replace(patient, name=patient.number)
