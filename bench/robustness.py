"""How much of a model's validation result is left when pictures are made as other hospitals might make them.

    python -m bench.robustness NAME[@vN] … --data FOLDER

Each row is one change to every validation image; nothing is trained and no test image is read. Figures: AUC of normal
against the rest for two classes (macro AUC for more), and balanced accuracy at the version's own operating point.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from lungkit.data import preprocess
from lungkit.models import graph, registry
from lungkit.progress import bar
from lungkit.training import evaluation, release


def _cropped(image: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Without this share of rows and columns on each side, enlarged to the old size."""
    height, width = image.shape
    top, left = int(height * rows), int(width * columns)
    part = PIL.Image.fromarray(image[top : height - top, left : width - left].astype(np.float32), mode="F")
    return np.asarray(part.resize((width, height), PIL.Image.Resampling.BILINEAR))


def _equalised(image: np.ndarray) -> np.ndarray:
    counts, edges = np.histogram(image, 256, (0, 1))
    return np.interp(image, edges[1:], np.cumsum(counts) / image.size)


# Greys 0..1 (height, width) to greys.
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda image: image,
    "darker (greys squared)": lambda image: image**2,
    "brighter (their root)": lambda image: image**0.5,
    "half the contrast": lambda image: (image - 0.5) / 2 + 0.5,
    "histogram equalised": _equalised,
    "blurred by 0.5 % of the width": lambda image: gaussian_filter(image, 0.005 * image.shape[1]),
    "noise of 4 % of the range": lambda image: image + np.random.default_rng(1).normal(0, 0.04, image.shape),
    "20 % smaller field": lambda image: _cropped(image, 0.1, 0.1),
    "stretched upwards by 25 %": lambda image: _cropped(image, 0.1, 0),
    "stretched sideways by 25 %": lambda image: _cropped(image, 0, 0.1),
}


def measured(version: registry.Version, source: str) -> dict[str, tuple[float, float]]:
    """AUC and balanced accuracy under each of CHANGES."""
    data = release.data_for(version, source)
    spec = version.card.preprocessing
    grey = preprocess.read_batch(data.files("val"), spec)[..., 0] * spec.std + spec.mean
    runtime = graph.Graph(version.folder, heat=False, many=True)
    found = {}
    for name, change in bar(CHANGES.items(), label=str(version), unit="change"):
        changed = np.clip(np.stack([change(image) for image in grey]), 0, 1)
        tensors = ((changed - spec.mean) / spec.std).astype(np.float32)[..., None]
        scores = np.concatenate([
            outputs["probabilities"]
            for _, outputs, _ in runtime.stream((None, tensors[i : i + 8]) for i in range(0, len(tensors), 8))
        ]).astype(np.float64)  # fmt: skip
        scores /= scores.sum(axis=1, keepdims=True)
        what = evaluation.evaluate(data.labels("val"), scores, data.patients("val"), data.classes, version.rule)
        found[name] = what.value("auc")[0], what.value("balanced_accuracy")[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME[@vN]")
    parser.add_argument("--data", required=True, type=Path, help="the images that they were trained on: a folder")
    given = parser.parse_args()
    found = {name: measured(registry.find(name), str(given.data)) for name in given.models}
    table = Table("validation images", *[f"{name}: AUC / balanced accuracy" for name in found])
    for change in CHANGES:
        table.add_row(change, *["{:.3f} / {:.3f}".format(*figures[change]) for figures in found.values()])
    Console(width=max(100, 40 + 40 * len(found))).print(table)


if __name__ == "__main__":
    main()
