"""Small charts as HTML and inline SVG, without a library in the kernel; each has a text for screen readers.

Each function returns HTML; texts are escaped. Colours are the stylesheet's, by class.
"""

import math
from collections.abc import Sequence
from datetime import date, datetime

from lungkit.clinic.app.page import safe
from lungkit.wording import percent

WIDTH, LEFT, RIGHT = 380, 60, 8  # of a chart over days, in its own units
TOP, HEIGHT, BOTTOM = 12, 110, 24


def bar_chart(title: str, days: Sequence[date], counts: Sequence[int]) -> str:
    """One bar for each day (or week, named by its first day)."""
    top = _round_up(max(counts, default=0))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(counts))
    marks = "".join(
        f'<rect class="bar" x="{LEFT + i * step + step * 0.1:.1f}" y="{_y(n, top):.1f}" width="{step * 0.8:.2f}" '
        f'height="{TOP + HEIGHT - _y(n, top):.1f}"><title>{_day(day)}: {n}</title></rect>'
        for i, (day, n) in enumerate(zip(days, counts, strict=True))
        if n
    )
    words = f"{title}: {sum(counts)} in total, at most {max(counts, default=0)} at a time"
    return _day_chart(f"{safe(title)} <b>{sum(counts):,}</b>", words, _axes(days, top, f"{top:,}") + marks)


def range_chart(title: str, days: Sequence[date], medians: Sequence[float], highs: Sequence[float], unit: str) -> str:
    """For each day a dot at its median, and a line up to its 95th percentile."""
    top = _round_up(max(highs, default=0))
    span = (days[-1] - days[0]).days if days else 0
    marks = ""
    for day, median, high in zip(days, medians, highs, strict=True):
        x = LEFT + 6 + (WIDTH - LEFT - RIGHT - 12) * ((day - days[0]).days / span if span else 0.5)
        marks += (
            f"<g><title>{_day(day)}: median {median:.0f} {unit}, 95 % within {high:.0f} {unit}</title>"
            f'<line class="range" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(median, top):.1f}" y2="{_y(high, top):.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{_y(median, top):.1f}" r="3.5"/></g>'
        )
    words = f"{title}: each day's median and 95th percentile; the highest is {max(highs, default=0):.0f} {unit}"
    caption = f"{safe(title)} <span>dot: median, line: up to 95 %</span>"
    return _day_chart(caption, words, _axes(days, top, f"{top:,} {unit}") + marks)


def control_chart(
    title: str,
    days: Sequence[date],
    values: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    since: date | None,
    words: str,
    share: bool = False,
    unit: str = "",
) -> str:
    """A dot for each day over the usual range, and from a change on in another colour and shape. words: the verdict.

    share: values are shares of 1. Without two days there is nothing to draw, and the words stand alone.
    """
    floor, ceiling = (0.0, 1.0) if share else (-math.inf, math.inf)
    bottom, top = max(floor, min(*values, *low)), min(ceiling, max(*values, *high))
    span, length = (top - bottom) or 1.0, max(1, (days[-1] - days[0]).days)
    xs = [LEFT + 6 + (WIDTH - LEFT - RIGHT - 12) * (day - days[0]).days / length for day in days]

    def y(value: float) -> float:
        return TOP + HEIGHT * (0.5 if flat else 1 - (min(max(value, bottom), top) - bottom) / span)

    def told(value: float) -> str:
        return f"{100 * value:.0f} %" if share else f"{value:.3g}"

    flat = told(top) == told(bottom)  # every day is the same: a line in the middle
    edge = [f"{x:.1f},{y(value):.1f}" for x, value in zip(xs, high, strict=True)]
    edge += [f"{x:.1f},{y(value):.1f}" for x, value in [*zip(xs, low, strict=True)][::-1]]
    marks = f'<polygon class="usual" points="{" ".join(edge)}"/>'
    for day, x, value in zip(days, xs, values, strict=True):
        over = f"<title>{f'{_day(day)}: {told(value)} {unit}'.strip()}</title>"
        if since and day >= since:
            marks += f'<path class="late" d="M{x:.1f} {y(value) - 5:.1f}l5 5l-5 5l-5 -5z">{over}</path>'
        else:
            marks += f'<circle class="dot" cx="{x:.1f}" cy="{y(value):.1f}" r="2.5">{over}</circle>'
    ticks = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(at)}" y2="{y(at)}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end">{told(at)}</text>'
        for at in ((top,) if flat else (top, bottom))
    )
    measured_in = f" ({unit})" if unit else ""
    caption = f'{safe(title + measured_in)} <span class="{"changed" if since else ""}">{safe(words)}</span>'
    return _day_chart(caption, f"{title}: {words}", ticks + _ends(days) + marks)


def course_chart(title: str, points: Sequence[tuple[datetime, str, bool, float, float | None]]) -> str:
    """A patient's studies over time: (when, decision, whether it decides, probability, affected share or None) of each.

    Probabilities are dots, hollow where the model does not decide; shares of series are diamonds, joined by a line.
    """
    times = [at.timestamp() for at, *_ in points]
    first, span = min(times), max(times) - min(times)
    wide, tall = 2 * WIDTH, TOP + HEIGHT
    middle = (LEFT + wide - RIGHT) / 2
    places = [LEFT + 50 + (wide - LEFT - RIGHT - 100) * (at - first) / span if span else middle for at in times]
    marks, joined = "", ""
    for number, (x, (at, decision, decides, probability, share)) in enumerate(zip(places, points, strict=True)):
        words = f"{_day(at.date())} {at.year}: {decision}, {percent(probability)}"
        marks += f'<line class="stem" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{tall}"/>'
        if share is not None:
            words += f", {percent(share)} of the slices affected"
            y = TOP + HEIGHT * (1 - share)
            joined += f" {x:.1f},{y:.1f}"
            marks += f'<path class="share" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
        y = TOP + HEIGHT * (1 - probability)
        marks += f'<circle class="{"dot" if decides else "open"}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        if number % max(1, math.ceil(len(points) / 8)) == 0:  # more words than that would overlap
            for line, word in enumerate((f"{_day(at.date())} {at:%y}", f"{'' if decides else '? '}{decision[:18]}")):
                place = f'x="{x:.1f}" y="{tall + 16 + 15 * line}"'
                marks += f'<text class="tick" {place} text-anchor="middle">{safe(word)}</text>'
        over = f'<rect class="over" x="{x - 9:.1f}" y="{TOP}" width="18" height="{HEIGHT}">'
        marks += f"{over}<title>{safe(words)}</title></rect>"
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{wide - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{height} %</text>'
        for height, y in ((100, TOP), (50, TOP + HEIGHT // 2), (0, tall))
    )
    shares = f'<polyline class="share-line" points="{joined.strip()}"/>' if joined else ""
    key = "dot: probability of the finding (hollow: left to a person)" + (
        "; diamond: affected slices" if joined else ""
    )
    words = f"{title}: {'; '.join(f'{decision} {percent(p)}' for _, decision, _, p, _ in points)}"
    view = f'<svg viewBox="0 0 {wide} {tall + 38}" role="img" aria-label="{safe(words)}">{grid}{shares}{marks}</svg>'
    return _figure(f"{safe(title)} <span>{key}</span>", view)


def share_chart(title: str, rows: Sequence[tuple[str, int, int]], first: str = "", second: str = "") -> str:
    """A bar for each (name, n, m): n of `first`, then m of `second`, with the numbers in words above it."""
    most = max((n + m for _, n, m in rows), default=0) or 1
    return _bars(title, [
        (
            name,
            f"{n:,} {first}, {m:,} {second}" if second else f"{n:,}",
            _mark("fill", 0, n / most) + _mark("fill other", n / most, m / most),
        )
        for name, n, m in rows
    ])  # fmt: skip


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float, int]]) -> str:
    """For each (name, rate, low, high, n) a dot at the rate and its 95 % interval, on an axis from 0 to 100 %."""
    axis = '<p class="axis"><span>0 %</span><span>50 %</span><span>100 %</span></p>'
    return _bars(title, [
        (
            name,
            f"{percent(rate)} of {n:,} (95 %: {percent(low)} to {percent(high)})",
            _mark("interval", low, high - low) + _mark("rate", rate, 0),
        )
        for name, rate, low, high, n in rows
    ], axis)  # fmt: skip


def _bars(title: str, rows: list[tuple[str, str, str]], axis: str = "") -> str:
    """Rows of a name, its figures, and the marks on its track (HTML); axis: HTML below them."""
    tracks = "".join(
        f'<p class="row"><span>{safe(name)}</span><span>{safe(figures)}</span></p><span class="track">{marks}</span>'
        for name, figures, marks in rows
    )
    words = f"{title}: {'; '.join(f'{name} {figures}' for name, figures, _ in rows)}"
    return _figure(safe(title), f'<div role="img" aria-label="{safe(words)}">{tracks}{axis}</div>')


def _mark(kind: str, start: float, width: float) -> str:
    """A part of a track; start, width: as shares of the whole track."""
    return f'<span class="{kind}" style="left:{100 * start:.1f}%;width:{100 * width:.1f}%"></span>'


def _figure(caption: str, content: str) -> str:
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{content}</figure>'


def _day_chart(caption: str, words: str, marks: str) -> str:
    """caption, marks: HTML and SVG; words: what the chart shows, for screen readers."""
    view = f"0 0 {WIDTH} {TOP + HEIGHT + BOTTOM}"
    return _figure(caption, f'<svg viewBox="{view}" role="img" aria-label="{safe(words)}">{marks}</svg>')


def _axes(days: Sequence[date], top: int, top_words: str) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>' for y in (TOP, TOP + HEIGHT)
    )
    labels = (
        f'<text class="tick" x="{LEFT - 6}" y="{TOP + 5}" text-anchor="end">{top_words}</text>'
        f'<text class="tick" x="{LEFT - 6}" y="{TOP + HEIGHT + 4}" text-anchor="end">0</text>'
    )
    return lines + labels + _ends(days)


def _ends(days: Sequence[date]) -> str:
    """The first and the last day, below the axis."""
    y, labels = TOP + HEIGHT + 18, ""
    if days:
        labels += f'<text class="tick" x="{LEFT}" y="{y}">{_day(days[0])}</text>'
        if len(days) > 1:
            labels += f'<text class="tick" x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{_day(days[-1])}</text>'
    return labels


def _y(value: float, top: int) -> float:
    return TOP + HEIGHT * (1 - value / top)


def _day(day: date) -> str:
    return f"{day.day} {day:%b}"


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, … at or above a value."""
    top = 1
    while top < value:
        top = {1: 2, 2: 5, 5: 10}[int(str(top)[0])] * 10 ** (len(str(top)) - 1)
    return top
