"""From a file to what a version needs of it. Processes that only decode import this: it stays without the runtime."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.data import images, preprocess
from lungkit.data.image import NOTHING_STATED, Stated
from lungkit.models import input_checks


@dataclass(frozen=True, eq=False)
class Facts:
    """What the input checks ask of an image besides its tensor, and what is told of it."""

    intensity: np.ndarray  # input_checks.intensity_features of the tensor
    units: str  # that the image came in: "HU" or "intensity"
    shape: tuple[int, int]  # of the image, (height, width)
    note: str  # what the reader did that is out of the ordinary, or ""
    stated: Stated = NOTHING_STATED
    by_year: float | None = None  # the patient's age in years by the birth year that the records have


@dataclass(frozen=True, eq=False)
class Decoded:
    """What became of one file."""

    file: Path
    sha256: str  # of its bytes; empty where it could not be opened
    facts: Facts | None  # None where it was refused
    error: str  # why it was refused, else empty
    seconds: float


def prepare(source, spec: preprocess.Preprocessing, name: str | None = None) -> tuple[np.ndarray, Facts]:
    """The tensor, float32 (height, width, 1), and the facts, of all that preprocess.prepare takes."""
    prepared = preprocess.prepare(source, spec, name)
    intensity = input_checks.intensity_features(prepared.tensor, spec)
    return prepared.tensor, Facts(intensity, prepared.units, prepared.shape, prepared.note, prepared.stated)


def decode(
    files: Sequence[Path], spec: preprocess.Preprocessing, home: Path = Path()
) -> tuple[list[Decoded], np.ndarray]:
    """One Decoded for each file, and the tensors of those that were not refused: float32 (n, height, width, 1).

    home: the folder that relative names start from; default: the current one. Messages keep the names as they are.
    """
    decoded, tensors = [], []
    for file in files:
        started, sha256, facts, error = time.perf_counter(), "", None, ""
        try:
            content = _content(home / file)
            sha256 = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else ""
            tensor, facts = prepare(content, spec, name=str(file))
            tensors.append(tensor)
        except images.ImageRefused as refused:
            error = str(refused)
        decoded.append(Decoded(file, sha256, facts, error, time.perf_counter() - started))
    return decoded, np.stack(tensors) if tensors else np.empty((0, *spec.size, 1), np.float32)


def _content(file: Path) -> bytes | Path:
    """The bytes, to read what is hashed; the path itself where the reader has to say what is wrong."""
    try:
        if file.is_file() and file.stat().st_size <= images.MAX_BYTES:
            return file.read_bytes()
    except (OSError, ValueError):
        pass
    return file
