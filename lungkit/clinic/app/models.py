"""Models: which versions there are, how good they were, which one reads; promote another, or go back."""

from collections.abc import Callable
from datetime import datetime

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app.admin import Confirm, Table
from lungkit.clinic.app.page import notice, safe, when
from lungkit.clinic.records.administration import ModelRow, Oversight
from lungkit.clinic.words import SPLITS, counted, with_interval
from lungkit.errors import LungkitError
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


def view(oversight: Oversight, act: Callable) -> widgets.Widget:
    """The screen."""
    models = Models(oversight, act)
    models.widget.refresh = models.refresh
    return models.widget


class Models:
    """All versions, and the card of the one that is chosen."""

    def __init__(self, oversight: Oversight, act: Callable):
        self._oversight = oversight
        self._rows: dict[tuple[str, str], ModelRow] = {}
        self.in_use, self.said, self.status = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.table = Table(act, self._chosen, "No model is registered yet: run the notebooks, or `make demo`.")
        self.show = widgets.Button(description="Show card")
        self.promote = widgets.Button(description="Use this version …").add_class("primary")
        self.back = widgets.Button()
        self.confirm = Confirm(act)
        self.card = widgets.HTML().add_class("card").add_class("model-card")
        for button, action in ((self.show, self._show), (self.promote, self._promote), (self.back, self._back)):
            button.on_click(act(lambda _, action=action: action()))
        self.actions = widgets.HBox([self.show, self.promote, self.back]).add_class("actions")
        self.widget = widgets.VBox(
            [
                widgets.HTML("<h1>Models</h1>"),
                self.said,
                self.in_use,
                self.table.widget,
                self.status,
                self.actions,
                self.confirm.widget,
                self.card,
            ]
        )
        self.refresh()

    def refresh(self) -> None:
        """All versions anew."""
        self.said.value = ""
        self._load()

    def _load(self) -> None:
        rows = self._oversight.models()
        self._rows = {(row.model, row.version): row for row in rows}
        used = [f"{row.model}@{row.version}" for row in rows if row.active]
        self.in_use.value = (
            f"<p>In use now: <b>{safe(', '.join(used))}</b>. Uploads are read by these.</p>"
            if used
            else notice("No version is in use: clinicians cannot have images read. Select one and use it.", "problem")
        )
        self.table.show(pd.DataFrame([_readable(row) for row in rows]), keys=list(self._rows))
        self._chosen()

    def _chosen(self) -> None:
        self.confirm.close()
        self.card.value, self.card.layout.display = "", "none"
        row = self._rows.get(self.table.key)
        self.actions.layout.display = "none" if row is None else ""
        if row is None:
            self.status.value = '<p class="about" role="status">Select a row to see its card or to use it.</p>'
            return
        self.status.value = f'<p role="status">Selected: <b>{safe(row.model)}@{safe(row.version)}</b></p>'
        self.promote.disabled = row.active
        self.back.description = f"Roll {row.model} back …"

    def _row(self) -> ModelRow:
        row = self._rows.get(self.table.key)
        if row is None:
            raise LungkitError("Select one row of the table first.")
        return row

    def _show(self) -> None:
        row = self._row()
        self.card.value = _card(self._oversight.card(row.model, row.version))
        self.card.layout.display = ""

    def _promote(self) -> None:
        row = self._row()
        self.confirm.ask(
            f"Use {row.model}@{row.version} from the next reading on? Readings that were made stay as they are.",
            "Use this version",
            lambda: self._done(self._oversight.promote(row.model, row.version)),
        )

    def _back(self) -> None:
        model = self._row().model
        self.confirm.ask(
            f"Go back to the version of {model} that was in use before the present one?",
            "Roll back",
            lambda: self._done(self._oversight.roll_back(model)),
        )

    def _done(self, row: ModelRow) -> None:
        self._load()
        self.said.value = notice(f"{row.model}@{row.version} is in use now, without a restart.", "done")


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
