"""Linear heads on the features of a frozen network: the features are computed once, heads are fitted many times."""

from collections.abc import Sequence
from dataclasses import dataclass

from lungkit.backend import keras

import numpy as np
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from lungkit.data import preprocess
from lungkit.data.dataset import Dataset
from lungkit.errors import LungkitError
from lungkit.models import backbones
from lungkit.training import pipeline

PENALTIES = (1e4, 1e3, 1e2, 1e1, 1e0)  # of the squared kernel, on standardised features
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Head:
    """A dense layer that gives logits."""

    kernel: np.ndarray  # (width, classes)
    bias: np.ndarray  # (classes,)
    penalty: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """float64 (n, classes), of features (n, width)."""
        return features @ self.kernel + self.bias

    def loss(self, features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
        """The mean log loss of images (n, width) with labels (n,) and weights (n,)."""
        of_truth = log_softmax(self.logits(features), axis=1)[np.arange(len(labels)), labels]
        return float(-np.average(of_truth, weights=weights))


def fitted(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> list[Head]:
    """Logistic regressions on features (n, width), one for each penalty; labels (n,), weights (n,) of the images.

    The features are brought to unit spread by these images alone, but not what varies least. LungkitError where the
    images are all of one class.
    """
    if len(np.unique(labels)) < 2:
        raise LungkitError("all training images are of one class: a head needs images of two or more")
    middle, spread = features.mean(axis=0), features.std(axis=0)
    # A feature that hardly varies would otherwise be blown up, and with it what fine-tuning changes in it.
    spread = np.maximum(spread, np.median(spread) + 1e-6)
    standard = (features - middle) / spread
    heads = []
    for penalty in penalties:
        one = LogisticRegression(C=1 / penalty, max_iter=300).fit(standard, labels, weights)
        coefficients, bias = one.coef_, one.intercept_
        if len(one.classes_) == 2:  # scikit-learn keeps the difference of two classes
            coefficients, bias = np.concatenate([-coefficients, coefficients]) / 2, np.array([-bias[0], bias[0]]) / 2
        kernel = (coefficients / spread).T
        heads.append(Head(kernel, bias - middle @ kernel, penalty))
    return heads


def least_loss(heads: Sequence[Head], features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Head:
    """The head with the lowest log loss on validation images."""
    return min(heads, key=lambda head: head.loss(features, labels, weights))


def frozen_features(data: Dataset, side: int, *, copies: int, until: str = "stage3", seed: int = 7) -> np.ndarray:
    """What EfficientNet-Lite0 with its ImageNet weights sees in every image: float32 (1 + copies, images, width).

    First the images as they are, fitted into a square of `side` pixels, then varied copies of them (pipeline's mild
    augmentation). No figure of the images enters: greys 0..1 are scaled as the network's own training scaled them.
    until: as in backbones.build.
    """
    spec = preprocess.Preprocessing(size=(side, side))
    greys = preprocess.read_batch(data.files(), spec, label="images")
    network = backbones.build("efficientnet_lite0", (side, side, 1), len(data.classes), until=until)
    seen = keras.Model(network.input, network.get_layer("embedding").output)
    vary = pipeline.augmentation(seed=seed)
    parts = [greys[start : start + _BATCH] for start in range(0, len(greys), _BATCH)]
    versions = [greys]
    for copy in range(copies):
        varied = (vary(part, key=pipeline.derived(copy, number)) for number, part in enumerate(parts))
        versions.append(np.concatenate([keras.ops.convert_to_numpy(part) for part in varied]))
    return np.stack([seen.predict(images, batch_size=64, verbose=0) for images in versions])
