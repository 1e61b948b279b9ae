"""Files and folders that appear whole or not at all, whatever ends the process that writes them."""

import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_NAME = 255  # bytes, on most file systems


def cut_name(name: str, most: int = LONGEST_NAME) -> str:
    """The beginning of a file's name that takes at most so many bytes."""
    return os.fsencode(name)[:most].decode(sys.getfilesystemencoding(), "ignore")


def replace(path: Path, content: bytes | str) -> None:
    """Write a file in one step: a reader sees the old one or the new one. OSError names the file where it cannot."""
    draft = path.with_name(f".{cut_name(path.name, LONGEST_NAME - 12)}.{os.getpid()}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` in one step when the block ends.

    Where the block raises, nothing is left. What a killed process left is removed by the next call for the same folder.
    Where `folder` was filled by another process meanwhile, that one stays. An OSError that names no file, or one of the
    draft, names `folder`.
    """
    try:
        with _draft(folder) as filled:
            yield filled
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder.parent):
            error.filename = str(folder)
        raise


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = f".{cut_name(folder.name, LONGEST_NAME - 20)}"
    _remove_abandoned(folder.parent, f"{name}.draft-")
    home = Path(tempfile.mkdtemp(prefix=f"{name}.begun-", dir=folder.parent))
    try:
        with _locked(home / "lock"):
            # Called a draft only once it is locked, or another process could take it for an abandoned one.
            home = home.rename(home.with_name(home.name.replace(f"{name}.begun-", f"{name}.draft-", 1)))
            filled = home / "new"
            filled.mkdir()
            yield filled
            try:
                filled.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for home in parent.iterdir():
        if home.name.startswith(prefix):
            # Busy: its process is alive. Gone: its process has just removed it.
            with suppress(BlockingIOError, FileNotFoundError), _locked(home / "lock"):
                shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system gives back when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
