"""Figures of lungkit.training.stability and learning_curve, in the manner of lungkit.training.plots."""

from collections.abc import Mapping

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lungkit.palette import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION
from lungkit.training import learning_curve
from lungkit.training.learning_curve import Curve, Projection
from lungkit.training.plots import _figure as panels
from lungkit.training.plots import _titled as titled
from lungkit.training.plots import _whiskers as whiskers
from lungkit.training.stability import Nested, Stability
from lungkit.wording import count, figure


def folds(found: Stability) -> Figure:
    """The AUC of every fold and start, a line for each repeat, above the three intervals of the whole."""
    drawing, (axes,) = panels(8.5, 2.2 + 0.32 * found.repeats)
    figures = found.figures()
    for repeat, rows in enumerate(figures):
        for fold, starts in enumerate(rows):
            place = repeat + 0.5 * ((fold + 0.5) / found.folds - 0.5)
            axes.plot(starts, [place] * len(starts), "-o", color=BLUE, markersize=3, linewidth=1, alpha=0.7)
    means = found.mean_of_folds()
    rows = {
        "all patients, by patient": (found.value(), BLACK, "D"),
        "mean of folds, corrected": (means["corrected"], GREEN, "s"),
        "mean of folds, naive": (means["naive"], VERMILLION, "^"),
    }
    for number, (value, colour, mark) in enumerate(rows.values()):
        _with_reach(axes, value, found.repeats + 0.3 + number, colour, mark)
    axes.axvline(found.value()[0], color=GREY, linestyle=":", zorder=0)
    places = [*range(found.repeats), *(found.repeats + 0.3 + number for number in range(len(rows)))]
    axes.set_yticks(places, [*(f"repeat {number}" for number in range(1, found.repeats + 1)), *rows])
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlabel(f"AUC; a mark a training, joined within a fold ({count(found.starts, 'start')})")
    _, low, high = found.value()
    each = figures.mean(axis=2)
    return titled(
        drawing,
        f"One fold says {each.min():.3f}, another {each.max():.3f}; all {found.patients} patients together say "
        f"{found.value()[0]:.3f} ({low:.3f}–{high:.3f})",
    )


def variances(found: Stability) -> Figure:
    """By how much folds, repeats and training starts move the AUC: standard deviations with 95 % intervals."""
    table, alone = found.variances[::-1], found.of_test_patients
    drawing, (axes,) = panels(7.5, 1.6 + 0.5 * len(table))
    for place, (_, row) in enumerate(table.iterrows()):
        ends = np.sqrt([row["low"], row["high"]])
        axes.barh(place, row["deviation"], color=BLUE, height=0.55)
        axes.plot(ends, [place, place], color=BLACK, linewidth=1.4)
        if row["estimate"] < 0:
            axes.annotate("estimate below 0", (0, place), (4, 9), textcoords="offset points", fontsize=8, color=GREY)
    axes.axvline(alone, color=ORANGE, linestyle="--", label="test patients of one fold alone")
    axes.set_yticks(range(len(table)), list(table.index))
    axes.invert_yaxis()
    axes.set_xlabel("standard deviation of the AUC; lines: 95 % intervals")
    axes.set_xlim(left=0)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    deviations = table["deviation"].to_dict()
    most = max(deviations, key=deviations.__getitem__)
    return titled(drawing, f"The {most} moves the AUC most, by ±{deviations[most]:.3f}")


def searches(found: Mapping[str, Nested]) -> Figure:
    """The AUC of every setting over the test patients, and what the nested search reaches; a row for each data set."""
    drawing, (axes,) = panels(8, 1.6 + 0.7 * len(found))
    for place, one in enumerate(found.values()):
        aucs, first = one.by_setting.to_numpy(), place == 0
        axes.plot(aucs, [place] * len(aucs), "|", color=GREY, markersize=14, label="a setting" if first else None)
        for row, colour, mark, shift in (("not nested", VERMILLION, "^", -0.2), ("nested", GREEN, "s", 0.2)):
            value = tuple(one.table.loc[row])
            _with_reach(axes, value, place + shift, colour, mark, label=row if first else "")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("AUC over all patients, 95 % interval by patient")
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    differences = {name: one.table.to_numpy(float)[-1].tolist() for name, one in found.items()}
    gaps = (f"{name} {figure(value, low, high, signed=True)}" for name, (value, low, high) in differences.items())
    return titled(drawing, f"Choosing the setting on the test patients adds to the AUC: {'; '.join(gaps)}")


def curve(measured: Curve, projected: Projection) -> Figure:
    """The learning curve, its draws, the fitted law with its interval, and how far it is continued towards a target."""
    drawing, (axes,) = panels(8, 4.6)
    table, most = measured.table, measured.sizes[-1]
    axes.plot(measured.sizes, measured.values, color=GREY, linewidth=0.8, alpha=0.7)
    reach = whiskers(table["value"], table["low"], table["high"])
    axes.errorbar(table["patients"], table["value"], reach, fmt="o", color=BLUE, label="measured, 95 % interval")
    end = most * (learning_curve.FARTHEST if projected.verdict == learning_curve.PROJECTED else 1.0)
    if projected.verdict == learning_curve.PROJECTED:
        end = min(end, max(2.0 * most, 1.2 * projected.patients))
    at = np.geomspace(measured.sizes[0], end, 100)
    law = learning_curve.fitted(measured.sizes, measured.values.mean(axis=1)).at(at)[0]
    spread = np.percentile(learning_curve.fitted(measured.sizes, measured.resampled).at(at), [2.5, 97.5], axis=0)
    axes.fill_between(at, *spread, color=BLUE, alpha=0.15, linewidth=0, label="inverse power law, 95 % interval")
    inside = at <= most
    axes.plot(at[inside], law[inside], color=BLUE)
    axes.plot(at[~inside], law[~inside], color=BLUE, linestyle="--")
    axes.axhline(projected.target, color=VERMILLION, linestyle=":", label=f"target {projected.target:.3f}")
    if projected.verdict == learning_curve.PROJECTED:
        axes.plot(projected.patients, projected.target, "*", color=BLACK, markersize=12)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(
        matplotlib.ticker.FixedLocator(sorted({*np.round(measured.sizes).tolist(), float(round(end))}))
    )
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("patients to learn from and to choose on (log)")
    axes.set_ylabel("AUC" if measured.metric == "auc" else measured.metric.replace("_", " "))
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    gained = figure(*measured.gained, signed=True)
    return titled(
        drawing, f"From {measured.sizes[0]:.0f} to {most:.0f} patients the figure gains {gained}; {_short(projected)}"
    )


def _short(projected: Projection) -> str:
    return {
        learning_curve.REACHED: f"{projected.target:.3f} is reached",
        learning_curve.PROJECTED: f"{projected.target:.3f} would take about {projected.patients:,.0f}",
        learning_curve.FAR: f"{projected.target:.3f} is too far to project",
        learning_curve.BELOW: f"{projected.target:.3f} lies above its asymptote, {projected.asymptote[0]:.3f}",
        learning_curve.FLAT: f"nothing says that more would reach {projected.target:.3f}",
    }[projected.verdict]


def _with_reach(axes: Axes, value: tuple[float, ...], place: float, colour: str, mark: str, label: str = "") -> None:
    middle, low, high = value
    reach = whiskers(middle, low, high)
    axes.errorbar([middle], [place], xerr=reach, fmt=mark, color=colour, markersize=6, capsize=3, label=label or None)
