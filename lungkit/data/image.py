"""What the reader returns, how it refuses, and the limits for every kind of file."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import PIL.Image

from lungkit.errors import LungkitError

MAX_PIXELS = 40_000_000  # the largest chest detectors give 4,300 x 4,300
MIN_SIDE = 24  # pixels; PneumoniaMNIST's 28 is the smallest in use
_SQUARE_ENOUGH = 1.01  # ratio of a pixel's sides that is ignored: rounding in headers
_BELIEVED = 10.0  # a header with a larger ratio is wrong; thick reformatted CT reaches 7


Box = tuple[float, float, float, float]  # left, top, right, bottom


class ImageRefused(LungkitError):
    """A file that is refused: which `file`, what `rule` it broke, and the `remedy`. Reads "FILE: RULE. REMEDY".

    A rule starts with a fixed phrase; figures may follow after a colon: "too many pixels: 90000 x 90000".
    """

    def __init__(self, file: str, rule: str, remedy: str):
        super().__init__(file, rule, remedy)
        self.file, self.rule, self.remedy = file, rule, remedy

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}. {self.remedy}"


class Broken(Exception):
    """A rule and its remedy, raised to where the file's name is known."""


NOT_FINITE = "damaged: pixel values are not finite numbers", "Export the image again."


@dataclass(frozen=True, eq=False)
class Image:
    """One image as it was measured, before any windowing of ours."""

    pixels: np.ndarray  # float32 (height, width); HU, or intensity 0..1 where bright is dense
    units: Literal["HU", "intensity"]
    modality: str  # as DICOM names it: "CT", "CR", "DX", "OT", ...; "" for PNG, JPEG and TIFF
    file: str  # its name, for messages
    # Header values that identify no one, and a note on how it was read; for pictures format, mode, rows, columns.
    tags: dict[str, str]
    # The file itself if it is a JPEG: a tensor may be made by decoding it at a smaller scale. Copies of this object do
    # not have it, because their pixels may differ.
    jpeg: bytes | None = field(default=None, init=False, repr=False)


OLDEST_SHOWN = 90  # years: there are so few older people that an age could say who it is
DUMMY_DATES = ("19000101", "18990101")  # birth dates that systems write for "not known"


@dataclass(frozen=True)
class Stated:
    """What a file states of its patient and its view, as DICOM names it; empty where it states nothing."""

    age: float | None = None  # years
    view: str = ""  # ViewPosition
    body_part: str = ""  # BodyPartExamined
    modality: str = ""  # Modality
    orientation: str = ""  # PatientOrientation; of a CT by ImageOrientationPatient


NOTHING_STATED = Stated()


def years_in(age: str) -> float | None:
    """A DICOM age such as "047Y" or "011M" (PS3.5: days, weeks, months or years) in years; None where it is none.

    >>> years_in("047Y"), years_in("006M"), years_in("old")
    (47.0, 0.5, None)
    """
    number, unit = age.strip()[:-1], age.strip()[-1:]
    in_a_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}.get(unit)
    return int(number) / in_a_year if in_a_year and number.isascii() and number.isdecimal() else None


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Broken(
            f"too many pixels: {width} x {height}",
            f"At most {MAX_PIXELS // 10**6} million pixels are decoded; reduce it.",
        )
    if min(width, height) < MIN_SIDE:
        raise Broken(f"too small: {width} x {height}", f"Each side needs at least {MIN_SIDE} pixels.")


def can_be_spacings(row_spacing: float, column_spacing: float) -> bool:
    """Whether these distances between pixels are possible: finite, above 0, and at most ten times each other."""
    finer, coarser = sorted((row_spacing, column_spacing))
    return bool(np.isfinite((finer, coarser)).all() and finer > 0 and coarser <= finer * _BELIEVED)


def placed(shape: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a tensor of `size` that a picture of `shape`, both (height, width), takes up.

    It is the largest picture of the same aspect (at least 1 pixel a side), in the middle.
    """
    scale = min(whole / part for whole, part in zip(size, shape, strict=True))

    def in_the_middle(part: int, whole: int) -> slice:
        side = min(max(1, round(part * scale)), whole)
        start = (whole - side) // 2
        return slice(start, start + side)

    return in_the_middle(shape[0], size[0]), in_the_middle(shape[1], size[1])


def square_shape(shape: tuple[int, int], row_spacing: float, column_spacing: float) -> tuple[int, int]:
    """(height, width) of a picture of `shape` after its pixels were made square; the coarser axis grows.

    The spacings are the distances between rows and between columns, in any unit. The shape does not change if they
    differ by at most 1 %, or are impossible. A result of more than MAX_PIXELS is scaled down to that number.
    """
    finer = min(row_spacing, column_spacing)
    if not can_be_spacings(row_spacing, column_spacing) or max(row_spacing, column_spacing) <= finer * _SQUARE_ENOUGH:
        return shape
    height, width = shape[0] * row_spacing / finer, shape[1] * column_spacing / finer
    fits = min(1.0, (MAX_PIXELS / (height * width)) ** 0.5)
    return max(1, int(height * fits + 0.5)), max(1, int(width * fits + 0.5))


def squared_note(was: tuple[int, int], now: tuple[int, int]) -> str:
    """A sentence on a change of shape, both (height, width); empty if they are the same."""
    if was == now:
        return ""
    return f"scaled from {was[1]} x {was[0]} to {now[1]} x {now[0]}, as its pixels are not square"


def square(pixels: np.ndarray, row_spacing: float, column_spacing: float) -> np.ndarray:
    """`pixels`, scaled to square_shape."""
    shape = square_shape(pixels.shape, row_spacing, column_spacing)
    if shape == pixels.shape:
        return pixels
    return resized(pixels, shape)


def resized(pixels: np.ndarray | PIL.Image.Image, shape: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """float32 of `shape` (height, width), by the triangle filter, widened when reducing: no aliasing, no ringing.

    pixels: an array, or a picture of floats (mode F). box: the part to take, which may start and end within pixels;
    default: all.
    """
    if isinstance(pixels, np.ndarray):
        pixels = PIL.Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    return np.asarray(pixels.resize(shape[::-1], PIL.Image.Resampling.BILINEAR, box))


def luminance(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 8 bits (mode L); transparent parts lie on black."""
    if picture.mode == "La":  # multiplied by its alpha: it lies on black already
        return picture.getchannel("L")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "black"), picture)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return picture if picture.mode == "L" else picture.convert("L")


def stretched(values: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    """float32 0..1: the 0.5 % and 99.5 % percentiles of the usable values become 0 and 1 (a constant image: 0)."""
    sample = values if usable is None else values[usable]
    if not sample.size:
        return np.zeros(values.shape, np.float32)
    low, high = np.percentile(sample, (0.5, 99.5))
    if not np.isfinite((low, high)).all():
        raise Broken(*NOT_FINITE)
    if not low < high:  # nearly all of it is one value, as in a scanned line drawing
        low, high = sample.min(), sample.max()
    return between(values, float(low), float(high))


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32 0..1, linear from `low` to `high` and clipped."""
    if not low < high:
        return np.zeros(values.shape, np.float32)
    exact = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    share = (values.astype(exact) - exact.type(low)) / exact.type(high - low)
    return np.asarray(np.clip(share, 0, 1), np.float32)
