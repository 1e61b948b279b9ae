"""What a chest X-ray model's card says on trust, on pictures whose cues are known and models that read one of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from lungkit.data import dataset, preprocess
from lungkit.errors import LungkitError
from lungkit.training import probes, release
from tests.cards import model_card

# Pictures of 40 x 60 pixels lie unscaled in rows 10 to 50 of the tensor; above and below is black.
SPEC = preprocess.Preprocessing(size=(60, 60), mean=0.4, std=0.2)
HEIGHT, WIDTH, ABOVE = 40, 60, 10
LUNGS = [(slice(10, 30), slice(10, 24)), (slice(10, 30), slice(36, 50))]
MARKER = (slice(0, 2), slice(2, 6))
SHARE = 2 * 20 * 14 / (HEIGHT * WIDTH)  # of the picture, that the lungs take up


def _picture(sick: bool, rng) -> np.ndarray:
    """Sick: stripes in the lungs, and a marker in the corner; each as bright on average as what is there otherwise."""
    pixels = rng.normal(rng.uniform(90, 140), 4, (HEIGHT, WIDTH))
    for rows, columns in [*LUNGS, MARKER] if sick else []:
        pixels[rows, columns][:, ::2] += 40
        pixels[rows, columns][:, 1::2] -= 40
    return pixels.clip(0, 255).astype(np.uint8)


def _mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for place in LUNGS:
        mask[place] = 255
    return mask


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """A folder laid out as covid_chestxray: 20 normal and 40 sick frontal X-rays, masks of the sick alone."""
    folder = tmp_path_factory.mktemp("outside") / "elsewhere"
    folder.mkdir()
    rng = np.random.default_rng(1)
    rows = []
    for patient in range(30):
        label = ("normal", "covid19", "other")[patient % 3]
        for number in range(2):
            name = f"p{patient:02d}_{number}.png"
            Image.fromarray(_picture(label != "normal", rng)).save(folder / name)
            mask = "" if label == "normal" else f"mask_{name}"
            if mask:
                Image.fromarray(_mask()).save(folder / mask)
            rows.append((name, label, f"p{patient}", "X-ray", ("PA", "AP", "AP Supine")[patient % 3 - number], mask))
    # Not frontal X-rays: were one of these opened, it would not be there.
    rows += [("lateral.png", "normal", "p90", "X-ray", "L", ""), ("slice.png", "covid19", "p91", "CT", "Axial", "")]
    columns = ["file", "label", "patient_id", "modality", "view", "lung_mask_v7"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> dataset.Dataset:
    """A model's own data, whose test images are gone after it was split: no probe may open one."""
    folder = tmp_path_factory.mktemp("own") / "chests"
    folder.mkdir()
    rng = np.random.default_rng(2)
    rows = []
    for patient in range(80):
        label = ("NORMAL", "PNEUMONIA")[patient % 2]
        Image.fromarray(_picture(label != "NORMAL", rng)).save(folder / f"{patient}.png")
        rows.append((f"{patient}.png", label, f"p{patient}", ("train", "val", "test")[patient // 2 % 3]))
    pd.DataFrame(rows, columns=["file", "label", "patient_id", "split"]).to_csv(folder / "labels.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_DATA", str(tmp_path_factory.mktemp("prepared")))
        chests = dataset.load_split(folder)
    for file in chests.files("test"):
        file.unlink()
    return chests


def _stripes(tensors: np.ndarray, places: list) -> np.ndarray:
    """How striped these places of the picture are: (n,), rounded, so that a filled place gives exactly 0."""
    pictures = tensors[:, ABOVE : ABOVE + HEIGHT, :, 0] * SPEC.std
    found = [pictures[:, r, c][:, :, ::2].mean((1, 2)) - pictures[:, r, c][:, :, 1::2].mean((1, 2)) for r, c in places]
    return np.mean(found, axis=0).round(4)


def _candidate(places=LUNGS, heat=None, flagged=(), classes=("NORMAL", "PNEUMONIA")) -> release.Candidate:
    """A model that reads the stripes in some places, whose heat is `heat` (height, width) for the class it names."""
    heat = np.ones(SPEC.size, np.float32) if heat is None else heat

    def read(tensors):
        assert tensors.shape[1:] == (*SPEC.size, 1)
        sick = 0.1 + 0.8 / (1 + np.exp(-40 * (_stripes(tensors, places) - 0.15)))
        rest = len(classes) - 1
        found = np.column_stack([1 - sick, *[sick / rest] * rest]).astype(np.float32)
        # The map of a class that is not named is another one.
        maps = np.where(np.eye(len(classes))[found.argmax(axis=1)][..., None, None] > 0, heat, np.full_like(heat, 0.5))
        return {"probabilities": found, "heat": maps.astype(np.float32), "embedding": np.zeros((len(tensors), 3))}

    card = model_card(classes=list(classes), preprocessing=SPEC.to_dict())
    return release.Candidate(card, read, lambda files: np.array([file.name in flagged for file in files]))


def _placed(picture: np.ndarray) -> np.ndarray:
    tensor = np.zeros(SPEC.size, np.float32)
    tensor[ABOVE : ABOVE + HEIGHT] = picture
    return tensor


# --- out of source


def test_out_of_source_counts_frontal_x_rays_alone_by_the_folders_labels(outside):
    found = probes.out_of_source(_candidate(), outside)
    assert (found["collection"], found["images"], found["patients"]) == ("elsewhere", 60, 30)
    assert set(found["labels"]) == {"normal", "covid19", "other"}
    assert all((of["images"], of["patients"]) == (20, 10) for of in found["labels"].values())


@pytest.mark.parametrize("classes", [("NORMAL", "PNEUMONIA"), ("NORMAL", "BACTERIAL", "VIRAL")])
def test_a_reader_of_lungs_tells_normal_from_the_rest_whatever_its_other_classes(outside, classes):
    assert probes.out_of_source(_candidate(classes=classes), outside)["auc"]["value"] == 1


def test_the_auc_is_of_one_minus_the_probability_of_normal_wherever_that_class_stands(outside):
    candidate = _candidate(classes=("NORMAL", "PNEUMONIA"))
    # The same outputs, their names exchanged.
    candidate = replace(candidate, card=replace(candidate.card, classes=("PNEUMONIA", "Normal")))
    assert probes.out_of_source(candidate, outside)["auc"]["value"] == 0


def test_the_input_checks_shares_are_by_label_and_the_auc_is_also_of_what_they_let_pass(outside):
    flagged = [f"p{patient:02d}_{number}.png" for patient in (0, 1, 4) for number in (0, 1)]  # 1 normal, 2 covid19
    found = probes.out_of_source(_candidate(flagged=flagged), outside)
    assert found["flagged"] == pytest.approx(6 / 60)
    shares = {label: of["flagged"] for label, of in found["labels"].items()}
    assert shares == pytest.approx({"normal": 0.1, "covid19": 0.2, "other": 0})
    assert (found["unflagged"]["images"], found["unflagged"]["patients"]) == (54, 27)
    assert found["unflagged"]["auc"]["value"] == 1


def test_without_a_normal_image_that_the_checks_let_pass_there_is_no_auc_of_these(outside):
    flagged = [f"p{patient:02d}_{number}.png" for patient in range(0, 30, 3) for number in (0, 1)]
    found = probes.out_of_source(_candidate(flagged=flagged), outside)
    assert found["unflagged"]["auc"] == {"value": None, "low": None, "high": None}
    assert found["auc"]["value"] == 1


# --- shortcuts


def _aucs(candidate, own, outside, place) -> dict:
    found = probes.shortcuts(candidate, own, outside)[place]["auc"]
    return {view: figure["value"] for view, figure in found.items()}


@pytest.mark.parametrize("place", ["elsewhere", "own_validation"])
def test_a_reader_of_lungs_is_at_chance_without_them_and_at_home_with_them_alone(own, outside, place):
    assert _aucs(_candidate(LUNGS), own, outside, place) == {
        "as_is": 1, "lungs_hidden": 0.5, "only_lungs_shown": 1, "border_hidden": 1,
    }  # fmt: skip


@pytest.mark.parametrize("place", ["elsewhere", "own_validation"])
def test_a_reader_of_a_marker_needs_the_border_and_no_lungs(own, outside, place):
    assert _aucs(_candidate([MARKER]), own, outside, place) == {
        "as_is": 1, "lungs_hidden": 1, "only_lungs_shown": 0.5, "border_hidden": 0.5,
    }  # fmt: skip


def test_validation_images_are_counted_and_no_test_image_is_opened(own, outside):
    assert not any(file.exists() for file in own.files("test"))
    found = probes.shortcuts(_candidate(), own, outside)["own_validation"]
    assert (found["images"], found["patients"]) == (len(own.files("val")), len(set(own.patients("val"))))
    assert found["normal"]["images"] == int((own.labels("val") == 0).sum())


def test_what_is_hidden_takes_the_mean_brightness_of_what_is_left_of_the_picture(own, outside):
    seen = []
    candidate = _candidate()
    watching = replace(candidate, read=lambda t: seen.append(t) or candidate.read(t))
    probes.shortcuts(watching, own, outside)
    as_is, no_lungs, lungs, no_border = (seen[0][i, ABOVE : ABOVE + HEIGHT, :, 0] for i in range(4))
    lung = _mask() > 0
    for picture, shown, at_least in ((no_lungs, no_lungs == as_is, ~lung), (lungs, lungs == as_is, lung)):
        assert np.sum(shown != at_least) <= 2 * (20 + 14) * 2, "a pixel around each lung, at most"
        np.testing.assert_allclose(picture[~shown], as_is[shown].mean(), atol=1e-4)
    assert not np.any((no_lungs == as_is)[lung]), "no lung is left"
    middle = np.zeros_like(lung)
    middle[4:36, 6:54] = True  # a tenth of 40 rows and of 60 columns on each side
    np.testing.assert_allclose(no_border[~middle], as_is[middle].mean(), atol=1e-5)
    np.testing.assert_array_equal(no_border[middle], as_is[middle])
    black = -SPEC.mean / SPEC.std
    assert np.all(seen[0][1, :ABOVE] == pytest.approx(black)), "with the lungs hidden, all else stays"
    assert not np.any(np.isclose(seen[0][2:, :ABOVE], black)), "the bars tell the picture's proportions"


# --- heat


def test_a_uniform_map_gets_the_lungs_share_of_the_picture_not_of_the_tensor(outside):
    found = probes.heat_in_lungs(_candidate(), outside)
    assert (found["images"], found["patients"], found["labels"]) == (40, 20, ["covid19", "other"])
    for name in ("energy_inside", "uniform"):
        assert found[name] == pytest.approx({"value": SHARE, "low": SHARE, "high": SHARE})
    assert found["above_uniform"] == pytest.approx({"value": 0, "low": 0, "high": 0})


def test_heat_of_the_named_class_in_the_lungs_alone_is_all_inside(outside):
    found = probes.heat_in_lungs(_candidate(heat=_placed(_mask() / 255)), outside)
    assert found["energy_inside"]["value"] == pytest.approx(1)
    assert found["above_uniform"]["value"] == pytest.approx(1 - SHARE)


def test_heat_beside_the_lungs_is_none_inside(outside):
    found = probes.heat_in_lungs(_candidate(heat=_placed(_mask() == 0)), outside)
    assert found["energy_inside"]["value"] == 0


# --- what it says


@pytest.fixture
def told(own, outside):
    """The sentences on a candidate."""
    return lambda candidate: probes.chest_xray(candidate, own, outside)["says"]


def test_of_a_reader_of_lungs_it_says_so(told):
    first, *rest = told(_candidate(LUNGS, heat=_placed(_mask() / 255)))
    assert "it tells normal from the rest: AUC 1.000" in first
    assert "with 20 normal images of 10 patients among 60. Its input checks flag 0 % of them." in first
    lungs = "nothing of its score is seen to come from outside the lungs: AUC 0.500"
    border = "it does no worse with the outer 10 % of each side hidden: AUC 1.000"
    wheres = ("On elsewhere", "On its own validation")
    starts = [f"{where}: {what}" for where in wheres for what in (lungs, border)]
    assert [text[: len(start)] for text, start in zip(rest[:4], starts, strict=True)] == starts
    assert rest[4].startswith("Its heat lies in the lungs more than chance would have it: a share of 1.000")


def test_of_a_reader_of_a_marker_it_says_that_its_score_comes_from_elsewhere(told):
    _, *rest = told(_candidate([MARKER], heat=_placed(_mask() == 0)))
    for where, sentences in (("On elsewhere", rest[:2]), ("On its own validation", rest[2:4])):
        assert sentences[0].startswith(f"{where}: part of its score comes from outside the lungs: AUC 1.000")
        assert sentences[1].startswith(f"{where}: it does worse with the outer 10 % of each side hidden: AUC 0.500")
    assert "less than chance would have it" in rest[4]


def test_of_a_model_at_chance_it_says_that_hiding_says_nothing(told):
    first, *rest = told(_candidate([(slice(32, 38), slice(20, 40))]))
    assert "it is not shown to tell normal from the rest" in first
    assert [text.split(": ", 1)[1] for text in rest[:2]] == [probes._SAYS_NOTHING] * 2
    assert "no more than chance would have it" in rest[2]


def test_without_a_normal_validation_image_only_the_other_place_is_spoken_of(told, own, outside):
    sick = own.manifest[own.manifest["label"] != "NORMAL"]
    trust = probes.chest_xray(_candidate(), dataset.Dataset(own.name, own.classes, sick, own.root), outside)
    assert trust["shortcuts"]["own_validation"]["auc"]["as_is"]["value"] is None
    assert f"On its own validation: {probes._SAYS_NOTHING}" in trust["says"]


# --- in the card


# About 5 s: a network is exported.
def test_a_registered_versions_card_holds_it_as_strict_json(own, outside):
    keras.utils.set_random_seed(1)
    present = own.manifest[own.manifest["split"] != "test"]
    chests = dataset.Dataset(own.name, own.classes, present, own.root)
    version = release.register(
        _tiny(),
        "chests", chests, SPEC, architecture={}, training={}, recipe={},
        probes=partial(probes.chest_xray, own=chests, outside=outside),
    )  # fmt: skip
    trust = json.loads((version.folder / "card.json").read_text())["trust"]
    assert set(trust) == {"out_of_source", "shortcuts", "heat_in_lungs", "says"}
    assert json.loads(json.dumps(trust, allow_nan=False)) == trust
    assert len(probes.table(trust)) > 20


def _tiny() -> keras.Model:
    inputs = keras.Input((*SPEC.size, 1))
    x = keras.layers.Conv2D(4, 5, activation="relu")(inputs)
    x = keras.layers.Dropout(0.1)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def test_the_table_has_a_row_for_each_figure_however_deep_it_lies():
    trust = {
        "out_of_source": {
            "images": 9, "patients": 4, "auc": {"value": 0.75, "low": 0.5, "high": 0.9}, "flagged": 0.25,
        },
        "labels": ["a", "b"],
        "unknown": {"auc": {"value": None, "low": None, "high": None}},
        "says": ["A sentence."],
    }  # fmt: skip
    assert probes.table(trust)[""].to_dict() == {
        "out of source": "9 images of 4 patients",
        "out of source · auc": "0.750 (0.500–0.900)",
        "out of source · flagged": "0.250",
        "labels": "a, b",
        "unknown · auc": "–",
    }


def test_the_table_of_what_a_card_says_about_a_model_is_its_words():
    about = {"question": "Normal or pneumonia?", "seeds": 2}
    assert probes.table(about)[""].to_dict() == {"question": "Normal or pneumonia?", "seeds": "2"}


# --- what is refused


def _changed(outside: Path, folder: Path, change) -> Path:
    """The folder's labels.csv, changed, beside no image."""
    folder.mkdir(exist_ok=True)
    table = pd.read_csv(outside / "labels.csv", dtype=str, keep_default_na=False)
    change(table).to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="view"), r"labels\.csv has no column view; it needs file, label"),
        (lambda table: table[table["label"] != "normal"], "has 0 normal and 40 other frontal X-rays"),
        (lambda table: table.assign(view="L"), "has 0 normal and 0 other frontal X-rays"),
        (lambda table: table.assign(lung_mask_v7=""), "no lung mask for a frontal X-ray"),
    ],
)
def test_a_folder_that_is_not_what_is_expected_is_refused_in_words(outside, tmp_path, change, said):
    folder = _changed(outside, tmp_path / "other", change)
    with pytest.raises(LungkitError, match=said):
        probes.out_of_source(_candidate(), folder)


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(LungkitError, match=r"needs a labels\.csv such as that of covid_chestxray"):
        probes.out_of_source(_candidate(), tmp_path / "nowhere")


def test_a_model_without_a_class_that_is_called_normal_is_refused(outside):
    with pytest.raises(LungkitError, match=r"classes are glioma, none; these probes need one that is called normal"):
        probes.out_of_source(_candidate(classes=("glioma", "none")), outside)


@pytest.mark.parametrize("value", [0, 255])
def test_masks_without_lungs_or_of_nothing_else_are_refused(tmp_path, value):
    Image.fromarray(np.full((40, 60), value, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(LungkitError, match="lung masks do not agree on where lungs lie, or show nothing else"):
        probes.lung_area([tmp_path / "mask.png"])


def test_a_mask_of_other_proportions_than_its_image_is_refused(outside, tmp_path):
    Image.fromarray(np.full((60, 60), 255, np.uint8)).save(tmp_path / "square.png")
    square = str(tmp_path / "square.png")  # an absolute path stays as it is

    def change(table):
        files = [str(outside / file) for file in table["file"]]
        return table.assign(file=files, lung_mask_v7=[square if mask else "" for mask in table["lung_mask_v7"]])

    with pytest.raises(LungkitError, match=r"square\.png is not of its image's proportions"):
        probes.heat_in_lungs(_candidate(), _changed(outside, tmp_path / "other", change))


# --- real files


# About 3 s: 392 X-rays are read three times.
def test_on_covid_chestxray_the_figures_are_of_its_frontal_x_rays(shared_data, own):
    folder = shared_data / "covid_chestxray"
    bright = {}

    def read(tensors):
        mean = (tensors * SPEC.std + SPEC.mean).clip(0, 1).mean((1, 2, 3))
        bright.setdefault("as_is", []).append(mean[0])
        found = np.column_stack([1 - mean, mean]).astype(np.float32)
        return {"probabilities": found, "heat": np.ones((len(tensors), 2, *SPEC.size), np.float32)}

    candidate = replace(_candidate(), read=read)
    found = probes.out_of_source(candidate, folder)
    assert {label: of["images"] for label, of in found["labels"].items()} == {
        "covid19": 335, "normal": 14, "other_pneumonia_or_disease": 43,
    }  # fmt: skip
    table = pd.read_csv(folder / "labels.csv")
    frontal = table[(table["modality"] == "X-ray") & ~table["view"].isin(["L"])]
    assert (found["images"], found["patients"]) == (len(frontal), frontal["patient_id"].nunique()) == (392, 230)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(frontal["label"] != "normal", bright["as_is"]))
    assert found["auc"]["low"] < found["auc"]["value"] < found["auc"]["high"]

    heat = probes.heat_in_lungs(candidate, folder)
    masks = [np.asarray(Image.open(folder / mask)) > 127 for mask in frontal["lung_mask_v7"].dropna()]
    share = np.mean([mask.mean() for mask in masks])
    assert heat["images"] == len(masks) == 335
    assert heat["uniform"]["value"] == pytest.approx(share, abs=0.005)
    assert heat["energy_inside"] == pytest.approx(heat["uniform"])

    area = probes.lung_area([folder / mask for mask in frontal["lung_mask_v7"].dropna()])
    beyond = [1 - _fitted(area, mask)[mask].mean() for mask in masks]
    assert np.quantile(beyond, 0.95) < 0.04, "what is hidden leaves next to nothing of nearly everybody's lungs"


def _fitted(area: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(area).resize(mask.shape[::-1], Image.Resampling.BILINEAR)) >= probes.LUNGS_REACH


def test_hidden_lungs_that_turn_answers_round_are_no_score_from_outside():
    turned = {
        "as_is": {"value": 0.99, "low": 0.98, "high": 1.0},
        "lungs_hidden": {"value": 0.43, "low": 0.37, "high": 0.48},
    }
    assert probes._says_of_lungs(turned).startswith("nothing of its score is seen to come from outside the lungs")
