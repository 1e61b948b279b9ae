"""Finds each frame in the PixelData of a DICOM file. One frame can then be read without the others.

In uncompressed pixels, frames follow each other. In compressed ones they are fragments: the extended or the basic
offset table says which belong to which frame; without a table there is one fragment for each frame, or each frame
begins with the first bytes of a coded picture (PS3.5, A.4).
"""

import io
import itertools
import struct
from typing import BinaryIO

from lungkit.data.dicom_header import PIXEL_DATA, Header, Raw
from lungkit.data.image import Broken

Part = tuple[int, int]  # where it starts in the file, and how many bytes it has

_ITEM, _END = 0xFFFEE000, 0xFFFEE0DD
_OPEN = 0xFFFFFFFF
_STARTS = (b"\xff\xd8", b"\xff\x4f", b"\0\0\0\x0c")  # JPEG and JPEG-LS, JPEG 2000, JPEG 2000 as a file
_FRAGMENTS = 400_000  # of a file
_TRUNCATED = "truncated: the file ends within the pixels", "Copy or download it again."
_EXPORT = "Export the image again."


def places(stream: BinaryIO, header: Header, count: int) -> list[tuple[Part, ...]]:
    """The parts of the file that each of `count` frames consists of. No pixel is read.

    header: checked, with `rows`, `columns` and the like. Raises Broken if the file lacks a part of them.
    """
    element, size = header.pixels, stream.seek(0, io.SEEK_END)
    if element is None or element.tag != PIXEL_DATA:
        raise Broken("no pixel data", _EXPORT)
    end = size if element.length == _OPEN else element.start + element.length
    if header.syntax.is_encapsulated:
        return _of_fragments(stream, header, count, end, is_open=element.length == _OPEN)
    frame = header.rows * header.columns * header.samples * header.bits_allocated // 8
    there = min(end, size) - element.start
    if there < count * frame:
        raise Broken(f"truncated: {there} of {count * frame} bytes of pixels", "Copy or download it again.")
    return [((element.start + number * frame, frame),) for number in range(count)]


def content(stream: BinaryIO, header: Header, parts: tuple[Part, ...]) -> Raw:
    """The bytes of a frame. Raises Broken if the file has become shorter."""
    read = []
    for start, length in parts:
        stream.seek(start)
        read.append(stream.read(length))
        if len(read[-1]) < length:
            raise Broken(*_TRUNCATED)
    return Raw(header.pixels.kind if header.pixels else "", b"".join(read))


def _of_fragments(stream: BinaryIO, header: Header, count: int, end: int, is_open: bool) -> list[tuple[Part, ...]]:
    table, *fragments = _fragments(stream, header, end, is_open)
    if count == 1 and fragments:
        return [tuple(fragments)]
    offsets = _offsets(stream, header, table)
    if offsets:
        return _by_offsets(offsets, sum(table), fragments, count)
    if len(fragments) == count:
        return [(fragment,) for fragment in fragments]
    return _by_starts(stream, fragments, count)


def _fragments(stream: BinaryIO, header: Header, end: int, is_open: bool) -> list[Part]:
    """The basic offset table, and each fragment after it; at least the table."""
    assert header.pixels is not None
    found: list[Part] = []
    position, size = header.pixels.start, stream.seek(0, io.SEEK_END)
    while position < end:
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            raise Broken(*_TRUNCATED)
        group, element, length = struct.unpack("<HHI", head)
        tag, start = group << 16 | element, position + 8
        if tag == _END:
            is_open = False
            break
        if tag != _ITEM or length == _OPEN:
            raise Broken("damaged: something else between the fragments of the pixels", _EXPORT)
        position = start + length
        if position > size:
            raise Broken(*_TRUNCATED)
        found.append((start, length))
        if len(found) > _FRAGMENTS:
            raise Broken(f"damaged: more than {_FRAGMENTS} fragments of pixels", _EXPORT)
    if is_open:
        raise Broken(*_TRUNCATED)
    if not found:
        raise Broken("no pixel data: PixelData is empty", _EXPORT)
    return found


def _offsets(stream: BinaryIO, header: Header, table: Part) -> list[int]:
    """Where each frame's first fragment starts, counted from the end of the table; empty if the file does not say."""
    extended = header.raw.get("ExtendedOffsetTable", Raw("", b"")).content
    if extended:
        return [offset for (offset,) in struct.iter_unpack("<Q", extended[: len(extended) // 8 * 8])]
    stream.seek(table[0])
    basic = stream.read(table[1] // 4 * 4)
    return [offset for (offset,) in struct.iter_unpack("<I", basic)]


def _by_offsets(offsets: list[int], base: int, fragments: list[Part], count: int) -> list[tuple[Part, ...]]:
    numbers = {start - 8 - base: number for number, (start, _) in enumerate(fragments)}
    firsts = [numbers.get(offset, -1) for offset in offsets]
    if len(firsts) != count or firsts[0] != 0 or any(a >= b for a, b in itertools.pairwise(firsts)):
        raise Broken(
            f"damaged: the offset table does not say where {count} frames start, in {len(fragments)} fragments", _EXPORT
        )
    return _between([*firsts, len(fragments)], fragments)


def _by_starts(stream: BinaryIO, fragments: list[Part], count: int) -> list[tuple[Part, ...]]:
    firsts = []
    for number, (start, _) in enumerate(fragments):
        stream.seek(start)
        if stream.read(4).startswith(_STARTS):
            firsts.append(number)
    if len(firsts) != count or firsts[0] != 0:
        raise Broken(f"damaged: {len(fragments)} fragments of pixels cannot be told apart as {count} frames", _EXPORT)
    return _between([*firsts, len(fragments)], fragments)


def _between(firsts: list[int], fragments: list[Part]) -> list[tuple[Part, ...]]:
    return [tuple(fragments[first:after]) for first, after in itertools.pairwise(firsts)]
