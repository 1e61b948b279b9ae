"""The address and the history of the browser follow the screens; a link opens its screen, for those who may see it."""

import re

import pytest
import sqlalchemy as sa
from playwright.sync_api import expect

from lungkit.clinic.records import settings
from lungkit.clinic.records.tables import AuditEvent, Reading, Study
from tests.e2e.conftest import WIDTHS, Visitor
from tests.e2e.test_drafts import open_case, sign_in_by_hand

NOTHING_THERE = "There is nothing at this address that you can open. You are on the start page instead."

UNKNOWN = "7118ae22-3c29-450b-868a-0f2a4b987372"  # an identifier that nothing has


@pytest.fixture(scope="module")
def case(start_clinic, clinic, browser, slices) -> tuple[str, str]:
    """A reading and its patient, as their addresses name them."""
    ada = Visitor(browser, clinic, WIDTHS["desk"]).sign_in("ada")
    ada.new_patient("L-1", "Demo Patient, linked")
    ada.upload(slices["Normal"])
    ada.context.close()
    with clinic.store.read() as db:
        reading = db.scalars(sa.select(Reading).options(sa.orm.joinedload(Reading.study))).one()
        return reading.id, reading.study.patient_id


def at(visitor, place: str) -> None:
    """Wait for an address."""
    expect(visitor.page).to_have_url(f"{visitor.clinic.url}#/{place}")


def opened(clinic) -> int:
    """How many times the trail says that a case was opened."""
    with clinic.store.read() as db:
        return db.scalar(sa.select(sa.func.count()).where(AuditEvent.action == "case.open"))


def test_address_title_and_history_follow_the_screens_and_name_no_patient(visit, case):
    reading, patient = case
    ada = visit("ada")
    ada.open()
    at(ada, "new")
    open_case(ada, "L-1")
    at(ada, f"reading/{reading}")
    assert ada.page.title() == "Reading · lungkit clinic"
    ada.page.get_by_role("button", name="All images of this patient").click()
    at(ada, f"patient/{patient}")
    assert ada.page.title() == "Patient · lungkit clinic"
    ada.page.go_back()
    ada.page.get_by_label("Comment (kept with your review)").wait_for()
    at(ada, f"reading/{reading}")
    expect(ada.page.locator(".nav-entry.current")).to_have_text("Worklist")
    ada.page.go_back()
    ada.page.get_by_role("heading", name="Worklist").wait_for()
    ada.page.go_forward()
    ada.page.go_forward()
    ada.page.get_by_role("button", name="Copy link to this patient").wait_for()
    at(ada, f"patient/{patient}")


def test_the_worklist_keeps_its_filters_when_one_goes_back(visit, case):
    ada = visit("ada")
    ada.go("Worklist")
    ada.page.get_by_label("Review", exact=True).select_option("Not reviewed")
    open_case(ada, "L-1")
    ada.page.go_back()
    ada.page.get_by_role("heading", name="Worklist").wait_for()
    expect(ada.page.get_by_label("Review", exact=True)).to_have_value("Not reviewed")
    ada.page.get_by_role("button", name="Clear filters").click()


def test_a_reload_and_a_link_in_a_new_tab_open_the_same_case_and_the_trail_notes_it(visit, clinic, case):
    reading, patient = case
    ada = visit("ada")
    before = opened(clinic)
    ada.page.goto(f"{clinic.url}#/reading/{reading}")
    ada.page.reload()
    ada.page.get_by_label("Comment (kept with your review)").wait_for()
    at(ada, f"reading/{reading}")
    assert opened(clinic) > before
    tab = ada.context.new_page()
    tab.goto(f"{clinic.url}#/patient/{patient}")
    expect(tab.locator(".patient-name")).to_contain_text("Demo Patient, linked")
    tab.close()


def test_a_link_opens_its_screen_after_signing_in_too(visit, clinic, case):
    reading, _ = case
    late = visit()
    late.page.goto(f"{clinic.url}#/reading/{reading}")
    late.page.get_by_label("Password").fill("wrong password")
    late.page.get_by_label("User name").fill("ben")
    late.page.get_by_role("button", name="Sign in").click()
    late.sees("is not right")
    sign_in_by_hand(late, "ben")
    late.page.get_by_label("Comment (kept with your review)").wait_for()
    at(late, f"reading/{reading}")


@pytest.mark.parametrize("place", [f"reading/{UNKNOWN}", f"patient/{UNKNOWN}", "people", "new/1", "//x.org"])
def test_an_address_that_leads_nowhere_or_is_not_for_this_role_says_so_on_the_first_screen(visit, clinic, place):
    ada = visit("ada")
    ada.page.evaluate("place => { location.hash = `#/${place}`; }", place)
    ada.sees("You are on the start page instead.")
    ada.page.get_by_role("heading", name="New case").wait_for()
    at(ada, "new")
    ada.go("Worklist")


def test_a_link_to_an_administrators_screen_opens_it_for_an_administrator(visit, clinic):
    eve = visit("eve")
    eve.page.goto(f"{clinic.url}#/trail")
    eve.page.get_by_role("heading", name="Audit trail").wait_for()
    eve.page.evaluate("location.hash = '#/worklist'")
    eve.sees(NOTHING_THERE)
    eve.page.get_by_role("heading", name="People").wait_for()


def test_a_case_that_was_opened_without_its_answer_stays_so_by_link_and_reload(visit, clinic, slices, case):
    ada = visit("ada")
    ada.page.evaluate("place => { location.hash = `#/${place}`; }", f"reading/{case[0]}/first")
    ada.page.get_by_role("button", name="Save label and show the answer").wait_for()
    ada.page.reload()
    ada.page.get_by_role("button", name="Save label and show the answer").wait_for()
    with clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 1.0)
    ada.page.goto(f"{clinic.url}#/new")
    ada.page.get_by_role("heading", name="New case").wait_for()
    ada.new_patient("L-2", "Demo Patient, blind")
    ada.upload(slices["Pneumonia"])
    with clinic.store.read() as db:
        newest = db.scalar(sa.select(Reading.id).join(Study).order_by(Reading.read_at.desc()).limit(1))
    ada.page.goto(f"{clinic.url}#/reading/{newest}")
    ada.page.reload()
    ada.page.get_by_role("button", name="Save label and show the answer").wait_for()
    assert not re.search("Pneumonia.*%|%.*Pneumonia", ada.visible_text())


def test_a_link_to_a_case_can_be_copied(visit, clinic, case):
    ada = visit("ada")
    ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_case(ada, "L-1")
    ada.page.get_by_role("button", name="Copy link to this case").click()
    ada.sees("Link copied")
    assert ada.page.evaluate("navigator.clipboard.readText()") == f"{clinic.url}#/reading/{case[0]}"
