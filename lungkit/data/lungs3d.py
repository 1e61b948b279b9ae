"""The lungs in a CT volume by their Hounsfield units, without a model: where they are, how large, and how dense.

The steps are those of Hu, Hoffman and Reinhardt (IEEE Trans. Med. Imaging 20:490, 2001): a threshold between air and
tissue, connected components, large airways taken away, and a morphological closing that brings back vessels and lesions
at the pleura. The threshold is fixed half-way between lung and tissue: no disease moves it. Airways are dark
tubes in the middle of the body. Tissue with lung a little above and below it counts as lung, too: a consolidation of a
few slices. All of this is done on cells of about 2 mm, each the mean of its voxels, which saves time and lessens noise.

A consolidation that is wider than the closing and longer than the bridge, and that touches the chest wall or the
diaphragm, has the density of what it touches. It is left out, and so is fluid in the pleura.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

NEARLY_NONE = 0.1  # of the lungs' largest area in a slice
CELL_MM = 2.0  # about; a cell is of whole voxels
_MOST_CELLS = 256  # in a row or column of a slice
_MOST_VOXELS = 16  # in a row or column of a cell; a header may state any spacing
_TISSUE = -400  # HU; half-way between lung (-850) and muscle (50), where a wall is
_GAS = -950  # HU; the mean of a lung is above, that of air outside, in the bowel and in the table below
_AIRWAY = -940  # HU; the inside of the large airways is below
_AIRWAY_MM2 = 30.0, 1000.0  # their area in a slice
_AIRWAY_MM = 30.0  # how far they run through the slices, at least
_MIDDLE = 0.3  # of the body's width, around its middle: where the large airways are
_LEAST_MM2 = 1500.0  # the largest area of the lungs in a slice; gas in the bowel has less
_LEAST_PART = 0.05  # of the larger lung
_CLOSING_MM = 12.0  # radius
_BRIDGED_MM = 30.0  # between lung above and lung below; chosen on phantoms
_CROSS, _PLANE = ndimage.generate_binary_structure(3, 1), np.zeros((3, 3, 3), bool)
_PLANE[1] = ndimage.generate_binary_structure(2, 1)


class Spacing(NamedTuple):
    """Of slices, rows and columns, in mm."""

    slices: float
    rows: float
    columns: float


@dataclass(frozen=True, eq=False)
class Lungs:
    """Lungs in cells of some voxels each."""

    mask: np.ndarray  # bool (cells across slices, height, width)
    hu: np.ndarray  # float32, as the mask: the mean of each cell's voxels
    cell: tuple[int, int, int]  # voxels
    spacing: Spacing  # of voxels
    shape: tuple[int, int, int]  # of the volume, in voxels

    @property
    def millilitres(self) -> float:
        """The lungs' volume; 0 where none were found."""
        return float(self.mask.sum() * np.prod(self.cell) * np.prod(self.spacing) / 1000)

    @property
    def by_slice(self) -> np.ndarray:
        """The area of the lungs in each slice of the volume, mm²: float64 (slices,)."""
        area = self.mask.sum(axis=(1, 2)) * np.prod(self.cell[1:]) * np.prod(self.spacing[1:])
        return np.repeat(area, self.cell[0])[: self.shape[0]]

    @property
    def whole(self) -> bool:
        """Whether the series shows them all: its first and last slice have next to none of them."""
        area = self.by_slice
        return bool(area.any() and max(area[0], area[-1]) <= NEARLY_NONE * area.max())

    def share(self, low: float, high: float) -> float:
        """The share of the lungs whose density is from `low` up to below `high`, HU: 0..1; 0 without lungs."""
        inside = self.hu[self.mask]
        return float(((inside >= low) & (inside < high)).mean()) if len(inside) else 0.0

    def voxels(self) -> np.ndarray:
        """The mask in the volume's own voxels: bool, of its shape."""
        whole = self.mask
        for axis, count in enumerate(self.cell):
            whole = np.repeat(whole, count, axis)
        return np.asarray(whole[tuple(map(slice, self.shape))])


def find(slices: Iterable[np.ndarray], spacing: tuple[float, float, float]) -> Lungs:
    """The lungs of a volume.

    slices: of the same size (height, width), in HU, in order; a volume (slices, height, width), too. Each is looked at
    once, so they may be decoded meanwhile. spacing: of slices, rows and columns, in mm.
    Where there are no lungs, the mask is empty.
    """
    step, count, shape, cell = Spacing(*spacing), 0, (0, 0), (1, 1, 1)
    cells = list[np.ndarray]()
    for count, one in enumerate(slices, 1):
        if count == 1:
            shape = one.shape
            depth, *plane = (max(1, round(CELL_MM / each)) for each in step)
            high, wide = (
                max(min(fits, _MOST_VOXELS), -(-side // _MOST_CELLS)) for fits, side in zip(plane, shape, strict=True)
            )
            cell = depth, high, wide
        reduced, place = _reduced(one, cell[1], cell[2]), (count - 1) % cell[0]
        if place:
            cells[-1] += (reduced - cells[-1]) / (place + 1)
        else:
            cells.append(reduced)
    hu = np.stack(cells) if cells else np.zeros((0, 0, 0), np.float32)
    size = Spacing(*(count * each for count, each in zip(cell, step, strict=True)))
    return Lungs(_lungs(hu, size), hu, cell, step, (count, *shape))


def _reduced(one: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The mean of blocks of a slice, float32; those at its end may be smaller. What is no number counts as air."""
    hu = np.clip(one, -1024, 1000).astype(np.float32)
    if one.dtype.kind == "f":
        np.nan_to_num(hu, copy=False, nan=-1000)
    edge = [(0, -hu.shape[0] % rows), (0, -hu.shape[1] % columns)]
    hu = np.pad(hu, edge, mode="edge") if edge[0][1] or edge[1][1] else hu
    total = sum(hu[row::rows, column::columns] for row in range(rows) for column in range(columns))
    return np.asarray(total / np.float32(rows * columns), np.float32)


def _lungs(hu: np.ndarray, cell: Spacing) -> np.ndarray:
    """The mask of cells (float32, HU) of this size in mm."""
    if not hu.size:
        return np.zeros(hu.shape, bool)
    inside, middle = _inside(hu)
    airways = _airways(hu, inside, middle, cell)
    inside &= ~airways
    parts, sizes = _parts(inside, _CROSS)
    means = np.bincount(parts[inside], hu[inside], minlength=len(sizes) + 1)[1:] / sizes
    lung = means > _GAS
    lung &= sizes > _LEAST_PART * sizes[lung].max(initial=0)
    mask = np.concatenate([[False], lung])[parts]
    if mask.sum(axis=(1, 2)).max() * cell.rows * cell.columns < _LEAST_MM2:
        return np.zeros_like(mask)
    mask = _bridged(mask, cell)
    return np.asarray(_closed(mask, cell) & ~airways)


def _bridged(mask: np.ndarray, cell: Spacing) -> np.ndarray:
    """The mask with what lies between lung above and lung below, no farther apart than `_BRIDGED_MM`.

    A consolidation of a few slices has lung on both sides; the diaphragm has lung above only.
    """
    places = np.arange(len(mask), dtype=np.int32).reshape(-1, 1, 1)
    above = np.maximum.accumulate(np.where(mask, places, np.int32(-(10**6))), axis=0)
    below = np.minimum.accumulate(np.where(mask, places, np.int32(10**6))[::-1], axis=0)[::-1]
    return np.asarray((below - above - 1) * cell.slices <= _BRIDGED_MM)


def _parts(mask: np.ndarray, structure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the mask, numbered from 1, and the number of cells of each."""
    parts, count = ndimage.label(mask, structure)
    return parts, np.bincount(parts[mask], minlength=count + 1)[1:]


def _inside(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is air in the body; and which columns (width,) are its middle.

    The body is the largest piece of tissue, with what it surrounds in each slice. A slice with tissue at most of its
    edge shows a part of the body, which continues outside.
    """
    tissue = hu > _TISSUE
    pieces, sizes = _parts(tissue, _CROSS)
    if not len(sizes):
        return np.zeros_like(tissue), np.zeros(hu.shape[2], bool)
    body = pieces == 1 + sizes.argmax()
    around, count = ndimage.label(~body, _PLANE)
    edges = np.concatenate([around[:, 0], around[:, -1], around[..., 0], around[..., -1]], axis=1)
    outside = np.zeros(count + 1, bool)
    outside[edges[(edges == 0).mean(axis=1) <= 0.5]] = True
    body |= ~outside[around]
    columns = np.flatnonzero(body.any(axis=(0, 1)))
    half = _MIDDLE / 2 * (np.ptp(columns) + 1)
    return body & ~tissue, np.abs(np.arange(hu.shape[2]) - columns.mean()) <= half


def _airways(hu: np.ndarray, inside: np.ndarray, middle: np.ndarray, cell: Spacing) -> np.ndarray:
    """The trachea and the main bronchi with their walls: dark tubes in the middle that run through the slices."""
    parts, sizes = _parts(inside & (hu < _AIRWAY) & middle, _PLANE)
    area = sizes * cell.rows * cell.columns
    tubes = np.concatenate([[False], (area > _AIRWAY_MM2[0]) & (area < _AIRWAY_MM2[1])])[parts]
    pieces, count = ndimage.label(tubes, np.ones((3, 3, 3)))
    least = min(_AIRWAY_MM / cell.slices, len(hu) / 2)
    places = ndimage.find_objects(pieces)
    long = [number for number, place in enumerate(places, 1) if place[0].stop - place[0].start >= least]
    return np.asarray(ndimage.binary_dilation(np.isin(pieces, long), _PLANE)) if count else tubes


def _closed(mask: np.ndarray, cell: Spacing) -> np.ndarray:
    """The lungs of each side and slice closed by a disc, and their holes filled; never what is between the sides."""
    columns = mask.sum(axis=(0, 1))
    reach = np.flatnonzero(columns)
    if not len(reach):
        return mask
    third = (reach[-1] - reach[0]) // 3
    between = reach[0] + third + int(columns[reach[0] + third : reach[-1] - third + 1].argmin())
    for side in (mask[..., :between], mask[..., between:]):
        for one in side:
            if one.any():
                _close(one, cell)
    return mask


def _close(one: np.ndarray, cell: Spacing) -> None:
    """Close a slice (height, width), in place."""
    rim = [int(_CLOSING_MM / each) + 2 for each in cell[1:]]
    (place,) = ndimage.find_objects(one.astype(np.uint8))
    wide = np.pad(one[place], [(each, each) for each in rim])
    apart = ndimage.distance_transform_edt(~wide, cell[1:]) > _CLOSING_MM
    closed = ndimage.distance_transform_edt(~apart, cell[1:]) > _CLOSING_MM
    filled = ndimage.binary_fill_holes(closed | wide)
    one[place] = filled[rim[0] : -rim[0], rim[1] : -rim[1]]
