"""A CT series gets one reading, from the slices that are least normal."""

import dataclasses
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from lungkit import cli, config
from lungkit.clinic import series_reading
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.data import phantom, series
from lungkit.data.phantom.anatomy import LENGTH_MM
from lungkit.errors import LungkitError
from lungkit.models import registry
from tests.shipped import export

SLICES = 16


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """The shipped model of phantoms."""
    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(home / "artifacts"))
        shutil.copytree(export(home / "shipped") / "ct-infection", config.artifacts_dir() / "ct-infection")
        yield Predictor(registry.find("ct-infection"), heat=False)


def folder(path, label, affected_mm=(0.0, LENGTH_MM), original=True, leave_out=()):
    """A folder with a phantom's series."""
    path.mkdir()
    for cut in phantom.make_patient("series", label, 46, SLICES, 224, affected_mm):
        if cut.index not in leave_out:
            phantom.write_dicom(cut, path / f"{cut.index:02}.dcm", original=original)
    return path


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Pneumonia in the six slices from the fifth to the tenth."""
    step = LENGTH_MM / SLICES
    return folder(tmp_path_factory.mktemp("partly") / "ct", "Pneumonia", (4 * step, 10 * step))


def only(source) -> series.Series:
    (one,) = series.read(source).series
    return one


def test_lesions_in_few_slices_decide_and_the_slices_are_named(predictor, partly):
    said = series_reading.read(predictor, only(partly))
    assert (said.decision, said.label, said.reasons) == ("Pneumonia", "Pneumonia", ())
    names = {said.slices[place].source for place in said.carrying}
    assert len(names) == SLICES // 4
    assert len(names & {f"{number:02}.dcm" for number in range(4, 10)}) >= 3, "the last slice misleads, too"
    assert 0.2 < said.affected < 0.6
    rows = np.stack([said.slices[place].reading.probabilities for place in said.carrying])
    assert said.probabilities == pytest.approx(rows.mean(axis=0))


def test_each_slice_is_read_as_a_single_image_is(predictor, partly):
    said, one = series_reading.read(predictor, only(partly)), only(partly)
    for place in (0, 7, 15):
        alone = predictor.read(one.slice(said.slices[place].number))
        assert said.slices[place].reading.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        assert said.slices[place].position == one.slices[said.slices[place].number].position


def test_a_series_without_lesions_is_normal_or_left_to_a_person(predictor, tmp_path):
    said = series_reading.read(predictor, only(folder(tmp_path / "ct", "Normal")))
    assert (said.label, said.affected < 0.2) == ("Normal", True)
    assert said.decision == (REVIEW if said.reasons else "Normal")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"original": False}, "the series is read slice by slice: derived series"),
        ({"leave_out": (6, 7)}, "the series is read slice by slice: missing slices"),
    ],
)
def test_what_is_no_whole_volume_is_left_to_a_person(predictor, tmp_path, how, reason):
    said = series_reading.read(predictor, only(folder(tmp_path / "ct", "COVID-19", **how)))
    assert (said.decision, said.label, said.reasons) == (REVIEW, "COVID-19", (reason,))


def test_a_version_of_real_images_decides_nothing_on_series_as_it_was_measured_on_slices(
    predictor, partly, monkeypatch
):
    monkeypatch.setattr(predictor, "card", dataclasses.replace(predictor.card, synthetic=False))
    said = series_reading.read(predictor, only(partly))
    assert (said.decision, said.label) == (REVIEW, "Pneumonia")
    assert said.reasons == ("ct-infection@v2 was measured on single slices, not on whole series",)


def test_a_series_unlike_what_the_version_learned_from_is_left_to_a_person(predictor, partly, monkeypatch):
    of_series, flat = series.Series.slice, np.full((224, 224), 300.0, np.float32)
    monkeypatch.setattr(
        series.Series, "slice", lambda one, number: dataclasses.replace(of_series(one, number), pixels=flat)
    )
    said = series_reading.read(predictor, only(partly))
    assert said.decision == REVIEW
    assert "4 of the 4 slices that it rests on do not pass the check 'kind'" in said.reasons


def test_more_slices_than_are_read_are_sampled_evenly(predictor, partly, monkeypatch):
    monkeypatch.setattr(series_reading, "MOST", 6)
    assert [one.number for one in series_reading.read(predictor, only(partly)).slices] == [0, 3, 6, 9, 12, 15]


def test_the_command_lists_a_series_and_says_what_the_model_says(predictor, partly, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(predictor.version.folder.parents[1]))
        done = CliRunner().invoke(cli.app, ["series", str(partly), "--model", "ct-infection"])
        empty = folder(tmp_path / "ct", "Normal", leave_out=range(1, SLICES))
        one_slice = CliRunner().invoke(cli.app, ["series", str(empty), "--model", "ct-infection"])
    words = " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    assert "1: Pneumonia (Normal 0.0" in words and "by ct-infection@v2 1: rests on 4 of 16 slices, from -" in words
    assert "1: uncertain: review" in one_slice.output
    assert "the series is read slice by slice: one slice" in " ".join(one_slice.output.split())


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"modality": "X-ray"}, "reads X-ray, not CT"),
        ({"classes": ("Benign", "Malignant", "Other")}, "has no class that says that nothing was found"),
    ],
)
def test_a_version_that_cannot_read_a_series_says_why(predictor, partly, monkeypatch, changed, refused):
    card = dataclasses.replace(predictor.card, **changed)
    monkeypatch.setattr(predictor, "card", card)
    monkeypatch.setattr(predictor, "classes", card.classes)
    with pytest.raises(LungkitError, match=refused):
        series_reading.read(predictor, only(partly))
