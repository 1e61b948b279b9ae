"""Training by several processes: the same curve as by one, and nothing left running when one dies."""

import threading
import time

from lungkit.backend import keras

import numpy as np
import psutil
import pytest

from lungkit.errors import LungkitError
from lungkit.models import cnn
from lungkit.training import fit, multiworker, pipeline
from tests.training.one_worker import in_this_process

# Without dropout, which each worker draws for itself: all else has to be the same.
COMPILED = {"learning_rate": 1e-3, "label_smoothing": 0.1, "decay_steps": 20}
BATCHES = {"batch_size": 16, "mixup": 0.2, "weights": {0: 1.0, 1: 2.0}, "seed": 3, "augment": {"rotation": 5.0}}
OPTIONS = {"epochs": 4, "batches": BATCHES, "compiled": COMPILED}


def start() -> keras.Model:
    keras.utils.set_random_seed(7)
    return cnn.build((16, 16, 1), 2, filters=4, blocks=1, dropout=0.0)


@pytest.fixture(scope="module")
def chest():
    """72 images and 20 to validate with; the later ones are brighter, so that a worker's part of a batch has statistics
    of its own. The last batch is half full.
    """
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 92)
    brightness = 1.5 * labels[:, None, None, None] + np.linspace(0, 2, 92)[:, None, None, None]
    images = (rng.normal(size=(92, 16, 16, 1)) + brightness).astype("float32")
    return (images[:72], labels[:72]), (images[72:], labels[72:])


@pytest.fixture(scope="module")
def together(chest, tmp_path_factory):
    """Model, history and folder of a training by two workers."""
    folder = tmp_path_factory.mktemp("together")
    return *multiworker.fit_with_workers(start(), *chest, folder, workers=2, **OPTIONS), folder


@pytest.fixture(scope="module")
def alone(chest, tmp_path_factory):
    """Model and history of a training by one worker: this process."""
    with in_this_process():
        return multiworker.fit_with_workers(start(), *chest, tmp_path_factory.mktemp("alone"), workers=1, **OPTIONS)


def test_two_workers_learn_what_one_learns(alone, together):
    (one, expected), (two, history, _) = alone, together
    # The same sums in another order: float32 rounds to 6e-8, which 20 steps of AdamW, dividing by the size of the
    # gradient, let grow. A worker's own statistics, or its gradient alone, show in the first or second digit.
    for figure in ("loss", "val_loss"):
        np.testing.assert_allclose(history[figure], expected[figure], rtol=5e-3)
    np.testing.assert_allclose(history.accuracy, expected.accuracy, atol=0.03)
    assert expected.loss.iloc[-1] < 0.95 * expected.loss.iloc[0], "a curve that does not move would prove nothing"
    for mine, other in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(other, mine, rtol=0.02, atol=5e-3)


class FromTheFirstEpoch(pipeline.InMemory):
    """Keras' own loop ends an epoch once before it starts: that one does not count."""

    ended = -1

    def on_epoch_end(self):
        self.ended += 1
        if self.ended != 1:  # 0: made; 1: before the start
            super().on_epoch_end()


def test_the_curve_is_that_of_keras_own_training(alone, chest, tmp_path):
    options = BATCHES | {"augment": pipeline.augmentation(**BATCHES["augment"])}
    train = FromTheFirstEpoch(*chest[0], 2, **options)
    validation = pipeline.InMemory(*chest[1], 2, 16, weights=BATCHES["weights"])
    model = cnn.compile_classifier(start(), **COMPILED)
    model.run_eagerly = True  # so few small batches take less time than tracing a step
    _, expected = fit.fit(model, train, validation, tmp_path, epochs=4, patience=4)
    _, history = alone
    assert set(history) == set(expected)
    for figure in ("loss", "val_loss", "learning_rate"):
        np.testing.assert_allclose(history[figure], expected[figure], rtol=5e-3)


def test_the_model_that_is_left_is_an_ordinary_one_with_the_weights_of_its_best_epoch(together, chest):
    model, history, _ = together
    assert not any(getattr(layer, "synchronized", False) for layer in model.layers)
    cnn.compile_classifier(model, **COMPILED)
    held_out = pipeline.InMemory(*chest[1], 2, 64, weights=BATCHES["weights"])
    assert model.evaluate(held_out, verbose=0, return_dict=True)["loss"] == pytest.approx(
        history.val_loss.min(), rel=1e-4
    )


def test_a_finished_training_is_not_done_again(together, chest):
    model, history, folder = together
    before = (folder / "history.csv").stat().st_mtime_ns
    again, same = multiworker.fit_with_workers(start(), *chest, folder, workers=2, **OPTIONS)
    assert (folder / "history.csv").stat().st_mtime_ns == before
    assert same.equals(history)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_a_worker_that_fails_ends_the_training_with_its_last_words(tmp_path, chest):
    wrong = OPTIONS | {"compiled": COMPILED | {"optimizer": "sgdx"}}
    with pytest.raises(LungkitError, match=r"(?s)worker0 of 1 ended with exit status 1:.*no optimizer 'sgdx'"):
        multiworker.fit_with_workers(start(), *chest, tmp_path, workers=1, **wrong)
    assert not _workers()


def test_a_killed_worker_ends_the_others(tmp_path, chest):
    def kill():
        while len(_workers()) < 2:
            time.sleep(0.05)
        _workers()[1].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(LungkitError, match="worker1 of 2 ended with signal 9"):
        multiworker.fit_with_workers(start(), *chest, tmp_path, workers=2, **OPTIONS)
    assert not _workers()


def _workers() -> list[psutil.Process]:
    """In the order of their start."""
    found = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    named = [process for process in found if "lungkit.training.multiworker" in process.cmdline()]
    return sorted(named, key=lambda process: process.pid)


@pytest.mark.parametrize("workers", [17, 0])
def test_batches_that_cannot_be_shared_are_refused(tmp_path, chest, workers):
    with pytest.raises(LungkitError, match=f"a batch of 16 images cannot be shared by {workers} workers"):
        multiworker.fit_with_workers(start(), *chest, tmp_path, workers=workers, **OPTIONS)


def test_a_moving_average_is_refused_which_only_a_single_process_keeps(tmp_path, chest):
    averaged = OPTIONS | {"compiled": COMPILED | {"ema": 0.98}}
    with pytest.raises(LungkitError, match="kept by a single process only"):
        multiworker.fit_with_workers(start(), *chest, tmp_path, workers=2, **averaged)
