"""How should a CT series be read from its slices? Ways of pooling, on phantoms with lesions in few slices.

python -m bench.series [STUDIES] reads phantom studies of 24 slices with the shipped ct-infection. In sick ones, 8 to
50 % of the length has lesions. The way is chosen on the first half of the studies; the second half is the test.
"""

import sys
from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from lungkit import progress
from lungkit.clinic.predictor import ModelPool, Predictor
from lungkit.data import phantom, preprocess
from lungkit.data.image import Image
from lungkit.data.phantom.anatomy import LENGTH_MM
from lungkit.models import pooling
from lungkit.training.evaluation import mean_with_interval

SLICES, SEED = 24, 4242
Way = Callable[[np.ndarray], np.ndarray]  # (slices, classes) to (classes,)


def study(number: int, predictor: Predictor) -> np.ndarray:
    """Probabilities (slices, classes) of a study's slices; its class is `number` modulo 3."""
    rng = np.random.default_rng(number)
    share = rng.uniform(0.08, 0.5)
    start = rng.uniform(0, 1 - share)
    affected = start * LENGTH_MM, (start + share) * LENGTH_MM
    cuts = phantom.make_patient(f"S{number:04}", phantom.CLASSES[number % 3], SEED, SLICES, 224, affected)
    images = [Image(cut.hu.astype(np.float32), "HU", "CT", cut.patient_id, {}) for cut in cuts]
    tensors = np.stack([preprocess.prepare(image, predictor.spec).tensor for image in images])
    return np.concatenate([predictor.graph(tensors[at : at + 8])["probabilities"] for at in range(0, SLICES, 8)])


def least_normal(share: float) -> Way:
    """The mean over this share of the slices, as lungkit does it."""
    return lambda rows: rows[pooling.carrying(rows, 0, share)].mean(0)


def noisy_or(rows: np.ndarray) -> np.ndarray:
    """As if each slice were its own, independent witness of a disease."""
    none = np.prod(np.clip(rows[:, 0].astype(np.float64), 1e-6, 1))
    share = rows[:, 1:].sum(0) / rows[:, 1:].sum()
    return np.concatenate([[none], (1 - none) * share])


WAYS: dict[str, Way] = {
    "mean of all slices": lambda rows: rows.mean(0),
    "the least normal slice": least_normal(1 / SLICES),
    "mean of the least normal 12 %": least_normal(0.12),
    "… 17 %": least_normal(0.16),
    "… 25 %": least_normal(0.25),
    "… 33 %": least_normal(0.33),
    "… 50 %": least_normal(0.5),
    "noisy-or": noisy_or,
}


def row(name: str, pooled: np.ndarray, labels: np.ndarray) -> str:
    """A row of the table: macro AUC, accuracy with its interval, specificity and sensitivity."""
    said = pooled.argmax(1)
    right, low, high = mean_with_interval(said == labels, np.arange(len(labels)), share=True)
    auc = roc_auc_score(labels, pooled, multi_class="ovr")
    normal, sick = (said == 0)[labels == 0].mean(), (said != 0)[labels != 0].mean()
    return f"| {name} | {auc:.3f} | {right:.3f} ({low:.3f}–{high:.3f}) | {normal:.2f} | {sick:.2f} |"


def main(studies: int) -> None:
    predictor = ModelPool().get("ct-infection")
    rows = [study(number, predictor) for number in progress.bar(range(studies), label="studies", unit="study")]
    probabilities, labels = np.stack(rows).astype(np.float64), np.arange(studies) % 3
    probabilities /= probabilities.sum(-1, keepdims=True)
    half = studies // 2
    for part, name in ((slice(None, half), "validation"), (slice(half, None), "test")):
        print(f"\n{name}, {len(labels[part])} studies\n")
        print("| a series is | macro AUC | accuracy | specificity | sensitivity |\n|---|--:|---|--:|--:|")
        for way, pool in WAYS.items():
            print(row(way, np.stack([pool(each) for each in probabilities[part]]), labels[part]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120)
