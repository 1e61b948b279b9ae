"""Errors, surest first, and labels that a cross-validation by patient would not have given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.training import errors, evaluation
from lungkit.training.embedding_map import Embedded

RULE = DecisionRule(kind="threshold", positive="Sick", threshold=0.3)


def made(seed=0, patients=100, apart=2.0):
    """Vectors of two images for each patient, labels and groups: classes lie `apart` standard deviations apart."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), 2)
    labels = groups % 2
    vectors = rng.normal(size=(2 * patients, 5))
    vectors[:, 0] += apart * labels
    return vectors, labels, groups


def embedded(vectors, labels, groups, part="train"):
    names = np.array(["Normal", "Sick"])
    rows = pd.DataFrame({
        "file": [f"{i}.png" for i in range(len(labels))], "label": names[labels], "split": part,
        "patient_id": groups.astype(str), "sha256": [f"{i:064}" for i in range(len(labels))],
    })  # fmt: skip
    data = SimpleNamespace(classes=("Normal", "Sick"))
    return Embedded(None, data, rows, vectors, np.zeros(len(labels)))


# --- errors


def scored(of, sick, part="val"):
    """Probabilities of the class Sick for the rows of an Embedded, as release.score would give them."""
    sick = np.asarray(sick)
    both = np.column_stack([1 - sick, sick])
    measured = evaluation.evaluate(of.labels, both, of.patients, of.data.classes, RULE)
    version = SimpleNamespace(rule=RULE)
    return SimpleNamespace(version=version, evaluation=measured, rows=of.rows, split=part, probabilities=both)


def test_errors_are_ranked_by_their_distance_from_the_operating_point_and_not_by_the_probability():
    of = embedded(np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.arange(4))
    table = errors.confident_errors(scored(of, [0.9, 0.4, 0.29, 0.01]), of)
    # The threshold is 0.3: 0.01 is further below it, in log-odds, than 0.9 is above it.
    assert table["file"].tolist() == ["3.png", "0.png", "1.png", "2.png"]
    assert table["margin"].is_monotonic_decreasing
    assert table["probability"].round(2).tolist() == [0.99, 0.9, 0.4, 0.71]
    assert table["of_label"].round(2).tolist() == [0.01, 0.1, 0.6, 0.29]
    assert set(table["answer"][:1]) == {"Normal"} and set(table["part"]) == {"val"}


def test_a_right_answer_is_no_error():
    of = embedded(np.zeros((2, 2)), np.array([0, 1]), np.arange(2))
    table = errors.confident_errors(scored(of, [0.1, 0.9]), of)
    assert table.empty
    assert errors.errors_say(table, 2, "val") == "Validation: none of 2 images is answered wrongly."


def test_neighbours_with_the_answered_label_are_counted_whatever_its_spelling():
    of = embedded(np.array([[0.0], [0.1], [0.2], [0.3]]), np.array([0, 1, 1, 0]), np.arange(4))
    of.rows["label"] = of.rows["label"].replace("Sick", "sick ")
    of.data.classes = ("Normal", "sick ")
    result = scored(of, [0.95, 0.9, 0.9, 0.1])
    result.evaluation.__dict__["classes"] = ("Normal", "Sick")
    table = errors.confident_errors(result, of)
    assert table["neighbours"][0].tolist() == [1, 2, 3]
    assert table["like_it"].tolist() == [2]
    assert errors.errors_say(table, 4, "val") == (
        "Validation: 1 of 4 images are answered wrongly, 1 of them at 90 % or more; in 1 of these, most neighbours "
        "have the answered label."
    )


# --- suspected labels


def test_the_probabilities_are_those_of_scikit_learns_cross_validation_by_group():
    vectors, labels, groups = made(apart=1.0)
    judged = errors.judge(vectors, labels, groups, 2, seed=3)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=judged.penalty, max_iter=2000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    wanted = cross_val_predict(head, vectors, labels, groups=groups, cv=folds, method="predict_proba")
    assert judged.probabilities == pytest.approx(wanted, abs=1e-9)


def test_no_head_has_seen_the_patient_that_it_judges():
    # Only the patient tells the label: a head that has seen the patient's other image would know it.
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 2)
    labels = rng.integers(0, 2, 60)[groups]
    vectors = np.eye(60)[groups] * 10
    judged = errors.judge(vectors, labels, groups, 2)
    assert np.mean(judged.probabilities.argmax(axis=1) == labels) < 0.65
    seen = errors.judge(vectors, labels, np.arange(120), 2)
    assert np.mean(seen.probabilities.argmax(axis=1) == labels) > 0.8


def test_planted_labels_come_first():
    vectors, labels, groups = made(patients=300, apart=4.0)
    wrong, planted = errors.plant(labels, 2, 0.05, seed=2)
    judged = errors.judge(vectors, wrong, groups, 2)
    found = errors.found([judged], [planted], groups)
    assert found.planted == planted.sum() == 30
    assert found.precision[0] > 0.9 and found.recall[0] > 0.7
    assert found.recall[1] < found.recall[0] < found.recall[2]
    assert found.chance == pytest.approx(0.05)


def test_random_vectors_find_planted_labels_as_often_as_chance():
    rng, hits, listed = np.random.default_rng(4), 0, 0
    for seed in range(4):
        labels, groups = rng.integers(0, 2, 200), np.arange(200)
        wrong, planted = errors.plant(labels, 2, 0.2, seed)
        found = errors.found([errors.judge(rng.normal(size=(200, 3)), wrong, groups, 2)], [planted], groups)
        hits, listed = hits + found.hits, listed + found.first
    assert listed > 80 and 0.08 < hits / listed < 0.32


def test_a_planting_changes_so_many_labels_and_each_to_another_class():
    labels = np.arange(400) % 3
    wrong, planted = errors.plant(labels, 3, 0.05, seed=1)
    assert planted.sum() == 20 and np.array_equal(wrong != labels, planted)
    assert set(wrong[planted]) == {0, 1, 2}
    again, _ = errors.plant(labels, 3, 0.05, seed=1)
    assert np.array_equal(wrong, again)


def test_several_plantings_are_counted_together():
    judged = [SimpleNamespace(places=np.array([0, 1])), SimpleNamespace(places=np.array([2, 3]))]
    planted = [np.array([True, False, False, True]), np.array([False, True, True, False])]
    found = errors.found(judged, planted, np.arange(4))
    assert (found.first, found.planted, found.hits) == (4, 4, 2)
    assert (found.precision[0], found.recall[0]) == (0.5, 0.5)
    first = errors.found(judged, planted, np.arange(4), first=1)
    assert (first.first, first.hits, first.precision[0], first.recall[0]) == (2, 2, 1.0, 0.5)


def test_a_class_of_one_patient_cannot_be_judged():
    with pytest.raises(LungkitError, match="a class has images of one patient only"):
        errors.judge(np.zeros((4, 2)), np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]), 2)


def test_the_sentences_claim_wrong_labels_only_where_there_are_more_than_difficult_images_explain():
    def judged(suspected, expected):
        return errors.Judged(
            np.zeros(100, int), np.zeros((100, 2)), np.arange(suspected), np.ones(suspected, int), 1.0, 0.1, expected
        )

    assert errors.suspects_say(judged(0, 0.0)) == ["No label of 100 images looks wrong."]
    assert "some labels are wrong" in errors.suspects_say(judged(20, 9.0))[1]
    assert "shows no wrong label" in errors.suspects_say(judged(14, 9.0))[1]
    assert "about 9 would" in errors.suspects_say(judged(14, 9.0))[0]


def test_the_tables_name_the_file_both_classes_and_both_probabilities():
    vectors, labels, groups = made(apart=4.0)
    of = embedded(vectors, labels, groups)
    wrong, _ = errors.plant(labels, 2, 0.03, seed=1)
    judged = errors.suspects(of, labels=wrong)
    table = errors.suspects_table(judged, of, first=3)
    assert len(table) == 3 and (table["label"] != table["looks_like"]).all()
    assert (table["of_other"] + table["of_label"]).to_numpy() == pytest.approx(1.0)
    everything = errors.to_look_at(of, judged)
    assert len(everything) == len(labels) and everything["of_label"].is_monotonic_increasing
    assert everything["suspected"].sum() == len(judged.places) and not everything["error"].any()
    assert everything["file"][0] == of.rows["file"][judged.support.argmin()]


def test_the_test_part_comes_last_and_a_set_without_parts_is_taken_whole():
    def data(*there):
        return SimpleNamespace(part=lambda name: [1] if name in there else [])

    assert errors.parts(data("test", "val", "train")) == ["val", "test"]
    assert errors.parts(data("test")) == ["test"]
    assert errors.parts(data()) == ["all"]


@pytest.mark.parametrize(
    ("one", "said"),
    [
        ((0.2, 0.1, 0.3), "Here they are."),
        ((0.9, 0.85, 1.0), "Here they are **easier**."),
        ((0.7, 0.4, 0.9), "Here more of them were found (70 % against 60 %), which is no proof."),
        ((0.5, 0.4, 0.9), "Here fewer of them were found (50 % against 60 %), which is no proof."),
    ],
)
def test_whether_faults_of_one_kind_are_harder_as_expected_follows_the_numbers(one, said):
    found = {
        name: errors.Found(10, 10, 5, recall, recall, 0.05)
        for name, recall in {"one kind": one, "at random": (0.6, 0.4, 0.8)}.items()
    }
    assert errors.expected_says(found).endswith(said)


def test_one_kind_of_faults_is_called_easier_only_where_the_intervals_do_not_meet():
    def kind(value, low, high):
        return errors.Found(10, 10, 5, (value, low, high), (value, low, high), 0.05)

    overlap = {"random faults": kind(0.5, 0.3, 0.7), "faults of one kind": kind(0.4, 0.2, 0.6)}
    assert "do not show that random faults or faults of one kind" in errors.easier_says(overlap)
    apart = {"random faults": kind(0.2, 0.1, 0.3), "faults of one kind": kind(0.6, 0.4, 0.8)}
    assert errors.easier_says(apart).startswith("Here faults of one kind are easier to find than random faults")
