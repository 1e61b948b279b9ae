"""The phantom is hard enough to mean something: pixels alone do not tell its classes apart, a small CNN does.

About 100 s on two cores: a third to draw 1,500 slices, a tenth to read them, the rest to train.
"""

import csv

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lungkit.data import images, phantom

SIDE, EPOCHS, BATCH = 96, 12, 32


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Files, labels and a mask of the training patients (70 %) of 1,500 slices."""
    folder = phantom.make_dataset(tmp_path_factory.mktemp("phantom") / "set", n_slices=1500, seed=7)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    patients = np.array([row["patient_id"] for row in rows])
    names = np.random.default_rng(0).permutation(np.unique(patients))
    training = ~np.isin(patients, names[: int(0.3 * len(names))])
    labels = np.array([phantom.CLASSES.index(row["label"]) for row in rows])
    return [folder / row["file"] for row in rows], labels, training


def test_logistic_regression_on_pixels_stays_under_75_percent(slices):
    files, labels, training = slices
    pixels = images.read_batch(files, images.Preprocessing(size=(64, 64))).reshape(len(files), -1)
    pixels = StandardScaler().fit(pixels[training]).transform(pixels)
    for strength in (1e-4, 1e-3, 1e-2):  # also with its best regularisation
        model = LogisticRegression(C=strength, max_iter=200).fit(pixels[training], labels[training])
        assert 0.4 < model.score(pixels[~training], labels[~training]) < 0.75


def test_a_compact_cnn_passes_90_percent_on_patients_it_has_not_seen(slices):
    import tensorflow as tf
    from lungkit.backend import keras
    from lungkit.models import cnn
    from lungkit.training import pipeline

    keras.utils.set_random_seed(7)
    files, labels, training = slices
    spec = images.training_statistics(
        [f for f, t in zip(files, training, strict=True) if t], images.Preprocessing(size=(SIDE, SIDE))
    )
    pixels = images.read_batch(files, spec)
    augment = pipeline.augmentation(mean=spec.mean, std=spec.std)
    batches = (
        tf.data.Dataset.from_tensor_slices((pixels[training], labels[training]))
        .shuffle(len(files), seed=7)
        .batch(BATCH)
        .map(lambda x, y: (augment(x, training=True), y), num_parallel_calls=2, deterministic=True)
        .prefetch(2)
    )
    model = cnn.build((SIDE, SIDE, 1), len(phantom.CLASSES))
    cnn.compile_classifier(model, decay_steps=EPOCHS * len(batches))
    model.fit(batches, epochs=EPOCHS, verbose=0)
    found = model.predict(pixels[~training], verbose=0).argmax(1)
    accuracy = np.mean(found == labels[~training])
    assert 0.9 < accuracy < 1
