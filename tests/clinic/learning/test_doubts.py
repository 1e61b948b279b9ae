"""The readings whose label looks wrong are named."""

import pytest

from lungkit.clinic.learning import doubts
from lungkit.clinic.learning.reviews import Asked, selected
from lungkit.models.prediction import Check

TOO_OLD = Check("age", False, 76, 5, "the patient is 76 years old")


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


def test_an_answer_that_means_nothing_puts_no_label_in_doubt(store, reviewed, readers):
    for _ in range(4):
        reviewed("Pneumonia", probability=0.95)
        reviewed("Normal", label="Normal", probability=0.95)
    refused = reviewed("Normal", probability=0.97, checks=(TOO_OLD,))
    assert doubts.of_records(store, Asked()) == ([], 8)
    assert doubts.look_again(readers[0].access) == ([], 0)
    (image,) = [one for one in selected(store, Asked()).labelled if one.reading_id == refused]
    assert (image.label, image.model_label) == ("Normal", ""), "the doctor's label is one to learn from"
