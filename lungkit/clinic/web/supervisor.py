"""`lungkit serve`: checks that the clinic can start, starts the web server, and replaces a server that does not answer.

The server is a process of its own (serve.main). Its listening sockets stay open here too, so the port is never lost.
Every second the server asks itself for a page, over the network as a browser does, and writes a line to this process
for each answer. A server that hangs writes none, whatever the reason. It is killed with its kernels and the next one
starts; people stay signed in, because sessions are in the records. This process imports nothing heavy.
"""

import contextlib
import errno
import ipaddress
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from tornado import netutil

from lungkit import config
from lungkit.clinic.records import maintenance
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import PROGRAM, User
from lungkit.clinic.web import folders
from lungkit.errors import LungkitError
from lungkit.models import registry

PORT = 8866
START_SECONDS = 180  # how long a server may take to open
END_SECONDS = 8  # how long it may take to stop by itself
IN_MEMORY = Path("/dev/shm")
RESTARTS, WITHIN = 5, 600  # at most so many restarts in so many seconds; after that a person has to look
_COMMAND = [sys.executable, "-P", "-c", "from lungkit.clinic.web import serve; serve.main()"]


def serve(
    port: int = PORT,
    host: str = "127.0.0.1",
    certfile: Path | None = None,
    keyfile: Path | None = None,
    pool: int = 2,
    behind_proxy: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the clinic until SIGTERM or SIGINT; then every kernel is stopped and the port is free.

    pool: kernels that are always started ahead for the next visitors; 0: none. behind_proxy: trust X-Forwarded-*
    headers; only when nothing but the proxy can reach the port. announce: called once with the address, when the clinic
    is open. Raises LungkitError for what a person has to fix first, and when the server fails again and again.
    """
    notebook = (config.notebooks_dir() / "app.ipynb").resolve()
    if not notebook.is_file():
        raise LungkitError(f"no notebook {notebook} to serve")
    tls = tls_context(certfile, keyfile)
    if not (tls or behind_proxy or is_loopback(host)):
        raise LungkitError(
            f"on {host} passwords would cross the network in clear text; give --certfile and --keyfile, or serve on "
            "127.0.0.1 behind a proxy that speaks HTTPS (--behind-proxy)"
        )
    for setting in (
        config.hang_seconds,
        config.server_bytes,
        config.page_bytes,
        config.clinic_bytes,
        config.pages_per_person,
        config.time_zone,
    ):
        setting()  # raises now if its value cannot be used
    _ready()
    listening = bind(port, host)
    port = listening[0].getsockname()[1]
    settings = {
        "port": port,
        "host": host,
        "certfile": certfile and str(certfile),
        "keyfile": keyfile and str(keyfile),
        "pool": pool,
        "behind_proxy": behind_proxy,
        "notebook": str(notebook),
    }
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    url = f"{'https' if tls else 'http'}://{in_url(shown)}:{port}/"
    with contextlib.ExitStack() as stack:
        for each in listening:
            stack.callback(each.close)
        _keep_running(settings, [each.fileno() for each in listening], lambda: announce(url))


# --- what has to be right first


def _ready() -> None:
    """Refuse to start if no one could sign in, or no model could read an image."""
    store = Store()
    maintenance.upgrade(store)
    maintenance.keep_reserve(store)
    with store.read() as db:
        someone = db.query(User.id).filter(User.active, User.role != PROGRAM).first()
    store.close()
    if not someone:
        raise LungkitError("no one can sign in yet; make the first account with `lungkit user add NAME --role admin`")
    if not any(_has_active(model) for model in registry.models()):
        raise LungkitError("no model is active yet; `make demo` trains one, `lungkit models promote` chooses another")


def _has_active(model: str) -> bool:
    try:
        registry.active(model)
    except registry.ModelMissing:
        return False
    except registry.ModelDamaged:
        return True  # its users are told; earlier readings can still be opened
    return True


def tls_context(certfile: Path | str | None, keyfile: Path | str | None) -> ssl.SSLContext | None:
    """The settings of TLS, or None without TLS; raises LungkitError if the files cannot be used."""
    if certfile is None and keyfile is None:
        return None
    if certfile is None:
        raise LungkitError("--keyfile needs --certfile, the certificate (PEM) that belongs to it")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise LungkitError(
            f"no TLS with certificate {certfile} and key {keyfile or certfile}: {error.strerror or error}; both are "
            "PEM files that belong together, the key without a pass phrase"
        ) from error
    return context


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def in_url(host: str) -> str:
    """A host as a URL writes it."""
    return f"[{host}]" if ":" in host else host


def bind(port: int, host: str) -> list[socket.socket]:
    """Listening sockets on a port; 0: any free one. Raises LungkitError."""
    try:
        return netutil.bind_sockets(port, host)
    except OSError as error:
        reason = {
            errno.EADDRINUSE: "is taken by another program; stop that one, or give another --port",
            errno.EACCES: "may not be used by this user; give a --port above 1023",
        }.get(error.errno or 0, f"cannot be used: {error.strerror or error}")
        raise LungkitError(f"port {port} on {host} {reason}") from error


# --- the server's private folder


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for this user only, removed at the end; its path is short, as sockets need (107 characters).

    It is in memory where the system has a place for that: what it holds is small, and without it no page can start,
    also on a full disk.
    """
    clear_folders()
    folder = folders.make(folders.PREFIX, _places()[0])
    try:
        yield folder
    finally:
        for each in _found(f"{folder.name}*"):  # its kernels' folders, too
            folders.remove(each)


def _places() -> list[Path]:
    """Where servers have their private folders: in memory, and the folder for temporary files."""
    places = [IN_MEMORY] if os.access(IN_MEMORY, os.W_OK | os.X_OK) else []
    with contextlib.suppress(FileNotFoundError):  # no disk has room for a temporary file
        places.append(Path(tempfile.gettempdir()))
    return places or [Path("/tmp")]


def clear_folders() -> None:
    """Remove the folders that killed servers and their kernels left."""
    for left in _found(f"{folders.PREFIX}*"):
        folders.remove_if_left(left)


def _found(names: str) -> list[Path]:
    return [found for place in _places() for found in place.glob(names)]


# --- watching over the server


def _keep_running(settings: dict[str, object], listening: list[int], opened: Callable[[], None]) -> None:
    """Run servers, one after the other, until a signal says stop."""
    restarts: deque[float] = deque()
    with _signals() as stop:
        server = _Server(settings, listening)
        while why := server.watch(stop, opened):
            server.kill()
            if not server.opened and not restarts:
                raise LungkitError(f"the server {why} before it was open; the lines above may say more")
            opened = lambda: None  # noqa: E731  # the address is announced once
            restarts.append(time.monotonic())
            while restarts[0] < restarts[-1] - WITHIN:
                restarts.popleft()
            if len(restarts) > RESTARTS:
                raise LungkitError(
                    f"the server {why}; it was started again {RESTARTS} times in {WITHIN // 60} minutes and stays "
                    "stopped. The lines above may say why; `lungkit serve` starts it."
                )
            _log(f"The server {why}. It starts again; open pages have ended, what was saved is safe.")
            if select.select([stop], [], [], 2 ** (len(restarts) - 1) - 1)[0]:
                return
            server = _Server(settings, listening)
        server.stop()


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A file that can be read as soon as SIGTERM or SIGINT arrives."""
    read, write = os.pipe()
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda *_: os.write(write, b"x"))
    try:
        yield read
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _log(words: str) -> None:
    with contextlib.suppress(OSError):  # the log may be a file on a full disk
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}", file=sys.stderr, flush=True)


class _Server:
    """One process of the server. opened: whether it has been ready to answer."""

    def __init__(self, settings: dict[str, object], listening: list[int]):
        self.opened = False
        self._line, line = os.pipe()
        given = json.dumps(settings | {"listening": listening, "line": line, "watched_by": os.getpid()})
        # A session of its own: only this process gets Ctrl-C and decides when the server stops.
        self._process = subprocess.Popen([*_COMMAND, given], pass_fds=[line, *listening], start_new_session=True)
        os.close(line)

    def watch(self, stop: int, opened: Callable[[], None]) -> str:
        """Wait until it fails, and return what it did; empty if it has to stop. Raises the server's LungkitError."""
        silent = 0.0  # s; at most 2 for each round, because this process may not have run either
        while True:
            start = time.monotonic()
            ready = select.select([self._line, stop], [], [], 1)[0]
            silent += min(2.0, time.monotonic() - start)
            if stop in ready:
                return ""
            if ready:
                lines = os.read(ready[0], 2**16).decode()
                if not lines:
                    return self._ended()
                silent = 0.0
                self._hear(lines, opened)
            patience = config.hang_seconds() if self.opened else START_SECONDS
            if silent > patience:
                return f"has not answered for {patience:g} s"
            if self._bytes() > config.server_bytes():
                return f"took more than {config.server_bytes() >> 20} MiB of memory"

    def _hear(self, lines: str, opened: Callable[[], None]) -> None:
        """Act on what the server wrote: "alive", "open" once, or "problem" and the message that it ends with."""
        for word, _, rest in (line.partition(" ") for line in lines.splitlines()):
            if word == "problem":
                self.stop()
                raise LungkitError(json.loads(rest))
            if word == "open":
                self.opened = True
                opened()

    def _ended(self) -> str:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "is lost"
        if status == 0:  # someone else stopped it
            return ""
        return f"ended with exit status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"

    def _bytes(self) -> int:
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:
            return 0

    def stop(self) -> None:
        """Ask it to stop; kill it if it hangs."""
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            _log(f"The server did not stop within {END_SECONDS} s and is killed.")
        self.kill()

    def kill(self) -> None:
        """End what is left of it, with its kernels."""
        family = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=5)
        os.close(self._line)
        clear_folders()
