"""The same few lines choose a class in training and in the clinic."""

import numpy as np
import pytest

from lungkit.errors import LungkitError
from lungkit.models import decision

ARGMAX = {"kind": "argmax"}


def _threshold(value: float) -> dict:
    return {"kind": "threshold", "threshold": value}


def test_the_threshold_itself_is_positive():
    rows = np.array([[0.7, 0.3], [0.71, 0.29]])
    assert decision.decide(rows, _threshold(0.3)).tolist() == [1, 0]


def test_the_likeliest_class_is_taken_without_a_threshold():
    assert decision.decide(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]), ARGMAX).tolist() == [1, 0]


@pytest.mark.parametrize(("point", "classes"), [(_threshold(0.5), 3), ({"kind": "other"}, 2), ({}, 2)])
def test_an_operating_point_that_does_not_fit_is_refused_with_what_is_accepted(point, classes):
    with pytest.raises(LungkitError, match=rf"{classes} classes; accepted"):
        decision.decide(np.full((1, classes), 1 / classes), point)


def test_margins_are_log_odds_from_the_threshold():
    rows = np.array([[1 - p, p] for p in (0.1, 0.5, 0.2)])
    odds = np.array([1 / 9, 1, 1 / 4])
    np.testing.assert_allclose(decision.margin(rows, _threshold(0.2)), np.abs(np.log(odds / (1 / 4))), atol=1e-12)


def test_margins_are_how_many_times_likelier_the_first_class_is_than_the_second():
    rows = np.array([[0.6, 0.3, 0.1], [0.1, 0.45, 0.45]])
    np.testing.assert_allclose(decision.margin(rows, ARGMAX), [np.log(2), 0], atol=1e-12)


def test_two_classes_have_the_same_margin_by_threshold_one_half_and_by_likelier_class():
    p = np.linspace(0.01, 0.99, 25)
    rows = np.column_stack([1 - p, p])
    np.testing.assert_allclose(decision.margin(rows, _threshold(0.5)), decision.margin(rows, ARGMAX), atol=1e-12)


@pytest.mark.parametrize("point", [_threshold(0.0), _threshold(np.nextafter(1, 2)), ARGMAX])
def test_certain_answers_and_extreme_thresholds_have_finite_margins(point):
    assert np.isfinite(decision.margin(np.array([[0.0, 1.0], [1.0, 0.0]]), point)).all()
