"""The nightly look at drift: kept once a day, with each measure by day, and nothing of a patient."""

import json
import threading
from datetime import timedelta

import pytest
import typer.testing

from lungkit import cli
from lungkit.clinic.learning import measures, nightly
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import DriftRun, Patient, now
from lungkit.errors import LungkitError
from tests.clinic.rows import count, events

EVERY = {"days": 60, "every": 20}  # a short run length: few days are enough


def alarms(kept) -> dict[str, set[str]]:
    """Source to the measures that have changed."""
    return {card["source"]: {one["what"] for one in card["checks"] if one["alarm"]} for card in kept.cards}


def test_a_quiet_night_is_kept_with_every_measure_by_day(store, filled):
    filled(days=31)
    kept = nightly.keep(store, "Ward", **EVERY)
    assert (kept.new, kept.alarm, kept.day) == (True, False, now().date())
    (card,) = kept.cards
    assert (card["model"], card["version"], card["source"], card["images"]) == ("lung", "v2", "Ward", 120)
    assert [check["what"] for check in card["checks"]] == list(measures.WHAT)
    for check in card["checks"]:
        assert (check["alarm"], check["words"], check["since"]) == (False, "No change seen.", None)
        assert len(check["days"]) == len(check["values"]) == len(check["low"]) == len(check["high"]) == 30
    assert card["checks"][0]["days"][-1] == str(now().date() - timedelta(days=1))  # today is not over
    (event,) = events(store, "drift.run")
    assert (event.object, event.detail) == (f"day:{now().date()}", {"alarm": False, "cards": 1})


def test_what_changes_is_found_where_it_changes_and_nowhere_else(store, filled):
    filled(days=60)
    filled(uploader="pacs", role="program", days=60, brighter=0.2)
    filled("other", uploader="bert", days=60, agree=0.1, late=24)
    kept = nightly.keep(store, "Ward", days=60, every=100)
    assert kept.alarm
    by_model = {(card["model"], card["source"]): alarms(nightly.Kept(kept.day, True, [card], {}, True))[card["source"]]
                for card in kept.cards}  # fmt: skip
    assert by_model[("lung", "pacs")] >= {"brightness"}
    assert by_model[("other", "Ward")] >= {"reviews agree", "calibration"}
    assert by_model[("lung", "Ward")] == set()
    (check,) = [one for card in kept.cards if card["model"] == "other" for one in card["checks"]
                if one["what"] == "reviews agree"]  # fmt: skip
    since = (now() - timedelta(days=5)).date()
    assert abs((since - type(since).fromisoformat(check["since"])).days) <= 2
    assert check["words"].startswith("Changed, since about ")
    assert check["values"][-1] < check["low"][-1] or check["values"][-1] < 0.5


def test_a_day_is_kept_once_however_often_it_is_asked_for(store, filled):
    filled()
    first = nightly.keep(store, "Ward", **EVERY)
    again = nightly.keep(store, "Ward", **EVERY)
    assert (first.new, again.new) == (True, False)
    assert again.cards == first.cards
    assert count(store, DriftRun) == len(events(store, "drift.run")) == 1


def test_of_gateways_that_look_at_once_one_keeps_the_day(store, filled):
    filled()
    url = store.url.render_as_string(hide_password=False)
    barrier, kept = threading.Barrier(3), []

    def look() -> None:
        own = Store(url)
        barrier.wait()
        kept.append(nightly.keep(own, "Ward", **EVERY))
        own.close()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.new for one in kept) == [False, False, True]
    assert count(store, DriftRun) == 1


def test_too_few_days_are_said_and_raise_no_alarm(store, filled):
    filled(days=10, brighter=0.3)
    kept = nightly.keep(store, "Ward")
    assert not kept.alarm
    assert {check["words"] for check in kept.cards[0]["checks"]} == {"Cannot tell: 9 days have data, 15 are needed."}


def test_a_source_without_images_for_a_week_is_no_longer_watched(store, filled):
    filled(skip=10, brighter=0.3)
    assert nightly.keep(store, "Ward").cards == []


def test_what_is_kept_has_nothing_of_a_patient(store, filled):
    filled()
    told = json.dumps(nightly.keep(store, "Ward", **EVERY).cards)
    assert "NUMBER" not in told
    assert "Some Name" not in told


def test_a_name_in_the_headers_of_few_patients_is_not_kept(store, filled):
    filled(days=31)
    with store.write() as db:
        patient = db.query(Patient).first()
        for study in patient.studies:
            study.tags = {"view": "PA", "manufacturer": "Jane Doe"}
    told = json.dumps(nightly.keep(store, "Ward", **EVERY).cards)
    assert "Jane" not in told
    assert '"shows": "rare"' in told


@pytest.mark.parametrize("wrong", [{"days": 14}, {"days": 9999}, {"every": 1}])
def test_windows_and_run_lengths_that_cannot_be_are_refused(store, wrong):
    with pytest.raises(LungkitError, match="accepted are"):
        nightly.keep(store, "Ward", **wrong)


def test_the_keep_option_does_not_say_that_nothing_has_changed_where_nothing_was_read(store, monkeypatch):
    monkeypatch.setenv("LUNGKIT_DATABASE", store.url.render_as_string(hide_password=False))
    answer = typer.testing.CliRunner().invoke(cli.app, ["learn", "drift", "--keep"], catch_exceptions=False)
    assert answer.stdout == f"kept for {now().date()}: no image was read in the last 90 days\n"


def test_the_keep_option_says_what_was_kept_and_what_has_changed(store, filled, monkeypatch):
    monkeypatch.setenv("LUNGKIT_DATABASE", store.url.render_as_string(hide_password=False))
    monkeypatch.setenv("LUNGKIT_CLINIC", "Ward")
    monkeypatch.setenv("COLUMNS", "200")
    filled(days=60, brighter=0.3)

    def run(*more) -> str:
        answer = typer.testing.CliRunner().invoke(cli.app, ["learn", "drift", "--keep", *more], catch_exceptions=False)
        assert answer.exit_code == 0
        return answer.stdout

    shown = run()
    assert "lung@v2, images from Ward" in shown
    assert "Changed, since about" in shown
    assert f"kept for {now().date()}: something has changed" in shown
    assert f"{now().date()} was kept already" in run()
    told = json.loads(run("--json"))
    assert (told["alarm"], told["new"]) == (True, False)
