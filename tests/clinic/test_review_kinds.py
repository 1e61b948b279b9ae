"""Reviews that give no class, and two people who review one reading: what the records keep, count and refuse."""

import csv
import io
import threading

import pytest
import sqlalchemy as sa

from lungkit.clinic.app import usage as screen
from lungkit.clinic.app.describe import review_words
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import accounts, opinions, settings
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import AnswerHidden, Case, Records
from lungkit.clinic.records.patients import NewPatient, RecordRefused
from lungkit.clinic.records.reviewing import ReviewedMeanwhile
from lungkit.clinic.records.tables import (
    CLASS,
    NOT_ASSESSABLE,
    OTHER_FINDING,
    REVIEW_KINDS,
    WRONG_IMAGE,
    Review,
)
from lungkit.models.prediction import AGE, Check
from tests.clinic.rows import count, events

WITHOUT = [(NOT_ASSESSABLE, ""), (WRONG_IMAGE, ""), (OTHER_FINDING, "a rib is broken")]


@pytest.fixture
def readers(signed_in) -> list[Records]:
    return [Records(signed_in("doctor", name)) for name in ("anna", "bert", "cleo")]


@pytest.fixture
def save(store, readers, chest_image, prediction):
    """A function: the id of a new reading by the first reader."""

    def make(seed=1, blind=False, **changes) -> str:
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, float(blind))
        patient = NewPatient(f"NUMBER-{seed}", f"Name {seed}")
        saved = readers[0].save_case(patient, chest_image(seed=seed), f"{seed:064x}", prediction(**changes))
        return saved.reading_id

    return make


def say(reader: Records, reading_id: str, kind: str, seen: str | None = None) -> None:
    """A review of a kind, or of the class with this name."""
    label, kind = ("", kind) if kind in REVIEW_KINDS else (kind, CLASS)
    reader.review(reading_id, label, kind=kind, finding="x" if kind == OTHER_FINDING else "", seen=seen)


# --- what is kept


def test_a_class_for_an_image_to_which_the_model_gave_none_neither_agrees_nor_corrects(
    readers, save, signed_in, prediction
):
    reading_id = save(checks=(Check(AGE, False, 70.0, 5.0, "the patient is 70 years old"),), decision=REVIEW)
    for label in ("Normal", "Pneumonia"):
        readers[0].review(reading_id, label)
    assert [(review.agrees, review.verdict) for review in readers[1].case(reading_id).reviews] == [
        (None, "Normal"),
        (None, "Pneumonia"),
    ]
    [row] = readers[1].worklist()
    assert review_words(row).startswith("Pneumonia (")
    figures = Administration(signed_in("admin")).usage(1)
    assert figures.reviews.empty and len(figures.kinds) == 1


@pytest.mark.parametrize(("kind", "finding"), WITHOUT)
def test_a_review_without_a_class_neither_agrees_nor_corrects(store, readers, save, kind, finding):
    reading_id = save()
    readers[0].review(reading_id, "", "Look again", kind, finding)
    [review] = readers[1].case(reading_id).reviews
    assert (review.kind, review.agrees, review.label, review.finding) == (kind, None, "", finding)
    assert (review.comment, review.own) == ("Look again", False)
    [row] = readers[1].worklist()
    assert (row.reviewed, row.review_kind, row.agrees, row.reviewer_label) == (True, kind, None, "")
    detail = events(store, "case.review")[0].detail
    assert detail == {"kind": kind, "agrees": None, "label": "", "answer_shown": True}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NOT_ASSESSABLE, "Not assessable (Test Anna)"),
        (WRONG_IMAGE, "Wrong image or region (Test Anna)"),
        (OTHER_FINDING, "Another finding (Test Anna)"),  # a list has no free text
        ("Normal", "Corrected to Normal (Test Anna)"),
    ],
)
def test_the_worklist_says_why_there_is_no_class(readers, save, kind, words):
    say(readers[0], save(), kind)
    [row] = readers[1].worklist()
    assert review_words(row) == words


@pytest.mark.parametrize(
    ("kind", "label", "finding", "words"),
    [
        (NOT_ASSESSABLE, "Normal", "", "gives no class"),
        (WRONG_IMAGE, "Normal", "", "gives no class"),
        (OTHER_FINDING, "", " \n ", "say which other finding"),
        (OTHER_FINDING, "Plague", "a mass", "not one of this reading's classes"),
        (NOT_ASSESSABLE, "", "a mass", "use the comment instead"),
        (CLASS, "Normal", "a mass", "use the comment instead"),
        (CLASS, "", "", "not one of this reading's classes"),
        ("whatever", "", "", "no kind of review"),
        (None, "", "", "no kind of review"),
        (["class"], "Normal", "", "no kind of review"),
        (OTHER_FINDING, "", "x" * 4001, "too many for the finding"),
    ],
)
def test_a_contradictory_review_is_refused_and_says_what_is_accepted(store, readers, save, kind, label, finding, words):
    with pytest.raises(RecordRefused, match=words):
        readers[0].review(save(), label, kind=kind, finding=finding)
    assert count(store, Review) == 0 and events(store, "case.review") == []


def test_a_changed_mind_is_a_new_review_and_the_latest_counts(readers, save):
    reading_id = save()
    for kind in (NOT_ASSESSABLE, "Normal", WRONG_IMAGE):
        say(readers[0], reading_id, kind)
    assert [review.says for review in readers[0].case(reading_id).reviews] == [
        "not assessable", "Normal", "wrong image or region",
    ]  # fmt: skip
    assert readers[0].worklist()[0].review_kind == WRONG_IMAGE


def test_erasing_a_patient_erases_findings(store, readers, save, signed_in):
    reading_id = save()
    readers[0].review(reading_id, "", kind=OTHER_FINDING, finding="MARKFINDING")
    patient = readers[0].case(reading_id).patient.id
    Administration(signed_in("admin")).erase_patient(patient)
    assert count(store, Review) == 0
    assert "MARKFINDING" not in str([event.detail for event in events(store)])


# --- the answer on screen before


def test_each_review_says_whether_the_answer_was_on_screen_before(readers, save):
    shown, blind = save(1), save(2, blind=True)
    say(readers[0], shown, NOT_ASSESSABLE)
    readers[1].open_case(shown, label_first=True)  # the worklist shows it all the same
    say(readers[1], shown, "Normal")
    say(readers[0], blind, NOT_ASSESSABLE)
    say(readers[0], blind, "Normal")  # a changed mind, after the answer
    say(readers[1], blind, "Normal")
    assert [review.answer_shown for review in readers[0].case(shown).reviews] == [True, True]
    assert [review.answer_shown for review in readers[0].case(blind).reviews] == [False, True, False]


def test_a_blind_reader_who_says_not_assessable_sees_the_answer_and_others_do_not(readers, save):
    reading_id = save(blind=True)
    say(readers[0], reading_id, NOT_ASSESSABLE)
    assert isinstance(readers[0].open_case(reading_id), Case)
    with pytest.raises(AnswerHidden):
        readers[1].case(reading_id)
    row = next(row for row in readers[1].worklist())
    assert (row.review_kind, review_words(row)) == (None, "Reviewed by another doctor")


def test_the_export_has_the_kind_and_whether_the_answer_was_on_screen(readers, save, signed_in):
    readers[0].review(save(1, blind=True), "", "why", OTHER_FINDING, "=a mass")
    say(readers[0], save(2), "Normal")
    save(3)
    exported = Administration(signed_in("admin")).export_csv().decode("utf-8-sig")
    one, two, three = csv.DictReader(io.StringIO(exported))
    of = ("review_kind", "agrees", "reviewer_label", "review_finding", "review_comment", "answer_shown")
    assert [one[name] for name in of] == ["another finding", "", "", "'=a mass", "why", "no"]
    assert [two[name] for name in of] == ["class", "no", "Normal", "", "", "yes"]
    assert [three[name] for name in of] == ["", "", "", "", "", ""]


# --- figures


def test_agreement_is_that_of_reviews_with_a_class_and_the_others_are_counted(readers, save, signed_in):
    said = ["Pneumonia", "Pneumonia", "Normal", NOT_ASSESSABLE, NOT_ASSESSABLE, WRONG_IMAGE, OTHER_FINDING]
    for seed, kind in enumerate(said):
        say(readers[0], save(seed, blind=seed == 3), kind)
    readers[0].review(save(99), "Pneumonia", kind=OTHER_FINDING, finding="a mass")  # names the class, too
    usage = Administration(signed_in("admin")).usage(days=2)
    assert usage.agreement[["n", "agreed"]].values.tolist() == [[3, 2]]
    assert usage.reviews.values.tolist() == [["lung", "Normal", 1, 0], ["lung", "Pneumonia", 2, 2]]
    assert usage.confusion["lung"].to_numpy().sum() == 3
    assert usage.kinds.values.tolist() == [
        ["lung", "another finding", 2, 2], ["lung", "class", 3, 3], ["lung", "not assessable", 2, 1],
        ["lung", "wrong image", 1, 1],
    ]  # fmt: skip
    shown = "".join(screen._charts(screen._in_words(usage)))
    assert "do not count as agreement: not assessable 2, wrong image or region 1, another finding 2." in shown
    assert "not assessable 1 before the answer was on screen, 1 after" in shown
    assert usage.per_day[["reviews", "no_class"]].sum().tolist() == [8, 5]


# --- second opinions


@pytest.mark.parametrize(
    ("said", "again", "differ", "counts", "unusable"),
    [
        ([NOT_ASSESSABLE], 1, 0, "", True),
        ([NOT_ASSESSABLE, WRONG_IMAGE], 0, 0, "", True),
        ([NOT_ASSESSABLE, "Normal"], 0, 1, "", False),
        (["Normal", OTHER_FINDING], 0, 1, "", False),
        (["Normal", "Normal"], 0, 0, "Normal", False),
    ],
)
def test_a_reader_without_a_class_has_a_say_in_what_is_settled(readers, save, said, again, differ, counts, unusable):
    reading_id = save(blind=True)
    for reader, kind in zip(readers, said, strict=False):
        say(reader, reading_id, kind)
    third = readers[2].access
    assert (len(opinions.to_read_again(third)), len(opinions.readers_differ(third))) == (again, differ)
    standing = opinions.standing(readers[0].case(reading_id).reviews)
    assert (standing.label, standing.unusable) == (counts, unusable)


@pytest.mark.parametrize(("third", "counts", "unusable"), [("Normal", "Normal", False), (WRONG_IMAGE, "", True)])
def test_a_third_reader_settles_whether_an_image_is_usable(readers, save, third, counts, unusable):
    reading_id = save()
    for reader, kind in zip(readers, (NOT_ASSESSABLE, "Normal", third), strict=True):
        say(reader, reading_id, kind)
    standing = opinions.standing(readers[0].case(reading_id).reviews)
    assert (standing.label, standing.unusable) == (counts, unusable)
    assert next(iter(standing.said.values())) == "not assessable"


# --- two people at one reading


def test_where_another_review_came_between_nothing_is_saved_and_it_is_named(store, readers, save):
    anna, bert, _ = readers
    reading_id = save()
    say(anna, reading_id, "Normal", seen="")
    with pytest.raises(ReviewedMeanwhile) as told:
        say(bert, reading_id, "Pneumonia", seen="")
    assert (told.value.review.reviewer, told.value.review.verdict) == ("Test Anna", "corrected to Normal")
    assert count(store, Review) == 1 and len(events(store, "case.review")) == 1
    say(bert, reading_id, "Pneumonia", seen=told.value.latest)
    assert [review.label for review in anna.case(reading_id).reviews] == ["Normal", "Pneumonia"]


def test_a_review_that_came_after_the_news_is_news_again(readers, save):
    anna, bert, cleo = readers
    reading_id = save()
    say(anna, reading_id, "Normal", seen="")
    with pytest.raises(ReviewedMeanwhile) as told:
        say(bert, reading_id, "Pneumonia", seen="")
    say(cleo, reading_id, NOT_ASSESSABLE)
    with pytest.raises(ReviewedMeanwhile) as again:
        say(bert, reading_id, "Pneumonia", seen=told.value.latest)
    assert (again.value.review.reviewer, again.value.review.verdict) == ("Test Cleo", "not assessable")


def test_ones_own_review_in_another_window_is_no_news(readers, save):
    reading_id = save()
    for label in ("Normal", "Pneumonia"):
        say(readers[0], reading_id, label, seen="")
    assert len(readers[0].case(reading_id).reviews) == 2


@pytest.mark.parametrize("seen", ["", "x", ["x"], 3])
def test_a_page_that_names_a_review_that_is_none_has_seen_none(readers, save, seen):
    reading_id = save()
    say(readers[0], reading_id, "Normal")
    with pytest.raises(ReviewedMeanwhile):
        say(readers[1], reading_id, "Normal", seen=seen)


def test_a_blind_reader_is_told_that_someone_has_read_it_and_not_what_was_said(readers, save):
    anna, bert, _ = readers
    reading_id = save(blind=True)
    before = bert.open_case(reading_id)
    say(anna, reading_id, "Normal")
    with pytest.raises(ReviewedMeanwhile) as told:
        say(bert, reading_id, "Pneumonia", seen=before.latest_review)
    assert (before.latest_review, told.value.review) == ("", None)
    assert not [word for word in ("Normal", "Pneumonia", "Anna") if word in repr(vars(told.value)) + str(told.value)]
    assert bert.open_case(reading_id).latest_review == told.value.latest
    say(bert, reading_id, "Pneumonia", seen=told.value.latest)
    assert [review.answer_shown for review in bert.case(reading_id).reviews] == [False, False]


def test_of_two_at_the_same_moment_one_is_saved_and_the_other_is_told(store, readers, save):
    reading_id, start, ended = save(), threading.Barrier(2), []

    def review(reader: Records) -> None:
        start.wait()
        try:
            say(reader, reading_id, "Normal", seen="")
            ended.append("saved")
        except ReviewedMeanwhile:
            ended.append("told")

    threads = [threading.Thread(target=review, args=[reader]) for reader in readers[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["saved", "told"]
    assert count(store, Review) == 1


def test_only_doctors_review(signed_in, readers, save):
    with pytest.raises(accounts.Forbidden):
        say(Records(signed_in("admin")), save(), NOT_ASSESSABLE)


def test_the_database_itself_refuses_another_kind(store, readers, save):
    say(readers[0], save(), "Normal")
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        db.execute(sa.update(Review).values(kind="whatever"))
