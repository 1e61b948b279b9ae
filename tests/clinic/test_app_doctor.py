"""The doctor's screens, driven as a browser would: values set, buttons clicked, messages sent that no page sends."""

import dataclasses
import errno
import gc
import io
import itertools
import logging
import shutil
import zipfile
from datetime import timedelta
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import PIL.Image
import pydicom
import pypdf
import pytest
import sqlalchemy as sa
import traitlets
from ipywidgets.widgets.widget import _instances as alive

from lungkit import config, files, times
from lungkit.clinic import series_reading
from lungkit.clinic.app import answer, page, reading, review_form, shell
from lungkit.clinic.app.new_case import NewCaseScreen
from lungkit.clinic.app.stack import StackViewer
from lungkit.clinic.app.upload import UploadField
from lungkit.clinic.app.viewer import Viewer
from lungkit.clinic.predictor import REVIEW, Check, ModelPool
from lungkit.clinic.records import accounts, maintenance
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import CtSeries, Patient, Reading, Review, SeriesSlice, SignIn, Study
from lungkit.clinic.web import door
from lungkit.data import phantom
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.rule import ConformalLevel, DecisionRule, UncertaintyBand
from tests.cards import model_card
from tests.graded import CAUTION, CLASSES, RANGES
from tests.shipped import export

HOSTILE = "<img src=x onerror=alert(1)>"
SHA = "ab" * 32
CARD = model_card(data={"name": "test set", "counts": {"train": {"images": 840, "patients": 153}}}, modality="CT")


class SaysTheSame:
    """Models whose answer the test sets."""

    def __init__(self, prediction):
        self.prediction, self.seen = prediction, []

    def names(self):
        return registry.models()

    def choices(self):
        return [(name, name) for name in self.names()]

    def default(self):
        return self.names()[0]

    def get(self, name):
        return self

    def read(self, image, started=None, age=None):
        self.seen.append(image)
        return self.prediction(model="lung")


@pytest.fixture
def store(sqlite_store):
    """The screens do not know which database there is."""
    return sqlite_store


@pytest.fixture
def models(prediction):
    registry.add("lung", CARD, lambda folder: (folder / "weights").write_bytes(b"1"))
    return SaysTheSame(prediction)


@pytest.fixture
def ct_version(tmp_path) -> registry.Version:
    """The shipped model of CT slices, alone in the test's own registry, where it may be damaged."""
    shutil.copytree(export(tmp_path / "shipped") / "ct-infection", config.artifacts_dir() / "ct-infection")
    return registry.find("ct-infection")


@pytest.fixture(scope="module")
def phantom_slice(tmp_path_factory) -> Path:
    """A synthetic CT slice as a DICOM file."""
    cut = phantom.make_patient("demo", "Pneumonia", seed=46, slices=3, size=256)[1]
    return phantom.write_dicom(cut, tmp_path_factory.mktemp("slice") / "slice.dcm")


@pytest.fixture
def shown(store, access, models):
    """The page of a doctor who has just signed in."""
    return shell.page_of(lambda: store, access.token, models)


@pytest.fixture
def frame():
    """A page to try one screen in."""
    return page.Page()


def everything(widget: widgets.Widget):
    """A widget and all below it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def on_screen(widget: widgets.Widget):
    """What of it a person sees."""
    if widget.layout.display == "none":
        return
    yield widget
    for child in getattr(widget, "children", ()):
        yield from on_screen(child)


def text(widget: widgets.Widget) -> str:
    """All HTML and all captions that a person sees."""
    return "\n".join(
        part.value if isinstance(part, widgets.HTML) else str(getattr(part, "description", ""))
        for part in on_screen(widget)
    )


def button(widget: widgets.Widget, words: str) -> widgets.Button:
    [found] = [b for b in on_screen(widget) if isinstance(b, widgets.Button) and f"{b.description} ".startswith(words)]
    return found


def field(widget: widgets.Widget, words: str) -> widgets.Widget:
    [found] = [
        f for f in on_screen(widget) if not isinstance(f, widgets.Button) and getattr(f, "description", None) == words
    ]
    return found


def upload_of(widget: widgets.Widget) -> UploadField:
    [found] = [w for w in everything(widget) if isinstance(w, UploadField)]
    return found


ARRIVED: list[bytes] = []  # what the server holds for the page's kernel


def take() -> bytes | None:
    return ARRIVED.pop() if ARRIVED else None


@pytest.fixture(autouse=True)
def server_holds_what_was_sent(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    monkeypatch.setattr(door, "upload", take)
    monkeypatch.setattr(door, "folder", lambda: folder)
    ARRIVED.clear()


def send(upload: UploadField, content: bytes | None, name="chest.png", number=1, of=1) -> None:
    """What upload.js does with one file; None: it did not reach the server."""
    ARRIVED[:] = [] if content is None else [content]
    upload._handle_custom_msg({"name": name, "number": number, "of": of}, [])


def send_together(upload: UploadField, files: dict[str, bytes], piece=10**6) -> list[str]:
    """What upload.js does with several files, cut into pieces; returns what was refused."""
    refused = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "send", lambda message, *_: refused.append(message.get("refused")))
        upload._handle_custom_msg({"together": len(files), "bytes": sum(map(len, files.values()))}, [])
        for number, (name, content) in enumerate(files.items()):
            for at in range(0, len(content) or 1, piece):
                ARRIVED[:] = [content[at : at + piece]]
                upload._handle_custom_msg({"pieces": [[number, name, len(ARRIVED[0])]]}, [])
        upload._handle_custom_msg({"complete": True}, [])
    return [words for words in refused if words]


def png(seed=0, side=64) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def count(store, table) -> int:
    with store.read() as db:
        return db.scalar(sa.select(sa.func.count()).select_from(table))


def counts(store) -> list[int]:
    return [count(store, table) for table in (Patient, Study, Reading, Review)]


def enter_patient(screen, number="T-1", name="Test Patient", year="1961") -> None:
    button(screen, "+ New patient").click()
    field(screen, "Patient number").value = number
    field(screen, "Name").value = name
    field(screen, "Birth year (if known)").value = year
    button(screen, "Use this patient").click()


def revoke(store) -> None:
    with store.write() as db:
        for session in db.scalars(sa.select(SignIn)):
            session.revoked_at = session.created_at


# --- the page


def test_a_doctor_sees_the_doctors_screens_and_that_this_is_research(shown):
    words = text(shown.widget)
    assert "Research use only, not a diagnosis" in words and "Test Anna, doctor" in words
    assert [b.description for b in everything(shown.header) if isinstance(b, widgets.Button)] == [
        "Sign out",
        "New case",
        "Worklist",
        "Patient",
        "Second opinions",
    ]


def test_an_admin_sees_none_of_the_doctors_screens(store, signed_in, models):
    shown = shell.page_of(lambda: store, signed_in("admin").token, models)
    captions = [b.description for b in everything(shown.header) if isinstance(b, widgets.Button)]
    assert captions == [
        "Sign out",
        "People",
        "Patients",
        "Usage",
        "Models",
        "Trials",
        "Drift",
        "Programs",
        "Routing",
        "Queue",
        "Audit trail",
        "Health",
        "Settings",
    ]


@pytest.mark.parametrize("token", ["", "not-a-token"])
def test_without_a_session_the_page_shows_only_a_link_to_sign_in(store, models, token):
    maintenance.upgrade(store)
    shown = shell.page_of(lambda: store, token, models)
    assert "You are signed out" in text(shown.widget) and 'href="/login"' in text(shown.widget)
    assert not [w for w in everything(shown.widget) if isinstance(w, widgets.Button)]


def test_the_page_says_why_records_cannot_be_opened(models):
    def broken():
        raise accounts.StoreError("the disk is full; nothing was saved. Tell an administrator, then try again")

    assert "The disk is full" in text(shell.page_of(broken, "token", models).widget)


def test_outside_the_server_the_notebook_says_how_to_serve_it(capsys, monkeypatch):
    monkeypatch.delenv("VOILA_KERNEL_ID", raising=False)
    shell.open()
    assert "lungkit serve" in capsys.readouterr().out


def test_a_screen_is_updated_at_each_visit(shown, records, chest_image, prediction):
    button(shown.header, "Worklist").click()
    assert "0 of 0 readings" in text(shown.screen)
    records.save_case(NewPatient("T-9", "Someone"), chest_image(), SHA, prediction())
    button(shown.header, "New case").click()
    button(shown.header, "Worklist").click()
    assert "1 of 1 readings" in text(shown.screen)


def test_an_unexpected_error_is_logged_without_what_was_typed(frame, caplog):
    def fails(name):
        raise ValueError(name)

    with caplog.at_level(logging.ERROR):
        assert frame.act(fails)("Jane Roe") is None
    assert "nothing was saved" in text(frame.widget)
    assert "ValueError" in caplog.text and "fails" in caplog.text and "Jane Roe" not in caplog.text


# --- new case


def test_a_new_patients_image_is_read_saved_and_shown(store, shown, models):
    enter_patient(shown.screen)
    assert counts(store) == [0, 0, 0, 0], "a patient is saved with the first image, not before"
    send(upload_of(shown.screen), png())
    assert counts(store) == [1, 1, 1, 0]
    assert models.seen[0].pixels.shape == (64, 64)
    words = text(shown.screen)
    assert "<h2>Pneumonia</h2>" in words and "80 %" in words and "T-1" in words and "born 1961" in words
    assert "test set: 840 CT images of 153 patients. Synthetic images, not of patients" in words
    assert [w for w in everything(shown.screen) if isinstance(w, Viewer)]


def test_a_refused_file_does_not_stop_the_others(store, shown):
    enter_patient(shown.screen)
    files = {"one.png": png(1), "cut.png": png(2)[:500], "notes.png": b"hello, no image", "two.png": png(3)}
    for number, (name, content) in enumerate(files.items(), 1):
        send(upload_of(shown.screen), content, name, number, len(files))
    words = text(shown.screen)
    assert counts(store) == [1, 2, 2, 0]
    assert "<b>cut.png</b> <span>Truncated" in words
    assert "Not an image. PNG, JPEG, TIFF and DICOM" in words
    assert words.count("Pneumonia, 80 %") == 2
    assert words.count("<h2>Pneumonia</h2>") == 1, "one reading at a time"
    button(shown.screen, "Show ").click()
    assert text(shown.screen).count("<h2>Pneumonia</h2>") == 1


def test_a_refused_file_alone_saves_nothing_not_even_the_patient(store, shown):
    enter_patient(shown.screen)
    send(upload_of(shown.screen), b"\x89PNG\r\n\x1a\n")
    assert counts(store) == [0, 0, 0, 0]
    send(upload_of(shown.screen), png())
    assert counts(store) == [1, 1, 1, 0], "and the next one can be sent at once"


def test_the_same_bytes_for_the_same_patient_are_not_saved_twice(store, shown):
    enter_patient(shown.screen)
    send(upload_of(shown.screen), png(), "first.png")
    send(upload_of(shown.screen), png(), "again.png")
    assert counts(store) == [1, 1, 1, 0]
    assert "was already read for this patient" in text(shown.screen)
    button(shown.screen, "Open the earlier reading").click()
    assert text(shown.screen).count("<h2>Pneumonia</h2>") == 1


def test_a_patient_is_found_by_typing_and_selected_only_by_a_click(shown, records, chest_image, prediction):
    records.save_case(NewPatient("T-7", "Anton Example", 1950, "male"), chest_image(), SHA, prediction())
    field(shown.screen, "Patient number or name").value = "anto"
    assert upload_of(shown.screen).disabled, "found is not chosen"
    button(shown.screen, "T-7 · Anton Example · born 1950, male").click()
    assert not upload_of(shown.screen).disabled
    field_before = text(shown.screen)
    assert "Anton Example" in field_before and "Choose another patient" in field_before


def test_a_click_on_a_patient_who_is_no_longer_listed_selects_no_one(shown, records, chest_image, prediction):
    records.save_case(NewPatient("T-7", "Anton Example"), chest_image(), SHA, prediction())
    search = field(shown.screen, "Patient number or name")
    search.value = "Anton"
    late = button(shown.screen, "T-7")
    search.value = "Anton None"
    late.click()
    assert upload_of(shown.screen).disabled


def test_a_late_click_does_not_select_the_patient_now_at_that_place(shown, records, chest_image, prediction):
    for seed, (number, name) in enumerate((("T-7", "Anton Example"), ("T-8", "Berta Example"))):
        records.save_case(NewPatient(number, name), chest_image(seed=seed), files.sha256(name.encode()), prediction())
    search = field(shown.screen, "Patient number or name")
    search.value = "Anton"
    late = button(shown.screen, "T-7")
    search.value = "Berta"
    late.click()
    assert upload_of(shown.screen).disabled
    search.value = "Example"
    button(shown.screen, "T-8").click()
    assert "Berta Example" in text(shown.screen)


def test_choosing_another_patient_closes_and_empties_the_form_of_the_one_before(shown):
    enter_patient(shown.screen)
    button(shown.screen, "Choose another patient").click()
    assert [part.description for part in on_screen(shown.screen) if isinstance(part, widgets.Text)] == [
        "Patient number or name"
    ]
    button(shown.screen, "+ New patient").click()
    assert field(shown.screen, "Patient number").value == field(shown.screen, "Name").value == ""


@pytest.mark.parametrize("year", ["19611", "196l", "-1", "1800", "１９６１"])
def test_an_invalid_birth_year_is_refused(shown, year):
    enter_patient(shown.screen, year=year)
    assert "birth year" in text(shown.widget).lower()
    assert upload_of(shown.screen).disabled


def test_a_number_in_use_is_refused_with_the_name_of_its_patient(shown, records, chest_image, prediction):
    records.save_case(NewPatient("T-7", "Anton Example"), chest_image(), SHA, prediction())
    enter_patient(shown.screen, number="T-7")
    assert "The number T-7 already belongs to Anton Example" in text(shown.widget)
    assert upload_of(shown.screen).disabled


def test_a_real_model_reads_a_synthetic_slice_through_the_page(store, access, ct_version, phantom_slice):
    shown = shell.page_of(lambda: store, access.token, ModelPool())
    enter_patient(shown.screen)
    send(upload_of(shown.screen), phantom_slice.read_bytes(), "slice.dcm")
    assert counts(store) == [1, 1, 1, 0]
    words = text(shown.screen)
    assert "ct-infection@v2" in words and "Operating point" in words and "Band of uncertainty" in words
    assert "this model learned from" in words and "Passed:" in words
    [viewer] = [w for w in everything(shown.screen) if isinstance(w, Viewer)]
    assert viewer.units == "HU" and len(viewer.heat) == 3 * viewer.heat_width * viewer.heat_height


def test_without_a_model_the_page_refers_to_an_administrator(store, access):
    shown = shell.page_of(lambda: store, access.token, ModelPool())
    assert "No model is in use yet" in text(shown.screen)
    enter_patient(shown.screen)
    assert upload_of(shown.screen).disabled


def test_a_damaged_model_card_is_reported_and_other_screens_work(shown, models):
    version = registry.active("lung")
    (version.folder / registry.CARD).write_text("{")
    button(shown.header, "New case").click()
    assert "is not JSON" in text(shown.screen)
    button(shown.header, "Worklist").click()
    assert "0 of 0 readings" in text(shown.screen)


def test_a_page_opened_with_a_damaged_model_names_it_and_refers_to_an_administrator(store, access, ct_version):
    (ct_version.folder / registry.CARD).write_text("{")
    words = text(shell.page_of(lambda: store, access.token, ModelPool()).screen)
    assert "No model can be used. Tell an administrator: ct-infection@v2: card.json is not JSON" in words


def test_an_image_for_a_damaged_model_is_refused_with_what_to_do(store, access, ct_version, phantom_slice):
    (ct_version.folder / "graph.bin").write_bytes(b"")
    shown = shell.page_of(lambda: store, access.token, ModelPool())
    enter_patient(shown.screen)
    send(upload_of(shown.screen), phantom_slice.read_bytes(), "slice.dcm")
    words = text(shown.screen)
    assert "The model ct-infection is damaged" in words and "tell an administrator: ct-infection@v2: graph.bin" in words
    assert counts(store) == [0, 0, 0, 0]


def test_the_next_patient_starts_with_an_empty_form(shown):
    enter_patient(shown.screen)
    field(shown.screen, "Notes (saved with each image)").value = "cough"
    send(upload_of(shown.screen), png())
    button(shown.screen, "Next patient").click()
    words = text(shown.screen)
    assert "T-1" not in words and "Pneumonia</h2>" not in words and "chest.png" not in words
    assert field(shown.screen, "Notes (saved with each image)").value == ""
    assert upload_of(shown.screen).disabled


# --- new case: CT series


@pytest.fixture
def reads_series(monkeypatch, series_said):
    """As if the models read series: what they read, in order."""
    seen = []

    def read(predictor, one, birth_year=None):
        for number in range(len(one.slices)):
            one.slice(number)
        seen.append(one)
        return series_said(one)

    monkeypatch.setattr(series_reading, "read", read)
    return seen


def ct_files(ct_folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(ct_folder.glob("*.dcm"))}


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def another_series(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same slices under another SeriesInstanceUID."""
    changed = {}
    for name, content in files.items():
        header = pydicom.dcmread(io.BytesIO(content))
        header.SeriesInstanceUID, header.SeriesNumber = "1.2.3.4", 2
        stream = io.BytesIO()
        header.save_as(stream)
        changed[f"other-{name}"] = stream.getvalue()
    return changed


@pytest.mark.parametrize("packed", [False, True])
def test_the_files_of_a_series_or_their_zip_become_one_case_with_a_stack(store, shown, reads_series, ct_folder, packed):
    enter_patient(shown.screen)
    files = ct_files(ct_folder)
    files = {"study.zip": zipped(files)} if packed else files
    assert send_together(upload_of(shown.screen), files, piece=700) == []
    assert counts(store) == [1, 1, 1, 0] and count(store, CtSeries) == 1 and count(store, SeriesSlice) == 8
    words = text(shown.screen)
    assert "CT series 1: 8 slices" in words and "Pneumonia, 90 %" in words
    [stack] = [w for w in everything(shown.screen) if isinstance(w, StackViewer)]
    assert (len(stack.positions), stack.carrying, stack.planes) == (8, [3, 4], True)
    assert "the mean of 2 of the 8 slices, those that look least like Normal, at" in words
    assert "3,900 ml, cut off where the series ends" in words and "25 % of the lungs lie in such slices" in words


def test_a_series_read_before_is_known_however_it_is_packed(store, shown, reads_series, ct_folder):
    enter_patient(shown.screen)
    send_together(upload_of(shown.screen), ct_files(ct_folder))
    send_together(upload_of(shown.screen), {"again.zip": zipped(ct_files(ct_folder))})
    assert "was already read for this patient" in text(shown.screen)
    assert counts(store) == [1, 1, 1, 0] and len(reads_series) == 1


def test_of_several_series_a_person_chooses(store, shown, reads_series, ct_folder):
    enter_patient(shown.screen)
    files = ct_files(ct_folder)
    send_together(upload_of(shown.screen), files | another_series(files))
    assert text(shown.screen).count("Several series: choose which to read.") == 2
    assert reads_series == [] and counts(store)[1] == 0
    choices = [b for b in on_screen(shown.screen) if getattr(b, "description", "") == "Read this series"]
    choices[1].click()
    assert [one.number for one in reads_series] == ["2"] and counts(store) == [1, 1, 1, 0]
    choices[0].click()
    assert counts(store) == [1, 2, 2, 0]


def test_a_series_that_was_sent_for_one_patient_is_not_read_for_the_next(store, shown, reads_series, ct_folder):
    enter_patient(shown.screen)
    files = ct_files(ct_folder)
    send_together(upload_of(shown.screen), files | another_series(files))
    choices = [b for b in on_screen(shown.screen) if getattr(b, "description", "") == "Read this series"]
    button(shown.screen, "Choose another patient").click()
    enter_patient(shown.screen, number="P-2")
    assert not [b for b in on_screen(shown.screen) if getattr(b, "description", "") == "Read this series"]
    choices[0].click()
    assert "Send it again" in text(shown.widget)
    assert reads_series == [] and counts(store)[1] == 0


def test_a_refused_series_names_its_rule_and_what_was_left_out_is_said(store, shown, reads_series, ct_folder):
    enter_patient(shown.screen)
    files = ct_files(ct_folder)
    changed = pydicom.dcmread(io.BytesIO(files["cut-3.dcm"]))
    changed.PixelData = bytes(len(changed.PixelData))
    stream = io.BytesIO()
    changed.save_as(stream)
    send_together(upload_of(shown.screen), files | {"twice.dcm": stream.getvalue(), "note.txt": b"hello"})
    words = text(shown.screen)
    assert "Refused: two slices at one position." in words
    assert "not a DICOM file (note.txt)" in words
    assert reads_series == [] and counts(store) == [0, 0, 0, 0]


def test_files_that_are_no_series_are_read_one_by_one(store, shown, models, reads_series, ct_folder):
    enter_patient(shown.screen)
    [cut] = [content for name, content in ct_files(ct_folder).items() if name == "cut-3.dcm"]
    send_together(upload_of(shown.screen), {"one.png": png(1), "cut.dcm": cut, "broken.dcm": b"DICM"})
    assert counts(store) == [1, 2, 2, 0] and count(store, CtSeries) == 0
    assert len(models.seen) == 2 and "Not an image" in text(shown.screen)


def test_a_zip_without_a_series_says_what_is_in_it(store, shown, models):
    enter_patient(shown.screen)
    send_together(upload_of(shown.screen), {"pictures.zip": zipped({"one.png": png(1)})})
    assert "There is no CT series in it. Left out: not a DICOM file (pictures.zip: one.png)." in text(shown.screen)
    assert models.seen == [] and counts(store) == [0, 0, 0, 0]


def test_a_series_that_its_model_cannot_read_can_be_read_with_another(
    store, shown, reads_series, ct_folder, monkeypatch
):
    enter_patient(shown.screen)
    can_read = series_reading.read

    def refuse(*_):
        raise LungkitError("lung@v1 reads X-ray, not CT; name a model of CT slices")

    monkeypatch.setattr(series_reading, "read", refuse)
    send_together(upload_of(shown.screen), ct_files(ct_folder))
    assert "reads X-ray, not CT" in text(shown.screen) and counts(store) == [0, 0, 0, 0]
    monkeypatch.setattr(series_reading, "read", can_read)
    button(shown.screen, "Read this series").click()
    assert counts(store) == [1, 1, 1, 0]


def test_a_patients_page_shows_the_course_and_compares_series_that_scroll_together(
    shown, records, chest_image, prediction, ct_series, series_said
):
    first = records.save_series(NewPatient("T-1", "Test"), ct_series, series_said(ct_series))
    records.save_case(first.patient.id, chest_image(), SHA, prediction("Normal", 0.7))
    records.save_series(first.patient.id, ct_series, series_said(ct_series, REVIEW, ("too few slices",)), "cd" * 32)
    shown.go("patient", patient_id=first.patient.id)
    words = text(shown.screen)
    assert "CT series, 8 slices, 50 % of those read affected" in words
    assert 'aria-label="Course: Pneumonia 90 %; Normal 70 %; Pneumonia 90 %"' in words
    assert (words.count('class="share"'), words.count('class="dot"'), words.count('class="open"')) == (2, 2, 1)
    for choice in [w for w in on_screen(shown.screen) if isinstance(w, widgets.Checkbox)][::2]:
        choice.value = True
    button(shown.screen, "Compare two").click()
    stacks = [w for w in everything(shown.screen) if isinstance(w, StackViewer)]
    assert [(stack.linked, stack.planes) for stack in stacks] == [(True, False)] * 2
    assert "Too few slices." in text(shown.screen)


def test_a_full_disk_is_said_in_words_on_the_page_and_at_the_files(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_: object, **__: object) -> None:
        raise full

    shown = page.Page()
    shown.act(refuse)()
    assert "disk is full. Nothing was saved" in shown.message.value
    upload, files = received()
    told = []
    upload.send = lambda message, *_: told.append(message["refused"])
    upload._folder = refuse
    upload._handle_custom_msg({"together": 1, "bytes": 4}, [])
    assert files == [] and told == ["The server's disk has no room for these files. Tell an administrator."]


def test_every_page_names_the_time_zone(monkeypatch):
    monkeypatch.setenv("LUNGKIT_TIME_ZONE", "Asia/Tokyo")
    assert "Times are Asia/Tokyo (JST)." in text(page.Page().widget)


# --- what no page would send


@pytest.mark.parametrize(
    ("announced", "pieces", "words"),
    [
        ({"together": 0, "bytes": 10}, [], "0 files are too many"),
        ({"together": 4001, "bytes": 10}, [], "4001 files are too many. Up to 4000"),
        ({"together": 1, "bytes": 101}, [], "too much"),
        ({"together": 1, "bytes": -1}, [], "too much"),
        ({"together": 1, "bytes": 10}, [[0, "a", 5]], "not arrive as they were announced"),
        ({"together": 1, "bytes": 3}, [[0, "a", 4]], "not arrive as they were announced"),
        ({"together": 1, "bytes": 10}, [[1, "a", 4]], "not arrive as they were announced"),
        ({"together": 1, "bytes": 10}, [[-1, "a", 4]], "not arrive as they were announced"),
        ({"together": 1, "bytes": 10}, [[0, 7, 4]], "The files did not arrive"),
        ({"other": 1}, [[0, "a", 4]], "The files did not arrive"),
    ],
)
def test_pieces_that_do_not_match_what_was_announced_are_refused(announced, pieces, words):
    upload, files = received()
    told = []
    upload.send = lambda message, *_: told.append(message["refused"])
    upload._handle_custom_msg(announced, [])
    ARRIVED[:] = [b"1234"]
    upload._handle_custom_msg({"pieces": pieces}, [])
    upload._handle_custom_msg({"complete": True}, [])
    assert files == [] and any(told) and words in " ".join(told)
    assert not [path for path in door.folder().rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a\x00b", "x" * 300, ".DS_Store", ""])
def test_a_name_from_a_stranger_stays_in_the_folder(name):
    upload, files = received()
    send_together(upload, {name: b"1234"})
    [bundle] = files
    assert [path.parent for path in bundle.paths] == [door.folder() / "files"]
    assert [path.read_bytes() for path in bundle.paths] == [b"1234"]


def received():
    files = []
    upload = UploadField(
        lambda *file: files.append(file), files.append, take, door.folder, lambda: True, limit=100, limit_together=100
    )
    return upload, files


@pytest.mark.parametrize(
    "message",
    [{"name": 7, "number": 1, "of": 1}, {"name": "a", "number": "one", "of": 1}, {"other": "words"}, ["no", "dict"]],
)
def test_malformed_messages_are_ignored_and_the_next_file_is_taken(message):
    upload, files = received()
    ARRIVED.append(b"1234")
    upload._handle_custom_msg(message, [b"5678"])
    assert files == [] and ARRIVED == [b"1234"]
    send(upload, b"1234", "good.png")
    assert files == [("good.png", b"1234", 1, 1)]


def test_a_file_that_did_not_arrive_is_reported(store, shown, models):
    enter_patient(shown.screen)
    send(upload_of(shown.screen), None)
    assert "Did not arrive. Choose it again" in text(shown.screen)
    assert models.seen == [] and counts(store) == [0, 0, 0, 0]


def test_a_file_sent_before_a_patient_is_selected_is_not_read(store, shown, models):
    upload = upload_of(shown.screen)
    upload.set_state({"disabled": False})
    send(upload, png())
    assert models.seen == [] and counts(store) == [0, 0, 0, 0]


@pytest.fixture
def opened(shown, records, chest_image, prediction):
    """The page with one case open, and its reading's id."""
    reading_id = records.save_case(NewPatient("T-1", "Test Patient"), chest_image(), SHA, prediction()).reading_id
    button(shown.header, "Worklist").click()
    table(shown).set_state({"selected_rows": [0]})
    button(shown.screen, "Open case").click()
    return shown, reading_id


def table(shown):
    [found] = [w for w in everything(shown.screen) if hasattr(w, "selected_rows")]
    return found


def test_agreeing_and_correcting_are_kept_in_order(opened, records):
    shown, reading_id = opened
    field(shown.screen, "Comment (kept with your review)").value = "clear"
    button(shown.screen, "Agree: Pneumonia").click()
    field(shown.screen, "Correct to").value = "Normal"
    button(shown.screen, "Save correction").click()
    reviews = records.case(reading_id).reviews
    assert [(r.agrees, r.label, r.comment) for r in reviews] == [(True, "Pneumonia", "clear"), (False, "Normal", "")]
    words = text(shown.screen)
    assert words.index("agreed: Pneumonia") < words.index("corrected to Normal") and "The latest review counts" in words


def test_a_correction_without_a_class_is_refused(store, opened):
    shown, _ = opened
    button(shown.screen, "Save correction").click()
    assert "Choose the class that you see first" in text(shown.widget)
    assert count(store, Review) == 0


def test_a_class_that_does_not_exist_cannot_be_given(store, opened, records):
    shown, reading_id = opened
    choice = field(shown.screen, "Correct to")
    with pytest.raises(traitlets.TraitError):
        choice.set_state({"index": 99})
    choice.set_state({"_options_labels": ["Choose a class", "Plague"]})
    button(shown.screen, "Save correction").click()
    reviewing = review_form.ReviewForm(records.case(reading_id), records, shown)
    shown.act(lambda: reviewing._save("Plague"))()
    assert "not one of this reading" in text(shown.widget)
    assert count(store, Review) == 0


@pytest.mark.parametrize("rows", [[], [1], [-1], [10**9], [0, 0]])
def test_a_row_that_is_not_listed_opens_nothing(shown, records, chest_image, prediction, rows):
    records.save_case(NewPatient("T-1", "Test Patient"), chest_image(), SHA, prediction())
    button(shown.header, "Worklist").click()
    table(shown).set_state({"selected_rows": rows})
    way = button(shown.screen, "Open case")
    way.set_state({"disabled": False})
    way.click()
    assert "Select one row" in text(shown.widget) and "<h1>Worklist" in text(shown.screen)


def test_an_uncertain_reading_has_no_agree_button_and_takes_a_finding(store, shown, records, chest_image, prediction):
    records.save_case(NewPatient("T-1", "Test Patient"), chest_image(), SHA, prediction(decision=REVIEW))
    button(shown.header, "Worklist").click()
    table(shown).set_state({"selected_rows": [0]})
    button(shown.screen, "Open case").click()
    assert not [b for b in on_screen(shown.screen) if getattr(b, "description", "").startswith("Agree")]
    field(shown.screen, "Your finding").value = "Pneumonia"
    button(shown.screen, "Save finding").click()
    assert "agreed: Pneumonia" in text(shown.screen)


@pytest.mark.parametrize("action", ["review", "upload", "open", "search"])
def test_after_the_session_was_ended_the_next_action_saves_nothing_and_empties_the_page(
    store, opened, models, chest_image, prediction, action
):
    shown, _ = opened
    if action == "upload":
        button(shown.header, "New case").click()
        enter_patient(shown.screen, number="T-2")
        upload = upload_of(shown.screen)
    if action == "search":
        button(shown.header, "Patient").click()
    before = counts(store)
    revoke(store)
    if action == "review":
        button(shown.screen, "Agree").click()
    elif action == "upload":
        send(upload, png())
        assert models.seen == [], "the model does not run for who is signed out"
    elif action == "open":
        button(shown.screen, "All images of this patient").click()
    else:
        field(shown.screen, "Patient number or name").value = "T"
    assert counts(store) == before
    words = text(shown.widget)
    assert "You are signed out" in words and "T-1" not in words and "Test Patient" not in words
    assert len([w for w in everything(shown.widget) if isinstance(w, widgets.Button)]) == 0


def test_a_doctor_who_became_an_admin_cannot_review_any_more(store, opened):
    shown, _ = opened
    with store.write() as db:
        accounts.add_user(db, "chief", "Chief", "admin")
        accounts.set_role(db, "anna", "admin")
    button(shown.screen, "Agree").click()
    assert "needs the role doctor" in text(shown.widget)
    assert count(store, Review) == 0


def test_an_admin_cannot_use_any_screen_of_the_doctors(store, signed_in, models, frame):
    records = Records(signed_in("admin"))
    screen = NewCaseScreen(records, frame, models)
    enter_patient(screen.widget)
    assert "needs the role doctor" in text(frame.widget)
    screen._select(NewPatient("T-1", "Test Patient"))
    send(screen.upload, png())
    assert "needs the role doctor" in text(frame.widget)
    for name, what in (("worklist", {}), ("patient", {"patient_id": SHA}), ("reading", {"reading_id": SHA})):
        frame.say("")
        frame.act(shell.screen_class("doctor", name)(records, frame, models).refresh)(**what)
        assert "needs the role doctor" in text(frame.widget)
    assert counts(store) == [0, 0, 0, 0]


def test_reviewing_an_erased_reading_is_refused(store, opened):
    shown, _ = opened
    with store.write() as db:
        db.delete(db.scalar(sa.select(Patient)))
    button(shown.screen, "Agree").click()
    assert "not in the records" in text(shown.widget)
    assert count(store, Review) == 0


# --- what people typed stays text


def test_names_files_notes_and_comments_are_text_on_every_screen(shown, models, prediction):
    models.prediction = lambda **changes: prediction(**changes, checks=(Check("kind", False, 2, 1, HOSTILE),))
    enter_patient(shown.screen, number=f"1{HOSTILE}", name=HOSTILE)
    field(shown.screen, "Notes (saved with each image)").value = HOSTILE
    send(upload_of(shown.screen), png(), f"{HOSTILE}.png")
    send(upload_of(shown.screen), b"no image", f"{HOSTILE}.png")
    field(shown.screen, "Comment (kept with your review)").value = HOSTILE
    button(shown.screen, "Agree").click()
    screens = [html_of(shown)]
    button(shown.header, "Worklist").click()
    table(shown).set_state({"selected_rows": [0]})
    screens.append(html_of(shown))
    assert table(shown)._dt_args.get("keys_to_be_evaluated", []) == []
    assert "<img" not in str(table(shown)._dt_args), "the table escapes its cells"
    button(shown.screen, "Open case").click()
    screens.append(html_of(shown))
    button(shown.screen, "All images of this patient").click()
    screens.append(html_of(shown))
    for html in screens:
        assert "<img src=x" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html


def html_of(shown) -> str:
    return "\n".join(w.value for w in everything(shown.widget) if isinstance(w, widgets.HTML))


# --- the reading


@pytest.fixture
def opened_case(records, chest_image, prediction):
    """A function: the case of a reading with these changes."""
    numbers = itertools.count(1)

    def make(units="intensity", **changes):
        patient, digest = NewPatient(f"N-{(number := next(numbers))}", "Someone"), f"{number:064x}"
        image = chest_image(units=units, modality="CT" if units == "HU" else "DX", seed=number)
        return records.case(records.save_case(patient, image, digest, prediction(**changes)).reading_id)

    return make


def test_a_decision_and_a_call_for_review_look_different(opened_case):
    clear, unclear = opened_case(), opened_case(decision=REVIEW)
    assert "decision-class" in answer.decision_box(clear) and "<h2>Pneumonia</h2>" in answer.decision_box(clear)
    words = answer.decision_box(unclear)
    assert "decision-review" in words and "Review needed" in words and "<h2>Pneumonia" not in words
    assert "does not decide" in words and "Do not rely on it" in words


@pytest.fixture
def graded_reading(prediction):
    """A function: a reading of CT-1 to CT-2, or of these probabilities."""

    def make(probabilities=(0.15, 0.55, 0.25, 0.05), **changes):
        of = prediction()
        p = np.array(probabilities)
        label = CLASSES[int(RANGES.decide(p[None])[0])]
        graded = {"classes": CLASSES, "probabilities": p, "label": label, "rule": RANGES}
        made = dataclasses.replace(of, **graded, heat=np.zeros((4, 6, 8), np.float32))
        return dataclasses.replace(made, **{"decision": made.grades.name} | changes)

    return make


@pytest.fixture
def opened_grades(records, chest_image, graded_reading):
    """A function: the case of a reading of grades."""

    def make(*probabilities, **changes):
        answer = graded_reading(*probabilities, **changes)
        return records.case(records.save_case(NewPatient("G-1", "Someone"), chest_image(), SHA, answer).reading_id)

    return make


def test_grades_are_shown_as_a_range_with_the_share_of_the_lungs_and_what_one_slice_cannot_say(opened_grades):
    case = opened_grades()
    words = answer.decision_box(case)
    assert "<h2>CT-1 to CT-2</h2>" in words and "About 0 to 50 % of the lungs." in words
    assert "Probability together 80 %" in words and f"{CAUTION}." in words
    drawn = answer.bars(case)
    assert drawn.count('class="bar named"') == 2 and "Not ruled out" not in drawn
    assert "CT-3/4: about 50 to 100 % of the lungs" in drawn


def test_a_range_of_every_grade_calls_for_a_review_and_says_why(opened_grades):
    words = answer.decision_box(opened_grades((0.25, 0.25, 0.25, 0.25), decision=REVIEW))
    assert "Review needed" in words and "cannot rule out any grade" in words and f"{CAUTION}." in words


def test_a_clinician_chooses_one_grade_of_a_range_and_agrees_with_a_single_one(
    records, chest_image, graded_reading, frame
):
    wide, single = graded_reading(), graded_reading((0.05, 0.9, 0.05, 0))
    for number, (graded, agrees) in enumerate(((wide, False), (single, True))):
        digest = f"{number:064x}"
        saved = records.save_case(NewPatient(f"G-{number}", "Someone"), chest_image(seed=number), digest, graded)
        form = review_form.ReviewForm(records.case(saved.reading_id), records, frame)
        shown = [name for name, _ in form.label.options]
        assert ("CT-1 (about 0 to 25 % of the lungs)" in shown) is not agrees
        assert "CT-2 (about 25 to 50 % of the lungs)" in shown
    rows = {row.number: row for row in records.worklist()}
    assert (rows["G-0"].decision, rows["G-0"].probability) == ("CT-1 to CT-2", pytest.approx(0.8))
    assert (rows["G-1"].decision, rows["G-1"].probability) == ("CT-1", pytest.approx(0.9))


def test_a_case_shows_notes_about_reading_its_image(opened_case):
    note = "window not used: WindowCenter <b>, WindowWidth 0"
    line = reading._image_line(dataclasses.replace(opened_case(), tags={"note": note}))
    assert "window not used: WindowCenter &lt;b&gt;, WindowWidth 0" in line


def test_a_call_for_review_names_each_failed_check(opened_case):
    failed = (
        Check("kind", False, 9.0, 1.0, "does not look like a chest X-ray"),
        Check("size", True, 64, 24, "64 x 64"),
    )
    shown = opened_case(decision=REVIEW, checks=failed)
    assert "<li>Does not look like a chest X-ray.</li>" in answer.decision_box(shown)
    assert "64 x 64" not in answer.decision_box(shown)
    marks = answer.image_checks(shown)
    assert "Failed:</b> does not look" in marks and "Passed:</b> 64 x 64" in marks


def test_a_call_for_review_names_the_band_when_the_answer_lies_in_it(opened_case):
    band = UncertaintyBand(margin=1.0, low=0.27, high=0.73)
    rule = DecisionRule(kind="threshold", positive="Normal", threshold=0.5, band=band)
    within = opened_case(probability=0.6, decision=REVIEW, rule=rule)
    assert "within the band of uncertainty" in answer.decision_box(within)
    outside = opened_case(probability=0.95, decision=REVIEW, rule=rule)
    assert "within the band of uncertainty" not in answer.decision_box(outside)


def test_the_operating_point_and_its_band_are_drawn_on_both_bars_of_two_classes(opened_case):
    band = UncertaintyBand(margin=1.0, low=0.3, high=0.55)
    rule = DecisionRule(kind="threshold", positive="Normal", threshold=0.4, band=band)
    drawn = answer.bars(opened_case(probability=0.8, rule=rule))
    assert 'class="point" style="left:40.0%"' in drawn and 'class="band" style="left:30.0%;width:25.0%"' in drawn
    assert 'class="point" style="left:60.0%"' in drawn and 'class="band" style="left:45.0%;width:25.0%"' in drawn
    assert "Normal is the answer from 40 % on" in drawn and "30 % to 55 % for Normal" in drawn


def test_the_band_of_the_most_likely_class_begins_at_the_probability_of_the_next(opened_case):
    rule = DecisionRule(kind="argmax", band=UncertaintyBand(margin=float(np.log(2)), times=2.0))
    drawn = answer.bars(opened_case(probability=0.7, rule=rule))
    assert 'class="band" style="left:30.0%;width:30.0%"' in drawn
    assert "2.0 times as likely as the next" in drawn
    assert "width:60.0%" not in answer.bars(opened_case(probability=0.8, rule=DecisionRule(kind="argmax"))), (
        "no band given"
    )


def test_classes_that_are_not_ruled_out_are_named_where_there_is_more_than_one_and_no_check_failed(opened_case):
    rule = DecisionRule(kind="argmax", conformal=ConformalLevel(level=0.9, least=0.25))
    assert "Not ruled out (90 % prediction set): <b>Pneumonia or Normal</b>" in answer.bars(
        opened_case(probability=0.7, rule=rule)
    )
    assert "Not ruled out" not in answer.bars(opened_case(probability=0.8, rule=rule)), "one class alone"
    strange = (Check("kind", False, 9.0, 1.0, "something else"),)
    assert "Not ruled out" not in answer.bars(opened_case(probability=0.7, rule=rule, checks=strange))
    assert "Not ruled out" not in answer.bars(opened_case(probability=0.7, rule=DecisionRule(kind="argmax"))), (
        "an older card"
    )


def test_a_model_that_left_the_registry_is_described_as_unknown(opened_case):
    assert "no longer in the registry" in answer.source(opened_case(model="gone"))


def test_the_viewer_gets_hounsfield_units_whole_and_intensities_in_bytes(opened_case):
    ct, xray = opened_case(units="HU"), opened_case()
    shown = reading.viewer(ct)
    sent = np.frombuffer(shown.pixels, "<i2").reshape(shown.height, shown.width)
    assert np.array_equal(sent, ct.pixels)
    shown = reading.viewer(xray)
    sent = np.frombuffer(shown.pixels, np.uint8).reshape(shown.height, shown.width)
    assert np.array_equal(sent, np.rint(xray.pixels * 255))
    heat = np.frombuffer(shown.heat, np.uint8).reshape(2, shown.heat_height, shown.heat_width)
    assert shown.classes[shown.selected] == "Pneumonia" and heat[shown.selected].max() == 255


def test_the_report_is_a_pdf_whose_name_does_not_identify_the_patient(opened, monkeypatch):
    shown, reading_id = opened
    [download] = [w for w in everything(shown.screen) if hasattr(w, "_make")]
    sent = []
    monkeypatch.setattr(download, "send", lambda content, buffers=None: sent.append((content, buffers)))
    download._handle_custom_msg({"wanted": True}, [])
    [(content, [pdf])] = sent
    assert content["file"].startswith("reading-") and reading_id[:8] in content["file"]
    assert "Test Patient" not in content["file"] and "T-1" not in content["file"]
    assert "Test Patient" in pypdf.PdfReader(io.BytesIO(pdf)).pages[0].extract_text()


def test_after_signing_out_the_report_button_empties_the_page(store, opened, monkeypatch):
    shown, _ = opened
    [download] = [w for w in everything(shown.screen) if hasattr(w, "_make")]
    sent = []
    monkeypatch.setattr(download, "send", lambda content, buffers=None: sent.append(content))
    revoke(store)
    download._handle_custom_msg({"wanted": True}, [])
    assert sent[0]["file"] == "" and "You are signed out" in text(shown.widget)


# --- worklist and patient


@pytest.fixture
def worklist(shown, store, records, chest_image, prediction):
    """The worklist of three readings: Pneumonia, Normal in review, and a reviewed Pneumonia of last week."""
    first = records.save_case(NewPatient("T-1", "Anna"), chest_image(seed=1), SHA, prediction()).reading_id
    records.review(first, "Pneumonia")
    with store.write() as db:
        row = db.get(Reading, first)
        row.read_at = row.read_at - timedelta(days=7)
    records.save_case(NewPatient("T-2", "Bert"), chest_image(seed=2), "22" * 32, prediction())
    records.save_case(NewPatient("T-3", "Cleo"), chest_image(seed=3), "33" * 32, prediction("Normal", decision=REVIEW))
    button(shown.header, "Worklist").click()
    return shown


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({}, ["T-2", "T-3", "T-1"]),
        ({"Order": "Newest"}, ["T-3", "T-2", "T-1"]),
        ({"Finding": "Pneumonia"}, ["T-2", "T-1"]),
        ({"Decision": "Review needed"}, ["T-3"]),
        ({"Review": "Not reviewed"}, ["T-2", "T-3"]),
        ({"Review": "Reviewed"}, ["T-1"]),
        ({"Finding": "Normal", "Review": "Reviewed"}, []),
    ],
)
def test_the_worklist_is_filtered_by_class_decision_and_review(worklist, filters, left):
    for name, value in filters.items():
        field(worklist.screen, name).value = value
    assert list(table(worklist).df["Patient"]) == left
    assert f"{len(left)} of 3 readings" in text(worklist.screen)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_the_worklist_is_filtered_by_days_of_the_clinic_both_included(worklist, records, zone, monkeypatch):
    monkeypatch.setenv("LUNGKIT_TIME_ZONE", zone)
    button(worklist.header, "Worklist").click()
    days = sorted({times.local(row.read_at).date() for row in records.worklist()})
    field(worklist.screen, "From").value = days[-1]
    assert list(table(worklist).df["Patient"]) == ["T-2", "T-3"]
    field(worklist.screen, "From").value = None
    field(worklist.screen, "To").value = days[0]
    assert list(table(worklist).df["Patient"]) == ["T-1"]
    button(worklist.screen, "Clear filters").click()
    assert len(table(worklist).df) == 3


def test_a_selected_row_opens_its_reading_even_after_filtering(worklist):
    table(worklist).set_state({"selected_rows": [1]})
    assert "Selected: T-3" in text(worklist.screen)
    field(worklist.screen, "Finding").value = "Pneumonia"
    assert button(worklist.screen, "Open case").disabled, "another list, nothing selected"
    table(worklist).set_state({"selected_rows": [1]})
    button(worklist.screen, "Open case").click()
    assert "T-1" in text(worklist.screen) and "T-3" not in text(worklist.screen)
    button(worklist.screen, "← Back to worklist").click()
    assert field(worklist.screen, "Finding").value == "Pneumonia", "filters stay"


def test_a_patients_images_are_in_order_of_time_and_two_can_be_compared(shown, records, chest_image, prediction):
    first = records.save_case(
        NewPatient("T-1", "Test Patient"), chest_image(seed=1), "11" * 32, prediction()
    ).reading_id
    patient_id = records.case(first).patient.id
    records.save_case(patient_id, chest_image(seed=2), "22" * 32, prediction("Normal"))
    records.save_case(patient_id, chest_image(seed=3), "33" * 32, prediction(decision=REVIEW))
    button(shown.header, "Patient").click()
    field(shown.screen, "Patient number or name").value = "t-1"
    button(shown.screen, "T-1").click()
    words = text(shown.screen)
    assert "3 images, oldest first" in words
    assert words.index(">Pneumonia</b>") < words.index(">Normal</b>") < words.index("? Review (nearest: Pneumonia)")
    button(shown.screen, "Compare two images").click()
    assert "Mark two images to compare. 0 are marked" in text(shown.widget)
    for box in [w for w in on_screen(shown.screen) if isinstance(w, widgets.Checkbox)][:2]:
        box.value = True
    button(shown.screen, "Compare two images").click()
    assert len([w for w in everything(shown.screen) if isinstance(w, Viewer)]) == 2
    next(b for b in on_screen(shown.screen) if getattr(b, "description", "") == "Open").click()
    assert "← Back to patient" in text(shown.screen) and "11" * 4 not in text(shown.screen)


# --- a day's work


def test_opening_one_case_after_another_leaves_no_widgets_behind(opened):
    shown, _ = opened

    def once():
        button(shown.screen, "← Back to worklist").click()
        table(shown).set_state({"selected_rows": [0]})
        button(shown.screen, "Open case").click()

    once()
    before = len(alive)
    for _ in range(5):
        once()
    gc.collect()
    assert len(alive) == before


def test_reading_for_one_patient_after_another_leaves_no_widgets_behind(shown):
    def once(number):
        enter_patient(shown.screen, number=f"P-{number}", name=f"Test {number}")
        send(upload_of(shown.screen), png(number))
        button(shown.screen, "Next patient").click()

    once(0)
    before = len(alive)
    for number in range(1, 4):
        once(number)
    assert len(alive) == before


def test_errors_of_the_page_are_logged_next_to_the_records(monkeypatch):
    root = logging.Logger("root of the test")
    monkeypatch.setattr(logging, "root", root)
    shell._log_errors()
    root.error("something broke")
    [handler] = root.handlers
    handler.close()
    assert "something broke" in (config.clinic_dir() / "errors.log").read_text()


def test_showing_a_case_does_not_change_it(opened_case, records, frame):
    shown = opened_case()
    before = dataclasses.asdict(shown) | {"pixels": shown.pixels.copy(), "heat": shown.heat.copy()}
    reading.reading(shown, records, frame, lambda reading_id: None)
    assert np.array_equal(shown.pixels, before["pixels"]) and np.array_equal(shown.heat, before["heat"])
