"""What a test says of its plan: the primary metric next to what would count as success, and each planned subgroup.

A condition is shown where the whole 95 % interval by patient lies on its side, refuted where the whole interval lies on
the other, and open in between. Not worse than another version: the interval of the paired difference on the same
patients lies above minus the margin (Piaggio et al., "Reporting of noninferiority and equivalence randomized trials",
JAMA 2012). One end of a two-sided 95 % interval is a one-sided test at 2.5 %.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.study.plan import LOWER_IS_BETTER, Plan
from lungkit.training import evaluation, exhibits
from lungkit.training.evaluation import Evaluation
from lungkit.wording import count, figure

if TYPE_CHECKING:
    from lungkit.training.release import Scored

SHOWN, OPEN, REFUTED, UNKNOWN = "shown", "not shown", "refuted", "cannot be said"
OF_ONE_CLASS = (
    "accuracy",
    "ece",
    "brier",
    "grades_off",
    "sensitivity",
    "specificity",
)  # defined on images of one class
ONE_CLASS = "–, one class only"  # a balanced accuracy of one class would be its sensitivity under another name
_MOST_GROUPS = 12  # values of a column that is a subgroup
_NONE = (math.nan, math.nan, math.nan)

Estimate = tuple[float, float, float]  # value, low, high; NaN where undefined


@dataclass(frozen=True)
class Outcome:
    """What became of a plan's primary metric. estimate: of the metric, or of the difference from another version."""

    estimate: Estimate
    verdict: str  # SHOWN, OPEN, REFUTED or UNKNOWN
    sentence: str
    subgroups: tuple[str, ...]  # a sentence for each column and each of its values
    problems: tuple[str, ...]  # what the plan asks for and could not be measured

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; undefined figures are None."""
        value, *interval = (None if math.isnan(number) else number for number in self.estimate)
        return {"value": value, "interval": interval, "verdict": self.verdict, "says": self.sentence}


def of(plan: Plan, scored: "Scored", folder: Path) -> Outcome:
    """The outcome of a plan on the images scored; a table of the subgroups goes to the run's folder."""
    estimate, problems = _estimate(plan, scored)
    said, sentence = judged(plan, estimate)
    groups, missing = _subgroups(plan, scored, folder)
    return Outcome(estimate, said, sentence, groups, (*problems, *missing))


def judged(plan: Plan, estimate: Estimate) -> tuple[str, str]:
    """The verdict on an estimate, and the sentence that says it. They follow from the plan and the estimate alone."""
    limit = _limit(plan)
    lower = plan.primary_metric in LOWER_IS_BETTER
    said = verdict(estimate, limit, lower, strict=plan.not_worse_than is not None)
    shown = figure(*estimate, signed=bool(plan.not_worse_than))
    what = f"difference {shown}" if plan.not_worse_than else shown
    return said, f"Plan: primary metric {plan.success}: {what} → {said}{_why(said, estimate, limit, lower)}"


def alone(plan: Plan, measured: Evaluation) -> Estimate:
    """The primary metric of an evaluation; NaN where it was not measured, as kappa without grades."""
    try:
        return measured.value(*plan.measured)
    except LungkitError:
        return _NONE


def verdict(estimate: Estimate, limit: float, lower: bool, strict: bool = False) -> str:
    """Where the interval lies. lower: the figure is to be at most the limit, not at least. strict: not at it."""
    _, low, high = estimate
    if math.isnan(low) or math.isnan(high):
        return UNKNOWN
    near, far = (-high, -low) if lower else (low, high)
    bound = -limit if lower else limit
    if near > bound or (near == bound and not strict):
        return SHOWN
    return REFUTED if far < bound or (far == bound and strict) else OPEN


def _limit(plan: Plan) -> float:
    """What the estimate is compared with. A difference from another version is compared with the margin."""
    if plan.not_worse_than:
        margin = plan.margin or 0.0
        return margin if plan.primary_metric in LOWER_IS_BETTER else -margin
    return plan.at_most if plan.at_least is None else plan.at_least  # type: ignore[return-value]  # one is given


def _why(said: str, estimate: Estimate, limit: float, lower: bool) -> str:
    """The end of the interval that decides, with as many digits as it takes to tell it from the limit."""
    _, low, high = estimate
    if said == SHOWN:
        return ""
    if said == UNKNOWN:
        return " (there is no interval)"
    end = (high if lower else low) if said == OPEN else (low if lower else high)
    digits = next((d for d in range(3, 9) if f"{end:.{d}f}" != f"{limit:.{d}f}"), 9)
    text = f"{end:.{digits}f}".replace("-", "−")
    return f" (the interval reaches {text})" if said == OPEN else f" (the interval ends at {text})"


def _estimate(plan: Plan, scored: "Scored") -> tuple[Estimate, list[str]]:
    """The primary metric, or its difference from the other version; and why it could not be measured."""
    try:
        if plan.not_worse_than:
            return _difference(plan, scored, plan.not_worse_than), []
        estimate = scored.evaluation.value(*plan.measured)
    except LungkitError as error:
        return _NONE, [f"The primary metric could not be measured: {error}."]
    undefined = f"The primary metric, {plan.metric}, is undefined on these images."
    return estimate, [undefined] if math.isnan(estimate[0]) else []


def _difference(plan: Plan, scored: "Scored", ref: str) -> Estimate:
    """This version minus the other on the same images, (value, low, high)."""
    from lungkit.training import predictions, release

    other = registry.find(ref)
    if sorted(other.card.classes) != sorted(scored.version.card.classes):
        raise LungkitError(f"{other} answers {', '.join(other.card.classes)}")
    there = release.score(other, scored.data, scored.split, "the comparison of a plan")
    same = predictions.of_scored(there).in_order(scored.evaluation.classes)
    return evaluation.paired_difference(scored.evaluation, same.evaluated(), *plan.measured)


# --- subgroups


def _subgroups(plan: Plan, scored: "Scored", folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """A sentence for each group, and what is missing."""
    rows, problems = [], []
    for column in plan.subgroups:
        values = _values(scored, column)
        groups = [] if values is None else sorted(set(values))
        if values is None:
            problems.append(f"The planned subgroups by {column} are missing: the data set has no such column.")
        elif len(groups) > _MOST_GROUPS:
            problems.append(f"The planned subgroups by {column} are missing: the column has {len(groups)} values.")
        else:
            rows += [(column, group, *_of_group(plan, scored, values == group)) for group in groups]
    name = plan.metric
    if rows:
        table = pd.DataFrame(
            [
                (f"{column} {group or 'not stated'}", images, patients, said)
                for column, group, images, patients, said in rows
            ],
            columns=["Group", "Images", "Patients", _capital(name)],
        )
        caption = f"{_capital(name)} in each planned subgroup; 95 % intervals by patient"
        exhibits.table(table, folder, "04_plan_subgroups", caption)
    sentences = (
        f"{column} {group or 'not stated'}: {name} {said}, {count(images, 'image')} of {count(patients, 'patient')}"
        for column, group, images, patients, said in rows
    )
    return tuple(sentences), problems


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_group(plan: Plan, scored: "Scored", images: np.ndarray) -> tuple[int, int, str]:
    """Images, patients and the primary metric with its interval in a group (bool, n), as people read it."""
    whole = scored.evaluation
    numbers = int(images.sum()), len(set(whole.patients[images]))
    if len(set(whole.true[images].tolist())) == 1 and plan.primary_metric not in OF_ONE_CLASS:
        return *numbers, ONE_CLASS
    alone = evaluation.evaluate(
        whole.true[images],
        whole.probabilities[images],
        whole.patients[images],
        whole.classes,
        whole.rule,
        sources=whole.sources[images],
    )
    return *numbers, figure(*alone.value(*plan.measured))


def _values(scored: "Scored", column: str) -> np.ndarray | None:
    """The column's value for each image scored, str (n,); None where the data set has no such column."""
    if column in ("source", "modality"):
        return scored.rows[column].to_numpy(str)
    table = scored.data.root / "labels.csv"
    if not table.is_file():
        return None
    stated = pd.read_csv(table, dtype=str, keep_default_na=False).rename(columns=str.strip)
    if column not in stated or "file" not in stated:
        return None
    by_file = stated.drop_duplicates("file").set_index("file", drop=False)[column]
    return scored.rows["file"].map(by_file).fillna("").str.strip().to_numpy(str)
