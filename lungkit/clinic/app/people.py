"""People: who may sign in and with which role; add, disable, change the role, reset a password."""

from collections.abc import Callable

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.describe import count
from lungkit.clinic.app.page import safe, show_if, sortable_times
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.tables import ROLES
from lungkit.errors import LungkitError


class PeopleScreen(Screen):
    """The accounts, what can be done with the one that is selected, and a form for a new one."""

    def __init__(self, *given):
        super().__init__(*given)
        self.switch = self.button("Disable account …", self._ask_switch)
        self.reset = self.button("Reset password …", self._ask_reset)
        self.role = widgets.Dropdown(description="Role of this person", options=ROLES).add_class("field")
        self.change = self.button("Change role …", self._ask_role)
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            *(self.role, self.change, self.reset, self.switch),
            name=_who,
            on_select=self._selected,
        )
        self.password = widgets.HTML()
        self.hide = self.button("I have noted it. Hide it", self._hide_password)

        self.name = widgets.Text(description="User name", placeholder="a-z, 0-9, . _ @ -").add_class("field")
        self.full_name = widgets.Text(description="Full name").add_class("field")
        self.new_role = widgets.Dropdown(description="Role", options=ROLES).add_class("field")
        self.add = self.button("Add person", self._add, "primary")
        heading = widgets.HTML(
            "<h2>Add a person</h2><p class='about'>A password is generated and shown once. Hand it over in person.</p>"
        )
        form = widgets.HBox([self.name, self.full_name, self.new_role, self.add]).add_class("filters")
        self.lay_out(
            "People",
            widgets.VBox([self.password, self.hide]).add_class("password"),
            self.confirm.widget,
            self.table.widget,
            widgets.VBox([heading, form]).add_class("card"),
        )

    def refresh(self) -> None:
        """Load all accounts; a password that was shown is gone."""
        self._hide_password()
        self._load()

    def _load(self) -> None:
        rows = self.records.people()
        self.table.show(
            pd.DataFrame(
                {
                    "User name": rows["name"],
                    "Full name": rows["full_name"],
                    "Role": rows["role"],
                    "State": ["active" if active else "disabled" for active in rows["active"]],
                    "Last seen": [seen or "never" for seen in sortable_times(rows["last_seen"])],
                    "Open sessions": rows["sessions"],
                    "Since": [at[:10] for at in sortable_times(rows["created_at"])],
                }
            ),
            list(rows.itertuples(index=False)),
            count(len(rows), "account"),
        )

    def _selected(self) -> None:
        self.confirm.close()
        person = self.table.item
        self.switch.description = "Disable account …" if person is None or person.active else "Enable account"
        if person is not None:
            self.role.value = person.role

    # --- what can be done

    def _ask_switch(self) -> None:
        person = self.table.selected()
        user_id = int(person.user_id)
        if not person.active:
            self._done(lambda: self.records.enable(user_id), f"{person.name} can sign in again.")
            return
        self.confirm.ask(
            f"Disable {_who(person)}? Open sessions end at once. Saved records stay.",
            "Disable account",
            lambda: self._done(lambda: self.records.disable(user_id), f"{person.name} can no longer sign in."),
        )

    def _ask_role(self) -> None:
        person, role = self.table.selected(), self.role.value
        if role == person.role:
            raise LungkitError(f"{person.name} already has the role {role}. Choose the other role first.")
        self.confirm.ask(
            f"Give {_who(person)} the role {role}? It applies from the next click, also in open sessions.",
            f"Make {role}",
            lambda: self._done(
                lambda: self.records.set_role(int(person.user_id), role), f"{person.name} now has the role {role}."
            ),
        )

    def _ask_reset(self) -> None:
        person = self.table.selected()
        self.confirm.ask(
            f"Reset the password of {_who(person)}? The old password stops working and open sessions end.",
            "Reset password",
            lambda: self._done(
                lambda: self._show_password(person.name, self.records.reset_password(int(person.user_id))),
                f"{person.name} has a new password. Open sessions have ended.",
            ),
        )

    def _add(self) -> None:
        name, role = self.name.value.strip().lower(), self.new_role.value

        def add():
            self._show_password(name, self.records.add_user(name, self.full_name.value, role))
            self.name.value = self.full_name.value = ""

        self._done(add, f"{name} was added with the role {role}.")

    def _done(self, action: Callable[[], None], words: str) -> None:
        self._hide_password()
        action()
        self._load()
        self.page.say(words, "done")

    def _show_password(self, name: str, password: str) -> None:
        self.password.value = (
            f'<p role="status">Password of <b>{safe(name)}</b>, shown only once:</p><code>{safe(password)}</code>'
        )
        show_if(True, self.hide)

    def _hide_password(self) -> None:
        self.password.value = ""
        show_if(False, self.hide)


def _who(person) -> str:
    return f"{person.full_name} ({person.name})"
