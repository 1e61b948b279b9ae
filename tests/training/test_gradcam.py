"""Grad-CAM against gradients that are calculated in other ways, and what is measured on its maps."""

from lungkit.backend import keras

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from lungkit.errors import LungkitError
from lungkit.training import gradcam as explain
from lungkit.training.gradcam import (
    gradcam,
    localisation,
    localisation_summary,
    otsu_threshold,
    randomisation_check,
)

layers = keras.layers


@pytest.fixture
def images():
    return np.random.default_rng(3).random((4, 32, 32, 1), dtype=np.float32)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(11)


def small_cnn(channels=1, classes=3, activation=None, name="small"):
    """A flat functional model that ends as lungkit's own do: feature maps, global average pooling, dense."""
    inputs = keras.Input((32, 32, channels))
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="conv1")(inputs)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.ReLU(name="relu1")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, activation=activation, name="head")(x), name=name)


def flat(inputs, *chain):
    x = inputs
    for layer in chain:
        x = layer(x)
    return keras.Model(inputs, x)


def class_activation_map(features, kernel, class_index):
    """Zhou et al. 2016: what Grad-CAM is, up to its scale, for a pooled linear head."""
    return np.maximum(features @ kernel[:, class_index], 0)


def as_shown(maps, size):
    heat = tf.image.resize(maps[..., None], size, method="bilinear").numpy()[..., 0]
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)


def gradients(model, images, class_index):
    """The last feature maps and the gradient of the class's logit with respect to them."""
    maps = explain._last_feature_maps(model)
    features = keras.Model(model.input, maps)(images)
    classes = np.full(len(images), class_index)
    return features.numpy(), explain.score_gradient(keras.Model(maps, model.output), features, classes)


# --- the gradient, calculated another way ---


def test_the_map_weighs_each_channel_by_its_mean_gradient():
    model = flat(keras.Input((16, 16, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2))
    images = np.random.default_rng(1).random((3, 16, 16, 1), dtype=np.float32)
    features, gradient = gradients(model, images, 1)
    assert gradient.std(axis=(1, 2)).min() > 0  # unlike under pooling, where mean, maximum and middle are one
    heat = np.zeros((3, 14, 14))
    for channel in range(4):
        heat += gradient[..., channel].mean(axis=(1, 2))[:, None, None] * features[..., channel]
    np.testing.assert_allclose(gradcam(model, images, 1), as_shown(np.maximum(heat, 0), (16, 16)), atol=1e-5)


def test_a_pooled_linear_head_gives_the_class_activation_map(images):
    model = small_cnn()
    features = keras.Model(model.inputs, model.get_layer("conv2").output).predict(images, verbose=0)
    kernel = model.get_layer("head").get_weights()[0]
    for class_index in range(3):
        kernel[:2, class_index] = 0.5  # something supports every class
        model.get_layer("head").set_weights([kernel, np.zeros(3)])
        _, gradient = gradients(model, images, class_index)
        np.testing.assert_allclose(gradient, np.broadcast_to(kernel[:, class_index] / 64, gradient.shape), rtol=1e-5)
        expected = as_shown(class_activation_map(features, kernel, class_index), (32, 32))
        np.testing.assert_allclose(gradcam(model, images, class_index), expected, atol=1e-5)


def test_a_flattened_dense_head_agrees_with_central_finite_differences():
    model = flat(
        keras.Input((16, 16, 2)),
        layers.Conv2D(4, 3, activation="relu", padding="same"),
        layers.MaxPooling2D(),
        layers.Conv2D(3, 3, activation="relu", padding="same"),
        layers.Flatten(),
        layers.Dense(10, activation="relu"),
        layers.Dense(3),
    )
    images = np.random.default_rng(1).random((1, 16, 16, 2), dtype=np.float32)
    features, gradient = gradients(model, images, class_index=2)
    dense = [layer.get_weights() for layer in model.layers if isinstance(layer, layers.Dense)]

    def logit(maps):  # the head in float64, written out
        (w1, b1), (w2, b2) = dense
        return (np.maximum(maps.reshape(-1) @ w1.astype(float) + b1, 0) @ w2.astype(float) + b2)[2]

    step = 1e-6
    numeric = np.zeros((8, 8, 3))
    for position in np.ndindex(numeric.shape):
        nudge = np.zeros_like(numeric)
        nudge[position] = step
        numeric[position] = (logit(features[0] + nudge) - logit(features[0] - nudge)) / (2 * step)
    assert np.abs(numeric).max() > 0
    np.testing.assert_allclose(gradient[0], numeric, atol=1e-5)


def test_each_image_may_have_its_own_class_whatever_the_batch_size(images):
    model = small_cnn(channels=1)
    classes = np.array([0, 2, 1, 2])
    together = gradcam(model, images, classes)
    alone = [gradcam(model, images[[i]], int(classes[i]))[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(gradcam(model, images, classes, batch_size=3), together, atol=1e-5)


def test_a_half_precision_model_gives_nearly_the_same_map(images):
    model = small_cnn()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = small_cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(model.get_weights())
    heat = gradcam(half, images, 0)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, gradcam(model, images, 0), atol=0.05)


def test_a_map_where_nothing_supports_the_class_stays_zero(images):
    model = small_cnn()
    model.get_layer("head").set_weights([-np.ones((8, 3)), np.zeros(3)])
    assert gradcam(model, images, 1).max() == 0


# --- refusals ---


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(3, "no class 3.*0 to 2"), (-1, "no class -1"), ([0, 1], "one per image"), (1.0, "whole number")],
)
def test_a_class_the_model_does_not_have_is_refused(images, wrong, said):
    with pytest.raises(LungkitError, match=said):
        gradcam(small_cnn(), images, class_index=wrong)


def test_images_of_another_shape_are_refused(images):
    for wrong in (images[0], images[:0], np.repeat(images, 3, axis=-1)):
        with pytest.raises(LungkitError, match=r"images have shape .* the model needs 1 or more of \(32, 32, 1\)"):
            gradcam(small_cnn(), wrong)


def test_a_model_without_feature_maps_is_refused(images):
    model = keras.Sequential([keras.Input((32, 32, 1)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(LungkitError, match=r"no layer of model .* gives feature maps"):
        gradcam(model, images)


def test_a_model_that_gives_probabilities_or_two_outputs_is_refused(images):
    trunk = small_cnn()
    two = keras.Model(trunk.inputs, [trunk.output, trunk.get_layer("pool").output])
    softmax = keras.Model(trunk.inputs, layers.Softmax()(trunk.output))
    for wrong in (two, softmax, small_cnn(activation="softmax")):
        with pytest.raises(LungkitError, match="does not end in one dense layer of logits"):
            gradcam(wrong, images)


def test_weights_that_are_not_finite_are_refused(images):
    model = small_cnn()
    model.get_layer("conv1").bias.assign(np.full(6, np.nan))
    with pytest.raises(LungkitError, match="NaN"):
        gradcam(model, images, 0)


def test_another_backend_is_refused(images, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(LungkitError, match=r"not on torch; set KERAS_BACKEND=tensorflow"):
        gradcam(small_cnn(), images)


# --- agreement with lesion masks ---


def box(rows, columns, side=8):
    mask = np.zeros((side, side), dtype=bool)
    mask[rows, columns] = True
    return mask


def test_localisation_measures_a_map_by_hand():
    mask = box(slice(0, 4), slice(0, 4))  # 16 of 64 pixels
    heat = np.zeros((8, 8))
    heat[0:4, 2:6] = 0.8  # 16 hot pixels, 8 of them inside
    heat[1, 3] = 1.0
    row = localisation(heat[None], mask[None]).iloc[0]
    assert row["pointing_game"] == 1
    assert row["iou_otsu"] == pytest.approx(8 / 24)
    assert row["energy_inside"] == pytest.approx((7 * 0.8 + 1) / (15 * 0.8 + 1))
    assert row["mask_share"] == 0.25


def test_a_uniform_map_gets_the_share_of_the_mask_in_every_measure():
    mask = box(slice(0, 2), slice(0, 8))
    row = localisation(np.ones((1, 8, 8)), mask[None]).iloc[0]
    assert row.tolist() == [0.25, 0.25, 0.25, 0.25]


def test_equally_hot_pixels_count_by_the_share_inside_the_lesion():
    heat = np.zeros((8, 8))
    heat[0, 0] = heat[7, 7] = heat[7, 6] = heat[7, 5] = 1
    assert localisation(heat[None], box(0, 0)[None])["pointing_game"].item() == 0.25


def test_a_map_without_heat_found_nothing():
    row = localisation(np.zeros((1, 8, 8)), box(0, 0)[None] * 255).iloc[0]
    assert row.tolist() == [0, 0, 0, 1 / 64]


def test_an_image_without_a_lesion_is_left_out():
    frame = localisation(np.ones((2, 8, 8)), np.stack([box(0, 0), np.zeros((8, 8), bool)]))
    assert frame.loc[0].notna().all() and frame.loc[1].isna().all()
    summary = localisation_summary(frame, ["a", "b"])
    assert summary["images"].tolist() == [1] * 4 and summary["patients"].tolist() == [1] * 4


@pytest.mark.parametrize("heat", [np.full((1, 8, 8), -0.1), np.full((1, 8, 8), np.nan), np.ones((1, 8, 9))])
def test_localisation_refuses_what_is_not_heat(heat):
    with pytest.raises(LungkitError, match=r"negative|differ"):
        localisation(heat, np.ones((1, 8, 8)))


def test_otsu_leaves_the_least_variance_within_the_two_classes():
    values = np.random.default_rng(5).beta(0.6, 2.0, size=(12, 12))

    def within(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return low.size * low.var() + high.size * high.var()

    candidates = np.sort(values, axis=None)[:-1]
    assert otsu_threshold(values) == candidates[np.argmin([within(t) for t in candidates])]
    assert otsu_threshold(np.ones(5)) == -np.inf


def test_the_interval_of_localisation_draws_whole_patients():
    frame = pd.DataFrame({"pointing_game": [1.0] * 20 + [0.0] * 20})
    few = localisation_summary(frame, ["a"] * 20 + ["b"] * 20).loc["pointing_game"]
    many = localisation_summary(frame, np.arange(40)).loc["pointing_game"]
    assert few["value"] == many["value"] == 0.5
    assert few["low"] < 0.02 < 0.98 < few["high"], "two patients: nearly anything from none to all"
    assert 0.3 < many["low"] < 0.4 and 0.6 < many["high"] < 0.7  # 0.5 ± 1.96 x sqrt(0.25 / 40) = 0.345 to 0.655


def test_a_summary_needs_a_patient_for_each_image():
    with pytest.raises(LungkitError, match="2 patients for 1 images"):
        localisation_summary(pd.DataFrame({"pointing_game": [1.0]}), ["a", "b"])


# --- a trained model ---


def bright_squares(n, seed):
    """Noise with a bright square in one quadrant; class 1 where it lies in the right half.

    The second channel holds each column's position: pooled convolutions could not tell left from right without it.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.15, (n, 32, 32, 2)).astype(np.float32)
    images[..., 1] = np.linspace(-1, 1, 32)
    masks = np.zeros((n, 32, 32), bool)
    labels = rng.integers(0, 2, n)
    for image, mask, label in zip(images, masks, labels, strict=True):
        top, left = rng.integers(0, 2) * 16 + rng.integers(1, 8), label * 18 + rng.integers(1, 6)
        mask[top : top + 8, left : left + 8] = True
        image[mask, 0] += 1
    return images, masks, labels


@pytest.fixture(scope="module")
def trained():
    """A model that has learned where bright squares lie, and images it has not seen; trains in about 5 s."""
    keras.utils.set_random_seed(1)
    images, _, labels = bright_squares(256, seed=0)
    inputs = keras.Input((32, 32, 2))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(images, labels, epochs=12, batch_size=32, verbose=0)
    images, masks, labels = bright_squares(60, seed=9)
    assert model.evaluate(images, labels, verbose=0)[1] > 0.95
    return model, images, masks, labels


def test_maps_of_a_trained_model_point_at_what_makes_the_class(trained):
    model, images, masks, labels = trained
    summary = localisation_summary(localisation(gradcam(model, images, labels), masks), np.arange(60) // 3)
    assert summary.loc["mask_share", "value"] == pytest.approx(64 / 1024)
    assert summary.loc["pointing_game", "low"] > 0.8
    assert summary.loc["iou_otsu", "low"] > 0.25
    assert summary.loc["energy_inside", "low"] > 3 * 64 / 1024


def test_maps_of_a_trained_model_lose_their_likeness_when_weights_are_randomised(trained):
    model, images, _, labels = trained
    before = [weight.copy() for weight in model.get_weights()]
    table = randomisation_check(model, images, labels, patients=np.arange(60) // 3)
    assert table["layer"].tolist() == [layer.name for layer in model.layers[::-1] if layer.weights]
    assert table["spearman"].iloc[-1] < 0.5
    assert (table["low"] <= table["spearman"]).all() and (table["spearman"] <= table["high"]).all()
    for weight, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, then)
    pd.testing.assert_frame_equal(randomisation_check(model, images, labels, patients=np.arange(60) // 3), table)


def test_randomisation_leaves_out_images_without_an_original_map(images):
    model = small_cnn()
    model.get_layer("head").set_weights([-np.ones((8, 3)), np.zeros(3)])
    assert randomisation_check(model, images, 0)["spearman"].isna().all()


def test_a_randomisation_that_fails_puts_the_weights_back(images, monkeypatch):
    model = small_cnn()
    before = model.get_weights()
    seen = []

    def breaks(*args, **kwargs):
        seen.append(not np.array_equal(model.get_layer("head").get_weights()[0], before[-2]))
        raise RuntimeError("interrupted")

    monkeypatch.setattr(explain, "gradcam", breaks)
    with pytest.raises(RuntimeError, match="interrupted"):
        randomisation_check(model, images, 0)
    assert seen == [True]
    for weight, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, then)


def test_a_deep_model_is_randomised_in_eight_steps_from_the_output_to_the_stem():
    inputs = x = keras.Input((16, 16, 1))
    for i in range(20):
        x = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"conv{i}")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).random((2, 16, 16, 1), dtype=np.float32)
    table = randomisation_check(model, images, 0)
    assert len(table) == 8
    assert table["layer"].iloc[0] == "head" and table["layer"].iloc[-1] == "conv0"
