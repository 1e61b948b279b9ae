"""POST /api/v1/dicom-web/studies: DICOM files over the web (STOW-RS, PS3.18, 10.5), which become jobs as C-STORE's do.

A body goes to the inbox while it arrives, part by part; it is never whole in memory. Each part that was not taken is in
the answer, also one whose UIDs cannot be read.
"""

import json
import logging
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lungkit.clinic.records.accounts import Forbidden
from lungkit.clinic.records.keys import KeyAccess, KeyRefused
from lungkit.clinic.records.received import MOST_FILES
from lungkit.clinic.records.tables import PROGRAM
from lungkit.gateway import inbox
from lungkit.gateway.inbox import Incoming, NotTaken, Taken
from lungkit.gateway.problems import KINDS, Refused
from lungkit.gateway.requests import MOST_UPLOADS, STUDY_BYTES, Gateway, MayPredict, Shared

router = APIRouter(prefix="/dicom-web", tags=["dicom-web"])
MEDIA_TYPE = "application/dicom+json"
LONGEST_BOUNDARY = 200  # RFC 2046 allows 70; Orthanc's have 73
_DICOM, _RELATED = "application/dicom", "multipart/related"
_ACCEPTED = f'accepted are {_RELATED}; type="{_DICOM}"; boundary=…, and {_DICOM}'
_RETRY_SECONDS = "60"
_log = logging.getLogger(__name__)
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_JSON: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "object"}}}}
_DESCRIBED: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: _JSON | {"description": "Every file was taken"},
        202: _JSON | {"description": "Some files were taken; the others are named with the reason"},
        409: _JSON | {"description": "No file was taken"},
        **dict.fromkeys((400, 408, 413, 503), _JSON | {"description": "What was taken before"}),
    },
    "openapi_extra": {"requestBody": {"required": True, "content": {_RELATED: _BINARY, _DICOM: _BINARY}}},
}


@router.post("/studies", summary="Store DICOM files", **_DESCRIBED)
async def store_files(request: Request, gateway: Shared, access: MayPredict) -> Response:
    """Files of any number of studies. A study is read a quiet time after its last file, by the rules of routing."""
    return await _store(request, gateway, access, "")


@router.post("/studies/{study_uid}", summary="Store DICOM files of one study", **_DESCRIBED)
async def store_files_of_study(
    request: Request, gateway: Shared, access: MayPredict, study_uid: str = Path(min_length=1, max_length=64)
) -> Response:
    """As above; files of other studies are not taken."""
    return await _store(request, gateway, access, study_uid)


async def _store(request: Request, gateway: Gateway, access: KeyAccess, study_uid: str) -> Response:
    boundary = _boundary(request.headers.get("content-type", ""))
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > STUDY_BYTES:
        detail = f"a body may have {STUDY_BYTES >> 30} GiB at most; send the study in parts"
        raise Refused("too-large", detail, {"Connection": "close"})
    if gateway.studies >= MOST_UPLOADS:
        raise Refused("unavailable", f"{MOST_UPLOADS} requests send files already; try again in a moment")
    gateway.studies += 1  # apart from single images: a study may take an hour
    upload, refused = _Upload(gateway, access, study_uid, boundary), None
    try:
        if not await to_thread.run_sync(inbox.has_room):
            raise Refused("unavailable", inbox.FULL, {"Retry-After": _RETRY_SECONDS})
        async for content in request.stream():
            await to_thread.run_sync(upload.write, content)
        await to_thread.run_sync(upload.end)
    except Refused as error:
        if not upload.taken:
            raise
        refused = error
    finally:
        gateway.studies -= 1
        upload.close()
    return upload.answer(refused)


def _boundary(content_type: str) -> bytes | None:
    """The boundary between parts; None where the body is one file. Raises Refused."""
    kind, options = parse_options_header(content_type)
    if kind == _DICOM.encode():
        return None
    if kind != _RELATED.encode() or options.get(b"type", b"").lower() != _DICOM.encode():
        raise Refused("media-type", _ACCEPTED)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise Refused("bad-request", f"the boundary has to have 1 to {LONGEST_BOUNDARY} characters; {_ACCEPTED}")
    return boundary


class _Upload:
    """A body that arrives: its parts become files in the inbox. One thread at a time may call."""

    def __init__(self, gateway: Gateway, access: KeyAccess, study_uid: str, boundary: bytes | None):
        self.taken: list[Taken] = []
        self.failed: list[NotTaken] = []
        self._gateway, self._access, self._study_uid = gateway, access, study_uid
        self._file: Incoming | None = None
        self._kind, self._header, self._value, self._ended = "", b"", b"", False
        self._parser: MultipartParser | None = None
        if boundary is None:
            self._begin()
            self._open()
            return
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._begin_header,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._add,
                "on_part_end": self._finish,
                "on_end": self._end,
            },
        )

    def write(self, content: bytes) -> None:
        """Take the next bytes of the body. Raises Refused where it cannot be understood."""
        if self._parser is None:
            self._add(content, 0, len(content))
            return
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise Refused("bad-request", f"the body is not what its Content-Type says: {error}") from error

    def end(self) -> None:
        """The body is complete. Raises Refused if it was cut off, or if nothing was in it."""
        if self._parser is None:
            if self._file is not None and not self._file.bytes:
                raise Refused("bad-request", f"the body is empty; {_ACCEPTED}")
            self._finish()
        elif not self._ended:
            raise Refused("bad-request", "the body ends before its last boundary")
        if not (self.taken or self.failed):
            raise Refused("bad-request", f"there is no file in the body; {_ACCEPTED}")

    def close(self) -> None:
        """Remove a file that did not become complete."""
        if self._file is not None:
            self._file.close()

    # --- what the parser calls

    def _begin(self) -> None:
        if len(self.taken) + len(self.failed) >= MOST_FILES:
            raise Refused("too-large", f"a request may have at most {MOST_FILES:,} files", {"Connection": "close"})
        self._kind, self._file = _DICOM, None

    def _begin_header(self) -> None:
        self._header = self._value = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-type":
            self._kind = parse_options_header(self._value)[0].decode("latin-1")

    def _open(self) -> None:
        self._file = Incoming() if self._kind == _DICOM else None

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])

    def _finish(self) -> None:
        file, self._file = self._file, None
        try:
            if file is None:
                raise NotTaken(inbox.CANNOT, f"a part is {self._kind[:40]!r}; accepted is {_DICOM}")
            with self._access.reads(PROGRAM) as (_, actor):
                user_id, key_id = actor.user_id, actor.session_id
            taken = inbox.take(self._gateway.store, user_id, "", file, study_uid=self._study_uid, key_id=key_id)
            self.taken.append(taken)
            self._gateway.metrics.instance("web", "again" if taken.again else "taken")
        except (KeyRefused, Forbidden) as refused:
            self._fail(NotTaken(inbox.NOT_ALLOWED, str(refused)))
        except NotTaken as refused:
            self._fail(refused)
        except Exception:
            _log.exception("a file")
            self._fail(NotTaken(inbox.PROCESSING, "an error of the program"))

    def _fail(self, refused: NotTaken) -> None:
        self.failed.append(refused)
        self._gateway.metrics.instance("web", "refused")

    def _end(self) -> None:
        self._ended = True

    # --- the answer

    def answer(self, refused: Refused | None) -> Response:
        """What was taken and what was not. refused: why the rest of the body was not read."""
        if refused:
            self.failed.append(NotTaken(inbox.CANNOT, str(refused)))
        body: dict[str, Any] = {}
        if self.taken:
            body["00081199"] = _sequence([_named(one.class_uid, one.instance_uid) for one in self.taken])
        if self.failed:
            reasons = [{"00081197": {"vr": "US", "Value": [one.status]}} for one in self.failed]
            named = [_named(one.class_uid, one.instance_uid) for one in self.failed]
            body["00081198"] = _sequence([names | reason for names, reason in zip(named, reasons, strict=True)])
        status = KINDS[refused.kind].status if refused else self._status()
        headers = dict(refused.headers) if refused else {"Retry-After": _RETRY_SECONDS} if status == 503 else {}
        if self.failed:
            words = "; ".join(dict.fromkeys(str(one) for one in self.failed))
            headers["Warning"] = (
                '299 lungkit "' + words.encode("ascii", "replace").decode().replace('"', "'")[:400] + '"'
            )
        return Response(json.dumps(body), status, headers, MEDIA_TYPE)

    def _status(self) -> int:
        if not self.failed:
            return 200
        if self.taken:
            return 202
        return 503 if all(one.status == inbox.RESOURCES for one in self.failed) else 409


def _named(class_uid: str, instance_uid: str) -> dict[str, Any]:
    """The UIDs of a file, as far as they are known."""
    uids = {"00081150": class_uid, "00081155": instance_uid}
    return {tag: {"vr": "UI", "Value": [one]} for tag, one in uids.items() if one}


def _sequence(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": items}
