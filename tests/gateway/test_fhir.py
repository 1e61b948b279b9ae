"""A reading as FHIR R4: only what the standard allows, whatever names and headers say, and once however often sent."""

import base64
import json
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from lungkit import config
from lungkit.clinic.records import accounts
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import PatientRow
from lungkit.clinic.records.tables import NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE
from lungkit.errors import LungkitError
from lungkit.gateway import fhir, hl7
from lungkit.gateway.client import Client
from lungkit.gateway.objects import Review
from lungkit.gateway.reported import MOVED, Reported, reported_of
from tests.clinic.rows import events
from tests.gateway.conftest import problem
from tests.gateway.test_objects import ADULT, CLASSES, HOSTILE, REFUSED, REVIEW, radiograph, refused, result, source_of

PATIENT = PatientRow("id", "T-1", "Anna Invented", 1956, "female")
AGREES = replace(REVIEW, agrees=True, label="Pneumonia")
SYSTEM = "http://terminology.hl7.org/CodeSystem"

# Required value sets of R4 (4.0.1), by the path of the element, with the page that lists the codes. fhir.resources does
# not check them.
REQUIRED = {
    # hl7.org/fhir/R4/valueset-bundle-type.html
    "Bundle.type": "document message transaction transaction-response batch batch-response history searchset "
    "collection",
    # hl7.org/fhir/R4/valueset-http-verb.html
    "Bundle.entry.request.method": "GET HEAD POST PUT DELETE PATCH",
    # hl7.org/fhir/R4/valueset-diagnostic-report-status.html
    "DiagnosticReport.status": "registered partial preliminary final amended corrected appended cancelled "
    "entered-in-error unknown",
    # hl7.org/fhir/R4/valueset-observation-status.html
    "Observation.status": "registered preliminary final amended corrected cancelled entered-in-error unknown",
    # hl7.org/fhir/R4/valueset-imagingstudy-status.html
    "ImagingStudy.status": "registered available cancelled entered-in-error unknown",
    # hl7.org/fhir/R4/valueset-device-status.html
    "Device.status": "active inactive entered-in-error unknown",
    # hl7.org/fhir/R4/valueset-device-nametype.html
    "Device.deviceName.type": "udi-label-name user-friendly-name patient-reported-name manufacturer-name "
    "model-name other",
    # hl7.org/fhir/R4/valueset-administrative-gender.html
    "Patient.gender": "male female other unknown",
    # hl7.org/fhir/R4/valueset-narrative-status.html
    "DiagnosticReport.text.status": "generated extensions additional empty",
    # hl7.org/fhir/R4/valueset-resource-types.html, those that are sent
    "Observation.performer.type": "Practitioner PractitionerRole Organization CareTeam Patient RelatedPerson",
    "DiagnosticReport.resultsInterpreter.type": "Practitioner PractitionerRole Organization CareTeam",
}
CODES = {  # of the code systems: what may be sent of each
    f"{SYSTEM}/observation-category": {"imaging"},  # hl7.org/fhir/R4/codesystem-observation-category.html
    f"{SYSTEM}/v2-0074": {"RAD"},  # hl7.org/fhir/R4/v2/0074
    f"{SYSTEM}/v2-0203": {"ACSN"},  # hl7.org/fhir/R4/v2/0203
    f"{SYSTEM}/v3-ObservationInterpretation": {"IND"},  # hl7.org/fhir/R4/v3/ObservationInterpretation
    f"{SYSTEM}/v3-ObservationValue": {"AIAST", "CLINAST"},  # terminology.hl7.org, ValueSet
    # v3-SecurityIntegrityProvenanceAssertedByObservationValue
    "http://unitsofmeasure.org": {"1"},
    "http://loinc.org": {"25045-6", "43468-8", "18748-4"},
}
# hl7.org/fhir/R4/datatypes.html
DATE_TIME = re.compile(
    r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01])(T([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]\d\d:\d\d))?)?)?"
)
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
TIMES = {"issued": INSTANT, "effectiveDateTime": DATE_TIME, "started": DATE_TIME, "birthDate": re.compile(r"\d{4}")}
TEXT = re.compile(r"[ \r\n\t\S]+")


KEYS = ("patient", "kind", "reviews")


def reported(**other) -> Reported:
    source = other.pop("source", None)
    facts = {"patient": PATIENT, "kind": "X-ray", "reviews": ()} | {k: v for k, v in other.items() if k in KEYS}
    said = {k: v for k, v in other.items() if k not in KEYS}
    of = source or source_of(radiograph("DX"))
    return Reported(result=result(of, **said), source=source, **facts)


KEYS = ("patient", "kind", "reviews")

# What docs/fhir.md shows.
EXAMPLE = reported(
    patient=PatientRow("id", "T-1", "Anna Invented", 1956, "female"),
    source=source_of(radiograph("DX", TimezoneOffsetFromUTC="+0100")),
    classes=("Normal", "Pneumonia"),
    probabilities=(0.068, 0.932),
    model="chest-xray-pneumonia",
    synthetic=False,
    checks=(),
)


def checked(bundle: dict) -> dict[str, list[dict]]:
    """The resources of a bundle by type; fails where R4 does not allow something."""
    bundle = json.loads(json.dumps(bundle, allow_nan=False))
    Bundle.model_validate(bundle)
    _walk("Bundle", {key: value for key, value in bundle.items() if key != "entry"})
    places = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len({*places}) == len(places)
    by_type = defaultdict(list)
    for entry in bundle["entry"]:
        resource = entry["resource"]
        assert "id" not in resource
        by_type[resource["resourceType"]].append(resource)
        _walk(resource["resourceType"], resource)
        _walk("Bundle.entry.request", entry["request"])
        assert not re.search(r"\s", str(entry["request"].get("ifNoneExist", "")) + entry["request"]["url"])
    assert {*re.findall(r'"reference": "(.*?)"', json.dumps(bundle))} <= {*places}
    return by_type


def _walk(path: str, value: object) -> None:
    if path in REQUIRED:
        assert value in REQUIRED[path].split(), path
    if isinstance(value, dict):
        assert value, path
        if value.get("system") in CODES and "code" in value:
            assert value["code"] in CODES[value["system"]], path
        for key, one in value.items():
            _walk(f"{path}.{key}", one)
    elif isinstance(value, list):
        assert value, f"{path}: R4 has no empty lists"
        for one in value:
            _walk(path, one)
    else:
        assert value is not None, path
        if isinstance(value, str):
            assert TEXT.fullmatch(value), path
            assert value.strip(), path
            assert not re.search(r"[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", value), path
        if form := TIMES.get(path.rpartition(".")[2]):
            assert form.fullmatch(value), (path, value)


class Server:
    """As much of a FHIR server as a transaction needs (R4, 3.1.0.11.2): conditional create and update by identifier."""

    def __init__(self):
        self.resources: dict[str, dict] = {}

    def post(self, bundle: dict) -> None:
        given = {}
        for entry in bundle["entry"]:
            request, kind = entry["request"], entry["resource"]["resourceType"]
            query = request.get("ifNoneExist") or request["url"].partition("?")[2]
            system, _, value = query.removeprefix("identifier=").partition("|")
            found = self.find(kind, unquote(system), re.sub(r"\\(.)", r"\1", unquote(value)))
            assert len(found) < 2, "412 Precondition Failed"
            given[entry["fullUrl"]] = found[0] if found else f"{kind}/{len(self.resources)}"
            if request["method"] == "PUT" or not found:
                self.resources[given[entry["fullUrl"]]] = entry["resource"]
        for place, resource in self.resources.items():
            text = json.dumps(resource)
            for temporary, real in given.items():
                text = text.replace(f'"reference": "{temporary}"', f'"reference": "{real}"')
            self.resources[place] = json.loads(text)

    def find(self, kind: str, system: str, value: str) -> list[str]:
        identifier = {"system": system, "value": value}
        return [p for p, r in self.resources.items() if r["resourceType"] == kind and identifier in r["identifier"]]

    def only(self, kind: str) -> dict:
        (found,) = [resource for resource in self.resources.values() if resource["resourceType"] == kind]
        return found


# --- what is said


def test_a_reading_is_a_preliminary_report_with_a_finding_for_each_class():
    made = checked(fhir.bundle(reported()))
    (report,), (device,), (patient,) = made["DiagnosticReport"], made["Device"], made["Patient"]
    assert {kind: len(all_) for kind, all_ in made.items()} == {
        "Patient": 1, "Device": 1, "Observation": len(CLASSES), "DiagnosticReport": 1,
    }  # fmt: skip
    assert report["status"] == "preliminary"
    assert report["issued"] == "2026-03-09T14:05:00+00:00"
    assert report["category"][0]["coding"][0]["code"] == "RAD"
    assert report["code"]["coding"][0] == {
        "system": "http://loinc.org", "code": "43468-8", "display": "XR unspecified body region",
    }  # fmt: skip
    assert report["conclusion"].startswith("Research use only.")
    assert "The model answers: Pneumonia. Probability 0.600." in report["conclusion"]
    assert [code["text"] for code in report["conclusionCode"]] == ["Pneumonia"]
    assert not {"resultsInterpreter", "imagingStudy", "effectiveDateTime", "presentedForm"} & report.keys()
    seen = {finding["code"]["text"]: finding for finding in made["Observation"]}
    assert {name: one["valueCodeableConcept"]["coding"][0]["code"] for name, one in seen.items()} == {
        "Pneumonia": "52101004", "Normal": "272519000", "COVID-19": "272519000", "Something new": "272519000",
    }  # fmt: skip
    assert seen["Pneumonia"]["code"]["coding"][0]["code"] == "233604007"
    assert seen["Something new"]["code"]["coding"][0]["system"] == "urn:lungkit:codes"
    value = seen["Normal"]["component"][0]["valueQuantity"]
    assert value == {"value": 0.123457, "system": "http://unitsofmeasure.org", "code": "1"}
    assert all("performer" not in one and "interpretation" not in one for one in seen.values())
    assert (device["version"], device["deviceName"][0]["name"]) == ([{"value": "v2"}], "ct-infection@v2")
    assert "udiCarrier" not in device
    assert patient["identifier"] == [{"system": fhir.PATIENT_NUMBERS, "value": "T-1"}]
    assert (patient["gender"], patient["birthDate"], patient["name"]) == ("female", "1956", [{"text": "Anna Invented"}])


def test_every_resource_that_says_something_of_a_patient_says_that_a_model_did_and_the_caution():
    for reviews in ((), (AGREES,)):
        made = checked(fhir.bundle(reported(reviews=reviews)))
        for resource in (*made["DiagnosticReport"], *made["Observation"]):
            codes = [one["code"] for one in resource["meta"]["security"]]
            assert codes == ["AIAST", "CLINAST"][: 1 + len(reviews)]
            said = resource["note"][0]["text"] if "note" in resource else resource["text"]["div"]
            assert "Research use only" in said
            assert "computer-made images" in said


def test_what_is_left_to_a_person_is_equivocal_with_the_reason_and_no_conclusion_code():
    made = checked(fhir.bundle(reported(uncertain=True, reason="Within the band of uncertainty.")))
    (report,) = made["DiagnosticReport"]
    assert "conclusionCode" not in report
    assert "Uncertain: a clinician has to decide" in report["conclusion"]
    for finding in made["Observation"]:
        assert finding["valueCodeableConcept"]["coding"][0]["code"] == "42425007"
        assert finding["interpretation"][0]["coding"][0]["code"] == "IND"
        assert {"text": "Within the band of uncertainty."} in finding["note"]


def test_a_range_of_grades_has_no_code_for_one_of_them():
    (report,) = checked(fhir.bundle(reported(named=("Pneumonia", "COVID-19"), answer="A to B")))["DiagnosticReport"]
    assert report["conclusionCode"] == [{"text": "A to B"}]


@pytest.mark.parametrize(
    ("reviews", "status", "present"),
    [
        ((AGREES,), "final", "Pneumonia"),
        ((REVIEW,), "amended", "COVID-19"),
        ((AGREES, REVIEW), "amended", "COVID-19"),
        ((REVIEW, AGREES), "amended", "Pneumonia"),  # what has been sent was changed
        ((replace(REVIEW, label="Tuberculosis"),), "amended", "Tuberculosis"),
        ((replace(REVIEW, label=""),), "amended", None),
    ],
)
def test_a_review_makes_it_final_or_amended_and_only_a_person_is_its_interpreter(reviews, status, present):
    made = checked(fhir.bundle(reported(reviews=reviews)))
    (report,) = made["DiagnosticReport"]
    assert {one["status"] for one in (report, *made["Observation"])} == {status}
    assert report["resultsInterpreter"] == [{"type": "Practitioner", "display": "Dr Anna Weber"}]
    assert report["issued"] == "2026-03-09T15:05:00+00:00"
    assert all(one["performer"] == report["resultsInterpreter"] for one in made["Observation"])
    seen = [one for one in made["Observation"] if one["valueCodeableConcept"]["coding"][0]["code"] == "52101004"]
    assert [one["code"]["text"] for one in seen] == ([present] if present else [])
    assert [one["text"] for one in report.get("conclusionCode", [])] == ([present] if present else [])
    assert "Practitioner" not in made
    if present == "Tuberculosis":
        assert "component" not in seen[0]  # the model gave no probability of it


def test_what_was_withdrawn_is_entered_in_error_whatever_was_said_before():
    at = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
    made = checked(fhir.bundle(replace(reported(reviews=(AGREES, REVIEW)), withdrawn_at=at)))
    (report,) = made["DiagnosticReport"]
    assert {one["status"] for one in (report, *made["Observation"])} == {"entered-in-error"}
    assert report["issued"] == "2026-03-10T08:00:00+00:00"
    assert report["conclusion"].split("\n")[1] == "A clinician has withdrawn this image. Do not use this result."
    assert "conclusionCode" not in report


@pytest.mark.parametrize(
    ("kind", "finding", "said"),
    [
        (NOT_ASSESSABLE, "", "was rejected. The clinician says: not assessable."),
        (WRONG_IMAGE, "", "was rejected. The clinician says: wrong image or region."),
        (OTHER_FINDING, "a broken rib", "was amended. The clinician says: another finding: a broken rib."),
    ],
)
def test_a_review_without_a_class_leaves_every_finding_indeterminate_and_says_why(kind, finding, said):
    review = replace(REVIEW, agrees=None, label="", kind=kind, finding=finding)
    made = checked(fhir.bundle(reported(reviews=(review,))))
    (report,) = made["DiagnosticReport"]
    assert report["status"] == "amended" and said in report["conclusion"]
    assert report.get("conclusionCode", []) == ([{"text": finding}] if finding else [])
    for one in made["Observation"]:
        assert one["valueCodeableConcept"]["coding"][0]["code"] == "42425007"
        assert one["interpretation"][0]["coding"][0]["code"] == "IND"


def test_a_known_study_is_referred_to_with_its_series_and_images():
    source = source_of(
        radiograph("DX", TimezoneOffsetFromUTC="-0330", InstanceNumber="3", SeriesNumber="-1"),
        radiograph("DX", TimezoneOffsetFromUTC="-0330", SOPInstanceUID="1.2.3.4.7"),
    )
    made = checked(fhir.bundle(reported(source=source, kind="image")))
    (study,), (report,) = made["ImagingStudy"], made["DiagnosticReport"]
    assert study["identifier"][0] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.3.4"}
    assert study["identifier"][1]["value"] == "X-99"
    assert study["started"] == report["effectiveDateTime"] == "2026-03-09T14:00:00-03:30"
    sop_class = {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.1.1"}
    (series,) = study["series"]
    assert (series["uid"], series["modality"]["code"]) == ("1.2.3.4.6", "DX")
    assert "number" not in series
    assert series["instance"] == [
        {"uid": "1.2.3.4.5", "sopClass": sop_class, "number": 3}, {"uid": "1.2.3.4.7", "sopClass": sop_class},
    ]  # fmt: skip
    assert report["code"]["coding"][0]["code"] == "43468-8"
    assert all(one["derivedFrom"] == report["imagingStudy"] for one in made["Observation"])


def test_without_a_zone_in_the_images_only_the_day_of_the_study_is_told():
    (study,) = checked(fhir.bundle(reported(source=source_of(radiograph("CR")))))["ImagingStudy"]
    assert study["started"] == "2026-03-09"
    (study,) = checked(fhir.bundle(reported(source=source_of(radiograph("CR", StudyDate="")))))["ImagingStudy"]
    assert "started" not in study


def test_times_have_the_zone_of_the_reading():
    at = datetime(2026, 3, 9, 23, 5, 1, 999, timezone(timedelta(hours=-5)))
    (report,) = checked(fhir.bundle(reported(read_at=at)))["DiagnosticReport"]
    assert report["issued"] == "2026-03-09T23:05:01-05:00"


def test_the_printed_report_is_sent_where_it_is_given():
    (report,) = checked(fhir.bundle(reported(), pdf=b"%PDF-1.7"))["DiagnosticReport"]
    (form,) = report["presentedForm"]
    assert (form["contentType"], base64.b64decode(form["data"])) == ("application/pdf", b"%PDF-1.7")


# --- sent again


def test_the_same_reading_gives_the_same_bundle_and_another_one_other_identifiers():
    source = source_of(radiograph("DX"))
    one, same, other = (
        json.dumps(fhir.bundle(reported(source=source, reading=reading))) for reading in ("r-1", "r-1", "r-2")
    )
    assert one == same

    def of_reading(text: str) -> set[str]:
        return {*re.findall(r'"value": "(urn:uuid:.*?)"', text)}

    assert len(of_reading(one)) == len(CLASSES) + 1
    assert not of_reading(one) & of_reading(other)


def test_sent_again_nothing_is_made_twice_and_a_review_replaces_what_was_sent():
    server, source = Server(), source_of(radiograph("DX"))
    server.post(fhir.bundle(reported(source=source)))
    first = dict(server.resources)
    server.post(fhir.bundle(reported(source=source)))
    assert server.resources == first
    server.post(fhir.bundle(reported(source=source, reviews=(REVIEW,))))
    assert server.resources.keys() == first.keys()
    report = server.only("DiagnosticReport")
    assert report["status"] == "amended"
    assert {server.resources[one["reference"]]["status"] for one in report["result"]} == {"amended"}
    assert server.resources[report["subject"]["reference"]]["resourceType"] == "Patient"
    server.post(fhir.bundle(reported(source=source, reading="another of the same study")))
    assert len(server.resources) == len(first) + len(CLASSES) + 1


def test_what_the_server_knows_of_patient_and_study_is_never_overwritten():
    server, system = Server(), "https://hospital.example/patients"
    known = {"resourceType": "Patient", "identifier": [{"system": system, "value": "T-1"}], "name": [{"family": "A"}]}
    study = {"resourceType": "ImagingStudy", "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3.4"}]}
    server.resources = {"Patient/known": known, "ImagingStudy/known": study}
    server.post(fhir.bundle(reported(source=source_of(radiograph("DX"))), patient_numbers=system))
    assert (server.only("Patient"), server.only("ImagingStudy")) == (known, study)
    report = server.only("DiagnosticReport")
    assert report["subject"] == {"reference": "Patient/known"}
    assert report["imagingStudy"] == [{"reference": "ImagingStudy/known"}]


# --- whatever it is given

ANY = st.text(st.characters(exclude_categories=()), max_size=30)
NUMBERS = st.text("T-1 ,|$\\&?=#%+/ü漢\u200d", min_size=1, max_size=64).map(lambda text: text.strip() or "x")


@settings(max_examples=60, deadline=None, database=None)
@given(name=ANY, reviewer=ANY, comment=ANY, reason=ANY, classes=st.text(max_size=20), checks=ANY)
def test_hostile_texts_stay_texts(name, reviewer, comment, reason, classes, checks):
    review = replace(REVIEW, reviewer=f"Dr {reviewer}", comment=comment)
    check = replace(result(source_of(radiograph("DX"))).checks[0], words=checks)
    names = ("Normal", classes if classes != "Normal" else "x")
    given = {"classes": names, "probabilities": (0.25, 0.75), "label": names[1], "named": (names[1],)}
    for reviews in ((), (review,)):
        about = reported(
            patient=replace(PATIENT, name=name),
            reviews=reviews,
            uncertain=True,
            reason=f"? {reason}",
            checks=(check,),
            **given,
        )
        (report,) = checked(fhir.bundle(about))["DiagnosticReport"]
        assert {one.tag.rpartition("}")[2] for one in ElementTree.fromstring(report["text"]["div"]).iter()} == {
            "div",
            "p",
        }


@settings(max_examples=60, deadline=None, database=None)
@given(number=NUMBERS)
def test_any_patient_number_is_found_again(number):
    number = " ".join(number.split())
    server = Server()
    for _ in range(2):
        server.post(fhir.bundle(reported(patient=replace(PATIENT, number=number))))
    assert server.only("Patient")["identifier"][0]["value"] == number


@pytest.mark.parametrize("number", ["", "T\r1", "T  1", "T\x001", "\ud800"])
def test_a_patient_number_is_never_changed_but_refused(number):
    with pytest.raises(LungkitError, match="number"):
        reported(patient=replace(PATIENT, number=number))


def test_a_class_with_a_backslash_is_one_text():
    given = {"classes": ("A\\B", "C"), "probabilities": (0.25, 0.75), "label": "C", "named": ("C",)}
    made = checked(fhir.bundle(reported(**given)))["Observation"]
    assert [one["code"]["text"] for one in made] == ["C", "A\\B"]


def test_hostile_headers_leave_a_valid_bundle():
    checked(fhir.bundle(reported(source=source_of(radiograph("DX", **HOSTILE)))))


def test_a_patient_of_whom_only_the_number_is_known_has_nothing_else():
    (patient,) = checked(fhir.bundle(reported(patient=PatientRow("id", "T-1", "", None, "unknown"))))["Patient"]
    assert patient.keys() == {"resourceType", "identifier", "gender"}


# --- a refused reading


def refused_reported(*reviews: Review) -> Reported:
    of = source_of(radiograph("DX"))
    return Reported(result=refused(of), patient=PATIENT, kind="X-ray", reviews=reviews, source=of)


def test_a_refused_reading_is_a_report_with_its_reason_and_without_a_finding():
    made = checked(fhir.bundle(refused_reported()))
    (report,) = made["DiagnosticReport"]
    assert "Observation" not in made and "result" not in report and "conclusionCode" not in report
    assert report["conclusion"].split("\n")[1:] == [f"{REFUSED}.", f"T{ADULT.words[1:]}."]
    assert not re.search("233604007|122157|Pneumonia|0[.]9", json.dumps(made))


def test_a_review_of_a_refused_reading_gives_what_the_person_sees():
    sees = replace(REVIEW, agrees=True, label="Pneumonia")
    made = checked(fhir.bundle(refused_reported(sees)))
    (report,), (finding,) = made["DiagnosticReport"], made["Observation"]
    assert (report["status"], finding["code"]["text"], "component" in finding) == ("final", "Pneumonia", False)
    assert "the model gave no answer. The clinician sees Pneumonia. Seen again" in report["conclusion"]
    assert refused_reported(sees, REVIEW).status == "amended"
    nothing = replace(REVIEW, agrees=None, label="", kind=NOT_ASSESSABLE)
    assert "Observation" not in checked(fhir.bundle(refused_reported(nothing)))


@pytest.mark.parametrize(("last", "there"), [("Pneumonia", "Absent"), ("", "Equivocal")])
def test_what_an_earlier_review_of_a_refused_reading_named_is_taken_back(last, there):
    server, normal = Server(), replace(REVIEW, agrees=None, label="Normal")
    kind = {} if last else {"kind": NOT_ASSESSABLE}
    later = replace(REVIEW, agrees=None, label=last, **kind, at=REVIEW.at + timedelta(hours=1))
    server.post(fhir.bundle(refused_reported(normal)))
    assert server.only("Observation")["valueCodeableConcept"]["coding"][0]["display"] == "Present"
    server.post(fhir.bundle(refused_reported(normal, later)))
    stored = {one["code"]["text"]: one for one in server.resources.values() if one["resourceType"] == "Observation"}
    assert stored["Normal"]["valueCodeableConcept"]["coding"][0]["display"] == there
    assert stored["Normal"]["status"] == "amended"
    gone = replace(refused_reported(normal, later), withdrawn_at=later.at)
    server.post(fhir.bundle(gone))
    stored = [one for one in server.resources.values() if one["resourceType"] == "Observation"]
    assert {one["status"] for one in stored} == {"entered-in-error"}


def test_of_a_moved_image_the_patient_before_keeps_nothing_that_counts():
    """Also if the model is not for the right patient: then no finding replaces what was told."""
    server, right = Server(), PatientRow("id-2", "T-2", "Other Person", 1931, "male")
    server.post(fhir.bundle(reported(reviews=(REVIEW,))))
    now = replace(refused_reported(REVIEW), patient=right)
    at = REVIEW.at + timedelta(hours=1)
    back = fhir.bundle(now.taken_back(PATIENT, at, CLASSES))
    (report,) = checked(back)["DiagnosticReport"]
    assert report["conclusion"].split("\n")[1:] == [MOVED] and "resultsInterpreter" not in report
    for gone in ("T-2", "Other Person", ADULT.words, REVIEW.comment, "component"):
        assert gone not in json.dumps(back)
    server.post(back)
    server.post(fhir.bundle(now))
    before, after = (server.find("Patient", fhir.PATIENT_NUMBERS, number)[0] for number in (PATIENT.number, "T-2"))
    assert server.only("DiagnosticReport")["subject"] == {"reference": after}
    stored = [one for one in server.resources.values() if one["resourceType"] == "Observation"]
    left = [one["status"] for one in stored if one["subject"] == {"reference": before}]
    assert set(left) == {"entered-in-error"} and len(left) == 3


# --- through the gateway


def test_the_gateway_gives_the_bundle_of_a_case_and_what_its_review_changes(gateway, slices):
    reading_id = gateway.predict(slices[0].read_bytes(), birth_year=1956, sex="female").json()["reading_id"]
    with gateway.store.write() as db:
        password = accounts.add_user(db, "anna", "Anna Doctor", "doctor")
    doctor = Records(accounts.Access(gateway.store, accounts.sign_in(gateway.store, "anna", password, "192.0.2.1")))
    case, server = doctor.case(reading_id), Server()
    study = checked(fhir.bundle(reported_of(case, None, source_of(slices[0].read_bytes()))))["ImagingStudy"]
    assert len(study) == 1

    def asked() -> dict:
        opened = len(events(gateway.store, "case.open"))
        answer = gateway.ask("GET", f"/results/{reading_id}/fhir")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/fhir+json"
        assert len(events(gateway.store, "case.open")) == opened + 1
        server.post(answer.json())
        return checked(answer.json())

    made = asked()
    (report,) = made["DiagnosticReport"]
    assert (report["status"], report["issued"]) == ("preliminary", case.read_at.isoformat(timespec="seconds"))
    assert report["code"]["coding"][0]["code"] == "25045-6"
    assert {one["code"]["text"]: one["component"][0]["valueQuantity"]["value"] for one in made["Observation"]} == {
        name: pytest.approx(value, abs=1e-6) for name, value in case.probabilities.items()
    }
    assert (made["Patient"][0]["name"], made["Patient"][0]["birthDate"]) == ([{"text": "Anna Invented"}], "1956")
    doctor.review(reading_id, case.label, "Seen")
    (report,) = asked()["DiagnosticReport"]
    assert (report["status"], report["resultsInterpreter"][0]["display"]) == ("final", "Anna Doctor")
    other = next(name for name in case.classes if name != case.label)
    doctor.review(reading_id, other)
    (report,) = asked()["DiagnosticReport"]
    assert (report["status"], report["conclusionCode"][0]["text"]) == ("amended", other)
    assert server.only("DiagnosticReport")["status"] == "amended"
    assert len(server.resources) == 4 + len(case.classes)  # patient, device, study and report besides
    assert checked(Client(gateway.url, gateway.key).fhir(reading_id))["DiagnosticReport"] == [report]


def test_a_case_whose_model_is_gone_can_still_be_told(gateway, slices):
    reading_id = gateway.predict(slices[0].read_bytes()).json()["reading_id"]
    shutil.rmtree(config.artifacts_dir() / "ct-infection")
    made = checked(gateway.ask("GET", f"/results/{reading_id}/fhir").json())
    assert "no longer in the registry" in made["Device"][0]["note"][0]["text"]


def test_errors_of_the_address_are_problems(gateway):
    problem(gateway.ask("GET", "/results/none/fhir"), 404, "not-found")
    problem(gateway.ask("GET", "/results/none/fhir", key=""), 401, "key-refused")
    predicts = gateway.make_key("predict", name="sender")
    problem(gateway.ask("GET", "/results/none/fhir", predicts), 403, "scope-missing")


def test_the_documentation_shows_what_is_sent():
    page = (Path(__file__).parents[2] / "docs" / "fhir.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.S)
    assert json.loads(shown) in fhir.bundle(EXAMPLE)["entry"]
    (shown,) = re.findall(r"```text\n(MSH.*?)```", page, re.S)
    assert shown.replace("\n", "\r").encode() == hl7.oru_r01(EXAMPLE)
