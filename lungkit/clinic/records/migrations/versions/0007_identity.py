"""Numbers as they are compared, images withdrawn or moved, reviews that give no class, browsers of failed sign-ins."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from lungkit.clinic.records.tables import folded

revision = "0007"
down_revision = "0006"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    _fold_numbers()
    with op.batch_alter_table("reviews") as reviews:
        reviews.add_column(
            _column("kind", sa.String(16), "class, or why the reviewer gives none", server_default="class")
        )
        reviews.add_column(_column("finding", sa.Text, "What else the clinician sees, in free text", server_default=""))
        reviews.alter_column(
            "agrees", existing_type=sa.Boolean(), nullable=True,
            comment="Whether the clinician agrees with the model's label; empty where one of them gives no class",
        )  # fmt: skip
        reviews.alter_column(
            "label", existing_type=sa.String(100), existing_nullable=False,
            comment="The class the clinician gives; often empty otherwise",
        )  # fmt: skip
        reviews.create_check_constraint("kind", "kind IN ('class', 'not assessable', 'wrong image', 'another finding')")
    with op.batch_alter_table("reviews") as reviews:  # the program gives both
        reviews.alter_column("kind", existing_type=sa.String(16), server_default=None)
        reviews.alter_column("finding", existing_type=sa.Text(), server_default=None)
    with op.batch_alter_table("dispatches") as dispatches:
        dispatches.alter_column(
            "review_id", existing_type=sa.String(36), existing_nullable=False,
            comment="The review it tells of, or withdrawal; empty: none",
        )  # fmt: skip
    with op.batch_alter_table("sign_in_failures") as failures:
        known = "SHA-256 by which the browser was known for this name; empty: it was not"
        failures.add_column(_column("known", sa.String(64), known, server_default=""))
    with op.batch_alter_table("sign_in_failures") as failures:  # the program gives it
        failures.alter_column("known", existing_type=sa.String(64), server_default=None)
    op.create_table(
        "withdrawals",
        _column("study_id", sa.String(36), "Which image", _study(), primary_key=True),
        _column("reason", sa.Text, "Why, in the words of who withdrew it"),
        _column("user_id", sa.Integer, "Who", sa.ForeignKey("users.id")),
        _column("at", _TIME, "When"),
        comment="Images that do not count any more, such as of another person; they are kept",
    )
    op.create_table(
        "study_moves",
        _column("id", sa.String(36), "Random identifier", primary_key=True),
        _column("study_id", sa.String(36), "Which image", _study()),
        _column("from_patient", sa.String(36), "The patient before, who may be erased by now"),
        _column("to_patient", sa.String(36), "The patient after"),
        _column("reason", sa.Text, "Why, in the words of who moved it"),
        _column("user_id", sa.Integer, "Who", sa.ForeignKey("users.id")),
        _column("at", _TIME, "When"),
        comment="Images that were saved under the wrong patient, and moved",
    )
    op.create_index("ix_study_moves_study_id", "study_moves", ["study_id"])
    op.create_table(
        "study_hashes",
        _column("study_id", sa.String(36), "Which image", _study(), primary_key=True),
        _column("pixels_sha256", sa.String(64), "SHA-256 of the pixels"),
        comment="By which an image is known again; images of earlier versions have none",
    )
    op.create_index("ix_study_hashes_pixels_sha256", "study_hashes", ["pixels_sha256"])
    op.create_index("ix_reading_sources_supersedes", "reading_sources", ["supersedes"])


def _fold_numbers() -> None:
    with op.batch_alter_table("patients") as patients:
        patients.add_column(sa.Column("folded", sa.Text, comment="The number as numbers are compared"))
    table = sa.table("patients", sa.column("id"), sa.column("number"), sa.column("folded"))
    connection = op.get_bind()
    for patient in connection.execute(sa.select(table.c.id, table.c.number)).all():
        named = table.c.id == patient.id
        connection.execute(sa.update(table).where(named).values(folded=folded(patient.number)))
    with op.batch_alter_table("patients") as patients:
        patients.alter_column("folded", existing_type=sa.Text(), nullable=False)
    op.create_index("ix_patients_folded", "patients", ["folded"])


def _study() -> sa.ForeignKey:
    return sa.ForeignKey("studies.id", ondelete="CASCADE")


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)
