"""What every kind of file shares: pixels that are not square become square."""

import numpy as np
import pytest

from lungkit.data.image import MAX_PIXELS, square, square_shape


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        ((0.4, 0.2), (80, 60)),
        ((0.2, 0.4), (40, 120)),
        ((1, 1.33), (40, 80)),
        ((0.143, 0.143), (40, 60)),
        ((1.009, 1), (40, 60)),
    ],
)
def test_the_coarser_axis_grows_until_pixels_are_square(spacing, shape):
    assert square_shape((40, 60), *spacing) == shape


@pytest.mark.parametrize("spacing", [(0, 0), (0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (11, 1), (1, 1e9)])
def test_an_impossible_spacing_changes_nothing(spacing):
    assert square_shape((40, 60), *spacing) == (40, 60)


def test_square_pixels_never_exceed_the_most_that_are_decoded():
    height, width = square_shape((6000, 6000), 9, 1)
    assert height * width <= MAX_PIXELS * 1.001
    assert height / width == pytest.approx(9, rel=1e-3)


def test_making_pixels_square_keeps_values_and_layout():
    pixels = np.zeros((40, 60), np.float32)
    pixels[:20, :30] = 0.75
    larger = square(pixels, 2, 1)
    assert larger.dtype == np.float32
    np.testing.assert_allclose(larger[::2], pixels, atol=0.2)
    assert (larger[:38, :29] == 0.75).all()
    assert square(pixels, 1, 1) is pixels
