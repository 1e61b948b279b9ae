"""The client in one file: what it sends, what it repeats, and what it raises."""

import ast
from pathlib import Path

import pytest
import requests

from lungkit.clinic.records.tables import Job
from lungkit.gateway import client
from lungkit.gateway.client import Client, GatewayError
from tests.clinic.rows import count
from tests.gateway.conftest import MODEL


@pytest.fixture
def program(gateway) -> Client:
    return Client(gateway.url + "/", gateway.key)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    return pauses


def test_the_client_needs_nothing_but_requests():
    tree = ast.parse(Path(client.__file__).read_text())
    imported = {node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"time", "uuid", "pathlib", "typing", "requests"}


def test_an_image_is_read_with_its_heat_map_and_report(program, slices):
    result = program.read(slices[0], "T-1", patient_name="Anna Invented", sex="female")
    assert result["model"] == MODEL
    assert result == program.result(result["reading_id"])
    assert program.heat(result["reading_id"]).startswith(b"\x89PNG")
    assert program.report(result["reading_id"]).startswith(b"%PDF")
    assert program.heat(result["reading_id"], next(iter(result["probabilities"]))).startswith(b"\x89PNG")
    assert [model["name"] for model in program.models()] == [MODEL]


def test_a_job_is_sent_and_waited_for(program, gateway, slices, monkeypatch):
    monkeypatch.undo()
    job = program.submit(slices[0].read_bytes(), "T-1", patient_name="Anna Invented")
    assert job["state"] in ("queued", "running", "done")
    assert program.wait(job["id"], 20)["reading_id"] == job["id"]


def test_a_job_that_was_cancelled_or_takes_too_long_is_an_error(idle, slices, monkeypatch):
    program = Client(idle.url, idle.key)
    job = program.submit(slices[0], "T-1", patient_name="Anna Invented")
    with pytest.raises(TimeoutError, match="still queued after 0 s"):
        program.wait(job["id"], 0)
    idle.ask("DELETE", f"/jobs/{job['id']}")
    with pytest.raises(GatewayError, match="cancelled"):
        program.wait(job["id"])


def test_a_refusal_is_raised_with_its_problem(program, gateway):
    with pytest.raises(GatewayError, match="not an image") as refused:
        program.submit(b"no image", "T-1", patient_name="Anna Invented")
    assert (refused.value.status, refused.value.problem["type"]) == (422, "urn:lungkit:problem:image-refused")


def test_an_answer_that_was_lost_does_not_make_a_second_job(idle, slices, monkeypatch):
    program, request, lost = Client(idle.url, idle.key), requests.Session.request, []

    def loses_the_first_answer(*arguments, **more):
        answer = request(*arguments, **more)
        if not lost:
            lost.append(answer)
            raise requests.ConnectionError
        return answer

    monkeypatch.setattr(requests.Session, "request", loses_the_first_answer)
    job = program.submit(slices[0], "T-1", patient_name="Anna Invented")
    assert job["id"] == lost[0].json()["id"]
    assert count(idle.store, Job) == 1


def test_too_many_requests_are_repeated_after_the_time_that_the_gateway_names(gateway, no_pauses):
    program = Client(gateway.url, gateway.make_key("read", name="slow", rate=1))
    program.models()
    with pytest.raises(GatewayError, match="1 requests a minute"):
        program.models()
    assert len(no_pauses) == 4
    assert all(1 <= pause <= 30 for pause in no_pauses)
