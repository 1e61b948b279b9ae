"""Private folders of the server and of its kernels, which tell whether someone still uses them.

Each is locked by the process that uses it, and the system lifts the lock when that process ends, however it ends. A
process's number would not tell: servers in two containers can see the same folders and have the same number.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "lungkit-serve-"


def make(prefix: str, place: str | Path | None = None) -> Path:
    """A new folder for this user only, in use until this process ends. place: default: for temporary files."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        with suppress(FileNotFoundError, BlockingIOError):  # another server took it for one that was left
            lock = os.open(folder, os.O_RDONLY)  # stays open
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # some network disks have no LOCK_EX for folders
            if folder.exists():
                return folder


def remove(folder: Path) -> None:
    """Remove a folder of this user; anyone may have put something with its name there."""
    with suppress(FileNotFoundError):
        if folder.lstat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def remove_if_left(folder: Path) -> None:
    """Remove a folder of this user that no process uses."""
    with suppress(OSError):  # in use; gone; not of this user; a disk that cannot tell
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        finally:
            os.close(lock)
