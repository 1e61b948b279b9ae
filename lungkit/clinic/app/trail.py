"""Audit trail: who did what, and when; with filters and a check for gaps and changes."""

import json
from datetime import date, datetime, time, timedelta

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.describe import count
from lungkit.clinic.app.page import sortable_times
from lungkit.clinic.app.screen import Screen, Table
from lungkit.errors import LungkitError

SHOWN = 200  # events at a time
ANY = "All"
ANYONE = 0  # no account has this number; None would leave the field empty


class AuditTrailScreen(Screen):
    """Filters and the newest events that match them; older ones a step at a time."""

    def __init__(self, *given):
        super().__init__(*given)
        self._oldest: int | None = None
        self._paused = False
        self.action = widgets.Dropdown(description="Action", options=[ANY])
        self.person = widgets.Dropdown(description="Person", options=[(ANY, ANYONE)])
        self.first = widgets.DatePicker(description="From")
        self.last = widgets.DatePicker(description="To")
        self.filters = [self.action, self.person, self.first, self.last]
        for field in self.filters:
            field.add_class("field")
        self.on_change(self._load, *self.filters)
        self.clear = self.button("Clear filters", self._clear, "link")
        self.verify = self.button("Verify the audit trail", self._verify)
        self.older = self.button("Older events", lambda: self._load(self._oldest))
        self.newest = self.button("Newest events", self._load)
        self.table = Table(self.page, empty="No event matches the filters.")
        self.lay_out(
            "Audit trail",
            widgets.HBox([*self.filters, self.clear]).add_class("filters"),
            widgets.HBox([self.older, self.newest, self.verify]).add_class("actions"),
            self.table.widget,
            about="Events are only added. Each contains the hash of the one before, which reveals changes and gaps.",
        )

    def refresh(self) -> None:
        """The newest events; filters stay."""
        people = self.records.people()
        names = [(f"{row.full_name} ({row.name})", row.user_id) for row in people.itertuples(index=False)]
        self._offer(self.action, [ANY, *self.records.actions()])
        self._offer(self.person, [(ANY, ANYONE), *names])
        self._load()

    def _offer(self, field: widgets.Dropdown, options: list) -> None:
        """Change what a filter offers, not what it is set to."""
        kept = field.value
        if list(field.options) == options:
            return
        values = [option[1] if isinstance(option, tuple) else option for option in options]
        self._paused = True
        try:
            field.options = options
            field.value = kept if kept in values else values[0]
        finally:
            self._paused = False

    def _clear(self) -> None:
        self._paused = True
        try:
            self.action.value, self.person.value = ANY, ANYONE
            self.first.value = self.last.value = None
        finally:
            self._paused = False
        self._load()

    def _load(self, before: int | None = None) -> None:
        if self._paused:
            return
        events = self.records.trail(
            SHOWN + 1,
            action=None if self.action.value == ANY else self.action.value,
            user_id=self.person.value or None,
            before=before,
            since=_midnight(self.first.value),
            until=_midnight(self.last.value, days=1),
        )
        more, events = len(events) > SHOWN, events.head(SHOWN)
        words = f"{count(len(events), 'event')}, newest first{'; older ones follow' if more else ''}"
        self.table.show(
            pd.DataFrame(
                {
                    "No.": events["number"].astype(int),
                    "Time": sortable_times(events["at"]),
                    "User": [name or "not signed in" for name in events["user"]],
                    "Action": events["action"],
                    "Object": events["object"],
                    "Details": [_detail_words(detail) for detail in events["detail"]],
                }
            ),
            found=words,
        )
        self._oldest = int(events["number"].iloc[-1]) if len(events) else None
        self.older.disabled, self.newest.disabled = not more, before is None

    def _verify(self) -> None:
        number = self.records.verify_trail()
        self.page.say(
            f"{count(number, 'event')} checked: none before the last one was changed, removed or inserted. Events cut "
            "off at the end show only against a hash noted earlier (lungkit audit verify --since).",
            "done",
        )


def _midnight(day: date | None, days: int = 0) -> datetime | None:
    """Local midnight at the beginning of a day, or of one `days` later."""
    if day is None:
        return None
    try:
        return datetime.combine(day + timedelta(days=days), time()).astimezone()
    except (OverflowError, ValueError):
        raise LungkitError(f"{day} cannot be searched for. Choose another day") from None


def _detail_words(detail: dict) -> str:
    """A JSON object in words: "role: admin, readings: 3"."""
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in detail.items()
    )
