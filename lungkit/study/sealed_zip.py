"""Zip files whose bytes follow from their members alone, and that are refused where anything else is in them.

Members are stored as they are, in the order of their names, with one fixed time and without extra fields or comments.
The bytes then depend on no machine and on no version of a compression library, a file cannot unpack to more than its
own size, and no byte lies outside a member: the places of all members follow from their names and sizes.
"""

import stat
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from lungkit import files
from lungkit.data.archive import Bounded
from lungkit.data.folders import one_line
from lungkit.errors import LungkitError

MOST_FILES, MOST_BYTES = 20_000, 2**32 - 1  # more would need the larger form of zip
LONGEST_NAME = 240  # bytes
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can state
_MODE = stat.S_IFREG | 0o644
_LOCAL, _CENTRAL, _END = 30, 46, 22  # bytes of the headers, without names
_UTF8 = 0x800
_PIECE = 2**20  # bytes
_FORBIDDEN = set('\\:*?"<>|')  # in names of files on some system
_DAMAGED = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError)


class Refused(LungkitError):
    """The archive is not one that `write` could have made; the message names the file and why."""


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """Write the archive in one step. LungkitError where a name or the size is not allowed."""
    names = sorted(members)
    problems = [*_problems_of_names(names), *_problems_of_size([len(members[name]) for name in names])]
    if problems:
        raise LungkitError(f"{path.name}: {problems[0]}")
    with files.draft(path) as new:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
            for name in names:
                entry = zipfile.ZipInfo(name, _TIME)
                entry.create_system, entry.external_attr = 3, _MODE << 16
                archive.writestr(entry, members[name])
        files.put(new, path, durable=False)


class Sealed:
    """An archive of a stranger, its layout checked; use it as a context. Raises Refused, and OSError of the system."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("rb")
        try:
            self._zip = zipfile.ZipFile(Bounded(self._file))
            problems = _problems(self._zip, path.stat().st_size)
        except _DAMAGED as error:
            self._file.close()
            raise Refused(f"{path.name}: no zip file that can be read: {error}") from None
        if problems:
            self._file.close()
            raise Refused(f"{path.name}: {problems[0]}")
        self.names = self._zip.namelist()

    def read(self, name: str) -> bytes:
        """A member's bytes; Refused where they are damaged, KeyError where there is no such member."""
        try:
            with self._zip.open(name) as member:  # in pieces: Bounded gives no more at once
                return b"".join(iter(lambda: member.read(_PIECE), b""))
        except _DAMAGED as error:
            raise Refused(f"{one_line(name)}: damaged in {self.path.name}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _problems(archive: zipfile.ZipFile, size: int) -> list[str]:
    """What is not as `write` makes it; empty where the archive can be trusted to be plain files."""
    entries = archive.infolist()
    return [
        *_problems_of_names([entry.filename for entry in entries]),
        *_problems_of_size([entry.file_size for entry in entries]),
        *(problem for entry in entries if (problem := _problem_of_entry(entry))),
        *_problems_of_layout(archive, entries, size),
    ]


def _problem_of_entry(entry: zipfile.ZipInfo) -> str:
    name, kind = one_line(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
    if entry.flag_bits & ~_UTF8:
        return f"{name} is encrypted or packed in a way that is not accepted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return f"{name} is compressed; members are stored as they are"
    if kind != stat.S_IFREG:
        return f"{name} is no plain file (a link, a folder or a device)"
    if entry.extra or entry.comment:
        return f"{name} has fields that do not belong there"
    if not entry.filename.isascii() and not entry.flag_bits & _UTF8:
        return f"the name {name} is not in UTF-8"
    return ""


def _problems_of_layout(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], size: int) -> list[str]:
    """Members that overlap, gaps between them, and bytes before, after or in a comment."""
    place = 0
    for entry in entries:
        if entry.header_offset != place:
            return [f"{one_line(entry.filename)} does not lie directly after the member before it"]
        place += _LOCAL + len(entry.filename.encode()) + entry.file_size
    expected = place + _END + sum(_CENTRAL + len(entry.filename.encode()) for entry in entries)
    if archive.comment or size != expected:
        return [f"it has {size:,} bytes, and its members need {expected:,}: the rest belongs to none"]
    return []


def _problems_of_names(names: list[str]) -> list[str]:
    found = [f"{one_line(name)!r} is no name for a member: {why}" for name in names if (why := _problem_of_name(name))]
    if len({name.casefold() for name in names}) < len(names):
        found.append("two members have the same name on some systems")
    return found if names == sorted(names) else [*found, "its members are not in the order of their names"]


def _problem_of_name(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return "it could lead out of the folder"
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") or letter in _FORBIDDEN for letter in name):
        return "it has a character that file names cannot have everywhere"
    if any(part != part.strip() or part.endswith(".") for part in parts):
        return "it begins or ends with a space or a dot"
    if unicodedata.normalize("NFC", name) != name:
        return "its letters are written in two ways"
    return "it is too long" if len(name.encode()) > LONGEST_NAME else ""


def _problems_of_size(sizes: list[int]) -> list[str]:
    if len(sizes) > MOST_FILES:
        return [f"it has {len(sizes):,} members; at most {MOST_FILES:,} are accepted"]
    if sum(sizes) > MOST_BYTES - 2**24:
        return [f"it has {sum(sizes) / 2**30:.1f} GiB; less than 4 are accepted"]
    return []
