"""Blind reading and second readers on screen: no answer leaves the kernel before the label, and then it does."""

import html
import json

import comm
import ipywidgets as widgets
import numpy as np
import pytest
import sqlalchemy as sa
import traitlets
from ipywidgets.widgets.widget import _instances as alive

from lungkit.clinic.app import shell
from lungkit.clinic.app.download import DownloadButton
from lungkit.clinic.app.reading import _report_button
from lungkit.clinic.app.stack import StackViewer
from lungkit.clinic.app.viewer import Viewer
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import settings
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import BlindReading, Review
from lungkit.clinic.web import door
from lungkit.models import registry
from lungkit.models.prediction import Check
from tests.clinic.rows import count, events
from tests.clinic.test_app_doctor import (
    ARRIVED,
    CARD,
    SaysTheSame,
    button,
    enter_patient,
    everything,
    field,
    on_screen,
    png,
    send,
    take,
    text,
    upload_of,
)

PROBABILITY = 0.8137
# What the answer consists of, as it would be read in a page or a message.
ANSWER = ("81 %", "0.81", "0.18", "19 %", "Finding of the model", "Review needed", "looks unlike", "uncertain")


@pytest.fixture
def store(sqlite_store):
    """The screens do not know which database there is."""
    return sqlite_store


@pytest.fixture
def models():
    registry.add("lung", CARD, lambda folder: (folder / "weights").write_bytes(b"1"))


@pytest.fixture
def answer(prediction):
    """A function: a reading that has a bit of everything that could be told."""

    def make(**changes):
        heat = np.full((2, 6, 8), 0.5, np.float32)
        check = Check("kind", False, 0.5, 1.0, "looks unlike a chest X-ray")
        return prediction(
            **{"probability": PROBABILITY, "heat": heat, "checks": (check,), "decision": REVIEW} | changes
        )

    return make


@pytest.fixture
def bert(signed_in) -> Records:
    return Records(signed_in("doctor", "bert"))


@pytest.fixture
def shown(store, access, models, answer):
    """The page of a doctor, in a clinic where all uploads are read blind."""
    set_share(store, 1.0)
    return shell.page_of(lambda: store, access.token, SaysTheSame(answer))


@pytest.fixture
def sent(monkeypatch):
    """The messages that the kernel sends to the browser, as text and bytes."""
    messages = []

    def publish(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        messages.append(
            (json.dumps(data, default=lambda part: bytes(part).hex()), [bytes(one) for one in buffers or ()])
        )

    monkeypatch.setattr(comm.DummyComm, "publish_msg", publish)
    return messages


@pytest.fixture(autouse=True)
def no_widgets_of_earlier_tests():
    widgets.Widget.close_all()


@pytest.fixture(autouse=True)
def server_holds_what_was_sent(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    monkeypatch.setattr(door, "upload", take)
    monkeypatch.setattr(door, "folder", lambda: folder)
    ARRIVED.clear()


@pytest.fixture
def save(store, records, chest_image, answer):
    """A function: the id of a new reading that chance has chosen, or not."""

    def make(seed=1, blind=True, by=None, **changes) -> str:
        set_share(store, float(blind))
        whose = NewPatient(f"N-{seed}", f"Name {seed}")
        return (by or records).save_case(whose, chest_image(seed=seed), f"{seed:064x}", answer(**changes)).reading_id

    return make


def set_share(store, share: float) -> None:
    with store.write() as db:
        settings.put(db, settings.BLIND_SHARE, share)


def leaks(said: str) -> list[str]:
    """The parts of the answer that a text tells."""
    return [part for part in ANSWER if part in said]


def held() -> str:
    """The state of every widget of this process, on the screen or not."""
    return json.dumps([one.get_state() for one in alive.values()], default=lambda part: repr(part)[:200])


def label_as(screen, label: str) -> None:
    field(screen, "Your finding").value = label
    button(screen, "Save label").click()


def open_from_worklist(shown, row=0) -> None:
    button(shown.header, "Worklist").click()
    [table] = [one for one in everything(shown.screen) if hasattr(one, "selected_rows")]
    table.set_state({"selected_rows": [row]})
    button(shown.screen, "Open case").click()


# --- an upload


def test_an_upload_shows_the_answer_after_the_label_and_not_before(shown, store, sent):
    enter_patient(shown.screen)
    send(upload_of(shown.screen), png())
    assert "Read this image first. The model's answer appears after your label." in html.unescape(text(shown.screen))
    assert field(shown.screen, "Your finding").value is None
    assert leaks(text(shown.screen)) == leaks(held()) == []
    assert leaks("".join(said for said, _ in sent)) == []
    label_as(shown.screen, "Normal")
    words = text(shown.screen)
    assert "You labelled Normal. The model does not decide; the nearest class is Pneumonia." in words
    assert {"81 %", "Review needed"} <= set(leaks(words))
    assert "Your label is saved" in words and "Give your label" not in words
    with store.read() as db:
        assert db.execute(sa.select(Review.label, Review.answer_shown)).all() == [("Normal", False)]


def test_a_blind_case_in_the_list_of_files_says_nothing_of_the_finding(shown):
    enter_patient(shown.screen)
    upload = upload_of(shown.screen)
    for number in (1, 2):
        send(upload, png(number), f"{number}.png", number, 2)
    lines = [
        one.value for one in everything(shown.screen) if isinstance(one, widgets.HTML) and "file-line" in one.value
    ]
    assert len(lines) == 2 and all("Give your label" in line for line in lines)
    assert leaks("".join(lines)) == []


# --- opened later


def test_a_label_like_one_that_the_model_may_not_give_is_no_agreement(shown, save):
    save(checks=(Check("view", False, 0, 1, "the file states a lateral view"),))
    open_from_worklist(shown)
    label_as(shown.screen, "Pneumonia")  # as the label that is hidden for good
    htmls = [one.value for one in everything(shown.screen) if isinstance(one, widgets.HTML)]
    (words,) = [html for html in htmls if "You labelled" in html]
    assert "You labelled Pneumonia. Not for this image: " in words
    assert "notice note" in words and "✓" not in words


@pytest.mark.parametrize(("label", "words"), [("Pneumonia", "you agree"), ("Normal", "you differ")])
def test_after_the_label_the_screen_says_whether_reader_and_model_agree(shown, save, label, words):
    save(decision="Pneumonia")
    open_from_worklist(shown)
    label_as(shown.screen, label)
    assert f"You labelled {label}. The model says Pneumonia: {words}." in text(shown.screen)
    button(shown.screen, "Agree: Pneumonia")  # the screen is that of any reading now


def test_neither_the_worklist_nor_the_patient_tells_the_answer(shown, save, bert, records, sent):
    reading_id = save()
    bert.review(reading_id, "Normal", "on the left")
    save(2, blind=False, label="Normal", probability=0.77, decision="Normal", checks=())
    sent.clear()
    button(shown.header, "Worklist").click()
    field(shown.screen, "Finding").value = "Normal"  # the blind one is in no filter
    assert "1 of 2 readings" in text(shown.screen)
    assert [value for _, value in field(shown.screen, "Finding").options] == ["All", "Normal"]
    patient_id = records.open_case(reading_id).patient.id
    shown.go("patient", patient_id=patient_id)
    assert "Your label first" in text(shown.screen) and "Reviewed by another doctor" in text(shown.screen)
    told = held() + "".join(said for said, _ in sent)
    assert leaks(told) == [] and "on the left" not in told and "Test Bert" not in text(shown.screen)


def test_rows_sorted_by_probability_do_not_betray_a_blind_one(shown, save):
    for seed, blind in ((1, True), (2, False)):
        save(seed, blind=blind, decision="Pneumonia")
    button(shown.header, "Worklist").click()
    [table] = [one for one in everything(shown.screen) if hasattr(one, "selected_rows")]
    rows = json.loads(table._dt_args["data_json"])
    assert [(row[0], row[5], row[6]) for row in rows] == [
        ("Finding", "Pneumonia", "81 %"), ("Your label first", "Your label first", "")
    ]  # fmt: skip


def test_two_images_are_not_compared_while_one_waits_for_a_label(shown, save, records, chest_image, answer):
    patient_id = records.open_case(save()).patient.id
    records.save_case(patient_id, chest_image(seed=9), "cd" * 32, answer())
    shown.go("patient", patient_id=patient_id)
    for box in [one for one in on_screen(shown.screen) if isinstance(one, widgets.Checkbox)]:
        box.value = True
    button(shown.screen, "Compare two images").click()
    assert "read blind: open it, give your label" in text(shown.widget)
    assert leaks(held()) == []


def test_an_image_whose_answer_is_known_already_opens_as_ever(shown, save, records):
    records.review(save(decision="Pneumonia"), "Normal")
    open_from_worklist(shown)
    assert "Finding of the model" in text(shown.screen)


# --- hostile browsers


def test_a_forged_message_gets_no_heat_map(shown, save, sent):
    save()
    open_from_worklist(shown)
    [viewer] = [one for one in everything(shown.screen) if isinstance(one, Viewer)]
    sent.clear()
    for state in ({"selected": 0}, {"classes": ["Pneumonia", "Normal"], "selected": 1, "heat_width": 8}):
        viewer._handle_msg({"content": {"data": {"method": "update", "state": state, "buffer_paths": []}}})
    viewer._handle_msg({"content": {"data": {"method": "request_state"}}})
    viewer._handle_msg({"content": {"data": {"method": "custom", "content": {"heat": True}}}})
    assert viewer.heat == b""
    heat = b"\x80" * 48  # one class of it, as an answer has it
    assert not [1 for said, buffers in sent if heat in b"".join(buffers) or heat.hex() in said]
    assert any(buffers for _, buffers in sent)  # the state was sent, pixels included


def test_the_report_of_a_blind_case_is_refused_by_its_button_too(shown, save, records):
    reading_id = save()
    open_from_worklist(shown)
    assert not [one for one in everything(shown.screen) if isinstance(one, DownloadButton)]
    made = []
    download = _report_button(reading_id, records, shown)  # as one that was made before
    download.send = lambda content, buffers: made.append((content["file"], *buffers))
    download._handle_custom_msg({}, [])
    assert made == [("", b"")]
    assert "read blind" in text(shown.widget)
    label_as(shown.screen, "Normal")
    download._handle_custom_msg({}, [])
    assert made[1][1].startswith(b"%PDF")


def test_a_label_that_no_class_has_or_none_at_all_shows_nothing(shown, store, save):
    save()
    open_from_worklist(shown)
    button(shown.screen, "Save label").click()
    assert "Choose the class that you see first" in text(shown.widget)
    with pytest.raises(traitlets.TraitError):
        field(shown.screen, "Your finding").set_state({"index": 7})
    button(shown.screen, "Save label").click()
    assert count(store, Review) == 0 and leaks(held()) == []


def test_a_second_click_that_was_on_its_way_gives_no_second_label(shown, store, save):
    save()
    open_from_worklist(shown)
    clicked = button(shown.screen, "Save label")
    field(shown.screen, "Your finding").value = "Normal"
    clicked.click()
    clicked.click()
    assert count(store, Review) == 1


# --- a series


def test_of_a_blind_series_the_browser_gets_slices_alone(shown, store, records, ct_series, series_said):
    said = series_said(ct_series, reasons=("looks unlike the others",))
    reading_id = records.save_series(NewPatient("S-1", "Series"), ct_series, said).reading_id
    shown.go("reading", reading_id=reading_id)
    [stack] = [one for one in everything(shown.screen) if isinstance(one, StackViewer)]
    assert (stack.read, stack.carrying, stack.heat, stack.classes, stack.named) == ([], [], b"", [], "")
    assert stack.key == 4 and len(stack.positions) == 8
    assert not [word for word in ("affected", "Density", "90 %", "slices that decide") if word in held()]
    label_as(shown.screen, "Pneumonia")
    [stack] = [one for one in everything(shown.screen) if isinstance(one, StackViewer)]
    assert stack.carrying == [3, 4] and stack.heat


# --- second opinions


def lists(shown) -> list:
    button(shown.header, "Second opinions").click()
    return [one for one in everything(shown.screen) if hasattr(one, "selected_rows")]


def open_first(shown, place: int) -> None:
    lists(shown)[place].set_state({"selected_rows": [0]})
    buttons = [one for one in on_screen(shown.screen) if isinstance(one, widgets.Button)]
    [enabled] = [one for one in buttons if one.description.startswith("Open") and not one.disabled]
    enabled.click()


def test_a_second_reader_labels_an_image_before_seeing_answer_and_label(shown, store, save, bert):
    bert.review(save(by=bert), "Normal", "on the left")
    open_first(shown, 0)
    assert "the labels of other readers appear after your label" in text(shown.screen)
    assert leaks(held()) == [] and "on the left" not in held()
    label_as(shown.screen, "Normal")
    words = text(shown.screen)
    assert "<b>Test Bert</b>: Normal and <b>Test Anna</b>: Normal. The label Normal counts." in words
    assert "on the left" in words
    with store.read() as db:
        assert list(db.scalars(sa.select(Review.answer_shown))) == [False, False]


@pytest.mark.parametrize(
    ("third", "words"),
    [("Normal", "The label Normal counts"), ("Other", "There is no majority, so this image stays aside")],
)
def test_a_third_reader_decides_where_two_differ_or_the_image_stays_aside(shown, save, bert, signed_in, third, words):
    classes = {"classes": ("Pneumonia", "Normal", "Other"), "probabilities": np.array([0.8137, 0.1, 0.0863]),
               "heat": np.full((3, 6, 8), 0.5, np.float32)}  # fmt: skip
    reading_id = save(blind=False, by=bert, **classes)
    bert.review(reading_id, "Normal")
    Records(signed_in("doctor", "cleo")).review(reading_id, "Pneumonia")
    open_first(shown, 1)
    assert leaks(held()) == []
    label_as(shown.screen, third)
    assert words in text(shown.screen)
    assert not lists(shown)[1].selected_rows and "0 images" in text(shown.screen)


def test_two_readers_who_differ_are_told_that_a_third_is_asked(shown, save, bert):
    bert.review(save(by=bert), "Normal")
    open_first(shown, 0)
    label_as(shown.screen, "Pneumonia")
    assert "a third doctor is asked" in text(shown.screen)


def test_an_image_that_a_label_first_reader_withdraws_keeps_its_answer_hidden(shown, save, bert):
    reading_id = save(blind=False, by=bert)  # anyone may see the answer
    bert.review(reading_id, "Normal", "on the left")
    shown.go("reading", reading_id=reading_id, back="opinions", label_first=True)
    place = shown.browser.place["address"]
    button(shown.screen, "Wrong patient or image?").click()
    field(shown.screen, "Reason").value = "of another person"
    button(shown.screen, "Withdraw this image").click()
    button(shown.screen, "Withdraw the image").click()
    assert "The image is withdrawn." in text(shown.message) and "of another person" in text(shown.screen)
    assert leaks(text(shown.screen)) == leaks(held()) == [] and "on the left" not in held()
    assert shown.browser.place["address"] == place
    button(shown.screen, "← Back to second opinions")


def test_labels_that_look_wrong_are_searched_on_request_and_open_with_the_answer(shown, save, records):
    for seed in range(10, 16):
        label = ("Pneumonia", "Normal")[seed % 2]
        records.review(save(seed, blind=False, label=label, probability=0.9, decision=label), label)
    records.review(save(99, blind=False, label="Pneumonia", probability=0.97, decision="Pneumonia"), "Normal")
    button(shown.header, "Second opinions").click()
    assert "1 label" not in text(shown.screen)
    button(shown.screen, "Search for such labels").click()
    assert "1 label." in text(shown.screen)
    open_first(shown, 2)
    assert "N-99" in text(shown.screen) and "Finding of the model" in text(shown.screen)


def test_what_to_review_next_is_suggested_on_request_and_opens_with_the_answer(shown, save):
    save(21, blind=False)
    save(22)  # chance has chosen it for the locked set
    button(shown.header, "Second opinions").click()
    button(shown.screen, "Suggest images").click()
    assert "1 image. Select a row." in text(shown.screen)
    open_first(shown, 3)
    assert "N-21" in text(shown.screen) and "Reading of the model" in text(shown.screen)


@pytest.mark.parametrize("rows", [[5], [-1], [10**9]])
def test_a_row_that_the_browser_made_up_opens_nothing(store, shown, save, bert, rows):
    bert.review(save(by=bert), "Normal")
    lists(shown)[0].set_state({"selected_rows": rows})
    before = len(events(store, "case.open"))
    for one in [one for one in on_screen(shown.screen) if isinstance(one, widgets.Button)]:
        if one.description == "Open image":
            one.click()
    assert len(events(store, "case.open")) == before


# --- the administrator


@pytest.fixture
def admin_page(store, signed_in, models, answer):
    shown = shell.page_of(lambda: store, signed_in("admin", "chief").token, SaysTheSame(answer))
    button(shown.header, "Settings").click()
    return shown


def test_an_administrator_sets_the_share_and_sees_what_applies(store, admin_page, save):
    assert "No upload is read blind" in text(admin_page.screen)
    field(admin_page.screen, "Uploads read blind, in %").value = 25
    button(admin_page.screen, "Save").click()
    assert "25 % of uploads are read blind" in text(admin_page.screen)
    assert events(store, "setting.change")[-1].detail == {"value": 0.25, "before": 0.0}


@pytest.mark.parametrize(("forged", "kept"), [(500, 1.0), (-3, 0.0)])
def test_a_share_beyond_the_field_is_no_share(store, admin_page, forged, kept):
    share = field(admin_page.screen, "Uploads read blind, in %")
    share.set_state({"value": forged})
    button(admin_page.screen, "Save").click()
    with store.read() as db:
        assert settings.get(db, settings.BLIND_SHARE) == kept
    assert count(store, BlindReading) == 0
