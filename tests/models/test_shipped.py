"""The models that are committed under artifacts/: whole, active, and free of the machine they were made on."""

from pathlib import Path

import pytest

from lungkit.models import registry

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
SHIPPED = ["ct-infection"]


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
