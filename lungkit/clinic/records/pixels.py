"""Pixels as the records keep them: encoded as a new PNG, which contains nothing of an upload except its picture.

HU are stored to the unit, in 16 bits from -1024 up. Intensities are stored in 8 bits, as a screen shows them. The long
side of a stored picture has at most LONGEST_SIDE pixels.
"""

import hashlib
import io
import zlib
from collections.abc import Mapping

import numpy as np
import PIL.Image

from lungkit.data import images, preprocess
from lungkit.data.dicom import AIR
from lungkit.errors import LungkitError

LONGEST_SIDE = 2048
THUMBNAIL_SIDE = 160
LUNG = (-600.0, 1500.0)  # level, width in HU, for thumbnails
_HEAT_SIDE = 1024  # of a stored heat map; models' own maps are far smaller
_XRAYS = ("CR", "DX", "DR", "RG")


class PixelsDamaged(LungkitError):
    """Pixels in the records that are no longer a picture."""


def kind_of(image: images.Image) -> str:
    """ "CT", "X-ray", or "image" if the file does not say."""
    if image.modality == "CT" or image.units == "HU":
        return "CT"
    return "X-ray" if image.modality in _XRAYS else "image"


def image_of(values: np.ndarray, units: str, kind: str, tags: Mapping[str, str]) -> images.Image:
    """An image as the reader gave it, of what the records keep: its pixels as `decode` has them, its kind and tags."""
    modality = {"CT": "CT", "X-ray": "DX"}.get(kind, "")
    return images.Image(values, "HU" if units == "HU" else "intensity", modality, "", dict(tags))


def encode(image: images.Image) -> bytes:
    """The image's pixels as PNG, for `decode`."""
    if image.units == "HU":
        above_air = image.pixels + np.float32(0.5 - AIR)  # half a unit more, because the cast rounds down
        return _png(_reduced(np.clip(above_air, 0, 65535, out=above_air).astype(np.uint16), LONGEST_SIDE))
    return _png(_reduced(_eight_bits(image.pixels), LONGEST_SIDE))


def decode(png: bytes, units: str) -> np.ndarray:
    """float32 (height, width) in the units that were encoded: HU, or intensity 0..1. Raises PixelsDamaged."""
    stored = _stored(png)
    if units == "HU":
        return stored.astype(np.float32) + np.float32(AIR)
    return stored.astype(np.float32) / np.float32(255)


def digest(values: np.ndarray, units: str) -> str:
    """SHA-256 over units, shape and values of pixels, float32 (height, width), as `decode` has them."""
    head = f"{units} {values.shape[0]} {values.shape[1]} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


def encode_heat(heat: np.ndarray) -> bytes:
    """Heat maps (classes, height, width) in 0..1 as one 8-bit PNG, one class below the other."""
    small = np.stack([_reduced(_eight_bits(of_class), _HEAT_SIDE) for of_class in heat])
    return _png(small.reshape(-1, small.shape[-1]))


def decode_heat(png: bytes, classes: int) -> np.ndarray:
    """float32 (classes, height, width) in 0..1. Raises PixelsDamaged."""
    stored = _stored(png)
    if stored.shape[0] % classes:
        raise PixelsDamaged(f"the heat maps in the records do not match {classes} classes; restore a backup")
    return stored.reshape(classes, -1, stored.shape[1]).astype(np.float32) / np.float32(255)


def thumbnail(png: bytes, units: str) -> bytes:
    """A PNG of at most THUMBNAIL_SIDE pixels a side that any screen shows: CT through the lung window."""
    if units == "HU":
        return _png(_eight_bits(preprocess.window_level(_reduced(decode(png, units), THUMBNAIL_SIDE), *LUNG)))
    return _png(_reduced(_stored(png), THUMBNAIL_SIDE))


def _eight_bits(intensity: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.rint(np.clip(intensity, 0, 1) * np.float32(255))
    return levels.astype(np.uint8)


def _reduced(values: np.ndarray, longest: int) -> np.ndarray:
    """At most `longest` pixels on the long side, each the mean of those it covers; smaller pictures stay unchanged."""
    height, width = values.shape
    if max(height, width) <= longest:
        return values
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = PIL.Image.fromarray(np.ascontiguousarray(values))
    return np.asarray(picture.resize(size, PIL.Image.Resampling.BOX))


def _png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    # Most of such a picture is noise; searching it for repetitions takes three times as long and saves 5 %.
    PIL.Image.fromarray(values).save(stream, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return stream.getvalue()


def _stored(png: bytes) -> np.ndarray:
    try:
        with PIL.Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise PixelsDamaged("the pixels in the records are damaged; restore a backup") from error
