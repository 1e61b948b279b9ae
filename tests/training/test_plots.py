"""Figures carry the right data, say it in words as well as colour, and show once in a notebook."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont, get_font

from lungkit import palette, wording
from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.training import plots
from lungkit.training.evaluation import evaluate, operating_point
from tests.graded import CLASSES as GRADED_CLASSES
from tests.graded import MIDDLE, answers

CLASSES = ("Normal", "Pneumonia", "COVID-19")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.use_style()
        yield


def evaluation(size=3, n=150):
    rng = np.random.default_rng(5)
    y = rng.integers(0, size, n)
    logits = rng.normal(size=(n, size))
    logits[np.arange(n), y] += 1.5
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    point = operating_point(y, p, CLASSES[:size])
    return evaluate(y, p, np.arange(n) // 3, CLASSES[:size], point, n_boot=50)


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def draw(figure):
    """Fails where a figure cannot be laid out or holds a character without a glyph (warnings are errors here)."""
    FigureCanvasAgg(figure).draw()
    return figure


# Not what is collected here but was left by a test before.
_OTHERS = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = pytest.mark.filterwarnings("error", *_OTHERS)


# --- from an evaluation


def test_the_confusion_of_grades_has_their_kappa_in_its_title():
    y, p = answers(80)
    graded = evaluate(y, p, np.arange(80), GRADED_CLASSES, MIDDLE, n_boot=20)
    assert f"quadratic kappa {wording.figure(*graded.value('kappa'))}" in title(plots.confusion(graded))
    assert "kappa" not in title(plots.confusion(evaluation()))


def test_the_confusion_matrix_shows_counts_and_shares_of_the_true_class():
    result = evaluation()
    figure = draw(plots.confusion(result))
    counts = result.confusion.to_numpy()
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells[1] == f"{counts[0, 1]}\n{100 * counts[0, 1] / counts[0].sum():.0f} %"
    assert len(cells) == 9
    assert figure.axes[0].get_xlabel() == "predicted class"
    assert figure.axes[0].get_ylabel().startswith("true class")
    largest, share = result.largest_class
    assert title(figure) == (
        f"{np.trace(counts)} of 150 images are classified correctly, {150 * share:.0f} would be by always answering "
        f"'{largest}'"
    )


def test_roc_has_a_panel_for_each_of_three_classes_with_its_auc():
    result = evaluation()
    figure = draw(plots.roc(result))
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == list(CLASSES)
    for axes, cls in zip(figure.axes, CLASSES, strict=True):
        assert f"{result.value('auc', cls)[0]:.3f}" in axes.get_title(loc="left")
        curve = next(line for line in axes.lines if line.get_label() == "ROC curve")
        np.testing.assert_allclose(curve.get_ydata(), result.roc(cls)["tpr"])
        assert axes.collections  # the band
    assert "95 % interval" in labels(figure)


def test_roc_of_two_classes_shows_the_last_one_and_its_operating_point():
    result = evaluation(size=2)
    (axes,) = draw(plots.roc(result)).axes
    point = next(line for line in axes.lines if line.get_label() == "operating point")
    assert point.get_ydata() == [result.value("recall", "Pneumonia")[0]]
    assert point.get_xdata() == [1 - result.value("specificity", "Pneumonia")[0]]
    assert "Pneumonia" in axes.get_title(loc="left")


def _nearly_right(wrong: int):
    """Two classes of 50 images each, so many of the second called the first."""
    y = np.repeat([0, 1], 50)
    second = np.where(y == 1, 0.9, 0.1) + np.linspace(0, 0.05, 100)
    second[50 : 50 + wrong] = 0.05
    p = np.stack([1 - second, second], axis=1)
    return evaluate(y, p, np.arange(100), CLASSES[:2], operating_point(y, p, CLASSES[:2]), n_boot=20)


@pytest.mark.parametrize("plot", [plots.roc, plots.precision_recall])
def test_curves_near_the_corner_are_enlarged_in_an_inset_that_holds_the_operating_point(plot):
    figure = draw(plot(_nearly_right(wrong=3)))
    (inset,) = figure.axes[0].child_axes
    point = next(line for line in figure.axes[0].lines if line.get_label() == "operating point")
    (x,), (y,) = point.get_data()
    assert inset.get_xlim()[0] <= x <= inset.get_xlim()[1]
    assert inset.get_ylim()[0] <= y <= inset.get_ylim()[1]
    assert np.ptp(inset.get_ylim()) < 0.15
    assert title(figure).endswith("; inset: the corner enlarged")
    far = plot(_nearly_right(wrong=20))
    assert not far.axes[0].child_axes
    assert "inset" not in title(far)


def test_precision_recall_draws_the_curve_and_the_level_of_chance():
    result = evaluation()
    figure = draw(plots.precision_recall(result))
    axes = figure.axes[1]
    chance = next(line for line in axes.lines if line.get_label() == "chance")
    assert chance.get_ydata()[0] == pytest.approx(np.mean(result.true == 1))
    curve = next(line for line in axes.lines if line.get_label() == "precision")
    expected = result.precision_recall("Pneumonia").query("recall > 0")
    np.testing.assert_allclose(curve.get_ydata(), expected["precision"])
    lowest = result.per_class["average_precision"].idxmin()
    assert f"is lowest for {lowest}" in title(figure)
    assert title(plots.precision_recall(evaluation(size=2))).startswith("Average precision for Pneumonia is 0.")


@pytest.mark.parametrize("figure", [plots.roc, plots.precision_recall])
def test_curves_of_a_single_class_are_refused_with_the_reason(figure):
    one = evaluate(
        np.zeros(6, int), np.full((6, 2), 0.5), range(6), CLASSES[:2], DecisionRule(kind="argmax"), n_boot=10
    )
    with pytest.raises(LungkitError, match="all images are of one class"):
        figure(one)


def test_a_class_without_images_has_no_panel():
    y = np.array([0, 0, 1, 1, 0, 1])
    p = np.tile([0.5, 0.3, 0.2], (6, 1))
    result = evaluate(y, p, range(6), CLASSES, DecisionRule(kind="argmax"), n_boot=10)
    assert len(plots.roc(result).axes) == 2
    for figure in (plots.confusion, plots.reliability, plots.per_class_scores):
        draw(figure(result))


def test_reliability_shows_every_bin_and_how_many_images_it_has():
    result = evaluation()
    figure = draw(plots.reliability(result))
    top, bottom = figure.axes
    table = result.reliability()
    assert sorted(bar.get_height() for bar in bottom.patches) == sorted(table["images"])
    points = [xy for line in top.containers for xy in line.lines[0].get_xydata().tolist()]
    np.testing.assert_allclose(sorted(points), table[["confidence", "accuracy"]])
    assert "under 10 images" in labels(figure)
    assert f"{result.value('ece')[0]:.3f}" in title(figure)


def test_the_axes_of_reliability_begin_where_the_images_do():
    result = evaluation(size=2)
    figure = draw(plots.reliability(result))
    begins = result.reliability()["left"].min()
    assert begins > 0.4
    assert figure.axes[0].get_xlim()[0] == pytest.approx(begins - 0.01)
    assert f"no confidence is below {begins:.2f}" in title(figure)


def test_per_class_scores_are_dots_with_interval_bars():
    result = evaluation()
    figure = draw(plots.per_class_scores(result))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "Precision",
        "Sensitivity",
        "Specificity",
        "F1",
        "AUC",
    ]
    assert labels(figure) == list(CLASSES)
    covid = axes.containers[2]
    value, low, high = result.value("recall", "COVID-19")
    assert covid.lines[0].get_xdata()[1] == value
    assert covid.lines[2][0].get_segments()[1][:, 0].tolist() == pytest.approx([low, high])
    assert len({container.lines[0].get_marker() for container in axes.containers}) == 3  # not by colour alone
    worst = result.per_class["recall"]
    assert title(figure).startswith(f"{worst.idxmin()} is missed most often: {100 * worst.min():.0f} %")


# --- of training


def history(epochs=5):
    n = np.arange(1, epochs + 1)
    columns = {"epoch": n, "loss": 1 / n, "accuracy": 1 - 0.5 / n, "val_accuracy": 0.9 - 0.5 / n}
    return pd.DataFrame(columns | {"val_loss": [0.9, 0.5, 0.3, 0.4, 0.6], "learning_rate": 1e-3})


def test_training_curves_mark_the_epoch_with_the_lowest_validation_loss():
    figure = draw(plots.training_curves(history(), 0.5))
    assert "lowest after epoch 3" in title(figure)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_xlabel() == "epoch"
        marked = next(line for line in axes.lines if line.get_linestyle() == "--")
        assert list(marked.get_xdata()) == [3, 3]
    assert figure.axes[0].get_yscale() == "log"
    training, validation = (line for line in figure.axes[0].lines if line.get_label() in ("training", "validation"))
    assert (training.get_color(), validation.get_color()) == (palette.TRAIN, palette.VALIDATION)


def test_models_are_compared_by_figures_with_intervals_the_first_on_top():
    better, worse = evaluation(), evaluation(n=90)
    figure = draw(plots.compared({"frozen": better, "tuned": worse}))
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["AUC", "Accuracy", "Macro F1"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["tuned", "frozen"]
    for axes, metric in zip(figure.axes, ("auc", "accuracy", "macro_f1"), strict=True):
        assert [text.get_text() for text in axes.texts] == [f"{one.value(metric)[0]:.3f}" for one in (worse, better)]


def test_the_title_of_a_comparison_names_the_highest_auc_and_the_others():
    y = np.repeat([0, 1], 20)
    right = np.eye(2)[y]
    perfect, chance = (
        evaluate(y, p, np.arange(40), CLASSES[:2], DecisionRule(kind="argmax"), n_boot=20)
        for p in (right, 0 * right + 0.5)
    )
    figure = draw(plots.compared({"coin": chance, "oracle": perfect}))
    assert title(figure) == "AUC is highest for oracle: 1.000; 0.500 (coin) on the same 40 images"


def test_swings_name_the_model_that_a_property_sways_most_and_least():
    def effects(*swings):
        rows = [(swing, swing - 0.1, swing + 0.1) for swing in swings]
        return pd.DataFrame(rows, index=["table", "noise"], columns=["swing", "low", "high"])

    figure = draw(plots.swings({"plain": effects(0.05, -0.3), "balanced": effects(0.01, 0.02)}))
    assert title(figure) == (
        "Swayed most: plain by noise, −0.300 (−0.400 to −0.200); swayed least: balanced by noise, +0.020 (−0.080 to "
        "+0.120)"
    )
    assert title(plots.swings({"plain": effects(0.05, -0.3)})).endswith("by noise, −0.300 (−0.400 to −0.200)")


def searched():
    return pd.DataFrame(
        {
            "trial": ["0003", "0001", "0000", "0002"],
            "status": ["COMPLETED", "COMPLETED", "COMPLETED", "FAILED"],
            "score": [0.2, 0.4, 0.6, np.nan],
            "epochs": [4, 4, 4, 0],
            "learning_rate": [1e-2, 1e-3, 1e-4, 1e-1],
            "optimizer": ["adamw", "adam", "adam", "adam"],
            "kernel": [3, 3, 3, 5],
            "reason": ["", "", "", "out of memory"],
        }
    )


def test_trials_show_each_value_that_varied_and_mark_the_best_and_the_failed():
    figure = draw(plots.trials(searched()))
    names = ["trial, in the order they ran", "learning rate", "optimizer"]
    assert [axes.get_xlabel() for axes in figure.axes] == names
    order, _, optimizer = figure.axes
    ring = next(line for line in order.lines if line.get_label() == "lowest loss")
    assert (ring.get_xdata(), ring.get_ydata()) == ([4], [0.2])
    assert [text.get_position()[0] for text in order.texts] == [3]
    assert [tick.get_text() for tick in optimizer.get_xticklabels()] == ["adam", "adamw"]
    assert title(figure) == (
        "The lowest validation loss of 4 trials is 0.200, in trial 0003 after 4 epochs; 1 did not complete (✗)"
    )


def test_a_search_of_many_values_spreads_them_on_a_scale():
    table = pd.DataFrame({"trial": [f"{i:04d}" for i in range(8)], "status": "COMPLETED", "score": RNG.random(8)})
    table = table.assign(epochs=1, rate=np.logspace(-4, -1, 8), dropout=np.linspace(0, 0.5, 8), reason="")
    _, rate, dropout = draw(plots.trials(table)).axes
    assert (rate.get_xscale(), dropout.get_xscale()) == ("log", "linear")


def test_trials_of_more_epochs_are_marked_apart_from_those_of_fewer():
    same = draw(plots.trials(searched().assign(epochs=3)))
    assert labels(same) == ["3 epochs", "lowest loss"]
    unlike = searched()
    unlike["epochs"] = [1, 3, 1, 3]
    figure = draw(plots.trials(unlike))
    assert set(labels(figure)) == {"1 epoch", "3 epochs", "lowest loss"}
    short, long = (line for line in figure.axes[0].lines if "epoch" in line.get_label())
    assert short.get_marker() != long.get_marker()
    assert to_rgb(short.get_color())[2] > to_rgb(long.get_color())[2], "the longer, the darker"


def test_a_loss_far_above_the_others_has_a_logarithmic_scale_with_plain_numbers():
    table = searched().assign(score=[0.2, 0.4, 40.0, np.nan])
    (order, *_) = draw(plots.trials(table)).axes
    assert order.get_yscale() == "log"
    assert {"0.2", "1", "10"} <= {text.get_text() for text in order.get_yticklabels()}
    assert plots.trials(searched()).axes[0].get_yscale() == "linear"


def test_figures_of_losses_have_that_of_a_constant_prediction_as_a_line():
    runs = pd.DataFrame([("3", 1, 0.9, 0.2)], columns=["trial", "seed", "loss", "searched"])
    prior = np.log(3)
    for figure, level in (
        (plots.trials(searched(), prior), "get_ydata"),
        (plots.repeats(runs, prior), "get_xdata"),
        (plots.training_curves(history(), 0.5, prior), "get_ydata"),
    ):
        dotted = next(line for line in draw(figure).axes[0].lines if line.get_linestyle() == ":")
        assert getattr(dotted, level)()[0] == prior
        assert "constant prediction" in labels(figure)


def test_repeated_settings_show_every_start_the_mean_and_what_the_search_said():
    runs = pd.DataFrame(
        [("3", 1, 0.9, 0.2), ("3", 2, 0.7, 0.2), ("5", 1, 0.6, 0.4), ("5", 2, 0.7, 0.4)],
        columns=["trial", "seed", "loss", "searched"],
    )
    figure = draw(plots.repeats(runs))
    assert title(figure) == "Trial 5's settings have the lowest mean of 2 starts: 0.650"
    assert labels(figure) == ["a start", "mean of the starts", "in the search"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["trial 3", "trial 5"]


def test_where_each_class_does_alike_none_is_called_worst():
    y = np.repeat([0, 1, 2], 20)
    result = evaluate(y, np.eye(3)[y], np.arange(60), CLASSES, DecisionRule(kind="argmax"), n_boot=50)
    assert title(draw(plots.per_class_scores(result))) == "100 % of the images of each class are found"
    assert "the same for each class: 1.000 (0.832" in title(draw(plots.precision_recall(result)))


def test_pairs_stand_side_by_side_under_one_title_each():
    figure = draw(plots.pairs([(RNG.random((8, 8)), RNG.random((8, 8)))] * 4, list("abcd"), "alike"))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["a", "", "b", "", "c", "", "d", ""]


def test_trials_of_which_none_completed_are_refused():
    with pytest.raises(LungkitError, match="no trial of this search completed"):
        plots.trials(searched().assign(status="FAILED"))


# --- of images

IMAGES = RNG.random((30, 16, 16))


def test_an_image_grid_has_a_titled_panel_for_each_image_with_a_fixed_grey_range():
    figure = draw(plots.image_grid(IMAGES[:7] * 0.5, [f"slice {i}" for i in range(7)], title="Seven slices"))
    assert [axes.get_title() for axes in figure.axes] == [f"slice {i}" for i in range(7)]
    picture = figure.axes[6].images[0]
    np.testing.assert_array_equal(picture.get_array(), IMAGES[6] * 0.5)
    assert picture.get_clim() == (0, 1)  # a dark image stays dark beside a bright one
    assert title(figure) == "Seven slices"


def test_a_prediction_grid_marks_wrong_ones_by_sign_and_colour_and_puts_the_surest_error_first():
    true, predicted = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    figure = draw(plots.prediction_grid(IMAGES[:4], true, predicted, [0.91, 0.62, 0.73, 0.84], CLASSES, true == 2))
    texts = [axes.get_title(loc="left") for axes in figure.axes]
    assert texts == [
        "✗ Pneumonia 0.84\ntrue: COVID-19",
        "✗ COVID-19 0.62\ntrue: Pneumonia",
        "✓ COVID-19 0.73\ntrue: COVID-19",
        "✓ Normal 0.91\ntrue: Normal",
    ]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), IMAGES[3])
    frames = [to_rgb(axes.spines["left"].get_edgecolor()) for axes in figure.axes]
    right, wrong = to_rgb(plots.GOOD), to_rgb(plots.WARN)
    assert frames == [wrong, wrong, right, right]
    assert right[1] > right[0]
    assert wrong[0] > wrong[1]
    assert title(figure) == (
        "2 of 2 errors (✗), the surest first; 1 of 1 right but uncertain (✓), the least sure first; "
        "1 of 1 other right ones (✓), at random"
    )


@pytest.mark.parametrize(
    ("there", "shown"),
    [
        ((20, 20, 20), (12, 6, 6)),
        ((2, 20, 40), (2, 16, 6)),
        ((30, 0, 0), (24, 0, 0)),
        ((0, 0, 60), (0, 0, 24)),
        ((14, 2, 44), (14, 2, 8)),
    ],
)
def test_a_prediction_grid_leaves_places_to_each_group_and_fills_what_is_free(there, shown):
    n, (errors, uncertain, _) = sum(there), there
    true, unsure = (np.arange(n) < errors).astype(int), np.arange(n) < errors + uncertain
    p = np.linspace(0.5, 1, n)
    figure = plots.prediction_grid(np.zeros((n, 4, 4)), true, np.zeros(n, int), p, CLASSES, unsure)
    counts = [int(part.split(" of ")[0]) for part in title(figure).split("; ")]
    assert counts == [some for some in shown if some]
    assert len(figure.axes) == 24


def test_how_sure_a_prediction_is_may_be_told_by_its_margin():
    true = np.array([0, 0, 1])
    figure = plots.prediction_grid(IMAGES[:3], 1 - true, true, [0.9, 0.6, 0.7], CLASSES, margin=[0.1, 2.0, 1.0])
    shown = [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes]
    assert shown == ["✗ Normal 0.60", "✗ Pneumonia 0.70", "✗ Normal 0.90"]


def test_a_prediction_grid_shows_at_most_n():
    true = np.zeros(30, int)
    assert len(plots.prediction_grid(IMAGES, true, true, np.ones(30), CLASSES, n=5).axes) == 5
    assert len(plots.prediction_grid(IMAGES[:3], true[:3], true[:3], np.ones(3), CLASSES).axes) == 3


def test_long_class_names_are_shortened_to_fit_their_panel():
    classes = ("Normal", "Squamous cell carcinoma of the lung")
    one = np.ones(24, int)
    figure = draw(plots.prediction_grid(IMAGES[:24], one, one, np.ones(24), classes))
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        text = axes._left_title.get_window_extent(renderer)
        assert text.width <= axes.get_window_extent(renderer).width * 1.03
        assert "…" in axes.get_title(loc="left")


def test_the_signs_are_in_the_font_that_comes_with_matplotlib():
    font = get_font(findfont(FontProperties(family="DejaVu Sans"), fallback_to_default=False))
    assert all(font.get_char_index(ord(sign)) for sign in (plots.RIGHT, plots.WRONG, "★", "…"))


def _heat_and_masks():
    heat, masks = np.zeros((3, 16, 16)), np.zeros((3, 16, 16), bool)
    heat[:, 4:8, 4:8] = 1
    masks[0, 3:9, 3:9] = True
    return heat, masks


def test_an_overlay_grid_shows_each_image_alone_and_then_with_its_heat_and_lesion():
    heat, masks = _heat_and_masks()
    figure = draw(plots.overlay_grid(IMAGES[:3], heat, masks, ["a", "b", "c"]))
    *panels, colorbar = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "", "b", "", "c", ""]
    assert [len(axes.images) for axes in panels] == [1, 2, 1, 2, 1, 2]
    np.testing.assert_array_equal(panels[2].images[0].get_array(), panels[3].images[0].get_array())
    alpha = panels[1].images[1].get_alpha()
    assert alpha[0, 0] == 0  # a cold region shows the image itself
    assert alpha[5, 5] > 0.3
    assert [len(axes.collections) for axes in panels] == [0, 1, 0, 0, 0, 0]
    assert "blue outline: lesion" in colorbar.get_ylabel()
    assert "outline" not in plots.overlay_grid(IMAGES[:3], heat).axes[-1].get_ylabel()


def test_overlays_by_model_have_a_row_for_each_image_and_say_what_each_model_answers():
    heat, masks = _heat_and_masks()
    answers = {"frozen": ["Normal", "COVID-19", "Normal"], "tuned": ["COVID-19"] * 3}
    figure = draw(plots.overlays_by_model(IMAGES[:3], {"frozen": heat, "tuned": 0 * heat}, masks, answers))
    *panels, _ = figure.axes
    assert [axes.get_title(loc="left") for axes in panels[:4]] == ["", "frozen\nNormal", "tuned\nCOVID-19", ""]
    assert [len(axes.images) for axes in panels[:3]] == [1, 2, 2]
    assert panels[1].images[1].get_alpha().max() > panels[2].images[1].get_alpha().max() == 0
    assert [len(axes.collections) for axes in panels] == [0, 1, 1, 0, 0, 0, 0, 0, 0]


def test_preprocessing_steps_show_picture_and_values_of_each_step():
    steps = {"read (HU)": RNG.normal(-600, 300, (40, 30)), "lung window": RNG.random((40, 30))}
    figure = draw(plots.preprocessing_steps(steps, title="From file to tensor"))
    pictures, histograms = figure.axes[:2], figure.axes[2:]
    assert pictures[0].get_title(loc="left") == "1. read (HU)\n40 × 30 pixels"
    assert histograms[0].get_xlim()[0] < -1000
    assert [axes.get_xlabel() for axes in histograms] == ["value", "value"]
    with_units = plots.preprocessing_steps(steps, units=["HU", "grey"])
    assert [axes.get_xlabel() for axes in with_units.axes[2:]] == ["HU", "grey"]


def test_preprocessing_steps_are_drawn_on_one_scale_of_grey():
    grey = RNG.uniform(0.3, 0.7, (20, 20))
    steps = {"read (HU)": 1500 * grey - 1350, "windowed": grey, "normalised": (grey - 0.5) / 0.2}
    pictures = draw(plots.preprocessing_steps(steps)).axes[:3]
    limits = [axes.images[0].get_clim() for axes in pictures]
    assert limits[0] == pytest.approx((steps["read (HU)"].min(), steps["read (HU)"].max()))
    assert limits[1] == (0, 1), "a grey is as dark as the model sees it"
    assert limits[2] == pytest.approx((-2.5, 2.5)), "and normalising changes nothing to the eye"


def localised():
    return pd.DataFrame(
        {
            "pointing_game": [1, 1, 0, 1, np.nan],
            "iou_otsu": [0.5, 0.4, 0.1, 0.3, np.nan],
            "energy_inside": [0.6, 0.5, 0.1, 0.4, np.nan],
            "mask_share": [0.1, 0.1, 0.2, 0.2, np.nan],
        }
    )


def test_localisation_shows_hits_by_class_with_chance_and_leaves_out_images_without_lesion():
    names = ["Pneumonia", "Pneumonia", "COVID-19", "COVID-19", "Normal"]
    figure = draw(plots.localisation(localised(), names, ["a", "b", "c", "d", "e"]))
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["Pneumonia\n(2 images)", "COVID-19\n(2 images)"]
    assert [container.lines[0].get_ydata()[0] for container in left.containers] == [1.0, 0.5]
    chance = [line.get_ydata()[0] for line in left.lines if line.get_linestyle() == ":"]
    assert chance == pytest.approx([0.1, 0.2])
    assert sum(len(line.get_xdata()) for line in right.lines if line.get_label() in names) == 4
    assert title(figure).startswith("The hottest pixel lies in the lesion in 75 %")
    assert "of 4 images; by chance in " in title(figure)


def test_a_class_has_its_own_colour_whichever_of_them_have_lesions():
    names = ["COVID-19", "COVID-19", "Pneumonia", "Pneumonia", "Normal"]
    figure = plots.localisation(localised(), names, ["a", "b", "c", "d", "e"], CLASSES)
    left, _ = figure.axes
    assert [tick.get_text().split("\n")[0] for tick in left.get_xticklabels()] == ["Pneumonia", "COVID-19"]
    colours = [container.lines[0].get_color() for container in left.containers]
    assert colours == [plots.STYLES[1]["color"], plots.STYLES[2]["color"]]


def test_localisation_without_any_lesion_is_refused():
    with pytest.raises(LungkitError, match="no image has a lesion mask"):
        plots.localisation(localised().tail(1), ["Normal"], ["e"])


def test_randomisation_starts_at_one_and_follows_the_layers():
    table = pd.DataFrame({"layer": ["logits", "stem"], "spearman": [0.6, 0.1], "low": [0.5, 0.0], "high": [0.7, 0.2]})
    figure = draw(plots.randomisation(table))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["(none)", "logits", "stem"]
    assert axes.containers[0].lines[0].get_ydata().tolist() == [1.0, 0.6, 0.1]
    assert "0.100 (0.000–0.200)" in title(figure)


@pytest.mark.parametrize("grid", [plots.image_grid, lambda images: plots.overlay_grid(images, images)])
def test_a_grid_of_nothing_is_refused(grid):
    with pytest.raises(LungkitError, match="no image to show"):
        grid(np.zeros((0, 8, 8)))


# --- size, files, notebooks


def everything():
    result = evaluation()
    yield from (f(result) for f in (plots.confusion, plots.roc, plots.precision_recall))
    yield from (f(result) for f in (plots.reliability, plots.per_class_scores))
    yield plots.training_curves(history(), 0.5)
    yield plots.compared({"one": evaluation(), "another": evaluation()})
    yield plots.trials(searched())
    yield plots.image_grid(RNG.random((36, 8, 8)), ["x"] * 36, title="36")
    yield plots.image_grid(RNG.random((2, 8, 8)))
    yield plots.overlay_grid(IMAGES[:12], IMAGES[:12])
    yield plots.overlays_by_model(IMAGES[:4], dict.fromkeys("abc", IMAGES[:4]))
    yield plots.prediction_grid(IMAGES, np.zeros(30, int), np.zeros(30, int), np.ones(30), CLASSES)
    yield plots.preprocessing_steps({str(i): IMAGES[i] for i in range(6)})


def test_every_figure_fits_a_notebook_page_and_is_unknown_to_pyplot():
    for figure in everything():
        width, height = figure.get_size_inches()
        assert width <= 10
        assert height <= 8
        assert figure.dpi == 100
    assert plt.get_fignums() == []


def test_titles_and_legends_stay_inside_their_figure():
    for figure in everything():
        draw(figure)
        renderer = figure.canvas.get_renderer()
        parts = [*figure.legends, *([figure._suptitle] if figure._suptitle else [])]
        for part in parts:
            box = part.get_window_extent(renderer)
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.width + 1


@pytest.mark.filterwarnings("default")
def test_a_notebook_shows_a_figure_once(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # as in JupyterLab; a test session sets agg
    # 4 s on a quiet machine, for a real kernel
    code = "from lungkit.training import plots; plots.use_style(); plots.image_grid([[[0.0, 0.5], [0.5, 1.0]]])"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = [output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 1


def test_a_title_is_not_broken_between_a_number_and_its_percent_sign():
    for words in range(60, 90):
        figure = plots.image_grid([np.zeros((4, 4))], title="x" * words + " 58–90 % of all")
        assert "\n%" not in figure.get_suptitle()
