"""What happens to a model once it is trained: registered with its card, and scored on data it has not seen."""

import re
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import scipy.special

from lungkit.data import dataset, images
from lungkit.errors import LungkitError
from lungkit.models import registry, saved
from lungkit.training import evaluation

# Names of the images (by content) that a version learned from or was chosen on, one a line, in its folder.
TRAINED_ON = "trained_on.txt"


def default_name(data: dataset.Dataset, architecture: str = "cnn") -> str:
    """The registry's name for a model of this architecture on this data set: plain letters, 100 at most."""
    plain = unicodedata.normalize("NFKD", data.name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9._]+", "-", plain).strip("._-")[: 99 - len(architecture)]
    return f"{words}-{architecture}".lstrip("-")


def probabilities(model: keras.Model, tensors: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Softmax of the logits, float64 (N, classes), for preprocessed images (N, height, width, 1)."""
    return scipy.special.softmax(model.predict(tensors, batch_size=batch_size, verbose=0).astype(np.float64), axis=1)


def register(
    model: keras.Model,
    name: str,
    data: dataset.Dataset,
    preprocessing: images.Preprocessing,
    *,
    architecture: dict,
    training: dict,
    recipe: dict,
) -> registry.Version:
    """Choose the operating point on the validation patients, measure there, and register a new active version.

    architecture, training: what people should know of them, JSON-ready, kept in the card.
    recipe: the arguments of dataset.prepare (label_column, limit, seed) that give this split again.
    """
    tensors = images.read_batch(data.files("val"), preprocessing)
    scores = probabilities(model, tensors)
    point = evaluation.operating_point(data.labels("val"), scores, data.classes)
    measured = evaluation.evaluate(data.labels("val"), scores, data.patients("val"), data.classes, point)
    counts = {split: {"images": len(data.files(split)), "patients": len(set(data.patients(split)))}
              for split in ("train", "val", "test")}  # fmt: skip
    card = {
        "classes": list(data.classes),
        "preprocessing": preprocessing.to_dict(),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "counts": counts, "recipe": recipe},
        "metrics": {"val": measured.to_dict()},
        "operating_point": point,
        "synthetic": data.synthetic,
        "architecture": architecture,
        "training": training,
    }
    seen = sorted({*data.part("train")["sha256"], *data.part("val")["sha256"]})

    def write(folder: Path) -> None:
        saved.save(model, folder)
        (folder / TRAINED_ON).write_text("".join(f"{sha256}\n" for sha256 in seen))

    return registry.add(name, card, write)


@dataclass(frozen=True)
class Scored:
    """A version's answers on one split of a data set."""

    version: registry.Version
    data: dataset.Dataset
    split: str
    tensors: np.ndarray  # float32 (n, height, width, 1), preprocessed
    labels: np.ndarray  # int (n,), positions in the model's classes
    probabilities: np.ndarray  # float64 (n, classes)
    evaluation: evaluation.Evaluation
    seen_in_training: int  # images of the split that the version was trained or chosen on
    seconds: float  # from file to probabilities, for all images

    @property
    def files(self) -> list[str]:
        """Names of the images, relative to the data set's root."""
        return self.data.part(None if self.split == "all" else self.split)["file"].tolist()

    def to_dict(self) -> dict:
        """JSON-ready: the evaluation's figures and what they were measured on."""
        return self.evaluation.to_dict() | {
            "model": str(self.version),
            "data": self.data.name,
            "split": self.split,
            "synthetic": self.data.synthetic,
            "seen_in_training": self.seen_in_training,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(len(self.labels) / self.seconds, 1),
        }


def data_for(version: registry.Version, source: str, label_column: str | None = None) -> dataset.Dataset:
    """The data set at `source`, split as it was when this version was trained on it."""
    recipe = version.card["data"]["recipe"] | {"overlap": "set_aside"}
    if label_column:
        recipe["label_column"] = label_column
    data = dataset.prepare(source, **recipe)
    # A limit belongs to the set it was trained on; another set is taken whole.
    return data if data.name == version.card["data"]["name"] else dataset.prepare(source, **recipe | {"limit": None})


def score(version: registry.Version, data: dataset.Dataset, split: str = "test") -> Scored:
    """Read the split's files, predict, and evaluate at the version's operating point.

    split: "train", "val", "test", or "all" (every readable image). Classes are matched by name, whatever their
    case; a class that the model does not know is refused.
    """
    classes = version.card["classes"]
    labels = _labels_for(classes, data, None if split == "all" else split, version)
    rows = data.part(None if split == "all" else split)
    model = saved.load(version)
    spec = images.Preprocessing.from_dict(version.card["preprocessing"])
    probabilities(model, np.zeros((1, *spec.size, 1), np.float32))  # the first call compiles; not part of the time
    started = time.perf_counter()
    tensors = images.read_batch([data.root / file for file in rows["file"]], spec)
    scores = probabilities(model, tensors)
    seconds = time.perf_counter() - started
    measured = evaluation.evaluate(
        labels, scores, rows["patient_id"].to_numpy(str), classes, version.card["operating_point"]
    )
    seen = set((version.folder / TRAINED_ON).read_text().split())
    return Scored(
        version, data, split, tensors, labels, scores, measured, int(rows["sha256"].isin(seen).sum()), seconds
    )


def _labels_for(classes: list[str], data: dataset.Dataset, split: str | None, version: registry.Version) -> np.ndarray:
    position = {name.casefold(): i for i, name in enumerate(classes)}
    labels = data.part(split)["label"]
    if labels.empty:
        raise LungkitError(f"{data.name} has no image in split '{split}'; there are:\n{data.summary()}")
    if unknown := sorted({label for label in labels if label.casefold() not in position}):
        raise LungkitError(
            f"{version} knows {', '.join(classes)}, but {data.name} is labelled {', '.join(unknown)}; "
            "choose the matching column with --label-column"
        )
    return labels.str.casefold().map(position).to_numpy(np.int64)
