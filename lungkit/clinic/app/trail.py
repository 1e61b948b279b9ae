"""Audit trail: who did what, and when; with filters and a check for gaps and changes."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app.page import field, sortable_time
from lungkit.clinic.app.screen import ALL, Filters, Screen, Table
from lungkit.clinic.records.administration import Administration
from lungkit.errors import LungkitError
from lungkit.wording import count

SHOWN = 200  # events at a time
ACTIONS = {  # as the trail names them, in words
    "access.refused": "Action refused",
    "caller.add": "DICOM system added",
    "caller.refused": "DICOM system refused",
    "caller.set": "DICOM system switched",
    "case.move": "Image moved to another patient",
    "case.not_saved": "Image not saved, as it may be another patient's",
    "case.open": "Case opened",
    "case.review": "Case reviewed",
    "case.save": "Case saved",
    "case.withdraw": "Image withdrawn",
    "destination.add": "Destination added",
    "destination.remove": "Destination removed",
    "destination.set": "Destination switched",
    "drift.run": "Drift looked at",
    "drift.tell": "Drift told to people",
    "job.again": "Job read again",
    "job.cancel": "Job cancelled",
    "key.add": "API key made",
    "key.refused": "API key refused",
    "key.revoke": "API key revoked",
    "learn.collect": "Data set collected",
    "learn.export": "Data set for research exported",
    "model.promote": "Model put in use",
    "model.roll_back": "Model rolled back",
    "patient.exclude": "Patient excluded from, or included in, learning",
    "patient.erase": "Patient erased",
    "patient.open": "Patient opened",
    "records.export": "Records exported",
    "records.restore": "Backup restored",
    "result.again": "Result sent again",
    "result.give_up": "Result not sent any more",
    "result.not_sent": "Result could not be sent",
    "result.send": "Result sent",
    "route.add": "Rule added",
    "route.change": "Rule changed",
    "route.remove": "Rule removed",
    "route.set": "Rule switched",
    "route.try": "Rule tried",
    "session.end": "Signed out",
    "session.refused": "Sign-in refused",
    "session.start": "Signed in",
    "setting.change": "Setting changed",
    "shadow.set": "Version named to read in the shadow, or none any more",
    "study.complete": "Study complete",
    "trial.look": "Locked set looked at",
    "trial.open": "Version measured in a trial",
    "trial.reject": "Version rejected",
    "trial.roll_back": "Version of a trial taken back",
    "trial.sign": "Trial signed",
    "user.add": "Account added",
    "user.disable": "Account disabled",
    "user.enable": "Account enabled",
    "user.password": "Password reset",
    "user.role": "Role changed",
}


class AuditTrailScreen(Screen[Administration]):
    """Filters and the newest events that match them; older ones a step at a time."""

    def build(self) -> None:
        self._oldest: int | None = None
        self.action = field(widgets.Dropdown, "Action", options=[(ALL, ALL)])
        self.person = field(widgets.Dropdown, "Person", options=[(ALL, ALL)])
        self.filters = Filters(self.page, self._load, self.action, self.person)
        self.verify = self.page.button("Verify the audit trail", self._verify)
        self.older = self.page.button("Older events", lambda: self._load(self._oldest))
        self.newest = self.page.button("Newest events", self._load)
        self.table = Table(
            self.page,
            {
                "No.": lambda event: event.number,
                "Time": lambda event: sortable_time(event.at),
                "User": lambda event: event.user or "not signed in",
                "Action": lambda event: ACTIONS.get(event.action, event.action),
                "Object": lambda event: event.object,
                "Details": lambda event: _detail_words(event.detail),
            },
            empty="No event matches the filters.",
        )
        self.lay_out(
            "Audit trail",
            self.filters.widget,
            widgets.HBox([self.older, self.newest, self.verify]).add_class("actions"),
            self.table.widget,
            about="Events are only added. Each contains the hash of the one before, which reveals changes and gaps.",
        )

    def refresh(self) -> None:
        """The newest events; filters stay."""
        people = self.records.people()
        actions = ((ACTIONS.get(action, action), action) for action in self.records.actions())
        self.filters.offer(self.action, sorted(actions))
        self.filters.offer(self.person, [(f"{person.full_name} ({person.name})", person.user_id) for person in people])
        self._load()

    def _load(self, before: int | None = None) -> None:
        events = self.records.trail(
            SHOWN + 1,
            action=None if self.action.value == ALL else self.action.value,
            user_id=None if self.person.value == ALL else self.person.value,
            before=before,
            since=_midnight(self.filters.first.value),
            until=_midnight(self.filters.last.value, days=1),
        )
        more, events = len(events) > SHOWN, events[:SHOWN]
        words = f"{count(len(events), 'event')}, newest first{'; older ones follow' if more else ''}"
        self.table.show(events, words)
        self._oldest = events[-1].number if events else None
        self.older.disabled, self.newest.disabled = not more, before is None

    def _verify(self) -> None:
        number = self.records.verify_trail()
        self.page.say(
            f"{count(number, 'event')} checked: none before the last one was changed, removed or inserted. Events cut "
            "off at the end show only against a hash noted earlier (lungkit audit verify --since).",
            "done",
        )


def _midnight(day: date | None, days: int = 0) -> datetime | None:
    """Midnight in the clinic at the beginning of a day, or of one `days` later."""
    if day is None:
        return None
    try:
        return times.midnight(day + timedelta(days=days)).astimezone(UTC)
    except (OverflowError, ValueError):
        raise LungkitError(f"{day} cannot be searched for. Choose another day") from None


def _detail_words(detail: dict[str, Any]) -> str:
    """A JSON object in words: "role: admin, readings: 3"."""
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in detail.items()
    )
