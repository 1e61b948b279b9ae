"""A challenger learns from reviews and from what its champion learned from, and changes nothing by itself."""

import json
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from PIL import Image

from lungkit import cli, config, files
from lungkit.clinic.learning.collect import collect
from lungkit.clinic.learning.reviews import Asked
from lungkit.clinic.records import settings
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import Patient, Review
from lungkit.data import dataset, images, tensor_cache
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.training import activation, finetune, fit, outside, recipes, release, retrain, reviewed

CLASSES = ("Normal", "Pneumonia")


@pytest.fixture
def database_url(sqlite_url):
    """One kind of database is enough here."""
    return sqlite_url


def picture(sick: bool, rng: np.random.Generator) -> np.ndarray:
    """32 x 32 greys; the sick have a bright square."""
    pixels = rng.integers(0, 90, (32, 32))
    if sick:
        row, column = rng.integers(2, 22, 2)
        pixels[row : row + 8, column : column + 8] += 140
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data set, registry) of a compact network that was trained in a moment. Tests only read them."""
    home, patch = tmp_path_factory.mktemp("champion"), pytest.MonkeyPatch()
    for name in ("data", "artifacts", "reports"):
        patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
    own, rng = home / "old", np.random.default_rng(1)
    own.mkdir()
    lines = ["file,label,patient_id,split"]
    for patient in range(60):
        Image.fromarray(picture(patient % 2 == 1, rng)).save(own / f"p{patient:02d}.png")
        lines.append(f"p{patient:02d}.png,{CLASSES[patient % 2]},p{patient:02d},")
    (own / "labels.csv").write_text("\n".join(lines) + "\n")
    recipe = recipes.Recipe(
        name="squares", backbone="cnn", side=32, epochs=2, learning_rate=3e-3, label_smoothing=0.0, mixup=0.0,
        augmentation={}, mirrored=False,
    )  # fmt: skip
    finetune.train_recipe(recipe, own, home / "work")
    yield own, home
    patch.undo()


@pytest.fixture
def champion(trained, tmp_path):
    """The version in use, in this test's registry; its images are where they were."""
    for name in ("artifacts", "data"):
        shutil.copytree(trained[1] / name, tmp_path / name)
    return registry.active("squares")


@pytest.fixture
def collected(store, readers, prediction, tmp_path):
    """A function: a data set of reviews of so many patients, one image each, every second one with pneumonia."""

    def make(patients=30, seed=2, pictures=None, locked=False, shown=True):
        rng = np.random.default_rng(seed)
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, 0.0 if shown else 1.0)
        for number in range(patients):
            sick = number % 2 == 1
            greys = pictures[number] if pictures else picture(sick, rng)
            image = images.Image(greys.astype(np.float32) / 255, "intensity", "", f"{number}.png", {})
            answer = prediction(classes=CLASSES)
            case = readers[0].save_case(
                NewPatient(f"N-{seed}-{number}", "Name"), image, files.sha256(greys.tobytes()), answer
            )
            label = CLASSES[int(sick)]
            readers[0].review(case.reading_id, label)
            with store.write() as db:  # one a minute, the sets one after the other
                at = datetime(2026, 1, seed, tzinfo=UTC) + timedelta(minutes=number)
                db.execute(sa.update(Review).where(Review.reading_id == case.reading_id).values(at=at))
        return collect(store, tmp_path / "sets" / "reviews", Asked(locked=locked), "St. Example").folder

    return make


# About 20 s: three trainings of a moment.
def test_a_challenger_has_seen_both_and_the_newest_patients_are_left_for_a_trial(champion, collected, monkeypatch):
    folder, counted, weigh = collected(), [], fit.image_weights
    monkeypatch.setattr(fit, "image_weights", lambda *given: counted.append(given[3]) or weigh(*given))
    made = retrain.retrain(champion, folder)
    card, record = made.version.card, made.version.card.training["reviews"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert record["content_sha256"] == manifest["content_sha256"]
    assert record["manifest_sha256"] == files.sha256(folder / "manifest.json")
    assert card.training["champion"] == "squares@v1"
    assert card.training["started_from"] == "the weights of squares@v1"
    assert card.classes == champion.card.classes
    assert card.preprocessing == champion.card.preprocessing
    assert {part: record[part]["patients"] for part in ("train", "validation", "held_out")} == {
        "train": 20, "validation": 4, "held_out": 6
    }  # fmt: skip
    seen, reviews = release.seen_images(made.version), dataset.as_given(folder)
    assert release.seen_images(champion) < seen
    rows = pd.read_csv(folder / "labels.csv").sort_values("reviewed_at")
    hashes = dict(zip(reviews.manifest["file"], reviews.manifest["sha256"], strict=True))
    assert [hashes[file] in seen for file in rows["file"]] == [True] * 24 + [False] * 6
    assert record["held_out"]["from"] == pd.Timestamp(rows["reviewed_at"].iloc[24]).isoformat()
    # The version in use stays, and what the trial compares on is what neither has seen.
    assert registry.active("squares") == champion
    assert card.standing == activation.CHALLENGER
    assert (outside.left_out(made.version, reviews.manifest) == "").sum() == 6
    assert card.metrics.keys() == {"val"}, "no look at the test patients"

    assert card.training["reviewed_image_counts"] == 2.1, "42 old images, 20 reviewed ones"
    assert set(counted[0].tolist()) == {1.0, 2.1}

    # A retraining of the retrained one has the first data once, and the reviews once.
    second = collected(patients=36, seed=3)
    again = retrain.retrain(made.version, second)
    assert retrain.own_data(again.version).fingerprint == retrain.own_data(champion).fingerprint
    assert sum(of.images for of in again.version.card.data.counts.values()) == 60 + 66


def test_what_the_weights_learned_from_before_counts_as_seen_also_if_it_is_in_no_set_any_more(
    champion, collected, store
):
    first = retrain.retrain(champion, collected())
    with store.write() as db:  # consent was withdrawn, or a blind label put the patient into the locked set
        db.execute(sa.update(Patient).where(Patient.number.in_(("N-2-0", "N-2-1"))).values(excluded=True))
    second = retrain.retrain(first.version, collected(patients=12, seed=3))
    assert release.seen_images(first.version) < release.seen_images(second.version)
    joined = next((config.data_dir() / "joined").glob("*/*-reviews-v2"))
    assert set(release.data_for(second.version, str(joined)).manifest["split"]) == {"train", "val", "test"}


def test_a_training_that_was_stopped_continues_and_is_not_done_again(champion, collected, monkeypatch):
    folder = collected()
    first = retrain.retrain(champion, folder)
    monkeypatch.setattr(finetune.pipeline.InMemory, "__getitem__", lambda *_: pytest.fail("it trains again"))
    second = retrain.retrain(champion, folder, name="squares-next")
    pd.testing.assert_frame_equal(first.history, second.history)
    assert str(second.version) == "squares-next@v1"
    assert registry.active_name("squares-next") is None, "not even where there is no other version"


def test_an_interrupted_training_continues_after_its_last_epoch(champion, collected, monkeypatch):
    folder, begun, begin = collected(), [], fit._Checkpoint.on_epoch_begin

    def until_the_second(self, epoch, logs=None):
        begun.append(epoch)
        if len(begun) == 2:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    monkeypatch.setattr(fit._Checkpoint, "on_epoch_begin", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        retrain.retrain(champion, folder)
    assert registry.versions("squares") == ["v1"]
    made = retrain.retrain(champion, folder)
    assert begun == [0, 1, 1], "the first epoch is not trained again"
    assert made.history["epoch"].tolist() == [1, 2]


# About 30 s: two networks learn on frozen features.
def test_an_ensemble_that_is_a_graph_alone_is_trained_from_the_start_of_its_recipe(champion, collected, trained):
    recipe = recipes.Recipe(
        name="ensemble", backbone="efficientnet_lite0", until="stage3", side=32, epochs=0, augmentation={},
        members=({}, {"dropout": 0.5}), label_smoothing=0.0,
    )  # fmt: skip
    ensemble, _ = finetune.train_recipe(recipe, trained[0], config.work_dir() / "ensemble", compact=True)
    made = retrain.retrain(ensemble, collected())
    card = made.version.card
    assert str(made.version) == "ensemble@v2"
    assert card.training["started_from"] == "the start that its recipe has"
    assert card.architecture["members"] == 2
    assert "model.keras" not in card.files
    assert retrain.recipe_of(made.version).settings() == recipe.settings()
    assert registry.active("ensemble") == ensemble


def test_pictures_that_the_model_has_already_are_left_out_with_their_patient(champion, collected, trained):
    known = [np.asarray(Image.open(trained[0] / f"p{number:02d}.png")) for number in range(2)]
    rng = np.random.default_rng(5)
    others = [picture(number % 2 == 1, rng) for number in range(2, 30)]
    made = retrain.retrain(champion, collected(pictures=[*known, *others]))
    record = made.reviews
    assert record["seen_before"] == 2
    assert sum(record[part]["images"] for part in ("train", "validation", "held_out")) == 28


def test_pictures_of_the_clinics_patients_are_not_kept_in_a_second_place(champion, collected, monkeypatch):
    kept = []
    monkeypatch.setattr(tensor_cache.Writer, "_put", lambda _, sha256, *__: kept.append(sha256))
    folder = collected()
    hashes = set(dataset.as_given(folder).manifest["sha256"])
    retrain.retrain(champion, folder)
    assert not hashes & set(kept)
    joined = next((config.data_dir() / "joined").glob("*/*"))
    assert joined.stat().st_mode & 0o077 == 0
    assert not [path for path in joined.iterdir() if path.is_file() and path.suffix in (".png", ".dcm")]


# --- refused before anything is trained


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(finetune, "made_ready", lambda *_: pytest.fail("it trains"))


def test_a_locked_set_is_not_learned_from(champion, collected, untrained):
    with pytest.raises(reviewed.ReviewsRefused, match="reviews-v1 is a locked set"):
        retrain.retrain(champion, collected(locked=True, shown=False))


@pytest.mark.parametrize("change", ["a label", "a file more", "a file less"])
def test_a_set_that_was_changed_after_it_was_collected_is_refused(champion, collected, untrained, change):
    folder = collected(patients=12)
    table = folder / "labels.csv"
    if change == "a label":
        table.write_text(table.read_text().replace("Pneumonia", "Normal", 1))
    elif change == "a file more":
        (folder / "images" / "more.png").write_bytes(b"")
    else:
        next((folder / "images").iterdir()).unlink()
    with pytest.raises(LungkitError, match="is not as it was collected"):
        retrain.retrain(champion, folder)


def test_few_patients_are_refused_with_how_many_are_needed(champion, collected, untrained):
    with pytest.raises(reviewed.ReviewsRefused, match="has 9 patients; 10 or more"):
        retrain.retrain(champion, collected(patients=9))


def test_reviews_with_classes_of_another_model_are_refused(champion, collected, untrained):
    other = replace(champion, card=replace(champion.card, classes=("Normal", "Glioma")))
    with pytest.raises(reviewed.ReviewsRefused, match="labelled Pneumonia, and the model answers Normal, Glioma"):
        reviewed.read(collected(patients=12), other.card)


def test_a_folder_that_is_no_set_of_reviews_is_refused(champion, trained, untrained):
    with pytest.raises(LungkitError, match="is no data set of reviews"):
        retrain.retrain(champion, trained[0])


def test_without_the_images_that_it_learned_from_nothing_is_trained(champion, collected, untrained, tmp_path):
    folder = collected(patients=12)
    shutil.rmtree(config.data_dir())
    with pytest.raises(retrain.DataGone, match=r"squares@v1 learned from \(old\) were not found"):
        retrain.retrain(champion, folder)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(retrain.DataGone, match="--data"):
        retrain.retrain(champion, folder, data=[other])


def test_a_card_that_does_not_say_how_it_was_trained_is_refused(champion):
    silent = replace(champion, card=replace(champion.card, training={}, architecture={}))
    with pytest.raises(LungkitError, match="does not say how it was trained"):
        retrain.recipe_of(silent)


def test_the_recipe_of_the_shipped_ensembles_is_read_from_their_cards(shipped, monkeypatch):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(shipped))
    for name in ("ct-covid", "chest-xray-infection", "ct-infection", "mri-brain-tumour"):
        version = registry.active(name)
        recipe, known = retrain.recipe_of(version), recipes.RECIPES[name]
        assert recipe.settings() == known.settings()
        assert (recipe.members, recipe.seeds, recipe.tuned_share) == (known.members, known.seeds, known.tuned_share)


# --- the command


@pytest.fixture
def lungkit(monkeypatch, capsys):
    """A function: a command's exit code and what it shows."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lungkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_says_what_was_learned_and_that_nothing_reads_with_it_yet(champion, collected, lungkit):
    code, out, _ = lungkit("learn", "train", "squares", "--reviews", collected())
    assert code == 0
    assert "learned from: 20 reviewed images of 20 patients" in out
    assert "held out for a trial: 6 reviewed images of 6 patients" in out
    assert "squares@v2 is registered as a challenger. It reads nothing until a trial has promoted it." in out
    about = registry.find("squares@v2").card.about
    assert about.command == "lungkit learn train squares@v1 --reviews FOLDER/reviews-v1"
    assert about.population.endswith("; and 20 reviewed images of 20 patients of this clinic")


def test_a_locked_set_ends_the_command_with_one_line(champion, collected, untrained, lungkit):
    code, _, err = lungkit("learn", "train", "squares", "--reviews", collected(locked=True, shown=False))
    assert code == 1
    assert "reviews-v1 is a locked set" in err
    assert "Traceback" not in err


# --- weights


@pytest.mark.parametrize(("old", "new", "count"), [(1000, 10, 4.0), (300, 100, 3.0), (50, 100, 1.0)])
def test_reviewed_images_count_for_several_until_both_groups_count_alike(old, new, count):
    rows = pd.DataFrame({"file": [f"learned/{i}" for i in range(old)] + [f"reviews/{i}" for i in range(new)]})
    joint = dataset.Dataset("joint", CLASSES, rows.assign(split="train"), config.data_dir())
    assert retrain.counts(joint).tolist() == [1.0] * old + [count] * new
