"""Images that come as DICOM: who may send them, which model reads them, and where results go."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TIME = sa.DateTime(timezone=True)
_JOB_STATES = "state IN ('queued', 'running', 'done', 'failed', 'cancelled')"
_PRIORITIES = "priority IN ('batch', 'routine', 'urgent', 'page')"


def upgrade() -> None:
    _make_people_tables()
    _make_received()
    _widen_jobs()
    _make_results()


def _make_people_tables() -> None:
    op.create_table(
        "callers",
        _column("id", sa.Integer, "Running number", primary_key=True),
        _column("ae_title", sa.String(16), "What the system calls itself", unique=True),
        _column("user_id", sa.Integer, "Its account, a program's", sa.ForeignKey("users.id"), index=True),
        _column("networks", sa.JSON, "Addresses it may call from, as CIDR; none: any"),
        _column("active", sa.Boolean, "False: refused"),
        _column("created_at", _TIME, "When it was entered"),
        comment="DICOM systems that may send images",
    )
    op.create_table(
        "destinations",
        _column("id", sa.Integer, "Running number", primary_key=True),
        _column("name", sa.String(64), "What people call it", unique=True),
        _column("kind", sa.String(16), "dicom, stow, fhir or hl7"),
        _column("address", sa.JSON, "Host, port and AE title, or URL; names of files of secrets"),
        _column("objects", sa.JSON, "What it gets: report, capture, segmentation, …"),
        _column("active", sa.Boolean, "False: nothing new is sent"),
        _column("created_at", _TIME, "When it was entered"),
        sa.CheckConstraint("kind IN ('dicom', 'stow', 'fhir', 'hl7')", name="kind"),
        comment="Systems that results are sent to",
    )
    op.create_table(
        "routes",
        _column("id", sa.Integer, "Running number", primary_key=True),
        _column("rank", sa.Integer, "Rules are tried from the lowest on"),
        _column("name", sa.String(64), "What people call it", unique=True),
        _column("caller", sa.String(16), "AE title of the sender; empty: any"),
        _column("modality", sa.String(16), "CT, DX, CR …; empty: any"),
        _column("body_part", sa.String(64), "BodyPartExamined; empty: any"),
        _column("description", sa.String(64), "Part of the description of series or study, in any case; empty: any"),
        _column("model", sa.String(100), "Name of the model that reads"),
        _column("priority", sa.String(16), "Of the jobs that it makes"),
        _column("destinations", sa.JSON, "Numbers of those that get the results"),
        _column("active", sa.Boolean, "False: not tried yet, or switched off"),
        _column("tried_at", _TIME, "Last trial on a study; empty after a change", nullable=True),
        _column("created_at", _TIME, "When it was entered"),
        sa.CheckConstraint(_PRIORITIES, name="priority"),
        comment="Which model reads a series that was received; the first rule that fits counts",
    )


def _make_received() -> None:
    op.create_table(
        "received_studies",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column("user_id", sa.Integer, "The program that sent it", sa.ForeignKey("users.id"), index=True),
        _column("study_uid", sa.String(64), "StudyInstanceUID as the files have it"),
        _column("caller", sa.String(16), "AE title of the sender; empty: it came over the web"),
        _column("key_id", sa.String(16), "The key that it was sent with", sa.ForeignKey("api_keys.id"), nullable=True),
        _column("patient_number", sa.String(64), "PatientID of the files", index=True),
        _column("patient", sa.JSON, "Name, birth year and sex, as the first file has them"),
        _column("state", sa.String(16), "arriving or closed"),
        _column("closings", sa.Integer, "How often it was complete: late files open it again"),
        _column("outcome", sa.Text, "What the last closing made of it, in words"),
        _column("created_at", _TIME, "When its first file came"),
        _column("last_at", _TIME, "When its last file came"),
        _column("closed_at", _TIME, "When it was complete, the last time", nullable=True),
        sa.CheckConstraint("state IN ('arriving', 'closed')", name="state"),
        sa.UniqueConstraint("user_id", "study_uid"),
        comment="Studies that came as DICOM; kept for a day after their last file",
    )
    op.create_index("ix_received_studies_state_last_at", "received_studies", ["state", "last_at"])
    op.create_table(
        "received_files",
        _column("id", sa.String(36), "Also the file's name", primary_key=True),
        _column("received_id", sa.String(36), "Its study",
                sa.ForeignKey("received_studies.id", ondelete="CASCADE"), index=True),
        _column("series_uid", sa.String(64), "SeriesInstanceUID as the file has it"),
        _column("instance_uid", sa.String(64), "SOPInstanceUID as it was sent"),
        _column("modality", sa.String(16), "As the file has it"),
        _column("body_part", sa.String(64), "BodyPartExamined"),
        _column("descriptions", sa.JSON, "Of study and series"),
        _column("set_aside", sa.String(64), "Why it is no image to read; often empty"),
        _column("sha256", sa.String(64), "SHA-256 of the file"),
        _column("bytes", sa.Integer, "Size of the file"),
        _column("pending", sa.Boolean, "Came since its study was complete, the last time"),
        _column("arrived_at", _TIME, "When"),
        sa.UniqueConstraint("received_id", "instance_uid"),
        comment="Files of studies that were received; they lie in the inbox under their identifier",
    )  # fmt: skip


def _make_results() -> None:
    reading = sa.ForeignKey("readings.id", ondelete="CASCADE")
    op.create_table(
        "reading_sources",
        _column("reading_id", sa.String(36), "Whose images", reading, primary_key=True),
        _column("study_uid", sa.String(64), "StudyInstanceUID as the files have it", index=True),
        _column("series_uid", sa.String(64), "SeriesInstanceUID as the files have it"),
        _column("supersedes", sa.String(36), "The reading before late files came", nullable=True),
        _column("headers", sa.LargeBinary, "Of each image, DICOM JSON, packed"),
        comment="What objects that answer a reading need of the DICOM headers of its images",
    )
    reading = sa.ForeignKey("readings.id", ondelete="CASCADE")
    op.create_table(
        "dispatches",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column("reading_id", sa.String(36), "The result", reading, index=True),
        _column("destination_id", sa.Integer, "Where to", sa.ForeignKey("destinations.id"), index=True),
        _column("object", sa.String(16), "report, capture, segmentation, bundle or message"),
        _column("review_id", sa.String(36), "The review it tells of; empty: none"),
        _column("state", sa.String(16), "queued, running or how it ended"),
        _column("reason", sa.Text, "Why it failed; nothing that names a patient"),
        _column("tries", sa.Integer, "How often it was begun"),
        _column("lease", sa.String(36), "Of the sender; a random identifier", nullable=True),
        _column("due_at", _TIME, "Queued: when to send; running: lease's end"),
        _column("created_at", _TIME, "When the result was there", index=True),
        _column("ended_at", _TIME, "When it was sent, or given up", nullable=True),
        sa.CheckConstraint(_JOB_STATES, name="state"),
        sa.UniqueConstraint("reading_id", "destination_id", "object", "review_id"),
        comment="Results to send, and what has become of them",
    )
    op.create_index("ix_dispatches_state_due_at", "dispatches", ["state", "due_at"])


def _widen_jobs() -> None:
    """A job needs no API key, and may be of a study. SQLite changes a column only by making the table again."""
    received = sa.ForeignKey("received_studies.id", name=op.f("fk_jobs_received_id"), ondelete="SET NULL")
    route = sa.ForeignKey("routes.id", name=op.f("fk_jobs_route_id"), ondelete="SET NULL")
    said = "The key it was sent with; empty: it came as DICOM"
    with op.batch_alter_table("jobs", copy_from=_jobs() if op.get_bind().dialect.name == "sqlite" else None) as jobs:
        jobs.alter_column("key_id", existing_type=sa.String(16), nullable=True, comment=said)
        jobs.add_column(_column("received_id", sa.String(36), "The study that it came in", received, nullable=True))
        jobs.add_column(_column("series_uid", sa.String(64), "Its series, as the files name it", nullable=True))
        jobs.add_column(_column("instance_uid", sa.String(64), "Its image; empty: all of the series", nullable=True))
        jobs.add_column(_column("route_id", sa.Integer, "The rule that chose the model", route, nullable=True))
    op.create_index(op.f("ix_jobs_received_id"), "jobs", ["received_id"])


def _jobs() -> sa.Table:
    return sa.Table(
        "jobs",
        sa.MetaData(),
        _column("id", sa.String(36), "Also of its reading"),
        _column("user_id", sa.Integer, "The program that sent it"),
        _column("key_id", sa.String(16), "The key it was sent with"),
        _column("model", sa.String(100), "Name of the model that reads"),
        _column("priority", sa.String(16), "batch, routine, urgent; page is reserved"),
        _column("state", sa.String(16), "queued, running or how it ended"),
        _column("reason", sa.Text, "Why it failed; nothing that names a patient"),
        _column("payload_sha256", sa.String(64), "SHA-256 over the file and all fields"),
        _column("idempotency_key", sa.String(200), "What the program calls the request", nullable=True),
        _column("tries", sa.Integer, "How often a worker has begun"),
        _column("lease", sa.String(36), "Of the worker that reads; a random identifier", nullable=True),
        _column("due_at", _TIME, "Queued: when it is queued again; running: lease's end"),
        _column("created_at", _TIME, "When it was sent"),
        _column("ended_at", _TIME, "When it was done, failed or cancelled", nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_jobs_user_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_jobs_key_id")),
        sa.CheckConstraint(_JOB_STATES, name=op.f("ck_jobs_state")),
        sa.CheckConstraint(_PRIORITIES, name=op.f("ck_jobs_priority")),
        sa.UniqueConstraint("user_id", "idempotency_key", name=op.f("uq_jobs_user_id")),
        sa.Index(op.f("ix_jobs_user_id"), "user_id"),
        sa.Index(op.f("ix_jobs_key_id"), "key_id"),
        sa.Index(op.f("ix_jobs_created_at"), "created_at"),
        sa.Index("ix_jobs_state_due_at", "state", "due_at"),
    )


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)
