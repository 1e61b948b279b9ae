"""lungkit search --recipe: ways of training a recipe, compared on its validation patients."""

import re

import keras_tuner
import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from typer.testing import CliRunner

from lungkit import cli
from lungkit.errors import LungkitError
from lungkit.training import finetune, recipe_search, recipes, release

SMALL = recipes.Recipe(
    name="squares-lite",
    data="squares",
    side=32,
    batch_size=16,
    epochs=1,
    learning_rate=5e-4,
    unfrozen="stage5",
    augmentation={"flip": False},
)


@pytest.fixture
def space(squares, tmp_path) -> recipe_search.Space:
    return recipe_search.Space(SMALL, finetune.material(SMALL, squares), tmp_path, seed=1)


def test_the_space_begins_with_the_recipe_as_it_is(space):
    values = keras_tuner.HyperParameters()
    assert space.chosen(values) == SMALL
    assert set(values.values) == {"mixing", "learning_rate", "label_smoothing", "ema", "equalised"}


def test_a_value_becomes_what_is_trained(space):
    values = keras_tuner.HyperParameters()
    space.chosen(values)
    values.values |= {"mixing": "CutMix", "ema": 0.98, "equalised": True, "label_smoothing": 0.0}
    recipe = space.chosen(values)
    assert (recipe.mixup, recipe.cutmix, recipe.ema, recipe.equalised) == (0.0, 1.0, 0.98, True)
    model = space.build(values)
    assert model.optimizer.use_ema
    assert model.loss.label_smoothing == 0
    assert model.get_layer("equalised")


def test_only_what_is_asked_for_varies_and_another_setting_is_refused(squares, tmp_path):
    of = finetune.material(SMALL, squares)
    values = keras_tuner.HyperParameters()
    chosen = recipe_search.Space(SMALL, of, tmp_path, seed=1, vary=["until"]).chosen(values)
    assert (chosen, set(values.values)) == (SMALL, {"until"})
    with pytest.raises(LungkitError, match="a recipe's side is not searched; there are: mixing, learning_rate"):
        recipe_search.Space(SMALL, of, tmp_path, seed=1, vary=["until", "side"])


def test_without_an_epoch_the_solved_heads_of_stages_are_compared(squares, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, SMALL.name, SMALL)
    asked = ("search", "--recipe", SMALL.name, "--data", str(squares), "--vary", "until", "--epochs", "0")
    told = CliRunner().invoke(cli.app, [*asked, "--trials", "3", "--limit", "80"])
    assert told.exit_code == 0, told.output
    assert set(re.findall(r"stage\d", told.stdout)) <= {"stage3", "stage4", "stage5"}
    assert len(re.findall("COMPLETED", told.stdout)) >= 2


def test_a_trial_is_judged_by_what_the_best_temperature_makes_of_it(space):
    values = keras_tuner.HyperParameters()
    model = space.build(values)
    model.get_layer("logits").set_weights([10 * weights for weights in model.get_layer("logits").get_weights()])
    score = space.fit(values, model, callbacks=[], epochs=0)["val_loss"]
    labels, logits = space.of.data.labels("val"), release.logits(model, space.of.validation)
    alike = compute_sample_weight("balanced", labels)
    of_temperatures = [
        log_loss(labels, scipy.special.softmax(logits / temperature, axis=1), sample_weight=alike)
        for temperature in np.geomspace(0.05, 20, 200)
    ]
    as_it_says = log_loss(labels, scipy.special.softmax(logits, axis=1), sample_weight=alike)
    assert min(of_temperatures) - 1e-3 < score < 1.1 * min(of_temperatures) < 0.7 * as_it_says


def test_trials_are_listed_by_their_calibrated_log_loss_on_validation(squares, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, SMALL.name, SMALL)
    asked = ("search", "--recipe", SMALL.name, "--data", str(squares), "--trials", "2", "--limit", "80")
    told = CliRunner().invoke(cli.app, asked)
    assert told.exit_code == 0, told.output
    assert "2 trials in squares-lite-search-" in told.stdout
    scores = [float(row) for row in re.findall(r"COMPLETED\W+([\d.]+)", told.stdout)]
    assert scores == sorted(scores)
    again = CliRunner().invoke(cli.app, asked)
    assert [float(row) for row in re.findall(r"COMPLETED\W+([\d.]+)", again.stdout)] == scores, "nothing trained twice"


def test_an_unknown_recipe_is_refused_with_the_list(squares):
    told = CliRunner().invoke(cli.app, ["search", "--recipe", "squares", "--data", str(squares)])
    assert "no recipe 'squares'; there are: chest-xray-pneumonia" in str(told.exception)


def test_a_label_column_beside_a_recipe_is_refused(squares):
    asked = ["search", "--recipe", "chest-xray-pneumonia", "--data", str(squares), "--label-column", "other"]
    told = CliRunner().invoke(cli.app, asked)
    assert "names its label column itself" in str(told.exception)
