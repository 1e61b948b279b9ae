"""The clinic's records as SQLAlchemy tables; the same on SQLite and PostgreSQL.

Only `patients`, `studies.notes`, `reviews.comment`, `reviews.finding`, `withdrawals.reason`, `study_moves.reason`,
`job_files`, `received_studies` with its files, and `reading_sources` can name a patient: erasing those rows erases the
person. The reason of a move is blanked too where the image is another patient's by then. A job's file is deleted when
the job ends.
Times are UTC.
"""

import re
import unicodedata
import uuid
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


def now() -> datetime:
    """The present time in UTC, with its zone, as every row keeps it."""
    return datetime.now(UTC)


def new_id() -> str:
    """A random identifier that tells nothing about what it names."""
    return str(uuid.uuid4())


class UtcTime(sa.TypeDecorator[datetime]):
    """A time with its zone. SQLite keeps no zones: times are stored as UTC and get the zone when they are read."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; give UTC")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Json = dict[str, Any]
ROLES = ("doctor", "admin")  # of people
PROGRAM = "program"  # the role of an account that has API keys and never signs in
SCOPES = ("predict", "read", "admin")  # what an API key may allow
PRIORITIES = ("batch", "routine", "urgent", "page")  # of jobs, the least urgent first; "page" is reserved
DESTINATIONS = ("dicom", "stow", "fhir", "hl7")  # ways in which results are sent
OBJECTS = ("report", "capture", "segmentation", "bundle", "message")  # what a destination can be sent
ARRIVING, CLOSED = "arriving", "closed"  # whether files of a study that was received still come
VERDICTS = ("promote", "keep", "cannot tell")  # what a trial of two versions says
OPEN, PROMOTED, REJECTED, ROLLED_BACK = TRIAL_STATES = ("open", "promoted", "rejected", "rolled back")
QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ("queued", "running", "done", "failed", "cancelled")
SEXES = ("female", "male", "other", "unknown")
KINDS = ("CT", "X-ray", "image")
# What a review says: one of the model's classes, or why no class fits.
CLASS, NOT_ASSESSABLE, WRONG_IMAGE, OTHER_FINDING = REVIEW_KINDS = (
    "class", "not assessable", "wrong image", "another finding"
)  # fmt: skip
_DASHES = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d\u00ad]")


def folded(number: str) -> str:
    """A patient number as numbers are compared: the same for all ways to type it.

    Compatibility forms (NFKC), case, kinds of dashes and spaces make no difference.
    """
    plain = unicodedata.normalize("NFKC", _DASHES.sub("-", number))
    return "".join(unicodedata.normalize("NFKC", plain.casefold()).split())


class Base(DeclarativeBase):
    """Constraints have fixed names, because migrations refer to them on every kind of database."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


class User(Base):
    __tablename__ = "users"
    __table_args__ = (_one_of("role", (*ROLES, PROGRAM)), {"comment": "People who sign in, and programs"})

    id: Mapped[int] = mapped_column(primary_key=True, comment="Number of the account")
    name: Mapped[str] = mapped_column(sa.String(64), unique=True, comment="What is typed to sign in, lower case")
    full_name: Mapped[str] = mapped_column(sa.String(200), comment="How the person is shown, also on reports")
    role: Mapped[str] = mapped_column(sa.String(16), comment="doctor, admin or program")
    password_hash: Mapped[str] = mapped_column(
        sa.String(255), comment="argon2id; of a program, which cannot sign in: !"
    )
    active: Mapped[bool] = mapped_column(default=True, comment="False: may not sign in")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When the account was made")
    password_changed_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When the password was set")


class SignIn(Base):
    __tablename__ = "sessions"
    __table_args__ = ({"comment": "Who is signed in, and who was"},)

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    token_sha256: Mapped[str] = mapped_column(sa.String(64), unique=True, comment="SHA-256 of the cookie's token")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True, comment="Who signed in")
    address: Mapped[str] = mapped_column(sa.String(64), comment="Network address the sign-in came from")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When the person signed in")
    seen_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="Last action; idle expiry counts from here")
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="Signed out or revoked; empty while it holds")
    user: Mapped[User] = relationship()


class SignInFailure(Base):
    __tablename__ = "sign_in_failures"
    __table_args__ = ({"comment": "Refused sign-ins, counted to slow down guessing; old ones are deleted"},)

    id: Mapped[int] = mapped_column(primary_key=True, comment="Running number")
    name: Mapped[str] = mapped_column(sa.String(64), index=True, comment="User name that was tried, lower case")
    address: Mapped[str] = mapped_column(sa.String(64), index=True, comment="Network address it came from")
    known: Mapped[str] = mapped_column(
        sa.String(64), default="", comment="SHA-256 by which the browser was known for this name; empty: it was not"
    )
    at: Mapped[datetime] = mapped_column(UtcTime, default=now, index=True, comment="When")


class Patient(Base):
    __tablename__ = "patients"
    __table_args__ = (_one_of("sex", SEXES), {"comment": "People whose images are read"})

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    number: Mapped[str] = mapped_column(sa.String(64), unique=True, comment="The clinic's own patient id, as typed")
    folded: Mapped[str] = mapped_column(
        sa.Text,
        index=True,
        default=lambda context: folded(context.get_current_parameters()["number"]),
        comment="The number as numbers are compared",
    )
    name: Mapped[str] = mapped_column(sa.String(200), index=True, comment="Name, as typed")
    birth_year: Mapped[int | None] = mapped_column(comment="Year of birth")
    sex: Mapped[str] = mapped_column(sa.String(16), default="unknown", comment="female, male, other or unknown")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When first entered")
    created_by: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), comment="Who entered the patient")
    excluded: Mapped[bool] = mapped_column(
        default=False, comment="True: not to be learned from, such as after consent was withdrawn"
    )
    studies: Mapped[list["Study"]] = relationship(
        back_populates="patient", cascade="all, delete-orphan", order_by="Study.uploaded_at"
    )


class Study(Base):
    __tablename__ = "studies"
    __table_args__ = (_one_of("kind", KINDS), {"comment": "Uploads: one image each"})

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    patient_id: Mapped[str] = mapped_column(sa.ForeignKey("patients.id", ondelete="CASCADE"), index=True,
                                            comment="Whose image")  # fmt: skip
    kind: Mapped[str] = mapped_column(sa.String(16), comment="CT, X-ray, or image where the file does not say")
    units: Mapped[str] = mapped_column(sa.String(16), comment="Of the pixels: HU, or intensity 0..1")
    sha256: Mapped[str] = mapped_column(sa.String(64), index=True, comment="SHA-256 of the uploaded file, not kept")
    width: Mapped[int] = mapped_column(comment="Of the uploaded image, pixels")
    height: Mapped[int] = mapped_column(comment="Of the uploaded image, pixels")
    tags: Mapped[dict[str, str]] = mapped_column(sa.JSON, comment="Header values that identify nobody")
    notes: Mapped[str] = mapped_column(sa.Text, default="", comment="What the clinician wrote at the upload")
    uploaded_at: Mapped[datetime] = mapped_column(UtcTime, default=now, index=True, comment="When")
    uploaded_by: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), comment="Who")
    # Last in its row: SQLite would read all of it to reach a column after it.
    pixels: Mapped[bytes] = mapped_column(sa.LargeBinary, deferred=True, comment="Pixels, encoded anew as PNG")
    patient: Mapped[Patient] = relationship(back_populates="studies")
    readings: Mapped[list["Reading"]] = relationship(
        back_populates="study", cascade="all, delete-orphan", order_by="Reading.read_at"
    )
    uploader: Mapped[User] = relationship()
    hash: Mapped["StudyHash | None"] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class StudyHash(Base):
    __tablename__ = "study_hashes"  # a column of studies would stand after the pixels
    __table_args__ = ({"comment": "By which an image is known again; images of earlier versions have none"},)

    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True,
                                          comment="Which image")  # fmt: skip
    pixels_sha256: Mapped[str] = mapped_column(sa.String(64), index=True, comment="SHA-256 of the pixels")


class Reading(Base):
    __tablename__ = "readings"
    __table_args__ = ({"comment": "What a model said about a study"},)

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete="CASCADE"), index=True,
                                          comment="What was read")  # fmt: skip
    model: Mapped[str] = mapped_column(sa.String(100), comment="Name of the model")
    version: Mapped[str] = mapped_column(sa.String(16), comment="Version of the model")
    probabilities: Mapped[dict[str, float]] = mapped_column(sa.JSON, comment="Class name to calibrated probability")
    label: Mapped[str] = mapped_column(sa.String(100), index=True, comment="Class at the operating point")
    decision: Mapped[str] = mapped_column(sa.String(100), index=True, comment="The label, or: uncertain: review")
    point: Mapped[Json] = mapped_column(sa.JSON, comment="Operating point and band of uncertainty that were used")
    checks: Mapped[list[Json]] = mapped_column(sa.JSON, comment="Input checks: name, passed, value, limit, in words")
    milliseconds: Mapped[float] = mapped_column(sa.Double, comment="From file to answer")
    read_at: Mapped[datetime] = mapped_column(UtcTime, default=now, index=True, comment="When")
    # Last in its row, as pixels are.
    heat: Mapped[bytes] = mapped_column(sa.LargeBinary, deferred=True, comment="Heat map of each class, as PNG")
    study: Mapped[Study] = relationship(back_populates="readings")
    reviews: Mapped[list["Review"]] = relationship(
        back_populates="reading", cascade="all, delete-orphan", order_by="(Review.at, Review.id)"
    )


class Review(Base):
    __tablename__ = "reviews"
    __table_args__ = (
        _one_of("kind", REVIEW_KINDS),
        {"comment": "What a clinician said about a reading; the latest counts"},
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    reading_id: Mapped[str] = mapped_column(sa.ForeignKey("readings.id", ondelete="CASCADE"), index=True,
                                            comment="Which reading")  # fmt: skip
    reviewer_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), comment="Who")
    kind: Mapped[str] = mapped_column(sa.String(16), default=CLASS, comment="class, or why the reviewer gives none")
    agrees: Mapped[bool | None] = mapped_column(
        comment="Whether the clinician agrees with the model's label; empty where one of them gives no class"
    )
    label: Mapped[str] = mapped_column(sa.String(100), comment="The class the clinician gives; often empty otherwise")
    finding: Mapped[str] = mapped_column(sa.Text, default="", comment="What else the clinician sees, in free text")
    comment: Mapped[str] = mapped_column(sa.Text, default="", comment="Free text")
    at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")
    answer_shown: Mapped[bool] = mapped_column(
        default=True, comment="Whether the model's answer was on screen before the label was given"
    )
    reading: Mapped[Reading] = relationship(back_populates="reviews")
    reviewer: Mapped[User] = relationship()


class Withdrawal(Base):
    __tablename__ = "withdrawals"
    __table_args__ = ({"comment": "Images that do not count any more, such as of another person; they are kept"},)

    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True,
                                          comment="Which image")  # fmt: skip
    reason: Mapped[str] = mapped_column(sa.Text, comment="Why, in the words of who withdrew it")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), comment="Who")
    at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")
    user: Mapped[User] = relationship()


class StudyMove(Base):
    __tablename__ = "study_moves"
    __table_args__ = ({"comment": "Images that were saved under the wrong patient, and moved"},)

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete="CASCADE"), index=True,
                                          comment="Which image")  # fmt: skip
    from_patient: Mapped[str] = mapped_column(sa.String(36), comment="The patient before, who may be erased by now")
    to_patient: Mapped[str] = mapped_column(sa.String(36), comment="The patient after")
    reason: Mapped[str] = mapped_column(sa.Text, comment="Why, in the words of who moved it")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), comment="Who")
    at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")
    user: Mapped[User] = relationship()


class AuditEvent(Base):
    __tablename__ = "audit"
    __table_args__ = ({"comment": "Who did what; rows are only added, each carries the hash of the one before"},)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="1, 2, 3, … without a gap")
    at: Mapped[datetime] = mapped_column(UtcTime, index=True, comment="When")
    user_id: Mapped[int | None] = mapped_column(index=True, comment="Who; empty: nobody signed in, or the command line")
    action: Mapped[str] = mapped_column(sa.String(64), index=True, comment="What, such as reading.save")
    object: Mapped[str] = mapped_column(sa.String(200), index=True, comment="On what: kind:identifier, never a name")
    detail: Mapped[Json] = mapped_column(sa.JSON, comment="What else is worth knowing; nothing that names a patient")
    previous: Mapped[str] = mapped_column(sa.String(64), comment="Hash of the row before; zeros for the first")
    hash: Mapped[str] = mapped_column(sa.String(64), comment="SHA-256 over all the above")


class ApiKey(Base):
    __tablename__ = "api_keys"
    __table_args__ = ({"comment": "Keys with which programs call the gateway"},)

    id: Mapped[str] = mapped_column(sa.String(16), primary_key=True, comment="The part of the key that is no secret")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True, comment="The program's account")
    secret_sha256: Mapped[str] = mapped_column(sa.String(64), comment="SHA-256 of the key's secret, 32 random bytes")
    scopes: Mapped[list[str]] = mapped_column(sa.JSON, comment="What the key allows: predict, read, admin")
    per_minute: Mapped[int] = mapped_column(comment="Most requests a minute to one gateway")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When the key was made")
    expires_at: Mapped[datetime] = mapped_column(UtcTime, comment="From when on the key is refused")
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="Last request, to the minute")
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="From when on the key is refused; often empty")
    user: Mapped[User] = relationship()


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("state", STATES),
        _one_of("priority", PRIORITIES),
        sa.UniqueConstraint("user_id", "idempotency_key"),
        sa.Index("ix_jobs_state_due_at", "state", "due_at"),
        {"comment": "Images that programs sent to be read; the queue only holds numbers of these"},
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Also of its reading")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True, comment="The program that sent it")
    key_id: Mapped[str | None] = mapped_column(sa.ForeignKey("api_keys.id"), index=True,
                                               comment="The key it was sent with; empty: it came as DICOM")  # fmt: skip
    received_id: Mapped[str | None] = mapped_column(sa.ForeignKey("received_studies.id", ondelete="SET NULL"),
                                                    index=True, comment="The study that it came in")  # fmt: skip
    series_uid: Mapped[str | None] = mapped_column(sa.String(64), comment="Its series, as the files name it")
    instance_uid: Mapped[str | None] = mapped_column(sa.String(64), comment="Its image; empty: all of the series")
    route_id: Mapped[int | None] = mapped_column(sa.ForeignKey("routes.id", ondelete="SET NULL"),
                                                 comment="The rule that chose the model")  # fmt: skip
    model: Mapped[str] = mapped_column(sa.String(100), comment="Name of the model that reads")
    priority: Mapped[str] = mapped_column(sa.String(16), comment="batch, routine, urgent; page is reserved")
    state: Mapped[str] = mapped_column(sa.String(16), default=QUEUED, comment="queued, running or how it ended")
    reason: Mapped[str] = mapped_column(sa.Text, default="", comment="Why it failed; nothing that names a patient")
    payload_sha256: Mapped[str] = mapped_column(sa.String(64), comment="SHA-256 over the file and all fields")
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(200), comment="What the program calls the request")
    tries: Mapped[int] = mapped_column(default=0, comment="How often a worker has begun")
    lease: Mapped[str | None] = mapped_column(sa.String(36), comment="Of the worker that reads; a random identifier")
    due_at: Mapped[datetime] = mapped_column(UtcTime, comment="Queued: when it is queued again; running: lease's end")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, index=True, comment="When it was sent")
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="When it was done, failed or cancelled")
    user: Mapped[User] = relationship()


class JobFile(Base):
    __tablename__ = "job_files"
    __table_args__ = ({"comment": "What a job needs until it ends"},)

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True,
                                        comment="Whose file")  # fmt: skip
    patient_number: Mapped[str] = mapped_column(sa.String(64), index=True, comment="The clinic's own patient id")
    patient: Mapped[Json] = mapped_column(sa.JSON, comment="Name, birth year and sex, as far as they were stated")
    # Last in its row, as pixels are.
    content: Mapped[bytes] = mapped_column(sa.LargeBinary, deferred=True, comment="The file as it was sent")


class Caller(Base):
    __tablename__ = "callers"
    __table_args__ = ({"comment": "DICOM systems that may send images"},)

    id: Mapped[int] = mapped_column(primary_key=True, comment="Running number")
    ae_title: Mapped[str] = mapped_column(sa.String(16), unique=True, comment="What the system calls itself")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True, comment="Its account, a program's")
    networks: Mapped[list[str]] = mapped_column(sa.JSON, comment="Addresses it may call from, as CIDR; none: any")
    active: Mapped[bool] = mapped_column(default=True, comment="False: refused")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When it was entered")
    user: Mapped[User] = relationship()


class Destination(Base):
    __tablename__ = "destinations"
    __table_args__ = (_one_of("kind", DESTINATIONS), {"comment": "Systems that results are sent to"})

    id: Mapped[int] = mapped_column(primary_key=True, comment="Running number")
    name: Mapped[str] = mapped_column(sa.String(64), unique=True, comment="What people call it")
    kind: Mapped[str] = mapped_column(sa.String(16), comment="dicom, stow, fhir or hl7")
    address: Mapped[Json] = mapped_column(sa.JSON, comment="Host, port and AE title, or URL; names of files of secrets")
    objects: Mapped[list[str]] = mapped_column(sa.JSON, comment="What it gets: report, capture, segmentation, …")
    active: Mapped[bool] = mapped_column(default=True, comment="False: nothing new is sent")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When it was entered")


class Route(Base):
    __tablename__ = "routes"
    __table_args__ = (
        _one_of("priority", PRIORITIES),
        {"comment": "Which model reads a series that was received; the first rule that fits counts"},
    )

    id: Mapped[int] = mapped_column(primary_key=True, comment="Running number")
    rank: Mapped[int] = mapped_column(comment="Rules are tried from the lowest on")
    name: Mapped[str] = mapped_column(sa.String(64), unique=True, comment="What people call it")
    caller: Mapped[str] = mapped_column(sa.String(16), default="", comment="AE title of the sender; empty: any")
    modality: Mapped[str] = mapped_column(sa.String(16), default="", comment="CT, DX, CR …; empty: any")
    body_part: Mapped[str] = mapped_column(sa.String(64), default="", comment="BodyPartExamined; empty: any")
    description: Mapped[str] = mapped_column(
        sa.String(64), default="", comment="Part of the description of series or study, in any case; empty: any"
    )
    model: Mapped[str] = mapped_column(sa.String(100), comment="Name of the model that reads")
    priority: Mapped[str] = mapped_column(sa.String(16), default="routine", comment="Of the jobs that it makes")
    destinations: Mapped[list[int]] = mapped_column(sa.JSON, comment="Numbers of those that get the results")
    active: Mapped[bool] = mapped_column(default=False, comment="False: not tried yet, or switched off")
    tried_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="Last trial on a study; empty after a change")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When it was entered")


class ReceivedStudy(Base):
    __tablename__ = "received_studies"
    __table_args__ = (
        _one_of("state", (ARRIVING, CLOSED)),
        sa.UniqueConstraint("user_id", "study_uid"),
        sa.Index("ix_received_studies_state_last_at", "state", "last_at"),
        {"comment": "Studies that came as DICOM; kept for a day after their last file"},
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), index=True, comment="The program that sent it")
    study_uid: Mapped[str] = mapped_column(sa.String(64), comment="StudyInstanceUID as the files have it")
    caller: Mapped[str] = mapped_column(sa.String(16), comment="AE title of the sender; empty: it came over the web")
    key_id: Mapped[str | None] = mapped_column(sa.ForeignKey("api_keys.id"), comment="The key that it was sent with")
    patient_number: Mapped[str] = mapped_column(sa.String(64), index=True, comment="PatientID of the files")
    patient: Mapped[Json] = mapped_column(sa.JSON, comment="Name, birth year and sex, as the first file has them")
    state: Mapped[str] = mapped_column(sa.String(16), default=ARRIVING, comment="arriving or closed")
    closings: Mapped[int] = mapped_column(default=0, comment="How often it was complete: late files open it again")
    outcome: Mapped[str] = mapped_column(sa.Text, default="", comment="What the last closing made of it, in words")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When its first file came")
    last_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When its last file came")
    closed_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="When it was complete, the last time")
    files: Mapped[list["ReceivedFile"]] = relationship(back_populates="study", cascade="all, delete-orphan")


class ReceivedFile(Base):
    __tablename__ = "received_files"
    __table_args__ = (
        sa.UniqueConstraint("received_id", "instance_uid"),
        {"comment": "Files of studies that were received; they lie in the inbox under their identifier"},
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Also the file's name")
    received_id: Mapped[str] = mapped_column(sa.ForeignKey("received_studies.id", ondelete="CASCADE"), index=True,
                                             comment="Its study")  # fmt: skip
    series_uid: Mapped[str] = mapped_column(sa.String(64), comment="SeriesInstanceUID as the file has it")
    instance_uid: Mapped[str] = mapped_column(sa.String(64), comment="SOPInstanceUID as it was sent")
    modality: Mapped[str] = mapped_column(sa.String(16), comment="As the file has it")
    body_part: Mapped[str] = mapped_column(sa.String(64), comment="BodyPartExamined")
    descriptions: Mapped[list[str]] = mapped_column(sa.JSON, comment="Of study and series")
    set_aside: Mapped[str] = mapped_column(sa.String(64), default="", comment="Why it is no image to read; often empty")
    sha256: Mapped[str] = mapped_column(sa.String(64), comment="SHA-256 of the file")
    bytes: Mapped[int] = mapped_column(comment="Size of the file")
    pending: Mapped[bool] = mapped_column(default=True, comment="Came since its study was complete, the last time")
    arrived_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")
    study: Mapped[ReceivedStudy] = relationship(back_populates="files")


class ReadingSource(Base):
    __tablename__ = "reading_sources"
    __table_args__ = ({"comment": "What objects that answer a reading need of the DICOM headers of its images"},)

    reading_id: Mapped[str] = mapped_column(sa.ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True,
                                            comment="Whose images")  # fmt: skip
    study_uid: Mapped[str] = mapped_column(sa.String(64), index=True, comment="StudyInstanceUID as the files have it")
    series_uid: Mapped[str] = mapped_column(sa.String(64), comment="SeriesInstanceUID as the files have it")
    supersedes: Mapped[str | None] = mapped_column(sa.String(36), index=True,
                                                   comment="The reading before late files came")  # fmt: skip
    # Last in its row, as pixels are.
    headers: Mapped[bytes] = mapped_column(sa.LargeBinary, deferred=True, comment="Of each image, DICOM JSON, packed")


class Dispatch(Base):
    __tablename__ = "dispatches"
    __table_args__ = (
        _one_of("state", STATES),
        sa.UniqueConstraint("reading_id", "destination_id", "object", "review_id"),
        sa.Index("ix_dispatches_state_due_at", "state", "due_at"),
        {"comment": "Results to send, and what has become of them"},
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    reading_id: Mapped[str] = mapped_column(sa.ForeignKey("readings.id", ondelete="CASCADE"), index=True,
                                            comment="The result")  # fmt: skip
    destination_id: Mapped[int] = mapped_column(sa.ForeignKey("destinations.id"), index=True, comment="Where to")
    object: Mapped[str] = mapped_column(sa.String(16), comment="report, capture, segmentation, bundle or message")
    review_id: Mapped[str] = mapped_column(sa.String(36), default="",
                                           comment="The review it tells of, or withdrawal; empty: none")  # fmt: skip
    state: Mapped[str] = mapped_column(sa.String(16), default=QUEUED, comment="queued, running or how it ended")
    reason: Mapped[str] = mapped_column(sa.Text, default="", comment="Why it failed; nothing that names a patient")
    tries: Mapped[int] = mapped_column(default=0, comment="How often it was begun")
    lease: Mapped[str | None] = mapped_column(sa.String(36), comment="Of the sender; a random identifier")
    due_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="Queued: when to send; running: lease's end")
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=now, index=True, comment="When the result was there")
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="When it was sent, or given up")


class CtSeries(Base):
    __tablename__ = "series"
    __table_args__ = (
        _one_of("readable", ("volume", "slicewise")),
        {"comment": "What a model said about a CT series"},
    )

    reading_id: Mapped[str] = mapped_column(sa.ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True,
                                            comment="Which reading")  # fmt: skip
    slices: Mapped[int] = mapped_column(comment="How many the series has")
    spacing: Mapped[list[float | None]] = mapped_column(
        sa.JSON, comment="mm between rows, columns, slices as stored; empty: unknown"
    )
    positions: Mapped[list[float]] = mapped_column(
        sa.JSON, comment="Of each slice along the normal, mm, in their order"
    )
    orientation: Mapped[list[float]] = mapped_column(sa.JSON, comment="Direction of rows, then of columns")
    readable: Mapped[str] = mapped_column(sa.String(16), comment="volume or slicewise")
    findings: Mapped[list[Json]] = mapped_column(sa.JSON, comment="Rule and words for each finding; no name of a file")
    read: Mapped[list[Json]] = mapped_column(
        sa.JSON, comment="Slices with lungs that were read: number, position, label, probabilities"
    )
    carrying: Mapped[list[int]] = mapped_column(
        sa.JSON, comment="Places in `read` of the slices that the reading rests on"
    )
    without_lungs: Mapped[int] = mapped_column(comment="Slices that were read and left out")
    absent: Mapped[str] = mapped_column(sa.String(100), comment="The class that says that nothing was found")
    affected: Mapped[float] = mapped_column(sa.Double, comment="Share of slices of another class than that, 0..1")
    reasons: Mapped[list[str]] = mapped_column(sa.JSON, comment="Why the decision is left to a person, in words")
    extent: Mapped[Json | None] = mapped_column(
        sa.JSON(none_as_null=True), comment="Volume of the lungs, and shares of it; empty: not measured"
    )
    # Last in its row, as pixels are.
    heat: Mapped[bytes] = mapped_column(
        sa.LargeBinary, deferred=True, comment="Heat maps of the carrying slices, as PNG"
    )


class SeriesSlice(Base):
    __tablename__ = "series_slices"
    __table_args__ = ({"comment": "Slices of a CT series"},)

    study_id: Mapped[str] = mapped_column(sa.ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True,
                                          comment="Whose slice")  # fmt: skip
    number: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, comment="From 0, in the order of positions"
    )
    # Last in its row, as pixels are.
    pixels: Mapped[bytes] = mapped_column(sa.LargeBinary, deferred=True, comment="HU, as PNG of 16 bits")


class Setting(Base):
    __tablename__ = "settings"
    __table_args__ = ({"comment": "What administrators have set for all of the clinic"},)

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True, comment="Such as blind_share")
    value: Mapped[Any] = mapped_column(sa.JSON, comment="What it is set to")
    changed_at: Mapped[datetime] = mapped_column(UtcTime, default=now, onupdate=now, comment="When")
    changed_by: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"), comment="Who; empty: the command line")


class BlindReading(Base):
    __tablename__ = "blind_readings"
    __table_args__ = ({"comment": "Readings whose answer a person is shown only after giving a label"},)

    reading_id: Mapped[str] = mapped_column(sa.ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True,
                                            comment="Which reading")  # fmt: skip
    drawn_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When chance chose it")


class Trial(Base):
    __tablename__ = "trials"
    __table_args__ = (
        _one_of("verdict", VERDICTS),
        _one_of("state", TRIAL_STATES),
        {"comment": "A challenger measured with the champion, to be signed by two people before it may read"},
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, default=new_id, comment="Random identifier")
    model: Mapped[str] = mapped_column(sa.String(100), index=True, comment="Name of the model")
    champion: Mapped[str] = mapped_column(sa.String(16), comment="Version in use when it was measured")
    challenger: Mapped[str] = mapped_column(sa.String(16), comment="Version that would take its place")
    verdict: Mapped[str] = mapped_column(sa.String(16), comment="promote, keep or cannot tell")
    state: Mapped[str] = mapped_column(sa.String(16), default=OPEN, comment="open, promoted, rejected or rolled back")
    evidence: Mapped[Json] = mapped_column(sa.JSON, comment="Figures on each set, margin, power, speed and size")
    evidence_sha256: Mapped[str] = mapped_column(sa.String(64), comment="SHA-256 of the evidence, which is signed")
    rollback: Mapped[Json] = mapped_column(sa.JSON, comment="When the champion is taken back, written before")
    opened_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When it was measured")
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="When it was promoted or rejected")
    signatures: Mapped[list["TrialSignature"]] = relationship(order_by="TrialSignature.signed_at")


class TrialSignature(Base):
    __tablename__ = "trial_signatures"
    __table_args__ = ({"comment": "Who has signed that a challenger may read"},)

    trial_id: Mapped[str] = mapped_column(sa.ForeignKey("trials.id"), primary_key=True, comment="Which trial")
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"), primary_key=True, comment="Who")
    evidence_sha256: Mapped[str] = mapped_column(sa.String(64), comment="SHA-256 of the evidence that was on screen")
    signed_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")
    user: Mapped[User] = relationship()


class LockedLook(Base):
    __tablename__ = "locked_looks"
    __table_args__ = ({"comment": "Each time that a locked set was measured on; every look makes the next less worth"},)

    id: Mapped[int] = mapped_column(primary_key=True, comment="Running number")
    set_sha256: Mapped[str] = mapped_column(sa.String(64), index=True, comment="SHA-256 of the set's manifest")
    version: Mapped[str] = mapped_column(sa.String(120), comment="Model and version that was measured")
    trial_id: Mapped[str | None] = mapped_column(sa.ForeignKey("trials.id"), index=True,
                                                 comment="In which trial; empty: in none")  # fmt: skip
    images: Mapped[int] = mapped_column(comment="How many the set has")
    looked_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")


class Challenger(Base):
    __tablename__ = "challengers"
    __table_args__ = ({"comment": "Versions that read in the shadow of the one in use; one for each model"},)

    model: Mapped[str] = mapped_column(sa.String(100), primary_key=True, comment="Name of the model")
    version: Mapped[str] = mapped_column(sa.String(16), comment="Version that reads unseen")
    since: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="Readings from then on")


class ShadowReading(Base):
    __tablename__ = "shadow_readings"
    __table_args__ = ({"comment": "What a challenger said about a study; never shown next to a case"},)

    reading_id: Mapped[str] = mapped_column(sa.ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True,
                                            comment="What the version in use said")  # fmt: skip
    version: Mapped[str] = mapped_column(sa.String(16), primary_key=True, comment="The challenger, of the same model")
    probabilities: Mapped[dict[str, float]] = mapped_column(sa.JSON, comment="Class name to calibrated probability")
    label: Mapped[str] = mapped_column(sa.String(100), comment="Class at the operating point")
    decision: Mapped[str] = mapped_column(sa.String(100), comment="The label, or: uncertain: review")
    milliseconds: Mapped[float] = mapped_column(sa.Double, comment="From pixels to answer")
    read_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")


class DriftRun(Base):
    __tablename__ = "drift_runs"
    __table_args__ = ({"comment": "What the nightly comparison of recent days with those before has found"},)

    id: Mapped[int] = mapped_column(primary_key=True, comment="Running number")
    day: Mapped[date] = mapped_column(sa.Date, unique=True, comment="The day after the last one that it looked at, UTC")
    alarm: Mapped[bool] = mapped_column(comment="Whether anything has drifted")
    cards: Mapped[list[Json]] = mapped_column(sa.JSON, comment="Each model and source; nothing of a single patient")
    settings: Mapped[Json] = mapped_column(sa.JSON, comment="Days compared, and the rate of false alarms")
    told_at: Mapped[datetime | None] = mapped_column(UtcTime, comment="When people were told; empty: not, or no alarm")
    ran_at: Mapped[datetime] = mapped_column(UtcTime, default=now, comment="When")
