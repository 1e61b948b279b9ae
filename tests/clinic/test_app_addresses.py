"""Addresses as a browser sends them, and what the page tells the browser to keep or to forget."""

import pytest

from lungkit.clinic.app import shell
from lungkit.clinic.app.new_case import NewCaseScreen
from lungkit.clinic.app.page import Page
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import accounts
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient


@pytest.fixture
def store(sqlite_store):
    """The screens do not know which database there is."""
    return sqlite_store


@pytest.fixture
def page_for(sqlite_store, signed_in):
    """A function: the page of a person with this role."""
    return lambda role: shell.page_of(lambda: sqlite_store, signed_in(role).token, ModelPool())


def ask(page, address: object, question: object = 1) -> dict:
    """Say this as the browser would; returns the place that the page shows then."""
    page.browser._handle_custom_msg({"address": address, "question": question}, [])
    return {name: page.browser.place[name] for name in ("address", "title", "question")}


def test_the_browser_hears_address_and_title_of_each_screen_also_of_the_same_again(page_for):
    page = page_for("doctor")
    assert page.browser.place["address"] == "#/new"
    page.go("worklist")
    first = page.browser.place
    assert (first["address"], first["title"], first["question"]) == ("#/worklist", "Worklist · lungkit clinic", 0)
    page.go("worklist")
    assert page.browser.place != first


@pytest.mark.parametrize("role", ["doctor", "admin"])
def test_each_screen_of_the_navigation_opens_at_its_address(page_for, role):
    page = page_for(role)
    for name in (name for name, (title, _) in shell.SCREENS[role].items() if title):
        assert ask(page, f"#/{name}", 7)["address"] == f"#/{name}"
        assert page.message.value == ""
    assert page.browser.place["question"] == 7


@pytest.mark.parametrize(
    "address",
    [
        "#/people",
        "#/reading",
        "#/reading/x/y",
        "#/patient/../people",
        "#/new/1",
        "#/<b>",
        "#foo",
        "javascript:alert(1)",
    ],
)
def test_an_address_that_leads_nowhere_is_answered_with_the_first_screen(page_for, address):
    page = page_for("doctor")
    page.go("worklist")
    assert ask(page, address, 3) == {"address": "#/new", "title": "New case · lungkit clinic", "question": 3}
    assert "You are on the start page instead." in page.message.value
    assert "<b>" not in page.message.value


@pytest.mark.parametrize(("address", "question"), [(None, 1), (["#/worklist"], 1), ("#/worklist", "1"), ("#" * 201, 1)])
def test_what_is_no_address_is_not_answered(page_for, address, question):
    page = page_for("doctor")
    before = page.browser.place
    ask(page, address, question)
    assert page.browser.place == before


def test_an_address_shows_nothing_to_a_person_whose_session_has_ended(page_for, sqlite_store, signed_in):
    token = signed_in("doctor").token
    page = shell.page_of(lambda: sqlite_store, token, ModelPool())
    accounts.sign_out(sqlite_store, token)
    ask(page, "#/new")
    (words,) = page.screen.children
    assert "You are signed out" in words.value


def test_unsaved_notes_have_another_name_for_each_patient_and_none_that_tells_who_it_is(signed_in):
    screen = NewCaseScreen(Records(signed_in("doctor")), Page(), ModelPool())
    names = []
    for number in ("P-1", "P-2"):
        screen._enter(NewPatient(number, "Demo Patient"))
        names += [name for name in screen.notes._dom_classes if name.startswith("draft-")]
        screen.notes.value = f"of {number}"
        screen._choose_another()
        assert screen.notes.value == ""
    assert len(set(names)) == 2
    assert not any("P-" in name for name in names)
