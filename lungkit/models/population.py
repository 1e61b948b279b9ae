"""Whom a version may read: ages, views, body part and modality, as its card states them.

A reading of anyone else is no decision: the version learned nothing of such patients or images. `checks` asks this of
an image and `against` of a patient, before there is one.
"""

import re
from collections.abc import Sequence

from lungkit.data.image import OLDEST_SHOWN, Stated
from lungkit.models.card import Ages, ModelCard
from lungkit.models.prediction import AGE, BODY_PART, MODALITY, VIEW, Check, is_outside
from lungkit.wording import listed

AGE_KNOWN = "age known"  # the check that fails where a card states ages, and the patient's is not known
_ELDER = 90  # years, where a card states no oldest patient
_FRONTAL = {"PA", "AP"}
# Words of ViewPosition that name no view, and those of views which are neither PA nor AP, whatever else is said.
_UNKNOWN = {"UNKNOWN", "OTHER", "NONE", "NA", "UNSPECIFIED"}
_NO_VIEW = _UNKNOWN | {*("CHEST", "THORAX", "SUPINE", "ERECT", "UPRIGHT", "STANDING", "SITTING", "PORTABLE", "BEDSIDE")}
_OTHER_VIEWS = {
    *("LATERAL", "LAT", "LL", "RL", "OBLIQUE", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO"),
    *("DECUBITUS", "LLD", "RLD"),
}
# How BodyPartExamined begins words for a part, in some languages.
_PARTS = {
    "chest": ("CHEST", "THORA", "TORA", "LUNG", "PULM", "TORSO", "TRUNK", "HEART", "POUMON", "BRUST", "WHOLEBODY"),
    "brain": ("BRAIN", "HEAD", "SKULL", "CEREBR", "NEURO", "WHOLEBODY"),
}
_KINDS = {"CT": "CT", "CR": "X-ray", "DX": "X-ray", "DR": "X-ray", "RG": "X-ray"}  # as DICOM names them
_NAMES = {"CT": "a CT", "X-ray": "an X-ray", "MRI": "an MRI"}
_SIDES = {"A", "P"}  # front and back of the patient, which only a lateral view has at its left and right


def ages_of(card: ModelCard) -> Ages | None:
    """The youngest and the oldest that the card states; None where it states none."""
    return card.about.ages if card.about else None


def ages_words(ages: Ages) -> str:
    """ "1 to 5 years", or "18 years and more"."""
    youngest, oldest = ages
    return f"{youngest:g} years and more" if oldest is None else f"{youngest:g} to {oldest:g} years"


def views_words(views: Sequence[str]) -> str:
    """ "frontal (PA or AP)"."""
    names = listed(list(views), "or")
    return f"frontal ({names})" if set(views) <= _FRONTAL else names


def checks(card: ModelCard, stated: Stated, by_year: float | None = None) -> tuple[Check, ...]:
    """What the card says against an image, or for it; nothing where the card or the image does not say.

    by_year: the patient's age by the birth year of the records; it has to fit, and so does the age that a file states.
    """
    about, other = card.about, _modality(card.modality, stated.modality)
    asked = (
        other,  # whose views have other names
        _view(about.views, stated.view, stated.orientation) if about and about.views and not other else None,
        _body_part(about.body_part, stated.body_part) if about and about.body_part else None,
        _age(ages_of(card), stated.age, by_year),
    )
    return tuple(check for check in asked if check)


def against(card: ModelCard, by_year: float | None, age: float | None = None) -> list[str]:
    """Why a version is not for a patient, in words; empty where nothing that is known speaks against it.

    by_year: the age by the birth year; age: that of a file.
    """
    return [check.words for check in checks(card, Stated(age), by_year) if is_outside(check)]


def suits(card: ModelCard, by_year: float | None, age: float | None = None) -> bool:
    """Whether a version is known to be for patients of this age: one that states no ages is not."""
    known = by_year is not None or age is not None
    return known and ages_of(card) is not None and not against(card, by_year, age)


def fitting_age(card: ModelCard) -> float | None:
    """An age that the version is for, to measure what else stops an image; None where the card states none."""
    ages = ages_of(card)
    return None if ages is None else (ages[0] + (_ELDER if ages[1] is None else ages[1])) / 2


def _age(ages: Ages | None, stated: float | None, by_year: float | None) -> Check | None:
    if ages is None:
        return None
    youngest, oldest = ages[0], float("inf") if ages[1] is None else ages[1]
    learned = f"this model learned from patients of {ages_words(ages)}"
    # A birth year tells the age to the year: a child of 5 may have been born 6 calendar years ago.
    known = [(age, age < oldest + 1) for age in (stated,) if age is not None]
    known += [(age, age <= oldest + 1) for age in (by_year,) if age is not None]
    if not known:
        words = f"the patient's age is not known, and {learned}: without a birth year it does not decide"
        return Check(AGE_KNOWN, False, 0.0, 1.0, words)
    failed = [age for age, not_too_old in known if age < youngest or not not_too_old]
    age = failed[0] if failed else known[0][0]
    limit = youngest if age <= youngest or ages[1] is None else oldest
    return Check(AGE, not failed, age, limit, f"the patient is {_old(age)} old; {learned}")


def _old(age: float) -> str:
    months = int(age * 12)
    if age == OLDEST_SHOWN:  # files state no higher age
        return f"{OLDEST_SHOWN} years or more"
    if age >= 2:
        return f"{int(age)} years"
    if months == 0:
        return "less than a month" if age else "less than a year"
    return "1 year" if 12 <= months < 24 else "1 month" if months == 1 else f"{months} months"


def _view(views: Sequence[str], view: str, orientation: str) -> Check | None:
    """ViewPosition counts, and so does a PatientOrientation that only a lateral view has."""
    said = _words_of_view(view) - _NO_VIEW
    frontal = set(views) & _FRONTAL
    lateral = bool({part[:1] for part in orientation.upper().split("\\")} & _SIDES) and bool(frontal)
    if not said and not lateral:
        return None
    learned = {*views} | ({"FRONTAL"} if frontal else set())
    fits = not lateral and bool(said & learned) and not said & (_OTHER_VIEWS - learned)
    named = f"the file states the view {view}" if said else "by its PatientOrientation this is a lateral view"
    if said and lateral:
        named += ", but its PatientOrientation is that of a lateral view"
    return Check(VIEW, fits, float(fits), 1.0, f"{named}; this model learned from {views_words(views)} views")


def _words_of_view(view: str) -> set[str]:
    r"""The words of a ViewPosition, or of the meaning of a view's code, such as "antero-posterior".

    >>> sorted(_words_of_view("A.P. supine")), _words_of_view("postero-anterior")
    (['AP', 'SUPINE'], {'PA'})
    """
    text = view.upper().replace(".", "")
    text = re.sub(r"ANTERO?[- ]?POSTERIOR", "AP", re.sub(r"POSTERO?[- ]?ANTERIOR", "PA", text))
    return set(re.findall("[A-Z]+", re.sub(r"\b([AP])[-/ ]([AP])\b", r"\1\2", text)))


def _body_part(learned: str, stated: str) -> Check | None:
    """Only where it fails, as with the modality."""
    words = re.findall("[A-Z]+", stated.upper())
    known = _PARTS.get(learned.lower(), (learned.upper(),))
    if not set(words) - _UNKNOWN or any(start in "".join(words) for start in known):
        return None
    told = f"the file states the body part {stated}; this model learned from images of the {learned}"
    return Check(BODY_PART, False, 0.0, 1.0, told)


def _modality(learned: str, modality: str) -> Check | None:
    """Only where it fails: that an X-ray is an X-ray need not be said."""
    kind = _KINDS.get(modality.upper())
    if kind is None or learned not in _NAMES or kind == learned:
        return None
    return Check(MODALITY, False, 0.0, 1.0, f"the file is {_NAMES[kind]}; this model reads {learned} images")
