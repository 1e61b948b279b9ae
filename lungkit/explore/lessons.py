"""What the exercises of the notebooks measure: small experiments that end in seconds, and in a sentence.

Every figure has its 95 % interval by patient. Nothing here is used for a model that anybody keeps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lungkit.data import images, preprocess
from lungkit.data.dataset import Dataset
from lungkit.errors import LungkitError
from lungkit.progress import bar
from lungkit.training.evaluation import mean_with_interval
from lungkit.wording import count, figure, listed, percents

FOLDS = 5
AERATED = (
    -950.0,
    -500.0,
)  # HU of lung that contains air (Gattinoni et al. 2001, https://doi.org/10.1164/ajrccm.164.9.2103121)
RING = 5  # pixels around a lesion that it is compared with, in images without Hounsfield units


def thumbnails(collection: Dataset, split: str | None, spec: preprocess.Preprocessing, side: int = 16) -> np.ndarray:
    """The images of a split as the model sees them, scaled down to side x side greys: float32 (n, side * side)."""
    tensors = preprocess.read_batch(collection.files(split), spec)[..., 0]
    small = [PIL.Image.fromarray(one).resize((side, side), PIL.Image.Resampling.BOX) for one in tensors]
    return np.array([np.asarray(one).ravel() for one in small], np.float32).reshape(len(tensors), side * side)


# --- 01: what a split by image lets through, and what a shortcut tells


def folds(labels: np.ndarray, patients: np.ndarray, by: str = "patient", seed: int = 7) -> np.ndarray:
    """The fold of each image, 0 to FOLDS - 1: classes in equal shares; with by="patient", a patient in one fold.

    labels, patients: (n,). Fewer folds where a class has fewer patients; a class with one patient is refused.
    """
    if by not in ("patient", "image"):
        raise LungkitError(f"no split by '{by}'; there are: patient, image")
    fewest = min(len(set(patients[labels == label])) for label in set(labels.tolist()))
    if fewest < 2:
        raise LungkitError("a class has one patient: folds need at least two of each class")
    how: dict[str, Any] = {"n_splits": min(FOLDS, fewest), "shuffle": True, "random_state": seed}
    if by == "patient":
        parts = StratifiedGroupKFold(**how).split(labels, labels, patients)
    else:
        parts = StratifiedKFold(**how).split(labels, labels)
    fold = np.empty(len(labels), int)
    for number, (_, held) in enumerate(parts):
        fold[held] = number
    return fold


def crossing(pairs: pd.DataFrame, files: Sequence[str], fold: np.ndarray) -> int:
    """How many pairs (columns file_a and file_b) have their images in two folds; files, fold: (n,)."""
    of = dict(zip(files, fold.tolist(), strict=True))
    ends = [(of.get(a), of.get(b)) for a, b in pairs[["file_a", "file_b"]].itertuples(index=False)]
    return sum(a is not None and b is not None and a != b for a, b in ends)


def nearest_neighbour(pictures: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Whether each image has the class of the most similar image of the other folds: bool (n,).

    pictures: (n, features). It learns nothing: what it gets right beyond chance, it gets from images that look alike.
    """
    right = np.empty(len(labels), bool)
    for held in (fold == number for number in np.unique(fold)):
        nearest = KNeighborsClassifier(1).fit(pictures[~held], labels[~held])
        right[held] = nearest.predict(pictures[held]) == labels[held]
    return right


def probe(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) of a logistic regression on features (n, k), each image from the other folds' fit."""
    probabilities = np.empty((len(labels), len(np.unique(labels))))
    for held in (fold == number for number in np.unique(fold)):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        probabilities[held] = model.fit(features[~held], labels[~held]).predict_proba(features[held])
    return probabilities


def leak_says(by_image: np.ndarray, by_patient: np.ndarray, patients: np.ndarray, crossed: int) -> str:
    """What splitting by image adds to a score. by_image, by_patient: bool (n,), right in either split."""
    gained = mean_with_interval(by_image.astype(float) - by_patient, patients, bounds=(-1, 1))
    scores = [percents(*mean_with_interval(right, patients, share=True)) for right in (by_image, by_patient)]
    lie = "lies" if crossed == 1 else "lie"
    text = (
        f"Split by image, {count(crossed, 'duplicate pair')} {lie} on two sides, and the nearest "
        f"neighbour is right in {scores[0]}. Split by patient it is right in {scores[1]}."
    )
    if len(set(patients.tolist())) == len(patients):
        return f"{text} Each patient has one image here, so a split by image is a split by patient."
    verdict = (
        "The difference is what it knows about these patients, not about the disease"
        if gained[1] > 0
        else "On these patients the difference is not shown"
    )
    return f"{text} {verdict}: {figure(*gained, signed=True)}."


def shortcut_says(scores: Mapping[str, tuple[float, float, float]]) -> str:
    """Which facts of an image tell the classes apart; scores: AUC with interval, by fact."""
    told = [f"{name} {figure(*score)}" for name, score in scores.items() if score[1] > 0.5]
    if not told:
        tried = listed([f"{name} {figure(*score)}" for name, score in scores.items()], "and")
        return (
            f"None of these is shown to tell the classes apart, as all intervals reach 0.5, which is chance: {tried}."
        )
    return (
        f"From three summary numbers of each image, the AUC is: {listed(told, 'and')}, where chance is 0.5. A network "
        "can learn this too, and a score has to be well above it before it says something about the disease."
    )


# --- 02: what a window lets through


@dataclass(frozen=True)
class Lesion:
    """Pixel values of one image, in HU, or 0 to 255: in its lesion, and in the tissue that it is compared with."""

    inside: np.ndarray
    outside: np.ndarray
    patient: str


def lesions(collection: Dataset, split: str = "train", most: int = 40) -> list[Lesion]:
    """Up to `most` images of a split that have a lesion mask, evenly spaced.

    A lesion in HU is compared with lung that contains air (AERATED), another one with a ring of RING pixels around it.
    """
    rows = collection.part(split)
    rows = rows[rows["mask"] != ""]
    rows = rows.iloc[:: max(1, -(-len(rows) // most))]
    found = [_lesion(collection, row) for row in rows.itertuples()]
    return [one for one in found if len(one.inside) and len(one.outside)]


def _lesion(collection: Dataset, row: Any) -> Lesion:
    image = images.read(collection.root / row.file)
    mask = images.read(collection.root / row.mask).pixels > 0.5
    if image.units == "HU":
        values = image.pixels
        outside = (values > AERATED[0]) & (values < AERATED[1]) & ~mask
    else:
        values = image.pixels * 255
        outside = ndimage.binary_dilation(mask, iterations=RING) & ~mask
    return Lesion(values[mask], values[outside], row.patient_id)


def through_windows(found: Sequence[Lesion], windows: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """How well each window (level, width) tells lesion from lung: a row a window, means over the images.

    auc, low, high: the probability that a pixel of the lesion is brighter than one of the lung, where equal greys
    count half, with its 95 % interval by patient. contrast: the difference of the two mean greys, 0..1. black: the
    share of the lung's pixels that become black.
    """
    if not found:
        raise LungkitError("no image of this split has a lesion mask: there is nothing to compare with the lung")
    patients = [one.patient for one in found]
    rows = {}
    for name, (level, width) in windows.items():
        seen = [[preprocess.window_level(part, level, width) for part in (one.inside, one.outside)] for one in found]
        auc, low, high = mean_with_interval([_auc(*both) for both in seen], patients)
        rows[name] = {
            "auc": auc,
            "low": low,
            "high": high,
            "contrast": np.mean([inside.mean() - outside.mean() for inside, outside in seen]),
            "black": np.mean([(outside <= 0).mean() for _, outside in seen]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("window")


def windows_say(found: Sequence[Lesion], windows: Mapping[str, tuple[float, float]]) -> str:
    """Which window keeps lesion and lung apart, and which does so least, by `through_windows`."""
    if not found:
        return "No image here has a lesion mask, so there is nothing to compare with the lung."
    table = through_windows(found, windows)
    best, worst = str(table["auc"].idxmax()), str(table["auc"].idxmin())
    rows = table.to_dict("index")
    of = {name: figure(*(rows[name][what] for what in ("auc", "low", "high"))) for name in (best, worst)}
    black = f"{rows[worst]['black']:.0%} of the lung"
    return (
        f"A pixel of the lesion is brighter than one of the lung with a probability of {of[best]} in the window "
        f"'{best}' and of {of[worst]} in the window '{worst}', which makes {black} black. What a "
        "window makes equal, no model can tell apart."
    )


def _auc(inside: np.ndarray, outside: np.ndarray) -> float:
    of_lesion = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    return float(roc_auc_score(of_lesion, np.r_[inside, outside]))


def statistics_say(training: preprocess.Preprocessing, everything: preprocess.Preprocessing) -> str:
    """How far the constants move where validation and test images are counted too."""
    shift = (everything.mean - training.mean) / training.std
    spread = everything.std / training.std - 1
    how = "Little leaks here" if max(abs(shift), abs(spread)) < 0.05 else "A good deal leaks here"
    text = (
        f"With the images of validation and test, the mean moves by {shift:+.4f} standard deviations, and the standard "
        f"deviation by {spread:+.2%}. {how}, but the test is then no longer of images that the model knows nothing of."
    )
    return text.replace("-", "−")


# --- 03: luck, and rare classes


def short_trainings(task: Any, seeds: Sequence[int], batches: int = 8, epochs: int = 2) -> list[float]:
    """The validation losses of a very small network, trained for a few batches from each seed; nothing is kept.

    task: tasks.CnnTask. A seed decides the first weights, the order of the images, and how they are varied. One model
    is trained again and again, as TensorFlow takes longer to prepare a training than to do this one.
    """
    from lungkit.backend import keras

    from lungkit.models import cnn

    def new() -> Any:
        return cnn.build((*task.spec.size, 1), len(task.data.classes), filters=8, blocks=2, dropout=0.0)

    model, losses = cnn.compile_classifier(new()), []
    state = [keras.ops.convert_to_numpy(variable) for variable in model.optimizer.variables]
    for seed in bar(seeds, label="starts", unit="start"):
        keras.utils.set_random_seed(seed)
        model.set_weights(new().get_weights())
        for variable, value in zip(model.optimizer.variables, state, strict=True):
            variable.assign(value)
        model.fit(task.batches(seed, batches), epochs=epochs, shuffle=False, verbose=0)
        losses.append(float(model.evaluate(task.search.validation, verbose=0, return_dict=True)["loss"]))
    return losses


def seeds_say(losses: Sequence[float]) -> str:
    """How far the validation loss spreads over starts of the same settings."""
    values = np.asarray(losses)
    return (
        f"The same settings from {count(len(values), 'start')} give validation losses from {values.min():.3f} to "
        f"{values.max():.3f}, with a standard deviation of {values.std(ddof=1):.3f}. Two settings whose losses differ "
        "by less than that are not told apart by one training each."
    )


def made_rare(labels: np.ndarray, rare: int, keep: float, seed: int = 7) -> np.ndarray:
    """Row numbers of all images but those of class `rare`, of which a share `keep` stays, and at least two."""
    of_it = np.flatnonzero(labels == rare)
    few = np.random.default_rng(seed).choice(of_it, max(2, round(keep * len(of_it))), replace=False)
    return np.sort(np.r_[np.flatnonzero(labels != rare), few])


def with_and_without_weights(
    pictures: np.ndarray, labels: np.ndarray, unseen: np.ndarray, weights: Mapping[int, float]
) -> Iterator[np.ndarray]:
    """Predicted classes of `unseen` by a logistic regression on pictures: without class weights, then with them."""
    for given in (None, dict(weights)):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight=given, C=0.01, max_iter=2000))
        yield model.fit(pictures, labels).predict(unseen)


def weights_say(
    true: np.ndarray, plain: np.ndarray, weighted: np.ndarray, rare: int, name: str, patients: np.ndarray
) -> str:
    """What class weights do for the recall of a rare class, and for that of the others; all (n,)."""
    of_it, parts = true == rare, []
    for which, whose in ((of_it, f"of {name}"), (~of_it, "of the other classes")):
        before, after = (
            percents(*mean_with_interval((answer == true)[which], patients[which], share=True))
            for answer in (plain, weighted)
        )
        parts.append(f"{whose}, {before} are found without weights and {after} with them")
    return f"On validation: {'; '.join(parts)}. Weights move the border between classes; they add no knowledge."
