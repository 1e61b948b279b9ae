"""Several models on the same images: pairs, corrections for many tests, and what is said where nothing can be said."""

import json

import numpy as np
import pytest

from lungkit.errors import LungkitError
from lungkit.training import comparison, paired
from tests.compared import run


def told(*runs, **options) -> dict:
    """The comparison as JSON, which has no NaN."""
    return json.loads(json.dumps(comparison.compare(runs, **options).to_dict(), allow_nan=False))


def test_every_other_one_is_compared_with_the_first_or_each_with_each():
    runs = [run("a", 0.5), run("b", 2), run("c", 2, seed=1)]
    found = comparison.compare(runs)
    assert [pair.names for pair in found.pairs] == [("a", "b"), ("a", "c")]
    assert any("each is compared with a, the first one; --all-pairs" in note for note in found.notes)
    every = comparison.compare(runs, all_pairs=True)
    assert [pair.names for pair in every.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert every.notes == ()


def test_p_are_adjusted_over_all_pairs_and_the_verdict_says_what_is_left():
    found = comparison.compare([run("a", 0.5), run("b", 1.2), run("c", 0.6, seed=1)])
    ps = [pair.auc_p for pair in found.pairs]
    assert [pair.by_class["sick"].adjusted for pair in found.pairs] == pytest.approx(paired.holm(ps))
    decisions = [pair.decision_p for pair in found.pairs]
    assert [pair.decision_adjusted for pair in found.pairs] == pytest.approx(paired.holm(decisions))
    left = sum(p < 0.05 for p in paired.holm(ps))
    assert found.says[0].startswith(f"After Holm's correction {left} of 2 tests of AUC and ")
    assert found.says[1] == "Compared with a, b is better on the common images."
    assert {"p (DeLong, Holm)", "p (McNemar, Holm)", "pair"} <= set(found.table())
    alone = comparison.compare([run("a", 0.5), run("b", 2)])
    assert len(alone.says) == 1 and not any("Holm" in name for name in alone.table())


def test_three_classes_are_tested_each_against_the_rest():
    found = comparison.compare([run("a", 0.5, size=3), run("b", 2, size=3)])
    (pair,) = found.pairs
    assert [*pair.by_class] == ["well", "sick", "very sick"] and np.isnan(pair.auc_p)
    for at, (name, of) in enumerate(pair.by_class.items()):
        scores = pair.new.probabilities[:, at], pair.old.probabilities[:, at]
        assert of.p == paired.auc_test(pair.new.true == at, *scores, pair.new.patients)
        assert of.auc[0] == pytest.approx(pair.new.value("auc", name)[0] - pair.old.value("auc", name)[0])
    assert [of.adjusted for of in pair.by_class.values()] == paired.holm([of.p for of in pair.by_class.values()])
    assert found.classes()["class against the rest"].tolist() == ["well", "sick", "very sick"]
    assert "p (DeLong)" not in found.table()


def test_images_that_one_run_does_not_have_are_counted():
    most = [f"{i}.png" for i in range(60)]
    found = comparison.compare([run("a", 1), run("b", 1).of(most)])
    assert found.notes == ("60 images in all runs; not compared: 20 of 80 of a",)
    assert found.to_dict()["pairs"][0]["images"] == 60


def test_balanced_accuracy_weighs_the_classes_alike():
    y = [0] * 60 + [1] * 20
    (pair,) = comparison.compare([run("a", 1, y=y), run("b", 1.5, y=y, seed=2)]).pairs
    of = [measured.value("balanced_accuracy")[0] for measured in (pair.new, pair.old)]
    assert pair.balanced_accuracy[0] == pytest.approx(of[0] - of[1])
    assert pair.balanced_accuracy[1] < pair.balanced_accuracy[0] < pair.balanced_accuracy[2]


# --- where nothing can be said


def test_a_missing_class_is_said_and_leaves_nulls():
    y = np.zeros(30, int)
    record = told(run("a", 1, y=y), run("b", 2, y=y))
    (pair,) = record["pairs"]
    assert pair["verdict"] == "undefined"
    assert pair["auc_difference"] == [None] * 3 and pair["by_class"]["sick"]["p"] is None
    assert pair["accuracy_difference"][0] is not None
    assert any("there is no image of 'sick', so its AUC is undefined" in text for text in pair["remarks"])
    assert record["says"] == "Compared with a, b cannot be measured on the common images."


def test_one_patient_is_said_and_leaves_nulls():
    (pair,) = told(run("a", 1, per_patient=80), run("b", 2, per_patient=80))["pairs"]
    assert pair["verdict"] == "undefined"
    assert pair["auc_difference"][1:] == [None, None] and pair["auc_p"] is None
    assert any("all images are of one patient" in text for text in pair["remarks"])


def test_one_patient_of_a_class_leaves_delongs_test_undefined():
    y = [0] * 20 + [1]
    (pair,) = told(run("a", 1, y=y), run("b", 2, y=y))["pairs"]
    assert pair["auc_p"] is None and pair["by_class"]["sick"]["p_adjusted"] is None
    assert any("one patient alone has 'sick', and DeLong's test needs two" in text for text in pair["remarks"])


def test_models_that_answer_alike_are_identical_and_their_difference_has_no_interval():
    (pair,) = told(run("a", 1), run("b", 1))["pairs"]
    assert (pair["auc_difference"][0], pair["auc_p"], pair["decision_p"]) == (0, 1, 1)
    assert pair["verdict"] == "identical" and pair["auc_difference"] == [0, None, None]
    assert pair["accuracy_difference"] == pair["balanced_accuracy_difference"] == [0, None, None]
    assert told(run("a", 1), run("b", 1))["says"].endswith(
        "gives the same answers for every image of the common images."
    )
    assert any("both give the same answers for every image" in text for text in pair["remarks"])


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([run("a", 1)], "give two or more to compare"),
        ([run("a", 1), run("a", 2)], "a is there twice"),
        ([run("a", 1), run("b", 1, size=3)], "b answers well, sick, very sick, and not well, sick"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, said):
    with pytest.raises(LungkitError, match=said):
        comparison.compare(runs)
