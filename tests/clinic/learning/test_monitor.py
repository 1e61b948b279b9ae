"""Drift in the records: seen for the model and the source that have it, and told without a patient."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import sqlalchemy as sa
import typer.testing

from lungkit import cli
from lungkit.clinic.learning import measures, monitor
from lungkit.clinic.records.tables import Reading, Study
from lungkit.errors import LungkitError


def found(cards) -> dict[str, set[str]]:
    """Source to what is alarming."""
    return {card.source: {check.what for check in card.checks if check.alarm} for card in cards}


def test_no_drift_raises_no_alarm_and_every_check_is_told(store, filled):
    filled()
    (card,) = monitor.watch(store, 25, 5, 0.05, "Ward")
    assert (card.model, card.version, card.source) == ("lung", "v2", "Ward")
    assert (card.images_before, card.images_recent) == (100, 20)
    assert [check.what for check in card.checks] == list(measures.WHAT)
    assert all(check.alarm is False for check in card.checks)
    assert all(check.verdict.startswith("No drift seen: ") and check.verdict.endswith(".") for check in card.checks)


def test_brighter_images_of_one_program_are_seen_there_and_nowhere_else(store, filled):
    filled()
    filled(uploader="pacs", role="program", brighter=0.2)
    assert found(monitor.watch(store, 25, 5, 0.05, "Ward")) == {"Ward": set(), "pacs": {"brightness", "pixels (MMD)"}}


def test_a_model_that_leaves_more_to_people_or_is_contradicted_is_seen(store, filled):
    filled("first", left=0.8)
    filled("other", uploader="bert", agree=0.2)
    cards = {card.model: card for card in monitor.watch(store, 25, 5, 0.05, "Ward")}
    assert found([cards["first"]]) == {"Ward": {"left to a person"}}
    assert found([cards["other"]]) == {"Ward": {"reviews agree", "calibration"}}
    (check,) = [check for check in cards["other"].checks if check.what == "reviews agree"]
    assert check.verdict.startswith("Drift: ")
    assert float(check.recent.rstrip("%")) < 40 < float(check.before.rstrip("%"))


def test_answers_that_mean_nothing_are_no_drift_of_classes_or_agreement(store, filled):
    filled()
    too_old = {"name": "age", "passed": False, "value": 76.0, "limit": 5.0, "words": "x"}
    with store.write() as db:
        for reading in db.scalars(sa.select(Reading).order_by(Reading.read_at.desc()).limit(18)):
            reading.checks = [*reading.checks, too_old]
            reading.label, reading.probabilities = "notumor", {"notumor": 0.9}
            reading.reviews[0].agrees = False  # as an earlier release kept it
    (card,) = monitor.watch(store, 25, 5, 0.05, "Ward")
    checks = {check.what: check for check in card.checks}
    assert not [what for what in ("classes", "reviews agree", "calibration") if checks[what].alarm]
    assert "tumo" not in checks["classes"].recent


def test_classes_are_told_by_the_names_that_people_read(store, filled):
    filled()
    with store.write() as db:
        named = {"label": "notumor", "probabilities": {"notumor": 0.9}}
        db.execute(sa.update(Reading).where(Reading.label == "Normal").values(**named))
    (card,) = monitor.watch(store, 25, 5, 0.05, "Ward")
    (check,) = [check for check in card.checks if check.what == "classes"]
    assert "No tumour" in check.before and "notumor" not in check.before


def test_too_few_days_are_said_and_raise_no_alarm(store, filled):
    filled(days=6, brighter=0.3)
    (card,) = monitor.watch(store, 25, 5, 0.01, "Ward")
    assert found([card]) == {"Ward": set()}
    assert "Cannot tell: 6 days have data, " in card.checks[0].verdict
    (card,) = monitor.watch(store, 1, 25, 0.01, "Ward")
    assert {check.verdict for check in card.checks} == {"Cannot tell: there is nothing to compare before."}


def test_what_is_told_has_nothing_of_a_patient(store, filled):
    filled()
    told = json.dumps([asdict(card) for card in monitor.watch(store, 25, 5, 0.05, "Ward")])
    assert "NUMBER" not in told
    assert "Some Name" not in told


def test_damaged_pixels_do_not_stop_the_others(store, filled):
    filled()
    with store.write() as db:
        db.query(Study).first().pixels = b"no picture"
    assert len(monitor.watch(store, 25, 5, 0.05, "Ward")) == 1


@pytest.mark.parametrize("wrong", [{"reference": 0}, {"recent": 9999}, {"alarm": 1.0}])
def test_windows_and_rates_that_cannot_be_are_refused(store, wrong):
    asked = {"reference": 25, "recent": 5, "alarm": 0.05, "clinic": "Ward"} | wrong
    with pytest.raises(LungkitError, match="accepted"):
        monitor.watch(store, **asked)


def test_hu_and_intensities_are_described_in_like_numbers():
    flat = np.full((30, 40), -24.0, np.float32)
    assert measures.describe(flat, "HU")[0] == pytest.approx(1.0)
    assert measures.describe(flat, "HU")[1] == 0
    assert len(measures.describe(np.zeros((1, 3), np.float32), "intensity")) == 9


@pytest.fixture
def lungkit(store, monkeypatch):
    """Run the command on these records; returns its standard output."""
    monkeypatch.setenv("LUNGKIT_DATABASE", store.url.render_as_string(hide_password=False))
    monkeypatch.setenv("LUNGKIT_CLINIC", "Ward")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> str:
        answer = typer.testing.CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
        assert answer.exit_code == 0
        return answer.stdout

    return run


def test_the_drift_command_shows_a_table_for_each_source_or_json(lungkit, filled):
    assert "no image was read in the recent days" in lungkit("learn", "drift")
    filled(brighter=0.2)
    options = ["learn", "drift", "--reference", 25, "--recent", 5, "--alarm", 0.05]
    shown = lungkit(*options)
    assert "lung@v2, images from Ward: 100 before, 20 recent" in shown
    assert "2 alarms; without drift, at most 5.0% of such runs have any" in shown
    told = json.loads(lungkit(*options, "--json"))
    assert (told["alarm"], told["cards"][0]["source"]) == (True, "Ward")


def test_the_collect_and_doubts_commands_say_what_they_did(lungkit, reviewed, tmp_path):
    reviewed("Normal", "Normal")
    reviewed("Pneumonia", "Normal", units="HU")
    shown = lungkit("learn", "collect", tmp_path / "set")
    assert "1 image of 1 patient: Normal 1\n1 of 2 reviewed images are not in it; readers differ: 1\n" in shown
    assert f"{tmp_path / 'set' / 'set-v1'}: written" in shown
    assert "nothing was written" in lungkit("learn", "collect", tmp_path / "set")
    assert "Normal" in (tmp_path / "set" / "set-v1" / "labels.csv").read_text()
    assert ",Ward," in (tmp_path / "set" / "set-v1" / "labels.csv").read_text()
    assert "0 of 1 labels look wrong; 0 are shown" in lungkit("learn", "doubts")
    assert "point to the model" not in lungkit("learn", "doubts")


def test_many_doubtful_labels_are_said_to_point_to_the_model(lungkit, reviewed):
    for _ in range(3):
        reviewed("Pneumonia", probability=0.95)
        reviewed("Normal", label="Normal", probability=0.95)
        reviewed("Normal", probability=0.97)
    shown = lungkit("learn", "doubts")
    assert "labels look wrong" in shown and "97 %" in shown
    assert "So many point to the model" in shown


def test_more_images_that_cannot_be_assessed_are_seen_and_say_nothing_of_the_class(store, filled):
    filled(poor=0.7)
    assert found(monitor.watch(store, 25, 5, 0.05, "Ward")) == {"Ward": {"reviews without a class"}}
