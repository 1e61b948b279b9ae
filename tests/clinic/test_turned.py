"""An image that does not lie upright: what a header says of it, turning it, and the reading in the other's place."""

import io

import numpy as np
import pypdf
import pytest
import sqlalchemy as sa

from lungkit.clinic import report
from lungkit.clinic.app import answer, describe, page, reading
from lungkit.clinic.app.patient import PatientScreen
from lungkit.clinic.app.read_again import ReadAgain
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import accounts, pixels
from lungkit.clinic.records.cases import Case, Records
from lungkit.clinic.records.patients import NewPatient, RecordRefused, age_at
from lungkit.clinic.records.tables import Review, now
from lungkit.data import images, turning
from lungkit.models import graph, registry
from lungkit.models.prediction import Check
from tests.cards import model_card

SHA = "ab" * 32
TURNED = Check("orientation", False, 1.0, 0.5, "this image is turned by 90° to the left: turn it upright")
OTHER_KIND = Check("modality", False, 0.0, 1.0, "the file is a CT; this model reads X-ray images")
TOO_OLD = Check("age", False, 76, 5, "the patient is 76 years old; this model learned from patients of 1 to 5 years")
REVIEW = "uncertain: review"


class Models:
    """Models whose answer the test sets, and the one that they offer."""

    def __init__(self, answer, other=None):
        self.answer, self.other, self.seen, self.asked = answer, other, [], []

    def fitting(self, name, by_year, age=None, modality=None):
        return self.other

    def get(self, name):
        self.asked.append(name)
        return self

    def read(self, image, started=None, age=None):
        self.seen.append((image, age))
        return self.answer


def picture(shape=(40, 60), **tags) -> images.Image:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32) / 255
    return images.Image(values, "intensity", "DX", "chest.dcm", tags)


# --- who is not for a model


def test_the_model_that_is_offered_reads_such_images_and_is_for_that_age():
    def register(name, modality="X-ray", synthetic=False, **about):
        card = model_card(modality=modality, synthetic=synthetic, about=about)
        registry.add(name, card, lambda folder: (folder / graph.FILE).write_bytes(b"<net/>"))

    register("children", ages=[1, 5])
    for name, more in {"no-ages": {}, "drawn": {"synthetic": True}, "ct": {"modality": "CT"}}.items():
        register(name, **({} if name == "no-ages" else {"ages": [18, None]}), **more)
    models = ModelPool()
    assert models.fitting("children", 76) is None
    register("adults", ages=[18, None])
    assert (models.fitting("children", 76), models.fitting("adults", 3)) == ("adults", "children")
    assert models.fitting("children", None) is models.fitting("children", 12) is None
    assert models.fitting("children", 76, modality="CT") == "ct"
    assert models.fitting("children", 3, modality="CT") is models.fitting("children", 76, modality="MRI") is None


def test_nothing_that_a_model_computed_of_another_patient_is_shown_or_printed(records, saved):
    case = saved(TOO_OLD, birth_year=1950)
    box = answer.decision_box(case)
    assert "Not for this patient" in box
    assert "The patient is 76 years old" in box
    printed = " ".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(report.pdf(case, None))).pages)
    assert "Not for this patient: a clinician has to decide" in " ".join(printed.split())
    for words in (box, answer.bars(case), printed):
        assert "80 %" not in words
        assert "Nearest" not in words
    assert reading.viewer(case).heat == b""
    (row,) = records.worklist()
    assert (row.refusal, row.label, row.probability, row.flagged) == ("Not for this patient", None, None, True)
    assert describe.decision_words(row) == "✗ Not for this patient"


@pytest.mark.parametrize("agrees", [None, True, False], ids=["now", "earlier release, same", "earlier release, other"])
def test_a_review_of_what_the_model_gave_no_answer_to_neither_agrees_nor_corrects(store, records, saved, agrees):
    case = saved(TOO_OLD, birth_year=1950)
    records.review(case.reading_id, "Normal")
    with store.write() as db:
        db.execute(sa.update(Review).values(agrees=agrees))
    case = records.case(case.reading_id)
    assert [(one.agrees, one.verdict) for one in case.reviews] == [(None, "Normal")]
    pages = pypdf.PdfReader(io.BytesIO(report.pdf(case, None))).pages
    printed = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "Reviewed: Normal, by Test Anna." in printed
    assert not [word for word in ("agreed", "Agreed", "orrected") if word in printed]
    (row,) = records.worklist()
    assert describe.review_words(row) == "Normal (Test Anna)"


def test_an_answer_that_fails_another_check_is_shown_as_before(saved):
    box = answer.decision_box(saved(TURNED))
    assert "Review needed" in box
    assert "Nearest class: Pneumonia" in box


# --- how it lies


@pytest.mark.parametrize("lie", turning.LIES)
def test_a_picture_is_turned_back_from_each_way_in_which_it_can_lie(lie):
    upright, (mirrored, quarters) = picture().pixels, lie
    lying = np.rot90(upright[:, ::-1] if mirrored else upright, quarters)
    np.testing.assert_array_equal(turning.turned_back(lying, lie), upright)


# Where rows and columns run in pictures that lie as turning.LIES: of a frontal X-ray, and of an axial slice.
FRONTAL = [r"L\F", r"F\R", r"R\H", r"H\L", r"R\F", r"F\L", r"L\H", r"H\R"]
AXIAL = [r"L\P", r"P\R", r"R\A", r"A\L", r"R\P", r"P\L", r"L\A", r"A\R"]


@pytest.mark.parametrize(("lie", "frontal", "axial"), [*zip(turning.LIES, FRONTAL, AXIAL, strict=True)])
def test_what_a_header_states_is_followed_through_a_turn(lie, frontal, axial):
    assert turning.stated(frontal) == turning.stated(axial, axial=True) == lie
    assert turning.stated(axial) is turning.stated(frontal, axial=True) is None
    for stated, usual in ((frontal, r"L\F"), (axial, r"L\P")):
        assert turning.upright(picture(orientation=stated), lie).tags["orientation"] == usual


@pytest.mark.parametrize("lie", turning.LIES)
@pytest.mark.parametrize("stated", [*FRONTAL, "A\\F"])
def test_after_a_person_turned_a_picture_no_header_says_that_it_is_turned(lie, stated):
    after = turning.upright(picture(orientation=stated), lie).tags.get("orientation", "")
    assert turning.stated(after) in (None, turning.UPRIGHT)


@pytest.mark.parametrize("lie", turning.LIES)
def test_the_words_of_a_check_name_the_turn_that_makes_it_upright(lie):
    assert turning.lie_in(f"this image is {turning.lie_words(lie)}: turn it") == lie
    by_header = f"this image is {turning.lie_words(lie)} (its file says: mirrored): turn it"
    assert turning.lie_in(by_header) == lie


@pytest.mark.parametrize("stated", ["", "L", "A\\F", "L\\L", "F\\F", "x\\y", "\\", "L\\F\\H", "<b>\\F"])
def test_a_header_that_names_no_frontal_picture_says_nothing(stated):
    assert turning.stated(stated) is None


def test_a_turned_image_says_so_in_its_note():
    turned = turning.upright(picture(note="inverted"), (True, 1))
    assert turned.tags["note"] == "inverted; turned by 90° to the right and mirrored before it was read"
    assert turned.pixels.shape == (60, 40)


# --- reading it again


@pytest.fixture
def records(signed_in) -> Records:
    return Records(signed_in("doctor", "anna"))


@pytest.fixture
def saved(records, prediction):
    """A function: a case whose reading failed these checks."""

    def save(*checks: Check, birth_year=None, **tags) -> Case:
        image = picture(**tags)
        answer = prediction(decision=REVIEW, checks=checks)
        patient = NewPatient("T-1", "Test Patient", birth_year)
        return records.case(records.save_case(patient, image, SHA, answer, "From the ward.").reading_id)

    return save


def test_a_turned_image_takes_the_place_of_the_one_before_and_both_are_kept(records, saved, prediction):
    before = saved(TURNED)
    turned = turning.upright(pixels.image_of(before.pixels, before.units, before.kind, before.tags), (False, 1))
    after = records.case(records.save_again(before.reading_id, turned, prediction()).reading_id)
    assert (after.width, after.height, after.sha256, after.notes) == (40, 60, SHA, "From the ward.")
    np.testing.assert_array_equal(after.pixels, np.rot90(before.pixels, -1))
    assert after.patient == before.patient
    assert "turned by 90° to the right" in after.tags["note"]
    assert (records.case(before.reading_id).superseded, after.superseded) == (True, False)
    assert [row.superseded for row in records.worklist()] == [False, True]
    assert records.same_upload(before.patient.id, SHA) == after.reading_id


def test_an_image_is_turned_once_however_often_the_button_is_clicked(records, saved, prediction):
    before = saved(TURNED)
    records.save_again(before.reading_id, picture(), prediction())
    with pytest.raises(RecordRefused, match="replaces that one already"):
        records.save_again(before.reading_id, picture(), prediction())
    assert len(records.worklist()) == 2


def test_only_a_doctor_reads_an_image_again(saved, signed_in, prediction):
    before = saved(TURNED)
    with pytest.raises(accounts.Forbidden):
        Records(signed_in("admin")).save_again(before.reading_id, picture(), prediction())


def _offered(case, records, models) -> tuple[ReadAgain, list[str]]:
    shown: list[str] = []
    return ReadAgain(case, records, page.Page(), models, shown.append), shown


def _buttons(widget):
    found = [widget] if hasattr(widget, "click") else []
    return found + [button for child in getattr(widget, "children", ()) for button in _buttons(child)]


def test_a_turned_image_is_offered_upright_and_read_again_by_the_same_model(records, saved, prediction):
    models = Models(prediction())
    offer, shown = _offered(saved(TURNED), records, models)
    assert turning.LIES[offer.turn.value] == (False, 1)
    assert "turned by 90° to the right" in offer.preview.value
    (button,) = _buttons(offer.widget)
    button.click()
    (image, _), case = models.seen[0], records.case(shown[0])
    assert (image.pixels.shape, models.asked) == ((60, 40), ["lung"])
    assert case.decision == "Pneumonia"


def test_the_clinician_may_choose_another_turn_and_sees_it_first(records, saved, prediction):
    models = Models(prediction())
    offer, shown = _offered(saved(TURNED), records, models)
    before = offer.preview.value
    offer.turn.value = turning.LIES.index((True, 0))
    assert offer.preview.value != before
    (button,) = _buttons(offer.widget)
    button.click()
    assert "mirrored before it was read" in records.case(shown[0]).tags["note"]


def test_a_turn_that_no_page_offers_is_refused(records, saved, prediction):
    offer, _ = _offered(saved(TURNED), records, Models(prediction()))
    for wrong in (turning.LIES.index(turning.UPRIGHT), 99):
        with pytest.raises(Exception, match=r"(?i)invalid selection"):
            offer.turn.value = wrong


def test_a_model_for_patients_of_this_age_is_offered_where_there_is_one(records, saved, prediction):
    case = saved(TOO_OLD, birth_year=1950)
    assert not _buttons(_offered(case, records, Models(prediction()))[0].widget)
    models = Models(prediction(model="adults"), other="adults")
    offer, shown = _offered(case, records, models)
    (button,) = _buttons(offer.widget)
    assert button.description == "Read again with adults"
    button.click()
    assert records.case(shown[0]).model == "adults"


def test_an_image_of_another_modality_is_offered_to_a_model_of_such_images_and_never_turned(records, saved, prediction):
    case = saved(TURNED, OTHER_KIND, TOO_OLD, birth_year=1950)  # as an earlier release read it
    assert "Not for this image" in answer.decision_box(case)
    assert not _buttons(_offered(case, records, Models(prediction()))[0].widget)
    offer, shown = _offered(case, records, Models(prediction(model="of-ct"), other="of-ct"))
    (button,) = _buttons(offer.widget)
    assert button.description == "Read again with of-ct"
    button.click()
    assert records.case(shown[0]).model == "of-ct"


def test_nothing_is_offered_of_a_reading_that_has_a_finding_or_was_replaced(records, saved, prediction):
    models = Models(prediction(), other="adults")
    assert not _buttons(_offered(saved(), records, models)[0].widget)


def test_nothing_is_offered_of_an_image_that_was_withdrawn(records, saved, prediction):
    case = saved(TURNED)
    offer, _ = _offered(case, records, Models(prediction()))
    records.withdraw(case.reading_id, "of another person")
    _buttons(offer.widget)[0].click()  # on a page that was open before
    assert len(records.worklist()) == 1
    assert not _buttons(_offered(records.case(case.reading_id), records, Models(prediction()))[0].widget)


def test_the_same_model_is_offered_where_it_is_for_the_age_by_now(records, saved, prediction):
    registry.add(
        "lung", model_card(modality="X-ray", about={"ages": [1, 5]}), lambda folder: (folder / "n").write_bytes(b"1")
    )
    case = saved(TOO_OLD, birth_year=now().year - 4)  # as a reading that was moved before its age was asked again
    models = Models(prediction(), other="adults")
    offer, shown = _offered(case, records, models)
    (button,) = _buttons(offer.widget)
    assert button.description == "Read again"
    button.click()
    assert (models.asked, records.case(shown[0]).decision) == (["lung"], "Pneumonia")


def test_a_page_reads_no_image_again_that_was_moved_since(records, saved, prediction, chest_image):
    case = saved(TOO_OLD, birth_year=1950)
    other = records.save_case(NewPatient("T-2", "Other", 2020), chest_image(), "cd" * 32, prediction()).patient.id

    class Slow(Models):
        def read(self, image, started=None, age=None):
            records.move(case.reading_id, other, "saved for the wrong patient")
            return super().read(image, started, age)

    offer, shown = _offered(case, records, Slow(prediction(model="adults"), other="adults"))
    _buttons(offer.widget)[0].click()
    assert shown == [] and len(records.patient(other).cases) == 2, "its age was that of the patient before"


def test_the_patients_page_counts_an_image_once_however_often_it_was_read(records, saved, prediction):
    before = saved(TURNED)
    records.save_again(before.reading_id, picture(), prediction())
    screen = PatientScreen(records, page.Page())
    screen.refresh(before.patient.id)
    assert "1 image, oldest first; 1 reading replaced by a later one<" in screen.head.value


def test_an_age_at_the_study_counts_and_not_the_age_today():
    assert age_at(1950, {"study_year": "1954"}) == 4
    assert age_at(None, {"study_year": "1954"}) is None
    assert age_at(1950, {"study_year": "hostile"}) == age_at(1950) > 70
