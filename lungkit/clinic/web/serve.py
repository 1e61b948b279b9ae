"""The clinic's web server: Voila on one notebook, behind a sign-in page of its own.

`Clinic.init_handlers` lists everything that a browser can reach; every other address is 404. A page's kernel belongs to
the session that opened the page, and no other session can reach it. This process only decides who gets a kernel. What
a person may do is decided in the kernel, at each action (accounts.Access).
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import traitlets
from jupyter_core.utils import ensure_async
from jupyter_server.services.kernels.handlers import KernelHandler
from tornado import httpclient, ioloop, web
from traitlets.config import Config
from voila.app import Voila

from lungkit import config
from lungkit.clinic.records import accounts, maintenance
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.web import answers, connections, handlers, identity, kernels, sockets, supervisor, warm
from lungkit.clinic.web.door import DOOR, Door
from lungkit.errors import LungkitError

PAGES = Path(__file__).parent / "pages"
# Everything that the page's widgets need; other installed extensions are not loaded.
EXTENSIONS = ["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8", "anywidget"]
KERNEL_ID = r"(?P<kernel_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
KERNEL_ENVIRONMENT = {  # nothing is reported to anyone, and no user's own configuration is read
    "ORT_DISABLE_TELEMETRY": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "JUPYTER_PATH": str(PAGES),
    "IPYKERNEL_CELL_NAME": "<clinic>",  # or else a page cannot start where no temporary file can be written
    # An image's memory goes back to the system with the image; glibc would keep the most that was ever used.
    "MALLOC_MMAP_THRESHOLD_": str(2**22),
    "MALLOC_ARENA_MAX": "2",
}


def main() -> None:
    """Run the server as a process of its own; the first argument is its settings as JSON.

    supervisor.serve starts it, with the listening sockets open and a pipe to write lines to: "open" once, "alive" for
    each answer that the server gave itself, "problem" and a message if a person has to fix something.
    """
    settings = json.loads(sys.argv[1])
    line = Line(settings.pop("line"))
    _end_with(settings.pop("watched_by"))
    try:
        run(line, [socket.socket(fileno=number) for number in settings.pop("listening")], **settings)
    except LungkitError as problem:
        line.say(f"problem {json.dumps(str(problem)[:2000])}")
        raise SystemExit(1) from None


class Line:
    """The pipe to the process that watches over this one."""

    def __init__(self, number: int):
        os.set_blocking(number, False)
        self._number = number

    def say(self, words: str) -> None:
        """Write a line; raises BrokenPipeError if the other process has ended."""
        with contextlib.suppress(BlockingIOError):  # full: the other process does not run at the moment either
            os.write(self._number, f"{words}\n".encode())


def _end_with(watched_by: int) -> None:
    """End this process when that one ends; where the system cannot do this, the next `Line.say` finds out."""
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
    secure = bool(tls) or behind_proxy
    os.umask(0o077)
    connections.allow_many()
    with supervisor.private_folder() as folder:
        os.environ.update(KERNEL_ENVIRONMENT)
        for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            os.environ[variable] = str(folder / "jupyter")
        os.environ[DOOR] = str(folder / "door")
        clinic = Clinic(
            store=Store(),
            listening=listening,
            tls=tls,
            behind_proxy=behind_proxy,
            secure_cookies=secure,
            connection_dir_root=str(folder),
            config=_settings(port, host, Path(notebook), secure),
            pool=pool,
        )
        clinic.initialize([])
        asyncio.run(clinic.run(line))


def _settings(port: int, host: str, notebook: Path, secure: bool) -> Config:
    idle = max(1, int(config.idle_minutes() * 60))
    voila = {
        "port": port,
        "ip": host,
        "port_retries": 0,
        "open_browser": False,
        "notebook_path": str(notebook),
        "config_file_paths": [],
        "token": "",
        "identity_provider_class": identity.Identity,
        "authorizer_class": kernels.OwnKernelOnly,
        "kernel_websocket_connection_class": sockets.Connection,
        "log_level": "WARN",
        "tornado_settings": {
            "headers": answers.HEADERS,
            # Texts and clicks; a larger message closes the socket. Files take another way (UploadHandler).
            "websocket_max_message_size": sockets.MESSAGE_BYTES,
            "xsrf_cookie_kwargs": {"samesite": "Strict", "secure": secure},
        },
    }
    page = {
        "template": "clinic",
        "theme": "light",
        "allow_template_override": "NO",
        "allow_theme_override": "NO",
        "preheat_kernel": True,
        "default_pool_size": 0,  # warm.Pages fills the pool
        "extension_allowlist": EXTENSIONS,
        "page_config_hook": handlers.page_config,
        "show_tracebacks": False,
        "kernel_spec_manager_class": kernels.OwnPython,
        "multi_kernel_manager_class": sockets.Kernels,
    }
    culling = {"cull_idle_timeout": idle, "cull_interval": max(1, min(60, idle // 4)), "cull_connected": True}
    return Config(
        Voila=voila,
        VoilaConfiguration=page,
        MappingKernelManager=culling,
        KernelManager={"transport": "ipc", "shutdown_wait_time": 3.0},
        # A kernel that died has lost its page. It is not started again; the page says so.
        KernelRestarter={"restart_limit": 0},
    )


class Clinic(Voila):
    """Voila with the clinic's own list of what can be reached, TLS, and an orderly end."""

    store = traitlets.Any()
    listening = traitlets.Any()  # sockets
    tls = traitlets.Any(allow_none=True)
    behind_proxy = traitlets.Bool()
    secure_cookies = traitlets.Bool()
    pool = traitlets.Int()

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.owners = kernels.KernelOwners()
        self.pages = warm.Pages(self, self.pool)
        self.door = Door(self.pages.wake)
        self.opened_by: set[str] = set()  # tokens of the sessions that opened a page
        self.gates: dict[str, sockets.Gate] = {}  # by kernel
        self.uploading: dict[str, handlers.UploadHandler] = {}  # by kernel
        self.opening: Counter[str] = Counter()  # pages that are being made, by user name
        self.parts_in_use: dict[str, None] = {}  # in the order of their first use
        self._frozen = False
        for log in (self.log, *(logging.getLogger(f"tornado.{name}") for name in ("general", "access"))):
            log.addFilter(_is_worth_logging)
        self.sign_ins = identity.FairThreads()
        self.sessions = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sessions")  # which go on, or end
        self.slices = ThreadPoolExecutor(max_workers=2, thread_name_prefix="slices")

    async def run(self, line: Line) -> None:
        """Serve until a signal says stop."""
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        try:
            async with await asyncio.start_unix_server(self.door.answer, os.environ[DOOR]):
                self.start()
                _freeze()
                line.say("open")
                busy = [asyncio.create_task(each) for each in (self._report_answers(line, stopped), self.pages.keep())]
                await stopped.wait()
                for each in busy:
                    each.cancel()
        finally:
            await self._end()

    async def _report_answers(self, line: Line, stopped: asyncio.Event) -> None:
        """Ask for a page every second, as a browser does, and report each answer.

        If this machine cannot reach its own address there is never an answer; then it is enough that this runs.
        """
        host, port = self.listening[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        url = f"{'https' if self.tls else 'http'}://{supervisor.in_url(host)}:{port}/clinic/alive"
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

    def page_was_made(self) -> None:
        """The first page has loaded the rest of the code; see `_freeze`."""
        if not self._frozen:
            self._frozen = True
            _freeze()

    def init_settings(self) -> dict[str, Any]:
        pages = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES), autoescape=True)
        settings: dict[str, Any] = super().init_settings()
        return settings | {
            "clinic": self,
            "jinja2_env": pages,
            "default_handler_class": handlers.NoSuchPage,
            "transforms": [answers.SecurityHeaders],
        }

    def init_handlers(self) -> list[tuple[Any, ...]]:
        """Everything there is: no list of kernels, no files of the notebook's folder, no source code."""
        page = {
            "notebook_path": os.path.relpath(self.notebook_path, self.root_dir),
            "template_paths": self.template_paths,
            "config": self.config,
            "voila_configuration": self.voila_configuration,
        }
        extensions = {"paths": self.labextensions_path}
        libraries, widgets = handlers.library_path(), f"(?:{'|'.join(EXTENSIONS)})"
        return [
            (r"/", handlers.ClinicPage, page),
            *self.identity_provider.get_handlers(),
            (
                r"/clinic/(clinic\.css|viewer\.css|clinic\.js|look\.js|tables\.js|sign_in\.js|waiting\.js)",
                handlers.OwnFile,
                {"path": str(PAGES)},
            ),
            (r"/clinic/parts", handlers.PartsInUse),
            (r"/clinic/turn", handlers.Turn),
            (r"/clinic/alive", handlers.Alive),
            (rf"{libraries}/voila/(.*)", handlers.LibraryFile, {"paths": self.static_paths}),
            (rf"{libraries}/extensions/({widgets}/static/.*)", handlers.LibraryFile, extensions),
            (rf"/clinic/there/{KERNEL_ID}", handlers.KernelState),
            (rf"/clinic/active/{KERNEL_ID}", handlers.SomeoneIsThere),
            (rf"/clinic/upload/{KERNEL_ID}", handlers.UploadHandler),
            (r"/clinic/slices/([0-9a-f-]{36})/([0-9]{1,4}(?:,[0-9]{1,4}){0,15})", handlers.SliceHandler),
            (rf"/voila/api/shutdown/{KERNEL_ID}", handlers.PageLeft),
            (rf"/api/kernels/{KERNEL_ID}", KernelHandler),
            (rf"/api/kernels/{KERNEL_ID}/channels", sockets.KernelSocket, {"gates": self.gates}),
        ]

    def listen(self) -> None:
        self.server = connections.Server(self.app, ssl_options=self.tls, xheaders=self.behind_proxy)
        self.server.add_sockets(self.listening)
        self.tidying = ioloop.PeriodicCallback(self._stop_kernels_of_ended_sessions, 60_000)
        self.tidying.start()
        self.keeping = ioloop.PeriodicCallback(self._keep_reserve, 60_000)
        self.keeping.start()

    async def stop_kernels(self, kernel_ids: list[str]) -> None:
        for kernel_id in kernel_ids:
            self.owners.pop(kernel_id, None)
            self.door.forget(kernel_id)
            if kernel_id in self.kernel_manager:
                await ensure_async(self.kernel_manager.shutdown_kernel(kernel_id, now=True))
        self.pages.wake()  # there may be room for someone who waits

    async def _stop_kernels_of_ended_sessions(self) -> None:
        running = self.kernel_manager.list_kernel_ids()
        self.owners.keep_only(running)
        for kernel_id in set(self.gates) - set(running):
            del self.gates[kernel_id]
            self.door.forget(kernel_id)  # one that was not used for a while stops without us
        with contextlib.suppress(StoreError):
            ended = accounts.ended(self.store, set(self.owners.values()))
            await self.stop_kernels([kernel for session in ended for kernel in self.owners.kernels_of(session)])

    async def _keep_reserve(self) -> None:
        """Fill the room that is kept for a full disk as soon as the disk has room again; until then the log says so."""
        try:
            await asyncio.get_running_loop().run_in_executor(self.slices, maintenance.keep_reserve, self.store)
            full = maintenance.full_disk(self.store)
        except (StoreError, OSError) as problem:
            full = str(problem)
        if full:
            self.log.warning("%s", full)

    async def _stop_all_kernels(self) -> None:
        """Includes a kernel that is just starting: jupyter_client lists it, but answers 404 until it can stop it."""
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
        self.keeping.stop()
        self.server.stop()
        await self.server.close_all_connections()
        await self._stop_all_kernels()
        for threads in (self.sign_ins, self.sessions, self.slices):
            threads.shutdown(wait=False, cancel_futures=True)
        self.store.close()


def _freeze() -> None:
    """Keep what is loaded out of Python's garbage collection, which would hold up every answer."""
    gc.collect()
    gc.freeze()


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Not: the notebook is not trusted, milliseconds were given for seconds, a page left, a person waits for a page."""
    noise = ("is not trusted", "websocket_ping_timeout", "Got events for closed stream", "503 GET / (")
    return not any(words in record.getMessage() for words in noise)
