"""Keras models in and out of the registry."""

from pathlib import Path

from lungkit.backend import keras

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


def load(version: registry.Version) -> keras.Model:
    """The Keras model of a registered version, its files checked first.

    Raises registry.ModelDamaged naming the file that is missing or differs from its recorded hash.
    """
    registry.verify(version)
    return keras.saving.load_model(version.folder / "model.keras", compile=False, safe_mode=True)
