"""One image with a heat map over it; zoom, window, measures and overlay work in the browser, without the kernel."""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from lungkit import palette
from lungkit.clinic.app.page import WARNING
from lungkit.models.class_names import class_names


def module(name: str) -> str:
    """A script of a viewer, with what all of them share before it: a module of one file, as widgets need it."""
    parts = ("panes.js", "tools.js", name)
    return "".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in parts)


class Viewer(anywidget.AnyWidget):
    """The image, the heat map of a selected class over it, and tools: zoom, window, turns, measures, full screen.

    pixels: float32 (height, width), HU or intensity 0..1, sent to the browser once as int16 or uint8.
    heat: float32 (classes, rows, columns), 0..1, over the whole image in its aspect; None: the image alone, without
    classes. selected: the class whose heat map is shown first. label: what the image is, for screen readers.
    spacing: mm between rows and between columns of `pixels`, None where they are not known; measured: what to say after
    a measure in mm, such as "at the detector". linked: whether zoom, place and window follow other linked images on the
    page. caption: whose image it is, which the full screen shows. The browser sends nothing back.
    """

    _esm = module("viewer.js")

    pixels = traitlets.Bytes().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    units = traitlets.Enum(("HU", "intensity")).tag(sync=True)
    heat = traitlets.Bytes().tag(sync=True)
    heat_width = traitlets.Int().tag(sync=True)
    heat_height = traitlets.Int().tag(sync=True)
    classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    selected = traitlets.Int().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    spacing = traitlets.List(traitlets.Float()).tag(sync=True)
    measured = traitlets.Unicode().tag(sync=True)
    linked = traitlets.Bool().tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    warning = traitlets.Unicode(WARNING).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode(), list(palette.HEAT)).tag(sync=True)

    def __init__(
        self,
        pixels: np.ndarray,
        units: str,
        heat: np.ndarray | None,
        classes: Sequence[str],
        selected: str,
        label: str,
        spacing: tuple[float, float] | None = None,
        measured: str = "",
        linked: bool = False,
        caption: str = "",
    ):
        if heat is None:
            heat, classes = np.zeros((0, 1, 1), np.float32), ()
        super().__init__(
            pixels=_display(pixels, units).tobytes(),
            width=pixels.shape[1],
            height=pixels.shape[0],
            units=units,
            heat=np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8).tobytes(),
            heat_width=heat.shape[2],
            heat_height=heat.shape[1],
            classes=list(class_names(classes)),
            selected=list(classes).index(selected) if classes else -1,
            label=label,
            spacing=list(spacing or ()),
            measured=measured,
            linked=linked,
            caption=caption,
        )
        self.add_class("clinic-viewer")

    def close(self) -> None:
        """Close it and free the image at once, not at the next garbage collection."""
        super().close()
        self.pixels = self.heat = b""


def _display(pixels: np.ndarray, units: str) -> np.ndarray:
    """What is sent: little-endian int16 of HU, or uint8 of an intensity."""
    if units == "HU":
        return np.asarray(np.rint(np.clip(pixels, -32768, 32767)), "<i2")
    grey = np.multiply(pixels, 255, dtype=np.float32)
    grey += 0.5
    return np.asarray(np.clip(grey, 0, 255, out=grey), np.uint8)
