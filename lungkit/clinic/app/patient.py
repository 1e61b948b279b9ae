"""Patient: all images of one patient in the order of time, side by side; compare two, open one."""

import base64
from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.page import close, safe, when
from lungkit.clinic.app.reading import side_by_side
from lungkit.clinic.app.search import PatientSearch, heading
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import CaseRow, Records
from lungkit.clinic.words import percent
from lungkit.errors import LungkitError


def view(records: Records, models, act: Callable, go: Callable, patient_id: str | None = None) -> widgets.Widget:
    """The screen, of a patient at once where one is named."""
    screen = PatientScreen(records, act, go)
    if patient_id:
        screen.load(patient_id)
    screen.widget.refresh = lambda patient_id=None: screen.load(patient_id or screen.patient_id)
    return screen.widget


class PatientScreen:
    """A search, then the patient's images from the oldest to the newest."""

    def __init__(self, records: Records, act: Callable, go: Callable):
        self._records, self._act, self._go = records, act, go
        self.patient_id: str | None = None
        self.search = PatientSearch(records, act, lambda row: self.load(row.id))
        self.head = widgets.HTML()
        self.studies = widgets.Box().add_class("studies")
        self.compare = widgets.Button(description="Compare the two chosen")
        self.compare.on_click(act(lambda _: self._compare()))
        self.comparison = widgets.VBox()
        self.choices: list[tuple[CaseRow, widgets.Checkbox]] = []
        self.widget = widgets.VBox(
            [
                widgets.HTML("<h1>Patient</h1>"),
                self.search.widget,
                self.head,
                self.studies,
                self.compare,
                self.comparison,
            ]
        )
        self._empty()

    def load(self, patient_id: str | None) -> None:
        """Show a patient's images; nothing but the search where no patient is named."""
        if patient_id is None:
            self._empty()
            return
        page = self._records.patient(patient_id)
        self._empty()
        self.patient_id = page.patient.id
        self.search.clear()
        count = f"{len(page.cases)} image{'s' * (len(page.cases) != 1)}, oldest first"
        self.head.value = f'{heading(page.patient)}<p class="about">{count}</p>'
        self.studies.children = [self._study(row) for row in page.cases]
        self.compare.layout.display = "" if len(page.cases) > 1 else "none"

    def _empty(self) -> None:
        for part in (self.studies, self.comparison):
            for child in part.children:
                close(child)
            part.children = ()
        self.patient_id, self.choices, self.head.value = None, [], ""
        self.compare.layout.display = "none"

    def _study(self, row: CaseRow) -> widgets.Widget:
        chosen = widgets.Checkbox(description="Compare", indent=False)
        open_it = widgets.Button(description="Open", tooltip=f"Open the reading of {when(row.read_at)}")
        open_it.on_click(self._act(lambda _: self._go("case", reading_id=row.reading_id, back="patient")))
        self.choices.append((row, chosen))
        return widgets.VBox([widgets.HTML(_card(row)), widgets.HBox([open_it, chosen])]).add_class("study")

    def _compare(self) -> None:
        wanted = [row.reading_id for row, chosen in self.choices if chosen.value]
        if len(wanted) != 2:
            raise LungkitError(f"Mark two images to compare; {len(wanted)} marked now.")
        cases = [self._records.case(reading_id) for reading_id in wanted]
        for child in self.comparison.children:
            close(child)
        self.comparison.children = [side_by_side(cases)]


def _card(row: CaseRow) -> str:
    """Thumbnail, date, decision, probability and review of one image."""
    picture = base64.b64encode(row.thumbnail).decode()
    review = row.decision == REVIEW
    decided = f"? review needed (nearest: {row.label})" if review else row.decision
    reviewed = "Not reviewed"
    if row.reviewed:
        said = "Agreed" if row.agrees else f"Corrected to {row.reviewer_label}"
        reviewed = f"{said} ({row.reviewer})"
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{safe(row.kind)} image of {safe(when(row.read_at))}">'
        f"<figcaption><time>{safe(when(row.read_at))}</time>"
        f'<b class="{"undecided" if review else "class"}">{safe(decided)}</b>'
        f"<span>{percent(row.probability)} · {safe(row.model)}@{safe(row.version)}</span>"
        f"<span>{safe(reviewed)}</span></figcaption></figure>"
    )
