"""Questions before an image is saved: is this the right patient? Programs are not asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lungkit.clinic.records import audit_trail, corrections, patients
from lungkit.clinic.records.accounts import Entry
from lungkit.clinic.records.patients import NewPatient, PatientRow, RecordRefused
from lungkit.data.person import Person

SAME_IMAGE = corrections.SAME_IMAGE


@dataclass(frozen=True)
class Question:
    """What has to be answered before an image is saved."""

    asked: tuple[str, ...]  # what differs, for the audit trail: "name", SAME_IMAGE, …
    words: tuple[str, ...] = field(repr=False)
    other: PatientRow | None  # who has the number that the file states


def question(
    access: Entry, patient: PatientRow | NewPatient, said: Person, sha256: str, owners: Sequence[PatientRow] = ()
) -> Question | None:
    """What speaks against saving a file for this patient; None if nothing does.

    said: what the file's header states. sha256: of the file. owners: other patients who are known to have the image.
    """
    differ = patients.differences(said, patient)
    with access.reads("doctor") as (db, _):
        here = patient.id if isinstance(patient, PatientRow) else ""
        elsewhere = corrections.others_with(db, sha256, here) or owners
        stated = patients.with_number(db, said.number) if differ and said.number else []
        other = patients.patient_row(stated[0]) if len(stated) == 1 else None
    asked = [one.what for one in differ] + [SAME_IMAGE] * bool(elsewhere)
    words = [one.words for one in differ]
    words += [corrections.saved_for(one) for one in elsewhere]
    if not asked:
        return None
    return Question(tuple(asked), tuple(words), other if other and other.id != here else None)


def not_saved(access: Entry, patient: PatientRow | NewPatient, asked: Sequence[str]) -> None:
    """Note that a person was asked, and did not save the image for this patient."""
    with access.writes("doctor") as (db, actor):
        named = patient.id if isinstance(patient, PatientRow) else "new"
        audit_trail.append(db, actor.user_id, "case.not_saved", f"patient:{named}", differs=list(asked))


def namesakes(access: Entry, new: NewPatient) -> list[PatientRow]:
    """Patients with the same name and birth year as a new one. Raises RecordRefused if the new number is taken."""
    with access.reads("doctor") as (db, _):
        for known in patients.with_number(db, new.number)[:1]:
            written = "" if known.number == new.number else f", written {known.number}"
            raise RecordRefused(
                f"the number {new.number} already belongs to {known.name}{written}. Select that patient, or check the "
                "number"
            )
        return patients.namesakes(db, new)
