"""The table of what is stopped says for each kind of image how often it gets no decision, and by what."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from typer.testing import CliRunner

from lungkit import cli
from lungkit.clinic import foreign
from lungkit.data import dataset
from lungkit.data.dataset import Dataset
from lungkit.models.card import About


@pytest.fixture
def own(trained) -> Dataset:
    (folder,) = (trained.parent / "data" / "manifests").glob("*")
    return Dataset.open(folder)


@pytest.fixture
def others(tmp_path) -> Path:
    """Twelve pictures of two patients' ages: a folder that states them."""
    folder, random = tmp_path / "stripes", np.random.default_rng(0)
    folder.mkdir()
    rows = ["file,label,patient_id,age"]
    for number in range(12):
        pixels = 255 * (np.indices((96, 96))[number % 2] // (4 + number) % 2) + random.integers(0, 2, (96, 96))
        Picture.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},P{number},{'3' if number < 6 else '70'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def rows(tiny_version, own, others) -> dict[str, foreign.Stopped]:
    card = dataclasses.replace(tiny_version.card, about=About(ages=(1, 5)))
    version = dataclasses.replace(tiny_version, card=card)
    measured = foreign.measure(version, own, [dataset.as_given(str(others))], most=30)
    return {row.kind: row for row in measured}


def test_each_kind_has_a_row_and_the_own_images_come_first(rows, own):
    first, *rest = rows
    assert first == "own validation images"
    assert {*foreign.CHANGES, "stripes", "stripes, age known"} == {*rest}
    assert rows[first].images == min(30, len(own.files("val")))
    assert rows["stripes"].images == 12


def test_own_images_are_flagged_as_seldom_as_the_limits_say_and_foreign_ones_more_often(rows):
    home = rows["own validation images"]
    assert all(share <= foreign.FALSE_ALARMS for share in home.distances.values())
    assert max(home.checks.values()) < 0.2
    for kind in ("blank", "noise", "stripes"):
        assert rows[kind].undecided == 1, kind
        assert max(rows[kind].checks.values()) > 0.9, kind
        assert max(rows[kind].distances.values()) > 0.9, kind


def test_a_patients_age_stops_what_the_image_alone_does_not(rows):
    assert rows["stripes"].checks["age"] == 0
    assert rows["stripes, age known"].checks["age"] == 0.5


def test_what_flagged_most_is_named_first(rows):
    row = rows["noise"].row()
    named = [part.rsplit(" ", 2)[0] for part in row["flagged by"].split(", ")]
    assert named == sorted(named, key=lambda name: -rows["noise"].checks[name])
    assert row["images"] == f"{rows['noise'].images:,}"


def test_the_command_prints_the_table(tiny_version, trained, others, monkeypatch):
    source = trained.parent / "phantom"
    monkeypatch.setattr(foreign, "MOST_IMAGES", 4)
    monkeypatch.setattr(foreign, "_MOST_TRAINING", 12)
    asked = ["models", "foreign", "tiny-cnn", "--data", str(source), "--foreign", str(others), "--markdown"]
    result = CliRunner().invoke(cli.app, asked, catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert "|  | images | no decision | flagged by | Mahalanobis at 5 % | neighbours at 5 % | energy at 5 % |" in lines
    assert not any(line.startswith("| stripes, age known | ") for line in lines), "tiny-cnn states no ages"
    assert any(line.startswith("| stripes | 4 |") for line in lines)
