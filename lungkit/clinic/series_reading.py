"""Reads a CT series as one: each slice on its own, and from those that are least normal a reading of the series.

The decision is left to a person where the series is no whole volume, where the slices that it rests on do not pass
their image checks, and where the version was not measured on whole series: its operating point is that of slices.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lungkit.clinic import decode
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.data.series import Series
from lungkit.errors import LungkitError
from lungkit.models import input_checks, pooling
from lungkit.models.prediction import Prediction

MOST = 96  # slices; of more, as many are read, evenly spaced
_BATCH = 8  # slices at a time: the feature maps of more of them leave the processor's cache
_TRUSTED = 0.5  # share of the carrying slices that must pass a check


@dataclass(frozen=True, eq=False)
class SliceReading:
    """What a version says about one slice."""

    number: int  # of the slice in the series, from 0
    position: float  # mm along the normal of the series
    source: str
    reading: Prediction


@dataclass(frozen=True, eq=False)
class SeriesReading:
    """What a version says about a series."""

    model: str
    version: str
    classes: tuple[str, ...]
    probabilities: np.ndarray  # float64 (classes,), sum 1: the mean over the carrying slices
    label: str  # the class at the operating point
    decision: str  # the label, or predictor.REVIEW
    reasons: tuple[str, ...]  # why it is left to a person; empty where it is not
    slices: tuple[SliceReading, ...]  # those that were read and show lungs, in order
    carrying: tuple[int, ...]  # places in `slices`
    without_lungs: int  # slices that were read and left out
    absent: str  # the class that says that nothing was found
    milliseconds: float

    @property
    def affected(self) -> float:
        """The share of the slices with another class than `absent` at the operating point: 0..1."""
        return float(np.mean([one.reading.label != self.absent for one in self.slices]))


def read(predictor: Predictor, series: Series) -> SeriesReading:
    """The reading of a series by a version.

    Raises ImageRefused if the series is refused or a slice cannot be decoded, LungkitError if the version reads no CT,
    if its classes are grades or none says that a disease is absent, or if no slice shows lungs.
    """
    started = time.perf_counter()
    absent = _absence(predictor)
    numbers = np.unique(np.linspace(0, len(series.slices) - 1, MOST).round().astype(int)).tolist()
    seen = [
        SliceReading(number, series.slices[number].position, series.slices[number].source, reading)
        for number, reading in zip(numbers, _readings(predictor, series, numbers), strict=True)
        if _shows_lungs(reading)
    ]
    if not seen:
        raise LungkitError(f"{series.name}: none of {len(numbers)} slices shows lungs; give a CT of the chest")
    rows = np.stack([one.reading.probabilities for one in seen])
    carrying = pooling.carrying(rows, absent)
    probabilities = rows[carrying].mean(axis=0)
    label = predictor.classes[int(predictor.rule.decide(probabilities[np.newaxis])[0])]
    reasons = _reasons(predictor, series, [seen[place].reading for place in carrying], probabilities)
    return SeriesReading(
        model=predictor.version.model,
        version=predictor.version.version,
        classes=predictor.classes,
        probabilities=probabilities,
        label=label,
        decision=REVIEW if reasons else label,
        reasons=reasons,
        slices=tuple(seen),
        carrying=tuple(carrying.tolist()),
        without_lungs=len(numbers) - len(seen),
        absent=predictor.classes[absent],
        milliseconds=1000 * (time.perf_counter() - started),
    )


def sentences(said: SeriesReading) -> list[str]:
    """A reading for people: the decision, why it is left to a person, and the slices that it rests on."""
    likely = ", ".join(f"{name} {share:.3f}" for name, share in zip(said.classes, said.probabilities, strict=True))
    places = [said.slices[place].position for place in said.carrying]
    left_out = f"; {said.without_lungs} without lungs left out" if said.without_lungs else ""
    return [
        f"{said.decision} ({likely}) by {said.model}@{said.version}",
        *said.reasons,
        f"rests on {len(places)} of {len(said.slices)} slices, from {min(places):.1f} to {max(places):.1f} mm; "
        f"{said.affected:.0%} of the slices are not {said.absent}{left_out}; {said.milliseconds / 1000:.1f} s",
    ]


def _readings(predictor: Predictor, series: Series, numbers: list[int]) -> Iterator[Prediction]:
    """What the version says about each of these slices."""
    for start in range(0, len(numbers), _BATCH):
        started = time.perf_counter()
        prepared = [decode.prepare(series.slice(number), predictor.spec) for number in numbers[start : start + _BATCH]]
        outputs = predictor.graph(np.stack([tensor for tensor, _ in prepared]))
        for row, (_, facts) in enumerate(prepared):
            yield predictor.reading(facts, {name: values[row] for name, values in outputs.items()}, started)


def _absence(predictor: Predictor) -> int:
    """The class of `pooling.absence`, for a version that can read a series."""
    absent, card = pooling.absence(predictor.classes), predictor.card
    if card.modality != "CT":
        raise LungkitError(f"{predictor.version} reads {card.modality or 'images'}, not CT; name a model of CT slices")
    if predictor.rule.grades:
        raise LungkitError(f"{predictor.version} grades single slices; name a model that tells classes apart")
    if absent is None:
        classes = ", ".join(predictor.classes)
        raise LungkitError(
            f"{predictor.version} has no class that says that nothing was found ({classes}); one is known by its name, "
            "such as Normal, Healthy or NonCOVID"
        )
    return absent


def _shows_lungs(reading: Prediction) -> bool:
    """Whether there are lungs, as far as the version looks for them."""
    return all(check.value >= input_checks.LEAST_LUNG for check in reading.checks if check.name == "lungs")


def _reasons(
    predictor: Predictor, series: Series, carrying: list[Prediction], probabilities: np.ndarray
) -> tuple[str, ...]:
    """Why the decision is left to a person."""
    reasons = []
    if series.readable != "volume":
        reasons.append(f"the series is read slice by slice: {_limits(series)}")
    failed = Counter(check.name for reading in carrying for check in reading.checks if not check.passed)
    reasons += [
        f"{number} of the {len(carrying)} slices that it rests on do not pass the check '{name}'"
        for name, number in failed.items()
        if number > _TRUSTED * len(carrying)
    ]
    if predictor.rule.uncertain(probabilities[np.newaxis])[0]:
        reasons.append("the probability lies in the band of uncertainty")
    if not predictor.card.synthetic:
        reasons.append(f"{predictor.version} was measured on single slices, not on whole series")
    return tuple(reasons)


def _limits(series: Series) -> str:
    return ", ".join(dict.fromkeys(str(found.rule) for found in series.findings if found.severity != "note"))
