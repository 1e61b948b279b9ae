"""Several trained classifiers as one flat graph: their logits averaged, each also of the mirrored image.

Where each member ends in global average pooling and one dense layer, so does the whole: the members' last feature maps
side by side, pooled, and a dense layer whose kernel is theirs stacked and divided by their number. Heat maps therefore
keep their closed form, and the clinic's graph is exported as for a single network.
"""

from collections.abc import Sequence
from typing import Any

from lungkit.backend import keras

import numpy as np

from lungkit.errors import LungkitError
from lungkit.models import lungs

layers = keras.layers

MEMBERS = "members"  # the layer that puts their feature maps side by side


def combine(
    models: Sequence[keras.Model], name: str, mirrored: bool = True, whole: tuple[lungs.LungSquare, int] | None = None
) -> keras.Model:
    """Functional model: images in, the mean of the members' logits out.

    models: of one input and output shape, each as cnn.build or backbones.build makes it. mirrored: each member also
    reads the mirrored image, and its feature maps are mirrored back (test-time augmentation). whole: what gives the
    members the square of the lungs, and the side of the whole images that are then read.
    """
    if len({(model.input_shape, model.output_shape) for model in models}) != 1:
        raise LungkitError("an ensemble needs one model or more, all with the same input and output")
    if whole:
        square, side = whole
        image = keras.Input((side, side, 1), name="image")
        seen = square(image)[0]
    else:
        image = seen = keras.Input(models[0].input_shape[1:], name="image")
    views = [seen, _mirrored(seen)] if mirrored else [seen]
    maps, dense = [], []
    for number, model in enumerate(models):
        trunk = _renamed(model, f"member{number + 1}_")
        pooled = trunk.get_layer(f"member{number + 1}_embedding").input
        wiring = _wiring(keras.Model(trunk.input, pooled))
        for view in views:
            given = _applied(wiring, view)
            maps.append(given if view is seen else _mirrored(given))
            dense.append(model.get_layer("logits").get_weights())
    if len(sizes := {of.shape[1:3] for of in maps}) > 1:
        raise LungkitError(
            f"{name}: feature maps of {' and '.join(f'{h} x {w}' for h, w in sorted(sizes))} cells cannot be averaged; "
            "choose sides that the network divides without a rest, as 128 and 64 by 16"
        )
    x = layers.Concatenate(name=MEMBERS)(maps) if len(maps) > 1 else maps[0]
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    logits = layers.Dense(models[0].output_shape[1], name="logits")
    whole = keras.Model(image, logits(x), name=name)
    kernels, biases = zip(*dense, strict=True)
    logits.set_weights([np.concatenate(kernels) / len(maps), np.mean(biases, axis=0)])
    return whole


def _mirrored(images: keras.KerasTensor) -> keras.KerasTensor:
    """Images or feature maps (N, height, width, channels), left and right exchanged."""
    return keras.ops.flip(images, axis=2)


def _wiring(model: keras.Model) -> list[tuple[keras.layers.Layer, Any, Any]]:
    """Each layer, the input first, with the tensors that it reads and gives; taken before any is called again."""
    return [(layer, layer.input, layer.output) for layer in model.layers]


def _applied(wiring: list[tuple[keras.layers.Layer, Any, Any]], view: keras.KerasTensor) -> keras.KerasTensor:
    """The layers one by one on `view`: neither one nested layer, nor an operation that HDF5 files have no name for."""
    (_, _, given), *rest = wiring
    made = {id(given): view}
    for layer, reads, gives in rest:
        read = [made[id(tensor)] for tensor in reads] if isinstance(reads, list) else made[id(reads)]
        made[id(gives)] = layer(read)
    return made[id(wiring[-1][2])]


def _renamed(model: keras.Model, prefix: str) -> keras.Model:
    """A copy whose layers' names begin with `prefix`: two members have the same ones."""

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config(layer.get_config() | {"name": prefix + layer.name})

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy
