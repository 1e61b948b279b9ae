"""What a trial takes from the clinic: the time for an image, and the rule for going back with how it stands.

The rule is derived from what the champion does. Of n reviews, a agreed with it; then the number that agrees among the
next m has a beta-binomial distribution (with Jeffreys' prior, Beta(a + 1/2, n - a + 1/2)), which contains that n is
finite. The limit is its quantile at the rate of false alarms. Each m reviews are one look, at their end: a limit that
were asked after every review would be crossed by chance sooner or later.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.learning.reviews import refused
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records import cases, trials
from lungkit.clinic.records.accounts import Entry
from lungkit.clinic.records.corrections import still_counts
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import PROMOTED, Reading
from lungkit.clinic.records.trials import RollbackRule, TrialRow
from lungkit.data import images
from lungkit.models import registry
from lungkit.models.verdict import OfSet
from lungkit.wording import count, percent

REVIEWS, READINGS = 50, 100  # in one look of the rule for going back
FALSE_ALARM = 0.01  # of each of its two limits, in one look
TIMED = 30  # images


def timed(old: registry.Version, new: registry.Version, files: Sequence[Path]) -> tuple[float, float, float, int]:
    """Milliseconds for an image of both, as the clinic reads it, the median of new / old, and of how many images.

    The two take turns on each of at most TIMED images, so a busy machine slows both.
    """
    some = [files[int(at)] for at in np.unique(np.linspace(0, len(files) - 1, TIMED))]
    predictors = Predictor(old), Predictor(new)
    for predictor in predictors:  # the first image of a graph takes longer
        predictor.read(images.read(some[0], some[0].name))
    spent = np.array([[_milliseconds(predictor, file) for predictor in predictors] for file in some])
    each = np.median(spent, axis=0)
    return float(each[0]), float(each[1]), float(np.median(spent[:, 1] / spent[:, 0])), len(some)


def _milliseconds(predictor: Predictor, file: Path) -> float:
    started = time.perf_counter()
    predictor.read(images.read(file, file.name))
    return 1000 * (time.perf_counter() - started)


# --- the rule for going back


def rollback_rule(
    db: orm.Session,
    champion: registry.Version,
    sets: Sequence[OfSet],
    agreement_below: float | None = None,
    left_to_person_above: float | None = None,
) -> RollbackRule:
    """The rule, with limits from the champion's reviews and readings, or those that are given.

    Where it has fewer reviews than one look needs, its accuracy on the first set stands for the agreement, and its
    share within the band of uncertainty there for what is left to a person.
    """
    reviewed = _agreed(db, champion.model, champion.version)
    read = _left(db, champion.model, champion.version)
    first = sets[0]
    from_reviews, from_readings = len(reviewed) >= REVIEWS, len(read) >= READINGS
    said = first.champion
    agreed = (sum(reviewed), len(reviewed)) if from_reviews else (said.accuracy[0] * first.images, first.images)
    left = (sum(read), len(read)) if from_readings else (said.left_to_person * first.images, first.images)
    return RollbackRule(
        reviews=REVIEWS,
        agreement_below=_limit(agreed, REVIEWS, FALSE_ALARM) if agreement_below is None else agreement_below,
        readings=READINGS,
        left_to_person_above=(
            _limit(left, READINGS, 1 - FALSE_ALARM) if left_to_person_above is None else left_to_person_above
        ),
        false_alarm=FALSE_ALARM,
        derived_from=_derived_from(champion, first, agreed, left, from_reviews, from_readings),
    )


def _limit(before: tuple[float, int], of_next: int, quantile: float) -> float:
    """The share of the next observations that is crossed with a chance of the quantile at most, on its side."""
    from scipy import stats  # takes half a second, which few commands need

    hits, n = before
    return float(stats.betabinom.ppf(quantile, of_next, hits + 0.5, n - hits + 0.5)) / of_next


def _derived_from(
    champion: registry.Version,
    first: OfSet,
    agreed: tuple[float, int],
    left: tuple[float, int],
    from_reviews: bool,
    from_readings: bool,
) -> str:
    of_agreement = count(agreed[1], "review") if from_reviews else f"accuracy on {first}"
    of_left = count(left[1], "reading") if from_readings else f"band of uncertainty on {first}"
    return (
        f"{champion}: {percent(agreed[0] / agreed[1])} agreed ({of_agreement}), {percent(left[0] / left[1])} left to a "
        f"person ({of_left})"
    )


@dataclass(frozen=True)
class Standing:
    """How the rule for going back stands. due: whether it was crossed. words: since when, and by what."""

    trial: TrialRow
    due: bool
    words: str


def standing(db: orm.Session, trial: TrialRow) -> Standing | None:
    """How the rule of a promoted trial stands; None where its challenger is not in use. Nothing is changed by it."""
    if trial.state != PROMOTED or trial.ended_at is None or registry.active_name(trial.model) != trial.challenger:
        return None
    rule = trial.rollback
    agreed = _agreed(db, trial.model, trial.challenger, trial.ended_at)
    left = _left(db, trial.model, trial.challenger, trial.ended_at)
    crossed = [
        f"of reviews {start + 1} to {start + len(part)} only {sum(part)} agree ({percent(sum(part) / len(part))}); the "
        f"limit is {percent(rule.agreement_below)}"
        for start, part in _looks(agreed, rule.reviews)
        if np.mean(part) < rule.agreement_below
    ] + [
        f"of readings {start + 1} to {start + len(part)} {sum(part)} are left to a person "
        f"({percent(sum(part) / len(part))}); the limit is {percent(rule.left_to_person_above)}"
        for start, part in _looks(left, rule.readings)
        if np.mean(part) > rule.left_to_person_above
    ]
    since = f"{count(len(agreed), 'review')} and {count(len(left), 'reading')} since {trial.challenger} is in use"
    if crossed:
        return Standing(trial, True, f"Go back to {trial.champion}: {'; '.join(crossed)}. {since}.")
    looks = f"looked at by {rule.reviews} and {rule.readings}"
    return Standing(trial, False, f"Within its limits so far: {since}, {looks}.")


def standings(entry: Entry) -> list[Standing]:
    """How the rules of all challengers that are in use stand, for administrators."""
    with entry.reads("admin") as (db, _):
        return _standings(db)


def rollback_due(store: Store) -> list[Standing]:
    """Those whose rule was crossed: a person has to decide. Nothing goes back by itself."""
    with store.read() as db:
        return [one for one in _standings(db) if one.due]


def _standings(db: orm.Session) -> list[Standing]:
    found = (standing(db, trial) for trial in trials.list_trials(db))
    return [one for one in found if one]


def _looks(values: list[bool], size: int) -> list[tuple[int, list[bool]]]:
    """Each complete run of so many values, with its start."""
    return [(start, values[start : start + size]) for start in range(0, len(values) - size + 1, size)]


def _agreed(db: orm.Session, model: str, version: str, since: datetime | None = None) -> list[bool]:
    """Whether the latest review of each reading of a version agrees, in the order of reviews, if both give a class."""
    latest = cases.latest_review()
    query = sa.select(latest.c.agrees, Reading.checks).join(Reading, Reading.id == latest.c.reading_id)
    query = query.where(latest.c.agrees.is_not(None))
    query = _of_version(query, model, version, since).order_by(latest.c.at, latest.c.id)
    return [bool(agrees) for agrees, checks in db.execute(query) if not refused(checks)]


def _left(db: orm.Session, model: str, version: str, since: datetime | None = None) -> list[bool]:
    """Whether each reading of a version was left to a person, oldest first."""
    query = _of_version(sa.select(Reading.decision), model, version, since).order_by(Reading.read_at, Reading.id)
    return [decision == REVIEW for decision in db.scalars(query)]


def _of_version(query: "sa.Select[Any]", model: str, version: str, since: datetime | None) -> "sa.Select[Any]":
    query = query.where(Reading.model == model, Reading.version == version, still_counts(Reading.study_id))
    return query.where(Reading.read_at >= since) if since else query
