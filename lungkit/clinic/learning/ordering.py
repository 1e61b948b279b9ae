"""Which images to label next, if a model is to learn most from few labels.

Three reasons are combined. The model is unsure of an image (the entropy of its probabilities). The image is unlike
those that the model learned from. And it is unlike those that were labelled, or are before it on the list: otherwise
the list would begin with one patient's neighbouring slices.

The first two are added, each as a place among the images that wait. Their product would put last what a model is
wrongly sure of, as it is when a scanner changes. The third one makes the method that of k-means++ with weights (Arthur
and Vassilvitskii 2007), as Ash et al. use it in BADGE (ICLR 2020), but it takes the largest product each time instead
of drawing by it, and so the list is always the same. Without weights it is the k-centre greedy choice of Sener and
Savarese (ICLR 2018).
"""

import numpy as np


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """How unsure a model is: (n,), 0 where one class is certain, 1 where all are alike. probabilities: (n, classes)."""
    given = np.clip(probabilities, 1e-12, 1)
    return np.asarray(-(given * np.log(given)).sum(axis=1) / np.log(probabilities.shape[1]))


def weights(unsure: np.ndarray, unlike: np.ndarray) -> np.ndarray:
    """How much each image would teach, (n,) above 0 to 1: the mean of its places in both, (n,) of any scale."""
    return np.asarray((_place(unsure) + _place(unlike)) / 2)


def _place(values: np.ndarray) -> np.ndarray:
    """The share of values that are no larger, those that are the same counted half."""
    ordered = np.sort(values)
    sides = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2 * len(values)))


def spread(weight: np.ndarray, features: np.ndarray, labelled: np.ndarray, most: int) -> np.ndarray:
    """Positions of at most `most` images, the one to label first at the front.

    Each is the one with the largest product of its weight and its squared distance to the nearest image that was
    labelled or is before it. weight: (n,), 0 or more. features: (n, f). labelled: (m, f), m may be 0.
    """
    scale = features.std(axis=0) if len(features) > 1 else np.ones(features.shape[1])
    scale = np.where(scale > 1e-12, scale, 1.0)
    own = features / scale
    nearest = np.full(len(own), np.inf)
    for one in labelled / scale:
        nearest = np.minimum(nearest, ((own - one) ** 2).sum(axis=1))
    left, chosen = np.ones(len(own), bool), []
    for _ in range(min(most, len(own))):
        product = weight * np.where(np.isfinite(nearest), nearest, 1.0)
        # Where nothing is far from anything, the weight alone decides.
        value = product if (product[left] > 0).any() else weight
        at = int(np.where(left, value, -np.inf).argmax())
        chosen.append(at)
        left[at] = False
        nearest = np.minimum(nearest, ((own - own[at]) ** 2).sum(axis=1))
    return np.array(chosen, int)
