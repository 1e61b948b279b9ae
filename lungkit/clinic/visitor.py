"""In the kernel: waits until a person opens the page, and says with which session token.

A preheated kernel has run everything before this call and waits here. The token comes through a socket in a folder
that only the server's own user can enter. (Voila's own way, a websocket on the web server's port, would hand a
person's cookie to whoever knows the kernel's number.)
"""

import os
import socket

DOOR = "LUNGKIT_DOOR"  # the variable that names the socket


def token() -> str:
    """The session token of who opened the page; empty when the server stopped before anyone did."""
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(os.environ[DOOR])
        door.sendall(os.environ["VOILA_KERNEL_ID"].encode() + b"\n")
        with door.makefile() as answer:
            return answer.read()
