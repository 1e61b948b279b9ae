"""Small charts as inline SVG: they need no library in the kernel, and each has a text for screen readers.

Each function returns HTML; texts are escaped. Colours are the stylesheet's, by class.
"""

from collections.abc import Sequence
from datetime import date

from lungkit.clinic.app.page import safe
from lungkit.wording import percent

WIDTH, LEFT, RIGHT = 380, 60, 8  # of a chart with an axis on its left, in its own units
TOP, HEIGHT, BOTTOM = 12, 110, 24
ROW = 44  # of a chart with a row for each name: the name and its figures, and the marks below them
LONGEST = 26  # characters of a name in a chart


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
    return _chart(f"{safe(title)} <b>{sum(counts):,}</b>", words, _axes(days, top, f"{top:,}") + marks)


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
    return _chart(caption, words, _axes(days, top, f"{top:,} {unit}") + marks)


def share_chart(title: str, rows: Sequence[tuple[str, int, int]], first: str = "", second: str = "") -> str:
    """A bar for each (name, n, m): n of `first`, then m of `second`, with the numbers in words above it."""
    most = max((n + m for _, n, m in rows), default=0) or 1
    marks, words = "", []
    for i, (name, n, m) in enumerate(rows):
        figures = f"{n:,} {first}, {m:,} {second}" if second else f"{n:,}"
        words.append(f"{name} {figures}")
        wide, wider, y = WIDTH * n / most, WIDTH * m / most, i * ROW + 21
        marks += (
            f"{_row_heading(name, figures, i)}"
            f'<rect class="bar" x="0" y="{y}" width="{wide:.1f}" height="12"/>'
            f'<rect class="bar-other" x="{wide:.1f}" y="{y}" width="{wider:.1f}" height="12"/>'
        )
    return _chart(safe(title), f"{title}: {'; '.join(words)}", marks, ROW * len(rows))


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float, int]]) -> str:
    """For each (name, rate, low, high, n) a dot at the rate and its 95 % interval, on an axis from 0 to 100 %."""
    edge, bottom = 8, ROW * len(rows)
    room = WIDTH - 2 * edge
    marks = "".join(
        f'<line class="grid" x1="{x}" x2="{x}" y1="20" y2="{bottom}"/>'
        f'<text class="tick" x="{x}" y="{bottom + 15}" text-anchor="{anchor}">{tick}</text>'
        for x, anchor, tick in (
            (edge, "start", "0 %"),
            (WIDTH / 2, "middle", "50 %"),
            (WIDTH - edge, "end", "100 %"),
        )
    )
    words = []
    for i, (name, rate, low, high, n) in enumerate(rows):
        figures, y = f"{percent(rate)} of {n:,} (95 %: {percent(low)} to {percent(high)})", i * ROW + 29
        words.append(f"{name} {figures}")
        marks += (
            f"{_row_heading(name, figures, i)}"
            f'<line class="range" x1="{edge + room * low:.1f}" x2="{edge + room * high:.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{edge + room * rate:.1f}" cy="{y}" r="5"/>'
        )
    return _chart(safe(title), f"{title}: {'; '.join(words)}", marks, bottom + 20)


def _chart(caption: str, words: str, marks: str, height: float = TOP + HEIGHT + BOTTOM) -> str:
    """caption: HTML; words: what the chart shows, for screen readers."""
    return (
        f'<figure class="chart"><figcaption>{caption}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{safe(words)}">{marks}</svg></figure>'
    )


def _axes(days: Sequence[date], top: int, top_words: str) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>' for y in (TOP, TOP + HEIGHT)
    )
    labels = (
        f'<text class="tick" x="{LEFT - 6}" y="{TOP + 5}" text-anchor="end">{top_words}</text>'
        f'<text class="tick" x="{LEFT - 6}" y="{TOP + HEIGHT + 4}" text-anchor="end">0</text>'
    )
    if days:
        y = TOP + HEIGHT + 18
        labels += f'<text class="tick" x="{LEFT}" y="{y}">{_day(days[0])}</text>'
        if len(days) > 1:
            labels += f'<text class="tick" x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{_day(days[-1])}</text>'
    return lines + labels


def _row_heading(name: str, figures: str, place: int) -> str:
    """The first line of a row: its name on the left, its figures on the right."""
    short, y = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…", place * ROW + 14
    return (
        f'<text x="0" y="{y}">{safe(short)}<title>{safe(name)}</title></text>'
        f'<text x="{WIDTH}" y="{y}" text-anchor="end">{safe(figures)}</text>'
    )


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
