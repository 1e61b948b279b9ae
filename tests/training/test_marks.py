"""A mark in the corner fools a head that never saw an image without it."""

import numpy as np
import pytest

from lungkit.training import marks


def pictures(n=120, seed=0):
    return np.random.default_rng(seed).random((n, 33, 40)).astype(np.float32)


def test_a_mark_is_a_white_corner_of_the_chosen_images_alone():
    plain = pictures(2)
    marked = marks.with_mark(plain, np.array([False, True]))
    assert np.array_equal(marked[0], plain[0])
    assert (marked[1, :4, :4] == 1).all() and np.array_equal(marked[1, 4:], plain[1, 4:])


def test_cells_are_mean_greys():
    cells = marks.coarse(pictures(1))
    assert cells.shape == (1, 64)
    assert cells[0, 0] == pytest.approx(pictures(1)[0, :4, :5].mean())
    with pytest.raises(ValueError, match="pictures of 4 x 40 pixels"):
        marks.coarse(np.zeros((1, 4, 40)))


def test_the_head_with_the_mark_is_perfect_by_chance_without_it_and_its_weights_are_in_the_corner():
    of_class = np.arange(120) % 2 == 1
    plain = pictures()
    cells = [marks.coarse(one) for one in (marks.with_mark(plain, of_class), plain)]
    found = marks.check(*cells, of_class, np.arange(120))
    assert found.marked[0] == 1.0 and found.marked[1] < 1.0
    assert found.gone[1] < 0.6 and found.honest[1] < 0.6
    assert np.unravel_index(found.weights.argmax(), (8, 8)) == (0, 0)
    assert np.sort(found.weights.ravel())[-2] < 0.5
    assert "AUC with the mark 1.000" in str(found)
