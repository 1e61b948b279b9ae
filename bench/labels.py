"""How many wrong labels are found among the first suspects: 5 % are planted at random, then looked for.

    python -m bench.labels [--data FOLDER …] [--plantings 5] [--trainings 2]

Each data set is measured with the features of two networks (EfficientNet-Lite0 at 96 pixels):

- "frozen": trained on photographs, so it has not seen any of these labels;
- "trained": fine-tuned for four epochs on the labels with the planted faults, as a user's version would be.

Rows: the first suspects, as many as were planted, and all suspects. Intervals are by patient.
"""

import argparse
import tempfile
from pathlib import Path

from lungkit.backend import keras

import numpy as np
from rich.console import Console
from rich.table import Table

from lungkit.data import dataset, decisions, preprocess, splits
from lungkit.models import backbones
from lungkit.training import errors, finetune, recipes
from lungkit.wording import percents

SIDE, SHARE, IMAGES = 96, 0.05, 600
RECIPE = recipes.Recipe(side=SIDE, epochs=4)


def features(model: keras.Model, data: dataset.Dataset, rows, spec: preprocess.Preprocessing) -> np.ndarray:
    """What the network's last layer decides on, float64 (n, channels)."""
    tensors = preprocess.read_batch([data.root / file for file in rows["file"]], spec)
    seen = keras.Model(model.input, model.get_layer("embedding").output)
    return seen.predict(tensors, batch_size=64, verbose=0).astype(np.float64)


def frozen(data: dataset.Dataset, rows) -> np.ndarray:
    spec = preprocess.Preprocessing(size=(SIDE, SIDE))
    model = backbones.build("efficientnet_lite0", (SIDE, SIDE, 1), len(data.classes), preprocessing=spec)
    return features(model, data, rows, spec)


def trained(source: str, data: dataset.Dataset, rows, labels: np.ndarray, folder: Path) -> np.ndarray:
    """The features of a network that was trained on these labels: they reach it as a person's decisions."""
    wrong = rows[rows["label"].to_numpy() != np.array(data.classes)[labels]]
    names = np.array(data.classes)[labels[wrong.index]]
    table = [
        decisions.Decision(row.file, row.sha256, decisions.RELABEL, name, row.split, "planted")
        for row, name in zip(wrong.itertuples(), names, strict=True)
    ]
    decisions.write(folder / decisions.FILE, table)
    recipe = recipes.Recipe(side=SIDE, epochs=RECIPE.epochs, decisions=str(folder / decisions.FILE))
    tensors = finetune.recipe_data(recipe, source, IMAGES if source == "phantom" else None)
    given = tensors.data.manifest.set_index("file").loc[rows["file"], "label"].map(data.classes.index)
    assert np.array_equal(given, labels), "the network does not learn from the planted labels"
    model, _ = finetune.member(recipe, tensors, folder / "training", seed=1)
    return features(model, data, rows, tensors.spec)


def measured(source: str, plantings: int, trainings: int) -> dict[str, list[errors.Found]]:
    """By network: the first suspects, as many as were planted, and all suspects."""
    data = dataset.load_split(source, limit=IMAGES if source == "phantom" else None, overlap="set_aside")
    rows = data.part().drop_duplicates("file").reset_index(drop=True)
    labels = rows["label"].map(data.classes.index).to_numpy(np.int64)
    groups, classes = splits.groups(rows), len(data.classes)
    planted = [errors.plant(labels, classes, SHARE, seed) for seed in range(plantings)]
    found = {}
    unseen = frozen(data, rows)
    judged = [errors.judge(unseen, wrong, groups, classes) for wrong, _ in planted]
    found["frozen"] = _both(judged, [which for _, which in planted], rows)
    judged = []
    for wrong, _ in planted[:trainings]:
        with tempfile.TemporaryDirectory() as folder:
            seen = trained(source, data, rows, wrong, Path(folder))
        judged.append(errors.judge(seen, wrong, groups, classes))
    if judged:
        found["trained"] = _both(judged, [which for _, which in planted[:trainings]], rows)
    return found


def _both(judged: list[errors.Judged], planted: list[np.ndarray], rows) -> list[errors.Found]:
    patients = rows["patient_id"].to_numpy(str)
    return [errors.found(judged, planted, patients, first) for first in (None, len(rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], help="folders, besides the phantom")
    parser.add_argument("--plantings", type=int, default=5)
    parser.add_argument("--trainings", type=int, default=2, help="of these, how many a network is trained on")
    given = parser.parse_args()
    table = Table("data", "network", "plantings", "list", "hits / planted", "precision", "recall", "by chance")
    for source in ["phantom", *given.data]:
        for network, both in measured(source, given.plantings, given.trainings).items():
            times = given.plantings if network == "frozen" else given.trainings
            for name, one in zip(("as many as planted", "all suspects"), both, strict=True):
                table.add_row(
                    Path(source).name, network, str(times), f"{name} ({one.first / times:.0f})",
                    f"{one.hits} / {one.planted}", percents(*one.precision), percents(*one.recall),
                    f"{100 * one.chance:.0f} %",
                )  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
