"""One synthetic patient: the reference adult (anatomy) scaled, turned, shifted, gently warped, and ill.

Everything is drawn from the patient's name and a seed; nothing comes from a real patient.
"""

import math
import zlib
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from lungkit.data.phantom import anatomy as adult
from lungkit.data.phantom.anatomy import LENGTH_MM, SmoothNoise, cover, ellipse, paint, ramp, union

CLASSES = ("Normal", "Pneumonia", "COVID-19")
NORMAL, PNEUMONIA, COVID = CLASSES
THICKNESS_MM = 3.0  # of a slice
WARP_MM = 3.2  # how far a patient's shapes stray from the reference adult's
LEAST_LESION_MM2 = 150.0  # on every slice of a diseased patient
BLOCK = 8  # pixels: shapes are drawn within a box of whole blocks


class _Plane(NamedTuple):
    """What is known of each pixel of a slice before anything is drawn; distances in mm of the reference adult."""

    x: np.ndarray  # where the pixel lies in the reference adult
    y: np.ndarray
    z_mm: float
    level: float
    cavity: np.ndarray  # signed distances, negative inside
    lungs: np.ndarray
    texture: np.ndarray  # of tissue: smooth noise, mean 0


def _near(plane: _Plane, cx: float, cy: float, reach_mm: float, pixel_mm: float) -> tuple[slice, slice]:
    """Rows and columns that hold every pixel within `reach_mm` of (cx, cy), and few others.

    pixel_mm: in mm of the reference adult.
    """
    x, y = plane.x[::BLOCK, ::BLOCK], plane.y[::BLOCK, ::BLOCK]
    margin = 2 * BLOCK * pixel_mm  # a block's diagonal, and the warp
    rows, columns = np.nonzero(np.hypot(x - cx, y - cy) < reach_mm + margin)
    if not len(rows):
        return slice(0), slice(0)
    top, left, bottom, right = BLOCK * rows.min(), BLOCK * columns.min(), BLOCK * rows.max(), BLOCK * columns.max()
    return slice(top, bottom + BLOCK), slice(left, right + BLOCK)


class SyntheticPatient:
    """One synthetic patient: every random choice that all slices share, and the drawing of a slice.

    affected_mm: from which z to which there are lesions; default: everywhere.
    """

    def __init__(
        self, patient_id: str, label: str, seed: int, size: int, affected_mm: tuple[float, float] = (-np.inf, np.inf)
    ):
        self.affected_mm = affected_mm
        rng = self._rng = np.random.default_rng([seed, zlib.crc32(patient_id.encode())])
        self.label, self.size = label, size
        self._draw_habitus(rng, size)
        self._draw_lungs(rng, size)
        self._draw_lesions(rng, size)

    def _draw_habitus(self, rng: np.random.Generator, size: int) -> None:
        stature = rng.normal(1, 0.04)
        self.scale = stature * rng.normal(1, 0.02), stature * rng.normal(1, 0.035)
        self.fat_mm, self.muscle_mm = rng.gamma(4, 2.5) + 5, rng.uniform(10, 16)
        self.breast_mm = rng.uniform(18, 36) if rng.random() < 0.35 else 0.0
        self.contrast = adult.CONTRAST * rng.uniform(0.5, 1.2) if rng.random() < 0.2 else 0.0
        self.rib_phase, self.rib_step = rng.uniform(0, 1, 2).tolist(), math.radians(rng.uniform(24, 29))
        width = 2 * (160 + self.fat_mm) * self.scale[0]
        self.pixel_mm = float(round(width * rng.uniform(1.03, 1.13) / size, 4))
        self.largest_pixel_mm = self.pixel_mm / min(self.scale)  # of the reference adult
        field = self.pixel_mm * size
        turn, (dx, dy) = rng.normal(0, math.radians(3.5)), rng.normal(0, 0.018 * field, 2)
        along = ((np.arange(size) - (size - 1) / 2) * self.pixel_mm).astype(np.float32)
        down, across = along[:, None] - np.float32(dy), along[None] - np.float32(dx)
        self._turn, self._shift = (math.cos(turn), math.sin(turn)), (dx, dy)
        c, s = self._turn
        self.x, self.y = (c * across + s * down) / self.scale[0], (c * down - s * across) / self.scale[1]
        self.upright = down  # gravity and the table know nothing of the patient's turn
        self.seen = along[:, None] ** 2 + along[None] ** 2 < (field / 2) ** 2
        self.table_mm = (118 + self.fat_mm) * self.scale[1] + rng.uniform(2, 8)
        self.warp = [SmoothNoise(rng, size, field, 55) for _ in range(2)]
        self.noise_hu, self.kernel_px = rng.uniform(11, 32), rng.uniform(0.45, 0.85)

    def _draw_lungs(self, rng: np.random.Generator, size: int) -> None:
        field = self.pixel_mm * size
        self.lung_hu, self.gravity = rng.uniform(*adult.LUNG), rng.uniform(0.2, 0.9)
        self.texture, self.patches = SmoothNoise(rng, size, field, 5), SmoothNoise(rng, size, field, 24)
        self.emphysema = rng.uniform(30, 80) if rng.random() < 0.15 else 0.0
        self.dependent_mm = rng.uniform(3, 11) if rng.random() < 0.5 else 0.0
        self.dependent_hu = rng.uniform(80, 240)
        low, high = (-132, -86, -30), (132, 86, LENGTH_MM + 25)
        points = rng.uniform(low, high, (9000, 3))
        inside = adult.lungs_distance(points[:, 0], points[:, 1], points[:, 2] / LENGTH_MM) < -5
        points, arteries, veins = points[inside], [], []
        for side, root in adult.HILUM_MM.items():
            here = points[(points[:, 0] > 0) == (side == "left")]
            arteries.append(adult.vessel_tree(rng, here[:512], np.array(root)))
            veins.append(adult.vessel_tree(rng, here[512:1024], np.add(root, (0, 10, 6))))
        self.arteries = np.vstack(arteries)
        scars = np.hstack([points[-3:], points[-3:] + rng.normal(0, 6, (3, 3)), rng.uniform(0.3, 1.6, (3, 1))])
        self.vessels = np.vstack([self.arteries, *veins, scars[: rng.integers(0, 4)]])

    def _draw_lesions(self, rng: np.random.Generator, size: int) -> None:
        field = self.pixel_mm * size
        self.subtle = rng.random() < 0.08
        self.side = int(rng.choice((-1, 1)))  # -1: the right lung
        self.lower_lobe = rng.random() < 0.6
        self.centre = rng.uniform(55, 115), rng.uniform(-50, 10) + 55 * self.lower_lobe
        self.edge_mm = rng.uniform(4, 10)
        if self.label == PNEUMONIA:
            self.share = rng.uniform(0.05, 0.08) if self.subtle else rng.uniform(0.14, 0.5)
            self.opacity = rng.uniform(*adult.CONSOLIDATION)
            self.other_side = rng.uniform(0.1, 0.3) if rng.random() < 0.15 else 0.0
        else:
            self.share = rng.uniform(0.06, 0.1) if self.subtle else rng.uniform(0.16, 0.45)
            self.opacity = rng.uniform(*adult.GROUND_GLASS) - 40 * self.subtle
            self.other_side = rng.uniform(0.6, 1)
        self.paving = rng.uniform(50, 110) if rng.random() < 0.3 else 0.0
        self.dense_cores = rng.random() < 0.12
        self.spread = SmoothNoise(rng, size, field, 30)
        self.posterior = rng.uniform(-0.2, 1)

    def slice(self, z_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """HU (float32), lesion and lung masks of the slice at `z_mm`, each (size, size)."""
        image, lesion, lungs = self.draw(z_mm)
        return self.scan(image, self._rng, self.noise_hu, self.kernel_px), lesion, lungs

    def draw(self, z_mm: float, table_hu: float = adult.TABLE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The slice as `slice` gives it, before a scanner adds its blur and noise."""
        x, y = self.x + WARP_MM * self.warp[0](z_mm), self.y + WARP_MM * self.warp[1](z_mm)
        level = z_mm / LENGTH_MM
        cavity, lungs = adult.cavity_distance(x, y, level), adult.lungs_distance(x, y, level)
        plane = _Plane(x, y, z_mm, level, cavity, lungs, self.texture(z_mm))
        image = self._body(plane, table_hu)
        lungs = plane.lungs < 0
        alpha, opacity = self._lesions(plane, lungs)
        paint(image, cover(plane.lungs, self.pixel_mm), self._parenchyma(plane, alpha, opacity))
        for airway in adult.AIRWAYS:
            near = _near(plane, *airway.reach(level, 1.6), self.largest_pixel_mm)
            distance = airway.distance(x[near], y[near], level)
            paint(image[near], cover(distance - 1.6, self.pixel_mm), adult.MUSCLE)
            paint(image[near], cover(distance, self.pixel_mm), adult.AIR)
            lungs[near] &= distance > 0
        return image, (alpha > 0.5) & lungs, lungs

    def _body(self, plane: _Plane, table_hu: float) -> np.ndarray:
        """Air, table, skin, fat, muscle, bone, and what lies between and below the lungs."""
        x, y, _, level, cavity, _, texture = plane
        pixel, image = self.pixel_mm, np.full(x.shape, adult.AIR, np.float32)
        depth = self.upright - self.table_mm - (self.x * self.scale[0]) ** 2 / 1500
        paint(image, cover(np.abs(np.abs(depth + 12) - 12) - 1.2, pixel), table_hu)
        skin = ellipse(x, y, 0, 5, 154 + self.fat_mm, 108 + 0.8 * self.fat_mm)
        muscle, high = cavity - self.muscle_mm, float(ramp(-level, -0.75, -0.05))
        for side in (-1, 1):
            if self.breast_mm:
                depth_mm = 8 + self.breast_mm * float(ramp(level, -0.2, 0.6))
                skin = union(skin, ellipse(x, y, 72 * side, -92 - 0.3 * self.fat_mm, 52, depth_mm), 16)
            muscle = union(muscle, ellipse(x, y, 66 * side, -84, 56, 4 + 13 * high, 0.5 * side), 4)  # pectoral
            muscle = union(muscle, ellipse(x, y, 122 * side, 42, 14 + 10 * high, 48, 0.35 * side), 4)  # flank
            muscle = union(muscle, ellipse(x, y, 27 * side, 93, 25, 17, 0.2 * side), 4)  # along the spine
        paint(image, cover(skin, pixel), adult.SKIN)
        paint(image, cover(skin + 2, pixel), adult.FAT + 8 * texture)
        paint(image, cover(np.maximum(muscle, skin + 4), pixel), adult.MUSCLE + np.minimum(40 * (texture + 1.2), 8))
        paint(image, cover(cavity - 1, pixel), adult.FAT)
        self._bones(image, plane)
        for organ in (adult.HEART, *adult.HILA, *adult.AORTA, *adult.VEINS_AND_TRUNK, adult.OESOPHAGUS):
            if np.interp(level, organ.level, organ.half_width) > 0.5:
                hu = organ.hu + self.contrast * (organ.hu == adult.BLOOD)
                near = _near(plane, *organ.reach(level), self.largest_pixel_mm)
                paint(image[near], cover(organ.distance(x[near], y[near], level), pixel), hu)
        liver = np.maximum(adult.liver_distance(x, y, level), cavity)
        paint(image, cover(liver, pixel), adult.LIVER + 0.3 * self.contrast)
        return image

    def _bones(self, image: np.ndarray, plane: _Plane) -> None:
        """Ribs cut aslant, their cartilage in front, sternum, scapulae, and a vertebra or a disc."""
        x, y, z_mm, level, cavity, _, _ = plane

        def bone(image: np.ndarray, distance: np.ndarray, hu: int = adult.MARROW, shell_mm: float = 1.8) -> None:
            paint(image, cover(distance, self.pixel_mm), adult.CORTEX if hu == adult.MARROW else hu)
            paint(image, cover(distance + shell_mm, self.pixel_mm), hu)

        def round_bone(cx: float, cy: float, rx: float, ry: float, tilt: float = 0.0, hu: int = adult.MARROW) -> None:
            near = _near(plane, cx, cy, max(rx, ry), self.largest_pixel_mm)
            bone(image[near], ellipse(x[near], y[near], cx, cy, rx, ry, tilt), hu)

        angle = np.arctan2(np.abs(x), -y)  # 0 in front, pi at the back
        phase = np.where(x < 0, self.rib_phase[0], self.rib_phase[1]) + z_mm / 24  # ribs run down and forwards
        along = (np.mod(angle / self.rib_step + phase, 1) - 0.5) * self.rib_step * np.sqrt(x * x + y * y)
        rib = ellipse(along, cavity - 7, 0, 0, 15, 4.8)
        front, back = angle < 0.75, angle > 2.75
        bone(image, np.where(front | back, 9, rib))
        bone(image, np.where(front & (angle > 0.2), rib, 9), adult.CARTILAGE)
        round_bone(0, -95 - 6 * level, 20, 5.5)
        if level < 0.6:
            for side in (-1, 1):
                round_bone(118 * side, 62, 3.2, 34 * (0.75 - level) + 6, 0.75 * side)
        disc = abs((z_mm + 24 * self.rib_phase[0]) % 24 - 12) > 9.5
        round_bone(0, 60, 18, 14, hu=85 if disc else adult.MARROW)
        round_bone(0, 98, 3.5, 17)  # spinous process
        for side in (-1, 1):
            round_bone(20 * side, 80, 19, 5, 0.45 * side)  # lamina and transverse process
        near = _near(plane, 0, 80, 9, self.largest_pixel_mm)
        paint(image[near], cover(ellipse(x[near], y[near], 0, 80, 9, 8), self.pixel_mm), adult.CORD)

    def _lesions(self, plane: _Plane, lungs: np.ndarray) -> tuple[np.ndarray, Any]:
        """Opacity 0..1 of the slice's lesions and their HU; each lung's share of lesion is met on every slice."""
        x, y, z_mm, level, cavity, _, texture = plane
        alpha = np.zeros(x.shape, np.float32)
        if self.label == NORMAL or not self.affected_mm[0] <= z_mm <= self.affected_mm[1]:
            return alpha, 0.0
        spread = self.spread(z_mm)
        if self.label == PNEUMONIA:  # one focus that fills its lobe and stops at the fissure
            cx, cy = self.centre
            behind = adult.behind_fissure(x, y, level) * (1 if self.lower_lobe else -1)
            preferred = -np.hypot(np.abs(x) - cx, y - cy) + 11 * spread - 60 * ramp(-behind, 0, 6)
            edge_mm = self.edge_mm
        else:  # patches along the pleura
            preferred = 0.9 * np.maximum(cavity, -45) + 15 * spread + 0.2 * self.posterior * y
            edge_mm = 4 + self.edge_mm
        for side, factor in ((self.side, 1.0), (-self.side, self.other_side)):
            here = lungs & (x * side > 0)
            area = np.count_nonzero(here) * self.pixel_mm**2
            if not factor or not area:
                continue
            wanted = max(factor * self.share, LEAST_LESION_MM2 / area if side == self.side else 0)
            threshold = float(np.quantile(preferred[here], max(1 - wanted, 0.1)))
            alpha += here * ramp(preferred - threshold, -edge_mm / 2, edge_mm / 2)
        opacity = self.opacity + 25 * texture * (self.label == COVID)
        if self.label == COVID:
            if self.paving:  # thickened septa: a net of thin lines
                opacity += self.paving * ramp(-np.abs(texture), -0.35, 0)
            if self.dense_cores:
                opacity += (adult.CONSOLIDATION[0] - opacity) * ramp(spread, 1.6, 2.1)
        return alpha, opacity

    def _parenchyma(self, plane: _Plane, alpha: np.ndarray, opacity: Any) -> np.ndarray:
        """Lung tissue, lesions laid over it, then vessels (still seen in ground glass) and bronchi (still open)."""
        x, y, z_mm, level, cavity, _, texture = plane
        lung = self.lung_hu + self.gravity * (y + 20) + 14 * texture
        patches = self.patches(z_mm)
        if self.emphysema:
            lung = lung - self.emphysema * ramp(patches, 0.3, 1)
        lung += 70 * (np.abs(adult.behind_fissure(x, y, level)) < 0.8)
        if self.dependent_mm:  # atelectasis where the lung lies heaviest
            lung += self.dependent_hu * ramp(cavity + self.dependent_mm * (1 + 0.4 * patches), 0, 10) * ramp(y, 30, 62)
        lung += alpha * (opacity - lung)
        paint(lung, self._draw(self.vessels, z_mm), adult.VESSEL + self.contrast)
        beside = self.arteries[self.arteries[:, 6] > 0.75]
        radius = beside[:, 6:]
        beside = np.hstack([beside[:, :6] + np.tile(1.8 * radius * (0.8, -0.6, 0), 2), radius])
        paint(lung, self._draw(beside, z_mm), np.maximum(lung, adult.BRONCHUS_WALL))
        beside[:, 6] *= 0.68
        paint(lung, self._draw(beside, z_mm), adult.BRONCHUS_LUMEN)
        return np.asarray(lung)

    def _draw(self, segments: np.ndarray, z_mm: float) -> np.ndarray:
        """Cover 0..1 of the tubes (n, 7) that cross the slice."""
        half = THICKNESS_MM / 2
        start, end, radius = segments[:, :3], segments[:, 3:6], segments[:, 6]
        low, high = np.minimum(start[:, 2], end[:, 2]), np.maximum(start[:, 2], end[:, 2])
        near = (low < z_mm + half) & (high > z_mm - half)
        start, end, radius = start[near], end[near], radius[near]
        rise = end[:, 2] - start[:, 2] + 1e-6
        cuts = np.sort(np.clip([(z_mm - half - start[:, 2]) / rise, (z_mm + half - start[:, 2]) / rise], 0, 1), axis=0)
        inside_mm = np.abs(rise) * (cuts[1] - cuts[0])
        filled = np.minimum((2 * radius + inside_mm) / THICKNESS_MM, 1)  # a thin tube fills part of the slice only
        a, b = (self._pixels(start + cut[:, None] * (end - start), z_mm) for cut in cuts)
        radius = radius * np.mean(self.scale) / self.pixel_mm
        corner = np.floor(np.minimum(a, b) - radius[:, None] - 1).astype(int)
        width, height = (np.ceil(np.maximum(a, b) + radius[:, None] + 1).astype(int) - corner + 1).T
        pixels = width * height  # of each tube's box; all boxes are laid out one after the other
        tube = np.repeat(np.arange(len(a)), pixels)
        place = np.arange(len(tube)) - np.repeat(np.cumsum(pixels) - pixels, pixels)
        at = corner[tube] + np.stack([place % width[tube], place // width[tube]], axis=1)
        run, offset = (b - a)[tube], at - a[tube]
        along = np.clip((offset * run).sum(1) / ((run * run).sum(1) + 1e-9), 0, 1)
        distance = np.sqrt(((offset - along[:, None] * run) ** 2).sum(1))
        share = np.clip(radius[tube] + 0.5 - distance, 0, 1) * (filled * np.minimum(2 * radius, 1))[tube]
        seen = ((at >= 0) & (at < self.size)).all(1)
        drawn = np.zeros((self.size, self.size), np.float32)
        np.maximum.at(drawn, (at[seen, 1], at[seen, 0]), share[seen].astype(np.float32))
        return drawn

    def _pixels(self, points: np.ndarray, z_mm: float) -> np.ndarray:
        """Column and row (n, 2) of points (n, 3) of the reference adult."""
        c, s = self._turn

        def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            x, y = x * self.scale[0], y * self.scale[1]
            along, down = c * x - s * y + self._shift[0], s * x + c * y + self._shift[1]
            return np.stack([along, down], axis=1) / self.pixel_mm + (self.size - 1) / 2

        rough = np.clip(place(points[:, 0], points[:, 1]).round().astype(int), 0, self.size - 1)
        warp = [WARP_MM * field(z_mm)[rough[:, 1], rough[:, 0]] for field in self.warp]
        return place(points[:, 0] - warp[0], points[:, 1] - warp[1])

    def scan(self, image: np.ndarray, rng: np.random.Generator, noise_hu: float, kernel_px: float) -> np.ndarray:
        """What the scanner adds: the reconstruction kernel, now and then breathing, noise worst in the middle."""
        if rng.random() < 0.15:
            image = ndimage.gaussian_filter1d(image, rng.uniform(0.5, 1.3), axis=0)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, kernel_px)
        noise -= 0.6 * ndimage.gaussian_filter(noise, 2.5 * kernel_px)
        thick = 1 - 0.6 * np.clip((self.x / 170) ** 2 + (self.y / 120) ** 2, 0, 1)
        image = ndimage.gaussian_filter(image, 0.7 * kernel_px) + noise * (thick * noise_hu / noise.std())
        return np.where(self.seen, image, adult.EMPTY)
