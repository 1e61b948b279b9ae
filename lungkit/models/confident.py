"""Labels that look wrong, after Northcutt, Jiang, Chuang, "Confident learning" (JAIR 2021).

A class counts as confident where its probability reaches the mean that it has on images with its label. An image is
in doubt if another class than its label is confident, and the more so the further that class is ahead. The
probabilities have to come from a model that did not learn from these labels, as those of the clinic do, or those of a
cross-validation by patient.
"""

import numpy as np


def doubtful(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """The images whose label looks wrong, the most doubtful first, each with the class that it looks like.

    probabilities: (images, classes). labels: class numbers (images,).
    """
    looks_like, sure = _looks_like(probabilities, labels)
    found = np.flatnonzero(sure & (looks_like != labels))
    behind = probabilities[found, looks_like[found]] - probabilities[found, labels[found]]
    order = found[np.argsort(-behind, kind="stable")]
    return [(int(at), int(looks_like[at])) for at in order]


def false_alarms(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many doubts there would be if every label were right: float64 (doubts,), up to and with each of `doubtful`.

    Right labels of difficult images look wrong too. If the probabilities are calibrated, a right label is class k with
    the probability of k, so the number of doubts that are at least as strong has an expected value: the sum, over all
    images, of the probabilities of the labels that would be such a doubt. The last value is the number to expect among
    all doubts. Wrong labels make the probabilities less certain, and with them this number larger.
    """
    looks_like, sure = _looks_like(probabilities, labels)
    images = np.arange(len(labels))
    ahead = probabilities[images, looks_like][:, None] - probabilities
    would = sure[:, None] & (np.arange(probabilities.shape[1]) != looks_like[:, None])
    strength, chance = ahead[would], probabilities[would]
    order = np.argsort(-strength, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(chance[order])])
    behind = np.array([ahead[at, labels[at]] for at, _ in doubtful(probabilities, labels)])
    return total[np.searchsorted(-strength[order], -behind, side="right")]


def _looks_like(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most probable confident class of each image, and whether it has one: int and bool (images,)."""
    thresholds = np.array([
        probabilities[labels == k, k].mean() if (labels == k).any() else np.inf
        for k in range(probabilities.shape[1])
    ])  # fmt: skip
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    return confident.argmax(axis=1), np.isfinite(confident.max(axis=1))
