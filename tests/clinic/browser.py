"""As much of a browser as the server's tests need, and what it says to a page's kernel."""

import asyncio
import contextlib
import http.client
import json
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable
from http.cookies import Morsel, SimpleCookie
from itertools import count

import psutil
from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1
from tornado import httpclient, websocket

_numbers = count()  # a kernel takes the same message once
PROTOCOL = "v1.kernel.websocket.jupyter.org"


class Answer:
    def __init__(self, response: http.client.HTTPResponse):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode(errors="replace")
        self.to = response.headers.get("Location")


class Browser:
    """As much of a browser as these tests need: keeps cookies, follows nothing."""

    def __init__(self, url: str):
        self.address = urllib.parse.urlsplit(url)
        self.cookies: dict[str, Morsel] = {}

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        secure = self.address.scheme == "https"
        more = {"context": ssl._create_unverified_context()} if secure else {}
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self.address.hostname, self.address.port, timeout=60, **more)
        sent = {"Cookie": self.cookie(), "Origin": f"{self.address.scheme}://{self.address.netloc}"} | headers
        with contextlib.closing(connection):  # also where the server was killed meanwhile
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = Answer(connection.getresponse())
        for line in answer.headers.get_all("Set-Cookie", []):
            self.cookies |= SimpleCookie(line)
        return answer

    def cookie(self) -> str:
        return "; ".join(f"{name}={morsel.value}" for name, morsel in self.cookies.items() if morsel.value)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, xsrf: str | None = None, **fields: str) -> Answer:
        """Send a form with the page's XSRF token, or another one (empty: none)."""
        if xsrf is None:
            xsrf = self.cookies["_xsrf"].value
        body = urllib.parse.urlencode(fields | ({"_xsrf": xsrf} if xsrf else {}))
        return self.ask("POST", path, body, **{"Content-Type": "application/x-www-form-urlencoded"})

    def sign_in(self, name: str, password: str) -> Answer:
        self.get("/login")
        return self.post("/login", name=name, password=password)

    def open_page(self) -> str:
        """Load the page, after waiting for one's turn as its script does; returns the number of its kernel."""
        return kernel_in(self.page())

    def page(self) -> Answer:
        """The answer with the page, or the first that is neither it nor the page of those who wait."""
        while (answer := self.get("/")).status == 503:
            self.get("/clinic/turn")
        return answer


def kernel_in(page: Answer) -> str:
    """The number of a page's kernel."""
    assert page.status == 200, page.text
    return json.loads(re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', page.text, re.S)[1])["kernelId"]


def signed_in_as(clinic, name: str) -> Browser:
    """A browser in which that person has just signed in."""
    browser = Browser(clinic.url)
    assert browser.sign_in(name, clinic.passwords[name]).to == "/"
    return browser


def message(kind: str, channel: str = "shell", **content) -> dict:
    """What a page says to its kernel."""
    header = {
        "msg_id": f"m{next(_numbers)}",
        "username": "",
        "session": "1",
        "msg_type": kind,
        "version": "5.3",
        "date": "",
    }
    return {"channel": channel, "header": header, "parent_header": {}, "metadata": {}, "content": content}


def frame(message: dict) -> bytes:
    """The message as it goes through the socket."""
    parts = [json.dumps(message[part]).encode() for part in ("header", "parent_header", "metadata", "content")]
    return serialize_msg_to_ws_v1(parts + message.get("buffers", []), message["channel"])


def heard(answer: bytes) -> dict:
    """A frame of the kernel as a message; of a broken one nothing."""
    channel, parts = deserialize_msg_from_ws_v1(answer)
    try:
        header, parent, _, content = (json.loads(part) for part in parts[:4])
    except (ValueError, RecursionError):
        return {"msg_type": ""}
    return {"channel": channel, "header": header, "msg_type": header["msg_type"], "content": content,
            "parent_header": parent, "buffers": parts[4:]}  # fmt: skip


async def connect(browser: Browser, kernel: str, session: str = "?session_id=1", protocol: str = PROTOCOL, **headers):
    """A socket to a kernel; raises tornado's HTTPClientError where it is refused. protocol: empty offers none."""
    url = f"ws://{browser.address.netloc}/api/kernels/{kernel}/channels{session}"
    sent = {"Cookie": browser.cookie()} | headers
    if protocol:
        sent["Sec-WebSocket-Protocol"] = protocol
    return await websocket.websocket_connect(
        httpclient.HTTPRequest(url, headers=sent, connect_timeout=30), max_message_size=2**28
    )


def talk(browser: Browser, kernel: str, *messages: dict, until: Callable[[dict], bool], **headers: str) -> dict:
    """Send messages through a kernel's socket as the page does; returns the first answer that `until` accepts."""

    async def talking() -> dict:
        connection = await connect(browser, kernel, **headers)
        for each in messages:
            await connection.write_message(frame(each), binary=True)
        answer = {"msg_type": ""}
        while not until(answer):
            answer = heard(await asyncio.wait_for(connection.read_message(), 30))
        connection.close()
        return answer

    return asyncio.run(talking())


def ask_kernel(browser: Browser, kernel: str, **headers: str) -> str:
    """Connect to a kernel's socket and ask how it is."""
    asked = message("kernel_info_request")
    answer = talk(browser, kernel, asked, until=lambda message: message["msg_type"] == "kernel_info_reply", **headers)
    return answer["content"]["status"]


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.03)
    return True


def kernels_of(clinic) -> list[psutil.Process]:
    """The kernels that run now."""
    return [child for child in psutil.Process(clinic.process.pid).children(recursive=True) if _is_kernel(child)]


def _is_kernel(process: psutil.Process) -> bool:
    try:
        return "ipykernel_launcher" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it ended a moment ago
        return False


def server_of(clinic) -> psutil.Process:
    """The process that answers; the one that was started watches over it."""
    watching = psutil.Process(clinic.process.pid)
    return next((child for child in watching.children() if "lungkit.clinic" in " ".join(child.cmdline())), watching)
