"""Whether a classifier is worth using: net benefit at each threshold, and what its answers mean at each prevalence.

Net benefit (Vickers and Elkin, Medical Decision Making 2006, doi:10.1177/0272989X06295361) counts in true positives for
each patient: NB(t) = TP/n - FP/n × t/(1 - t). The threshold t says how a false alarm weighs against a case that is
found: at 20 %, four false alarms are as bad as one missed case. A model is worth using where its net benefit is above
that of calling everybody and of calling nobody (which is 0). Standardised net benefit is NB divided by the prevalence:
1 is perfect (Kerr et al., Journal of Clinical Oncology 2016, doi:10.1200/JCO.2015.65.5654).

Predictive values follow from sensitivity, specificity and prevalence by Bayes' theorem (Altman and Bland, BMJ 1994,
doi:10.1136/bmj.309.6947.102). A study set is seldom as ill as the patients to come, and PPV and NPV of one do not hold
for the other; nor do probabilities. Where only the prevalence differs, their odds change by one factor (Saerens,
Latinne and Decaestecker, Neural Computation 2002, doi:10.1162/089976602753284446): `at_prevalence`.

Intervals are by patient, of the resamples of lungkit.training.evaluation, for each threshold or prevalence alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lungkit import wording
from lungkit.errors import LungkitError
from lungkit.models.card import Measured
from lungkit.training import evaluation
from lungkit.training.evaluation import Evaluation
from lungkit.training.subgroups import FEW

# From 1 %, where 99 false alarms are as bad as one missed case, to 50 %, where one is: nobody who looks for an
# infection minds a false alarm more than a missed case.
THRESHOLDS = tuple(np.round(np.arange(0.01, 0.505, 0.01), 2).tolist())
SCREENING = 0.02  # an example of a rare disease, as screening meets it
RAREST, COMMON = 0.001, 0.5  # prevalences that figures span; more than half are ill in study sets only


@dataclass(frozen=True, eq=False)
class DecisionCurve:
    """Net benefit at each threshold.

    positive: the class that is looked for. prevalence: its share of the patients that the curve is of. fixed: whether
    that share was given, and not taken from the images.
    table: threshold; net benefit of model (with low, high), all and none; gain, that of the model less the better of
        all and none (with gain_low, gain_high); standardised, that of the model divided by the prevalence.
    patients: with and without the class. With fewer than FEW of either there are intervals, but no verdict.
    """

    positive: str
    prevalence: float
    fixed: bool
    table: pd.DataFrame
    patients: tuple[int, int]

    def at(self, threshold: float) -> "pd.Series[float]":
        """The row of the threshold that is nearest."""
        return self.table.iloc[int((self.table["threshold"] - threshold).abs().argmin())]

    @property
    def few(self) -> bool:
        """Whether there are fewer than FEW patients with the class, or without it."""
        return min(self.patients) < FEW

    @property
    def useful(self) -> list[tuple[float, float]]:
        """From and to which thresholds the whole interval of the gain is above 0; none with few patients."""
        return [] if self.few else _runs(self.table["threshold"].to_numpy(), (self.table["gain_low"] > 0).to_numpy())

    @property
    def harmful(self) -> list[tuple[float, float]]:
        """From and to which thresholds the whole interval of the gain is below 0: a default is better; as `useful`."""
        return [] if self.few else _runs(self.table["threshold"].to_numpy(), (self.table["gain_high"] < 0).to_numpy())

    def summary(self, thresholds: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)) -> pd.DataFrame:
        """For people: a row a threshold, with how many false alarms are as bad there as one missed case."""
        rows = {}
        for row in (self.at(threshold) for threshold in thresholds):
            rows[f"{row['threshold']:.0%}"] = {
                "false alarms for a case": f"{(1 - row['threshold']) / row['threshold']:.3g}",
                "net benefit": wording.figure(row["model"], row["low"], row["high"]),
                "of calling all": wording.figure(row["all"]),
                "gain over the better default": wording.figure(row["gain"], row["gain_low"], row["gain_high"], True),
                "standardised": wording.figure(row["standardised"]),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("threshold")


def _runs(thresholds: np.ndarray, holds: np.ndarray) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.r_[False, holds, False].astype(int)))
    return [(float(thresholds[first]), float(thresholds[last - 1])) for first, last in edges.reshape(-1, 2)]


# --- net benefit


def decision_curve(
    measured: Evaluation,
    positive: str = "",
    thresholds: Sequence[float] = THRESHOLDS,
    prevalence: float | None = None,
    calibrated_for: float | None = None,
) -> DecisionCurve:
    """Net benefit of calling whom the model gives at least the threshold, of calling all, and of calling none.

    positive: the class of interest; default: the last. thresholds: between 0 and 1, both excluded.
    prevalence: of patients to come; default: that of these images. Where it is given, positives and negatives are
        weighted to it, and probabilities are set to it by `at_prevalence` from `calibrated_for`, the share of positives
        among the images that they were calibrated on (default: that of these images).
    Intervals where no resample has an error of a kind are as `predictive_values` says.
    LungkitError where a class is missing or a threshold or prevalence is not between 0 and 1.
    """
    is_positive, scores, positive = _of_interest(measured, positive)
    _within(thresholds, "threshold")
    if prevalence is not None:
        _within([prevalence], "prevalence")
        before = float(is_positive.mean()) if calibrated_for is None else calibrated_for
        scores = at_prevalence(scores, before, prevalence)
    curve = _Curve(is_positive, scores, np.asarray(thresholds, float), prevalence)
    rates, _, _, resampled = measured.bootstrapped(curve)
    patients = _patients(measured, is_positive)
    value = curve.benefit(rates[None])[0]
    low, high = _percentiles(curve.benefit(_with_errors(rates, resampled, patients, measured.seed)))
    low, high = np.minimum(low, value), np.maximum(high, value)
    size = len(thresholds)
    share = float(is_positive.mean()) if prevalence is None else prevalence
    table = pd.DataFrame(
        {
            "threshold": thresholds,
            "model": value[:size],
            "low": low[:size],
            "high": high[:size],
            "all": value[size : 2 * size],
            "none": 0.0,
            "gain": value[2 * size :],
            "gain_low": low[2 * size :],
            "gain_high": high[2 * size :],
            "standardised": value[:size] / share,
        }
    )
    return DecisionCurve(positive, share, prevalence is not None, table, patients)


def calibrated_for(chosen_on: Measured | None, positive: str) -> float | None:
    """The share of a class among the images that probabilities were calibrated on; None where the card has no counts.

    chosen_on: the version's figures on its validation images.
    """
    support = chosen_on.support if chosen_on else {}
    share = support.get(positive, 0) / sum(support.values()) if support else 0.0
    return share if 0 < share < 1 else None


def at_prevalence(probabilities: ArrayLike, calibrated_for: float, prevalence: float) -> np.ndarray:
    """Probabilities of a class, calibrated where its share is one, as they are where its share is another: (n,).

    The odds are multiplied by the ratio of the two shares' odds. It holds where the ill look alike in both places, and
    the healthy do.

    >>> at_prevalence([0.5, 0.9], 0.5, 0.1).round(3).tolist()
    [0.1, 0.5]
    """
    _within([calibrated_for], "share that probabilities were calibrated for")
    _within([prevalence], "prevalence")
    p = np.asarray(probabilities, float)
    if len(outside := p[~((p >= 0) & (p <= 1))]):
        raise LungkitError(f"a probability is {outside[0]:g}; accepted: from 0 to 1")
    ratio = prevalence * (1 - calibrated_for) / (calibrated_for * (1 - prevalence))
    return p * ratio / (p * ratio + (1 - p))


@dataclass(frozen=True, eq=False)
class _Curve:
    """Call with weights (r, n), get (r, 2 × thresholds + 1): sensitivities, specificities, and the prevalence."""

    positive: np.ndarray  # bool (n,)
    scores: np.ndarray  # (n,)
    thresholds: np.ndarray  # (t,)
    prevalence: float | None

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        called = self.scores[:, None] >= self.thresholds
        sick, well = weights @ self.positive, weights @ ~self.positive
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (weights[:, self.positive] @ called[self.positive]) / sick[:, None]
            passed = (weights[:, ~self.positive] @ ~called[~self.positive]) / well[:, None]
        share = sick / (sick + well) if self.prevalence is None else np.full(len(weights), self.prevalence)
        if self.prevalence is None:  # with no weight on a class, its share is 0, and its term has to be
            found, passed = np.nan_to_num(found), np.nan_to_num(passed)
        return np.hstack([found, passed, share[:, None]])

    def benefit(self, rates: np.ndarray) -> np.ndarray:
        """Net benefit of the model, of calling all, and the gain (r, 3 × thresholds); rates: as called."""
        found, passed, share = np.split(rates, [len(self.thresholds), 2 * len(self.thresholds)], axis=1)
        odds = self.thresholds / (1 - self.thresholds)
        model = share * found - (1 - share) * (1 - passed) * odds
        everybody = share - (1 - share) * odds
        return np.hstack([model, everybody, model - np.maximum(everybody, 0)])


# --- predictive values


def predictive_values(
    measured: Evaluation,
    positive: str = "",
    prevalences: Sequence[float] = (),
    threshold: float | None = None,
) -> pd.DataFrame:
    """PPV and NPV by prevalence: prevalence, ppv, ppv_low, ppv_high, npv, npv_low, npv_high; NaN where undefined.

    PPV: how many of those called are ill; NPV: how many of the others are not.
    prevalences: default: from RAREST to COMMON, or to that of these images if it is higher, evenly spaced on a
        logarithmic axis, and SCREENING.
    threshold: on the probability of the class; default: the version's own decision.

    Where no resample has an error of a kind, as with all ill found, that rate is drawn for each resample from Beta(n,
    1), n being the class's patients: its 2.5th percentile is the exact lower limit of n who are all right.
    """
    is_positive, scores, positive = _of_interest(measured, positive)
    called = measured.predicted == measured.classes.index(positive) if threshold is None else scores >= threshold
    axis = np.geomspace(RAREST, max(COMMON, float(is_positive.mean())), 61)
    prevalences = list(prevalences) or np.union1d(axis, [SCREENING]).tolist()
    _within(prevalences, "prevalence")
    rates = _Rates(is_positive, called)
    value, _, _, resampled = measured.bootstrapped(rates)
    drawn = _with_errors(value, resampled, _patients(measured, is_positive), measured.seed)
    table = {"prevalence": np.asarray(prevalences, float)}
    for place, name in enumerate(("ppv", "npv")):
        exact = _bayes(value[None], prevalences)[place][0]
        low, high = _percentiles(_bayes(drawn, prevalences)[place])
        table |= {name: exact, f"{name}_low": np.fmin(low, exact), f"{name}_high": np.fmax(high, exact)}
        for end in ("low", "high"):
            table[f"{name}_{end}"] = np.where(np.isnan(exact) | np.isnan(low), np.nan, table[f"{name}_{end}"])
    return pd.DataFrame(table)


@dataclass(frozen=True, eq=False)
class _Rates:
    """Call with weights (r, n), get sensitivity and specificity (r, 2)."""

    positive: np.ndarray
    called: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity = weights @ (self.positive & self.called) / (weights @ self.positive)
            specificity = weights @ (~self.positive & ~self.called) / (weights @ ~self.positive)
        return np.column_stack([sensitivity, specificity])


def _with_errors(value: np.ndarray, resampled: np.ndarray, patients: Sequence[int], seed: int) -> np.ndarray:
    """The resamples (r, k), where a rate is 0 or 1 in all of them drawn as `predictive_values` says.

    The first half of the columns are sensitivities, the second specificities; an odd last one is left as it is.
    """
    rng, drawn, each = np.random.default_rng(seed), resampled.copy(), len(value) // 2
    for place, n in enumerate(patients):
        right = rng.beta(n, 1, (len(drawn), 1))
        own = slice(place * each, (place + 1) * each)
        drawn[:, own] = np.where(value[own] == 1, right, np.where(value[own] == 0, 1 - right, drawn[:, own]))
    return drawn


def _patients(measured: Evaluation, is_positive: np.ndarray) -> tuple[int, int]:
    """How many patients have an image of the class, and of another one."""
    return len(np.unique(measured.patients[is_positive])), len(np.unique(measured.patients[~is_positive]))


def _bayes(rates: np.ndarray, prevalences: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """PPV and NPV (r, prevalences) of sensitivities and specificities (r, 2)."""
    sensitivity, specificity = rates[:, :1], rates[:, 1:]
    share = np.asarray(prevalences, float)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        ppv = share * sensitivity / (share * sensitivity + (1 - share) * (1 - specificity))
        npv = (1 - share) * specificity / ((1 - share) * specificity + share * (1 - sensitivity))
    return ppv, npv


def _percentiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of each column (r, k); NaN without a defined value."""
    bounds = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    if known.any():
        bounds[:, known] = np.nanpercentile(values[:, known], evaluation.LEVELS, axis=0)
    return bounds[0], bounds[1]


def predictive_table(values: pd.DataFrame) -> pd.DataFrame:
    """For people: a row a prevalence, with PPV, NPV, and of how many alarms one is right."""
    rows = {}
    for row in values.to_dict("records"):
        right = "–" if np.isnan(row["ppv"]) or row["ppv"] == 0 else f"1 of {1 / row['ppv']:.3g}"
        rows[_share(row["prevalence"])] = {
            "PPV": wording.figure(row["ppv"], row["ppv_low"], row["ppv_high"]),
            "NPV": wording.figure(row["npv"], row["npv_low"], row["npv_high"]),
            "alarms that are right": right,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("prevalence")


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"


# --- input


def _of_interest(measured: Evaluation, positive: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Which images are positive (bool, n), the class's probabilities (n,), and its name."""
    positive = positive or measured.classes[-1]
    if positive not in measured.classes:
        raise LungkitError(f"no class '{positive}'; there are: {', '.join(measured.classes)}")
    index = measured.classes.index(positive)
    is_positive = measured.true == index
    if is_positive.all() or not is_positive.any():
        which = "every" if is_positive.all() else "no"
        raise LungkitError(f"{which} image is of {positive}: its usefulness needs images with and without it")
    return is_positive, measured.probabilities[:, index], positive


def _within(values: Sequence[float], what: str) -> None:
    if not len(values):
        raise LungkitError(f"no {what} is given; accepted: one or more, above 0 and below 1")
    if outside := [value for value in values if not 0 < value < 1]:
        raise LungkitError(f"a {what} is {outside[0]}; accepted: above 0 and below 1")


# --- words


def says(curve: DecisionCurve, values: pd.DataFrame) -> list[str]:
    """Where the model is worth using, and what an alarm means at this prevalence and in screening.

    curve: at the images' own prevalence. values: predictive_values at that prevalence and at SCREENING, in this order.
    """
    (_, own), (_, rare) = values.iterrows()
    if np.isnan(own["ppv"]):
        none = f"The model gives no alarm for {curve.positive} here: what its alarms mean is not known."
        return [useful_says(curve), none]
    alarms = (
        f"Of the alarms for {curve.positive}, {_ppv(own)} are right among these images, of which "
        f"{wording.percent(own['prevalence'])} show it, and {_ppv(rare)} where {_share(rare['prevalence'])} do. It is "
        "the same model at the same operating point. These intervals hold the prevalence fixed; that of precision in "
        "notebook 04 does not."
    )
    return [useful_says(curve), alarms]


def useful_says(curve: DecisionCurve) -> str:
    """At which thresholds the model is better than calling all and calling none, as its intervals show."""
    if curve.few:
        return (
            f"There are too few patients to say whether the model is worth using: {curve.patients[0]} with "
            f"{curve.positive} and {curve.patients[1]} without; {FEW} of each are needed."
        )
    first, last = curve.table["threshold"].iloc[[0, -1]]
    if curve.useful:
        text = f"using the model is better than calling all and than calling none at {_spans(curve.useful)}"
    else:
        text = (
            f"at no threshold from {first:.0%} to {last:.0%} is the model shown to be better than calling all and none"
        )
    harm = f"; it is **worse** than the better of these two at {_spans(curve.harmful)}" if curve.harmful else ""
    ill = f"Where {100 * curve.prevalence:.2g}% have {curve.positive}"
    return f"{ill}, {text}{harm}.".replace("%", " %")


def more_right_says(measured: Evaluation, positive: str, thresholds: Sequence[float], prevalence: float) -> str:
    """From which of the thresholds on more alarms are right than wrong at a prevalence, and why if from none.

    An alarm is more likely right than wrong where sensitivity × prevalence is above the share of false alarms × (1 -
    prevalence).
    """
    is_positive, scores, _ = _of_interest(measured, positive)
    found, alarmed = ([float((scores[of] >= at).mean()) for at in thresholds] for of in (is_positive, ~is_positive))
    healthy = (1 - prevalence) / prevalence
    right = [place for place in range(len(thresholds)) if found[place] > healthy * alarmed[place]]
    at = f"At a prevalence of {_share(prevalence)}"
    why = f"{healthy:.3g} others come to one who is ill"
    if right:
        first = right[0]
        return (
            f"{at}, more alarms are right than wrong from a threshold of {thresholds[first]:g} on, where sensitivity "
            f"is {found[first]:.3f}: {why}, and {_share(alarmed[first])} of them are called."
        )
    none = f"{at}, no alarm at these {len(thresholds)} thresholds is more likely right than wrong"
    last = max((place for place in range(len(thresholds)) if found[place]), default=None)
    if last is None:
        return f"{none}: none of them calls anyone who is ill."
    return (
        f"{none}: {why}, and even at {thresholds[last]:g} the model calls {_share(alarmed[last])} of them. To be right "
        f"more often than wrong there, it could call at most {_share(found[last] / healthy)} of them, at its "
        f"sensitivity of {found[last]:.3f}."
    )


def _spans(runs: list[tuple[float, float]]) -> str:
    spans = wording.listed([f"{a:.0%} to {b:.0%}" if a != b else f"{a:.0%}" for a, b in runs], "and")
    return f"{'a threshold' if len(runs) == 1 and runs[0][0] == runs[0][1] else 'thresholds'} of {spans}"


def _ppv(row: "pd.Series[float]") -> str:
    return percents(row["ppv"], row["ppv_low"], row["ppv_high"])


def percents(value: float, low: float, high: float) -> str:
    """A share with its interval, with a decimal where it is rare: "1.6 % (1.2–2.3 %)", "24 % (11–42 %)"."""
    form = ".1f" if value < 0.1 else ".0f"
    if np.isnan(low):
        return f"{100 * value:{form}} %"
    return f"{100 * value:{form}} % ({100 * low:{form}}–{100 * high:{form}} %)"
