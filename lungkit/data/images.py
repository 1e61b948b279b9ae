"""One reader and one preprocessing for every image: training, evaluation, the app and the API all call these.

`read` turns a PNG, JPEG, TIFF or DICOM, told apart by content and never by name, into one float32 array with its
meaning attached. `preprocess` turns that into the model's tensor. Files come from strangers: sizes are checked in the
header before any pixel is decoded, only listed formats are decoded at all, and whatever is wrong with a file it is
refused with one error, `ImageRefused`.

How stored values become a picture:

- CT: Hounsfield units (HU) through the rescale slope and intercept. Padding counts as air, nothing is below -1024.
- 8 bits and less, without a window: 0 is black and the largest value that can be stored is white.
- More than 8 bits, without a window: most such files hold 10 to 15 bit images in 16-bit words and do not say so, hence
  the image's own 0.5 % and 99.5 % percentiles become black and white.
- DICOM other than CT: modality LUT or rescale first, then the first VOI LUT or window where there is one, else the two
  rules above; MONOCHROME1 is inverted last, padding is black.
- Colour becomes luminance at 8 bits, transparent parts black, the EXIF orientation is applied.
"""

import io
import math
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import PIL.Image
from PIL import ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin  # noqa: F401 (they register themselves)
from pydicom import Dataset, uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.tag import BaseTag, Tag

from lungkit.errors import LungkitError
from lungkit.progress import bar

MAX_PIXELS = 40_000_000  # the largest chest detectors give 4,300 x 4,300
MAX_BYTES = 256 * 2**20  # of a file
MIN_SIDE = 24  # pixels; PneumoniaMNIST's 28 is the smallest in use
AIR = -1024.0  # HU

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_SUFFIXES = {"", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima", ".bmp", ".gif", ".webp"}
_END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}

# What may not hide in the 128 free bytes before a DICOM header (CVE-2019-11687): Windows, Linux, scripts, macOS,
# Java and fat binaries, WebAssembly, archives, documents, markup, and pictures. A TIFF header is legitimate there.
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

_MODALITIES = ("CT", "CR", "DX", "DR", "RG", "OT", "SC")
_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."  # PDF, CDA, STL, OBJ, MTL
_XRAY_AND_CT = {
    uid.CTImageStorage: "CT",
    uid.ComputedRadiographyImageStorage: "CR",
    uid.DigitalXRayImageStorageForPresentation: "DX",
    uid.DigitalXRayImageStorageForProcessing: "DX",
    uid.SecondaryCaptureImageStorage: "OT",
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage: "OT",  # only where it holds a single frame
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage: "OT",
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage: "OT",
}
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
# Deflated is left out on purpose: it unpacks the whole file before the header can be checked.
_TRANSFER_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    *_JPEG,
    *_JPEG_LS,
    *_JPEG_2000,
    uid.RLELossless,
)
_COLOURS = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")
_HEADER_BYTES = 2 * 2**20  # a single image's header with all its tables stays well below
_VALUE_BYTES = 1024  # of a header value other than a table; pydicom spends seconds on a text of many values

# What Image.tags may hold: names of ours, and the DICOM keywords they come from. Nothing here can identify a person.
_SHOWN = {
    "view": "ViewPosition",
    "body_part": "BodyPartExamined",
    "image_type": "ImageType",
    "photometric": "PhotometricInterpretation",
    "bits_stored": "BitsStored",
    "rows": "Rows",
    "columns": "Columns",
    "pixel_spacing": "PixelSpacing",
    "detector_spacing": "ImagerPixelSpacing",
    "slice_thickness": "SliceThickness",
}
# Only these are read from a header at all, so that no name or number of a patient is ever held.
_READ = [
    *_SHOWN.values(),
    "SOPClassUID",
    "Modality",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "BitsAllocated",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
]


_TAGS = [Tag(keyword) for keyword in _READ]
_TABLES = {Tag(keyword) for keyword in _READ if keyword.endswith(("Sequence", "TableData"))}
_VALUES = {*_TAGS, *map(Tag, ("SpecificCharacterSet", "TransferSyntaxUID", "MediaStorageSOPClassUID"))} - _TABLES
_TABLE_TYPES = (None, "SQ", "UN", "OW", "US", "SS", "US or OW", "US or SS", "US or SS or OW")


class ImageRefused(LungkitError):
    """A file that is not taken: which `file`, what `rule` it broke, and the `remedy`. Reads "FILE: RULE. REMEDY".

    A rule starts with a fixed phrase and may go on with figures after a colon: "too many pixels: 90000 x 90000".
    """

    def __init__(self, file: str, rule: str, remedy: str):
        super().__init__(file, rule, remedy)
        self.file, self.rule, self.remedy = file, rule, remedy

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}. {self.remedy}"


class _Broken(Exception):
    """A rule and its remedy, on their way up to where the file's name is known."""


_NOT_FINITE = "damaged: pixel values are not finite numbers", "Export the image again."


@dataclass(frozen=True, eq=False)
class Image:
    """One image as it was measured, before any windowing of ours."""

    pixels: np.ndarray  # float32 (height, width); HU, or intensity 0..1 where bright is dense
    units: Literal["HU", "intensity"]
    modality: str  # as DICOM names it: "CT", "CR", "DX", "OT", ...; "" for PNG, JPEG and TIFF
    file: str  # its name, for messages
    tags: dict[str, str]  # header values that identify nobody, among _SHOWN; for pictures format, mode, rows, columns


# --- reading -----------------------------------------------------------------------------------------------------


def read(source: str | Path | bytes | BinaryIO, name: str | None = None) -> Image:
    """The image in a file, in bytes, or in an open binary file; the rules for its values head this module.

    `name` stands for the file in messages (default: the path, or the open file's own name).
    Raises ImageRefused, and nothing else, whatever the bytes are.
    """
    with _refusing(source, name) as file, _quiet, np.errstate(all="ignore"), _opened(source) as stream:
        image = _read_dicom(stream, file) if _format(stream) == "DICOM" else _read_picture(stream, file)
        if not np.isfinite(image.pixels).all():
            raise _Broken(*_NOT_FINITE)
        return image


def looks_like_image(path: Path) -> bool:
    """By name alone. DICOM files often have no suffix, or end in a number; whether it can be read is seen later."""
    suffix = path.suffix.lower()
    known = suffix in _SUFFIXES or suffix[1:].isdigit()
    return known and not path.name.startswith(".") and path.name != "DICOMDIR" and path.is_file()


def probe(source: str | Path | bytes | BinaryIO) -> tuple[int, int, str]:
    """(width, height, modality), upright, from the header alone; refuses whatever a header can be refused for."""
    with _refusing(source, None), _quiet, _opened(source) as stream:
        if _format(stream) == "DICOM":
            header = _dicom_header(stream)
            return header.Columns, header.Rows, header.Modality
        return *_upright_size(_opened_picture(stream)), ""


@contextmanager
def _refusing(source, name: str | None) -> Iterator[str]:
    """Names the file, and turns every error of the block into ImageRefused: decoders raise all kinds on bad bytes."""
    if not name:
        name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "uploaded file"))
    try:
        yield name
    except _Broken as broken:
        raise ImageRefused(name, *broken.args) from broken.__cause__
    except PermissionError as error:
        raise ImageRefused(name, "no permission to read it", "Copy it to a folder of yours.") from error
    except Exception as error:
        remedy = "Export the image again, or convert it to PNG."
        raise ImageRefused(name, "damaged: its content cannot be decoded", remedy) from error


class _Quiet:
    """Silences Pillow and pydicom while any thread reads: what matters is refused, the rest is noise to a clinician.

    Counted, because warning filters belong to the process: catch_warnings in one thread would undo another's.
    """

    def __init__(self):
        self._lock, self._readers, self._filters = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._readers:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom|openjpeg|libjpeg|pylibjpeg)\b")
            self._readers += 1

    def __exit__(self, *error):
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._filters.__exit__(*error)


_quiet = _Quiet()


@contextmanager
def _opened(source) -> Iterator[BinaryIO]:
    """A seekable stream at its start, of a size between 1 and MAX_BYTES."""
    if isinstance(source, str | Path):
        path = Path(source)
        with _reachable(path).open("rb") as stream:
            _check_bytes(path.stat().st_size)
            yield stream
        return
    if not isinstance(source, bytes | bytearray | memoryview):
        source.seek(0)
        source = source.read(MAX_BYTES + 1)
    _check_bytes(len(source))
    yield io.BytesIO(source)


def _reachable(path: Path) -> Path:
    try:
        found, plain, folder = path.exists(), path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise _Broken("no such file", "Check the path.") from error
    if not found:
        raise _Broken("no such file", "Check the path.")
    if folder:
        raise _Broken("a folder, not a file", "Name one image in it.")
    if not plain:
        raise _Broken("not a regular file", "Give a file on disk.")
    return path


def _check_bytes(size: int) -> None:
    if not size:
        raise _Broken("empty file", "Copy or export it again.")
    if size > MAX_BYTES:
        raise _Broken(f"file too large: more than {MAX_BYTES >> 20} MiB", "Export one image at its usual resolution.")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Broken(
            f"too many pixels: {width} x {height}",
            f"At most {MAX_PIXELS // 10**6} million pixels are decoded; reduce it.",
        )
    if min(width, height) < MIN_SIDE:
        raise _Broken(f"too small: {width} x {height}", f"Each side needs at least {MIN_SIDE} pixels.")


def _format(stream: BinaryIO) -> str:
    """ "DICOM", "PNG", "JPEG" or "TIFF", from the first 132 bytes; the stream is at its start again."""
    start = stream.read(132)
    stream.seek(0)
    if start[128:] == b"DICM":
        if start.startswith(_PREAMBLE_DANGERS):
            raise _Broken(
                "executable in the preamble: the bytes before the DICOM header start another kind of file",
                "Do not open this file; ask for a clean export from the archive.",
            )
        return "DICOM"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    raise _Broken("not an image", "PNG, JPEG, TIFF and DICOM (with its 128-byte preamble) are accepted.")


# --- PNG, JPEG, TIFF ---------------------------------------------------------------------------------------------


def _opened_picture(stream: BinaryIO) -> PIL.Image.Image:
    """The picture with its header read and checked; no pixel is decoded."""
    kind = _format(stream)
    try:
        picture = PIL.Image.open(stream, formats=[kind])
    except PIL.Image.DecompressionBombError as error:
        raise _Broken("too many pixels", f"At most {MAX_PIXELS // 10**6} million pixels are decoded.") from error
    except Exception as error:
        raise _cut_or_damaged(stream, kind, error) from error
    _check_size(*picture.size)
    if kind == "TIFF":  # libtiff sets aside a whole tile, whatever the picture's size
        _check_tile(picture)
    if getattr(picture, "is_animated", False) or getattr(picture, "n_frames", 1) > 1:
        raise _Broken("more than one picture in the file", "Save the one to be read as a file of its own.")
    return picture


def _check_tile(picture: PIL.Image.Image) -> None:
    tile = int(picture.tag_v2.get(322, 1)) * int(picture.tag_v2.get(323, 1))
    if tile > MAX_PIXELS:
        raise _Broken("too many pixels: in one tile", f"At most {MAX_PIXELS // 10**6} million pixels are decoded.")


def _cut_or_damaged(stream: BinaryIO, kind: str, error: Exception) -> _Broken:
    """Pillow rarely says which; a file without its closing mark was cut."""
    stream.seek(0)
    if "truncated" in str(error).lower() or _END_MARKS.get(kind, b"") not in stream.read():
        return _Broken("truncated: the file ends before the picture does", "Copy or download it again.")
    part = "header" if isinstance(error, PIL.UnidentifiedImageError) else "content"
    return _Broken(f"damaged: its {part} cannot be decoded", "Export the image again.")


def _upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation; a TIFF already answers so."""
    width, height = picture.size
    # PNG's own getexif decodes the picture to look behind it; the base class reads what the header held.
    turned = PIL.Image.Image.getexif(picture).get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if turned and picture.format != "TIFF" else (width, height)


def _read_picture(stream: BinaryIO, file: str) -> Image:
    picture = _opened_picture(stream)
    kind, mode = picture.format, picture.mode
    _upright_size(picture)  # fixes the orientation before the decoder can find another one behind the pixels
    min_is_white = kind == "TIFF" and picture.tag_v2.get(262) == 0
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in this process may have turned it on
    try:
        picture.load()
    except Exception as error:
        raise _cut_or_damaged(stream, kind, error) from error
    picture = ImageOps.exif_transpose(picture)
    if mode.startswith(("I", "F")):
        pixels = _stretched(np.asarray(picture))
        pixels = 1 - pixels if min_is_white else pixels  # Pillow inverts 8-bit TIFFs of this kind, deeper ones not
    else:
        pixels = _luminance(picture).astype(np.float32) / 255
    tags = {"format": kind, "mode": mode, "rows": str(pixels.shape[0]), "columns": str(pixels.shape[1])}
    return Image(pixels, "intensity", "", file, tags)


def _luminance(picture: PIL.Image.Image) -> np.ndarray:
    """uint8 (height, width); transparent parts lie on black."""
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "black"), picture)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return np.asarray(picture.convert("L"))


def _stretched(values: np.ndarray, usable: np.ndarray | None = None) -> np.ndarray:
    """float32 0..1: the 0.5 % and 99.5 % percentiles of the usable values become 0 and 1 (a constant image: 0)."""
    sample = values if usable is None else values[usable]
    if not sample.size:
        return np.zeros(values.shape, np.float32)
    low, high = np.percentile(sample, (0.5, 99.5))
    if not np.isfinite((low, high)).all():
        raise _Broken(*_NOT_FINITE)
    if not low < high:  # nearly all of it is one value, as in a scanned line drawing
        low, high = sample.min(), sample.max()
    return _between(values, float(low), float(high))


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32 0..1, linear from `low` to `high` and clipped."""
    if not low < high:
        return np.zeros(values.shape, np.float32)
    exact = np.float32 if values.dtype.itemsize <= 2 else np.float64
    return np.clip((values.astype(exact) - exact(low)) / exact(high - low), 0, 1).astype(np.float32)


# --- DICOM -------------------------------------------------------------------------------------------------------


def _dicom_header(stream: BinaryIO) -> Dataset:
    """The checked header without pixels, of what _READ lists alone; the stream is at its start again."""
    start = io.BytesIO(stream.read(_HEADER_BYTES))
    stream.seek(0)
    stored_kind = _checked_meta(start).get("MediaStorageSOPClassUID")
    header = _dataset(start, Tag("FloatPixelData"))
    header.SOPClassUID = str(header.get("SOPClassUID") or stored_kind or "")
    _check_kind(header, start)
    header.Modality = str(header.get("Modality") or _XRAY_AND_CT[header.SOPClassUID])
    _check_frame(header)
    if header.SOPClassUID == uid.CTImageStorage:
        _check_hounsfield(header)
    return header


def _checked_meta(start: BinaryIO) -> Dataset:
    """The file meta group, read by itself: to read further would already unpack a deflated file."""
    start.seek(132)
    meta = read_dataset(start, False, True, stop_when=_until(lambda tag: tag.group != 2))
    syntax = uid.UID(str(meta.get("TransferSyntaxUID") or ""))
    if syntax not in _TRANSFER_SYNTAXES:
        raise _Broken(
            f"transfer syntax not accepted: {_shown(syntax.name) or 'none given'}",
            "Export it uncompressed, or as JPEG, JPEG-LS, JPEG 2000 or RLE.",
        )
    return meta


def _dataset(stream: BinaryIO, end: int) -> Dataset:
    """What _READ lists, and PixelData, as far as they come before the tag `end`."""
    stream.seek(0)
    return read_partial(stream, _until(lambda tag: tag >= end), specific_tags=[*_TAGS, Tag("PixelData")])


def _until(ends: Callable[[BaseTag], bool]) -> Callable[[BaseTag, str | None, int], bool]:
    """When pydicom shall stop reading; on the way, values that would take it seconds to take apart are refused."""

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if (tag in _VALUES and length > _VALUE_BYTES) or (tag in _TABLES and vr not in _TABLE_TYPES):
            raise _Broken(f"damaged: header value {tag} is too long or of a wrong type", "Export the image again.")
        return ends(tag)

    return stop


def _check_kind(header: Dataset, after: BinaryIO) -> None:
    """That it is an object of ours with pixels; `after` stands where reading the header stopped."""
    kind, modality = header.SOPClassUID, header.get("Modality")
    if kind.startswith(_ENCAPSULATED):
        raise _Broken(f"encapsulated document: {uid.UID(kind).name}", "Export the image that it describes instead.")
    if modality and modality not in _MODALITIES:
        raise _Broken(f"unsupported modality: {_shown(modality)}", "Chest CT and X-ray (CT, CR, DX) are read.")
    _check_pixels_follow(after)
    if kind not in _XRAY_AND_CT:
        raise _Broken(
            f"unsupported DICOM object: {_shown(uid.UID(kind).name) or 'no SOP class given'}",
            "CT, CR, DX and secondary capture images of one frame are read.",
        )


def _check_pixels_follow(after: BinaryIO) -> None:
    position, end = after.tell(), after.seek(0, io.SEEK_END)
    after.seek(position)
    if after.read(4) in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        return
    if position > end:
        raise _Broken("truncated: the file ends within the header", "Copy or download it again.")
    raise _Broken("no pixel data", "The file was cut, or holds a report or measurements; send the image itself.")


def _check_frame(header: Dataset) -> None:
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise _Broken(f"multi-frame: {int(header.NumberOfFrames)} frames", "Export the frame to be read as one image.")
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if not isinstance(header.get(keyword), int):
            raise _Broken(f"damaged: the header has no {keyword}", "Export the image again.")
    _check_size(header.Columns, header.Rows)
    samples, bits, colour = header.get("SamplesPerPixel"), header.BitsAllocated, header.get("PhotometricInterpretation")
    if colour not in _COLOURS or (samples, bits) not in ((1, 8), (1, 16), (3, 8)) or not 1 <= header.BitsStored <= bits:
        raise _Broken(
            f"pixel format not accepted: {samples} x {header.BitsStored} of {bits} bits, {_shown(colour)}",
            "Grey of 8 or 16 bits and colour of 8 bits are read.",
        )


def _check_hounsfield(header: Dataset) -> None:
    """What makes the values of a CT slice Hounsfield units; a scout view and a derived map have none."""
    if "LOCALIZER" in (header.get("ImageType") or ()):
        raise _Broken("scout view, not a CT slice", "Choose the axial slices of the series.")
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    known = slope is not None and intercept is not None and slope and math.isfinite(slope) and math.isfinite(intercept)
    if not known or (header.get("RescaleType") or "HU") != "HU":
        raise _Broken(
            "CT not in Hounsfield units: no rescale slope and intercept to HU",
            "Export the original slice of the scanner.",
        )


def _shown(value) -> str:
    """A header value as one short printable line; several values are joined by a backslash, as DICOM does."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    text = "\\".join(map(str, value)) if several else str(value)
    return "".join(letter for letter in text if letter.isprintable())[:64]


def _read_dicom(stream: BinaryIO, file: str) -> Image:
    header = _dicom_header(stream)
    stored = _stored_values(stream)
    tags = {ours: _shown(header.get(theirs)) for ours, theirs in _SHOWN.items() if header.get(theirs) not in (None, "")}
    if header.SOPClassUID == uid.CTImageStorage:
        return Image(_hounsfield(stored, header), "HU", header.Modality, file, tags)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)
        stored = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    if stored.ndim == 3:
        pixels = _luminance(PIL.Image.fromarray(stored)).astype(np.float32) / 255
    else:
        pixels = _presented(stored, header)
    return Image(pixels, "intensity", header.Modality, file, tags)


def _stored_values(stream: BinaryIO) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3) as stored, of a checked header; the coded stream is checked here."""
    whole = _dataset(stream, Tag("PixelData") + 1)
    if "PixelData" not in whole:  # pydicom drops it when its closing mark is missing
        raise _Broken("truncated: the file ends within the pixels", "Copy or download it again.")
    expected = whole.Rows * whole.Columns * whole.SamplesPerPixel * whole.BitsAllocated // 8
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_coded_size(get_frame(whole.PixelData, 0, number_of_frames=1), whole)
    else:
        stored = expected * 2 // 3 if whole.PhotometricInterpretation == "YBR_FULL_422" else expected
        if len(whole.PixelData) < stored:
            rule = f"truncated: {len(whole.PixelData)} of {stored} bytes of pixels"
            raise _Broken(rule, "Copy or download it again.")
    return pixel_array(whole)


def _check_coded_size(frame: bytes, header: Dataset) -> None:
    """The decoders believe the coded stream, not the header: it must not unpack to more than the header says."""
    if header.file_meta.TransferSyntaxUID == uid.RLELossless:
        fits = _rle_fits(frame, header.Rows * header.Columns)
    else:
        size = _jpeg_2000_size if header.file_meta.TransferSyntaxUID in _JPEG_2000 else _jpeg_size
        fits = size(frame) == (header.Columns, header.Rows, header.SamplesPerPixel)
    if not fits:
        raise _Broken(
            "damaged: the compressed picture is not of the size that the header gives", "Export the image again."
        )


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """(width, height, components) from the SIZ segment that opens a codestream (ISO 15444-1, A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51" or len(frame) < 42:
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[8:24])
    return right - left, bottom - top, struct.unpack(">H", frame[40:42])[0]


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """(width, height, components) from the first frame header of a JPEG or JPEG-LS stream (ISO 10918-1, B.2.2)."""
    position = 2
    while frame[position : position + 1] == b"\xff" and len(frame) >= position + 10:
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}:
            height, width, components = struct.unpack(">HHB", frame[position + 5 : position + 10])
            return width, height, components
        if marker in (0xDA, 0xDE):  # pixels before a size, or a pyramid of sizes
            return None
        position += 2 + struct.unpack(">H", frame[position + 2 : position + 4])[0]
    return None


def _rle_fits(frame: bytes, plane: int) -> bool:
    """Whether no segment of an RLE frame (PS3.5, annex G) unpacks to more than twice the bytes of a plane."""
    if len(frame) < 64:
        return False
    count, *offsets = struct.unpack("<16I", frame[:64])
    ends = [*offsets[1:count], len(frame)]
    return all(_unpacks_within(frame[start:end], 2 * plane) for start, end in zip(offsets, ends, strict=False))


def _unpacks_within(segment: bytes, most: int) -> bool:
    """Counts what the runs of a segment unpack to, and no further than `most` bytes."""
    total = position = 0
    if len(segment) > most:  # runs that unpack to nothing would take as long to count
        return False
    while position < len(segment) and total <= most:
        run = segment[position]
        if run < 128:
            total, position = total + run + 1, position + run + 2
        elif run > 128:
            total, position = total + 257 - run, position + 2
        else:
            position += 1
    return total <= most


def _hounsfield(stored: np.ndarray, header: Dataset) -> np.ndarray:
    hu = stored.astype(np.float32) * np.float32(header.RescaleSlope) + np.float32(header.RescaleIntercept)
    hu[_padding(stored, header)] = AIR
    return np.maximum(hu, np.float32(AIR))


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """bool (rows, columns): where the detector saw nothing. The tag may be written unsigned for signed pixels."""
    first = header.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, bool)
    last = header.get("PixelPaddingRangeLimit")
    ends = np.array([first, last if isinstance(last, int) else first]).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())


def _presented(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """float32 0..1, bright is dense; the order of steps is PS3.3, C.11."""
    values = _modality_values(stored, header)
    padding = _padding(stored, header)
    window = _window(header)
    if header.get("VOILUTSequence"):
        looked_up, table = _looked_up(values, header.VOILUTSequence[0], header)
        # The depth that a file declares for its table is often wrong; the largest entry is not.
        pixels = _between(looked_up, 0, 2 ** int(table.max()).bit_length() - 1)
    elif window:
        pixels = _windowed(values, *window)
    elif header.BitsStored <= 8:
        signed = header.PixelRepresentation == 1
        lowest = -(2 ** (header.BitsStored - 1)) if signed else 0
        ends = np.array([lowest, lowest + 2**header.BitsStored - 1]).astype(stored.dtype)
        ends = _modality_values(ends, header)
        pixels = _between(values, float(ends.min()), float(ends.max()))
    else:
        pixels = _stretched(values, ~padding)
    if header.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1 - pixels
    pixels[padding] = 0
    return pixels


def _modality_values(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """The stored values after the modality LUT or rescale, where there is one."""
    if header.get("ModalityLUTSequence"):
        return _looked_up(stored, header.ModalityLUTSequence[0], header)[0]
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    return stored * float(slope) + float(intercept)


def _looked_up(values: np.ndarray, item: Dataset, header: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The values through the lookup table of a sequence item, and the table.

    pydicom's own apply_voi cuts its index to the depth of the output, which folds 12-bit images with 8-bit tables,
    and its apply_modality_lut knows only 8 and 16 bits.
    """
    for tag in map(Tag, ("LUTDescriptor", "LUTData")):
        if item.get_item(tag).VR not in _TABLE_TYPES:
            raise _Broken("damaged: a lookup table that is not of numbers", "Export the image again.")
    entries, first = item.LUTDescriptor[0] or 2**16, item.LUTDescriptor[1]
    table = item.LUTData
    if isinstance(table, bytes):
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, np.uint8 if len(table) < 2 * entries else f"{order}u2")
    table = np.asarray(table)[:entries]
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)], table


def _window(header: Dataset) -> tuple[float, float, str] | None:
    """(centre, width, function) of the first window; None where there is none that separates two values."""
    centre, width = (np.atleast_1d(header.get(key) or [])[:1] for key in ("WindowCenter", "WindowWidth"))
    if not (centre.size and width.size and np.isfinite([centre, width]).all() and width[0] > 1):
        return None
    return float(centre[0]), float(width[0]), str(header.get("VOILUTFunction") or "LINEAR")


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """float32 0..1 by PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * (values - centre) / width))).astype(np.float32)
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    return _between(values, centre - width / 2, centre + width / 2)


# --- preprocessing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into a model's tensor; stored in the model's card. Values that make no sense are refused."""

    size: tuple[int, int] = (224, 224)  # height, width of the tensor, pixels
    window: tuple[float, float] = (-600.0, 1500.0)  # the lung window: level, width in HU; for CT only
    mean: float = 0.0  # of the training pixels after windowing to 0..1
    std: float = 1.0

    def __post_init__(self):
        if not (_are_numbers(self.size, 2) and all(side == int(side) and 1 <= side <= 4096 for side in self.size)):
            raise LungkitError(f"size {self.size!r}: height and width must be whole numbers from 1 to 4096")
        if not (_are_numbers(self.window, 2) and self.window[1] > 0):
            raise LungkitError(f"window {self.window!r}: level and width must be finite HU, the width above 0")
        if not (_are_numbers((self.mean, self.std), 2) and self.std > 0):
            raise LungkitError(f"mean {self.mean!r}, std {self.std!r}: both must be finite, std above 0")
        # a card is JSON, which knows lists only
        object.__setattr__(self, "size", tuple(int(side) for side in self.size))
        object.__setattr__(self, "window", tuple(float(value) for value in self.window))

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self) | {"size": list(self.size), "window": list(self.window)}

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """The reverse of to_dict; an unknown or a missing key is refused by name."""
        known = {field.name for field in fields(cls)}
        if wrong := sorted(set(values) - known):
            raise LungkitError(f"preprocessing has unknown keys: {', '.join(wrong)}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - set(values)):
            raise LungkitError(f"preprocessing lacks: {', '.join(missing)}")
        return cls(**values)


def _are_numbers(values, count: int) -> bool:
    if not isinstance(values, tuple | list) or len(values) != count:
        return False
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def window_level(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """HU to float32 0..1: level - width/2 and below is 0, level is 0.5, level + width/2 and above is 1."""
    return np.clip((np.asarray(hu, np.float32) - np.float32(level - width / 2)) / np.float32(width), 0, 1)


def preprocess(image: Image, spec: Preprocessing) -> np.ndarray:
    """The model's tensor: float32 (height, width, 1) of spec.size, ((x in 0..1) - mean) / std. Deterministic.

    HU go through spec.window, intensities stay as they are. The aspect is kept: the picture is scaled to fit (triangle
    filter, widened when reducing, so that it neither aliases nor rings) and centred on black.
    """
    pixels = window_level(image.pixels, *spec.window) if image.units == "HU" else np.asarray(image.pixels, np.float32)
    canvas = np.zeros(spec.size, np.float32)
    rows, columns = placed(pixels.shape, spec.size)
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels, np.float32))
    size = (columns.stop - columns.start, rows.stop - rows.start)
    canvas[rows, columns] = np.clip(np.asarray(picture.resize(size, PIL.Image.Resampling.BILINEAR)), 0, 1)
    return ((canvas - np.float32(spec.mean)) / np.float32(spec.std))[..., np.newaxis]


def placed(shape: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a tensor of `size` that a picture of `shape`, both (height, width), takes up.

    It is the largest picture of the same aspect (at least 1 pixel a side), in the middle.
    """
    scale = min(whole / part for whole, part in zip(size, shape, strict=True))
    taken = []
    for part, whole in zip(shape, size, strict=True):
        side = min(max(1, round(part * scale)), whole)
        start = (whole - side) // 2
        taken.append(slice(start, start + side))
    return tuple(taken)


def read_batch(files: Sequence[Path], spec: Preprocessing, workers: int | None = None, label: str = "") -> np.ndarray:
    """The tensors of files, in their order: float32 (N, height, width, 1).

    Read by `workers` threads (default: the machine's processors and a few); a label shows a progress bar. The first
    file that is refused ends it with its ImageRefused.
    """
    tensors = np.empty((len(files), *spec.size, 1), np.float32)
    for row, tensor in enumerate(_tensors(files, spec, workers, label)):
        tensors[row] = tensor
    return tensors


def _tensors(files: Sequence[Path], spec: Preprocessing, workers: int | None, label: str) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(workers) as pool:
        tensors = pool.map(lambda file: preprocess(read(file), spec), files)
        yield from bar(tensors, total=len(files), label=label, unit="image") if label else tensors


def training_statistics(files: Sequence[Path], spec: Preprocessing) -> Preprocessing:
    """`spec` with the mean and standard deviation of all pixels of these files, as the model will see them (0..1).

    Give the training files only: what is measured on others leaks. One pass, one image in memory at a time per thread.
    Refuses an empty list and images without any contrast.
    """
    plain, total, squares, count = replace(spec, mean=0.0, std=1.0), 0.0, 0.0, 0
    for tensor in _tensors(files, plain, None, ""):
        total += float(tensor.sum(dtype=np.float64))
        squares += float(np.square(tensor, dtype=np.float64).sum())
        count += tensor.size
    if not count:
        raise LungkitError("training statistics need at least one training image; none was given")
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean**2))
    if std < 1e-4:
        raise LungkitError(f"the {len(files)} training images have no contrast (standard deviation {std:.1g} of 0..1)")
    return replace(spec, mean=mean, std=std)
