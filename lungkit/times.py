"""Times as people read them: in one time zone everywhere, config.time_zone(). What is stored and sent has UTC."""

from datetime import date, datetime, time

from lungkit import config


def local(moment: datetime) -> datetime:
    """The same moment in the clinic's time zone."""
    return moment.astimezone(config.time_zone())


def now() -> datetime:
    """This moment in the clinic's time zone."""
    return datetime.now(config.time_zone())


def today() -> date:
    """The day that it is in the clinic."""
    return now().date()


def midnight(day: date) -> datetime:
    """The beginning of a day in the clinic. OverflowError: it lies before the calendar begins."""
    return datetime.combine(day, time(), config.time_zone())


def when(moment: datetime) -> str:
    """A time for people: 21 Nov 2026, 14:05."""
    here = local(moment)
    return f"{here.day} {here:%b %Y, %H:%M}"


def when_and_zone(moment: datetime) -> str:
    """A time that is read elsewhere, too: 21 Nov 2026, 14:05 CET."""
    return f"{when(moment)} {local(moment):%Z}"


def sortable_time(moment: datetime | None) -> str:
    """A time as text that sorts, 2026-11-21 14:05; empty where there is none."""
    return f"{local(moment):%Y-%m-%d %H:%M}" if moment else ""


def zone_name() -> str:
    """The time zone in words: Europe/Berlin (CET), or UTC."""
    name, short = str(config.time_zone()), f"{now():%Z}"
    return short if short == "UTC" or name == short else f"{name} ({short})"
