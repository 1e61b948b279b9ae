"""Whether recent days differ from those before: statistics on numbers, with the false alarms that they state.

Images of one day resemble each other (the same device, the same ward), so whole days are permuted, not images: a test
that permutes days keeps its rate of false alarms whatever the images of a day have in common, if days alone can be
exchanged. PSI, the population stability index, is not 0 without drift; Yurdakul, "Statistical properties of population
stability index" (2018), has its expected value. MMD: Gretton et al., "A kernel two-sample test" (JMLR 2012).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BINS = 10
_SMOOTHED = 0.5  # added to each count, as an empty bin would make PSI infinite
_ROWS = 4096  # of permutations at a time


@dataclass(frozen=True)
class Tested:
    """A figure, the value to expect without drift, and the share of permutations of days with at least this figure."""

    value: float
    expected: float
    p: float


def fewest_days(recent: int, alarm: float) -> int:
    """The fewest days in all with which a permutation test of so many recent days can reach p = alarm / 2."""
    days = recent + 1
    while math.comb(days, recent) < 2 / alarm and days < 10_000:
        days += 1
    return days


# --- PSI


def bins(values: np.ndarray, most: int = BINS) -> np.ndarray:
    """The bin of each value, int (n,): of equal size over all of the values, fewer where values repeat.

    Bins of the older values alone would not be exchangeable with those of the recent ones.
    """
    edges = np.unique(np.quantile(values, np.arange(1, most) / most))
    return np.asarray(np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1])


def psi(before: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """The population stability index of counts (..., bins)."""
    p, q = ((counts + _SMOOTHED) / (counts + _SMOOTHED).sum(axis=-1, keepdims=True) for counts in (before, recent))
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def expected_psi(bins: int, before: int, recent: int) -> float:
    """What PSI is on average without drift, for so many images."""
    return (bins - 1) * (1 / before + 1 / recent)


def psi_by_days(codes: np.ndarray, days: np.ndarray, recent: np.ndarray, draws: int, seed: int = 7) -> Tested:
    """PSI of recent days to those before. codes: the bin of each image. days: its day, from 0. recent: bool by day."""
    counts = np.zeros((len(recent), codes.max() + 1))
    np.add.at(counts, (days, codes), 1)
    total = counts.sum(axis=0)

    def statistic(chosen: np.ndarray) -> np.ndarray:
        of_recent = chosen @ counts
        return psi(total - of_recent, of_recent)

    value, p = _permuted(statistic, recent, draws, seed)
    n = int(counts[recent].sum())
    return Tested(value, expected_psi(counts.shape[1], len(codes) - n, n), p)


# --- MMD


def mmd_by_days(features: np.ndarray, days: np.ndarray, recent: np.ndarray, draws: int, seed: int = 7) -> Tested:
    """Squared maximum mean discrepancy, unbiased, of recent days to those before; 0 is expected without drift.

    features: (images, features). The kernel is Gaussian, as wide as the median distance of standardised images.
    """
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    order = np.argsort(days, kind="stable")
    scaled, sizes = scaled[order].astype(np.float32), np.bincount(days, minlength=len(recent)).astype(float)
    width = _median_distance(scaled, seed)
    # Sums over pairs of days are all that a permutation of days needs.
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    used = sizes > 0
    kernel = np.zeros((len(recent), len(recent)))
    for day in np.flatnonzero(used):
        images = scaled[starts[day] : starts[day] + int(sizes[day])]
        alike = np.exp(-_squares(images, scaled) / width).sum(axis=0, dtype=float)
        kernel[day, used] = np.add.reduceat(alike, starts[used])
    kernel[np.diag_indices(len(recent))] -= sizes  # an image with itself

    def statistic(chosen: np.ndarray) -> np.ndarray:
        n, rows = chosen @ sizes, chosen @ kernel
        m, inside = sizes.sum() - n, (rows * chosen).sum(axis=-1)
        across = rows.sum(axis=-1) - inside
        outside = kernel.sum() - inside - 2 * across
        with np.errstate(invalid="ignore", divide="ignore"):  # one image has no pair
            value = inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * across / (n * m)
        return np.asarray(np.nan_to_num(value))

    value, p = _permuted(statistic, recent, draws, seed)
    return Tested(value, 0.0, p)


def _squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared distances, (left, right)."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.asarray(np.maximum(squares, 0))


def _median_distance(scaled: np.ndarray, seed: int) -> float:
    some = np.random.default_rng(seed).permutation(len(scaled))[:500]
    return float(np.median(_squares(scaled[some], scaled[some]))) or 1.0


def _permuted(
    statistic: Callable[[np.ndarray], np.ndarray], recent: np.ndarray, draws: int, seed: int
) -> tuple[float, float]:
    """The statistic of the recent days, and the share of choices of as many days, this one included, that reach it."""
    rng, several = np.random.default_rng(seed), int(recent.sum())
    value, reached = float(statistic(recent.astype(float)[None])[0]), 1
    for start in range(0, draws, _ROWS):
        ranks = rng.random((min(_ROWS, draws - start), len(recent)))
        chosen = ranks <= np.partition(ranks, several - 1, axis=1)[:, several - 1 : several]
        reached += int((statistic(chosen.astype(float)) >= value - 1e-12).sum())
    return value, reached / (draws + 1)


# --- control charts


@dataclass(frozen=True)
class Chart:
    """Shares of recent days with the limits for each; the last point is all of these days together."""

    centre: float  # share in the days before
    shares: np.ndarray  # (recent days + 1,); nan without an image
    low: np.ndarray  # the smallest and largest share that is no alarm
    high: np.ndarray
    out: np.ndarray  # bool


def chart(hits: np.ndarray, sizes: np.ndarray, recent: np.ndarray, alarm: float) -> Chart:
    """A control chart of a share by day. hits, sizes: counts by day. recent: bool by day.

    At most the share `alarm` of charts without drift has any point outside its limits: the points divide it among them.
    Limits are those of a beta-binomial distribution, which has both the error of a centre that was estimated and as
    much variation between days as the days before show.
    """
    n, x = sizes[~recent].astype(float), hits[~recent].astype(float)
    total = n.sum()
    centre = (x.sum() + 0.5) / (total + 1)
    between = _between_days(x, n)
    of_centre = 1 / total + between * (n**2).sum() / total**2
    now_n, now_x = (np.append(counts[recent], counts[recent].sum()).astype(float) for counts in (sizes, hits))
    largest = np.append(np.ones(int(recent.sum())), (sizes[recent] ** 2.0).sum() / max(now_n[-1], 1) ** 2)
    weight = 1 / np.minimum(of_centre + between * largest, 0.99) - 1
    each = alarm / len(now_n)
    low, high = _limits(now_n, centre * weight, (1 - centre) * weight, each / 2)
    with np.errstate(invalid="ignore"):
        return Chart(float(centre), now_x / now_n, low / now_n, high / now_n, (now_x < low) | (now_x > high))


def _limits(n: np.ndarray, a: np.ndarray, b: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """The counts of beta-binomial distributions below and above which there is at most `tail`, each (n,)."""
    from scipy.special import betaln

    k = np.arange(n.max() + 1)[:, None]
    rest = np.maximum(n - k, 0)
    log = betaln(k + a, rest + b) - betaln(a, b) - betaln(rest + 1, k + 1) - np.log(n + 1)
    up_to = np.where(k <= n, np.exp(log), 0).cumsum(axis=0)
    return (up_to < tail).sum(axis=0), np.minimum((up_to < 1 - tail - 1e-12).sum(axis=0), n)


def _between_days(hits: np.ndarray, sizes: np.ndarray) -> float:
    """The correlation of images of one day, by analysis of variance, and one standard error more; 0 to 0.5."""
    used = sizes > 0
    x, n = hits[used], sizes[used]
    total, days = n.sum(), len(n)
    if days < 2 or total <= days:
        return 0.0
    between = (n * (x / n - x.sum() / total) ** 2).sum() / (days - 1)
    within = (x * (n - x) / n).sum() / (total - days)
    size = (total - (n**2).sum() / total) / (days - 1)
    spread = between + (size - 1) * within
    more = 1 + (2 / (days - 1)) ** 0.5
    return float(np.clip(more * (between - within) / spread, 0, 0.5)) if spread > 0 else 0.0
