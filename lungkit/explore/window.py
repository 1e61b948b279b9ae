"""The window of one image: what level and width make black, what they make white, and what they show in between.

`view` is for a notebook. What it draws and says comes from plain functions, which need no kernel.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lungkit.data import preprocess
from lungkit.data.image import Image
from lungkit.explore import shown
from lungkit.palette import BLUE, CHOSEN, GREY, WRONG

Window = tuple[float, float]  # level, width: in HU, or in greys 0 to 255

# Level and width in HU, as readers of CT set them (Murphy and Baba, "Windowing (CT)", Radiopaedia,
# https://doi.org/10.53347/rID-52108).
CT: Mapping[str, Window] = {"lung": (-600.0, 1500.0), "mediastinum": (50.0, 350.0), "bone": (400.0, 1800.0)}
AS_STORED: Window = (127.5, 255.0)
MIDDLE = (5, 95)  # percentiles of an image's greys that the preset "middle greys" makes black and white
_LIMITS = {"HU": (-1024, 2000), "intensity": (0, 255)}


@dataclass(frozen=True)
class Scale:
    """The scale on which an image's window is set."""

    unit: str  # "HU", or "of 255"
    values: np.ndarray  # the pixels on it, (height, width)
    low: int
    high: int
    presets: Mapping[str, Window]


def scale(image: Image) -> Scale:
    """Hounsfield units with the usual windows for a CT; greys 0 to 255 for every other image."""
    low, high = _LIMITS[image.units]
    if image.units == "HU":
        return Scale("HU", np.asarray(image.pixels), low, high, CT)
    values = np.asarray(image.pixels, np.float32) * 255
    black, white = (float(value) for value in np.percentile(values, MIDDLE))
    middle = ((black + white) / 2, max(1.0, white - black))
    return Scale("of 255", values, low, high, {"as stored": AS_STORED, "middle greys": middle})


def cut(values: np.ndarray, level: float, width: float) -> tuple[float, float]:
    """The shares (0..1) of the pixels that a window makes black, and white."""
    windowed = preprocess.window_level(values, level, width)
    return float(np.mean(windowed <= 0)), float(np.mean(windowed >= 1))


def sentence(of: Scale, level: float, width: float) -> str:
    """What the window does to this image, in words."""
    black, white = cut(of.values, level, width)
    text = (
        f"From {level - width / 2:g} to {level + width / 2:g} {of.unit}: {black:.0%} of the pixels are black, "
        f"{white:.0%} white, and {1 - black - white:.0%} keep a grey of their own."
    )
    return text.replace("-", "−")


class Drawing:
    """The image through a window, next to the histogram of its values; it is drawn once, and then moved."""

    def __init__(self, of: Scale, level: float, width: float):
        self._scale = of
        self.figure = Figure(figsize=(9, 3.7), layout="constrained")
        picture, histogram = self.figure.subplots(1, 2, width_ratios=(1, 1.5))
        self._picture = picture.imshow(preprocess.window_level(of.values, level, width), cmap="gray", vmin=0, vmax=1)
        picture.set_axis_off()
        histogram.hist(np.ravel(of.values), bins=120, range=(of.low, of.high), color=BLUE, histtype="stepfilled")
        histogram.set(
            yscale="log",
            xlim=(of.low, of.high),
            xlabel={"HU": "HU"}.get(of.unit, "grey, 0 to 255"),
            ylabel="pixels (log)",
        )
        histogram.xaxis.set_major_locator(MaxNLocator(7))
        histogram.spines[["top", "right"]].set_visible(False)
        self._black = histogram.axvspan(of.low, of.high, color=CHOSEN, alpha=0.22, linewidth=0, label="becomes black")
        self._white = histogram.axvspan(of.low, of.high, color=GREY, alpha=0.15, linewidth=0, label="becomes white")
        self._level = histogram.axvline(level, color=WRONG, linestyle="--", linewidth=1.2, label="level")
        histogram.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8)
        self.move(level, width)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")  # laid out once: a slider's picture must come at once

    def move(self, level: float, width: float) -> None:
        """Draw another window."""
        of, low, high = self._scale, level - width / 2, level + width / 2
        self._picture.set_data(preprocess.window_level(of.values, level, width))
        self._black.set(x=of.low, width=max(0, low - of.low))
        self._white.set(x=min(high, of.high), width=max(0, of.high - high))
        self._level.set_xdata([level, level])
        self.figure.suptitle(sentence(of, level, width), fontsize=10, fontweight="bold")

    def png(self) -> bytes:
        """As it is now; without the tight frame of `shown.png`, which draws everything twice."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


class View:
    """Sliders for level and width, and buttons for the presets of an image.

    level, width: the sliders, integers on the image's scale. presets: the buttons; none is chosen once a slider moved.
    picture: PNG of `Drawing`. `box` holds them all.
    """

    def __init__(self, image: Image, first: str = ""):
        self._scale = scale(image)
        names = list(self._scale.presets)
        level, width = self._scale.presets[first or names[0]]
        span = self._scale.high - self._scale.low
        wide = {"style": {"description_width": "4rem"}, "layout": {"width": "32rem"}}
        self.level = ipywidgets.IntSlider(round(level), self._scale.low, self._scale.high, description="level", **wide)
        self.width = ipywidgets.IntSlider(round(width), 1, span, description="width", **wide)
        self.presets = ipywidgets.ToggleButtons(options=names, value=first or names[0])
        self.drawing = Drawing(self._scale, level, width)
        self.picture = ipywidgets.Image(value=self.drawing.png(), format="png")
        self.picture.alt = sentence(self._scale, level, width)
        self.box = ipywidgets.VBox([self.presets, self.level, self.width, self.picture])
        self._moving = False
        self.presets.observe(self._choose, "value")
        for slider in (self.level, self.width):
            slider.observe(self._moved, "value")

    def _choose(self, change: Mapping[str, str]) -> None:
        """Set both sliders to a preset, and draw once."""
        if change["new"] is None or self._moving:
            return
        self._moving = True
        self.level.value, self.width.value = self._rounded(change["new"])
        self._moving = False
        self._redraw()

    def _moved(self, _change: object) -> None:
        """Draw what the sliders say, and name the preset that they happen to be at."""
        if self._moving:
            return
        self._moving = True
        at = (self.level.value, self.width.value)
        self.presets.value = next((name for name in self._scale.presets if self._rounded(name) == at), None)
        self._moving = False
        self._redraw()

    def _rounded(self, preset: str) -> tuple[int, int]:
        level, width = self._scale.presets[preset]
        return round(level), round(width)

    def _redraw(self) -> None:
        self.drawing.move(self.level.value, self.width.value)
        self.picture.value = self.drawing.png()
        self.picture.alt = sentence(self._scale, self.level.value, self.width.value)


def view(image: Image, first: str = "") -> None:
    """Show the sliders where a kernel runs, and elsewhere a still picture of the image through its first window.

    first: the preset to begin with; default: "lung" for a CT, and "as stored" for every other image.
    """
    made = View(image, first)
    what = f"An image through a window that can be moved. {sentence(made._scale, made.level.value, made.width.value)}"
    shown.show(made.box, made.drawing.figure, what)
