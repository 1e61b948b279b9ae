"""From an image to a model's tensor: the one preprocessing of training, evaluation, the clinic and the commands."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from lungkit import progress
from lungkit.data import images, pictures, tensor_cache
from lungkit.data.image import NOTHING_STATED, Image, ImageRefused, Stated, placed, resized, years_in
from lungkit.errors import LungkitError

_GREYS = np.arange(256, dtype=np.float32) / 255  # the intensity of each value of 8 bits
_BEFORE = {"intensity_window": None, "jpeg": "full"}  # what was done before a card had these fields


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's tensor; part of the model's card. Impossible values raise LungkitError."""

    size: tuple[int, int] = (224, 224)  # height, width of the tensor, pixels
    window: tuple[float, float] = (-600.0, 1500.0)  # the lung window: level, width in HU; for CT only
    mean: float = 0.0  # of the training pixels after windowing to 0..1
    std: float = 1.0
    # For images without HU, such as 8-bit CT: these greys of 0..255 become black and white; None: no change.
    intensity_window: tuple[float, float] | None = None
    jpeg: Literal["full", "scaled"] = "scaled"  # decoded at full size, or at the smaller scale that the size allows

    def __post_init__(self) -> None:
        if not (_are_numbers(self.size, 2) and all(side == int(side) and 1 <= side <= 4096 for side in self.size)):
            raise LungkitError(f"size {self.size!r}: height and width must be whole numbers from 1 to 4096")
        if not (_are_numbers(self.window, 2) and self.window[1] > 0):
            raise LungkitError(f"window {self.window!r}: level and width must be finite HU, the width above 0")
        if not (_are_numbers((self.mean, self.std), 2) and self.std > 0):
            raise LungkitError(f"mean {self.mean!r}, std {self.std!r}: both must be finite, std above 0")
        greys = self.intensity_window
        if greys is not None and not (_are_numbers(greys, 2) and 0 <= greys[0] < greys[1] <= 255):
            raise LungkitError(f"intensity_window {greys!r}: two greys from 0 to 255, the darker first, or none")
        if self.jpeg not in ("full", "scaled"):
            raise LungkitError(f"jpeg {self.jpeg!r}: must be full or scaled")
        # a card is JSON, which knows lists only
        object.__setattr__(self, "size", tuple(int(side) for side in self.size))
        object.__setattr__(self, "window", tuple(float(value) for value in self.window))
        if greys is not None:
            object.__setattr__(self, "intensity_window", tuple(float(value) for value in greys))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. An intensity_window that is not set is left out, as in cards older than that field."""
        values = asdict(self) | {"size": list(self.size), "window": list(self.window)}
        greys = values.pop("intensity_window")
        return values | ({} if greys is None else {"intensity_window": list(greys)})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The reverse of to_dict. A field that an old card lacks gets the value of its time; other keys are refused."""
        values = _BEFORE | values
        known = {field.name for field in fields(cls)}
        if wrong := sorted(set(values) - known):
            raise LungkitError(f"preprocessing has unknown keys: {', '.join(wrong)}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - set(values)):
            raise LungkitError(f"preprocessing lacks: {', '.join(missing)}")
        return cls(**values)


def _are_numbers(values: object, count: int) -> bool:
    if not isinstance(values, tuple | list) or len(values) != count:
        return False
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def window_level(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """HU to float32 0..1: level - width/2 and below is 0, level is 0.5, level + width/2 and above is 1."""
    share = (np.asarray(hu, np.float32) - np.float32(level - width / 2)) / np.float32(width)
    return np.asarray(np.clip(share, 0, 1))


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model needs of an image."""

    tensor: np.ndarray  # float32 (height, width, 1) of spec.size
    units: str  # that the image came in: "HU" or "intensity"
    shape: tuple[int, int]  # of the whole image, (height, width)
    note: str = ""  # what the reader did that is out of the ordinary
    stated: Stated = NOTHING_STATED


def prepare(source: images.Source | Image, spec: Preprocessing, name: str | None = None) -> Prepared:
    """A model's tensor of a file, of bytes, of an open file, or of an Image.

    Training, evaluation, `predict` and the clinic all use it. HU go through spec.window and intensities through
    spec.intensity_window if it is set; then the tensor is ((x in 0..1) - mean) / std. The picture keeps its aspect: it
    is scaled to fit, by a triangle filter that neither aliases nor rings, and centred on black. A JPEG is decoded at
    the scale that `spec` asks for, even if its Image was read at full scale. Raises ImageRefused as `read` does.
    """
    if not isinstance(source, Image):
        with images.opened(source, name) as (stream, kind, file):
            return _of_eight_bit(stream, kind, spec) or _of_image(images.decode(stream, kind, file), spec)
    if source.jpeg is None or spec.jpeg == "full":
        return _of_image(source, spec)
    with images.opened(source.jpeg, source.file) as (stream, kind, _):
        return _of_eight_bit(stream, kind, spec, only_reduced=True) or _of_image(source, spec)


def _of_eight_bit(stream: BinaryIO, kind: str, spec: Preprocessing, only_reduced: bool = False) -> Prepared | None:
    """From pictures.eight_bit; None where that gives None. The stream is at its start again."""
    if kind == "DICOM":
        return None
    size = spec.size if spec.jpeg == "scaled" else None
    picture = pictures.eight_bit(stream, kind, size, only_reduced=only_reduced)
    stream.seek(0)
    if picture is None:
        return None
    curve = _shown(_GREYS, "intensity", spec)
    tensor = _tensor(lambda shape: picture.fitted(shape, curve), picture.shape, spec)
    return Prepared(tensor, "intensity", picture.shape, picture.note)


def _of_image(image: Image, spec: Preprocessing) -> Prepared:
    shape = image.pixels.shape
    tensor = _tensor(partial(resized, _shown(image.pixels, image.units, spec)), shape, spec)
    tags = image.tags
    told = {name: tags.get(name, "") for name in ("view", "body_part", "orientation")}
    stated = Stated(years_in(tags.get("age", "")), modality=image.modality, **told)
    return Prepared(tensor, image.units, shape, tags.get("note", ""), stated)


def windowed(image: Image, spec: Preprocessing) -> np.ndarray:
    """The whole picture through spec's window, float32 0..1, before it is scaled."""
    return _shown(image.pixels, image.units, spec)


def _shown(pixels: np.ndarray, units: str, spec: Preprocessing) -> np.ndarray:
    if units == "HU":
        return window_level(pixels, *spec.window)
    pixels = np.asarray(pixels, np.float32)
    if spec.intensity_window is None:
        return pixels
    low, high = spec.intensity_window
    return window_level(pixels * np.float32(255), (low + high) / 2, high - low)


def _tensor(fit: Callable[[tuple[int, int]], np.ndarray], shape: tuple[int, int], spec: Preprocessing) -> np.ndarray:
    """The tensor of a picture of `shape`; fit((height, width)) scales it, after windowing."""
    canvas = np.zeros(spec.size, np.float32)
    rows, columns = placed(shape, spec.size)
    fitted = fit((rows.stop - rows.start, columns.stop - columns.start))
    np.clip(fitted, 0, 1, out=canvas[rows, columns])
    return _normalised(canvas[..., np.newaxis], spec)


def _normalised(tensor: np.ndarray, spec: Preprocessing) -> np.ndarray:
    if (spec.mean, spec.std) == (0.0, 1.0):
        return tensor
    return (tensor - np.float32(spec.mean)) / np.float32(spec.std)


def prepared(
    files: Sequence[Path], spec: Preprocessing, workers: int | None = None, label: str = ""
) -> Iterator[Prepared]:
    """prepared_or_refused; the first file that is refused ends it with its ImageRefused."""
    for one in prepared_or_refused(files, spec, workers, label):
        if isinstance(one, ImageRefused):
            raise one
        yield one


def prepared_or_refused(
    files: Sequence[Path], spec: Preprocessing, workers: int | None = None, label: str = ""
) -> Iterator[Prepared | ImageRefused]:
    """`prepare` of each file, in their order, or why it was refused. A file is decoded once.

    For training and evaluation: tensors are kept on disk (lungkit.data.tensor_cache), which those of a clinic's
    patients must not be. Read by `workers` threads (default: the machine's processors and one); a label shows a
    progress bar.
    """
    plain = replace(spec, mean=0.0, std=1.0)
    cache = tensor_cache.opened(plain.to_dict())
    with cache.writer() as kept:
        for one, sha256 in progress.parallel(partial(_known, cache, plain), files, label=label, workers=workers):
            if isinstance(one, ImageRefused):
                yield one
                continue
            if sha256:
                kept.put(sha256, one.tensor[..., 0], {"units": one.units, "shape": one.shape, "note": one.note})
            yield replace(one, tensor=_normalised(one.tensor, spec))


def _known(cache: tensor_cache.TensorCache, plain: Preprocessing, file: Path) -> tuple[Prepared | ImageRefused, str]:
    """A file as `plain` prepares it, and its hash if the cache does not know it yet."""
    content: bytes | Path | None = None
    sha256 = tensor_cache.known_hash(file)
    if sha256 is None:
        content, sha256 = _content(file)
    if kept := cache.get(sha256):
        tensor, facts = kept
        return Prepared(tensor[..., np.newaxis], facts["units"], tuple(facts["shape"]), facts["note"]), ""
    if content is None:
        content, sha256 = _content(file)
    try:
        return prepare(content, plain, str(file)), sha256
    except ImageRefused as refused:
        return refused, ""


def _content(file: Path) -> tuple[bytes | Path, str]:
    """The bytes, which are hashed and read at once, and their hash; the path if `prepare` must say why not."""
    try:
        if file.is_file() and file.stat().st_size <= images.MAX_BYTES:
            return tensor_cache.read_and_hash(file)
    except (OSError, ValueError):
        pass
    return file, ""


def read_batch(files: Sequence[Path], spec: Preprocessing, workers: int | None = None, label: str = "") -> np.ndarray:
    """The tensors of files, in their order: float32 (N, height, width, 1); the arguments are those of `prepared`."""
    tensors = np.empty((len(files), *spec.size, 1), np.float32)
    for row, one in enumerate(prepared(files, spec, workers, label)):
        tensors[row] = one.tensor
    return tensors


def training_statistics(files: Sequence[Path], spec: Preprocessing) -> Preprocessing:
    """`spec` with the mean and standard deviation of all pixels of these files, as the model will see them (0..1).

    Give the training files only: statistics of other files leak. One pass, with a few images in memory at a time.
    Refuses an empty list and images without any contrast.
    """
    plain, total, squares, count = replace(spec, mean=0.0, std=1.0), 0.0, 0.0, 0
    for tensor in (one.tensor for one in prepared(files, plain)):
        total += float(tensor.sum(dtype=np.float64))
        squares += float(np.square(tensor, dtype=np.float64).sum())
        count += tensor.size
    if not count:
        raise LungkitError("training statistics need at least one training image; none was given")
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean**2))
    if std < 1e-4:
        raise LungkitError(f"the {len(files)} training images have no contrast (standard deviation {std:.1g} of 0..1)")
    return replace(spec, mean=mean, std=std)
