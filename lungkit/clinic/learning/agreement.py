"""How far readers agree: Cohen's and Fleiss' kappa, with intervals from drawing patients.

Cohen, "A coefficient of agreement for nominal scales" (1960). Fleiss, "Measuring nominal scale agreement among many
raters" (1971), in the form for images with different numbers of readers of Gwet, "Handbook of inter-rater
reliability" (2014): an image with one reader is left out. Images of one patient resemble each other, so the bootstrap
draws patients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

DRAWS = 2000
_MOST_UNDEFINED = 0.05  # of the draws; with more, an interval would be that of the others only


@dataclass(frozen=True)
class Kappa:
    """Agreement beyond chance: 1 is complete, 0 that of chance.

    value: None where all labels are of one class, as chance then agrees too. low, high: 95 %, by patient; None where
    the draws do not vary (readers who never differ) or are mostly undefined.
    """

    images: int
    patients: int
    agreed: float  # share of pairs of readers that give the same label
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """cohen: by pair of readers who labelled the same images; fleiss: of all readers, None without such images."""

    cohen: dict[tuple[int, int], Kappa]
    fleiss: Kappa | None


def agreement(ratings: Sequence[Mapping[int, str]], patients: Sequence[str], seed: int = 7) -> Agreement:
    """The agreement of readers. ratings: of each image, the reader to the label. patients: of each image."""
    classes = sorted({label for image in ratings for label in image.values()})
    readers = sorted({reader for image in ratings for reader in image})
    cohen = {}
    for pair in combinations(readers, 2):
        both = [i for i, image in enumerate(ratings) if image.keys() >= set(pair)]
        if both:
            codes = np.array([[classes.index(ratings[i][reader]) for reader in pair] for i in both])
            cohen[pair] = cohen_kappa(codes, len(classes), [patients[i] for i in both], seed)
    several = [i for i, image in enumerate(ratings) if len(image) > 1]
    if not several:
        return Agreement({}, None)
    counts = np.array([[list(ratings[i].values()).count(name) for name in classes] for i in several])
    return Agreement(cohen, fleiss_kappa(counts, [patients[i] for i in several], seed))


def cohen_kappa(codes: np.ndarray, classes: int, patients: Sequence[str], seed: int = 7) -> Kappa:
    """Of two readers. codes: class numbers (images, 2). patients: of each image."""
    confusion = np.zeros((len(codes), classes, classes))
    confusion[np.arange(len(codes)), codes[:, 0], codes[:, 1]] = 1
    return _kappa(confusion.reshape(len(codes), -1), patients, seed, lambda sums: _cohen(sums, classes))


def fleiss_kappa(counts: np.ndarray, patients: Sequence[str], seed: int = 7) -> Kappa:
    """Of two readers or more. counts: (images, classes), how many readers gave each class; two or more an image."""
    readers = counts.sum(axis=1, keepdims=True)
    agreed = (counts * (counts - 1)).sum(axis=1, keepdims=True) / (readers * (readers - 1))
    return _kappa(np.hstack([agreed, counts / readers]), patients, seed, _fleiss)


_Shares = tuple[np.ndarray, np.ndarray]  # agreement observed, and that of chance


def _cohen(sums: np.ndarray, classes: int) -> _Shares:
    shares = (sums / sums.sum(axis=-1, keepdims=True)).reshape(*sums.shape[:-1], classes, classes)
    by_chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    return np.trace(shares, axis1=-2, axis2=-1), by_chance


def _fleiss(sums: np.ndarray) -> _Shares:
    images = sums[..., 1:].sum(axis=-1)
    return sums[..., 0] / images, ((sums[..., 1:] / images[..., None]) ** 2).sum(axis=-1)


def _kappa(per_image: np.ndarray, patients: Sequence[str], seed: int, shares: Callable[[np.ndarray], _Shares]) -> Kappa:
    """From values of each image whose sums over images give the shares."""
    names, of_image = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.zeros((len(names), per_image.shape[1]))
    np.add.at(sums, of_image, per_image)
    observed, expected = shares(sums.sum(axis=0))
    value = None if expected > 1 - 1e-12 else float((observed - expected) / (1 - expected))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    observed_in, expected_in = shares(drawn @ sums)
    usable = expected_in < 1 - 1e-12
    kappas = (observed_in[usable] - expected_in[usable]) / (1 - expected_in[usable])
    low = high = None
    if value is not None and usable.mean() >= 1 - _MOST_UNDEFINED and np.ptp(kappas) > 1e-12:
        low, high = map(float, np.quantile(kappas, (0.025, 0.975)))
    return Kappa(len(per_image), len(names), float(observed), value, low, high)
