"""The worklist in a browser: rows that open, what is kept on the way back, the next unread; looks, paper, a phone."""

import io
import re

import pypdf
import pytest
from playwright.sync_api import Page, expect

from tests.e2e import screens
from tests.e2e.conftest import NEEDED, WIDTHS, Visitor

TOUCH = 44  # pixels that a finger hits
NUMBERS = "tbody tr td:nth-child(3)"  # of the patients, in the order of the rows


@pytest.fixture(scope="module")
def filled(clinic, tmp_path_factory):
    """The clinic with 12 patients' images and a thirteenth one's series."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(clinic.artifacts))
        screens.fill(clinic, folder, patients=12)
        screens.fill_series(clinic, folder, slices=8)
    return clinic


def at_the_worklist(visitor: Visitor) -> Visitor:
    visitor.go("Worklist")
    visitor.page.get_by_role("button", name="Clear filters").click()
    visitor.page.locator("tbody tr", has_text="P-1001").wait_for()
    return visitor


@pytest.fixture
def ada(filled, visit) -> Visitor:
    """A doctor at the worklist, which nothing narrows."""
    return at_the_worklist(visit("ada"))


def numbers(page: Page) -> list[str]:
    return page.locator(NUMBERS).all_inner_texts()


def back(page: Page) -> None:
    page.get_by_role("button", name="← Back to worklist").click()
    page.locator("table.rows tbody tr").first.wait_for()  # a reading has a table too


def open_series(page: Page) -> None:
    page.locator(".nav-entry", has_text="Worklist").click()
    page.locator("table.rows tbody tr", has_text="P-3001").dblclick()
    page.wait_for_function("() => document.querySelector('.stack')?.measured.whole > 0")


def test_no_column_is_cut_on_a_desk(ada):
    for width in (1280, 1366):
        ada.page.set_viewport_size({"width": width, "height": 768})
        box = ada.page.locator(".dt-container")
        fits = "(box) => box.scrollWidth <= box.clientWidth"
        expect(ada.page.locator("th", has_text="Review")).to_be_visible()
        assert box.evaluate(fits), width


def test_a_double_click_and_enter_open_the_row_that_is_meant(ada):
    page = ada.page
    wanted = numbers(page)
    page.locator("tbody tr").nth(0).click()
    page.locator("tbody tr").nth(3).dblclick()
    expect(page.locator(".patient-number")).to_have_text(wanted[3])
    back(page)
    row = page.locator("tbody tr").nth(2)
    row.click()
    expect(row).to_have_class(re.compile("selected"))
    row.locator("td").first.evaluate("(cell) => { cell.tabIndex = 0; cell.focus(); }")
    page.keyboard.press("Enter")
    expect(page.locator(".patient-number")).to_have_text(wanted[2])


def test_the_open_button_waits_until_the_kernel_knows_the_row(ada):
    page = ada.page
    wanted = numbers(page)
    page.locator("tbody tr").nth(0).click()
    expect(page.get_by_role("button", name="Open case")).to_be_enabled()
    # Both within one turn of the browser: the kernel has not heard of the second row yet.
    page.evaluate("""() => {
      document.querySelectorAll("tbody tr")[4].cells[0].click();
      document.querySelector(".opens").click();
    }""")
    expect(page.locator(".patient-number")).to_have_text(wanted[4])


def test_sort_search_and_rows_a_page_are_kept_on_the_way_back_and_by_filters(filled, visit):
    page = at_the_worklist(visit("ben")).page
    page.get_by_label("rows per page").select_option("10")
    page.locator("th", has_text="Patient").click()
    page.locator("th", has_text="Patient").click()
    page.get_by_label("Search in this list").fill("P-1")
    expect(page.locator("tbody tr", has_text="P-3001")).to_have_count(0)
    before = numbers(page)
    assert len(before) == 10 and before == sorted(before, reverse=True)
    page.locator("tbody tr").nth(1).dblclick()
    page.locator(".patient-number").wait_for()
    back(page)
    expect(page.get_by_label("Search in this list")).to_have_value("P-1")
    expect(page.locator(NUMBERS)).to_have_text(before)  # a table that appears is sorted a moment later
    page.get_by_label("Review", exact=True).select_option("Reviewed")
    expect(page.locator("[role=status]", has_text="to review")).to_contain_text(", 0 to review")
    page.wait_for_function(
        """(cells) => {  // a filter does not undo the sort
      const shown = [...document.querySelectorAll(cells)].map((cell) => cell.textContent);
      return shown.length && shown.join() === shown.toSorted().reverse().join();
    }""",
        arg=NUMBERS,
    )
    assert "P-1" not in page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")


def test_next_unread_leads_from_one_reading_to_the_next(ada):
    page = ada.page
    page.get_by_label("Review", exact=True).select_option("Not reviewed")
    expect(page.locator("[role=status]", has_text=re.compile(r"^(\d+) of \d+ readings, \1 to review"))).to_be_visible()
    wanted = numbers(page)
    page.get_by_role("button", name="Next unread").click()
    expect(page.locator(".patient-number")).to_have_text(wanted[0])
    page.locator(".review").get_by_role("button", name="Agree").click()
    ada.sees("agreed:")
    page.get_by_role("button", name="Next unread").click()
    expect(page.locator(".patient-number")).to_have_text(wanted[1])
    assert not ada.usable()


def test_the_look_is_dark_where_it_was_chosen_or_the_system_is_and_stays(ada):
    page = ada.page
    body, ground = page.locator("body"), "background-color"
    read = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(read)
    page.emulate_media(color_scheme="dark")
    expect(body).not_to_have_css(ground, light)
    dark = page.evaluate(read)
    page.get_by_label("Look").select_option("Light")
    expect(body).to_have_css(ground, light)
    page.emulate_media(color_scheme="light")
    page.get_by_label("Look").select_option("Dark")
    expect(body).to_have_css(ground, dark)
    ada.open()
    expect(body).to_have_css(ground, dark)
    expect(page.get_by_label("Look")).to_have_value("dark")
    page.get_by_label("Look").select_option("As the system")
    expect(body).to_have_css(ground, light)


def printed(page: Page) -> pypdf.PdfReader:
    return pypdf.PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True, print_background=True)))


def words_of(document: pypdf.PdfReader) -> str:
    return " ".join(" ".join(sheet.extract_text() for sheet in document.pages).split())


def test_a_reading_prints_as_its_report_also_from_a_dark_screen(ada):
    page = ada.page
    row = page.locator("tbody tr", has_text="P-10").first
    number = row.locator("td").nth(2).inner_text()
    row.dblclick()
    page.locator(".viewer-canvas").wait_for()
    page.emulate_media(color_scheme="dark")
    document = printed(page)
    page.emulate_media(color_scheme="light")
    words = words_of(document)
    for part in (
        number, "Chest CT slice: normal, pneumonia or COVID-19?", "Finding of the model", "Probabilities",
        "Image checks", "Passed:", "The image that was read", "Heat map: areas that support", "Not reviewed yet",
        "Source", "ct-infection@v2", "Research use only, not a diagnosis", f"Page 1 of {len(document.pages)}",
    ):  # fmt: skip
        assert part in words, part
    for part in ("Sign out", "New case", "Next unread", "Agree:", "Comment", "Opacity", "Download report"):
        assert part not in words, part
    assert sum(len(sheet.images) for sheet in document.pages) >= 2
    assert page.locator(".print-pictures").count() == 0, "the screen is as it was"


def test_a_series_prints_on_two_sheets_with_its_three_planes_and_without_what_is_to_be_pressed(filled, visit):
    page = visit("ada").page
    open_series(page)
    document = printed(page)
    words = words_of(document)
    for part in ("P-3001", "Finding of the model", "CT series", "Image checks", "Source", "Page 1 of 2"):
        assert part in words, part
    assert "100 %" not in words.partition("Finding of the model")[0], "the viewer's tools"
    first = document.pages[0].extract_text()
    assert "Coronal" in first and "Sagittal" in first and "Finding of the model" in first


def test_the_worklist_prints_with_all_its_rows(ada):
    ada.page.get_by_label("rows per page").select_option("10")
    words = words_of(printed(ada.page))
    assert all(f"P-{1001 + number}" in words for number in range(12))
    assert "Sign out" not in words and "Search in this list" not in words
    expect(ada.page.get_by_label("rows per page")).to_have_value("10")
    ada.page.get_by_label("rows per page").select_option("25")  # later tests see all rows


def not_for_fingers(page: Page) -> list[str]:
    """Buttons and fields that a finger would miss or not get at, at a phone's width, which stays."""
    page.set_viewport_size({"width": WIDTHS["phone"], "height": 844})
    page.wait_for_function(f"() => {NEEDED} <= window.innerWidth")
    return page.locator(".clinic :is(button, select, input, textarea, a):visible").evaluate_all(
        """(all, least) => {
          const scrolls = (part) => !part.matches(".clinic") && (scrolls(part.parentElement)
            || (/auto|scroll/.test(getComputedStyle(part).overflowX) && part.scrollWidth > part.clientWidth));
          const misses = (one) => {
            const box = one.getBoundingClientRect();
            const small = one.matches("button, select") && (box.height < least || box.width < least);
            return small || ((box.left < 0 || box.right > innerWidth) && !scrolls(one));
          };
          return all.filter(misses).map((one) => one.innerText.slice(0, 30) || one.outerHTML.slice(0, 80));
        }""", TOUCH
    )  # fmt: skip


def test_a_phone_shows_a_series_with_buttons_for_fingers(filled, visit):
    page = visit("ada").page
    open_series(page)
    assert not_for_fingers(page) == []
    page.set_viewport_size({"width": WIDTHS["desk"], "height": 900})


def test_a_phone_shows_every_screen_without_sideways_scrolling_and_buttons_for_fingers(filled, visit):
    for name in ("ada", "eve"):
        visitor = visit(name)
        page = visitor.page
        for entry in page.locator(".nav-entry").all_inner_texts():
            visitor.go(entry.strip())
            page.wait_for_timeout(200)
            assert not_for_fingers(page) == [], entry
            assert page.locator(".clinic-head").evaluate("(head) => head.offsetHeight") < 140
            page.set_viewport_size({"width": WIDTHS["desk"], "height": 900})


def test_a_phone_shows_the_entry_of_the_screen_that_an_address_opens(filled, visit):
    page = visit("eve").page
    page.set_viewport_size({"width": WIDTHS["phone"], "height": 844})
    for address, name in (("#/settings", "Settings"), ("#/people", "People")):
        page.evaluate("(address) => { location.hash = address; }", address)
        expect(page.locator(".nav-entry.current", has_text=name)).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": WIDTHS["desk"], "height": 900})
