"""Labels that were planted wrong come first."""

import numpy as np
import pytest

from lungkit.clinic.learning import doubts
from lungkit.clinic.learning.confident import doubtful
from lungkit.clinic.learning.reviews import Asked


def simulated(rng, images=600, classes=3, sharpness=3.0, wrong=0.08):
    """Probabilities of a good model, labels with faults, and which those are."""
    truth = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), truth] += sharpness
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    planted = rng.random(images) < wrong
    return probabilities, np.where(planted, (truth + rng.integers(1, classes, images)) % classes, truth), planted


def test_planted_faults_are_found_and_come_first():
    for seed in range(5):
        probabilities, labels, planted = simulated(np.random.default_rng(seed))
        found = [at for at, _ in doubtful(probabilities, labels)]
        assert planted[found].sum() / planted.sum() > 0.5
        assert planted[found[: planted.sum() // 2]].mean() > 0.95
        assert planted[found].mean() > 5 * planted.mean()


def test_a_class_that_the_model_likes_in_general_is_no_doubt_by_itself():
    # The model says 0.6 for class 0 on all images: only those where it says more than usual are in doubt.
    probabilities = np.array([[0.6, 0.4]] * 50 + [[0.6, 0.4]] * 50)
    probabilities[:50, 0], probabilities[:50, 1] = 0.9, 0.1
    labels = np.array([0] * 50 + [1] * 50)
    assert doubtful(probabilities, labels) == []


def test_a_class_that_no_label_has_is_no_doubt():
    assert doubtful(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 0])) == []


@pytest.mark.parametrize("shown", [True, False])
def test_the_readings_with_doubtful_labels_are_named(store, reviewed, shown):
    for _ in range(4):
        reviewed("Pneumonia", probability=0.95, shown=shown)
        reviewed("Normal", label="Normal", probability=0.95)
    wrong = reviewed("Normal", probability=0.97, shown=shown)
    reviewed("Normal", "Pneumonia", probability=0.99)  # readers differ: a third one looks anyway
    found, images = doubts.of_records(store, Asked())
    assert images == 9
    assert [(one.reading_id, one.label, one.looks_like) for one in found] == [(wrong, "Normal", "Pneumonia")]
    assert doubts.of_records(store, Asked(model="none")) == ([], 0)
