"""What administrators do: only they, always on the trail, and an erased patient is gone."""

import csv
import inspect
import io
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta

import pandas as pd
import pytest
import sqlalchemy as sa

from lungkit import times
from lungkit.clinic.records import accounts, administration, audit_trail, keys, routing, trials
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.patients import NewPatient, RecordMissing
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.tables import (
    AuditEvent,
    BlindReading,
    CtSeries,
    Dispatch,
    DriftRun,
    Job,
    JobFile,
    Patient,
    Reading,
    ReceivedStudy,
    Review,
    SeriesSlice,
    ShadowReading,
    SignIn,
    Study,
    Trial,
    User,
    now,
)
from lungkit.clinic.records.trials import RollbackRule
from lungkit.data.preprocess import Preprocessing
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import ModelCard
from lungkit.models.prediction import Check
from lungkit.models.registry import ModelDamaged, ModelMissing
from tests import trials as made
from tests.clinic.rows import count, events, everything

SHA = "ab" * 32
CARD = {
    "classes": ["Pneumonia", "Normal"],
    "preprocessing": Preprocessing().to_dict(),
    "data": {"name": "phantom", "fingerprint": "ab12"},
    "metrics": {"val": {"accuracy": 0.9}},
    "operating_point": {"kind": "threshold", "threshold": 0.5},
    "synthetic": True,
}


@pytest.fixture
def admin(signed_in) -> Administration:
    return Administration(signed_in("admin"))


@pytest.fixture
def doctor(signed_in) -> Records:
    return Records(signed_in("doctor"))


@pytest.fixture
def saved(doctor, chest_image, prediction):
    """A function: a saved reading's id, for a patient of its own."""

    def save(number="T-1", name="Test Patient", reading=None, notes="") -> str:
        patient = NewPatient(number, name, 1970, "female")
        made = reading or prediction()
        return doctor.save_case(patient, chest_image(), SHA, made, notes, confirmed=[SAME_IMAGE]).reading_id

    return save


def add_version(model="lung", **changes) -> registry.Version:
    return registry.add(
        model, ModelCard.from_dict(CARD | changes), lambda folder: (folder / "weights").write_bytes(b"weights")
    )


def user_id(store, name) -> int:
    with store.read() as db:
        return db.scalar(sa.select(User.id).where(User.name == name))


# --- who may


ACTIONS = [name for name, _ in inspect.getmembers(Administration, inspect.isfunction) if not name.startswith("_")]


@pytest.fixture
def calls(store, admin, doctor, saved):
    """Each action of administrators with arguments it would accept."""
    patient_id = doctor.case(saved()).patient.id
    other = "doctor"
    add_version()
    add_version()
    with store.write() as db:
        key = keys.add_key(db, "pacs", ["predict"]).split("_")[1]
        caller = routing.add_caller(db, "SCANNER1")
        there = routing.add_destination(db, "FHIR", "fhir", {"url": "https://fhir.example"})
        unused = routing.add_destination(db, "unused", "fhir", {"url": "https://fhir.example"})
        rule, old = (routing.add_route(db, Rule(name=name, model="lung")) for name in ("chest", "old"))
        account, _ = routing.admitted(db, "SCANNER1", "127.0.0.1")
        row = ReceivedStudy(user_id=account, study_uid="1.2", caller="SCANNER1", patient_number="T-9", patient={})
        job = Job(user_id=account, model="lung", priority="routine", state="failed", payload_sha256="", due_at=now())
        db.add_all([row, job])
        db.flush()
        db.add(JobFile(job_id=job.id, patient_number="T-9", patient={}, content=b""))
        reading = db.scalar(sa.select(Reading.id))
        sendings = [Dispatch(reading_id=reading, destination_id=there.id, object=one, state="failed")
                    for one in ("bundle", "message")]  # fmt: skip
        db.add_all(sendings)
        db.flush()
        received_id, job_id, again, given_up = row.id, job.id, sendings[0].id, sendings[1].id
        evidence, rule_back = made.evidence(old="v2", new="v1"), RollbackRule.from_dict(made.ROLLBACK)
        signed, rejected = (trials.open_trial(db, evidence, rule_back) for _ in range(2))
        sha256 = db.get(Trial, signed).evidence_sha256
        accounts.add_user(db, "signer", "Test Signer", "admin")
        signer = db.scalars(sa.select(User).where(User.name == "signer")).one()
        trials.sign(db, accounts.Actor(signer.id, "signer", "Test Signer", "admin", "-"), signed, sha256)
    return {
        "keys": (),
        "add_key": ("ris", ["predict"], 30, 60),
        "revoke_key": (key,),
        "callers": (),
        "add_caller": ("SCANNER2", ()),
        "set_caller": (caller.id, False),
        "routes": (),
        "save_route": (Rule(name="other", model="lung"),),
        "try_route": (rule.id, received_id),
        "set_route": (rule.id, False),
        "remove_route": (old.id,),
        "destinations": (),
        "add_destination": ("PACS", "stow", {"url": "https://pacs.example"}),
        "set_destination": (there.id, False),
        "remove_destination": (unused.id,),
        "received": (),
        "failed_jobs": (),
        "read_again": (job_id,),
        "unsent": (),
        "send_again": (again,),
        "give_up": (given_up,),
        "people": (),
        "add_user": ("new", "Test New", "doctor"),
        "disable": (other,),
        "enable": (other,),
        "set_role": (other, "admin"),
        "reset_password": (other,),
        "patients": ("T",),
        "history": (patient_id,),
        "set_excluded": (patient_id, True),
        "export_csv": (),
        "erase_patient": (patient_id,),
        "usage": (),
        "models": (),
        "card": ("lung", "v1"),
        "promote": ("lung", "v1"),
        "roll_back": ("lung",),
        "setting": ("blind_share",),
        "set_setting": ("blind_share", 0.25),
        "trail": (),
        "verify_trail": (),
        "actions": (),
        "drift_days": (),
        "drift_night": (),
        "health": (),
        "full_disk": (),
        "trials": (),
        "sign_trial": (signed, sha256),
        "use_challenger": (signed,),
        "reject_challenger": (rejected,),
        "without_trial": ("lung", "v1"),
        "set_challenger": ("lung", "v1"),
    }


def test_every_action_is_among_those_whose_rights_are_tested(calls):
    assert sorted(calls) == ACTIONS


def test_every_action_refuses_a_doctor_and_changes_nothing(store, calls, doctor):
    before = everything(store)
    for name in ACTIONS:
        with pytest.raises(Forbidden, match="role admin"):
            getattr(Administration(doctor.access), name)(*calls[name])
    assert everything(store) == before
    assert registry.active("lung").version == "v2"
    assert len(events(store, "access.refused")) == len(calls)


def test_every_action_refuses_a_session_that_was_ended_at_the_next_click(store, calls, admin):
    admin.people()
    accounts.sign_out(store, admin.access.token)
    before = everything(store)
    for name in ACTIONS:
        with pytest.raises(SignedOut):
            getattr(admin, name)(*calls[name])
    assert everything(store) == before
    assert registry.active("lung").version == "v2"


def test_every_action_refuses_an_admin_who_became_a_doctor_in_an_open_session(store, calls, admin, signed_in):
    Administration(signed_in("admin", "second")).set_role("admin", "doctor")
    for name in ACTIONS:
        with pytest.raises(Forbidden):
            getattr(admin, name)(*calls[name])


# --- people


def test_people_are_listed_with_their_role_and_open_sessions(store, admin, signed_in):
    signed_in("doctor", "second")
    gone = signed_in("doctor", "third")
    accounts.sign_out(store, gone.token)
    people = admin.people()
    assert [(person.name, person.role, person.sessions) for person in people] == [
        ("admin", "admin", 1),
        ("second", "doctor", 1),
        ("third", "doctor", 0),
    ]
    assert people[1].full_name == "Test Second"
    assert now() - people[1].last_seen < timedelta(minutes=1)


def test_a_new_persons_password_signs_in(store, admin):
    password = admin.add_user("new", "Test New", "doctor")
    assert accounts.whoami(store, accounts.sign_in(store, "new", password, "192.0.2.9")).role == "doctor"
    (event,) = events(store, "user.add")[-1:]
    assert event.user_id == user_id(store, "admin")


def test_a_disabled_person_is_out_at_the_next_click_and_enabled_again_signs_in(store, admin, doctor):
    doctor.worklist()
    admin.disable("doctor")
    with pytest.raises(SignedOut):
        doctor.worklist()
    assert {person.name: person.active for person in admin.people()} == {"admin": True, "doctor": False}
    admin.enable("doctor")
    assert {person.name: person.active for person in admin.people()} == {"admin": True, "doctor": True}
    assert [event.action for event in events(store)][-2:] == ["user.disable", "user.enable"]


def test_a_reset_password_ends_the_sessions_and_is_the_only_one_that_signs_in(store, admin, doctor):
    password = admin.reset_password("doctor")
    with pytest.raises(SignedOut):
        doctor.worklist()
    assert accounts.sign_in(store, "doctor", password, "192.0.2.9")
    assert events(store, "user.password")[-1].user_id == user_id(store, "admin")


def test_a_password_is_nowhere_on_the_trail(store, admin, doctor):
    passwords = [admin.add_user("new", "Test New", "doctor"), admin.reset_password("doctor")]
    trail = json.dumps([(event.object, event.detail) for event in events(store)])
    assert not any(password in trail for password in passwords)


def test_admins_cannot_disable_themselves_or_change_their_own_role(store, admin, signed_in):
    signed_in("admin", "second")
    for own in ("admin", " ADMIN "):
        with pytest.raises(LungkitError, match="cannot disable your own account; ask another admin"):
            admin.disable(own)
        with pytest.raises(LungkitError, match="cannot change your own role; ask another admin"):
            admin.set_role(own, "doctor")
    admin.people()


def test_of_two_admins_who_disable_each_other_at_once_one_remains(store, admin, signed_in):
    admins = {"admin": admin, "second": Administration(signed_in("admin", "second"))}
    targets = {"admin": "second", "second": "admin"}
    start = threading.Barrier(2)

    def remove(name, how):
        start.wait()
        with suppress(LungkitError):
            how(admins[name])(targets[name])

    ways = (lambda a: a.disable, lambda a: lambda who: a.set_role(who, "doctor"))
    threads = [
        threading.Thread(target=remove, args=(name, way)) for name, way in zip(("admin", "second"), ways, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as db:
        left = sa.select(sa.func.count()).select_from(User).where(User.role == "admin", User.active)
        assert db.scalar(left) == 1


def test_an_account_that_is_not_there_is_refused_in_words(admin):
    for action in (admin.disable, admin.enable, admin.reset_password):
        with pytest.raises(LungkitError, match="no user 'nobody'; `lungkit user list` shows all users"):
            action("nobody")
    with pytest.raises(LungkitError, match="no role 'chief'; there are: doctor, admin"):
        admin.add_user("new", "Test New", "chief")


# --- patients


def test_an_admin_finds_a_patient_and_sees_the_image_history(store, admin, doctor, saved):
    reading_id = saved("T-7", "Test Seven")
    (found,) = admin.patients("seven")
    page = admin.history(found.id)
    assert page == doctor.patient(found.id)
    assert [case.reading_id for case in page.cases] == [reading_id]
    assert [event.user_id for event in events(store, "patient.open")] == [
        user_id(store, "admin"),
        user_id(store, "doctor"),
    ]
    with pytest.raises(RecordMissing):
        admin.history("nobody")


def rows_of(exported: bytes) -> list[dict]:
    assert exported.startswith("\ufeff".encode())
    return list(csv.DictReader(io.StringIO(exported.decode("utf-8-sig"), newline="")))


def test_the_export_has_one_line_a_reading_with_its_latest_review(store, admin, doctor, saved, prediction):
    first = saved("T-1", "Test Müller", prediction("Normal", 0.9), 'two\nlines, and "quotes"')
    saved("T-2", "Test Two")
    doctor.review(first, "Normal")
    doctor.review(first, "Pneumonia", "look; again")
    one, two = rows_of(admin.export_csv())
    assert (one["patient_number"], one["patient_name"], one["birth_year"], one["sex"]) == (
        "T-1",
        "Test Müller",
        "1970",
        "female",
    )
    assert (one["label"], one["probability"], one["probabilities"]) == (
        "Normal",
        "0.9",
        "Pneumonia 0.1000; Normal 0.9000",
    )
    assert (one["reviews"], one["agrees"], one["reviewer_label"], one["review_comment"]) == (
        "2",
        "no",
        "Pneumonia",
        "look; again",
    )
    assert one["notes"] == 'two\nlines, and "quotes"'
    assert (two["reviews"], two["agrees"], two["reviewer"]) == ("0", "", "")
    assert events(store, "records.export")[-1].detail == {"readings": 2}


def test_the_export_gives_no_class_of_a_refused_reading(admin, doctor, saved, prediction):
    young = Check("age", False, 3, 18, "the patient is 3 years old")
    reading = saved("T-1", "Test One", prediction(decision="uncertain: review", checks=(young,)))
    doctor.review(reading, "Pneumonia")
    (row,) = rows_of(admin.export_csv())
    assert (row["decision"], row["failed_checks"]) == ("not for this patient", "the patient is 3 years old")
    assert [row[name] for name in ("label", "probability", "probabilities", "agrees")] == [""] * 4
    assert row["reviewer_label"] == "Pneumonia"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "＝", " =", "  @"])
def test_no_exported_cell_starts_as_a_formula_does(start):
    text = f"{start}HYPERLINK(1)"
    ((cell,),) = list(csv.reader(io.StringIO(administration._csv([{"name": text}]).decode("utf-8-sig"))))[1:]
    assert cell == f"'{text}"


def test_tab_and_line_ends_at_the_start_of_a_cell_are_defused():
    for text in ("\t=1", "\r=1", "\n=1", "\tplain"):
        assert administration._cell(text) == f"'{text}"
    assert administration._cell("plain = 1") == "plain = 1"


def test_what_doctors_typed_comes_out_of_the_export_defused(admin, doctor, saved):
    reading_id = saved("=1+1", "@Test", notes="-2+3\n=4")
    doctor.review(reading_id, "Pneumonia", "+cmd|' /C calc'!A0")
    (row,) = rows_of(admin.export_csv())
    assert (row["patient_number"], row["patient_name"], row["notes"], row["review_comment"]) == (
        "'=1+1",
        "'@Test",
        "'-2+3\n=4",
        "'+cmd|' /C calc'!A0",
    )


def test_an_empty_export_is_an_empty_file(admin):
    assert rows_of(admin.export_csv()) == []


def test_erasing_removes_all_of_one_patient_and_leaves_one_event_without_a_name(
    store, admin, doctor, saved, prediction
):
    reading_id = saved("T-GONE", "Test Gone", notes="gone note")
    doctor.review(reading_id, "Pneumonia", "gone comment")
    gone = doctor.case(reading_id).patient.id
    doctor.save_case(gone, *_another(doctor, reading_id), prediction())
    kept = saved("T-KEPT", "Test Kept")
    doctor.review(kept, "Normal")
    before = events(store)
    admin.erase_patient(gone)
    with store.read() as db:
        left = [db.scalar(sa.select(sa.func.count()).select_from(t)) for t in (Patient, Study, Reading, Review)]
    assert left == [1, 1, 1, 1]
    assert doctor.case(kept).patient.number == "T-KEPT"
    after = events(store)[len(before) :]
    erased = [event for event in after if event.action == "patient.erase"]
    assert [event.action for event in after] == ["patient.erase", "case.open"]
    assert erased[0].object == f"patient:{gone}"
    assert erased[0].detail == {"reviews": 1, "readings": 2, "studies": 2}
    assert audit_trail.verify(store) == len(before) + 2
    with pytest.raises(RecordMissing):
        admin.erase_patient(gone)


def test_erasing_removes_what_the_learning_loop_keeps_of_the_patient(store, admin, doctor, saved):
    admin.set_setting("blind_share", 1.0)
    reading_id = saved("T-GONE", "Test Gone")
    doctor.review(reading_id, "Normal")
    with store.write() as db:
        db.add(ShadowReading(reading_id=reading_id, version="v9", probabilities={}, label="Normal", decision="Normal",
                             milliseconds=1.0))  # fmt: skip
    loop = (BlindReading, ShadowReading)
    assert [count(store, table) for table in loop] == [1, 1]
    admin.erase_patient(doctor.case(reading_id).patient.id)
    assert [count(store, table) for table in loop] == [0, 0]


def _another(doctor, reading_id):
    """A second upload of the same patient: an image and its hash."""
    from lungkit.data import images

    case = doctor.case(reading_id)
    return images.Image(case.pixels, case.units, "DX", "again.dcm", {}), "cd" * 32


def test_no_action_leaves_a_name_a_number_or_a_note_on_the_trail(
    store, calls, admin, doctor, saved, prediction, chest_image
):
    marks = ("MARKNUMBER", "MARKNAME", "MARKNOTE", "MARKCOMMENT")
    reading_id = saved("MARKNUMBER", "Test MARKNAME", notes="MARKNOTE")
    patient_id = doctor.case(reading_id).patient.id
    doctor.review(reading_id, "Pneumonia", "MARKCOMMENT")
    doctor.find_patients("MARKNAME")
    doctor.patient(patient_id)
    doctor.same_upload(patient_id, SHA)
    doctor.worklist()
    for arguments in (("MARKNUMBER", "MARKNAME"), ("MARKNUMBER", "Test Other")):
        with pytest.raises(LungkitError):
            doctor.save_case(NewPatient(*arguments), chest_image(), SHA, prediction(), "MARKNOTE")
    with pytest.raises(Forbidden):
        doctor.__class__(admin.access).find_patients("MARKNAME")
    admin.patients("MARKNAME")
    for name in sorted(ACTIONS, key=lambda action: action in ("disable", "reset_password", "set_role")):
        target = (patient_id,) if name in ("history", "erase_patient") else calls[name]
        if name != "erase_patient":
            getattr(admin, name)(*target)
    admin.erase_patient(patient_id)
    with store.read() as db:
        rows = db.execute(sa.select(AuditEvent.__table__)).all()
    assert len({row.action for row in rows}) >= 12
    trail = json.dumps([[str(value) for value in row] for row in rows] + [row.detail for row in rows])
    assert [mark for mark in marks if mark.lower() in trail.lower()] == []


def test_erasing_a_patient_removes_the_slices_of_series_too(store, admin, doctor, ct_series, series_said):
    gone, kept = (
        doctor.save_series(NewPatient(number, "Test"), ct_series, series_said(ct_series), confirmed=[SAME_IMAGE])
        for number in ("T-GONE", "T-KEPT")
    )
    admin.erase_patient(gone.patient.id)
    assert (count(store, CtSeries), count(store, SeriesSlice)) == (1, 8)
    doctor.case(kept.reading_id)
    assert doctor.series_slices(kept.reading_id, [0])[0].startswith(b"\x89PNG")
    with pytest.raises(RecordMissing):
        doctor.series_slices(gone.reading_id, [0])[0]


def test_the_bytes_of_an_erased_patient_are_gone_from_the_files(sqlite_store, cheap_passwords, chest_image, prediction):
    store, access = sqlite_store, {}
    for role in ("doctor", "admin"):
        with store.write() as db:
            password = accounts.add_user(db, role, f"Test {role}", role)
        access[role] = accounts.Access(store, accounts.sign_in(store, role, password, "192.0.2.1"))
    doctor, admin = Records(access["doctor"]), Administration(access["admin"])
    readings = []
    for number in range(60):  # enough for tables and indexes of several pages
        new = NewPatient(f"number-{number:03}-", f"Test name-{number:03}- " + "long " * 20)
        notes, digest = f"note-{number:03}- " * 30, f"{number:064x}"
        case = doctor.save_case(new, chest_image(seed=number), digest, prediction(), notes)
        readings.append(case.reading_id)
        doctor.review(readings[-1], "Pneumonia", f"comment-{number:03}-")
    for number in range(0, 60, 2):
        admin.erase_patient(doctor.case(readings[number]).patient.id)
    files = [path for path in store.path.parent.iterdir() if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    for number in range(60):
        for kind in ("number", "name", "note", "comment"):
            assert (f"{kind}-{number:03}-".encode() in content) == (number % 2 == 1), (kind, number)


# --- usage


def at(store, table, identifier, **times) -> None:
    with store.write() as db:
        db.execute(sa.update(table).where(table.id == identifier).values(**times))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_usage_counts_the_days_of_the_clinics_time_zone(store, admin, saved, doctor, zone, monkeypatch):
    monkeypatch.setenv("LUNGKIT_TIME_ZONE", zone)
    two_days_ago = times.midnight(times.today() - timedelta(days=2))
    for number, when in enumerate((two_days_ago, two_days_ago + timedelta(hours=23, minutes=59), None)):
        reading_id = saved(str(number))
        if when:
            at(store, Study, doctor.case(reading_id).study_id, uploaded_at=when)
            at(store, Reading, reading_id, read_at=when, milliseconds=300.0 if when == two_days_ago else 100.0)
    doctor.review(reading_id, "Pneumonia")
    usage = admin.usage(days=3)
    assert list(usage.per_day.index) == list(pd.date_range(two_days_ago.date(), periods=3))
    assert usage.since == two_days_ago.date()
    assert usage.per_day.to_dict("list") == {
        "sign_ins": [0, 0, 2],
        "uploads": [2, 0, 1],
        "readings": [2, 0, 1],
        "reviews": [0, 0, 1],
        "no_class": [0, 0, 0],
    }
    assert usage.times.loc[pd.Timestamp(two_days_ago.date())].to_dict() == {
        "readings": 2,
        "median": 200,
        "p95": 290,
        "slowest": 300,
    }
    at(store, Review, _only_review(store), at=two_days_ago)
    today = admin.usage(days=1)
    assert today.per_day.to_dict("list")["uploads"] == [1]
    assert (len(today.reviews), len(today.agreement), today.decisions.n.tolist()) == (0, 0, [1])
    assert len(admin.usage(days=3).agreement) == 1


def _only_review(store) -> str:
    with store.read() as db:
        return db.scalars(sa.select(Review.id)).one()


def test_usage_is_complete_and_empty_before_the_first_action(admin):
    usage = admin.usage()
    assert len(usage.per_day) == 90
    assert usage.per_day[["uploads", "readings", "reviews"]].to_numpy().sum() == 0
    assert list(usage.times) == ["readings", "median", "p95", "slowest"]
    assert list(usage.decisions) == ["model", "decision", "n"]
    assert list(usage.reviews) == ["model", "label", "n", "agreed"]
    assert list(usage.kinds) == ["model", "kind", "n", "answer_shown"]
    assert list(usage.agreement) == ["model", "n", "agreed", "rate", "low", "high"]
    assert [len(t) for t in (usage.times, usage.decisions, usage.reviews, usage.agreement)] == [0, 0, 0, 0]
    assert usage.confusion == {}


def test_agreement_counts_the_latest_review_of_each_reading_by_model(admin, doctor, saved, prediction):
    given = ["Pneumonia"] * 6 + ["Normal"] * 2
    for number, label in enumerate(given):
        reading_id = saved(
            str(number), reading=prediction("Pneumonia", decision="uncertain: review" if number < 3 else None)
        )
        doctor.review(reading_id, label)
    changed = saved("changed", reading=prediction("Normal"))
    doctor.review(changed, "Normal")
    doctor.review(changed, "Pneumonia")
    doctor.review(saved("other", reading=prediction("Normal", model="ct")), "Normal")
    saved("not reviewed")
    usage = admin.usage()
    agreement = usage.agreement.set_index("model")
    assert agreement[["n", "agreed"]].T.to_dict("list") == {"ct": [1, 1], "lung": [9, 6], "all": [10, 7]}
    assert agreement.loc["all", ["rate", "low", "high"]].tolist() == pytest.approx([0.7, 0.3968, 0.8922], abs=1e-4)
    assert usage.confusion["lung"].to_dict("index") == {
        "Normal": {"Normal": 0, "Pneumonia": 1},
        "Pneumonia": {"Normal": 2, "Pneumonia": 6},
    }
    assert usage.reviews.to_dict("records") == [
        {"model": "ct", "label": "Normal", "n": 1, "agreed": 1},
        {"model": "lung", "label": "Normal", "n": 2, "agreed": 0},
        {"model": "lung", "label": "Pneumonia", "n": 7, "agreed": 6},
    ]
    assert usage.decisions.to_dict("records") == [
        {"model": "ct", "decision": "Normal", "n": 1},
        {"model": "lung", "decision": "Normal", "n": 1},
        {"model": "lung", "decision": "Pneumonia", "n": 6},
        {"model": "lung", "decision": "uncertain: review", "n": 3},
    ]


def test_a_review_of_a_refused_answer_is_no_agreement_even_if_an_earlier_release_called_it_one(
    store, admin, doctor, saved, prediction
):
    outside = (Check("age", False, 70, 5, "the patient is 70 years old"),)
    refused = saved("1", reading=prediction("Normal", decision="uncertain: review", checks=outside))
    doctor.review(refused, "Normal")
    doctor.review(saved("2"), "Pneumonia")
    with store.write() as db:
        db.execute(sa.update(Review).where(Review.reading_id == refused).values(agrees=True))
    usage = admin.usage()
    assert usage.agreement[["n", "agreed"]].values.tolist() == [[1, 1]]
    assert usage.per_day["reviews"].sum() == 2


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # R: binom::binom.wilson, also in Newcombe (1998)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(hits, n, low, high):
    rate, lower, upper = administration._wilson(hits, n)
    assert rate == hits / n
    assert (lower, upper) == pytest.approx((low, high), abs=5e-5)


def test_usage_loads_no_pixels(store, admin, saved, doctor):
    doctor.review(saved(), "Pneumonia")
    asked = []
    sa.event.listen(store.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    admin.usage()
    admin.export_csv()
    assert any("readings" in statement for statement in asked)
    assert not any("heat" in statement or "studies.pixels" in statement for statement in asked)


def test_impossible_numbers_of_days_are_refused(admin):
    for days in (0, -1, 10_000):
        with pytest.raises(LungkitError, match="accepted are 1 to 3660"):
            admin.usage(days)


# --- models


def test_models_are_listed_newest_first_with_the_active_mark(admin):
    add_version()
    add_version()
    add_version("ct", synthetic=False)
    admin.promote("lung", "v1")
    assert [(row.model, row.version, row.active, row.card.synthetic) for row in admin.models()] == [
        ("ct", "v1", True, False),
        ("lung", "v2", False, True),
        ("lung", "v1", True, True),
    ]
    row = admin.models()[-1]
    assert (row.card.classes, row.problem) == (("Pneumonia", "Normal"), "")
    assert row.card.metrics["val"].figure("accuracy").value == 0.9
    assert admin.card("lung", "v2").version == "v2"


def test_promoting_and_rolling_back_move_the_pointer_and_are_audited(store, admin):
    add_version()
    add_version()
    assert (admin.promote("lung", "v1").active, registry.active("lung").version) == (True, "v1")
    assert (admin.roll_back("lung").version, registry.active("lung").version) == ("v2", "v2")
    done = [(event.action, event.object) for event in events(store) if event.action.startswith("model.")]
    assert done == [("model.promote", "model:lung@v1"), ("model.roll_back", "model:lung@v2")]


def test_a_version_is_not_used_where_the_trail_cannot_note_it(admin, monkeypatch):
    add_version()
    add_version()

    def full(*_, **__):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(administration.audit_trail, "append", full)
        admin.promote("lung", "v1")
    assert registry.active("lung").version == "v2"


def test_a_refusal_of_the_registry_is_passed_on_and_not_audited(store, admin):
    for action in (admin.roll_back, lambda model: admin.promote(model, "v1"), lambda model: admin.card(model, "v1")):
        with pytest.raises(ModelMissing, match="no model 'lung'"):
            action("lung")
        with pytest.raises(LungkitError, match="cannot name a model"):
            action("../lung")
    add_version()
    damaged = add_version()
    admin.promote("lung", "v1")
    (damaged.folder / "weights").write_bytes(b"other")
    with pytest.raises(ModelDamaged, match="weights was changed"):
        admin.promote("lung", "v2")
    assert registry.active("lung").version == "v1"
    assert len(events(store, "model.promote")) == 1


def test_a_version_whose_card_is_damaged_is_listed_with_what_is_wrong(admin):
    add_version()
    (add_version().folder / "card.json").write_text("{")
    broken, fine = admin.models()
    assert "not JSON" in broken.problem
    assert (broken.version, broken.active, fine.version, fine.active, fine.problem) == ("v2", True, "v1", False, "")


def test_a_damaged_file_of_the_version_in_use_shows_in_the_list_and_in_health(admin):
    for model in ("ct", "lung"):
        damaged = add_version(model)
    (damaged.folder / "weights").write_bytes(b"other")
    fine, broken = admin.models()
    assert (fine.problem, broken.active) == ("", True)
    assert "lung@v1: weights was changed" in broken.problem
    health = admin.health()
    assert (health["models"], health["damaged"]) == (["ct@v1"], [broken.problem])


# --- drift


def test_nights_are_listed_the_newest_first_and_each_can_be_opened(store, admin):
    assert (admin.drift_days(), admin.drift_night(), admin.health()["drift"]) == ([], None, None)
    days = [now().date() - timedelta(days=ago) for ago in (1, 0, 2)]
    with store.write() as db:
        for day in days:
            db.add(DriftRun(day=day, alarm=day == days[0], cards=[{"model": str(day)}], settings={}))
    assert admin.drift_days() == [(days[1], False), (days[0], True), (days[2], False)]
    assert admin.drift_night().day == admin.health()["drift"].day == days[1]
    assert admin.drift_night(days[0]).cards == [{"model": str(days[0])}]
    assert admin.drift_night(days[0] - timedelta(days=9)) is None


# --- trail and health


def test_the_trail_is_read_backwards_in_pages_and_by_action_and_person(store, admin, doctor, saved):
    reading_id = saved()
    doctor.case(reading_id)
    newest = admin.trail(limit=2)
    assert newest[0]._fields == ("number", "at", "user", "action", "object", "detail")
    assert actions_in(newest) == ["case.open", "case.save"]
    older = admin.trail(limit=2, before=newest[-1].number)
    assert [event.number for event in older] == [newest[-1].number - 1, newest[-1].number - 2]
    assert [event.user for event in admin.trail(action="case.open")] == ["doctor"]
    assert set(actions_in(admin.trail(user_id=user_id(store, "admin")))) == {"session.start"}
    assert [event.user for event in admin.trail(action="user.add")] == [None, None]  # the command line
    assert len(admin.trail(action="nothing like it")) == 0
    assert set(admin.actions()) == {"user.add", "session.start", "case.save", "case.open"}


def actions_in(trail) -> list[str]:
    return [event.action for event in trail]


def test_the_trail_is_cut_by_time_and_verified_as_a_whole(store, admin, saved):
    saved()
    first, *_, last = events(store)
    assert admin.trail(since=first.at)[-1].number == first.number
    assert first.number not in [event.number for event in admin.trail(since=last.at)]
    assert last.number not in [event.number for event in admin.trail(until=last.at)]
    assert admin.verify_trail() == last.number == len(events(store))


def test_health_reports_sizes_sessions_models_and_the_length_of_the_trail(store, admin, saved, signed_in):
    before = admin.health()
    add_version()
    add_version("ct")
    signed_in("doctor", "second")
    for number in range(30):
        saved(str(number))
    health = admin.health()
    assert health["sessions"] == before["sessions"] + 1
    assert health["database_bytes"] > before["database_bytes"] > 0
    assert health["disk_free_bytes"] > 10**6 and health["temporary_free_bytes"] > 10**6
    assert 10**6 < health["memory_left_bytes"] < health["memory_bytes"]
    assert (health["full_disk"], health["server_bytes"]) == ("", 0)
    assert health["reserve_bytes"] == (0 if store.path else None)
    assert health["models"] == ["ct@v1", "lung@v1"]
    assert health["audit_events"] == len(events(store))
    assert (health["kernels"], health["kernels_bytes"]) == (0, 0)
    assert health["database"] in ("sqlite", "postgresql")


def test_a_session_that_ran_out_is_not_counted_as_open(store, admin, signed_in):
    signed_in("doctor", "second")
    assert admin.health()["sessions"] == 2
    with store.write() as db:
        second = sa.select(User.id).where(User.name == "second").scalar_subquery()
        db.execute(sa.update(SignIn).where(SignIn.user_id == second).values(seen_at=now() - timedelta(hours=2)))
    assert admin.health()["sessions"] == 1
    assert {person.name: person.sessions for person in admin.people()} == {"admin": 1, "second": 0}


def test_kernels_are_the_ipykernel_processes_of_the_same_server():
    """A server that starts three processes: two kernels, one of which counts, and one that is none."""
    kernel = (
        "import sys; from lungkit.clinic.records import administration; "
        "print(*administration._processes()[1], flush=True); input()"
    )
    server = f"""
import subprocess, sys
pipes = {{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}}
counted = subprocess.Popen([sys.executable, "-c", "input()", "-m", "ipykernel_launcher"], **pipes)
other = subprocess.Popen([sys.executable, "-c", "input()"], **pipes)
kernel = subprocess.Popen([sys.executable, "-c", {kernel!r}, "-m", "ipykernel_launcher"], **pipes)
print(counted.pid, kernel.pid)
print(kernel.stdout.readline())
for process in (counted, other, kernel):
    process.communicate("\\n")
"""
    ran = subprocess.run(
        [sys.executable, "-c", server], capture_output=True, text=True, timeout=120, env=os.environ, check=True
    )
    first, second, *found = ran.stdout.split()
    assert sorted(found) == sorted([first, second])
