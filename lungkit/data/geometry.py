"""Where the slices of a series are, from the positions and orientations in their headers: numbers only, no files.

Coordinates are the patient's (PS3.3, C.7.6.2.1.1), in mm: x grows to the left, y to the back, z to the head.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SAME_ORIENTATION = 1e-3  # of a direction cosine
SAME_SPACING = 1e-3  # mm between pixels
SAME_POSITION = 0.01  # mm along the normal: closer positions cannot be told apart
EVEN = 0.01  # of the spacing, by which distances of slices may differ
MOST_TILT = 0.5  # degrees
_FARTHEST = 1e5  # mm; no scanner is larger
_OBLIQUE = 5.0  # degrees between the normal and an axis of the patient


class Gap(NamedTuple):
    """Slices that are missing between two that are there, both numbered from 0 in their order."""

    before: int
    missing: int


def orientation_of(numbers: Sequence[float]) -> tuple[float, ...] | None:
    """ImageOrientationPatient as six numbers; None unless they are two unit vectors at a right angle."""
    if len(numbers) != 6 or not np.isfinite(numbers).all():
        return None
    row, column = np.array(numbers[:3]), np.array(numbers[3:])
    lengths = np.array([row @ row, column @ column])
    if np.abs(lengths - 1).max() > 0.01 or abs(row @ column) > 0.01:
        return None
    return tuple(map(float, numbers))


def position_of(numbers: Sequence[float]) -> tuple[float, ...] | None:
    """ImagePositionPatient as three numbers, in mm; None unless they can be a place in a scanner."""
    if len(numbers) != 3 or not np.isfinite(numbers).all() or np.abs(numbers).max() > _FARTHEST:
        return None
    return tuple(map(float, numbers))


def normal(orientation: Sequence[float]) -> np.ndarray:
    """The unit vector (3,) across the slices: the direction of rows times that of columns."""
    crossed = np.cross(orientation[:3], orientation[3:])
    return np.asarray(crossed / np.linalg.norm(crossed))


def view(across: np.ndarray) -> str:
    """ "axial", "coronal" or "sagittal", by the axis nearest to the normal; "oblique axial" if over 5° from it."""
    axis = int(np.abs(across).argmax())
    angle = math.degrees(math.acos(min(1.0, float(np.abs(across[axis])))))
    return ("oblique " if angle > _OBLIQUE else "") + ("sagittal", "coronal", "axial")[axis]


def spacing(positions: np.ndarray) -> float | None:
    """The median distance in mm of sorted positions (slices,) along the normal; None of a single slice.

    Of an even number of distances it is the lower of the two in the middle: missing slices only make distances larger.
    """
    return float(np.quantile(np.diff(positions), 0.5, method="lower")) if len(positions) > 1 else None


def gaps(positions: np.ndarray, between: float) -> list[Gap]:
    """Where slices are missing among sorted positions (slices,), at a distance of `between` mm from each other."""
    steps = np.rint(np.diff(positions) / between)
    fits = np.abs(np.diff(positions) - steps * between) <= _tolerance(between)
    return [Gap(int(at), int(steps[at]) - 1) for at in np.flatnonzero(fits & (steps > 1))]


def uneven(positions: np.ndarray, between: float) -> np.ndarray:
    """Numbers of the slices after which the distance is not `between` mm, nor a whole multiple of it."""
    distances = np.diff(positions)
    steps = np.maximum(np.rint(distances / between), 1)
    return np.flatnonzero(np.abs(distances - steps * between) > _tolerance(between))


def tilt(corners: np.ndarray, across: np.ndarray) -> float:
    """Degrees between the normal and the line from the first to the last of `corners` (slices, 3), in their order.

    0 if the line leaves the normal by less than what rounding in headers explains.
    """
    line = corners[-1] - corners[0]
    along = float(line @ across)
    aside = float(np.linalg.norm(line - along * across))
    return math.degrees(math.atan2(aside, abs(along))) if aside > 2 * SAME_POSITION else 0.0


def aside(corners: np.ndarray, across: np.ndarray) -> np.ndarray:
    """How far each of `corners` (slices, 3) is from the line between the first and the last: mm, in its plane."""
    along = (corners - corners[0]) @ across
    share = along / along[-1] if along[-1] else np.zeros(len(corners))
    return np.asarray(np.linalg.norm(corners - corners[0] - share[:, None] * (corners[-1] - corners[0]), axis=1))


def alike(rows: np.ndarray, tolerance: float) -> list[int]:
    """The number of the cluster of each of sorted `rows` (rows, numbers): within a tolerance of its first row."""
    firsts = np.empty_like(rows)
    clusters: list[int] = []
    count = 0
    for row in rows:
        near = np.flatnonzero((np.abs(firsts[:count] - row) <= tolerance).all(axis=1))
        if not len(near):
            firsts[count] = row
            count += 1
        clusters.append(int(near[0]) if len(near) else count - 1)
    return clusters


def _tolerance(between: float) -> float:
    return max(EVEN * between, SAME_POSITION)
