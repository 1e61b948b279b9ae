"""The figures of a data set: its quality report, and how many images its patients have."""

import textwrap
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lungkit.data.dataset import Dataset
from lungkit.data.quality import QualityReport
from lungkit.palette import CLASSES, INK, OTHER_SPLIT, SKY, SPLITS
from lungkit.wording import count

_MARKS = "osD^vPX*"  # of classes, as in lungkit.training.plots
_PARTS = {"train": "training", "val": "validation"}  # as people say


def quality_panels(report: QualityReport) -> Figure:
    """Four panels: images by class and split, sizes, brightness by class, duplicate pairs by kind."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    balance, sizes, brightness, pairs = figure.subplots(2, 2).flat
    _draw_balance(balance, report)
    _draw_sizes(sizes, report)
    _draw_brightness(brightness, report)
    _draw_pairs(pairs, report)
    for axes in (balance, sizes, brightness, pairs):
        axes.spines[["top", "right"]].set_visible(False)
    errors = int((report.findings["severity"] == "error").sum())
    images_, unread = len(report.images), len(report.unreadable)
    figure.suptitle(
        f"{report.name}: {count(images_, 'readable image')}, {unread} unreadable, "
        f"{count(errors, 'kind of error', 'kinds of error') if errors else 'no error'} found",
        fontweight="bold",
    )
    return figure


def images_per_patient(collection: Dataset) -> Figure:
    """How many patients have how many images, in bars of their classes; a patient of several classes counts in each."""
    per_patient = collection.part().groupby(["label", "patient_id"]).size().rename("images").reset_index()
    counts = per_patient.groupby(["images", "label"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(collection.classes), fill_value=0)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    below = np.zeros(len(counts))
    for name, colour in zip(counts.columns, cycle(CLASSES), strict=False):
        axes.bar(counts.index, counts[name], 0.8, below, color=colour, edgecolor="white", label=name)
        below += counts[name].to_numpy()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="images of one patient", ylabel="patients")
    figure.legend(loc="outside right center", frameon=False)
    figure.suptitle(textwrap.fill(_images_each(per_patient["images"]), 70), fontweight="bold")
    return figure


def _images_each(images: pd.Series) -> str:
    """The message of `images_per_patient`."""
    most = int(images.max())
    if most == 1:
        return "Each patient has one image: a split by image is a split by patient"
    several = float((images > 1).mean())
    return f"{several:.0%} of the patients have several images, up to {most}: they must stay on one side of a split"


def _draw_balance(axes: Axes, report: QualityReport) -> None:
    table = report.balance.pivot(index="class", columns="split", values="images").fillna(0)
    table = table.reindex(index=list(report.classes), columns=list(report.balance["split"].drop_duplicates()))
    left = np.zeros(len(table))
    others = iter([OTHER_SPLIT, "#8d969e", "#d5dade"])
    for split in table.columns:
        name, colour = _PARTS.get(split, split.replace("_", " ")), SPLITS.get(split) or next(others, OTHER_SPLIT)
        bars = axes.barh(table.index, table[split].fillna(0), left=left, color=colour, label=name, edgecolor="white")
        left += table[split].fillna(0).to_numpy()
    axes.bar_label(bars, labels=[f" {int(total):,}" for total in left])
    axes.invert_yaxis()
    axes.margins(x=0.14)
    largest, smallest = report.classes[int(left.argmax())], report.classes[int(left.argmin())]
    even = left.max() < 1.05 * left.min()
    title = "All classes are equally large" if even else _larger(largest, smallest, left)
    axes.set(title=title, xlabel="images")
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _larger(largest: str, smallest: str, images: np.ndarray) -> str:
    if not images.min():
        return f"{smallest} has no image"
    return f"{largest} has {images.max() / images.min():.1f} times the images of {smallest}"


def _draw_sizes(axes: Axes, report: QualityReport) -> None:
    distinct = report.images[["width", "height"]].drop_duplicates()
    if len(distinct) == 1:
        width, height = distinct.iloc[0]
        axes.set_axis_off()
        axes.set_title("All images have one size")
        axes.text(0.5, 0.5, f"{width} × {height} pixels", ha="center", va="center", transform=axes.transAxes)
        return
    for place, name in enumerate(report.classes):
        sizes = report.images[report.images["label"] == name].groupby(["width", "height"]).size().reset_index(name="n")
        axes.scatter(
            sizes["width"], sizes["height"], s=12 + 4 * np.sqrt(sizes["n"]), alpha=0.6, linewidth=1.2,
            marker=_MARKS[place % len(_MARKS)], facecolor="none", edgecolor=CLASSES[place % len(CLASSES)], label=name,
        )  # fmt: skip
    axes.set(
        title=f"{len(distinct):,} sizes (a larger mark: more images)",
        xlabel="width, pixels",
        ylabel="height, pixels",
    )
    axes.legend(frameon=False, fontsize="small")


def _draw_brightness(axes: Axes, report: QualityReport) -> None:
    means = [report.images.loc[report.images["label"] == name, "mean"].to_numpy() for name in report.classes]
    boxes = axes.boxplot(
        means, orientation="horizontal", whis=(5, 95), widths=0.55, patch_artist=True, medianprops={"color": "black"},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "0.6"},
    )  # fmt: skip
    for place, box in enumerate(boxes["boxes"]):
        box.set(facecolor=CLASSES[place % len(CLASSES)], alpha=0.75)
    axes.set_yticks(range(1, len(means) + 1), report.classes)
    axes.invert_yaxis()
    medians = [np.median(values) for values in means if len(values)]
    apart = max(medians) - min(medians) if medians else 0.0
    axes.set(
        title=f"The classes' median greys differ by {apart:.3f} at most",
        xlabel="mean grey of an image, 0 black to 1 white\n(box: middle half; whiskers: 5 to 95 %)",
    )


def _draw_pairs(axes: Axes, report: QualityReport) -> None:
    table = report.duplicates
    if table.empty:
        axes.text(0.5, 0.5, "no pair of images is equal or nearly so", ha="center", va="center",
                  transform=axes.transAxes)  # fmt: skip
        axes.set_axis_off()
        axes.set_title("No duplicates")
        return
    across = int(table["across_splits"].sum())
    axes.set(
        title=f"{count(len(table), 'duplicate pair')}, {across or 'none'} across splits",
        xlabel="pairs of images (a pair can be of several kinds)",
    )
    kinds = {
        "across splits": table["across_splits"],
        "two labels": table["two_labels"],
        "two patients": table["two_patients"],
        "same patient, label\nand side": ~(table["across_splits"] | table["two_labels"] | table["two_patients"]),
    }
    height = 0.38
    for place, (kind, colour) in enumerate((("exact", INK), ("near", SKY))):
        counts = [int((rows & (table["kind"] == kind)).sum()) for rows in kinds.values()]
        bars = axes.barh(np.arange(len(kinds)) + (place - 0.5) * height, counts, height, color=colour, label=kind)
        axes.bar_label(bars, labels=[f" {count:,}" for count in counts])
    axes.set_yticks(np.arange(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize="small")
