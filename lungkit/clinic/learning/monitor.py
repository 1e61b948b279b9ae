"""Recent days next to those before: each model and source, at one rate of false alarms for the whole comparison.

All tests of a comparison share the rate, each of them an equal part. The result has shares and means, and nothing of a
patient.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from sqlalchemy import orm

from lungkit.clinic.learning import drift, measures
from lungkit.clinic.learning.measures import CATEGORY, PIXELS, SHARE, Measure, Row, Rows
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import now
from lungkit.errors import LungkitError

LONGEST = 3660  # days
_DRAWS_PER_ALARM = 5  # permutations that may reach a figure that is an alarm


@dataclass(frozen=True)
class Check:
    """One comparison. value: PSI, MMD or a share; expected: of it without drift; p: None on a control chart.

    alarm: None where it cannot be told.
    """

    what: str
    before: str
    recent: str
    value: float | None
    expected: float | None
    p: float | None
    alarm: bool | None
    verdict: str


@dataclass(frozen=True)
class Card:
    """A model and a source of its images. version: that of the outputs, the newest in use."""

    model: str
    version: str
    source: str
    images_before: int
    images_recent: int
    images_damaged: int  # whose pixels could not be looked at
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Window:
    """Which days are compared, and with which rate."""

    first: date
    reference: int
    alarm: float  # of each check

    def days(self, rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
        """The day of each row, from 0 and without days that have none, and which of the days are recent."""
        at = [(row.read_at.date() - self.first).days for row in rows]
        used, days = np.unique(np.array(at, int), return_inverse=True)
        return days, used >= self.reference

    def too_few(self, recent: np.ndarray) -> str:
        """Why these days do not tell; empty if they do."""
        several = int(recent.sum())
        if not several or several == len(recent):
            return f"Cannot tell: there is nothing to compare {'before' if several else 'in the recent days'}."
        needed = drift.fewest_days(several, self.alarm)
        return "" if len(recent) >= needed else f"Cannot tell: {len(recent)} days have data, {needed} are needed."


def watch(store: Store, reference: int, recent: int, alarm: float, clinic: str) -> list[Card]:
    """A card for each model and source with recent images. reference: days before the last `recent` days.

    alarm: the share of runs without drift that may raise any alarm. clinic: what the images of people are called.
    """
    for what, days in (("reference", reference), ("recent", recent)):
        if not 1 <= days <= LONGEST:
            raise LungkitError(f"{days} {what} days: accepted are 1 to {LONGEST}")
    if not 0 < alarm < 1:
        raise LungkitError(f"a rate of false alarms of {alarm}: accepted is a share between 0 and 1")
    today = now().date()
    first = today - timedelta(days=reference + recent - 1)
    with store.read() as db:
        groups = measures.groups(db, first, today, first + timedelta(days=reference), clinic)
        window = _Window(first, reference, alarm / max(1, len(measures.WHAT) * len(groups)))
        return [_card(db, *name, rows, window) for name, rows in groups.items()]


def _card(db: orm.Session, model: str, source: str, rows: Rows, window: _Window) -> Card:
    measured = measures.measured(db, rows)
    days, recent = window.days(rows)
    n = int(recent[days].sum())
    checks = tuple(_compared(window, measure) for measure in measured.measures)
    return Card(model, measured.version, source, len(rows) - n, n, measured.damaged, checks)


# --- one comparison


def _compared(window: _Window, measure: Measure) -> Check:
    days, recent = window.days(measure.rows)
    one_side = not recent.any() or bool(recent.all())
    if why := window.too_few(recent) if measure.kind != SHARE or one_side else "":
        return Check(measure.what, "", "", None, None, None, None, why)
    if measure.kind == SHARE:
        return _charted(window, measure, days, recent)
    late, draws = recent[days], int(_DRAWS_PER_ALARM / window.alarm)
    if measure.kind == PIXELS:
        return _tested(window, measure, late, "MMD", drift.mmd_by_days(measure.values, days, recent, draws))
    codes = measure.values.argmax(axis=1) if measure.kind == CATEGORY else drift.bins(measure.values[:, 0])
    return _tested(window, measure, late, "PSI", drift.psi_by_days(codes, days, recent, draws))


def _tested(window: _Window, measure: Measure, late: np.ndarray, figure: str, tested: drift.Tested) -> Check:
    alarm = tested.p <= window.alarm
    found = "Drift" if alarm else "No drift seen"
    words = f"{found}: {figure} {tested.value:.3f}, about {tested.expected:.3f} is expected without drift."
    before, recent = measures.told(measure, ~late), measures.told(measure, late)
    return Check(measure.what, before, recent, tested.value, tested.expected, tested.p, alarm, words)


def _charted(window: _Window, measure: Measure, days: np.ndarray, recent: np.ndarray) -> Check:
    hits = np.bincount(days, measure.values[:, 0], len(recent))
    chart = drift.chart(hits, np.bincount(days, minlength=len(recent)), recent, window.alarm)
    days_out, together = int(chart.out[:-1].sum()), bool(chart.out[-1])
    limits = f"{chart.low[-1]:.1%} to {chart.high[-1]:.1%}"
    words = "No drift seen: every day is within its limits, and all days together within "
    if chart.out.any():
        of_days = (
            f"{days_out} of {len(chart.out) - 1} days {'is' if days_out == 1 else 'are'} outside the limits of a day"
        )
        words = f"Drift: {of_days}; all days together are {'outside' if together else 'within'} "
    share = float(chart.shares[-1])
    before, now_ = f"{chart.centre:.1%}", f"{share:.1%}"
    return Check(measure.what, before, now_, share, chart.centre, None, bool(chart.out.any()), f"{words}{limits}.")
