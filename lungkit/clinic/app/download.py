"""A button that makes a file in the kernel and lets the browser save it."""

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets


class DownloadButton(anywidget.AnyWidget):
    """The button.

    make: called at each click; returns (file name, bytes), or None if there is nothing to save, as after a failure
    under the page's guard.
    type: media type of the bytes, such as "application/pdf".
    """

    _esm = Path(__file__).with_name("download.js")

    label = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(self, label: str, make: Callable[[], tuple[str, bytes] | None], type: str):
        super().__init__(label=label)
        self._make, self._type = make, type
        self.add_class("clinic-download")
        self.on_msg(self._heard)

    def _heard(self, *_message: object) -> None:
        made = None
        try:
            made = self._make()
        finally:  # the button waits for an answer
            file, content = made or ("", b"")
            self.send({"file": file, "type": self._type}, [content])
