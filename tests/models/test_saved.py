"""Models in and out of the registry: both formats say the same, and nothing is loaded unchecked."""

import logging

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit.data import preprocess
from lungkit.models import backbones, cnn, ensemble, registry, saved
from tests import plain_keras
from tests.cards import model_card

CARD = model_card(classes=["a", "b", "c"])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return cnn.build((32, 32, 1), 3, filters=4, blocks=2)


@pytest.fixture
def version(model) -> registry.Version:
    return registry.add("noise-cnn", CARD, lambda folder: saved.save(model, folder))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).random((4, 32, 32, 1)).astype(np.float32)


def test_both_formats_are_written_and_nothing_else(model, tmp_path):
    saved.save(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.h5", "model.keras"]


def test_a_loaded_model_gives_the_logits_of_the_saved_one(model, version, pictures):
    np.testing.assert_allclose(saved.load(version)(pictures), model(pictures), atol=1e-6)


def test_the_h5_file_gives_the_logits_of_the_keras_file(version, pictures):
    h5 = keras.saving.load_model(version.folder / "model.h5", compile=False)
    np.testing.assert_allclose(h5(pictures), saved.load(version)(pictures), atol=1e-6)


def _cnn() -> keras.Model:
    return cnn.compile_classifier(cnn.build((32, 32, 1), 3, filters=4, blocks=2), optimizer="adamw", layer_rates={})


def _backbone(**options) -> keras.Model:
    return backbones.build("efficientnet_lite0", (32, 32, 1), 3, pretrained=False, **options)


# About 25 s: a backbone is built, and another process loads Keras.
def test_whatever_is_written_loads_in_keras_without_lungkit_and_says_the_same(pictures, tmp_path):
    models = {
        "single": _cnn(),
        "backbone": _backbone(),
        "one member": ensemble.combine([_cnn()], "one", mirrored=False),
        "two members": ensemble.combine([_cnn(), _cnn()], "two", mirrored=False),
        "mirrored": ensemble.combine([_cnn(), _cnn()], "mirrored"),
    }
    written, expected = [], []
    for name, model in models.items():
        (tmp_path / name).mkdir()
        names = saved.save(model, tmp_path / name)
        assert sorted(names) == sorted(file.name for file in (tmp_path / name).iterdir())
        assert names == ["model.keras", "model.h5"][: 1 if name == "mirrored" else 2]
        written += [tmp_path / name / file for file in names]
        expected += [model.predict(pictures, verbose=0)] * len(names)
    for file, found, logits in zip(written, plain_keras.logits(written, pictures, tmp_path), expected, strict=True):
        np.testing.assert_allclose(found, logits, atol=1e-5, err_msg=str(file))


def test_a_model_that_plain_keras_cannot_name_is_not_written(tmp_path):
    spec = preprocess.Preprocessing(size=(32, 32))
    assert saved.save(_backbone(equalised=True, preprocessing=spec), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_saving_warns_of_nothing_and_leaves_the_log_level_alone(model, tmp_path, caplog):
    logger = logging.getLogger("absl")
    before = logger.level
    saved.save(model, tmp_path)
    assert caplog.records == []
    assert logger.level == before


@pytest.mark.parametrize("file", ["model.keras", "model.h5", "card.json"])
def test_a_version_with_a_changed_file_is_refused_by_name_and_not_loaded(version, file, monkeypatch):
    path = version.folder / file
    path.write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("loaded unchecked"))
    with pytest.raises(registry.ModelDamaged, match=rf"noise-cnn@v1: {file} was changed"):
        saved.load(version)


def test_a_version_without_its_model_file_is_refused_by_name(version):
    (version.folder / "model.keras").unlink()
    with pytest.raises(registry.ModelDamaged, match=r"model\.keras is missing"):
        saved.load(version)


def test_a_registered_model_with_code_in_it_is_not_run(tmp_path):
    """Hashes say that a file is the registered one, not that it is harmless: code in a Lambda layer stays unloaded."""
    marker = tmp_path / "ran"
    inputs = keras.Input((32, 32, 1))
    body = keras.layers.Lambda(lambda x, mark=str(marker): (__import__("pathlib").Path(mark).touch(), x)[1])
    sly = keras.Model(inputs, body(inputs))
    marker.unlink()
    version = registry.add("sly", CARD, lambda folder: sly.save(folder / "model.keras"))
    with pytest.raises(ValueError, match="arbitrary code execution"):
        saved.load(version)
    assert not marker.exists()
