"""The exported graph says what the Keras model says, heat maps included, and nobody is told that it was made."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.models import cnn, graph
from lungkit.models.rule import DecisionRule
from lungkit.training import export, gradcam
from tests.answers import probabilities

layers = keras.layers
ARGMAX = DecisionRule(kind="argmax")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Noise of nine contrasts on nine backgrounds, so that the classes differ."""
    contrast, background = np.linspace(0.2, 2, 9), np.linspace(-1, 1, 9)[[4, 8, 0, 5, 1, 7, 3, 2, 6]]
    noise = np.random.default_rng(0).normal(size=(9, 48, 48, 1))
    return (noise * contrast[:, None, None, None] + background[:, None, None, None]).astype(np.float32)


@pytest.fixture(scope="module")
def model(pictures) -> keras.Model:
    """Random weights, with logits as far apart as a trained model's."""
    keras.utils.set_random_seed(3)
    model = cnn.build((48, 48, 1), 3, filters=8, blocks=2)
    dense = model.layers[-1]
    dense.kernel.assign(3 * dense.kernel / np.std(model.predict(pictures, verbose=0), axis=0))
    dense.bias.assign(-np.mean(model.predict(pictures, verbose=0), axis=0))
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> graph.Graph:
    folder = tmp_path_factory.mktemp("graph")
    export.write(model, folder, temperature=1.7)
    return graph.Graph(folder)


def test_probabilities_are_those_of_keras_at_the_temperature(model, exported, pictures):
    expected = probabilities(model, pictures, temperature=1.7)
    assert set(expected.argmax(axis=1)) == {0, 1, 2}, "the model tells the pictures apart"
    np.testing.assert_allclose(exported(pictures)["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_images_at_a_time_gets_the_same_answers(exported, pictures, count):
    whole, part = exported(pictures), exported(pictures[:count])
    for name in graph.OUTPUTS:
        assert len(part[name]) == count
        np.testing.assert_allclose(part[name], whole[name][:count], atol=1e-5)


@pytest.mark.parametrize("cls", [0, 1, 2])
def test_the_heat_map_of_each_class_is_its_grad_cam(model, exported, pictures, cls):
    heat = exported(pictures)["heat"]
    assert heat.shape == (9, 3, 48, 48)
    np.testing.assert_allclose(heat[:, cls], gradcam.gradcam(model, pictures, cls), atol=1e-4)


def test_a_class_that_nothing_speaks_for_has_an_empty_map_and_no_nan(pictures, tmp_path):
    model = cnn.build((48, 48, 1), 2, filters=4, blocks=2)
    kernel = np.abs(model.layers[-1].kernel.numpy())
    model.layers[-1].kernel.assign(np.stack([kernel[:, 0], -kernel[:, 1]], axis=1))
    export.write(model, tmp_path)
    heat = graph.Graph(tmp_path)(pictures)["heat"]
    assert np.isfinite(heat).all()
    assert heat[:, 0].max() == 1
    assert heat[:, 1].max() == 0


def test_the_embedding_is_what_the_dense_layer_sees(model, exported, pictures):
    expected = keras.Model(model.input, model.get_layer("embedding").output).predict(pictures, verbose=0)
    np.testing.assert_allclose(exported(pictures)["embedding"], expected, atol=1e-5)


def test_without_heat_maps_the_other_answers_are_the_same(model, exported, pictures, tmp_path):
    export.write(model, tmp_path, temperature=1.7)
    answers = graph.Graph(tmp_path, heat=False)(pictures)
    assert set(answers) == {"probabilities", "embedding"}
    np.testing.assert_allclose(answers["probabilities"], exported(pictures)["probabilities"], atol=1e-6)


# --- which models


def _ending(*head) -> keras.Model:
    inputs = keras.Input((32, 40, 1))
    x = layers.Conv2D(6, 3, 2, activation="relu")(inputs)
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "head",
    [
        [layers.GlobalAveragePooling2D(), layers.Dense(2)],
        [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dropout(0.1), layers.Dense(4)],
        [layers.MaxPooling2D(), layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(2, use_bias=False)],
    ],
    ids=["no dropout", "two dropouts", "pooled before"],
)
def test_any_flat_model_with_the_ending_is_exported_whatever_comes_before(head, tmp_path):
    model, pictures = _ending(*head), np.random.default_rng(1).random((5, 32, 40, 1)).astype(np.float32)
    export.write(model, tmp_path)
    exported = graph.Graph(tmp_path)
    found = export.agreement(model, exported, pictures, probabilities(model, pictures), ARGMAX)
    assert found["same_class"] == 1
    assert found["largest_probability_difference"] < 1e-5
    assert found["largest_heat_difference"] < 1e-4
    assert exported(pictures)["heat"].shape == (5, model.output_shape[1], 32, 40)


def test_layers_may_have_the_names_of_the_operations_that_make_the_heat_map(tmp_path):
    keras.backend.clear_session()  # operations are numbered from the start again, as in a process that only exports
    model = _ending(layers.ReLU(name="relu"), layers.GlobalAveragePooling2D(name="matmul"), layers.Dense(2, name="max"))
    export.write(model, tmp_path)
    assert (tmp_path / graph.FILE).exists()


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, images):
        return self.dense(keras.ops.mean(images, axis=(1, 2)))


def _two_images() -> keras.Model:
    left, right = keras.Input((32, 32, 1)), keras.Input((32, 32, 1))
    x = layers.Conv2D(4, 3)(layers.Concatenate()([left, right]))
    return keras.Model([left, right], layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: _ending(layers.Flatten(), layers.Dense(2)),
        lambda: _ending(layers.GlobalMaxPooling2D(), layers.Dense(2)),
        lambda: _ending(layers.GlobalAveragePooling2D(), layers.Dense(8, activation="relu"), layers.Dense(2)),
        lambda: _ending(layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")),
        lambda: _ending(layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Softmax()),
        lambda: _ending(layers.GlobalAveragePooling2D(), layers.Dense(1)),
        _two_images,
        _Subclassed,
    ],
    ids=["flatten", "max", "two dense", "softmax inside", "softmax after", "one class", "two images", "subclassed"],
)
def test_a_model_whose_heat_maps_have_no_closed_form_is_refused_with_what_is_accepted(make, tmp_path):
    with pytest.raises(
        export.NotExportable, match=r"cannot be exported.*GlobalAveragePooling2D, Dropout and one Dense"
    ):
        export.write(make(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- agreement


def test_agreement_states_what_was_compared_and_the_precision(model, exported, pictures):
    scores = probabilities(model, pictures, temperature=1.7)
    found = export.agreement(model, exported, pictures, scores, ARGMAX)
    assert found["precision"] == "f32"
    assert found["runtime"].startswith("OpenVINO 20")
    assert (found["images"], found["heat_images"], found["same_class"]) == (9, 9, 1.0)
    assert 0 <= found["largest_probability_difference"] < 1e-5
    assert 0 <= found["largest_heat_difference"] < 1e-4


def test_a_graph_of_other_weights_is_refused(model, pictures, tmp_path):
    export.write(cnn.build((48, 48, 1), 3, filters=8, blocks=2), tmp_path)
    scores = probabilities(model, pictures)
    with pytest.raises(export.NotExportable, match=r"on 9 validation images the largest difference .* 0\.01"):
        export.agreement(model, graph.Graph(tmp_path), pictures, scores, ARGMAX)


def test_a_graph_that_gives_one_image_another_class_is_refused_however_close_the_probabilities(
    model, exported, pictures
):
    scores = probabilities(model, pictures, temperature=1.7)
    nudged = scores.copy()
    near = np.sort(scores[0])[-2:].mean()
    order = scores[0].argsort()
    nudged[0, order[-1]], nudged[0, order[-2]] = near - 0.002, near + 0.002
    close = exported(pictures)
    close["probabilities"] = nudged.astype(np.float32)
    close["probabilities"][0, order[-1]], close["probabilities"][0, order[-2]] = near + 0.002, near - 0.002
    with pytest.raises(export.NotExportable, match=r"the same on 88\.89%"):
        export.agreement(model, lambda _: close, pictures, nudged, ARGMAX)


def test_a_graph_that_gives_no_numbers_is_refused(model, exported, pictures):
    broken = exported(pictures)
    broken["probabilities"] = np.full((9, 3), np.nan, np.float32)
    with pytest.raises(export.NotExportable):
        export.agreement(model, lambda _: broken, pictures, probabilities(model, pictures), ARGMAX)


# --- nobody is told


def test_exporting_leaves_nothing_in_the_home_folder_and_does_not_load_telemetry(model, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CI", raising=False)  # OpenVINO is quiet there by itself
    export.write(model, tmp_path)
    assert list(home.iterdir()) == []
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]


def test_importing_the_runtime_leaves_nothing_in_the_home_folder(tmp_path):
    quiet = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(tmp_path)}
    code = "import sys; from lungkit.models import graph; print('openvino_telemetry.main' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []


def test_threads_hand_their_images_to_the_runtime_one_after_the_other(tmp_path):
    export.write(cnn.build((32, 32, 1), 2, filters=4, blocks=2), tmp_path)
    compiled, inside, most = graph.Graph(tmp_path), [], []

    class Request:
        def infer(self, images):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            return real.create_infer_request().infer(images)

    real = compiled._compiled
    compiled._compiled = SimpleNamespace(create_infer_request=Request)
    tensors = np.zeros((1, 32, 32, 1), np.float32)
    with ThreadPoolExecutor(4) as threads:
        answers = [each.result() for each in [threads.submit(compiled, tensors) for _ in range(8)]]
    assert max(most) == 1
    assert all(each["probabilities"].shape == (1, 2) for each in answers)
