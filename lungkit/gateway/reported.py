"""What other systems are told of a reading: the result, whom it is about, what people said of it, and its images."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Literal, NamedTuple

from lungkit.clinic.records.cases import Case
from lungkit.clinic.records.patients import PatientRow
from lungkit.errors import LungkitError
from lungkit.gateway.objects import codes, provenance
from lungkit.gateway.objects.result import (
    RESEARCH_ONLY,
    Presence,
    Result,
    Review,
    findings,
    presence,
    result_of_case,
    review_of,
)
from lungkit.gateway.objects.source import Source
from lungkit.models.card import ModelCard

WITHDRAWN = "A clinician has withdrawn this image. Do not use this result."
MOVED = "A clinician has moved this image to another patient. Do not use this result."
_PROCEDURES = {"CT": codes.CT_PROCEDURE, "X-ray": codes.XRAY_PROCEDURE}


class Finding(NamedTuple):
    """What is said of one class."""

    name: str
    code: codes.CodedConcept
    presence: Presence
    probability: float | None  # that the model gave; None for what only a person named


@dataclass(frozen=True, kw_only=True, eq=False)
class Reported:
    """A result with all that is said about it. Raises LungkitError for a patient's number that cannot be sent."""

    result: Result
    patient: PatientRow
    kind: str = "image"  # CT, X-ray, or image where that is not known; a source says it itself
    reviews: tuple[Review, ...] = ()  # oldest first; the latest counts
    source: Source | None = None  # None: no DICOM study is known
    supersedes: str = ""  # the reading of the same image, or of its series before late images came; often empty
    withdrawn_at: datetime | None = None  # when a clinician withdrew the image; the reason may name a patient
    # Told of a patient whom the image was with before: `withdrawn_at` is when it left, and these are the classes that
    # may have been told.
    told_before: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.patient.number or plain(self.patient.number) != self.patient.number:
            raise LungkitError(
                f"the patient's number {self.patient.number!r} is not one line of text: it cannot be sent"
            )

    def taken_back(self, before: PatientRow, at: datetime, told: Iterable[str]) -> "Reported":
        """What is told of a patient whom the image was with before: the result is not theirs.

        Nothing in it is of the patient whom the image is with now. at: when it left. told: the classes.
        """
        checks = tuple(replace(check, words="") for check in self.result.checks)  # they may state an age
        result = replace(self.result, checks=checks, reason=MOVED if self.result.uncertain else "")
        return replace(self, result=result, patient=before, reviews=(), withdrawn_at=at, told_before=tuple(told))

    @property
    def review(self) -> Review | None:
        """The latest one."""
        return self.reviews[-1] if self.reviews else None

    @property
    def status(self) -> Literal["preliminary", "final", "amended", "entered-in-error"]:
        """Final once a person has reviewed it; amended from the first review on that does not agree.

        Where the model gave no answer there is nothing to agree with: it is amended from the second review on.
        Entered in error from the moment the image was withdrawn.
        """
        if self.withdrawn_at:
            return "entered-in-error"
        if not self.reviews:
            return "preliminary"
        same = len(self.reviews) == 1 if self.result.refusal else all(review.agrees for review in self.reviews)
        return "final" if same else "amended"

    @property
    def issued(self) -> datetime:
        """When its content last changed."""
        return self.withdrawn_at or (self.review.at if self.review else self.result.read_at)

    @property
    def procedure(self) -> codes.CodedConcept:
        """How the images were made, of LOINC."""
        kind = self.kind if self.source is None else "CT" if self.source.is_ct else "X-ray"
        return _PROCEDURES.get(kind, codes.IMAGING_PROCEDURE)

    @property
    def taken(self) -> datetime | date | None:
        """When the study was made: a time with its zone; a day where the images state no zone; None if not known."""
        return provenance.study_time(self.source.headers[0]) if self.source else None

    @property
    def findings(self) -> list["Finding"]:
        """Those that are seen first; none of them has an answer for a patient whom the image was with before."""
        if self.told_before:
            return [Finding(name, codes.finding(name), "equivocal", None) for name in self.told_before]
        result, review = self.result, self.review
        return [
            Finding(name, codes.finding(name), presence(result, review, name), result.of.get(name))
            for name in findings(result, review, self.reviews[:-1])
        ]

    @property
    def conclusion(self) -> list[str]:
        """The decision, why, and what the person said: a sentence or more each. First that it does not count."""
        if self.told_before:
            return [MOVED]
        result, review = self.result, self.review
        said = [WITHDRAWN] if self.withdrawn_at else []
        said += [result.said]
        said += [result.reason] if result.uncertain else []
        if review:
            seen = f" The clinician sees {review.label}." if review.label else ""
            said.append(f"Review: {result.judged(review)}.{seen} {review.words}")
        return [plain(text) for text in said]

    @property
    def caution(self) -> str:
        """The permitted use, in every message."""
        return RESEARCH_ONLY + (" The model learned from computer-made images." if self.result.synthetic else "")


def reported_of(
    case: Case,
    card: ModelCard | None,
    source: Source | None = None,
    result: Result | None = None,
    supersedes: str = "",
) -> Reported:
    """A reading of the records.

    card: of the version that read; None if it is no longer in the registry. source: its images. result: of a series,
    whose slices the records know apart from the case; default: that of one image. supersedes: as Reported has it.
    """
    said = result or result_of_case(case, card, source)
    reviews = [review_of(row) for row in case.reviews]
    withdrawn = case.corrections.withdrawn
    return Reported(
        result=said,
        patient=case.patient,
        kind=case.kind,
        reviews=tuple(reviews),
        source=source,
        supersedes=supersedes,
        withdrawn_at=withdrawn.at if withdrawn else None,
    )


def plain(text: str) -> str:
    """Text in one line, without control characters; those that join letters in Persian and Indian scripts stay."""
    return " ".join("".join(" " if unicodedata.category(c) in _NO_TEXT else c for c in text).split())


_NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}
