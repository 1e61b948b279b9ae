"""Finding a patient by typing: number or name, the list follows each key."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.page import safe
from lungkit.clinic.records import PatientRow, Records

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
        self._records, self._chosen = records, chosen
        self.found: list[PatientRow] = []
        self.text = widgets.Text(
            description="Patient number or name", placeholder="Type to search", continuous_update=True
        ).add_class("field")
        self.status = widgets.HTML().add_class("search-status")
        # A fixed set: to make new buttons at each key would be slow, and a click could meet another patient's.
        self.buttons = [widgets.Button().add_class("search-hit") for _ in range(SHOWN)]
        for place, button in enumerate(self.buttons):
            button.on_click(act(lambda _, place=place: self._clicked(place)))
        self.text.observe(act(lambda _: self.refresh()), "value")
        self.widget = widgets.VBox([self.text, self.status, *self.buttons]).add_class("search")
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
        self.found = found[:SHOWN]
        for place, button in enumerate(self.buttons):
            hit = self.found[place] if place < len(self.found) else None
            button.layout.display = "" if hit else "none"
            button.description = f"{hit.number} · {hit.name} · {born(hit)}" if hit else ""
        if not self.text.value.strip():
            words = ""
        elif not found:
            words = "No patient found."
        elif len(found) > SHOWN:
            words = f"More than {SHOWN} found; type more of the number or name."
        else:
            words = f"{len(found)} found; choose one:"
        self.status.value = f'<span role="status">{safe(words)}</span>'

    def _clicked(self, place: int) -> None:
        if place < len(self.found):  # a click that was sent before the list changed may point past its end
            self._chosen(self.found[place])
