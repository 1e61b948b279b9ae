"""Shortcuts: two scanners differ in what they say they do, and a reader of one property is named by it."""

import csv

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from lungkit.data import attributes, dataset
from lungkit.data.phantom import scanners
from lungkit.data.phantom.patient import COVID, NORMAL, SyntheticPatient
from lungkit.models.rule import DecisionRule
from lungkit.training import evaluation, plots, recipes, sentences, shortcuts

SIZE, SLICES, NUMBER = 64, 2, 12
AIR = np.s_[:, :6, 20:-20]  # in front of the chest: noise alone
SICK = np.arange(NUMBER).repeat(SLICES) % 2
PATIENTS = np.array([f"S{number}" for number in range(NUMBER)]).repeat(SLICES)


@pytest.fixture(scope="module")
def pictures():
    """Twelve patients, every second one with COVID-19, in each view: uint8 (24, 64, 64)."""
    drawn = []
    for number in range(NUMBER):
        patient = SyntheticPatient(f"S{number}", (NORMAL, COVID)[number % 2], 7, SIZE)
        drawn += list(scanners.pictures(patient, scanners.VIEWS, SLICES, number))
    return {name: np.stack([of_slice[name] for of_slice in drawn]) for name in scanners.VIEWS}


def _contrast(images):
    """Greys as shares of the way from air to white, whatever the window: float (n, height, width)."""
    air = images[AIR].mean(axis=(1, 2))[:, None, None]
    return (images - air) / (255 - air)


def _noise(images):
    return _contrast(images)[AIR].std(axis=(1, 2))


def _grain(images):
    """How alike the noise of neighbouring pixels is: the more, the softer the kernel."""
    air = _contrast(images)[AIR]
    return (air[..., 1:] * air[..., :-1]).mean(axis=(1, 2)) / (air**2).mean(axis=(1, 2))


def _below(images):
    """The brightest row behind the back, in the middle of the picture."""
    contrast = _contrast(images)
    body = np.median(contrast[..., 24:40], axis=2) > 0.6
    ends = SIZE - np.argmax(body[:, ::-1], axis=1)
    rows = contrast[..., 16:48].mean(axis=2)
    return np.array([max(row[end + 2 :], default=0) for row, end in zip(rows, ends, strict=True)])


def _brightness(images):
    return images[AIR].mean(axis=(1, 2))


# A reader of one property alone: its measure, the value between the scanners, and whether B's is above it.
READERS = {
    "noise": (_noise, 0.01295, True),
    "kernel": (_grain, 0.51, False),
    "table": (_below, 0.055, True),
    "window": (_brightness, 40.0, False),
}


# --- the scanners


def test_a_patient_under_the_same_scanner_has_the_same_pixels(pictures):
    again = scanners.pictures(SyntheticPatient("S3", COVID, 7, SIZE), {"b": scanners.B}, SLICES, 3)
    assert np.array_equal([of_slice["b"] for of_slice in again], pictures[scanners.OTHER][6:8])


@pytest.mark.parametrize("name", READERS)
def test_a_view_differs_from_the_plain_one_in_the_property_that_names_it_and_no_other(pictures, name):
    for other, (measure, between, above) in READERS.items():
        has_it = (measure(pictures[name]) > between) == above
        assert has_it.mean() == (other == name), other


def test_scanner_b_has_all_four_properties_and_a_none(pictures):
    for measure, between, above in READERS.values():
        assert ((measure(pictures[scanners.OTHER]) > between) == above).all()
        assert ((measure(pictures[scanners.PLAIN]) > between) != above).all()


def test_the_table_lies_below_the_body_and_changes_nothing_else(pictures):
    changed = np.abs(pictures["table"].astype(int) - pictures[scanners.PLAIN]).max(axis=(0, 2)) > 0
    assert changed[-SIZE // 4 :].any()
    assert not changed[: SIZE // 2].any()


def test_a_window_clips_at_its_own_two_ends(pictures):
    low, high = (scanners.B.window[0] + side * scanners.B.window[1] / 2 for side in (-1, 1))
    level, width = scanners.A.window
    hu = pictures[scanners.PLAIN] / 255 * width + level - width / 2  # known to 3 HU
    shown = pictures["window"]
    assert (shown[hu < low - 6] == 0).all() and (shown[hu > high + 6] == 255).all()
    assert ((hu > low + 6) & (hu < high - 6)).any() and (shown[(hu > low + 6) & (hu < high - 6)] % 255 > 0).all()


@pytest.mark.parametrize(("share", "sick", "rest"), [(0.9, 9, 1), (0.5, 5, 5), (0.1, 1, 9), (1.0, 10, 0)])
def test_of_ten_sick_patients_scanner_b_shows_the_share_and_of_ten_others_the_rest(share, sick, rest):
    diseased = np.arange(40) % 2 == 1
    by_b = scanners.uneven(diseased, share)
    assert (by_b[diseased].sum(), by_b[~diseased].sum()) == (2 * sick, 2 * rest)


def test_a_set_at_home_shows_each_patient_on_one_scanner_and_names_it_as_the_source(tmp_path):
    folder = scanners.make_set(tmp_path, "home", 20, 0.9, slices=1, size=SIZE)
    with (folder / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len({row["patient_id"] for row in rows}) == len(rows) == 20
    of_b = [row["label"] for row in rows if row["source"] == scanners.OTHER]
    assert (of_b.count(COVID), of_b.count(NORMAL)) == (9, 1)
    assert all(row["file"].startswith(row["source"]) and (folder / row["file"]).is_file() for row in rows)
    data = dataset.load(folder)
    assert (data.synthetic, data.classes, data.source_names) == (True, (NORMAL, COVID), ["scanner A", "scanner B"])


def test_a_set_elsewhere_has_every_patient_in_every_view_and_other_patients_than_home(tmp_path):
    data = dataset.as_given(scanners.make_set(tmp_path, "elsewhere", 2, None, slices=1, size=SIZE))
    assert data.manifest.groupby("source")["patient_id"].nunique().to_dict() == dict.fromkeys(scanners.VIEWS, 2)
    assert set(data.manifest["patient_id"]) == {"elsewhere-000", "elsewhere-001"}


def test_a_set_is_drawn_once_and_again_where_a_scanner_has_changed(tmp_path, monkeypatch):
    made = [scanners.make_set(tmp_path, "home", 2, 0.5, slices=1, size=SIZE) for _ in range(2)]
    assert made[0] == made[1] and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setitem(scanners.VIEWS, scanners.OTHER, scanners.A)
    assert scanners.make_set(tmp_path, "home", 2, 0.5, slices=1, size=SIZE) not in made


def test_a_ward_shows_each_patient_on_one_device_and_both_classes_on_each(tmp_path, monkeypatch):
    folder = scanners.make_ward(tmp_path, 12, slices=1, size=SIZE)
    rows = pd.read_csv(folder / "labels.csv")
    assert rows.groupby(["device", "label"]).size().to_dict() == {
        (device, label): 2 for device in scanners.DEVICES for label in (NORMAL, COVID)
    }
    data = dataset.as_given(folder)
    assert data.synthetic and len(set(data.patients())) == 12
    assert attributes.of(data).table["device"].value_counts().to_dict() == dict.fromkeys(scanners.DEVICES, 4)
    assert scanners.make_ward(tmp_path, 12, slices=1, size=SIZE) == folder
    monkeypatch.setitem(scanners.DEVICES, "B", scanners.A)
    assert scanners.make_ward(tmp_path, 12, slices=1, size=SIZE) != folder


# --- what a model reads


def _read(pictures, reader):
    """The evaluation in each view of a reader: images to the disease's probability."""
    rule = DecisionRule(kind="argmax")
    scores = {name: reader(name, images) for name, images in pictures.items()}
    return {
        name: evaluation.evaluate(SICK, np.column_stack([1 - p, p]), PATIENTS, (NORMAL, COVID), rule)
        for name, p in scores.items()
    }


def _of_property(name):
    measure, between, above = READERS[name]
    return lambda _, images: np.where((measure(images) > between) == above, 0.9, 0.1)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_one_property_is_named_by_it_alone(pictures, name):
    effects = shortcuts.effects(_read(pictures, _of_property(name)))
    assert set(effects.index[:2]) == set(effects.index[effects["low"] > 0]) == {name, scanners.OTHER}
    assert effects.loc[name, ["shift", "with_disease", "with_rest", "swing"]].tolist() == pytest.approx([0.8, 1, 0, 1])
    assert effects.drop(index=[name, scanners.OTHER])["swing"].tolist() == [0, 0, 0]
    says = " ".join(sentences.effects_say(effects, "it"))
    seen, unseen = says.split("is not shown to read:")
    assert name in seen and not any(other in seen for other in READERS if other != name)
    assert all(other in unseen for other in READERS if other != name)


def _glass(_, images):
    """A reader of ground glass: the share of the middle that is neither lung nor flesh, without noise."""
    smooth = np.stack([ndimage.median_filter(one, 5) for one in _contrast(images)])[:, 20:44, 8:56]
    return ((smooth > 0.3) & (smooth < 0.65)).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def of_glass(pictures):
    """A reader of ground glass in each view."""
    return _read(pictures, _glass)


def test_a_reader_of_the_lesion_alone_reads_no_scanner(of_glass):
    effects = shortcuts.effects(of_glass)
    assert not (effects["low"] > 0).any() and not (effects["high"] < 0).any()
    (says,) = sentences.effects_say(effects, "it")
    assert says.startswith("*it* is not shown to read:")
    assert all(one.value("auc")[0] == 1 for one in shortcuts.dealt(of_glass).values())


def test_a_reader_of_the_scanner_does_as_well_as_the_scanner_is_dealt_out(pictures):
    deals = shortcuts.dealt(_read(pictures, _of_property("window")))
    aucs = {how: of.value("auc")[0] for how, of in deals.items()}
    # The scanner gives all sick patients and five of six others away, says nothing, or misleads as much.
    assert aucs == pytest.approx({"as at home": 11 / 12, "evenly": 0.5, "the other way round": 1 / 12})


# About 2 s: a network answers, without training.
def test_a_recipe_is_measured_on_homes_test_patients_and_on_the_same_visitors_in_each_view(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNGKIT_DATA", str(tmp_path / "data"))
    home = scanners.make_set(tmp_path, "home", 20, 0.5, slices=1, size=SIZE)
    elsewhere = dataset.as_given(scanners.make_set(tmp_path, "elsewhere", 4, None, slices=1, size=SIZE))
    recipe = recipes.Recipe(backbone="cnn", side=SIZE, epochs=0, mirrored=False, augmentation={})
    views = shortcuts.trained_and_measured(recipe, home, elsewhere, tmp_path / "work")
    assert set(views) == {shortcuts.HOME, *scanners.VIEWS}
    own = dataset.load_split(home, seed=7)
    assert sorted(views[shortcuts.HOME].patients) == sorted(own.patients("test"))
    for name in scanners.VIEWS:
        assert views[name].patients.tolist() == [f"elsewhere-{number:03d}" for number in range(4)]
        assert views[name].true.tolist() == [0, 1, 0, 1]
    changed = [not np.array_equal(views[name].probabilities, views[scanners.PLAIN].probabilities) for name in READERS]
    assert all(changed)


# --- words and figures


def _table(**swings):
    rows = {name: [0.1, 0.0, 0.2, 0.9, 0.8, *swing] for name, swing in swings.items()}
    columns = ["shift", "shift_low", "shift_high", "with_disease", "with_rest", "swing", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def test_properties_are_told_by_the_side_on_which_their_interval_lies():
    says = sentences.effects_say(
        _table(table=(0.05, 0.01, 0.1), noise=(0.1, -0.1, 0.3), kernel=(-0.2, -0.3, -0.1)), "it"
    )
    assert says == [
        "*it* takes for the disease what it should not see: table +0.050 (+0.010 to +0.100).",
        "*it* takes for health what it should not see: kernel −0.200 (−0.300 to −0.100).",
        "*it* is not shown to read: noise +0.100 (−0.100 to +0.300).",
    ]


def test_a_figure_has_a_row_for_each_view_and_a_mark_for_each_model(of_glass):
    effects = shortcuts.effects(of_glass)
    (axes,) = plots.swings({"glass": effects, "again": effects}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(effects.index)[::-1]
    assert len(axes.containers) == 2
