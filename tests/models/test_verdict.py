"""The verdict of a trial: the rule, how rarely it promotes by chance, and how many patients would tell."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from lungkit.models import verdict
from lungkit.models.schema import Malformed
from lungkit.models.verdict import Evidence, OfSet

Z = NormalDist().inv_cdf(0.975)
VERSION = {"auc": (0.95, 0.9, 0.97), "accuracy": (0.9, 0.8, 0.95), "ece": 0.02, "brier": 0.08, "left_to_person": 0.1}
CANDIDATE = {"version": "v1", "fingerprint": "ab", "milliseconds": 100.0, "bytes": 1_000_000}


def of_set(kind: str, gain: float, error: float = 0.005, **changes) -> OfSet:
    """A set with this difference in AUC and this standard error."""
    around = (gain, gain - Z * error, gain + Z * error)
    values = {
        "kind": kind, "source": kind, "data": kind, "images": 400, "patients": 200, "fewest": 90, "left_out": 0,
        "champion": VERSION, "challenger": VERSION, "auc": around, "accuracy": (0.0, -0.01, 0.01),
        "ece": (0.0, -0.01, 0.01), "brier": (0.0, -0.01, 0.01),
    }  # fmt: skip
    return OfSet.from_dict(values | changes)


def evidence(*sets: OfSet, **changes) -> Evidence:
    values = {
        "model": "lung", "champion": CANDIDATE, "challenger": CANDIDATE | {"version": "v2"}, "margin": 0.02,
        "sets": sets, "not_measured": (), "locked_sha256": "cd", "looks": 1, "times_slower": 1.1, "timed_on": 30,
        "measured_at": "2026-11-29T20:00:00+00:00",
    }  # fmt: skip
    return Evidence.from_dict(values | changes)


def word(*sets: OfSet, **changes) -> str:
    return verdict.judge(evidence(*sets, **changes)).word


def test_an_interval_that_ends_at_minus_the_margin_is_open():
    only = of_set("home", 0.0)
    assert evidence(only, margin=-only.auc[1]).outcome(only) == "open"
    assert evidence(only, margin=-only.auc[1] + 1e-9).outcome(only) == "not worse"


GOOD = of_set("locked", 0.02), of_set("home", 0.0)


def test_a_challenger_that_keeps_all_and_gains_somewhere_is_promoted():
    said = verdict.judge(evidence(*GOOD))
    assert said.word == "promote" and "better on the locked set locked: AUC +0.020" in said.reasons[0]
    assert word(of_set("locked", 0.0), of_set("home", 0.0), of_set("new", 0.02)) == "promote"


@pytest.mark.parametrize("kind", ["locked", "home", "elsewhere", "new"])
def test_worse_on_any_set_keeps_the_champion(kind):
    said = verdict.judge(evidence(*GOOD, of_set(kind, -0.03)))
    assert said.word == "keep" and "is worse on" in said.reasons[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"ece": (0.03, 0.021, 0.04)}, "ECE"), ({"brier": (0.02, 0.011, 0.03)}, "Brier score")],
)
def test_a_calibration_that_is_worse_beyond_its_limit_keeps_the_champion(changes, words):
    said = verdict.judge(evidence(GOOD[0], of_set("home", 0.0, **changes)))
    assert said.word == "keep" and words in said.reasons[0]
    within = {name: (value, low - 0.002, high) for name, (value, low, high) in changes.items()}
    assert word(GOOD[0], of_set("home", 0.0, **within)) == "promote"


def test_a_challenger_that_is_too_slow_is_not_taken():
    assert word(*GOOD, times_slower=2.01) == "keep" and word(*GOOD, times_slower=2.0) == "promote"


def test_without_a_locked_set_or_a_source_of_the_champion_nothing_can_be_told():
    assert word(of_set("home", 0.02)) == "cannot tell"
    said = verdict.judge(evidence(*GOOD, not_measured=["Berlin"]))
    assert said.word == "cannot tell" and "learned from Berlin" in said.reasons[0] and "--data" in said.would_tell[0]


def test_a_wide_interval_cannot_tell_and_says_how_many_patients_would():
    said = verdict.judge(evidence(GOOD[0], of_set("home", 0.0, error=0.02)))
    assert said.word == "cannot tell" and "not shown to be not worse on home" in said.reasons[0]
    assert "1,570 patients (3,140 images) would show not worse by 0.02" in said.would_tell[0]
    assert word(GOOD[0], of_set("elsewhere", 0.0, error=0.02)) == "promote"  # the champion does not know it


def test_no_gain_cannot_tell_and_says_how_many_patients_would_show_one():
    said = verdict.judge(evidence(of_set("locked", 0.0, error=0.009), of_set("home", 0.0)))
    assert said.word == "cannot tell" and "not shown to be better on any set" in said.reasons[0]
    assert "a gain of 0.02 would show on 385 patients" in said.would_tell[0]
    assert "if there is one, it is smaller" in said.would_tell[1]


def test_few_patients_of_a_class_show_nothing_but_harm():
    few = {"fewest": verdict.LEAST_PATIENTS - 1}
    assert word(of_set("locked", 0.02, **few), GOOD[1]) == "cannot tell"
    assert word(*GOOD, of_set("new", -0.03, **few)) == "keep"


def test_a_set_that_is_open_for_too_few_patients_alone_says_so_and_asks_for_no_more_than_these():
    few = of_set("locked", 0.02, fewest=verdict.LEAST_PATIENTS - 1)
    said = verdict.judge(evidence(few, GOOD[1]))
    assert "one class has only 29 patients: AUC +0.020" in said.reasons[0]
    assert said.would_tell[0].endswith("at least 30 patients of each class are needed; of one there are 29.")


def test_looks_and_sets_share_one_level():
    first = evidence(*GOOD)
    assert first.level == pytest.approx(0.05 / 2 / 2)
    assert sum(replace(first, looks=look).level * 2 for look in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)
    assert word(*GOOD, looks=1) == "promote"
    said = verdict.judge(evidence(of_set("locked", 0.02, error=0.008), GOOD[1], looks=1))
    assert said.word == "promote"
    late = evidence(of_set("locked", 0.02, error=0.008), GOOD[1], looks=8)
    assert verdict.judge(late).word == "cannot tell" and "Look number 8" in verdict.looks_in_words(late)


def simulated(rng: np.random.Generator, looks: int, counted: bool) -> bool:
    """Whether one of several challengers that are only as good is promoted, on sets whose errors are as usual."""
    for look in range(1, looks + 1):
        sets = [of_set(kind, rng.normal(0, error), error) for kind, error in
                (("locked", 0.006), ("home", 0.005), ("new", 0.01))]  # fmt: skip
        if word(*sets, looks=look if counted else 1) == "promote":
            return True
    return False


def test_challengers_that_are_only_as_good_are_rarely_promoted_however_often_one_looks():
    rng = np.random.default_rng(5)
    assert np.mean([simulated(rng, 1, True) for _ in range(1500)]) < 0.035
    assert np.mean([simulated(rng, 10, True) for _ in range(300)]) < 0.06
    assert np.mean([simulated(rng, 10, False) for _ in range(300)]) > 0.1  # what counting prevents


def test_the_patients_that_are_needed_show_not_worse_four_times_of_five():
    rng = np.random.default_rng(3)
    of = of_set("locked", 0.0, error=0.009)
    needed = of.patients_needed(0.02)
    assert needed == 318  # (1.960 + 0.842)² (0.009 / 0.02)² 200
    error = of.error * np.sqrt(of.patients / needed)
    shown = [evidence(of_set("locked", rng.normal(0, error), error)) for _ in range(2000)]
    # Not by the word, which is "worse" for one in forty: by the claim that is counted.
    kept = np.mean([one.sets[0].auc[1] >= -0.02 for one in shown])
    assert kept == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("half", "needed"), [(0.011, 124), (0.021, 451)])
def test_the_half_widths_that_were_measured_on_200_patients_need_hundreds(half, needed):
    of = of_set("locked", 0.0, error=half / Z, images=200)
    assert of.patients_needed(0.02) == needed == of.images_needed(0.02)


def test_evidence_is_read_back_from_json_as_it_was_and_refused_where_it_was_tampered_with():
    made = evidence(*GOOD)
    assert Evidence.from_dict(made.to_dict()) == made
    with pytest.raises(Malformed, match="looks"):
        Evidence.from_dict(made.to_dict() | {"looks": "none"})
    with pytest.raises(Malformed, match="kind"):
        Evidence.from_dict(made.to_dict() | {"sets": [made.sets[0].to_dict() | {"kind": "other"}]})


def test_what_people_read_has_the_verdict_the_power_the_looks_and_the_speed():
    told = " ".join(verdict.says(evidence(*GOOD)))
    assert "Verdict: promote" in told and "First look" in told and "1.10 times as long" in told
    assert "99 patients (198 images) would show not worse" in told
    assert verdict.set_row(evidence(*GOOD), GOOD[0])["outcome"] == "better"
