"""A reading as a structured report: Comprehensive 3D SR with the template TID 1500 (PS3.16), as IHE AI Results asks.

Each class has a measurement group with its finding, its probability, and whether it is present. Those that are present
come first. Where the model leaves the decision to a person, every class is equivocal. A refused reading has one group
without a finding; once a person has named a class, it is that of the person's word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from highdicom import sr
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lungkit.clinic.records.tables import CLASS
from lungkit.gateway.objects import codes as our
from lungkit.gateway.objects import provenance
from lungkit.gateway.objects.result import RESEARCH_ONLY, Result, Review, findings, presence
from lungkit.gateway.objects.source import Source, one_line, source_of
from lungkit.models.class_names import class_name


@dataclass(frozen=True)
class _Told:
    """What one report is made from."""

    source: Source
    result: Result
    review: Review | None = None

    @property
    def findings(self) -> list[str]:
        """What has a group, by name; an empty name stands for a group without a finding."""
        return findings(self.result, self.review) or [""]


def structured_report(
    source: Source | Dataset | Sequence[Dataset], result: Result, previous: Dataset | None = None
) -> sr.Comprehensive3DSR:
    """The report of a reading: complete, preliminary and not verified.

    source: headers of the image, or of the series. previous: the report of a reading that this one replaces, which it
    names as its predecessor. The same arguments give the same bytes.
    Raises SourceRefused for a source that no result can be filed next to.
    """
    told = _Told(source_of(source), result)
    made = sr.Comprehensive3DSR(
        evidence=told.source.headers,
        content=_content(told),
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=None if previous is None else [previous],
        coding_schemes=[our.scheme()],
        **provenance.identity(told.source, result, "report"),
    )
    provenance.sealed(made, told.source, result.read_at)
    return made


def reviewed_report(
    source: Source | Dataset | Sequence[Dataset], result: Result, review: Review, previous: Dataset
) -> sr.Comprehensive3DSR:
    """A new report that a person has verified; it names `previous`, the report before it, as its predecessor.

    It says what the person sees, and whether the model's answer was accepted, amended or rejected. previous: what
    `structured_report` or this function gave. Raises SourceRefused as `structured_report` does.
    """
    told = _Told(source_of(source), result, review)
    made = sr.Comprehensive3DSR(
        evidence=told.source.headers,
        content=_content(told),
        is_complete=True,
        is_final=True,
        is_verified=True,
        verifying_observer_name=_person_name(review),
        verifying_organization=_organization(review),
        previous_versions=[previous],
        coding_schemes=[our.scheme()],
        **review_identity(told.source, result, review),
    )
    provenance.sealed(made, told.source, review.at)
    made.VerifyingObserverSequence[0].VerificationDateTime = provenance.moment(review.at)
    return made


def review_identity(source: Source, result: Result, review: Review) -> dict[str, Any]:
    """As `provenance.identity`, of the report of a review."""
    which = [review.at.isoformat(), review.reviewer, review.verdict, review.label, review.comment]
    which += [] if review.kind == CLASS else [review.kind, review.finding]
    return provenance.identity(source, result, "review", *which)


def _person_name(review: Review) -> str:
    """As a family name: how a full name divides is not known. The mark says that no more parts follow."""
    plain = one_line("".join(" " if letter in "^=\\" else letter for letter in review.reviewer))
    return f"{plain[:63].rstrip()}^"


def _organization(review: Review) -> str:
    return one_line(review.organization.replace("\\", "/"))[:64].rstrip() or "not stated"


# --- the tree ----------------------------------------------------------------------------------------------------


def _content(told: _Told) -> sr.MeasurementReport:
    tree = sr.MeasurementReport(
        observation_context=_observers(told),
        procedure_reported=our.CT_PROCEDURE if told.source.is_ct else our.XRAY_PROCEDURE,
        imaging_measurements=[_group(told, name) for name in told.findings],
    )
    content = tree[0].ContentSequence
    content.insert(len(content) - 1, _library(told.source))
    first = content[-1].ContentSequence[0].ContentSequence
    first.extend(_texts(told))
    return tree


def _observers(told: _Told) -> sr.ObservationContext:
    result, person = told.result, None
    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=provenance.device_uid(result),
            name=result.version_name,
            manufacturer_name=provenance.MAKER,
            model_name=f"lungkit {result.lungkit}",
            serial_number=result.version_name,
        ),
    )
    if told.review:
        name = sr.PersonObserverIdentifyingAttributes(
            name=_person_name(told.review), organization_name=_organization(told.review)
        )
        person = sr.ObserverContext(codes.DCM.Person, name)
    return sr.ObservationContext(observer_person_context=person, observer_device_context=device)


def _library(source: Source) -> sr.ContainerContentItem:
    """The images that were given, each once."""
    group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=Relation.CONTAINS)
    group.ContentSequence = sr.ContentSequence()
    group.ContentSequence.append(sr.CodeContentItem(codes.DCM.Modality, our.modality(source), Relation.HAS_ACQ_CONTEXT))
    group.ContentSequence.extend(
        sr.ImageContentItem(
            name=our.LIBRARY_ENTRY,
            referenced_sop_class_uid=str(header.SOPClassUID),
            referenced_sop_instance_uid=str(header.SOPInstanceUID),
            relationship_type=Relation.CONTAINS,
        )
        for header in source.headers
    )
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=Relation.CONTAINS)
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _group(told: _Told, name: str) -> sr.MeasurementsAndQualitativeEvaluations:
    result, source = told.result, told.source
    first, evaluations = name == told.findings[0], []
    if name:
        there = our.PRESENCES[presence(result, told.review, name)]
        evaluations.append(sr.QualitativeEvaluation(our.PRESENCE, there))
    if told.review and first:
        if not result.refusal:
            evaluations.append(sr.QualitativeEvaluation(our.ASSESSMENT, our.VERDICTS[told.review.verdict]))
        if told.review.kind in our.NO_CLASS:
            evaluations.append(sr.QualitativeEvaluation(*our.NO_CLASS[told.review.kind]))
    images = [
        sr.SourceImageForMeasurementGroup(str(header.SOPClassUID), str(header.SOPInstanceUID))
        for header in source.of(result.instances)
    ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(*tracking(source, result, name)),
        finding_category=our.CLINICAL_FINDING if name else None,
        finding_type=our.finding(name) if name else None,
        finding_sites=[sr.FindingSite(our.LUNG)],
        algorithm_id=None if told.review else _algorithm(result, first),
        measurements=_probability(told, name),
        qualitative_evaluations=evaluations,
        source_images=images,
    )


def tracking(source: Source, result: Result, name: str) -> tuple[str, str]:
    """UID and identifier that a class's finding has in report and segmentation; name: empty without an answer."""
    identifier = f"{one_line(class_name(name)) or 'No answer'}, reading {result.reading}"
    return provenance.uid(source, result, "finding", name), identifier


def _probability(told: _Told, name: str) -> list[sr.Measurement]:
    """A class's probability; in a reviewed report it says that the model, and not the person, gave it."""
    if name not in told.result.of:
        return []
    algorithm = _algorithm(told.result, name == told.result.named[0]) if told.review else None
    return [sr.Measurement(our.PROBABILITY, told.result.of[name], our.NO_UNITS, algorithm_id=algorithm)]


def _algorithm(result: Result, whole: bool) -> sr.AlgorithmIdentification:
    """TID 4019. whole: with the question, the training data and the decision rule, which one group of a report has."""
    parameters = [f"Question: {result.question}", f"Learned from: {result.learned_from}", result.rule]
    return sr.AlgorithmIdentification(
        name=result.model,
        version=result.version,
        parameters=[one_line(parameter) for parameter in parameters] if whole else None,
        family=our.ARTIFICIAL_INTELLIGENCE,
        manufacturer=provenance.MAKER,
    )


def _texts(told: _Told) -> Iterator[sr.TextContentItem]:
    """What has no code, in the first group."""
    result, review = told.result, told.review
    said = [(our.COMMENT, result.said)]
    said += [(our.REASON, result.reason)] if result.uncertain else []
    said += [
        (our.CHECK, f"{check.name}: {'passed' if check.passed else 'failed'}. {check.words}") for check in result.checks
    ]
    if review:
        said.append((our.COMMENT, f"Review: {result.judged(review)}. {review.words}"))
    said += [(our.SOURCE_NOTE, note) for note in told.source.notes]
    synthetic = " The model learned from computer-made images." if result.synthetic else ""
    said.append((our.USE, f"{RESEARCH_ONLY}{synthetic}"))
    return (sr.TextContentItem(name, one_line(text), Relation.CONTAINS) for name, text in said)
