"""CT series: what a model said about one as a whole, and its slices."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    reading = sa.ForeignKey("readings.id", ondelete="CASCADE")
    study = sa.ForeignKey("studies.id", ondelete="CASCADE")
    op.create_table(
        "series",
        _column("reading_id", sa.String(36), "Which reading", reading, primary_key=True),
        _column("slices", sa.Integer, "How many the series has"),
        _column("spacing", sa.JSON, "mm between rows, columns, slices as stored; empty: unknown"),
        _column("positions", sa.JSON, "Of each slice along the normal, mm, in their order"),
        _column("orientation", sa.JSON, "Direction of rows, then of columns"),
        _column("readable", sa.String(16), "volume or slicewise"),
        _column("findings", sa.JSON, "Rule and words for each finding; no name of a file"),
        _column("read", sa.JSON, "Slices with lungs that were read: number, position, label, probabilities"),
        _column("carrying", sa.JSON, "Places in `read` of the slices that the reading rests on"),
        _column("without_lungs", sa.Integer, "Slices that were read and left out"),
        _column("absent", sa.String(100), "The class that says that nothing was found"),
        _column("affected", sa.Double, "Share of slices of another class than that, 0..1"),
        _column("reasons", sa.JSON, "Why the decision is left to a person, in words"),
        _column("extent", sa.JSON, "Volume of the lungs, and shares of it; empty: not measured", nullable=True),
        _column("heat", sa.LargeBinary, "Heat maps of the carrying slices, as PNG"),
        sa.CheckConstraint("readable IN ('volume', 'slicewise')", name="readable"),
        comment="What a model said about a CT series",
    )
    op.create_table(
        "series_slices",
        _column("study_id", sa.String(36), "Whose slice", study, primary_key=True),
        _column("number", sa.Integer, "From 0, in the order of positions", primary_key=True, autoincrement=False),
        _column("pixels", sa.LargeBinary, "HU, as PNG of 16 bits"),
        comment="Slices of a CT series",
    )


def _column(name: str, kind: Any, comment: str, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, comment=comment, **{"nullable": False} | options)
