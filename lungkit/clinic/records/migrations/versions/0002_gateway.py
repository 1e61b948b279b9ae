"""The gateway: accounts of programs, their API keys, and the jobs that they send."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)
_ROLES = "role IN ('doctor', 'admin', 'program')"


def upgrade() -> None:
    _allow_programs()
    op.create_table(
        "api_keys",
        _column("id", sa.String(16), "The part of the key that is no secret", primary_key=True),
        _column("user_id", sa.Integer, "The program's account", sa.ForeignKey("users.id"), index=True),
        _column("secret_sha256", sa.String(64), "SHA-256 of the key's secret, 32 random bytes"),
        _column("scopes", sa.JSON, "What the key allows: predict, read, admin"),
        _column("per_minute", sa.Integer, "Most requests a minute to one gateway"),
        _column("created_at", _TIME, "When the key was made"),
        _column("expires_at", _TIME, "From when on the key is refused"),
        _column("last_used_at", _TIME, "Last request, to the minute", nullable=True),
        _column("revoked_at", _TIME, "From when on the key is refused; often empty", nullable=True),
        comment="Keys with which programs call the gateway",
    )
    op.create_table(
        "jobs",
        _column("id", sa.String(36), "Also of its reading", primary_key=True),
        _column("user_id", sa.Integer, "The program that sent it", sa.ForeignKey("users.id"), index=True),
        _column("key_id", sa.String(16), "The key it was sent with", sa.ForeignKey("api_keys.id"), index=True),
        _column("model", sa.String(100), "Name of the model that reads"),
        _column("priority", sa.String(16), "batch, routine, urgent; page is reserved"),
        _column("state", sa.String(16), "queued, running or how it ended"),
        _column("reason", sa.Text, "Why it failed; nothing that names a patient"),
        _column("payload_sha256", sa.String(64), "SHA-256 over the file and all fields"),
        _column("idempotency_key", sa.String(200), "What the program calls the request", nullable=True),
        _column("tries", sa.Integer, "How often a worker has begun"),
        _column("lease", sa.String(36), "Of the worker that reads; a random identifier", nullable=True),
        _column("due_at", _TIME, "Queued: when it is queued again; running: lease's end"),
        _column("created_at", _TIME, "When it was sent", index=True),
        _column("ended_at", _TIME, "When it was done, failed or cancelled", nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="state"),
        sa.CheckConstraint("priority IN ('batch', 'routine', 'urgent', 'page')", name="priority"),
        sa.UniqueConstraint("user_id", "idempotency_key"),
        comment="Images that programs sent to be read; the queue only holds numbers of these",
    )
    op.create_index("ix_jobs_state_due_at", "jobs", ["state", "due_at"])
    op.create_table(
        "job_files",
        _column("job_id", sa.String(36), "Whose file", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        _column("patient_number", sa.String(64), "The clinic's own patient id", index=True),
        _column("patient", sa.JSON, "Name, birth year and sex, as far as they were stated"),
        _column("content", sa.LargeBinary, "The file as it was sent"),
        comment="What a job needs until it ends",
    )


def _allow_programs() -> None:
    """Let accounts have the role "program". SQLite changes a check only by making the table again."""
    if op.get_bind().dialect.name == "sqlite":
        with op.batch_alter_table("users", recreate="always", copy_from=_users()):
            pass
        return
    op.drop_constraint(op.f("ck_users_role"), "users", type_="check")
    op.create_check_constraint(op.f("ck_users_role"), "users", _ROLES)
    op.create_table_comment("users", "People who sign in, and programs")
    for column in _users().columns:
        op.alter_column("users", column.name, existing_type=column.type, comment=column.comment)


def _users() -> sa.Table:
    return sa.Table(
        "users",
        sa.MetaData(),
        _column("id", sa.Integer, "Number of the account"),
        _column("name", sa.String(64), "What is typed to sign in, lower case"),
        _column("full_name", sa.String(200), "How the person is shown, also on reports"),
        _column("role", sa.String(16), "doctor, admin or program"),
        _column("password_hash", sa.String(255), "argon2id; of a program, which cannot sign in: !"),
        _column("active", sa.Boolean, "False: may not sign in"),
        _column("created_at", _TIME, "When the account was made"),
        _column("password_changed_at", _TIME, "When the password was set"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
        sa.CheckConstraint(_ROLES, name=op.f("ck_users_role")),
    )


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)
