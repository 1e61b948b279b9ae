"""The right patient, in a browser: files of someone else ask, and what was saved wrongly is withdrawn or moved."""

from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa

from lungkit.clinic.records.tables import AuditEvent, Patient, Study
from lungkit.data import phantom

QUESTION = "Is this the right patient? Nothing is saved until you answer."
NO_ANSWER = ""  # of the tests' helper: the question stays


@pytest.fixture(scope="module")
def of_person(tmp_path_factory):
    """A function: a slice whose header states this person; seed: of its pixels."""
    folder = tmp_path_factory.mktemp("people")

    def make(name: str, number: str, seed: int) -> Path:
        cut = phantom.make_patient("person", "Pneumonia", seed=seed, slices=3, size=256)[1]
        path = phantom.write_dicom(cut, folder / f"slice-{seed}.dcm")
        ds = pydicom.dcmread(path)
        ds.PatientName, ds.PatientID = name, number
        ds.save_as(path)
        return path

    return make


def images_of(clinic, number: str) -> int:
    with clinic.store.read() as db:
        return db.scalar(sa.select(sa.func.count()).select_from(Study).join(Patient).where(Patient.number == number))


def trail(clinic) -> str:
    """All that the audit trail says."""
    with clinic.store.read() as db:
        return "\n".join(f"{event.action} {event.object} {event.detail}" for event in db.scalars(sa.select(AuditEvent)))


def test_an_image_of_another_person_is_saved_only_after_an_answer(visit, clinic, of_person):
    ada, page = (visitor := visit("ada")), visitor.page
    ada.new_patient("I-1", "Anna Meier", "1961", "female")
    file = of_person("SCHMIDT^BERT", "I-999", 61)
    ada.upload(file, answer=NO_ANSWER)
    ada.sees(QUESTION, "Name: the file says BERT SCHMIDT, you chose Anna Meier.",
             "Number: the file says I-999, you chose I-1.")  # fmt: skip
    assert page.get_by_role("region", name="Reading of the model").count() == 0
    assert images_of(clinic, "I-1") == 0
    assert ada.usable() == []
    page.get_by_role("button", name="Do not save").click()
    ada.sees("Not saved, as you said.")
    assert images_of(clinic, "I-1") == 0

    ada.upload(file)
    page.get_by_role("region", name="Reading of the model").wait_for()
    assert images_of(clinic, "I-1") == 1
    said = trail(clinic)
    assert "case.not_saved" in said and "saved_although" in said
    assert "SCHMIDT" not in said and "I-999" not in said


def test_an_image_of_another_patient_asks_with_that_patients_number(visit, clinic, of_person):
    ada, file = visit("ada"), of_person("", "", 62)
    ada.new_patient("I-2", "Carla Weber", "1950")
    ada.upload(file)
    ada.page.get_by_role("button", name="Next patient").click()
    ada.new_patient("I-3", "Dora Kuhn", "1940")
    ada.upload(file, answer=NO_ANSWER)
    ada.sees(QUESTION, "The same image is already saved for patient I-2, Carla Weber.")
    assert images_of(clinic, "I-3") == 0
    ada.page.get_by_role("button", name="Save for I-3 anyway").click()
    ada.page.get_by_role("region", name="Reading of the model").wait_for()
    assert images_of(clinic, "I-3") == 1


def test_the_same_person_is_not_entered_twice_without_a_question(visit, clinic, of_person):
    ada = visit("ada")
    page = ada.page
    ada.new_patient("I-4", "Jörg Müller", "1955")
    ada.upload(of_person("MUELLER^JOERG", "i-4", 63), answer=NO_ANSWER)
    page.get_by_role("region", name="Reading of the model").wait_for()  # no question
    page.get_by_role("button", name="Next patient").click()
    page.get_by_role("button", name="+ New patient").click()
    page.get_by_label("Patient number", exact=True).fill("I-5")
    page.get_by_label("Name", exact=True).fill("MUELLER, Joerg")
    page.get_by_label("Birth year (if known)").fill("1955")
    page.get_by_role("button", name="Use this patient").click()
    ada.sees("are also those of I-4. Is this the same person?")
    assert ada.usable() == []
    page.get_by_role("button", name="Same person: use I-4").click()
    page.locator(".patient-number", has_text="I-4").wait_for()


def test_an_image_is_withdrawn_and_stays_marked(visit, clinic, of_person):
    ben = visit("ben")
    page = ben.page
    ben.new_patient("I-6", "Emil Vogt", "1933")
    ben.upload(of_person("", "", 64))
    page.get_by_role("button", name="Wrong patient or image?").click()
    page.get_by_label("Reason").fill("image of <b>another</b> person")
    assert ben.usable() == []
    page.get_by_role("button", name="Withdraw this image …").click()
    page.get_by_role("button", name="Withdraw the image").click()
    ben.sees("The image is withdrawn.", "Withdrawn by Second Doctor on", "image of <b>another</b> person")
    page.get_by_role("button", name="All images of this patient").click()
    ben.sees("1 image withdrawn", "Withdrawn by Second Doctor")
    ben.go("Worklist")
    page.locator(".worklist-table tbody tr").first.wait_for()
    assert "Emil Vogt" not in page.locator(".worklist-table").inner_text()
    page.get_by_label("Review", exact=True).select_option("Withdrawn")
    ben.sees("Emil Vogt")


def test_an_image_is_moved_to_the_right_patient(visit, clinic, of_person):
    ben = visit("ben")
    page = ben.page
    for number, name, seed in (("I-7", "Frida Lang", 65), ("I-8", "Gustav Horn", 66)):
        ben.new_patient(number, name, "1944")
        ben.upload(of_person("", "", seed))
        if number == "I-7":
            page.get_by_role("button", name="Next patient").click()
    page.get_by_role("button", name="Wrong patient or image?").click()
    page.get_by_label("Reason").fill("sent for the wrong patient")
    page.locator(".correction-fields").get_by_label("Number or name of the right patient").fill("I-7")
    page.get_by_role("button", name="I-7 · Frida Lang").click()
    ben.sees("from patient I-8 to I-7 · Frida Lang?")
    page.get_by_role("button", name="Move to I-7").click()
    ben.sees("The image was moved to patient I-7.", "Moved here from patient I-8 by Second Doctor")
    assert (images_of(clinic, "I-7"), images_of(clinic, "I-8")) == (2, 0)
