"""What a report says: true to the run's files, in the order of the notebooks, and plain about what is not known."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from lungkit import config
from lungkit.data.dataset import Dataset
from lungkit.errors import LungkitError
from lungkit.models.card import Measured
from lungkit.study import content, material, plan
from lungkit.study.document import Document, Figure, Ref, Table
from lungkit.study.provenance import RunRecord, Stage
from lungkit.study.references import REFERENCES


def _document(run: Path) -> Document:
    known = material.gather(run)
    return content.document(known, content.body(known), ())


def _said(run: Path, section: str = "") -> str:
    """All text of a report, or of one of its sections."""
    document = _document(run)
    words = []
    for one in document.walk():
        for block in one.blocks if section in ("", one.name) else ():
            match block:
                case Table():
                    words += [document.plain(cell) for row in block.rows for cell in row]
                case Figure():
                    words.append(block.caption)
                case _:
                    words += map(document.plain, getattr(block, "items", None) or [block.text])
    return "\n".join(words)


def _tables(run: Path) -> dict[str, Table]:
    blocks = (block for section in _document(run).walk() for block in section.blocks)
    return {block.name: block for block in blocks if isinstance(block, Table)}


def _change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_figures_and_tables_are_numbered_in_the_order_of_the_notebooks(run):
    labels = _document(run).labels
    figures = {ref.name: label for ref, label in labels.items() if ref.kind == "figure"}
    assert figures == {"01_sample": "Figure 1", "04_roc": "Figure 2", "04_odd #1": "Figure 3"}
    tables = [ref.name for ref in labels if ref.kind == "table"]
    assert tables.index("counts") < tables.index("figures") < tables.index("04_points") < tables.index("notebooks")
    assert [labels[Ref("table", name)] for name in tables] == [f"Table {n}" for n in range(1, len(tables) + 1)]


def test_the_figures_of_the_test_are_those_of_its_record(run):
    measured = Measured.from_dict(json.loads((run / "evaluation.json").read_text()))
    rows = {row[0][0]: row[1][0] for row in _tables(run)["figures"].rows}
    assert rows["AUC"] == str(measured.figure("auc"))
    assert rows["Accuracy"] == str(measured.figure("accuracy"))
    by_class = {row[0][0]: [cell[0] for cell in row[1:]] for row in _tables(run)["by-class"].rows}
    assert by_class["Sensitivity"] == [str(measured.figure("recall", name)) for name in measured.classes]
    confusion = [[int(cell[0]) for cell in row[1:]] for row in _tables(run)["confusion"].rows]
    assert confusion == [list(row) for row in measured.confusion]


def test_images_and_patients_are_counted_as_the_manifest_has_them(run):
    data = Dataset.open(config.data_dir() / "manifests" / "squares")
    rows = {row[0][0]: [cell[0] for cell in row[1:]] for row in _tables(run)["counts"].rows}
    test = data.part("test")
    assert rows["Test"][-1] == f"{len(test)} ({test['patient_id'].nunique()})"
    assert rows["Training"][0] == "42 (21)", "of 30 patients of a class, 70 %"
    assert rows["All"][-1] == "120 (60)"


def test_a_notebooks_own_table_takes_the_place_of_the_same_one_made_here(run):
    from lungkit.training import exhibits

    exhibits.table(pd.DataFrame({"a": [1]}), run, "04_metrics", "Its own")
    assert {"figures", "by-class"} & set(_tables(run)) == set()
    assert "04_metrics" in _tables(run)


def test_a_long_table_is_cut_and_says_so(run):
    table = _tables(run)["06_long"]
    assert len(table.rows) == content.ROWS < 40
    assert table.note == "The first 25 of 40 rows; the CSV file has all."


def test_numbers_of_a_notebooks_table_have_four_digits_and_texts_stay(run):
    cells = [[cell[0] for cell in row] for row in _tables(run)["04_points"].rows]
    assert [row[1] for row in cells] == ["0.1235", "2.0"]
    assert cells[1][0] == "[second]"


def test_the_method_has_the_numbers_of_the_card(run):
    said = _said(run)
    for words in (
        "2 blocks", "begin with 8 channels", "1,234 parameters", "9 epochs", "after epoch 7", "by Adam [", "0.002",
        "a temperature of 1.25", "right from a probability of 0.400 on", "224 × 224 pixels",
        "weighted in the loss by their inverse frequency",
    ):  # fmt: skip
        assert words in said, words


def test_what_the_card_does_not_state_is_said(run):
    assert "The card does not state the population, ages or licence." in _said(run, "data")
    assert "No plan was fixed before the test was read." in _said(run, "question")


def test_a_run_without_a_model_or_a_test_has_a_report_that_says_so(run):
    (run / "evaluation.json").unlink()
    said = _said(run)
    assert "No model was registered or scored in this run" in said
    assert "The model was not tested in this run" in said
    assert _document(run).title.startswith("Run on squares")


def test_a_record_that_cannot_be_read_is_named_and_stops_nothing(run):
    (run / "evaluation.json").write_text('{"accuracy": "high", "model": "squares-cnn@v1"}')
    assert "evaluation.json cannot be read" in _said(run, "limits")
    (run / "evaluation.json").write_text("{")
    assert "evaluation.json cannot be read" in _said(run, "limits")


def test_a_version_that_is_not_registered_here_is_named(run):
    _change(run / "evaluation.json", model="gone@v3")
    assert "The card of gone@v3 cannot be read" in _said(run, "limits")


def test_the_manifest_of_another_selection_is_not_used_and_the_one_that_was_kept_is(run):
    material.keep(material.gather(run))
    data = Dataset.open(config.data_dir() / "manifests" / "squares")
    smaller = Dataset(data.name, data.classes, data.manifest.head(50), data.root, recipe=data.recipe)
    smaller.save(config.data_dir() / "manifests" / "squares")
    assert len(material.gather(run).data.manifest) == 120
    for file in (run / material.DATASET).iterdir():
        file.unlink()
    assert material.gather(run).data is None
    assert "of another selection or state of the data set" in _said(run, "limits")
    assert "Training" in [row[0][0] for row in _tables(run)["counts"].rows], "from the card"


def test_a_plan_and_its_deviations_are_in_the_report(run):
    values = {"hypothesis": "AUC is above 0.9", "data": "squares", "primary_metric": "auc", "margin": 0.02,
              "not_worse_than": "squares-cnn@v1", "subgroups": ["sex", "age"]}  # fmt: skip
    fixed = plan.of(values)
    record = {"plan": fixed.to_dict(), "sha256": fixed.sha256, "fixed_at": "2026-11-30T12:00:00+00:00", "looks": 2,
              "deviations": ["The planned 500 patients were not reached."]}  # fmt: skip
    (run / "plan.json").write_text(json.dumps(record))
    question, limits = _said(run, "question"), _said(run, "limits")
    for words in (
        "AUC is above 0.9",
        "AUC not worse than that of squares-cnn@v1 by 0.02 or more",
        "sex, age",
        fixed.sha256,
        "30 November 2026, 12:00 UTC",
    ):
        assert words in question, words
    assert "The planned 500 patients were not reached." in limits
    assert "The test part was read 2 times" in limits
    assert "exploratory" not in limits


def _planned(run: Path, **changes) -> None:
    planned = plan.of({"hypothesis": "It works.", "data": "squares", "primary_metric": "balanced_accuracy",
                       "at_least": 0.8, "planned_n": 120})  # fmt: skip
    result = {"value": 0.9, "interval": [0.7, 1.0], "verdict": "not shown", "says": "Plan: 0.900 → not shown (why)"}
    record = {"plan": planned.to_dict(), "sha256": planned.sha256, "fixed_at": "2026-11-30T14:23:00+00:00", "looks": 1,
              "deviations": [], "result": result}  # fmt: skip
    (run / "plan.json").write_text(json.dumps(record | changes))


def test_the_plans_verdict_follows_the_headline_in_every_form(run):
    from lungkit.study import report

    _planned(run, looks=2)
    headline, verdict, deviations = _said(run, "question").splitlines()[:3]
    assert headline.startswith("squares-cnn@v1")
    assert verdict == "Plan: 0.900 → not shown (why)."
    assert deviations == "Deviations: none was found. The test was read 2 times, this reading included."
    leads = [block for block in _document(run).sections[0].blocks if getattr(block, "lead", False)]
    assert [_document(run).plain(block.text) for block in leads] == [headline, verdict]
    report.write(run)
    assert "Plan: 0.900 → not shown (why)." in (run / "index.html").read_text("utf-8")
    assert r"Plan: 0.900 \ensuremath{\rightarrow} not shown (why)." in (run / "report" / "report.tex").read_text(
        "utf-8"
    )


def test_each_deviation_from_the_plan_is_next_to_its_verdict(run):
    _planned(run, deviations=["One thing.", "Another thing."])
    assert _said(run, "question").splitlines()[2:5] == ["Deviations:", "One thing.", "Another thing."]
    _planned(run, deviations=["One thing."])
    assert _said(run, "question").splitlines()[2].startswith("Deviations: One thing. The test was read 1 time")


def test_a_plan_whose_test_was_not_read_has_no_verdict(run):
    _planned(run, result=None, looks=None)
    said = _said(run, "question")
    assert "The plan has no result" in said
    assert "none was found" not in said


def test_a_plan_is_written_for_people(run):
    _planned(run)
    said = _said(run, "question")
    for words in (
        "The plan was fixed on 30 November 2026, 14:23 UTC", "Success: balanced accuracy of at least 0.80.",
        "Planned: 120 patients in the test.",
    ):  # fmt: skip
        assert words in said, words
    assert not re.search(r"planned_n|Planned n|T14:23", said)


_LIE = {"plan": {"hypothesis": "h", "data": "d", "primary_metric": "auc", "at_least": 0.9}, "sha256": "0" * 64,
        "fixed_at": "2020-01-01", "deviations": [], "result": {"says": "AUC 9.000 shown"}}  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [_LIE, {}, [], {"plan": None}, _LIE | {"plan": "x"}, _LIE | {"plan": {"primary_metric": 5}},
     _LIE | {"deviations": 5}, _LIE | {"deviations": [1, None]}, _LIE | {"looks": "x"}, _LIE | {"result": "x"}],
)  # fmt: skip
def test_a_plan_that_does_not_fit_its_hash_or_is_damaged_is_said_and_not_repeated(run, record):
    (run / "plan.json").write_text(json.dumps(record))
    question, limits = _said(run, "question"), _said(run, "limits")
    assert "plan.json that cannot be trusted" in question and "plan.json cannot be read: " in limits
    for words in ("2020-01-01", "0" * 64, "AUC 9.000", "No plan was fixed"):
        assert words not in question + limits


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seen_in_training": 4}, "4 test images were seen in training: the figures are too good."),
        ({"times_scored": 3}, "This test part was scored 3 times"),
        ({"absent_classes": ["left"]}, "The test has no image of left"),
        ({"unreadable": [{"file": "a"}]}, "1 image of the test could not be read"),
        ({"patients": 12}, "The test has 12 patients, fewer than 100."),
        ({"accuracy": 0.6, "intervals": {"accuracy": [0.4, 0.8]}}, "is not shown to be above"),
    ],
)
def test_a_limit_that_the_numbers_show_is_said(run, values, says):
    assert says not in _said(run, "limits") or "patients" in values
    _change(run / "evaluation.json", **values)
    assert says in _said(run, "limits")


def test_images_of_unknown_patients_are_a_limit(run):
    data = Dataset.open(config.data_dir() / "manifests" / "squares")
    unknown = data.manifest.assign(patient_id=["image-1", "image-2", *data.manifest["patient_id"][2:]])
    changed = Dataset(data.name, data.classes, unknown, data.root, recipe=data.recipe)
    changed.save(config.data_dir() / "manifests" / "squares")
    _change_card(fingerprint=changed.fingerprint)
    assert "The patient of 2 images is not known" in _said(run, "limits")


def _change_card(**values) -> None:
    file = config.artifacts_dir() / "squares-cnn" / "v1" / "card.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"data": card["data"] | values}))


def test_a_split_by_image_is_said_in_the_method_and_among_the_limits(run):
    assert "The split is by image" not in _said(run)
    _change_card(recipe={"by": "image"})
    assert "The split is by image" in _said(run, "limits")
    assert "split by image and not by patient" in _said(run, "split")


def test_a_notebook_that_failed_is_among_the_limits_with_its_reason(run):
    stages = (Stage("01_exploration", 1.0, "done"), Stage("04_evaluation", 2.0, "ValueError: no <such> image"))
    RunRecord.of("2026-11-30T13:00:00+00:00", {"data": "squares"}, stages).save(run)
    assert "Notebook 04_evaluation did not run to its end: ValueError: no <such> image" in _said(run, "limits")
    first = "Notebook 04_evaluation stopped: ValueError: no <such> image. Its page shows where."
    assert _said(run, "question").startswith(first), "before anything else"


def test_every_notebook_of_the_run_is_listed_though_one_asks_no_question(run):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "# 11 · Errors\n\nNo question."}]
    (run / "11_errors.ipynb").write_text(json.dumps({"cells": cells}))
    record = RunRecord.open(run)
    RunRecord.of(record.started, record.parameters, (*record.stages, Stage("11_errors", 1.0, "done"))).save(run)
    lines = _said(run, "question").splitlines()
    assert lines[-3:] == ["Exploration: What is in it?", "Evaluation: How good is it?", "Errors"]


def test_limits_have_what_notebooks_10_and_11_found(run):
    from matplotlib.figure import Figure as Drawn

    from lungkit.training import exhibits

    assert "Labels are those of the data set and were not checked" in _said(run, "limits")
    exhibits.figure(Drawn(figsize=(1, 1)), run, "10_gaps_auc", "AUC is lowest where sex is F: 0.6")
    exhibits.table(pd.DataFrame({"group": ["F", "M"], "AUC": ["0.600*", "0.9"]}), run, "10_subgroups", "Groups")
    exhibits.table(pd.DataFrame({"file": ["a.png", "b.png"]}), run, "11_suspects", "Suspects")
    limits = _said(run, "limits")
    assert "AUC is lowest where sex is F: 0.6." in limits
    assert "1 group of patients was too small for a test of every figure (notebook 10)." in limits
    assert "Of the data set's labels, 2 labels look wrong (notebook 11)" in limits
    assert "were not checked" not in limits
    exhibits.table(pd.DataFrame({"file": []}), run, "11_suspects", "Suspects")
    assert "No label looks wrong (notebook 11)" in _said(run, "limits")


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (0.5, "at most 20 % of the images; that limit was reached here, and it holds 50 % of the errors and 20 %"),
        (0.8, "at least 2 % and at most 20 % of the images; here, it holds 80 % of the errors and 20 %"),
    ],
)
def test_the_band_of_uncertainty_says_whether_its_limit_was_reached(run, held, says):
    file = config.artifacts_dir() / "squares-cnn" / "v1" / "card.json"
    card = json.loads(file.read_text())
    band = {"margin": 0.4, "low": 0.3, "high": 0.5, "errors_held": held, "reviewed": 0.2, "chosen_on": "validation",
            "criterion": "holds 75% of the errors, but 2% to 20% of the images"}  # fmt: skip
    card["operating_point"]["band"] = band
    file.write_text(json.dumps(card))
    assert f"wide enough for 75 % of the validation errors, but for {says}" in _said(run, "rule")


def test_percentages_have_one_form_and_lists_of_authors_one_full_stop(run):
    _change_training(augmentation={"translation": 0.05, "scaling": 0.1})
    assert "shifts by up to 5 % and scaling by up to 10 %" in _said(run, "model")
    assert not [one.text for one in REFERENCES.values() if ".." in one.text]


def _change_training(**values) -> None:
    file = config.artifacts_dir() / "squares-cnn" / "v1" / "card.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"training": card["training"] | values}))


def test_the_report_names_no_folder_of_this_machine(run):
    assert str(run.parent) not in _said(run)
    assert str(Path(RunRecord.open(run).parameters["data"]).parent) not in _said(run)


def test_every_reference_is_cited_and_every_citation_has_one():
    sources = "".join(file.read_text("utf-8") for file in Path(content.__file__).parent.glob("*.py"))
    for key in REFERENCES:
        assert f'Cite("{key}")' in sources or f'"{key}", _items(' in sources, key
    assert set(re.findall(r'Cite\("(\w+)"\)', sources)) <= set(REFERENCES)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(LungkitError, match=r"is not the folder of a run: it has no run\.json"):
        material.gather(tmp_path)


def test_every_shipped_card_gives_a_method_without_a_gap(run, shipped, monkeypatch):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(shipped))
    models = [folder for folder in sorted(shipped.iterdir()) if (folder / "active.json").is_file()]
    assert len(models) >= 8
    for folder in models:
        version = json.loads((folder / "active.json").read_text())["version"]
        _change(run / "evaluation.json", model=f"{folder.name}@{version}")
        said = "\n".join(_said(run, name) for name in ("preprocessing", "split", "model", "rule", "checks", "heat"))
        assert len(said) > 600, folder.name
        for gap in ("?", "None", "nan", "..", "  ", "{", "not stated"):
            assert gap not in said, f"{folder.name}: {gap!r}"
