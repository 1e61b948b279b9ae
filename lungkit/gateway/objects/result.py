"""What the objects say: a model's reading of images, and a person's review of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np

import lungkit
from lungkit.clinic.records.cases import Case
from lungkit.clinic.records.reviewing import WHY_NO_CLASS, ReviewRow
from lungkit.clinic.records.tables import CLASS
from lungkit.data.preprocess import Preprocessing
from lungkit.errors import LungkitError
from lungkit.gateway.objects.source import Source
from lungkit.models import card_text
from lungkit.models.card import ModelCard
from lungkit.models.class_names import class_name, class_names
from lungkit.models.prediction import Check, Prediction, is_outside, refusal
from lungkit.wording import percent

RESEARCH_ONLY = "Research use only. Not a medical device, not for diagnosis."
Presence = Literal["present", "absent", "equivocal"]
_NO_CARD = "not known: the version is no longer in the registry"


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A reading, as it is sent to other systems. Raises LungkitError where it contradicts itself.

    A refused one (`refusal`) has no class, no probability and no heat map: they would mean nothing.
    """

    reading: str  # its number in the records: UIDs are derived from it
    model: str
    version: str
    question: str  # of the model: "Chest X-ray: normal or pneumonia?"
    learned_from: str  # "children: 2,792 X-ray images of 1,576 patients"
    synthetic: bool  # whether the model learned from computer-made images
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()  # of each class, calibrated, sum 1
    label: str = ""  # the class at the operating point
    named: tuple[str, ...] = ()  # the classes that the answer names: the label, or a range of grades
    answer: str = ""  # in words, with what grades mean
    rule: str  # how probabilities become the answer, in words
    uncertain: bool  # whether the model leaves it to a person …
    reason: str  # … and why; empty otherwise
    checks: tuple[Check, ...]
    read_at: datetime  # with a time zone: the hospital's, where the images state none
    # float32 (height, width) 0..1, what spoke for the label, over the whole image, by SOPInstanceUID. The first of them
    # is the image that is shown.
    heat: Mapping[str, np.ndarray] = field(default_factory=dict)
    instances: tuple[str, ...] = ()  # SOPInstanceUIDs that the answer rests on; empty: all of the source
    seen: str = ""  # how the picture was made: "CT seen at level -600 HU, width 1500 HU"
    lungkit: str = lungkit.__version__  # the version that read

    def __post_init__(self) -> None:
        if self.refusal:
            if self.classes or self.probabilities or self.label or self.named or self.heat:
                raise LungkitError("a refused result has no class, no probability and no heat map")
        elif len(self.classes) != len(self.probabilities) or not np.isclose(sum(self.probabilities), 1, atol=1e-3):
            raise LungkitError(f"a result needs a probability for each of {self.classes}, with a sum of 1")
        elif not {self.label, *self.named} <= {*self.classes} or not self.named:
            raise LungkitError(f"a result names {self.named}, but its classes are {self.classes}")
        if self.uncertain != bool(self.reason):
            raise LungkitError("a result that is left to a person needs a reason, and no other has one")
        if self.read_at.tzinfo is None:
            raise LungkitError("read_at of a result needs a time zone")

    @property
    def of(self) -> Mapping[str, float]:
        """The probability of each class."""
        return dict(zip(self.classes, self.probabilities, strict=True))

    @property
    def refusal(self) -> str:
        """ "Not for this patient", or image, where the checks say so."""
        return refusal(self.checks)

    def judged(self, review: "Review") -> str:
        """What a review says of the answer, as the end of a sentence."""
        return "the model gave no answer" if self.refusal else f"the answer was {review.verdict}"

    @property
    def said(self) -> str:
        """The decision in a sentence or two, with the probability where that means something."""
        return f"{self.headline}." if self.refusal else f"{self.headline}. Probability {self.probability:.3f}."

    @property
    def probability(self) -> float:
        """Of the classes that the answer names, together."""
        return min(1.0, sum(self.of[name] for name in self.named))

    @property
    def version_name(self) -> str:
        """ "chest-xray-pneumonia@v2"."""
        return f"{self.model}@{self.version}"

    @property
    def headline(self) -> str:
        """The decision in a line."""
        if self.refusal:
            return f"{self.refusal}: a clinician has to decide"
        return "Uncertain: a clinician has to decide" if self.uncertain else f"The model answers: {self.answer}"


@dataclass(frozen=True, kw_only=True)
class Review:
    """What a person says of a reading. Raises LungkitError for a contradiction."""

    reviewer: str  # name
    agrees: bool | None  # None: the model gave no finding, or the review no class
    label: str = ""  # what the person sees instead; empty where the answer is rejected and nothing put in its place
    comment: str = ""
    kind: str = CLASS  # or why the person gives no class: one of tables.REVIEW_KINDS
    finding: str = ""  # what else the person sees, in free text
    at: datetime  # with a time zone
    organization: str = ""  # where the reviewer works; DICOM asks for it

    def __post_init__(self) -> None:
        if not self.reviewer.strip():
            raise LungkitError("a review needs the name of the person who made it")
        if self.at.tzinfo is None:
            raise LungkitError("the time of a review needs a time zone")
        of_refused = self.kind == CLASS and bool(self.label)  # a class for an image to which the model gave none
        if (self.kind == CLASS) != (self.agrees is not None) and not of_refused:
            raise LungkitError("a review either says whether the model's label is right, or why it gives no class")

    @property
    def verdict(self) -> Literal["accepted", "amended", "rejected"]:
        """As in IHE AI Result Assessment: accepted, amended with what is seen instead, or rejected without that."""
        if self.agrees:
            return "accepted"
        return "amended" if self.label or self.finding else "rejected"

    @property
    def words(self) -> str:
        """What the person says besides the verdict: why there is no class, what else is seen, and the comment."""
        why = WHY_NO_CLASS.get(self.kind, "")
        said = f"The clinician says: {why}{f': {self.finding}' if self.finding else ''}." if why else ""
        return f"{said} {self.comment}".strip()


def findings(result: Result, review: Review | None, earlier: Sequence[Review] = ()) -> list[str]:
    """The classes, and labels that people gave and the model does not know: those seen first.

    A refused result has no classes. What an earlier review of it named is there too, to be told that it is gone.
    """
    first = [review.label] if review and review.label else result.named
    before = [one.label for one in earlier if one.label]
    return list(dict.fromkeys([*first, *result.named, *result.classes, *before]))


def presence(result: Result, review: Review | None, name: str) -> Presence:
    """Whether a finding is there: the person's word where there is one; equivocal where the model leaves it to one."""
    if review is None:
        if result.uncertain:
            return "equivocal"
        return "present" if name in result.named else "absent"
    if review.label or review.agrees:
        seen = (review.label,) if review.label else result.named
        return "present" if name in seen else "absent"
    # Nothing was put in the answer's place. Where no class fits the image, that denies none of them.
    return "absent" if review.kind == CLASS and name in result.named else "equivocal"


def result_of(
    reading: str, prediction: Prediction, card: ModelCard | None, read_at: datetime, instance: str, seen: str = ""
) -> Result:
    """The result of one image's prediction.

    card: of the version that read; None if it is no longer in the registry. instance: the image's SOPInstanceUID as
    `Source.instances` has it.
    """
    graded, heat = prediction.grades, prediction.heat
    decided = prediction.decision in (prediction.label, graded.name if graded else prediction.label)
    uncertain = bool(prediction.refusal) or not decided
    rows = card_text.rule_rows(prediction.rule, class_names(prediction.classes))
    said: dict[str, Any] = {
        "classes": prediction.classes,
        "probabilities": tuple(prediction.probabilities.tolist()),
        "label": prediction.label,
        "named": graded.names if graded else (prediction.label,),
        "answer": f"{graded.name}, {graded.extent}" if graded else class_name(prediction.label),
        "heat": {} if heat is None else {instance: heat[prediction.classes.index(prediction.label)]},
    }
    return Result(
        reading=reading,
        model=prediction.model,
        version=prediction.version,
        question=card_text.question(card) if card else _NO_CARD,
        learned_from=card_text.learned_from(card) if card else _NO_CARD,
        synthetic=card is not None and card.synthetic,
        rule=". ".join(f"{name}: {words}" for name, words in rows),
        uncertain=uncertain,
        reason=_reason(prediction) if uncertain else "",
        checks=prediction.checks,
        read_at=read_at,
        instances=(instance,),
        seen=seen,
        **({} if prediction.refusal else said),
    )


def result_of_case(
    case: Case,
    card: ModelCard | None,
    source: Source | None,
    carrying: Sequence[str] = (),
    reasons: Sequence[str] = (),
) -> Result:
    """The result of a reading of the records.

    card: of the version that read; None if it is no longer in the registry. source: its images; None where they did
    not come as DICOM. carrying: of a series, the SOPInstanceUIDs of the slices that the answer rests on, the one that
    is shown first; none: it rests on all, and the heat map is left out, because it is not known whose it is. reasons:
    why a series is left to a person.
    """
    prediction = Prediction(
        model=case.model,
        version=case.version,
        classes=case.classes,
        probabilities=np.array([case.probabilities[name] for name in case.classes]),
        label=case.label,
        decision=case.decision,
        rule=case.rule,
        heat=case.heat,
        checks=case.checks,
        milliseconds=case.milliseconds,
    )
    level, width = (card.preprocessing if card else Preprocessing()).window
    seen = f"CT seen at level {level:g} HU, width {width:g} HU" if case.units == "HU" else ""
    images = source.instances if source else ("",)
    shown = (carrying or images)[0]
    result = result_of(case.reading_id, prediction, card, case.read_at, shown, seen)
    if len(images) > 1:
        result = replace(result, instances=tuple(carrying), heat=result.heat if carrying else {})
    unsure = result.uncertain and not result.refusal  # a refusal has its own reasons
    return replace(result, reason=" ".join(reasons)) if unsure and reasons else result


def review_of(row: ReviewRow) -> Review:
    """A review of the records."""
    return Review(
        reviewer=row.reviewer, agrees=row.agrees, label=row.label, comment=row.comment, kind=row.kind,
        finding=row.finding, at=row.at,
    )  # fmt: skip


def _reason(prediction: Prediction) -> str:
    """Why a prediction is left to a person, as the report words it."""
    if prediction.refusal:
        return " ".join(
            f"{check.words[:1].upper()}{check.words[1:]}." for check in prediction.checks if is_outside(check)
        )
    label = prediction.label
    probability = percent(float(prediction.probabilities[prediction.classes.index(label)]))
    nearest = f"Nearest: {class_name(label)}, {probability}."
    if failed := [check.name for check in prediction.checks if not check.passed]:
        named = ", ".join(failed)
        return f"The image did not pass every input check ({named}), so the answer cannot be relied on. {nearest}"
    if prediction.grades:
        return f"The model cannot rule out any grade. {nearest}"
    return f"The probability lies within the band of uncertainty around the operating point. {nearest}"
