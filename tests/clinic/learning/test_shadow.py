"""A challenger reads what the version in use has read: kept, compared, and never shown."""

import json

import pytest
import sqlalchemy as sa
import typer.testing

from lungkit import cli
from lungkit.clinic.learning import shadow
from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records import accounts
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.tables import NOT_ASSESSABLE, Challenger, Patient, Reading, ShadowReading, Study
from lungkit.models import registry
from lungkit.models.class_names import class_name
from tests.clinic.rows import count, everything


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


@pytest.fixture
def boss(signed_in, versions):
    """An administrator, who has let v2 read in the shadow."""
    boss = Administration(signed_in("admin", "boss"))
    boss.set_challenger("tiny-cnn", "v2")
    return boss


def test_a_pass_reads_each_image_once_with_the_answer_that_the_clinic_would_give(boss, ward, store):
    made = ward(4, False, 1)
    (one,) = shadow.run(store)
    assert (one.challenger, one.read, one.unreadable, one.left) == ("tiny-cnn@v2", 4, 0, 0)
    assert shadow.run(store)[0].read == 0 and count(store, ShadowReading) == 4
    with store.read() as db:  # the versions are the same network, and the pixels of a small CT are kept as they are
        for reading_id in made:
            theirs, ours = db.get(ShadowReading, (reading_id, "v2")), db.get(Reading, reading_id)
            assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-6)
            assert (theirs.label, theirs.decision) == (ours.label, ours.decision)


def test_a_pass_that_is_killed_goes_on_where_it_was(boss, ward, store, monkeypatch):
    ward(5, False, 1)
    monkeypatch.setattr(shadow, "BATCH", 2)
    read, reads = Predictor.read, []

    def killed(self, *of):
        reads.append(1)
        if len(reads) == 4:
            raise KeyboardInterrupt
        return read(self, *of)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Predictor, "read", killed)
        shadow.run(store)
    assert count(store, ShadowReading) == 2
    assert shadow.run(store, most=2)[0] == shadow.Passed("tiny-cnn@v2", 2, 0, 1)
    assert shadow.run(store)[0].read == 1


def test_what_was_read_before_it_was_named_excluded_patients_and_damaged_pixels_are_left_out(boss, ward, store):
    made = ward(5, False, 1)
    with store.write() as db:
        db.get(Reading, made[2]).study.patient.excluded = True
        db.execute(sa.update(Study).where(Study.id == db.get(Reading, made[1]).study_id).values(pixels=b"no picture"))
        db.get(Challenger, "tiny-cnn").since = db.get(Reading, made[1]).read_at
    assert shadow.run(store, most=2)[0] == shadow.Passed("tiny-cnn@v2", 2, 1, 1)
    assert shadow.run(store, most=2)[0] == shadow.Passed("tiny-cnn@v2", 0, 1, 1)
    with store.read() as db:
        assert set(db.scalars(sa.select(ShadowReading.reading_id))) == set(made[3:])


def test_a_series_is_left_out_and_counted(boss, readers, ct_series, series_said, store):
    said = series_said(ct_series, model="tiny-cnn", version="v1")
    object.__setattr__(said, "model", "tiny-cnn")
    readers[0].save_series(_patient(), ct_series, said)
    assert shadow.run(store)[0].read == 0
    (one,) = shadow.compared(boss.access)
    assert (one.readings, one.series, one.waiting) == (0, 1, 0)
    assert ("Not read", "1 CT series, which a challenger does not read") in shadow.rows(one)


def _patient():
    from lungkit.clinic.records.patients import NewPatient

    return NewPatient("S-1", "Series Patient")


def test_a_version_that_is_damaged_is_told_and_the_next_pass_reads(boss, ward, store):
    ward(2, False, 1)
    weights = next(registry.find("tiny-cnn@v2").folder.glob("*.onnx"), None) or registry.find("tiny-cnn@v2").folder / (
        "trained_on.txt"
    )
    content = weights.read_bytes()
    weights.write_bytes(b"other")
    (one,) = shadow.run(store)
    assert one.left == 2 and "was changed after it was registered" in shadow.says(one)
    weights.write_bytes(content)
    assert shadow.run(store)[0].read == 2


def test_both_are_compared_with_each_other_and_with_the_reviews(boss, ward, store):
    made = ward(6, True, 1)
    shadow.run(store)
    with store.write() as db:
        rows = [db.get(ShadowReading, (reading_id, "v2")) for reading_id in made]
        truths = [db.get(Reading, reading_id).reviews[0].label for reading_id in made]
        own = [db.get(Reading, reading_id).label for reading_id in made]
        other = next(name for name in rows[0].probabilities if name != own[0])
        rows[0].label, rows[1].decision = other, shadow.REVIEW
    (one,) = shadow.compared(boss.access)
    assert (one.readings, one.patients, one.reviewed, one.shown) == (6, 6, 6, 0)
    assert one.changed == {(own[0], other): 1} and one.kappa.agreed == pytest.approx(5 / 6)
    right = [label == truth for label, truth in zip(own, truths, strict=True)]
    theirs = [other == truths[0], *right[1:]]
    assert one.right == (pytest.approx(sum(right) / 6), pytest.approx(sum(theirs) / 6))
    assert one.difference[0] == pytest.approx((sum(theirs) - sum(right)) / 6)
    shown = dict(shadow.rows(one))
    assert shown["Changed labels"] == f"{class_name(own[0])} → {class_name(other)} 1"
    assert "of 6 reviews; 0 were" in shown["Right by the reviews"]


def test_nothing_of_the_shadow_is_shown_with_a_case(boss, ward, store, readers):
    made = ward(2, False, 1)
    before = [repr(readers[0].case(reading_id)) for reading_id in made], repr(readers[0].worklist())
    shadow.run(store)
    with store.write() as db:
        for row in db.scalars(sa.select(ShadowReading)):
            row.label = row.decision = "ONLY THE CHALLENGER SAYS THIS"
    after = [repr(readers[0].case(reading_id)) for reading_id in made], repr(readers[0].worklist())
    assert before == after and "ONLY THE CHALLENGER" not in boss.export_csv().decode()


def test_only_an_administrator_sees_the_comparison(boss, signed_in):
    with pytest.raises(accounts.Forbidden):
        shadow.compared(signed_in("doctor", "dora"))


def test_erasing_a_patient_erases_the_shadow_readings(boss, ward, store):
    ward(2, False, 1)
    shadow.run(store)
    with store.read() as db:
        patient = db.scalars(sa.select(Patient.id)).first()
    boss.erase_patient(patient)
    assert count(store, ShadowReading) == 1


def test_a_pass_changes_nothing_but_shadow_readings(boss, ward, store):
    ward(2, False, 1)
    before = everything(store)
    shadow.run(store)
    after = everything(store)
    assert [name for name in before if before[name] != after[name]] == ["shadow_readings"]


def test_the_command_names_a_challenger_runs_shows_and_stops(versions, ward, store, monkeypatch):
    monkeypatch.setenv("LUNGKIT_DATABASE", store.url.render_as_string(hide_password=False))

    def run(*asked) -> str:
        answer = typer.testing.CliRunner().invoke(cli.app, ["learn", "shadow", *asked], catch_exceptions=False)
        assert answer.exit_code == 0
        return answer.stdout

    assert "no version reads in the shadow" in run("--run")
    assert "tiny-cnn@v2 reads in the shadow what the version in use reads from now on" in run("tiny-cnn@v2")
    ward(3, False, 1)
    assert "tiny-cnn@v2 read 2 images; 1 still wait" in run("--run", "--most", "2")
    assert "2 images of 2 patients; 1 wait" in run("--show")
    assert json.loads(run("--show", "--json"))["challengers"][0]["readings"] == 2
    assert "no version reads" in run("tiny-cnn", "--off")
    assert "no version reads in the shadow" in run("--show")


def test_reviews_that_give_no_class_are_not_compared_with(boss, ward, store, readers):
    first, _second = ward(2, False, 1)
    readers[1].review(first, "", kind=NOT_ASSESSABLE)
    shadow.run(store)
    (one,) = shadow.compared(boss.access)
    assert (one.readings, one.reviewed) == (2, 1)


def test_labels_that_mean_nothing_are_not_compared(boss, ward, store):
    made = ward(3, True, 1)
    shadow.run(store)
    too_old = {"name": "age", "passed": False, "value": 76.0, "limit": 5.0, "words": "x"}
    with store.write() as db:
        db.get(Reading, made[0]).checks = [too_old]
        for reading_id, theirs in zip(made[:2], ("hidden", "notumor"), strict=True):
            db.get(ShadowReading, (reading_id, "v2")).label = theirs
        own = db.get(Reading, made[1]).label
    (one,) = shadow.compared(boss.access)
    assert (one.readings, one.refused, one.reviewed, one.kappa.images) == (3, 1, 2, 2)
    assert one.changed == {(own, "notumor"): 1}
    shown = dict(shadow.rows(one))
    assert shown["Not compared"] == "labels of 1 image that the version in use is not for"
    assert shown["Changed labels"] == f"{class_name(own)} → No tumour 1"


def test_where_all_labels_mean_nothing_that_is_said(boss, ward, store):
    ward(1, False, 1)
    shadow.run(store)
    too_old = {"name": "age", "passed": False, "value": 76.0, "limit": 5.0, "words": "x"}
    with store.write() as db:
        db.execute(sa.update(Reading).values(checks=[too_old]))
    shown = dict(shadow.rows(shadow.compared(boss.access)[0]))
    assert shown["Agreement of both (Cohen's kappa)"] == "no label to compare"
