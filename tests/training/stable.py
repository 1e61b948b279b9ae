"""A data set in numbers, with a linear head that learns from it, and learning curves that follow a law."""

from pathlib import Path

import numpy as np
import pandas as pd

from lungkit.data.dataset import Dataset
from lungkit.training import learning_curve
from lungkit.training.learning_curve import Curve
from lungkit.training.stability import LinearHead


def cohort(patients=60, images=2, classes=("Normal", "COVID-19"), sources=1) -> Dataset:
    """So many patients with so many images each; the classes take turns, and every two patients the sources do."""
    owner = np.repeat(np.arange(patients), images)
    rows = pd.DataFrame({"patient_id": [f"p{number:03d}" for number in owner]})
    rows["file"] = [f"{name}-{image % images}.png" for image, name in enumerate(rows["patient_id"])]
    rows["label"] = [classes[number % len(classes)] for number in owner]
    rows["source"] = [f"hospital {number // 2 % sources}" for number in owner]
    rows = rows.assign(split="", sha256="", note="", modality="CT", mask="", width=8, height=8)
    return Dataset("cohort", tuple(classes), rows, Path("cohort"))


def head(data: Dataset, signal=1.0, personal=0.0, copies=2, width=6, seed=1) -> LinearHead:
    """Features: the class (signal), something of each patient that has no use for others (personal), and noise."""
    random, labels = np.random.default_rng(seed), data.labels()
    _, owner = np.unique(data.patients(), return_inverse=True)
    means = signal * np.eye(len(data.classes), width)[labels]
    means += personal * random.normal(size=(owner.max() + 1, width))[owner]
    noise = random.normal(size=(1 + copies, *means.shape))
    return LinearHead((means + noise).astype(np.float32), labels, len(data.classes))


SIZES = np.array([15, 22, 32, 46, 68, 100.0])


def curve(asymptote, scale, exponent, noise=0.0, draws=4, seed=1):
    """A curve that follows the law, with noise of each draw and, in the resamples, of the test patients."""
    random = np.random.default_rng(seed)
    law = asymptote - scale * (SIZES / 100) ** -exponent
    values = law[:, None] + noise * random.normal(size=(len(SIZES), draws))
    chosen = random.integers(draws, size=(learning_curve.RESAMPLES, draws))
    moved = noise * random.normal(size=(learning_curve.RESAMPLES, 1))
    return Curve("auc", SIZES, values, values[:, chosen].mean(axis=2).T + moved)
