"""Does an image look like those a version was trained on? Distances to what its training images had in common.

Two of them, each a Mahalanobis distance with a shrunk covariance, per root of the number of features (about 1 for a
training image), fitted by lungkit.training.input_statistics and applied here with numpy alone:

- kind: of the model's embedding, to the nearest class (Lee et al., "A simple unified framework for detecting
  out-of-distribution samples", NeurIPS 2018). What the image shows.
- intensity: of brightness, contrast, empty and saturated parts and sharpness of the preprocessed image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.data.images import Preprocessing

FILE = "checks.npz"


@dataclass(frozen=True, eq=False)
class Reference:
    """What the training images had in common, in some features."""

    means: np.ndarray  # (groups, features)
    scale: np.ndarray  # (features,): what a feature is divided by
    precision: np.ndarray  # (features, features), of the scaled features within the groups

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Of features (n, features) to the nearest group: float64 (n,)."""
        apart = (np.asarray(features, np.float64)[:, None] - self.means) / self.scale  # (n, groups, features)
        squared = np.einsum("ngf,ngf->ng", apart @ self.precision.astype(np.float64), apart)
        return np.sqrt(squared.min(axis=1) / len(self.scale))


def embedding_features(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (n, channels) with the long tails that averages of ReLU maps have drawn in."""
    return np.sign(embeddings) * np.sqrt(np.abs(embeddings))


def intensity_features(tensors: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """Preprocessed images (n, height, width, 1) in nine numbers each, all on the scale of 0..1: float64 (n, 9)."""
    pictures = tensors[..., 0] * np.float32(spec.std) + np.float32(spec.mean)
    values = pictures.reshape(len(pictures), -1)
    steps = sum(np.abs(np.diff(pictures, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    return np.column_stack(
        [
            *np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1),
            values.std(axis=1),
            (values < 0.02).mean(axis=1),
            (values > 0.98).mean(axis=1),
            np.log(steps + 1e-3) / 5,  # of 0.001 to 1
        ]
    ).astype(np.float64)


def save(folder: Path, references: dict[str, Reference]) -> None:
    """Write checks.npz: a reference for "kind" and one for "intensity"."""
    arrays = {
        f"{name}_{part}": np.asarray(getattr(reference, part), np.float32)
        for name, reference in references.items()
        for part in ("means", "scale", "precision")
    }
    np.savez(folder / FILE, **arrays)


def load(folder: Path) -> dict[str, Reference]:
    """What `save` wrote."""
    with np.load(folder / FILE, allow_pickle=False) as arrays:
        return {
            name: Reference(*(arrays[f"{name}_{part}"] for part in ("means", "scale", "precision")))
            for name in ("kind", "intensity")
        }
