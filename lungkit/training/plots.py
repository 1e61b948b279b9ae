"""Figures of a run: one message each, stated in the title; safe for colour-blind readers; with intervals.

Every function returns a matplotlib Figure that pyplot does not know: a notebook shows it once, and it is freed
afterwards. Images are float (height, width) arrays from 0 (black) to 1 (white).
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike

from lungkit import wording
from lungkit.errors import LungkitError
from lungkit.models.card import PER_CLASS
from lungkit.models.card_text import METRICS
from lungkit.palette import (
    BLACK,
    BLUE,
    CHOSEN,
    CLASSES,
    GOOD,
    GREY,
    INK,
    OTHER_SPLIT,
    REFERENCE,
    SERIES,
    SKY,
    SPLITS,
    TRAIN,
    VALIDATION,
    WARN,
)
from lungkit.training.evaluation import SEED, Evaluation, mean_with_interval

if TYPE_CHECKING:  # they load Keras, which figures do not need
    from lungkit.training.embedding_map import Explained
    from lungkit.training.errors import Found

RIGHT, WRONG = "✓", "✗"  # both are in DejaVu Sans, which matplotlib brings along
HEAT = "inferno"
STYLES: list[dict[str, Any]] = [
    {"color": color, "marker": marker} for color, marker in zip(CLASSES, "osD^vPX*", strict=True)
]  # of classes


def use_style() -> None:
    """Set fonts, colours and sizes of all later figures; a notebook then shows a Figure by itself."""
    sns.set_theme(style="ticks", palette=SERIES, font="DejaVu Sans", font_scale=0.85)
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.titlesize": 11,
            "figure.titleweight": "bold",
            "legend.frameon": False,
            "image.cmap": "gray",
        }
    )
    plt.switch_backend(mpl.get_backend())  # loads the notebook's backend, which teaches Jupyter to show a Figure


# --- from an Evaluation


def confusion(evaluation: Evaluation) -> Figure:
    """Confusion matrix: images, and their share of the true class."""
    counts = evaluation.confusion
    support = counts.sum(axis=1)
    share = counts.div(support.where(support > 0, 1), axis=0)
    text = counts.astype(str) + "\n" + (share * 100).round().astype(int).astype(str) + " %"
    side = min(8, 2.6 + 0.85 * len(counts))
    figure, (axes,) = _figure(side + 1.2, side)
    sns.heatmap(
        share, annot=text, fmt="", cmap="Blues", vmin=0, vmax=1, square=True, linewidths=1, ax=axes,
        cbar_kws={"label": "share of the true class", "format": PercentFormatter(1), "shrink": 0.8},
    )  # fmt: skip
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")
    places, names = np.arange(len(counts)) + 0.5, evaluation.classes
    slanted = max(map(len, names)) > 11 or len(names) > 6
    axes.set_xticks(places, names, rotation=30 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(places, [f"{c} ({n})" for c, n in support.items()], rotation=0)
    right = int(np.trace(counts.to_numpy()))
    largest = evaluation.largest_class[0]
    graded = f"; quadratic kappa {wording.figure(*evaluation.value('kappa'))}" if evaluation.rule.grades else ""
    return _titled(
        figure,
        f"{right} of {int(support.sum())} images are classified correctly, {support[largest]} would be by always "
        f"answering '{largest}'{graded}",
    )


def roc(evaluation: Evaluation) -> Figure:
    """ROC curve with its 95 % band: of the last class for two classes, else a panel for each class against the rest.

    Where the operating point lies near the upper left corner, an inset enlarges that corner.
    """
    figure, panels = _curve_panels(evaluation, "1 − specificity", "sensitivity")
    insets = []
    for cls, axes in panels.items():
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
        at = (1 - evaluation.value("specificity", cls)[0], evaluation.value("recall", cls)[0])
        drawn = evaluation.roc_band(cls), evaluation.roc(cls)[["fpr", "tpr"]], at
        _curve(axes, *drawn, label="ROC curve")
        insets.append(_enlarged(axes, drawn, corner=0, place=0.41))
        axes.set_title(f"{cls}\nAUC {wording.figure(*evaluation.value('auc', cls))}")
    _legend_below(figure, next(iter(panels.values())))
    title = f"The area under the ROC curve is {wording.figure(*evaluation.value('auc'))}"
    return _titled(figure, title + _about_insets(insets))


def precision_recall(evaluation: Evaluation) -> Figure:
    """Precision-recall curve with its 95 % band, classes and insets as in `roc`; titles state average precisions."""
    figure, panels = _curve_panels(evaluation, "recall (sensitivity)", "precision")
    support, average, insets = evaluation.per_class["support"], {}, []
    for cls, axes in panels.items():
        axes.axhline(support[cls] / support.sum(), color=GREY, linestyle=":", label="chance")
        curve = evaluation.precision_recall(cls)[["recall", "precision"]].query("recall > 0")
        at = (evaluation.value("recall", cls)[0], evaluation.value("precision", cls)[0])
        band = evaluation.precision_recall_band(cls)
        _curve(axes, band, curve, at, label="precision", drawstyle="steps-pre")
        insets.append(_enlarged(axes, (band, curve, at), corner=1, place=0.1, drawstyle="steps-pre"))
        average[cls] = evaluation.value("average_precision", cls)
        axes.set_title(f"{cls}\naverage precision {average[cls][0]:.3f}")
    _legend_below(figure, next(iter(panels.values())))
    lowest = min(average, key=lambda cls: average[cls][0])
    where = f"is lowest for {lowest}:"
    if len(average) == 1:
        where = f"for {lowest} is"
    elif len({f"{value:.3f}" for value, *_ in average.values()}) == 1:
        where = "is the same for each class:"
    title = f"Average precision {where} {wording.figure(*average[lowest])}"
    return _titled(figure, title + _about_insets(insets))


def _curve(axes: Axes, band: pd.DataFrame, curve: pd.DataFrame, at: tuple[float, float], **style: Any) -> None:
    """A curve (x, y) in its band (x, low, high), with the operating point on it."""
    axes.fill_between(*band.to_numpy().T, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(*curve.to_numpy().T, color=BLUE, **style)
    axes.plot(*at, "o", color=BLACK, markersize=6, label="operating point", zorder=5)


def _enlarged(
    axes: Axes, drawn: tuple[pd.DataFrame, pd.DataFrame, tuple[float, float]], corner: int, place: float, **style: Any
) -> float | None:
    """The upper corner at x = `corner` again, larger, in the empty part of the panel that begins at x = `place`.

    drawn: band, curve and operating point. Returns the side of what the inset shows; None, and no inset, where the
    operating point is not near that corner.
    """
    far = max(abs(drawn[2][0] - corner), 1 - drawn[2][1])
    side = next((side for side in (0.1, 0.2) if 1.2 * far <= side), None)
    if side is None:
        return None
    inset = axes.inset_axes((place, 0.1, 0.52, 0.52))
    _curve(inset, *drawn, **style)
    ends, margin = sorted((corner, corner + (side if corner == 0 else -side))), 0.05 * side
    inset.set(xlim=(ends[0] - margin, ends[1] + margin), ylim=(1 - side - margin, 1 + margin))
    inset.set(xticks=ends, yticks=(1 - side, 1))
    inset.tick_params(labelsize=7, length=2, pad=1.5)
    axes.indicate_inset_zoom(inset, edgecolor=GREY, alpha=0.6)
    return side


def _about_insets(sides: Sequence[float | None]) -> str:
    """What the title says of the insets."""
    shown = sum(side is not None for side in sides)
    return f"; {'insets' if shown > 1 else 'inset'}: the corner enlarged" if shown else ""


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy against stated confidence in the 15 bins of the ECE, above the number of images in each bin.

    The axes begin where the images do. A bin of fewer than 10 images is hollow: its accuracy says little.
    """
    table = evaluation.reliability()
    figure = Figure(figsize=(7.6, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    many = table["images"] >= 10
    for rows, fill, label in (
        (table[many], BLUE, "observed, 95 % interval"),
        (table[~many], "white", "under 10 images"),
    ):
        if len(rows):
            top.errorbar(
                rows["confidence"], rows["accuracy"], _whiskers(rows["accuracy"], rows["low"], rows["high"]), fmt="o",
                color=BLUE, markerfacecolor=fill, markersize=6, elinewidth=1.2, label=label,
            )  # fmt: skip
    least = min(table["confidence"].min(), table["accuracy"].min(), table.loc[many, "low"].min())
    top.set(ylabel="accuracy", ylim=(max(-0.03, np.floor(10 * least) / 10 - 0.03), 1.03))
    middle = (table["left"] + table["right"]) / 2
    bars = bottom.bar(middle, table["images"], width=0.9 * (table["right"] - table["left"]), color=SKY)
    bottom.bar_label(bars, fontsize=7, color=GREY)
    bottom.margins(y=0.25)
    begins = table["left"].min()
    bottom.set(xlabel="confidence (probability of the likeliest class)", ylabel="images", xlim=(begins - 0.01, 1.01))
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    _legend_below(figure, top)
    ece = wording.figure(*evaluation.value("ece"))
    shown = f"; no confidence is below {begins:.2f}" if begins > 0 else ""
    return _titled(figure, f"Confidence and accuracy differ by {ece} on average (ECE, 15 bins){shown}")


def per_class_scores(evaluation: Evaluation) -> Figure:
    """Precision, recall, specificity, F1 and AUC of each class, with 95 % intervals."""
    names = [name for name in PER_CLASS if name != "average_precision"]
    classes = evaluation.classes
    figure, (axes,) = _figure(7.5, min(9, 1.6 + len(names) * (0.3 + 0.16 * len(classes))))
    spread = min(0.3, 0.07 * len(classes))
    offsets = np.linspace(-spread, spread, len(classes))
    for (cls, offset), style in zip(zip(classes, offsets, strict=True), cycle(STYLES), strict=False):
        values = pd.DataFrame([evaluation.value(name, cls) for name in names], columns=["value", "low", "high"])
        axes.errorbar(
            values["value"], np.arange(len(names)) + offset,
            xerr=_whiskers(values["value"], values["low"], values["high"]),
            fmt=style["marker"], color=style["color"], markersize=6, elinewidth=1.4, label=cls,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [METRICS[name] for name in names])
    axes.set_xlabel("score, 95 % interval by patient")
    axes.set_xlim(right=1.02)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    recall = evaluation.per_class["recall"].dropna()
    least = wording.percent(recall.min())
    if recall.max() - recall.min() < 1e-9:
        return _titled(figure, f"{least} of the images of each class are found")
    return _titled(figure, f"{recall.idxmin()} is missed most often: {least} of its images are found")


def swings(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each property of a scanner does to the AUC of several models; tables: shortcuts.effects, by model."""
    names = list(next(iter(tables.values())).index)[::-1]  # the first on top
    figure, (axes,) = _figure(8, 1.5 + 0.16 * len(names) * (1 + len(tables)))
    for number, ((model, table), style) in enumerate(zip(tables.items(), cycle(STYLES), strict=False)):
        rows, place = table.loc[names], np.arange(len(names)) - 0.75 * number / len(tables)
        reach = _whiskers(rows["swing"], rows["low"], rows["high"])
        axes.errorbar(rows["swing"], place, xerr=reach, fmt=style["marker"], color=style["color"], label=model)
    axes.axvline(0, color=GREY, linestyle=":")
    axes.set_yticks(np.arange(len(names)) - 0.375, names)
    for border in np.arange(len(names) - 1) + 0.125:
        axes.axhline(border, color=GREY, linewidth=0.4, alpha=0.5)
    axes.set_xlabel(
        "AUC with the property on the diseased alone, less that with it on the others alone\n"
        "0: only the disease is read; bars: 95 % intervals by patient"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return _titled(figure, _largest_swings(tables))


def _largest_swings(tables: Mapping[str, pd.DataFrame]) -> str:
    """Which model a property sways most, and which least: by the largest swing of each, whatever its sign."""
    most = {}
    for model, table in tables.items():
        row = int(table["swing"].abs().argmax())
        value, low, high = table[["swing", "low", "high"]].to_numpy(float)[row].tolist()
        most[model] = (abs(value), f"{model} by {table.index[row]}, {wording.figure(value, low, high, signed=True)}")
    order = [said for _, said in sorted(most.values(), reverse=True)]
    return f"Swayed most: {order[0]}" + (f"; swayed least: {order[-1]}" if len(order) > 1 else "")


# --- of training


def training_curves(history: pd.DataFrame, largest: float, prior_loss: float | None = None) -> Figure:
    """Loss, accuracy and learning rate by epoch; the epoch with the lowest validation loss is marked.

    largest: the largest class's share of the validation images, dotted: the accuracy of always answering it.
    prior_loss: the validation loss of a constant prediction, the class frequencies (fit.prior_loss); dotted as well.
    history: columns epoch, loss, val_loss, accuracy, val_accuracy, learning_rate.
    Losses have a logarithmic scale: a single bad epoch does not flatten all others.
    """
    figure, panels = _figure(10, 3.5, columns=3)
    best = history.iloc[int(history["val_loss"].argmin())]
    for axes, name in zip(panels[:2], ("loss", "accuracy"), strict=True):
        axes.plot(history["epoch"], history[name], "o-", color=TRAIN, markersize=3, label="training")
        axes.plot(history["epoch"], history[f"val_{name}"], "s-", color=VALIDATION, markersize=3, label="validation")
    panels[0].set_title("loss: cross-entropy, logarithmic")
    if prior_loss is not None:
        panels[0].axhline(prior_loss, color=REFERENCE, linestyle=":", linewidth=1.5)
    _log_scale(panels[0], "y")
    panels[1].set_title("accuracy")
    panels[1].set_ylim(0, 1.03)
    panels[1].axhline(largest, color=REFERENCE, linestyle=":", linewidth=1.5, label="constant prediction")
    panels[2].plot(history["epoch"], history["learning_rate"], drawstyle="steps-mid", color=INK)
    _log_scale(panels[2], "y")
    panels[2].set_title("learning rate, logarithmic")
    for axes in panels:
        axes.axvline(best["epoch"], color=CHOSEN, linestyle="--", linewidth=1, zorder=0)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _legend_below(figure, panels[1])
    return _titled(
        figure,
        f"Validation loss is lowest after epoch {int(best['epoch'])} (dashed): {best['val_loss']:.3f}. Accuracy is "
        f"{best['val_accuracy']:.3f} there, and {largest:.3f} for the largest class alone",
    )


def compared(evaluations: Mapping[str, Evaluation]) -> Figure:
    """AUC, accuracy and macro F1 of several models on the same images, a row each, with their 95 % intervals.

    Dotted: the accuracy of always answering the largest class, and the AUC of chance.
    """
    figure, panels = _figure(10, 1.5 + 0.45 * len(evaluations), columns=3)
    names = list(evaluations)[::-1]  # the first on top
    for axes, metric in zip(panels, ("auc", "accuracy", "macro_f1"), strict=True):
        for row, name in enumerate(names):
            value, low, high = evaluations[name].value(metric)
            axes.errorbar(value, row, xerr=_whiskers(value, low, high), fmt="o", color=BLUE, capsize=3)
            axes.annotate(f"{value:.3f}", (value, row), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        if metric in ("auc", "accuracy"):
            constant = 0.5 if metric == "auc" else evaluations[names[0]].largest_class[1]
            axes.axvline(constant, color=GREY, linestyle=":")
        axes.set_xlim(right=1.0)
        axes.set_title(METRICS[metric])
    images = wording.count(len(evaluations[names[0]].true), "image")
    figure.supxlabel(
        "bars: 95 % intervals by patient; dotted: the AUC of chance, and the accuracy of the largest class alone",
        fontsize=8,
    )
    return _titled(figure, f"{_highest_auc(evaluations)} on the same {images}")


def _highest_auc(evaluations: Mapping[str, Evaluation]) -> str:
    aucs = {name: of.value("auc")[0] for name, of in evaluations.items()}
    best = max(aucs, key=lambda name: aucs[name])
    others = ", ".join(f"{auc:.3f} ({name})" for name, auc in aucs.items() if name != best)
    return f"AUC is highest for {best}: {aucs[best]:.3f}" + (f"; {others}" if others else "")


def trials(table: pd.DataFrame, prior_loss: float | None = None) -> Figure:
    """Every trial of a search: validation loss in the order they ran, and against each value that was searched.

    Marks differ by the number of epochs, the darkest is the longest: the losses of trials with more and fewer epochs
    are not comparable. The best trial has a ring. prior_loss: as in `training_curves`, dotted.
    table: columns trial, status, score (validation loss), epochs, reason; each other column is a searched value.
    """
    ran = table.sort_values("trial", ignore_index=True)
    order = pd.Series(np.arange(1, len(ran) + 1))
    completed = ran["status"].eq("COMPLETED") & ran["score"].notna()
    if not completed.any():
        raise LungkitError("no trial of this search completed; the table's column 'reason' says why")
    searched = ran.columns.difference(["trial", "status", "score", "epochs", "reason"], sort=False)
    knobs = [knob for knob in searched if ran.loc[completed, knob].nunique() > 1][:11]
    columns = min(4, 1 + len(knobs))
    rows = -(-(1 + len(knobs)) // columns)
    figure, panels = _figure(max(5, 2.5 * columns), 2.2 * rows + 0.7, rows, columns)
    best, lengths = int(np.nanargmin(ran["score"].where(completed))), ran.loc[completed, "epochs"]
    for axes, name in zip(panels, ["trial", *knobs], strict=False):
        x = order if name == "trial" else _searched_values(axes, ran[name].where(completed))
        for epochs, color, style in _lengths(lengths):
            of = lengths.index[lengths == epochs]
            axes.plot(
                x[of], ran["score"][of], style["marker"], color=color, markersize=6, markeredgecolor=INK,
                markeredgewidth=0.6, label=wording.count(epochs, "epoch"),
            )  # fmt: skip
        ring: dict[str, Any] = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot([x[best]], [ran["score"][best]], "o", color=CHOSEN, zorder=5, label="lowest loss", **ring)
        axes.set_xlabel(name.replace("_", " "))
        axes.margins(x=0.12, y=0.15)
        _loss_scale(axes, ran.loc[completed, "score"], prior_loss)
    panels[0].set_xlim(0.4, len(ran) + 0.6)
    panels[0].set_xlabel("trial, in the order they ran")
    panels[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in panels[::columns]:
        axes.set_ylabel("validation loss")
    for axes in panels[1 + len(knobs) :]:
        axes.set_axis_off()
    top = panels[0].get_xaxis_transform()
    for place in order[~completed]:
        panels[0].text(place, 0.98, WRONG, color=BLACK, ha="center", va="top", transform=top)
    _legend_below(figure, panels[0])
    failed = int((~completed).sum())
    ending = f"; {failed} did not complete ({WRONG})" if failed else ""
    after = wording.count(int(ran["epochs"][best]), "epoch")
    return _titled(
        figure,
        f"The lowest validation loss of {len(ran)} trials is {ran['score'][best]:.3f}, in trial {ran['trial'][best]} "
        f"after {after}{ending}",
    )


def _lengths(epochs: pd.Series) -> Iterator[tuple[int, Any, dict[str, str]]]:
    """(epochs, colour, style) of each length of a trial: the more epochs, the darker."""
    shades = LinearSegmentedColormap.from_list("trials", ["white", VALIDATION])
    lengths = sorted(epochs.unique())
    for place, (length, style) in enumerate(zip(lengths, cycle(STYLES), strict=False), 1):
        yield int(length), shades(place / len(lengths)), style


def repeats(runs: pd.DataFrame, prior_loss: float | None = None) -> Figure:
    """The best trials' settings again: the validation loss of every start, the mean, and that of the search.

    runs: columns trial, seed, loss, searched, as models.search.Repeated has them. prior_loss: as in `training_curves`.
    """
    by_trial = runs.groupby("trial", sort=False)
    figure, (axes,) = _figure(7.5, 1.7 + 0.55 * len(by_trial))
    for place, (_, rows) in enumerate(by_trial):
        axes.plot(rows["loss"], [place] * len(rows), "o", color=VALIDATION, alpha=0.8, label="a start")
        axes.plot([rows["loss"].mean()] * 2, [place - 0.3, place + 0.3], color=CHOSEN, label="mean of the starts")
        axes.plot(
            rows["searched"].iloc[:1], [place], "D", color=INK, markerfacecolor="white", markersize=6,
            label="in the search",
        )  # fmt: skip
    axes.set_yticks(range(len(by_trial)), [f"trial {trial}" for trial in runs["trial"].unique()])
    axes.set_ylim(len(by_trial) - 0.4, -0.6)
    axes.set_xlabel("validation loss (cross-entropy)")
    handles, labels = axes.get_legend_handles_labels()
    handles, labels = handles[:3], labels[:3]
    if prior_loss is not None:
        handles.append(axes.axvline(prior_loss, color=REFERENCE, linestyle=":", linewidth=1.5))
        labels.append("constant prediction")
    figure.legend(handles, labels, loc="outside right center")
    means, starts = by_trial["loss"].mean(), runs["seed"].nunique()
    return _titled(
        figure, f"Trial {means.idxmin()}'s settings have the lowest mean of {starts} starts: {means.min():.3f}"
    )


# --- of images


def image_grid(images: np.ndarray, titles: Sequence[str] | None = None, columns: int = 6, title: str = "") -> Figure:
    """Images (n, height, width) in rows, each under its title."""
    figure, _ = _image_panels(images, columns, titles)
    return _titled(figure, title)


def pairs(images: Sequence[tuple[np.ndarray, np.ndarray]], titles: Sequence[str], title: str = "") -> Figure:
    """Pairs of images side by side, three pairs a row, each pair under its title."""
    figure, panels = _image_panels([image for pair in images for image in pair], min(6, 2 * len(images)), lines=2)
    for axes, text in zip(panels[::2], titles, strict=True):
        axes.set_title(text, fontsize=8, loc="left")
    return _titled(figure, title)


def prediction_grid(
    images: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    probability: np.ndarray,
    classes: Sequence[str],
    uncertain: ArrayLike | None = None,
    margin: ArrayLike | None = None,
    n: int = 24,
) -> Figure:
    """The n images that teach most, worst first: right in green with a tick, wrong in vermillion with a cross.

    Up to half of them are errors, the surest first; then up to a quarter right ones that are left to a person, the
    least sure first; then other right ones, drawn at random. A group that is smaller leaves its places to the others.
    images: (m, height, width). true, predicted: (m,) class indices. probability: (m,) of the predicted class.
    uncertain: bool (m,), as models.rule.DecisionRule.uncertain gives it; None: none is. margin: (m,), how sure each is,
    as DecisionRule.margin gives it; default: the probability.
    """
    true, predicted, probability = (np.asarray(given) for given in (true, predicted, probability))
    sure = probability if margin is None else np.asarray(margin)
    groups = _worst_first(true != predicted, sure, uncertain, n)
    order, columns = np.concatenate([shown for shown, _ in groups.values()]), 6
    figure, panels = _image_panels([images[i] for i in order], columns, lines=2)
    for axes, at in zip(panels, order, strict=True):
        right = true[at] == predicted[at]
        color, mark = (GOOD, RIGHT) if right else (WARN, WRONG)
        axes.set_title(
            f"{mark} {_shorten(classes[predicted[at]], columns, used=7)} {probability[at]:.2f}\n"
            f"{_shorten(f'true: {classes[true[at]]}', columns)}",
            color=color, fontsize=8, loc="left", weight="normal" if right else "bold",
        )  # fmt: skip
        for spine in axes.spines.values():
            spine.set(visible=True, color=color, linewidth=2.5)
    told = [f"{len(shown)} of {count} {name}" for name, (shown, count) in groups.items() if count]
    return _titled(figure, "; ".join(told))


def _worst_first(
    wrong: np.ndarray, sure: np.ndarray, uncertain: ArrayLike | None, n: int
) -> dict[str, tuple[np.ndarray, int]]:
    """By group: which images are shown, and how many the group has. wrong: bool (m,). sure: (m,)."""
    unsure = np.zeros(len(wrong), bool) if uncertain is None else np.asarray(uncertain)
    drawn = np.random.default_rng(SEED).permutation(len(wrong))
    groups = {
        f"errors ({WRONG}), the surest first": np.flatnonzero(wrong)[np.argsort(-sure[wrong], kind="stable")],
        f"right but uncertain ({RIGHT}), the least sure first": np.flatnonzero(~wrong & unsure)[
            np.argsort(sure[~wrong & unsure], kind="stable")
        ],
        f"other right ones ({RIGHT}), at random": drawn[(~wrong & ~unsure)[drawn]],
    }
    places = _places([len(of) for of in groups.values()], [n // 2, n // 4, n - n // 2 - n // 4], n)
    return {name: (of[:some], len(of)) for (name, of), some in zip(groups.items(), places, strict=True)}


def _places(there: list[int], wanted: list[int], n: int) -> list[int]:
    """How many of each group are shown; what one lacks goes to the first that has more."""
    given = [min(pair) for pair in zip(there, wanted, strict=True)]
    for place, count in enumerate(there):
        given[place] += min(count - given[place], n - sum(given))
    return given


def overlay_grid(
    images: np.ndarray,
    heatmaps: np.ndarray,
    masks: np.ndarray | None = None,
    titles: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Each image alone, and next to it with its heat map and the outline of its lesion mask; three pairs a row.

    images, heatmaps (0..1), masks: (n, height, width).
    """
    pairs, count = [image for image in images for _ in range(2)], len(images)
    texts = [text for own in (titles if titles is not None else [""] * count) for text in (own, "")]
    figure, panels = _image_panels(pairs, min(6, 2 * count), extra_width=1.0)
    for axes, text in zip(panels, texts, strict=True):
        axes.set_title(_shorten(text, 3), fontsize=8, loc="left")
    _heat(figure, panels[1::2], heatmaps, masks)
    return _titled(figure, title)


def overlays_by_model(
    images: np.ndarray,
    heatmaps: Mapping[str, np.ndarray],
    masks: np.ndarray | None = None,
    answers: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> Figure:
    """A row for each image: the image alone, then the heat map of each model over it, by the model's name.

    images, masks: (n, height, width). heatmaps: (n, height, width) of each model, 0..1. answers: what each names (n,).
    """
    names = list(heatmaps)
    rows = [one for image in images for one in [image] * (1 + len(names))]
    figure, panels = _image_panels(rows, 1 + len(names), lines=2, extra_width=1.0)
    for row in range(len(images)):
        own = panels[row * (1 + len(names)) + 1 : (row + 1) * (1 + len(names))]
        for axes, name in zip(own, names, strict=True):
            said = [name, answers[name][row]] if answers else [name]
            axes.set_title("\n".join(_shorten(line, 1 + len(names)) for line in said), fontsize=8, loc="left")
    heat = [heatmaps[name][row] for row in range(len(images)) for name in names]
    outlined = None if masks is None else [masks[row] for row in range(len(images)) for _ in names]
    _heat(figure, [axes for i, axes in enumerate(panels) if i % (1 + len(names))], heat, outlined)
    return _titled(figure, title)


def _heat(
    figure: Figure, panels: Sequence[Axes], heatmaps: Sequence[np.ndarray] | np.ndarray, masks: Any = None
) -> None:
    """Lay heat maps and outlines of lesions over the images of these panels, and add the scale."""
    for i, axes in enumerate(panels):
        axes.imshow(heatmaps[i], cmap=HEAT, vmin=0, vmax=1, alpha=0.65 * np.clip(heatmaps[i], 0, 1))
        if masks is not None and np.any(masks[i]):
            axes.contour(np.asarray(masks[i]) > 0, levels=[0.5], colors=SKY, linewidths=1.2)
    outlines = "\nblue outline: lesion" if masks is not None and np.any(masks) else ""
    figure.colorbar(
        ScalarMappable(cmap=HEAT), ax=figure.axes, shrink=0.7, aspect=25,
        label=f"heat, each map's maximum = 1{outlines}",
    )  # fmt: skip


def embedding_map(
    points: np.ndarray,
    variance: np.ndarray,
    values: Mapping[str, np.ndarray],
    shares: Mapping[str, "Explained"],
    classes: Sequence[str] = (),
) -> Figure:
    """The map of an embedding (n, 2), a panel for each colouring, whose title says what share of the map it explains.

    variance: of each axis, its share of all. values: (n,) each, text or numbers; shares: of the same names.
    classes: in their order, for the colours that they have in every figure.
    """
    figure, panels = _figure(10, 8, 2, 2)
    for axes, (name, of) in zip(panels, values.items(), strict=True):
        one = shares[name]
        if of.dtype.kind in "OU":
            groups, rest = _groups(of, (*classes, *SPLITS)), len(set(of)) - len(STYLES)
            for group, style in zip(groups, STYLES, strict=False):
                at = of == group
                style = style | {"color": SPLITS.get(group, OTHER_SPLIT)} if name == "split" else style
                marks = {"markersize": 4, "alpha": 0.6, "markeredgewidth": 0, "linestyle": "", "label": group}
                axes.plot(*points[at].T, **style | marks)
            if rest > 0:
                at = np.isin(of, groups[len(STYLES) :])
                axes.plot(*points[at].T, "+", color=GREY, markersize=3, label=f"{rest} more")
            axes.legend(fontsize=7, markerscale=1.3, loc="best")
        else:
            drawn = axes.scatter(points[:, 0], points[:, 1], c=of, s=9, cmap="viridis", linewidths=0)
            figure.colorbar(drawn, ax=axes, label=name)
        explains = f"explains {wording.percents(one.share, one.low, one.high)} of the map"
        axes.set_title(f"{name} {explains if one.share == one.share else 'has one value'}")
        axes.set(
            xlabel=f"component 1 ({100 * variance[0]:.0f} % of the variance)",
            ylabel=f"component 2 ({100 * variance[1]:.0f} %)",
        )
    known = {name: one.share for name, one in shares.items() if name != "split" and one.share == one.share}
    if not known:
        return _titled(figure, "The network gives every image the same embedding")
    return _titled(figure, f"Of these, the {max(known, key=known.__getitem__)} explains most of where images lie")


def _groups(values: np.ndarray, known: Sequence[str]) -> list[str]:
    """The distinct values, those that are known first and in their order, the others sorted."""
    place = {name: at for at, name in enumerate(known)}
    return sorted(map(str, set(values)), key=lambda name: (place.get(name, len(place)), name))


def neighbour_grid(
    images: np.ndarray, near: np.ndarray, titles: Sequence[str], near_titles: Sequence[Sequence[str]], title: str = ""
) -> Figure:
    """Images (n, height, width), the first eight, each in a frame, and next to it its neighbours (n, k, height, width).

    near_titles: k for each image; "" leaves the place of a missing neighbour empty.
    """
    rows, kept = min(4, len(images)), min(8, len(images))
    each = near.shape[1] + 1
    shown = [image for one, others in zip(images[:kept], near[:kept], strict=True) for image in (one, *others)]
    words = [text for one, others in zip(titles, near_titles, strict=True) for text in (one, *others)][: len(shown)]
    columns = each * (2 if kept > rows else 1)
    figure, panels = _image_panels(shown, columns, [""] * len(shown), lines=3)
    for place, (axes, text) in enumerate(zip(panels, words, strict=True)):
        axes.set_title("\n".join(_shorten(line, columns) for line in text.split("\n")), fontsize=7.5, loc="left")
        if place % each == 0:
            for spine in axes.spines.values():
                spine.set(visible=True, color=WARN, linewidth=2.5)
        axes.set_visible(bool(text))
    return _titled(figure, title)


def planted_found(firsts: Sequence[int], found: Sequence["Found"], planted: int) -> Figure:
    """Precision and recall of planted labels, by how many suspects a person looks at; found: for each of firsts."""
    figure, (axes,) = _figure(7, 3.8)
    for name, style in zip(("precision", "recall"), STYLES, strict=False):
        values = np.array([getattr(one, name) for one in found])
        axes.fill_between(firsts, values[:, 1], values[:, 2], color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(firsts, values[:, 0], markersize=5, label=name, **style)
    axes.axhline(found[0].chance, color=GREY, linestyle=":", label="precision by chance")
    axes.axvline(planted, color=GREY, linestyle="--", linewidth=1)
    axes.set(
        xlabel=f"suspects looked at (dashed: as many as were planted, {planted})", ylabel="share", ylim=(-0.02, 1.02)
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    at = int(np.argmin(np.abs(np.array(firsts) - planted)))
    return _titled(
        figure,
        f"The first {found[at].first} suspects contain {found[at].hits} of {planted} planted labels: "
        f"recall {wording.percents(*found[at].recall)}",
    )


def preprocessing_steps(steps: Mapping[str, np.ndarray], title: str = "", units: Sequence[str] | None = None) -> Figure:
    """One image after each step (step's name to 2-D array, any range): the picture above its histogram of values.

    units: of each step's values, below its histogram; default: "value".
    """
    width = min(10.0, 2.4 * len(steps))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    pictures, histograms = figure.subplots(2, len(steps), squeeze=False, height_ratios=(1.6, 1))
    for number, (name, values) in enumerate(steps.items()):
        axes = pictures[number]
        low, high = _black_and_white(values, list(steps.values())[number - 1] if number else None)
        axes.imshow(values, vmin=low, vmax=high)
        axes.set_title(f"{number + 1}. {name}\n{values.shape[0]} × {values.shape[1]} pixels", fontsize=8.5)
        axes.set(xticks=[], yticks=[])
        sns.despine(ax=axes, left=True, bottom=True)
        histograms[number].hist(np.ravel(values), bins=60, color=BLUE, log=True, histtype="stepfilled")
        histograms[number].set_xlabel(units[number] if units else "value")
        histograms[number].xaxis.set_major_locator(MaxNLocator(3))
        histograms[number].tick_params(axis="y", which="both", left=False, labelleft=False)
    histograms[0].set_ylabel("pixels (log)")
    return _titled(figure, title)


def _black_and_white(values: np.ndarray, before: np.ndarray | None) -> tuple[float, float]:
    """The values to draw black and white: 0 and 1, or what a linear step made of these, or the smallest and largest."""
    least, most = float(values.min()), float(values.max())
    if least >= 0 and most <= 1:
        return 0.0, 1.0
    if before is None or before.shape != values.shape or before.min() < 0 or before.max() > 1:
        return least, most
    scale = (most - least) / max(float(before.max() - before.min()), 1e-9)
    black = least - float(before.min()) * scale
    return black, black + scale


def localisation(
    table: pd.DataFrame, labels: Sequence[str], patients: ArrayLike, classes: Sequence[str] | None = None
) -> Figure:
    """Whether heat maps point at the lesion: hit rate by class, and heat inside the lesion by its size.

    table: a row per image with pointing_game (0..1), energy_inside and mask_share (0..1), NaN without a lesion.
    labels, patients: class name and patient of each row. classes: all classes in the order that gives each its colour;
    default: those of the rows, as they come.
    """
    rows = table.assign(label=list(labels), patient=np.asarray(patients)).dropna(subset=["pointing_game", "mask_share"])
    if rows.empty:
        raise LungkitError("no image has a lesion mask: there is nothing to point at")
    figure, (left, right) = _figure(9, 3.9, columns=2)
    groups = {str(name): group for name, group in rows.groupby("label", sort=False)}
    styles = dict(zip(classes or groups, cycle(STYLES), strict=False))
    groups = {name: groups[name] for name in styles if name in groups}
    for place, (name, group) in enumerate(groups.items()):
        style = styles[name]
        hit, low, high = mean_with_interval(group["pointing_game"], group["patient"], share=True)
        color, marker, chance = style["color"], style["marker"], group["mask_share"].mean()
        left.errorbar([place], [hit], _whiskers(hit, low, high), fmt=marker, color=color, markersize=8, elinewidth=1.5)
        left.plot([place - 0.25, place + 0.25], [chance, chance], color=GREY, linestyle=":")
        right.plot(
            group["mask_share"], group["energy_inside"], marker, color=color, markersize=4, alpha=0.55,
            markeredgewidth=0, label=name,
        )  # fmt: skip
    left.set_xticks(range(len(groups)), [f"{name}\n({len(group)} images)" for name, group in groups.items()])
    left.set(ylabel="pointing game, 95 % interval", ylim=(-0.02, 1.02), xlim=(-0.6, len(groups) - 0.4))
    left.set_title("hottest pixel lies in the lesion")
    right.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="uniform map")
    right.set(xlabel="lesion's share of the image", ylabel="share of the heat inside the lesion")
    most = rows[["mask_share", "energy_inside"]].max()
    right.set(xlim=(0, min(1, 1.15 * most["mask_share"])), ylim=(-0.02, min(1.02, 1.15 * most.max())))
    right.set_title("heat inside the lesion")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center")
    hits = wording.percents(*mean_with_interval(rows["pointing_game"], rows["patient"], share=True))
    by_chance = f"{100 * rows['mask_share'].mean():.1f} %"
    return _titled(
        figure, f"The hottest pixel lies in the lesion in {hits} of {len(rows)} images; by chance in {by_chance}"
    )


def randomisation(table: pd.DataFrame) -> Figure:
    """How similar heat maps stay while more and more layers are re-initialised.

    table: columns layer, spearman, low, high, as `gradcam.randomisation_check` returns them.
    """
    steps = ["(none)", *(_shorten(layer, 4) for layer in table["layer"])]
    alike = table[["spearman", "low", "high"]].to_numpy(float)
    alike = np.vstack([[1.0, np.nan, np.nan], alike])  # before the first step maps equal themselves
    figure, (axes,) = _figure(max(5.6, min(10, 1.1 * len(steps))), 3.9)
    axes.axhline(0, color=GREY, linestyle=":")
    axes.errorbar(
        range(len(steps)), alike[:, 0], _whiskers(*alike.T), fmt="o-", color=BLUE, markersize=5, elinewidth=1.4
    )
    axes.set_xticks(range(len(steps)), steps, rotation=30, ha="right")
    axes.set_ylim(top=1.05)
    axes.set(xlabel="re-initialised from the output back to", ylabel="rank correlation, 95 % interval")
    end = wording.figure(*alike[-1])
    return _titled(figure, f"With every layer random the maps correlate {end} with the model's own")


# --- shared parts


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of at most 10 by 8 inches, and its panels in reading order."""
    figure = Figure(figsize=(min(width, 10), min(height, 8)), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _image_panels(
    images: np.ndarray | Sequence[np.ndarray],
    columns: int,
    titles: Sequence[str] | None = None,
    lines: int = 1,
    extra_width: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """A square panel for each image, without ticks or frame, under its title; `lines` of text go above each."""
    count = len(images)
    if not count:
        raise LungkitError("no image to show; give at least one")
    columns = min(columns, count)
    rows = -(-count // columns)
    text = 0.16 * lines + 0.08
    side = min((10 - extra_width) / columns, (8 - 0.4) / rows - text, 2.4)
    figure, panels = _figure(side * columns + extra_width, (side + text) * rows + 0.4, rows, columns)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    for axes in panels[count:]:
        axes.remove()
    for axes, image, title in zip(panels, images, titles if titles is not None else [""] * count, strict=False):
        axes.imshow(image, vmin=0, vmax=1)
        axes.set_title(_shorten(title, columns), fontsize=8, loc="center")
        axes.set(xticks=[], yticks=[])
        sns.despine(ax=axes, left=True, bottom=True)
    return figure, panels[:count]


def _titled(figure: Figure, title: str) -> Figure:
    if title:
        whole = title.replace(" %", "\u00a0%")  # a number keeps its percent sign
        figure.suptitle(textwrap.fill(whole, int(10.5 * figure.get_figwidth())).replace("\u00a0%", " %"))
    return figure


def _curve_panels(evaluation: Evaluation, x: str, y: str) -> tuple[Figure, dict[str, Axes]]:
    """A square panel for each class that has an AUC; of two classes, only for the last."""
    of_interest = evaluation.classes[-1:] if len(evaluation.classes) == 2 else evaluation.classes
    classes = [cls for cls in of_interest if not np.isnan(evaluation.value("auc", cls)[0])]
    if not classes:
        raise LungkitError("all images are of one class: curves need images of at least two")
    columns = len(classes) if len(classes) <= 3 else min(4, -(-len(classes) // 2))
    rows = -(-len(classes) // columns)
    width = min(5.2, 10 / columns)
    height = min(width + 0.3, 7.0 / rows)  # a square and its letters
    figure, panels = _figure(width * columns, height * rows + 1.0, rows, columns)
    for axes in panels[len(classes) :]:
        axes.remove()
    for axes in panels[: len(classes)]:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=x, ylabel=y)
    return figure, dict(zip(classes, panels, strict=False))


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 4 if figure.get_figwidth() > 7 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Distances (2, n) below and above a value for error bars; 0 if the interval is undefined.

    A value can be just outside its own bootstrap interval; a distance is never negative.
    """
    middle, below, above = (np.atleast_1d(np.asarray(x, float)) for x in (value, low, high))
    return np.nan_to_num(np.clip([middle - below, above - middle], 0, None))


def _log_scale(axes: Axes, of: str) -> None:
    """A logarithmic axis ("x" or "y"), once all is drawn on it, whose ticks are plain numbers: 0.05, 0.1, 0.2."""
    axes.set(**{f"{of}scale": "log"})
    axis = axes.xaxis if of == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    fine = of == "y" and high / low < 20  # there is less room for words in a row
    axis.set_major_locator(LogLocator(10, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if fine else (1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, _: object) -> str:
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def _loss_scale(axes: Axes, losses: pd.Series, prior_loss: float | None) -> None:
    """Logarithmic where a loss is far above the lowest one; dotted, the loss of a constant prediction."""
    if prior_loss is not None:
        axes.axhline(prior_loss, color=REFERENCE, linestyle=":", linewidth=1.5, label="constant prediction")
    if losses.max() > 5 * losses.min():
        _log_scale(axes, "y")


def _searched_values(axes: Axes, values: pd.Series) -> pd.Series:
    """Positions of searched values: a few are evenly spaced and labelled, many are on a linear or logarithmic scale."""
    kept = values.dropna()
    distinct = sorted(kept.unique(), key=lambda value: (isinstance(value, str), value))
    few = 4 if isinstance(distinct[-1], float) else 5
    if len(distinct) > few and not isinstance(distinct[-1], str):
        if distinct[0] > 0 and distinct[-1] / distinct[0] > 5:
            _log_scale(axes, "x")
        return values.astype(float)
    axes.set_xticks(range(len(distinct)), [f"{v:g}" if isinstance(v, float) else str(v) for v in distinct])
    axes.set_xlim(-0.5, len(distinct) - 0.5)
    return values.map(dict(zip(distinct, range(len(distinct)), strict=True)))


def _shorten(text: str, columns: int, used: int = 0) -> str:
    """The text, shortened to fit above one of `columns` panels at 8 points next to `used` other characters."""
    most = max(8, 132 // columns - used)
    return text if len(text) <= most else text[: most - 1] + "…"
