"""What the model said about one image or series, as HTML: decision, probabilities, checks, source."""

import numpy as np

from lungkit.clinic.app.page import safe, when
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import Case
from lungkit.clinic.records.stacks import CaseSeries
from lungkit.errors import LungkitError
from lungkit.models import card_text, registry
from lungkit.models.card import ModelCard
from lungkit.models.class_names import class_name, class_names, other_than
from lungkit.models.prediction import GradeRange, is_outside
from lungkit.models.rule import DecisionRule, UncertaintyBand
from lungkit.wording import count, listed, percent

GONE = "not known: this version is no longer in the registry"


def decision_box(case: Case, series: CaseSeries | None = None, name: str = "Reading of the model") -> str:
    """The decision, big: a class, or that the model leaves it to the reader, which looks different in every way."""
    if case.refusal:
        return _refusal_box(case, name)
    probability = percent(case.probabilities[case.label])
    if case.grades and case.decision != REVIEW:
        return _range_box(case.grades, name)
    if case.decision != REVIEW:
        return (
            f'<section class="decision decision-class" aria-label="{name}"><p class="kicker">'
            f"Finding of the model</p><h2>{safe(class_name(case.label))}</h2><p>Probability {probability}"
            f"{f', {safe(_rests_on(series))}' if series else ''}. Your review decides.</p></section>"
        )
    reasons = "".join(f"<li>{safe(reason)}</li>" for reason in _reasons(case, series))
    return (
        f'<section class="decision decision-review" aria-label="{name}"><p class="kicker">'
        'Uncertain: the model does not decide</p><h2><span class="sign" aria-hidden="true">?</span> Review needed</h2>'
        f"<ul>{reasons}</ul>"
        f"<p>Nearest class: {safe(class_name(case.label))}, {probability}. Do not rely on it.</p></section>"
    )


def _refusal_box(case: Case, name: str) -> str:
    """Why the model is not for this patient or image; nothing of what it computed."""
    failed = [check for check in case.checks if not check.passed]
    reasons = "".join(
        f"<li>{_sentence(check.words)}</li>" for check in sorted(failed, key=lambda of: not is_outside(of))
    )
    return (
        f'<section class="decision decision-review" aria-label="{name}"><p class="kicker">'
        f'The model gives no finding</p><h2><span class="sign" aria-hidden="true">✗</span> {case.refusal}</h2>'
        f"<ul>{reasons}</ul>"
        "<p>What the model computed means nothing here. It is not shown. Your own reading counts.</p></section>"
    )


def _range_box(graded: GradeRange, name: str) -> str:
    """The grades that the model names, what they mean, and what one image cannot say."""
    together = " together" if len(graded.names) > 1 else ""
    return (
        f'<section class="decision decision-class" aria-label="{name}"><p class="kicker">'
        f"Finding of the model</p><h2>{safe(class_name(graded.name))}</h2><p><b>{_sentence(graded.extent)}</b></p>"
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
    """Probability of each class, with the operating point marked and the band of uncertainty shaded.

    Empty where the version is not for this patient or image.
    """
    if case.refusal:
        return ""
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
    names = [safe(class_name(name)) for name, keep in zip(case.classes, kept, strict=True) if keep]
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
        f'<tr class="bar{" named" if name in named else ""}"><th scope="row">{safe(class_name(name))}</th><td>'
        f'<span class="track" aria-hidden="true">{track}</span></td><td class="figure">{percent(probability)}</td></tr>'
    )


def _key(case: Case) -> str:
    marks = {"Operating point": "key-point", "Band of uncertainty": "key-band", "Range": "", "Grades": ""}
    rows = dict(card_text.rule_rows(case.rule, class_names(case.classes)))
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


def of_series(series: CaseSeries, refused: bool = False) -> str:
    """What the reading of a series rests on, and what is unusual in the series; refused: only the latter."""
    between = series.spacing[2]
    facts = {
        "Series": f"{series.slices} slices" + (f", {between:.3g} mm apart" if between else ""),
        "Read": f"{len(series.read)} slices, evenly spaced"
        + (f"; {series.without_lungs} more show no lungs" if series.without_lungs else ""),
    }
    if not refused:
        facts |= _said_of(series)
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in facts.items())
    found = "".join(f"<li>{safe(one.get('words') or one['rule'].capitalize())}</li>" for one in series.findings)
    return (
        f'<section class="origin of-series"><h3>CT series</h3><dl>{rows}</dl>'
        + (f"<ul>{found}</ul>" if found else "")
        + "</section>"
    )


def _said_of(series: CaseSeries) -> dict[str, str]:
    other = other_than(series.absent)
    other = f"{other[:1].upper()}{other[1:]}"
    facts = {
        "Decided by": _rests_on(series),
        other: f"{percent(series.affected)} of the slices that were read",
    }
    if extent := series.extent:
        part = "" if extent.whole else ", cut off where the series ends"
        facts |= {
            "Lungs": f"{extent.millilitres:,.0f} ml{part}",
            f"{other}, by volume": f"{percent(extent.not_absent)} of the lungs lie in such slices",
            "Density": f"{percent(extent.high_attenuation)} of the lungs have −600 to −250 HU, "
            f"{percent(extent.dense)} more than that; in healthy people about 4 % and some vessels",
        }
    return facts


def _rests_on(series: CaseSeries) -> str:
    """The slices that decide, in words."""
    places = [series.read[place].position for place in series.carrying]
    where = f"{places[0]:.1f}" if len(places) == 1 else f"{min(places):.1f} to {max(places):.1f}"
    which = "that which looks" if len(places) == 1 else "those that look"
    looks = f"{which} least like {class_name(series.absent)}, at {where.replace('-', '−')} mm"
    return f"the mean of {len(places)} of the {count(len(series.read), 'slice')}, {looks}"
