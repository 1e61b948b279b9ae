"""The same few lines choose a class in training and in the clinic, from a rule that the card and the records keep."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from lungkit.errors import LungkitError
from lungkit.models.rule import SCHEMA, ConformalLevel, DecisionRule, UncertaintyBand
from lungkit.models.schema import Malformed

ARGMAX = DecisionRule(kind="argmax")


def _threshold(value: float) -> DecisionRule:
    return DecisionRule(kind="threshold", threshold=value)


def test_the_threshold_itself_is_positive():
    rows = np.array([[0.7, 0.3], [0.71, 0.29]])
    assert _threshold(0.3).decide(rows).tolist() == [1, 0]


def test_the_likeliest_class_is_taken_without_a_threshold():
    assert ARGMAX.decide(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])).tolist() == [1, 0]


def test_a_threshold_on_three_classes_is_refused():
    with pytest.raises(LungkitError, match="decides between two classes; the probabilities are of 3"):
        _threshold(0.5).decide(np.full((1, 3), 1 / 3))


def test_margins_are_log_odds_from_the_threshold():
    rows = np.array([[1 - p, p] for p in (0.1, 0.5, 0.2)])
    odds = np.array([1 / 9, 1, 1 / 4])
    np.testing.assert_allclose(_threshold(0.2).margin(rows), np.abs(np.log(odds / (1 / 4))), atol=1e-12)


def test_margins_are_how_many_times_likelier_the_first_class_is_than_the_second():
    rows = np.array([[0.6, 0.3, 0.1], [0.1, 0.45, 0.45]])
    np.testing.assert_allclose(ARGMAX.margin(rows), [np.log(2), 0], atol=1e-12)


def test_two_classes_have_the_same_margin_by_threshold_one_half_and_by_likelier_class():
    p = np.linspace(0.01, 0.99, 25)
    rows = np.column_stack([1 - p, p])
    np.testing.assert_allclose(_threshold(0.5).margin(rows), ARGMAX.margin(rows), atol=1e-12)


@pytest.mark.parametrize("rule", [_threshold(0.0), _threshold(np.nextafter(1, 2)), ARGMAX])
def test_certain_answers_and_extreme_thresholds_have_finite_margins(rule):
    assert np.isfinite(rule.margin(np.array([[0.0, 1.0], [1.0, 0.0]]))).all()


def test_an_answer_less_likely_than_not_is_uncertain_however_far_ahead_of_the_next():
    rows = np.array([[0.46, 0.28, 0.26], [0.52, 0.47, 0.01]])
    assert replace(ARGMAX, band=UncertaintyBand(margin=0.01)).uncertain(rows).tolist() == [True, False]
    assert ARGMAX.uncertain(rows).tolist() == [False, False], "a rule without a band leaves nothing to a person"


def test_the_likeliest_class_is_always_named():
    rule = replace(ARGMAX, conformal=ConformalLevel(level=0.9, least=0.99))
    named = rule.prediction_set(np.array([[0.4, 0.35, 0.25], [0.9, 0.06, 0.04]]))
    assert named.tolist() == [[True, False, False], [True, False, False]]
    with pytest.raises(LungkitError, match="no conformal level"):
        ARGMAX.prediction_set(np.eye(3))


def test_calibrated_probabilities_are_the_softmax_at_the_rules_temperature():
    logits = np.array([[1.0, -2.0, 700.0], [3.0, 2.0, 2.5]])
    expected = scipy.special.softmax(logits / 1.7, axis=1)
    np.testing.assert_allclose(replace(ARGMAX, temperature=1.7).calibrate(logits), expected, rtol=1e-12)


# --- as JSON

_share = st.floats(0, 1)
_maybe = st.none() | _share
_bands = st.builds(
    UncertaintyBand, margin=st.floats(0, 9), low=_maybe, high=_maybe, times=st.none() | st.floats(1, 99),
    errors_held=_maybe, reviewed=_maybe, chosen_on=st.none() | st.text(), criterion=st.none() | st.text(),
)  # fmt: skip
_levels = st.builds(ConformalLevel, level=_share, least=_share, n=st.none() | st.integers(0, 9999))
_rest = {
    "positive": st.none() | st.text(),
    "n": st.none() | st.integers(0),
    "temperature": st.none() | st.floats(0.05, 20),
    "band": st.none() | _bands,
    "conformal": st.none() | _levels,
    "extra": st.dictionaries(st.sampled_from(["later", "classes"]), st.lists(st.text())),
}
_rules = st.builds(DecisionRule, kind=st.just("argmax"), **_rest) | st.builds(
    DecisionRule, kind=st.just("threshold"), threshold=st.floats(0, 2), **_rest
)


@given(_rules)
def test_every_rule_survives_json_with_the_keys_that_this_version_does_not_know(rule):
    assert DecisionRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "magic"}, r"""'kind' is 'magic'; accepted: "argmax" or "threshold" or "median\""""),
        ({}, "'kind' is missing"),
        ({"kind": "threshold"}, "'threshold' of a decision rule is None, and 'kind' is threshold"),
        ({"kind": "threshold", "threshold": "0.5"}, "'threshold' is '0.5'; accepted: a number"),
        ({"kind": "argmax", "band": {"margin": None}}, "'band.margin' is None; accepted: a number"),
        ({"kind": "argmax", "conformal": [0.9]}, r"'conformal' is \[0.9\]; accepted: a JSON object"),
        ({"kind": "argmax", "schema": SCHEMA + 1}, f"reads up to {SCHEMA}: install a newer one"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_its_key(values, message):
    with pytest.raises(Malformed, match=message):
        DecisionRule.from_dict(values)


def test_rules_of_readings_from_before_there_was_a_schema_are_read():
    stored = {
        "kind": "threshold", "positive": "Ill", "threshold": 0.42, "chosen_on": "validation", "criterion": "Youden's J",
        "n": 598, "band": {"margin": 2.2, "low": 0.07, "high": 0.87, "errors_held": None, "reviewed": 0.02},
        "temperature": 0.48, "classes": ["Well", "Ill"], "conformal": {"level": 0.9, "least": 0.95, "n": 598},
    }  # fmt: skip
    rule = DecisionRule.from_dict(stored)
    assert (rule.threshold, rule.band.high, rule.conformal.least, rule.temperature) == (0.42, 0.87, 0.95, 0.48)
    assert rule.extra == {"classes": ["Well", "Ill"]}
    assert rule.operating_point() == DecisionRule.from_dict({key: stored[key] for key in list(stored)[:6]} | rule.extra)


def test_a_rule_is_read_without_heavy_libraries():
    heavy = "{'tensorflow', 'keras', 'pandas', 'sklearn', 'scipy', 'matplotlib'}"
    code = f"import sys; from lungkit.models import rule; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
