"""Figures that other programs give for the same numbers: docs/methods.md, "Checked against", lists them.

Constants were computed once by the program that is named next to them; scikit-learn and SciPy are asked here.
"""

import numpy as np
import pytest
import sklearn.metrics as sk

from lungkit.models.rule import DecisionRule
from lungkit.training import paired
from lungkit.training.evaluation import evaluate, mean_with_interval

ARGMAX = DecisionRule(kind="argmax")


def answers(seed: int, size: int, decimals: int | None, n: int = 90):
    """Labels (n,) and probabilities (n, size) of a classifier of some skill; rounded scores make ties."""
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(size), rng.choice(size, n - size, p=rng.dirichlet(np.full(size, 2.0)))]
    scores = rng.normal(size=(n, size)) + 1.2 * np.eye(size)[y]
    powers = np.exp(scores if decimals is None else scores.round(decimals))
    return y, powers / powers.sum(axis=1, keepdims=True)


def measured(y, p, rule=ARGMAX):
    return evaluate(y, p, np.arange(len(y)), [f"c{k}" for k in range(p.shape[1])], rule, n_boot=2)


RANDOM = pytest.mark.parametrize(
    ("seed", "size", "decimals"),
    [(seed, size, decimals) for seed in range(4) for size in (2, 3, 5) for decimals in (None, 1, 0)],
)


@RANDOM
def test_figures_of_all_images_are_those_of_scikit_learn_also_with_ties(seed, size, decimals):
    y, p = answers(seed, size, decimals)
    got, predicted = measured(y, p), p.argmax(axis=1)
    two = size == 2
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "macro_f1": sk.f1_score(y, predicted, average="macro"),
        "auc": sk.roc_auc_score(y, p[:, 1]) if two else sk.roc_auc_score(y, p, multi_class="ovr"),
        "brier": sk.brier_score_loss(y, p[:, 1] if two else p),
    }
    assert {name: got.value(name)[0] for name in expected} == pytest.approx(expected)
    assert got.confusion.to_numpy().tolist() == sk.confusion_matrix(y, predicted).tolist()


@RANDOM
def test_figures_and_curves_of_each_class_are_those_of_scikit_learn_also_with_ties(seed, size, decimals):
    y, p = answers(seed, size, decimals)
    got, predicted = measured(y, p), p.argmax(axis=1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y, predicted, zero_division=0)
    for k, name in enumerate(got.classes):
        expected = {
            "precision": precision[k],
            "recall": recall[k],
            "f1": f1[k],
            "specificity": sk.recall_score(y != k, predicted != k),
            "auc": sk.roc_auc_score(y == k, p[:, k]),
            "average_precision": sk.average_precision_score(y == k, p[:, k]),
        }
        assert {metric: got.value(metric, name)[0] for metric in expected} == pytest.approx(expected)
        curve = np.column_stack(sk.roc_curve(y == k, p[:, k], drop_intermediate=False))
        np.testing.assert_allclose(got.roc(name).to_numpy(), curve)
        points = np.column_stack(sk.precision_recall_curve(y == k, p[:, k])[:2])[::-1]
        np.testing.assert_allclose(got.precision_recall(name)[["precision", "recall"]], points)


# --- MedMNIST's evaluator: medmnist 3.0.2, getAUC and getACC

TWO = ([0, 0, 1, 1, 1, 0, 1, 0, 1, 1], [0.1, 0.4, 0.35, 0.8, 0.5, 0.5, 0.9, 0.2, 0.5, 0.7])
THREE = (
    [0, 1, 2, 2, 1, 0, 0, 2, 1, 2],
    [[6, 3, 1], [2, 5, 3], [3, 3, 4], [1, 2, 7], [4, 4, 2], [5, 2, 3], [2, 6, 2], [3, 3, 4], [1, 7, 2], [5, 1, 4]],
)


def test_two_classes_have_the_figures_of_medmnists_evaluator():
    y, p = map(np.array, TWO)
    # It calls an image positive above 0.5, and lungkit from the threshold on.
    above = DecisionRule(kind="threshold", positive="c1", threshold=float(np.nextafter(0.5, 1)))
    got = measured(y, np.column_stack([1 - p, p]), above)
    assert (got.value("auc")[0], got.value("accuracy")[0]) == pytest.approx((0.875, 0.7), abs=1e-15)


def test_three_classes_have_the_figures_of_medmnists_evaluator():
    y, p = np.array(THREE[0]), np.array(THREE[1]) / 10
    got = measured(y, p)
    assert (got.value("auc")[0], got.value("accuracy")[0]) == pytest.approx((0.8888888888888888, 0.7), abs=1e-15)


# --- DeLong's test: pROC 1.18.0 under R 4.2.2, roc.test(roc(y, a), roc(y, b), method = "delong")

DELONG = {
    "distinct": {
        "y": "0 1 0 0 1 0 0 0 1 1 1 0 0 0 1 1 0 1 0 0 0 1 0 0 0 1 1 1 1 0 0 0 1 1 1 1 1 1 1 0",
        "a": (
            "83 111 -70 -27 36 60 -3 12 232 198 231 22 -115 -24 -42 -27 -146 125 -3 -42 -122 263 -27 103 -58 169 "
            "38 93 277 -182 -20 -33 45 30 164 132 152 160 341 -39"
        ),
        "b": (
            "-65 95 -11 148 139 47 190 -108 20 -39 25 -106 -9 -38 -121 -84 18 209 156 340 -43 -66 -205 56 -46 48 "
            "-29 13 199 6 -80 -160 -163 26 52 261 42 156 31 -134"
        ),
        "auc": (0.90875, 0.63375),
        "p": 0.000838154641618,
    },
    "ties": {
        "y": "1 0 1 0 0 1 0 1 0 1 0 1 1 0 0 0 0 0 0 0 1 0 0 1 1 0 1 0 1 1 0 1 1 0 0 1",
        "a": "1 1 3 -1 -1 0 1 1 0 0 0 0 0 2 -1 -1 1 3 -1 -1 3 2 0 2 2 0 2 0 0 2 0 3 2 0 1 1",
        "b": "1 0 1 -1 0 1 3 3 1 -1 -1 2 1 0 -2 1 0 -1 -1 0 2 0 1 1 1 1 -1 0 1 1 0 1 2 1 -2 1",
        "auc": (0.753125, 0.7796875),
        "p": 0.806678886451984,
    },
    "few of one class": {
        "y": "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 1 0 1 0 1 0 0 0 0",
        "a": "1 -2 0 1 -1 -1 1 1 -1 1 1 1 1 1 -1 -2 1 0 0 3 -2 1 -1 1 1 2 0 -1 -2 0",
        "b": "-1 0 1 0 0 0 1 0 -1 0 1 0 1 -1 0 1 -3 -1 -1 -1 -1 2 0 1 1 2 -1 1 0 -1",
        "auc": (0.894230769231, 0.764423076923),
        "p": 0.576099960318535,
    },
}


@pytest.mark.parametrize("case", DELONG.values(), ids=DELONG)
def test_delongs_p_is_that_of_proc(case):
    y, *scores = (np.array(case[name].split(), int) for name in ("y", "a", "b"))
    assert [sk.roc_auc_score(y, of) for of in scores] == pytest.approx(case["auc"])  # the same data
    assert paired.auc_test(y, *scores, np.arange(len(y))) == pytest.approx(case["p"], rel=1e-9)
    assert paired.auc_test(1 - y, *(-of for of in scores), np.arange(len(y))) == pytest.approx(case["p"], rel=1e-9)


# --- statsmodels 0.15.0


@pytest.mark.parametrize(
    ("better", "worse", "p"),  # mcnemar([[30, better], [worse, 5]], exact=True)
    [(9, 2, 0.0654296875), (15, 6, 0.0783538818359375), (1, 0, 1.0), (4, 4, 1.0), (0, 8, 0.0078125)],
)
def test_mcnemars_exact_p_is_that_of_statsmodels(better, worse, p):
    a = np.r_[np.ones(30), np.ones(better), np.zeros(worse), np.zeros(5)]
    b = np.r_[np.ones(30), np.zeros(better), np.ones(worse), np.zeros(5)]
    assert paired.decision_test(a, b, np.arange(len(a))) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(
    ("ps", "expected"),  # multipletests(ps, method="holm")[1], and for the first two R's p.adjust(ps, "holm")
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.2, 0.02, 0.02, 0.6, 0.001], [0.4, 0.08, 0.08, 0.6, 0.005]),
        ([0.5], [0.5]),
        ([0.9, 0.8], [1.0, 1.0]),
    ],
)
def test_holms_p_are_those_of_statsmodels_and_r(ps, expected):
    assert paired.holm(ps) == pytest.approx(expected)
    assert paired.holm([*ps, np.nan])[:-1] == pytest.approx(expected)  # what is undefined is no test


@pytest.mark.parametrize(
    ("right", "n", "expected"),  # proportion_confint(right, n, method="beta")
    [(10, 10, (0.6915028921812392, 1.0)), (0, 7, (0.0, 0.4096163972250034))],
)
def test_all_or_none_right_have_the_exact_interval_of_statsmodels(right, n, expected):
    values = np.arange(n) < right
    assert mean_with_interval(values, np.arange(n), share=True)[1:] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("right", "n", "expected"),  # as above
    [(9, 10, (0.5549838829718047, 0.9974714214555382)), (37, 60, (0.48211495143116145, 0.7392929419840009))],
)
def test_other_shares_have_it_as_far_as_a_thousand_resamples_know_their_variance(right, n, expected):
    values = np.arange(n) < right
    assert mean_with_interval(values, np.arange(n), share=True)[1:] == pytest.approx(expected, abs=0.015)
