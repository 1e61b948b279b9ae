"""What becomes of images that a version must not judge: how many get no decision, kind by kind, and what stops them.

Kinds are the version's own validation images as they must not be shown to it (turned, inverted, half of them …), and
images of other collections. Three distances in the embedding are compared, each with the limit that flags FALSE_ALARMS
of the version's own validation images:

- "Mahalanobis": to the nearest class (Lee et al., NeurIPS 2018), which the check "kind" uses;
- "neighbours": to the tenth nearest training image (Sun et al., "Out-of-distribution detection with deep nearest
  neighbors", ICML 2022);
- "energy": of the logits (Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from lungkit import wording
from lungkit.clinic import decode
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.data import dataset, images
from lungkit.data.dataset import Dataset
from lungkit.data.image import Image
from lungkit.models import graph, input_checks, population, registry
from lungkit.models.prediction import Prediction
from lungkit.progress import bar

FALSE_ALARMS = 0.05  # of the own validation images
MOST_IMAGES = 150  # of a kind
_NEIGHBOUR = 10
_MOST_TRAINING = 2000  # images among which neighbours are looked for


@dataclass(frozen=True)
class Stopped:
    """What became of the images of one kind; all but the first two are shares of them."""

    kind: str
    images: int
    undecided: float
    checks: dict[str, float]  # that each input check flagged
    distances: dict[str, float]  # that lie beyond the limit of each distance

    def row(self) -> dict[str, str]:
        """For people."""
        most = sorted(self.checks.items(), key=lambda of: -of[1])
        named = ", ".join(f"{name} {wording.percent(share)}" for name, share in most if share >= FALSE_ALARMS)
        shares = {
            f"{name} at {wording.percent(FALSE_ALARMS)}": wording.percent(share)
            for name, share in self.distances.items()
        }
        undecided = wording.percent(self.undecided)
        return {"": self.kind, "images": f"{self.images:,}", "no decision": undecided, "flagged by": named, **shares}


def _turned(image: Image) -> Image:
    return replace(image, pixels=np.rot90(image.pixels).copy())


def _inverted(image: Image) -> Image:
    return replace(image, pixels=image.pixels.min() + image.pixels.max() - image.pixels)


def _noise(image: Image) -> Image:
    drawn = np.random.default_rng(image.pixels.size).random(image.pixels.shape, np.float32)
    return replace(image, pixels=image.pixels.min() + drawn * np.ptp(image.pixels))


CHANGES: dict[str, Callable[[Image], Image]] = {
    "turned by 90°": _turned,
    "upside down": lambda image: _turned(_turned(image)),
    "mirrored": lambda image: replace(image, pixels=image.pixels[:, ::-1].copy()),
    "inverted": _inverted,
    "left half": lambda image: replace(image, pixels=image.pixels[:, : image.pixels.shape[1] // 2].copy()),
    "upper half": lambda image: replace(image, pixels=image.pixels[: image.pixels.shape[0] // 2].copy()),
    "blank": lambda image: replace(image, pixels=np.full_like(image.pixels, image.pixels.mean())),
    "noise": _noise,
}


class _Reader:
    """A version, and how far images lie from those that it learned from."""

    def __init__(self, version: registry.Version, training: Sequence[Path]):
        self._predictor = Predictor(version, heat=False)
        self._runtime = graph.Graph(version.folder, heat=False, logits=True)
        seen = [self._outputs(images.read(file))[0] for file in bar(training, label="training images", unit="image")]
        self._known = _unit(np.stack([outputs["embedding"] for outputs in seen]))

    def _outputs(self, image: Image) -> tuple[dict[str, np.ndarray], decode.Facts]:
        tensor, facts = decode.prepare(image, self._predictor.spec)
        return {name: values[0] for name, values in self._runtime(tensor[None]).items()}, facts

    def reading(self, image: Image, age: float | None = None) -> tuple[Prediction, dict[str, float]]:
        """What the clinic would say, and the distances; the larger, the less like the training images.

        age: that is told to the clinic; default: one that the version is for.
        """
        outputs, facts = self._outputs(image)
        facts = replace(facts, by_year=population.fitting_age(self._predictor.card) if age is None else age)
        embedding = outputs["embedding"]
        apart = np.linalg.norm(self._known - _unit(embedding[None]), axis=1)
        nearest = min(_NEIGHBOUR, len(apart)) - 1
        return self._predictor.reading(facts, outputs, time.perf_counter()), {
            "Mahalanobis": self._predictor.distance("kind", input_checks.embedding_features(embedding)),
            "neighbours": float(np.partition(apart, nearest)[nearest]),
            "energy": -float(logsumexp(outputs["logits"])),
        }


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)


def measure(
    version: registry.Version, own: Dataset, others: Sequence[Dataset], most: int | None = None
) -> list[Stopped]:
    """A row for the own validation images as they are, for each of CHANGES of them, and for each other collection.

    own: the data that the version was trained on, split as it was then; its test part is not looked at. Of a
    collection whose labels.csv states ages there are two rows where the version asks for them: with each patient's age
    told to the clinic, and with one that the version is for, which shows what the image alone tells.
    most: images of a kind that are read; default: MOST_IMAGES.
    """
    most = most or MOST_IMAGES
    reader = _Reader(version, _some(own.files("train"), _MOST_TRAINING))
    at_home = _some(own.files("val"), most)
    home = _answers(reader, "own validation images", map(images.read, at_home))
    limits = {
        name: np.quantile([far[name] for _, far in home], 1 - FALSE_ALARMS, method="higher") for name in home[0][1]
    }
    rows = [_stopped("own validation images", home, limits)]
    for kind, change in CHANGES.items():
        rows.append(_stopped(kind, _answers(reader, kind, (change(images.read(file)) for file in at_home)), limits))
    for other in others:
        files, ages = _some(other.files(), most), _ages(other)
        rows.append(_stopped(other.name, _answers(reader, other.name, map(images.read, files)), limits))
        if ages and version.card.about and version.card.about.ages:
            told = _answers(reader, other.name, map(images.read, files), [ages.get(file) for file in files])
            rows.append(_stopped(f"{other.name}, age known", told, limits))
    return rows


def _answers(
    reader: _Reader, kind: str, pictures: Iterable[Image], ages: Sequence[float | None] | None = None
) -> list[tuple[Prediction, dict[str, float]]]:
    return [
        reader.reading(picture, ages[number] if ages else None)
        for number, picture in enumerate(bar(pictures, label=kind, unit="image"))
    ]


def _stopped(kind: str, answers: list[tuple[Prediction, dict[str, float]]], limits: dict[str, float]) -> Stopped:
    readings = [reading for reading, _ in answers]
    names = dict.fromkeys(check.name for reading in readings for check in reading.checks)
    failed = [{check.name for check in reading.checks if not check.passed} for reading in readings]
    return Stopped(
        kind=kind,
        images=len(readings),
        undecided=float(np.mean([reading.decision == REVIEW for reading in readings])),
        checks={name: float(np.mean([name in of for of in failed])) for name in names},
        distances={name: float(np.mean([far[name] > limit for _, far in answers])) for name, limit in limits.items()},
    )


def _some(files: list[Path], most: int) -> list[Path]:
    return [files[i] for i in np.sort(np.random.default_rng(0).permutation(len(files))[:most])]


def _ages(data: Dataset) -> dict[Path, float]:
    """Years by file, where the set's labels.csv has a column of them."""
    table = data.root / "labels.csv"
    if not table.is_file() or "age" not in (rows := pd.read_csv(table, dtype=str, keep_default_na=False)):
        return {}
    years = pd.to_numeric(rows["age"], errors="coerce")
    return {data.root / file: age for file, age in zip(rows["file"], years, strict=True) if age == age}


def command(version: registry.Version, own: Dataset, folders: Sequence[str]) -> list[dict[str, str]]:
    """Rows for people; the arguments of `lungkit models foreign`."""
    return [stopped.row() for stopped in measure(version, own, [dataset.as_given(folder) for folder in folders])]
