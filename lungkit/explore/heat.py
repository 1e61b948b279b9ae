"""Heat maps to page through: each image alone and under the map of a class, at the opacity that the reader chooses."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
import PIL.Image
import scipy.ndimage
from matplotlib.figure import Figure

from lungkit import palette
from lungkit.data import overlay
from lungkit.errors import LungkitError
from lungkit.explore import shown
from lungkit.training import plots

SIDE = 384  # pixels of the longer side of each picture
GAP = 8  # pixels between the two
WHAT = "Images next to their heat maps, with a choice of the class, the opacity and the image."


@dataclass(frozen=True, eq=False)
class Maps:
    """Images with a heat map of each class."""

    images: np.ndarray  # (n, height, width), 0..1
    heat: np.ndarray  # (n, classes, height, width), 0..1
    masks: np.ndarray  # bool (n, height, width); empty without a lesion
    classes: Sequence[str]
    titles: Sequence[str]  # of each image
    predicted: np.ndarray  # (n,), positions in `classes`

    def __post_init__(self) -> None:
        n, size = len(self.images), self.images.shape[1:]
        wanted = {"heat": (n, len(self.classes), *size), "masks": (n, *size), "titles": (n,), "predicted": (n,)}
        given = {name: np.shape(getattr(self, name)) for name in wanted}
        if not n or given != wanted:
            raise LungkitError(f"{n} images of {size} have {given}; accepted: one image or more, and {wanted}")


def picture(maps: Maps, image: int, cls: int, opacity: float) -> np.ndarray:
    """uint8 (height, width, 3): an image, and to its right the same under the heat of a class, its lesion outlined.

    opacity: 0..1, of the hottest place; none where there is no heat.
    """
    grey, mask = (_enlarged(of[image].astype(np.float32)) for of in (maps.images, maps.masks))
    heat = _enlarged(maps.heat[image, cls])
    plain = np.repeat(grey[..., None], 3, axis=2)
    over = plain + (overlay.overlay(grey, heat) - plain) * (opacity / overlay.OPACITY)
    over[_outline(mask > 0.5)] = np.array(palette.rgb(palette.SKY)) / 255
    gap = np.ones((len(plain), GAP, 3))
    both = np.concatenate([plain, gap, over], axis=1)
    return np.asarray(np.rint(255 * np.clip(both, 0, 1)), np.uint8)


def _enlarged(values: np.ndarray) -> np.ndarray:
    height, width = values.shape
    factor = SIDE / max(height, width)
    return overlay.resized(values, (round(width * factor), round(height * factor)))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Two pixels along the inner edge of a mask."""
    return np.asarray(mask & ~scipy.ndimage.binary_erosion(mask, iterations=2))


def says(maps: Maps, image: int, cls: int) -> str:
    """What the picture shows, and, of an image with a lesion, how much of the heat lies in it."""
    mask, heat = maps.masks[image].astype(bool), maps.heat[image, cls]
    text = f"Image {image + 1} of {len(maps.images)}, {maps.titles[image]}: heat for {maps.classes[cls]}"
    if not heat.any():
        return f"{text} is nowhere, nothing in the image supports it."
    if not mask.any():
        return f"{text}; no lesion is marked."
    inside = heat[mask].sum() / heat.sum()
    return f"{text}; {100 * inside:.0f} % of it lies in the lesion, which is {100 * mask.mean():.0f} % of the image."


class Viewer(ipywidgets.VBox):
    """Buttons for the image, a choice of the class, a slider for the opacity, and the picture."""

    def __init__(self, maps: Maps):
        self.maps = maps
        self.number = ipywidgets.IntSlider(0, min=0, max=len(maps.images) - 1, description="image", readout=False)
        self.cls = ipywidgets.Dropdown(options=list(maps.classes), description="class")
        self.opacity = ipywidgets.FloatSlider(overlay.OPACITY, min=0, max=1, step=0.05, description="opacity")
        self.previous, self.next = (ipywidgets.Button(description=name) for name in ("previous", "next"))
        self.text, self.image = ipywidgets.Label(), ipywidgets.Image(format="png")
        turning = ipywidgets.HBox([self.previous, self.next, self.number])
        super().__init__([turning, ipywidgets.HBox([self.cls, self.opacity]), self.text, self.image])
        self.previous.on_click(lambda _: self.turn(-1))
        self.next.on_click(lambda _: self.turn(1))
        self.number.observe(self._turned, names="value")
        for control in (self.cls, self.opacity):
            control.observe(self._moved, names="value")
        self._turned()

    def turn(self, by: int) -> None:
        """Show another image; after the last comes the first."""
        self.number.value = (self.number.value + by) % len(self.maps.images)

    def figure(self) -> Figure:
        """A still picture of the same."""
        image, cls = self.number.value, self.cls.index
        one = slice(image, image + 1)
        title = says(self.maps, image, cls)
        return plots.overlay_grid(self.maps.images[one], self.maps.heat[one, cls], self.maps.masks[one], title=title)

    def _turned(self, _: Any = None) -> None:
        """Begin each image with the class that is predicted."""
        self.cls.index = int(self.maps.predicted[self.number.value])
        self._moved()

    def _moved(self, _: Any = None) -> None:
        self.text.value = says(self.maps, self.number.value, self.cls.index)
        pixels = picture(self.maps, self.number.value, self.cls.index, self.opacity.value)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        self.image.value = buffer.getvalue()


def show(maps: Maps) -> None:
    """Display the viewer, or a still picture of the first image where no kernel runs."""
    viewer = Viewer(maps)
    shown.show(viewer, viewer.figure(), WHAT)
