"""A folder per class: which layouts are read, which are refused as ambiguous, and what is said of the rest."""

import os
import shutil
import time
import unicodedata

import numpy as np
import PIL.Image
import pytest

from lungkit.data import dataset
from lungkit.data.dataset import DatasetError

PIXELS = np.random.default_rng(7)


def put(root, *places, count=4):
    """Pictures in each of the places, all different."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = PIXELS.integers(0, 256, (32, 32), np.uint8)
            PIL.Image.fromarray(pixels).save(root / place / f"{number}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def notes(data) -> dict:
    return {note.finding: note for note in data.notes}


def test_folders_below_a_class_are_patients_with_a_note(root):
    put(root, "Normal", "Pneu", "Pneu/p3", "Pneu/p4/study 1/images", "Normal/p3")
    data = dataset.load(root)
    assert len(data.manifest) == 20
    patients = data.manifest.set_index("file")["patient_id"]
    assert patients["Pneu/p4/study 1/images/0.png"] == "p4"
    assert patients["Pneu/p3/0.png"] == patients["Normal/p3/0.png"] == "p3"
    assert patients["Pneu/0.png"].startswith("image-")
    assert notes(data)["patients named by folders"].examples == ("p3", "p4")


def test_folders_that_only_contain_images_are_no_patients_and_masks_no_images(root):
    put(root, "COVID/images", "COVID/masks", "Normal/images", "Normal/lung_masks_v7", "without_mask")
    data = dataset.load(root)
    assert data.manifest.groupby("label").size().to_dict() == {"COVID": 4, "Normal": 4, "without_mask": 4}
    assert data.manifest["patient_id"].nunique() == 12
    assert notes(data)["masks passed over"].count == 8


def test_an_empty_class_folder_is_an_error_and_nothing_is_trained(root):
    put(root, "Normal", "Pneu")
    (root / "Covid").mkdir()
    (root / "Covid" / "images.zip").write_bytes(b"PK\x03\x04")
    data = dataset.load(root)
    assert data.classes == ("Normal", "Pneu")
    assert (notes(data)["classes without an image"].severity, notes(data)["archives"].examples) == (
        "error",
        ("Covid/images.zip",),
    )
    with pytest.raises(DatasetError, match=r"classes without an image: 1 \(Covid\)"):
        dataset.load_split(root)
    assert len(dataset.as_given(root).manifest) == 8, "a model can be scored on what is there"


def test_a_class_that_one_part_lacks_is_noted(root):
    put(root, "train/Normal", "train/Sick", "test/Normal")
    (root / "test" / "Sick").mkdir()
    assert notes(dataset.load(root))["class folders without an image"].examples == ("test/Sick",)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Testing")])
def test_copies_and_rubbish_next_to_the_parts_are_passed_over_and_copies_are_named(root, names):
    places = [f"{part}/{label}" for part in names for label in ("NORMAL", "PNEUMONIA")]
    put(root, *places, *(f"chest_xray/{place}" for place in places), "__MACOSX/train/NORMAL", count=2)
    for place in ("__MACOSX/._train", ".DS_Store", f"{names[0]}/.DS_Store", f"{names[0]}/NORMAL/._0.png"):
        (root / place).write_bytes(b"\0\5\x16\7")
    data = dataset.load(root)
    assert data.manifest.groupby("split").size().to_dict() == {"test": 4, "train": 4, "val": 4}
    assert [note.finding for note in data.notes] == ["folders passed over"]
    assert data.notes[0].examples == ("chest_xray (12 images)",)


def test_a_copy_next_to_class_folders_is_passed_over_and_named(root):
    put(root, "NORMAL", "PNEUMONIA", "chest_xray/NORMAL", "chest_xray/PNEUMONIA")
    data = dataset.load(root)
    assert (data.classes, len(data.manifest)) == (("NORMAL", "PNEUMONIA"), 8)
    assert notes(data)["folders passed over"].examples == ("chest_xray (8 images)",)


@pytest.mark.parametrize("outer", ["chest_xray", "archive/chest_xray", "archive/archive/chest_xray"])
def test_a_single_outer_folder_is_opened_and_named(root, outer):
    put(root, f"{outer}/train/NORMAL", f"{outer}/test/NORMAL", f"{outer}/train/SICK", f"{outer}/test/SICK")
    (root / "README.txt").write_text("from the archive")
    data = dataset.load(root)
    assert (data.name, data.root, len(data.manifest)) == ("chest_xray", root / outer, 16)
    assert data.notes[0].finding == "folder that was taken"
    assert notes(data)["files passed over"].examples == ("README.txt",)


def test_an_outer_folder_may_contain_a_table(root):
    put(root, "inner/img")
    (root / "inner" / "labels.csv").write_text("file,label\nimg/0.png,a\nimg/1.png,b\n")
    data = dataset.load(root)
    assert (len(data.manifest), notes(data)["images that labels.csv does not name"].count) == (2, 2)


def test_class_folders_that_are_links_are_followed(root, tmp_path):
    put(tmp_path / "elsewhere", "normals", "sick")
    root.mkdir()
    (root / "Normal").symlink_to(tmp_path / "elsewhere" / "normals")
    (root / "Sick").symlink_to(tmp_path / "elsewhere" / "sick")
    (root / "Sick" / "gone.png").symlink_to("nowhere.png")
    data = dataset.load(root)
    assert data.manifest.groupby("label").size().to_dict() == {"Normal": 4, "Sick": 4}
    assert notes(data)["links passed over"].examples == ("Sick/gone.png",)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["NORMAL", "PNEUMONIA", "test/NORMAL", "test/PNEUMONIA", "OTHER"], "can be read in two ways: test as part of"),
        (
            ["setA/Normal", "setA/Sick", "setB/Normal", "setB/Sick"],
            "holds several sets: setA, setB each have the folders",
        ),
        (["a/train/N", "a/train/S", "b/train/N", "b/train/S"], "hold images, but no class folders"),
        (["train", "test"], "test, train hold images, but no class folders"),
        ([""], "holds 4 images, but no class folders"),
    ],
)
def test_folders_with_two_meanings_or_none_are_refused_by_name(root, places, message):
    put(root, *places)
    with pytest.raises(DatasetError, match=message.replace("(", r"\(")):
        dataset.load(root)


def test_patients_with_the_same_numbers_in_each_class_are_not_sets(root):
    put(root, "Normal/p1", "Normal/p2", "Sick/p1", "Sick/p2")
    assert dataset.load(root).classes == ("Normal", "Sick")


@pytest.mark.parametrize(("one", "other"), [("NORMAL", "Normal"), ("Röntgen", unicodedata.normalize("NFD", "Röntgen"))])
def test_class_names_in_two_spellings_are_named_also_between_parts(root, one, other):
    put(root, f"train/{one}", "train/Sick", f"test/{other}", "test/Sick")
    assert notes(dataset.load(root))["classes in two spellings"].severity == "error"
    with pytest.raises(DatasetError, match="classes in two spellings"):
        dataset.load_split(root)


def test_images_outside_the_class_folders_and_other_files_are_noted(root):
    put(root, "", "train", "train/Normal", "train/Sick", "test/Normal", "test/Sick", count=1)
    (root / "train" / "Normal" / "list.xlsx").write_bytes(b"PK\x03\x04")
    np.savez(root / "set.npz", a=np.zeros(3))
    data = dataset.load(root)
    assert notes(data)["images outside any class folder"].examples == ("0.png", "train/0.png")
    assert notes(data)["files passed over"].examples == ("set.npz", "train/Normal/list.xlsx")


def test_a_file_whose_name_is_not_text_is_named_and_the_rest_is_read(root):
    put(root, "Normal", "Sick")
    os.rename(root / "Sick" / "0.png", os.fsencode(root / "Sick") + b"/\xff.png")  # noqa: PTH104 (bytes)
    data = dataset.load_split(put(root, "Sick/p9"))
    assert len(data.manifest) == 11
    assert str(notes(data)["files whose name is not text"]).isprintable()


def test_notes_of_a_source_are_saved_and_follow_the_source(root, capsys):
    put(root, "Normal", "Sick")
    (root / "README").write_text("x")
    first = dataset.load_split(root)
    assert "set: files passed over: 1 (README). They are no images, or hidden." in capsys.readouterr().err
    (root / "NOTES").write_text("x")
    again = dataset.load_split(root)
    assert notes(first)["files passed over"].count == 1
    assert notes(again)["files passed over"].examples == ("NOTES", "README")
    saved = dataset.Dataset.open(dataset.config.data_dir() / "manifests" / "set")
    assert saved.notes == again.notes
    shutil.rmtree(root / "Sick")
    with pytest.raises(DatasetError, match="every image is of class 'Normal'"):
        dataset.load_split(root)


def test_ten_thousand_files_are_listed_in_seconds(root):
    put(root, "Normal", "Sick")
    for patient in range(100):
        (root / "Sick" / f"p{patient}").mkdir()
    for number in range(5000):
        os.close(os.open(root / "Normal" / f"{number}.txt", os.O_CREAT))
        os.link(root / "Sick" / "0.png", root / "Sick" / f"p{number % 100}" / f"{number}.png")
    started = time.perf_counter()
    data = dataset.as_given(root)
    assert len(data.manifest) == 5008 and notes(data)["files passed over"].count == 5000
    assert time.perf_counter() - started < 60


def test_thousands_of_folders_are_listed_in_seconds(root):
    for number in range(3000):
        (root / f"patient {number}" / "visit").mkdir(parents=True)
        (root / f"patient {number}" / "visit" / "1.png").touch()
    started = time.perf_counter()
    assert len(dataset.as_given(root).classes) == 3000
    assert time.perf_counter() - started < 30
