"""A card is read whatever lungkit wrote it, survives being written again, and names the key that is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lungkit.models import card_text
from lungkit.models.card import SCHEMA, Figure, Measured, ModelCard
from lungkit.models.schema import Malformed
from lungkit.wording import figure
from tests.cards import VALUES, model_card

ROOT = Path(__file__).parents[2]
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "brier")
OF_CLASS = ("precision", "recall", "specificity", "f1", "auc", "average_precision")


def _without_nulls(value):
    """Null and absent mean the same on a card."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None and key != "schema"}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


# --- every shape that was shipped

_share = st.sampled_from([0.0, 0.25, 0.912, 1.0])
_interval = st.sampled_from([[0.881, 0.938], [0.0, 1.0], [None, None]])


def _block(names):
    """Figures and their intervals, as Evaluation.to_dict() writes them."""
    return st.fixed_dictionaries({name: st.none() | _share for name in names})


def _split(names, **more):
    """A split with two classes, and its intervals."""
    classes = ("NORMAL", "PNEUMONIA")
    support = {"support": st.integers(0, 999)}
    per_class = st.fixed_dictionaries({c: _block(OF_CLASS) for c in classes})
    return st.fixed_dictionaries({
        "n": st.integers(1, 9999), "patients": st.integers(1, 999), "classes": st.just(list(classes)),
        **{name: st.none() | _share for name in names},
        "per_class": st.tuples(per_class, support["support"]).map(
            lambda of: {name: scores | {"support": of[1]} for name, scores in of[0].items()}
        ),
        "confusion": st.just([[3, 1], [0, 4]]),
        "intervals": st.fixed_dictionaries(
            dict.fromkeys(names, _interval)
            | {"per_class": st.fixed_dictionaries({
                c: st.fixed_dictionaries(dict.fromkeys(OF_CLASS, _interval)) for c in classes
            })}
        ),
        "operating_point": st.just({"kind": "argmax"}),
        **more,
    })  # fmt: skip


_conformal = st.fixed_dictionaries({"level": _share, "coverage": _share, "interval": st.just([0.8, None]),
                                    "classes_named": st.floats(1, 2)})  # fmt: skip
_test = _split(
    METRICS,
    conformal=_conformal,
    times_scored=st.integers(1, 9),
    largest_class=st.just({"class": "NORMAL", "share": 0.7}),
    at_half=st.just({"accuracy": 0.8, "intervals": {"accuracy": [0.7, 0.9]}}),
)
_folds = _split(METRICS[:4], folds=st.just(4), by=st.sampled_from(["patient", "image"]),
                auc_of_each_fold=st.lists(st.none() | _share, min_size=4, max_size=4))  # fmt: skip
_point = {"chosen_on": "validation", "criterion": "Youden's J", "n": 598}
_threshold = st.tuples(_share, _share).map(
    lambda of: {
        "operating_point": {"kind": "threshold", "positive": "PNEUMONIA", "threshold": of[0], **_point},
        "uncertainty": {"margin": of[1], "low": 0.1, "high": 0.9, "errors_held": None, "reviewed": 0.1, **_point},
    }
)
_argmax = st.just({
    "operating_point": {"kind": "argmax", **_point},
    "uncertainty": {"margin": 0.7, "times": 2.0, "errors_held": 0.4, "reviewed": 0.2, **_point},
})  # fmt: skip
# The keys that each generation of cards added to those before it.
_first = {
    "modality": st.sampled_from(["CT", "X-ray", "MRI", "image"]),
    "data": st.just(
        {
            "name": "d",
            "fingerprint": "ab",
            "counts": {"train": {"images": 840, "patients": 153}},
            "recipe": {"limit": 1200, "seed": 7},
        }
    ),
    "metrics": st.fixed_dictionaries({"val": _split(METRICS)}),
    "temperature": st.floats(0.05, 20),
    "checks": st.just({"kind": 1.3, "intensity": 1.8, "size": 96, "units": None, "flagged": 0.02, "n": 180}),
    "graph": st.just({"runtime": "OpenVINO", "same_class": 1.0, "images": 180}),
    "architecture": st.just({"name": "cnn", "parameters": 15087}),
    "training": st.just({"epochs": 30, "seconds": 42.4, "class_weights": {"0": 1.0}}),
}
_second = {
    "metrics": st.fixed_dictionaries({"val": _split(METRICS), "4 folds by patient or group": _folds, "test": _test}),
    "conformal": st.just({"level": 0.9, "least": 0.2, "chosen_on": "validation", "n": 598}),
    "about": st.just({"question": "Normal or pneumonia?", "population": "children", "licence": "CC BY 4.0"}),
}
_third = {
    "trust": st.just({"says": ["It depends on the lungs."], "shortcuts": {"auc": {"value": 0.5, "low": None}}}),
    "standing": st.just({"active": False, "reason": "worse", "differences": {"auc": [-0.1, None, 0.0]}}),
}
_generations = [_first, _first | _second, _first | _second | _third]
_cards = st.one_of(
    st.tuples(st.fixed_dictionaries(parts), rule).map(lambda of: VALUES | of[0] | of[1])
    for parts in _generations
    for rule in (_threshold, _argmax)
)


@given(_cards)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_every_generation_of_cards_is_read_and_written_without_a_loss(values):
    card = ModelCard.from_dict(values)
    again = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    assert _without_nulls(again) == _without_nulls(values)
    assert ModelCard.from_dict(again) == card
    assert card.extra == {} and again["schema"] == SCHEMA
    for split, measured in card.metrics.items():
        assert measured.extra == {}
        for name, one in measured.figures.items():
            assert one.value == values["metrics"][split][name]


@pytest.mark.parametrize("path", sorted((ROOT / "artifacts").glob("*/v*/card.json")), ids=str)
def test_every_card_that_ships_is_read_and_written_without_a_loss(path):
    values = json.loads(path.read_text())
    card = ModelCard.from_dict(values)
    written = json.loads(json.dumps(card.to_dict(), allow_nan=False))
    written["preprocessing"] = {key: written["preprocessing"][key] for key in values["preprocessing"]}
    assert _without_nulls(written) == _without_nulls(values)
    assert (card.rule.band or card.rule.grades) and card.rule.temperature and card.checks and card.files
    assert re.fullmatch(r"[01]\.\d{3} \(0\.\d{3}–[01]\.\d{3}\)", str(card.reported[1].figure("auc")))


# --- keys of the future, and damage


def test_keys_that_this_version_does_not_know_are_kept_wherever_they_stand():
    later = {
        "remark": {"by": "x"},
        "data": {"name": "d", "licence": "CC0"},
        "metrics": {"val": {"kappa": 0.5, "note": "n"}},
    }
    card = model_card(**later)
    assert card.extra == {"remark": {"by": "x"}} and card.data.extra == {"licence": "CC0"}
    assert str(card.metrics["val"].figure("kappa")) == "0.500", "a number is a figure"
    written = card.to_dict()
    assert {key: written[key] for key in ("remark", "metrics")} == {key: later[key] for key in ("remark", "metrics")}
    assert written["data"]["licence"] == "CC0"
    assert "note" in card.metrics["val"].extra


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"schema": SCHEMA + 1}, f"'schema' is {SCHEMA + 1}; this lungkit reads up to {SCHEMA}: install a newer one"),
        ({"synthetic": "no"}, "'synthetic' is 'no'; accepted: true or false"),
        ({"classes": []}, "'classes' is empty; accepted: one name for each output of the model"),
        ({"data": {}}, "'data.name' is missing"),
        ({"metrics": {"val": 0.9}}, "'metrics.val' is 0.9; accepted: a JSON object"),
        ({"metrics": {"val": {"auc": "good"}}}, "'metrics.val.auc' is 'good'; accepted: a number"),
        (
            {"metrics": {"val": {"auc": 0.9, "intervals": {"auc": [0.8]}}}},
            r"'metrics.val.intervals.auc' is .* list of 2",
        ),
        ({"metrics": {"val": {"per_class": {"a": {"recall": []}}}}}, r"'metrics.val.per_class.a.recall' is \[\]"),
        ({"operating_point": {"kind": "magic"}}, "'operating_point.kind' is 'magic'"),
        ({"preprocessing": {"size": [9, 9]}}, "'preprocessing' cannot be used: preprocessing lacks: mean, std, window"),
        ({"files": {"graph.xml": {"sha256": "ab"}}}, "'files.graph.xml.bytes' is missing"),
    ],
)
def test_a_damaged_card_is_refused_with_its_key_and_what_is_accepted(damage, message):
    with pytest.raises(Malformed, match=message):
        model_card(**damage)


@pytest.mark.parametrize("key", ["classes", "preprocessing", "data", "metrics", "operating_point", "synthetic"])
def test_a_card_without_a_key_that_it_needs_is_refused_by_name(key):
    with pytest.raises(Malformed, match=f"'{key}' is missing"):
        ModelCard.from_dict({name: value for name, value in VALUES.items() if name != key})


# --- how it is shown


def test_a_figure_is_written_in_one_way():
    assert str(Figure(0.9121, (0.8889, 0.934))) == "0.912 (0.889–0.934)"
    assert str(Figure(0.5, (None, None))) == str(Figure(0.5)) == "0.500"
    assert str(Figure()) == figure(float("nan"), float("nan"), float("nan")) == "–"
    assert figure(-0.198, -0.244, 0.152) == "−0.198 (−0.244 to 0.152)"


def test_figures_over_folds_count_before_the_test_and_the_test_before_validation():
    splits = {"val": {"auc": 0.9}, "test": {"auc": 0.8}, "4 folds": {"auc": 0.7, "by": "patient"}}
    splits["by image"] = {"auc": 0.99, "by": "image"}
    for reported, where in (("4 folds", "4 folds"), ("test", "test"), ("val", "validation only")):
        card = model_card(metrics=splits)
        assert (card.reported[0], card_text.reported_on(card)) == (reported, where)
        del splits[reported]
    assert model_card().reported == ("nothing", Measured())


def test_cards_are_taken_apart_in_one_module():
    code = [path for path in (ROOT / "lungkit").rglob("*.py") if path.name != "card.py"]
    assert not [path for path in code if re.search(r"\bcard\[[\"']", path.read_text())]


def test_a_card_is_read_without_heavy_libraries():
    heavy = "{'tensorflow', 'keras', 'pandas', 'sklearn', 'scipy', 'matplotlib'}"
    code = f"import sys; from lungkit.models import card_text; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
