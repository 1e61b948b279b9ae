"""The models that are committed under artifacts/: whole, active, and free of the machine they were made on."""

from pathlib import Path

import pytest

from lungkit.clinic import predictor
from lungkit.models import overview, registry
from lungkit.training import recipes

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
SHIPPED = [
    "chest-xray-pneumonia",
    "chest-xray-infection",
    "pneumoniamnist-28",
    "ct-covid",
    "ct-lung-cancer",
    "mri-brain-tumour",
    "ct-infection",
]


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(ARTIFACTS))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_of_a_shipped_model_is_the_registered_one(name):
    registry.verify(registry.active(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_says_in_its_card_what_it_learned_from(name):
    card = registry.active(name).card
    assert card["synthetic"] == card["data"]["name"].startswith("phantom")
    assert "/" not in card["data"]["name"]


def test_all_that_ship_are_tested_and_take_less_than_60_megabytes():
    assert sorted(registry.models()) == sorted(SHIPPED)
    files = [file for file in ARTIFACTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 60e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_says_whose_what_for_and_how_well(name):
    card = registry.active(name).card
    assert card["about"] == recipes.find(name).about()
    assert card["metrics"]["test"]["times_scored"] >= 1
    assert card["metrics"]["test"]["ece"] is not None
    assert card["conformal"]["level"] == 0.9
    assert ("trust" in card) == ("--outside" in card["about"]["command"])
    if recipes.find(name).fold:
        assert "4 folds by patient or group" in card["metrics"]


def test_the_clinic_begins_with_the_chest_x_ray_and_offers_every_model_with_its_question():
    models = predictor.Models()
    offered = {name: question for question, name in models.choices()}
    assert models.default() == next(iter(offered)) == "chest-xray-pneumonia"
    assert list(offered)[-1] == "ct-infection"
    assert all(recipes.find(name).question in question for name, question in offered.items())


def test_the_table_has_a_row_for_each_and_marks_what_is_synthetic():
    rows = overview.table()
    assert len(rows) == len(SHIPPED)
    assert [row for row in rows["model"] if "synthetic" in row] == ["ct-infection@v1 (synthetic)"]
