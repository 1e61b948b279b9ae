"""A reading as FHIR R4: a transaction with a report, an observation for each finding, the study, model and patient.

Sent again it makes nothing a second time, and whatever the server has of others stays as it is. Patient, study and
model are created only where the server knows none with the identifier (conditional create). The report and the
observations replace what was sent before (conditional update), because a review or a withdrawal changes them; a
conditional create would leave the answer from before in place. No resource has an id: the server gives it. Entries
refer to each other by fullUrl. All identifiers are always the same for the same reading (UUID version 5).
"""

import base64
import html
import uuid
from datetime import date, datetime
from typing import Any
from urllib.parse import quote

from lungkit.gateway.objects import codes, provenance
from lungkit.gateway.objects.codes import CodedConcept
from lungkit.gateway.objects.source import Source
from lungkit.gateway.reported import Finding, Reported, plain

MEDIA_TYPE = "application/fhir+json"
PATIENT_NUMBERS = "urn:lungkit:patient-number"  # the system of the clinic's numbers, where no one has given a URI
_URI = "urn:ietf:rfc:3986"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    codes.SCHEME: "urn:lungkit:codes",
}
_REPLACES = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces"
# Of v3-ObservationValue; the report and its findings have the second one as well once a person has reviewed them.
_ASSERTED = {"AIAST": "Artificial Intelligence asserted", "CLINAST": "clinician asserted"}

Json = dict[str, Any]


def bundle(reported: Reported, pdf: bytes = b"", patient_numbers: str = PATIENT_NUMBERS) -> Json:
    """The transaction to POST to a FHIR server. The same content gives the same bundle.

    pdf: the report as the clinic prints it, where it is sent too. patient_numbers: the URI of the system that the
    clinic's patient numbers belong to, as the server has it; with any other the server finds none of its patients.
    """
    entries: list[Json] = []

    def add(kind: str, identifier: Json, content: Json, ours: bool = False) -> Json:
        """Adds a resource; returns a reference to it."""
        place = f"urn:uuid:{_uuid(kind, identifier['system'], identifier['value'])}"
        resource = {"resourceType": kind, **content, "identifier": [identifier, *content.get("identifier", [])]}
        which = _search(identifier)
        request = {"method": "PUT", "url": f"{kind}?{which}"} if ours else {"method": "POST", "url": kind}
        entries.append(
            {"fullUrl": place, "resource": resource, "request": request | ({} if ours else {"ifNoneExist": which})}
        )
        return {"reference": place}

    result, source = reported.result, reported.source
    patient = add("Patient", {"system": patient_numbers, "value": reported.patient.number}, _patient(reported))
    device_uid = f"urn:oid:{provenance.device_uid(result)}"
    device = add("Device", {"system": _URI, "value": device_uid}, _device(reported))
    shared = _shared(reported) | {"subject": patient}
    studies = []
    if source:
        study_uid = f"urn:oid:{source.headers[0].StudyInstanceUID}"
        study = _study(source, reported.taken) | {"subject": patient}
        studies = [add("ImagingStudy", {"system": "urn:dicom:uid", "value": study_uid}, study)]
    findings = []
    for finding in reported.findings:
        said = shared | _finding(reported, finding, device, studies)
        findings.append(add("Observation", _ours("finding", result.reading, finding.name), said, ours=True))
    report = shared | _report(reported, pdf)
    report |= {"result": findings} if findings else {}  # R4 has no empty lists
    report |= {"imagingStudy": studies} if studies else {}
    add("DiagnosticReport", _ours("report", result.reading), report, ours=True)
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def _uuid(*names: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(("lungkit", "fhir", *names)))


def _ours(kind: str, reading: str, *names: str) -> Json:
    """The identifier of a resource of this reading."""
    return {"system": _URI, "value": f"urn:uuid:{_uuid(kind, reading, *names)}"}


def _search(identifier: Json) -> str:
    """The search for an identifier, as a query. A comma, | or $ in it would be understood (R4, 3.1.1.4.1)."""
    system, value = (
        quote("".join(f"\\{c}" if c in "\\,|$" else c for c in identifier[part]), safe=":/")
        for part in ("system", "value")
    )
    return f"identifier={system}|{value}"


# --- the resources -----------------------------------------------------------------------------------------------


def _patient(reported: Reported) -> Json:
    patient = reported.patient
    name = {"name": [{"text": plain(patient.name)}]} if plain(patient.name) else {}
    born = {"birthDate": f"{patient.birth_year:04}"} if patient.birth_year else {}
    return {"gender": patient.sex} | name | born


def _device(reported: Reported) -> Json:
    result = reported.result
    return {
        "status": "active",
        "manufacturer": provenance.MAKER,
        "deviceName": [{"name": plain(result.version_name), "type": "model-name"}],
        "type": _concept(codes.SOFTWARE),
        "version": [{"value": plain(result.version)}],
        "property": [{"type": {"text": codes.USE.meaning}, "valueCode": [{"text": reported.caution}]}],
        "note": [{"text": plain(f"{result.question} Learned from: {result.learned_from}")}],
    }


def _study(source: Source, taken: datetime | date | None) -> Json:
    first, modality = source.headers[0], _coding(codes.modality(source))
    instances = [
        {"uid": str(header.SOPInstanceUID), "sopClass": {"system": _URI, "code": f"urn:oid:{header.SOPClassUID}"}}
        | _number(header.get("InstanceNumber"))
        for header in source.headers
    ]
    series = {"uid": str(first.SeriesInstanceUID), "modality": modality, "instance": instances}
    accession = {"type": {"coding": [{"system": f"{_TERMINOLOGY}/v2-0203", "code": "ACSN"}]}}
    return {
        "identifier": [accession | {"value": str(first.AccessionNumber)}] if first.AccessionNumber else [],
        "status": "available",
        "modality": [modality],
        "series": [series | _number(first.get("SeriesNumber"))],
    } | ({"started": _time(taken)} if taken else {})


def _shared(reported: Reported) -> Json:
    """What the report and its findings both say."""
    asserted = ["AIAST", "CLINAST"] if reported.review else ["AIAST"]
    security = [{"system": f"{_TERMINOLOGY}/v3-ObservationValue", "code": c, "display": _ASSERTED[c]} for c in asserted]
    return {
        "meta": {"security": security},
        "status": reported.status,
        "issued": _time(reported.issued),
    } | ({"effectiveDateTime": _time(reported.taken)} if reported.taken else {})


def _finding(reported: Reported, finding: Finding, device: Json, studies: list[Json]) -> Json:
    result = reported.result
    notes = [reported.caution, *([result.reason] if result.uncertain else [])]
    notes += [f"{check.name}: {'passed' if check.passed else 'failed'}. {check.words}" for check in result.checks]
    made: Json = {
        "category": [_concept_of("observation-category", "imaging", "Imaging")],
        "code": _concept(finding.code, finding.name),
        "valueCodeableConcept": _concept(codes.PRESENCES[finding.presence]),
        "bodySite": _concept(codes.LUNG),
        "device": device,
        "note": [{"text": plain(note)} for note in notes],
    }
    if finding.presence == "equivocal":
        made["interpretation"] = [_concept_of("v3-ObservationInterpretation", "IND", "Indeterminate")]
    if finding.probability is not None:
        quantity = {"value": round(finding.probability, 6), "system": "http://unitsofmeasure.org", "code": "1"}
        made["component"] = [{"code": _concept(codes.PROBABILITY), "valueQuantity": quantity}]
    if reported.review:
        made["performer"] = [_person(reported.review.reviewer)]
    return made | ({"derivedFrom": studies} if studies else {})


def _report(reported: Reported, pdf: bytes) -> Json:
    said = [reported.caution, *reported.conclusion]
    present = [finding for finding in reported.findings if finding.presence == "present" and not reported.withdrawn_at]
    made: Json = {
        "text": {"status": "generated", "div": _narrative(said)},
        "category": [_concept_of("v2-0074", "RAD", "Radiology")],
        "code": _concept(reported.procedure),
        "conclusion": "\n".join(said),
    }
    if len(present) == 1:
        made["conclusionCode"] = [_concept(present[0].code, present[0].name)]
    elif present:  # a range of grades: one of them, and it is not known which
        made["conclusionCode"] = [{"text": plain(reported.result.answer)}]
    if reported.review and plain(reported.review.finding) and not reported.withdrawn_at:
        made.setdefault("conclusionCode", []).append({"text": plain(reported.review.finding)})
    if reported.supersedes:  # by its identifier, because it may not have been sent to this server
        before = {"type": "DiagnosticReport", "identifier": _ours("report", reported.supersedes)}
        made["extension"] = [{"url": _REPLACES, "valueReference": before}]
    if reported.review:
        made["resultsInterpreter"] = [_person(reported.review.reviewer)]
    if pdf:
        data = base64.b64encode(pdf).decode()
        made["presentedForm"] = [{"contentType": "application/pdf", "language": "en", "data": data}]
    return made


# --- data types --------------------------------------------------------------------------------------------------


def _coding(code: CodedConcept) -> Json:
    return {"system": _SYSTEMS[code.scheme_designator], "code": code.value, "display": code.meaning}


def _concept(code: CodedConcept, text: str = "") -> Json:
    return {"coding": [_coding(code)]} | ({"text": plain(text)} if plain(text) else {})


def _concept_of(system: str, code: str, display: str) -> Json:
    """A concept of HL7's own terminology."""
    return {"coding": [{"system": f"{_TERMINOLOGY}/{system}", "code": code, "display": display}]}


def _person(name: str) -> Json:
    """A person of whom only the name is known: no resource, which would be another one in each hospital."""
    return {"type": "Practitioner", "display": plain(name)}


def _number(value: Any) -> Json:
    """FHIR has no negative number here, DICOM has."""
    return {"number": int(value)} if value is not None and int(value) >= 0 else {}


def _time(at: datetime | date) -> str:
    return at.isoformat(timespec="seconds") if isinstance(at, datetime) else at.isoformat()


def _narrative(lines: list[str]) -> str:
    """XHTML, whose characters are those of XML."""
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines).replace("\ufffe", "").replace("\uffff", "")
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{paragraphs}</div>'
