"""Pretrained backbones: the published weights, the scale they were trained in, and the whole way to the clinic."""

import os
import subprocess
import sys
from importlib import util

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.data.preprocess import Preprocessing
from lungkit.errors import LungkitError
from lungkit.models import backbones, cnn, efficientnet_lite, graph, saved, weights_file
from lungkit.models.rule import DecisionRule
from lungkit.training import export
from tests.answers import probabilities

SPEC = Preprocessing(size=(64, 64), mean=0.4, std=0.2)


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    """Images (4, 64, 64, 1) in 0..1, black at the border as a fitted picture is."""
    images = np.random.default_rng(0).random((4, 64, 64, 1)).astype(np.float32)
    images[:, :6] = 0
    return images * np.linspace(0.3, 1, 4, dtype=np.float32)[:, None, None, None]


@pytest.fixture(scope="module")
def tensors(grey) -> np.ndarray:
    """The same as a model gets them."""
    return (grey - np.float32(SPEC.mean)) / np.float32(SPEC.std)


@pytest.fixture(scope="module")
def lite0() -> keras.Model:
    """With the ImageNet weights; tests must leave it as it is."""
    return backbones.build("efficientnet_lite0", (64, 64, 1), 3, preprocessing=SPEC)


@pytest.fixture(scope="module")
def random_lite0() -> keras.Model:
    """The network with random weights; the test of the whole way trains its head."""
    return _random("efficientnet_lite0")


def _random(name: str, until: str = "stage5") -> keras.Model:
    keras.utils.set_random_seed(2)
    return backbones.build(name, (64, 64, 1), 3, pretrained=False, preprocessing=SPEC, until=until)


def _values(layers) -> dict[str, np.ndarray]:
    return {weight.path: keras.ops.convert_to_numpy(weight) for layer in layers for weight in layer.weights}


def _output(model: keras.Model, layer: str, tensors: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.Model(model.input, model.get_layer(layer).output)(tensors))


# --- weights


def test_lite0_holds_the_published_tensors_one_by_one(lite0, shared_data):
    converted = shared_data / "weights" / "efficientnet_lite0_imagenet_notop.weights.h5"
    if not converted.exists():
        pytest.skip(f"no {converted.name} next to the project")
    image = keras.Input((64, 64, 3))
    reference = keras.Model(image, efficientnet_lite.features(image))
    reference.load_weights(converted)
    expected, found = _values(reference.layers), _values(lite0.layers)
    assert sum(value.size for value in expected.values()) == 3_413_024
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_every_layer_of_lite0_begins_with_what_was_learned(lite0, random_lite0):
    found, at_random = _values(lite0.layers), _values(random_lite0.layers)
    for path in found.keys() - {"logits/bias"}:
        assert (found[path] != at_random[path]).any(), path


@pytest.mark.parametrize("content", [None, b"PK other bytes"])
def test_missing_or_damaged_weights_are_explained(monkeypatch, tmp_path, content):
    if content:
        (tmp_path / "efficientnet_lite0_imagenet.npz").write_bytes(content)
    monkeypatch.setattr(weights_file, "FOLDER", tmp_path)
    with pytest.raises(LungkitError, match=r"lite0_imagenet\.npz is missing or damaged; install lungkit again"):
        backbones.build("efficientnet_lite0", (64, 64, 1), 3)


def test_without_a_network_a_download_says_what_to_do_instead(monkeypatch):
    def offline(**_):
        raise Exception("URL fetch failure on https://example.org/vgg16_notop.h5: no route")

    vgg16 = backbones._Backbone(backbones._CAFFE, backbones._BACKBONES["vgg16"].begins, offline)
    monkeypatch.setitem(backbones._BACKBONES, "vgg16", vgg16)
    message = r"vgg16 could not be downloaded: URL .*vgg16_notop\.h5.* KERAS_HOME .*; efficientnet_lite0 needs no"
    with pytest.raises(LungkitError, match=message):
        backbones.build("vgg16", (64, 64, 1), 3)


# --- one grey channel in the scale of training


@pytest.mark.parametrize(
    ("name", "mode"), [("vgg16", "caffe"), ("resnet50", "caffe"), ("densenet121", "torch"), ("mobilenet_v2", "tf")]
)
def test_the_scale_is_that_of_keras_applications(name, mode, grey, tensors):
    image = keras.Input((64, 64, 1))
    scaled = backbones._as_in_training(image, backbones._BACKBONES[name].scale, SPEC)
    expected = keras.applications.imagenet_utils.preprocess_input(np.repeat(255 * grey, 3, axis=-1), mode=mode)
    found = keras.ops.convert_to_numpy(keras.Model(image, scaled)(tensors))
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_lite0_sees_a_grey_image_as_the_network_for_colours_does_up_to_the_border(lite0, grey, tensors):
    image = keras.Input((64, 64, 3))
    colours = keras.Model(image, efficientnet_lite.features(image))
    efficientnet_lite.load_imagenet(colours)
    expected = colours((np.repeat(255 * grey, 3, axis=-1) - 127) / 128)
    np.testing.assert_allclose(_output(lite0, "head_relu", tensors), expected, atol=1e-4)


def test_without_a_preprocessing_the_tensors_are_grey_from_0_to_1(lite0, grey, tensors):
    plain = backbones.build("efficientnet_lite0", (64, 64, 1), 3)
    np.testing.assert_allclose(_output(plain, "embedding", grey), _output(lite0, "embedding", tensors), atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 31, 1), (64, 64)])
def test_another_input_shape_is_refused(shape):
    with pytest.raises(LungkitError, match=r"expected \(height, width, 1\), each side 32 pixels or more"):
        backbones.build("efficientnet_lite0", shape, 3, pretrained=False)


def test_an_unknown_name_and_a_single_class_are_refused():
    with pytest.raises(LungkitError, match=r"no backbone 'vgg19'; there are: efficientnet_lite0, .*, vgg16"):
        backbones.build("vgg19", (64, 64, 1), 3)
    with pytest.raises(LungkitError, match="at least 2 classes, not 1"):
        backbones.build("vgg16", (64, 64, 1), 1)


# --- equalised


def _equalised(greys: np.ndarray, limit: float = backbones.Equalised.limit) -> np.ndarray:
    tensors = ((greys - SPEC.mean) / SPEC.std).astype(np.float32)
    layer = backbones.Equalised(SPEC.mean, SPEC.std)
    layer.limit = limit
    return np.asarray(layer(tensors)) * SPEC.std + SPEC.mean


def test_equalising_leaves_no_trace_of_brightness_contrast_and_gamma():
    greys = np.random.default_rng(0).beta(2, 5, (2, 48, 48, 1))
    plain, bent = _equalised(greys, limit=100.0), _equalised(0.3 + 0.6 * greys**0.7, limit=100.0)
    np.testing.assert_allclose(plain, bent, atol=0.03)
    ranks = np.argsort(np.argsort(greys.reshape(2, -1), axis=1), axis=1) / 48**2
    np.testing.assert_allclose(plain.reshape(2, -1), ranks, atol=0.02)


def test_equalising_with_a_limit_keeps_a_flat_image_flat_and_greys_in_their_order():
    flat = np.full((1, 48, 48, 1), 0.5) + np.random.default_rng(0).normal(0, 0.01, (1, 48, 48, 1))
    assert _equalised(flat).std() < 0.1 < _equalised(flat, limit=100.0).std()
    ramp = np.linspace(0, 1, 48 * 48).reshape(1, 48, 48, 1) ** 3
    changed = _equalised(ramp).ravel()
    assert (np.diff(changed) > -1e-5).all()
    assert -1e-3 <= changed[0] < 0.1 < 0.9 < changed[-1] <= 1 + 1e-3


def test_an_equalising_backbone_is_exported_and_reads_both_brightnesses_alike(tensors, tmp_path):
    keras.utils.set_random_seed(0)  # how far an untrained head moves depends on its first weights
    options = {"preprocessing": SPEC, "until": "stage2"}
    model = backbones.build("efficientnet_lite0", (64, 64, 1), 3, **options, equalised=True)
    plain = backbones.build("efficientnet_lite0", (64, 64, 1), 3, **options)
    model.run_eagerly = plain.run_eagerly = True  # tracing takes longer than the few predictions
    darker = ((tensors * SPEC.std + SPEC.mean) * 0.7 - SPEC.mean) / SPEC.std
    scores = probabilities(model, tensors)
    moved = np.abs(probabilities(model, darker) - scores).max()
    assert moved < 0.5 * np.abs(probabilities(plain, darker) - probabilities(plain, tensors)).max()
    saved.save(model, tmp_path)
    export.write(model, tmp_path)
    found = export.agreement(model, graph.Graph(tmp_path), tensors, scores, DecisionRule(kind="argmax"))
    assert found["largest_probability_difference"] < 1e-3


# --- every network: stages, and the whole way (train, save, load, explain, export)


LAST_OF_STAGE3 = {
    "efficientnet_lite0": "block5_expand_relu",
    "efficientnet_b0": "block4a_expand_activation",
    "mobilenet_v2": "block_6_expand_relu",
    "densenet121": "pool3_conv",
    "resnet50": "conv3_block4_out",
    "vgg16": "block3_conv3",
}


@pytest.fixture(scope="module", params=[name for name in backbones.NAMES if name != backbones.CT_STUDENT])
def network(request) -> keras.Model:
    """Each network, whole, with random weights."""
    if request.param == "efficientnet_lite0":
        return request.getfixturevalue("random_lite0")
    return _random(request.param)


@pytest.fixture(scope="module")
def until_stage3(network) -> keras.Model:
    """Each network without its last two stages, which only repeat the kinds of layers of the ones before."""
    return _random(network.name, until="stage3")


def test_each_stage_works_at_half_the_resolution_of_the_one_before_and_holds_every_weight(network):
    name, model = network.name, network
    stages = backbones.stages(model)
    assert list(stages) == list(backbones.STAGES)
    members = [layer.name for stage in stages.values() for layer in stage]
    assert len(members) == len(set(members))
    trained = [layer.name for layer in model.layers if layer.trainable_weights]
    assert set(trained) <= set(members)
    last = "block5_conv3" if name == "vgg16" else None  # its last layer halves once more
    heights = [
        [layer for layer in stage if layer.weights and len(layer.output.shape) == 4][-1].output.shape[1]
        for stage in list(stages.values())[:-1]
    ]
    first = 64 if last else 32
    assert heights == [first // 2**i for i in range(5)]


def test_a_backbone_ends_with_the_last_maps_of_the_stage_it_is_asked_to_go_to(until_stage3):
    model = until_stage3
    maps = model.get_layer("embedding").input
    side = 16 if model.name == "vgg16" else 8
    assert maps.shape[1:3] == (side, side)
    assert model.layers[-4].name == LAST_OF_STAGE3[model.name]
    assert list(backbones.stages(model))[:3] == list(backbones.STAGES[:3])
    assert list(backbones.stages(model))[-1] == "head"
    assert set(backbones.layer_rates(model)) >= {layer.name for layer in model.layers if layer.trainable_weights}


def test_every_backbone_goes_the_whole_way_to_the_clinic(network, until_stage3, tensors, tmp_path):
    model = network if network.name == "efficientnet_lite0" else until_stage3
    stages = list(backbones.stages(model))
    assert not [layer for layer in model.layers if isinstance(layer, keras.Model)], "the graph is flat"
    cnn.compile_classifier(backbones.unfreeze(model, "head"))
    model.run_eagerly = True  # to trace a step of a few hundred layers takes longer than the step
    *frozen, head = backbones.stages(model).values()
    before = _values(layer for stage in frozen for layer in stage), _values(head)
    model.train_on_batch(tensors, np.array([0, 1, 2, 0]))
    for path, value in _values(layer for stage in frozen for layer in stage).items():
        np.testing.assert_array_equal(value, before[0][path], err_msg=path)
    assert all((value != before[1][path]).any() for path, value in _values(head).items())

    saved.save(model, tmp_path)
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    again.run_eagerly = True
    scores = probabilities(again, tensors)
    np.testing.assert_allclose(scores, probabilities(model, tensors), atol=1e-6)
    assert list(backbones.stages(again)) == stages

    export.write(again, tmp_path)
    runtime = graph.Graph(tmp_path)
    assert runtime(tensors)["heat"].max(axis=(1, 2, 3)) == pytest.approx(1)
    found = export.agreement(again, runtime, tensors, scores, DecisionRule(kind="argmax"))
    assert found["largest_probability_difference"] < 1e-4
    assert found["largest_heat_difference"] < 1e-2


@pytest.mark.skipif(util.find_spec("jax") is None, reason="JAX is not installed")
def test_the_model_answers_the_same_on_jax(lite0, tensors, tmp_path):
    lite0.save_weights(tmp_path / "lite0.weights.h5")
    np.save(tmp_path / "tensors.npy", tensors)
    code = """
import sys
import numpy as np
from lungkit.data.preprocess import Preprocessing
from lungkit.models import backbones, cnn
folder = sys.argv[1]
model = backbones.build("efficientnet_lite0", (64, 64, 1), 3, preprocessing=Preprocessing(mean=0.4, std=0.2))
model.load_weights(f"{folder}/lite0.weights.h5")
tensors = np.load(f"{folder}/tensors.npy")
np.save(f"{folder}/logits.npy", model.predict(tensors, verbose=0))
cnn.compile_classifier(backbones.unfreeze(model, "stage5"), layer_rates=backbones.layer_rates(model))
model.train_on_batch(tensors, np.array([0, 1, 2, 0]))
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"KERAS_BACKEND": "jax"}, check=True, capture_output=True,
    )  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), lite0.predict(tensors, verbose=0), atol=1e-3)


def test_the_network_that_learned_from_ct_comes_with_its_weights_and_ends_at_a_16th():
    taught = backbones.build(backbones.CT_STUDENT, (64, 64, 2), 2)
    assert list(backbones.stages(taught)) == ["stage1", "stage2", "stage3", "stage4", "head"]
    assert taught.get_layer("embedding").output.shape[1:] == (1024,)
    of_taught = [weight for weight in taught.weights if not weight.path.startswith("logits")]
    weights = {weight.path: keras.ops.convert_to_numpy(weight) for weight in of_taught}
    with np.load(weights_file.FOLDER / "efficientnet_lite0_ct.npz") as shipped:
        assert set(shipped) == set(weights)
        for path, value in weights.items():
            np.testing.assert_array_equal(value, shipped[path].astype(np.float32), err_msg=path)


# --- stages


def test_a_cut_backbone_reads_images_that_are_not_square():
    model = backbones.build("efficientnet_lite0", (64, 96, 1), 2, pretrained=False, until="stage4")
    assert model.get_layer("embedding").input.shape[1:3] == (4, 6)
    assert model.layers[-4].name == "block11_expand_relu"


def test_an_image_that_would_be_seen_too_small_is_refused():
    with pytest.raises(LungkitError, match="64 x 64 pixels cannot be seen 4 times smaller"):
        backbones.build("efficientnet_lite0", (64, 64, 1), 2, pretrained=False, shrink=4)


def test_a_stage_without_feature_maps_is_refused():
    with pytest.raises(LungkitError, match="no stage 'head' with feature maps; there are: stage1"):
        backbones.build("efficientnet_lite0", (64, 64, 1), 2, pretrained=False, until="head")


def test_unfreezing_moves_up_to_a_stage_and_leaves_normalisation_in_inference_mode(lite0, tensors):
    model = keras.models.clone_model(lite0)
    model.set_weights(lite0.get_weights())
    rates = backbones.layer_rates(model, 0.5)
    cnn.compile_classifier(backbones.unfreeze(model, "stage4"), learning_rate=1e-3, weight_decay=0.0, layer_rates=rates)
    model.run_eagerly = True
    before = _values(model.layers)
    model.train_on_batch(tensors, np.array([0, 1, 2, 0]))
    after = _values(model.layers)
    for stage, factor in zip(backbones.STAGES, (0, 0, 0, 0.25, 0.5, 1), strict=True):
        for layer in backbones.stages(model)[stage]:
            expected = 0 if isinstance(layer, keras.layers.BatchNormalization) else 1e-3 * factor
            for weight in layer.weights:
                # Adam's first step moves each weight with a gradient by its layer's rate.
                step = np.abs(after[weight.path] - before[weight.path]).max()
                assert step == pytest.approx(expected, rel=0.02), weight.path
    with pytest.raises(LungkitError, match=r"no stage 'block3'; there are: stage1, .*, head"):
        backbones.unfreeze(model, "block3")


def test_rates_fall_from_the_head_to_the_image(lite0):
    rates = backbones.layer_rates(lite0, 0.5)
    named = [rates[name] for name in ("logits", "head_conv", "block5_dwconv", "block0_dwconv", "stem_bn")]
    assert named == [1, 0.5, 0.25, 0.5**5, 0.5**5]
    with pytest.raises(LungkitError, match=r"factor 1\.5: expected a number above 0 and at most 1"):
        backbones.layer_rates(lite0, 1.5)


def test_stages_of_another_model_are_refused():
    with pytest.raises(LungkitError, match="no backbone 'cnn'"):
        backbones.stages(cnn.build((32, 32, 1), 2))
    inputs = keras.Input((32, 32, 1))
    with pytest.raises(LungkitError, match=r"'vgg16' has no layer 'block1_conv1': it was not made by build\(\)"):
        backbones.stages(keras.Model(inputs, inputs, name="vgg16"))
