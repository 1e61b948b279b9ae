"""What OpenAPI says of the gateway is what it does, for whatever is sent."""

import contextlib
import re
from collections import Counter

import hypothesis
import pydicom
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lungkit.gateway.problems import KINDS

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 8  # of each operation, and of each kind


@schemathesis.serializer(
    "application/dicom", "application/zip", "multipart/related", "image/png", "image/jpeg", "image/tiff"
)
def as_it_is(_, content):
    """The body of a file."""
    return content if isinstance(content, bytes) else str(content).encode()


@pytest.fixture
def operations(gateway) -> dict[str, APIOperation]:
    """Every operation that the gateway describes: "GET /health/live", …"""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/api/v1/openapi.json")
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


@pytest.mark.parametrize("kind", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_is_sent_is_answered_as_described_and_never_by_an_error_of_the_program(gateway, operations, kind):
    key = gateway.make_key("predict", "read", "admin", name="fuzz")
    answers = Counter()
    for operation in operations.values():

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=kind))
        def send(case):
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {key}"}
            answers[case.operation.label, case.call_and_validate(checks=CHECKS).status_code] += 1

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # without parameters nothing can be wrong
            send()
    print(f"{kind.value}: {answers.total()} answers: {dict(answers)}")
    assert len(operations) == 18
    assert answers.total() > 60
    assert max(status for _, status in answers) < 500


def test_every_good_request_is_answered_as_described(gateway, operations, slices):
    key, content = gateway.make_key("predict", "read", "admin", name="ops"), slices[0].read_bytes()
    form = {"file": content, "patient_number": "T-1", "patient_name": "Anna Invented"}
    job = gateway.predict(slices[1].read_bytes(), key).json()["reading_id"]
    waits = gateway.predict(slices[2].read_bytes(), key, wait=0).json()["id"]
    given = {"job_id": job, "reading_id": job, "name": "ct-infection", "study_uid": "1.2"}
    study = pydicom.dcmread(slices[0]).StudyInstanceUID
    file = {"body": content, "media_type": "application/dicom"}
    special = {
        "POST /api/v1/dicom-web/studies": (file, 200),
        "POST /api/v1/dicom-web/studies/{study_uid}": (file | {"path_parameters": {"study_uid": study}}, 200),
        "POST /api/v1/predictions": ({"body": form, "media_type": "multipart/form-data"}, 200),
        "DELETE /api/v1/jobs/{job_id}": ({"path_parameters": {"job_id": waits}}, None),
        "GET /api/v1/results/{reading_id}/sr": ({"path_parameters": {"reading_id": job}}, None),  # 404 without a source
        "GET /api/v1/results/{reading_id}/capture": ({"path_parameters": {"reading_id": job}}, None),
        "POST /api/v1/jobs/{job_id}/again": ({"path_parameters": {"job_id": job}}, 409),
    }
    for label, operation in operations.items():
        names = re.findall(r"{(\w+)}", label)
        request, status = special.get(label, ({"path_parameters": {name: given[name] for name in names}}, 200))
        case = operation.Case(headers={"Authorization": f"Bearer {key}"}, **request)
        answer = case.call_and_validate(checks=CHECKS)
        assert status in (None, answer.status_code), (label, answer.text)
    query = {"patient_number": "T-1", "wait": 0}
    case = operations["POST /api/v1/predictions"].Case(
        headers={"Authorization": f"Bearer {key}"}, query=query, body=content, media_type="application/dicom"
    )
    assert case.call_and_validate(checks=CHECKS).status_code == 202


def test_the_description_loads_nothing_from_elsewhere_and_every_error_is_a_problem(gateway):
    described = gateway.ask("GET", "/openapi.json", key="").json()
    assert described["openapi"].startswith("3.1")
    assert "http" not in str(described["paths"])
    for path in described["paths"].values():
        for operation in path.values():
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            assert errors.keys() >= {"404", "405", "429", "500", "503"}
            kinds = [set(answer["content"]) - {"application/dicom+json"} for answer in errors.values()]
            assert all(kind == {"application/problem+json"} for kind in kinds)
    fields = described["components"]["schemas"]["Result"]["properties"]
    assert "0 to 1" in fields["probabilities"]["description"]
    assert "From file to answer" in fields["milliseconds"]["description"]


def test_every_kind_of_problem_has_a_status_and_words_of_its_own():
    assert len({kind.title for kind in KINDS.values()}) == len(KINDS)
    assert all(400 <= kind.status < 600 for kind in KINDS.values())


# --- health and metrics


def test_a_gateway_that_cannot_read_says_everything_that_is_missing(gateway, monkeypatch, tmp_path):
    assert gateway.ask("GET", "//health/ready", key="").json() == {"status": "ok"}
    (tmp_path / "artifacts" / "ct-infection" / "active.json").unlink()
    monkeypatch.setattr("lungkit.gateway.state.LEAST_FREE", 2**60)
    gateway.worker.stop()
    monkeypatch.setattr("lungkit.gateway.state.jobs.counts", _broken)
    answer = gateway.ask("GET", "//health/ready", key="")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    reasons = answer.json()["reasons"]
    for words in ("records are busy", "no active version", "no worker", "free on the disk"):
        assert any(words in reason for reason in reasons), reasons
    assert gateway.ask("GET", "//health/live", key="").status_code == 200


def _broken(*_):
    from lungkit.clinic.records.store import StoreError

    raise StoreError("the records are busy")


def test_metrics_count_by_route_and_never_by_what_was_asked_for(gateway, slices):
    gateway.predict(slices[0].read_bytes())
    job_id = gateway.ask("GET", "/jobs").json()[0]["id"]
    gateway.ask("GET", f"/jobs/{job_id}")
    for number in range(5):
        gateway.ask("GET", f"//nothing/{number}")
        gateway.ask(f"METHOD{number}", "/jobs")
    shown = gateway.ask("GET", "//metrics", key="").text
    for line in (
        'lungkit_gateway_requests_total{method="POST",route="/predictions",status="200"} 1.0',
        'lungkit_gateway_requests_total{method="GET",route="/jobs/{job_id}",status="200"} 1.0',
        'lungkit_gateway_requests_total{method="GET",route="none",status="404"} 5.0',
        'lungkit_gateway_readings_total{outcome="done"} 1.0',
        'lungkit_gateway_jobs{state="done"} 1.0',
    ):
        assert line in shown, shown
    assert not any(text in shown for text in ("Invented", "T-1", job_id, "METHOD", "nothing"))
