"""The web server's connections: one that says nothing or little, or does not read, holds no place for long."""

import resource
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tornado import httpserver, httputil, ioloop

HEADER_SECONDS = 20.0  # for the TLS handshake and the head of a request; also how long an unused connection stays
FORM_SECONDS = 30.0  # for what follows the head: a form of at most FORM_BYTES
FORM_BYTES = 2**16
SLOWEST_UPLOAD = 2**14  # bytes a second
# Between two looks at who reads; who has read nothing from one to the next is cut off. On a slow line it takes long
# until a read shows here, because the system and a proxy hold megabytes of an answer.
UNREAD_SECONDS = 120.0
MOST_SILENT = 1000  # connections that wait for a request or the rest of one, all together
MOST_OPEN = 4000  # connections of any kind, except for websockets
DESCRIPTORS = 2**16  # open files that the server asks the system for


def upload_seconds(size: int) -> float:
    """How long a file of so many bytes may take on the slowest line that is served."""
    return FORM_SECONDS + size / SLOWEST_UPLOAD


def allow_many() -> None:
    """Raise this process's limit of open files as far as it may: each connection and each page needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    while soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return
        except (ValueError, OSError):  # macOS has a lower maximum of its own
            wanted //= 2


class Server(httpserver.HTTPServer):
    """Closes connections that are silent or do not read in time, and the oldest early if there are too many.

    The address with the most of them loses one, so others are not pushed out.
    """

    def initialize(self, *how: Any, **settings: Any) -> None:
        """As HTTPServer's; most_silent, most_open: connections; unread_seconds: between two looks at who reads."""
        self._most_silent = settings.pop("most_silent", MOST_SILENT)
        self._most_open = settings.pop("most_open", MOST_OPEN)
        looks = ioloop.PeriodicCallback(self._close_unread, settings.pop("unread_seconds", UNREAD_SECONDS) * 1000)
        limits = {"idle_connection_timeout": HEADER_SECONDS, "body_timeout": FORM_SECONDS, "max_body_size": FORM_BYTES}
        super().initialize(*how, **limits | settings)
        self._silent: dict[Any, str] = {}  # stream to its address, the longest silent first
        self._open: dict[Any, str] = {}  # likewise, the one with the oldest request first
        self._unread: dict[Any, int] = {}  # stream to the bytes that were sent, where more waited at the last look
        looks.start()
        self._stop_looking = looks.stop

    def start_request(self, server_conn: Any, request_conn: Any) -> httputil.HTTPMessageDelegate:
        stream = request_conn.stream
        for connections, most in ((self._silent, self._most_silent), (self._open, self._most_open)):
            connections.pop(stream, None)
            connections[stream] = request_conn.context.remote_ip
            if len(connections) > most:
                self._close_one(connections)
        return _Heard(super().start_request(server_conn, request_conn), lambda: self.heard(stream))

    def heard(self, stream: Any) -> None:
        """The whole request is there, or so much of it that the rest may take its time."""
        self._silent.pop(stream, None)

    def on_close(self, server_conn: Any) -> None:
        for connections in (self._silent, self._open):
            connections.pop(server_conn.stream, None)
        super().on_close(server_conn)

    def stop(self) -> None:
        super().stop()
        self._stop_looking()

    def _close_one(self, connections: dict[Any, str]) -> None:
        ((address, _),) = Counter(connections.values()).most_common(1)
        oldest = next(stream for stream, its in connections.items() if its == address)
        del connections[oldest]
        oldest.close()

    def _close_unread(self) -> None:
        """Close connections whose browser has read nothing since the last look."""
        before, self._unread = self._unread, {}
        for stream in list(self._open):
            if stream.writing():
                self._unread[stream] = stream._total_write_done_index
                if before.get(stream) == self._unread[stream]:
                    stream.close()


class _Heard(httputil.HTTPMessageDelegate):
    """Passes a request on; calls `heard` when all of it is there."""

    def __init__(self, to: httputil.HTTPMessageDelegate, heard: Callable[[], object]):
        self._to, self._heard = to, heard

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> Awaitable[None] | None:
        return self._to.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._to.data_received(chunk)

    def finish(self) -> None:
        self._heard()
        self._to.finish()

    def on_connection_close(self) -> None:
        self._to.on_connection_close()
