"""What all screens are made of: a heading, guarded buttons and fields, one table, and a question before an action."""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
import pandas as pd
from itables.widget import ITable

from lungkit.clinic.app.page import Page, safe, show_if
from lungkit.errors import LungkitError


class Screen:
    """One screen of a page.

    records: what this person may do with the records (Records or Administration); rights are checked there.
    models: what reads images; administrators' screens have none. widget: what the browser shows.
    """

    def __init__(self, records: Any, page: Page, models: Any = None):
        self.records, self.page, self.models = records, page, models
        self.widget = widgets.VBox()

    def refresh(self) -> None:
        """Bring the screen up to date; called at every visit."""

    def lay_out(self, title: str, *parts: widgets.Widget, about: str = "") -> None:
        """Fill the screen: a heading, a line about it, and its parts."""
        line = f'<p class="about">{safe(about)}</p>' if about else ""
        self.widget.children = (widgets.HTML(f"<h1>{safe(title)}</h1>{line}"), *parts)

    def button(self, words: str, action: Callable[[], None], kind: str = "", **traits: Any) -> widgets.Button:
        """A button that runs `action` under the page's guard; kind: a class such as "primary" or "link"."""
        made = widgets.Button(description=words, **traits)
        made.on_click(self.page.act(lambda _: action()))
        return made.add_class(kind) if kind else made

    def on_change(self, action: Callable[[], None], *fields: widgets.Widget) -> None:
        """Run `action` under the page's guard whenever the value of one of the fields changes."""
        for field in fields:
            field.observe(self.page.act(lambda _: action()), "value")


class Table:
    """Rows to sort and search, one of which can be selected for an action; texts are escaped.

    actions: widgets that are enabled while a row is selected; without any, no row can be. name: an item in words.
    on_select: called when another row, or none, is selected. empty: text for no rows. search: offer a search field.
    """

    def __init__(
        self,
        page: Page,
        *actions: widgets.Widget,
        name: Callable[[Any], str] = str,
        on_select: Callable[[], None] = lambda: None,
        empty: str = "Nothing to show.",
        search: bool = True,
        page_length: int = 10,
        kind: str = "",
    ):
        self.actions, self._name, self._on_select = actions, name, on_select
        self._items: Sequence[Any] = ()
        self._found = ""
        self.status = widgets.HTML()
        selection = {"select": {"style": "single", "keys": True}} if actions else {}
        self.rows = ITable(
            pd.DataFrame(),
            showIndex=False,
            maxBytes=0,  # no sampling: row numbers must match `_items`
            order=[],  # as given, until a column is clicked
            pageLength=page_length,
            lengthMenu=[10, 25, 50, 100],
            language={
                "emptyTable": safe(empty),
                "zeroRecords": "No row matches the search.",
                "search": "Search in this list:",
                "lengthMenu": "_MENU_ rows per page",
                "info": "Rows _START_ to _END_ of _TOTAL_",
                "infoEmpty": "No rows",
                "infoFiltered": "(of _MAX_)",
            },
            classes=f"display rows {kind} {'selectable' if actions else ''} {'' if search else 'no-search'}",
            style="table-layout:auto;width:100%",
            **selection,
        ).add_class("table")
        if actions:
            self.rows.observe(page.act(lambda _: self._selected()), "selected_rows")
        bar = widgets.HBox([*actions, self.status]).add_class("actions")
        self.widget = widgets.VBox([bar, self.rows])

    def show(self, rows: pd.DataFrame, items: Sequence[Any] = (), found: str = "") -> None:
        """Show these rows, none selected; items: what each row stands for; found: how many there are, in words."""
        self._items, self._found = items, found
        self.rows.update(rows.reset_index(drop=True), selected_rows=[])
        self._selected()

    @property
    def item(self) -> Any:
        """What the selected row stands for; None for no row, or one that the browser made up."""
        match self.rows.selected_rows:
            case [int(place)] if 0 <= place < len(self._items):
                return self._items[place]
        return None

    def selected(self) -> Any:
        """What the selected row stands for. Raises LungkitError where there is none."""
        if self.item is None:
            raise LungkitError("Select one row of the table first.")
        return self.item

    def _selected(self) -> None:
        item = self.item
        for action in self.actions:
            action.disabled = item is None
        hint = "" if not self.actions else "Select a row." if item is None else f"Selected: {self._name(item)}."
        words = " ".join(filter(None, (f"{self._found}." if self._found else "", hint)))
        self.status.value = f'<span class="about" role="status">{safe(words)}</span>'
        self._on_select()


class Confirm:
    """A question with two buttons; the action runs only while the question is open, and once."""

    def __init__(self, page: Page):
        self._action: Callable[[], None] | None = None
        self._expected = ""
        self.question = widgets.HTML()
        self.typed = widgets.Text().add_class("field")
        self.yes = widgets.Button(button_style="danger")
        self.no = widgets.Button(description="Cancel")
        self.widget = widgets.VBox([self.question, self.typed, widgets.HBox([self.yes, self.no]).add_class("actions")])
        self.widget.add_class("card").add_class("confirm")
        self.yes.on_click(page.act(lambda _: self._confirmed()))
        self.no.on_click(page.act(lambda _: self.close()))
        self.close()

    def ask(self, question: str, answer: str, action: Callable[[], None], expected: str = "") -> None:
        """Ask; `action` runs when the button `answer` is pressed and, where given, `expected` was typed."""
        self._action, self._expected = action, expected
        hint = " This cannot be undone." if expected else ""
        self.question.value = f'<p role="alert"><b>{safe(question)}</b>{hint}</p>'
        self.typed.value, self.typed.description = "", f"Type {expected} to confirm" if expected else ""
        self.yes.description = answer
        show_if(expected, self.typed)
        show_if(True, self.widget)

    def close(self) -> None:
        """Withdraw the question."""
        self._action, self._expected, self.question.value, self.typed.value = None, "", "", ""
        show_if(False, self.widget)

    def _confirmed(self) -> None:
        if self._action is None:
            return
        if self._expected and self.typed.value.strip() != self._expected:
            raise LungkitError(f"That is not {self._expected}. Nothing was done. Type it exactly, or cancel.")
        self._action()
        self.close()
