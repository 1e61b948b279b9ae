"""From probabilities to a decision: the class at the operating point, and how far from it the answer lies.

lungkit.training.calibration chooses a rule on validation images, the card keeps it, and the clinic applies it.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lungkit.errors import LungkitError
from lungkit.models import grades
from lungkit.models.grades import Grades
from lungkit.models.schema import Malformed, Part

SCHEMA = 1
_SURE = 1e-6  # probabilities nearer to 0 or 1 count as this far from it, to keep their log-odds finite

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class UncertaintyBand(Part):
    """Within which margin of the operating point an answer is left to a person."""

    margin: float  # in log-odds; see DecisionRule.margin
    low: float | None = None  # the last class's probabilities at the two ends; for a threshold
    high: float | None = None
    times: float | None = None  # how many times likelier than the next the first class must be; for the likeliest class
    errors_held: float | None = None  # share of the validation errors within the band; None without an error
    reviewed: float | None = None  # share of the validation images within the band
    chosen_on: str | None = None
    criterion: str | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The last class's probabilities between which the band lies; None for the likeliest class."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class ConformalLevel(Part):
    """How likely a class must be to be named in a prediction set, or a range of grades in all."""

    level: float  # how often the true class of a new patient like those of validation is named, at least
    least: float  # the probability from which a class is named; of grades, what those of a range sum to at least
    chosen_on: str | None = None
    n: int | None = None  # validation images


@dataclass(frozen=True, kw_only=True)
class DecisionRule(Part):
    """How a version's probabilities become an answer."""

    # The likeliest class, the last of two from a threshold on, or the middle one of grades.
    kind: Literal["argmax", "threshold", "median"]
    threshold: float | None = None  # on the probability of the last of two classes
    positive: str | None = None  # name of that class
    chosen_on: str | None = None
    criterion: str | None = None
    n: int | None = None  # images it was chosen on
    temperature: float | None = None  # what logits are divided by before the softmax
    band: UncertaintyBand | None = None
    conformal: ConformalLevel | None = None
    grades: Grades | None = None  # for classes that are grades
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if (self.kind == "threshold") != (self.threshold is not None):
            raise Malformed(f"'threshold' of a decision rule is {self.threshold}, and 'kind' is {self.kind}")
        if (self.kind == "median") != (self.grades is not None):
            raise Malformed(f"'grades' of a decision rule are {self.grades}, and 'kind' is {self.kind}")
        if self.schema > SCHEMA:
            raise Malformed(
                f"'schema' of a decision rule is {self.schema}; this lungkit reads up to {SCHEMA}: install a newer one"
            )

    def operating_point(self) -> Self:
        """The rule without what calibration adds: temperature, band and conformal level."""
        return replace(self, temperature=None, band=None, conformal=None)

    def describe(self) -> str:
        """How probabilities become a class, for people: "0.312, chosen on validation by Youden's J"."""
        if self.threshold is None:
            return "the middle grade" if self.grades else "the likeliest class"
        chosen = f", chosen on {self.chosen_on} by {self.criterion}" if self.criterion else ""
        return f"{self.threshold:.3f}{chosen}"

    def calibrate(self, logits: ArrayLike) -> Floats:
        """Probabilities (n, classes) of logits (n, classes): the softmax at this rule's temperature."""
        scaled = np.asarray(logits, np.float64) / (self.temperature or 1.0)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def decide(self, probabilities: ArrayLike) -> NDArray[np.int64]:
        """Class index of each row of probabilities (n, classes): int (n,)."""
        rows = np.asarray(probabilities)
        if self.grades:
            return grades.middle(rows)
        if self.threshold is None:
            return np.asarray(rows.argmax(axis=1))
        if rows.shape[1] != 2:
            raise LungkitError(f"a threshold decides between two classes; the probabilities are of {rows.shape[1]}")
        return np.asarray(rows[:, 1] >= self.threshold).astype(np.int64)

    def margin(self, probabilities: ArrayLike) -> Floats:
        """How far each row of probabilities (n, classes) lies from another decision: float64 (n,), 0 or more.

        In log-odds, which mean the same near 0 as near 0.5. Threshold: the distance of the last class's log-odds from
        the threshold's. Likeliest class: log of how many times likelier it is than the next.
        """
        sure = np.clip(np.asarray(probabilities, np.float64), _SURE, 1 - _SURE)
        if self.threshold is not None:
            return np.abs(log_odds(sure[:, 1]) - log_odds(np.clip(self.threshold, _SURE, 1 - _SURE)))
        second, first = np.sort(sure, axis=1)[:, -2:].T
        return np.asarray(np.log(first / second))

    def uncertain(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Whether each row of probabilities (n, classes) is left to a person: bool (n,); none is without a band.

        Within the band, or where no class is likelier than all others together: "Normal, 46 %" would be read as an
        answer. Of grades: where the range names all of them.
        """
        rows = np.asarray(probabilities)
        if self.grades and self.conformal:
            return np.asarray(self.prediction_set(rows).all(axis=1))
        if self.band is None:
            return np.zeros(len(rows), bool)
        return np.asarray((self.margin(rows) <= self.band.margin) | (np.max(rows, axis=1) < 0.5))

    def prediction_set(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Which classes the conformal set names for each row of probabilities (n, classes): bool (n, classes).

        Every class from the conformal level's `least` on, and always the likeliest. Of grades: the one that is decided
        on, and its neighbours until the probabilities sum to `least`. The true class of new patients like those of
        validation is among them for a share of at least `level`.
        """
        if self.conformal is None:
            raise LungkitError("this decision rule has no conformal level: its version was registered without one")
        rows = np.asarray(probabilities)
        if self.grades:
            return np.asarray(grades.sums_before(rows, self.decide(rows)) < self.conformal.least)
        named = np.asarray(rows >= self.conformal.least)
        named[np.arange(len(named)), rows.argmax(axis=1)] = True
        return named


def log_odds(probability: ArrayLike) -> Floats:
    """log(p / (1 - p)) of a probability within 0 and 1, or of an array of them."""
    return np.asarray(np.log(probability) - np.log1p(-np.asarray(probability)))
