"""What is asked of a request before it is answered: a bounded body, a key, a rate, and fields that can be used."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lungkit import config
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.store import Store
from lungkit.errors import LungkitError
from lungkit.gateway.dicom import Door
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.problems import Refused
from lungkit.gateway.schemas import API, Fields
from lungkit.gateway.sending import Sender
from lungkit.gateway.worker import Worker
from lungkit.models import registry

BODY_SECONDS = 120.0  # for a whole body
STUDY_BYTES, STUDY_SECONDS = 4 * 2**30, 3600.0  # the same for studies, whose files are not kept in memory
PART_SECONDS = 15.0  # without a byte of it
FORM_BYTES = 64 * 1024  # that a form may have besides its file
MOST_UPLOADS = 8  # at the same time: each is in memory
IMAGES = ("application/dicom", "application/zip", "image/png", "image/jpeg", "image/tiff")
HEADERS = {b"x-content-type-options": b"nosniff", b"cache-control": b"no-store"}


class Gateway:
    """What all requests share."""

    def __init__(
        self, store: Store, pool: ModelPool, worker: Worker, sender: Sender, metrics: Metrics, door: Door | None = None
    ):
        self.store, self.pool, self.metrics = store, pool, metrics
        self.worker, self.sender, self.door = worker, sender, door
        self.limiter = Limiter()
        self.uploads = self.studies = 0


def gateway_of(request: Request) -> Gateway:
    """The gateway that answers a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


Shared = Annotated[Gateway, Depends(gateway_of)]


# --- every request


class Observed:
    """Counts and times each request, bounds its body, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sends(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS.items()]}
            await send(message)

        try:
            await self.app(scope, _bounded(receive, *_bounds(scope["path"])), sends)
        finally:
            route = getattr(scope.get("route"), "path", "none").removeprefix(API)
            self.metrics.request(scope["method"], route, status, time.perf_counter() - started)


def _bounds(path: str) -> tuple[int, float]:
    """The most bytes of a body, and the seconds that it may take."""
    if path.startswith(f"{API}/dicom-web/"):
        return STUDY_BYTES, STUDY_SECONDS
    return config.upload_bytes() + FORM_BYTES, BODY_SECONDS


def _bounded(receive: Receive, most: int, seconds: float) -> Receive:
    """`receive` that raises Refused for a body of more than `most` bytes, and for one that does not come."""
    total, complete, until = 0, False, time.monotonic() + seconds

    async def bounded() -> Message:
        nonlocal total, complete
        if complete:  # what follows is the end of the connection, which may take long
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, min(PART_SECONDS, until - time.monotonic())))
        except TimeoutError:
            detail = f"the body has to arrive in {seconds:g} s, and never to pause for {PART_SECONDS:g} s"
            raise Refused("too-slow", detail, {"Connection": "close"}) from None
        total += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if total > most:
            raise _too_large(most)
        return message

    return bounded


def _too_large(most: int = 0) -> Refused:
    detail = f"what is sent may have {(most or config.upload_bytes()) // 2**20} MiB at most"
    return Refused("too-large", detail, {"Connection": "close"})


# --- who asks


class Limiter:
    """So many requests a minute for each key, counted in this process; after a pause, that many at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # key's id: requests left, and when that was

    def take(self, key_id: str, per_minute: int) -> None:
        """Count a request. Raises Refused, with the seconds until the next one is answered."""
        with self._lock:
            at = time.monotonic()
            left, since = self._left.get(key_id, (float(per_minute), at))
            left = min(float(per_minute), left + (at - since) * per_minute / 60)
            self._left[key_id] = (left - 1 if left >= 1 else left, at)
        if left < 1:
            wait = max(1, math.ceil((1 - left) * 60 / per_minute))
            detail = f"this key allows {per_minute} requests a minute; try again in {wait} s"
            raise Refused("rate-limited", detail, {"Retry-After": str(wait)})


_bearer = HTTPBearer(auto_error=False, description="An API key, `lk_…`, that `lungkit key add` made")


def with_scope(*scopes: str) -> Callable[..., KeyAccess]:
    """A dependency: the access of the key that is given, which has one of these scopes."""

    def access(gateway: Shared, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> KeyAccess:
        of_key = KeyAccess(gateway.store, given.credentials if given else "", *scopes)
        gateway.limiter.take(*of_key.limits())
        return of_key

    return access


MayRead = Annotated[KeyAccess, Depends(with_scope("read", "admin"))]
MayPredict = Annotated[KeyAccess, Depends(with_scope("predict"))]
MayUse = Annotated[KeyAccess, Depends(with_scope("predict", "read", "admin"))]
MayAdminister = Annotated[KeyAccess, Depends(with_scope("admin"))]


def version_in_use(model: str) -> registry.Version:
    """The active version of a model. Raises ModelMissing, also for what cannot be a name, and ModelDamaged."""
    try:
        return registry.active(model)
    except (registry.ModelMissing, registry.ModelDamaged):
        raise
    except LungkitError as error:
        raise registry.ModelMissing(str(error)) from error


# --- an image that is sent


class Sent(NamedTuple):
    """A file, and what was said of it."""

    content: bytes
    fields: Fields


class _Form(MultiPartParser):
    @property
    def spool_max_size(self) -> int:  # type: ignore[override]
        """A patient's image is not written to a temporary file."""
        return config.upload_bytes() + FORM_BYTES


async def sent(request: Request, gateway: Gateway) -> Sent:
    """The file and the fields of a request to read an image. Raises Refused and RequestValidationError."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > config.upload_bytes() + FORM_BYTES:
        raise _too_large()
    if gateway.uploads >= MOST_UPLOADS:
        raise Refused("unavailable", f"{MOST_UPLOADS} files are arriving already; try again in a moment")
    gateway.uploads += 1
    try:
        return await _read(request)
    finally:
        gateway.uploads -= 1


async def _read(request: Request) -> Sent:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given = request.query_params.multi_items()
    if kind == "multipart/form-data":
        content, more = await _form(request)
        given = [*given, *more]
    elif kind in IMAGES:
        content = b"".join([part async for part in request.stream()])
    else:
        raise Refused("media-type", f"accepted are multipart/form-data, {', '.join(IMAGES)}")
    if len(content) > config.upload_bytes():
        raise _too_large()
    return Sent(content, _fields(given))


async def _form(request: Request) -> tuple[bytes, list[tuple[str, str]]]:
    try:
        form = await _Form(
            request.headers,
            request.stream(),
            max_files=1,
            max_fields=len(Fields.model_fields),
            max_part_size=FORM_BYTES,
        ).parse()
    except MultiPartException as error:
        raise Refused("bad-request", f"the form cannot be read: {error.message}") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refused("invalid", "the form has no file called 'file', or it ended before the file did")
        others = [(name, value) for name, value in form.multi_items() if value is not file]
        return await file.read(), [(name, value) for name, value in others if isinstance(value, str)]
    finally:
        await form.close()


def _fields(given: list[tuple[str, str]]) -> Fields:
    values: dict[str, Any] = dict(given)
    if len(values) < len(given):
        twice = next(name for name, _ in given if [other for other, _ in given].count(name) > 1)
        raise Refused("invalid", f"the field {twice[:40]!r} is there more than once")
    if values.get("birth_year") == "":
        del values["birth_year"]
    try:
        fields: Fields = Fields.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    return fields
