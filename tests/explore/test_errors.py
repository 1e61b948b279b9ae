"""The browser of errors: what a click writes, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from traitlets import TraitError

from lungkit.data import dataset, decisions, preprocess
from lungkit.explore.errors import ALL, ERRORS, SUSPECTED, ErrorBrowser
from lungkit.training import errors
from lungkit.training.embedding_map import Embedded

SPEC = preprocess.Preprocessing(size=(24, 24), mean=0.4, std=0.2)


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """Twelve patients of each class; the vectors tell the classes apart, but one image has the other label."""
    rng, root = np.random.default_rng(3), tmp_path_factory.mktemp("errors") / "chests"
    for label in ("Normal", "Sick"):
        for number in range(12):
            path = root / label / f"{number:02}<b>.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_DATA", str(root.parent / "data"))
        return dataset.load_split(root, quiet=True)


@pytest.fixture(scope="module")
def embedded(chest):
    rows = chest.part().reset_index(drop=True)
    vectors = np.random.default_rng(0).normal(size=(len(rows), 4)) * 0.3
    vectors[:, 0] += 3 * (rows["label"] == "Sick")
    vectors[rows.index[(rows["split"] == "train") & (rows["label"] == "Normal")][0], 0] += 3  # and looks sick
    version = SimpleNamespace(card=SimpleNamespace(preprocessing=SPEC, classes=chest.classes), folder=None)
    return Embedded(version, chest, rows, vectors, np.zeros(len(rows)))


@pytest.fixture(scope="module")
def judged(embedded) -> errors.Judged:
    return errors.suspects(embedded)


@pytest.fixture
def browser(embedded, judged, tmp_path) -> ErrorBrowser:
    table = errors.to_look_at(embedded, judged)
    return ErrorBrowser(embedded, table, tmp_path / "run" / decisions.FILE)


def at(browser, part):
    """The browser at the first image of a part."""
    browser.show.value, browser.part.value = ALL, part
    return browser.current


def written(browser):
    return decisions.read(browser.file)


# --- what it shows


def test_it_begins_with_the_suspected_label_and_its_neighbours(browser):
    assert browser.show.value == SUSPECTED
    assert browser.current["label"] == "Normal" and browser.other.value == "Sick"
    assert browser.nearest.value == "Nearest training images of other patients: Sick, Sick, Sick."
    assert bytes(browser.image.value).startswith(b"\x89PNG") and bytes(browser.near.value).startswith(b"\x89PNG")
    assert "1 of 1 image" in browser.about.value


def test_filters_choose_class_part_and_sureness_and_the_buttons_walk_through_the_rest(browser):
    browser.show.value, browser.label.value, browser.part.value = ALL, "Sick", "val"
    wanted = browser.table.query("label == 'Sick' and part == 'val'")["file"].tolist()
    seen = []
    for _ in wanted:
        seen.append(browser.current["file"])
        browser.next.click()
    assert seen == wanted and len(wanted) > 1
    assert browser.current["file"] == wanted[-1], "there is nothing after the last"
    browser.back.click()
    assert browser.current["file"] == wanted[-2]
    browser.label.value = browser.part.value = "every"
    browser.most.value = 0.5
    assert len(browser._list) == (browser.table["of_label"] <= 0.5).sum()


def test_without_an_image_left_nothing_can_be_decided(browser):
    browser.show.value, browser.most.value = ALL, 0.0
    assert browser.current is None and browser.keep.disabled
    browser.keep.click()
    assert "Not written" in browser.status.value and not browser.file.exists()


def test_names_of_files_are_shown_as_text_and_not_as_markup(browser):
    assert "&lt;b&gt;" in browser.about.value and "<b>" not in browser.about.value
    browser.keep.click()
    assert "&lt;b&gt;" in browser.status.value and "<b>" not in browser.status.value


def test_wrong_answers_are_a_list_of_their_own_with_the_answer(embedded, judged, tmp_path):
    file = embedded.rows["file"][5]
    wrong = embedded.rows.iloc[[5]][["file"]].assign(answer="Sick")
    browser = ErrorBrowser(embedded, errors.to_look_at(embedded, judged, [wrong]), tmp_path / "d.csv")
    browser.show.value = ERRORS
    assert browser.current["file"] == file and "the version answers Sick" in browser.about.value


# --- what a click writes


def test_each_click_writes_the_decision_with_the_images_hash_the_words_and_the_time(browser, chest):
    browser.reason.value, browser.by.value = "  opacity,\nleft ", "Åsa"
    browser.relabel.click()
    (row,) = written(browser)
    shown = browser.current
    assert (row.file, row.sha256, row.decision, row.label) == (shown["file"], shown["sha256"], "relabel", "Sick")
    assert (row.part, row.reason, row.by) == (shown["part"], "opacity, left", "Åsa") and row.at.endswith("+00:00")
    assert "relabelled to Sick" in browser.status.value
    browser.keep.click()
    assert [row.decision for row in written(browser)] == ["keep"], "one decision for each image"
    browser.undo.click()
    assert written(browser) == () and browser.status.value == "Taken back."


def test_the_next_run_reads_what_the_browser_wrote(browser, chest):
    row = at(browser, "train")
    browser.reason.value = "no lung"
    browser.exclude.click()
    after = dataset.load_split(chest.root, decisions=browser.file, quiet=True)
    assert after.part("excluded")["file"].tolist() == [row["file"]]


def test_decisions_of_another_person_and_of_an_earlier_run_stay(browser, embedded, tmp_path):
    other = decisions.Decision("elsewhere.png", "1" * 64, "keep")
    decisions.write(tmp_path / "before.csv", [other])
    browser = ErrorBrowser(embedded, browser.table, browser.file, tmp_path / "before.csv")
    browser.keep.click()
    another = decisions.Decision("third.png", "2" * 64, "keep")
    decisions.write(browser.file, [*written(browser), another])
    browser.undo.click()
    assert written(browser) == (other, another)


# --- what it refuses


def test_a_change_needs_a_reason(browser):
    browser.exclude.click()
    assert "give a reason" in browser.status.value and not browser.file.exists()


def test_a_test_image_changes_only_if_that_is_ticked_and_its_row_says_so(browser):
    at(browser, "test")
    browser.reason.value = "blurred"
    browser.exclude.click()
    assert "this image is of the test part" in browser.status.value and not browser.file.exists()
    browser.test_too.value = True
    browser.exclude.click()
    assert written(browser)[0].part == "test"


def test_a_label_that_the_page_makes_up_is_refused(browser):
    with pytest.raises(TraitError):
        browser.other.value = "<script>"
    browser.other.options = ("Flu",)  # as a page could that sends its own options
    browser.reason.value = "x"
    browser.relabel.click()
    assert "Flu is no class of this set" in browser.status.value and not browser.file.exists()


def test_the_images_own_label_is_no_new_label(browser):
    browser.other.value, browser.reason.value = "Normal", "x"
    browser.relabel.click()
    assert "choose Keep" in browser.status.value


def test_a_file_that_cannot_be_read_is_not_overwritten(browser):
    browser.file.parent.mkdir(parents=True)
    browser.file.write_text("my notes")
    browser.move(0)
    assert "Decisions cannot be written" in browser.status.value
    browser.keep.click()
    assert "Not written" in browser.status.value and browser.file.read_text() == "my notes"
