"""The rule for going back: derived from the champion, looked at in runs, and only ever said."""

from datetime import timedelta

import numpy as np
import pytest

from lungkit.clinic.learning import trial as module
from lungkit.clinic.learning.trial import rollback_due, rollback_rule, standings
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import accounts, trials
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import NOT_ASSESSABLE, WRONG_IMAGE, Trial, now
from lungkit.clinic.records.trials import RollbackRule
from lungkit.models import registry
from tests import trials as made


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


@pytest.fixture
def in_use(store, signed_in, tmp_path, monkeypatch):
    """lung@v2, which came into use by a trial, and the administrator who used it."""
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    made.versions()
    boss, deputy = (Administration(signed_in("admin", name)) for name in ("boss", "deputy"))
    rule = RollbackRule.from_dict(made.ROLLBACK | {"reviews": 5, "readings": 4})
    with store.write() as db:
        trial_id = trials.open_trial(db, made.evidence(), rule)
    for admin in (boss, deputy):
        admin.sign_trial(trial_id, admin.trials()[0].sha256)
    boss.use_challenger(trial_id)
    return boss


def read(reviewed, agreeing: int, differing: int = 0, **changes) -> None:
    for _ in range(agreeing):
        reviewed("Pneumonia", version="v2", **changes)
    for _ in range(differing):
        reviewed("Normal", version="v2", **changes)


def test_reviews_that_agree_leave_it_as_it_is(in_use, reviewed, store):
    read(reviewed, 4, 1)
    (standing,) = standings(in_use.access)
    assert not standing.due and "5 reviews and 5 readings since v2 is in use" in standing.words
    assert rollback_due(store) == []


def test_a_run_of_reviews_below_the_limit_says_to_go_back_and_nothing_goes_back_by_itself(in_use, reviewed, store):
    read(reviewed, 5)
    read(reviewed, 3, 2)
    (standing,) = rollback_due(store)
    assert standing.words.startswith("Go back to v1: of reviews 6 to 10 only 3 agree (60 %); the limit is 80 %")
    assert registry.active("lung").version == "v2"


def test_a_run_is_looked_at_when_it_is_complete(in_use, reviewed, store):
    read(reviewed, 0, 4)
    assert rollback_due(store) == []
    read(reviewed, 1)
    assert rollback_due(store) != []


def test_readings_that_are_left_to_a_person_count_without_reviews(in_use, reviewed, store):
    for decision in (REVIEW, REVIEW, None, None):
        reviewed(version="v2", decision=decision)
    (standing,) = rollback_due(store)
    assert "of readings 1 to 4 2 are left to a person (50 %); the limit is 25 %" in standing.words


def test_a_review_that_was_changed_counts_once_by_its_latest(in_use, reviewed, readers, store):
    read(reviewed, 4)
    last = reviewed("Normal", version="v2")
    readers[0].review(last, "Pneumonia")
    (standing,) = standings(in_use.access)
    assert not standing.due and "5 reviews" in standing.words


def test_what_other_versions_read_and_what_was_read_before_does_not_count(in_use, reviewed, store):
    for _ in range(6):
        reviewed("Normal", version="v1")
    read(reviewed, 0, 5)
    with store.write() as db:
        db.query(Trial).one().ended_at = now() + timedelta(seconds=1)
    assert rollback_due(store) == []


def test_once_it_is_taken_back_the_rule_is_at_its_end(in_use, reviewed, store):
    read(reviewed, 0, 5)
    in_use.roll_back("lung")
    assert standings(in_use.access) == [] and rollback_due(store) == []


def test_only_an_administrator_sees_how_it_stands(in_use, signed_in):
    with pytest.raises(accounts.Forbidden):
        standings(signed_in("doctor", "dora"))


# --- the limits


@pytest.mark.parametrize(("share", "before"), [(0.9, 200), (0.8, 60), (0.95, 1000)])
def test_a_challenger_like_the_champion_crosses_a_limit_as_rarely_as_stated(share, before):
    rng = np.random.default_rng(1)
    hits = rng.binomial(before, share, 4000)
    limits = {int(n): module._limit((int(n), before), 50, module.FALSE_ALARM) for n in np.unique(hits)}
    crossed = np.mean([rng.binomial(50, share) / 50 < limits[int(n)] for n in hits])
    assert crossed <= 1.5 * module.FALSE_ALARM
    worse = np.mean([rng.binomial(50, share - 0.3) / 50 < limits[int(n)] for n in hits])
    assert worse > 0.7


def test_the_rule_is_derived_from_the_reviews_and_readings_of_the_champion(store, reviewed, tmp_path, monkeypatch):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    made.versions()
    champion = registry.find("lung@v1")
    sets = made.evidence().sets
    with store.read() as db:
        rule = rollback_rule(db, champion, sets)
    assert "90 % agreed (accuracy on the locked set locked-v1)" in rule.derived_from
    assert 0.7 < rule.agreement_below < 0.85 and 0.1 < rule.left_to_person_above < 0.25
    for number in range(50):
        reviewed("Pneumonia" if number % 2 else "Normal", version="v1")
    with store.read() as db:
        rule = rollback_rule(db, champion, sets)
        given = rollback_rule(db, champion, sets, 0.6, 0.4)
    assert "50 % agreed (50 reviews)" in rule.derived_from and rule.agreement_below < 0.4
    assert (given.agreement_below, given.left_to_person_above) == (0.6, 0.4)
    assert "fewer than 60 % of 50 reviews in a row agree" in str(given)


def test_reviews_that_give_no_class_are_no_evidence(in_use, reviewed, store):
    read(reviewed, 4)
    for said in (NOT_ASSESSABLE, WRONG_IMAGE, NOT_ASSESSABLE, NOT_ASSESSABLE):
        reviewed(said, version="v2")
    (standing,) = standings(in_use.access)
    assert not standing.due and "4 reviews and 8 readings" in standing.words
