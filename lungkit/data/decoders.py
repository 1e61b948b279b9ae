"""From the bytes of a DICOM file's pixels to the values stored in them; each coded stream is checked first."""

import struct

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

from lungkit.data.image import Broken

JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)


def stored_values(whole: Dataset) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3) as stored, of a checked header with its pixels; a coded stream is checked.

    Colour is RGB, whatever it was stored as; a palette is not applied.
    """
    if "PixelData" not in whole:  # pydicom drops it when its closing mark is missing
        raise Broken("truncated: the file ends within the pixels", "Copy or download it again.")
    expected = whole.Rows * whole.Columns * whole.SamplesPerPixel * whole.BitsAllocated // 8
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_coded_size(get_frame(whole.PixelData, 0, number_of_frames=1), whole)
    else:
        stored = expected * 2 // 3 if whole.PhotometricInterpretation == "YBR_FULL_422" else expected
        if len(whole.PixelData) < stored:
            rule = f"truncated: {len(whole.PixelData)} of {stored} bytes of pixels"
            raise Broken(rule, "Copy or download it again.")
    return pixel_array(whole)


def _check_coded_size(frame: bytes, header: Dataset) -> None:
    """The decoders believe the coded stream, not the header: it must not unpack to more than the header says."""
    if header.file_meta.TransferSyntaxUID == uid.RLELossless:
        fits = _rle_fits(frame, header.Rows * header.Columns)
    else:
        size = _jpeg_2000_size if header.file_meta.TransferSyntaxUID in JPEG_2000 else _jpeg_size
        fits = size(frame) == (header.Columns, header.Rows, header.SamplesPerPixel)
    if not fits:
        raise Broken(
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
