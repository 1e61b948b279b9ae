"""Weights that come with lungkit, each file checked against its hash: weights/README.md says where they are from."""

import io
from pathlib import Path

from lungkit.backend import keras

import numpy as np

from lungkit import files
from lungkit.errors import LungkitError

FOLDER = Path(__file__).parent / "weights"
SHA256 = {
    "efficientnet_lite0_imagenet.npz": "9f25ff3960f2d031b07a674efda7e6f9121e0db8aecb7c8010c3a6c9a99410ee",
    "efficientnet_lite0_ct.npz": "999395eeb9d79da17a06c47f171380ee84c275b3c15dcb038fcaf01e4568bb63",
    "lungs_xray.npz": "9d76f81cdb68a6dcac9bb09374b8967dc960cfee45a9e501521e47b8610c2f4b",
    "orientation_xray.npz": "efbea1cc1961859d20fd38dfdbffa735e99fc357239a3b5de915ab3a80dbd33e",
    "orientation_ct.npz": "895cd9bbcac0c89995ca5b0cd9ee358f436be8e6c8dff7cdb6c1c87454d70456",
    "lungs_ct.npz": "c875e4c1ed0ec57597e3ab330d4d9a6f28ec10eeb2c9f151be9106a65aceafc9",
}


def load(model: keras.Model, name: str) -> None:
    """Put the tensors of a file into those of the model's weights that have their paths; others stay as they are.

    Raises LungkitError where the file is missing or is not the one that belongs to this version of lungkit.
    """
    file = FOLDER / name
    content = file.read_bytes() if file.is_file() else b""
    if files.sha256(content) != SHA256.get(name):
        raise LungkitError(f"{file} is missing or damaged; install lungkit again")
    with np.load(io.BytesIO(content), allow_pickle=False) as tensors:
        for weight in model.weights:
            if weight.path in tensors:
                weight.assign(tensors[weight.path].astype(np.float32))


def write(model: keras.Model | keras.layers.Layer, file: Path) -> str:
    """Keep the weights of a model or layer as float16 in `file` (.npz), without a pickle; returns its SHA-256."""
    arrays = {weight.path: keras.ops.convert_to_numpy(weight).astype(np.float16) for weight in model.weights}
    with files.draft(file) as draft:
        np.savez_compressed(draft, **arrays)
        files.put(draft, file, durable=False)
    return files.sha256(file)
