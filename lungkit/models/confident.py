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


def expected_if_right(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """How many doubts to expect if every label is right: right labels of difficult images look wrong too.

    If the probabilities are calibrated, a right label is class k with the probability of k. So an image that looks like
    a class is a doubt with the probability that its right label is another one, and the sum over images is the number.
    More doubts than that are evidence of wrong labels. As many are no evidence against them: probabilities that were
    learned from labels with faults are less certain, and so this number is larger, up to the number of doubts itself.
    Numbers alone cannot tell faults that are spread at random from difficult images; a person who looks can.
    """
    looks_like, sure = _looks_like(probabilities, labels)
    return float((1 - probabilities[np.arange(len(labels)), looks_like])[sure].sum())


def _looks_like(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most probable confident class of each image, and whether it has one: int and bool (images,)."""
    thresholds = np.array([
        probabilities[labels == k, k].mean() if (labels == k).any() else np.inf
        for k in range(probabilities.shape[1])
    ])  # fmt: skip
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    return confident.argmax(axis=1), np.isfinite(confident.max(axis=1))
