"""Patient: all images of one patient, oldest first; compare two, open one."""

from collections.abc import Sequence

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app import charts
from lungkit.clinic.app.describe import likely, patient_heading, study_figure
from lungkit.clinic.app.page import link_button, replace, show_if, when
from lungkit.clinic.app.patient_finder import PatientFinder
from lungkit.clinic.app.reading import side_by_side
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import CaseRow, Records
from lungkit.clinic.records.patients import PatientRow
from lungkit.errors import LungkitError
from lungkit.wording import count


class PatientScreen(Screen[Records]):
    """A search, then the images of the patient that was selected."""

    def build(self) -> None:
        self.patient_id: str | None = None
        self.finder = PatientFinder(self.records, self.page, self._found)
        self.head = widgets.HTML()
        self.link = link_button("Copy link to this patient")
        self.course = widgets.HTML().add_class("course")
        self.studies = widgets.Box().add_class("studies")
        self.compare = self.page.button("Compare two images", self._compare)
        self.comparison = widgets.VBox()
        self.choices: list[tuple[CaseRow, widgets.Checkbox]] = []
        whose = widgets.VBox([self.head, self.link])
        self.lay_out("Patient", self.finder.widget, whose, self.course, self.studies, self.compare, self.comparison)
        self._clear()

    def refresh(self, patient_id: str | None = None) -> None:
        """Show this patient's images, or those of the patient shown before; only the search if there is neither."""
        patient_id = patient_id or self.patient_id
        if patient_id is None:
            return
        page = self.records.patient(patient_id)
        self._clear()
        self.patient_id = page.patient.id
        self.finder.clear()
        self.head.value = f'{patient_heading(page.patient)}<p class="about">{_how_many(page.cases)}</p>'
        show_if(True, self.link)
        self.course.value = _course(page.cases)
        self.studies.children = [self._study(row) for row in page.cases]
        show_if(len(page.cases) > 1, self.compare)

    def where(self) -> str:
        return self.patient_id or ""

    def open_at(self, place: str) -> None:
        """An address without a patient shows the search alone."""
        self._clear()
        if place:
            self.refresh(place)

    def _found(self, patient: PatientRow) -> None:
        self.page.go("patient", patient_id=patient.id)

    def _clear(self) -> None:
        replace(self.studies)
        replace(self.comparison)
        self.patient_id, self.choices, self.head.value = None, [], ""
        self.course.value = ""
        show_if(False, self.compare, self.link)

    def _study(self, row: CaseRow) -> widgets.Widget:
        choice = widgets.Checkbox(description="Compare", indent=False)
        open_it = self.page.button(
            "Open",
            lambda: self.open_reading(row.reading_id, back="patient"),
            tooltip=f"Open the reading of {when(row.read_at)}",
        )
        self.choices.append((row, choice))
        return widgets.VBox([widgets.HTML(study_figure(row)), widgets.HBox([open_it, choice])]).add_class("study")

    def _compare(self) -> None:
        wanted = [row.reading_id for row, choice in self.choices if choice.value]
        if len(wanted) != 2:
            raise LungkitError(f"Mark two images to compare. {len(wanted)} are marked now.")
        both = [(self.records.case(reading_id), self.records.series(reading_id)) for reading_id in wanted]
        replace(self.comparison, side_by_side(both))


def _how_many(cases: Sequence[CaseRow]) -> str:
    """How many images there are that count, and how many readings do not: "3 images, oldest first; 1 is withdrawn"."""
    withdrawn = sum(row.withdrawn is not None for row in cases)
    replaced = sum(row.superseded and row.withdrawn is None for row in cases)
    words = [f"{count(len(cases) - withdrawn - replaced, 'image')}, oldest first"]
    words += [f"{count(withdrawn, 'image')} withdrawn"] if withdrawn else []
    words += [f"{count(replaced, 'reading')} replaced by a later one"] if replaced else []
    return "; ".join(words)


def _course(cases: Sequence[CaseRow]) -> str:
    """The studies on one axis of time, without those that were withdrawn, as HTML; empty for a single one."""
    points = [
        (times.local(row.read_at), likely(row), row.decision != REVIEW, row.probability, row.affected)
        for row in cases
        if row.probability is not None and not row.withdrawn  # what is withheld is not in the chart
    ]
    return charts.course_chart("Course", points) if len(points) > 1 else ""
