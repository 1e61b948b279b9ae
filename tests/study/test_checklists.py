"""Checklists and datasheet: the published items, answered where the run knows, and left to the author elsewhere."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lungkit.study import answers, checklists, content, datasheet, material, report
from lungkit.study.checklists import CLAIM, MISSING, REPORTED, TRIPOD_AI

ROOT = Path(__file__).parents[2]


def test_tripod_ai_has_the_27_items_in_52_parts_of_its_publication():
    numbers = [item.number for item in TRIPOD_AI.items]
    assert len(numbers) == len(set(numbers)) == 52
    assert sorted({int(re.match(r"\d+", number)[0]) for number in numbers}) == list(range(1, 28))
    assert [number for number in numbers if number.startswith("12")] == [f"12{letter}" for letter in "abcdefg"]


def test_claim_has_the_44_items_of_its_update():
    assert [item.number for item in CLAIM.items] == [str(number) for number in range(1, 45)]


@pytest.mark.parametrize("checklist", checklists.CHECKLISTS, ids=lambda one: one.name)
def test_each_answer_that_an_item_names_is_one_that_a_run_can_give(checklist):
    source = Path(answers.__file__).read_text("utf-8")
    for item in checklist.items:
        assert item.asks.endswith("?") or item.asks.endswith(")?")
        assert not item.answer or f'"{item.answer}"' in source, item


def _known(run) -> dict[str, str]:
    known = material.gather(run)
    sections = content.body(known)
    found = answers.answers(known, sections)
    document = content.document(known, sections, tuple(checklists.appendix(each, found) for each in (TRIPOD_AI, CLAIM)))
    return {name: document.plain(text) for name, text in found.items()}


def test_answers_say_where_and_give_the_value(run):
    known = _known(run)
    assert re.match(r"Section 4\.1, Table \d+: AUC 0\.\d{3} \(0\.\d{3}–\d\.\d{3}\), Accuracy", known["performance"])
    assert known["disjoint"] == "Section 3.2: The parts share no patients."
    assert known["ensemble"] == "Section 3.3: No ensemble: one network."
    assert known["external"].startswith("Section 5: None.")
    assert known["predictors"] == "The pixels of one image; no other variable."


def test_without_a_test_nothing_is_claimed_of_performance(run):
    assert {"performance", "diagnostic", "failures", "internal"} <= set(_known(run))
    (run / "evaluation.json").unlink()
    assert {"performance", "diagnostic", "failures", "internal", "fairness"} & set(_known(run)) == set()


def test_the_csv_has_every_item_and_leaves_to_the_author_what_no_run_can_know(run):
    report.write(run, ["html"])
    table = pd.read_csv(run / "report" / "tripod-ai.csv", dtype=str)
    assert list(table["item"]) == [item.number for item in TRIPOD_AI.items]
    status = table.set_index("item")["status"]
    for number in ("3c", "5b", "6c", "17", "18a", "18b", "18d", "19", "25"):
        assert status[number] == MISSING, number
    for number in ("7", "12a", "12c", "22", "23a", "26"):
        assert status[number] == REPORTED, number
    assert (table["answer"][table["status"] == MISSING] == content.AUTHOR).all()


def test_the_datasheet_counts_the_data_and_leaves_consent_to_the_author(run):
    report.write(run, ["html"])
    table = pd.read_csv(run / "report" / "datasheet.csv").set_index("question")["answer"]
    assert table["What is an instance, and how many are there?"].endswith("of 60 patients.")
    assert "left 60, right 60" in table["Is there a label?"]
    assert table["From whom, how were they sampled, and did they consent?"] == content.AUTHOR
    assert (
        table["Are there errors, noise or duplicates?"]
        == "The audit found: class imbalance: 3 images of the smallest class."
    )
    known = material.gather(run)
    assert {group for group, _, _ in datasheet.answers(known)} == {
        "Motivation", "Composition", "Collection", "Preparation", "Uses", "Distribution", "Maintenance",
    }  # fmt: skip


def _exhibits(run, **kinds) -> None:
    from matplotlib.figure import Figure

    from lungkit.training import exhibits

    for name in kinds.get("figures", ()):
        exhibits.figure(Figure(figsize=(1, 1)), run, name, name)
    for name in kinds.get("tables", ()):
        exhibits.table(pd.DataFrame({"a": [1]}), run, name, name)


def test_usefulness_and_fairness_name_their_own_exhibits_in_the_order_of_their_numbers(run):
    assert "Clinical usefulness, the author must state." in _known(run)["measures"]
    _exhibits(run, figures=["10_gaps_recall", "10_gaps_auc", "10_decision_curve", "10_predictive_values"],
              tables=["10_attributes", "10_subgroups", "10_net_benefit"])  # fmt: skip
    known = _known(run)
    assert "Clinical usefulness: net benefit and predictive values." in known["measures"]
    assert re.search(r"Table \d+, Table \d+, Figure 2, Figure 6, Figure 7: Discrimination", known["measures"])
    assert re.fullmatch(r"Table \d+, Figure 4, Figure 5: Figures of subgroups\.", known["fairness"])


def test_what_notebooks_10_and_11_show_is_named_without_a_test_too(run):
    (run / "evaluation.json").unlink()
    _exhibits(run, figures=["10_gaps_auc"], tables=["10_net_benefit"])
    known = _known(run)
    assert "Figures of subgroups." in known["fairness"]
    assert known["measures"].endswith("Clinical usefulness: net benefit and predictive values.")


def test_a_limit_that_left_nothing_out_took_all_images(run):
    from lungkit.data.notes import Note

    data = material.gather(run).data
    assert datasheet.taken(data) == ""
    data.recipe["limit"] = 6000
    assert datasheet.taken(data) == "all 120 images were taken"
    beyond = replace(data, notes=(Note(datasheet.BEYOND, "info", 5, "", ()),))
    assert datasheet.taken(beyond) == "at most 6,000 images were taken, as whole patients"


def test_the_note_on_images_beyond_a_limit_is_that_of_the_data_sets_reader(squares):
    from lungkit.data import sources

    assert [note.finding for note in sources.choose(squares, None, 20, 7).notes] == [datasheet.BEYOND]


def test_the_synthetic_phantom_needs_no_consent(run):
    known = material.gather(run)
    object.__setattr__(known.data, "synthetic", True)
    rows = {asks: answer for _, asks, answer in datasheet.answers(known)}
    assert rows["Did an ethics committee review it?"] == "Not applicable: no person is in it."


def test_croissant_describes_the_table_that_lies_next_to_it(run):
    import json

    from lungkit.files import sha256

    report.write(run, ["html"])
    described = json.loads((run / "report" / "croissant.json").read_text())
    (file,) = described["distribution"]
    table = run / "report" / file["contentUrl"]
    assert file["sha256"] == sha256(table)
    columns = [field["source"]["extract"]["column"] for field in described["recordSet"][0]["field"]]
    assert columns == list(pd.read_csv(table).columns)
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.0"
