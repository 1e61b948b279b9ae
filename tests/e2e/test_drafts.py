"""Text that is not saved yet: it survives a reload, Back, and the end of a session, for the same person in this tab."""

import json
from datetime import timedelta

import sqlalchemy as sa
from playwright.sync_api import expect

from lungkit import files
from lungkit.clinic.records import accounts
from lungkit.clinic.records.tables import SignIn, now

RESTORED = "Restored text that was not saved"
NOTES = "Notes (saved with each image)"
COMMENT = "Comment (kept with your review)"


def end_sessions(clinic) -> None:
    """As an administrator would, or a long pause."""
    with clinic.store.write() as db:
        db.execute(sa.update(SignIn).values(revoked_at=now()))


def sign_in_by_hand(visitor, name: str) -> None:
    visitor.page.get_by_label("User name").fill(name)
    visitor.page.get_by_label("Password").fill(visitor.clinic.passwords[name])
    visitor.page.get_by_role("button", name="Sign in").click()
    visitor.page.locator(".clinic-nav").wait_for()


def choose(visitor, number: str) -> None:
    """Find a patient on the page New case."""
    visitor.page.get_by_label("Patient number or name").fill(number)
    visitor.sees("1 found. Select one:")
    visitor.page.get_by_role("button", name=number).click()
    visitor.page.get_by_role("button", name="Choose another patient").wait_for()


def kept(visitor) -> str:
    """What the browser's tab keeps."""
    return visitor.page.evaluate("sessionStorage.getItem('lungkit-drafts') ?? ''")


def test_notes_come_back_after_a_reload_on_the_form_of_the_same_patient_only(visit, clinic, slices):
    ada = visit("ada")
    for number, label in (("D-1", "Normal"), ("D-2", "Pneumonia")):
        ada.new_patient(number, f"Demo Patient {number}")
        ada.upload(slices[label])
        ada.page.get_by_role("button", name="Next patient").click()
    notes = ada.page.get_by_label(NOTES)
    choose(ada, "D-1")
    notes.fill("cough for two weeks")
    ada.open()
    expect(notes).to_have_value("")  # of no patient
    choose(ada, "D-2")
    expect(notes).to_have_value("")
    ada.page.get_by_role("button", name="Choose another patient").click()
    choose(ada, "D-1")
    expect(notes).to_have_value("cough for two weeks")
    ada.sees(RESTORED)
    ada.page.get_by_role("button", name="Choose another patient").click()
    expect(notes).to_have_value("")
    choose(ada, "D-2")
    expect(notes).to_have_value("")
    ada.page.get_by_role("button", name="Choose another patient").click()
    choose(ada, "D-1")
    ada.page.get_by_role("button", name="Discard it").click()
    expect(notes).to_have_value("")
    assert "cough" not in kept(ada)
    ada.open()
    choose(ada, "D-1")
    expect(notes).to_have_value("")


def test_notes_typed_before_the_patient_is_chosen_go_with_the_patient(visit):
    ada = visit("ada")
    ada.open()
    notes = ada.page.get_by_label(NOTES)
    notes.fill("chosen later")
    choose(ada, "D-1")
    expect(notes).to_have_value("chosen later")
    ada.open()
    expect(notes).to_have_value("")
    choose(ada, "D-1")
    expect(notes).to_have_value("chosen later")


def test_a_new_patients_fields_come_back_and_are_forgotten_when_the_patient_is_saved(visit, slices):
    ada = visit("ada")
    page = ada.page
    page.get_by_role("button", name="+ New patient").click()
    page.get_by_label("Patient number", exact=True).fill("D-3")
    page.get_by_label("Name", exact=True).fill("Demo Patient Three")
    page.get_by_label("Sex").select_option("female")
    ada.open()
    expect(page.get_by_label("Patient number", exact=True)).to_have_value("D-3")
    expect(page.get_by_label("Name", exact=True)).to_have_value("Demo Patient Three")
    expect(page.get_by_label("Sex")).to_have_value("female")
    ada.sees(RESTORED)
    page.get_by_role("button", name="Use this patient").click()
    page.get_by_label(NOTES).fill("first visit")
    ada.open()
    page.get_by_role("button", name="Use this patient").click()
    expect(page.get_by_label(NOTES)).to_have_value("first visit")
    ada.upload(slices["Normal"])
    ada.sees("D-3", "first visit")
    assert not any(words in kept(ada) for words in ("D-3", "Three", "first visit"))
    ada.open()
    expect(page.get_by_label("Patient number", exact=True)).to_be_hidden()


def test_a_comment_survives_the_end_of_the_session_and_back_and_is_forgotten_when_it_is_saved(visit, clinic, slices):
    ada = visit("ada", ends=True)
    page = ada.page
    open_case(ada, "D-1")
    page.get_by_label(COMMENT).fill("left lower lobe")
    page.go_back()
    page.get_by_role("heading", name="Worklist").wait_for()
    page.go_forward()
    expect(page.get_by_label(COMMENT)).to_have_value("left lower lobe")
    page.get_by_label(COMMENT).press_sequentially(", effusion")
    end_sessions(clinic)
    page.get_by_role("heading", name="You are signed out").wait_for()
    page.get_by_role("link", name="Sign in").click()
    sign_in_by_hand(ada, "ada")
    expect(page.get_by_label(COMMENT)).to_have_value("left lower lobe, effusion")
    ada.sees(RESTORED)
    page.get_by_role("button", name="Agree").click()
    ada.sees("agreed")
    expect(page.locator(".draft-note")).to_have_count(0)
    assert "effusion" not in kept(ada)
    page.reload()
    expect(page.get_by_label(COMMENT)).to_have_value("")


def open_case(visitor, number: str) -> None:
    """Open a patient's reading from the worklist."""
    visitor.go("Worklist")
    visitor.page.locator("tbody tr", has_text=number).first.click()
    visitor.page.get_by_role("button", name="Open case").click()
    visitor.page.get_by_label(COMMENT).wait_for()


def test_another_person_on_the_tab_gets_neither_the_text_nor_the_screen(visit, clinic):
    ada = visit("ada", ends=True)
    page = ada.page
    open_case(ada, "D-2")
    page.get_by_label(COMMENT).fill("of ada")
    end_sessions(clinic)
    page.get_by_role("heading", name="You are signed out").wait_for()
    page.get_by_role("link", name="Sign in").click()
    assert "of ada" in kept(ada)
    sign_in_by_hand(ada, "ben")
    page.get_by_role("heading", name="New case").wait_for()
    assert "of ada" not in kept(ada)
    open_case(ada, "D-2")
    expect(page.get_by_label(COMMENT)).to_have_value("")


def test_signing_out_forgets_what_was_typed(visit):
    ada = visit("ada", ends=True)
    ada.page.get_by_label(NOTES).fill("not for later")
    assert "not for later" in kept(ada)
    ada.page.get_by_role("button", name="Sign out").click()
    ada.page.get_by_label("Password").wait_for()
    assert kept(ada) == ""


def test_signing_out_in_one_tab_ends_the_persons_other_tabs_and_forgets_what_was_typed_there(visit, clinic):
    ada = visit("ada", ends=True)
    first = ada.page
    first.get_by_label(NOTES).fill("not for later")
    own = kept(ada)
    others = json.dumps(json.loads(own) | {"user": "2"})
    at_the_door, of_another = ada.context.new_page(), ada.context.new_page()
    for page, text in ((at_the_door, own), (of_another, others)):
        page.goto(f"{clinic.url}nowhere")
        page.evaluate("text => sessionStorage.setItem('lungkit-drafts', text)", text)
    ada.page = ada.context.new_page()
    ada.open()
    ada.page.get_by_role("button", name="Sign out").click()
    ada.page.get_by_label("Password").wait_for()
    first.get_by_text("You signed out in another tab.").wait_for()
    stored = "sessionStorage.getItem('lungkit-drafts') ?? ''"
    assert [page.evaluate(stored) for page in (ada.page, first, at_the_door, of_another)] == ["", "", "", others]


def test_the_search_and_passwords_are_not_kept(visit):
    eve = visit("eve")
    eve.go("Patients")
    eve.page.get_by_label("Patient number or name").fill("D-1")
    assert "D-1" not in kept(eve)


# --- the session's end


def as_if(visitor, **earlier: timedelta) -> None:
    """As if the session had begun, or its last action been, that much earlier; the page asks at once."""
    with visitor.clinic.store.write() as db:
        token = files.sha256(visitor.cookie().encode())
        db.execute(
            sa.update(SignIn)
            .where(SignIn.token_sha256 == token)
            .values({column: now() - by for column, by in earlier.items()})
        )
    visitor.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_page_warns_a_minute_before_an_idle_session_ends_and_one_click_extends_it(visit):
    ada = visit("ada")
    bar = ada.page.locator("#session-end")
    as_if(ada, seen_at=timedelta(minutes=29, seconds=10))
    expect(bar).to_contain_text("You will be signed out soon, because nothing was done here for a while")
    ada.page.get_by_role("button", name="Stay signed in").press("Enter")
    expect(bar).to_have_count(0)
    assert accounts.time_left(ada.clinic.store, ada.cookie()).seconds > 29 * 60


def test_scrolling_zooming_and_typing_extend_the_session_and_what_a_script_does_does_not(visit):
    ada = visit("ada")
    bar = ada.page.locator("#session-end")
    open_case(ada, "D-1")
    deeds = (
        lambda: ada.page.mouse.wheel(0, 120),
        lambda: ada.page.keyboard.press("+"),
        lambda: ada.page.locator(".viewer-canvas").hover(),
        lambda: ada.page.get_by_label(COMMENT).press_sequentially("so"),
    )
    for act in deeds:
        as_if(ada, seen_at=timedelta(minutes=29, seconds=10))
        bar.wait_for()
        ada.page.evaluate("document.dispatchEvent(new WheelEvent('wheel'))")
        ada.page.wait_for_timeout(1100)  # as often as a page asks then
        assert bar.is_visible()
        act()
        expect(bar).to_have_count(0)


def test_a_session_that_is_as_old_as_it_may_be_is_announced_and_cannot_be_extended(visit):
    ada = visit("ada", ends=True)
    as_if(ada, created_at=timedelta(hours=11, minutes=59, seconds=30))
    bar = ada.page.locator("#session-end")
    expect(bar).to_contain_text("Your session ends soon and cannot be extended. Save now, then sign in again.")
    assert bar.get_by_role("button").count() == 0
    as_if(ada, created_at=timedelta(hours=12))
    ada.page.get_by_role("heading", name="You are signed out").wait_for()


def test_an_administrators_forms_come_back_and_are_forgotten_when_they_are_saved(visit):
    eve = visit("eve")
    page = eve.page
    eve.go("People")
    page.get_by_role("textbox", name="User name").fill("nora")
    page.get_by_role("textbox", name="Full name").fill("Demo Doctor, third")
    eve.go("Routing")
    page.get_by_role("textbox", name="Name of the rule").fill("Emergency")
    page.get_by_role("textbox", name="Addresses").fill("10.1.2.3")
    page.get_by_role("textbox", name="Its AE title").fill("ARCHIVE")
    eve.open().go("Routing")
    expect(page.get_by_role("textbox", name="Name of the rule")).to_have_value("Emergency")
    expect(page.get_by_role("textbox", name="Addresses")).to_have_value("10.1.2.3")
    expect(page.get_by_role("textbox", name="Its AE title")).to_have_value("ARCHIVE")
    assert eve.usable() == []
    eve.go("People")
    expect(page.get_by_role("textbox", name="Full name")).to_have_value("Demo Doctor, third")
    page.get_by_role("button", name="Add person").click()
    eve.sees("nora was added with the role")
    eve.open().go("People")
    expect(page.get_by_role("textbox", name="Full name")).to_have_value("")
    assert "nora" not in kept(eve) and "Emergency" in kept(eve)
