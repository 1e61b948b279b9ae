"""A plan is read strictly, fixed before the test is read, and compared with what then happened."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lungkit.data import relabel, splits
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.rule import DecisionRule
from lungkit.study import outcome, plan
from lungkit.training import comparison, evaluation, looks, outside, release
from tests.study.conftest import register

GIVEN = {
    "hypothesis": "The model tells left from right.",
    "data": "squares",
    "primary_metric": "balanced_accuracy",
    "at_least": 0.6,
    "exclusions": ["unreadable"],
}


def _plan(**changes) -> plan.Plan:
    return plan.of({key: value for key, value in (GIVEN | changes).items() if value is not None})


@pytest.fixture
def file(tmp_path):
    """Write a plan's file with these changes; returns its path."""

    def write(**changes) -> str:
        path = tmp_path / "plan.yaml"
        path.write_text(json.dumps({key: value for key, value in (GIVEN | changes).items() if value is not None}))
        return str(path)

    return write


# --- the file


def test_the_empty_plan_can_be_read_once_it_is_filled_in(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(plan.TEMPLATE)
    with pytest.raises(LungkitError, match=r"plan\.yaml: 'hypothesis' is still that of the empty plan"):
        plan.read(path)
    path.write_text(plan.TEMPLATE.replace("What the study is to show, in one or two sentences.", "It works."))
    read = plan.read(path)
    assert (read.hypothesis, read.success) == ("It works.", "balanced accuracy, at least 0.9")


@pytest.mark.parametrize("hypothesis", ["x", "study", "What the study is to show"])
def test_a_hypothesis_that_happens_to_be_in_the_empty_plan_is_one(hypothesis):
    assert _plan(hypothesis=hypothesis).hypothesis == hypothesis


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "not a list of keys"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: &x [1]\nb: {<<: *x}", "alias|not a name"),
        ("data: a\ndata: b", "'data' is given twice"),
        ("notes: {a: 1, a: 2}", "'a' is given twice"),
        ("data: !!python/object/apply:os.system [echo]", "not the YAML of a plan"),
        ("[" * 60_000, "nested too deeply"),
        ("data: 2026-99-99", "not the YAML of a plan"),
        ("data: \x00", "not the YAML of a plan"),
        ("1: a", "'hypothesis' is missing|not a name"),
        ("? [a]\n: b", "not a name|not the YAML"),
        ("? \n: b", "not a name"),
        ("planned_n: " + "9" * 40_000, "a number of 40,000 letters is too long"),
        ("planned_n: 0x" + "f" * 40_000, "is too long"),
        ("planned_n: 1" + ":59" * 9_000, "is too long"),
        ("at_least: !!float " + "9" * 50, "is too long"),
        ('hypothesis: "\\ud800"', "surrogate"),
        ('"\\ud800": a', "surrogate"),
        ('notes: !!timestamp "abc"', "does not fit its tag"),
        ('notes: !!bool "abc"', "does not fit its tag"),
        ('notes: !!int ""', "does not fit its tag"),
        ('notes: !!float ""', "does not fit its tag"),
        ('notes: !!int "0x"', "not the YAML of a plan"),
        ("!!map [a]", "does not fit its tag|not the YAML"),
        ("\n".join(f"k{number}:" for number in range(5_000)), "'hypothesis' is missing"),
        (json.dumps(GIVEN | {f"k{number}": 1 for number in range(3_000)}), "unknown key 'k0', 'k1', .{,300}$"),
    ],
)
def test_a_hostile_or_careless_file_is_refused_in_words(tmp_path, text, says):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(LungkitError, match=says):
        plan.read(path)


def test_a_file_that_is_no_text_or_too_large_or_missing_is_refused(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LungkitError, match="not text in UTF-8"):
        plan.read(path)
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(LungkitError, match="larger than 64 KiB"):
        plan.read(path)
    with pytest.raises(LungkitError, match="cannot be read"):
        plan.read(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"primary_endpoint": "auc"}, "unknown key 'primary_endpoint'; accepted: hypothesis, data"),
        ({"hypothesis": None}, "'hypothesis' is missing"),
        ({"data": " "}, "'data' is empty"),
        ({"primary_metric": "f1"}, "accepted: accuracy, balanced_accuracy"),
        ({"at_least": None}, "give exactly one of at_least, at_most, not_worse_than"),
        ({"at_most": 0.1}, "give exactly one of"),
        ({"at_least": 90}, "balanced_accuracy lies between 0 and 1"),
        ({"at_least": "0.9"}, "'at_least' is '0.9'; accepted: a number"),
        ({"at_least": float("nan")}, "accepted: a number"),
        ({"primary_metric": "ece"}, "a lower figure is better; give 'at_most'"),
        ({"at_least": None, "not_worse_than": "m", "margin": 0.1}, "name a version that stays the same, as NAME@v1"),
        ({"at_least": None, "not_worse_than": "m@v1"}, "'margin' and 'not_worse_than' belong together"),
        ({"margin": 0.1}, "belong together"),
        ({"at_least": None, "not_worse_than": "m@v1", "margin": 0}, "accepted: above 0"),
        ({"exclusions": ["the bad ones"]}, "accepted: unreadable .*; set_aside"),
        ({"subgroups": ["sex", "sex"]}, "'subgroups' names something twice"),
        ({"subgroups": "sex"}, "accepted: a list"),
        ({"planned_n": 0}, "1 or more"),
        ({"primary_metric": "sensitivity"}, "'sensitivity' is of one class; name it with 'of_class'"),
        ({"of_class": "right"}, "'of_class' does not fit balanced_accuracy"),
        ({"planned_n": 9.5}, "a whole number"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_with_what_would_be_accepted(changes, says):
    with pytest.raises(LungkitError, match=says):
        _plan(**changes)


def test_the_hash_is_of_what_the_plan_says_and_not_of_how_it_is_written():
    first = plan.parse(b"# a comment\nhypothesis: It works.\ndata: s\nprimary_metric: auc\nat_least: 0.5\n")
    second = plan.parse(b"at_least: 0.50\nprimary_metric: 'auc'\ndata: s\nhypothesis: >\n  It works.\n")
    assert first.sha256 == second.sha256
    assert plan.parse(b"hypothesis: It works.\ndata: s\nprimary_metric: auc\nat_least: 0.51").sha256 != first.sha256


def test_a_plan_that_was_read_once_is_checked_without_yaml(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "lungkit.study.plain_yaml", raising=False)
    assert _plan().success == "balanced accuracy, at least 0.6"


# --- the verdict


@pytest.mark.parametrize(
    ("estimate", "limit", "lower", "expected"),
    [
        ((0.93, 0.90, 0.97), 0.90, False, "shown"),
        ((0.93, 0.88, 0.97), 0.90, False, "not shown"),
        ((0.80, 0.70, 0.89), 0.90, False, "refuted"),
        ((0.05, 0.02, 0.10), 0.10, True, "shown"),
        ((0.05, 0.02, 0.11), 0.10, True, "not shown"),
        ((0.20, 0.15, 0.30), 0.10, True, "refuted"),
        ((1.0, np.nan, np.nan), 0.90, False, "cannot be said"),
    ],
)
def test_a_verdict_follows_from_where_the_whole_interval_lies(estimate, limit, lower, expected):
    assert outcome.verdict(estimate, limit, lower) == expected


def test_at_least_and_at_most_accept_their_limit_and_not_worse_does_not_accept_the_margin():
    assert outcome.verdict((0.93, 0.90, 0.97), 0.90, False) == "shown"
    condition = {"at_least": None, "not_worse_than": "m@v1", "margin": 0.02, "primary_metric": "auc"}
    assert outcome.judged(_plan(**condition), (0.0, -0.02, 0.1))[0] == "not shown"
    assert outcome.judged(_plan(**condition), (0.0, -0.0199, 0.1))[0] == "shown"
    assert outcome.judged(_plan(**condition), (-0.1, -0.2, -0.02))[0] == "refuted"
    assert outcome.judged(_plan(**condition | {"primary_metric": "ece"}), (0.0, -0.1, 0.02))[0] == "not shown"


def test_a_condition_is_shown_with_every_digit_that_was_given():
    assert _plan(at_least=0.90000001).success == "balanced accuracy, at least 0.90000001"
    assert _plan(at_least=1).success == "balanced accuracy, at least 1"


@pytest.mark.parametrize("right", [80, 86, 90, 96])
def test_accuracy_is_judged_as_scipys_exact_interval_judges_it(right):
    labels, said = np.array([0, 1] * 50), np.array([0, 1] * 50)
    said[right:] = 1 - said[right:]
    of = evaluation.evaluate(
        labels, np.eye(2)[said], np.arange(100), ("a", "b"), DecisionRule(kind="argmax"), n_boot=400
    )
    exact = scipy.stats.binomtest(right, 100).proportion_ci(0.95, "exact")
    expected = "shown" if exact.low >= 0.78 else "refuted" if exact.high < 0.78 else "not shown"
    assert outcome.verdict(of.value("accuracy"), 0.78, False) == expected


def test_the_sentence_gives_enough_digits_to_see_why(study, squares_set):
    scored = release.score(registry.find("squares-cnn"), squares_set)
    value, low, _ = scored.evaluation.value("balanced_accuracy")
    just_above = float(f"{low:.4f}") + 0.0001
    said = outcome.of(_plan(at_least=just_above), scored, study.run)
    assert said.sentence.startswith(f"Plan: primary metric balanced accuracy, at least {just_above:g}: {value:.3f} (")
    assert said.verdict == "not shown"
    reaches = re.search(r"→ not shown \(the interval reaches (0\.\d+)\)$", said.sentence)[1]
    assert reaches != f"{just_above:.{len(reaches) - 2}f}"


@pytest.mark.parametrize(
    ("tested", "other", "expected"),
    [("good", "bad", "shown"), ("bad", "good", "refuted"), ("squares-cnn", "squares-cnn", "not shown")],
)
def test_not_worse_than_another_is_shown_by_a_better_model_and_refuted_by_a_worse_one(
    study, squares_set, tested, other, expected
):
    register("good", squares_set, 0.0)
    register("bad", squares_set, 5.0)
    condition = {"at_least": None, "not_worse_than": f"{other}@v1", "margin": 0.05, "primary_metric": "auc"}
    said = outcome.of(_plan(**condition), release.score(registry.find(tested), squares_set), study.run)
    assert said.verdict == expected
    assert f"AUC, not worse than {other}@v1 by 0.05 or more: difference " in said.sentence


# --- fixed, then settled


def _settled(file, study, images, /, **changes) -> dict:
    """plan.json after a plan was fixed and the test read."""
    fixed = plan.fix(file(**changes), study.run)
    scored = release.score(registry.find("squares-cnn"), images)
    plan.settle(fixed, scored, study.run)
    return json.loads((study.run / "plan.json").read_text())


@pytest.fixture
def fresh(study):
    """The study before anyone has read its test."""
    for ledger in (study.home / "data" / "looks").glob("*.jsonl"):
        ledger.unlink()
    return study


def test_a_plan_that_is_kept_has_no_deviation_and_says_its_result(file, fresh, squares_set):
    record = _settled(file, fresh, squares_set)
    assert set(record) == {"plan", "sha256", "fixed_at", "looks", "deviations", "result"}
    assert record["plan"] == GIVEN | {"subgroups": []}
    assert record["sha256"] == _plan().sha256
    assert (record["looks"], record["deviations"]) == (1, [])
    assert record["result"]["says"].startswith("Plan: primary metric balanced accuracy, at least 0.6: 0.")


def test_a_plan_is_noted_before_the_test_is_read(file, fresh):
    fixed = plan.fix(file(), fresh.run)
    record = json.loads((fresh.run / "plan.json").read_text())
    assert (record["fixed_at"], record["looks"], record["result"]) == (fixed.fixed_at, None, None)
    assert _plan().sha256 in fixed.says()


def test_without_a_plan_the_run_says_so_plainly_and_no_earlier_plan_stays(file, fresh, squares_set):
    plan.fix(file(), fresh.run)
    assert plan.fix("", fresh.run) is None
    assert not (fresh.run / "plan.json").exists()
    said = plan.settle(None, release.score(registry.find("squares-cnn"), squares_set), fresh.run)
    assert said.startswith("**No plan was fixed before the test was read.** These test images were read 1 time so far")


def test_a_test_that_was_read_before_the_plan_is_a_deviation(file, study, squares_set):
    (said,) = _settled(file, study, squares_set)["deviations"]
    assert re.fullmatch(
        r"Test images were read 1 time before the plan was fixed, the last time on \d+ \w+ 20\d\d, \d\d:\d\d:\d\d UTC "
        r"by a notebook \(squares-cnn@v1\)\.",
        said,
    )


def test_a_plan_that_is_changed_after_a_reading_is_a_deviation_with_both_hashes(file, fresh, squares_set):
    _settled(file, fresh, squares_set, primary_metric="auc")
    record = _settled(file, fresh, squares_set)
    before, changed = record["deviations"]
    assert "read 1 time before the plan was fixed" in before
    assert _plan(primary_metric="auc").sha256 in changed
    assert _plan().sha256 in changed
    assert "primary metric AUC" in changed
    assert record["looks"] == 2


def test_the_same_plan_in_a_second_run_is_no_change_but_a_later_model_is_one(file, fresh, squares_set):
    _settled(file, fresh, squares_set)
    (fresh.run / "plan.json").unlink()  # as in the folder of a new run
    assert _settled(file, fresh, squares_set)["deviations"] == []
    (fresh.run / "plan.json").unlink()
    fixed = plan.fix(file(), fresh.run)
    registered = registry.find("squares-cnn").card
    later = release.score(registry.find("squares-cnn"), squares_set)
    object.__setattr__(later.version.card, "created", "2999-01-01T00:00:00+00:00")
    plan.settle(fixed, later, fresh.run)
    (said,) = json.loads((fresh.run / "plan.json").read_text())["deviations"]
    assert said.startswith("squares-cnn@v1 was registered on 1 January 2999, 00:00:00 UTC, after the plan was fixed")
    assert registered.created < "2999"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "circles"}, "The plan names the data set circles; squares was read."),
        ({"model": "other"}, "The plan names the model other; squares-cnn@v1 was tested."),
        ({"planned_n": 60}, "The test has 8 patients; 60 were planned."),
        ({"subgroups": ["age"]}, "The planned subgroups by age are missing: the data set has no such column."),
        ({"subgroups": ["file"]}, "The planned subgroups by file are missing: the column has 16 values."),
        ({"primary_metric": "kappa"}, "The primary metric could not be measured: no metric 'kappa'"),
    ],
)
def test_each_deviation_is_found_and_said_in_a_sentence(file, fresh, squares_set, changes, says):
    (said,) = _settled(file, fresh, squares_set, **changes)["deviations"]
    assert said.startswith(says)


def test_images_left_out_for_a_reason_that_the_plan_does_not_list_are_a_deviation(file, fresh, squares_set):
    aside = squares_set.manifest.copy()
    train = aside.index[aside["split"] == "train"]
    aside.loc[train[:3], "split"] = splits.SET_ASIDE
    aside.loc[train[3:5], "split"] = splits.REFUSED
    changed = type(squares_set)(squares_set.name, squares_set.classes, aside, squares_set.root)
    (said,) = _settled(file, fresh, changed)["deviations"]
    assert said == (
        "3 images left out for a reason that the plan does not list: images of patients on two sides of a split."
    )
    assert "2 images" in _settled(file, fresh, changed, exclusions=["set_aside"])["deviations"][-1]


def test_planned_subgroups_are_measured_and_kept_as_a_table(file, fresh, squares_set):
    fixed = plan.fix(file(subgroups=["other"]), fresh.run)
    scored = release.score(registry.find("squares-cnn"), squares_set)
    said = plan.settle(fixed, scored, fresh.run)
    assert re.search(r"- other a: balanced accuracy \d\.\d{3} \(.*\), 8 images of 8 patients", said)
    table = pd.read_csv(fresh.run / "tables" / "04_plan_subgroups.csv", dtype=str)
    assert list(table.columns) == ["Group", "Images", "Patients", "Balanced accuracy"]
    assert table[["Group", "Images", "Patients"]].to_numpy().tolist() == [["other a", "8", "8"], ["other b", "8", "8"]]
    assert table["Balanced accuracy"].str.fullmatch(r"\d\.\d{3} \(\d\.\d{3}–\d\.\d{3}\)").all()
    about = json.loads((fresh.run / "tables" / "04_plan_subgroups.json").read_text())
    assert about["caption"] == "Balanced accuracy in each planned subgroup; 95 % intervals by patient"


@pytest.mark.parametrize(("metric", "undefined"), [("balanced_accuracy", True), ("auc", True), ("accuracy", False)])
def test_a_group_with_images_of_one_class_has_no_figure_that_needs_two(file, fresh, squares_set, metric, undefined):
    by_class = squares_set.manifest.assign(source=squares_set.manifest["label"])
    images = replace(squares_set, manifest=by_class)
    fixed = plan.fix(file(subgroups=["source"], primary_metric=metric), fresh.run)
    plan.settle(fixed, release.score(registry.find("squares-cnn"), images), fresh.run)
    cells = pd.read_csv(fresh.run / "tables" / "04_plan_subgroups.csv").iloc[:, -1]
    assert len(cells) == 2
    assert all((cell == "–, one class only") is undefined for cell in cells)


@pytest.mark.parametrize(("metric", "evaluated"), [("sensitivity", "recall"), ("specificity", "specificity")])
def test_the_sensitivity_or_specificity_of_a_class_can_decide(file, fresh, squares_set, metric, evaluated):
    record = _settled(file, fresh, squares_set, primary_metric=metric, of_class="right")
    measured = release.score(registry.find("squares-cnn"), squares_set).evaluation
    assert record["result"]["value"] == measured.value(evaluated, "right")[0]
    assert record["result"]["says"].startswith(f"Plan: primary metric {metric} for right, at least 0.6: ")


def test_a_class_that_the_model_does_not_know_is_a_deviation(file, fresh, squares_set):
    (said,) = _settled(file, fresh, squares_set, primary_metric="sensitivity", of_class="up")["deviations"]
    assert said.startswith("The primary metric could not be measured: no metric 'recall' for class 'up'")


def test_a_comparison_with_a_version_that_does_not_exist_is_refused_before_the_test_is_read(file, fresh):
    with pytest.raises(LungkitError, match="no model 'nobody'"):
        plan.fix(file(at_least=None, not_worse_than="nobody@v1", margin=0.1), fresh.run)


# --- readings are counted


@pytest.mark.parametrize(("split", "counted"), [("test", 16), ("all", 16), ("train", 0), ("val", 0)])
def test_a_reading_counts_the_images_that_the_model_has_not_seen(fresh, squares_set, split, counted):
    release.score(registry.find("squares-cnn"), squares_set, split, "lungkit evaluate")
    assert [look.images for look in looks.of(squares_set.part("test")["sha256"])] == ([counted] if counted else [])
    assert looks.of(squares_set.part("train")["sha256"]) == []


def test_a_model_that_is_trained_again_under_another_name_resets_no_count(fresh, squares_set):
    release.score(registry.find("squares-cnn"), squares_set)
    again = release.score(register("fresh-name", squares_set, 0.01), squares_set)
    said = plan.settle(None, again, fresh.run)
    assert "read 2 times so far" in said


def test_a_comparison_counts_a_look_of_each_version_though_it_reads_the_set_without_its_split(fresh, squares_set):
    versions = registry.find("squares-cnn"), register("challenger", squares_set, 0.01)
    given = outside.relabelled(versions[0], str(fresh.images), [], relabel.Labels.parse([], []))
    comparison.compare(versions, [given])
    found = looks.of(squares_set.part("test")["sha256"])
    assert [(look.model, look.by, look.images) for look in found] == [
        ("squares-cnn@v1", "lungkit compare", 16),
        ("challenger@v1", "lungkit compare", 16),
    ]


def test_a_source_that_the_model_has_not_seen_counts_a_look_too(fresh, squares_set):
    version = registry.find("squares-cnn")
    there = replace(squares_set, manifest=squares_set.part("test").assign(source="elsewhere"))
    outside.measure(version, there)
    (look,) = looks.of(squares_set.part("test")["sha256"])
    assert look.by == "lungkit evaluate --outside"
