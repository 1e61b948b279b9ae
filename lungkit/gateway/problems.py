"""Errors as RFC 9457 has them: one place decides which status an error of lungkit has."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lungkit.clinic.predictor import NoGraph
from lungkit.clinic.records.accounts import Forbidden
from lungkit.clinic.records.jobs import JobInProgress, JobMissing, PayloadDiffers
from lungkit.clinic.records.keys import KeyRefused
from lungkit.clinic.records.patients import PatientDiffers, RecordMissing, RecordRefused
from lungkit.clinic.records.store import StoreError
from lungkit.data.images import ImageRefused
from lungkit.errors import LungkitError
from lungkit.gateway.schemas import API, Problem
from lungkit.models.registry import ModelDamaged, ModelMissing

MEDIA_TYPE = "application/problem+json"


class Refused(LungkitError):
    """A request that cannot be answered. more: further keys of the problem; headers: of the answer."""

    def __init__(self, kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any):
        super().__init__(detail)
        self.kind, self.headers, self.more = kind, dict(headers or {}), more


class _Kind(NamedTuple):
    status: int
    title: str


KINDS = {
    "bad-request": _Kind(400, "The request cannot be understood"),
    "key-refused": _Kind(401, "No valid API key"),
    "scope-missing": _Kind(403, "The API key does not allow this"),
    "not-found": _Kind(404, "Not there"),
    "method-not-allowed": _Kind(405, "This method is not for this address"),
    "too-slow": _Kind(408, "The body did not arrive in time"),
    "patient-differs": _Kind(409, "Another patient has this number"),
    "job-state": _Kind(409, "The job's state does not allow this"),
    "too-large": _Kind(413, "The body is too large"),
    "media-type": _Kind(415, "This type of body is not read"),
    "image-refused": _Kind(422, "The image cannot be read"),
    "invalid": _Kind(422, "A field is missing or not accepted"),
    "idempotency-key-reused": _Kind(422, "The idempotency key belongs to another request"),
    "model-missing": _Kind(422, "There is no such model"),
    "rate-limited": _Kind(429, "Too many requests"),
    "program-error": _Kind(500, "An error of the program"),
    "unavailable": _Kind(503, "The gateway cannot do this now"),
}

# The first class that fits counts.
_KIND_OF: list[tuple[type[Exception], str]] = [
    (KeyRefused, "key-refused"),
    (Forbidden, "scope-missing"),
    (JobMissing, "not-found"),
    (RecordMissing, "not-found"),
    (PatientDiffers, "patient-differs"),
    (JobInProgress, "job-state"),
    (PayloadDiffers, "idempotency-key-reused"),
    (RecordRefused, "invalid"),
    (ImageRefused, "image-refused"),
    (ModelMissing, "model-missing"),
    (StoreError, "unavailable"),
    (ModelDamaged, "unavailable"),
    (NoGraph, "unavailable"),
]
_BY_STATUS = {kind.status: name for name, kind in reversed(KINDS.items())}
_RETRY_SECONDS = "5"


def answer(kind: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    """The response for a problem."""
    status, title = KINDS[kind]
    headers = dict(headers or {})
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers.setdefault("Retry-After", _RETRY_SECONDS)
    problem = Problem(type=f"urn:lungkit:problem:{kind}", title=title, status=status, detail=detail, **more)
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    async def of_lungkit(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, Refused):
            return answer(error.kind, str(error), error.headers, **error.more)
        kind = next((name for of, name in _KIND_OF if isinstance(error, of)), "program-error")
        job = {"job": f"{API}/jobs/{error.job_id}"} if isinstance(error, JobInProgress) else {}
        return answer(kind, str(error), {"Retry-After": "1"} if job else None, **job)

    async def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _BY_STATUS.get(error.status_code, "bad-request" if error.status_code < 500 else "program-error")
        return answer(
            kind, KINDS[kind].title if error.status_code != 404 else "there is no such address", error.headers
        )

    async def of_fields(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid(error.errors())

    async def of_program(_: Request, error: Exception) -> JSONResponse:
        # Answered outside of all middleware, which adds these headers to other answers.
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return answer("program-error", f"{type(error).__name__}; the gateway's log says more", headers)

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
        LungkitError: of_lungkit,
        HTTPException: of_http,
        RequestValidationError: of_fields,
        Exception: of_program,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def invalid(errors: Any) -> JSONResponse:
    """The answer for pydantic's errors; what was sent is not repeated."""
    fields = [{"field": ".".join(map(str, error["loc"])), "message": error["msg"]} for error in errors]
    detail = "; ".join(f"{each['field']}: {each['message']}" for each in fields)
    return answer("invalid", detail, fields=fields)
