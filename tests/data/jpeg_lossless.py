"""A lossless JPEG encoder written from ISO 10918-1, annex H, for tests: no library writes all that it allows."""

import struct

import numpy as np


def encoded(
    values: np.ndarray,
    precision: int,
    predictor: int = 1,
    wraps: bool = False,
    shift: int = 0,
    restart_rows: int = 0,
    own_scans: bool = False,
    markers: bytes = b"",
) -> bytes:
    """The stream of (rows, columns) or (rows, columns, 3) values of `precision` bits.

    wraps: differences modulo 2^precision, as some encoders take them, rather than modulo 2^16. shift: the point
    transform. own_scans: one scan for each component. Each value costs 5 bits and those of its difference.
    """
    planes = np.atleast_3d(values).astype(np.int64) >> shift
    rows, columns, components = planes.shape
    half = 2 ** (precision - shift - 1 if wraps else 15)
    differences = planes - np.dstack(
        [_predicted(planes[..., n], precision - shift, predictor, restart_rows) for n in range(components)]
    )
    differences = (differences + half - 1) % (2 * half) - half + 1
    table = bytes([0, 0, 0, 0, 0, 17]) + bytes(11) + bytes(range(17))
    each = [(number + 1, 0x11, 0) for number in range(components)]
    parts = [b"\xff\xd8", markers, _segment(0xC4, table)]
    parts += [_segment(0xC3, struct.pack(">BHHB", precision, rows, columns, components) + bytes(sum(each, ())))]
    if restart_rows:
        parts += [_segment(0xDD, struct.pack(">H", restart_rows * columns))]
    for scan in [[n] for n in range(components)] if own_scans else [list(range(components))]:
        names = b"".join(bytes([n + 1, 0]) for n in scan)
        parts += [_segment(0xDA, bytes([len(scan)]) + names + bytes([predictor, 0, shift]))]
        for number, top in enumerate(range(0, rows, restart_rows or rows)):
            parts += [bytes([0xFF, 0xD0 + (number - 1) % 8])] if number else []
            parts += [_packed(differences[top : top + (restart_rows or rows), :, scan].reshape(-1).tolist())]
    return b"".join([*parts, b"\xff\xd9"])


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _predicted(plane: np.ndarray, bits: int, predictor: int, restart_rows: int) -> np.ndarray:
    left, above, corner = (np.zeros_like(plane) for _ in range(3))
    left[:, 1:], above[1:], corner[1:, 1:] = plane[:, :-1], plane[:-1], plane[:-1, :-1]
    found = {
        1: left,
        2: above,
        3: corner,
        4: left + above - corner,
        5: left + ((above - corner) >> 1),
        6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[predictor].copy()
    found[:, 0] = above[:, 0]
    for top in range(0, len(plane), restart_rows or len(plane)):
        found[top] = left[top]
        found[top, 0] = 2 ** (bits - 1)
    return found


def _packed(differences: list[int]) -> bytes:
    bits = "".join(_code(difference) for difference in differences)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")


def _code(difference: int) -> str:
    """Five bits that say how many follow, and those; 2^15 needs none."""
    length = abs(difference).bit_length()
    if length in (0, 16):
        return f"{length:05b}"
    return f"{length:05b}{difference if difference > 0 else difference + 2**length - 1:0{length}b}"
