"""Training by several processes: the same curve as by one, and nothing left running when one dies."""

import threading
import time

from lungkit.backend import keras

import numpy as np
import psutil
import pytest

from lungkit.errors import LungkitError
from lungkit.models import cnn
from lungkit.training import multiworker

# Without dropout, which each worker draws for itself: all else has to be the same.
OPTIONS = {"epochs": 4, "batch_size": 16, "network": {"filters": 4, "blocks": 2, "dropout": 0.0}}


@pytest.fixture(scope="module")
def chest():
    """64 images whose second half is brighter, so that a worker's part of a batch has statistics of its own."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 64)
    images = (
        rng.normal(size=(64, 16, 16, 1))
        + 1.5 * labels[:, None, None, None]
        + np.linspace(0, 2, 64)[:, None, None, None]
    )
    return images.astype("float32"), labels


@pytest.fixture(scope="module")
def runs(chest, tmp_path_factory):
    """Model and history by number of workers."""
    folder = tmp_path_factory.mktemp("multiworker")
    return {n: multiworker.fit_with_workers(*chest, 2, folder / str(n), workers=n, **OPTIONS) for n in (1, 2)}


def test_two_workers_learn_what_one_learns(runs):
    (one, alone), (two, together) = runs[1], runs[2]
    # The same sums in another order: float32 rounds to 6e-8, which 16 steps of AdamW, dividing by the size of the
    # gradient, let grow. A worker's own statistics, or its gradient alone, show in the first or second digit.
    np.testing.assert_allclose(together.loss, alone.loss, rtol=2e-3)
    np.testing.assert_allclose(together.accuracy, alone.accuracy, atol=0.02)
    assert alone.loss.iloc[-1] < 0.8 * alone.loss.iloc[0], "a curve that does not move would prove nothing"
    for mine, other in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(other, mine, rtol=0.02, atol=5e-3)


def test_the_curve_is_that_of_keras_own_training(runs, chest):
    """One process, no strategy: the same first weights, the same order, train_on_batch."""
    trained, history = runs[1]
    images, labels = chest
    keras.utils.set_random_seed(7)
    model = cnn.compile_classifier(cnn.build((16, 16, 1), 2, **OPTIONS["network"]))
    random, losses = np.random.default_rng(7), []
    for _ in range(OPTIONS["epochs"]):
        order = random.permutation(64)
        parts = [order[first : first + 16] for first in range(0, 64, 16)]
        losses.append(np.mean([_loss(model, images[part], labels[part]) for part in parts]))
    np.testing.assert_allclose(history.loss, losses, rtol=2e-3)
    for left, weights in zip(trained.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(left, weights, rtol=0.02, atol=5e-3)


def _loss(model, images, labels):
    model.reset_metrics()
    return model.train_on_batch(images, labels)[0]


def test_the_model_that_is_left_is_an_ordinary_one(runs, chest):
    model, history = runs[2]
    assert not any(getattr(layer, "synchronized", False) for layer in model.layers)
    assert model.predict(chest[0][:3], verbose=0).shape == (3, 2)
    assert history.columns.tolist() == ["epoch", "loss", "accuracy", "seconds"]


def test_a_worker_that_dies_ends_all_with_its_last_words(tmp_path, chest):
    with pytest.raises(LungkitError, match=r"(?s)worker \d of 2 ended with status 1:.*no optimizer 'sgdx'"):
        multiworker.fit_with_workers(*chest, 2, tmp_path, **OPTIONS, compiled={"optimizer": "sgdx"})
    assert not _workers()


def test_a_killed_worker_ends_the_others(tmp_path, chest):
    def kill():
        while len(_workers()) < 2:
            time.sleep(0.05)
        _workers()[1].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(LungkitError, match="worker 1 of 2 ended with status -9"):
        multiworker.fit_with_workers(*chest, 2, tmp_path, **OPTIONS)
    assert not _workers()


def _workers() -> list[psutil.Process]:
    """In the order of their start."""
    found = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    named = [process for process in found if "lungkit.training.multiworker" in process.cmdline()]
    return sorted(named, key=lambda process: process.pid)


@pytest.mark.parametrize(("workers", "said"), [(3, "16 images cannot be shared evenly by 3"), (0, "by 0 workers")])
def test_batches_that_cannot_be_shared_are_refused(tmp_path, chest, workers, said):
    with pytest.raises(LungkitError, match=said):
        multiworker.fit_with_workers(*chest, 2, tmp_path, workers=workers, **OPTIONS)


def test_too_few_images_are_refused(tmp_path, chest):
    images, labels = chest
    with pytest.raises(LungkitError, match="10 images do not fill one batch of 16"):
        multiworker.fit_with_workers(images[:10], labels[:10], 2, tmp_path, **OPTIONS)
