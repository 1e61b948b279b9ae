"""What a registered version says about one image; the predictor makes it, the records keep it."""

from dataclasses import dataclass

import numpy as np

from lungkit.models.rule import DecisionRule


@dataclass(frozen=True)
class Check:
    """One question asked of an input before its reading may be trusted."""

    name: str  # "kind", "intensity", "size", "lungs", "age"
    passed: bool
    value: float
    limit: float
    words: str  # for the clinician: the result, and what it means


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a version says about one image."""

    model: str
    version: str
    classes: tuple[str, ...]
    probabilities: np.ndarray  # float64 (classes,), calibrated, sum 1
    label: str  # the class at the operating point
    decision: str  # the label, or predictor.REVIEW: within the band of uncertainty, or an input check failed
    rule: DecisionRule  # the card's
    # float32 (classes, height, width) 0..1: over the whole image, in its aspect, not in its size. None: not asked for.
    heat: np.ndarray | None
    checks: tuple[Check, ...]
    milliseconds: float  # from file to answer
    note: str = ""  # what was unusual when the file was read
