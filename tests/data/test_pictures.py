"""PNG, JPEG and TIFF of every depth and layout, and JPEGs decoded at a smaller scale. The files are made here."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lungkit.data import pictures
from lungkit.data.image import placed
from lungkit.data.images import ImageRefused, probe, read
from lungkit.data.preprocess import Preprocessing, prepare

HEIGHT, WIDTH = 41, 53
RANDOM = np.random.default_rng(7)
GREY12 = RANDOM.integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)  # 12 bits in words of 16
COLOURS12 = np.stack([GREY12, GREY12[::-1], GREY12[:, ::-1]], axis=-1)
HIDDEN = np.s_[:15]  # rows that are transparent, where there is an alpha
WEIGHTS = np.array([0.299, 0.587, 0.114])
SCALED, FULL = Preprocessing((224, 224)), Preprocessing((224, 224), jpeg="full")


def stretched(values: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """The rule for more than 8 bits, by numpy."""
    low, high = np.percentile(values if seen is None else seen, (0.5, 99.5))
    return np.clip((values.astype(float) - low) / (high - low), 0, 1)


def refusal(content: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        read(content)
    with pytest.raises(ImageRefused):
        prepare(content, Preprocessing((32, 32)))
    return caught.value


# --- PNG -----------------------------------------------------------------------------------------------------------


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _packed(rows: np.ndarray, bits: int) -> bytes:
    """Unfiltered rows: samples (height, n) of so many bits, each row from a byte of its own."""
    if bits >= 8:
        return b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in rows)
    single = (rows[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(rows), -1).astype(np.uint8)
    return b"".join(b"\0" + row.tobytes() for row in np.packbits(single, axis=1))


def png(samples: np.ndarray, bits: int, interlaced: bool = False, palette: bytes = b"", **chunks: bytes) -> bytes:
    """A PNG by hand: samples (height, width) or (height, width, 2 to 4)."""
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    colour_type = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    height, width = samples.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [samples[y::down, x::right] for y, x, down, right in passes]
    pixels = b"".join(_packed(part.reshape(len(part), -1), bits) for part in parts if part.size)
    header = struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, int(interlaced))
    more = ([(b"PLTE", palette)] if palette else []) + [(name.encode(), content) for name, content in chunks.items()]
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + b"".join(_chunk(*part) for part in more)
        + _chunk(b"IDAT", zlib.compress(pixels))
        + _chunk(b"IEND", b"")
    )


def with_alpha(samples: np.ndarray, full: int = 65535) -> np.ndarray:
    alpha = np.full((HEIGHT, WIDTH, 1), full, np.uint16)
    alpha[HIDDEN] = 0
    return np.concatenate([np.atleast_3d(samples), alpha], axis=-1)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bands", [1, 3])
def test_16_bit_colour_uses_the_whole_range_as_grey_does(bands, interlaced):
    grey = png(GREY12, 16, interlaced)
    same = png(np.dstack([GREY12] * 3), 16, interlaced) if bands == 3 else grey
    np.testing.assert_allclose(read(same).pixels, stretched(GREY12), atol=1e-5)


@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bit_colour_becomes_luminance_before_it_is_stretched(interlaced):
    expected = stretched(COLOURS12 @ WEIGHTS)
    np.testing.assert_allclose(read(png(COLOURS12, 16, interlaced)).pixels, expected, atol=1e-5)


@pytest.mark.parametrize("samples", [GREY12, COLOURS12], ids=["grey", "colour"])
def test_16_bit_transparency_is_black_and_does_not_count(samples):
    light = samples if samples.ndim == 2 else samples @ WEIGHTS
    expected = stretched(light, light[HIDDEN.stop :])
    expected[HIDDEN] = 0
    np.testing.assert_allclose(read(png(with_alpha(samples), 16)).pixels, expected, atol=1e-5)


def test_half_transparent_16_bits_are_half_as_bright():
    samples = with_alpha(GREY12)
    samples[..., 1] = 32768
    np.testing.assert_allclose(read(png(samples, 16)).pixels, stretched(GREY12) * 32768 / 65535, atol=1e-5)


@pytest.mark.parametrize("samples", [GREY12, COLOURS12], ids=["grey", "colour"])
def test_one_transparent_value_of_16_bits_is_black(samples):
    samples = samples.copy()
    samples[HIDDEN] = key = samples[20, 20] + 5
    content = png(samples, 16, tRNS=np.atleast_1d(key).astype(">u2").tobytes())
    hidden = (samples == key).reshape(HEIGHT, WIDTH, -1).all(axis=-1)
    light = samples if samples.ndim == 2 else samples @ WEIGHTS
    expected = np.where(hidden, 0, stretched(light, light[~hidden]))
    np.testing.assert_allclose(read(content).pixels, expected, atol=1e-5)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_of_grey_and_of_a_palette_are_read(bits, interlaced):
    samples = GREY12 >> (12 - bits)
    most = 2**bits - 1
    expected = samples / most
    np.testing.assert_allclose(read(png(samples, bits, interlaced)).pixels, expected, atol=1e-6)
    palette = bytes(np.repeat(np.arange(most + 1) * 255 // most, 3).astype(np.uint8))
    np.testing.assert_allclose(read(png(samples, bits, interlaced, palette)).pixels, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_one_transparent_value_of_few_bits_is_black(bits):
    samples, most = GREY12 >> (12 - bits), 2**bits - 1
    pixels = read(png(samples, bits, tRNS=struct.pack(">H", most))).pixels
    np.testing.assert_allclose(pixels, np.where(samples == most, 0, samples / most), atol=1e-6)


def test_an_animated_png_is_refused():
    frames = [PIL.Image.fromarray((GREY12 >> shift).astype(np.uint8)) for shift in (4, 5)]
    content = io.BytesIO()
    frames[0].save(content, "PNG", save_all=True, append_images=frames[1:])
    assert refusal(content.getvalue()).rule == "more than one picture in the file"


# --- TIFF ----------------------------------------------------------------------------------------------------------

CODES = {"u": 1, "i": 2, "f": 3}


def _lzw(content: bytes) -> bytes:
    """Valid, not small: codes of 9 bits, the table cleared before it grows out of them."""
    codes = [code for start in range(0, len(content), 200) for code in (256, *content[start : start + 200])] + [257]
    bits = (np.array(codes)[:, None] >> np.arange(9)[::-1] & 1).astype(np.uint8)
    return np.packbits(bits).tobytes()


PACKERS = {1: bytes, 5: _lzw, 8: zlib.compress}


def page(
    samples: np.ndarray, order: str, compression: int = 1, planar: bool = False, **more
) -> tuple[dict, list[bytes]]:
    """A page's tags and its strips: samples (height, width) or (height, width, bands), two strips a plane."""
    planes = np.moveaxis(samples, -1, 0) if planar and samples.ndim == 3 else [samples]
    typed = samples.dtype.newbyteorder(order)
    rows = HEIGHT // 2 + 1
    strips = [
        PACKERS[compression](part.astype(typed).tobytes()) for whole in planes for part in (whole[:rows], whole[rows:])
    ]
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    bits = more.pop("bits", 8 * samples.dtype.itemsize)
    tags = {
        256: samples.shape[1], 257: samples.shape[0], 258: (bits,) * bands, 259: compression,
        262: 1 if bands < 3 else 2, 277: bands, 278: rows, 279: tuple(map(len, strips)), 284: 2 if planar else 1,
        339: (CODES[samples.dtype.kind],) * bands,
    }  # fmt: skip
    return tags | {int(tag.removeprefix("t")): value for tag, value in more.items()}, strips


def tiff(*pages: tuple[dict, list[bytes]], order: str = "<", big: bool = False) -> bytes:
    """A TIFF by hand; tags are numbers, tuples of them, or fractions as lists of two."""
    mark, long, entry, inline = (43, "Q", ("H", "Q", "Q"), 8) if big else (42, "I", ("H", "I", "I"), 4)
    content = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", mark))
    content += struct.pack(f"{order}HHQ", 8, 0, 0) if big else struct.pack(f"{order}I", 0)
    link = len(content) - (8 if big else 4)
    for tags, strips in pages:
        offsets = []
        for strip in strips:
            offsets.append(len(content))
            content += strip + bytes(len(strip) % 2)
        fields = b""
        tags = tags | {273: tuple(offsets)}
        for tag in sorted(tags):
            value = tags[tag]
            kind, numbers = (5, value) if isinstance(value, list) else (4, np.atleast_1d(value).tolist())
            packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
            if len(packed) > inline:
                offset = len(content)
                content += packed
                packed = struct.pack(f"{order}{long}", offset)
            count = 1 if kind == 5 else len(numbers)
            fields += struct.pack(f"{order}H{entry[0]}{entry[1]}", tag, kind, count) + packed.ljust(inline, b"\0")
        struct.pack_into(f"{order}{long}", content, link, len(content))
        content += struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + fields
        link = len(content)
        content += bytes(8 if big else 4)
    return bytes(content)


def typed(kind: str) -> np.ndarray:
    """GREY12 as other numbers, with the values below 0 and around 2^31 that only such numbers have."""
    if kind == "u1":
        return (GREY12 >> 4).astype(np.uint8)
    if kind == "i1":
        return ((GREY12 >> 4).astype(int) - 128).astype(np.int8)
    shift = {"u2": 0, "i2": -2000, "u4": 2**31 - 2000, "i4": -(2**30), "f2": -1000, "f4": -1000, "f8": -1000}[kind]
    return (GREY12.astype(float) / (8 if kind == "f2" else 1) + shift).astype(kind)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_grey_of_every_depth_is_read_in_every_byte_order_and_inverted_if_0_is_white(kind, compression, order):
    samples = typed(kind)
    lowest = -128 if kind == "i1" else 0
    expected = (samples.astype(float) - lowest) / 255 if kind[1] == "1" else stretched(samples)
    for photometric, shown in ((1, expected), (0, 1 - expected)):
        content = tiff(page(samples, order, compression, t262=photometric), order=order)
        np.testing.assert_allclose(read(content).pixels, shown, atol=3e-4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
def test_12_bits_without_gaps_are_read(order, photometric):
    even = GREY12[:, :52]
    bits = (even[..., None] >> np.arange(12)[::-1] & 1).reshape(HEIGHT, -1).astype(np.uint8)
    tags, _ = page(even, order, bits=12, t262=photometric)
    packed = np.packbits(bits, axis=1)
    strips = [packed[: tags[278]].tobytes(), packed[tags[278] :].tobytes()]
    expected = stretched(even) if photometric else 1 - stretched(even)
    content = tiff((tags | {279: tuple(map(len, strips))}, strips), order=order)
    np.testing.assert_allclose(read(content).pixels, expected, atol=1e-5)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", PACKERS)
def test_16_bit_colour_of_a_tiff_is_read_at_full_depth_or_refused_in_words(compression, planar, order):
    content = tiff(page(COLOURS12, order, compression, planar), order=order)
    if planar and compression != 1:
        assert refusal(content).rule == "not supported: TIFF with 16-bit colours in separate planes, compressed"
    else:
        np.testing.assert_allclose(read(content).pixels, stretched(COLOURS12 @ WEIGHTS), atol=1e-5)


def test_a_bigtiff_is_read():
    np.testing.assert_allclose(
        read(tiff(page(COLOURS12, "<"), big=True)).pixels, stretched(COLOURS12 @ WEIGHTS), atol=1e-5
    )
    assert refusal(tiff(page(GREY12, ">"), order=">", big=True)).rule.startswith("not supported: BigTIFF")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("samples", [GREY12, COLOURS12], ids=["grey", "colour"])
def test_16_bit_alpha_of_a_tiff_is_used_and_a_sample_of_no_stated_use_is_not(samples, compression, order):
    light = samples if samples.ndim == 2 else samples @ WEIGHTS
    hidden = stretched(light, light[HIDDEN.stop :])
    hidden[HIDDEN] = 0
    for use, expected in ((2, hidden), (0, stretched(light))):
        content = tiff(page(with_alpha(samples), order, compression, t338=use), order=order)
        np.testing.assert_allclose(read(content).pixels, expected, atol=1e-5)


def test_colours_that_were_multiplied_by_their_alpha_are_not_multiplied_again():
    half = np.concatenate([COLOURS12, np.full((HEIGHT, WIDTH, 1), 32768, np.uint16)], axis=-1)
    for planar in (False, True):
        content = tiff(page(half, "<", planar=planar, t338=1))
        np.testing.assert_allclose(read(content).pixels, stretched(COLOURS12 @ WEIGHTS), atol=1e-5)


def test_print_colours_of_16_bits_are_read_at_full_depth():
    ink = np.dstack([COLOURS12, np.zeros_like(GREY12)])
    content = tiff(page(ink, "<", t262=5))
    np.testing.assert_allclose(read(content).pixels, stretched((65535 - COLOURS12.astype(float)) @ WEIGHTS), atol=1e-3)


def test_a_palette_whose_entries_were_written_with_8_bits_is_not_black():
    entries = tuple(range(256)) * 3
    content = tiff(page(typed("u1"), "<", t262=3, t320=entries))
    np.testing.assert_allclose(read(content).pixels, typed("u1") / 255, atol=1e-6)


def test_in_a_tiff_without_a_photometric_interpretation_0_is_black():
    for kind, expected in (("u1", typed("u1") / 255), ("u2", stretched(GREY12))):
        tags, strips = page(typed(kind), "<")
        del tags[262]
        np.testing.assert_allclose(read(tiff((tags, strips))).pixels, expected, atol=1e-5)


def test_a_single_plane_may_be_called_separate():
    np.testing.assert_allclose(read(tiff(page(GREY12, "<", t284=2))).pixels, stretched(GREY12), atol=1e-5)


SMALL = GREY12[:30, :30]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("other", [{"t254": 1}, {"t255": 2}, {"t254": 4}, {"t254": 5}])
def test_a_thumbnail_or_a_mask_is_not_the_picture(other, at):
    pages = [page(GREY12, "<"), page(SMALL // 2, "<", **other)]
    content = tiff(*(pages if at else pages[::-1]))
    np.testing.assert_allclose(read(content).pixels, stretched(GREY12), atol=1e-5)
    assert probe(content)[:2] == (WIDTH, HEIGHT)


@pytest.mark.parametrize("second", [{}, {"t254": 2}, {"t262": 77}])
def test_two_pictures_of_one_tiff_are_refused(second):
    assert refusal(tiff(page(GREY12, "<"), page(GREY12, "<", **second))).rule == "more than one picture in the file"


def test_only_the_first_of_many_pages_are_examined():
    content = tiff(*[page(SMALL, "<", t254=1)] * 150)
    assert refusal(content).rule == "more than one picture in the file"


@pytest.mark.parametrize(
    ("samples", "tags", "words"),
    [
        (GREY12, {"t259": 34712}, "TIFF compression 34712"),
        (GREY12.astype(np.uint64), {}, "TIFF with 1 unsigned sample of 64 bits"),
        (COLOURS12.astype(np.float32), {}, "TIFF with 3 floating-point samples of 32 + 32 + 32 bits in RGB"),
        (typed("u1"), {"t262": 32803}, "TIFF with 1 unsigned sample of 8 bits in a camera's raw colours"),
        (COLOURS12.astype(np.uint8), {"t262": 8}, "TIFF with 3 unsigned samples of 8 + 8 + 8 bits in CIE L*a*b*"),
        (GREY12, {"t262": 3, "t320": (0,) * 3}, "TIFF with 1 unsigned sample of 16 bits in a palette"),
    ],
)
def test_unsupported_files_are_named_and_not_called_damaged(samples, tags, words):
    said = refusal(tiff(page(samples, "<", **tags)))
    assert said.rule == f"not supported: {words}"
    assert "Save it as grey" in said.remedy


def test_tags_that_contradict_each_other_are_damage():
    assert refusal(tiff(page(GREY12, "<", t258=(16, 16), t277=3))).rule.startswith("damaged")


# --- JPEG ----------------------------------------------------------------------------------------------------------


def jpeg(size: tuple[int, int] = (900, 700), mode: str = "L", **options) -> bytes:
    """A smooth picture of some (width, height), as compressible as an X-ray."""
    coarse = PIL.Image.fromarray(np.random.default_rng(3).integers(80, 180, (9, 9), np.uint8))
    content = io.BytesIO()
    coarse.resize(size, PIL.Image.Resampling.BICUBIC).convert(mode).save(content, "JPEG", **options)
    return content.getvalue()


def test_the_first_picture_of_several_in_one_jpeg_is_read():
    first, preview = (PIL.Image.open(io.BytesIO(jpeg(size))) for size in ((120, 96), (60, 48)))
    content = io.BytesIO()
    first.save(content, "MPO", save_all=True, append_images=[preview])
    assert PIL.Image.open(io.BytesIO(content.getvalue())).n_frames == 2
    image = read(content.getvalue())
    np.testing.assert_allclose(image.pixels, read(jpeg((120, 96))).pixels, atol=0.05)
    assert (image.tags["format"], probe(content.getvalue())) == ("JPEG", (120, 96, ""))


@pytest.mark.parametrize("trailer", [b"SEFH" + bytes(40), jpeg((60, 48)), b"\0" * 1000])
def test_bytes_after_a_jpeg_are_ignored(trailer):
    np.testing.assert_array_equal(read(jpeg() + trailer).pixels, read(jpeg()).pixels)


def _frame(content: bytes) -> int:
    return content.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content, at: content[: at + 4] + b"\x0c" + content[at + 5 :], "JPEG of 12 bits"),
        (lambda content, at: content[: at + 9] + b"\x02" + content[at + 10 :], "JPEG of 2 colours"),
        (lambda content, at: content[: at + 1] + b"\xc3" + content[at + 2 :], "lossless JPEG"),
        (lambda content, at: content[: at + 1] + b"\xf7" + content[at + 2 :], "JPEG-LS"),
    ],
)
def test_kinds_of_jpeg_that_are_not_decoded_are_named(change, words):
    content = jpeg()
    assert refusal(change(content, _frame(content))).rule == f"not supported: {words}"


# --- pixels that are not square ------------------------------------------------------------------------------------


def density(content: bytes, unit: int, across: int, down: int) -> bytes:
    at = content.index(b"JFIF\0") + 7
    return content[:at] + struct.pack(">BHH", unit, across, down) + content[at + 5 :]


def exif_resolution(across: float, down: float, orientation: int = 1) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112], exif[282], exif[283] = orientation, across, down
    content = jpeg((120, 96), exif=exif)
    start = content.index(b"\xff\xe0")  # without the JFIF header, which would come first
    return content[:start] + content[start + 18 :]


NOT_SQUARE = {
    "jpeg dpi": lambda across, down: density(jpeg((120, 96)), 1, across, down),
    "jpeg aspect": lambda across, down: density(jpeg((120, 96)), 0, across, down),
    "exif": exif_resolution,
    "png metres": lambda across, down: png(np.full((96, 120), 9), 8, pHYs=struct.pack(">2IB", across * 9, down * 9, 1)),
    "png aspect": lambda across, down: png(np.full((96, 120), 9), 8, pHYs=struct.pack(">2IB", across, down, 0)),
    "tiff inch": lambda across, down: tiff(page(GREY12[:, :50], "<", t282=[across, 1], t283=[down, 1], t296=2)),
    "tiff none": lambda across, down: tiff(page(GREY12[:, :50], "<", t282=[across, 1], t283=[down, 1], t296=1)),
}


@pytest.mark.parametrize("make", NOT_SQUARE.values(), ids=NOT_SQUARE)
def test_pixels_become_square(make):
    width, height, _ = probe(make(1, 1))
    assert probe(make(200, 100)) == (width, 2 * height, "")
    assert probe(make(100, 200)) == (2 * width, height, "")
    image = read(make(200, 100))
    assert image.pixels.shape == (2 * height, width)
    assert (
        image.tags["note"] == f"scaled from {width} x {height} to {width} x {2 * height}, as its pixels are not square"
    )
    assert prepare(make(200, 100), Preprocessing((64, 64))).shape == (2 * height, width)


@pytest.mark.parametrize("resolution", [(0, 0), (0, 100), (300, 302), (3000, 1)])
@pytest.mark.parametrize("make", NOT_SQUARE.values(), ids=NOT_SQUARE)
def test_an_unusable_resolution_changes_nothing(make, resolution):
    assert probe(make(*resolution)) == probe(make(1, 1))
    assert "note" not in read(make(*resolution)).tags


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_note_on_square_pixels_is_the_same_at_any_scale(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = density(jpeg((1200, 900), exif=exif), 1, 200, 100)
    scaled, full = (prepare(content, spec) for spec in (SCALED, FULL))
    assert scaled.note == full.note == read(content).tags["note"]
    assert "not square" in scaled.note
    assert not np.array_equal(scaled.tensor, full.tensor)
    np.testing.assert_allclose(scaled.tensor, full.tensor, atol=2 / 255)


def test_the_resolution_turns_with_the_picture():
    assert probe(exif_resolution(200, 100, orientation=6))[:2] == (2 * 96, 120)
    assert read(exif_resolution(200, 100, orientation=6)).pixels.shape == (120, 2 * 96)


# --- at a smaller scale --------------------------------------------------------------------------------------------


def as_before(content: bytes, spec: Preprocessing) -> np.ndarray:
    """The tensor by Pillow and numpy alone, from all pixels."""
    grey = np.asarray(PIL.Image.open(io.BytesIO(content)).convert("L"), np.float32) / np.float32(255)
    rows, columns = placed(grey.shape, spec.size)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    canvas = np.zeros(spec.size, np.float32)
    canvas[rows, columns] = PIL.Image.fromarray(grey).resize(size, PIL.Image.Resampling.BILINEAR)
    return ((canvas - np.float32(spec.mean)) / np.float32(spec.std))[..., None]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_older_card_gives_the_tensor_of_the_full_decoding_to_the_last_bit(mode):
    card = {"size": [224, 224], "window": [-600, 1500], "mean": 0.4, "std": 0.2}
    spec, content = Preprocessing.from_dict(card), jpeg((1501, 2048), mode)
    np.testing.assert_array_equal(prepare(content, spec).tensor, as_before(content, spec))
    np.testing.assert_array_equal(prepare(read(content), spec).tensor, as_before(content, spec))


SHAPES = [(900, 700), (2041, 1999), (897, 1793), (3000, 25), (26, 1795), (449, 448)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "RGB"}, {"mode": "CMYK"}])
def test_a_scaled_decoding_is_close_to_the_full_one(size, options):
    content = jpeg(size, **options)
    scaled, full = prepare(content, SCALED), prepare(content, FULL)
    assert (scaled.shape, scaled.units) == (full.shape, full.units) == (size[::-1], "intensity")
    assert np.abs(scaled.tensor - full.tensor).mean() < 0.3 / 255
    rows, columns = placed(size[::-1], SCALED.size)
    assert np.array_equal(scaled.tensor != 0, full.tensor != 0) or min(size) < 30
    assert scaled.tensor[rows, columns].min() > 0


def test_edges_stay_at_their_place():
    """A side that is no multiple of 8 leaves a part of a pixel at the end."""
    pixels = np.zeros((1801, 1801), np.uint8)
    pixels[900:, 1350:] = 255
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, "JPEG", quality=95)
    scaled, full = (prepare(content.getvalue(), spec).tensor[..., 0] for spec in (SCALED, FULL))
    for axis in (0, 1):
        np.testing.assert_allclose(scaled.mean(axis=axis), full.mean(axis=axis), atol=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_decoding_is_upright(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = jpeg((1201, 905), exif=exif)
    scaled, full = prepare(content, SCALED), prepare(content, FULL)
    assert scaled.shape == full.shape == read(content).pixels.shape
    np.testing.assert_allclose(scaled.tensor, full.tensor, atol=2 / 255)


@pytest.mark.parametrize("smaller", [(447, 447), (100, 224), (24, 24)])
def test_a_small_jpeg_is_decoded_fully_and_gives_the_same_bits(smaller):
    content = jpeg(smaller)
    np.testing.assert_array_equal(prepare(content, SCALED).tensor, prepare(content, FULL).tensor)


def test_fewer_pixels_are_decoded(monkeypatch):
    decoded, eight_bit = [], pictures.eight_bit

    def watched(*arguments, **options):
        decoded.append(eight_bit(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr(pictures, "eight_bit", watched)
    for side, scale in ((2048, 4), (1000, 2), (3600, 8)):
        prepare(jpeg((side, side)), SCALED)
        assert decoded[-1].stored.size == (side // scale, side // scale)


def test_an_image_read_in_full_gives_the_tensor_of_its_file(tmp_path):
    content = jpeg()
    file = tmp_path / "scan.jfif"
    file.write_bytes(content)
    expected = prepare(content, SCALED).tensor
    for source in (file, str(file), io.BytesIO(content), read(content), read(file)):
        np.testing.assert_array_equal(prepare(source, SCALED).tensor, expected)


def test_changed_pixels_of_an_image_are_what_is_prepared():
    darker = dataclasses.replace(read(jpeg()), pixels=np.zeros((700, 900), np.float32))
    assert prepare(darker, SCALED).tensor.max() == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "RGB"}])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_jpeg_is_refused_at_any_scale(share, options):
    content = jpeg(**options)
    assert refusal(content[: int(len(content) * share)]).rule.startswith("truncated")


def test_limits_are_of_the_whole_picture():
    assert refusal(jpeg((2000, 23))).rule == "too small: 2000 x 23"
    content = bytearray(jpeg((64, 64)))
    struct.pack_into(">HH", content, _frame(bytes(content)) + 5, 60000, 60000)
    assert refusal(bytes(content)).rule == "too many pixels: 60000 x 60000"


BASES = [jpeg((301, 250)), jpeg((301, 250), progressive=True), jpeg((301, 250), "RGB")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BASES), st.data())
def test_a_damaged_jpeg_is_read_or_refused_at_both_scales_alike(base, data):
    content = bytearray(base)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    results = []
    for spec in (Preprocessing((32, 32)), Preprocessing((32, 32), jpeg="full")):
        try:
            prepared = prepare(bytes(content[:cut]), spec)
        except ImageRefused:
            results.append("refused")
        else:
            assert np.isfinite(prepared.tensor).all()
            results.append(prepared.shape)
    assert results[0] == results[1]
