"""Whether something has changed, told day by day at a stated run length: cumulative sums of the ranks of days.

Each day gets a rank among the days up to it, by how far it lies from all of them together. If days can be exchanged,
ranks are uniform and independent of each other whatever the figures are like (conformal prediction: Vovk, Gammerman,
Shafer, "Algorithmic Learning in a Random World", 2005; Vovk, "Testing randomness online", Statistical Science 2021).
So one limit fits all figures. The sums are those of Page ("Continuous inspection schemes", Biometrika 1954), and the
limit for a run length follows from a Markov chain (Brook, Evans, Biometrika 1972).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

FIRST = 14  # days with images that are only compared with: ranks among fewer tell little
ALLOWANCE = 0.5  # taken from each day's score: a change by one standard deviation of a day is found fastest
USUAL = 3.0  # standard deviations of a day, either way, that the chart shows as usual
_ABOVE = 1.0  # how far a sum may rise above its limit: it comes down soon after a change has ended
_STATES = 160
_TINY = 1e-12


@dataclass(frozen=True)
class Course:
    """A figure by day, and the sums that tell whether it has changed.

    means, low, high: (days, features); the usual range is that of the days before `since`, or before the last week.
    sums: (days, 1 or 2): of one feature its rise and its fall, of several their distance. since: place of the first
    day of the change; None without an alarm. feature: the one that differs the most since then.
    """

    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sums: np.ndarray
    limit: float
    since: int | None
    feature: int

    @property
    def alarm(self) -> bool:
        """Whether the last day is beyond the limit."""
        return self.since is not None


def sums_of(features: int) -> int:
    """How many sums there are for so many features: a rise and a fall of one, the distance of several."""
    return 2 if features == 1 else 1


def course(values: np.ndarray, days: np.ndarray, run_length: float) -> Course:
    """The course of figures. values: (images, features). days: of each image, from 0 and without a gap.

    run_length: days until a false alarm of one sum, on average; see `limit`.
    """
    origin = values.mean(axis=0)
    sizes = np.bincount(days).astype(float)
    totals, squares = (_by_day(powers, days, len(sizes)) for powers in (values - origin, (values - origin) ** 2))
    means = totals / sizes[:, None]
    centres, deviations = _usual(sizes, totals, squares)
    scores = _scores((means - centres[:, None]) / deviations)
    sums, most = np.zeros((len(sizes), sums_of(values.shape[1]))), limit(run_length)
    for day in range(FIRST, len(sizes)):
        signed = np.array([scores[day], -scores[day]][: sums.shape[1]])
        sums[day] = np.clip(sums[day - 1] + signed - ALLOWANCE, 0, most + _ABOVE)
    since = _since(sums, most)
    last_week = max(2, len(sizes) - 7)
    before = last_week if since is None else min(since, last_week)
    centre, deviation = centres[before - 1], deviations[before - 1]
    changed = np.abs((means - centre) / deviation)[last_week if since is None else since :]
    low, high = (origin + centre + side * USUAL * deviation for side in (-1, 1))
    return Course(
        means + origin, low, high, sums, most, since, int(changed.mean(axis=0).argmax()) if len(changed) else 0
    )


def _by_day(values: np.ndarray, days: np.ndarray, several: int) -> np.ndarray:
    """Sums of values (images, features) by day."""
    sums = np.zeros((several, values.shape[1]))
    np.add.at(sums, days, values)
    return sums


def _usual(sizes: np.ndarray, totals: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the days up to each one: their centre (days, features), and a standard deviation of every day around it.

    A day's mean varies between days, and by chance the more the fewer images it has: analysis of variance.
    Deviations are (days, days, features); the first axis says up to which day.
    """
    n, several = sizes[:, None], np.arange(1, len(sizes) + 1)[:, None]
    images, pairs, sums = (np.cumsum(figures, axis=0) for figures in (n, n**2, totals))
    inside = np.cumsum(np.maximum(squares - totals**2 / n, 0), axis=0)
    within = inside / np.maximum(1, images - several)
    spread = np.maximum(np.cumsum(totals**2 / n, axis=0) - sums**2 / images, 0) / np.maximum(1, several - 1)
    alike = (images - pairs / images) / np.maximum(1, several - 1)  # images of a day, on average
    between = np.maximum(spread - within, 0) / np.maximum(alike, _TINY)
    variances = np.maximum(between[:, None] + within[:, None] / n, _TINY)
    weights = np.tri(len(sizes))[..., None] / variances
    centre = (weights * (totals / n)).sum(axis=1) / weights.sum(axis=1)
    return centre, np.sqrt(variances)


def _scores(apart: np.ndarray) -> np.ndarray:
    """The normal score of each day's rank among the days up to it; equal days share their ranks.

    apart: (days, days, features), standardised by the days up to the first axis's.
    """
    far = np.round(apart[..., 0] if apart.shape[2] == 1 else (apart**2).sum(axis=2), 9)
    own, up_to = np.diag(far)[:, None], np.tri(len(far), dtype=bool)
    ranks = ((far < own) & up_to).sum(axis=1) + ((far == own) & up_to).sum(axis=1) / 2
    return np.asarray(ndtri(ranks / up_to.sum(axis=1)))


def _since(sums: np.ndarray, most: float) -> int | None:
    """The day after the last one on which the sum that is beyond its limit was 0."""
    beyond = np.flatnonzero(sums[-1] >= most)
    if not len(beyond):
        return None
    return int(max(np.flatnonzero(sums[:, which] == 0)[-1] + 1 for which in beyond))


@lru_cache(64)
def limit(run_length: float) -> float:
    """The limit of one sum that raises a false alarm every `run_length` days on average, 2 to 10 million."""
    low, high = 0.0, 20.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if expected_run(middle) < run_length else (low, middle)
    return high


def expected_run(most: float) -> float:
    """Days until a sum of standard normal scores reaches `most`, on average."""
    width = most / (_STATES - 0.5)
    states = np.arange(_STATES) * width
    edges = states + width / 2
    up_to = norm.cdf(edges[None] - states[:, None] + ALLOWANCE)
    moves = np.diff(up_to, axis=1, prepend=0)
    return float(np.linalg.solve(np.eye(_STATES) - moves, np.ones(_STATES))[0])
