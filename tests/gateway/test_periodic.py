"""What the gateway does every now and then."""

import threading

import pytest

from lungkit.gateway import periodic
from lungkit.gateway.periodic import Periodic, Task


def test_each_task_runs_at_its_time_and_one_that_fails_stops_no_other():
    runs = []

    def fails(store):
        runs.append("fails")
        raise ValueError("no")

    tasks = (
        Task("fails", 0.0, fails),
        Task("works", 0.0, lambda store: runs.append(store)),
        Task("late", 3600.0, fails),
    )
    due = Periodic("records", tasks)
    due.run_due()
    due.run_due()
    assert runs == ["fails", "records", "fails", "records"]


def test_a_thread_runs_the_tasks_until_it_is_stopped():
    ran = threading.Event()
    due = Periodic("records", (Task("once", 0.01, lambda store: ran.set()),))
    due.start()
    assert ran.wait(30)
    due.stop()
    assert not due._thread.is_alive()
    ran.clear()
    due.run_due()
    assert not ran.is_set()


def test_challengers_read_in_the_gateway(monkeypatch):
    (task,) = [task for task in periodic.TASKS if task.name == "shadow"]
    asked = []
    monkeypatch.setattr(periodic.shadow, "run", lambda store, most: asked.append((store, most)))
    task.run("records")
    assert asked == [("records", 100)] and task.seconds == pytest.approx(300)
