"""Patients: find one, see all images and readings, erase a patient, export all readings."""

from datetime import date

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.describe import count, decision_words, patient_heading, review_words, study_figure
from lungkit.clinic.app.download import DownloadButton
from lungkit.clinic.app.page import show_if, sortable_times
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.cases import CaseRow
from lungkit.wording import percent

SHOWN = 200  # patients in the table; the search reaches the others
PICTURES = 60  # of one patient's images, the newest


class PatientsScreen(Screen):
    """A search, the patients found, and the images and readings of the one that is selected."""

    def __init__(self, *given):
        super().__init__(*given)
        self.text = widgets.Text(
            description="Patient number or name", placeholder="All patients", continuous_update=False
        ).add_class("field")
        self.find = self.button("Search", self._find)
        self.on_change(self._find, self.text)
        self.export = DownloadButton("Export all readings (CSV)", self.page.act(self._export), "text/csv")
        self.open = self.button("Show images and readings", self._open, "primary")
        self.erase = self.button("Erase patient …", self._ask_erase, button_style="danger")
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            *(self.open, self.erase),
            name=lambda patient: f"{patient.number} · {patient.name}",
            on_select=self.confirm.close,
            empty="No patient found.",
            search=False,
        )
        self.head, self.pictures = widgets.HTML(), widgets.HTML()
        self.readings = Table(self.page, empty="This patient has no readings.", search=False)
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
        self._find()

    def _find(self) -> None:
        self._close_history()
        found = self.records.patients(self.text.value, SHOWN + 1)
        patients = found[:SHOWN]
        self.table.show(
            pd.DataFrame(
                {
                    "Number": [patient.number for patient in patients],
                    "Name": [patient.name for patient in patients],
                    "Birth year": [str(patient.birth_year or "") for patient in patients],
                    "Sex": [patient.sex for patient in patients],
                }
            ),
            patients,
            f"The first {SHOWN} patients. Type to find others" if len(found) > SHOWN else count(len(found), "patient"),
        )

    # --- one patient

    def _open(self) -> None:
        self._close_history()
        page = self.records.history(self.table.selected().id)
        newest = page.cases[::-1]
        self.head.value = (
            f'{patient_heading(page.patient)}<p class="about">{count(len(newest), "reading")}, newest first. '
            "The audit trail records that you opened this patient.</p>"
        )
        self.readings.show(_reading_rows(newest))
        self.pictures.value = f'<div class="studies">{"".join(map(study_figure, newest[:PICTURES]))}</div>'
        show_if(True, self.history)

    def _close_history(self) -> None:
        self.head.value = self.pictures.value = ""
        self.readings.show(pd.DataFrame())
        show_if(False, self.history)

    def _ask_erase(self) -> None:
        patient = self.table.selected()

        def erase():
            self.records.erase_patient(patient.id)
            self._find()
            self.page.say(
                "The patient was erased with all images, readings and reviews. The audit trail records this without "
                "a name. Earlier backups still contain the patient.",
                "done",
            )

        self.confirm.ask(
            f"Erase {patient.number} · {patient.name} with all images, readings and reviews?",
            "Erase permanently",
            erase,
            expected=patient.number,
        )

    def _export(self) -> tuple[str, bytes]:
        return f"readings-{date.today():%Y-%m-%d}.csv", self.records.export_csv()


def _reading_rows(rows: tuple[CaseRow, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Read": sortable_times(row.read_at for row in rows),
            "Modality": [row.kind for row in rows],
            "Decision": [decision_words(row) for row in rows],
            "Probability": [f"{row.label}, {percent(row.probability)}" for row in rows],
            "Model": [f"{row.model}@{row.version}" for row in rows],
            "Uploaded by": [row.read_by for row in rows],
            "Review": [review_words(row) for row in rows],
        }
    )
