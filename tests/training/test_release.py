"""A trained model is registered with what is needed to trust it, and scored on patients it has not seen."""

import dataclasses
import json
import shutil
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lungkit import config
from lungkit.data import dataset, decisions, preprocess, relabel, splits
from lungkit.errors import LungkitError
from lungkit.models import cnn, registry, saved
from lungkit.models.rule import DecisionRule, UncertaintyBand
from lungkit.training import looks, outside, pipeline, release
from tests.cards import model_card
from tests.training.relabelled import relabelled

SPEC = preprocess.Preprocessing(size=(32, 32), mean=0.2, std=0.2)
RECIPE = {"label_column": None, "limit": None, "seed": 7}
# What the issue promises to programs that read `lungkit evaluate --json`.
PROMISED = {
    "n", "patients", "classes", "accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "per_class", "confusion",
    "intervals", "seconds", "images_per_second",
}  # fmt: skip
OF_A_CLASS = {"precision", "recall", "specificity", "f1", "auc", "support"}


@pytest.fixture(scope="module")
def model(squares, tmp_path_factory) -> keras.Model:
    """A tiny network that has learned left from right; about 5 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_DATA", str(tmp_path_factory.mktemp("prepared")))
        chest = dataset.load_split(squares)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(8, (5, 32), activation="relu")(
        inputs
    )  # as wide as the picture: it can tell left from right
    x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    cnn.compile_classifier(model, learning_rate=1e-2)
    model.fit(pipeline.batches(chest, "train", SPEC, 16, shuffle=True), epochs=4, shuffle=False, verbose=0)
    return model


@pytest.fixture
def chest(squares) -> dataset.Dataset:
    return dataset.load_split(squares, **RECIPE)


def _registered(model, chest, name="squares-cnn", **recipe) -> registry.Version:
    return release.register(
        model, name, chest, SPEC, architecture={"kind": "tiny"}, training={"epochs": 4}, recipe=RECIPE | recipe
    )


@pytest.fixture(scope="module")
def artifacts(model, squares, tmp_path_factory) -> Path:
    """The artifacts folder after the model was registered; tests take copies."""
    home = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        _registered(model, dataset.load_split(squares, **RECIPE))
    return home / "artifacts"


@pytest.fixture
def version(artifacts, chest) -> registry.Version:
    """The registered model, which a test may damage."""
    shutil.copytree(artifacts, config.artifacts_dir())
    return registry.find("squares-cnn")


def _with_labels(chest, split, change) -> dataset.Dataset:
    """The same data set with the labels of one split changed."""
    manifest = chest.manifest.copy()
    rows = manifest["split"] == split
    manifest.loc[rows, "label"] = change(manifest.loc[rows, "label"])
    return dataclasses.replace(chest, manifest=manifest)


def _swapped(labels: pd.Series) -> pd.Series:
    return labels.map({"left": "right", "right": "left"})


# --- registering


def test_a_registered_version_holds_the_model_in_three_forms_the_cards_and_what_it_was_trained_on(version, chest):
    assert {file.name for file in version.folder.iterdir()} == {
        "model.keras", "model.h5", "graph.xml", "graph.bin", "checks.npz",
        "card.json", "README.md", "trained_on.txt", "SHA256SUMS",
    }  # fmt: skip
    seen = (version.folder / "trained_on.txt").read_text().split()
    assert set(seen) == {*chest.part("train")["sha256"], *chest.part("val")["sha256"]}
    assert not set(seen) & set(chest.part("test")["sha256"])
    assert registry.find("squares-cnn") == version


def test_the_card_tells_what_the_model_needs_and_where_it_comes_from(version, chest):
    card = version.card
    assert card.classes == ("left", "right")
    assert card.preprocessing == SPEC
    assert card.data.fingerprint == chest.fingerprint
    assert card.data.recipe == RECIPE
    test = card.data.counts["test"]
    assert (test.images, test.patients) == (len(chest.files("test")), len(set(chest.patients("test"))))
    assert card.modality == "image"
    assert (card.architecture, card.training) == ({"kind": "tiny"}, {"epochs": 4})
    assert card.synthetic is False


def test_the_operating_point_and_the_cards_figures_do_not_depend_on_the_test_images(model, chest, version):
    other = _registered(model, _with_labels(chest, "test", _swapped))
    assert other.card.rule.operating_point() == version.card.rule.operating_point()
    assert other.card.metrics == version.card.metrics
    assert set(other.card.metrics) == {"val"}
    assert other.card.metrics["val"].n == len(chest.files("val"))


def test_a_test_that_is_scored_for_the_card_is_a_look_at_its_images(model, chest):
    facts = {"architecture": {}, "training": {}, "recipe": RECIPE}
    release.register(model, "scored", chest, SPEC, test_too=True, **facts)
    (look,) = looks.of(chest.part("test")["sha256"])
    assert (look.model, look.by) == ("scored", "registration")


def test_the_operating_point_depends_on_the_validation_images(model, chest, version):
    other = _registered(model, _with_labels(chest, "val", _swapped))
    assert other.card.rule.operating_point() != version.card.rule.operating_point()


def test_a_model_that_learned_from_the_phantom_says_so_on_its_card(model, chest):
    card = _registered(model, dataclasses.replace(chest, synthetic=True))
    assert card.card.synthetic is True
    assert "Synthetic" in (card.folder / "README.md").read_text()


def test_the_h5_file_gives_the_logits_of_the_keras_file_on_real_tensors(version, chest):
    tensors = preprocess.read_batch(chest.files("test"), SPEC)
    h5 = keras.saving.load_model(version.folder / "model.h5", compile=False)
    np.testing.assert_allclose(h5(tensors), saved.load(version)(tensors), atol=1e-5)


def test_logits_are_those_of_the_model(model, chest):
    tensors = preprocess.read_batch(chest.files("val"), SPEC)
    np.testing.assert_allclose(release.logits(model, tensors), np.asarray(model(tensors)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phantom-600", "phantom-600-cnn"),
        ("Chest X-Ray (2017)", "chest-x-ray-2017-cnn"),
        ("..hidden", "hidden-cnn"),
        ("Pneumopathies aiguës", "pneumopathies-aigues-cnn"),
        ("胸部", "cnn"),
        ("x" * 300, "x" * 96 + "-cnn"),
    ],
)
def test_a_usual_name_can_be_registered_whatever_the_data_set_is_called(name, expected):
    assert registry.usual_name(name) == expected
    assert registry.add(expected, model_card(), lambda folder: (folder / "weights").write_bytes(b"1")).model == expected


# --- scoring


def test_a_score_on_the_test_split_is_on_images_the_version_has_not_seen(version, chest):
    scored = release.score(version, chest)
    assert scored.split == "test"
    assert scored.files == [file.name for file in chest.files("test")]
    assert scored.seen_in_training == 0
    assert scored.evaluation.value("accuracy")[0] > 0.9, "the tiny model has learned left from right"


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_the_version_was_trained_or_chosen_on_are_counted(version, chest, split):
    scored = release.score(version, chest, split)
    assert scored.seen_in_training == len(scored.labels) == len(chest.files(split))


def test_all_scores_every_readable_image(version, chest):
    scored = release.score(version, chest, "all")
    assert len(scored.labels) == len(scored.files) == 120
    assert scored.seen_in_training == 120 - len(chest.files("test"))


def test_a_score_is_the_evaluation_of_the_predictions_at_the_cards_operating_point(version, chest, model):
    scored = release.score(version, chest, "val")
    tensors = preprocess.read_batch(chest.files("val"), SPEC)
    np.testing.assert_array_equal(scored.tensors, tensors)
    calibrated = version.rule.calibrate(release.logits(model, tensors))
    np.testing.assert_allclose(scored.probabilities, calibrated, atol=1e-6)
    expected = version.rule.decide(scored.probabilities)
    np.testing.assert_array_equal(scored.evaluation.predicted, expected)
    assert scored.to_dict()["accuracy"] == version.card.metrics["val"].figure("accuracy").value


def test_a_score_says_what_is_left_to_a_person_and_what_the_rest_is_worth(version, chest):
    scored = release.score(version, chest)
    half = dataclasses.replace(
        scored,
        labels=np.array([0, 0, 1, 1]),
        probabilities=np.array([[0.9, 0.1], [0.45, 0.55], [0.52, 0.48], [0.1, 0.9]]),
        rows=pd.DataFrame({"patient_id": ["a", "b", "c", "d"], "source": "home"}),
    )
    rule = DecisionRule(kind="threshold", threshold=0.5)

    def reviewed(margin: float) -> dict:
        card = dataclasses.replace(version.card, rule=dataclasses.replace(rule, band=UncertaintyBand(margin=margin)))
        return dataclasses.replace(half, version=dataclasses.replace(version, card=card)).review

    near = reviewed(rule.margin(np.array([[0.45, 0.55]]))[0] + 1e-6)
    assert near == {"share": 0.5, "errors_held": 1.0, "accuracy": 1.0, "interval": [0.025**0.5, 1.0]}
    assert reviewed(100.0) == {"share": 1.0, "errors_held": 1.0, "accuracy": None, "interval": [None, None]}
    none = reviewed(-1.0)
    assert (none["share"], none["errors_held"], none["accuracy"]) == (0.0, 0.0, 0.5)


def test_a_score_has_every_key_that_programs_were_promised_and_is_strict_json(version, chest):
    record = release.score(version, chest).to_dict()
    assert set(record) >= PROMISED
    assert set(record["per_class"]) == set(record["intervals"]["per_class"]) == {"left", "right"}
    assert all(set(figures) >= OF_A_CLASS for figures in record["per_class"].values())
    assert all(len(record["intervals"][name]) == 2 for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc"))
    assert (record["model"], record["data"], record["split"]) == ("squares-cnn@v1", "squares", "test")
    assert record["n"] == sum(map(sum, record["confusion"])) == len(chest.files("test"))
    assert record["seconds"] > 0
    assert record["images_per_second"] > 0
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_classes_are_matched_by_name_whatever_their_case_and_order(version, chest, squares, tmp_path):
    folder = relabelled(squares, tmp_path / "squares", {"left": "LEFT", "right": "Right"}, ["Right", "LEFT"])
    turned = dataset.load_split(folder)
    assert turned.classes == ("Right", "LEFT")
    there, here = release.score(version, turned, "all"), release.score(version, chest, "all")
    assert there.evaluation.classes == ("left", "right")
    np.testing.assert_array_equal(there.labels, here.labels)
    assert there.to_dict()["confusion"] == here.to_dict()["confusion"]


def test_a_class_the_model_does_not_know_is_refused_by_name(version, squares, tmp_path):
    folder = relabelled(squares, tmp_path / "squares", {"left": "left", "right": "above"})
    with pytest.raises(
        LungkitError, match=r"squares-cnn@v1 knows left, right, but .* labelled above; .*--label-column"
    ):
        release.score(version, dataset.load_split(folder))


def test_a_set_that_lacks_a_class_can_still_be_scored(version, chest):
    only_left = dataclasses.replace(chest, manifest=chest.manifest[chest.manifest["label"] == "left"])
    record = release.score(version, only_left).to_dict()
    assert record["per_class"]["right"]["support"] == 0
    assert record["per_class"]["right"]["recall"] is None


def test_a_split_without_an_image_is_refused_with_those_there_are(version, chest):
    no_test = dataclasses.replace(chest, manifest=chest.manifest[chest.manifest["split"] != "test"])
    with pytest.raises(LungkitError, match=r"no image in split 'test'; there are: \d+ train, \d+ val\. --split all"):
        release.score(version, no_test, "test")
    with pytest.raises(LungkitError, match="no split 'exam'; accepted: train, val, test, all"):
        release.score(version, no_test, "exam")


def test_images_that_cannot_be_read_are_counted_and_listed_with_the_reason(version, squares, tmp_path):
    folder = shutil.copytree(squares, tmp_path / "elsewhere")
    for name in ("p00_0.png", "p07_1.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    scored = release.score(version, release.data_for(version, str(folder)))
    assert len(scored.labels) == len(scored.files) == len(scored.tensors) == 118
    assert [one["file"] for one in scored.to_dict()["unreadable"]] == ["p00_0.png", "p07_1.png"]
    assert all(one["reason"].startswith("truncated") for one in scored.unreadable)
    assert scored.scope.startswith("all: 118 of 120 images")
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(
        LungkitError, match=r"elsewhere: none of 120 images could be read\. The first is p00_0\.png: empty"
    ):
        release.score(version, release.data_for(version, str(folder)))


def test_images_that_were_unreadable_when_the_set_was_split_are_counted_too(model, squares, tmp_path):
    folder = shutil.copytree(squares, tmp_path / "own")
    (folder / "p00_0.png").write_bytes(b"")
    version = _registered(model, dataset.load_split(folder, **RECIPE))
    scored = release.score(version, release.data_for(version, str(folder)), "all")
    assert scored.unreadable == [{"file": "p00_0.png", "reason": "empty file. Copy or export it again."}]
    assert scored.scope == "all: 119 of 120 images"


def test_few_patients_are_scored_and_one_has_no_interval(version, squares, tmp_path):
    one = _given(squares, tmp_path / "one", lambda table: table.assign(patient_id="p"))
    scored = release.score(version, release.data_for(version, str(one)))
    assert len(scored.labels) == 120
    assert set(map(tuple, scored.evaluation.metrics[["low", "high"]].isna().to_numpy())) == {(True, True)}
    assert "all images are of one patient, so there are no intervals (–)" in scored.remarks
    two = _given(squares, tmp_path / "two", lambda table: table.iloc[[0, 2]])
    assert release.score(version, release.data_for(version, str(two))).to_dict()["n"] == 2


def test_a_class_that_the_set_lacks_is_said(version, squares, tmp_path):
    left = _given(squares, tmp_path / "lefts", lambda table: table[table["label"] == "left"])
    scored = release.score(version, release.data_for(version, str(left)))
    assert scored.to_dict()["absent_classes"] == ["right"]
    assert "no image of right: figures that need one are left out (–)" in scored.remarks
    assert scored.to_dict()["auc"] is None


@pytest.mark.parametrize("file", ["model.keras", "trained_on.txt", "card.json"])
def test_a_tampered_file_is_refused_by_name_before_anything_is_scored(version, chest, file):
    path = version.folder / file
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(registry.ModelDamaged, match=rf"squares-cnn@v1: {file} was changed"):
        release.score(version, chest)


# --- the data a version is scored on


def _given(squares: Path, folder: Path, change=lambda table: table) -> Path:
    """The pictures of `squares`, each with one pixel changed, in a folder of its own: a set from elsewhere."""
    folder.mkdir()
    for file in squares.glob("*.png"):
        pixels = np.array(Image.open(file))
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(folder / file.name)
    table = pd.read_csv(squares / "labels.csv", dtype=str, keep_default_na=False)
    change(table).to_csv(folder / "labels.csv", index=False)
    return folder


def test_the_data_of_a_version_is_split_as_it_was_for_its_training_wherever_it_lies(model, squares, tmp_path):
    trained_on = dataset.load_split(squares, limit=60, seed=3)
    version = _registered(model, trained_on, limit=60, seed=3)
    shutil.rmtree(config.data_dir())
    for folder in (squares, shutil.copytree(squares, tmp_path / "moved")):
        again = release.data_for(version, str(folder))
        for split in splits.PARTS:
            assert again.part(split)["file"].tolist() == trained_on.part(split)["file"].tolist()
        scored = release.score(version, again)
        assert (scored.split, scored.seen_in_training) == ("test", 0)
        assert scored.not_scored[""] == 60, "what the limit left out is not forgotten"
        assert len(release.score(version, again, "all").labels) == 120


@pytest.mark.parametrize("name", ["elsewhere", "squares"])
def test_a_set_from_elsewhere_is_scored_whole_whatever_its_name(version, squares, tmp_path, name):
    data = release.data_for(version, str(_given(squares, tmp_path / name)))
    scored = release.score(version, data)
    assert (scored.split, len(scored.labels), scored.seen_in_training) == ("all", 120, 0)
    assert scored.scope == "all: 120 images (the set has no published test part, so every image is scored)"
    assert not list((config.data_dir() / "manifests").glob("elsewhere")), "it was never split"


def test_a_set_that_is_not_quite_the_one_of_the_training_is_not_dealt_and_what_was_seen_is_counted(
    version, chest, squares, tmp_path
):
    folder = shutil.copytree(squares, tmp_path / "squares")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "new.png")
    with (folder / "labels.csv").open("a") as table:
        table.write("new.png,left,a,p99,\n")
    scored = release.score(version, release.data_for(version, str(folder)))
    assert (scored.split, len(scored.labels)) == ("all", 121)
    assert scored.seen_in_training == 120 - len(chest.files("test"))


@pytest.mark.parametrize(
    ("published", "split", "n", "not_scored"),
    [
        (["test"] * 120, "test", 120, {}),
        (["train"] * 120, "all", 120, {}),
        (["train"] * 60 + ["test"] * 60, "test", 60, {"train": 60}),
        (["official_train"] * 90 + [""] * 10 + ["Testing"] * 20, "test", 20, {"train": 90, "": 10}),
        ([""] * 100 + ["test"] * 20, "test", 20, {"": 100}),
        (["fold 1"] * 60 + ["fold 2"] * 60, "all", 120, {}),
        (["train"] * 100 + ["val"] * 20, "all", 120, {}),
    ],
)
def test_only_what_a_set_publishes_is_a_part(version, squares, tmp_path, published, split, n, not_scored):
    folder = _given(squares, tmp_path / "given", lambda table: table.assign(split=published))
    scored = release.score(version, release.data_for(version, str(folder)))
    assert (scored.split, len(scored.labels), scored.not_scored) == (split, n, not_scored)
    assert ("not scored" in " ".join(scored.remarks)) == bool(not_scored)
    assert len(release.score(version, scored.data, "all").labels) == 120


def test_a_part_that_is_not_published_is_refused_with_what_there_is(version, squares, tmp_path):
    data = release.data_for(version, str(_given(squares, tmp_path / "given")))
    for split in ("test", "val"):
        with pytest.raises(
            LungkitError, match=rf"no image in split '{split}'; there are: 120 of no part\. --split all"
        ):
            release.score(version, data, split)


def test_a_file_that_is_listed_in_two_parts_is_scored_once(version, squares, tmp_path):
    folder = _given(
        squares,
        tmp_path / "given",
        lambda table: pd.concat([table.assign(split="train"), table[:10].assign(split="test")]),
    )
    data = release.data_for(version, str(folder))
    assert len(release.score(version, data, "all").labels) == 120
    assert len(release.score(version, data).labels) == 10


def test_a_folder_of_classes_is_scored_by_a_version_that_learned_from_another_column(model, squares, tmp_path):
    version = _registered(
        model, dataset.load_split(squares, label_column="label", seed=3), label_column="other", seed=3
    )
    for file in squares.glob("*.png"):
        label = ("LEFT", "Right")[int(file.name[1:3]) % 2]
        (tmp_path / "sides" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "sides" / label)
    (tmp_path / "sides" / "left").mkdir()
    (tmp_path / "sides" / "README.txt").write_text("notes")
    scored = release.score(version, release.data_for(version, str(tmp_path / "sides")))
    assert scored.to_dict()["n"] == 120
    assert [note["finding"] for note in scored.to_dict()["notes"]] == [
        "files passed over",
        "class folders without an image",
    ]


def test_another_label_column_can_be_chosen(version, squares):
    assert release.data_for(version, str(squares), "other").classes == ("a", "b")
    assert release.data_for(version, str(squares), None).classes == ("left", "right")


def test_the_phantom_of_a_version_has_as_many_slices_as_it_learned_from(monkeypatch):
    card = model_card(synthetic=True)
    recipe = {"limit": 60, "seed": 3, "label_column": None}
    card = dataclasses.replace(card, data=dataclasses.replace(card.data, recipe=recipe))
    version = registry.Version("m", "v1", Path(), card)
    asked = []

    def as_given(source, **options):
        asked.append((source, options))
        raise LungkitError("far enough")

    monkeypatch.setattr(dataset, "as_given", as_given)
    for source, made in (("phantom", {"limit": 60, "seed": 3}), ("/elsewhere", {})):
        with pytest.raises(LungkitError, match="far enough"):
            outside.relabelled(version, source, [], relabel.Labels())
        assert asked[-1] == (source, made)


# --- decisions of a person


def test_a_version_trained_after_decisions_is_tested_on_its_own_split_also_when_the_file_is_gone(
    model, chest, squares, tmp_path
):
    row = chest.part("train").iloc[0]
    decisions.write(tmp_path / "d.csv", [decisions.Decision(row["file"], row["sha256"], "exclude", reason="blurred")])
    decided = {"decisions": decisions.kept(tmp_path / "d.csv")}
    (tmp_path / "d.csv").unlink()
    after = dataset.load_split(squares, **RECIPE | decided)
    version = _registered(model, after, **decided)
    again = release.data_for(version, str(squares))
    assert again.fingerprint == after.fingerprint == version.card.data.fingerprint != chest.fingerprint
    assert again.part("excluded")["file"].tolist() == [row["file"]]
    assert row["sha256"] not in release.seen_images(version)
    notes = release.score(version, again).to_dict()["notes"]
    assert [note["finding"] for note in notes] == ["images excluded by decision"]
    assert decided["decisions"] in (version.folder / "README.md").read_text()

    shutil.rmtree(config.data_dir() / "decisions")
    with pytest.raises(decisions.DecisionsGone, match=r"copy the decisions\.csv"):
        release.data_for(version, str(squares))
