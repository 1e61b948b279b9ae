"""The figure of a data set's quality report."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lungkit.data.quality import QualityReport
from lungkit.palette import SERIES

_MARKS = "o^sDvPX"


def quality_panels(report: QualityReport) -> Figure:
    """Four panels: images by class and split, sizes, brightness by class, duplicate pairs by kind."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    balance, sizes, brightness, pairs = figure.subplots(2, 2).flat
    _draw_balance(balance, report)
    _draw_sizes(sizes, report)
    _draw_brightness(brightness, report)
    _draw_pairs(pairs, report)
    for axes in (balance, sizes, brightness, pairs):
        axes.spines[["top", "right"]].set_visible(False)
    errors = int((report.findings["severity"] == "error").sum())
    images_, unread = len(report.images), len(report.unreadable)
    figure.suptitle(f"{report.name}: {images_:,} readable images, {unread} unreadable; kinds of error: {errors}")
    return figure


def _draw_balance(axes: Axes, report: QualityReport) -> None:
    table = report.balance.pivot(index="class", columns="split", values="images").fillna(0)
    table = table.reindex(index=list(report.classes), columns=list(report.balance["split"].drop_duplicates()))
    left = np.zeros(len(table))
    for colour, split in zip(SERIES, table.columns, strict=False):
        bars = axes.barh(
            table.index, table[split], left=left, color=colour, label=split.replace("_", " "), edgecolor="white"
        )
        left += table[split].to_numpy()
    axes.bar_label(bars, labels=[f" {int(total):,}" for total in left])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title="Classes", xlabel="images")
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _draw_sizes(axes: Axes, report: QualityReport) -> None:
    axes.set(title="Sizes (a larger mark: more images)", xlabel="width, pixels", ylabel="height, pixels")
    for place, name in enumerate(report.classes):
        sizes = report.images[report.images["label"] == name].groupby(["width", "height"]).size().reset_index(name="n")
        axes.scatter(
            sizes["width"], sizes["height"], s=12 + 4 * np.sqrt(sizes["n"]), alpha=0.6, linewidth=1.2,
            marker=_MARKS[place % len(_MARKS)], facecolor="none", edgecolor=SERIES[place % len(SERIES)], label=name,
        )  # fmt: skip
    if report.images[["width", "height"]].drop_duplicates().shape[0] == 1:
        width, height = report.images[["width", "height"]].iloc[0]
        axes.annotate(
            f"every image: {width} x {height}", (width, height), (0, 14), textcoords="offset points", ha="center"
        )
    axes.legend(frameon=False, fontsize="small")


def _draw_brightness(axes: Axes, report: QualityReport) -> None:
    means = [report.images.loc[report.images["label"] == name, "mean"].to_numpy() for name in report.classes]
    boxes = axes.boxplot(
        means, orientation="horizontal", whis=(5, 95), widths=0.55, patch_artist=True, medianprops={"color": "black"},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "0.6"},
    )  # fmt: skip
    for place, box in enumerate(boxes["boxes"]):
        box.set(facecolor=SERIES[place % len(SERIES)], alpha=0.75)
    axes.set_yticks(range(1, len(means) + 1), report.classes)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set(
        title="Brightness (box: middle half; whiskers: 5 to 95 %)",
        xlabel="mean grey value of an image (0 black, 1 white)",
    )


def _draw_pairs(axes: Axes, report: QualityReport) -> None:
    table = report.duplicates
    axes.set(title="Duplicates (a pair can be of several kinds)", xlabel="pairs of images")
    if table.empty:
        axes.text(0.5, 0.5, "none found", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    kinds = {
        "across splits": table["across_splits"],
        "two labels": table["two_labels"],
        "two patients": table["two_patients"],
        "same patient, label\nand side": ~(table["across_splits"] | table["two_labels"] | table["two_patients"]),
    }
    height = 0.38
    for place, kind in enumerate(("exact", "near")):
        counts = [int((rows & (table["kind"] == kind)).sum()) for rows in kinds.values()]
        bars = axes.barh(
            np.arange(len(kinds)) + (place - 0.5) * height, counts, height, color=SERIES[place], label=kind
        )
        axes.bar_label(bars, labels=[f" {count:,}" for count in counts])
    axes.set_yticks(np.arange(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize="small")
