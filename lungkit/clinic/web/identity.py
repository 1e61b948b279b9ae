"""Who sends a request: the sign-in page, the session's cookie, signing out."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.auth.identity import IdentityProvider, User
from tornado import web

from lungkit.clinic.records import accounts
from lungkit.clinic.records.store import StoreError
from lungkit.clinic.web.answers import PageHandler


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
            self._form()

    @allow_unauthenticated
    async def post(self) -> None:
        name, password = self.get_body_argument("name", ""), self.get_body_argument("password", "", strip=False)
        try:
            token = await in_thread(self.clinic, accounts.sign_in, name, password, self.request.remote_ip)
        except accounts.SignInRefused as refused:
            self.set_status(429 if refused.wait_seconds else 401)
            if refused.wait_seconds:
                self.set_header("Retry-After", str(refused.wait_seconds))
            self._form(name, str(refused))
        except StoreError as problem:
            self.set_status(503)
            self._form(name, str(problem))
        else:
            secure = self.clinic.secure_cookies
            self.set_cookie(accounts.COOKIE, token, path="/", httponly=True, samesite="Strict", secure=secure)
            self.redirect("/", status=303)

    def _form(self, name: str = "", problem: str = "") -> None:
        self.render_page("sign_in.html", name=name, problem=problem, xsrf=self.xsrf_form_html())


class SignOut(PageHandler):
    """Ends the session and its kernels, with everything that they show of patients."""

    @allow_unauthenticated
    async def post(self) -> None:
        await in_thread(self.clinic, accounts.sign_out, self.get_cookie(accounts.COOKIE, ""))
        if self.current_user:
            await self.clinic.stop_kernels(self.clinic.owners.kernels_of(self.current_user.session_id))
        self.clear_cookie(accounts.COOKIE, path="/")
        self.redirect("/login", status=303)


async def in_thread(clinic: Any, action: Callable[..., Any], *arguments: object) -> Any:
    """Run `action(store, *arguments)` in one of two threads, so that other requests are answered in the meantime.

    Checking a password is slow on purpose, and the records may be locked. Two at once are enough: a check also takes
    much memory on purpose.
    """
    return await asyncio.get_running_loop().run_in_executor(clinic.sign_ins, action, clinic.store, *arguments)
