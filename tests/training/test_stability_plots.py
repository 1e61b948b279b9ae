"""What figures and sentences say of repeated cross-validation follows from the numbers that they are given."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lungkit.training import learning_curve, stability, stability_plots, stability_sentences
from lungkit.training.learning_curve import Projection
from tests.training.stable import cohort, curve, head


@pytest.fixture(scope="module")
def found():
    data = cohort()
    return stability.repeated(data, head(data), number=4, repeats=2, starts=2)


@pytest.fixture(scope="module")
def searched():
    data = cohort(patients=40, images=1)
    return stability.nested_search(data, head(data), number=4, repeats=1)


def with_figures(found, figures):
    """The result with other AUCs of its folds (repeats, folds, starts)."""
    cells = found.cells.sort_values(["repeat", "fold", "start"])
    return replace(found, cells=cells.assign(auc=np.asarray(figures, float).ravel()))


def title(figure):
    return " ".join(figure.get_suptitle().split())


# --- figures


def test_the_strips_have_a_mark_for_each_training_and_name_lowest_and_highest_fold(found):
    drawing = stability_plots.folds(found)
    (axes,) = drawing.axes
    strips = [line for line in axes.lines if len(line.get_xdata()) == found.starts and line.get_linewidth() == 1]
    marks = np.concatenate([line.get_xdata() for line in strips])
    assert sorted(marks) == pytest.approx(sorted(found.cells["auc"]))
    means = found.figures().mean(axis=2)
    assert title(drawing).startswith(f"One fold says {means.min():.3f}, another {means.max():.3f}; all 60 patients")


def test_the_bars_are_deviations_and_a_negative_estimate_is_marked(found):
    base = np.array([[[0.8, 0.81], [0.9, 0.91], [0.85, 0.86], [0.7, 0.71]]])
    drawing = stability_plots.variances(with_figures(found, np.concatenate([base, base[:, ::-1]])))
    (axes,) = drawing.axes
    widths = dict(
        zip(
            [label.get_text() for label in axes.get_yticklabels()],
            [bar.get_width() for bar in axes.patches],
            strict=True,
        )
    )
    assert widths["repeat"] == 0 and widths["fold"] > widths["training start"] > 0
    assert widths["training start"] == pytest.approx(0.01 / np.sqrt(2))
    assert [text.get_text() for text in axes.texts] == ["estimate below 0"]
    assert title(drawing) == f"The fold moves the AUC most, by ±{widths['fold']:.3f}"


def test_the_searches_show_every_setting_and_the_difference(searched):
    drawing = stability_plots.searches({"labels as they are": searched})
    settings = drawing.axes[0].lines[0].get_xdata()
    assert sorted(settings) == sorted(searched.by_setting)
    assert f"{searched.table.loc['difference', 'value']:+.3f}".replace("-", "−") in title(drawing)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (0.92, "0.920 would take about"),
        (0.96, "lies above its asymptote"),
        (0.85, "0.850 is reached"),
        (0.9499, "too far"),
    ],
)
def test_the_curve_is_continued_only_where_its_target_is_projected(target, says):
    of = curve(0.95, 0.05, 0.8, noise=0.0005)
    drawing = stability_plots.curve(of, learning_curve.projection(of, target))
    assert says in title(drawing)
    furthest = max(line.get_xdata().max() for line in drawing.axes[0].lines if len(line.get_xdata()) > 2)
    assert (furthest > of.sizes[-1]) == (target == 0.92)
    assert furthest <= learning_curve.FARTHEST * of.sizes[-1]


def test_no_figure_is_larger_than_a_page(found, searched):
    of = curve(0.95, 0.05, 0.8)
    drawings = [
        stability_plots.folds(found),
        stability_plots.variances(found),
        stability_plots.searches({"a": searched}),
    ]
    drawings.append(stability_plots.curve(of, learning_curve.projection(of, 0.92)))
    assert all(width <= 10 and height <= 8 for width, height in (one.get_size_inches() for one in drawings))


# --- sentences


def test_the_pooled_sentences_count_the_folds_that_lie_outside(found):
    value, low, high = found.value()
    figures = np.full(found.figures().shape, value)
    figures[0, 0, 0], figures[1, 3, 1] = low - 0.1, high + 0.1  # two trainings, each of another fold
    told = " ".join(stability_sentences.pooled_says(with_figures(found, figures)))
    assert "Over all 60 patients, each tested 4 times" in told
    assert f"from {low - 0.1:.3f} to {high + 0.1:.3f}; 2 of them lie outside" in told


def test_a_negative_estimate_is_said_to_be_reported_as_0(found):
    base = np.array([[[0.8, 0.81], [0.9, 0.91], [0.85, 0.86], [0.7, 0.71]]])
    told = stability_sentences.variances_say(with_figures(found, np.concatenate([base, base[:, ::-1]])))
    (repeat,) = [line for line in told if line.startswith("From one repeat")]
    assert "±0.000" in repeat and "is below 0" in repeat and "reported as 0" in repeat
    assert not any("below 0" in line for line in told if line is not repeat)
    assert "adds the rest" in told[-1] or "cannot be told" in told[-1]


@pytest.mark.parametrize(
    ("of_test", "says"),
    [(1e-6, "which patients train adds the rest"), (1.0, "what the training patients add cannot be told")],
)
def test_whether_the_test_patients_explain_the_folds_is_said_by_their_numbers(found, of_test, says):
    cells = found.cells.assign(auc_variance_of_test=of_test)
    assert says in stability_sentences.variances_say(replace(found, cells=cells))[-1]


def test_the_naive_interval_is_said_to_be_too_short_by_the_correction(found):
    naive, corrected = (found.mean_of_folds()[name] for name in ("naive", "corrected"))
    times = (corrected[2] - corrected[1]) / (naive[2] - naive[1])
    assert f"{times:.1f} times too short" in stability_sentences.intervals_say(found) and times > 1
    high = np.ones(found.figures().shape)
    high[0, 0] = 0.9
    assert f"{times:.1f} times too short" in stability_sentences.intervals_say(with_figures(found, high)), "cut at 1"
    same = with_figures(found, np.full(found.figures().shape, 0.9))
    assert "All folds give the same AUC" in stability_sentences.intervals_say(same)


@pytest.mark.parametrize(("low", "says"), [(0.001, "flatters by +0.020"), (-0.001, "is not shown to flatter: +0.020")])
def test_a_search_flatters_where_the_interval_lies_above_0(searched, low, says):
    class Given:
        by_setting = searched.by_setting
        table = pd.DataFrame([[0.9, 0.8, 1.0], [0.88, 0.78, 0.98], [0.02, low, 0.04]])

    (told,) = stability_sentences.searches_say({"labels": Given()})
    assert says in told and "best of 18 settings on the test patients has an AUC of 0.900" in told


def projected(verdict, patients=200.0, low=150.0, high=300.0, asymptote=(0.95, 0.94, 0.96)):
    return Projection(0.92, verdict, patients, low, high, asymptote, most=100.0)


@pytest.mark.parametrize(
    ("projection", "says"),
    [
        (projected("reached"), "is reached with the 100 patients"),
        (projected("projected"), "would take about 200 patients to learn from, by the curve (from 150 to 300)"),
        (projected("projected", high=np.inf), "from 150 to more than 500, beyond which nothing is projected"),
        (projected("far", 1e12), "with more than 500 patients, 5 times the 100"),
        (projected("flat"), "more patients are not shown to raise the curve"),
        (projected("below", np.inf, asymptote=(0.9, 0.89, 0.91)), "0.900 (0.890–0.910), which is below it."),
        (projected("below", np.inf, asymptote=(0.9, 0.89, 0.95)), "below it, though its interval holds the target."),
    ],
)
def test_a_projection_says_what_its_verdict_is(projection, says):
    assert says in stability_sentences.projection_says(projection)


def test_the_table_of_projections_writes_no_number_beyond_what_is_projected():
    table = stability_sentences.projections_table([projected("far", 1e12, 400.0, np.inf), projected("projected")])
    assert table.iloc[0][["patients", "from", "to"]].tolist() == ["> 500", "400", "> 500"]
    assert table.iloc[1]["patients"] == "200" and list(table.index) == ["0.920", "0.920"]
