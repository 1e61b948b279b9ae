"""Tensors out of a PyTorch weights file, without PyTorch and without trusting the file.

The files read here are those of `torch.save` before PyTorch 1.6: five pickles (a magic number, the version of the
format, facts of the machine that wrote it, the tensors by name with the storage that each lies in, the storages' keys),
then for each key a count (int64) and that many numbers, little-endian. The format: torch/serialization.py,
`_legacy_load`.

A pickle may call whatever it can name. Here it can name three things, which stand for values of our own and do nothing:
a mapping, a tensor's place in a storage, the type of a storage's numbers.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lungkit.errors import LungkitError

MAX_BYTES = 2**30  # of a file; the largest backbone's weights are a tenth

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAX_MEMO = 2**20  # values that a pickle may keep for later use; the reader sets aside room up to the highest number


class WeightsRefused(LungkitError):
    """A weights file that is damaged, of another format, or wants more than to hold tensors."""


# What the names in a pickle become. Pickles can also set attributes (BUILD), on classes as on instances: each of these
# has a __setstate__ that lets nothing be set.


class _Mapping(dict):
    __slots__ = ()

    def __setstate__(self, state):
        """Leave out what PyTorch hangs onto its mapping: versions of layers, of no use here."""


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int


class _Tensor(NamedTuple):
    """The arguments of torch._utils._rebuild_tensor_v2; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: dict

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a tensor after it was made")


_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
_NAMES = {
    ("collections", "OrderedDict"): _Mapping,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
} | {("torch", name): dtype for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
    """Knows _NAMES and nothing else; `storages` holds what the tensors refer to, by key."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            raise WeightsRefused(
                f"it asks for {module}.{name}; accepted are only {', '.join('.'.join(known) for known in _NAMES)}"
            )
        return _NAMES[module, name]

    def persistent_load(self, reference):
        match reference:
            case ("storage", str(dtype), str(key), str(), int(count), None) if dtype in _DTYPES.values() and count >= 0:
                storage = _Storage(dtype, key, count)
            case _:
                raise WeightsRefused("it refers to something that is not a storage of float32 or int64 numbers")
        if self.storages.setdefault(key, storage) != storage:
            raise WeightsRefused(f"it describes storage '{key}' in two ways")
        return storage


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch state dict by name, float32 or int64, read-only, in the layout of PyTorch.

    Raises WeightsRefused where the file is missing, too large, damaged, of another format, names anything but tensors,
    or describes a tensor that reaches beyond its storage.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WeightsRefused(f"it has {size >> 20} MiB; at most {MAX_BYTES >> 20} are read")
        return _tensors(path.read_bytes())
    except WeightsRefused as refused:
        raise WeightsRefused(f"{path.name} is not read: {refused}") from refused.__cause__
    except OSError as error:
        raise WeightsRefused(f"{path.name} cannot be read: {error.strerror}") from error
    except Exception as error:  # a pickle of any bytes raises errors of any kind
        raise WeightsRefused(f"{path.name} is not read: it is damaged ({error}); fetch it again") from error


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    if content.startswith(b"PK"):
        raise WeightsRefused("it is a zip file, as PyTorch writes since 1.6; only the format before that is read")
    stream = io.BytesIO(content)
    magic, version, machine, state, keys = (_next_pickle(stream) for _ in range(5))
    if (magic.value, version.value) != (_MAGIC, _VERSION):
        raise WeightsRefused("it does not begin as a file of PyTorch before 1.6 does")
    if machine.value.get("little_endian") is not True:
        raise WeightsRefused("its numbers are not little-endian")
    if not isinstance(state.value, _Mapping):
        raise WeightsRefused("it does not hold a mapping of names to tensors")
    numbers = _numbers(content, stream.tell(), keys.value, state.storages)
    return {name: _place(name, tensor, numbers) for name, tensor in state.value.items()}


class _Read(NamedTuple):
    value: object
    storages: dict[str, _Storage]


def _next_pickle(stream: io.BytesIO) -> _Read:
    start = stream.tell()
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name in ("PUT", "LONG_BINPUT") and argument > _MAX_MEMO:
            raise WeightsRefused(f"it keeps a value as number {argument}; at most {_MAX_MEMO} are kept")
    unpickler = _Unpickler(stream.getbuffer()[start : stream.tell()])
    return _Read(unpickler.load(), unpickler.storages)


def _numbers(content: bytes, position: int, keys: list, storages: dict[str, _Storage]) -> dict[str, np.ndarray]:
    """The numbers of each storage, which lie in the order of `keys` from `position` to the end of the file."""
    if sorted(keys) != sorted(storages):
        raise WeightsRefused("its storages are not those that its tensors refer to")
    numbers = {}
    for key in keys:
        dtype, _, count = storages[key]
        if int(np.frombuffer(content, "<i8", 1, position)[0]) != count:
            raise WeightsRefused(f"storage '{key}' does not hold the {count} numbers that it should")
        numbers[key] = np.frombuffer(content, dtype, count, position + 8)
        position += 8 + numbers[key].nbytes
    if position != len(content):
        raise WeightsRefused(f"{len(content) - position} bytes follow its last storage")
    return numbers


def _place(name: str, tensor: _Tensor, numbers: dict[str, np.ndarray]) -> np.ndarray:
    if not (isinstance(name, str) and isinstance(tensor, _Tensor) and isinstance(tensor.storage, _Storage)):
        raise WeightsRefused(f"{name!r} is not a tensor with a name")
    held = numbers[tensor.storage.key]
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    whole = [isinstance(value, int) and value >= 0 for value in (offset, *shape, *strides)]
    if not all(whole) or len(shape) != len(strides):
        raise WeightsRefused(f"tensor '{name}' has offset {offset!r}, shape {shape!r}, strides {strides!r}")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    # A stride of 0 would let a small storage stand for a tensor of any size.
    if 0 in shape or last >= held.size or math.prod(shape) > held.size:
        raise WeightsRefused(
            f"tensor '{name}' of shape {shape} from number {offset} on, strides {strides}, does not fit its storage of "
            f"{held.size} numbers"
        )
    steps = [stride * held.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(held[offset:], shape, steps, writeable=False)
