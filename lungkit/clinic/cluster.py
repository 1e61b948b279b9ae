"""`lungkit predict` on many machines: a dask scheduler hands files to workers, which see the same files.

A task is a chunk of names. A worker loads the version once, reads the files, writes their heat maps next to the others,
and answers with the records alone. A bounded number of chunks is on its way, and records come in the files' order. A
chunk whose worker dies is given to another one by dask.

A scheduler runs whatever code reaches it, and a client loads what workers send: docs/models.md says how to close both.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import distributed

import lungkit
from lungkit import progress
from lungkit.clinic import batch
from lungkit.clinic.predictor import Predictor
from lungkit.errors import LungkitError
from lungkit.models import registry

CHUNK = 32  # files of a task: dask takes some milliseconds for each task
_AHEAD = 3  # chunks on their way for each thread of the workers
_PATIENCE = 5  # seconds without an answer after which the workers are counted
_CONNECT = "10s"

Record = dict[str, Any]


class ClusterError(LungkitError):
    """The scheduler or a worker cannot do what was asked; the message names which and why."""


@dataclass(frozen=True)
class Job:
    """The part of a command that every worker needs; the files come with each task."""

    model: str  # NAME@vN
    fingerprint: str  # registry.fingerprint of the version
    lungkit: str  # whose answers are expected
    home: Path  # the folder that relative names start from
    heatmaps: Path | None  # the folder for them, as it was typed
    age: float | None = None  # of the patients in years, where a file states none


def job(version: registry.Version, fingerprint: str, heatmaps: Path | None, age: float | None = None) -> Job:
    """What to ask of the workers, for names that were typed in this folder."""
    return Job(str(version), fingerprint, lungkit.__version__, Path.cwd(), heatmaps, age)


# --- the client


def read_files(address: str, job: Job, files: Iterable[Path]) -> Iterator[Record]:
    """The record of each file, in order; `files` is asked for no more than a few chunks ahead.

    address: of the scheduler, "tcp://HOST:PORT", or "tls://HOST:PORT" with the certificates of dask's own settings.
    A file that ends every worker that reads it gets an error. Raises ClusterError where the scheduler cannot be
    reached or goes away, or a worker cannot take part.
    """
    with _connected(address) as client:
        yield from _Queue(client, address, job).records(files)


class _Queue:
    """Chunks on their way, and whose turn it is."""

    def __init__(self, client: distributed.Client, address: str, job: Job):
        self._client, self._address, self._job = client, address, job
        self._chunks: deque[tuple[list[Path], distributed.Future[list[Record] | str]]] = deque()

    def records(self, files: Iterable[Path]) -> Iterator[Record]:
        rest = iter(files)
        while chunk := list(islice(rest, CHUNK)):
            with _in_words(self._address):
                self._chunks.append((chunk, self._submit(chunk)))
                full = len(self._chunks) >= _AHEAD * max(1, self._threads())
            if full:
                yield from self._next()
        while self._chunks:
            yield from self._next()

    def _next(self) -> Iterator[Record]:
        chunk, future = self._chunks.popleft()
        with _in_words(self._address):
            records = self._answer(future)
        yield from self._each_alone(chunk) if records is None else records

    def _each_alone(self, chunk: list[Path]) -> Iterator[Record]:
        """Which file was it? Nothing else is read meanwhile: a worker that dies then, dies of this file."""
        with _in_words(self._address):
            for _, other in self._chunks:
                self._wait(other)
        for file in chunk:
            with _in_words(self._address):
                records = self._answer(self._submit([file]))
            yield from [batch.record(batch.crashed(file))] if records is None else records

    def _submit(self, chunk: list[Path]) -> "distributed.Future[list[Record] | str]":
        return self._client.submit(_read, self._job, chunk, pure=False)

    def _answer(self, future: "distributed.Future[list[Record] | str]") -> list[Record] | None:
        """The records of a chunk; None where the workers that read it died."""
        try:
            records = self._fetched(future)
        except distributed.KilledWorker:
            return None
        except (CancelledError, OSError):
            raise
        except Exception as error:  # it could not begin
            raise ClusterError(
                f"a worker cannot take part: {type(error).__name__}: {error}. "
                f"Each needs lungkit[cluster] {lungkit.__version__}"
            ) from error
        if isinstance(records, str):
            raise ClusterError(records)
        return records

    def _fetched(self, future: "distributed.Future[list[Record] | str]") -> list[Record] | str:
        """What a task gave. A worker that dies with it in memory takes it along: then it is made once more."""
        while True:
            self._wait(future)
            with suppress(TimeoutError):
                return future.result(timeout=_PATIENCE)

    def _wait(self, future: "distributed.Future[list[Record] | str]") -> None:
        """Wait for an answer, whatever it is, and say so if there is no worker to give one."""
        while not future.done():
            try:
                distributed.wait(future, timeout=_PATIENCE)
            except TimeoutError:
                if not self._threads():
                    place = self._address
                    progress.say_once(f"waiting: no worker has joined {place}; start one with: dask worker {place}")

    def _threads(self) -> int:
        return sum(self._client.ncores().values())


@contextmanager
def _connected(address: str) -> Iterator[distributed.Client]:
    try:
        client = distributed.Client(address, timeout=_CONNECT)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # the last two: TLS without a certificate
        raise ClusterError(
            f"no scheduler answers at {address} ({error}). `dask scheduler` prints the address of the one it starts"
        ) from None
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Turns what a lost scheduler raises into one message; nothing but calls to it may stand in the block."""
    try:
        yield
    except (OSError, CancelledError) as error:
        raise ClusterError(
            f"the scheduler at {address} went away. With --checkpoint, the same command continues when it is back"
        ) from error


# --- a worker

_loaded: dict[tuple[str, str, bool, float | None], Predictor] = {}  # the version in use; a worker keeps no other
_loading = Lock()


def _read(job: Job, files: Sequence[Path]) -> list[Record] | str:
    """The records of a chunk, in a worker's process, or why there are none.

    Nothing is raised: where a client cannot load the error of another process, dask lets it wait forever.
    """
    worker = distributed.get_worker()
    try:
        predictor = _predictor(job, worker.state.nthreads)
        return [batch.told(answer, job.heatmaps, job.home) for answer in batch.read_here(predictor, files, job.home)]
    except LungkitError as refused:
        return f"the worker {worker.address} cannot take part: {refused}"
    except Exception as error:
        return f"the worker {worker.address} failed at {files[0]} or a file after it: {type(error).__name__}: {error}"


def _predictor(job: Job, threads: int) -> Predictor:
    """The version that the job names, loaded and checked once in this process."""
    key = job.model, job.fingerprint, job.heatmaps is not None, job.age
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = _load(job, threads)
        return _loaded[key]


def _load(job: Job, threads: int) -> Predictor:
    if lungkit.__version__ != job.lungkit:
        raise LungkitError(f"it has lungkit {lungkit.__version__}, and {job.lungkit} was asked for; install the same")
    version = registry.find(job.model)
    if registry.fingerprint(version) != job.fingerprint:
        raise LungkitError(
            f"its {version} is another version of that name: the hashes of its files differ. "
            f"Copy the version's folder into its registry, or set LUNGKIT_ARTIFACTS there to a shared one"
        )
    return Predictor(version, heat=job.heatmaps is not None, many=True, threads=threads, age=job.age)
