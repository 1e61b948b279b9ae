"""Hyperparameter search: it resumes, and says why trials failed."""

from functools import partial

from lungkit.backend import keras

import numpy as np
import pytest

from lungkit import resume
from lungkit.errors import LungkitError
from lungkit.models import search

BUILT = []


@pytest.fixture
def batches():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, (x[:, 0] > 0).astype("int64"))).batch(16)
    return data, data


def dense(hp, fails_above: int = 100):
    width = hp.Int("width", 2, 8, step=2)
    BUILT.append(width)
    if width > fails_above:
        raise ValueError(f"width {width} is too wide for this test")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(2)])
    rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


@pytest.mark.parametrize("strategy", search.STRATEGIES)
def test_the_best_trial_has_the_lowest_validation_loss(tmp_path, batches, strategy):
    found = search.search(dense, *batches, tmp_path / "search", strategy=strategy, trials=3, epochs=3)
    completed = found.trials[found.trials.status == "COMPLETED"]
    assert completed.score.is_monotonic_increasing
    assert found.best == {knob: completed.iloc[0][knob] for knob in ("width", "learning_rate")}
    assert len(completed) == (3 if strategy == "bayesian" else 6)


def test_a_second_call_runs_no_trial_again(tmp_path, batches):
    first = search.search(dense, *batches, tmp_path / "search", strategy="bayesian", trials=3, epochs=1)
    BUILT.clear()
    again = search.search(dense, *batches, tmp_path / "search", strategy="bayesian", trials=3, epochs=1)
    assert again.trials.equals(first.trials)
    assert len(BUILT) <= 1, "the space is read once, no trial is built"


def test_a_search_stopped_between_trials_goes_on_with_the_next(tmp_path, batches):
    class Stop(BaseException):
        pass

    finished = []

    def stops_in_the_third(hp):
        if len(finished) == 3:
            raise Stop
        finished.append(dense(hp))
        return finished[-1]

    options = {"strategy": "bayesian", "trials": 4, "epochs": 1}
    with pytest.raises(Stop):
        search.search(stops_in_the_third, *batches, tmp_path / "search", **options)
    BUILT.clear()
    found = search.search(dense, *batches, tmp_path / "search", **options)
    assert (found.trials.status == "COMPLETED").sum() == 4
    assert len(BUILT) < 4, "what was finished is not trained again"


def test_failed_trials_are_kept_with_their_reason_and_the_search_goes_on(tmp_path, batches):
    build = partial(dense, fails_above=4)
    found = search.search(build, *batches, tmp_path / "search", strategy="bayesian", trials=6, epochs=1, seed=1)
    failed = found.trials[found.trials.status != "COMPLETED"]
    assert len(failed) and failed.reason.str.match(r"ValueError: width [68] is too wide").all()
    assert found.best["width"] <= 4


def test_a_search_without_a_finished_trial_fails_with_every_reason(tmp_path, batches):
    build = partial(dense, fails_above=0)
    with pytest.raises(search.SearchFailed, match=r"cannot be built.* width 2 is too wide for this test"):
        search.search(build, *batches, tmp_path / "first", strategy="bayesian", trials=2, epochs=1)

    def breaks_in_training(hp):
        model = dense(hp)
        model.compile("adam", loss=lambda y, p: 1 / 0, metrics=["accuracy"])
        return model

    with pytest.raises(search.SearchFailed, match=r"no trial .* completed:(\n  trial .*division by zero){2}"):
        search.search(breaks_in_training, *batches, tmp_path / "second", strategy="bayesian", trials=2, epochs=1)


def test_the_table_says_how_many_epochs_each_trial_was_trained(tmp_path, batches):
    bayesian = search.search(dense, *batches, tmp_path / "b", strategy="bayesian", trials=2, epochs=3).trials
    assert bayesian["epochs"].tolist() == [3, 3]
    hyperband = search.search(dense, *batches, tmp_path / "h", strategy="hyperband", epochs=3).trials
    assert set(hyperband["epochs"]) == {1, 3}


@pytest.mark.parametrize("strategy", search.STRATEGIES)
def test_a_search_that_is_taken_up_shows_what_was_done(tmp_path, batches, strategy, capsys):
    options = {"strategy": strategy, "trials": 2, "epochs": 3}
    search.search(dense, *batches, tmp_path / "search", **options)
    capsys.readouterr()
    search.search(dense, *batches, tmp_path / "search", **options)
    total = 6 if strategy == "bayesian" else 11
    shown = capsys.readouterr()
    assert f"{total}/{total}" in shown.err
    assert str(tmp_path) not in shown.out


# --- the best settings again


def test_the_best_settings_do_best_on_the_mean_of_several_starts_not_in_one(tmp_path, batches):
    luck, trained = keras.Variable(0.1), []

    def build(hp):
        lucky = hp.Choice("width", [2, 4]) == 2
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("sgd", loss=lambda y, p: keras.ops.mean(0 * p) + (luck if lucky else 0.5), metrics=["accuracy"])
        return model

    def train(seed):
        trained.append(seed)
        luck.assign({1: 0.4, 2: 0.8, 3: 0.9}[seed])
        return batches[0]

    found = search.search(build, *batches, tmp_path / "search", strategy="bayesian", trials=2, epochs=1)
    assert found.best == {"width": 2}, "one lucky start"
    options = {"seeds": (1, 2, 3), "finalists": 2, "epochs": 1}
    again = search.repeat(found, build, train, batches[1], tmp_path / "again", **options)
    assert again.best == {"width": 4}
    runs = again.runs
    assert runs["seed"].tolist() == [1, 2, 3] * 2
    assert runs["loss"].tolist() == pytest.approx([0.4, 0.8, 0.9, 0.5, 0.5, 0.5])
    assert runs["searched"].tolist() == pytest.approx([0.1] * 3 + [0.5] * 3)
    assert runs["accuracy"].between(0, 1).all()

    trained.clear()
    assert search.repeat(found, build, train, batches[1], tmp_path / "again", **options).runs.equals(runs)
    assert not trained, "a finished training is not made again"


def test_a_trial_that_goes_on_with_anothers_values_is_no_second_candidate(tmp_path, batches):
    found = search.search(dense, *batches, tmp_path / "search", strategy="hyperband", epochs=3)
    assert found.trials[["width", "learning_rate"]].duplicated().any()
    runs = search.repeat(
        found, dense, lambda seed: batches[0], batches[1], tmp_path / "again", seeds=(1,), epochs=1
    ).runs
    values = found.trials.set_index("trial").loc[runs["trial"], ["width", "learning_rate"]]
    assert len(values) == 2 and not values.duplicated().any()


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path, batches):
    search.search(dense, *batches, tmp_path / "search", strategy="bayesian", trials=1, epochs=1, settings={"data": "a"})
    with pytest.raises(resume.SettingsDiffer, match=r"data, epochs differ"):
        search.search(
            dense, *batches, tmp_path / "search", strategy="bayesian", trials=1, epochs=2, settings={"data": "b"}
        )


def test_an_unknown_strategy_is_refused(tmp_path, batches):
    with pytest.raises(LungkitError, match="no search strategy 'random'; there are: hyperband, bayesian"):
        search.search(dense, *batches, tmp_path / "search", strategy="random")
