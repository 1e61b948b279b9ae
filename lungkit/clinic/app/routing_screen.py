"""Routing: which DICOM systems may send, which model reads what they send, and where results go."""

import html
from typing import Any

import ipywidgets as widgets

from lungkit.clinic.app.browser import Drafts
from lungkit.clinic.app.page import field, safe, scrolling, show_if, sortable_time
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.received import ReceivedRow, SeriesOfStudy
from lungkit.clinic.records.routing import PRIORITIES, CallerRow, DestinationRow, RouteRow, Rule
from lungkit.clinic.records.tables import DESTINATIONS
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.wording import count

_CONDITIONS = ("caller", "modality", "body_part", "description")
_KINDS = {
    "dicom": "PACS by DICOM (C-STORE)",
    "stow": "PACS over the web (STOW-RS)",
    "fhir": "FHIR R4 server",
    "hl7": "HL7 v2 (MLLP)",
}


class RoutingScreen(Screen[Administration]):
    """Three lists, from left to right the way of an image: senders, rules, destinations."""

    destination_names: dict[int, str]

    def build(self) -> None:
        self.destination_names = {}
        self.confirm = Confirm(self.page)
        self.lay_out(
            "Routing",
            self.confirm.widget,
            self._build_rules(),
            self._build_callers(),
            self._build_destinations(),
            about="A study is complete when no file of it came for a while. Then each series goes to the model of the "
            "first rule that fits it, and the result to the destinations of that rule.",
        )

    def refresh(self) -> None:
        """Load everything again."""
        self.destination_names = {row.id: row.name for row in self.records.destinations()}
        rules, callers = self.records.routes(), self.records.callers()
        self.rules.show(rules, count(len(rules), "rule"))
        self.callers.show(callers, count(len(callers), "system"))
        there = self.records.destinations()
        self.destinations.show(there, count(len(there), "destination"))
        _offer(self.model, [(name, name) for name in registry.models()])
        self.goes_to.options = [(row.name, row.id) for row in there]
        studies = self.records.received()
        received = [(_study_words(row), row.id) for row in studies]
        _offer(self.study, received or [("none was received in the last day", "")])

    # --- rules

    def _build_rules(self) -> widgets.Widget:
        button = self.page.button
        self.study = field(widgets.Dropdown, "Study that was received", options=[("none", "")]).add_class("wide")
        self.attempt = button("Try on this study", self._try)
        self.switch = button("Switch on", self._switch)
        self.edit = button("Edit rule", self._edit)
        self.remove = button("Remove rule …", self._ask_remove)
        self.rules = Table(
            self.page,
            {
                "Order": lambda row: row.rule.rank,
                "Rule": lambda row: row.rule.name,
                "Reads": _conditions,
                "Model": lambda row: row.rule.model,
                "Priority": lambda row: row.rule.priority,
                "Results go to": lambda row: (
                    ", ".join(self.destination_names.get(one, "?") for one in row.rule.destinations)
                    or "the clinic only"
                ),
                "State": _rule_state,
            },
            *(self.study, self.attempt, self.switch, self.edit, self.remove),
            name=lambda row: row.rule.name,
            on_select=self._rule_selected,
            empty="There is no rule yet, so nothing that is sent is read.",
            search=False,
        )
        self.trial = widgets.HTML()
        self.name = field(widgets.Text, "Name of the rule")
        self.conditions = {
            "caller": field(widgets.Text, "Sent by (AE title)", placeholder="any"),
            "modality": field(widgets.Text, "Modality", placeholder="any, or CT, DX, CR"),
            "body_part": field(widgets.Text, "Body part", placeholder="any, or CHEST"),
            "description": field(widgets.Text, "Description has", placeholder="any"),
        }
        self.model = field(widgets.Dropdown, "Model", options=[])
        self.priority = field(widgets.Dropdown, "Priority", options=PRIORITIES[::-1], value="routine")
        self.rank = field(widgets.BoundedIntText, "Order", value=100, min=0, max=9999)
        self.goes_to = field(widgets.SelectMultiple, "Results go to", options=[], rows=3)
        self.editing: int | None = None  # the rule that the form changes; None: it makes a new one
        self.save = button("", self._save, "primary")
        self.cancel = button("Cancel", self._done)
        form = widgets.HBox(
            [self.name, *self.conditions.values(), self.model, self.priority, self.rank, self.goes_to]
        ).add_class("filters")
        texts = {"name": self.name} | self.conditions
        self.rule_drafts = Drafts(self.page.browser, {f"rule-{what}": text for what, text in texts.items()})
        self.heading = widgets.HTML()
        buttons = widgets.HBox([self.save, self.cancel]).add_class("actions")
        self._clear()
        return widgets.VBox(
            [
                widgets.HTML("<h2>Rules</h2>"),
                self.rules.widget,
                self.trial,
                widgets.VBox([self.heading, form, buttons]).add_class("card"),
            ]
        )

    def _rule_selected(self) -> None:
        self.confirm.close()
        self.trial.value = ""
        row = self.rules.item
        self.switch.description = "Switch off" if row is not None and row.active else "Switch on"

    def _try(self) -> None:
        row = self.rules.selected()
        if not self.study.value:
            raise LungkitError("No study was received in the last day. Send one first, then try the rule on it.")
        found = self.records.try_route(row.id, self.study.value)
        self.refresh()
        self.trial.value = _trial(row, found)
        if any(fits for _, fits in found):
            self.page.say(f"The rule '{row.rule.name}' was tried. Nothing was read.", "done")
        else:
            self.page.say(f"The rule '{row.rule.name}' takes no series of this study. Try it on one that it takes.")

    def _switch(self) -> None:
        row = self.rules.selected()
        self.records.set_route(row.id, not row.active)
        self.refresh()
        self.page.say(f"The rule '{row.rule.name}' is {'off' if row.active else 'on'}.", "done")

    def _ask_remove(self) -> None:
        row = self.rules.selected()

        def remove() -> None:
            self.records.remove_route(row.id)
            self.refresh()
            self.page.say(f"The rule '{row.rule.name}' is removed.", "done")

        self.confirm.ask(f"Remove the rule '{row.rule.name}'? Readings that it led to stay.", "Remove rule", remove)

    def _edit(self) -> None:
        row: RouteRow = self.rules.selected()
        rule, known = row.rule, dict(self.goes_to.options).values()
        self._set(row.id, rule.name, {what: getattr(rule, what) for what in _CONDITIONS}, rule.priority, rule.rank)
        if (rule.model, rule.model) in self.model.options:
            self.model.value = rule.model
        self.goes_to.value = [one for one in rule.destinations if one in known]

    def _clear(self) -> None:
        self._set(None, "", dict.fromkeys(_CONDITIONS, ""), "routine", 100)
        self.goes_to.value = ()

    def _done(self) -> None:
        self._clear()
        self.rule_drafts.forget()

    def _set(self, editing: int | None, name: str, conditions: dict[str, str], priority: str, rank: int) -> None:
        """Fill the form, for a rule that there is or for a new one."""
        self.editing, self.name.value, self.priority.value, self.rank.value = editing, name, priority, rank
        for what, text in conditions.items():
            self.conditions[what].value = text
        self.save.description = "Add rule" if editing is None else "Save rule"
        show_if(editing is not None, self.cancel)
        title = "Add a rule" if editing is None else f"Edit the rule “{safe(name)}”"
        self.heading.value = (
            f"<h2>{title}</h2><p class='about'>An empty condition fits everything. The rule with the lowest order is "
            "tried first. A rule is tried on a study that was received before it can be switched on, and again after "
            "each change.</p>"
        )

    def _save(self) -> None:
        rule = Rule(
            name=self.name.value,
            model=self.model.value or "",
            priority=self.priority.value,
            rank=self.rank.value,
            destinations=tuple(self.goes_to.value),
            **{what: text.value for what, text in self.conditions.items()},
        )
        self.records.save_route(rule, self.editing)
        self._done()
        self.refresh()
        self.page.say(f"The rule '{rule.name}' is kept, and off. Try it on a study, then switch it on.", "done")

    # --- systems that send

    def _build_callers(self) -> widgets.Widget:
        self.allow = self.page.button("Refuse from now on", self._allow)
        self.callers = Table(
            self.page,
            {
                "AE title": lambda row: row.ae_title,
                "May call from": lambda row: ", ".join(row.networks) or "any address",
                "State": lambda row: "may send" if row.active else "refused",
                "Since": lambda row: sortable_time(row.created_at)[:10],
            },
            self.allow,
            name=lambda row: row.ae_title,
            on_select=self._caller_selected,
            empty="No system may send yet.",
            search=False,
        )
        self.ae_title = field(widgets.Text, "AE title", placeholder="up to 16 letters")
        self.networks = field(widgets.Text, "Addresses", placeholder="any, or 10.1.2.3, 10.4.0.0/16")
        kept = {"caller-title": self.ae_title, "caller-addresses": self.networks}
        self.caller_drafts = Drafts(self.page.browser, kept)
        add = self.page.button("Add system", self._add_caller, "primary")
        form = widgets.HBox([self.ae_title, self.networks, add]).add_class("filters")
        heading = widgets.HTML("<h2>Systems that may send</h2>")
        return widgets.VBox([heading, self.callers.widget, widgets.VBox([form]).add_class("card")])

    def _caller_selected(self) -> None:
        row: CallerRow | None = self.callers.item
        self.allow.description = "Let it send again" if row is not None and not row.active else "Refuse from now on"

    def _allow(self) -> None:
        row: CallerRow = self.callers.selected()
        self.records.set_caller(row.id, not row.active)
        self.refresh()
        self.page.say(f"{row.ae_title} {'is refused from now on' if row.active else 'may send again'}.", "done")

    def _add_caller(self) -> None:
        networks = [part for part in self.networks.value.replace(",", " ").split() if part]
        row = self.records.add_caller(self.ae_title.value, networks)
        self.ae_title.value = self.networks.value = ""
        self.caller_drafts.forget()
        self.refresh()
        self.page.say(f"{row.ae_title} may send.", "done")

    # --- destinations

    def _build_destinations(self) -> widgets.Widget:
        button = self.page.button
        self.hold = button("Stop sending", self._hold)
        self.drop = button("Remove", self._drop)
        self.destinations = Table(
            self.page,
            {
                "Destination": lambda row: row.name,
                "By": lambda row: _KINDS[row.kind],
                "Address": _address,
                "Gets": lambda row: ", ".join(row.objects),
                "State": lambda row: "on" if row.active else "off",
            },
            *(self.hold, self.drop),
            name=lambda row: row.name,
            on_select=self._destination_selected,
            empty="Results stay in the clinic.",
            search=False,
        )
        self.to_name = field(widgets.Text, "Name")
        self.kind = field(widgets.Dropdown, "By", options=[(_KINDS[kind], kind) for kind in DESTINATIONS])
        self.place = field(widgets.Text, "Address", placeholder="host:port, or https://…")
        self.to_title = field(widgets.Text, "Its AE title", placeholder="for C-STORE")
        self.segments = widgets.Checkbox(description="also the heat map as a segmentation", indent=False).add_class(
            "wide"
        )
        kept = {"destination-name": self.to_name, "destination-address": self.place, "destination-title": self.to_title}
        self.destination_drafts = Drafts(self.page.browser, kept)
        add = button("Add destination", self._add_destination, "primary")
        form = widgets.HBox([self.to_name, self.kind, self.place, self.to_title, add]).add_class("filters")
        heading = widgets.HTML("<h2>Destinations</h2>")
        return widgets.VBox([heading, self.destinations.widget, widgets.VBox([form, self.segments]).add_class("card")])

    def _destination_selected(self) -> None:
        row: DestinationRow | None = self.destinations.item
        self.hold.description = "Send again" if row is not None and not row.active else "Stop sending"

    def _hold(self) -> None:
        row: DestinationRow = self.destinations.selected()
        self.records.set_destination(row.id, not row.active)
        self.refresh()
        self.page.say(f"Results {'are no longer' if row.active else 'are again'} sent to {row.name}.", "done")

    def _drop(self) -> None:
        row: DestinationRow = self.destinations.selected()
        self.records.remove_destination(row.id)
        self.refresh()
        self.page.say(f"{row.name} is removed.", "done")

    def _add_destination(self) -> None:
        kind = self.kind.value
        address = _parsed(kind, self.place.value.strip(), self.to_title.value.strip())
        images = kind in ("dicom", "stow") and self.segments.value
        objects = ("report", "capture", "segmentation") if images else ()
        row = self.records.add_destination(self.to_name.value, kind, address, objects)
        for text in (self.to_name, self.place, self.to_title):
            text.value = ""
        self.destination_drafts.forget()
        self.refresh()
        self.page.say(f"{row.name} can be chosen in rules now.", "done")


def _offer(choice: widgets.Dropdown, options: list[tuple[str, str]]) -> None:
    """Change what a dropdown offers; what it is set to stays if it still is among that."""
    kept = choice.value
    choice.options = options
    values = [value for _, value in options]
    choice.value = kept if kept in values else next(iter(values), None)


def _parsed(kind: str, place: str, ae_title: str) -> dict[str, Any]:
    """What was typed as an address, as the records take it."""
    if kind in ("stow", "fhir"):
        return {"url": place}
    host, _, port = place.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal():
        raise LungkitError(f"{place!r} is no address such as pacs.example:104")
    address: dict[str, Any] = {"host": host.strip("[]"), "port": int(port[:6])}
    return address | ({"ae_title": ae_title} if kind == "dicom" else {})


def _address(row: DestinationRow) -> str:
    to = row.address
    place = to["url"] if "url" in to else f"{to['host']}:{to['port']}"
    return f"{to['ae_title']} at {place}" if "ae_title" in to else place


def _conditions(row: RouteRow) -> str:
    """ "CT CHEST from SCANNER1, with 'thorax'"."""
    rule = row.rule
    words = " ".join(filter(None, (rule.modality, rule.body_part))) or "everything"
    words += f" from {rule.caller}" if rule.caller else ""
    return words + (f", described as '{rule.description}'" if rule.description else "")


def _rule_state(row: RouteRow) -> str:
    if row.active:
        return "● on"
    return "off" if row.tried_at else "off, not tried yet"


def _study_words(row: ReceivedRow) -> str:
    sender = row.caller or "the web"
    return f"{sortable_time(row.last_at)} from {sender}, {count(row.files, 'file')}"


def _trial(row: RouteRow, found: list[tuple[SeriesOfStudy, bool]]) -> str:
    """What a rule would do with each series of a study."""
    lines = ""
    for series, fits in found:
        what = " ".join(filter(None, (series.facts.modality, series.facts.body_part))) or "unnamed"
        said = " · ".join(text for text in series.facts.descriptions if text)
        to = f"→ {row.rule.model}" if fits else "set aside" if not series.files else "does not fit"
        lines += (
            f"<tr><td>{safe(what)}</td><td>{safe(html.unescape(said))}</td>"
            f"<td>{count(series.files, 'image')}</td><td><b>{safe(to)}</b></td></tr>"
        )
    head = "<tr><th>Series</th><th>Description</th><th>Images</th><th>This rule</th></tr>"
    table = scrolling(f"<table><thead>{head}</thead><tbody>{lines}</tbody></table>", "What the rule would do")
    return f'<div class="trial">{table}</div>'
