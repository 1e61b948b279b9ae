"""A browser of errors and suspected labels: one image at a time, with what a person decides about it.

Every click writes the whole of decisions.csv in one step, so nothing is lost with the kernel. What comes from the page
is checked here: an image is one of the list that the kernel keeps, a label is a class of the set, and words become one
line. The file of another person who decides at the same time is read before each click, and never overwritten blindly.
"""

import html
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib as mpl
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.figure import Figure

from lungkit import files
from lungkit.data import decisions, preprocess
from lungkit.data.decisions import Decision
from lungkit.data.notes import alike
from lungkit.errors import LungkitError
from lungkit.models import graph
from lungkit.training import errors, plots
from lungkit.training.embedding_map import Embedded, neighbours
from lungkit.wording import count, percent

ALL, SUSPECTED, ERRORS = SHOWN = ("all images", "suspected labels", "wrong answers")
_EVERY = "every"
_FLATTERS = "also change test images (their figures will flatter)"


class ErrorBrowser:
    """Goes through a table of errors.to_look_at and writes decisions; `widget` is what a notebook shows.

    file: where decisions are written. before: decisions to begin with, as load_split takes them, until the file exists.
    """

    def __init__(self, embedded: Embedded, table: pd.DataFrame, file: Path, before: str | Path | None = None):
        self.embedded, self.table, self.file = embedded, table, Path(file)
        self._before = decisions.find(before).rows if before else ()
        self._at, self._list = 0, table
        self._runtime: graph.Graph | None = None  # made when the first heat map is asked for
        self._make(embedded.data.classes)
        self._filter()

    # --- the parts of the page

    def _make(self, classes: tuple[str, ...]) -> None:
        wrong = [
            name for name, some in ((SUSPECTED, self.table["suspected"]), (ERRORS, self.table["error"])) if some.any()
        ]
        self.show = ipywidgets.Dropdown(options=[*wrong, ALL], description="show")
        self.label = ipywidgets.Dropdown(options=[_EVERY, *classes], description="label")
        self.part = ipywidgets.Dropdown(options=[_EVERY, *sorted(set(self.table["part"]))], description="part")
        self.most = ipywidgets.FloatSlider(
            1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            description="label's probability at most",
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "28em"},
        )
        self.heat = ipywidgets.Checkbox(description="heat map of the other class", indent=False)
        self.back, self.next = (ipywidgets.Button(description=text) for text in ("◀ before", "next ▶"))
        self.keep = ipywidgets.Button(description="Keep", tooltip="the label is right")
        self.exclude = ipywidgets.Button(description="Exclude", button_style="warning")
        self.relabel = ipywidgets.Button(description="Relabel to", button_style="warning")
        self.undo = ipywidgets.Button(description="Take back")
        self.other = ipywidgets.Dropdown(options=classes)
        self.reason = ipywidgets.Text(placeholder="reason, for the report", layout={"width": "24em"})
        self.by = ipywidgets.Text(placeholder="who decides", layout={"width": "12em"})
        self.test_too = ipywidgets.Checkbox(description=_FLATTERS, indent=False, layout={"width": "auto"})
        self.image = ipywidgets.Image(format="png", layout={"width": "384px"})
        self.near = ipywidgets.Image(format="png", layout={"max_width": "576px"})
        self.about, self.nearest, self.status = (ipywidgets.HTML() for _ in range(3))
        for part in (self.show, self.label, self.part, self.most):
            part.observe(self._filter, "value")
        self.heat.observe(self._draw, "value")
        self.back.on_click(lambda _: self.move(-1))
        self.next.on_click(lambda _: self.move(1))
        for button, kind in ((self.keep, decisions.KEEP), (self.exclude, decisions.EXCLUDE)):
            button.on_click(partial(self._clicked, kind))
        self.relabel.on_click(partial(self._clicked, decisions.RELABEL))
        self.undo.on_click(partial(self._clicked, ""))
        row, wrap = ipywidgets.HBox, {"flex_flow": "row wrap", "align_items": "flex-start"}
        self.widget = ipywidgets.VBox([
            row([self.show, self.label, self.part, self.most], layout=wrap),
            row([self.back, self.next, self.heat]),
            self.about,
            row([self.image, ipywidgets.VBox([self.nearest, self.near])], layout=wrap),
            row([self.keep, self.exclude, self.relabel, self.other, self.undo], layout=wrap),
            row([self.reason, self.by, self.test_too], layout=wrap),
            self.status,
        ])  # fmt: skip

    def still(self) -> Figure:
        """The images with the least probable labels and their neighbours, for pages without a kernel."""
        title = "The labels that are least probable by the heads of other patients"
        return plots.neighbour_grid(*errors.panels(self.table, self.embedded, first=4), title)

    # --- which image

    @property
    def current(self) -> pd.Series | None:
        """The row of the table that is shown; None where the filters leave no image."""
        return self._list.iloc[self._at] if len(self._list) else None

    def move(self, step: int) -> None:
        """Show the next image (1) or the one before (-1)."""
        self._at = int(np.clip(self._at + step, 0, max(0, len(self._list) - 1)))
        self._draw()

    def _filter(self, *_: Any) -> None:
        rows = self.table[self.table["of_label"] <= self.most.value]
        if self.show.value != ALL:
            rows = rows[rows["suspected" if self.show.value == SUSPECTED else "error"]]
        for part, column in ((self.label, "label"), (self.part, "part")):
            rows = rows if part.value == _EVERY else rows[rows[column] == part.value]
        self._list, self._at = rows, 0
        self._draw()

    # --- drawing

    def _draw(self, *_: Any) -> None:
        row = self.current
        empty = row is None
        for part in (self.keep, self.exclude, self.relabel, self.undo, self.back, self.next):
            part.disabled = empty
        self.image.layout.display = self.near.layout.display = "none" if empty else ""
        if row is None:
            self.about.value, self.status.value = "No image is left by these filters.", ""
            return
        self.about.value = self._words(row)
        (place,) = self.embedded.places(pd.Series([row["file"]]))
        picture = self.embedded.pictures([place])[0]
        self.image.value = _png(_laid_over(picture, self._heat(row)) if self.heat.value else picture, 384)
        self._draw_neighbours(place)
        self.other.value = row["looks_like"]
        self.status.value = self._decided(row["file"])

    def _words(self, row: pd.Series) -> str:
        answered = f", the version answers {row['answer']}" if row["error"] else ""
        text = (
            f"{self._at + 1:,} of {count(len(self._list), 'image')}: {row['file']} ({row['part'] or 'no part'}). Label "
            f"{row['label']} ({percent(row['of_label'])} by the heads of other patients), looks most like "
            f"{row['looks_like']} ({percent(row['of_other'])}){answered}."
        )
        return html.escape(text)

    def _heat(self, row: pd.Series) -> np.ndarray:
        """The heat map of the class that the version answered, or else of the one that the image looks like."""
        version = self.embedded.version
        self._runtime = self._runtime or graph.Graph(version.folder)
        tensor = preprocess.read_batch([self.embedded.data.root / row["file"]], version.card.preprocessing)
        named = [alike(name) for name in version.card.classes]
        return np.asarray(self._runtime(tensor)["heat"][0, named.index(alike(row["answer"] or row["looks_like"]))])

    def _draw_neighbours(self, place: int) -> None:
        (near,) = neighbours(self.embedded, [place])
        near = near[near >= 0]
        self.near.layout.display = "" if len(near) else "none"
        labels = ", ".join(self.embedded.rows["label"].iloc[near])
        said = f"Nearest training images of other patients: {labels}." if len(near) else "There are no training images."
        self.nearest.value = html.escape(said)
        if len(near):
            self.near.value = _png(np.hstack(list(self.embedded.pictures(near))), 192)

    def _decided(self, file: str) -> str:
        """What was decided about an image before, or why the decisions cannot be read."""
        try:
            made = next((one for one in self._rows() if one.file == file), None)
        except LungkitError as error:
            return f"<b>Decisions cannot be written:</b> {html.escape(str(error))}"
        return _said(made) if made else ""

    # --- deciding

    def _clicked(self, kind: str, _: Any = None) -> None:
        try:
            self.status.value = self.decide(kind)
        except (LungkitError, OSError) as error:
            self.status.value = f"<b>Not written.</b> {html.escape(str(error))}"

    def decide(self, kind: str) -> str:
        """Write a decision about the current image, or with "" take one back; returns what to tell the person.

        LungkitError where it is refused: then nothing is written.
        """
        row = self.current
        if row is None:
            raise LungkitError("no image is shown")
        made = self._decision(row, kind) if kind else None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(self.file.with_suffix(".lock")):
            others = [one for one in self._rows() if one.file != row["file"]]
            decisions.write(self.file, [*others, made] if made else others)
        return _said(made) if made else "Taken back."

    def _decision(self, row: pd.Series, kind: str) -> Decision:
        reason, part = decisions.plain_words(self.reason.value), row["part"]
        made = Decision(row["file"], row["sha256"], kind, self.other.value if kind == decisions.RELABEL else "")
        if kind != decisions.KEEP:
            if not reason:
                raise LungkitError("give a reason: it is in the report")
            if part == "test" and not self.test_too.value:
                raise LungkitError(f"this image is of the test part; tick “{_FLATTERS}” if you mean it")
        if made.label and made.label not in self.embedded.data.classes:
            raise LungkitError(f"{made.label} is no class of this set")
        if made.label == row["label"]:
            raise LungkitError(f"{made.label} is its label already; choose Keep")
        by = decisions.plain_words(self.by.value)
        known = part in ("train", "val", "test")
        return replace(made, part=part if known else "", reason=reason, by=by, at=decisions.now())

    def _rows(self) -> tuple[Decision, ...]:
        return decisions.read(self.file) if self.file.is_file() else self._before


def _said(made: Decision) -> str:
    """What was decided, as HTML."""
    what = {decisions.KEEP: "kept", decisions.EXCLUDE: "excluded", decisions.RELABEL: f"relabelled to {made.label}"}
    return html.escape(f"{made.file}: {what[made.decision]}{f' ({made.reason})' if made.reason else ''}.")


def _laid_over(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture (height, width; 0..1) under a heat map of the same size, as plots.overlay_grid draws it: RGB."""
    share = 0.65 * np.clip(heat, 0, 1)[..., None]
    return (1 - share) * picture[..., None] + share * mpl.colormaps[plots.HEAT](heat)[..., :3]


def _png(picture: np.ndarray, height: int) -> bytes:
    """A picture (height, width) or (height, width, 3), 0..1, as PNG of this height in pixels."""
    levels = PIL.Image.fromarray((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))
    buffer = io.BytesIO()
    width = round(levels.width * height / levels.height)
    levels.resize((width, height), PIL.Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
