"""What programs send and get, as OpenAPI describes it; units and ranges are in the descriptions."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.cases import Case
from lungkit.clinic.records.jobs import JobRow
from lungkit.clinic.records.patients import FIRST_BIRTH_YEAR, LONGEST_NAME, LONGEST_NUMBER
from lungkit.models import card_text
from lungkit.models.registry import Version

API = "/api/v1"
LONGEST_WAIT = 30.0  # s
RESEARCH = "Research use only. Not a medical device, not a diagnosis."

State = Literal["queued", "running", "done", "failed", "cancelled"]
Probability = Annotated[float, Field(ge=0, le=1)]


class Fields(BaseModel):
    """What is said of an image that is sent to be read."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field("", max_length=100, description="Name of the model; empty: the one that the clinic begins with")
    patient_number: str = Field(
        min_length=1, max_length=LONGEST_NUMBER, description="The clinic's own patient id. A known one is used again"
    )
    patient_name: str = Field(
        "", max_length=LONGEST_NAME, description="Needed for a new patient. Of a known one: absent, or as it is kept"
    )
    birth_year: int | None = Field(None, ge=FIRST_BIRTH_YEAR, le=9999, description="Year of birth, if it is known")
    sex: Literal["female", "male", "other", "unknown"] = Field("unknown", description="unknown: not stated")
    priority: Literal["urgent", "routine", "batch"] = Field("routine", description="Urgent jobs are read first")
    wait: float = Field(
        10, ge=0, le=LONGEST_WAIT, description="Seconds to wait for the result, 0 to 30; after that the answer is a job"
    )


class Job(BaseModel):
    """An image that was sent, and what has become of it."""

    id: str = Field(description="Also the id of the result")
    state: State = Field(description="queued, running, or how it ended: done, failed, cancelled")
    priority: str
    model: str = Field(description="Name of the model")
    tries: int = Field(ge=0, description="How often it was begun")
    reason: str = Field(description="Why it failed or was cancelled; otherwise empty")
    created_at: datetime = Field(description="When it was sent, UTC")
    ended_at: datetime | None = Field(description="When it was done, failed or cancelled, UTC")
    result: str | None = Field(description="Path of the result, once the job is done")

    @classmethod
    def of(cls, job: JobRow) -> "Job":
        """A job of the records."""
        result = f"{API}/results/{job.id}" if job.state == "done" else None
        return cls(**vars(job), result=result)


class Check(BaseModel):
    """One question asked of an image before its reading may be trusted."""

    name: str = Field(description="kind, intensity, size, orientation, lungs, age, age known, view or modality")
    passed: bool
    value: float = Field(description="What was measured, in the check's own unit")
    limit: float = Field(description="The limit that it was compared with")
    words: str = Field(description="The result, for people")


class Review(BaseModel):
    """What a clinician said of the reading; the latest one."""

    kind: Literal["class", "not assessable", "wrong image", "another finding"] = Field(
        description="class, or why the clinician gives none; which other finding it is stands in the report and in FHIR"
    )
    agrees: bool | None = Field(
        description="Whether the clinician agrees with the model's label; null without a class, and without a label"
    )
    label: str = Field(description="The class that the clinician gives; empty where there is none")
    answer_shown: bool = Field(description="Whether the model's answer was on screen before")
    at: datetime = Field(description="UTC")


class Result(BaseModel):
    """What a model says of an image."""

    reading_id: str
    model: str
    version: str = Field(description="v1, v2, …")
    refusal: str | None = Field(
        description="Not for this patient, or Not for this image: the model learned from others, and gives no finding. "
        "The checks age, view and modality say why. Otherwise null"
    )
    probabilities: dict[str, Probability] = Field(
        description="Class to calibrated probability, 0 to 1; they sum to 1. Empty where the model refuses"
    )
    label: str | None = Field(description="The class at the operating point; null where the model refuses")
    decision: str = Field(
        description="The label, or a range of grades; 'uncertain: review' where a person has to decide, also where the "
        "model refuses"
    )
    rule: dict[str, str] = Field(description="How probabilities become the decision, in words")
    checks: list[Check] = Field(description="Where one has not passed, the decision is left to a person")
    kind: str = Field(description="CT, X-ray, or image where the file does not say")
    units: str = Field(description="Of the pixels: HU, or intensity 0 to 1")
    width: int = Field(ge=1, description="Pixels")
    height: int = Field(ge=1, description="Pixels")
    sha256: str = Field(description="Of the file that was sent")
    milliseconds: float = Field(ge=0, description="From file to answer, without the time in the queue")
    read_at: datetime = Field(description="UTC")
    reviewed: bool = Field(description="Whether a clinician has reviewed the reading")
    review: Review | None
    withdrawn: bool = Field(
        description="Whether a clinician has withdrawn the image, because it is of another patient or was saved by "
        "mistake: do not use the result then"
    )
    caution: str = RESEARCH

    @classmethod
    def of(cls, case: Case) -> "Result":
        """A reading of the records."""
        review = case.reviews[-1] if case.reviews else None
        same = ("reading_id model version probabilities label decision kind units width height sha256 milliseconds"
                " read_at")  # fmt: skip
        values = {name: getattr(case, name) for name in same.split()}
        said = review and Review.model_validate(vars(review))
        if case.refusal:
            values |= {"probabilities": {}, "label": None, "decision": REVIEW}
            said = said and said.model_copy(update={"agrees": None})
        return cls(
            **values,
            refusal=case.refusal or None,
            rule=dict(card_text.rule_rows(case.rule, case.classes)),
            checks=[Check(**vars(check)) for check in case.checks],
            reviewed=review is not None,
            review=said,
            withdrawn=case.corrections.withdrawn is not None,
        )


class Model(BaseModel):
    """A model that is in use."""

    name: str
    version: str = Field(description="The version that reads now: v1, v2, …")
    question: str = Field(description="What it answers")
    classes: list[str]
    modality: str = Field(description="X-ray, CT, MRI or image")
    synthetic: bool = Field(description="Whether it learned from computer-made images")

    @classmethod
    def of(cls, version: Version) -> "Model":
        """A version of the registry."""
        card = version.card
        return cls(
            name=version.model,
            version=version.version,
            question=card_text.question(card),
            classes=list(card.classes),
            modality=card.modality,
            synthetic=card.synthetic,
        )


class ModelWithCard(Model):
    """A model that is in use, with its card."""

    card: dict[str, Any] = Field(description="What the version learned from and how well it did: its card.json")


class Health(BaseModel):
    """The gateway runs."""

    status: Literal["ok"] = "ok"


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it (application/problem+json)."""

    type: str = Field(description="Which kind of problem: urn:lungkit:problem:…")
    title: str = Field(description="The kind in words, the same each time")
    status: int = Field(ge=400, le=599, description="The HTTP status again")
    detail: str = Field(description="What was wrong this time, and what would be accepted")
    job: str | None = Field(None, description="Path of the job that it is about")
    fields: list[FieldProblem] | None = Field(None, description="What is wrong with each field")
    reasons: list[str] | None = Field(None, description="Why the gateway is not ready")
