"""Review forms on screen: why no class fits, what another doctor said meanwhile, and clicks that come twice."""

import ipywidgets as widgets
import pytest

from lungkit.clinic.app import shell
from lungkit.clinic.records import settings
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE, Review
from tests.clinic.rows import count
from tests.clinic.test_app_doctor import SaysTheSame, button, everything, field, on_screen, text


@pytest.fixture
def store(sqlite_store):
    """The screens do not know which database there is."""
    return sqlite_store


@pytest.fixture(autouse=True)
def no_widgets_of_earlier_tests():
    widgets.Widget.close_all()


@pytest.fixture
def anna(signed_in) -> Records:
    return Records(signed_in("doctor", "anna"))


@pytest.fixture
def bert(signed_in) -> Records:
    return Records(signed_in("doctor", "bert"))


@pytest.fixture
def opened(store, anna, chest_image, prediction):
    """A function: Anna's page with one case open, and its reading's id; blind: it waits for her label."""

    def open_case(blind=False, before=lambda reading_id: None):
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, float(blind))
        saved = anna.save_case(NewPatient("T-1", "Test Patient"), chest_image(), "ab" * 32, prediction())
        before(saved.reading_id)
        page = shell.page_of(lambda: store, anna.access.token, SaysTheSame(prediction()))
        page.go("reading", reading_id=saved.reading_id)
        return page, saved.reading_id

    return open_case


def has(page, words: str) -> bool:
    """Whether a button that starts so is shown."""
    return any(getattr(one, "description", "").startswith(words) for one in on_screen(page.screen))


def says(page, kind: str, finding: str = "") -> None:
    field(page.screen, "If no class fits").value = kind
    if finding:
        field(page.screen, "Which finding?").value = finding


# --- why no class fits


@pytest.mark.parametrize(
    ("kind", "finding", "words"),
    [
        (NOT_ASSESSABLE, "", "</b> not assessable <time>"),
        (WRONG_IMAGE, "", "</b> wrong image or region <time>"),
        (OTHER_FINDING, "a <b>rib</b>", "</b> another finding: a &lt;b&gt;rib&lt;/b&gt; <time>"),
    ],
)
def test_a_doctor_says_why_no_class_fits(opened, anna, kind, finding, words):
    page, reading_id = opened()
    says(page, kind, finding)
    button(page.screen, "Save without a class").click()
    [review] = anna.case(reading_id).reviews
    assert (review.kind, review.finding, review.agrees) == (kind, finding, None)
    assert words in text(page.screen) and "Your review is saved: " in page.message.value
    assert field(page.screen, "If no class fits").value is None


def test_the_field_for_a_finding_is_shown_for_another_finding_alone(opened):
    page, _ = opened()
    shown = []
    for kind in (None, NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE):
        field(page.screen, "If no class fits").value = kind
        shown.append(has(page, "Which finding?"))
    assert shown == [False, False, True, False]


def test_another_finding_without_words_and_no_choice_at_all_save_nothing(store, opened):
    page, _ = opened()
    button(page.screen, "Save without a class").click()
    assert "Choose the class that you see first, or why no class fits" in page.message.value
    says(page, OTHER_FINDING)
    button(page.screen, "Save without a class").click()
    assert "Say which other finding you see" in page.message.value
    assert count(store, Review) == 0


@pytest.mark.parametrize("save", ["Agree: Pneumonia", "Save correction", "Save without a class"])
def test_words_of_another_finding_are_saved_or_cleared_by_the_reader_and_not_dropped(store, opened, anna, save):
    page, reading_id = opened()
    says(page, OTHER_FINDING, "a rib")
    field(page.screen, "Correct to").value = "Normal"
    if save == "Save without a class":
        says(page, NOT_ASSESSABLE)
    button(page.screen, save).click()
    assert "You also chose “another finding”: save it, or clear it. Nothing was saved." in page.message.value
    assert count(store, Review) == 0 and field(page.screen, "Which finding?").value == "a rib"
    says(page, OTHER_FINDING)
    button(page.screen, "Save without a class").click()
    assert [review.finding for review in anna.case(reading_id).reviews] == ["a rib"]


def test_a_reason_that_is_chosen_is_not_dropped_for_a_class(store, opened):
    page, _ = opened()
    assert not has(page, "Clear this choice")
    says(page, NOT_ASSESSABLE)
    button(page.screen, "Agree: Pneumonia").click()
    assert "You also chose “not assessable”" in page.message.value and count(store, Review) == 0
    button(page.screen, "Clear this choice").click()
    button(page.screen, "Agree: Pneumonia").click()
    assert count(store, Review) == 1 and not has(page, "Clear this choice")


def test_cleared_words_of_another_finding_are_gone_from_the_page(opened, anna):
    page, reading_id = opened()
    says(page, OTHER_FINDING, "a rib")
    button(page.screen, "Clear this choice").click()
    assert not has(page, "Which finding?")
    button(page.screen, "Agree: Pneumonia").click()
    assert [(review.label, review.finding) for review in anna.case(reading_id).reviews] == [("Pneumonia", "")]


# --- clicks that come twice


def test_a_click_that_comes_twice_saves_once(store, opened):
    page, _ = opened()
    field(page.screen, "Comment (kept with your review)").value = "clear"
    agree = button(page.screen, "Agree: Pneumonia")
    agree.click()
    agree.click()
    assert count(store, Review) == 1 and "Your review is saved: Pneumonia." in page.message.value
    says(page, NOT_ASSESSABLE)
    without = button(page.screen, "Save without a class")
    without.click()
    without.click()
    assert count(store, Review) == 2 and "Your review is saved: not assessable." in page.message.value
    field(page.screen, "Correct to").value = "Normal"
    correct = button(page.screen, "Save correction")
    correct.click()
    correct.click()
    assert count(store, Review) == 3


def test_the_same_again_with_a_new_comment_is_a_new_review(store, opened):
    page, _ = opened()
    button(page.screen, "Agree: Pneumonia").click()
    field(page.screen, "Comment (kept with your review)").value = "on the left"
    button(page.screen, "Agree: Pneumonia").click()
    assert count(store, Review) == 2


# --- two people


def test_a_review_of_another_doctor_is_told_before_the_own_one_is_given(opened, bert):
    page, _ = opened(before=lambda reading_id: bert.review(reading_id, "Normal"))
    words = text(page.screen)
    assert "Test Bert reviewed this on " in words and "(corrected to Normal). The latest review counts." in words
    assert words.index("Test Bert reviewed this") < words.index("Comment (kept") < words.index("Agree: Pneumonia")
    button(page.screen, "Agree: Pneumonia").click()
    assert "Test Bert reviewed this" not in text(page.screen)  # the latest one is the own one now


def test_what_came_meanwhile_is_told_and_saved_after_a_confirmation_alone(store, opened, anna, bert):
    page, reading_id = opened()
    bert.review(reading_id, "Normal")
    agree = button(page.screen, "Agree: Pneumonia")
    agree.click()
    agree.click()  # the second half of a double click does not confirm
    words = text(page.screen)
    assert "While you were reading, Test Bert reviewed this (corrected to Normal, " in words
    assert "). Yours is not saved yet. Save yours (Pneumonia) too?" in words
    assert count(store, Review) == 1 and "saved" not in page.message.value
    button(page.screen, "Save mine too").click()
    assert [review.label for review in anna.case(reading_id).reviews] == ["Normal", "Pneumonia"]
    assert not has(page, "Save mine too") and "Your review is saved: Pneumonia." in page.message.value


def test_who_does_not_confirm_saves_nothing_and_sees_the_others_review(store, opened, bert):
    page, reading_id = opened()
    bert.review(reading_id, "", kind=NOT_ASSESSABLE)
    button(page.screen, "Agree: Pneumonia").click()
    button(page.screen, "Do not save mine").click()
    assert count(store, Review) == 1 and not has(page, "Save mine too")
    assert "<b>Test Bert</b> not assessable" in text(page.screen)
    button(page.screen, "Agree: Pneumonia").click()  # the news is known now
    assert count(store, Review) == 2


def test_what_is_changed_after_the_question_is_what_is_saved(store, opened, anna, bert):
    page, reading_id = opened()
    comment = field(page.screen, "Comment (kept with your review)")
    comment.value = "before"
    bert.review(reading_id, "Normal")
    button(page.screen, "Agree: Pneumonia").click()
    confirm = button(page.screen, "Save mine too")
    comment.value = "after what Bert said"
    assert not has(page, "Save mine too")
    confirm.click()  # which was on its way
    assert "Your review was changed, so nothing was saved. Save it again." in page.message.value
    assert count(store, Review) == 1 and comment.value == "after what Bert said"
    button(page.screen, "Agree: Pneumonia").click()
    assert [review.comment for review in anna.case(reading_id).reviews] == ["", "after what Bert said"]


def test_a_confirmation_that_comes_twice_saves_once(store, opened, bert):
    page, reading_id = opened()
    bert.review(reading_id, "Normal")
    button(page.screen, "Agree: Pneumonia").click()
    confirm = button(page.screen, "Save mine too")
    confirm.click()
    confirm.click()
    assert count(store, Review) == 2 and "was changed" not in page.message.value


def test_a_confirmation_that_no_one_asked_for_saves_nothing(store, opened):
    page, _ = opened()
    for one in everything(page.screen):
        if getattr(one, "description", "") == "Save mine too":
            one.click()
    assert count(store, Review) == 0


# --- read blind


def test_a_blind_reader_can_say_that_no_class_fits(opened, anna):
    page, reading_id = opened(blind=True)
    field(page.screen, "Your finding").value = "Normal"
    says(page, NOT_ASSESSABLE)
    assert field(page.screen, "Your finding").value is None  # one answer, not two
    button(page.screen, "Save label").click()
    [review] = anna.case(reading_id).reviews
    assert (review.kind, review.answer_shown) == (NOT_ASSESSABLE, False)
    words = text(page.screen)
    assert "You said: not assessable. The model says Pneumonia." in words
    assert "before the model&#x27;s answer was shown" in words or "before the model's answer was shown" in words


def test_a_class_takes_the_place_of_a_reason_before(opened, anna):
    page, reading_id = opened(blind=True)
    says(page, WRONG_IMAGE)
    field(page.screen, "Your finding").value = "Normal"
    button(page.screen, "Save label").click()
    assert [(review.kind, review.label) for review in anna.case(reading_id).reviews] == [("class", "Normal")]


def test_a_class_does_not_drop_the_words_of_another_finding(store, opened, anna):
    page, reading_id = opened(blind=True)
    says(page, OTHER_FINDING, "a rib")
    field(page.screen, "Your finding").value = "Normal"
    button(page.screen, "Save label").click()
    assert "You also chose “another finding”" in page.message.value and count(store, Review) == 0
    assert field(page.screen, "Which finding?").value == "a rib"
    says(page, OTHER_FINDING)  # which takes the place of the class
    button(page.screen, "Save label").click()
    assert [(review.label, review.finding) for review in anna.case(reading_id).reviews] == [("", "a rib")]


def test_a_label_that_is_changed_after_the_question_is_what_is_saved(opened, anna, bert):
    page, reading_id = opened(blind=True)
    bert.review(reading_id, "Normal")
    field(page.screen, "Your finding").value = "Pneumonia"
    save = button(page.screen, "Save label")
    save.click()
    field(page.screen, "Your finding").value = "Normal"
    assert not has(page, "Save mine too")
    save.click()
    assert [review.label for review in anna.case(reading_id).reviews] == ["Normal", "Normal"]


def test_a_blind_reader_is_told_of_another_and_not_what_was_said(store, opened, anna, bert):
    page, reading_id = opened(blind=True)
    bert.review(reading_id, "Normal", "MARKCOMMENT")
    field(page.screen, "Your finding").value = "Pneumonia"
    save = button(page.screen, "Save label")
    save.click()
    save.click()
    words = text(page.screen)
    assert "Another doctor has read this image in the meantime. Yours is not saved yet." in words
    assert count(store, Review) == 1
    assert not [mark for mark in ("Bert", "MARKCOMMENT", "corrected", "Finding of the model") if mark in words]
    button(page.screen, "Save mine too").click()
    assert [review.label for review in anna.case(reading_id).reviews] == ["Normal", "Pneumonia"]
    assert "a third doctor is asked" in text(page.screen)


def test_two_blind_readers_who_find_no_class_agree_that_none_fits(opened, bert):
    page, _ = opened(blind=True, before=lambda reading_id: bert.review(reading_id, "", kind=WRONG_IMAGE))
    assert "Another doctor has read this image already." in text(page.screen)
    says(page, NOT_ASSESSABLE)
    button(page.screen, "Save label").click()
    words = text(page.screen)
    assert "<b>Test Bert</b>: wrong image or region and <b>Test Anna</b>: not assessable." in words
    assert "You agree that no class fits" in words
