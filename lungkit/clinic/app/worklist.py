"""Worklist: all readings of the clinic, the most urgent first; sort, search and filter, then open one."""

from collections.abc import Iterable
from datetime import date

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app.describe import (
    decision_name,
    decision_words,
    is_unread,
    most_urgent_first,
    probability_words,
    review_words,
    urgency,
)
from lungkit.clinic.app.page import field, sortable_time
from lungkit.clinic.app.screen import ALL, Filters, Screen, Table
from lungkit.clinic.records.cases import CaseRow, Records
from lungkit.errors import LungkitError
from lungkit.models.class_names import class_name

SHOWN = 1000  # rows in the table; the filters reach the others
WITHDRAWN = "Withdrawn"  # a choice of the filter; no other shows these
REVIEWED = {ALL: None, "Not reviewed": False, "Reviewed": True, WITHDRAWN: None}
URGENT, NEWEST = "Most urgent", "Newest"
ALL_READ = "No reading of this list waits for a review."


class WorklistScreen(Screen[Records]):
    """Filters, and the readings that match; filters stay while other screens are visited."""

    def build(self) -> None:
        self._all: list[CaseRow] = []
        self._rows: list[CaseRow] = []  # those that match, in the order of the list
        self.order = field(widgets.Dropdown, "Order", options=[URGENT, NEWEST])
        self.label = field(widgets.Dropdown, "Finding", options=[(ALL, ALL)])
        self.decision = field(widgets.Dropdown, "Decision", options=[(ALL, ALL)])
        self.reviewed = field(widgets.Dropdown, "Review", options=list(REVIEWED))
        self.filters = Filters(self.page, self._filter, self.label, self.decision, self.reviewed)
        self.filters.widget.children = (self.order, *self.filters.widget.children)
        self.page.on_change(self._filter, self.order)
        self.table = Table(
            self.page,
            {
                "Urgency": lambda row: urgency(row)[1],
                "Read": lambda row: sortable_time(row.read_at),
                "Patient": lambda row: row.number,
                "Name": lambda row: row.name,
                "Modality": lambda row: row.kind,
                "Decision": decision_words,
                "Probability": probability_words,
                "Review": review_words,
            },
            self.page.button("Open case", self._open, "primary").add_class("opens"),
            always=(self.page.button("Next unread", self._next),),
            name=lambda row: f"{row.number} · {row.name}",
            empty="No reading matches the filters.",
            page_length=25,
            kind="worklist-table",
        )
        self.lay_out("Worklist", self.filters.widget, self.table.widget)

    def refresh(self) -> None:
        """Load all readings."""
        self._all = self.records.worklist()
        self.filters.offer(self.label, _options(class_name(row.label) for row in self._all if row.label))
        self.filters.offer(self.decision, _options(decision_name(row.decision) for row in self._all if row.decision))
        self._filter()

    def following(self, reading_id: str = "") -> str | None:
        """The unread reading that comes next in the list after this one, from its beginning again after its end.

        What came since the list was made is before the others. None where nothing of the list waits for a review.
        """
        before = [row.reading_id for row in self._rows]
        self.refresh()
        place = before.index(reading_id) + 1 if reading_id in before else 0
        came = [row.reading_id for row in self._rows if row.reading_id not in set(before)]
        unread = {row.reading_id for row in self._rows if is_unread(row)} - {reading_id}
        return next((one for one in (*came, *before[place:], *before[:place]) if one in unread), None)

    def _filter(self) -> None:
        self._rows = [row for row in self._all if self._matches(row)]
        if self.order.value == URGENT:
            self._rows = most_urgent_first(self._rows)
        unread, whole = sum(map(is_unread, self._rows)), sum(map(self._is_listed, self._all))
        words = f"{len(self._rows):,} of {whole:,} readings, {unread:,} to review"
        if len(self._rows) > SHOWN:
            words += f". The first {SHOWN:,} are listed; choose dates to see others"
        self.table.show(self._rows[:SHOWN], words)

    def _is_listed(self, row: CaseRow) -> bool:
        """Whether it is of the list that is shown: of images that count, or of those that were withdrawn."""
        return bool(row.withdrawn) == bool(self.reviewed.value == WITHDRAWN)

    def _matches(self, row: CaseRow) -> bool:
        first, last = self.filters.first.value or date.min, self.filters.last.value or date.max
        return (
            self._is_listed(row)
            and self.label.value in (ALL, row.label and class_name(row.label))
            and self.decision.value in (ALL, row.decision and decision_name(row.decision))
            and REVIEWED[self.reviewed.value] in (None, row.reviewed)
            and not (row.superseded and REVIEWED[self.reviewed.value] is False)  # no review is needed
            and first <= times.local(row.read_at).date() <= last
        )

    def _open(self) -> None:
        self._show(self.table.selected().reading_id)

    def _next(self) -> None:
        item = self.table.item
        wanted = self.following(item.reading_id if item else "")
        if wanted is None:
            raise LungkitError(ALL_READ)
        self._show(wanted)

    def _show(self, reading_id: str) -> None:
        self.open_reading(reading_id, back="worklist", following=self.following)


def _options(values: Iterable[str]) -> list[tuple[str, str]]:
    return [(value, value) for value in sorted(set(values))]
