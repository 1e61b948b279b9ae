"""POST /api/v1/predictions: one image or series in, its result or its job out."""

import asyncio
import time
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Header, Request
from fastapi.responses import Response

from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.jobs import JobRow, Jobs
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.patients import StatedPatient
from lungkit.data import images
from lungkit.gateway.problems import Refused
from lungkit.gateway.requests import IMAGES, Gateway, MayPredict, Sent, Shared, sent, version_in_use
from lungkit.gateway.schemas import API, Fields, Job, Result
from lungkit.gateway.worker import is_series, only_series

router = APIRouter(tags=["predictions"])
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25  # s between looks at a job
_decoders = CapacityLimiter(2)  # images that are looked at, at the same time

_FIELDS = Fields.model_json_schema()
_PROPERTIES: dict[str, Any] = _FIELDS["properties"]
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", *_FIELDS["required"]],
                "properties": {"file": {"type": "string", "format": "binary"}, **_PROPERTIES},
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGES},
    },
}
_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": schema.get("description", "")}
    for name, schema in _PROPERTIES.items()
]


@router.post(
    "/predictions",
    response_model=Result,
    responses={
        200: {"description": "The result"},
        202: {"model": Job, "description": "Not read yet: Location names the job, Retry-After when to ask"},
    },
    openapi_extra={"requestBody": _BODY, "parameters": _QUERY},
    summary="Read an image, or a series of CT slices",
)
async def predict(
    request: Request,
    gateway: Shared,
    access: MayPredict,
    idempotency_key: Annotated[
        str, Header(max_length=200, pattern="^[!-~]*$", description="Your own name for this request: it is done once")
    ] = "",
) -> Response:
    """The image is a form's `file`, or the whole body; then the fields are in the query.

    A zip file with the slices of one CT series is read as one. A file that cannot be read is refused at once, and
    nothing of it is stored.
    """
    given = await sent(request, gateway)
    await to_thread.run_sync(_check, given, limiter=_decoders)
    job = await to_thread.run_sync(_submit, gateway, access, given, idempotency_key)
    job = await _ended(access, job, given.fields.wait)
    if job.state == "done":
        case = await to_thread.run_sync(Records(access).case, job.id)
        return _json(Result.of(case), 200, {"Content-Location": f"{API}/results/{job.id}"})
    path = f"{API}/jobs/{job.id}"
    if job.ended:
        raise Refused("job-state", f"the job is {job.state}: {job.reason}", job=path)
    return _json(Job.of(job), 202, {"Location": path, "Retry-After": "1"})


def _json(answer: Result | Job, status: int, headers: dict[str, str]) -> Response:
    return Response(answer.model_dump_json(), status, headers, "application/json")


def _check(given: Sent) -> None:
    """Raises ImageRefused, in the reader's own words, before anything is stored."""
    if is_series(given.content):
        only_series([given.content])
    else:
        images.read(given.content, "the image")


def _submit(gateway: Gateway, access: KeyAccess, given: Sent, idempotency_key: str) -> JobRow:
    fields = given.fields
    patient = StatedPatient(fields.patient_number, fields.patient_name, fields.birth_year, fields.sex)
    model = fields.model or gateway.pool.default()
    version_in_use(model)
    job, new = Jobs(access).submit(given.content, model, patient, fields.priority, idempotency_key)
    if new:
        gateway.worker.put(job.id, job.priority)
    return job


async def _ended(access: KeyAccess, job: JobRow, seconds: float) -> JobRow:
    """The job when it has ended, or as it is after so many seconds."""
    began = time.monotonic()
    while not job.ended and (left := began + seconds - time.monotonic()) > 0:
        pause = (seconds - left) / 20
        await asyncio.sleep(min(left, max(_SHORTEST_PAUSE, min(pause, _LONGEST_PAUSE))))
        job = await to_thread.run_sync(Jobs(access).job, job.id)
    return job
