"""What a run's numbers say, as Markdown: every sentence follows from figures by a rule that its docstring states.

Pure functions. A figure is (value, low, high), a 95 % interval by patient; NaN or None where undefined. Something is
"shown" where the interval lies wholly on one side of what chance, or always giving the same answer, would give.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lungkit.data import quality
from lungkit.models.card import ConformalFigures, Measured
from lungkit.models.card_text import METRICS
from lungkit.models.rule import DecisionRule
from lungkit.training import evaluation
from lungkit.training.evaluation import Evaluation, mean_with_interval
from lungkit.wording import count, figure, listed, percents

Interval = tuple[float, float | None, float | None]
Differences = Mapping[tuple[str, str], Mapping[str, Interval]]  # of pairs of models, by metric


def says(sentences: Iterable[str]) -> str:
    """The closing cell of a notebook."""
    return "**What it says.**\n\n" + "\n".join(f"- {sentence}" for sentence in sentences if sentence)


FLATTERED = "The validation patients chose the settings, so their figures flatter; the test in notebook 04 does not."
OF_THE_MODEL = "A map is evidence on the model, not on the patient: look for heat on letters, tubes or the table."


# --- 01: the data


def shown_as(units: Iterable[str], window: tuple[float, float], intensity_window: tuple[float, float] | None) -> str:
    """How images are made into pictures, by the units that they come in ("HU", "intensity")."""
    units, (level, width) = set(units), window
    steps = []
    if "HU" in units:
        steps.append(
            f"Hounsfield units through the lung window (level {level:g}, width {width:g} HU)".replace("-", "−")
        )
    if "intensity" in units and intensity_window:
        low, high = intensity_window
        steps.append(f"greys stretched so that {low:g} of 255 becomes black and {high:g} white")
    if "intensity" in units and not intensity_window:
        steps.append("greys as they are stored, without a window")
    return " and ".join(steps)


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


def audit_says(report: quality.QualityReport, manifest: pd.DataFrame, overlap: str) -> list[str]:
    """What an audit found, and what training does about it.

    manifest: the data set as it is trained on, with splits. overlap: "set_aside" or "refuse".
    """
    here = report.findings[report.findings["count"] > 0]
    of = {severity: here[here["severity"] == severity] for severity in ("error", "warning")}
    return [
        _kinds("error", of["error"]) + _left_in(of["error"]),
        _kept_out(manifest, overlap),
        _kinds("warning", of["warning"]),
        *_near(report),
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
    refused, aside, excluded = ((manifest["split"] == side).sum() for side in ("refused", "set_aside", "excluded"))
    if not refused and not aside and not excluded and overlap == "set_aside":
        return "No image is left out: each can be read, and no patient is on two sides of the split."
    text = "Neither trained nor tested on: "
    text += f"{count(excluded, 'image')} that a person excluded, " if excluded else ""
    text += f"{count(refused, 'image')} that cannot be read, " if refused else "no image for being unreadable, "
    if aside:
        return text + f"{count(aside, 'image')} of patients on two sides of the published split."
    also = "; such a patient stops a run" if overlap == "refuse" else ""
    return text + f"none for a patient on two sides of the split{also}."


def _near(report: quality.QualityReport) -> list[str]:
    """How many near pairs there are, and what a pair of different patients needed to be one."""
    near = report.duplicates[report.duplicates["kind"] == "near"]
    of_two = int(near["two_patients"].sum())
    sentences = ["No near-duplicate pair was found by likeness."]
    if len(near):
        sentences = [
            f"Found by likeness: {count(len(near), 'near-duplicate pair')}, {of_two or 'none'} of two patients."
        ]
    for modality, looks in report.thresholds.iterrows():
        of = f" of {modality}" if modality else ""
        if not looks["calibrated"]:
            sentences.append(
                f"Pictures{of} count as near duplicates from a correlation of {looks['correlation']:.3f} on, a fixed "
                "number: too few patients are known here to measure what chance gives. Look at the pairs before "
                "believing them."
            )
            continue
        sentences.append(
            f"Pictures{of} of different patients count as near duplicates from a correlation of "
            f"{looks['correlation']:.3f} on. That was set by the {looks['patients']:,} known patients here: chance "
            "should bring one pair above it in ten such sets."
            if looks["correlation"] < quality.MOST_CORRELATION
            else f"Pictures{of} of different patients resemble each other so much here that a correlation of "
            f"{looks['correlation']:.3f} can be chance: pairs of different patients need a look each."
        )
    return sentences


# --- 02: the split


def preprocessing_says(manifest: pd.DataFrame, black: float, white: float) -> list[str]:
    """What the settings cost, and who is left out.

    manifest: with splits. black, white: the shares of a picture that its window makes so; see input_statistics.cut_off.
    """
    lost = (
        f"The window makes {black:.1%} of the training pictures black and {white:.1%} white that was not before: what "
        "differs in there is lost to the model."
        if black + white >= 0.005
        else "Next to nothing of the training pictures is cut off at black or white."
    )
    sides = manifest["split"].value_counts()
    aside = [side for side in ("set_aside", "refused", "excluded") if sides.get(side)]
    out = [f"{count(int(sides[side]), 'image')} {side.replace('_', ' ')}" for side in aside]
    kept = (
        f"Neither trained nor tested on: {' and '.join(out)}."
        if out
        else "No image is left out: each is used for training, validation or test."
    )
    return [lost, kept, "The augmented pictures above should still be the same person's; only eyes can judge that."]


# --- 03: search and training


def search_says(trials: pd.DataFrame) -> str:
    """How many trials ran, for how many epochs, and that their scores are comparable only at the same number.

    trials: models.search.SearchResult.trials.
    """
    completed = trials[trials["status"] == "COMPLETED"].sort_values("score")
    lengths = completed["epochs"].astype(int).value_counts().sort_index()
    each = ", ".join(
        f"{count(n, 'trial')} of {count(epochs, 'epoch')}"
        for epochs, n in zip(lengths.index.tolist(), lengths.tolist(), strict=True)
    )
    best, lowest, after = completed[["trial", "score", "epochs"]].to_numpy()[0].tolist()
    text = (
        f"{each} completed. The score is the validation loss (cross-entropy, lower is better) of a trial's best epoch: "
        f"lowest {lowest:.3f}, in trial {best} after {count(after, 'epoch')}."
    )
    if len(lengths) > 1:
        text += " A longer trial had more time: scores compare settings only at the same number of epochs."
    failed = len(trials) - len(completed)
    return text + (f" {count(failed, 'trial')} did not complete; the table says why." if failed else "")


def repeated_says(runs: pd.DataFrame) -> str:
    """Which settings are best on the mean of their starts, and whether every start agrees.

    runs: models.search.Repeated.runs.
    """
    losses = runs.pivot(index="seed", columns="trial", values="loss")[runs["trial"].unique()]
    spread = "; ".join(
        f"trial {name} {of.mean():.3f} ({of.min():.3f} to {of.max():.3f})" for name, of in losses.items()
    )
    best, seeds = losses.mean().idxmin(), len(losses)
    text = f"Mean validation loss over {count(seeds, 'start')}, with its spread: {spread}. Trial {best}'s settings are "
    text += "trained on."
    for trial, of in losses.drop(columns=best).items():
        ahead = int((losses[best] < of).sum())
        text += f" They did better than trial {trial}'s from {ahead} of {seeds} starts" + (
            "." if ahead == seeds else ": the order of the two can be chance."
        )
    first = runs["trial"].iloc[int(runs["searched"].argmin())]
    if first != best:
        text += f" In the search itself, trial {first} had scored better: by one start."
    return text


def training_says(history: pd.DataFrame, patience: int) -> list[str]:
    """Where validation loss was lowest, what came after, and how far training has left validation behind there.

    history: of training.fit. Overfitting is said where the training loss still fell by a tenth after the best epoch
    while the validation loss rose by a tenth.
    """
    rows = history[["epoch", "loss", "val_loss"]].to_numpy(float)
    (best, loss, lowest), (last, last_loss, last_val_loss) = rows[rows[:, 2].argmin()], rows[-1]
    after = int(last - best)
    text = (
        f"The validation loss was lowest after epoch {best:.0f} of {last:.0f}: {lowest:.3f} (training {loss:.3f}). The "
        "weights of that epoch are kept."
    )
    if after == 0:
        return [text, "It still fell in the last epoch: more epochs may help."]
    if last_val_loss > 1.1 * lowest and last_loss < 0.9 * loss:
        return [
            text,
            f"After it the training loss fell on to {last_loss:.3f} and the validation loss rose to "
            f"{last_val_loss:.3f}: the network was learning the training patients by heart.",
        ]
    stopped = f", and training stopped after {patience} epochs without a lower one" if after >= patience else ""
    span = "In the one epoch" if after == 1 else f"In the {after} epochs"
    return [text, f"{span} after it, it did not fall below that{stopped}."]


def registered_says(standing: str, measured: Measured) -> str:
    """What became of a version (activation.sentence), and its figures on the validation patients."""
    return f"**{standing}.** On {count(measured.patients or 0, 'validation patient')}: {_against_constants(measured)}."


# --- 04: the test


def _against_constants(measured: Measured) -> str:
    """The figures over all images, next to those of chance and of always answering the largest class."""
    largest = measured.largest_class
    always = f", where always answering '{largest['class']}' gives {largest['share']:.3f}" if largest else ""
    return (
        f"accuracy {measured.figure('accuracy')}{always}; balanced accuracy {measured.figure('balanced_accuracy')}, by "
        f"chance {1 / len(measured.classes or [1]):.3f}; AUC {measured.figure('auc')}"
    )


def headline(score: Mapping[str, Any]) -> str:
    """One line on a test: which model, on what, how good; score: release.Scored.to_dict()."""
    measured = Measured.from_dict(score)
    synthetic = " (synthetic phantom)" if score.get("synthetic") else ""
    return (
        f"{score['model']} on {score['data']}{synthetic}, {score['split']} split: {_against_constants(measured)}; "
        f"{count(measured.n or 0, 'image')} of {count(measured.patients or 0, 'patient')}"
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
        _graded(measured),
        f"**{count(seen, 'image')} of this part {'was' if seen == 1 else 'were'} seen in training: these figures are "
        "too good.**"
        if seen
        else "",
        "These images are drawings: the result says that the workbench works, and nothing about patients."
        if synthetic
        else "It holds for patients like these, from the source that the model learned from, and not for another's."
        if own
        else "These images are from another source than those that the model learned from.",
    ]


def _side(interval: Interval, of: float) -> str:
    """ "above", "below", "open" or, without an interval, "unknown": where a figure's interval lies."""
    _, low, high = interval
    if low is None or high is None or np.isnan(low):
        return "unknown"
    return "above" if low > of else "below" if high < of else "open"


def _against_chance(measured: Evaluation) -> str:
    auc = measured.value("auc")
    if np.isnan(auc[0]):
        return "All images are of one class: whether the model tells classes apart cannot be said."
    verdict = {
        "above": "The model tells the classes apart",
        "below": "The model ranks the classes the wrong way round",
        "open": "The model is not shown to tell the classes apart: its interval holds chance",
        "unknown": "With one patient nothing is known of others",
    }[_side(auc, 0.5)]
    return f"{verdict}: AUC {figure(*auc)}, where chance gives 0.500."


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
    verdict = {
        "above": f"Its decisions are right more often than always answering '{largest}'",
        "below": f"Its decisions are right **less** often than always answering '{largest}'",
        "open": f"Its decisions are not shown to be right more often than always answering '{largest}'",
        "unknown": f"Always answering '{largest}' is the measure of its accuracy",
    }[_side(difference, 0)]
    accuracy = measured.value("accuracy")
    gained = figure(*difference, signed=True)
    return f"{verdict}: {figure(*accuracy)} against {share:.3f}, a difference of {gained}."


def _missed_most(measured: Evaluation) -> str:
    recall = measured.per_class["recall"].dropna()
    if len(recall) < 2 or recall.max() - recall.min() < 1e-9:
        return f"Of each class the same share is found: {recall.iloc[0]:.3f}." if len(recall) > 1 else ""
    missed = str(recall.idxmin())
    return f"'{missed}' is missed most often: {figure(*measured.value('recall', missed))} of its images are found."


def _graded(measured: Evaluation) -> str:
    """How far the grades are right, also without the images of the second one; empty where there are no grades."""
    if not measured.rule.grades:
        return ""
    kappa, without, off = (measured.value(name) for name in ("kappa", "kappa_without_second", "grades_off"))
    verdict = {
        "above": "The grades agree with the true ones beyond chance",
        "below": "**The grades agree with the true ones less than by chance**",
        "open": "**The grades are not shown to agree with the true ones beyond chance**",
        "unknown": "One patient says nothing of how well grades agree",
    }[_side(kappa, 0)]
    return (
        f"{verdict}: quadratic kappa {figure(*kappa)}, and {figure(*without)} without the images of "
        f"{measured.classes[1]}. An answer is {figure(*off)} grades off on average."
    )


def conformal_says(
    figures: ConformalFigures, classes: int, split: str, by_class: Mapping[str, ConformalFigures] | None = None
) -> str:
    """Whether sets hold the true class as often as stated, what they cost, and for which class they do so least often.

    by_class: of the images of each true class; one is named where its interval lies below the level.
    """
    coverage = (figures.coverage, *figures.interval)
    kept = {
        "above": "more often than stated",
        "below": "**less often than stated**: these patients are not like those of validation",
        "open": "as often as stated, as far as these patients can tell",
        "unknown": "of one patient",
    }[_side(coverage, figures.level)]
    cost = "more where the model is unsure"
    if figures.classes_named < 1.005:
        cost = "which is the likeliest class alone, without a warning where it is wrong"
    elif figures.classes_named > classes - 0.005:
        cost = "which rules nothing out"
    return (
        f"Stated level **{figures.level:.0%}**: the set holds the true class of **{figure(*coverage)}** of the {split} "
        f"images, {kept}. It names **{figures.classes_named:.2f}** of {classes} classes on average, {cost}."
        f"{_least_covered(by_class or {}, figures.level)}"
    )


def _least_covered(by_class: Mapping[str, ConformalFigures], level: float) -> str:
    intervals = {name: (of.coverage, *of.interval) for name, of in by_class.items()}
    below = [name for name, interval in intervals.items() if _side(interval, level) == "below"]
    if not below:
        return ""
    least = min(below, key=lambda name: intervals[name][0])
    return f" Least often for {least}: {figure(*intervals[least])}, **below the level**."


def validation_and_test(chosen_on: Measured, other: Measured, split: str) -> str:
    """Which way AUC and balanced accuracy went from validation to another part."""
    moved = []
    for metric, name in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy")):
        before, after = chosen_on.figure(metric).value, other.figure(metric).value
        if before is not None and after is not None:
            gap = after - before
            way = f"{abs(gap):.3f} {'higher' if gap > 0 else 'lower'}"
            moved.append(f"{name} {'as on validation' if abs(gap) < 0.0005 else way}")
    gaps = f"On the {split} part: {', '.join(moved)}. " if moved else ""
    return (
        f"{gaps}Settings, weights and threshold were chosen on the validation patients, which flatters the figures "
        "there; the two parts are also of different patients, so a small gap either way can be chance."
    )


# --- 05: heat maps


def heat_says(measured: pd.DataFrame, patients: ArrayLike) -> list[str]:
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
        f"{finds}: the hottest point lies in it in {percents(*hit)} of {count(len(rows), 'image')} of "
        f"{count(len(np.unique(patients)), 'patient')}, {better}; a point drawn anywhere would in "
        f"{rows['mask_share'].mean():.1%}.",
        _energy_says(rows, patients),
    ]


def _energy_says(rows: pd.DataFrame, patients: ArrayLike) -> str:
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
        f"{percents(*inside)} of the heat lies in the lesion, {how} the {rows['mask_share'].mean():.1%} of a uniform "
        f"map{outside}."
    )


def randomisation_says(table: pd.DataFrame) -> str:
    """Whether the maps depend on what was learned: by how alike they stay when every layer is random.

    table: gradcam.randomisation_check. They do where the interval of the rank correlation lies below 0.5, and do not
    where it lies above.
    """
    spearman, low, high = table[["spearman", "low", "high"]].to_numpy(float)[-1].tolist()
    if np.isnan(spearman):
        return "With every layer random the maps are empty: there is nothing to compare."
    verdict = {
        "below": "The maps depend on what was learned",
        "above": "**The maps hardly depend on what was learned**: they show the images more than the model's reasons",
        "open": "How far the maps depend on what was learned is open",
        "unknown": "With one patient the dependence on what was learned is open",
    }[_side((spearman, low, high), 0.5)]
    correlation = figure(spearman, low, high, signed=True)
    return f"{verdict}: with every layer random they correlate {correlation} with the model's own."


# --- 06: ways of training on the same patients


def differences(of: Mapping[str, Evaluation]) -> Differences:
    """Each pair of models on the same patients: by metric, first - second with its paired interval."""
    names = list(of)
    return {
        (first, second): {
            metric: evaluation.paired_difference(of[first], of[second], metric) for metric in ("auc", "accuracy")
        }
        for number, first in enumerate(names)
        for second in names[:number]
    }


def differences_table(differences: Differences) -> pd.DataFrame:
    """For people: a row a pair, "+0.012 (−0.003 to +0.031)"."""
    rows = {
        f"{first} − {second}": {
            METRICS[metric]: figure(*interval, signed=True) for metric, interval in by_metric.items()
        }
        for (first, second), by_metric in differences.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def ways_say(differences: Differences) -> list[str]:
    """Which of two models on the same patients is better, by the interval of their AUCs' paired difference."""
    sentences = []
    for (first, second), by_metric in differences.items():
        verdict = {
            "above": f"*{first}* is better than *{second}*",
            "below": f"*{first}* is worse than *{second}*",
            "open": f"These patients do not tell *{first}* and *{second}* apart",
            "unknown": f"One patient cannot tell *{first}* and *{second}* apart",
        }[_side(by_metric["auc"], 0)]
        sentences.append(f"{verdict}: AUC {figure(*by_metric['auc'], signed=True)}.")
    return sentences


def worth_says(differences: Differences, more: str, less: str) -> str:
    """Whether the way that trains `more` was worth it against the one that trains `less`."""
    if _side(differences[more, less]["auc"], 0) == "above":
        return f"*{more}* was worth its time on these images."
    return (
        f"*{more}* was not shown to be worth its time here. Of these two prefer *{less}*, which learns less from one "
        "hospital and has less to unlearn in the next."
    )


def fine_tuning_says(history: pd.DataFrame, start: float, classes: int) -> list[str]:
    """What fine-tuning made of the head that it began with, by the losses of its epochs.

    history: of training.fit, epochs from 1. start: the validation loss of that head. A constant answer of equal
    probabilities has the logarithm of the number of classes; a first epoch with a higher training loss did harm.
    """
    losses, val_losses = history["loss"].to_numpy(float), history["val_loss"].to_numpy(float)
    constant, last = np.log(classes), val_losses[-1]
    text = (
        f"Validation loss: {start:.3f} of the head that fine-tuning begins with, {val_losses[0]:.3f} after the first "
        f"epoch, {last:.3f} after the last. Equal probabilities have {constant:.3f}."
    )
    if last <= start:
        return [text, "Fine-tuning has made it lower than the head alone."]
    undone = "Fine-tuning has lost what it began with"
    if losses[0] > constant:
        undone += f": in the first epoch the mean training loss was {losses[0]:.3f}, worse than equal probabilities"
    falling = len(losses) > 1 and val_losses.argmin() == len(losses) - 1
    return [
        text,
        f"{undone}. " + ("The loss was still falling at the end." if falling else "No later epoch was better."),
    ]


# --- 07: elsewhere


def effects_say(effects: pd.DataFrame, model: str) -> list[str]:
    """What a model takes for the disease, by the swing in AUC and its interval; effects: shortcuts.effects."""
    told = {
        "above": "takes for the disease what it should not see",
        "below": "takes for health what it should not see",
        "open": "is not shown to read",
        "unknown": "was asked of one patient only, which says nothing of",
    }
    of: dict[str, list[str]] = {side: [] for side in told}
    for name, swing, low, high in effects[["swing", "low", "high"]].itertuples():
        of[_side((swing, low, high), 0)].append(f"{name} {figure(swing, low, high, signed=True)}")
    return [f"*{model}* {text}: {listed(of[side], 'and')}." for side, text in told.items() if of[side]]
