"""Room on the disk that is kept for the day when the disk is full.

It is a file next to the records' SQLite database. Only what is small and has to work takes from it
(`store.also_on_a_full_disk`): signing in and out, the audit trail's rows of what was opened, reviews. The file gets
shorter by a step, and what could not be written is written again. When there is room it grows again (`keep`).
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)
BYTES = 2**25  # at most
STEP = 2**20  # bytes that are given at a time; a write that may use the reserve needs far less
_SHARE = 4  # of what is free, at most the fourth part becomes reserve
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def no_room(error: OSError) -> bool:
    """Whether the system refused because a disk or a quota is full."""
    return error.errno in _NO_ROOM


class Reserve:
    """The reserve of one database. path: None where the disk is another machine's; then there is never any."""

    def __init__(self, path: Path | None):
        self.path = path

    def bytes(self) -> int:
        """How much there is."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_size if self.path else 0
        return 0

    def keep(self) -> int:
        """Make the reserve as large as it may be now, never smaller; returns its bytes. OSError: it cannot be made."""
        if self.path is None or not self.path.parent.is_dir():
            return 0
        with self._locked(self.path) as file:
            size = os.fstat(file).st_size
            most = (shutil.disk_usage(self.path.parent).free + size) // _SHARE
            if (wanted := min(BYTES, most) // STEP * STEP) <= size:
                return size
            _grow(file, size, wanted)
            grown = os.fstat(file).st_size
        log.info("the reserve for a full disk has %d MiB", grown >> 20)
        return grown

    def release(self, always: bool) -> bool:
        """Give a step of the reserve to whoever writes next; returns whether a write is worth trying again.

        always: also if there is room already, as after another process has just released some.
        """
        if self.path is None:
            return False
        try:
            return self.path.exists() and self._released(self.path, always)
        except OSError as error:
            log.error("the reserve for a full disk cannot be used: %s", error)
            return False

    def _released(self, path: Path, always: bool) -> bool:
        with self._locked(path) as file:
            if not always and _has_room(path.parent, file):
                return True
            left = os.fstat(file).st_size
            if not left:
                return False
            os.ftruncate(file, max(0, left - STEP))
            os.fsync(file)  # some file systems give blocks free only when their own log is written
            log.error("the disk with the records is full; %d MiB of the reserve are left", max(0, left - STEP) >> 20)
            return True

    @contextmanager
    def _locked(self, path: Path) -> Iterator[int]:
        """The file, which no other process changes meanwhile."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


def _has_room(folder: Path, file: int) -> bool:
    """Whether half a step can be written behind the file's end: a quota may be used up where the disk has room."""
    if shutil.disk_usage(folder).free < STEP // 2:
        return False
    size = os.fstat(file).st_size
    try:
        written = os.pwrite(file, os.urandom(STEP // 2), size)
        os.fsync(file)
    except OSError as error:
        if not no_room(error):
            raise
        return False
    finally:
        os.ftruncate(file, size)
    return written == STEP // 2


def _grow(file: int, size: int, wanted: int) -> None:
    """Write until the file has its size or the disk is full; then what is less than a step is given back."""
    try:
        while size < wanted:
            # Random: a file system that compresses keeps no room for zeros.
            size += os.pwrite(file, os.urandom(min(STEP, wanted - size)), size)
        os.fsync(file)
    except OSError as error:
        if not no_room(error):
            raise
        os.ftruncate(file, os.fstat(file).st_size // STEP * STEP)
