"""Reads a CT series as one: each slice on its own, and from those that are least normal a reading of the series.

Where the series is a volume, its lungs are found by their Hounsfield units first (lungkit.data.lungs3d): slices are
sampled within them, and the extent of what is not normal is given as a share of them.

The decision is left to a person where the series is no whole volume, where the slices that it rests on do not pass
their image checks, and where the version was not measured on whole series: its operating point is that of slices.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lungkit import wording
from lungkit.clinic import decode
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records.patients import age_at
from lungkit.clinic.records.stacks import Extent, reading_of
from lungkit.data import lungs3d
from lungkit.data.image import ImageRefused
from lungkit.data.lungs3d import Lungs
from lungkit.data.series import Series
from lungkit.errors import LungkitError
from lungkit.models import input_checks, pooling, population
from lungkit.models.prediction import OUTSIDE, Prediction

MOST = 96  # slices; of more, as many are read, evenly spaced
HIGH_ATTENUATION = -600.0, -250.0  # HU
_LONGEST_MM = 2000.0  # of a series; longer ones show no person
_BATCH = 8  # slices at a time: the feature maps of more of them leave the processor's cache
_TRUSTED = 0.5  # share of the carrying slices that must pass a check


@dataclass(frozen=True, eq=False)
class SliceReading:
    """What a version says about one slice."""

    number: int  # of the slice in the series, from 0
    position: float  # mm along the normal of the series
    source: str
    reading: Prediction


@dataclass(frozen=True)
class Sampled:
    """Which slices of a series were read."""

    count: int  # slices
    among: int  # slices that they were taken from, evenly spaced
    places: tuple[float, float]  # of the first and the last, mm along the normal
    in_lungs: bool  # whether `among` counts the slices that show lungs, or all of them


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
    sampled: Sampled | None = None  # of `read`, always there
    extent: Extent | None = None  # None where the series is no volume, or where no lungs were found by their density

    @property
    def affected(self) -> float:
        """The share of the slices with another class than `absent` at the operating point: 0..1."""
        return float(np.mean([one.reading.label != self.absent for one in self.slices]))

    @property
    def refusal(self) -> str:
        """ "Not for this patient", or image, where the checks of the carrying slices say so; else empty."""
        return reading_of(self).refusal


def read(predictor: Predictor, series: Series, birth_year: int | None = None) -> SeriesReading:
    """The reading of a series by a version.

    birth_year: of the patient, as the records have it.

    Raises ImageRefused if the series is refused, a slice cannot be decoded, or none shows lungs; LungkitError if the
    version reads no CT, or if its classes are grades or none says that a disease is absent.
    """
    started = time.perf_counter()
    absent = _absence(predictor)
    lungs = _lungs(series)
    among = _in_lungs(lungs) if lungs else np.arange(len(series.slices))
    numbers = among[np.unique(np.linspace(0, len(among) - 1, MOST).round().astype(int))].tolist()
    seen = [
        SliceReading(number, series.slices[number].position, series.slices[number].source, reading)
        for number, reading in zip(numbers, _readings(predictor, series, numbers, birth_year), strict=True)
        if _shows_lungs(reading)
    ]
    if not seen:
        raise ImageRefused(series.name, f"none of {len(numbers)} slices shows lungs", "Give a CT of the chest.")
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
        sampled=Sampled(
            len(numbers),
            len(among),
            (series.slices[numbers[0]].position, series.slices[numbers[-1]].position),
            lungs is not None,
        ),
        extent=_measured(lungs, seen, predictor.classes[absent]) if lungs else None,
    )


def sentences(said: SeriesReading) -> list[str]:
    """A reading for people: the decision, why it is left to a person, and the slices that it rests on.

    Where the version is not for the patient or the images: that, why, and what the density of the lungs says.
    """
    if said.refusal:
        return [
            f"{said.refusal.lower()}: no answer by {said.model}@{said.version}",
            *said.reasons,
            *_extents(said.extent, said.absent, refused=True),
        ]
    likely = ", ".join(f"{name} {share:.3f}" for name, share in zip(said.classes, said.probabilities, strict=True))
    places = [said.slices[place].position for place in said.carrying]
    left_out = f"; {said.without_lungs} without lungs left out" if said.without_lungs else ""
    return [
        f"{said.decision} ({likely}) by {said.model}@{said.version}",
        *said.reasons,
        f"rests on {len(places)} of {len(said.slices)} slices, from {min(places):.1f} to {max(places):.1f} mm; "
        f"{said.affected:.0%} of the slices are not {said.absent}{left_out}; {said.milliseconds / 1000:.1f} s",
        *_sampling(said.sampled),
        *_extents(said.extent, said.absent),
    ]


def record(said: SeriesReading) -> dict[str, Any]:
    """JSON-ready: all that `sentences` says, and each slice that was read. Places are in mm, shares 0..1.

    Where the version is not for the patient or the images, labels, the shares that rest on them and which slices carry
    the reading are null, and probabilities are empty.
    """
    carrying, refused = set(said.carrying), said.refusal

    def likely(probabilities: np.ndarray) -> dict[str, float]:
        return {} if refused else dict(zip(said.classes, probabilities.tolist(), strict=True))

    extent = said.extent and asdict(said.extent) | ({"not_absent": None} if refused else {})
    return {
        "model": said.model,
        "version": said.version,
        "decision": refused.lower() or said.decision,
        "label": None if refused else said.label,
        "probabilities": likely(said.probabilities),
        "reasons": list(said.reasons),
        "absent": said.absent,
        "affected": None if refused else said.affected,
        "without_lungs": said.without_lungs,
        "sampled": asdict(said.sampled) if said.sampled else None,
        "extent": extent,
        "slices": [
            {
                "number": one.number,
                "position": one.position,
                "file": one.source,
                "label": None if refused else one.reading.label,
                "probabilities": likely(one.reading.probabilities),
                "carrying": None if refused else place in carrying,
            }
            for place, one in enumerate(said.slices)
        ],
        "ms": round(said.milliseconds, 3),
    }


def _sampling(sampled: Sampled | None) -> list[str]:
    if sampled is None:
        return []
    which = "slices that show lungs by their density" if sampled.in_lungs else "slices"
    start, end = sampled.places
    return [f"{sampled.count} of {sampled.among} {which} were read, evenly spaced from {start:.1f} to {end:.1f} mm"]


def _extents(extent: Extent | None, absent: str, refused: bool = False) -> list[str]:
    """What was measured in the lungs. refused: without what rests on the version's classes."""
    if extent is None:
        return ["the extent in the lungs was not measured: the series is no volume, or its density shows no lungs"]
    part = "" if extent.whole else ", which are cut off where the series ends"
    low, high = HIGH_ATTENUATION
    share = "" if refused else f": {wording.percent(extent.not_absent)} of them in slices that are not {absent}"
    return [
        f"lungs of {extent.millilitres:,.0f} ml{part}{share}",
        f"of the lungs, {extent.high_attenuation:.1%} have {low:.0f} to {high:.0f} HU (high attenuation areas) and "
        f"{extent.dense:.1%} more than that (consolidation, and vessels)",
    ]


def _lungs(series: Series) -> Lungs | None:
    """The lungs of a series by their density; None where it is no volume, or shows none."""
    rows, columns, between = series.spacing
    if series.readable != "volume" or rows is None or columns is None or between is None:
        return None
    count, height, width = series.shape
    if count * between > _LONGEST_MM:
        return None
    spacing = between, rows * series.rows / height, columns * series.columns / width  # pixels are read as squares
    lungs = lungs3d.find((image.pixels for image in series.images()), spacing)
    return lungs if lungs.millilitres else None


def _measured(lungs: Lungs, seen: list[SliceReading], absent: str) -> Extent:
    return extent(lungs, [one.number for one in seen], [one.reading.label != absent for one in seen])


def _in_lungs(lungs: Lungs) -> np.ndarray:
    """The slices that show more than the tips of the lungs: int (slices,)."""
    area = lungs.by_slice
    return np.flatnonzero(area > lungs3d.NEARLY_NONE * area.max())


def extent(lungs: Lungs, numbers: Sequence[int], sick: Sequence[bool]) -> Extent:
    """The extent in lungs. numbers: of the slices that were read; sick: which of them are not called absent."""
    area = lungs.by_slice
    nearest = np.abs(np.arange(len(area))[:, np.newaxis] - np.asarray(numbers)).argmin(axis=1)
    counted = np.asarray(sick, bool)[nearest]
    return Extent(
        millilitres=lungs.millilitres,
        whole=lungs.whole,
        not_absent=float(area[counted].sum() / area.sum()),
        high_attenuation=lungs.share(*HIGH_ATTENUATION),
        dense=lungs.share(HIGH_ATTENUATION[1], np.inf),
    )


def _readings(predictor: Predictor, series: Series, numbers: list[int], birth_year: int | None) -> Iterator[Prediction]:
    """What the version says about each of these slices."""
    for start in range(0, len(numbers), _BATCH):
        started = time.perf_counter()
        prepared = []
        for number in numbers[start : start + _BATCH]:
            image = series.slice(number)
            tensor, facts = decode.prepare(image, predictor.spec)
            prepared.append((tensor, replace(facts, by_year=age_at(birth_year, image.tags))))
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
    """Why the decision is left to a person; nothing that was computed, where the version is not for the patient."""
    counted = Counter(check.name for reading in carrying for check in reading.checks if not check.passed)
    failed = {name: number for name, number in counted.items() if number > _TRUSTED * len(carrying)}
    of_people = (*OUTSIDE, population.AGE_KNOWN)
    said = [check for reading in carrying for check in reading.checks if check.name in of_people and not check.passed]
    reasons = list(dict.fromkeys(check.words for check in said if check.name in failed))
    if failed.keys() & OUTSIDE:
        return tuple(reasons)
    if series.readable != "volume":
        reasons.append(f"the series is read slice by slice: {_limits(series)}")
    reasons += [
        f"{number} of the {len(carrying)} slices that it rests on do not pass the check '{name}'"
        for name, number in failed.items()
        if name not in of_people
    ]
    if predictor.rule.uncertain(probabilities[np.newaxis])[0]:
        reasons.append("the probability lies in the band of uncertainty")
    if not predictor.card.synthetic:
        reasons.append(f"{predictor.version} was measured on single slices, not on whole series")
    return tuple(reasons)


def _limits(series: Series) -> str:
    return ", ".join(dict.fromkeys(str(found.rule) for found in series.findings if found.severity != "note"))
