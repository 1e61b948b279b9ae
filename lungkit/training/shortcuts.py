"""Does a model read the disease or the scanner? A recipe is trained at home and measured elsewhere, in several views.

Elsewhere every patient is there under each of two scanners, and under the first with one property of the second
(lungkit.data.phantom.scanners). So what the scanner does to a reading is measured on the same patients, in pairs.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lungkit.data.dataset import Dataset
from lungkit.data.phantom import scanners
from lungkit.training import calibration, evaluation, finetune, release
from lungkit.training.evaluation import Evaluation
from lungkit.training.recipes import Recipe

HOME = "home"
# The share of the diseased whom the second scanner shows, and of the others whom the first one shows.
DEALS = {"as at home": 0.9, "evenly": 0.5, "the other way round": 0.1}


def trained_and_measured(recipe: Recipe, home: Path, elsewhere: Dataset, folder: Path) -> dict[str, Evaluation]:
    """Train a recipe at home; its evaluation on home's test patients, and on each source (view) of elsewhere.

    folder: keeps the training, as finetune.members does. The decision rule is that of home's validation patients.
    """
    trained = finetune.members(recipe, home, folder)
    own, rows = trained.tensors.data, elsewhere.manifest
    raw = release.logits(trained.model, trained.tensors.validation)
    rule = calibration.decision_rule(own.labels("val"), raw, own.classes)
    parts = {HOME: replace(own, manifest=own.part("test"))}
    parts |= {name: replace(elsewhere, manifest=rows[rows["source"] == name]) for name in elsewhere.source_names}
    measured = {}
    for name, of in parts.items():
        scores = rule.calibrate(release.logits(trained.model, trained.tensors.read(of.files())))
        measured[name] = evaluation.evaluate(of.labels(), scores, of.patients(), own.classes, rule)
    return measured


def dealt(views: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """The same patients, each under one of the two scanners: dealt out to them in each way of DEALS."""
    plain = views[scanners.PLAIN]
    _, first, patient = np.unique(plain.patients, return_index=True, return_inverse=True)
    by_other = {how: scanners.uneven(plain.true[first] == 1, share)[patient] for how, share in DEALS.items()}
    return {how: _mixed(plain, views[scanners.OTHER], of) for how, of in by_other.items()}


def effects(views: Mapping[str, Evaluation]) -> pd.DataFrame:
    """What each other view does to the reading of the same images; a row for each, those of most effect first.

    shift: of the disease's probability from the plain view to this one, with low and high. with_disease: the AUC with
    the diseased alone in this view, and the others in the plain one; with_rest: the other way round. swing: their
    difference, with low and high; 0 where the model reads nothing of what changes.
    """
    plain, rows = views[scanners.PLAIN], {}
    sick = plain.true == 1
    for name in [name for name in views if name not in (HOME, scanners.PLAIN)]:
        on_sick, on_rest = (_mixed(plain, views[name], of) for of in (sick, ~sick))
        moved = views[name].probabilities[:, 1] - plain.probabilities[:, 1]
        shift = evaluation.mean_with_interval(moved, plain.patients, bounds=(-1, 1))
        aucs = on_sick.value("auc")[0], on_rest.value("auc")[0]
        rows[name] = [*shift, *aucs, *evaluation.paired_difference(on_sick, on_rest)]
    columns = ["shift", "shift_low", "shift_high", "with_disease", "with_rest", "swing", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_values("swing", ascending=False)


def _mixed(first: Evaluation, second: Evaluation, of_second: np.ndarray) -> Evaluation:
    """Of the same images, those of `of_second` (bool, n) as in the second evaluation, the others as in the first."""
    scores = np.where(of_second[:, None], second.probabilities, first.probabilities)
    return evaluation.evaluate(first.true, scores, first.patients, first.classes, first.rule)
