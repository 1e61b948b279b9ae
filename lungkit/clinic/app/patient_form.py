"""The fields of a new patient."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.page import Page, field, show_if
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import SEXES
from lungkit.errors import LungkitError


class PatientForm:
    """The fields of a new patient; `on_enter` is called with a NewPatient that can be saved."""

    def __init__(self, page: Page, on_enter: Callable[[NewPatient], None]):
        self._on_enter, self._browser = on_enter, page.browser
        self.number, self.name = field(widgets.Text, "Patient number"), field(widgets.Text, "Name")
        self.birth_year = field(widgets.Text, "Birth year (if known)", placeholder="YYYY")
        self.sex = field(widgets.Dropdown, "Sex", options=SEXES)
        self._kept = {"number": self.number, "name": self.name, "birth-year": self.birth_year, "sex": self.sex}
        for name, kept in self._kept.items():
            page.browser.keep(kept, f"patient-{name}")
        page.on_change(self._restored, self.number, self.name, self.birth_year)
        self.open = page.button("+ New patient", lambda: self._show_fields(True), "link")
        pair = widgets.HBox([self.birth_year, self.sex]).add_class("pair")
        use = page.button("Use this patient", self._use, "primary")
        self.fields = widgets.VBox([self.number, self.name, pair, use]).add_class("entry")
        self.widget = widgets.VBox([self.open, self.fields])

    def clear(self) -> None:
        """Empty the fields and hide them."""
        self.number.value = self.name.value = self.birth_year.value = ""
        self.sex.value = "unknown"
        self._show_fields(False)

    def forget(self) -> None:
        """The patient was saved, or will not be: the browser's tab does not keep what was typed."""
        self._browser.forget(*(f"patient-{name}" for name in self._kept))

    def _restored(self) -> None:
        """Show fields that the browser filled."""
        if self.number.value or self.name.value or self.birth_year.value:
            self._show_fields(True)

    def _show_fields(self, shown: bool) -> None:
        show_if(shown, self.fields)
        show_if(not shown, self.open)

    def _use(self) -> None:
        year = self.birth_year.value.strip()
        if year and not (year.isascii() and year.isdigit() and len(year) == 4):
            raise LungkitError(f"{year[:20]!r} is not a birth year. Enter four digits such as 1961, or leave it empty.")
        self._on_enter(NewPatient(self.number.value, self.name.value, int(year) if year else None, self.sex.value))
