"""Training: resumed after a kill, stopped in time, honest about what it holds."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pytest
from sklearn.metrics import log_loss

from lungkit import resume
from lungkit.errors import LungkitError
from lungkit.models import cnn
from lungkit.training import fit


class Batches(keras.utils.PyDataset):
    """Four batches in a fixed order; with `marker`, stops for good in the middle of the third epoch."""

    def __init__(self, marker: Path | None = None):
        super().__init__()
        rng = np.random.default_rng(3)
        self.y = rng.integers(0, 2, 32)
        self.x = rng.normal(size=(32, 16, 16, 1)).astype("float32") + self.y[:, None, None, None]
        self.marker, self.served = marker, 0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.served += 1
        if self.marker and self.served > 2 * len(self) + 2:
            self.marker.touch()
            time.sleep(120)
        return self.x[index * 8 : index * 8 + 8], self.y[index * 8 : index * 8 + 8]


def train(folder: Path, batches=None, epochs=4, patience=10, ema=0.0, **options):
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    # Without dropout, whose draws Keras does not save: everything else has to be as if nothing had happened.
    model = cnn.build((16, 16, 1), 2, filters=4, blocks=1, dropout=0.0)
    cnn.compile_classifier(model, decay_steps=4 * epochs, ema=ema)
    tf.config.run_functions_eagerly(True)  # so few small batches take less time than tracing a step
    try:
        return fit.fit(model, batches or Batches(), Batches(), folder, epochs=epochs, patience=patience, **options)
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder, model and history of a training; tests leave all of them as they are."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, *train(folder, settings={"data": "one"})


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """Model and history of a training with a moving average of the weights."""
    return train(tmp_path_factory.mktemp("averaged"), ema=0.9)


def test_a_training_killed_in_mid_epoch_ends_as_if_it_had_not_been(tmp_path, unbroken):
    marker = tmp_path / "in_third_epoch"
    script = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_fit
test_fit.train(pathlib.Path({str(tmp_path / "killed")!r}), test_fit.Batches(pathlib.Path({str(marker)!r})),
               settings={{"data": "one"}})
"""
    child = subprocess.Popen([sys.executable, "-c", script], env=os.environ, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while not marker.exists():
            assert child.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline, "the third epoch never came"
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    left = json.loads((tmp_path / "killed" / "state.json").read_text())
    assert left["epoch"] == 2 and not left["finished"]

    resumed, history = train(tmp_path / "killed", settings={"data": "one"})
    _, model, expected = unbroken
    assert history.epoch.tolist() == [1, 2, 3, 4]
    assert history.loss[:2].tolist() == [row["loss"] for row in left["history"]], "finished epochs are not repeated"
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-3)
    np.testing.assert_allclose(history.learning_rate, expected.learning_rate)
    for one, other in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=2e-3)


def test_a_finished_training_is_returned_at_once(unbroken):
    folder, model, history = unbroken
    watched = Batches()
    again, same = train(folder, watched, settings={"data": "one"})
    assert watched.served == 0
    assert same.equals(history)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_a_moving_average_of_the_weights_is_what_is_judged_and_returned(unbroken, averaged):
    model, history = averaged
    kernels = [one.get_layer("logits").get_weights()[0] for one in (unbroken[1], model)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
    judged = cnn.compile_classifier(model).evaluate(Batches(), verbose=0, return_dict=True)
    assert judged["loss"] == pytest.approx(history.val_loss.min(), rel=1e-4)


def test_a_moving_average_continues_where_a_training_was_stopped(tmp_path, averaged):
    class Stopped(Exception):
        pass

    class Stopping(Batches):
        def on_epoch_end(self):
            if self.served > 2 * len(self):
                raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path, Stopping(), ema=0.9)
    resumed, history = train(tmp_path, ema=0.9)
    model, expected = averaged
    assert history.epoch.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(history.val_loss, expected.val_loss, rtol=1e-3)
    for one, other in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=2e-3)


class Worsening(Batches):
    """Validation labels turned around: the better the training, the higher this loss."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, 1 - y


def test_training_stops_after_patience_and_returns_the_best_epoch(tmp_path):
    keras.utils.set_random_seed(1)
    model = cnn.compile_classifier(cnn.build((16, 16, 1), 2, filters=4, blocks=1))
    model, history = fit.fit(model, Batches(), Worsening(), tmp_path, epochs=12, patience=2)
    best = history.val_loss.idxmin() + 1
    assert len(history) == best + 2 < 12
    assert model.evaluate(Worsening(), verbose=0)[0] == pytest.approx(history.val_loss.min(), rel=1e-3)


def test_only_the_last_and_the_best_epoch_are_kept(unbroken):
    folder = unbroken[0]
    state = json.loads((folder / "state.json").read_text())
    assert {f.name for f in folder.iterdir()} == {"state.json", "settings.json", state["last"], state["best"]}


def test_a_folder_with_another_training_is_refused_by_name(unbroken):
    with pytest.raises(resume.SettingsDiffer, match="data differ"):
        train(unbroken[0], settings={"data": "two"})


def test_a_loss_that_is_no_number_stops_the_training_with_advice(tmp_path):
    keras.utils.set_random_seed(1)
    broken = Batches()
    broken.x[:] = np.nan
    with pytest.raises(LungkitError, match="loss became nan in epoch 1; try a smaller learning rate"):
        train(tmp_path, broken)


def test_rare_classes_weigh_more_and_all_images_together_weigh_one_each():
    labels = np.array([0] * 30 + [1] * 10)
    weights = fit.class_weights(labels, 2)
    assert weights == {0: pytest.approx(2 / 3), 1: pytest.approx(2)}
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
    with pytest.raises(LungkitError, match="class number 2 has no training image"):
        fit.class_weights(labels, 3)


def test_the_prior_loss_is_the_log_loss_of_the_class_frequencies():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    constant = np.tile([0.5, 0.3, 0.2], (100, 1))
    assert fit.prior_loss(labels) == pytest.approx(log_loss(labels, constant))
    assert fit.prior_loss(np.array([1, 1])) == 0


def test_images_weigh_so_that_classes_and_the_sources_of_each_weigh_alike():
    labels, sources = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0]), np.array([*"aaaaaaabbb"])
    weights = fit.image_weights(labels, 2, sources)
    assert weights.mean() == pytest.approx(1)
    of = {
        (label, source): weights[(labels == label) & (sources == source)].sum() for label in (0, 1) for source in "ab"
    }
    assert list(of.values()) == pytest.approx([2.5] * 4)
    # A class that one source has weighs as much as the other class.
    lone = fit.image_weights(np.array([0, 0, 0, 1]), 2, np.array([*"aabb"]))
    assert lone[:3].sum() == pytest.approx(lone[3]) and lone[:2].sum() == pytest.approx(lone[2])
    by_class = fit.class_weights(labels, 2)
    np.testing.assert_allclose(fit.image_weights(labels, 2), [by_class[label] for label in labels])


def test_images_that_count_for_several_weigh_more_and_classes_still_weigh_alike():
    labels, counts = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([1.0, 1, 3, 1, 1, 1, 2])
    weights = fit.image_weights(labels, 2, None, counts)
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    assert weights[2] == pytest.approx(3 * weights[0])
    assert weights[6] == pytest.approx(2 * weights[3])
