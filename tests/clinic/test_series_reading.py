"""A CT series gets one reading, from the slices that are least normal."""

import dataclasses
import json
import shutil
from datetime import date

import numpy as np
import pytest
from typer.testing import CliRunner

from lungkit import cli, config
from lungkit.clinic import series_reading
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.data import phantom, series
from lungkit.data.lungs3d import Lungs, Spacing
from lungkit.data.phantom.anatomy import LENGTH_MM
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import About
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


@pytest.mark.parametrize(("age", "words"), [(3, "the patient is 3 years old"), (None, "age is not known"), (40, None)])
def test_a_series_of_a_patient_whom_the_model_is_not_for_is_left_to_a_person(
    predictor, partly, monkeypatch, age, words
):
    monkeypatch.setattr(predictor, "card", dataclasses.replace(predictor.card, about=About(ages=(18, None))))
    born = None if age is None else date.today().year - age
    said = series_reading.read(predictor, only(partly), born)
    assert (said.decision == REVIEW) == bool(words)
    assert [words in reason for reason in said.reasons] == [True] * bool(words)


def test_a_refused_series_is_told_without_a_class_a_probability_or_a_share(predictor, partly, monkeypatch):
    # Of a version of real images, which would be another reason to leave the decision to a person.
    card = dataclasses.replace(predictor.card, about=About(ages=(18, None)), synthetic=False)
    monkeypatch.setattr(predictor, "card", card)
    said = series_reading.read(predictor, only(partly), date.today().year - 3)
    assert said.refusal == "Not for this patient"
    told, record = series_reading.sentences(said), series_reading.record(said)
    assert told[0] == f"not for this patient: no answer by {said.model}@{said.version}"
    assert "the patient is 3 years old" in told[1]
    assert [words for words in told if "patient" in words] == told[:2]
    assert record["reasons"] == [told[1]], "nothing that was computed"
    assert {one["carrying"] for one in record["slices"]} == {None}
    assert not [words for words in told if any(name in words for name in said.classes) or "rests on" in words]
    assert (record["decision"], record["label"], record["probabilities"]) == ("not for this patient", None, {})
    assert (record["affected"], record["extent"]["not_absent"]) == (None, None)
    assert {(one["label"], len(one["probabilities"])) for one in record["slices"]} == {(None, 0)}


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


def test_the_extent_in_the_lungs_and_the_slices_that_were_read_are_given(predictor, partly):
    one = only(partly)
    said = series_reading.read(predictor, one)
    assert said.sampled == series_reading.Sampled(
        SLICES, SLICES, (one.slices[0].position, one.slices[-1].position), in_lungs=True
    )
    spacing, cuts = one.spacing, phantom.make_patient("series", "Pneumonia", 46, SLICES, 224)
    true = sum(int(cut.lungs.sum()) for cut in cuts) * spacing[0] * spacing[1] * spacing[2] / 1000
    assert said.extent.millilitres == pytest.approx(true, rel=0.05)
    assert not said.extent.whole, "a phantom begins at the aortic arch"
    areas = np.array([cut.lungs.sum() for cut in cuts][::-1])  # series are ordered from the feet
    sick = np.array([each.reading.label != "Normal" for each in said.slices])
    assert said.extent.not_absent == pytest.approx(areas[sick].sum() / areas.sum(), abs=0.02)
    assert 0.02 < said.extent.high_attenuation < 0.15 and 0.01 < said.extent.dense < 0.3


def test_more_of_the_lungs_has_high_attenuation_where_there_is_more_ground_glass(predictor, tmp_path):
    shares = []
    for name, label in (("none", "Normal"), ("all", "COVID-19")):
        said = series_reading.read(predictor, only(folder(tmp_path / name, label)))
        shares.append((said.extent.high_attenuation, said.extent.not_absent))
    assert shares[1][0] > shares[0][0] + 0.1
    assert shares[1][1] > 0.9 > shares[0][1]


def test_slices_are_sampled_within_the_lungs(predictor, partly, monkeypatch):
    of_series, water = series.Series.slice, np.full((224, 224), 40.0, np.float32)

    def beyond(one, number):
        image = of_series(one, number)
        return image if 4 <= number < 12 else dataclasses.replace(image, pixels=water)

    monkeypatch.setattr(series.Series, "slice", beyond)
    monkeypatch.setattr(series_reading, "MOST", 4)
    said = series_reading.read(predictor, only(partly))
    assert [one.number for one in said.slices] == [4, 6, 9, 11]
    assert (said.sampled.count, said.sampled.among, said.extent.whole) == (4, 8, True)


@pytest.mark.parametrize("how", [{"original": False}, {"leave_out": (6, 7)}])
def test_slices_that_are_no_volume_have_no_extent_and_are_sampled_over_all(predictor, tmp_path, how):
    said = series_reading.read(predictor, only(folder(tmp_path / "ct", "COVID-19", **how)))
    assert (said.extent, said.sampled.in_lungs, said.sampled.among) == (None, False, len(said.slices))
    assert "the extent in the lungs was not measured" in series_reading.sentences(said)[-1]


def test_a_slice_that_was_not_read_counts_as_the_nearest_that_was():
    mask = np.zeros((6, 2, 2), bool)
    mask[1:5] = True
    lungs = Lungs(mask, np.full(mask.shape, -850, np.float32), (1, 1, 1), Spacing(1.0, 1.0, 1.0), mask.shape)
    assert series_reading.extent(lungs, [1, 4], [True, False]).not_absent == 0.5
    assert series_reading.extent(lungs, [1, 2, 4], [False, True, False]).not_absent == 0.5
    assert series_reading.extent(lungs, [3], [True]).not_absent == 1


def test_the_command_says_the_same_in_json(predictor, partly, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(predictor.version.folder.parents[1]))
        done = CliRunner().invoke(cli.app, ["series", str(partly), "--model", "ct-infection", "--json"])
        listed = CliRunner().invoke(cli.app, ["series", str(partly), "--json"])
        (tmp_path / "notes.txt").write_text("no image")
        nothing = CliRunner().invoke(cli.app, ["series", str(tmp_path), "--json"])
    told = json.loads(done.stdout)
    (one,) = told["series"]
    reading = one.pop("reading")
    assert json.loads(listed.stdout) == {"series": [one], "set_aside": []}
    said = series_reading.read(predictor, only(partly))
    assert (reading["decision"], reading["affected"]) == (said.decision, said.affected)
    assert reading["extent"] == dataclasses.asdict(said.extent)
    assert reading["sampled"]["places"] == [one["range"][0], one["range"][1]]
    carrying = [each["number"] for each in reading["slices"] if each["carrying"]]
    assert carrying == [said.slices[place].number for place in said.carrying]
    assert (one["slices"], one["read_as"]) == (SLICES, "volume")
    assert [each["rule"] for each in one["findings"]] == [str(each.rule) for each in only(partly).findings] != []
    assert (nothing.exit_code, json.loads(nothing.stdout.splitlines()[0])["series"]) == (1, [])
    (aside,) = json.loads(nothing.stdout.splitlines()[0])["set_aside"]
    assert (aside["source"], aside["rule"]) == ("notes.txt", "not a DICOM file")
