"""Keras models of the registry, in files that Keras can read without lungkit."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lungkit.backend import keras

from lungkit.errors import LungkitError
from lungkit.models import backbones, registry

layers = keras.layers


def save(model: keras.Model, folder: Path) -> list[str]:
    """Write `model`, without its optimizer, as model.keras and model.h5 into `folder`; returns the names written.

    Both load in plain Keras, without lungkit. A model that equalises histograms cannot, and is kept as a graph alone.
    One that also reads the mirrored image has no model.h5, because that format knows layers only.
    """
    plain = _plain(model)
    if any(not type(operation).__module__.startswith("keras.") for operation in plain.operations):
        return []
    plain.save(folder / "model.keras")
    if not all(isinstance(operation, layers.Layer) for operation in plain.operations):
        return ["model.keras"]
    with _quiet():  # Keras calls the HDF5 format legacy and warns on each save; it is for tools that read only that
        plain.save(folder / "model.h5")
    return ["model.keras", "model.h5"]


def _plain(model: keras.Model) -> keras.Model:
    """The same model, with Keras' own layers in place of lungkit's where Keras has an equal."""
    if not any(isinstance(layer, backbones.ChannelScale) for layer in model.layers):
        return keras.Model(model.input, model.output, name=model.name)
    plain = keras.models.clone_model(model, clone_function=_keras_layer)
    for layer in model.layers:
        if isinstance(layer, backbones.ChannelScale):
            factors, offsets = keras.ops.convert_to_numpy(layer.factors), keras.ops.convert_to_numpy(layer.offsets)
            weights = plain.get_layer(layer.name).get_weights()
            plain.get_layer(layer.name).set_weights([factors.reshape(weights[0].shape), offsets])
        else:
            plain.get_layer(layer.name).set_weights(layer.get_weights())
    return plain


def _keras_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer of Keras that does the same; its weights are set later."""
    if not isinstance(layer, backbones.ChannelScale):
        return type(layer).from_config(layer.get_config())
    if layer.input.shape[-1] == len(layer.factors):
        return layers.DepthwiseConv2D(1, name=layer.name)
    return layers.Conv2D(len(layer.factors), 1, name=layer.name)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def holds_keras(version: registry.Version) -> bool:
    """Whether the version can be loaded into Keras; those that ship with lungkit are graphs alone, to be small."""
    return "model.keras" in version.card.files


def load(version: registry.Version) -> keras.Model:
    """The Keras model of a registered version, its files checked first.

    Raises registry.ModelDamaged naming the file that is missing or differs from its recorded hash, and LungkitError for
    a version that is kept as a graph alone.
    """
    registry.verify(version)
    if not holds_keras(version):
        raise LungkitError(
            f"{version} is kept as a graph alone, without its Keras model; `lungkit train` without --compact makes a "
            "version with both"
        )
    return keras.saving.load_model(version.folder / "model.keras", compile=False, safe_mode=True)
