"""Which images a version gets wrong, and which labels look wrong: for a person who then looks at them.

Two lists, of two kinds. A confident error is an image that the version answers differently from its label, ranked by
how sure it was. A suspected label is one that a cross-validation by patient would not have given: it needs no part of
its own, so it covers every image (lungkit.models.confident).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lungkit import progress
from lungkit.data import splits
from lungkit.data.dataset import Dataset
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import confident
from lungkit.models.card_text import SPLITS
from lungkit.training.embedding_map import Embedded, neighbours
from lungkit.training.evaluation import mean_with_interval
from lungkit.training.release import Scored
from lungkit.wording import count, percent, percents

FOLDS = 5  # four fifths of the patients to learn from; ten folds would take twice as long
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, of which the one with the lowest log loss is taken


# --- errors


def confident_errors(scored: Scored, embedded: Embedded) -> pd.DataFrame:
    """The images that the version answers wrongly, the surest first.

    Columns: file, patient_id, part, label, answer, probability (of the answer), of_label (the label's probability),
    margin (log-odds to the nearest other decision, rule.margin), place (in `scored`), neighbours (numbers of rows of
    `embedded`), like_it (how many of these training images have the label that the version answered).
    """
    measured, names = scored.evaluation, np.array(scored.evaluation.classes)
    wrong = np.flatnonzero(measured.predicted != measured.true)
    margin = scored.version.rule.margin(measured.probabilities[wrong])
    wrong = wrong[np.argsort(-margin, kind="stable")]
    near = neighbours(embedded, embedded.places(scored.rows["file"].iloc[wrong]))
    answer = names[measured.predicted[wrong]]
    labels = np.append(embedded.rows["label"].to_numpy(str), "")[near]  # "" of -1
    return scored.rows.iloc[wrong][["file", "patient_id"]].assign(
        part=scored.split,
        label=names[measured.true[wrong]],
        answer=answer,
        probability=measured.probabilities[wrong, measured.predicted[wrong]],
        of_label=measured.probabilities[wrong, measured.true[wrong]],
        margin=np.sort(margin)[::-1],
        place=wrong,
        neighbours=list(near),
        like_it=(_alike(labels) == _alike(answer)[:, None]).sum(axis=1),
    ).reset_index(drop=True)  # fmt: skip


def _alike(names: np.ndarray) -> np.ndarray:
    """A version and a data set may spell a class in two ways."""
    return np.vectorize(alike, otypes=[object])(names)


def parts(data: Dataset) -> list[str]:
    """The parts to look for errors in, the test last; ["all"] where the set has neither validation nor test images."""
    return [part for part in ("val", "test") if len(data.part(part))] or ["all"]


def panels(
    table: pd.DataFrame, embedded: Embedded, first: int = 8
) -> tuple[np.ndarray, np.ndarray, list[str], list[list[str]]]:
    """What plots.neighbour_grid shows of the first rows of a table of errors or suspects: pictures and their titles."""
    rows = table.head(first)
    near = neighbours(embedded, embedded.places(rows["file"]))
    size = embedded.version.card.preprocessing.size
    pictures = np.zeros((*near.shape, *size), np.float32)
    pictures[near >= 0] = embedded.pictures(near[near >= 0])
    named = np.append(embedded.rows["label"].to_numpy(str), "")[near]
    answered = "probability" in rows
    said, sure = ("answer", "probability") if answered else ("looks_like", "of_other")
    titles = [
        f"label: {label}\n{'answer' if answered else 'like'}: {other}\nat {percent(p)}"
        for label, other, p in zip(rows["label"], rows[said], rows[sure], strict=True)
    ]
    near_titles = [
        [f"neighbour {place + 1}\n{label}" if label else "" for place, label in enumerate(of)] for of in named
    ]
    return embedded.pictures(embedded.places(rows["file"])), pictures, titles, near_titles


# --- labels


@dataclass(frozen=True, eq=False)
class Judged:
    """What a cross-validation thinks of labels: those that look wrong, the strongest first.

    labels: class numbers (n,). probabilities: out of fold, float64 (n, classes). places: of the suspected labels, (m,).
    looks_like: the class that each looks like, (m,). penalty: the C that was taken. loss: its log loss. expected: how
    many suspects there would be if every label were right (confident.expected_if_right, and what it cannot show).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    places: np.ndarray
    looks_like: np.ndarray
    penalty: float
    loss: float
    expected: float

    @property
    def support(self) -> np.ndarray:
        """The probability of each image's own label, by other patients: (n,)."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]


def suspects(embedded: Embedded, seed: int = 7, labels: ArrayLike | None = None) -> Judged:
    """`judge` of all images of a data set, those of every part.

    labels: class numbers (n,) to judge in the place of the set's own.
    The network itself has learned from the labels of training images, so a wrong one of theirs may hide in the
    embedding; bench/labels.py measures how much.
    """
    given = embedded.labels if labels is None else np.asarray(labels, np.int64)
    return judge(embedded.vectors, given, splits.groups(embedded.rows), len(embedded.data.classes), seed)


def judge(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int = 7) -> Judged:
    """The labels that look wrong to linear heads (multinomial logistic regression) that have not seen their patient.

    vectors: (n, channels). labels: class numbers (n,). groups: (n,); none is on both sides of a fold. The choice among
    five values of C by the log loss out of fold makes that loss a little too good; it ranks labels and scores nothing.
    """
    folds = _folds(labels, groups, seed)
    found = []
    for penalty in progress.bar(PENALTIES, label="cross-validation", unit="value"):
        out = np.zeros((len(labels), classes))
        for train, held in folds:
            head = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
            head.fit(vectors[train], labels[train])
            out[np.ix_(held, head.classes_)] = head.predict_proba(vectors[held])
        found.append((float(log_loss(labels, out, labels=range(classes))), penalty, out))
    loss, penalty, best = min(found, key=lambda one: one[0])
    doubts = np.array(confident.doubtful(best, labels), int).reshape(-1, 2)
    expected = confident.expected_if_right(best, labels)
    return Judged(labels, best, doubts[:, 0], doubts[:, 1], penalty, loss, expected)


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which images to learn from, and which to judge, FOLDS times; fewer where a class has fewer patients."""
    owners = min(len(np.unique(groups[labels == k])) for k in np.unique(labels))
    if owners < 2:
        raise LungkitError("a class has images of one patient only: its labels cannot be judged by other patients")
    split = StratifiedGroupKFold(min(FOLDS, owners), shuffle=True, random_state=seed)
    return list(split.split(labels, labels, groups))


def suspects_table(judged: Judged, embedded: Embedded, first: int | None = None) -> pd.DataFrame:
    """The suspected labels with file, patient_id, part, label, looks_like, of_label and of_other (probabilities)."""
    places, like = judged.places[:first], judged.looks_like[:first]
    names = np.array(embedded.data.classes)
    rows = embedded.rows.iloc[places][["file", "patient_id", "split"]].rename(columns={"split": "part"})
    return rows.assign(
        label=names[judged.labels[places]],
        looks_like=names[like],
        of_label=judged.support[places],
        of_other=judged.probabilities[places, like],
    ).reset_index(drop=True)


def to_look_at(embedded: Embedded, judged: Judged, wrong: Sequence[pd.DataFrame] = ()) -> pd.DataFrame:
    """Every image in one table, that with the least supported label first: what a person goes through.

    wrong: tables of confident_errors. Columns: file, sha256, patient_id, part, label, of_label (its probability out of
    fold), looks_like (the most probable other class), of_other, suspected, error (bool), answer (of the version, where
    it was wrong).
    """
    names = np.array(embedded.data.classes)
    other = judged.probabilities.copy()
    other[np.arange(len(other)), judged.labels] = -1
    looks_like = other.argmax(axis=1)
    answers = {str(row.file): str(row.answer) for table in wrong for row in table.itertuples()}
    rows = embedded.rows[["file", "sha256", "patient_id", "split"]].rename(columns={"split": "part"})
    table = rows.assign(
        label=names[judged.labels],
        of_label=judged.support,
        looks_like=names[looks_like],
        of_other=other.max(axis=1),
        suspected=np.isin(np.arange(len(rows)), judged.places),
        error=rows["file"].isin(answers),
        answer=[answers.get(str(file), "") for file in rows["file"]],
    )
    return table.sort_values("of_label", kind="stable", ignore_index=True)


# --- what planted faults show


def plant(labels: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) of which a share is wrong, drawn at random with another class; and which: bool (n,)."""
    rng = np.random.default_rng(seed)
    planted = np.zeros(len(labels), bool)
    planted[rng.choice(len(labels), max(1, round(share * len(labels))), replace=False)] = True
    other = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(planted, other, labels), planted


@dataclass(frozen=True)
class Found:
    """What the first suspects are worth against planted labels, over one planting or several.

    first, planted, hits: numbers of images. precision: share of planted labels among the first. recall: share of the
    planted that is among them. Both (value, low, high), by patient. chance: the precision of a random list.
    """

    first: int
    planted: int
    hits: int
    precision: tuple[float, float, float]
    recall: tuple[float, float, float]
    chance: float

    def __str__(self) -> str:
        return (
            f"Of the first {count(self.first, 'suspect')}, {self.hits} are among the {self.planted} planted labels: "
            f"precision {percents(*self.precision)}, by chance {100 * self.chance:.0f} %; recall "
            f"{percents(*self.recall)}."
        )


def found(
    judged: Sequence[Judged], planted: Sequence[np.ndarray], patients: ArrayLike, first: int | None = None
) -> Found:
    """How many of the planted labels (bool (n,), one array for each planting) the first suspects of each contain.

    first: of each planting; default: as many as were planted.
    """
    owners, listed, right, theirs = np.asarray(patients), [], [], []
    for one, wrong in zip(judged, planted, strict=True):
        places = one.places[: int(wrong.sum()) if first is None else first]
        right.append(wrong[places])
        theirs.append(owners[places])
        listed.append(np.isin(np.flatnonzero(wrong), places))
    whose = np.concatenate([owners[wrong] for wrong in planted])
    hits, all_listed = np.concatenate(right), np.concatenate(listed)
    return Found(
        len(hits),
        len(all_listed),
        int(hits.sum()),
        mean_with_interval(hits, np.concatenate(theirs), share=True),
        mean_with_interval(all_listed, whose, share=True),
        float(np.mean(planted)),
    )


# --- words


def easier_says(found: Mapping[str, Found]) -> str:
    """Which of two kinds of planted labels is found more often; shown where the intervals of recall do not meet."""
    (one, first), (other, second) = found.items()
    if first.recall[1] <= second.recall[2] and second.recall[1] <= first.recall[2]:
        return f"The intervals of recall overlap: these images do not show that {one} or {other} are easier to find."
    better, worse = (one, other) if first.recall[0] > second.recall[0] else (other, one)
    return f"Here {better} are easier to find than {worse}: the intervals of recall do not overlap."


def expected_says(found: Mapping[str, Found]) -> str:
    """Whether faults of one kind are harder to find than the others, as is expected of them; by intervals of recall.

    found: the faults of one kind, then those at random.
    """
    one, at_random = (of.recall for of in found.values())
    why = "Faults of one kind pull the boundary between two classes towards them, so they are expected to be harder."
    if one[2] < at_random[1]:
        return f"{why} Here they are."
    if one[1] > at_random[2]:
        return f"{why} Here they are **easier**."
    ahead = "fewer" if one[0] < at_random[0] else "as many" if one[0] == at_random[0] else "more"
    return (
        f"{why} Here {ahead} of them were found ({one[0]:.0%} against {at_random[0]:.0%}), which is no proof.".replace(
            "%", " %"
        )
    )


def suspects_say(judged: Judged) -> list[str]:
    """How many labels look wrong, and how many would if all were right.

    They are evidence of wrong labels where there are more than expected by over twice the root of the expected number.
    """
    suspected, expected, images = len(judged.places), judged.expected, len(judged.labels)
    if not suspected:
        return [f"No label of {count(images, 'image')} looks wrong."]
    says = f"{suspected:,} of {count(images, 'label')} {'looks' if suspected == 1 else 'look'} wrong."
    right = f"If every label were right, about {expected:.0f} would: right labels of difficult images look wrong too."
    if suspected - expected > 2 * np.sqrt(expected):
        return [f"{says} {right}", "**So some labels are wrong.** Look at the first of the list."]
    return [f"{says} {right}", "So the number alone shows no wrong label; a look at the first of the list may."]


def errors_say(table: pd.DataFrame, images: int, part: str) -> str:
    """How many errors there are, and how many were made surely: a probability of 90 % or more.

    images: of the part, which is train, val, test or all.
    """
    name = SPLITS.get(part, part).capitalize()
    sure = table[table["probability"] >= 0.9]
    if table.empty:
        return f"{name}: none of {count(images, 'image')} is answered wrongly."
    like = int((sure["like_it"] >= 2).sum())
    text = f"{name}: {len(table)} of {count(images, 'image')} are answered wrongly, {len(sure)} of them at 90 % or more"
    return f"{text}; in {like} of these, most neighbours have the answered label." if len(sure) else f"{text}."
