"""Usage: how much is done, how long a reading takes, what the models decide, and how often reviewers agree."""

from dataclasses import replace

import ipywidgets as widgets
import pandas as pd

from lungkit.clinic.app import charts
from lungkit.clinic.app.describe import decision_name
from lungkit.clinic.app.page import field, safe, scrolling
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.records.administration import Administration, UsageFigures
from lungkit.clinic.records.reviewing import WHY_NO_CLASS
from lungkit.clinic.records.tables import CLASS
from lungkit.models.class_names import class_name
from lungkit.times import zone_name
from lungkit.wording import percent

PERIODS = {"last 7 days": 7, "last 30 days": 30, "last 90 days": 90, "last year": 365}
BY_WEEK = 100  # more days than this are counted by week
PER_DAY = {"sign_ins": "Sign-ins", "uploads": "Uploads", "readings": "Readings", "reviews": "Reviews",
           "no_class": "Reviews without a class"}  # fmt: skip


class UsageScreen(Screen[Administration]):
    """A period, charts of it, and the numbers behind them."""

    def build(self) -> None:
        self.period = field(widgets.Dropdown, "Period", options=PERIODS, value=30)
        self.charts, self.numbers = widgets.HTML(), widgets.HTML()
        self.page.on_change(self.refresh, self.period)
        period = widgets.HBox([self.period]).add_class("filters")
        self.lay_out("Usage", period, self.charts, self.numbers, about=f"Days are those of {zone_name()}.")

    def refresh(self) -> None:
        """Count again."""
        usage = _in_words(self.records.usage(self.period.value))
        self.charts.value = f'<div class="charts">{"".join(_charts(usage))}</div>'
        self.numbers.value = "".join(_numbers(usage))


def _in_words(usage: UsageFigures) -> UsageFigures:
    """The same with classes, decisions and kinds of reviews as people read them."""
    return replace(
        usage,
        decisions=usage.decisions.assign(decision=usage.decisions["decision"].map(decision_name)),
        reviews=usage.reviews.assign(label=usage.reviews["label"].map(class_name)),
        kinds=usage.kinds.assign(kind=usage.kinds["kind"].map({CLASS: "gives a class"} | WHY_NO_CLASS)),
        confusion={model: of.rename(index=class_name, columns=class_name) for model, of in usage.confusion.items()},
    )


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
        for model, rows in usage.decisions.groupby("model")
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
    made += [
        charts.share_chart(
            f"What reviews of {model} say", [(kind, n - shown, shown) for _, kind, n, shown in rows.values.tolist()],
            "before the answer was on screen", "after",
        )
        for model, rows in usage.kinds.groupby("model")
    ]  # fmt: skip
    if len(usage.agreement):
        rows = [(model, rate, low, high, n) for model, n, _, rate, low, high in usage.agreement.values.tolist()]
        made.append(charts.interval_chart("Reviews that agree with the model, of those that give a class", rows))
    else:
        none = (
            "No review of this period gives a class" if len(usage.kinds) else "No reading was reviewed in this period"
        )
        made.append(f'<p class="about">{none}. There is no agreement to show.</p>')
    if without := _without_class(usage):
        made.append(f'<p class="about">Reviews that give no class, and do not count as agreement: {safe(without)}.</p>')
    return made


def _without_class(usage: UsageFigures) -> str:
    """How many reviews there are of each kind without a class: "not assessable 3, another finding 2"."""
    of_kind = usage.kinds.groupby("kind")["n"].sum()
    return ", ".join(f"{why} {of_kind[why]:,}" for why in WHY_NO_CLASS.values() if why in of_kind)


def _numbers(usage: UsageFigures) -> list[str]:
    per_day = usage.per_day.rename(columns=PER_DAY)
    per_day.insert(0, "Day", per_day.index.astype(str))
    times = usage.times.round().astype(int)
    times.insert(0, "day", times.index.astype(str))
    agreement = usage.agreement.assign(**{name: usage.agreement[name].map(percent) for name in ("rate", "low", "high")})
    return [
        _numbers_table("Day by day", per_day[::-1]),
        _numbers_table("Reading time in milliseconds", times[::-1]),
        _numbers_table("Decisions", usage.decisions),
        _numbers_table("Reviews, by the reviewer's finding", usage.reviews),
        _numbers_table(
            "What reviews say",
            usage.kinds.rename(columns={"kind": "says", "answer_shown": "after the model's answer was on screen"}),
        ),
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
    return f'<details class="numbers"><summary>{safe(title)}</summary>{scrolling(shown, title)}</details>'
