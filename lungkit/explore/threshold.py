"""A threshold to move: what it does to the decisions on a test, and to patients among whom the disease is rarer.

The class is set against the rest: an image is called positive from the threshold on. Sensitivity and specificity do not
depend on how common the class is, predictive values do (Altman and Bland, "Predictive values", BMJ 1994). So their
figures for another prevalence follow from Bayes' theorem, if its patients are like those of the test in all else.
"""

import io
import textwrap
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import ipywidgets
import numpy as np
import PIL.Image
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Transform

from lungkit import wording
from lungkit.errors import LungkitError
from lungkit.explore import shown
from lungkit.palette import BLACK, BLUE, GREY
from lungkit.training.evaluation import Evaluation, mean_with_interval

Interval = tuple[float, float, float]  # value, low, high
PREVALENCES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
WHAT = "A threshold to move, with the confusion matrix, the point on the ROC curve and the predictive values."


# --- what a threshold does


@dataclass(frozen=True)
class Decided:
    """One class against the rest at a threshold: images by outcome, shares with their 95 % intervals by patient."""

    found: int
    missed: int
    alarms: int  # of the rest, called positive
    cleared: int
    sensitivity: Interval
    specificity: Interval

    def predictive_values(self, prevalence: float) -> tuple[Interval, Interval]:
        """PPV and NPV where this share of the patients has the class, 0 < prevalence < 1; NaN where nothing is called.

        Low: sensitivity and specificity both at the lower ends of their intervals; high: both at the upper ends. Both
        values rise with both, so this holds the true one at least as often as both intervals hold theirs: 90 %.
        """
        if not 0 < prevalence < 1:
            raise LungkitError(f"the prevalence is {prevalence:g}; accepted: above 0 and below 1")
        ends = [_predictive(*pair, prevalence) for pair in zip(self.sensitivity, self.specificity, strict=True)]
        (ppv, npv), low, high = ends
        return (ppv, low[0], high[0]), (npv, low[1], high[1])

    def among(self, patients: int, prevalence: float) -> dict[str, float]:
        """How many of so many patients are found, missed, and called without having the class; fractions are kept."""
        sick = patients * prevalence
        return {
            "sick": sick,
            "found": sick * self.sensitivity[0],
            "missed": sick * (1 - self.sensitivity[0]),
            "alarms": (patients - sick) * (1 - self.specificity[0]),
        }


def _predictive(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    found, alarms = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    missed, cleared = prevalence * (1 - sensitivity), (1 - prevalence) * specificity
    return _share(found, alarms), _share(cleared, missed)


def _share(right: float, wrong: float) -> float:
    return right / (right + wrong) if right + wrong > 0 else np.nan


def decided(measured: Evaluation, cls: str, threshold: float) -> Decided:
    """What calling `cls` from this probability on does. LungkitError where the class has no image, or the rest none."""
    positive = _positive(measured, cls)
    called = measured.probabilities[:, measured.classes.index(cls)] >= threshold
    sensitivity, specificity = (
        mean_with_interval(right, measured.patients[of], share=True, sources=measured.sources[of])
        for of, right in ((positive, called[positive]), (~positive, ~called[~positive]))
    )
    found, alarms = int(called[positive].sum()), int(called[~positive].sum())
    there = int(positive.sum())
    return Decided(found, there - found, alarms, len(called) - there - alarms, sensitivity, specificity)


def _positive(measured: Evaluation, cls: str) -> np.ndarray:
    if cls not in measured.classes:
        raise LungkitError(f"no class '{cls}'; there are: {', '.join(measured.classes)}")
    positive = measured.true == measured.classes.index(cls)
    if positive.all() or not positive.any():
        raise LungkitError(f"all or none of the images are of class '{cls}'; a threshold needs both")
    return positive


def chosen(measured: Evaluation, cls: str) -> float:
    """The version's own threshold, where it has one and it is of this class; else 0.5."""
    rule = measured.rule
    return rule.threshold if rule.threshold is not None and cls == measured.classes[-1] else 0.5


def offered(measured: Evaluation) -> list[str]:
    """The classes that can be set against the rest; the last one first, which of two classes is the disease."""
    there = [cls for i, cls in enumerate(measured.classes) if 0 < np.mean(measured.true == i) < 1]
    return there[::-1]


def says(of: Decided, cls: str, prevalence: float) -> str:
    """What the threshold means for 1,000 patients, in a sentence or two."""
    one = of.among(1000, prevalence)
    sent = one["found"] + one["alarms"]
    cost = f", {sent / one['found']:.1f} for each one found" if one["found"] else ""
    return (
        f"Of 1,000 patients, {one['sick']:.0f} with {cls}: {one['found']:.1f} found, {one['missed']:.1f} missed. "
        f"{sent:.0f} are sent to a person{cost}."
    )


# --- the picture


class Picture:
    """The picture for one class. Only what moves is drawn again: a slider asks for many pictures a second."""

    def __init__(self, measured: Evaluation, cls: str):
        self.measured, self.cls = measured, cls
        self.figure = Figure(figsize=(10, 3.7), dpi=100)
        self._canvas, self._moving = FigureCanvasAgg(self.figure), list[tuple[Axes, Artist]]()
        self._matrix, self._curve, self._values = self.figure.subplots(1, 3, width_ratios=(1, 1.15, 1.15))
        self.figure.subplots_adjust(left=0.075, right=0.985, bottom=0.15, top=0.76, wspace=0.33)
        self._draw_matrix()
        self._draw_curve()
        self._draw_values()
        self._headline = self._text(
            self._matrix, 0.01, 0.99, self.figure.transFigure, va="top", weight="bold", fontsize=9
        )

    def _draw_matrix(self) -> None:
        axes, classes = self._matrix, self.measured.classes
        self._shares = axes.imshow(np.zeros((2, 2)), cmap="Blues", vmin=0, vmax=1, aspect="auto", animated=True)
        self._moving.append((axes, self._shares))
        self._cells = [self._text(axes, x, y, axes.transData, ha="center", va="center") for y in (0, 1) for x in (0, 1)]
        rest = f"not {self.cls}" if len(classes) > 2 else classes[1 - classes.index(self.cls)]
        axes.set_xticks([0, 1], ["not called", "called"])
        axes.set_yticks([0, 1], [_short(rest), _short(self.cls)], rotation=90, va="center")
        axes.set_title("images, by true class")

    def _draw_curve(self) -> None:
        axes, roc, band = self._curve, self.measured.roc(self.cls), self.measured.roc_band(self.cls)
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
        axes.fill_between(*band.to_numpy().T, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(roc["fpr"], roc["tpr"], color=BLUE)
        self._point = self._line(axes, "o", color=BLACK, markersize=8, zorder=5)
        self._rates = self._text(axes, 0, 1.03, axes.transAxes, fontsize=10)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity", ylabel="sensitivity")

    def _draw_values(self) -> None:
        axes = self._values
        self._dots = self._line(axes, "o", color=BLUE, markersize=7)
        self._bars = [self._line(axes, "-", color=BLUE) for _ in range(2)]
        self._told = [self._text(axes, 0.5, y + 0.14, axes.transData, ha="center") for y in (1, 0)]
        self._where = self._text(axes, 0, 1.03, axes.transAxes, fontsize=10)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.5, 1.5), xlabel="share of these answers that are right")
        axes.set_yticks([1, 0], ["PPV", "NPV"])

    def _text(self, axes: Axes, x: float, y: float, transform: Transform, **style: Any) -> Text:
        text = axes.text(x, y, "", transform=transform, animated=True, **style)
        self._moving.append((axes, text))
        return text

    def _line(self, axes: Axes, form: str, **style: Any) -> Line2D:
        (line,) = axes.plot([], [], form, animated=True, **style)
        self._moving.append((axes, line))
        return line

    def moved(self, threshold: float, prevalence: float) -> Figure:
        """The figure, at this threshold and prevalence."""
        of = decided(self.measured, self.cls, threshold)
        self._move_matrix(of)
        self._point.set_data([1 - of.specificity[0]], [of.sensitivity[0]])
        told = [wording.figure(*each) for each in (of.sensitivity, of.specificity)]
        self._rates.set_text(f"sensitivity {told[0]}\nspecificity {told[1]}")
        self._move_values(of, prevalence)
        headline = f"Called from {threshold:.3f} on. {says(of, self.cls, prevalence)}"
        self._headline.set_text(textwrap.fill(headline, 105))  # what the figure's width holds
        return self.figure

    def _move_matrix(self, of: Decided) -> None:
        counts = np.array([[of.cleared, of.alarms], [of.missed, of.found]])
        shares = counts / counts.sum(axis=1, keepdims=True)
        self._shares.set_data(shares)
        for text, count, share in zip(self._cells, counts.flat, shares.flat, strict=True):
            text.set(text=f"{count:,}\n{100 * share:.0f} %", color="white" if share > 0.5 else BLACK)

    def _move_values(self, of: Decided, prevalence: float) -> None:
        both = of.predictive_values(prevalence)
        self._dots.set_data([value for value, *_ in both], [1, 0])
        for y, bar, text, value in zip((1, 0), self._bars, self._told, both, strict=True):
            bar.set_data(value[1:], [y, y])
            text.set_text(wording.figure(*value))
        self._where.set_text(f"where {100 * prevalence:.3g} % have {_short(self.cls)}")

    def png(self, threshold: float, prevalence: float) -> bytes:
        """The same as PNG, in some tens of milliseconds."""
        self.moved(threshold, prevalence)
        self._canvas.restore_region(self._still)
        for axes, artist in self._moving:
            axes.draw_artist(artist)
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.asarray(self._canvas.buffer_rgba())).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    @cached_property
    def _still(self) -> Any:
        """What does not move, drawn."""
        self._canvas.draw()
        return self._canvas.copy_from_bbox(self.figure.bbox)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


# --- the widget


class Explorer(ipywidgets.VBox):
    """Sliders for the threshold and the prevalence, of more than two classes a choice of the class, and the picture."""

    def __init__(self, measured: Evaluation):
        classes = offered(measured)
        if not classes:
            raise LungkitError("all images are of one class: a threshold needs images of at least two")
        self.measured, self._picture = measured, cache(lambda cls: Picture(measured, cls))
        self.cls = ipywidgets.Dropdown(options=classes, description="class")
        self.threshold = ipywidgets.FloatSlider(
            chosen(measured, classes[0]), min=0, max=1, step=0.005, description="threshold", readout_format=".3f"
        )
        here = float(np.mean(measured.true == measured.classes.index(classes[0])))
        options = [(f"{100 * share:.3g} %", share) for share in sorted({*PREVALENCES, here})]
        self.prevalence = ipywidgets.SelectionSlider(options=options, value=here, description="prevalence")
        self.image = ipywidgets.Image(format="png")
        controls = [self.threshold, self.prevalence] if len(measured.classes) == 2 else None
        super().__init__([ipywidgets.HBox(controls or [self.cls, self.threshold, self.prevalence]), self.image])
        for control in (self.cls, self.threshold, self.prevalence):
            control.observe(self._moved, names="value")
        self._moved()

    def figure(self) -> Figure:
        """The picture as the sliders stand."""
        return self._picture(self.cls.value).moved(self.threshold.value, self.prevalence.value)

    def _moved(self, _: Any = None) -> None:
        self.image.value = self._picture(self.cls.value).png(self.threshold.value, self.prevalence.value)


def show(measured: Evaluation) -> None:
    """Display the sliders for a test's answers, or the picture at the operating point where no kernel runs."""
    explorer = Explorer(measured)
    shown.show(explorer, explorer.figure(), WHAT)
