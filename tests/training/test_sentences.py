"""Sentences of the notebooks: each with numbers that make another sentence, or the old fixed one, false."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lungkit import wording
from lungkit.data import quality
from lungkit.models import registry
from lungkit.models.card import ConformalFigures, Figure, Measured
from lungkit.models.rule import DecisionRule
from lungkit.training import activation, evaluation, sentences
from tests.cards import model_card
from tests.graded import CLASSES, MIDDLE, answers

TWO = ("Normal", "COVID-19")


def evaluated(y, p, classes=TWO, patients=None, threshold=0.5):
    point = DecisionRule(kind="threshold", threshold=threshold, chosen_on="validation", criterion="Youden's J")
    y, p = np.asarray(y), np.asarray(p, float)
    patients = np.arange(len(y)) if patients is None else patients
    return evaluation.evaluate(y, np.column_stack([1 - p, p]), patients, classes, point, n_boot=300)


def chest(n=200, sick=0.768, skill=0.0, seed=1):
    """Labels and probabilities: of `n` patients so many are sick, told apart as well as `skill` says."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) < round(n * sick)).astype(int)
    return y, 1 / (1 + np.exp(-(rng.normal(size=n) + skill * (2 * y - 1))))


def test_grades_are_said_to_agree_beyond_chance_or_not():
    y, p = answers()
    good, bad = (evaluation.evaluate(y, of, range(len(y)), CLASSES, MIDDLE, n_boot=200) for of in (p, p[::-1]))
    told = "\n".join(sentences.evaluation_says(good, 0, False))
    assert f"agree with the true ones beyond chance: quadratic kappa {wording.figure(*good.value('kappa'))}" in told
    assert "without the images of CT-1" in told and "grades off on average" in told
    assert "not shown to agree with the true ones beyond chance" in "".join(sentences.evaluation_says(bad, 0, False))
    assert "kappa" not in "".join(sentences.evaluation_says(evaluated(*chest()), 0, False))


# --- what always answering the largest class gives


def test_an_accuracy_below_that_of_the_largest_class_is_said_to_be():
    y, _ = chest()
    p = np.where(np.arange(200) % 10 < 6, np.where(y == 1, 0.9, 0.1), np.where(y == 1, 0.1, 0.9))  # right for 60 %
    measured = evaluated(y, p)
    told = "\n".join(sentences.evaluation_says(measured, 0, False))
    assert "right **less** often than always answering 'COVID-19': 0.600" in told
    assert "against 0.770, a difference of −0.170" in told
    assert "where always answering 'COVID-19' gives 0.770" in sentences.registered_says("active", measured.record)


def test_an_accuracy_above_or_open_is_said_to_be():
    better = "\n".join(sentences.evaluation_says(evaluated(*chest(skill=3.0)), 0, False))
    assert "Its decisions are right more often than always answering 'COVID-19'" in better
    y, _ = chest(n=40)
    p = np.where(np.isin(np.arange(40), [0, 39]), 1 - y, y) * 0.8 + 0.1
    y[:2], p[:2] = 1, 0.9
    p[[2, 3, 4, 5, 6, 7, 8]] = 0.1
    middling = "\n".join(sentences.evaluation_says(evaluated(y, p), 0, False))
    assert "not shown to be right more often" in middling


def test_a_model_that_ranks_by_chance_or_backwards_is_not_said_to_tell_classes_apart():
    assert "is not shown to tell the classes apart" in sentences.evaluation_says(evaluated(*chest()), 0, False)[0]
    assert "tells the classes apart: AUC" in sentences.evaluation_says(evaluated(*chest(skill=1.0)), 0, False)[0]
    assert "the wrong way round" in sentences.evaluation_says(evaluated(*chest(skill=-1.0)), 0, False)[0]
    one = evaluated([0, 1], [0.2, 0.9], patients=["a", "a"])
    assert "With one patient nothing is known of others" in sentences.evaluation_says(one, 0, False)[0]
    alone = evaluated([1, 1], [0.2, 0.9])
    assert "cannot be said" in sentences.evaluation_says(alone, 0, False)[0]


def test_the_class_missed_most_is_named_only_where_one_is():
    perfect = "\n".join(sentences.evaluation_says(evaluated(*chest(skill=9.0)), 0, False))
    assert "missed most often" not in perfect and "Of each class the same share is found: 1.000." in perfect
    y, p = chest(skill=9.0)
    p[:30] = 0.1
    assert "'COVID-19' is missed most often: 0.80" in "\n".join(sentences.evaluation_says(evaluated(y, p), 0, False))


def test_images_seen_in_training_drawings_and_other_sources_are_named():
    measured = evaluated(*chest(skill=1.0))
    plain = "\n".join(sentences.evaluation_says(measured, 0, False))
    assert "seen in training" not in plain and "drawings" not in plain and "patients like these" in plain
    assert "**7 images of this part were seen in training" in "\n".join(sentences.evaluation_says(measured, 7, False))
    assert "nothing about patients" in "\n".join(sentences.evaluation_says(measured, 0, True))
    other = "\n".join(sentences.evaluation_says(measured, 0, False, own=False))
    assert "from another source" in other and "patients like these" not in other


def test_the_headline_has_accuracy_next_to_the_constant_balanced_accuracy_and_auc():
    measured = evaluated(*chest(skill=1.0))
    line = sentences.headline(
        measured.to_dict() | {"model": "m@v1", "data": "mosmed", "split": "test", "synthetic": False}
    )
    accuracy, balanced, auc = (
        wording.figure(*measured.value(name)) for name in ("accuracy", "balanced_accuracy", "auc")
    )
    assert line == (
        f"m@v1 on mosmed, test split: accuracy {accuracy}, where always answering 'COVID-19' gives 0.770; balanced "
        f"accuracy {balanced}, by chance 0.500; AUC {auc}; 200 images of 200 patients"
    )


def test_the_headline_of_a_card_from_before_there_was_a_largest_class_and_of_one_patient():
    figures = {"model": "m", "data": "d", "split": "test", "classes": ["a", "b"], "n": 1, "patients": 1}
    figures |= {"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": None, "intervals": {"accuracy": [None, None]}}
    assert sentences.headline(figures) == (
        "m on d, test split: accuracy 0.500; balanced accuracy 0.500, by chance 0.500; AUC –; 1 image of 1 patient"
    )


# --- fine-tuning


@pytest.mark.parametrize(
    ("losses", "val_losses", "says"),
    [
        (
            [1.803, 1.115, 1.084],
            [1.110, 1.108, 1.037],
            ["1.803, worse than equal probabilities. The loss was still fall"],
        ),
        ([0.9, 0.8, 0.7], [0.6, 0.7, 0.8], ["lost what it began with. No later epoch was better."]),
        ([1.8, 0.8, 0.3], [1.2, 0.5, 0.3], ["lower than the head alone."]),
    ],
)
def test_fine_tuning_is_told_by_its_losses_next_to_the_head_that_it_began_with(losses, val_losses, says):
    told = sentences.fine_tuning_says(pd.DataFrame({"loss": losses, "val_loss": val_losses}), 0.449, 3)
    assert told[0].startswith(
        f"Validation loss: 0.449 of the head that fine-tuning begins with, {val_losses[0]:.3f} after"
    )
    assert told[0].endswith("Equal probabilities have 1.099.")
    assert all(text in told[1] for text in says), told


# --- conformal sets, validation and test


@pytest.mark.parametrize(
    ("coverage", "interval", "named", "words"),
    [
        (0.80, [0.70, 0.86], 1.0, ["**less often than stated**", "the likeliest class alone"]),
        (0.97, [0.93, 0.99], 1.4, ["more often than stated", "more where the model is unsure"]),
        (0.91, [0.80, 0.97], 2.0, ["as far as these patients can tell", "which rules nothing out"]),
        (0.91, [None, None], 1.4, ["of one patient"]),
    ],
)
def test_conformal_sets_are_said_to_keep_their_level_only_where_they_do(coverage, interval, named, words):
    figures = ConformalFigures(level=0.9, coverage=coverage, interval=interval, classes_named=named)
    told = sentences.conformal_says(figures, 2, "test")
    assert all(word in told for word in words), told
    assert f"{coverage:.3f}" in told and "**90%**" in told


def test_the_class_that_conformal_sets_keep_least_often_is_named_only_where_it_is_below_the_level():
    def sets(coverage, low, high):
        return ConformalFigures(level=0.9, coverage=coverage, interval=[low, high], classes_named=1.2)

    whole = sets(0.88, 0.8, 0.93)
    below = {"Normal": sets(0.448, 0.26, 0.65), "Flu": sets(0.7, 0.6, 0.8), "COVID-19": sets(0.97, 0.93, 0.99)}
    told = sentences.conformal_says(whole, 3, "test", below)
    assert told.endswith("Least often for Normal: 0.448 (0.260–0.650), **below the level**.")
    open_still = {"Normal": sets(0.8, 0.6, 0.95), "COVID-19": sets(0.97, 0.93, 0.99)}
    assert "Least often" not in sentences.conformal_says(whole, 2, "test", open_still)


def test_a_test_that_went_better_than_validation_is_not_said_to_have_gone_worse():
    val, test = (Measured(figures={"auc": Figure(auc), "balanced_accuracy": Figure(0.8)}) for auc in (0.90, 0.93))
    told = sentences.validation_and_test(val, test, "test")
    assert "On the test part: AUC 0.030 higher, balanced accuracy as on validation." in told
    assert "AUC 0.030 lower" in sentences.validation_and_test(test, val, "test")
    assert sentences.validation_and_test(Measured(), Measured(), "test").startswith("Settings")


# --- the data


def manifest(**sides):
    return pd.DataFrame({"split": [side for side, count in sides.items() for _ in range(count)]})


def looked(findings=(), near=0, correlation=0.98, calibrated=True, patients=200):
    table = pd.DataFrame(findings, columns=["finding", "severity", "count"])
    pairs = pd.DataFrame({"kind": ["near"] * near, "two_patients": [True] * near})
    thresholds = pd.DataFrame(
        {"images": [300], "patients": [patients], "correlation": [correlation], "calibrated": [calibrated]},
        index=pd.Index(["CT"], name="modality"),
    )
    return SimpleNamespace(findings=table, duplicates=pairs, thresholds=thresholds)


def test_an_error_that_training_leaves_in_is_not_said_to_be_kept_out():
    found = looked([("near duplicates across splits", "error", 6), ("class imbalance", "warning", 9)], near=6)
    told = "\n".join(sentences.audit_says(found, manifest(train=10), "set_aside"))
    assert "Marked *error*: near duplicates across splits (6)." in told
    assert "removes none of these images" in told
    assert "Marked *warning*: class imbalance (9)." in told


def test_what_is_kept_out_of_training_is_counted():
    found = looked([("unreadable files", "error", 3)])
    told = "\n".join(sentences.audit_says(found, manifest(train=10, refused=3, set_aside=1), "set_aside"))
    assert "removes none" not in told, "unreadable images are left out"
    assert "3 images that cannot be read, 1 image of patients on two sides" in told
    clean = "\n".join(sentences.audit_says(looked(), manifest(train=10), "refuse"))
    assert "No finding is marked *error*." in clean
    assert "such a patient stops a run" in clean and "stops a run" not in told
    assert "No image is left out" in "\n".join(sentences.audit_says(looked(), manifest(train=10), "set_aside"))


def test_near_duplicates_are_said_to_rest_on_what_was_measured():
    def told(**how):
        return "\n".join(sentences.audit_says(looked(**how), manifest(train=1), "set_aside"))

    assert "No near-duplicate pair was found" in told() and "of CT of different patients" in told()
    assert "Found by likeness: 6 near-duplicate pairs, 6 of two patients." in told(near=6)
    mine = looked(near=1)
    mine.duplicates["two_patients"] = False
    assert "1 near-duplicate pair, none of two patients." in "\n".join(
        sentences.audit_says(mine, manifest(train=1), "set_aside")
    )
    assert "set by the 200 known patients here: chance should bring one pair above it in ten such sets" in told()
    assert "a fixed number: too few patients are known" in told(calibrated=False)
    assert "can be chance" in told(correlation=quality.MOST_CORRELATION)


def test_checks_that_found_nothing_are_one_line():
    table = pd.DataFrame({"finding": ["a", "b", "c"], "count": [0, 2, 0]})
    assert sentences.found_nothing(table) == "Looked for, none found: a, c."
    assert sentences.found_nothing(table[table["count"] > 0]) == ""


def test_pairs_say_whose_they_are_and_how_alike():
    pairs = pd.DataFrame(
        {"two_patients": [True, False], "two_labels": [False, True], "distance": [4, 0], "correlation": [0.98, 1.0]}
    )
    assert sentences.pair_titles(pairs) == [
        "two patients\n4 of 64 bits, correlation 0.980",
        "one patient, two labels\n0 of 64 bits, correlation 1.000",
    ]


def test_8_bit_ct_is_not_said_to_be_in_the_lung_window():
    window = (-600.0, 1500.0)
    assert sentences.shown_as(["HU"], window, None) == (
        "Hounsfield units through the lung window (level −600, width 1500 HU)"
    )
    assert sentences.shown_as(["intensity"], window, None) == "greys as they are stored, without a window"
    assert "48 of 255 becomes black and 183 white" in sentences.shown_as(["intensity"], window, (48, 183))
    both = sentences.shown_as(["HU", "intensity"], window, (48, 183))
    assert "lung window" in both and "183 white" in both
    assert sentences.window_name("intensity", None) == "as stored"
    assert sentences.window_name("intensity", (48, 183)) == "stretched greys"
    assert sentences.window_name("HU", (48, 183)) == "lung window"


def test_what_a_window_cuts_off_and_who_is_left_out_is_counted():
    told = "\n".join(sentences.preprocessing_says(manifest(train=5, set_aside=2, refused=1), 0.4, 0.02))
    assert "makes 40.0% of the training pictures black and 2.0% white" in told
    assert "2 images set aside and 1 image refused" in told
    clean = "\n".join(sentences.preprocessing_says(manifest(train=5), 0.0, 0.001))
    assert (
        "Next to nothing" in clean and "No image is left out: each is used for training, validation or test." in clean
    )


# --- the search and the training


def trials(*rows):
    return pd.DataFrame(rows, columns=["trial", "status", "score", "epochs"])


def test_scores_of_trials_of_unlike_length_are_not_said_to_compare():
    two = sentences.search_says(
        trials(("0", "COMPLETED", 0.5, 3), ("1", "COMPLETED", 0.7, 1), ("2", "FAILED", None, 0))
    )
    assert "1 trial of 1 epoch, 1 trial of 3 epochs completed." in two
    assert "lowest 0.500, in trial 0 after 3 epochs" in two
    assert "only at the same number of epochs" in two and "1 trial did not complete" in two
    same = sentences.search_says(trials(("0", "COMPLETED", 0.5, 3), ("1", "COMPLETED", 0.7, 3)))
    assert "same number" not in same and "did not complete" not in same


def runs(searched, **losses):
    return pd.DataFrame(
        {"trial": trial, "seed": seed, "loss": loss, "searched": searched[trial]}
        for trial, of in losses.items()
        for seed, loss in enumerate(of)
    )


def test_settings_that_won_by_one_start_are_not_called_best():
    told = sentences.repeated_says(runs({"a": 0.3, "b": 0.5}, a=[0.9, 0.4, 0.8], b=[0.5, 0.6, 0.5]))
    assert "Trial b's settings are trained on." in told
    assert "trial a 0.700 (0.400 to 0.900); trial b 0.533 (0.500 to 0.600)" in told
    assert "better than trial a's from 2 of 3 starts: the order of the two can be chance" in told
    assert "In the search itself, trial a had scored better: by one start." in told


def test_settings_that_do_better_from_every_start_are_said_to():
    told = sentences.repeated_says(runs({"a": 0.3, "b": 0.5}, a=[0.3, 0.4], b=[0.5, 0.6]))
    assert "better than trial b's from 2 of 2 starts." in told
    assert "chance" not in told and "In the search itself" not in told
    alone = sentences.repeated_says(runs({"a": 0.3}, a=[0.3, 0.4]))
    assert "Trial a's settings are trained on." in alone and "better than" not in alone


def history(loss, val_loss):
    return pd.DataFrame({"epoch": np.arange(1, len(loss) + 1), "loss": loss, "val_loss": val_loss})


def test_a_training_is_said_to_overfit_only_where_it_does():
    fell = "\n".join(sentences.training_says(history([1.0, 0.8, 0.6], [1.0, 0.9, 0.7]), 2))
    assert "lowest after epoch 3 of 3" in fell and "more epochs may help" in fell and "by heart" not in fell
    parted = "\n".join(sentences.training_says(history([1.0, 0.8, 0.4, 0.2], [1.0, 0.9, 1.1, 1.3]), 2))
    assert "by heart" in parted and "lowest after epoch 2 of 4: 0.900 (training 0.800)" in parted
    flat = "\n".join(sentences.training_says(history([1.0, 0.8, 0.79, 0.79], [1.0, 0.9, 0.91, 0.9]), 2))
    assert "did not fall below that, and training stopped after 2 epochs without a lower one" in flat
    assert "by heart" not in flat


def test_a_version_that_is_not_active_is_not_said_to_be():
    figures = evaluated(*chest(skill=1.0)).record
    card = model_card(standing={"active": False, "reason": "it is measurably worse"})
    worse = sentences.registered_says(activation.sentence(registry.Version("m", "v2", None, card)), figures)
    assert "m@v2 is registered, and not active: it is measurably worse" in worse
    assert "On 200 validation patients: accuracy " in worse and "always answering 'COVID-19' gives 0.770" in worse


# --- heat maps


def maps(hits, energy, share=0.03):
    return pd.DataFrame({"pointing_game": hits, "energy_inside": energy, "mask_share": share, "iou_otsu": 0.1})


def test_maps_that_miss_the_lesion_in_three_of_four_images_are_not_said_to_find_it():
    hits = np.r_[np.ones(24), np.zeros(76)]
    told = sentences.heat_says(maps(hits, np.linspace(0.05, 0.11, 100)), np.arange(100))
    assert told[0].startswith(
        "**The maps do not find the lesion in most images**: the hottest point lies in it in 24 %"
    )
    assert "more often than by chance; a point drawn anywhere would in 3.0%." in told[0]
    assert "more than the 3.0% of a uniform map; 92% of it lies elsewhere." in told[1]


def test_maps_that_find_the_lesion_are_said_to_and_chance_is_said_to_be_chance():
    found = sentences.heat_says(maps(np.r_[np.ones(90), np.zeros(10)], np.full(100, 0.7)), np.arange(100))
    assert found[0].startswith("The maps find the lesion in most images") and "elsewhere" not in found[1]
    chance = sentences.heat_says(maps(np.r_[np.ones(3), np.zeros(97)], np.linspace(0.01, 0.05, 100)), np.arange(100))
    assert "not shown to be more often than by chance" in chance[0]
    assert "not shown to be more or less than the 3.0%" in chance[1]
    none = maps([np.nan], [np.nan], np.nan)
    assert sentences.heat_says(none, ["a"]) == [
        "No image here has a lesion mask: whether the maps find lesions was not measured."
    ]
    assert "One patient" in sentences.heat_says(maps(np.ones(4), np.ones(4)), ["a"] * 4)[0]


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ((0.1, 0.0, 0.2), "The maps depend on what was learned: with every layer random they correlate +0.100 (+0.000"),
        ((0.8, 0.7, 0.9), "**The maps hardly depend on what was learned**"),
        ((0.5, 0.3, 0.7), "is open"),
        ((np.nan, np.nan, np.nan), "there is nothing to compare"),
    ],
)
def test_maps_are_said_to_depend_on_the_weights_only_where_they_do(figure, words):
    table = pd.DataFrame([(0.99, 0.9, 1.0), figure], columns=["spearman", "low", "high"])
    assert words in sentences.randomisation_says(table)


# --- ways of training


def test_two_ways_whose_intervals_overlap_are_told_apart_by_their_paired_difference():
    y, p = chest(n=300, sick=0.5, skill=1.0)
    worse = p + np.random.default_rng(3).normal(0, 0.15, size=300)
    of = {"frozen features": evaluated(y, worse.clip(0, 1)), "fine-tuned": evaluated(y, p)}
    assert of["fine-tuned"].value("auc")[1] < of["frozen features"].value("auc")[2], "their intervals overlap"
    different = sentences.differences(of)
    (told,) = sentences.ways_say(different)
    assert told.startswith("*fine-tuned* is better than *frozen features*: AUC +0.0")
    assert sentences.worth_says(different, "fine-tuned", "frozen features") == (
        "*fine-tuned* was worth its time on these images."
    )
    table = sentences.differences_table(different)
    assert list(table.index) == ["fine-tuned − frozen features"] and table["AUC"].iloc[0].startswith("+0.0")


def test_a_way_that_is_not_better_is_not_said_to_be_worth_its_time():
    y, p = chest(n=60, sick=0.5, skill=1.0)
    of = {"frozen features": evaluated(y, p), "fine-tuned": evaluated(y, (p + 0.001 * y).clip(0, 1))}
    different = sentences.differences(of)
    assert "do not tell *fine-tuned* and *frozen features* apart" in sentences.ways_say(different)[0]
    assert "not shown to be worth its time here" in sentences.worth_says(different, "fine-tuned", "frozen features")
    backwards = sentences.differences({"frozen features": of["frozen features"], "fine-tuned": evaluated(y, 1 - p)})
    assert "*fine-tuned* is worse than *frozen features*: AUC −" in sentences.ways_say(backwards)[0]


def test_the_closing_cell_leaves_out_what_there_is_nothing_to_say_of():
    assert sentences.says(["a", "", "b"]) == "**What it says.**\n\n- a\n- b"
    assert sentences.trust_section({"says": ["x"]}).startswith("## What the card says on trust\n\n")


def test_images_that_a_person_excluded_are_counted_among_those_left_out():
    manifest = pd.DataFrame({"split": ["train", "excluded", "excluded", "refused"]})
    assert "Neither trained nor tested on: 1 image refused and 2 images excluded." in sentences.preprocessing_says(
        manifest, 0, 0
    )
    assert "2 images that a person excluded, 1 image that cannot be read" in sentences._kept_out(manifest, "set_aside")
    only = pd.DataFrame({"split": ["train", "excluded"]})
    assert "1 image that a person excluded" in sentences._kept_out(only, "set_aside")
