"""Models: which versions there are, how good they were, which one reads; promote another, or go back."""

from datetime import datetime

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.describe import count
from lungkit.clinic.app.page import notice, safe, show_if, when
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.administration import ModelRow
from lungkit.clinic.words import SPLITS, counted, with_interval
from lungkit.models.registry import plain

METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auc": "AUC",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
}
CLASS_METRICS = {
    "recall": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auc": "AUC",
}
_SHOWN_APART = ("model", "version", "classes", "metrics", "files", "synthetic", "created", "lungkit")


class ModelsScreen(Screen):
    """All versions, and the card of the one that is selected."""

    def __init__(self, *given):
        super().__init__(*given)
        self.in_use = widgets.HTML()
        self.show = self.button("Show card", self._show)
        self.promote = self.button("Use this version …", self._promote, "primary")
        self.back = self.button("Roll back …", self._roll_back)
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            *(self.show, self.promote, self.back),
            name=lambda row: f"{row.model}@{row.version}",
            on_select=self._selected,
            empty="No model is registered yet. Train one with the notebooks, or run `make demo`.",
        )
        self.card = widgets.HTML().add_class("card").add_class("model-card")
        self.lay_out("Models", self.in_use, self.confirm.widget, self.table.widget, self.card)

    def refresh(self) -> None:
        """Load all versions."""
        rows = self.records.models()
        used = [f"{row.model}@{row.version}" for row in rows if row.active]
        self.in_use.value = (
            f"<p>In use now: <b>{safe(', '.join(used))}</b>. These read new images.</p>"
            if used
            else notice("No version is in use, so images cannot be read. Select a version and use it.", "problem")
        )
        self.table.show(pd.DataFrame([_readable(row) for row in rows]), rows, count(len(rows), "version"))

    def _selected(self) -> None:
        self.confirm.close()
        self.card.value = ""
        show_if(False, self.card)
        row = self.table.item
        self.promote.disabled = row is None or row.active
        self.back.description = "Roll back …" if row is None else f"Roll back {row.model} …"

    def _show(self) -> None:
        row = self.table.selected()
        self.card.value = _card(self.records.card(row.model, row.version))
        show_if(True, self.card)

    def _promote(self) -> None:
        row = self.table.selected()
        self.confirm.ask(
            f"Use {row.model}@{row.version} for new readings? Earlier readings stay as they are.",
            "Use this version",
            lambda: self._done(self.records.promote(row.model, row.version)),
        )

    def _roll_back(self) -> None:
        model = self.table.selected().model
        self.confirm.ask(
            f"Go back to the version of {model} that was in use before?",
            "Roll back",
            lambda: self._done(self.records.roll_back(model)),
        )

    def _done(self, row: ModelRow) -> None:
        self.refresh()
        self.page.say(f"{row.model}@{row.version} is in use now. No restart is needed.", "done")


def _readable(row: ModelRow) -> dict:
    measured = row.metrics.get("test") or row.metrics.get("val") or {}
    split = "test" if row.metrics.get("test") else "val"
    intervals = measured.get("intervals", {})
    return {
        "Version": f"{row.model}@{row.version}",
        "In use": "● yes" if row.active else "",
        "Registered": row.created[:10],
        "Accuracy (95 % interval)": with_interval(measured.get("accuracy"), intervals.get("accuracy")),
        "AUC (95 % interval)": with_interval(measured.get("auc"), intervals.get("auc")),
        "Measured on": SPLITS[split] if measured else "not measured",
        "Notes": row.problem or ("synthetic data only" if row.synthetic else ""),
    }


def _card(card: dict) -> str:
    synthetic = "Learned from computer-made images: its figures say nothing about patients."
    return (
        f"<h2>{safe(card['model'])}@{safe(card['version'])}</h2>"
        + (notice(synthetic, "note") if card.get("synthetic") else "")
        + f"<p>Answers one of {safe(', '.join(card['classes']))}. Registered {safe(_time(card['created']))} by lungkit "
        f"{safe(card['lungkit'])}.</p>"
        + "".join(_measured(split, of) for split, of in card["metrics"].items())
        + "<h3>More of the card</h3>"
        + _definitions({key: value for key, value in card.items() if key not in _SHOWN_APART})
        + "<h3>Files</h3>"
        + _definitions({name: f"{of['bytes']:,} bytes, SHA-256 {of['sha256']}" for name, of in card["files"].items()})
    )


def _time(text: str) -> str:
    try:
        return when(datetime.fromisoformat(text))
    except ValueError:
        return text


def _measured(split: str, measured: dict) -> str:
    """One table of a split: a row for each metric, a column for all images and for each class."""
    classes = measured.get("per_class", {})
    intervals = measured.get("intervals", {})
    of_class = intervals.get("per_class", {})
    rows = {words: {"All": with_interval(measured.get(m), intervals.get(m))} for m, words in METRICS.items()}
    for name, scores in classes.items():
        for metric, words in CLASS_METRICS.items():
            rows.setdefault(words, {})[name] = with_interval(scores.get(metric), of_class.get(name, {}).get(metric))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=None).reindex(columns=["All", *classes]).fillna("")
    return (
        f"<h3>On {safe(SPLITS.get(split, split))}: {safe(counted(measured) or 'number of images not stated')}</h3>"
        f'<p class="about">In brackets: 95 % interval by patient.</p>'
        f'<div class="wide">{table.to_html(border=0, escape=True)}</div>'
    )


def _definitions(values: dict) -> str:
    parts = (f"<dt>{safe(key.replace('_', ' '))}</dt><dd>{safe(plain(value))}</dd>" for key, value in values.items())
    return f"<dl>{''.join(parts)}</dl>"
