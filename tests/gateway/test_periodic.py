"""What the gateway does every now and then."""

import threading
from datetime import timedelta

from lungkit.clinic.records.tables import now
from lungkit.gateway import periodic
from lungkit.gateway.periodic import Periodic, every


def test_each_task_runs_at_its_time_and_one_that_fails_stops_no_other(caplog):
    runs, due = [], Periodic()

    def fails() -> None:
        runs.append("fails")
        raise ValueError("no")

    due.register("fails", fails, every(timedelta(minutes=5)))
    due.register("works", lambda: runs.append("works"), every(timedelta(minutes=5)))
    at = now()
    for minutes in (0, 4, 5):
        due.look(at + timedelta(minutes=minutes))
    assert runs == ["fails", "works"] * 2
    assert "no" in caplog.text


def test_a_thread_runs_the_tasks_until_it_is_stopped(monkeypatch):
    monkeypatch.setattr(periodic, "LOOK_SECONDS", 0.01)
    ran, due = threading.Event(), Periodic()
    due.register("often", ran.set, every(timedelta()))
    due.start()
    assert ran.wait(30)
    due.stop()
    assert not due.alive()
    ran.clear()
    due.look(now())
    assert not ran.is_set()


def test_challengers_read_in_the_gateway(monkeypatch):
    due, asked = Periodic(), []
    monkeypatch.setattr(periodic.shadow, "run", lambda store, most: asked.append((store, most)))
    monkeypatch.setattr(periodic, "watch_drift", lambda store: None)
    periodic.register(due, "records")
    due.look(now())
    due.look(now())
    assert asked == [("records", 100)]
