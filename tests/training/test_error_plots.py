"""Figures of errors, of the map and of planted labels: one message each, in the title, and no larger than a page."""

from types import SimpleNamespace

import numpy as np
import pytest

from lungkit import palette
from lungkit.training import plots
from lungkit.training.embedding_map import Explained


def fits(figure) -> bool:
    width, height = figure.get_size_inches()
    return width <= 10 and height <= 8


def grid(n, missing=False):
    rng = np.random.default_rng(0)
    near_titles = [["1", "2", "" if missing else "3"]] * n
    return plots.neighbour_grid(rng.random((n, 9, 9)), rng.random((n, 3, 9, 9)), ["a\nb\nc"] * n, near_titles, "Errors")


@pytest.mark.parametrize(("images", "panels"), [(1, 4), (3, 12), (8, 32), (20, 32)])
def test_the_first_eight_images_are_shown_each_with_its_neighbours_and_in_a_frame(images, panels):
    figure = grid(images)
    assert fits(figure) and len(figure.axes) == panels
    framed = [any(spine.get_visible() for spine in axes.spines.values()) for axes in figure.axes]
    assert framed == [place % 4 == 0 for place in range(panels)]
    assert figure.axes[0].get_title(loc="left") == "a\nb\nc" and figure.get_suptitle() == "Errors"


def test_the_place_of_a_missing_neighbour_is_empty():
    assert [axes.get_visible() for axes in grid(1, missing=True).axes] == [True, True, True, False]


def test_the_maps_title_names_what_explains_most_and_each_panel_its_share():
    rng = np.random.default_rng(1)
    many = np.array([f"hospital {i}" for i in rng.integers(0, 12, 60)])
    values = {
        "label": np.array(["a", "b"])[rng.integers(0, 2, 60)], "split": np.full(60, "train"), "source": many,
        "brightness": rng.random(60),
    }  # fmt: skip
    shares = {name: Explained(0.1, 0.05, 0.2, 0.01) for name in values}
    shares |= {"split": Explained(*[np.nan] * 4), "brightness": Explained(0.6, 0.5, 0.7, 0.01)}
    figure = plots.embedding_map(rng.normal(size=(60, 2)), np.array([0.5, 0.2]), values, shares)
    assert fits(figure) and figure.get_suptitle().startswith("Of these, the brightness explains most")
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes[:4]]
    assert "label explains 10 % (5–20 %) of the map" in titles and "split has one value" in titles
    assert "4 more" in [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert "(50 % of the variance)" in figure.axes[0].get_xlabel()


def test_classes_and_parts_have_the_colours_that_they_have_in_every_figure():
    values = {"label": np.array(["a", "c", "b"] * 10), "split": np.array(["val", "train", "lost"] * 10)}
    values |= {"source": values["label"], "brightness": np.arange(30.0)}
    shares = {name: Explained(0.1, 0.05, 0.2, 0.01) for name in values}
    places = np.random.default_rng(1).normal(size=(30, 2))
    figure = plots.embedding_map(places, np.array([0.5, 0.2]), values, shares, classes=("c", "a", "b"))
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes[:2]]
    assert list(colours[0].items()) == [
        (name, style["color"]) for name, style in zip("cab", plots.STYLES, strict=False)
    ]
    assert colours[1] == {"train": palette.TRAIN, "val": palette.VALIDATION, "lost": palette.OTHER_SPLIT}


def test_the_curve_of_planted_labels_states_the_recall_of_as_many_as_were_planted():
    found = [
        SimpleNamespace(first=n, hits=hits, precision=(0.5, 0.3, 0.7), recall=(hits / 20, 0.1, 0.9), chance=0.05)
        for n, hits in ((10, 6), (20, 9), (40, 12))
    ]
    figure = plots.planted_found([10, 20, 40], found, 20)
    title = " ".join(figure.get_suptitle().split())
    assert fits(figure) and title == "The first 20 suspects contain 9 of 20 planted labels: recall 45 % (10–90 %)"
