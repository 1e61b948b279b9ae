"""Kappa as published, and intervals by patient."""

import numpy as np
import pytest

from lungkit.clinic.learning.agreement import agreement, cohen_kappa, fleiss_kappa


def test_cohens_kappa_of_a_known_table():
    table = np.array([[20, 5], [10, 15]])
    codes = np.array([(i, j) for i in range(2) for j in range(2) for _ in range(table[i, j])])
    kappa = cohen_kappa(codes, 2, [str(i) for i in range(50)])
    assert (kappa.value, kappa.agreed) == (pytest.approx(0.4), pytest.approx(0.7))
    assert kappa.low < 0.4 < kappa.high


def test_fleiss_kappa_of_the_table_in_textbooks():
    counts = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    assert fleiss_kappa(counts, list("abcdefghij")).value == pytest.approx(0.210, abs=5e-4)


def test_intervals_are_wider_where_images_are_of_few_patients():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, 40), 5)  # five images of a patient are alike
    wrong = np.repeat(rng.random(40) < 0.25, 5)
    codes = np.stack([truth, np.where(wrong, 1 - truth, truth)], axis=1)
    apart = cohen_kappa(codes, 2, [str(i) for i in range(200)])
    together = cohen_kappa(codes, 2, [str(i // 5) for i in range(200)])
    assert apart.value == together.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_an_interval_contains_the_true_kappa_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(100):
        truth = rng.integers(0, 2, 120)
        codes = np.stack([np.where(rng.random(120) < 0.1, 1 - truth, truth) for _ in range(2)], axis=1)
        kappa = cohen_kappa(codes, 2, [str(i) for i in range(120)])
        covered += kappa.low <= 0.64 <= kappa.high
    assert covered / 100 >= 0.87


def test_kappa_is_not_made_up_where_all_labels_are_one_class_or_no_one_differs():
    one = cohen_kappa(np.zeros((5, 2), int), 2, list("abcde"))
    assert (one.value, one.low, one.agreed) == (None, None, 1)
    same = cohen_kappa(np.array([(0, 0), (1, 1)] * 20), 2, [str(i) for i in range(40)])
    assert (same.value, same.low, same.high) == (1, None, None)


def test_pairs_of_readers_are_compared_on_what_both_labelled():
    ratings = [{1: "a", 2: "a"}, {1: "a", 2: "b"}, {2: "b", 3: "b"}, {3: "a"}, {1: "b", 2: "b"}]
    found = agreement(ratings, list("pqrst"))
    assert {pair: kappa.images for pair, kappa in found.cohen.items()} == {(1, 2): 3, (2, 3): 1}
    assert found.fleiss.images == 4
    assert agreement([{1: "a"}], ["p"]).fleiss is None
    assert agreement([], []).cohen == {}
