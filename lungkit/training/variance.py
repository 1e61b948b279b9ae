"""Where a figure's scatter comes from, and how certain a mean over folds is: statistics of repeated cross-validation.

Components. A figure of repeat r, fold k and training start s is modelled as mean + repeat_r + fold_k(r) + start_s(kr).
Folds are dealt again in each repeat, and starts in each fold, so the effects are nested. The components are those of an
analysis of variance (method of moments: Searle, Casella and McCulloch, "Variance Components", 1992, chapter 3). They
have no bias, but can be negative; a negative one is reported as 0, and the estimate is kept next to it. Their 95 %
intervals are those of modified large samples (Ting et al., J. Statistical Computation and Simulation 35, 1990), exact
for the lowest level. The model takes the effects to be independent. The folds of one repeat share the patients that are
easy and hard: where one fold has more of the easy ones, the others have fewer. So a repeat's mean varies less than that
of independent folds would, and its component often comes out negative.

Means. The folds' figures are no independent sample, so the usual t interval of their mean is too short. That of Nadeau
and Bengio (Machine Learning 52, 2003) takes the correlation of two folds' figures to be the test part's share of all
patients, and so widens the variance of the mean of J figures from s² / J to (1 / J + test / training) s². It is a rule
of thumb for "the same way of training, on as many other patients"; there is no estimate without bias (Bengio and
Grandvalet, JMLR 5, 2004).
"""

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from lungkit.errors import LungkitError

START, FOLD, REPEAT = "training start", "fold", "repeat"
_TAIL = 0.025  # of a 95 % interval, on each side


def components(figures: ArrayLike) -> pd.DataFrame:
    """Variance components of figures (repeats, folds, starts), a row for each level that has two or more.

    Columns: variance (0 where the estimate is negative), low, high, estimate, deviation (the root of the variance) and
    share of the sum of the variances. LungkitError without two folds, or where a figure is undefined.
    """
    y = np.asarray(figures, float)
    if y.ndim != 3 or y.shape[1] < 2 or not y.size or not np.isfinite(y).all():
        raise LungkitError(
            f"figures have shape {y.shape} and {int((~np.isfinite(y)).sum())} undefined values; accepted: (repeats, "
            "folds, starts) with a repeat, two folds and a start or more, every figure defined. Take fewer folds where "
            "a class is rare"
        )
    levels = _mean_squares(y)
    rows = {}
    for place, (name, (square, freedom, size)) in enumerate(levels.items()):
        below = list(levels.values())[place - 1][:2] if place else (0.0, 0.0)
        rows[name] = _component((square, freedom), below, size)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "low", "high"])
    table.insert(0, "variance", table["estimate"].clip(lower=0))
    total = table["variance"].sum()
    return table.assign(deviation=np.sqrt(table["variance"]), share=table["variance"] / total if total else 0.0)


def _mean_squares(y: np.ndarray) -> dict[str, tuple[float, float, int]]:
    """Of each level, the lowest first: mean square, degrees of freedom, and figures below one of its units."""
    repeats, folds, starts = y.shape
    by_fold, by_repeat = y.mean(axis=2), y.mean(axis=(1, 2))
    sums = {
        START: (((y - by_fold[..., None]) ** 2).sum(), repeats * folds * (starts - 1), 1),
        FOLD: (starts * ((by_fold - by_repeat[:, None]) ** 2).sum(), repeats * (folds - 1), starts),
        REPEAT: (folds * starts * ((by_repeat - y.mean()) ** 2).sum(), repeats - 1, folds * starts),
    }
    return {name: (float(total / free), free, size) for name, (total, free, size) in sums.items() if free}


def _component(upper: tuple[float, float], lower: tuple[float, float], size: int) -> tuple[float, float, float]:
    """(upper - lower) / size of two mean squares, each with its degrees of freedom, and its interval."""
    (a, n), (b, m) = upper, lower
    estimate = (a - b) / size
    f = scipy.stats.f.isf
    g1, h1 = 1 - 1 / _f_large(_TAIL, n), 1 / _f_large(1 - _TAIL, n) - 1
    if not m:  # the lowest level: the exact interval of a variance
        return estimate, a * (1 - g1) / size, a * (1 + h1) / size
    g2, h2 = 1 - 1 / _f_large(_TAIL, m), 1 / _f_large(1 - _TAIL, m) - 1
    above, below = f(_TAIL, n, m), f(1 - _TAIL, n, m)
    g12 = ((above - 1) ** 2 - g1**2 * above**2 - h2**2) / above
    h12 = ((1 - below) ** 2 - h1**2 * below**2 - g2**2) / below
    down = (g1 * a) ** 2 + (h2 * b) ** 2 + g12 * a * b
    up = (h1 * a) ** 2 + (g2 * b) ** 2 + h12 * a * b
    low, high = (a - b - np.sqrt(max(down, 0.0))) / size, (a - b + np.sqrt(max(up, 0.0))) / size
    return estimate, max(float(low), 0.0), max(float(high), 0.0)


def _f_large(tail: float, freedom: float) -> float:
    """The upper quantile of F with infinitely many degrees of freedom below."""
    return float(scipy.stats.chi2.isf(tail, freedom) / freedom)


def widening(count: int, test: float, training: float) -> float:
    """How many times longer the corrected interval of the mean of so many figures is than the naive one."""
    return float(np.sqrt(1 + count * test / training))


def mean_of_folds(
    figures: ArrayLike, test: float, training: float, limits: tuple[float, float] = (0.0, 1.0)
) -> dict[str, tuple[float, float, float]]:
    """The mean of figures (repeats, folds) with two 95 % intervals: "naive", and "corrected" by Nadeau and Bengio.

    test, training: patients in the test part and in the training part of a fold; their ratio is the correction.
    limits: the least and the most that such a figure can be, as 0 and 1 for an AUC or a share; intervals end there.
    LungkitError for fewer than two figures, for one that is undefined or outside the limits, and without patients.
    """
    y, (least, most) = np.asarray(figures, float).ravel(), limits
    if outside := y[~((y >= least) & (y <= most))].tolist():
        raise LungkitError(
            f"a fold's figure is {outside[0]:g}; accepted: from {least:g} to {most:g}. Take fewer folds where a class "
            "is rare, and state the limits of other figures"
        )
    if len(y) < 2 or not (0 < test < np.inf and 0 < training < np.inf):
        raise LungkitError(
            f"{len(y)} figures, of {test:g} test and {training:g} training patients; accepted: 2 or more, of patients"
        )
    t = scipy.stats.t.isf(_TAIL, len(y) - 1)
    mean, variance = float(y.mean()), float(y.var(ddof=1))
    naive = float(t * np.sqrt(variance / len(y)))
    half = {"naive": naive, "corrected": naive * widening(len(y), test, training)}
    return {name: (mean, max(mean - width, least), min(mean + width, most)) for name, width in half.items()}
