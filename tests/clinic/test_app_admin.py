"""The administrator's screens, driven as a browser drives them: values are set, buttons clicked, messages forged."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import ipywidgets as widgets
import pytest
import sqlalchemy as sa
import traitlets

from lungkit.clinic.app import charts, health, patients, shell, trail
from lungkit.clinic.app.download import DownloadButton
from lungkit.clinic.app.drift_screen import DriftScreen
from lungkit.clinic.app.models_screen import ModelsScreen
from lungkit.clinic.app.page import Page
from lungkit.clinic.app.patients import PatientsScreen
from lungkit.clinic.app.people import PeopleScreen
from lungkit.clinic.app.screen import Table
from lungkit.clinic.app.trail import AuditTrailScreen
from lungkit.clinic.app.usage import UsageScreen
from lungkit.clinic.learning import collect
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import accounts, administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import AuditEvent, DriftRun, Patient, Reading, Review, SignIn, Study, User
from lungkit.models import registry
from lungkit.models.card import ModelCard
from lungkit.models.prediction import Check

SCREENS = tuple(shell.SCREENS["admin"])
SCRIPT = "<img src=x onerror=alert(1)>"
CARD = {
    "classes": ("Normal", "Pneumonia"),
    "preprocessing": {"size": [96, 96], "window": [-600.0, 1500.0], "mean": 0.25, "std": 0.5},
    "data": {"name": "phantom", "fingerprint": "ab12"},
    "metrics": {
        "val": {
            "n": 40,
            "patients": 10,
            "accuracy": 0.9,
            "per_class": {"Pneumonia": {"recall": 0.875}},
            "intervals": {"accuracy": [0.81, 0.96], "per_class": {"Pneumonia": {"recall": [0.7, 1.0]}}},
        }
    },
    "operating_point": {"kind": "threshold", "positive": "Pneumonia", "threshold": 0.42},
    "synthetic": True,
}


@pytest.fixture
def store(sqlite_store):
    """Which database it is does not matter to a screen."""
    return sqlite_store


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def boss(signed_in):
    """The access of the administrator whose screens these are."""
    return signed_in("admin", "boss")


@pytest.fixture
def opened(boss, page):
    """A function: a screen of the administrator, as the shell opens it."""

    def open_screen(kind):
        screen = kind(administration.Administration(boss), page)
        screen.refresh()
        return screen

    return open_screen


@pytest.fixture
def read(signed_in, chest_image, prediction):
    """A function: a patient's image read and saved by a doctor; gives the reading's id."""
    access = signed_in("doctor", "reader")
    records = Records(access)

    def save(number="P-1", name="Test Patient", seed=0, review=None, **reading):
        known = [row for row in records.find_patients(number) if row.number == number]
        patient = known[0].id if known else NewPatient(number, name, 1950, "female")
        made = prediction(**reading)
        saved = records.save_case(patient, chest_image(seed=seed), f"{seed:064x}", made).reading_id
        if review:
            records.review(saved, review, "")
        return saved

    return save


def rows(table: Table) -> list[list]:
    """What the browser is given to show."""
    return json.loads(table.rows._dt_args["data_json"])


def choose(table: Table, *places: int) -> None:
    """What the browser sends when rows are chosen."""
    table.rows.set_state({"selected_rows": list(places)})


def texts(widget) -> str:
    """All that a widget and those below it hold, as the browser gets it."""
    return json.dumps(_state(widget), default=str)


def _state(widget) -> list:
    own = {
        key: value
        for key, value in widget.get_state().items()
        if not key.startswith(("_model", "_view", "_esm", "_css"))
    }
    return [own, *(_state(child) for child in getattr(widget, "children", ()))]


def shown(widget) -> bool:
    return widget.layout.display != "none"


def count(store, table, *conditions) -> int:
    with store.read() as db:
        return db.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions))


def events(store, action) -> list[AuditEvent]:
    with store.read() as db:
        return list(db.scalars(sa.select(AuditEvent).where(AuditEvent.action == action)))


# --- people


def account(store, name) -> User:
    with store.read() as db:
        return db.scalar(sa.select(User).where(User.name == name))


def person(screen: PeopleScreen, name: str) -> None:
    """Choose a row of the table by its user name."""
    choose(screen.table, [row[0] for row in rows(screen.table)].index(name))


def password_of(screen: PeopleScreen) -> str:
    return re.search("<code>(.*)</code>", screen.password.value)[1]


def test_actions_on_people_are_disabled_until_one_is_selected(opened, signed_in):
    signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    assert [row[:4] for row in rows(screen.table)] == [
        ["anna", "Test Anna", "doctor", "active"],
        ["boss", "Test Boss", "admin", "active"],
    ]
    assert all(action.disabled for action in screen.table.actions)
    person(screen, "anna")
    assert not any(action.disabled for action in screen.table.actions)
    assert screen.switch.description == "Disable account …"


def test_a_new_person_signs_in_with_the_password_that_is_shown_once(opened, store, page):
    screen = opened(PeopleScreen)
    screen.name.value, screen.full_name.value, screen.new_role.value = " Carl ", "Dr. Carl", "doctor"
    screen.add.click()
    password = password_of(screen)
    assert accounts.whoami(store, accounts.sign_in(store, "carl", password, "192.0.2.1")).role == "doctor"
    assert "carl was added" in page.message.value
    screen.hide.click()
    assert password not in texts(screen.widget)


def test_a_password_is_gone_when_the_screen_is_visited_again(opened):
    screen = opened(PeopleScreen)
    screen.name.value, screen.full_name.value = "carl", "Dr. Carl"
    screen.add.click()
    password = password_of(screen)
    screen.refresh()  # as the shell calls it at each later visit
    assert password not in texts(screen.widget) and not shown(screen.hide)


def test_a_user_name_in_use_is_refused_and_what_was_typed_stays(opened, page, store):
    screen = opened(PeopleScreen)
    screen.name.value, screen.full_name.value = "boss", "Another Boss"
    screen.add.click()
    assert "There is a user" in page.message.value
    assert screen.full_name.value == "Another Boss" and count(store, User) == 1


def test_an_account_is_disabled_only_after_confirmation(opened, signed_in, store):
    doctor = signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    person(screen, "anna")
    screen.switch.click()
    assert "Disable Test Anna (anna)?" in screen.confirm.question.value and account(store, "anna").active
    screen.confirm.yes.click()
    assert not account(store, "anna").active
    with pytest.raises(accounts.SignedOut), doctor.reads():
        pass
    person(screen, "anna")
    assert screen.switch.description == "Enable account"
    screen.switch.click()
    assert account(store, "anna").active


def test_a_question_that_was_cancelled_does_nothing(opened, signed_in, store, page):
    signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    person(screen, "anna")
    screen.switch.click()
    screen.confirm.no.click()
    assert not shown(screen.confirm.widget)
    screen.confirm.yes.click()  # a message that no button on the page sends any more
    assert account(store, "anna").active and page.message.value == ""


def test_selecting_another_row_closes_the_question(opened, signed_in, store):
    for name in ("anna", "berta"):
        signed_in("doctor", name)
    screen = opened(PeopleScreen)
    person(screen, "anna")
    screen.switch.click()
    person(screen, "berta")
    screen.confirm.yes.click()
    assert account(store, "anna").active and account(store, "berta").active


def test_a_role_is_changed_after_confirmation_and_applies_to_open_sessions(opened, signed_in, page):
    doctor = signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    person(screen, "anna")
    screen.role.value = "admin"
    screen.change.click()
    screen.confirm.yes.click()
    with doctor.reads() as (_, actor):
        assert actor.role == "admin"
    assert "anna now has the role admin" in page.message.value


def test_the_present_role_is_refused(opened, signed_in, page):
    signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    person(screen, "anna")
    screen.change.click()
    assert "already has the role doctor" in page.message.value and not shown(screen.confirm.widget)


def test_a_reset_password_replaces_the_old_one_and_ends_sessions(opened, signed_in, store):
    doctor = signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    person(screen, "anna")
    screen.reset.click()
    assert "<code>" not in screen.password.value
    screen.confirm.yes.click()
    with pytest.raises(accounts.SignedOut), doctor.reads():
        pass
    assert accounts.sign_in(store, "anna", password_of(screen), "192.0.2.1")


def test_administrators_cannot_disable_themselves(opened, page, store):
    screen = opened(PeopleScreen)
    person(screen, "boss")
    screen.switch.click()
    screen.confirm.yes.click()
    assert "cannot disable your own account" in page.message.value and account(store, "boss").active


# --- patients


def test_patients_are_found_by_number_or_name(opened, read):
    read("P-1", "Ada Test")
    read("P-2", "Ben Test", seed=1)
    screen = opened(PatientsScreen)
    assert len(rows(screen.table)) == 2
    screen.text.value = "ben"
    assert [row[:2] for row in rows(screen.table)] == [["P-2", "Ben Test"]]
    screen.text.value = "%"
    screen.find.click()
    assert rows(screen.table) == [] and "0 patients" in screen.table.status.value


def test_the_table_says_when_there_are_more_patients(opened, read, monkeypatch):
    monkeypatch.setattr(patients, "SHOWN", 2)
    for i in range(3):
        read(f"P-{i}", f"Patient {i}", seed=i)
    screen = opened(PatientsScreen)
    assert len(rows(screen.table)) == 2 and "The first 2 patients. Type to find others" in screen.table.status.value


def test_a_patients_images_are_listed_newest_first_and_opening_them_is_audited(opened, read, store):
    read(label="Normal", probability=0.7, seed=1, review="Pneumonia")
    read(label="Pneumonia", probability=0.9, seed=2)
    screen = opened(PatientsScreen)
    assert not shown(screen.history)
    choose(screen.table, 0)
    screen.open.click()
    assert shown(screen.history) and "Test Patient" in screen.head.value
    listed = rows(screen.readings)
    assert [row[3] for row in listed] == ["Pneumonia, 90 %", "Normal, 70 %"]
    assert [row[6] for row in listed] == ["Not reviewed", "Corrected to Pneumonia (Test Reader)"]
    assert screen.pictures.value.count('<img src="data:image/png;base64,') == 2
    assert len(events(store, "patient.open")) == 1


def test_a_reading_without_an_answer_has_no_probability_in_the_list(opened, read):
    read(decision=REVIEW, checks=(Check("age", False, 76, 5, "the patient is 76 years old"),))
    screen = opened(PatientsScreen)
    choose(screen.table, 0)
    screen.open.click()
    assert [row[3] for row in rows(screen.readings)] == [""]


def test_images_of_a_patient_are_gone_when_the_screen_is_visited_again(opened, read):
    read()
    screen = opened(PatientsScreen)
    choose(screen.table, 0)
    screen.open.click()
    screen.refresh()
    assert screen.pictures.value == "" and rows(screen.readings) == [] and not shown(screen.history)


def test_the_export_is_a_csv_file_of_all_readings(opened, read):
    read("P-1")
    read("=1+1", "=SUM(A1)", seed=1)
    name, content = opened(PatientsScreen).export._make()
    assert name == f"readings-{date.today():%Y-%m-%d}.csv"
    table = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert [row["patient_number"] for row in table] == ["P-1", "'=1+1"]


def test_a_patient_is_erased_only_after_the_number_was_typed(opened, read, store, page):
    read("P-1", review="Normal")
    read("P-2", "Other Patient", seed=1)
    screen = opened(PatientsScreen)
    choose(screen.table, [row[0] for row in rows(screen.table)].index("P-1"))
    screen.erase.click()
    screen.confirm.typed.value = "P-2"
    screen.confirm.yes.click()
    assert "That is not P-1. Nothing was done" in page.message.value and count(store, Patient) == 2
    screen.confirm.typed.value = "P-1"
    screen.confirm.yes.click()
    assert [row[0] for row in rows(screen.table)] == ["P-2"]
    assert (count(store, Patient), count(store, Study), count(store, Reading), count(store, Review)) == (1, 1, 1, 0)
    (event,) = events(store, "patient.erase")
    assert "P-1" not in f"{event.object} {event.detail}" and "Test Patient" not in f"{event.object} {event.detail}"
    assert "was erased" in page.message.value and "P-1" not in page.message.value


def test_a_patient_is_excluded_from_learning_after_confirmation_and_included_again(opened, read, store, page):
    read("P-1", review="Normal")
    screen = opened(PatientsScreen)
    for answer, state in (("Exclude from learning", "excluded"), ("Include in learning", "")):
        choose(screen.table, 0)
        assert screen.exclude.description == f"{answer} …"
        screen.exclude.click()
        assert rows(screen.table)[0][4] != state  # asking alone does nothing
        screen.confirm.yes.click()
        assert rows(screen.table)[0][4] == state
    assert [event.detail["excluded"] for event in events(store, "patient.exclude")] == [True, False]
    assert "included again" in page.message.value


# --- usage


def test_usage_shows_counts_decisions_and_agreement_with_its_interval(opened, read):
    for i in range(4):
        read("P-1", seed=i, label="Pneumonia", review="Pneumonia" if i else "Normal")
    read("P-2", "Other Patient", seed=9, label="Normal")
    screen = opened(UsageScreen)
    drawn = screen.charts.value
    assert "Readings per day <b>5</b>" in drawn and "Sign-ins per day <b>2</b>" in drawn
    assert 'aria-label="Decisions of lung: Normal 1; Pneumonia 4"' in drawn
    assert (
        "Reviews of lung, by the reviewer&#x27;s finding: Normal 0 agreed, 1 corrected; Pneumonia 3 agreed, 0" in drawn
    )
    assert "lung 75 % of 4 (95 %: 30 % to 95 %)" in drawn
    assert "Reading time" in drawn and "120 ms" in drawn


def test_the_numbers_behind_the_charts_are_in_tables(opened, read):
    read(label="Pneumonia", review="Normal")
    per_day, times, decisions, _, kinds, _, confusion = tables(opened(UsageScreen).numbers.value)
    assert per_day[0] == ["Day", "Sign-ins", "Uploads", "Readings", "Reviews", "Reviews without a class"]
    assert per_day[1][2:] == ["1", "1", "1", "0"] and len(per_day) == 1 + 30
    assert times[1][1:] == ["1", "120", "120", "120"]
    assert decisions == [["model", "decision", "n"], ["lung", "Pneumonia", "1"]]
    assert kinds == [
        ["model", "says", "n", "after the model's answer was on screen"],
        ["lung", "gives a class", "1", "1"],
    ]
    assert confusion == [["", "Normal", "Pneumonia"], ["Normal", "0", "0"], ["Pneumonia", "1", "0"]]


def test_usage_names_classes_and_kinds_of_reviews_as_people_do(opened, read, store):
    read(label="Pneumonia", review="Normal")
    read(label="Normal", review="Normal", seed=2)
    named = {"Pneumonia": "lung_opacity", "Normal": "notumor"}
    with store.write() as db:
        for reading in db.scalars(sa.select(Reading)):
            reading.decision = reading.label = named[reading.label]
        db.execute(sa.update(Review).values(label="notumor"))
    screen = opened(UsageScreen)
    for shown_html in (screen.charts.value, screen.numbers.value):
        assert "No tumour" in shown_html and "Lung opacity" in shown_html and "gives a class" in shown_html
        assert not [raw for raw in (*named.values(), "answer_shown", ">class<") if raw in shown_html]
    assert tables(screen.numbers.value)[-1][0] == ["", "Lung opacity", "No tumour"]


def tables(html: str) -> list[list[list[str]]]:
    """The rows of each table in some HTML, as texts."""
    found = (ElementTree.fromstring(table) for table in re.findall("<table.*?</table>", html, re.S))
    return [[["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in found]


def test_a_year_is_counted_by_week(opened, read):
    read()
    screen = opened(UsageScreen)
    screen.period.value = 365
    assert "Readings per week <b>1</b>" in screen.charts.value


def test_usage_without_readings_says_so(opened):
    screen = opened(UsageScreen)
    assert "No reading was reviewed in this period" in screen.charts.value
    assert "Readings per day <b>0</b>" in screen.charts.value


def test_charts_escape_names():
    for drawn in (
        charts.share_chart(SCRIPT, [(SCRIPT, 3, 1)], "agreed", "corrected"),
        charts.interval_chart(SCRIPT, [(SCRIPT, 0.5, 0.4, 0.6, 10)]),
        charts.bar_chart(SCRIPT, [date(2026, 1, 1)], [3]),
        charts.range_chart(SCRIPT, [date(2026, 1, 1)], [3.0], [4.0], "ms"),
    ):
        assert "<img" not in drawn and "&lt;img" in drawn


def test_bars_are_as_high_as_their_counts():
    heights = [
        float(h)
        for h in re.findall(
            r'height="([\d.]+)"><title>', charts.bar_chart("x", [date(2026, 1, i) for i in (1, 2, 3)], [4, 0, 2])
        )
    ]
    assert len(heights) == 2 and heights[0] == pytest.approx(2 * heights[1])


# --- models


@pytest.fixture
def versions():
    """Two versions of one model, the second in use."""
    for _ in range(2):
        registry.add("lung", ModelCard.from_dict(CARD), lambda folder: (folder / "model.keras").write_bytes(b"weights"))


def test_versions_are_listed_with_figures_and_the_one_in_use(opened, versions):
    screen = opened(ModelsScreen)
    assert [(row[0], row[1]) for row in rows(screen.table)] == [("lung@v2", "● yes"), ("lung@v1", "")]
    assert rows(screen.table)[0][3:] == ["0.900 (0.810–0.960)", "–", "validation only", "synthetic data only"]
    assert "In use now: <b>lung@v2</b>" in screen.in_use.value


def test_without_a_model_the_screen_says_that_images_cannot_be_read(opened):
    assert "No version is in use" in opened(ModelsScreen).in_use.value


def test_another_version_is_used_after_confirmation_and_rolled_back(opened, versions, store, page):
    screen = opened(ModelsScreen)
    choose(screen.table, 1)
    screen.promote.click()
    assert registry.active("lung").version == "v2"
    screen.confirm.yes.click()
    assert registry.active("lung").version == "v1" and "lung@v1 is in use now" in page.message.value
    choose(screen.table, 0)
    screen.back.click()
    screen.confirm.yes.click()
    assert registry.active("lung").version == "v2" and "lung@v2 is in use now" in page.message.value
    assert [event.object for event in events(store, "model.promote")] == ["model:lung@v1"]
    assert [event.object for event in events(store, "model.roll_back")] == ["model:lung@v2"]


def test_a_card_is_shown_with_intervals_of_each_class(opened, versions):
    screen = opened(ModelsScreen)
    choose(screen.table, 0)
    screen.show.click()
    assert "Validation: 40 images of 10 patients" in screen.card.value
    ((heads, *lines),) = tables(screen.card.value)
    assert heads == ["Figure", "All", "Pneumonia"]
    assert ["Accuracy", "0.900 (0.810–0.960)", ""] in lines
    assert ["Sensitivity", "", "0.875 (0.700–1.000)"] in lines
    assert "computer-made" in screen.card.value
    choose(screen.table, 1)
    assert screen.card.value == ""


def test_a_card_escapes_texts(opened):
    registry.add(
        "lung",
        ModelCard.from_dict(CARD | {"remark": SCRIPT}),
        lambda folder: (folder / "model.keras").write_bytes(b"weights"),
    )
    screen = opened(ModelsScreen)
    choose(screen.table, 0)
    screen.show.click()
    assert "<img" not in screen.card.value and "&lt;img" in screen.card.value


def test_a_damaged_version_is_listed_and_not_promoted(opened, versions, page):
    (registry.find("lung@v1").folder / "model.keras").write_bytes(b"changed")
    screen = opened(ModelsScreen)
    choose(screen.table, 1)
    screen.promote.click()
    screen.confirm.yes.click()
    assert "model.keras was changed after it was registered" in page.message.value
    assert registry.active("lung").version == "v2" and "in use now" not in page.message.value


# --- the audit trail


def test_events_are_listed_newest_first_and_filtered(opened, read):
    read(review="Normal")
    screen = opened(AuditTrailScreen)
    everything = rows(screen.table)
    assert [row[0] for row in everything] == list(range(len(everything), 0, -1))
    screen.action.value = "case.save"
    assert [row[3] for row in rows(screen.table)] == ["Case saved"]
    screen.filters.clear.click()
    assert len(rows(screen.table)) == len(everything)
    screen.person.value = dict(screen.person.options)["Test Reader (reader)"]
    assert {row[2] for row in rows(screen.table)} == {"reader"}


def test_every_action_on_the_trail_has_words():
    folders = (
        Path(administration.__file__).parent,
        Path(collect.__file__).parent,
        Path(shell.__file__).parents[2] / "gateway",
    )
    sources = "".join(file.read_text() for folder in folders for file in folder.glob("*.py"))
    found = set(re.findall(r'"([a-z]+\.[a-z_]+)",\s+(?:f?"\w+:|name,|caller,)', sources))
    assert found == set(trail.ACTIONS)


def test_events_are_found_by_day(opened, read):
    read()
    screen = opened(AuditTrailScreen)
    number = len(rows(screen.table))
    screen.filters.first.value = screen.filters.last.value = date.today()
    assert len(rows(screen.table)) == number
    screen.filters.first.value = date.today() + timedelta(days=1)
    assert rows(screen.table) == []
    screen.filters.clear.click()
    screen.filters.last.value = date.today() - timedelta(days=1)
    assert rows(screen.table) == []


def test_a_day_beyond_the_calendar_is_refused(opened, page):
    screen = opened(AuditTrailScreen)
    screen.filters.last.value = date.max
    assert "cannot be searched for" in page.message.value


def test_older_events_come_a_step_at_a_time(opened, read, monkeypatch):
    monkeypatch.setattr(trail, "SHOWN", 2)
    read()
    screen = opened(AuditTrailScreen)
    first = [row[0] for row in rows(screen.table)]
    assert len(first) == 2 and not screen.older.disabled and screen.newest.disabled
    screen.older.click()
    assert rows(screen.table)[0][0] == first[-1] - 1
    screen.newest.click()
    assert [row[0] for row in rows(screen.table)] == first


def test_a_whole_trail_is_verified(opened, read, store, page):
    read()
    screen = opened(AuditTrailScreen)
    screen.verify.click()
    assert f"{count(store, AuditEvent)} events checked: none before the last one was changed" in page.message.value


def test_a_changed_event_is_reported_and_nothing_counts_as_verified(opened, read, store, page):
    read()
    screen = opened(AuditTrailScreen)
    screen.verify.click()
    with store.engine.begin() as connection:
        for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
    with store.write() as db:
        db.execute(sa.update(AuditEvent).where(AuditEvent.number == 2).values(object="user:99"))
    screen.verify.click()
    assert "broken at row 2" in page.message.value and "events checked" not in page.message.value


# --- health

FINE = {
    "database": "sqlite",
    "database_bytes": 12_300_000,
    "disk_free_bytes": 80 * 10**9,
    "full_disk": "",
    "reserve_bytes": 2**25,
    "temporary_free_bytes": 80 * 10**9,
    "memory_left_bytes": 3 * 10**9,
    "memory_bytes": 8 * 10**9,
    "sessions": 3,
    "kernels": 2,
    "kernels_bytes": 400_000_000,
    "server_bytes": 120_000_000,
    "models": ["lung@v2"],
    "damaged": [],
    "audit_events": 1234,
    "drift": None,
}
NIGHT = administration.DriftNight(date.today(), False, [], {"every": 100.0}, None, datetime.now(UTC))


def test_a_healthy_machine_has_no_warning():
    assert [good for _, good, _ in health.assess(FINE)] == [True] * 11
    elsewhere = health.assess(FINE | {"database": "postgresql", "reserve_bytes": None})
    assert ("Disk of the database", True, "It belongs to the PostgreSQL server. Watch it there.") in elsewhere


def test_health_names_the_memory_that_is_left_and_what_server_and_pages_take():
    lines = {what: words for what, _, words in health.assess(FINE)}
    assert lines["Memory"] == "3.0 GB of 8.0 GB left"
    assert lines["Server"] == "120 MB of memory"
    assert lines["Open pages"] == "2 processes with 400 MB of memory, 200 MB each"


@pytest.mark.parametrize(
    ("found", "thing", "words"),
    [
        ({"disk_free_bytes": 3 * 10**9}, "Disk", "3.0 GB free. Free up space"),
        ({"disk_free_bytes": 4 * 10**8}, "Disk", "Free up space now"),
        ({"disk_free_bytes": 0, "full_disk": "The disk is full."}, "Disk", "0 bytes free. The disk is full."),
        ({"reserve_bytes": 0}, "Reserve", "None. On a full disk signing in fails"),
        ({"temporary_free_bytes": 10**9}, "Temporary files", "1.0 GB free. Large CT series are refused"),
        ({"memory_left_bytes": 9 * 10**8}, "Memory", "900 MB of 8.0 GB left. Close pages that are not used."),
        ({"memory_left_bytes": 3 * 10**8}, "Memory", "300 MB of 8.0 GB left. Further pages have to wait"),
        ({"kernels_bytes": 2 * 10**9}, "Open pages", "1.0 GB each: more than expected"),
        ({"drift": replace(NIGHT, alarm=True)}, "Drift", "something has changed"),
        ({"drift": replace(NIGHT, day=date.today() - timedelta(days=4))}, "Drift", "find out why"),
        ({"models": []}, "Models in use", "images cannot be read"),
        ({"models": [], "damaged": ["lung@v2: weights is missing"]}, "Damaged model", "lung@v2: weights is missing."),
    ],
)
def test_problems_are_marked_and_explained(found, thing, words):
    (low,) = [line for line in health.assess(FINE | found) if not line[1]]
    assert low[0] == thing and words in low[2]


def test_health_is_checked_again(opened, read):
    screen = opened(health.HealthScreen)
    assert "none: images cannot be read" in screen.lines.value and "SQLite" in screen.lines.value
    registry.add("lung", ModelCard.from_dict(CARD), lambda folder: (folder / "model.keras").write_bytes(b"weights"))
    screen.again.click()
    assert "lung@v1" in screen.lines.value


# --- drift


def check(what="brightness", **changes) -> dict:
    """A measure of forty days that has not changed."""
    days = [str(date(2026, 9, 1) + timedelta(days=n)) for n in range(40)]
    fine = {"what": what, "share": False, "unit": "", "sums": 2, "shows": "", "days": days, "values": [0.4] * 40,
            "low": [0.35] * 40, "high": [0.45] * 40, "alarm": False, "since": None,
            "words": "No change seen."}  # fmt: skip
    return fine | changes


@pytest.fixture
def nights(store):
    """A function: a night of some days ago in the records, with one card."""

    def keep(*checks, ago=0) -> None:
        card = {"model": "lung", "version": "v2", "source": SCRIPT, "images": 400, "images_damaged": 0}
        with store.write() as db:
            db.add(
                DriftRun(
                    day=date.today() - timedelta(days=ago), alarm=any(one["alarm"] for one in checks),
                    cards=[card | {"checks": list(checks)}], settings={"every": 100.0},
                )
            )  # fmt: skip

    return keep


def test_without_a_night_the_drift_screen_says_how_there_will_be_one(opened):
    assert "lungkit learn drift --keep" in opened(DriftScreen).cards.value


def test_a_change_comes_first_and_says_since_when(opened, nights):
    changed = check("reviews agree", alarm=True, since="2026-10-05", share=True, values=[0.9] * 34 + [0.5] * 6,
                    words="Changed, since about 2026-10-05: 90.0% before, 50.0% since.")  # fmt: skip
    silent = check("device", alarm=None, days=[], values=[], low=[], high=[], words="Cannot tell")
    nights(check(shows=SCRIPT), changed, silent)
    shown = opened(DriftScreen).cards.value
    assert "Changed: reviews agree." in shown
    assert shown.index("Reviews agree") < shown.index("Brightness")
    assert "since about 2026-10-05: 90.0% before" in shown
    assert "Too few days to tell: device." in shown
    assert SCRIPT not in shown and "&lt;img" in shown
    assert shown.count('class="late"') == 6
    for svg in re.findall(r"<svg.*?</svg>", shown, re.DOTALL):
        ElementTree.fromstring(svg)


def test_another_night_can_be_chosen(opened, nights):
    nights(check())
    nights(check(alarm=True, since="2026-10-05", words="Changed, since about 2026-10-05."), ago=1)
    screen = opened(DriftScreen)
    assert [words.endswith("! changed") for words, _ in screen.night.options] == [False, True]
    assert "No change seen." in screen.cards.value
    screen.night.index = 1
    assert "Changed: brightness." in screen.cards.value


def test_figures_that_never_vary_can_be_drawn():
    same = charts.control_chart("x", [date(2026, 9, 1)], [1.0], [1.0], [1.0], None, "No change seen.")
    ElementTree.fromstring(re.search(r"<svg.*</svg>", same)[0])


# --- what a browser may forge


@pytest.mark.parametrize("places", [[99], [-1], [0, 1], [10**30], [True, False]])
def test_rows_that_do_not_exist_select_nothing(opened, signed_in, store, page, places):
    signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    choose(screen.table, *places)
    assert all(action.disabled for action in screen.table.actions)
    for button in (screen.switch, screen.reset, screen.change):
        button.click()
        assert "Select one row" in page.message.value
    assert account(store, "anna").active and not shown(screen.confirm.widget)


def test_a_role_that_is_not_listed_is_refused(opened, signed_in, store):
    signed_in("doctor", "anna")
    screen = opened(PeopleScreen)
    person(screen, "anna")
    with pytest.raises(traitlets.TraitError):
        screen.role.set_state({"index": 7})
    screen.change.click()
    screen.confirm.yes.click()
    assert account(store, "anna").role == "doctor"


def test_names_are_shown_as_they_were_typed(opened, read, signed_in, store):
    with store.write() as db:
        accounts.add_user(db, "evil", SCRIPT, "doctor")
    read("P-1", SCRIPT, review="Normal")
    everyone, everybody = opened(PeopleScreen), opened(PatientsScreen)
    person(everyone, "evil")
    everyone.switch.click()
    choose(everybody.table, 0)
    everybody.open.click()
    everybody.erase.click()
    for screen in (everyone, everybody, opened(AuditTrailScreen), opened(UsageScreen)):
        for widget in _below(screen.widget):
            html = widget.value if isinstance(widget, widgets.HTML) else ""
            assert SCRIPT not in html
            if hasattr(widget, "_dt_args"):
                assert SCRIPT not in json.dumps(widget._dt_args)
    assert "&lt;img" in everyone.table.status.value and "&lt;img" in everybody.head.value
    assert "&lt;img" in everybody.table.rows._dt_args["data_json"]


def _below(widget) -> list[widgets.Widget]:
    return [widget, *(found for child in getattr(widget, "children", ()) for found in _below(child))]


@pytest.mark.parametrize("name", SCREENS)
def test_a_doctor_cannot_open_a_screen(name, signed_in, page):
    actions = administration.Administration(signed_in("doctor"))
    screen = shell.screen_class("admin", name)(actions, page)
    with pytest.raises(accounts.Forbidden):
        screen.refresh()
    page.act(screen.refresh)()
    assert "This needs the role admin" in page.message.value


@pytest.mark.parametrize("name", SCREENS)
def test_an_admin_who_became_a_doctor_changes_nothing_with_an_open_screen(
    name, opened, signed_in, read, page, store, versions
):
    """Everything that can be pressed is pressed, with each row chosen and each question answered."""
    signed_in("admin", "other")
    signed_in("doctor", "anna")
    read("P-1", review="Normal")
    screen = opened(shell.screen_class("admin", name))
    before = _kept(store)
    with store.write() as db:
        accounts.set_role(db, "boss", "doctor")
    refused = []
    for place in range(3):
        for send in _messages(screen.widget, place):
            page.say("")
            assert not isinstance(send(), tuple)  # no file to download
            refused.append("This needs the role admin" in page.message.value)
    assert any(refused)
    assert _kept(store) == [row if row[0] != "boss" else ("boss", "doctor", *row[2:]) for row in before]
    assert "<code>" not in texts(screen.widget) and "data:image" not in texts(screen.widget)
    with pytest.raises(accounts.Forbidden):
        screen.refresh()


def _messages(view, place: int):
    """Every message a browser could send: a row chosen, fields filled, buttons pressed, each question answered."""
    parts = _below(view)
    fields = [part for part in parts if isinstance(part, widgets.Text)]
    answers = [part for part in parts if isinstance(part, widgets.Button) and part.button_style == "danger"]
    for part in parts:
        if hasattr(part, "selected_rows"):
            yield lambda part=part: part.set_state({"selected_rows": [place]})
    for part in parts:
        if isinstance(part, widgets.Dropdown) and len(part.options) > 1:
            yield lambda part=part: part.set_state({"index": len(part.options) - 1})
        if isinstance(part, widgets.Button):
            for button in (part, *answers):
                yield button.click
                for field in fields:
                    yield lambda field=field: field.set_state({"value": "P-1"})
        if isinstance(part, DownloadButton):
            yield part._make


def _kept(store) -> list[tuple]:
    """All that an administrator could have changed."""
    with store.read() as db:
        users = db.execute(sa.select(User.name, User.role, User.active, User.password_hash).order_by(User.id)).all()
        counts = [db.scalar(sa.select(sa.func.count()).select_from(t)) for t in (Patient, Study, Reading, Review)]
        sessions = db.scalar(sa.select(sa.func.count()).where(SignIn.revoked_at.is_not(None)))
    return [*map(tuple, users), (*counts, sessions), (registry.active("lung").version,)]


def test_a_session_that_was_ended_empties_the_page_at_the_next_click(opened, page, boss, read, store):
    read("P-1", "Secret Name")
    screen = opened(PatientsScreen)
    page.show(screen.widget)
    accounts.sign_out(store, boss.token)
    screen.find.click()
    assert "You are signed out" in texts(page.widget) and "Secret Name" not in texts(page.widget)


# --- cost


def test_admin_screens_import_no_plotting_and_no_training_library():
    imports = ", ".join(shell.screen_class("admin", name).__module__ for name in SCREENS)
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {imports}; print(*sys.modules)"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert not {"matplotlib", "seaborn", "tensorflow", "keras", "sklearn", "fpdf"} & set(loaded)
