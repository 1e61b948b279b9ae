"""The report of one case as PDF, to print or to keep: what was read, what the model said, and who looked at it.

Page one is the case, page two the model behind it; both say that this is research and no diagnosis. Texts are set in
DejaVu Sans, which knows Latin, Greek, Cyrillic and more; a character that it lacks is printed as �.
"""

import functools
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from fpdf import FPDF
from fpdf.bidi import BidiParagraph
from fpdf.enums import MethodReturnValue
from PIL import Image

from lungkit import palette
from lungkit.clinic import predictor
from lungkit.clinic.records import cases
from lungkit.clinic.words import SPLITS, counted, percent, with_interval
from lungkit.data import preprocess
from lungkit.models.rule import DecisionRule

RESEARCH_ONLY = "Research use only, not a diagnosis"
MARGIN, WIDTH = 15, 180  # mm
TOP, BOTTOM = 27, 278  # mm: what lies between belongs to the content, the rest to head and foot of the page
PICTURE_HEIGHT = 66  # mm
PICTURE_PIXELS = 900  # on the long side: 300 dots an inch at the size it is printed
LINE_HEIGHT = 0.3528 * 1.35  # mm for each pt of a text's size
HEAT_OPACITY = 0.65  # of the hottest place; none where there is no heat
MOST_CLASSES = 8  # the likeliest ones; a line says how many more there are
CUT = "… (shortened here; the records hold all of it)"


INK, QUIET, LINE, GROUND = map(palette.rgb, (palette.INK, palette.QUIET, palette.LINE, palette.GROUND))
ACCENT, WARN, GOOD = map(palette.rgb, (palette.ACCENT, palette.WARN, palette.GOOD))
PALE = {
    ACCENT: palette.rgb(palette.ACCENT_PALE),
    WARN: palette.rgb(palette.WARN_PALE),
    GOOD: palette.rgb(palette.GOOD_PALE),
}
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
_METRICS = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC", "ece": "Calibration error"}
_CLASS_METRICS = {"recall": "Sensitivity", "specificity": "Specificity"}
_SYNTHETIC = (
    "This model learned from computer-made images (a phantom). Its figures say how well the software works, "
    "nothing about patients."
)
MOST_SPLITS = 3


@dataclass(frozen=True)
class _Room:
    """How much is printed of what has no end of its own; the records keep all of it."""

    notes: int  # lines
    comment: int  # lines
    reviews: int  # the latest ones
    classes: int  # a model of at most so many has its figures printed by class, too


_GENEROUS, _TIGHT = _Room(6, 8, 4, 6), _Room(2, 2, 2, 0)


def pdf(case: cases.Case, model_card: dict | None, clinic: str = "", printed: datetime | None = None) -> bytes:
    """The report of a case: two A4 pages, usually below 200 kB.

    model_card: of the version that read the case; None where the registry does not hold it any more.
    clinic: whose report it is, for its head. printed: the time of printing, default now.
    """
    printed = printed or datetime.now(UTC)
    report = _written(case, model_card, clinic, printed, _GENEROUS)
    if report.pages_count > 2:
        report = _written(case, model_card, clinic, printed, _TIGHT)
    return bytes(report.output())


def _written(case: cases.Case, card: dict | None, clinic: str, printed: datetime, room: _Room) -> "_Report":
    report = _Report(case, clinic, printed)
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


def _people_and_image(report: "_Report", case: cases.Case, room: _Room) -> None:
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
        ("Uploaded", f"{_time(case.uploaded_at)}, by {case.uploaded_by}"),
        ("Size", f"{case.width} × {case.height} pixels"),
        ("From the file", tags or "nothing stated"),
    ]
    what += [("Read", case.tags["note"])] if case.tags.get("note") else []
    top, half = report.get_y(), (WIDTH - 8) / 2
    ends = []
    for x, heading, rows in ((MARGIN, "Patient", who), (MARGIN + half + 8, "Image", what)):
        report.set_y(top)
        report.heading(heading, x, half)
        for label, value in rows:
            y = report.get_y()
            report.say(label, x, 23, color=QUIET)
            report.set_y(y)
            report.say(value, x + 24, half - 24, bold=label == "Name", most=3)
        ends.append(report.get_y())
    report.set_y(max(ends))
    if case.notes:
        y = report.get_y()
        report.say("Notes", MARGIN, 23, color=QUIET)
        report.set_y(y)
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


def _decision(report: "_Report", case: cases.Case) -> None:
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


def _pictures(report: "_Report", case: cases.Case, card: dict | None) -> None:
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
        report.image(jpeg, left, y, drawn_width, drawn_height, alt_text=_printable(alt))
        report.set_y(y + drawn_height + 1.5)
        report.say(caption, x, half, size=8, color=QUIET, most=2)
        ends.append(report.get_y())
    report.set_y(ends[1] + 0.5)
    _colour_scale(report, MARGIN + half + gap, half)
    report.set_y(max(ends[0], report.get_y()))
    report.gap(3)


def _colour_scale(report: "_Report", x: float, width: float) -> None:
    """From no to most weight, with the opacity that the overlay has there."""
    y, bar = report.get_y(), width - 44
    heat = np.linspace(0, 1, 256, dtype=np.float32)[None]
    strip = _overlay(np.full((1, 256), 0.45, np.float32), heat)
    report.say("no weight", x, 20, size=7.5, color=QUIET)
    report.image(_jpeg(np.repeat(strip, 8, axis=0)), x + 17, y + 0.6, bar, 2.6, alt_text="Colours of the heat map")
    report.set_y(y)
    report.say("most weight", x + 17 + bar + 2, 25, size=7.5, color=QUIET)


def _probabilities(report: "_Report", case: cases.Case) -> None:
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


def _checks(report: "_Report", case: cases.Case) -> None:
    report.heading("Checks of the image")
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


def _reviews(report: "_Report", case: cases.Case, room: _Room) -> None:
    printed = case.reviews[-room.reviews :]
    report.keep_together(18)
    report.heading("Review" if len(case.reviews) < 2 else "Reviews, latest first")
    if not printed:
        report.say("No one has reviewed this reading yet. A model's answer alone is no finding.", MARGIN, WIDTH)
    for review in reversed(printed):
        given = f"Agreed with {review.label}" if review.agrees else f"Corrected to {review.label}"
        report.keep_together(12)
        report.say(f"{given}: {review.reviewer}", MARGIN, WIDTH - 45, bold=True, most=2, beside=_time(review.at))
        if review.comment:
            report.say(review.comment, MARGIN, WIDTH, most=room.comment, cut=CUT)
        report.gap(1.2)
    if len(case.reviews) > len(printed):
        earlier = len(case.reviews) - len(printed)
        report.say(f"{earlier} earlier in the records.", MARGIN, WIDTH, color=QUIET)
    report.gap(3)


# --- page two: the model and the record


def _model(report: "_Report", case: cases.Case, card: dict | None, room: _Room) -> None:
    report.keep_together(40)
    report.heading(f"The model: {case.model}@{case.version}")
    if card is None:
        report.say(
            "Its card is not in the registry any more: what it learned from and how good it is cannot be stated here.",
            MARGIN, WIDTH, color=WARN,
        )  # fmt: skip
        report.gap(3)
        return
    if card.get("synthetic"):
        report.box(WARN, ("Synthetic data", {"bold": True, "color": WARN}), (_SYNTHETIC, {}))
        report.gap(2)
    data = card.get("data", {})
    facts = [
        ("Answers one of", ", ".join(card.get("classes", case.classes))),
        ("Trained on", _trained_on(data)),
        ("Registered", _registered(card)),
        ("Data fingerprint", str(data.get("fingerprint", "not stated"))),
    ]
    for label, value in facts:
        y = report.get_y()
        report.say(label, MARGIN, 33, color=QUIET)
        report.set_y(y)
        report.say(value, MARGIN + 34, WIDTH - 34, most=3)
    report.say(
        "The model knows such images only. Another age, scanner or hospital can change its figures unnoticed.",
        MARGIN, WIDTH, color=QUIET,
    )  # fmt: skip
    report.gap(3)
    _figures(report, card, room)


def _trained_on(data: dict) -> str:
    counts = data.get("counts", {}).get("train", {})
    population = str(data.get("population") or data.get("description") or "")
    sizes = [f"{counts[key]:,}".replace(",", " ") + f" {key}" for key in ("images", "patients") if key in counts]
    parts = [str(data.get("name", "not stated")), " of ".join(sizes), population]
    return ": ".join(part for part in (parts[0], ". ".join(part for part in parts[1:] if part)) if part)


def _registered(card: dict) -> str:
    try:
        return f"{_time(datetime.fromisoformat(card['created']))} by lungkit {card.get('lungkit', '')}".strip()
    except (KeyError, ValueError, TypeError):
        return "not stated"


def _figures(report: "_Report", card: dict, room: _Room) -> None:
    """A row for each metric, a column for each split it was measured on; brackets hold 95 % intervals."""
    measured = dict(list(card.get("metrics", {}).items())[:MOST_SPLITS])
    report.heading("How good it was")
    if not measured:
        report.say("Its card states no figures.", MARGIN, WIDTH, color=WARN)
        report.gap(3)
        return
    names, column = 66, (WIDTH - 66) / len(measured)
    heads = [": ".join(filter(None, (SPLITS.get(split, split), counted(of)))) for split, of in measured.items()]
    _row(report, "In brackets: 95 % interval by patient", heads, names, column, color=QUIET, size=8)
    rows = [
        (words, lambda of, m=metric: (of.get(m), of.get("intervals", {}).get(m))) for metric, words in _METRICS.items()
    ]
    classes = card.get("classes", [])
    if len(classes) <= room.classes:
        rows += [
            (f"{words}, {name}", functools.partial(_of_class, metric=metric, name=name))
            for name in classes
            for metric, words in _CLASS_METRICS.items()
        ]
    for words, figure in rows:
        values = [with_interval(*figure(of)) for of in measured.values()]
        if any(value != "–" for value in values):
            _row(report, words, values, names, column)
    report.gap(4)


def _of_class(measured: dict, metric: str, name: str) -> tuple:
    interval = measured.get("intervals", {}).get("per_class", {}).get(name, {}).get(metric)
    return measured.get("per_class", {}).get(name, {}).get(metric), interval


def _row(report: "_Report", first: str, rest: Sequence[str], names: float, column: float, **style) -> None:
    report.keep_together(10)
    y = report.get_y()
    report.fill(MARGIN, y, WIDTH, 0.2, LINE)
    report.set_y(y + 0.8)
    report.say(first, MARGIN, names - 2, most=2, **style)
    end = report.get_y()
    for index, value in enumerate(rest):
        report.set_y(y + 0.8)
        report.say(value, MARGIN + names + index * column, column - 2, most=2, **style)
        end = max(end, report.get_y())
    report.set_y(end + 0.5)


def _record(report: "_Report", case: cases.Case) -> None:
    report.keep_together(32)
    report.heading("The record")
    facts = [
        ("Reading", case.reading_id),
        ("Read", f"{_time(case.read_at)}, in {case.milliseconds / 1000:.2f} s from file to answer"),
        ("Uploaded file", f"SHA-256 {case.sha256}"),
        ("This report", f"printed {_time(report.printed)}; the records may have changed since"),
    ]
    for label, value in facts:
        y = report.get_y()
        report.say(label, MARGIN, 33, color=QUIET)
        report.set_y(y)
        report.say(value, MARGIN + 34, WIDTH - 34, most=2)


# --- pictures


def _grayscale(case: cases.Case, card: dict | None) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The image in 0..1 at the size it is printed in, and the window (level, width in HU) that a CT is seen through."""
    window = None
    pixels = case.pixels
    if case.units == "HU":
        stated = (card or {}).get("preprocessing", {}).get("window")
        window = tuple(stated) if stated else preprocess.Preprocessing().window
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


# --- text


def _time(time: datetime) -> str:
    utc = time.astimezone(UTC)
    return f"{utc.day} {utc:%b %Y, %H:%M} UTC"


def _font(bold: bool) -> Path:
    """The file of DejaVu Sans, which comes with lungkit."""
    return Path(__file__).parent / "fonts" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


@functools.cache
def _known() -> frozenset[int]:
    """Code points that both fonts can print."""
    from fontTools.ttLib import TTFont

    regular, bold = (set(TTFont(_font(bold), lazy=True).getBestCmap()) for bold in (False, True))
    return frozenset(regular & bold)


def _printable(text: str) -> str:
    """What the fonts can print: composed, without invisible characters, � for each character that they lack."""
    known, shown = _known(), []
    for character in unicodedata.normalize("NFC", text.replace("\r\n", "\n")):
        category = unicodedata.category(character)
        if character == "\n":
            shown.append(character)
        elif category in ("Cf", "Cc") or character.isspace():
            shown.append(" " if character.isspace() else "")
        else:
            # Private-use characters stand for the number of pages, below; no other text may contain them.
            shown.append(character if ord(character) in known and category != "Co" else "�")
    return "".join(shown)


def _in_order_of_print(line: str) -> str:
    """Right-to-left parts of one line turned round, as the page is printed from the left."""
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in line):
        return BidiParagraph(line).get_reordered_string()
    return line


_PAGES = "\uef00\uef01"  # stands for the number of pages until that is known


class _Report(FPDF):
    """A page with head and foot, and the few ways in which this report puts text on it. Lengths in mm, sizes in pt."""

    def __init__(self, case: cases.Case, clinic: str, printed: datetime):
        super().__init__(format="A4")
        self.case, self.clinic, self.printed = case, clinic, printed
        self.set_margins(MARGIN, TOP)
        self.set_auto_page_break(False)
        self.c_margin = 0
        self.add_font("sans", "", _font(bold=False))
        self.add_font("sans", "B", _font(bold=True))
        self.set_font("sans", size=9)
        self.alias_nb_pages(_PAGES)
        self.set_lang("en")
        # Nothing that names the patient: this is seen in file lists and by search engines of archives.
        self.set_title(f"Reading {case.reading_id}")
        self.set_subject(RESEARCH_ONLY)
        self.set_creator("lungkit")
        self.set_producer("lungkit, with fpdf2")
        self.set_creation_date(printed)

    def header(self) -> None:
        self.fill(0, 0, self.w, 2.2, ACCENT)
        self.set_y(9)
        self.say("Reading of a chest image", MARGIN, 100, size=15, bold=True)
        self.set_y(16)
        name = f"Patient {self.case.patient.number}"
        self.say(f"{self.clinic} · {name}" if self.clinic else name, MARGIN, 100, size=8.5, color=QUIET, most=1)
        self.fill(MARGIN + 108, 9.2, 72, 9, PALE[WARN])
        self.fill(MARGIN + 108, 9.2, 1, 9, WARN)
        self.set_y(11.2)
        self.say(RESEARCH_ONLY, MARGIN + 110, 70, bold=True, color=WARN, align="C")
        self.fill(MARGIN, 22.5, WIDTH, 0.3, LINE)
        self.set_y(TOP)

    def footer(self) -> None:
        self.fill(MARGIN, 283, WIDTH, 0.2, LINE)
        self.set_y(284.5)
        self.say(f"Reading {self.case.reading_id} · printed {_time(self.printed)}", MARGIN, 140, size=7.5, color=QUIET)
        self.set_xy(MARGIN + 140, 284.5)
        self._style(7.5, False, QUIET)
        self.cell(40, 4, f"Page {self.page_no()} of {_PAGES}", align="R")

    def heading(self, words: str, x: float = MARGIN, width: float = WIDTH) -> None:
        self.say(words, x, width, size=10.5, bold=True, color=ACCENT, most=2)
        self.fill(x, self.get_y() + 0.3, width, 0.3, LINE)
        self.gap(1.8)

    def say(
        self,
        text: str,
        x: float,
        width: float,
        *,
        size: float = 9,
        bold: bool = False,
        color: tuple[int, int, int] = INK,
        align: str = "L",
        most: int = 3,
        cut: str = "…",
        beside: str = "",
    ) -> None:
        """Text from the present height down, on at most `most` lines of `width`; the height is below it afterwards.

        cut: ends what was too long for them.
        beside: a short text at the right end of the first line's row, to the right of `width`.
        """
        lines, height = self._lines(text, width, size=size, bold=bold, color=color, most=most, cut=cut)
        height /= max(1, len(lines))
        top = self.get_y()
        if beside:
            self._style(size, False, QUIET)
            self.set_xy(x + width, top)
            self.cell(MARGIN + WIDTH - x - width, height, beside, align="R")
            self._style(size, bold, color)
        for index, line in enumerate(lines):
            self.set_xy(x, top + index * height)
            self.cell(width, height, _in_order_of_print(line), align=align)
        self.set_xy(MARGIN, top + len(lines) * height)

    def _lines(
        self, text: str, width: float, *, size: float = 9, bold: bool = False, color=INK, most: int = 3, cut: str = "…"
    ) -> tuple[list[str], float]:
        """The lines that a text takes, with … where it was cut, and their height together."""
        self._style(size, bold, color)
        lines = self.multi_cell(width, size, _printable(text), dry_run=True, output=MethodReturnValue.LINES)
        if len(lines) > most:
            last = lines[most - 1].rstrip()
            while last and self.get_string_width(last + cut) > width:
                last = last[:-1]
            lines = [*lines[: most - 1], last + cut]
        return lines, len(lines) * size * LINE_HEIGHT

    def fill(self, x: float, y: float, width: float, height: float, color: tuple[int, int, int]) -> None:
        """A rectangle of one colour."""
        self.set_fill_color(*color)
        self.rect(x, y, width, height, style="F")

    def box(self, color: tuple[int, int, int], *texts: tuple[str, dict]) -> None:
        """A pale panel with texts below each other (each with its arguments for `say`) and a bar of its colour."""
        x, width, edge = MARGIN + 5, WIDTH - 10, 2.4
        height = sum(self._lines(text, width, **style)[1] for text, style in texts) + 2 * edge
        top = self.get_y()
        self.fill(MARGIN, top, WIDTH, height, PALE[color])
        self.fill(MARGIN, top, 1.2, height, color)
        self.set_y(top + edge)
        for text, style in texts:
            self.say(text, x, width, **style)
        self.set_y(top + height)

    def gap(self, height: float) -> None:
        self.set_y(self.get_y() + height)

    def keep_together(self, height: float) -> None:
        """A new page where less than this height is left on the present one."""
        if self.get_y() + height > BOTTOM:
            self.add_page()

    def _style(self, size: float, bold: bool, color: tuple[int, int, int]) -> None:
        self.set_font("sans", "B" if bold else "", size)
        self.set_text_color(*color)
