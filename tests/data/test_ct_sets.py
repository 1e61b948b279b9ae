"""Public CT sets in their publishers' layouts: classes, patients, parts, sources, and what is left out or refused."""

import re
import shutil

import numpy as np
import pydicom
import pytest

from lungkit.data import dataset
from lungkit.data.dataset import DatasetError
from tests.data import ct_trees

CLASSES = ("Normal", "Pneumonia", "COVID-19")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Each set once; tests that change one copy it."""
    home = tmp_path_factory.mktemp("sets")
    return {make.__name__: make(home / make.__name__) for make in (
        ct_trees.covidx, ct_trees.cc_ccii, ct_trees.covid_ct_md, ct_trees.ct_cov19,
    )}  # fmt: skip


@pytest.fixture
def copy(trees, tmp_path):
    """A copy of a set, by its name, to be changed."""
    return lambda name: shutil.copytree(trees[name], tmp_path / name)


def notes(data) -> dict[str, int]:
    return {note.finding: note.count for note in data.notes}


def patients(data, label: str) -> set[str]:
    rows = data.manifest
    return set(rows.loc[rows["label"] == label, "patient_id"])


def edit(path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", ["covidx", "cc_ccii", "covid_ct_md", "ct_cov19"])
def test_each_set_has_three_classes_and_can_be_split_by_patient(trees, name):
    data = dataset.load_split(trees[name], quiet=True)
    assert data.classes == CLASSES
    assert set(data.part("train")["label"]) == set(data.part("test")["label"]) == set(CLASSES)


def test_a_set_is_found_inside_its_only_outer_folder(trees, tmp_path):
    for name in trees:
        (tmp_path / name).mkdir()
        (tmp_path / name / "archive").symlink_to(trees[name], target_is_directory=True)
        assert dataset.load(tmp_path / name).classes == CLASSES


# --- COVIDx CT


def test_covidx_gives_patients_sources_and_published_parts(trees):
    data = dataset.load(trees["covidx"])
    rows = data.manifest.set_index("file")
    assert patients(data, "COVID-19") == {"NCP_101", "volume-covid19-A-0012", "NCP_1013", "HUST-Patient518"}
    assert patients(data, "Pneumonia") == {"CP_0", "COVIDCTMD-cap012", "CP_10", "CP_1068"}
    assert patients(data, "Normal") == {"Normal_1681", "patient1", "COVIDCTMD-normal074", "Normal_1682"}
    assert rows.loc["3A_images/CP_10_3153_0000.png", ["split", "source"]].tolist() == ["val", "CNCB"]
    assert data.source_names == ["CNCB", "COVID-CT-MD", "COVID-CTSet", "TCIA", "iCTCF"]
    assert notes(data) == {"images that a network chose": 3, "boxes of the body": 39}


def test_covidx_counts_images_without_a_patient_by_scan_and_names_unlisted_ones(copy):
    root = copy("covidx")
    edit(root / "metadata.csv", "CP_0,", "CP_9999,")
    edit(root / "metadata.csv", "CNCB,China,,,Normal,Yes", "CNCB,China,,,Normal,No")
    shutil.copy(root / "3A_images" / "CP_10_3153_0000.png", root / "3A_images" / "CP_10_3153_0099.png")
    data = dataset.load(root)
    assert "CP_0_3131" in patients(data, "Pneumonia")
    assert notes(data) == {
        "images that no list names": 1, "images of no patient in metadata.csv": 3, "images that a network chose": 3,
        "images of unverified cases": 3, "boxes of the body": 39,
    }  # fmt: skip
    assert data.manifest.set_index("file").loc["3A_images/CP_0_3131_0000.png", "source"] == "covidx"


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        ("_0000.png 2 ", "_0000.png 3 ", r"line 1: NCP_101_1300_0000.png has class 3; accepted: 0 \(Normal\), 1 "),
        (" 0 9 64 60", "", "line 1: 'NCP_101_1300_0000.png 2'; accepted: file, class, xmin, ymin, xmax, ymax"),
        ("NCP_101_1300_0000", "../x", "line 1: '../x.png 2 0 9 64 60'; accepted: file"),
        ("NCP_101_1300_0000", "NCP_101_1300_7777", "1 of the 39 images in the lists are not in 3A_images: NCP_101"),
        ("_0000.png 2 ", "_0000.png 0 ", "a patient in two classes: NCP_101 is COVID-19 and Normal. Give each patient"),
    ],
)  # fmt: skip
def test_a_broken_list_of_covidx_is_refused(copy, old, new, refused):
    root = copy("covidx")
    edit(root / "train_COVIDx_CT-3A.txt", old, new)
    with pytest.raises(DatasetError, match=refused):
        dataset.load(root)


def test_covidx_needs_its_table_of_patients_and_one_version(copy):
    root = copy("covidx")
    shutil.copy(root / "val_COVIDx_CT-3A.txt", root / "val_COVIDx_CT-2A.txt")
    with pytest.raises(
        DatasetError, match=r"several versions of COVIDx CT: test_COVIDx_CT-3A.txt, .* Keep those of one"
    ):
        dataset.load(root)
    (root / "val_COVIDx_CT-2A.txt").unlink()
    edit(root / "metadata.csv", "source", "origin")
    with pytest.raises(DatasetError, match=r"metadata.csv has no column 'source'; it has: patient id, origin, country"):
        dataset.load(root)
    (root / "metadata.csv").unlink()
    with pytest.raises(DatasetError, match=r"metadata.csv is not there; it names the patients and their sources"):
        dataset.load(root)


# --- CC-CCII


def test_cc_ccii_takes_slices_with_lesions_and_all_of_the_healthy(trees):
    data = dataset.load(trees["cc_ccii"])
    assert data.manifest["label"].value_counts().to_dict() == {"Normal": 12, "COVID-19": 8, "Pneumonia": 8}
    assert patients(data, "COVID-19") == {"NCP-0", "NCP-1", "NCP-2", "NCP-3"}
    assert notes(data) == {"slices without a lesion": 8}
    assert set(data.manifest["split"]) == {""}


def test_cc_ccii_says_which_scans_and_patients_are_not_used(copy):
    root = copy("cc_ccii")
    shutil.rmtree(root / "NCP" / "1")
    shutil.rmtree(root / "Normal" / "3")
    (root / "Normal" / "2" / "3002" / "0002.jpg").unlink()
    shutil.copy(root / "NCP" / "2" / "1002" / "0001.jpg", root / "NCP" / "logo.jpg")
    for number in (1, 2):
        edit(root / "lesions_slices.csv", f"CP/3/2003/000{number}.jpg\n", "")
    found = notes(dataset.load(root))
    assert found == {
        "images outside any scan": 1, "slices without a lesion": 9, "patients without a lesion": 1,
        "scans that are not here": 2, "scans with another number of slices": 1,
    }  # fmt: skip


def test_cc_ccii_is_refused_without_its_list_of_lesions_or_with_a_wrong_one(copy):
    root = copy("cc_ccii")
    edit(root / "lesions_slices.csv", "NCP/0/1000/0001.png", "NCP/0/1000/0009.png")
    with pytest.raises(DatasetError, match=r"lesions_slices.csv names NCP/0/1000/0009.png, which are not there"):
        dataset.load(root)
    edit(root / "lesions_slices.csv", "imgpath", "path")
    with pytest.raises(DatasetError, match=r"lesions_slices.csv has no column 'imgpath'; it has: path"):
        dataset.load(root)
    (root / "lesions_slices.csv").write_text("imgpath\n")
    with pytest.raises(DatasetError, match=r"no image that shows disease; slices without a lesion: 24 \(CP/0/2000"):
        dataset.load(root)
    for name in ("lesions_slices.csv", "unzip_filenames.csv"):
        (root / name).unlink()
    with pytest.raises(DatasetError, match=r"looks like CC-CCII, but lesions_slices.csv, which names .* is not there"):
        dataset.load(root)
    for name in ("NCP", "CP", "Normal"):
        shutil.rmtree(root / name)
    (root / "lesions_slices.csv").write_text("imgpath\n")
    with pytest.raises(
        DatasetError, match="but CLASS/PATIENT/SCAN/slice is not there; accepted: the folders NCP, CP and"
    ):
        dataset.load(root)


# --- COVID-CT-MD


def infected(data, patient: str) -> list[str]:
    rows = data.manifest
    return sorted(file[-10:-4] for file in rows.loc[rows["patient_id"] == patient, "file"])


def test_covid_ct_md_takes_infected_slices_in_the_order_from_the_head(trees):
    data = dataset.load(trees["covid_ct_md"])
    assert infected(data, "P001") == infected(data, "cap003") == ["IM0007", "IM0008"]
    assert infected(data, "normal001") == ["IM0007", "IM0008", "IM0009"]
    assert infected(data, "P004") == []
    assert data.manifest["modality"].unique().tolist() == ["CT"]
    assert notes(data) == {
        "files passed over": 2, "labels of slices": 1, "slices without infection": 6,
        "patients without labels of slices": 2,
    }  # fmt: skip


def test_covid_ct_md_reads_an_index_that_skips_a_number(tmp_path):
    root = ct_trees.covid_ct_md(tmp_path / "set", skipped=2)
    labels = np.load(root / "Slice-level-labels.npy")
    labels[3] = [1, 0, 0, 0, 0]
    np.save(root / "Slice-level-labels.npy", labels)
    data = dataset.load(root)
    assert (infected(data, "cap001"), infected(data, "P003")) == (["IM0009"], ["IM0007", "IM0008"])
    np.save(root / "Slice-level-labels.npy", np.concatenate([labels, labels[:1]]))  # with a row for that number
    assert infected(dataset.load(root), "P003") == ["IM0009"]


def test_covid_ct_md_prefers_corrected_labels(copy):
    root = copy("covid_ct_md")
    corrected = np.tile([1, 0, 0, 0, 0], (6, 1))
    np.save(root / "Slice-level-labels-updated-1.npy", corrected)
    data = dataset.load(root)
    assert infected(data, "P001") == ["IM0009"]
    assert next(note.examples for note in data.notes if note.finding == "labels of slices") == (
        "Slice-level-labels-updated-1.npy",
    )


def test_covid_ct_md_leaves_out_patients_whose_slices_have_no_order(copy):
    root = copy("covid_ct_md")
    for patient, change in (("P001", lambda header: header.pop("SliceLocation")), ("P002", same_height)):
        file = root / "COVID-19 Cases" / patient / "IM0008.dcm"
        header = pydicom.dcmread(file)
        change(header)
        header.save_as(file)
    data = dataset.load(root)
    assert patients(data, "COVID-19") == {"P003"}
    assert notes(data)["patients whose slices have no order"] == 2


def same_height(header):
    header.SliceLocation = pydicom.dcmread(header.filename.replace("IM0008", "IM0009")).SliceLocation


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (
            np.ones((6, 5)),
            r"has 3 slices, but .* has labels of 5, and infection in number 5; copy the patient's folder",
        ),
        (np.ones((6, 2)), r"has 3 slices, but .* has labels of 2, and infection in number 2; copy"),
        (
            np.ones((4, 5)),
            r"Index.csv has 6 patients, but Slice-level-labels.npy has 4 rows; give both files of one release",
        ),
        (np.full((6, 5), 2), r"Slice-level-labels.npy holds int64 \(6, 5\); accepted: 0 and 1, patients x slices"),
        (np.zeros((6, 5)), r"no image that shows disease; slices without infection: 18"),
        (np.array([{}]), r"Slice-level-labels.npy cannot be read \(Object arrays cannot be loaded"),
    ],
)
def test_labels_that_do_not_fit_covid_ct_md_are_refused(copy, labels, refused):
    root = copy("covid_ct_md")
    np.save(root / "Slice-level-labels.npy", labels)
    with pytest.raises(DatasetError, match=refused):
        dataset.load(root)


def test_covid_ct_md_needs_its_index_and_labels_and_one_class_for_a_patient(copy):
    root = copy("covid_ct_md")
    shutil.copytree(root / "COVID-19 Cases" / "P001", root / "Cap Cases" / "P001")
    with pytest.raises(DatasetError, match="a patient in two classes: P001 is COVID-19 and Pneumonia"):
        dataset.load(root)
    shutil.rmtree(root / "Cap Cases" / "P001")
    edit(root / "Index.csv", "\n0,", "\nzero,")
    with pytest.raises(DatasetError, match=r"Index.csv has the Label Index zero; accepted: whole numbers"):
        dataset.load(root)
    (root / "Index.csv").unlink()
    with pytest.raises(
        DatasetError, match=r"looks like COVID-CT-MD. Give one Index.csv .* There is: Slice-level-labels.npy"
    ):
        dataset.load(root)


# --- CT-COV19, and class folders with names of CT sets


def test_ct_cov19_gets_common_names_and_patients_of_their_class(trees):
    data = dataset.load(trees["ct_cov19"])
    rows = data.manifest.set_index("file")
    assert patients(data, "COVID-19") == {"COV/01", "COV/30", "COV/21"}
    assert {"COV/01", "Normal/01"} <= set(rows["patient_id"])
    assert rows.filter(like="Normal/1/", axis=0)["patient_id"].nunique() == 9
    assert rows.loc["Val/COV/30/FILE4000.png", ["label", "split"]].tolist() == ["COVID-19", "val"]
    assert notes(data) == {
        "classes by another name": 2, "patients named by folders": 7, "folders in several parts of the split": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "names", [("COVID", "Normal", "Pneumonia"), ("CAP", "Normal", "Tumour"), ("CAP", "Normal"), ("COVID-19", "Normal")]
)
def test_other_class_folders_keep_their_names(tmp_path, names):
    for name in names:
        for cut in ct_trees.patient("Normal", 1, 2):
            ct_trees.picture(cut, tmp_path / "set" / name / "P001" / f"{cut.index}.png")
    assert set(dataset.load(tmp_path / "set").classes) == set(names)


def test_classes_that_dataset_json_names_keep_their_names(copy):
    root = copy("ct_cov19")
    (root / "dataset.json").write_text('{"classes": ["OtherPneumonia", "COV", "Normal"]}')
    assert dataset.load(root).classes == ("OtherPneumonia", "COV", "Normal")


def test_a_large_set_is_thinned_evenly_within_each_patient(trees):
    whole = dataset.load(trees["covidx"])
    data = dataset.load_split(trees["covidx"], max_images=30, quiet=True)
    of = data.manifest.groupby("patient_id").size()
    assert set(of.index) == set(whole.manifest["patient_id"])
    assert of.max() == 2 and len(data.manifest) == 24
    assert notes(data)["images between others of a patient"] == 15
    files = data.manifest.loc[data.manifest["patient_id"] == "NCP_101", "file"].tolist()
    assert [re.sub(r".*NCP_101_|\.png", "", file) for file in files] == ["1300_0002", "1301_0002"]
    assert (
        data.recipe["max_images"] == 30 and "max_images" not in dataset.load_split(trees["covidx"], quiet=True).recipe
    )
