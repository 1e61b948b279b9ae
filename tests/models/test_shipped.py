"""The models that are committed under artifacts/: whole, active, and free of the machine they were made on."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lungkit.clinic import predictor
from lungkit.models import card_text, registry
from lungkit.training import recipes
from tests.shipped import SHIPPED, export


@pytest.fixture(autouse=True)
def registry_of_what_ships(monkeypatch, shipped):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(shipped))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_of_a_shipped_model_is_the_registered_one(name):
    registry.verify(registry.active(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_says_in_its_card_what_it_learned_from(name):
    card = registry.active(name).card
    assert card.synthetic == card.data.name.startswith("phantom")
    assert "/" not in card.data.name


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_still_reads_as_it_was_registered(name):
    card = registry.active(name).card
    stated = json.loads((registry.active(name).folder / "card.json").read_text())["preprocessing"]
    assert card.preprocessing.jpeg == stated.get("jpeg", "full")
    assert card.preprocessing.size == tuple(stated["size"])


def test_all_that_ship_are_tested_and_take_less_than_80_megabytes(shipped):
    assert sorted(registry.models()) == sorted(SHIPPED)
    files = [file for file in shipped.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 80e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_says_whose_what_for_and_how_well(name):
    card = registry.active(name).card
    recipe, about = recipes.find(name), card.about
    assert (about.question, about.population, about.licence) == (recipe.question, recipe.population, recipe.licence)
    joins = len(card.data.sources or ()) > 1
    source = "phantom" if recipe.data == "phantom" else "FOLDER/" if joins else f"FOLDER/{recipe.data}"
    assert about.command.startswith(f"lungkit train {name} --data {source}")
    assert about.command.count("--data") == (len(card.data.sources) if joins else 1)
    assert card.metrics["test"].times_scored >= 1
    assert card.metrics["test"].figure("ece").value is not None
    assert card.rule.conformal.level == 0.9
    assert bool(card.trust) == ("--outside" in card.about.command)
    if recipe.folds:
        assert "4 folds by patient or group" in card.metrics


def test_the_clinic_begins_with_the_chest_x_ray_and_offers_every_model_with_its_question():
    models = predictor.ModelPool()
    offered = {name: question for question, name in models.choices()}
    assert models.default() == next(iter(offered)) == "chest-xray-pneumonia"
    assert list(offered)[-1] == "ct-infection"
    assert all(recipes.find(name).question in question for name, question in offered.items())


def test_the_table_has_a_row_for_each_and_marks_what_is_synthetic():
    versions = registry.in_use()
    rows = [card_text.summary_row(str(version), version.card, registry.size(version)) for version in versions]
    assert len(rows) == len(SHIPPED)
    assert [row["model"] for row in rows if "synthetic" in row["model"]] == ["ct-infection@v2 (synthetic)"]
    assert all(re.fullmatch(r"0\.\d{3} \(0\.\d{3}–[01]\.\d{3}\)", row["AUC"]) for row in rows)


# --- what a user trained does not change what these tests look at


@pytest.mark.parametrize("in_git", [True, False], ids=["clone", "unpacked archive"])
def test_what_a_user_trained_is_not_taken_for_what_ships(shipped, tmp_path, in_git):
    root = tmp_path / "project"
    shutil.copytree(shipped, root / "artifacts")
    if in_git:
        _git(root, "init", "--quiet")
        _git(root, "-c", "core.compression=0", "add", "artifacts")
    for name in ("ct-infection", "phantom-1200-cnn"):
        later = root / "artifacts" / name / "v3"
        shutil.copytree(shipped / "ct-infection" / "v2", later)
        pointer = {"version": "v3", "history": [], "sums": {"v2": "1", "v3": "2"}}
        if name == "ct-infection":
            pointer["sums"]["v2"] = json.loads((later.parent / "active.json").read_text())["sums"]["v2"]
        (later.parent / "active.json").write_text(json.dumps(pointer))
    exported = export(tmp_path / "exported", root)
    assert _registered(exported) == _registered(shipped)
    pointer = json.loads((exported / "ct-infection" / "active.json").read_text())
    assert pointer == json.loads((shipped / "ct-infection" / "active.json").read_text())


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


def _registered(artifacts: Path) -> list[str]:
    return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in artifacts.glob("*/*/card.json"))
