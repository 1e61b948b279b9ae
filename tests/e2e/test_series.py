"""A CT series as people use it: sent as a zip or as files, read as one, looked at slice by slice."""

import base64
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from lungkit.data import phantom

SLICES = 12


@pytest.fixture(scope="session")
def cuts(tmp_path_factory) -> list[Path]:
    """The files of a phantom's series with lesions in its middle."""
    folder = tmp_path_factory.mktemp("cuts")
    drawn = phantom.make_patient("stack", "Pneumonia", seed=46, slices=SLICES, size=192, affected_mm=(40, 75))
    return [phantom.write_dicom(cut, folder / f"{cut.index:02}.dcm", original=True) for cut in drawn]


@pytest.fixture(scope="session")
def packed(cuts, tmp_path_factory) -> Path:
    """The series as a zip file."""
    path = tmp_path_factory.mktemp("zip") / "phantom-series.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for cut in cuts:
            archive.write(cut, f"export/{cut.name}")
    return path


def slice_shown(page: Page) -> int:
    return int(re.search(r"Slice (\d+) of", page.locator(".stack-where").inner_text())[1])


def drawn(page: Page, canvas: str) -> np.ndarray:
    address = page.locator(canvas).evaluate("(canvas) => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L"), np.int16)


def test_a_zipped_series_is_read_scrolled_and_shown_in_three_planes(visit, packed):
    ada = visit("ada")
    page = ada.page
    ada.new_patient("P-700", "Demo Patient Series")
    ada.page.locator("input[type=file]:enabled").set_input_files(packed)
    page.locator(".stack").wait_for()
    line = page.locator(".file-line").last.inner_text()
    assert re.search(r"CT series 1: 12 slices, \d+\.?\d* mm apart, axial", line), line
    page.wait_for_function("() => document.querySelector('.stack').measured.whole > 0")
    key = slice_shown(page)
    assert "one of those that decide" in page.locator(".stack-told").inner_text()

    stage = page.locator(".stack-slice canvas")
    stage.hover()
    before = drawn(page, ".stack-slice canvas")
    page.mouse.wheel(0, 100 if key < SLICES else -100)
    expect(page.locator(".stack-where")).to_contain_text(f"Slice {key + 1 if key < SLICES else key - 1} of 12")
    assert np.abs(drawn(page, ".stack-slice canvas") - before).mean() > 0.5
    stage.focus()
    page.keyboard.press("End")
    assert slice_shown(page) == SLICES
    page.keyboard.press("ArrowUp")
    assert slice_shown(page) == SLICES - 1
    page.keyboard.press("Home")
    assert slice_shown(page) == 1
    box = page.locator(".stack-strip").bounding_box()
    page.locator(".stack-strip").click(position={"x": box["width"] * 0.5, "y": box["height"] / 2})
    assert slice_shown(page) in (6, 7)
    page.get_by_role("button", name="Go to the slice that counts most").click()
    assert slice_shown(page) == key

    for name in ("Coronal", "Sagittal"):
        assert drawn(page, f"canvas[aria-label^={name}]").std() > 20, "a plane across the stack"
    before = drawn(page, ".stack-slice canvas")
    page.get_by_role("button", name="Mediastinum window").click()
    assert np.abs(drawn(page, ".stack-slice canvas") - before).mean() > 5
    assert not ada.usable()
    assert any("/clinic/slices/" in url for url in ada.requests)


def test_many_files_are_one_case_and_slices_are_for_who_opened_it(visit, clinic, cuts):
    ben = visit("ben")
    ben.new_patient("P-701", "Demo Patient Files")
    ben.page.locator("input[type=file]:enabled").set_input_files(cuts)
    ben.page.get_by_role("button", name="Save for P-701 anyway").click()  # another patient has the same series
    ben.page.locator(".stack").wait_for()
    ben.page.wait_for_function("() => document.querySelector('.stack').measured.first > 0")
    address = next(url for url in ben.requests if "/clinic/slices/" in url)
    assert ben.context.request.get(address).status == 200
    eve, ada, nobody = visit("eve"), visit("ada"), visit()
    assert eve.context.request.get(address).status == 403, "an administrator"
    assert ada.context.request.get(address).status == 404, "a colleague who has not opened the case"
    assert nobody.context.request.get(address, max_redirects=0).status == 403
    for wrong in ("/13", "/x", "/-1", "/0,99", "/" + ",".join(["0"] * 17)):
        assert ben.context.request.get(re.sub(r"/[\d,]+$", wrong, address)).status == 404, wrong
    ada.go("Patient")
    ada.page.get_by_label("Patient number or name").press_sequentially("P-701")
    ada.page.get_by_role("button", name="P-701").click()
    expect(ada.page.locator(".study")).to_contain_text("CT series, 12 slices")
    ada.page.locator(".study").get_by_role("button", name="Open").click()
    ada.page.wait_for_function("() => document.querySelector('.stack')?.measured.first > 0")
    assert ada.context.request.get(address).status == 200
