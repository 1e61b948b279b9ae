"""The queue for pages: its order, when a page is started, how much memory has to be left, and silent connections."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jinja2
import pytest
import sqlalchemy as sa
from tornado import httpclient, web
from traitlets.config import Configurable

from lungkit.clinic.records import accounts
from lungkit.clinic.records.accounts import COOKIE, SignInRefused
from lungkit.clinic.records.store import Store
from lungkit.clinic.web import connections, handlers, identity, kernels, sockets, warm
from lungkit.clinic.web.serve import PAGES
from lungkit.clinic.web.waiting import ASKING, KEPT, Queue
from lungkit.errors import LungkitError

PAGE = 270 * 2**20  # LUNGKIT_PAGE_MB


# --- the queue


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_people_are_served_in_the_order_of_their_coming_and_each_waits_once():
    queue = Queue(Clock())
    assert [queue.ask(name) for name in ("ada", "ben", "eve", "ada", "eve")] == [1, 2, 3, 1, 3]
    queue.leave("ada")
    assert [queue.ask(name) for name in ("eve", "ben", "ada")] == [2, 1, 3]


def test_one_whose_browser_stopped_asking_holds_up_no_one_and_keeps_the_place_for_a_while():
    clock = Clock()
    queue = Queue(clock)
    queue.ask("ada")
    clock.now += ASKING + 1
    assert (queue.ask("ben"), len(queue)) == (1, 1)
    assert (queue.ask("ada"), queue.ask("ben")) == (1, 2)  # a hidden tab, for example
    clock.now += KEPT + 1
    assert (queue.ask("ben"), queue.ask("ada")) == (1, 2)


# --- processes that are started before they are needed


class Process:
    """A page's process."""

    def __init__(self):
        self.status, self.pid = None, os.getpid()

    def poll(self):
        return self.status


class Manager(dict):
    """As much of Voila's kernel manager as warm.Pages uses; a start ends when the test says so."""

    notebook_path = "app.ipynb"

    def __init__(self):
        super().__init__()
        self._pools, self.kernel_pools_config, self.starts = {}, {"default": {"pool_size": 0}}, []

    def fill_if_needed(self, delay, notebook_name):
        pool = self._pools.setdefault(notebook_name, [])
        while len(pool) < self.kernel_pools_config["default"]["pool_size"]:
            start = asyncio.get_running_loop().create_future()
            pool.append(start)
            self.starts.append(start)

    def list_kernel_ids(self):
        return list(self)

    def get_kernel(self, kernel_id):
        return SimpleNamespace(provisioner=SimpleNamespace(process=self[kernel_id]))


class Clinic:
    """A clinic without a server. pages_fit: for how many pages there is memory at first."""

    def __init__(self, pool=0, pages_fit=1000):
        self.kernel_manager, self.free = Manager(), warm.reserve() + int(pages_fit * PAGE)
        self.door = SimpleNamespace(asked=lambda kernel_id: kernel_id in self.waiting)
        self.waiting, self.ended, self.open, self.gates = set(), [], [], {}
        self.owners = kernels.KernelOwners()
        self.pages = warm.Pages(self, pool, lambda: self.free - PAGE * len(self.kernel_manager))
        self.pages._growth = lambda _: PAGE * sum(not start.done() for start in self.pages._started)

    async def stop_kernels(self, kernel_ids):
        for kernel_id in kernel_ids:
            self.ended.append(kernel_id)
            self.kernel_manager.pop(kernel_id, None)
            self.owners.pop(kernel_id, None)

    def started(self) -> int:
        """Starts that go on."""
        return len(self.pages._started)

    async def finish(self) -> str:
        """The oldest start ends: its process waits for a person."""
        start = next(start for start in self.kernel_manager.starts if not start.done())
        kernel_id = f"k{self.kernel_manager.starts.index(start)}"
        self.kernel_manager[kernel_id] = Process()
        self.waiting.add(kernel_id)
        start.set_result({"kernel_id": kernel_id, "task": asyncio.get_running_loop().create_future()})
        await self.settle()
        return kernel_id

    async def settle(self):
        self.pages.wake()
        for _ in range(10):
            await asyncio.sleep(0)
        self.pages._look()

    async def visit(self, person: str) -> str:
        """The kernel that this person gets, after waiting for the turn."""
        while await self.pages.turn(person):
            pass
        self.pages.take(person)
        pool = self.kernel_manager._pools["app.ipynb"]
        kernel_id = (await pool.pop(0))["kernel_id"]
        self.open.append((person, kernel_id))
        return kernel_id


def run(scene, **clinic):
    """Play a scene, a coroutine function, at a clinic whose pages are looked after."""

    async def play():
        at = Clinic(**clinic)
        keeping = asyncio.create_task(at.pages.keep())
        try:
            return await asyncio.wait_for(scene(at), 20)
        finally:
            keeping.cancel()

    return asyncio.run(play())


async def _arrive(clinic, *people) -> list[asyncio.Task]:
    visits = []
    for person in people:
        visits.append(asyncio.create_task(clinic.visit(person)))
        await clinic.settle()
    return visits


def test_as_many_processes_start_at_once_as_there_are_cores_and_the_first_who_came_is_the_first_in():
    async def scene(clinic):
        visits = await _arrive(clinic, *(f"person{number}" for number in range(7)))
        most = clinic.started()
        for _ in visits:
            await clinic.finish()
            most = max(most, clinic.started())
        await asyncio.gather(*visits)
        return most, [person for person, _ in clinic.open]

    most, order = run(scene)
    assert most == warm.AT_ONCE
    assert order == [f"person{number}" for number in range(7)]


def test_processes_are_ready_before_anyone_comes_and_are_replaced_after_use():
    async def scene(clinic):
        await clinic.settle()
        before = await clinic.finish(), await clinic.finish()
        first = await clinic.visit("ada")
        await clinic.settle()
        return before, first, clinic.started()

    before, first, started = run(scene, pool=2)
    assert (first, started) == (before[0], 1)


def test_more_are_started_while_people_look_at_the_sign_in_page_up_to_a_bound():
    async def scene(clinic):
        await clinic.settle()
        await clinic.finish()
        idle = clinic.started()
        for _ in range(50):
            clinic.pages.expect()
        await clinic.settle()
        while clinic.started():
            await clinic.finish()
        return idle, len(clinic.pages._ready)

    assert run(scene, pool=1) == (0, warm.MOST_AHEAD)


def test_a_process_that_died_while_it_waited_is_replaced_and_given_to_no_one():
    async def scene(clinic):
        await clinic.settle()
        dead = await clinic.finish()
        clinic.kernel_manager[dead].status = -9
        visit = asyncio.create_task(clinic.visit("ada"))
        await clinic.settle()
        new = await clinic.finish()
        return dead, new, await visit

    dead, new, got = run(scene, pool=1)
    assert got == new != dead


def test_a_start_that_fails_is_tried_again_after_a_pause_and_the_page_says_so():
    async def scene(clinic):
        (visit,) = await _arrive(clinic, "ada")
        clinic.kernel_manager.starts[0].set_exception(OSError("no process"))
        await clinic.settle()
        words, paused = clinic.pages.words(1), clinic.started()
        clinic.pages._pause_until = 0
        await clinic.settle()
        await clinic.finish()
        return words, paused, await visit

    words, paused, got = run(scene)
    assert "could not be started" in words
    assert (paused, got) == (0, "k1")


def test_people_who_wait_hold_up_nothing_else(monkeypatch):
    async def wait_for(what, seconds):  # as Python has it since 3.12: what is there already is no reason to pause
        async with asyncio.timeout(seconds):
            return await what

    monkeypatch.setattr(asyncio, "wait_for", wait_for)

    async def scene(clinic):
        asked, began = [asyncio.create_task(clinic.pages.turn(name)) for name in ("ada", "ben")], time.monotonic()
        for _ in range(5):
            await asyncio.sleep(0)
        took = time.monotonic() - began
        for each in asked:
            each.cancel()
        return took

    assert run(scene) < 0.9


# --- memory


def test_without_room_people_wait_in_their_order_and_no_page_is_ended_for_them():
    async def scene(clinic):
        visits = await _arrive(clinic, "ada", "ben", "eve", "leo")
        for _ in range(2):
            await clinic.finish()
        await clinic.settle()
        place, words = await clinic.pages.turn("leo"), clinic.pages.words(2)
        blocked = clinic.started(), clinic.pages.full, list(clinic.ended)
        await clinic.stop_kernels([clinic.open[0][1]])  # a colleague closes a page
        await clinic.settle()
        await clinic.finish()
        inside = [person for person, _ in clinic.open]
        for visit in visits:
            visit.cancel()
        return place, words, blocked, inside

    place, words, blocked, inside = run(scene, pages_fit=2)
    assert place == 2
    assert words.startswith("You are number 2 in the queue. The clinic is full")
    assert blocked == (0, True, [])
    assert inside == ["ada", "ben", "eve"]


def test_at_a_full_clinic_a_page_of_ones_own_whose_browser_is_gone_makes_room_and_no_other_does():
    async def scene(clinic):
        visits = await _arrive(clinic, "ada", "ben", "eve")
        for _ in visits:
            await clinic.finish()
        long_ago = time.monotonic() - sockets.LOST - 1
        for person, kernel_id in clinic.open:
            clinic.owners.add(kernel_id, f"session of {person}", person)
            clinic.gates[kernel_id] = sockets.Gate()
            clinic.gates[kernel_id].empty_since = long_ago
        (eves,) = clinic.owners.of_person("eve")
        clinic.gates[eves].inside.add("a socket")
        (adas,) = clinic.owners.of_person("ada")
        again = await _arrive(clinic, "eve", "ada")
        await clinic.finish()
        ended = list(clinic.ended)
        for visit in again:
            visit.cancel()
        return ended == [adas]

    assert run(scene, pages_fit=3)


def test_warm_processes_leave_room_for_one_who_comes_and_end_first_when_memory_gets_short():
    async def scene(clinic):
        await clinic.settle()
        await clinic.finish()
        ahead = clinic.started()
        clinic.free = warm.reserve() - 1  # others on the machine took it
        clinic.pages._end_spare()
        await clinic.settle()
        return ahead, clinic.ended

    assert run(scene, pool=2, pages_fit=2) == (0, ["k0"])


def test_what_open_pages_may_still_need_counts_as_taken(monkeypatch):
    sizes = {1: 100, 2: 180, 3: 300}  # MiB of its own

    class Measured:
        def __init__(self, pid=0):
            self.pid = pid

        def memory_info(self):
            return SimpleNamespace(rss=(sizes.get(self.pid, 90) + 60) * 2**20, shared=60 * 2**20)

    monkeypatch.setattr(warm.psutil, "Process", Measured)
    monkeypatch.setenv("LUNGKIT_CLINIC_MB", "2000")

    async def room(left):
        clinic = Clinic()
        del clinic.pages._growth
        clinic.kernel_manager.update({f"k{pid}": SimpleNamespace(pid=pid) for pid in sizes})
        clinic.pages._left = lambda: left * 2**20
        return clinic.pages._room() / 2**20

    growth, reserve = 170 + 90 + 0, warm.reserve() / 2**20
    assert asyncio.run(room(1000)) == 1000 - growth - reserve
    assert asyncio.run(room(9000)) == 2000 - (100 + 180 + 300 + 90) - 60 - growth - reserve


def test_pages_start_where_the_system_does_not_tell_what_processes_share(monkeypatch):
    class OnMacOS:
        def memory_info(self):
            return SimpleNamespace(rss=100 * 2**20, vms=2**32)

    monkeypatch.setattr(warm.psutil, "Process", OnMacOS)
    monkeypatch.setenv("LUNGKIT_CLINIC_MB", "500")

    async def room():
        return Clinic().pages._room()

    assert asyncio.run(room()) == 400 * 2**20 - warm.reserve()


def test_larger_uploads_leave_more_room_for_the_server(monkeypatch):
    assert warm.reserve() == 128 * 2**20
    monkeypatch.setenv("LUNGKIT_UPLOAD_MB", "500")
    assert warm.reserve() == 1000 * 2**20


# --- pages of one person


def test_a_person_has_a_few_pages_in_all_sessions_and_a_further_one_ends_the_oldest(monkeypatch):
    monkeypatch.setenv("LUNGKIT_PAGES_PER_PERSON", "3")
    owners = kernels.KernelOwners()
    assert [owners.add(f"k{n}", f"session{n % 2}", "ada") for n in range(3)] == [[], [], []]
    assert owners.add("b", "session9", "ben") == []
    assert owners.add("k3", "session0", "ada") == ["k0"]
    owners.keep_only(["k3", "b"])
    assert owners.add("k4", "session1", "ada") == []


def test_a_limit_that_is_no_number_is_refused_at_the_start(monkeypatch):
    from lungkit import config

    for variable, read in (("PAGE_MB", config.page_bytes), ("PAGES_PER_PERSON", config.pages_per_person)):
        monkeypatch.setenv(f"LUNGKIT_{variable}", "many")
        with pytest.raises(LungkitError, match=f"LUNGKIT_{variable}=many: give a number above 0"):
            read()


# --- password checks


def checked(scene, *, threads=1):
    """Play a scene, a coroutine function, with threads for password checks."""

    async def play():
        sign_ins = identity.FairThreads(threads)
        try:
            return await asyncio.wait_for(scene(sign_ins), 20)
        finally:
            sign_ins.shutdown()

    return asyncio.run(play())


async def _begin(sign_ins, queue, *actions) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(sign_ins.run(queue, *action)) for action in actions]
    await asyncio.sleep(0)
    return tasks


def _refused(answers) -> list[int]:
    """How long those who were refused have to wait, in seconds."""
    return [answer.wait_seconds for answer in answers if isinstance(answer, SignInRefused)]


def test_queues_take_turns_so_one_that_sends_many_sign_ins_holds_up_no_other():
    order = []

    async def scene(sign_ins):
        tasks = await _begin(sign_ins, (True, "flood"), *((order.append, n) for n in range(20)))
        tasks += await _begin(sign_ins, (True, "other"), (order.append, "other"))
        await asyncio.gather(*tasks)

    checked(scene)
    assert order.index("other") <= 2
    assert [n for n in order if n != "other"] == list(range(20))


def test_people_who_signed_in_there_before_wait_for_no_strangers_from_many_addresses():
    order, go = [], threading.Event()

    async def scene(sign_ins):
        tasks = await _begin(sign_ins, (True, "first"), (go.wait, 10))
        for number in range(50):
            tasks += await _begin(sign_ins, (True, f"address {number}"), (order.append, number))
        tasks += await _begin(sign_ins, (False, "ada"), (order.append, "ada"))
        go.set()
        await asyncio.gather(*tasks)

    checked(scene)
    assert order == ["ada", *range(50)]


def test_when_too_many_wait_the_longest_queue_of_strangers_gets_shorter(monkeypatch):
    monkeypatch.setattr(identity, "MOST_WAITING", 10)
    go = threading.Event()

    async def scene(sign_ins):
        first = await _begin(sign_ins, (True, "first"), (go.wait, 10))
        own = await _begin(sign_ins, (False, "ada"), *[(int,)] * 6)
        few = await _begin(sign_ins, (True, "few"), *[(int,)] * 2)
        many = await _begin(sign_ins, (True, "many"), *[(int,)] * 8)
        more = await _begin(sign_ins, (True, "one"), (int,))
        go.set()
        return [_refused(await asyncio.gather(*each, return_exceptions=True)) for each in (first, own, few, many, more)]

    assert checked(scene) == [[], [], [], [identity.AGAIN] * 7, []]


def test_a_queue_that_sent_many_checks_has_one_from_time_to_time_and_others_have_theirs(monkeypatch):
    for name, value in (("BURST", 3), ("EACH", 0.1), ("PATIENCE", 0.25)):
        monkeypatch.setattr(identity, name, value)
    began = []

    async def scene(sign_ins):
        flood = await _begin(sign_ins, (True, "flood"), *[(lambda: began.append(time.monotonic()),)] * 9)
        other = await _begin(sign_ins, (True, "other"), (int,))
        start = time.monotonic()
        await asyncio.gather(*other)
        waited = time.monotonic() - start
        return waited, _refused(await asyncio.gather(*flood, return_exceptions=True))

    waited, refused = checked(scene)
    assert waited < 0.1
    assert refused == [identity.AGAIN] * 4
    assert began[2] - began[0] < 0.1
    assert began[4] - began[0] > 0.19


def test_queues_of_the_past_take_no_memory(monkeypatch):
    monkeypatch.setattr(identity, "EACH", 0.0)

    async def scene(sign_ins):
        for number in range(1000):
            await sign_ins.run((True, str(number)), int)
        return len(sign_ins._paid)

    assert checked(scene) <= identity.MOST_WAITING + 1


class SessionsOnly(Configurable):
    """A clinic that signs people out, and lets their sessions go on; all its password checks wait for `go`."""

    def __init__(self, store):
        super().__init__()
        self.store, self.go, self.ended = store, threading.Event(), []
        self.sign_ins, self.sessions = identity.FairThreads(1), ThreadPoolExecutor(1)
        self.owners, self.kernel_manager = kernels.KernelOwners(), SimpleNamespace(used_now=lambda _: None)

    async def stop_kernels(self, kernel_ids):
        self.ended += kernel_ids


def at_a_clinic(store, scene):
    """Play a scene, a coroutine function, with a clinic of sessions; `ask(path, token)` posts to it."""

    async def play():
        clinic = SessionsOnly(store)
        app = web.Application(
            [("/logout", identity.SignOut), (r"/clinic/active/(?P<kernel_id>\w+)", handlers.SomeoneIsThere)],
            clinic=clinic, identity_provider=identity.Identity(parent=clinic), disable_check_xsrf=True,
            allow_unauthenticated_access=False, jinja2_env=jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES)),
        )  # fmt: skip
        server = app.listen(0, "127.0.0.1")
        port = next(iter(server._sockets.values())).getsockname()[1]

        async def ask(path, token):
            return await httpclient.AsyncHTTPClient().fetch(
                f"http://127.0.0.1:{port}{path}", method="POST", body="", headers={"Cookie": f"{COOKIE}={token}"},
                follow_redirects=False, raise_error=False, request_timeout=5,
            )  # fmt: skip

        try:
            return await asyncio.wait_for(scene(clinic, ask), 20)
        finally:
            clinic.go.set()
            server.stop()
            clinic.sign_ins.shutdown()
            clinic.sessions.shutdown()

    return asyncio.run(play())


@pytest.fixture
def token(sqlite_store, cheap_passwords) -> str:
    """Ada's session."""
    with sqlite_store.write() as db:
        password = accounts.add_user(db, "ada", "Ada Test", "doctor")
    return accounts.sign_in(sqlite_store, "ada", password, "127.0.0.1")


def test_while_all_password_checks_of_an_address_wait_people_there_sign_out_and_stay_signed_in(sqlite_store, token):
    async def scene(clinic, ask):
        flood = await _begin(clinic.sign_ins, (True, "127.0.0.1"), *[(clinic.go.wait, 10)] * 100)
        clinic.owners.add("k1", accounts.whoami(sqlite_store, token).session_id, "ada")
        there, out = await ask("/clinic/active/k1", token), await ask("/logout", token)
        clinic.go.set()
        refused = _refused(await asyncio.gather(*flood, return_exceptions=True))
        return json.loads(there.body)["state"], out.code, out.headers["Location"], clinic.ended, len(refused) > 0

    assert at_a_clinic(sqlite_store, scene) == ("there", 303, "/login", ["k1"], True)
    with pytest.raises(accounts.SignedOut):
        accounts.whoami(sqlite_store, token)


def test_who_signs_out_while_the_records_cannot_be_written_is_signed_out_in_the_browser_and_told(sqlite_url, token):
    hasty = Store(sqlite_url, busy_seconds=0.1)

    async def scene(clinic, ask):
        clinic.owners.add("k1", accounts.whoami(hasty, token).session_id, "ada")
        with Store(sqlite_url).write() as db:
            db.execute(sa.select(accounts.User))
            return await ask("/logout", token), clinic.ended

    answer, ended = at_a_clinic(hasty, scene)
    hasty.close()
    assert (answer.code, ended) == (503, ["k1"])
    assert f'{COOKIE}="";' in answer.headers["Set-Cookie"]
    assert "the session itself ends after 30 minutes" in answer.body.decode()


# --- connections


class Echo(web.RequestHandler):
    def get(self):
        self.finish("here")

    def post(self):
        self.finish(str(len(self.request.body)))


@web.stream_request_body
class File(web.RequestHandler):
    size = 0

    def prepare(self):
        self.settings["server"].heard(self.request.connection.stream)

    def data_received(self, chunk):
        self.size += len(chunk)

    def post(self):
        self.finish(str(self.size))


class Large(web.RequestHandler):
    SIZE = 2**25  # bytes; more than the system keeps for a connection

    def get(self):
        self.finish(b"x" * self.SIZE)


class Look(web.RequestHandler):
    def get(self):
        self.settings["server"]._close_unread()


class Open(web.RequestHandler):
    def get(self):
        self.finish(str(len(self.settings["server"]._open)))


def connected(scene, tls=None, **limits):
    """Play a scene, a function, in a thread against a server; it gets the server's address."""

    async def play():
        application = web.Application(
            [("/", Echo), ("/file", File), ("/large", Large), ("/look", Look), ("/open", Open)]
        )
        server = application.settings["server"] = connections.Server(application, ssl_options=tls, **limits)
        listening = socket.create_server(("127.0.0.1", 0), backlog=600)
        listening.setblocking(False)
        server.add_sockets([listening])
        try:
            return await asyncio.to_thread(scene, listening.getsockname())
        finally:
            server.stop()
            await server.close_all_connections()

    return asyncio.run(play())


def _ends(client: socket.socket, patience: float = 10) -> bool:
    """Whether the server closes the connection in time."""
    client.settimeout(patience)
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def _asked(address, path="/") -> bytes:
    with socket.create_connection(address, 10) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(1000), b""))


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_connection_that_does_not_finish_the_head_of_its_request_is_closed(begun):
    def scene(address):
        with socket.create_connection(address, 10) as client:
            client.sendall(begun)
            return _ends(client)

    assert connected(scene, idle_connection_timeout=0.3)


def test_a_tls_handshake_that_does_not_end_is_closed(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def scene(address):
        with socket.create_connection(address, 10) as client:
            client.sendall(b"\x16\x03\x01")
            return _ends(client)

    assert connected(scene, tls=context, idle_connection_timeout=0.3)


def test_a_form_that_trickles_is_closed_and_a_slow_one_within_the_time_arrives():
    def scene(address, pause):
        with socket.create_connection(address, 10) as client:
            client.sendall(b"POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            for letter in (b"a", b"b", b"c", b"d"):
                time.sleep(pause)
                try:
                    client.sendall(letter)
                except ConnectionError:
                    return b""
            client.settimeout(10)
            try:
                return client.recv(1000)
            except ConnectionError:
                return b""

    assert connected(lambda address: scene(address, 0.3), body_timeout=0.5) == b""
    assert connected(lambda address: scene(address, 0.02), body_timeout=5).endswith(b"\r\n4")


def test_five_hundred_half_open_connections_do_not_stop_a_visitor_and_the_oldest_close_first():
    connections.allow_many()

    def scene(address):
        silent = [socket.create_connection(address, 10) for _ in range(500)]
        try:
            for each in silent:
                each.sendall(b"GET / HTTP/1.1\r\n")
            answer = _asked(address)
            return answer, _ends(silent[0]), _ends(silent[-1], 0.2)
        finally:
            for each in silent:
                each.close()

    answer, first_closed, last_closed = connected(scene, most_silent=100)
    assert answer.endswith(b"here")
    assert first_closed
    assert not last_closed


def test_forms_that_are_not_complete_count_as_silent_and_files_that_a_page_sends_do_not():
    def scene(address):
        clients = []
        try:
            for path in ("/file", "/", "/", "/", "/"):
                clients.append(socket.create_connection(address, 10))
                clients[-1].sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabc".encode())
                time.sleep(0.05)
            file, *forms = clients
            closed = [_ends(each, 0.2) for each in forms]
            file.sendall(b"d")
            return closed, file.recv(1000)[-1:]
        finally:
            for each in clients:
                each.close()

    assert connected(scene, most_silent=3) == ([True, False, False, False], b"4")


def test_of_too_many_connections_the_oldest_closes_of_the_address_that_has_most():
    def scene(address):
        clients = []
        try:
            for _ in range(5):
                clients.append(socket.create_connection(address, 10))
                clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                clients[-1].recv(1000)
            return [_ends(each, 0.2) for each in clients]
        finally:
            for each in clients:
                each.close()

    assert connected(scene, most_open=3) == [True, True, False, False, False]


def _begin_to_read(address) -> socket.socket:
    client = socket.create_connection(address, 10)
    client.sendall(b"GET /large HTTP/1.0\r\nHost: x\r\n\r\n")
    assert client.recv(100)
    return client


def _read(client: socket.socket, most: int) -> int:
    """Read so many bytes, or fewer if it ends before; returns how many."""
    size = 0
    with contextlib.suppress(ConnectionError):
        while size < most and (piece := client.recv(2**16)):
            size += len(piece)
    return size


def test_an_answer_of_which_nothing_was_read_between_two_looks_is_cut_off_and_no_other():
    def scene(address):
        with _begin_to_read(address) as stuck, _begin_to_read(address) as slow:
            _asked(address, "/look")
            half = _read(slow, Large.SIZE // 2)
            _asked(address, "/look")
            whole = Large.SIZE - 100
            return _read(stuck, 2 * whole) >= whole, half + _read(slow, 2 * whole) >= whole

    assert connected(scene) == (False, True)


def test_the_server_looks_itself_at_who_reads():
    def scene(address):
        with _begin_to_read(address):
            end = time.monotonic() + 10
            while not _asked(address, "/open").endswith(b"\r\n1") and time.monotonic() < end:
                time.sleep(0.05)
            return _asked(address, "/open")[-1:]

    assert connected(scene, unread_seconds=0.1) == b"1"  # the question itself


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_lets_it(monkeypatch):
    limits, most = [(256, connections.resource.RLIM_INFINITY)], 10_240

    def set_limit(_, wanted):
        if wanted[0] > most:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(connections.resource, "setrlimit", set_limit)
    connections.allow_many()
    assert 256 < limits[-1][0] <= most
    most, before = 0, limits[-1]
    connections.allow_many()  # nothing more is allowed
    assert limits[-1] == before


def test_a_file_may_take_as_long_as_a_slow_line_needs():
    at_1_megabit = 64 * 2**20 / 125_000
    assert connections.upload_seconds(64 * 2**20) > at_1_megabit
    assert connections.upload_seconds(0) == connections.FORM_SECONDS
