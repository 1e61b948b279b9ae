"""The compact CNN: shapes, knobs, compilation."""

from lungkit.backend import keras

import keras_tuner
import numpy as np
import pytest

from lungkit.errors import LungkitError
from lungkit.models import cnn


@pytest.mark.parametrize(("side", "classes", "maps"), [(28, 2, 14), (64, 2, 16), (96, 3, 24), (224, 3, 28)])
def test_images_of_any_size_become_one_logit_a_class_from_maps_fine_enough_to_point(side, classes, maps):
    model = cnn.build((side, side, 1), classes)
    logits = model(np.zeros((2, side, side, 1), np.float32))
    assert logits.shape == (2, classes)
    assert model.get_layer("last_relu").output.shape[1:3] == (maps, maps)


def test_the_graph_ends_in_pooling_dropout_and_one_dense_layer_of_logits():
    kinds = [type(layer).__name__ for layer in cnn.build((96, 96, 1), 3).layers[-3:]]
    assert kinds == ["GlobalAveragePooling2D", "Dropout", "Dense"]
    assert cnn.build((96, 96, 1), 3).layers[-1].activation is keras.activations.linear


def test_every_value_of_the_search_space_builds_another_compiled_model():
    knobs = keras_tuner.HyperParameters()
    cnn.search_space(knobs, (32, 32, 1), 2)
    assert {"filters", "blocks", "dropout", "optimizer", "learning_rate"} == set(knobs.values)
    narrow, wide = knobs.copy(), knobs.copy()
    narrow.values["filters"], wide.values["filters"] = 12, 24
    sizes = [cnn.search_space(k, (32, 32, 1), 2).count_params() for k in (narrow, wide)]
    assert sizes[1] > 1.3 * sizes[0]


def test_the_learning_rate_warms_up_and_falls_to_a_fiftieth():
    model = cnn.compile_classifier(cnn.build((32, 32, 1), 2), learning_rate=1e-3, decay_steps=100)
    schedule = model.optimizer._learning_rate
    rates = [float(schedule(step)) for step in (0, 5, 50, 100)]
    assert rates[0] < rates[2] < rates[1] == pytest.approx(1e-3)
    assert rates[3] == pytest.approx(2e-5, rel=0.01)


def test_an_unknown_optimizer_and_a_single_class_are_refused():
    with pytest.raises(LungkitError, match="no optimizer 'sgd'; there are: adam, adamw"):
        cnn.compile_classifier(cnn.build((32, 32, 1), 2), optimizer="sgd")
    with pytest.raises(LungkitError, match="at least 2 classes, not 1"):
        cnn.build((32, 32, 1), 1)


@pytest.mark.parametrize("smoothing", [None, 0.1], ids=["integers", "one-hot"])
def test_the_training_step_is_traced_once(smoothing):
    model = cnn.compile_classifier(cnn.build((12, 12, 1), 2, blocks=1), label_smoothing=smoothing)
    traced, step = [], model.train_step
    model.train_step = lambda batch: traced.append(batch) or step(batch)
    labels = np.array([0, 1])
    model.fit(np.zeros((2, 12, 12, 1)), labels if smoothing is None else np.eye(2)[labels], verbose=0)
    assert len(traced) == 1
