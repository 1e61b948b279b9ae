"""Coded pixels: every stream that the standards allow gives the values that went in, or is refused by its rule."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import PIL.Image
import pytest
from openjpeg.utils import encode_array
from pydicom import uid
from pydicom.encaps import encapsulate

from lungkit.data.decoders import stored_values
from lungkit.data.dicom_header import JPEG, JPEG_2000, JPEG_LS, Header, Raw
from lungkit.data.image import Broken
from tests.data.jpeg_lossless import encoded

RNG = np.random.default_rng(5)
ROWS, COLUMNS = 40, 52


def noise(bits: int, *more: int) -> np.ndarray:
    return RNG.integers(0, 2**bits, (ROWS, COLUMNS, *more)).astype(np.uint8 if bits <= 8 else np.uint16)


def decoded(frame: bytes, syntax: uid.UID, stored: int = 16, colour: str = "MONOCHROME2", **fields) -> np.ndarray:
    """The stored values of a frame under a header; `stored`: its BitsStored."""
    header = Header(syntax)
    header.rows, header.columns = ROWS, COLUMNS
    header.samples = 1 if colour.startswith("MONO") else 3
    header.photometric, header.planar = colour, 0
    header.bits_stored, header.bits_allocated, header.high_bit = stored, 8 if stored <= 8 else 16, stored - 1
    vars(header).update(fields)
    return stored_values(header, Raw("OB", encapsulate([frame])))


# --- lossless JPEG -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wraps", [False, True], ids=["modulo 2^16", "modulo 2^precision"])
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("precision", [2, 7, 8, 10, 12, 15, 16])
def test_a_lossless_jpeg_gives_the_values_that_went_in(precision, predictor, wraps):
    values = noise(precision)
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        found = decoded(encoded(values, precision, predictor, wraps), syntax, precision)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("predictor", [1, 4, 5, 6, 7])
@pytest.mark.parametrize(
    "options", [{"restart_rows": 1}, {"restart_rows": 7}, {"shift": 3}, {"shift": 1, "restart_rows": 9}]
)
def test_a_lossless_jpeg_may_start_again_and_leave_out_lowest_bits(options, predictor, wraps):
    values, shift = noise(12), options.get("shift", 0)
    found = decoded(encoded(values, 12, predictor, wraps, **options), uid.JPEGLossless)
    np.testing.assert_array_equal(found, values >> shift << shift)


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("own_scans", [False, True])
@pytest.mark.parametrize("predictor", [1, 5, 6, 7])
def test_a_lossless_jpeg_in_colour_is_read(predictor, own_scans, wraps):
    values = noise(8, 3)
    found = decoded(encoded(values, 8, predictor, wraps, own_scans=own_scans), uid.JPEGLossless, 8, "RGB")
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("precision", [10, 12, 16])
def test_signed_values_keep_their_sign_at_any_precision(precision):
    values = noise(16).view(np.int16) >> (16 - precision)
    frame = encoded(values.view(np.uint16) & np.uint16(2**precision - 1), precision)
    found = decoded(frame, uid.JPEGLosslessSV1, stored=precision, signed=1)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.int16
    in_words = imagecodecs.jpegls_encode(values.view(np.uint16))
    np.testing.assert_array_equal(decoded(in_words, uid.JPEGLSLossless, precision, signed=1), values)


def test_bits_above_those_that_the_header_says_are_stored_are_cut_off():
    values = noise(16)
    found = decoded(encoded(values, 16), uid.JPEGLossless, stored=12)
    np.testing.assert_array_equal(found, values & 4095)


@pytest.mark.parametrize("brightest", [4095, 200])
@pytest.mark.parametrize("signed", [0, 1])
def test_values_high_in_their_words_are_read_from_there_in_dark_pictures_too(brightest, signed):
    values = np.linspace(-signed * brightest // 2, brightest // (1 + signed), ROWS * COLUMNS).astype(np.int64)
    values = values.reshape(ROWS, COLUMNS)
    words = ((values & 4095) << 4 | noise(4)).astype(np.uint16)
    header = {"stored": 12, "high_bit": 15, "signed": signed}
    for frame, syntax in (
        (encoded(words, 16), uid.JPEGLossless),
        (imagecodecs.jpegls_encode(words), uid.JPEGLSLossless),
        (jpeg_2000(words, no_jp2=True), uid.JPEG2000Lossless),
    ):
        np.testing.assert_array_equal(decoded(frame, syntax, **header), values)


def test_values_coded_without_words_are_not_shifted_by_any_high_bit():
    values = noise(12)
    np.testing.assert_array_equal(decoded(encoded(values, 12), uid.JPEGLossless, stored=12, high_bit=15), values)


# --- lossy JPEG --------------------------------------------------------------------------------------------------

SMOOTH = np.add.outer(np.arange(ROWS), np.arange(COLUMNS)) * 2
COLOURS = np.dstack([SMOOTH, SMOOTH[::-1], np.full((ROWS, COLUMNS), 90)]).astype(np.uint8)


def test_a_jpeg_of_12_bits_is_read():
    frame = imagecodecs.jpeg8_encode((SMOOTH * 20).astype(np.uint16), level=98, bitspersample=12)
    found = decoded(frame, uid.JPEGExtended12Bit, stored=12)
    np.testing.assert_allclose(found, SMOOTH * 20, atol=12)
    assert found.max() > 3000


def jpeg(array: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(array).save(content, "JPEG", quality=98, subsampling=0, **options)
    return content.getvalue()


def without(frame: bytes, marker: int) -> bytes:
    """Drops the first segment of the kind."""
    at = frame.index(bytes([0xFF, marker]))
    return frame[:at] + frame[at + 2 + int.from_bytes(frame[at + 2 : at + 4]) :]


ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"


@pytest.mark.parametrize(
    ("case", "frame", "colour"),
    [
        ("as the header says", without(jpeg(COLOURS), 0xE0), "YBR_FULL_422"),
        ("JFIF is always YCbCr", jpeg(COLOURS), "RGB"),
        ("Adobe says YCbCr", without(jpeg(COLOURS), 0xE0).replace(b"\xff\xd8", b"\xff\xd8" + ADOBE + b"\1", 1), "RGB"),
        ("as the header says, RGB", without(jpeg(COLOURS, keep_rgb=True), 0xEE), "RGB"),
        ("components named R, G, B", without(jpeg(COLOURS, keep_rgb=True), 0xEE), "YBR_FULL_422"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_the_colours_of_a_jpeg_follow_its_markers_or_the_header(case, frame, colour):
    found = decoded(frame, uid.JPEGBaseline8Bit, 8, colour)
    np.testing.assert_allclose(found.astype(int), COLOURS, atol=8)


def test_subsampled_colours_are_upsampled():
    content = io.BytesIO()
    PIL.Image.fromarray(COLOURS).save(content, "JPEG", quality=98, subsampling="4:2:2")
    found = decoded(content.getvalue(), uid.JPEGBaseline8Bit, 8, "YBR_FULL_422")
    np.testing.assert_allclose(found.astype(int), COLOURS, atol=12)


# --- JPEG-LS and JPEG 2000 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_lossless_jpeg_ls_gives_the_values_that_went_in(bits):
    values = noise(bits)
    frame = imagecodecs.jpegls_encode(values)
    np.testing.assert_array_equal(decoded(frame, uid.JPEGLSLossless, bits), values)


def test_a_near_lossless_jpeg_ls_is_within_its_stated_error():
    values = noise(12)
    found = decoded(imagecodecs.jpegls_encode(values, level=3), uid.JPEGLSNearLossless, 12)
    assert 0 < np.abs(found.astype(int) - values).max() <= 3


def test_a_jpeg_ls_in_colour_is_read():
    values = noise(8, 3)
    np.testing.assert_array_equal(decoded(imagecodecs.jpegls_encode(values), uid.JPEGLSLossless, 8, "RGB"), values)


def test_a_jpeg_ls_with_padding_before_its_closing_mark_is_read():
    values = noise(12)
    frame = imagecodecs.jpegls_encode(values)
    padded = frame[:-2] + b"\0\xff\xd9"
    np.testing.assert_array_equal(decoded(padded, uid.JPEGLSLossless, 12), values)


def jpeg_2000(array: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(array).save(content, "JPEG2000", irreversible=False, **options)
    return content.getvalue()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_jpeg_2000_in_its_file_wrapper_is_read_as_one_without(bits):
    values = noise(bits)
    wrapped, bare = jpeg_2000(values), jpeg_2000(values, no_jp2=True)
    assert wrapped[4:8] == b"jP  "
    for frame in (wrapped, bare):
        np.testing.assert_array_equal(decoded(frame, uid.JPEG2000Lossless, bits), values)


@pytest.mark.parametrize("coded_signed", [False, True])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("precision", "stored"), [(12, 12), (12, 16), (16, 12), (16, 16)])
def test_the_header_decides_the_sign_of_a_jpeg_2000(precision, stored, signed, coded_signed):
    bits = min(precision, stored)
    values = RNG.integers(-(2 ** (bits - 1)) * signed, 2 ** (bits - signed), (ROWS, COLUMNS))
    if not signed and coded_signed:
        values //= 2  # what both can hold
    words = values if coded_signed else values & (2**precision - 1)
    frame = encode_array(words.astype(np.int16 if coded_signed else np.uint16), precision, photometric_interpretation=2)
    found = decoded(frame, uid.JPEG2000Lossless, stored, signed=signed)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("length", [0, 1])
def test_the_box_of_a_wrapped_jpeg_2000_may_be_open_or_of_a_long_length(length):
    values = noise(8)
    frame = jpeg_2000(values)
    at = frame.index(b"jp2c") - 4
    long = (int.from_bytes(frame[at : at + 4]) + 8).to_bytes(8) if length else b""
    frame = frame[:at] + length.to_bytes(4) + b"jp2c" + long + frame[at + 8 :]
    np.testing.assert_array_equal(decoded(frame, uid.JPEG2000Lossless, 8), values)


# --- refused -----------------------------------------------------------------------------------------------------

LARGE = np.zeros((200, 200), np.uint16)


def refusal(*header, **tags) -> str:
    with pytest.raises(Broken) as caught:
        decoded(*header, **tags)
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("frame", "syntax"),
    [
        (encoded(LARGE, 12), uid.JPEGLossless),
        (imagecodecs.jpegls_encode(LARGE), uid.JPEGLSLossless),
        (jpeg_2000(LARGE), uid.JPEG2000Lossless),
        (jpeg_2000(LARGE)[:60], uid.JPEG2000Lossless),
        (jpeg_2000(LARGE, no_jp2=True)[:42], uid.JPEG2000Lossless),
        (encoded(LARGE, 12)[:30], uid.JPEGLossless),
        (without(encoded(noise(8), 8), 0xC3), uid.JPEGLossless),
    ],
)
def test_a_stream_of_another_size_or_none_is_refused(frame, syntax):
    rule = refusal(frame, syntax)
    assert "not of the size that the header gives: it states" in rule
    assert rule.endswith("not Columns 52, Rows 40, SamplesPerPixel 1")


def test_a_stream_deeper_than_the_words_of_the_header_is_refused_with_both_figures():
    for frame, syntax in (
        (encoded(noise(12), 12), uid.JPEGLossless),
        (imagecodecs.jpegls_encode(noise(12)), uid.JPEGLSLossless),
        (jpeg_2000(noise(16)), uid.JPEG2000Lossless),
    ):
        assert "bits, BitsAllocated is 8" in refusal(frame, syntax, stored=8)


@pytest.mark.parametrize("share", [0.4, 0.9])
@pytest.mark.parametrize("make", [lambda: encoded(noise(12), 12), lambda: jpeg(noise(8))], ids=["lossless", "lossy"])
def test_a_jpeg_that_was_cut_is_refused_rather_than_read_as_half_a_picture(make, share):
    frame = make()
    rule = refusal(frame[: int(share * len(frame))], uid.JPEGLossless)
    assert rule == "truncated: the compressed picture ends before its closing mark"


def test_a_cut_jpeg_ls_is_refused_at_once_even_if_it_has_a_closing_mark_elsewhere():
    frame = imagecodecs.jpegls_encode(noise(8, 3))
    start = frame.index(b"\xff\xda")
    hidden = frame[:start] + b"\xff\xfe\0\4\xff\xd9" + frame[start:-2]  # in a comment
    before = time.process_time()
    for cut in range(100, 1000, 100):
        with pytest.raises(imagecodecs.JpeglsError):
            decoded(hidden[:-cut], uid.JPEGLSLossless, 8, "RGB")
    assert time.process_time() - before < 1


PROGRESSIVE = jpeg(SMOOTH.astype(np.uint8), progressive=True)
LAST_SCAN = PROGRESSIVE.rfind(b"\xff\xda")
ITEM = b"\xfe\xff\0\xe0\0\0\0\0"


@pytest.mark.parametrize(
    ("frame", "syntax", "rule"),
    [
        (b"\xff\xd8" + b"\xff\xe1\0\2" * 10**6, uid.JPEGLossless, "it states none"),
        (b"\xff\xd8" + b"\xff" * 10**6, uid.JPEGLossless, "it states none"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 10**6, uid.JPEG2000, "it states none"),
        (ITEM * 10**6, uid.JPEGLossless, "more than 100000 fragments"),
        (
            PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rfind(b"\xff\xda") : -2] * 200 + b"\xff\xd9",
            uid.JPEGBaseline8Bit,
            "scans",
        ),
    ],
    ids=["segments", "fill bytes", "boxes", "fragments", "scans"],
)
def test_a_stream_of_very_many_parts_is_refused_at_once(frame, syntax, rule):
    before = time.process_time()
    assert rule in refusal(frame, syntax, stored=8)
    assert time.process_time() - before < 0.5


# --- strangers' files --------------------------------------------------------------------------------------------

SOUND = {
    "lossless": (encoded(noise(12), 12), uid.JPEGLossless, 12),
    "wrapping": (encoded(noise(12), 12, 6, wraps=True, restart_rows=4), uid.JPEGLossless, 12),
    "8 bits": (jpeg(SMOOTH.astype(np.uint8)), uid.JPEGBaseline8Bit, 8),
    "12 bits": (imagecodecs.jpeg8_encode(noise(12), bitspersample=12), uid.JPEGExtended12Bit, 12),
    "JPEG-LS": (imagecodecs.jpegls_encode(noise(12)), uid.JPEGLSLossless, 12),
    "JPEG 2000": (jpeg_2000(noise(16)), uid.JPEG2000Lossless, 16),
}


def mutated(frame: bytes, seed: int) -> bytes:
    """With up to six bytes changed, mostly of the header; now and then cut, or followed by another part of itself."""
    rng = np.random.default_rng(seed)
    content = bytearray(frame)
    for _ in range(rng.integers(1, 7)):
        end = len(content) if rng.random() < 0.4 else min(len(content), 120)
        content[rng.integers(2, end)] = rng.choice([0, 1, 127, 255, rng.integers(256)])
    cut = rng.integers(2, len(content))
    return bytes(content[:cut] + content[rng.integers(len(content)) :] if rng.random() < 0.2 else content)


def survives(kind: str, seeds: range) -> int:
    """How many of the mutated streams were decoded; whatever the decoder raises is a refusal by the reader."""
    frame, syntax, stored = SOUND[kind]
    count = 0
    for seed in seeds:
        try:
            found = decoded(mutated(frame, seed), syntax, stored)
        except Exception:
            continue
        assert found.shape == (ROWS, COLUMNS)
        count += 1
    return count


@pytest.mark.parametrize("kind", SOUND)
def test_no_mutated_stream_ends_the_process_or_fills_its_memory(kind):
    code = f"""
import re, resource
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from tests.data.test_decoders import survives
# Not ru_maxrss, which starts at what the process that started this one had taken.
read = survives({kind!r}, range(300))
print(read, int(re.search("VmHWM: *[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    read, megabytes = map(int, done.stdout.split())
    assert 0 < read < 300
    assert megabytes < 500
    assert not done.stderr


def test_streams_are_decoded_the_same_in_many_threads_at_once():
    cases = [SOUND[kind] for kind in SOUND] * 20
    once = [decoded(*case) for case in cases[: len(SOUND)]] * 20
    with ThreadPoolExecutor(8) as pool:
        for found, expected in zip(pool.map(lambda case: decoded(*case), cases), once, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_every_compressed_transfer_syntax_that_is_accepted_is_tried_above():
    tried = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
    tried |= {uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless}
    assert {*JPEG, *JPEG_LS, *JPEG_2000} - tried == {uid.JPEG2000}  # the lossy one: the same decoder
