"""One image in, its result out: what the screens give, at once or as a job, and once however often it is sent."""

import io
import zipfile
from dataclasses import replace
from datetime import date

import numpy as np
import PIL.Image
import pypdf
import pytest

from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records import accounts
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.tables import OTHER_FINDING, Job, JobFile, Patient, Reading, Study
from lungkit.data import images
from lungkit.files import sha256
from lungkit.models import registry
from lungkit.models.card import About
from tests.clinic.rows import count, events
from tests.gateway.conftest import MODEL, PATIENT, problem


def test_a_result_is_what_the_predictor_says_of_the_same_file(gateway, slices):
    predictor = Predictor(registry.find(MODEL))
    for number, file in enumerate(slices):
        expected = predictor.read(images.read(file))
        answer = gateway.predict(file.read_bytes(), patient_number=f"T-{number}")
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["probabilities"] == pytest.approx(
            dict(zip(expected.classes, expected.probabilities, strict=True))
        )
        assert (result["label"], result["decision"]) == (expected.label, expected.decision)
        assert (result["model"], result["version"]) == (MODEL, expected.version)
        assert [check["passed"] for check in result["checks"]] == [check.passed for check in expected.checks]
        assert (result["kind"], result["units"], result["width"]) == ("CT", "HU", 128)
        assert result["sha256"] == sha256(file.read_bytes())
        assert result["milliseconds"] > 0
        assert result["rule"]["Operating point"]
        assert (result["reviewed"], result["review"]) == (False, None)
        assert "Invented" not in answer.text
        assert "T-" not in answer.text


def test_the_whole_body_can_be_the_image(gateway, slices, png):
    for content, kind in ((slices[0].read_bytes(), "application/dicom"), (png, "image/png")):
        query = PATIENT | {"patient_number": kind, "birth_year": 1970, "sex": "female"}
        answer = gateway.ask("POST", "/predictions", data=content, headers={"Content-Type": kind}, params=query)
        assert answer.status_code == 200, answer.text
    assert count(gateway.store, Patient) == 2


def test_without_waiting_there_is_a_job_and_then_its_result(idle, slices):
    answer = idle.predict(slices[0].read_bytes(), wait=0)
    assert answer.status_code == 202
    assert int(answer.headers["Retry-After"]) >= 1
    path = answer.headers["Location"].removeprefix("/api/v1")
    assert answer.json() == idle.ask("GET", path).json()
    assert (answer.json()["state"], answer.json()["result"]) == ("queued", None)
    problem(idle.ask("GET", path.replace("jobs", "results")), 404, "not-found")
    idle.worker.read(answer.json()["id"])
    job = idle.ask("GET", path).json()
    assert (job["state"], job["tries"]) == ("done", 1)
    result = idle.ask("GET", job["result"].removeprefix("/api/v1"))
    assert result.json()["reading_id"] == job["id"]


def test_a_waiting_request_gets_the_result_as_soon_as_it_is_there(gateway, slices):
    assert gateway.predict(slices[0].read_bytes(), wait=20).elapsed.total_seconds() < 10


def test_heat_map_and_report_are_those_of_the_case(gateway, slices):
    reading_id = gateway.predict(slices[0].read_bytes()).json()["reading_id"]
    doctor = doctor_of(gateway)
    case = doctor.case(reading_id)
    for query, name in (({}, case.label), *(({"class": name}, name) for name in case.classes)):
        answer = gateway.ask("GET", f"/results/{reading_id}/heat.png", params=query)
        assert answer.headers["Content-Type"] == "image/png"
        pixels = np.asarray(PIL.Image.open(io.BytesIO(answer.content)))
        assert np.array_equal(pixels, np.rint(255 * case.heat[case.classes.index(name)]))
    refused = problem(gateway.ask("GET", f"/results/{reading_id}/heat.png", params={"class": "none"}), 422, "invalid")
    assert case.classes[0] in refused["detail"]
    report = gateway.ask("GET", f"/results/{reading_id}/report.pdf")
    assert report.headers["Content-Type"] == "application/pdf"
    text = "".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(report.content)).pages)
    assert "Anna Invented" in text
    assert reading_id in text
    doctor.review(reading_id, case.label)
    result = gateway.ask("GET", f"/results/{reading_id}").json()
    assert (result["reviewed"], result["review"]["agrees"], result["review"]["label"]) == (True, True, case.label)
    doctor.review(reading_id, "", "no name here", OTHER_FINDING, "Anna Invented has a broken rib")
    review = gateway.ask("GET", f"/results/{reading_id}").json()["review"]
    at = review.pop("at")
    assert at and review == {"kind": "another finding", "agrees": None, "label": "", "answer_shown": True}


@pytest.fixture
def for_adults(gateway, monkeypatch) -> int:
    """The model in use is for adults; the year of birth of a child."""
    predictor = gateway.pool.get(MODEL)
    monkeypatch.setattr(predictor, "card", replace(predictor.card, about=About(ages=(18, None))))
    return date.today().year - 3


def doctor_of(gateway) -> Records:
    with gateway.store.write() as db:
        password = accounts.add_user(db, "anna", "Anna Doctor", "doctor")
    return Records(accounts.Access(gateway.store, accounts.sign_in(gateway.store, "anna", password, "192.0.2.1")))


def test_a_refused_result_says_why_and_has_no_label_no_probability_and_no_heat_map(gateway, for_adults, slices):
    result = gateway.predict(slices[0].read_bytes(), birth_year=for_adults).json()
    assert (result["refusal"], result["label"], result["probabilities"]) == ("Not for this patient", None, {})
    assert result["decision"] == "uncertain: review"
    (age,) = [check for check in result["checks"] if check["name"] == "age"]
    words = "the patient is 3 years old; this model learned from patients of 18 years and more"
    assert (age["passed"], age["words"]) == (False, words)
    reading_id = result["reading_id"]
    for query in ({}, {"class": "Normal"}):
        none = problem(gateway.ask("GET", f"/results/{reading_id}/heat.png", params=query), 404, "not-found")
        assert "Not for this patient" in none["detail"]
    bundle = gateway.ask("GET", f"/results/{reading_id}/fhir").json()
    assert "Observation" not in {entry["resource"]["resourceType"] for entry in bundle["entry"]}
    doctor = doctor_of(gateway)
    case = doctor.case(reading_id)
    doctor.review(reading_id, case.label)
    review = gateway.ask("GET", f"/results/{reading_id}").json()["review"]
    assert (review["label"], review["agrees"]) == (case.label, None), "agreement would tell the model's label"


def test_a_refused_series_has_no_label_and_no_probability(gateway, for_adults, chest):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(chest.iterdir()):
            archive.write(file, file.name)
    result = gateway.predict(packed.getvalue(), birth_year=for_adults, wait=30).json()
    assert (result["refusal"], result["label"], result["probabilities"]) == ("Not for this patient", None, {})
    bundle = gateway.ask("GET", f"/results/{result['reading_id']}/fhir").json()
    resources = [entry["resource"] for entry in bundle["entry"]]
    (report,) = [one for one in resources if one["resourceType"] == "DiagnosticReport"]
    assert "the patient is 3 years old" in report["conclusion"] and "result" not in report


def test_a_result_that_is_not_refused_has_no_refusal(gateway, slices):
    result = gateway.predict(slices[0].read_bytes()).json()
    assert result["refusal"] is None and result["label"] in result["probabilities"]


def test_a_withdrawn_result_says_so_without_the_reason(gateway, slices):
    result = gateway.predict(slices[0].read_bytes()).json()
    assert result["withdrawn"] is False
    doctor_of(gateway).withdraw(result["reading_id"], "Anna Invented was mixed up")
    answer = gateway.ask("GET", f"/results/{result['reading_id']}")
    assert answer.json() == result | {"withdrawn": True}


def test_the_models_in_use_are_listed_with_their_cards(gateway):
    (listed,) = gateway.ask("GET", "/models").json()
    card = registry.active(MODEL).card
    assert (listed["name"], listed["version"], listed["classes"]) == (MODEL, card.version, list(card.classes))
    assert listed["synthetic"] is True
    shown = gateway.ask("GET", f"/models/{MODEL}").json()
    assert shown["card"]["metrics"].keys() == card.to_dict()["metrics"].keys()
    assert MODEL in problem(gateway.ask("GET", "/models/none"), 404, "not-found")["detail"]


# --- sent more than once


def test_the_same_request_again_gives_the_same_answer_and_another_is_refused(gateway, slices):
    content, headers = slices[0].read_bytes(), {"Idempotency-Key": "one"}
    first = gateway.predict(content, headers=headers)
    again = gateway.predict(content, headers=headers)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert [count(gateway.store, table) for table in (Job, Study, Reading)] == [1, 1, 1]
    problem(gateway.predict(slices[1].read_bytes(), headers=headers), 422, "idempotency-key-reused")
    problem(gateway.predict(content, sex="female", headers=headers), 422, "idempotency-key-reused")
    assert count(gateway.store, Job) == 1


def test_a_request_whose_job_waits_is_not_done_again(idle, slices):
    content, headers = slices[0].read_bytes(), {"Idempotency-Key": "one"}
    first = idle.predict(content, wait=0, headers=headers)
    refused = problem(idle.predict(content, wait=0, headers=headers), 409, "job-state")
    assert refused["job"] == first.headers["Location"]
    assert count(idle.store, Job) == 1


# --- refused, and nothing stored


def _nothing_stored(gateway) -> None:
    assert [count(gateway.store, table) for table in (Job, JobFile, Patient, Study, Reading)] == [0] * 5
    assert not events(gateway.store, "case.save")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"patient_number": None}, "patient_number"),
        ({"patient_number": ""}, "patient_number"),
        ({"patient_number": "x" * 65}, "patient_number"),
        ({"patient_name": "x" * 201}, "patient_name"),
        ({"birth_year": "1066"}, "birth_year"),
        ({"birth_year": "next"}, "birth_year"),
        ({"sex": "unsure"}, "sex"),
        ({"priority": "page"}, "priority"),
        ({"wait": "31"}, "wait"),
        ({"wait": "nan"}, "wait"),
        ({"modell": "typing error"}, "modell"),
    ],
)
def test_a_field_that_is_not_accepted_is_named(gateway, png, changes, field):
    refused = problem(gateway.predict(png, **changes), 422, "invalid")
    assert [each["field"] for each in refused["fields"]] == [field]
    _nothing_stored(gateway)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"model": "none"}, "model-missing", MODEL),
        ({"model": "../ct-infection"}, "model-missing", "cannot name a model"),
        ({"model": "ct-infection@v1"}, "model-missing", "cannot name a model"),
        ({"patient_name": ""}, "invalid", "a name is needed"),
        ({"patient_number": "\u200b"}, "invalid", "patient number is empty"),
        ({"birth_year": "2999"}, "invalid", "accepted are 1900 to"),
    ],
)
def test_what_the_records_or_the_registry_refuse_is_refused_in_their_words(gateway, png, changes, kind, said):
    assert said in problem(gateway.predict(png, **changes), 422, kind)["detail"]
    _nothing_stored(gateway)


def test_a_field_in_the_query_and_in_the_form_is_refused(gateway, png):
    answer = gateway.ask("POST", "/predictions?sex=male", files={"file": png}, data=PATIENT | {"sex": "female"})
    assert "more than once" in problem(answer, 422, "invalid")["detail"]
    _nothing_stored(gateway)


def test_an_image_of_another_patient_with_that_number_is_refused(gateway, slices):
    assert gateway.predict(slices[0].read_bytes()).status_code == 200
    refused = problem(gateway.predict(slices[1].read_bytes(), patient_name="Bert Invented"), 409, "patient-differs")
    assert "Anna" not in refused["detail"]
    assert gateway.predict(slices[1].read_bytes(), patient_name=None).status_code == 200
    assert [count(gateway.store, table) for table in (Patient, Study)] == [1, 2]


def test_results_are_kept_on_postgresql_as_well(start_gateway, postgresql_url, slices):
    from lungkit.clinic.records import maintenance
    from lungkit.clinic.records.store import Store

    store = Store(postgresql_url)
    maintenance.upgrade(store)
    gateway = start_gateway(store)
    assert gateway.predict(slices[0].read_bytes()).status_code == 200
    answer = gateway.predict(slices[1].read_bytes(), wait=0)
    assert answer.status_code in (200, 202)
    gateway.stop()
    store.close()
