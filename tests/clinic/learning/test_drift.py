"""The statistics of drift, on simulated days: they alarm as rarely as they say, and see a shift."""

import numpy as np
import pytest
from scipy import stats

from lungkit.clinic.learning import drift

WINDOWS, ALARM = 1000, 0.05
RECENT = np.arange(16) >= 12  # days


def most(alarm=ALARM, windows=WINDOWS) -> float:
    """The largest rate of alarms that windows without drift explain (99.9 %)."""
    return stats.binom(windows, alarm).ppf(0.9995) / windows


def least(alarm=ALARM, windows=WINDOWS) -> float:
    return stats.binom(windows, alarm).ppf(0.0005) / windows


def images(rng, effect=0.3, shift=0.0, size=12) -> tuple[np.ndarray, np.ndarray]:
    """Values of images and their days; images of a day have an effect of the day in common."""
    sizes = rng.poisson(size, len(RECENT)) + 1
    days = np.repeat(np.arange(len(RECENT)), sizes)
    return rng.normal(size=len(days)) + rng.normal(0, effect, len(RECENT))[days] + shift * RECENT[days], days


def test_psi_without_drift_is_on_average_what_the_formula_says():
    rng = np.random.default_rng(1)
    for classes, before, recent in ((10, 1000, 200), (10, 300, 100), (4, 150, 60)):
        shares = np.full(classes, 1 / classes)
        drawn = drift.psi(rng.multinomial(before, shares, 4000), rng.multinomial(recent, shares, 4000))
        assert drawn.mean() == pytest.approx(drift.expected_psi(classes, before, recent), rel=0.08)


def test_psi_of_the_same_shares_is_nothing_and_it_does_not_matter_which_is_before():
    counts, other = np.array([10, 20, 30]), np.array([30, 20, 10])
    assert drift.psi(counts, counts) == 0
    assert drift.psi(counts, other) == pytest.approx(drift.psi(other, counts))
    assert drift.psi(np.array([1000, 0]), np.array([0, 1000])) < np.inf


def test_bins_are_of_equal_size_and_equal_values_share_one():
    codes = drift.bins(np.random.default_rng(0).permutation(1000.0 + np.arange(1000)))
    assert np.bincount(codes).tolist() == [100] * 10
    assert drift.bins(np.array([5.0] * 20)).tolist() == [0] * 20
    assert drift.bins(np.array([1.0] * 10 + [2.0] * 10)).tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("effect", [0.0, 1.0], ids=["days alike", "days that differ"])
def test_psi_by_days_keeps_its_rate_of_false_alarms(effect):
    rng, alarms = np.random.default_rng(2), 0
    for window in range(WINDOWS):
        values, days = images(rng, effect)
        alarms += drift.psi_by_days(drift.bins(values, 5), days, RECENT, 199, window).p <= ALARM
    assert least() <= alarms / WINDOWS <= most()


@pytest.mark.parametrize("effect", [0.0, 1.0], ids=["days alike", "days that differ"])
def test_mmd_by_days_keeps_its_rate_of_false_alarms(effect):
    rng, alarms = np.random.default_rng(3), 0
    for window in range(WINDOWS):
        values, days = images(rng, effect, size=5)
        features = np.stack([values, rng.normal(size=len(values))], axis=1)
        alarms += drift.mmd_by_days(features, days, RECENT, 199, window).p <= ALARM
    assert least() <= alarms / WINDOWS <= most()


def test_a_shift_is_seen_by_psi_and_by_mmd():
    rng, psi, mmd = np.random.default_rng(4), 0, 0
    for window in range(60):
        values, days = images(rng, 0.1, shift=0.8)
        psi += drift.psi_by_days(drift.bins(values, 5), days, RECENT, 199, window).p <= ALARM
        mmd += drift.mmd_by_days(values[:, None], days, RECENT, 199, window).p <= ALARM
    assert min(psi, mmd) >= 54


def test_permuting_images_instead_of_days_would_raise_false_alarms():
    rng, alarms = np.random.default_rng(5), 0
    for window in range(200):
        values, days = images(rng, 1.0)
        own = np.arange(len(values))  # each image as a day of its own
        alarms += drift.psi_by_days(drift.bins(values, 5), own, RECENT[days], 199, window).p <= ALARM
    assert alarms / 200 > 3 * ALARM


def test_the_mmd_of_all_pairs_is_what_its_definition_says():
    rng = np.random.default_rng(6)
    values, days = images(rng, 0.5, size=4)
    mmd = drift.mmd_by_days(values[:, None], days, RECENT, 9).value
    scaled = (values - values.mean()) / values.std()
    squares = (scaled[:, None] - scaled) ** 2
    kernel = np.exp(-squares / np.median(squares))
    new = RECENT[days]
    n, m = new.sum(), (~new).sum()
    inside = (kernel[np.ix_(new, new)].sum() - n) / (n * (n - 1))
    outside = (kernel[np.ix_(~new, ~new)].sum() - m) / (m * (m - 1))
    assert mmd == pytest.approx(inside + outside - 2 * kernel[np.ix_(new, ~new)].mean(), abs=1e-5)


def charts(rng, share, between, size, recent_share=None, windows=WINDOWS) -> float:
    """The rate of charts with an alarm; `between`: the correlation of images of one day."""
    recent, alarms = np.arange(37) >= 30, 0
    for _ in range(windows):
        centre = np.where(recent, share if recent_share is None else recent_share, share)
        weight = 1 / between - 1 if between else 1e9
        sizes = rng.poisson(size, 37)
        hits = rng.binomial(sizes, rng.beta(centre * weight, (1 - centre) * weight))
        alarms += drift.chart(hits, sizes, recent, ALARM).out.any()
    return alarms / windows


@pytest.mark.parametrize("between", [0.0, 0.05])
@pytest.mark.parametrize(("share", "size"), [(0.05, 10), (0.3, 60)])
def test_control_charts_keep_their_rate_of_false_alarms(share, size, between):
    assert charts(np.random.default_rng(7), share, between, size) <= most()


def test_a_control_chart_sees_a_change_of_one_day_and_a_small_one_that_lasts():
    assert charts(np.random.default_rng(8), 0.05, 0, 30, recent_share=0.17, windows=100) > 0.95
    sizes, recent = np.full(37, 40), np.arange(37) >= 30
    hits = np.full(37, 2)
    assert not drift.chart(hits, sizes, recent, 0.01).out.any()
    hits[33] = 20
    assert drift.chart(hits, sizes, recent, 0.01).out[3]


def test_limits_are_those_of_the_beta_binomial_distribution():
    n, a, b = np.array([0.0, 1, 10, 100, 700]), np.array([1.0, 2, 3, 5, 9]), np.array([4.0, 20, 2, 90, 9])
    low, high = drift._limits(n, a, b, 0.01)
    same = stats.betabinom(n.astype(int), a, b)
    np.testing.assert_array_equal(low, same.ppf(0.01))
    np.testing.assert_array_equal(high, same.ppf(0.99))


def test_days_without_an_image_raise_no_alarm():
    sizes = np.where(np.arange(37) % 7 < 2, 0, 20)
    made = drift.chart(sizes // 10, sizes, np.arange(37) >= 30, 0.05)
    assert not made.out.any()


def test_the_fewest_days_are_those_whose_permutations_can_reach_the_rate():
    assert drift.fewest_days(1, 0.01) == 200
    assert drift.fewest_days(7, 0.01) == 11
