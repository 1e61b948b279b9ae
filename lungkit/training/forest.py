"""Forest plot: differences in AUC with their intervals, one under the other, and what each of them shows."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lungkit import wording
from lungkit.palette import BLACK, BLUE, GREY, SKY, VERMILLION
from lungkit.training.paired import BETTER, IDENTICAL, NOT_WORSE, OPEN, UNDEFINED, WORSE, Pair

MOST = 40  # rows that can be read on one page
# Shape and colour both say the verdict.
_MARKS = {
    BETTER: ("^", BLUE),
    NOT_WORSE: ("s", BLACK),
    WORSE: ("v", VERMILLION),
    OPEN: ("o", GREY),
    IDENTICAL: ("D", BLACK),
}


def forest(pairs: Sequence[Pair]) -> Figure:
    """Each pair on each source in a row: the difference in AUC, its 95 % interval by patient, and the verdict.

    The shaded zone is a loss within the margin, which does not count as worse. Of more than MOST rows the first are
    drawn, and the title says so.
    """
    shown = pairs[:MOST]
    figure = Figure(figsize=(9, min(8, 1.5 + 0.38 * len(shown))), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))[::-1]  # the first on top
    size = 8 if len(shown) <= 20 else 6
    axes.axvspan(-shown[0].margin, 0, color=SKY, alpha=0.25, linewidth=0, label="loss within the margin")
    axes.axvline(0, color=GREY, linewidth=1)
    for place, pair in zip(places, shown, strict=True):
        _row(axes, place, pair, size)
    axes.set_yticks(places, [_label(pair, pairs) for pair in shown], fontsize=size)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("difference in AUC (right of 0: better than the reference), 95 % interval by patient")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", frameon=False, fontsize=8)
    figure.suptitle(_message(pairs), x=0.01, ha="left", wrap=True)
    return figure


def _row(axes: Axes, place: float, pair: Pair, size: int) -> None:
    value, low, high = pair.auc
    text = pair.verdict
    if pair.verdict != UNDEFINED:
        marker, color = _MARKS[pair.verdict]
        reach = None if pair.verdict == IDENTICAL else [[value - low], [high - value]]
        axes.errorbar(value, place, xerr=reach, fmt=marker, color=color, capsize=3, markersize=6)
        text = f"{wording.figure(*pair.auc, signed=True)}  {pair.verdict}"
    beyond = axes.get_yaxis_transform()  # 0 and 1: the ends of the axes
    axes.text(1.02, place, text, transform=beyond, va="center", fontsize=size, clip_on=False)


def _label(pair: Pair, pairs: Sequence[Pair]) -> str:
    """The models where there are several pairs, and the source where there are several."""
    models, sources = ({of.names for of in pairs}, {of.source for of in pairs})
    named = f"{pair.names[1]} against {pair.names[0]}"
    if len(models) == 1:
        return pair.source
    return f"{named}\n{pair.source}" if len(sources) > 1 else named


def _message(pairs: Sequence[Pair]) -> str:
    words = [pair.verdict for pair in pairs]
    if len(pairs) == 1:
        by = "" if words[0] == IDENTICAL else f", by a margin of {pairs[0].margin:g}"
        return f"{pairs[0].names[1]} against {pairs[0].names[0]}: {words[0]}{by}"
    counts = [f"{words.count(word)} {word}" for word in (*_MARKS, UNDEFINED) if word in words]
    some = f"; the first {MOST} of them" if len(pairs) > MOST else ""
    return f"Of {len(pairs)} differences in AUC: {', '.join(counts)} (margin {pairs[0].margin:g}){some}"
