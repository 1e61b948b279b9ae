"""The audit trail: it has an event exactly if the change was saved, and reveals manipulation."""

import subprocess
import sys
import textwrap

import hypothesis
import hypothesis.strategies as st
import pytest
import sqlalchemy as sa

from lungkit.clinic.records import audit_trail, maintenance
from lungkit.clinic.records.audit_trail import AuditBroken
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import AuditEvent
from lungkit.errors import LungkitError


def add(store, *actions, **detail) -> None:
    with store.write() as db:
        for action in actions:
            audit_trail.append(db, 7, action, "case:1", **detail)


def head(store) -> str:
    with store.read() as db:
        return audit_trail.head(db)


def manipulate(store, *statements: str) -> None:
    """Change rows as the owner of the database can, who removes its triggers."""
    with store.engine.begin() as connection:
        if store.path:
            for guard in ("audit_no_update", "audit_no_delete", "audit_follows"):
                connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {guard}")
        else:
            connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER ALL")
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture
def trail(store):
    """Four events."""
    add(store, "session.start", "case.open", "reading.save", "session.end", why=["ü", 1.5, None])
    return store


# --- adding


def test_events_are_stored_in_order_each_with_the_hash_of_the_one_before(trail):
    with trail.read() as db:
        events = db.scalars(sa.select(AuditEvent).order_by(AuditEvent.number)).all()
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert [event.action for event in events] == ["session.start", "case.open", "reading.save", "session.end"]
    assert events[0].previous == "0" * 64
    assert [event.previous for event in events[1:]] == [event.hash for event in events[:-1]]
    assert (events[0].user_id, events[0].object, events[0].detail) == (7, "case:1", {"why": ["ü", 1.5, None]})
    assert audit_trail.verify(trail) == 4
    assert head(trail) == f"4:{events[-1].hash}"


def test_an_event_is_undone_with_the_change_that_it_reports(trail):
    with pytest.raises(ZeroDivisionError), trail.write() as db:
        audit_trail.append(db, 7, "reading.save", "case:2")
        1 / 0  # noqa: B018
    assert audit_trail.verify(trail) == 4


def test_an_empty_trail_is_sound(store):
    assert audit_trail.verify(store) == 0
    assert head(store) == "0:" + "0" * 64


def test_an_event_needs_no_user(store):
    with store.write() as db:
        audit_trail.append(db, None, "session.refused", "user:unknown")
    assert audit_trail.verify(store) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(detail=json_values)
@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_an_event_with_any_json_verifies(store, detail):
    add(store, "case.open", detail=detail)
    audit_trail.verify(store)


def test_values_that_read_back_differently_still_verify(store):
    add(store, "case.open", by_number={10: "a", 9: "b"}, pair=(1, 2))
    assert audit_trail.verify(store) == 1


@pytest.mark.parametrize(
    ("action", "object", "detail"),
    [("", "case:1", {}), ("a" * 65, "case:1", {}), ("case.open", "o" * 201, {}), ("case.open", "", {}),
     ("case.open", "case:1", {"p": float("nan")})],
)  # fmt: skip
def test_an_event_that_one_database_could_not_hold_is_refused_on_both(store, action, object, detail):
    with pytest.raises(ValueError), store.write() as db:
        audit_trail.append(db, 7, action, object, **detail)
    assert audit_trail.verify(store) == 0


def test_events_of_several_processes_at_once_make_one_trail(store):
    code = textwrap.dedent(f"""
        import os
        from lungkit.clinic.records import audit_trail
        from lungkit.clinic.records.store import Store
        store = Store({store.url.render_as_string(hide_password=False)!r}, busy_seconds=60)
        for number in range(40):
            with store.write() as db:
                audit_trail.append(db, os.getpid(), "case.open", f"case:{{number}}")
    """)
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert audit_trail.verify(store) == 120
    with store.read() as db:
        users = db.scalars(sa.select(AuditEvent.user_id).order_by(AuditEvent.number)).all()
    assert sorted(map(users.count, set(users))) == [40, 40, 40]


# --- guards


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET action = 'x' WHERE number = 2",
        "DELETE FROM audit WHERE number = 4",
        "DELETE FROM audit",
        "INSERT INTO audit SELECT 6, at, user_id, action, object, detail, hash, hash FROM audit WHERE number = 4",
        "INSERT INTO audit SELECT 5, at, user_id, action, object, detail, previous, hash FROM audit WHERE number = 4",
        "INSERT INTO audit SELECT 0, at, user_id, action, object, detail, previous, hash FROM audit WHERE number = 1",
    ],
)
def test_the_database_itself_refuses_to_change_delete_or_misplace_a_row(trail, statement):
    with pytest.raises(sa.exc.DBAPIError, match="audit trail"), trail.write() as db:
        db.execute(sa.text(statement))
    assert audit_trail.verify(trail) == 4


def test_a_row_cannot_be_replaced_on_sqlite(sqlite_store):
    add(sqlite_store, "case.open", "case.open")
    replace = "INSERT OR REPLACE INTO audit SELECT number, at, 8, action, object, detail, previous, hash FROM audit"
    with pytest.raises(sa.exc.DBAPIError, match="audit trail"), sqlite_store.write() as db:
        db.execute(sa.text(replace))
    assert audit_trail.verify(sqlite_store) == 2


def test_the_trail_cannot_be_emptied_at_once_on_postgresql(postgresql_url):
    store = Store(postgresql_url)
    maintenance.upgrade(store)
    add(store, "case.open")
    with pytest.raises(sa.exc.DBAPIError, match="audit trail"), store.write() as db:
        db.execute(sa.text("TRUNCATE audit"))
    assert audit_trail.verify(store) == 1
    store.close()


# --- what verification shows

COPY = (
    "INSERT INTO audit SELECT {number}, at, user_id, action, object, detail, previous, hash FROM audit WHERE number = 2"
)


@pytest.mark.parametrize(
    ("statements", "number", "message"),
    [
        (["UPDATE audit SET user_id = 8 WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET user_id = NULL WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET action = 'case.print' WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET object = 'case:2' WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET at = '2020-01-01 00:00:00.000000' WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET detail = '{}' WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET hash = previous WHERE number = 2"], 2, "was changed"),
        (["UPDATE audit SET previous = hash WHERE number = 2"], 2, "does not follow"),
        (["DELETE FROM audit WHERE number = 1"], 1, "missing; the next row has the number 2"),
        (["DELETE FROM audit WHERE number = 2"], 2, "missing; the next row has the number 3"),
        (["DELETE FROM audit WHERE number = 2", "UPDATE audit SET number = number - 1 WHERE number = 3"], 2,
         "does not follow"),
        (["UPDATE audit SET number = 9 WHERE number = 2", "UPDATE audit SET number = 2 WHERE number = 3",
          "UPDATE audit SET number = 3 WHERE number = 9"], 2, "does not follow"),
        ([COPY.format(number=5)], 5, "does not follow"),
        ([COPY.format(number=0)], 1, "missing; the next row has the number 0"),
    ],
)  # fmt: skip
def test_the_first_manipulated_row_is_named(trail, statements, number, message):
    manipulate(trail, *statements)
    with pytest.raises(AuditBroken, match=f"broken at row {number}: .*{message}") as broken:
        audit_trail.verify(trail)
    assert broken.value.number == number


@pytest.mark.parametrize("value", ["detail = 'no json'", "at = 'yesterday'", "action = x'ff'"])
def test_a_value_that_is_none_of_its_column_breaks_the_trail_there(sqlite_store, value):
    add(sqlite_store, "case.open", "case.open", "case.open")
    manipulate(sqlite_store, f"UPDATE audit SET {value} WHERE number = 2")
    with pytest.raises(AuditBroken, match="broken at row 2"):
        audit_trail.verify(sqlite_store)


def test_a_trail_that_was_cut_off_shows_against_a_head_noted_before_and_only_so(trail):
    noted = head(trail)
    manipulate(trail, "DELETE FROM audit WHERE number > 2")
    assert audit_trail.verify(trail) == 2
    with pytest.raises(AuditBroken, match="broken at row 3: it is missing; the trail had 4 rows"):
        audit_trail.verify(trail, noted)


def test_only_a_head_noted_earlier_reveals_a_rebuilt_trail(trail):
    noted = head(trail)
    manipulate(trail, "DELETE FROM audit")
    add(trail, "nothing", "happened", "here", "at", "all")
    assert audit_trail.verify(trail) == 5
    with pytest.raises(AuditBroken, match="broken at row 4: it is not the row whose hash was noted"):
        audit_trail.verify(trail, noted)


def test_a_trail_that_grew_still_has_the_head_noted_before(trail):
    noted = head(trail)
    add(trail, "case.open")
    assert audit_trail.verify(trail, noted) == 5


def test_a_head_that_is_none_is_refused(store):
    with pytest.raises(LungkitError, match="'12' is not the head of an audit trail; accepted is NUMBER:HASH"):
        audit_trail.verify(store, "12")


def test_a_trail_without_a_database_is_an_error(sqlite_url):
    with pytest.raises(StoreError, match="no tables"):
        audit_trail.verify(Store(sqlite_url))


def test_a_long_trail_is_verified_to_its_end(sqlite_store):
    with sqlite_store.write() as db:
        for number in range(3000):
            audit_trail.append(db, 7, "case.open", f"case:{number}")
    manipulate(sqlite_store, "UPDATE audit SET user_id = 8 WHERE number = 2999")
    with pytest.raises(AuditBroken, match="row 2999"):
        audit_trail.verify(sqlite_store)
