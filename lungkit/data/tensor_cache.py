"""Preprocessed images on disk: a file is decoded once, by whichever step or process of a training needs it first.

The key of an entry is the SHA-256 of the file's bytes together with everything that makes its tensor: the
preprocessing, the code of lungkit.data and the versions of the decoders. No entry can be out of date. A pack keeps many
entries: the rows, as uint8 where this loses nothing, otherwise as float32, then an index in JSON and its length. Packs
appear whole, and a row is used only while its checksum is right. The packs of all data sets take at most MOST_BYTES
together; those that were not used for the longest time go first.
"""

import functools
import importlib.metadata
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lungkit import config, files, progress

MOST_BYTES = 8 * 2**30
MOST_PACKS = 1000
PACK_BYTES = 256 * 2**20  # a pack is full
SPARE_BYTES = 2**29  # that are left free on the disk
_DECODERS = ("pillow", "numpy", "pydicom", "imagecodecs", "pylibjpeg-openjpeg")
_LENGTH = 8  # bytes: the length of a pack's index
_SETTLED = 2.0  # seconds; a file changed more recently could change again with the same time stamp
_closed = ContextVar("closed", default=False)


@contextmanager
def closed() -> Iterator[None]:
    """No new entry is kept within the block: what a clinic's records gave must not lie in a second place."""
    before = _closed.set(True)
    try:
        yield
    finally:
        _closed.reset(before)


class TensorCache:
    """The entries of one preprocessing: float32 tensors (height, width) 0..1, each with JSON-ready facts. Any thread.

    Use `opened`, which reads each pack's index only once.
    """

    def __init__(self, folder: Path, preprocessing: str):
        self.folder = folder
        self._key = files.sha256(f"{_code()} {preprocessing}".encode())[:16]
        self._packs: set[Path] = set()
        self._rows: dict[str, _Row] = {}  # by hash
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Look for packs that other processes have written."""
        with self._lock:
            for path in set(self.folder.glob(f"{self._key}-*.pack")) - self._packs:
                self._packs.add(path)
                self._rows |= _index(path)

    def get(self, sha256: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The tensor and the facts of the file with this hash; None where they are not kept."""
        if sha256 not in self._rows:
            return None
        rows, number, checksum, facts = self._rows[sha256]
        row = np.array(rows[number])
        return (_exact(row), facts) if zlib.crc32(row.data) == checksum else None

    @contextmanager
    def writer(self) -> Iterator["Writer"]:
        """For new entries, which `get` knows when the block ends. One thread."""
        writer = Writer(self.folder, self._key)
        try:
            yield writer
        finally:
            writer.close()
            self.refresh()


class Writer:
    """Writes entries as they come. A full or read-only disk costs a line, and the next decoding of the files."""

    def __init__(self, folder: Path, key: str):
        self._folder, self._key, self._failed = folder, key, False
        self._open = ExitStack()  # the draft of a pack
        self._index: dict[str, list[Any]] = {}

    def put(self, sha256: str, tensor: np.ndarray, facts: dict[str, Any]) -> None:
        """Keep the tensor and the facts of the file with this hash."""
        with self._tolerant():
            if not self._failed and not _closed.get() and sha256 not in self._index:
                self._put(sha256, tensor, facts)

    def close(self) -> None:
        """Put the last pack in its place."""
        with self._tolerant():
            self._finish()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            progress.say_once(f"{self._folder}: preprocessed images are not kept for later runs ({error})")
            with suppress(OSError):
                self._open.close()

    def _put(self, sha256: str, tensor: np.ndarray, facts: dict[str, Any]) -> None:
        row = tensor
        if not self._index or self._dtype == np.uint8:
            greys = _greys(tensor)
            row = greys if np.array_equal(_exact(greys), tensor) else tensor
        if self._index and (self._dtype != row.dtype or self._file.tell() >= PACK_BYTES):
            self._finish()
        if not self._index:
            self._begin(row)
        self._file.write(row.data)
        self._index[sha256] = [zlib.crc32(row.data), facts]

    def _begin(self, row: np.ndarray) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self._folder).free < SPARE_BYTES:
            raise OSError("there is little space left on the disk")
        self._draft = self._open.enter_context(files.draft(self._folder / f"{self._key}.pack"))
        self._file = self._open.enter_context(self._draft.open("wb"))
        self._dtype, self._shape = row.dtype, row.shape

    def _finish(self) -> None:
        if not self._index:
            return
        shape = (len(self._index), *self._shape)
        index = json.dumps({"dtype": self._dtype.name, "shape": shape, "index": self._index}).encode()
        self._index = {}
        with self._open:
            self._file.write(index + len(index).to_bytes(_LENGTH, "little"))
            self._file.close()
            files.put(self._draft, self._folder / f"{self._key}-{files.sha256(index)[:16]}.pack", durable=False)
        _shrink(self._folder)


def _greys(tensor: np.ndarray) -> np.ndarray:
    greys: np.ndarray = np.rint(tensor * 255).astype(np.uint8)
    return greys


def _exact(rows: np.ndarray) -> np.ndarray:
    """float32 0..1, as lungkit.data.pictures makes it of 8 bits."""
    return rows.astype(np.float32) / 255 if rows.dtype == np.uint8 else rows


class _Row(NamedTuple):
    rows: np.ndarray  # of a whole pack, on disk
    number: int
    checksum: int
    facts: dict[str, Any]


def opened(preprocessing: dict[str, Any]) -> TensorCache:
    """The entries there are now; preprocessing: JSON-ready, all that decides a tensor besides the file."""
    cache = _cache(config.data_dir() / "tensors", json.dumps(preprocessing, sort_keys=True))
    cache.refresh()
    return cache


_cache = functools.lru_cache(16)(TensorCache)


@functools.cache
def _code() -> str:
    """What the code and the libraries are that make a tensor of a file."""
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in _DECODERS]
    return files.sha256(b"".join(sources) + " ".join(libraries).encode())


def _index(path: Path) -> dict[str, _Row]:
    """The rows of a pack, still on disk; nothing where it is damaged or was removed meanwhile."""
    try:
        with path.open("rb") as file:
            file.seek(-_LENGTH, os.SEEK_END)
            length = int.from_bytes(file.read(), "little")
            file.seek(-_LENGTH - length, os.SEEK_END)
            header = json.loads(file.read(length))
            rows = np.memmap(file, header["dtype"], "r", 0, tuple(header["shape"]))
        os.utime(path)
        return {sha256: _Row(rows, number, *entry) for number, (sha256, entry) in enumerate(header["index"].items())}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return {}


def _shrink(folder: Path) -> None:
    """Remove what was not used for the longest time, beyond MOST_BYTES and MOST_PACKS."""
    with suppress(FileNotFoundError):  # another process does the same
        _remove_oldest([(path, path.stat()) for path in folder.iterdir()])


def _remove_oldest(facts: list[tuple[Path, os.stat_result]]) -> None:
    total = 0
    for number, (path, fact) in enumerate(sorted(facts, key=lambda pair: pair[1].st_mtime, reverse=True)):
        total += fact.st_size
        if total > MOST_BYTES or number >= MOST_PACKS:
            path.unlink(missing_ok=True)


_known: dict[tuple[str, int, int, int], str] = {}  # the hash of a file's bytes, by its path, size, time and number


def known_hash(path: Path) -> str | None:
    """The SHA-256 of a file that was hashed before in this process and has not changed since."""
    try:
        return _known.get(_identity(path))
    except (OSError, ValueError):
        return None


def read_and_hash(path: Path) -> tuple[bytes, str]:
    """A file's bytes and their SHA-256, which known_hash will know."""
    before = _identity(path)
    content = path.read_bytes()
    sha256 = files.sha256(content)
    if before == _identity(path) and time.time() - before[2] / 1e9 > _SETTLED:
        _known[before] = sha256
    return content, sha256


def _identity(path: Path) -> tuple[str, int, int, int]:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns, facts.st_ino
