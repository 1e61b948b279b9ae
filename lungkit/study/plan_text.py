"""A plan and what became of it as people read it: in the report, in a capsule's README, and where a capsule is checked.

Everything is said from plan.json (lungkit.study.plan), which a stranger may have written: a key that is missing is left
out.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from lungkit.models.card_text import metric_name
from lungkit.study.plan import EXCLUSIONS, NO_PLAN, metric_in_words
from lungkit.wording import count, listed, plain


def moment(text: str, seconds: bool = False) -> str:
    """ "30 November 2026, 14:23 UTC" from ISO 8601 with a zone; the text itself if it is no such time."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    if at.tzinfo is None:
        return text
    at = at.astimezone(UTC)
    return f"{at.day} {at:%B %Y, %H:%M:%S} UTC" if seconds else f"{at.day} {at:%B %Y, %H:%M} UTC"


def verdict(record: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    says = (record.get("result") or {}).get("says")
    return f"{str(says).rstrip('.')}." if says else "The plan has no result: the test was not read to the end under it."


def deviations(record: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each; before the result is known there are none to say."""
    return tuple(map(str, record.get("deviations") or ()))


def looks(record: Mapping[str, Any]) -> str:
    """How often the test was read; empty where that is not known."""
    times = record.get("looks")
    return f"The test was read {count(times, 'time')}, this reading included." if isinstance(times, int) else ""


def became(record: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What became of a plan, sentence by sentence: the verdict, the deviations, the readings. None: without a plan."""
    if record is None:
        return (NO_PLAN,)
    if not record.get("result"):
        return (verdict(record),)
    found = deviations(record)
    said = f"Deviations: {' '.join(found)}" if found else "Deviations: none was found."
    return tuple(filter(None, (verdict(record), said, looks(record))))


def fixed(record: Mapping[str, Any]) -> str:
    """When the plan was fixed, with its hash: "The plan was fixed on 30 November 2026, 14:23 UTC (SHA-256 …)."."""
    at = record.get("fixed_at")
    if not at:
        return "The run has a plan without a time."
    return f"The plan was fixed on {moment(str(at))} (SHA-256 {record.get('sha256')})."


def says(record: Mapping[str, Any]) -> str:
    """What the plan states, in sentences."""
    return " ".join((fixed(record), *_stated(record.get("plan") or {})))


def _stated(plan: Mapping[str, Any]) -> Iterator[str]:
    given = {key: value for key, value in plan.items() if value not in (None, "", [], ())}
    if "hypothesis" in given:
        yield f"Hypothesis: {str(given['hypothesis']).rstrip('.')}."
    if "primary_metric" in given:
        yield f"{_success(given)}."
    if "planned_n" in given:
        n = given["planned_n"]
        yield f"Planned: {count(n, 'patient') if isinstance(n, int) else n} in the test."
    if "subgroups" in given:
        yield f"Subgroups: {plain(given['subgroups'])}."
    if "exclusions" in given:
        named = [EXCLUSIONS.get(str(one), str(one)) for one in given["exclusions"]]
        yield f"Left out as planned: {listed(named, 'and')}."
    if "data" in given:
        yield f"Data set: {given['data']}."
    if "model" in given:
        yield f"Model: {given['model']}."
    if "notes" in given:
        yield f"Notes: {str(given['notes']).rstrip('.')}."


def _success(plan: Mapping[str, Any]) -> str:
    """ "Success: balanced accuracy of at least 0.80"."""
    metric = str(plan["primary_metric"])
    name = metric_in_words(metric, of_class=plan.get("of_class"))
    if "not_worse_than" in plan:
        return f"Success: {name} not worse than that of {plan['not_worse_than']} by {plain(plan.get('margin'))} or more"
    for key, words in (("at_least", "at least"), ("at_most", "at most")):
        if key in plan:
            return f"Success: {name} of {words} {_number(plan[key])}"
    return f"Primary metric: {metric_name(metric)}"


def _number(value: Any) -> str:
    """0.8 as "0.80"; with more digits where it has them."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"
