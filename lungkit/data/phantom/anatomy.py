"""The reference adult of the phantom: shapes and densities of a chest, drawn by hand, from no patient.

Frame: mm; x grows to the patient's left (image right), y to the back (image bottom), z to the feet from the
aortic arch (0) to the lung bases (LENGTH_MM). A level is z / LENGTH_MM. Distances are signed: negative inside.

Densities are textbook values (W. A. Kalender, Computed Tomography, 3rd ed., 2011; for ground glass, the
Fleischner Society's glossary, Radiology 246:697, 2008: denser than lung, vessels still seen through it).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Values = Any  # a number, or an array of them

LENGTH_MM = 115.0  # aortic arch to lung bases

# Hounsfield units
AIR, EMPTY = -1000, -1024  # EMPTY: outside the circle that the scanner reconstructs
FAT, MUSCLE, SKIN, BLOOD, LIVER, MARROW, CORTEX, CARTILAGE, CORD = -100, 50, 20, 40, 58, 170, 800, 110, 25
CONTRAST = 180  # added to blood where an agent was given
LUNG = (-890, -820)  # full and shallow inspiration
GROUND_GLASS = (-570, -370)
CONSOLIDATION = (0, 50)
VESSEL, BRONCHUS_WALL, BRONCHUS_LUMEN = 30, -250, -980
TABLE = -350


# --- geometry ---------------------------------------------------------------------------------------


def ellipse(
    x: np.ndarray, y: np.ndarray, cx: Values, cy: Values, rx: Values, ry: Values, tilt: float = 0.0
) -> np.ndarray:
    """Signed distance in mm, exact to first order, to an ellipse turned by `tilt` (radians, clockwise on the image)."""
    u, v = x - cx, y - cy
    if tilt:
        c, s = math.cos(tilt), math.sin(tilt)
        u, v = c * u + s * v, c * v - s * u
    precision = np.result_type(u, v)
    u, v = u.astype(precision, copy=False) / rx, v.astype(precision, copy=False) / ry
    radius = np.maximum(np.sqrt(u * u + v * v), 1e-4)
    u /= rx
    v /= ry
    slope = np.maximum(np.sqrt(u * u + v * v), 1e-6)
    return np.asarray(radius * (radius - 1) / slope)


def union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Signed distance to both shapes, the crease between them rounded over `blend_mm` (polynomial smooth minimum)."""
    overlap = np.maximum(blend_mm - np.abs(a - b), 0) / blend_mm
    return np.asarray(np.minimum(a, b) - overlap * overlap * blend_mm / 4)


def ramp(value: Values, low: float, high: float) -> Values:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cover(distance: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Share of each pixel inside a shape."""
    return np.asarray(np.clip(0.5 - distance / pixel_mm, 0, 1))


def paint(image: np.ndarray, share: np.ndarray, hu: Values) -> None:
    """Mix `hu` into the image in place, by share of the pixel."""
    image += share * (hu - image)


def bspline(at: Values, n: int) -> np.ndarray:
    """Cubic B-spline weights (len(at), n) at positions `at` counted in knots."""
    t = np.abs(np.asarray(at)[:, None] - np.arange(n)[None] + 1)
    return np.where(t < 1, 2 / 3 - t * t + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6).astype(np.float32)


class SmoothNoise:
    """Smooth random field over the patient's volume, mean 0, standard deviation about 1."""

    def __init__(self, rng: np.random.Generator, size: int, field_mm: float, grain_mm: float):
        knots, levels = int(field_mm / grain_mm) + 4, int(LENGTH_MM / max(grain_mm, 12)) + 5
        self._knots = (
            rng.standard_normal((levels, knots * knots), dtype=np.float32) / 0.479**1.5
        )  # mean square of the weights, per axis
        self._plane = bspline(np.arange(size) * field_mm / size / grain_mm, knots)
        self._step_mm = max(grain_mm, 12)

    def __call__(self, z_mm: float) -> np.ndarray:
        weights = bspline([np.clip(z_mm, 0, LENGTH_MM) / self._step_mm], len(self._knots))
        knots = (weights @ self._knots).reshape(2 * (self._plane.shape[1],))
        return np.asarray(self._plane @ knots @ self._plane.T)


# --- anatomy of the reference adult -----------------------------------------------------------------


class Organ(NamedTuple):
    """An elliptic tube through the mediastinum: its cross-section in mm at some levels, interpolated between."""

    hu: int
    level: Sequence[float]
    x: Sequence[float]
    y: Sequence[float]
    half_width: Sequence[float]  # 0: absent at this level
    half_depth: Sequence[float]
    tilt: float = 0.0

    def distance(self, x: np.ndarray, y: np.ndarray, level: Values) -> np.ndarray:
        """Signed distance to the tube."""
        cx, cy, rx, ry = (np.interp(level, self.level, column).astype(x.dtype) for column in self[2:6])
        outside = 10 * np.maximum(2 - rx, 0)
        return np.asarray(ellipse(x, y, cx, cy, np.maximum(rx, 1), np.maximum(ry, 1), self.tilt) + outside)

    def reach(self, level: float, wall_mm: float = 0.0) -> tuple[float, float, float]:
        """Centre at a level, and how far from it, in mm, the tube and a wall around it reach at most."""
        cx, cy, rx, ry = (float(np.interp(level, self.level, column)) for column in self[2:6])
        return cx, cy, max(rx, ry, 1) + wall_mm


MEDIASTINUM = Organ(FAT, (0, 0.4, 0.7, 1), (0, 0, 2, 4), (18, 16, 14, 14), (30, 29, 24, 22), (60, 60, 60, 60))
# In front of the heart the lungs all but meet.
JUNCTION = Organ(FAT, (0, 0.5, 1), (0, 2, 6), (-66, -66, -66), (13, 10, 20), (40, 40, 44))
HILA = tuple(
    Organ(BLOOD, (0.12, 0.3, 0.55, 0.75), (x, x, x, x), (2, 4, 10, 14), (0, 15, 15, 0), (0, 13, 15, 0))
    for x in (-36, 36)
)
HEART = Organ(
    BLOOD, (0.3, 0.45, 0.7, 1.1), (4, 10, 20, 22), (-36, -28, -22, -22), (0, 44, 60, 58), (0, 34, 44, 40), -0.5
)
AORTA = (  # arch, ascending, descending
    Organ(BLOOD, (-0.1, 0.02, 0.13), (4, 6, 8), (2, 2, 2), (36, 38, 0), (12, 13, 0), 0.85),
    Organ(BLOOD, (0.05, 0.14, 0.4, 0.5), (-12, -14, -10, -4), (-26, -28, -30, -30), (12, 17, 16, 0), (12, 17, 16, 0)),
    Organ(BLOOD, (0.05, 0.14, 1), (24, 26, 16), (32, 36, 42), (11, 13, 12), (11, 13, 12)),
)
VEINS_AND_TRUNK = (  # superior vena cava, pulmonary trunk, right pulmonary artery
    Organ(BLOOD, (-0.2, 0, 0.45, 0.5), (-28, -30, -32, -30), (-16, -18, -18, -18), (8, 9, 10, 0), (8, 9, 11, 0)),
    Organ(BLOOD, (0.18, 0.26, 0.42, 0.5), (18, 18, 14, 10), (-22, -26, -32, -36), (0, 14, 15, 0), (0, 15, 14, 0)),
    Organ(BLOOD, (0.22, 0.3, 0.38), (-10, -8, -8), (-4, -4, -4), (0, 32, 0), (0, 8, 0), 0.1),
)
OESOPHAGUS = Organ(MUSCLE, (0, 1), (5, 8), (33, 30), (8, 8), (5, 6))
AIRWAYS = (  # the trachea forks at the carina; the main bronchi run outwards and down into the hila
    Organ(AIR, (-0.2, 0.16, 0.24, 0.27), (-1, 0, 0, 0), (14, 12, 10, 10), (9, 9, 15, 0), (9.5, 9, 7, 0)),
    Organ(
        AIR,
        (0.24, 0.27, 0.4, 0.6, 0.68),
        (-8, -12, -27, -34, -36),
        (10, 10, 11, 18, 22),
        (0, 8, 7, 5, 0),
        (0, 7, 7, 5, 0),
    ),
    Organ(
        AIR,
        (0.24, 0.27, 0.42, 0.58, 0.66),
        (8, 12, 30, 38, 40),
        (10, 10, 12, 18, 22),
        (0, 8, 7, 5, 0),
        (0, 6.5, 6, 5, 0),
    ),
)
HILUM_MM = {"right": (-40.0, 8.0, 0.38 * LENGTH_MM), "left": (40.0, 8.0, 0.36 * LENGTH_MM)}


def cavity_distance(x: np.ndarray, y: np.ndarray, level: Values) -> np.ndarray:
    """Signed distance to the inside of the rib cage: a rounded box, narrower towards the neck."""
    growth = np.clip(level, -0.4, 0.8).astype(x.dtype)  # a float64 here would double the time of all that follows
    half_width, half_depth = 116 + 20 * growth, 80 + 12 * growth
    u, v = np.abs(x) / half_width, np.abs(y) / half_depth
    radius = np.maximum((u**2.4 + v**2.4) ** (1 / 2.4), 1e-4)
    return np.asarray((radius - 1) * np.sqrt(x * x + y * y) / radius)


def middle_distance(x: np.ndarray, y: np.ndarray, level: Values) -> np.ndarray:
    """Signed distance to all that lies between the lungs: mediastinum, heart, spine."""
    distance = union(MEDIASTINUM.distance(x, y, level), ellipse(x, y, 0, 68, 23, 34), 14)
    for organ in (JUNCTION, HEART, *AORTA, *VEINS_AND_TRUNK[:2], *HILA):
        distance = union(distance, organ.distance(x, y, level), 8)
    return distance


def liver_distance(x: np.ndarray, y: np.ndarray, level: Values) -> np.ndarray:
    """Signed distance to the dome under the right lung, which rises through the last levels."""
    radius = (96 * np.sqrt(np.clip(1 - ((1.8 - level) / 0.95) ** 2, 0, 1))).astype(x.dtype)
    dome = ellipse(x, y, -64, 6, np.maximum(radius, 1), np.maximum(1.05 * radius, 1))
    return np.asarray(dome + 10 * np.maximum(2 - radius, 0))


def lungs_distance(x: np.ndarray, y: np.ndarray, level: Values) -> np.ndarray:
    """Signed distance to the lungs: the cavity less what lies between and below them."""
    outside = union(middle_distance(x, y, level), liver_distance(x, y, level), 6) - 1
    return -union(-cavity_distance(x, y, level) - 2, outside, 9)


def behind_fissure(x: np.ndarray, y: np.ndarray, level: Values) -> np.ndarray:
    """Distance behind the oblique fissure in mm: positive in the lower lobe."""
    return np.asarray(y - (46 - 92 * level - 10 * np.cos(np.abs(x) / 40)))


def vessel_tree(rng: np.random.Generator, targets: np.ndarray, root: np.ndarray) -> np.ndarray:
    """A vessel tree from `root` to `targets` (2**k, 3): halve the targets again and again, run to each half's middle.

    Returns (n, 7): start, end, radius in mm; radii follow Murray's law with an exponent of 2.8.
    """
    starts, groups, segments = root[None], targets[None], []
    while True:
        leaves = groups.shape[1]
        reach = 1.0 if leaves == 1 else 0.5
        ends = starts + reach * (groups.mean(1) - starts)
        ends += rng.normal(0, 0.06, ends.shape) * np.linalg.norm(ends - starts, axis=1, keepdims=True)
        segments.append(np.hstack([starts, ends, np.full((len(ends), 1), 0.5 * leaves**0.36)]))
        if leaves == 1:
            return np.vstack(segments)
        widest = np.ptp(groups, axis=1).argmax(1)[:, None, None]
        order = np.take_along_axis(groups, widest, 2)[..., 0].argsort(1)
        groups = np.take_along_axis(groups, order[..., None], 1).reshape(2 * len(groups), leaves // 2, 3)
        starts = np.repeat(ends, 2, axis=0)
