"""How often the tests of lungkit.training.paired call two equal models different: their size at 5 %.

    python -m bench.pairs

Scores are normal with a variance of 1 in each class, and two models of one AUC and one accuracy. Images of a patient
share a part of the variance, half of that part between the models, too. Both tests are shown by patient, and as if each
image were a patient. Chance makes the table, and --seed draws another one.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from lungkit import terminal
from lungkit.training.paired import auc_test, decision_test

APART = 1.2  # standard deviations between the classes: an AUC of 0.80
PATIENTS = (20, 40, 100)
# In words, the numbers of images that a patient can have, whether of one class, and the shared variance of both models.
SCENARIOS = (
    ("1 image each", (1,), True, (0.5, 0.5)),
    ("4 images each, of one class", (4,), True, (0.5, 0.5)),
    ("4 images each, of either class", (4,), False, (0.5, 0.5)),
    ("1, 2, 3 or 12 images, of one class", (1, 2, 3, 12), True, (0.5, 0.5)),
    ("4 images each; one model's errors gather in few patients", (4,), True, (0.9, 0.1)),
)
LEVEL = 0.05


def drawn(
    rng: np.random.Generator, people: int, images: tuple[int, ...], one_class: bool, shared: tuple[float, float]
) -> tuple[float, float, float, float]:
    """p of AUC by patient and by image, and of decisions by patient and by image, for one draw of equal models."""
    patient = np.repeat(np.arange(people), rng.choice(images, people))
    sick = patient % 2 if one_class else rng.integers(0, 2, len(patient))
    both = rng.normal(size=people)
    scores = [_scored(rng, sick, patient, both, share) for share in shared]
    right = [(of > APART / 2) == sick for of in scores]
    alone = np.arange(len(patient))
    aucs = (auc_test(sick, *scores, patients) for patients in (patient, alone))
    return (*aucs, *(decision_test(*right, patients) for patients in (patient, alone)))


def _scored(
    rng: np.random.Generator, sick: np.ndarray, patient: np.ndarray, both: np.ndarray, share: float
) -> np.ndarray:
    own = (both + rng.normal(size=len(both)))[patient] / np.sqrt(2)
    return APART * sick + np.sqrt(share) * own + np.sqrt(1 - share) * rng.normal(size=len(sick))


def _sizes(scenario: tuple, people: int, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, people, SCENARIOS.index(scenario)])
    return np.mean(np.array([drawn(rng, people, *scenario[1:]) for _ in range(draws)]) < LEVEL, axis=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2000, help="of each row")
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    rows = [(scenario, people) for scenario in SCENARIOS for people in PATIENTS]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(_sizes, draws=asked.draws, seed=asked.seed), *zip(*rows, strict=True)))
    columns = ("images of a patient", "patients", "AUC", "AUC, by image", "decisions", "decisions, by image")
    texts = [(row[0], people, *(f"{size:.1%}" for size in of)) for (row, people), of in zip(rows, found, strict=True)]
    terminal.table(columns, texts, f"called different at {LEVEL:.0%}, of {asked.draws:,} draws each")


if __name__ == "__main__":
    main()
