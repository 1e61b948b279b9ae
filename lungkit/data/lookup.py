"""DICOM lookup tables (PS3.3: C.7.6.3.1.5, C.7.9.2, C.11.1, C.11.2), whatever their word size and sign."""

from dataclasses import dataclass

import numpy as np

from lungkit.data.dicom_header import PALETTES, Header, Raw
from lungkit.data.image import Broken

_KINDS = ("", "UN", "OB", "OW", "US", "SS")
_EXPORT = "Export the image again."
_SEGMENTS = 2**18  # of a segmented table, copies counted: several for each entry of the longest one


class Unusable(Exception):
    """Why a lookup table cannot be used."""


@dataclass(frozen=True)
class LookupTable:
    """A lookup table. Values below its range get the first entry, values above it the last."""

    first: int  # value mapped
    entries: np.ndarray
    white: int  # the largest entry that its depth allows

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f":
            values = np.rint(values)
        return self.entries[np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)]


def item_table(item: dict[str, Raw], order: str, lowest: float, highest: float) -> LookupTable:
    """The table of a sequence item, for values from `lowest` to `highest`. order: "<" or ">". Raises Unusable."""
    return _table(item.get("LUTDescriptor"), item.get("LUTData"), None, "LUT", order, (lowest, highest))


def palette(header: Header) -> list[LookupTable]:
    """The tables of red, green and blue, all of one depth. Raises Broken."""
    try:
        tables = [
            _table(
                header.raw.get(f"{name}Descriptor"),
                header.raw.get(f"{name}Data"),
                header.raw.get(f"Segmented{name}Data"),
                name,
                header.order,
                (header.lowest, header.highest),
            )
            for name in PALETTES
        ]
    except Unusable as unusable:
        raise Broken(f"palette not usable: {unusable}", _EXPORT) from unusable
    white = max(colour.white for colour in tables)
    return [LookupTable(colour.first, colour.entries, white) for colour in tables]


def _table(
    descriptor: Raw | None, data: Raw | None, segments: Raw | None, name: str, order: str, reach: tuple[float, float]
) -> LookupTable:
    for raw in (descriptor, data, segments):
        if raw and raw.kind not in _KINDS:
            raise Broken("damaged: a lookup table that is not of numbers", _EXPORT)
    if not descriptor or len(descriptor.content) < 6:
        raise Unusable(f"{name}Descriptor missing")
    count, first, bits = np.frombuffer(descriptor.content[:6], f"{order}u2").tolist()
    count = count or 2**16
    if data and data.content:
        packed = count <= len(data.content) < min(count + 2, 2 * count)  # 8 bits each
        entries = _words(data, order, not packed)[:count]
    elif segments and segments.content:
        entries = _expanded(_words(segments, order, bits > 8), count, bits > 8)
    else:
        raise Unusable(f"{name}Data missing")
    if len(entries) < count:
        raise Unusable(f"{name}Data of {len(entries)} entries, where {name}Descriptor says {count}")
    return LookupTable(_first(first, descriptor.kind, count, reach), entries, 2 ** _depth(entries, bits) - 1)


def _words(data: Raw, order: str, wide: bool) -> np.ndarray:
    """16-bit entries, or 8-bit ones: one after the other, or packed in words whose low byte comes first."""
    content = data.content
    if wide:
        return np.frombuffer(content[: len(content) // 2 * 2], f"{order}u2").astype(np.uint16)
    if order == ">" and data.kind != "OB":
        return np.frombuffer(content[: len(content) // 2 * 2], np.uint16).byteswap().view(np.uint8)
    return np.frombuffer(content, np.uint8)


def _first(first: int, kind: str, count: int, reach: tuple[float, float]) -> int:
    """The first value mapped, with its sign. Files write it signed or unsigned, and often the wrong one.

    Of the two meanings of its 16 bits, the one counts with which the table covers more of the possible values. If both
    cover the same number, the one that the file states counts.
    """
    lowest, highest = reach
    signed = kind == "SS" or (kind != "US" and lowest < 0)

    def covered(start: int) -> tuple[float, bool]:
        return min(highest, start + count - 1) - max(lowest, start), (start < 0) == signed

    return max(first, first - 2**16, key=covered) if first >= 2**15 else first


def _depth(entries: np.ndarray, bits: int) -> int:
    """Bits of an entry. The stated number counts, unless an entry needs more or all are below a quarter of the range.

    Such files exist: they state 16 for tables of 8 to 12 bits.
    """
    needed = int(entries.max()).bit_length()
    stated_wrongly = not 1 <= bits <= 16 or needed > bits or needed < bits - 1
    return max(needed, min(bits or 8, 8)) if stated_wrongly else bits


def _expanded(words: np.ndarray, count: int, wide: bool) -> np.ndarray:
    """The entries of a segmented table (C.7.9.2), no more than `count`. Raises Unusable."""
    data, entries = words.tolist(), list[int]()
    starts: set[int] = set()
    todo = [(0, len(data))]  # (position, number of segments there); the last one is next
    for _ in range(_SEGMENTS):
        if not todo or len(entries) >= count:
            return np.array(entries[:count], np.uint16)
        position, left = todo.pop()
        if not left or position + 2 >= len(data):
            continue
        starts.add(position)
        kind, length = data[position : position + 2]
        after = position + (2 + length, 3, 4 if wide else 6)[min(kind, 2)]
        todo.append((after, left - 1))
        if kind == 0:
            entries += data[position + 2 : after]
        elif kind == 1 and entries:
            start, end = entries[-1], data[position + 2]
            entries += [round(start + (end - start) * step / length) for step in range(1, length + 1)]
        elif kind == 2 and after <= len(data):
            todo.append((_copied(data[position + 2 : after], starts, wide), length))
        else:
            raise Unusable("segments that do not follow PS3.3, C.7.9.2")
    raise Unusable(f"more than {_SEGMENTS} segments")


def _copied(offset: list[int], starts: set[int], wide: bool) -> int:
    """Where the segments to copy start. The standard counts bytes, but some files count entries."""
    position = sum(part << (16 if wide else 8) * place for place, part in enumerate(offset))
    places = [place for place in (position // 2 if wide else position, position) if place in starts]
    if not places:
        raise Unusable("a segment that copies from where none starts")
    return places[0]
