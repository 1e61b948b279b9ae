"""What people call the classes of a model."""

import json
from pathlib import Path

import pytest

from lungkit.models import pooling
from lungkit.models.class_names import class_name, class_names, other_than

ARTIFACTS = Path(__file__).parents[2] / "artifacts"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("notumor", "No tumour"), ("NORMAL", "Normal"), ("normal", "Normal"), ("NonCOVID", "No COVID-19"),
        ("COVID", "COVID-19"), ("BACTERIAL", "Bacterial pneumonia"), ("VIRAL", "Viral pneumonia"),
        ("glioma", "Glioma"), ("pituitary", "Pituitary tumour"), ("lung_opacity", "Lung opacity"),
        ("CT-3/4", "CT-3/4"), ("NCP", "NCP"), ("Benign", "Benign"), ("Mixed up Name", "Mixed up Name"), ("", ""),
    ],
)  # fmt: skip
def test_a_class_has_a_name_for_people(raw, shown):
    assert class_name(raw) == shown
    assert class_name(shown) == shown, "a name for people stays as it is"


def test_no_two_classes_of_a_committed_model_have_the_same_name():
    cards = [json.loads(path.read_text()) for path in ARTIFACTS.glob("*/*/card.json")]
    assert len(cards) >= 8
    for card in cards:
        assert len(set(class_names(card["classes"]))) == len(card["classes"])


def test_a_name_for_people_still_says_that_nothing_was_found():
    for raw in ("NORMAL", "NonCOVID", "notumor"):
        assert pooling.absence([raw]) == 0
    assert [other_than(raw) for raw in ("NORMAL", "NonCOVID", "notumor")] == ["not Normal", "COVID-19", "tumour"]
