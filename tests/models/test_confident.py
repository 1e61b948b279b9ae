"""Labels that were planted wrong come first."""

import numpy as np

from lungkit.models import confident
from lungkit.models.confident import doubtful


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


def drawn_labels(rng, images=400, classes=3):
    """Probabilities, and labels that are right: each drawn with the probabilities of its image."""
    logits = 2 * rng.normal(size=(images, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, (probabilities.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)


def test_as_many_doubts_are_expected_as_right_labels_of_difficult_images_cause():
    found, expected = [], []
    for seed in range(200):
        probabilities, labels = drawn_labels(np.random.default_rng(seed))
        found.append(len(doubtful(probabilities, labels)))
        expected.append(confident.expected_if_right(probabilities, labels))
    assert np.mean(found) > 15
    assert abs(np.mean(found) / np.mean(expected) - 1) < 0.05


def test_faults_are_more_doubts_than_right_labels_cause_if_the_model_did_not_learn_from_them():
    probabilities, labels, planted = simulated(np.random.default_rng(1), images=2000)
    probabilities = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)  # calibrated: means are 3 apart
    more = len(doubtful(probabilities, labels)) - confident.expected_if_right(probabilities, labels)
    assert 0.6 * planted.sum() < more < planted.sum()


def test_only_images_with_a_confident_class_are_expected_to_be_doubts():
    assert confident.expected_if_right(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])) == 0.1 + (1 - 0.8)
    assert confident.expected_if_right(np.array([[0.4, 0.6], [0.8, 0.2]]), np.array([0, 0])) == 1 - 0.8
