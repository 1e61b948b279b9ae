"""Figures of groups and of usefulness carry the right data and say it in their titles."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.training import plots, subgroup_plots, subgroups, usefulness
from lungkit.training.evaluation import evaluate


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.use_style()
        yield


# Not what is collected here but was left by a test before.
_OTHERS = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = pytest.mark.filterwarnings("error", *_OTHERS)


def evaluation(n=150):
    """Of two classes, with three images of each patient."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, n)
    p = 1 / (1 + np.exp(-(1.5 * (2 * y - 1) + rng.normal(0, 1.4, n))))
    rule = DecisionRule(kind="threshold", positive="Pneumonia", threshold=0.5)
    return evaluate(y, np.column_stack([1 - p, p]), np.arange(n) // 3, ("Normal", "Pneumonia"), rule, n_boot=50)


def draw(figure):
    """Fails where a figure cannot be laid out or holds a character without a glyph (warnings are errors here)."""
    FigureCanvasAgg(figure).draw()
    return figure


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def grouped(result, **columns):
    return subgroups.measure(result, pd.DataFrame({name: pd.Categorical(of) for name, of in columns.items()}))


def test_groups_are_ordered_by_their_figure_around_that_of_all_images_and_small_ones_are_hollow():
    result = evaluation(300)  # 100 patients with three images each
    found = grouped(result, ward=np.repeat(["A", "B", "small"], [150, 138, 12]))
    figure = draw(subgroup_plots.gaps(found))
    (axes,) = figure.axes
    table = found.table.sort_values("auc")
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert shown == [f"ward: {row.group} ({row.patients})" for row in table.itertuples()]
    solid, hollow = (container.lines[0] for container in axes.containers)
    assert hollow.get_markerfacecolor() == "white" and [*hollow.get_xdata()] == [
        *table[table["group"] == "small"]["auc"]
    ]
    assert sorted(solid.get_xdata()) == pytest.approx(sorted(table[table["group"] != "small"]["auc"]))
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the lowest is on top"
    assert "AUC for Pneumonia is lowest where ward is" in title(figure)
    assert labels(figure) == ["all images, 95 % interval", "group, 95 % interval", "too few patients to test"]


def test_of_many_groups_the_lowest_are_shown_and_the_title_counts_the_rest():
    halves = {
        f"attribute {number}": np.where(np.arange(300) % (number + 3) < 2, "a", "b") for number in range(17)
    }  # 34 groups
    figure = draw(subgroup_plots.gaps(grouped(evaluation(300), **halves)))
    assert len(figure.axes[0].get_yticklabels()) == subgroups.SHOWN
    assert title(figure).endswith("; 4 groups above these not shown")


def test_a_decision_curve_shows_the_model_between_calling_all_and_none():
    curve = usefulness.decision_curve(evaluation())
    figure = draw(subgroup_plots.decision_curve(curve))
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines["call by the model"].tolist() == curve.table["model"].tolist()
    assert lines["call all"].tolist() == curve.table["all"].tolist()
    assert set(lines["call none"]) == {0}
    assert title(figure) == usefulness.useful_says(curve).replace("*", "").removesuffix(".")


def test_predictive_values_are_on_a_logarithmic_axis_with_this_set_and_screening_marked():
    result = evaluation()
    here = float(np.mean(result.true == 1))
    figure = draw(subgroup_plots.predictive_values(usefulness.predictive_values(result), here, "Pneumonia"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlim() == pytest.approx((0.001, max(0.5, here)))
    marks = [text.get_text().strip() for text in axes.texts]
    assert marks == [f"this set, {100 * here:.2g} %", "screening, 2 %"]
    at_two = usefulness.predictive_values(result, prevalences=[0.02]).iloc[0]
    found = usefulness.percents(at_two["ppv"], at_two["ppv_low"], at_two["ppv_high"])
    assert title(figure) == f"Where 2 % are ill, {found} of the alarms are right"


def test_where_nothing_is_defined_there_is_no_figure():
    healthy = evaluate(
        np.zeros(20, int), np.tile([0.9, 0.1], (20, 1)), np.arange(20), ("Normal", "Pneumonia"),
        DecisionRule(kind="argmax"), n_boot=20,
    )  # fmt: skip
    with pytest.raises(LungkitError, match="no group has a defined AUC"):
        subgroup_plots.gaps(grouped(healthy, side=np.arange(20) % 2))


def everything():
    found = grouped(evaluation(), **{f"attribute {n}": np.arange(150) % (n + 2) for n in range(5)})
    yield from (subgroup_plots.gaps(found, figure) for figure in subgroups.FIGURES)
    yield subgroup_plots.decision_curve(usefulness.decision_curve(evaluation()))
    yield subgroup_plots.predictive_values(usefulness.predictive_values(evaluation()), 0.3, "Pneumonia")


def test_every_figure_fits_a_notebook_page_with_its_title_and_legend():
    for figure in everything():
        width, height = draw(figure).get_size_inches()
        assert width <= 10 and height <= 8
        renderer = figure.canvas.get_renderer()
        for part in (*figure.legends, figure._suptitle):
            box = part.get_window_extent(renderer)
            assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1
    assert plt.get_fignums() == []
