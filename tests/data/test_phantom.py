"""The phantom: its slices hold what they say, its DICOM files read back, its data set is whole or absent."""

import csv
import json
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pydicom
import pytest
from PIL import Image as Picture
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless
from scipy import ndimage

from lungkit.data import images, phantom
from lungkit.errors import LungkitError

SEED = 7


@pytest.fixture(scope="module")
def patients():
    """Three patients of each class, five slices each."""
    return {
        label: [phantom.make_patient(f"P{n:04d}", label, SEED, 5) for n in range(3 * place, 3 * place + 3)]
        for place, label in enumerate(phantom.CLASSES)
    }


def _every(patients, *labels):
    return [s for label in labels for patient in patients[label] for s in patient]


def _side_areas(drawn):
    """Lesion pixels in the lung on the image's left and right half."""
    half = drawn.lesion.shape[1] // 2
    return drawn.lesion[:, :half].sum(), drawn.lesion[:, half:].sum()


def _tissue(drawn, mask):
    return float(np.median(drawn.hu[mask]))


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    once, again = (phantom.make_patient("P0001", "COVID-19", SEED, 2, 96) for _ in range(2))
    other = phantom.make_patient("P0001", "COVID-19", SEED + 1, 2, 96)
    assert all(
        np.array_equal(a.hu, b.hu) and np.array_equal(a.lesion, b.lesion) for a, b in zip(once, again, strict=True)
    )
    assert not np.array_equal(once[0].hu, other[0].hu)


def test_slices_have_the_promised_types_and_ranges(patients):
    for drawn in _every(patients, *phantom.CLASSES):
        assert drawn.hu.dtype == np.int16 and drawn.hu.shape == (224, 224)
        assert drawn.hu.min() >= -1024 and drawn.hu.max() <= 3071
        assert drawn.lesion.dtype == drawn.lungs.dtype == bool
        assert 0.9 < drawn.pixel_spacing_mm < 2.5


def _body_box(drawn):
    body = ndimage.binary_opening(drawn.hu > -400, iterations=3) | drawn.lungs
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    return rows[0], rows[-1], columns[0], columns[-1]


def test_a_chest_is_wider_than_tall_with_two_lungs_and_the_spine_at_the_back(patients):
    for drawn in _every(patients, "Normal"):
        top, bottom, left, right = _body_box(drawn)
        assert right - left > 1.2 * (bottom - top)
        parts, n = ndimage.label(drawn.lungs)
        areas_mm2 = np.sort(ndimage.sum_labels(drawn.lungs, parts, range(1, n + 1)))[-2:] * drawn.pixel_spacing_mm**2
        assert areas_mm2.min() > 2500
        third, middle = (right - left) // 3, (top + bottom) // 2
        bone = drawn.hu[:, left + third : right - third] > 250
        assert bone[middle:].sum() > 1.5 * bone[:middle].sum()


def test_the_heart_is_on_the_patients_left(patients):
    for patient in patients["Normal"]:
        top, bottom, left, right = _body_box(patient[3])
        inside = ~patient[3].lungs[(top + bottom) // 2 - 20 : (top + bottom) // 2]
        middle, reach = (left + right) // 2, (right - left) // 3
        assert inside[:, middle : middle + reach].sum() > 1.3 * inside[:, middle - reach : middle].sum()


def test_lungs_are_filled_with_air_and_contain_every_lesion(patients):
    for drawn in _every(patients, *phantom.CLASSES):
        assert -950 < _tissue(drawn, drawn.lungs & ~drawn.lesion) < -700
        assert not (drawn.lesion & ~drawn.lungs).any()


def test_a_normal_patient_has_no_lesion(patients):
    assert not any(drawn.lesion.any() for drawn in _every(patients, "Normal"))


def test_every_slice_of_a_diseased_patient_shows_its_lesion(patients):
    for drawn in _every(patients, "Pneumonia", "COVID-19"):
        assert drawn.lesion.sum() * drawn.pixel_spacing_mm**2 > 100
        healthy = drawn.lungs & ~ndimage.binary_dilation(drawn.lesion, iterations=4)
        assert _tissue(drawn, drawn.lesion) > _tissue(drawn, healthy) + 120


def test_pneumonia_is_dense_and_mostly_one_sided(patients):
    for drawn in _every(patients, "Pneumonia"):
        less, more = sorted(_side_areas(drawn))
        assert less < 0.5 * more
    for patient in patients["Pneumonia"]:  # over all slices: breathing may blur a small focus on one
        assert -100 < np.median(np.concatenate([s.hu[s.lesion] for s in patient])) < 120


def test_covid_is_ground_glass_in_both_lungs_along_the_pleura(patients):
    for drawn in _every(patients, "COVID-19"):
        assert min(_side_areas(drawn)) > 0
        assert -700 < _tissue(drawn, drawn.lesion) < -250
        chest = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(drawn.lungs, 40), iterations=35))[
            40:-40, 40:-40
        ]
        depth = ndimage.distance_transform_edt(chest) * drawn.pixel_spacing_mm
        assert np.median(depth[drawn.lesion]) < np.median(depth[drawn.lungs & ~drawn.lesion])


def test_vessels_are_seen_through_ground_glass_but_not_through_consolidation(patients):
    def dense_share(label):
        counts = [
            (np.sum(s.lesion & (s.hu > _tissue(s, s.lesion) + 200)), s.lesion.sum()) for s in _every(patients, label)
        ]
        return np.sum(counts, axis=0)[0] / np.sum(counts, axis=0)[1]

    assert dense_share("COVID-19") > 0.01 > dense_share("Pneumonia")


def test_anatomy_changes_smoothly_along_a_patient():
    series = phantom.make_patient("P0001", "Normal", SEED, 40, 96)
    for above, below in pairwise(series):
        assert np.logical_xor(above.lungs, below.lungs).sum() < 0.2 * above.lungs.sum()


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(LungkitError, match=r"no class 'Flu'.*Normal, Pneumonia, COVID-19"):
        phantom.make_patient("P0001", "Flu", SEED)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_dicom_slice_reads_back_within_half_a_step(tmp_path, patients, compressed):
    drawn = patients["COVID-19"][0][2]
    file = phantom.write_dicom(drawn, tmp_path / "slice.dcm", compressed=compressed)
    read = images.read(file)
    assert read.units == "HU" and read.modality == "CT"
    assert np.abs(read.pixels - drawn.hu).max() <= (phantom.HU_STEP / 2 if compressed else 0)
    ds = pydicom.dcmread(file)
    assert ds.file_meta.TransferSyntaxUID == (JPEG2000Lossless if compressed else ExplicitVRLittleEndian)
    assert ds.pixel_array.shape == (224, 224)


def test_a_dicom_slice_says_that_it_is_synthetic(tmp_path, patients):
    ds = pydicom.dcmread(phantom.write_dicom(patients["Normal"][0][0], tmp_path / "slice.dcm"))
    assert ds.SOPClassUID == CTImageStorage
    assert ds.PatientName == "SYNTHETIC^PHANTOM" and ds.BurnedInAnnotation == "NO"
    assert "Synthetic" in ds.SeriesDescription and "Synthetic" in ds.ImageComments
    assert "Normal" not in str(ds)  # the header does not give the class away


def test_a_series_has_one_study_and_evenly_spaced_slices_from_head_to_feet(tmp_path):
    series = phantom.make_patient("P0007", "Pneumonia", SEED, 6, 64)
    read = [pydicom.dcmread(phantom.write_dicom(s, tmp_path / f"{s.index}.dcm", compressed=False)) for s in series]
    assert len({ds.StudyInstanceUID for ds in read}) == len({ds.SeriesInstanceUID for ds in read}) == 1
    assert len({ds.SOPInstanceUID for ds in read}) == 6
    assert [ds.InstanceNumber for ds in read] == [1, 2, 3, 4, 5, 6]
    steps = np.diff([ds.ImagePositionPatient[2] for ds in read])
    assert (steps < 0).all() and np.ptp(steps) < 0.01
    again = phantom.write_dicom(series[3], tmp_path / "again.dcm")
    assert pydicom.dcmread(again).SOPInstanceUID == read[3].SOPInstanceUID


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return phantom.make_dataset(tmp_path_factory.mktemp("phantom") / "set", n_slices=63, seed=3, size=64, workers=2)


def _rows(folder):
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_data_set_is_balanced_with_five_or_six_slices_a_patient(data_set):
    rows = _rows(data_set)
    assert [sum(row["label"] == label for row in rows) for label in phantom.CLASSES] == [21, 21, 21]
    counts = {row["patient_id"]: 0 for row in rows}
    for row in rows:
        counts[row["patient_id"]] += 1
    assert set(counts.values()) <= {5, 6}
    assert len({(row["patient_id"], row["label"]) for row in rows}) == len(counts)


def test_every_diseased_slice_has_a_mask_file_and_no_normal_one_has(data_set):
    for row in _rows(data_set):
        assert (data_set / row["file"]).is_file()
        assert bool(row["mask"]) == (row["label"] != "Normal")
        if row["mask"]:
            mask = np.asarray(Picture.open(data_set / row["mask"]).convert("L"))
            assert set(np.unique(mask)) == {0, 255} and mask.shape == (64, 64)


def test_the_same_seed_gives_a_byte_identical_data_set(data_set, tmp_path):
    again = phantom.make_dataset(tmp_path / "again", n_slices=63, seed=3, size=64, workers=1)
    names = sorted(str(f.relative_to(data_set)) for f in data_set.rglob("*") if f.is_file())
    assert names == sorted(str(f.relative_to(again)) for f in again.rglob("*") if f.is_file())
    assert all((data_set / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_a_data_set_says_that_it_is_synthetic(data_set):
    made_with = json.loads((data_set / "dataset.json").read_text())
    assert made_with["synthetic"] is True and made_with["classes"] == list(phantom.CLASSES)
    assert "Synthetic" in (data_set / "README.md").read_text()


def test_a_data_set_with_the_same_parameters_is_reused_and_one_with_others_refused_by_name(data_set):
    before = (data_set / "labels.csv").stat().st_mtime_ns
    assert phantom.make_dataset(data_set, n_slices=63, seed=3, size=64) == data_set
    assert (data_set / "labels.csv").stat().st_mtime_ns == before
    with pytest.raises(LungkitError, match="seed 3 instead of 4"):
        phantom.make_dataset(data_set, n_slices=63, seed=4, size=64)


def test_a_folder_with_something_else_in_it_is_not_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LungkitError, match="no phantom data set"):
        phantom.make_dataset(tmp_path, n_slices=3, size=64)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom.csv, "writer", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        phantom.make_dataset(tmp_path / "set", n_slices=3, size=64, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process with SIGKILL")
def test_a_killed_run_leaves_no_folder_and_can_be_repeated(tmp_path):
    folder = tmp_path / "set"
    code = f"from lungkit.data import phantom; phantom.make_dataset({str(folder)!r}, 300, size=64, workers=1)"
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".set.draft-*/new/slices/*.dcm")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert list(tmp_path.glob(".set.draft-*/new/slices/*.dcm")) and not folder.exists()
    assert len(_rows(phantom.make_dataset(folder, n_slices=6, size=64, workers=1))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "what the killed run left is removed"


def test_a_script_without_a_main_guard_can_make_a_data_set_on_two_processes(tmp_path):
    """Workers must not import the caller's main module again: a notebook or a script on stdin has none to import."""
    code = f"from lungkit.data import phantom\nphantom.make_dataset({str(tmp_path / 'set')!r}, 6, size=64, workers=2)\n"
    run = subprocess.run([sys.executable, "-"], input=code, text=True, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert len(_rows(tmp_path / "set")) == 6


@pytest.mark.parametrize("wrong", [{"n_slices": 2}, {"size": 16}, {"seed": -1}])
def test_parameters_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(LungkitError, match="accepted"):
        phantom.make_dataset(tmp_path / "set", **wrong)
