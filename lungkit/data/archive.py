"""A zip file of images from a stranger: what is in it is bounded before anything is unpacked, and nothing is written.

Names in the archive are only shown, never used as paths. An archive inside the archive is not opened.
"""

import io
import threading
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import IO

from lungkit.data import folders
from lungkit.data.image import ImageRefused
from lungkit.data.images import MAX_BYTES

MAX_FILES = 20_000
MAX_UNPACKED = 4 * 2**30  # bytes of all files
MAX_RATIO = 100  # of the unpacked bytes to those of the archive; uncompressed CT reaches about 5
_DIRECTORY = 4 * 2**20  # bytes of the archive's table of contents; each entry costs ten times its size in memory
_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError)


def is_zip(content: Path | bytes) -> bool:
    """Whether a file, or bytes, start as a zip file. False if it cannot be opened."""
    if isinstance(content, bytes):
        return content.startswith(_STARTS)
    try:
        if not content.is_file():
            return False
        with content.open("rb") as file:
            return file.read(4) in _STARTS
    except (OSError, ValueError):
        return False


class Archive:
    """The files of a zip file. Threads may read from it at the same time."""

    def __init__(self, content: Path | bytes, name: str):
        """Raises ImageRefused, and nothing else, if it is no zip file or unpacks to more than is allowed."""
        self.name, self._lock = name, threading.Lock()
        self._last: tuple[int, bytes] = -1, b""  # many frames may be read from one file
        try:
            self._zip, size = self._opened(content)
        except _DAMAGED as error:
            raise ImageRefused(name, f"damaged zip file: {error}", "Copy or download it again.") from error
        self._members = [member for member in self._zip.infolist() if not member.is_dir()]
        self._check(size)

    def names(self) -> list[str]:
        """What to call each file, in the order of the archive: the archive's own name, and the name in it."""
        return list(map(self._named, self._members))

    def is_rubbish(self, number: int) -> bool:
        """Whether an operating system put the file (from 0) into the archive, such as `.DS_Store`."""
        return any(map(folders.is_rubbish, self._members[number].filename.split("/")))

    def read(self, number: int) -> bytes:
        """The bytes of a file (from 0). Raises ImageRefused, and nothing else."""
        member = self._members[number]
        with self._lock:
            if self._last[0] != number:
                self._last = number, self._unpacked(member, self._named(member))
            return self._last[1]

    def _named(self, member: zipfile.ZipInfo) -> str:
        return f"{self.name}: {folders.one_line(member.filename)}"

    def _opened(self, content: Path | bytes) -> tuple[zipfile.ZipFile, int]:
        stream: IO[bytes] = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
        try:
            opened = zipfile.ZipFile(Bounded(stream))
        except BaseException:
            stream.close()
            raise
        weakref.finalize(self, stream.close)
        return opened, stream.seek(0, io.SEEK_END)

    def _check(self, size: int) -> None:
        unpacked = sum(member.file_size for member in self._members)
        if len(self._members) > MAX_FILES:
            raise ImageRefused(self.name, f"too many files: {len(self._members):,}", f"At most {MAX_FILES:,} are read.")
        if unpacked > MAX_UNPACKED:
            rule = f"too large: {unpacked / 2**30:.1f} GiB when unpacked"
            raise ImageRefused(self.name, rule, f"At most {MAX_UNPACKED >> 30} GiB are unpacked; give fewer series.")
        if unpacked > size * MAX_RATIO:
            rule = f"packed too tightly: {size:,} bytes unpack to {unpacked:,}"
            raise ImageRefused(self.name, rule, f"At most {MAX_RATIO} times its size is unpacked; unpack it yourself.")

    def _unpacked(self, member: zipfile.ZipInfo, name: str) -> bytes:
        if member.flag_bits & 1:
            raise ImageRefused(name, "encrypted in the zip file", "Pack it without a password.")
        if member.compress_type not in _METHODS:
            raise ImageRefused(name, "packed by a method that is not accepted", "Pack it with deflate, as usual.")
        if member.file_size > MAX_BYTES:
            raise ImageRefused(
                name, f"file too large: more than {MAX_BYTES >> 20} MiB", "Unpack the zip file yourself."
            )
        try:
            with self._zip.open(member) as file:
                return file.read(member.file_size)
        except _DAMAGED as error:
            raise ImageRefused(name, "damaged in the zip file", "Pack it again.") from error


class Bounded:
    """A stream from which at most _DIRECTORY bytes are read at once, because zipfile reads the whole directory."""

    def __init__(self, stream: IO[bytes]):
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY:
            raise zipfile.BadZipFile("its table of contents is too long")
        return self._stream.read(_DIRECTORY if size < 0 else size)
