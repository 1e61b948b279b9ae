"""People: who may sign in and with which role; add, disable, change the role, reset a password."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.browser import Drafts
from lungkit.clinic.app.page import field, safe, show_if, sortable_time
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.accounts import Account
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import ROLES
from lungkit.errors import LungkitError
from lungkit.wording import count


class PeopleScreen(Screen[Administration]):
    """The accounts, what can be done with the one that is selected, and a form for a new one."""

    def build(self) -> None:
        button = self.page.button
        self.switch = button("Disable account …", self._ask_switch)
        self.reset = button("Reset password …", self._ask_reset)
        self.role = field(widgets.Dropdown, "Role of this person", options=ROLES)
        self.change = button("Change role …", self._ask_role)
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            {
                "User name": lambda person: person.name,
                "Full name": lambda person: person.full_name,
                "Role": lambda person: person.role,
                "State": lambda person: "active" if person.active else "disabled",
                "Last seen": lambda person: sortable_time(person.last_seen) or "never",
                "Open sessions": lambda person: person.sessions,
                "Since": lambda person: sortable_time(person.created_at)[:10],
            },
            *(self.role, self.change, self.reset, self.switch),
            name=_full_and_user_name,
            on_select=self._selected,
        )
        self.password = widgets.HTML()
        self.hide = button("I have noted it. Hide it", self._hide_password)

        self.name = field(widgets.Text, "User name", placeholder="a-z, 0-9, . _ @ -")
        self.full_name = field(widgets.Text, "Full name")
        self.drafts = Drafts(self.page.browser, {"person-name": self.name, "person-full-name": self.full_name})
        self.new_role = field(widgets.Dropdown, "Role", options=ROLES)
        self.add = button("Add person", self._add, "primary")
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
        people = self.records.people()
        self.table.show(people, count(len(people), "account"))

    def _selected(self) -> None:
        self.confirm.close()
        person = self.table.item
        self.switch.description = "Disable account …" if person is None or person.active else "Enable account"
        if person is not None:
            self.role.value = person.role

    # --- what can be done

    def _ask_switch(self) -> None:
        person = self.table.selected()
        if not person.active:
            self._do(lambda: self.records.enable(person.name), f"{person.name} can sign in again.")
            return
        self._ask(
            f"Disable {_full_and_user_name(person)}? Open sessions end at once. Saved records stay.",
            "Disable account",
            lambda: self.records.disable(person.name),
            f"{person.name} can no longer sign in.",
        )

    def _ask_role(self) -> None:
        person, role = self.table.selected(), self.role.value
        if role == person.role:
            raise LungkitError(f"{person.name} already has the role {role}. Choose the other role first.")
        self._ask(
            f"Give {_full_and_user_name(person)} the role {role}? It applies from the next click, also in open "
            "sessions.",
            f"Make {role}",
            lambda: self.records.set_role(person.name, role),
            f"{person.name} now has the role {role}.",
        )

    def _ask_reset(self) -> None:
        person = self.table.selected()
        self._ask(
            f"Reset the password of {_full_and_user_name(person)}? The old password stops working and open sessions "
            "end.",
            "Reset password",
            lambda: self._show_password(person.name, self.records.reset_password(person.name)),
            f"{person.name} has a new password. Open sessions have ended.",
        )

    def _add(self) -> None:
        name, role = self.name.value.strip().lower(), self.new_role.value

        def add() -> None:
            self._show_password(name, self.records.add_user(name, self.full_name.value, role))
            self.name.value = self.full_name.value = ""
            self.drafts.forget()

        self._do(add, f"{name} was added with the role {role}.")

    def _ask(self, question: str, answer: str, action: Callable[[], None], done: str) -> None:
        self.confirm.ask(question, answer, lambda: self._do(action, done))

    def _do(self, action: Callable[[], None], done: str) -> None:
        self._hide_password()
        action()
        self._load()
        self.page.say(done, "done")

    def _show_password(self, name: str, password: str) -> None:
        self.password.value = (
            f'<p role="status">Password of <b>{safe(name)}</b>, shown only once:</p><code>{safe(password)}</code>'
        )
        show_if(True, self.hide)

    def _hide_password(self) -> None:
        self.password.value = ""
        show_if(False, self.hide)


def _full_and_user_name(person: Account) -> str:
    return f"{person.full_name} ({person.name})"
