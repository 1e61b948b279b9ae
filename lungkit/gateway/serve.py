"""`lungkit gateway`: checks that the gateway can start, and serves until SIGTERM or Ctrl-C."""

import asyncio
import logging
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lungkit.clinic.records import maintenance
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import supervisor
from lungkit.errors import LungkitError
from lungkit.gateway.app import make_app
from lungkit.gateway.dicom import Settings
from lungkit.gateway.worker import QUIET

PORT = 8877
HEADER_SECONDS = 10.0  # for a request's header, and for the first byte
MOST_CONNECTIONS = 200
END_SECONDS = 10  # that requests may take when the gateway stops


def serve(
    port: int = PORT,
    host: str = "127.0.0.1",
    certfile: Path | None = None,
    keyfile: Path | None = None,
    threads: int = 1,
    insecure: bool = False,
    announce: Callable[[str], None] = print,
    dicom: Settings | None = None,
    quiet: float = QUIET.total_seconds(),
) -> None:
    """Serve until SIGTERM or SIGINT; images that are being read are finished, those that wait stay in the records.

    threads: that read images. insecure: plain HTTP and DICOM also where others can listen. announce: called with the
    address. dicom: of a DICOM port, if there is one. quiet: seconds without a new file; then a study is complete.
    Raises LungkitError for what a person has to mend first.
    """
    tls = supervisor.tls_context(certfile, keyfile)
    if dicom and not (dicom.tls() or insecure or supervisor.is_loopback(dicom.host)):
        raise LungkitError(
            f"on {dicom.host} images and names would cross the network in clear text; give --dicom-tls-cert and "
            "--dicom-tls-key, or say --insecure for a network that is protected otherwise"
        )
    if not (tls or insecure or supervisor.is_loopback(host)):
        raise LungkitError(
            f"on {host} keys and images would cross the network in clear text; give --tls-cert and --tls-key, serve on "
            "127.0.0.1 behind a proxy that speaks HTTPS, or say --insecure"
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", module="(pydicom|pynetdicom|highdicom)")  # they repeat what is in the files
    store = Store()
    maintenance.upgrade(store)
    maintenance.keep_reserve(store)
    listening = supervisor.bind(port, host)
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    url = f"{'https' if tls else 'http'}://{supervisor.in_url(shown)}:{listening[0].getsockname()[1]}/"
    settings = {"ssl_certfile": certfile, "ssl_keyfile": keyfile} if tls else {}
    try:
        app = make_app(store, threads, timedelta(seconds=quiet), dicom)

        def opened() -> None:
            if dicom and (door := app.state.gateway.door):
                announce(f"dicom://{dicom.ae_title}@{supervisor.in_url(shown)}:{door.port}")
            announce(url)

        Server(app, opened, **settings).run(listening)
    finally:
        for each in listening:
            each.close()
        store.close()


class Server(uvicorn.Server):
    """uvicorn with bounds on connections; it ends without an error when a signal stops it."""

    def __init__(self, app: Any, opened: Callable[[], None] = lambda: None, **settings: Any):
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,  # a path can name a patient
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=END_SECONDS,
                **settings,
            )
        )
        self._opened = opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and say so."""
        await super().startup(sockets)
        self._opened()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal, and do not raise it once more at the end. Only the main thread gets signals."""
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Protocol(H11Protocol):
    """A connection that is closed when a request's header does not come."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header."""
        super().connection_made(transport)
        self._await_header()

    def data_received(self, data: bytes) -> None:
        """Take what came, and wait for the rest of a header that has begun."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None and self.conn.trailing_data[0]:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_header(self) -> None:
        self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
