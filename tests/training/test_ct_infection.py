"""One command trains the three-class CT model on a public set as it is published, with settings for real images."""

import dataclasses
import functools

import pytest
from typer.testing import CliRunner

from lungkit import cli
from lungkit.data import phantom
from lungkit.models import cnn, registry
from lungkit.training import recipes
from tests.data import ct_trees


@pytest.fixture
def real(tmp_path):
    return ct_trees.covidx(tmp_path / "covidx")


def test_real_slices_get_settings_of_their_own_and_a_phantom_keeps_its(real, tmp_path):
    plan = recipes.find("ct-infection")
    suited = recipes.suited(plan, real)
    assert (suited.name, suited.backbone, suited.balanced_sources) == ("ct-infection-real", "efficientnet_lite0", True)
    drawn = phantom.make_dataset(tmp_path / "phantom", n_slices=3, size=64, workers=1)
    assert recipes.suited(plan, drawn) is recipes.suited(plan, "phantom") is plan
    assert recipes.suited(recipes.find("ct-covid"), real) is recipes.find("ct-covid")


def test_one_command_trains_on_a_public_set(real, monkeypatch):
    plan = recipes.find("ct-infection")
    small = {"backbone": "cnn", "side": 64, "epochs": 1, "batch_size": 4, "max_images": 30}
    short = dataclasses.replace(plan, real=plan.real | small)
    monkeypatch.setattr(cnn, "build", functools.partial(cnn.build, filters=cnn.FILTERS // 4, blocks=2))
    monkeypatch.setitem(recipes.RECIPES, "ct-infection", short)
    done = CliRunner().invoke(cli.app, ["train", "ct-infection", "--data", str(real), "--licence", "CC0"])
    assert done.exit_code == 0, done.exception
    assert "trained with other settings, as ct-infection-real" in done.output
    card = registry.find("ct-infection-real").card
    assert card.classes == ("Normal", "Pneumonia", "COVID-19")
    assert card.about.command == "lungkit train ct-infection --data FOLDER/covidx --licence CC0"
    assert card.data.recipe["max_images"] == 30
    assert set(card.metrics["test"].sources) == {"CNCB", "iCTCF"}
    again = CliRunner().invoke(cli.app, ["evaluate", "--model", "ct-infection-real", "--data", str(real)])
    assert again.exit_code == 0, again.exception
