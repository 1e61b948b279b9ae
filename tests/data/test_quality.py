"""The checks of a data set: which faults they find, and that they raise no false alarm."""

import time
import warnings

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from matplotlib.colors import to_hex
from scipy.ndimage import gaussian_filter

from lungkit.data import dataset
from lungkit.data.figures import images_per_patient, quality_panels
from lungkit.data.quality import LEAST_CORRELATION, _near_pairs, audit, chance_correlation
from lungkit.palette import TEST, TRAIN, VALIDATION


def chest(seed, size=128):
    """A smooth picture, uint8 (size, size), unlike that of any other seed."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), size / 16)
    return np.uint8(np.interp(field, (field.min(), field.max()), (0, 255)))


class Folder:
    """A data set in the making: put pictures, then look at it."""

    def __init__(self, root):
        self.root, self.rows = root, []
        root.mkdir()

    def put(self, name, pixels, label="Normal", patient=None, split="", **how):
        PIL.Image.fromarray(pixels).save(self.root / name, **how)
        self.rows.append((name, label, patient or name, split))

    def load(self):
        table = pd.DataFrame(self.rows, columns=["file", "label", "patient_id", "split"])
        table.to_csv(self.root / "labels.csv", index=False)
        return dataset.load(self.root)


@pytest.fixture
def folder(tmp_path):
    """Twelve patients of two classes, every picture different."""
    made = Folder(tmp_path / "set")
    for number in range(12):
        split = ("train", "train", "val", "test")[number // 2 % 4]
        made.put(f"n{number}.png", chest(number), ("Normal", "Sick")[number % 2], split=split)
    return made


def finding(result, name):
    return result.findings.set_index("finding").loc[name]


def test_a_clean_set_has_no_pair_and_no_error(folder):
    result = audit(folder.load())
    assert result.duplicates.empty and result.unreadable.empty
    assert not (result.findings["severity"] == "error").any()


def test_equal_bytes_and_equal_pixels_are_exact_duplicates(folder):
    folder.put("copy.png", chest(0), split="train", patient="n0.png")
    folder.put("other-coding.png", chest(0), split="train", patient="n0.png", compress_level=0)
    pairs = audit(folder.load()).duplicates
    assert set(zip(pairs["file_a"], pairs["file_b"], strict=True)) == {
        ("copy.png", "n0.png"),
        ("copy.png", "other-coding.png"),
        ("n0.png", "other-coding.png"),
    }
    assert set(pairs["kind"]) == {"exact"} and not pairs[["across_splits", "two_labels", "two_patients"]].any(axis=None)


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda p: p, {"suffix": "jpg", "quality": 60}),
        (lambda p: np.uint8(p * 0.7 + 40), {}),
        (lambda p: np.asarray(PIL.Image.fromarray(p).resize((96, 96))), {}),
        (lambda p: np.uint8(255 * (p / 255) ** 0.8), {}),
    ],
    ids=["compressed", "rewindowed", "smaller", "gamma"],
)
def test_an_altered_copy_is_a_near_duplicate(folder, change, how):
    suffix = how.pop("suffix", "png")
    folder.put(f"altered.{suffix}", change(chest(4)), split="test", **how)
    pair = audit(folder.load()).duplicates
    assert len(pair) == 1 and set(pair.loc[0, ["file_a", "file_b"]]) == {f"altered.{suffix}", "n4.png"}
    assert pair.loc[0, "kind"] == "near" and pair.loc[0, "correlation"] > 0.97


def test_pairs_across_splits_and_under_two_labels_come_first(folder):
    folder.put("a-same-side.png", chest(0), "Normal", split="train")
    folder.put("b-two-labels.png", chest(2), "Sick", split="train")
    folder.put("c-across.png", chest(3), "Sick", split="test")
    result = audit(folder.load())
    assert result.duplicates["file_a"].tolist() == ["c-across.png", "b-two-labels.png", "a-same-side.png"]
    assert finding(result, "exact duplicates across splits")[["severity", "count"]].tolist() == ["error", 1]
    assert finding(result, "same picture under two labels")[["severity", "count"]].tolist() == ["error", 1]
    assert finding(result, "same picture under two patients")["count"] == 3
    assert finding(result, "exact duplicates across splits")["share"] == pytest.approx(2 / 15, abs=1e-4)
    assert "c-across.png = n3.png" in finding(result, "exact duplicates across splits")["examples"]
    severities = result.findings["severity"].tolist()
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


def test_images_set_aside_are_not_counted_as_leaks(folder):
    folder.put("copy.png", chest(0), split="test")
    data = folder.load()
    data.manifest.loc[data.manifest["file"] == "copy.png", "split"] = "set_aside"
    assert finding(audit(data), "exact duplicates across splits")["count"] == 0


def test_blank_images_of_different_size_are_not_near_duplicates(folder):
    folder.put("black.png", np.zeros((64, 64), np.uint8), split="train")
    folder.put("white.png", np.full((64, 80), 255, np.uint8), split="train")
    assert audit(folder.load()).duplicates.empty


def test_an_unreadable_file_is_listed_with_its_reason(folder):
    data_before = folder.load()
    (data_before.root / "n5.png").write_bytes(b"not a picture")
    result = audit(folder.load())
    assert result.unreadable["file"].tolist() == ["n5.png"] and "not an image" in result.unreadable.loc[0, "reason"]
    assert len(result.images) == 11 and finding(result, "unreadable files")["severity"] == "error"


def test_a_class_without_a_readable_image_is_an_error_and_can_be_drawn(folder):
    root = folder.load().root
    for number in range(1, 12, 2):
        (root / f"n{number}.png").write_bytes(b"")
    result = audit(folder.load())
    assert finding(result, "classes without a readable image")[["severity", "examples"]].tolist() == ["error", "Sick"]
    assert finding(result, "unreadable files")["examples"].startswith(
        "n1.png: empty file. Copy or export it again.; n11"
    )
    quality_panels(result).canvas.draw()
    for file in root.glob("*.png"):
        file.write_bytes(b"")
    result = audit(folder.load())
    assert len(result.unreadable) == 12
    quality_panels(result).canvas.draw()


def test_notes_of_the_source_are_among_the_findings(folder):
    root = folder.load().root
    PIL.Image.fromarray(chest(77)).save(root / "extra\nimage.png")
    (root / "rest.zip").write_bytes(b"PK\x03\x04")
    folder.rows[0] = ("n0.png", "NORMAL", "n0.png", "train")
    result = audit(folder.load())
    extra = finding(result, "images that labels.csv does not name")
    assert (
        extra[["severity", "count", "share"]].tolist() == ["info", 1, 0.0] and extra["examples"] == r"extra\nimage.png"
    )
    assert finding(result, "archives")["severity"] == "warning"
    assert finding(result, "classes in two spellings")["examples"] == "'NORMAL' and 'Normal'"
    assert result.findings.loc[0, "finding"] == "classes in two spellings", "errors first"


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_small_part_is_a_warning_with_its_size(folder, part):
    name = {"val": "validation", "test": "test"}[part]
    data = folder.load()
    assert finding(audit(data), f"small {name} part")[["severity", "count"]].tolist() == [
        "warning",
        2,
    ]
    data.manifest["split"] = "train"
    assert f"small {name} part" not in set(audit(data).findings["finding"])


def test_a_patient_on_two_sides_is_an_error(folder):
    folder.put("again.png", chest(99), split="test", patient="n0.png")
    row = finding(audit(folder.load()), "patients on two sides of the split")
    assert row[["severity", "count", "examples"]].tolist() == ["error", 1, "n0.png"]


def test_classes_of_different_brightness_are_a_warning(folder):
    for number in range(12):
        folder.put(f"dark{number}.png", chest(50 + number) // 3, "Dark", split="train")
    result = audit(folder.load())
    row = finding(result, "brightness differs between classes")
    assert row["severity"] == "warning" and row["count"] == 2 and "Dark and Normal" in row["examples"]
    assert finding(result, "size differs between classes")["severity"] == "info"
    assert result.spread.loc["Dark", "grey_mean"] < result.spread.loc["Normal", "grey_mean"] / 2


def test_imbalance_few_patients_and_unknown_patients_are_warnings(tmp_path):
    for number in range(24):
        label = "Rare" if number % 6 == 0 else "Common"
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(chest(number, 48)).save(tmp_path / "set" / label / f"{number}.png")
    result = audit(dataset.load(tmp_path / "set"))
    assert "5.0 images of Common for each of Rare" in finding(result, "class imbalance")["meaning"]
    assert finding(result, "few patients of Rare")[["severity", "count"]].tolist() == ["warning", 4]
    assert finding(result, "images without a patient id")["count"] == 24
    assert "few patients of Common" not in set(result.findings["finding"])


def test_the_tables_count_classes_splits_and_patients(folder):
    result = audit(folder.load())
    assert result.balance["images"].sum() == 12 and result.balance.loc[0, ["class", "split"]].tolist() == [
        "Normal",
        "train",
    ]
    assert result.spread.loc["Sick", ["images", "patients", "width_min", "height_max"]].tolist() == [6, 6, 128, 128]
    assert result.images["mean"].between(0, 1).all()


def test_grey_values_are_those_of_the_pixels(folder):
    folder.put("half.png", np.repeat(np.uint8([[0, 255]]), 64, axis=1).repeat(64, axis=0), split="train")
    row = audit(folder.load()).images.set_index("file").loc["half.png"]
    assert row[["mean", "std", "p05", "p95"]].tolist() == pytest.approx([0.5, 0.5, 0, 1])


def test_the_figure_has_four_labelled_panels_and_warns_of_nothing(folder):
    folder.put("copy.png", chest(0), split="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = quality_panels(audit(folder.load()))
        drawn.canvas.draw()
    classes, sizes, brightness, pairs = (axes.get_title() for axes in drawn.axes)
    assert classes == "Normal has 1.2 times the images of Sick"
    assert sizes == "All images have one size"
    assert brightness.startswith("The classes' median greys differ by 0.0")
    assert pairs == "1 duplicate pair, 1 across splits"
    assert drawn.get_suptitle() == "set: 13 readable images, 0 unreadable, 1 kind of error found"
    assert max(drawn.get_size_inches()) <= 10


def test_the_parts_of_the_split_have_the_colours_that_they_have_everywhere(folder):
    balance = quality_panels(audit(folder.load())).axes[0]
    named = {
        text.get_text(): bar for text, bar in zip(balance.get_legend().get_texts(), balance.containers, strict=True)
    }
    colours = {name: to_hex(bars[0].get_facecolor()).upper() for name, bars in named.items()}
    assert colours == {"training": TRAIN, "validation": VALIDATION, "test": TEST.upper()}


def test_a_set_without_a_duplicate_and_one_of_two_sizes_say_so(folder):
    folder.put("wide.png", chest(77)[:, :64], split="train")
    _, sizes, _, pairs = quality_panels(audit(folder.load())).axes
    assert sizes.get_title() == "2 sizes (a larger mark: more images)"
    assert pairs.get_title() == "No duplicates"


def test_images_per_patient_count_patients_by_how_many_images_they_have(folder):
    folder.put("second.png", chest(50), patient="n0.png", split="train")
    drawn = images_per_patient(folder.load())
    heights = {
        (bar.get_x() + 0.4, bars.get_label()): bar.get_height() for bars in drawn.axes[0].containers for bar in bars
    }
    assert heights == {(1.0, "Normal"): 5, (2.0, "Normal"): 1, (1.0, "Sick"): 6, (2.0, "Sick"): 0}
    assert drawn.get_suptitle().replace("\n", " ") == (
        "8% of the patients have several images, up to 2: they must stay on one side of a split"
    )


def test_where_each_patient_has_one_image_the_figure_says_that_both_splits_are_one(folder):
    assert images_per_patient(folder.load()).get_suptitle().startswith("Each patient has one image")


def test_six_thousand_images_are_compared_in_seconds():
    """All pairs of random hashes, with one planted copy: no loop over 18 million pairs."""
    rng = np.random.default_rng(7)
    bits, grids = rng.random((6000, 64)) < 0.5, rng.normal(size=(6000, 1024)).astype(np.float32)
    grids /= np.linalg.norm(grids, axis=1, keepdims=True)
    bits[5999], grids[5999] = bits[17], grids[17]
    bits[5999, :8] ^= True
    start = time.perf_counter()
    assert _near_pairs(bits, grids) == {(17, 5999)}
    assert time.perf_counter() - start < 10


# Real data ------------------------------------------------------------------------------------------------------


def documented(folder):
    """The pairs that duplicate_of in labels.csv names; without a folder, the file lies beside its duplicate."""
    table = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    table = table[table["duplicate_of"] != ""]
    beside = table["file"].str.rpartition("/")[0] + "/" + table["duplicate_of"]
    other = table["duplicate_of"].where(table["duplicate_of"].str.contains("/"), beside)
    return {frozenset(pair) for pair in zip(table["file"], other, strict=True)}


def found(result):
    return {frozenset(pair) for pair in zip(result.duplicates["file_a"], result.duplicates["file_b"], strict=True)}


def test_every_documented_duplicate_of_the_three_class_xrays_is_found(shared_data):
    folder = shared_data / "covid19_xray_3class"
    result = audit(dataset.load(folder))
    known = documented(folder)
    assert len(known) == 14 and known <= found(result)
    assert len(result.duplicates) <= 25, "more pairs than were looked at and found true"
    assert result.duplicates.loc[0, "across_splits"]


def test_the_byte_identical_paediatric_xrays_are_found_and_other_children_are_not_taken_for_copies(shared_data):
    """About 10 s: 4,471 images, ten million pairs."""
    folder = shared_data / "chest_xray_paediatric_224"
    result = audit(dataset.load(folder))
    known = documented(folder)
    assert len(known) == 27 and known <= found(result)
    exact = result.duplicates["kind"] == "exact"
    assert exact.sum() == 29 and (~exact).sum() <= 3


def slices_of_one_protocol(people, likeness, seed=0, size=64):
    """Pictures that share most of what they show: `likeness` is the common share, as in slices of one CT protocol."""
    rng = np.random.default_rng(seed)

    def field(detail):
        return gaussian_filter(rng.normal(size=(size, size)), detail) * detail

    common = field(12)
    for _ in range(people):
        mixed = likeness * common + (1 - likeness) * field(5)
        yield np.uint8(np.interp(mixed, (mixed.min(), mixed.max()), (0, 255)))


@pytest.fixture
def alike(tmp_path):
    """160 different patients whose slices resemble each other, and one patient's picture under a second name."""
    made = Folder(tmp_path / "alike")
    for number, pixels in enumerate(slices_of_one_protocol(160, 0.85)):
        made.put(f"p{number:03d}.png", pixels, ("Normal", "Sick")[number % 2])
    made.put("copy.jpg", next(slices_of_one_protocol(1, 0.85)), quality=85)
    return made


def test_people_who_look_alike_because_of_the_protocol_are_no_duplicates(alike):
    result = audit(alike.load())
    looks = result.thresholds.iloc[0]
    assert looks["calibrated"] and looks["patients"] == 161
    assert looks["correlation"] > LEAST_CORRELATION
    assert list(zip(result.duplicates["file_a"], result.duplicates["file_b"], strict=True)) == [
        ("copy.jpg", "p000.png")
    ]
    closest = result.closest
    assert len(closest) == 3 and closest["two_patients"].all()
    assert (closest["correlation"] < looks["correlation"]).all() and closest["correlation"].is_monotonic_decreasing
    assert closest["correlation"].max() >= LEAST_CORRELATION, "the fixed number would have called these people one"


def test_a_patients_own_slices_need_the_fixed_correlation_only(alike):
    alike.rows = [(name, label, "one" if name in ("p003.png", "p005.png") else patient, split)
                  for name, label, patient, split in alike.rows]  # fmt: skip
    pixels = np.asarray(PIL.Image.open(alike.root / "p003.png")).astype(float)
    noise = gaussian_filter(np.random.default_rng(9).normal(size=pixels.shape), 4)
    PIL.Image.fromarray(np.uint8((pixels + 60 * noise / noise.std() * 0.12).clip(0, 255))).save(alike.root / "p005.png")
    pairs = audit(alike.load()).duplicates.set_index("file_a")
    assert pairs.loc["p003.png", "file_b"] == "p005.png"
    assert LEAST_CORRELATION <= pairs.loc["p003.png", "correlation"] < 0.999


def test_without_known_patients_the_correlation_stays_fixed_and_the_report_says_so(tmp_path):
    made = Folder(tmp_path / "unknown")
    for number, pixels in enumerate(slices_of_one_protocol(120, 0.93)):
        made.put(f"p{number:03d}.png", pixels, ("Normal", "Sick")[number % 2])
    made.rows = [(name, label, "", split) for name, label, _, split in made.rows]
    looks = audit(made.load()).thresholds.iloc[0]
    assert (looks["correlation"], looks["calibrated"], looks["patients"]) == (LEAST_CORRELATION, False, 0)


def test_real_copies_do_not_lift_the_correlation_beyond_themselves():
    # Every picture of 300 people has a copy under another patient.
    grids = np.array([p.astype(np.float32).ravel() for p in slices_of_one_protocol(300, 0.93, size=32)])
    grids -= grids.mean(axis=1, keepdims=True)
    grids /= np.linalg.norm(grids, axis=1, keepdims=True)
    apart = chance_correlation(grids, np.arange(300).astype(str))
    copied = chance_correlation(np.concatenate([grids, grids]), np.arange(600).astype(str))
    assert LEAST_CORRELATION < apart <= 0.995
    assert copied <= 0.995
