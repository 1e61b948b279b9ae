"""A graph is put into 8 bits only if it separates the classes as well, and the version is then fitted to that graph."""

import numpy as np
import pytest

from lungkit.data import dataset, preprocess
from lungkit.models import card_text, cnn, graph
from lungkit.models.registry import verify
from lungkit.training import evaluation, export, gradcam, quantization, release
from tests.training.test_release import RECIPE, SPEC, model  # noqa: F401

pytest.importorskip("nncf", reason="the extra int8 is not installed")


def _rounded(folder) -> int:
    return sum(node.get_type_name() == "FakeQuantize" for node in graph.read(folder).get_ops())


@pytest.fixture(scope="module")
def version(squares, model, tmp_path_factory):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "ARTIFACTS"):
            patch.setenv(f"LUNGKIT_{name}", str(tmp_path_factory.mktemp(name)))
        chest = dataset.load_split(squares, **RECIPE)
        made = release.register(
            model, "squares-int8", chest, SPEC, architecture={}, training={}, recipe=RECIPE, int8=True, test_too=True
        )
        yield made, chest


def test_a_version_in_8_bits_says_so_on_its_card_with_both_intervals_and_speeds(version):
    made, _ = version
    verify(made)
    tried = made.card.int8
    assert tried.kept and _rounded(made.folder) > 0
    for before, after in zip(
        (tried.float32.auc, *tried.float32.interval), (tried.int8.auc, *tried.int8.interval), strict=True
    ):
        assert abs(after - before) <= quantization.MOST
    rows = dict(card_text.sections(made.card)["8 bits"])
    assert rows["The graph computes in"].startswith("8 bits: ")
    assert rows["AUC on validation in 8 bits"] == str(made.card.metrics["val"].figure("auc"))
    assert "times as fast" in rows["Processor time of an image"]
    assert "none of validation or test" in rows["Ranges of the feature maps from"]
    assert made.card.graph["precision"] == "int8"
    assert "## 8 bits" in (made.folder / "README.md").read_text()


def test_what_was_chosen_on_validation_was_chosen_with_the_graph_in_8_bits(version):
    made, chest = version
    labels = chest.labels("val")
    scores = graph.Graph(made.folder)(preprocess.read_batch(chest.files("val"), SPEC))["probabilities"]
    scores = scores.astype(np.float64) / scores.sum(axis=1, keepdims=True)
    named = made.rule.prediction_set(scores)[np.arange(len(labels)), labels]
    assert named.mean() >= made.rule.conformal.level
    again = evaluation.evaluate(labels, scores, chest.patients("val"), chest.classes, made.rule)
    for metric in ("auc", "brier", "ece", "accuracy"):
        assert made.card.metrics["val"].figure(metric).value == pytest.approx(again.value(metric)[0], abs=1e-6)


def test_the_heat_maps_of_a_graph_in_8_bits_are_much_like_those_of_keras(version, model):  # noqa: F811
    made, chest = version
    tensors, labels = preprocess.read_batch(chest.files("test"), SPEC), chest.labels("test")
    heat = release.heat_maps(made, tensors, labels)
    assert heat.shape == (len(tensors), 32, 32) and np.isfinite(heat).all() and heat.max() == 1
    expected = gradcam.gradcam(model, tensors, labels)
    assert np.corrcoef(heat.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.fixture
def exported(tmp_path):
    export.write(cnn.build((32, 32, 1), 2, filters=4, blocks=2), tmp_path, temperature=2.0)
    return tmp_path


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 32, 32, 1)).astype(np.float32)


@pytest.mark.parametrize("after", [(0.903, 0.85, 0.95), (0.9, 0.847, 0.95), (0.9, 0.85, 0.953), (np.nan,) * 3])
def test_a_graph_whose_auc_or_interval_moves_too_far_stays_in_float32(exported, noise, after):
    before = (exported / graph.FILE).read_bytes()
    answers = iter([(0.9, 0.85, 0.95), after, after])
    tried = quantization.attempt(exported, noise, lambda runtime: next(answers))
    assert not tried.kept and (exported / graph.FILE).read_bytes() == before
    assert {file.name for file in exported.iterdir()} == {"graph.xml", "graph.bin"}
    assert tried.in_float32 == "the head, the first and the last convolutions", "it was tried a second time"
    expected = "have no AUC" if np.isnan(after[0]) else "moves by 0.0030; at most 0.002 is accepted"
    assert expected in tried.reason


def test_the_second_attempt_leaves_the_ends_in_float32_and_is_kept_if_it_does_as_well(exported, noise):
    found = []

    def auc(runtime):
        made = exported / "int8"
        found.append(_rounded(made if made.exists() else exported))
        return (0.9, 0.8, 1.0) if len(found) != 2 else (0.8, 0.7, 0.9)

    tried = quantization.attempt(exported, noise, auc)
    none, all_but_head, fewer = found
    assert none == 0 and all_but_head > fewer
    assert tried.kept and _rounded(exported) == fewer


def test_a_new_temperature_divides_the_logits_of_a_graph(exported, noise):
    before = graph.Graph(exported)(noise)
    export.divide_logits(exported, 3.0)
    after = graph.Graph(exported)(noise)
    expected = before["probabilities"] ** (1 / 3)
    np.testing.assert_allclose(after["probabilities"], expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(after["heat"], before["heat"], atol=1e-5)
