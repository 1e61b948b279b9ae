"""The learning curve, its power law, what is projected and what is not, and how many patients to test on."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
from sklearn.metrics import roc_auc_score

from lungkit.errors import LungkitError
from lungkit.training import learning_curve, stability
from tests.training.stable import SIZES, cohort, curve, head

# --- subsets


def test_a_smaller_subset_is_part_of_a_larger_one_and_has_whole_patients_of_every_class():
    data = cohort(patients=60, images=3, classes=("a", "b", "c"))
    labels, patients, images = data.labels(), data.patients(), np.arange(0, 120)
    before: set[int] = set()
    for share in learning_curve.SHARES:
        places = learning_curve.subset(images, labels, patients, share, seed=5)
        counts = [len({patients[place] for place in places if labels[place] == of}) for of in range(3)]
        expected = [max(1, round(share * len({patients[i] for i in images if labels[i] == of}))) for of in range(3)]
        assert counts == expected
        assert all(np.sum(patients[places] == name) == 3 for name in patients[places])
        assert before <= set(places.tolist()) <= set(images.tolist())
        before = set(places.tolist())
    assert len(before) == 120
    other = learning_curve.subset(images, labels, patients, 0.3, seed=6)
    assert other.tolist() != learning_curve.subset(images, labels, patients, 0.3, seed=5).tolist()


# --- the measured curve


@pytest.fixture(scope="module")
def measured():
    data = cohort(patients=80, images=2)
    shares = (0.15, 0.3, 0.6, 1.0)
    return data, learning_curve.measured(data, head(data, width=30), number=4, draws=2, shares=shares)


def test_the_curve_ends_at_the_figure_of_all_patients_and_rises_with_them(measured):
    data, found = measured
    assert found.sizes.tolist() == sorted(found.sizes) and found.sizes[-1] == 60, "three quarters of 80 patients"
    parts = [one for one in stability.folds(data, 4, 2, seed=stability.pipeline.derived(7, 1)) if one.repeat == 1]
    scores = np.zeros((len(data.part()), 2))
    for one in parts:
        answers = head(data, width=30)(one, stability.pipeline.derived(7, one.repeat, one.fold))
        scores[one.test], _ = stability.decided(answers, data.labels()[one.validation], data.classes)
    assert found.values[-1, 0] == pytest.approx(roc_auc_score(data.labels(), scores[:, 1]))
    gained, low, _ = found.gained
    assert gained == pytest.approx(np.diff(found.values.mean(axis=1)).sum()) and low > 0


def test_the_interval_of_a_point_holds_its_value_and_is_of_draws_and_of_patients(measured):
    _, found = measured
    table = found.table
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    between = found.values.std(axis=1, ddof=0).mean()
    assert found.resampled.std(axis=0).mean() > between / np.sqrt(2), "more than the draws alone"


@pytest.mark.parametrize("shares", [(0.5, 1.0), (0.1, 0.3, 0.2, 1.0), (0.1, 0.2, 0.3, 0.4), (0.0, 0.2, 0.3, 1.0)])
def test_shares_that_make_no_curve_are_refused(shares):
    data = cohort()
    with pytest.raises(LungkitError, match="accepted: four or more, rising, above 0, and 1 the last"):
        learning_curve.measured(data, head(data), shares=shares)


# --- the law


@pytest.mark.parametrize(("asymptote", "scale", "exponent"), [(0.95, 0.05, 0.8), (0.9, 0.1, 0.4), (0.99, 0.02, 1.5)])
def test_a_curve_that_follows_the_law_gives_its_parameters_back(asymptote, scale, exponent):
    of = curve(asymptote, scale, exponent)
    law = learning_curve.fitted(SIZES, of.values.mean(axis=1))
    assert law.asymptote[0] == pytest.approx(asymptote, abs=0.005)
    assert law.at(SIZES)[0] == pytest.approx(of.values[:, 0], abs=1e-3)
    halfway = asymptote - scale / 2  # from the end of the curve to its asymptote
    assert law.patients_for(halfway)[0] == pytest.approx(100 * 2 ** (1 / exponent), rel=0.03)


def test_the_fit_leaves_no_more_than_scipys():
    of = curve(0.93, 0.08, 0.7, noise=0.01)
    y, weights = of.values.mean(axis=1), np.arange(1, 7) / 6

    def law(n, asymptote, scale, exponent):
        return asymptote - scale * (n / 100) ** -exponent

    best, _ = scipy.optimize.curve_fit(
        law, SIZES, y, (0.9, 0.1, 0.5), 1 / np.sqrt(weights), bounds=([0, 0, 0.05], [1, 2, 3])
    )
    mine = learning_curve.fitted(SIZES, y)
    left = [float(weights @ (y - of_law) ** 2) for of_law in (mine.at(SIZES)[0], law(SIZES, *best))]
    assert left[0] == pytest.approx(left[1], rel=0.01)
    assert mine.asymptote[0] == pytest.approx(best[0], abs=0.003)


def test_an_asymptote_is_at_most_1_and_a_falling_curve_is_flat():
    law = learning_curve.fitted(SIZES, [np.linspace(0.6, 0.999, 6), np.linspace(0.9, 0.8, 6)])
    assert law.asymptote[0] <= 1 and law.scale[1] == 0
    assert np.isinf(law.patients_for(0.95)[1])


# --- projections


def test_a_target_within_reach_is_projected_with_its_interval():
    found = learning_curve.projection(curve(0.95, 0.05, 0.8, noise=0.001), 0.92)
    assert found.verdict == learning_curve.PROJECTED
    assert found.low < found.patients < found.high and found.patients == pytest.approx(189, rel=0.1)


@pytest.mark.parametrize(
    ("target", "verdict"),
    [(0.85, learning_curve.REACHED), (0.96, learning_curve.BELOW), (0.9499, learning_curve.FAR)],
)
def test_what_is_reached_or_above_the_asymptote_or_far_away_is_said_to_be(target, verdict):
    assert learning_curve.projection(curve(0.95, 0.05, 0.8, noise=0.0005), target).verdict == verdict


def test_a_curve_that_is_not_shown_to_rise_projects_nothing():
    flat = curve(0.8, 0.0, 1.0, noise=0.01)
    assert learning_curve.projection(flat, 0.9).verdict == learning_curve.FLAT


def test_an_interval_that_some_resamples_do_not_reach_is_open():
    found = learning_curve.projection(curve(0.95, 0.05, 0.8, noise=0.01), 0.94)
    assert np.isinf(found.high) and found.asymptote[1] < 0.94 < found.asymptote[2]


@pytest.mark.parametrize(
    ("changed", "target", "said"),
    [
        ({"values": np.where(SIZES[:, None] == 32, np.nan, 0.8)}, 0.9, "undefined at 1 of the curve's 6 sizes"),
        ({"resampled": np.full((400, 6), np.nan)}, 0.9, "undefined in every resample"),
        ({"sizes": np.full(6, 50.0)}, 0.9, "sizes are 50, 50, 50, 50, 50, 50 patients; accepted: four different ones"),
        ({"sizes": SIZES - 15}, 0.9, "sizes are 0, 7, .* patients"),
        ({}, np.nan, "the target is nan; accepted: a number"),
    ],
)
def test_a_curve_or_target_that_says_nothing_is_refused_and_not_called_below(changed, target, said):
    with pytest.raises(LungkitError, match=said):
        learning_curve.projection(replace(curve(0.95, 0.05, 0.8), **changed), target)


def test_a_resample_without_a_figure_is_left_out_of_the_interval():
    whole = curve(0.95, 0.05, 0.8, noise=0.001)
    holes = whole.resampled.copy()
    holes[::4, 2] = np.nan
    found = learning_curve.projection(replace(whole, resampled=holes), 0.92)
    assert found == learning_curve.projection(replace(whole, resampled=holes[~np.isnan(holes).any(axis=1)]), 0.92)


# --- patients to test on


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: learning_curve.patients_to_test(0.9, 1e-9, 0.5), "takes more than 1,000,000,000 patients; accepted"),
        (lambda: learning_curve.to_test(100, (0.9, 0.85, 0.95), [0.0]), "a half width is 0; accepted: above 0"),
        (lambda: learning_curve.to_test(100, (0.9, 0.85, 0.95), [-0.1]), "a half width is -0.1; accepted"),
        (lambda: learning_curve.standard_error(0.5, 0, 5), "of 0 diseased and 5 other patients; accepted"),
        (lambda: learning_curve.standard_error(1.5, 5, 5), "an AUC of 1.5"),
    ],
)
def test_what_no_number_of_patients_gives_is_refused_with_what_would(call, said):
    with pytest.raises(LungkitError, match=said):
        call()


def test_two_widths_that_read_alike_have_a_row_each():
    assert len(learning_curve.to_test(100, (0.9, 0.85, 0.95), [0.01, 0.0101])) == 2


def test_the_standard_error_is_that_of_hanley_and_mcneils_formula():
    q1, q2 = 0.893 / 1.107, 2 * 0.893**2 / 1.893
    by_hand = (0.893 * 0.107 + 50 * (q1 - 0.893**2) + 57 * (q2 - 0.893**2)) / (51 * 58)
    assert learning_curve.standard_error(0.893, 51, 58) == pytest.approx(np.sqrt(by_hand))


def test_so_many_patients_give_the_width_that_was_asked_for_in_simulated_tests():
    # Scores of the diseased are exponential with mean 4, of the others 1: the AUC is 4 / 5, and the formula exact.
    patients = learning_curve.patients_to_test(0.8, 0.05, diseased=0.3)
    diseased = round(0.3 * patients)
    random = np.random.default_rng(2)
    truth = np.arange(patients) < diseased
    aucs = [roc_auc_score(truth, random.exponential(np.where(truth, 4.0, 1.0))) for _ in range(300)]
    assert np.mean(aucs) == pytest.approx(0.8, abs=0.006)
    assert 1.96 * np.std(aucs) == pytest.approx(0.05, rel=0.12)  # three standard errors of a deviation of 300


def test_more_patients_are_needed_for_a_narrower_interval_and_where_few_are_diseased():
    even, rare, narrow = (
        learning_curve.patients_to_test(0.8, half, share) for half, share in ((0.05, 0.5), (0.05, 0.1), (0.025, 0.5))
    )
    assert even < rare and narrow == pytest.approx(4 * even, rel=0.02)
    for wrong in ((1.0, 0.05, 0.5), (0.8, 0.0, 0.5), (0.8, 0.05, 1.0)):
        with pytest.raises(LungkitError, match=r"accepted are an AUC from 0\.5 to below 1"):
            learning_curve.patients_to_test(*wrong)


def test_half_the_width_takes_four_times_the_patients():
    table = learning_curve.to_test(100, (0.9, 0.86, 0.94), (0.04, 0.02), diseased=0.5)
    assert table["by this interval"].tolist() == [100, 400]
    assert table["Hanley and McNeil"].tolist() == [learning_curve.patients_to_test(0.9, of, 0.5) for of in (0.04, 0.02)]
    assert list(learning_curve.to_test(100, (0.9, 0.86, 0.94), (0.04,)).columns) == ["by this interval"]
    with pytest.raises(LungkitError, match="has no width to scale"):
        learning_curve.to_test(100, (1.0, 1.0, 1.0), (0.04,))
