"""PNG, JPEG and TIFF: the rules for their values head lungkit.data.images."""

from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL import ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin  # noqa: F401 (they register themselves)

from lungkit.data.image import MAX_PIXELS, Broken, Image, check_size, luminance, stretched

_END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}


def opened(stream: BinaryIO, kind: str) -> PIL.Image.Image:
    """The picture with its header read and checked; no pixel is decoded. kind: "PNG", "JPEG" or "TIFF"."""
    try:
        picture = PIL.Image.open(stream, formats=[kind])
    except PIL.Image.DecompressionBombError as error:
        raise Broken("too many pixels", f"At most {MAX_PIXELS // 10**6} million pixels are decoded.") from error
    except Exception as error:
        raise _cut_or_damaged(stream, kind, error) from error
    check_size(*picture.size)
    if kind == "TIFF":  # libtiff sets aside a whole tile, whatever the picture's size
        _check_tile(picture)
    if getattr(picture, "is_animated", False) or getattr(picture, "n_frames", 1) > 1:
        raise Broken("more than one picture in the file", "Save the one to be read as a file of its own.")
    return picture


def _check_tile(picture: PIL.Image.Image) -> None:
    tile = int(picture.tag_v2.get(322, 1)) * int(picture.tag_v2.get(323, 1))
    if tile > MAX_PIXELS:
        raise Broken("too many pixels: in one tile", f"At most {MAX_PIXELS // 10**6} million pixels are decoded.")


def _cut_or_damaged(stream: BinaryIO, kind: str, error: Exception) -> Broken:
    """Pillow rarely says which; a file without its closing mark was cut."""
    stream.seek(0)
    if "truncated" in str(error).lower() or _END_MARKS.get(kind, b"") not in stream.read():
        return Broken("truncated: the file ends before the picture does", "Copy or download it again.")
    part = "header" if isinstance(error, PIL.UnidentifiedImageError) else "content"
    return Broken(f"damaged: its {part} cannot be decoded", "Export the image again.")


def upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation; a TIFF already answers so."""
    width, height = picture.size
    # PNG's own getexif decodes the picture to look behind it; the base class reads what the header held.
    turned = PIL.Image.Image.getexif(picture).get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if turned and picture.format != "TIFF" else (width, height)


def read(stream: BinaryIO, kind: str, file: str) -> Image:
    """The image in a PNG, JPEG or TIFF stream; `file` is its name."""
    picture = opened(stream, kind)
    mode = picture.mode
    upright_size(picture)  # fixes the orientation before the decoder can find another one behind the pixels
    min_is_white = kind == "TIFF" and picture.tag_v2.get(262) == 0
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in this process may have turned it on
    try:
        picture.load()
    except Exception as error:
        raise _cut_or_damaged(stream, kind, error) from error
    picture = ImageOps.exif_transpose(picture)
    if mode.startswith(("I", "F")):
        pixels = stretched(np.asarray(picture))
        pixels = 1 - pixels if min_is_white else pixels  # Pillow inverts 8-bit TIFFs of this kind, deeper ones not
    else:
        pixels = luminance(picture).astype(np.float32) / 255
    tags = {"format": kind, "mode": mode, "rows": str(pixels.shape[0]), "columns": str(pixels.shape[1])}
    return Image(pixels, "intensity", "", file, tags)
