"""What the page's kernel and the browser around it tell each other: the address of the screen, and unsaved text."""

from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets as widgets
import traitlets

LONGEST_ADDRESS = 200


class Browser(anywidget.AnyWidget):
    """A part of the page that shows nothing.

    user: who is signed in, as a number; empty until that is known. Text of another user is dropped from the tab.
    place: the present screen: its address, its title, and the number of the browser's question that it answers, 0 for
    none. turn: changes with each place, so the browser also hears of the same place again.
    asked: called with the address that the browser wants to see (Back, a reload, a link) and the question's number.
    A browser can ask for anything; it is the kernel that looks at rights.
    """

    _esm = Path(__file__).with_name("browser.js")

    user = traitlets.Unicode().tag(sync=True)
    place = traitlets.Dict().tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self.asked: Callable[[str, int], object] = lambda address, question: None
        self._turn = 0
        self.layout.display = "none"
        self.on_msg(self._heard)

    def show(self, address: str, title: str, question: int = 0) -> None:
        """The browser shows this address and this title, which must not name a patient."""
        self._turn += 1
        self.place = {"address": address, "title": title, "question": question, "turn": self._turn}

    def keep(self, field: widgets.Widget, name: str) -> None:
        """Keep what is typed into a field of text in the browser's tab until `forget`, and put it back after a reload.

        name: words and random identifiers of what the text belongs to, joined by "-". A field may get another name:
        what was kept under that one appears in it.
        """
        before = [one for one in field._dom_classes if one.startswith("draft-")]
        for old in before:
            field.remove_class(old)
        field.add_class("draft").add_class(f"draft-{name}")

    def forget(self, *names: str) -> None:
        """The text was saved, or is not wanted."""
        self.send({"forget": list(names)})

    def _heard(self, _widget: object, message: object, _buffers: object) -> None:
        match message:
            case {"address": str(address), "question": int(question)} if len(address) <= LONGEST_ADDRESS:
                self.asked(address, question)


class Drafts:
    """The fields of a form whose unsaved text the browser's tab keeps. fields: name, as in `Browser.keep`, to field."""

    def __init__(self, browser: Browser, fields: dict[str, widgets.Widget]):
        self._browser, self._names = browser, list(fields)
        for name, kept in fields.items():
            browser.keep(kept, name)

    def forget(self) -> None:
        """All of it was saved, or is not wanted."""
        self._browser.forget(*self._names)
