"""The report of one case as PDF, to print or to keep: what was read, what the model said, and who looked at it.

Page one is the case, page two the model behind it; both say that this is research and no diagnosis.
"""

import io
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from lungkit import palette
from lungkit.clinic import predictor
from lungkit.clinic.records import cases
from lungkit.clinic.report_pages import (
    ACCENT,
    GOOD,
    INK,
    LINE,
    MARGIN,
    QUIET,
    WARN,
    WIDTH,
    ReportPages,
    printable,
    utc_text,
)
from lungkit.data import preprocess
from lungkit.models import card_text
from lungkit.models.card import ModelCard
from lungkit.models.rule import DecisionRule
from lungkit.wording import percent

PICTURE_HEIGHT = 66  # mm
PICTURE_PIXELS = 900  # on the long side: 300 dots an inch at the size it is printed
HEAT_OPACITY = 0.65  # of the hottest place; none where there is no heat
MOST_CLASSES = 8  # the likeliest ones; a line says how many more there are
CUT = "… (shortened here; the records hold all of it)"
_HEAT = np.array([palette.rgb(colour) for colour in palette.HEAT])

_TAGS = {
    "format": "format",
    "view": "view",
    "body_part": "body part",
    "image_type": "type",
    "bits_stored": "bits",
    "pixel_spacing": "pixel spacing in mm",
    "detector_spacing": "detector spacing in mm",
    "slice_thickness": "slice thickness in mm",
}
_PRINTED = ("accuracy", "balanced_accuracy", "auc", "ece")
_PRINTED_BY_CLASS = ("recall", "specificity")
MOST_SPLITS = 3


@dataclass(frozen=True)
class _Room:
    """How much is printed of what has no end of its own; the records keep all of it."""

    notes: int  # lines
    comment: int  # lines
    reviews: int  # the latest ones
    classes: int  # a model of at most so many has its figures printed by class, too


_GENEROUS, _TIGHT = _Room(6, 8, 4, 6), _Room(2, 2, 2, 0)


def pdf(case: cases.Case, model_card: ModelCard | None, clinic: str = "", printed: datetime | None = None) -> bytes:
    """The report of a case: two A4 pages, usually below 200 kB.

    model_card: of the version that read the case; None where the registry does not hold it any more.
    clinic: whose report it is, for its head. printed: the time of printing, default now.
    """
    printed = printed or datetime.now(UTC)
    report = _written(case, model_card, clinic, printed, _GENEROUS)
    if report.pages_count > 2:
        report = _written(case, model_card, clinic, printed, _TIGHT)
    return bytes(report.output())


def _written(case: cases.Case, card: ModelCard | None, clinic: str, printed: datetime, room: _Room) -> ReportPages:
    report = ReportPages(case, clinic, printed)
    report.add_page()
    _people_and_image(report, case, room)
    _decision(report, case)
    _pictures(report, case, card)
    _probabilities(report, case)
    _checks(report, case)
    _reviews(report, case, room)
    if report.page_no() == 1:
        report.add_page()
    _model(report, case, card, room)
    _record(report, case)
    return report


# --- page one: the case


def _people_and_image(report: ReportPages, case: cases.Case, room: _Room) -> None:
    patient = case.patient
    who = [
        ("Number", patient.number),
        ("Name", patient.name),
        ("Born", str(patient.birth_year or "not known")),
        ("Sex", patient.sex),
    ]
    tags = ", ".join(f"{words} {case.tags[tag]}" for tag, words in _TAGS.items() if case.tags.get(tag))
    what = [
        ("Kind", case.kind if case.kind != "image" else "not stated in the file"),
        ("Uploaded", f"{utc_text(case.uploaded_at)}, by {case.uploaded_by}"),
        ("Size", f"{case.width} × {case.height} pixels"),
        ("From the file", tags or "nothing stated"),
    ]
    what += [("Read", case.tags["note"])] if case.tags.get("note") else []
    top, half = report.get_y(), (WIDTH - 8) / 2
    ends = []
    for x, heading, rows in ((MARGIN, "Patient", who), (MARGIN + half + 8, "Image", what)):
        report.set_y(top)
        report.heading(heading, x, half)
        report.facts(rows, x, half, label=24)
        ends.append(report.get_y())
    report.set_y(max(ends))
    if case.notes:
        top = report.get_y()
        report.say("Notes", MARGIN, 23, color=QUIET)
        report.set_y(top)
        report.say(case.notes, MARGIN + 24, WIDTH - 24, most=room.notes, cut=CUT)
    report.gap(3)


def decision_words(case: cases.Case) -> tuple[str, str]:
    """What the model says, for people: a headline, and a sentence on why."""
    probability = case.probabilities[case.label]
    if case.decision != predictor.REVIEW:
        return f"The model answers: {case.label}", f"Probability {percent(probability)}. {_rule_words(case.rule)}"
    if failed := [check.name for check in case.checks if not check.passed]:
        why = f"The image did not pass every input check ({', '.join(failed)}), so its answer cannot be relied on."
    else:
        why = "The probability lies within the band of uncertainty around the operating point."
    return "Uncertain: a clinician has to decide", f"{why} Nearest: {case.label}, {percent(probability)}."


def _rule_words(rule: DecisionRule) -> str:
    band = rule.band
    if rule.threshold is not None:
        words = f"{rule.positive} is answered from {percent(rule.threshold)}"
        if band and band.ends:
            words += ", and {} to {} is uncertain".format(*map(percent, band.ends))
        return words + "."
    words = "The likeliest class is answered"
    if band and band.times:
        words += f", if it has 50 % and is at least {band.times:.2g} times as likely as the next"
    return words + "."


def _decision(report: ReportPages, case: cases.Case) -> None:
    headline, why = decision_words(case)
    color = WARN if case.decision == predictor.REVIEW else ACCENT
    status, status_color = _review_status(case)
    report.box(
        color,
        (headline, {"size": 13, "bold": True, "color": color}),
        (why, {}),
        (status, {"bold": True, "color": status_color}),
    )
    report.gap(3)


def _review_status(case: cases.Case) -> tuple[str, tuple]:
    if not case.reviews:
        return "Not reviewed by a clinician yet.", WARN
    latest = case.reviews[-1]
    if latest.agrees:
        return f"Reviewed: agreed with {case.label}, by {latest.reviewer}.", GOOD
    return f"Reviewed: corrected to {latest.label}, by {latest.reviewer}.", WARN


def _pictures(report: ReportPages, case: cases.Case, card: ModelCard | None) -> None:
    gray, window = _grayscale(case, card)
    heat = case.heat[case.classes.index(case.label)]
    gap, half = 6, (WIDTH - 6) / 2
    height, width = gray.shape
    scale = min(half / width, PICTURE_HEIGHT / height)
    drawn_width, drawn_height = width * scale, height * scale
    y = report.get_y()
    seen = (
        f"CT seen at level {window[0]:g} HU, width {window[1]:g} HU"
        if window
        else f"{case.kind[0].upper()}{case.kind[1:]}, as uploaded"
    )
    explained = f"Places that spoke for “{case.label}”"
    pictures = (
        (MARGIN, _jpeg(gray), seen, "The image that was read"),
        (MARGIN + half + gap, _jpeg(_overlay(gray, heat)), f"Heat map. {explained}", explained),
    )
    ends = []
    for x, jpeg, caption, alt in pictures:
        report.set_fill_color(0)
        report.rect(x, y, half, drawn_height, style="F")
        left = x + (half - drawn_width) / 2
        report.image(jpeg, left, y, drawn_width, drawn_height, alt_text=printable(alt))
        report.set_y(y + drawn_height + 1.5)
        report.say(caption, x, half, size=8, color=QUIET, most=2)
        ends.append(report.get_y())
    report.set_y(ends[1] + 0.5)
    _colour_scale(report, MARGIN + half + gap, half)
    report.set_y(max(ends[0], report.get_y()))
    report.gap(3)


def _colour_scale(report: ReportPages, x: float, width: float) -> None:
    """From no to most weight, with the opacity that the overlay has there."""
    y, bar = report.get_y(), width - 44
    heat = np.linspace(0, 1, 256, dtype=np.float32)[None]
    strip = _overlay(np.full((1, 256), 0.45, np.float32), heat)
    report.say("no weight", x, 20, size=7.5, color=QUIET)
    report.image(_jpeg(np.repeat(strip, 8, axis=0)), x + 17, y + 0.6, bar, 2.6, alt_text="Colours of the heat map")
    report.set_y(y)
    report.say("most weight", x + 17 + bar + 2, 25, size=7.5, color=QUIET)


def _probabilities(report: ReportPages, case: cases.Case) -> None:
    report.heading("Probabilities")
    rule, ends = case.rule, case.rule.band.ends if case.rule.band else None
    names, figure = 50, 17  # mm
    bar_x, bar_width = MARGIN + names, WIDTH - names - figure
    printed = sorted(case.classes, key=case.probabilities.get, reverse=True)[:MOST_CLASSES]
    for name in (name for name in case.classes if name in printed):
        y, probability, chosen = report.get_y(), case.probabilities[name], name == case.label
        report.say(name, MARGIN, names - 2, bold=chosen, most=1)
        report.fill(bar_x, y + 0.8, bar_width, 3.2, LINE)
        if name == rule.positive and ends:
            report.fill(bar_x + bar_width * ends[0], y, bar_width * (ends[1] - ends[0]), 4.8, (247, 205, 170))
        report.fill(bar_x, y + 0.8, bar_width * probability, 3.2, ACCENT if chosen else (120, 140, 158))
        if name == rule.positive and rule.threshold is not None:
            report.fill(bar_x + bar_width * rule.threshold - 0.25, y - 0.4, 0.5, 5.6, INK)
        report.set_y(y)
        report.say(percent(probability), bar_x + bar_width, figure, bold=chosen, align="R")
        report.set_y(y + 5.4)
    legend = (
        [f"{len(case.classes) - len(printed)} more classes, less likely"] if len(printed) < len(case.classes) else []
    )
    if rule.threshold is not None:
        legend.append(f"Black mark on {rule.positive}: operating point {percent(rule.threshold)}")
        if ends:
            legend.append(f"Orange: uncertain, {percent(ends[0])} to {percent(ends[1])}")
    if rule.temperature is not None:
        legend.append("Calibrated on validation images")
    report.say("".join(f"{part}. " for part in legend), MARGIN, WIDTH, size=8, color=QUIET, most=2)
    report.gap(3)


def _checks(report: ReportPages, case: cases.Case) -> None:
    report.heading("Image checks")
    if not case.checks:
        report.say("None were made.", MARGIN, WIDTH, color=QUIET)
    for check in case.checks:
        report.keep_together(15)
        y = report.get_y()
        mark, color = ("✓ passed", GOOD) if check.passed else ("✗ not passed", WARN)
        report.say(mark, MARGIN, 25, bold=True, color=color)
        report.set_y(y)
        report.say(check.words, MARGIN + 26, WIDTH - 26, most=2)
    report.gap(3)


def _reviews(report: ReportPages, case: cases.Case, room: _Room) -> None:
    printed = case.reviews[-room.reviews :]
    report.keep_together(18)
    report.heading("Review" if len(case.reviews) < 2 else "Reviews, latest first")
    if not printed:
        report.say("No one has reviewed this reading yet. A model's answer alone is no finding.", MARGIN, WIDTH)
    for review in reversed(printed):
        given = f"Agreed with {review.label}" if review.agrees else f"Corrected to {review.label}"
        report.keep_together(12)
        report.say(f"{given}: {review.reviewer}", MARGIN, WIDTH - 45, bold=True, most=2, beside=utc_text(review.at))
        if review.comment:
            report.say(review.comment, MARGIN, WIDTH, most=room.comment, cut=CUT)
        report.gap(1.2)
    if len(case.reviews) > len(printed):
        earlier = len(case.reviews) - len(printed)
        report.say(f"{earlier} earlier in the records.", MARGIN, WIDTH, color=QUIET)
    report.gap(3)


# --- page two: the model and the record


def _model(report: ReportPages, case: cases.Case, card: ModelCard | None, room: _Room) -> None:
    report.keep_together(40)
    report.heading(f"The model: {case.model}@{case.version}")
    if card is None:
        report.say(
            "Its card is not in the registry any more: what it learned from and how good it is cannot be stated here.",
            MARGIN, WIDTH, color=WARN,
        )  # fmt: skip
        report.gap(3)
        return
    if card.synthetic:
        report.box(WARN, ("Synthetic data", {"bold": True, "color": WARN}), (card_text.SYNTHETIC, {}))
        report.gap(2)
    report.facts([
        ("Answers one of", ", ".join(card.classes)),
        ("Training data", card_text.learned_from(card)),
        ("Data set", card.data.name),
        ("Registered", card_text.registered(card)),
        ("Data fingerprint", card.data.fingerprint or "not stated"),
    ])  # fmt: skip
    report.say(card_text.NO_FINDING, MARGIN, WIDTH, color=QUIET)
    report.gap(3)
    _figures(report, card, room)


def _figures(report: ReportPages, card: ModelCard, room: _Room) -> None:
    """A row for each metric, a column for each split it was measured on; brackets hold 95 % intervals."""
    measured = dict(list(card.metrics.items())[:MOST_SPLITS])
    report.heading("How good it was")
    if not measured:
        report.say("Its card states no figures.", MARGIN, WIDTH, color=WARN)
        report.gap(3)
        return
    heads = [card_text.figures_table(split, of).title for split, of in measured.items()]
    report.table_row("In brackets: 95 % interval by patient", heads, 66, color=QUIET, size=8)
    names = [(metric, "") for metric in _PRINTED]
    if len(card.classes) <= room.classes:
        names += [(metric, name) for name in card.classes for metric in _PRINTED_BY_CLASS]
    for metric, cls in names:
        values = [str(of.figure(metric, cls)) for of in measured.values()]
        if any(value != "–" for value in values):
            report.table_row(", ".join(filter(None, (card_text.METRICS[metric], cls))), values, 66)
    report.gap(4)


def _record(report: ReportPages, case: cases.Case) -> None:
    report.keep_together(32)
    report.heading("The record")
    report.facts([
        ("Reading", case.reading_id),
        ("Read", f"{utc_text(case.read_at)}, in {case.milliseconds / 1000:.2f} s from file to answer"),
        ("Uploaded file", f"SHA-256 {case.sha256}"),
        ("This report", f"printed {utc_text(report.printed)}; the records may have changed since"),
    ])  # fmt: skip


# --- pictures


def _grayscale(case: cases.Case, card: ModelCard | None) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The image in 0..1 at the size it is printed in, and the window (level, width in HU) that a CT is seen through."""
    window = None
    pixels = case.pixels
    if case.units == "HU":
        window = (card.preprocessing if card else preprocess.Preprocessing()).window
        pixels = preprocess.window_level(pixels, *window)
    scale = min(1.0, PICTURE_PIXELS / max(pixels.shape))
    size = tuple(max(1, round(side * scale)) for side in reversed(pixels.shape))
    return np.clip(_resized(pixels, size), 0, 1), window


def _overlay(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(height, width, 3) in 0..1: the more heat, the less of the image is seen through its colour."""
    heat = np.clip(_resized(heat, gray.shape[::-1]), 0, 1)
    at = heat * (len(_HEAT) - 1)
    colours = np.stack([np.interp(at, range(len(_HEAT)), channel / 255) for channel in _HEAT.T], axis=-1)
    opacity = HEAT_OPACITY * heat[..., None]
    return gray[..., None] * (1 - opacity) + colours * opacity


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (width, height), bilinear."""
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def _jpeg(picture: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(stream, "JPEG", quality=88)
    stream.seek(0)
    return stream
