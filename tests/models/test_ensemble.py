"""An ensemble answers with the mean of its members, and is still one flat graph that can be explained and exported."""

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.errors import LungkitError
from lungkit.models import backbones, cnn, ensemble, graph
from lungkit.training import export, gradcam

SHAPE, CLASSES = (32, 32, 1), 3


def _trained(seed: int) -> keras.Model:
    """A small network whose answers differ from another seed's."""
    keras.utils.set_random_seed(seed)
    return cnn.build(SHAPE, CLASSES, filters=4, blocks=2)


@pytest.fixture(scope="module")
def members() -> list[keras.Model]:
    return [_trained(seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(6, *SHAPE)).astype(np.float32)


def _logits(model, tensors) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(tensors, training=False))


def test_its_logits_are_the_mean_of_the_members_each_also_of_the_mirrored_image(members, pictures):
    whole = ensemble.combine(members, "both")
    expected = np.mean([_logits(m, view) for m in members for view in (pictures, pictures[:, :, ::-1])], axis=0)
    np.testing.assert_allclose(_logits(whole, pictures), expected, atol=1e-5)
    np.testing.assert_allclose(_logits(whole, pictures[:, :, ::-1]), expected, atol=1e-5)


def test_the_embedding_is_of_the_members_that_are_as_wide_as_the_first(members, pictures, tmp_path):
    wide = cnn.build(SHAPE, CLASSES, filters=8, blocks=2)
    export.write(ensemble.combine([members[0], wide, members[1]], "three", mirrored=False), tmp_path)
    pooled = [keras.Model(of.input, of.get_layer("embedding").output)(pictures, training=False) for of in members]
    np.testing.assert_allclose(graph.Graph(tmp_path)(pictures)["embedding"], np.mean(pooled, axis=0), atol=1e-4)


def test_without_mirroring_one_member_is_itself(members, pictures):
    alone = ensemble.combine(members[:1], "alone", mirrored=False)
    np.testing.assert_allclose(_logits(alone, pictures), _logits(members[0], pictures), atol=1e-6)


def test_it_holds_each_members_weights_once(members):
    whole = ensemble.combine(members, "both")
    heads = sum(member.get_layer("logits").count_params() for member in members)
    trunks = sum(member.count_params() for member in members) - heads
    assert whole.count_params() == trunks + 2 * (heads - CLASSES * len(members)) + CLASSES


def test_saved_and_loaded_it_says_the_same(members, pictures, tmp_path):
    whole = ensemble.combine(members, "both")
    whole.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(_logits(again, pictures), _logits(whole, pictures), atol=1e-6)


def test_its_graph_gives_the_same_answers_and_maps_and_one_embedding_of_a_members_size(members, pictures, tmp_path):
    whole = ensemble.combine(members, "both")
    export.write(whole, tmp_path, half=True)
    answered = graph.Graph(tmp_path)(pictures)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(_logits(whole, pictures)))
    np.testing.assert_allclose(answered["probabilities"], expected, atol=2e-3)
    maps = gradcam.gradcam(whole, pictures, 1)
    assert maps.max() > 0.5
    np.testing.assert_allclose(answered["heat"][:, 1], maps, atol=2e-2)
    assert answered["embedding"].shape == (len(pictures), members[0].get_layer("embedding").output.shape[1])


def test_a_mirrored_image_has_the_mirrored_map(members, pictures, tmp_path):
    export.write(ensemble.combine(members, "both"), tmp_path)
    runtime = graph.Graph(tmp_path)
    plain, mirrored = runtime(pictures)["heat"], runtime(np.ascontiguousarray(pictures[:, :, ::-1]))["heat"]
    assert np.abs(plain - plain[..., ::-1]).max() > 0.1  # or the comparison would say nothing
    np.testing.assert_allclose(mirrored, plain[..., ::-1], atol=1e-3)


def test_a_backbone_can_be_a_member():
    backbone = backbones.build("efficientnet_lite0", (32, 32, 1), 2, pretrained=False, until="stage2")
    tensors = np.random.default_rng(4).normal(size=(2, 32, 32, 1)).astype(np.float32)
    whole = ensemble.combine([backbone, backbone], "twice", mirrored=False)
    np.testing.assert_allclose(_logits(whole, tensors), _logits(backbone, tensors), atol=1e-4)


def test_members_of_different_shapes_are_refused(members):
    other = cnn.build((48, 48, 1), CLASSES, filters=4, blocks=2)
    with pytest.raises(LungkitError, match="same input and output"):
        ensemble.combine([members[0], other], "mixed")
    with pytest.raises(LungkitError, match="one model or more"):
        ensemble.combine([], "none")
