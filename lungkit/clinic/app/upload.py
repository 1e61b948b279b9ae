"""Choosing image files: the browser refuses files that are too large, and sends the others one after another.

A file goes to the web server, which keeps it in memory until this page's kernel takes it. ipywidgets' FileUpload is
not used: it sends all files in one message through the page's socket. Above the server's limit the connection breaks
without a message, and below it all files are in the kernel's memory at once.
"""

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets


class UploadField(anywidget.AnyWidget):
    """A field for image files.

    receive: called for each file with (name, bytes, number, of how many); bytes are None if none arrived.
    take: returns the file that the page sent, or None; called once for each file.
    ready: whether a file is accepted now; checked here, because `disabled` is only a hint to the browser.
    limit: the most bytes of one file; the server checks it, too.
    """

    _esm = Path(__file__).with_name("upload.js")

    accept = traitlets.Unicode(".png,.jpg,.jpeg,.tif,.tiff,.dcm").tag(sync=True)
    limit = traitlets.Int().tag(sync=True)
    title = traitlets.Unicode("Choose images").tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        receive: Callable[[str, bytes | None, int, int], None],
        take: Callable[[], bytes | None],
        ready: Callable[[], bool],
        limit: int,
        **traits: str,
    ):
        super().__init__(limit=limit, **traits)
        self._receive, self._take, self._ready = receive, take, ready
        self.add_class("clinic-upload")
        self.on_msg(self._heard)

    def _heard(self, _widget: object, message: object, _buffers: object) -> None:
        """The page sent a file, or could not. It gets the answer "done" even if the file cannot be used."""
        try:
            match message:
                case {"name": str(name), "number": int(number), "of": int(of)}:
                    content = self._take()
                    if self._ready():
                        self._receive(name, content, number, of)
        finally:
            self.send({"answer": "done"})
