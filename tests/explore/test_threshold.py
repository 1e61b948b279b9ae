"""The threshold's widget counts what scikit-learn counts, and moves what it shows."""

import io
import time
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import confusion_matrix

from lungkit.errors import LungkitError
from lungkit.explore import threshold
from lungkit.models.rule import DecisionRule
from lungkit.training.evaluation import evaluate

CLASSES = ("Normal", "Pneumonia", "COVID-19")


def measured(size=3, n=120, rule=None):
    rng = np.random.default_rng(3)
    y = rng.integers(0, size, n)
    logits = rng.normal(size=(n, size))
    logits[np.arange(n), y] += 1.5
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return evaluate(y, p, np.arange(n) // 2, CLASSES[:size], rule or DecisionRule(kind="argmax"), n_boot=20)


THRESHOLDED = DecisionRule(kind="threshold", positive="Pneumonia", threshold=0.37)


@pytest.mark.parametrize("at", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("cls", CLASSES)
def test_the_counts_are_those_of_scikit_learn(cls, at):
    of = measured()
    index = CLASSES.index(cls)
    (cleared, alarms), (missed, found) = confusion_matrix(of.true == index, of.probabilities[:, index] >= at)
    one = threshold.decided(of, cls, at)
    assert (one.found, one.missed, one.alarms, one.cleared) == (found, missed, alarms, cleared)
    assert one.sensitivity[0] == pytest.approx(found / (found + missed))
    assert one.specificity[0] == pytest.approx(cleared / (cleared + alarms))
    assert one.sensitivity[1] <= one.sensitivity[0] <= one.sensitivity[2]


def test_at_the_versions_own_threshold_the_figures_are_those_of_the_evaluation():
    of = measured(2, rule=THRESHOLDED)
    one = threshold.decided(of, "Pneumonia", threshold.chosen(of, "Pneumonia"))
    assert one.sensitivity[0] == pytest.approx(of.value("recall", "Pneumonia")[0])
    assert one.specificity[0] == pytest.approx(of.value("specificity", "Pneumonia")[0])
    assert threshold.chosen(of, "Normal") == 0.5, "the version's threshold is of the other class"


def test_predictive_values_at_the_prevalence_of_the_test_are_shares_of_its_images():
    of = measured()
    one = threshold.decided(of, "COVID-19", 0.5)
    (ppv, low, high), (npv, *_) = one.predictive_values(float(np.mean(of.true == 2)))
    assert ppv == pytest.approx(one.found / (one.found + one.alarms))
    assert npv == pytest.approx(one.cleared / (one.cleared + one.missed))
    assert low < ppv < high


def test_predictive_values_follow_the_prevalence():
    """Altman and Bland's example (BMJ 1994; 309: 102): liver scans, sensitivity 0.90 and specificity 0.63."""
    one = threshold.Decided(231, 27, 32, 54, (231 / 258,) * 3, (54 / 86,) * 3)
    assert one.predictive_values(0.75)[0][0] == pytest.approx(0.88, abs=0.005)
    assert one.predictive_values(0.75)[1][0] == pytest.approx(0.67, abs=0.005)
    assert one.predictive_values(0.25)[0][0] == pytest.approx(0.45, abs=0.005)
    assert one.predictive_values(0.25)[1][0] == pytest.approx(0.95, abs=0.005)


def test_a_prevalence_of_nothing_or_everything_is_refused():
    one = threshold.decided(measured(), "Normal", 0.5)
    for prevalence in (0.0, 1.0):
        with pytest.raises(LungkitError, match="above 0 and below 1"):
            one.predictive_values(prevalence)


def test_where_nothing_is_called_there_is_no_ppv_and_no_cost_for_each_one_found():
    one = threshold.decided(measured(), "Normal", 1.1)
    assert np.isnan(one.predictive_values(0.1)[0][0])
    assert threshold.says(one, "Normal", 0.1) == (
        "Of 1,000 patients, 100 with Normal: 0.0 found, 100.0 missed. 0 are sent to a person."
    )


def test_the_sentence_says_how_many_are_read_for_each_one_found():
    one = threshold.Decided(9, 1, 10, 90, (0.9,) * 3, (0.9,) * 3)
    assert threshold.says(one, "COVID-19", 0.02) == (
        "Of 1,000 patients, 20 with COVID-19: 18.0 found, 2.0 missed. 116 are sent to a person, 6.4 for each one found."
    )


def test_an_unknown_class_and_one_without_images_are_refused():
    with pytest.raises(LungkitError, match="no class 'flu'; there are: Normal, Pneumonia, COVID-19"):
        threshold.decided(measured(), "flu", 0.5)
    p = np.tile([0.5, 0.5], (6, 1))
    alone = evaluate(np.zeros(6, int), p, range(6), CLASSES[:2], DecisionRule(kind="argmax"), n_boot=10)
    with pytest.raises(LungkitError, match="a threshold needs both"):
        threshold.decided(alone, "Pneumonia", 0.5)
    with pytest.raises(LungkitError, match="all images are of one class"):
        threshold.Explorer(alone)


def test_only_with_more_than_two_classes_is_there_a_class_to_choose():
    three, two = threshold.Explorer(measured()), threshold.Explorer(measured(2, rule=THRESHOLDED))
    assert three.cls in three.children[0].children
    assert list(three.cls.options) == ["COVID-19", "Pneumonia", "Normal"]
    assert two.cls not in two.children[0].children
    assert (two.cls.value, two.threshold.value) == ("Pneumonia", 0.37)


def _pixels(explorer) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(explorer.image.value)).convert("RGB"), int)


def test_each_slider_moves_the_picture_and_back_again():
    explorer = threshold.Explorer(measured())
    start = _pixels(explorer)
    moves = [(explorer.threshold, 0.8), (explorer.prevalence, 0.02), (explorer.cls, "Normal")]
    for control, value in moves:
        before, control.value = control.value, value
        assert np.abs(_pixels(explorer) - start).sum() > 0, control.description
        control.value = before
        np.testing.assert_array_equal(_pixels(explorer), start)


def test_the_picture_shows_the_figures_of_the_threshold():
    explorer = threshold.Explorer(measured())
    explorer.threshold.value, explorer.prevalence.value = 0.6, 0.02
    of = threshold.decided(explorer.measured, "COVID-19", 0.6)
    texts = [text.get_text() for axes in explorer.figure().axes for text in axes.texts]
    assert f"Called from 0.600 on. {threshold.says(of, 'COVID-19', 0.02)}" in [
        text.replace("\n", " ") for text in texts
    ]
    assert [int(text.split("\n")[0]) for text in texts[:4]] == [of.cleared, of.alarms, of.missed, of.found]
    assert "where 2 % have COVID-19" in texts
    (point,) = [line for line in explorer.figure().axes[1].lines if line.get_marker() == "o"]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (1 - of.specificity[0], of.sensitivity[0])


def test_the_headline_of_a_class_with_a_long_name_stays_inside_the_picture():
    of = measured()
    long = replace(of, classes=("Normal", "Pneumonia", "Squamous cell carcinoma of the lung, with metastases"))
    long.metrics["class"] = long.metrics["class"].replace("COVID-19", long.classes[-1])
    figure = threshold.Picture(long, long.classes[-1]).moved(0.5, 0.02)
    (headline,) = [text for text in figure.axes[0].texts if text.get_text().startswith("Called")]
    assert headline.get_window_extent().x1 <= figure.bbox.width


def test_a_slider_asks_for_pictures_faster_than_a_person_notices():
    explorer = threshold.Explorer(measured())
    taken = []
    for at in (0.2, 0.4, 0.6, 0.8):
        begun = time.process_time()
        explorer.threshold.value = at
        taken.append(time.process_time() - begun)
    assert min(taken) < 0.15, "seconds of processor time, which other work does not lengthen"
