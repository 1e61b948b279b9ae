"""The browser: what a filter keeps, what a page reads, and what it says."""

import io

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter

from lungkit.data import dataset, preprocess
from lungkit.explore import browser

SPEC = preprocess.Preprocessing(size=(32, 32))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Sixty images of twenty patients; the later, the brighter; a page holds 24."""
    root, rows = tmp_path_factory.mktemp("set"), []
    for number in range(60):
        grey = np.full((40, 40), 20 + 3 * number, np.uint8)
        PIL.Image.fromarray(grey).save(root / f"i{number:02d}.png")
        rows.append((f"i{number:02d}.png", ("Normal", "Sick")[number % 2], f"P{number % 20:02d}", "train"))
    pd.DataFrame(rows, columns=["file", "label", "patient_id", "split"]).to_csv(root / "labels.csv", index=False)
    return dataset.load(root)


@pytest.fixture(scope="module")
def table(collection):
    return browser.facts(collection, SPEC)


@pytest.fixture
def view(table, collection):
    return browser.View(table, browser.Thumbnails(collection, SPEC))


def test_facts_are_brightness_sharpness_and_size_of_each_image(table):
    assert table["file"].tolist() == [f"i{n:02d}.png" for n in range(60)]
    assert table["brightness"].to_numpy() == pytest.approx((20 + 3 * np.arange(60)) / 255, abs=1e-3)
    assert set(table["pixels"]) == {1600}


def test_a_blurred_image_is_less_sharp(tmp_path):
    texture = np.random.default_rng(1).integers(0, 255, (64, 64)).astype(np.uint8)
    (tmp_path / "set").mkdir()
    PIL.Image.fromarray(texture).save(tmp_path / "set" / "a.png")
    PIL.Image.fromarray(gaussian_filter(texture, 2)).save(tmp_path / "set" / "b.png")
    rows = pd.DataFrame({"file": ["a.png", "b.png"], "label": ["x", "y"], "patient_id": ["1", "2"]})
    rows.to_csv(tmp_path / "set" / "labels.csv", index=False)
    sharp, blurred = browser.facts(dataset.load(tmp_path / "set"), SPEC)["sharpness"]
    assert blurred < sharp / 10


def test_an_image_that_became_unreadable_is_left_out_of_the_facts(tmp_path):
    (tmp_path / "set").mkdir()
    for name, grey in (("a.png", 50), ("b.png", 90)):
        PIL.Image.fromarray(np.full((40, 40), grey, np.uint8)).save(tmp_path / "set" / name)
    rows = pd.DataFrame({"file": ["a.png", "b.png"], "label": ["x", "y"], "patient_id": ["1", "2"]})
    rows.to_csv(tmp_path / "set" / "labels.csv", index=False)
    made = dataset.load(tmp_path / "set")
    (tmp_path / "set" / "a.png").write_bytes(b"no image")
    assert browser.facts(made, SPEC)["file"].tolist() == ["b.png"]


def test_filters_are_combined_and_the_order_is_kept(table):
    rows = browser.chosen(table, label="Sick", patient="p03", order="brightest first")
    assert rows["file"].tolist() == ["i43.png", "i23.png", "i03.png"]
    assert browser.chosen(table, patient="[", order="by file").empty, "a patient's number is no pattern"


def test_the_browser_opens_with_the_darkest_images(view):
    assert view.says.value == "Page 1 of 3: 24 of 60 images, brightness 0.0784 to 0.349."
    assert view.page.max == 3
    picture = np.asarray(PIL.Image.open(io.BytesIO(view.picture.value)))
    assert picture[20, 20].tolist() == [20, 20, 20], "the darkest one stands first"


def test_turning_a_page_reads_only_the_images_of_that_page_and_none_twice(view):
    assert view._thumbnails.read == 24
    view.page.value = 3
    assert view.says.value.startswith("Page 3 of 3: 12 of 60 images")
    assert view._thumbnails.read == 36
    view.page.value = 1
    assert view._thumbnails.read == 36


def test_a_filter_goes_back_to_the_first_page(view):
    view.page.value = 3
    view.label.value = "Sick"
    assert (view.page.value, view.page.max) == (1, 2)
    assert view.says.value.startswith("Page 1 of 2: 24 of 30 images (of 60 in the data set)")


def test_a_filter_that_keeps_nothing_shows_an_empty_page_and_says_so(view):
    view.patient.value = "nobody"
    assert view.says.value == "No image of 60 fits the filter."
    assert PIL.Image.open(io.BytesIO(view.picture.value)).convert("L").getextrema() == (255, 255)


def test_no_more_thumbnails_are_kept_than_the_limit(collection, monkeypatch):
    monkeypatch.setattr(browser, "KEPT", 10)
    thumbnails = browser.Thumbnails(collection, SPEC)
    files = [f"i{n:02d}.png" for n in range(20)]
    assert len(thumbnails.of(files)) == 20
    assert list(thumbnails._kept) == files[10:]


def test_a_long_class_name_is_cut_to_the_width_of_a_thumbnail():
    cut = browser._cut("other_pneumonia_or_disease_of_the_lung")
    assert cut.endswith("…") and browser._font(10).getlength(cut) <= browser.SIDE
    assert browser._cut("Normal") == "Normal"


def test_of_a_long_patient_number_the_end_is_kept():
    assert browser._below("train", "P0047") == "train P0047"
    assert browser._below("set_aside", "P1") == "set aside P1"
    long = browser._below("train", "mosmed_CT-1_study_0831")
    assert long.startswith("train …") and long.endswith("_0831")
    assert browser._font(10).getlength(long) <= browser.SIDE


def test_a_source_is_a_filter_only_where_there_are_several(view, table, collection):
    assert "source" not in [one.description for one in view.box.children[0].children]
    two = table.assign(source=["A", "B"] * 30)
    several = browser.View(two, browser.Thumbnails(collection, SPEC))
    several.source.value = "B"
    assert len(several.rows) == 30
