"""The worklist's order and its way from one unread reading to the next, in words for people."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from lungkit.clinic.app import shell
from lungkit.clinic.app.describe import most_urgent_first, urgency
from lungkit.clinic.predictor import REVIEW, ModelPool
from lungkit.clinic.records.cases import CaseRow
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import Job, Reading, User
from tests.clinic.rows import events
from tests.clinic.test_app_doctor import button, field, table, text

AT = datetime(2026, 3, 9, 14, 5, tzinfo=UTC)
ORDER, NEXT = "Order", "Next unread"


@pytest.fixture
def shown(store, access):
    """The page of a doctor who has just signed in."""
    return shell.page_of(lambda: store, access.token, ModelPool())


def row(name, decision="Pneumonia", probability=0.95, **changes) -> CaseRow:
    values = {
        "reading_id": name, "patient_id": "77", "number": name, "name": "A", "kind": "CT", "model": "m",
        "version": "v1", "label": decision, "decision": decision, "probability": probability, "read_at": AT,
        "read_by": "Dr. A", "flagged": False, "reviewed": False, "reviewer": None, "reviewer_label": None,
        "agrees": None,
    }  # fmt: skip
    return CaseRow(**values | changes)


def test_what_is_urgent_comes_first_and_says_why():
    rows = [
        row("reviewed", reviewed=True), row("normal", "NORMAL"), row("replaced", superseded=True),
        row("unsure", REVIEW, 0.5), row("less sure", probability=0.6), row("sure"), row("no tumour", "notumor"),
        row("failed", REVIEW, flagged=True), row("blind", None, None, hidden=True), row("sent", "NORMAL", urgent=True),
    ]  # fmt: skip
    assert [(one.reading_id, urgency(one)[1]) for one in most_urgent_first(rows)] == [
        ("sent", "Sent as urgent"), ("sure", "Finding"), ("less sure", "Finding"), ("unsure", "Model is unsure"),
        ("failed", "Image check failed"), ("blind", "Your label first"), ("normal", "Nothing found"),
        ("no tumour", "Nothing found"), ("reviewed", "Reviewed"), ("replaced", "Replaced"),
    ]  # fmt: skip


def test_a_withheld_answer_does_not_show_in_the_order():
    places = [
        [one.reading_id for one in most_urgent_first([row("a"), row("blind", None, None, hidden=True), row("n", seen)])]
        for seen in ("NORMAL", "Normal")
    ]
    assert places == [["a", "blind", "n"]] * 2


def test_a_programs_urgent_job_makes_its_reading_urgent(store, records, chest_image, prediction):
    reading_id = records.save_case(NewPatient("U-1", "Una"), chest_image(), "ab" * 32, prediction()).reading_id
    records.save_case(NewPatient("U-2", "Ulf"), chest_image(seed=2), "cd" * 32, prediction())
    with store.write() as db:
        user_id = db.scalar(sa.select(User.id).limit(1))
        db.add(Job(id=reading_id, user_id=user_id, model="m", priority="urgent", state="done", payload_sha256="0" * 64,
                   due_at=AT))  # fmt: skip
    assert {one.number: one.urgent for one in records.worklist()} == {"U-1": True, "U-2": False}


@pytest.fixture
def listed(shown, store, records, chest_image, prediction):
    """The worklist of three readings: a Normal of today, a Pneumonia of yesterday, a Pneumonia of last week."""
    for days, (number, label) in {7: ("T-1", "Pneumonia"), 1: ("T-2", "Pneumonia"), 0: ("T-3", "Normal")}.items():
        saved = records.save_case(
            NewPatient(number, "Demo"), chest_image(seed=days), f"{days}a" * 32, prediction(label)
        )
        with store.write() as db:
            db.get(Reading, saved.reading_id).read_at -= timedelta(days=days)
    button(shown.header, "Worklist").click()
    return shown


def order(page) -> list[str]:
    return list(table(page).df["Patient"])


def test_the_worklist_is_in_order_of_urgency_or_of_time(listed):
    assert order(listed) == ["T-2", "T-1", "T-3"]
    assert "3 of 3 readings, 3 to review" in text(listed.screen)
    field(listed.screen, ORDER).value = "Newest"
    assert order(listed) == ["T-3", "T-2", "T-1"]
    button(listed.screen, "Clear filters").click()
    assert order(listed) == ["T-3", "T-2", "T-1"], "the order is no filter"


def test_next_unread_goes_down_the_list_as_it_is_ordered_and_filtered(listed):
    field(listed.screen, "Finding").value = "Pneumonia"
    button(listed.screen, NEXT).click()
    assert "T-2" in text(listed.screen) and "Finding of the model" in text(listed.screen)
    button(listed.screen, "Agree: Pneumonia").click()
    button(listed.screen, NEXT).click()
    assert "T-1" in text(listed.screen)
    button(listed.screen, NEXT).click()
    assert "<h1>Worklist" in text(listed.screen) and "No other reading of this list waits" in text(listed.message)
    button(listed.screen, "Clear filters").click()
    assert order(listed) == ["T-1", "T-3", "T-2"]


def test_a_second_click_that_was_on_its_way_does_not_draw_the_reading_again(listed, store):
    table(listed).set_state({"selected_rows": [0]})
    opener = button(listed.screen, "Open case")
    opener.click()
    drawn = listed.screen.children[0].children
    opener.click()
    assert listed.screen.children[0].children == drawn
    assert len(events(store, "case.open")) == 1


def test_next_unread_begins_after_the_selected_row_and_goes_round(listed):
    table(listed).set_state({"selected_rows": [2]})
    button(listed.screen, NEXT).click()
    assert "T-2" in text(listed.screen)
    button(listed.screen, "← Back to worklist").click()
    table(listed).set_state({"selected_rows": [0]})
    button(listed.screen, NEXT).click()
    assert "T-1" in text(listed.screen)


def test_next_unread_is_there_after_back_and_after_a_correction(listed):
    button(listed.screen, NEXT).click()
    first = listed.browser.place["address"]
    assert "T-2" in text(listed.screen)
    button(listed.screen, NEXT).click()
    assert "T-1" in text(listed.screen)
    listed.browser._handle_custom_msg({"address": first, "question": 1}, [])
    assert "T-2" in text(listed.screen)
    button(listed.screen, "Wrong patient or image?").click()
    field(listed.screen, "Reason").value = "by mistake"
    button(listed.screen, "Withdraw this image").click()
    button(listed.screen, "Withdraw the image").click()
    button(listed.screen, NEXT).click()
    assert "T-1" in text(listed.screen)


def test_next_unread_says_so_where_all_is_reviewed(listed, records):
    for one in records.worklist():
        records.review(one.reading_id, one.label)
    button(listed.screen, NEXT).click()
    assert "No reading of this list waits for a review" in text(listed.message)


def test_a_finding_has_one_entry_whatever_the_models_call_it(shown, records, chest_image, prediction):
    for number, label in enumerate(("NORMAL", "normal", "Normal")):
        answer = prediction("Normal")
        answer.__dict__["classes"] = tuple(label if name == "Normal" else name for name in answer.classes)
        answer.__dict__.update(label=label, decision=label)
        records.save_case(NewPatient(f"C-{number}", "Demo"), chest_image(seed=number), f"{number}c" * 32, answer)
    button(shown.header, "Worklist").click()
    for name in ("Finding", "Decision"):
        assert [words for words, _ in field(shown.screen, name).options] == ["All", "Normal"]
        field(shown.screen, name).value = "Normal"
        assert len(order(shown)) == 3
    assert set(table(shown).df["Decision"]) == {"Normal"}
