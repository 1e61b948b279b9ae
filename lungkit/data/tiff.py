"""TIFF: which page is the picture, depths that Pillow alone does not open, and the names of what is not supported."""

import re
from itertools import count, product
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL import ImagePalette, TiffImagePlugin

from lungkit.data.image import MAX_PIXELS, Broken

_COMPRESSION, _PHOTOMETRIC, _BITS, _SAMPLES, _PLANAR, _FORMAT, _EXTRA = 259, 262, 258, 277, 284, 339, 338
_STRIPS, _TILES, _COLOUR_MAP, _SUBFILE, _OLD_SUBFILE = 273, 324, 320, 254, 255
_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2
_WHITE_IS_ZERO = 0
_FAX = (2, 3, 4)  # compressions of black and white
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_MOST_PAGES = 100  # that are looked at to tell a picture from its thumbnails
_COLOURS = {
    2: "RGB", 3: "a palette", 4: "a transparency mask", 5: "CMYK", 6: "YCbCr", 8: "CIE L*a*b*", 9: "ICC L*a*b*",
    10: "ITU L*a*b*", 32803: "a camera's raw colours", 32844: "CIE Log2(L)", 32845: "CIE Log2(L) (u',v')",
}  # fmt: skip
_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
_SAVE_AS = "Save it as grey of 8 or 16 bits, in TIFF without compression or in PNG."

# Sample format and bits -> Pillow's mode and raw mode, where {} is for the order of bytes.
_GREY = {
    (_UNSIGNED, 12): ("I;16", "I;12"),
    (_UNSIGNED, 16): ("I;16", "I;16{}"),
    (_SIGNED, 16): ("I", "I;16{}S"),
    (_UNSIGNED, 32): ("I", "I;32{}"),
    (_SIGNED, 32): ("I", "I;32{}S"),
    (_FLOAT, 32): ("F", "F;32{}F"),
    (_FLOAT, 64): ("F", "F;64{}F"),
}
# Pillow's table names some of these for one order of bytes or one photometric interpretation only.
for (_prefix, _order), _photo in product(((b"II", ""), (b"MM", "B")), (0, 1)):
    for (_kind, _bits), (_mode, _raw) in (_GREY | {(_SIGNED, 8): ("L", "L" if _photo else "L;I")}).items():
        _key = (_prefix, _photo, (_kind,), 1, (_bits,), ())
        TiffImagePlugin.OPEN_INFO.setdefault(_key, (_mode, _raw.format(_order)))


class Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's reader, for more depths. Raises Broken for other pages and names what is not supported."""

    def _setup(self) -> None:
        """Prepare the decoding of the page whose tags were read."""
        tags = self.tag_v2
        self.photometric = tags.get(_PHOTOMETRIC)
        self.bits = max(_numbers(tags, _BITS, 1))
        self.sample_format = _numbers(tags, _FORMAT, _UNSIGNED)[0]
        self.grey_and_alpha = self._is_deep_grey_and_alpha()
        extra = _numbers(tags, _EXTRA, 0)
        self.multiplied = 1 in extra  # the colours, by the alpha
        self.transparent = self.multiplied or 2 in extra
        self._show_twin()
        if tags.get(_COMPRESSION, 1) not in TiffImagePlugin.COMPRESSION_INFO:
            raise Broken(f"not supported: TIFF compression {tags[_COMPRESSION]}", _SAVE_AS)
        try:
            super()._setup()
        except SyntaxError as error:
            if "mode" not in str(error):  # numbers that contradict each other
                raise
            raise Broken(f"not supported: {self._words()}", _SAVE_AS) from error
        if self.mode in ("LAB", "LA") and (self.mode == "LAB" or tags.get(_PLANAR) == 2):
            raise Broken(f"not supported: {self._words()}", _SAVE_AS)
        if tags.get(_PLANAR) == 2 and self.multiplied and self.bits == 8:
            self._mode = "RGBX"  # lies on black already
        self._mend_tiles()
        if self.mode == "P" and max(tags[_COLOUR_MAP]) < 256:  # the table holds 8 bits instead of 16
            self.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOUR_MAP]))

    def _is_deep_grey_and_alpha(self) -> bool:
        """Two samples of 16 bits in one pixel."""
        tags = self.tag_v2
        two = _numbers(tags, _BITS, 1) in ((16, 16), (16,)) and tags.get(_SAMPLES, 1) == 2
        return two and self.photometric == 1 and self.sample_format == _UNSIGNED and tags.get(_PLANAR, 1) == 1

    def _show_twin(self) -> None:
        """Replace the tags of a layout that Pillow does not know by those of one with the same number of bits."""
        tags = self.tag_v2
        if self.photometric is None and tags.get(_COMPRESSION) not in _FAX:
            tags[_PHOTOMETRIC] = 1  # as libtiff has it; Pillow would take 0 for white
        if self.sample_format == _UNDEFINED or (self.sample_format, self.bits) == (_FLOAT, 16):
            tags[_FORMAT] = (_UNSIGNED,) * len(_numbers(tags, _FORMAT, _UNSIGNED))
        if self.grey_and_alpha:
            tags[_PHOTOMETRIC], tags[_SAMPLES], tags[_BITS], tags[_EXTRA] = 2, 4, (8, 8, 8, 8), (2,)
        if tags.get(_PLANAR) == 2:
            self._leave_out_unused_planes()

    def _leave_out_unused_planes(self) -> None:
        """Pillow skips planes of no stated use, but not their offsets, and it fails on a single plane."""
        tags = self.tag_v2
        samples, unused = tags.get(_SAMPLES, 1), 0 if self.transparent else len(tags.get(_EXTRA, ()))
        for offsets in (_STRIPS, _TILES):
            if offsets in tags:
                tags[offsets] = tags[offsets][: round(len(tags[offsets]) * (1 - unused / samples))]
        if samples - unused == 1:
            tags[_PLANAR], tags[_SAMPLES], tags[_BITS], tags[_EXTRA] = 1, 1, (self.bits,), ()

    def _mend_tiles(self) -> None:
        tags, tiles = self.tag_v2, []
        for tile in self.tile:
            raw, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            if tile.codec_name == "libtiff":  # gives samples in the machine's order of bytes
                raw = re.sub("^RGBa", self.mode, raw) if self.mode == "RGBX" else raw
                raw = re.sub(r"^([IF]);(16|32|64)B?([SF]?)$", r"\1;\2N\3", raw)
            elif len(raw) == 1 and tags.get(_PLANAR) == 2:  # one plane of several
                raw = (self.mode[3:] if raw == "a" else raw) + (
                    "" if self.bits != 16 else ";16B" if tags.prefix == b"MM" else ";16L"
                )
            tiles.append(tile._replace(args=(raw, *rest)))
        self.tile = tiles

    def _words(self) -> str:
        """What the page holds, for a message."""
        tags = self.tag_v2
        bits = " + ".join(map(str, _numbers(tags, _BITS, 1)))
        kind = _KINDS.get(self.sample_format, f"sample format {self.sample_format}")
        colours = _COLOURS.get(self.photometric or 0)
        if colours is None and self.photometric not in (None, 0, 1):
            colours = f"photometric interpretation {self.photometric}"
        samples = tags.get(_SAMPLES, 1)
        return f"TIFF with {samples} {kind} sample{'s' * (samples != 1)} of {bits} bits" + (
            f" in {colours}" if colours else ""
        )

    @property
    def min_is_white(self) -> bool:
        """Whether 0 is white in the loaded samples: Pillow inverts those of 8 bits and less itself."""
        return self.photometric == _WHITE_IS_ZERO and self.mode not in ("1", "L")

    def values(self, loaded: PIL.Image.Image) -> np.ndarray:
        """The samples of `loaded`, which is this picture upright, as the numbers that the file means."""
        samples = np.asarray(loaded)
        if (self.sample_format, self.bits) == (_FLOAT, 16):
            return samples.astype(np.uint16).view(np.float16).astype(np.float32)
        if (self.sample_format, self.bits) == (_UNSIGNED, 32) and samples.dtype == np.int32:
            return samples.view(np.uint32)
        if (self.sample_format, self.bits, self.mode) == (_SIGNED, 8, "L"):
            return samples ^ np.uint8(128)  # the least value becomes 0
        return samples


def _numbers(tags: Any, tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    numbers = value if isinstance(value, tuple) else (value,)
    return tuple(int(number) for number in numbers) or (default,)


def opened(stream: BinaryIO) -> Tiff:
    """The page with the picture, not a thumbnail or a mask. Raises Broken if there are several pictures."""
    if stream.read(4) == b"MM\0+":  # Pillow looks for its mark in another place
        raise Broken("not supported: BigTIFF of big-endian order", _SAVE_AS)
    stream.seek(0)
    picture = Tiff(stream)
    _choose_page(picture)
    return picture


def _choose_page(picture: Tiff) -> None:
    pages = []
    for page in count():
        try:
            picture.seek(page)
        except EOFError:
            break
        except Broken:  # a page that cannot be read counts as a page
            if not page:
                raise
        if _is_picture(picture):
            pages.append(page)
        if len(pages) > 1 or page >= _MOST_PAGES:
            raise Broken("more than one picture in the file", "Save the one to be read as a file of its own.")
    picture.seek(pages[0] if pages else 0)


def _is_picture(page: Tiff) -> bool:
    tags = page.tag_v2
    return not tags.get(_SUBFILE, 0) & (_REDUCED | _MASK) and tags.get(_OLD_SUBFILE, 1) != _OLD_REDUCED


def check_tile(picture: Tiff) -> None:
    """Refuse huge tiles: libtiff allocates a whole tile, however small the picture is."""
    if int(picture.tag_v2.get(322, 1)) * int(picture.tag_v2.get(323, 1)) > MAX_PIXELS:
        raise Broken("too many pixels: in one tile", f"At most {MAX_PIXELS // 10**6} million pixels are decoded.")


def spacing(picture: Tiff) -> tuple[float, float]:
    """Distances between rows and between columns as stored, in any unit; 0 if the file gives none."""
    return spacing_of(picture.tag_v2.get(282), picture.tag_v2.get(283))


def spacing_of(across: Any, down: Any) -> tuple[float, float]:
    """Distances between rows and between columns, from the pixels in a unit across and down; 0 if unusable."""
    return _inverse(down), _inverse(across)


def _inverse(resolution: Any) -> float:
    try:
        return 1 / float(resolution)
    except (TypeError, ValueError, ArithmeticError):
        return 0.0
