"""Jobs: images that programs and DICOM systems sent, from their arrival to the reading.

This table is the truth; a queue only carries the jobs' numbers, and may lose or repeat them. A worker claims a job for
LEASE. Saving the reading and marking the job as done is one transaction, which is refused to a worker that has lost its
lease, and the reading has the job's own number: no job is read into the records twice. What a job needs, the file and
the patient's data, is deleted when it ends; only a job that failed for want of a model or the like keeps it for KEPT,
to be read again.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import files
from lungkit.clinic.records import audit_trail, dispatches, patients, studies
from lungkit.clinic.records.accounts import Actor
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.patients import RecordRefused, StatedPatient
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import (
    CANCELLED,
    DONE,
    FAILED,
    PRIORITIES,
    PROGRAM,
    QUEUED,
    RUNNING,
    ApiKey,
    Caller,
    Job,
    JobFile,
    Patient,
    Reading,
    ReadingSource,
    ReceivedFile,
    ReceivedStudy,
    Route,
    User,
    new_id,
    now,
)
from lungkit.errors import LungkitError

LEASE = timedelta(minutes=3)  # how long a worker may read one image …
LEASE_OF_FILE = timedelta(seconds=1)  # … and longer for each file of a series, and for each SLICE_BYTES
SLICE_BYTES = 250_000
UNHEARD = timedelta(minutes=1)  # a queued job that no worker has claimed for this long is put into the queue again
BACK_OFF = (timedelta(seconds=10), timedelta(minutes=1))  # before the second try, before the third
MOST_TRIES = len(BACK_OFF) + 1
KEPT = timedelta(days=7)  # what a failed job needs to be read again
IN_PROGRESS = (QUEUED, RUNNING)
OPEN = ("batch", "routine", "urgent")  # priorities that programs may ask for
LONGEST_IDEMPOTENCY_KEY = 200
NO_JOB = "there is no such job, or another program sent it"


class JobMissing(LungkitError):
    """There is no such job for this key."""


class JobInProgress(LungkitError):
    """The job is not at an end, as this needs; or is, and this needs one that is not."""

    def __init__(self, message: str, job_id: str):
        super().__init__(message)
        self.job_id = job_id


class PayloadDiffers(LungkitError):
    """The idempotency key was used for another request."""


class LeaseLost(LungkitError):
    """The job was cancelled, or another worker reads it; nothing was saved."""


@dataclass(frozen=True)
class JobRow:
    """A job as its program sees it. Its reading, once it is done, has the same id."""

    id: str
    state: str  # one of tables.STATES
    priority: str
    model: str
    tries: int
    reason: str  # why it failed or was cancelled; otherwise empty
    created_at: datetime
    ended_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.state not in IN_PROGRESS


@dataclass(frozen=True)
class FailedJob:
    """A job that needs a person."""

    id: str
    sender: str  # the program or system
    model: str
    reason: str
    tries: int
    created_at: datetime
    again: bool  # whether what it needs is still kept


@dataclass(frozen=True, eq=False)
class Claimed:
    """A job that a worker reads now."""

    id: str
    lease: str
    model: str
    patient: StatedPatient
    birth_year: int | None
    content: bytes  # the file; empty where `files` has them
    files: tuple[str, ...] = ()  # ids of files in the inbox, all of one series
    supersedes: str | None = None  # the reading of the same series before late files came


@dataclass(frozen=True)
class SourceHeaders:
    """What objects that answer a reading need of the headers of its images, as the gateway packs it."""

    study_uid: str
    series_uid: str
    headers: bytes = field(repr=False)


class Jobs:
    """What a program does with jobs; each action raises KeyRefused or Forbidden before it does anything."""

    def __init__(self, access: KeyAccess):
        self.access = access

    def submit(
        self, content: bytes, model: str, patient: StatedPatient, priority: str = "routine", idempotency_key: str = ""
    ) -> tuple[JobRow, bool]:
        """A new job, and True; or the one that the same request made before, and False.

        Raises PatientDiffers, and RecordRefused for a new patient without a name. With an idempotency key also
        PayloadDiffers if the program used it for another request, and JobInProgress while that job is not at an end.
        """
        if priority not in OPEN:
            raise RecordRefused(f"priority {priority!r}: accepted are {', '.join(OPEN)}")
        idempotency_key = _accepted_key(idempotency_key)
        digest = _digest(content, model, patient, priority)
        with self.access.writes(PROGRAM) as (db, actor):
            if idempotency_key and (before := _replayed(db, actor.user_id, idempotency_key, digest)):
                return _row(before), False
            if patients.known_patient(db, patient) is None:
                patients.require_name(patient)
            job = Job(
                user_id=actor.user_id,
                key_id=actor.session_id,
                model=model,
                priority=priority,
                payload_sha256=digest,
                idempotency_key=idempotency_key or None,
                due_at=now() + UNHEARD,
            )
            db.add(job)
            db.flush()
            stated = {"name": patient.name, "birth_year": patient.birth_year, "sex": patient.sex}
            db.add(JobFile(job_id=job.id, patient_number=patient.number, patient=stated, content=content))
            return _row(job), True

    def job(self, job_id: str) -> JobRow:
        """One of the program's own jobs, or any with the scope "admin". Raises JobMissing."""
        with self.access.reads(PROGRAM) as (db, actor):
            return _row(_visible(db, job_id, actor))

    def latest(self, state: str = "", limit: int = 100) -> list[JobRow]:
        """The program's own jobs, or all with the scope "admin", newest first; state: only those."""
        with self.access.reads(PROGRAM) as (db, actor):
            rows = sa.select(Job).order_by(Job.created_at.desc(), Job.id).limit(limit)
            rows = rows if actor.sees_all else rows.where(Job.user_id == actor.user_id)
            return [_row(job) for job in db.scalars(rows.where(Job.state == state) if state else rows)]

    def cancel(self, job_id: str) -> JobRow:
        """Cancel a job that is not at an end; a worker that reads it saves nothing.

        Raises JobMissing, and JobInProgress if it has ended another way.
        """
        with self.access.writes(PROGRAM) as (db, actor):
            job = _visible(db, job_id, actor)
            if job.state == CANCELLED:
                return _row(job)
            if job.state not in IN_PROGRESS:
                raise JobInProgress(f"the job is {job.state}; only a queued or running one can be cancelled", job.id)
            end(db, Job.id == job.id, CANCELLED, "its program cancelled it")
            audit_trail.append(db, actor.user_id, "job.cancel", f"job:{job.id}")
            db.refresh(job)
            return _row(job)

    def again(self, job_id: str) -> JobRow:
        """Queue a failed job again. Raises JobMissing, and JobInProgress if it did not fail or its file is gone."""
        with self.access.writes(PROGRAM) as (db, actor):
            job = _visible(db, job_id, actor)
            read_again(db, job, actor.user_id, now() + UNHEARD)
            return _row(job)


# --- what administrators do; the caller has checked the role


def failed(db: orm.Session, limit: int = 200) -> list[FailedJob]:
    """Jobs that failed, newest first, of all programs and systems."""
    kept = sa.select(JobFile.job_id).where(JobFile.job_id == Job.id).exists()
    rows = sa.select(Job, User.full_name, kept).join(User, User.id == Job.user_id).where(Job.state == FAILED)
    return [
        FailedJob(job.id, sender, job.model, job.reason, job.tries, job.created_at, bool(can))
        for job, sender, can in db.execute(rows.order_by(Job.ended_at.desc(), Job.id).limit(limit))
    ]


def read_again(db: orm.Session, job: Job | None, by: int | None, due_at: datetime | None = None) -> None:
    """Queue a failed job again. Raises JobMissing, and JobInProgress if it did not fail or its file is gone."""
    if job is None:
        raise JobMissing(NO_JOB)
    if job.state != FAILED:
        raise JobInProgress(f"the job is {job.state}; only a failed one can be read again", job.id)
    if db.scalar(sa.select(JobFile.job_id).where(JobFile.job_id == job.id)) is None:
        raise JobInProgress("the job's file is no longer kept; send the image again", job.id)
    job.state, job.tries, job.reason, job.ended_at, job.due_at = QUEUED, 0, "", None, due_at or now()
    audit_trail.append(db, by, "job.again", f"job:{job.id}")


# --- what a worker does


def claim(store: Store, job_id: str) -> Claimed | None:
    """The job, for this worker alone until its lease ends; None if it does not wait to be read."""
    with store.write() as db:
        job = db.get(Job, job_id)
        if job is None or job.state != QUEUED:
            return None
        if no_more := _no_more(db, job):
            end(db, Job.id == job.id, CANCELLED, no_more)
            return None
        file = db.get_one(JobFile, job.id, options=[orm.undefer(JobFile.content)])
        job.state, job.lease, job.tries, job.due_at = RUNNING, new_id(), job.tries + 1, now() + LEASE
        stated = StatedPatient(file.patient_number, **file.patient)
        known = patients.with_number(db, stated.number)
        year = (known[0].birth_year if len(known) == 1 else None) or stated.birth_year
        received = (_files_of(db, job), _superseded(db, job)) if job.received_id else ()
        job.due_at += LEASE_OF_FILE * max(len(received[0] if received else ()), _bytes_of(db, job, file) // SLICE_BYTES)
        return Claimed(job.id, str(job.lease), job.model, stated, year, file.content, *received)


class JobAccess:
    """A worker's way to the records: it acts for the job's program, and what it saves ends the job.

    source: kept with the reading, where its images came as DICOM.
    """

    def __init__(self, store: Store, claimed: Claimed, source: SourceHeaders | None = None):
        self.store = store
        self._claimed, self._source = claimed, source

    @contextmanager
    def reads(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """A read transaction while the lease lasts. Raises LeaseLost."""
        with self.store.read() as db:
            yield db, _actor(_leased(db, self._claimed))

    @contextmanager
    def writes(self, *roles: str) -> Iterator[tuple[orm.Session, Actor]]:
        """The write transaction that ends the job: it is done if what the caller saves is saved. Raises LeaseLost."""
        with self.store.write() as db:
            job = _leased(db, self._claimed)
            yield db, _actor(job)
            if self._source:
                of = {"supersedes": self._claimed.supersedes, **vars(self._source)}
                db.add(ReadingSource(reading_id=job.id, **of))
                db.flush()
            if route := db.get(Route, job.route_id) if job.route_id else None:
                dispatches.enqueue(db, job.id, route.destinations)
            end(db, Job.id == job.id, DONE)


def fail(store: Store, claimed: Claimed, reason: str, final: bool) -> None:
    """Note why the job could not be read; it is tried again later, unless that is `final` or it was the last try.

    reason: for people; nothing that names a patient. final: the image itself was refused, so its file is not kept.
    Raises LeaseLost.
    """
    with store.write() as db:
        job = _leased(db, claimed)
        if final:
            end(db, Job.id == job.id, FAILED, reason)
        elif job.tries < MOST_TRIES:
            job.state, job.lease, job.reason, job.due_at = QUEUED, None, reason, now() + BACK_OFF[job.tries - 1]
        else:
            job.state, job.lease, job.reason, job.ended_at = FAILED, None, reason, now()


def sweep(store: Store, limit: int = 1000) -> list[tuple[str, str]]:
    """(id, priority) of jobs to put into the queue: those that are due, and those whose worker is gone.

    Also deletes what failed jobs have kept for long enough.
    """
    at = now()
    late = (Job.state.in_(IN_PROGRESS)) & (Job.due_at <= at)
    old = sa.select(Job.id).where(Job.state == FAILED, Job.ended_at < at - KEPT)
    with store.read() as db:
        kept = sa.select(JobFile.job_id).where(JobFile.job_id.in_(old)).limit(1)
        if db.scalar(kept) is None and db.scalar(sa.select(Job.id).where(late).limit(1)) is None:
            return []
    with store.write() as db:
        db.execute(sa.delete(JobFile).where(JobFile.job_id.in_(old)))
        jobs = db.scalars(sa.select(Job).where(late).order_by(Job.due_at).limit(limit)).all()
        for job in jobs:
            if job.state == RUNNING and job.tries >= MOST_TRIES:
                job.state, job.lease, job.ended_at = FAILED, None, at
                job.reason = f"the worker ended before it was done, {MOST_TRIES} times"
            else:
                job.state, job.lease, job.due_at = QUEUED, None, at + UNHEARD
        return [(job.id, job.priority) for job in jobs if job.state == QUEUED]


def counts(store: Store) -> dict[str, int]:
    """How many jobs there are in each state that has any."""
    with store.read() as db:
        rows = db.execute(sa.select(Job.state, sa.func.count()).group_by(Job.state))
        return {state: number for state, number in rows}  # noqa: C416


# --- shared


def end(db: orm.Session, which: sa.ColumnElement[bool], state: str, reason: str = "") -> None:
    """End these jobs, and delete what they needed."""
    ids = sa.select(Job.id).where(which)
    db.execute(sa.delete(JobFile).where(JobFile.job_id.in_(ids)))
    ended = {"state": state, "reason": reason, "lease": None, "ended_at": now()}
    db.execute(sa.update(Job).where(which).values(**ended).execution_options(synchronize_session="fetch"))


def forget_patient(db: orm.Session, patient: Patient) -> None:
    """Cancel every job of the patient, however the number is written: its reading would bring the patient back."""
    numbers = patients.written_alike(db, patient, db.scalars(sa.select(JobFile.patient_number).distinct()))
    of_patient = sa.select(JobFile.job_id).where(JobFile.patient_number.in_(numbers)).scalar_subquery()
    ids = list(db.scalars(sa.select(Job.id).where(Job.id.in_(of_patient))))
    end(db, Job.id.in_(ids), CANCELLED, "its patient was erased")


def _no_more(db: orm.Session, job: Job) -> str:
    """Why a job may not be read any more; empty if it may."""
    if job.key_id is None:
        received = sa.select(ReceivedStudy.caller).where(ReceivedStudy.id == job.received_id).scalar_subquery()
        refused = sa.select(Caller.id).where(Caller.ae_title == received, ~Caller.active)
        return "" if db.scalar(refused) is None else "its sender may not send any more"
    revoked = db.scalar(sa.select(ApiKey.revoked_at).where(ApiKey.id == job.key_id)) is not None
    return "its API key was revoked" if revoked else ""


def _files_of(db: orm.Session, job: Job) -> tuple[str, ...]:
    """The ids of the files in the inbox that a job is about, by instance."""
    which = (ReceivedFile.received_id == job.received_id) & (ReceivedFile.series_uid == job.series_uid)
    which &= ReceivedFile.set_aside == ""
    if job.instance_uid is not None:
        which &= ReceivedFile.instance_uid == job.instance_uid
    return tuple(db.scalars(sa.select(ReceivedFile.id).where(which).order_by(ReceivedFile.instance_uid)))


def _bytes_of(db: orm.Session, job: Job, file: JobFile) -> int:
    """The size of what a job is about."""
    which = (ReceivedFile.received_id == job.received_id) & (ReceivedFile.series_uid == job.series_uid)
    return len(file.content) + int(db.scalar(sa.select(sa.func.sum(ReceivedFile.bytes)).where(which)) or 0)


def _superseded(db: orm.Session, job: Job) -> str | None:
    """The latest reading of the same series or image, made before late files came, or read again since."""
    same = of_same(job.received_id, job.series_uid, job.instance_uid) & (Job.state == DONE)
    latest = db.scalar(sa.select(Job.id).where(same).order_by(Job.ended_at.desc()).limit(1))
    reading = db.get(Reading, latest) if latest else None
    return studies.of_same_image(db, reading.study)[-1].readings[-1].id if reading else latest


def of_same(received_id: str | None, series_uid: str | None, instance_uid: str | None) -> sa.ColumnElement[bool]:
    """Jobs of the same series and of its images, or of the same image of it."""
    same = (Job.received_id == received_id) & (Job.series_uid == series_uid)
    return same if instance_uid is None else same & (Job.instance_uid == instance_uid)


def _leased(db: orm.Session, claimed: Claimed) -> Job:
    job = db.get(Job, claimed.id, options=[orm.joinedload(Job.user)])
    if job is None or job.state != RUNNING or job.lease != claimed.lease:
        raise LeaseLost("the job was cancelled, or another worker reads it; nothing was saved")
    return job


def _actor(job: Job) -> Actor:
    return Actor(job.user_id, job.user.name, job.user.full_name, PROGRAM, job.id, sees_all=False)


def _visible(db: orm.Session, job_id: str, actor: Actor) -> Job:
    job = db.get(Job, job_id) if re.fullmatch(r"[0-9a-f-]{36}", job_id) else None
    if job is None or not (actor.sees_all or job.user_id == actor.user_id):
        raise JobMissing(NO_JOB)
    return job


def _row(job: Job) -> JobRow:
    return JobRow(**{field.name: getattr(job, field.name) for field in fields(JobRow)})


def _accepted_key(idempotency_key: str) -> str:
    if not re.fullmatch(rf"[!-~]{{0,{LONGEST_IDEMPOTENCY_KEY}}}", idempotency_key):
        raise RecordRefused(
            f"the idempotency key has other characters than letters, digits and signs, or more than "
            f"{LONGEST_IDEMPOTENCY_KEY}"
        )
    return idempotency_key


def _digest(content: bytes, model: str, patient: StatedPatient, priority: str) -> str:
    stated = [model, priority, patient.number, patient.name, patient.birth_year, patient.sex]
    return hashlib.sha256(json.dumps([*stated, files.sha256(content)]).encode()).hexdigest()


def _replayed(db: orm.Session, user_id: int, idempotency_key: str, digest: str) -> Job | None:
    job = db.scalar(sa.select(Job).where(Job.user_id == user_id, Job.idempotency_key == idempotency_key))
    if job is None:
        return None
    if job.payload_sha256 != digest:
        raise PayloadDiffers("this idempotency key was used for another request; choose a new one for a new request")
    if job.state in IN_PROGRESS:
        raise JobInProgress(f"the request with this idempotency key is still {job.state}", job.id)
    return job


assert set(OPEN) < set(PRIORITIES)
