"""Labels that look wrong, after Northcutt, Jiang, Chuang, "Confident learning" (JAIR 2021).

A class counts as confident where its probability reaches the mean that it has on images with its label. An image is
in doubt if another class than its label is confident, and the more so the further that class is ahead. The
probabilities have to come from a model that did not learn from these labels, as those of the clinic do.
"""

import numpy as np


def doubtful(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """The images whose label looks wrong, the most doubtful first, each with the class that it looks like.

    probabilities: (images, classes). labels: class numbers (images,).
    """
    thresholds = np.array([
        probabilities[labels == k, k].mean() if (labels == k).any() else np.inf
        for k in range(probabilities.shape[1])
    ])  # fmt: skip
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    looks_like = confident.argmax(axis=1)
    found = np.flatnonzero(np.isfinite(confident.max(axis=1)) & (looks_like != labels))
    behind = probabilities[found, looks_like[found]] - probabilities[found, labels[found]]
    order = found[np.argsort(-behind, kind="stable")]
    return [(int(at), int(looks_like[at])) for at in order]
