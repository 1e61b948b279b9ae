"""Figures of lungkit.training.subgroups and usefulness, in the manner of lungkit.training.plots."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lungkit import wording
from lungkit.errors import LungkitError
from lungkit.palette import BLACK, BLUE, GREY, VERMILLION
from lungkit.training import subgroups, usefulness
from lungkit.training.plots import _figure as panels
from lungkit.training.plots import _legend_below as legend_below
from lungkit.training.plots import _titled as titled
from lungkit.training.plots import _whiskers as whiskers
from lungkit.training.subgroups import Subgroups
from lungkit.training.usefulness import DecisionCurve


def gaps(found: Subgroups, figure: str = "auc") -> Figure:
    """A figure of each group with its 95 % interval, the lowest on top, around that of all images.

    figure: auc, recall or specificity. Hollow: too few patients to be tested. Of many groups, the lowest are shown.
    """
    rows = found.table[found.table[figure].notna()].sort_values(figure, kind="stable")
    if rows.empty:
        raise LungkitError(f"no group has a defined {subgroups.FIGURES[figure]}: there is nothing to show")
    shown = rows.iloc[: subgroups.SHOWN]
    chart, (axes,) = panels(8.5, 1.5 + 0.21 * len(shown))
    value, low, high = found.overall[figure]
    axes.axvspan(low, high, color=GREY, alpha=0.18, linewidth=0, label="all images, 95 % interval")
    axes.axvline(value, color=GREY, linestyle=":")
    few = shown[f"{figure}_few"].to_numpy(bool)
    for of, fill, label in ((~few, BLUE, "group, 95 % interval"), (few, "white", "too few patients to test")):
        if of.any():
            part = shown[of]
            reach = whiskers(part[figure], part[f"{figure}_low"], part[f"{figure}_high"])
            axes.errorbar(
                part[figure], np.flatnonzero(of), xerr=reach, fmt="o", color=BLUE, markerfacecolor=fill, markersize=6,
                elinewidth=1.2, label=label,
            )  # fmt: skip
    axes.set_yticks(range(len(shown)), subgroups.names(shown))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(f"{subgroups.FIGURES[figure]} for {found.positive} (patients in brackets)")
    axes.grid(axis="x", alpha=0.4)
    legend_below(chart, axes)
    rest = len(rows) - len(shown)
    more = f"; {wording.count(rest, 'group')} above these not shown" if rest else ""
    return titled(chart, f"{subgroups.worst_title(found, figure)}{more}")


def decision_curve(curve: DecisionCurve) -> Figure:
    """Net benefit of a model by threshold, in its 95 % interval, next to calling all and calling none."""
    table = curve.table
    chart, (axes,) = panels(7.5, 4.6)
    axes.fill_between(
        table["threshold"], table["low"], table["high"], color=BLUE, alpha=0.2, linewidth=0, label="95 % interval"
    )
    axes.plot(table["threshold"], table["model"], color=BLUE, label="call by the model")
    axes.plot(table["threshold"], table["all"], color=VERMILLION, linestyle="--", label="call all")
    axes.plot(table["threshold"], table["none"], color=BLACK, linestyle=":", label="call none")
    top = max(curve.prevalence, table["high"].max(), table["model"].max())
    axes.set_ylim(-0.15 * top, 1.08 * top)  # further down lie losses that nobody would accept
    axes.set_xlim(table["threshold"].min(), table["threshold"].max())
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="threshold: the probability from which a patient is called", ylabel="net benefit")
    axes.set_title(
        f"{curve.positive}, prevalence {100 * curve.prevalence:.2g} %; the best there can be is the prevalence"
    )
    legend_below(chart, axes)
    return titled(chart, usefulness.useful_says(curve).replace("*", "").removesuffix("."))


def predictive_values(values: pd.DataFrame, here: float, positive: str) -> Figure:
    """PPV and NPV by prevalence on a logarithmic axis, each in its 95 % interval; marks: this set's, and screening's.

    values: usefulness.predictive_values. here: the share of `positive` in this set.
    """
    chart, (axes,) = panels(7.5, 4.6)
    for name, color, style, label in (
        ("ppv", VERMILLION, "-", "PPV: called, and ill"),
        ("npv", BLUE, "--", "NPV: not called, and not ill"),
    ):
        band = values[["prevalence", f"{name}_low", f"{name}_high"]].to_numpy().T
        axes.fill_between(*band, color=color, alpha=0.2, linewidth=0)
        axes.plot(values["prevalence"], values[name], color=color, linestyle=style, label=label)
    for share, text in ((here, "this set"), (usefulness.SCREENING, "screening")):
        if values["prevalence"].min() <= share <= values["prevalence"].max():
            axes.axvline(share, color=GREY, linestyle=":", zorder=0)
            side = "right" if share > 0.1 else "left"
            axes.annotate(f" {text}, {100 * share:.2g} % ", (share, 0.02), fontsize=8, color=BLACK, ha=side)
    axes.set_xscale("log")
    axes.set_xlim(values["prevalence"].min(), values["prevalence"].max())
    most = values["prevalence"].max()
    ticks = [0.001, 0.01, 0.1, 0.5, *([most] if most > 0.6 else [])]
    axes.set_xticks(ticks, [f"{100 * tick:.2g} %" for tick in ticks])
    axes.set_ylim(-0.02, 1.02)
    axes.set(xlabel=f"prevalence of {positive}", ylabel="share, 95 % interval by patient")
    legend_below(chart, axes)
    rare = values.iloc[(values["prevalence"] - usefulness.SCREENING).abs().argmin()]
    if np.isnan(rare["ppv"]):
        return titled(chart, f"No image is called {positive}: there is no alarm that could be right")
    found = usefulness.percents(rare["ppv"], rare["ppv_low"], rare["ppv_high"])
    return titled(chart, f"Where {100 * rare['prevalence']:.2g} % are ill, {found} of the alarms are right")
