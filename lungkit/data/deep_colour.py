"""Colour, and grey with transparency, of 16 bits a sample. Pillow keeps one byte of each, so it decodes twice."""

import re
import sys
from collections.abc import Callable

import numpy as np
import PIL.Image
from PIL.ImageFile import ImageFile

from lungkit.data.image import Broken, stretched
from lungkit.data.tiff import Tiff

Load = Callable[[ImageFile], PIL.Image.Image]  # decodes an opened picture and turns it upright

_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LUMINANCE = np.float32(0.299), np.float32(0.587), np.float32(0.114)  # ITU-R 601, as for 8 bits


def is_deep(picture: ImageFile) -> bool:
    """Whether an opened picture, not loaded yet, is one of them."""
    if not picture.tile or picture.mode.startswith("I"):
        return False
    return _is_grey_and_alpha(picture) or re.search(";16[BLN]$", _raw(picture)) is not None


def grey(picture: ImageFile, again: ImageFile, load: Load) -> np.ndarray:
    """float32 0..1 (height, width): the luminance, stretched as grey of 16 bits is; transparent parts are black.

    picture, again: the same file, opened twice. load: gives the upright picture of an opened one.
    """
    key = picture.info.get("transparency")
    if isinstance(picture, Tiff) and picture.tile[0].codec_name == "libtiff" and picture.tag_v2.get(284) == 2:
        raise Broken(
            "not supported: TIFF with 16-bit colours in separate planes, compressed",
            "Save it with the colours of a pixel together, or without compression.",
        )
    samples = _pairs(picture, load) if _is_grey_and_alpha(picture) else _both_bytes(picture, again, load)
    alpha = (samples != key).any(axis=-1) if key is not None else _alpha(samples, picture)
    return on_black(_light(samples, picture.mode), alpha, isinstance(picture, Tiff) and picture.multiplied)


def on_black(values: np.ndarray, alpha: np.ndarray | None, multiplied: bool = False) -> np.ndarray:
    """float32 0..1: stretched by the visible values. alpha: 0..1. multiplied: the values contain alpha already."""
    if alpha is None or (alpha == 1).all():
        return stretched(values)
    shown = stretched(values, alpha > 0)
    return shown if multiplied else shown * alpha.astype(np.float32)


def _raw(picture: ImageFile) -> str:
    """Pillow's raw mode of the first tile."""
    args = picture.tile[0].args
    return args[0] if isinstance(args, tuple) else str(args)


def _is_grey_and_alpha(picture: ImageFile) -> bool:
    return _raw(picture) == "LA;16B" or getattr(picture, "grey_and_alpha", False)


def _show(picture: ImageFile, change: Callable[[str], str]) -> None:
    """Make the decoder unpack each tile by another raw mode."""
    picture.tile = [
        tile._replace(
            args=(change(tile.args[0]), *tile.args[1:]) if isinstance(tile.args, tuple) else change(str(tile.args))
        )
        for tile in picture.tile
    ]


def _pairs(picture: ImageFile, load: Load) -> np.ndarray:
    """Grey and alpha, uint16 (height, width, 2): unpacked as four bytes."""
    native = picture.tile[0].codec_name == "libtiff"
    big = sys.byteorder == "big" if native else not isinstance(picture, Tiff) or picture.tag_v2.prefix == b"MM"
    _show(picture, lambda raw: "RGBA")
    return np.ascontiguousarray(load(picture)).view(">u2" if big else "<u2")


def _both_bytes(picture: ImageFile, again: ImageFile, load: Load) -> np.ndarray:
    """uint16 (height, width, bands): the upper bytes from one decoding, the lower ones from another."""
    _show(picture, lambda raw: raw.replace("RGBa", "RGBA"))
    _show(again, lambda raw: raw[:-1].replace("RGBa", "RGBA") + _OTHER_BYTE[raw[-1]])
    samples = np.asarray(load(picture)).astype(np.uint16)
    samples <<= 8
    samples |= np.asarray(load(again))
    return samples


def _alpha(samples: np.ndarray, picture: ImageFile) -> np.ndarray | None:
    """Alpha, 0..1, if there is one."""
    has = picture.transparent if isinstance(picture, Tiff) else samples.shape[-1] in (2, 4)
    return samples[..., -1].astype(np.float32) / np.float32(65535) if has else None


def _light(samples: np.ndarray, mode: str) -> np.ndarray:
    if samples.shape[-1] == 2:
        return samples[..., 0]
    if mode == "CMYK":
        paper = 65535 - samples
        return np.asarray(_luminance(paper) * paper[..., 3] / np.float32(65535))
    return _luminance(samples)


def _luminance(samples: np.ndarray) -> np.ndarray:
    """float32, band by band: the whole picture in floats would take three times the memory."""
    light = np.zeros(samples.shape[:2], np.float32)
    for band, weight in enumerate(_LUMINANCE):
        light += samples[..., band] * weight
    return light
