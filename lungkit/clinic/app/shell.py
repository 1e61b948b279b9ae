"""The page as a whole: waits for the person who opens it, then shows the screens of that person's role."""

import importlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from lungkit import config
from lungkit.clinic import predictor
from lungkit.clinic.app.page import WARNING, Page, notice, safe
from lungkit.clinic.app.screen import NO_SUCH_PLACE, Screen
from lungkit.clinic.records import accounts
from lungkit.clinic.records.accounts import SignedOut
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import door
from lungkit.errors import LungkitError

PRODUCT = "lungkit clinic"
LOOK = (  # look.js hears it
    '<label class="look">Look <select class="look-choice"><option value="system">As the system</option>'
    '<option value="light">Light</option><option value="dark">Dark</option></select></label>'
)
NOT_SERVED = "This page is part of the clinic. Run `lungkit serve` (or `make serve`) and open the address it prints."

# The screens of each role: the name in the navigation (empty: opened from other screens), and where the screen is.
SCREENS = {
    "doctor": {
        "new": ("New case", "new_case.NewCaseScreen"),
        "worklist": ("Worklist", "worklist.WorklistScreen"),
        "patient": ("Patient", "patient.PatientScreen"),
        "opinions": ("Second opinions", "opinions.OpinionsScreen"),
        "reading": ("", "case_screen.ReadingScreen"),
    },
    "admin": {
        "people": ("People", "people.PeopleScreen"),
        "patients": ("Patients", "patients.PatientsScreen"),
        "usage": ("Usage", "usage.UsageScreen"),
        "models": ("Models", "models_screen.ModelsScreen"),
        "trials": ("Trials", "trials_screen.TrialsScreen"),
        "drift": ("Drift", "drift_screen.DriftScreen"),
        "programs": ("Programs", "programs.ProgramsScreen"),
        "routing": ("Routing", "routing_screen.RoutingScreen"),
        "queue": ("Queue", "queue.QueueScreen"),
        "trail": ("Audit trail", "trail.AuditTrailScreen"),
        "health": ("Health", "health.HealthScreen"),
        "settings": ("Settings", "settings_screen.SettingsScreen"),
    },
}


def open() -> None:
    """Show the clinic to the person who opens the page, or say how to serve it if there is no server."""
    if not served():
        print(NOT_SERVED)
        return
    _log_errors()
    models = _warm_up()
    token = door.token()
    display(page_of(Store, token, models).widget)


def served() -> bool:
    """Whether this kernel belongs to a page of the clinic's server."""
    return "VOILA_KERNEL_ID" in os.environ or "VOILA_REQUEST_URL" in os.environ


def page_of(store: Callable[[], Store], token: str, models: predictor.ModelPool) -> Page:
    """The page of the person whose token this is; for no one, a page with a link to sign in.

    store: opens the records; if it fails, the page shows why.
    """
    page = Page()
    page.act(lambda: _Shell(page, store(), token, models))()
    return page


def _log_errors() -> None:
    """Log errors of this page to a file next to the records; no one sees what a kernel prints."""
    folder = config.clinic_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    logging.basicConfig(
        filename=folder / "errors.log", level=logging.ERROR, format="%(asctime)s %(process)d %(name)s %(message)s"
    )


def _warm_up() -> predictor.ModelPool:
    """Do everything slow that needs no user: imports, the first screen's code, the default model."""
    screen_class("doctor", "new")
    models = predictor.ModelPool()
    if models.names():
        with suppress(LungkitError):  # the screen that uses the model shows the error
            models.get(models.default())
    return models


def screen_class(role: str, name: str) -> type[Screen[Any]]:
    """The class of a screen; its module is imported when it is first needed."""
    module, _, kind = SCREENS[role][name][1].partition(".")
    found: type[Screen[Any]] = getattr(importlib.import_module(f"lungkit.clinic.app.{module}"), kind)
    return found


class _Shell:
    """Header, navigation, and the screens that were visited."""

    def __init__(self, page: Page, store: Store, token: str, models: predictor.ModelPool):
        self._access = access = accounts.Access(store, token)
        self._page, self._models = page, models
        self.actor = accounts.whoami(store, token)
        self._records: Records | Administration = (
            Records(access) if self.actor.role == "doctor" else Administration(access)
        )
        self._screens: dict[str, Screen[Any]] = {}
        self._alarm = widgets.HTML().add_class("clinic-message")
        self._entries = {
            name: page.button(title, partial(self.go, name), "nav-entry")
            for name, (title, _) in SCREENS[self.actor.role].items()
            if title
        }
        role = "doctor" if self.actor.role == "doctor" else "administrator"
        page.go = self.go
        page.browser.user, page.browser.asked = str(self.actor.user_id), page.act(self._open_at)
        page.header.children = [
            widgets.HBox(
                [
                    widgets.HTML(f'<span class="product">{PRODUCT}</span><span class="warning">{WARNING}</span>'),
                    widgets.HTML(f'<span class="who">{safe(self.actor.full_name)}, {role}</span>'),
                    widgets.HTML(LOOK),
                    widgets.Button(description="Sign out").add_class("sign-out"),
                ]
            ).add_class("clinic-top"),
            widgets.HBox(list(self._entries.values())).add_class("clinic-nav"),
            self._alarm,
        ]
        self._first = next(iter(self._entries))
        self.go(self._first)

    def go(self, name: str, **what: Any) -> None:
        """Show a screen: made at the first visit, brought up to date at every visit."""
        self._screen(name).refresh(**what)
        self._show(name)

    def _open_at(self, address: str, question: int) -> None:
        """Show what an address of the browser leads to; otherwise say why not, and show the first screen."""
        accounts.whoami(self._access.store, self._access.token)  # not every screen asks the records
        name, _, place = (address.removeprefix("#/") or self._first).partition("/")
        try:
            self._screen(name).open_at(place)
        except SignedOut:
            raise
        except LungkitError as problem:
            name, words = self._first, str(problem)
            self._screen(name).refresh()
            self._page.say(f"{words[:1].upper()}{words[1:].rstrip('.')}. You are on the start page instead.")
        self._show(name, question)

    def _screen(self, name: str) -> Screen[Any]:
        if name not in SCREENS[self.actor.role]:
            raise LungkitError(NO_SUCH_PLACE)
        if name not in self._screens:
            self._screens[name] = screen_class(self.actor.role, name)(self._records, self._page, self._models)
        return self._screens[name]

    def _show(self, name: str, question: int = 0) -> None:
        """Show a screen that is up to date; question: as in Browser.show."""
        screen = self._screens[name]
        if isinstance(self._records, Administration):
            full = self._records.full_disk()
            self._alarm.value = notice(full) if full else ""
        self._page.show(screen.widget)
        place, title = screen.where(), SCREENS[self.actor.role][name][0] or name.capitalize()
        self._page.browser.show("/".join(filter(None, ("#", name, place))), f"{title} · {PRODUCT}", question)
        here = name if name in self._entries else screen.under
        for entry, button in self._entries.items():
            (button.add_class if entry == here else button.remove_class)("current")
            button.tooltip = "You are here" if entry == here else ""
