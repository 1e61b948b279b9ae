"""What all screens are made of: a heading, one table, filters, and a question before an action."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import ipywidgets as widgets
import pandas as pd
from itables.widget import ITable

from lungkit.clinic.app.page import Page, field, safe, show_if
from lungkit.errors import LungkitError

if TYPE_CHECKING:
    from lungkit.clinic.predictor import ModelPool

Actions = TypeVar("Actions")  # Records or Administration
SELECT_ONE: Any = {"style": "single", "keys": True}  # how a table lets people select rows
NO_SUCH_PLACE = "There is nothing at this address that you can open"
SORTED_BY_HEADINGS: Any = {"text_in_header_can_be_selected": False}  # else only the small arrows sort
ALL = "All"  # what a filter offers first


class Screen(Generic[Actions]):
    """One screen of a page.

    records: what this person may do with the records; rights are checked there.
    models: what reads images; only doctors' screens use it. widget: what the browser shows.
    under: the screen of the navigation that this one was opened from, if it has no entry there.
    """

    under = ""

    def __init__(self, records: Actions, page: Page, models: "ModelPool | None" = None):
        self.records, self.page, self.models = records, page, cast("ModelPool", models)
        self.widget = widgets.VBox()
        self.build()

    def build(self) -> None:
        """Make the parts of the screen; called once."""

    def refresh(self) -> None:
        """Bring the screen up to date; called at every visit."""

    def where(self) -> str:
        """What of the screen is shown, for its address: nothing, or a random identifier of the records."""
        return ""

    def open_at(self, place: str) -> None:
        """Show what `where` returned, or what an address claims. Raises LungkitError where there is no such thing."""
        if place:
            raise LungkitError(NO_SUCH_PLACE)
        self.refresh()

    def open_reading(self, reading_id: str, **how: Any) -> None:
        """Show a reading; how: as `ReadingScreen.refresh` takes it.

        A second click that comes after this screen was left opens nothing: it would draw the reading again, without
        what was done on it meanwhile.
        """
        if self.widget in self.page.screen.children:
            self.page.go("reading", reading_id=reading_id, **how)

    def lay_out(self, title: str, *parts: widgets.Widget, about: str = "") -> None:
        """Fill the screen: a heading, a line about it, and its parts."""
        line = f'<p class="about">{safe(about)}</p>' if about else ""
        self.widget.children = (widgets.HTML(f"<h1>{safe(title)}</h1>{line}"), *parts)


class Table:
    """Rows to sort and search, one of which can be selected for an action; texts are escaped.

    columns: heading to what a cell shows of an item. actions: widgets that are enabled while a row is selected;
    without any, no row can be; a double click on a row, and Enter, do what the button of the class "opens" does.
    always: buttons that need no row. name: an item in words. on_select: called when another row, or none, is selected.
    empty: text for no rows. search: offer a search field.
    """

    def __init__(
        self,
        page: Page,
        columns: Mapping[str, Callable[[Any], object]],
        *actions: widgets.Widget,
        name: Callable[[Any], str] = str,
        on_select: Callable[[], None] = lambda: None,
        always: Sequence[widgets.Widget] = (),
        empty: str = "Nothing to show.",
        search: bool = True,
        page_length: int = 10,
        kind: str = "",
    ):
        self.columns, self.actions, self._name, self._on_select = columns, actions, name, on_select
        self._items: Sequence[Any] = ()
        self._summary = ""
        self.status = widgets.HTML()
        self.rows = ITable(
            pd.DataFrame(columns=list(columns)),
            showIndex=False,
            maxBytes=0,  # no sampling: row numbers must match `_items`
            order=[],  # as given, until a column is clicked
            **SORTED_BY_HEADINGS,
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
            select=SELECT_ONE if actions else False,
        ).add_class("table")
        if actions:
            self.rows.observe(page.act(lambda _: self._selected()), "selected_rows")
        bar = widgets.HBox([*actions, *always, self.status]).add_class("actions")
        self.widget = widgets.VBox([bar, self.rows])

    def show(self, items: Sequence[Any], summary: str = "") -> None:
        """Show a row for each item, none selected; summary: how many there are, in words."""
        self._items, self._summary = items, summary
        cells = {heading: [cell(item) for item in items] for heading, cell in self.columns.items()}
        self.rows.update(pd.DataFrame(cells), selected_rows=[], **SORTED_BY_HEADINGS)
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

    def select(self, wanted: Callable[[Any], bool]) -> None:
        """Select the first row whose item is wanted; none where there is no such row."""
        places = [place for place, item in enumerate(self._items) if wanted(item)]
        self.rows.selected_rows = places[:1]

    def _selected(self) -> None:
        item = self.item
        for action in self.actions:
            action.disabled = item is None
        hint = (
            ""
            if not (self.actions and self._items)
            else "Select a row."
            if item is None
            else f"Selected: {self._name(item)}."
        )
        words = " ".join(filter(None, (f"{self._summary}." if self._summary else "", hint)))
        cells = "" if item is None else "|".join(str(cell(item)) for cell in self.columns.values())
        self.status.value = f'<span class="about" role="status" data-row="{safe(cells)}">{safe(words)}</span>'
        self._on_select()


class Filters:
    """Dropdowns and dates that narrow a table, and a button that clears them.

    choices: dropdowns; `ALL` is the first option of each. first, last: days, both included. apply: runs under the
    page's guard after each change, and once where several fields change together.
    """

    def __init__(self, page: Page, apply: Callable[[], object], *choices: widgets.Dropdown):
        self.choices, self._apply, self._paused = choices, apply, False
        self.first, self.last = field(widgets.DatePicker, "From"), field(widgets.DatePicker, "To")
        fields = [*choices, self.first, self.last]
        page.on_change(self._changed, *fields)
        self.clear = page.button("Clear filters", self._clear, "link")
        self.widget = widgets.HBox([*fields, self.clear]).add_class("filters")

    def offer(self, choice: widgets.Dropdown, options: Sequence[tuple[str, Any]]) -> None:
        """Change what a dropdown offers below `ALL`, not what it is set to; `apply` is not called."""
        options = [(ALL, ALL), *options]
        if list(choice.options) != options:
            kept = choice.value
            with self._together():
                choice.options = options
                choice.value = kept if kept in dict(options).values() else ALL

    def _clear(self) -> None:
        with self._together():
            for choice in self.choices:
                choice.index = 0
            self.first.value = self.last.value = None
        self._apply()

    def _changed(self) -> None:
        if not self._paused:
            self._apply()

    @contextmanager
    def _together(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False


class Confirm:
    """A question with two buttons; the action runs only while the question is open, and once."""

    def __init__(self, page: Page):
        self._action: Callable[[], object] | None = None
        self._expected = ""
        self.question = widgets.HTML()
        self.typed = field(widgets.Text, "")
        self.yes = page.button("", self._confirmed, button_style="danger")
        self.no = page.button("Cancel", self.close)
        self.widget = widgets.VBox([self.question, self.typed, widgets.HBox([self.yes, self.no]).add_class("actions")])
        self.widget.add_class("card").add_class("confirm")
        self.close()

    def ask(self, question: str, answer: str, action: Callable[[], object], expected: str = "") -> None:
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
