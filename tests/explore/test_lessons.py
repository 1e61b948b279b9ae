"""The exercises measure what they say: leaks, shortcuts, windows, luck, rare classes."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from sklearn.metrics import roc_auc_score

from lungkit.data import dataset, preprocess
from lungkit.errors import LungkitError
from lungkit.explore import lessons, window
from lungkit.training import tasks

RNG = np.random.default_rng(3)
PATIENTS = np.repeat(np.arange(40), 4)
LABELS = np.repeat(np.arange(40) % 2, 4)
OWN = RNG.normal(size=(40, 8))  # what each patient looks like, whatever the class
PICTURES = OWN[PATIENTS] + 0.01 * RNG.normal(size=(160, 8))


# --- 01


def test_folds_by_patient_keep_each_patient_in_one_fold_and_by_image_do_not():
    by_patient = lessons.folds(LABELS, PATIENTS)
    assert all(len(set(by_patient[one == PATIENTS])) == 1 for one in range(40))
    by_image = lessons.folds(LABELS, PATIENTS, "image")
    assert max(len(set(by_image[one == PATIENTS])) for one in range(40)) > 1
    assert set(by_patient) == set(by_image) == set(range(lessons.FOLDS))
    assert (lessons.folds(LABELS, PATIENTS) == by_patient).all()


def test_folds_are_fewer_where_a_class_has_few_patients_and_refused_where_it_has_one():
    few = lessons.folds(np.array([0, 0, 0, 0, 1, 1]), np.array([1, 2, 3, 4, 5, 6]))
    assert set(few) == {0, 1}
    with pytest.raises(LungkitError, match="a class has one patient"):
        lessons.folds(np.array([0, 0, 1, 1]), np.array([1, 2, 3, 3]))
    with pytest.raises(LungkitError, match="no split by 'hospital'; there are: patient, image"):
        lessons.folds(LABELS, PATIENTS, "hospital")


def test_the_nearest_neighbour_knows_patients_by_image_and_nothing_by_patient():
    by_image, by_patient = (
        lessons.nearest_neighbour(PICTURES, LABELS, lessons.folds(LABELS, PATIENTS, by)) for by in ("image", "patient")
    )
    assert by_image.mean() > 0.95
    assert by_patient.mean() < 0.7
    said = lessons.leak_says(by_image, by_patient, PATIENTS, 12)
    assert said.startswith("Split by image, 12 duplicate pairs lie on two sides")
    assert "knows about these patients, not about the disease: +0." in said


def test_where_each_patient_has_one_image_the_sentence_says_that_nothing_can_leak():
    right = RNG.random(60) < 0.5
    assert lessons.leak_says(right, right, np.arange(60), 0).endswith("so a split by image is a split by patient.")


def test_crossing_counts_pairs_whose_images_are_in_two_folds():
    pairs = pd.DataFrame({"file_a": ["a", "a", "b"], "file_b": ["b", "c", "gone"]})
    assert lessons.crossing(pairs, ["a", "b", "c"], np.array([0, 0, 1])) == 1


def test_a_probe_reads_the_class_where_a_feature_tells_it_and_not_where_none_does():
    fold = lessons.folds(LABELS, PATIENTS)
    told = lessons.probe((LABELS + RNG.normal(0, 0.5, 160))[:, None], LABELS, fold)
    assert roc_auc_score(LABELS, told[:, 1]) > 0.85
    untold = lessons.probe(RNG.normal(size=(160, 1)), LABELS, fold)
    assert 0.35 < roc_auc_score(LABELS, untold[:, 1]) < 0.65


def test_the_sentence_on_shortcuts_names_only_what_is_shown():
    said = lessons.shortcut_says({"brightness": (0.48, 0.41, 0.55), "sharpness": (0.83, 0.82, 0.85)})
    assert "sharpness 0.830 (0.820–0.850)" in said and "brightness" not in said
    assert lessons.shortcut_says({"size": (0.5, 0.41, 0.59)}).startswith("None of these is shown")


# --- 02


def _lesion(patient, inside=0.0, outside=-800.0):
    return lessons.Lesion(inside + RNG.normal(0, 20, 50), outside + RNG.normal(0, 20, 200), patient)


def test_a_window_that_makes_both_black_tells_lesion_and_lung_no_longer_apart():
    found = [_lesion(f"P{n}", inside=-400.0) for n in range(12)]
    table = lessons.through_windows(found, window.CT)
    assert table.loc["lung", "auc"] == 1
    assert table.loc["mediastinum", ["auc", "low", "high", "black"]].tolist() == [0.5, 0.5, 0.5, 1]
    assert table.loc["lung", "contrast"] == pytest.approx(400 / 1500, abs=0.01)
    said = lessons.windows_say(found, window.CT)
    assert "of 1.000 (1.000–1.000) in the window 'lung' and of 0.500 (0.500–0.500) in the window 'mediastinum'" in said
    assert "makes 100% of the lung black" in said


def test_without_a_lesion_mask_windows_are_not_compared():
    with pytest.raises(LungkitError, match="no image of this split has a lesion mask"):
        lessons.through_windows([], window.CT)
    assert lessons.windows_say([], window.CT).startswith("No image here has a lesion mask")


def test_a_lesion_of_greys_is_compared_with_the_ring_around_it(tmp_path):
    picture, mask = np.full((64, 64), 40, np.uint8), np.zeros((64, 64), np.uint8)
    picture[20:30, 20:30], mask[20:30, 20:30], picture[50:] = 200, 255, 250  # what is far away is not compared
    for name, pixels in (("a.png", picture), ("m.png", mask), ("b.png", picture)):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
    rows = {"file": ["a.png", "b.png"], "label": ["x", "y"], "patient_id": ["1", "2"], "split": "train"}
    pd.DataFrame(rows | {"mask": ["m.png", ""]}).to_csv(tmp_path / "labels.csv", index=False)
    (one,) = lessons.lesions(dataset.load(tmp_path))
    assert (len(one.inside), set(one.inside), set(one.outside)) == (100, {200}, {40})


def test_the_sentence_on_statistics_says_how_far_they_move():
    said = lessons.statistics_say(
        preprocess.Preprocessing(mean=0.5, std=0.2), preprocess.Preprocessing(mean=0.499, std=0.202)
    )
    assert "moves by −0.0050 standard deviations, and the standard deviation by +1.00%. Little leaks here" in said
    far = lessons.statistics_say(
        preprocess.Preprocessing(mean=0.5, std=0.2), preprocess.Preprocessing(mean=0.6, std=0.2)
    )
    assert "A good deal leaks here" in far


# --- 03


# About 8 s: a network is prepared, trained twice from two starts, and once more from one.
def test_short_trainings_follow_from_their_seed_alone(graded_set):
    task = tasks.cnn_task(str(graded_set), profile="smoke")
    first = lessons.short_trainings(task, [1, 2], batches=2, epochs=1)
    assert first[0] != first[1]
    assert lessons.short_trainings(task, [2], batches=2, epochs=1) == pytest.approx([first[1]], rel=1e-5)


@pytest.fixture
def graded_set(tmp_path):
    root, rows = tmp_path / "set", []
    root.mkdir()
    for number in range(36):
        PIL.Image.fromarray(RNG.integers(0, 255, (24, 24)).astype(np.uint8)).save(root / f"{number}.png")
        rows.append((f"{number}.png", ("a", "b")[number % 2], f"P{number}", ("train", "val", "test")[number // 2 % 3]))
    pd.DataFrame(rows, columns=["file", "label", "patient_id", "split"]).to_csv(root / "labels.csv", index=False)
    return root


def test_the_sentence_on_seeds_gives_the_spread():
    said = lessons.seeds_say([1.0, 1.2, 1.4])
    assert said.startswith(
        "The same settings from 3 starts give validation losses from 1.000 to 1.400, with a standard"
    )
    assert "0.200" in said


def test_a_class_is_made_rare_and_the_others_keep_all_their_images():
    labels = np.repeat([0, 1, 2], 40)
    kept = labels[lessons.made_rare(labels, 2, 0.1)]
    assert np.bincount(kept).tolist() == [40, 40, 4]
    assert np.bincount(labels[lessons.made_rare(labels, 2, 0.0)]).tolist() == [40, 40, 2]


def test_class_weights_find_more_of_a_rare_class():
    labels = np.repeat([0, 1], [190, 10])
    pictures = RNG.normal(size=(200, 4)) + 1.2 * labels[:, None]
    unseen, true = RNG.normal(size=(80, 4)) + 1.2 * np.repeat([0, 1], 40)[:, None], np.repeat([0, 1], 40)
    weights = {0: 200 / 380, 1: 10.0}
    plain, weighted = lessons.with_and_without_weights(pictures, labels, unseen, weights)
    assert (weighted[true == 1] == 1).mean() > (plain[true == 1] == 1).mean() + 0.2
    said = lessons.weights_say(true, plain, weighted, 1, "rare", np.arange(80))
    assert said.startswith("On validation: of rare, ") and said.endswith("they add no knowledge.")
