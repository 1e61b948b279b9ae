"""Figures and tables of a run: in three forms, with captions, in the order of the notebooks."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lungkit.training import exhibits


def test_a_figure_is_kept_in_three_forms_and_one_of_pyplots_is_closed(tmp_path):
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    figure.suptitle("The loss\nfalls")
    assert exhibits.figure(figure, tmp_path, "03_loss") is figure
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for suffix, begin in begins.items():
        assert (tmp_path / "figures" / f"03_loss.{suffix}").read_bytes().startswith(begin)
    with Image.open(tmp_path / "figures" / "03_loss.png") as picture:
        assert round(picture.info["dpi"][0]) == 150, "sharp in a Word file"
    assert plt.get_fignums() == []
    (kept,) = exhibits.listed(tmp_path, exhibits.FIGURES)
    assert (kept.caption, kept.notebook) == ("The loss falls", "03"), "by default the title is the caption"


def test_a_figure_drawn_again_is_the_same_file(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        figure = Figure()
        figure.subplots().plot([0, 1])
        exhibits.figure(figure, folder, "03_loss")
    for suffix in ("png", "svg", "pdf"):
        a, b = ((tmp_path / name / "figures" / f"03_loss.{suffix}").read_bytes() for name in "ab")
        assert a == b, suffix


def test_exhibits_are_listed_by_notebook_and_cell_and_one_kept_again_keeps_its_place(tmp_path):
    for name in ("05_map", "04_roc", "04_confusion", "04_roc"):
        exhibits.figure(Figure(), tmp_path, name, f"about {name}")
    listed = exhibits.listed(tmp_path, exhibits.FIGURES)
    assert [(one.name, one.place) for one in listed] == [("04_roc", 1), ("04_confusion", 2), ("05_map", 1)]
    assert exhibits.listed(tmp_path, exhibits.TABLES) == []


@pytest.mark.parametrize(("index", "first"), [(None, "value"), (["a", "b"], ",value")])
def test_a_tables_index_is_written_where_it_has_a_meaning(tmp_path, index, first):
    frame = pd.DataFrame({"value": [1, 2]}, index=index)
    assert exhibits.table(frame, tmp_path, "04_points", "Points") is frame
    assert (tmp_path / "tables" / "04_points.csv").read_text().splitlines()[0] == first
    (kept,) = exhibits.listed(tmp_path, exhibits.TABLES)
    assert kept == exhibits.Exhibit("tables", "04_points", "Points", 1)


def test_headings_of_several_rows_become_one(tmp_path):
    frame = pd.DataFrame(
        [[1, 2]], index=["all"], columns=pd.MultiIndex.from_product([["Normal"], ["images", "patients"]])
    )
    exhibits.table(frame, tmp_path, "01_split", "Split")
    assert (tmp_path / "tables" / "01_split.csv").read_text().splitlines()[0] == ',"Normal, images","Normal, patients"'


def _refused(folder):
    said: list[str] = []
    return exhibits.listed(folder, exhibits.FIGURES, said.append), said


@pytest.mark.parametrize(
    "written",
    ["{", "", "[]", "null", "[" * 100_000, b"\xff", '{"kind": "figures"}', {"more": 1}, {"name": 5}, {"caption": None},
     {"place": "x"}, {"kind": "../x"}, {"name": "../../secret"}, {"name": ""}, {"name": "03_loss"}],
    ids=lambda one: repr(one)[:30],
)  # fmt: skip
def test_one_caption_that_cannot_be_read_costs_one_exhibit_and_is_said(tmp_path, written):
    for name in ("03_loss", "04_roc"):
        exhibits.figure(Figure(), tmp_path, name, "A caption")
    side = tmp_path / "figures" / "04_roc.json"
    if isinstance(written, dict):
        written = json.dumps(json.loads(side.read_text()) | written)
    side.write_bytes(written if isinstance(written, bytes) else written.encode())
    found, said = _refused(tmp_path)
    assert [one.name for one in found] == ["03_loss"]
    assert len(said) == 1 and said[0].startswith("The figure 04_roc cannot be read: ")
    exhibits.figure(Figure(), tmp_path, "04_roc", "Again")  # a run goes on
    assert [one.name for one in exhibits.listed(tmp_path, exhibits.FIGURES)] == ["03_loss", "04_roc"]


@pytest.mark.parametrize("form", ["json", "png", "svg", "pdf"])
@pytest.mark.parametrize("put", [lambda path, to: path.symlink_to(to), lambda path, _: path.mkdir()])
def test_an_exhibit_of_links_or_folders_is_refused(tmp_path, form, put):
    exhibits.figure(Figure(), tmp_path, "04_roc", "A caption")
    file, outside = tmp_path / "figures" / f"04_roc.{form}", tmp_path / f"outside.{form}"
    file.rename(outside)
    put(file, outside)
    found, said = _refused(tmp_path)
    assert found == [] and f"04_roc.{form} is a link or no plain file" in said[0]


def test_a_folder_of_exhibits_that_is_a_link_is_refused(tmp_path):
    exhibits.figure(Figure(), tmp_path / "other", "04_roc", "A caption")
    (tmp_path / "figures").symlink_to(tmp_path / "other" / "figures")
    found, said = _refused(tmp_path)
    assert found == [] and "figures is a link" in said[0]
