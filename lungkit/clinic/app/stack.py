"""A CT series as a stack of slices, with the planes across it; the browser fetches slices from the clinic's server.

The kernel sends what was said of each slice and the heat maps of those that decide; pixels do not pass through it.
"""

from collections.abc import Sequence
from typing import Any

import anywidget
import numpy as np
import traitlets

from lungkit import palette
from lungkit.clinic.app.page import WARNING
from lungkit.clinic.app.viewer import module
from lungkit.clinic.records.stacks import CaseSeries, Stack
from lungkit.data.dicom import AIR
from lungkit.models.class_names import class_name, class_names, other_than


class StackViewer(anywidget.AnyWidget):
    """The stack, a strip with the probability of each slice that was read, and the planes across the stack.

    series: with its reading, or only the slices: then the strip shows where they are and nothing else.
    classes: in the order of the heat maps. planes: whether to draw the other planes, where the series allows it.
    linked: whether it scrolls by as many mm as other linked ones on the page, and shares zoom, place and window with
    them. label: what it is, for screen readers. caption: whose images they are, which the full screen shows.
    The browser sends nothing back; it asks the server for slices (handlers.SliceHandler).
    """

    _esm = module("stack.js")

    reading_id = traitlets.Unicode().tag(sync=True)
    air = traitlets.Int(int(AIR)).tag(sync=True)  # HU of the stored value 0
    size = traitlets.List(traitlets.Int()).tag(sync=True)  # height, width
    spacing = traitlets.List(traitlets.Float(allow_none=True)).tag(sync=True)
    positions = traitlets.List(traitlets.Float()).tag(sync=True)
    orientation = traitlets.List(traitlets.Float()).tag(sync=True)
    read = traitlets.List(traitlets.List()).tag(sync=True)  # of each slice: number, probability of `named`, label
    carrying = traitlets.List(traitlets.Int()).tag(sync=True)  # places in `read`
    key = traitlets.Int().tag(sync=True)  # number of the slice that is shown first
    named = traitlets.Unicode().tag(sync=True)  # what the strip is about, such as a class
    selected = traitlets.Int().tag(sync=True)  # whose heat map is shown first
    heat = traitlets.Bytes().tag(sync=True)
    heat_size = traitlets.List(traitlets.Int()).tag(sync=True)
    classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    planes = traitlets.Bool().tag(sync=True)
    linked = traitlets.Bool().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    warning = traitlets.Unicode(WARNING).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode(), list(palette.HEAT)).tag(sync=True)

    def __init__(
        self,
        series: Stack,
        size: tuple[int, int],
        classes: Sequence[str],
        label: str,
        planes: bool = True,
        linked: bool = False,
        caption: str = "",
    ):
        super().__init__(
            **_said(series, classes),
            reading_id=series.reading_id,
            size=list(size),
            spacing=list(series.spacing),
            positions=list(series.positions),
            orientation=list(series.orientation),
            planes=planes and series.straight,
            linked=linked,
            label=label,
            caption=caption,
        )
        self.add_class("clinic-stack")

    def close(self) -> None:
        """Close it and free the heat maps at once."""
        super().close()
        self.heat = b""


def _said(series: Stack, classes: Sequence[str]) -> dict[str, Any]:
    """What a model said of the slices; of a series without its reading nothing, and the middle slice comes first."""
    if not isinstance(series, CaseSeries):
        return {"read": [], "carrying": [], "key": series.slices // 2, "named": "", "selected": -1, "heat": b"",
                "heat_size": [1, 1], "classes": []}  # fmt: skip
    return {
        "read": [[one.number, series.chance(one), class_name(one.label)] for one in series.read],
        "carrying": list(series.carrying),
        "key": series.key.number,
        "named": other_than(series.absent) if series.label == series.absent else class_name(series.label),
        "selected": list(classes).index(series.label),
        "heat": np.rint(np.clip(series.heat, 0, 1) * 255).astype(np.uint8).tobytes(),
        "heat_size": list(series.heat.shape[2:]),
        "classes": list(class_names(classes)),
    }
