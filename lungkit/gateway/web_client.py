"""Sends objects to web servers: STOW-RS of DICOM, and transactions of FHIR."""

import http.client
import io
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from lungkit.clinic.web.supervisor import is_loopback
from lungkit.gateway import fhir
from lungkit.gateway.addresses import CONNECT_SECONDS, DEADLINE, SILENCE_SECONDS, NotSent, tls_context, token

_MOST_ANSWER = 2 * 2**20  # bytes
_LATER = (401, 403, 407, 408, 425, 429)  # an expired token, or a busy server: a later try may succeed
_RETRIED = {0x0110}  # failure reasons of STOW that a later try may not have; and A7xx
_REASONS = {
    0x0110: "it could not process the object",
    0x0117: "the object's UID is not accepted",
    0x0122: "it does not take objects of this class",
    0x0124: "we are not authorised to store",
    0x0272: "it does not take this transfer syntax",
}


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def stow(address: Mapping[str, Any], instance_uid: str, file: bytes) -> str:
    """Store a DICOM file; returns what is worth noting of the answer, often nothing. Raises NotSent."""
    boundary = f"lungkit-{uuid.uuid5(uuid.NAMESPACE_OID, instance_uid)}"
    body = b"".join(
        (f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(), file, f"\r\n--{boundary}--\r\n".encode())
    )
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    answer = _asked("POST", address, "/studies", headers, body)
    if answer.status not in (200, 202, 409):
        raise _refusal(answer)
    return _stored(answer, instance_uid)


def transact(address: Mapping[str, Any], bundle: bytes) -> str:
    """Have a FHIR server carry out a bundle. Raises NotSent."""
    headers = {"Content-Type": fhir.MEDIA_TYPE, "Accept": fhir.MEDIA_TYPE}
    answer = _asked("POST", address, "", headers, bundle)
    if answer.status == 412:
        raise NotSent("the server has a resource of this reading twice (412); it has to be mended there", final=True)
    if answer.status not in (200, 201):
        raise _refusal(answer)
    said = _json(answer)
    entries = said.get("entry") if isinstance(said, dict) and said.get("resourceType") == "Bundle" else None
    statuses = [_at(entry, "response", "status") for entry in entries] if isinstance(entries, list) else []
    if not statuses or not all(isinstance(status, str) and status.startswith("2") for status in statuses):
        raise NotSent("the answer does not say that every resource was stored")
    return ""


def probe(address: Mapping[str, Any], kind: str) -> str:
    """Ask a server whether it is there, and lets us in, for nothing that names a patient. Raises NotSent."""
    path = "/studies?StudyInstanceUID=2.25.0" if kind == "stow" else "/metadata"
    accept = "application/dicom+json" if kind == "stow" else fhir.MEDIA_TYPE
    answer = _asked("GET", address, path, {"Accept": accept}, b"")
    if answer.status not in (200, 204):
        raise _refusal(answer)
    return f"it answers {answer.status}"


def post_json(address: Mapping[str, Any], content: bytes) -> None:
    """Send JSON to an address; what is answered besides the status does not matter. Raises NotSent."""
    parts = urlsplit(str(address["url"]))
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"  # exactly as it was entered
    server = {**address, "url": f"{parts.scheme}://{parts.netloc}"}
    answer = _asked("POST", server, target, {"Content-Type": "application/json"}, content)
    if not 200 <= answer.status < 300:
        raise _refusal(answer)


# --- what an answer means


def _stored(answer: Answer, instance_uid: str) -> str:
    """What a STOW answer says of our object. Raises NotSent unless it says that it is stored."""
    said = _json(answer)
    failed, stored = (_items(said, tag) for tag in ("00081198", "00081199"))
    if failed or answer.status == 409:
        reason = _number(failed[0], "00081197") if failed else 0
        words = _REASONS.get(reason, f"reason {reason:04X}H")
        raise NotSent(f"the object was not stored: {words}", final=reason not in _RETRIED and reason >> 8 != 0xA7)
    ours = [item for item in stored if _value(item, "00081155") == instance_uid]
    if not ours:
        raise NotSent(f"the answer ({answer.status}) does not say that the object was stored")
    warning = _number(ours[0], "00081196")
    return f"stored with the warning {warning:04X}H" if warning else ""


def _refusal(answer: Answer) -> NotSent:
    if 300 <= answer.status < 400:
        words = f"it answers with a redirect ({answer.status}), which is not followed: enter the address it leads to"
        return NotSent(words, final=True)
    known = {
        401: "the token is missing or not valid",
        403: "we may not store there",
        404: "there is no such address",
        413: "the object is too large for it",
    }
    words = known.get(answer.status, http.client.responses.get(answer.status, "unknown status"))
    final = 400 <= answer.status < 500 and answer.status not in _LATER
    return NotSent(f"it answers {answer.status}: {words}", final, _retry_after(answer))


def _retry_after(answer: Answer) -> timedelta:
    """The time that a server asks for, in seconds or as a date."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return timedelta(seconds=min(int(text[:9]), 10**7))
    with suppress(ValueError, TypeError, OverflowError):
        at = parsedate_to_datetime(text)
        return max(timedelta(), at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC))
    return timedelta()


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return None


def _items(said: Any, tag: str) -> list[Any]:
    """The items of a sequence in DICOM JSON, of one data set or a list of them."""
    sets = said if isinstance(said, list) else [said]
    found = [_at(one, tag, "Value") for one in sets]
    return [item for items in found if isinstance(items, list) for item in items]


def _value(item: Any, tag: str) -> Any:
    values = _at(item, tag, "Value")
    return values[0] if isinstance(values, list) and values else None


def _number(item: Any, tag: str) -> int:
    value = _value(item, tag)
    return value if type(value) is int and 0 <= value < 2**16 else 0


def _at(given: Any, *names: str) -> Any:
    for name in names:
        given = given.get(name) if isinstance(given, dict) else None
    return given


# --- one request


def _asked(method: str, address: Mapping[str, Any], path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """One request and its answer, bounded in time and size; a redirect is an answer. Raises NotSent."""
    parts = urlsplit(str(address["url"]))
    host, secured = parts.hostname or "", parts.scheme == "https"
    sent = {"User-Agent": "lungkit", "Content-Length": str(len(body)), **headers}
    if secret := token(address):
        if not (secured or is_loopback(host)):
            raise NotSent("a token is only sent over https; enter an https address")
        sent["Authorization"] = f"Bearer {secret}"
    try:
        connection = (
            http.client.HTTPSConnection(host, parts.port, timeout=CONNECT_SECONDS, context=tls_context(address))
            if secured
            else http.client.HTTPConnection(host, parts.port, timeout=CONNECT_SECONDS)
        )
    except (ValueError, http.client.HTTPException) as error:
        raise NotSent("its address cannot be understood", final=True) from error
    late = threading.Timer(DEADLINE, _cut, [connection])
    late.daemon = True
    late.start()
    try:
        connection.connect()
        connection.sock.settimeout(SILENCE_SECONDS)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it had all
            connection.request(method, f"{parts.path.rstrip('/')}{path}" or "/", io.BytesIO(body), sent)
        answer = connection.getresponse()
        content = answer.read(_MOST_ANSWER + 1)
        if len(content) > _MOST_ANSWER:
            raise NotSent(f"its answer has more than {_MOST_ANSWER // 2**20} MiB")
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)
    except ssl.SSLCertVerificationError as error:
        raise NotSent(f"its certificate is not accepted: {error.verify_message}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise NotSent(f"it cannot be reached, or does not answer as a web server: {words}") from error
    finally:
        late.cancel()
        connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection that another thread waits for, under its TLS."""
    line: socket.socket | None = connection.sock
    if line is not None:
        with suppress(OSError):
            socket.socket.shutdown(line, socket.SHUT_RDWR)
