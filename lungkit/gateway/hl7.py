"""A reading as an HL7 v2.5.1 message (ORU^R01), and how it is sent and acknowledged (MLLP)."""

import hashlib
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import date, datetime

from lungkit.errors import LungkitError
from lungkit.gateway.objects import codes, provenance
from lungkit.gateway.objects.codes import CodedConcept
from lungkit.gateway.reported import Reported, plain

_ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}  # chapter 2, 2.7
# Of OBR-25 (table 0123), and of OBX-11 (table 0085), which alone has a code for what was sent wrongly.
_OF_RESULT = {"preliminary": "P", "final": "F", "amended": "C", "entered-in-error": "C"}
_OF_OBSERVATION = _OF_RESULT | {"entered-in-error": "W"}
_SEX = {"female": "F", "male": "M", "other": "O", "unknown": "U"}  # table 0001
_START, _END = b"\x0b", b"\x1c\r"
_MOST_BYTES = 64 * 1024  # of an acknowledgement


class NotAcknowledged(LungkitError):
    """No acknowledgement came that can be used: it is not known whether the message has arrived. Send it again."""


@dataclass(frozen=True)
class Acknowledgement:
    """What a receiver says of a message."""

    code: str  # AA accepted; AE an error, which may be gone later; AR rejected, as it will be again
    text: str  # for people; it may name a patient

    @property
    def accepted(self) -> bool:
        """Whether the receiver has the message."""
        return self.code == "AA"


def oru_r01(
    reported: Reported,
    sender: tuple[str, str] = ("lungkit", ""),
    receiver: tuple[str, str] = ("", ""),
    authority: str = "",
) -> bytes:
    """The message, without its frame. The same content gives the same bytes, with the same control id (MSH-10).

    sender, receiver: application and facility. authority: whose numbers the patients have (PID-3).
    """
    segments = [_pid(reported, authority), _obr(reported), *_observations(reported)]
    control = hashlib.sha256("\r".join(segments).encode()).hexdigest()[:20]
    set_of = "ASCII" if "".join((*segments, *sender, *receiver)).isascii() else "UNICODE UTF-8"  # table 0211
    parties = dict(enumerate((_escaped(name) for name in (*sender, *receiver)), 2))
    fields = {1: "^~\\&", 6: _time(reported.issued), 8: "ORU^R01^ORU_R01", 9: control, 10: "P", 11: "2.5.1", 17: set_of}
    return "".join(f"{segment}\r" for segment in (_segment("MSH", fields | parties), *segments)).encode()


def _pid(reported: Reported, authority: str) -> str:
    patient = reported.patient
    number = f"{_escaped(patient.number)}^^^{_escaped(authority)}^PI"
    # As a family name of no certain kind: how a name divides is not known.
    name = f"{_escaped(patient.name)}^^^^^^U"
    return _segment("PID", {1: "1", 3: number, 5: name, 7: str(patient.birth_year or ""), 8: _SEX[patient.sex]})


def _obr(reported: Reported) -> str:
    fields = {
        1: "1",
        3: f"{_escaped(reported.result.reading)}^{provenance.MAKER}",
        4: _code(reported.procedure),
        7: _time(reported.taken or reported.result.read_at),  # required in a result
        18: _escaped(str(reported.source.headers[0].AccessionNumber)) if reported.source else "",
        22: _time(reported.issued),
        24: "RAD",  # table 0074
        25: _OF_RESULT[reported.status],
        32: f"&{_escaped(reported.review.reviewer)}" if reported.review else "",
    }
    return _segment("OBR", fields)


def _observations(reported: Reported) -> list[str]:
    """The permitted use first, then what was decided and why, then each class with its probability."""
    rows = [{2: "TX", 3: _code(codes.USE), 5: _escaped(reported.caution)}]
    rows += [{2: "TX", 3: _code(codes.COMMENT), 5: _escaped(text)} for text in reported.conclusion]
    for number, finding in enumerate(reported.findings, 1):
        rows.append({2: "CE", 3: _code(finding.code), 4: f"{number}", 5: _code(codes.PRESENCES[finding.presence])})
        if finding.probability is not None:
            value = {5: f"{finding.probability:.6f}", 6: _code(codes.NO_UNITS)}
            rows.append({2: "NM", 3: _code(codes.PROBABILITY), 4: f"{number}"} | value)
    model = f"{_escaped(reported.result.version_name)}^{provenance.MAKER}"
    every = {11: _OF_OBSERVATION[reported.status], 14: _time(reported.taken) if reported.taken else "", 18: model}
    return [_segment("OBX", {1: f"{number}"} | row | every) for number, row in enumerate(rows, 1)]


def _segment(name: str, fields: dict[int, str]) -> str:
    return "|".join((name, *(fields.get(number, "") for number in range(1, max(fields) + 1)))).rstrip("|")


def _code(code: CodedConcept) -> str:
    return "^".join(_escaped(part) for part in (code.value, code.meaning, code.scheme_designator))


def _escaped(text: str) -> str:
    """Text of a field: in one line, as a carriage return would end the segment."""
    return "".join(_ESCAPES.get(letter, letter) for letter in plain(text))


def _time(at: datetime | date) -> str:
    return f"{at:%Y%m%d%H%M%S%z}" if isinstance(at, datetime) else f"{at:%Y%m%d}"


# --- sending -----------------------------------------------------------------------------------------------------


def mllp_send(
    host: str, port: int, message: bytes, timeout: float = 30, tls: ssl.SSLContext | None = None
) -> Acknowledgement:
    """Sends a message and waits for its acknowledgement, `timeout` seconds in all. Raises NotAcknowledged."""
    until = time.monotonic() + timeout
    try:
        with socket.create_connection((host, port), timeout) as bare, _secured(bare, host, tls) as line:
            line.settimeout(_left(until))
            line.sendall(_START + message + _END)
            answer = _received(line, until)
    except OSError as error:
        raise NotAcknowledged(
            f"{host}:{port} did not acknowledge the message: {error or type(error).__name__}"
        ) from error
    return _acknowledgement(answer, message.split(b"|", 10)[9].decode())


def _secured(line: socket.socket, host: str, tls: ssl.SSLContext | None) -> socket.socket:
    return tls.wrap_socket(line, server_hostname=host) if tls else line


def _left(until: float) -> float:
    if (seconds := until - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    return seconds


def _received(line: socket.socket, until: float) -> bytes:
    answer = b""
    while _END not in answer:
        if len(answer) > _MOST_BYTES:
            raise NotAcknowledged(f"the acknowledgement has more than {_MOST_BYTES} bytes")
        line.settimeout(_left(until))
        if not (part := line.recv(4096)):
            raise NotAcknowledged("the connection was closed before the end of an acknowledgement")
        answer += part
    if not answer.startswith(_START):
        raise NotAcknowledged("the answer does not begin as MLLP has it, with the byte 0B")
    return answer[1 : answer.index(_END)]


def _acknowledgement(answer: bytes, control: str) -> Acknowledgement:
    segments = answer.decode(errors="replace").replace("\n", "\r").split("\r")
    mark = segments[0][3:4]
    said = next((segment.split(mark) for segment in segments if mark and segment.startswith(f"MSA{mark}")), [])
    if not segments[0].startswith("MSH") or len(said) < 3:
        raise NotAcknowledged("the answer is no acknowledgement: it needs the segments MSH and MSA")
    if said[1] not in ("AA", "AE", "AR"):
        raise NotAcknowledged(f"the acknowledgement has the code {said[1][:2]!r}; accepted are AA, AE and AR")
    if said[2] != control:
        raise NotAcknowledged("the acknowledgement is for another message: its control id differs")
    return Acknowledgement(said[1], plain(said[3])[:200] if len(said) > 3 else "")
