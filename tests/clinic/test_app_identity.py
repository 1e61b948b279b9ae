"""New case asks before it saves an image of another person, and before it enters a person twice."""

import io

import ipywidgets as widgets
import pydicom
import pytest

from lungkit import files
from lungkit.clinic.app import new_case, shell
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import Patient, Reading, Study
from lungkit.clinic.web import door
from lungkit.data import phantom
from lungkit.models import registry
from tests.cards import model_card
from tests.clinic.rows import count, events


@pytest.fixture
def store(sqlite_store):
    """The screens do not know which database there is."""
    return sqlite_store


@pytest.fixture
def doctor(signed_in) -> Records:
    return Records(signed_in("doctor", "anna"))


class SaysTheSame:
    """Models whose answer the test sets, and that count what they read."""

    def __init__(self, prediction):
        self.prediction, self.seen = prediction, 0

    def choices(self):
        return [("lung", "lung")]

    def default(self):
        return "lung"

    def names(self):
        return registry.models()

    def get(self, name):
        return self

    def read(self, image, started=None, age=None):
        self.seen += 1
        return self.prediction(model="lung")


ARRIVED: list[bytes] = []


@pytest.fixture
def screen(store, doctor, prediction, monkeypatch, tmp_path):
    """The page of a doctor, on New case."""
    registry.add("lung", model_card(), lambda folder: (folder / "weights").write_bytes(b"1"))
    monkeypatch.setattr(door, "upload", lambda: ARRIVED.pop() if ARRIVED else None)
    monkeypatch.setattr(door, "folder", lambda: tmp_path)
    models = SaysTheSame(prediction)
    page = shell.page_of(lambda: store, doctor.access.token, models)
    page.models = models
    return page


def parts(widget):
    if widget.layout.display != "none":
        yield widget
        for child in getattr(widget, "children", ()):
            yield from parts(child)


def words_of(page) -> str:
    found = [*parts(page.widget)]
    return "\n".join(part.value if isinstance(part, widgets.HTML) else str(getattr(part, "description", "")) for part in
                     found)  # fmt: skip


def button(page, words) -> widgets.Button:
    [found] = [one for one in parts(page.screen) if isinstance(one, widgets.Button) and words in one.description]
    return found


def enter(page, number="P-1", name="Anna Meier", year="1961") -> None:
    button(page, "+ New patient").click()
    fields = {getattr(part, "description", ""): part for part in parts(page.screen)}
    fields["Patient number"].value, fields["Name"].value = number, name
    fields["Birth year (if known)"].value = year
    button(page, "Use this patient").click()


def send(page, content: bytes, name="cut.dcm") -> None:
    def all_of(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from all_of(child)

    [upload] = [part for part in all_of(page.screen) if type(part).__name__ == "UploadField"]
    ARRIVED[:] = [content]
    upload._handle_custom_msg({"name": name, "number": 1, "of": 1}, [])


@pytest.fixture(scope="module")
def slice_of(tmp_path_factory):
    """A function: a DICOM file whose header states this; seed: of its pixels."""
    folder = tmp_path_factory.mktemp("slices")

    def make(name="Meier^Anna", number="P-1", seed=1) -> bytes:
        cut = phantom.make_patient("p", "Normal", seed=seed, slices=3, size=64)[1]
        ds = pydicom.dcmread(phantom.write_dicom(cut, folder / "cut.dcm", compressed=False))
        ds.PatientName, ds.PatientID = name, number
        stream = io.BytesIO()
        ds.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    return make


def saved_for(store) -> dict[str, int]:
    """How many images each patient has, by number."""
    with store.read() as db:
        return {patient.number: len(patient.studies) for patient in db.query(Patient)}


def question(page) -> str:
    return words_of(page) if "Is this the right patient?" in words_of(page) else ""


# --- what the header states


def test_an_image_of_another_person_is_not_read_before_a_person_answers(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT", "P-9"))
    assert "Name: the file says BERT SCHMIDT, you chose Anna Meier." in question(screen)
    assert "Number: the file says P-9, you chose P-1." in question(screen)
    assert screen.models.seen == 0 == count(store, Reading) == count(store, Patient)
    button(screen, "Save for P-1 anyway").click()
    assert saved_for(store) == {"P-1": 1}
    [event] = events(store, "case.save")
    assert event.detail["saved_although"] == ["number", "name"]
    assert "SCHMIDT" not in str([event.detail for event in events(store)])
    assert not question(screen)


def test_an_image_that_is_not_to_be_saved_is_not_and_the_trail_notes_the_question(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT"))
    button(screen, "Do not save").click()
    assert "Not saved, as you said." in words_of(screen)
    assert count(store, Study) == screen.models.seen == 0
    [event] = events(store, "case.not_saved")
    assert (event.object, event.detail) == ("patient:new", {"differs": ["name"]})


def test_the_known_patient_whose_number_the_file_states_is_offered(store, screen, slice_of, doctor, chest_image,
                                                                   prediction):  # fmt: skip
    doctor.save_case(NewPatient("P-9", "Bert Schmidt"), chest_image(), "cd" * 32, prediction())
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT", "p-9"))
    button(screen, "Save for P-9 · Bert Schmidt").click()
    assert saved_for(store) == {"P-9": 2}
    assert "Saved for patient P-9, Bert Schmidt." in words_of(screen)
    send(screen, slice_of("Meier^Anna", "P-1", seed=2))
    assert saved_for(store) == {"P-9": 2, "P-1": 1}, "the form still has the patient who was chosen"


@pytest.mark.parametrize("name", ["Meier^Anna", "MEIER^A", "ANONYMOUS", "", "Anna Meier"])
def test_an_image_of_the_same_person_or_of_no_one_is_saved_without_a_question(store, screen, slice_of, name):
    enter(screen)
    send(screen, slice_of(name, "p-1" if name else ""))
    assert saved_for(store) == {"P-1": 1}
    assert not question(screen)


def test_other_files_go_on_while_one_waits(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT"), "one.dcm")
    send(screen, slice_of(seed=2), "two.dcm")
    assert saved_for(store) == {"P-1": 1}
    button(screen, "Save for P-1 anyway").click()  # the patient was new, and is known by now
    assert saved_for(store) == {"P-1": 2}


def test_the_answer_counts_for_files_that_state_the_same(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT"))
    button(screen, "Save for P-1 anyway").click()
    send(screen, slice_of("SCHMIDT^BERT", seed=2))
    assert saved_for(store) == {"P-1": 2}
    assert [event.detail["saved_although"] for event in events(store, "case.save")] == [["name"], ["name"]]
    send(screen, slice_of("WEBER^CARL", seed=3))
    assert question(screen)


def test_a_question_ends_with_the_patient(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT"))
    anyway = button(screen, "Save for P-1 anyway")
    button(screen, "Choose another patient").click()
    assert not question(screen)
    anyway.click()  # on its way
    assert count(store, Study) == 0


def test_the_next_patient_waits_for_the_answers(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of(), "one.dcm")
    send(screen, slice_of("SCHMIDT^BERT", seed=2), "two.dcm")
    button(screen, "Next patient").click()
    assert "Answer the questions about the images first" in words_of(screen)
    button(screen, "Do not save").click()
    button(screen, "Next patient").click()
    assert saved_for(store) == {"P-1": 1}
    assert "two.dcm" not in words_of(screen)


def test_two_clicks_on_an_answer_save_once(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("SCHMIDT^BERT"))
    anyway = button(screen, "Save for P-1 anyway")
    anyway.click()
    anyway.click()
    assert saved_for(store) == {"P-1": 1}


def test_files_that_wait_do_not_fill_the_memory(store, screen, slice_of, monkeypatch):
    content = slice_of("SCHMIDT^BERT")
    monkeypatch.setattr(new_case, "MOST_WAITING", len(content) + 10)
    enter(screen)
    send(screen, content)
    send(screen, slice_of("WEBER^CARL", seed=2), "two.dcm")
    assert "Too many files wait for an answer" in words_of(screen)


# --- the same image


def test_an_image_that_another_patient_has_is_asked_about(store, screen, slice_of):
    content = slice_of("", "")
    enter(screen)
    send(screen, content)
    button(screen, "Next patient").click()
    enter(screen, "P-2", "Bert Schmidt", "1950")
    send(screen, content)
    assert "The same image is already saved for patient P-1, Anna Meier." in question(screen)
    assert saved_for(store) == {"P-1": 1}
    button(screen, "Save for P-2 anyway").click()
    assert saved_for(store) == {"P-1": 1, "P-2": 1}
    assert events(store, "case.save")[-1].detail["saved_although"] == ["same image"]


def test_an_image_that_another_patient_has_in_another_file_is_asked_about(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("", ""))
    button(screen, "Next patient").click()
    enter(screen, "P-2", "Bert Schmidt", "1950")
    again = slice_of("SCHMIDT^BERT", "P-2")  # exported once more, with another header
    send(screen, again)
    assert "The same image is already saved for patient P-1, Anna Meier." in question(screen)
    assert saved_for(store) == {"P-1": 1}
    button(screen, "Do not save").click()
    assert saved_for(store) == {"P-1": 1}
    send(screen, again)
    button(screen, "Save for P-2 anyway").click()
    assert saved_for(store) == {"P-1": 1, "P-2": 1}
    assert events(store, "case.save")[-1].detail["saved_although"] == ["same image"]
    send(screen, slice_of("SCHMIDT^BERT", "P-2", seed=2), "two.dcm")
    assert saved_for(store) == {"P-1": 1, "P-2": 2}


# --- the same name


@pytest.mark.parametrize("answer", ["Same person", "Another person"])
def test_the_same_name_and_birth_year_are_asked_about(store, screen, slice_of, answer):
    enter(screen)
    send(screen, slice_of("", ""))
    button(screen, "Next patient").click()
    enter(screen, "P-2", "MEIER, Anna")
    assert "are also those of P-1. Is this the same person?" in words_of(screen)
    button(screen, answer).click()
    send(screen, slice_of("", "", seed=2))
    assert saved_for(store) == ({"P-1": 2} if answer == "Same person" else {"P-1": 1, "P-2": 1})


def test_a_number_that_is_written_otherwise_is_refused_with_the_patient_who_has_it(store, screen, slice_of):
    enter(screen)
    send(screen, slice_of("", ""))
    button(screen, "Next patient").click()
    enter(screen, "p–1", "Bert Schmidt", "1950")
    assert "already belongs to Anna Meier, written P-1" in words_of(screen)


def test_an_image_that_is_saved_for_another_patient_while_it_is_read_is_asked_about(
    store, screen, doctor, slice_of, chest_image, prediction
):
    content = slice_of()

    class Slow(SaysTheSame):
        def read(self, image, started=None, age=None):
            if not self.seen:  # meanwhile, in another tab
                other = NewPatient("P-9", "Bert Schmidt")
                doctor.save_case(other, chest_image(), files.sha256(content), prediction())
            return super().read(image, started, age)

    slow = Slow(prediction)
    screen.models.get = lambda name: slow
    enter(screen)
    send(screen, content)
    assert "The same image is already saved for patient P-9, Bert Schmidt." in question(screen)
    assert saved_for(store) == {"P-9": 1}
    button(screen, "Save for P-1 anyway").click()
    assert saved_for(store) == {"P-9": 1, "P-1": 1}
