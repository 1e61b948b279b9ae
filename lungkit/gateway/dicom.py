"""The DICOM door: Verification and Storage SCP. Whoever may not send is refused before anything is transferred.

pynetdicom speaks the protocol. Around it are bounds that it does not have: on a PDU before it is read, on what is kept
of a message in memory, on connections, and on the time that a connection may take for its TLS handshake or a PDU. A
file is written into the inbox while it arrives; the handler looks at its header, moves it, and adds a row.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from lungkit.clinic.records import routing
from lungkit.clinic.records.routing import CallerRefused
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.web import supervisor
from lungkit.data.dicom_header import TRANSFER_SYNTAXES
from lungkit.errors import LungkitError
from lungkit.gateway import inbox
from lungkit.gateway.inbox import Incoming, NotTaken
from lungkit.gateway.metrics import Metrics

AE_TITLE = "LUNGKIT"
LONGEST_PDU = 131_072  # bytes of a P-DATA-TF PDU that is accepted; senders are told
MOST_PDU = 2 * LONGEST_PDU  # of any PDU: the request of an association has another bound in the standard
MOST_COMMAND = 2**20  # bytes of a message without the file in it
MOST_WAITING = 4  # messages of an association
MOST_ASSOCIATIONS = 25
MOST_CONNECTIONS = 2 * MOST_ASSOCIATIONS  # also those that have not asked for an association yet
ACSE_SECONDS, DIMSE_SECONDS, NETWORK_SECONDS = 10.0, 30.0, 60.0

# Rejections: result, source, reason (PS3.8, 9.3.4).
_CALLER, _CALLED = (1, 1, 3), (1, 1, 7)
_CONGESTED, _LIMIT = (2, 3, 1), (2, 3, 2)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the door is opened. Raises LungkitError for an AE title that cannot be.

    port: 0 is any free one. tls_ca: then senders, too, need a certificate, which one in this file (PEM) has signed.
    """

    port: int
    host: str = "127.0.0.1"
    ae_title: str = AE_TITLE
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ae_title", routing.accepted_ae_title(self.ae_title))

    def tls(self) -> ssl.SSLContext | None:
        """The settings of TLS, or None without it. Raises LungkitError if the files cannot be used."""
        context = supervisor.tls_context(self.tls_cert, self.tls_key)
        if self.tls_ca is None:
            return context
        if context is None:
            raise LungkitError("--dicom-tls-ca needs --dicom-tls-cert and --dicom-tls-key, the gateway's own")
        try:
            context.load_verify_locations(self.tls_ca)
        except OSError as error:  # ssl.SSLError is one
            raise LungkitError(f"{self.tls_ca} is no file of certificates (PEM): {error.strerror or error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class Door:
    """The open port. Any thread may call."""

    def __init__(self, store: Store, metrics: Metrics, settings: Settings):
        """The port is taken, and not served yet. Raises LungkitError if it, or the files of TLS, cannot be used."""
        _prepare_pynetdicom()
        self._store, self._metrics, self._settings = store, metrics, settings
        self._thread: threading.Thread | None = None
        entity = AE(settings.ae_title)
        entity.maximum_associations, entity.maximum_pdu_size = MOST_ASSOCIATIONS, LONGEST_PDU
        entity.acse_timeout, entity.dimse_timeout = ACSE_SECONDS, DIMSE_SECONDS
        entity.network_timeout = NETWORK_SECONDS
        entity.add_supported_context(Verification)
        for kind in inbox.KINDS:
            entity.add_supported_context(kind, list(TRANSFER_SYNTAXES))
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._admit),
            (evt.EVT_C_STORE, self._store_file),
            (evt.EVT_CONN_CLOSE, _closed),
        ]
        where = (settings.host, settings.port)
        tls, title = settings.tls(), entity.ae_title
        try:
            self._server = _Server(entity, where, title, entity.supported_contexts, tls, handlers, _Connection)
        except OSError as error:
            words = f"the DICOM port {where[1]} on {where[0]} cannot be opened: {error.strerror or error}"
            raise LungkitError(words) from error
        entity._servers.append(self._server)

    @property
    def port(self) -> int:
        """The number of the port."""
        return int(self._server.server_address[1])

    def open(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="dicom", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port, and abort associations that are still open; what is not complete is sent again."""
        if self._thread is None:
            self._server.server_close()
            return
        self._server.shutdown()
        self._thread.join(5)
        for association in self._server.active_associations:
            with suppress(Exception):
                association.abort()

    def alive(self) -> bool:
        """Whether the port is open."""
        return self._thread is not None and self._thread.is_alive()

    # --- what is asked

    def _admit(self, event: evt.Event) -> None:
        """Reject an association of a system that may not send, or while nothing can be taken."""
        association = event.assoc
        try:
            rejection = self._rejection(association)
        except Exception:  # pynetdicom would accept the association
            _log.exception("an association")
            rejection = _CONGESTED
        self._metrics.association("rejected" if rejection else "accepted")
        if rejection:
            association.acse.send_reject(*rejection)
            association.kill()

    def _rejection(self, association: Association) -> tuple[int, int, int] | None:
        request = association.requestor.primitive
        assert request is not None
        title, address = str(request.calling_ae_title), _address(association)
        try:
            self._caller(title, address)
        except CallerRefused as refused:
            with suppress(StoreError):
                routing.note_refused(self._store, title, address, str(refused))
            return _CALLER
        except StoreError:
            return _CONGESTED
        if str(request.called_ae_title).strip() != self._settings.ae_title:
            with suppress(StoreError):
                routing.note_refused(self._store, title, address, "it called another AE title")
            return _CALLED
        if len(association.ae.active_associations) > MOST_ASSOCIATIONS:
            return _LIMIT
        return None if inbox.has_room() else _CONGESTED

    def _caller(self, title: str, address: str) -> tuple[int, str]:
        with self._store.read() as db:
            return routing.admitted(db, title, address)

    def _store_file(self, event: evt.Event) -> Dataset:
        """Take a file; the status is what C-STORE answers."""
        request: Any = event.request
        said = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        status, words = 0x0000, ""
        try:
            user_id, title = self._caller(event.assoc.requestor.ae_title, _address(event.assoc))
            file = request._dataset_file
            if not isinstance(file, Incoming):
                raise NotTaken(inbox.CANNOT, "there is no file in the request")
            taken = inbox.take(self._store, user_id, title, file, said)
            self._metrics.instance("dicom", "again" if taken.again else "taken")
        except NotTaken as refused:
            status, words = refused.status, str(refused)
        except CallerRefused as refused:
            status, words = inbox.NOT_ALLOWED, str(refused)
        except StoreError as error:
            status, words = inbox.RESOURCES, str(error)
        except Exception:
            _log.exception("a file")
            status, words = inbox.PROCESSING, "an error of the program"
        answer = Dataset()
        answer.Status = status
        if status:
            self._metrics.instance("dicom", "refused")
            answer.ErrorComment = words.encode("ascii", "replace").decode().replace("\\", "/")[:64]
        return answer


def _address(association: Association) -> str:
    return str(association.requestor.address).partition("%")[0]


def _closed(event: evt.Event) -> None:
    """Drop a file of which not everything came; end a connection that asked for nothing, or it would last for 10 s."""
    message = event.assoc.dimse.message
    if message is not None and isinstance(message._data_set_file, Incoming):
        message._data_set_file.close()
    if event.assoc.requestor.primitive is None:
        event.assoc.dul.to_user_queue.put(None)


# --- what pynetdicom leaves open


def _prepare_pynetdicom() -> None:
    """Write files that arrive into the inbox, and log nothing: its messages contain what senders sent."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    incoming: Callable[..., Any] = lambda **_: Incoming()  # noqa: E731
    dimse_messages.NamedTemporaryFile = incoming
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _Socket(AssociationSocket):
    """A connection that reads nothing which is too long or takes too long."""

    _message_bytes = 0
    _message: Any = None

    def recv(self, nr_bytes: int) -> bytearray:
        """So many bytes; fewer where the connection ends. Raises OSError, which ends the association."""
        if nr_bytes > MOST_PDU:
            raise OSError(f"a PDU of {nr_bytes} bytes")
        self._count(nr_bytes)
        while self.assoc.dimse.msg_queue.qsize() > MOST_WAITING and self.assoc.is_alive():
            time.sleep(0.002)  # a sender that does not wait for answers; each waiting file is an open one
        content, until = bytearray(nr_bytes), time.monotonic() + DIMSE_SECONDS
        got, connection = 0, self.socket
        if connection is None:
            raise OSError("the connection is closed")
        with memoryview(content) as view:
            while got < nr_bytes:
                if (left := until - time.monotonic()) <= 0:
                    raise TimeoutError("a PDU that did not come")
                connection.settimeout(left)
                if not (number := connection.recv_into(view[got:])):
                    break
                got += number
        connection.settimeout(NETWORK_SECONDS)
        del content[got:]
        return content

    def _count(self, number: int) -> None:
        """Bound what is kept in memory of a message: everything but a file, which is written as it comes."""
        message: Any = self.assoc.dimse.message
        if message is None or message is not self._message or message._data_set_file is not None:
            self._message, self._message_bytes = message, 0
        self._message_bytes += number
        if self._message_bytes > MOST_COMMAND:
            raise OSError("a message that is too long")


class _Connection(RequestHandler):
    """A connection from its first byte on; a TLS handshake happens here, in a thread of its own."""

    def handle(self) -> None:
        """Greet, and give the connection to an association. Raises OSError where the handshake fails."""
        server: Any = self.server
        try:
            self.request.settimeout(ACSE_SECONDS)
            if isinstance(self.request, ssl.SSLSocket):
                self.request.do_handshake()
        finally:
            server.count_new(-1)
        super().handle()

    def _create_association(self) -> Association:
        association = super()._create_association()
        association.dul.socket.__class__ = _Socket  # a second socket would announce the connection twice
        return association


class _Server(ThreadedAssociationServer):
    """Listens; a connection that does not greet holds up no other one."""

    request_queue_size = 64
    daemon_threads = True
    _new = 0  # connections before the end of their handshake
    _counting = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection, whose TLS handshake has not begun."""
        assert self.socket is not None
        client, address = self.socket.accept()
        if self.ssl_context:
            client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        return len(self.active_associations) + self._new < MOST_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection to a thread of its own, and count it as new."""
        self.count_new(1)
        super().process_request(request, client_address)

    def count_new(self, change: int) -> None:
        """One more new connection (1), or one less (-1): from then on it counts as an association."""
        with self._counting:
            self._new += change

    def service_actions(self) -> None:
        """Nothing: pynetdicom would look for garbage every few seconds, which stops all threads."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a stranger's handshake failed."""
