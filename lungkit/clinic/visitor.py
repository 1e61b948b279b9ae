"""In the kernel: what the server holds for it, who opened its page and which file the page sent.

A preheated kernel has run everything before it asks who came, and waits there. Token and files come through a socket in
a folder that only the server's own user can enter. (Voila's own way, a websocket on the web server's port, would hand a
person's cookie to whoever knows the kernel's number.)
"""

import os
import socket

DOOR = "LUNGKIT_DOOR"  # the variable that names the socket


def token() -> str:
    """The session token of who opened the page; empty when the server stopped before anyone did."""
    return _ask("visitor").decode()


def upload() -> bytes | None:
    """The file that the page sent last and nobody took yet, or None."""
    answer = _ask("upload")
    return answer[1:] if answer[:1] == b"1" else None


def _ask(question: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(os.environ[DOOR])
        door.sendall(f"{question} {os.environ['VOILA_KERNEL_ID']}\n".encode())
        with door.makefile("rb") as answer:
            return answer.read()
