"""A shortcut to look at: a bright mark in the corner of one class's images, and what a linear head makes of it.

Hospitals mark images: a letter for the side, a logo. Where the sick come from one hospital, the mark names the disease
(Zech et al., "Variable generalization performance of a deep learning model to detect pneumonia in chest radiographs",
PLOS Medicine 2018). The head is small enough to be trained in a moment, and its weights are a picture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from lungkit.models.rule import DecisionRule
from lungkit.training import evaluation
from lungkit.wording import figure

CELLS = 8  # a picture of 8 x 8 cells: enough to show where, and few enough for a head without a penalty to search for
_FOLDS = 5


def with_mark(pictures: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Pictures (n, height, width; 0..1), of which some (bool, n) have a white square in the upper left corner.

    Its side is an eighth of the shorter side of the picture.
    """
    marked, side = pictures.copy(), min(pictures.shape[1:]) // CELLS
    marked[which, :side, :side] = 1.0
    return marked


def coarse(pictures: np.ndarray) -> np.ndarray:
    """Each picture (n, height, width) as the mean grey of 8 x 8 cells: (n, 64). Sides are cut to a multiple of 8."""
    n, height, width = pictures.shape
    if min(height, width) < CELLS:
        raise ValueError(f"pictures of {height} x {width} pixels have no {CELLS} x {CELLS} cells")
    rows, columns = height // CELLS, width // CELLS
    cut = pictures[:, : rows * CELLS, : columns * CELLS].reshape(n, CELLS, rows, CELLS, columns)
    return cut.mean(axis=(2, 4), dtype=np.float64).reshape(n, -1)


@dataclass(frozen=True, eq=False)
class Shortcut:
    """AUCs by cross-validation by patient, each (value, low, high), of heads that tell the marked class from the rest.

    marked: learned and tested with the mark. gone: learned with it and tested without. honest: without it throughout.
    weights: (8, 8), how much each cell moves the head that learned with the mark; the largest is 1.
    """

    marked: tuple[float, float, float]
    gone: tuple[float, float, float]
    honest: tuple[float, float, float]
    weights: np.ndarray

    def __str__(self) -> str:
        return (
            f"AUC with the mark {figure(*self.marked)}; the same head without the mark {figure(*self.gone)}; "
            f"a head that never saw a mark {figure(*self.honest)}"
        )


def check(marked: np.ndarray, plain: np.ndarray, of_class: np.ndarray, patients: ArrayLike, seed: int = 7) -> Shortcut:
    """Heads on cells (n, 64) with the mark and without; of_class: bool (n,), which images are of the marked class."""
    owners = np.asarray(patients).astype(str)
    answers = {name: np.zeros(len(plain)) for name in ("marked", "gone", "honest")}
    weights = np.zeros(marked.shape[1])
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    for train, held in folds.split(plain, of_class, owners):
        shortcut, honest = (_head(cells[train], of_class[train]) for cells in (marked, plain))
        answers["marked"][held] = shortcut.predict_proba(marked[held])[:, 1]
        answers["gone"][held] = shortcut.predict_proba(plain[held])[:, 1]
        answers["honest"][held] = honest.predict_proba(plain[held])[:, 1]
        weights += np.abs(shortcut.coef_[0])
    aucs = {name: _auc(of_class, scores, owners) for name, scores in answers.items()}
    return Shortcut(**aucs, weights=(weights / weights.max()).reshape(CELLS, CELLS))


def _head(cells: np.ndarray, of_class: np.ndarray) -> LogisticRegression:
    return LogisticRegression(max_iter=2000).fit(cells, of_class)


def _auc(of_class: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    both = np.column_stack([1 - scores, scores])
    rule = DecisionRule(kind="threshold", positive="marked", threshold=0.5)
    return evaluation.evaluate(of_class.astype(int), both, patients, ("rest", "marked"), rule).value("auc")
