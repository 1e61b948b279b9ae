"""Hyperparameter search: it continues where it stopped, and says why trials failed."""

import gc
from functools import partial

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit import resume
from lungkit.errors import LungkitError
from lungkit.models import search

BUILT = []
gc.freeze()  # KerasTuner collects garbage before each trial, and what TensorFlow's import made takes a second each time


@pytest.fixture(scope="module")
def batches():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, (x[:, 0] > 0).astype("int64"))).batch(64)
    return data, data


def dense(hp, fails_above: int = 100):
    width = hp.Int("width", 2, 8, step=2)
    BUILT.append(width)
    if width > fails_above:
        raise ValueError(f"width {width} is too wide for this test")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(2)])
    rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], run_eagerly=True)
    return model


OPTIONS = {
    "hyperband": {"strategy": "hyperband", "epochs": 3},
    "bayesian": {"strategy": "bayesian", "trials": 3, "epochs": 2, "settings": {"data": "a"}},
}


@pytest.fixture(scope="module")
def searches(tmp_path_factory, batches):
    """A folder and its result for each strategy; tests leave both as they are."""
    home = tmp_path_factory.mktemp("searches")
    return {
        name: (home / name, search.Search(dense, *batches, home / name, **options).run())
        for name, options in OPTIONS.items()
    }


@pytest.mark.parametrize(("strategy", "epochs"), [("hyperband", {1, 3}), ("bayesian", {2})])
def test_the_best_trial_has_the_lowest_validation_loss_and_the_table_says_how_long_each_trained(
    searches, strategy, epochs
):
    _, result = searches[strategy]
    assert result.trials.status.tolist() == ["COMPLETED"] * (3 if strategy == "bayesian" else 6)
    assert result.trials.score.is_monotonic_increasing
    assert result.best == {knob: result.trials.iloc[0][knob] for knob in ("width", "learning_rate")}
    assert set(result.trials.epochs) == epochs


@pytest.mark.parametrize("strategy", search.STRATEGIES)
def test_a_second_call_trains_nothing_again_and_shows_what_was_done(searches, batches, strategy, capsys):
    folder, first = searches[strategy]
    BUILT.clear()
    again = search.Search(dense, *batches, folder, **OPTIONS[strategy]).run()
    assert again.trials.equals(first.trials)
    assert len(BUILT) <= 1, "the space is read once, no trial is built"
    total = 6 if strategy == "bayesian" else 11
    shown = capsys.readouterr()
    assert f"{total}/{total}" in shown.err
    assert str(folder) not in shown.out


def test_other_settings_in_the_same_folder_are_refused_by_name(searches, batches):
    other = OPTIONS["bayesian"] | {"epochs": 1, "settings": {"data": "b"}}
    with pytest.raises(resume.SettingsDiffer, match=r"data, epochs differ"):
        search.Search(dense, *batches, searches["bayesian"][0], **other).run()


@pytest.mark.parametrize("finished", [0, 2])
def test_a_search_that_was_stopped_continues_with_the_trial_that_was_in_training(tmp_path, batches, finished):
    class Stop(BaseException):
        pass

    built = []

    def stops(hp):
        if len(built) > finished:  # the first model is built to read the space
            raise Stop
        built.append(dense(hp))
        return built[-1]

    options = {"strategy": "bayesian", "trials": 3, "epochs": 1}
    with pytest.raises(Stop):
        search.Search(stops, *batches, tmp_path / "search", **options).run()
    BUILT.clear()
    result = search.Search(dense, *batches, tmp_path / "search", **options).run()
    assert result.trials.status.tolist() == ["COMPLETED"] * 3
    assert len(BUILT) == 3 - finished, "finished trials are not trained again"


def test_failed_trials_are_kept_with_their_reason_and_the_search_continues(tmp_path, batches):
    build = partial(dense, fails_above=4)
    result = search.Search(build, *batches, tmp_path / "search", strategy="bayesian", trials=6, epochs=1, seed=1).run()
    failed = result.trials[result.trials.status != "COMPLETED"]
    assert len(failed) and failed.reason.str.match(r"ValueError: width [68] is too wide").all()
    assert result.best["width"] <= 4


def test_a_search_without_a_finished_trial_fails_with_every_reason(tmp_path, batches):
    build = partial(dense, fails_above=0)
    with pytest.raises(search.SearchFailed, match=r"cannot be built.* width 2 is too wide for this test"):
        search.Search(build, *batches, tmp_path / "first", strategy="bayesian", trials=2, epochs=1).run()

    def breaks_in_training(hp):
        model = dense(hp)
        model.compile("adam", loss=lambda y, p: 1 / 0, metrics=["accuracy"], run_eagerly=True)
        return model

    with pytest.raises(search.SearchFailed, match=r"no trial .* completed:(\n  trial .*division by zero){2}"):
        search.Search(breaks_in_training, *batches, tmp_path / "second", strategy="bayesian", trials=2, epochs=1).run()


def test_an_unknown_strategy_is_refused(tmp_path, batches):
    with pytest.raises(LungkitError, match="no search strategy 'random'; there are: hyperband, bayesian"):
        search.Search(dense, *batches, tmp_path / "search", strategy="random").run()


@pytest.mark.parametrize(("epochs", "total"), [(1, 1), (2, 4), (3, 11), (9, 75), (12, 136)])
def test_the_planned_epochs_of_hyperband_are_those_that_kerastuner_gives_its_trials(epochs, total):
    assert search._hyperband_epochs(epochs) == total


# --- the best settings again


def test_the_best_settings_do_best_on_the_mean_of_several_starts_not_in_one(tmp_path, batches):
    luck, trained = keras.Variable(0.1), []

    def loss(lucky):
        return lambda y, p: keras.ops.mean(0 * p) + (luck if lucky else 0.5)

    def build(hp):
        lucky = hp.Choice("width", [2, 4]) == 2
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("sgd", loss=loss(lucky), metrics=["accuracy"], run_eagerly=True)
        return model

    def train(seed):
        trained.append(seed)
        luck.assign({1: 0.4, 2: 0.8, 3: 0.9}[seed])
        return batches[0]

    lucky = search.Search(build, *batches, tmp_path / "search", strategy="bayesian", trials=2, epochs=1)
    result = lucky.run()
    assert result.best == {"width": 2}, "one lucky start"
    again = lucky.repeat(result, train, tmp_path / "again", seeds=(1, 2, 3))
    assert again.best == {"width": 4}
    runs = again.runs
    assert runs["seed"].tolist() == [1, 2, 3] * 2
    assert runs["loss"].tolist() == pytest.approx([0.4, 0.8, 0.9, 0.5, 0.5, 0.5])
    assert runs["searched"].tolist() == pytest.approx([0.1] * 3 + [0.5] * 3)
    assert runs["accuracy"].between(0, 1).all()

    trained.clear()
    assert lucky.repeat(result, train, tmp_path / "again", seeds=(1, 2, 3)).runs.equals(runs)
    assert not trained, "a finished training is not made again"


def test_a_trial_that_continues_another_is_not_a_second_candidate(searches, batches, tmp_path):
    _, result = searches["hyperband"]
    assert result.trials[["width", "learning_rate"]].duplicated().any()
    short = search.Search(dense, *batches, tmp_path / "search", epochs=1)
    runs = short.repeat(result, lambda seed: batches[0], tmp_path / "again", seeds=(1,)).runs
    values = result.trials.set_index("trial").loc[runs["trial"], ["width", "learning_rate"]]
    assert len(values) == 2 and not values.duplicated().any()
