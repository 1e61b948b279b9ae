"""Keras, imported without the start-up notes of its backend.

TensorFlow's C++ side writes notes on CPU features to the process's standard error while it loads, before any
log level applies (tensorflow/tensorflow issue 100442); in a notebook they would stand on the page. They are
held back here, and shown when the import fails. Import Keras from here: `from lungkit.backend import keras`.
"""

import contextlib
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """What the block makes is never looked at again to find garbage.

    Keras and TensorFlow make half a million objects while they load, and all of them stay. To look at each of them
    again and again takes a sixth of the time that they need to load, and as long whenever KerasTuner builds a model.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _import_keras() -> Any:
    if "tensorflow" in sys.modules:
        import keras

        return keras
    with _without_garbage_collection(), tempfile.TemporaryFile() as notes:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            import keras

            loaded = True
        except BaseException:
            loaded = False
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if not loaded:
                notes.seek(0)
                sys.stderr.write(notes.read().decode(errors="replace"))
    return keras


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for TensorFlow's advice on retracing: it takes the first prediction of each model for one function."""
    return "triggered tf.function retracing" not in record.getMessage()


logging.getLogger("tensorflow").addFilter(_is_worth_a_line)
keras = _import_keras()


def seeded(seed: int) -> None:
    """The same seed, the same numbers, from one run to the next on one machine.

    For the rest of the process, and with TensorFlow also on a GPU, where sums otherwise have no order. On two
    processor cores it took no time that could be measured.
    """
    keras.utils.set_random_seed(seed)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
