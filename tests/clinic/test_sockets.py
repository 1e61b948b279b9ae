"""The socket between a page and its kernel, used by someone who wants to stop the clinic for everyone else."""

import asyncio
import base64
import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise

import nbformat
import pytest
from jupyter_server.services.kernels.connection.base import serialize_binary_message, serialize_msg_to_ws_v1
from tornado import httpclient
from tornado.websocket import WebSocketClosedError

from lungkit.clinic.web import sockets
from tests.clinic.browser import (
    PROTOCOL,
    Browser,
    ask_kernel,
    connect,
    eventually,
    frame,
    heard,
    message,
    server_of,
    signed_in_as,
    talk,
)

MB = 2**20
SLOWEST = 1.0  # s that the sign-in page may take while a socket is misused
# A page with a picture, whose state therefore has a buffer; and a kernel that sends whatever parts it is told to.
PAGE = """
import base64
import time
import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import display

kernel = get_ipython().kernel

def send(comm, opened):
    for parts in opened["content"]["data"]["messages"]:
        kernel.iopub_socket.send_multipart([base64.b64decode(part) for part in parts])

def flood(comm, opened):
    data = opened["content"]["data"]
    time.sleep(data.get("after", 0))
    for _ in range(data["times"]):
        kernel.session.send(kernel.iopub_socket, "display_data", {}, buffers=[bytes(data["bytes"])])

kernel.comm_manager.register_target("send", send)
kernel.comm_manager.register_target("flood", flood)
display(widgets.Image(value=bytes(1000)))
"""


@pytest.fixture(scope="module")
def clinic(start_clinic, tmp_path_factory):
    """A clinic whose page is PAGE."""
    home = tmp_path_factory.mktemp("sockets")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PAGE)], metadata={"kernelspec": kernel})
    nbformat.write(page, home / "page.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_PAGES_PER_PERSON", "50")  # one person opens the pages of all these tests
        return start_clinic(home, notebook=home / "page.ipynb")


@pytest.fixture
def anna(clinic) -> Browser:
    return signed_in_as(clinic, "anna")


@pytest.fixture(scope="module")
def page(clinic) -> tuple[Browser, str]:
    """A page of anna's, and its kernel, for tests that leave both as they are."""
    browser = signed_in_as(clinic, "anna")
    return browser, browser.open_page()


@pytest.fixture(scope="module")
def other_page(clinic) -> tuple[Browser, str]:
    """A page of bert's, and its kernel, that must work whatever anna does."""
    browser = signed_in_as(clinic, "bert")
    return browser, browser.open_page()


@pytest.fixture(scope="module")
def misused(clinic) -> tuple[Browser, list[str]]:
    """Kernels of four pages of anna's, for tests that misuse them and say what remains of them."""
    browser = signed_in_as(clinic, "anna")
    return browser, [browser.open_page() for _ in range(4)]


class Watch:
    """Asks all the time for what starts no process; `slowest` answer in seconds, `grown`: bytes of the server's memory.

    Next to it a server that does nothing else is asked: `idle`, its slowest answer, is what the machine itself takes.
    """

    def __init__(self, clinic):
        self._clinic, self._server = clinic, server_of(clinic)
        self._before = self._server.memory_info().rss
        self._stop = threading.Event()
        self._idle = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"],
            cwd=clinic.home / "notebooks", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        port = re.search(r"port (\d+)", self._idle.stdout.readline())[1]
        self._threads = [
            threading.Thread(target=self._ask, args=["slowest", clinic.url, "/clinic/parts"]),
            threading.Thread(target=self._ask, args=["idle", f"http://127.0.0.1:{port}", "/"]),
        ]
        self.slowest, self.idle, self.grown, self.answers = 0.0, 0.0, 0, 0

    def _ask(self, which: str, url: str, path: str) -> None:
        while not self._stop.is_set():
            start = time.monotonic()
            with contextlib.suppress(OSError):
                self.answers += Browser(url).get(path).status == 200 and which == "slowest"
            setattr(self, which, max(getattr(self, which), time.monotonic() - start))
            self.grown = max(self.grown, self._server.memory_info().rss - self._before)
            if self.grown > 2000 * MB:  # before the machine has none left
                self._clinic.process.kill()
                self._server.kill()
            self._stop.wait(0.05)

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._idle.kill()
        self._idle.wait()
        self._idle.stdout.close()

    def __repr__(self) -> str:
        times = f"slowest {self.slowest:.3f} s, of an idle server {self.idle:.3f} s"
        return f"sign-in page: {self.answers} answers, {times}; {self.grown / MB:.0f} MiB more"


def assert_unharmed(clinic, watch: Watch, other_page: tuple[Browser, str], grown: float = 150) -> None:
    """Nothing is lost or slow, and another person signs in and uses a page."""
    assert clinic.process.poll() is None
    assert watch.slowest < SLOWEST + watch.idle, watch
    assert watch.grown < grown * MB, watch
    assert "Traceback" not in clinic.log.read_text(errors="replace")
    signed_in_as(clinic, "bert")
    assert ask_kernel(*other_page) == "ok"


# --- what a frame may be


def frames(seed: int) -> Iterator[tuple[str, bytes | str]]:
    """Frames without end: what kind, and the frame."""
    rng = random.Random(seed)
    texts = ["", "x", "shell", "\ud800", "\n\n", "a" * 300, 0, -1, 1e300, None, [], {}, True]

    def sound() -> dict:
        made = message(rng.choice(["comm_info_request", "kernel_info_request", "comm_msg", "comm_close"]))
        made["content"] = {"comm_id": f"c{rng.randrange(9)}", "data": {}}
        made["buffers"] = [rng.randbytes(rng.randrange(50)) for _ in range(rng.choice([0, 0, 1, 3]))]
        return made

    def forbidden() -> bytes:
        kind, channel = rng.choice(
            [("execute_request", "shell"), ("shutdown_request", "control"), ("shutdown_request", "shell"),
             ("input_reply", "stdin"), ("comm_msg", "iopub"), ("comm_msg", "control"), ("status", "iopub"),
             ("debug_request", "control"), ("interrupt_request", "control"), ("no such", "no\nchannel"),
             ("kernel_info_request", "stdin"), ("create_subshell_request", "control")]
        )  # fmt: skip
        made = sound()
        made["header"]["msg_type"], made["channel"] = kind, channel
        made["content"]["code"] = "raise SystemExit"
        return frame(made)

    def old() -> bytes | str:
        return json.dumps(sound() | {"buffers": []}) if rng.random() < 0.5 else serialize_binary_message(sound())

    def cut() -> bytes:
        whole = frame(sound())
        return whole[: rng.randrange(len(whole))] if rng.random() < 0.7 else whole + rng.randbytes(rng.randrange(1, 9))

    def wild() -> bytes:
        whole = bytearray(frame(sound()))
        at = 8 * rng.choice([0, 0, 1, 2, 3, 4, 5, 6])
        number = rng.choice([rng.randrange(2**64), rng.randrange(2**20), 2**63, 2**64 - 1, 10**18, 0, 1, 6, 7, 70])
        whole[at : at + 8] = struct.pack(rng.choice(["<Q", ">Q"]), number)
        return bytes(whole)

    def flipped() -> bytes:
        whole = bytearray(frame(sound()))
        for _ in range(rng.randrange(1, 6)):
            whole[rng.randrange(len(whole))] = rng.randrange(256)
        return bytes(whole)

    def noise() -> bytes | str:
        drawn = rng.randbytes(rng.choice([0, 1, 7, 8, 9, 60, 500]))
        return drawn if rng.random() < 0.8 else drawn.decode("latin-1")

    def strange() -> bytes:
        """Sound offsets around parts that are not what they have to be."""
        whole = frame(sound())
        channel, *parts = [whole[a:b] for a, b in _bounds(whole)]
        values = [
            *texts,
            {"msg_id": rng.choice(texts), "msg_type": rng.choice(texts)},
            {"date": "2020-13-99T99:99:99Z"},
        ]
        written = [json.dumps(rng.choice(values)).encode(), b"{" * 9, b"[" * 3000 + b"]" * 3000, b"\xff\xfe{}",
                   b'{"a":' * 2000 + b"1" + b"}" * 2000, b'{"a":' + b"9" * 5000 + b"}", b"{}", b'{"msg_type": 1}',
                   json.dumps({"a": "x" * 70000}).encode(), "{}".encode("utf-16"), b"NaN", b""]  # fmt: skip
        parts[rng.randrange(4)] = rng.choice(written)
        if rng.random() < 0.2:
            parts = parts[: rng.randrange(4)] or parts * 20
        return serialize_msg_to_ws_v1([*parts], channel.decode())

    made = [("sound", lambda: frame(sound())), ("forbidden", forbidden), ("old", old), ("cut", cut), ("wild", wild),
            ("flipped", flipped), ("noise", noise), ("strange", strange)]  # fmt: skip
    while True:
        kind, make = rng.choices(made, [6, 4, 1, 1, 1, 1, 1, 1])[0]
        yield kind, make()


def _bounds(whole: bytes) -> list[tuple[int, int]]:
    count = int.from_bytes(whole[:8], "little")
    offsets = struct.unpack(f"<{count}Q", whole[8 : 8 * (count + 1)])
    return list(pairwise(offsets))


def test_a_frame_is_read_as_the_page_wrote_it():
    sent = message("comm_msg", comm_id="c", data={"x": 1}) | {"buffers": [b"", b"123"]}
    read = sockets.parse_frame(frame(sent))
    assert (read.channel, read.kind, read.parts[4:]) == ("shell", "comm_msg", [b"", b"123"])
    assert json.loads(read.parts[3]) == sent["content"]
    assert serialize_msg_to_ws_v1(read.parts, read.channel) == frame(sent)


def test_any_frame_is_read_or_refused_with_a_reason_and_little_memory():
    counts, numbered, peak = Counter(), frames(1), 0
    for _ in range(16):
        some = list(islice(numbered, 500))  # made before memory is measured, which is slow
        tracemalloc.start()
        for kind, made in some:
            try:
                sockets.parse_frame(made)
                counts[kind, "read"] += 1
            except sockets.BadMessage as bad:
                counts[kind, "refused"] += 1
                assert 0 < len(str(bad)) < 200
                assert str(bad).isprintable()
                assert 1001 <= bad.code <= 1013
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"8000 frames, at most {peak / MB:.1f} MiB: {dict(counts)}")
    assert peak < 20 * MB
    assert not counts["sound", "refused"] and not counts["forbidden", "refused"]
    assert not counts["old", "read"] and not counts["noise", "read"] and not counts["cut", "read"]


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        (0, b'{"msg_id": "1"}', "a header whose msg_type is not text"),
        (0, b'{"msg_id": "1", "msg_type": "comm_msg"}', r"a header of version \?; 5.x is read"),
        (0, b'{"msg_id": "1", "msg_type": "comm_msg", "version": "<.3"}', "a header of version <.3; 5.x is read"),
        (
            0,
            b'{"msg_id": "1", "a": ' + b"[" * 500 + b"]" * 500 + b"}",
            "a header with more than texts and numbers in it",
        ),
        (0, b"[]", "a header that is not a JSON object"),
        (1, b"{", "a parent header that is not JSON"),
        (2, b'"' + b"x" * 2**16 + b'"', "a metadata of 65538 bytes; there may be 65536"),
        (3, b"[" * 100_000, "a content that is not JSON"),
        (3, b'{"comm_id": []}', "a comm_msg without comm_id"),
        (3, b'{"comm_id": "1", "data": []}', "a comm_msg whose data is not an object"),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(part, value, why):
    parts = sockets.parse_frame(frame(message("comm_msg", comm_id="1", data={}))).parts
    parts[part] = value
    with pytest.raises(sockets.BadMessage, match=f"^{why}"):
        sockets.parse_frame(serialize_msg_to_ws_v1(parts, "shell"))


# --- who gets a socket


@pytest.mark.parametrize("offered", ["", "jupyter", PROTOCOL.upper(), f"{PROTOCOL}x", f"x{PROTOCOL}", f'"{PROTOCOL}"'])
def test_a_socket_that_does_not_offer_the_protocol_is_refused(clinic, page, offered):
    with pytest.raises(httpclient.HTTPClientError) as refused:
        asyncio.run(connect(*page, protocol=offered))
    assert refused.value.code == 400
    assert f"it does not offer the protocol {PROTOCOL}" in refused.value.response.body.decode()
    assert f"it does not offer the protocol {PROTOCOL}" in clinic.log.read_text()


def test_a_socket_that_offers_several_protocols_speaks_the_one_that_is_checked(page):

    async def chosen(offered: str) -> str:
        connection = await connect(*page, protocol=offered)
        selected = connection.selected_subprotocol
        connection.close()
        return selected

    for offered in (f"a, {PROTOCOL} ,b", f"{PROTOCOL},{PROTOCOL}"):
        assert asyncio.run(chosen(offered)) == PROTOCOL


@pytest.mark.parametrize(
    "session",
    [f"?session_id={name}" for name in ("%C3%A9", "x" * 65, "a%0Ab", "%ff", "1&session_id=é", "a%20b")],
)
def test_a_session_that_is_not_a_plain_name_is_refused(page, session):
    with pytest.raises(httpclient.HTTPClientError) as refused:
        asyncio.run(connect(*page, session))
    assert refused.value.code == 400


def test_a_request_that_is_not_a_websocket_is_refused_and_leaves_nothing(page):
    anna, kernel = page
    for _ in range(sockets.MOST_SOCKETS + 1):
        assert anna.get(f"/api/kernels/{kernel}/channels?session_id=1").status == 400
    assert ask_kernel(anna, kernel) == "ok"


def test_sockets_to_one_kernel_are_few_and_closed_ones_make_room(page):

    async def many() -> None:
        opened = [await connect(*page, f"?session_id={n}") for n in range(sockets.MOST_SOCKETS)]
        with pytest.raises(httpclient.HTTPClientError) as refused:
            await connect(*page, "?session_id=one-more")
        assert refused.value.code == 429
        for each in opened:
            each.close()

    asyncio.run(many())
    assert ask_kernel(*page) == "ok"


def test_the_old_protocol_next_to_the_page_stops_no_one(clinic, page, other_page):
    """A second socket in the old protocol, then a message with a buffer, once stopped the server."""
    with Watch(clinic) as watch:
        with pytest.raises(httpclient.HTTPClientError):
            asyncio.run(connect(*page, "?session_id=2", protocol=""))
        assert _state(*page)["buffers"]
        time.sleep(1)
    assert_unharmed(clinic, watch, other_page)


def _state(browser: Browser, kernel: str) -> dict:
    """All that the widgets of a page hold."""
    opened = message("comm_open", comm_id="c1", target_name="jupyter.widget.control", data={})
    opened["metadata"] = {"version": "1.0.0"}
    asked = message("comm_msg", comm_id="c1", data={"method": "request_states"})
    return talk(
        browser, kernel, opened, asked,
        until=lambda message: message.get("content", {}).get("data", {}).get("method") == "update_states",
    )  # fmt: skip


# --- what a page may say


@pytest.mark.parametrize(
    ("kind", "channel"),
    [("execute_request", "shell"), ("execute_request", "control"), ("shutdown_request", "shell"),
     ("shutdown_request", "control"), ("comm_open", "control"), ("input_reply", "stdin"), ("comm_msg", "iopub")],
)  # fmt: skip
def test_what_is_not_for_pages_reaches_no_kernel_on_any_channel(clinic, page, tmp_path, kind, channel):
    mark = tmp_path / "executed"
    sent = message(kind, channel, code=f"open({str(mark)!r}, 'w')", restart=False, silent=False, comm_id="c", data={})
    sent["content"]["target_name"] = "flood"
    asked = message("kernel_info_request")
    talk(*page, sent, asked, until=lambda message: message["msg_type"] == "kernel_info_reply")
    assert ask_kernel(*page) == "ok"
    assert not mark.exists()
    assert f"{kind} on {channel} is not for pages" in clinic.log.read_text()


def test_a_broken_frame_closes_its_own_socket_with_a_reason(clinic, page):

    async def closing(sent: bytes | str) -> tuple[int, str]:
        connection = await connect(*page)
        await connection.write_message(sent, binary=isinstance(sent, bytes))
        while await asyncio.wait_for(connection.read_message(), 30) is not None:
            pass
        return connection.close_code, connection.close_reason

    assert asyncio.run(closing("{}")) == (1003, "a text frame; only binary frames are read")
    code, reason = asyncio.run(closing((10**18).to_bytes(8, "little") * 20))
    assert (code, reason) == (1008, f"{10**18} offsets in 160 bytes; there are 6 to 70")
    assert asyncio.run(closing(bytes(sockets.MESSAGE_BYTES + 1)))[0] in (1009, None)
    assert ask_kernel(*page) == "ok"
    assert f"closed: {reason}" in clinic.log.read_text()


# --- thousands of frames, in both directions, while others sign in


def test_thousands_of_frames_from_a_page_keep_no_one_waiting(clinic, misused, other_page):
    anna, kernels = misused  # each admits some sockets a second
    counts = Counter()

    async def misuse(number: int, amount: int) -> None:
        connection, made = None, frames(100 + number)
        for _ in range(amount):
            if connection is None:
                connection = await connect(anna, kernels[number], f"?session_id={number}")
                counts["sockets"] += 1
            kind, sent = next(made)
            counts["frames"] += 1
            counts[kind] += 1
            try:
                await connection.write_message(sent, binary=isinstance(sent, bytes))
                sockets.parse_frame(sent)
            except WebSocketClosedError:
                connection = None
            except sockets.BadMessage:
                while await asyncio.wait_for(connection.read_message(), 30) is not None:
                    pass
                counts["refused"] += 1
                connection = None
        if connection:
            connection.close()

    async def all_at_once() -> None:
        await asyncio.gather(*(misuse(number, 500) for number in range(4)))

    start = time.monotonic()
    with Watch(clinic) as watch:
        asyncio.run(all_at_once())
    print(f"{dict(sorted(counts.items()))} in {time.monotonic() - start:.0f} s; {watch}")
    assert counts["frames"] == 2000
    assert counts["refused"] > 530
    assert_unharmed(clinic, watch, other_page)
    assert all(ask_kernel(anna, kernel) == "ok" for kernel in kernels)


def raw(rng: random.Random) -> bytes:
    """What is no frame, or none that may come: cut, unmasked, of wild lengths, reserved, in fragments."""
    first = rng.choice(
        [0x00, 0x80, 0x01, 0x82, 0x83, 0x8B, 0xC2, 0xF2, 0x08, 0x88, 0x89, 0x09, 0x8A, rng.randrange(256)]
    )
    length = rng.choice(
        [b"\x00", b"\x80", b"\xfd", b"\xfe\xff\xff", b"\x7f" + bytes(8), bytes([rng.randrange(256)]),
         b"\xff" + struct.pack("!Q", rng.choice([0, 2**63, 2**64 - 1, 2**40]))]
    )  # fmt: skip
    return bytes([first]) + length + rng.randbytes(rng.choice([0, 1, 4, 130, 3000])) * rng.choice([1, 1, 50])


def test_data_that_is_not_a_websocket_frame_keeps_no_one_waiting(clinic, anna, other_page):
    rng, kernel, sent, answers = random.Random(7), anna.open_page(), 0, Counter()
    asked = (
        f"GET /api/kernels/{kernel}/channels?session_id=raw HTTP/1.1\r\nHost: {anna.address.netloc}\r\n"
        f"Cookie: {anna.cookie()}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    ).encode()
    with Watch(clinic) as watch:
        for _ in range(100):
            with socket.create_connection((anna.address.hostname, anna.address.port), 30) as connection:
                connection.sendall(asked)
                if rng.random() < 0.8:  # else it is gone before the answer
                    answers[connection.recv(4096)[9:12]] += 1
                with contextlib.suppress(OSError):
                    for _ in range(10):
                        connection.sendall(raw(rng))
                        sent += 1
        time.sleep(1)
        flood = b"\x01\x80mask" + b"\x00\x80mask" * 20_000, b"\x89\x80mask" * 20_000, b"\x8a\x80mask" * 20_000
        for frames_of_a_kind in flood:  # empty fragments, pings, pongs; and nothing of the answers is read
            with socket.create_connection((anna.address.hostname, anna.address.port), 30) as connection:
                connection.sendall(asked)
                answers[connection.recv(4096)[9:12]] += 1
                with contextlib.suppress(OSError):
                    connection.sendall(frames_of_a_kind)
                    time.sleep(0.5)
    print(f"{sent} of no frame, 60000 empty ones; {dict(answers)}; {watch}")
    assert set(answers) <= {b"101", b"429"}  # 429: those before it are still open
    assert answers[b"101"] > 20
    assert_unharmed(clinic, watch, other_page)


def test_thousands_of_broken_messages_of_a_kernel_keep_no_one_waiting(clinic, misused, other_page):
    anna, (kernel, *_) = misused
    rng = random.Random(3)
    header = json.dumps(message("display_data")["header"]).encode()
    ill = {"msg_id": "1", "version": "5.3"}

    def parts() -> list[bytes]:
        whole = [b"topic", b"<IDS|MSG>", b"0" * 64, header, b"{}", b"{}", b"{}", b"buffer"]
        match rng.randrange(6):
            case 0:
                return whole[: rng.randrange(1, len(whole))]
            case 1:
                whole[rng.randrange(len(whole))] = rng.randbytes(rng.randrange(40))
            case 2:
                whole[rng.randrange(3, 7)] = rng.choice(
                    [b"[]", b"null", b"{", b"[" * 5000, b"\xff", b"9" * 5000, b"{}"]
                )
            case 3:
                wrong = rng.choice(["status", "error", 7, None, "execute_input", "stream", "x" * 70_000])
                whole[3] = json.dumps(ill | {"msg_type": wrong}).encode()
                whole[6] = rng.choice([b"[]", b"{}", b"7", b'{"execution_state": []}', b'{"traceback": 7}'])
            case 4:
                return whole + [b"x"] * rng.randrange(300)
            case _:
                return [rng.randbytes(rng.randrange(30)) for _ in range(rng.randrange(1, 9))]
        return whole

    def ordered(amount: int) -> dict:
        sent = [[base64.b64encode(part).decode() for part in parts()] for _ in range(amount)]
        return message("comm_open", comm_id=f"c{rng.random()}", target_name="send", data={"messages": sent})

    with Watch(clinic) as watch:
        for _ in range(15):
            asked = message("kernel_info_request")
            talk(anna, kernel, ordered(200), asked, until=lambda message: message["msg_type"] == "kernel_info_reply")
    print(f"3000 messages of a kernel; {watch}")
    assert_unharmed(clinic, watch, other_page)
    assert "sent a broken message, which is dropped" in clinic.log.read_text()
    assert ask_kernel(anna, kernel) == "ok"


def test_a_browser_that_does_not_read_takes_limited_memory(clinic, misused, other_page):
    anna, (_, kernel, *_) = misused
    words, end = "the browser has not read 64 MiB", time.monotonic() + 10
    flood = message("comm_open", comm_id="c", target_name="flood", data={"times": 80, "bytes": 8 * MB})

    async def unread() -> None:
        connection = await connect(anna, kernel, "?session_id=slow")
        connection.protocol.stream.close_fd  # noqa: B018  # there is a stream, of which nothing more is read
        await connection.write_message(frame(flood), binary=True)
        asyncio.get_running_loop().remove_reader(connection.protocol.stream.fileno())
        while words not in clinic.log.read_text() and time.monotonic() < end:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)  # more of the flood arrives

    with Watch(clinic) as watch:
        asyncio.run(unread())
    print(watch)
    assert_unharmed(clinic, watch, other_page, grown=500)
    assert words in clinic.log.read_text()


def test_a_kernel_that_floods_a_page_which_is_away_ends_and_its_page_learns_so(clinic, misused, other_page):
    anna, (*_, kernel, _) = misused
    flood = message("comm_open", comm_id="c", target_name="flood", data={"times": 60, "bytes": 8 * MB})

    async def away() -> None:
        connection = await connect(anna, kernel, "?session_id=away")
        await connection.write_message(frame(flood), binary=True)
        connection.close()
        await asyncio.sleep(0.5)

    with Watch(clinic) as watch:
        asyncio.run(away())
        assert eventually(lambda: json.loads(anna.get(f"/clinic/there/{kernel}").text)["state"] == "gone")
    print(watch)
    assert_unharmed(clinic, watch, other_page, grown=500)


def test_a_page_that_was_away_for_a_moment_gets_the_messages_it_missed(clinic, misused, anna):
    misuser, (*_, kernel) = misused

    async def back() -> dict:
        connection = await connect(misuser, kernel, "?session_id=flaky")
        few = message("comm_open", comm_id="c", target_name="flood", data={"times": 3, "bytes": 100, "after": 1})
        await connection.write_message(frame(few), binary=True)
        connection.close()
        await asyncio.sleep(2)  # the server knows that the page has gone before the kernel answers
        connection = await connect(misuser, kernel, "?session_id=flaky")
        answer = {"msg_type": ""}
        while answer["msg_type"] != "display_data":
            answer = heard(await asyncio.wait_for(connection.read_message(), 10))
        connection.close()
        return answer

    assert asyncio.run(back())["buffers"] == [bytes(100)]
    assert ask_kernel(anna, anna.open_page()) == "ok"  # after all this, new pages open too
