"""People: who may sign in, with which role; add, disable, change the role, reset a password."""

from collections.abc import Callable

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.admin import Confirm, Table, local
from lungkit.clinic.app.page import notice, safe
from lungkit.clinic.records.administration import Oversight
from lungkit.clinic.records.tables import ROLES
from lungkit.errors import LungkitError


def view(oversight: Oversight, act: Callable) -> widgets.Widget:
    """The screen."""
    people = People(oversight, act)
    people.widget.refresh = people.refresh
    return people.widget


class People:
    """The accounts, what can be done with the one that is chosen, and a form for a new one."""

    def __init__(self, oversight: Oversight, act: Callable):
        self._oversight = oversight
        self._accounts = pd.DataFrame()
        self.table = Table(act, self._chosen)
        self.status = widgets.HTML()
        self.switch = widgets.Button()
        self.reset = widgets.Button(description="Reset password …")
        self.role = widgets.Dropdown(description="Role of this person", options=ROLES).add_class("field")
        self.change = widgets.Button(description="Change role …")
        self.confirm = Confirm(act)
        self.said = widgets.HTML()
        self.password = widgets.HTML()
        self.hide = widgets.Button(description="I have noted it, hide it")

        self.name = widgets.Text(description="User name", placeholder="a-z, 0-9, . _ @ -").add_class("field")
        self.full_name = widgets.Text(description="Full name").add_class("field")
        self.new_role = widgets.Dropdown(description="Role", options=ROLES).add_class("field")
        self.add = widgets.Button(description="Add person").add_class("primary")

        for button, action in (
            (self.switch, self._ask_switch),
            (self.reset, self._ask_reset),
            (self.change, self._ask_role),
            (self.add, self._add),
            (self.hide, self._hide_password),
        ):
            button.on_click(act(lambda _, action=action: action()))
        self.actions = widgets.HBox([self.role, self.change, self.reset, self.switch]).add_class("actions")
        self.widget = widgets.VBox(
            [
                widgets.HTML("<h1>People</h1>"),
                self.said,
                widgets.VBox([self.password, self.hide]).add_class("password"),
                self.table.widget,
                self.status,
                self.actions,
                self.confirm.widget,
                widgets.VBox(
                    [
                        widgets.HTML(
                            "<h2>Add a person</h2><p class='about'>A password is made up and shown once; hand it over "
                            "in person.</p>"
                        ),
                        widgets.HBox([self.name, self.full_name, self.new_role, self.add]).add_class("filters"),
                    ]
                ).add_class("card"),
            ]
        )
        self.refresh()

    def refresh(self) -> None:
        """All accounts anew; a password that was shown is gone."""
        self.said.value = ""
        self._hide_password()
        self._load()

    # --- what is shown

    def _load(self) -> None:
        self._accounts = self._oversight.people().set_index("user_id", drop=False)
        rows = self._accounts
        self.table.show(
            pd.DataFrame(
                {
                    "User name": rows["name"],
                    "Full name": rows["full_name"],
                    "Role": rows["role"],
                    "State": ["active" if active else "disabled" for active in rows["active"]],
                    "Last seen": [seen or "never" for seen in local(rows["last_seen"])],
                    "Open sessions": rows["sessions"],
                    "Since": [at[:10] for at in local(rows["created_at"])],
                }
            ),
            keys=rows["user_id"].tolist(),
        )
        self._chosen()

    def _chosen(self) -> None:
        self.confirm.close()
        person = self._person()
        self.actions.layout.display = "none" if person is None else ""
        if person is None:
            self.status.value = '<p class="about" role="status">Select a row to change an account.</p>'
            return
        self.status.value = f'<p role="status">Selected: <b>{_who(person)}</b></p>'
        self.switch.description = "Disable account …" if person.active else "Enable account"
        self.role.value = person.role

    def _person(self):
        """The account that is chosen; None where there is none."""
        key = self.table.key
        return None if key is None else self._accounts.loc[key]

    def _chosen_person(self):
        person = self._person()
        if person is None:
            raise LungkitError("Select one row of the table first.")
        return person

    # --- what can be done

    def _ask_switch(self) -> None:
        person = self._chosen_person()
        if not person.active:
            self._done(lambda: self._oversight.enable(int(person.user_id)), f"{person['name']} can sign in again.")
            return
        self.confirm.ask(
            f"Disable {_plain(person)}? Open sessions end at once. Nothing that was saved is lost.",
            "Disable account",
            lambda: self._done(
                lambda: self._oversight.disable(int(person.user_id)), f"{person['name']} cannot sign in any more."
            ),
        )

    def _ask_role(self) -> None:
        person, role = self._chosen_person(), self.role.value
        if role == person.role:
            raise LungkitError(f"{person['name']} is {role} already; choose the other role first.")
        self.confirm.ask(
            f"Make {_plain(person)} {role}? It holds from the next click on, also in open sessions.",
            f"Make {role}",
            lambda: self._done(
                lambda: self._oversight.set_role(int(person.user_id), role), f"{person['name']} is {role} now."
            ),
        )

    def _ask_reset(self) -> None:
        person = self._chosen_person()

        def reset():
            password = self._oversight.reset_password(int(person.user_id))
            self._done(lambda: None, f"{person['name']} has a new password; open sessions were ended.")
            self._show_password(person["name"], password)

        self.confirm.ask(
            f"Reset the password of {_plain(person)}? The old one stops working and open sessions end.",
            "Reset password",
            reset,
        )

    def _add(self) -> None:
        name, full_name = self.name.value.strip().lower(), self.full_name.value
        password = self._oversight.add_user(name, full_name, self.new_role.value)
        self.name.value = self.full_name.value = ""
        self._done(lambda: None, f"{name} was added as {self.new_role.value}.")
        self._show_password(name, password)

    def _done(self, do: Callable[[], None], words: str) -> None:
        self._hide_password()
        self.said.value = ""
        do()
        self._load()
        self.said.value = notice(words, "done")

    def _show_password(self, name: str, password: str) -> None:
        self.password.value = (
            f'<p role="status">Password of <b>{safe(name)}</b>, shown this once:</p><code>{safe(password)}</code>'
        )
        self.hide.layout.display = ""

    def _hide_password(self) -> None:
        self.password.value, self.hide.layout.display = "", "none"


def _plain(person) -> str:
    return f"{person.full_name} ({person['name']})"


def _who(person) -> str:
    return safe(f"{_plain(person)}, {person.role}, {'active' if person.active else 'disabled'}")
