"""Who sends a request: the sign-in page, the session's cookie, signing out."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.auth.identity import IdentityProvider, User
from tornado import web

from lungkit import config
from lungkit.clinic.records import accounts
from lungkit.clinic.records.store import StoreError
from lungkit.clinic.web.answers import PageHandler

log = logging.getLogger(__name__)
Queue = tuple[bool, str]  # of accounts.queue
MOST_WAITING = 200  # password checks; two threads do them in about ten seconds
BURST, EACH = 60, 2.0  # checks that a queue has at once, and seconds between two further ones
PATIENCE = 10.0  # s that a further one may wait
AGAIN = 5  # s


@dataclass
class Visitor(User):
    """The signed-in person as the web server knows them."""

    session_id: str = ""


class Identity(IdentityProvider):
    """Looks the cookie's token up in the sessions table at each request."""

    auth_enabled = True

    def get_user(self, handler: web.RequestHandler) -> Visitor | None:
        token = handler.get_cookie(accounts.COOKIE, "")
        if not token:
            return None
        try:
            clinic: Any = self.parent
            actor = accounts.whoami(clinic.store, token)
        except accounts.SignedOut:
            return None
        return Visitor(username=actor.name, session_id=actor.session_id)

    def get_handlers(self) -> list[tuple[str, object]]:
        return [(r"/login", SignInPage), (r"/logout", SignOut)]


class SignInPage(PageHandler):
    """The form, and what its fields lead to."""

    @allow_unauthenticated
    def get(self) -> None:
        if self.current_user:
            self.redirect("/")
        else:
            self.clinic.pages.expect()
            _form(self)

    @allow_unauthenticated
    async def post(self) -> None:
        name, password = self.get_body_argument("name", ""), self.get_body_argument("password", "", strip=False)
        address, known = str(self.request.remote_ip), self.get_cookie(accounts.KNOWN_COOKIE, "")
        store = self.clinic.store
        try:
            queue = await in_thread(self.clinic, accounts.queue, name, address, known)
            token = await self.clinic.sign_ins.run(queue, accounts.sign_in, store, name, password, address, known)
        except accounts.SignInRefused as refused:
            self.set_status(429 if refused.wait_seconds else 401)
            if refused.wait_seconds:
                self.set_header("Retry-After", str(refused.wait_seconds))
            _form(self, name, str(refused))
        except StoreError as problem:
            self.set_status(503)
            _form(self, name, str(problem))
        else:
            secure = self.clinic.secure_cookies
            cookie = {"httponly": True, "samesite": "Strict", "secure": secure}
            self.set_cookie(accounts.COOKIE, token, path="/", **cookie)
            known, days = accounts.known_value(token), accounts.KNOWN.days
            self.set_cookie(accounts.KNOWN_COOKIE, known, path="/login", max_age=days * 86_400, **cookie)
            self.redirect("/", status=303)


class SignOut(PageHandler):
    """Ends the session and its kernels, with everything that they show of patients."""

    @allow_unauthenticated
    async def post(self) -> None:
        self.clear_cookie(accounts.COOKIE, path="/")
        problem = ""
        try:
            await in_thread(self.clinic, accounts.sign_out, self.get_cookie(accounts.COOKIE, ""))
        except StoreError as error:
            log.warning("the end of a session was not saved: %s", error)
            problem = "You are signed out in this browser. The records could not note it, so the session itself ends "
            problem += f"after {config.idle_minutes():g} minutes."
        if self.current_user:
            await self.clinic.stop_kernels(self.clinic.owners.kernels_of(self.current_user.session_id))
        if problem:
            self.set_status(503)
            _form(self, problem=problem)
        else:
            self.redirect("/login", status=303)


def _form(page: PageHandler, name: str = "", problem: str = "") -> None:
    page.render_page("sign_in.html", name=name, problem=problem, xsrf=page.xsrf_form_html())


async def in_thread(clinic: Any, action: Callable[..., Any], *arguments: object) -> Any:
    """Run `action(store, *arguments)` in a thread of those for sessions: no password check is in the way.

    The records may be locked; other requests are answered in the meantime.
    """
    return await asyncio.get_running_loop().run_in_executor(clinic.sessions, action, clinic.store, *arguments)


class FairThreads:
    """Two threads for password checks, and queues that take turns: one that sends many holds up no other.

    Two at once are enough: a check takes much memory on purpose. Queues are those of `accounts.queue`. Strangers come
    after people who signed in from the same place before; when too many wait, the longest queue of strangers gets
    shorter. A queue that sent BURST checks has one every EACH seconds from then on.
    """

    def __init__(self, threads: int = 2):
        self._threads, self._idle = ThreadPoolExecutor(threads, thread_name_prefix="sign-in"), threads
        self._waiting: dict[Queue, deque[asyncio.Future[None]]] = {}  # the one with the longest wait first
        self._paid: dict[Queue, float] = {}  # when all checks so far would be paid for, at one every EACH seconds

    async def run(self, queue: Queue, action: Callable[..., Any], *arguments: object) -> Any:
        """`action(*arguments)`, when it is this queue's turn; raises SignInRefused."""
        if pause := self._pause(queue):
            await asyncio.sleep(pause)
        if self._idle:
            self._idle -= 1
        else:
            await self._turn(queue)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, action, *arguments)
        finally:
            self._next()

    def _pause(self, queue: Queue) -> float:
        """Seconds that the next check of this queue has to wait."""
        at = time.monotonic()
        if len(self._paid) > MOST_WAITING:
            self._paid = {each: paid for each, paid in self._paid.items() if paid > at}
        paid = max(at, self._paid.get(queue, at)) + EACH
        pause = paid - at - BURST * EACH
        if pause > PATIENCE:
            raise _too_many()
        self._paid[queue] = paid
        return max(0.0, pause)

    async def _turn(self, queue: Queue) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queue, deque()).append(turn)
        if sum(map(len, self._waiting.values())) > MOST_WAITING:
            longest = max(reversed(self._waiting), key=lambda each: (each[0], len(self._waiting[each])))
            self._waiting[longest].pop().set_exception(_too_many())
            if not self._waiting[longest]:
                del self._waiting[longest]
        await turn

    def _next(self) -> None:
        """Give the thread to the queue that had none for the longest time, strangers last."""
        if not self._waiting:
            self._idle += 1
            return
        queue = min(self._waiting, key=lambda each: each[0])
        waiting = self._waiting.pop(queue)
        waiting.popleft().set_result(None)
        if waiting:
            self._waiting[queue] = waiting

    def shutdown(self, **how: bool) -> None:
        """As ThreadPoolExecutor.shutdown."""
        self._threads.shutdown(**how)


def _too_many() -> accounts.SignInRefused:
    return accounts.SignInRefused(f"Too many sign-ins at once. Try again in {AGAIN} seconds.", AGAIN)
