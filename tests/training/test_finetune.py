"""A recipe becomes a registered version: fine-tuned in stages, measured by fold on patients not trained on."""

import dataclasses
import functools
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.special
from PIL import Image
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from lungkit import cli, resume
from lungkit.data import dataset, decisions, joined, preprocess
from lungkit.data.relabel import Labels
from lungkit.errors import LungkitError
from lungkit.models import backbones, card_text, cnn, graph, registry, saved
from lungkit.training import finetune, fit, recipes, release, tasks
from tests.graded import CAUTION, CLASSES, GRADES
from tests.training.one_worker import in_this_process

TINY = recipes.Recipe(
    name="squares-lite",
    modality="X-ray",
    question="Is the square left or right?",
    population="squares",
    data="squares",
    images={"left": 60, "right": 60},
    licence="none",
    fold="1/2",
    scored_before=2,
    backbone="cnn",
    side=32,
    batch_size=8,
    epochs=6,
    learning_rate=3e-3,
    augmentation={"flip": False},
    mirrored=False,
)
SHORT_LITE0 = {"backbone": "efficientnet_lite0", "until": "stage2", "unfrozen": "stage2"}  # few layers to trace


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """The compact CNN with a quarter of its filters and half its blocks, which is enough for squares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "build", functools.partial(cnn.build, filters=cnn.FILTERS // 4, blocks=2))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def trained(home, squares) -> tuple[registry.Version, list]:
    """A version trained on both folds, and what its probes were asked with."""
    asked = []

    def probes(candidate, data):
        tensors = np.zeros((2, 32, 32, 1), np.float32)
        asked.append((set(candidate.read(tensors)), candidate.flagged(data.files("test")).shape))
        return {"asked": True}

    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        version, history = finetune.train_recipe(TINY, squares, home / "work", probes=probes, compact=True)
        return version, [asked, history]


@pytest.fixture(autouse=True)
def there(home, trained, monkeypatch):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(home / "artifacts"))


def test_it_learns(trained):
    version, (_, history) = trained
    assert len(history) == TINY.epochs
    assert version.card.metrics["val"].figure("auc").value > 0.7


def test_its_figures_are_of_all_folds_every_patient_tested_once(trained):
    together = trained[0].card.metrics["2 folds by patient or group"]
    assert (together.n, together.patients) == (120, 60)
    assert len(together.auc_of_each_fold) == 2
    assert together.figure("auc").value > 0.7
    assert "ece" not in together.figures


def test_the_card_says_what_it_answers_for_whom_and_how_to_make_it_again(trained):
    card = trained[0].card
    assert card.about.question == TINY.question
    assert card.about.command == "lungkit train squares-lite --data FOLDER/squares --compact"
    assert card.modality == "X-ray"
    assert card.training["learning_rate"] == TINY.learning_rate
    assert card.metrics["test"].times_scored == TINY.scored_before + 1 == 3


def test_a_recipe_states_population_and_licence_of_its_own_set_only(trained, squares, tmp_path):
    assert trained[0].card.about.population == TINY.population
    copied = shutil.copytree(squares, tmp_path / "squares")
    own, elsewhere = dataset.load(copied), dataset.load(shutil.copytree(squares, tmp_path / "elsewhere"))
    assert TINY.about(own)["population"] == TINY.population
    other = TINY.about(elsewhere, "lungkit train …")
    assert other == {
        "question": "X-ray: left or right?", "population": "not stated", "licence": "not stated",
        "command": "lungkit train …",
    }  # fmt: skip
    stated = TINY.about(elsewhere, population="made-up squares", licence="CC0")
    assert (stated["population"], stated["licence"]) == ("made-up squares", "CC0")
    (copied / "labels.csv").write_text("".join((copied / "labels.csv").read_text().splitlines(True)[:-4]))
    assert TINY.about(dataset.load(copied))["population"] == "not stated", "of the same name, but other images"


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (
            {"left": "left", "right": "above"},
            "squares-lite tells apart left, right, but squares is labelled above, left",
        ),
        ({"left": "Left ", "right": "RIGHT"}, ""),
        ({"left": "ｌｅｆｔ", "right": "right"}, ""),
    ],
)
def test_other_classes_are_refused_and_other_spellings_are_not(squares, tmp_path, names, refused):
    folder = shutil.copytree(squares, tmp_path / "squares")
    table = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    table.assign(label=table["label"].map(names)).to_csv(folder / "labels.csv", index=False)
    if not refused:
        return TINY.check(dataset.load(folder))
    for begin in (
        lambda: finetune.train_recipe(TINY, folder, tmp_path / "work"),
        lambda: tasks.recipe_task(TINY, folder),
    ):
        with pytest.raises(LungkitError, match=rf"{refused}; nothing was trained\. Name its classes as"):
            begin()
    assert not (tmp_path / "work").exists()
    return None


@pytest.mark.parametrize(("stated", "refused"), [("DX", ""), ("", ""), ("CT", "CT"), ("MR", "MRI"), ("US", "US")])
def test_images_of_another_modality_are_refused(squares, stated, refused):
    data = dataset.load(squares)
    data = dataclasses.replace(data, manifest=data.manifest.assign(modality=[stated, *["CR"] * 119]))
    if not refused:
        return TINY.check(data)
    with pytest.raises(LungkitError, match=f"squares-lite reads X-ray images, but squares holds {refused} images"):
        TINY.check(data)
    return None


def test_the_command_line_refuses_a_set_with_other_classes_before_it_trains(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "fit", lambda *_, **__: pytest.fail("trained"))
    for verb in (["train", "ct-infection"], ["search", "--recipe", "ct-infection"]):
        done = CliRunner().invoke(cli.app, [*verb, "--data", str(squares)])
        assert "ct-infection tells apart Normal, Pneumonia, COVID-19, but squares is labelled left, right" in str(
            done.exception
        )
    assert "ct-infection" not in registry.models()


def test_a_set_of_ones_own_is_trained_with_what_is_stated_of_it(squares, tmp_path, monkeypatch):
    short = dataclasses.replace(TINY, name="short", fold=None, epochs=1, scored_before=2)
    monkeypatch.setitem(recipes.RECIPES, "short", short)
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    mine = shutil.copytree(squares, tmp_path / "my squares")
    shown = CliRunner().invoke(cli.app, ["train", "short", "--data", str(mine), "--licence", "CC0"]).output
    about = registry.find("short").card.about
    assert about.to_dict() == {
        "question": "X-ray: left or right?", "population": "not stated", "licence": "CC0",
        "command": "lungkit train short --data 'FOLDER/my squares' --licence CC0",
    }  # fmt: skip
    assert "short@v1 is registered and active: no version was active before" in shown
    assert 'its card says "not stated" of population: state it with --population' in shown
    assert registry.find("short").card.metrics["test"].times_scored == 1


def test_a_compact_version_is_a_graph_alone_with_float16_weights_and_says_so_when_asked_for_keras(trained):
    version = trained[0]
    assert (version.folder / graph.FILE).is_file()
    assert version.card.graph["weights"] == "float16"
    assert not list(version.folder.glob("model.*"))
    with pytest.raises(LungkitError, match="kept as a graph alone"):
        saved.load(version)


def test_scoring_it_again_gives_the_cards_own_test_figures(trained, squares):
    version = trained[0]
    scored = release.score(version, release.data_for(version, str(squares)))
    assert scored.evaluation.to_dict()["auc"] == pytest.approx(version.card.metrics["test"].figure("auc").value)
    assert scored.seen_in_training == 0
    assert len(scored.labels) == version.card.data.counts["test"].images


def test_probes_are_asked_before_it_is_registered_with_a_reader_and_the_input_checks(trained):
    version, (asked, _) = trained
    outputs, flags = asked[0]
    assert outputs == set(graph.OUTPUTS)
    assert flags == (version.card.data.counts["test"].images,)
    assert version.card.trust == {"asked": True}


def test_a_finished_member_is_not_trained_again_and_other_settings_are_refused(trained, home, squares):
    folder = home / "work" / "fold-1-of-2"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.weights.h5")}
    again = finetune.members(TINY, squares, folder)
    assert len(again.history) == TINY.epochs
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.weights.h5")} == before
    with pytest.raises(resume.SettingsDiffer, match="learning_rate"):
        finetune.members(dataclasses.replace(TINY, learning_rate=1e-4), squares, folder)


def test_the_table_of_models_shows_the_figures_of_all_folds_with_their_intervals(trained):
    row = card_text.summary_row(str(trained[0]), trained[0].card, registry.size(trained[0]))
    together = trained[0].card.metrics["2 folds by patient or group"]
    assert row["model"] == "squares-lite@v1"
    assert row["reported on"] == "2 folds by patient or group: 120 images of 60 patients"
    assert row["AUC"] == str(together.figure("auc"))
    shown = CliRunner().invoke(cli.app, ["models", "table", "--markdown"]).output
    assert shown.splitlines()[2].startswith("| squares-lite@v1 |")


def test_every_recipe_names_what_clinicians_are_told_and_where_its_images_are():
    for name, recipe in recipes.RECIPES.items():
        assert name == recipe.name
        assert all([recipe.question, recipe.population, recipe.licence, recipe.data])
        assert recipe.modality in ("X-ray", "CT", "MRI")


def test_an_unknown_recipe_is_refused_with_the_list():
    with pytest.raises(LungkitError, match="there are: chest-xray-pneumonia"):
        recipes.find("chest")


def test_a_backbone_gets_its_head_first_then_learns_in_its_later_stages(squares, tmp_path, eager):
    recipe = dataclasses.replace(TINY, backbone="efficientnet_lite0", epochs=1, unfrozen="stage5", batch_size=32)
    tensors = finetune.recipe_data(recipe, squares)
    model, _ = finetune.member(recipe, tensors, tmp_path / "all", seed=2)
    whole = backbones.build("efficientnet_lite0", (32, 32, 1), 2, preprocessing=tensors.spec)
    changed = "block15_project_conv"
    assert np.abs(_kernel(model, changed) - _kernel(whole, changed)).max() > 1e-5
    for layer in ("stem_conv", "block5_expand_conv"):
        np.testing.assert_array_equal(_kernel(model, layer), _kernel(whole, layer))

    # With no share of what it learned then, it is the frozen backbone under the head, and that does tell them apart.
    frozen, _ = finetune.member(dataclasses.replace(recipe, tuned_share=0.0), tensors, tmp_path / "all", seed=2)
    np.testing.assert_array_equal(_kernel(frozen, changed), _kernel(whole, changed))
    for part, least in (("train", 0.8), ("val", 0.6)):  # 48 and 12 images; one in two is right by chance
        images = preprocess.read_batch(tensors.data.files(part), tensors.spec)
        predicted = release.logits(frozen, images).argmax(axis=1)
        assert (predicted == tensors.data.labels(part)).mean() > least
    half, _ = finetune.member(dataclasses.replace(recipe, tuned_share=0.5), tensors, tmp_path / "all", seed=2)
    between = (_kernel(model, changed) + _kernel(whole, changed)) / 2
    np.testing.assert_allclose(_kernel(half, changed), between, atol=1e-6)


def test_a_head_chosen_under_change_is_no_surer_than_changed_images_allow(squares, tmp_path):
    recipe = dataclasses.replace(TINY, backbone="efficientnet_lite0", epochs=0)
    tensors = finetune.recipe_data(recipe, squares)
    sizes = {}
    for under_change in (False, True):
        one = dataclasses.replace(recipe, head_under_change=under_change)
        head = finetune.start(one, tensors, tmp_path / f"{under_change}.npz", seed=2).model.get_layer("logits")
        sizes[under_change] = np.abs(head.get_weights()[0]).max()
    assert sizes[True] < 0.5 * sizes[False], "these squares are hard to tell apart once they are changed"
    assert "head_under_change" not in recipe.settings(), "trainings from before can continue"


def test_a_fine_tuned_member_is_joined_by_its_frozen_one(squares, tmp_path, eager):
    recipe = dataclasses.replace(TINY, backbone="efficientnet_lite0", epochs=1, unfrozen="stage5", seeds=(2,))
    recipe = dataclasses.replace(recipe, batch_size=32, members=({}, {"epochs": 0}))
    together = finetune.members(recipe, squares, tmp_path)
    tuned, _ = finetune.member(recipe, together.tensors, tmp_path / "seed-2", seed=2)
    head = tmp_path / "seed-2" / "head.npz"
    assert [*tmp_path.rglob("head.npz")] == [head], "both have the same one"
    assert together.history.query("member == 2")["seconds"].tolist() == [0]
    frozen = finetune.start(dataclasses.replace(recipe, epochs=0), together.tensors, head, seed=2).model
    one, other, both = (release.logits(model, together.tensors.validation) for model in (tuned, frozen, together.model))
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-4)


def test_a_member_that_sees_the_image_smaller_joins_the_others_with_maps_as_fine(squares, tmp_path):
    recipe = dataclasses.replace(TINY, **SHORT_LITE0, side=64, members=({}, {"sees": 32}), epochs=0, seeds=(2,))
    together = finetune.members(recipe, squares, tmp_path)
    large, small = (
        finetune.member(dataclasses.replace(recipe, sees=side), together.tensors, tmp_path / name, seed=2)[0]
        for name, side in (("seed-2", 0), ("seed-2-member-2", 32))
    )
    images = together.tensors.validation
    one, other, both = (release.logits(model, images) for model in (large, small, together.model))
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-4)
    blocks = images.reshape(-1, 32, 2, 32, 2, 1).mean(axis=(2, 4)).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(release.logits(small, blocks), other, atol=1e-4)  # it sees no finer detail
    assert [*together.history["member"].unique()] == [1, 2]


def test_members_whose_maps_do_not_fit_together_are_refused(squares, tmp_path):
    sides = {"until": "stage4", "side": 80, "members": ({}, {"sees": 40})}
    recipe = dataclasses.replace(TINY, **SHORT_LITE0 | sides, epochs=0)
    with pytest.raises(LungkitError, match="feature maps of 5 x 5 and 6 x 6 cells"):
        finetune.members(recipe, squares, tmp_path)


def test_a_member_with_other_images_than_the_rest_is_refused(squares, tmp_path):
    with pytest.raises(LungkitError, match="a member cannot differ in side, only in"):
        finetune.members(dataclasses.replace(TINY, epochs=0, members=({}, {"side": 64})), squares, tmp_path)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_says_as_a_dense_layer_what_logistic_regression_says(classes):
    random = np.random.default_rng(1)
    labels = np.arange(120) % classes
    features = (random.normal(size=(120, 5)) + 2 * np.eye(5)[labels]) * [1, 10, 1e-4, 2, 3] + 3
    weights = [fit.image_weights(of, classes) for of in (labels[:90], labels[90:])]
    kernel, bias = finetune.linear_head(features[:90], labels[:90], features[90:], labels[90:], *weights)
    assert (kernel.shape, bias.shape) == ((5, classes), (classes,))
    spread = features[:90].std(axis=0)
    standard = (features - features[:90].mean(axis=0)) / np.maximum(spread, np.median(spread))
    says = [
        LogisticRegression(C=1 / penalty, class_weight="balanced")
        .fit(standard[:90], labels[:90])
        .predict_proba(standard)
        for penalty in finetune.PENALTIES
    ]
    mine = scipy.special.softmax(features @ kernel + bias, axis=1)
    assert min(np.abs(mine - one).max() for one in says) < 1e-3
    assert (mine[90:].argmax(axis=1) == labels[90:]).mean() > 0.8
    assert np.abs(kernel[2]).max() < np.abs(kernel).max(), "a feature that hardly varies gets no large weight"


def _kernel(model, layer: str) -> np.ndarray:
    return model.get_layer(layer).get_weights()[0]


def test_ways_of_training_are_compared_on_the_validation_patients_with_what_they_took(squares, tmp_path):
    tuned = dataclasses.replace(TINY, fold=None, **SHORT_LITE0, epochs=1)
    ways = {"scratch": TINY, "frozen": dataclasses.replace(tuned, epochs=0), "tuned": tuned}
    tensors = finetune.recipe_data(tuned, squares)
    found = finetune.compare(ways, tensors, tmp_path)
    for way in found.values():
        np.testing.assert_array_equal(way.evaluation.true, tensors.data.labels("val"))
    table = finetune.comparison(found)
    largest, share = found["tuned"].evaluation.largest_class
    assert list(table.index) == [*ways, f"always '{largest}'"]
    assert table.iloc[-1].tolist() == ["0.500", f"{share:.3f}", "", "", ""]
    assert table.loc["frozen", "weights trained"] == "290"  # 144 features and a bias, for each of two classes
    assert found["frozen"].history["seconds"].sum() > 0
    assert found["tuned"].history["seconds"].iloc[0] == found["frozen"].history["seconds"].iloc[0], "one head, once"
    assert int(table.loc["tuned", "weights trained"].replace(",", "")) > 10_000
    seen_in_training = found["tuned"].history["val_loss"].iloc[-1]
    again = finetune.validation_loss(found["tuned"], tensors, tuned.label_smoothing)
    assert again == pytest.approx(seen_in_training, rel=1e-3)
    assert finetune.validation_loss(found["frozen"], tensors, tuned.label_smoothing) != pytest.approx(again, rel=1e-3)


def test_two_workers_train_a_backbone_along_the_curve_of_one_process(squares, tmp_path):
    recipe = dataclasses.replace(TINY, **SHORT_LITE0, epochs=2, dropout=0.0, mixup=0.0, augmentation={})
    tensors = finetune.recipe_data(recipe, squares)
    with in_this_process():
        _, alone = finetune.member(recipe, tensors, tmp_path / "1", seed=1, workers=1)
    _, together = finetune.member(recipe, tensors, tmp_path / "2", seed=1, workers=2)
    assert list(alone["epoch"]) == [0, 1, 2]
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=5e-3)
    np.testing.assert_allclose(together["val_loss"], alone["val_loss"], rtol=5e-3)


def test_a_recipe_takes_another_network_under_a_name_of_its_own():
    other = recipes.with_backbone(TINY, "densenet121")
    assert (other.name, other.backbone, other.learning_rate) == ("squares-lite-densenet121", "densenet121", 3e-3)
    assert recipes.with_backbone(TINY, "cnn") is TINY
    assert set(recipes.NETWORKS) == {"cnn", *backbones.NAMES}
    with pytest.raises(LungkitError, match=r"no network 'vgg19'; there are: cnn, .*, vgg16"):
        recipes.with_backbone(TINY, "vgg19")


def test_the_command_line_trains_another_network(squares, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "short", dataclasses.replace(TINY, name="short", fold=None, **SHORT_LITE0))
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    asked = []
    monkeypatch.setattr(
        finetune, "train_recipe", lambda recipe, *_, **options: asked.append((recipe, options)) or 1 / 0
    )
    CliRunner().invoke(cli.app, ["train", "short", "--data", str(squares), "--backbone", "cnn"])
    ((recipe, options),) = asked
    assert (recipe.name, recipe.backbone) == ("short-cnn", "cnn")
    assert options["command"] == "lungkit train short --data FOLDER/squares --backbone cnn"


# --- several sources


@pytest.fixture(scope="module")
def two_hospitals(home, squares):
    """The squares of two hospitals, whose pictures and classes differ, as one set."""
    other = home / "elsewhere"
    shutil.copytree(squares, other)
    for file in sorted(other.glob("*.png")):
        Image.open(file).point(lambda grey: min(255, grey + 9)).save(file)
    table = (other / "labels.csv").read_text().replace(",left,", ",port,").replace(",right,", ",starboard,")
    (other / "labels.csv").write_text(table)
    joined.join(home / "both", [squares, other], Labels.parse(["left=port", "right=starboard"]))
    return home / "both"


@pytest.fixture(scope="module")
def without_elsewhere(home, trained, two_hospitals):
    """A version trained on one hospital's images and measured on the other's."""
    both = dataclasses.replace(TINY, data="both", images={"left": 120, "right": 120}, fold=None, epochs=1)
    recipe = recipes.without(both, "elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        return finetune.train_recipe(recipe, two_hospitals, home / "each" / "without-elsewhere", compact=True)[0]


def test_a_recipe_without_a_source_is_trained_on_the_others_and_measured_on_it(without_elsewhere, two_hospitals):
    card = without_elsewhere.card
    assert (card.model, card.data.sources) == ("squares-lite-without-elsewhere", ("squares",))
    assert card.about.population == "squares, without elsewhere"
    (outside,) = card.outside
    assert (outside.source, outside.measured.n, outside.measured.patients, outside.seen) == ("elsewhere", 120, 60, 0)
    assert outside.measured.times_scored == 1 and not outside.left_out
    data = release.data_for(without_elsewhere, str(two_hospitals))
    assert set(data.sources("test")) == {"squares"}
    assert set(data.manifest.loc[data.manifest["split"] == "", "source"]) == {"elsewhere"}


def test_weights_by_source_need_a_single_process(squares, tmp_path):
    balanced = dataclasses.replace(TINY, balanced_sources=True)
    with pytest.raises(LungkitError, match="by a single process only"):
        finetune.member(balanced, finetune.recipe_data(balanced, squares), tmp_path, 1, workers=2)


def test_balanced_sources_weigh_alike_in_training_and_validation(two_hospitals):
    balanced = dataclasses.replace(TINY, balanced_sources=True)
    assert (balanced.settings()["balanced_sources"], "balanced_sources" in TINY.settings()) == (True, False)
    tensors = finetune.recipe_data(balanced, two_hospitals)
    data = tensors.data
    for part, stream in zip(("train", "val"), finetune.streams(balanced, tensors, 1), strict=True):
        weights = np.concatenate([stream[number][2] for number in range(len(stream))])
        expected = fit.image_weights(data.labels(part), 2, data.sources(part))
        np.testing.assert_allclose(np.sort(weights), np.sort(expected), rtol=1e-5)


def test_a_recipe_with_each_source_left_out_in_turn_has_their_figures_on_its_card(
    home, two_hospitals, without_elsewhere
):
    recipe = dataclasses.replace(TINY, name="squares-lite-both", fold=None, epochs=1)
    version, history = finetune.train_recipe(recipe, two_hospitals, home / "each", compact=True, each_left_out=True)
    card = registry.find("squares-lite-both").card
    assert card == version.card and card.data.sources == ("elsewhere", "squares")
    assert [(one.source, one.left_out, one.measured.n) for one in card.outside] == [
        ("elsewhere", True, 120),
        ("squares", True, 120),
    ]
    assert card.training["seconds"] > history["seconds"].sum()
    alone = without_elsewhere.card.outside[0].measured.figure("auc").value  # of the same training
    assert card.outside[0].measured.figure("auc").value == pytest.approx(alone, abs=0.01)
    row = card_text.summary_row(str(version), card, 0)
    assert row["worst unseen source"].startswith(f"{card.worst_first[0].source}: AUC ")
    assert row["worst unseen source"].endswith("120 images of 60 patients, left out of a training like this one")
    assert card_text.outside_row(card.outside[0])["scored"] == "left out of a training like this one"
    assert set(card.metrics["test"].sources) == {"elsewhere", "squares"}
    assert "Each source alone" in card_text.markdown(card)


def test_the_command_joins_the_sets_of_a_recipe_and_leaves_a_source_out(squares, two_hospitals, monkeypatch, tmp_path):
    labels = Labels.parse(["left=port", "right=starboard"])
    recipe = dataclasses.replace(TINY, name="squares-two", data="both", labels=labels, fold=None)
    monkeypatch.setitem(recipes.RECIPES, recipe.name, recipe)
    asked = []
    monkeypatch.setattr(finetune, "train_recipe", lambda *given, **more: asked.append((*given, more)) or sys.exit(7))
    folders = [str(two_hospitals / name) for name in ("squares", "elsewhere")]
    given = ["train", "squares-two", "--data", folders[0], "--data", folders[1], "--balance-sources"]
    assert CliRunner().invoke(cli.app, [*given, "--leave-out", "Elsewhere"]).exit_code == 7
    plan, source, _, more = asked.pop()
    assert (plan.name, plan.leave_out, plan.balanced_sources) == ("squares-two-without-elsewhere", "elsewhere", True)
    data = dataset.load(source)
    assert (data.name, data.source_names, data.classes) == ("both", ["elsewhere", "squares"], ("left", "right"))
    assert more["command"] == (
        "lungkit train squares-two --data FOLDER/squares --data FOLDER/elsewhere --leave-out Elsewhere "
        "--balance-sources"
    )
    CliRunner().invoke(cli.app, [*given, "--leave-out", "each"])
    assert asked.pop()[-1]["each_left_out"]
    refused = CliRunner().invoke(cli.app, [*given, "--leave-out", "Madrid"]).exception
    assert "'Madrid' is no source of these images; there are: elsewhere; squares" in str(refused)


def test_a_set_of_one_source_cannot_leave_each_out(squares, tmp_path):
    with pytest.raises(LungkitError, match="every image of squares is of squares"):
        finetune.train_recipe(TINY, squares, tmp_path, each_left_out=True)


# --- grades


def test_the_recipe_of_the_extent_of_covid_knows_its_public_set(shared_data):
    recipe = recipes.find("ct-covid-extent")
    data = dataset.load(shared_data / recipe.data, label_column=recipe.label_column, merged=recipe.merged)
    recipe.check(data)
    assert recipe.owns(data) and data.classes == tuple(recipe.images)
    assert "CT-4 (2) as CT-3/4" in " ".join(map(str, data.notes))


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Pictures whose bright part grows from grade to grade; the last grade has two patients."""
    folder, rng = tmp_path_factory.mktemp("grades") / "stripes", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file,label,severity,patient_id,split"]
    for patient, grade in enumerate([0, 1, 2, 3] * 8 + [4] * 2):
        pixels = rng.integers(0, 90, (32, 32))
        pixels[: 6 * grade + rng.integers(0, 3)] += 140
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{patient:02d}.png")
        lines.append(f"{patient:02d}.png,some,CT-{grade},p{patient:02d},")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def graded(home, stripes):
    """A version of a recipe whose classes are grades."""
    recipe = dataclasses.replace(
        TINY, name="stripes-extent", modality="CT", question="How much is bright?", data="stripes", epochs=10,
        images={"CT-0": 8, "CT-1": 8, "CT-2": 8, "CT-3/4": 10}, label_column="severity", grades=GRADES,
        merged={"CT-3/4": ["CT-3", "CT-4"]},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        return finetune.train_recipe(recipe, stripes, home / "stripes", compact=True)[0]


def test_grades_are_kept_by_the_card_and_measured_by_kappa_over_all_folds(graded):
    card = registry.find(str(graded)).card
    assert (card.classes, card.rule.kind, card.rule.grades) == (CLASSES, "median", GRADES)
    together = card.metrics["2 folds by patient or group"]
    assert together.n == 34 and together.figure("kappa").value > 0.3 and together.figure("kappa").interval[0] > -1
    assert together.conformal.level == 0.9 and 0.5 < together.conformal.coverage <= 1
    assert card.about.population == TINY.population, "the set with its merged grades is the recipe's own"
    assert "grades in it" in dict(card_text.figures_table("folds", together).rows)["True grade in the range"][0]
    assert "quadratic kappa" in card_text.summary_row(str(graded), card, 0)["macro F1"]


def test_a_model_of_grades_is_scored_on_its_own_test_part_and_on_the_grades_as_published(graded, stripes):
    data = release.data_for(graded, str(stripes))
    assert data.fingerprint == graded.card.data.fingerprint
    shown = CliRunner().invoke(cli.app, ["evaluate", "--model", str(graded), "--data", str(stripes)]).output
    assert "Quadratic kappa without CT-1" in shown and "AUC, CT-0 against CT-2 and above" in shown
    assert "One class: CT-3 (8) as CT-3/4, CT-4 (2) as CT-3/4" in " ".join(shown.split())


def test_predict_answers_with_a_range_of_grades_in_words_and_in_json(graded, stripes):
    given = ["predict", str(stripes / "02.png"), "--model", str(graded)]
    said, record = (CliRunner().invoke(cli.app, [*given, *more]).stdout for more in ([], ["--json"]))
    told = json.loads(record)["grades"]
    assert set(told["names"]) <= set(CLASSES) and told["extent"].endswith("% of the lungs")
    assert told["percent"][0] < told["percent"][1] and told["caution"] == CAUTION
    assert f"{told['probability']:.3f}); {told['extent']}; " in said and said.strip().endswith(CAUTION)


def test_grades_in_another_order_are_refused(stripes, tmp_path):
    names = ["CT-1", "CT-0", "CT-2", "CT-3"]
    for name in names:
        (tmp_path / "other" / name).mkdir(parents=True)
        shutil.copy(stripes / "00.png", tmp_path / "other" / name / f"{name}.png")
    (tmp_path / "other" / "dataset.json").write_text(json.dumps({"classes": names}))
    recipe = dataclasses.replace(TINY, modality="", images=dict.fromkeys(sorted(names), 1), grades=GRADES)
    with pytest.raises(LungkitError, match=r"grades in the order CT-0, CT-1, .* but other has them in .* CT-1, CT-0"):
        recipe.check(dataset.load(tmp_path / "other"))


def test_decisions_are_in_the_recipe_by_their_content_and_the_excluded_image_is_not_learned_from(squares, tmp_path):
    whole = dataset.load_split(squares, seed=7, overlap="set_aside")
    row = whole.part("train").iloc[0]
    decisions.write(tmp_path / "d.csv", [decisions.Decision(row["file"], row["sha256"], "exclude")])
    recipe = recipes.Recipe(side=32, decisions=str(tmp_path / "d.csv"))
    tensors = finetune.recipe_data(recipe, squares)
    assert tensors.how["decisions"] == decisions.kept(tmp_path / "d.csv")
    assert len(tensors.train) == len(whole.part("train")) - 1
    assert "decisions" not in recipe.settings(), "the data set's fingerprint tells trainings apart"
