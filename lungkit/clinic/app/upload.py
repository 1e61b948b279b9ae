"""Choosing files: what is too large is refused in the browser with a reason, the rest comes in parts, file by file.

ipywidgets' FileUpload sends everything that was chosen in one message: past the server's limit the connection drops
without a word, and below it all files lie in the kernel's memory at once.
"""

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets


class Upload(anywidget.AnyWidget):
    """A field for image files.

    receive: called for each complete file with (name, bytes, number, of how many).
    ready: whether a file may come now; asked here, because `disabled` is only a hint to the browser.
    limit: most bytes of one file; held here too, whatever the browser sends.
    """

    _esm = Path(__file__).with_name("upload.js")

    accept = traitlets.Unicode(".png,.jpg,.jpeg,.tif,.tiff,.dcm").tag(sync=True)
    limit = traitlets.Int().tag(sync=True)
    title = traitlets.Unicode("Choose images").tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, receive: Callable[[str, bytes, int, int], None], ready: Callable[[], bool], limit: int, **traits
    ):
        super().__init__(limit=limit, **traits)
        self._receive, self._ready, self._most = receive, ready, limit
        self._parts = bytearray()
        self.add_class("clinic-upload")
        self.on_msg(self._heard)

    def _heard(self, _widget, message, buffers) -> None:
        """One part of a file; the answer "more" or "done" comes also when something is wrong with it."""
        finished = True
        try:
            finished = self._take(message, buffers)
        finally:
            if finished:
                self._parts = bytearray()
            self.send({"answer": "done" if finished else "more"})

    def _take(self, message, buffers) -> bool:
        """Whether the file ends here: it is complete, may not come now, or its parts do not fit together."""
        match message, buffers:
            case (
                {"name": str(name), "size": int(size), "start": int(start), "number": int(number), "of": int(of)},
                [part],
            ) if self._ready() and 0 <= size <= self._most:
                if start == 0:
                    self._parts = bytearray()
                fits = start == len(self._parts) and start + len(part) <= size and (len(part) or not size)
                if not fits:
                    return True
                self._parts += part
                if len(self._parts) < size:
                    return False
                content, self._parts = bytes(self._parts), bytearray()
                self._receive(name, content, number, of)
        return True
