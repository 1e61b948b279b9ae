"""Images withdrawn or moved: what follows, what is marked, and that no figure counts a withdrawn image."""

from datetime import timedelta

import ipywidgets as widgets
import pypdf
import pytest
import sqlalchemy as sa

from lungkit.clinic import report
from lungkit.clinic.app.correction import CorrectionForm, corrected
from lungkit.clinic.app.describe import review_words, study_figure
from lungkit.clinic.app.page import Page
from lungkit.clinic.app.patient import PatientScreen
from lungkit.clinic.app.review_form import ReviewForm
from lungkit.clinic.app.worklist import WITHDRAWN, WorklistScreen
from lungkit.clinic.learning import doubts, measures, next_labels, reviews, shadow, trial
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import audit_trail, opinions, pixels, settings
from lungkit.clinic.records.accounts import Forbidden
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import BlindCase, ChangedMeanwhile, Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.patients import NewPatient, RecordMissing, RecordRefused
from lungkit.clinic.records.tables import (
    CANCELLED,
    DONE,
    QUEUED,
    BlindReading,
    Challenger,
    Destination,
    Dispatch,
    Job,
    ShadowReading,
    Study,
    StudyMove,
    Withdrawal,
    now,
)
from lungkit.models import registry
from lungkit.models.prediction import Check
from tests.cards import model_card
from tests.clinic.rows import count, events, everything

KIND = Check("kind", True, 0.5, 1.0, "looks like a chest X-ray")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def doctor(signed_in) -> Records:
    return Records(signed_in("doctor", "anna"))


@pytest.fixture
def save(doctor, chest_image, prediction):
    """A function: a new reading of a patient, by default a new one; its id and the patient's."""

    def make(seed=1, patient=None, confirmed=(), **changes) -> tuple[str, str]:
        whose = patient or NewPatient(f"T-{seed}", f"Test {seed}", 1970, "female")
        image, sha256 = chest_image(seed=seed), f"{seed:064x}"
        saved = doctor.save_case(whose, image, sha256, prediction(**changes), confirmed=confirmed)
        return saved.reading_id, saved.patient.id

    return make


# --- withdrawing


def test_a_withdrawn_image_stays_and_says_by_whom_when_and_why(store, doctor, save):
    reading, patient = save()
    doctor.withdraw(reading, f"of her sister {HOSTILE}")
    gone = doctor.case(reading).corrections.withdrawn
    assert (gone.by, gone.reason) == ("Test Anna", f"of her sister {HOSTILE}")
    [row] = doctor.patient(patient).cases
    assert row.withdrawn == gone
    assert doctor.worklist()[0].withdrawn == gone
    [event] = events(store, "case.withdraw")
    assert event.object == f"reading:{reading}"
    assert "sister" not in str(event.detail)
    assert audit_trail.verify(store)
    assert "&lt;img" in corrected(doctor.case(reading)) and "<img" not in corrected(doctor.case(reading))


@pytest.mark.parametrize("reason", ["", "  \n "])
def test_without_a_reason_nothing_is_withdrawn_or_moved(store, doctor, save, reason):
    reading, _ = save()
    _, other = save(2)
    before = everything(store)
    for act in (lambda: doctor.withdraw(reading, reason), lambda: doctor.move(reading, other, reason)):
        with pytest.raises(RecordRefused, match="reason"):
            act()
    assert everything(store) == before


def test_an_image_is_withdrawn_once(doctor, save):
    reading, _ = save()
    doctor.withdraw(reading, "of another person")
    with pytest.raises(RecordRefused, match="withdrawn before"):
        doctor.withdraw(reading, "again")


def test_only_doctors_withdraw_and_move(store, save, signed_in):
    reading, patient = save()
    admin = Records(signed_in("admin"))
    for act in (lambda: admin.withdraw(reading, "why"), lambda: admin.move(reading, patient, "why")):
        with pytest.raises(Forbidden):
            act()
    assert count(store, Withdrawal) == count(store, StudyMove) == 0


@pytest.fixture
def listed(store):
    """A function: entries of a list to send, of this reading, in these states."""

    def make(reading, *states) -> None:
        with store.write() as db:
            to = Destination(name="pacs", kind="fhir", address="https://pacs.example", objects=["bundle"], active=True)
            db.add(to)
            db.flush()
            for number, state in enumerate(states):
                listed = {"reading_id": reading, "destination_id": to.id, "object": "bundle", "state": state}
                db.add(Dispatch(**listed, review_id=str(number)))

    return make


def test_what_was_sent_is_told_and_what_waits_is_not_sent(store, doctor, save, listed):
    reading, _ = save()
    listed(reading, DONE, DONE, QUEUED)
    form = CorrectionForm(doctor.case(reading), doctor, Page(), lambda reading_id: None)
    form.reason.value = "of another person"
    form.withdraw.click()
    assert (
        "2 results for this image were sent to other systems. FHIR and HL7 systems are told"
        in form.confirm.question.value
    )
    form.confirm.yes.click()
    with store.read() as db:
        states = sorted(db.scalars(sa.select(Dispatch.state)))
    assert states == [CANCELLED, DONE, DONE]
    doctor.review(reading, "Pneumonia")
    assert count(store, Dispatch) == 3, "a review of a withdrawn image is not sent"
    assert events(store, "case.withdraw")[0].detail["sent"] == 2


def test_the_same_image_can_be_saved_again_after_it_was_withdrawn(doctor, save):
    reading, patient = save()
    assert doctor.same_upload(patient, f"{1:064x}") == reading
    doctor.withdraw(reading, "by mistake")
    assert doctor.same_upload(patient, f"{1:064x}") is None


# --- no figure counts it


def figures(store, admin: Administration, second: Records) -> dict[str, object]:
    """Every figure and list that counts readings or reviews."""
    usage = admin.usage()
    found: dict[str, object] = {
        "uploads": int(usage.per_day["uploads"].sum()),
        "readings": int(usage.per_day["readings"].sum()),
        "reviews": int(usage.per_day["reviews"].sum()),
        "times": usage.times.to_dict("list"),
        "decisions": usage.decisions.to_dict("list"),
        "reviews by label": usage.reviews.to_dict("list"),
        "agreement": usage.agreement.to_dict("list"),
        "confusion": {name: table.to_dict() for name, table in usage.confusion.items()},
        "to read again": opinions.to_read_again(second.access),
        "readers differ": opinions.readers_differ(second.access),
        "to look at again": doubts.look_again(second.access),
        "doubts": doubts.of_records(store, reviews.Asked()),
        "next labels": next_labels.order(store, "lung"),
        "suggested": next_labels.suggested(second.access),
        "shadow": shadow.compared(admin.access),
    }
    for locked in (False, True):
        chosen = reviews.selected(store, reviews.Asked(locked=locked))
        counts = {why: n for why, n in chosen.counts.items() if why != "withdrawn"}
        found[f"collected, locked {locked}"] = (chosen.images, chosen.aside, counts)
    with store.read() as db:
        found["labelled files"] = [one.reading_id for one in reviews.labelled_files(db, reviews.Asked())]
        found["agreed in a trial"] = trial._agreed(db, "lung", "v1")
        found["left in a trial"] = trial._left(db, "lung", "v1")
        found["waits for the shadow"] = len(db.execute(shadow._waiting(db, "lung", "v2")).all())
        day = now().date()
        groups = measures.groups(
            db, day - timedelta(days=1), day + timedelta(days=1), day - timedelta(days=1), "clinic"
        )
        found["drift"] = {key: len(rows) for key, rows in groups.items()}
    return found


def test_no_figure_counts_a_withdrawn_image(store, doctor, save, signed_in, ct_series, series_said):
    admin, second, third = (
        Administration(signed_in("admin")), *(Records(signed_in("doctor", name)) for name in ("bert", "cleo"))
    )  # fmt: skip
    with store.write() as db:
        db.add(Challenger(model="lung", version="v2", since=now() - timedelta(days=1)))
    for seed in range(1, 9):  # labels that the model agrees with, whose confidence a doubt is measured against
        reading, _ = save(seed, label="Pneumonia" if seed % 2 else "Normal", probability=0.9)
        doctor.review(reading, "Pneumonia" if seed % 2 else "Normal")
    before = figures(store, admin, second)

    added = []
    for seed in (20, 21, 22):
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, float(seed != 22))
        added.append(save(seed, label="Pneumonia", probability=0.99, decision="uncertain: review")[0])
    doctor.review(added[0], "Pneumonia")  # waits for a second reader
    doctor.review(added[1], "Normal")
    third.review(added[1], "Pneumonia")  # waits for a third
    doctor.review(added[2], "Normal")  # a doubt
    added.append(save(23)[0])  # not labelled
    stack = doctor.save_series(NewPatient("S-1", "Series"), ct_series, series_said(ct_series)).reading_id
    added.append(stack)
    if isinstance(doctor.open_case(stack), BlindCase):
        doctor.review(stack, "Pneumonia")
    else:
        doctor.review(stack, "Pneumonia")
    with store.write() as db:
        db.add(ShadowReading(reading_id=added[2], version="v2", probabilities={"Pneumonia": 0.2, "Normal": 0.8},
                             label="Normal", decision="Normal", milliseconds=1.0))  # fmt: skip
    between = figures(store, admin, second)
    assert [name for name in before if before[name] == between[name]] == [], "the added images are in every figure"

    for reading in added:
        doctor.withdraw(reading, "for the test")
    after = figures(store, admin, second)
    assert {name: after[name] for name in after if after[name] != before[name]} == {}
    assert reviews.selected(store, reviews.Asked()).counts["withdrawn"] == 4  # nothing is left out in silence
    exported = admin.export_csv().decode("utf-8-sig").splitlines()
    assert sum("for the test" in line for line in exported) == len(added)


# --- moving


def test_a_move_takes_everything_along_and_can_be_taken_back(store, doctor, save, signed_in, ct_series, series_said):
    with store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 1.0)
    saved = doctor.save_series(NewPatient("T-1", "Wrong"), ct_series, series_said(ct_series))
    doctor.review(saved.reading_id, "Normal", "a comment")
    _, right = save(2)
    doctor.move(saved.reading_id, right, "sent for the wrong patient")
    case = doctor.case(saved.reading_id)
    assert case.patient.id == right
    assert [review.comment for review in case.reviews] == ["a comment"]
    assert [(move.before, move.by) for move in case.corrections.moves] == [("T-1", "Test Anna")]
    assert len(doctor.series_slices(saved.reading_id, [0, 7])) == 2
    assert isinstance(Records(signed_in("doctor", "bert")).open_case(saved.reading_id), BlindCase)
    assert count(store, BlindReading) == 2
    assert [row.reading_id for row in doctor.patient(saved.patient.id).cases] == []
    [event] = events(store, "case.move")
    assert (event.detail["before"], event.detail["after"]) == (saved.patient.id, right)
    assert "wrong patient" not in str(event.detail)

    doctor.move(saved.reading_id, saved.patient.id, "it was right before")
    assert doctor.case(saved.reading_id).patient.id == saved.patient.id
    assert count(store, StudyMove) == 2


def test_a_move_to_the_same_patient_to_no_one_or_to_one_with_the_image_is_refused(store, doctor, save):
    reading, patient = save(1)
    _, other = save(2)
    save(1, patient=other, confirmed=[SAME_IMAGE])
    for to, words in ((patient, "already one of patient"), (other, "has the same image already")):
        with pytest.raises(RecordRefused, match=words):
            doctor.move(reading, to, "why")
    with pytest.raises(RecordMissing):
        doctor.move(reading, "00000000-0000-4000-8000-000000000000", "why")
    assert count(store, StudyMove) == 0


def test_erasing_a_patient_erases_what_was_moved_there_and_not_what_was_moved_away(store, doctor, save, signed_in):
    admin = Administration(signed_in("admin"))
    (first, one), (second, other) = save(1), save(2)
    doctor.move(first, other, "belongs there")
    doctor.move(second, one, "belongs there")
    doctor.withdraw(first, "not needed")
    admin.erase_patient(other)
    with pytest.raises(RecordMissing):
        doctor.case(first)
    [move] = doctor.case(second).corrections.moves
    assert (move.before, move.reason) == ("", ""), "the reason may name who was erased"
    assert "a patient who was erased since" in corrected(doctor.case(second))
    assert [count(store, table) for table in (Study, Withdrawal, StudyMove)] == [1, 0, 1]


def test_a_move_says_what_the_records_know_against_it(doctor, save):
    reading, _ = save(1)
    _, other = save(2, patient=NewPatient("T-2", "Other", 1999, "male"))
    sent, words = doctor.before_correction(reading, other)
    assert sent == 0
    assert words == [
        "Patient T-1 was born in 1970, patient T-2 in 1999.", "Patient T-1 is female, patient T-2 is male.",
    ]  # fmt: skip


# --- an image that was read again


@pytest.fixture
def read_again(doctor, chest_image, prediction):
    """A function: read the image of a reading again, turned; the id of the new reading."""

    def make(reading, **changes) -> str:
        return doctor.save_again(reading, chest_image(shape=(64, 48)), prediction(**changes)).reading_id

    return make


def test_moving_one_reading_of_an_image_moves_all_of_them(store, doctor, save, read_again):
    first, wrong = save(1)
    second = read_again(first)
    third = read_again(second)
    _, right = save(2)
    doctor.move(second, right, "sent for the wrong patient")
    assert {doctor.case(reading).patient.id for reading in (first, second, third)} == {right}
    assert doctor.patient(wrong).cases == ()
    moved = {event.object for event in events(store, "case.move")}
    assert moved == {f"reading:{one}" for one in (first, second, third)}
    with store.read() as db:
        assert reviews._under_two_patients(db, (), {}) == set()
    doctor.move(first, wrong, "it was right before")
    assert {doctor.case(reading).patient.id for reading in (first, second, third)} == {wrong}


@pytest.mark.parametrize("which", [0, 1])
def test_withdrawing_one_reading_of_an_image_withdraws_all_of_them(store, doctor, save, read_again, listed, which):
    first, patient = save(1)
    readings = first, read_again(first)
    listed(first, DONE, QUEUED)
    again, _ = save(1, patient=patient)  # uploaded once more: another image
    assert doctor.before_correction(readings[1])[0] == 1
    doctor.withdraw(readings[which], "of another person")
    assert [doctor.case(one).corrections.withdrawn.reason for one in readings] == ["of another person"] * 2
    assert doctor.case(again).corrections.withdrawn is None
    assert {event.object for event in events(store, "case.withdraw")} == {f"reading:{one}" for one in readings}
    with store.read() as db:
        assert QUEUED not in set(db.scalars(sa.select(Dispatch.state)))


def test_a_reading_that_was_withdrawn_or_is_another_patients_replaces_none(store, doctor, save, read_again):
    first, patient = save(1)
    second, (_, other) = read_again(first), save(2)
    study = doctor.case(second).study_id
    assert doctor.case(first).superseded
    with store.write() as db:  # as it was moved before all of an image were
        db.execute(sa.update(Study).where(Study.id == study).values(patient_id=other))
    assert not doctor.case(first).superseded
    with store.write() as db:
        db.execute(sa.update(Study).where(Study.id == study).values(patient_id=patient))
        db.add(Withdrawal(study_id=study, reason="by mistake", user_id=1))
    assert not doctor.case(first).superseded
    rows = {row.reading_id: row.superseded for row in doctor.worklist()}
    assert not rows[first]
    assert doctor.same_upload(patient, f"{1:064x}") == first
    read_again(first)
    assert doctor.case(first).superseded


def test_an_image_that_was_read_again_keeps_when_and_by_whom_it_was_uploaded(
    store, doctor, save, signed_in, prediction
):
    first, _ = save(1)
    with store.write() as db:
        db.execute(sa.update(Study).values(uploaded_at=now() - timedelta(days=400)))
    before, other = doctor.case(first), Records(signed_in("doctor", "bert"))
    image = pixels.image_of(before.pixels, before.units, before.kind, before.tags)
    after = doctor.case(other.save_again(first, image, prediction()).reading_id)
    assert (after.uploaded_at, after.uploaded_by) == (before.uploaded_at, "Test Anna")
    one, again = sorted(events(store, "case.save"), key=lambda event: event.number)
    assert (again.object, again.detail["instead_of"]) == (f"reading:{after.reading_id}", first)
    assert again.user_id != one.user_id, "the trail says who read it again"
    assert int(Administration(signed_in("admin")).usage(days=500).per_day["uploads"].sum()) == 1


def test_a_withdrawn_image_is_not_read_again(store, doctor, save, read_again):
    reading, _ = save(1)
    doctor.withdraw(reading, "of another person")
    with pytest.raises(RecordRefused, match="was withdrawn"):
        read_again(reading)
    assert count(store, Study) == 1


def test_what_was_sent_as_urgent_stays_urgent_after_it_was_read_again(store, doctor, save, read_again):
    (first, _), (other, _) = save(1), save(2)
    with store.write() as db:
        db.add(Job(id=first, user_id=1, model="lung", priority="urgent", payload_sha256="ab" * 32, due_at=now()))
    second = read_again(read_again(first))
    read_again(other)
    urgent = {row.reading_id for row in doctor.worklist() if row.urgent}
    assert {first, second} < urgent and len(urgent) == 3


# --- whether a model is for the right patient


@pytest.fixture
def lung():
    """The version that read is one for children."""
    card = model_card(modality="X-ray", synthetic=False, about={"ages": [1, 5]})
    registry.add("lung", card, lambda folder: (folder / "net").write_bytes(b"<net/>"))


def age_check(age) -> Check:
    fits = age is not None and age <= 6
    return Check("age" if age else "age known", fits, float(age or 0), 5.0, f"the patient is {age} years old")


@pytest.fixture
def aged(save):
    """A function: a reading of a patient of this age by a model for children; its id and the patient's."""

    def make(seed, age) -> tuple[str, str]:
        check = age_check(age)
        patient = NewPatient(f"T-{seed}", "Test", now().year - age if age else None)
        return save(seed, patient=patient, checks=(KIND, check), decision=None if check.passed else REVIEW)

    return make


def test_a_reading_moved_to_a_patient_of_an_age_that_the_model_is_not_for_is_refused(lung, doctor, aged):
    (reading, child), (_, adult) = aged(1, 4), aged(2, 76)
    doctor.move(reading, adult, "saved for the wrong patient")
    case = doctor.case(reading)
    assert (case.refusal, case.decision) == ("Not for this patient", REVIEW)
    assert "76 years" in case.checks[-1].words and case.checks[0] == KIND
    doctor.move(reading, child, "it was right before")
    assert (doctor.case(reading).refusal, doctor.case(reading).decision) == ("", "Pneumonia")
    assert "4 years" in doctor.case(reading).checks[-1].words


@pytest.mark.parametrize("before", [76, None])
def test_a_reading_moved_to_a_patient_of_an_age_that_the_model_is_for_has_its_finding(lung, doctor, aged, before):
    (reading, _), (_, child) = aged(1, before), aged(2, 3)
    doctor.move(reading, child, "saved for the wrong patient")
    case = doctor.case(reading)
    assert (case.refusal, case.decision) == ("", "Pneumonia")
    assert all(check.passed for check in case.checks)


def test_a_review_is_compared_again_where_a_move_refuses_the_answer_or_gives_one(lung, doctor, aged):
    (reading, adult), (_, child) = aged(1, 76), aged(2, 4)
    doctor.review(reading, "Pneumonia")
    doctor.review(reading, "Normal")
    assert [review.agrees for review in doctor.case(reading).reviews] == [None, None]
    for to, agrees in ((child, [True, False]), (adult, [None, None])):
        doctor.move(reading, to, "saved for the wrong patient")
        assert [review.agrees for review in doctor.case(reading).reviews] == agrees


def test_without_the_version_that_read_no_age_is_known_after_a_move(doctor, aged, save):
    (reading, _), (_, other) = aged(1, 4), aged(2, 4)
    doctor.move(reading, other, "saved for the wrong patient")
    case = doctor.case(reading)
    assert (case.decision, case.checks[-1].name) == (REVIEW, "age known")
    assert "no longer there" in case.checks[-1].words
    plain, _ = save(3)  # by a model that states no ages
    doctor.move(plain, other, "saved for the wrong patient")
    assert doctor.case(plain).decision == "Pneumonia"


def test_the_reasons_of_a_series_are_of_the_patient_it_was_moved_to(lung, doctor, ct_series, series_said, aged):
    old, young = age_check(76), aged(1, 3)[1]
    said = series_said(ct_series, decision=REVIEW, reasons=(old.words,), checks=(old,))
    reading = doctor.save_series(NewPatient("T-9", "Old", now().year - 76), ct_series, said).reading_id
    doctor.move(reading, young, "saved for the wrong patient")
    (why,) = doctor.series(reading).reasons  # that it is refused was all that was looked at
    assert "refused for another patient" in why
    assert (doctor.case(reading).decision, doctor.case(reading).refusal) == (REVIEW, "")
    doctor.move(reading, aged(2, 70)[1], "saved for the wrong patient")
    why, *others = doctor.series(reading).reasons
    assert (len(others), doctor.case(reading).refusal) == (1, "Not for this patient")
    assert "the patient is 70 years old" in why


@pytest.mark.parametrize(
    ("tags", "born", "doubt"),
    [
        ({"age": "070Y", "study_year": "2010"}, 1940, ""),
        ({"age": "070Y", "study_year": "2010"}, 1941, ""),
        ({"age": "070Y", "study_year": "2010"}, 1990, "younger"),
        ({"age": "005Y", "study_year": "2010"}, 1940, "older"),
        ({"age": "005Y"}, 1940, ""),  # of the year when it was taken nothing is known
        ({"age": "070Y"}, 1990, "younger"),
        ({"age": "090Y", "study_year": "2010"}, 1912, ""),  # that is the oldest that is kept
        ({"study_year": "2010"}, 1990, ""),
    ],
)
def test_the_age_in_the_file_is_compared_in_the_year_when_the_image_was_taken(store, doctor, save, tags, born, doubt):
    reading, _ = save(1, patient=NewPatient("T-1", "Test"))
    with store.write() as db:
        db.execute(sa.update(Study).values(tags=tags))
    _, other = save(2, patient=NewPatient("T-2", "Test Two", born))
    words = " ".join(doctor.before_correction(reading, other)[1])
    assert doubt in words and bool(words) == bool(doubt)


# --- two people at once


def test_what_a_page_does_rests_on_what_it_shows(doctor, save):
    (reading, _), (_, second), (_, third) = save(1), save(2), save(3)
    shown = doctor.case(reading).shown
    doctor.move(reading, second, "saved for the wrong patient", shown)
    acts = (
        lambda: doctor.move(reading, third, "why", shown),
        lambda: doctor.withdraw(reading, "why", shown),
        lambda: doctor.review(reading, "Pneumonia", shown=shown),
    )
    for act in acts:
        with pytest.raises(ChangedMeanwhile, match="moved to patient T-2 meanwhile, so nothing was saved"):
            act()
    assert doctor.case(reading).patient.id == second and doctor.case(reading).reviews == ()


def test_a_review_is_refused_where_the_image_was_withdrawn_or_replaced_since(doctor, save, read_again):
    reading, _ = save(1)
    shown = doctor.case(reading).shown
    newer = read_again(reading)
    with pytest.raises(ChangedMeanwhile, match="replaced by a later reading"):
        doctor.review(reading, "Normal", shown=shown)
    shown = doctor.case(newer).shown
    doctor.withdraw(newer, "of another person")
    with pytest.raises(ChangedMeanwhile, match="withdrawn meanwhile"):
        doctor.review(newer, "Normal", shown=shown)
    doctor.review(newer, "Normal", shown=doctor.case(newer).shown)  # who sees that it is withdrawn may
    assert len(doctor.case(newer).reviews) == 1


def test_the_forms_of_a_reading_tell_that_it_was_moved_meanwhile(doctor, save):
    (reading, _), (_, other), _ = save(1), save(2), save(3)
    page, case = Page(), doctor.case(reading)
    correction, form = CorrectionForm(case, doctor, page, lambda reading_id: None), ReviewForm(case, doctor, page)
    doctor.move(reading, other, "saved for the wrong patient")
    page.act(lambda: form._save("Pneumonia"))()
    assert "moved to patient T-2 meanwhile" in page.message.value
    page.say("", "done")
    correction.reason.value = "why"
    correction.finder.text.value = "T-3"
    correction.finder.hits.children[0].click()
    correction.confirm.yes.click()
    assert "moved to patient T-2 meanwhile" in page.message.value
    assert doctor.case(reading).reviews == () and doctor.case(reading).patient.id == other


# --- on screens and paper


def test_the_worklist_shows_withdrawn_images_only_where_they_are_asked_for(doctor, save):
    (gone, _), (kept, _) = save(1), save(2)
    doctor.withdraw(gone, "of another person")
    screen = WorklistScreen(doctor, Page())
    screen.refresh()
    assert [row.reading_id for row in screen.table._items] == [kept]
    screen.reviewed.value = WITHDRAWN
    assert [row.reading_id for row in screen.table._items] == [gone]


def test_the_patient_page_marks_a_withdrawn_image_and_leaves_it_out_of_the_course(doctor, save):
    first, patient = save(1)
    save(2, patient=patient)
    screen = PatientScreen(doctor, Page())
    screen.refresh(patient)
    assert screen.course.value
    doctor.withdraw(first, "of another person")
    screen.refresh(patient)
    assert "1 image, oldest first; 1 image withdrawn<" in screen.head.value
    pictures = "".join(study.children[0].value for study in screen.studies.children)
    assert "Withdrawn by Test Anna on" in pictures and "of another person" in pictures
    assert not screen.course.value


def test_a_list_has_the_beginning_of_a_long_reason_and_the_reading_all_of_it(doctor, save):
    reading, patient = save()
    reason = f"of another person, {'very long ' * 300}END"
    doctor.withdraw(reading, reason)
    (row,) = doctor.patient(patient).cases
    for words in (review_words(row), study_figure(row)):
        assert "of another person, very long" in words and "…" in words
        assert "END" not in words and words.count("very long") < 8
    assert "END" in corrected(doctor.case(reading))


def test_the_report_of_a_withdrawn_image_says_so_first(doctor, save, tmp_path):
    reading, _ = save()
    doctor.withdraw(reading, "of another person " + "very long " * 300)
    path = tmp_path / "report.pdf"
    path.write_bytes(report.pdf(doctor.case(reading), None))
    pages = pypdf.PdfReader(path).pages
    words = pages[0].extract_text()
    assert words.index("This image was withdrawn") < words.index("Born")
    assert "of another person" in words
    assert len(pages) == 2


def test_an_image_is_moved_from_its_reading_after_a_question(store, doctor, save):
    (reading, _), (_, other) = save(1), save(2)
    page, visited = Page(), []
    form = CorrectionForm(doctor.case(reading), doctor, page, visited.append)
    assert form.fields.layout.display == "none"
    form.open.click()
    form.finder.text.value = "T-2"
    [hit] = form.finder.hits.children
    hit.click()
    assert "Write the reason first" in page.message.value
    form.reason.value = "sent for the wrong patient"
    hit.click()
    assert "from patient T-1 to T-2" in form.confirm.question.value
    assert count(store, StudyMove) == 0
    form.confirm.yes.click()
    assert doctor.case(reading).patient.id == other
    assert visited == [reading]
    assert "moved to patient T-2" in page.message.value


def test_a_reading_offers_the_correction(doctor, save):
    from lungkit.clinic.app.reading import reading as show

    reading, _ = save()
    buttons = [part.description for part in _all(show(doctor.case(reading), doctor, Page(), str))
               if isinstance(part, widgets.Button)]  # fmt: skip
    assert "Wrong patient or image?" in buttons


def _all(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _all(child)
