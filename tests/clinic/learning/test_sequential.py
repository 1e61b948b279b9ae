"""Cumulative sums of ranks: limits as in published tables, as few false alarms as stated, a change found and dated."""

import numpy as np
import pytest

from lungkit.clinic.learning import sequential


def values(rng, days, shift=0.0, start=10**6, features=1, effect=0.3, size=8) -> tuple[np.ndarray, np.ndarray]:
    """Skewed values of images with their days; from the day `start` on they are shifted."""
    sizes = rng.poisson(size, days) + 1
    day = np.repeat(np.arange(days), sizes)
    common = rng.normal(0, effect, (days, features))[day]
    return rng.exponential(size=(len(day), features)) + common + shift * (day >= start)[:, None], day


def test_run_lengths_are_those_of_published_tables():
    """Montgomery, Introduction to Statistical Quality Control: 168 and 465 for both sides, twice that for one."""
    assert sequential.expected_run(4.0) == pytest.approx(336, rel=0.01)
    assert sequential.expected_run(5.0) == pytest.approx(930, rel=0.01)
    assert sequential.limit(930.0) == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize("effect", [0.0, 2.0], ids=["days alike", "days that differ"])
@pytest.mark.parametrize("features", [1, 6])
def test_a_quiet_course_raises_as_few_false_alarms_as_stated(features, effect):
    """Of 300 courses of 100 watched days each; with 2,000 days to a false alarm of a sum, at most one of 20 a sum."""
    rng, alarms, sums = np.random.default_rng(5), 0, sequential.sums_of(features)
    for _ in range(300):
        course = sequential.course(*values(rng, 100 + sequential.FIRST, features=features, effect=effect), 2000)
        alarms += bool((course.sums >= course.limit).any())
    expected = 300 * sums * 100 / 2000
    assert alarms <= expected + 3 * expected**0.5


def test_looks_at_windows_that_move_on_each_night_raise_as_few_false_alarms_as_stated():
    """Both sums together have one in 100 nights, so 63 % of periods of 100 nights may have any."""
    rng, periods, with_any = np.random.default_rng(8), 25, 0
    for _ in range(periods):
        figures, days = values(rng, 160, size=6)
        looks = ((days >= night - 60) & (days < night) for night in range(60, 160))
        with_any += any(sequential.course(figures[kept], days[kept] - days[kept].min(), 200).alarm for kept in looks)
    chance = 1 - np.exp(-1)
    assert with_any <= periods * chance + 3 * (periods * chance * (1 - chance)) ** 0.5


def test_permuting_the_order_of_images_within_days_changes_nothing():
    rng = np.random.default_rng(2)
    figures, days = values(rng, 40)
    order = rng.permutation(len(days))
    one, other = (sequential.course(figures[by], days[by], 500) for by in (np.arange(len(days)), order))
    np.testing.assert_allclose(one.sums, other.sums)


def test_scores_do_not_depend_on_the_unit_nor_on_an_offset():
    figures, days = values(np.random.default_rng(3), 40, features=2)
    one, other = sequential.course(figures, days, 500), sequential.course(1e4 + 0.01 * figures, days, 500)
    np.testing.assert_allclose(one.sums, other.sums, atol=1e-6)
    np.testing.assert_allclose(other.low, 1e4 + 0.01 * one.low)


def test_a_change_is_found_within_days_and_dated():
    rng, late, dated = np.random.default_rng(4), [], []
    for _ in range(40):
        course = sequential.course(*values(rng, 75, shift=1.0, start=60), 2000)
        beyond = np.flatnonzero((course.sums >= course.limit).any(axis=1))
        late.append(beyond[0] - 59 if len(beyond) else 99)
        dated.append(course.since)
    assert np.median(late) <= 7
    assert abs(np.median([one for one in dated if one is not None]) - 60) <= 2


def test_the_feature_that_has_changed_is_named_and_outside_its_usual_range():
    figures, days = values(np.random.default_rng(6), 75, features=4)
    figures[days >= 62, 2] += 3
    course = sequential.course(figures, days, 2000)
    assert course.alarm
    assert course.feature == 2
    assert (course.means[62:, 2] > course.high[62:, 2]).mean() > 0.5
    assert (course.means[:62] < course.high[:62]).mean() > 0.95


def test_a_figure_that_never_varies_raises_no_alarm():
    days = np.repeat(np.arange(40), 3)
    course = sequential.course(np.ones((120, 1)), days, 100)
    assert not course.alarm
    assert course.sums.max() == 0


def test_a_fall_is_found_as_a_rise_is_and_ends_soon_after_it_has_ended():
    figures, days = values(np.random.default_rng(7), 100, shift=-2.0, start=60)
    course = sequential.course(figures, days, 2000)
    assert course.sums[70, 1] >= course.limit > course.sums[70, 0]
    figures[days >= 72] += 2.0
    assert not sequential.course(figures[days < 82], days[days < 82], 2000).alarm
