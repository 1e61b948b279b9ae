"""Does an image look like those a version was trained on? Distances to what its training images had in common.

Two of them, each a Mahalanobis distance with a shrunk covariance, per root of the number of features (about 1 for a
training image), fitted by lungkit.training.input_statistics and applied here with numpy alone:

- kind: of the model's embedding, to the nearest class (Lee et al., "A simple unified framework for detecting
  out-of-distribution samples", NeurIPS 2018). What the image shows.
- intensity: of brightness, contrast, empty and saturated parts and sharpness of the preprocessed image.

Of a version that looks for lungs first, also: are they there, and whole? And does the image lie as it should?
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lungkit.data import turning
from lungkit.data.image import placed
from lungkit.data.preprocess import Preprocessing

FILE = "checks.npz"
LEAST_LUNG = 0.04  # share of the picture
LEAST_SECOND = 0.2  # area of the second largest part, over that of the largest
ORIENTATIONS = turning.LIES
AS_FILE_SAYS = "as its file says"
NOT_AXIAL = f"this slice is not axial, {AS_FILE_SAYS}"
MOST_TURNED = 0.5  # probability
MOST_MIRRORED = 0.8  # which is harder to see: the least with false alarms under 1 % of validation images
MIRRORED_TOO = 0.98  # of a turned image: a proposal to mirror it as well should be sure
MOST_AT_EDGE = 0.5  # length of the lungs' border on the picture's edge, over the square root of their area
_LEVELS = np.arange(256) / 255
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # the brightness below which these shares of a picture lie


@dataclass(frozen=True, eq=False)
class Reference:
    """What the training images had in common, in some features.

    The covariance within the groups is kept as its leading directions, and as one variance for what is orthogonal to
    them: a shrunk covariance hardly tells those apart, and a thousand features would take megabytes otherwise.
    """

    means: np.ndarray  # (groups, features)
    scale: np.ndarray  # (features,): what a feature is divided by
    directions: np.ndarray  # (kept, features), orthonormal, of the scaled features
    variances: np.ndarray  # (kept,) along them
    rest: float  # the variance along everything else

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Of features (n, features) to the nearest group: float64 (n,)."""
        apart = (np.asarray(features, np.float64)[:, None] - self.means) / self.scale  # (n, groups, features)
        # einsum, not @: the threads of a matrix product would take the processors from the graph's.
        along = np.einsum("ngf,kf->ngk", apart, self.directions)
        squared = (along**2) @ (1 / self.variances - 1 / self.rest) + (apart**2).sum(axis=-1) / self.rest
        return np.sqrt(squared.min(axis=1) / len(self.scale))


def embedding_features(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (n, channels) with the long tails of averaged ReLU maps shortened."""
    return np.sign(embeddings) * np.sqrt(np.abs(embeddings))


def intensity_features(tensor: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """A preprocessed image (height, width, 1) in nine numbers, all on the scale of 0..1: float64 (9,)."""
    picture = tensor[..., 0] * np.float32(spec.std) + np.float32(spec.mean)
    levels = np.bincount((picture * 255 + 0.5).astype(np.uint8).ravel(), minlength=256)
    below = np.cumsum(levels) / picture.size
    mean, squares = levels @ _LEVELS / picture.size, levels @ _LEVELS**2 / picture.size
    steps = sum(float(np.abs(np.diff(picture, axis=axis)).mean()) for axis in (0, 1))
    return np.array(
        [
            *_LEVELS[np.searchsorted(below, _SHARES)],
            np.sqrt(np.maximum(0.0, squares - mean**2)),
            below[5],  # the share of black
            1 - below[249],  # of white
            np.log(steps + 1e-3) / 5,  # of 0.001 to 1
        ]
    )


def lungs_seen(lung: np.ndarray, shape: tuple[int, int], modality: str) -> tuple[float, bool, str]:
    """What a version finds of the lungs: their share of the picture, whether that will do, and words for the clinician.

    lung: (h, w), the graph's output "lungs". shape: of the image, (height, width), which lies in it with bars.
    An X-ray shows two lungs; a CT slice may show one, or both as one.
    """
    from scipy import ndimage  # processes that only decode import this module as well

    seen = lung[placed(shape, lung.shape)] > 0.5
    pieces, count = ndimage.label(seen)
    sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1] / seen.size if count else np.zeros(1)
    share = float(seen.mean())
    if share < LEAST_LUNG:
        return share, False, "no lungs were found in this image"
    if modality == "X-ray" and (len(sizes) < 2 or sizes[1] < LEAST_SECOND * sizes[0]):
        return share, False, "two separate lungs were not found in this image"
    edges = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
    if edges.sum() > MOST_AT_EDGE * np.sqrt(seen.sum()):
        return share, False, "the lungs reach the edge of this image: a part of them may be cut off"
    return share, True, "both lungs were found, and are whole" if modality == "X-ray" else "lungs were found"


def orientation(
    probabilities: np.ndarray | None, stated: str = "", modality: str = "X-ray"
) -> tuple[float, float, str] | None:
    """How an image lies: the probability that it does not lie upright, the most that will do, and words.

    probabilities: (8,), of ORIENTATIONS; the graph's output "orientation", where there is one. stated: DICOM's
    PatientOrientation; an image that does not lie upright by one of the two is not upright. modality: of the version;
    of an X-ray or a CT slice the header counts. None where neither says anything.
    """
    if modality == "CT" and stated and turning.stated(stated, axial=True) is None:
        return 1.0, MOST_TURNED, NOT_AXIAL
    by_header = turning.stated(stated, axial=modality == "CT") if modality in ("CT", "X-ray") else None
    seen = None if probabilities is None else seen_orientation(probabilities)
    if seen and seen[0] > seen[1]:
        also = "" if by_header is None else f" (its file says: {turning.lie_words(by_header)})"
        return *seen[:2], f"{seen[2]}{also}"
    if by_header not in (None, turning.UPRIGHT):
        lies = turning.lie_words(by_header)
        return 1.0, MOST_TURNED, f"this image is {lies}, {AS_FILE_SAYS}: turn it upright"
    return seen


def seen_orientation(probabilities: np.ndarray) -> tuple[float, float, str]:
    """As `orientation`, by the pixels alone."""
    likely = np.asarray(probabilities, np.float64).reshape(2, 4)  # mirrored or not, quarters
    by_quarters, mirrored = likely.sum(axis=0), float(likely[1].sum())
    turned = float(by_quarters[1:].sum())
    if turned > MOST_TURNED:
        lies = turning.lie_words((mirrored > MIRRORED_TOO, 1 + int(by_quarters[1:].argmax())))
        return turned, MOST_TURNED, f"this image is {lies}: turn it upright"
    if mirrored > MOST_MIRRORED:
        return mirrored, MOST_MIRRORED, "this image looks mirrored: left and right may be exchanged"
    return turned, MOST_TURNED, "the image is upright"


def save(folder: Path, references: dict[str, Reference]) -> None:
    """Write checks.npz: a reference for "kind" and one for "intensity"."""
    arrays: dict[str, Any] = {
        f"{name}_{part.name}": np.asarray(getattr(reference, part.name), np.float32)
        for name, reference in references.items()
        for part in fields(Reference)
    }
    np.savez(folder / FILE, **arrays)


def load(folder: Path) -> dict[str, Reference]:
    """What `save` wrote."""
    with np.load(folder / FILE, allow_pickle=False) as arrays:
        return {
            name: Reference(*(arrays[f"{name}_{part.name}"].astype(np.float64) for part in fields(Reference)))
            for name in ("kind", "intensity")
        }
