"""Programs: the API keys that programs call the gateway with; make one, revoke one."""

import ipywidgets as widgets

from lungkit.clinic.app.browser import Drafts
from lungkit.clinic.app.page import field, safe, show_if, sortable_time
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.keys import DAYS, MOST_DAYS, MOST_PER_MINUTE, PER_MINUTE, KeyRow
from lungkit.clinic.records.tables import SCOPES
from lungkit.wording import count

_SCOPES = {
    "predict": "send images and get their results",
    "read": "see own jobs and results",
    "admin": "see those of all programs",
}


class ProgramsScreen(Screen[Administration]):
    """The keys, what can be done with the one that is selected, and a form for a new one."""

    def build(self) -> None:
        button = self.page.button
        self.revoke = button("Revoke key …", self._ask_revoke)
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            {
                "Program": lambda key: key.program,
                "Key": lambda key: f"lk_{key.id}_…",
                "Allows": lambda key: ", ".join(key.scopes),
                "A minute": lambda key: key.per_minute,
                "State": lambda key: key.state,
                "Expires": lambda key: sortable_time(key.expires_at)[:10],
                "Last used": lambda key: sortable_time(key.last_used_at) or "never",
            },
            self.revoke,
            name=_named,
            on_select=self._selected,
            empty="No program has a key yet.",
        )
        self.secret = widgets.HTML()
        self.hide = button("I have noted it. Hide it", self._hide)
        self.program = field(widgets.Text, "Program", placeholder="a-z, 0-9, . _ @ -")
        self.drafts = Drafts(self.page.browser, {"program": self.program})
        self.scopes = {
            scope: widgets.Checkbox(
                description=f"{scope}: {_SCOPES[scope]}", value=scope != "admin", indent=False
            ).add_class("wide")
            for scope in SCOPES
        }
        self.days = field(widgets.BoundedIntText, "Valid for (days)", value=DAYS, min=1, max=MOST_DAYS)
        self.rate = field(widgets.BoundedIntText, "Requests a minute", value=PER_MINUTE, min=1, max=MOST_PER_MINUTE)
        self.add = button("Make key", self._add, "primary")
        heading = widgets.HTML(
            "<h2>Make a key</h2><p class='about'>The key is shown once. A program can have several: make the next one, "
            "give it to the program, then revoke the one before.</p>"
        )
        form = widgets.HBox([self.program, self.days, self.rate, self.add]).add_class("filters")
        self.lay_out(
            "Programs",
            widgets.VBox([self.secret, self.hide]).add_class("password"),
            self.confirm.widget,
            self.table.widget,
            widgets.VBox([heading, form, *self.scopes.values()]).add_class("card"),
            about="Programs call the gateway (lungkit gateway) with an API key. They never sign in here.",
        )

    def refresh(self) -> None:
        """Load all keys; one that was shown is gone."""
        self._hide()
        self._load()

    def _load(self) -> None:
        rows = self.records.keys()
        self.table.show(rows, count(len(rows), "key"))

    def _selected(self) -> None:
        self.confirm.close()
        self.revoke.disabled = self.table.item is None or self.table.item.state == "revoked"

    def _ask_revoke(self) -> None:
        key = self.table.selected()
        self.confirm.ask(
            f"Revoke {_named(key)}? Its next request is refused, and its jobs that wait are cancelled. Results stay.",
            "Revoke key",
            lambda: self._revoke(key),
        )

    def _revoke(self, key: KeyRow) -> None:
        self.records.revoke_key(key.id)
        self.refresh()
        self.page.say(f"{_named(key)} is revoked.", "done")

    def _add(self) -> None:
        program = self.program.value.strip().lower()
        chosen = [scope for scope, box in self.scopes.items() if box.value]
        key = self.records.add_key(program, chosen, self.days.value, self.rate.value)
        self._load()
        self.program.value = ""
        self.drafts.forget()
        self.secret.value = (
            f'<p role="status">Key of <b>{safe(program)}</b>, shown only once:</p><code>{safe(key)}</code>'
        )
        show_if(True, self.hide)
        self.page.say(f"{program} has a new key.", "done")

    def _hide(self) -> None:
        self.secret.value = ""
        show_if(False, self.hide)


def _named(key: KeyRow) -> str:
    return f"the key lk_{key.id}_… of {key.program}"
