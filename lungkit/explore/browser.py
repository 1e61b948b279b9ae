"""A browser of a data set's images: filtered, sorted, page by page.

`facts` reads every image once, from the kept tensors if there are any. A page then reads its own images alone, so
thousands of images are no more work than forty.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from io import BytesIO

import ipywidgets
import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from scipy import ndimage

from lungkit.data import preprocess, splits
from lungkit.data.dataset import Dataset
from lungkit.data.image import ImageRefused
from lungkit.explore import shown
from lungkit.palette import INK, PAPER, QUIET
from lungkit.wording import count

SIDE, LINE = 112, 14  # pixels of a thumbnail, and of a line of text below it
COLUMNS, ROWS = 8, 3
A_PAGE = COLUMNS * ROWS
KEPT = 4000  # thumbnails, about 50 MB
ANY = "any"
ORDERS: Mapping[str, tuple[str, bool]] = {  # a column of `facts`, and whether it ascends
    "darkest first": ("brightness", True),
    "brightest first": ("brightness", False),
    "least sharp first": ("sharpness", True),
    "sharpest first": ("sharpness", False),
    "smallest first": ("pixels", True),
    "largest first": ("pixels", False),
    "by file": ("file", True),
}


def facts(collection: Dataset, spec: preprocess.Preprocessing) -> pd.DataFrame:
    """A row for each readable image: file, label, split, source, patient_id, and what it can be sorted by.

    brightness: its mean grey as the model sees it, 0 (black) to 1 (white). sharpness: the variance of its Laplacian,
    times 1000 (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000,
    https://doi.org/10.1109/ICPR.2000.903548); all images are compared at the model's size. pixels: height times width
    of the file.
    """
    rows = collection.part().reset_index(drop=True)
    files = [collection.root / file for file in rows["file"]]
    measured = []
    for one in preprocess.prepared_or_refused(files, spec, label=f"looking at {collection.name}"):
        if isinstance(one, ImageRefused):  # since the data set was prepared
            measured.append((np.nan, np.nan))
            continue
        grey = one.tensor[..., 0] * spec.std + spec.mean
        measured.append((float(grey.mean()), 1000 * float(ndimage.laplace(grey).var())))
    table = rows[["file", "label", "split", "source", "patient_id"]].copy()
    table[["brightness", "sharpness"]] = np.array(measured, float).reshape(-1, 2)
    table["pixels"] = rows["width"] * rows["height"]
    return table.dropna(subset="brightness").reset_index(drop=True)


def chosen(
    table: pd.DataFrame,
    label: str = ANY,
    split: str = ANY,
    source: str = ANY,
    patient: str = "",
    order: str = "darkest first",
) -> pd.DataFrame:
    """The rows of `facts` that a filter keeps, in an order of ORDERS; patient: a part of the patient's number."""
    keep = pd.Series(True, index=table.index)
    for column, value in (("label", label), ("split", split), ("source", source)):
        if value != ANY:
            keep &= table[column] == value
    if patient.strip():
        keep &= table["patient_id"].str.contains(patient.strip(), case=False, regex=False)
    column, ascending = ORDERS[order]
    return table[keep].sort_values([column, "file"], ascending=[ascending, True])


def pages(rows: pd.DataFrame) -> int:
    """How many pages the rows fill; 1 for none, which is an empty page."""
    return max(1, -(-len(rows) // A_PAGE))


@cache
def _font(size: int) -> PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)


class Thumbnails:
    """Small pictures of a data set, read when a page needs them; the KEPT that were used last stay in memory."""

    def __init__(self, collection: Dataset, spec: preprocess.Preprocessing):
        self._collection, self._spec = collection, spec
        self._kept: OrderedDict[str, PIL.Image.Image] = OrderedDict()
        self.read = 0  # images that were read so far

    def of(self, files: list[str]) -> list[PIL.Image.Image]:
        """The thumbnails of these files, SIDE pixels wide and high at most."""
        missing = [file for file in dict.fromkeys(files) if file not in self._kept]
        if missing:
            tensors = preprocess.read_batch([self._collection.root / file for file in missing], self._spec)[..., 0]
            self.read += len(missing)
            greys = np.clip((tensors * self._spec.std + self._spec.mean) * 255, 0, 255).round().astype(np.uint8)
            for file, grey in zip(missing, greys, strict=True):
                self._kept[file] = PIL.ImageOps.contain(PIL.Image.fromarray(grey), (SIDE, SIDE))
        found = [self._kept[file] for file in files]
        for file in files:
            self._kept.move_to_end(file)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def sheet(rows: pd.DataFrame, thumbnails: Thumbnails) -> PIL.Image.Image:
    """A page: each row's picture, its class, and its part of the split and patient below."""
    height = ROWS if len(rows) > COLUMNS * (ROWS - 1) else max(1, -(-len(rows) // COLUMNS))
    page = PIL.Image.new("RGB", (COLUMNS * (SIDE + 6), height * (SIDE + 2 * LINE + 8)), PAPER)
    draw = PIL.ImageDraw.Draw(page)
    pictures = thumbnails.of(rows["file"].tolist())
    for number, (row, picture) in enumerate(zip(rows.itertuples(), pictures, strict=True)):
        left, top = number % COLUMNS * (SIDE + 6) + 3, number // COLUMNS * (SIDE + 2 * LINE + 8) + 3
        page.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        for line, (text, colour) in enumerate(((row.label, INK), (_below(str(row.split), str(row.patient_id)), QUIET))):
            draw.text((left, top + SIDE + 1 + line * LINE), _cut(str(text)), colour, _font(10))
    return page


def _below(split: str, patient: str) -> str:
    """The line under the class; of a long patient number the end is kept, which tells patients apart."""
    part = split.replace("_", " ") or "not split"
    if _font(10).getlength(f"{part} {patient}") <= SIDE:
        return f"{part} {patient}"
    while patient and _font(10).getlength(f"{part} …{patient}") > SIDE:
        patient = patient[1:]
    return f"{part} …{patient}"


def _cut(text: str) -> str:
    """As much of a text as fits below a thumbnail."""
    if _font(10).getlength(text) <= SIDE:
        return text
    while _font(10).getlength(f"{text}…") > SIDE:
        text = text[:-1]
    return f"{text}…"


def sentence(rows: pd.DataFrame, of: int, page: int, order: str) -> str:
    """What a page shows: "24 of 136 images (of 600), brightness 0.39 to 0.42"."""
    here = rows.iloc[(page - 1) * A_PAGE : page * A_PAGE]
    if here.empty:
        return f"No image of {of:,} fits the filter."
    column = ORDERS[order][0]
    first, last = here[column].iloc[[0, -1]]
    between = f", {column} {first:.3g} to {last:.3g}" if column != "file" else ""
    of_all = f" (of {of:,} in the data set)" if len(rows) < of else ""
    return f"Page {page} of {pages(rows)}: {len(here)} of {count(len(rows), 'image')}{of_all}{between}."


class View:
    """Filters, an order, the page's number, and the page.

    label, split, source, order: drop-downs. patient: a text. page: a slider that the arrow keys move. picture: PNG of
    `sheet`. says: what is shown. `box` holds them all.
    """

    def __init__(self, table: pd.DataFrame, thumbnails: Thumbnails):
        self._table, self._thumbnails = table, thumbnails
        self.label, self.split, self.source = (self._choice(column) for column in ("label", "split", "source"))
        self.patient = ipywidgets.Text(description="patient", placeholder="part of a number", layout={"width": "15rem"})
        self.order = ipywidgets.Dropdown(options=list(ORDERS), description="order", layout={"width": "15rem"})
        self.page = ipywidgets.IntSlider(1, 1, 1, description="page", layout={"width": "32rem"})
        self.picture, self.says = ipywidgets.Image(format="png"), ipywidgets.Label()
        filters = [self.label, self.split, *([self.source] if table["source"].nunique() > 1 else []), self.patient]
        rows = ipywidgets.HBox(filters), ipywidgets.HBox([self.order, self.page])
        self.box = ipywidgets.VBox([*rows, self.says, self.picture])
        for one in (self.label, self.split, self.source, self.patient, self.order):
            one.observe(self._filter, "value")
        self.page.observe(self._turn, "value")
        self._filter()

    def _choice(self, column: str) -> ipywidgets.Dropdown:
        names = list(dict.fromkeys(self._table[column]))
        order = {name: place for place, name in enumerate(splits.PARTS)}
        options = [ANY, *sorted(filter(None, names), key=lambda name: (order.get(name, 9), name))]
        name = {"label": "class"}.get(column, column)
        return ipywidgets.Dropdown(options=options, description=name, layout={"width": "15rem"})

    def _filter(self, _change: object = None) -> None:
        """Choose the rows again, and go to the first page."""
        self.rows = chosen(
            self._table, self.label.value, self.split.value, self.source.value, self.patient.value, self.order.value
        )
        self.page.max = pages(self.rows)
        if self.page.value == 1:
            self._turn()
        else:
            self.page.value = 1  # which turns the page

    def _turn(self, _change: object = None) -> None:
        page = self.page.value
        here, buffer = self.rows.iloc[(page - 1) * A_PAGE : page * A_PAGE], BytesIO()
        sheet(here, self._thumbnails).save(buffer, "PNG")
        self.picture.value = buffer.getvalue()
        self.says.value = self.picture.alt = sentence(self.rows, len(self._table), page, self.order.value)


def view(table: pd.DataFrame, collection: Dataset, spec: preprocess.Preprocessing) -> None:
    """Show the browser where a kernel runs, and elsewhere its first page. table: `facts` of the collection."""
    made = View(table, Thumbnails(collection, spec))
    first = sheet(made.rows.head(A_PAGE), made._thumbnails)
    still = Figure(figsize=(first.width / 100, first.height / 100 + 0.3))
    axes = still.add_axes((0, 0, 1, first.height / (first.height + 30)))
    axes.imshow(first, interpolation="none")
    axes.set_axis_off()
    axes.set_title(f"{made.says.value} {made.order.value.capitalize()}.", fontsize=9, loc="left")
    shown.show(made.box, still, f"A browser of images. {made.says.value}")
