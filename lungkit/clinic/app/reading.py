"""One reading as a clinician sees it: image, decision, probabilities, checks, where it comes from, and its reviews."""

import gc

import ipywidgets as widgets
import numpy as np

from lungkit.clinic.app.describe import patient_heading
from lungkit.clinic.app.download import DownloadButton
from lungkit.clinic.app.page import Page, field, notice, safe, show_if, when
from lungkit.clinic.app.stack import StackViewer
from lungkit.clinic.app.viewer import Viewer
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import Case, CaseImage, Records, ReviewRow
from lungkit.clinic.records.stacks import CaseSeries, Stack
from lungkit.errors import LungkitError
from lungkit.models import card_text, registry
from lungkit.models.card import ModelCard
from lungkit.models.prediction import GradeRange
from lungkit.models.rule import DecisionRule, UncertaintyBand
from lungkit.wording import count, listed, percent

REPLACED = "More images of this series came later. A later reading, with all of them, replaces this one."
GONE = "not known: this version is no longer in the registry"


def reading(case: Case, records: Records, page: Page) -> widgets.Widget:
    """Everything about one reading, and what can be done with it."""
    series = records.series(case.reading_id)
    head = widgets.HTML(heading(case, series))
    decision = widgets.HTML(decision_box(case, series)).add_class("reading-decision")
    facts = widgets.VBox([
        widgets.HTML(bars(case) + (of_series(series) if series else "") + image_checks(case)),
        ReviewForm(case, records, page).widget,
        _report_button(case.reading_id, records, page),
        widgets.HTML(source(case)),
    ]).add_class("reading-facts")  # fmt: skip
    columns = widgets.Box([decision, viewer(case, series), facts]).add_class("reading-columns")
    if series:
        columns.add_class("reading-of-series")
    return widgets.VBox([head, columns]).add_class("reading")


def heading(case: CaseImage, series: Stack | None) -> str:
    """Whose image it is, what it is, and what was written at the upload, as HTML."""
    replaced = notice(REPLACED, "problem") if case.superseded else ""
    return patient_heading(case.patient) + _image_line(case, series) + _notes(case) + replaced


def viewer(case: CaseImage, series: Stack | None = None, compared: bool = False) -> Viewer | StackViewer:
    """The image of a case with the heat map of the class that the model named, if it is shown; of a series, all slices.

    compared: without other planes, and scrolled together with the others on the page.
    """
    if series:
        label = f"CT series, uploaded {when(case.uploaded_at)}"
        return StackViewer(series, case.pixels.shape, case.classes, label, planes=not compared, linked=compared)
    kind = "Image" if case.kind == "image" else f"{case.kind} image"
    label = f"{kind}, uploaded {when(case.uploaded_at)}"
    heat, selected = (case.heat, case.label) if isinstance(case, Case) else (None, "")
    return Viewer(case.pixels, case.units, heat, case.classes, selected, label)


# --- the answer of the model, as HTML


def decision_box(case: Case, series: CaseSeries | None = None) -> str:
    """The decision, big: a class, or that the model leaves it to the reader, which looks different in every way."""
    probability = percent(case.probabilities[case.label])
    if case.grades and case.decision != REVIEW:
        return _range_box(case.grades)
    if case.decision != REVIEW:
        return (
            '<section class="decision decision-class" aria-label="Reading of the model"><p class="kicker">'
            f"Finding of the model</p><h2>{safe(case.label)}</h2><p>Probability {probability}"
            f"{f', {safe(_rests_on(series))}' if series else ''}. Your review decides.</p></section>"
        )
    reasons = "".join(f"<li>{safe(reason)}</li>" for reason in _reasons(case, series))
    return (
        '<section class="decision decision-review" aria-label="Reading of the model"><p class="kicker">'
        'Uncertain: the model does not decide</p><h2><span class="sign" aria-hidden="true">?</span> Review needed</h2>'
        f"<ul>{reasons}</ul>"
        f"<p>Nearest class: {safe(case.label)}, {probability}. Do not rely on it.</p></section>"
    )


def _range_box(graded: GradeRange) -> str:
    """The grades that the model names, what they mean, and what one image cannot say."""
    together = " together" if len(graded.names) > 1 else ""
    return (
        '<section class="decision decision-class" aria-label="Reading of the model"><p class="kicker">'
        f"Finding of the model</p><h2>{safe(graded.name)}</h2><p><b>{_sentence(graded.extent)}</b></p>"
        f"<p>Probability{together} {percent(graded.probability)}. Your review decides.</p>"
        f"<p>{_sentence(graded.caution)}</p></section>"
    )


def _sentence(text: str) -> str:
    return safe(f"{text[:1].upper()}{text[1:]}.")


def _reasons(case: Case, series: CaseSeries | None = None) -> list[str]:
    if series:
        return [f"{reason[:1].upper()}{reason[1:]}." for reason in series.reasons]
    reasons = [f"{check.words[:1].upper()}{check.words[1:]}." for check in case.checks if not check.passed]
    uncertain = case.rule.uncertain(_probabilities(case))[0]
    if uncertain and case.grades:
        reasons.append(f"The model cannot rule out any grade. {case.grades.caution}.")
    elif uncertain:
        reasons.append("The probabilities lie within the band of uncertainty, where the model is often wrong.")
    return reasons or ["The model's own rules call for a review."]


def bars(case: Case) -> str:
    """Probability of each class, with the operating point marked and the band of uncertainty shaded."""
    marks = _marks(case)
    rows = "".join(_bar(name, case, marks.get(name)) for name in case.classes)
    return (
        f'<section class="probabilities"><h3>Probabilities</h3><table><tbody>{rows}</tbody></table>'
        f'<p class="bars-key">{_key(case)}</p>{_not_ruled_out(case)}</section>'
    )


def _not_ruled_out(case: Case) -> str:
    """The card's conformal set, where it names more than one class.

    Its promise holds for images like those of validation: not where a check failed. A set of one class says less than
    the band of uncertainty does, and would sound like more.
    """
    conformal = case.rule.conformal
    if case.grades or not conformal or not all(check.passed for check in case.checks):
        return ""
    kept = case.rule.prediction_set(_probabilities(case))[0]
    names = [safe(name) for name, keep in zip(case.classes, kept, strict=True) if keep]
    if len(names) < 2:
        return ""
    level = percent(conformal.level)
    return f'<p class="bars-key">Not ruled out ({level} prediction set): <b>{listed(names, "or")}</b>.</p>'


def _probabilities(case: Case) -> np.ndarray:
    """(1, classes), as a decision rule takes them."""
    return np.array([[case.probabilities[name] for name in case.classes]])


def _marks(case: Case) -> dict[str, tuple[float, float, float]]:
    """Class to (operating point, low and high end of the band), as probabilities of that class.

    Two classes: the threshold on the last, and its mirror on the first. More: on the likeliest class, the probability
    of the next, and how much it must be exceeded.
    """
    match case.rule:
        case DecisionRule(threshold=float(point), band=UncertaintyBand(low=float(low), high=float(high))):
            first, last = case.classes
            return {first: (1 - point, 1 - high, 1 - low), last: (point, low, high)}
        case DecisionRule(band=UncertaintyBand(times=float(times))):
            ranked = sorted(case.classes, key=case.probabilities.__getitem__, reverse=True)
            second = case.probabilities[ranked[1]]
            return {ranked[0]: (second, second, min(1.0, max(0.5, second * times)))}
    return {}


def _bar(name: str, case: Case, marks: tuple[float, float, float] | None) -> str:
    probability, named = (
        case.probabilities[name],
        case.grades.names if case.grades and case.decision != REVIEW else (case.label,),
    )
    track = f'<span class="fill" style="width:{100 * probability:.1f}%"></span>'
    if marks:
        point, low, high = (100 * mark for mark in marks)
        track += (
            f'<span class="band" style="left:{low:.1f}%;width:{high - low:.1f}%"></span>'
            f'<span class="point" style="left:{point:.1f}%"></span>'
        )
    return (
        f'<tr class="bar{" named" if name in named else ""}"><th scope="row">{safe(name)}</th><td>'
        f'<span class="track" aria-hidden="true">{track}</span></td><td class="figure">{percent(probability)}</td></tr>'
    )


def _key(case: Case) -> str:
    marks = {"Operating point": "key-point", "Band of uncertainty": "key-band", "Range": "", "Grades": ""}
    rows = dict(card_text.rule_rows(case.rule, case.classes))
    return " ".join(
        (f'<span class="{mark}" aria-hidden="true"></span> ' if case.rule.band else "")
        + f"{label}: {safe(rows[label])}."
        for label, mark in marks.items()
        if label in rows
    )


def image_checks(case: Case) -> str:
    """The input checks in words, each marked as passed or failed."""
    rows = "".join(
        f'<li class="{"passed" if check.passed else "failed"}"><span class="mark" aria-hidden="true">'
        f"{'✓' if check.passed else '✗'}</span><span><b>{'Passed' if check.passed else 'Failed'}:</b> "
        f"{safe(check.words)}</span></li>"
        for check in case.checks
    )
    return f'<section class="checks"><h3>Image checks</h3><ul>{rows}</ul></section>' if rows else ""


def source(case: Case) -> str:
    """Which model made the reading, its training data, when, and how long it took."""
    card = card_of(case.model, case.version)
    facts = {
        "Model": f"{case.model}@{case.version}",
        "Training data": card_text.learned_from(card) if card else GONE,
        "Read": f"{when(case.read_at)}, in {case.milliseconds:.0f} ms",
    }
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in facts.items())
    return f'<section class="origin"><h3>Source</h3><dl>{rows}</dl></section>'


def card_of(model: str, version: str) -> ModelCard | None:
    """The card of a version; None if it is no longer in the registry."""
    try:
        return registry.find(f"{model}@{version}").card
    except LungkitError:
        return None


def of_series(series: CaseSeries) -> str:
    """What the reading of a series rests on, and what is unusual in the series."""
    between = series.spacing[2]
    facts = {
        "Series": f"{series.slices} slices" + (f", {between:.3g} mm apart" if between else ""),
        "Read": f"{len(series.read)} slices, evenly spaced"
        + (f"; {series.without_lungs} more show no lungs" if series.without_lungs else ""),
        "Decided by": _rests_on(series),
        f"Not {series.absent}": f"{percent(series.affected)} of the slices that were read",
    }
    if extent := series.extent:
        part = "" if extent.whole else ", cut off where the series ends"
        facts |= {
            "Lungs": f"{extent.millilitres:,.0f} ml{part}",
            f"Not {series.absent}, by volume": f"{percent(extent.not_absent)} of the lungs lie in such slices",
            "Density": f"{percent(extent.high_attenuation)} of the lungs have −600 to −250 HU, "
            f"{percent(extent.dense)} more than that; in healthy people about 4 % and some vessels",
        }
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in facts.items())
    found = "".join(f"<li>{safe(one.get('words') or one['rule'].capitalize())}</li>" for one in series.findings)
    return (
        f'<section class="origin of-series"><h3>CT series</h3><dl>{rows}</dl>'
        + (f"<ul>{found}</ul>" if found else "")
        + "</section>"
    )


def _rests_on(series: CaseSeries) -> str:
    """The slices that decide, in words."""
    places = [series.read[place].position for place in series.carrying]
    where = f"{places[0]:.1f} mm" if len(places) == 1 else f"{min(places):.1f} to {max(places):.1f} mm"
    looks = f"that look least like {series.absent}, at {where}".replace("-", "−")
    return f"the mean of the {len(places)} of {count(len(series.read), 'slice')} {looks}"


def _image_line(case: CaseImage, series: Stack | None = None) -> str:
    view_position = case.tags.get("view")
    facts = [
        ("Image" if case.kind == "image" else case.kind) + (f", view {view_position}" if view_position else ""),
        f"{f'{series.slices} slices of ' if series else ''}{case.width} × {case.height} pixels",
        None if series else case.tags.get("note"),
        f"uploaded {when(case.uploaded_at)} by {case.uploaded_by}",
    ]
    return f'<p class="image-line">{safe(" · ".join(filter(None, facts)))}</p>'


def _notes(case: CaseImage) -> str:
    return f'<p class="notes"><b>Notes:</b> {safe(case.notes)}</p>' if case.notes else ""


# --- what can be done with it


class ReviewForm:
    """Agree with the model, or name another class; the history of reviews, oldest first."""

    def __init__(self, case: Case, records: Records, page: Page):
        # Not the case itself: its pixels would stay in memory for as long as these buttons.
        self._reading_id, self._label, self._records = case.reading_id, case.label, records
        undecided = case.decision != case.label  # a call for review, or a range of grades
        self.comment = field(widgets.Textarea, "Comment (kept with your review)", placeholder="Optional", rows=2)
        agree = page.button(
            f"Agree: {case.label}",
            lambda: self._save(self._label),
            "primary",
            tooltip=f"Save that you agree with {case.label}",
        )
        show_if(not undecided, agree)
        others = [(meaning(case, name), name) for name in case.classes if undecided or name != case.label]
        self.label = field(
            widgets.Dropdown,
            "Your finding" if undecided else "Correct to",
            options=[("Choose a class", ""), *others],
        )
        correct = page.button("Save finding" if undecided else "Save correction", lambda: self._save(self.label.value))
        choice = widgets.HBox([agree, widgets.HBox([self.label, correct]).add_class("correction")])
        self.history = widgets.HTML()
        self.widget = widgets.VBox(
            [widgets.HTML("<h3>Your review</h3>"), self.comment, choice.add_class("review-choice"), self.history]
        ).add_class("review")
        self._show(case)

    def _save(self, label: str) -> None:
        if not label:
            raise LungkitError("Choose the class that you see first. Nothing was saved.")
        self._records.review(self._reading_id, label == self._label, label, self.comment.value)
        self._show(self._records.case(self._reading_id))
        self.comment.value = self.label.value = ""

    def _show(self, case: Case) -> None:
        if not case.reviews:
            self.history.value = '<p class="review-history empty" role="status">Not reviewed yet.</p>'
            return
        rows = "".join(_review_line(review) for review in case.reviews)
        note = "<p>The latest review counts.</p>" if len(case.reviews) > 1 else ""
        self.history.value = f'<div class="review-history" role="status"><h4>Reviews</h4><ol>{rows}</ol>{note}</div>'


def meaning(case: CaseImage, name: str) -> str:
    """A class as a clinician chooses it: a grade with what it means."""
    place = case.classes.index(name)
    return f"{name} ({case.rule.grades.extent(place, place)})" if case.rule.grades else name


def _review_line(review: ReviewRow) -> str:
    verdict = f"agreed: {review.label}" if review.agrees else f"corrected to {review.label}"
    comment = f"<q>{safe(review.comment)}</q>" if review.comment else ""
    return f"<li><b>{safe(review.reviewer)}</b> {safe(verdict)} <time>{safe(when(review.at))}</time>{comment}</li>"


def _report_button(reading_id: str, records: Records, page: Page) -> DownloadButton:
    def make() -> tuple[str, bytes]:
        from lungkit.clinic import report  # takes a while to import, and few readings need it

        now = records.case(reading_id)  # with the reviews that came since
        content = report.pdf(now, card_of(now.model, now.version))
        gc.collect()  # fonts and pages refer to each other: 20 MB a report, until Python happens to look
        return f"reading-{now.read_at:%Y-%m-%d}-{now.reading_id[:8]}.pdf", content

    return DownloadButton("Download report (PDF)", page.act(make), "application/pdf")


def side_by_side(cases: list[tuple[Case, CaseSeries | None]]) -> widgets.Widget:
    """Several readings next to each other, oldest first, to compare: image and decision; series scroll together."""
    columns = []
    for case, series in cases:
        words = widgets.HTML(f"<h3>{safe(when(case.read_at))}</h3>{decision_box(case, series)}{bars(case)}")
        columns.append(widgets.VBox([words, viewer(case, series, compared=True)]).add_class("compared"))
    return widgets.Box(columns).add_class("comparison")
