"""Patients: find them, see which images were read when and by whom, export all readings, erase a person."""

import base64
from collections.abc import Callable
from datetime import date

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.admin import Confirm, Table, local
from lungkit.clinic.app.download import Download
from lungkit.clinic.app.page import notice, percent, safe, when
from lungkit.clinic.app.search import heading
from lungkit.clinic.records.administration import Oversight
from lungkit.clinic.records.cases import CaseRow, PatientPage, PatientRow
from lungkit.errors import LungkitError

SHOWN = 200  # patients in the table; the search reaches the others
PICTURES = 60  # of one patient's images, the newest


def view(oversight: Oversight, act: Callable) -> widgets.Widget:
    """The screen."""
    patients = Patients(oversight, act)
    patients.widget.refresh = patients.refresh
    return patients.widget


class Patients:
    """A search, the patients found, and the images and readings of the one that is chosen."""

    def __init__(self, oversight: Oversight, act: Callable):
        self._oversight = oversight
        self._found: dict[str, PatientRow] = {}
        self.text = widgets.Text(
            description="Number or name", placeholder="All patients", continuous_update=False
        ).add_class("field")
        self.find = widgets.Button(description="Find")
        self.export = Download("Export all readings (CSV)", act(self._export), "text/csv")
        self.table = Table(act, self._chosen, "No patient found.")
        self.status = widgets.HTML()
        self.open = widgets.Button(description="Show images and readings").add_class("primary")
        self.erase = widgets.Button(description="Erase this patient …", button_style="danger")
        self.confirm = Confirm(act)
        self.said = widgets.HTML()
        self.head, self.pictures = widgets.HTML(), widgets.HTML()
        self.readings = Table(act, empty="No image of this patient was read.")
        self.history = widgets.VBox([self.head, self.readings.widget, self.pictures]).add_class("card")

        self.text.observe(act(lambda _: self._find()), "value")
        for button, action in ((self.find, self._find), (self.open, self._open), (self.erase, self._ask_erase)):
            button.on_click(act(lambda _, action=action: action()))
        self.actions = widgets.HBox([self.open, self.erase]).add_class("actions")
        self.widget = widgets.VBox(
            [
                widgets.HTML("<h1>Patients and images</h1>"),
                self.said,
                widgets.HBox([self.text, self.find, self.export]).add_class("filters"),
                self.table.widget,
                self.status,
                self.actions,
                self.confirm.widget,
                self.history,
            ]
        )
        self.refresh()

    def refresh(self) -> None:
        """Search anew; no patient's images are shown any more."""
        self.said.value = ""
        self._find()

    def _find(self) -> None:
        self._close_history()
        found = self._oversight.patients(self.text.value, SHOWN + 1)
        self._more, self._found = len(found) > SHOWN, {row.id: row for row in found[:SHOWN]}
        rows = list(self._found.values())
        self.table.show(
            pd.DataFrame(
                {
                    "Number": [row.number for row in rows],
                    "Name": [row.name for row in rows],
                    "Birth year": [str(row.birth_year or "") for row in rows],
                    "Sex": [row.sex for row in rows],
                }
            ),
            keys=list(self._found),
        )
        self._chosen()

    def _chosen(self) -> None:
        self.confirm.close()
        patient = self._patient()
        self.actions.layout.display = "none" if patient is None else ""
        count = f"The first {SHOWN}; type to find others" if self._more else f"{len(self._found)} found"
        words = "Select a row." if patient is None else f"Selected: {patient.number} · {patient.name}."
        self.status.value = f'<p class="about" role="status">{safe(count)}. {safe(words)}</p>'

    def _patient(self) -> PatientRow | None:
        return self._found.get(self.table.key)

    def _chosen_patient(self) -> PatientRow:
        patient = self._patient()
        if patient is None:
            raise LungkitError("Select one row of the table first.")
        return patient

    # --- one patient

    def _open(self) -> None:
        self._close_history()
        page = self._oversight.history(self._chosen_patient().id)
        count = f"{len(page.cases)} reading{'s' * (len(page.cases) != 1)}, newest first. That you opened this is noted."
        self.head.value = f'{heading(page.patient)}<p class="about">{count}</p>'
        self.readings.show(_readable(page))
        self.pictures.value = _pictures(page.cases[::-1][:PICTURES])
        self.history.layout.display = ""

    def _close_history(self) -> None:
        self.head.value = self.pictures.value = ""
        self.readings.show(pd.DataFrame())
        self.history.layout.display = "none"

    def _ask_erase(self) -> None:
        patient = self._chosen_patient()

        def erase():
            self._oversight.erase_patient(patient.id)
            self._find()
            self.said.value = notice(
                "The patient was erased with all images, readings and reviews. The audit trail notes that this was "
                "done, without a name. Backups made before still hold the patient.",
                "done",
            )

        self.said.value = ""
        self.confirm.ask(
            f"Erase {patient.number} · {patient.name} with all images, readings and reviews?",
            "Erase for good",
            erase,
            expected=patient.number,
        )

    def _export(self) -> tuple[str, bytes]:
        return f"readings-{date.today():%Y-%m-%d}.csv", self._oversight.export_csv()


def _readable(page: PatientPage) -> pd.DataFrame:
    rows = page.cases[::-1]
    return pd.DataFrame(
        {
            "Read": local(row.read_at for row in rows),
            "Kind": [row.kind for row in rows],
            "Decision": [row.decision for row in rows],
            "Class": [f"{row.label}, {percent(row.probability)}" for row in rows],
            "Model": [f"{row.model}@{row.version}" for row in rows],
            "Read by": [row.read_by for row in rows],
            "Review": [_review(row) for row in rows],
        }
    )


def _review(row: CaseRow) -> str:
    if not row.reviewed:
        return "not reviewed"
    return f"{'agreed' if row.agrees else f'corrected to {row.reviewer_label}'}, {row.reviewer}"


def _pictures(rows: tuple[CaseRow, ...]) -> str:
    return f'<div class="history">{"".join(map(_picture, rows))}</div>'


def _picture(row: CaseRow) -> str:
    pixels = base64.b64encode(row.thumbnail).decode()
    return (
        f'<figure><img src="data:image/png;base64,{pixels}" alt="{safe(row.kind)} of {safe(when(row.read_at))}">'
        f"<figcaption><b>{safe(row.decision)}</b> {safe(when(row.read_at))}</figcaption></figure>"
    )
