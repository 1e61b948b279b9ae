"""The map of the embedding, what explains it (checked against scikit-learn and scipy), and neighbours."""

import shutil
from types import SimpleNamespace

from lungkit.backend import keras

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from lungkit.data import dataset, preprocess
from lungkit.errors import LungkitError
from lungkit.models import input_checks
from lungkit.training import embedding_map, export
from lungkit.training.embedding_map import Embedded, explained_by

SPEC = preprocess.Preprocessing(size=(32, 32), mean=0.3, std=0.25)


def points_of_groups(rng, n=120, apart=1.0):
    """Points (n, 2), three groups that lie apart, and the patients: two images each."""
    groups = np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    points = rng.normal(size=(n, 2))
    points[:, 0] += apart * (groups == "a") - apart * (groups == "c")
    return points, groups, np.arange(n) // 2


# --- what explains a map


def test_the_share_that_groups_explain_is_that_of_a_regression_on_them():
    points, groups, patients = points_of_groups(np.random.default_rng(1))
    found = explained_by(points, groups, patients)
    design = pd.get_dummies(groups).to_numpy(float)
    predicted = LinearRegression().fit(design, points).predict(design)
    assert found.share == pytest.approx(r2_score(points, predicted, multioutput="variance_weighted"))
    assert found.low < found.share < found.high


def test_the_share_that_a_number_explains_is_r_squared():
    rng = np.random.default_rng(2)
    number = rng.normal(size=200)
    points = np.column_stack([number + rng.normal(size=200), np.zeros(200)])
    r = scipy.stats.pearsonr(number, points[:, 0]).statistic
    assert explained_by(points, number, np.arange(200)).share == pytest.approx(r**2)


def test_the_interval_holds_the_true_share_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(3), 0
    true = 0.5  # of x + noise of the same variance
    for _ in range(30):
        number = rng.normal(size=150)
        points = np.column_stack([number + rng.normal(size=150), np.zeros(150)])
        found = explained_by(points, number, np.arange(150))
        inside += found.low <= true <= found.high
    assert inside >= 25  # 95 % of 30 are 28 or 29


def test_the_interval_is_by_patient_so_that_copies_of_an_image_add_nothing():
    points, groups, _ = points_of_groups(np.random.default_rng(4))
    once = explained_by(points, groups, np.arange(len(points)))
    often = explained_by(np.repeat(points, 5, axis=0), np.repeat(groups, 5), np.repeat(np.arange(len(points)), 5))
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.2)
    assert often.chance == once.chance


def test_random_groups_explain_about_what_chance_does():
    rng = np.random.default_rng(5)
    shares = []
    for _ in range(20):
        groups = np.array(list("abcd"))[rng.integers(0, 4, 80)]
        shares.append(explained_by(rng.normal(size=(80, 2)), groups, np.arange(80)))
    assert np.mean([one.share for one in shares]) == pytest.approx(shares[0].chance, rel=0.4)


@pytest.mark.parametrize("values", [np.full(20, "one hospital"), np.full(20, 0.5)])
def test_what_has_one_value_explains_nothing_that_could_be_stated(values):
    found = explained_by(np.random.default_rng(6).normal(size=(20, 2)), values, np.arange(20))
    assert np.isnan(found.share)
    assert embedding_map.table({"source": found}).to_numpy().tolist() == [["one value", "–"]]


def test_a_network_that_gives_every_image_the_same_embedding_is_called_so_without_a_warning(recwarn):
    found = explained_by(np.zeros((6, 2)), np.array(["a", "b"] * 3), np.arange(6))
    assert np.isnan(found.share) and not recwarn.list
    assert "has not learned anything yet" in embedding_map.says({"label": found})


def shares_of(**of):
    return {name: embedding_map.Explained(share, share - 0.05, share + 0.05, 0.01) for name, share in of.items()}


def test_a_shortcut_is_named_where_something_else_explains_as_much_as_the_label():
    assert (
        "**Source (50 % (45–55 %)) explains at least as much of the map as the label does** (40 % (35–45 %))"
        in embedding_map.says(shares_of(label=0.4, source=0.5, brightness=0.1))
    )
    assert "no shortcut of these two kinds" in embedding_map.says(shares_of(label=0.8, source=0.2, brightness=0.1))
    none = shares_of(label=0.8, brightness=0.1) | {"source": embedding_map.Explained(*[np.nan] * 4)}
    assert "no shortcut of these two kinds" in embedding_map.says(none)


# --- the map


def test_the_map_is_that_of_scikit_learns_exact_pca_up_to_the_sign():
    vectors = np.random.default_rng(7).normal(size=(60, 8)) * np.arange(1, 9)
    found, oracle = embedding_map.project(vectors), PCA(2, svd_solver="full").fit(vectors)
    assert np.abs(found.points) == pytest.approx(np.abs(oracle.transform(vectors)), abs=1e-8)
    assert found.variance == pytest.approx(oracle.explained_variance_ratio_)


def test_an_embedding_without_any_spread_still_makes_a_map():
    found = embedding_map.project(np.ones((5, 3)))
    assert not found.points.any() and not found.variance.any()
    with pytest.raises(LungkitError, match="2 images make no map; accepted: 3 or more"):
        embedding_map.project(np.ones((2, 3)))


# --- neighbours


def embedded(vectors, patients, parts, hashes=None):
    n = len(vectors)
    rows = pd.DataFrame({
        "file": [f"{i}.png" for i in range(n)], "label": "a", "patient_id": patients, "split": parts, "source": "s",
        "sha256": hashes or [f"{i:064}" for i in range(n)],
    })  # fmt: skip
    return Embedded(None, None, rows, np.array(vectors, float), np.zeros(n))


def test_neighbours_are_training_images_of_other_patients_the_nearest_first():
    of = embedded([[0], [0.1], [1], [3], [0.2]], ["p", "p", "q", "r", "s"], ["train", "train", "train", "train", "val"])
    assert embedding_map.neighbours(of, [0, 4], count=2).tolist() == [[2, 3], [1, 0]]


def test_a_patient_with_the_same_file_is_no_other_patient_and_missing_neighbours_are_marked():
    same = "f" * 64
    of = embedded([[0], [0], [1]], ["p", "q", "r"], ["train"] * 3, [same, same, "0" * 64])
    assert embedding_map.neighbours(of, [0]).tolist() == [[2, -1, -1]]


# --- from files


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """An exported network with random weights, and what a version has that is asked for here."""
    keras.utils.set_random_seed(1)
    image = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(6, 5, activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    model, folder = keras.Model(image, keras.layers.Dense(2)(x)), tmp_path_factory.mktemp("version")
    export.write(model, folder, 1.0, False)
    card = SimpleNamespace(preprocessing=SPEC, classes=("left", "right"))
    return SimpleNamespace(folder=folder, card=card, keras=keras.Model(image, x))


def test_every_readable_image_is_embedded_as_keras_does_with_its_brightness(version, squares, monkeypatch):
    monkeypatch.setattr(embedding_map.registry, "verify", lambda _: None)
    chest = dataset.load_split(squares, quiet=True)
    found = embedding_map.embed(version, chest)
    tensors = preprocess.read_batch(chest.files(), SPEC)
    wanted = input_checks.embedding_features(version.keras.predict(tensors, verbose=0))
    assert found.vectors == pytest.approx(wanted, abs=1e-4)
    assert found.rows["file"].tolist() == chest.part()["file"].tolist()
    grey = [np.asarray(PIL.Image.open(file)).mean() / 255 for file in chest.files()[:5]]
    assert found.brightness[:5] == pytest.approx(grey, abs=2e-3)
    assert found.pictures([0, 3])[1] == pytest.approx(np.asarray(PIL.Image.open(chest.files()[3])) / 255, abs=5e-3)


def test_an_image_that_cannot_be_read_any_more_is_named_and_left_out(version, squares, monkeypatch, tmp_path):
    monkeypatch.setattr(embedding_map.registry, "verify", lambda _: None)
    shutil.copytree(squares, tmp_path / "squares")
    chest = dataset.load_split(tmp_path / "squares", quiet=True)
    chest.files()[3].write_bytes(b"damaged")
    found = embedding_map.embed(version, chest)
    assert [file for file, _ in found.unreadable] == [chest.part()["file"].iloc[3]]
    assert len(found.rows) == len(found.vectors) == len(found.brightness) == len(chest.files()) - 1
    assert found.unreadable[0][0] not in set(found.rows["file"])
