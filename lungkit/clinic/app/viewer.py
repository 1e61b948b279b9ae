"""One image with a heat map over it; zoom, window and overlay work in the browser, without the kernel."""

from collections.abc import Sequence
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from lungkit import palette


def module(name: str) -> str:
    """A script of a viewer, with what all of them share before it: a module of one file, as widgets need it."""
    return "".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in ("panes.js", name))


class Viewer(anywidget.AnyWidget):
    """The image, the heat map of a selected class over it, zoom, and level and width for CT.

    pixels: float32 (height, width), HU or intensity 0..1, sent to the browser once as int16 or uint8.
    heat: float32 (classes, rows, columns), 0..1, over the whole image in its aspect; None: the image alone, without
    classes. selected: the class whose heat map is shown first. label: what the image is, for screen readers.
    The browser sends nothing back.
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
    colours = traitlets.List(traitlets.Unicode(), list(palette.HEAT)).tag(sync=True)

    def __init__(
        self,
        pixels: np.ndarray,
        units: str,
        heat: np.ndarray | None,
        classes: Sequence[str],
        selected: str,
        label: str,
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
            classes=list(classes),
            selected=list(classes).index(selected) if classes else -1,
            label=label,
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
