"""What a person should know of a series, in sentences with millimetres."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydicom import uid

from lungkit.data import folders, geometry
from lungkit.data.image import squared_note
from lungkit.data.series_rules import Finding, Rule, SetAside, Severity
from lungkit.data.series_slices import Placed

_AXIAL = 0.9999  # of the normal along the patient's axis, from which positions are called z
_ALONG = 0.7  # cosine: whether rows run along an axis
_THICKER = 1.05  # ratio of thickness and spacing that is not rounding


class Positions(NamedTuple):
    """Where slices are, in their order."""

    across: np.ndarray  # (3,), the unit vector across them
    along: np.ndarray  # (slices,) mm along it
    corners: np.ndarray  # (slices, 3) mm

    @classmethod
    def of(cls, corners: Sequence[Sequence[float]], across: np.ndarray) -> "Positions":
        """The positions of corners that are in their order."""
        places = np.array(corners, float).reshape(-1, 3)
        return cls(across, places @ across, places)

    def between(self, first: int, second: int) -> str:
        """Two positions as words, the lower one first: "z = -314.0 and -308.0 mm"."""
        if abs(self.across[2]) < _AXIAL:
            return f"{_mm(self.along[first])} and {_mm(self.along[second])} mm along the normal"
        low, high = sorted(self.along[[first, second]] * np.sign(self.across[2]))
        return f"z = {_mm(low)} and {_mm(high)} mm"


def findings(
    model: Placed,
    slices: list[Placed],
    at: Positions,
    spacing: float | None,
    copies: list[Placed],
    clashes: list[list[Placed]],
) -> list[Finding]:
    """What its own slices say of a series.

    model: the slice whose orientation and spacing stand for those of all. at: a position for each place with slices.
    copies, clashes: slices at one position that are identical, and those that differ.
    """
    return [
        *_clashes(clashes),
        *_view(model, at),
        *(_stack(model, at, spacing) if slices else [Finding(Rule.NO_SLICE, "None of its files can be decoded.")]),
        *_derived(slices),
        *_identity(model, slices),
        *_copies(copies),
        *_thickness(model, spacing),
        *_pixels(model),
    ]


def of_set_aside(aside: list[SetAside]) -> Iterator[Finding]:
    """What was left out of a series: a finding for each rule, with the first names."""
    for rule in dict.fromkeys(one.rule for one in aside):
        of_rule = [one for one in aside if one.rule is rule]
        things = _many(len(of_rule), "frame" if of_rule[0].frame else "file")
        yield Finding(rule, f"{things} left out ({folders.few(of_rule)}). {of_rule[0].words}")


def of_split(models: list[Placed], slices: int) -> Iterator[Finding]:
    """That one SeriesInstanceUID was read as several series, whose models are given; slices: of all of them."""
    if len(models) < 2:
        return
    orientations = np.array([one.orientation for one in models])
    spacings = np.array([one.spacing or (0.0, 0.0) for one in models])
    differ = {
        "frame of reference": len({one.frame_of_reference for one in models}) > 1,
        "size": len({(one.rows, one.columns) for one in models}) > 1,
        "pixel spacing": np.ptp(spacings, axis=0).max() > geometry.SAME_SPACING,
        "orientation": np.ptp(orientations, axis=0).max() > geometry.SAME_ORIENTATION,
        "acquisition": len({one.acquisition for one in models}) > 1,
    }
    what = ", ".join(name for name, is_so in differ.items() if is_so) or "size in square pixels"
    words = (
        f"{_many(slices, 'slice')} of one SeriesInstanceUID are read as {len(models)} series: they differ in {what}."
    )
    yield Finding(Rule.SPLIT, words)


def in_order(found: list[Finding]) -> list[Finding]:
    """What is refused first, and notes last."""
    severities = list(Severity)[::-1]
    return sorted(found, key=lambda finding: severities.index(finding.severity))


def _mm(number: float) -> str:
    """Up to three decimals, and at least one.

    >>> _mm(-314.0), _mm(0.625)
    ('-314.0', '0.625')
    """
    whole, decimals = f"{number + 0.0:.3f}".split(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


# --- where slices are --------------------------------------------------------------------------------------------


def _clashes(clashes: list[list[Placed]]) -> Iterator[Finding]:
    if clashes:
        first = clashes[0]
        words = (
            f"{folders.few(first)} are at the same position but their pixels differ, or are shifted; so it is at "
            f"{_many(len(clashes), 'position')}. Two series or phases may have been mixed."
        )
        yield Finding(Rule.SAME_POSITION, words)


def _view(model: Placed, at: Positions) -> Iterator[Finding]:
    view = geometry.view(at.across)
    if not view.endswith("axial"):
        yield Finding(Rule.NOT_AXIAL, f"The slices are {view}. Axial ones are read; choose the original series.")
        return
    if view != "axial":
        angle = math.degrees(math.acos(min(1.0, abs(at.across[2]))))
        yield Finding(Rule.OBLIQUE, f"The slices are {angle:.1f}° from the axial plane.")
    if model.patient_position.startswith("FF"):
        words = f"The patient lay feet first ({model.patient_position}); positions are the patient's own all the same."
        yield Finding(Rule.FEET_FIRST, words)
    if at.across[2] < 0:
        yield Finding(Rule.TURNED, "The slices are seen from the head: pictures are mirrored against the usual view.")
    elif model.orientation[0] < _ALONG:
        yield Finding(Rule.TURNED, "Rows do not run towards the patient's left: pictures are turned.")


def _stack(model: Placed, at: Positions, spacing: float | None) -> Iterator[Finding]:
    if spacing is None:
        yield Finding(Rule.ONE_SLICE, "It has a single slice.")
        return
    yield from _gaps(at, spacing)
    yield from _tilt(model, at)
    off = geometry.aside(at.corners, at.across)
    most = max(min(model.spacing or (1.0, 1.0)) / 2, 2 * geometry.SAME_POSITION)
    if off.max() > most:
        worst = int(off.argmax())
        words = (
            f"{_many(int((off > most).sum()), 'slice')} not in line with the others, by up to {_mm(off[worst])} mm "
            "in the plane of the slices."
        )
        yield Finding(Rule.SHIFTED, words)


def _gaps(at: Positions, spacing: float) -> Iterator[Finding]:
    for gap in geometry.gaps(at.along, spacing):
        where = at.between(gap.before, gap.before + 1)
        yield Finding(Rule.GAP, f"{_many(gap.missing, 'slice')} missing between {where}.")
    uneven = geometry.uneven(at.along, spacing)
    if len(uneven):
        distances = np.diff(at.along)[uneven]
        range_ = " to ".join(dict.fromkeys(map(_mm, (distances.min(), distances.max()))))
        words = (
            f"The distance of slices is {_mm(spacing)} mm, but {range_} mm at {_many(len(uneven), 'place')}, "
            f"first between {at.between(int(uneven[0]), int(uneven[0]) + 1)}."
        )
        yield Finding(Rule.UNEVEN, words)


def _tilt(model: Placed, at: Positions) -> Iterator[Finding]:
    tilt = geometry.tilt(at.corners, at.across)
    if tilt > geometry.MOST_TILT:
        yield Finding(Rule.TILT, f"The line of positions is tilted by {tilt:.1f}° against the slices.")
    elif model.tilt is not None and abs(model.tilt) > geometry.MOST_TILT:
        words = f"GantryDetectorTilt states {model.tilt:.1f}°, but the positions show {tilt:.1f}°."
        yield Finding(Rule.TILT_STATED, words)


def _thickness(model: Placed, spacing: float | None) -> Iterator[Finding]:
    thick = model.thickness
    if spacing is None or thick is None or not math.isfinite(thick) or thick <= 0:
        return
    words = f"Slices of {_mm(thick)} mm every {_mm(spacing)} mm"
    if thick > spacing * _THICKER:
        yield Finding(Rule.OVERLAP, f"{words}: neighbours overlap.")
    elif spacing > thick * _THICKER:
        yield Finding(Rule.APART, f"{words}: what lies between them is not in the series.")


# --- what they are -----------------------------------------------------------------------------------------------


def _identity(model: Placed, slices: list[Placed]) -> Iterator[Finding]:
    if not model.series_uid:
        words = "SeriesInstanceUID is missing: nothing says that these slices belong together."
        yield Finding(Rule.NO_SERIES_UID, words)
    stated = {"SeriesInstanceUID": model.series_uid, "StudyInstanceUID": model.study_uid}
    stated["FrameOfReferenceUID"] = model.frame_of_reference
    for keyword, text in stated.items():
        if text and not (len(text) <= 64 and re.fullmatch(uid.RE_VALID_UID, text)):
            words = f"{keyword} is no valid UID ({folders.one_line(text)[:64]}); its text is used as it is."
            yield Finding(Rule.INVALID_UID, words)
    missing = [keyword for keyword in ("StudyInstanceUID", "FrameOfReferenceUID") if not stated[keyword]]
    without = sum(not one.instance_uid for one in slices)
    missing += [f"SOPInstanceUID (of {_many(without, 'slice')})"] * bool(without)
    if missing:
        yield Finding(Rule.NO_UID, f"Missing in the headers: {', '.join(missing)}.")
    counts = Counter((one.instance_uid, one.frame) for one in slices if one.instance_uid)
    repeated = sum(count for count in counts.values() if count > 1)
    if repeated:
        yield Finding(Rule.REPEATED_UID, f"{_many(repeated, 'slice')} share a SOPInstanceUID with another one.")


def _derived(slices: list[Placed]) -> Iterator[Finding]:
    """All slices are derived, or none: those of a series with original ones were set aside."""
    if slices and slices[0].derived:
        words = f"{slices[0].derived}: its slices were calculated from other images; choose the original series."
        yield Finding(Rule.ALL_DERIVED, words)


def _copies(copies: list[Placed]) -> Iterator[Finding]:
    if copies:
        verb = "repeats" if len(copies) == 1 else "repeat"
        words = f"{_many(len(copies), 'slice')} left out that {verb} another one exactly: {folders.few(copies)}."
        yield Finding(Rule.DUPLICATE, words)


def _pixels(model: Placed) -> Iterator[Finding]:
    if model.spacing is None:
        yield Finding(Rule.NO_SPACING, "PixelSpacing is missing or impossible: sizes in millimetres are not known.")
    if note := squared_note((model.rows, model.columns), model.size):
        yield Finding(Rule.NOT_SQUARE, f"Each slice is {note}.")
