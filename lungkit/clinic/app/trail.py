"""Audit trail: who did what, on what, when; filtered, and checked for gaps and changes."""

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.admin import Table, local
from lungkit.clinic.app.page import notice
from lungkit.clinic.records.administration import Oversight
from lungkit.errors import LungkitError

SHOWN = 200  # events at a time
ANY = "All"
ANYBODY = 0  # no account has this number; None would leave the field empty


def view(oversight: Oversight, act: Callable) -> widgets.Widget:
    """The screen."""
    trail = Trail(oversight, act)
    trail.widget.refresh = trail.refresh
    return trail.widget


class Trail:
    """Filters and the newest events that fit them; older ones a step at a time."""

    def __init__(self, oversight: Oversight, act: Callable):
        self._oversight = oversight
        self._oldest: int | None = None
        self._filling = False
        self.action = widgets.Dropdown(description="Action", options=[ANY])
        self.person = widgets.Dropdown(description="Person", options=[(ANY, ANYBODY)])
        self.first = widgets.DatePicker(description="From")
        self.last = widgets.DatePicker(description="To")
        self.filters = [self.action, self.person, self.first, self.last]
        self.clear = widgets.Button(description="Clear filters").add_class("link")
        self.verify = widgets.Button(description="Verify the chain")
        self.verified = widgets.HTML()
        self.table = Table(act, empty="No event fits.")
        self.status = widgets.HTML()
        self.older = widgets.Button(description="Older events")
        self.newest = widgets.Button(description="Newest events")
        for field in self.filters:
            field.add_class("field")
            field.observe(act(lambda _: self._load()), "value")
        for button, action in (
            (self.clear, self._clear),
            (self.verify, self._verify),
            (self.older, lambda: self._load(self._oldest)),
            (self.newest, self._load),
        ):
            button.on_click(act(lambda _, action=action: action()))
        self.widget = widgets.VBox(
            [
                widgets.HTML(
                    "<h1>Audit trail</h1><p class='about'>Rows are only ever added; each carries the hash of the one "
                    "before, so that a change or a gap shows.</p>"
                ),
                widgets.HBox([self.verify]).add_class("actions"),
                self.verified,
                widgets.HBox([*self.filters, self.clear]).add_class("filters"),
                self.table.widget,
                self.status,
                widgets.HBox([self.older, self.newest]).add_class("actions"),
            ]
        )
        self.refresh()

    def refresh(self) -> None:
        """The newest events; filters stay."""
        self.verified.value = ""
        people = self._oversight.people()
        names = [(f"{row.full_name} ({row.name})", row.user_id) for row in people.itertuples(index=False)]
        self._fill(self.action, [ANY, *self._oversight.actions()])
        self._fill(self.person, [(ANY, ANYBODY), *names])
        self._load()

    def _fill(self, field: widgets.Dropdown, options: list) -> None:
        kept = field.value
        if list(field.options) == options:
            return
        self._filling = True
        try:
            field.options = options
            values = [option[1] if isinstance(option, tuple) else option for option in options]
            field.value = kept if kept in values else values[0]
        finally:
            self._filling = False

    def _clear(self) -> None:
        self._filling = True
        try:
            self.action.value, self.person.value = ANY, ANYBODY
            self.first.value = self.last.value = None
        finally:
            self._filling = False
        self._load()

    def _load(self, before: int | None = None) -> None:
        if self._filling:
            return
        events = self._oversight.trail(
            SHOWN + 1,
            action=None if self.action.value == ANY else self.action.value,
            user_id=self.person.value or None,
            before=before,
            since=_midnight(self.first.value),
            until=_midnight(self.last.value, days=1),
        )
        more, events = len(events) > SHOWN, events.head(SHOWN)
        self.table.show(
            pd.DataFrame(
                {
                    "No.": events["number"].astype(int),
                    "When": local(events["at"]),
                    "Who": [name or "nobody signed in" for name in events["user"]],
                    "Action": events["action"],
                    "On": events["object"],
                    "Detail": [_detail(detail) for detail in events["detail"]],
                }
            )
        )
        self._oldest = int(events["number"].iloc[-1]) if len(events) else None
        self.older.disabled, self.newest.disabled = not more, before is None
        found = f"{len(events)} events, newest first" + ("; there are older ones" if more else "")
        self.status.value = f'<p class="about" role="status">{found}.</p>'

    def _verify(self) -> None:
        self.verified.value = ""
        number = self._oversight.verify_trail()
        self.verified.value = notice(
            f"{number} events: none before the last one was changed, removed or put in. Events cut off at the end show "
            "only against a head noted earlier (lungkit audit verify --since).",
            "done",
        )


def _midnight(day: date | None, days: int = 0) -> datetime | None:
    """The beginning of a day here, or of one `days` later."""
    if day is None:
        return None
    try:
        return datetime.combine(day + timedelta(days=days), time()).astimezone()
    except (OverflowError, ValueError):
        raise LungkitError(f"{day}: no such day can be searched for; choose another") from None


def _detail(detail: dict) -> str:
    """A JSON object in words: "role: admin, readings: 3"."""
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in detail.items()
    )
