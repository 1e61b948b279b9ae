"""The one reader of images: training, evaluation, the clinic and the commands all call it.

`read` turns a PNG, JPEG, TIFF or DICOM, recognised by its content and never by its name, into one float32 array with
its meaning attached; `preprocess.prepare` makes a model's tensor of it. Files come from strangers: sizes are checked in
the header before any pixel is decoded, only listed formats are decoded at all, and a file with anything wrong is
refused with one error, `ImageRefused`.

How stored values become a picture:

- CT: Hounsfield units (HU) through RescaleSlope and RescaleIntercept. Both must be there, and a RescaleType must be HU
  or HU_MOD. Padding counts as air, and nothing is below -1024.
- 8 bits and less, without a window: 0 is black and the largest value that can be stored is white.
- More than 8 bits, without a window: the image's own 0.5 % and 99.5 % percentiles become black and white, because most
  such files contain 10 to 15 bit images in 16-bit words and do not say so.
- DICOM other than CT: modality LUT or rescale first (a slope alone has the intercept 0, an intercept alone the slope
  1), then the first usable VOI LUT, or else the first usable window, or else the two rules above. MONOCHROME1 and the
  PresentationLUTShape INVERSE are inverted last, padding is black.
- DICOM that was not made for presentation (for processing, or CR that states LIN or LOG): the sign of
  PixelIntensityRelationship decides what is inverted, not the photometric interpretation.
- Palettes and lookup tables have the depth that they say, unless their entries disprove it.
- Where pixels are not square, the picture is scaled up along the coarser axis. In DICOM, PixelSpacing says it, or else
  ImagerPixelSpacing, NominalScannedPixelSpacing or PixelAspectRatio: the first one with two positive numbers counts. In
  pictures, it is the resolution across and down (EXIF's, in a JPEG without the JFIF header).
- A window or VOI LUT that cannot be used is left out, and the tag "note" says so. A file is refused if the values that
  decide what the stored ones mean (slope, modality LUT, palette, sign) cannot be used.
- Colour becomes luminance; of more than 8 bits, the luminance is stretched as grey is. Transparent parts are black and
  do not count. The EXIF orientation is applied.
- A TIFF's thumbnails and masks, and whatever follows the first picture of a JPEG, are not read.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lungkit.data import dicom, pictures
from lungkit.data.image import NOT_FINITE, Broken, Image, ImageRefused

__all__ = ["MAX_BYTES", "Image", "ImageRefused", "Source", "decode", "opened", "probe", "read"]

Source = str | Path | bytes | BinaryIO  # a file, its bytes, or an open file

MAX_BYTES = 256 * 2**20  # of a file

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}

# What must not be in the 128 free bytes before a DICOM header (CVE-2019-11687): Windows, Linux, scripts, macOS, Java
# and fat binaries, WebAssembly, archives, documents, markup, and pictures. A TIFF header is legitimate there.
_PREAMBLE_DANGERS = (
    b"MZ",
    b"\x7fELF",
    b"#!",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\0asm",
    b"PK\x03\x04",
    b"%PDF",
    b"<",
    b"\x89PNG",
    b"\xff\xd8\xff",
)


def read(source: Source, name: str | None = None) -> Image:
    """The image in a file, in bytes, or in an open binary file; the rules for its values are at the top of this module.

    name: what messages call the file (default: the path, or the open file's own name).
    Raises ImageRefused, and nothing else, whatever the bytes are.
    """
    with opened(source, name) as (stream, kind, file):
        return decode(stream, kind, file)


def decode(stream: BinaryIO, kind: str, file: str) -> Image:
    """The image in what `opened` gives."""
    if kind == "JPEG":
        stream = io.BytesIO(jpeg := stream.read())
    image = dicom.read(stream, file) if kind == "DICOM" else pictures.read(stream, kind, file)
    check_finite(image)
    if kind == "JPEG":
        object.__setattr__(image, "jpeg", jpeg)
    return image


def check_finite(image: Image) -> None:
    """Raises Broken if a pixel is not a finite number."""
    if not np.isfinite(image.pixels).all():
        raise Broken(*NOT_FINITE)


def probe(source: Source) -> tuple[int, int, str]:
    """(width, height, modality), upright, from the header alone. Refuses all that can be refused by the header."""
    with opened(source, None) as (stream, kind, _):
        if kind == "DICOM":
            return dicom.probe(stream)
        return *pictures.upright_size(pictures.opened(stream, kind)), ""


@contextmanager
def opened(source: Source, name: str | None, most: int | None = None) -> Iterator[tuple[BinaryIO, str, str]]:
    """The stream at its start, its kind ("DICOM", "PNG", "JPEG" or "TIFF") and its name.

    most: bytes that are accepted; default, MAX_BYTES.
    """
    with (
        _refusing(source, name) as file,
        _quiet,
        np.errstate(all="ignore"),
        _stream(source, most or MAX_BYTES) as stream,
    ):
        yield stream, _format(stream), file


@contextmanager
def _refusing(source: Source, name: str | None) -> Iterator[str]:
    """Names the file, and turns every error of the block into ImageRefused: on bad bytes, decoders raise any error."""
    if not name:
        name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "uploaded file"))
    try:
        yield name
    except Broken as broken:
        raise ImageRefused(name, *broken.args) from broken.__cause__
    except PermissionError as error:
        raise ImageRefused(name, "no permission to read it", "Copy it to a folder of yours.") from error
    except Exception as error:
        remedy = "Export the image again, or convert it to PNG."
        raise ImageRefused(name, "damaged: its content cannot be decoded", remedy) from error


class _Quiet:
    """Silences the warnings of Pillow and pydicom while any thread reads: what matters is refused anyway.

    It counts the readers, because warning filters belong to the process: one thread would restore another's filters.
    """

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom|openjpeg|pylibjpeg)\b")
            self._readers += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()


@contextmanager
def _stream(source: Source | bytearray | memoryview, most: int) -> Iterator[BinaryIO]:
    """A seekable stream at its start, of a size between 1 and `most` bytes."""
    if isinstance(source, str | Path):
        path = Path(source)
        with _reachable(path).open("rb") as stream:
            _check_bytes(path.stat().st_size, most)
            yield stream
        return
    if not isinstance(source, bytes | bytearray | memoryview):
        source.seek(0)
        source = source.read(most + 1)
    _check_bytes(len(source), most)
    yield io.BytesIO(source)


def _reachable(path: Path) -> Path:
    try:
        found, plain, folder = path.exists(), path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise Broken("no such file", "Check the path.") from error
    if not found:
        raise Broken("no such file", "Check the path.")
    if folder:
        raise Broken("a folder, not a file", "Name one image in it.")
    if not plain:
        raise Broken("not a regular file", "Give a file on disk.")
    return path


def _check_bytes(size: int, most: int) -> None:
    if not size:
        raise Broken("empty file", "Copy or export it again.")
    if size > most:
        raise Broken(f"file too large: more than {most >> 20} MiB", "Export one image at its usual resolution.")


def _format(stream: BinaryIO) -> str:
    """ "DICOM", "PNG", "JPEG" or "TIFF", from the first 132 bytes; the stream is at its start again."""
    start = stream.read(132)
    stream.seek(0)
    if start[128:] == b"DICM":
        if start.startswith(_PREAMBLE_DANGERS):
            raise Broken(
                "executable in the preamble: the bytes before the DICOM header start another kind of file",
                "Do not open this file; ask for a clean export from the archive.",
            )
        return "DICOM"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    raise Broken("not an image", "PNG, JPEG, TIFF and DICOM (with its 128-byte preamble) are accepted.")
