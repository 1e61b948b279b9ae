"""The lung finder learns from masks, and says what it finds on patients it has not seen."""

import numpy as np
import pytest
from typer.testing import CliRunner

from lungkit import cli
from lungkit.data import phantom
from lungkit.data.preprocess import window_level
from lungkit.errors import LungkitError
from lungkit.models import lungs
from lungkit.training import lung_finder
from lungkit.training.lung_finder import Masked


@pytest.fixture(scope="module")
def masked() -> Masked:
    """Slices of 24 phantoms with their own masks."""
    rows = [
        (window_level(one.hu, -600, 1500), one.lungs, one.patient_id)
        for number in range(24)
        for one in phantom.make_patient(f"P{number}", "COVID-19" if number % 2 else "Normal", number, 2, lungs.SIDE)
    ]
    pictures, masks, patients = zip(*rows, strict=True)
    return Masked(np.stack(pictures), np.stack(masks).astype(np.float32), np.array(patients))


def test_lungs_are_surrounded_by_the_body_on_any_lung_window():
    for number in range(4):
        (one,) = phantom.make_patient(f"P{number}", "Normal", number, 1, 192)
        for level, width in ((-600, 1500), (-300, 1400), (-500, 1000)):
            found = lung_finder.surrounded(window_level(one.hu, level, width))
            assert 2 * (found & one.lungs).sum() / (found.sum() + one.lungs.sum()) > 0.9, (number, level)


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_an_empty_picture_has_no_surrounded_lungs(grey):
    assert not lung_finder.surrounded(np.full((192, 192), grey)).any()


def test_a_mask_moves_with_its_picture(masked):
    random = np.random.default_rng(0)
    lung, picture = masked.masks[0], 1 - masked.masks[0]
    shares = []
    for _ in range(30):
        seen, mask = lung_finder.varied("CT", picture, lung, random)
        if mask.max() > 0.5:
            shares.append(seen[mask > 0.5].mean() < seen[mask <= 0.5].mean())
    assert np.mean(shares) > 0.9, "lungs stay the dark part of the picture"
    assert len({float(share) for share in shares}) <= 2


def test_it_finds_lungs_of_patients_it_has_not_seen(masked, monkeypatch):
    monkeypatch.setattr(lung_finder, "_BATCH", 8)
    model, after = lung_finder.train("CT", masked, epochs=2)
    held_out = masked.held_out
    before = lung_finder.dice(lungs.finder(), masked.pictures[held_out], masked.masks[held_out])
    assert len(after) == held_out.sum() > 0
    assert after.mean() > max(0.7, before.mean() + 0.2)
    facts = lung_finder.plausibility(model, masked.pictures[masked.held_out])
    assert facts["area"].between(0.05, 0.5).all()


def test_patients_are_held_out_whole(masked):
    held_out = masked.held_out
    assert not set(masked.patients[held_out]) & set(masked.patients[~held_out])


def test_pictures_of_one_patient_are_too_few(masked):
    one = Masked(masked.pictures[:2], masked.masks[:2], masked.patients[:2])
    with pytest.raises(LungkitError, match="2 pictures with masks are too few"):
        lung_finder.train("CT", one, epochs=1)


def test_the_command_says_what_it_accepts(tmp_path):
    asked = ["lungs", "MRI", "--data", str(tmp_path), "--out", str(tmp_path / "w.npz")]
    assert "give X-ray with one folder of masks, or CT" in str(CliRunner().invoke(cli.app, asked).exception)
