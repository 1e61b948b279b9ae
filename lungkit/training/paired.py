"""Two versions on the same patients: whether one is better, not worse, worse, or whether these patients cannot tell.

Every figure is by patient, as everywhere in lungkit: images of one patient are no independent observations.

- The difference in AUC has a paired bootstrap interval (evaluation.paired_difference), and for two classes the p of
  DeLong, DeLong and Clarke-Pearson (Biometrics 1988), in the form that Obuchowski gave it for several images of a
  patient (Biometrics 1997); with one image for each patient it is DeLong's own.
- Decisions have McNemar's test (Psychometrika 1947): of the patients whom the two versions serve differently, does one
  serve more than half better? Exact, by the sign of how many more images of a patient are right.

"Not worse" is a claim that needs a margin, stated before: the whole interval lies above minus the margin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from lungkit import wording
from lungkit.data import dataset
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.training import evaluation, outside, release
from lungkit.training.evaluation import Evaluation

MARGIN = 0.02  # of AUC: a smaller loss does not count as worse
BETTER, NOT_WORSE, WORSE, OPEN = "better", "not worse", "worse", "open"


@dataclass(frozen=True)
class Pair:
    """Two versions on the same images of one source; differences are new minus old."""

    source: str
    at_home: bool  # whether the old version learned from this source
    old: Evaluation
    new: Evaluation
    auc: tuple[float, float, float]  # difference, low, high
    accuracy: tuple[float, float, float]
    auc_p: float  # NaN for more than two classes
    decision_p: float
    margin: float
    new_knows: bool = False  # whether the new version learned from this source, of which these are other patients

    @property
    def verdict(self) -> str:
        """By the interval of the difference in AUC: one of the four words of this module."""
        _, low, high = self.auc
        if low > 0:
            return BETTER
        if high < 0:
            return WORSE
        return NOT_WORSE if low >= -self.margin else OPEN

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "at_home": self.at_home,
            "new_knows": self.new_knows,
            "images": len(self.new.true),
            "patients": len(np.unique(self.new.patients)),
            "old_auc": _json(self.old.value("auc")),
            "new_auc": _json(self.new.value("auc")),
            "auc_difference": _json(self.auc),
            "accuracy_difference": _json(self.accuracy),
            "auc_p": _json([self.auc_p])[0],
            "decision_p": _json([self.decision_p])[0],
            "margin": self.margin,
            "verdict": self.verdict,
        }


def by_source(
    old: registry.Version, new: registry.Version, data: Sequence[dataset.Dataset], margin: float = MARGIN
) -> list[Pair]:
    """The versions on each source of the data, which are as outside.relabelled gives them for `old`.

    Images that either version was trained or chosen on are left out: on a source that one learned from, its test part
    is left. LungkitError where the versions answer with other classes, or where a source has no image left.
    """
    if {alike(name) for name in old.card.classes} != {alike(name) for name in new.card.classes}:
        raise LungkitError(
            f"{old} answers {', '.join(old.card.classes)}, and {new} {', '.join(new.card.classes)}: they cannot be "
            "compared"
        )
    return [_pair(old, new, of, str(source), margin) for of in data for source in sorted(set(of.manifest["source"]))]


def _pair(old: registry.Version, new: registry.Version, data: dataset.Dataset, source: str, margin: float) -> Pair:
    rows = data.part().drop_duplicates("file")
    rows = rows[rows["source"] == source]
    used = (outside.left_out(old, rows) == "") & (outside.left_out(new, rows) == "")
    if not used.any():
        raise LungkitError(
            f"{source}: no image is left to compare {old} and {new}, each trained or chosen on some of it"
        )
    unseen = replace(data, manifest=rows[used])
    before, after = (release.score(version, unseen, "all", "lungkit compare").evaluation for version in (old, new))
    at_home, new_knows = (outside.knows(version, source, rows) for version in (old, new))
    pair = paired(before, in_order(after, before.classes), source, margin, at_home)
    return replace(pair, new_knows=new_knows)


def paired(old: Evaluation, new: Evaluation, source: str, margin: float = MARGIN, at_home: bool = False) -> Pair:
    """Two evaluations of the same images, in the same order. LungkitError where they are not."""
    auc, accuracy = evaluation.paired_differences(new, old, [("auc", ""), ("accuracy", "")]).values()
    p = np.nan
    if len(new.classes) == 2:
        p = auc_test(new.true, new.probabilities[:, 1], old.probabilities[:, 1], new.patients)
    decision_p = decision_test(new.predicted == new.true, old.predicted == old.true, new.patients)
    return Pair(source, at_home, old, new, auc, accuracy, p, decision_p, margin)


def in_order(measured: Evaluation, classes: tuple[str, ...]) -> Evaluation:
    """An evaluation with its classes in this order."""
    own = [alike(name) for name in measured.classes]
    order = np.array([own.index(alike(name)) for name in classes])
    place = np.argsort(order)
    return replace(
        measured,
        classes=classes,
        true=place[measured.true],
        predicted=place[measured.predicted],
        probabilities=measured.probabilities[:, order],
    )


# --- tests


def auc_test(y_true: ArrayLike, a: ArrayLike, b: ArrayLike, patients: ArrayLike) -> float:
    """Two-sided p that two scores of the same images have one AUC; 1 where they rank all images alike.

    y_true: (n,), 1 for the positive class. a, b: (n,), higher for it. patients: (n,). NaN where a class is missing.
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
    if variance <= 1e-18:
        return 1.0 if abs(difference) < 1e-12 else 0.0
    return float(2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance)))


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Of each image the share of those of the other class that it is ordered rightly with; ties count half."""
    placed = np.empty(len(scores))
    for of, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * scores[~of])
        below, not_above = (np.searchsorted(others, sign * scores[of], side) for side in ("left", "right"))
        placed[of] = (below + not_above) / 2 / len(others)
    return placed


def decision_test(a_right: ArrayLike, b_right: ArrayLike, patients: ArrayLike) -> float:
    """Two-sided p that two versions decide equally often rightly; 1 where no patient tells them apart.

    a_right, b_right: bool (n,). patients: (n,).
    """
    gain = np.asarray(a_right, int) - np.asarray(b_right, int)
    _, patient = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    sums = np.bincount(patient, gain)
    better, worse = int((sums > 0).sum()), int((sums < 0).sum())
    return float(scipy.stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


# --- words


def says(old: str, new: str, pairs: Sequence[Pair]) -> str:
    """One sentence: where the new version is better, not worse, worse or open, and whether it may be promoted.

    It may if it is shown to be not worse on each source that the old one learned from, is worse on no other, and is
    better on one.
    """
    of = {word: [pair.source for pair in pairs if pair.verdict == word] for word in (BETTER, NOT_WORSE, WORSE, OPEN)}
    parts = {
        BETTER: "is better than {old} on {sources}",
        NOT_WORSE: "is not worse, by a margin of {margin:g}, on {sources}",
        WORSE: "is worse on {sources}",
        OPEN: "is not shown to be either on {sources}",
    }
    margin = pairs[0].margin
    told = [
        text.format(old=old, margin=margin, sources=wording.listed(of[word], "and"))
        for word, text in parts.items()
        if of[word]
    ]
    return f"{new} {', '.join(told)}: {'enough' if enough(pairs) else 'not enough'} to promote it."


def enough(pairs: Sequence[Pair]) -> bool:
    """Whether the new version may take the old one's place, by the rule that `says` states."""
    home_kept = all(pair.verdict in (BETTER, NOT_WORSE) for pair in pairs if pair.at_home)
    gained = any(pair.verdict == BETTER for pair in pairs if not pair.at_home)
    return home_kept and gained and not any(pair.verdict == WORSE for pair in pairs)


def pair_row(pair: Pair) -> Mapping[str, str]:
    """A pair in one row of a table."""
    counts = f"{len(pair.new.true):,} of {wording.count(len(np.unique(pair.new.patients)), 'patient')}"
    return {
        "source": f"{pair.source}{' (home)' if pair.at_home else ' (learned by the new)' if pair.new_knows else ''}",
        "AUC, old": wording.figure(*pair.old.value("auc")),
        "AUC, new": wording.figure(*pair.new.value("auc")),
        "difference": wording.figure(*pair.auc, signed=True),
        "p (DeLong)": _p(pair.auc_p),
        "accuracy, difference": wording.figure(*pair.accuracy, signed=True),
        "p (McNemar)": _p(pair.decision_p),
        "images": counts,
        "verdict": pair.verdict,
    }


def _p(value: float) -> str:
    return "–" if np.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"


def _json(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
