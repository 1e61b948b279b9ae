"""Data sets from every kind of source, and the manifest that is saved and used again."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from lungkit import config
from lungkit.data import dataset, images, splits
from lungkit.data.dataset import COLUMNS, Dataset, DatasetError

PIXELS = np.random.default_rng(7)


def picture(path, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(PIXELS.integers(0, 256, (side, side + 2), np.uint8)).save(path)
    return path


@pytest.fixture
def class_folders(tmp_path):
    root = tmp_path / "chests"
    for label in ("Pneumonia", "Normal", "COVID-19"):
        for number in range(6):
            picture(root / label / f"{number}.png")
    return root


@pytest.fixture
def table_folder(tmp_path):
    """A folder with labels.csv, eight patients with two images each; write(table) changes the table."""
    root = tmp_path / "clinic"
    rows = [
        (f"img/{p}-{k}.png", "sick" if p % 2 else "No finding", "a" if p < 4 else "b", f"00{p}", "", "CT", "hospital")
        for p in range(8)
        for k in range(2)
    ]
    for file, *_ in rows:
        picture(root / file)
    columns = ["file", "label", "kind", "patient_id", "split", "modality", "source"]
    table = pd.DataFrame(rows, columns=columns)

    def write(table):
        table.to_csv(root / "labels.csv", index=False)
        return root

    write(table)
    return root, table, write


def medmnist(path, size=(28, 28), counts=(20, 8, 8), **other):
    arrays = {}
    for part, count in zip(splits.PARTS, counts, strict=True):
        arrays[f"{part}_images"] = PIXELS.integers(0, 256, (count, *size), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **(arrays | other))
    return arrays | other


# Folders --------------------------------------------------------------------------------------------------------


def test_a_folder_per_class_is_read_with_the_normal_class_first(class_folders):
    (class_folders / "SOURCE.md").write_text("where from")
    (class_folders / "Normal" / "notes.csv").write_text("x")
    (class_folders / "Normal" / ".hidden.png").write_text("x")
    data = dataset.load(class_folders)
    assert (data.name, data.classes, data.synthetic) == ("chests", ("Normal", "COVID-19", "Pneumonia"), False)
    assert list(data.manifest.columns) == COLUMNS and len(data.manifest) == 18
    assert data.manifest["file"][0] == "COVID-19/0.png" and data.labels()[0] == 1
    assert set(zip(data.manifest["width"], data.manifest["height"], strict=True)) == {(34, 32)}
    assert not data.manifest.isna().any().any() and set(data.manifest["split"]) == {""}


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["b", "NORMAL", "a"], ("NORMAL", "a", "b")),
        (["COVID", "NonCOVID"], ("NonCOVID", "COVID")),
        (["pituitary", "notumor", "glioma"], ("notumor", "glioma", "pituitary")),
        (["zoster", "No finding"], ("No finding", "zoster")),
        (["nodule", "abscess"], ("abscess", "nodule")),
    ],
)
def test_the_normal_like_class_comes_first_then_the_alphabet(tmp_path, labels, order):
    for label in labels:
        picture(tmp_path / "set" / label / "1.png")
    assert dataset.load(tmp_path / "set").classes == order


def test_dataset_json_sets_the_order_of_classes(class_folders):
    order = ["Pneumonia", "Normal", "COVID-19"]
    (class_folders / "dataset.json").write_text(json.dumps({"classes": order, "synthetic": True}))
    data = dataset.load(class_folders)
    assert list(data.classes) == order and data.synthetic


def test_dataset_json_that_names_other_classes_is_refused(class_folders):
    (class_folders / "dataset.json").write_text(json.dumps({"classes": ["Normal", "Flu"]}))
    with pytest.raises(DatasetError, match=r"should be Normal, Flu, but the labels found are COVID-19"):
        dataset.load(class_folders)
    (class_folders / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset\.json cannot be used"):
        dataset.load(class_folders)


def test_train_and_test_folders_are_a_published_split(tmp_path):
    for part in ("train", "test"):
        for label in ("normal", "sick"):
            for number in range(4):
                picture(tmp_path / "set" / part / label / f"{number}.png")
    data = dataset.load(tmp_path / "set")
    assert data.classes == ("normal", "sick")
    assert data.manifest.groupby("split").size().to_dict() == {"test": 8, "train": 8}
    assert data.manifest["patient_id"].nunique() == 16


def test_dicom_files_without_a_suffix_are_listed(class_folders):
    for name in ("IM0001", "1.2.840.113"):
        (class_folders / "Normal" / name).write_bytes(b"not really")
    data = dataset.load(class_folders).manifest.set_index("file")
    assert data.loc["Normal/IM0001", "note"] and data.loc["Normal/1.2.840.113", ["width", "height"]].tolist() == [0, 0]


def test_a_folder_without_images_says_what_would_be_read(tmp_path):
    (tmp_path / "set" / "Normal" / "images").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"holds no images; accepted: labels\.csv"):
        dataset.load(tmp_path / "set")


def test_a_single_class_is_refused(tmp_path):
    picture(tmp_path / "set" / "Normal" / "1.png")
    with pytest.raises(DatasetError, match="every image is of class 'Normal'"):
        dataset.load(tmp_path / "set")


def test_an_unknown_source_lists_the_known_ones(tmp_path):
    with pytest.raises(DatasetError, match="accepted: phantom, pneumoniamnist"):
        dataset.load(tmp_path / "nowhere")


# labels.csv -----------------------------------------------------------------------------------------------------


def test_labels_csv_keeps_patients_modality_and_source_as_text(table_folder):
    root, *_ = table_folder
    data = dataset.load(root)
    assert data.classes == ("No finding", "sick") and len(data.manifest) == 16
    assert data.manifest.loc[0, ["patient_id", "modality", "source"]].tolist() == ["000", "CT", "hospital"]


def test_another_column_can_be_the_label_and_names_the_data_set(table_folder):
    root, *_ = table_folder
    data = dataset.load(root, label_column="kind")
    assert (data.name, data.classes, data.label_column) == ("clinic-kind", ("a", "b"), "kind")


def test_an_absent_label_column_names_those_there_are(table_folder, class_folders):
    root, *_ = table_folder
    with pytest.raises(DatasetError, match="no column 'grade'; it has: file, label, kind"):
        dataset.load(root, label_column="grade")
    with pytest.raises(DatasetError, match=r"no labels\.csv, so there is no column 'grade'"):
        dataset.load(class_folders, label_column="grade")


def test_labels_with_too_few_images_can_become_one_class_and_a_note_says_so(table_folder, capsys):
    root, _, _ = table_folder
    merged = {"one": ["SICK "]}
    data = dataset.load_split(root, merged=merged)
    assert (data.classes, (data.manifest["label"] == "one").sum()) == (("No finding", "one"), 8)
    assert "images of merged classes: 8. One class: sick (8) as one." in capsys.readouterr().err
    again = dataset.load_split(root, merged=merged, quiet=True)
    assert again.recipe["merged"] == merged and again.fingerprint == data.fingerprint
    assert dataset.load_split(root, quiet=True).classes == ("No finding", "sick")
    assert dataset.as_given(root, merged={"other": ["absent"]}).classes == ("No finding", "sick")


def test_merged_classes_take_the_place_that_dataset_json_gives_the_first_of_them(class_folders):
    (class_folders / "dataset.json").write_text(json.dumps({"classes": ["COVID-19", "Pneumonia", "Normal"]}))
    merged = {"viral": ["COVID-19", "Pneumonia"]}
    assert dataset.load(class_folders, merged=merged).classes == ("viral", "Normal")


def test_group_id_has_priority_over_patient_id_and_content_counts_without_both(table_folder):
    root, table, write = table_folder
    table["group_id"] = ["g1", "g1"] + [""] * 14
    table.loc[15, "patient_id"] = ""
    write(table)
    patients = dataset.load(root).manifest.set_index("file")["patient_id"]
    assert patients["img/0-0.png"] == patients["img/0-1.png"] == "g1"
    assert patients["img/1-0.png"] == "001" and patients["img/7-1.png"].startswith("image-")


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (3, "label", "", "no label in line 5"),
        (3, "label", "  ", "no label in line 5"),
        (2, "file", "../secret.png", "outside the data set's folder in line 4"),
        (2, "file", "/etc/passwd", "outside the data set's folder in line 4"),
        (2, "file", "img/gone.png", "that is not there in line 4"),
        (2, "file", "img/0-0.png", "two labels or patients in line 2, 4"),
    ],
)
def test_a_faulty_row_is_named_by_its_line(table_folder, row, column, value, message):
    root, table, write = table_folder
    table.loc[row, column] = value
    write(table)
    with pytest.raises(DatasetError, match=message):
        dataset.load(root)


def test_a_table_that_is_not_utf8_is_refused_by_name(table_folder):
    root, *_ = table_folder
    (root / "labels.csv").write_bytes("file,label\nrôntgen.png,a\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"labels\.csv is not a CSV table in UTF-8"):
        dataset.load(root)


def test_a_file_listed_on_two_sides_is_a_leak_not_a_silent_double(table_folder):
    root, table, write = table_folder
    table["split"] = ["train"] * 12 + ["test"] * 4
    again = table.iloc[[0, 0]].assign(split=["test", "train"])  # one contradicts the first row, one repeats it
    write(pd.concat([table, again], ignore_index=True))
    with pytest.raises(splits.SplitLeak, match="000"):
        dataset.load_split(root)
    done = dataset.load_split(root, overlap="set_aside").manifest
    assert sorted(done.loc[done["file"] == "img/0-0.png", "split"]) == ["set_aside", "test"]


# MedMNIST -------------------------------------------------------------------------------------------------------


def test_a_medmnist_file_becomes_pictures_with_its_published_split(tmp_path):
    path = tmp_path / "set" / "pneumoniamnist.npz"
    arrays = medmnist(path)
    before = path.read_bytes()
    data = dataset.load(path)
    assert (data.name, data.classes) == ("pneumoniamnist", ("normal", "pneumonia"))
    assert data.manifest.groupby("split").size().to_dict() == {"test": 8, "train": 20, "val": 8}
    pixels = images.read(data.root / "train/pneumonia/000003.png").pixels
    assert np.array_equal(np.round(pixels * 255), arrays["train_images"][3])
    assert data.root.is_relative_to(config.data_dir()) and path.read_bytes() == before
    assert dataset.load(path.parent).fingerprint == data.fingerprint


def test_colour_and_many_classes_keep_the_order_of_their_numbers(tmp_path):
    labels = (np.arange(24) % 12).astype(np.uint8)[:, None]
    medmnist(tmp_path / "x.npz", (28, 28, 3), (24, 24, 24), **{f"{part}_labels": labels for part in splits.PARTS})
    assert dataset.load(tmp_path / "x.npz").classes == tuple(f"class{number}" for number in range(12))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"val_images": np.zeros((8, 28, 28), np.float32)}, r"val_images is float32 \(8, 28, 28\)"),
        ({"val_images": np.zeros((8, 28, 28, 28), np.uint8)}, r"accepted: uint8 \(n, h, w\)"),
        ({"test_labels": np.zeros((8, 14), np.uint8)}, r"test_labels is uint8 \(8, 14\)"),
        ({"test_labels": np.array([{}] * 8)}, "is not a MedMNIST file"),
    ],
)
def test_an_npz_of_another_kind_is_refused_by_name(tmp_path, other, message):
    medmnist(tmp_path / "x.npz", **other)
    with pytest.raises(DatasetError, match=message):
        dataset.load(tmp_path / "x.npz")
    assert not list(config.data_dir().glob("x/images-*")), "nothing half made is left under its name"


def test_a_damaged_npz_is_refused_by_name(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DatasetError, match=r"x\.npz is not a MedMNIST file"):
        dataset.load(tmp_path / "x.npz")


def test_pneumoniamnist_by_name_asks_for_the_download():
    with pytest.raises(DatasetError, match="lungkit data fetch pneumoniamnist"):
        dataset.load("pneumoniamnist")
    medmnist(config.data_dir() / "pneumoniamnist" / "pneumoniamnist.npz")
    assert dataset.load("pneumoniamnist").classes == ("normal", "pneumonia")


# The phantom ----------------------------------------------------------------------------------------------------


def test_the_phantom_is_made_once_is_synthetic_and_splits_by_patient():
    """About 4 s, most of it drawing."""
    data = dataset.load_split("phantom", limit=60)
    assert data.classes == ("Normal", "Pneumonia", "COVID-19") and data.synthetic
    assert len(data.manifest) == 60 and set(data.manifest["modality"]) == {"CT"}
    assert (data.manifest["mask"] != "").equals(data.manifest["label"] != "Normal")
    splits.refuse_leaks(data.manifest)
    made = data.files()[0].stat().st_mtime_ns
    assert dataset.load("phantom", limit=60).files()[0].stat().st_mtime_ns == made


# Limits ---------------------------------------------------------------------------------------------------------


def test_a_limit_takes_whole_patients_in_proportion(table_folder):
    root, table, write = table_folder
    data = dataset.load(root, limit=8)
    sizes = data.manifest.groupby("patient_id").size()
    assert len(data.manifest) == 8 and set(sizes) == {2}
    assert data.manifest.groupby("label").size().tolist() == [4, 4]
    write(table.sample(frac=1, random_state=1))
    assert dataset.load(root, limit=8).fingerprint == data.fingerprint
    assert dataset.load(root, limit=8, seed=1).fingerprint != data.fingerprint


def test_a_note_names_the_images_beyond_the_limit(table_folder):
    (told,) = dataset.load(table_folder[0], limit=8).notes
    assert (told.finding, told.count) == ("images beyond the limit", 8)
    assert not dataset.load(table_folder[0], limit=16).notes


def test_a_limit_below_one_is_refused(table_folder):
    with pytest.raises(DatasetError, match="limit is 0"):
        dataset.load(table_folder[0], limit=0)


# What a data set gives ------------------------------------------------------------------------------------------


def test_files_labels_and_patients_of_a_split_are_in_one_order(table_folder):
    data = dataset.load_split(table_folder[0])
    for split in ("train", "val", "test", None):
        rows = data.part(split)
        assert [path.name for path in data.files(split)] == [file.split("/")[1] for file in rows["file"]]
        assert [data.classes[number] for number in data.labels(split)] == rows["label"].tolist()
        assert data.patients(split).tolist() == rows["patient_id"].tolist() and data.labels(split).dtype == np.int64
    with pytest.raises(DatasetError, match="no split 'tets'; accepted: train"):
        data.files("tets")


def test_the_summary_counts_images_and_patients(table_folder):
    table = dataset.load_split(table_folder[0]).summary()
    assert table.loc["all", ("all", "images")] == 16 and table.loc["all", ("sick", "patients")] == 4
    assert table.loc[["train", "val", "test"], ("all", "images")].sum() == 16


# Saved manifests ------------------------------------------------------------------------------------------------


def test_an_unreadable_image_is_refused_with_its_reason(table_folder):
    root, *_ = table_folder
    whole = (root / "img/3-1.png").read_bytes()
    (root / "img/3-1.png").write_bytes(whole[: len(whole) // 2])
    data = dataset.load_split(root)
    row = data.manifest.set_index("file").loc["img/3-1.png"]
    assert row["split"] == "refused" and "3-1.png" in row["note"]
    assert len(data.files()) == 15 and len(data.files("refused")) == 1


def test_notes_are_written_once_even_before_a_refusal_that_they_explain(table_folder, tmp_path, capsys):
    root, table, write = table_folder
    (root / "img/3-1.png").write_bytes(b"")
    table["split"] = ["train"] * 10 + ["test"] * 6
    table.loc[9, "patient_id"] = "007"
    write(table)
    for _ in range(2):
        dataset.load_split(root, overlap="set_aside")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clinic: ")]
    assert told == [
        "clinic: images that cannot be read: 1 (img/3-1.png: empty file. Copy or export it again.). "
        "They were left out.",
        "clinic: images set aside: 1 (img/4-1.png). Their patients are also in another part of the split.",
    ]
    for place in ("Normal/a", "Normal/b", "Sick/c", "Sick/d"):
        picture(tmp_path / "few" / place / "1.png")
    with pytest.raises(splits.SplitError, match="2 patient"):
        dataset.load_split(tmp_path / "few")
    assert "few: patients named by folders: 4 (a, b, c and 1 more)" in capsys.readouterr().err


def test_a_class_without_a_readable_image_is_named(class_folders):
    for file in (class_folders / "Normal").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(
        DatasetError, match=r"no image of Normal can be read\. The first refusal: .*Normal.*not an image"
    ):
        dataset.load_split(class_folders)


def test_a_prepared_set_is_reused_without_decoding(table_folder, monkeypatch):
    root, *_ = table_folder
    first = dataset.load_split(root)
    monkeypatch.setattr(images, "read", lambda *_: pytest.fail("decoded again"))
    again = dataset.load_split(root)
    assert again.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(again.manifest, first.manifest)
    opened = Dataset.open(config.data_dir() / "manifests" / "clinic")
    assert opened.files() == first.files() and opened.classes == first.classes


def test_a_changed_image_label_or_parameter_is_prepared_again(table_folder):
    root, table, write = table_folder
    prints = [dataset.load_split(root).fingerprint]
    picture(root / "img/0-0.png")
    prints.append(dataset.load_split(root).fingerprint)
    table.loc[:1, "label"] = "sick"
    write(table)
    prints.append(dataset.load_split(root).fingerprint)
    prints.append(dataset.load_split(root, seed=11).fingerprint)
    assert len(set(prints)) == 4


def test_data_that_moved_is_found_at_its_new_place(table_folder, tmp_path, monkeypatch):
    root, *_ = table_folder
    first = dataset.load_split(root)
    moved = tmp_path / "elsewhere" / "clinic"
    shutil.move(root, moved)
    monkeypatch.setattr(images, "read", lambda *_: pytest.fail("decoded again"))
    again = dataset.load_split(moved)
    assert again.fingerprint == first.fingerprint and all(file.is_file() for file in again.files())
    assert Dataset.open(config.data_dir() / "manifests" / "clinic").root == moved


def test_a_half_written_or_damaged_record_is_named_and_made_again(table_folder):
    root, *_ = table_folder
    first = dataset.load_split(root)
    folder = config.data_dir() / "manifests" / "clinic"
    text = (folder / "manifest.csv").read_text()
    for damage in (
        lambda: (folder / "manifest.csv").write_text(text.replace("sick", "well", 1)),
        lambda: (folder / "dataset.json").write_text("{"),
        lambda: (folder / "dataset.json").write_text("{}"),
        lambda: (folder / "manifest.csv").unlink(),
    ):
        damage()
        with pytest.raises(DatasetError, match=r"clinic.*(prepare|missing)"):
            Dataset.open(folder)
        assert dataset.load_split(root).fingerprint == first.fingerprint


def test_a_kill_while_preparing_leaves_the_saved_set_whole(table_folder):
    """A process is killed in the middle of the second preparation; the first one must still be there. About 3 s."""
    root, table, write = table_folder
    first = dataset.load_split(root)
    table.loc[0, "source"] = "other"
    table.loc[:1, "label"] = "sick"
    write(table)
    slow = (
        "import sys, time\nfrom lungkit.data import dataset, images\nread = images.read\n"
        "def slowly(path):\n    print('reading', flush=True)\n    time.sleep(1)\n    return read(path)\n"
        "images.read = slowly\ndataset.load_split(sys.argv[1])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", slow, str(root)], stdout=subprocess.PIPE, env=os.environ)
    assert child.stdout.readline().startswith(b"reading")  # two threads may share the line
    time.sleep(0.2)
    child.kill()
    child.wait()
    child.stdout.close()
    saved = Dataset.open(config.data_dir() / "manifests" / "clinic")
    assert saved.fingerprint == first.fingerprint
    assert dataset.load_split(root).fingerprint != first.fingerprint


# Real data ------------------------------------------------------------------------------------------------------


def test_the_paediatric_xrays_keep_their_official_test_whole(shared_data):
    """About 6 s: 4,471 images are read once."""
    source = shared_data / "chest_xray_paediatric_224"
    with pytest.raises(splits.SplitLeak, match="170 patients"):
        splits.assign(dataset.load(source).manifest, seed=7)
    data = dataset.load_split(source, label_column="subtype", overlap="set_aside")
    assert data.classes == ("NORMAL", "BACTERIAL", "VIRAL")
    assert data.manifest["split"].value_counts()[["test", "set_aside"]].tolist() == [624, 457]
    assert np.bincount(data.labels("test")).tolist() == [234, 242, 148]
    splits.refuse_leaks(data.manifest)


@pytest.mark.parametrize(
    ("name", "leaks", "classes"),
    [
        ("covid_ct", "2 patients", ("NonCOVID", "COVID")),
        ("pneumoniamnist", "8 patients", ("normal", "pneumonia")),
        ("iqoth_nccd", None, ("Normal", "Benign", "Malignant")),
        ("covid_chestxray", None, ("normal", "covid19", "other_pneumonia_or_disease")),
    ],
)
def test_real_sets_are_prepared_without_a_leak(shared_data, name, leaks, classes):
    if leaks:
        with pytest.raises(splits.SplitLeak, match=leaks):
            splits.assign(dataset.load(shared_data / name).manifest, seed=7)
    data = dataset.load_split(shared_data / name, overlap="set_aside")
    assert data.classes == classes
    splits.refuse_leaks(data.manifest)
    assert (data.manifest.groupby("label")["split"].apply(lambda s: set(splits.PARTS) <= set(s))).all()
    if name == "pneumoniamnist":
        assert len(data.files("test")) == 624


def test_the_name_of_a_data_set_is_known_before_anything_is_made(tmp_path, squares):
    assert dataset.name_of("phantom", limit=1200) == "phantom-1200"
    assert dataset.name_of("phantom", limit=30, seed=8) == "phantom-30-seed8"
    assert not config.data_dir().exists()
    assert dataset.name_of(squares) == dataset.load(squares).name == "squares"
    assert dataset.name_of(squares, label_column="other") == dataset.load(squares, label_column="other").name
