"""What a Keras model answers."""

from lungkit.backend import keras

import numpy as np

from lungkit.models.rule import DecisionRule
from lungkit.training import release


def probabilities(model: keras.Model, tensors: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities float64 (n, classes) of images (n, height, width, 1)."""
    return DecisionRule(kind="argmax", temperature=temperature).calibrate(release.logits(model, tensors))
