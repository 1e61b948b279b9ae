"""Two models on the same patients: whether one is better, not worse, worse, or whether these patients cannot tell.

Every figure is by patient, as everywhere in lungkit: images of one patient are no independent observations.

- The difference in AUC has a paired bootstrap interval (evaluation.paired_difference). Each class against the rest has
  the p of DeLong, DeLong and Clarke-Pearson (Biometrics 1988), in the form that Obuchowski gave it for several images
  of a patient (Biometrics 1997); with one image for each patient it is DeLong's own. Where the difference has no
  variance, p is that of swapping the two models' ranks within patients; k patients can give no p below 2 / 2^k so.
- Decisions have McNemar's test (Psychometrika 1947), exact, and for several images of a patient by the signs of whole
  patients. With one image for each patient it is McNemar's own; with many patients it is the one that Obuchowski gave
  for proportions of clustered data (Statistics in Medicine 1998).
- Where there are several tests, `adjusted` gives p by Holm (Scandinavian Journal of Statistics 1979).

"Not worse" is a claim that needs a margin, stated before: the whole interval lies above minus the margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from lungkit import wording
from lungkit.training import evaluation
from lungkit.training.evaluation import Evaluation

MARGIN = 0.02  # of AUC: a smaller loss does not count as worse
SIGNIFICANT = 0.05  # a p below it
SWAPS = 1_999  # with the order there is, 2,000: the smallest p is 0.0005
LARGE = 10_000  # patients whose decisions differ: above, or where it would take long, the normal approximation is used
BETTER, NOT_WORSE, WORSE, OPEN, UNDEFINED = "better", "not worse", "worse", "open", "undefined"
IDENTICAL = "identical"  # the same answers for every image: no other patient would have told them apart either

Difference = tuple[float, float, float]  # value, low, high; NaN where undefined


@dataclass(frozen=True)
class OfClass:
    """The difference in AUC of one class against the rest."""

    auc: Difference
    p: float  # DeLong's, by patient; NaN where undefined
    adjusted: float = np.nan  # p by Holm among all tests of AUC in the comparison


@dataclass(frozen=True)
class Pair:
    """Two models on the same images of one source; differences are new minus old."""

    source: str
    at_home: bool  # whether the old one learned from this source
    old: Evaluation
    new: Evaluation
    auc: Difference  # of the last class for two, else of the mean of one-against-rest
    accuracy: Difference
    balanced_accuracy: Difference
    by_class: Mapping[str, OfClass]  # of two classes the last one alone: the other is its mirror
    decision_p: float
    margin: float
    decision_adjusted: float = np.nan  # decision_p by Holm among all tests of decisions in the comparison
    new_knows: bool = False  # whether the new one learned from this source, of which these are other patients
    names: tuple[str, str] = field(default=("old", "new"))

    @property
    def auc_p(self) -> float:
        """DeLong's p by patient; NaN for more than two classes, each of which has its own in `by_class`."""
        return next(iter(self.by_class.values())).p if len(self.by_class) == 1 else np.nan

    @property
    def patients(self) -> int:
        """How many there are."""
        return len(np.unique(self.new.patients))

    @property
    def same_answers(self) -> bool:
        """Whether both give the same probabilities and decisions for every image."""
        return _same_answers(self.old, self.new)

    @property
    def remarks(self) -> list[str]:
        """Why a figure is undefined, or a difference is none; one sentence each."""
        return [f"{self.source}, {self.names[1]} against {self.names[0]}: {text}" for text in _remarks(self)]

    @property
    def verdict(self) -> str:
        """By the interval of the difference in AUC, unless all answers are the same: a word of this module."""
        value, low, high = self.auc
        if self.same_answers and not np.isnan(value):
            return IDENTICAL
        if np.isnan([low, high]).any():
            return UNDEFINED
        if low > 0:
            return BETTER
        if high < 0:
            return WORSE
        return NOT_WORSE if low > -self.margin else OPEN

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is undefined is None."""
        return {
            "reference": self.names[0],
            "model": self.names[1],
            "source": self.source,
            "at_home": self.at_home,
            "new_knows": self.new_knows,
            "images": len(self.new.true),
            "patients": self.patients,
            "reference_auc": _json(self.old.value("auc")),
            "model_auc": _json(self.new.value("auc")),
            "auc_difference": _json(self.auc),
            "accuracy_difference": _json(self.accuracy),
            "balanced_accuracy_difference": _json(self.balanced_accuracy),
            "by_class": {
                name: {"auc_difference": _json(of.auc), "p": _json([of.p])[0], "p_adjusted": _json([of.adjusted])[0]}
                for name, of in self.by_class.items()
            },
            "auc_p": _json([self.auc_p])[0],
            "decision_p": _json([self.decision_p])[0],
            "decision_p_adjusted": _json([self.decision_adjusted])[0],
            "margin": self.margin,
            "verdict": self.verdict,
            "remarks": self.remarks,
        }


def paired(
    old: Evaluation,
    new: Evaluation,
    source: str,
    margin: float = MARGIN,
    at_home: bool = False,
    names: tuple[str, str] = ("old", "new"),
) -> Pair:
    """Two evaluations of the same images, in the same order. LungkitError where they are not."""
    tested = new.classes[-1:] if len(new.classes) == 2 else new.classes
    figures = [("auc", ""), ("accuracy", ""), ("balanced_accuracy", ""), *(("auc", name) for name in tested)]
    differences = evaluation.paired_differences(new, old, figures)
    if _same_answers(old, new):
        differences = {figure: _exactly(of) for figure, of in differences.items()}
    by_class = {}
    for name in tested:
        at = new.classes.index(name)
        p = auc_test(new.true == at, new.probabilities[:, at], old.probabilities[:, at], new.patients)
        by_class[name] = OfClass(differences["auc", name], p)
    decision_p = decision_test(new.predicted == new.true, old.predicted == old.true, new.patients)
    return Pair(
        source=source,
        at_home=at_home,
        old=old,
        new=new,
        auc=differences["auc", ""],
        accuracy=differences["accuracy", ""],
        balanced_accuracy=differences["balanced_accuracy", ""],
        by_class=by_class,
        decision_p=decision_p,
        margin=margin,
        names=names,
    )


def _same_answers(old: Evaluation, new: Evaluation) -> bool:
    return np.array_equal(old.probabilities, new.probabilities) and np.array_equal(old.predicted, new.predicted)


def _exactly(difference: Difference) -> Difference:
    """A difference of equal answers has no interval: nothing of it was estimated."""
    return difference[0], np.nan, np.nan


def _remarks(pair: Pair) -> list[str]:
    classes, true = pair.new.classes, pair.new.true
    owners = {name: len(np.unique(pair.new.patients[true == at])) for at, name in enumerate(classes)}
    absent = [name for name, count in owners.items() if not count]
    told = [f"there is no image of '{name}', so its AUC is undefined" for name in absent]
    if pair.patients == 1:
        return [*told, "all images are of one patient, so there are no intervals, and no test says anything"]
    told += [f"one patient alone has '{name}', and DeLong's test needs two" for name, n in owners.items() if n == 1]
    told += ["both give the same answers for every image"] if pair.same_answers else []
    told += _other_decisions(pair)
    for name, of in zip(pair.names, (pair.old, pair.new), strict=True):
        told += (
            [] if _follow(of) else [f"the decisions of {name} do not follow from its probabilities: check its table"]
        )
    return told


def _other_decisions(pair: Pair) -> list[str]:
    """Whether the decisions differ, and the verdict, which is by AUC, does not say so."""
    p = pair.decision_p if np.isnan(pair.decision_adjusted) else pair.decision_adjusted
    gain = pair.accuracy[0]
    if not p < SIGNIFICANT or pair.verdict == (BETTER if gain > 0 else WORSE):
        return []
    more = "more" if gain > 0 else "fewer"
    return [
        f"{pair.names[1]} gets {more} images right, accuracy {wording.figure(*pair.accuracy, signed=True)} "
        f"(McNemar, {'p' if p < 0.001 else 'p ='} {p_text(p)}); the verdict is by AUC alone, and is '{pair.verdict}'"
    ]


def _follow(of: Evaluation) -> bool:
    """Whether decisions could follow from probabilities: the likeliest class, the middle grade, or by a threshold."""
    p, said = of.probabilities, of.predicted
    if (p[np.arange(len(said)), said] >= p.max(axis=1, initial=0) - 1e-6).all():
        return True
    if of.rule.grades and np.array_equal(of.rule.decide(p), said):
        return True
    return any(_by_threshold(p, said, at) for at in range(p.shape[1]))


def _by_threshold(p: np.ndarray, said: np.ndarray, at: int) -> bool:
    """Whether a class is decided on from some probability on, and otherwise the likeliest of the other classes."""
    called, others = said == at, np.delete(p, at, axis=1)
    chosen = p[np.arange(len(said)), said]
    apart = p[called, at].min(initial=1) >= p[~called, at].max(initial=0) - 1e-6
    return bool(apart and (chosen[~called] >= others[~called].max(axis=1, initial=0) - 1e-6).all())


# --- tests


def auc_test(y_true: ArrayLike, a: ArrayLike, b: ArrayLike, patients: ArrayLike) -> float:
    """Two-sided p that two scores of the same images have one AUC; 1 where they rank all images alike.

    y_true: (n,), 1 for the positive class. a, b: (n,), higher for it. patients: (n,). NaN where a class is missing.
    Never below 2 / 2^k of k patients, the least that an exact test by swapping the two scores of patients gives.
    """
    positive = np.asarray(y_true) == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return np.nan
    placed = [_placements(np.asarray(scores, float), positive) for scores in (a, b)]
    gap = placed[0] - placed[1]
    difference = float(gap[positive].mean())
    _, patient = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    sums = [
        np.bincount(patient[of], gap[of] - difference, minlength=patient.max() + 1) / of.sum()
        for of in (positive, ~positive)
    ]
    owners = [len(np.unique(patient[of])) for of in (positive, ~positive)]
    if min(owners) < 2:
        return np.nan
    variance = sum(count / (count - 1) * float(of @ of) for count, of in zip(owners, sums, strict=True))
    patients_there = patient.max() + 1
    variance += 2 * patients_there / (patients_there - 1) * float(sums[0] @ sums[1])
    least = 2.0 ** (1 - patients_there)
    if abs(difference) < 1e-12:
        return 1.0
    if variance <= 1e-18:
        return max(least, _swapped_p(positive, np.asarray(a, float), np.asarray(b, float), patient))
    return max(least, float(2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance))))


def _swapped_p(positive: np.ndarray, a: np.ndarray, b: np.ndarray, patient: np.ndarray) -> float:
    """Two-sided p of a difference in AUC, from swapping the ranks of two scores in a random half of the patients.

    Of all choices of patients where there are no more than SWAPS, otherwise of so many random ones.
    Venkatraman and Begg (Biometrika 1996), for patients with several images.
    """
    patients, ranks = int(patient.max()) + 1, [scipy.stats.rankdata(scores) for scores in (a, b)]
    if every := 2**patients <= SWAPS:
        swaps = (np.arange(2**patients)[:, None] >> np.arange(patients)) % 2 == 1
    else:
        swaps = np.random.default_rng(patients).random((SWAPS, patients)) < 0.5
    there = abs(_rank_gap(positive, *ranks)) - 1e-9
    gaps = [abs(_rank_gap(positive, *(np.where(swap[patient], *of) for of in (ranks, ranks[::-1])))) for swap in swaps]
    far = int(np.sum(np.array(gaps) >= there))
    return far / len(swaps) if every else (far + 1) / (SWAPS + 1)


def _rank_gap(positive: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The difference between the mean ranks of positive images by two scores: that in AUC, times a constant."""
    return float((scipy.stats.rankdata(a) - scipy.stats.rankdata(b))[positive].mean())


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of each image the share of those of the other class that it is ordered rightly with; ties count half."""
    placed = np.empty(len(scores))
    for of, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * scores[~of])
        below, not_above = (np.searchsorted(others, sign * scores[of], side) for side in ("left", "right"))
        placed[of] = (below + not_above) / 2 / len(others)
    return placed


def decision_test(a_right: ArrayLike, b_right: ArrayLike, patients: ArrayLike) -> float:
    """Two-sided p that two models decide equally often rightly; 1 where no patient tells them apart.

    a_right, b_right: bool (n,). patients: (n,). Of each patient counts how many more images one model has right. If the
    models are equal, this number could as well have the other sign: p is the share of all choices of signs whose sum is
    as far from 0. Where more than LARGE patients differ, or their gains are so many that the count would take long, the
    sum is taken to be normal with the variance that the signs give it.
    """
    gain = np.asarray(a_right, int) - np.asarray(b_right, int)
    _, patient = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    gains = np.bincount(patient, gain).astype(int)
    gains = gains[gains != 0]
    if not len(gains):
        return 1.0
    gains //= np.gcd.reduce(gains)
    if (np.abs(gains) == 1).all():
        return float(scipy.stats.binomtest(int((gains > 0).sum()), len(gains)).pvalue)
    if len(gains) > LARGE or len(gains) * np.abs(gains).sum() > LARGE**2:
        reached = max(abs(gains.sum()) - 1, 0)  # sums lie 2 apart: the correction for continuity
        return float(2 * scipy.stats.norm.sf(reached / np.sqrt(np.sum(gains**2))))
    reach = int(np.abs(gains).sum())
    shares = np.zeros(2 * reach + 1)  # of the choices, by their sum, from -reach on
    shares[reach] = 1.0
    for steps in np.abs(gains):
        shares = (np.roll(shares, steps) + np.roll(shares, -steps)) / 2  # what is rolled over the ends is 0
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(gains.sum())
    return min(1.0, float(shares[far].sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """p adjusted for so many tests, by Holm's steps (Scandinavian Journal of Statistics 1979); NaN is no test.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(ps, float)
    places = np.flatnonzero(~np.isnan(given))
    order = places[np.argsort(given[places], kind="stable")]
    steps = np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1))
    adjusted = np.full(len(given), np.nan)
    adjusted[order] = np.minimum(steps, 1)
    return [float(p) for p in adjusted]


def adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with p by Holm: among all tests of AUC (pairs, and classes of each), and among all of decisions."""
    aucs = iter(holm([of.p for pair in pairs for of in pair.by_class.values()]))
    decisions = holm([pair.decision_p for pair in pairs])
    return [
        replace(
            pair,
            by_class={name: replace(of, adjusted=next(aucs)) for name, of in pair.by_class.items()},
            decision_adjusted=decision,
        )
        for pair, decision in zip(pairs, decisions, strict=True)
    ]


# --- words


def says(old: str, new: str, pairs: Sequence[Pair]) -> str:
    """One sentence on two versions: where the new one is better, not worse, worse or open, and may it be promoted.

    It may if it is shown to be not worse on each source that the old one learned from, is worse on no other, and is
    better on one.
    """
    told = _told(pairs, f" than {old}")
    return f"{new} {', '.join(told)}: {'enough' if enough(pairs) else 'not enough'} to promote it."


def differs(old: str, new: str, pairs: Sequence[Pair]) -> str:
    """One sentence on two models: where the new one is better, not worse, worse, open or identical."""
    return f"Compared with {old}, {new} {', '.join(_told(pairs, ''))}."


def _told(pairs: Sequence[Pair], than: str) -> list[str]:
    """What is said of the sources of each verdict."""
    parts = {
        BETTER: f"is better{than} on",
        NOT_WORSE: f"is not worse, by a margin of {pairs[0].margin:g}, on",
        WORSE: "is worse on",
        OPEN: "is shown to be neither better nor worse on",
        IDENTICAL: "gives the same answers for every image of",
        UNDEFINED: "cannot be measured on",
    }
    of = {word: [pair.source for pair in pairs if pair.verdict == word] for word in parts}
    return [f"{text} {wording.listed(of[word], 'and')}" for word, text in parts.items() if of[word]]


def enough(pairs: Sequence[Pair]) -> bool:
    """Whether the new version may take the old one's place, by the rule that `says` states."""
    home_kept = all(pair.verdict in (BETTER, NOT_WORSE, IDENTICAL) for pair in pairs if pair.at_home)
    gained = any(pair.verdict == BETTER for pair in pairs if not pair.at_home)
    return home_kept and gained and not any(pair.verdict == WORSE for pair in pairs)


def pair_row(pair: Pair, several: bool = False) -> dict[str, str]:
    """A pair in one row of a table. several: there are other pairs, so p adjusted for them stand next to p."""
    known = " (home)" if pair.at_home else f" (learned by {pair.names[1]})" if pair.new_knows else ""
    row = {
        "source": f"{pair.source}{known}",
        "AUC, reference": wording.figure(*pair.old.value("auc")),
        "AUC": wording.figure(*pair.new.value("auc")),
        "difference": wording.figure(*pair.auc, signed=True),
        "accuracy, difference": wording.figure(*pair.accuracy, signed=True),
        "balanced accuracy, difference": wording.figure(*pair.balanced_accuracy, signed=True),
        "p (McNemar)": p_text(pair.decision_p),
        "p (McNemar, Holm)": p_text(pair.decision_adjusted),
        "images": f"{len(pair.new.true):,} of {wording.count(pair.patients, 'patient')}",
        "verdict": pair.verdict,
    }
    if len(pair.by_class) == 1:
        (of,) = pair.by_class.values()
        row |= {"p (DeLong)": p_text(of.p), "p (DeLong, Holm)": p_text(of.adjusted)}
    order = ["source", "AUC, reference", "AUC", "difference", "p (DeLong)", "p (DeLong, Holm)", *row]
    unused = [] if several else ["p (DeLong, Holm)", "p (McNemar, Holm)"]
    return {name: row[name] for name in dict.fromkeys(order) if name in row and name not in unused}


def p_text(value: float) -> str:
    """A p for people: three digits, or "< .001"; "–" where it is undefined."""
    return "–" if np.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"


def _json(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
