"""Sends objects to a DICOM system by C-STORE, and asks one by C-ECHO whether it is there."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from lungkit.gateway.addresses import CONNECT_SECONDS, DEADLINE, SILENCE_SECONDS, NotSent, tls_context

_MOST_RECEIVED = 2**20  # bytes of one association: answers have some hundred
_DUPLICATE = 0x0111
_REJECTIONS = {  # (source, reason) to words, PS3.8 table 9-21
    (1, 2): "it does not know how results are sent (application context)",
    (1, 3): "it does not know our AE title, '{calling}'",
    (1, 7): "it has another AE title than '{called}'",
    (3, 1): "it is busy",
    (3, 2): "it has too many connections",
}
_FINAL = {
    0x0117: "the object's UID is not accepted",
    0x0122: "it does not take objects of this class",
    0x0124: "we are not authorised to store",
    0x0210: "it refused the number of the message",
    0x0211: "it does not know how to store",
    0x0212: "it refused an argument of the message",
}


def store(address: Mapping[str, Any], calling: str, made: Dataset) -> str:
    """Store an object; returns what is worth noting of the answer, often nothing. calling: our AE title.

    Raises NotSent.
    """
    with _associated(address, calling, made.SOPClassUID) as association:
        if not association.accepted_contexts:
            raise NotSent(f"it takes no objects of the class {UID(made.SOPClassUID).name}", final=True)
        try:
            answer = association.send_c_store(made)
        except (RuntimeError, ValueError) as error:
            raise NotSent(f"the association ended before the object was sent ({type(error).__name__})") from error
    return _judged(answer)


def echo(address: Mapping[str, Any], calling: str) -> None:
    """Ask the system whether it is there and takes reports. Raises NotSent."""
    with _associated(address, calling, Verification) as association:
        if not association.accepted_contexts:
            raise NotSent("it takes no C-ECHO")
        answer = association.send_c_echo()
    _judged(answer)


def _judged(answer: Dataset) -> str:
    """What an answer means: words to note. Raises NotSent."""
    if "Status" not in answer:
        raise NotSent("no answer came, or none that can be understood")
    status = int(answer.Status)
    if status == 0:
        return ""
    if status & 0xF000 == 0xB000:
        return f"stored with the warning {status:04X}H"
    if status == _DUPLICATE:
        return "it had the object already"
    if status in _FINAL:
        raise NotSent(f"refused with status {status:04X}H: {_FINAL[status]}", final=True)
    if status & 0xFF00 == 0xA900:
        raise NotSent(f"refused with status {status:04X}H: the object does not match its class", final=True)
    if status & 0xF000 == 0xC000:
        raise NotSent(f"refused with status {status:04X}H: it cannot understand the object", final=True)
    words = "it is out of resources" if status & 0xFF00 == 0xA700 else "it could not process the object"
    raise NotSent(f"refused with status {status:04X}H: {words}")


@contextmanager
def _associated(address: Mapping[str, Any], calling: str, sop_class: str) -> Iterator[Association]:
    """An association, or one with no accepted context; it ends after DEADLINE at the latest. Raises NotSent."""
    host, called = str(address["host"]), str(address["ae_title"])
    entity = AE(calling)
    entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    entity.acse_timeout = entity.connection_timeout = CONNECT_SECONDS
    entity.dimse_timeout = entity.network_timeout = SILENCE_SECONDS
    secured = any(name in address for name in ("tls_ca", "tls_cert", "tls_key"))
    lines: list[socket.socket] = []
    late = threading.Timer(DEADLINE, _cut, [lines])
    late.daemon = True
    late.start()
    try:
        association = entity.associate(
            host,
            int(address["port"]),
            ae_title=called,
            tls_args=(tls_context(address), host) if secured else None,
            evt_handlers=[(evt.EVT_CONN_OPEN, _bound, [lines])],
        )
        if not association.is_established and not (association.is_aborted and association.rejected_contexts):
            raise NotSent(_why_not(association, calling, called, secured))
        try:
            yield association
        finally:
            if association.is_established:
                association.release()
    finally:
        late.cancel()


def _bound(event: evt.Event, lines: list[socket.socket]) -> None:
    """Note the connection, and let only so many bytes come over it: a PDU may claim to have 4 GB."""
    line: Any = event.assoc.dul.socket
    unbounded, left = line.recv, _MOST_RECEIVED
    lines.append(line.socket)

    def recv(number: int) -> Any:
        nonlocal left
        left -= number
        if left < 0:
            raise OSError("the answer is too long")
        return unbounded(number)

    line.recv = recv


def _cut(lines: list[socket.socket]) -> None:
    """End connections that another thread waits for, under their TLS."""
    for line in lines:
        with suppress(OSError):
            socket.socket.shutdown(line, socket.SHUT_RDWR)


def _why_not(association: Association, calling: str, called: str, secured: bool) -> str:
    answer: Any = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        known = _REJECTIONS.get((answer.result_source, answer.diagnostic), "no reason was given")
        return f"the association was rejected: {known.format(calling=calling, called=called)}"
    tls = ", or TLS failed: its certificate has to be valid and have its name" if secured else ""
    return f"no association: nothing answers there as a DICOM system{tls}"
