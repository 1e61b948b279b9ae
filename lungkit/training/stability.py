"""Would the same study with other patients, and from another start, say the same? Folds, repeats and training starts.

One split gives one figure; another split of the same patients gives another one. Here every patient is tested once in
each repeat, repeats deal the folds again, and within a fold the training starts several times (Bouthillier et al.,
"Accounting for variance in machine learning benchmarks", MLSys 2021). `lungkit.training.variance` says how much of the
scatter each of these has.

Whatever is chosen (scale of the features, penalty, temperature, operating point) is chosen within a fold, on its
training and validation patients. Test patients are only scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from lungkit.data import preprocess, splits
from lungkit.data.dataset import Dataset
from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.progress import bar
from lungkit.training import calibration, evaluation, finetune, fit, heads, pipeline, release, variance
from lungkit.training.evaluation import Evaluation
from lungkit.training.recipes import Recipe

METRICS = ("auc", "balanced_accuracy", "accuracy", "macro_f1")  # of every fold
COPIES = 4  # varied copies of each image, of which a start draws one
Logits = np.ndarray  # float64 (images, classes)


@dataclass(frozen=True, eq=False)
class Parts:
    """The images of one fold, as places in `Dataset.part()`: int (n,) each."""

    repeat: int  # from 1
    fold: int  # from 1
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Learner(Protocol):
    """A way of training."""

    def __call__(self, parts: Parts, start: int) -> tuple[Logits, Logits]:
        """Logits of the validation and of the test images. start: the seed of everything in training that is random."""


def folds(data: Dataset, number: int, repeats: int = 1, by: str = "patient", seed: int = 7) -> list[Parts]:
    """The parts of every fold of every repeat; each image that can be read is tested once in a repeat.

    by: "patient", "source" or, to see what a leak does, "image", as in splits.assign; published splits do not count.
    Raises splits.SplitError where a class has too few of them to be in each fold.
    """
    made = []
    for repeat in range(1, repeats + 1):
        for fold in range(1, number + 1):
            chance = pipeline.derived(seed, repeat)
            rows = splits.assign(data.part(), seed=chance, fold=f"{fold}/{number}", by=by)
            if by != "image":
                splits.refuse_leaks(rows)
            places = (np.flatnonzero(rows["split"] == part) for part in splits.PARTS)
            made.append(Parts(repeat, fold, *places))
    return made


# --- learners


@dataclass(frozen=True)
class Setting:
    """What a search over linear heads can choose."""

    penalty: float  # of the squared kernel
    varied: bool = True  # also trained on varied copies

    def __str__(self) -> str:
        return f"penalty {self.penalty:,.1f}, {'with' if self.varied else 'no'} varied copies"


# Half powers of ten, from a head that hardly fits to one that fits all training images; each with copies and without.
GRID = tuple(Setting(penalty, varied) for varied in (True, False) for penalty in np.geomspace(1e4, 1, 9).tolist())


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear head on frozen features, with the penalty of the lowest loss on the fold's validation images."""

    features: np.ndarray  # (1 + copies, images, width): as they are, and varied; see heads.frozen_features
    labels: np.ndarray  # (images,) class indices
    classes: int

    def __call__(self, parts: Parts, start: int) -> tuple[Logits, Logits]:
        """As Learner says; the start draws which varied copy of an image is trained on, next to the image itself."""
        seen, labels, weights = self._training(parts.train, start)
        validation, truth = self.features[0, parts.validation], self.labels[parts.validation]
        tried = heads.fitted(seen, labels, weights)
        best = heads.least_loss(tried, validation, truth, fit.image_weights(truth, self.classes))
        return best.logits(validation), best.logits(self.features[0, parts.test])

    def by_setting(self, parts: Parts, start: int, grid: Sequence[Setting]) -> dict[Setting, tuple]:
        """Logits of the validation and of the test images, by every setting."""
        answers = {}
        for varied in dict.fromkeys(one.varied for one in grid):
            same = [one for one in grid if one.varied == varied]
            tried = heads.fitted(*self._training(parts.train, start, varied), [one.penalty for one in same])
            for one, head in zip(same, tried, strict=True):
                answers[one] = (
                    head.logits(self.features[0, parts.validation]),
                    head.logits(self.features[0, parts.test]),
                )
        return answers

    def _training(
        self, train: np.ndarray, start: int, varied: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, labels and weights of what is trained on."""
        copies, labels = len(self.features) - 1, self.labels[train]
        if missing := set(range(self.classes)) - set(labels.tolist()):
            raise LungkitError(f"no training image of class number {min(missing)}; take fewer folds or more patients")
        weights = fit.image_weights(labels, self.classes)
        if not (varied and copies):
            return self.features[0, train], labels, weights
        drawn = 1 + np.random.default_rng(start).integers(copies, size=len(train))
        both = np.concatenate([self.features[0, train], self.features[drawn, train]])
        return both, np.tile(labels, 2), np.tile(weights, 2)


@dataclass(frozen=True, eq=False)
class Trained:
    """A recipe's network, really trained in each fold from each start."""

    recipe: Recipe
    data: Dataset
    greys: np.ndarray  # (images, height, width, 1), 0..1
    folder: Path  # keeps every training

    def __call__(self, parts: Parts, start: int) -> tuple[Logits, Logits]:
        """As Learner says."""
        side, inner = self.greys.shape[1:3], self.greys[parts.train]
        spec = preprocess.Preprocessing(size=side, mean=float(inner.mean()), std=float(inner.std()))
        split = np.full(len(self.greys), "test", object)
        split[parts.train], split[parts.validation] = "train", "val"
        data = replace(self.data, manifest=self.data.part().assign(split=split))
        train, validation, test = (
            (self.greys[of] - spec.mean) / spec.std for of in (parts.train, parts.validation, parts.test)
        )
        tensors = finetune.RecipeData(data, {}, spec, train, validation)
        place = self.folder / f"repeat-{parts.repeat}-fold-{parts.fold}-start-{start}"
        model, _ = finetune.member(self.recipe, tensors, place, start)
        return release.logits(model, validation), release.logits(model, test)


def made_learner(kind: str, data: Dataset, side: int, *, folder: Path, epochs: int = 12, seed: int = 7) -> Learner:
    """A way of training by its name: "head" (LinearHead, with COPIES varied copies) or "cnn" (Trained, a compact CNN).

    side: pixels of the square input. folder: keeps the trainings of a CNN. epochs: of each of them.
    """
    if kind == "head":
        features = heads.frozen_features(data, side, copies=COPIES, seed=seed)
        return LinearHead(features, data.labels(), len(data.classes))
    if kind != "cnn":
        raise LungkitError(f"no learner '{kind}'; there are: head, cnn")
    recipe = Recipe(
        backbone="cnn", side=side, epochs=epochs, learning_rate=3e-3, label_smoothing=0.0, mixup=0.0, augmentation={}
    )
    greys = preprocess.read_batch(data.files(), preprocess.Preprocessing(size=(side, side)), label="images")
    return Trained(recipe, data, greys, folder)


# --- folds, repeats and starts


@dataclass(frozen=True, eq=False)
class Stability:
    """What repeated cross-validation found."""

    folds: int
    repeats: int
    starts: int
    by: str
    # A row for each fold, repeat and start: METRICS, patients of training and test, and, of the first start, the
    # variance that the AUC has if only the fold's test patients are drawn again.
    cells: pd.DataFrame
    pooled: Mapping[tuple[int, int], Evaluation]  # by (repeat, start): every image, tested once

    def figures(self, metric: str = "auc") -> np.ndarray:
        """A figure of each (repeats, folds, starts)."""
        shape = self.repeats, self.folds, self.starts
        return self.cells.sort_values(["repeat", "fold", "start"])[metric].to_numpy(float).reshape(shape)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row for each of METRICS: the out-of-fold figure, mean over repeats and starts, with its 95 % interval by
        patient (value, low, high), and of the folds mean_of_folds, lowest and highest.
        """
        figures = evaluation.mean_figures(list(self.pooled.values()), [(name, "") for name in METRICS])
        rows = {name: [*figures[name, ""], *self.cells[name].agg(["mean", "min", "max"])] for name in METRICS}
        columns = ["value", "low", "high", "mean_of_folds", "lowest", "highest"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def value(self, metric: str = "auc") -> tuple[float, float, float]:
        """(value, low, high) of the summary."""
        value, low, high = self.summary[["value", "low", "high"]].to_numpy(float)[METRICS.index(metric)].tolist()
        return value, low, high

    @property
    def variances(self) -> pd.DataFrame:
        """variance.components of the AUC."""
        return variance.components(self.figures())

    @property
    def of_test_patients(self) -> float:
        """The deviation of a fold's AUC that its few test patients alone explain: mean over the folds."""
        return float(np.sqrt(self.cells["auc_variance_of_test"].mean()))

    def mean_of_folds(self, metric: str = "auc") -> dict[str, tuple[float, float, float]]:
        """The mean of the folds' figures, each the mean of its starts, with variance.mean_of_folds' intervals."""
        return variance.mean_of_folds(self.figures(metric).mean(axis=2), *self._counts())

    @property
    def widening(self) -> float:
        """How many times longer the corrected interval of mean_of_folds is than the naive one, before both are cut."""
        return variance.widening(self.folds * self.repeats, *self._counts())

    def _counts(self) -> "pd.Series[float]":
        return self.cells[["test_patients", "training_patients"]].mean()

    @property
    def patients(self) -> int:
        """How many patients were tested."""
        return len(np.unique(next(iter(self.pooled.values())).patients))


def repeated(
    data: Dataset,
    learner: Learner,
    *,
    number: int = 5,
    repeats: int = 4,
    starts: int = 3,
    by: str = "patient",
    seed: int = 7,
) -> Stability:
    """Train and test in every fold of every repeat, from every start.

    Temperature and operating point are those of each fold's validation patients. The pooled AUC also ranks patients
    whom different models have read, so it tends to be a little lower than the mean of the folds (Airola et al.,
    Computational Statistics & Data Analysis 55, 2011). Stability.mean_of_folds has that mean with its intervals.
    """
    parts = folds(data, number, repeats, by, seed)
    labels, patients, sources = data.labels(), data.patients(), data.sources()
    cells = []
    scores = np.zeros((repeats, starts, len(labels), len(data.classes)))
    decisions = np.zeros(scores.shape[:3], int)
    with bar(total=len(parts) * starts, label="folds, repeats, starts", unit="training") as progress:
        for one in parts:
            for start in range(1, starts + 1):
                answers = learner(one, pipeline.derived(seed, one.repeat, one.fold, start))
                found = decided(answers, labels[one.validation], data.classes)
                place = one.repeat - 1, start - 1, one.test
                scores[place], decisions[place] = found
                cells.append(_cell(one, start, evaluated(labels[one.test], *found, patients[one.test], data), patients))
                progress.update()
    pooled = {
        (repeat + 1, start + 1): evaluated(
            labels, scores[repeat, start], decisions[repeat, start], patients, data, 1000, sources
        )
        for repeat in range(repeats)
        for start in range(starts)
    }
    return Stability(number, repeats, starts, by, pd.DataFrame(cells), pooled)


def decided(answers: tuple[Logits, Logits], truth: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of a fold's test images: calibrated probabilities (n, classes), and the classes decided on (n,).

    answers: of a Learner. truth: classes of the validation images, which choose temperature and operating point.
    """
    of_validation, of_test = answers
    calibrated = DecisionRule(kind="argmax", temperature=calibration.temperature(truth, of_validation))
    rule = evaluation.operating_point(truth, calibrated.calibrate(of_validation), classes)
    scores = calibrated.calibrate(of_test)
    return scores, rule.decide(scores)


def evaluated(
    truth: np.ndarray,
    scores: np.ndarray,
    decisions: np.ndarray,
    patients: np.ndarray,
    data: Dataset,
    n_boot: int = 0,
    sources: np.ndarray | None = None,
) -> Evaluation:
    """An evaluation whose own table has no intervals, which take time: mean_figures makes those that are wanted,
    of n_boot resamples.
    """
    rule = DecisionRule(kind="argmax")
    of = evaluation.evaluate(
        truth, scores, patients, data.classes, rule, n_boot=0, sources=sources, predicted=decisions
    )
    return replace(of, n_boot=n_boot)


def _cell(parts: Parts, start: int, measured: Evaluation, patients: np.ndarray) -> dict[str, Any]:
    counts = {
        name: len(np.unique(patients[of]))
        for name, of in (("training_patients", parts.train), ("test_patients", parts.test))
    }
    figures = {name: measured.value(name)[0] for name in METRICS}
    drawn = evaluation.resampled([replace(measured, n_boot=200)]) if start == 1 else np.empty((0, 1))
    by_test = float(np.nanvar(drawn)) if np.isfinite(drawn).any() else np.nan
    place = {"repeat": parts.repeat, "fold": parts.fold, "start": start}
    return {**place, **figures, **counts, "auc_variance_of_test": by_test}


# --- settings chosen within, and chosen on the test


@dataclass(frozen=True, eq=False)
class Nested:
    """What a search over settings seems to reach, and what it reaches.

    `honest`: in each fold the setting that did best on its validation patients, scored on its test patients (nested).
    `flattering`: the one setting that did best on the test patients of all folds, which are then no test any more.
    One evaluation for each repeat.
    """

    by_setting: pd.Series  # Setting to its AUC over all test patients, mean of the repeats, the highest first
    chosen: pd.DataFrame  # repeat, fold, setting
    honest: list[Evaluation]
    flattering: list[Evaluation]

    @property
    def table(self) -> pd.DataFrame:
        """AUC with its interval by patient: "not nested", "nested", and the difference of the two."""
        both = [*self.flattering, *self.honest]
        drawn = evaluation.resampled(both).reshape(-1, 2, len(self.honest)).mean(axis=2)
        value, low, high = zip(*map(_mean_auc, (self.flattering, self.honest)), strict=True)
        gap = drawn[:, 0] - drawn[:, 1]
        ends = np.nanpercentile(gap, evaluation.LEVELS) if len(gap) else (np.nan, np.nan)
        rows = zip((*value, value[0] - value[1]), (*low, ends[0]), (*high, ends[1]), strict=True)
        return pd.DataFrame(rows, ["not nested", "nested", "difference"], ["value", "low", "high"])


def _mean_auc(evaluations: list[Evaluation]) -> tuple[float, float, float]:
    return evaluation.mean_figures(evaluations, [("auc", "")])["auc", ""]


def nested_search(
    data: Dataset, learner: LinearHead, *, number: int = 5, repeats: int = 2, by: str = "patient", seed: int = 7
) -> Nested:
    """Search GRID within each fold, and as one should not: on the test patients.

    The figure of a search whose settings were picked by the same patients that it reports is too good (Varma and Simon,
    BMC Bioinformatics 7, 2006; Cawley and Talbot, JMLR 11, 2010).
    """
    labels, patients = data.labels(), data.patients()
    shape = (repeats, len(labels), len(data.classes))
    scores, honest = {one: np.zeros(shape) for one in GRID}, np.zeros(shape)
    chosen = []
    for one in bar(folds(data, number, repeats, by, seed), label="nested search", unit="fold"):
        answers = learner.by_setting(one, pipeline.derived(seed, one.repeat, one.fold), GRID)
        truth, place = labels[one.validation], (one.repeat - 1, one.test)
        for setting, answer in answers.items():
            scores[setting][place], _ = decided(answer, truth, data.classes)
        best = max(answers, key=lambda setting: _auc(truth, answers[setting][0], data))
        honest[place] = scores[best][place]
        chosen.append({"repeat": one.repeat, "fold": one.fold, "setting": str(best)})

    def evaluations(of: np.ndarray) -> list[Evaluation]:
        likeliest = of.argmax(axis=2)
        return [
            evaluated(labels, *each, patients, data, 1000, data.sources()) for each in zip(of, likeliest, strict=True)
        ]

    aucs = {setting: np.mean([e.value("auc")[0] for e in evaluations(of)]) for setting, of in scores.items()}
    order = sorted(aucs, key=lambda setting: -aucs[setting])
    series = pd.Series({str(setting): aucs[setting] for setting in order}, name="auc")
    return Nested(series, pd.DataFrame(chosen), evaluations(honest), evaluations(scores[order[0]]))


def _auc(truth: np.ndarray, logits: Logits, data: Dataset) -> float:
    rule = DecisionRule(kind="argmax")
    of = evaluation.evaluate(truth, rule.calibrate(logits), np.arange(len(truth)), data.classes, rule, n_boot=0)
    return of.value("auc")[0]


def shuffled(data: Dataset, seed: int = 7) -> Dataset:
    """The data set with its labels dealt out again among the patients: nothing is left to learn.

    A patient gets all labels of another one, who has as many images; so classes stay as frequent as they are.
    """
    rows = data.part()
    named = rows.groupby("patient_id", sort=True)["label"].agg(list)
    random = np.random.default_rng(seed)
    dealt: dict[str, list[str]] = {}
    for _, same in named.groupby(named.map(len)):
        dealt |= dict(zip(same.index, same.iloc[random.permutation(len(same))], strict=True))
    left = {patient: iter(labels) for patient, labels in dealt.items()}
    return replace(data, manifest=rows.assign(label=[next(left[patient]) for patient in rows["patient_id"]]))
