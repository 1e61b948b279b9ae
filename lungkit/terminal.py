"""What commands show: lines, tables that never shorten a figure or a name, and errors as one line."""

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lungkit import config

PROSE_WIDTH = 24  # characters that a column of prose needs to be read in a table
_NO_LIMIT = 100_000

# Why the system refused, in plain words; other reasons are shown in the system's own words.
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota on this disk is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "you have no permission",
    errno.EPERM: "the system does not permit it",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "there is a file where a folder is needed",
    errno.EEXIST: "it exists already, as a file or a folder of something else",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open on this machine",
    errno.EFBIG: "the file would be larger than the limit for one file",
    errno.EIO: "the disk or the network drive reports an error",
    errno.ESTALE: "the network drive has lost it",
    errno.ENOMEM: "the memory is not enough",
    errno.ELOOP: "its links lead in a circle",
}


def console() -> Console:
    """Standard output. "[old]" is a name, not markup. Without a terminal, lines have no maximal width."""
    shown = Console(markup=False, highlight=False)
    return shown if shown.is_terminal else Console(markup=False, highlight=False, width=_NO_LIMIT)


def say(text: str) -> None:
    """Show one line; the terminal itself wraps it."""
    console().print(text, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", prose: Sequence[str] = ()) -> None:
    """Show rows under their columns. On a screen too narrow for that, show a block for each row, with a line for each
    cell that is not empty.

    prose: columns whose text may be wrapped between words.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    if title:
        say(title)
    screen = console()
    grid = _grid(columns, texts, prose)
    unlimited = screen.options.update(max_width=_NO_LIMIT)
    if Measurement.get(screen, unlimited, grid).minimum <= screen.width:
        screen.print(grid)
        return
    for row in texts:
        for column, cell in zip(columns, row, strict=True):
            if cell:
                say(f"{column}: {cell}" if column else cell)
        say("")


def _grid(columns: Sequence[str], rows: list[list[str]], prose: Sequence[str]) -> Table:
    grid = Table()
    for column in columns:
        if column in prose:
            grid.add_column(column, overflow="fold", min_width=PROSE_WIDTH)
        else:
            grid.add_column(column, no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    return grid


def error(text: str) -> None:
    """Show what went wrong on standard error."""
    shown = Console(stderr=True, markup=False, highlight=False)
    shown.print("error:", style="bold red", end=" ")
    shown.print(text, soft_wrap=True)


# --- errors of the system


def refusal(refused: OSError) -> str:
    """What could not be read or written, and why, as one line.

    If the error of a full disk names no file, the line names the folders of this run on full disks.
    """
    reason = REASONS.get(refused.errno or 0) or refused.strerror or str(refused) or type(refused).__name__
    names = [os.fsdecode(name) for name in (refused.filename, refused.filename2) if isinstance(name, str | bytes)]
    if not names and refused.errno == errno.ENOSPC:
        names = _full_folders()
    return f"{' to '.join(names)}: {reason}" if names else reason


def _full_folders() -> list[str]:
    """The folders of this run on a disk without space."""
    arguments = [
        Path(text.partition("=")[2] or text) for text in sys.argv[1:] if not text.startswith("-") or "=" in text
    ]
    output = Path("/proc/self/fd/1").resolve()  # the file, where standard output is one
    own = [config.data_dir(), config.reports_dir(), config.artifacts_dir(), Path(tempfile.gettempdir())]
    full = [str(folder) for folder in (*own, *([output] if output.is_file() else []), *arguments) if _is_full(folder)]
    return [", ".join(dict.fromkeys(full))] if full else []


def _is_full(folder: Path) -> bool:
    for path in (folder.absolute(), *folder.absolute().parents):
        try:
            return shutil.disk_usage(path).free < 2**16
        except OSError:  # it does not exist yet
            continue
    return False
