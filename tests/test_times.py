"""One time zone for everything that people read."""

import re
from datetime import UTC, date, datetime

import pytest

from lungkit import config, times
from lungkit.errors import LungkitError

WINTER, SUMMER = datetime(2026, 1, 31, 23, 30, tzinfo=UTC), datetime(2026, 7, 31, 22, 30, tzinfo=UTC)


@pytest.fixture
def zone(monkeypatch):
    """A function that sets the clinic's time zone, or the system's."""

    def choose(name: str, variable: str = "LUNGKIT_TIME_ZONE") -> None:
        monkeypatch.setenv(variable, name)

    monkeypatch.delenv("LUNGKIT_TIME_ZONE", raising=False)
    monkeypatch.delenv("TZ", raising=False)
    return choose


def test_times_are_those_of_the_zone_that_is_set_in_summer_and_in_winter(zone):
    zone("Europe/Berlin")
    assert times.when(WINTER) == "1 Feb 2026, 00:30"
    assert times.when_and_zone(WINTER) == "1 Feb 2026, 00:30 CET"
    assert times.sortable_time(SUMMER) == "2026-08-01 00:30"
    assert times.when_and_zone(SUMMER) == "1 Aug 2026, 00:30 CEST"
    assert times.sortable_time(None) == ""


def test_the_day_of_the_clinic_begins_at_its_own_midnight(zone):
    zone("America/New_York")
    assert times.midnight(date(2026, 1, 31)).astimezone(UTC) == datetime(2026, 1, 31, 5, tzinfo=UTC)
    assert times.midnight(date(2026, 7, 31)).astimezone(UTC) == datetime(2026, 7, 31, 4, tzinfo=UTC)
    assert times.today() == times.now().date()


@pytest.mark.parametrize(
    ("name", "words"),
    [("UTC", "UTC"), ("Europe/Berlin", r"Europe/Berlin \(CES?T\)"), ("Asia/Kolkata", r"Asia/Kolkata \(IST\)")],
)
def test_the_zone_is_named_in_words(zone, name, words):
    zone(name)
    assert re.fullmatch(words, times.zone_name())


def test_without_a_setting_the_zone_is_the_systems(zone):
    zone(":Asia/Tokyo", "TZ")
    assert times.when_and_zone(WINTER) == "1 Feb 2026, 08:30 JST"
    zone("Europe/Berlin")
    assert times.when_and_zone(WINTER) == "1 Feb 2026, 00:30 CET"
    zone("", "TZ")
    zone("")
    assert times.local(WINTER) == WINTER


@pytest.mark.parametrize("name", ["Berlin", "CET+1x", "/etc/passwd", "../UTC", "Europe", "\0", "x" * 5000])
def test_an_unknown_zone_is_refused_with_what_is_accepted(zone, monkeypatch, name):
    monkeypatch.setattr("os.environ", {"LUNGKIT_TIME_ZONE": name})
    with pytest.raises(LungkitError, match="such as Europe/Berlin or UTC"):
        config.time_zone()
