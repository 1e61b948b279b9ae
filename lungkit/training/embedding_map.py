"""Where a version sees images: its embedding of each, as a map of two principal components, and what explains the map.

The embedding is what the network's last layer decides on (lungkit.models.graph). Images that lie together look alike to
the network. If the source or the brightness explains the map as well as the label does, the network may be reading that
instead of the disease: a shortcut (Geirhos et al., "Shortcut learning in deep neural networks", Nature Machine
Intelligence 2020).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from lungkit.data import dataset, images, preprocess, splits
from lungkit.errors import LungkitError
from lungkit.models import graph, input_checks, registry
from lungkit.training import evaluation
from lungkit.wording import figure, listed, percents

_BATCH = 8
NEIGHBOURS = 3  # enough to tell one odd picture from a habit, and as many as fit next to an error


@dataclass(frozen=True, eq=False)
class Embedded:
    """A version's embedding of a data set's images.

    rows: of the manifest, numbered from 0, one for each image that could be read. vectors: float64 (n, channels), with
    the long tails of averaged maps shortened (input_checks.embedding_features). brightness: (n,), the mean of the
    picture that the version sees, 0 to 1. unreadable: file and reason.
    """

    version: registry.Version
    data: dataset.Dataset
    rows: pd.DataFrame
    vectors: np.ndarray
    brightness: np.ndarray
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, positions in the data set's classes: int (n,)."""
        return self.rows["label"].map(self.data.classes.index).to_numpy(np.int64)

    @property
    def patients(self) -> np.ndarray:
        """The patient of each image, str (n,)."""
        return self.rows["patient_id"].to_numpy(str)

    def places(self, files: pd.Series) -> np.ndarray:
        """The numbers of the rows of these files: int (m,)."""
        return pd.Index(self.rows["file"]).get_indexer(files)

    def pictures(self, places: ArrayLike) -> np.ndarray:
        """These images as the version sees them, 0 black to 1 white: float32 (m, height, width)."""
        plain = preprocess.Preprocessing.from_dict(
            self.version.card.preprocessing.to_dict() | {"mean": 0.0, "std": 1.0}
        )
        files = [self.data.root / file for file in self.rows["file"].iloc[np.ravel(places)]]
        return preprocess.read_batch(files, plain)[..., 0]


def embed(version: registry.Version, data: dataset.Dataset) -> Embedded:
    """The embedding of every image of the set, each file once; no label is looked at, and nothing is scored."""
    registry.verify(version)
    spec, rows = version.card.preprocessing, data.part().drop_duplicates("file").reset_index(drop=True)
    read = preprocess.prepared_or_refused([data.root / file for file in rows["file"]], spec, label="embedding images")
    runtime = graph.Graph(version.folder, heat=False, many=True)
    refused: dict[int, str] = {}
    brightness: list[float] = []

    def batches() -> Iterator[tuple[None, np.ndarray]]:
        waiting: list[np.ndarray] = []
        for place, one in enumerate(read):
            if isinstance(one, images.ImageRefused):
                refused[place] = f"{one.rule}. {one.remedy}"
                continue
            brightness.append(float(one.tensor.mean()) * spec.std + spec.mean)
            waiting.append(one.tensor)
            if len(waiting) == _BATCH:
                yield None, np.stack(waiting)
                waiting = []
        if waiting:
            yield None, np.stack(waiting)

    vectors = [outputs["embedding"] for _, outputs, _ in runtime.stream(batches())]
    if not vectors:
        raise LungkitError(f"{data.name}: none of {len(rows)} images could be read")
    unreadable = tuple((str(rows["file"][place]), why) for place, why in refused.items())
    kept = rows.drop(index=list(refused)).reset_index(drop=True)
    features = input_checks.embedding_features(np.concatenate(vectors).astype(np.float64))
    return Embedded(version, data, kept, features, np.array(brightness), unreadable)


def neighbours(embedded: Embedded, places: ArrayLike, count: int = NEIGHBOURS) -> np.ndarray:
    """The nearest training images of other patients, the nearest first: int (m, count), numbers of rows.

    By Euclidean distance in the embedding. A patient who shares a byte-identical file counts as the same patient.
    Where there are fewer such images, -1 fills the rest.
    """
    group = splits.groups(embedded.rows)
    training = np.flatnonzero(embedded.rows["split"] == "train")
    found = np.full((len(np.ravel(places)), count), -1)
    for row, place in enumerate(np.ravel(places)):
        others = training[group[training] != group[place]]
        distance = np.linalg.norm(embedded.vectors[others] - embedded.vectors[place], axis=1)
        nearest = others[np.argsort(distance, kind="stable")[:count]]
        found[row, : len(nearest)] = nearest
    return found


# --- the map


@dataclass(frozen=True, eq=False)
class Map:
    """points: (n, 2), the first two principal components. variance: their shares of all variance, (2,)."""

    points: np.ndarray
    variance: np.ndarray


def project(vectors: np.ndarray) -> Map:
    """The first two principal components (Pearson 1901; Hotelling 1933) of vectors (n, channels), not scaled."""
    if len(vectors) < 3:
        raise LungkitError(f"{len(vectors)} images make no map; accepted: 3 or more")
    if not np.ptp(vectors, axis=0).any():
        return Map(np.zeros((len(vectors), 2)), np.zeros(2))
    # The covariance's eigenvectors are exact; a randomised solver would give another map on another machine.
    pca = PCA(n_components=min(2, vectors.shape[1]), svd_solver="covariance_eigh").fit(vectors)
    points = np.zeros((len(vectors), 2))
    points[:, : pca.n_components_] = pca.transform(vectors)
    variance = np.zeros(2)
    variance[: pca.n_components_] = pca.explained_variance_ratio_
    return Map(points, variance)


@dataclass(frozen=True)
class Explained:
    """Which share of the map's variance something explains, with its 95 % interval by patient.

    chance: what random values would explain, for as many independent images as there are patients.
    """

    share: float
    low: float
    high: float
    chance: float


def explained_by(points: np.ndarray, values: ArrayLike, patients: ArrayLike) -> Explained:
    """The share of the variance of points (n, 2) that values (n,) explain: R² of both axes together.

    Text makes groups, and the share is η² (between groups over total; Fisher 1925); numbers are a linear regressor. NaN
    where all values, or all points, are the same.
    """
    given, owners = np.asarray(values), np.asarray(patients).astype(str)
    score, parameters = _of_groups(points, given) if given.dtype.kind in "OU" else _of_numbers(points, given)
    if not parameters or not np.ptp(points, axis=0).any():
        return Explained(np.nan, np.nan, np.nan, np.nan)
    (value,) = score(np.ones((1, len(points))))
    drawn = [np.full(1, np.nan), *(score(weights) for weights in evaluation.resamples(owners))]
    low, high = np.nanpercentile(np.concatenate(drawn), evaluation.LEVELS) if len(drawn) > 1 else (np.nan, np.nan)
    chance = parameters / max(1, len(np.unique(owners)) - 1)
    # Resampling adds scatter, which explains a little: near 0 the percentiles would begin above the share itself.
    return Explained(float(value), float(min(low, value)), float(high), chance)


# Of weights (resamples, n), the shares of the variance that is explained, (resamples,); and how many parameters do it.
Score = tuple[Callable[[np.ndarray], np.ndarray], int]


def _of_groups(points: np.ndarray, values: np.ndarray) -> Score:
    names, group = np.unique(values.astype(str), return_inverse=True)
    member = np.eye(len(names))[group]

    def score(weights: np.ndarray) -> np.ndarray:
        images = weights @ member  # (resamples, groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            within = [np.nan_to_num((weights @ (member * x[:, None])) ** 2 / images).sum(axis=1) for x in points.T]
            means = (weights @ points) ** 2 / weights.sum(axis=1)[:, None]
            between = np.sum(within, axis=0) - means.sum(axis=1)
            return between / (weights @ points**2 - means).sum(axis=1)

    return score, len(names) - 1


def _of_numbers(points: np.ndarray, values: np.ndarray) -> Score:
    apart = values - values.mean()

    def score(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        mean = weights @ apart / total
        spread = weights @ apart**2 - total * mean**2
        means = weights @ points / total[:, None]
        together = weights @ (points * apart[:, None]) - total[:, None] * means * mean[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any spread
            explained = (together**2).sum(axis=1) / spread
            return explained / (weights @ points**2 - total[:, None] * means**2).sum(axis=1)

    return score, int(np.ptp(values) > 0)


COLOURINGS = ("label", "split", "source", "brightness")


def colourings(embedded: Embedded) -> dict[str, np.ndarray]:
    """What the map is coloured by: text, or numbers for brightness; each (n,)."""
    named = {name: embedded.rows[name].replace("", "none").to_numpy(str) for name in COLOURINGS[:3]}
    return named | {"brightness": embedded.brightness}


def explained(embedded: Embedded, of: Map) -> dict[str, Explained]:
    """Which share of the map each colouring explains."""
    return {name: explained_by(of.points, values, embedded.patients) for name, values in colourings(embedded).items()}


def table(shares: Mapping[str, Explained]) -> pd.DataFrame:
    """For people: a row for each colouring."""
    rows = {
        name: [figure(one.share, one.low, one.high), figure(one.chance)]
        if one.share == one.share
        else ["one value", "–"]
        for name, one in shares.items()
    }
    columns = ["share of the map that it explains", "by chance"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def says(shares: Mapping[str, Explained]) -> str:
    """One sentence: whether source or brightness explains at least as much of the map as the label does.

    It does where its interval reaches the label's, or lies above it, and lies above what chance gives.
    """
    label = shares["label"]
    if np.isnan(label.share):
        return "The network gives every image the same embedding: it has not learned anything yet."
    of_label = percents(label.share, label.low, label.high)
    rivals = [
        f"{name} ({percents(one.share, one.low, one.high)})"
        for name, one in shares.items()
        if name in ("source", "brightness") and one.high >= label.low and one.low > one.chance
    ]
    if rivals:
        return (
            f"**{listed(rivals, 'and').capitalize()} explains at least as much of the map as the label does** "
            f"({of_label}): the network may be reading a shortcut. Look at the heat maps, and at the figures of each "
            "source."
        )
    return (
        f"The label explains more of the map ({of_label}) than source or brightness: no shortcut of these two kinds is "
        "seen. Others may exist."
    )
