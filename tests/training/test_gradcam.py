"""Grad-CAM against gradients found in other ways, on every kind of Keras model it promises to explain."""

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
    overlay,
    randomisation_check,
    score_gradients,
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


def nested(wrap):
    """A base model inside another, as a functional model or a Sequential."""
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(6, 3, padding="same", strides=2, activation="relu", name="conv1")(inputs)
    x = layers.Conv2D(8, 3, padding="same", strides=2, activation="relu", name="conv2")(x)
    base = keras.Model(inputs, x, name="base")
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax", name="head")]
    if wrap == "sequential":
        return keras.Sequential([keras.Input((32, 32, 1)), layers.Rescaling(2.0), base, *head])
    outer = keras.Input((32, 32, 1))
    return keras.Model(outer, head[1](head[0](base(layers.Rescaling(2.0)(outer)))))


def class_activation_map(features, kernel, class_index):
    """Zhou et al. 2016: what Grad-CAM is, up to its scale, for a pooled linear head."""
    return np.maximum(features @ kernel[:, class_index], 0)


def as_shown(maps, size):
    heat = tf.image.resize(maps[..., None], size, method="bilinear").numpy()[..., 0]
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)


def all_gradients(*args, **kwargs):
    features, gradients, classes = zip(*score_gradients(*args, **kwargs), strict=True)
    return np.concatenate(features), np.concatenate(gradients), np.concatenate(classes)


# --- the gradient, found another way ---


def test_the_map_weighs_each_channel_by_its_mean_gradient():
    model = keras.Sequential([keras.Input((16, 16, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)])
    images = np.random.default_rng(1).random((3, 16, 16, 1), dtype=np.float32)
    features, gradient, _ = all_gradients(model, images, 1)
    assert gradient.std(axis=(1, 2)).min() > 0  # unlike under pooling, where mean, maximum and middle are one
    heat = np.zeros((3, 14, 14))
    for channel in range(4):
        heat += gradient[..., channel].mean(axis=(1, 2))[:, None, None] * features[..., channel]
    np.testing.assert_allclose(gradcam(model, images, 1), as_shown(np.maximum(heat, 0), (16, 16)), atol=1e-5)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_pooled_linear_head_gives_the_class_activation_map(images, activation):
    model = small_cnn(activation=activation)
    features = keras.Model(model.inputs, model.get_layer("conv2").output).predict(images, verbose=0)
    kernel = model.get_layer("head").get_weights()[0]
    for class_index in range(3):
        kernel[:2, class_index] = 0.5  # something speaks for every class
        model.get_layer("head").set_weights([kernel, np.zeros(3)])
        _, gradient, _ = all_gradients(model, images, class_index)
        np.testing.assert_allclose(gradient, np.broadcast_to(kernel[:, class_index] / 64, gradient.shape), rtol=1e-5)
        expected = as_shown(class_activation_map(features, kernel, class_index), (32, 32))
        np.testing.assert_allclose(gradcam(model, images, class_index), expected, atol=1e-5)


def test_a_flattened_dense_head_agrees_with_central_finite_differences():
    model = keras.Sequential(
        [
            keras.Input((16, 16, 2)),
            layers.Conv2D(4, 3, activation="relu", padding="same", name="conv1"),
            layers.MaxPooling2D(),
            layers.Conv2D(3, 3, activation="relu", padding="same", name="conv2"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    images = np.random.default_rng(1).random((1, 16, 16, 2), dtype=np.float32)
    features, gradient, _ = all_gradients(model, images, class_index=2)
    dense = [layer.get_weights() for layer in model.layers if isinstance(layer, layers.Dense)]

    def logit(maps):  # the head in float64, written out
        x = maps.reshape(4, 2, 4, 2, 3).max(axis=(1, 3)).reshape(-1)
        (w1, b1), (w2, b2) = dense
        return (np.maximum(x @ w1.astype(float) + b1, 0) @ w2.astype(float) + b2)[2]

    step = 1e-6
    numeric = np.zeros((8, 8, 3))
    for position in np.ndindex(numeric.shape):
        nudge = np.zeros_like(numeric)
        nudge[position] = step
        numeric[position] = (logit(features[0] + nudge) - logit(features[0] - nudge)) / (2 * step)
    assert np.abs(numeric).max() > 0
    unsettled = features[0].reshape(4, 2, 4, 2, 3).max(axis=(1, 3)) == 0  # four zeros tie in the pooling: no derivative
    settled = ~unsettled.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(gradient[0][settled], numeric[settled], atol=1e-5)


def test_a_flat_model_agrees_with_a_tape_over_a_rebuilt_one(images):
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(6, 3, padding="same", strides=2)(inputs)
    x = layers.BatchNormalization()(x)
    middle = layers.Activation("swish", name="middle")(x)
    x = layers.Conv2D(6, 3, padding="same")(middle)
    x = layers.GlobalAveragePooling2D()(keras.ops.add(x, middle))
    logits = layers.Dense(3)(layers.Dense(8, activation="gelu")(x))
    model = keras.Model(inputs, layers.Softmax()(logits))
    features, gradient, classes = all_gradients(model, images, layer="middle", batch_size=3)

    rebuilt = keras.Model(inputs, [middle, logits])
    with tf.GradientTape() as tape:
        their_features, their_logits = rebuilt(images, training=False)
        score = tf.reduce_sum(tf.gather(their_logits, classes, batch_dims=1))
    np.testing.assert_array_equal(classes, np.argmax(their_logits, axis=1))
    np.testing.assert_allclose(features, their_features, atol=1e-6)
    np.testing.assert_allclose(gradient, tape.gradient(score, their_features), atol=1e-6)


# --- every kind of model ---


def test_the_gradient_is_taken_before_the_last_activation(images):
    def ending(last):
        inputs = keras.Input((32, 32, 1))
        x = layers.Conv2D(5, 3, strides=4, activation="relu")(inputs)
        return keras.Model(inputs, last(layers.GlobalAveragePooling2D()(x)))

    endings = {
        "logits": layers.Dense(3),
        "dense softmax": layers.Dense(3, activation="softmax"),
        "dense sigmoid": layers.Dense(3, activation="sigmoid"),
        "activation": lambda x: layers.Activation("softmax")(layers.Dense(3)(x)),
        "float32 activation": lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(3)(x)),
        "softmax layer": lambda x: layers.Softmax()(layers.Dense(3)(x)),
        "softmax operation": lambda x: keras.ops.softmax(layers.Dense(3)(x)),
        "sigmoid operation": lambda x: keras.ops.sigmoid(layers.Dense(3)(x)),
        "dropout after": lambda x: layers.Dropout(0.5)(layers.Dense(3, activation="softmax")(x)),
    }
    plain = ending(endings["logits"])
    _, expected, _ = all_gradients(plain, images, 1)
    for name, last in endings.items():
        model = ending(last)
        model.set_weights(plain.get_weights())
        before = model.predict(images, verbose=0)
        np.testing.assert_allclose(all_gradients(model, images, 1)[1], expected, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(model.predict(images, verbose=0), before, err_msg=name)


@pytest.mark.parametrize("wrap", ["functional", "sequential"])
@pytest.mark.parametrize("reload", [None, "model.keras", "model.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_nested_and_reloaded_models_give_the_class_activation_map(images, tmp_path, wrap, reload):
    model = nested(wrap)
    base = model.get_layer("base")
    expected = class_activation_map(base.predict(images * 2, verbose=0), model.get_layer("head").get_weights()[0], 1)
    if reload:
        model.save(tmp_path / reload)
        model = keras.models.load_model(tmp_path / reload)
    for name in [None, "conv2", "base/conv2"]:
        features, gradient, _ = all_gradients(model, images, 1, layer=name)
        shown = np.maximum((features * gradient.mean(axis=(1, 2), keepdims=True)).sum(axis=-1), 0)
        np.testing.assert_allclose(shown * 64, expected, atol=1e-6)


def test_a_subclassed_model_and_a_layer_used_twice_are_explained(images):
    class Shared(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")
            self.again = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="again")
            self.pool = layers.GlobalAveragePooling2D()
            self.head = layers.Dense(2, activation="softmax")

        def call(self, x):
            return self.head(self.pool(self.again(self.again(self.stem(x)))))

    model = Shared()
    model(images)
    features, gradient, _ = all_gradients(model, images, 0)
    assert features.shape == (4, 4, 4, 4)  # the second use
    np.testing.assert_allclose(
        gradient, np.broadcast_to(model.head.get_weights()[0][:, 0] / 16, gradient.shape), rtol=1e-5
    )


# Together about 10 s.
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("MobileNetV2", "out_relu"),
        ("DenseNet121", "relu"),
        ("EfficientNetB0", "top_activation"),
        ("ResNet50", "conv5_block3_out"),
    ],
)
def test_keras_applications_give_the_class_activation_map(name, last):
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=3)
    images = np.random.default_rng(0).random((2, 64, 64, 3), dtype=np.float32)
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel + 0.05, np.zeros(3)])  # an untrained kernel may have nothing speak for a class
    features = keras.Model(model.inputs, [model.get_layer(last).output])([images], training=False)
    features = tf.nest.flatten(features)[0]
    expected = as_shown(class_activation_map(features.numpy(), kernel + 0.05, 1), (64, 64))
    assert expected.max() == 1
    np.testing.assert_allclose(gradcam(model, images, 1), expected, atol=1e-3)


def test_vgg16_with_its_dense_head_is_explained_at_its_last_convolution():
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=2)
    images = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    features, gradient, classes = all_gradients(model, images)
    head = model.layers[[layer.name for layer in model.layers].index("block5_conv3") + 1 :]
    with tf.GradientTape() as tape:
        x = tf.Variable(features)
        maps = x
        for layer in head[:-1]:
            maps = layer(maps)
        logits = maps @ head[-1].kernel + head[-1].bias
        score = tf.reduce_sum(tf.gather(logits, classes, batch_dims=1))
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(gradient, tape.gradient(score, x), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_class_0_of_one_output_is_the_negated_score(images, activation):
    model = small_cnn(classes=1, activation=activation)
    _, positive, _ = all_gradients(model, images, 1)
    _, negative, _ = all_gradients(model, images, 0)
    np.testing.assert_array_equal(negative, -positive)
    predicted = model.predict(images, verbose=0)[:, 0] > (0.5 if activation else 0)
    np.testing.assert_array_equal(all_gradients(model, images)[2], predicted)


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


def test_a_side_branch_is_not_taken_for_the_last_feature_map(images):
    class WithSide(keras.Model):
        def __init__(self):
            super().__init__()
            self.main = layers.Conv2D(4, 3, strides=4, name="main")
            self.side = layers.Conv2D(2, 3, name="side")
            self.pool = layers.GlobalAveragePooling2D()
            self.head = layers.Dense(2)

        def call(self, x):
            maps = self.main(x)
            self.side(maps)
            return self.head(self.pool(maps))

    model = WithSide()
    assert all_gradients(model, images, 0)[0].shape[-1] == 4
    with pytest.raises(LungkitError, match=r"'side'.*lead to the output; 1 do: main"):
        gradcam(model, images, 0, layer="side")


def test_a_map_where_nothing_speaks_for_the_class_stays_zero(images):
    model = small_cnn()
    model.get_layer("head").set_weights([-np.ones((8, 3)), np.zeros(3)])
    assert gradcam(model, images, 1).max() == 0


# --- refusals, and leaving the model as it was ---


def test_an_unknown_layer_is_refused_with_the_ones_there_are(images):
    with pytest.raises(LungkitError, match=r"'conv9'.*conv1, norm1, relu1, conv2"):
        gradcam(small_cnn(), images, layer="conv9")


def test_a_layer_without_maps_is_refused_with_the_ones_that_have_them(images):
    with pytest.raises(LungkitError, match=r"'pool'.*conv2"):
        gradcam(small_cnn(), images, layer="pool")


def test_a_name_that_two_nested_layers_share_must_be_given_as_a_path(images):
    def half(name, channels):
        inputs = keras.Input((None, None, channels))
        return keras.Model(inputs, layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(inputs), name=name)

    inputs = keras.Input((32, 32, 1))
    x = layers.GlobalAveragePooling2D()(half("late", 4)(half("early", 1)(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(LungkitError, match="early/conv, late/conv"):
        gradcam(model, images, 0, layer="conv")
    assert all_gradients(model, images, 0, layer="early/conv")[0].shape == (4, 16, 16, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(3, "no class 3.*0 to 2"), (-1, "no class -1"), ([0, 1], "one per image"), (1.0, "whole number")],
)
def test_a_class_the_model_does_not_have_is_refused(images, wrong, said):
    with pytest.raises(LungkitError, match=said):
        gradcam(small_cnn(), images, class_index=wrong)


def test_images_of_another_shape_are_refused(images):
    with pytest.raises(LungkitError, match="n, height, width, channels"):
        gradcam(small_cnn(), images[0])
    with pytest.raises(LungkitError, match="n of 1 or more"):
        gradcam(small_cnn(), images[:0])
    with pytest.raises(LungkitError, match=r"does not take images of shape \(32, 32, 1\)"):
        gradcam(small_cnn(channels=3), images)


def test_a_model_without_feature_maps_is_refused(images):
    model = keras.Sequential([keras.Input((32, 32, 1)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(LungkitError, match="no layer of the model gives feature maps"):
        gradcam(model, images)


def test_a_model_whose_logits_cannot_be_found_is_refused(images):
    trunk = small_cnn()
    two = keras.Model(trunk.inputs, [trunk.output, trunk.get_layer("pool").output])
    with pytest.raises(LungkitError, match="does not end in one layer"):
        gradcam(two, images)
    hidden = keras.Model(trunk.inputs, layers.Reshape((3,))(keras.ops.softmax(trunk.output)))
    with pytest.raises(LungkitError, match="still probabilities"):
        gradcam(hidden, images)


def test_weights_that_are_not_finite_are_refused(images):
    model = small_cnn()
    model.get_layer("conv1").bias.assign(np.full(6, np.nan))
    with pytest.raises(LungkitError, match="NaN"):
        gradcam(model, images, 0)


def test_another_backend_is_refused(images, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(LungkitError, match=r"'torch'.*KERAS_BACKEND=tensorflow"):
        gradcam(small_cnn(), images)


def test_the_model_is_left_as_it_was_also_after_an_error(images):
    model = small_cnn(activation="softmax")
    parts = [part for _, part in explain._parts(model)]
    before = [dict(vars(part)) for part in parts]
    answer = model.predict(images, verbose=0)
    with pytest.raises(LungkitError):
        gradcam(model, images, class_index=9)
    gradcam(model, images)
    for part, then in zip(parts, before, strict=True):
        assert vars(part).keys() == then.keys()
        assert vars(part).get("activation") is then.get("activation")
    np.testing.assert_array_equal(model.predict(images, verbose=0), answer)


# --- overlay ---


def test_cold_regions_of_an_overlay_show_the_image_unchanged():
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    heat = np.zeros((8, 8), dtype=np.float32)
    heat[2, 3] = 1
    picture = overlay(image, heat)
    assert picture.dtype == np.uint8 and picture.shape == (8, 8, 3)
    grey = np.rint(255 * image).astype(np.uint8)[..., None].repeat(3, axis=2)
    cold = heat == 0
    np.testing.assert_array_equal(picture[cold], grey[cold])
    hottest = np.array([252, 255, 164])  # the bright end of inferno
    np.testing.assert_allclose(picture[2, 3], 0.6 * 255 * image[2, 3] + 0.4 * hottest, atol=1)


@pytest.mark.parametrize(
    ("image", "heat", "said"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5)), "differ"),
        (np.zeros((4, 4, 1)), np.zeros((4, 4, 1)), "height, width"),
        (np.full((4, 4), 2.0), np.zeros((4, 4)), "image holds values from 2 to 2"),
        (np.zeros((4, 4)), np.full((4, 4), -1.0), "heat map holds"),
        (np.full((4, 4), np.nan), np.zeros((4, 4)), "image holds"),
    ],
)
def test_an_overlay_refuses_what_is_not_an_image_and_its_heat_map(image, heat, said):
    with pytest.raises(LungkitError, match=said):
        overlay(image, heat)


# --- localisation ---


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
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
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


def test_a_model_with_nothing_to_randomise_is_refused(images):
    model = keras.Sequential([keras.Input((32, 32, 1)), layers.Rescaling(2.0), layers.GlobalAveragePooling2D()])
    with pytest.raises(LungkitError, match="no convolution or dense layer"):
        randomisation_check(model, images, 1)


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
