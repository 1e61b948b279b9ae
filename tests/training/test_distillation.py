"""The student learns the maps of a teacher, at the places where they are."""

import numpy as np
import pytest

from lungkit.data import dataset, phantom
from lungkit.models import efficientnet_lite, lungs
from lungkit.training import ct_teacher, distillation


class Teacher:
    """Answers with maps that follow from the greys alone: cell means in the first channels, their squares in others."""

    def __init__(self):
        self.asked = 0

    def __call__(self, tensors):
        self.asked += 1
        cells = tensors.reshape(1, ct_teacher.CELLS, 16, ct_teacher.CELLS, 16).mean(axis=(2, 4))
        channels = np.arange(ct_teacher.CHANNELS) % 2
        return [np.where(channels, cells[..., None], cells[..., None] ** 2).astype(np.float32)]


@pytest.fixture
def teacher(monkeypatch) -> Teacher:
    teacher = Teacher()
    monkeypatch.setattr(ct_teacher, "graph_of", lambda folder: teacher)
    return teacher


@pytest.fixture
def short(monkeypatch):
    """A student of three blocks, and squares of 64 pixels."""
    monkeypatch.setattr(ct_teacher, "SIDE", 64)
    monkeypatch.setattr(ct_teacher, "CELLS", 4)
    monkeypatch.setattr(efficientnet_lite, "_BLOCKS", ((1, 16, 3, 2, 1), (1, 24, 3, 2, 6), (1, 40, 5, 2, 6)))
    monkeypatch.setattr(efficientnet_lite, "load_imagenet", lambda model: None)


def test_the_test_part_is_not_looked_at_and_a_finished_training_is_not_done_again(teacher, short, tmp_path):
    source = phantom.make_dataset(tmp_path / "phantom", n_slices=60, seed=3)
    model, first = distillation.learn([source], tmp_path, tmp_path / "work", epochs=1)
    parts = dataset.load_split(source, fold="1/4", seed=7)
    asked = teacher.asked
    assert asked == len(parts.files("train")) + len(parts.files("val"))
    assert model.output_shape == (None, 4, 4, 1024)
    assert np.isfinite(first["loss"])
    _, again = distillation.learn([source], tmp_path, tmp_path / "work", epochs=1)
    assert (again, teacher.asked) == (first, asked)


def test_the_loss_is_least_where_the_maps_are_the_teachers():
    random = np.random.default_rng(0)
    maps = random.normal(size=(2, 4, 4, 6)).astype(np.float32)
    target = np.concatenate([maps, random.random((2, 4, 4, 1)).astype(np.float32)], axis=-1)
    np.testing.assert_allclose(distillation.taught_loss(target, maps), 0, atol=1e-5)
    assert (np.asarray(distillation.taught_loss(target, maps + 0.5)) > 0.2).all()


def test_places_of_no_weight_do_not_count():
    maps = np.random.default_rng(0).normal(size=(1, 4, 4, 6)).astype(np.float32)
    target = np.concatenate([maps, np.ones((1, 4, 4, 1), np.float32)], axis=-1)
    target[0, 1, 2, -1] = 0
    maps = maps.copy()
    maps[0, 1, 2] += 100
    np.testing.assert_allclose(distillation.taught_loss(target, maps), 0, atol=1e-5)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 2), (-2, 1)])
def test_maps_move_with_the_square(down, right):
    cells = np.random.default_rng(0).random((14, 14)).astype(np.float32)
    square = np.repeat(np.repeat(cells, 16, axis=0), 16, axis=1)[..., None].copy()
    target = np.stack([cells, np.ones_like(cells)], axis=-1)
    distillation._move(square, target, down, right)
    np.testing.assert_array_equal(square[::16, ::16, 0], target[..., 0])
    assert (target[..., 1] == 0).sum() == 14 * 14 - (14 - abs(down)) * (14 - abs(right))
    kept = target[..., 1] > 0
    np.testing.assert_array_equal(target[..., 0][kept], np.roll(cells, (down, right), (0, 1))[kept])


def test_greys_change_and_maps_stay():
    pictures = np.random.default_rng(0).random((4, 224, 224, 2)).astype(np.float16)
    pictures[..., 1] = (1 - lungs.MEAN) / lungs.STD
    maps = np.random.default_rng(1).random((4, 14, 14, 1024)).astype(np.float16)
    scale = (np.zeros(1024, np.float32), np.ones(1024, np.float32))
    plain, varied = (
        distillation.Taught(pictures, maps, np.arange(4), scale, varied=varied)[0] for varied in (False, True)
    )
    np.testing.assert_allclose(plain[1][..., :-1], maps, atol=1e-3)
    np.testing.assert_allclose(plain[1][..., -1], 1.15, atol=1e-3)
    assert np.abs(plain[0] - varied[0])[..., 0].mean() > 0.1
