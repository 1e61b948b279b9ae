"""Figures and tables of a run: in three forms, with captions, in the order of the notebooks."""

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
