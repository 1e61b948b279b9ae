"""What all screens share: the frame that callbacks run in, small pieces of safe HTML, and tidying up of widgets."""

import functools
import html
import logging
import traceback
from collections.abc import Callable
from datetime import datetime

import ipywidgets as widgets

from lungkit.clinic.records.accounts import SignedOut
from lungkit.clinic.words import percent as percent
from lungkit.errors import LungkitError

log = logging.getLogger(__name__)


class Page:
    """One person's page: a header that stays in sight with a line for messages, and the screen that is shown.

    widget: what the browser shows.
    """

    def __init__(self, login_url: str = "/login"):
        self.login_url = login_url
        self.header = widgets.VBox()
        self.message = widgets.HTML().add_class("clinic-message")
        self.screen = widgets.VBox().add_class("clinic-screen")
        head = widgets.VBox([self.header, self.message]).add_class("clinic-head")
        self.widget = widgets.VBox([head, self.screen]).add_class("clinic")

    def act(self, action: Callable) -> Callable:
        """The callback that runs `action` and tells the person in words if it failed.

        Signed out: the page is replaced by a way back to signing in. Every other LungkitError is shown as it reads.
        Anything else is logged and shown without its details, which may name a patient. The callback takes what
        `action` takes and returns what it returns, or None where it failed.
        """

        @functools.wraps(action)
        def run(*args, **kwargs):
            self.say("")
            try:
                return action(*args, **kwargs)
            except SignedOut as reason:
                self.signed_out(str(reason))
            except LungkitError as problem:
                words = str(problem)
                self.say(words[:1].upper() + words[1:], "problem")
            except Exception as error:
                # Not the error's own words: they may hold what was typed about a patient.
                log.error(
                    "%s in a callback\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
                )
                self.say("Something went wrong; nothing was saved. Try again, or tell an administrator.", "problem")

        return run

    def say(self, words: str, kind: str = "problem") -> None:
        """Show one message above the screen ("problem" or "done"), or none for empty words."""
        self.message.value = notice(words, kind) if words else ""

    def show(self, *children: widgets.Widget) -> None:
        """Show these in place of the present screen."""
        self.screen.children = children

    def signed_out(self, reason: str) -> None:
        """Replace everything, what a patient's screen showed included, by a way to sign in again."""
        for part in (self.header, self.screen):
            for child in part.children:
                close(child)
            part.children = ()
        self.message.value = ""
        self.show(
            widgets.HTML(
                f'<div class="signed-out" role="alert"><h1>You are signed out</h1><p>{safe(reason)}</p>'
                f'<p><a class="button" href="{safe(self.login_url)}">Sign in</a></p></div>'
            )
        )


def safe(value: object) -> str:
    """Any value as text for HTML: what people typed shows as they typed it."""
    return html.escape(str(value), quote=True)


def notice(words: str, kind: str = "problem") -> str:
    """A message as HTML that is read out by screen readers; kind: "problem", "done" or "note"."""
    mark = {"problem": "!", "done": "✓", "note": "i"}[kind]
    role = "alert" if kind == "problem" else "status"
    return (
        f'<div class="notice {kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}</span>'
        f"<span>{safe(words)}</span></div>"
    )


def when(time: datetime) -> str:
    """A time as people of this place write it: 21 Nov 2026, 14:05."""
    local = time.astimezone()
    return f"{local.day} {local:%b %Y, %H:%M}"


def close(widget: widgets.Widget) -> None:
    """Close a widget and all below it: the page holds them, and their images, until then."""
    for child in getattr(widget, "children", ()):
        close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, widgets.Widget):
            part.close()
    widget.close()
