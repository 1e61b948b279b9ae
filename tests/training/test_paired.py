"""Two versions on the same patients: the tests against independent computations, and the verdict."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.training import paired
from lungkit.training.evaluation import evaluate


def _z(p: float) -> float:
    return scipy.stats.norm.isf(p / 2)


def _delong_by_pairs(y, a, b) -> float:
    """DeLong, DeLong and Clarke-Pearson's z, from every pair of images and the covariances of their formula 5."""
    kernels = []
    for scores in (a, b):
        sick, well = scores[y == 1], scores[y == 0]
        kernels.append((sick[:, None] > well).astype(float) + 0.5 * (sick[:, None] == well))
    sick = np.cov([kernel.mean(axis=1) for kernel in kernels]) / len(kernels[0])
    well = np.cov([kernel.mean(axis=0) for kernel in kernels]) / kernels[0].shape[1]
    contrast = np.array([1, -1])
    difference = contrast @ [kernel.mean() for kernel in kernels]
    return float(abs(difference) / np.sqrt(contrast @ (sick + well) @ contrast))


def test_delongs_test_of_two_scores_is_that_of_every_pair_also_with_ties():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    a, b = (np.round(y * lift + rng.normal(size=60), 1) for lift in (1.5, 0.5))
    p = paired.auc_test(y, a, b, np.arange(60))
    assert _z(p) == pytest.approx(_delong_by_pairs(y, a, b))
    assert paired.auc_test(y, a, 3 * a + 1, np.arange(60)) == 1.0  # they rank alike


def test_copies_of_each_patients_image_add_no_evidence():
    rng = np.random.default_rng(1)
    y, patients = rng.integers(0, 2, 50), np.arange(50)
    a, b = (y * lift + rng.normal(size=50) for lift in (1.5, 0.5))
    once = paired.auc_test(y, a, b, patients)
    copied = paired.auc_test(*(np.repeat(part, 4) for part in (y, a, b, patients)))
    assert copied == pytest.approx(once)
    as_if_independent = paired.auc_test(*(np.repeat(part, 4) for part in (y, a, b)), np.arange(200))
    assert as_if_independent < once / 2


def test_the_test_of_auc_rejects_one_in_twenty_where_two_scores_are_alike():
    rng = np.random.default_rng(2)
    ps = []
    for _ in range(400):
        y = np.repeat([0, 1], 40)
        patients = np.arange(80) // 2  # two images of each patient, who share a part of their noise
        shared = rng.normal(size=40)[patients]
        ps.append(paired.auc_test(y, *(y + shared + rng.normal(size=80) for _ in range(2)), patients))
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09


def test_the_error_behind_the_test_is_that_of_leaving_out_each_patient_in_turn():
    rng = np.random.default_rng(8)
    images = rng.integers(1, 7, 60)
    patients = np.repeat(np.arange(60), images)
    y = rng.integers(0, 2, len(patients))  # a patient can have images of both classes
    shared = rng.normal(size=60)[patients]
    a, b = (lift * y + shared + rng.normal(size=len(y)) for lift in (1.5, 0.8))

    def difference(of):
        return sk.roc_auc_score(y[of], a[of]) - sk.roc_auc_score(y[of], b[of])

    left = np.array([difference(patients != one) for one in range(60)])
    jackknife = np.sqrt(59 / 60 * np.sum((left - left.mean()) ** 2))
    of_test = difference(patients >= 0) / _z(paired.auc_test(y, a, b, patients))
    assert of_test == pytest.approx(jackknife, rel=0.05)


def test_mcnemars_test_counts_patients_exactly():
    a, b = np.array([1] * 9 + [0] * 2 + [1] * 30), np.array([0] * 9 + [1] * 2 + [1] * 30)
    assert paired.decision_test(a, b, np.arange(41)) == pytest.approx(scipy.stats.binomtest(9, 11).pvalue)
    assert paired.decision_test(np.repeat(a, 3), np.repeat(b, 3), np.repeat(np.arange(41), 3)) == pytest.approx(
        scipy.stats.binomtest(9, 11).pvalue
    )
    assert paired.decision_test(a, a, np.arange(41)) == 1.0


def test_the_test_of_decisions_weighs_every_choice_of_signs_of_the_patients_gains():
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(9), rng.integers(1, 6, 9))
    a, b = rng.random((2, len(patients))) < [[0.8], [0.6]]
    gains = np.bincount(patients, a.astype(int) - b)
    signs = np.array(list(itertools.product([-1, 1], repeat=9)))
    expected = np.mean(np.abs(signs @ gains) >= abs(gains.sum()))
    assert 0 < expected < 1
    assert paired.decision_test(a, b, patients) == pytest.approx(expected)
    assert paired.decision_test(b, a, patients) == pytest.approx(expected)


def test_the_test_of_decisions_of_many_patients_is_obuchowskis():
    rng = np.random.default_rng(4)
    patients = np.arange(2000) // 4
    a, b = rng.random((2, 2000)) < [[0.82], [0.80]]
    gains = np.bincount(patients, a.astype(int) - b)
    z = gains.sum() / np.sqrt(500 / 499 * np.sum(gains**2))  # Statistics in Medicine 1998, under the null
    assert paired.decision_test(a, b, patients) == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.02)


def test_errors_that_gather_in_few_patients_are_no_sign_of_a_difference():
    rng, ps = np.random.default_rng(5), []
    for _ in range(200):  # both are right on 0.8 of the images; the first one's errors are of whole patients
        whole, single = np.repeat(rng.random(60) < 0.8, 4), rng.random(240) < 0.8
        ps.append(paired.decision_test(whole, single, np.arange(240) // 4))
    assert np.mean(np.array(ps) < 0.05) < 0.09


def test_a_class_without_an_image_leaves_the_auc_untested():
    assert np.isnan(paired.auc_test([1, 1], [0.1, 0.2], [0.2, 0.1], ["a", "b"]))


def _auc_gap(y, a, b):
    return sk.roc_auc_score(y, a) - sk.roc_auc_score(y, b)


def _swapped(y, a, b):
    """p of every choice of patients, of one image each, whose ranks by the two scores are swapped."""
    a, b = scipy.stats.rankdata(a), scipy.stats.rankdata(b)
    choices = np.array(list(itertools.product([False, True], repeat=len(y))))
    gaps = [_auc_gap(y, np.where(swap, b, a), np.where(swap, a, b)) for swap in choices]
    return np.mean(np.abs(gaps) >= abs(_auc_gap(y, a, b)) - 1e-9)


@pytest.mark.parametrize("each", [2, 3])
@pytest.mark.parametrize("other", ["constant", "inverted"])
def test_where_the_difference_has_no_variance_few_patients_show_little(each, other):
    y = np.repeat([0, 1], each)
    perfect = np.r_[np.linspace(0.1, 0.2, each), np.linspace(0.8, 0.9, each)]
    old = np.full(2 * each, 0.5) if other == "constant" else 1 - perfect
    p = paired.auc_test(y, perfect, old, np.arange(2 * each))
    assert p == pytest.approx(_swapped(y, perfect, old)) == pytest.approx(2 / 4**each)
    twice = paired.auc_test(*(np.repeat(of, 2) for of in (y, perfect, old, np.arange(2 * each))))
    assert twice == pytest.approx(p), "copies add no evidence"


def test_no_p_of_a_difference_in_auc_is_below_what_swapping_so_few_patients_can_give():
    y, new, old = np.repeat([0, 1], 3), np.array([1, 2, 3, 7, 8, 9.0]), np.array([7.5, 8, 9, 1, 2, 7.5])
    assert paired.auc_test(y, new, old, np.arange(6)) >= 2 / 2**6
    many = np.repeat([0, 1], 40)
    assert 0 < paired.auc_test(many, many, np.zeros(80), np.arange(80)) < 0.001


def test_decisions_on_a_hundred_thousand_patients_are_tested_at_once():
    rng = np.random.default_rng(6)
    a, b = rng.random((2, 100_000)) < [[0.702], [0.7]]
    ahead, differ = int((a & ~b).sum()), int((a != b).sum())
    start = time.perf_counter()
    p = paired.decision_test(a, b, np.arange(100_000))
    of_two = paired.decision_test(a, b, np.arange(100_000) // 2)
    assert time.perf_counter() - start < 2
    assert p == pytest.approx(scipy.stats.binomtest(ahead, differ).pvalue)
    assert of_two == pytest.approx(p, abs=0.05), "two images of a patient that are independent"


def test_the_normal_approximation_is_near_the_exact_test_of_signs(monkeypatch):
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 3000)) < [[0.75], [0.73]]
    exact = paired.decision_test(a, b, np.arange(3000) // 3)
    monkeypatch.setattr(paired, "LARGE", 100)
    assert paired.decision_test(a, b, np.arange(3000) // 3) == pytest.approx(exact, abs=0.002)


# --- remarks


def _decided(p, predicted, y=None, kind="argmax"):
    """An evaluation of decisions that were made elsewhere; p: of the last of two classes, or rows of several."""
    p = np.asarray(p, float)
    p = np.column_stack([1 - p, p]) if p.ndim == 1 else p
    y = np.asarray(predicted) if y is None else y
    classes = tuple("abc"[: p.shape[1]])
    return evaluate(y, p, np.arange(len(y)), classes, DecisionRule(kind=kind), n_boot=20, predicted=predicted)


def test_decisions_that_differ_are_remarked_where_the_verdict_by_auc_is_another():
    y, p = np.repeat([0, 1], 30), np.r_[np.linspace(0.1, 0.4, 30), np.linspace(0.38, 0.7, 30)]
    right, all_called = (_decided(p, (p > least).astype(int), y) for least in (0.39, 0.05))
    pair = paired.paired(all_called, right, "there", names=("old", "new"))
    (remark,) = pair.remarks
    assert pair.verdict == "open"
    assert "new gets more images right, accuracy +0." in remark and "(McNemar, p < .001)" in remark
    assert remark.endswith(f"the verdict is by AUC alone, and is '{pair.verdict}'")
    (less,) = paired.paired(right, all_called, "there").remarks
    assert "new gets fewer images right" in less
    assert not paired.adjusted([replace(pair, decision_p=0.03)] * 2)[0].remarks, "0.06 after Holm's correction"
    assert not [text for text in paired.paired(_measured(0.5), _measured(2.5), "there").remarks if "McNemar" in text]


@pytest.mark.parametrize(
    ("p", "predicted", "follow"),
    [
        ([0.1, 0.6, 0.9], [0, 1, 1], True),
        ([0.1, 0.2, 0.9], [0, 1, 1], True),  # a threshold
        ([0.1, 0.2, 0.9], [0, 1, 0], False),
        ([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], [0, 2], True),
        ([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]], [1, 0], True),  # "b" from 0.3 on
        ([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], [2, 1, 0], False),
    ],
)
def test_decisions_that_do_not_follow_from_the_probabilities_are_remarked(p, predicted, follow):
    one = _decided(p, predicted)
    sound = replace(one, predicted=one.probabilities.argmax(axis=1))
    told = [text for text in paired.paired(sound, one, "there").remarks if "do not follow" in text]
    assert told == (
        []
        if follow
        else ["there, new against old: the decisions of new do not follow from its probabilities: check its table"]
    )


# --- the verdict


def _measured(lift: float, n: int = 120, noise: int = 3):
    """An evaluation whose scores lie `lift` apart, with the same noise for all."""
    y, random = np.arange(n) % 2, np.random.default_rng(noise).normal(size=n)
    p = 1 / (1 + np.exp(-(lift * (y - 0.5) + random)))
    rule = DecisionRule(kind="threshold", positive="sick", threshold=0.5)
    return evaluate(y, np.column_stack([1 - p, p]), np.arange(n), ("well", "sick"), rule, n_boot=200)


@pytest.mark.parametrize(
    ("old", "new", "margin", "verdict"),
    [
        (_measured(0.5), _measured(2.5), 0.02, "better"),
        (_measured(2.5), _measured(0.5), 0.02, "worse"),
        (_measured(3), _measured(3.01), 0.2, "not worse"),
        (_measured(1), _measured(1, noise=4), 0.0, "open"),
    ],
)
def test_the_interval_of_the_difference_decides(old, new, margin, verdict):
    assert paired.paired(old, new, "there", margin).verdict == verdict


def test_an_interval_that_ends_at_minus_the_margin_is_open():
    _, low, _ = paired.paired(_measured(3), _measured(3.01), "there").auc
    assert low < 0
    assert paired.paired(_measured(3), _measured(3.01), "there", -low).verdict == "open"
    assert paired.paired(_measured(3), _measured(3.01), "there", -low + 1e-9).verdict == "not worse"


def test_a_version_may_be_promoted_if_it_keeps_home_and_gains_elsewhere():
    better, worse = (_measured(0.5), _measured(2.5)), (_measured(2.5), _measured(0.5))
    same = (_measured(3), _measured(3.01))
    home = paired.paired(*same, "home", 0.2, at_home=True)
    gain, loss = paired.paired(*better, "abroad", 0.2), paired.paired(*worse, "abroad", 0.2)
    assert paired.enough([home, gain])
    assert paired.enough([paired.paired(_measured(3), _measured(3), "home", 0.001, at_home=True), gain])  # identical
    assert not paired.enough([home]) and not paired.enough([home, loss])
    assert not paired.enough([paired.paired(*worse, "home", 0.2, at_home=True), gain])
    says = paired.says("m@v1", "m@v2", [home, gain])
    assert (
        says == "m@v2 is better than m@v1 on abroad, is not worse, by a margin of 0.2, on home: enough to promote it."
    )
    assert paired.says("m@v1", "m@v2", [home, loss]).endswith("is worse on abroad: not enough to promote it.")


def test_other_images_cannot_be_paired():
    with pytest.raises(LungkitError, match="cannot be paired"):
        paired.paired(_measured(1), _measured(1, n=60), "there")
