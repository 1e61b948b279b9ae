"""Learning from reviews: whether the model's answer was on screen, and patients who must not be learned from."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_TIME = sa.DateTime(timezone=True)
_SEXES = "sex IN ('female', 'male', 'other', 'unknown')"
_SHOWN = "Whether the model's answer was on screen before the label was given"
_EXCLUDED = "True: not to be learned from, such as after consent was withdrawn"


def upgrade() -> None:
    _add("reviews", "answer_shown", _SHOWN, sa.true(), _reviews())  # what was there before was on screen
    _add("patients", "excluded", _EXCLUDED, sa.false(), _patients())


def _add(table: str, column: str, comment: str, of_old_rows: Any, whole: sa.Table) -> None:
    """Add a column that has a value in each row. SQLite demands one only by making the table again."""
    op.add_column(table, _column(column, sa.Boolean, comment, nullable=True))
    op.execute(sa.update(whole).values({column: of_old_rows}))
    if op.get_bind().dialect.name == "sqlite":
        with op.batch_alter_table(table, recreate="always", copy_from=whole):
            pass
    else:
        op.alter_column(table, column, existing_type=sa.Boolean(), nullable=False)


def _reviews() -> sa.Table:
    reading = sa.ForeignKey("readings.id", ondelete="CASCADE", name=op.f("fk_reviews_reading_id"))
    return sa.Table(
        "reviews",
        sa.MetaData(),
        _column("id", sa.String(36), "Random identifier"),
        _column("reading_id", sa.String(36), "Which reading", reading),
        _column("reviewer_id", sa.Integer, "Who", sa.ForeignKey("users.id", name=op.f("fk_reviews_reviewer_id"))),
        _column("agrees", sa.Boolean, "Whether the clinician agrees with the model's label"),
        _column("label", sa.String(100), "The class the clinician gives"),
        _column("comment", sa.Text, "Free text"),
        _column("at", _TIME, "When"),
        _column("answer_shown", sa.Boolean, _SHOWN),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
        sa.Index(op.f("ix_reviews_reading_id"), "reading_id"),
    )


def _patients() -> sa.Table:
    creator = sa.ForeignKey("users.id", name=op.f("fk_patients_created_by"))
    return sa.Table(
        "patients",
        sa.MetaData(),
        _column("id", sa.String(36), "Random identifier"),
        _column("number", sa.String(64), "The clinic's own patient id, as typed"),
        _column("name", sa.String(200), "Name, as typed"),
        _column("birth_year", sa.Integer, "Year of birth", nullable=True),
        _column("sex", sa.String(16), "female, male, other or unknown"),
        _column("created_at", _TIME, "When first entered"),
        _column("created_by", sa.Integer, "Who entered the patient", creator),
        _column("excluded", sa.Boolean, _EXCLUDED),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_patients")),
        sa.UniqueConstraint("number", name=op.f("uq_patients_number")),
        sa.CheckConstraint(_SEXES, name=op.f("ck_patients_sex")),
        sa.Index(op.f("ix_patients_name"), "name"),
    )


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)
