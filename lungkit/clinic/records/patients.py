"""Patients: finding and entering them, and what people typed of them, as the records keep it."""

import unicodedata
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records.tables import SEXES, Patient, folded, now
from lungkit.data.person import Person, same_name
from lungkit.errors import LungkitError

LONGEST_NUMBER, LONGEST_NAME, LONGEST_TEXT = 64, 200, 4000  # characters
FIRST_BIRTH_YEAR = 1900
# Invisible characters that names need: they join letters in Persian and Indian scripts.
_JOINERS = "\u200c\u200d"


class RecordRefused(LungkitError):
    """What was entered cannot be saved; nothing was saved."""


class RecordMissing(LungkitError):
    """That patient or case is not in the records (any more)."""


class PatientDiffers(RecordRefused):
    """The patient with that number is another one than was stated."""


@dataclass(frozen=True)
class PatientRow:
    """A patient, as search results and headings show one."""

    id: str
    number: str
    name: str
    birth_year: int | None
    sex: str
    excluded: bool = False  # not to be learned from


@dataclass(frozen=True)
class NewPatient:
    """A patient to enter. Raises RecordRefused, which says what is accepted, for values that cannot be saved."""

    number: str
    name: str
    birth_year: int | None = None
    sex: str = "unknown"

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", _line("patient number", self.number, LONGEST_NUMBER))
        object.__setattr__(self, "name", _line("name", self.name, LONGEST_NAME, _JOINERS))
        year, this_year = self.birth_year, now().year
        if year is not None and (type(year) is not int or not FIRST_BIRTH_YEAR <= year <= this_year):
            raise RecordRefused(
                f"birth year {year!r}: accepted are {FIRST_BIRTH_YEAR} to {this_year}, or nothing if it is not known"
            )
        if self.sex not in SEXES:
            raise RecordRefused(f"sex {self.sex!r}: accepted are {', '.join(SEXES)}")


@dataclass(frozen=True)
class StatedPatient:
    """What a program states of a patient. Raises RecordRefused for values that cannot be saved.

    name: may be empty for a patient who is in the records. birth_year None, sex "unknown": not stated.
    """

    number: str
    name: str = ""
    birth_year: int | None = None
    sex: str = "unknown"

    def __post_init__(self) -> None:
        patient = NewPatient(self.number, self.name or "not stated", self.birth_year, self.sex)
        object.__setattr__(self, "number", patient.number)
        object.__setattr__(self, "name", patient.name if self.name else "")


@dataclass(frozen=True)
class Difference:
    """What a file states otherwise than the patient who was chosen. The values are not shown by `repr`."""

    what: str  # "number", "name", "birth year", "sex" or "people"
    words: str = field(repr=False)


def differences(said: Person, patient: PatientRow | NewPatient) -> tuple[Difference, ...]:
    """What a file's header states otherwise than is known of the patient; what one of them leaves out does not count.

    A number with other zeros in front is no difference where the name is the same.
    """
    named = bool(said.names) and same_name(said.names, [patient.name])
    stated, known = folded(said.number), folded(patient.number)
    same_number = stated == known or (named and stated.lstrip("0") == known.lstrip("0"))
    year = said.birth_year and patient.birth_year and said.birth_year != patient.birth_year
    sex = "unknown" not in (said.sex, patient.sex) and said.sex != patient.sex
    found = (
        (said.number and not same_number, "number", said.number, patient.number),
        (said.names and not named, "name", said.name, patient.name),
        (year, "birth year", said.birth_year, patient.birth_year),
        (sex, "sex", said.sex, patient.sex),
    )
    differ = [
        Difference(what, f"{what.capitalize()}: the file says {a}, you chose {b}.") for yes, what, a, b in found if yes
    ]
    people = Difference("people", "The files of this series are of different people.")
    return tuple([people] * said.mixed + differ)


def age_at(birth_year: int | None, tags: Mapping[str, str] | None = None) -> float | None:
    """In years by the birth year, where it is known: in the year of an image's study by its tags, else this year.

    The true age is up to a year less or more. None where the birth year is after that year.
    """
    if birth_year is None:
        return None
    taken = (tags or {}).get("study_year", "")
    year = int(taken) if taken.isascii() and taken.isdecimal() else now().year
    return float(year - birth_year) if year >= birth_year else None


# --- finding and entering


def search_patients(db: orm.Session, text: str, limit: int) -> list[PatientRow]:
    """Patients whose number or name contains every word of `text` in any case; the exact number comes first.

    Numbers are compared as `tables.folded` gives them. The caller has checked the role.
    """
    text = _one_line(text, _JOINERS)[:LONGEST_NAME]
    every_word = sa.and_(sa.true(), *(_contains(word) for word in text.split()))
    same = Patient.folded == folded(text)
    first = ((Patient.number == text).desc(), same.desc(), Patient.name, Patient.number)
    exact_first = sa.select(Patient).where(every_word | same).order_by(*first)
    return [patient_row(patient) for patient in db.scalars(exact_first.limit(limit))]


def find_patient(db: orm.Session, patient_id: str) -> Patient:
    patient = db.get(Patient, identifier(patient_id))
    if patient is None:
        raise RecordMissing("that patient is not in the records: erased, or never saved. Search again")
    return patient


def with_number(db: orm.Session, number: str) -> list[Patient]:
    """The patient with exactly that number or, without one, those whose numbers are the same as they are compared.

    These are several only in records from before numbers were compared.
    """
    alike = list(db.scalars(sa.select(Patient).where(Patient.folded == folded(number)).order_by(Patient.number)))
    return [patient for patient in alike if patient.number == number] or alike


def written_alike(db: orm.Session, patient: Patient, numbers: Iterable[str]) -> list[str]:
    """Those of these numbers, as files state them, that mean this patient."""
    alike = {number for number in numbers if folded(number) == patient.folded}
    others = sa.select(Patient.number).where(Patient.folded == patient.folded, Patient.id != patient.id)
    return sorted(alike - set(db.scalars(others)))


def namesakes(db: orm.Session, new: NewPatient | Patient) -> list[PatientRow]:
    """Patients under other numbers who have the same name and birth year, and may be the same person."""
    if new.birth_year is None:
        return []
    born = sa.select(Patient).where(Patient.birth_year == new.birth_year, Patient.folded != folded(new.number))
    rows = db.scalars(born.order_by(Patient.number))
    return [patient_row(row) for row in rows if same_name([row.name], [new.name])]


def known_patient(db: orm.Session, stated: StatedPatient) -> Patient | None:
    """The patient with the stated number, or None. Raises PatientDiffers if anything else that was stated differs."""
    found = with_number(db, stated.number)
    if not found:
        return None
    if len(found) > 1:
        numbers = ", ".join(repr(patient.number) for patient in found)
        raise PatientDiffers(
            f"{len(found)} patients have numbers that are written almost like that one ({numbers}); give the number "
            "exactly as one of them"
        )
    patient = found[0]
    differ = [
        words
        for words, given, known in (
            ("name", stated.name, patient.name),
            ("year of birth", stated.birth_year, patient.birth_year),
            ("sex", stated.sex if stated.sex != "unknown" else "", patient.sex),
        )
        if given and known != given
    ]
    if differ:
        raise PatientDiffers(
            f"the patient with that number has another {' and another '.join(differ)} in the records; check the "
            "number, or leave out what differs"
        )
    return patient


def require_name(stated: StatedPatient) -> NewPatient:
    """The stated patient as a new one. Raises RecordRefused without a name."""
    if not stated.name:
        raise RecordRefused("there is no patient with that number yet, so a name is needed too")
    return NewPatient(stated.number, stated.name, stated.birth_year, stated.sex)


def identifier(text: str) -> str:
    """`text` if it can be an identifier, else one that nothing has."""
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        return ""


def _contains(word: str) -> sa.ColumnElement[bool]:
    """Whether number or name contains the word; databases ignore case only for a to z, hence the usual spellings."""
    spellings = {word, word.lower(), word.upper(), word.title()}
    named = (c.icontains(s, autoescape=True) for s in spellings for c in (Patient.number, Patient.name))
    return sa.or_(*named, Patient.folded.contains(folded(word), autoescape=True))


def owner_of(db: orm.Session, patient: str | NewPatient | StatedPatient, user_id: int) -> tuple[Patient, bool]:
    """Whose case it is, and whether that patient was entered just now."""
    if isinstance(patient, str):
        return find_patient(db, patient), False
    if isinstance(patient, NewPatient):
        return _enter_patient(db, patient, user_id), True
    if known := known_patient(db, patient):
        return known, False
    return _enter_patient(db, require_name(patient), user_id), True


def _enter_patient(db: orm.Session, new: NewPatient, user_id: int) -> Patient:
    if known := with_number(db, new.number):
        written = "" if known[0].number == new.number else f", written {known[0].number!r}"
        raise RecordRefused(
            f"the patient number {new.number!r} is taken already{written}; search for that patient, or check the number"
        )
    patient = Patient(**asdict(new), created_by=user_id)
    db.add(patient)
    db.flush()
    return patient


def values_for(row: Any, kind: type, but: Collection[str] = ()) -> dict[str, Any]:
    """The values of a row that a dataclass has under the same names, but for these."""
    columns = row._fields if isinstance(row, sa.Row) else sa.inspect(row).mapper.columns.keys()
    return {field.name: getattr(row, field.name) for field in fields(kind) if field.name in {*columns} - {*but}}


def patient_row(patient: Patient) -> PatientRow:
    return PatientRow(**values_for(patient, PatientRow))


# --- what people typed


def _visible(text: str, keep: str) -> str:
    """Text in one composition and without invisible characters, which would make two numbers look the same."""
    text = unicodedata.normalize("NFC", text)
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def _one_line(text: str, keep: str) -> str:
    return " ".join(_visible(text, keep + "\t\n\r").split())


def _line(what: str, text: str, longest: int, keep: str = "") -> str:
    line = _one_line(text, keep) if isinstance(text, str) else ""
    if not line.strip(keep + " "):
        raise RecordRefused(f"the {what} is empty; accepted are 1 to {longest} characters")
    return _within(what, line, longest)


def text_of(what: str, text: str) -> str:
    return _within(what, _visible("\n".join(text.splitlines()), _JOINERS + "\n\t").strip(), LONGEST_TEXT)


def _within(what: str, text: str, longest: int) -> str:
    if len(text) > longest:
        raise RecordRefused(f"{len(text)} characters are too many for the {what}; accepted are up to {longest}")
    return text
