"""Preprocessed images on disk: a file is decoded once, by whichever step or process of a training needs it first.

The key of an entry is the SHA-256 of the file's bytes together with everything that makes its tensor: the
preprocessing, the code of lungkit.data and the versions of the decoders. No entry can be out of date. A pack keeps many
entries: a line of JSON, then the rows, as uint8 where this loses nothing, otherwise as float32. Packs appear whole, and
a row is used only while its checksum is right. The packs of all data sets take at most MOST_BYTES together; those that
were not used for the longest time go first.
"""

import functools
import importlib.metadata
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lungkit import config, files, progress

MOST_BYTES = 8 * 2**30
MOST_PACKS = 1000
PACK_BYTES = 256 * 2**20  # of float32 tensors in one pack
_DECODERS = ("pillow", "numpy", "pydicom", "imagecodecs", "pylibjpeg-openjpeg")
_SETTLED = 2.0  # seconds; a file changed more recently could change again with the same time stamp


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

    def put(self, entries: Sequence[tuple[str, np.ndarray, dict[str, Any]]]) -> None:
        """Keep (hash, tensor, facts) of some files. A full or read-only disk costs their next decoding, and a line."""
        if not entries:
            return
        tensors = [tensor for _, tensor, _ in entries]
        lossless = all(
            np.array_equal(_exact(_greys(tensor)), tensor) for tensor in tensors
        )  # up to the first that is not
        rows = np.stack([_greys(tensor) for tensor in tensors] if lossless else tensors)
        index = {sha256: [zlib.crc32(row.data), facts] for (sha256, _, facts), row in zip(entries, rows, strict=True)}
        header = json.dumps({"dtype": rows.dtype.name, "shape": rows.shape, "index": index}).encode() + b"\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < 4 * rows.nbytes:
                raise OSError("there is little space left on the disk")
            path = self.folder / f"{self._key}-{files.sha256(header)[:16]}.pack"
            with files.draft(path) as new:
                with new.open("wb") as file:
                    file.writelines((header, rows.data))
                files.put(new, path, durable=False)
            _shrink(self.folder)
        except OSError as error:
            progress.say_once(f"{self.folder}: preprocessed images are not kept for later runs ({error})")
        self.refresh()


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
            header = json.loads(file.readline())
            rows = np.memmap(file, header["dtype"], "r", file.tell(), tuple(header["shape"]))
        os.utime(path)
        return {sha256: _Row(rows, number, *entry) for number, (sha256, entry) in enumerate(header["index"].items())}
    except (OSError, ValueError, KeyError, TypeError):
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
