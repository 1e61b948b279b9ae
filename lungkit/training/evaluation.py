"""How good a classifier is: every figure with a 95 % interval by patient.

Images of one patient resemble each other, so the bootstrap draws patients, with all their images, and an interval says
how far the figure could have moved with other patients from the same source. A resample is a weight for each image
(how often its patient was drawn), so one weighted computation gives the figure itself (all weights 1) and a thousand
resamples at once. Where images come from several sources, each resample draws as many patients from each as it has:
an interval is of other patients from the same sources, and says nothing about another source.

A bootstrap of results that are all right says that nothing could have been wrong. Two rules keep an interval honest:

- A share of images (accuracy, recall, specificity, precision, coverage) has the exact interval of Clopper and Pearson
  (Biometrika 1934), for as many independent images as explain the bootstrap's variance; where it has none (all right,
  all wrong), for as many as there are patients (Korn and Graubard, Survey Methodology 1998).
- Any other figure has the percentiles of the bootstrap. Where they leave no width at 0 or 1, the interval reaches as
  far as that of n patients who are all right, n being the patients of the smallest class. This is never too short for
  an AUC: n disjoint pairs of patients are ordered rightly with a probability of at most AUC to the power of n. All
  right of 11 patients is 1.000 (0.715–1.000).

Conventions, where a figure is undefined (null in JSON, NaN in tables):

- recall, AUC and average precision of a class without an image; specificity and AUC where every image is of the class;
- precision of a class never predicted is 0, as is its F1, if the class has images; undefined if it has none either.
- Means over classes (balanced accuracy, macro F1, AUC of three and more classes) leave undefined classes out.
- Brier score: of the last class for two classes (0 to 1), summed over classes for more (0 to 2; Brier 1950).
- Of classes that are grades: kappa is that of Cohen, "Weighted kappa" (Psychological Bulletin 1968), with squared
  distances as weights, undefined where all images are of one grade and all answers, too. The second grade is often the
  hard one, so there is a kappa without its images. AUCs are of the grade that the probabilities expect.
- An interval spans the resamples in which its figure is defined; with one patient there is none, nor has a precision
  that is 0 because nothing was predicted.
- The interval of the ECE leans upwards: resampling adds scatter within each bin, which an ECE counts as error.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

from lungkit.errors import LungkitError
from lungkit.models.card import GRADED, OVERALL, PER_CLASS, Figure, Measured
from lungkit.models.card_text import METRICS, figures_table
from lungkit.models.grades import Grades
from lungkit.models.rule import DecisionRule

SHARES = ("accuracy", "precision", "recall", "specificity")  # of images: they have exact intervals
RESAMPLES, SEED = 1000, 7  # of the patients, behind each interval
ECE_BINS = 15
LEVELS = (2.5, 97.5)  # percentiles of a 95 % interval
_GRID = np.linspace(0, 1, 101)  # where the bands of curves are measured


# --- the operating point


def operating_point(
    y_true: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], grades: Grades | None = None
) -> DecisionRule:
    """How probabilities become a class, chosen on validation images only.

    y_true: (n,) class indices. probabilities: (n, classes), rows sum to 1.
    Two classes: the threshold on the last class's probability with the highest balanced accuracy (Youden's J, 1950),
    in the middle between two neighbouring probabilities; among equals the one nearest 0.5. More: the likeliest class.
    grades: where the classes are grades, of which there are three or more; then the middle one.
    """
    y_true, probabilities = _checked(y_true, probabilities, classes)
    if grades:
        return DecisionRule(
            kind="median", grades=grades, chosen_on="validation", criterion="middle grade", n=len(y_true)
        )
    if len(classes) != 2:
        return DecisionRule(kind="argmax", chosen_on="validation", criterion="likeliest class", n=len(y_true))
    for index, name in enumerate(classes):
        if not np.any(y_true == index):
            raise LungkitError(f"no validation image of class '{name}': a threshold needs images of both classes")
    values, tp, fp = _counts_above(probabilities[:, 1], y_true == 1, np.ones((1, len(y_true))))
    # Thresholds that call the 0, 1, 2, … highest values positive; J × positives × negatives, exact on whole numbers.
    between = (values[:-1] + values[1:]) / 2
    thresholds = np.concatenate([[np.nextafter(values[0], 2)], between, [0.0]])
    j = tp[0] * np.sum(y_true == 0) - fp[0] * np.sum(y_true == 1)
    best = thresholds[j == j.max()]
    return DecisionRule(
        kind="threshold",
        positive=classes[1],
        threshold=float(best[np.argmin(np.abs(best - 0.5))]),
        chosen_on="validation",
        criterion="Youden's J",
        n=len(y_true),
    )


# --- the evaluation


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found. `metrics` has columns metric, class ("" for all), value, low, high (95 % interval)."""

    classes: tuple[str, ...]
    true: np.ndarray  # (n,) class indices
    predicted: np.ndarray  # (n,) class indices at the operating point
    probabilities: np.ndarray  # (n, classes)
    patients: np.ndarray  # (n,) str
    sources: np.ndarray  # (n,) str; "" where not given
    rule: DecisionRule
    metrics: pd.DataFrame
    n_boot: int
    seed: int

    def value(self, metric: str, cls: str = "") -> tuple[float, float, float]:
        """(value, low, high) of a metric over all images, or of one class; NaN where undefined."""
        rows = self.metrics[(self.metrics["metric"] == metric) & (self.metrics["class"] == cls)]
        if rows.empty:
            raise LungkitError(
                f"no metric '{metric}' for class '{cls}'; there are {OVERALL}, of grades {GRADED}, and, by class, "
                f"{PER_CLASS}"
            )
        value, low, high = rows[["value", "low", "high"]].to_numpy(float)[0].tolist()
        return value, low, high

    @property
    def largest_class(self) -> tuple[str, float]:
        """The class with the most images, and its share of them: the accuracy of always answering it."""
        images = np.bincount(self.true, minlength=len(self.classes))
        return self.classes[int(images.argmax())], float(images.max() / len(self.true))

    @property
    def confusion(self) -> pd.DataFrame:
        """Images by true class (rows) and predicted class (columns)."""
        size = len(self.classes)
        counts = np.bincount(self.true * size + self.predicted, minlength=size**2).reshape(size, size)
        return pd.DataFrame(counts, pd.Index(self.classes, name="true"), pd.Index(self.classes, name="predicted"))

    @property
    def per_class(self) -> pd.DataFrame:
        """Class by metric, with support (number of images)."""
        rows = self.metrics[self.metrics["class"] != ""]
        table = rows.pivot(index="class", columns="metric", values="value").reindex(self.classes)[list(PER_CLASS)]
        return table.assign(support=np.bincount(self.true, minlength=len(self.classes))).rename_axis(columns=None)

    @cached_property
    def by_source(self) -> dict[str, "Evaluation"]:
        """The evaluation of each source's images alone; empty where there is one source."""
        names = np.unique(self.sources)
        of = {str(name): self.sources == name for name in names}
        return {name: self._of(images, self.predicted[images]) for name, images in of.items()} if len(of) > 1 else {}

    def _of(self, images: np.ndarray, predicted: np.ndarray | None = None) -> "Evaluation":
        """The evaluation of some of the images (bool, n), decided as given or by the rule."""
        return evaluate(
            self.true[images],
            self.probabilities[images],
            self.patients[images],
            self.classes,
            self.rule,
            self.n_boot,
            self.seed,
            self.sources[images],
            predicted,
        )

    @cached_property
    def record(self) -> Measured:
        """The figures as a card keeps them, also of each source where there are several; undefined ones are None."""
        of = {(metric, cls): _figure(*row) for metric, cls, *row in self.metrics.itertuples(index=False)}
        largest, share = self.largest_class
        return Measured(
            n=len(self.true),
            patients=len(np.unique(self.patients)),
            classes=self.classes,
            confusion=tuple(map(tuple, self.confusion.to_numpy().tolist())),
            largest_class={"class": largest, "share": share},
            operating_point=self.rule.operating_point(),
            at_half=self._at_half(),
            figures={metric: of[metric, ""] for metric in (*OVERALL, *GRADED) if (metric, "") in of},
            by_class={cls: {metric: of[metric, cls] for metric in PER_CLASS} for cls in self.classes},
            support={str(cls): int(images) for cls, images in self.per_class["support"].items()},
            sources={name: replace(of.record, at_half=None) for name, of in self.by_source.items()} or None,
        )

    def _at_half(self) -> Measured | None:
        """What the decision would be worth at 0.5, where another threshold was chosen; nothing for more classes."""
        if self.rule.threshold is None:
            return None
        rule = DecisionRule(kind="threshold", positive=self.classes[-1], threshold=0.5)
        half = replace(self, rule=rule)._of(np.full(len(self.true), True))
        wanted = {"accuracy": "", "balanced_accuracy": "", "recall": self.classes[-1], "specificity": self.classes[-1]}
        return Measured(figures={metric: _figure(*half.value(metric, cls)) for metric, cls in wanted.items()})

    def to_dict(self) -> dict[str, Any]:
        """`record`, JSON-ready."""
        return self.record.to_dict()

    def summary(self) -> pd.DataFrame:
        """For people: card_text.figures_table as a frame."""
        table = figures_table("", self.record)
        return pd.DataFrame.from_dict(dict(table.rows), orient="index", columns=list(table.columns))

    def reliability(self) -> pd.DataFrame:
        """Per confidence bin that has images: its mean confidence, accuracy (with low and high) and images.

        Confidence is the likeliest class's probability, accuracy how often that class is the true one; index and edges
        (`left`, `right`] as in the ECE.
        """
        confidence = self.probabilities.max(axis=1)
        correct = self.probabilities.argmax(axis=1) == self.true
        bins = _confidence_bins(confidence)
        member = np.eye(ECE_BINS)[bins]
        images = member.sum(axis=0)
        resampled = [np.empty((0, ECE_BINS))]
        with np.errstate(invalid="ignore"):
            for weights in self._resamples():
                resampled.append((weights @ (member * correct[:, None])) / (weights @ member))
            patients = np.array([len(np.unique(self.patients[bins == b])) for b in range(ECE_BINS)])
            low, high = _share_interval(correct @ member / images, np.concatenate(resampled), images, patients)
            table = pd.DataFrame(
                {
                    "left": np.arange(ECE_BINS) / ECE_BINS,
                    "right": np.arange(1, ECE_BINS + 1) / ECE_BINS,
                    "confidence": confidence @ member / images,
                    "accuracy": correct @ member / images,
                    "low": low,
                    "high": high,
                    "images": images.astype(int),
                }
            )
        return table[table["images"] > 0]

    def roc(self, cls: str) -> pd.DataFrame:
        """ROC curve of one class against the rest: fpr, tpr at each threshold, falling."""
        thresholds, tp, fp = self._counts(cls, np.ones((1, len(self.true))))
        with np.errstate(invalid="ignore"):
            fpr, tpr = fp[0] / fp[0, -1], tp[0] / tp[0, -1]
        return pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": np.r_[np.inf, thresholds]})

    def roc_band(self, cls: str) -> pd.DataFrame:
        """95 % band of the true-positive rate (low, high) at evenly spaced false-positive rates (fpr).

        Where the classes are told apart without an error, it reaches down as far as the AUC's interval.
        """
        return self._band(cls, "fpr", lambda tp, fp: np.interp(_GRID, fp / fp[-1], tp / tp[-1]))

    def precision_recall(self, cls: str) -> pd.DataFrame:
        """Precision-recall curve of one class: recall, precision at each threshold, falling; begins at recall 0."""
        thresholds, tp, fp = self._counts(cls, np.ones((1, len(self.true))))
        with np.errstate(invalid="ignore"):
            recall, precision = tp[0] / tp[0, -1], tp[0] / (tp[0] + fp[0])
        precision[0] = 1.0  # nothing called positive yet
        return pd.DataFrame({"recall": recall, "precision": precision, "threshold": np.r_[np.inf, thresholds]})

    def precision_recall_band(self, cls: str) -> pd.DataFrame:
        """95 % band of precision (low, high) at evenly spaced recalls; reaching down as in `roc_band`."""

        def precision(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
            # The first threshold that reaches each recall, as precision between two thresholds is not a straight line.
            at = np.searchsorted(tp, np.maximum(_GRID * tp[-1] - 1e-9, 1e-9))
            return tp[at] / (tp[at] + fp[at])

        return self._band(cls, "recall", precision)

    def save(self, folder: str | Path, files: Sequence[str] | None = None) -> None:
        """Write evaluation.json, metrics.csv, confusion.csv and predictions.csv (with `files`, a name per image)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        predictions = pd.DataFrame({"patient": self.patients})
        if files is not None:
            if len(files) != len(self.true):
                raise LungkitError(f"{len(files)} file names for {len(self.true)} images; give one for each")
            predictions.insert(0, "file", [str(file) for file in files])
        names = np.array(self.classes)
        predictions = predictions.assign(true=names[self.true], predicted=names[self.predicted])
        predictions = predictions.join(pd.DataFrame(self.probabilities, columns=[f"probability {c}" for c in names]))
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "evaluation.json").write_text(text + "\n", "utf-8")
        self.metrics.to_csv(folder / "metrics.csv", index=False)
        self.confusion.to_csv(folder / "confusion.csv")
        predictions.to_csv(folder / "predictions.csv", index=False)

    def bootstrapped(self, figures: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, ...]:
        """Other figures of these images, by the same resamples of patients: value, low, high (k,), and (resamples, k).

        figures: of weights (r, n), how often each image counts, the figures (r, k); NaN where one is undefined. low and
        high are percentiles, NaN with one patient.
        """
        value = figures(np.ones((1, len(self.true))))[0]
        resampled = np.concatenate([np.empty((0, len(value))), *map(figures, self._resamples())])
        return (value, *_interval(resampled), resampled)

    def _resamples(self) -> Iterator[np.ndarray]:
        return _resamples(self.patients, self.n_boot, self.seed, self.sources)

    def _counts(self, cls: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        index = self.classes.index(cls)
        return _counts_above(self.probabilities[:, index], self.true == index, weights)

    def _band(self, cls: str, x: str, on_grid: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> pd.DataFrame:
        curves = [np.empty((0, len(_GRID)))]
        for weights in self._resamples():
            _, tp, fp = self._counts(cls, weights)
            curves.append(
                np.stack([on_grid(t, f) if t[-1] and f[-1] else _GRID * np.nan for t, f in zip(tp, fp, strict=True)])
            )
        low, high = _interval(np.concatenate(curves))
        area, least, _ = self.value("auc", cls)
        if area == 1:
            low = np.minimum(low, least)
        return pd.DataFrame({x: _GRID, "low": low, "high": high})


def _figure(value: float, low: float, high: float) -> Figure:
    value_, low_, high_ = (None if np.isnan(number) else float(number) for number in (value, low, high))
    return Figure(value_, (low_, high_))


def evaluate(
    y_true: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    classes: Sequence[str],
    rule: DecisionRule,
    n_boot: int = RESAMPLES,
    seed: int = SEED,
    sources: ArrayLike | None = None,
    predicted: ArrayLike | None = None,
) -> Evaluation:
    """Compare probabilities with the truth.

    y_true: (n,) class indices. probabilities: (n, classes), rows sum to 1. patients: (n,) identifiers.
    rule: from `operating_point` on validation images. n_boot: resamples of patients behind each interval.
    sources: (n,) hospitals or collections, within which patients are drawn; a patient belongs to the first one.
    predicted: (n,) class indices, where they were decided elsewhere; default: by the rule.
    Precision, recall, specificity, F1, accuracy and confusion are of the decision at the operating point; AUC (of the
    last class for two classes, else the mean of one-against-rest), average precision, Brier score and ECE are of the
    probabilities. ECE: Guo et al., "On Calibration of Modern Neural Networks" (2017), 15 bins of equal width.
    LungkitError where the input does not fit together.
    """
    y_true, probabilities = _checked(y_true, probabilities, classes)
    patients = _checked_patients(patients, len(y_true))
    of_sources = _checked_sources(sources, len(y_true))
    decided = rule.decide(probabilities) if predicted is None else _checked(predicted, probabilities, classes)[0]
    if rule.grades and len(classes) < 3:
        raise LungkitError(f"{len(classes)} classes are no grades; accepted: 3 or more")
    names = _figures(classes, rule)
    score = _Scores(y_true, probabilities, decided, graded=bool(rule.grades))
    value = score(np.ones((1, len(y_true))))[0]
    drawn = _resamples(patients, n_boot, seed, of_sources)
    resampled = [np.empty((0, len(names))), *(score(weights) for weights in drawn)]
    counts = _Counts(y_true, decided, patients, tuple(classes))
    low, high = _intervals(names, value, np.concatenate(resampled), counts)
    table = pd.DataFrame(names, columns=["metric", "class"]).assign(value=value, low=low, high=high)
    given = y_true, decided, probabilities, patients, of_sources
    return Evaluation(tuple(classes), *given, rule, table, n_boot, seed)


def _figures(classes: Sequence[str], rule: DecisionRule) -> list[tuple[str, str]]:
    """(metric, class) of every figure, in the order of _Scores."""
    of_all = [(name, "") for name in OVERALL] + [(name, cls) for cls in classes for name in PER_CLASS]
    return of_all + ([(name, "") for name in GRADED] if rule.grades else [])


def review(
    rule: DecisionRule, y_true: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, sources: np.ndarray
) -> dict[str, Any]:
    """What the clinic leaves to a person, and what its answers to the rest are worth; JSON-ready. Arrays: (n, …).

    `share` of the images whose probabilities lie within the rule's band of uncertainty, `errors_held`: the share of
    all errors among them (None without any), and `accuracy` of the others with its `interval` (None where no other
    is left).
    """
    uncertain = rule.uncertain(probabilities)
    wrong = rule.decide(probabilities) != y_true
    right = (~wrong[~uncertain]).astype(float)
    figures = mean_with_interval(right, patients[~uncertain], share=True, sources=sources[~uncertain])
    accuracy, *interval = (None if np.isnan(figure) else figure for figure in figures)
    return {
        "share": float(uncertain.mean()),
        "errors_held": float(uncertain[wrong].mean()) if wrong.any() else None,
        "accuracy": accuracy,
        "interval": interval,
    }


def paired_difference(a: Evaluation, b: Evaluation, metric: str = "auc", cls: str = "") -> tuple[float, float, float]:
    """How much better `a` does than `b` on the same images: (a - b, low, high), a 95 % interval by patient.

    Both answer for the same patients, so each resample draws the same patients for both: what makes some patients hard
    for both cancels, and two models can differ though their own intervals overlap (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993). Where no resample shows a difference, the interval is as wide as the exact
    one of n patients none of whom tells the two apart. LungkitError where the images, their patients or the classes
    are not the same; NaN where the figure is undefined.
    """
    return paired_differences(a, b, [(metric, cls)])[metric, cls]


def paired_differences(
    a: Evaluation, b: Evaluation, figures: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """As `paired_difference`, for several figures, (metric, class), from the same resamples."""
    _same_images(a, b)
    names = _figures(a.classes, a.rule)
    rows = [names.index(figure) for figure in figures]
    graded = any(metric in GRADED for metric, _ in figures)
    scores = [_Scores(e.true, e.probabilities, e.predicted, graded) for e in (a, b)]

    def differences(weights: np.ndarray) -> np.ndarray:
        return scores[0](weights)[:, rows] - scores[1](weights)[:, rows]

    values = differences(np.ones((1, len(a.true))))[0].tolist()
    resampled = [np.empty((0, len(rows))), *(differences(weights) for weights in a._resamples())]
    bounds = np.transpose(_interval(np.concatenate(resampled))).tolist()
    return {
        figure: _reaching(a, b, figure, value, low, high)
        for figure, value, (low, high) in zip(figures, values, bounds, strict=True)
    }


def resampled(evaluations: Sequence[Evaluation], metric: str = "auc", cls: str = "") -> np.ndarray:
    """A figure of several evaluations of the same images, under the same draws of patients: (n_boot, evaluations).

    The differences and means of a row's entries are those that other patients would have given. No row where there is
    one patient. LungkitError where the images are not the same.
    """
    return _resampled(evaluations, [(metric, cls)])[..., 0]


def mean_figures(
    evaluations: Sequence[Evaluation], figures: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """The means of figures, (metric, class), over evaluations of the same images: (mean, low, high), by patient.

    A 95 % interval says how the models that there are would do on other patients: each resample is for all of them.
    What other training patients would change is not in it. Where no resample differs, it is as wide as that of all
    right. LungkitError where the images are not the same.
    """
    values = np.mean([[one.value(*figure)[0] for figure in figures] for one in evaluations], axis=0).tolist()
    bounds = np.transpose(_interval(_resampled(evaluations, figures).mean(axis=1))).tolist()
    means = {}
    for figure, value, (low, high) in zip(figures, values, bounds, strict=True):
        if low == high:
            n = min(_Counts(e.true, e.predicted, e.patients, e.classes).independent(*figure) for e in evaluations)
            low, high = max(value - (1 - all_right(n)), 0.0), min(value + (1 - all_right(n)), 1.0)
        means[figure] = (value, low, high)
    return means


def _resampled(evaluations: Sequence[Evaluation], figures: Sequence[tuple[str, str]]) -> np.ndarray:
    """(resamples, evaluations, figures): a row's are of the same patients."""
    first = evaluations[0]
    for one in evaluations[1:]:
        _same_images(first, one)
    names = _figures(first.classes, first.rule)
    columns, graded = [names.index(figure) for figure in figures], any(metric in GRADED for metric, _ in figures)
    scores = [_Scores(e.true, e.probabilities, e.predicted, graded) for e in evaluations]
    rows = [np.stack([score(weights)[:, columns] for score in scores], axis=1) for weights in first._resamples()]
    return np.concatenate([np.empty((0, len(scores), len(columns))), *rows])


def _same_images(a: Evaluation, b: Evaluation) -> None:
    same = a.classes == b.classes and np.array_equal(a.true, b.true) and np.array_equal(a.patients, b.patients)
    if not same:
        raise LungkitError("two evaluations of other images cannot be paired; evaluate both on the same ones, in order")


def _reaching(
    a: Evaluation, b: Evaluation, figure: tuple[str, str], value: float, low: float, high: float
) -> tuple[float, float, float]:
    """A difference with its interval, which has a width also where no resample shows one."""
    if low == high:
        n = min(_Counts(a.true, e.predicted, a.patients, a.classes).independent(*figure) for e in (a, b))
        low, high = value - (1 - all_right(n)), value + (1 - all_right(n))
    return value, max(low, -1.0), min(high, 1.0)


def mean_with_interval(
    values: ArrayLike,
    patients: ArrayLike,
    share: bool = False,
    bounds: tuple[float, float] | None = None,
    sources: ArrayLike | None = None,
) -> tuple[float, float, float]:
    """Mean of one value per image with its 95 % interval by patient: (mean, low, high); NaNs are left out.

    share: the values are 0 or 1, and the mean is a share of images, which has an exact interval.
    bounds: between which other values lie; where all are alike, the interval reaches as far as if each patient were an
        answer that is right, and not to the value itself alone.
    sources: as in `evaluate`.
    """
    given = np.asarray(values, float)
    defined = ~np.isnan(given)
    known, of = given[defined], _checked_patients(patients, len(given))[defined]
    places = _checked_sources(sources, len(given))[defined]
    if not len(known):
        return (np.nan, np.nan, np.nan)
    means = [(weights @ known / weights.sum(axis=1))[:, None] for weights in _resamples(of, RESAMPLES, SEED, places)]
    resampled, mean = np.concatenate([np.empty((0, 1)), *means]), known.mean(keepdims=True)
    low, high = _interval(resampled)
    if share:
        low, high = _share_interval(mean, resampled, np.array([len(known)]), np.array([len(np.unique(of))]))
    elif bounds and low == high:
        reach = (bounds[1] - bounds[0]) * (1 - all_right(len(np.unique(of))))
        low, high = np.maximum(mean - reach, bounds[0]), np.minimum(mean + reach, bounds[1])
    return float(mean[0]), float(low[0]), float(high[0])


def all_right(n: float) -> float:
    """The lower end of the exact 95 % interval of n independent answers that are all right; of none: 0.

    >>> round(all_right(11), 3)
    0.715
    """
    return float((LEVELS[0] / 100) ** (1 / n)) if n else 0.0


def points_table(measured: Measured) -> pd.DataFrame:
    """For people: what decisions are worth, a row for each way to decide, of two classes also at 0.5."""
    last, names = (measured.classes or ("",))[-1], ["accuracy", "balanced_accuracy"]
    if len(measured.classes or ()) == 2:
        names += ["recall", "specificity"]
    point = measured.operating_point.describe() if measured.operating_point else "operating point"
    rows = {point: [str(measured.figure(name, last if name in PER_CLASS else "")) for name in names]}
    if measured.at_half:
        rows["0.5, not chosen"] = [str(measured.at_half.figure(name)) for name in names]
    if measured.largest_class:
        always, share = measured.largest_class["class"], measured.largest_class["share"]
        constant = {"accuracy": share, "balanced_accuracy": 1 / np.count_nonzero(list(measured.support.values()))}
        constant |= {"recall": float(always == last), "specificity": float(always != last)}
        rows[f"always '{always}'"] = [f"{constant[name]:.3f}" for name in names]
    titles = [f"{METRICS[name]} for {last}" if name in PER_CLASS else METRICS[name] for name in names]
    return pd.DataFrame.from_dict(rows, orient="index", columns=titles)


def side_by_side(parts: Mapping[str, Measured]) -> pd.DataFrame:
    """For people: the overall figures of several parts, a column each, next to those of always answering one class."""
    rows: dict[str, list[str]] = {}
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece"):
        rows[METRICS[name]] = [str(of.figure(name)) for of in parts.values()]
        if name == "accuracy":
            shares = [(of.largest_class or {}).get("share") for of in parts.values()]
            rows["Always answering the largest class"] = [str(Figure(share)) for share in shares]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(parts))


# --- input


def _checked(y_true: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    y_true, probabilities = np.asarray(y_true), np.asarray(probabilities, float)
    n, size = len(y_true), len(classes)
    if n == 0:
        raise LungkitError("no image to evaluate; give at least one")
    if size < 2 or len(set(classes)) != size:
        raise LungkitError(f"classes are {list(classes)}; give at least two different names")
    if probabilities.shape != (n, size):
        raise LungkitError(
            f"probabilities have shape {probabilities.shape}; {n} labels of {size} classes need ({n}, {size})"
        )
    if not np.issubdtype(y_true.dtype, np.integer) or y_true.ndim != 1:
        raise LungkitError(f"labels are {y_true.dtype} of shape {y_true.shape}; give class indices, integers (n,)")
    if y_true.min() < 0 or y_true.max() >= size:
        raise LungkitError(
            f"labels range from {y_true.min()} to {y_true.max()}; {size} classes have the indices 0 to {size - 1}"
        )
    wrong = ~(np.all((probabilities >= 0) & (probabilities <= 1.001), axis=1) & (abs(probabilities.sum(1) - 1) < 1e-3))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise LungkitError(
            f"row {row} of the probabilities is {probabilities[row].tolist()}; each must be 0 to 1 and a row sum to 1 "
            "(logits need a softmax first)"
        )
    return y_true.astype(int), probabilities


def _checked_patients(patients: ArrayLike, n: int) -> np.ndarray:
    names = np.asarray(patients, object)
    if len(names) != n:
        raise LungkitError(f"{len(names)} patients for {n} images; give one for each image")
    if (missing := pd.isna(names)).any():
        raise LungkitError(f"image {int(np.argmax(missing))} has no patient; the intervals are by patient")
    return names.astype(str)


def _checked_sources(sources: ArrayLike | None, n: int) -> np.ndarray:
    names = np.full(n, "") if sources is None else np.asarray(sources).astype(str)
    if len(names) != n:
        raise LungkitError(f"{len(names)} sources for {n} images; give one for each image")
    return names


# --- weighted computation; weights: (resamples, n)


def resamples(patients: ArrayLike, sources: ArrayLike | None = None) -> Iterator[np.ndarray]:
    """The weights behind every interval here, for a figure of another kind: (chunk, n) at a time, by patient.

    patients, sources: (n,), as in `evaluate`.
    """
    owners = np.asarray(patients).astype(str)
    return _resamples(_checked_patients(owners, len(owners)), RESAMPLES, SEED, _checked_sources(sources, len(owners)))


def _resamples(
    patients: np.ndarray, n_boot: int, seed: int, sources: np.ndarray, chunk: int = 50
) -> Iterator[np.ndarray]:
    """Weights of the images, (chunk, n) at a time: how often each image's patient was drawn. None with one patient.

    As many patients are drawn from each source as it has.
    """
    names, first, patient = np.unique(patients, return_index=True, return_inverse=True)
    if len(names) < 2:
        return
    at_home = sources[first]  # of each patient
    groups = [np.flatnonzero(at_home == source) for source in np.unique(at_home)]
    rng = np.random.default_rng(seed)
    for start in range(0, n_boot, chunk):
        drawn = np.empty((min(chunk, n_boot - start), len(names)))
        for group in groups:
            drawn[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=len(drawn))
        yield drawn[:, patient]


def _interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high per column of (resamples, figures), NaNs left out; NaN where nothing is left."""
    bounds = np.full((2, resampled.shape[1]), np.nan)
    defined = ~np.isnan(resampled).all(axis=0)
    if defined.any():
        bounds[:, defined] = np.nanpercentile(resampled[:, defined], LEVELS, axis=0)
    return bounds[0], bounds[1]


def _share_interval(
    share: np.ndarray, resampled: np.ndarray, images: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Exact interval of shares (k,) of so many images of so many patients, from resamples (r, k): low, high (k,).

    Korn and Graubard: Clopper and Pearson's, for p (1 - p) / variance images, at most all of them; where all are right
    or wrong, or the variance is 0, one for each patient. NaN without resamples or images.
    """
    variance = np.full(len(share), np.nan)
    defined = ~np.isnan(resampled).all(axis=0)
    if defined.any():
        variance[defined] = np.nanvar(resampled[:, defined], axis=0)
    flat = (variance < 1e-12) | (share == 0) | (share == 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(flat, patients, np.minimum(share * (1 - share) / variance, images))
    known = defined & ~np.isnan(share) & (n > 0)
    low, high = np.full(len(share), np.nan), np.full(len(share), np.nan)
    right, wrong = (share * n)[known], ((1 - share) * n)[known]
    alpha = LEVELS[0] / 100
    low[known] = np.where(right > 0, scipy.stats.beta.ppf(alpha, np.maximum(right, 1e-9), wrong + 1), 0)
    high[known] = np.where(wrong > 0, scipy.stats.beta.ppf(1 - alpha, right + 1, np.maximum(wrong, 1e-9)), 1)
    return low, high


def _intervals(
    names: Sequence[tuple[str, str]], value: np.ndarray, resampled: np.ndarray, counts: "_Counts"
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of every figure, by the two rules of this module."""
    low, high = _interval(resampled)
    shares = [i for i, (metric, _) in enumerate(names) if metric in SHARES]
    images, patients = np.array([counts.behind(*names[i]) for i in shares]).T
    low[shares], high[shares] = _share_interval(value[shares], resampled[:, shares], images, patients)
    for i, (metric, cls) in enumerate(names):
        if metric not in (*SHARES, "ece", "brier") and low[i] == high[i]:
            reach = 1 - all_right(counts.independent(metric, cls))
            least, most = counts.bounds(metric)
            low[i], high[i] = max(value[i] - reach * most, least), min(value[i] + reach * most, most)
    return low, high


@dataclass(frozen=True, eq=False)
class _Counts:
    """How many images and patients are behind a figure."""

    true: np.ndarray
    predicted: np.ndarray
    patients: np.ndarray
    classes: tuple[str, ...]

    def behind(self, metric: str, cls: str) -> tuple[int, int]:
        """Images and patients that a share is of."""
        if not cls:
            return len(self.true), self._patients(slice(None))
        of = self.classes.index(cls)
        counted = {"recall": self.true == of, "specificity": self.true != of, "precision": self.predicted == of}[metric]
        return int(counted.sum()), self._patients(counted)

    def independent(self, metric: str, cls: str) -> int:
        """Patients of the smallest class that has any, or, of one class, of it or of the others."""
        if metric in SHARES:
            return self.behind(metric, cls)[1]
        of = self.true if not cls else self.true == self.classes.index(cls)
        return min(self._patients(of == group) for group in np.unique(of))

    def bounds(self, metric: str) -> tuple[float, float]:
        """The least and the most that a figure can be."""
        if metric == "grades_off":
            return 0.0, len(self.classes) - 1.0
        return -1.0 if metric.startswith("kappa") else 0.0, 1.0

    def _patients(self, images: slice | np.ndarray) -> int:
        return len(np.unique(self.patients[images]))


def _counts_above(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at each threshold.

    Returns the distinct scores, falling (t,), and tp, fp (resamples, t + 1): the weight of positive and of other
    images that score at least as much; the first column is 0 (nothing is called positive).
    """
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each run of equal scores
    sorted_weights = weights[:, order]
    none = np.zeros((len(weights), 1))
    tp = np.hstack([none, np.cumsum(sorted_weights * positive[order], axis=1)[:, last]])
    fp = np.hstack([none, np.cumsum(sorted_weights, axis=1)[:, last]]) - tp
    return scores[last], tp, fp


def _areas(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve (ties count half) and average precision, each (resamples,)."""
    _, tp, fp = _counts_above(scores, positive, weights)
    gained = np.diff(tp, axis=1)
    auc = np.sum(np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1]) / 2, axis=1) / (tp[:, -1] * fp[:, -1])
    precision = tp[:, 1:] / (tp[:, 1:] + fp[:, 1:])
    average_precision = np.sum(gained * np.where(gained > 0, precision, 0), axis=1) / tp[:, -1]
    return auc, average_precision


def weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC (resamples,) of scores (n,) of images that are positive or not (bool, n), which count by weights (r, n).

    Ties count half; NaN where a class has no weight.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _areas(scores, positive, weights)[0] if len(scores) else np.full(len(weights), np.nan)


def _confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin of each confidence among 15 of equal width, each without its left and with its right edge."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaNs; NaN, silently, where there is nothing else."""
    defined = ~np.isnan(values)
    return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


class _Scores:
    """All figures of one set of predictions: call with weights (resamples, n), get (resamples, figures)."""

    def __init__(self, true: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, graded: bool = False):
        n, self.size = probabilities.shape
        self.true, self.probabilities, self.graded = true, probabilities, graded
        confidence, bins = probabilities.max(axis=1), _confidence_bins(probabilities.max(axis=1))
        excess = confidence - (probabilities.argmax(axis=1) == true)
        squared = (probabilities - np.eye(self.size)[true]) ** 2
        # Everything that is a weighted sum over images, as columns of one matrix product.
        self.columns = np.zeros((n, self.size**2 + ECE_BINS + 1))
        self.columns[np.arange(n), true * self.size + predicted] = 1
        self.columns[np.arange(n), self.size**2 + bins] = excess
        self.columns[:, -1] = squared[:, -1] if self.size == 2 else squared.sum(axis=1)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        sums = weights @ self.columns
        confusion = sums[:, : self.size**2].reshape(-1, self.size, self.size)
        ece = np.abs(sums[:, self.size**2 : -1]).sum(axis=1) / total
        brier = sums[:, -1] / total
        with np.errstate(invalid="ignore", divide="ignore"):  # undefined figures become NaN
            areas = np.array([_areas(p, self.true == k, weights) for k, p in enumerate(self.probabilities.T)])
            tp = np.diagonal(confusion, axis1=1, axis2=2)
            support, called = confusion.sum(axis=2), confusion.sum(axis=1)
            recall = tp / support
            precision = np.where((called == 0) & (support > 0), 0.0, tp / called)
            specificity = 1 - (called - tp) / (total[:, None] - support)
            f1 = 2 * tp / (support + called)
            auc, average_precision = areas.transpose(1, 2, 0)
            auc_of_all = auc[:, -1] if self.size == 2 else _nanmean(auc)
            overall = [tp.sum(axis=1) / total, _nanmean(recall), _nanmean(f1), auc_of_all, ece, brier]
            of_grades = self._of_grades(confusion, weights) if self.graded else []
        per_class = np.stack([precision, recall, specificity, f1, auc, average_precision], axis=2)
        return np.column_stack([*overall, per_class.reshape(len(weights), -1), *of_grades])

    def _of_grades(self, confusion: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        """The figures GRADED, each (resamples,); confusion: (resamples, true, predicted)."""
        grade = np.arange(self.size)
        expected, group = self.probabilities @ grade, np.minimum(self.true, 2)
        aucs = []
        for low, high in ((0, 2), (0, 1), (1, 2)):
            of = (group == low) | (group == high)
            none = np.full(len(weights), np.nan)
            aucs.append(_areas(expected[of], group[of] == high, weights[:, of])[0] if of.any() else none)
        off = (confusion * abs(grade[:, None] - grade)).sum(axis=(1, 2)) / confusion.sum(axis=(1, 2))
        without = np.where((grade == 1)[:, None], 0, confusion)
        return [_quadratic_kappa(confusion), _quadratic_kappa(without), off, *aucs]


def _quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """1 - squared distances there are / those of answers by chance: (resamples,), of (resamples, true, predicted)."""
    grade = np.arange(confusion.shape[1])
    squared = (grade[:, None] - grade) ** 2
    chance = np.einsum("ri,rj->rij", confusion.sum(axis=2), confusion.sum(axis=1))
    total = confusion.sum(axis=(1, 2))
    return 1 - (confusion * squared).sum(axis=(1, 2)) * total / (chance * squared).sum(axis=(1, 2))
