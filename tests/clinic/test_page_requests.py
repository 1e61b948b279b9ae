"""Requests for a page: who has to wait, whose browser left, and how many of one person are served at once."""

import asyncio
import socket
import time
from collections import Counter
from types import SimpleNamespace

import jinja2
import pytest
from tornado import httpclient, web
from traitlets.config import Config
from voila.configuration import VoilaConfiguration

from lungkit import config
from lungkit.clinic.records import accounts
from lungkit.clinic.web import connections, handlers, identity, serve, sockets
from tests.clinic.test_limits import Clinic, run


class Known(identity.Identity):
    """Everyone is who their cookie says."""

    def get_user(self, handler: web.RequestHandler) -> identity.Visitor:
        name = handler.get_cookie(accounts.COOKIE)
        return identity.Visitor(username=name, session_id=f"session of {name}")


class Requests:
    """A web server in front of a clinic without processes. shown: set when pages may be complete."""

    def __init__(self, clinic: Clinic):
        self.clinic, self.shown = clinic, asyncio.Event()
        clinic.opening, clinic.opened_by, clinic.page_was_made = Counter(), set(), lambda: None
        clinic.door.admit = lambda kernel_id, token: None
        manager = clinic.kernel_manager
        manager.notebook_data, manager.get_pool_size = {}, lambda _: 1
        manager.get_rendered_notebook = self._rendered
        page = {"notebook_path": "app.ipynb", "voila_configuration": VoilaConfiguration(config=Config())}
        settings = {
            "clinic": clinic,
            "kernel_manager": manager,
            "identity_provider": Known(),
            "jinja2_env": jinja2.Environment(loader=jinja2.FileSystemLoader(serve.PAGES), autoescape=True),
        }
        addresses = [("/", handlers.ClinicPage, page), ("/clinic/turn", handlers.Turn)]
        self.server = connections.Server(web.Application(addresses, **settings))
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self.server.add_sockets([listening])
        self.port = listening.getsockname()[1]

    async def _rendered(self, notebook_name: str, **_: object) -> tuple[object, list[str], str]:
        kernel_id = (await self.clinic.kernel_manager._pools[notebook_name].pop(0))["kernel_id"]
        return asyncio.create_task(self._rest()), ["the page"], kernel_id

    async def _rest(self) -> tuple[list[str], object]:
        await self.shown.wait()
        return ["the page"], _nothing()

    def get(self, path: str, person: str = "ada") -> asyncio.Task[httpclient.HTTPResponse]:
        """A request that goes on while the test does other things."""
        asked = httpclient.AsyncHTTPClient(force_instance=True, max_clients=20).fetch(
            f"http://127.0.0.1:{self.port}{path}",
            headers={"Cookie": f"{accounts.COOKIE}={person}"},
            raise_error=False,
            request_timeout=15,
        )
        return asyncio.ensure_future(asked)

    async def get_and_leave(self, until) -> None:
        """A request whose browser leaves when `until()` is true."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {accounts.COOKIE}=ada\r\n\r\n".encode())
        await eventually(until)
        writer.close()
        await asyncio.sleep(0.05)


async def _nothing():
    for each in ():
        yield each


async def eventually(condition) -> None:
    """Wait for it."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "this did not happen"
        await asyncio.sleep(0.01)


def served(scene, **clinic):
    """Play a scene with a server; see test_limits.run."""

    async def play(at: Clinic):
        requests = Requests(at)
        try:
            return await scene(requests, at)
        finally:
            requests.server.stop()
            await requests.server.close_all_connections()

    return run(play, **clinic)


def test_a_browser_that_left_while_it_waited_gets_no_page_and_the_next_request_does():
    async def scene(requests, clinic):
        await requests.get_and_leave(until=lambda: "ada" in clinic.pages._asking)
        requests.shown.set()
        await clinic.finish()
        await asyncio.sleep(0.1)
        given = list(clinic.owners)
        answer = await requests.get("/")
        return given, answer.code, list(clinic.owners), clinic.ended

    assert served(scene) == ([], 200, ["k0"], [])


def test_the_page_of_a_browser_that_left_before_it_was_complete_ends():
    async def scene(requests, clinic):
        asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(clinic.finish()))
        await requests.get_and_leave(until=lambda: clinic.owners)
        requests.shown.set()
        await eventually(lambda: clinic.ended)
        return clinic.ended, list(clinic.owners)

    assert served(scene) == (["k0"], [])


def test_a_page_counts_as_lost_from_the_time_when_it_was_given():
    async def scene(requests, clinic):
        requests.shown.set()
        asked = requests.get("/")
        await eventually(clinic.started)
        await clinic.finish()
        await asked
        gate = clinic.gates["k0"]
        before = gate.lost()
        gate.empty_since -= sockets.LOST + 1
        return before, gate.lost()

    assert served(scene) == (False, True)


@pytest.mark.parametrize("path", ["/", "/clinic/turn"])
def test_a_person_has_one_request_that_waits_and_a_new_one_answers_the_earlier_at_once(path):
    async def scene(requests, clinic):
        clinic.free = 0  # the clinic is full
        earlier = requests.get(path)
        await eventually(lambda: "ada" in clinic.pages._asking)
        other, began = requests.get("/clinic/turn", "ben"), time.monotonic()
        await asyncio.sleep(0.1)
        later = requests.get("/clinic/turn")
        answer = await earlier
        took, waiting = time.monotonic() - began, (later.done(), other.done())
        await asyncio.gather(later, other)
        return took < 0.8, waiting, answer.code, b"You are next." in answer.body

    assert served(scene) == (True, (False, False), 503 if path == "/" else 200, True)


def test_reloading_the_page_that_waits_is_no_opening_of_pages():
    async def scene(requests, clinic):
        clinic.free = 0
        answers = [requests.get("/") for _ in range(config.pages_per_person() + 3)]
        return Counter(answer.code for answer in await asyncio.gather(*answers))

    assert set(served(scene)) == {503}


def test_a_person_cannot_open_more_pages_at_once_than_they_may_have():
    async def scene(requests, clinic):
        most = config.pages_per_person()
        for _ in range(most + 1):
            clinic.pages.expect()  # so many wait
        await clinic.settle()
        while clinic.started():
            await clinic.finish()
        opened = [requests.get("/") for _ in range(most)]
        await eventually(lambda: clinic.opening["ada"] == most)
        refused = await requests.get("/")
        requests.shown.set()
        return refused.code, b"opening at once" in refused.body, {page.code for page in await asyncio.gather(*opened)}

    assert served(scene, pool=1) == (429, True, {200})


def test_only_pages_that_are_still_shown_are_kept_by_one_who_is_at_another_page():
    gates, kernels = {name: sockets.Gate() for name in ("shown", "crashed", "new")}, {}
    for name, gate in gates.items():
        gate.empty_since -= sockets.LOST + 1 if name != "new" else 0
        kernels[name] = SimpleNamespace(last_activity=None)
    gates["shown"].inside.add("a socket")

    class Manager(dict):
        parent = SimpleNamespace(gates=gates)
        get_kernel = dict.get

    sockets.Kernels.used_now(Manager(kernels), [*kernels, "ended"])
    assert [name for name, kernel in kernels.items() if kernel.last_activity] == ["shown", "new"]
