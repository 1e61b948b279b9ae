"""Keys at the door: which requests are answered, which are not, and what a program learns of others."""

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import keys
from lungkit.clinic.records.tables import ApiKey, Job, now
from lungkit.gateway.requests import Limiter, Refused
from tests.clinic.rows import count, events
from tests.gateway.conftest import PATIENT, problem

ID = "00000000-0000-4000-8000-000000000000"
# Every address that needs a key, and the scopes that open it.
DOORS = {
    ("POST", "/predictions"): {"predict"},
    ("POST", "/dicom-web/studies"): {"predict"},
    ("POST", "/dicom-web/studies/1.2"): {"predict"},
    ("GET", "/jobs"): {"read", "admin"},
    ("GET", f"/jobs/{ID}"): {"read", "admin"},
    ("DELETE", f"/jobs/{ID}"): {"read", "admin"},
    ("POST", f"/jobs/{ID}/again"): {"admin"},
    ("GET", f"/results/{ID}"): {"read", "admin"},
    ("GET", f"/results/{ID}/heat.png"): {"read", "admin"},
    ("GET", f"/results/{ID}/report.pdf"): {"read", "admin"},
    ("GET", f"/results/{ID}/fhir"): {"read", "admin"},
    ("GET", f"/results/{ID}/sr"): {"read", "admin"},
    ("GET", f"/results/{ID}/capture"): {"read", "admin"},
    ("GET", "/models"): {"predict", "read", "admin"},
    ("GET", "/models/none"): {"predict", "read", "admin"},
}


def test_every_address_that_needs_a_key_is_among_those_that_are_tested(gateway):
    described = gateway.ask("GET", "/openapi.json", key="").json()
    keyed = {
        (method.upper(), path.removeprefix("/api/v1").replace("{job_id}", ID).replace("{reading_id}", ID))
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    keyed = {(method, path.replace("{name}", "none").replace("{study_uid}", "1.2")) for method, path in keyed}
    assert keyed == set(DOORS)


def test_each_address_opens_for_its_scopes_and_for_no_other(gateway):
    made = {scope: gateway.make_key(scope, name=scope) for scope in ("predict", "read", "admin")}
    for (method, path), scopes in DOORS.items():
        for scope, key in made.items():
            status = gateway.ask(method, path, key).status_code
            assert (status != 403) == (scope in scopes), (method, path, scope, status)
        answer = gateway.ask(method, path, key="")
        problem(answer, 401, "key-refused")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_health_metrics_and_the_description_need_no_key(gateway):
    for path in ("//health/live", "//health/ready", "//metrics", "/openapi.json"):
        assert gateway.ask("GET", path, key="").status_code == 200


def test_a_wrong_key_is_refused_before_its_body_is_read(gateway, png):
    sent = gateway.predict(png, key="lk_000000000000_" + "A" * 43)
    problem(sent, 401, "key-refused")
    assert count(gateway.store, Job) == 0


def test_a_revoked_key_is_refused_from_the_next_request_on(gateway, png):
    key = gateway.make_key("predict", name="ris")
    assert gateway.ask("GET", "/models", key).status_code == 200
    with gateway.store.write() as db:
        keys.revoke_key(db, key)
    problem(gateway.ask("GET", "/models", key), 401, "key-refused")
    problem(gateway.predict(png, key), 401, "key-refused")


def test_an_expired_key_is_refused(gateway):
    with gateway.store.write() as db:
        db.execute(sa.update(ApiKey).values(expires_at=now()))
    problem(gateway.ask("GET", "/models"), 401, "key-refused")


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "lk_x", "Bearer " + "x" * 5000])
def test_what_is_no_key_is_refused(gateway, given):
    problem(gateway.ask("GET", "/models", key="", headers={"Authorization": given}), 401, "key-refused")


def test_a_key_with_a_limit_is_told_when_to_come_back_and_others_are_not_held_up(gateway):
    slow = gateway.make_key("read", name="slow", rate=3)
    assert [gateway.ask("GET", "/jobs", slow).status_code for _ in range(3)] == [200] * 3
    answer = gateway.ask("GET", "/jobs", slow)
    problem(answer, 429, "rate-limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert gateway.ask("GET", "/jobs").status_code == 200


def test_the_limit_lets_requests_through_at_its_rate(monkeypatch):
    at = [100.0]
    monkeypatch.setattr("lungkit.gateway.requests.time.monotonic", lambda: at[0])
    limiter = Limiter()

    def answered() -> int:
        number = 0
        while True:
            try:
                limiter.take("key", 60)
            except Refused:
                return number
            number += 1

    assert answered() == 60
    assert answered() == 0
    at[0] += 5
    assert answered() == 5
    at[0] += 3600
    assert answered() == 60


def test_a_program_cannot_see_or_change_what_another_sent(idle, slices):
    job_id = idle.predict(slices[0].read_bytes(), wait=0).json()["id"]
    other, admin = idle.make_key("read", name="ris"), idle.make_key("admin", name="ops")
    for method, path in (("GET", f"/jobs/{job_id}"), ("DELETE", f"/jobs/{job_id}")):
        problem(idle.ask(method, path, other), 404, "not-found")
    assert idle.ask("GET", "/jobs", other).json() == []
    assert [job["id"] for job in idle.ask("GET", "/jobs", admin).json()] == [job_id]
    idle.worker.read(job_id)
    for path in ("", "/heat.png", "/report.pdf", "/fhir"):
        problem(idle.ask("GET", f"/results/{job_id}{path}", other), 404, "not-found")
        assert idle.ask("GET", f"/results/{job_id}{path}", admin).status_code == 200


def test_jobs_are_cancelled_and_started_again_through_the_gateway(idle, slices):
    admin = idle.make_key("admin", name="ops")
    waiting, other = (idle.predict(slices[n].read_bytes(), wait=0).json()["id"] for n in (0, 1))
    assert idle.ask("DELETE", f"/jobs/{waiting}").json()["state"] == "cancelled"
    problem(idle.ask("POST", f"/jobs/{waiting}/again", admin), 409, "job-state")
    idle.worker.read(other)
    refused = problem(idle.ask("DELETE", f"/jobs/{other}"), 409, "job-state")
    assert refused["job"] == f"/api/v1/jobs/{other}"
    assert idle.ask("GET", "/jobs", params={"state": "cancelled"}).json()[0]["id"] == waiting
    problem(idle.ask("GET", "/jobs", params={"state": "none"}), 422, "invalid")


def test_what_programs_do_is_on_the_trail_without_a_name(gateway, slices):
    reading_id = gateway.predict(slices[0].read_bytes()).json()["reading_id"]
    gateway.ask("GET", f"/results/{reading_id}/report.pdf")
    gateway.ask("GET", "/models", key="lk_no")
    trail = events(gateway.store)
    assert [event.action for event in trail] == ["key.add", "case.save", "case.open", "case.open", "key.refused"]
    assert trail[1].user_id == trail[2].user_id
    for text in PATIENT.values():
        assert text not in str([(event.object, event.detail) for event in trail])


def test_an_error_of_the_program_tells_nothing_and_is_not_kept_by_a_browser(gateway, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("Anna Invented")

    monkeypatch.setattr("lungkit.gateway.models.registry.models", broken)
    answer = gateway.ask("GET", "/models")
    assert "Anna" not in problem(answer, 500, "program-error")["detail"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
