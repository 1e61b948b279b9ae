"""What doctors do with the records: nothing partly saved, no action without the role, no name in the wrong place."""

import dataclasses
import inspect
import shutil
import threading
import zipfile
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from lungkit.clinic.records import accounts, audit_trail, cases, pixels, stacks
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.patients import NewPatient, RecordMissing, RecordRefused
from lungkit.clinic.records.tables import CtSeries, Patient, Reading, Review, SeriesSlice, Study, now
from lungkit.data import series
from lungkit.data.image import ImageRefused
from tests.clinic.rows import count, events, everything

SHA = "ab" * 32
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def doctor(signed_in) -> Records:
    return Records(signed_in("doctor"))


def patient(number="T-1", name="Test Patient") -> NewPatient:
    return NewPatient(number, name, 1970, "female")


# --- who may


def actions_of(kind: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]


@pytest.fixture
def calls(doctor, chest_image, prediction, ct_series, series_said):
    """Each action of doctors with arguments it would accept."""
    reading_id = doctor.save_case(patient(), chest_image(), SHA, prediction()).reading_id
    patient_id = doctor.case(reading_id).patient.id
    stack = doctor.save_series(patient("T-3"), ct_series, series_said(ct_series)).reading_id
    doctor.case(stack)
    return {
        "save_series": (patient("T-4"), ct_series, series_said(ct_series), "cd" * 32),
        "series": (stack,),
        "series_slices": (stack, [0, 7]),
        "find_patients": ("T-1",),
        "save_case": (patient("T-2"), chest_image(), "ef" * 32, prediction()),
        "same_upload": (patient_id, SHA),
        "worklist": (),
        "case": (reading_id,),
        "open_case": (reading_id,),
        "source": (reading_id,),
        "patient": (patient_id,),
        "person": (patient_id,),
        "review": (reading_id, "Pneumonia", "seen"),
        "priors": (reading_id,),
        "save_again": (reading_id, chest_image(), prediction()),
        "before_correction": (reading_id, patient_id),
        "withdraw": (stack, "of another person"),
        "move": (stack, patient_id, "of this person"),
    }


def test_every_action_is_among_those_whose_rights_are_tested(calls):
    assert sorted(calls) == actions_of(Records)


def test_every_action_refuses_an_admin_and_leaves_the_records_as_they_are(store, calls, signed_in):
    admin = Records(signed_in("admin"))
    before = everything(store)
    for name in actions_of(Records):
        with pytest.raises(Forbidden, match="role doctor"):
            getattr(admin, name)(*calls[name])
    assert everything(store) == before
    assert len(events(store, "access.refused")) == len(calls)


def test_every_action_refuses_a_session_that_was_ended_at_the_next_click(store, calls, doctor):
    doctor.worklist()
    accounts.sign_out(store, doctor.access.token)
    before = everything(store)
    for name in actions_of(Records):
        with pytest.raises(SignedOut):
            getattr(doctor, name)(*calls[name])
    assert everything(store) == before


def test_every_action_refuses_a_doctor_who_became_an_admin_in_an_open_session(store, calls, doctor, signed_in):
    signed_in("admin")
    with store.write() as db:
        accounts.set_role(db, "doctor", "admin")
    for name in actions_of(Records):
        with pytest.raises(Forbidden):
            getattr(doctor, name)(*calls[name])


# --- saving


@pytest.mark.parametrize(("units", "modality", "kind"), [("HU", "CT", "CT"), ("intensity", "DX", "X-ray")])
def test_a_saved_case_opens_as_it_was_read(doctor, chest_image, prediction, units, modality, kind):
    image, reading = chest_image(units, modality), prediction("Normal", 0.75, decision="uncertain: review")
    reading_id = doctor.save_case(patient(), image, SHA, reading, " seen\r\nbefore ").reading_id
    case = doctor.case(reading_id)
    assert (case.patient.number, case.patient.name, case.patient.birth_year, case.patient.sex) == (
        "T-1",
        "Test Patient",
        1970,
        "female",
    )
    assert (case.reading_id, case.kind, case.units, case.sha256) == (reading_id, kind, units, SHA)
    assert (case.width, case.height, case.tags, case.notes) == (64, 48, {"view": "PA"}, "seen\nbefore")
    assert (case.model, case.version, case.label, case.decision) == ("lung", "v1", "Normal", "uncertain: review")
    assert case.classes == reading.classes == tuple(case.probabilities)  # not in alphabetical order
    assert case.probabilities == {"Pneumonia": 0.25, "Normal": 0.75}
    assert (case.rule, case.checks, case.milliseconds) == (reading.rule, reading.checks, 120)
    assert case.uploaded_by == "Test Doctor"
    assert timedelta(0) <= now() - case.read_at < timedelta(minutes=1)
    assert case.reviews == ()
    assert np.abs(case.pixels - image.pixels).max() <= (0 if units == "HU" else 1 / 255)
    assert np.array_equal(case.heat, reading.heat)


def test_saving_adds_one_row_of_each_kind_and_one_event(store, doctor, chest_image, prediction):
    before = len(events(store))
    reading_id = doctor.save_case(patient(), chest_image(), SHA, prediction()).reading_id
    assert [count(store, table) for table in (Patient, Study, Reading, Review)] == [1, 1, 1, 0]
    event = events(store)[-1]
    assert (len(events(store)) - before, event.action, event.object) == (1, "case.save", f"reading:{reading_id}")
    assert event.detail["new_patient"] is True
    assert audit_trail.verify(store) == len(events(store))


def test_a_second_case_goes_to_the_patient_that_is_there(store, doctor, chest_image, prediction):
    first = doctor.case(doctor.save_case(patient(), chest_image(), SHA, prediction()).reading_id)
    second = doctor.case(doctor.save_case(first.patient.id, chest_image(seed=1), "cd" * 32, prediction()).reading_id)
    assert second.patient == first.patient
    assert [count(store, table) for table in (Patient, Study, Reading)] == [1, 2, 2]


def test_a_save_that_fails_at_any_step_leaves_nothing_behind(store, doctor, chest_image, prediction, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    before = everything(store)
    for table in (Patient, Study, Reading):
        sa.event.listen(table, "after_insert", fail)
        with pytest.raises(ZeroDivisionError):
            doctor.save_case(patient(), chest_image(), SHA, prediction())
        sa.event.remove(table, "after_insert", fail)
        assert everything(store) == before
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(audit_trail, "append", fail)
        doctor.save_case(patient(), chest_image(), SHA, prediction())
    assert everything(store) == before
    doctor.save_case(patient(), chest_image(), SHA, prediction())


def test_the_image_is_encoded_before_the_transaction_begins(doctor, store, chest_image, prediction, monkeypatch):
    encode, writes = cases.pixels.encode, []

    def other_doctor_writes(image):
        with store.write():  # would wait for ever, were a transaction open
            writes.append(True)
        return encode(image)

    monkeypatch.setattr(cases.pixels, "encode", other_doctor_writes)
    doctor.save_case(patient(), chest_image(), SHA, prediction())
    assert writes


def test_a_number_that_is_taken_is_refused_without_saying_whose_it_is(store, doctor, chest_image, prediction):
    doctor.save_case(patient("T-1", "Test Secret"), chest_image(), SHA, prediction())
    with pytest.raises(RecordRefused, match="'T-1' is taken already") as refused:
        doctor.save_case(patient(" T-1 ", "Test Other"), chest_image(), SHA, prediction())
    assert "Secret" not in str(refused.value)
    assert [count(store, table) for table in (Patient, Study, Reading)] == [1, 1, 1]


def test_two_doctors_who_enter_the_same_number_at_once_make_one_patient(store, signed_in, chest_image, prediction):
    doctors = [Records(signed_in("doctor", name)) for name in ("first", "second", "third")]
    start, outcomes = threading.Barrier(3), []

    def enter(who):
        start.wait()
        try:
            outcomes.append(who.save_case(patient(), chest_image(), SHA, prediction()))
        except RecordRefused:
            outcomes.append("taken")

    threads = [threading.Thread(target=enter, args=(who,)) for who in doctors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert outcomes.count("taken") == 2
    assert [count(store, table) for table in (Patient, Study, Reading)] == [1, 1, 1]


def test_what_an_erased_patients_open_tab_does_is_refused_in_words(store, doctor, signed_in, chest_image, prediction):
    case = doctor.case(doctor.save_case(patient(), chest_image(), SHA, prediction()).reading_id)
    Administration(signed_in("admin")).erase_patient(case.patient.id)
    with pytest.raises(RecordMissing, match="erased"):
        doctor.save_case(case.patient.id, chest_image(), SHA, prediction())
    with pytest.raises(RecordMissing, match="erased"):
        doctor.review(case.reading_id, "Pneumonia")
    with pytest.raises(RecordMissing, match="erased"):
        doctor.case(case.reading_id)
    with pytest.raises(RecordMissing, match="erased"):
        doctor.patient(case.patient.id)
    assert [count(store, table) for table in (Patient, Study, Reading, Review)] == [0, 0, 0, 0]


def test_an_identifier_that_is_none_finds_nothing(doctor):
    for hostile in (NOBODY, "", "x", "a\0b", "\ud800", "' OR 1=1 --", "%", "1" * 10_000, None, 7, ["a"]):
        with pytest.raises(RecordMissing):
            doctor.case(hostile)
        with pytest.raises(RecordMissing):
            doctor.patient(hostile)
        with pytest.raises(RecordMissing):
            doctor.review(hostile, "Normal")
        assert doctor.same_upload(hostile, SHA) is None


def test_the_same_bytes_for_the_same_patient_are_known_by_their_latest_reading(doctor, chest_image, prediction):
    first = doctor.save_case(patient(), chest_image(), SHA, prediction()).reading_id
    one = doctor.case(first).patient.id
    other = doctor.save_case(patient("T-2"), chest_image(seed=2), "cd" * 32, prediction()).patient.id
    assert doctor.same_upload(one, SHA) == first
    assert doctor.same_upload(one, "cd" * 32) is None
    assert doctor.same_upload(other, SHA) is None
    second = doctor.save_case(one, chest_image(), SHA, prediction()).reading_id
    assert doctor.same_upload(one, SHA) == second


def test_a_case_without_the_hash_of_its_file_is_refused(store, doctor, chest_image, prediction):
    for digest in ("", "ab", "AB" * 32, "zz" * 32, "ab" * 32 + "\n"):
        with pytest.raises(RecordRefused, match="SHA-256"):
            doctor.save_case(patient(), chest_image(), digest, prediction())
    assert count(store, Patient) == 0


# --- what is accepted


@pytest.mark.parametrize("birth_year", [1900, now().year, None])
@pytest.mark.parametrize("sex", ["female", "male", "other", "unknown"])
def test_a_patient_within_the_limits_is_accepted(birth_year, sex):
    NewPatient("9" * 64, "Ä" * 200, birth_year, sex)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"birth_year": 1899}, "accepted are 1900 to"),
        ({"birth_year": now().year + 1}, f"1900 to {now().year}"),
        ({"birth_year": "1970"}, "birth year '1970'"),
        ({"birth_year": 1970.5}, "birth year"),
        ({"birth_year": True}, "birth year"),
        ({"sex": "f"}, "accepted are female, male, other, unknown"),
        ({"sex": ""}, "accepted are female"),
        ({"name": ""}, "the name is empty"),
        ({"name": " \t\n"}, "the name is empty"),
        ({"name": "\u200d\u200b"}, "the name is empty"),
        ({"name": None}, "the name is empty"),
        ({"name": "a" * 201}, "201 characters are too many for the name; accepted are up to 200"),
        ({"number": ""}, "the patient number is empty"),
        ({"number": "\0\x1b"}, "the patient number is empty"),
        ({"number": "1" * 65}, "65 characters are too many for the patient number; accepted are up to 64"),
        ({"number": 12}, "the patient number is empty"),
    ],
)
def test_a_patient_outside_the_limits_is_refused_with_what_is_accepted(wrong, words):
    right = {"number": "T-1", "name": "Test Patient", "birth_year": 1970, "sex": "male"}
    with pytest.raises(RecordRefused, match=words):
        NewPatient(**right | wrong)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("  Test\t Patient\n", "Test Patient"),
        ("Test\0 Pat\x1bient\x7f", "Test Patient"),
        ("Test \u202etneitaP", "Test tneitaP"),
        ("Te\u200bst\ufeff Patient\u2069", "Test Patient"),
        ("Te\ud800st", "Test"),
        ("Mu\u0308ller", "Müller"),
        ("O'Test-Ñame, Jr.", "O'Test-Ñame, Jr."),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("測試", "測試"),
    ],
)
def test_a_name_is_stored_as_it_looks(typed, kept):
    assert NewPatient("1", typed).name == kept


def test_two_numbers_that_look_the_same_are_the_same():
    assert NewPatient(" T\u200b-1\u200d\u00ad ", "Test").number == "T-1"


def test_free_text_keeps_its_lines_and_loses_what_cannot_be_seen(doctor, chest_image, prediction):
    typed = "Fever\r\n\tcough\0\x1b[31m\u202e since \ud83dMonday — 39 °C\u2028end"
    case = doctor.case(doctor.save_case(patient(), chest_image(), SHA, prediction(), typed).reading_id)
    assert case.notes == "Fever\n\tcough[31m since Monday — 39 °C\nend"


def test_free_text_ends_at_4000_characters(store, doctor, chest_image, prediction):
    reading_id = doctor.save_case(patient(), chest_image(), SHA, prediction(), "é" * 4000).reading_id
    doctor.review(reading_id, "Pneumonia", "x" * 4000)
    with pytest.raises(RecordRefused, match="4001 characters are too many for the notes; accepted are up to 4000"):
        doctor.save_case(patient("T-2"), chest_image(), SHA, prediction(), "é" * 4001)
    with pytest.raises(RecordRefused, match="4001"):
        doctor.review(reading_id, "Pneumonia", "x" * 4001)
    assert [count(store, table) for table in (Patient, Review)] == [1, 1]


# --- finding patients


@pytest.fixture
def many(doctor, chest_image, prediction):
    for number, name in [
        ("T-10", "Test Anna Müller"),
        ("T-1", "Test Bert"),
        ("100%", "Test Carl"),
        ("1_0", "Test Örn"),
        ("1x0", "Test ÉMILE"),
        ("back\\slash", "Test Zoë"),
    ]:
        doctor.save_case(patient(number, name), chest_image(), SHA, prediction(), confirmed=[SAME_IMAGE])
    return lambda text, **limit: [found.number for found in doctor.find_patients(text, **limit)]


def test_patients_are_found_by_parts_of_number_or_name_in_any_case(many):
    assert many("anna") == ["T-10"]
    assert many("MÜLLER") == ["T-10"]
    assert many("müller") == ["T-10"]
    assert many("Mu\u0308ller") == ["T-10"]
    assert many("örn") == many("ÖRN") == ["1_0"]
    assert many("émile") == ["1x0"]
    assert many("müller anna") == many("t-10 müll") == ["T-10"]
    assert many("anna bert") == []
    assert many("nobody") == []


def test_the_number_as_typed_comes_first(many):
    assert many("T-1") == ["T-1", "T-10"]


def test_signs_of_the_query_language_are_searched_for_as_they_are(many):
    assert many("%") == ["100%"]
    assert many("_") == ["1_0"]
    assert many("1_0") == ["1_0"]
    assert many("\\") == ["back\\slash"]
    assert many("' OR '1'='1") == []
    assert many("a\0nna\ud800") == ["T-10"]


def test_no_more_patients_are_given_than_asked_for(many):
    assert len(many("")) == 6
    assert many("", limit=2) == ["T-10", "T-1"]
    assert many("x " * 5000) == ["1x0"]


# --- reviewing


def test_all_reviews_are_stored_and_the_latest_counts(store, doctor, signed_in, chest_image, prediction):
    reading_id = doctor.save_case(patient(), chest_image(), SHA, prediction("Pneumonia")).reading_id
    doctor.review(reading_id, "Pneumonia", "clear")
    Records(signed_in("doctor", "second")).review(reading_id, "Normal", "<b>no</b>")
    assert [(r.reviewer, r.agrees, r.label, r.comment) for r in doctor.case(reading_id).reviews] == [
        ("Test Doctor", True, "Pneumonia", "clear"),
        ("Test Second", False, "Normal", "<b>no</b>"),
    ]
    row = doctor.worklist()[0]
    assert (row.reviewed, row.reviewer, row.reviewer_label, row.agrees) == (True, "Test Second", "Normal", False)
    assert [event.detail["label"] for event in events(store, "case.review")] == ["Pneumonia", "Normal"]


def test_a_review_with_an_unknown_class_is_refused(store, doctor, chest_image, prediction):
    reading_id = doctor.save_case(patient(), chest_image(), SHA, prediction("Pneumonia")).reading_id
    for label in ("Tuberculosis", "", None, ["Normal"], "pneumonia"):
        with pytest.raises(RecordRefused, match="not one of this reading's classes: Pneumonia, Normal"):
            doctor.review(reading_id, label)
    assert count(store, Review) == 0
    assert events(store, "case.review") == []


# --- worklist and patient


def test_the_worklist_shows_every_reading_newest_first(doctor, signed_in, chest_image, prediction):
    failed = (*prediction().checks, *(type(c)(c.name, False, 9.0, 1.0, "Not a chest.") for c in prediction().checks))
    first = doctor.save_case(patient(), chest_image(), SHA, prediction("Normal", 0.9)).reading_id
    second = (
        Records(signed_in("doctor", "second"))
        .save_case(
            patient("T-2", "Test Two"), chest_image("HU", "CT"), "cd" * 32, prediction(version="v2", checks=failed)
        )
        .reading_id
    )
    doctor.review(first, "Pneumonia")
    new, old = doctor.worklist()
    assert [new.reading_id, old.reading_id] == [second, first]
    assert (new.number, new.name, new.kind, new.version) == ("T-2", "Test Two", "CT", "v2")
    assert (new.probability, new.flagged, new.read_by) == (0.8, True, "Test Second")
    assert (new.reviewed, new.reviewer, new.reviewer_label, new.agrees) == (False, None, None, None)
    assert (old.label, old.probability, old.flagged, old.agrees) == ("Normal", 0.9, False, False)
    assert old.reviewed
    assert abs(now() - new.read_at) < timedelta(minutes=1)


def test_the_worklist_takes_one_query_and_loads_no_pixels(store, doctor, chest_image, prediction):
    for number in range(3):
        image, digest = chest_image(seed=number), f"{number:064x}"
        reading_id = doctor.save_case(patient(str(number)), image, digest, prediction()).reading_id
        doctor.review(reading_id, "Pneumonia")
    asked = []

    def note(_connection, _cursor, statement, *_):
        asked.append(statement)

    sa.event.listen(store.engine, "before_cursor_execute", note)
    doctor.worklist()
    about_readings = [statement for statement in asked if "readings" in statement]
    assert len(about_readings) == 1
    assert "heat" not in about_readings[0]
    assert "studies.pixels" not in about_readings[0]


def test_a_patients_page_shows_all_cases_oldest_first_with_thumbnails(doctor, chest_image, prediction):
    first = doctor.save_case(patient(), chest_image("HU", "CT"), SHA, prediction(), "first visit").reading_id
    one = doctor.case(first).patient
    second = doctor.save_case(one.id, chest_image(shape=(400, 300)), "cd" * 32, prediction("Normal")).reading_id
    doctor.save_case(patient("T-2"), chest_image(), "ef" * 32, prediction())
    doctor.review(second, "Pneumonia")
    page = doctor.patient(one.id)
    assert page.patient == one
    assert [case.reading_id for case in page.cases] == [first, second]
    assert [(case.kind, case.reviewed) for case in page.cases] == [("CT", False), ("X-ray", True)]
    assert (page.cases[1].reviewer, page.cases[1].reviewer_label, page.cases[1].agrees) == (
        "Test Doctor",
        "Pneumonia",
        False,
    )
    assert page.cases[1].probability == 0.8
    assert all(case.thumbnail.startswith(b"\x89PNG") and len(case.thumbnail) < 40_000 for case in page.cases)


def test_the_trail_notes_who_opened_what(store, doctor, signed_in, chest_image, prediction):
    reading_id = doctor.save_case(patient(), chest_image(), SHA, prediction()).reading_id
    second = Records(signed_in("doctor", "second"))
    patient_id = second.case(reading_id).patient.id
    second.patient(patient_id)
    opened = [(event.action, event.object) for event in events(store) if event.action.endswith(".open")]
    assert opened == [("case.open", f"reading:{reading_id}"), ("patient.open", f"patient:{patient_id}")]
    (event,) = events(store, "case.open")
    assert event.user_id == accounts.whoami(store, second.access.token).user_id


# --- CT series


def test_a_series_comes_back_as_it_was_read_with_every_slice(store, doctor, ct_series, series_said):
    said, done = series_said(ct_series), []
    saved = doctor.save_series(patient(), ct_series, said, notes="cough", tell=done.append)
    case, kept = doctor.case(saved.reading_id), doctor.series(saved.reading_id)
    assert done == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (case.kind, case.units, case.notes, case.sha256) == ("CT", "HU", "cough", ct_series.sha256())
    assert (case.label, case.decision, case.probabilities) == (
        "Pneumonia",
        "Pneumonia",
        {"Pneumonia": 0.9, "Normal": 0.1},
    )
    assert [check.words for check in case.checks] == ["all 2 slices that decide: Looks like a chest X-ray."]
    assert (kept.slices, kept.readable, kept.carrying, kept.reasons) == (8, "volume", (3, 4), ())
    assert kept.spacing == pytest.approx(ct_series.spacing)
    assert kept.positions == pytest.approx([one.position for one in ct_series.slices])
    assert [one.number for one in kept.read] == list(range(8))
    assert (kept.affected, kept.extent) == (said.affected, said.extent)
    assert kept.heat.shape == (2, 2, 6, 8)
    np.testing.assert_array_equal(case.pixels, ct_series.slice(kept.key.number).pixels)
    np.testing.assert_array_equal(case.heat, kept.heat[kept.carrying.index(kept.key.number)])
    for number in range(8):
        stored = pixels.decode(doctor.series_slices(saved.reading_id, [number])[0], "HU")
        np.testing.assert_array_equal(stored, ct_series.slice(number).pixels)
    assert doctor.worklist()[0].slices == 8
    assert [event.detail["slices"] for event in events(store, "case.save")] == [8]


def test_of_a_normal_series_the_least_normal_slice_is_shown(doctor, ct_series, series_said):
    said = dataclasses.replace(series_said(ct_series), label="Normal", carrying=(0, 2, 3))
    assert [round(said.slices[place].reading.probabilities[1], 2) for place in said.carrying] == [0.4, 0.2, 0.1]
    saved = doctor.save_series(patient(), ct_series, said)
    kept = doctor.series(saved.reading_id)
    assert kept.key.number == 3 and kept.chance(kept.key) == pytest.approx(0.9)
    np.testing.assert_array_equal(doctor.case(saved.reading_id).pixels, ct_series.slice(3).pixels)


def test_an_image_is_no_series(doctor, chest_image, prediction):
    saved = doctor.save_case(patient(), chest_image(), SHA, prediction())
    assert doctor.series(saved.reading_id) is None
    assert doctor.worklist()[0].slices is None


def test_neither_file_names_nor_free_text_of_headers_are_kept_of_a_series(store, doctor, ct_folder, series_said):
    (one,) = series.read([*sorted(ct_folder.glob("*.dcm")), ct_folder / "cut-3.dcm", ct_folder / "Jane Doe.txt"]).series
    assert {finding.rule for finding in one.findings} >= {series.Rule.DUPLICATE}
    saved = doctor.save_series(patient(), one, series_said(one))
    assert "duplicate" in {finding["rule"] for finding in doctor.series(saved.reading_id).findings}
    rows = {
        name: some for name, some in everything(store).items() if name in ("series", "studies", "readings", "audit")
    }
    assert not any(word in repr(rows) for word in ("cut-", "Jane", "PHANTOM"))


def test_a_slice_needs_its_case_to_be_opened_by_the_same_person_and_looking_leaves_no_row(
    store, doctor, signed_in, ct_series, series_said
):
    saved = doctor.save_series(patient(), ct_series, series_said(ct_series))
    with pytest.raises(RecordMissing, match="open it first"):
        doctor.series_slices(saved.reading_id, [0])[0]
    doctor.case(saved.reading_id)
    before = len(events(store))
    assert doctor.series_slices(saved.reading_id, [7])[0].startswith(b"\x89PNG")
    assert len(events(store)) == before
    assert doctor.series_slices(saved.reading_id, [7, 0]) == [
        doctor.series_slices(saved.reading_id, [n])[0] for n in (7, 0)
    ]
    for number in (-1, 8):
        with pytest.raises(RecordMissing):
            doctor.series_slices(saved.reading_id, [number])[0]
    with pytest.raises(RecordMissing, match="open it first"):
        Records(signed_in("doctor", "bert")).series_slices(saved.reading_id, [0])[0]


def test_a_series_that_cannot_be_decoded_or_is_too_long_leaves_nothing(
    store, doctor, ct_folder, tmp_path, series_said, monkeypatch
):
    shutil.copytree(ct_folder, tmp_path / "ct")
    (one,) = series.read(tmp_path / "ct").series
    said = series_said(one)
    (tmp_path / "ct" / "cut-0.dcm").write_bytes(b"")
    with pytest.raises(ImageRefused, match="cut-0"):
        doctor.save_series(patient(), one, said, SHA)
    monkeypatch.setattr(stacks, "MOST_SLICES", 7)
    with pytest.raises(RecordRefused, match="8 slices are too many; accepted are up to 7"):
        doctor.save_series(patient(), one, said, SHA)
    assert [count(store, table) for table in (Patient, Study, Reading, CtSeries, SeriesSlice)] == [0] * 5


def test_the_digest_of_a_series_is_that_of_its_slices_alone(ct_folder, tmp_path, ct_series):
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
        for number, file in enumerate(sorted(ct_folder.glob("*.dcm"), reverse=True)):
            archive.write(file, f"export/{number}")
    (packed,) = series.read(tmp_path / "ct.zip").series
    (shorter,) = series.read(sorted(ct_folder.glob("*.dcm"))[:-1]).series
    assert packed.sha256() == ct_series.sha256() != shorter.sha256()
