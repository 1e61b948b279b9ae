"""How numbers are written for people: in the terminal, in notebooks, in reports and on the clinic's screens."""

import math
from collections.abc import Mapping
from typing import Any


def percent(probability: float) -> str:
    """0.873 as "87 %"; a probability that is not certain never reads as 0 % or 100 %."""
    if 0 < probability < 0.01:
        return "< 1 %"
    if 0.99 < probability < 1:
        return "> 99 %"
    return f"{probability * 100:.0f} %"


def figure(value: float | None, low: float | None = None, high: float | None = None, signed: bool = False) -> str:
    """A measured figure with its interval; "–" for an undefined value (NaN or None), no brackets without an interval.

    signed: with a plus in front of what is above 0, for differences.

    >>> figure(0.9119, 0.8813, 0.9384)
    '0.912 (0.881–0.938)'
    >>> figure(-0.198, -0.244, 0.152)
    '−0.198 (−0.244 to 0.152)'
    >>> figure(0.012, -0.003, 0.031, signed=True)
    '+0.012 (−0.003 to +0.031)'
    """
    if _undefined(value):
        return "–"
    form = "+.3f" if signed else ".3f"
    if _undefined(low) or _undefined(high):
        return f"{value:{form}}".replace("-", "−")
    to = " to " if signed or (low is not None and low < 0) else "–"
    return f"{value:{form}} ({low:{form}}{to}{high:{form}})".replace("-", "−")


def percents(value: float, low: float, high: float) -> str:
    """ "24 % (11–42 %)": a share with its interval."""
    return f"{100 * value:.0f} %" if _undefined(low) else f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"


def count(number: int, one: str, more: str = "") -> str:
    """A number and its noun: "1 pair", "2 pairs"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)


def listed(names: list[str] | tuple[str, ...], word: str) -> str:
    """ "a, b or c" with "or" as the word."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def plain(value: Any) -> str:
    """A value of JSON as people read it: yes or no, four digits, lists with commas."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(map(plain, value))
        case Mapping():
            return "; ".join(f"{key}: {plain(one)}" for key, one in value.items())
        case None:
            return "none"
    return str(value)
