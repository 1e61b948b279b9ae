"""The administrator's screens for programs, routing and the queue, driven as a browser drives them."""

import uuid

import pytest
import sqlalchemy as sa

from lungkit.clinic.app.page import Page
from lungkit.clinic.app.programs import ProgramsScreen
from lungkit.clinic.app.queue import QueueScreen
from lungkit.clinic.app.routing_screen import RoutingScreen
from lungkit.clinic.records import administration, dispatches, jobs, received, routing
from lungkit.clinic.records.keys import KeyAccess, KeyRefused
from lungkit.clinic.records.received import Arrival
from lungkit.clinic.records.tables import Dispatch, Job, ReceivedStudy, User
from lungkit.models import registry
from tests.clinic.rows import everything
from tests.clinic.test_app_admin import choose, rows, shown, texts

SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def store(sqlite_store):
    """Which database it is does not matter to a screen."""
    return sqlite_store


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def opened(signed_in, page, monkeypatch):
    """A function: a screen of an administrator, as the shell opens it."""
    monkeypatch.setattr(registry, "models", lambda: ["lung"])
    boss = signed_in("admin", "boss")

    def open_screen(kind):
        screen = kind(administration.Administration(boss), page)
        screen.refresh()
        return screen

    return open_screen


@pytest.fixture
def study(store):
    """A study with a series of two CT slices, which a scanner sent."""
    with store.write() as db:
        routing.add_caller(db, "SCANNER1")
        account, _ = routing.admitted(db, "SCANNER1", "127.0.0.1")
    for number in range(2):
        file = Arrival(
            id=str(uuid.uuid4()), study_uid="1.2", series_uid="1.2.3", instance_uid=f"1.{number}",
            patient_number="T-1", patient={"name": "Anna Invented"}, modality="CT", body_part="CHEST",
            descriptions=(f"Thorax {SCRIPT}",), set_aside="", sha256="ab" * 32, bytes=1,
        )  # fmt: skip
        received.arrive(store, account, "SCANNER1", file)
    with store.read() as db:
        return db.scalar(sa.select(ReceivedStudy.id))


# --- programs


def test_a_key_is_shown_once_and_works_until_it_is_revoked(opened, page, store):
    screen = opened(ProgramsScreen)
    screen.program.value = "PACS"
    screen.add.click()
    key = screen.secret.value.partition("<code>")[2].partition("</code>")[0]
    assert KeyAccess(store, key, "predict").limits()[1] == screen.rate.value
    assert shown(screen.hide)
    assert key not in str(everything(store))
    screen.refresh()
    assert key not in texts(screen.widget)
    choose(screen.table, 0)
    screen.revoke.click()
    screen.confirm.yes.click()
    assert "is revoked" in page.message.value
    assert rows(screen.table)[0][4] == "revoked"
    with pytest.raises(KeyRefused):
        KeyAccess(store, key, "predict").limits()


def test_a_key_without_a_scope_is_refused_in_words(opened, page):
    screen = opened(ProgramsScreen)
    screen.program.value = "pacs"
    for box in screen.scopes.values():
        box.value = False
    screen.add.click()
    assert "A key needs a scope" in page.message.value
    assert rows(screen.table) == []


def test_a_program_cannot_take_the_name_of_a_person(opened, page):
    screen = opened(ProgramsScreen)
    screen.program.value = "boss"
    screen.add.click()
    assert "person&#x27;s user name" in page.message.value


# --- routing


def _rule(screen, name="chest", **conditions):
    screen.name.value = name
    for what, value in conditions.items():
        screen.conditions[what].value = value
    screen.save.click()


def test_a_rule_is_tried_on_a_study_and_then_switched_on(opened, page, study):
    screen = opened(RoutingScreen)
    _rule(screen, modality="CT")
    assert rows(screen.rules)[0][-1] == "off, not tried yet"
    choose(screen.rules, 0)
    screen.switch.click()
    assert "Try the rule" in page.message.value
    choose(screen.rules, 0)
    screen.study.value = study
    screen.attempt.click()
    assert "→ lung" in screen.trial.value
    assert "2 images" in screen.trial.value
    choose(screen.rules, 0)
    screen.switch.click()
    assert rows(screen.rules)[0][-1] == "● on"


def test_a_rule_that_does_not_fit_says_so_and_headers_are_shown_as_text(opened, study):
    screen = opened(RoutingScreen)
    _rule(screen, modality="DX")
    choose(screen.rules, 0)
    screen.study.value = study
    screen.attempt.click()
    assert "does not fit" in screen.trial.value
    assert rows(screen.rules)[0][-1] == "off, not tried yet"
    assert "<img" not in screen.trial.value


def test_a_rule_that_was_edited_is_off_until_it_is_tried_again(opened, page, study, store):
    screen = opened(RoutingScreen)
    _rule(screen, modality="CT")
    choose(screen.rules, 0)
    screen.edit.click()
    assert (screen.name.value, screen.conditions["modality"].value, screen.save.description) == (
        "chest", "CT", "Save rule",
    )  # fmt: skip
    screen.conditions["modality"].value = "DX"
    screen.save.click()
    with store.read() as db:
        (row,) = routing.list_routes(db)
    assert (row.rule.modality, row.active, row.tried_at) == ("DX", False, None)
    assert (screen.save.description, screen.name.value, shown(screen.cancel)) == ("Add rule", "", False)


def test_results_go_to_destinations_that_were_entered(opened, page, store):
    screen = opened(RoutingScreen)
    screen.to_name.value, screen.place.value, screen.to_title.value = "PACS", "pacs.example:104", "ARCHIVE"
    screen.segments.value = True
    press(screen, "Add destination")
    assert rows(screen.destinations)[0][:4] == [
        "PACS", "PACS by DICOM (C-STORE)", "ARCHIVE at pacs.example:104", "report, capture, segmentation",
    ]  # fmt: skip
    screen.goes_to.value = [dict(screen.goes_to.options)["PACS"]]
    _rule(screen)
    assert rows(screen.rules)[0][5] == "PACS"
    choose(screen.destinations, 0)
    screen.drop.click()
    assert "used by the rule" in page.message.value


@pytest.mark.parametrize("place", ["pacs", "pacs:", ":104", "pacs:port", "pacs:99999999"])
def test_an_address_that_is_none_is_refused_in_words(opened, page, place):
    screen = opened(RoutingScreen)
    screen.to_name.value, screen.place.value, screen.to_title.value = "PACS", place, "ARCHIVE"
    press(screen, "Add destination")
    assert "accepted" in page.message.value or "is no address" in page.message.value
    assert rows(screen.destinations) == []


def test_a_system_that_sends_is_added_refused_and_let_in_again(opened, store):
    screen = opened(RoutingScreen)
    screen.ae_title.value, screen.networks.value = "CT2", "10.1.2.3, 10.4.0.0/16"
    press(screen, "Add system")
    assert rows(screen.callers)[0][:3] == ["CT2", "10.1.2.3/32, 10.4.0.0/16", "may send"]
    for words in ("refused", "may send"):
        choose(screen.callers, 0)
        screen.allow.click()
        assert rows(screen.callers)[0][2] == words


def press(screen, words: str) -> None:
    """Press the button with these words."""
    next(one for one in _below(screen.widget) if getattr(one, "description", "") == words).click()


def _below(widget):
    for child in getattr(widget, "children", ()):
        yield child
        yield from _below(child)


# --- queue


@pytest.fixture
def failed_job(store) -> str:
    """A job whose model was missing; its file is kept."""
    from lungkit.clinic.records import keys
    from lungkit.clinic.records.jobs import Jobs
    from lungkit.clinic.records.patients import StatedPatient

    with store.write() as db:
        key = keys.add_key(db, "pacs", ["predict"])
    job, _ = Jobs(KeyAccess(store, key, "predict")).submit(b"bytes", "lung", StatedPatient("T-1", "Anna Invented"))
    for _ in range(jobs.MOST_TRIES):
        claimed = jobs.claim(store, job.id)
        jobs.fail(store, claimed, "no model 'lung'", final=False)
    return job.id


def test_a_failed_job_is_shown_with_its_reason_and_read_again(opened, page, store, failed_job):
    screen = opened(QueueScreen)
    assert rows(screen.failed)[0][1:] == ["pacs", "lung", "no model 'lung'", 3, "kept"]
    choose(screen.failed, 0)
    screen.again.click()
    assert "read again within seconds" in page.message.value
    assert rows(screen.failed) == []
    assert [number for number, _ in jobs.sweep(store)] == [failed_job]


def test_studies_that_came_are_listed_without_a_patient(opened, store, study):
    screen = opened(QueueScreen)
    assert rows(screen.received)[0][1:4] == ["SCANNER1", 2, "files still come"]
    assert "Anna" not in texts(screen.widget)


def test_a_result_that_was_not_sent_is_sent_again_or_given_up(opened, page, store, signed_in, chest_image, prediction):
    from lungkit.clinic.records.cases import Records
    from lungkit.clinic.records.patients import NewPatient

    saved = Records(signed_in("doctor")).save_case(NewPatient("T-1", "Anna"), chest_image(), "ab" * 32, prediction())
    with store.write() as db:
        to = routing.add_destination(db, "FHIR", "fhir", {"url": "https://fhir.example"})
        assert dispatches.enqueue(db, saved.reading_id, [to.id]) == 1
    dispatches.fail(store, dispatches.claim(store), "it answered 400", final=True)
    screen = opened(QueueScreen)
    assert rows(screen.unsent)[0][1:] == ["FHIR", "bundle", "given up", "it answered 400", 1]
    choose(screen.unsent, 0)
    screen.resend.click()
    choose(screen.unsent, 0)
    screen.stop.click()
    assert "is not sent to FHIR" in page.message.value
    with store.read() as db:
        assert db.scalar(sa.select(Dispatch.state)) == "cancelled"


def test_a_doctor_can_do_none_of_it(store, signed_in):
    from lungkit.clinic.records.accounts import Forbidden

    actions = administration.Administration(signed_in("doctor"))
    for action in (
        actions.keys, actions.callers, actions.routes, actions.destinations, actions.received, actions.failed_jobs,
        actions.unsent, lambda: actions.add_key("x", ["admin"], 1, 1), lambda: actions.add_caller("X", ()),
        lambda: actions.read_again("x"), lambda: actions.give_up("x"),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            action()
    with store.read() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(Job)) == 0
        assert {user.role for user in db.scalars(sa.select(User))} == {"doctor"}
