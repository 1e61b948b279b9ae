"""Every metric against scikit-learn, every interval against what a bootstrap by patient must do."""

import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from lungkit import wording
from lungkit.errors import LungkitError
from lungkit.models.card import GRADED, Measured
from lungkit.models.rule import DecisionRule
from lungkit.training import evaluation
from lungkit.training.evaluation import (
    evaluate,
    mean_with_interval,
    operating_point,
    paired_difference,
    points_table,
    side_by_side,
)
from tests.graded import CLASSES as GRADED_CLASSES
from tests.graded import MIDDLE, answers

CLASSES = ("Normal", "Pneumonia", "COVID-19")
ARGMAX = DecisionRule(kind="argmax")


def predictions(n=400, size=3, seed=1, skill=1.5, decimals=None):
    """Labels and softmax probabilities of a classifier of some skill; rounded scores make ties."""
    rng = np.random.default_rng(seed)
    y = rng.choice(size, n, p=np.array([0.5, 0.3, 0.2, 0.0][:size]) / np.sum([0.5, 0.3, 0.2, 0.0][:size]))
    logits = rng.normal(size=(n, size))
    logits[np.arange(n), y] += skill
    if decimals is not None:
        logits = logits.round(decimals)
    probabilities = np.exp(logits)
    return y, probabilities / probabilities.sum(axis=1, keepdims=True)


def evaluated(y, p, classes=CLASSES, patients=None, point=ARGMAX, **options):
    patients = np.arange(len(y)) // 4 if patients is None else patients
    return evaluate(y, p, patients, classes[: p.shape[1]], point, **{"n_boot": 50} | options)


def stats_of_shares(right, n):
    """The exact interval of Clopper and Pearson, from SciPy."""
    found = binomtest(right, n).proportion_ci(method="exact")
    return found.low, found.high


# --- the figures themselves, against scikit-learn


@pytest.mark.parametrize("decimals", [None, 0])
def test_three_class_figures_agree_with_scikit_learn(decimals):
    y, p = predictions(decimals=decimals)
    predicted = p.argmax(axis=1)
    got = evaluated(y, p).to_dict()
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert got["auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(y, p))
    assert got["confusion"] == sk.confusion_matrix(y, predicted).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, predicted)
    for k, name in enumerate(CLASSES):
        of_class = got["per_class"][name]
        assert of_class == pytest.approx(
            {
                "precision": precision[k],
                "recall": recall[k],
                "specificity": sk.recall_score(y != k, predicted != k),
                "f1": f1[k],
                "auc": sk.roc_auc_score(y == k, p[:, k]),
                "average_precision": sk.average_precision_score(y == k, p[:, k]),
                "support": support[k],
            }
        )


def test_two_class_figures_agree_with_scikit_learn_at_the_operating_point():
    y, p = predictions(size=2, decimals=1)
    point = DecisionRule(kind="threshold", positive="Pneumonia", threshold=0.3)
    predicted = p[:, 1] >= 0.3
    got = evaluated(y, p, point=point).to_dict()
    assert got["auc"] == pytest.approx(sk.roc_auc_score(y, p[:, 1]))
    assert got["per_class"]["Normal"]["auc"] == pytest.approx(sk.roc_auc_score(y == 0, p[:, 0]))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(y, p[:, 1]))
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert got["per_class"]["Pneumonia"]["recall"] == pytest.approx(sk.recall_score(y, predicted))
    assert got["per_class"]["Normal"]["precision"] == pytest.approx(sk.precision_score(y, predicted, pos_label=0))
    assert got["confusion"] == sk.confusion_matrix(y, predicted).tolist()
    assert got["operating_point"] == point.to_dict()


def test_curves_agree_with_scikit_learn():
    y, p = predictions(decimals=1)
    result = evaluated(y, p)
    roc = result.roc("COVID-19")
    fpr, tpr, thresholds = sk.roc_curve(y == 2, p[:, 2], drop_intermediate=False)
    np.testing.assert_allclose(roc.to_numpy(), np.column_stack([fpr, tpr, thresholds]))
    curve = result.precision_recall("COVID-19")
    precision, recall, thresholds = sk.precision_recall_curve(y == 2, p[:, 2])
    np.testing.assert_allclose(curve[["precision", "recall"]], np.column_stack([precision, recall])[::-1])
    np.testing.assert_allclose(curve["threshold"][1:], thresholds[::-1])


def test_ece_is_the_weighted_gap_between_confidence_and_accuracy():
    # Bins (10/15, 11/15] and (13/15, 14/15]: two images at 0.7, one right; three at 0.9, all right.
    p = np.array([[0.7, 0.3], [0.7, 0.3], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    got = evaluated(np.array([0, 1, 0, 0, 1]), p)
    assert got.value("ece")[0] == pytest.approx(2 / 5 * 0.2 + 3 / 5 * 0.1)
    table = got.reliability()
    assert table["images"].tolist() == [2, 3]
    assert table["accuracy"].tolist() == [0.5, 1.0]
    assert table["confidence"].tolist() == pytest.approx([0.7, 0.9])


def test_reliability_agrees_with_scikit_learn_and_adds_up_to_the_ece():
    y, p = predictions(n=1000)
    result = evaluated(y, p)
    table = result.reliability()
    accuracy, confidence = calibration_curve(p.argmax(1) == y, p.max(1), n_bins=15)
    np.testing.assert_allclose(table[["accuracy", "confidence"]], np.column_stack([accuracy, confidence]))
    gaps = np.abs(table["accuracy"] - table["confidence"])
    assert np.average(gaps, weights=table["images"]) == pytest.approx(result.value("ece")[0])
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()


def test_ece_looks_at_the_likeliest_class_whatever_the_operating_point():
    y, p = predictions(size=2)
    high = evaluated(y, p, point=DecisionRule(kind="threshold", threshold=0.9))
    assert high.value("ece") == evaluated(y, p).value("ece")


# --- what is undefined


def test_one_class_only_gives_nulls_and_no_crash():
    y, p = np.zeros(12, int), predictions(n=12, size=2)[1]
    got = evaluated(y, p)
    as_dict = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert as_dict["auc"] is None
    assert as_dict["intervals"]["auc"] == [None, None]
    assert as_dict["per_class"]["Pneumonia"]["recall"] is None
    assert as_dict["per_class"]["Normal"]["specificity"] is None
    assert as_dict["balanced_accuracy"] == as_dict["per_class"]["Normal"]["recall"]
    got.roc("Pneumonia"), got.roc_band("Pneumonia"), got.precision_recall_band("Pneumonia"), got.summary()


def test_a_class_without_images_is_left_out_of_the_means():
    y, p = predictions()
    y[y == 2] = 0
    got = evaluated(y, p).to_dict()
    per_class = got["per_class"]
    assert per_class["COVID-19"]["auc"] is None
    assert per_class["COVID-19"]["precision"] == 0
    assert got["auc"] == pytest.approx(np.mean([per_class[c]["auc"] for c in CLASSES[:2]]))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"))


def test_a_class_never_predicted_has_precision_and_f1_of_zero():
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    got = evaluated(y, p).to_dict()["per_class"]["Pneumonia"]
    assert (got["precision"], got["recall"], got["f1"], got["auc"]) == (0, 0, 0, 1)


def test_a_class_missing_from_some_resamples_still_has_an_interval():
    y, p = predictions(n=40)
    y[:] = 0
    y[:4] = 2  # one patient only, absent from about a third of the resamples
    low, high = evaluated(y, p, n_boot=200).to_dict()["intervals"]["per_class"]["COVID-19"]["recall"]
    assert 0 <= low < 0.03 < 0.97 < high <= 1, "one patient says next to nothing about others"


def test_with_one_patient_there_is_no_interval():
    y, p = predictions(n=8)
    got = evaluated(y, p, patients=["a"] * 8).to_dict()
    assert got["intervals"]["accuracy"] == [None, None]
    assert got["accuracy"] is not None


# --- the intervals


def test_the_interval_is_that_of_a_plain_bootstrap_over_patients():
    y, p = predictions(n=120)
    patients = np.arange(120) // 6
    got = evaluated(y, p, patients=patients, n_boot=2000)
    rng = np.random.default_rng(3)
    plain = []
    for _ in range(800):
        images = np.concatenate([np.flatnonzero(patients == d) for d in rng.integers(0, 20, 20)])
        truth, probability = y[images], p[images]
        plain.append(
            (
                sk.accuracy_score(truth, probability.argmax(1)),
                sk.roc_auc_score(truth == 1, probability[:, 1]),
                sk.average_precision_score(truth == 1, probability[:, 1]),
            )
        )
    expected = np.percentile(plain, [2.5, 97.5], axis=0).T
    for (metric, cls), interval in zip(
        [("accuracy", ""), ("auc", "Pneumonia"), ("average_precision", "Pneumonia")], expected, strict=True
    ):
        np.testing.assert_allclose(got.value(metric, cls)[1:], interval, atol=0.015)


def test_every_metric_has_an_interval_around_it():
    y, p = predictions()
    table = evaluated(y, p, n_boot=300).metrics
    assert len(table) == 6 + 3 * 6
    around = table[table["metric"] != "ece"]  # resampling scatter pushes the ECE up: it may lie below its interval
    assert (around["low"] < around["value"]).all()
    assert (around["value"] < around["high"]).all()
    assert (table["low"] < table["high"]).all()


def test_where_a_patients_images_agree_the_interval_is_wider_than_by_image():
    y, p = predictions(n=60)
    y, p = np.repeat(y, 10), np.repeat(p, 10, axis=0)
    by_patient = evaluated(y, p, patients=np.arange(600) // 10, n_boot=500)
    by_image = evaluated(y, p, patients=np.arange(600), n_boot=500)
    for metric in ("accuracy", "auc", "macro_f1"):
        value, low, high = by_patient.value(metric)
        assert value == by_image.value(metric)[0]
        assert high - low > 2 * np.diff(by_image.value(metric)[1:])[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Patients of differing difficulty; the true accuracy is known. 95 % nominal; a percentile bootstrap of 40
    # patients is a little short of that.
    rng, truth, covered = np.random.default_rng(0), 0.8, 0
    for trial in range(200):
        skill = rng.beta(8, 2, size=40)  # mean 0.8
        right = rng.random((40, 5)) < skill[:, None]
        p = np.where(right.ravel()[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        result = evaluated(np.zeros(200, int), p, patients=np.arange(200) // 5, n_boot=300, seed=trial)
        _, low, high = result.value("accuracy")
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    y, p = predictions()
    first, again, other = (evaluated(y, p, seed=s).metrics for s in (7, 7, 8))
    pd.testing.assert_frame_equal(first, again)
    assert not first["low"].equals(other["low"])
    assert first["value"].equals(other["value"])


def test_the_order_of_the_images_does_not_matter():
    y, p = predictions()
    patients, order = np.arange(400) // 4, np.random.default_rng(0).permutation(400)
    pd.testing.assert_frame_equal(
        evaluated(y, p, patients=patients).metrics,
        evaluated(y[order], p[order], patients=patients[order]).metrics,
    )


def test_a_thousand_resamples_of_six_thousand_images_take_seconds_not_minutes():
    y, p = predictions(n=6000)
    start = time.process_time()  # not the clock on the wall, which runs on while others use the machine
    evaluated(y, p, n_boot=1000)
    assert time.process_time() - start < 10  # 1.7 s; a loop over resamples and figures would take a minute


def test_bands_hold_the_curve_and_the_auc_interval():
    y, p = predictions()
    result = evaluated(y, p, n_boot=300)
    for band, curve, x, value in (
        (result.roc_band("COVID-19"), result.roc("COVID-19"), "fpr", "tpr"),
        (result.precision_recall_band("COVID-19"), result.precision_recall("COVID-19"), "recall", "precision"),
    ):
        inner = band[(band[x] > 0.1) & (band[x] < 0.95)]
        on_curve = np.interp(inner[x], curve[x], curve[value])
        assert np.mean((inner["low"] <= on_curve) & (on_curve <= inner["high"])) > 0.95
    band = result.roc_band("COVID-19")
    _, low, high = result.value("auc", "COVID-19")
    assert np.trapezoid(band["low"], band["fpr"]) < low
    assert high < np.trapezoid(band["high"], band["fpr"])


def test_the_mean_of_a_value_per_image_has_an_interval_by_patient():
    values = np.repeat([0.0, 1.0, 1.0, np.nan, 0.0, 1.0], 5)
    mean, low, high = mean_with_interval(values, np.arange(30) // 5, share=True)
    assert mean == pytest.approx(0.6)
    assert (low, high) == pytest.approx(stats_of_shares(3, 5), abs=0.02), "three of five patients, whose images agree"
    assert np.isnan(mean_with_interval([np.nan], ["a"])).all()


# --- where the bootstrap has no width


def separated(patients_of_each=11, images=3, wrong=0):
    """Two classes told apart without an error, but for the first `wrong` patients; patients of several images."""
    y = np.repeat([0, 1], patients_of_each * images)
    patients = np.arange(len(y)) // images
    last = np.where(y == 1, 0.9, 0.1)
    last[patients < wrong] = 0.8
    return y, np.column_stack([1 - last, last]), patients


def test_all_right_of_eleven_patients_of_a_class_is_no_certainty():
    y, p, patients = separated()
    got = evaluated(y, p, patients=patients)
    everyone, eleven = stats_of_shares(22, 22), stats_of_shares(11, 11)
    assert eleven[0] == pytest.approx(0.715, abs=1e-3)
    assert got.value("accuracy") == pytest.approx((1.0, *everyone)), "66 images are no more than their 22 patients"
    for metric in ("recall", "specificity", "precision", "f1", "auc", "average_precision"):
        assert got.value(metric, "Pneumonia") == pytest.approx((1.0, *eleven)), metric
    for metric in ("auc", "balanced_accuracy", "macro_f1"):
        assert got.value(metric) == pytest.approx((1.0, *eleven)), metric
    assert got.reliability()["low"].tolist() == pytest.approx([everyone[0]])
    assert got.roc_band("Pneumonia")["low"].max() == pytest.approx(eleven[0])
    assert got.precision_recall_band("Pneumonia")["low"].max() == pytest.approx(eleven[0])


def test_all_wrong_is_no_certainty_either():
    y, p, patients = separated()
    got = evaluated(y, p[:, ::-1], patients=patients)
    assert got.value("accuracy") == pytest.approx((0.0, *stats_of_shares(0, 22)))
    assert got.value("auc") == pytest.approx((0.0, *stats_of_shares(0, 11)))


def test_with_one_error_the_figure_cannot_be_certain():
    y, p, patients = separated(wrong=1)
    value, low, high = evaluated(y, p, patients=patients, n_boot=500).value("accuracy")
    exact = stats_of_shares(21, 22)
    assert value == pytest.approx(21 / 22)
    assert high < 1, "a bootstrap would reach 1.000, by leaving the one error out"
    assert (low, high) == pytest.approx(exact, abs=0.03)


def test_of_one_image_a_patient_a_share_has_clopper_and_pearsons_interval():
    y, p = predictions(n=60)
    right = int((p.argmax(1) == y).sum())
    got = evaluated(y, p, patients=np.arange(60), n_boot=4000).value("accuracy")
    assert got[1:] == pytest.approx(stats_of_shares(right, 60), abs=0.01)


def test_an_auc_of_one_covers_what_disjoint_pairs_of_patients_allow():
    # The truth is an AUC of 0.85; where seven patients of a class are told apart by chance, the interval must hold it.
    rng, truth, shift = np.random.default_rng(0), 0.85, 1.4658
    perfect = 0
    for _ in range(400):
        scores = np.r_[rng.normal(size=7), rng.normal(shift, 1, size=7)]
        p = 1 / (1 + np.exp(-scores))
        value, low, high = evaluated(
            np.repeat([0, 1], 7), np.column_stack([1 - p, p]), patients=np.arange(14), n_boot=20
        ).value("auc")
        if value == 1:
            perfect += 1
            assert low <= truth <= high
    assert perfect > 5


def test_a_precision_that_is_all_right_has_an_interval_though_some_resamples_predict_nothing():
    y = np.repeat([0, 1], 6)
    p = np.tile([0.9, 0.1], (12, 1))
    p[-2:] = [0.1, 0.9]  # two of six are found: about one resample in nine draws neither patient
    value = evaluated(y, p, patients=np.arange(12), n_boot=400).value("precision", "Pneumonia")
    assert value == pytest.approx((1.0, *stats_of_shares(2, 2)))


def test_a_precision_of_nothing_has_no_interval():
    y = np.array([0, 0, 1, 1])
    got = evaluated(y, np.tile([0.9, 0.1], (4, 1)), patients=list("abcd"))
    assert got.value("precision", "Pneumonia")[0] == 0
    assert np.isnan(got.value("precision", "Pneumonia")[1:]).all()


def test_a_mean_that_is_no_share_keeps_the_bootstrap():
    assert mean_with_interval(np.zeros(9), np.arange(9)) == pytest.approx((0.0, 0.0, 0.0))
    reach = 2 * (1 - stats_of_shares(9, 9)[0])
    assert mean_with_interval(np.ones(9), np.arange(9), bounds=(1, 3)) == pytest.approx((1.0, 1.0, 1 + reach))
    assert mean_with_interval(np.ones(9), np.arange(9), share=True) == pytest.approx((1.0, *stats_of_shares(9, 9)))


# --- what a figure stands next to


def test_the_accuracy_stands_next_to_that_of_the_largest_class():
    y, p, patients = separated()
    y[:20] = 1
    got = evaluated(y, p, patients=patients)
    assert got.largest_class == ("Pneumonia", 53 / 66)
    assert got.to_dict()["largest_class"] == {"class": "Pneumonia", "share": 53 / 66}
    summary = got.summary()
    assert list(summary.index[:2]) == ["Accuracy", "Always answering 'Pneumonia'"]
    assert summary.iloc[1].tolist() == ["0.803", "", ""]


def test_a_chosen_threshold_is_shown_with_its_figures_and_those_at_a_half():
    y, p = predictions(size=2)
    point = DecisionRule(kind="threshold", threshold=0.2, chosen_on="validation", criterion="Youden's J")
    got = evaluated(y, p, point=point)
    table = points_table(got.record)
    assert list(table.index) == ["0.200, chosen on validation by Youden's J", "0.5, not chosen", "always 'Normal'"]
    share = np.mean(y == 0)
    assert table.iloc[2].tolist() == [f"{share:.3f}", "0.500", "0.000", "1.000"]
    half = evaluated(y, p, point=replace(point, threshold=0.5))
    assert table.loc["0.5, not chosen", "Sensitivity for Pneumonia"] == wording.figure(
        *half.value("recall", "Pneumonia")
    )
    assert table.iloc[0]["Accuracy"] == wording.figure(*got.value("accuracy")) != table.iloc[1]["Accuracy"]
    recorded = got.to_dict()["at_half"]
    assert recorded["recall"] == half.value("recall", "Pneumonia")[0]
    assert recorded["intervals"]["accuracy"] == list(half.value("accuracy")[1:])
    assert list(points_table(evaluated(*predictions()).record).index) == ["the likeliest class", "always 'Normal'"]
    assert "at_half" not in evaluated(*predictions()).to_dict()


def test_parts_stand_side_by_side_with_the_largest_class_of_each_where_it_is_known():
    got = evaluated(*predictions(size=2)).record
    table = side_by_side({"val": replace(got, largest_class=None), "test": got})
    assert list(table.index[:3]) == ["Accuracy", "Always answering the largest class", "Balanced accuracy"]
    assert table.iloc[1].tolist() == ["–", f"{got.largest_class['share']:.3f}"]
    assert table.loc["AUC", "test"] == str(got.figure("auc"))


# --- two models on the same patients


def test_models_whose_intervals_overlap_can_differ_on_the_same_patients():
    y, p = predictions(n=240, size=2)
    better = p.copy()
    wrong = np.flatnonzero(p.argmax(1) != y)[::3]
    better[wrong] = better[wrong, ::-1]
    a, b = (evaluated(y, q, patients=np.arange(240), n_boot=300) for q in (better, p))
    assert a.value("accuracy")[1] < b.value("accuracy")[2], "the two intervals overlap"
    difference, low, high = paired_difference(a, b, "accuracy")
    assert difference == pytest.approx(len(wrong) / 240)
    assert 0 < low < difference < high
    assert paired_difference(b, a, "accuracy") == pytest.approx((-difference, -high, -low))


def test_the_paired_difference_is_by_patient():
    y, p = predictions(n=60, size=2)
    q = predictions(n=60, size=2, seed=2)[1]
    y, p, q = np.repeat(y, 5), np.repeat(p, 5, axis=0), np.repeat(q, 5, axis=0)

    def width(patients):
        _, low, high = paired_difference(*(evaluated(y, s, patients=patients) for s in (p, q)), "auc")
        return high - low

    assert width(np.arange(300) // 5) > 1.8 * width(np.arange(300))


def test_two_models_without_a_difference_on_few_patients_are_not_proved_equal():
    y, p, patients = separated()
    a, b = (evaluated(y, q, patients=patients) for q in (p, p**2 / (p**2).sum(axis=1, keepdims=True)))
    reach = 1 - stats_of_shares(11, 11)[0]
    assert paired_difference(a, b, "auc") == pytest.approx((0.0, -reach, reach))


def test_only_answers_for_the_same_images_are_paired():
    y, p = predictions(n=40)
    a, b = evaluated(y, p), evaluated(np.roll(y, 1), p)
    with pytest.raises(LungkitError, match="cannot be paired"):
        paired_difference(a, b)
    one_patient = evaluated(y, p, patients=["a"] * 40)
    assert np.isnan(paired_difference(one_patient, one_patient)[1:]).all()


# --- the operating point


def test_the_threshold_has_the_highest_youden_j_of_all():
    y, p = predictions(size=2, decimals=1)
    point = operating_point(y, p, CLASSES[:2])
    fpr, tpr, _ = sk.roc_curve(y, p[:, 1], drop_intermediate=False)
    assert sk.balanced_accuracy_score(y, point.decide(p)) == pytest.approx((1 + np.max(tpr - fpr)) / 2)
    assert point.positive == "Pneumonia"
    assert point.chosen_on == "validation"
    assert point.n == len(y)
    json.dumps(point.to_dict(), allow_nan=False)


def test_the_threshold_lies_in_the_middle_between_two_neighbours():
    p = np.array([0.1, 0.2, 0.9, 0.95])
    point = operating_point(np.array([0, 0, 1, 1]), np.column_stack([1 - p, p]), CLASSES[:2])
    assert point.threshold == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("p", "threshold"),
    [([0.1, 0.2, 0.3, 0.8], 0.55), ([0.2, 0.5, 0.9, 0.95], 0.35)],  # J is 1/2 in the first and in the third gap
)
def test_among_equal_thresholds_the_one_nearest_a_half_is_taken(p, threshold):
    point = operating_point(np.array([0, 1, 0, 1]), np.column_stack([1 - np.array(p), p]), CLASSES[:2])
    assert point.threshold == pytest.approx(threshold)


def test_more_than_two_classes_take_the_likeliest():
    y, p = predictions()
    point = operating_point(y, p, CLASSES)
    assert point.kind == "argmax"
    np.testing.assert_array_equal(point.decide(p), p.argmax(axis=1))


def test_a_threshold_needs_validation_images_of_both_classes():
    with pytest.raises(LungkitError, match="no validation image of class 'Pneumonia'"):
        operating_point(np.zeros(3, int), np.full((3, 2), 0.5), CLASSES[:2])


# --- input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_true": []}, "no image to evaluate"),
        ({"y_true": [0, 1]}, r"probabilities have shape \(3, 2\); 2 labels of 2 classes need \(2, 2\)"),
        ({"y_true": [0, 1, 2]}, "labels range from 0 to 2; 2 classes have the indices 0 to 1"),
        ({"y_true": [0, -1, 1]}, "labels range from -1 to 1"),
        ({"y_true": [0.0, 1.0, 1.0]}, "labels are float64"),
        ({"probabilities": [[0.5, 0.5], [0.5, 0.6], [1, 0]]}, r"row 1 of the probabilities is \[0.5, 0.6\]"),
        ({"probabilities": [[2.0, -1.0], [0.5, 0.5], [1, 0]]}, "row 0 of the probabilities"),
        ({"probabilities": [[0.5, 0.5], [0.5, 0.5], [np.nan, 0]]}, "row 2 of the probabilities"),
        ({"patients": ["a", "b"]}, "2 patients for 3 images"),
        ({"patients": ["a", None, "b"]}, "image 1 has no patient"),
        ({"classes": ["Normal"]}, "at least two different names"),
        ({"classes": ["Normal", "Normal"]}, "at least two different names"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_what_would(change, message):
    sound = {
        "y_true": [0, 1, 1],
        "probabilities": [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]],
        "patients": ["a", "b", "b"],
        "classes": ["Normal", "Pneumonia"],
        "rule": ARGMAX,
    }
    with pytest.raises(LungkitError, match=message):
        evaluate(**(sound | change))


def test_an_unknown_metric_is_refused_by_name():
    with pytest.raises(LungkitError, match="no metric 'kappa'"):
        evaluated(*predictions()).value("kappa")


# --- what people and programs get


def test_the_dictionary_has_exactly_the_agreed_keys():
    y, p = predictions()
    got = evaluated(y, p).to_dict()
    overall = ["accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "brier"]
    of_class = ["precision", "recall", "specificity", "f1", "auc", "average_precision"]
    counts = {"n", "patients", "classes", "confusion", "largest_class", "operating_point"}
    assert got.keys() == counts | {*overall, "per_class", "intervals"}
    assert list(got["per_class"]["Normal"]) == [*of_class, "support"]
    assert list(got["intervals"]) == [*overall, "per_class"]
    assert list(got["intervals"]["per_class"]["COVID-19"]) == of_class
    assert (got["n"], got["patients"]) == (400, 100)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_save_leaves_json_and_tables_that_read_back(tmp_path):
    y, p = predictions(n=20)
    result = evaluated(y, p)
    result.save(tmp_path / "run", files=[f"slice{i}.dcm" for i in range(20)])
    folder = tmp_path / "run"
    assert json.loads((folder / "evaluation.json").read_text()) == result.to_dict()
    metrics = pd.read_csv(folder / "metrics.csv", keep_default_na=False)
    assert list(metrics) == ["metric", "class", "value", "low", "high"]
    confusion = pd.read_csv(folder / "confusion.csv", index_col="true")
    assert confusion.to_numpy().tolist() == result.to_dict()["confusion"]
    saved = pd.read_csv(folder / "predictions.csv")
    assert list(saved) == ["file", "patient", "true", "predicted", *(f"probability {c}" for c in CLASSES)]
    assert saved["file"][3] == "slice3.dcm"
    assert saved["predicted"].tolist() == [CLASSES[k] for k in p.argmax(1)]
    np.testing.assert_allclose(saved.iloc[:, -3:], p)


def test_save_refuses_a_list_of_files_of_another_length(tmp_path):
    with pytest.raises(LungkitError, match="2 file names for 400 images"):
        evaluated(*predictions()).save(tmp_path, files=["a", "b"])


def test_tables_for_people_name_metrics_and_show_intervals():
    y, p = predictions()
    result = evaluated(y, p)
    summary = result.summary()
    assert list(summary) == ["All", *CLASSES]
    assert summary.loc["Accuracy", "All"] == wording.figure(*result.value("accuracy"))
    assert summary.loc["Sensitivity", "COVID-19"] == wording.figure(*result.value("recall", "COVID-19"))
    assert summary.loc["Sensitivity", "All"] == ""
    per_class = result.per_class
    assert list(per_class.index) == list(CLASSES)
    assert per_class.loc["Pneumonia", "support"] == np.sum(y == 1)
    assert per_class.loc["Pneumonia", "recall"] == pytest.approx(result.value("recall", "Pneumonia")[0])


def test_a_class_without_a_label_keeps_its_row_and_column():
    y, p = predictions(size=4)  # no image of the fourth
    confusion = evaluated(y, p, ("a", "b", "c", "d")).to_dict()["confusion"]
    assert confusion == sk.confusion_matrix(y, p.argmax(1), labels=range(4)).tolist()


# --- several sources


def test_an_interval_keeps_the_share_of_each_source():
    right = np.repeat([1.0, 0.0], 20)
    patients, sources = np.arange(40), np.repeat(["a", "b"], 20)
    _, low, high = mean_with_interval(right, patients)
    assert high - low > 0.25
    # Within each source all patients are alike, so no resample of them moves the mean.
    assert mean_with_interval(right, patients, sources=sources) == pytest.approx((0.5, 0.5, 0.5))


def test_one_source_changes_no_interval():
    rng = np.random.default_rng(5)
    y, p = np.arange(40) % 2, rng.uniform(size=40)
    scores, patients = np.column_stack([1 - p, p]), np.arange(40) // 2
    rule = DecisionRule(kind="argmax")
    plain = evaluate(y, scores, patients, ("a", "b"), rule, n_boot=50)
    named = evaluate(y, scores, patients, ("a", "b"), rule, n_boot=50, sources=np.full(40, "home"))
    pd.testing.assert_frame_equal(plain.metrics, named.metrics)
    assert not named.by_source and "sources" not in named.to_dict()


def test_each_source_has_figures_of_its_own_which_a_card_keeps():
    rng = np.random.default_rng(6)
    y, p, sources = np.arange(60) % 2, rng.uniform(size=60), np.repeat(["near", "far"], [40, 20])
    p[:40] = y[:40] * 0.8 + 0.1  # all right at home
    scores, patients = np.column_stack([1 - p, p]), np.arange(60)
    measured = evaluate(y, scores, patients, ("a", "b"), DecisionRule(kind="argmax"), n_boot=50, sources=sources)
    alone = evaluate(y[40:], scores[40:], patients[40:], ("a", "b"), DecisionRule(kind="argmax"), n_boot=50)
    assert measured.by_source["near"].value("auc")[0] == 1
    assert measured.by_source["far"].value("auc") == pytest.approx(alone.value("auc"))
    kept = Measured.from_dict(measured.to_dict())
    assert (kept.sources["far"].n, kept.sources["far"].figure("ece")) == (20, alone.record.figure("ece"))
    assert kept == measured.record


def test_sources_of_another_number_are_refused():
    with pytest.raises(LungkitError, match="1 sources for 2 images"):
        mean_with_interval([0, 1], ["a", "b"], sources=["x"])


# --- grades


def graded(y, p, **options):
    return evaluated(y, p, GRADED_CLASSES, patients=np.arange(len(y)) // 2, point=MIDDLE, **options)


def test_figures_of_grades_agree_with_scikit_learn():
    y, p = answers()
    got = graded(y, p)
    answer, expected, others = got.predicted, p @ np.arange(4), y != 1
    assert got.value("kappa")[0] == pytest.approx(sk.cohen_kappa_score(y, answer, weights="quadratic"))
    without = sk.cohen_kappa_score(y[others], answer[others], weights="quadratic", labels=range(4))
    assert got.value("kappa_without_second")[0] == pytest.approx(without)
    assert got.value("grades_off")[0] == pytest.approx(sk.mean_absolute_error(y, answer))
    pairs = {"auc_first_third": others, "auc_first_second": y < 2, "auc_second_third": y > 0}
    for metric, of in pairs.items():
        above = y[of] > (0 if metric == "auc_first_second" else 1)
        assert got.value(metric)[0] == pytest.approx(sk.roc_auc_score(above, expected[of])), metric


def test_kappa_has_an_interval_by_patient_that_narrows_with_more_of_them():
    few, many = (graded(*answers(n), n_boot=300).value("kappa") for n in (60, 2000))
    assert few[1] < few[0] < few[2] and many[1] < many[0] < many[2]
    assert few[2] - few[1] > 3 * (many[2] - many[1])


def test_a_resample_of_kappa_is_the_kappa_of_the_images_drawn():
    y, p = answers(40)
    times = np.random.default_rng(1).integers(0, 3, (1, 40))
    drawn = np.repeat(np.arange(40), times[0])
    scores = evaluation._Scores(y, p, MIDDLE.decide(p), graded=True)(times.astype(float))[0]
    again = graded(y[drawn], p[drawn], n_boot=0)
    np.testing.assert_allclose(scores[-6:], [again.value(metric)[0] for metric in GRADED])


def test_grades_that_are_all_right_do_not_have_intervals_without_width():
    y = np.tile(np.arange(4), 5)
    got = evaluated(y, np.eye(4)[y], GRADED_CLASSES, patients=np.arange(20), point=MIDDLE)
    assert got.value("kappa") == pytest.approx((1, 0.478, 1), abs=1e-3)
    assert got.value("grades_off") == pytest.approx((0, 0, 3 * (1 - 0.478)), abs=1e-2)


def test_kappa_is_undefined_where_all_images_and_answers_are_of_one_grade_and_0_where_answers_are():
    one = np.tile([0.0, 1, 0, 0], (6, 1))
    assert np.isnan(graded(np.ones(6, int), one).value("kappa")[0])
    assert graded(np.array([0, 1, 2, 3, 1, 1]), one).value("kappa")[0] == pytest.approx(0)


def test_only_grades_have_kappa_and_two_classes_are_no_grades():
    y, p = answers(60)
    assert "kappa" not in evaluated(y, p, GRADED_CLASSES).record.figures
    assert "kappa" in graded(y, p).record.figures
    with pytest.raises(LungkitError, match="2 classes are no grades; accepted: 3 or more"):
        evaluated(y % 2, np.full((60, 2), 0.5), GRADED_CLASSES, point=MIDDLE)


def test_figures_of_grades_name_the_classes_that_they_are_of_and_survive_the_card():
    measured = graded(*answers(60)).record
    assert Measured.from_dict(json.loads(json.dumps(measured.to_dict()))).figures == measured.figures
    rows = graded(*answers(60)).summary().index
    assert {"Quadratic kappa", "Quadratic kappa without CT-1", "AUC, CT-0 against CT-2 and above"} <= set(rows)


def test_two_models_of_grades_are_compared_by_kappa_on_the_same_patients():
    y, p = answers(400)
    better, worse = graded(y, p, n_boot=300), graded(y, answers(400, skill=0.5)[1][::-1], n_boot=300)
    difference, low, _ = paired_difference(better, worse, "kappa")
    assert difference == pytest.approx(better.value("kappa")[0] - worse.value("kappa")[0])
    assert low > 0


def test_decisions_made_elsewhere_are_taken_as_they_are_also_of_each_source():
    y, p = predictions(n=40, size=2)
    decided_elsewhere = 1 - y
    got = evaluated(y, p, predicted=decided_elsewhere, sources=np.arange(40) // 20)
    assert got.value("accuracy")[0] == 0 and np.array_equal(got.predicted, decided_elsewhere)
    assert [of.value("accuracy")[0] for of in got.by_source.values()] == [0, 0]
    with pytest.raises(LungkitError, match="labels range from 0 to 2"):
        evaluated(y, p, predicted=np.full(40, 2) * (y > 0))
