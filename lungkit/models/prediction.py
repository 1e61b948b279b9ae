"""What a registered version says about one image; the predictor makes it, the records keep it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lungkit.models.grades import range_name
from lungkit.models.rule import DecisionRule

REVIEW = "uncertain: review"  # the decision that is left to a person
# Checks that say whom a version is not for.
AGE, VIEW, BODY_PART, MODALITY = OUTSIDE = ("age", "view", "body part", "modality")


@dataclass(frozen=True)
class Check:
    """One question asked of an input before its reading may be trusted."""

    name: str  # "kind", "intensity", "size", "orientation", "lungs", or one of lungkit.models.population
    passed: bool
    value: float
    limit: float
    words: str  # for the clinician: the result, and what it means


def is_outside(check: Check) -> bool:
    """Whether a check says that the version is not for this patient or image."""
    return check.name in OUTSIDE and not check.passed


def refusal(checks: Iterable[Check]) -> str:
    """ "Not for this patient" or "Not for this image", where one of the checks says so; else empty.

    What the version computed of it means nothing then: it is neither shown nor sent.
    """
    failed = {check.name for check in checks if is_outside(check)}
    of_patient = AGE in failed and MODALITY not in failed  # such an image is for no version of this kind, of any age
    return "" if not failed else "Not for this patient" if of_patient else "Not for this image"


@dataclass(frozen=True)
class GradeRange:
    """The adjacent grades that a reading names."""

    names: tuple[str, ...]
    percent: tuple[float, float]  # the least and the most that they mean …
    extent: str  # … in words: "about 0 to 50 % of the lungs"
    probability: float  # of all of them together
    caution: str  # what a person has to know who sees it

    @property
    def name(self) -> str:
        """ "CT-1 to CT-2", or the name of the only grade."""
        return range_name(self.names)


def grade_range(rule: DecisionRule, probabilities: Mapping[str, float]) -> GradeRange | None:
    """The range that the rule gives for probabilities by class; None where the classes are no grades."""
    if rule.grades is None or rule.conformal is None:
        return None
    values = np.array([*probabilities.values()])
    within = np.flatnonzero(rule.prediction_set(values[np.newaxis])[0]).tolist()
    first, last = within[0], within[-1]
    return GradeRange(
        names=tuple([*probabilities][first : last + 1]),
        percent=(rule.grades.extents[first][0], rule.grades.extents[last][1]),
        extent=rule.grades.extent(first, last),
        probability=float(values[first : last + 1].sum()),
        caution=rule.grades.caution,
    )


def decided(label: str, probabilities: Mapping[str, float], rule: DecisionRule, checks: Iterable[Check]) -> str:
    """The decision: REVIEW where a check failed or the rule is unsure; else the range of grades, if any, or the label.

    probabilities: by class, in the order of the card's.
    """
    unsure = rule.uncertain(np.array([[*probabilities.values()]]))[0]
    if unsure or not all(check.passed for check in checks):
        return REVIEW
    graded = grade_range(rule, probabilities)
    return graded.name if graded else label


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a version says about one image."""

    model: str
    version: str
    classes: tuple[str, ...]
    probabilities: np.ndarray  # float64 (classes,), calibrated, sum 1
    label: str  # the class at the operating point
    # The label, the name of the range of grades, or REVIEW: see `decided`.
    decision: str
    rule: DecisionRule  # the card's
    # float32 (classes, height, width) 0..1: over the whole image, in its aspect, not in its size. None: not asked for.
    heat: np.ndarray | None
    checks: tuple[Check, ...]
    milliseconds: float  # from file to answer
    note: str = ""  # what was unusual when the file was read

    @property
    def grades(self) -> GradeRange | None:
        """The range of grades that it names, where the classes are grades."""
        return grade_range(self.rule, dict(zip(self.classes, self.probabilities.tolist(), strict=True)))

    @property
    def refusal(self) -> str:
        """ "Not for this patient", or image, where its checks say so: see `refusal`."""
        return refusal(self.checks)

    @property
    def probability(self) -> float:
        """Of the grades that are the decision, together; otherwise of the label."""
        graded = self.grades
        if graded and graded.name == self.decision:
            return graded.probability
        return float(self.probabilities[self.classes.index(self.label)])
