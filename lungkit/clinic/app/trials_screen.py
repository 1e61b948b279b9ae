"""Trials: figures of a version next to the one in use, to be signed; what is used or rejected; what reads unseen."""

import ipywidgets as widgets

from lungkit.clinic.app import trial_view
from lungkit.clinic.app.page import field, safe, show_if, sortable_time
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.learning import shadow
from lungkit.clinic.learning import trial as going_back
from lungkit.clinic.learning.shadow import Compared
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import OPEN
from lungkit.clinic.records.trials import SIGNATURES, TrialRow
from lungkit.errors import LungkitError
from lungkit.models.verdict import PROMOTE
from lungkit.wording import count

CHOOSE = ("Choose a version", "")


class TrialsScreen(Screen[Administration]):
    """All trials, and everything about the one that is selected; below, the versions that read in the shadow."""

    def build(self) -> None:
        button = self.page.button
        self.standings = widgets.HTML()
        self.sign = button("Sign …", self._ask_sign)
        self.use = button("Use this version …", self._ask_use, "primary")
        self.reject = button("Reject …", self._ask_reject)
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            {
                "Model": lambda trial: trial.model,
                "Challenger": lambda trial: trial.challenger,
                "In use then": lambda trial: trial.champion,
                "Verdict": lambda trial: trial.verdict.word,
                "State": lambda trial: trial.state,
                "Signed": lambda trial: f"{len(trial.signatures)} of {SIGNATURES}",
                "Measured": lambda trial: sortable_time(trial.opened_at),
            },
            *(self.sign, self.use, self.reject),
            on_select=self._selected,
            empty="No trial yet. On the machine of the clinic, `lungkit learn trial` measures a version.",
        )
        self.detail = widgets.HTML().add_class("card").add_class("model-card").add_class("trial")
        self.version = field(widgets.Dropdown, "Version", options=[CHOOSE])
        self.begin = button("Let it read in the shadow", self._begin)
        self.end = button("Stop reading in the shadow", self._end)
        self.shadows = widgets.HTML()
        heading = widgets.HTML(
            "<h2>In the shadow</h2><p class='about'>A version reads what the one in use has read, from now on. Its "
            "answers are kept, and are never shown with a case.</p>"
        )
        form = widgets.HBox([self.version, self.begin, self.end]).add_class("filters")
        self.lay_out(
            "Trials",
            self.standings,
            self.confirm.widget,
            self.table.widget,
            self.detail,
            widgets.VBox([heading, form, self.shadows]).add_class("card").add_class("model-card"),
            about="A new version is measured next to the one in use. Two administrators sign before it may read.",
        )

    def refresh(self) -> None:
        """Load trials, how the rules for going back stand, and the versions in the shadow."""
        rows = self.records.trials()
        standings = going_back.standings(self.records.access)
        self.standings.value = "".join(map(trial_view.standing_notice, standings))
        self.table.show(rows, count(len(rows), "trial"))
        others = [(str(row), row) for row in self.records.models() if not row.active and not row.problem]
        self.version.options = [CHOOSE, *others]
        compared = shadow.compared(self.records.access)
        self.shadows.value = "".join(map(_shadow, compared)) or "<p>No version reads in the shadow.</p>"

    def _selected(self) -> None:
        self.confirm.close()
        trial = self.table.item
        self.detail.value = trial_view.whole(trial) if trial else ""
        show_if(trial, self.detail)
        is_open = trial is not None and trial.state == OPEN
        self.reject.disabled = not is_open
        self.sign.disabled = not is_open or bool(trial.problem)
        ready = is_open and not trial.problem and trial.verdict.word == PROMOTE
        self.use.disabled = not ready or len(trial.signatures) < SIGNATURES

    # --- signing and using

    def _ask_sign(self) -> None:
        trial: TrialRow = self.table.selected()
        self.confirm.ask(
            f"Sign that you have looked at the figures of {trial}? The trial says {trial.verdict.word}. Your name and "
            "the time are kept, and cannot be taken back.",
            "Sign",
            lambda: self._sign(trial),
        )

    def _sign(self, trial: TrialRow) -> None:
        self.records.sign_trial(trial.id, trial.sha256)
        self._show_again(trial)
        self.page.say(f"You have signed the trial of {trial.model}@{trial.challenger}.", "done")

    def _ask_use(self) -> None:
        trial: TrialRow = self.table.selected()
        self.confirm.ask(
            f"Read with {trial.model}@{trial.challenger} from the next image on, in place of {trial.champion}? Earlier "
            "readings stay as they are.",
            "Use this version",
            lambda: self._use(trial),
        )

    def _use(self, trial: TrialRow) -> None:
        used = self.records.use_challenger(trial.id)
        self._show_again(trial)
        self.page.say(f"{used} is in use now. No restart is needed. Go back under Models.", "done")

    def _ask_reject(self) -> None:
        trial: TrialRow = self.table.selected()
        self.confirm.ask(
            f"Reject {trial.model}@{trial.challenger}? {trial.champion} stays in use, and this trial ends.",
            "Reject",
            lambda: self._reject(trial),
        )

    def _reject(self, trial: TrialRow) -> None:
        self.records.reject_challenger(trial.id)
        self._show_again(trial)
        self.page.say(f"{trial.model}@{trial.challenger} is rejected.", "done")

    def _show_again(self, trial: TrialRow) -> None:
        """Load everything, with the same trial selected."""
        self.refresh()
        self.table.select(lambda row: row.id == trial.id)

    # --- shadow

    def _begin(self) -> None:
        row = self.version.value
        if not row:
            raise LungkitError("Choose a version first.")
        self.records.set_challenger(row.model, row.version)
        self.refresh()
        self.page.say(f"{row} reads in the shadow from now on.", "done")

    def _end(self) -> None:
        row = self.version.value
        if not row:
            raise LungkitError("Choose a version of the model first.")
        self.records.set_challenger(row.model, None)
        self.refresh()
        self.page.say(f"No version reads in the shadow of {row.model} now.", "done")


def _shadow(one: Compared) -> str:
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(words)}</dd>" for name, words in shadow.rows(one))
    return f"<h3>{safe(one.model)}@{safe(one.version)}</h3><dl>{rows}</dl>"
