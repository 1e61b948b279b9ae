"""Finding a patient: type a number or a name, then click one of the patients listed."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.describe import born
from lungkit.clinic.app.page import Page, close, field, safe
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import PatientRow

SHOWN = 8  # patients in the list


class PatientFinder:
    """A field and, below it, a button for each patient that matches; a patient is selected only by a click.

    on_select: called with the PatientRow that was clicked. label: of the field; each of several on a page has its own.
    """

    def __init__(
        self,
        records: Records,
        page: Page,
        on_select: Callable[[PatientRow], None],
        label: str = "Patient number or name",
    ):
        self._records, self._page, self._on_select = records, page, on_select
        self.text = field(widgets.Text, label, placeholder="Type to search")
        self.status = widgets.HTML().add_class("search-status")
        # A button keeps its patient: a click that arrives after the list has changed selects that patient or no one.
        self._buttons: dict[PatientRow, widgets.Button] = {}
        self.hits = widgets.VBox().add_class("search-hits")
        page.on_change(self._search, self.text)
        self.widget = widgets.VBox([self.text, self.status, self.hits]).add_class("search")

    def clear(self) -> None:
        """Empty the field and the list."""
        self.text.value = ""
        self._list([])

    def _search(self) -> None:
        words = self.text.value.strip()
        self._list(self._records.find_patients(words, SHOWN + 1) if words else [])

    def _list(self, matches: list[PatientRow]) -> None:
        before = self._buttons
        self._buttons = {patient: before.get(patient) or self._button(patient) for patient in matches[:SHOWN]}
        self.hits.children = list(self._buttons.values())
        for patient in before.keys() - self._buttons.keys():
            close(before[patient])
        self.status.value = f'<span role="status">{safe(self._how_many(len(matches)))}</span>'

    def _how_many(self, number: int) -> str:
        if not self.text.value.strip():
            return ""
        if number > SHOWN:
            return f"More than {SHOWN} patients. Type more of the number or name."
        return f"{number} found. Select one:" if number else "No patient found."

    def _button(self, patient: PatientRow) -> widgets.Button:
        words = f"{patient.number} · {patient.name} · {born(patient)}"
        return self._page.button(words, lambda: self._clicked(patient), "search-hit")

    def _clicked(self, patient: PatientRow) -> None:
        if patient in self._buttons:
            self._on_select(patient)
