"""Patients: find one, see images and readings, exclude one from learning, erase one, export all readings."""

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app.describe import (
    decision_words,
    likely,
    patient_heading,
    probability_words,
    review_words,
    study_figure,
)
from lungkit.clinic.app.download import DownloadButton
from lungkit.clinic.app.page import field, show_if, sortable_time
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.patients import PatientRow
from lungkit.wording import count

SHOWN = 200  # patients in the table; the search reaches the others
PICTURES = 60  # of one patient's images, the newest


class PatientsScreen(Screen[Administration]):
    """A search, the patients that match, and the images and readings of the one that is selected."""

    def build(self) -> None:
        self.text = field(widgets.Text, "Patient number or name", placeholder="All patients", continuous_update=False)
        self.find = self.page.button("Search", self.refresh)
        self.page.on_change(self.refresh, self.text)
        self.export = DownloadButton("Export all readings (CSV)", self.page.act(self._export), "text/csv")
        self.open = self.page.button("Show images and readings", self._open, "primary")
        self.exclude = self.page.button("Exclude from learning …", self._ask_exclude)
        self.erase = self.page.button("Erase patient …", self._ask_erase, button_style="danger")
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            {
                "Number": lambda patient: patient.number,
                "Name": lambda patient: patient.name,
                "Birth year": lambda patient: str(patient.birth_year or ""),
                "Sex": lambda patient: patient.sex,
                "Learning": lambda patient: "excluded" if patient.excluded else "",
            },
            *(self.open, self.exclude, self.erase),
            name=_number_and_name,
            on_select=self._selected,
            empty="No patient found.",
            search=False,
        )
        self.head, self.pictures = widgets.HTML(), widgets.HTML()
        self.readings = Table(
            self.page,
            {
                "Read": lambda row: sortable_time(row.read_at),
                "Modality": lambda row: row.kind,
                "Decision": decision_words,
                "Probability": lambda row: ", ".join(filter(None, (likely(row), probability_words(row)))),
                "Model": lambda row: f"{row.model}@{row.version}",
                "Uploaded by": lambda row: row.read_by,
                "Review": review_words,
            },
            empty="This patient has no readings.",
            search=False,
        )
        self.history = widgets.VBox([self.head, self.readings.widget, self.pictures]).add_class("card")
        self.lay_out(
            "Patients and images",
            widgets.HBox([self.text, self.find, self.export]).add_class("filters"),
            self.confirm.widget,
            self.table.widget,
            self.history,
        )

    def refresh(self) -> None:
        """Search again; no patient's images are shown any more."""
        self._close_history()
        patients = self.records.patients(self.text.value, SHOWN + 1)
        more = f"The first {SHOWN} patients. Type to find others"
        self.table.show(patients[:SHOWN], more if len(patients) > SHOWN else count(len(patients), "patient"))

    # --- one patient

    def _open(self) -> None:
        self._close_history()
        page = self.records.history(self.table.selected().id)
        newest = page.cases[::-1]
        self.head.value = (
            f'{patient_heading(page.patient)}<p class="about">{count(len(newest), "reading")}, newest first. '
            "The audit trail records that you opened this patient.</p>"
        )
        self.readings.show(newest)
        self.pictures.value = f'<div class="studies">{"".join(map(study_figure, newest[:PICTURES]))}</div>'
        show_if(True, self.history)

    def _close_history(self) -> None:
        self.head.value = self.pictures.value = ""
        self.readings.show(())
        show_if(False, self.history)

    def _selected(self) -> None:
        self.confirm.close()
        excluded = self.table.item is not None and self.table.item.excluded
        self.exclude.description = f"{'Include in' if excluded else 'Exclude from'} learning …"

    def _ask_exclude(self) -> None:
        patient = self.table.selected()
        excluded = not patient.excluded

        def switch() -> None:
            self.records.set_excluded(patient.id, excluded)
            self.refresh()
            self.page.say(
                "The patient is excluded. Data sets that were made before still have the patient."
                if excluded
                else "The patient is included again, from the next data set on.",
                "done",
            )

        self.confirm.ask(
            f"Exclude {_number_and_name(patient)} from learning? New data sets will not have this patient. Readings "
            "and reviews stay."
            if excluded
            else f"Include {_number_and_name(patient)} in learning? New data sets may have this patient again. Make "
            "sure that this is allowed.",
            "Exclude from learning" if excluded else "Include in learning",
            switch,
        )

    def _ask_erase(self) -> None:
        patient = self.table.selected()

        def erase() -> None:
            self.records.erase_patient(patient.id)
            self.refresh()
            self.page.say(
                "The patient was erased with all images, readings and reviews. The audit trail records this without "
                "a name. Earlier backups still contain the patient.",
                "done",
            )

        self.confirm.ask(
            f"Erase {_number_and_name(patient)} with all images, readings and reviews?",
            "Erase permanently",
            erase,
            expected=patient.number,
        )

    def _export(self) -> tuple[str, bytes]:
        return f"readings-{times.today():%Y-%m-%d}.csv", self.records.export_csv()


def _number_and_name(patient: PatientRow) -> str:
    return f"{patient.number} · {patient.name}"
