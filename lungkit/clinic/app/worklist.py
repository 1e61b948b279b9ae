"""Worklist: all readings of the clinic, newest first; sort, search and filter, then open one."""

from datetime import date

import ipywidgets as widgets
import numpy as np
import pandas as pd

from lungkit.clinic.app.describe import decision_name, decision_words, review_words
from lungkit.clinic.app.screen import Screen, Table
from lungkit.wording import percent

SHOWN = 1000  # rows in the table; the filters reach the others
ALL = "All"
REVIEWED = {ALL: None, "Not reviewed": False, "Reviewed": True}


class WorklistScreen(Screen):
    """Filters, and the readings that match; filters stay while other screens are visited."""

    def __init__(self, *given):
        super().__init__(*given)
        self._all = pd.DataFrame()
        self.label = widgets.Dropdown(description="Finding", options=[ALL])
        self.decision = widgets.Dropdown(description="Decision", options=[ALL])
        self.first = widgets.DatePicker(description="From")
        self.last = widgets.DatePicker(description="To")
        self.reviewed = widgets.Dropdown(description="Review", options=list(REVIEWED))
        self.filters = [self.label, self.decision, self.first, self.last, self.reviewed]
        for field in self.filters:
            field.add_class("field")
        self.on_change(self._filter, *self.filters)
        self.clear = self.button("Clear filters", self._clear, "link")
        self.open = self.button("Open case", self._open, "primary")
        self.table = Table(
            self.page,
            self.open,
            name=lambda row: f"{row.number} · {row.name}",
            empty="No reading matches the filters.",
            page_length=25,
            kind="worklist-table",
        )
        self.lay_out("Worklist", widgets.HBox([*self.filters, self.clear]).add_class("filters"), self.table.widget)

    def refresh(self) -> None:
        """Load all readings."""
        self._all = self.records.worklist()
        # Local time, with summer time on the days that have it; a fixed offset would be wrong for half the year.
        self._all["here"] = pd.Series([at.to_pydatetime().astimezone() for at in self._all["read_at"]], dtype=object)
        for field, values in ((self.label, self._all["label"]), (self.decision, self._all["decision"])):
            options = [(ALL, ALL), *((decision_name(value), value) for value in sorted(values.unique()))]
            if list(field.options) != options:
                kept = field.value
                field.options = options
                field.value = kept if kept in dict(options).values() else ALL
        self._filter()

    def _filter(self) -> None:
        rows = self._all
        first, last = self.first.value or date.min, self.last.value or date.max
        matches = np.array([first <= at.date() <= last for at in rows["here"]], bool)
        for column, value in (
            ("label", None if self.label.value == ALL else self.label.value),
            ("decision", None if self.decision.value == ALL else self.decision.value),
            ("reviewed", REVIEWED[self.reviewed.value]),
        ):
            if value is not None:
                matches &= (rows[column] == value).to_numpy()
        rows = list(self._all[matches].itertuples(index=False))
        words = f"{len(rows):,} of {len(self._all):,} readings"
        if len(rows) > SHOWN:
            words += f". The newest {SHOWN:,} are listed; choose dates to see others"
        self.table.show(_worklist_rows(rows[:SHOWN]), rows[:SHOWN], words)

    def _clear(self) -> None:
        self.label.value = self.decision.value = self.reviewed.value = ALL
        self.first.value = self.last.value = None

    def _open(self) -> None:
        self.page.go("reading", reading_id=self.table.selected().reading_id, back="worklist")


def _worklist_rows(rows: list) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Read": [f"{row.here:%Y-%m-%d %H:%M}" for row in rows],
            "Patient": [row.number for row in rows],
            "Name": [row.name for row in rows],
            "Modality": [row.kind for row in rows],
            "Decision": [decision_words(row, row.flagged) for row in rows],
            "Probability": [percent(row.probability) for row in rows],
            "Model": [f"{row.model}@{row.version}" for row in rows],
            "Review": [review_words(row) for row in rows],
        }
    )
