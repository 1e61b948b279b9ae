"""What lungkit searches: the compact CNN's settings, and ways of training a recipe."""

import re
import sys

import keras_tuner
import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from typer.testing import CliRunner

from lungkit import cli
from lungkit.data import decisions
from lungkit.errors import LungkitError
from lungkit.training import finetune, recipes, release, tasks

SMALL = recipes.Recipe(
    name="squares-lite",
    data="squares",
    side=32,
    batch_size=16,
    epochs=1,
    learning_rate=5e-4,
    until="stage3",  # fewer layers to trace
    unfrozen="stage3",
    augmentation={"flip": False},
)


@pytest.fixture
def search(monkeypatch, capsys, squares):
    """Run `lungkit search` on the squares; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "150")

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["lungkit", "search", "--data", str(squares), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def test_one_worker_and_two_search_the_same_space_and_are_compared(search):
    sizes = ("--strategy", "bayesian", "--trials", "2", "--epochs", "1")
    alone = search(*sizes)
    assert re.search(r"2 trials in squares-cnn-", alone)
    assert re.search(r"best: .*filters \d+", alone)
    assert re.search(r"\d+ s with 1 worker\n", alone)
    assert "times as fast" not in alone

    together = search(*sizes, "--workers", "2", "--fresh")
    assert len(re.findall("COMPLETED", together)) == 2
    assert re.search(r"with 2 workers, \d+ s with one: \d\.\d\d times as fast", together)


def test_sizes_other_than_the_profiles_have_their_own_folder(squares):
    usual, short, again = (tasks.cnn_task(str(squares), epochs=epochs).search for epochs in (None, 1, None))
    assert usual.folder != short.folder
    assert (usual.epochs, short.epochs) == (3, 1)
    assert usual.folder == again.folder


def test_an_unknown_strategy_or_profile_is_refused(squares):
    with pytest.raises(LungkitError, match="no search strategy 'random'; there are: hyperband, bayesian"):
        tasks.cnn_task(str(squares), strategy="random")
    with pytest.raises(LungkitError, match="no profile 'fast'"):
        tasks.cnn_task(str(squares), profile="fast")


# --- a recipe's ways of training


@pytest.fixture
def space(squares, tmp_path) -> tasks.RecipeSpace:
    return tasks.RecipeSpace(SMALL, finetune.recipe_data(SMALL, squares), tmp_path, seed=1)


def test_the_space_begins_with_the_recipe_as_it_is(space):
    values = keras_tuner.HyperParameters()
    assert space.recipe_for(values) == SMALL
    assert set(values.values) == {"mixing", "learning_rate", "label_smoothing", "ema", "equalised"}


def test_a_value_becomes_what_is_trained(space):
    values = keras_tuner.HyperParameters()
    space.recipe_for(values)
    values.values |= {"mixing": "CutMix", "ema": 0.98, "equalised": True, "label_smoothing": 0.0}
    recipe = space.recipe_for(values)
    assert (recipe.mixup, recipe.cutmix, recipe.ema, recipe.equalised) == (0.0, 1.0, 0.98, True)
    model = space.build(values)
    assert model.optimizer.use_ema
    assert model.loss.label_smoothing == 0
    assert model.get_layer("equalised")


def test_only_what_is_asked_for_varies_and_another_setting_is_refused(squares, tmp_path):
    tensors = finetune.recipe_data(SMALL, squares)
    values = keras_tuner.HyperParameters()
    recipe = tasks.RecipeSpace(SMALL, tensors, tmp_path, seed=1, vary=["until"]).recipe_for(values)
    assert (recipe, set(values.values)) == (SMALL, {"until"})
    with pytest.raises(LungkitError, match="a recipe's side is not searched; there are: mixing, learning_rate"):
        tasks.RecipeSpace(SMALL, tensors, tmp_path, seed=1, vary=["until", "side"])


def test_without_epochs_the_solved_heads_of_stages_are_compared(squares, monkeypatch, eager):
    monkeypatch.setitem(recipes.RECIPES, SMALL.name, SMALL)
    asked = ("search", "--recipe", SMALL.name, "--data", str(squares), "--vary", "until", "--epochs", "0")
    done = CliRunner().invoke(cli.app, [*asked, "--trials", "2", "--limit", "80"])
    assert done.exit_code == 0, done.output
    assert set(re.findall(r"stage\d", done.stdout)) <= {"stage3", "stage4", "stage5"}
    assert len(re.findall("COMPLETED", done.stdout)) == 2


def test_nothing_is_built_to_read_the_space(space):
    values = keras_tuner.HyperParameters()
    assert space.build(values) is None
    assert len(values.values) == 5


def test_a_trial_is_scored_after_calibration(space, eager):
    values = keras_tuner.HyperParameters()
    space.recipe_for(values)
    model = space.build(values)
    model.get_layer("logits").set_weights([10 * weights for weights in model.get_layer("logits").get_weights()])
    score = space.fit(values, model, callbacks=[], epochs=0)["val_loss"]
    labels, logits = space.tensors.data.labels("val"), release.logits(model, space.tensors.validation)
    alike = compute_sample_weight("balanced", labels)
    of_temperatures = [
        log_loss(labels, scipy.special.softmax(logits / temperature, axis=1), sample_weight=alike)
        for temperature in np.geomspace(0.05, 20, 200)
    ]
    as_it_says = log_loss(labels, scipy.special.softmax(logits, axis=1), sample_weight=alike)
    assert min(of_temperatures) - 1e-3 < score < 1.1 * min(of_temperatures) < 0.7 * as_it_says


def test_trials_are_listed_by_their_calibrated_log_loss_on_validation(squares, monkeypatch, eager):
    monkeypatch.setitem(recipes.RECIPES, SMALL.name, SMALL)
    asked = ("search", "--recipe", SMALL.name, "--data", str(squares), "--trials", "2", "--limit", "80")
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert "2 trials in squares-lite-search-" in done.stdout
    scores = [float(row) for row in re.findall(r"COMPLETED\W+([\d.]+)", done.stdout)]
    assert scores == sorted(scores)
    again = CliRunner().invoke(cli.app, asked)
    assert [float(row) for row in re.findall(r"COMPLETED\W+([\d.]+)", again.stdout)] == scores, "nothing trained twice"


def test_an_unknown_recipe_is_refused_with_the_list(squares):
    done = CliRunner().invoke(cli.app, ["search", "--recipe", "squares", "--data", str(squares)])
    assert "no recipe 'squares'; there are: chest-xray-pneumonia" in str(done.exception)


def test_a_label_column_next_to_a_recipe_is_refused(squares):
    asked = ["search", "--recipe", "chest-xray-pneumonia", "--data", str(squares), "--label-column", "other"]
    done = CliRunner().invoke(cli.app, asked)
    assert "names its label column itself" in str(done.exception)


def test_a_search_is_of_the_images_after_the_decisions_and_names_them_by_their_content(squares, tmp_path):
    usual = tasks.cnn_task(str(squares))
    row = usual.data.part("train").iloc[0]
    decisions.write(tmp_path / "d.csv", [decisions.Decision(row["file"], row["sha256"], "exclude")])
    after = tasks.cnn_task(str(squares), decisions=str(tmp_path / "d.csv"))
    assert after.how == usual.how | {"decisions": decisions.kept(tmp_path / "d.csv")}
    assert len(after.data.part("train")) == len(usual.data.part("train")) - 1
    assert after.search.folder != usual.search.folder
