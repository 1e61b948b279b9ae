"""One person's page: the guard that callbacks run in, guarded buttons and fields, messages, and safe HTML."""

import functools
import html
import logging
import traceback
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from lungkit.clinic.app.browser import Browser
from lungkit.clinic.records.accounts import SignedOut
from lungkit.clinic.records.reserve import no_room
from lungkit.errors import LungkitError
from lungkit.times import sortable_time as sortable_time
from lungkit.times import when as when
from lungkit.times import zone_name

log = logging.getLogger(__name__)
NO_ROOM = "The server's disk is full. Nothing was saved. Tell an administrator, then try again."
WARNING = "Research use only, not a diagnosis"
FAILED = "Something went wrong and nothing was saved. Try again, or tell an administrator."


class Page:
    """A header with a line for messages, which stays visible, and the screen that is shown.

    widget: what the browser shows. go: shows another screen by its name; set by the shell. browser: address, title and
    unsaved text.
    """

    def __init__(self) -> None:
        self.go: Callable[..., None] = lambda name, **what: None
        self.browser = Browser()
        self.header = widgets.VBox()
        self.message = widgets.HTML().add_class("clinic-message")
        self.screen = widgets.VBox().add_class("clinic-screen")
        head = widgets.VBox([self.header, self.message]).add_class("clinic-head")
        zone = widgets.HTML(f"Times are {safe(zone_name())}.").add_class("clinic-foot")
        self.widget = widgets.VBox([head, self.screen, zone, self.browser]).add_class("clinic")

    def act(self, action: Callable[..., Any]) -> Callable[..., Any]:
        """The callback that runs `action` and shows a message if it fails.

        Signed out: the page is replaced by a link to sign in again. Any other LungkitError is shown as it reads.
        Everything else is logged and shown without its details, which may name a patient. The callback takes what
        `action` takes and returns what it returns, or None if it failed.
        """

        @functools.wraps(action)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.say("")
            try:
                return action(*args, **kwargs)
            except SignedOut as reason:
                self.signed_out(str(reason))
            except LungkitError as problem:
                words = str(problem)
                self.say(words[:1].upper() + words[1:], "problem")
            except Exception as error:
                if isinstance(error, OSError) and no_room(error):
                    self.say(NO_ROOM)
                else:
                    self._failed(error)
            return None

        return run

    def _failed(self, error: Exception) -> None:
        # The error's own text is not logged: it may contain what was typed about a patient.
        log.error("%s in a callback\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        self.say(FAILED)

    def button(self, words: str, action: Callable[[], object], kind: str = "", **traits: Any) -> widgets.Button:
        """A button that runs `action` under the guard; kind: a class such as "primary" or "link"."""
        made = widgets.Button(description=words, **traits)
        made.on_click(self.act(lambda _: action()))
        return made.add_class(kind) if kind else made

    def on_change(self, action: Callable[[], object], *fields: widgets.Widget) -> None:
        """Run `action` under the guard whenever the value of one of the fields changes."""
        for changed in fields:
            changed.observe(self.act(lambda _: action()), "value")

    def say(self, words: str, kind: str = "problem") -> None:
        """Show one message above the screen ("problem" or "done"), or none for empty words."""
        self.message.value = notice(words, kind) if words else ""

    def show(self, *children: widgets.Widget) -> None:
        """Show these instead of the present screen."""
        self.screen.children = children

    def signed_out(self, reason: str) -> None:
        """Replace everything, including patient data on the screen, by a link to sign in again."""
        for part in (self.header, self.screen):
            replace(part)
        self.message.value = ""
        self.show(
            widgets.HTML(
                f'<div class="signed-out" role="alert"><h1>You are signed out</h1><p>{safe(reason)}</p>'
                '<p><a class="button" href="/login">Sign in</a></p></div>'
            )
        )


def field(kind: type[widgets.Widget], description: str, **traits: Any) -> widgets.Widget:
    """A field in the clinic's style; traits: those of its kind, such as `options`."""
    return kind(description=description, **traits).add_class("field")


def link_button(words: str) -> widgets.Button:
    """A button that copies the page's address; the browser does it alone."""
    return widgets.Button(description=words).add_class("link").add_class("copy-link")


def safe(value: object) -> str:
    """Any value as text for HTML: what people typed shows as they typed it."""
    return html.escape(str(value), quote=True)


def notice(words: str, kind: str = "problem") -> str:
    """A message as HTML that screen readers announce; kind: "problem", "done" or "note"."""
    mark = {"problem": "!", "done": "✓", "note": "i"}[kind]
    role = "alert" if kind == "problem" else "status"
    return (
        f'<div class="notice {kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}</span>'
        f"<span>{safe(words)}</span></div>"
    )


def scrolling(table: str, name: str) -> str:
    """A table as HTML in a box that scrolls sideways on a narrow screen, with the keyboard too; name: of the box."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{safe(name)}">{table}</div>'


def show_if(condition: object, *parts: widgets.Widget) -> None:
    """Show these widgets, or hide them."""
    for part in parts:
        part.layout.display = "" if condition else "none"


def replace(box: widgets.Box, *children: widgets.Widget) -> None:
    """Put these into a box; close what was there."""
    for child in box.children:
        close(child)
    box.children = children


def close(widget: widgets.Widget) -> None:
    """Close a widget and all below it; until then the page keeps them and their images in memory."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, widgets.Widget):
            part.close()
    widget.close()
