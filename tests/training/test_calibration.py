"""Probabilities mean what they say after calibration, and the band of uncertainty holds what its card says."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.special

from lungkit.errors import LungkitError
from lungkit.models.rule import ConformalLevel, DecisionRule
from lungkit.training import calibration
from tests.graded import CLASSES, GRADES, RANGES, answers

ARGMAX = DecisionRule(kind="argmax")


def _patients(n=4000, classes=3, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities that belong to the logits: perfectly calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    chances = scipy.special.softmax(logits, axis=1)
    labels = (rng.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return labels, logits


def _loss(labels, logits) -> float:
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


# --- temperature


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_a_model_that_is_too_sure_or_too_timid_is_brought_back(factor):
    labels, logits = _patients()
    assert calibration.temperature(labels, logits * factor) == pytest.approx(factor, rel=0.06)


def test_no_other_temperature_makes_the_validation_labels_likelier():
    labels, logits = _patients(seed=2)
    found = calibration.temperature(labels, logits * 2.5)
    best = _loss(labels, logits * 2.5 / found)
    assert all(_loss(labels, logits * 2.5 / (found * factor)) > best for factor in (0.9, 1.1))


def test_a_model_without_an_error_on_few_images_is_not_taken_to_be_infinitely_sure():
    labels = np.array([0, 1] * 10)
    logits = np.where(labels[:, None] == [0, 1], 1.0, -1.0)
    sure = scipy.special.softmax(logits / calibration.temperature(labels, logits), axis=1).max()
    assert 0.9 < sure < 0.99


def test_logits_without_information_give_the_least_sure_probabilities():
    logits = np.random.default_rng(0).normal(0, 3, (500, 2))
    labels = np.random.default_rng(1).integers(0, 2, 500)
    assert calibration.temperature(labels, logits) > 10


def test_labels_that_do_not_fit_the_logits_are_refused():
    with pytest.raises(LungkitError, match="3 labels for logits of 2 images"):
        calibration.temperature(np.zeros(3, int), np.zeros((2, 2)))


# --- the band of uncertainty


def _threshold(value: float) -> DecisionRule:
    return DecisionRule(kind="threshold", positive="ill", threshold=value)


@pytest.mark.parametrize(("classes", "point"), [(2, _threshold(0.3)), (2, ARGMAX), (3, ARGMAX)])
def test_the_band_is_the_smallest_that_holds_its_share_of_the_errors_or_the_most_that_may_be_reviewed(classes, point):
    labels, logits = _patients(classes=classes)
    scores = scipy.special.softmax(logits, axis=1)
    band = calibration.uncertainty_band(labels, scores, point)
    within = replace(point, band=band).uncertain(scores)
    wrong = point.decide(scores) != labels
    assert band.reviewed == pytest.approx(within.mean())
    assert band.errors_held == pytest.approx(within[wrong].mean())
    assert np.mean(point.margin(scores) <= band.margin) <= 0.2
    assert within[wrong].mean() > 1.5 * within.mean(), "errors gather around the operating point"
    full = band.errors_held >= 0.75
    assert full or band.reviewed > 0.19
    if full:  # a little less would hold less
        less = replace(point, band=replace(band, margin=band.margin * 0.97))
        assert less.uncertain(scores)[wrong].mean() < 0.75


def test_few_errors_near_the_operating_point_make_a_narrow_band():
    scores = np.linspace(0.001, 0.999, 1000)
    labels = (scores > 0.5).astype(int)
    labels[495:505] = 1 - labels[495:505]
    band = calibration.uncertainty_band(labels, np.column_stack([1 - scores, scores]), _threshold(0.5))
    assert band.errors_held >= 0.75
    assert band.reviewed == pytest.approx(0.02, abs=0.002), "never below the share that is looked at anyhow"
    assert band.low == pytest.approx(0.49, abs=0.002)
    assert band.high == pytest.approx(0.51, abs=0.002)


def test_without_an_error_the_closest_answers_are_still_reviewed():
    scores = np.linspace(0.01, 0.99, 200)
    labels = (scores > 0.5).astype(int)
    band = calibration.uncertainty_band(labels, np.column_stack([1 - scores, scores]), _threshold(0.5))
    assert band.errors_held is None
    assert band.reviewed == pytest.approx(0.02)


@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.93])
def test_the_ends_of_a_thresholds_band_are_where_uncertainty_ends(threshold):
    labels, logits = _patients(classes=2)
    point = _threshold(threshold)
    band = calibration.uncertainty_band(labels, scipy.special.softmax(logits, axis=1), point)
    assert 0 < band.low < threshold < band.high < 1
    for inside, outside in ((band.low * 1.001, band.low * 0.999), (band.high * 0.999, band.high * 1.001)):
        rows = np.array([[1 - p, p] for p in (inside, min(outside, 1.0))])
        assert replace(point, band=band).uncertain(rows).tolist() == [True, False]


def test_times_is_how_many_times_likelier_the_first_class_must_be():
    labels, logits = _patients()
    band = calibration.uncertainty_band(labels, scipy.special.softmax(logits, axis=1), ARGMAX)
    times = band.times
    assert times > 1
    rows = np.array([[factor, 1.0, 0.1] for factor in (times * 0.99, times * 1.01)])
    rows /= rows.sum(axis=1, keepdims=True)
    assert replace(ARGMAX, band=band).uncertain(rows).tolist() == [True, False]


@pytest.mark.parametrize("threshold", [0.0, np.nextafter(1, 2)])
def test_an_operating_point_that_calls_everything_one_class_has_a_finite_band(threshold):
    scores = np.linspace(0.1, 0.9, 50)
    band = calibration.uncertainty_band(np.zeros(50, int), np.column_stack([1 - scores, scores]), _threshold(threshold))
    assert np.isfinite([band.margin, band.low, band.high]).all()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_very_few_validation_images_still_give_a_band(n):
    scores = np.linspace(0.3, 0.9, n)
    band = calibration.uncertainty_band(np.ones(n, int), np.column_stack([1 - scores, scores]), _threshold(0.5))
    assert band.margin >= 0


# --- conformal sets


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_the_true_class_of_new_images_is_among_those_named_as_often_as_stated(level):
    labels, logits = _patients(n=6000)
    scores = scipy.special.softmax(logits / 2.5, axis=1)  # even where the probabilities are wrong
    stated = calibration.conformal_level(labels[:3000], scores[:3000], level)
    named = replace(ARGMAX, conformal=stated).prediction_set(scores[3000:])
    coverage = named[np.arange(3000), labels[3000:]].mean()
    assert level - 0.03 < coverage < level + 0.03
    assert stated.level == level
    assert stated.n == 3000


def test_a_surer_model_names_fewer_classes():
    labels, logits = _patients()
    sure = scipy.special.softmax(logits, axis=1)
    vague = scipy.special.softmax(np.random.default_rng(1).normal(size=logits.shape), axis=1)
    rules = [replace(ARGMAX, conformal=calibration.conformal_level(labels, scores)) for scores in (sure, vague)]
    counts = [rule.prediction_set(scores).sum() for rule, scores in zip(rules, (sure, vague), strict=True)]
    assert counts[0] < counts[1] - 0.3 * len(labels)


def test_of_too_few_validation_images_every_class_is_named():
    labels, logits = _patients(n=8)
    scores = scipy.special.softmax(logits, axis=1)
    level = calibration.conformal_level(labels, scores)
    assert level.least == 0.0
    assert replace(ARGMAX, conformal=level).prediction_set(scores).all()


# --- conformal sets on other images


def test_the_table_of_conformal_sets_has_a_row_for_all_and_for_each_class():
    chances = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.4, 0.5, 0.1], [0.1, 0.6, 0.3]])
    table = calibration.conformal_table(
        np.array([0, 1, 0, 2]),
        chances,
        ["a", "a", "b", "b"],
        ["x", "y", "z"],
        replace(ARGMAX, conformal=ConformalLevel(level=0.75, least=0.35)),
    )
    assert table["images"].tolist() == [4, 2, 1, 1]
    assert list(table.index) == ["all", "x", "y", "z"]
    # The sets: x; y; x and y; y alone, though the fourth image is of z.
    assert [text.split()[0] for text in table["true class named"]] == ["0.750", "1.000", "1.000", "0.000"]
    assert [text.split()[0] for text in table["classes named"]] == ["1.250", "1.500", "1.000", "1.000"]
    assert table.loc["all", "true class named"] == "0.750 (0.194–0.994)", "exact, for four patients"


def test_conformal_figures_by_class_are_those_of_its_images_and_leave_out_a_class_without_any():
    chances = np.array([[0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    rule = replace(ARGMAX, conformal=ConformalLevel(level=0.75, least=0.35))
    found = calibration.conformal_by_class(np.array([0, 1, 0]), chances, ["a", "a", "b"], ["x", "y", "z"], rule)
    assert {name: (of.coverage, of.level) for name, of in found.items()} == {"x": (0.5, 0.75), "y": (1, 0.75)}
    assert calibration.conformal_by_class(np.array([0]), chances[:1], ["a"], ["x", "y", "z"], ARGMAX) == {}


# --- ranges of grades


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_ranges_chosen_on_some_patients_hold_the_true_grade_of_others_as_often_as_stated(level):
    (y, p), (others, theirs) = answers(2000, seed=1), answers(4000, seed=2)
    rule = replace(RANGES, conformal=calibration.range_level(y, p, level))
    figures = calibration.conformal_figures(rule, others, theirs, np.arange(4000))
    assert figures.coverage == pytest.approx(level, abs=0.03)
    assert 1 < figures.classes_named < 3


def test_few_validation_images_leave_every_grade_in_the_range():
    y, p = answers(5)
    rule = replace(RANGES, conformal=calibration.range_level(y, p))
    assert rule.conformal.least == 1 and rule.prediction_set(p).all()


def test_a_rule_of_grades_has_a_range_in_place_of_a_band():
    y, p = answers()
    rule = calibration.decision_rule(y, np.log(p), CLASSES, GRADES)
    assert (rule.kind, rule.grades, rule.band) == ("median", GRADES, None)
    assert rule.conformal == calibration.range_level(y, rule.calibrate(np.log(p)))


# --- chosen under change


def test_a_rule_moves_to_where_changed_images_are_told_apart():
    labels, logits = _patients(n=600, classes=2)
    alone = calibration.decision_rule(labels, logits, ("well", "ill"))
    changed = np.stack([logits + np.array([0, 2.0])] * 2)  # on other devices all look more ill
    under_change = calibration.decision_rule(labels, logits, ("well", "ill"), changed=changed)
    assert under_change.threshold > alone.threshold + 0.1
    assert under_change.temperature == alone.temperature, "it is calibrated on the images as they are"
    assert (alone.chosen_on, under_change.chosen_on) == ("validation", "validation under change")
    assert under_change.band.chosen_on == under_change.chosen_on
    assert under_change.n == len(labels), "copies of an image are one image"
    assert under_change.conformal == calibration.conformal_level(labels, under_change.calibrate(logits))


def test_the_band_leaves_no_more_of_the_images_as_they_are_to_people_than_it_may():
    labels, logits = _patients(n=400, classes=2)
    far = np.where(np.random.default_rng(4).random((3, len(labels), 1)) < 0.3, 9 * logits[:, ::-1], 9 * logits)
    rule = calibration.decision_rule(labels, logits, ("well", "ill"), changed=far)
    reviewed = rule.uncertain(rule.calibrate(logits)).mean()
    assert reviewed <= calibration.REVIEWED[1]
    assert rule.band.reviewed == pytest.approx(reviewed)


def test_unchanged_copies_change_nothing():
    labels, logits = _patients(n=300, classes=2)
    alone = calibration.decision_rule(labels, logits, ("well", "ill"))
    same = calibration.decision_rule(labels, logits, ("well", "ill"), changed=np.stack([logits, logits]))
    assert same.threshold == pytest.approx(alone.threshold)
    assert same.temperature == pytest.approx(alone.temperature, rel=0.02)
