"""What holds for every file and every image: nothing but ImageRefused escapes, and tensors keep their promises."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from imagecodecs import jpeg8_encode, jpegls_encode
from pydicom import Dataset, dcmwrite, uid
from pydicom.encaps import encapsulate

from lungkit.data.image import MIN_SIDE
from lungkit.data.images import Image, ImageRefused, probe, read
from lungkit.data.preprocess import Preprocessing, prepare, window_level
from tests.data.jpeg_lossless import encoded

quick = settings(max_examples=60, deadline=None)

GREY = np.random.default_rng(7).integers(0, 256, (32, 40), np.uint8)


def picture(kind: str, **options) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(GREY).save(content, kind, **options)
    return content.getvalue()


def deep_png() -> bytes:
    """Colour of 16 bits, which Pillow cannot write."""
    words = np.repeat(GREY.astype(">u2") * 16, 3, axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in words)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">2I5B", 40, 32, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(**tags: int) -> bytes:
    """Colour of 16 bits by hand; a tag is a t and its number."""
    words = np.repeat(GREY.astype("<u2") * 16, 3, axis=1)
    entries = {256: 40, 257: 32, 258: 16, 259: 1, 262: 2, 273: 8, 277: 3, 278: 32, 279: words.nbytes, 284: 1}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    fields = b"".join(struct.pack("<2H2I", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    head = struct.pack("<2sHI", b"II", 42, 8 + words.nbytes)
    return head + words.tobytes() + struct.pack("<H", len(entries)) + fields + bytes(4)


def dicom(kind: uid.UID, modality: str, syntax: uid.UID = uid.ExplicitVRLittleEndian, frame: bytes = b"") -> bytes:
    """A compressed frame is given, or coded by pydicom."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = kind, "1.2.3.4", modality
    made.Rows, made.Columns = GREY.shape
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME1", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.WindowCenter, made.WindowWidth, made.RescaleSlope, made.RescaleIntercept = 600, 900, 1, -1024
    made.PixelPaddingValue = 3
    made.PixelData = GREY.astype("<u2").tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta = Dataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if frame:
        made.PixelData, made.file_meta.TransferSyntaxUID = encapsulate([frame]), syntax
    elif syntax != uid.ExplicitVRLittleEndian:
        made.compress(syntax, generate_instance_uid=False)
    content = io.BytesIO()
    dcmwrite(content, made, enforce_file_format=True)
    return content.getvalue()


VALID = {
    "png": picture("PNG"),
    "jpeg": picture("JPEG"),
    "tiff": picture("TIFF"),
    "tiff lzw": picture("TIFF", compression="tiff_lzw"),
    "png 16-bit colour": deep_png(),
    "tiff 16-bit colour": deep_tiff(),
    "tiff 16-bit grey and alpha": deep_tiff(t256=60, t262=1, t277=2, t338=2),
    "tiff half floats": deep_tiff(t256=120, t262=1, t277=1, t339=3),
    "ct": dicom(uid.CTImageStorage, "CT"),
    "x-ray": dicom(uid.DigitalXRayImageStorageForPresentation, "DX"),
    "jpeg 2000": dicom(uid.CTImageStorage, "CT", uid.JPEG2000Lossless),
    "rle": dicom(uid.ComputedRadiographyImageStorage, "CR", uid.RLELossless),
    "jpeg lossless": dicom(uid.CTImageStorage, "CT", uid.JPEGLossless, encoded(GREY, 12, 6, wraps=True)),
    "jpeg of 12 bits": dicom(
        uid.CTImageStorage, "CT", uid.JPEGExtended12Bit, jpeg8_encode(GREY.astype(np.uint16), bitspersample=12)
    ),
    "jpeg-ls": dicom(uid.CTImageStorage, "CT", uid.JPEGLSLossless, jpegls_encode(GREY.astype(np.uint16))),
}


def is_an_image_or_refused(content: bytes) -> bool:
    """Anything else that `read` or `probe` raises fails the test; True if it was read."""
    try:
        probe(content)
    except ImageRefused as refused:
        assert refused.rule
        assert refused.remedy
    try:
        image = read(content)
    except ImageRefused:
        return False
    assert image.pixels.ndim == 2
    assert image.pixels.dtype == np.float32
    assert np.isfinite(image.pixels).all()
    if image.units == "intensity":
        assert image.pixels.min() >= 0
        assert image.pixels.max() <= 1
    else:
        assert image.pixels.min() >= -1024
    return True


@pytest.mark.parametrize("kind", VALID)
def test_the_files_that_are_damaged_below_are_valid(kind):
    assert is_an_image_or_refused(VALID[kind])


STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0\x08\0\0\0", b"MM\0*"]
STARTS += [bytes(128) + b"DICM\2\0\0\0UL\4\0"]


@quick
@given(st.sampled_from(STARTS), st.binary(max_size=600))
def test_random_bytes_are_refused_and_nothing_else_is_raised(start, rest):
    is_an_image_or_refused(start + rest)


@pytest.mark.parametrize("kind", VALID)
@quick
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else_is_raised(kind, data):
    content = bytearray(VALID[kind])
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=12), label="places"):
        content[place] = data.draw(st.integers(0, 255), label="byte")
    is_an_image_or_refused(bytes(content))


@pytest.mark.parametrize("kind", VALID)
@quick
@given(data=st.data())
def test_a_file_cut_short_or_spliced_is_read_or_refused(kind, data):
    content = VALID[kind]
    first = data.draw(st.integers(0, len(content)), label="cut")
    second = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), label="go on")
    is_an_image_or_refused(content[:first] + content[second:])


sides = st.integers(1, 300)
images_of_any_shape = st.builds(
    lambda height, width, seed, units: Image(
        np.random.default_rng(seed).uniform(-1100, 3000, (height, width)).astype(np.float32)
        / (1 if units == "HU" else 3000),
        units,
        "",
        "made",
        {},
    ),
    sides,
    sides,
    st.integers(0, 99),
    st.sampled_from(["HU", "intensity"]),
)
specs = st.builds(
    Preprocessing,
    size=st.tuples(st.integers(8, 128), st.integers(8, 128)),
    mean=st.floats(0, 1),
    std=st.floats(0.05, 2),
)


@quick
@given(images_of_any_shape, specs)
def test_a_tensor_always_has_its_shape_and_range_and_is_deterministic(image, spec):
    tensor = prepare(image, spec).tensor
    assert tensor.shape == (*spec.size, 1)
    assert tensor.dtype == np.float32
    lowest, highest = (np.float32((end - spec.mean) / spec.std) for end in (0, 1))
    assert tensor.min() >= lowest - 1e-4
    assert tensor.max() <= highest + 1e-4
    np.testing.assert_array_equal(tensor, prepare(image, spec).tensor)


@quick
@given(sides, sides, specs)
def test_padding_is_black_and_the_same_on_both_sides(height, width, spec):
    white = Image(np.ones((height, width), np.float32), "intensity", "", "made", {})
    inked = prepare(white, Preprocessing(spec.size)).tensor[..., 0] > 0.5
    rows, columns = (np.flatnonzero(inked.any(axis=axis)) for axis in (1, 0))
    for filled, whole in ((rows, spec.size[0]), (columns, spec.size[1])):
        before, after = filled[0], whole - 1 - filled[-1]
        assert 0 <= after - before <= 1  # an odd pixel lies at the bottom or the right
    assert inked.sum() == len(rows) * len(columns)
    assert len(rows) == spec.size[0] or len(columns) == spec.size[1]


@quick
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1024, 3071, width=32)),
    st.floats(-1000, 500),
    st.floats(1, 4000),
)
def test_a_window_keeps_the_order_of_hounsfield_units_and_its_ends(hu, level, width):
    windowed = window_level(np.sort(hu), level, width)
    assert (np.diff(windowed) >= 0).all()
    ends = window_level(np.array([level - width / 2 - 1, level, level + width / 2 + 1]), level, width)
    np.testing.assert_allclose(ends, [0, 0.5, 1], atol=1e-3)


@quick
@given(st.floats(-800, 500), st.floats(1, 400))
def test_air_is_black_in_every_window_that_starts_above_it(level, width):
    air = Image(np.full((MIN_SIDE, MIN_SIDE), -1000, np.float32), "HU", "CT", "made", {})
    assert prepare(air, Preprocessing((32, 32), (level, width))).tensor.max() == 0
