"""An image that is turned or mirrored is seen to be, and one that is upright is left alone."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from lungkit import cli
from lungkit.data import phantom
from lungkit.data.preprocess import window_level
from lungkit.models import input_checks, lungs
from lungkit.models.input_checks import ORIENTATIONS
from lungkit.training import lung_finder, orientation


def _phantoms(numbers) -> lung_finder.Masked:
    rows = [
        (window_level(one.hu, -600, 1500), one.patient_id)
        for number in numbers
        for one in phantom.make_patient(f"P{number}", "COVID-19" if number % 2 else "Normal", number, 2, lungs.SIDE)
    ]
    pictures = np.stack([picture for picture, _ in rows])
    return lung_finder.Masked(pictures, np.zeros_like(pictures), np.array([patient for _, patient in rows]))


@pytest.fixture(scope="module")
def learned():
    return orientation.learn("CT", [_phantoms(range(14))])


def test_pictures_lie_in_eight_ways_of_which_the_first_is_upright():
    picture = np.arange(9.0).reshape(1, 3, 3)
    ways = orientation.lying(picture)
    np.testing.assert_array_equal(ways[0], picture)
    assert len({way.tobytes() for way in ways}) == len(ORIENTATIONS) == 8
    turned, mirrored = ORIENTATIONS.index((False, 1)), ORIENTATIONS.index((True, 0))
    assert ways[turned][0, 0].tolist() == [2, 5, 8], "what was on the right is on top: turned to the left"
    assert ways[mirrored][0, 0].tolist() == [2, 1, 0]


def test_turned_pictures_of_patients_it_has_not_seen_are_flagged_and_upright_ones_are_not(learned):
    others = _phantoms(range(30, 38)).pictures
    said = [orientation.flagged(learned, way).mean() for way in orientation.lying(others)]
    assert said[0] <= 1 / 16
    turned = [share for (_, quarters), share in zip(ORIENTATIONS, said, strict=True) if quarters]
    assert min(turned) == 1.0


def test_what_the_finder_finds_stays_as_it_was(learned):
    pictures = _phantoms(range(2)).pictures[..., None]
    found = lungs.trained("CT").predict(pictures, verbose=0)
    np.testing.assert_allclose(learned.predict(pictures, verbose=0)[0], found, atol=1e-6)


@pytest.mark.parametrize("kind", lungs.KINDS)
def test_the_weights_that_come_with_lungkit_are_those_of_the_layer(kind):
    layer = lungs.with_orientation(kind).get_layer("orientation")
    kernel, _ = layer.get_weights()
    assert kernel.shape[1] == len(ORIENTATIONS)
    assert 0 < np.abs(kernel).max() < 60_000, "and fit into float16"


def test_the_layers_weights_that_come_with_lungkit_see_turned_phantoms():
    model = lungs.with_orientation("CT")
    ways = orientation.lying(_phantoms(range(40, 46)).pictures)
    said = [orientation.flagged(model, way).mean() for way in ways]
    assert said[0] == 0
    assert min(share for (_, quarters), share in zip(ORIENTATIONS, said, strict=True) if quarters) > 0.9


def _lies(**likely: float) -> np.ndarray:
    """Probabilities of ORIENTATIONS, by names such as m1 (mirrored and turned once) and u0 (upright)."""
    return np.array([likely.get(f"{'m' if mirrored else 'u'}{quarters}", 0.0) for mirrored, quarters in ORIENTATIONS])


@pytest.mark.parametrize(
    ("likely", "passed", "words"),
    [
        ({"u0": 0.9, "m0": 0.1}, True, "the image is upright"),
        ({"u0": 0.25, "m0": 0.75}, True, "the image is upright"),
        ({"u0": 0.01, "m0": 0.99}, False, "looks mirrored: left and right may be exchanged"),
        ({"u1": 0.7, "u0": 0.3}, False, "is turned by 90° to the left: turn it upright"),
        ({"u2": 0.7, "u0": 0.3}, False, "is upside down: turn it upright"),
        ({"m3": 0.99, "u3": 0.01}, False, "is turned by 90° to the right and mirrored: turn it upright"),
        ({"m3": 0.6, "u3": 0.4}, False, "is turned by 90° to the right: turn it upright"),
        ({"u1": 0.3, "u3": 0.3, "u0": 0.4}, False, "is turned by 90°"),
    ],
)
def test_the_clinic_is_told_how_an_image_lies(likely, passed, words):
    value, most, said = input_checks.orientation(_lies(**likely))
    assert (value <= most) == passed
    assert words in said


def test_the_command_keeps_the_layer_and_says_what_is_flagged(tmp_path):
    source = phantom.make_dataset(tmp_path / "phantom", n_slices=60, seed=3)
    out = tmp_path / "orientation_ct.npz"
    asked = ["orientation", "CT", "--data", str(source), "--out", str(out)]
    said = CliRunner().invoke(cli.app, asked, catch_exceptions=False).stdout
    upright, turned = (float(re.search(rf"{name} ([.0-9]+)", said)[1]) for name in ("flagged upright", "turned"))
    assert turned > upright + 0.5, "few phantoms are learned from here"
    with np.load(out) as kept:
        assert set(kept) == {"orientation/kernel", "orientation/bias"}
