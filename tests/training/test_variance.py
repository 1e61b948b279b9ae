"""Variance components and the interval of a mean over folds, against statsmodels, baycomp and simulated truths."""

import numpy as np
import pytest
import scipy.stats

from lungkit.errors import LungkitError
from lungkit.training import variance

# (repeats, folds, starts), AUC in per cent.
FIGURES = np.array([
    [[90.0, 89.4], [89.0, 89.5], [90.7, 90.3]],
    [[94.2, 93.6], [94.4, 95.1], [90.1, 89.7]],
    [[95.9, 96.8], [94.0, 93.3], [94.6, 95.3]],
    [[88.6, 88.0], [88.0, 88.3], [89.3, 88.9]],
])  # fmt: skip


def drawn(random, repeat, fold, start, shape=(4, 5, 3)):
    """Figures whose effects have these variances."""
    sizes = ((shape[0], 1, 1), (*shape[:2], 1), shape)
    effects = zip((repeat, fold, start), sizes, strict=True)
    return sum(random.normal(0, np.sqrt(of), size) for of, size in effects)


def test_components_are_those_of_statsmodels_mixed_model():
    # statsmodels 0.15, mixedlm("y ~ 1", groups="repeat", re_formula="1", vc_formula={"fold": "0+C(fold)"}), REML, which
    # for balanced figures is the analysis of variance as long as no component is negative.
    found = variance.components(FIGURES)["estimate"]
    assert found.to_dict() == pytest.approx({"training start": 0.174168, "fold": 2.211016, "repeat": 7.794932}, 1e-4)


def test_shares_sum_to_one_and_deviations_are_roots():
    found = variance.components(FIGURES)
    assert found["share"].sum() == pytest.approx(1)
    assert (found["deviation"] ** 2).to_numpy() == pytest.approx(found["variance"].to_numpy())


def test_components_have_no_bias_and_their_intervals_hold_the_truth_19_times_in_20():
    random, truth = np.random.default_rng(1), {"training start": 1.0, "fold": 2.0, "repeat": 0.5}
    tables = [variance.components(drawn(random, *list(truth.values())[::-1])) for _ in range(200)]
    for name, of in truth.items():
        estimates = np.array([table.loc[name, "estimate"] for table in tables])
        assert estimates.mean() == pytest.approx(of, abs=4 * estimates.std() / np.sqrt(200)), name
        held = np.mean([table.loc[name, "low"] <= of <= table.loc[name, "high"] for table in tables])
        assert 0.90 <= held <= 0.99, name  # three standard errors of 200 draws


def test_an_interval_ends_at_0_where_the_f_test_is_just_significant():
    # What the cross terms of Ting et al. are made for: the interval and the exact test of the ratio agree.
    for n, m in ((3, 16), (16, 40), (4, 5)):
        above, below = scipy.stats.f.isf([0.025, 0.975], n, m)
        assert variance._component((above, n), (1.0, m), 1)[1] == pytest.approx(0, abs=1e-6)
        assert variance._component((below, n), (1.0, m), 1)[2] == pytest.approx(0, abs=1e-6)


def test_a_negative_estimate_is_reported_as_0_and_kept():
    figures = np.tile([[1.0], [2.0], [3.0]], (3, 1, 2)) + np.array([0.0, 0.1])  # all repeats have one mean
    repeat = variance.components(figures).loc["repeat"]
    assert repeat["variance"] == 0 and repeat["low"] == 0
    assert repeat["estimate"] == pytest.approx(-(1 / 3))


def test_a_level_with_one_unit_has_no_component():
    assert list(variance.components(FIGURES[:1]).index) == ["training start", "fold"]
    alone = variance.components(FIGURES[..., :1])
    assert list(alone.index) == ["fold", "repeat"]
    assert alone.loc["fold", "estimate"] == pytest.approx(FIGURES[..., 0].var(axis=1, ddof=1).mean())


def test_figures_that_are_undefined_or_of_one_fold_are_refused():
    with pytest.raises(LungkitError, match="1 undefined values; accepted"):
        variance.components(np.where(FIGURES == 90.0, np.nan, FIGURES))
    with pytest.raises(LungkitError, match=r"shape \(4, 1, 2\)"):
        variance.components(FIGURES[:, :1])
    for empty in ((2, 2, 0), (0, 2, 2)):
        with pytest.raises(
            LungkitError, match=r"accepted: \(repeats, folds, starts\) with a repeat, two folds and a start"
        ):
            variance.components(np.zeros(empty))


def test_the_corrected_interval_is_that_of_baycomp():
    # baycomp 1.0.3, CorrelatedTTest.compute_statistics(x, 0, runs=4): the same Student distribution, of Corani and
    # Benavoli (Machine Learning 100, 2015). Three folds: a test part is half of the training part.
    found = variance.mean_of_folds(FIGURES.mean(axis=2), test=1, training=2, limits=(0, 100))["corrected"]
    assert found == pytest.approx((91.541667, 86.590231, 96.493102), abs=1e-6)


def test_the_naive_interval_is_that_of_a_t_test_and_holds_the_truth_less_often_than_the_corrected_one():
    y = FIGURES.mean(axis=2).ravel()
    expected = scipy.stats.ttest_1samp(y, 0).confidence_interval()
    assert variance.mean_of_folds(y, 1, 2, (0, 100))["naive"][1:] == pytest.approx(expected)
    held = {"naive": [], "corrected": []}
    random, truth = np.random.default_rng(3), _expected(patients=40)
    for _ in range(150):
        for name, (_, low, high) in variance.mean_of_folds(_cross_validated(random), test=1, training=4).items():
            held[name].append(low <= truth <= high)
    assert np.mean(held["naive"]) < 0.8
    assert np.mean(held["corrected"]) > 0.9


def test_the_interval_of_a_mean_ends_where_the_figure_does():
    for figures in ([0.99, 1, 1, 1, 0.97], [0.5, 1.0]):
        for value, low, high in variance.mean_of_folds(figures, 20, 80).values():
            assert 0 <= low < value < high <= 1
    kappa = variance.mean_of_folds([-0.9, 0.9], 20, 80, limits=(-1, 1))["naive"]
    assert kappa == (0, -1, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([np.nan, 1.0], 10, 40), "a fold's figure is nan; accepted: from 0 to 1"),
        (([91.0, 92.0], 10, 40), "a fold's figure is 91; accepted: from 0 to 1"),
        (([0.5], 10, 40), "1 figures, of 10 test"),
        (([0.5, 1.0], np.inf, 40), "of inf test"),
    ],
)
def test_a_mean_of_what_has_none_is_refused(given, said):
    with pytest.raises(LungkitError, match=said):
        variance.mean_of_folds(*given)


WIDTH, GAP = 8, 0.35  # features of the simulated patients, and half of what the classes' means differ by in each


def _cross_validated(random, patients=50, folds=5, repeats=4):
    """Accuracies (repeats, folds) of a nearest-mean classifier on patients of two classes."""
    labels = np.arange(patients) % 2
    x = random.normal(size=(patients, WIDTH)) + np.where(labels, GAP, -GAP)[:, None]
    measured = np.empty((repeats, folds))
    for repeat in range(repeats):
        order = random.permutation(patients)
        for fold in range(folds):
            test = order[fold::folds]
            train = np.setdiff1d(order, test)
            first, second = (x[train][labels[train] == of].mean(axis=0) for of in (0, 1))
            called = (x[test] - (first + second) / 2) @ (second - first) > 0
            measured[repeat, fold] = np.mean(called == labels[test])
    return measured


def _expected(patients, draws=2000):
    """The mean accuracy of such classifiers that learned from so many other patients; of each, it is known."""
    random = np.random.default_rng(0)
    first, second = (random.normal(of, np.sqrt(2 / patients), (draws, WIDTH)) for of in (-GAP, GAP))
    across, middle = second - first, (first + second) / 2
    centres = [np.sum((sign * GAP - middle) * sign * across, axis=1) for sign in (-1, 1)]
    return np.mean(scipy.stats.norm.cdf(centres / np.linalg.norm(across, axis=1)))
