"""What clinicians say of a reading: one of the model's classes, or why none of them fits.

Two people can have the same reading open. A page names the latest review that it has shown; where another person's came
after it, nothing is saved, and the page tells its reader of that review first.
"""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import audit_trail, blind, dispatches
from lungkit.clinic.records.accounts import Actor
from lungkit.clinic.records.patients import RecordRefused, text_of
from lungkit.clinic.records.tables import (
    CLASS,
    NOT_ASSESSABLE,
    OTHER_FINDING,
    REVIEW_KINDS,
    WRONG_IMAGE,
    Reading,
    Review,
)
from lungkit.errors import LungkitError
from lungkit.models.class_names import class_name
from lungkit.models.prediction import Check, refusal

# The kinds of reviews that give no class, in words.
WHY_NO_CLASS = {
    NOT_ASSESSABLE: "not assessable",
    WRONG_IMAGE: "wrong image or region",
    OTHER_FINDING: "another finding",
}


@dataclass(frozen=True)
class Said:
    """What a reviewer says. Raises RecordRefused for what cannot be kept.

    label: needed where the kind is CLASS; accepted with another finding, refused otherwise. finding: free text, needed
    with another finding, refused otherwise.
    """

    label: str = ""
    comment: str = ""
    kind: str = CLASS  # one of tables.REVIEW_KINDS
    finding: str = ""

    @property
    def words(self) -> str:
        """The class, or why none fits, without free text."""
        return WHY_NO_CLASS.get(self.kind, class_name(self.label))

    def checked(self, classes: tuple[str, ...]) -> "Said":
        """The same with tidied texts, for a reading with these classes."""
        made = Said(self.label, text_of("comment", self.comment), self.kind, text_of("finding", self.finding))
        if self.kind not in REVIEW_KINDS:
            raise RecordRefused(f"{str(self.kind)[:80]!r} is no kind of review: {', '.join(REVIEW_KINDS)}")
        if (self.kind == CLASS or self.label) and self.label not in classes:
            raise RecordRefused(f"{self.label!r} is not one of this reading's classes: {', '.join(classes)}")
        if self.kind in (NOT_ASSESSABLE, WRONG_IMAGE) and self.label:
            raise RecordRefused(f"a review that says {self.words} gives no class")
        if self.kind == OTHER_FINDING and not made.finding:
            raise RecordRefused("say which other finding you see; nothing was saved")
        if self.kind != OTHER_FINDING and made.finding:
            raise RecordRefused(f"a finding in words is for {WHY_NO_CLASS[OTHER_FINDING]!r}; use the comment instead")
        return made


@dataclass(frozen=True)
class ReviewRow:
    """What one clinician said about a reading."""

    reviewer: str  # full name
    agrees: bool | None  # None: the model gave no finding, or the review no class
    label: str
    comment: str
    at: datetime
    id: str = ""
    reviewer_id: int = 0
    kind: str = CLASS
    finding: str = ""
    answer_shown: bool = True  # whether the model's answer was on screen before
    own: bool = False  # whether it is that of the person who reads it now

    @property
    def says(self) -> str:
        """The class, or why none fits, without free text."""
        return WHY_NO_CLASS.get(self.kind, class_name(self.label))

    @property
    def verdict(self) -> str:
        """What it says of the model's answer: "agreed: Normal", "corrected to Pneumonia", "another finding: …"."""
        if self.kind != CLASS:
            return f"{self.says}: {self.finding}" if self.finding else self.says
        if self.agrees is None:
            return self.says
        return f"agreed: {self.says}" if self.agrees else f"corrected to {self.says}"


class ReviewedMeanwhile(LungkitError):
    """Another person's review came after the last one that the page has shown; nothing was saved.

    latest: id of the latest review. review: that person's; None where it is withheld from a reader who gives a label
    first.
    """

    def __init__(self, latest: str, review: ReviewRow | None):
        super().__init__(
            "another doctor has reviewed this reading in the meantime, so nothing was saved. Open it again"
        )
        self.latest, self.review = latest, review


def row_of(review: Review, reader: int) -> ReviewRow:
    """A review for the person with this account."""
    agrees = None if _refused(review.reading) else review.agrees
    return ReviewRow(
        review.reviewer.full_name, agrees, review.label, review.comment, review.at, review.id,
        review.reviewer_id, review.kind, review.finding, review.answer_shown, review.reviewer_id == reader,
    )  # fmt: skip


def save(db: orm.Session, actor: Actor, reading: Reading, said: Said, seen: str | None = None) -> None:
    """Keep a review, list it for other systems, and note it on the trail. The caller has checked the role.

    seen: as `Records.review` has it.
    """
    said = said.checked(tuple(reading.probabilities))
    judges = said.kind == CLASS and not _refused(reading)
    right = said.label == reading.label if judges else None
    if seen is not None:
        _refuse_unseen(actor, reading, seen, blind.is_hidden(db, actor, reading))
    shown = blind.could_have_seen(db, actor, reading)
    row = Review(
        reading_id=reading.id, reviewer_id=actor.user_id, kind=said.kind, agrees=right, label=said.label,
        finding=said.finding, comment=said.comment, answer_shown=shown,
    )  # fmt: skip
    db.add(row)
    db.flush()
    dispatches.enqueue_review(db, reading.id, row.id)
    audit_trail.append(db, actor.user_id, "case.review", f"reading:{reading.id}", kind=said.kind, agrees=right,
                       label=said.label, answer_shown=shown)  # fmt: skip


def latest_id(db: orm.Session, reading_id: str) -> str:
    """The latest review of a reading; empty where there is none. It tells nothing but that there is one."""
    newest = sa.select(Review.id).where(Review.reading_id == reading_id).order_by(Review.at.desc(), Review.id.desc())
    return db.scalar(newest.limit(1)) or ""


def _refused(reading: Reading) -> str:
    """What `refusal` says of a stored reading; reviews of earlier releases say whether they agree all the same."""
    return refusal(Check(**check) for check in reading.checks)


def _refuse_unseen(actor: Actor, reading: Reading, seen: str, hidden: bool) -> None:
    ids = [review.id for review in reading.reviews]
    unseen = reading.reviews[ids.index(seen) + 1 :] if seen in ids else reading.reviews
    if of_others := [review for review in unseen if review.reviewer_id != actor.user_id]:
        raise ReviewedMeanwhile(ids[-1], None if hidden else row_of(of_others[-1], actor.user_id))
