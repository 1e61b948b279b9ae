"""Probabilities that mean what they say, and the band in which a person should look: both chosen on validation images.

Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike

from lungkit import wording
from lungkit.errors import LungkitError
from lungkit.models import grades as of_grades
from lungkit.models.card import ConformalFigures, Figure
from lungkit.models.grades import Grades
from lungkit.models.rule import ConformalLevel, DecisionRule, UncertaintyBand, log_odds
from lungkit.training.evaluation import mean_with_interval, operating_point

TEMPERATURES = (0.05, 20.0)  # searched within
_LOG_TEMPERATURES = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
ERRORS_HELD = 0.75  # of the validation errors are to lie within the band …
REVIEWED = (0.02, 0.20)  # … which holds at least and at most this share of all validation images
UNDER_CHANGE = "validation under change"  # what a rule was chosen on: images as they are, and changed
LEVEL = 0.9  # of the conformal sets: how often the true class is to be among those named


def decision_rule(
    y_true: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    grades: Grades | None = None,
    changed: np.ndarray | None = None,
) -> DecisionRule:
    """Temperature, operating point, band of uncertainty and conformal level, all chosen on these validation images.

    y_true: (n,) class indices. logits: (n, classes). grades: where the classes are grades; their range is what shows
    how uncertain an answer is, so there is no band.
    changed: (copies, n, classes), of the same images as other devices could have taken them. Operating point and band
    are then those of the images as they are and changed: a model is surest of what it was chosen on. Temperature and
    conformal level stay those of the images as they are, for which they promise something.
    """
    y_true = np.asarray(y_true)
    copies = np.stack([logits, *(() if changed is None else changed)])
    labels, every = np.tile(y_true, len(copies)), copies.reshape(-1, logits.shape[1])
    calibrated = DecisionRule(kind="argmax", temperature=temperature(y_true, logits))
    probabilities, as_they_are = calibrated.calibrate(every), calibrated.calibrate(logits)
    rule = operating_point(labels, probabilities, classes, grades)
    rule = replace(rule, temperature=calibrated.temperature, n=len(y_true))
    if changed is not None:
        rule = replace(rule, chosen_on=UNDER_CHANGE)
    if grades:
        return replace(rule, conformal=range_level(y_true, as_they_are))
    band = replace(uncertainty_band(labels, probabilities, rule, as_they_are), chosen_on=rule.chosen_on)
    return replace(rule, band=band, conformal=conformal_level(y_true, as_they_are))


def temperature(y_true: np.ndarray, logits: np.ndarray) -> float:
    """What logits are divided by, before the softmax, for the lowest negative log-likelihood of validation images.

    y_true: (n,) class indices. logits: (n, classes).
    The true class counts (n + 1) / (n + classes) instead of 1, the others share the rest, as in Platt, "Probabilistic
    outputs for support vector machines" (1999): without that, a model that makes no error on few images would be taken
    to be infinitely sure.
    """
    logits = np.asarray(logits, np.float64)
    n, classes = logits.shape
    if n == 0 or len(y_true) != n:
        raise LungkitError(f"{len(y_true)} labels for logits of {n} images; the temperature needs one for each")
    targets = np.full((n, classes), 1 / (n + classes))
    targets[np.arange(n), y_true] = (n + 1) / (n + classes)

    def loss(log_temperature: float) -> float:
        return -float(np.sum(targets * scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)) / n)

    best = scipy.optimize.minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(best.x))


def uncertainty_band(
    y_true: np.ndarray, probabilities: np.ndarray, rule: DecisionRule, as_they_are: np.ndarray | None = None
) -> UncertaintyBand:
    """The band around the operating point within which a reading says "uncertain: review".

    Its margin is the smallest that holds ERRORS_HELD of the validation errors, and at least and at most the shares
    REVIEWED of all validation images. as_they_are: the probabilities of these where the others are of changed images,
    too.
    """
    y_true, margins = np.asarray(y_true), rule.margin(probabilities)
    wrong = rule.decide(probabilities) != y_true
    wanted = np.quantile(margins[wrong], ERRORS_HELD, method="higher") if wrong.any() else 0.0
    seen = probabilities if as_they_are is None else as_they_are
    ordered = np.sort(rule.margin(seen))
    least, most = np.ceil(REVIEWED[0] * len(ordered)), np.floor(REVIEWED[1] * len(ordered))
    width = float(np.clip(wanted, ordered[int(least) - 1], ordered[max(0, int(most) - 1)]))
    banded = replace(rule, band=UncertaintyBand(margin=width))
    within = banded.uncertain(probabilities)
    low, high, times = None, None, None
    if rule.threshold is None:
        times = math.exp(width)
    else:
        centre = log_odds(np.clip(rule.threshold, 1e-6, 1 - 1e-6))
        low, high = (float(scipy.special.expit(centre + reach)) for reach in (-width, width))
    return UncertaintyBand(
        margin=width,
        low=low,
        high=high,
        times=times,
        errors_held=float(within[wrong].mean()) if wrong.any() else None,
        reviewed=float(banded.uncertain(seen).mean()),
        chosen_on="validation",
        criterion=f"holds {ERRORS_HELD:.0%} of the errors, but {REVIEWED[0]:.0%} to {REVIEWED[1]:.0%} of the images",
    )


def conformal_level(y_true: np.ndarray, probabilities: np.ndarray, level: float = LEVEL) -> ConformalLevel:
    """How likely a class must be to be among those that a prediction set names.

    Split-conformal sets with the least ambiguous score, 1 - probability of the true class (Sadinle, Lei and Wasserman,
    "Least ambiguous set-valued classifiers with bounded error levels", JASA 2019). They hold the true class of a new
    image with a probability of `level` or more where it is exchangeable with the validation images: for patients like
    these, not for another hospital's.
    """
    y_true, n = np.asarray(y_true), len(y_true)
    scores = np.sort(1 - np.asarray(probabilities)[np.arange(n), y_true])
    rank = int(np.ceil((n + 1) * level))
    least = 1 - float(scores[rank - 1]) if rank <= n else 0.0  # too few images: every class is named
    return ConformalLevel(level=level, least=least, chosen_on="validation", n=n)


def range_level(y_true: np.ndarray, probabilities: np.ndarray, level: float = LEVEL) -> ConformalLevel:
    """What the probabilities of a range of grades must sum to, for it to hold the true grade as often as `level`.

    Split-conformal, with what a range sums to before it takes in the true grade (grades.sums_before). It promises what
    conformal_level does.
    """
    y_true, n = np.asarray(y_true), len(y_true)
    before = of_grades.sums_before(np.asarray(probabilities), of_grades.middle(probabilities))
    scores, rank = np.sort(before[np.arange(n), y_true]), int(np.ceil((n + 1) * level))
    least = float(np.nextafter(scores[rank - 1], 2)) if rank <= n else 1.0  # too few images: every grade is named
    return ConformalLevel(level=level, least=min(least, 1.0), chosen_on="validation", n=n)


def conformal_figures(
    rule: DecisionRule,
    y_true: np.ndarray,
    probabilities: np.ndarray,
    patients: ArrayLike,
    sources: ArrayLike | None = None,
) -> ConformalFigures:
    """How often the rule's prediction sets hold the true class of these images, and how many classes they name.

    y_true: (n,) class indices. probabilities: (n, classes). patients: (n,). sources: as in evaluation.evaluate.
    """
    level = rule.conformal.level if rule.conformal else 0.0
    return sets_figures(rule.prediction_set(probabilities), y_true, patients, level, sources)


def sets_figures(
    named: np.ndarray, y_true: np.ndarray, patients: ArrayLike, level: float, sources: ArrayLike | None = None
) -> ConformalFigures:
    """As conformal_figures, of the sets themselves: named, bool (n, classes)."""
    right = named[np.arange(len(y_true)), y_true]
    coverage, low, high = mean_with_interval(right, patients, share=True, sources=sources)
    return ConformalFigures(
        level=level,
        coverage=coverage,
        interval=(None, None) if np.isnan(low) else (low, high),
        classes_named=float(named.sum(axis=1).mean()),
    )


def conformal_by_class(
    y_true: np.ndarray, probabilities: np.ndarray, patients: Sequence[str], classes: Sequence[str], rule: DecisionRule
) -> dict[str, ConformalFigures]:
    """`conformal_figures` of the images of each true class that has any; the level is not promised for each class.

    Empty where the rule has no level.
    """
    if not rule.conformal:
        return {}
    of_patients = np.asarray(patients)
    groups = {name: y_true == i for i, name in enumerate(classes)}
    return {
        name: conformal_figures(rule, y_true[group], probabilities[group], of_patients[group])
        for name, group in groups.items()
        if group.any()
    }


def conformal_table(
    y_true: np.ndarray, probabilities: np.ndarray, patients: Sequence[str], classes: Sequence[str], rule: DecisionRule
) -> pd.DataFrame:
    """`conformal_figures` over all images and by true class, for people; the level is not promised for each class.

    Columns: images; "true class named", the share of images whose set holds it; "classes named", their mean number;
    both with the 95 % bootstrap interval by patient.
    """
    of_patients, count = np.asarray(patients), rule.prediction_set(probabilities).sum(axis=1)
    rows = {}
    for name, group in {"all": y_true >= 0, **{name: y_true == i for i, name in enumerate(classes)}}.items():
        if not group.any():
            rows[name] = (0, "–", "–")
            continue
        sets = conformal_figures(rule, y_true[group], probabilities[group], of_patients[group])
        mean = mean_with_interval(count[group], of_patients[group], bounds=(1, len(classes)))
        rows[name] = (int(group.sum()), str(Figure(sets.coverage, sets.interval)), wording.figure(*mean))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["images", "true class named", "classes named"])
