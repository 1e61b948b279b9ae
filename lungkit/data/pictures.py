"""PNG, JPEG and TIFF, by the rules in lungkit.data.images."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL import ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin

from lungkit.data import deep_colour, tiff
from lungkit.data.image import (
    Box,
    Broken,
    Image,
    check_size,
    luminance,
    placed,
    resized,
    square,
    square_shape,
    squared_note,
)

# Not PIL.Image.open: for it, a JPEG followed by a preview (MPO) is several pictures.
_Opener = Callable[[BinaryIO], ImageFile.ImageFile]
_READERS: dict[str, _Opener] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": tiff.opened,
}
_END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_HIERARCHICAL = dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG")
_ARITHMETIC = dict.fromkeys((0xC9, 0xCA, 0xCB), "JPEG with arithmetic coding")
_UNUSUAL = {0xC3: "lossless JPEG", 0xF7: "JPEG-LS"} | _HIERARCHICAL | _ARITHMETIC  # by the marker of their frame
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # the other three start tables
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: np.rot90,
}
# A smaller scale for a JPEG must leave at least this many of its pixels for one pixel of the tensor. With 2 instead of
# 1, the difference from a full decoding is a third, for a tenth more time (bench/README.md).
_REDUCED_AT_LEAST = 2
_MOST_SCANS = 100  # of a JPEG; a progressive one has about ten, and ten thousand would take minutes


def opened(stream: BinaryIO, kind: str) -> ImageFile.ImageFile:
    """The picture after its header was read and checked; no pixel is decoded. kind: "PNG", "JPEG" or "TIFF"."""
    try:
        picture = _READERS[kind](stream)
    except Broken:
        raise
    except Exception as error:
        raise _unreadable(stream, kind, error, "header") from error
    check_size(*picture.size)
    if isinstance(picture, tiff.Tiff):
        tiff.check_tile(picture)
    if kind == "PNG" and getattr(picture, "is_animated", False):
        raise Broken("more than one picture in the file", "Save the one to be read as a file of its own.")
    return picture


def _unreadable(stream: BinaryIO, kind: str, error: Exception, part: str) -> Broken:
    """Not supported, truncated, or damaged. Pillow rarely says which; a file without its end is truncated."""
    stream.seek(0)
    content = stream.read()
    if "truncated" in str(error).lower() or _END_MARKS.get(kind, b"") not in content:
        return Broken("truncated: the file ends before the picture does", "Copy or download it again.")
    if kind == "JPEG" and (unusual := _unusual_jpeg(content, error)):
        return Broken(f"not supported: {unusual}", "Save it as PNG or as a usual JPEG of 8 bits.")
    return Broken(f"damaged: its {part} cannot be decoded", "Export the image again.")


def _unusual_jpeg(content: bytes, error: Exception) -> str:
    """The kind of JPEG, if it is one that Pillow cannot decode; otherwise empty."""
    if found := re.search(r"cannot handle (\d+)-(bit|layer)", str(error)):
        return f"JPEG of {found[1]} {'bits' if found[2] == 'bit' else 'colours'}"
    place = 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker in _FRAMES:
            return _UNUSUAL.get(marker, "")
        place += 2 + length
    return ""


def _orientation(picture: ImageFile.ImageFile) -> int:
    # PNG's own getexif decodes the whole picture to read what follows it; the base class reads only the header.
    stated = PIL.Image.Image.getexif(picture).get(0x0112, 1)
    return stated if stated in _UPRIGHT else 1


def upright_size(picture: ImageFile.ImageFile) -> tuple[int, int]:
    """(width, height) after the EXIF orientation, of square pixels."""
    return square_shape(_upright_shape(picture), *_spacing(picture))[::-1]


def _upright_shape(picture: ImageFile.ImageFile) -> tuple[int, int]:
    """(height, width) after the EXIF orientation; a TIFF's size is upright already."""
    turned = _orientation(picture) in _TURNED and picture.format != "TIFF"
    return picture.size if turned else picture.size[::-1]


def _spacing(picture: ImageFile.ImageFile) -> tuple[float, float]:
    """Distances between rows and between columns of the upright picture, in any unit; 0 if the file gives none."""
    rows, columns = tiff.spacing(picture) if isinstance(picture, tiff.Tiff) else _stated_spacing(picture)
    return (columns, rows) if _orientation(picture) in _TURNED else (rows, columns)


def _stated_spacing(picture: ImageFile.ImageFile) -> tuple[float, float]:
    stated = picture.info.get("jfif_density") or picture.info.get("aspect")
    if not stated and picture.format == "PNG":
        stated = picture.info.get("dpi")
    if not stated:  # Pillow takes the resolution of one axis in the EXIF data for both
        exif = PIL.Image.Image.getexif(picture)
        stated = exif.get(282), exif.get(283)
    return tiff.spacing_of(*stated)


def read(stream: BinaryIO, kind: str, file: str) -> Image:
    """The image in a PNG, JPEG or TIFF stream; `file` is its name."""
    picture = opened(stream, kind)
    spacing, mode = _spacing(picture), picture.mode
    grey = _grey(picture, stream, kind)
    pixels = square(grey, *spacing)
    tags = {"format": kind, "mode": mode, "rows": str(grey.shape[0]), "columns": str(grey.shape[1])}
    if note := squared_note(grey.shape, pixels.shape):
        tags["note"] = note
    return Image(pixels, "intensity", "", file, tags)


def _grey(picture: ImageFile.ImageFile, stream: BinaryIO, kind: str) -> np.ndarray:
    """float32 0..1 (height, width), upright."""
    load = partial(_loaded, stream=stream, kind=kind)
    if deep_colour.is_deep(picture):
        stream.seek(0)
        return deep_colour.grey(picture, opened(stream, kind), load)
    key, mode = _transparent(picture), picture.mode
    loaded = load(picture)
    samples = picture.values(loaded) if isinstance(picture, tiff.Tiff) else np.asarray(loaded)
    if mode.startswith(("I", "F")):
        grey = deep_colour.on_black(samples, None if key is None else samples != key)
        return 1 - grey if isinstance(picture, tiff.Tiff) and picture.min_is_white else grey
    if kind == "TIFF" and mode == "L":
        return samples.astype(np.float32) / 255
    return np.asarray(luminance(loaded)) / np.float32(255)


def _transparent(picture: ImageFile.ImageFile) -> Any:
    """The transparent value of a PNG (tRNS); one of 2 or 4 bits as Pillow scales it to 8."""
    key = picture.info.get("transparency")
    if isinstance(key, int) and picture.tile and picture.tile[0].args in ("L;2", "L;4"):
        key = picture.info["transparency"] = key * 255 // (2 ** int(picture.tile[0].args[-1]) - 1)
    return key


def _loaded(picture: ImageFile.ImageFile, stream: BinaryIO, kind: str) -> PIL.Image.Image:
    """Decoded and upright."""
    _orientation(picture)  # Pillow keeps this one, although another may follow the pixels
    _decode(picture, stream, kind)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _check_scans(stream: BinaryIO) -> None:
    """Refuse too many scans, from the first scan's header on: libjpeg may process the whole picture for each."""
    start = stream.tell()
    content = stream.read()
    stream.seek(start)
    # To look for the end as well takes as long again, and matters only where there are many.
    scan = b"\xff\xda"
    if content.count(scan) >= _MOST_SCANS and content.count(scan, 0, content.find(_END_MARKS["JPEG"])) >= _MOST_SCANS:
        raise Broken(f"damaged: more than {_MOST_SCANS} scans", "Export the image again, or convert it to PNG.")


def _decode(picture: ImageFile.ImageFile, stream: BinaryIO, kind: str) -> None:
    if kind == "JPEG":
        _check_scans(stream)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in this process may have turned it on
    try:
        picture.load()
    except Exception as error:
        raise _unreadable(stream, kind, error, "content") from error


@dataclass(frozen=True, eq=False)
class EightBit:
    """A decoded PNG or JPEG of at most 8 bits, which `fitted` scales without an array of the whole picture."""

    stored: PIL.Image.Image  # grey (mode L): not turned upright, pixels not square
    box: Box | None  # the part of it that the picture covers; None: all
    shape: tuple[int, int]  # (height, width) of the whole picture: upright, of square pixels
    orientation: int  # EXIF's
    note: str  # as in the tags of an Image

    def fitted(self, shape: tuple[int, int], curve: np.ndarray) -> np.ndarray:
        """float32 of `shape` (height, width), upright. curve: float32 (256,), what each stored value becomes."""
        stored = shape[::-1] if self.orientation in _TURNED else shape
        return _UPRIGHT[self.orientation](resized(self.stored.point(curve.tolist(), "F"), stored, self.box))


def eight_bit(
    stream: BinaryIO, kind: str, size: tuple[int, int] | None = None, *, only_reduced: bool = False
) -> EightBit | None:
    """A PNG or JPEG for a tensor of `size` (height, width); None if `read` must read it.

    With a size, a JPEG is decoded at the smallest scale that is enough for it: libjpeg leaves out the finer waves of
    each 8 x 8 block, which saves much of the time. only_reduced: None if that is full scale. Files are refused by the
    rules of `read`.
    """
    if kind == "TIFF":
        return None
    picture = opened(stream, kind)
    upright, shape, orientation = _upright_shape(picture), upright_size(picture)[::-1], _orientation(picture)
    box = _drafted(picture, shape, size) if kind == "JPEG" and size else None
    many_bits = picture.mode.startswith(("I", "F")) or deep_colour.is_deep(picture)
    if box is None and (only_reduced or many_bits or upright != shape):
        return None
    _transparent(picture)
    _decode(picture, stream, kind)
    return EightBit(luminance(picture), box, shape, orientation, squared_note(upright, shape))


def _drafted(picture: ImageFile.ImageFile, shape: tuple[int, int], size: tuple[int, int]) -> Box | None:
    """Have a JPEG decoded at a smaller scale; the part of the pixels that it covers. None: full scale is needed."""
    height, width = (_REDUCED_AT_LEAST * (place.stop - place.start) for place in placed(shape, size))
    whole, turned = picture.size, _orientation(picture) in _TURNED
    drafted = picture.draft("", (height, width) if turned else (width, height))
    return None if picture.size == whole or not drafted else drafted[1]
