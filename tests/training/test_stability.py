"""Folds, repeats and starts: every patient is tested once in each repeat, and none of them by what it taught."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lungkit.data import dataset
from lungkit.data.splits import SplitError
from lungkit.errors import LungkitError
from lungkit.training import evaluation, heads, stability
from tests.training.stable import cohort, head

SMALL = {"number": 4, "repeats": 2, "starts": 2}


@pytest.fixture(scope="module")
def found():
    data = cohort()
    return data, stability.repeated(data, head(data), **SMALL)


# --- folds


def test_each_image_is_tested_once_in_each_repeat_and_no_patient_is_on_two_sides():
    data = cohort(sources=3)
    patients = data.patients()
    parts = stability.folds(data, 5, repeats=3)
    assert [(one.repeat, one.fold) for one in parts[:6]] == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1)]
    for repeat in (1, 2, 3):
        tested = np.concatenate([one.test for one in parts if one.repeat == repeat])
        assert sorted(tested.tolist()) == list(range(len(patients)))
    for one in parts:
        sides = [set(patients[of]) for of in (one.train, one.validation, one.test)]
        assert all(sides) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        assert len(one.train) + len(one.validation) + len(one.test) == len(patients)


def test_each_repeat_deals_other_folds_and_a_seed_deals_the_same_again():
    data = cohort()
    first, second = stability.folds(data, 4, repeats=2)[0:8:4]
    assert set(first.test) != set(second.test)
    again = stability.folds(data, 4, repeats=2)[4]
    assert again.test.tolist() == second.test.tolist()
    assert stability.folds(data, 4, seed=8)[0].test.tolist() != first.test.tolist()


def test_folds_by_source_keep_each_hospital_whole():
    data = cohort(sources=3)
    sources = data.sources()
    for one in stability.folds(data, 3, by="source"):
        assert len(set(sources[one.test])) == 1
        assert not set(sources[one.test]) & {*sources[one.train], *sources[one.validation]}


def test_folds_of_fewer_hospitals_than_there_are_folds_are_refused():
    with pytest.raises(SplitError, match=r"has images of 2 source\(s\) only; to be in each of 1, 2, 3 it needs 3"):
        stability.folds(cohort(sources=2), 3, by="source")


# --- what a fold learns from


def test_no_value_of_a_test_image_enters_the_head():
    data = cohort()
    way, one = head(data), stability.folds(data, 4)[0]
    spoilt = way.features.copy()
    spoilt[:, one.test] = 1e9
    labels = way.labels.copy()
    labels[one.test] = 1 - labels[one.test]
    before, after = way(one, 3), replace(way, features=spoilt, labels=labels)(one, 3)
    assert np.array_equal(before[0], after[0]), "of the validation images"
    moved = way.features.copy()
    moved[:, one.train[0]] += 1
    assert not np.array_equal(before[0], replace(way, features=moved)(one, 3)[0])


def test_the_operating_point_is_that_of_the_validation_images():
    truth = np.array([0, 0, 1, 1])
    of_validation = np.array([[0.0, -4], [0, -2], [0, -1], [0, 3]])  # the classes part between -2 and -1
    of_test = np.array([[0.0, -3], [0, -0.5]])
    _, decisions = stability.decided((of_validation, of_test), truth, ("Normal", "COVID-19"))
    assert decisions.tolist() == [0, 1], "at 0.5 both would be Normal"


def test_a_start_draws_which_varied_copy_is_trained_on_and_nothing_else():
    data = cohort()
    way, one = head(data, copies=3), stability.folds(data, 4)[0]
    assert np.array_equal(way(one, 1)[1], way(one, 1)[1])
    assert not np.array_equal(way(one, 1)[1], way(one, 2)[1])
    plain = replace(way, features=way.features[:1])
    assert np.array_equal(plain(one, 1)[1], plain(one, 2)[1])


def test_a_class_that_no_training_image_has_is_refused():
    data = cohort(classes=("a", "b", "c"))
    one = stability.folds(data, 4)[0]
    without = replace(one, train=one.train[data.labels()[one.train] != 2])
    with pytest.raises(LungkitError, match="no training image of class number 2"):
        head(data)(without, 1)


def test_a_learner_that_is_none_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(LungkitError, match="no learner 'forest'; there are: head, cnn"):
        stability.made_learner("forest", cohort(), 32, folder=tmp_path)


# About 3 s: the network is built, and 24 pictures go through it.
def test_the_features_are_of_every_picture_as_it_is_and_varied(squares, tmp_path):
    data = dataset.load_split(squares, limit=24)
    way = stability.made_learner("head", data, 32, folder=tmp_path)
    assert way.features.shape[:2] == (1 + stability.COPIES, len(data.part()))
    assert not np.array_equal(way.features[0], way.features[1])
    again = heads.frozen_features(data, 32, copies=1)
    assert np.array_equal(again, way.features[:2])


# About 10 s: a CNN is built and trained.
def test_a_cnn_is_really_trained_in_a_fold_and_no_test_image_enters_its_scale(squares, tmp_path):
    data = dataset.load_split(squares, limit=48)
    way = stability.made_learner("cnn", data, 32, folder=tmp_path, epochs=3)
    one = stability.folds(data, 2)[0]
    before = way(one, 1)
    assert [of.shape for of in before] == [(len(one.validation), 2), (len(one.test), 2)]
    assert (tmp_path / "repeat-1-fold-1-start-1").is_dir()
    way.greys[one.test[1:]] = 0.5  # other test images
    assert np.allclose(way(one, 1)[1][0], before[1][0], atol=1e-5), "nothing of a test image enters another's answer"


# --- figures


def test_a_cell_is_of_its_own_test_patients_as_scikit_learn_says(found):
    data, result = found
    one = stability.folds(data, 4, repeats=2)[5]  # repeat 2, fold 2
    cell = result.cells.query("repeat == 2 and fold == 2 and start == 1").iloc[0]
    of = result.pooled[2, 1]
    truth = data.labels()[one.test]
    assert cell["auc"] == pytest.approx(roc_auc_score(truth, of.probabilities[one.test, 1]))
    assert cell["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, of.predicted[one.test]))
    assert cell["test_patients"] == len(set(data.patients()[one.test]))


def test_the_pooled_figure_is_the_mean_over_repeats_and_starts_of_all_patients(found):
    data, result = found
    aucs = [roc_auc_score(data.labels(), of.probabilities[:, 1]) for of in result.pooled.values()]
    value, low, high = result.value()
    assert value == pytest.approx(np.mean(aucs)) and low < value < high
    assert result.patients == 60
    assert result.summary.loc["auc", "lowest"] == result.cells["auc"].min()


def test_figures_are_in_the_order_of_repeats_folds_and_starts(found):
    _, result = found
    shuffled = replace(result, cells=result.cells.sample(frac=1, random_state=0))
    assert np.array_equal(shuffled.figures(), result.figures())
    cell = result.cells.query("repeat == 2 and fold == 3 and start == 1")["auc"].item()
    assert result.figures()[1, 2, 0] == cell


def test_starts_scatter_less_than_folds_where_the_start_draws_next_to_nothing(found):
    table = found[1].variances
    assert table.loc["training start", "deviation"] < table.loc["fold", "deviation"]


def test_a_folds_few_test_patients_explain_as_much_as_hanley_and_mcneil_say():
    from lungkit.training import learning_curve

    data = cohort(patients=160, images=1)
    result = stability.repeated(data, head(data), number=4, repeats=1, starts=1)
    expected = learning_curve.standard_error(result.cells["auc"].mean(), 20, 20)
    assert result.of_test_patients == pytest.approx(expected, rel=0.25)


def test_the_corrected_interval_takes_the_patients_of_test_and_training(found):
    _, result = found
    counts = result.cells[["test_patients", "training_patients"]].mean()
    naive, corrected = (result.mean_of_folds()[name] for name in ("naive", "corrected"))
    wider = (corrected[2] - corrected[1]) / (naive[2] - naive[1])
    assert wider == pytest.approx(np.sqrt(1 + 8 * counts["test_patients"] / counts["training_patients"]))


def test_a_split_by_image_lets_a_model_know_its_patients():
    data = cohort(patients=40, images=4)
    way = head(data, signal=0.0, personal=1.5, width=60)
    by = {of: stability.repeated(data, way, number=4, repeats=1, starts=1, by=of) for of in ("patient", "image")}
    assert by["patient"].value()[0] < 0.65, "there is nothing to learn"
    assert by["image"].value()[0] > 0.85, "but patients can be known again"


# --- means and resamples of several evaluations


def test_the_interval_of_one_evaluations_mean_is_its_own(found):
    one = found[1].pooled[1, 1]
    own = evaluation.evaluate(one.true, one.probabilities, one.patients, one.classes, one.rule, sources=one.sources)
    mean = evaluation.mean_figures([one], [("auc", "")])["auc", ""]
    assert mean == pytest.approx(own.value("auc"))
    twice = evaluation.mean_figures([one, one], [("auc", "")])["auc", ""]
    assert twice == pytest.approx(mean), "the same patients are drawn for both"


def test_evaluations_of_other_images_have_no_mean(found):
    one = found[1].pooled[1, 1]
    with pytest.raises(LungkitError, match="other images cannot be paired"):
        evaluation.mean_figures([one, replace(one, patients=one.patients[::-1])], [("auc", "")])


def test_decisions_of_several_rules_are_counted_as_they_were_made():
    truth, scores = np.array([0, 1, 0, 1]), np.array([[0.4, 0.6], [0.4, 0.6], [0.9, 0.1], [0.9, 0.1]])
    rule = evaluation.DecisionRule(kind="argmax")
    given = (truth, scores, ["a", "b", "c", "d"], ("Normal", "COVID-19"), rule)
    assert evaluation.evaluate(*given, n_boot=0).value("accuracy")[0] == 0.5
    assert evaluation.evaluate(*given, n_boot=0, predicted=truth).value("accuracy")[0] == 1.0
    with pytest.raises(LungkitError, match="3 labels of 2 classes"):
        evaluation.evaluate(*given, predicted=[0, 1, 0])


# --- nested search


@pytest.fixture
def four_settings(monkeypatch):
    grid = tuple(stability.Setting(penalty, varied) for penalty in (1e3, 1.0) for varied in (True, False))
    monkeypatch.setattr(stability, "GRID", grid)


def test_a_search_on_the_test_patients_finds_something_where_there_is_nothing_and_a_nested_one_does_not(four_settings):
    none = stability.shuffled(cohort(patients=60, images=1), seed=3)
    nested = stability.nested_search(none, head(none, signal=0.0, width=20), number=4, repeats=2)
    table = nested.table["value"]
    assert len(nested.by_setting) == 4 and table["not nested"] == nested.by_setting.max()
    assert table["difference"] > 0.01 and table["nested"] < 0.55
    assert table["difference"] == pytest.approx(table["not nested"] - table["nested"])
    assert len(nested.chosen) == 8 and set(nested.chosen["setting"]) <= set(nested.by_setting.index)


def test_the_nested_search_chooses_the_same_whatever_the_test_patients_are(four_settings):
    data = cohort(patients=40, images=1)
    way, parts = head(data), stability.folds(data, 4)
    before = stability.nested_search(data, way, number=4, repeats=1)
    for number, one in enumerate(parts):
        other = way.features.copy()
        other[:, one.test] *= -1  # the best setting on these patients is now the worst
        after = stability.nested_search(data, replace(way, features=other), number=4, repeats=1)
        assert after.chosen["setting"][number] == before.chosen["setting"][number]
        honest = [of.honest[0].probabilities[one.test] for of in (before, after)]
        assert not np.allclose(*honest)


def test_shuffled_labels_leave_nothing_to_learn_and_classes_as_frequent():
    data = cohort(patients=80, images=3)
    none = stability.shuffled(data)
    assert none.part()["label"].value_counts().to_dict() == data.part()["label"].value_counts().to_dict()
    assert (none.part().groupby("patient_id")["label"].nunique() == 1).all(), "a patient keeps to one class"
    agreed = (none.part()["label"] == data.part()["label"]).mean()
    assert 0.3 < agreed < 0.7
