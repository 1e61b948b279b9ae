"""A registered version reads an image without TensorFlow, says how sure it is, and whether it knows such images."""

import dataclasses
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from sklearn.datasets import load_sample_images

from lungkit import config
from lungkit.clinic import decode, predictor
from lungkit.clinic.predictor import REVIEW, ModelPool, NoGraph, Predictor
from lungkit.data import images, preprocess
from lungkit.models import graph, registry
from lungkit.models.card import About
from lungkit.models.rule import DecisionRule, UncertaintyBand
from tests.answers import probabilities
from tests.cards import model_card

CAT = Path(__file__).with_name("cat.jpg")  # "Chelsea" by Stefan van der Walt, CC0, from scikit-image's sample data


@pytest.fixture
def tiny(tiny_version) -> Predictor:
    return Predictor(tiny_version)


@pytest.fixture
def slices(slice_files) -> list[images.Image]:
    return [images.read(file) for file in slice_files]


def _by_name(reading) -> dict[str, predictor.Check]:
    return {check.name: check for check in reading.checks}


def _flagged(reading) -> bool:
    return not all(check.passed for check in reading.checks)


def _decided(tiny: Predictor, slices: list[images.Image]) -> images.Image:
    """An image that the version decides about; it is made to be sure of all that pass its checks."""
    tiny.rule = dataclasses.replace(tiny.rule, band=None)
    return next(image for image in slices if tiny.read(image).decision != REVIEW)


def _changed(version: registry.Version, **card) -> registry.Version:
    return dataclasses.replace(version, card=dataclasses.replace(version.card, **card))


# --- a reading


def test_a_reading_is_what_keras_says_at_the_cards_temperature(tiny_version, tiny, slices):
    from lungkit.models import saved
    from lungkit.training import gradcam

    model = saved.load(tiny_version)
    tensors = np.stack([preprocess.prepare(image, tiny.spec).tensor for image in slices])
    expected = probabilities(model, tensors, tiny_version.card.rule.temperature)
    found = np.stack([tiny.read(image).probabilities for image in slices])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    heat = tiny.read(slices[0]).heat
    for cls in range(3):
        np.testing.assert_allclose(heat[cls], gradcam.gradcam(model, tensors[:1], cls)[0], atol=1e-3)


def test_a_reading_says_which_version_said_it_and_how_long_it_took(tiny, slices):
    started = time.perf_counter()
    reading = tiny.read(slices[0], started=started - 1)
    assert (reading.model, reading.version) == ("tiny-cnn", "v1")
    assert reading.classes == ("Normal", "Pneumonia", "COVID-19")
    assert 1000 < reading.milliseconds < 1000 + 1000 * (time.perf_counter() - started)
    assert tiny.read(slices[0]).milliseconds < 1000
    assert reading.rule == tiny.version.rule
    assert reading.rule.band and reading.rule.conformal and reading.rule.temperature


def test_the_label_is_the_class_at_the_operating_point(tiny, slices):
    for image in slices:
        reading = tiny.read(image)
        assert reading.label == reading.classes[reading.probabilities.argmax()]


@pytest.mark.parametrize("threshold", [0.0, 1.01])
def test_a_threshold_decides_between_two_classes(xray_version, threshold, shared_data):
    reads = Predictor(xray_version)
    reads.rule = DecisionRule(kind="threshold", threshold=threshold)
    reading = reads.read(_xrays(shared_data)[0])
    assert reading.label == reading.classes[int(threshold == 0)]


@pytest.mark.parametrize(
    ("probabilities", "times", "decision"),
    [
        ([0.9, 0.08, 0.02], 4, "Normal"),
        ([0.06, 0.14, 0.8], 4, "COVID-19"),
        ([0.06, 0.3, 0.64], 4, REVIEW),  # less than 4 times as likely as the next
        ([0.46, 0.27, 0.27], 1.2, REVIEW),  # outside the band, but the others together are likelier
    ],
)
def test_an_answer_within_the_band_is_for_review_and_one_outside_is_the_label(
    tiny, slices, probabilities, times, decision
):
    tiny.rule = dataclasses.replace(tiny.rule, band=UncertaintyBand(margin=float(np.log(times))))
    known = next(image for image in slices if not _flagged(tiny.read(image)))
    tensor, facts = decode.prepare(known, tiny.spec)
    outputs = {name: values[0] for name, values in tiny.graph(tensor[np.newaxis]).items()}
    reading = tiny.reading(facts, outputs | {"probabilities": np.array(probabilities)}, time.perf_counter())
    assert reading.decision == decision
    assert reading.label == reading.classes[int(np.argmax(probabilities))]


def test_an_image_that_fails_a_check_is_for_review_however_sure_the_model_is(tiny):
    tiny.rule = dataclasses.replace(tiny.rule, band=UncertaintyBand(margin=-1.0))
    reading = tiny.read(images.read(CAT))
    assert _flagged(reading)
    assert reading.decision == REVIEW
    assert reading.label in reading.classes


@pytest.mark.parametrize(
    ("in_file", "in_record", "passed"),
    [
        ("", 4.0, True),
        ("", 54.0, False),
        ("005Y", 54.0, False),
        ("005Y", None, True),
        ("054Y", 4.0, False),
        ("003M", None, False),
        ("006Y", None, False),
        ("", 6.9, False),
        ("", 6.0, True),
    ],
)
def test_a_patient_of_another_age_than_those_it_learned_from_is_for_review(
    tiny, slices, monkeypatch, in_file, in_record, passed
):
    monkeypatch.setattr(tiny, "card", dataclasses.replace(tiny.card, about=About(ages=(1, 5))))
    known = next(image for image in slices if not _flagged(tiny.read(image, age=3)))
    reading = tiny.read(dataclasses.replace(known, tags=known.tags | {"age": in_file}), age=in_record)
    age = _by_name(reading)["age"]
    assert age.passed == passed
    assert "learned from patients of 1 to 5 years" in age.words
    assert passed or reading.decision == REVIEW
    assert reading.refusal == ("" if passed else "Not for this patient")


def test_an_age_that_nobody_states_is_no_decision_where_the_card_states_ages(tiny, slices, monkeypatch):
    known = _decided(tiny, slices)
    assert tiny.read(known).decision != REVIEW
    monkeypatch.setattr(tiny, "card", dataclasses.replace(tiny.card, about=About(ages=(1, 5))))
    reading = tiny.read(known)
    assert (reading.decision, reading.refusal) == (REVIEW, "")
    assert "age is not known" in _by_name(reading)["age known"].words


@pytest.mark.parametrize(
    ("view", "orientation", "passed"),
    [("PA", "", True), ("LL", "", False), ("LATERAL", "", False), ("PA", "A\\F", False), ("", "P\\F", False)],
)
def test_another_view_than_those_it_learned_from_is_never_a_decision(
    tiny, slices, monkeypatch, view, orientation, passed
):
    known = _decided(tiny, slices)
    monkeypatch.setattr(tiny, "card", dataclasses.replace(tiny.card, about=About(views=("PA", "AP"))))
    reading = tiny.read(dataclasses.replace(known, tags=known.tags | {"view": view, "orientation": orientation}))
    assert _by_name(reading)["view"].passed == passed
    assert (reading.decision == REVIEW, reading.refusal) == (not passed, "" if passed else "Not for this image")


def test_an_image_of_another_modality_is_never_a_decision(tiny, slices):
    known = _decided(tiny, slices)
    reading = tiny.read(dataclasses.replace(known, modality="DX"))
    assert (reading.decision, reading.refusal) == (REVIEW, "Not for this image")
    assert "the file is an X-ray; this model reads CT images" in _by_name(reading)["modality"].words


@pytest.mark.parametrize("modality", ["CT", ""])
def test_a_ct_slice_says_nothing_of_how_it_lies_to_a_model_of_x_rays(tiny, slices, monkeypatch, modality):
    card = dataclasses.replace(tiny.card, modality="X-ray", about=About(views=("PA", "AP")))
    monkeypatch.setattr(tiny, "card", card)
    monkeypatch.setattr(tiny, "_limits", dataclasses.replace(tiny._limits, units="intensity"))
    lying = dataclasses.replace(slices[0], modality=modality, tags=slices[0].tags | {"orientation": "R\\F"})
    reading = tiny.read(lying)
    assert "orientation" not in _by_name(reading) and reading.decision == REVIEW
    as_ct = dataclasses.replace(slices[0], modality="CT", tags=slices[0].tags | {"orientation": "L\\P"})
    assert "view" not in _by_name(tiny.read(as_ct)), "its axes are not those of a lateral X-ray"


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("L\\P", ""),
        ("", ""),
        ("R\\P", "mirrored"),
        ("R\\A", "upside down"),
        ("L\\F", "not axial"),
        ("P\\F", "not axial"),
    ],
)
def test_a_ct_slice_that_its_header_calls_turned_mirrored_or_not_axial_is_never_a_decision(tiny, slices, stated, words):
    known = _decided(tiny, slices)
    reading = tiny.read(dataclasses.replace(known, tags=known.tags | {"orientation": stated}))
    orientation = _by_name(reading).get("orientation")
    assert (orientation is None or orientation.passed) == (not words)
    assert not words or words in orientation.words
    assert (reading.decision == REVIEW) == bool(words)


@pytest.mark.parametrize(("stated", "passed"), [("L\\F", True), ("", True), ("R\\F", False), ("F\\R", False)])
def test_an_x_ray_that_its_header_calls_turned_or_mirrored_is_never_a_decision(
    tiny, slices, monkeypatch, stated, passed
):
    known = _decided(tiny, slices)
    monkeypatch.setattr(tiny, "card", dataclasses.replace(tiny.card, modality="X-ray"))
    reading = tiny.read(dataclasses.replace(known, modality="", tags=known.tags | {"orientation": stated}))
    orientation = _by_name(reading).get("orientation")
    assert (orientation is None or orientation.passed) == passed
    assert (reading.decision == REVIEW) == (not passed)


@pytest.mark.parametrize(("shape", "expected"), [((300, 100), (64, 21)), ((90, 180), (32, 64)), ((77, 77), (64, 64))])
def test_the_heat_map_covers_the_image_and_not_the_margin_that_fills_the_square(tiny, slices, shape, expected):
    pixels = np.full(shape, -1000, np.float32)
    height, width = np.minimum(shape, 96)
    pixels[:height, :width] = slices[0].pixels[:height, :width]
    reading = tiny.read(dataclasses.replace(slices[0], pixels=pixels))
    assert reading.heat.shape == (3, *expected)
    assert reading.heat.dtype == np.float32
    assert (reading.heat >= 0).all()
    assert (reading.heat <= 1).all()
    whole = tiny.graph(preprocess.prepare(dataclasses.replace(slices[0], pixels=pixels), tiny.spec).tensor[None])[
        "heat"
    ][0]
    top, left = (64 - expected[0]) // 2, (64 - expected[1]) // 2
    np.testing.assert_array_equal(reading.heat, whole[:, top : top + expected[0], left : left + expected[1]])


def test_without_heat_maps_the_rest_is_the_same(tiny_version, tiny, slices):
    bare, full = Predictor(tiny_version, heat=False).read(slices[0]), tiny.read(slices[0])
    assert bare.heat is None
    np.testing.assert_allclose(bare.probabilities, full.probabilities, atol=1e-6)
    assert [check.passed for check in bare.checks] == [check.passed for check in full.checks]


def test_readings_at_the_same_time_are_not_mixed_up(tiny, slices):
    alone = [tiny.read(image).probabilities for image in slices]
    with ThreadPoolExecutor(8) as pool:
        together = [reading.probabilities for reading in pool.map(tiny.read, slices * 4)]
    np.testing.assert_allclose(together, alone * 4, atol=1e-6)


# --- does it know such images?


def _xrays(shared_data) -> list[images.Image]:
    folder = shared_data / "chest_xray_paediatric_224" / "test"
    return [images.read(file) for file in sorted(folder.glob("*/*"))[::12]]


def _brain_slices(shared_data) -> list[images.Image]:
    return [images.read(file) for file in sorted((shared_data / "brain_tumour_mri").glob("*/*.jpg"))[::100]]


def _white_page() -> images.Image:
    return images.Image(np.ones((400, 300), np.float32), "intensity", "", "page.png", {})


def _photos() -> list[images.Image]:
    pictures = [Picture.fromarray(photo).convert("L") for photo in load_sample_images().images]
    return [images.Image(np.asarray(photo, np.float32) / 255, "intensity", "", "photo.jpg", {}) for photo in pictures]


@pytest.mark.parametrize("model", ["tiny_version", "xray_version"])
def test_a_cat_and_other_photos_and_a_white_page_are_flagged(model, request):
    reads = Predictor(request.getfixturevalue(model))
    for image in [images.read(CAT), _white_page(), *_photos()]:
        assert not _by_name(reads.read(image))["kind"].passed, image.file


@pytest.mark.parametrize("model", ["tiny_version", "xray_version"])
def test_a_leg_an_abdomen_a_spine_a_head_and_a_brain_are_flagged(model, request, shared_data):
    reads = Predictor(request.getfixturevalue(model))
    others = [images.read(file) for file in sorted((shared_data / "dicom_samples").glob("*_offtarget*.dcm"))]
    assert len(others) == 4
    readings = [reads.read(image) for image in [*others, *_brain_slices(shared_data)]]
    assert [reading.decision for reading in readings] == [REVIEW] * len(readings)
    assert all(map(_flagged, readings))


def test_held_in_validation_images_are_rarely_flagged(tiny, slices):
    flagged = np.mean([_flagged(tiny.read(image)) for image in slices])
    assert flagged == pytest.approx(tiny.card.checks.flagged)
    assert flagged <= 0.05


def test_real_xrays_of_unseen_patients_mostly_pass(xray_version, shared_data):
    reads = Predictor(xray_version)
    assert np.mean([_flagged(reads.read(image)) for image in _xrays(shared_data)]) < 0.2


def test_a_picture_given_to_a_model_of_hounsfield_units_is_the_wrong_kind(tiny, slices):
    as_picture = dataclasses.replace(
        slices[0], pixels=preprocess.window_level(slices[0].pixels, *tiny.spec.window), units="intensity"
    )
    assert _by_name(tiny.read(slices[0]))["kind"].passed
    check = _by_name(tiny.read(as_picture))["kind"]
    assert not check.passed
    assert "not a CT slice in Hounsfield units" in check.words


def test_a_ct_slice_given_to_a_model_of_pictures_is_the_wrong_kind(xray_version, slices):
    check = _by_name(Predictor(xray_version).read(slices[0]))["kind"]
    assert not check.passed
    assert "learned from pictures without them" in check.words


def test_an_image_smaller_than_any_that_was_learned_from_is_flagged_with_what_is_needed(tiny, slices):
    small = dataclasses.replace(slices[0], pixels=slices[0].pixels[::2, ::2])
    size = _by_name(tiny.read(small))["size"]
    assert not size.passed
    assert (size.value, size.limit) == (48, 64)
    assert "48 x 48 pixels; this model needs 64" in size.words
    assert _by_name(tiny.read(slices[0]))["size"].passed


def test_every_check_has_words_and_finite_figures_whatever_the_image(tiny, slices):
    for image in [slices[0], _white_page(), images.read(CAT)]:
        for check in tiny.read(image).checks:
            assert check.words
            assert np.isfinite([check.value, check.limit]).all()
            assert isinstance(check.passed, bool)


# --- what is refused


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "checks.npz", "card.json", "model.keras"])
def test_a_damaged_version_is_refused_by_the_files_name(tiny_version, file):
    path = tiny_version.folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(registry.ModelDamaged, match=file.replace(".", r"\.")):
        Predictor(tiny_version)


def _without_graph(name: str, **card) -> registry.Version:
    return registry.add(name, model_card(synthetic=False, **card), lambda folder: (folder / "model").write_bytes(b"1"))


def test_a_version_without_a_graph_is_refused_with_what_to_do():
    with pytest.raises(NoGraph, match=r"old-cnn@v1 has no exported graph.*register it again"):
        Predictor(_without_graph("old-cnn"))


def test_a_version_without_limits_for_its_image_checks_is_refused_with_what_to_do(tiny_version):
    card = dataclasses.replace(tiny_version.card, checks=None)
    with pytest.raises(NoGraph, match=r"tiny-cnn@v1 has no limits for its image checks.*register it again"):
        Predictor(dataclasses.replace(tiny_version, card=card))


# --- the models there are


def _registered_again(version: registry.Version, name: str, promote: bool = True, **card) -> registry.Version:
    kept = dataclasses.replace(version.card, **card)

    def copy(folder: Path) -> None:
        for file in version.card.files:
            shutil.copyfile(version.folder / file, folder / file)

    return registry.add(name, kept, copy, promote=promote)


def test_models_without_a_graph_or_an_active_version_are_not_offered(tiny_version):
    _without_graph("old-cnn")
    _registered_again(tiny_version, "draft-cnn", promote=False)
    assert ModelPool().names() == ["tiny-cnn"]
    assert ModelPool().default() == "tiny-cnn"


def test_a_model_trained_on_patients_is_the_default_before_one_trained_on_a_phantom(tiny_version):
    _registered_again(tiny_version, "zz-patients", synthetic=False)
    _registered_again(tiny_version, "aa-phantom")
    assert ModelPool().names() == ["aa-phantom", "tiny-cnn", "zz-patients"]
    assert ModelPool().default() == "zz-patients"


def test_models_are_offered_by_what_they_answer_those_of_one_modality_together_a_phantoms_last(tiny_version):
    asked = {"about": About(question="Chest X-ray: normal or pneumonia?")}
    _registered_again(tiny_version, "chest-xray-pneumonia", synthetic=False, modality="X-ray", **asked)
    _registered_again(tiny_version, "a-brain", synthetic=False, modality="MRI")
    _registered_again(tiny_version, "z-xray", synthetic=False, modality="X-ray")
    choices = ModelPool().choices()
    assert [name for _, name in choices] == ["chest-xray-pneumonia", "z-xray", "a-brain", "tiny-cnn"]
    assert choices[0][0] == "Chest X-ray: normal or pneumonia? (chest-xray-pneumonia)"
    assert choices[2][0].startswith("Brain MRI: ")
    assert choices[3][0].endswith("(tiny-cnn, synthetic)")
    assert ModelPool().default() == "chest-xray-pneumonia"


def test_no_model_at_all_is_said_with_what_to_do():
    assert ModelPool().names() == []
    with pytest.raises(NoGraph, match=r"no model is ready.*lungkit run"):
        ModelPool().default()


def test_models_without_graphs_are_named_where_nothing_else_is_there():
    _without_graph("old-cnn")
    with pytest.raises(NoGraph, match="without a graph: old-cnn"):
        ModelPool().default()


def test_a_damaged_card_is_named_where_nothing_else_is_there(tiny_version):
    (tiny_version.folder / "card.json").write_text("{")
    assert ModelPool().names() == []
    with pytest.raises(registry.ModelDamaged, match=r"tiny-cnn@v1: card\.json is not JSON"):
        ModelPool().default()


def test_a_promoted_version_reads_at_the_next_call_and_a_rolled_back_one_again(tiny_version):
    models = ModelPool()
    assert models.get("tiny-cnn").version.version == "v1"
    _registered_again(tiny_version, "tiny-cnn")
    assert models.get("tiny-cnn").version.version == "v2"
    registry.rollback("tiny-cnn")
    assert models.get("tiny-cnn").version.version == "v1"


def test_a_version_is_compiled_once_while_it_stays_active(tiny_version):
    models = ModelPool()
    assert models.get("tiny-cnn") is models.get("tiny-cnn")


def test_a_version_damaged_before_it_is_first_used_is_refused_and_read_once_mended(tiny_version):
    models, file = ModelPool(), tiny_version.folder / graph.FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(registry.ModelDamaged, match=r"graph\.xml was changed"):
        models.get("tiny-cnn")
    file.write_bytes(whole)
    assert models.get("tiny-cnn").version == tiny_version


def test_a_version_in_use_reads_on_as_it_was_when_its_files_are_damaged(tiny_version, slices):
    expected = Predictor(tiny_version).read(slices[0]).probabilities
    in_use, weights = ModelPool().get("tiny-cnn"), tiny_version.folder / "graph.bin"
    with weights.open("r+b") as file:  # in place, as a failing disk does
        file.write(bytes(weights.stat().st_size))
    np.testing.assert_array_equal(in_use.read(slices[0]).probabilities, expected)
    weights.write_bytes(b"")
    np.testing.assert_array_equal(in_use.read(slices[0]).probabilities, expected)


def test_a_kernel_keeps_a_few_models_only(tiny_version):
    for name in ("b-cnn", "c-cnn"):
        _registered_again(tiny_version, name)
    models = ModelPool()
    first = models.get("tiny-cnn")
    models.get("b-cnn")
    models.get("c-cnn")
    assert models.get("tiny-cnn") is not first


# --- a clinician's kernel


def test_reading_takes_no_training_library_and_less_than_250_mb(tiny_version, slice_files):
    code = (
        "import sys\n"
        "from lungkit.clinic.predictor import ModelPool\n"
        "from lungkit.data import images\n"
        "models = ModelPool()\n"
        f"models.get(models.default()).read(images.read({str(slice_files[0])!r}))\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)\n"
        "import psutil\n"
        "print(*sorted(heavy), psutil.Process().memory_info().rss >> 20)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 250  # also fails where a library's name stands before the number
    assert config.artifacts_dir() == tiny_version.folder.parents[1]
