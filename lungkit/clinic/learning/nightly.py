"""The nightly look at drift: each measure of each model and source by day, kept in the records once a day.

The days up to yesterday (UTC) are looked at, each of them whole. All measures of a night share one false alarm in so
many days: the run length of each sum is that many days times the number of sums (see `sequential`). What is kept has
means and shares of days, and nothing of a patient.
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.learning import measures, sequential
from lungkit.clinic.learning.measures import CATEGORY, PIXELS, SHARE, Measure, Measured
from lungkit.clinic.records import audit_trail
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import DriftRun, Json, now
from lungkit.errors import LungkitError

DAYS = 90  # that are looked at
EVERY = 100.0  # days until a false alarm of a night, on average
RECENT = 7  # days without an image after which a source is no longer watched
LONGEST = 730  # days: the sums need days² numbers


@dataclass(frozen=True)
class Kept:
    """What a night has found. new: False where another run of the same day has it already."""

    day: date
    alarm: bool
    cards: list[Json]
    settings: Json
    new: bool


def keep(store: Store, clinic: str, days: int = DAYS, every: float = EVERY) -> Kept:
    """Look at the last `days` whole days, and keep what was found; once for each day, whoever asks.

    every: days until a false alarm, on average. clinic: what the images of people are called as their source.
    """
    for what, given, least, most in (("days", days, sequential.FIRST + 1, LONGEST), ("every", every, 2, 1e5)):
        if not least <= given <= most:
            raise LungkitError(f"{what}: {given:g}; accepted are {least} to {most:g}")
    today = now().date()
    with store.read() as db:
        if kept := _kept(db, today):
            return kept
        cards = _cards(db, today, days, every, clinic)
    checks = [check for group in cards for check in group["checks"]]
    alarm = any(check["alarm"] for check in checks)
    settings = {"days": days, "every": every, "sums": sum(check["sums"] for check in checks)}
    with store.write() as db:
        if kept := _kept(db, today):  # another gateway was faster
            return kept
        db.add(DriftRun(day=today, alarm=alarm, cards=cards, settings=settings))
        audit_trail.append(db, None, "drift.run", f"day:{today}", alarm=alarm, cards=len(cards))
    return Kept(today, alarm, cards, settings, True)


# --- what people were told


@dataclass(frozen=True)
class Change:
    """A measure that has changed for some source of a model's images. since: about which day, ISO."""

    model: str  # NAME@vN
    what: str
    since: str


def untold(store: Store) -> list[Change]:
    """What the runs of the last week found and no one was told in that week; the latest date of each counts."""
    with store.read() as db:
        rows = db.scalars(_alarms()).all()
    told = {(group["source"], one.model, one.what) for row in rows if row.told_at for group, one in _changes(row)}
    new: dict[tuple[str, str], Change] = {}
    for row in rows:
        for group, one in _changes(row):
            if (group["source"], one.model, one.what) not in told:
                new[one.model, one.what] = one
    return [new[name] for name in sorted(new)]


def note_told(store: Store) -> None:
    """Note that people were told of all that `untold` gives."""
    with store.write() as db:
        for row in db.scalars(_alarms()):
            if row.told_at is None:
                row.told_at = now()
                audit_trail.append(db, None, "drift.tell", f"day:{row.day}")


def _alarms() -> "sa.Select[DriftRun]":
    week = now().date() - timedelta(days=RECENT - 1)
    return sa.select(DriftRun).where(DriftRun.alarm, DriftRun.day >= week).order_by(DriftRun.day)


def _changes(row: DriftRun) -> list[tuple[Json, Change]]:
    return [
        (group, Change(f"{group['model']}@{group['version']}", check["what"], check["since"]))
        for group in row.cards
        for check in group["checks"]
        if check["alarm"]
    ]


# --- what is found


def _kept(db: orm.Session, day: date) -> Kept | None:
    row = db.scalar(sa.select(DriftRun).where(DriftRun.day == day))
    return Kept(row.day, row.alarm, row.cards, row.settings, False) if row else None


def _cards(db: orm.Session, today: date, days: int, every: float, clinic: str) -> list[Json]:
    first, last = today - timedelta(days=days), today - timedelta(days=1)
    groups = measures.groups(db, first, last, today - timedelta(days=RECENT), clinic)
    found = {name: measures.measured(db, rows, quiet=True) for name, rows in groups.items()}
    sums = sum(sequential.sums_of(_figures(measure).shape[1]) for one in found.values() for measure in one.measures)
    return [_card(name, len(groups[name]), measured, every * sums) for name, measured in found.items()]


def _card(name: tuple[str, str], images: int, measured: Measured, run_length: float) -> Json:
    checks = [_check(measure, run_length) for measure in measured.measures]
    return {
        "model": name[0],
        "version": measured.version,
        "source": name[1],
        "images": images,
        "images_damaged": measured.damaged,
        "checks": checks,
    }


# --- one measure


def _figures(measure: Measure) -> np.ndarray:
    """The values of a measure; of two names the second is all there is to know."""
    return measure.values[:, 1:] if measure.kind == CATEGORY and len(measure.names) == 2 else measure.values


def _check(measure: Measure, run_length: float) -> Json:
    """A measure by day, JSON-ready: days, values, low, high (the usual range), alarm, since, shows, share, words."""
    figures = _figures(measure)
    at = np.array([row.read_at.date().toordinal() for row in measure.rows], int)
    dates, days = np.unique(at, return_inverse=True)
    check = {
        "what": measure.what,
        "share": measure.kind in (SHARE, CATEGORY),
        "unit": measure.unit.strip(),
        "sums": sequential.sums_of(figures.shape[1]),
        "shows": "",
    }
    needed = sequential.FIRST + 1
    if len(dates) < needed:
        words = f"Cannot tell: {len(dates)} days have data, {needed} are needed."
        return check | {"days": [], "values": [], "low": [], "high": [], "alarm": None, "since": None, "words": words}
    course = sequential.course(figures, days, run_length)
    since = None if course.since is None else date.fromordinal(int(dates[course.since])).isoformat()
    feature = 0 if measure.kind == PIXELS else course.feature
    return check | {
        "shows": _shows(measure, course.feature),
        "days": [date.fromordinal(int(one)).isoformat() for one in dates],
        "values": _rounded(course.means[:, feature]),
        "low": _rounded(course.low[:, feature]),
        "high": _rounded(course.high[:, feature]),
        "alarm": course.alarm,
        "since": since,
        "words": _words(measure, days, course.since, since),
    }


def _shows(measure: Measure, feature: int) -> str:
    """Which of the features the chart shows."""
    if measure.kind == CATEGORY:
        return measure.names[-1] if len(measure.names) == 2 else measure.names[feature]
    return "brightness, one of nine figures" if measure.kind == PIXELS else ""


def _words(measure: Measure, days: np.ndarray, since: int | None, day: str | None) -> str:
    if since is None:
        return "No change seen."
    told = [measures.told(measure, chosen) for chosen in (days < since, days >= since)]
    return f"Changed, since about {day}" + (f": {told[0]} before, {told[1]} since." if told[0] else ".")


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
