"""Who sends a request: the sign-in page, the session's cookie, signing out."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from lungkit.clinic.records import accounts
from lungkit.clinic.records.store import StoreError

WORDS = {
    403: "This was not allowed. Go back to the start page and try again.",
    404: "There is no such page.",
    429: "Too many of your pages are opening at once. Wait a moment, then go to the start page.",
}
FAILED = "Something went wrong; nothing was saved. Try again in a moment, or tell an administrator."


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
            actor = accounts.whoami(self.parent.store, token)
        except accounts.SignedOut:
            return None
        return Visitor(username=actor.name, session_id=actor.session_id)

    def get_handlers(self) -> list[tuple[str, type]]:
        return [(r"/login", SignInPage), (r"/logout", SignOut)]


class PageHandler(JupyterHandler):
    """Base of the clinic's own pages: browsers keep none of them, and an error is a page that says what to do."""

    @property
    def clinic(self) -> Any:
        """The application, serve.Clinic."""
        return self.settings["clinic"]

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def render_page(self, template: str, **values: object) -> None:
        self.finish(self.settings["jinja2_env"].get_template(template).render(**values))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """A page that says what to do, and nothing about what went wrong inside."""
        error = kwargs.get("exc_info", (None, None))[1]
        words = str(error) if isinstance(error, StoreError) else WORDS.get(status_code, FAILED)
        self.render_page("error.html", words=words, status=status_code)


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
