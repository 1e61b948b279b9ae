"""Lungs are found, cut out and explained in the place where they are in the whole image."""

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.data import phantom
from lungkit.data.preprocess import Preprocessing, window_level
from lungkit.errors import LungkitError
from lungkit.models import backbones, ensemble, graph, input_checks, lungs
from lungkit.models.input_checks import ORIENTATIONS
from lungkit.models.rule import DecisionRule
from lungkit.training import export, gradcam, pipeline
from tests.answers import probabilities

SIDE = 96  # of the squares here


@pytest.fixture(scope="module")
def slices() -> list[phantom.Slice]:
    """Two patients, one with lesions, of the size of whole images."""
    patients = (("A", "Normal", 5), ("B", "COVID-19", 6))
    return [one for patient in patients for one in phantom.make_patient(*patient, slices=3, size=lungs.WHOLE)]


@pytest.fixture(scope="module")
def pictures(slices) -> np.ndarray:
    return np.stack([window_level(one.hu, -600, 1500) for one in slices])[..., None]


@pytest.fixture(scope="module")
def square() -> lungs.LungSquare:
    return lungs.LungSquare("CT", SIDE, 0.0, 1.0, name="lungs")


@pytest.fixture(scope="module")
def found(square, pictures) -> tuple[np.ndarray, ...]:
    """Squares with greys 0..1 and the share of lung, boxes, and where the lungs are."""
    seen, box, lung, _ = map(keras.ops.convert_to_numpy, square(pictures))
    return seen * lungs.STD + lungs.MEAN, box, lung


def test_the_square_holds_all_of_the_lungs_and_is_not_much_larger(found, slices):
    for (top, left, side), one in zip(found[1], slices, strict=True):
        rows, columns = np.flatnonzero(one.lungs.any(axis=1)), np.flatnonzero(one.lungs.any(axis=0))
        first, last = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]]) + 1
        start = np.array([top, left]) * lungs.WHOLE
        assert (start <= first + 4).all()
        assert (start + side * lungs.WHOLE >= last - 4).all()
        assert side * lungs.WHOLE <= 1.25 * (last - first).max()


def test_what_is_found_is_the_lungs(found, slices):
    masks = np.stack([one.lungs for one in slices]).reshape(-1, lungs.SIDE, 3, lungs.SIDE, 3).mean(axis=(2, 4)) > 0.5
    lung = found[2] > 0.5
    overlap = 2 * (lung & masks).sum(axis=(1, 2)) / (lung.sum(axis=(1, 2)) + masks.sum(axis=(1, 2)))
    assert overlap.min() > 0.85


def test_a_scanner_with_other_greys_gives_the_same_square(square, pictures, found):
    other = keras.ops.convert_to_numpy(square(pictures * 0.6 + 0.2)[0]) * lungs.STD + lungs.MEAN
    assert np.abs(pictures - (pictures * 0.6 + 0.2)).mean() > 0.1
    assert np.abs(other - found[0])[..., 0].mean() < 0.03


@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_an_image_without_lungs_is_taken_whole(square, grey):
    blank = np.full((1, lungs.WHOLE, lungs.WHOLE, 1), grey, np.float32)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(square(blank)[1]), [[0, 0, 1]], atol=1e-6)


def test_heat_is_put_back_where_the_square_was_and_nowhere_else():
    heat = np.zeros((1, 8, 8, 2), np.float32)
    heat[0, 2, 5, 0] = 1
    top, left, side, whole = 0.25, 0.125, 0.5, 160
    back = keras.ops.convert_to_numpy(lungs.placed_back(heat, np.array([[top, left, side]], np.float32), whole))[0]
    row, column = np.unravel_index(back[..., 0].argmax(), (whole, whole))
    expected = np.array([top + 2.5 / 8 * side, left + 5.5 / 8 * side]) * whole
    np.testing.assert_allclose([row + 0.5, column + 0.5], expected, atol=1)
    assert back[..., 1].max() == 0
    outside = np.ones((whole, whole), bool)
    outside[40:120, 20:100] = False
    assert back[outside].max() == 0


def test_a_square_of_the_whole_image_puts_heat_back_as_resizing_does():
    heat = np.random.default_rng(0).random((2, 7, 7, 3)).astype(np.float32)
    resized = keras.ops.image.resize(heat, (49, 49), interpolation="bilinear", data_format="channels_last")
    back = lungs.placed_back(heat, np.array([[0, 0, 1]] * 2, np.float32), 49)
    np.testing.assert_allclose(back, resized, atol=1e-5)


def test_feature_maps_are_averaged_within_the_lungs():
    maps = np.ones((1, 2, 2, 1), np.float32)
    maps[0, 0, 0] = 5
    seen = np.zeros((1, 8, 8, 2), np.float32)
    seen[0, :4, :4, 1] = 1  # lung in the first cell alone
    weighted = lungs.InLungs()([maps, (seen - lungs.MEAN) / lungs.STD])
    assert float(keras.ops.mean(weighted)) == pytest.approx(5, abs=0.3)
    without = lungs.InLungs()([maps, (np.zeros_like(seen) - lungs.MEAN) / lungs.STD])
    assert float(keras.ops.mean(without)) == pytest.approx(2)


def test_only_x_rays_and_ct_have_a_finder():
    with pytest.raises(LungkitError, match=r"X-ray and CT.*'MRI'"):
        lungs.trained("MRI")


def test_greys_are_varied_and_the_lungs_are_not(found):
    seen = ((found[0] - lungs.MEAN) / lungs.STD).astype(np.float32)
    still = {"rotation": 0.0, "translation": 0.0, "scaling": 0.0, "flip": False}
    varied = pipeline.augmentation(**still, noise=0.1, gamma=0.5, mean=lungs.MEAN, std=lungs.STD)
    after = keras.ops.convert_to_numpy(varied(seen, key=3))
    assert np.abs(after - seen)[..., 0].mean() > 0.05
    np.testing.assert_allclose(after[..., 1], seen[..., 1], atol=1e-4)


@pytest.fixture(scope="module")
def whole_model(square) -> keras.Model:
    """Of whole images; two members and their mirrored views, with random weights."""
    spec = Preprocessing(size=(SIDE, SIDE), mean=lungs.MEAN, std=lungs.STD)
    members = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        members.append(
            backbones.build(
                "efficientnet_lite0", (SIDE, SIDE, 2), 2, pretrained=False, preprocessing=spec, until="stage3"
            )
        )
    return ensemble.combine(members, "pair", whole=(square, lungs.WHOLE))


def test_the_graph_of_whole_images_says_what_keras_says(whole_model, pictures, tmp_path):
    export.write(whole_model, tmp_path, temperature=1.3)
    outputs = graph.Graph(tmp_path)(pictures)
    expected = probabilities(whole_model, pictures, temperature=1.3)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-4)
    classes = expected.argmax(axis=1)
    heat = np.stack([of[cls] for of, cls in zip(outputs["heat"], classes, strict=True)])
    np.testing.assert_allclose(heat, gradcam.gradcam(whole_model, pictures, classes), atol=2e-3)
    assert outputs["lungs"].shape == (len(pictures), lungs.SIDE, lungs.SIDE)
    np.testing.assert_allclose(outputs["orientation"].sum(axis=1), 1, atol=1e-4)
    assert (outputs["orientation"].argmax(axis=1) == ORIENTATIONS.index((False, 0))).all()
    tensors = pictures.astype(np.float32)
    export.agreement(whole_model, graph.Graph(tmp_path), tensors, expected, DecisionRule(kind="argmax"))


def _drawn(*parts: tuple[slice, slice]) -> np.ndarray:
    lung = np.zeros((lungs.SIDE, lungs.SIDE), np.float32)
    for part in parts:
        lung[part] = 0.9
    return lung


LEFT, RIGHT = (slice(20, 80), slice(15, 40)), (slice(20, 80), slice(55, 80))


@pytest.mark.parametrize(
    ("lung", "modality", "passed", "words"),
    [
        (_drawn(LEFT, RIGHT), "X-ray", True, "both lungs were found"),
        (_drawn(LEFT), "X-ray", False, "two separate lungs were not found"),
        (_drawn(LEFT, (slice(20, 30), slice(55, 80))), "X-ray", False, "two separate lungs were not found"),
        (_drawn(LEFT), "CT", True, "lungs were found"),
        (_drawn((slice(40, 50), slice(40, 50))), "CT", False, "no lungs were found"),
        (_drawn((slice(20, 80), slice(0, 40)), RIGHT), "X-ray", False, "reach the edge"),
    ],
)
def test_the_clinic_is_told_whether_the_lungs_are_there_and_whole(lung, modality, passed, words):
    share, will_do, said = input_checks.lungs_seen(lung, (100, 100), modality)
    assert (will_do, share > 0) == (passed, True)
    assert words in said


def test_the_edge_of_an_upright_picture_is_its_own_and_not_the_bars():
    lung = _drawn((slice(20, 80), slice(24, 44)), (slice(20, 80), slice(50, 70)))
    assert input_checks.lungs_seen(lung, (100, 100), "CT")[1]
    assert not input_checks.lungs_seen(lung, (100, 50), "CT")[1], "the picture begins in column 24"
