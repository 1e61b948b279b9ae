"""Files and folders that appear whole or not at all, whatever ends the process that writes them; locks; hashes."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lungkit.errors import LungkitError

LONGEST_NAME = 255  # bytes, on most file systems


def cut_name(name: str, most: int = LONGEST_NAME) -> str:
    """The beginning of a file's name that takes at most so many bytes."""
    return os.fsencode(name)[:most].decode(sys.getfilesystemencoding(), "ignore")


def sha256(content: bytes | Path) -> str:
    """The SHA-256 of bytes, or of the file at a path, as 64 hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- one file


def plain(path: Path) -> bytes:
    """The content of a file that is no link. LungkitError for a link, a device or a pipe; OSError of the system.

    It is for files of a folder whose content is to be published: a link leads to any file of this machine.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for its writer
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LungkitError(f"{path} is a link; put the file in its place, or remove it") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LungkitError(f"{path} is no plain file; put one in its place, or remove it")
        return file.read()


def replace(path: Path, content: bytes | str, durable: bool = False) -> None:
    """Write a file in one step: a reader sees the old file or the new one.

    durable: also survive a power failure from here on (fsync). An OSError names the file.
    """
    with draft(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        put(new, path, durable)


@contextmanager
def draft(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """An empty file next to `path`, with the same suffix, to write and then to `put` in the place of `path`.

    At the end it is removed, with what SQLite leaves next to it, unless it was moved. An OSError of the block that
    names no file, or this one, names `path`.
    """
    new = path.with_name(cut_name(f".{secrets.token_hex(4)}-{path.stem}", 200) + cut_name(path.suffix, 40))
    try:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield new
    except OSError as error:
        if error.filename is None or os.fsdecode(error.filename).startswith(str(new)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                Path(f"{new}{suffix}").unlink(missing_ok=True)


def put(new: Path, path: Path, durable: bool = True) -> None:
    """Move a file or a folder into its place in one step; `durable`: after everything in it has reached the disk."""
    if durable:
        sync(new)
    if new.is_dir():
        new.rename(path)
    else:
        new.replace(path)
    if durable:
        _fsync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or a folder and everything in it, has reached the disk."""
    for one in (*path.rglob("*"), path) if path.is_dir() else (path,):
        _fsync(one)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- a folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` in one step when the block ends.

    If the block raises, nothing is left. If another process filled `folder` in the meantime, that one stays. An
    OSError that names no file, or one of the draft, names `folder`.
    """
    try:
        with draft_folder(folder.parent, folder.name) as new:
            yield new
            try:
                new.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder.parent):
            error.filename = str(folder)
        raise


@contextmanager
def draft_folder(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder below `parent` to fill and move; at the end it is removed unless it was moved.

    What a killed process left is removed by the next call with the same parent and name.
    """
    parent.mkdir(parents=True, exist_ok=True)
    name = f".{cut_name(name, LONGEST_NAME - 20)}"
    _remove_abandoned(parent, f"{name}.draft-")
    home = Path(tempfile.mkdtemp(prefix=f"{name}.begun-", dir=parent))
    try:
        with locked(home / "lock"):
            # The name says "draft" only after the lock is taken: another process takes an unlocked draft for abandoned.
            locked_home = home.with_name(home.name.replace(f"{name}.begun-", f"{name}.draft-", 1))
            os.rename(home, locked_home)  # noqa: PTH104  (tests stop a process at Path.rename, which moves the result)
            home = locked_home
            (home / "new").mkdir()
            yield home / "new"
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for home in parent.iterdir():
        if home.name.startswith(prefix):
            # BlockingIOError: its process is alive. FileNotFoundError: its process has just removed it.
            with suppress(BlockingIOError, FileNotFoundError), locked(home / "lock", wait=False):
                shutil.rmtree(home, ignore_errors=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Keep an exclusive lock on a file. The system releases it when the process ends, however it ends.

    wait: for another process to release it; otherwise BlockingIOError.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
