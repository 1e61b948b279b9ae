"""Choosing image files: the browser refuses what is too large, and sends the rest piece by piece.

A file goes to the web server, which keeps it in memory until this page's kernel takes it. ipywidgets' FileUpload is
not used: it sends all files in one message through the page's socket. Above the server's limit the connection breaks
without a message, and below it all files are in the kernel's memory at once.

A picture goes as a whole. Many DICOM files, and zip files, go together in pieces of at most PIECE, which the kernel
writes to a folder that only this server's user can read; it is removed with the next upload, and when the page ends.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

from lungkit.errors import LungkitError

PIECE = 2**24  # bytes
MOST_FILES = 4000  # sent together
NO_ROOM = "The server's disk has no room for these files. Tell an administrator."
_SPARE = 2**28  # bytes that stay free on the disk


class Bundle:
    """Files that were sent together, in a folder. Raises LungkitError if they are too many or too large."""

    def __init__(self, folder: Path, number: int, size: int, limit: int):
        if not 0 < number <= MOST_FILES:
            raise LungkitError(
                f"{number} files are too many. Up to {MOST_FILES} are taken at a time; pack them as zip."
            )
        if not 0 <= size <= limit:
            raise LungkitError(f"{size >> 20} MiB are too much. Up to {limit >> 20} MiB are taken at a time.")
        if size + _SPARE > shutil.disk_usage(folder).free:
            raise LungkitError(NO_ROOM)
        self.folder, self._left = folder, size
        self._paths: list[Path | None] = [None] * number
        self.close()
        (folder / "files").mkdir(parents=True)

    @property
    def paths(self) -> list[Path]:
        """The files that came, in the order in which they were chosen."""
        return [path for path in self._paths if path]

    def add(self, pieces: list[tuple[int, str, int]], content: bytes) -> None:
        """Write pieces of files: (number of the file, its name, bytes), which follow each other in `content`."""
        known = all(0 <= number < len(self._paths) and size >= 0 for number, _, size in pieces)
        if not known or sum(size for _, _, size in pieces) != len(content) or len(content) > self._left:
            raise LungkitError("The files did not arrive as they were announced. Choose them again.")
        at = 0
        for number, name, size in pieces:
            path = self._paths[number] = self._paths[number] or self._free(name)
            with path.open("ab") as file:
                file.write(content[at : at + size])
            at += size
        self._left -= at

    def close(self) -> None:
        """Remove the files."""
        for old in self.folder.iterdir():
            shutil.rmtree(old)

    def _free(self, name: str) -> Path:
        """A path that no file has yet; the name is a stranger's."""
        plain = re.sub(r"[^\w.()+ -]|^\.+", "_", name)[-100:] or "file"
        paths = (
            self.folder / "files" / (plain if not again else f"{again}-{plain}") for again in range(MOST_FILES + 1)
        )
        return next(path for path in paths if not path.exists())


class UploadField(anywidget.AnyWidget):
    """A field for image files.

    receive: called for each file with (name, bytes, number, of how many); bytes are None if none arrived.
    receive_together: called with a Bundle that is complete. folder: returns the folder for it.
    take: returns the file that the page sent, or None; called once for each file or piece.
    ready: whether a file is accepted now; checked here, because `disabled` is only a hint to the browser.
    limit: the most bytes of one file; the server checks it, too. limit_together: of a Bundle.
    """

    _esm = Path(__file__).with_name("upload.js")

    accept = traitlets.Unicode(".png,.jpg,.jpeg,.tif,.tiff,.dcm,.ima,.zip").tag(sync=True)
    limit = traitlets.Int().tag(sync=True)
    limit_together = traitlets.Int().tag(sync=True)
    most_files = traitlets.Int(MOST_FILES).tag(sync=True)
    piece = traitlets.Int(PIECE).tag(sync=True)
    title = traitlets.Unicode("Choose images").tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        receive: Callable[[str, bytes | None, int, int], None],
        receive_together: Callable[[Bundle], None],
        take: Callable[[], bytes | None],
        folder: Callable[[], Path],
        ready: Callable[[], bool],
        limit: int,
        limit_together: int,
        **traits: str,
    ):
        super().__init__(limit=limit, limit_together=limit_together, piece=min(PIECE, limit), **traits)
        self._receive, self._receive_together, self._folder = receive, receive_together, folder
        self._take, self._ready = take, ready
        self._bundle: Bundle | None = None
        self.add_class("clinic-upload")
        self.on_msg(self._heard)

    def working(self) -> None:
        """Tell the page that what it sent last takes longer."""
        self.send({"answer": "working"})

    def _heard(self, _widget: object, message: object, _buffers: object) -> None:
        """The page sent something, or could not. It gets an answer even if that cannot be used."""
        refused = ""
        try:
            match message:
                case {"name": str(name), "number": int(number), "of": int(of)}:
                    content = self._take()
                    if self._ready():
                        self._receive(name, content, number, of)
                case {"together": int(number), "bytes": int(size)} if self._ready():
                    self._bundle = None
                    self._bundle = Bundle(self._folder(), number, size, self.limit_together)
                case {"pieces": [*pieces]}:
                    self._add(pieces)
                case {"complete": True} if self._bundle and self._ready():
                    bundle, self._bundle = self._bundle, None
                    self._receive_together(bundle)
        except LungkitError as problem:
            self._bundle, refused = None, str(problem)
        except OSError:
            self._bundle, refused = None, NO_ROOM
        finally:
            self.send({"answer": "done", "refused": refused})

    def _add(self, pieces: list[object]) -> None:
        content, known = self._take(), []
        for piece in pieces:
            match piece:
                case [int(number), str(name), int(size)]:
                    known.append((number, name, size))
        if self._bundle is None or content is None or len(known) != len(pieces):
            raise LungkitError("The files did not arrive. Choose them again.")
        self._bundle.add(known, content)
