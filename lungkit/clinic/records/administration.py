"""What an administrator does: people, patients, usage, models, the audit trail, the machine's health.

As in `cases`, every action checks the role inside its own transaction, and every change is on the audit trail.
An administrator cannot read or review images.
"""

import csv
import io
import operator
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, cast

import pandas as pd
import psutil
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import config
from lungkit import times as clock
from lungkit.clinic import memory
from lungkit.clinic.records import (
    accounts,
    audit_trail,
    cases,
    jobs,
    maintenance,
    patients,
    received,
    settings,
    studies,
    trials,
)
from lungkit.clinic.records.accounts import Account
from lungkit.clinic.records.cases import PatientPage
from lungkit.clinic.records.corrections import still_counts
from lungkit.clinic.records.gateway_actions import GatewayActions
from lungkit.clinic.records.patients import PatientRow
from lungkit.clinic.records.store import Store, StoreError, also_on_a_full_disk
from lungkit.clinic.records.tables import (
    CLASS,
    AuditEvent,
    Base,
    DriftRun,
    Patient,
    Reading,
    Review,
    SignIn,
    Study,
    StudyMove,
    User,
)
from lungkit.clinic.records.trial_actions import TrialActions
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import ModelCard
from lungkit.models.prediction import Check, refusal

# The columns of the export, and what the records call those that have another name there.
_EXPORTED = (
    "reading_id", "patient_number", "patient_name", "birth_year", "sex", "study_id", "kind", "file_sha256", "width",
    "height", "notes", "uploaded_at", "uploaded_by", "model", "version", "label", "decision", "probability",
    "probabilities", "failed_checks", "milliseconds", "read_at", "reviews", "reviewer", "review_kind", "agrees",
    "reviewer_label", "review_finding", "review_comment", "reviewed_at", "answer_shown", "withdrawn_at",
    "withdrawn_reason",
)  # fmt: skip
_RECORDED_AS = {
    "patient_number": "number",
    "patient_name": "name",
    "file_sha256": "sha256",
    "uploaded_by": "read_by",
    "reviewed_at": "review_at",
    "answer_shown": "review_answer_shown",
}

# A spreadsheet takes these for the start of a formula; the wide ones come from Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class ModelRow:
    """A version in the registry."""

    model: str
    version: str
    active: bool
    card: ModelCard | None  # None where it cannot be read
    problem: str  # why the version cannot be used; empty if nothing is known to be wrong

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, eq=False)
class UsageFigures:
    """What was done since a day; only the latest review of a reading counts.

    Agreement is that of the reviews that give a class. per_day: by day, without gaps: sign_ins, uploads, readings,
    reviews, no_class (reviews without a class). times: by day: readings, and the median, p95
    and slowest of their times in ms. decisions: model, decision, n. reviews: model, label (the reviewer's), n, agreed.
    kinds: model, kind (one of tables.REVIEW_KINDS), n, answer_shown (how many of them were given after the model's
    answer was on screen).
    agreement: model, n, agreed, rate, low, high (95 %, Wilson), with a last row "all" if there are several models.
    confusion: for each model counts, in rows the model's label, in columns the reviewer's.
    """

    since: date
    per_day: pd.DataFrame
    times: pd.DataFrame
    decisions: pd.DataFrame
    reviews: pd.DataFrame
    kinds: pd.DataFrame
    agreement: pd.DataFrame
    confusion: dict[str, pd.DataFrame]


@dataclass(frozen=True)
class DriftNight:
    """What a nightly look at drift has found; cards as `lungkit.clinic.learning.nightly` makes them."""

    day: date  # the day after the last one that was looked at, UTC
    alarm: bool
    cards: list[dict[str, Any]]
    settings: dict[str, Any]
    told_at: datetime | None  # when people were told
    ran_at: datetime


class Administration(GatewayActions, TrialActions):
    """The actions of an administrator; each raises SignedOut or Forbidden before anything is read or written."""

    # --- people

    def people(self) -> list[Account]:
        """Every account, by name."""
        with self.access.reads("admin") as (db, _):
            return accounts.list_users(db)

    def add_user(self, name: str, full_name: str, role: str) -> str:
        """Make an account; returns its password, which is shown only once."""
        with self.access.writes("admin") as (db, actor):
            return accounts.add_user(db, name, full_name, role, by=actor.user_id)

    @also_on_a_full_disk
    def disable(self, name: str) -> None:
        """End the person's sessions and refuse further sign-ins; not for oneself, nor for the last admin."""
        with self.access.writes("admin") as (db, actor):
            accounts.disable_user(db, name, by=actor.user_id)

    def enable(self, name: str) -> None:
        """Let the person sign in again, with the same password as before."""
        with self.access.writes("admin") as (db, actor):
            accounts.enable_user(db, name, by=actor.user_id)

    def set_role(self, name: str, role: str) -> None:
        """Give the person another role from the next action on; not oneself, nor the last admin."""
        with self.access.writes("admin") as (db, actor):
            accounts.set_role(db, name, role, by=actor.user_id)

    @also_on_a_full_disk
    def reset_password(self, name: str) -> str:
        """Set a new random password and return it; it is shown only once. The person's sessions end."""
        with self.access.writes("admin") as (db, actor):
            return accounts.reset_password(db, name, by=actor.user_id)

    # --- patients

    def patients(self, text: str = "", limit: int = 50) -> list[PatientRow]:
        """Patients whose number or name contains every word of `text`; all patients if it is empty."""
        with self.access.reads("admin") as (db, _):
            return patients.search_patients(db, text, limit)

    def history(self, patient_id: str) -> PatientPage:
        """A patient with all readings, oldest first; the audit trail notes the opening. Raises RecordMissing."""
        return cases.open_patient(self.access, "admin", patient_id)

    def set_excluded(self, patient_id: str, excluded: bool) -> None:
        """Say whether a patient must not be learned from, such as after consent was withdrawn. Raises RecordMissing."""
        with self.access.writes("admin") as (db, actor):
            patient = patients.find_patient(db, patient_id)
            patient.excluded = excluded
            audit_trail.append(db, actor.user_id, "patient.exclude", f"patient:{patient.id}", excluded=excluded)

    @also_on_a_full_disk
    def export_csv(self) -> bytes:
        """All readings with patient, study and latest review, one a line, oldest first; UTF-8 with a mark for Excel.

        A cell that a spreadsheet would take for a formula starts with an apostrophe. Images that were withdrawn are
        there, and say so.
        """
        number_of_reviews = (
            sa.select(sa.func.count()).where(Review.reading_id == Reading.id).scalar_subquery().label("reviews")
        )
        readings = cases.with_review(
            Patient.birth_year,
            Patient.sex,
            Study.id.label("study_id"),
            Study.sha256,
            Study.width,
            Study.height,
            Study.notes,
            Study.uploaded_at,
            Reading.milliseconds,
            number_of_reviews,
            of_review=("finding", "comment", "at", "answer_shown"),
        )
        with self.access.writes("admin") as (db, actor):
            rows = db.execute(readings.order_by(Reading.read_at, Reading.id)).all()
            audit_trail.append(db, actor.user_id, "records.export", "records:all", readings=len(rows))
        return _csv([_csv_row(row) for row in rows])

    def erase_patient(self, patient_id: str) -> None:
        """Remove a patient with all studies, readings and reviews; one audit event says so without a name.

        Of images that were moved from or to the patient, the reason is removed, which may name the patient.

        The bytes are cleared from the database's files at once, or with the next erasure, backup or restart if someone
        is reading them now. Backups made earlier still contain the patient. Raises RecordMissing.
        """
        with self.access.writes("admin") as (db, actor):
            patient = patients.find_patient(db, patient_id)
            jobs.forget_patient(db, patient)
            left = received.forget_patient(db, patient)
            of_patient = sa.select(Study.id).where(Study.patient_id == patient.id)
            readings = sa.select(Reading.id).where(Reading.study_id.in_(of_patient))
            erased = {
                "reviews": _erase(db, Review, Review.reading_id.in_(readings)),
                "readings": _erase(db, Reading, Reading.study_id.in_(of_patient)),
                "studies": _erase(db, Study, Study.patient_id == patient.id),
            }
            # The reason of a move may name this patient, and the image may be another's by now.
            moved = (StudyMove.from_patient == patient.id) | (StudyMove.to_patient == patient.id)
            db.execute(sa.update(StudyMove).where(moved).values(reason=""))
            _erase(db, Patient, Patient.id == patient.id)
            audit_trail.append(db, actor.user_id, "patient.erase", f"patient:{patient.id}", **erased)
        for file_id in left:
            received.inbox(file_id).unlink(missing_ok=True)
        with suppress(StoreError):  # the patient is erased, even if the files cannot be cleared now
            self.access.store.scrub()

    # --- usage

    def usage(self, days: int = 90) -> UsageFigures:
        """What was done in the last `days` days of the clinic's time zone, today included, without withdrawn images."""
        if not 1 <= days <= 3660:
            raise LungkitError(f"{days} days: accepted are 1 to 3660")
        since = clock.today() - timedelta(days=days - 1)
        start = clock.midnight(since)
        latest = cases.latest_review()
        of_reading = (Reading.read_at, Reading.milliseconds, Reading.model, Reading.decision)
        of_review = (
            latest.c.at, Reading.model, Reading.label, latest.c.label, latest.c.agrees, latest.c.kind,
            latest.c.answer_shown, Reading.checks,
        )  # fmt: skip
        reviewed = (
            sa.select(*of_review).join(latest, latest.c.reading_id == Reading.id).where(still_counts(Reading.study_id))
        )
        with self.access.reads("admin") as (db, _):
            sign_ins = _by_day(db, sa.select(SignIn.created_at).where(SignIn.created_at >= start))
            uploaded = sa.select(Study.uploaded_at).where(Study.uploaded_at >= start, still_counts())
            uploads = _by_day(db, uploaded.where(studies.instead_of().is_(None)))  # not each time it was read again
            read = sa.select(*of_reading).where(Reading.read_at >= start, still_counts(Reading.study_id))
            readings = _by_day(db, read, "ms", "model", "decision")
            labels = ("model", "model_label", "label", "agreed", "kind", "answer_shown", "checks")
            said = _by_day(db, reviewed.where(latest.c.at >= start), *labels)
        # Both gave a class. Reviews of earlier releases say whether they agree with a refused answer all the same.
        both = said["agreed"].notna() & ~said["checks"].map(_refused).astype(bool)
        reviews = said[both].astype({"agreed": bool})
        reviews_of_label = reviews.groupby(["model", "label"], as_index=False)
        return UsageFigures(
            since=since,
            per_day=_per_day(
                since,
                sign_ins=sign_ins,
                uploads=uploads,
                readings=readings,
                reviews=said,
                no_class=said[said["kind"] != CLASS],
            ),
            times=_times(readings),
            decisions=readings.groupby(["model", "decision"], as_index=False).agg(n=("ms", "size")),
            reviews=reviews_of_label.agg(n=("agreed", "size"), agreed=("agreed", "sum")),
            kinds=said.groupby(["model", "kind"], as_index=False).agg(
                n=("kind", "size"), answer_shown=("answer_shown", "sum")
            ),
            agreement=_agreement(reviews),
            confusion={str(model): _confusion(of_model) for model, of_model in reviews.groupby("model")},
        )

    # --- models

    def models(self) -> list[ModelRow]:
        """Every version in the registry, by model, newest first."""
        self._check_role()
        return [_model_row(name, version) for name in registry.models() for version in registry.versions(name)[::-1]]

    def card(self, model: str, version: str) -> ModelCard:
        """A version's card as the registry keeps it, for programs. Raises the registry's errors."""
        self._check_role()
        return registry.find(f"{model}@{version}").card

    def promote(self, model: str, version: str) -> ModelRow:
        """Use a version from the next reading on, past the trials. Raises the registry's errors."""
        with self.access.writes("admin") as (db, actor):
            before, wanted = registry.active_name(model), registry.find(f"{model}@{version}")
            audit_trail.append(db, actor.user_id, "model.promote", f"model:{wanted}")
            trials.gone_back(db, actor, model, before, wanted.version)
            db.flush()
            # Last, because it cannot be undone with the transaction, and still inside it, although it checks hashes: no
            # other promotion can come between it and its event.
            promoted = registry.promote(model, version)
        return _model_row(promoted.model, promoted.version)

    def roll_back(self, model: str) -> ModelRow:
        """Use the version that was active before the present one. Raises the registry's errors."""
        with self.access.writes("admin") as (db, actor):
            before = registry.active_name(model)
            previous = registry.rollback(model)
            audit_trail.append(db, actor.user_id, "model.roll_back", f"model:{previous}")
            trials.gone_back(db, actor, model, before, previous.version)
        return _model_row(previous.model, previous.version)

    # --- drift

    def drift_days(self, limit: int = 60) -> list[tuple[date, bool]]:
        """The last nights that were looked at, the newest first, and whether something had changed."""
        with self.access.reads("admin") as (db, _):
            rows = db.execute(sa.select(DriftRun.day, DriftRun.alarm).order_by(DriftRun.day.desc()).limit(limit))
            return [(row.day, row.alarm) for row in rows]

    def drift_night(self, day: date | None = None) -> DriftNight | None:
        """What a night has found, the newest by default; None where there is none."""
        with self.access.reads("admin") as (db, _):
            return _drift_night(db, day)

    # --- settings

    def setting(self, name: str) -> Any:
        """What a setting is now; name: one of settings.KINDS. Raises SettingRefused where a wrong value is stored."""
        with self.access.reads("admin") as (db, _):
            return settings.get(db, name)

    def set_setting(self, name: str, value: Any) -> None:
        """Change a setting for all of the clinic. Raises SettingRefused, which says what is accepted."""
        with self.access.writes("admin") as (db, actor):
            settings.put(db, name, value, by=actor.user_id)

    # --- trail and health

    def trail(
        self,
        limit: int = 200,
        action: str | None = None,
        user_id: int | None = None,
        before: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> "Sequence[sa.Row[*tuple[Any, ...]]]":
        """The newest events of the audit trail: number, at, user (name, or None), action, object, detail.

        action, user_id: only such events. before: only events with a smaller number, to page backwards.
        since, until: only events from this time on, and before that time.
        """
        event = AuditEvent
        filters: tuple[tuple[Callable[..., Any], Any, Any], ...] = (
            (operator.eq, event.action, action),
            (operator.eq, event.user_id, user_id),
            (operator.lt, event.number, before),
            (operator.ge, event.at, since),
            (operator.lt, event.at, until),
        )
        events = (
            sa.select(event.number, event.at, User.name.label("user"), event.action, event.object, event.detail)
            .outerjoin(User, User.id == event.user_id)
            .where(*(compare(column, value) for compare, column, value in filters if value is not None))
            .order_by(event.number.desc())
            .limit(limit)
        )
        with self.access.reads("admin") as (db, _):
            return db.execute(events).all()

    def verify_trail(self) -> int:
        """Check that each event follows the one before; returns their number. Raises AuditBroken."""
        self._check_role()
        return audit_trail.verify(self.access.store)

    def actions(self) -> list[str]:
        """The kinds of events on the trail."""
        with self.access.reads("admin") as (db, _):
            return list(db.scalars(sa.select(AuditEvent.action).distinct().order_by(AuditEvent.action)))

    def health(self) -> dict[str, Any]:
        """The machine's state: database, database_bytes, disk_free_bytes, full_disk, reserve_bytes,
        temporary_free_bytes, memory_left_bytes, memory_bytes, sessions, kernels, kernels_bytes, server_bytes, models,
        damaged, audit_events, drift.
        full_disk: words, see maintenance. reserve_bytes: None where the disk is the database server's.
        memory: what this process can still take, see memory.left, and what there is in all.
        kernels: those of the server that this process belongs to, 0 if there is none. drift: the last night, or None.
        models, damaged: the versions in use that can read, and what is wrong with the others.
        """
        with self.access.reads("admin") as (db, _):
            sessions = db.scalar(
                sa.select(sa.func.count()).select_from(SignIn).join(User).where(accounts.is_open(), User.active)
            )
            events = db.scalar(sa.select(sa.func.max(AuditEvent.number))) or 0
            size = _database_bytes(self.access.store, db)
            night = _drift_night(db)
        store, (server, kernels) = self.access.store, _processes()
        in_use = [row for row in self.models() if row.active]
        return {
            "database": store.url.get_backend_name(),
            "database_bytes": size,
            "disk_free_bytes": _disk_free(store),
            "full_disk": maintenance.full_disk(store),
            "reserve_bytes": store.reserve.bytes() if store.path else None,
            "temporary_free_bytes": _temporary_free(),
            "memory_left_bytes": memory.left(),
            "memory_bytes": memory.total(),
            "sessions": sessions,
            "kernels": len(kernels),
            "kernels_bytes": memory.of_processes(kernels),
            "server_bytes": memory.of_processes(server),
            "models": [str(row) for row in in_use if not row.problem],
            "damaged": [row.problem for row in in_use if row.problem],
            "audit_events": events,
            "drift": night,
        }

    def full_disk(self) -> str:
        """What is to be done about a full disk, in words; empty while there is room."""
        self._check_role()
        return maintenance.full_disk(self.access.store)

    def _check_role(self) -> None:
        """For what is read outside the database."""
        with self.access.reads("admin"):
            pass


def _erase(db: orm.Session, table: type[Base], which: sa.ColumnElement[bool]) -> int:
    """Delete rows; returns their number."""
    return cast("sa.CursorResult[Any]", db.execute(sa.delete(table).where(which))).rowcount


# --- export


def _refused(checks: list[dict[str, Any]]) -> str:
    """What `refusal` says of checks as they are stored."""
    return refusal(Check(**check) for check in checks)


def _csv_row(row: "sa.Row[*tuple[Any, ...]]") -> dict[str, object]:
    values = {
        **row._mapping,
        "probability": row.probabilities[row.label],
        "probabilities": "; ".join(f"{name} {p:.4f}" for name, p in row.probabilities.items()),
        "failed_checks": "; ".join(check["words"] for check in row.checks if not check["passed"]),
    }
    if refused := _refused(row.checks):
        values |= dict.fromkeys(("label", "probability", "probabilities", "agrees")) | {"decision": refused.lower()}
    return {column: values[_RECORDED_AS.get(column, column)] for column in _EXPORTED}


def _csv(rows: list[dict[str, object]]) -> bytes:
    stream = io.StringIO()
    # Every cell is quoted: where a semicolon separates cells, "a;=b" would be two cells, the second one a formula.
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    if rows:
        writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return stream.getvalue().encode("utf-8-sig")


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.isoformat(timespec="seconds")
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


# --- figures of usage


def _by_day(db: orm.Session, query: "sa.Select[*tuple[Any, ...]]", *columns: str) -> pd.DataFrame:
    """The rows of a query, whose first column is a time; it becomes the day in the clinic, as the column "day"."""
    table = pd.DataFrame(list(map(tuple, db.execute(query))), columns=["day", *columns])
    times = pd.to_datetime(table["day"].astype(object), utc=True)
    return table.assign(day=times.dt.tz_convert(config.time_zone()).dt.tz_localize(None).dt.normalize())


def _per_day(since: date, **tables: pd.DataFrame) -> pd.DataFrame:
    every = pd.date_range(since, max(clock.today(), since), name="day")
    counts = {name: table["day"].value_counts().reindex(every, fill_value=0) for name, table in tables.items()}
    return pd.DataFrame(counts, index=every).astype(int)


def _times(readings: pd.DataFrame) -> pd.DataFrame:
    ms = readings.astype({"ms": float}).groupby("day")["ms"]
    figures = {"readings": ms.size(), "median": ms.median(), "p95": ms.quantile(0.95), "slowest": ms.max()}
    return pd.DataFrame(figures)


def _agreement(reviews: pd.DataFrame) -> pd.DataFrame:
    groups = [(model, of["agreed"]) for model, of in reviews.groupby("model")]
    if len(groups) > 1:
        groups.append(("all", reviews["agreed"]))
    rows = [
        (model, len(agreed), int(agreed.sum()), *_wilson(int(agreed.sum()), len(agreed))) for model, agreed in groups
    ]
    return pd.DataFrame(rows, columns=["model", "n", "agreed", "rate", "low", "high"])


def _wilson(hits: int, n: int) -> tuple[float, float, float]:
    """Rate of `hits` in n > 0, with the ends of its 95 % interval after Wilson (1927)."""
    from scipy import stats  # takes half a second, which only the screen Usage needs

    interval = stats.binomtest(hits, n).proportion_ci(0.95, "wilson")
    return hits / n, float(interval.low), float(interval.high)


def _confusion(reviews: pd.DataFrame) -> pd.DataFrame:
    """Counts; rows and columns are the same classes, in the same order."""
    counts = pd.crosstab(reviews["model_label"], reviews["label"])
    classes = sorted({*counts.index, *counts.columns})
    return counts.reindex(index=classes, columns=classes, fill_value=0)


# --- models


def _model_row(model: str, version: str) -> ModelRow:
    """A version for the list; a damaged one is listed with what is wrong.

    Only the files of the version in use are read completely; those of others are before they are used.
    """
    card, problem, active = None, "", registry.active_name(model) == version
    try:
        registered = registry.find(f"{model}@{version}")
        card = registered.card
        if active:
            registry.verify(registered)
    except registry.ModelDamaged as error:
        problem = str(error)
    return ModelRow(model, version, active, card, problem)


# --- drift and health


def _drift_night(db: orm.Session, day: date | None = None) -> DriftNight | None:
    nights = sa.select(DriftRun).order_by(DriftRun.day.desc()).limit(1)
    row = db.scalar(nights if day is None else nights.where(DriftRun.day == day))
    return DriftNight(row.day, row.alarm, row.cards, row.settings, row.told_at, row.ran_at) if row else None


def _database_bytes(store: Store, db: orm.Session) -> int:
    if store.path is None:
        return int(db.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)
    files = (store.path.with_name(store.path.name + suffix) for suffix in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.exists())


def _disk_free(store: Store) -> int:
    """Bytes free on the disk with the database, or with the data folder if the database is on a server."""
    folder = store.path.parent if store.path else config.home()
    return shutil.disk_usage(folder).free


def _temporary_free() -> int:
    """Bytes free on the disk for temporary files."""
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free
    except FileNotFoundError:  # no disk has room for one
        return 0


def _processes() -> tuple[list[int], list[int]]:
    """The server of this kernel with what watches over it, and the server's kernels; none if this is not a kernel."""
    own = psutil.Process()
    if not _is_kernel(own) or (server := own.parent()) is None:
        return [], []
    kernels = []
    for process in server.children():
        with suppress(psutil.Error):  # it has just ended
            if _is_kernel(process):
                kernels.append(process.pid)
    return [server.pid, server.ppid()], kernels


def _is_kernel(process: psutil.Process) -> bool:
    return any("ipykernel" in part for part in process.cmdline())
