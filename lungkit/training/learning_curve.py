"""How a figure grows with the number of patients to learn from, what that lets one project, and how many to test on.

The curve. Every fold learns from nested subsets of its patients (the smaller one is part of the larger one), drawn by
class; draws deal folds and subsets again. Every point is of all patients, each tested once.

The fit is an inverse power law, asymptote - scale · patients^-exponent, by weighted least squares; larger subsets weigh
more (Figueroa et al., BMC Medical Informatics and Decision Making 12:8, 2012). Its 95 % intervals come from resamples
of the draws and, at the same time, of the test patients. A law that was fitted to 20 to 90 patients does not know what
happens at 5,000: nothing is projected beyond FARTHEST times the most patients that there were, nor where the curve is
not shown to rise, nor above the asymptote.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats
from numpy.typing import ArrayLike

from lungkit.data import splits
from lungkit.data.dataset import Dataset
from lungkit.errors import LungkitError
from lungkit.progress import bar
from lungkit.training import evaluation, pipeline, stability
from lungkit.training.evaluation import LEVELS

FARTHEST = 5.0  # times the most patients that there were: beyond, nothing is projected
SHARES = (0.15, 0.22, 0.32, 0.46, 0.68, 1.0)  # of the patients of a fold's training: even steps of a logarithm
RESAMPLES = 400  # each takes a new fit; percentiles of 400 are known to about one in a hundred
REACHED, PROJECTED, FAR, BELOW, FLAT = "reached", "projected", "far", "below", "flat"
_QUANTILE = float(scipy.stats.norm.isf(0.025))  # of a 95 % interval
_MOST = 1e9  # patients to test on: there are not many more on earth
_EXPONENTS = np.geomspace(0.05, 3, 400)  # of which the best is taken; steps of 1 %


@dataclass(frozen=True, eq=False)
class Curve:
    """A figure by the number of patients to learn from."""

    metric: str
    sizes: np.ndarray  # (m,) patients of training and validation, mean of the folds, rising
    values: np.ndarray  # (m, draws)
    resampled: np.ndarray  # (RESAMPLES, m): mean of drawn draws, of drawn test patients

    @property
    def table(self) -> pd.DataFrame:
        """A row for each size: patients, value (mean of the draws), low, high, and least and most of the draws."""
        low, high = np.nanpercentile(self.resampled, LEVELS, axis=0)
        columns = {"patients": self.sizes, "value": self.values.mean(axis=1), "low": low, "high": high}
        return pd.DataFrame(columns | {"lowest": self.values.min(axis=1), "highest": self.values.max(axis=1)})

    @property
    def gained(self) -> tuple[float, float, float]:
        """What the most patients gain over the fewest, with a 95 % interval."""
        means, gap = self.values.mean(axis=1), self.resampled[:, -1] - self.resampled[:, 0]
        low, high = np.nanpercentile(gap, LEVELS)
        return float(means[-1] - means[0]), float(low), float(high)


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """asymptote - scale · (patients / most)^-exponent; each (k,)."""

    asymptote: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    most: float

    def at(self, patients: ArrayLike) -> np.ndarray:
        """Figures (k, p) at so many patients (p,)."""
        ratio = np.asarray(patients, float) / self.most
        return self.asymptote[:, None] - self.scale[:, None] * ratio ** -self.exponent[:, None]

    def patients_for(self, target: float) -> np.ndarray:
        """Patients (k,) at which the target is reached; infinite where the asymptote does not lie above it."""
        above = self.asymptote - target
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(above > 0, (self.scale / above) ** (1 / self.exponent), np.inf)
        return self.most * ratio


@dataclass(frozen=True)
class Projection:
    """How many patients to learn from a target would take, and whether the curve supports saying so."""

    target: float
    verdict: str  # one of the five words of this module
    patients: float  # infinite where the asymptote does not reach the target
    low: float
    high: float
    asymptote: tuple[float, float, float]
    most: float  # patients that the curve ends at


def measured(
    data: Dataset,
    learner: stability.Learner,
    *,
    number: int = 5,
    draws: int = 4,
    shares: Sequence[float] = SHARES,
    metric: str = "auc",
    by: str = "patient",
    seed: int = 7,
) -> Curve:
    """The curve of a way of training; shares: of the patients of training and validation alike, rising to 1."""
    if list(shares) != sorted(set(shares)) or not (shares[0] > 0 and shares[-1] == 1) or len(shares) < 4:
        raise LungkitError(f"shares are {list(shares)}; accepted: four or more, rising, above 0, and 1 the last")
    labels, patients = data.labels(), data.patients()
    scores = np.zeros((len(shares), draws, len(labels), len(data.classes)))
    decisions = np.zeros(scores.shape[:3], int)
    sizes = np.zeros((len(shares), number * draws))
    parts = stability.folds(data, number, draws, by, pipeline.derived(seed, 1))
    with bar(total=len(parts) * len(shares), label="learning curve", unit="training") as progress:
        for place, one in enumerate(parts):
            start = pipeline.derived(seed, one.repeat, one.fold)
            for row, share in enumerate(shares):
                fewer = replace(
                    one,
                    train=subset(one.train, labels, patients, share, start),
                    validation=subset(one.validation, labels, patients, share, start),
                )
                found = stability.decided(learner(fewer, start), labels[fewer.validation], data.classes)
                scores[row, one.repeat - 1, one.test], decisions[row, one.repeat - 1, one.test] = found
                sizes[row, place] = len(np.unique(patients[np.concatenate([fewer.train, fewer.validation])]))
                progress.update()
    of = [
        [
            stability.evaluated(labels, *each, patients, data, RESAMPLES, data.sources())
            for each in zip(*row, strict=True)
        ]
        for row in zip(scores, decisions, strict=True)
    ]
    values = np.array([[each.value(metric)[0] for each in row] for row in of])
    drawn = evaluation.resampled([each for row in of for each in row], metric).reshape(-1, len(shares), draws)
    chosen = np.random.default_rng(seed).integers(draws, size=(len(drawn), 1, draws))
    return Curve(metric, sizes.mean(axis=1), values, np.take_along_axis(drawn, chosen, axis=2).mean(axis=2))


def subset(images: np.ndarray, labels: np.ndarray, patients: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The images (places, in their order) of a share of the patients, drawn by class, of each at least one patient.

    With one seed, a smaller share's patients are among those of a larger one.
    """
    kept: set[str] = set()
    owners, first = np.unique(patients[images], return_index=True)
    for label in np.unique(labels[images]):
        of_class = owners[labels[images][first] == label]
        order = sorted(of_class.tolist(), key=lambda name: splits.chance(name, seed))
        kept |= set(order[: max(1, round(share * len(order)))])
    return images[np.isin(patients[images], list(kept))]


# --- the law


def fitted(sizes: ArrayLike, values: ArrayLike) -> PowerLaw:
    """The power law of each row of values (k, m) at sizes (m,), rising; m is 4 or more.

    The asymptote is at most 1 and the scale at least 0. For each exponent of a grid, the best asymptote and scale are
    known in closed form; the exponent with the smallest weighted sum of squares is taken.
    """
    n, y = np.asarray(sizes, float), np.atleast_2d(np.asarray(values, float))
    weights = np.arange(1, len(n) + 1) / len(n)
    weights /= weights.sum()
    x = (n / n[-1]) ** -_EXPONENTS[:, None]  # (exponents, m)
    x_mean, y_mean = x @ weights, y @ weights
    deviation = (x - x_mean[:, None]) * weights
    slope = -(deviation @ y.T) / (deviation * (x - x_mean[:, None])).sum(axis=1)[:, None]  # (exponents, k)
    scale = np.maximum(slope, 0)
    asymptote = y_mean + scale * x_mean[:, None]
    at_most = np.maximum((x * weights) @ (1 - y).T / (x * x * weights).sum(axis=1)[:, None], 0)
    scale, asymptote = np.where(asymptote > 1, at_most, scale), np.minimum(asymptote, 1)
    left = y[None] - (asymptote[..., None] - scale[..., None] * x[:, None, :])  # (exponents, k, m)
    best = (left**2 @ weights).argmin(axis=0), np.arange(len(y))
    return PowerLaw(asymptote[best], scale[best], _EXPONENTS[best[0]], float(n[-1]))


def projection(curve: Curve, target: float) -> Projection:
    """Whether a figure of `target` can be projected, and to how many patients.

    reached: the curve's last point is there already. flat: the gain from the fewest to the most patients is not shown
    to be above 0. below: the asymptote lies below the target. far: it would take more than FARTHEST times the patients
    that there were. Otherwise projected. Resamples without a figure, as those without a class, are left out.
    LungkitError for an undefined point or target, or fewer than four sizes: they say nothing of any target.
    """
    _projectable(curve, target)
    point = fitted(curve.sizes, curve.values.mean(axis=1))
    drawn = fitted(curve.sizes, curve.resampled[np.isfinite(curve.resampled).all(axis=1)])
    needed = float(point.patients_for(target)[0])
    low, high = np.quantile(drawn.patients_for(target), np.array(LEVELS) / 100, method="inverted_cdf")
    ends = np.percentile(drawn.asymptote, LEVELS)
    asymptote = float(point.asymptote[0]), float(ends[0]), float(ends[1])
    verdict = PROJECTED
    if curve.values[-1].mean() >= target:
        verdict = REACHED
    elif curve.gained[1] <= 0:
        verdict = FLAT
    elif not np.isfinite(needed):
        verdict = BELOW
    elif needed > FARTHEST * curve.sizes[-1]:
        verdict = FAR
    return Projection(target, verdict, needed, float(low), float(high), asymptote, float(curve.sizes[-1]))


def _projectable(curve: Curve, target: float) -> None:
    if not np.isfinite(target):
        raise LungkitError(f"the target is {target}; accepted: a number, as 0.9")
    if undefined := int((~np.isfinite(curve.values)).any(axis=1).sum()):
        raise LungkitError(
            f"the figure is undefined at {undefined} of the curve's {len(curve.sizes)} sizes, so nothing can be "
            "projected; take more patients of the rarest class"
        )
    if not np.isfinite(curve.resampled).all(axis=1).any():
        raise LungkitError("the figure is undefined in every resample of the patients; take more patients")
    if len(set(curve.sizes.tolist())) < 4 or not (curve.sizes > 0).all() or (np.diff(curve.sizes) < 0).any():
        sizes = ", ".join(f"{size:g}" for size in curve.sizes)
        raise LungkitError(f"the curve's sizes are {sizes} patients; accepted: four different ones or more, rising")


# --- patients to test on


def standard_error(auc: float, diseased: float, others: float) -> float:
    """The standard error of an AUC of so many independent diseased and other patients.

    Hanley and McNeil, Radiology 143 (1982), whose scores are exponential; scores of other shapes differ a little.
    LungkitError for an AUC outside 0 to 1, or no patients of a kind.

    >>> round(standard_error(0.893, 51, 58), 3)
    0.033
    """
    if not (0 <= auc <= 1 and 0 < diseased < np.inf and 0 < others < np.inf):
        raise LungkitError(
            f"an AUC of {auc:g} of {diseased:g} diseased and {others:g} other patients; accepted: an AUC from 0 to 1, "
            "and patients of both kinds"
        )
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (diseased - 1) * (q1 - auc**2) + (others - 1) * (q2 - auc**2)
    return float(np.sqrt(variance / (diseased * others)))


def patients_to_test(auc: float, half_width: float, diseased: float) -> int:
    """Patients to test for a 95 % interval of AUC ± half_width, a share of whom are diseased, one image each.

    auc: 0.5 to below 1. LungkitError for what no number of patients gives.
    """
    if not (0.5 <= auc < 1 and 0 < half_width < 0.5 and 0 < diseased < 1):
        raise LungkitError(
            f"an AUC of {auc:g} ± {half_width:g} with {diseased:g} diseased: accepted are an AUC from 0.5 to below 1, "
            "a width above 0 and below 0.5, and a share between 0 and 1"
        )

    def excess(patients: float) -> float:
        return _QUANTILE * standard_error(auc, diseased * patients, (1 - diseased) * patients) - half_width

    fewest = 1 / min(diseased, 1 - diseased)  # one of each
    if excess(fewest) <= 0:
        return int(np.ceil(fewest))
    if excess(_MOST) > 0:
        raise LungkitError(
            f"± {half_width:g} with {diseased:g} diseased takes more than {_MOST:,.0f} patients; accepted: a wider "
            "interval"
        )
    return int(np.ceil(scipy.optimize.brentq(excess, fewest, _MOST)))


def to_test(
    patients: int, interval: tuple[float, float, float], half_widths: Sequence[float], diseased: float | None = None
) -> pd.DataFrame:
    """How many patients to test for intervals of ± half_widths, a row for each.

    "by this interval": a width falls with the root of the number of patients, so it is scaled from the interval (value,
    low, high) that was measured on `patients`; it knows how many images they have, and of how many classes. "Hanley and
    McNeil", of two classes only, with a share diseased: patients_to_test. LungkitError where the interval has no width,
    or a half width is not between 0 and 0.5.
    """
    if wrong := [half for half in half_widths if not 0 < half < 0.5]:
        raise LungkitError(f"a half width is {wrong[0]:g}; accepted: above 0 and below 0.5")
    value, low, high = interval
    reach = (high - low) / 2
    if not reach > 0:
        raise LungkitError(f"an interval from {low:.3f} to {high:.3f} has no width to scale; measure on more patients")
    rows = [[int(np.ceil(patients * (reach / half) ** 2 - 1e-9))] for half in half_widths]
    columns = ["by this interval"]
    if diseased is not None and 0.5 <= value < 1:
        columns.append("Hanley and McNeil")
        for half, row in zip(half_widths, rows, strict=True):
            row.append(patients_to_test(value, half, diseased))
    index = pd.Index([f"± {half:.3f}" for half in half_widths], name="95 % interval")
    return pd.DataFrame(rows, index, columns)
