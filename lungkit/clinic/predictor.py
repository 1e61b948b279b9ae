"""Reads one image with a registered version, without TensorFlow: probabilities, decision, heat maps, input checks."""

from dataclasses import dataclass

import numpy as np

REVIEW = "uncertain: review"


@dataclass(frozen=True)
class Check:
    """One question asked of an input before its reading may be trusted."""

    name: str  # "kind", "intensity", "size"
    passed: bool
    value: float
    limit: float
    words: str  # for the clinician: what was found, and what it means


@dataclass(frozen=True, eq=False)
class Reading:
    """What a version says about one image."""

    model: str
    version: str
    classes: tuple[str, ...]
    probabilities: np.ndarray  # float64 (classes,), calibrated, sum 1
    label: str  # the class at the operating point
    decision: str  # the label, or REVIEW: within the band of uncertainty, or an input check failed
    point: dict  # operating point, band and temperature that were used
    heat: np.ndarray  # float32 (classes, height, width) 0..1: over the whole image, in its aspect, not in its size
    checks: tuple[Check, ...]
    milliseconds: float  # from file to answer
