"""Sends results: threads of the gateway work off the list in the records, which several gateways share."""

import logging
import socket
import threading
import time
import traceback

from lungkit.clinic.records import dispatches
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.dispatches import WITHDRAWAL, ClaimedDispatch, DispatchAccess, DispatchLost
from lungkit.clinic.records.routing import DestinationRow
from lungkit.clinic.records.store import Store, StoreError
from lungkit.errors import LungkitError
from lungkit.gateway import store_scu, web_client
from lungkit.gateway.addresses import CONNECT_SECONDS, NotSent, tls_context
from lungkit.gateway.deliveries import Delivery
from lungkit.gateway.hl7 import NotAcknowledged, mllp_send
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.objects import encoded

AE_TITLE = "LUNGKIT"
POLL_SECONDS = 1.0
REST_SECONDS = 10.0  # after a failure nothing is sent to that system for so long: it must not hold up the others
STOP_SECONDS = 30.0  # at most, for what is being sent
THREADS = 2  # one system that does not answer holds up one of them
_log = logging.getLogger(__name__)


class Sender:
    """The threads that send. Any thread may call.

    calling: our AE title, which DICOM systems are told.
    """

    def __init__(self, store: Store, metrics: Metrics, calling: str = AE_TITLE, threads: int = THREADS):
        self._store, self._metrics, self._calling = store, metrics, calling
        self._rests_until: dict[int, float] = {}  # by destination
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_often, name=f"send-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being sent, and begin nothing else; what waits stays in the records.

        What takes longer than STOP_SECONDS is left to its lease: it is sent again later, and is the same object.
        """
        self._stopping.set()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def send_next(self) -> bool:
        """Send what is due for the longest time; whether there was anything. Raises StoreError."""
        at = time.monotonic()
        claimed = dispatches.claim(self._store, [to for to, until in self._rests_until.copy().items() if until > at])
        if claimed is None:
            return False
        try:
            outcome = self._outcome(claimed)
        except DispatchLost:  # its lease has ended, it was cancelled, or its patient was erased
            outcome = "lost"
        self._metrics.sending(claimed.destination.kind, outcome)
        return True

    def _outcome(self, claimed: ClaimedDispatch) -> str:
        try:
            note = send(claimed, Records(DispatchAccess(self._store, claimed)), self._calling)
        except NotSent as refused:
            if not refused.final:
                self._rests_until[claimed.destination.id] = time.monotonic() + REST_SECONDS
            dispatches.fail(self._store, claimed, str(refused), refused.final, refused.after)
            return "refused" if refused.final else "failed"
        except (DispatchLost, StoreError):
            raise
        except LungkitError as refused:  # the object cannot be made
            dispatches.fail(self._store, claimed, str(refused), final=True)
            return "refused"
        except Exception as error:
            # Without the exception's own words, which may repeat a value of a header.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("dispatch %s: %s\n%s", claimed.id, type(error).__name__, trace)
            dispatches.fail(self._store, claimed, f"an error of the program ({type(error).__name__})")
            return "failed"
        dispatches.sent(self._store, claimed, note)
        return "sent"

    def _send_often(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.send_next():
                    continue
            except Exception:  # the records may be back in a moment
                _log.exception("sending")
            self._stopping.wait(POLL_SECONDS)


def send(claimed: ClaimedDispatch, records: Records, calling: str = AE_TITLE) -> str:
    """Make a result and send it; returns what is worth noting. Raises NotSent, and what making an object raises."""
    kind, address = claimed.destination.kind, claimed.destination.address
    made = Delivery(records, claimed.reading_id)
    if kind in ("dicom", "stow"):
        gone = claimed.review_id == WITHDRAWAL
        built = made.rejection(claimed.sent) if gone else made.dicom(claimed.object, claimed.review_id)
        if kind == "dicom":
            return store_scu.store(address, calling, built)
        return web_client.stow(address, str(built.SOPInstanceUID), encoded(built))
    notes = []
    for told in made.told(claimed.before):
        if kind == "fhir":
            notes.append(web_client.transact(address, made.bundle(address, told)))
        else:
            notes.append(_acknowledged(address, made.message(address, told)))
    return "; ".join(filter(None, notes))


def _acknowledged(address: dict[str, object], message: bytes) -> str:
    tls = tls_context(address) if "tls_ca" in address else None
    try:
        answer = mllp_send(str(address["host"]), int(str(address["port"])), message, tls=tls)
    except NotAcknowledged as error:
        raise NotSent(str(error)) from error
    if not answer.accepted:
        raise NotSent(f"the message was not accepted: the acknowledgement is {answer.code}", final=answer.code == "AR")
    return ""


def probe(to: DestinationRow, calling: str = AE_TITLE) -> str:
    """Ask a destination whether it is there, without a result; what it says, in words. Raises NotSent."""
    if to.kind == "dicom":
        store_scu.echo(to.address, calling)
        return "it answers a C-ECHO"
    if to.kind in ("stow", "fhir"):
        return web_client.probe(to.address, to.kind)
    place = (str(to.address["host"]), int(to.address["port"]))
    try:
        with socket.create_connection(place, CONNECT_SECONDS) as line:
            if "tls_ca" in to.address:
                tls_context(to.address).wrap_socket(line, server_hostname=place[0]).close()
    except OSError as error:
        raise NotSent(f"no connection: {error.strerror or error}") from error
    return "it takes connections"
