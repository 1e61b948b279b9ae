"""DICOM values against the standard, worked out with numpy here; and which attribute a refusal names."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.tag import Tag

from lungkit.data.images import ImageRefused, probe, read
from tests.data.test_images import RAMP, compressed, ct, dicom, refusal

TWELVE = np.linspace(0, 4095, 40 * 50).astype(np.uint16).reshape(40, 50)
SIGNED = (TWELVE.astype(np.int16) - 2048).astype(np.int16)


def raw(content: bytes, *elements: tuple[str, str, bytes]) -> bytes:
    """The file with elements put in as they are given (keyword, VR, value), in place of those that it has."""
    made = {Tag(keyword): (kind.encode(), value + b" " * (len(value) % 2)) for keyword, kind, value in elements}
    position, out, waiting = content.index(b"\x08\0\x16\0UI"), [], sorted(made)
    out.append(content[:position])
    while position < len(content):
        group, number, kind, length = struct.unpack_from("<HH2sH", content, position)
        tag, start = Tag(group, number), position + 8
        if kind in (b"OB", b"OW", b"SQ", b"UN"):
            length, start = struct.unpack_from("<I", content, position + 8)[0], position + 12
        while waiting and waiting[0] <= tag:
            out.append(element(waiting[0], *made[waiting.pop(0)]))
        if tag not in made:
            out.append(content[position : start + length])
        position = start + length
    return b"".join(out)


def element(tag: int, kind: bytes, value: bytes) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, kind)
    if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def item(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def lut_item(first: int, entries: bytes, count: int, bits: int, kind="US", data_kind="OW") -> bytes:
    descriptor = struct.pack("<HHH", count % 2**16, first % 2**16, bits)
    return item(
        element(Tag("LUTDescriptor"), kind.encode(), descriptor),
        element(Tag("LUTData"), data_kind.encode(), entries),
    )


def linear(values, centre: float, width: float) -> np.ndarray:
    """PS3.3, C.11.2.1.2.1, as it is written there."""
    values = np.asarray(values, float)
    inner = ((values - (centre - 0.5)) / (width - 1) + 0.5) if width > 1 else values * 0
    low, high = values <= centre - 0.5 - (width - 1) / 2, values > centre - 0.5 + (width - 1) / 2
    return np.where(low, 0, np.where(high, 1, inner))


def linear_exact(values, centre: float, width: float) -> np.ndarray:
    """PS3.3, C.11.2.1.3.2."""
    values = np.asarray(values, float)
    inner = (values - centre) / width + 0.5
    return np.where(values <= centre - width / 2, 0, np.where(values > centre + width / 2, 1, inner))


def stretched(values) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((np.asarray(values, float) - low) / (high - low), 0, 1)


def agrees(content: bytes, expected) -> None:
    np.testing.assert_allclose(read(content).pixels, expected, atol=1e-5)


# --- stored values -----------------------------------------------------------------------------------------------

WIDE = {"WindowCenter": 2048, "WindowWidth": 4096}


@pytest.mark.parametrize("high_bit", range(11, 16))
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_pixels_are_read_at_any_position_in_their_words(high_bit, syntax):
    stray = np.random.default_rng(3).integers(0, 2**16, TWELVE.shape, np.uint16)
    below = high_bit - 11
    mask = np.uint16(0xFFF << below)
    words = (TWELVE << below) & mask | stray & ~mask  # overlays and other things lie in the bits around them
    content = dicom(words, syntax=syntax, BitsStored=12, HighBit=high_bit, **WIDE)
    agrees(content, linear(TWELVE, 2048, 4096))


@pytest.mark.parametrize("high_bit", [11, 13, 15])
def test_signed_pixels_have_the_sign_of_their_highest_bit(high_bit):
    words = (SIGNED.astype(np.int32) << (high_bit - 11) & 0xFFFF).astype(np.uint16)
    content = ct(words, BitsStored=12, HighBit=high_bit, PixelRepresentation=1, RescaleIntercept=0)
    np.testing.assert_array_equal(read(content).pixels, np.maximum(SIGNED, -1024))


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("signed", [0, 1])
def test_every_number_of_bits_is_cut_out_of_a_word(bits, signed):
    words = np.arange(2000, dtype=np.uint16).reshape(40, 50) * np.uint16(31)
    expected = (words.astype(int) % 2**bits + signed * 2 ** (bits - 1)) % 2**bits - signed * 2 ** (bits - 1)
    content = ct(words, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed, RescaleIntercept=0)
    np.testing.assert_array_equal(read(content).pixels, np.maximum(expected, -1024))


def test_8_bit_words_may_contain_6_bits_at_the_top():
    agrees(dicom(RAMP, BitsStored=6, HighBit=7), (RAMP >> 2) / 63)


def test_run_length_coded_words_are_shifted_and_coded_pictures_that_fit_are_not():
    shifted = compressed(TWELVE << 4, uid.RLELossless, BitsStored=12, HighBit=15, **WIDE)
    fits = compressed(TWELVE, uid.JPEG2000Lossless, BitsStored=12, HighBit=11, **WIDE)
    for content in (shifted, fits, raw(fits, ("HighBit", "US", struct.pack("<H", 15)))):
        agrees(content, linear(TWELVE, 2048, 4096))


def test_a_high_bit_that_is_missing_follows_from_the_bits_stored():
    agrees(dicom(TWELVE, BitsStored=12, HighBit=None, **WIDE), linear(TWELVE, 2048, 4096))


def test_the_high_bit_does_not_matter_if_the_words_are_full():
    agrees(dicom(RAMP, HighBit=0), RAMP / 255)
    agrees(dicom(TWELVE, HighBit=11, **WIDE), linear(TWELVE, 2048, 4096))


@pytest.mark.parametrize("high_bit", [3, 16])
def test_a_high_bit_that_leaves_no_room_is_refused(high_bit):
    assert refusal(dicom(TWELVE, BitsStored=12, HighBit=high_bit)).rule.endswith(f"HighBit {high_bit}")


def test_big_endian_words_of_two_8_bit_pixels_are_read():
    content = dicom(RAMP, syntax=uid.ExplicitVRBigEndian, PixelData=RAMP.view("<u2").byteswap().tobytes())
    at = content.index(b"\x7f\xe0\0\x10")
    agrees(content[: at + 4] + b"OW" + content[at + 6 :], RAMP / 255)


# --- rescale -----------------------------------------------------------------------------------------------------


def test_a_slope_alone_counts_from_zero_and_an_intercept_alone_keeps_the_scale():
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    agrees(dicom(TWELVE, RescaleSlope=0.5, **window), linear(TWELVE * 0.5, 2000, 3000))
    agrees(dicom(TWELVE, RescaleIntercept=-100, **window), linear(TWELVE - 100.0, 2000, 3000))
    agrees(dicom(TWELVE, RescaleSlope=-1, RescaleIntercept=4095, **window), linear(4095.0 - TWELVE, 2000, 3000))


def test_an_8_bit_picture_has_the_range_that_its_rescale_gives():
    agrees(dicom(RAMP, RescaleSlope=-2, RescaleIntercept=7), 1 - RAMP / 255)


@pytest.mark.parametrize("value", [b"0", b"0.0", b"abc", b"1\\2", b"nan", b"inf", b"1e999", b"--1"])
@pytest.mark.parametrize("make", [dicom, ct])
def test_a_slope_that_cannot_be_used_is_refused_by_its_value(make, value):
    error = refusal(raw(make(TWELVE), ("RescaleSlope", "DS", value), ("RescaleIntercept", "DS", b"5")))
    start = "CT not in Hounsfield units" if make is ct else "rescale not usable"
    assert error.rule == f"{start}: RescaleSlope {value.decode()}, RescaleIntercept 5"


def test_a_ct_needs_both_and_says_which_is_missing():
    assert refusal(ct(TWELVE, RescaleIntercept=None)).rule.endswith("RescaleSlope 1.0, RescaleIntercept missing")
    assert refusal(ct(TWELVE, RescaleSlope=None)).rule.endswith("RescaleSlope missing, RescaleIntercept -1024.0")


@pytest.mark.parametrize("text", [b"-1024", b" -1024 ", b"-1024,0", b"-1.024E3", b"-1024.", b"-1024\0", b"-01024"])
def test_numbers_are_read_as_people_write_them(text):
    content = raw(ct(TWELVE), ("RescaleIntercept", "DS", text), ("RescaleSlope", "DS", b"+1,0"))
    np.testing.assert_array_equal(read(content).pixels, TWELVE.astype(np.float32) - 1024)


@pytest.mark.parametrize("kind", [b"HU", b"hu", b" Hu ", b"HU_MOD", b""])
def test_hounsfield_units_are_known_in_any_case(kind):
    image = read(raw(ct(TWELVE), ("RescaleType", "LO", kind)))
    np.testing.assert_array_equal(image.pixels, TWELVE.astype(np.float32) - 1024)
    assert image.tags.get("note") == ("RescaleType HU_MOD taken as Hounsfield units" if b"MOD" in kind else None)


@pytest.mark.parametrize("kind", ["US", "OD", "PCT", "MGML"])
def test_another_unit_is_refused_by_name(kind):
    assert refusal(ct(TWELVE, RescaleType=kind)).rule == f"CT not in Hounsfield units: RescaleType {kind}"


def test_a_ct_in_colour_is_no_hounsfield_units():
    rule = refusal(ct(np.dstack([RAMP] * 3))).rule
    assert rule == "CT not in Hounsfield units: PhotometricInterpretation RGB"


@pytest.mark.parametrize(
    "kind",
    ["ORIGINAL\\PRIMARY\\LOCALIZER", "original\\primary\\localizer", "ORIGINAL\\SCOUT", "DERIVED\\X\\Y\\Scout view"],
)
def test_a_scout_view_is_recognised_at_any_place_of_the_image_type(kind):
    assert (
        refusal(raw(ct(TWELVE), ("ImageType", "CS", kind.encode()))).rule
        == f"scout view, not a CT slice: ImageType {kind}"
    )


# --- padding -----------------------------------------------------------------------------------------------------


def hounsfield(stored: np.ndarray, padding: np.ndarray) -> np.ndarray:
    return np.where(padding, -1024, np.maximum(stored.astype(int), -1024))


@pytest.mark.parametrize(
    ("kind", "form", "value"), [("SS", "<h", -2000), ("US", "<H", 65536 - 2000), ("SS", "<h", 5), ("US", "<H", 40000)]
)
@pytest.mark.parametrize("signed", [0, 1])
def test_padding_has_the_sign_of_the_pixels_however_it_is_written(kind, form, value, signed):
    words = np.arange(0, 2**16, 8, dtype=np.uint16)[:8000].reshape(80, 100)
    words[0, :2] = value % 2**16
    stored = words.astype(np.int16) if signed else words
    content = raw(
        ct(words, PixelRepresentation=signed, RescaleIntercept=0), ("PixelPaddingValue", kind, struct.pack(form, value))
    )
    np.testing.assert_array_equal(read(content).pixels, hounsfield(stored, words == value % 2**16))


@pytest.mark.parametrize(("value", "limit"), [(65535, None), (60000, 65535), (4096, 5000)])
def test_padding_beyond_what_can_be_stored_masks_nothing(value, limit):
    content = dicom(TWELVE, BitsStored=12, HighBit=11, PixelPaddingValue=value, PixelPaddingRangeLimit=limit, **WIDE)
    agrees(content, linear(TWELVE, 2048, 4096))


@pytest.mark.parametrize(("value", "limit"), [(4000, 65535), (65535, 4000), (4095, 4000), (4000, 4095)])
def test_a_range_of_padding_counts_from_either_end_as_far_as_it_can_be_stored(value, limit):
    content = dicom(TWELVE, BitsStored=12, HighBit=11, PixelPaddingValue=value, PixelPaddingRangeLimit=limit, **WIDE)
    agrees(content, np.where(TWELVE >= 4000, 0, linear(TWELVE, 2048, 4096)))


@pytest.mark.parametrize(("limit", "told"), [(None, ""), (5000, ", PixelPaddingRangeLimit 5000")])
def test_a_picture_of_nothing_but_padding_is_refused(limit, told):
    blank = TWELVE if limit else np.zeros_like(TWELVE)
    for kind in (ct, dicom):
        refused = refusal(kind(blank, PixelPaddingValue=0, PixelPaddingRangeLimit=limit))
        assert f"every pixel is padding (PixelPaddingValue 0{told})" in str(refused)


def test_padding_from_below_zero_does_not_wrap_over_unsigned_pixels():
    content = raw(
        dicom(TWELVE, **WIDE),
        ("PixelPaddingValue", "SS", struct.pack("<h", -2000)),
        ("PixelPaddingRangeLimit", "SS", struct.pack("<h", 100)),
    )
    agrees(content, np.where(TWELVE <= 100, 0, linear(TWELVE, 2048, 4096)))


def test_padding_is_black_even_if_the_picture_is_inverted_and_shifted():
    words = TWELVE << 4
    content = dicom(
        words, BitsStored=12, HighBit=15, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1", **WIDE
    )
    agrees(content, np.where(TWELVE == 0, 0, 1 - linear(TWELVE, 2048, 4096)))


# --- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [-700, 0, 0.5, 1200.25])
@pytest.mark.parametrize("width", [1, 1.5, 2, 700, 9000])
def test_a_linear_window_of_any_centre_and_width(centre, width):
    agrees(dicom(SIGNED, WindowCenter=centre, WindowWidth=width), linear(SIGNED, centre, width))


@pytest.mark.parametrize("centre", [-700, 0, 0.5, 1200.25])
@pytest.mark.parametrize("width", [0.25, 1, 700, 9000])
def test_exact_and_sigmoid_windows_of_any_centre_and_width(centre, width):
    window = {"WindowCenter": centre, "WindowWidth": width}
    agrees(dicom(SIGNED, VOILUTFunction="LINEAR_EXACT", **window), linear_exact(SIGNED, centre, width))
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-4 * (SIGNED.astype(float) - centre) / width))
    agrees(dicom(SIGNED, VOILUTFunction="SIGMOID", **window), expected)


@pytest.mark.parametrize("name", ["LINEAR_EXACT", "linear_exact", " Linear_Exact ", "LINEAR EXACT"])
def test_the_function_of_a_window_is_known_in_any_case(name):
    window = dicom(TWELVE, WindowCenter=2000, WindowWidth=50)
    agrees(raw(window, ("VOILUTFunction", "CS", name.encode())), linear_exact(TWELVE, 2000, 50))


def test_an_unknown_function_is_taken_as_linear_and_noted():
    image = read(dicom(TWELVE, VOILUTFunction="CUBIC", WindowCenter=2000, WindowWidth=50))
    np.testing.assert_allclose(image.pixels, linear(TWELVE, 2000, 50), atol=1e-5)
    assert image.tags["note"] == "VOILUTFunction CUBIC taken as LINEAR"


@pytest.mark.parametrize(
    ("centre", "width"),
    [(b"5", b"0"), (b"5", b"-3"), (b"5", b"0.5"), (b"abc", b"5"), (b"5", b""), (b"nan", b"5"), (b"5", b"inf")],
)
def test_a_window_that_cannot_be_used_does_not_cost_the_picture(centre, width):
    image = read(raw(dicom(TWELVE), ("WindowCenter", "DS", centre), ("WindowWidth", "DS", width)))
    np.testing.assert_allclose(image.pixels, stretched(TWELVE), atol=1e-5)
    said = width.decode() or "missing"
    assert image.tags["note"] == f"window not used: WindowCenter {centre.decode()}, WindowWidth {said}"


def test_the_first_usable_of_several_windows_counts():
    several = raw(dicom(TWELVE), ("WindowCenter", "DS", b"5\\2000,5\\9"), ("WindowWidth", "DS", b"0\\3000"))
    agrees(several, linear(TWELVE, 2000.5, 3000))


# --- lookup tables -----------------------------------------------------------------------------------------------

FALLING = np.linspace(4095, 0, 4096).astype("<u2")


@pytest.mark.parametrize("kind", ["US", "SS"])
@pytest.mark.parametrize("data_kind", ["US", "OW", "OB", "UN"])
def test_a_lookup_table_is_read_with_any_value_representation(kind, data_kind):
    sequence = lut_item(0, FALLING.tobytes(), 4096, 12, kind, data_kind)
    agrees(raw(dicom(TWELVE), ("VOILUTSequence", "SQ", sequence)), FALLING[TWELVE] / 4095)


@pytest.mark.parametrize("first", [-2048, -100, 0, 300])
@pytest.mark.parametrize("kind", ["US", "SS"])
def test_the_first_value_of_a_table_has_the_sign_of_the_values(first, kind):
    sequence = lut_item(first, FALLING.tobytes(), 4096, 12, kind)
    expected = FALLING[np.clip(SIGNED.astype(int) - first, 0, 4095)] / 4095
    agrees(raw(dicom(SIGNED, BitsStored=12, HighBit=11), ("VOILUTSequence", "SQ", sequence)), expected)
    rescaled = raw(dicom(TWELVE, RescaleIntercept=-2048, RescaleSlope=1), ("VOILUTSequence", "SQ", sequence))
    agrees(rescaled, expected)


def test_the_first_value_of_a_table_for_large_values_has_no_sign():
    words = TWELVE + np.uint16(60000)
    sequence = lut_item(60000, FALLING.tobytes(), 4096, 12, "SS")
    agrees(raw(dicom(words), ("VOILUTSequence", "SQ", sequence)), FALLING[TWELVE] / 4095)


def test_a_table_of_0_entries_has_65536():
    words = (TWELVE * np.uint16(16)).astype(np.uint16)
    entries = (np.arange(65536) // 2 + 32768).astype("<u2")
    sequence = lut_item(0, entries.tobytes(), 65536, 16)
    agrees(raw(dicom(words), ("VOILUTSequence", "SQ", sequence)), entries[words] / 65535)


@pytest.mark.parametrize("count", [255, 256])
@pytest.mark.parametrize("data_kind", ["OW", "OB"])
def test_entries_of_8_bits_may_be_packed_in_words(count, data_kind):
    entries = (255 - np.arange(count)).astype(np.uint8)
    sequence = lut_item(0, entries.tobytes() + bytes(count % 2), count, 8, data_kind=data_kind)
    agrees(raw(dicom(RAMP), ("VOILUTSequence", "SQ", sequence)), entries[np.minimum(RAMP, count - 1)] / 255)


@pytest.mark.parametrize(
    ("bits", "largest", "white"),
    [(12, 4095, 4095), (12, 3000, 4095), (12, 1500, 4095), (16, 4095, 4095), (16, 255, 255), (8, 4095, 4095)],
)
def test_a_table_has_its_stated_depth_unless_its_entries_disprove_it(bits, largest, white):
    entries = np.linspace(0, largest, 4096).astype("<u2")
    content = raw(dicom(TWELVE), ("VOILUTSequence", "SQ", lut_item(0, entries.tobytes(), 4096, bits)))
    agrees(content, entries[TWELVE] / white)


@pytest.mark.parametrize("first", [-2048, 0])
def test_a_modality_table_of_a_big_endian_and_an_implicit_file(first):
    stored = SIGNED if first else TWELVE
    made = Dataset()
    made.add_new("LUTDescriptor", "SS" if first else "US", [4096, first, 12])
    made.add_new("LUTData", "OW", FALLING.astype(">u2").tobytes())
    big = dicom(stored, syntax=uid.ExplicitVRBigEndian, ModalityLUTSequence=[made], BitsStored=12, HighBit=11, **WIDE)
    little = Dataset()
    little.add_new("LUTDescriptor", "SS" if first else "US", [4096, first, 12])
    little.add_new("LUTData", "OW", FALLING.tobytes())
    plain = dicom(
        stored, syntax=uid.ImplicitVRLittleEndian, ModalityLUTSequence=[little], BitsStored=12, HighBit=11, **WIDE
    )
    for content in (big, plain):
        agrees(content, linear(FALLING[TWELVE], 2048, 4096))


def test_a_table_of_one_entry_of_16_bits_is_read():
    sequence = lut_item(0, struct.pack("<H", 3000), 1, 12)
    agrees(raw(dicom(TWELVE), ("VOILUTSequence", "SQ", sequence)), np.full(TWELVE.shape, 3000 / 4095))


def test_packed_entries_of_a_big_endian_file_are_swapped_with_their_words():
    made = Dataset()
    made.add_new("LUTDescriptor", "US", [256, 0, 8])
    made.add_new("LUTData", "OW", (255 - np.arange(256)).astype("u1").view("<u2").byteswap().tobytes())
    agrees(dicom(syntax=uid.ExplicitVRBigEndian, VOILUTSequence=[made]), 1 - RAMP / 255)


UNUSABLE = {
    "no items": b"",
    "an empty item": item(),
    "no data": item(element(Tag("LUTDescriptor"), b"US", struct.pack("<3H", 16, 0, 8))),
    "short data": lut_item(0, bytes(20), 256, 16),
}


@pytest.mark.parametrize("sequence", UNUSABLE.values(), ids=UNUSABLE)
def test_a_voi_table_that_cannot_be_used_leaves_the_window(sequence):
    image = read(raw(dicom(TWELVE, **WIDE), ("VOILUTSequence", "SQ", sequence)))
    np.testing.assert_allclose(image.pixels, linear(TWELVE, 2048, 4096), atol=1e-5)
    assert image.tags.get("note", "VOILUTSequence not used").startswith("VOILUTSequence not used")


def test_a_modality_table_that_cannot_be_used_is_refused():
    content = raw(dicom(TWELVE), ("ModalityLUTSequence", "SQ", UNUSABLE["short data"]))
    assert refusal(content).rule == (
        "ModalityLUTSequence not usable: LUTData of 10 entries, where LUTDescriptor says 256"
    )


# --- palettes ----------------------------------------------------------------------------------------------------

COLOURS = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2])  # red, green, blue of 256 entries


def palette(pixels, tables, descriptor=(256, 0, 8), segmented=False, kind="OW", **tags) -> bytes:
    elements = []
    for colour, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        name = f"{colour}PaletteColorLookupTable"
        elements.append((f"{name}Descriptor", "US", struct.pack("<3H", *(part % 2**16 for part in descriptor))))
        elements.append((("Segmented" if segmented else "") + f"{name}Data", kind, entries))
    return raw(dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **tags), *elements)


def grey(colours: np.ndarray) -> np.ndarray:
    """Luminance (ITU-R BT.601) of (3, ...)."""
    return np.tensordot([0.299, 0.587, 0.114], colours, 1)


def test_palettes_of_8_bits_are_packed_or_in_words_of_their_own():
    expected = grey(COLOURS[:, RAMP]) / 255
    for form, kind in (("u1", "OW"), ("u1", "OB"), ("<u2", "OW"), ("<u2", "US")):
        content = palette(RAMP, [part.astype(form).tobytes() for part in COLOURS], kind=kind)
        np.testing.assert_allclose(read(content).pixels, expected, atol=0.6 / 255)


def test_palettes_of_16_bits_keep_their_depth():
    deep = COLOURS * 200 + 77
    content = palette(RAMP, [part.astype("<u2").tobytes() for part in deep], (256, 0, 16))
    np.testing.assert_allclose(read(content).pixels, grey(deep[:, RAMP]) / 65535, atol=0.6 / 65535)


@pytest.mark.parametrize("first", [-2048, -128, 0, 1000])
def test_a_palette_of_signed_16_bit_pixels_starts_at_its_stated_value(first):
    content = palette(SIGNED, [part.astype("u1").tobytes() for part in COLOURS], (256, first, 8))
    expected = grey(COLOURS[:, np.clip(SIGNED.astype(int) - first, 0, 255)]) / 255
    np.testing.assert_allclose(read(content).pixels, expected, atol=0.6 / 255)


def segments(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}H", *words)


def test_segmented_palettes_are_expanded_and_copies_followed():
    first = [10, 20, 30]
    line = [30 + round((1000 - 30) * step / 50) for step in range(1, 51)]
    again = [1000, *first, *(30 + round((1000 - 30) * step / 50) for step in range(1, 51))]
    table = segments(0, 3, *first, 1, 50, 1000, 0, 1, 1000, 2, 2, 0, 0, 1, 149, 0)
    entries = np.array([*first, *line, *again], int)
    entries = np.concatenate([entries, [round(1000 - 1000 * step / 149) for step in range(1, 150)]])
    assert len(entries) == 256
    content = palette(RAMP, [table] * 3, (256, 0, 10), segmented=True)
    np.testing.assert_allclose(read(content).pixels, entries[RAMP] / 1023, atol=1e-3)


def test_a_copied_segment_is_found_by_its_place_in_bytes():
    table = segments(0, 1, 5, 0, 2, 700, 900, 1, 250, 900, 0, 1, 5, 2, 1, 6, 0)  # the second segment starts at byte 6
    entries = np.array([5, 700, *[900] * 251, 5, 700, 900])
    content = palette(RAMP, [table] * 3, (256, 0, 10), segmented=True)
    np.testing.assert_allclose(read(content).pixels, entries[RAMP] / 1023, atol=1e-3)


def test_segmented_palettes_of_8_bits_are_expanded():
    table = bytes([0, 2, 0, 1, 1, 126, 127, 0, 2, 5, 6, 2, 2, 0, 0, 0, 0, 1, 0]) + bytes([1])
    line = [1 + round(126 * step / 126) for step in range(1, 127)]
    entries = np.array([0, 1, *line, 5, 6, 0, 1, *line][:256])
    content = palette(RAMP, [table] * 3, (len(entries), 0, 8), segmented=True)
    np.testing.assert_allclose(read(content).pixels, entries[np.minimum(RAMP, len(entries) - 1)] / 255, atol=0.01)


@pytest.mark.parametrize(
    "table",
    [segments(1, 5, 3), segments(9, 1, 1), segments(0, 1, 7, 2, 1, 90, 0), segments(0, 0, 2, 65535, 0, 0) * 999],
    ids=["a line first", "an unknown kind", "a copy from nowhere", "a copy of itself"],
)
def test_segments_that_make_no_table_are_refused_at_once(table):
    started = time.process_time()
    rule = refusal(palette(RAMP, [table] * 3, (0, 0, 16), segmented=True)).rule
    assert rule.startswith("palette not usable")
    assert time.process_time() - started < 5


def test_a_palette_that_is_missing_is_named():
    rule = refusal(dicom(PhotometricInterpretation="PALETTE COLOR")).rule
    assert rule == "palette not usable: RedPaletteColorLookupTableDescriptor missing"


# --- bright is dense ---------------------------------------------------------------------------------------------

PROCESSING = {"SOPClassUID": uid.DigitalXRayImageStorageForProcessing, "PresentationIntentType": "FOR PROCESSING"}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope", [1, -1])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("relation", ["LIN", "LOG"])
@pytest.mark.parametrize(
    "kind", [PROCESSING, {"SOPClassUID": uid.ComputedRadiographyImageStorage, "Modality": "CR"}], ids=["dx", "cr"]
)
def test_dense_parts_are_bright_in_images_not_made_for_presentation(photometric, slope, sign, relation, kind):
    dense = stretched(TWELVE if sign == -1 else 4095.0 - TWELVE)  # PS3.3, C.8.11.3.1.2
    content = dicom(
        TWELVE,
        PhotometricInterpretation=photometric,
        PixelIntensityRelationship=relation,
        PixelIntensityRelationshipSign=sign,
        RescaleSlope=slope,
        RescaleIntercept=0,
        **kind,
    )
    image = read(content)
    np.testing.assert_allclose(image.pixels, dense, atol=1e-4)
    assert f"PixelIntensityRelationshipSign {sign}" in image.tags["note"]


def test_an_image_for_presentation_follows_its_photometric_interpretation():
    content = dicom(
        TWELVE,
        PresentationIntentType="FOR PRESENTATION",
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=1,
    )
    agrees(content, stretched(TWELVE))


@pytest.mark.parametrize("sign", [None, 0, 7])
def test_an_image_for_processing_without_a_sign_is_refused(sign):
    rule = refusal(dicom(TWELVE, PixelIntensityRelationshipSign=sign, **PROCESSING)).rule
    assert rule.endswith(f"PixelIntensityRelationshipSign {'missing' if sign is None else sign}")


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "INVERSE")])
def test_the_presentation_shape_inverse_inverts_once(photometric, shape):
    content = dicom(TWELVE, PhotometricInterpretation=photometric, PresentationLUTShape=shape, **WIDE)
    agrees(content, 1 - linear(TWELVE, 2048, 4096))


# --- square pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"])
@pytest.mark.parametrize(("spacing", "shape"), [([0.4, 0.2], (80, 50)), ([0.2, 0.5], (40, 125))])
def test_pixels_become_square_by_scaling_the_coarser_axis(keyword, spacing, shape):
    content = dicom(**{keyword: spacing})
    image = read(content)
    assert image.pixels.shape == shape
    assert probe(content)[:2] == shape[::-1]
    rows, columns = ((np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(shape, RAMP.shape, strict=True))
    down = np.stack([np.interp(rows, np.arange(40), column) for column in RAMP.T], 1)
    expected = np.stack([np.interp(columns, np.arange(50), row) for row in down]) / 255
    np.testing.assert_allclose(image.pixels, expected, atol=1e-4)
    assert (image.tags["rows"], image.tags["columns"]) == ("40", "50")
    assert image.tags["note"].startswith(f"scaled from 50 x 40 to {shape[1]} x {shape[0]}")


def test_view_and_device_are_kept_as_printable_text():
    file = dicom(ViewPosition="PA", Manufacturer="ACME", ManufacturerModelName="Ray \x1b[1m1")
    tags = read(file).tags
    assert (tags["view"], tags["manufacturer"]) == ("PA", "ACME")
    assert tags["device"].startswith("Ray ")
    assert tags["device"].isprintable()


def test_the_pixel_aspect_ratio_is_down_to_across():
    assert read(dicom(PixelAspectRatio=["2", "1"])).pixels.shape == (80, 50)
    assert read(dicom(PixelAspectRatio=["1", "2"])).pixels.shape == (40, 100)


def test_hounsfield_units_between_two_rows_are_between_their_values():
    stored = np.zeros((40, 40), np.uint16)
    stored[20:] = 2024
    hu = read(ct(stored, PixelSpacing=[2, 1])).pixels
    assert hu.shape == (80, 40)
    assert sorted(set(hu[:, 0].tolist())) == [-1024, -518, 494, 1000]


@pytest.mark.parametrize(
    ("spacing", "noted"),
    [(b"0.000\\0.000", False), (b"0.5\\0.503", False), (b"-0.4\\0.2", True), (b"0.4\\0.01", True), (b"abc\\1", True)],
)
def test_an_impossible_spacing_is_ignored(spacing, noted):
    image = read(raw(dicom(), ("PixelSpacing", "DS", spacing)))
    assert image.pixels.shape == (40, 50)
    assert image.tags.get("note") == (f"PixelSpacing {spacing.decode()} not used" if noted else None)


def test_the_spacing_counts_before_the_aspect_ratio_and_an_unknown_one_does_not():
    assert read(dicom(PixelSpacing=[0.2, 0.2], PixelAspectRatio=["2", "1"])).pixels.shape == (40, 50)
    assert read(dicom(PixelSpacing=[0.2, 0.2], ImagerPixelSpacing=[0.4, 0.2])).pixels.shape == (40, 50)
    assert read(dicom(PixelSpacing=[0, 0], PixelAspectRatio=["2", "1"])).pixels.shape == (80, 50)


# --- colour ------------------------------------------------------------------------------------------------------

RGB = np.random.default_rng(4).integers(0, 256, (40, 50, 3), np.uint8)
RGB_GREY = grey(np.moveaxis(RGB.astype(float), 2, 0)) / 255


def test_colour_without_a_planar_configuration_is_by_pixel():
    np.testing.assert_allclose(read(dicom(RGB, PlanarConfiguration=None)).pixels, RGB_GREY, atol=0.6 / 255)


def test_the_length_shows_whether_the_colours_of_ybr_full_422_were_subsampled():
    flat = np.full((40, 50, 3), (90, 128, 128), np.uint8)  # luminance 90, no colour
    for content in (flat.tobytes(), np.tile(np.array([90, 90, 128, 128], np.uint8), 1000).tobytes()):
        made = dicom(flat, PhotometricInterpretation="YBR_FULL_422", PixelData=content)
        np.testing.assert_allclose(read(made).pixels, 90 / 255, atol=0.01)


@pytest.mark.parametrize("name", ["monochrome2", " MONOCHROME2"])
def test_the_photometric_interpretation_is_known_in_any_case(name):
    content = raw(dicom(SamplesPerPixel=None), ("PhotometricInterpretation", "CS", name.encode()))
    agrees(content, RAMP / 255)


# --- headers of any size -----------------------------------------------------------------------------------------


def before_pixels(content: bytes, *elements: bytes) -> bytes:
    at = content.index(b"\xe0\x7f\x10\0")
    return content[:at] + b"".join(elements) + content[at:]


OPEN = struct.pack("<I", 0xFFFFFFFF)
END_ITEM, END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def open_sequence(tag: int, *items: bytes) -> bytes:
    head = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"SQ", 0)
    item = struct.pack("<HH", 0xFFFE, 0xE000) + OPEN
    return head + OPEN + b"".join(item + inner + END_ITEM for inner in items) + END


def test_a_header_of_many_megabytes_is_skipped_in_little_memory(tmp_path):
    overlay = element(0x60003000, b"OW", bytes(20 * 2**20))
    private = element(0x60011010, b"UN", b"\xff" * (10 * 2**20))
    icon = struct.pack("<HH2sH", 0x7FE0, 0x10, b"OB", 0) + OPEN + item(bytes(3 * 2**20)) + END
    nested = open_sequence(0x60111000, icon + open_sequence(0x60111001, element(0x60111002, b"LO", b"x ")), b"")
    file = tmp_path / "scan.dcm"
    file.write_bytes(before_pixels(dicom(), overlay, private, nested))
    tracemalloc.start()
    image = read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(image.pixels, RAMP / 255, atol=1e-6)
    assert peak < 2**20


def test_a_header_of_too_many_elements_is_refused_in_seconds():
    started = time.process_time()
    many = element(0x60111002, b"LO", b"") * 2_000_000
    assert refusal(before_pixels(dicom(), many)).rule.startswith("header too long: more than 200000 elements")
    assert refusal(before_pixels(dicom(), open_sequence(0x60111000, many))).rule.startswith("header too long")
    assert time.process_time() - started < 10


def test_tables_of_many_megabytes_are_refused_unread():
    sequence = lut_item(0, bytes(9 * 2**20), 4096, 12)
    assert "too long" in refusal(raw(dicom(TWELVE), ("VOILUTSequence", "SQ", sequence))).rule


def test_lookup_tables_in_sequences_of_open_length_are_read():
    inner = element(Tag("LUTDescriptor"), b"US", struct.pack("<3H", 4096, 0, 12))
    inner += element(Tag("LUTData"), b"OW", FALLING.tobytes())
    agrees(before_pixels(dicom(TWELVE), open_sequence(Tag("VOILUTSequence"), inner)), FALLING[TWELVE] / 4095)


def test_elements_after_the_pixels_are_not_read():
    nested = struct.pack("<HH2sHI2HI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    agrees(dicom() + nested * 5000, RAMP / 255)


@pytest.mark.parametrize(
    "inner",
    [
        (item(element(0x60111002, b"LO", b"x ")) + END_ITEM) * 2 + END,  # the end of an item that has a length
        struct.pack("<HH", 0xFFFE, 0xE000) + OPEN + element(0x60111002, b"LO", b"x ") + END,  # no end of the item
        item() + END + END_ITEM + END,  # marks too many
    ],
)
def test_closing_marks_too_many_or_too_few_do_not_hide_the_pixels(inner):
    sequence = struct.pack("<HH2sH", 0x6011, 0x1000, b"SQ", 0) + OPEN + inner
    for at in (sequence, open_sequence(0x60111005, sequence)):
        agrees(before_pixels(dicom(), at), RAMP / 255)


# --- reasons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "kind", "value", "rule"),
    [
        ("Rows", "US", struct.pack("<2H", 40, 40), r"damaged: Rows 40\\40, where one whole number belongs"),
        ("Columns", "DS", b"50.5", "damaged: Columns 50.5, where one whole number belongs"),
        ("NumberOfFrames", "IS", b"abc", "damaged: NumberOfFrames abc, where one whole number belongs"),
        ("NumberOfFrames", "IS", b"-1", "damaged: NumberOfFrames -1"),
        ("NumberOfFrames", "IS", b"12", "multi-frame: 12 frames .NumberOfFrames."),
        ("BitsAllocated", "US", struct.pack("<H", 12), "pixel format not accepted: .*BitsAllocated 12"),
        ("BitsAllocated", "US", struct.pack("<H", 1), "pixel format not accepted: .*BitsAllocated 1"),
        ("BitsStored", "US", struct.pack("<H", 0), "pixel format not accepted: .*BitsStored 0"),
        ("PixelRepresentation", "US", struct.pack("<H", 5), "pixel format not accepted: PixelRepresentation 5"),
        ("PhotometricInterpretation", "CS", b"YBR_PARTIAL_422", "pixel format not accepted: .* YBR_PARTIAL_422"),
        ("PhotometricInterpretation", "CS", b"ARGB", "pixel format not accepted: PhotometricInterpretation ARGB"),
        ("PhotometricInterpretation", "CS", b"CMYK", "pixel format not accepted: PhotometricInterpretation CMYK"),
        ("PhotometricInterpretation", "CS", b"", "pixel format not accepted: PhotometricInterpretation missing"),
        ("PhotometricInterpretation", "CS", b"YBR_RCT", "pixel format not accepted: TransferSyntaxUID 1.2.*YBR_RCT"),
        (
            "PhotometricInterpretation",
            "CS",
            b"PALETTE COLOR",
            "palette not usable: RedPaletteColorLookupTableDescriptor",
        ),
        ("ModalityLUTSequence", "LO", b"text", "ModalityLUTSequence not usable: LUTDescriptor missing"),
        ("PhotometricInterpretation", "CS", b"RGB", "pixel format not accepted: .* RGB, SamplesPerPixel 1"),
    ],
)
def test_a_refusal_names_the_attribute_and_its_value(keyword, kind, value, rule):
    content = raw(dicom(), (keyword, kind, value))
    for give in (read, probe):
        with pytest.raises(ImageRefused, match=rule):
            give(content)


def test_deep_colour_and_float_pixels_are_named():
    assert refusal(dicom(RGB.astype(np.uint16))).rule.endswith("SamplesPerPixel 3, BitsAllocated 16")
    content = dicom(np.zeros((40, 50), np.uint32), PixelData=None, FloatPixelData=bytes(8000))
    assert refusal(content).rule == "pixel format not accepted: FloatPixelData"


@pytest.mark.parametrize("keyword", ["SliceThickness", "PixelSpacing", "ImagerPixelSpacing", "PixelPaddingValue"])
@pytest.mark.parametrize("value", [b"abc", b"1,5", b"\xff\xfe", b"1\\\\2", b"1e99999"])
def test_a_value_that_only_describes_the_picture_never_costs_it(keyword, value):
    assert read(raw(dicom(), (keyword, "DS", value))).pixels.shape in ((40, 50), (60, 50))


def test_an_unknown_character_set_does_not_matter():
    agrees(raw(dicom(), ("SpecificCharacterSet", "CS", b"ISO_IR 999")), RAMP / 255)


def test_the_modality_is_known_in_any_case():
    assert read(raw(ct(TWELVE), ("Modality", "CS", b"ct"))).modality == "CT"


def test_pixels_of_an_unknown_kind_are_read_and_missing_ones_are_called_so():
    content = ct(TWELVE)
    at = content.index(b"\xe0\x7f\x10\0")
    np.testing.assert_array_equal(read(content[: at + 4] + b"UN" + content[at + 6 :]).pixels, read(content).pixels)
    assert refusal(content[: at + 8] + bytes(4)).rule == "no pixel data: PixelData is empty"
    assert refusal(content[: at + 6]).rule == "truncated: the file ends within the header"
    assert refusal(content[:at]).rule == "no pixel data"


@pytest.mark.parametrize(("age", "shown"), [("047Y", "047Y"), ("006M", "006M"), ("089Y", "089Y"), ("097Y", "090Y")])
def test_an_age_is_kept_unless_so_few_people_reach_it_that_it_says_who_it_is(age, shown):
    assert read(dicom(TWELVE, PatientAge=age)).tags["age"] == shown
