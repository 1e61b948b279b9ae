"""Patients and readings in words and as HTML, the same on every screen."""

import base64

from lungkit.clinic.app.page import safe, when
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import CaseRow, NewPatient, PatientRow
from lungkit.wording import percent

LABEL_FIRST = "Your label first"  # in place of what is withheld until it is given


def born(patient: PatientRow | NewPatient) -> str:
    """Birth year and sex of a patient, as far as they are known: "born 1961, female"."""
    year = f"born {patient.birth_year}" if patient.birth_year else "birth year not known"
    return year if patient.sex == "unknown" else f"{year}, {patient.sex}"


def patient_heading(patient: PatientRow | NewPatient) -> str:
    """Who the patient is, as HTML that stays together on one line where it fits."""
    return (
        f'<div class="patient"><span class="patient-number">{safe(patient.number)}</span> '
        f'<span class="patient-name">{safe(patient.name)}</span> '
        f'<span class="patient-born">{safe(born(patient))}</span></div>'
    )


def decision_name(decision: str) -> str:
    """A decision as filters and charts name it."""
    return "Review needed" if decision == REVIEW else decision


def decision_words(row: CaseRow) -> str:
    """What the model decided about a reading of a list: a class, or a call for review with the nearest class."""
    if row.decision is None:
        return LABEL_FIRST
    if row.decision != REVIEW:
        return row.decision
    return f"? Review (nearest: {row.label}{'; image check failed' if row.flagged else ''})"


def likely(row: CaseRow) -> str:
    """What the probability of a row is of: its decision or, where that is a call for review, the nearest class."""
    return (row.label if row.decision == REVIEW else row.decision) or ""


def probability_words(row: CaseRow) -> str:
    """The probability of a row; empty where it is withheld."""
    return "" if row.probability is None else percent(row.probability)


def review_words(row: CaseRow) -> str:
    """What the latest review of a reading says, and whose it is; or that a later reading replaces it."""
    if row.superseded and not row.reviewed:
        return "Replaced by a later reading"
    if not row.reviewed:
        return "Not reviewed"
    if row.hidden:
        return "Reviewed by another doctor"
    return f"{'Agreed' if row.agrees else f'Corrected to {row.reviewer_label}'} ({row.reviewer})"


def study_figure(row: CaseRow) -> str:
    """Thumbnail, time, decision, probability and review of one image of a patient, as HTML."""
    picture = base64.b64encode(row.thumbnail).decode()
    time = safe(when(row.read_at))
    probability = f"{probability_words(row)} · " if probability_words(row) else ""
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{safe(row.kind)} image of {time}">'
        f'<figcaption><time>{time}</time><b class="{"undecided" if row.decision in (REVIEW, None) else "class"}">'
        f"{safe(decision_words(row))}</b>{_series_words(row)}<span>{probability}"
        f"{safe(row.model)}@{safe(row.version)}</span>"
        f"<span>{safe(review_words(row))}</span></figcaption></figure>"
    )


def _series_words(row: CaseRow) -> str:
    """How large a series is, and the share of its slices that show something, as HTML; empty for one image."""
    if row.slices is None:
        return ""
    affected = "" if row.affected is None else f", {percent(row.affected)} of those read affected"
    return f"<span>CT series, {row.slices} slices{affected}</span>"
