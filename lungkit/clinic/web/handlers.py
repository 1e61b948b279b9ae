"""What a browser can ask for once someone is signed in: the page, its files, uploads, and whether its kernel lives."""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from functools import partial
from importlib import metadata
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import allow_unauthenticated
from tornado import web
from voila.request_info_handler import RequestInfoSocketHandler
from voila.static_file_handler import MultiStaticFileHandler
from voila.tornado.handler import TornadoVoilaHandler

from lungkit import config
from lungkit.clinic.records import accounts
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import RecordMissing
from lungkit.clinic.records.store import StoreError
from lungkit.clinic.web.answers import PageHandler
from lungkit.clinic.web.connections import upload_seconds
from lungkit.clinic.web.identity import in_thread
from lungkit.clinic.web.kernels import OwningManager
from lungkit.clinic.web.sockets import Gate

log = logging.getLogger(__name__)


class Awaited(PageHandler):
    """A request whose answer may take seconds. gone: whether the browser left meanwhile."""

    gone = False

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.gone = True


class ClinicPage(Awaited, TornadoVoilaHandler):
    """The notebook as a page, in a kernel that from now on belongs to the visitor's session.

    A person who waits for a kernel gets a page that says so; its script comes back when it is the person's turn. If the
    browser leaves before it has the page, its kernel is for someone else, or ends.
    """

    _kernel_id = ""

    @web.authenticated
    async def get(self) -> None:
        _ = self.xsrf_token  # reading it sets the cookie that the page's own requests need
        person, opening = self.current_user.username, self.clinic.opening
        if opening[person] >= config.pages_per_person():  # each takes a process before the oldest page ends
            raise web.HTTPError(429)
        if place := await self.clinic.pages.turn(person, lambda: not self.gone):
            self._wait(place)
            return
        opening[person] += 1
        try:
            await ensure_async(super().get())
        finally:
            opening[person] -= 1
            opening += Counter()  # removes counts of 0
            if self.gone and self._kernel_id:
                await self.clinic.stop_kernels([self._kernel_id])
        self.clinic.page_was_made()
        RequestInfoSocketHandler._cache.clear()  # Voila keeps it for kernels that ask it; ours never do

    @property
    def kernel_manager(self) -> Any:
        take = partial(self.clinic.pages.take, self.current_user.username)
        return OwningManager(super().kernel_manager, take, self._own)

    def should_use_rendered_notebook(self, *_: Any) -> bool:
        """Every page takes its kernel from those that were started ahead, whatever the address says."""
        return True

    def _wait(self, place: int) -> None:
        pages = self.clinic.pages
        self.set_status(503)
        self.set_header("Retry-After", str(pages.seconds(place) or 30))
        self.render_page("waiting.html", words=pages.words(place))

    async def _own(self, kernel_id: str) -> None:
        token, owners = self.get_cookie(accounts.COOKIE), self.clinic.owners
        self._kernel_id, self.clinic.gates[kernel_id] = kernel_id, Gate()
        self.clinic.opened_by.add(token)
        self.clinic.door.admit(kernel_id, token)
        owners.keep_only(self.clinic.kernel_manager.list_kernel_ids())
        visitor = self.current_user
        await self.clinic.stop_kernels(owners.add(kernel_id, visitor.session_id, visitor.username))


class Turn(Awaited):
    """The page of a person who waits asks whether it is their turn; the answer comes when it is, or after seconds."""

    @allow_unauthenticated
    async def post(self) -> None:
        """As `get`, from a page that the person can see: who waits there stays signed in."""
        with suppress(accounts.SignedOut, StoreError):
            await in_thread(self.clinic, accounts.renew, self.get_cookie(accounts.COOKIE, ""))
        await self.get()

    @allow_unauthenticated
    async def get(self) -> None:
        if not self.current_user:
            self.finish({"state": "signed-out"})
            return
        place = await self.clinic.pages.turn(self.current_user.username, lambda: not self.gone)
        words = place and self.clinic.pages.words(place)
        self.finish({"state": "waiting" if place else "ready", "words": words or ""})


class Alive(web.RequestHandler):
    """The server asks itself whether it answers; nothing of the clinic is read for it."""

    def get(self) -> None:
        self.set_status(204)


class KernelState(PageHandler):
    """The open page asks from time to time; that is no action, so it does not keep the session alive."""

    @allow_unauthenticated
    def get(self, kernel_id: str) -> None:
        there = self.owns(kernel_id) and kernel_id in self.clinic.kernel_manager
        try:
            left = accounts.time_left(self.clinic.store, self.get_cookie(accounts.COOKIE, ""))
            self.finish({"state": "there" if there else "gone"} | _until_the_end(left))
        except accounts.SignedOut:
            self.finish({"state": "signed-out"})


class SomeoneIsThere(PageHandler):
    """The person uses the page without its kernel (scrolls, types), or wants to stay signed in.

    It renews the session, and the session's kernels are not ended as idle, those of the person's other pages included.
    """

    @allow_unauthenticated
    async def post(self, kernel_id: str) -> None:
        if self.current_user and not self.owns(kernel_id):
            raise web.HTTPError(403)
        try:
            left = await in_thread(self.clinic, accounts.renew, self.get_cookie(accounts.COOKIE, ""))
        except accounts.SignedOut:
            self.finish({"state": "signed-out"})
            return
        self.clinic.kernel_manager.used_now(self.clinic.owners.kernels_of(self.current_user.session_id))
        self.finish({"state": "there"} | _until_the_end(left))


def _until_the_end(left: accounts.TimeLeft) -> dict[str, object]:
    """What a page needs to know of the session's end; all times in seconds.

    warn: how long before the end the page warns. again: how long the page waits before it says again that someone is
    there. Both are shorter where sessions are short.
    """
    idle = config.idle_minutes() * 60
    return {
        "seconds": round(left.seconds, 1),
        "extendable": left.extendable,
        "warn": min(60, idle / 3),
        "again": min(60, idle / 6),
    }


class PageLeft(PageHandler):
    """A page that is closed or left tells so: its kernel is not needed any more."""

    @allow_unauthenticated
    async def post(self, kernel_id: str) -> None:
        self.set_status(204)
        if not self.current_user:  # the kernel stopped when the session ended
            return
        if not self.owns(kernel_id):
            raise web.HTTPError(403)
        await self.clinic.stop_kernels([kernel_id])


@web.stream_request_body
class UploadHandler(PageHandler):
    """A file that a page sends to its own kernel; it stays in memory until the kernel takes it.

    A page sends one file at a time, which bounds its share of the memory. An upload that is not complete when the next
    one starts (its connection was lost, for example) is dropped.
    """

    async def prepare(self, **options: Any) -> None:
        await super().prepare(**options)
        kernel_id = self.path_kwargs["kernel_id"]
        if not self.owns(kernel_id):
            raise web.HTTPError(403)
        if earlier := self.clinic.uploading.get(kernel_id):
            earlier.give_up()
        self.clinic.uploading[kernel_id] = self
        self._content = bytearray()
        connection: Any = self.request.connection
        self.clinic.server.heard(connection.stream)
        most = config.upload_bytes()
        connection.set_max_body_size(most)
        connection.set_body_timeout(upload_seconds(min(most, self._announced())))

    def _announced(self) -> int:
        """Bytes that follow, as the request says; the most if it does not."""
        length = self.request.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else config.upload_bytes()

    def data_received(self, chunk: bytes) -> None:
        self._content += chunk

    @web.authenticated
    async def post(self, kernel_id: str) -> None:
        self.clinic.door.leave(kernel_id, self._content)
        self.set_status(204)

    def on_finish(self) -> None:
        super().on_finish()
        self._end()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._end()

    def give_up(self) -> None:
        self._content = bytearray()
        connection: Any = self.request.connection
        connection.close()

    def _end(self) -> None:
        kernel_id = self.path_kwargs["kernel_id"]
        if self.clinic.uploading.get(kernel_id) is self:
            del self.clinic.uploading[kernel_id]


class SliceHandler(PageHandler):
    """Some slices of a CT series for whoever opened the case: the records decide, as in a kernel.

    Kernels stay small this way, and the browser fetches what it shows first. The answer has for each slice its length
    (4 bytes, big-endian) and a PNG of 16 bits. A thread reads; meanwhile others are answered.
    """

    @allow_unauthenticated
    async def get(self, reading_id: str, numbers: str) -> None:
        records = Records(accounts.Access(self.clinic.store, self.get_cookie(accounts.COOKIE, "")))
        wanted = [int(number) for number in numbers.split(",")]
        loop = asyncio.get_running_loop()
        try:
            slices = await loop.run_in_executor(self.clinic.slices, records.series_slices, reading_id, wanted)
        except (accounts.SignedOut, accounts.Forbidden):
            raise web.HTTPError(403) from None
        except RecordMissing:
            raise web.HTTPError(404) from None
        except StoreError as problem:
            log.warning("slices could not be read: %s", problem)
            raise web.HTTPError(503) from None
        self.set_header("Content-Type", "application/octet-stream")
        self.finish(b"".join(part for png in slices for part in (len(png).to_bytes(4, "big"), png)))


def library_path() -> str:
    """Path of the libraries' scripts and styles: a new one for each version, so that browsers may keep them."""
    versions = [metadata.version(name) for name in ("voila", "jupyterlab_widgets", "anywidget")]
    return "/parts/" + "-".join(versions)


def page_config(page_config: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Voila's settings of the page, with the addresses of the libraries' files."""
    parts = library_path()
    return page_config | {"fullStaticUrl": f"{parts}/voila", "fullLabextensionsUrl": f"{parts}/extensions"}


class LibraryFile(MultiStaticFileHandler):
    """A script, style or font of the libraries that the page is made of: the same for everyone, forever."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        # Only what a page asked for is noted: others could make the sign-in page fetch everything there is. The query
        # is empty, or the hash that the file's name contains too.
        clinic, query = self.settings["clinic"], self.request.query.removeprefix("v=")
        if self.get_cookie(accounts.COOKIE) in clinic.opened_by and query in ("", *path.split(".")):
            clinic.parts_in_use[self.request.uri] = None


class PartsInUse(PageHandler):
    """The files that pages loaded since the server started; the sign-in page fetches them while a name is typed."""

    @allow_unauthenticated
    def get(self) -> None:
        self.finish({"parts": list(self.clinic.parts_in_use)})


class OwnFile(web.StaticFileHandler):
    """The clinic's own style sheet and scripts: browsers keep them, and ask each time whether they changed."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")


class NoSuchPage(PageHandler):
    """Every address that is not listed."""

    @allow_unauthenticated
    async def prepare(self, **_: Any) -> None:
        raise web.HTTPError(404)
