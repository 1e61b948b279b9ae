"""Classes that are grades are answered with a range of neighbours, from a rule that the card and the records keep."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungkit.models import card_text, grades
from lungkit.models.card import ModelCard
from lungkit.models.prediction import grade_range
from lungkit.models.rule import ConformalLevel, DecisionRule
from lungkit.models.schema import Malformed
from tests.cards import VALUES, model_card
from tests.graded import CAUTION, CLASSES, GRADES, MIDDLE, RANGES

_rows = st.lists(st.floats(0.001, 1), min_size=4, max_size=4).map(lambda of: np.array([of]) / np.sum(of))


def _range(*probabilities, rule=RANGES):
    return grade_range(rule, dict(zip(CLASSES, probabilities, strict=True)))


@given(_rows)
def test_the_middle_grade_has_the_smallest_expected_error(row):
    errors = [float(row[0] @ abs(np.arange(4) - grade)) for grade in range(4)]
    assert errors[int(MIDDLE.decide(row)[0])] == pytest.approx(min(errors))


@given(_rows, st.floats(0.05, 0.99))
def test_a_range_is_adjacent_holds_the_middle_grade_and_sums_to_its_share_with_no_grade_too_many(row, least):
    rule = DecisionRule(kind="median", grades=GRADES, conformal=ConformalLevel(level=0.9, least=least))
    named = np.flatnonzero(rule.prediction_set(row)[0])
    assert named.tolist() == list(range(named[0], named[-1] + 1))
    assert int(rule.decide(row)[0]) in named
    assert row[0, named].sum() >= least - 1e-9
    if len(named) > 1:
        last_joined = grades.sums_before(row, rule.decide(row))[0, named].argmax()
        assert np.delete(row[0, named], last_joined).sum() < least


def test_a_range_grows_by_its_likelier_neighbour():
    assert _range(0.15, 0.55, 0.25, 0.05).names == ("CT-1", "CT-2")
    assert _range(0.25, 0.55, 0.15, 0.05).names == ("CT-0", "CT-1")


def test_a_range_says_in_words_how_much_of_the_lungs_it_means():
    both = _range(0.15, 0.55, 0.25, 0.05)
    assert (both.name, both.extent, both.percent) == ("CT-1 to CT-2", "about 0 to 50 % of the lungs", (0, 50))
    assert (both.probability, both.caution) == (pytest.approx(0.8), CAUTION)
    assert (_range(0.9, 0.1, 0, 0).name, _range(0.9, 0.1, 0, 0).extent) == ("CT-0", "no part of the lungs")
    assert _range(0, 0, 0.1, 0.9).extent == "about 50 to 100 % of the lungs"


def test_classes_that_are_no_grades_have_no_range():
    assert _range(0.7, 0.1, 0.1, 0.1, rule=DecisionRule(kind="argmax")) is None


def test_a_range_of_every_grade_is_left_to_a_person_and_a_wide_one_is_not():
    rows = np.array([[0.25, 0.25, 0.25, 0.25], [0.2, 0.41, 0.29, 0.1]])
    assert RANGES.uncertain(rows).tolist() == [True, False]
    assert MIDDLE.uncertain(rows).tolist() == [False, False]


def test_grades_survive_json_in_the_card_and_in_the_records():
    assert DecisionRule.from_dict(json.loads(json.dumps(RANGES.to_dict()))) == RANGES
    values = VALUES | {"classes": list(CLASSES), "operating_point": RANGES.operating_point().to_dict()}
    values |= {"conformal": RANGES.conformal.to_dict()}
    card = ModelCard.from_dict(json.loads(json.dumps(values)))
    assert card.rule == RANGES
    assert ModelCard.from_dict(card.to_dict()) == card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operating_point": {"kind": "median"}}, "'grades' of a decision rule are None, and 'kind' is median"),
        ({"operating_point": {"kind": "argmax", "grades": GRADES.to_dict()}}, "and 'kind' is argmax"),
        ({"operating_point": RANGES.operating_point().to_dict()}, "grades.extents' is not of 2 classes"),
    ],
)
def test_a_card_whose_grades_make_no_sense_is_refused_with_its_key(changes, message):
    with pytest.raises(Malformed, match=message):
        model_card(**changes)


def test_a_card_says_what_each_grade_means_and_how_its_range_is_made():
    rows = dict(card_text.rule_rows(RANGES, CLASSES))
    assert rows["Range"] == (
        "the middle grade and its neighbours until they sum to 80 %; made to hold the true one 90 % of the time"
    )
    assert "CT-0: no part of the lungs; CT-1: about 0 to 25 % of the lungs" in rows["Grades"]
    assert rows["Caution"] == CAUTION
