"""Studies that come as DICOM, file by file, until they are complete and become jobs.

No file says that it is the last one. A study is complete when none came for a while, and its series then become jobs by
the rules of `routing`. A file that comes later opens the study again, and what is then read supersedes the reading
before. The files lie in the inbox, under random names; the rows here say what they are. All of it is kept for KEPT
after the last file, because late files are read together with the others.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import config
from lungkit.clinic.records import audit_trail, jobs, patients, routing
from lungkit.clinic.records.routing import Facts, RouteRow
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import (
    ARRIVING,
    CANCELLED,
    CLOSED,
    DONE,
    Job,
    JobFile,
    Patient,
    ReceivedFile,
    ReceivedStudy,
    folded,
    now,
)
from lungkit.errors import LungkitError
from lungkit.wording import count

KEPT = timedelta(days=1)  # of a study, after its last file
MOST_FILES = 20_000  # of a study


class ArrivalRefused(LungkitError):
    """A file that does not fit into its study; nothing was kept of it."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A file that lies in the inbox, and what its header says."""

    id: str  # also its name in the inbox
    study_uid: str
    series_uid: str
    instance_uid: str
    patient_number: str
    patient: dict[str, Any]  # name, birth_year, sex
    modality: str
    body_part: str
    descriptions: tuple[str, ...]
    set_aside: str  # why it is no image to read; often empty
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ReceivedRow:
    """A study that was received, for people who watch over it; it does not name the patient."""

    id: str
    caller: str
    state: str  # "arriving" or "closed"
    files: int
    closings: int
    outcome: str
    last_at: datetime


@dataclass(frozen=True)
class SeriesOfStudy:
    """A series of a study that was received."""

    uid: str
    facts: Facts
    files: int  # images
    set_aside: int  # files that are no images to read


def inbox(file_id: str) -> Path:
    """Where a file lies. file_id: one that this module gave, never a name from outside."""
    return config.inbox_dir() / file_id[:2] / file_id


# --- arriving


def arrive(store: Store, user_id: int, caller: str, file: Arrival, key_id: str | None = None) -> str:
    """Note a file that lies in the inbox. Returns the id of a file that it replaces, its own if it was there already.

    The caller then deletes the file with that id. A file that is sent again opens its study again if nothing came of it
    before. key_id: the API key that it was sent with, if it came over the web. Raises ArrivalRefused.
    """
    for what in ("study_uid", "series_uid", "instance_uid"):
        if not 1 <= len(getattr(file, what)) <= 64:
            raise ArrivalRefused(f"the file needs a {what.replace('_uid', '')} UID of 1 to 64 characters")
    with store.write() as db:
        study = _study(db, user_id, file.study_uid)
        if study is None:
            study = ReceivedStudy(user_id=user_id, study_uid=file.study_uid, caller=caller, key_id=key_id,
                                  patient_number=file.patient_number, patient=file.patient)  # fmt: skip
            db.add(study)
            db.flush()
        if folded(study.patient_number) != folded(file.patient_number):
            raise ArrivalRefused("the file has another PatientID than the other files of its study")
        same = (ReceivedFile.received_id == study.id) & (ReceivedFile.instance_uid == file.instance_uid)
        before = db.scalar(sa.select(ReceivedFile).where(same))
        if before is not None and before.sha256 == file.sha256 and _came_to_something(db, study, before):
            return file.id
        if before is None and _number_of_files(db, study.id) >= MOST_FILES:
            raise ArrivalRefused(f"a study may have at most {MOST_FILES:,} files")
        replaced = "" if before is None else before.id
        if before is not None:
            db.delete(before)
            db.flush()
        kept = {name: value for name, value in vars(file).items() if name not in _OF_STUDY}
        db.add(ReceivedFile(received_id=study.id, **kept | {"descriptions": list(file.descriptions)}))
        study.state, study.last_at = ARRIVING, now()
        return replaced


_OF_STUDY = ("study_uid", "patient_number", "patient")


# --- complete


def complete(store: Store, quiet: timedelta, limit: int = 20) -> list[str]:
    """Studies of which no file came for this long."""
    late = (ReceivedStudy.state == ARRIVING) & (ReceivedStudy.last_at <= now() - quiet)
    with store.read() as db:
        return list(db.scalars(sa.select(ReceivedStudy.id).where(late).order_by(ReceivedStudy.last_at).limit(limit)))


def close(store: Store, received_id: str, quiet: timedelta) -> list[tuple[str, str]]:
    """Make the jobs of a study that is complete: (id, priority) of each. None if another gateway did."""
    with store.write() as db:
        study = db.get(ReceivedStudy, received_id)
        if study is None or study.state != ARRIVING or study.last_at > now() - quiet:
            return []
        routes = routing.list_routes(db)
        made, said = list[Job](), list[str]()
        for uid, files in _by_series(db, study.id).items():
            if any(file.pending for file in files):
                new, words = _jobs_of_series(db, study, uid, files, routes)
                made += new
                said.append(words)
                for file in files:
                    file.pending = False
        study.state, study.closed_at, study.closings = CLOSED, now(), study.closings + 1
        study.outcome = "; ".join(dict.fromkeys(said))[:4000]
        audit_trail.append(db, study.user_id, "study.complete", f"received:{study.id}", jobs=len(made))
        return [(job.id, job.priority) for job in made]


def _jobs_of_series(
    db: orm.Session, study: ReceivedStudy, uid: str, files: list[ReceivedFile], routes: list[RouteRow]
) -> tuple[list[Job], str]:
    """The jobs of a series, and in words what becomes of it."""
    images = [file for file in files if not file.set_aside]
    facts = _facts(study, images or files)
    named = " ".join(filter(None, (facts.modality, facts.body_part))) or "unnamed"
    if not images:
        return [], f"a series ({named}) is set aside: {files[0].set_aside}"
    route = routing.route_for(routes, facts)
    if route is None:
        return [], f"no rule fits a series ({named})"
    if not study.patient_number:
        return [], f"a series ({named}) is not read: its files have no PatientID"
    whole = facts.modality == "CT" and len(images) > 1
    new = [file for file in images if file.pending]
    made = [
        _job(db, study, uid, None if whole else file.instance_uid, route) for file in (images[:1] if whole else new)
    ]
    what = f"a series of {count(len(images), 'slice')}" if whole else count(len(made), "image")
    return made, f"{what} ({named}) to {route.rule.model} by the rule '{route.rule.name}'"


def _job(db: orm.Session, study: ReceivedStudy, series_uid: str, instance_uid: str | None, route: RouteRow) -> Job:
    same = jobs.of_same(study.id, series_uid, instance_uid) & Job.state.in_(jobs.IN_PROGRESS)
    jobs.end(db, same, CANCELLED, "more files of its study came")
    job = Job(
        user_id=study.user_id,
        key_id=study.key_id,
        model=route.rule.model,
        priority=route.rule.priority,
        payload_sha256="",
        due_at=now() + jobs.UNHEARD,
        received_id=study.id,
        series_uid=series_uid,
        instance_uid=instance_uid,
        route_id=route.id,
    )
    db.add(job)
    db.flush()
    stated = {"name": "", "birth_year": None, "sex": "unknown"} | study.patient
    db.add(JobFile(job_id=job.id, patient_number=study.patient_number, patient=stated, content=b""))
    return job


# --- watching, trying rules, tidying


def latest(db: orm.Session, limit: int = 100) -> list[ReceivedRow]:
    """Studies that are still kept, newest first. The caller has checked who asks."""
    number = sa.select(sa.func.count()).where(ReceivedFile.received_id == ReceivedStudy.id).scalar_subquery()
    rows = db.execute(sa.select(ReceivedStudy, number).order_by(ReceivedStudy.last_at.desc()).limit(limit))
    return [
        ReceivedRow(study.id, study.caller, study.state, files, study.closings, study.outcome, study.last_at)
        for study, files in rows
    ]


def series_of(db: orm.Session, received_id: str) -> list[SeriesOfStudy]:
    """The series of a study that is still kept, to try rules on. The caller has checked who asks."""
    study = db.get(ReceivedStudy, received_id)
    if study is None:
        raise LungkitError("that study is not kept any more; choose another one")
    found = []
    for uid, files in _by_series(db, study.id).items():
        images = [file for file in files if not file.set_aside]
        found.append(SeriesOfStudy(uid, _facts(study, images or files), len(images), len(files) - len(images)))
    return found


def forget_patient(db: orm.Session, patient: Patient) -> list[str]:
    """Forget what came of the patient, however the number is written; returns the ids of files to delete."""
    numbers = patients.written_alike(db, patient, db.scalars(sa.select(ReceivedStudy.patient_number).distinct()))
    return _forget(db, ReceivedStudy.patient_number.in_(numbers))


def tidy(store: Store, limit: int = 20) -> list[str]:
    """Forget studies that were kept for long enough; returns the ids of files that the caller deletes."""
    needed = sa.select(JobFile.job_id).where(JobFile.job_id == Job.id).exists()
    waiting = sa.select(Job.id).where(Job.received_id == ReceivedStudy.id, Job.state != DONE, needed).exists()
    old = (ReceivedStudy.state == CLOSED) & (ReceivedStudy.last_at < now() - KEPT) & ~waiting
    with store.read() as db:
        ids = list(db.scalars(sa.select(ReceivedStudy.id).where(old).limit(limit)))
    if not ids:
        return []
    with store.write() as db:
        return _forget(db, ReceivedStudy.id.in_(ids) & old)


def known(store: Store, file_ids: set[str]) -> set[str]:
    """Those of these files that are on record; the others are left over from a sender that broke off."""
    with store.read() as db:
        return set(db.scalars(sa.select(ReceivedFile.id).where(ReceivedFile.id.in_(file_ids))))


def _forget(db: orm.Session, which: sa.ColumnElement[bool]) -> list[str]:
    ids = list(db.scalars(sa.select(ReceivedStudy.id).where(which)))
    files = list(db.scalars(sa.select(ReceivedFile.id).where(ReceivedFile.received_id.in_(ids))))
    db.execute(sa.delete(ReceivedFile).where(ReceivedFile.received_id.in_(ids)))
    db.execute(sa.delete(ReceivedStudy).where(ReceivedStudy.id.in_(ids)))
    return files


def _study(db: orm.Session, user_id: int, study_uid: str) -> ReceivedStudy | None:
    return db.scalar(
        sa.select(ReceivedStudy).where(ReceivedStudy.user_id == user_id, ReceivedStudy.study_uid == study_uid)
    )


def _came_to_something(db: orm.Session, study: ReceivedStudy, file: ReceivedFile) -> bool:
    """Whether a file that is there waits for the rest of its study, is being read, or was read."""
    if not inbox(file.id).is_file():
        return False
    if file.pending or file.set_aside:
        return True
    which = jobs.of_same(study.id, file.series_uid, None) & Job.state.in_((*jobs.IN_PROGRESS, DONE))
    which &= Job.instance_uid.is_(None) | (Job.instance_uid == file.instance_uid)
    return db.scalar(sa.select(Job.id).where(which).limit(1)) is not None


def _number_of_files(db: orm.Session, received_id: str) -> int:
    return cast(int, db.scalar(sa.select(sa.func.count()).where(ReceivedFile.received_id == received_id)))


def _by_series(db: orm.Session, received_id: str) -> dict[str, list[ReceivedFile]]:
    """The files of a study by series."""
    series = defaultdict(list)
    rows = sa.select(ReceivedFile).where(ReceivedFile.received_id == received_id)
    for file in db.scalars(rows.order_by(ReceivedFile.series_uid, ReceivedFile.instance_uid)):
        series[file.series_uid].append(file)
    return series


def _facts(study: ReceivedStudy, files: list[ReceivedFile]) -> Facts:
    first = files[0]
    return Facts(study.caller, first.modality, first.body_part, tuple(first.descriptions))
