"""The socket through which a page's kernel asks the server who opened the page, and for the files that the page sent.

A kernel of the pool has run everything before it needs a person, and waits here for one. The socket is in a folder that
only the server's own user can enter. (Voila's own way is a websocket on the web server's port, which would give a
person's cookie to any process that knows the kernel's number.)

A question is one line. "visitor KERNEL" is answered with the session token of the person who opened the page, as soon
as there is one. "upload KERNEL" is answered with 1 and the file that the page sent last, or with 0 if there is none.
Kernels import this module, which therefore imports nothing heavy.
"""

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lungkit.clinic.web import folders

DOOR = "LUNGKIT_DOOR"  # the environment variable that names the socket
PIECE = 2**20  # bytes of a file that are handed over at once


# --- the kernel's end


def token() -> str:
    """The session token of the person who opened the page; empty if the server stopped before anyone did."""
    return _ask("visitor").decode()


def upload() -> bytes | None:
    """The file that the page sent last, once; None if there is none."""
    answer = _ask("upload")
    return answer[1:] if answer[:1] == b"1" else None


def folder() -> Path:
    """Where a kernel keeps what its page sends until it is read; the server removes it when the kernel ends.

    It is on the disk for temporary files, while the server's private folder is in memory. OSError: there is no room.
    """
    kernel_id = os.environ["VOILA_KERNEL_ID"]
    return next(_folders(kernel_id), None) or folders.make(_prefix(kernel_id))


def _folders(kernel_id: str) -> Iterator[Path]:
    """The folder of a kernel, if it has one; anyone may put something with its name there."""
    for place in Path(tempfile.gettempdir()).glob(f"{_prefix(kernel_id)}*"):
        with suppress(FileNotFoundError):
            if place.lstat().st_uid == os.getuid():
                yield place


def _prefix(kernel_id: str) -> str:
    """Begins like the name of the server's private folder, with which it goes."""
    return f"{Path(os.environ.get(DOOR, f'{folders.PREFIX}/door')).parent.name}-{kernel_id}-"


def _ask(question: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(os.environ[DOOR])
        door.sendall(f"{question} {os.environ['VOILA_KERNEL_ID']}\n".encode())
        with door.makefile("rb") as answer:
            return answer.read()


# --- the server's end


class Door:
    """What the server keeps for each kernel until the kernel asks."""

    def __init__(self, on_question: Callable[[], None] = lambda: None) -> None:
        self._on_question = on_question  # called when a kernel begins to wait for its visitor
        self._visitors: dict[str, asyncio.Future[str]] = {}
        self._uploads: dict[str, bytes | bytearray] = {}

    def asked(self, kernel_id: str) -> bool:
        """Whether the kernel has run everything before it needs a person, and waits for one."""
        return kernel_id in self._visitors

    def admit(self, kernel_id: str, token: str) -> None:
        """A person opened this kernel's page."""
        self._visitor(kernel_id).set_result(token)

    def leave(self, kernel_id: str, content: bytes | bytearray) -> None:
        """Keep a file for this kernel; it replaces one that the kernel did not take."""
        self._uploads[kernel_id] = content

    def forget(self, kernel_id: str) -> None:
        """The kernel ends: drop the file that it did not take, and those that it kept."""
        self._uploads.pop(kernel_id, None)
        if visitor := self._visitors.pop(kernel_id, None):
            visitor.cancel()
        with suppress(OSError):  # no room for any temporary file
            for place in _folders(kernel_id):
                folders.remove(place)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question, then close the connection."""
        question, _, kernel_id = (await reader.readline()).decode().strip().partition(" ")
        try:
            if question == "upload":
                content = self._uploads.pop(kernel_id, None)
                writer.write(b"0" if content is None else b"1")
                for piece in _pieces(content or b""):
                    writer.write(piece)
                    await writer.drain()
            else:
                visitor = self._visitor(kernel_id)
                self._on_question()
                writer.write((await visitor).encode())
                self._visitors.pop(kernel_id, None)
            await writer.drain()
        except asyncio.CancelledError:  # the server stops, or ends this kernel: no one will open its page
            self._visitors.pop(kernel_id, None)
        finally:
            writer.close()

    def _visitor(self, kernel_id: str) -> asyncio.Future[str]:
        if kernel_id not in self._visitors:
            self._visitors[kernel_id] = asyncio.get_running_loop().create_future()
        return self._visitors[kernel_id]


def _pieces(content: bytes | bytearray) -> Iterator[memoryview]:
    """A file piece by piece, because what is written at once is copied."""
    whole = memoryview(content)
    for start in range(0, len(whole), PIECE):
        yield whole[start : start + PIECE]
