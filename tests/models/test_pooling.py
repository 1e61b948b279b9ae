"""From the readings of slices to one of the scan."""

import numpy as np
import pytest

from lungkit.models import pooling


@pytest.mark.parametrize(
    ("classes", "absent"),
    [
        (("Normal", "Pneumonia", "COVID-19"), 0),
        (("COVID", "NonCOVID"), 1),
        (("glioma", "no tumour", "notumor"), 2),
        (("CT-0", "CT-1"), 0),
        (("No Finding", "Opacity"), 0),
        (("Benign", "Malignant"), None),
    ],
)
def test_the_class_of_absence_is_known_by_its_name(classes, absent):
    assert pooling.absence(classes) == absent


def test_a_scan_is_read_from_the_quarter_of_its_slices_that_is_least_normal():
    rows = np.tile([0.9, 0.1], (8, 1))
    rows[2], rows[5], rows[6] = [0.2, 0.8], [0.1, 0.9], [0.5, 0.5]
    assert pooling.carrying(rows, absent=0).tolist() == [2, 5]
    assert pooling.carrying(rows[:, ::-1], absent=1).tolist() == [2, 5]


def test_one_slice_is_its_own_scan_and_the_order_of_slices_does_not_count():
    assert pooling.carrying([[0.3, 0.7]], absent=0).tolist() == [0]
    rows, order = np.random.default_rng(3).dirichlet([1, 1, 1], 21), np.random.default_rng(4).permutation(21)
    assert sorted(order[pooling.carrying(rows[order], 0)]) == pooling.carrying(rows, 0).tolist()
