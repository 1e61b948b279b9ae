"""One reader and one preprocessing for every image: training, evaluation, the app and the API all call these.

`read` turns a PNG, JPEG, TIFF or DICOM, told apart by content and never by name, into one float32 array with its
meaning attached. `prepare` makes the model's tensor of such a file, or of what was read from it. Files come from
strangers: sizes are checked in the header before any pixel is decoded, only listed formats are decoded at all, and
whatever is wrong with a file it is refused with one error, `ImageRefused`.

How stored values become a picture:

- CT: Hounsfield units (HU) through RescaleSlope and RescaleIntercept; both have to be there, and RescaleType is HU or
  HU_MOD where it is given. Padding counts as air, nothing is below -1024.
- 8 bits and less, without a window: 0 is black and the largest value that can be stored is white.
- More than 8 bits, without a window: most such files hold 10 to 15 bit images in 16-bit words and do not say so, hence
  the image's own 0.5 % and 99.5 % percentiles become black and white.
- DICOM other than CT: modality LUT or rescale first (a slope alone has the intercept 0, an intercept alone the slope
  1), then the first usable VOI LUT, or else the first usable window, or else the two rules above. MONOCHROME1 and the
  PresentationLUTShape INVERSE are inverted last, padding is black.
- DICOM that was not made for presentation (for processing, or CR that states LIN or LOG): the sign of
  PixelIntensityRelationship decides what is inverted, not the photometric interpretation.
- Palettes and lookup tables have the depth that they say, unless their entries disprove it.
- Where pixels are not square, the picture is scaled up along the coarser axis. In DICOM, PixelSpacing says it, or else
  ImagerPixelSpacing, NominalScannedPixelSpacing or PixelAspectRatio, the first that holds two positive numbers; in
  pictures, the resolution across and down (of a JPEG without the JFIF header, EXIF's).
- A window or VOI LUT that cannot be used costs its effect, not the picture; the tag "note" says it. Values that decide
  what the stored ones mean (slope, modality LUT, palette, sign) are refused where they cannot be used.
- Colour becomes luminance; of more than 8 bits, the luminance is stretched as grey is. Transparent parts are black and
  do not count. The EXIF orientation is applied.
- A TIFF's thumbnails and masks, and what follows the first picture of a JPEG, are passed over.
"""

import io
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from lungkit import progress
from lungkit.data import dicom, pictures
from lungkit.data.dicom import AIR
from lungkit.data.image import MIN_SIDE, NOT_FINITE, Broken, Image, ImageRefused, placed, resized
from lungkit.errors import LungkitError

__all__ = [
    "AIR", "MIN_SIDE", "Image", "ImageRefused", "Prepared", "Preprocessing", "placed", "prepare", "preprocess", "probe",
    "read", "read_batch",
]  # fmt: skip

MAX_BYTES = 256 * 2**20  # of a file

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}

# What may not hide in the 128 free bytes before a DICOM header (CVE-2019-11687): Windows, Linux, scripts, macOS,
# Java and fat binaries, WebAssembly, archives, documents, markup, and pictures. A TIFF header is legitimate there.
_PREAMBLE_DANGERS = (
    b"MZ",
    b"\x7fELF",
    b"#!",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\0asm",
    b"PK\x03\x04",
    b"%PDF",
    b"<",
    b"\x89PNG",
    b"\xff\xd8\xff",
)


# --- reading -----------------------------------------------------------------------------------------------------


def read(source: str | Path | bytes | BinaryIO, name: str | None = None) -> Image:
    """The image in a file, in bytes, or in an open binary file; the rules for its values head this module.

    `name` stands for the file in messages (default: the path, or the open file's own name).
    Raises ImageRefused, and nothing else, whatever the bytes are.
    """
    with _reading(source, name) as (stream, kind, file):
        return _image(stream, kind, file)


def _image(stream: BinaryIO, kind: str, file: str) -> Image:
    if kind == "JPEG":
        stream = io.BytesIO(jpeg := stream.read())
    image = dicom.read(stream, file) if kind == "DICOM" else pictures.read(stream, kind, file)
    if not np.isfinite(image.pixels).all():
        raise Broken(*NOT_FINITE)
    if kind == "JPEG":
        object.__setattr__(image, "jpeg", jpeg)
    return image


def probe(source: str | Path | bytes | BinaryIO) -> tuple[int, int, str]:
    """(width, height, modality), upright, from the header alone; refuses whatever a header can be refused for."""
    with _reading(source, None) as (stream, kind, _):
        if kind == "DICOM":
            return dicom.probe(stream)
        return *pictures.upright_size(pictures.opened(stream, kind)), ""


@contextmanager
def _reading(source, name: str | None) -> Iterator[tuple[BinaryIO, str, str]]:
    """The stream at its start, its kind and its name."""
    with _refusing(source, name) as file, _quiet, np.errstate(all="ignore"), _opened(source) as stream:
        yield stream, _format(stream), file


@contextmanager
def _refusing(source, name: str | None) -> Iterator[str]:
    """Names the file, and turns every error of the block into ImageRefused: decoders raise all kinds on bad bytes."""
    if not name:
        name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "uploaded file"))
    try:
        yield name
    except Broken as broken:
        raise ImageRefused(name, *broken.args) from broken.__cause__
    except PermissionError as error:
        raise ImageRefused(name, "no permission to read it", "Copy it to a folder of yours.") from error
    except Exception as error:
        remedy = "Export the image again, or convert it to PNG."
        raise ImageRefused(name, "damaged: its content cannot be decoded", remedy) from error


class _Quiet:
    """Silences Pillow and pydicom while any thread reads: what matters is refused, the rest is noise to a clinician.

    Counted, because warning filters belong to the process: catch_warnings in one thread would undo another's.
    """

    def __init__(self):
        self._lock, self._readers, self._filters = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._readers:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom|openjpeg|pylibjpeg)\b")
            self._readers += 1

    def __exit__(self, *error):
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._filters.__exit__(*error)


_quiet = _Quiet()


@contextmanager
def _opened(source) -> Iterator[BinaryIO]:
    """A seekable stream at its start, of a size between 1 and MAX_BYTES."""
    if isinstance(source, str | Path):
        path = Path(source)
        with _reachable(path).open("rb") as stream:
            _check_bytes(path.stat().st_size)
            yield stream
        return
    if not isinstance(source, bytes | bytearray | memoryview):
        source.seek(0)
        source = source.read(MAX_BYTES + 1)
    _check_bytes(len(source))
    yield io.BytesIO(source)


def _reachable(path: Path) -> Path:
    try:
        found, plain, folder = path.exists(), path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise Broken("no such file", "Check the path.") from error
    if not found:
        raise Broken("no such file", "Check the path.")
    if folder:
        raise Broken("a folder, not a file", "Name one image in it.")
    if not plain:
        raise Broken("not a regular file", "Give a file on disk.")
    return path


def _check_bytes(size: int) -> None:
    if not size:
        raise Broken("empty file", "Copy or export it again.")
    if size > MAX_BYTES:
        raise Broken(f"file too large: more than {MAX_BYTES >> 20} MiB", "Export one image at its usual resolution.")


def _format(stream: BinaryIO) -> str:
    """ "DICOM", "PNG", "JPEG" or "TIFF", from the first 132 bytes; the stream is at its start again."""
    start = stream.read(132)
    stream.seek(0)
    if start[128:] == b"DICM":
        if start.startswith(_PREAMBLE_DANGERS):
            raise Broken(
                "executable in the preamble: the bytes before the DICOM header start another kind of file",
                "Do not open this file; ask for a clean export from the archive.",
            )
        return "DICOM"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return kind
    raise Broken("not an image", "PNG, JPEG, TIFF and DICOM (with its 128-byte preamble) are accepted.")


# --- preprocessing -----------------------------------------------------------------------------------------------


_BEFORE = {"intensity_window": None, "jpeg": "full"}  # what was done before a card had these fields


@dataclass(frozen=True)
class Preprocessing:
    """What turns an image into a model's tensor; stored in the model's card. Values that make no sense are refused."""

    size: tuple[int, int] = (224, 224)  # height, width of the tensor, pixels
    window: tuple[float, float] = (-600.0, 1500.0)  # the lung window: level, width in HU; for CT only
    mean: float = 0.0  # of the training pixels after windowing to 0..1
    std: float = 1.0
    # For images without HU, such as 8-bit CT: these greys of 0..255 become black and white; None: they stay.
    intensity_window: tuple[float, float] | None = None
    jpeg: Literal["full", "scaled"] = "scaled"  # decoded at full size, or at the smaller scale that the size allows

    def __post_init__(self):
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

    def to_dict(self) -> dict:
        """JSON-ready; without an intensity_window that is not set, as in cards from before there was one."""
        values = asdict(self) | {"size": list(self.size), "window": list(self.window)}
        greys = values.pop("intensity_window")
        return values | ({} if greys is None else {"intensity_window": list(greys)})

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """The reverse of to_dict; an unknown or a missing key is refused by name.

        A card written before a field was added means what was done then.
        """
        values = _BEFORE | values
        known = {field.name for field in fields(cls)}
        if wrong := sorted(set(values) - known):
            raise LungkitError(f"preprocessing has unknown keys: {', '.join(wrong)}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - set(values)):
            raise LungkitError(f"preprocessing lacks: {', '.join(missing)}")
        return cls(**values)


def _are_numbers(values, count: int) -> bool:
    if not isinstance(values, tuple | list) or len(values) != count:
        return False
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def window_level(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    """HU to float32 0..1: level - width/2 and below is 0, level is 0.5, level + width/2 and above is 1."""
    return np.clip((np.asarray(hu, np.float32) - np.float32(level - width / 2)) / np.float32(width), 0, 1)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model needs of an image."""

    tensor: np.ndarray  # float32 (height, width, 1) of spec.size
    units: str  # that the image came in: "HU" or "intensity"
    shape: tuple[int, int]  # of the whole image, (height, width)
    note: str = ""  # what the reader did that is out of the ordinary


def prepare(source: str | Path | bytes | BinaryIO | Image, spec: Preprocessing, name: str | None = None) -> Prepared:
    """From a file, bytes, an open file or an Image that was read to a model's tensor.

    The one way there, for training, evaluation, `predict` and the clinic. A JPEG is decoded at the scale that `spec`
    asks for, also where its Image was read at full scale before. Raises ImageRefused for whatever `read` refuses.
    """
    if not isinstance(source, Image):
        with _reading(source, name) as (stream, kind, file):
            return _of_reduced(stream, kind, spec) or _of_image(_image(stream, kind, file), spec)
    if source.jpeg is None:
        return _of_image(source, spec)
    with _reading(source.jpeg, source.file) as (stream, kind, _):
        return _of_reduced(stream, kind, spec) or _of_image(source, spec)


def _of_reduced(stream: BinaryIO, kind: str, spec: Preprocessing) -> Prepared | None:
    """From a JPEG decoded at a smaller scale; None where it is decoded in full. The stream is at its start again."""
    reduced = pictures.reduced(stream, spec.size) if kind == "JPEG" and spec.jpeg == "scaled" else None
    stream.seek(0)
    if reduced is None:
        return None
    shown = _shown(reduced.pixels, "intensity", spec)
    return Prepared(_tensor(shown, reduced.shape, spec, reduced.fitted), "intensity", reduced.shape, reduced.note)


def preprocess(image: Image, spec: Preprocessing) -> np.ndarray:
    """The model's tensor, as `prepare` makes it: float32 (height, width, 1) of spec.size. Deterministic.

    It is ((x in 0..1) - mean) / std. HU go through spec.window, intensities through spec.intensity_window, where
    there is one. The aspect is kept: the picture is scaled to fit and centred on black. The filter is a triangle that
    is widened when reducing; it neither aliases nor rings.
    """
    return prepare(image, spec).tensor


def _of_image(image: Image, spec: Preprocessing) -> Prepared:
    shape = image.pixels.shape
    tensor = _tensor(_shown(image.pixels, image.units, spec), shape, spec, resized)
    return Prepared(tensor, image.units, shape, image.tags.get("note", ""))


def windowed(image: Image, spec: Preprocessing) -> np.ndarray:
    """The whole picture as spec's window shows it, float32 0..1, before it is fitted."""
    return _shown(image.pixels, image.units, spec)


def _shown(pixels: np.ndarray, units: str, spec: Preprocessing) -> np.ndarray:
    if units == "HU":
        return window_level(pixels, *spec.window)
    pixels = np.asarray(pixels, np.float32)
    if spec.intensity_window is None:
        return pixels
    low, high = spec.intensity_window
    return window_level(pixels * np.float32(255), (low + high) / 2, high - low)


def _tensor(pixels: np.ndarray, shape: tuple[int, int], spec: Preprocessing, fit: Callable) -> np.ndarray:
    """The tensor of a picture of `shape`; fit(pixels, (height, width)) scales it."""
    canvas = np.zeros(spec.size, np.float32)
    rows, columns = placed(shape, spec.size)
    fitted = fit(pixels, (rows.stop - rows.start, columns.stop - columns.start))
    canvas[rows, columns] = np.clip(fitted, 0, 1)
    return ((canvas - np.float32(spec.mean)) / np.float32(spec.std))[..., np.newaxis]


def read_batch(files: Sequence[Path], spec: Preprocessing, workers: int | None = None, label: str = "") -> np.ndarray:
    """The tensors of files, in their order: float32 (N, height, width, 1).

    Read by `workers` threads (default: the machine's processors and a few); a label shows a progress bar. The first
    file that is refused ends it with its ImageRefused.
    """
    tensors = np.empty((len(files), *spec.size, 1), np.float32)
    for row, tensor in enumerate(_tensors(files, spec, workers, label)):
        tensors[row] = tensor
    return tensors


def _tensors(files: Sequence[Path], spec: Preprocessing, workers: int | None, label: str) -> Iterator[np.ndarray]:
    return progress.parallel(lambda file: prepare(file, spec).tensor, files, label=label, workers=workers)


def training_statistics(files: Sequence[Path], spec: Preprocessing) -> Preprocessing:
    """`spec` with the mean and standard deviation of all pixels of these files, as the model will see them (0..1).

    Give the training files only: what is measured on others leaks. One pass, one image in memory at a time per thread.
    Refuses an empty list and images without any contrast.
    """
    plain, total, squares, count = replace(spec, mean=0.0, std=1.0), 0.0, 0.0, 0
    for tensor in _tensors(files, plain, None, ""):
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
