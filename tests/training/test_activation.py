"""A new version becomes active unless it is measurably worse than the active one, or cannot be compared with it."""

import dataclasses
import json
import threading
import time

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit import config, wording
from lungkit.data import dataset, preprocess
from lungkit.models import registry
from lungkit.training import activation, release
from tests.training.relabelled import relabelled

SPEC = preprocess.Preprocessing(size=(32, 32), mean=0.2, std=0.2)
RECIPE = {"label_column": None, "limit": None, "seed": 7}


@pytest.fixture
def chest(squares) -> dataset.Dataset:
    return dataset.load_split(squares, **RECIPE)


def _model(right: float, swapped: bool = False) -> keras.Model:
    """Two sums, of the left and of the right half, as logits; `right`: the share of signal, the rest is noise."""
    inputs = keras.Input((32, 32, 1))
    halves = keras.layers.Conv2D(2, (1, 32), use_bias=False)(inputs)
    pooled = keras.layers.GlobalAveragePooling2D()(halves)
    model = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    columns = np.arange(32) < 16
    signal = np.stack([columns, ~columns], axis=-1)[None, :, None, :].astype(np.float32) / 16
    noise = np.random.default_rng(5).normal(size=signal.shape).astype(np.float32) / 16
    kernel = right * signal + (1 - right) * noise
    mixing = np.eye(2, dtype=np.float32)[::-1] if swapped else np.eye(2, dtype=np.float32)
    model.set_weights([kernel, 8 * mixing, np.zeros(2, np.float32)])
    return model


def _registered(model, chest, name="squares-cnn", **more) -> registry.Version:
    return release.register(model, name, chest, SPEC, architecture={}, training={}, recipe=RECIPE, **more)


def test_the_first_version_of_a_name_is_active(chest):
    version = _registered(_model(0.0), chest)
    assert registry.active("squares-cnn").version == "v1"
    assert activation.sentence(version) == "squares-cnn@v1 is registered and active: no version was active before"


def test_a_measurably_worse_version_does_not_become_active_and_says_by_how_much_and_what_makes_it_so(chest, tmp_path):
    assert _registered(_model(1.0), chest).card.metrics["val"].figure("auc").value == 1.0
    worse = _registered(_model(0.0), chest, report=tmp_path)
    assert registry.active("squares-cnn").version == "v1"
    says = activation.sentence(worse)
    assert says.startswith(
        "squares-cnn@v2 is registered, and not active: squares-cnn@v1 stays active, since this one is "
    )
    assert "measurably worse on the same" in says
    assert says.endswith("`lungkit models promote squares-cnn@v2` makes it active")
    value, low, high = worse.card.standing.differences["auc"]
    assert low <= value <= high < 0
    assert f"AUC {wording.figure(value, low, high, signed=True)}" in says
    assert value == pytest.approx(worse.card.metrics["val"].figure("auc").value - 1.0, abs=1e-6)
    assert json.loads((tmp_path / config.REGISTERED).read_text()) == {"version": "squares-cnn@v2", "says": says}
    assert "not active: squares-cnn@v1 stays active" in (worse.folder / "README.md").read_text()
    registry.verify(worse)
    registry.promote("squares-cnn", "v2")
    assert registry.active("squares-cnn").version == "v2"


def test_a_better_or_an_equal_version_becomes_active(chest):
    _registered(_model(0.0), chest)
    better = _registered(_model(1.0), chest)
    assert registry.active("squares-cnn").version == "v2"
    assert "it is not measurably worse than squares-cnn@v1" in activation.sentence(better)
    _registered(_model(1.0), chest)
    assert registry.active("squares-cnn").version == "v3"


def test_classes_in_another_order_and_spelling_are_compared_by_name(chest, squares, tmp_path):
    _registered(_model(1.0), chest)
    folder = relabelled(squares, tmp_path / "squares", {"left": "LEFT ", "right": "Right"}, ["Right", "LEFT"])
    turned = dataset.load_split(folder, **RECIPE)
    assert turned.classes == ("Right", "LEFT")
    assert _registered(_model(1.0, swapped=True), turned).card.standing.active
    assert registry.active("squares-cnn").version == "v2"
    assert not _registered(_model(0.0, swapped=True), turned).card.standing.active


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modality": "CT"}, "that one reads X-ray, this one CT"),
        ({"about": {"question": "Which half?"}}, "that one answers Left or right?, this one Which half?"),
        ({"about": {}}, "that one answers Left or right?, this one no stated question"),
    ],
)
def test_a_version_for_something_else_is_not_active(chest, change, said):
    usual = {"modality": "X-ray", "about": {"question": "Left or right?"}}
    _registered(_model(0.0), chest, **usual)
    version = _registered(_model(1.0), chest, **usual | change)
    assert registry.active("squares-cnn").version == "v1"
    assert f"squares-cnn@v1 stays active, since {said}" in activation.sentence(version)


def test_a_version_with_other_classes_is_not_active(chest, squares, tmp_path):
    _registered(_model(0.0), chest)
    other = dataset.load_split(relabelled(squares, tmp_path / "squares", {"left": "left", "right": "above"}), **RECIPE)
    says = activation.sentence(_registered(_model(1.0), other))
    assert "since that one answers with left, right, this one above, left" in says
    assert registry.active("squares-cnn").version == "v1"


def test_a_version_that_learned_from_another_set_is_not_active(chest):
    _registered(_model(0.0), chest)
    version = _registered(_model(1.0), dataclasses.replace(chest, name="elsewhere"))
    assert "since that one learned from squares, this one from elsewhere" in activation.sentence(version)
    assert registry.active("squares-cnn").version == "v1"


def test_an_active_version_that_cannot_be_read_stays_active(chest):
    first = _registered(_model(0.0), chest)
    (first.folder / "graph.bin").write_bytes(b"damaged")
    says = activation.sentence(_registered(_model(1.0), chest))
    assert (
        "squares-cnn@v1 stays active, since it cannot read these images to be compared: squares-cnn@v1: graph.bin"
        in says
    )


def test_versions_of_one_name_are_registered_one_after_the_other():
    order = []

    def register(name):
        with registry.registering("squares-cnn"):
            order.append(f"{name} begins")
            time.sleep(0.2)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=register, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = order[0][0], order[2][0]
    assert order == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
