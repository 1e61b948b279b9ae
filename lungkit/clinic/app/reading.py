"""One reading as a clinician sees it: the image, the answer of the model, its report and its reviews."""

import gc
from collections.abc import Callable

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app.answer import bars, card_of, decision_box, image_checks, of_series, source
from lungkit.clinic.app.correction import CorrectionForm, corrected
from lungkit.clinic.app.describe import patient_heading
from lungkit.clinic.app.download import DownloadButton
from lungkit.clinic.app.page import Page, close, field, notice, safe, show_if, when
from lungkit.clinic.app.review_form import ReviewForm
from lungkit.clinic.app.stack import StackViewer
from lungkit.clinic.app.viewer import Viewer
from lungkit.clinic.records import stacks
from lungkit.clinic.records.cases import Case, CaseImage, PriorRow, Records
from lungkit.clinic.records.stacks import CaseSeries, Stack
from lungkit.data.image import can_be_spacings
from lungkit.models import card_text

_POSSIBLE = (0.01, 10.0)  # mm between pixels
REPLACED = "More images of this series came later. A later reading, with all of them, replaces this one."
AGAIN = "This image was read again. The later reading replaces this one."


def reading(case: Case, records: Records, page: Page, again: Callable[[str], None]) -> widgets.Widget:
    """Everything about one reading, and what can be done with it. again: as in `CorrectionForm`."""
    series = records.series(case.reading_id)
    shown = viewer(case, series)
    decision = widgets.VBox([
        widgets.HTML(decision_box(case, series)), ReviewForm(case, records, page).widget,
    ]).add_class("reading-decision")  # fmt: skip
    facts = widgets.VBox([
        widgets.HTML(bars(case) + (of_series(series, bool(case.refusal)) if series else "") + image_checks(case)),
        _report_button(case.reading_id, records, page, series.slices if series else None),
        CorrectionForm(case, records, page, again).widget,
        widgets.HTML(source(case)),
    ]).add_class("reading-facts")  # fmt: skip
    columns = widgets.Box([shown, decision, facts]).add_class("reading-columns")
    if series:
        columns.add_class("reading-of-series")
    head = [widgets.HTML(heading(case, series))]
    if priors := records.priors(case.reading_id):
        head.append(Comparison(columns, shown, priors, records, page).widget)
    return widgets.VBox([widgets.HBox(head).add_class("reading-head"), columns]).add_class("reading")


def heading(case: CaseImage, series: Stack | None) -> str:
    """Whose image it is, what it is, and what was written at the upload, as HTML."""
    replaced = notice(REPLACED if series else AGAIN, "problem") if case.superseded else ""
    view, slices = case.tags.get("view", ""), series.slices if series else None
    what = card_text.what_was_read(card_of(case.model, case.version), case.kind, view, slices)
    asked = f'<p class="what">{safe(what)}</p>'
    return patient_heading(case.patient) + corrected(case) + asked + _image_line(case, series) + _notes(case) + replaced


def viewer(
    case: CaseImage, series: Stack | None = None, compared: bool = False, prior: bool = False
) -> Viewer | StackViewer:
    """The image of a case with the heat map of the class that the model named, if it is shown; of a series, all slices.

    compared: without other planes, and linked with the others on the page. prior: says that it is an earlier image.
    Of a reading that is not for this patient or image: without what the model said of it.
    """
    caption = f"{case.patient.number} {case.patient.name}"
    kind = "CT series" if series else "Image" if case.kind == "image" else f"{case.kind} image"
    label = f"{f'Prior: {kind}' if prior else kind}, uploaded {when(case.uploaded_at)}"
    refused = isinstance(case, Case) and bool(case.refusal)
    if series:
        shown = stacks.without_reading(series) if refused else series
        return StackViewer(
            shown, case.pixels.shape, case.classes, label, planes=not compared, linked=compared, caption=caption
        )
    heat, selected = (case.heat, case.label) if isinstance(case, Case) and not refused else (None, "")
    spacing, measured = spacing_of(case)
    return Viewer(
        case.pixels,
        case.units,
        heat,
        case.classes,
        selected,
        label,
        spacing,
        measured,
        linked=compared,
        caption=caption,
    )


def spacing_of(case: CaseImage) -> tuple[tuple[float, float] | None, str]:
    """mm between rows and between columns of a case's pixels, and what to say after a measure in mm.

    None where the header does not say it, or says what no scanner has. An X-ray's spacing is that of the detector,
    which is larger than in the patient, unless the header says that it was calibrated.
    """
    of_pixels, of_detector = (_pair(case.tags.get(tag, "")) for tag in ("pixel_spacing", "detector_spacing"))
    stored = _pair("\\".join(case.tags.get(tag, "") for tag in ("rows", "columns")))
    spacing = of_pixels or of_detector
    if not spacing or not stored or not all(_POSSIBLE[0] <= mm <= _POSSIBLE[1] for mm in spacing):
        return None, ""
    height, width = case.pixels.shape  # which may be fewer or more than in the file
    calibrated = of_pixels and of_detector and of_pixels != of_detector
    words = "" if case.kind == "CT" else "as calibrated in the file" if calibrated else "at the detector"
    return (spacing[0] * stored[0] / height, spacing[1] * stored[1] / width), words


def _pair(text: str) -> tuple[float, float] | None:
    """Two numbers of a header, as tags keep them; None for anything else."""
    try:
        first, second = (float(part.replace(",", ".")) for part in text.split("\\"))
    except ValueError:
        return None
    return (first, second) if can_be_spacings(first, second) else None


def _image_line(case: CaseImage, series: Stack | None = None) -> str:
    view_position = case.tags.get("view")
    facts = [
        ("Image" if case.kind == "image" else case.kind) + (f", view {view_position}" if view_position else ""),
        f"{f'{series.slices} slices of ' if series else ''}{case.width} × {case.height} pixels",
        None if series else case.tags.get("note"),
        f"uploaded {when(case.uploaded_at)} by {case.uploaded_by}",
    ]
    return f'<p class="image-line">{safe(" · ".join(filter(None, facts)))}</p>'


def _notes(case: CaseImage) -> str:
    return f'<p class="notes"><b>Notes:</b> {safe(case.notes)}</p>' if case.notes else ""


def _report_button(reading_id: str, records: Records, page: Page, slices: int | None = None) -> DownloadButton:
    def make() -> tuple[str, bytes]:
        from lungkit.clinic import report  # takes a while to import, and few readings need it

        now = records.case(reading_id)  # with the reviews that came since
        content = report.pdf(now, card_of(now.model, now.version), slices=slices)
        gc.collect()  # fonts and pages refer to each other: 20 MB a report, until Python happens to look
        return f"reading-{times.local(now.read_at):%Y-%m-%d}-{now.reading_id[:8]}.pdf", content

    return DownloadButton("Download report (PDF)", page.act(make), "application/pdf")


class Comparison:
    """A button that shows an earlier image of the patient next to this one, and a choice of which one.

    columns: of the reading; shown: its viewer. Both viewers are linked while the earlier image is there.
    """

    def __init__(
        self, columns: widgets.Box, shown: Viewer | StackViewer, priors: list[PriorRow], records: Records, page: Page
    ):
        self._columns, self._shown, self._records = columns, shown, records
        self._prior: widgets.Widget | None = None
        self.choice = field(
            widgets.Dropdown, "Prior", options=[(when(prior.uploaded_at), prior.reading_id) for prior in priors]
        )
        newest = when(priors[0].uploaded_at).partition(",")[0]
        self.open = page.button(f"Compare with prior ({newest})", self._show)
        self.close = page.button("Close the comparison", self._close)
        page.on_change(self._show, self.choice)
        self.widget = widgets.HBox([self.open, self.choice, self.close]).add_class("comparison-choice")
        self._close()

    def _show(self) -> None:
        prior = self._records.case(self.choice.value)
        self._close()
        series = self._records.series(prior.reading_id)
        words = widgets.HTML(decision_box(prior, series))
        self._prior = widgets.VBox([viewer(prior, series, compared=True, prior=True), words]).add_class("prior")
        self._offer(True)  # before the earlier image appears, which asks the linked ones what they look at
        self._columns.children = (self._shown, self._prior, *self._columns.children[1:])
        self._columns.add_class("comparing")

    def _close(self) -> None:
        if self._prior:
            self._columns.children = [part for part in self._columns.children if part is not self._prior]
            close(self._prior)
            self._prior = None
        self._columns.remove_class("comparing")
        self._offer(False)

    def _offer(self, compared: bool) -> None:
        self._shown.linked = compared
        show_if(not compared, self.open)
        show_if(compared, self.close)
        show_if(compared and len(self.choice.options) > 1, self.choice)


def side_by_side(cases: list[tuple[Case, CaseSeries | None]]) -> widgets.Widget:
    """Several readings next to each other, oldest first, to compare: image and decision; the images are linked."""
    columns = []
    for number, (case, series) in enumerate(cases, 1):
        box = decision_box(case, series, f"Reading of the model, image {number}")
        words = widgets.HTML(f"<h2>{safe(when(case.read_at))}</h2>{box}{bars(case)}")
        columns.append(widgets.VBox([viewer(case, series, compared=True), words]).add_class("compared"))
    return widgets.Box(columns).add_class("comparison")
