"""axe-core on every screen of the clinic, on a desk and on a phone, light and dark: nothing is found, nothing cut."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page

from lungkit.clinic.records import accounts
from lungkit.data import phantom
from tests.e2e import screens
from tests.e2e.conftest import PATIENCE, WIDTHS, Clinic, Visitor
from tests.e2e.test_crowd import PAGE_MB
from tests.e2e.test_drafts import as_if

axe = pytest.importorskip("axe_playwright_python.base", reason="axe-core is not installed")

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# What a library's markup makes impossible here: rule, and why.
ALLOWED: dict[str, str] = {}
CHECK = """async ([only, values]) => {
  const found = await axe.run(document, { runOnly: { type: only, values }, resultTypes: ["violations"] });
  return found.violations.map((rule) => [rule.id, rule.nodes.map((node) => node.target.flat().join(" "))]);
}"""
# What ends right of the window, where nothing scrolls to it.
CUT = """() => [...document.querySelectorAll(".clinic :is(h1, h2, h3, p, li, dd, figure, button, select, input)")]
  .filter((part) => part.checkVisibility() && part.getBoundingClientRect().right > innerWidth + 1)
  .filter((part) => !part.closest(".dt-container, .wide, .clinic-nav"))
  .map((part) => `${part.tagName} ${part.className} ${part.innerText.slice(0, 40)}`)"""
TO_THE_TOP = "() => document.querySelectorAll('*').forEach((part) => { part.scrollTop = 0; })"
LOOKS = ("light", "dark")


@pytest.fixture(scope="module")
def filled(start_clinic, tmp_path_factory) -> Clinic:
    """A clinic with something on every screen."""
    clinic, folder = start_clinic(), tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(clinic.artifacts))
        screens.fill(clinic, folder, patients=4)
        screens.fill_series(clinic, folder, slices=8)
        screens.fill_blind(clinic, folder)
        screens.fill_gateway(clinic)
        screens.fill_trial(clinic)
    return clinic


def violations(page: Page) -> dict[str, list[str]]:
    """Where and what axe-core finds on the page as it is, at both widths and in both looks, and what is cut."""
    found: dict[str, list[str]] = {}
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(axe.AXE_SCRIPT)
    for width in (WIDTHS["desk"], WIDTHS["phone"]):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(TO_THE_TOP)  # a button that is half under the header that stays would count as a small one
        for look in LOOKS:
            page.emulate_media(color_scheme=look, reduced_motion="reduce")
            page.wait_for_timeout(120)  # tables draw themselves after they were resized
            kind = ["tag", RULES] if look == "light" else ["rule", ["color-contrast"]]  # a look changes colours alone
            for rule, places in page.evaluate(CHECK, kind):
                if rule not in ALLOWED:
                    found[f"{rule} at {width}, {look}"] = places
        if cut := page.evaluate(CUT):
            found[f"cut at {width}"] = cut
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": WIDTHS["desk"], "height": 900})
    return found


def pages_without_an_account(visitor: Visitor) -> Iterator[str]:
    visitor.page.goto(visitor.clinic.url)
    visitor.page.get_by_label("User name").wait_for()
    yield "sign-in"
    visitor.page.goto(f"{visitor.clinic.url}no-such-page")
    visitor.page.get_by_role("heading", name="Page not found").wait_for()
    yield "error page"


def pages_of_a_doctor(visitor: Visitor, folder: Path) -> Iterator[str]:
    page = visitor.page
    visitor.sign_in("ada")
    yield "New case, empty"
    visitor.new_patient("P-2001", "Demo Patient, new", "1961", "female")
    cuts = phantom.make_patient("demo", "Pneumonia", seed=46, slices=3, size=512)
    visitor.upload(phantom.write_dicom(cuts[1], folder / "phantom-slice.dcm"))
    page.locator(".viewer-canvas, .choices").first.wait_for()
    yield "New case, with a reading"
    visitor.go("Worklist")
    page.locator("tbody tr", has_text="P-3001").wait_for()
    yield "Worklist"
    page.locator("tbody tr", has_text="P-3001").click()
    page.get_by_role("button", name="Open case").click()
    page.wait_for_function("() => document.querySelector('.stack')?.measured.whole > 0")
    yield "Reading of a series"
    page.get_by_label("Comment (kept with your review)").fill("Not saved yet")
    page.reload()
    page.locator(".draft-note").wait_for()
    yield "Reading with restored text"
    visitor.go("Patient")
    page.get_by_label("Patient number or name").press_sequentially("P-1003")
    page.get_by_role("button", name="P-1003").click()
    page.locator(".study").first.wait_for()
    yield "Patient"
    for choice in page.get_by_label("Compare", exact=True).all()[:2]:
        choice.check()
    page.get_by_role("button", name="Compare two images").click()
    page.locator(".comparison .compared").first.wait_for()
    yield "Comparison"
    visitor.go("Second opinions")
    row = page.locator("tbody tr", has_text="P-5001")
    row.wait_for()
    yield "Second opinions"
    row.click()
    page.get_by_role("button", name="Open image").first.click()
    page.locator(".choices").first.wait_for()
    yield "Label first"
    as_if(visitor, seen_at=timedelta(minutes=29))
    page.locator("#session-end").wait_for()
    yield "Session that ends soon"
    as_if(visitor, created_at=timedelta(hours=12))
    page.get_by_role("heading", name="You are signed out").wait_for()
    yield "Session that has ended"


def pages_of_an_administrator(visitor: Visitor) -> Iterator[str]:
    visitor.sign_in("eve")
    page = visitor.page
    for name in page.locator(".nav-entry").all_inner_texts():
        visitor.go(name.strip())
        page.wait_for_timeout(300)
        if name.strip() == "Models":
            page.locator("tbody tr").first.click()
            page.get_by_role("button", name="Show card").click()
            page.locator(".model-card").wait_for()
        if name.strip() == "Trials":
            page.locator("tbody tr").first.click()
            page.locator(".trial svg").first.wait_for()
        yield name.strip()


@pytest.mark.parametrize("who", ["someone", "doctor", "administrator"])
def test_axe_finds_nothing_on_any_screen(browser, filled, tmp_path, who):
    visitor = Visitor(browser, filled, WIDTHS["desk"])
    visitor.context.set_default_timeout(PATIENCE)
    pages = {
        "someone": lambda: pages_without_an_account(visitor),
        "doctor": lambda: pages_of_a_doctor(visitor, tmp_path),
        "administrator": lambda: pages_of_an_administrator(visitor),
    }[who]
    found = {name: violations(visitor.page) for name in pages()}
    visitor.context.close()
    wrong = {name: rules for name, rules in found.items() if rules}
    assert not wrong, json.dumps(wrong, indent=1)


def test_axe_finds_nothing_on_the_page_that_waits(browser, start_clinic):
    visitor = Visitor(
        browser,
        start_clinic(pool=0, LUNGKIT_CLINIC_MB=str(128 + 128 + 60), LUNGKIT_PAGE_MB=str(PAGE_MB)),
        WIDTHS["desk"],
    )
    visitor.context.add_cookies(
        [{"name": accounts.COOKIE, "value": visitor.clinic.token("ada"), "url": visitor.clinic.url}]
    )
    visitor.page.goto(visitor.clinic.url)
    visitor.page.get_by_role("heading", name="Please wait for your page").wait_for()
    found = violations(visitor.page)
    visitor.context.close()
    assert not found
