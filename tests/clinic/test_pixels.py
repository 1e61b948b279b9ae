"""Pixels in the records: what comes back from them, and that nothing but the picture is in them."""

import io
import struct

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lungkit.clinic.records import pixels
from lungkit.clinic.records.pixels import PixelsDamaged
from lungkit.clinic.records.tables import KINDS
from lungkit.data import images


def image(values, units="intensity", modality="", tags=None) -> images.Image:
    return images.Image(np.asarray(values, np.float32), units, modality, "file", tags or {})


def ramp(height, width) -> np.ndarray:
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


def chunks(png: bytes) -> list[bytes]:
    names, at = [], 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        names.append(name)
        at += 12 + length
    return names


shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)


@given(arrays.arrays(np.int32, shapes, elements=st.integers(-1024, 64511)))
def test_hounsfield_units_come_back_to_the_unit(hu):
    kept = pixels.decode(pixels.encode(image(hu, "HU", "CT")), "HU")
    assert kept.dtype == np.float32
    assert np.array_equal(kept, hu)


@given(arrays.arrays(np.float32, shapes, elements=st.floats(0, 1, width=32)))
def test_intensities_come_back_within_half_a_step_of_8_bits(values):
    kept = pixels.decode(pixels.encode(image(values)), "intensity")
    assert kept.dtype == np.float32
    assert kept.shape == values.shape
    assert np.abs(kept - values).max() <= 0.5 / 255 + 1e-6


def test_values_outside_the_stored_range_are_clipped():
    hu = pixels.decode(pixels.encode(image([[-5000.0, 90000.0]], "HU", "CT")), "HU")
    assert hu.tolist() == [[-1024, 65535 - 1024]]
    assert pixels.decode(pixels.encode(image([[-0.5, 1.5]])), "intensity").tolist() == [[0, 1]]


@pytest.mark.parametrize(("units", "scale"), [("intensity", 1), ("HU", 1000)])
def test_a_very_large_image_is_stored_smaller_with_the_same_aspect_and_brightness(units, scale):
    large = ramp(512, 4096) * scale
    kept = pixels.decode(pixels.encode(image(large, units)), units)
    assert kept.shape == (256, 2048)
    assert np.abs(kept - large.reshape(256, 2, 2048, 2).mean((1, 3))).max() <= scale / 200


def test_an_image_of_the_longest_side_is_not_resampled():
    values = (np.indices((30, 2048)).sum(0) % 2).astype(np.float32)
    assert np.array_equal(pixels.decode(pixels.encode(image(values)), "intensity"), values)


def test_the_stored_file_contains_the_picture_and_nothing_else():
    tagged = image(ramp(60, 50), "HU", "CT", {"view": "PA", "body_part": "CHEST"})
    assert set(chunks(pixels.encode(tagged))) == {b"IHDR", b"IDAT", b"IEND"}


def test_each_class_gets_its_own_heat_map_back():
    heat = np.stack([ramp(12, 10), 1 - ramp(12, 10), np.zeros((12, 10), np.float32)])
    kept = pixels.decode_heat(pixels.encode_heat(heat), 3)
    assert kept.dtype == np.float32
    assert kept.shape == heat.shape
    assert np.abs(kept - heat).max() <= 0.5 / 255 + 1e-6


def test_heat_maps_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(PixelsDamaged, match="do not match 5 classes"):
        pixels.decode_heat(pixels.encode_heat(np.zeros((3, 4, 4), np.float32)), 5)


@pytest.mark.parametrize(
    ("units", "modality", "kind"),
    [
        ("HU", "CT", "CT"),
        ("intensity", "CR", "X-ray"),
        ("intensity", "DX", "X-ray"),
        ("intensity", "DR", "X-ray"),
        ("intensity", "RG", "X-ray"),
        ("intensity", "OT", "image"),
        ("intensity", "SC", "image"),
        ("intensity", "", "image"),
    ],
)
def test_the_kind_is_what_the_file_says_of_itself(units, modality, kind):
    assert kind in KINDS
    assert pixels.kind_of(image([[0.0]], units, modality)) == kind


@pytest.mark.parametrize("shape", [(900, 300), (300, 900), (40, 30)])
def test_a_thumbnail_is_small_has_the_aspect_and_8_bits(shape):
    for units in ("intensity", "HU"):
        png = pixels.thumbnail(pixels.encode(image(ramp(*shape), units)), units)
        with PIL.Image.open(io.BytesIO(png)) as picture:
            assert picture.mode == "L"
            assert max(picture.size) == min(160, max(shape))
            assert picture.width / picture.height == pytest.approx(shape[1] / shape[0], rel=0.02)


def test_a_thumbnail_of_a_ct_shows_the_lung_window():
    hu = [[-1350.0, -600.0, 150.0, 1000.0]]
    with PIL.Image.open(io.BytesIO(pixels.thumbnail(pixels.encode(image(hu, "HU", "CT")), "HU"))) as picture:
        shown = np.asarray(picture)[0].tolist()
    assert shown[1:] == [128, 255, 255]
    assert shown[0] < 60  # -1350 is kept as air, -1024


def test_a_damaged_picture_is_refused_in_words_or_read_never_anything_else():
    png = pixels.encode(image(ramp(64, 64)))
    refused = 0
    for at in range(0, len(png), 7):
        for damaged in (png[:at], png[:at] + bytes([png[at] ^ 0x55]) + png[at + 1 :]):
            try:
                pixels.decode(damaged, "intensity")
            except PixelsDamaged:
                refused += 1
    assert refused > len(png) // 7
