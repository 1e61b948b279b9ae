"""What the images of a training set have in common, and how far a new one may be from it (lungkit.models.input_checks).

References are fitted on training images, limits chosen on validation images, so that few of these are flagged.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.covariance import LedoitWolf

from lungkit.data import dataset, images, preprocess
from lungkit.models import input_checks
from lungkit.models.card import CheckLimits
from lungkit.training import recipes

MOST_IMAGES = 2000  # of the training set that are looked at
QUANTILE = 0.98  # of the validation images' distances …
ALLOWANCE = 1.1  # … and what a limit lies above it: new patients differ from those of the validation set
FLOORS = {"kind": 1e-3, "intensity": 0.02}  # smallest scale of a feature; 0.02: two hundredths from black to white
MOST_DIRECTIONS = 128  # of a covariance that are kept
_BATCH = 64


def cut_off(files: Sequence[Path], spec: preprocess.Preprocessing) -> tuple[float, float]:
    """The mean shares of a picture that its window makes black, and white, where it had greys before."""
    shares = []
    for file in files:
        image = images.read(file)
        shown, pixels = preprocess.windowed(image, spec), image.pixels
        shares.append(
            [np.mean((shown <= 0) & (pixels > pixels.min())), np.mean((shown >= 1) & (pixels < pixels.max()))]
        )
    black, white = np.mean(shares, axis=0)
    return float(black), float(white)


def fit(
    data: dataset.Dataset, spec: preprocess.Preprocessing, embed: Callable[[np.ndarray], np.ndarray], seed: int = 7
) -> tuple[dict[str, input_checks.Reference], CheckLimits]:
    """The references for a version, and the limits for its card.

    embed: images (n, height, width, 1) to embeddings (n, channels).
    """
    files, labels = data.files("train"), data.labels("train")
    if len(files) > MOST_IMAGES:
        some = np.sort(np.random.default_rng(seed).choice(len(files), MOST_IMAGES, replace=False))
        files, labels = [files[i] for i in some], labels[some]
    (train, units), (validation, other_units) = (_look(some, spec, embed) for some in (files, data.files("val")))
    units |= other_units
    one_group = np.zeros(len(files), int)
    references = {
        name: reference(train[name], groups, FLOORS[name])
        for name, groups in (("kind", labels), ("intensity", one_group))
    }
    distances = {name: reference.distance(validation[name]) for name, reference in references.items()}
    limits = {name: ALLOWANCE * float(np.quantile(of, QUANTILE, method="higher")) for name, of in distances.items()}
    flagged = np.any([distances[name] > limits[name] for name in references], axis=0)
    sides = data.manifest[data.manifest["split"].isin(["train", "val"])][["width", "height"]].to_numpy()
    return references, CheckLimits(
        kind=limits["kind"],
        intensity=limits["intensity"],
        size=int(min(sides.min(), *spec.size)),
        units=units.pop() if len(units) == 1 else None,
        flagged=float(flagged.mean()),
        chosen_on="validation",
        n=len(flagged),
        fitted_on=len(files),
    )


def modality(data: dataset.Dataset) -> str:
    """ "CT", "X-ray" or "MRI" where every image for training says so, otherwise "image"."""
    stated = {recipes.modality_name(text) for text in data.part("train")["modality"]}
    return stated.pop() if len(stated) == 1 and stated <= {"CT", "X-ray", "MRI"} else "image"


def _look(
    files: Sequence[Path], spec: preprocess.Preprocessing, embed: Callable[[np.ndarray], np.ndarray]
) -> tuple[dict[str, np.ndarray], set[str]]:
    """Features of the images, (n, …) by check, and the units that they came in."""
    kind: list[np.ndarray] = []
    intensity: list[np.ndarray] = []
    units: set[str] = set()
    everything = preprocess.prepared(files, spec)
    while batch := list(itertools.islice(everything, _BATCH)):
        tensors = [image.tensor for image in batch]
        kind.append(input_checks.embedding_features(embed(np.stack(tensors))))
        intensity += [input_checks.intensity_features(tensor, spec) for tensor in tensors]
        units.update(image.units for image in batch)
    return {"kind": np.concatenate(kind), "intensity": np.stack(intensity)}, units


def reference(features: np.ndarray, groups: np.ndarray, floor: float) -> input_checks.Reference:
    """Means of the groups and one covariance within them, shrunk (Ledoit and Wolf 2004), in its leading directions."""
    names, group = np.unique(groups, return_inverse=True)
    means = np.stack([features[groups == name].mean(axis=0) for name in names])
    apart = features - means[group]
    scale = np.maximum(apart.std(axis=0), floor)
    shrunk = LedoitWolf(assume_centered=True, store_precision=False).fit(apart / scale)
    variances, directions = np.linalg.eigh(shrunk.covariance_)  # ascending
    small, large = variances[:-MOST_DIRECTIONS], variances[-MOST_DIRECTIONS:]
    rest = 1 / np.mean(1 / small) if len(small) else variances[0]
    return input_checks.Reference(means, scale, directions.T[-MOST_DIRECTIONS:], large, np.float64(rest))
