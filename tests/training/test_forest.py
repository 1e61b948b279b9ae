"""The forest plot shows every difference with its interval, the margin, and what follows."""

from io import BytesIO

import numpy as np
import pytest

from lungkit.training import comparison, forest
from tests.compared import run


def draw(figure):
    """Draw it, so that layout and text are final."""
    figure.savefig(BytesIO())
    return figure


@pytest.fixture(scope="module")
def pairs():
    return comparison.compare([run("a", 1.2), run("b", 2.5), run("c", 0.2), run("d", 1.2, seed=1)], margin=0.05).pairs


def test_each_row_has_its_interval_its_numbers_and_its_verdict(pairs):
    axes = draw(forest.forest(pairs)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b against a", "c against a", "d against a"]
    for bars, pair in zip(axes.containers, pairs, strict=True):
        (low, place), (high, _) = bars.lines[2][0].get_segments()[0]
        assert (low, high) == pytest.approx(pair.auc[1:])
        assert place == len(pairs) - 1 - pairs.index(pair)  # the first on top
    texts = [text.get_text() for text in axes.texts]
    assert [text.split("  ")[1] for text in texts] == [pair.verdict for pair in pairs] == ["better", "worse", "open"]
    assert len({line.lines[0].get_marker() for line in axes.containers}) == 3  # not by colour alone


def test_the_margin_is_a_shaded_zone_below_zero(pairs):
    figure = draw(forest.forest(pairs))
    (zone,) = figure.axes[0].patches
    assert (zone.get_x(), zone.get_width()) == pytest.approx((-0.05, 0.05))
    assert figure.legends[0].get_texts()[0].get_text() == "loss within the margin"


def test_the_title_says_what_was_found(pairs):
    assert forest.forest(pairs).get_suptitle() == "Of 3 differences in AUC: 1 better, 1 worse, 1 open (margin 0.05)"
    assert forest.forest(pairs[:1]).get_suptitle() == "b against a: better, by a margin of 0.05"


def test_an_undefined_difference_has_a_row_and_no_mark():
    found = comparison.compare([run("a", 1, y=np.zeros(20, int)), run("b", 2, y=np.zeros(20, int))])
    axes = draw(forest.forest(found.pairs)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["undefined"] and not axes.containers


def test_identical_answers_have_a_mark_on_zero_and_no_interval():
    found = comparison.compare([run("a", 1), run("b", 1)])
    figure = draw(forest.forest(found.pairs))
    assert figure.get_suptitle() == "b against a: identical"
    assert [text.get_text() for text in figure.axes[0].texts] == ["+0.000  identical"]
    (bars,) = figure.axes[0].containers
    assert bars.lines[0].get_xdata() == [0] and not bars.lines[2]


def test_many_rows_stay_on_one_page_and_the_title_says_what_is_left_out(pairs):
    figure = forest.forest(list(pairs) * 20)
    assert figure.get_size_inches().max() <= 10 and figure.get_size_inches()[1] <= 8
    assert len(figure.axes[0].containers) == forest.MOST
    assert figure.get_suptitle().endswith(f"the first {forest.MOST} of them")


def test_no_text_of_the_plot_leaves_the_page(pairs):
    figure = draw(forest.forest(pairs))
    box = figure.bbox
    for text in [*figure.axes[0].texts, *figure.axes[0].get_yticklabels()]:
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1, text.get_text()
