"""What a run's numbers say, as Markdown: every sentence follows from figures by a rule that its docstring states.

Pure functions. A figure is (value, low, high), a 95 % interval by patient; NaN or None where undefined. Something is
"shown" where the interval lies wholly on one side of what chance, or always giving the same answer, would give.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from lungkit import wording
from lungkit.data import quality
from lungkit.models.rule import DecisionRule
from lungkit.training import evaluation
from lungkit.training.evaluation import Evaluation, mean_with_interval

Figure = tuple[float, float, float]


def says(sentences: Iterable[str]) -> str:
    """The closing cell of a notebook."""
    return "**What it says.**\n\n" + "\n".join(f"- {sentence}" for sentence in sentences if sentence)


FLATTERED = "The validation patients chose the settings, so their figures flatter; the test in notebook 04 does not."
OF_THE_MODEL = "A map is evidence on the model, not on the patient: look for heat on letters, tubes or the table."


# --- 01: the data


def counted(count: int, one: str, more: str = "") -> str:
    """A number and its noun: "1 pair", "2 pairs"."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def shown_as(units: Iterable[str], window: tuple[float, float], intensity_window: tuple[float, float] | None) -> str:
    """How images are made into pictures, by the units that they come in ("HU", "intensity")."""
    units, (level, width) = set(units), window
    told = []
    if "HU" in units:
        told.append(f"Hounsfield units through the lung window (level {level:g}, width {width:g} HU)".replace("-", "−"))
    if "intensity" in units and intensity_window:
        low, high = intensity_window
        told.append(f"greys stretched so that {low:g} of 255 becomes black and {high:g} white")
    if "intensity" in units and not intensity_window:
        told.append("greys as they are stored, without a window")
    return " and ".join(told)


def window_name(units: str, intensity_window: tuple[float, float] | None) -> str:
    """The step's name in a figure."""
    if units == "HU":
        return "lung window"
    return "stretched greys" if intensity_window else "as stored"


def pair_titles(pairs: pd.DataFrame) -> list[str]:
    """A line or two over each pair of pictures; pairs: rows of QualityReport.duplicates."""
    return [
        f"{'two patients' if row.two_patients else 'one patient'}{', two labels' if row.two_labels else ''}\n"
        f"{row.distance} of 64 bits, correlation {row.correlation:.3f}"
        for row in pairs.itertuples()
    ]


def found_nothing(findings: pd.DataFrame) -> str:
    """One line for all the checks that found nothing; findings: of an audit."""
    none = findings.loc[findings["count"] == 0, "finding"].tolist()
    return f"Looked for, none found: {', '.join(none)}." if none else ""


def audit_says(found, manifest: pd.DataFrame, overlap: str) -> list[str]:
    """What an audit found, and what training does about it.

    found: a QualityReport. manifest: the data set as it is trained on, with splits. overlap: "set_aside" or "refuse".
    """
    here = found.findings[found.findings["count"] > 0]
    of = {severity: here[here["severity"] == severity] for severity in ("error", "warning")}
    return [
        _kinds("error", of["error"]) + _left_in(of["error"]),
        _kept_out(manifest, overlap),
        _kinds("warning", of["warning"]),
        *_near(found),
    ]


def _kinds(severity: str, rows: pd.DataFrame) -> str:
    if rows.empty:
        return f"No finding is marked *{severity}*."
    listed = ", ".join(f"{row.finding} ({row.count:,})" for row in rows[["finding", "count"]].itertuples(index=False))
    return f"Marked *{severity}*: {listed}."


def _left_in(errors: pd.DataFrame) -> str:
    """Training refuses and removes nothing of what remains as an error, but for what `_kept_out` tells."""
    if errors["finding"].isin(["unreadable files"]).all():
        return ""
    return (
        " Notebook 03 trains all the same and removes none of these images: a score that they touch is too good until "
        "the data is corrected."
    )


def _kept_out(manifest: pd.DataFrame, overlap: str) -> str:
    refused, aside = ((manifest["split"] == side).sum() for side in ("refused", "set_aside"))
    if not refused and not aside and overlap == "set_aside":
        return "No image is left out: each can be read, and no patient is on two sides of the split."
    told = "Neither trained nor tested on: "
    told += f"{counted(refused, 'image')} that cannot be read, " if refused else "no image for being unreadable, "
    if aside:
        return told + f"{counted(aside, 'image')} of patients on two sides of the published split."
    also = "; such a patient stops a run" if overlap == "refuse" else ""
    return told + f"none for a patient on two sides of the split{also}."


def _near(found) -> list[str]:
    """How many near pairs there are, and what a pair of different patients needed to be one."""
    near = found.duplicates[found.duplicates["kind"] == "near"]
    of_two = int(near["two_patients"].sum())
    told = ["No near-duplicate pair was found by likeness."]
    if len(near):
        told = [f"Found by likeness: {counted(len(near), 'near-duplicate pair')}, {of_two or 'none'} of two patients."]
    for modality, looks in found.thresholds.iterrows():
        of = f" of {modality}" if modality else ""
        if not looks["calibrated"]:
            told.append(
                f"Pictures{of} count as near duplicates from a correlation of {looks['correlation']:.3f} on, a fixed "
                "number: too few patients are known here to measure what chance gives. Look at the pairs before "
                "believing them."
            )
            continue
        told.append(
            f"Pictures{of} of different patients count as near duplicates from a correlation of "
            f"{looks['correlation']:.3f} on. That was set by the {looks['patients']:,} known patients here: chance "
            "should bring one pair above it in ten such sets."
            if looks["correlation"] < quality.MOST_CORRELATION
            else f"Pictures{of} of different patients resemble each other so much here that a correlation of "
            f"{looks['correlation']:.3f} can be chance: pairs of different patients need a look each."
        )
    return told


# --- 02: the split


def preprocessing_says(manifest: pd.DataFrame, black: float, white: float) -> list[str]:
    """What the settings cost, and who is left out.

    manifest: with splits. black, white: the shares of a picture that its window makes so; see input_statistics.cut_off.
    """
    told = (
        f"The window makes {black:.1%} of the training pictures black and {white:.1%} white that was not before: what "
        "differs in there is lost to the model."
        if black + white >= 0.005
        else "Next to nothing of the training pictures is cut off at black or white."
    )
    sides = manifest["split"].value_counts()
    out = [f"{counted(int(sides[side]), 'image')} {side.replace('_', ' ')}" for side in ("set_aside", "refused")
           if sides.get(side)]  # fmt: skip
    kept = f"Neither trained nor tested on: {' and '.join(out)}." if out else "Every image is trained or tested on."
    return [told, kept, "The augmented pictures above should still be the same person's; only eyes can judge that."]


# --- 03: search and training


def search_says(trials: pd.DataFrame) -> str:
    """How many trials ran, for how many epochs, and that their scores are comparable only at the same number.

    trials: models.search.SearchResult.trials.
    """
    done = trials[trials["status"] == "COMPLETED"]
    by_epochs = done.groupby("epochs").size()
    each = ", ".join(f"{counted(n, 'trial')} of {counted(int(epochs), 'epoch')}" for epochs, n in by_epochs.items())
    best = done.loc[done["score"].idxmin()]
    told = (
        f"{each} completed. The score is the validation loss (cross-entropy, lower is better) of a trial's best epoch: "
        f"lowest {best['score']:.3f}, in trial {best['trial']} after {counted(int(best['epochs']), 'epoch')}."
    )
    if len(by_epochs) > 1:
        told += " A longer trial had more time: scores compare settings only at the same number of epochs."
    failed = len(trials) - len(done)
    return told + (f" {counted(failed, 'trial')} did not complete; the table says why." if failed else "")


def repeated_says(runs: pd.DataFrame) -> str:
    """Which settings are best on the mean of their starts, and whether every start agrees.

    runs: models.search.Repeated.runs.
    """
    of = {trial: rows.set_index("seed")["loss"] for trial, rows in runs.groupby("trial", sort=False)}
    spread = {trial: f"{loss.mean():.3f} ({loss.min():.3f} to {loss.max():.3f})" for trial, loss in of.items()}
    best = min(of, key=lambda trial: of[trial].mean())
    seeds = len(of[best])
    told = f"Mean validation loss over {counted(seeds, 'start')}, with its spread: " + "; ".join(
        f"trial {trial} {words}" for trial, words in spread.items()
    )
    told += f". Trial {best}'s settings are trained on."
    for trial in of.keys() - {best}:
        ahead = int((of[best] < of[trial]).sum())
        told += f" They did better than trial {trial}'s from {ahead} of {seeds} starts" + (
            "." if ahead == seeds else ": the order of the two can be chance."
        )
    first = min(of, key=lambda trial: runs.loc[runs["trial"] == trial, "searched"].iloc[0])
    if first != best:
        told += f" In the search itself, trial {first} had scored better: by one start."
    return told


def training_says(history: pd.DataFrame, patience: int) -> list[str]:
    """Where validation loss was lowest, what came after, and how far training has left validation behind there.

    history: of training.fit. Overfitting is said where the training loss still fell by a tenth after the best epoch
    while the validation loss rose by a tenth.
    """
    best = history.loc[history["val_loss"].idxmin()]
    last = history.iloc[-1]
    after = int(last["epoch"] - best["epoch"])
    told = (
        f"The validation loss was lowest after epoch {int(best['epoch'])} of {int(last['epoch'])}: "
        f"{best['val_loss']:.3f} (training {best['loss']:.3f}). The weights of that epoch are kept."
    )
    if after == 0:
        return [told, "It still fell in the last epoch: more epochs may help."]
    if last["val_loss"] > 1.1 * best["val_loss"] and last["loss"] < 0.9 * best["loss"]:
        return [
            told,
            f"After it the training loss fell on to {last['loss']:.3f} and the validation loss rose to "
            f"{last['val_loss']:.3f}: the network was learning the training patients by heart.",
        ]
    stopped = f", and training stopped after {patience} epochs without a lower one" if after >= patience else ""
    span = "In the one epoch" if after == 1 else f"In the {after} epochs"
    return [told, f"{span} after it, it did not fall below that{stopped}."]


def registered_says(standing: str, figures: Mapping) -> str:
    """What became of a version (activation.sentence), and its validation figures (Evaluation.to_dict())."""
    return f"**{standing}.** On {counted(figures['patients'], 'validation patient')}: {_figures(figures)}."


# --- 04: the test


def accuracy_says(figures: Mapping) -> str:
    """The accuracy, next to that of always answering the largest class; figures: Evaluation.to_dict()."""
    told = f"accuracy {_of(figures, 'accuracy')}"
    largest = figures.get("largest_class")
    return told + (f", where always answering '{largest['class']}' gives {largest['share']:.3f}" if largest else "")


def _figures(figures: Mapping) -> str:
    return (
        f"{accuracy_says(figures)}; balanced accuracy {_of(figures, 'balanced_accuracy')}, by chance "
        f"{1 / len(figures['classes']):.3f}; AUC {_of(figures, 'auc')}"
    )


def _of(figures: Mapping, metric: str) -> str:
    return wording.figure(figures[metric], *(figures["intervals"].get(metric) or (None, None)))


def headline(figures: Mapping) -> str:
    """One line on a test: which model, on what, how good; figures: release.Scored.to_dict()."""
    synthetic = " (synthetic phantom)" if figures.get("synthetic") else ""
    return (
        f"{figures['model']} on {figures['data']}{synthetic}, {figures['split']} split: {_figures(figures)}; "
        f"{counted(figures['n'], 'image')} of {counted(figures['patients'], 'patient')}"
    )


def trust_section(trust: Mapping) -> str:
    """A section of the page on what probes found; trust: of a card."""
    return "\n".join(
        ["## What the card says on trust", "", "Measured when the version was registered:", ""]
        + [f"- {sentence}" for sentence in trust.get("says", [])]
    )


def evaluation_says(measured: Evaluation, seen: int, synthetic: bool, own: bool = True) -> list[str]:
    """What a test shows: against chance, against the largest class, where it fails most, and for whom it holds.

    seen: images that were used in training. synthetic: of the phantom. own: of the set that the model learned from.
    """
    return [
        _against_chance(measured),
        _against_the_largest(measured),
        _missed_most(measured),
        f"**{counted(seen, 'image')} of this part {'was' if seen == 1 else 'were'} seen in training: these figures are "
        "too good.**"
        if seen
        else "",
        "These images are drawings: the result says that the workbench works, and nothing about patients."
        if synthetic
        else "It holds for patients like these, from the source that the model learned from, and not for another's."
        if own
        else "These images are from another source than those that the model learned from.",
    ]


def _side(figure: Figure, of: float) -> str:
    """ "above", "below", "open" or, without an interval, "unknown": where a figure's interval lies."""
    _, low, high = figure
    if pd.isna(low):
        return "unknown"
    return "above" if low > of else "below" if high < of else "open"


def _against_chance(measured: Evaluation) -> str:
    figure = measured.value("auc")
    if np.isnan(figure[0]):
        return "All images are of one class: whether the model tells classes apart cannot be said."
    told = {
        "above": "The model tells the classes apart",
        "below": "The model ranks the classes the wrong way round",
        "open": "The model is not shown to tell the classes apart: its interval holds chance",
        "unknown": "With one patient nothing is known of others",
    }[_side(figure, 0.5)]
    return f"{told}: AUC {wording.figure(*figure)}, where chance gives 0.500."


def _against_the_largest(measured: Evaluation) -> str:
    largest, share = measured.largest_class
    always = np.tile(np.eye(len(measured.classes))[measured.classes.index(largest)], (len(measured.true), 1))
    constant = evaluation.evaluate(
        measured.true,
        always,
        measured.patients,
        measured.classes,
        DecisionRule(kind="argmax"),
        measured.n_boot,
        measured.seed,
    )
    difference = evaluation.paired_difference(measured, constant, "accuracy")
    told = {
        "above": f"Its decisions are right more often than always answering '{largest}'",
        "below": f"Its decisions are right **less** often than always answering '{largest}'",
        "open": f"Its decisions are not shown to be right more often than always answering '{largest}'",
        "unknown": f"Always answering '{largest}' is the measure of its accuracy",
    }[_side(difference, 0)]
    accuracy = measured.value("accuracy")
    gained = wording.figure(*difference, signed=True)
    return f"{told}: {wording.figure(*accuracy)} against {share:.3f}, a difference of {gained}."


def _missed_most(measured: Evaluation) -> str:
    recall = measured.per_class["recall"].dropna()
    if len(recall) < 2 or recall.max() - recall.min() < 1e-9:
        return f"Of each class the same share is found: {recall.iloc[0]:.3f}." if len(recall) > 1 else ""
    figure = measured.value("recall", recall.idxmin())
    return f"'{recall.idxmin()}' is missed most often: {wording.figure(*figure)} of its images are found."


def conformal_says(figures: Mapping, classes: int, split: str) -> str:
    """Whether sets hold the true class as often as stated, and what they cost; figures: release.conformal_figures."""
    level, coverage, interval = figures["level"], figures["coverage"], figures["interval"]
    kept = {
        "above": "more often than stated",
        "below": "**less often than stated**: these patients are not like those of validation",
        "open": "as often as stated, as far as these patients can tell",
        "unknown": "of one patient",
    }[_side((coverage, *interval), level)]
    named = figures["classes_named"]
    cost = (
        "which is the likeliest class alone, without a warning where it is wrong"
        if named < 1.005
        else "which rules nothing out"
        if named > classes - 0.005
        else "more where the model is unsure"
    )
    return (
        f"Stated level **{level:.0%}**: the set holds the true class of **{wording.figure(coverage, *interval)}** of "
        f"the {split} images, {kept}. It names **{named:.2f}** of {classes} classes on average, {cost}."
    )


def validation_and_test(chosen_on: Mapping, other: Mapping, split: str) -> str:
    """Which way AUC and balanced accuracy went from validation to another part; both: Evaluation.to_dict()."""
    moved = []
    for metric in ("auc", "balanced_accuracy"):
        before, after = chosen_on.get(metric), other.get(metric)
        if before is None or after is None:
            continue
        gap = after - before
        way = "as on validation" if abs(gap) < 0.0005 else f"{abs(gap):.3f} {'higher' if gap > 0 else 'lower'}"
        moved.append(f"{evaluation.LABELS[metric] if metric == 'auc' else 'balanced accuracy'} {way}")
    told = f"On the {split} part: {', '.join(moved)}." if moved else ""
    return (
        f"{told} Settings, weights and threshold were chosen on the validation patients, which flatters the figures "
        "there; the two parts are also of different patients, so a small gap either way can be chance."
    ).strip()


# --- 05: heat maps


def heat_says(measured: pd.DataFrame, patients: Sequence) -> list[str]:
    """Whether heat maps find the lesions, against what chance gives.

    measured: gradcam.localisation, a row an image; without a lesion NaN. patients: of each row. Chance is the lesion's
    share of the picture: for a point drawn anywhere, and for the heat of a uniform map.
    """
    rows = measured[["pointing_game", "energy_inside", "mask_share"]].astype(float)
    with_lesion = rows.notna().all(axis=1).to_numpy()
    rows, patients = rows[with_lesion], np.asarray(patients)[with_lesion]
    if rows.empty:
        return ["No image here has a lesion mask: whether the maps find lesions was not measured."]
    hit = mean_with_interval(rows["pointing_game"], patients, share=True)
    chance = rows["mask_share"].mean()
    gained = mean_with_interval(rows["pointing_game"] - rows["mask_share"], patients, bounds=(-1, 1))
    finds = {
        "above": "The maps find the lesion in most images",
        "below": "**The maps do not find the lesion in most images**",
        "open": "Whether the maps find the lesion in most images is open",
        "unknown": "One patient says nothing of how often the maps find lesions",
    }[_side(hit, 0.5)]
    better = {
        "above": "more often than by chance",
        "below": "less often than by chance",
        "open": "not shown to be more often than by chance",
        "unknown": "which one patient cannot set against chance",
    }[_side(gained, 0)]
    return [
        f"{finds}: the hottest point lies in it in {_percents(*hit)} of {counted(len(rows), 'image')} of "
        f"{counted(len(np.unique(patients)), 'patient')}, {better}; a point drawn anywhere would in {chance:.1%}.",
        _energy_says(rows, patients),
    ]


def _energy_says(rows: pd.DataFrame, patients: np.ndarray) -> str:
    inside = mean_with_interval(rows["energy_inside"], patients)
    above = mean_with_interval(rows["energy_inside"] - rows["mask_share"], patients)
    how = {
        "above": "more than",
        "below": "less than",
        "open": "not shown to be more or less than",
        "unknown": "of one patient, next to",
    }[_side(above, 0)]
    outside = f"; {1 - inside[0]:.0%} of it lies elsewhere" if inside[0] < 0.5 else ""
    return (
        f"{_percents(*inside)} of the heat lies in the lesion, {how} the {rows['mask_share'].mean():.1%} of a uniform "
        f"map{outside}."
    )


def randomisation_says(table: pd.DataFrame) -> str:
    """Whether the maps depend on what was learned: by how alike they stay when every layer is random.

    table: gradcam.randomisation_check. They do where the interval of the rank correlation lies below 0.5, and do not
    where it lies above.
    """
    last = table.iloc[-1]
    figure = (last["spearman"], last["low"], last["high"])
    told = {
        "below": "The maps depend on what was learned",
        "above": "**The maps hardly depend on what was learned**: they show the images more than the model's reasons",
        "open": "How far the maps depend on what was learned is open",
        "unknown": "With one patient the dependence on what was learned is open",
    }[_side(figure, 0.5)]
    if pd.isna(figure[0]):
        return "With every layer random the maps are empty: there is nothing to compare."
    return (
        f"{told}: with every layer random they correlate {wording.figure(*figure, signed=True)} with the model's own."
    )


# --- 06: ways of training on the same patients


def differences(of: Mapping[str, Evaluation], metrics: Sequence[str] = ("auc", "accuracy")) -> pd.DataFrame:
    """Each pair of models on the same patients: first, second, and first - second with its paired interval."""
    names = list(of)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    return pd.DataFrame(
        {"first": a, "second": b} | {metric: evaluation.paired_difference(of[a], of[b], metric) for metric in metrics}
        for a, b in pairs
    )


def differences_table(differences: pd.DataFrame) -> pd.DataFrame:
    """For people: a row a pair, "+0.012 (−0.003 to +0.031)"."""
    rows = differences.set_index(differences["first"] + " − " + differences["second"])
    rows = rows.drop(columns=["first", "second"]).map(lambda figure: wording.figure(*figure, signed=True))
    return rows.rename(columns=evaluation.LABELS).rename_axis(None)


def ways_say(differences: pd.DataFrame, metric: str = "auc") -> list[str]:
    """Which of two models on the same patients is better, by the interval of their paired difference."""
    label = evaluation.LABELS[metric]
    told = []
    for first, second, figure in differences[["first", "second", metric]].itertuples(index=False):
        how = {
            "above": f"*{first}* is better than *{second}*",
            "below": f"*{first}* is worse than *{second}*",
            "open": f"These patients do not tell *{first}* and *{second}* apart",
            "unknown": f"One patient cannot tell *{first}* and *{second}* apart",
        }[_side(figure, 0)]
        told.append(f"{how}: {label} {wording.figure(*figure, signed=True)}.")
    return told


def worth_says(differences: pd.DataFrame, more: str, less: str, metric: str = "auc") -> str:
    """Whether the way that trains `more` was worth it against the one that trains `less`."""
    figure = differences.set_index(["first", "second"]).loc[(more, less), metric]
    if _side(figure, 0) == "above":
        return f"*{more}* was worth its time on these images."
    return (
        f"*{more}* was not shown to be worth its time here. Of these two prefer *{less}*, which learns less from one "
        "hospital and has less to unlearn in the next."
    )


# --- how figures are written


def _percents(value: float, low: float, high: float) -> str:
    """ "24 % (11–42 %)"."""
    return f"{100 * value:.0f} %" if pd.isna(low) else f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"
