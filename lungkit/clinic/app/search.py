"""Finding a patient by typing: number or name, the list follows each key."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.page import close, safe
from lungkit.clinic.records.cases import PatientRow, Records

SHOWN = 8  # patients in the list


def born(patient) -> str:
    """Birth year and sex of a patient, as far as they are known: "born 1961, female"."""
    year = f"born {patient.birth_year}" if patient.birth_year else "birth year not known"
    return year if patient.sex == "unknown" else f"{year}, {patient.sex}"


def heading(patient) -> str:
    """Who the patient is, as HTML that stays together on one line where it fits."""
    return (
        f'<div class="patient"><span class="patient-number">{safe(patient.number)}</span> '
        f'<span class="patient-name">{safe(patient.name)}</span> '
        f'<span class="patient-born">{safe(born(patient))}</span></div>'
    )


class PatientSearch:
    """A field and, below it, a button for each patient found; nobody is chosen without a click.

    chosen: called with the PatientRow that was clicked.
    """

    def __init__(self, records: Records, act: Callable, chosen: Callable[[PatientRow], None]):
        self._records, self._act, self._chosen = records, act, chosen
        self.found: list[PatientRow] = []
        self.text = widgets.Text(
            description="Patient number or name", placeholder="Type to search", continuous_update=True
        ).add_class("field")
        self.status = widgets.HTML().add_class("search-status")
        # A button stays its patient's: a click that was on its way while the list changed meets that one, or nobody.
        self._buttons: dict[PatientRow, widgets.Button] = {}
        self.hits = widgets.VBox().add_class("search-hits")
        self.text.observe(act(lambda _: self.refresh()), "value")
        self.widget = widgets.VBox([self.text, self.status, self.hits]).add_class("search")
        self._show([])

    def refresh(self) -> None:
        """Search anew for what the field holds; nobody is listed for an empty one."""
        words = self.text.value.strip()
        self._show(self._records.find_patients(words, SHOWN + 1) if words else [])

    def clear(self) -> None:
        """Empty the field and the list."""
        self.text.value = ""
        self._show([])

    def _show(self, found: list[PatientRow]) -> None:
        before, self.found = self._buttons, found[:SHOWN]
        self._buttons = {hit: before.get(hit) or self._button(hit) for hit in self.found}
        self.hits.children = list(self._buttons.values())
        for hit, button in before.items():
            if hit not in self._buttons:
                close(button)
        if not self.text.value.strip():
            words = ""
        elif not found:
            words = "No patient found."
        elif len(found) > SHOWN:
            words = f"More than {SHOWN} found; type more of the number or name."
        else:
            words = f"{len(found)} found; choose one:"
        self.status.value = f'<span role="status">{safe(words)}</span>'

    def _button(self, patient: PatientRow) -> widgets.Button:
        button = widgets.Button(description=f"{patient.number} · {patient.name} · {born(patient)}")
        button.add_class("search-hit").on_click(self._act(lambda _: self._clicked(patient)))
        return button

    def _clicked(self, patient: PatientRow) -> None:
        if patient in self._buttons:
            self._chosen(patient)
