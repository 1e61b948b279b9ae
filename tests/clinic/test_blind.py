"""Blind reading in the records: the answer is withheld from each reader until that reader's label, on every way."""

import dataclasses
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from lungkit.clinic.records import accounts, blind, keys, settings
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import AnswerHidden, BlindCase, Case, Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.patients import NewPatient, RecordRefused
from lungkit.clinic.records.tables import BlindReading, Review, now
from tests.clinic.rows import count, events

SHA = "ab" * 32
PROBABILITY = 0.8137  # of no other number here


@pytest.fixture
def share(store):
    """A function: sets the share of uploads that are read blind."""

    def set_share(value: float) -> None:
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, value)

    return set_share


@pytest.fixture
def anna(signed_in) -> Records:
    return Records(signed_in("doctor", "anna"))


@pytest.fixture
def bert(signed_in) -> Records:
    return Records(signed_in("doctor", "bert"))


@pytest.fixture
def save(anna, chest_image, prediction):
    """A function: the id of a new reading; the same seed is the same file."""

    def make(seed=1, by=None, patient=None, **changes) -> str:
        answer = prediction(**{"probability": PROBABILITY} | changes)
        whose = patient or NewPatient(f"NUMBER-{seed}", f"Name {seed}")
        image, digest = chest_image(seed=seed), f"{seed:064x}"
        return (by or anna).save_case(whose, image, digest, answer, confirmed=[SAME_IMAGE]).reading_id

    return make


@pytest.fixture
def program(store) -> Records:
    with store.write() as db:
        key = keys.add_key(db, "ris", ["predict", "read"])
    return Records(KeyAccess(store, key, "predict", "read"))


def row_of(records: Records, reading_id: str):
    [row] = [row for row in records.worklist() if row.reading_id == reading_id]
    return row


def reviews_of(store) -> list[tuple[str, bool, bool]]:
    with store.read() as db:
        return list(map(tuple, db.execute(sa.select(Review.label, Review.agrees, Review.answer_shown)
                                          .order_by(Review.at))))  # fmt: skip


# --- which are chosen


def test_by_default_no_upload_is_read_blind(store, anna, save):
    assert isinstance(anna.open_case(save()), Case)
    assert count(store, BlindReading) == 0


def test_chance_chooses_the_share_that_was_set(store, share, save, monkeypatch):
    drawn = iter((0.0, 0.2999, 0.3, 0.9))
    monkeypatch.setattr(blind, "_chance", type("Chance", (), {"random": staticmethod(lambda: next(drawn))}))
    share(0.3)
    ids = [save(seed) for seed in range(4)]
    with store.read() as db:
        assert set(db.scalars(sa.select(BlindReading.reading_id))) == set(ids[:2])
    assert ["blind" in event.detail for event in events(store, "case.save")] == [True, True, False, False]


def test_with_all_uploads_none_is_left_out(store, share, save):
    share(1.0)
    for seed in range(20):
        save(seed)
    assert count(store, BlindReading) == 20


def test_a_program_gets_its_answer_and_its_images_are_not_chosen(store, share, save, program, anna):
    share(1.0)
    reading_id = save(by=program)
    assert count(store, BlindReading) == 0
    assert program.case(reading_id).label == anna.case(reading_id).label


def test_a_program_sees_its_own_reading_also_of_a_blind_file(share, save, program, anna):
    share(1.0)
    save(3)
    again = save(3, by=program, patient=NewPatient("OTHER", "Other"))
    assert program.case(again).probabilities["Pneumonia"] == PROBABILITY
    with pytest.raises(AnswerHidden):
        anna.case(again)


# --- what is withheld, from whom, and until when


def test_the_answer_is_withheld_on_every_way_until_the_label_is_given(share, save, anna):
    share(1.0)
    reading_id = save()
    for action in (anna.case, anna.series):
        with pytest.raises(AnswerHidden, match="give your label"):
            action(reading_id)
    case = anna.open_case(reading_id)
    assert isinstance(case, BlindCase)
    seen = repr([case, vars(case), row_of(anna, reading_id), anna.patient(case.patient.id)])
    assert "0.81" not in seen and "0.1863" not in seen
    names = {field.name for field in dataclasses.fields(case)}
    assert not names & {"probabilities", "label", "decision", "checks", "heat", "reviews"}
    anna.review(reading_id, "Normal")
    shown = anna.open_case(reading_id)
    assert isinstance(shown, Case) and shown.probabilities["Pneumonia"] == PROBABILITY
    assert row_of(anna, reading_id).probability == PROBABILITY and anna.series(reading_id) is None


def test_each_reader_gives_a_label_before_anything_is_shown(share, save, anna, bert):
    share(1.0)
    reading_id = save()
    anna.review(reading_id, "Normal", "on the left")
    row = row_of(bert, reading_id)
    assert (row.label, row.decision, row.probability, row.flagged) == (None, None, None, False)
    assert (row.reviewer, row.reviewer_label, row.agrees, row.reviewed, row.hidden) == (None, None, None, True, True)
    seen = repr([vars(bert.open_case(reading_id)), bert.patient(row.patient_id)])
    assert "Test Anna" not in seen.replace("uploaded_by': 'Test Anna'", "").replace("read_by='Test Anna'", "")
    assert "on the left" not in seen
    bert.review(reading_id, "Pneumonia")
    assert [review.label for review in bert.case(reading_id).reviews] == ["Normal", "Pneumonia"]


def test_who_saved_it_is_told_that_a_label_comes_first(share, anna, chest_image, prediction):
    share(1.0)
    assert anna.save_case(NewPatient("N", "Name"), chest_image(), SHA, prediction()).hidden
    share(0.0)
    assert not anna.save_case(NewPatient("M", "Name"), chest_image(seed=2), "cd" * 32, prediction()).hidden


def test_an_administrator_sees_the_answer_and_is_no_reader(share, save, anna, signed_in):
    share(1.0)
    reading_id = save()
    patient_id = anna.open_case(reading_id).patient.id
    admin = signed_in("admin", "chief")
    [row] = Administration(admin).history(patient_id).cases
    assert row.probability == PROBABILITY and not row.hidden
    with pytest.raises(accounts.Forbidden):
        Records(admin).open_case(reading_id)


def test_the_opening_of_a_blind_image_is_on_the_trail(store, share, save, anna):
    share(1.0)
    reading_id = save()
    anna.open_case(reading_id)
    anna.review(reading_id, "Normal")
    anna.open_case(reading_id)
    opened = [event.detail.get("blind", False) for event in events(store, "case.open")]
    assert opened == [True, False]
    assert events(store, "case.review")[0].detail["answer_shown"] is False


# --- the same file again


def test_another_model_on_a_blind_file_is_blind_too_whatever_the_share_and_the_patient(share, save, anna, bert):
    share(1.0)
    first = save(1)
    share(0.0)
    second = save(1, model="other", patient=anna.open_case(first).patient.id)
    elsewhere = save(1, by=bert, patient=NewPatient("WRONG", "Wrong Patient"))
    for reading_id in (first, second, elsewhere):
        for reader in (anna, bert):
            with pytest.raises(AnswerHidden):
                reader.case(reading_id)
    anna.review(first, "Normal")  # one label for the image is enough
    assert anna.case(second).model == "other"
    with pytest.raises(AnswerHidden):
        bert.case(first)


def test_a_file_whose_answer_could_be_seen_before_is_not_chosen(store, share, save, anna):
    first = save(1)
    share(1.0)
    save(1, model="other", patient=anna.case(first).patient.id)
    assert count(store, BlindReading) == 0


# --- what the records note of a label


def test_the_first_label_counts_as_blind_and_later_ones_do_not(store, share, save, anna, bert):
    share(1.0)
    reading_id = save()
    anna.review(reading_id, "Normal")
    anna.review(reading_id, "Pneumonia")
    bert.review(reading_id, "Pneumonia")
    assert reviews_of(store) == [("Normal", False, False), ("Pneumonia", True, True), ("Pneumonia", True, False)]


def test_a_label_is_not_blind_where_the_worklist_shows_the_answer(store, save, bert):
    reading_id = save()
    bert.open_case(reading_id, label_first=True)
    bert.review(reading_id, "Normal")
    assert reviews_of(store) == [("Normal", False, True)]


def test_a_label_for_another_reading_of_the_image_is_not_blind(store, share, save, anna):
    share(1.0)
    first = save(1)
    second = save(1, model="other", patient=anna.open_case(first).patient.id)
    anna.review(first, "Normal")
    anna.review(second, "Normal")
    assert [shown for _, _, shown in reviews_of(store)] == [False, True]


def test_a_label_given_before_the_answer_is_compared_by_the_records(store, share, save, anna):
    share(1.0)
    anna.review(save(), "Normal")
    assert reviews_of(store) == [("Normal", False, False)]


def test_a_label_that_is_no_class_does_not_lift_the_veil(share, save, anna):
    share(1.0)
    reading_id = save()
    with pytest.raises(RecordRefused, match="not one of this reading's classes"):
        anna.review(reading_id, "Plague")
    with pytest.raises(AnswerHidden):
        anna.case(reading_id)


def test_a_reader_who_was_an_administrator_meanwhile_could_have_seen_it(store, share, save, anna, signed_in, bert):
    share(1.0)
    early, reading_id = save(1), save(2)
    signed_in("admin", "chief")
    with store.write() as db:
        db.execute(sa.update(BlindReading).where(BlindReading.reading_id == early)
                   .values(drawn_at=now() - timedelta(days=1)))  # fmt: skip
        accounts.set_role(db, "bert", "admin")
        accounts.set_role(db, "bert", "doctor")
        db.execute(sa.update(BlindReading).where(BlindReading.reading_id == reading_id)
                   .values(drawn_at=now() + timedelta(seconds=1)))  # fmt: skip
    bert.review(early, "Normal")
    bert.review(reading_id, "Normal")
    assert [shown for _, _, shown in reviews_of(store)] == [True, False]


# --- CT series


@pytest.fixture
def stack(share, anna, ct_series, series_said) -> str:
    share(1.0)
    # The middle slice is the fifth of eight; the reading rests on the third most.
    said = dataclasses.replace(series_said(ct_series), carrying=(2,))
    return anna.save_series(NewPatient("S-1", "Series"), ct_series, said).reading_id


def test_of_a_blind_series_nothing_shows_which_slices_count(stack, anna, ct_series):
    case = anna.open_case(stack)
    assert isinstance(case, BlindCase) and case.stack is not None
    assert {field.name for field in dataclasses.fields(case.stack)} == {
        "reading_id", "study_id", "slices", "spacing", "positions", "orientation", "readable", "findings"
    }  # fmt: skip
    assert case.stack.slices == 8 and "note" not in case.tags
    np.testing.assert_array_equal(case.pixels, ct_series.slice(4).pixels)
    [row] = anna.patient(case.patient.id).cases
    assert (row.slices, row.affected) == (8, None)
    with pytest.raises(AnswerHidden):
        anna.series(stack)


def test_the_slices_of_a_blind_series_can_be_seen_and_its_thumbnail_is_the_middle_one(stack, anna):
    case = anna.open_case(stack)
    assert anna.series_slices(stack, [0])[0].startswith(b"\x89PNG")
    [before] = anna.patient(case.patient.id).cases
    anna.review(stack, "Pneumonia")
    [after] = anna.patient(case.patient.id).cases
    assert before.thumbnail != after.thumbnail  # then it is the slice that counts most
    assert anna.series(stack).carrying == (2,) and after.affected is not None
