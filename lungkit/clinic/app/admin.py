"""What the administrator's screens share: a table to choose a row of, and a question before what cannot be undone."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime

import ipywidgets as widgets
import pandas as pd
from itables.widget import ITable

from lungkit.clinic.app.page import safe
from lungkit.errors import LungkitError


class Table:
    """Rows that can be sorted, searched and, where `chosen` is given, chosen one at a time; its texts are escaped.

    chosen: called whenever another row, or none, is chosen.
    """

    def __init__(self, act: Callable, chosen: Callable[[], None] | None = None, empty: str = "Nothing to show."):
        self._keys: list[Hashable] = []
        choosing = {"select": {"style": "single", "keys": True}} if chosen else {}
        self.widget = ITable(
            pd.DataFrame(),
            showIndex=False,
            maxBytes=0,  # all rows that are given: a sampled table would point at other rows
            order=[],  # as given, until a column is clicked
            pageLength=10,
            lengthMenu=[10, 25, 50, 100],
            language={"emptyTable": safe(empty)},
            classes="display admin-rows choosable" if chosen else "display admin-rows",
            style="table-layout:auto;width:100%",
            **choosing,
        ).add_class("admin-table")
        if chosen:
            self.widget.observe(act(lambda _: chosen()), "selected_rows")

    def show(self, rows: pd.DataFrame, keys: Sequence[Hashable] = ()) -> None:
        """Show these rows, none of them chosen; `keys` says what each row stands for."""
        self._keys = list(keys)
        self.widget.update(rows.reset_index(drop=True), selected_rows=[])

    @property
    def key(self) -> Hashable | None:
        """What the chosen row stands for; None where there is none, or where the browser names one not listed."""
        match self.widget.selected_rows:
            case [int(place)] if 0 <= place < len(self._keys):
                return self._keys[place]
        return None


class Confirm:
    """A question with two buttons; what it asks for is done only while it is open, and once."""

    def __init__(self, act: Callable):
        self._do: Callable[[], None] | None = None
        self._expected = ""
        self.words = widgets.HTML()
        self.typed = widgets.Text().add_class("field")
        self.yes = widgets.Button(button_style="danger")
        self.no = widgets.Button(description="Cancel")
        self.widget = widgets.VBox([self.words, self.typed, widgets.HBox([self.yes, self.no]).add_class("actions")])
        self.widget.add_class("card").add_class("confirm")
        self.yes.on_click(act(lambda _: self._confirmed()))
        self.no.on_click(act(lambda _: self.close()))
        self.close()

    def ask(self, question: str, answer: str, do: Callable[[], None], expected: str = "") -> None:
        """Ask; `do` is called when the button `answer` is pressed, and `expected`, if any, was typed before."""
        self._do, self._expected = do, expected
        hint = " This cannot be undone." if expected else ""
        self.words.value = f'<p role="alert"><b>{safe(question)}</b>{hint}</p>'
        self.typed.value, self.typed.description = "", f"Type {expected} to confirm" if expected else ""
        self.typed.layout.display = "" if expected else "none"
        self.yes.description = answer
        self.widget.layout.display = ""

    def close(self) -> None:
        """Take the question back."""
        self._do, self._expected, self.words.value, self.typed.value = None, "", "", ""
        self.widget.layout.display = "none"

    def _confirmed(self) -> None:
        if self._do is None:
            return
        if self._expected and self.typed.value.strip() != self._expected:
            raise LungkitError(f"That is not {self._expected}; nothing was done. Type it exactly, or cancel.")
        self._do()
        self.close()


def local(times: Iterable[datetime | None]) -> list[str]:
    """Times as sortable text in this place's own time; empty where there is none."""
    # pandas' own astimezone wants a zone; datetime's knows this place's, summer time of each day included.
    here = (None if pd.isna(time) else pd.Timestamp(time).to_pydatetime().astimezone() for time in times)
    return [f"{time:%Y-%m-%d %H:%M}" if time else "" for time in here]
