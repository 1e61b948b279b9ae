"""The models there are, side by side: what each was measured on and what came out, from their cards."""

import pandas as pd

from lungkit.errors import LungkitError
from lungkit.models import registry

_FIGURES = {"auc": "AUC", "accuracy": "accuracy", "macro_f1": "macro F1", "ece": "ECE"}


def table() -> pd.DataFrame:
    """One row for the active version of each model; figures are text, with their 95 % interval where there is one."""
    rows = []
    for name in registry.models():
        try:
            version = registry.active(name)
        except (registry.ModelMissing, registry.ModelDamaged):
            continue
        rows.append(_row(version))
    if not rows:
        raise LungkitError("no model is active; train one with `lungkit train` or `lungkit run`")
    return pd.DataFrame(rows).fillna("–")


def _row(version: registry.Version) -> dict:
    card = version.card
    where, measured = _reported(card["metrics"])
    size = sum(file.stat().st_size for file in version.folder.rglob("*") if file.is_file())
    seconds = card.get("training", {}).get("seconds")
    validation = card["metrics"].get("val", {}).get("ece")
    named = card["metrics"].get("test", {}).get("conformal")
    return {
        "model": f"{version}{' (synthetic)' if card['synthetic'] else ''}",
        "reported on": f"{where}: {measured.get('n', '?')} images of {measured.get('patients', '?')} patients",
        **{title: _figure(measured, name) for name, title in _FIGURES.items()},
        "ECE, validation": None if validation is None else f"{validation:.3f}",
        "90 % sets": named
        and "{:.3f} ({:.3f}–{:.3f}), {:.2f} classes".format(
            named["coverage"], *named["interval"], named["classes_named"]
        ),
        "MB": f"{size / 1e6:.1f}",
        "training": None if seconds is None else f"{seconds / 60:.0f} min",
    }


def _reported(metrics: dict) -> tuple[str, dict]:
    """The figures that count: over all folds, else the test, else validation, and where they were measured."""
    folds = [split for split, measured in metrics.items() if measured.get("by") == "patient"]
    for split in (*folds, "test", "val"):
        if split in metrics:
            return split, metrics[split]
    return "nothing", {}


def _figure(measured: dict, name: str) -> str | None:
    value = measured.get(name)
    if value is None:
        return None
    low, high = measured.get("intervals", {}).get(name) or (None, None)
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f}–{high:.3f})"
