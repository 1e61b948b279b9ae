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
from lungkit.clinic.app.page import Page, safe
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records import accounts
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import door
from lungkit.errors import LungkitError

PRODUCT = "lungkit clinic"
WARNING = "Research use only, not a diagnosis"
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
        access = accounts.Access(store, token)
        self._page, self._models = page, models
        self.actor = accounts.whoami(store, token)
        self._records: Records | Administration = (
            Records(access) if self.actor.role == "doctor" else Administration(access)
        )
        self._screens: dict[str, Screen[Any]] = {}
        self._entries = {
            name: page.button(title, partial(self.go, name), "nav-entry")
            for name, (title, _) in SCREENS[self.actor.role].items()
            if title
        }
        role = "doctor" if self.actor.role == "doctor" else "administrator"
        page.go = self.go
        page.header.children = [
            widgets.HBox(
                [
                    widgets.HTML(f'<span class="product">{PRODUCT}</span><span class="warning">{WARNING}</span>'),
                    widgets.HTML(f'<span class="who">{safe(self.actor.full_name)}, {role}</span>'),
                    widgets.Button(description="Sign out").add_class("sign-out"),
                ]
            ).add_class("clinic-top"),
            widgets.HBox(list(self._entries.values())).add_class("clinic-nav"),
        ]
        self.go(next(iter(self._entries)))

    def go(self, name: str, **what: Any) -> None:
        """Show a screen: made at the first visit, brought up to date at every visit."""
        if name not in self._screens:
            self._screens[name] = screen_class(self.actor.role, name)(self._records, self._page, self._models)
        screen = self._screens[name]
        screen.refresh(**what)
        self._page.show(screen.widget)
        here = name if name in self._entries else what.get("back")
        for entry, button in self._entries.items():
            (button.add_class if entry == here else button.remove_class)("current")
            button.tooltip = "You are here" if entry == here else ""
