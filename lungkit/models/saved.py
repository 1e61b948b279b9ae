"""Keras models in and out of the registry."""

from pathlib import Path

from lungkit.backend import keras

from lungkit.errors import LungkitError
from lungkit.models import registry


def save(model: keras.Model, folder: Path) -> None:
    """Write `model` as model.keras and model.h5 into `folder`."""
    model.save(folder / "model.keras")
    # Keras calls the HDF5 format legacy and warns on each save; it is kept for tools that read only that.
    import logging

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model.save(folder / "model.h5")
    finally:
        logger.setLevel(level)


def holds_keras(version: registry.Version) -> bool:
    """Whether the version can be loaded into Keras; those that ship with lungkit are graphs alone, to be small."""
    return "model.keras" in version.card["files"]


def load(version: registry.Version) -> keras.Model:
    """The Keras model of a registered version, its files checked first.

    Raises registry.ModelDamaged naming the file that is missing or differs from its recorded hash, and LungkitError for
    a version that is kept as a graph alone.
    """
    registry.verify(version)
    if not holds_keras(version):
        raise LungkitError(
            f"{version} is kept as a graph alone, without its Keras model; `lungkit train` makes one that holds both"
        )
    return keras.saving.load_model(version.folder / "model.keras", compile=False, safe_mode=True)
