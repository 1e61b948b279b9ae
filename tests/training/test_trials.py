"""The figures of a trial against simulation: two networks whose scores are correlated as those of real ones."""

import numpy as np
import pytest
import scipy.stats

from bench import trials as simulation
from lungkit.models import verdict
from lungkit.training import evaluation, paired
from lungkit.training.evaluation import paired_difference, paired_differences


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(simulation, "RESAMPLES", 200)


def test_the_simulated_networks_differ_as_much_as_real_ones():
    rng = np.random.default_rng(0)
    for patients, low, high in ((200, 0.009, 0.022), (1000, 0.004, 0.010)):
        sets = [simulation.of_set(rng, "locked", patients, 0.0) for _ in range(10)]
        halves = [(of.auc[2] - of.auc[1]) / 2 for of in sets]
        assert low < min(halves) and max(halves) < high


def test_so_many_patients_as_a_pilot_says_show_not_worse_four_times_of_five():
    rng = np.random.default_rng(2)
    needed = int(np.median([simulation.of_set(rng, "locked", 200, 0.0).patients_needed(0.02) for _ in range(15)]))
    shown = [simulation.of_set(rng, "locked", needed, 0.0).auc[1] >= -0.02 for _ in range(120)]
    assert 0.68 < np.mean(shown) < 0.92
    half = [simulation.of_set(rng, "locked", needed // 3, 0.0).auc[1] >= -0.02 for _ in range(60)]
    assert np.mean(half) < np.mean(shown) - 0.15


def test_the_standard_error_is_that_of_delong():
    rng = np.random.default_rng(4)
    sick, shared = np.arange(600) % 2, rng.normal(size=600)
    old, new = (simulation._scored(rng, sick, shared, simulation.apart(auc)) for auc in (0.93, 0.95))
    pair = paired.paired(old, new, "there")
    error = (pair.auc[2] - pair.auc[1]) / (2 * 1.96)
    z = scipy.stats.norm.isf(pair.auc_p / 2)
    assert error == pytest.approx(abs(pair.auc[0]) / z, rel=0.2)


def test_several_differences_at_once_are_those_of_each_alone():
    rng = np.random.default_rng(5)
    sick, shared = np.arange(120) % 2, rng.normal(size=120)
    old, new = (simulation._scored(rng, sick, shared, simulation.apart(auc)) for auc in (0.8, 0.9))
    both = paired_differences(new, old, [("auc", ""), ("ece", ""), ("recall", "sick")])
    for (metric, cls), difference in both.items():
        assert difference == paired_difference(new, old, metric, cls)
        assert difference[0] == pytest.approx(new.value(metric, cls)[0] - old.value(metric, cls)[0])


def test_bad_and_good_challengers_are_told_apart():
    rng = np.random.default_rng(6)
    sizes = {"locked": 250, "home": 250}
    bad = [verdict.judge(simulation.trial(rng, sizes, -0.05)).word for _ in range(10)]
    good = [verdict.judge(simulation.trial(rng, sizes, 0.03)).word for _ in range(10)]
    assert bad == ["keep"] * 10 and good.count("promote") >= 9


def test_what_is_left_to_a_person_and_the_smallest_class_are_counted():
    rng = np.random.default_rng(7)
    of = simulation.of_set(rng, "locked", 101, 0.0)
    assert (of.patients, of.images, of.fewest) == (101, 101, 50)
    assert of.champion.left_to_person == 0.0  # its rule has no band
    assert evaluation.RESAMPLES == 1000
