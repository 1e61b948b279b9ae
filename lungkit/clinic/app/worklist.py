"""Worklist: all readings of the clinic, newest first; sort, search and filter, then open one."""

from collections.abc import Iterable
from datetime import date

import ipywidgets as widgets

from lungkit.clinic.app.describe import decision_name, decision_words, probability_words, review_words
from lungkit.clinic.app.page import field, sortable_time
from lungkit.clinic.app.screen import ALL, Filters, Screen, Table
from lungkit.clinic.records.cases import CaseRow, Records

SHOWN = 1000  # rows in the table; the filters reach the others
REVIEWED = {ALL: None, "Not reviewed": False, "Reviewed": True}


class WorklistScreen(Screen[Records]):
    """Filters, and the readings that match; filters stay while other screens are visited."""

    def build(self) -> None:
        self._all: list[CaseRow] = []
        self.label = field(widgets.Dropdown, "Finding", options=[(ALL, ALL)])
        self.decision = field(widgets.Dropdown, "Decision", options=[(ALL, ALL)])
        self.reviewed = field(widgets.Dropdown, "Review", options=list(REVIEWED))
        self.filters = Filters(self.page, self._filter, self.label, self.decision, self.reviewed)
        self.table = Table(
            self.page,
            {
                "Read": lambda row: sortable_time(row.read_at),
                "Patient": lambda row: row.number,
                "Name": lambda row: row.name,
                "Modality": lambda row: row.kind,
                "Decision": decision_words,
                "Probability": probability_words,
                "Model": lambda row: f"{row.model}@{row.version}",
                "Review": review_words,
            },
            self.page.button("Open case", self._open, "primary"),
            name=lambda row: f"{row.number} · {row.name}",
            empty="No reading matches the filters.",
            page_length=25,
            kind="worklist-table",
        )
        self.lay_out("Worklist", self.filters.widget, self.table.widget)

    def refresh(self) -> None:
        """Load all readings."""
        self._all = self.records.worklist()
        self.filters.offer(self.label, _options(row.label for row in self._all))
        self.filters.offer(self.decision, _options(row.decision for row in self._all))
        self._filter()

    def _filter(self) -> None:
        rows = [row for row in self._all if self._matches(row)]
        words = f"{len(rows):,} of {len(self._all):,} readings"
        if len(rows) > SHOWN:
            words += f". The newest {SHOWN:,} are listed; choose dates to see others"
        self.table.show(rows[:SHOWN], words)

    def _matches(self, row: CaseRow) -> bool:
        first, last = self.filters.first.value or date.min, self.filters.last.value or date.max
        return (
            self.label.value in (ALL, row.label)
            and self.decision.value in (ALL, row.decision)
            and REVIEWED[self.reviewed.value] in (None, row.reviewed)
            and not (row.superseded and REVIEWED[self.reviewed.value] is False)  # no review is needed
            and first <= row.read_at.astimezone().date() <= last
        )

    def _open(self) -> None:
        self.page.go("reading", reading_id=self.table.selected().reading_id, back="worklist")


def _options(values: Iterable[str | None]) -> list[tuple[str, str]]:
    return [(decision_name(value), value) for value in sorted({value for value in values if value})]
