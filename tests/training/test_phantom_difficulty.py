"""The phantom is hard enough to mean something: pixels alone do not tell its classes apart, a small CNN does."""

import csv

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lungkit.data import phantom, preprocess

EPOCHS, BATCH = 12, 32


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Pixels (900, 64, 64) in lung window, labels, and which slices are of the training patients (70 %)."""
    folder = phantom.make_dataset(tmp_path_factory.mktemp("phantom") / "set", n_slices=900, seed=7)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = preprocess.read_batch([folder / row["file"] for row in rows], preprocess.Preprocessing(size=(192, 192)))
    labels = np.array([phantom.CLASSES.index(row["label"]) for row in rows])
    patients = np.array([row["patient_id"] for row in rows])
    names = np.random.default_rng(0).permutation(np.unique(patients))
    return _shrunk(pixels[..., 0]), labels, ~np.isin(patients, names[: int(0.3 * len(names))])


def _shrunk(pixels):
    """Means over blocks: (n, 192, 192) to (n, 64, 64)."""
    return pixels.reshape(len(pixels), 64, 3, 64, 3).mean((2, 4))


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
