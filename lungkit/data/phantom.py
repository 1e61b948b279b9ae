"""Synthetic chest CT: axial slices in Hounsfield units drawn by numpy from a seed.

Everything here is synthetic. No image, shape or statistic was taken from a patient, and nothing learned
from it says anything about patients. The phantom exists so that the whole pipeline can be run, tested
and shown without real data, with the lesion masks that real data lack, and as a stand-in for a scanner.

A patient is the reference adult (lungkit.data.anatomy) scaled, turned, shifted and gently warped.
"""

import csv
import json
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from PIL import Image as Picture
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from scipy import ndimage

from lungkit import progress
from lungkit.data import anatomy as adult
from lungkit.data.anatomy import LENGTH_MM, SmoothNoise, cover, ellipse, paint, ramp, union
from lungkit.errors import LungkitError

CLASSES = ("Normal", "Pneumonia", "COVID-19")
NORMAL, PNEUMONIA, COVID = CLASSES
VERSION = 1  # of the drawing; raise it when the same seed gives other pixels
SYNTHETIC = "Synthetic phantom, not a patient"

THICKNESS_MM = 3.0  # of a slice
HU_STEP = 4  # of compressed files: far below the noise, and a quarter of the size
SLICES_A_PATIENT = 5.5  # on average, in a data set
LEAST_LESION_MM2 = 150.0  # on every slice of a diseased patient


@dataclass(frozen=True)
class Slice:
    """One synthetic axial slice, never of a patient.

    hu: int16 (size, size), Hounsfield units, -1024..3071. lesion, lungs: bool (size, size), lesion within
    lungs and empty for Normal. index: place in the series from the head, from 0. position_mm: z from the
    aortic arch to the feet. seed and patient_id name the series: equal ones give equal DICOM identifiers.
    """

    hu: np.ndarray
    lesion: np.ndarray
    lungs: np.ndarray
    label: str
    patient_id: str
    index: int
    pixel_spacing_mm: float
    position_mm: float
    seed: int


class _Patient:
    """One synthetic patient: every random choice that all slices share, and the drawing of a slice."""

    def __init__(self, patient_id, label, seed, size):
        rng = self._rng = np.random.default_rng([seed, zlib.crc32(patient_id.encode())])
        self.label, self.size = label, size
        self._draw_habitus(rng, size)
        self._draw_lungs(rng, size)
        self._draw_lesions(rng, size)

    def _draw_habitus(self, rng, size):
        stature = rng.normal(1, 0.04)
        self.scale = stature * rng.normal(1, 0.02), stature * rng.normal(1, 0.035)
        self.fat_mm, self.muscle_mm = rng.gamma(4, 2.5) + 5, rng.uniform(10, 16)
        self.breast_mm = rng.uniform(18, 36) if rng.random() < 0.35 else 0.0
        self.contrast = adult.CONTRAST * rng.uniform(0.5, 1.2) if rng.random() < 0.2 else 0.0
        self.rib_phase, self.rib_step = rng.uniform(0, 1, 2).tolist(), math.radians(rng.uniform(24, 29))
        width = 2 * (136 + 24 + self.fat_mm) * self.scale[0]
        self.pixel_mm = float(round(width * rng.uniform(1.03, 1.13) / size, 4))
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
        self.noise_hu, self.kernel_px = rng.uniform(12, 36), rng.uniform(0.45, 0.85)

    def _draw_lungs(self, rng, size):
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

    def _draw_lesions(self, rng, size):
        field = self.pixel_mm * size
        self.subtle = rng.random() < 0.1
        self.side = int(rng.choice((-1, 1)))  # -1: the right lung
        self.lower_lobe = rng.random() < 0.6
        self.centre = rng.uniform(55, 115), rng.uniform(-50, 10) + 55 * self.lower_lobe
        self.edge_mm = rng.uniform(4, 10)
        if self.label == PNEUMONIA:
            self.share = rng.uniform(0.05, 0.08) if self.subtle else rng.uniform(0.12, 0.5)
            self.opacity = rng.uniform(*adult.CONSOLIDATION)
            self.other_side = rng.uniform(0.1, 0.3) if rng.random() < 0.15 else 0.0
        else:
            self.share = rng.uniform(0.06, 0.1) if self.subtle else rng.uniform(0.14, 0.45)
            self.opacity = rng.uniform(*adult.GROUND_GLASS) - 40 * self.subtle
            self.other_side = rng.uniform(0.6, 1)
        self.paving = rng.uniform(60, 140) if rng.random() < 0.35 else 0.0
        self.dense_cores = rng.random() < 0.2
        self.spread = SmoothNoise(rng, size, field, 30)
        self.posterior = rng.uniform(-0.2, 1)

    def slice(self, z_mm):
        """HU (float32), lesion and lung masks of the slice at `z_mm`, each (size, size)."""
        x, y = self.x + 3.2 * self.warp[0](z_mm), self.y + 3.2 * self.warp[1](z_mm)
        level = z_mm / LENGTH_MM
        plane = _Plane(
            x, y, z_mm, level, adult.cavity_distance(x, y, level), adult.lungs_distance(x, y, level), self.texture(z_mm)
        )
        image = self._body(plane)
        lungs = plane.lungs < 0
        alpha, opacity = self._lesions(plane, lungs)
        paint(image, cover(plane.lungs, self.pixel_mm), self._parenchyma(plane, alpha, opacity))
        for airway in adult.AIRWAYS:
            distance = airway.distance(x, y, level)
            paint(image, cover(distance - 1.6, self.pixel_mm), adult.MUSCLE)
            paint(image, cover(distance, self.pixel_mm), adult.AIR)
            lungs &= distance > 0
        return self._scan(image), (alpha > 0.5) & lungs, lungs

    def _body(self, plane):
        """Air, table, skin, fat, muscle, bone, and what lies between and below the lungs."""
        x, y, _, level, cavity, _, texture = plane
        pixel, image = self.pixel_mm, np.full(x.shape, adult.AIR, np.float32)
        depth = self.upright - self.table_mm - (self.x * self.scale[0]) ** 2 / 1500
        paint(image, cover(np.abs(np.abs(depth + 12) - 12) - 1.2, pixel), adult.TABLE)
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
                paint(image, cover(organ.distance(x, y, level), pixel), hu)
        paint(
            image,
            cover(np.maximum(adult.liver_distance(x, y, level), cavity), pixel),
            adult.LIVER + 0.3 * self.contrast,
        )
        return image

    def _bones(self, image, plane):
        """Ribs cut aslant, their cartilage in front, sternum, scapulae, and a vertebra or a disc."""
        x, y, z_mm, level, cavity, _, _ = plane

        def bone(distance, hu=adult.MARROW, shell_mm=1.8):
            paint(image, cover(distance, self.pixel_mm), adult.CORTEX if hu == adult.MARROW else hu)
            paint(image, cover(distance + shell_mm, self.pixel_mm), hu)

        angle = np.arctan2(np.abs(x), -y)  # 0 in front, pi at the back
        phase = np.where(x < 0, self.rib_phase[0], self.rib_phase[1]) + z_mm / 24  # ribs run down and forwards
        along = (np.mod(angle / self.rib_step + phase, 1) - 0.5) * self.rib_step * np.sqrt(x * x + y * y)
        rib = ellipse(along, cavity - 7, 0, 0, 15, 4.8)
        front, back = angle < 0.75, angle > 2.75
        bone(np.where(front | back, 9, rib))
        bone(np.where(front & (angle > 0.2), rib, 9), adult.CARTILAGE)
        bone(ellipse(x, y, 0, -95 - 6 * level, 20, 5.5))
        if level < 0.6:
            for side in (-1, 1):
                bone(ellipse(x, y, 118 * side, 62, 3.2, 34 * (0.75 - level) + 6, -0.75 * -side))
        disc = abs((z_mm + 24 * self.rib_phase[0]) % 24 - 12) > 9.5
        bone(ellipse(x, y, 0, 60, 18, 14), 85 if disc else adult.MARROW)
        bone(ellipse(x, y, 0, 98, 3.5, 17))  # spinous process
        for side in (-1, 1):
            bone(ellipse(x, y, 20 * side, 80, 19, 5, 0.45 * side))  # lamina and transverse process
        paint(image, cover(ellipse(x, y, 0, 80, 9, 8), self.pixel_mm), adult.CORD)

    def _lesions(self, plane, lungs):
        """Opacity 0..1 of the slice's lesions and their HU; each lung's share of lesion is met on every slice."""
        x, y, z_mm, level, cavity, _, texture = plane
        alpha = np.zeros(x.shape, np.float32)
        if self.label == NORMAL:
            return alpha, 0.0
        spread = self.spread(z_mm)
        if self.label == PNEUMONIA:  # one focus that fills its lobe and stops at the fissure
            cx, cy = self.centre
            behind = adult.behind_fissure(x, y, level) * (1 if self.lower_lobe else -1)
            preferred = -np.hypot(np.abs(x) - cx, y - cy) + 11 * spread - 60 * ramp(-behind, 0, 6)
            edge_mm = self.edge_mm
        else:  # patches along the pleura
            preferred = 0.9 * np.maximum(cavity, -45) + 15 * spread + 0.2 * self.posterior * y
            edge_mm = 8 + self.edge_mm
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

    def _parenchyma(self, plane, alpha, opacity):
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
        return lung

    def _draw(self, segments, z_mm):
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

    def _pixels(self, points, z_mm):
        """Column and row (n, 2) of points (n, 3) of the reference adult."""
        c, s = self._turn

        def place(x, y):
            x, y = x * self.scale[0], y * self.scale[1]
            along, down = c * x - s * y + self._shift[0], s * x + c * y + self._shift[1]
            return np.stack([along, down], axis=1) / self.pixel_mm + (self.size - 1) / 2

        rough = np.clip(place(points[:, 0], points[:, 1]).round().astype(int), 0, self.size - 1)
        warp = [3.2 * field(z_mm)[rough[:, 1], rough[:, 0]] for field in self.warp]
        return place(points[:, 0] - warp[0], points[:, 1] - warp[1])

    def _scan(self, image):
        """What the scanner adds: the reconstruction kernel, now and then breathing, noise worst in the middle."""
        rng = self._rng
        if rng.random() < 0.15:
            image = ndimage.gaussian_filter1d(image, rng.uniform(0.5, 1.3), axis=0)
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, self.kernel_px)
        noise -= 0.6 * ndimage.gaussian_filter(noise, 2.5 * self.kernel_px)
        thick = 1 - 0.6 * np.clip((self.x / 170) ** 2 + (self.y / 120) ** 2, 0, 1)
        image = ndimage.gaussian_filter(image, 0.7 * self.kernel_px) + noise * (thick * self.noise_hu / noise.std())
        return np.where(self.seen, image, adult.EMPTY)


class _Plane(NamedTuple):
    """What is known of each pixel of a slice before anything is drawn; distances in mm of the reference adult."""

    x: np.ndarray
    y: np.ndarray
    z_mm: float
    level: float
    cavity: np.ndarray
    lungs: np.ndarray
    texture: np.ndarray


def make_patient(patient_id: str, label: str, seed: int, slices: int = 6, size: int = 224) -> list[Slice]:
    """Slices of one synthetic patient from the aortic arch to the lung bases, evenly spaced.

    The same arguments give the same pixels. Every slice of Pneumonia and COVID-19 holds a lesion of at
    least about 150 mm². Raises LungkitError for an unknown label, no slices, or a size outside 64..1024.
    """
    if label not in CLASSES:
        raise LungkitError(f"no class '{label}' in the phantom; there are: {', '.join(CLASSES)}")
    if slices < 1 or not 64 <= size <= 1024:
        raise LungkitError(f"{slices} slices of {size} pixels; a patient has 1 or more slices of 64 to 1024 pixels")
    patient = _Patient(patient_id, label, seed, size)
    drawn = []
    for index, z_mm in enumerate((np.arange(slices) + 0.5) / slices * LENGTH_MM):
        hu, lesion, lungs = patient.slice(z_mm)
        hu = np.clip(np.rint(hu), adult.EMPTY, 3071).astype(np.int16)
        drawn.append(Slice(hu, lesion, lungs, label, patient_id, index, patient.pixel_mm, float(z_mm), seed))
    return drawn


# --- files ------------------------------------------------------------------------------------------


def write_dicom(slice: Slice, path: str | Path, compressed: bool = True) -> Path:
    """Write one slice as DICOM CT Image Storage that says in several places that it is synthetic.

    compressed: JPEG 2000 lossless of values in steps of HU_STEP, so read back within 2 HU; otherwise
    uncompressed and exact. Identifiers depend on seed, patient and index only: the slices of one patient
    form one series in one study. Returns the path.
    """
    step = HU_STEP if compressed else 1
    series = ("lungkit phantom", str(slice.seed), slice.patient_id)
    instance = generate_uid(entropy_srcs=[*series, "image", str(slice.index)])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, instance
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*series, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*series, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*series, "frame"])
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.Manufacturer, ds.ManufacturerModelName = "lungkit", f"phantom {VERSION}"
    ds.PatientName, ds.PatientID = "SYNTHETIC^PHANTOM", slice.patient_id
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ds.StudyID = ds.PositionReferenceIndicator = ds.KVP = ds.AcquisitionNumber = ""
    ds.Modality, ds.BodyPartExamined, ds.PatientPosition = "CT", "CHEST", "HFS"
    ds.SeriesDescription = ds.ImageComments = SYNTHETIC
    ds.SeriesNumber, ds.InstanceNumber, ds.BurnedInAnnotation = 1, slice.index + 1, "NO"
    corner = -(len(slice.hu) - 1) / 2 * slice.pixel_spacing_mm
    ds.ImagePositionPatient = [round(corner, 4), round(corner, 4), round(-slice.position_mm, 4)]
    ds.ImageOrientationPatient, ds.SliceThickness = [1, 0, 0, 0, 1, 0], THICKNESS_MM
    ds.PixelSpacing = [slice.pixel_spacing_mm] * 2
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = slice.hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = step, adult.EMPTY, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500
    stored = np.rint((slice.hu.astype(np.int32) - adult.EMPTY) / step).astype("<u2")
    ds.PixelData = stored.tobytes()
    if compressed:
        ds.compress(JPEG2000Lossless, stored, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    path = Path(path)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(slices: Sequence[Slice], folder: str | Path, compressed: bool = True) -> list[Path]:
    """Write one patient's slices as a DICOM series: folder/001.dcm and on; see `write_dicom`.

    Raises LungkitError when there are no slices, or slices of more than one patient.
    """
    patients = sorted({f"{s.patient_id} (seed {s.seed})" for s in slices})
    if len(patients) != 1:
        raise LungkitError(f"a series holds one patient's slices, not those of {', '.join(patients) or 'nobody'}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [write_dicom(s, folder / f"{s.index + 1:03d}.dcm", compressed) for s in slices]


def make_dataset(
    folder: str | Path, n_slices: int = 1500, seed: int = 7, size: int = 224, workers: int | None = None
) -> Path:
    """A synthetic data set in `folder`: slices/*.dcm, masks/*.png (lesions, 0 or 255), labels.csv, dataset.json.

    Classes are balanced, with five or six slices a patient; patients carry numbers that say nothing of their
    class. `workers` processes draw (default: one a processor). The folder appears whole or not at all. One that
    is there already is returned at once if it was made with the same parameters. Raises LungkitError if it holds
    anything else, or for fewer than one slice a class.
    """
    if n_slices < len(CLASSES) or seed < 0 or not 64 <= size <= 1024:
        raise LungkitError(
            f"phantom of {n_slices} slices, seed {seed}, {size} pixels; accepted: {len(CLASSES)} or more slices, "
            "a seed from 0, 64 to 1024 pixels"
        )
    folder = Path(folder)
    parameters = {
        "name": "phantom",
        "synthetic": True,
        "note": SYNTHETIC,
        "version": VERSION,
        "classes": list(CLASSES),
        "n_slices": n_slices,
        "seed": seed,
        "size": size,
    }
    if _made_before(folder, parameters):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / "slices").mkdir(parents=True)
        (draft / "masks").mkdir()
        jobs = (delayed(_write_patient)(draft, *patient, seed, size) for patient in _patients(n_slices, seed))
        written = Parallel(n_jobs=workers or os.cpu_count(), return_as="generator_unordered")(jobs)
        rows = []
        with progress.bar(total=n_slices, label="phantom", unit="slice") as bar:
            for of_patient in written:
                rows += of_patient
                bar.update(len(of_patient))
        with (draft / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["file", "label", "patient_id", "split", "source", "mask"])
            table.writerows(sorted(rows))
        (draft / "dataset.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(_README.format(**parameters), encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:  # someone else made the folder meanwhile
            if not _made_before(folder, parameters):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


_README = """# Phantom: synthetic chest CT

**Synthetic.** Computer-drawn images, not of patients and not made from images of patients. Nothing learned
or measured here says anything about people. {n_slices} slices of {size}x{size} pixels, seed {seed}, drawing
version {version}.

- `slices/`: DICOM CT, JPEG 2000 lossless, Hounsfield units in steps of 4
- `masks/`: lesion masks (0 or 255), for slices that hold a lesion
- `labels.csv`: file, label, patient_id, split (empty), source, mask
- `dataset.json`: the parameters that this folder was made with
"""


def _made_before(folder: Path, parameters: dict) -> bool:
    """Whether `folder` holds this very data set; False if absent or empty, LungkitError if it holds another."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        there = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise LungkitError(f"{folder} exists and is no phantom data set; give a new or an empty folder")
    differing = [key for key in parameters if there.get(key) != parameters[key]]
    if differing:
        told = ", ".join(f"{key} {there.get(key)} instead of {parameters[key]}" for key in differing)
        raise LungkitError(f"{folder} holds another data set ({told}); give another folder, or delete it")
    return True


def _patients(n_slices: int, seed: int) -> list[tuple[str, str, int]]:
    """(patient_id, label, slices) of each patient; the numbers are dealt out at random over the classes."""
    patients = []
    for place, label in enumerate(CLASSES):
        slices = n_slices // len(CLASSES) + (place < n_slices % len(CLASSES))
        number = math.ceil(slices / SLICES_A_PATIENT)
        patients += [(label, slices // number + (k < slices % number)) for k in range(number)]
    order = np.random.default_rng(seed).permutation(len(patients))
    return [(f"P{place + 1:04d}", *patients[k]) for place, k in enumerate(order)]


def _write_patient(folder: Path, patient_id: str, label: str, slices: int, seed: int, size: int) -> list[tuple]:
    """Draw one patient into the data set; returns the rows of labels.csv. Runs in a worker process."""
    rows = []
    for drawn in make_patient(patient_id, label, seed, slices, size):
        name = f"{patient_id}_{drawn.index + 1:02d}"
        write_dicom(drawn, folder / "slices" / f"{name}.dcm")
        mask = ""
        if drawn.lesion.any():
            mask = f"masks/{name}.png"
            Picture.fromarray(drawn.lesion).save(folder / mask)
        rows.append((f"slices/{name}.dcm", label, patient_id, "", "phantom", mask))
    return rows
