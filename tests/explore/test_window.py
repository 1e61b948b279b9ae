"""The window of one image: what it cuts off, and how sliders and presets move it."""

import io

import numpy as np
import PIL.Image
import pytest

from lungkit.data.image import Image
from lungkit.explore import window

SKULL = np.repeat([[-1000.0, -700.0, 40.0, 900.0]], 4, axis=0).astype(np.float32)  # a quarter of each


def image(pixels, units):
    return Image(np.asarray(pixels, np.float32), units, "CT" if units == "HU" else "CR", "made", {})


@pytest.fixture(scope="module")
def ct():
    return image(SKULL, "HU")


@pytest.fixture(scope="module")
def xray():
    return image(np.linspace(0, 1, 256).reshape(16, 16), "intensity")


@pytest.fixture
def view(ct):
    return window.View(ct)


def pixels(view):
    return np.asarray(PIL.Image.open(io.BytesIO(view.picture.value)).convert("L"))


def test_the_mediastinal_window_makes_the_lung_black_and_the_bone_white(ct):
    assert window.cut(SKULL, *window.CT["mediastinum"]) == (0.5, 0.25)
    assert window.cut(SKULL, *window.CT["lung"]) == (0.0, 0.25)
    said = window.sentence(window.scale(ct), *window.CT["mediastinum"])
    assert said == "From −125 to 225 HU: 50% of the pixels are black, 25% white, and 25% keep a grey of their own."


def test_an_image_without_hounsfield_units_has_a_window_of_greys(xray):
    of = window.scale(xray)
    assert (of.low, of.high, list(of.presets)) == (0, 255, ["as stored", "middle greys"])
    assert window.cut(of.values, *of.presets["as stored"]) == (1 / 256, 1 / 256)
    black, white = window.cut(of.values, *of.presets["middle greys"])
    assert black == pytest.approx(0.05, abs=0.005) and white == pytest.approx(0.05, abs=0.005)


def test_a_flat_image_has_a_window_too():
    assert window.scale(image(np.ones((4, 4)), "intensity")).presets["middle greys"] == (255, 1)


def test_a_preset_moves_both_sliders_and_the_picture(view):
    before = pixels(view)
    view.presets.value = "mediastinum"
    assert (view.level.value, view.width.value) == (50, 350)
    assert "50% of the pixels are black" in view.picture.alt
    assert (pixels(view) != before).any()


def test_a_slider_moves_the_picture_and_no_preset_stays_chosen(view):
    before = pixels(view)
    view.level.value = -900
    assert view.presets.value is None
    assert view.picture.alt.startswith("From −1650 to −150 HU")
    assert (pixels(view) != before).any()


def test_sliders_that_come_back_to_a_preset_choose_it_again_and_draw_once(view, monkeypatch):
    view.width.value = 1400
    assert view.presets.value is None
    drawn = []
    monkeypatch.setattr(view.drawing, "move", lambda *at: drawn.append(at))
    view.width.value = 1500
    assert view.presets.value == "lung"
    assert drawn == [(-600, 1500)]


def test_a_preset_draws_once_though_it_moves_two_sliders(view, monkeypatch):
    drawn = []
    monkeypatch.setattr(view.drawing, "move", lambda *at: drawn.append(at))
    view.presets.value = "bone"
    assert drawn == [(400, 1800)]
