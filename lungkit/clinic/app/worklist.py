"""Worklist: all readings of the clinic, newest first; sort, search and filter, then open one."""

from collections.abc import Callable
from datetime import date

import ipywidgets as widgets
import numpy as np
import pandas as pd
from itables.widget import ITable

from lungkit.clinic.app.page import safe
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import Records
from lungkit.clinic.words import percent
from lungkit.errors import LungkitError

SHOWN = 1000  # rows in the table; the filters reach the others
ALL = "All"
REVIEWED = {ALL: None, "Not reviewed": False, "Reviewed": True}


def view(records: Records, models, act: Callable, go: Callable) -> widgets.Widget:
    """The screen; filters stay while other screens are visited."""
    worklist = Worklist(records, act, go)
    worklist.widget.refresh = worklist.refresh
    return worklist.widget


class Worklist:
    """Filters, the table, and a button that opens the row that is selected."""

    def __init__(self, records: Records, act: Callable, go: Callable):
        self._records, self._go = records, go
        self._all = self.shown = pd.DataFrame()
        self.label = widgets.Dropdown(description="Class", options=[ALL])
        self.decision = widgets.Dropdown(description="Decision", options=[ALL])
        self.first = widgets.DatePicker(description="From")
        self.last = widgets.DatePicker(description="To")
        self.reviewed = widgets.Dropdown(description="Review", options=list(REVIEWED))
        self.filters = [self.label, self.decision, self.first, self.last, self.reviewed]
        self.clear = widgets.Button(description="Clear filters").add_class("link")
        self.open = widgets.Button(description="Open case", disabled=True).add_class("primary")
        self.status = widgets.HTML()
        self.table = ITable(
            _readable(pd.DataFrame(columns=_COLUMNS)),
            select={"style": "single", "keys": True},
            showIndex=False,
            maxBytes=0,  # all rows that are given: a sampled table would point at other rows
            order=[],  # newest first, as given, until a column is clicked
            pageLength=25,
            lengthMenu=[10, 25, 50, 100],
            classes="display clinic-table worklist-table",
            style="table-layout:auto;width:100%",
        )
        for part in self.filters:
            part.add_class("field")
            part.observe(act(lambda _: self._filter()), "value")
        self.clear.on_click(act(lambda _: self._cleared()))
        self.open.on_click(act(lambda _: self._open()))
        self.table.observe(act(lambda _: self._selected()), "selected_rows")
        self.widget = widgets.VBox(
            [
                widgets.HTML("<h1>Worklist</h1>"),
                widgets.HBox([*self.filters, self.clear]).add_class("filters"),
                widgets.HBox([self.open, self.status]).add_class("table-actions"),
                self.table,
            ]
        )
        self.refresh()

    def refresh(self) -> None:
        """Load all readings anew."""
        rows = self._records.worklist()
        # This place's own time, summer time included, which a fixed offset would miss.
        rows["here"] = pd.Series([at.to_pydatetime().astimezone() for at in rows["read_at"]], dtype=object)
        self._all = rows
        for field, values in ((self.label, self._all["label"]), (self.decision, self._all["decision"])):
            options = [ALL, *sorted(values.unique())]
            if list(field.options) != options:
                kept = field.value
                field.options = options
                field.value = kept if kept in options else ALL
        self._filter()

    def _filter(self) -> None:
        rows = self._all
        if self.label.value != ALL:
            rows = rows[rows["label"] == self.label.value]
        if self.decision.value != ALL:
            rows = rows[rows["decision"] == self.decision.value]
        if (reviewed := REVIEWED[self.reviewed.value]) is not None:
            rows = rows[rows["reviewed"] == reviewed]
        first, last = self.first.value or date.min, self.last.value or date.max
        rows = rows[np.array([first <= at.date() <= last for at in rows["here"]], bool)]
        self.shown = rows.head(SHOWN)
        self.table.update(_readable(self.shown), selected_rows=[])
        found = f"{len(rows):,} of {len(self._all):,} readings"
        if len(rows) > SHOWN:
            found += f"; the newest {SHOWN:,} are listed, choose dates to see others"
        self._found = found
        self._selected()

    def _cleared(self) -> None:
        self.label.value = self.decision.value = self.reviewed.value = ALL
        self.first.value = self.last.value = None

    def _row(self) -> pd.Series | None:
        """The selected row; None where there is none, or where the browser names one that is not listed."""
        match self.table.selected_rows:
            case [int(place)] if 0 <= place < len(self.shown):
                return self.shown.iloc[place]
        return None

    def _selected(self) -> None:
        row = self._row()
        self.open.disabled = row is None
        hint = "Select a row, then open it." if row is None else f"Selected: {row['number']} · {row['name']}."
        self.status.value = f'<span role="status">{safe(self._found)}. {safe(hint)}</span>'

    def _open(self) -> None:
        row = self._row()
        if row is None:
            raise LungkitError("Select one row of the table first.")
        self._go("case", reading_id=row["reading_id"], back="worklist")


_COLUMNS = ["here", "number", "name", "kind", "decision", "label", "probability", "flagged", "model", "version",
            "reviewed", "agrees", "reviewer", "reviewer_label"]  # fmt: skip


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it; the table escapes what it shows."""
    return pd.DataFrame(
        {
            "Read": [f"{at:%Y-%m-%d %H:%M}" for at in rows["here"]],
            "Patient": rows["number"],
            "Name": rows["name"],
            "Kind": rows["kind"],
            "Decision": [_decided(row) for row in rows.itertuples()],
            "Probability": [percent(p) for p in rows["probability"]],
            "Model": rows["model"] + "@" + rows["version"],
            "Review": [_review(row) for row in rows.itertuples()],
        }
    ).reset_index(drop=True)


def _decided(row) -> str:
    if row.decision != REVIEW:
        return row.decision
    return f"? review ({row.label}{', image check failed' if row.flagged else ''})"


def _review(row) -> str:
    if not row.reviewed:
        return "not reviewed"
    return f"{'agreed' if row.agrees else 'corrected to ' + row.reviewer_label}, {row.reviewer}"
