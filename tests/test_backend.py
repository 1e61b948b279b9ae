"""Keras is imported without notes on the page, and with all of them when the import fails."""

import logging
import os
import subprocess
import sys

from lungkit.backend import keras

import numpy as np


def _import_backend(**environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from lungkit.backend import keras; print(keras.__name__)"],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


# About 5 s: a fresh process loads TensorFlow.
def test_importing_keras_writes_nothing_to_standard_error():
    done = _import_backend()
    assert (done.returncode, done.stdout, done.stderr) == (0, "keras\n", "")


def test_a_failing_import_shows_what_was_held_back(tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'libcudart.so could not be loaded\\n')\nraise ImportError('no backend')\n"
    )
    done = _import_backend(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "libcudart.so could not be loaded" in done.stderr
    assert "ImportError: no backend" in done.stderr


def test_what_is_written_after_the_import_is_not_held_back(tmp_path):
    (tmp_path / "keras.py").write_text("import os\nos.write(2, b'start-up note\\n')\n")
    script = "import os, lungkit.backend; os.write(2, b'a later warning\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=60
    )
    assert done.stderr == b"a later warning\n"


def test_predictions_of_many_models_in_one_process_warn_of_nothing(caplog):
    for side in range(1, 8):
        keras.Sequential([keras.Input((side,)), keras.layers.Dense(1)]).predict(np.zeros((3, side)), verbose=0)
    logging.getLogger("tensorflow").warning("another warning")
    assert caplog.messages == ["another warning"]
