"""Models, training and Grad-CAM on JAX, as on a machine without TensorFlow."""

import os
import subprocess
import sys
from importlib import util

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.models import cnn
from lungkit.training import gradcam

ON_JAX = """
import sys
sys.modules["tensorflow"] = None  # any import of it fails
from pathlib import Path
from lungkit.backend import keras
import numpy as np
from lungkit.models import cnn
from lungkit.training import fit, gradcam, pipeline
folder = Path(sys.argv[1])
model = keras.saving.load_model(folder / "model.keras")
images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
np.save(folder / "heat.npy", gradcam.gradcam(model, images[:4], 1))
cnn.compile_classifier(model, label_smoothing=0.1)
train = pipeline.InMemory(images, labels, 2, 8, augment=pipeline.augmentation(gamma=0.3), mixup=0.2)
model, history = fit.fit(model, train, pipeline.InMemory(images, labels, 2), folder / "work", epochs=1)
print(keras.config.backend(), history["val_loss"][0])
"""


@pytest.mark.skipif(util.find_spec("jax") is None, reason="JAX is not installed")
def test_one_epoch_on_jax_without_tensorflow_and_the_same_maps(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(32, 32, 32, 1)).astype(np.float32), np.arange(32) % 2
    keras.utils.set_random_seed(1)
    model = cnn.build((32, 32, 1), 2, filters=4, blocks=2)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(tmp_path)],
        env=os.environ | {"KERAS_BACKEND": "jax"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    backend, loss = done.stdout.split()[-2:]
    assert backend == "jax"
    assert np.isfinite(float(loss))
    expected = gradcam.gradcam(model, images[:4], 1)
    assert expected.max() == 1
    np.testing.assert_allclose(np.load(tmp_path / "heat.npy"), expected, atol=1e-3)
