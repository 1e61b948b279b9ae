"""Whom an image is saved for: numbers as they are compared, the same name, and questions before the saving."""

import dataclasses

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import identity, jobs, patients, received
from lungkit.clinic.records.accounts import Forbidden
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.corrections import SavedElsewhere
from lungkit.clinic.records.patients import (
    NewPatient,
    PatientDiffers,
    PatientRow,
    RecordRefused,
    StatedPatient,
    differences,
)
from lungkit.clinic.records.tables import Patient, folded
from lungkit.data.person import Person
from tests.clinic.rows import count, events, everything

SHA = "ab" * 32
ANNA = PatientRow("id", "P-17", "Anna Meier", 1961, "female")


@pytest.fixture
def doctor(signed_in) -> Records:
    return Records(signed_in("doctor", "anna"))


@pytest.fixture
def save(doctor, chest_image, prediction):
    """A function: save an image for a patient; the SavedCase. seed: of its pixels."""

    def make(patient, sha256=SHA, seed=None):
        pixels = chest_image(seed=int(sha256[:6], 16) if seed is None else seed)
        return doctor.save_case(patient, pixels, sha256, prediction())

    return make


# --- what a header states and what is known


@pytest.mark.parametrize(
    ("said", "differ"),
    [
        (Person(), []),
        (Person("p–17 ", ("MEIER^ANNA",), 1961, "female"), []),
        (Person("Ｐ-17"), []),
        (Person("0P-17"), ["number"]),
        (Person("P-18"), ["number"]),
        (Person(names=("Schmidt^Anna",)), ["name"]),
        (Person(birth_year=1962), ["birth year"]),
        (Person(sex="male"), ["sex"]),
        (Person("P-18", ("Schmidt^Bert",), 1950, "male"), ["number", "name", "birth year", "sex"]),
        (Person("P-17", mixed=True), ["people"]),
    ],
)
def test_what_a_file_states_otherwise_is_told_by_field(said, differ):
    found = differences(said, ANNA)
    assert [one.what for one in found] == differ
    assert "Schmidt" not in repr(found)


def test_what_is_not_known_of_the_patient_is_no_difference():
    plain = NewPatient("P-17", "Anna Meier")
    assert differences(Person("P-17", (), 1961, "male"), plain) == ()


def test_zeros_in_front_are_no_difference_for_the_same_name():
    patient = dataclasses.replace(ANNA, number="4711")
    assert differences(Person("0004711", ("Meier^Anna",)), patient) == ()
    assert [one.what for one in differences(Person("0004711"), patient)] == ["number"]


# --- numbers


@pytest.mark.parametrize("written", ["p-1", "P–1", "Ｐ－１", "P - 1", " P‑1 "])
def test_a_number_that_is_written_otherwise_is_the_same_everywhere(store, doctor, save, signed_in, written):
    saved = save(NewPatient("P-1", "Anna Meier", 1961))
    with pytest.raises(RecordRefused, match="written 'P-1'"):
        save(NewPatient(written, "Bert Other"))
    with pytest.raises(RecordRefused, match="already belongs to Anna Meier, written P-1"):
        identity.namesakes(doctor.access, NewPatient(written, "Bert Other"))
    assert [row.number for row in doctor.find_patients(written)] == ["P-1"]
    assert [row.number for row in Administration(signed_in("admin")).patients(written)] == ["P-1"]
    with store.read() as db:
        assert patients.known_patient(db, StatedPatient(written)).id == saved.patient.id
    assert save(StatedPatient(written), "cd" * 32).patient.id == saved.patient.id
    assert count(store, Patient) == 1


def test_numbers_that_are_alike_in_older_records_break_nothing(store, doctor, save, signed_in):
    save(NewPatient("P-1", "Anna Meier"))
    save(NewPatient("other", "Bert Other"), "cd" * 32)
    with store.write() as db:  # as before numbers were compared this way
        db.execute(sa.update(Patient).where(Patient.number == "other").values(number="p-1", folded=folded("p-1")))
    with store.read() as db:
        assert patients.known_patient(db, StatedPatient("P-1")).name == "Anna Meier"
        assert patients.known_patient(db, StatedPatient("p-1")).name == "Bert Other"
        with pytest.raises(PatientDiffers, match="2 patients have numbers"):
            patients.known_patient(db, StatedPatient("P–1"))
    assert [row.number for row in doctor.find_patients("p-1")][:1] == ["p-1"]
    with pytest.raises(RecordRefused):
        save(NewPatient("P–1", "Cleo Third"))
    admin = Administration(signed_in("admin"))
    (anna,) = admin.patients("Anna")
    admin.erase_patient(anna.id)
    with store.read() as db:
        assert patients.known_patient(db, StatedPatient("P–1")).name == "Bert Other"


def test_erasing_forgets_what_programs_sent_under_other_ways_to_write_the_number(store, save):
    save(NewPatient("P-1", "Anna Meier"))
    with store.read() as db:
        patient = db.scalars(sa.select(Patient)).one()
        assert patients.written_alike(db, patient, ["p–1", "P-1", "P-2", ""]) == ["P-1", "p–1"]
    with store.write() as db:
        jobs.forget_patient(db, patient)
        assert received.forget_patient(db, patient) == []


# --- the same name


def test_the_same_name_and_birth_year_under_another_number_is_found(doctor, save):
    save(NewPatient("P-1", "Anna Müller", 1961))
    found = identity.namesakes(doctor.access, NewPatient("P-2", "MUELLER, Anna", 1961))
    assert [row.number for row in found] == ["P-1"]
    for other in (NewPatient("P-2", "Anna Müller", 1962), NewPatient("P-2", "Anna Müller"),
                  NewPatient("P-2", "Eva Müller", 1961)):  # fmt: skip
        assert identity.namesakes(doctor.access, other) == []


def test_a_program_is_not_asked_and_the_trail_notes_the_same_name(store, save):
    known = save(NewPatient("P-1", "Anna Müller", 1961)).patient
    save(StatedPatient("P-2", "Anna Müller", 1961), "cd" * 32)
    details = [event.detail for event in events(store, "case.save")]
    assert "same_name_and_year" not in details[0]
    assert details[1]["same_name_and_year"] == [known.id]
    assert "Müller" not in str(details)


# --- the question


def test_the_same_image_under_another_patient_is_asked_about_with_that_patients_number(doctor, save):
    save(NewPatient("P-1", "Anna Meier"))
    second = save(NewPatient("P-2", "Bert Other"), "cd" * 32).patient
    for patient in (second, NewPatient("P-3", "Cleo Third")):
        asked = identity.question(doctor.access, patient, Person(), SHA)
        assert asked.asked == (identity.SAME_IMAGE,)
        assert "patient P-1, Anna Meier" in asked.words[0]


def test_what_someone_saved_for_another_patient_since_the_question_is_not_saved(
    store, doctor, save, chest_image, prediction, ct_series, series_said
):
    new, said = NewPatient("P-2", "Bert Other"), series_said(ct_series)
    assert identity.question(doctor.access, new, Person(), SHA) is None
    save(NewPatient("P-1", "Anna Meier"))  # in another tab
    doctor.save_series(NewPatient("P-3", "Cleo Third"), ct_series, said, "cd" * 32)
    before = everything(store)
    with pytest.raises(SavedElsewhere, match=r"already saved for patient P-1, Anna Meier\. Nothing was saved"):
        save(new)
    with pytest.raises(SavedElsewhere, match="patient P-3"):
        doctor.save_series(new, ct_series, said, "cd" * 32, confirmed=["name"])
    assert everything(store) == before
    doctor.save_case(new, chest_image(), SHA, prediction(), confirmed=[identity.SAME_IMAGE])
    assert events(store, "case.save")[-1].detail["saved_although"] == [identity.SAME_IMAGE]


def test_the_same_pixels_in_another_file_are_the_same_image_unless_it_was_withdrawn(store, doctor, save):
    first = save(NewPatient("P-1", "Anna Meier"), seed=1)
    save(first.patient.id, "ab" * 32, seed=1)
    before = everything(store)
    with pytest.raises(SavedElsewhere, match="already saved for patient P-1") as refused:
        save(NewPatient("P-2", "Bert Other"), "cd" * 32, seed=1)
    assert everything(store) == before
    asked = identity.question(doctor.access, NewPatient("P-2", "B"), Person(), "cd" * 32, refused.value.owners)
    assert asked.asked == (identity.SAME_IMAGE,) and "patient P-1, Anna Meier" in asked.words[0]
    save(NewPatient("P-2", "Bert Other"), "ef" * 32, seed=2)
    for row in doctor.worklist():
        doctor.withdraw(row.reading_id, "of another person")
    save(NewPatient("P-3", "Cleo Third"), "12" * 32, seed=1)


def test_a_withdrawn_image_is_not_asked_about(doctor, save):
    doctor.withdraw(save(NewPatient("P-1", "Anna Meier")).reading_id, "of another person")
    assert identity.question(doctor.access, NewPatient("P-2", "Bert Other"), Person(), SHA) is None


def test_the_patient_whose_number_the_file_states_is_offered(doctor, save):
    right = save(NewPatient("P-1", "Anna Meier")).patient
    asked = identity.question(doctor.access, NewPatient("P-2", "Bert"), Person("p–1"), "cd" * 32)
    assert (asked.asked, asked.other) == (("number",), right)
    assert identity.question(doctor.access, right, Person("P-1"), "cd" * 32) is None


def test_only_doctors_ask(signed_in, store):
    admin, new = signed_in("admin"), NewPatient("P-1", "Anna Meier")
    before = everything(store)
    for act in (lambda: identity.question(admin, new, Person(), SHA), lambda: identity.namesakes(admin, new),
                lambda: identity.not_saved(admin, new, ["name"])):  # fmt: skip
        with pytest.raises(Forbidden):
            act()
    assert everything(store) == before
