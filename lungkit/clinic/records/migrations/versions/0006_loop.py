"""The learning loop: blind readings, trials of a challenger, its shadow readings, nightly drift, and settings."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "settings",
        _column("name", sa.String(64), "Such as blind_share", primary_key=True),
        _column("value", sa.JSON, "What it is set to"),
        _column("changed_at", _TIME, "When"),
        _column("changed_by", sa.Integer, "Who; empty: the command line", sa.ForeignKey("users.id"), nullable=True),
        comment="What administrators have set for all of the clinic",
    )
    op.create_table(
        "blind_readings",
        _column("reading_id", sa.String(36), "Which reading", _reading(), primary_key=True),
        _column("drawn_at", _TIME, "When chance chose it"),
        comment="Readings whose answer a person is shown only after giving a label",
    )
    _trials()
    op.create_table(
        "challengers",
        _column("model", sa.String(100), "Name of the model", primary_key=True),
        _column("version", sa.String(16), "Version that reads unseen"),
        _column("since", _TIME, "Readings from then on"),
        comment="Versions that read in the shadow of the one in use; one for each model",
    )
    op.create_table(
        "shadow_readings",
        _column("reading_id", sa.String(36), "What the version in use said", _reading(), primary_key=True),
        _column("version", sa.String(16), "The challenger, of the same model", primary_key=True),
        _column("probabilities", sa.JSON, "Class name to calibrated probability"),
        _column("label", sa.String(100), "Class at the operating point"),
        _column("decision", sa.String(100), "The label, or: uncertain: review"),
        _column("milliseconds", sa.Double, "From pixels to answer"),
        _column("read_at", _TIME, "When"),
        comment="What a challenger said about a study; never shown next to a case",
    )
    op.create_table(
        "drift_runs",
        _column("id", sa.Integer, "Running number", primary_key=True),
        _column("day", sa.Date, "The day after the last one that it looked at, UTC", unique=True),
        _column("alarm", sa.Boolean, "Whether anything has drifted"),
        _column("cards", sa.JSON, "Each model and source; nothing of a single patient"),
        _column("settings", sa.JSON, "Days compared, and the rate of false alarms"),
        _column("told_at", _TIME, "When people were told; empty: not, or no alarm", nullable=True),
        _column("ran_at", _TIME, "When"),
        comment="What the nightly comparison of recent days with those before has found",
    )


def _trials() -> None:
    op.create_table(
        "trials",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column("model", sa.String(100), "Name of the model"),
        _column("champion", sa.String(16), "Version in use when it was measured"),
        _column("challenger", sa.String(16), "Version that would take its place"),
        _column("verdict", sa.String(16), "promote, keep or cannot tell"),
        _column("state", sa.String(16), "open, promoted, rejected or rolled back"),
        _column("evidence", sa.JSON, "Figures on each set, margin, power, speed and size"),
        _column("evidence_sha256", sa.String(64), "SHA-256 of the evidence, which is signed"),
        _column("rollback", sa.JSON, "When the champion is taken back, written before"),
        _column("opened_at", _TIME, "When it was measured"),
        _column("ended_at", _TIME, "When it was promoted or rejected", nullable=True),
        sa.CheckConstraint("verdict IN ('promote', 'keep', 'cannot tell')", name="verdict"),
        sa.CheckConstraint("state IN ('open', 'promoted', 'rejected', 'rolled back')", name="state"),
        comment="A challenger measured with the champion, to be signed by two people before it may read",
    )
    op.create_index("ix_trials_model", "trials", ["model"])
    op.create_table(
        "trial_signatures",
        _column("trial_id", sa.String(36), "Which trial", sa.ForeignKey("trials.id"), primary_key=True),
        _column("user_id", sa.Integer, "Who", sa.ForeignKey("users.id"), primary_key=True),
        _column("evidence_sha256", sa.String(64), "SHA-256 of the evidence that was on screen"),
        _column("signed_at", _TIME, "When"),
        comment="Who has signed that a challenger may read",
    )
    op.create_table(
        "locked_looks",
        _column("id", sa.Integer, "Running number", primary_key=True),
        _column("set_sha256", sa.String(64), "SHA-256 of the set's manifest"),
        _column("version", sa.String(120), "Model and version that was measured"),
        _column("trial_id", sa.String(36), "In which trial; empty: in none", sa.ForeignKey("trials.id"), nullable=True),
        _column("images", sa.Integer, "How many the set has"),
        _column("looked_at", _TIME, "When"),
        comment="Each time that a locked set was measured on; every look makes the next less worth",
    )
    op.create_index("ix_locked_looks_set_sha256", "locked_looks", ["set_sha256"])
    op.create_index("ix_locked_looks_trial_id", "locked_looks", ["trial_id"])


def _reading() -> sa.ForeignKey:
    return sa.ForeignKey("readings.id", ondelete="CASCADE")


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)
