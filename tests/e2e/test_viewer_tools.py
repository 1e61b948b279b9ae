"""The viewer's tools in a browser: window, turns, measures, full screen, keys, an earlier image next to this one."""

import base64
import io
import re
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lungkit.data import phantom
from tests.e2e.conftest import Clinic, Visitor

LAPTOP = {"width": 1366, "height": 768}
HEADER = 97  # pixels, which stay in sight


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Two slices of the phantom and their files."""
    folder = tmp_path_factory.mktemp("cuts")
    drawn = phantom.make_patient("demo", "Pneumonia", seed=46, slices=3, size=512)[1:]
    return [(cut, phantom.write_dicom(cut, folder / f"{cut.index}.dcm")) for cut in drawn]


@pytest.fixture(scope="module")
def ada(browser, clinic: Clinic, cuts) -> Iterator[Visitor]:
    """A doctor at a laptop who has read one slice; nothing has failed or left the machine at the end."""
    visitor = Visitor(browser, clinic, LAPTOP["width"])
    visitor.page.set_viewport_size(LAPTOP)
    visitor.sign_in("ada").new_patient("V-1", "Demo Patient Viewer")
    visitor.upload(cuts[0][1])
    visitor.page.locator(".viewer-canvas").wait_for()
    yield visitor
    assert (visitor.elsewhere(), visitor.faults) == ([], [])
    visitor.context.close()


@pytest.fixture
def page(ada) -> Page:
    """Its page, the viewer as it is at first and with the focus."""
    screen = ada.page.locator(".viewer-canvas").first
    screen.scroll_into_view_if_needed()
    screen.focus()
    ada.page.keyboard.press("z")
    return ada.page


def picture(page: Page, nth: int = 0) -> np.ndarray:
    """The square in the middle of the stage: (side, side, 3)."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    address = page.locator(".viewer-canvas").nth(nth).evaluate("(canvas) => canvas.toDataURL()")
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"), np.int16)
    side = min(drawn.shape[:2])
    top, left = ((length - side) // 2 for length in drawn.shape[:2])
    return drawn[top : top + side, left : left + side]


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def colour(drawn: np.ndarray) -> np.ndarray:
    """How coloured each pixel is: the heat map, as the image is grey."""
    return drawn.max(axis=2) - drawn.min(axis=2)


def middle(screen: Locator) -> tuple[float, float]:
    box = screen.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Page, start: tuple[float, float], across: float, down: float, button: str = "left") -> None:
    page.mouse.move(*start)
    page.mouse.down(button=button)
    page.mouse.move(start[0] + across, start[1] + down, steps=4)
    page.mouse.up(button=button)


def in_view(page: Page, *parts: str) -> list[str]:
    """What is not whole between the header and the window's lower edge."""
    boxes = {part: page.locator(part).first.bounding_box() for part in parts}
    return [
        f"{part}: {box}"
        for part, box in boxes.items()
        if box["y"] < HEADER - 1 or box["y"] + box["height"] > LAPTOP["height"]
    ]


PARTS = (".viewer-tools", ".viewer-stage", ".reading-decision .decision", "button:has-text('Agree')")


def test_a_new_reading_fits_a_laptops_window(ada):
    ada.page.evaluate("document.querySelectorAll('*').forEach((part) => { part.scrollTop = 0; })")
    assert in_view(ada.page, *PARTS) == []


def test_a_drag_with_the_right_button_changes_the_window_and_reset_brings_it_back(page):
    level, width = page.get_by_label("Level in HU, as a number"), page.get_by_label("Width in HU, as a number")
    before = picture(page)
    drag(page, middle(page.locator(".viewer-canvas")), 50, -30, "right")
    expect(level).to_have_value("-720")
    expect(width).to_have_value("1700")
    assert unlike(picture(page), before) > 3
    page.get_by_role("button", name="Reset all").click()
    expect(level).to_have_value("-600")
    expect(width).to_have_value("1500")
    assert unlike(picture(page), before) < 0.1


def test_the_window_has_a_tool_and_keys(page):
    level, width = page.get_by_label("Level in HU, as a number"), page.get_by_label("Width in HU, as a number")
    page.keyboard.press("w")
    expect(page.get_by_role("button", name="Window: drag")).to_have_attribute("aria-pressed", "true")
    drag(page, middle(page.locator(".viewer-canvas")), 10, 10)
    expect(level).to_have_value("-560")
    expect(width).to_have_value("1540")
    expect(page.locator(".viewer-hint")).to_contain_text("Level −560, width 1540 HU")
    page.keyboard.press("2")
    expect(level).to_have_value("40")
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    expect(level).to_have_value("90")
    expect(width).to_have_value("450")


def test_invert_and_turns_change_what_is_drawn_and_a_badge_says_so(page):
    badge = page.locator(".viewer-turned")
    page.keyboard.press("o")  # without the heat map
    before = picture(page)
    expect(badge).to_be_hidden()
    page.keyboard.press("i")
    expect(badge).to_have_text("Inverted")
    assert unlike(picture(page), 255 - before) < 1
    page.keyboard.press("i")
    for key, words, turned in (
        ("r", "Turned 90° right", np.rot90(before, -1)),
        ("l", "", before),
        ("l", "Turned 90° left", np.rot90(before)),
        ("h", "Flipped left to right, turned 90° right", np.fliplr(np.rot90(before))),
        ("r", "Flipped left to right, turned 180°", np.flipud(before)),
    ):
        page.keyboard.press(key)
        expect(badge).to_have_text(words)
        assert unlike(picture(page), turned) < 4 < unlike(before, np.rot90(before)), key
    page.keyboard.press("z")
    expect(badge).to_be_hidden()
    assert unlike(picture(page), before) < 0.1
    page.keyboard.press("o")


def test_the_heat_map_turns_with_the_image(page):
    before = colour(picture(page))
    page.keyboard.press("r")
    turned = colour(picture(page))
    assert unlike(turned, np.rot90(before, -1)) < 2 < unlike(before, np.rot90(before, -1))
    assert turned.max() > 100


def test_zoom_place_and_window_stay_when_another_heat_map_is_chosen(page):
    page.keyboard.press("2")
    page.keyboard.press("h")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.get_by_label("Heat map of").select_option("None (image only)")
    shown = picture(page)
    page.get_by_label("Heat map of").select_option("Normal")
    page.get_by_label("Heat map of").select_option("None (image only)")
    assert unlike(picture(page), shown) < 0.1
    expect(page.locator(".viewer-zoomed")).to_have_text("125 %")
    page.get_by_label("Heat map of").select_option("Pneumonia")


def test_a_distance_is_measured_in_mm_in_the_image_whatever_the_zoom_and_turn(page, cuts):
    screen, hint = page.locator(".viewer-canvas"), page.locator(".viewer-hint")
    x, y = middle(screen)
    side = min(screen.bounding_box()["width"], screen.bounding_box()["height"])
    mm = cuts[0][0].pixel_spacing_mm * 512 / side  # for a pixel of the screen
    page.keyboard.press("d")
    expect(hint).to_contain_text("Click two points")
    page.mouse.click(x - 60, y - 45)
    page.mouse.click(x + 60, y + 45)
    expect(hint).to_contain_text("Measures are not saved")
    said = float(re.search(r"Distance ([\d.]+) mm\.", hint.inner_text())[1])
    assert said == pytest.approx(150 * mm, rel=0.01)
    page.keyboard.press("r")
    page.keyboard.press("+")
    drag(page, (x, y), 100, 0)
    said = float(re.search(r"Distance ([\d.]+) mm\.", hint.inner_text())[1])
    assert said == pytest.approx(100 * mm / 1.25, rel=0.01)
    page.keyboard.press("Delete")
    said = float(re.search(r"Distance ([\d.]+) mm\.", hint.inner_text())[1])
    assert said == pytest.approx(150 * mm, rel=0.01)
    page.get_by_role("button", name="Remove the last measure").click()
    expect(hint).to_contain_text("Click two points")


def test_a_measure_is_drawn_and_made_by_keys_alone(page, cuts):
    before = picture(page)
    page.keyboard.press("d")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Enter")
    said = re.search(r"Distance ([\d.]+) mm\.", page.locator(".viewer-hint").inner_text())[1]
    assert float(said) == pytest.approx(40 * cuts[0][0].pixel_spacing_mm, abs=0.1)
    page.keyboard.press("p")
    assert unlike(picture(page), before) > 0.05
    page.keyboard.press("a")
    x, y = middle(page.locator(".viewer-canvas"))
    for across, down in ((0, -80), (0, 0), (80, 0)):
        page.mouse.click(x + across, y + down)
    expect(page.locator(".viewer-hint")).to_contain_text("Angle 90°")


def test_full_screen_has_the_tools_the_keys_the_patient_and_the_warning(page):
    page.keyboard.press("f")
    page.wait_for_function("() => document.fullscreenElement?.classList.contains('viewer')")
    expect(page.locator(".viewer-warning")).to_be_visible()
    expect(page.locator(".viewer-warning")).to_have_text("Research use only, not a diagnosis")
    expect(page.locator(".viewer-caption")).to_contain_text("V-1 Demo Patient Viewer")
    expect(page.get_by_role("toolbar")).to_be_visible()
    page.keyboard.press("r")
    expect(page.locator(".viewer-turned")).to_have_text("Turned 90° right")
    page.keyboard.press("f")
    page.wait_for_function("() => !document.fullscreenElement")
    expect(page.locator(".viewer-warning")).to_be_hidden()


def test_keys_act_only_in_the_viewer_and_a_list_shows_them(ada, page):
    ada.page.get_by_label("Comment", exact=False).first.focus()
    page.keyboard.type("ri")
    expect(page.locator(".viewer-turned")).to_be_hidden()
    page.locator(".viewer-canvas").focus()
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys of the image")
    for key in ("W", "D", "A", "I", "L", "R", "H", "0", "Z", "F", "O", "Delete"):
        expect(keys.locator("kbd").get_by_text(key, exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()


def test_the_toolbar_takes_one_stop_of_the_tab_key_and_arrows_lead_through_it(page):
    toolbar = page.get_by_role("toolbar", name="Tools of the image")
    assert toolbar.locator("button[tabindex='0']").count() == 1
    toolbar.get_by_role("button", name="Move the zoomed image").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(toolbar.locator("button:focus")).to_have_attribute("aria-label", "Invert black and white (I)")
    page.keyboard.press("Enter")
    expect(toolbar.locator("button:focus")).to_have_attribute("aria-pressed", "true")
    assert toolbar.locator("button[tabindex='0']").count() == 1
    for each in toolbar.locator("button:visible").all():
        assert re.search(r"\(.+\)$", each.get_attribute("title")), "each names its key"


def test_a_picture_without_a_spacing_is_measured_in_pixels_and_has_a_window_in_percent(ada, cuts, tmp_path):
    file = tmp_path / "picture.png"
    grey = np.clip((cuts[0][0].hu + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
    Image.fromarray(grey).save(file)
    ada.page.get_by_role("button", name="Next patient").click()
    ada.new_patient("V-2", "Demo Patient Picture")
    ada.upload(file)
    page = ada.page
    page.get_by_label("Level in %, as a number").wait_for()
    before = picture(page)
    drag(page, middle(page.locator(".viewer-canvas")), -50, 0, "right")
    expect(page.get_by_label("Width in %, as a number")).to_have_value("80")
    assert unlike(picture(page), before) > 3
    page.keyboard.press("d")
    x, y = middle(page.locator(".viewer-canvas"))
    drag(page, (x, y), 60, 0)
    expect(page.locator(".viewer-hint")).to_contain_text("pixels. The distance between pixels is not known.")
    page.mouse.move(x, y)
    assert re.fullmatch(r"\d+ %", page.locator(".viewer-under").inner_text())


def test_an_earlier_image_stands_next_to_this_one_and_follows_it(ada, cuts):
    page = ada.page
    ada.start_over()
    expect(page.locator(".file-line")).to_have_count(0)
    page.get_by_label("Patient number or name").fill("V-1")
    ada.sees("1 found. Select one:")  # before, a click could hit an old list
    page.get_by_role("button", name="V-1").click()
    ada.upload(cuts[1][1])
    page.locator(".viewer-canvas").wait_for()
    ada.go("Worklist")
    page.locator("tbody tr", has_text="V-1").first.click()
    page.get_by_role("button", name="Open case").click()
    page.locator(".screen-way").wait_for()
    assert in_view(page, *PARTS) == []
    page.wait_for_timeout(1500)  # a reading that is drawn again would be shown whole again
    page.locator(".viewer-canvas").focus()
    page.keyboard.press("+")
    expect(page.locator(".viewer-zoomed")).to_have_text("125 %")
    page.get_by_role("button", name=re.compile(r"Compare with prior \(\d+ \w{3} \d{4}\)")).click()
    screens, zooms = page.locator(".viewer-canvas"), page.locator(".viewer-zoomed")
    expect(screens).to_have_count(2)
    expect(page.locator(".prior .viewer-caption")).to_contain_text("Prior: CT image")
    assert in_view(page, *PARTS, ".prior .viewer-stage") == []
    first, second = (screen.bounding_box() for screen in screens.all())
    assert (first["y"], first["height"]) == (second["y"], second["height"])

    expect(zooms.nth(1)).to_have_text("125 %")
    before = picture(page, 1)
    screens.first.focus()
    page.keyboard.press("+")
    expect(zooms.nth(1)).to_have_text("156 %")
    page.keyboard.press("i")
    expect(page.locator(".viewer-turned").nth(1)).to_have_text("Inverted")
    assert unlike(picture(page, 1), before) > 10
    page.keyboard.press("k")
    page.keyboard.press("0")
    expect(zooms.nth(0)).to_have_text("100 %")
    expect(zooms.nth(1)).to_have_text("156 %")
    page.get_by_role("button", name="Close the comparison").click()
    expect(screens).to_have_count(1)
    assert ada.usable() == []
    page.set_viewport_size(LAPTOP)
