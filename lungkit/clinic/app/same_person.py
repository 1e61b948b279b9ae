"""The question whether a new patient is one who is there already, under another number."""

from collections.abc import Callable, Sequence

import ipywidgets as widgets

from lungkit.clinic.app.describe import born
from lungkit.clinic.app.page import Page, notice, replace
from lungkit.clinic.records.patients import NewPatient, PatientRow

SHOWN = 5  # patients with the same name and birth year


class SamePerson:
    """A question with a button for each patient who may be the same, and one for another person.

    on_select: called with the patient of the answer.
    """

    def __init__(self, page: Page, on_select: Callable[[PatientRow | NewPatient], None]):
        self._page, self._on_select = page, on_select
        self.widget = widgets.VBox().add_class("same-person")

    def ask(self, new: NewPatient, known: Sequence[PatientRow]) -> None:
        """Ask; known: patients with the same name and birth year."""
        words = (
            f"The name and the birth year of the new patient {new.number} are also those of "
            f"{', '.join(patient.number for patient in known[:SHOWN])}. Is this the same person?"
        )
        same = [self._button(f"Same person: use {one.number} · {one.name} · {born(one)}", one) for one in known[:SHOWN]]
        other = self._button(f"Another person: use the new number {new.number}", new)
        replace(self.widget, widgets.HTML(notice(words, "problem")), *same, other)

    def close(self) -> None:
        """Take the question back."""
        replace(self.widget)

    def _button(self, words: str, patient: PatientRow | NewPatient) -> widgets.Button:
        return self._page.button(words, lambda: self._answered(patient), "search-hit")

    def _answered(self, patient: PatientRow | NewPatient) -> None:
        if self.widget.children:  # not a second click that was on its way
            self.close()
            self._on_select(patient)
