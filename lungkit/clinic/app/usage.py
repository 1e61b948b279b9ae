"""Usage: how much is done, how long a reading takes, what the models decide, and how often reviewers agree."""

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app import charts
from lungkit.clinic.app.describe import decision_name
from lungkit.clinic.app.page import field, safe
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records.administration import Administration, UsageFigures
from lungkit.wording import percent

PERIODS = {"last 7 days": 7, "last 30 days": 30, "last 90 days": 90, "last year": 365}
BY_WEEK = 100  # more days than this are counted by week
PER_DAY = {"sign_ins": "Sign-ins", "uploads": "Uploads", "readings": "Readings", "reviews": "Reviews"}


class UsageScreen(Screen[Administration]):
    """A period, charts of it, and the numbers behind them."""

    def build(self) -> None:
        self.period = field(widgets.Dropdown, "Period", options=PERIODS, value=30)
        self.charts, self.numbers = widgets.HTML(), widgets.HTML()
        self.page.on_change(self.refresh, self.period)
        self.lay_out("Usage", widgets.HBox([self.period]).add_class("filters"), self.charts, self.numbers)

    def refresh(self) -> None:
        """Count again."""
        usage = self.records.usage(self.period.value)
        self.charts.value = f'<div class="charts">{"".join(_charts(usage))}</div>'
        self.numbers.value = "".join(_numbers(usage))


def _charts(usage: UsageFigures) -> list[str]:
    counts = usage.per_day
    by_week = len(counts) > BY_WEEK
    if by_week:
        counts = counts.resample("W-MON", label="left", closed="left").sum()
    days = [day.date() for day in counts.index]
    per = "per week" if by_week else "per day"
    made = [charts.bar_chart(f"{name} {per}", days, counts[column].tolist()) for column, name in PER_DAY.items()]
    times = usage.times
    if len(times):
        days_read = [day.date() for day in times.index]
        made.append(charts.range_chart("Reading time", days_read, list(times["median"]), list(times["p95"]), "ms"))
    made += [
        charts.share_chart(f"Decisions of {model}", [(decision, n, 0) for _, decision, n in rows.values.tolist()])
        for model, rows in _decisions(usage).groupby("model")
    ]
    made += [
        charts.share_chart(
            f"Reviews of {model}, by the reviewer's finding",
            [(label, agreed, n - agreed) for _, label, n, agreed in rows.values.tolist()],
            "agreed",
            "corrected",
        )
        for model, rows in usage.reviews.groupby("model")
    ]
    if len(usage.agreement):
        rows = [(model, rate, low, high, n) for model, n, _, rate, low, high in usage.agreement.values.tolist()]
        made.append(charts.interval_chart("Reviews that agree with the model", rows))
    else:
        made.append('<p class="about">No reading was reviewed in this period. There is no agreement to show.</p>')
    return made


def _decisions(usage: UsageFigures) -> pd.DataFrame:
    return usage.decisions.assign(decision=usage.decisions["decision"].map(decision_name))


def _numbers(usage: UsageFigures) -> list[str]:
    per_day = usage.per_day.rename(columns=PER_DAY)
    per_day.insert(0, "Day", per_day.index.astype(str))
    times = usage.times.round().astype(int)
    times.insert(0, "day", times.index.astype(str))
    agreement = usage.agreement.assign(**{name: usage.agreement[name].map(percent) for name in ("rate", "low", "high")})
    return [
        _numbers_table("Day by day", per_day[::-1]),
        _numbers_table("Reading time in milliseconds", times[::-1]),
        _numbers_table("Decisions", _decisions(usage)),
        _numbers_table("Reviews, by the reviewer's finding", usage.reviews),
        _numbers_table("Agreement, with 95 % interval (Wilson)", agreement),
        *(
            _numbers_table(
                f"{model}: the model's finding (rows) and the reviewer's (columns)",
                table.rename_axis(columns=None).reset_index(names=""),
            )
            for model, table in usage.confusion.items()
        ),
    ]


def _numbers_table(title: str, rows: pd.DataFrame) -> str:
    shown = rows.to_html(index=False, border=0, escape=True) if len(rows) else '<p class="about">None.</p>'
    return f'<details class="numbers"><summary>{safe(title)}</summary><div class="wide">{shown}</div></details>'
