"""The readings whose label looks wrong are named."""

import pytest

from lungkit.clinic.learning import doubts
from lungkit.clinic.learning.reviews import Asked


@pytest.mark.parametrize("shown", [True, False])
def test_the_readings_with_doubtful_labels_are_named(store, reviewed, shown):
    for _ in range(4):
        reviewed("Pneumonia", probability=0.95, shown=shown)
        reviewed("Normal", label="Normal", probability=0.95)
    wrong = reviewed("Normal", probability=0.97, shown=shown)
    reviewed("Normal", "Pneumonia", probability=0.99)  # readers differ: a third one looks anyway
    found, images = doubts.of_records(store, Asked())
    assert images == 9
    assert [(one.reading_id, one.label, one.looks_like) for one in found] == [(wrong, "Normal", "Pneumonia")]
    assert doubts.of_records(store, Asked(model="none")) == ([], 0)
