"""Trials in the records: what is signed, by whom, and when a challenger may read."""

import threading

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import accounts, audit_trail, trials
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.store import StoreError
from lungkit.clinic.records.tables import Challenger, LockedLook, Trial, TrialSignature, User
from lungkit.clinic.records.trials import RollbackRule, TrialRefused
from lungkit.models import registry
from tests import trials as made
from tests.clinic.rows import events


@pytest.fixture
def opened(store, tmp_path, monkeypatch):
    """A function: a trial of v2 against v1, which is in use, with this evidence; its id."""
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    made.versions(3)

    def make(*sets, **changes) -> str:
        with store.write() as db:
            return trials.open_trial(db, made.evidence(*sets, **changes), RollbackRule.from_dict(made.ROLLBACK))

    return make


@pytest.fixture
def admins(signed_in) -> list[Administration]:
    """Three administrators."""
    return [Administration(signed_in("admin", name)) for name in ("boss", "deputy", "third")]


def sign(admin: Administration, trial_id: str) -> None:
    (row,) = (row for row in admin.trials() if row.id == trial_id)
    admin.sign_trial(trial_id, row.sha256)


def test_two_administrators_sign_and_then_the_challenger_reads(opened, admins, store):
    trial = opened()
    sign(admins[0], trial)
    with pytest.raises(TrialRefused, match="1 of 2 signatures"):
        admins[0].use_challenger(trial)
    sign(admins[1], trial)
    assert registry.active("lung").version == "v1"  # signatures alone promote nothing
    assert admins[2].use_challenger(trial) == "lung@v2"
    assert registry.active("lung").version == "v2"
    (row,) = admins[0].trials()
    assert (row.state, [one.full_name for one in row.signatures]) == ("promoted", ["Test Boss", "Test Deputy"])
    promoted = events(store, "model.promote")[-1]
    assert promoted.object == "model:lung@v2" and promoted.detail["trial"] == trial
    assert promoted.detail["evidence"] == row.sha256
    assert audit_trail.verify(store) > 4


def test_a_person_signs_once(opened, admins):
    trial = opened()
    sign(admins[0], trial)
    with pytest.raises(TrialRefused, match="signed this trial already"):
        sign(admins[0], trial)
    assert len(admins[0].trials()[0].signatures) == 1


def test_what_is_signed_is_what_was_on_screen(opened, admins):
    with pytest.raises(TrialRefused, match="not the one that was on screen"):
        admins[0].sign_trial(opened(), "0" * 64)


@pytest.mark.parametrize("who", ["disabled", "doctor"])
def test_the_signature_of_someone_who_is_no_administrator_any_more_does_not_count(opened, admins, store, who):
    trial = opened()
    for admin in admins[:2]:
        sign(admin, trial)
    with store.write() as db:
        accounts.disable_user(db, "deputy") if who == "disabled" else accounts.set_role(db, "deputy", "doctor")
    with pytest.raises(TrialRefused, match="1 of 2 signatures"):
        admins[0].use_challenger(trial)


@pytest.mark.parametrize(
    ("sets", "words"),
    [([made.of_set(auc=made.LOSS)], "says keep"), ([made.of_set(auc=made.SAME)], "says cannot tell")],
)
def test_a_trial_that_does_not_say_promote_promotes_nothing_however_many_sign(opened, admins, sets, words):
    trial = opened(*sets)
    for admin in admins[:2]:
        sign(admin, trial)
    with pytest.raises(TrialRefused, match=words):
        admins[0].use_challenger(trial)
    assert registry.active("lung").version == "v1"


def test_evidence_that_was_changed_in_the_database_is_refused(opened, admins, store):
    trial = opened(made.of_set(auc=made.LOSS))
    with store.write() as db:
        row = db.get(Trial, trial)
        row.evidence = made.evidence().to_dict()
        row.evidence_sha256 = trials._hash(row)  # whoever does it can also compute the hash
    assert "was changed after it was measured" in admins[0].trials()[0].problem
    with pytest.raises(TrialRefused, match="was changed after it was measured"):
        sign(admins[0], trial)


def test_a_forged_signature_of_other_evidence_does_not_count(opened, admins, store):
    trial = opened()
    sign(admins[0], trial)
    with store.write() as db:
        deputy = db.scalar(sa.select(User.id).where(User.name == "deputy"))
        db.add(TrialSignature(trial_id=trial, user_id=deputy, evidence_sha256="0" * 64))
    with pytest.raises(TrialRefused, match="1 of 2"):
        admins[0].use_challenger(trial)


def test_a_trial_ends_when_another_version_came_into_use(opened, admins):
    trial = opened()
    sign(admins[0], trial)
    admins[0].promote("lung", "v3")
    for act in (lambda: sign(admins[1], trial), lambda: admins[1].use_challenger(trial)):
        with pytest.raises(TrialRefused, match="lung@v3 is in use now"):
            act()


def test_a_challenger_whose_files_changed_is_refused(opened, admins):
    trial = opened()
    (registry.find("lung@v2").folder / "weights").write_text("other")
    with pytest.raises(registry.ModelDamaged, match="was changed after it was registered"):
        sign(admins[0], trial)


def test_a_version_that_was_sealed_again_with_other_files_is_refused(opened, admins):
    trial = opened()
    folder = registry.find("lung@v2").folder
    (folder / "weights").write_text("other")
    sums = folder / "SHA256SUMS"
    from lungkit import files

    lines = [line for line in sums.read_text().splitlines() if not line.endswith("weights")]
    sums.write_text("\n".join([*lines, f"{files.sha256(folder / 'weights')}  weights"]) + "\n")
    with pytest.raises(TrialRefused, match="other files than when it was measured"):
        sign(admins[0], trial)


def test_a_rejected_trial_is_at_its_end(opened, admins, store):
    trial = opened()
    admins[0].reject_challenger(trial)
    for act in (lambda: sign(admins[0], trial), lambda: admins[0].reject_challenger(trial)):
        with pytest.raises(TrialRefused, match="this trial is rejected"):
            act()
    assert events(store, "trial.reject")[-1].object == f"trial:{trial}"


@pytest.mark.parametrize("back", ["roll_back", "promote"])
def test_going_back_is_noted_on_the_trial(opened, admins, store, back):
    trial = opened()
    for admin in admins[:2]:
        sign(admin, trial)
    admins[0].use_challenger(trial)
    admins[0].roll_back("lung") if back == "roll_back" else admins[0].promote("lung", "v1")
    assert admins[0].trials()[0].state == "rolled back"
    assert events(store, "trial.roll_back")[-1].object == f"trial:{trial}"


def test_a_challenger_that_reads_for_all_leaves_the_shadow(opened, admins, store):
    trial = opened()
    admins[0].set_challenger("lung", "v2")
    for admin in admins[:2]:
        sign(admin, trial)
    admins[0].use_challenger(trial)
    with store.read() as db:
        assert db.get(Challenger, "lung") is None


def test_looks_at_a_locked_set_count_those_at_the_sets_that_it_grew_from(store):
    with store.write() as db:
        assert trials.look(db, ["a" * 64], "lung@v2", 100)[1] == 1
        assert trials.look(db, ["a" * 64], "lung@v3", 100)[1] == 2
        assert trials.look(db, ["a" * 64, "b" * 64], "lung@v4", 120)[1] == 3
        assert trials.look(db, ["c" * 64], "lung@v4", 90)[1] == 1
    assert [event.detail["looks"] for event in events(store, "trial.look")] == [1, 2, 3, 1]


def test_a_look_belongs_to_its_trial(opened, store):
    with store.write() as db:
        look_id, _ = trials.look(db, ["a" * 64], "lung@v2", 100)
        trial = trials.open_trial(db, made.evidence(), RollbackRule.from_dict(made.ROLLBACK), look_id)
    with store.read() as db:
        assert db.get(LockedLook, look_id).trial_id == trial


def test_the_models_screen_is_told_whether_a_signed_trial_stands_behind_a_version(opened, admins):
    assert "No trial has measured v2" in admins[0].without_trial("lung", "v2")
    trial = opened()
    assert "2 administrators have not signed" in admins[0].without_trial("lung", "v2")
    for admin in admins[:2]:
        sign(admin, trial)
    assert admins[0].without_trial("lung", "v2") == ""
    opened(made.of_set(auc=made.LOSS))
    assert "says keep" in admins[0].without_trial("lung", "v2")


def test_a_doctor_neither_sees_nor_signs_nor_uses_a_trial(opened, signed_in):
    trial, doctor = opened(), Administration(signed_in("doctor"))
    for act in (
        doctor.trials,
        lambda: doctor.sign_trial(trial, "0" * 64),
        lambda: doctor.use_challenger(trial),
        lambda: doctor.reject_challenger(trial),
        lambda: doctor.set_challenger("lung", "v2"),
        lambda: doctor.without_trial("lung", "v2"),
    ):
        with pytest.raises(accounts.Forbidden):
            act()


@pytest.mark.parametrize("wrong", ["", "no such id", None, {"id": 1}])
def test_a_trial_that_is_not_there_is_refused_in_words(opened, admins, wrong):
    with pytest.raises(TrialRefused, match="not in the records"):
        admins[0].sign_trial(wrong, "0" * 64)


def test_only_another_version_reads_in_the_shadow(opened, admins, store):
    with pytest.raises(TrialRefused, match="is in use"):
        admins[0].set_challenger("lung", "v1")
    with pytest.raises(registry.ModelMissing):
        admins[0].set_challenger("lung", "v9")
    admins[0].set_challenger("lung", "v2")
    with store.read() as db:
        first = db.get(Challenger, "lung").since
    admins[0].set_challenger("lung", "v2")
    with store.read() as db:
        assert db.get(Challenger, "lung").since == first  # naming it again does not begin again
    admins[0].set_challenger("lung", "v3")
    admins[0].set_challenger("lung", None)
    with pytest.raises(TrialRefused, match="no version reads in the shadow"):
        admins[0].set_challenger("lung", None)
    assert [event.detail["version"] for event in events(store, "shadow.set")] == ["v2", "v2", "v3", None]


def test_a_signature_that_the_trail_does_not_know_does_not_count(opened, admins, store):
    trial = opened()
    sign(admins[0], trial)
    with store.write() as db:
        row = db.get(Trial, trial)
        deputy = db.scalar(sa.select(User.id).where(User.name == "deputy"))
        db.add(TrialSignature(trial_id=trial, user_id=deputy, evidence_sha256=row.evidence_sha256))
    with pytest.raises(TrialRefused, match="1 of 2"):
        admins[0].use_challenger(trial)


def puppet_of(boss: Administration, store, how: str) -> Administration:
    """A second account, which the boss set up in this way and uses."""
    if how == "made":
        password = boss.add_user("puppet", "A Puppet", "admin")
    else:
        with store.write() as db:
            password = accounts.add_user(db, "puppet", "A Puppet", "doctor" if how == "role" else "admin")
        if how == "role":
            boss.set_role("puppet", "admin")
        else:
            password = boss.reset_password("puppet")
    return Administration(accounts.Access(store, accounts.sign_in(store, "puppet", password, "127.0.0.1")))


@pytest.mark.parametrize("how", ["made", "new password", "role"])
def test_an_account_that_one_signer_has_just_set_up_cannot_be_the_other(opened, admins, store, how):
    trial = opened()
    puppet = puppet_of(admins[0], store, how)
    for first, second in ((admins[0], puppet), (puppet, admins[0])):
        sign(first, trial)
        with pytest.raises(TrialRefused, match="since this trial was opened"):
            sign(second, trial)
        with pytest.raises(TrialRefused, match="1 of 2 signatures"):
            first.use_challenger(trial)
        sign(admins[1], trial)
        assert len(admins[1].trials()[0].signatures) == 2  # the deputy's account is older than the trial
        with store.write() as db:
            db.execute(sa.delete(TrialSignature))


def test_a_signature_stays_where_its_account_gets_a_new_password_afterwards(opened, admins):
    trial = opened()
    sign(admins[1], trial)
    admins[0].reset_password("deputy")
    sign(admins[0], trial)
    assert admins[0].use_challenger(trial) == "lung@v2"


def test_of_two_promotions_at_once_one_succeeds(opened, admins, store):
    trial = opened()
    for admin in admins[:2]:
        sign(admin, trial)
    together, ends = threading.Barrier(3), []

    def use(admin: Administration) -> None:
        together.wait()
        try:
            ends.append(admin.use_challenger(trial))
        except TrialRefused as refused:
            ends.append(str(refused))

    threads = [threading.Thread(target=use, args=(admin,)) for admin in admins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ends) == ["lung@v2", "this trial is promoted", "this trial is promoted"]
    assert len(events(store, "model.promote")) == 1
    assert registry._pointer("lung")["history"] == ["v1"]


def test_a_promotion_that_the_records_cannot_keep_changes_no_version(opened, admins, store, monkeypatch):
    trial = opened()
    for admin in admins[:2]:
        sign(admin, trial)

    def full(db, user, action, *_, **__):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(audit_trail, "append", full)
        admins[0].use_challenger(trial)
    assert registry.active("lung").version == "v1" and admins[0].trials()[0].state == "open"
    assert admins[0].use_challenger(trial) == "lung@v2"
