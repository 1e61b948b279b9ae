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
import shutil
import socket
import tempfile
from pathlib import Path

DOOR = "LUNGKIT_DOOR"  # the environment variable that names the socket


# --- the kernel's end


def token() -> str:
    """The session token of the person who opened the page; empty if the server stopped before anyone did."""
    return _ask("visitor").decode()


def upload() -> bytes | None:
    """The file that the page sent last, once; None if there is none."""
    answer = _ask("upload")
    return answer[1:] if answer[:1] == b"1" else None


def folder() -> Path:
    """Where a kernel keeps what its page sends until it is read; the server removes it when the kernel ends."""
    private = os.environ.get(DOOR)
    place = _folder(Path(private).parent, os.environ["VOILA_KERNEL_ID"]) if private else Path(tempfile.mkdtemp())
    place.mkdir(mode=0o700, exist_ok=True)
    return place


def _folder(private: Path, kernel_id: str) -> Path:
    return private / f"uploads-{kernel_id}"


def _ask(question: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(os.environ[DOOR])
        door.sendall(f"{question} {os.environ['VOILA_KERNEL_ID']}\n".encode())
        with door.makefile("rb") as answer:
            return answer.read()


# --- the server's end


class Door:
    """What the server keeps for each kernel until the kernel asks."""

    def __init__(self) -> None:
        self._visitors: dict[str, asyncio.Future[str]] = {}
        self._uploads: dict[str, bytes] = {}

    def admit(self, kernel_id: str, token: str) -> None:
        """A person opened this kernel's page."""
        self._visitor(kernel_id).set_result(token)

    def leave(self, kernel_id: str, content: bytes) -> None:
        """Keep a file for this kernel; it replaces one that the kernel did not take."""
        self._uploads[kernel_id] = content

    def forget(self, kernel_id: str) -> None:
        """The kernel ends: drop the file that it did not take, and those that it kept."""
        self._uploads.pop(kernel_id, None)
        if private := os.environ.get(DOOR):
            shutil.rmtree(_folder(Path(private).parent, kernel_id), ignore_errors=True)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question, then close the connection."""
        question, _, kernel_id = (await reader.readline()).decode().strip().partition(" ")
        try:
            if question == "upload":
                content = self._uploads.pop(kernel_id, None)
                writer.write(b"0" if content is None else b"1" + content)
            else:
                writer.write((await self._visitor(kernel_id)).encode())
                del self._visitors[kernel_id]
            await writer.drain()
        except asyncio.CancelledError:  # the server stops: no one will open this page
            self._visitors.pop(kernel_id, None)
        finally:
            writer.close()

    def _visitor(self, kernel_id: str) -> asyncio.Future[str]:
        if kernel_id not in self._visitors:
            self._visitors[kernel_id] = asyncio.get_running_loop().create_future()
        return self._visitors[kernel_id]
