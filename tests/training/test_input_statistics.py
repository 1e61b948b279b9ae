"""What a version keeps of its training images lets those of the same kind through, and stops others."""

import dataclasses

import numpy as np
import pytest
from PIL import Image as Picture

from lungkit.data import dataset, images, preprocess
from lungkit.models import input_checks
from lungkit.training import input_statistics

SPEC = preprocess.Preprocessing(size=(32, 32), mean=0.2, std=0.2)


def _embed(tensors: np.ndarray) -> np.ndarray:
    """Brightness of the four quarters: what a small model might have learned to see."""
    quarters = tensors[..., 0].reshape(-1, 2, 16, 2, 16).mean(axis=(2, 4))
    return np.maximum(quarters.reshape(-1, 4) + 1, 0)


@pytest.fixture
def chest(squares) -> dataset.Dataset:
    return dataset.load_split(squares)


@pytest.fixture
def fitted(chest):
    return input_statistics.fit(chest, SPEC, _embed)


def _distances(references, tensors) -> dict[str, np.ndarray]:
    return {
        "kind": references["kind"].distance(input_checks.embedding_features(_embed(tensors))),
        "intensity": references["intensity"].distance(
            np.stack([input_checks.intensity_features(tensor, SPEC) for tensor in tensors])
        ),
    }


def _flagged(fitted, tensors) -> np.ndarray:
    references, limits = fitted
    distances = _distances(references, tensors)
    return np.any([distances[name] > getattr(limits, name) for name in distances], axis=0)


def test_at_most_one_in_twenty_validation_images_is_flagged_and_the_card_says_how_many(fitted, chest):
    tensors = preprocess.read_batch(chest.files("val"), SPEC)
    assert _flagged(fitted, tensors).mean() == fitted[1].flagged <= 0.05
    assert fitted[1].n == len(tensors)


def test_images_of_new_patients_pass(fitted, chest):
    assert _flagged(fitted, preprocess.read_batch(chest.files("test"), SPEC)).mean() < 0.2


@pytest.mark.parametrize(
    "pixels",
    [np.ones((32, 32)), np.zeros((32, 32)), np.indices((32, 32)).sum(0) % 2, np.tile(np.linspace(0, 1, 32), (32, 1))],
    ids=["white", "black", "checked", "ramp"],
)  # fmt: skip
def test_pictures_of_something_else_are_flagged(fitted, pixels):
    tensor = preprocess.prepare(images.Image(pixels.astype(np.float32), "intensity", "", "x", {}), SPEC).tensor
    assert _flagged(fitted, tensor[np.newaxis]).all()


def test_training_images_are_about_one_away_from_their_like(fitted, chest):
    for distances in _distances(fitted[0], preprocess.read_batch(chest.files("train"), SPEC)).values():
        assert 0.7 < np.sqrt(np.mean(distances**2)) < 1.3


def test_the_distance_is_to_the_nearest_class(fitted, chest):
    reference = fitted[0]["kind"]
    assert reference.means.shape == (2, 4)
    assert reference.distance(reference.means).tolist() == [0, 0]
    between = reference.means.mean(axis=0, keepdims=True)
    assert reference.distance(between)[0] > 0.5


def test_what_is_saved_gives_the_same_distances_again(fitted, chest, tmp_path):
    references, _ = fitted
    input_checks.save(tmp_path, references)
    tensors = preprocess.read_batch(chest.files("val"), SPEC)
    before, after = _distances(references, tensors), _distances(input_checks.load(tmp_path), tensors)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4)


def test_the_smallest_side_seen_is_the_least_accepted_but_no_more_than_the_model_takes(chest):
    assert input_statistics.fit(chest, SPEC, _embed)[1].size == 32
    large = dataclasses.replace(SPEC, size=(48, 64))
    assert input_statistics.fit(chest, large, lambda x: x.mean(axis=(1, 2)))[1].size == 32
    small = dataclasses.replace(SPEC, size=(24, 28))
    assert input_statistics.fit(chest, small, lambda x: x.mean(axis=(1, 2)))[1].size == 24


def test_a_large_training_set_is_sampled(chest, monkeypatch):
    monkeypatch.setattr(input_statistics, "MOST_IMAGES", 25)
    _, limits = input_statistics.fit(chest, SPEC, _embed)
    assert limits.fitted_on == 25
    assert limits.flagged <= 0.05


def test_the_units_are_stated_where_all_images_share_them(fitted):
    assert fitted[1].units == "intensity"


def test_the_units_are_left_open_where_images_differ(chest, monkeypatch):
    prepare = preprocess.prepare

    def read_some_as_ct(source, spec, name):
        image = prepare(source, spec, name)
        return dataclasses.replace(image, units="HU") if "_0" in name else image

    monkeypatch.setattr(preprocess, "prepare", read_some_as_ct)
    assert input_statistics.fit(chest, SPEC, _embed)[1].units is None


@pytest.mark.parametrize(
    ("stated", "kind"),
    [
        (["CT"], "CT"),
        (["ct", "CT"], "CT"),
        (["DX", "CR"], "X-ray"),
        (["X-ray"], "X-ray"),
        (["CT", "DX"], "image"),
        (["CT", ""], "image"),
        ([""], "image"),
        (["OT"], "image"),
    ],
)
def test_the_kind_of_input_is_what_every_training_image_says(chest, stated, kind):
    manifest = chest.manifest.copy()
    manifest["modality"] = [stated[i % len(stated)] for i in range(len(manifest))]
    assert input_statistics.modality(dataclasses.replace(chest, manifest=manifest)) == kind


def test_a_side_of_the_picture_that_is_empty_counts(tmp_path):
    """A long thin picture, such as a leg, leaves most of the square black."""
    Picture.fromarray(np.full((200, 40), 120, np.uint8)).save(tmp_path / "thin.png")
    tensor = preprocess.prepare(images.read(tmp_path / "thin.png"), SPEC).tensor
    features = input_checks.intensity_features(tensor, SPEC)
    assert features[6] == pytest.approx(0.8, abs=0.05), "share of black"
    assert features[4] == pytest.approx(120 / 255, abs=0.01), "95 % percentile"
    assert ((features >= -1.5) & (features <= 1)).all()


def test_distances_in_the_leading_directions_are_nearly_those_of_the_whole_covariance(monkeypatch):
    rng = np.random.default_rng(5)
    spread = np.diag(np.r_[np.full(8, 3.0), np.full(40, 0.3)]) @ np.linalg.qr(rng.normal(size=(48, 48)))[0]
    train, new = rng.normal(size=(400, 48)) @ spread, rng.normal(size=(50, 48))
    groups = np.zeros(400, int)
    whole = input_statistics.reference(train, groups, 1e-3).distance(new)
    monkeypatch.setattr(input_statistics, "MOST_DIRECTIONS", 16)
    kept = input_statistics.reference(train, groups, 1e-3)
    assert kept.directions.shape == (16, 48)
    assert np.corrcoef(kept.distance(new), whole)[0, 1] > 0.95
    np.testing.assert_allclose(kept.distance(new), whole, rtol=0.1)


def test_what_a_window_cuts_off_is_what_it_makes_black_or_white_and_was_not_before(tmp_path):
    pixels = np.repeat(np.array([0, 20, 60, 100, 200, 255], np.uint8), 100).reshape(20, 30)
    Picture.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8))).save(tmp_path / "six.png")
    stretched = dataclasses.replace(SPEC, intensity_window=(48, 183))
    assert input_statistics.cut_off([tmp_path / "six.png"], stretched) == pytest.approx((1 / 6, 1 / 6))
    assert input_statistics.cut_off([tmp_path / "six.png"], SPEC) == (0, 0)
