"""Drift in the records: each model and source, in what comes in, what the model says, and how far reviews agree.

All tests of a run share one rate of false alarms, each of them an equal part. Pixels of busy days are those of some
images only. The result has shares and means, and nothing of a patient.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import progress
from lungkit.clinic.learning import drift
from lungkit.clinic.learning.reviews import stored_pixels
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import cases, pixels
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import PROGRAM, Reading, Study, User, now
from lungkit.errors import LungkitError

MOST_A_DAY = 50  # images of a day whose pixels are looked at, evenly taken
LONGEST = 3660  # days
_DRAWS_PER_ALARM = 5  # permutations that may reach a figure that is an alarm
_PIXEL_CHECKS = ("brightness", "contrast")
_CHECKS = (*_PIXEL_CHECKS, "pixels (MMD)", "size", "kind and view", "classes", "left to a person", "reviews agree")
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUMBERS = 4 + len(_QUANTILES)  # that `describe` gives


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
    """Readings of a card by day."""

    rows: list[sa.Row[tuple[Any, ...]]]
    first: date
    reference: int
    recent_days: int
    alarm: float  # of each check
    draws: int

    def days(self, rows: Iterable[sa.Row[tuple[Any, ...]]]) -> tuple[np.ndarray, np.ndarray]:
        """The day of each row, from 0 and without days that have none, and which of the days are recent."""
        at = [(row.read_at.date() - self.first).days for row in rows]
        used, days = np.unique(np.array(at, int), return_inverse=True)
        return days, used >= self.reference

    def too_few(self, recent: np.ndarray) -> str:
        """Why these days do not tell; empty if they do."""
        several = int(recent.sum())
        if not several or several == len(recent):
            return f"Cannot tell: there is no image {'before' if several else 'in the recent days'}."
        needed = drift.fewest_days(several, self.alarm)
        return "" if len(recent) >= needed else f"Cannot tell: {len(recent)} days have images, {needed} are needed."


def watch(store: Store, reference: int, recent: int, alarm: float, clinic: str) -> list[Card]:
    """A card for each model and source with recent images. reference: days before the last `recent` days.

    alarm: the share of runs without drift that may raise any alarm. clinic: what the images of people are called.
    """
    for what, days in (("reference", reference), ("recent", recent)):
        if not 1 <= days <= LONGEST:
            raise LungkitError(f"{days} {what} days: accepted are 1 to {LONGEST}")
    if not 0 < alarm < 1:
        raise LungkitError(f"a rate of false alarms of {alarm}: accepted is a share between 0 and 1")
    first = now().date() - timedelta(days=reference + recent - 1)
    with store.read() as db:
        rows = db.execute(_query(datetime.combine(first, time(), UTC))).all()

        def key(row: sa.Row[tuple[Any, ...]]) -> tuple[str, str]:
            return row.model, row.name if row.role == PROGRAM else clinic

        cards = [(name, list(group)) for name, group in groupby(sorted(rows, key=key), key)]
        border = first + timedelta(days=reference)
        cards = [card for card in cards if any(row.read_at.date() >= border for row in card[1])]
        each = alarm / max(1, len(_CHECKS) * len(cards))
        draws = int(_DRAWS_PER_ALARM / each)
        return [_card(db, *name, _Window(group, first, reference, recent, each, draws)) for name, group in cards]


def _query(since: datetime) -> "sa.Select[*tuple[Any, ...]]":
    latest = cases.latest_review()
    return (
        sa.select(
            Reading.model, Reading.version, Reading.read_at, Reading.label, Reading.decision, Reading.study_id,
            Study.kind, Study.tags, Study.width, Study.height, User.name, User.role, latest.c.agrees,
        )
        .join(Study, Study.id == Reading.study_id)
        .join(User, User.id == Study.uploaded_by)
        .outerjoin(latest, latest.c.reading_id == Reading.id)
        .where(Reading.read_at >= since)
        .order_by(Reading.read_at, Reading.id)
    )  # fmt: skip


def _card(db: orm.Session, model: str, source: str, window: _Window) -> Card:
    newest = window.rows[-1].version
    days, recent = window.days(window.rows)
    of_version = [row for row in window.rows if row.version == newest]
    some, features, damaged = _pixels(db, window)
    checks = [
        *(_numbers(window, what, some, features[:, at]) for at, what in enumerate(_PIXEL_CHECKS)),
        _mmd(window, some, features),
        _numbers(window, "size", window.rows, np.array([row.width * row.height / 1e6 for row in window.rows]), " MP"),
        _categories(window, "kind and view", window.rows, lambda row: f"{row.kind} {row.tags.get('view', '')}".strip()),
        _categories(window, "classes", of_version, lambda row: row.label),
        _share(window, "left to a person", of_version, lambda row: row.decision == REVIEW),
        _share(window, "reviews agree", [row for row in of_version if row.agrees is not None], lambda row: row.agrees),
    ]
    n = int(recent[days].sum())
    return Card(model, newest, source, len(window.rows) - n, n, damaged, tuple(checks))


# --- checks

_Rows = list[sa.Row[tuple[Any, ...]]]


def _numbers(window: _Window, what: str, rows: _Rows, values: np.ndarray, unit: str = "") -> Check:
    def told(chosen: np.ndarray) -> str:
        return f"mean {values[chosen].mean():.3g}{unit}"

    return _psi(window, what, rows, drift.bins(values) if len(values) else values, told)


def _categories(window: _Window, what: str, rows: _Rows, name: Callable[[Any], str]) -> Check:
    names, codes = np.unique([name(row) for row in rows], return_inverse=True)

    def told(chosen: np.ndarray) -> str:
        shares = np.bincount(codes[chosen], minlength=len(names)) / max(1, chosen.sum())
        return ", ".join(f"{one} {share:.0%}" for one, share in zip(names, shares, strict=True))

    return _psi(window, what, rows, codes, told)


def _psi(window: _Window, what: str, rows: _Rows, codes: np.ndarray, told: Callable[[np.ndarray], str]) -> Check:
    days, recent = window.days(rows)
    if why := window.too_few(recent):
        return Check(what, "", "", None, None, None, None, why)
    tested = drift.psi_by_days(codes, days, recent, window.draws)
    return _tested(window, what, told(~recent[days]), told(recent[days]), "PSI", tested)


def _mmd(window: _Window, rows: _Rows, features: np.ndarray) -> Check:
    days, recent = window.days(rows)
    if why := window.too_few(recent):
        return Check("pixels (MMD)", "", "", None, None, None, None, why)
    return _tested(window, "pixels (MMD)", "", "", "MMD", drift.mmd_by_days(features, days, recent, window.draws))


def _tested(window: _Window, what: str, before: str, recent: str, figure: str, tested: drift.Tested) -> Check:
    alarm = tested.p <= window.alarm
    found = "Drift" if alarm else "No drift seen"
    words = f"{found}: {figure} {tested.value:.3f}, about {tested.expected:.3f} is expected without drift."
    return Check(what, before, recent, tested.value, tested.expected, tested.p, alarm, words)


def _share(window: _Window, what: str, rows: _Rows, hit: Callable[[Any], bool]) -> Check:
    days, recent = window.days(rows)
    if not recent.any() or recent.all():
        return Check(what, "", "", None, None, None, None, window.too_few(recent))
    hits = np.bincount(days, [bool(hit(row)) for row in rows], len(recent))
    chart = drift.chart(hits, np.bincount(days, minlength=len(recent)), recent, window.alarm)
    days_out = int(chart.out[:-1].sum())
    limits = f"{chart.low[-1]:.1%} to {chart.high[-1]:.1%}"
    words = "No drift seen: every day is within its limits, and all together within "
    if chart.out.any():
        words = f"Drift: {days_out} of {len(chart.out) - 1} days are outside their limits; those of all together are "
    share = float(chart.shares[-1])
    before, now_ = f"{chart.centre:.1%}", f"{share:.1%}"
    return Check(what, before, now_, share, chart.centre, None, bool(chart.out.any()), f"{words}{limits}.")


# --- pixels


def _pixels(db: orm.Session, window: _Window) -> tuple[_Rows, np.ndarray, int]:
    """Some rows of each day, the features of their pixels (rows, features), and how many more are damaged."""
    chosen = []
    for _, of_day in groupby(window.rows, lambda row: row.read_at.date()):
        rows = list(of_day)
        step = max(1, -(-len(rows) // MOST_A_DAY))
        chosen += rows[::step]
    kept, features = [], []
    for row in progress.bar(chosen, label=f"looking at images of {window.rows[0].model}", unit="image"):
        png, units = stored_pixels(db, row.study_id)
        try:
            features.append(describe(pixels.decode(png, units), units))
            kept.append(row)
        except pixels.PixelsDamaged:
            continue
    return kept, np.array(features).reshape(len(kept), -1), len(chosen) - len(kept)


def describe(values: np.ndarray, units: str) -> np.ndarray:
    """Features of a picture, float (9,): mean, standard deviation, five quantiles, detail, and log of its aspect.

    HU count in thousands above air, intensities as they are.
    """
    height, width = values.shape
    step = max(1, max(height, width) // 256)
    some = values[::step, ::step].astype(float)
    some = (some + 1024) / 1000 if units == "HU" else some
    detail = np.abs(np.diff(some, axis=0)).mean() if len(some) > 1 else 0.0
    return np.array([some.mean(), some.std(), *np.quantile(some, _QUANTILES), detail, np.log(width / height)])
