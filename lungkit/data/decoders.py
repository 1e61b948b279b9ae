"""From the bytes of a DICOM file's pixels to the stored values. Each coded stream is checked first.

One decoder for each kind of stream, whatever else is installed: libjpeg-turbo for every JPEG, CharLS for JPEG-LS and
OpenJPEG for JPEG 2000 (all through imagecodecs, which lets other threads run meanwhile), pydicom's own for RLE.
"""

import struct
from dataclasses import dataclass

import numpy as np
from imagecodecs import JpeglsError, PackbitsError, jpeg2k_decode, jpeg8_decode, jpegls_decode, packbits_decode
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels.processing import convert_color_space

from lungkit.data.dicom_header import JPEG_2000, Header, Raw
from lungkit.data.image import Broken

_LOSSLESS, _LS = 0xC3, 0xF7  # the frame headers that start such a picture
_FRAME_HEADERS = {*range(0xC0, 0xD0), _LS} - {0xC4, 0xC8, 0xCC}
_END, _SCAN, _FRAGMENT = b"\xff\xd9", b"\xff\xda", b"\xfe\xff\x00\xe0"
_EXPORT = "Export the image again."

# Bounds on what a hostile file can cost.
_FRAGMENTS = 100_000  # of one picture; encoders write one, or one for each kilobyte
_PARTS = 5_000  # markers, or boxes, before the first pixel
_SCANS = 100  # of one picture, and each may cover all of it; a progressive JPEG has about ten


def stored_values(header: Header, pixels: Raw) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3) as stored, of a checked header and its PixelData.

    Values have BitsStored bits, taken from where HighBit says that they are in their words. Colour becomes RGB; a
    palette is not applied.
    """
    if not header.syntax.is_encapsulated:
        return frame_values(header, pixels)
    if pixels.content.count(_FRAGMENT) > _FRAGMENTS:
        raise Broken(f"damaged: more than {_FRAGMENTS} fragments of pixels", _EXPORT)
    return frame_values(header, Raw(pixels.kind, get_frame(pixels.content, 0, number_of_frames=1)))


def frame_values(header: Header, pixels: Raw) -> np.ndarray:
    """The stored values, as above, of the bytes of one frame: its words, or its coded stream."""
    if not header.syntax.is_encapsulated:
        return _of_words(_uncompressed(header, pixels), header)
    frame = pixels.content
    if header.syntax in JPEG_2000:
        return _jpeg_2000(frame, header)
    if header.syntax == uid.RLELossless:
        return _of_words(_run_lengths(frame, header), header)
    return _jpeg(frame, header)


def _stated_size(header: Header) -> tuple[int, int, int]:
    return header.columns, header.rows, header.samples


def _other_size(size: tuple[int, int, int] | None, header: Header) -> Broken:
    coded = "states none" if size is None else f"states {size[0]} x {size[1]} with {size[2]} component(s)"
    return _does_not_fit(header, f"it {coded}")


def _does_not_fit(header: Header, coded: str) -> Broken:
    """The decoders believe the coded stream, not the header: it must not unpack to more than the header says."""
    stated = f"Columns {header.columns}, Rows {header.rows}, SamplesPerPixel {header.samples}"
    rule = "damaged: the compressed picture is not of the size that the header gives"
    return Broken(f"{rule}: {coded}, not {stated}", _EXPORT)


def _check_precision(precision: int, header: Header) -> None:
    if precision > header.bits_allocated:
        raise Broken(
            f"damaged: the compressed picture has {precision} bits, BitsAllocated is {header.bits_allocated}", _EXPORT
        )


def _of_bits(pixels: np.ndarray, precision: int, header: Header) -> np.ndarray:
    """The values of BitsStored bits of a picture, in the type that the header gives.

    If it was coded with more bits, as whole words, the values end at HighBit; otherwise they start at the lowest bit.
    Cutting the higher bits (old overlays) also corrects a lossless JPEG whose encoder took differences modulo
    2^precision instead of 2^16: the lowest bits of libjpeg-turbo's sums are right.
    """
    kind = f"{'i' if header.signed else 'u'}{header.bits_allocated // 8}"
    below = header.high_bit + 1 - header.bits_stored if precision > header.bits_stored else 0
    bits = min(precision - below, header.bits_stored)
    if bits == header.bits_allocated:
        return np.asarray(pixels.astype(kind))
    values = (pixels.astype(np.int32) >> below) & (2**bits - 1)
    if header.signed:
        values -= (values >> (bits - 1)) << bits
    return np.asarray(values, kind)


# --- whole words -------------------------------------------------------------------------------------------------


def _of_words(planes: np.ndarray, header: Header) -> np.ndarray:
    """The stored values of words (samples, rows, columns)."""
    values = _of_bits(planes, header.bits_allocated, header)
    if header.samples == 1:
        return np.asarray(values[0])
    colours = np.ascontiguousarray(np.moveaxis(values, 0, -1))
    return convert_color_space(colours, "YBR_FULL", "RGB") if header.photometric.startswith("YBR") else colours


def _uncompressed(header: Header, pixels: Raw) -> np.ndarray:
    """The words (samples, rows, columns) of pixels that are not coded."""
    count, size = header.rows * header.columns * header.samples, len(pixels.content)
    in_pairs = header.photometric == "YBR_FULL_422" and size < count  # two pixels have one colour
    needed = count * 2 // 3 if in_pairs else count * header.bits_allocated // 8
    if size < needed:
        raise Broken(f"truncated: {size} of {needed} bytes of pixels", "Copy or download it again.")
    words = np.frombuffer(pixels.content[:needed], f"{header.order}u{header.bits_allocated // 8}")
    if header.order == ">" and header.bits_allocated == 8 and pixels.kind != "OB":  # bytes in words of 16 bits
        words = np.frombuffer(pixels.content[: needed + needed % 2], ">u2").astype("<u2").view(np.uint8)[:needed]
    shape = (header.rows, header.columns)
    if in_pairs:
        first, second, blue, red = words.reshape(-1, 4).T
        return np.stack([np.stack(pair, axis=1).reshape(shape) for pair in ((first, second), (blue, blue), (red, red))])
    if header.samples == 1 or header.planar:
        return words.reshape(header.samples, *shape)
    return np.moveaxis(words.reshape(*shape, header.samples), -1, 0)


def _run_lengths(frame: bytes, header: Header) -> np.ndarray:
    """The words (samples, rows, columns) of an RLE frame (PS3.5, annex G): a segment for each byte, the highest first.

    A segment that unpacks to more than twice the bytes of a plane is refused.
    """
    plane, width = header.rows * header.columns, header.bits_allocated // 8
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != header.samples * width:
        raise _does_not_fit(header, f"it has {count} segments")
    unpacked = np.empty((header.samples, plane, width), np.uint8)
    for number, end in enumerate([*offsets[1:count], len(frame)]):
        try:
            segment = packbits_decode(frame[offsets[number] : end], out=2 * plane)
        except PackbitsError as error:
            raise _does_not_fit(header, "its runs are longer, or cut") from error
        unpacked[number // width, :, number % width] = np.frombuffer(segment, np.uint8, plane)
    return unpacked.view(f">u{width}").reshape(header.samples, header.rows, header.columns)


# --- JPEG 2000 ---------------------------------------------------------------------------------------------------


def _jpeg_2000(frame: bytes, header: Header) -> np.ndarray:
    stream = _codestream(frame)
    if (size := _jpeg_2000_size(stream)) != _stated_size(header):
        raise _other_size(size, header)
    precision = stream[42] % 128 + 1
    _check_precision(precision, header)
    pixels = jpeg2k_decode(stream)
    if header.photometric.startswith("YBR_FULL"):
        pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
    return _of_bits(pixels, precision, header)


def _codestream(frame: bytes) -> bytes:
    """The codestream in a JPEG 2000 file (.jp2, ISO 15444-1, annex I). DICOM wants it bare, but some write the file."""
    if frame[4:8] != b"jP  ":
        return frame
    position = 0
    for _ in range(_PARTS):
        if position + 8 > len(frame):
            break
        length, kind, start = *struct.unpack_from(">I4s", frame, position), position + 8
        if length == 1 and start + 8 <= len(frame):
            length, start = struct.unpack_from(">Q", frame, start)[0], start + 8
        end = position + length if length else len(frame)
        if kind == b"jp2c":
            return frame[start:end]
        if end < start:
            break
        position = end
    return b""


def _jpeg_2000_size(stream: bytes) -> tuple[int, int, int] | None:
    """(width, height, components) from the SIZ segment that opens a codestream (ISO 15444-1, A.5.1)."""
    if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 43:
        return None
    right, bottom, left, top = struct.unpack(">4I", stream[8:24])
    return right - left, bottom - top, struct.unpack(">H", stream[40:42])[0]


# --- JPEG and JPEG-LS --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _JpegHeader:
    """What comes before the first pixels of a JPEG or JPEG-LS stream (ISO 10918-1, annex B)."""

    process: int  # the marker of the frame header
    precision: int  # bits
    precision_at: int  # its place in the stream
    scan_at: int  # the place of the first scan's marker
    size: tuple[int, int, int]  # width, height, components
    names: bytes  # of the components
    is_ycc: bool  # whether a JFIF or Adobe segment says that colours are YCbCr
    restart: int  # pixels from one restart to the next; 0 without restarts


def _jpeg(frame: bytes, header: Header) -> np.ndarray:
    coded = _jpeg_header(frame)
    if coded is None or coded.size != _stated_size(header):
        raise _other_size(coded.size if coded else None, header)
    _check_precision(coded.precision, header)
    if _END not in frame[coded.precision_at :]:
        raise Broken("truncated: the compressed picture ends before its closing mark", "Copy or download it again.")
    if frame.count(_SCAN) > _SCANS:
        raise Broken(f"damaged: the compressed picture has more than {_SCANS} scans", _EXPORT)
    scans = _scans(frame, coded) if coded.process == _LOSSLESS else []
    if coded.process == _LS:
        pixels = _jpeg_ls(frame)
    elif any(scan.predictor > 4 for scan in scans):
        pixels = _averaged(frame, coded, scans)
    else:
        pixels = _plain_jpeg(frame, coded)
    values = _of_bits(pixels, coded.precision, header)
    return _rgb(values, coded, header) if values.ndim == 3 else values


def _jpeg_header(frame: bytes) -> _JpegHeader | None:
    """None if it breaks the standard: pixels before a size, two sizes, or a pyramid of them."""
    frame_header, is_ycc, restart, position = None, False, 0, 2
    for _ in range(_PARTS):
        if frame[position : position + 1] != b"\xff" or len(frame) < position + 4:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xD8 or 0xD0 <= marker <= 0xD7:
            return None
        start, position = position + 4, position + 2 + struct.unpack_from(">H", frame, position + 2)[0]
        segment = frame[start:position]
        if marker in _FRAME_HEADERS:
            if frame_header or len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
                return None
            frame_header = marker, start, segment
        elif marker == 0xDE:
            return None
        elif marker == 0xDD and len(segment) >= 2:
            restart = struct.unpack_from(">H", segment)[0]
        elif marker in (0xE0, 0xEE):
            is_ycc |= segment[:5] == b"JFIF\0" or (segment[:5] == b"Adobe" and segment[11:12] == b"\1")
        elif marker == 0xDA:
            return _with_scan(frame_header, segment, start - 4, is_ycc, restart)
    return None


def _with_scan(
    frame_header: tuple[int, int, bytes] | None, scan: bytes, scan_at: int, is_ycc: bool, restart: int
) -> _JpegHeader | None:
    if not frame_header or len(scan) < 6:
        return None
    process, at, frame = frame_header
    precision, height, width, components = struct.unpack_from(">BHHB", frame)
    names = frame[6 : 6 + 3 * components : 3]
    return _JpegHeader(process, precision, at, scan_at, (width, height, components), names, is_ycc, restart)


def _plain_jpeg(frame: bytes, header: _JpegHeader) -> np.ndarray:
    """The components as coded: libjpeg-turbo converts nothing if it gets and returns the same colour space."""
    if header.size[2] == 3:
        return jpeg8_decode(frame, colorspace="ycbcr", outcolorspace="ycbcr")
    return jpeg8_decode(frame)


def _jpeg_ls(frame: bytes) -> np.ndarray:
    frame += _END  # without this mark, CharLS takes seconds to look for the rest of a truncated stream
    try:
        return jpegls_decode(frame)
    except JpeglsError:
        end = frame.find(_END)
        padded = frame[:end].rstrip(b"\0")  # some encoders pad with zeros before the closing mark, which CharLS refuses
        if len(padded) == end:
            raise
        return jpegls_decode(padded + _END)


def _rgb(pixels: np.ndarray, coded: _JpegHeader, header: Header) -> np.ndarray:
    """The colour space is that of the header, unless a lossy stream states another one itself (PS3.5, 8.2.1)."""
    is_ycc = header.photometric.startswith("YBR")
    if coded.process not in (_LOSSLESS, _LS):
        is_ycc = (is_ycc or coded.is_ycc) and coded.names.lower() != b"rgb"
    return convert_color_space(pixels, "YBR_FULL", "RGB") if is_ycc else pixels


@dataclass(frozen=True)
class _Scan:
    """What a scan of a lossless picture says of its components."""

    names: bytes
    predictor: int  # 1 to 7
    shift: int  # the point transform, bits
    shift_at: int  # its place in the stream


def _scans(frame: bytes, header: _JpegHeader) -> list[_Scan]:
    """One scan for all components, or one for each. Coded pixels between them never look like a marker."""
    scans, at = [], header.scan_at
    while at >= 0:
        count = frame[at + 4] if at + 4 < len(frame) else 0
        last = at + 7 + 2 * count
        if count and last < len(frame):
            scans.append(_Scan(frame[at + 5 : last - 2 : 2], frame[last - 2], frame[last] & 15, last))
        at = frame.find(_SCAN, last + 1)
    return scans


def _averaged(frame: bytes, header: _JpegHeader, scans: list[_Scan]) -> np.ndarray:
    """A lossless picture whose predictor halves: sums outside the range would give wrong lowest bits.

    It is decoded as if it had 16 bits: no sum of a regular stream is out of range then, and predictions differ by a
    constant only. If a sum is out of range all the same, the encoder took differences modulo 2^precision: they are
    recovered from that picture and added up again, with each sum kept in range.
    """
    as_16 = bytearray(frame)
    as_16[header.precision_at] = 16
    for scan in scans:
        as_16[scan.shift_at] = 0
    values = _plain_jpeg(bytes(as_16), header).astype(np.int32)
    of_name = {name: scan for scan in scans for name in scan.names}
    for name, plane in zip(header.names, np.moveaxis(np.atleast_3d(values), -1, 0), strict=True):  # views of them
        plane[:] = _in_range(plane, of_name.get(name, scans[0]), header)
    return values


def _in_range(plane: np.ndarray, scan: _Scan, header: _JpegHeader) -> np.ndarray:
    """A component's values, from those decoded with 16 bits."""
    bits = header.precision - scan.shift
    values = plane - (2**15 - 2 ** (bits - 1))
    if scan.predictor > 4 and (values.min() < 0 or values.max() >= 2**bits):
        rows = header.restart // header.size[0] or header.size[1]
        for top in range(0, len(values), rows):
            band = slice(top, top + rows)
            values[band] = _summed(_differences(values[band], scan.predictor), scan.predictor, bits)
    return np.asarray(values << scan.shift)


def _differences(values: np.ndarray, predictor: int) -> np.ndarray:
    """The differences that the stream contained for these values; the first value has no neighbour and stays."""
    differences = values.copy()
    differences[0, 1:] = values[0, 1:] - values[0, :-1]
    differences[1:, 0] = values[1:, 0] - values[:-1, 0]
    differences[1:, 1:] = values[1:, 1:] - _predicted(values[1:, :-1], values[:-1, 1:], values[:-1, :-1], predictor)
    return differences


def _summed(differences: np.ndarray, predictor: int, bits: int) -> np.ndarray:
    """The reverse of _differences, each value kept within its bits; one diagonal after the other."""
    values, inside = np.zeros_like(differences), 2**bits - 1
    rows, columns = values.shape
    values[0] = differences[0].cumsum() & inside
    values[:, 0] = differences[:, 0].cumsum() & inside
    flat, flat_differences = values.reshape(-1), differences.reshape(-1)
    for diagonal in range(2, rows + columns - 1):
        top, bottom = max(1, diagonal - columns + 1), min(rows - 1, diagonal - 1)
        at = np.arange(top, bottom + 1) * (columns - 1) + diagonal
        predicted = _predicted(flat[at - 1], flat[at - columns], flat[at - columns - 1], predictor)
        flat[at] = (predicted + flat_differences[at]) & inside
    return values


def _predicted(left: np.ndarray, above: np.ndarray, corner: np.ndarray, predictor: int) -> np.ndarray:
    """The predictors that halve, numbered as in ISO 10918-1, table H.1."""
    if predictor == 5:
        return np.asarray(left + ((above - corner) >> 1))
    return np.asarray(above + ((left - corner) >> 1) if predictor == 6 else (left + above) >> 1)
