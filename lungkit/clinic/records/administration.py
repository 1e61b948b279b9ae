"""What an administrator does: people, patients, usage, models, the audit trail, the machine's health.

As in `records`, every action asks for the role inside its own transaction, and every change is on the audit trail.
An administrator reads no image and reviews none.
"""

import csv
import io
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import pandas as pd
import psutil
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import config
from lungkit.clinic.records import accounts, audit_trail, cases
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.cases import PatientPage, PatientRow
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import AuditEvent, Patient, Reading, Review, SignIn, Study, User, now
from lungkit.errors import LungkitError
from lungkit.models import registry

# What a spreadsheet takes for the start of a formula; the wide forms are those of Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True)
class ModelRow:
    """A version in the registry."""

    model: str
    version: str
    active: bool
    created: str  # ISO time
    classes: tuple[str, ...]
    synthetic: bool
    metrics: dict  # of the card: a split's name to what was measured on it
    problem: str  # why the version cannot be used, in words; empty where nothing is known to be wrong


@dataclass(frozen=True, eq=False)
class Usage:
    """What was done since a day; only the latest review of a reading counts."""

    since: date
    per_day: pd.DataFrame  # index day (every one there is); sign_ins, uploads, readings, reviews
    times: pd.DataFrame  # index day; readings, and the median, p95 and slowest of them in ms
    decisions: pd.DataFrame  # model, decision, n
    reviews: pd.DataFrame  # model, label (the reviewer's), n, agreed
    agreement: (
        pd.DataFrame
    )  # model, n, agreed, rate, low, high (95 %, Wilson); a last row "all" for more than one model
    confusion: dict[str, pd.DataFrame]  # of each model: rows the model's label, columns the reviewer's; counts


class Oversight:
    """The actions of an administrator; each raises SignedOut or Forbidden before anything is read or written."""

    def __init__(self, access: Access):
        self.access = access

    # --- people

    def people(self) -> pd.DataFrame:
        """Every account: user_id, name, full_name, role, active, created_at, last_seen, sessions (open now)."""
        with self.access.reads("admin") as (db, _):
            users = accounts.list_users(db)
            last = dict(
                db.execute(sa.select(SignIn.user_id, sa.func.max(SignIn.seen_at)).group_by(SignIn.user_id)).all()
            )
            open_now = dict(
                db.execute(sa.select(SignIn.user_id, sa.func.count()).where(_open()).group_by(SignIn.user_id)).all()
            )
        rows = [
            (u.id, u.name, u.full_name, u.role, u.active, u.created_at, last.get(u.id), open_now.get(u.id, 0))
            for u in users
        ]
        columns = ["user_id", "name", "full_name", "role", "active", "created_at", "last_seen", "sessions"]
        return pd.DataFrame(rows, columns=columns)

    def add_user(self, name: str, full_name: str, role: str) -> str:
        """Make an account; returns its password, which is shown this once."""
        with self.access.writes("admin") as (db, actor):
            return accounts.add_user(db, name, full_name, role, by=actor.user_id)

    def disable(self, user_id: int) -> None:
        """End the person's sessions and refuse further sign-ins. Nobody disables himself, nor the last admin."""
        with self.access.writes("admin") as (db, actor):
            _not_oneself(actor, user_id, "disable your own account")
            accounts.disable_user(db, _user_name(db, user_id), by=actor.user_id)

    def enable(self, user_id: int) -> None:
        """Let the person sign in again, with the password from before."""
        with self.access.writes("admin") as (db, actor):
            accounts.enable_user(db, _user_name(db, user_id), by=actor.user_id)

    def set_role(self, user_id: int, role: str) -> None:
        """Give the person another role from the next action on. Nobody changes his own, nor the last admin's."""
        with self.access.writes("admin") as (db, actor):
            _not_oneself(actor, user_id, "change your own role")
            accounts.set_role(db, _user_name(db, user_id), role, by=actor.user_id)

    def reset_password(self, user_id: int) -> str:
        """Set a new random password and return it, which is shown this once; the person's sessions end."""
        with self.access.writes("admin") as (db, actor):
            return accounts.reset_password(db, _user_name(db, user_id), by=actor.user_id)

    # --- patients

    def patients(self, text: str = "", limit: int = 50) -> list[PatientRow]:
        """Patients whose number or name holds every word of `text`; all, for an empty one."""
        with self.access.reads("admin") as (db, _):
            return cases.search(db, text, limit)

    def history(self, patient_id: str) -> PatientPage:
        """A patient with all readings, oldest first; that it was opened is audited. Raises RecordMissing."""
        with self.access.writes("admin") as (db, actor):
            opened = cases.open_page(db, patient_id, actor.user_id)
        return cases.page(*opened)

    def export_csv(self) -> bytes:
        """All readings with patient, study and latest review, one a line, oldest first; UTF-8 with a mark for Excel.

        No cell starts as a formula does: such ones begin with an apostrophe.
        """
        number_of_reviews = (
            sa.select(sa.func.count()).where(Review.reading_id == Reading.id).scalar_subquery().label("reviews")
        )
        found = cases.with_review(
            Patient.number,
            Patient.name,
            Patient.birth_year,
            Patient.sex,
            Study.id.label("study_id"),
            Study.sha256,
            Study.width,
            Study.height,
            Study.notes,
            Study.uploaded_at,
            Reading.milliseconds,
            Reading.checks,
            number_of_reviews,
            of_review=("comment", "at"),
        )
        with self.access.writes("admin") as (db, actor):
            rows = db.execute(found.order_by(Reading.read_at, Reading.id)).all()
            audit_trail.append(db, actor.user_id, "records.export", "records:all", readings=len(rows))
        return _csv([_exported(row) for row in rows])

    def erase_patient(self, patient_id: str) -> None:
        """Remove a patient with all studies, readings and reviews; one audit event tells that, naming nobody.

        The bytes are cleared from the database's files at once, unless somebody is just reading them: then with the
        next erasure, backup or restart. Backups made before still hold the patient. Raises RecordMissing.
        """
        with self.access.writes("admin") as (db, actor):
            patient = cases.find_patient(db, patient_id)
            studies = sa.select(Study.id).where(Study.patient_id == patient.id)
            readings = sa.select(Reading.id).where(Reading.study_id.in_(studies))
            gone = {
                table.__tablename__: db.execute(sa.delete(table).where(whose)).rowcount
                for table, whose in (
                    (Review, Review.reading_id.in_(readings)),
                    (Reading, Reading.study_id.in_(studies)),
                    (Study, Study.patient_id == patient.id),
                )
            }
            db.execute(sa.delete(Patient).where(Patient.id == patient.id))
            audit_trail.append(db, actor.user_id, "patient.erase", f"patient:{patient.id}", **gone)
        with suppress(StoreError):  # the patient is erased already, whether the files can be cleared now or not
            self.access.store.scrub()

    # --- usage

    def usage(self, days: int = 90) -> Usage:
        """What was done in the last `days` days, today included; days are those of UTC."""
        if not 1 <= days <= 3660:
            raise LungkitError(f"{days} days: accepted are 1 to 3660")
        since = now().date() - timedelta(days=days - 1)
        start = datetime.combine(since, time(), UTC)
        with self.access.reads("admin") as (db, _):
            sign_ins = db.scalars(sa.select(SignIn.created_at).where(SignIn.created_at >= start)).all()
            uploads = db.scalars(sa.select(Study.uploaded_at).where(Study.uploaded_at >= start)).all()
            read = db.execute(
                sa.select(Reading.read_at, Reading.milliseconds, Reading.model, Reading.decision).where(
                    Reading.read_at >= start
                )
            ).all()
            latest = cases.latest_review()
            given = db.execute(
                sa.select(
                    latest.c.at.label("at"),
                    Reading.model,
                    Reading.label.label("said"),
                    latest.c.label.label("label"),
                    latest.c.agrees.label("agrees"),
                )
                .join(latest, latest.c.reading_id == Reading.id)
                .where(latest.c.at >= start)
            ).all()
        readings = pd.DataFrame(read, columns=["day", "ms", "model", "decision"])
        readings["day"] = _days(readings["day"])
        reviews = pd.DataFrame(given, columns=["day", "model", "said", "label", "agreed"])
        reviews["day"] = _days(reviews["day"])
        return Usage(
            since=since,
            per_day=_per_day(
                since,
                sign_ins=_days(sign_ins),
                uploads=_days(uploads),
                readings=readings["day"],
                reviews=reviews["day"],
            ),
            times=readings.groupby("day")["ms"].agg(
                readings="size", median="median", p95=lambda ms: ms.quantile(0.95), slowest="max"
            ),
            decisions=readings.groupby(["model", "decision"]).size().rename("n").reset_index(),
            reviews=reviews.groupby(["model", "label"])["agreed"].agg(n="size", agreed="sum").reset_index(),
            agreement=_agreement(reviews),
            confusion={model: _confusion(of_model) for model, of_model in reviews.groupby("model")},
        )

    # --- models

    def models(self) -> list[ModelRow]:
        """Every version in the registry, by model, newest first."""
        self._sees()
        return [_model_row(name, version) for name in registry.models() for version in registry.versions(name)[::-1]]

    def card(self, model: str, version: str) -> dict:
        """What a version is, for programs: its card as the registry keeps it. Raises the registry's errors."""
        self._sees()
        return registry.find(f"{model}@{version}").card

    def promote(self, model: str, version: str) -> ModelRow:
        """Make a version the one that is used from the next reading on. Raises the registry's errors."""
        with self.access.writes("admin") as (db, actor):
            # In the transaction, though hashes are checked: no one else's promotion comes between it and its event.
            promoted = registry.promote(model, version)
            audit_trail.append(db, actor.user_id, "model.promote", f"model:{promoted}")
        return _model_row(promoted.model, promoted.version)

    def roll_back(self, model: str) -> ModelRow:
        """Use the version again that was active before the present one. Raises the registry's errors."""
        with self.access.writes("admin") as (db, actor):
            previous = registry.rollback(model)
            audit_trail.append(db, actor.user_id, "model.roll_back", f"model:{previous}")
        return _model_row(previous.model, previous.version)

    # --- trail and health

    def trail(
        self,
        limit: int = 200,
        action: str | None = None,
        user_id: int | None = None,
        object: str | None = None,
        before: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pd.DataFrame:
        """The newest events of the audit trail: number, at, user (name, or None), action, object, detail.

        action, user_id, object: only such events. before: only those with a smaller number, to page backwards.
        since, until: only those from this time on, and before that one.
        """
        conditions = {
            AuditEvent.action: action,
            AuditEvent.user_id: user_id,
            AuditEvent.object: object,
        }
        wanted = [column == value for column, value in conditions.items() if value is not None]
        if before is not None:
            wanted.append(AuditEvent.number < before)
        if since is not None:
            wanted.append(AuditEvent.at >= since)
        if until is not None:
            wanted.append(AuditEvent.at < until)
        columns = [
            AuditEvent.number,
            AuditEvent.at,
            User.name.label("user"),
            AuditEvent.action,
            AuditEvent.object,
            AuditEvent.detail,
        ]
        found = sa.select(*columns).outerjoin(User, User.id == AuditEvent.user_id).where(*wanted)
        with self.access.reads("admin") as (db, _):
            rows = db.execute(found.order_by(AuditEvent.number.desc()).limit(limit)).all()
        return pd.DataFrame(rows, columns=[column.key for column in columns], dtype="object")

    def verify_trail(self) -> int:
        """Check that each event follows the one before; how many there are. Raises AuditBroken."""
        self._sees()
        return audit_trail.verify(self.access.store)

    def actions(self) -> list[str]:
        """The kinds of events there are on the trail."""
        with self.access.reads("admin") as (db, _):
            return list(db.scalars(sa.select(AuditEvent.action).distinct().order_by(AuditEvent.action)))

    def health(self) -> dict:
        """How the machine is: database, database_bytes, disk_free_bytes, sessions, kernels, kernels_bytes, models,
        damaged, audit_events. kernels: the running ones of the server this was called under, 0 where there is none.
        models, damaged: the versions in use that can read, and in words what is wrong with the others.
        """
        with self.access.reads("admin") as (db, _):
            sessions = db.scalar(sa.select(sa.func.count()).select_from(SignIn).join(User).where(_open(), User.active))
            events = db.scalar(sa.select(sa.func.max(AuditEvent.number))) or 0
            size = _database_bytes(self.access.store, db)
        kernels = _kernels()
        in_use = [row for row in self.models() if row.active]
        return {
            "database": self.access.store.url.get_backend_name(),
            "database_bytes": size,
            "disk_free_bytes": _disk_free(self.access.store),
            "sessions": sessions,
            "kernels": len(kernels),
            "kernels_bytes": sum(kernels),
            "models": [f"{row.model}@{row.version}" for row in in_use if not row.problem],
            "damaged": [row.problem for row in in_use if row.problem],
            "audit_events": events,
        }

    def _sees(self) -> None:
        """What is read lies outside the database; who may read it is asked there."""
        with self.access.reads("admin"):
            pass


# --- people


def _open() -> sa.ColumnElement[bool]:
    """Sessions somebody can act in now, as accounts.Access sees it."""
    return (
        SignIn.revoked_at.is_(None)
        & (SignIn.created_at > now() - timedelta(hours=config.session_hours()))
        & (SignIn.seen_at > now() - timedelta(minutes=config.idle_minutes()))
    )


def _user_name(db: orm.Session, user_id: int) -> str:
    user = db.get(User, user_id)
    if user is None:
        raise LungkitError(f"there is no account number {user_id}")
    return user.name


def _not_oneself(actor: accounts.Actor, user_id: int, what: str) -> None:
    if user_id == actor.user_id:
        raise LungkitError(f"you cannot {what}; ask another admin")


# --- export


def _exported(row: sa.Row) -> dict:
    return {
        "reading_id": row.reading_id,
        "patient_number": row.number,
        "patient_name": row.name,
        "birth_year": row.birth_year,
        "sex": row.sex,
        "study_id": row.study_id,
        "kind": row.kind,
        "file_sha256": row.sha256,
        "width": row.width,
        "height": row.height,
        "notes": row.notes,
        "uploaded_at": row.uploaded_at,
        "uploaded_by": row.read_by,
        "model": row.model,
        "version": row.version,
        "label": row.label,
        "decision": row.decision,
        "probability": row.probabilities[row.label],
        "probabilities": "; ".join(f"{name} {p:.4f}" for name, p in row.probabilities.items()),
        "failed_checks": "; ".join(check["words"] for check in row.checks if not check["passed"]),
        "milliseconds": row.milliseconds,
        "read_at": row.read_at,
        "reviews": row.reviews,
        "reviewer": row.reviewer,
        "agrees": row.agrees,
        "reviewer_label": row.reviewer_label,
        "review_comment": row.review_comment,
        "reviewed_at": row.review_at,
    }


def _csv(rows: list[dict]) -> bytes:
    stream = io.StringIO()
    # All cells are quoted: otherwise "a;=b" is two of them where a semicolon separates, the second a formula.
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    if rows:
        writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return stream.getvalue().encode("utf-8-sig")


def _cell(value) -> str:
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


def _days(times) -> pd.Series:
    """Times in UTC as their days."""
    return pd.to_datetime(pd.Series(times, dtype=object), utc=True).dt.tz_localize(None).dt.normalize()


def _per_day(since: date, **days: pd.Series) -> pd.DataFrame:
    every = pd.date_range(since, max(now().date(), since), name="day")
    counts = {name: of.value_counts().reindex(every, fill_value=0) for name, of in days.items()}
    return pd.DataFrame(counts, index=every).astype(int)


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
    z = 1.959964
    rate = hits / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, max(0.0, centre - half), min(1.0, centre + half)


def _confusion(reviews: pd.DataFrame) -> pd.DataFrame:
    """Counts; rows and columns are the same classes, in the same order."""
    counts = pd.crosstab(reviews["said"], reviews["label"])
    classes = sorted({*counts.index, *counts.columns})
    return counts.reindex(index=classes, columns=classes, fill_value=0)


# --- models


def _model_row(model: str, version: str) -> ModelRow:
    """A version as it is listed; one that is damaged is listed too, with what is wrong.

    Every byte is looked at of the one in use only: the others are before they are used.
    """
    card, problem, active = {}, "", registry.active_name(model) == version
    try:
        found = registry.find(f"{model}@{version}")
        card = found.card
        if active:
            registry.verify(found)
    except registry.ModelDamaged as error:
        problem = str(error)
    return ModelRow(
        model,
        version,
        active,
        card.get("created", ""),
        tuple(card.get("classes", ())),
        card.get("synthetic", False),
        card.get("metrics", {}),
        problem,
    )


# --- health


def _database_bytes(store: Store, db: orm.Session) -> int:
    if store.path is None:
        return db.scalar(sa.select(sa.func.pg_database_size(sa.func.current_database())))
    files = (store.path.with_name(store.path.name + suffix) for suffix in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.exists())


def _disk_free(store: Store) -> int:
    """Of the disk with the database; of the one with the data folder, where the database is elsewhere."""
    folder = store.path.parent if store.path else config.home()
    return shutil.disk_usage(folder).free


def _kernels() -> list[int]:
    """Bytes in memory of each kernel beside this one, itself included; empty where this process is none."""
    own = psutil.Process()
    if not _is_kernel(own) or (server := own.parent()) is None:
        return []
    sizes = []
    for process in server.children():
        with suppress(psutil.Error):  # it ended meanwhile
            if _is_kernel(process):
                sizes.append(process.memory_info().rss)
    return sizes


def _is_kernel(process: psutil.Process) -> bool:
    return any("ipykernel" in part for part in process.cmdline())
