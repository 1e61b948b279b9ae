"""The phantom is hard enough to mean something: pixels alone do not tell its classes apart, a small CNN does."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lungkit.data import images, phantom, preprocess

EPOCHS, BATCH = 12, 32
SLICES, SEED = 900, 7


@pytest.fixture(scope="module")
def slices():
    """Pixels (900, 64, 64) in lung window, labels, and which slices are of the training patients (70 %).

    They are those of a data set, without the files: to compress and to read them takes as long as to draw them.
    """
    pixels, labels, patients = [], [], []
    for name, label, number in phantom._patients(SLICES, SEED):
        for cut in phantom.make_patient(name, label, SEED, number):
            pixels.append(_shrunk(cut.hu))
            labels.append(phantom.CLASSES.index(label))
            patients.append(name)
    names = np.random.default_rng(0).permutation(np.unique(patients))
    training = ~np.isin(patients, names[: int(0.3 * len(names))])
    return np.stack(pixels), np.array(labels), training


def _shrunk(hu):
    """A slice in lung window, scaled to 192 pixels, as means over blocks (64, 64)."""
    image = images.Image(hu.astype(np.float32), "HU", "CT", "phantom", {})
    scaled = preprocess.prepare(image, preprocess.Preprocessing(size=(192, 192))).tensor
    return scaled.reshape(64, 3, 64, 3).mean((1, 3))


def test_logistic_regression_on_pixels_stays_under_75_percent(slices):
    pixels, labels, training = slices
    flat = pixels.reshape(len(pixels), -1)
    flat = StandardScaler().fit(flat[training]).transform(flat)
    for strength in (1e-4, 1e-3, 1e-2):  # whatever its regularisation
        model = LogisticRegression(C=strength, max_iter=200).fit(flat[training], labels[training])
        assert 0.4 < model.score(flat[~training], labels[~training]) < 0.75


def test_a_compact_cnn_passes_90_percent_on_patients_it_has_not_seen(slices):
    from lungkit.backend import keras

    import tensorflow as tf

    from lungkit.models import cnn
    from lungkit.training import pipeline

    keras.utils.set_random_seed(7)
    pixels, labels, training = slices
    pixels = pixels[..., None]
    mean, std = float(pixels[training].mean()), float(pixels[training].std())
    pixels = (pixels - mean) / std
    augment = pipeline.augmentation(mean=mean, std=std)
    batches = (
        tf.data.Dataset.from_tensor_slices((pixels[training], labels[training]))
        .shuffle(len(pixels), seed=7)
        .batch(BATCH)
        .map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=2)
        .prefetch(2)
    )
    model = cnn.build(pixels.shape[1:], len(phantom.CLASSES), filters=8)
    cnn.compile_classifier(model, decay_steps=EPOCHS * len(batches))
    model.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0)
    found = model.predict(pixels[~training], verbose=0).argmax(1)
    accuracy = np.mean(found == labels[~training])
    assert 0.9 < accuracy < 1, f"accuracy {accuracy:.3f}"
