"""Groups of patients: their figures against scikit-learn, and their differences against other tests of differences."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics as sk

from lungkit.data import attributes
from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.training import subgroups
from lungkit.training.evaluation import evaluate
from lungkit.training.subgroups import FEW, measure

CLASSES = ("Normal", "COVID-19")
RULE = DecisionRule(kind="threshold", positive="COVID-19", threshold=0.5)


def scored(y, scores, patients=None, n_boot=200):
    y, scores = np.asarray(y), np.asarray(scores, float)
    patients = np.arange(len(y)) if patients is None else patients
    return evaluate(y, np.column_stack([1 - scores, scores]), patients, CLASSES, RULE, n_boot=n_boot)


def answers(n=240, skill=2.0, seed=3):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return y, 1 / (1 + np.exp(-(skill * (y - 0.5) + rng.normal(size=n))))


def groups(**columns):
    return pd.DataFrame({name: pd.Categorical(values) for name, values in columns.items()})


def row(found, group):
    (one,) = found.table[found.table["group"] == group].to_dict("records")
    return one


SEX = np.tile(["F", "F", "M", "M"], 60)


# --- the figures


def test_figures_of_a_group_are_those_of_its_images_alone():
    y, scores = answers()
    found = measure(scored(y, scores), groups(sex=SEX))
    female, of = row(found, "F"), SEX == "F"
    assert female["auc"] == pytest.approx(sk.roc_auc_score(y[of], scores[of]))
    assert female["recall"] == pytest.approx(sk.recall_score(y[of], scores[of] >= 0.5))
    assert female["specificity"] == pytest.approx(sk.recall_score(y[of], scores[of] >= 0.5, pos_label=0))
    assert female["calibration"] == pytest.approx(scores[of].mean() - y[of].mean())
    assert (female["images"], female["patients"], female["positives"]) == (120, 120, 60)
    for figure in (*subgroups.FIGURES, "calibration"):
        assert female[f"{figure}_low"] < female[figure] < female[f"{figure}_high"]


def test_a_group_of_one_class_is_ranked_against_all_images_of_the_other():
    y, scores = answers()
    grade = np.where(y == 0, "CT-0", np.where(np.arange(240) % 4 == 1, "CT-1", "CT-2"))
    found = measure(scored(y, scores), groups(severity=grade))
    mild, healthy = row(found, "CT-1"), row(found, "CT-0")
    of = (y == 0) | (grade == "CT-1")
    assert mild["against"] == "all negatives"
    assert mild["auc"] == pytest.approx(sk.roc_auc_score(y[of], scores[of]))
    assert np.isnan(mild["specificity"]) and np.isnan(mild["calibration"])
    assert np.isnan(healthy["auc"]) and np.isnan(healthy["recall"]), "all negatives: there is no AUC of their own"
    assert healthy["specificity"] == pytest.approx(sk.recall_score(y, scores >= 0.5, pos_label=0))
    assert [note for note in found.summary().loc[("severity", "CT-1")] if "†" in note]


def test_the_class_of_interest_is_one_against_the_rest_of_several():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 150), rng.dirichlet([1, 1, 1], 150)
    measured = evaluate(y, p, np.arange(150), ("a", "b", "c"), DecisionRule(kind="argmax"), n_boot=20)
    half = np.arange(150) < 75
    found = measure(measured, groups(part=np.where(half, "first", "second")), "b")
    first = row(found, "first")
    assert first["auc"] == pytest.approx(sk.roc_auc_score(y[half] == 1, p[half, 1]))
    assert first["recall"] == pytest.approx(sk.recall_score(y[half] == 1, p[half].argmax(axis=1) == 1))


# --- differences


def test_the_difference_is_to_all_other_images_and_its_interval_is_by_patient():
    y, scores = answers()
    found = measure(scored(y, scores, n_boot=400), groups(age=np.repeat(["a", "b", "c"], 80)))
    a, of = row(found, "a"), np.arange(240) < 80
    expected = sk.roc_auc_score(y[of], scores[of]) - sk.roc_auc_score(y[~of], scores[~of])
    assert a["auc_gap"] == pytest.approx(expected)
    assert a["auc_gap_low"] < expected < a["auc_gap_high"]
    copied = measure(
        scored(np.repeat(y, 3), np.repeat(scores, 3), np.repeat(np.arange(240), 3), 400),
        groups(age=np.repeat(["a", "b", "c"], 240)),
    )
    width = a["auc_gap_high"] - a["auc_gap_low"]
    again = row(copied, "a")
    assert again["auc_gap_high"] - again["auc_gap_low"] == pytest.approx(width, rel=0.05), "copies add no evidence"
    assert again["auc_p"] == pytest.approx(a["auc_p"], abs=0.02)


def test_p_of_a_share_is_that_of_the_pooled_test_of_two_proportions():
    # statsmodels 0.15.0: proportions_ztest([40, 50], [60, 60]) gives 0.03501498
    right = np.r_[np.arange(60) < 40, np.arange(60) < 50]
    y = np.r_[np.ones(120, int), np.zeros(60, int)]
    scores = np.r_[np.where(right, 0.9, 0.1), np.full(60, 0.05)]
    found = measure(scored(y, scores, n_boot=2000), groups(half=np.r_[["a"] * 60, ["b"] * 60, ["a", "b"] * 30]))
    assert row(found, "a")["recall_p"] == pytest.approx(0.03501498, rel=0.25)  # of 2,000 resamples


def test_groups_drawn_by_chance_are_found_different_one_time_in_twenty():
    found = []
    for seed in range(12):
        y, scores = answers(160, seed=seed)
        drawn = subgroups.chance_groups(np.arange(160), 15, seed)
        members = np.array([(drawn[name] == "drawn").to_numpy() for name in drawn])
        members &= np.random.default_rng(seed).random(160) < 0.5  # about 20 patients of each class, against 60
        found.append(subgroups._gaps(scored(y, scores, n_boot=60), members, "COVID-19"))
    p = pd.concat(found)
    for figure in subgroups.FIGURES:
        assert 0.01 <= (p[f"{figure}_p"] < 0.05).mean() <= 0.1, figure
        assert (p[f"{figure}_p"] < 0.001).mean() <= 0.012, figure


def test_the_two_groups_of_an_attribute_are_one_comparison():
    y, scores = answers()
    found = measure(scored(y, scores), groups(sex=SEX, view=np.repeat(["AP", "PA"], 120)))
    table = found.table
    assert table["auc_p"][0] == pytest.approx(table["auc_p"][1])
    smallest = min(table["auc_p"])
    assert min(table["auc_holm"]) == pytest.approx(min(1, 2 * smallest)), "two comparisons, not four"
    assert table["auc_holm"][0] == table["auc_holm"][1]
    assert "after 2 comparisons (Holm)" in subgroups.says(found)[0]


def opposite(n, second):
    """n patients of each class in "a", all answered rightly, and in "b", to whom the model gives these scores."""
    scores = np.r_[np.linspace(0, 0.3, n), np.full(n, 0.9), *second]
    return measure(scored(np.tile(np.repeat([0, 1], n), 2), scores), groups(half=np.repeat(["a", "b"], 2 * n)))


@pytest.mark.parametrize("n", [10, 40])
def test_a_difference_that_no_resample_changes_is_not_called_chance(n, monkeypatch):
    monkeypatch.setattr(subgroups, "PERMUTATIONS", 999)  # fisher_exact([[10, 0], [0, 10]]) gives 1.1e-5
    none_found = opposite(n, (np.linspace(0, 0.3, n), np.full(n, 0.35)))
    assert row(none_found, "a")["recall_gap"] == 1 and row(none_found, "a")["recall_p"] == pytest.approx(1e-3)
    assert "more than chance explains" in subgroups.says(none_found)[1]
    inverted = opposite(n, (np.full(n, 0.9), np.full(n, 0.1)))
    assert row(inverted, "b")["auc_gap"] == -1 and row(inverted, "b")["auc_p"] == pytest.approx(1e-3)
    constant = opposite(n, (np.full(n, 0.5), np.full(n, 0.5)))
    assert row(constant, "b")["auc_gap"] == -0.5 and row(constant, "b")["auc_p"] < 0.01
    assert row(constant, "a")["auc_p"] == row(constant, "b")["auc_p"]


def test_the_p_of_divisions_is_that_of_fishers_exact_test_of_patients():
    right = np.r_[np.full(6, True), np.arange(8) < 3]  # 6 of 6 against 3 of 8 patients, with two images each
    patients = np.repeat(np.arange(14), 2)
    contrast = subgroups._Contrast(np.empty(0), np.full(28, True), np.repeat(right, 2), np.zeros(28))
    p = subgroups._permuted_p(contrast, "recall", patients < 6, patients, 0)
    assert p == pytest.approx(scipy.stats.fisher_exact([[6, 0], [3, 5]]).pvalue, abs=0.01)


def test_a_group_without_others_is_compared_with_none():
    y, scores = answers()
    told = subgroups.says(measure(scored(y, scores), groups(sex=["F"] * 240)), plain=True)
    assert told[0].startswith("Where sex is F, AUC is 0.")
    assert all(text.endswith("there are no others to compare it with.") for text in told)


# --- small groups, and the worst


def failing(n=600):
    """Answers that are good, but for 100 patients of "ward C" whom the model ranks by chance."""
    y, scores = answers(n, skill=3.0)
    ward = np.repeat(["A", "B", "C"], [250, 250, 100])
    scores[ward == "C"] = np.random.default_rng(1).random(100)
    return y, scores, ward


def test_a_group_that_the_model_fails_is_named_as_the_worst_and_shown_to_be_worse():
    y, scores, ward = failing()
    found = measure(scored(y, scores), groups(ward=ward, sex=np.tile(SEX, 3)[:600]))
    worst = row(found, "C")
    assert worst["auc_holm"] < 0.001 and worst["auc_gap_high"] < 0
    first = subgroups.says(found)[0]
    assert first.startswith("The worst group by AUC for COVID-19 is the one where **ward is C**: 0.")
    assert "more than chance explains" in first and "p < .001" in first
    assert "**" not in "".join(subgroups.says(found, plain=True))
    assert subgroups.worst_title(found, "auc").startswith("AUC for COVID-19 is lowest where ward is C: ")


def test_the_worst_specificity_is_named_too():
    y, scores = answers()
    well = np.flatnonzero((y == 0) & (SEX == "F"))
    scores[well[::2]] = 0.9
    found = measure(scored(y, scores), groups(sex=SEX))
    (said,) = [text for text in subgroups.says(found) if "by specificity" in text]
    lowest = f"{row(found, 'F')['specificity']:.3f}"
    assert f"by specificity for COVID-19 is the one where **sex is F**: {lowest} (" in said


@pytest.mark.parametrize(("skill", "wrong"), [(-3.0, True), (0.0, False), (3.0, False)])
def test_a_group_whose_auc_is_shown_below_one_half_is_said_to_be_ranked_the_wrong_way_round(skill, wrong):
    y, scores = answers(480, skill=3.0)
    scores[:160] = answers(160, skill=skill, seed=9)[1]
    found = measure(scored(y, scores), groups(ward=np.repeat(["A", "B"], [160, 320])))
    assert ("the wrong way round" in subgroups.says(found)[0]) == wrong


def test_a_difference_that_chance_can_explain_is_called_so():
    y, scores = answers()
    assert "which chance can explain" in subgroups.says(measure(scored(y, scores), groups(sex=SEX)))[0]


def test_a_group_of_few_patients_has_an_interval_and_no_test_and_is_never_the_worst():
    y, scores = answers()
    few = np.where(np.arange(240) < 2 * (FEW - 1), "rare", "usual")
    scores[few == "rare"] = 1 - scores[few == "rare"]
    found = measure(scored(y, scores), groups(kind=few))
    rare = row(found, "rare")
    assert rare["auc"] < 0.5 and rare["auc_low"] < rare["auc_high"]
    assert rare["auc_few"] and rare["recall_few"] and np.isnan(rare["auc_p"]) and np.isnan(rare["auc_holm"])
    said = subgroups.says(found)[0]
    assert said.startswith(
        "The worst of the groups that could be tested by AUC for COVID-19 is the one where **kind is u"
    )
    assert "The others are too few to be compared with it." in said
    assert said.endswith(f"Lower, but with fewer than 10 patients of a class: kind is rare ({rare['auc']:.3f}).")
    title = subgroups.worst_title(found, "auc")
    assert title.startswith("Of the groups that could be tested, AUC for COVID-19 is lowest where kind is usual: ")
    assert title.endswith(f"; lower, with too few patients: kind is rare ({rare['auc']:.3f})")
    assert "1 group of 2 has fewer than 10 patients of a class" in subgroups.says(found)[-1]
    assert found.summary().loc[("kind", "rare"), "AUC"].endswith("*")


def test_patients_and_not_images_make_a_group_large_enough():
    _, scores = answers(200)
    patients = np.repeat(np.arange(20), 10)
    labels = np.repeat(np.arange(20) % 2, 10)
    found = measure(scored(labels, scores, patients), groups(side=np.repeat(["left", "right"], 100)))
    assert found.table["auc_few"].all()
    assert (
        subgroups.says(found)[0] == "No group has 10 patients of each class that its AUC needs: none can be compared."
    )


def test_where_all_groups_are_alike_none_is_called_the_worst():
    y = np.arange(80) % 2
    found = measure(scored(y, np.where(y, 0.9, 0.1)), groups(side=np.repeat(["left", "right"], 40)))
    assert subgroups.says(found)[0] == "No group is worse by AUC: it is 1.000 in each of 2 groups with enough patients."
    assert found.table["auc_gap_low"].max() < 0 < found.table["auc_gap_high"].min(), "no difference seen is not none"


# --- input, files


def test_what_cannot_be_measured_is_refused_by_name():
    y, scores = answers(20)
    measured = scored(y, scores)
    with pytest.raises(LungkitError, match="19 rows of attributes for 20 images"):
        measure(measured, groups(sex=SEX[:19]))
    with pytest.raises(LungkitError, match="no class 'Flu'; there are: Normal, COVID-19"):
        measure(measured, groups(sex=SEX[:20]), "Flu")
    with pytest.raises(LungkitError, match="nothing is stated of these images"):
        measure(measured, pd.DataFrame(index=range(20)))


def test_the_record_is_strict_json_without_nan():
    y, scores = answers()
    grade = np.where(y == 0, "CT-0", "CT-1")
    record = json.loads(json.dumps(measure(scored(y, scores), groups(severity=grade)).to_dict(), allow_nan=False))
    assert record["positive"] == "COVID-19"
    assert [one["group"] for one in record["groups"]] == ["CT-0", "CT-1"]
    assert record["groups"][0]["auc"] is None


def test_one_patient_has_figures_and_no_intervals():
    y, scores = answers(40)
    found = measure(scored(y, scores, np.full(40, "p")), groups(sex=SEX[:40]))
    assert found.table["auc"].notna().all()
    assert found.table[["auc_low", "auc_gap_low", "auc_p"]].isna().all().all()


def test_chance_groups_split_patients_and_never_the_images_of_one():
    patients = np.repeat(np.arange(30), 2)
    drawn = subgroups.chance_groups(patients, 5)
    assert drawn.shape == (60, 5) and not drawn.equals(subgroups.chance_groups(patients, 5, seed=8))
    assert drawn.groupby(patients).nunique().eq(1).all().all()
    assert [*attributes.grouped(drawn.astype(str), patients).table["chance 1"].cat.categories] == ["drawn", "rest"]
