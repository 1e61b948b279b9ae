"""Drift: what the last nights have found, a card for each model and source with its measures by day."""

from datetime import date, timedelta
from typing import Any

import ipywidgets as widgets

from lungkit.clinic.app import charts
from lungkit.clinic.app.page import field, notice, safe, when
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records.administration import Administration, DriftNight
from lungkit.wording import count, listed

ABOUT = (
    "Each night the days before are compared with each other. Grey is what a day usually looks like. A change is told "
    "when it has lasted some days, so one day outside the grey is no alarm."
)
NONE_YET = (
    "No night has been looked at yet. The gateway does it from two o'clock UTC on, or run `lungkit learn drift --keep`."
)
LATE = timedelta(days=2)  # without a look, a person should find out why


class DriftScreen(Screen[Administration]):
    """A night, and its cards."""

    def build(self) -> None:
        self.night = field(widgets.Dropdown, "Night", options=[])
        self.again = self.page.button("Look again", self.refresh)
        self.cards = widgets.HTML()
        self.page.on_change(self._show, self.night)
        self.lay_out("Drift", widgets.HBox([self.night, self.again]).add_class("filters"), self.cards, about=ABOUT)

    def refresh(self) -> None:
        """Load the nights, and show the newest."""
        days = self.records.drift_days()
        self.night.options = [(f"{day} {'! changed' if alarm else ''}".strip(), day) for day, alarm in days]
        self.night.index = 0 if days else None
        self._show()

    def _show(self) -> None:
        night = self.records.drift_night(self.night.value) if self.night.value else None
        self.cards.value = _night(night) if night else notice(NONE_YET, "note")


def standing(night: DriftNight | None, today: date) -> tuple[bool, str]:
    """Whether all is well, and words, for the line on Health."""
    if night is None:
        return True, "no night has been looked at yet; the gateway does it"
    if today - night.day >= LATE:
        return False, f"last looked at on {night.day}. The gateway does it each night: find out why it does not run."
    if night.alarm:
        return False, f"something has changed, found on {night.day}. See Drift."
    return True, f"nothing has changed, looked at on {night.day}"


def _night(night: DriftNight) -> str:
    told = f" People were told on {when(night.told_at)}." if night.told_at else ""
    every = f"{night.settings.get('every', 0):g}"
    rate = f"Without a change, a false alarm comes about once in {every} days."
    line = f'<p class="about">Looked at on {safe(when(night.ran_at))}.{safe(told)} {rate}</p>'
    if not night.cards:
        return line + notice("No image was read in the week before.", "note")
    return line + "".join(map(_card, sorted(night.cards, key=lambda group: -len(_changed(group)))))


def _changed(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [check for check in group["checks"] if check["alarm"]]


def _card(group: dict[str, Any]) -> str:
    title = f"<h2>{safe(group['model'])}@{safe(group['version'])}, images from {safe(group['source'])}</h2>"
    changed, silent = _changed(group), [check["what"] for check in group["checks"] if check["alarm"] is None]
    words = (
        notice(f"Changed: {listed([check['what'] for check in changed], 'and')}.", "problem")
        if changed
        else notice("No change seen.", "done")
    )
    shown = [check for check in group["checks"] if check["alarm"] is not None]
    drawn = "".join(_chart(check) for check in sorted(shown, key=lambda check: not check["alarm"]))
    left = f"Too few days to tell: {', '.join(silent)}. " if silent else ""
    damaged = f"{count(group['images_damaged'], 'damaged image')} left out." if group["images_damaged"] else ""
    images = f"{count(group['images'], 'image')} in all. {left}{damaged}"
    return f'{title}{words}<div class="charts">{drawn}</div><p class="about">{safe(images)}</p>'


def _chart(check: dict[str, Any]) -> str:
    shows = f" ({check['shows']})" if check["shows"] else ""
    return charts.control_chart(
        f"{check['what'][:1].upper()}{check['what'][1:]}{shows}",
        [date.fromisoformat(day) for day in check["days"]],
        check["values"],
        check["low"],
        check["high"],
        date.fromisoformat(check["since"]) if check["since"] else None,
        check["words"],
        share=check["share"],
        unit=check["unit"],
    )
