"""DICOM: the checked header, the stored values, and what they mean; the rules head lungkit.data.images."""

import io
import math
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
import PIL.Image
from pydicom import Dataset, uid
from pydicom.filereader import read_dataset, read_partial
from pydicom.pixels import apply_color_lut
from pydicom.tag import BaseTag, Tag

from lungkit.data.decoders import JPEG, JPEG_2000, JPEG_LS, stored_values
from lungkit.data.image import Broken, Image, between, check_size, luminance, stretched

AIR = -1024.0  # HU

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
# Deflated is left out on purpose: it unpacks the whole file before the header can be checked.
_TRANSFER_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    *JPEG,
    *JPEG_LS,
    *JPEG_2000,
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


def checked_header(stream: BinaryIO) -> Dataset:
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
        raise Broken(
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
            raise Broken(f"damaged: header value {tag} is too long or of a wrong type", "Export the image again.")
        return ends(tag)

    return stop


def _check_kind(header: Dataset, after: BinaryIO) -> None:
    """That it is an object of ours with pixels; `after` stands where reading the header stopped."""
    kind, modality = header.SOPClassUID, header.get("Modality")
    if kind.startswith(_ENCAPSULATED):
        raise Broken(f"encapsulated document: {uid.UID(kind).name}", "Export the image that it describes instead.")
    if modality and modality not in _MODALITIES:
        raise Broken(f"unsupported modality: {_shown(modality)}", "Chest CT and X-ray (CT, CR, DX) are read.")
    _check_pixels_follow(after)
    if kind not in _XRAY_AND_CT:
        raise Broken(
            f"unsupported DICOM object: {_shown(uid.UID(kind).name) or 'no SOP class given'}",
            "CT, CR, DX and secondary capture images of one frame are read.",
        )


def _check_pixels_follow(after: BinaryIO) -> None:
    position, end = after.tell(), after.seek(0, io.SEEK_END)
    after.seek(position)
    if after.read(4) in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        return
    if position > end:
        raise Broken("truncated: the file ends within the header", "Copy or download it again.")
    raise Broken("no pixel data", "The file was cut, or holds a report or measurements; send the image itself.")


def _check_frame(header: Dataset) -> None:
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise Broken(f"multi-frame: {int(header.NumberOfFrames)} frames", "Export the frame to be read as one image.")
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if not isinstance(header.get(keyword), int):
            raise Broken(f"damaged: the header has no {keyword}", "Export the image again.")
    check_size(header.Columns, header.Rows)
    samples, bits, colour = header.get("SamplesPerPixel"), header.BitsAllocated, header.get("PhotometricInterpretation")
    if colour not in _COLOURS or (samples, bits) not in ((1, 8), (1, 16), (3, 8)) or not 1 <= header.BitsStored <= bits:
        raise Broken(
            f"pixel format not accepted: {samples} x {header.BitsStored} of {bits} bits, {_shown(colour)}",
            "Grey of 8 or 16 bits and colour of 8 bits are read.",
        )


def _check_hounsfield(header: Dataset) -> None:
    """What makes the values of a CT slice Hounsfield units; a scout view and a derived map have none."""
    if "LOCALIZER" in (header.get("ImageType") or ()):
        raise Broken("scout view, not a CT slice", "Choose the axial slices of the series.")
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    known = slope is not None and intercept is not None and slope and math.isfinite(slope) and math.isfinite(intercept)
    if not known or (header.get("RescaleType") or "HU") != "HU":
        raise Broken(
            "CT not in Hounsfield units: no rescale slope and intercept to HU",
            "Export the original slice of the scanner.",
        )


def _shown(value) -> str:
    """A header value as one short printable line; several values are joined by a backslash, as DICOM does."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    text = "\\".join(map(str, value)) if several else str(value)
    return "".join(letter for letter in text if letter.isprintable())[:64]


def read(stream: BinaryIO, file: str) -> Image:
    """The image in a DICOM stream; `file` is its name."""
    header = checked_header(stream)
    stored = stored_values(_dataset(stream, Tag("PixelData") + 1))
    tags = {ours: _shown(header.get(theirs)) for ours, theirs in _SHOWN.items() if header.get(theirs) not in (None, "")}
    if header.SOPClassUID == uid.CTImageStorage:
        return Image(_hounsfield(stored, header), "HU", header.Modality, file, tags)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)
        stored = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    if stored.ndim == 3:
        pixels = luminance(PIL.Image.fromarray(stored)).astype(np.float32) / 255
    else:
        pixels = _presented(stored, header)
    return Image(pixels, "intensity", header.Modality, file, tags)


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
        pixels = between(looked_up, 0, 2 ** int(table.max()).bit_length() - 1)
    elif window:
        pixels = _windowed(values, *window)
    elif header.BitsStored <= 8:
        signed = header.PixelRepresentation == 1
        lowest = -(2 ** (header.BitsStored - 1)) if signed else 0
        ends = np.array([lowest, lowest + 2**header.BitsStored - 1]).astype(stored.dtype)
        ends = _modality_values(ends, header)
        pixels = between(values, float(ends.min()), float(ends.max()))
    else:
        pixels = stretched(values, ~padding)
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
            raise Broken("damaged: a lookup table that is not of numbers", "Export the image again.")
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
    return between(values, centre - width / 2, centre + width / 2)
