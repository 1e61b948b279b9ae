"""Models in and out of the registry: both formats say the same, and nothing is loaded unchecked."""

import json
import logging
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pytest
import scipy.special

from lungkit.data import preprocess
from lungkit.models import backbones, cnn, ensemble, graph, registry, saved
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
    """A backbone cut after its second stage: those layers are of every kind that it has."""
    return backbones.build("efficientnet_lite0", (32, 32, 1), 3, pretrained=False, until="stage2", **options)


def _written(folder: Path, pictures: np.ndarray) -> dict[Path, np.ndarray]:
    """Each file of a model of each kind, and the logits that the model gives."""
    models = {
        "single": _cnn(),
        "backbone": _backbone(),
        "one member": ensemble.combine([_cnn()], "one", mirrored=False),
        "two members": ensemble.combine([_cnn(), _cnn()], "two", mirrored=False),
        "mirrored": ensemble.combine([_cnn(), _cnn()], "mirrored"),
    }
    expected = {}
    for name, model in models.items():
        (folder / name).mkdir()
        names = saved.save(model, folder / name)
        assert sorted(names) == sorted(file.name for file in (folder / name).iterdir())
        assert names == ["model.keras", "model.h5"][: 1 if name == "mirrored" else 2]
        expected |= dict.fromkeys((folder / name / file for file in names), keras.ops.convert_to_numpy(model(pictures)))
    return expected


# About 8 s: a backbone is built, and another process loads Keras.
def test_whatever_is_written_or_shipped_loads_in_keras_without_lungkit_and_says_the_same(pictures, shipped, tmp_path):
    expected = _written(tmp_path, pictures)
    ships = sorted([*shipped.glob("*/*/model.keras"), *shipped.glob("*/*/model.h5")])
    assert {file.suffix for file in ships} == {".keras", ".h5"}
    (folder,) = {file.parent for file in ships}
    card = json.loads((folder / "card.json").read_text())
    side = card["preprocessing"]["size"][0]
    tensors = np.random.default_rng(0).normal(size=(6, side, side, 1)).astype(np.float32)

    images = dict.fromkeys(expected, pictures) | dict.fromkeys(ships, tensors)
    found = dict(zip(images, plain_keras.logits(images, tmp_path), strict=True))
    for file, logits in expected.items():
        np.testing.assert_allclose(found[file], logits, atol=1e-5, err_msg=str(file))
    answered = graph.Graph(folder, heat=False)(tensors)["probabilities"]
    for file in ships:
        probabilities = scipy.special.softmax(found[file] / card["temperature"], axis=1)
        np.testing.assert_allclose(probabilities, answered, atol=1e-3, err_msg=str(file))


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
