"""Usage: how much is done, how long a reading takes, what the models decide, and how far reviewers agree."""

from collections.abc import Callable

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app import charts
from lungkit.clinic.app.page import percent, safe
from lungkit.clinic.records import administration as actions

PERIODS = {"last 7 days": 7, "last 30 days": 30, "last 90 days": 90, "last year": 365}
BY_WEEK = 100  # more days than this are counted by week
PER_DAY = {"sign_ins": "Sign-ins", "uploads": "Uploads", "readings": "Readings", "reviews": "Reviews"}


def view(oversight: actions.Oversight, act: Callable) -> widgets.Widget:
    """The screen."""
    usage = Usage(oversight, act)
    usage.widget.refresh = usage.refresh
    return usage.widget


class Usage:
    """A period, and charts of it with their numbers below."""

    def __init__(self, oversight: actions.Oversight, act: Callable):
        self._oversight = oversight
        self.period = widgets.Dropdown(description="Period", options=PERIODS, value=30).add_class("field")
        self.charts, self.numbers = widgets.HTML(), widgets.HTML()
        self.period.observe(act(lambda _: self.refresh()), "value")
        self.widget = widgets.VBox(
            [
                widgets.HTML("<h1>Usage</h1>"),
                widgets.HBox([self.period]).add_class("filters"),
                self.charts,
                self.numbers,
            ]
        )
        self.refresh()

    def refresh(self) -> None:
        """Count anew."""
        usage = self._oversight.usage(self.period.value)
        self.charts.value = f'<div class="charts">{"".join(_charts(usage))}</div>'
        self.numbers.value = "".join(_numbers(usage))


def _charts(usage: actions.Usage) -> list[str]:
    counts = usage.per_day
    by_week = len(counts) > BY_WEEK
    if by_week:
        counts = counts.resample("W-MON", label="left", closed="left").sum()
    days = [day.date() for day in counts.index]
    rhythm = "a week" if by_week else "a day"
    drawn = [charts.bars(f"{words} {rhythm}", days, [int(n) for n in counts[name]]) for name, words in PER_DAY.items()]
    times = usage.times
    if len(times):
        days_read = [day.date() for day in times.index]
        drawn.append(charts.ranges("Time a reading takes", days_read, list(times["median"]), list(times["p95"]), "ms"))
    drawn += [
        charts.shares(f"Decisions of {model}", [(row.decision, int(row.n), 0) for row in of.itertuples()])
        for model, of in usage.decisions.groupby("model")
    ]
    drawn += [
        charts.shares(
            f"Reviews of {model}, by the reviewer's class",
            [(row.label, int(row.agreed), int(row.n - row.agreed)) for row in of.itertuples()],
            "agreed",
            "corrected",
        )
        for model, of in usage.reviews.groupby("model")
    ]
    if len(usage.agreement):
        rows = [(row.model, row.rate, row.low, row.high, int(row.n)) for row in usage.agreement.itertuples()]
        drawn.append(charts.intervals("Reviewers who agree with the model", rows))
    else:
        drawn.append('<p class="about">No reading was reviewed in this period: no agreement to show.</p>')
    return drawn


def _numbers(usage: actions.Usage) -> list[str]:
    per_day = usage.per_day.rename(columns=PER_DAY)
    per_day.insert(0, "Day", per_day.index.strftime("%Y-%m-%d"))
    times = usage.times.round().astype(int)
    times.insert(0, "day", times.index.strftime("%Y-%m-%d"))
    agreement = usage.agreement.assign(
        **{name: [percent(value) for value in usage.agreement[name]] for name in ("rate", "low", "high")}
    )
    return [
        _table("Day by day", per_day[::-1]),
        _table("Time a reading takes, in milliseconds", times[::-1]),
        _table("Decisions", usage.decisions),
        _table("Reviews, by the reviewer's class", usage.reviews),
        _table("Agreement, with 95 % interval (Wilson)", agreement),
        *(
            _table(
                f"{model}: the model's class (rows) and the reviewer's (columns)",
                table.rename_axis(columns=None).reset_index(names=""),
            )
            for model, table in usage.confusion.items()
        ),
    ]


def _table(title: str, rows: pd.DataFrame) -> str:
    shown = rows.to_html(index=False, border=0, escape=True) if len(rows) else '<p class="about">None.</p>'
    return f'<details class="numbers"><summary>{safe(title)}</summary><div class="wide">{shown}</div></details>'
