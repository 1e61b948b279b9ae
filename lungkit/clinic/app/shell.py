"""The page as a whole: waits for who opens it, then shows the screens of that person's role, each built when wanted."""

import importlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress

import ipywidgets as widgets
from IPython.display import display

from lungkit import config
from lungkit.clinic import predictor
from lungkit.clinic.app.page import Page, close, safe
from lungkit.clinic.records import accounts
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import door
from lungkit.errors import LungkitError

PRODUCT = "lungkit clinic"
WARNING = "Research use only, not a diagnosis"
NOT_SERVED = "This page is for the clinic's server: run `lungkit serve` (or `make serve`) and open its address."

# What is in the navigation of each role: screen, its name for people, and its module in this package.
SCREENS = {
    "doctor": {
        "new": ("New case", "case"),
        "worklist": ("Worklist", "worklist"),
        "patient": ("Patient", "patient"),
    },
    "admin": {
        "people": ("People", "people"),
        "patients": ("Patients", "patients"),
        "usage": ("Usage", "usage"),
        "models": ("Models", "models"),
        "trail": ("Audit trail", "trail"),
        "health": ("Health", "health"),
    },
}
UNLISTED = {"case": "reading"}  # a doctor's screens that others lead to


def open() -> None:
    """Show the clinic to the person who opens the page, or say how to serve it where nobody can."""
    if not served():
        print(NOT_SERVED)
        return
    _log_errors()
    models = _warm()
    token = door.token()
    display(page(Store, token, models).widget)


def served() -> bool:
    """Whether this kernel belongs to a page of the clinic's server."""
    return "VOILA_KERNEL_ID" in os.environ or "VOILA_REQUEST_URL" in os.environ


def page(store: Callable[[], Store], token: str, models) -> Page:
    """The page of whoever the token stands for; one that says how to sign in, for nobody.

    store: opens the records; what it cannot do is said in the page.
    """
    shown = Page()
    shown.act(lambda: _Shell(shown, store(), token, models))()
    return shown


def _log_errors() -> None:
    """Errors of this page go to a file beside the records: what a kernel prints, nobody sees."""
    folder = config.clinic_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    logging.basicConfig(
        filename=folder / "errors.log", level=logging.ERROR, format="%(asctime)s %(process)d %(name)s %(message)s"
    )


def _warm() -> "predictor.ModelPool":
    """All that takes time and belongs to nobody: imports, the first screen's code, the default model."""
    importlib.import_module("lungkit.clinic.app.case")
    models = predictor.ModelPool()
    if models.names():
        with suppress(LungkitError):  # said in words where somebody uses it
            models.get(models.default())
    return models


class _Shell:
    """Header, navigation, and the screens that were visited."""

    def __init__(self, shown: Page, store: Store, token: str, models):
        access = accounts.Access(store, token)
        self._page, self._models = shown, models
        self.actor = accounts.whoami(store, token)
        if self.actor.role == "admin":
            from lungkit.clinic.records.administration import Oversight

            self._given = (Oversight(access), shown.act)
        else:
            self._given = (Records(access), models, shown.act, self.go)
        self._built: dict[str, widgets.Widget] = {}
        self._entries = {}
        for name, (title, _) in SCREENS[self.actor.role].items():
            entry = widgets.Button(description=title).add_class("nav-entry")
            entry.on_click(shown.act(lambda _, name=name: self.go(name)))
            self._entries[name] = entry
        role = "doctor" if self.actor.role == "doctor" else "administrator"
        out = widgets.Button(description="Sign out").add_class("sign-out")
        shown.header.children = [
            widgets.HBox(
                [
                    widgets.HTML(f'<span class="product">{PRODUCT}</span><span class="warning">{WARNING}</span>'),
                    widgets.HTML(f'<span class="who">{safe(self.actor.full_name)}, {role}</span>'),
                    out,
                ]
            ).add_class("clinic-top"),
            widgets.HBox(list(self._entries.values())).add_class("clinic-nav"),
        ]
        self.go(next(iter(self._entries)))

    def go(self, name: str, **what) -> None:
        """Show a screen, built at the first visit and brought up to date at each later one."""
        old = self._built.get(name)
        if old is not None and hasattr(old, "refresh"):
            old.refresh(**what)
        else:
            module = SCREENS[self.actor.role].get(name, (None, UNLISTED.get(name)))[1]
            made = importlib.import_module(f"lungkit.clinic.app.{module}").view(*self._given, **what)
            if old is not None:
                close(old)
            self._built[name] = made
        self._page.show(self._built[name])
        here = name if name in self._entries else what.get("back")
        for entry, button in self._entries.items():
            (button.add_class if entry == here else button.remove_class)("current")
            button.tooltip = "You are here" if entry == here else ""
