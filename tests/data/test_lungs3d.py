"""The lungs of a CT volume are found by their density."""

import time

import numpy as np
import pytest
from scipy import ndimage

from lungkit.data import lungs3d, phantom
from lungkit.data.phantom.anatomy import LENGTH_MM

SLICES = 20
STEP = LENGTH_MM / SLICES


def drawn(name, label="Normal", affected_mm=(0.0, LENGTH_MM)):
    """A phantom's volume, its lungs and lesions, and the spacing."""
    cuts = phantom.make_patient(name, label, 77, SLICES, 192, affected_mm)
    volume, lungs, lesion = (np.stack([getattr(cut, part) for cut in cuts]) for part in ("hu", "lungs", "lesion"))
    return volume, lungs, lesion, (STEP, cuts[0].pixel_spacing_mm, cuts[0].pixel_spacing_mm)


@pytest.fixture(scope="module")
def healthy():
    return drawn("A")


def dice(found, lungs) -> float:
    return 2 * (found & lungs).sum() / (found.sum() + lungs.sum())


@pytest.mark.parametrize(
    ("name", "label", "least"), [("A", "Normal", 0.98), ("B", "COVID-19", 0.97), ("C", "Normal", 0.98)]
)
def test_the_lungs_of_phantoms_are_found(name, label, least):
    volume, lungs, lesion, spacing = drawn(name, label)
    found = lungs3d.find(volume, spacing)
    mask = found.voxels()
    assert dice(mask, lungs) > least
    assert found.millilitres == pytest.approx(lungs.sum() * np.prod(spacing) / 1000, rel=0.04)
    assert found.by_slice == pytest.approx(mask.sum(axis=(1, 2)) * spacing[1] * spacing[2])
    assert not lesion.any() or (mask & lesion).sum() > 0.9 * lesion.sum()


def test_air_outside_and_the_large_airways_are_no_lungs(healthy):
    volume, lungs, _, spacing = healthy
    body = ndimage.binary_fill_holes(np.pad(volume > -400, ((0, 0), (1, 1), (1, 1)))[SLICES // 2])[1:-1, 1:-1]
    mask = lungs3d.find(volume, spacing).voxels()
    assert not (mask[SLICES // 2] & ~body).any()
    trachea = (volume[0] < -940) & ~lungs[0] & ndimage.binary_erosion(body, iterations=30)
    assert trachea.sum() * spacing[1] * spacing[2] > 100
    assert (mask[0] & trachea).sum() < 0.1 * trachea.sum()


def test_a_dense_lesion_of_a_few_slices_at_the_pleura_is_in_the_lungs():
    volume, lungs, lesion, spacing = drawn("D", "Pneumonia", (5 * STEP, 9 * STEP))
    dense = lesion & (volume > -200)
    assert dense.sum() > 500
    mask = lungs3d.find(volume, spacing).voxels()
    assert (mask & dense).sum() > 0.8 * dense.sum()
    assert dice(mask, lungs) > 0.96


@pytest.mark.parametrize("factor", [2, 3])
def test_fine_voxels_are_read_in_cells_and_give_the_same_lungs(healthy, factor):
    volume, lungs, _, (between, rows, columns) = healthy
    fine = volume.repeat(factor, 1).repeat(factor, 2)[:, : 192 * factor - 1]  # no whole number of cells
    found = lungs3d.find(fine, (between, rows / factor, columns / factor))
    assert found.cell == (1, factor, factor)
    assert found.voxels().shape == fine.shape
    assert dice(found.voxels()[:, ::factor, ::factor], lungs) > 0.98


def test_thin_slices_are_joined_and_each_has_its_area(healthy):
    volume, _, _, (between, rows, columns) = healthy
    thin = volume.repeat(5, 0)[:-1]
    found = lungs3d.find(iter(thin), (between / 5, rows, columns))
    assert (found.cell[0], len(found.mask), len(found.by_slice)) == (2, 50, 99)
    found = lungs3d.find(thin, (0.5, rows, columns))
    assert (found.cell[0], len(found.mask), len(found.by_slice)) == (4, 25, 99)
    assert found.voxels().shape == thin.shape


def test_lungs_that_the_picture_cuts_off_are_found_as_far_as_they_are_seen(healthy):
    volume, lungs, _, spacing = healthy
    part = np.s_[2:14, 40:150, 45:150]
    found = lungs3d.find(volume[part], spacing)
    assert dice(found.voxels(), lungs[part]) > 0.95
    assert not found.whole


def test_lungs_are_whole_where_the_series_goes_beyond_them():
    ball = np.full((30, 60, 60), 40.0)
    at = np.indices(ball.shape) - np.array([15, 30, 30]).reshape(3, 1, 1, 1)
    ball[(at**2).sum(0) < 12**2] = -850
    assert lungs3d.find(ball, (3.0, 3.0, 3.0)).whole
    assert not lungs3d.find(ball[12:], (3.0, 3.0, 3.0)).whole


def test_emphysema_and_noise_do_not_lose_the_lungs(healthy):
    volume, lungs, _, spacing = healthy
    noisy = volume + np.random.default_rng(1).normal(0, 40, volume.shape)
    noisy[lungs] -= 30
    assert dice(lungs3d.find(noisy, spacing).voxels(), lungs) > 0.96


@pytest.mark.parametrize(
    "volume",
    [
        np.full((6, 40, 40), -1000, np.int16),
        np.zeros((6, 40, 40), np.int16),
        np.full((6, 40, 40), -850, np.int16),
        np.full((6, 40, 40), np.nan, np.float32),
        np.full((1, 1, 1), 40, np.int16),
        np.full((3, 40, 1), -850, np.int16),
        np.zeros((0, 40, 40), np.int16),
    ],
    ids=["air", "water", "lung everywhere", "no number", "one voxel", "one column", "no slice"],
)
def test_where_there_are_no_lungs_none_are_found(volume):
    found = lungs3d.find(volume, (2.0, 2.0, 2.0))
    assert (found.millilitres, found.share(-600, -250), found.whole) == (0, 0, False)
    assert not found.voxels().any()


def test_one_slice_is_enough(healthy):
    volume, lungs, _, spacing = healthy
    assert dice(lungs3d.find(volume[9:10], spacing).voxels(), lungs[9:10]) > 0.97


def test_what_is_no_number_is_read_as_air(healthy):
    volume, lungs, _, spacing = healthy
    holed = volume.astype(np.float32)
    holed[:, :3] = np.nan
    holed[5, 80:84, 50:54], holed[6, 5, 5] = np.nan, np.inf
    found = lungs3d.find(holed, spacing)
    assert np.isfinite(found.hu).all()
    assert dice(found.voxels(), lungs) > 0.97


def test_shares_by_density_are_of_the_lungs_alone():
    hu = np.array([[[-850.0, -600.0, -400.0, -250.0, 40.0, -400.0]]], np.float32)
    mask = np.array([[[True, True, True, True, True, False]]])
    found = lungs3d.Lungs(mask, hu, (1, 1, 1), lungs3d.Spacing(1.0, 1.0, 1.0), hu.shape)
    assert found.share(-600, -250) == pytest.approx(2 / 5)
    assert found.share(-250, np.inf) == pytest.approx(2 / 5)


def test_a_large_volume_takes_seconds():
    volume = np.full((150, 512, 512), 40, np.int16)
    volume[:, :60], volume[20:, 150:400, 80:220], volume[20:, 150:400, 300:440] = -1000, -850, -850
    started = time.process_time()
    found = lungs3d.find(volume, (1.0, 0.7, 0.7))
    assert time.process_time() - started < 10
    assert found.millilitres == pytest.approx(2 * 130 * 250 * 140 * 0.49 / 1000, rel=0.03)


def test_gas_in_the_bowel_is_no_lung():
    belly = np.full((8, 100, 100), -1000, np.int16)
    belly[:, 10:90, 10:90] = 50
    belly[:, 40:48, 30:45] = belly[2:5, 60:66, 60:66] = -800  # gas and what surrounds it
    assert not lungs3d.find(belly, (5.0, 3.0, 3.0)).millilitres


@pytest.mark.parametrize("spacing", [(2.0, 1e-6, 1e-6), (1e-3, 1e-3, 1e-3), (500.0, 400.0, 400.0)])
def test_a_spacing_that_no_scanner_has_takes_no_more_memory(healthy, spacing):
    volume = healthy[0][:4]
    found = lungs3d.find(volume, spacing)
    assert found.mask.size <= volume.size
    assert np.isfinite(found.millilitres)


def test_a_stomach_full_of_gas_is_no_lung():
    trunk = np.full((8, 100, 100), -1000, np.int16)
    trunk[:, 10:90, 10:90] = 50
    trunk[:, 20:60, 20:45] = trunk[:, 20:60, 55:80] = -850
    trunk[:, 68:84, 55:80] = -1000
    found = lungs3d.find(trunk, (5.0, 3.0, 3.0)).voxels()
    assert found[:, 20:60, 20:45].all() and found[:, 20:60, 55:80].all()
    assert not found[:, 68:84].any()
