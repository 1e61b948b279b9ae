"""Heat maps to page through: the picture follows the image, the class and the opacity."""

import io

import numpy as np
import PIL.Image
import pytest

from lungkit import palette
from lungkit.errors import LungkitError
from lungkit.explore import heat

CLASSES = ("Normal", "COVID-19")


def maps(n=3, size=32):
    images = np.full((n, size, size), 0.5, np.float32)
    warm, masks = np.zeros((n, 2, size, size), np.float32), np.zeros((n, size, size), bool)
    warm[:, 0, :8, :8] = 1  # for Normal in a corner
    warm[:, 1, 16:24, 16:24] = 1  # for COVID-19 in the middle
    masks[0, 16:24, 16:28] = True
    return heat.Maps(images, warm, masks, CLASSES, [f"slice {i}" for i in range(n)], np.array([1, 0, 1])[:n])


def test_the_left_half_is_the_image_alone_and_the_right_half_is_warm_where_the_class_has_heat():
    left, right = np.split(heat.picture(maps(), 1, 0, 0.65), [heat.SIDE], axis=1)
    right = right[:, heat.GAP :]
    assert left.shape == right.shape == (heat.SIDE, heat.SIDE, 3)
    assert set(np.unique(left)) == {128}
    scale = heat.SIDE // 32
    warm = np.abs(right.astype(int) - 128).sum(axis=2) > 0
    assert warm[: 7 * scale, : 7 * scale].all()
    assert not warm[10 * scale :, 10 * scale :].any()


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_the_hottest_place_has_the_opacity_that_was_chosen(opacity):
    hottest = heat.picture(maps(), 1, 0, opacity)[10, heat.SIDE + heat.GAP + 10]
    expected = (1 - opacity) * 127.5 + opacity * np.array(palette.rgb(palette.HEAT[-1]))
    np.testing.assert_allclose(hottest, expected, atol=1.5)


def test_a_lesion_is_outlined_on_the_overlay_alone():
    blue = palette.rgb(palette.SKY)
    left, right = np.split(heat.picture(maps(), 0, 1, 0.65), [heat.SIDE], axis=1)
    assert not (left == blue).all(axis=2).any()
    assert (right == blue).all(axis=2).sum() > 100
    assert not (heat.picture(maps(), 1, 1, 0.65) == blue).all(axis=2).any()


def test_the_sentence_says_how_much_of_the_heat_lies_in_the_lesion():
    of = maps()
    assert heat.says(of, 0, 1) == (
        "Image 1 of 3, slice 0: heat for COVID-19; 100 % of it lies in the lesion, which is 9 % of the image."
    )
    assert "; 0 % of it lies in the lesion" in heat.says(of, 0, 0)
    assert heat.says(of, 1, 0).endswith("no lesion is marked.")
    of.heat[:] = 0
    assert "is nowhere" in heat.says(of, 0, 1)


def test_maps_that_do_not_fit_their_images_are_refused():
    of = maps()
    with pytest.raises(LungkitError, match="accepted: one image or more"):
        heat.Maps(of.images, of.heat[:, :1], of.masks, CLASSES, of.titles, of.predicted)
    with pytest.raises(LungkitError, match="accepted: one image or more"):
        heat.Maps(of.images[:0], of.heat[:0], of.masks[:0], CLASSES, [], of.predicted[:0])


def _pixels(viewer) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(viewer.image.value)))


def test_the_buttons_turn_to_the_next_image_with_the_class_that_is_predicted_there():
    viewer = heat.Viewer(maps())
    assert (viewer.number.value, viewer.cls.value) == (0, "COVID-19")
    viewer.next.click()
    assert (viewer.number.value, viewer.cls.value) == (1, "Normal")
    np.testing.assert_array_equal(_pixels(viewer), heat.picture(viewer.maps, 1, 0, viewer.opacity.value))
    viewer.previous.click()
    viewer.previous.click()
    assert (viewer.number.value, viewer.text.value[:12]) == (2, "Image 3 of 3")


def test_class_and_opacity_change_the_picture():
    viewer = heat.Viewer(maps())
    viewer.cls.value, viewer.opacity.value = "Normal", 0.2
    np.testing.assert_array_equal(_pixels(viewer), heat.picture(viewer.maps, 0, 0, 0.2))


def test_the_still_picture_shows_the_image_alone_and_under_its_heat():
    figure = heat.Viewer(maps()).figure()
    plain, over, _ = figure.axes
    assert (len(plain.images), len(over.images)) == (1, 2)
    assert "100 % of it lies in the lesion" in figure.get_suptitle().replace("\n", " ")
