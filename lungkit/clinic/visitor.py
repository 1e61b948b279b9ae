"""In the kernel: waits until a person opens the page, and says with which session token.

A preheated kernel has run everything before this call and waits here. The cookie comes through a socket in a folder
that only the server's own user can enter (Voila's own way, a websocket on the web server's port, would hand a
person's cookie to whoever knows the kernel's number).
"""

import json
import os

from tornado import httputil
from websockets.sync.client import unix_connect

from lungkit.clinic.accounts import COOKIE

DOOR = "LUNGKIT_DOOR"  # the variable that names the socket


def token() -> str:
    """The session token of who opened the page; empty where the browser sent none."""
    if os.environ.get("VOILA_PREHEAT") == "True":
        with unix_connect(os.environ[DOOR], f"ws://door/{os.environ['VOILA_KERNEL_ID']}") as door:
            cookies = json.loads(door.recv()).get("HTTP_COOKIE", "")
    else:
        cookies = os.environ.pop("HTTP_COOKIE", "")
    return httputil.parse_cookie(cookies).get(COOKIE, "")
