"""PNG, JPEG and TIFF over the grid of what may stand in them, held against tifffile, libjpeg-turbo and numpy.

The samples of each file are known, or as an independent decoder gives them; what they mean follows from the rules that
head lungkit.data.images, worked out here without a line of the reader's. `pytest -s` prints the counts.
"""

import collections
import io
import itertools
import random
import struct
import zlib

import imagecodecs
import numpy as np
import PIL.Image
import tifffile

from lungkit.data.images import ImageRefused, read

HEIGHT, WIDTH = 37, 50
ROUNDING = 1.6 / 255  # of colours of 8 bits, which are divided by their alpha and become luminance in whole steps
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def grid(choices: dict[str, list], can_be) -> list[dict]:
    """Cases in which every three choices that can stand together do so at least once; always the same."""
    rng = random.Random(7)
    pool = [{name: rng.choice(values) for name, values in choices.items()} for _ in range(6000)]
    pool = [case for case in pool if can_be(case)]
    threes = [frozenset(itertools.combinations(case.items(), 3)) for case in pool]
    left, found = set().union(*threes), []
    while left:
        place = max(rng.sample(range(len(pool)), 100), key=lambda at: len(threes[at] & left))
        if not threes[place] & left:
            place = next(at for at in range(len(pool)) if threes[at] & left)
        found.append(pool[place])
        left -= threes[place]
    return found


# --- what samples mean -------------------------------------------------------------------------------------------


def stretched(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values[counts].astype(float), (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


def meaning(samples: np.ndarray, bits: int, alpha: np.ndarray | None, inverted=False, multiplied=False) -> np.ndarray:
    """float64 0..1 of grey (height, width) or RGB (height, width, 3) samples; alpha: 0..1. multiplied: by it."""
    light = samples.astype(float) if samples.ndim == 2 else samples @ np.array([0.299, 0.587, 0.114])
    alpha = np.ones(light.shape) if alpha is None else alpha
    lowest = np.iinfo(samples.dtype).min if samples.dtype.kind == "i" else 0
    light = (light - lowest) / (2**bits - 1) if bits <= 8 else stretched(light, alpha > 0)
    light = 1 - light if inverted else light
    return light if multiplied else light * alpha


def compared(grid_of: list[dict], make, slack=ROUNDING) -> collections.Counter:
    """Reads each case; counts what was read, and what was refused as not supported. make: (content, expected)."""
    counts, wrong = collections.Counter(), []
    for number, case in enumerate(grid_of):
        content, expected = make(case, np.random.default_rng(number))
        try:
            found = read(content).pixels
        except ImageRefused as refused:
            counts[refused.rule] += 1
            wrong += [] if refused.rule.startswith("not supported") else [f"{case}: {refused.rule}"]
            continue
        counts["read"] += 1
        if found.shape != expected.shape or (far := np.abs(found - expected).max()) > slack:
            wrong.append(
                f"{case}: {found.shape}, {expected.shape}" if found.shape != expected.shape else f"{case}: {far}"
            )
    print(f"\n{len(grid_of)} files", *(f"{count:4} {what}" for what, count in counts.items()), sep="\n")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(grid_of)}", *wrong[:30]])
    return counts


def waves(rng: np.random.Generator, *more: int) -> np.ndarray:
    """float64 0..1 (height, width, ...), smooth with some noise, both ends included."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [
        np.sin(rows / rng.uniform(4, 9)) + np.cos(columns / rng.uniform(4, 9)) for _ in range(more[0] if more else 1)
    ]
    planes = [plane + rng.uniform(0, 0.3, plane.shape) for plane in planes]
    scaled = np.stack([(plane - plane.min()) / np.ptp(plane) for plane in planes], -1)
    return scaled if more else scaled[..., 0]


# --- TIFF --------------------------------------------------------------------------------------------------------

TIFF = {
    "photometric": ["minisblack", "miniswhite", "rgb", "palette"],
    "type": ["bool", "u1", "u2", "i1", "i2", "u4", "i4", "f4", "f8"],
    "more": ["none", "alpha", "alpha, multiplied"],
    "compression": [None, "zlib", "lzw", "packbits"],
    "predictor": [False, True],
    "order": ["<", ">"],
    "layout": ["strips", "one strip", "tiles"],
    "planar": ["contig", "separate"],
    "orientation": [1, 1, 3, 6, 8],
    "bigtiff": [False, False, True],
}


def tiff_can_be(case: dict) -> bool:
    colour, kind, more = case["photometric"], case["type"], case["more"]
    if colour == "rgb" and kind not in ("u1", "u2"):
        return False
    if colour == "palette" and (kind != "u1" or more != "none"):
        return False
    if more != "none" and (kind not in ("u1", "u2") or colour == "miniswhite"):
        return False
    if case["planar"] == "separate" and colour != "rgb":
        return False
    if case["predictor"] and (case["compression"] not in ("zlib", "lzw") or kind not in ("u1", "u2", "u4", "i2", "i4")):
        return False
    return kind != "bool" or (case["layout"] != "tiles" and case["compression"] != "lzw")


def tiff(case: dict, rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    kind, more = np.dtype(case["type"]), case["more"]
    colour, has_alpha = case["photometric"], more != "none"
    count = (3 if colour == "rgb" else 1) + has_alpha
    samples = of_type(waves(rng, count), kind)
    white = np.iinfo(kind).max if kind.kind == "u" else 1
    if has_alpha:
        samples[..., -1] = np.where(
            rng.uniform(size=(HEIGHT, WIDTH)) < 0.3, 0, np.maximum(samples[..., -1], white // 3)
        )
    if more.endswith("multiplied"):
        samples[..., :-1] = samples[..., :-1].astype(float) * samples[..., -1:] / white
    content, options = io.BytesIO(), {}
    if colour == "palette":
        options["colormap"] = table = rng.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    if has_alpha:
        options["extrasamples"] = ["assocalpha" if more.endswith("multiplied") else "unassalpha"]
    layout = {"tiles": {"tile": (16, 32)}, "strips": {"rowsperstrip": 7}, "one strip": {"rowsperstrip": HEIGHT}}
    stored = samples if count > 1 else samples[..., 0]
    tifffile.imwrite(
        content,
        np.moveaxis(stored, -1, 0) if case["planar"] == "separate" else stored,
        byteorder=case["order"],
        photometric=colour,
        planarconfig=case["planar"] if count > 1 else None,
        compression=case["compression"],
        predictor=case["predictor"],
        bigtiff=case["bigtiff"],
        metadata=None,
        extratags=[(274, "H", 1, case["orientation"], True)],
        **layout[case["layout"]],
        **options,
    )
    as_read = tifffile.imread(io.BytesIO(content.getvalue()))
    as_read = np.moveaxis(as_read, 0, -1) if case["planar"] == "separate" else as_read
    np.testing.assert_array_equal(as_read, stored)
    alpha = stored[..., -1] / white if has_alpha else None
    plain = stored[..., :-1] if has_alpha else stored
    plain = plain[..., 0] if plain.ndim == 3 and plain.shape[-1] == 1 else plain
    plain = np.moveaxis(table // 257, 0, -1)[plain].astype(np.uint8) if colour == "palette" else plain
    bits = 1 if kind.kind == "b" else 8 * kind.itemsize
    expected = meaning(plain, bits, alpha, colour == "miniswhite", more.endswith("multiplied"))
    return content.getvalue(), UPRIGHT[case["orientation"]](expected)


def of_type(scaled: np.ndarray, kind: np.dtype) -> np.ndarray:
    if kind.kind == "b":
        return scaled > 0.5
    if kind.kind == "f":
        return (scaled * 3000 - 1000).astype(kind)
    ends = np.iinfo(kind)
    return np.rint(ends.min + scaled * (float(ends.max) - ends.min) * 0.9).astype(np.int64).astype(kind)


def tiff_is_refused(case: dict) -> bool:
    """What Pillow does not decode: big-endian BigTIFF, and compressed planes of 16 bits."""
    deep_planes = case["type"] == "u2" and case["planar"] == "separate" and case["compression"]
    return (case["bigtiff"] and case["order"] == ">") or bool(deep_planes)


def test_every_tiff_of_the_grid_is_read_as_tifffile_has_its_samples_or_refused_in_words():
    cases = grid(TIFF, tiff_can_be)
    counts = compared(cases, tiff)
    assert counts["read"] == len(cases) - sum(map(tiff_is_refused, cases)) > 140


# --- PNG ---------------------------------------------------------------------------------------------------------

PNG = {
    "colour": [0, 2, 3, 4, 6],  # as in PNG: grey, RGB, palette, grey and alpha, RGB and alpha
    "bits": [1, 2, 4, 8, 16],
    "interlaced": [False, True],
    "filter": [0, 1, 2, "mixed"],
    "transparent": [False, True],  # the tRNS chunk
    "orientation": [1, 1, 6],
}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png_can_be(case: dict) -> bool:
    colour, bits = case["colour"], case["bits"]
    if (colour in (2, 4, 6) and bits < 8) or (colour == 3 and bits == 16):
        return False
    return not (case["transparent"] and colour in (4, 6))


def png(case: dict, rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """By hand, as no library writes all of it."""
    colour, bits, count = case["colour"], case["bits"], CHANNELS[case["colour"]]
    white = 2**bits - 1
    samples = np.rint(waves(rng, count) * white).astype(np.int64)
    if colour in (4, 6):
        samples[..., -1] *= rng.uniform(size=(HEIGHT, WIDTH)) > 0.3
    palette = rng.integers(0, 256, (white + 1 if colour == 3 else 1, 3)).astype(np.uint8)
    key = samples[5, 9].copy()
    chunks = [chunk(b"IHDR", struct.pack(">2I5B", WIDTH, HEIGHT, bits, colour, 0, 0, case["interlaced"]))]
    chunks += [chunk(b"PLTE", palette.tobytes())] if colour == 3 else []
    opacity = rng.integers(0, 256, len(palette)).astype(np.uint8)
    if case["transparent"]:
        chunks += [chunk(b"tRNS", opacity.tobytes() if colour == 3 else key.astype(">u2").tobytes())]
    if case["orientation"] != 1:
        exif = struct.pack(">2sHIH2HIHHI", b"MM", 42, 8, 1, 274, 3, 1, case["orientation"], 0, 0)
        chunks += [chunk(b"eXIf", exif)]
    content = b"".join(filtered(part, bits, case["filter"], rng) for part in passes(samples, case["interlaced"]))
    chunks += [chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")]
    alpha, plain, depth = None, samples, bits
    if colour in (4, 6):
        alpha, plain = samples[..., -1] / white, samples[..., :-1]
    if colour == 3:
        alpha = opacity[samples[..., 0]] / 255 if case["transparent"] else None
        plain, depth = palette[samples[..., 0]], 8
    elif case["transparent"]:
        alpha = (samples != key).any(-1).astype(float)
    plain = plain[..., 0] if plain.shape[-1] == 1 else plain
    expected = meaning(plain.astype(np.uint16), depth, alpha)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks), UPRIGHT[case["orientation"]](expected)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def passes(samples: np.ndarray, interlaced: bool) -> list[np.ndarray]:
    """Adam7."""
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return [samples[top::down, left::right] for top, left, down, right in starts] if interlaced else [samples]


def filtered(samples: np.ndarray, bits: int, kind: int | str, rng: np.random.Generator) -> bytes:
    """The scan lines, each behind the number of its filter: none, left, above, or all five by chance."""
    rows, columns, count = samples.shape
    if not rows or not columns:
        return b""
    if bits == 16:
        lines = samples.astype(">u2").reshape(rows, -1).view(np.uint8)
    elif bits == 8:
        lines = samples.astype(np.uint8).reshape(rows, -1)
    else:
        single = (samples.reshape(rows, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
        lines = np.packbits(single.reshape(rows, -1).astype(np.uint8), axis=1)
    lines, step, out = lines.astype(np.int64), max(1, count * bits // 8), []
    for row, line in enumerate(lines):
        above = lines[row - 1] if row else np.zeros_like(line)
        left, corner = (np.concatenate([np.zeros(step, np.int64), part])[: len(line)] for part in (line, above))
        nearest = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner])).argmin(0)
        predicted = [0, left, above, (left + above) // 2, np.choose(nearest, [left, above, corner])]
        number = int(rng.integers(5)) if kind == "mixed" else kind
        out.append(bytes([number]) + ((line - predicted[number]) % 256).astype(np.uint8).tobytes())
    return b"".join(out)


def test_every_png_of_the_grid_is_read_as_its_samples_mean():
    cases = grid(PNG, png_can_be)
    counts = compared(cases, png)
    assert counts["read"] == len(cases) > 30


# --- JPEG --------------------------------------------------------------------------------------------------------

JPEG = {
    "mode": ["L", "RGB", "CMYK"],
    "progressive": [False, True],
    "subsampling": ["4:4:4", "4:2:2", "4:2:0"],
    "quality": [35, 95],
    "restart_marker_blocks": [0, 3],
    "keep_rgb": [False, True],
    "orientation": list(UPRIGHT),
}


def jpeg_can_be(case: dict) -> bool:
    return (case["mode"], case["subsampling"]) == ("RGB", "4:4:4") or not case["keep_rgb"]


def jpeg(case: dict, rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    options = {
        name: case[name] for name in ("progressive", "subsampling", "quality", "restart_marker_blocks", "keep_rgb")
    }
    exif = PIL.Image.Exif()
    exif[274] = case["orientation"]
    content = io.BytesIO()
    scaled = (waves(rng, 3) * 255).astype(np.uint8)
    PIL.Image.fromarray(scaled).convert(case["mode"]).save(content, "JPEG", exif=exif, **options)
    samples = imagecodecs.jpeg8_decode(content.getvalue())
    if case["mode"] == "CMYK":  # Adobe's are inverted
        samples = samples[..., :3] * (samples[..., 3:] / 255)
    return content.getvalue(), UPRIGHT[case["orientation"]](meaning(np.rint(samples).astype(np.uint8), 8, None))


def test_every_jpeg_of_the_grid_is_read_as_libjpeg_turbo_decodes_it():
    cases = grid(JPEG, jpeg_can_be)
    counts = compared(cases, jpeg, slack=2.01 / 255)
    assert counts["read"] == len(cases) > 20
