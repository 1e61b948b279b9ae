"""Patients and readings in words and as HTML, the same on every screen."""

import base64
from collections.abc import Iterable

from lungkit.clinic.app.page import safe, when
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import CaseRow
from lungkit.clinic.records.corrections import Withdrawn
from lungkit.clinic.records.patients import NewPatient, PatientRow
from lungkit.clinic.records.reviewing import WHY_NO_CLASS
from lungkit.clinic.records.tables import CLASS
from lungkit.models import pooling
from lungkit.models.class_names import class_name
from lungkit.wording import percent

MOST_OF_A_REASON = 80  # characters in a list; the reading has all of it
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
    return "Review needed" if decision == REVIEW else class_name(decision)


def decision_words(row: CaseRow) -> str:
    """What the model decided about a reading of a list: a class, or a call for review with the nearest class."""
    if row.decision is None:
        return LABEL_FIRST
    if row.decision != REVIEW:
        return class_name(row.decision)
    if row.refusal:
        return f"✗ {row.refusal}"
    return f"? Review (nearest: {class_name(row.label or '')}{'; image check failed' if row.flagged else ''})"


def likely(row: CaseRow) -> str:
    """What the probability of a row is of: its decision or, where that is a call for review, the nearest class."""
    return class_name((row.label if row.decision == REVIEW else row.decision) or "")


def probability_words(row: CaseRow) -> str:
    """The probability of a row; empty where it is withheld."""
    return "" if row.probability is None else percent(row.probability)


def withdrawn_words(withdrawn: Withdrawn, most: int | None = None) -> str:
    """By whom an image was withdrawn, when and why; most: so many characters of the reason at most."""
    reason = withdrawn.reason
    if most is not None and len(reason) > most:
        reason = f"{reason[: most - 1].rstrip()}…"
    return f"Withdrawn by {withdrawn.by} on {when(withdrawn.at)}: {reason}"


def review_words(row: CaseRow) -> str:
    """What the latest review of a reading says, and whose it is; or that it was withdrawn or replaced."""
    if row.withdrawn:
        return withdrawn_words(row.withdrawn, MOST_OF_A_REASON)
    if row.superseded and not row.reviewed:
        return "Replaced by a later reading"
    if not row.reviewed:
        return "Not reviewed"
    if row.hidden:
        return "Reviewed by another doctor"
    if why := WHY_NO_CLASS.get(row.review_kind or CLASS):
        return f"{why[0].upper()}{why[1:]} ({row.reviewer})"
    label = class_name(row.reviewer_label or "")
    said = label if row.agrees is None else "Agreed" if row.agrees else f"Corrected to {label}"
    return f"{said} ({row.reviewer})"


def is_unread(row: CaseRow) -> bool:
    """Whether the reading still waits for a review."""
    return not row.reviewed and not row.superseded and row.withdrawn is None


def urgency(row: CaseRow) -> tuple[int, str]:
    """How early a reading should be seen, 0 for the first, and why. It says nothing of an answer that is withheld."""
    if row.withdrawn:
        return 5, "Withdrawn"
    if not is_unread(row):
        return 5, "Replaced" if row.superseded and not row.reviewed else "Reviewed"
    if row.urgent:
        return 0, "Sent as urgent"
    if row.decision is None:
        return 2, LABEL_FIRST
    if row.decision == REVIEW:
        return 2, row.refusal or ("Image check failed" if row.flagged else "Model is unsure")
    if pooling.absence([row.decision]) is not None:
        return 4, "Nothing found"
    return 1, "Finding"


def most_urgent_first(rows: Iterable[CaseRow]) -> list[CaseRow]:
    """By urgency; findings by their probability, to a tenth; otherwise in the order given."""

    def place(row: CaseRow) -> tuple[int, float]:
        rank = urgency(row)[0]
        return rank, -round(row.probability or 0.0, 1) if rank == 1 else 0.0

    return sorted(rows, key=place)


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
