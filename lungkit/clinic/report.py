"""The report of one case as PDF, to print or to keep: the image, the model's answer, and the reviews.

Page one is the case, page two the model behind it; both say that this is research and no diagnosis.
"""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
from fpdf.enums import Align
from PIL import Image

from lungkit.clinic import predictor
from lungkit.clinic.records import cases
from lungkit.clinic.records.reviewing import ReviewRow
from lungkit.clinic.records.tables import CLASS
from lungkit.clinic.report_pages import (
    ACCENT,
    GOOD,
    INK,
    LINE,
    MARGIN,
    PLAIN,
    QUIET,
    WARN,
    WIDTH,
    Color,
    ReportPages,
    Text,
    printable,
)
from lungkit.data import preprocess
from lungkit.data.overlay import colour_scale, overlay, resized
from lungkit.models import card_text
from lungkit.models.card import GRADED, ModelCard
from lungkit.models.class_names import class_name, class_names
from lungkit.models.prediction import is_outside
from lungkit.times import when_and_zone, zone_name
from lungkit.wording import count, percent

HALF, RIGHT = (WIDTH - 6) / 2, MARGIN + (WIDTH + 6) / 2  # mm: width of a column, and where the right one begins
PICTURE_HEIGHT = 66  # mm
PICTURE_PIXELS = 900  # on the long side: 300 dots an inch at the size it is printed
MOST_CLASSES = 8  # the likeliest ones; a line says how many more there are
CUT = "… (shortened here; the records hold all of it)"
_LEGEND = Text(7.5, color=QUIET)

_TAGS = {
    "format": "format",
    "view": "view",
    "body_part": "body part",
    "image_type": "type",
    "bits_stored": "bits",
    "pixel_spacing": "pixel spacing in mm",
    "detector_spacing": "detector spacing in mm",
    "slice_thickness": "slice thickness in mm",
    "age": "age",
}
_PRINTED = ("accuracy", "balanced_accuracy", "auc", "ece", *GRADED)
_PRINTED_BY_CLASS = ("recall", "specificity")
MOST_SPLITS = 3


@dataclass(frozen=True)
class _Limits:
    """How much is printed of texts and lists that can be very long; the records keep all of it."""

    notes: int  # lines
    comment: int  # lines
    reviews: int  # the latest ones
    classes: int  # a model of at most so many has its figures printed by class, too


_GENEROUS, _TIGHT = _Limits(6, 8, 4, 6), _Limits(2, 2, 2, 0)


def pdf(
    case: cases.Case, model_card: ModelCard | None, printed: datetime | None = None, slices: int | None = None
) -> bytes:
    """The report of a case: two A4 pages, usually below 200 kB.

    model_card: of the version that read the case; None if it is no longer in the registry.
    printed: the time of printing, default now. slices: of a CT series; None for one image.
    """
    printed, what = (
        printed or datetime.now(UTC),
        card_text.what_was_read(model_card, case.kind, case.tags.get("view", ""), slices),
    )
    report = _pages(ReportPages(case, printed, what), model_card, _GENEROUS)
    if report.pages_count > 2:
        report = _pages(ReportPages(case, printed, what), model_card, _TIGHT)
    return bytes(report.output())


def _pages(report: ReportPages, card: ModelCard | None, limits: _Limits) -> ReportPages:
    case = report.case
    report.add_page()
    _withdrawn(report, case, limits)
    _people_and_image(report, case, limits)
    _decision(report, case)
    _pictures(report, case, card)
    _probabilities(report, case)
    _checks(report, case)
    _reviews(report, case, limits)
    if report.page_no() == 1:
        report.add_page()
    _model(report, case, card, limits)
    _record(report, case)
    return report


# --- page one: the case


def _withdrawn(report: ReportPages, case: cases.Case, limits: _Limits) -> None:
    """That the image was withdrawn, before anything else is said about it."""
    if gone := case.corrections.withdrawn:
        reason = Text(most=limits.comment, cut=CUT)
        headline = Text(13, bold=True, color=WARN)
        report.box(WARN, ("This image was withdrawn", headline),
                   (f"By {gone.by} on {when_and_zone(gone.at)}: {gone.reason}", reason))  # fmt: skip
        report.ln(3)


def _people_and_image(report: ReportPages, case: cases.Case, limits: _Limits) -> None:
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
        ("Uploaded", f"{when_and_zone(case.uploaded_at)}, by {case.uploaded_by}"),
        ("Size", f"{case.width} × {case.height} pixels"),
        ("From the file", tags or "nothing stated"),
    ]
    what += [("Read", case.tags["note"])] if case.tags.get("note") else []

    def column(x: float, heading: str, rows: list[tuple[str, str]]) -> None:
        report.heading(heading, x, HALF)
        report.facts(rows, x, HALF, label=24)

    report.in_columns(partial(column, MARGIN, "Patient", who), partial(column, RIGHT, "Image", what))
    if case.notes:
        notes = Text(most=limits.notes, cut=CUT)
        report.row([("Notes", 24, Text(color=QUIET)), (case.notes, WIDTH - 24, notes)])
    report.ln(3)


def _decision(report: ReportPages, case: cases.Case) -> None:
    """What the model says, why, and whether a clinician agreed."""
    nearest, color = f"{class_name(case.label)}, {percent(case.probabilities[case.label])}", WARN
    graded = case.grades
    failed = [check.name for check in case.checks if not check.passed]
    if case.decision != predictor.REVIEW:
        headline, color = f"The model answers: {class_name(case.label)}", ACCENT
        rule = dict(card_text.rule_rows(case.rule, class_names(case.classes)))
        words = [f"{name}: {rule[name]}." for name in ("Operating point", "Band of uncertainty") if name in rule]
        why = f"Probability {percent(case.probabilities[case.label])}. {' '.join(words)}"
        if graded:
            headline = f"The model answers: {graded.name}, {graded.extent}"
            why = f"Probability of the range {percent(graded.probability)}. {graded.caution}."
    else:
        headline = "Uncertain: a clinician has to decide"
        why = f"The probability lies within the band of uncertainty around the operating point. Nearest: {nearest}."
        if graded:
            why = f"The model cannot rule out any grade. Nearest: {nearest}. {graded.caution}."
        if case.refusal:
            headline = f"{case.refusal}: a clinician has to decide"
            why = " ".join(f"{check.words[:1].upper()}{check.words[1:]}." for check in case.checks if is_outside(check))
        elif failed:
            why = (
                f"The image did not pass every input check ({', '.join(failed)}), so the model's answer cannot be "
                f"relied on. Nearest: {nearest}."
            )
    status, status_color = _review_status(case)
    report.box(
        color,
        (headline, Text(13, bold=True, color=color)),
        (why, PLAIN),
        (status, Text(bold=True, color=status_color)),
    )
    report.ln(3)


def _review_status(case: cases.Case) -> tuple[str, Color]:
    if not case.reviews:
        return "Not reviewed by a clinician yet.", WARN
    latest = case.reviews[-1]
    if latest.agrees is None:  # the review or the model gives no class
        return f"Reviewed: {latest.says}, by {latest.reviewer}.", WARN
    if latest.agrees:
        return f"Reviewed: agreed with {class_name(case.label)}, by {latest.reviewer}.", GOOD
    return f"Reviewed: corrected to {class_name(latest.label)}, by {latest.reviewer}.", WARN


def _pictures(report: ReportPages, case: cases.Case, card: ModelCard | None) -> None:
    gray, window = _grayscale(case, card)
    if case.refusal:
        report.in_columns(partial(_picture, report, MARGIN, gray, _seen(case, window), "The image that was read"))
        report.ln(3)
        return
    coloured = overlay(gray, case.heat[case.classes.index(case.label)])
    explained = f"Areas that support “{class_name(case.label)}”"

    def heat_map() -> None:
        _picture(report, RIGHT, coloured, f"Heat map. {explained}", explained)
        report.in_columns(
            lambda: report.say("no weight", RIGHT, 20, _LEGEND),
            lambda: report.image(_jpeg(colour_scale()), RIGHT + 17, report.get_y() + 0.6, HALF - 44, 2.6,
                                 alt_text="Colours of the heat map"),
            lambda: report.say("most weight", RIGHT + HALF - 25, 25, _LEGEND),
        )  # fmt: skip

    report.in_columns(partial(_picture, report, MARGIN, gray, _seen(case, window), "The image that was read"), heat_map)
    report.ln(3)


def _seen(case: cases.Case, window: tuple[float, float] | None) -> str:
    if window:
        return f"CT seen at level {window[0]:g} HU, width {window[1]:g} HU"
    return f"{case.kind[0].upper()}{case.kind[1:]}, as uploaded"


def _picture(report: ReportPages, x: float, pixels: np.ndarray, caption: str, alt: str) -> None:
    """A picture in the middle of its column, on black, with its caption."""
    height, width = pixels.shape[:2]
    scale, y = min(HALF / width, PICTURE_HEIGHT / height), report.get_y()
    report.fill(x, y, HALF, height * scale, (0, 0, 0))
    left = x + (HALF - width * scale) / 2
    report.image(_jpeg(pixels), left, y, width * scale, height * scale, alt_text=printable(alt))
    report.set_y(y + height * scale + 1.5)
    report.say(caption, x, HALF, Text(8, color=QUIET, most=2))
    report.ln(0.5)


def _probabilities(report: ReportPages, case: cases.Case) -> None:
    report.heading("Probabilities")
    if case.refusal:
        report.say("Not printed: what the model computed means nothing for this patient or image.")
        report.ln(3)
        return
    printed = sorted(case.classes, key=case.probabilities.__getitem__, reverse=True)[:MOST_CLASSES]
    for name in (name for name in case.classes if name in printed):
        _bar(report, case, name)
    rule, legend = case.rule, []
    if len(printed) < len(case.classes):
        legend.append(f"{len(case.classes) - len(printed)} more classes, less likely")
    if rule.threshold is not None:
        legend.append(f"Black mark on {class_name(rule.positive or '')}: operating point {percent(rule.threshold)}")
        if rule.band and rule.band.ends:
            legend.append("Orange: uncertain, {} to {}".format(*map(percent, rule.band.ends)))
    if rule.grades:
        legend.append("Bold: the range that the model names")
        legend += [f"{name}: {rule.grades.extent(i, i)}" for i, name in enumerate(case.classes)]
    if rule.temperature is not None:
        legend.append("Calibrated on validation images")
    report.say("".join(f"{part}. " for part in legend), style=Text(8, color=QUIET, most=2))
    report.ln(3)


def _bar(report: ReportPages, case: cases.Case, name: str) -> None:
    """A class, its probability as a bar, and on the positive class the operating point and the band."""
    names, figure, rule = 50, 17, case.rule
    x, width, y = MARGIN + names, WIDTH - names - figure, report.get_y()
    probability = case.probabilities[name]
    named = name == case.label
    if case.grades and case.decision != predictor.REVIEW:
        named = name in case.grades.names
    report.fill(x, y + 0.8, width, 3.2, LINE)
    report.fill(x, y + 0.8, width * probability, 3.2, ACCENT if named else (120, 140, 158))
    if name == rule.positive and rule.band and rule.band.ends:
        low, high = rule.band.ends
        for edge in (y, y + 4):
            report.fill(x + width * low, edge, width * (high - low), 0.8, (240, 150, 80))
    if name == rule.positive and rule.threshold is not None:
        report.fill(x + width * rule.threshold - 0.25, y - 0.4, 0.5, 5.6, INK)
    report.in_columns(
        lambda: report.say(class_name(name), MARGIN, names - 2, Text(bold=named, most=1)),
        lambda: report.say(percent(probability), x + width, figure, Text(bold=named, align=Align.R)),
    )
    report.ln(1.1)


def _checks(report: ReportPages, case: cases.Case) -> None:
    report.heading("Image checks")
    if not case.checks:
        report.say("No checks were made.", style=Text(color=QUIET))
    for check in case.checks:
        mark, color = ("✓ passed", GOOD) if check.passed else ("✗ failed", WARN)
        report.row([(mark, 26, Text(bold=True, color=color)), (check.words, WIDTH - 26, Text(most=2))])
    report.ln(3)


def _reviews(report: ReportPages, case: cases.Case, limits: _Limits) -> None:
    printed = case.reviews[-limits.reviews :]
    report.heading("Review" if len(case.reviews) < 2 else "Reviews, latest first")
    if not printed:
        report.say("No one has reviewed this reading yet. A model's answer alone is no finding.")
    for review in reversed(printed):
        report.row([
            (f"{_verdict(review)}: {review.reviewer}", WIDTH - 45, Text(bold=True, most=2)),
            (when_and_zone(review.at), 45, Text(color=QUIET, align=Align.R)),
        ])  # fmt: skip
        if not review.answer_shown:
            report.say("Given before the model's answer was on screen.", style=Text(color=QUIET))
        for words in filter(None, (review.finding, review.comment)):
            report.say(words, style=Text(most=limits.comment, cut=CUT))
        report.ln(1.2)
    if earlier := len(case.reviews) - len(printed):
        report.say(f"{count(earlier, 'earlier review')} in the records.", style=Text(color=QUIET))
    report.ln(3)


def _verdict(review: ReviewRow) -> str:
    if review.kind != CLASS:
        return f"{review.says[0].upper()}{review.says[1:]}"
    if review.agrees is None:
        return review.says
    return f"Agreed with {review.says}" if review.agrees else f"Corrected to {review.says}"


# --- page two: the model and the record


def _model(report: ReportPages, case: cases.Case, card: ModelCard | None, limits: _Limits) -> None:
    report.heading(f"The model: {case.model}@{case.version}", space=40)
    if card is None:
        words = "Its card is no longer in the registry: its training data and its figures cannot be stated here."
        report.say(words, style=Text(color=WARN))
        report.ln(3)
        return
    if card.synthetic:
        report.box(WARN, ("Synthetic data", Text(bold=True, color=WARN)), (card_text.SYNTHETIC, PLAIN))
        report.ln(2)
    report.facts([
        ("Answers one of", ", ".join(class_names(card.classes))),
        ("Training data", card_text.learned_from(card)),
        ("Worst unseen source", card_text.worst_unseen(card)),
        ("Data set", card.data.name),
        ("Registered", card_text.registered(card)),
        ("Data fingerprint", card.data.fingerprint or "not stated"),
    ])  # fmt: skip
    report.say(card_text.NO_FINDING, style=Text(color=QUIET))
    report.ln(3)
    _figures(report, card, limits)


def _figures(report: ReportPages, card: ModelCard, limits: _Limits) -> None:
    """A row for each metric, a column for each split it was measured on; brackets hold 95 % intervals."""
    measured = dict(list(card.metrics.items())[:MOST_SPLITS])
    report.heading("Measured performance")
    if not measured:
        report.say("Its card states no figures.", style=Text(color=WARN))
    names = [(metric, "") for metric in _PRINTED]
    if len(card.classes) <= limits.classes:
        names += [(metric, name) for name in card.classes for metric in _PRINTED_BY_CLASS]
    heads = [card_text.figures_table(split, of).title for split, of in measured.items()]
    rows = [("In brackets: 95 % interval by patient", heads, Text(8, color=QUIET, most=2))]
    for metric, cls in names:
        values = [str(of.figure(metric, cls)) for of in measured.values()]
        name = card_text.metric_name(metric, card.classes)
        rows.append((", ".join(filter(None, (name, class_name(cls)))), values, Text(most=2)))
    for name, values, style in rows:
        if any(value != "–" for value in values):
            report.fill(MARGIN, report.get_y(), WIDTH, 0.2, LINE)
            report.ln(0.8)
            width = (WIDTH - 66) / len(values)
            report.row([(name, 66, style), *((value, width, style) for value in values)])
            report.ln(0.5)
    report.ln(4)


def _record(report: ReportPages, case: cases.Case) -> None:
    report.heading("The record", space=32)
    report.facts([
        ("Reading", case.reading_id),
        ("Read", f"{when_and_zone(case.read_at)}, in {case.milliseconds / 1000:.2f} s from file to answer"),
        ("Uploaded file", f"SHA-256 {case.sha256}"),
        ("This report", f"printed {when_and_zone(report.printed)}; the records may have changed since"),
        ("Times", zone_name()),
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
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    return np.clip(resized(pixels, (width, height)), 0, 1), window


def _jpeg(picture: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(stream, "JPEG", quality=88)
    stream.seek(0)
    return stream
