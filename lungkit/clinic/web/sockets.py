"""A page's socket to its kernel: each message is checked, in both directions, before any other code reads it.

The socket accepts PROTOCOL only. Its messages are bytes: the number of offsets, the offsets (8 bytes each,
little-endian), the name of a channel, header, parent header, metadata and content (JSON objects), then buffers. Each
offset says where one of these begins, and the last offset where the message ends.

A page's load on the server is limited: sockets, messages and bytes a second, messages that wait for a kernel that does
not take them, and bytes that wait for a browser that does not read them.
"""

import asyncio
import json
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Any, cast

import zmq
import zmq.asyncio
from jupyter_client.jsonutil import extract_dates
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from tornado import ioloop, web
from traitlets import default

PROTOCOL = "v1.kernel.websocket.jupyter.org"
# Widgets need these messages only. A page cannot run code in its kernel, and ends it in another way.
KINDS = {"comm_open", "comm_close", "comm_msg", "comm_info_request", "kernel_info_request"}
MESSAGE_BYTES = 2**20  # largest message of a page: texts and clicks; files take another way
HEADER_BYTES = 2**16  # of a header, a parent header or the metadata
MOST_BUFFERS = 64  # in a message of a page
MOST_SOCKETS = 4  # open at once to one kernel; a page has one, and briefly a second when it connects again
SOCKETS_A_SECOND, SOCKETS_AT_ONCE = 20, 100  # opened to one kernel
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 50, 1000
BYTES_A_SECOND, BYTES_AT_ONCE = 2**20, 2**22
QUEUE = 100  # messages that wait in this process for a kernel
RECEIVED = 10  # messages of a kernel that wait in this process, of any size; more wait in the kernel's process
KERNEL_PATIENCE = 30  # s that a full queue may stand still before the page is disconnected
UNREAD_BYTES = 2**26  # waiting for a browser, plus one more message, such as the pixels of a large image
LOST = 180.0  # s without a connection after which the page in the browser has given up (clinic.js)
OFFLINE_BYTES = 2**27  # kept for a page that lost its connection
KERNEL_MESSAGE_BYTES = 2**29  # of one part of a kernel's message
_SESSION = re.compile(r"[0-9A-Za-z_-]{0,64}")
_VERSION = re.compile(r"5(\.[0-9]{1,3}){1,2}")  # of the messages; others would be translated, which can fail
_PARTS = ("header", "parent header", "metadata", "content")


class BadMessage(Exception):
    """A message that breaks the rules. code: for closing the websocket."""

    def __init__(self, reason: str, code: int = 1008):
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Message:
    """A message of a page. parts: header, parent header, metadata, content and buffers, as they came."""

    channel: str
    kind: str
    parts: list[bytes]


def parse_frame(frame: bytes | str) -> Message:
    """Split a page's frame into its parts; raises BadMessage before it allocates any length that the frame claims."""
    if not isinstance(frame, bytes):
        raise BadMessage("a text frame; only binary frames are read", 1003)
    channel, *parts = _split(frame)
    header, content = _header(parts), _object(parts[3], "content")
    if header["msg_type"] in ("comm_open", "comm_close", "comm_msg"):
        _comm(content, header["msg_type"])
    return Message(_short(channel), header["msg_type"], parts)


def _split(frame: bytes) -> list[bytes]:
    """The channel's name and the parts between the offsets."""
    count = int.from_bytes(frame[:8], "little")
    least = 1 + len(_PARTS) + 1
    if len(frame) < 8 or not least <= count <= least + MOST_BUFFERS:
        raise BadMessage(f"{count} offsets in {len(frame)} bytes; there are {least} to {least + MOST_BUFFERS}")
    table = 8 * (1 + count)
    if len(frame) < table:
        raise BadMessage(f"{count} offsets do not fit in {len(frame)} bytes")
    offsets = struct.unpack(f"<{count}Q", frame[8:table])
    if list(offsets) != sorted(offsets) or offsets[0] != table or offsets[-1] != len(frame):
        raise BadMessage(f"offsets that do not rise from byte {table} to {len(frame)}")
    return [frame[start:stop] for start, stop in pairwise(offsets)]


def _header(parts: Sequence[bytes]) -> dict[str, Any]:
    """The header, after a check of it and the two parts after it."""
    if len(parts) < len(_PARTS):
        raise BadMessage(f"{len(parts)} parts; a message has at least {len(_PARTS)}")
    header, *_ = [_object(part, name) for part, name in zip(parts, _PARTS[:3], strict=False)]
    for field in ("msg_id", "msg_type"):
        if not isinstance(header.get(field), str):
            raise BadMessage(f"a header whose {field} is not text")
    version = header.get("version")
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise BadMessage(f"a header of version {_short(version) if isinstance(version, str) else '?'}; 5.x is read")
    return header


def _object(part: bytes, name: str) -> dict[str, Any]:
    if name != "content" and len(part) > HEADER_BYTES:
        raise BadMessage(f"a {name} of {len(part)} bytes; there may be {HEADER_BYTES}", 1009)
    try:
        value = json.loads(part.decode())
        if not isinstance(value, dict):
            raise BadMessage(f"a {name} that is not a JSON object", 1007)
        if "header" in name:
            if any(isinstance(part, dict | list) for part in value.values()):
                raise BadMessage(f"a {name} with more than texts and numbers in it")
            extract_dates(value)  # the kernel would fail on an invalid date
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadMessage(f"a {name} that is not JSON: {_short(str(error))}", 1007) from None
    return value


def _comm(content: dict[str, Any], kind: str) -> None:
    texts = ("comm_id", "target_name") if kind == "comm_open" else ("comm_id",)
    if not all(isinstance(content.get(name), str) for name in texts):
        raise BadMessage(f"a {kind} without {' and '.join(texts)}")
    if not isinstance(content.get("data", {}), dict):
        raise BadMessage(f"a {kind} whose data is not an object")


def _short(text: str | bytes) -> str:
    """The start of a stranger's text, in printable characters, for a line of the log."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return ascii(text[:80])[1:-1]


class Pace:
    """How long to wait to keep an average rate."""

    def __init__(self, a_second: float, at_once: float):
        self.a_second, self.at_once = a_second, at_once
        self.room, self.seen = at_once, time.monotonic()

    def wait(self, amount: float) -> float:
        """Seconds to wait before reading more, after this amount."""
        now = time.monotonic()
        self.room = min(self.at_once, self.room + (now - self.seen) * self.a_second) - amount
        self.seen = now
        return max(0.0, -self.room / self.a_second)


class Gate:
    """Admits sockets to one kernel: few at a time, one after the other, and not too fast."""

    def __init__(self) -> None:
        self.inside: set[KernelSocket] = set()
        self.empty_since = time.monotonic()  # while no one is inside; at first since the page was given to the browser
        self.pace, self.one_by_one = Pace(SOCKETS_A_SECOND, SOCKETS_AT_ONCE), asyncio.Lock()

    def leave(self, socket: "KernelSocket") -> None:
        """The socket is closed."""
        self.inside.discard(socket)
        if not self.inside:
            self.empty_since = time.monotonic()

    def lost(self) -> bool:
        """Whether the page in the browser is gone: it crashed, or was never shown."""
        return not self.inside and time.monotonic() - self.empty_since > LOST


class Connection(ZMQChannelsWebsocketConnection):
    """Between the socket and the kernel."""

    dropped = 0  # messages of the kernel that broke the rules

    def forward(self, message: Message) -> None:
        """Send to the kernel; raises BadMessage if it is gone."""
        try:
            self.session.send_raw(self.channels["shell"], message.parts)
        except (KeyError, OSError, zmq.ZMQError):
            raise BadMessage("the kernel is gone", 1001) from None

    def give_up(self) -> None:
        """The socket closed before it was open."""
        if self._open_sessions.get(self.session_key) is self.websocket_handler:
            del self._open_sessions[self.session_key]

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Not used: KernelSocket reads messages, then forwards them."""
        raise RuntimeError("a message did not pass KernelSocket")

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[bytes]) -> None:
        """Send to the browser, except for broken messages and the notebook's source."""
        try:
            parts = cast("list[bytes]", self.session.feed_identities(outgoing_msg)[1])[1:]
            header = _header(parts)
            if header["msg_type"] in ("status", "error"):  # this process reads the content of these only
                _object(parts[3], "content")
        except (BadMessage, ValueError) as bad:
            self._drop(bad)
            return
        if header["msg_type"] != "execute_input":
            super().handle_outgoing_message(stream, outgoing_msg)

    def _handle_kernel_info_reply(self, msg: Any) -> None:
        try:
            super()._handle_kernel_info_reply(msg)
        except Exception as error:  # the kernel decides what it sends; the socket also opens without this reply
            self._drop(error)
            if not self._kernel_info_future.done():
                self._kernel_info_future.set_result({})

    def _drop(self, why: Exception) -> None:
        self.dropped += 1
        if self.dropped == 1:
            self.log.warning("kernel %s sent a broken message, which is dropped: %s", self.kernel_id, _short(str(why)))


class KernelSocket(KernelWebsocketHandler):
    """The websocket of a page."""

    kernel_id = ""
    connection: Connection | None = None
    connected = gone = False

    def initialize(self, gates: dict[str, Gate]) -> None:
        """gates: of each kernel."""
        super().initialize()
        self._gates = gates
        self._paces = Pace(MESSAGES_A_SECOND, MESSAGES_AT_ONCE), Pace(BYTES_A_SECOND, BYTES_AT_ONCE)
        self._logged: set[str] = set()

    async def pre_get(self) -> None:
        """Refuse a request that cannot become a page's socket before anything is allocated for it."""
        if not self.authorizer.is_authorized(self, self.current_user, "execute", "kernels"):
            raise web.HTTPError(403)
        offered = [name.strip() for name in self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise web.HTTPError(400, "only websockets can be opened here")
        if PROTOCOL not in offered:
            raise web.HTTPError(400, f"socket refused: it does not offer the protocol {PROTOCOL}")
        if not _SESSION.fullmatch(self.get_argument("session_id", "")):
            raise web.HTTPError(400, "socket refused: session_id is not up to 64 letters, digits, _ or -")
        if not self.check_origin():
            raise web.HTTPError(403)
        gate = self._gates[self.kernel_id]  # since the page was given to its session
        if len(gate.inside) >= MOST_SOCKETS:
            raise web.HTTPError(429, f"socket refused: {MOST_SOCKETS} are open to this kernel")
        gate.inside.add(self)
        await asyncio.sleep(gate.pace.wait(1))
        async with gate.one_by_one:
            if not self.gone:
                await super().pre_get()
        if self.gone:
            self._forget()
            raise web.HTTPError(400, "the browser left before the socket was open")

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return PROTOCOL

    async def open(self, kernel_id: str) -> None:
        if self.connection is not None:  # it may have closed while it was prepared
            self.connected = True
            await super().open(kernel_id)

    async def on_message(self, frame: bytes | str) -> None:
        """Handle one message; the next one is not read before this returns."""
        if self._is_closing():
            return
        try:
            message = parse_frame(frame)
            await asyncio.sleep(max(pace.wait(n) for pace, n in zip(self._paces, (1, len(frame)), strict=True)))
            if message.channel == "shell" and message.kind in KINDS:
                await self._until_the_kernel_has_room()
                if self.connection:
                    self.connection.forward(message)
            else:
                self._ignore(message)
        except BadMessage as bad:
            self._refuse(bad)

    async def _until_the_kernel_has_room(self) -> None:
        """While the kernel's queue is full, nothing more is read from the page."""
        for pause in [0] * 10 + [0.05] * (KERNEL_PATIENCE * 20):
            if not self.connection or not self.connection.channels["shell"].sending():
                return
            await asyncio.sleep(pause)
        raise BadMessage("the kernel does not take its messages", 1013)

    def _ignore(self, message: Message) -> None:
        what = f"{_short(message.kind)} on {message.channel}"
        if what not in self._logged and len(self._logged) < 8:
            self._logged.add(what)
            self.log.warning("socket of kernel %s: %s is not for pages and is ignored", self.kernel_id, what)

    def _refuse(self, bad: BadMessage) -> None:
        self.log.warning("socket of kernel %s closed: %s", self.kernel_id, bad)
        self.close(bad.code, str(bad)[:100])
        self._forget()  # now, because the browser may never answer

    def write_message(self, message: bytes | str | dict[str, Any], binary: bool = False) -> Any:
        """Send to the browser, unless too much waits for it already."""
        if self._is_closing():
            return None
        browser: Any = self.ws_connection
        if len(browser.stream._write_buffer) > UNREAD_BYTES:
            self._refuse(BadMessage(f"the browser has not read {UNREAD_BYTES >> 20} MiB", 1013))
            return None
        sent = super().write_message(message, binary)
        sent.add_done_callback(lambda sent: sent.cancelled() or sent.exception())  # ignore that the browser left
        return sent

    def _is_closing(self) -> bool:
        return self.ws_connection is None or self.ws_connection.is_closing()

    def on_finish(self) -> None:
        super().on_finish()
        if self.get_status() != 101:
            self._forget()

    def on_close(self) -> None:
        self.gone = True
        self._forget()

    def _forget(self) -> None:
        """The socket is closed, or never opened."""
        if self.kernel_id in self._gates:
            self._gates[self.kernel_id].leave(self)
        connection, self.connection = self.connection, None
        if connection is not None and self.connected:
            connection.disconnect()
        elif connection is not None:
            connection.give_up()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}: {getattr(error, 'log_message', None) or self._reason}\n")


class Kernels(AsyncMappingKernelManager):
    """Kernels whose waiting messages are limited, and whose broken messages do not disturb this process."""

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        context = super()._context_default()
        for option, value in ((zmq.SNDHWM, QUEUE), (zmq.RCVHWM, RECEIVED), (zmq.MAXMSGSIZE, KERNEL_MESSAGE_BYTES)):
            context.setsockopt(option, value)
        return context

    def used_now(self, kernel_ids: list[str]) -> None:
        """Someone is at the pages of these kernels, which do not end as idle then; those that are lost may."""
        clinic: Any = self.parent
        for kernel_id in kernel_ids:
            if kernel_id in self and not clinic.gates[kernel_id].lost():
                kernel: Any = self.get_kernel(kernel_id)
                kernel.last_activity = datetime.now(UTC)

    def start_watching_activity(self, kernel_id: str) -> None:
        super().start_watching_activity(kernel_id)
        stream = self._kernels[kernel_id]._activity_stream
        stream.on_recv(partial(self._watch, kernel_id, stream._recv_callback, []))

    def _watch(self, kernel_id: str, record: Any, broken: list[Exception], parts: list[bytes]) -> None:
        try:
            record(parts)
        except Exception as error:  # the kernel decides what it sends; this message does not count as activity
            if not broken:
                self.log.warning("kernel %s sent a message that cannot be read: %s", kernel_id, _short(str(error)))
            broken.append(error)

    def start_buffering(self, kernel_id: str, session_key: str, channels: dict[str, Any]) -> None:
        super().start_buffering(kernel_id, session_key, channels)
        kept = self._kernel_buffers[kernel_id]
        for name, stream in channels.items():
            stream.on_recv(partial(self._keep, kernel_id, kept, name))

    def _keep(self, kernel_id: str, kept: dict[str, Any], channel: str, parts: list[bytes]) -> None:
        """Keep a message for a page that may come back; a page that missed too much ends."""
        kept["bytes"] = kept.get("bytes", 0) + sum(map(len, parts))
        kept["buffer"].append((channel, parts))
        if kept["bytes"] > OFFLINE_BYTES:
            self.log.warning("kernel %s ends: its page missed more than %d MiB", kernel_id, OFFLINE_BYTES >> 20)
            kept["buffer"].clear()
            kept["bytes"] = -float("inf")
            clinic: Any = self.parent
            ioloop.IOLoop.current().spawn_callback(clinic.stop_kernels, [kernel_id])
