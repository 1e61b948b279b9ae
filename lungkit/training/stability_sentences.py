"""What repeated cross-validation, a nested search and a learning curve say, as lungkit.training.sentences says it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lungkit.training import learning_curve, variance
from lungkit.training.learning_curve import Projection
from lungkit.training.stability import Nested, Stability
from lungkit.wording import count, figure

_WHAT = {
    variance.START: "From one start of the training to another",
    variance.FOLD: "From one fold to another",
    variance.REPEAT: "From one repeat to another",
}


def pooled_says(found: Stability) -> list[str]:
    """The figure over all patients, and how often that of a single training lies outside its interval."""
    value, low, high = found.value()
    each = found.figures().ravel()  # a study of one split has one training, and no mean of several starts
    outside = int(((each < low) | (each > high)).sum())
    times = found.repeats * found.starts
    return [
        f"Over all {count(found.patients, 'patient')}, each tested {count(times, 'time')}, the AUC is "
        f"{figure(value, low, high)}.",
        f"A study of one split and one training would have reported one of {len(each)} figures from {each.min():.3f} "
        f"to {each.max():.3f}; {outside} of them lie outside that interval.",
    ]


def variances_say(found: Stability) -> list[str]:
    """What each level moves the AUC by; that an estimate was negative; and what the test patients of a fold explain."""
    table = found.variances
    told = []
    for name in table.index[::-1]:
        of = table.loc[name]
        low, high = np.sqrt(of[["low", "high"]].to_numpy(float))
        text = f"{_WHAT[name]}, the AUC moves by ±{of['deviation']:.3f} ({low:.3f}–{high:.3f})"
        if of["estimate"] < 0:
            text += f": the estimate of the variance is below 0 (−{-of['estimate']:.1e}), and is reported as 0"
        told.append(f"{text}.")
    alone, fold = found.of_test_patients, float(table["deviation"][variance.FOLD])
    if np.isnan(alone):
        return told
    how = f"of the ±{fold:.3f} by which folds differ: which patients train adds the rest."
    if alone >= fold:
        how = "as much as folds differ or more: what the training patients add cannot be told from them."
    return [*told, f"A fold tests few patients. They alone would move its AUC by ±{alone:.3f}, {how}"]


def intervals_say(found: Stability) -> str:
    """How much too short the naive interval of the mean is by Nadeau and Bengio's correction."""
    naive, corrected = (found.mean_of_folds()[name] for name in ("naive", "corrected"))
    if naive[2] <= naive[1]:
        return "All folds give the same AUC: their scatter says nothing of how certain it is."
    return (
        f"The mean of the folds is {figure(*corrected)}. An interval that takes the {found.folds * found.repeats} "
        f"figures to be independent would be {figure(*naive)}, {found.widening:.1f} times too short."
    )


def searches_say(found: Mapping[str, Nested]) -> list[str]:
    """What a search on the test patients seems to gain; shown where the interval of the difference lies above 0."""
    told = []
    for name, one in found.items():
        seems, honest, gap = one.table.to_numpy(float).tolist()
        shown = "flatters by" if gap[1] > 0 else "is not shown to flatter:"
        told.append(
            f"*{name}*: the best of {len(one.by_setting)} settings on the test patients has an AUC of "
            f"{figure(*seems)}, and the nested search {figure(*honest)}. The first {shown} {_signed(gap)}."
        )
    return told


def _signed(interval: list[float]) -> str:
    value, low, high = interval
    return figure(value, low, high, signed=True)


def projection_says(projected: Projection) -> str:
    """How many patients a target takes, or why the curve cannot say."""
    target, most = f"An AUC of {projected.target:.3f}", projected.most
    top = figure(*projected.asymptote)
    if projected.verdict == learning_curve.REACHED:
        return f"{target} is reached with the {most:.0f} patients that there are to learn from."
    if projected.verdict == learning_curve.FLAT:
        return f"{target} cannot be projected: more patients are not shown to raise the curve."
    if projected.verdict == learning_curve.BELOW:
        perhaps = "" if projected.asymptote[2] < projected.target else ", though its interval holds the target"
        return f"{target} cannot be projected: the curve's asymptote is {top}, which is below it{perhaps}."
    limit = learning_curve.FARTHEST * most
    if projected.verdict == learning_curve.FAR:
        return (
            f"{target} cannot be projected: the curve would reach it with more than {limit:,.0f} patients, "
            f"{learning_curve.FARTHEST:g} times the {most:.0f} that it was measured on, where it says nothing."
        )
    above = f"{projected.high:,.0f}"
    if projected.high > limit:
        above = f"more than {limit:,.0f}, beyond which nothing is projected"
    return (
        f"{target} would take about {projected.patients:,.0f} patients to learn from, by the curve (from "
        f"{projected.low:,.0f} to {above})."
    )


def projections_table(projections: list[Projection]) -> pd.DataFrame:
    """A row for each target: the verdict, patients with low and high, and the asymptote."""
    rows = [
        {
            "verdict": one.verdict,
            "patients": _patients(one.patients, one),
            "from": _patients(one.low, one),
            "to": _patients(one.high, one),
            "asymptote": figure(*one.asymptote),
        }
        for one in projections
    ]
    return pd.DataFrame(rows, pd.Index([f"{one.target:.3f}" for one in projections], name="target"))


def _patients(number: float, one: Projection) -> str:
    limit = learning_curve.FARTHEST * one.most
    return f"{number:,.0f}" if number <= limit else f"> {limit:,.0f}"
