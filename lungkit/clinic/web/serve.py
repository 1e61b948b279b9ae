"""The clinic's web server: Voila on one notebook, behind a sign-in page of its own.

What a browser can reach is the list in `Clinic.init_handlers`; everything else is 404. A page's kernel belongs to the
session it was started for: its sockets and its state answer to nobody else. What a person may do is decided in the
kernel, at each action (accounts.Access); here only who gets a kernel at all.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jinja2
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import ensure_async
from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.handlers import KernelHandler
from tornado import httpclient, httpserver, ioloop, web
from traitlets import Any, Bool, List
from traitlets.config import Config
from voila.app import Voila
from voila.request_info_handler import RequestInfoSocketHandler
from voila.static_file_handler import MultiStaticFileHandler
from voila.tornado.handler import TornadoVoilaHandler

from lungkit import config
from lungkit.clinic.records import accounts
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.visitor import DOOR
from lungkit.clinic.web import sockets, supervisor
from lungkit.errors import LungkitError

PAGES = Path(__file__).parent / "pages"
MOST_PAGES = 4  # open at once in one session; the oldest gives way, since each holds a kernel
# All that the page's widgets are made of; what else is installed is not loaded.
EXTENSIONS = ["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8", "anywidget"]
KERNEL_ID = r"(?P<kernel_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
# Scripts come from this server alone; blob: is how anywidget loads its modules.
POLICY = (
    "default-src 'none'; script-src 'self' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # none at all would make forms come from the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
KERNELS = {  # nothing is reported to anyone, nothing comes from somebody's own configuration
    "ORT_DISABLE_TELEMETRY": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "JUPYTER_PATH": str(PAGES),
    # An image's memory goes back to the system with the image; glibc would keep it, for as much as was ever used.
    "MALLOC_MMAP_THRESHOLD_": str(2**22),
    "MALLOC_ARENA_MAX": "2",
}


def main() -> None:
    """The server as a process of its own; the first argument holds its settings as JSON.

    supervisor.serve starts it, with the listening sockets open and a line to write on: "open" once, "alive" for each
    answer that the server gave itself, "problem" and the words where a person has to mend something.
    """
    given = json.loads(sys.argv[1])
    line = Line(given.pop("line"))
    _end_with(given.pop("watched_by"))
    try:
        run(line, [socket.socket(fileno=number) for number in given.pop("listening")], **given)
    except LungkitError as problem:
        line.say(f"problem {json.dumps(str(problem)[:2000])}")
        raise SystemExit(1) from None


def settle() -> None:
    """What was loaded stays for good: Python need not go through it again and again, which holds up every answer."""
    gc.collect()
    gc.freeze()


class Line:
    """To the process that watches over this one."""

    def __init__(self, number: int):
        os.set_blocking(number, False)
        self._number = number

    def say(self, words: str) -> None:
        """Write a line; raises BrokenPipeError where no one is there any more."""
        with contextlib.suppress(BlockingIOError):  # it does not run at the moment, either
            os.write(self._number, f"{words}\n".encode())


def _end_with(watched_by: int) -> None:
    """Have this process end as soon as that one has; where the system cannot do it, the first word to it finds out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != watched_by:
        raise SystemExit(1)


def run(
    line: Line,
    listening: list[socket.socket],
    port: int,
    host: str,
    certfile: str | None,
    keyfile: str | None,
    pool: int,
    behind_proxy: bool,
    notebook: str,
) -> None:
    """Serve on the sockets until SIGTERM or SIGINT; the settings are those of supervisor.serve."""
    tls = supervisor.tls_context(certfile, keyfile)
    os.umask(0o077)
    with supervisor.private_folder() as folder:
        os.environ.update(KERNELS)
        for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            os.environ[variable] = str(folder / "jupyter")
        os.environ[DOOR] = str(folder / "door")
        clinic = Clinic(
            store=Store(),
            sockets=listening,
            tls=tls,
            behind_proxy=behind_proxy,
            secure_cookies=bool(tls) or behind_proxy,
            connection_dir_root=str(folder),
            config=_settings(port, host, Path(notebook), pool, secure=bool(tls) or behind_proxy),
        )
        clinic.initialize([])
        asyncio.run(clinic.run(line))


def _settings(port: int, host: str, notebook: Path, pool: int, secure: bool) -> Config:
    idle = max(1, int(config.idle_minutes() * 60))
    settings: dict[str, dict] = {}
    settings["Voila"] = {
        "port": port,
        "ip": host,
        "port_retries": 0,
        "open_browser": False,
        "notebook_path": str(notebook),
        "config_file_paths": [],
        "token": "",
        "identity_provider_class": Identity,
        "authorizer_class": OwnKernelOnly,
        "kernel_websocket_connection_class": sockets.Connection,
        "log_level": "WARN",
        "tornado_settings": {
            "headers": HEADERS,
            # Texts and clicks; anything larger closes the socket. Files come by themselves (Upload).
            "websocket_max_message_size": sockets.MESSAGE_BYTES,
            "xsrf_cookie_kwargs": {"samesite": "Strict", "secure": secure},
        },
    }
    settings["VoilaConfiguration"] = {
        "template": "clinic",
        "theme": "light",
        "allow_template_override": "NO",
        "allow_theme_override": "NO",
        "preheat_kernel": pool > 0,
        "default_pool_size": pool,
        "extension_allowlist": EXTENSIONS,
        "page_config_hook": _parts_below,
        "show_tracebacks": False,
        "kernel_spec_manager_class": OwnPython,
        "multi_kernel_manager_class": sockets.Kernels,
    }
    settings["MappingKernelManager"] = {
        "cull_idle_timeout": idle,
        "cull_interval": max(1, min(60, idle // 4)),
        "cull_connected": True,
    }
    settings["KernelManager"] = {"transport": "ipc", "shutdown_wait_time": 3.0}
    # A kernel that died has lost its page: it is not started again, the page says so.
    settings["KernelRestarter"] = {"restart_limit": 0}
    return Config(settings)


def _parts() -> str:
    """Where the page's scripts and styles are: a path of its own for each version, so that browsers may keep them."""
    versions = [metadata.version(name) for name in ("voila", "jupyterlab_widgets", "anywidget")]
    return "/parts/" + "-".join(versions)


def _parts_below(page_config: dict, **_) -> dict:
    return page_config | {"fullStaticUrl": f"{_parts()}/voila", "fullLabextensionsUrl": f"{_parts()}/extensions"}


# --- who is there


@dataclass
class Visitor(User):
    """The signed-in person as the web server knows him."""

    session_id: str = ""


class Identity(IdentityProvider):
    """Who is behind the cookie: asked of the sessions table at each request."""

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

    def get_handlers(self) -> list:
        return [(r"/login", SignInPage), (r"/logout", SignOut)]


class OwnPython(KernelSpecManager):
    """Kernels run with this very Python, whatever other kernels are installed."""

    def _kernel_dirs_default(self) -> list[str]:
        return []


class OwnKernelOnly(Authorizer):
    """A kernel answers to the session it was started for; nothing else is allowed by anything that asks."""

    def is_authorized(self, handler: JupyterHandler, user: Visitor, action: str, resource: str) -> bool:
        kernel_id = handler.path_kwargs.get("kernel_id")
        return resource == "kernels" and self.parent.claims.owner(kernel_id) == user.session_id


class Claims:
    """Which session each page's kernel was started for."""

    def __init__(self):
        self._owner: dict[str, str] = {}  # kernel to session, oldest first

    def add(self, kernel_id: str, session_id: str) -> list[str]:
        """Note a new page; returns kernels of the session's oldest pages, which give way to it."""
        self._owner[kernel_id] = session_id
        return self.of(session_id)[:-MOST_PAGES]

    def owner(self, kernel_id: str | None) -> str | None:
        return self._owner.get(kernel_id)

    def of(self, session_id: str) -> list[str]:
        return [kernel for kernel, owner in self._owner.items() if owner == session_id]

    def sessions(self) -> set[str]:
        return set(self._owner.values())

    def forget(self, kernel_id: str) -> None:
        self._owner.pop(kernel_id, None)

    def keep_only(self, running: list[str]) -> None:
        for kernel_id in set(self._owner) - set(running):
            self.forget(kernel_id)


# --- what a browser can reach


class PageHandler(JupyterHandler):
    """The clinic's own pages: errors in words, nothing kept by browsers."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **kwargs) -> None:
        write_error(self, status_code, **kwargs)


def write_error(handler: JupyterHandler, status_code: int, **kwargs) -> None:
    """A page that says what to do, and nothing of what went wrong inside."""
    error = kwargs.get("exc_info", (None, None))[1]
    words = {
        403: "This was not allowed. Go back to the start page and try again.",
        404: "There is no such page.",
        429: "Too many of your pages are opening at once. Wait a moment, then go to the start page.",
    }.get(status_code, "Something went wrong; nothing was saved. Try again in a moment, or tell an administrator.")
    if isinstance(error, StoreError):
        words = str(error)
    template = handler.settings["jinja2_env"].get_template("error.html")
    handler.finish(template.render(words=words, status=status_code))


class SignInPage(PageHandler):
    """The form, and what becomes of it."""

    @allow_unauthenticated
    def get(self) -> None:
        if self.current_user:
            self.redirect("/")
        else:
            self._form()

    @allow_unauthenticated
    async def post(self) -> None:
        name, password = self.get_body_argument("name", ""), self.get_body_argument("password", "", strip=False)
        clinic = self.settings["clinic"]
        try:
            # In a thread: looking at a password is slow on purpose. Two at once: it takes memory on purpose, too.
            token = await asyncio.get_running_loop().run_in_executor(
                clinic.sign_ins, accounts.sign_in, clinic.store, name, password, self.request.remote_ip
            )
        except accounts.SignInRefused as refused:
            self.set_status(429 if refused.wait_seconds else 401)
            if refused.wait_seconds:
                self.set_header("Retry-After", str(refused.wait_seconds))
            self._form(name, str(refused))
            return
        except StoreError as problem:
            self.set_status(503)
            self._form(name, str(problem))
            return
        self.set_cookie(
            accounts.COOKIE, token, path="/", httponly=True, samesite="Strict", secure=clinic.secure_cookies
        )
        self.redirect("/", status=303)

    def _form(self, name: str = "", problem: str = "") -> None:
        template = self.settings["jinja2_env"].get_template("sign_in.html")
        self.finish(template.render(name=name, problem=problem, xsrf=self.xsrf_form_html()))


class SignOut(PageHandler):
    """Ends the session; its kernels, and what they show of patients, go with it."""

    @allow_unauthenticated
    async def post(self) -> None:
        clinic = self.settings["clinic"]
        # In a thread: while the records are locked, everybody else's pages go on.
        await asyncio.get_running_loop().run_in_executor(
            clinic.sign_ins, accounts.sign_out, clinic.store, self.get_cookie(accounts.COOKIE, "")
        )
        if self.current_user:
            await clinic.stop_kernels(clinic.claims.of(self.current_user.session_id))
        self.clear_cookie(accounts.COOKIE, path="/")
        self.redirect("/login", status=303)


class ClinicPage(TornadoVoilaHandler):
    """The notebook as a page, in a kernel that from now on belongs to the visitor's session."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    @web.authenticated
    async def get(self) -> None:
        _ = self.xsrf_token  # asking for it sets the cookie that the requests of the page need
        opening, session_id = self.settings["clinic"].opening, self.current_user.session_id
        if opening[session_id] >= MOST_PAGES:  # each starts a process before the oldest page gives way
            raise web.HTTPError(429)
        opening[session_id] += 1
        try:
            await super().get()
        finally:
            opening[session_id] -= 1
            opening += Counter()  # drops those at 0
        if not self.settings["clinic"].settled:
            self.settings["clinic"].settled = True
            settle()
        RequestInfoSocketHandler._cache.clear()  # what Voila keeps for kernels that would ask it

    @property
    def kernel_manager(self):
        return _Claiming(super().kernel_manager, self._claim)

    async def _claim(self, kernel_id: str) -> None:
        clinic = self.settings["clinic"]
        clinic.opened_by.add(self.get_cookie(accounts.COOKIE))
        clinic.door.admit(kernel_id, self.get_cookie(accounts.COOKIE))
        clinic.claims.keep_only(clinic.kernel_manager.list_kernel_ids())
        await clinic.stop_kernels(clinic.claims.add(kernel_id, self.current_user.session_id))

    def write_error(self, status_code: int, **kwargs) -> None:
        write_error(self, status_code, **kwargs)


class _Claiming:
    """The kernel manager as one visit sees it: the kernel it takes from the pool, or starts, is claimed."""

    def __init__(self, manager, claim: Callable):
        self._manager = manager
        self._claim = claim

    def __getattr__(self, name: str):
        return getattr(self._manager, name)

    async def get_rendered_notebook(self, **visit):
        task, rendered, kernel_id = await self._manager.get_rendered_notebook(**visit)
        await self._claim(kernel_id)
        return task, rendered, kernel_id

    async def start_kernel(self, **how) -> str:
        kernel_id = await ensure_async(self._manager.start_kernel(**how))
        await self._claim(kernel_id)
        return kernel_id


class Alive(web.RequestHandler):
    """Asked by the server itself: whether it answers. Nothing of the clinic is looked at."""

    def get(self) -> None:
        self.set_status(204)


class StillThere(PageHandler):
    """Asked by the open page from time to time; asking is no action, so it keeps nobody signed in."""

    @allow_unauthenticated
    def get(self, kernel_id: str) -> None:
        clinic = self.settings["clinic"]
        if not self.current_user:
            state = "signed-out"
        elif clinic.claims.owner(kernel_id) != self.current_user.session_id or kernel_id not in clinic.kernel_manager:
            state = "gone"
        else:
            state = "there"
        self.finish({"state": state})


class PageLeft(PageHandler):
    """Told by a page that is closed or left: its kernel is not needed any more."""

    @allow_unauthenticated
    async def post(self, kernel_id: str) -> None:
        clinic = self.settings["clinic"]
        if not self.current_user:
            self.set_status(204)  # the session's end has stopped it
            return
        if clinic.claims.owner(kernel_id) != self.current_user.session_id:
            raise web.HTTPError(403)
        await clinic.stop_kernels([kernel_id])
        self.set_status(204)


@web.stream_request_body
class Upload(PageHandler):
    """A file that a page sends, on its way to the page's own kernel: kept in memory until the kernel takes it.

    A page sends one at a time, which bounds its share of the memory. An upload that is not complete when the next one
    starts (its connection was lost, say) is dropped.
    """

    async def prepare(self) -> None:
        await ensure_async(super().prepare())
        kernel_id = self.path_kwargs["kernel_id"]
        owner = self.settings["clinic"].claims.owner(kernel_id)
        if not self.current_user or owner != self.current_user.session_id:
            raise web.HTTPError(403)
        uploading = self.settings["clinic"].uploading
        if kernel_id in uploading:
            uploading[kernel_id].give_up()
        uploading[kernel_id] = self
        self._content = bytearray()
        self.request.connection.set_max_body_size(config.upload_bytes())

    def data_received(self, chunk: bytes) -> None:
        self._content += chunk

    @web.authenticated
    async def post(self, kernel_id: str) -> None:
        self.settings["clinic"].door.leave(kernel_id, bytes(self._content))
        self.set_status(204)

    def on_finish(self) -> None:
        super().on_finish()
        self._end()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._end()

    def give_up(self) -> None:
        self._content = bytearray()
        self.request.connection.close()

    def _end(self) -> None:
        uploading, kernel_id = self.settings["clinic"].uploading, self.path_kwargs["kernel_id"]
        if uploading.get(kernel_id) is self:
            del uploading[kernel_id]


class Part(MultiStaticFileHandler):
    """A script, style or font of the libraries that the page is made of: the same for everybody, and for ever."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        # Only what a page asked for: others could have the sign-in page fetch all there is. The query is empty, or the
        # hash that stands in the file's name, too.
        clinic, asked = self.settings["clinic"], self.request.query.removeprefix("v=")
        if self.get_cookie(accounts.COOKIE) in clinic.opened_by and asked in ("", *path.split(".")):
            clinic.parts_in_use[self.request.uri] = None


class PartsInUse(PageHandler):
    """What pages were made of since the server started: the sign-in page fetches it while a name is typed."""

    @allow_unauthenticated
    def get(self) -> None:
        self.finish({"parts": list(self.settings["clinic"].parts_in_use)})


class OwnPart(web.StaticFileHandler):
    """The clinic's own stylesheet and script: kept, but asked for anew each time whether they changed."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")


class NoSuchPage(PageHandler):
    """Everything that is not listed."""

    @allow_unauthenticated
    def prepare(self):
        raise web.HTTPError(404)


class Door:
    """Where kernels ask for what is theirs, one line a question; a socket in the private folder leads here.

    "visitor KERNEL": the token of who opened the page, once there is one. "upload KERNEL": 1 and the file that the page
    sent last, or 0 where none waits.
    """

    def __init__(self):
        self._visitors: dict[str, asyncio.Future] = {}
        self._uploads: dict[str, bytes] = {}

    def admit(self, kernel_id: str, token: str) -> None:
        """Someone opened this kernel's page: tell it, now or when it asks."""
        self._awaited(kernel_id).set_result(token)

    def leave(self, kernel_id: str, content: bytes) -> None:
        """A file for this kernel, in the place of one that it did not take."""
        self._uploads[kernel_id] = content

    def forget(self, kernel_id: str) -> None:
        """The kernel ends: what it did not take is dropped."""
        self._uploads.pop(kernel_id, None)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question; then the connection is closed."""
        question, _, kernel_id = (await reader.readline()).decode().strip().partition(" ")
        try:
            if question == "upload":
                content = self._uploads.pop(kernel_id, None)
                writer.write(b"0" if content is None else b"1")
                writer.write(content or b"")
            else:
                writer.write((await self._awaited(kernel_id)).encode())
            await writer.drain()
        except asyncio.CancelledError:  # the server stops, nobody will come any more
            pass
        finally:
            if question != "upload":
                self._visitors.pop(kernel_id, None)
            writer.close()

    def _awaited(self, kernel_id: str) -> asyncio.Future:
        if kernel_id not in self._visitors:
            self._visitors[kernel_id] = asyncio.get_running_loop().create_future()
        return self._visitors[kernel_id]


class Clinic(Voila):
    """Voila with the clinic's own list of what can be reached, TLS, and a tidy end."""

    store = Any()
    sockets = List()
    tls = Any(allow_none=True)
    behind_proxy = Bool()
    secure_cookies = Bool()

    def __init__(self, **settings):
        super().__init__(**settings)
        self.claims = Claims()
        self.door = Door()
        self.opened_by: set[str] = set()  # tokens of the sessions that a page was opened in
        self.gates: dict[str, sockets.Gate] = {}  # by kernel
        self.uploading: dict[str, Upload] = {}  # by kernel
        self.settled = False  # whether a page was made, and so all is loaded
        self.opening: Counter[str] = Counter()  # pages that are being made, by session
        self.parts_in_use: dict[str, None] = {}  # in the order of their first use
        for log in (self.log, logging.getLogger("tornado.general")):
            log.addFilter(_worth_saying)
        self.sign_ins = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sign-in")

    async def run(self, line: Line) -> None:
        """Serve until a signal says stop."""
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        try:
            async with await asyncio.start_unix_server(self.door.answer, os.environ[DOOR]):
                self.start()
                settle()
                line.say("open")
                saying = asyncio.create_task(self._say_that_it_answers(line, stopped))
                await stopped.wait()
                saying.cancel()
        finally:
            await self._end()

    async def _say_that_it_answers(self, line: Line, stopped: asyncio.Event) -> None:
        """Ask for a page every second, as a browser does, and tell each answer.

        Where no way leads from this machine to its own address there never is one: then that this runs has to do.
        """
        host, port = self.sockets[0].getsockname()[:2]
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        url = f"{'https' if self.tls else 'http'}://{supervisor.in_url(reached)}:{port}/clinic/alive"
        ask = httpclient.HTTPRequest(url, validate_cert=False, connect_timeout=5, request_timeout=5)
        ever = False
        while not stopped.is_set():
            answers = (await httpclient.AsyncHTTPClient().fetch(ask, raise_error=False)).code != 599
            ever = ever or answers
            if answers or not ever:
                try:
                    line.say("alive")
                except BrokenPipeError:  # no one watches over this process any more
                    stopped.set()
            await asyncio.sleep(1)

    def init_settings(self) -> dict:
        pages = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES), autoescape=True)
        return super().init_settings() | {
            "clinic": self,
            "jinja2_env": pages,
            "default_handler_class": NoSuchPage,
            "transforms": [SecurityHeaders],
        }

    def init_handlers(self) -> list:
        """All that there is: no list of kernels, no files of the notebook's folder, no source."""
        page = {
            "notebook_path": os.path.relpath(self.notebook_path, self.root_dir),
            "template_paths": self.template_paths,
            "config": self.config,
            "voila_configuration": self.voila_configuration,
        }
        return [
            (r"/", ClinicPage, page),
            *self.identity_provider.get_handlers(),
            (r"/clinic/(clinic\.css|clinic\.js|sign_in\.js)", OwnPart, {"path": str(PAGES)}),
            (r"/clinic/parts", PartsInUse),
            (r"/clinic/alive", Alive),
            (rf"{_parts()}/voila/(.*)", Part, {"paths": self.static_paths}),
            (
                rf"{_parts()}/extensions/((?:{'|'.join(EXTENSIONS)})/static/.*)",
                Part,
                {"paths": self.labextensions_path},
            ),
            (rf"/clinic/there/{KERNEL_ID}", StillThere),
            (rf"/clinic/upload/{KERNEL_ID}", Upload),
            (rf"/voila/api/shutdown/{KERNEL_ID}", PageLeft),
            (rf"/api/kernels/{KERNEL_ID}", KernelHandler),
            (rf"/api/kernels/{KERNEL_ID}/channels", sockets.KernelSocket, {"gates": self.gates}),
        ]

    def listen(self) -> None:
        self.server = httpserver.HTTPServer(
            self.app,
            ssl_options=self.tls,
            xheaders=self.behind_proxy,
            max_body_size=2**16,  # forms; Upload allows itself more
        )
        self.server.add_sockets(self.sockets)
        self.tidying = ioloop.PeriodicCallback(self._stop_kernels_of_ended_sessions, 60_000)
        self.tidying.start()

    async def stop_kernels(self, kernel_ids: list[str]) -> None:
        for kernel_id in kernel_ids:
            self.claims.forget(kernel_id)
            self.door.forget(kernel_id)
            if kernel_id in self.kernel_manager:
                await ensure_async(self.kernel_manager.shutdown_kernel(kernel_id, now=True))

    async def _stop_kernels_of_ended_sessions(self) -> None:
        running = self.kernel_manager.list_kernel_ids()
        self.claims.keep_only(running)
        for kernel_id in set(self.gates) - set(running):
            del self.gates[kernel_id]
        with contextlib.suppress(StoreError):
            ended = accounts.ended(self.store, self.claims.sessions())
            await self.stop_kernels([kernel for session_id in ended for kernel in self.claims.of(session_id)])

    async def _stop_all_kernels(self) -> None:
        """Also one that is just being started: jupyter_client lists it, but cannot stop it yet and says 404."""
        for _ in range(100):
            try:
                await ensure_async(self.kernel_manager.shutdown_all(now=True))
                return
            except web.HTTPError as refused:
                if refused.status_code != 404:
                    raise
            await asyncio.sleep(0.1)

    async def _end(self) -> None:
        self.tidying.stop()
        self.server.stop()
        await self.server.close_all_connections()
        await self._stop_all_kernels()
        self.sign_ins.shutdown(wait=False, cancel_futures=True)
        self.store.close()


def _worth_saying(record: logging.LogRecord) -> bool:
    """Not: that this user did not run the notebook; that milliseconds were given for seconds; that a page left."""
    noise = ("is not trusted", "websocket_ping_timeout", "Got events for closed stream")
    return not any(words in record.getMessage() for words in noise)


class SecurityHeaders(web.OutputTransform):
    """The same headers on whatever is answered, files and errors included."""

    def __init__(self, request):
        pass

    def transform_first_chunk(self, status_code, headers, chunk, finishing):
        for name, value in HEADERS.items():
            headers[name] = value
        headers.pop("Server", None)
        return status_code, headers, chunk
