"""One palette for screens, figures and reports, readable without colour vision."""

import re
from importlib import resources

import matplotlib as mpl
import numpy as np
import pytest

from lungkit import palette

CSS = resources.files("lungkit.clinic.web").joinpath("pages", "clinic.css").read_text()


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    values = np.array(palette.rgb(colour)) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def declared(selector: str) -> dict[str, str]:
    """The colours that a rule of the stylesheet gives names to."""
    rule = re.search(rf"(?m)^ *{re.escape(selector)} {{([^}}]*)}}", CSS)[1]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", rule))


def test_the_stylesheet_declares_the_colours_of_the_palette_and_no_others():
    light, dark = declared(":root"), declared(':root[data-look="dark"]')
    named = {name: getattr(palette, name.upper().replace("-", "_")).lower() for name in light}
    assert light == named and len(light) >= 12
    assert dark == palette.DARK and set(light) - set(dark) == {"orange"}, "a colour without its dark one"
    colours = re.findall(r":[^;{}]*?#[0-9a-fA-F]{3,8}\b", CSS)
    assert len(colours) == len(light) + len(dark), "a colour outside the palette"


@pytest.mark.parametrize("ink", ["INK", "QUIET", "ACCENT", "WARN", "GOOD"])
@pytest.mark.parametrize("ground", ["PAPER", "GROUND", "ACCENT_PALE", "WARN_PALE", "GOOD_PALE"])
def test_text_has_the_contrast_that_wcag_asks_for(ink, ground):
    light, dark = luminance(getattr(palette, ground)), luminance(getattr(palette, ink))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("ink", ["ink", "quiet", "accent", "warn", "good"])
@pytest.mark.parametrize("ground", ["paper", "ground", "accent-pale", "warn-pale", "good-pale"])
def test_text_of_the_dark_look_has_that_contrast_too(ink, ground):
    light, dark = luminance(palette.DARK[ink]), luminance(palette.DARK[ground])
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_heat_reads_without_colour_and_is_the_known_map():
    lightness = [luminance(colour) for colour in palette.HEAT]
    assert lightness == sorted(lightness)
    inferno = mpl.colormaps["inferno"](np.linspace(0.15, 0.87, len(palette.HEAT)), bytes=True)[:, :3]
    assert np.abs(inferno - np.array([palette.rgb(colour) for colour in palette.HEAT], int)).max() <= 1


def test_each_meaning_of_a_figure_has_a_colour_of_its_own():
    parts = [palette.TRAIN, palette.VALIDATION, palette.TEST]
    assert list(palette.SPLITS.values()) == parts
    meanings = [*parts, palette.OTHER_SPLIT, palette.REFERENCE, palette.CHOSEN, *palette.CLASSES[:4]]
    assert len(set(meanings)) == len(meanings), "a colour means two things"
    assert set(palette.CLASSES) == set(palette.SERIES)


def test_training_and_validation_differ_in_print_without_colour():
    # L* of CIE 1976; a difference of 2 is just noticeable side by side.
    lightness = [116 * luminance(colour) ** (1 / 3) - 16 for colour in (palette.TRAIN, palette.VALIDATION)]
    assert abs(lightness[0] - lightness[1]) >= 5
