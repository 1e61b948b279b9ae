"""The verbs of learning from reviews, without training and trials: collect, export, doubts, next, drift."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lungkit.cli import clinic, trials

if TYPE_CHECKING:
    from lungkit.clinic.learning.reviews import Asked

learn_app = typer.Typer(
    no_args_is_help=True,
    help="Learning from reviews: collect, train, trial, shadow, next, doubts, drift, export.",
)

Model = Annotated[str, typer.Option(help="only readings of this model, whatever its version")]
Since = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="only reviews from this day on (UTC)")]


@learn_app.command("collect")
def learn_collect(
    folder: Annotated[Path, typer.Argument(help="where data sets of reviews are; the next one is added")],
    model: Model = "",
    since: Since = None,
    locked: Annotated[bool, typer.Option("--locked", help="only labels given without the model's answer")] = False,
) -> None:
    """Make a data set of reviewed images. The same records give the same hash, and nothing is written over."""
    from lungkit import config
    from lungkit.clinic.learning import collect

    with clinic.records() as store:
        made = collect.collect(store, folder, _asked(model, since, locked), config.clinic_name())
    for line in collect.said(made.manifest):
        typer.echo(line)
    typer.echo(f"{made.folder}: {'written' if made.new else 'has all of this already; nothing was written'}")


@learn_app.command("export")
def learn_export(
    folder: Annotated[Path, typer.Argument(help="the new folder of the data set, or of contact sheets")],
    k: Annotated[int, typer.Option(min=2, help="patients who are alike in all that is said of them")] = 5,
    model: Model = "",
    since: Since = None,
    sheets: Annotated[bool, typer.Option("--sheets", help="write contact sheets to look at, and no data set")] = False,
    checked: Annotated[
        Path | None, typer.Option(help="images.csv of the contact sheets, with yes or no for each picture")
    ] = None,
    licence: Annotated[str, typer.Option(help="for the card: under which terms the images may be used")] = "",
    url: Annotated[str, typer.Option(help="for the card: where the data set will be found")] = "",
) -> None:
    """Make a data set for research of reviewed images: random identifiers, no dates, k patients alike, a card."""
    from lungkit import config
    from lungkit.clinic.learning import export

    asked = _asked(model, since, False)
    with clinic.records() as store:
        if sheets:
            number = export.sheets(store, folder, asked)
            typer.echo(f"{number} pictures to look at in {folder}: write yes or no under may_leave in {export.CHECKED}")
            return
        source = config.clinic_name()
        made = export.export(store, folder, asked, source, k, checked, licence or export.TERMS, url)
    for line in export.said(made):
        typer.echo(line)


@learn_app.command("doubts")
def learn_doubts(
    model: Model = "",
    since: Since = None,
    most: Annotated[int, typer.Option(min=1, help="readings that are shown")] = 50,
) -> None:
    """Show the readings whose reviewed label looks wrong, the most doubtful first: to look at again."""
    from lungkit import terminal
    from lungkit.clinic.learning import doubts
    from lungkit.wording import percent

    with clinic.records() as store:
        found, images = doubts.of_records(store, _asked(model, since, False))
    rows = [(one.reading_id, one.label, one.looks_like, percent(one.probability), one.model) for one in found[:most]]
    if rows:
        terminal.table(("reading", "label", "looks like", "probability of that", "model"), rows)
    typer.echo(f"{len(found)} of {images} labels look wrong; {len(rows)} are shown")
    if len(found) > doubts.MANY * images:
        terminal.say("So many point to the model rather than to the readers: see `lungkit learn drift` first.")


@learn_app.command("next")
def learn_next(
    model: Annotated[str, typer.Option(help="the model that is to learn; default: the only one with readings")] = "",
    most: Annotated[int, typer.Option(min=1, help="readings that are shown")] = 50,
) -> None:
    """Show which readings to review next, the one that teaches most first: id, and time as the worklist has it."""
    from lungkit import terminal
    from lungkit.clinic.learning import next_labels
    from lungkit.times import sortable_time

    with clinic.records() as store:
        found = next_labels.order(store, model or next_labels.only_model(store), most)
        times = next_labels.read_at(store, found)
    for reading_id in found:
        typer.echo(f"{reading_id}  {sortable_time(times[reading_id])}")
    if not found:
        terminal.say("no reading of this model waits for a review")


def _asked(model: str, since: datetime | None, locked: bool) -> "Asked":
    from lungkit.clinic.learning.reviews import Asked

    return Asked(model, since.date() if since else None, locked)


@learn_app.command("drift")
def learn_drift(
    reference: Annotated[int, typer.Option(help="days before the recent ones, to compare with")] = 60,
    recent: Annotated[int, typer.Option(help="the last days, today included (UTC)")] = 7,
    alarm: Annotated[float, typer.Option(help="share of runs without drift that may raise any alarm")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="the nightly look instead: each day up to yesterday, kept once a day, alarms told"),
    ] = False,
    try_alert: Annotated[bool, typer.Option("--try-alert", help="only send a test message to all addresses")] = False,
) -> None:
    """Compare recent days with those before: images, answers and reviews of each model and source."""
    from lungkit import config, terminal
    from lungkit.clinic.learning import monitor

    if try_alert:
        _try_alert()
        return
    if keep:
        _keep(as_json)
        return
    with clinic.records() as store:
        cards = monitor.watch(store, reference, recent, alarm, config.clinic_name())
    raised = [check for card in cards for check in card.checks if check.alarm]
    if as_json:
        asked = {"reference": reference, "recent": recent, "alarm_rate": alarm, "alarm": bool(raised)}
        typer.echo(json.dumps(asked | {"cards": [asdict(card) for card in cards]}))
        return
    for card in cards:
        rows = [
            (check.what, check.before, check.recent, "" if check.p is None else f"{check.p:.4f}", check.verdict)
            for check in card.checks
        ]
        title = f"{card.model}@{card.version}, images from {card.source}: {card.images_before} before, "
        columns = ("what", "before", "recent", "p", "verdict")
        terminal.table(columns, rows, f"{title}{card.images_recent} recent", ("before", "recent", "verdict"))
        if card.images_damaged:
            terminal.say(f"not in the checks of pixels, because damaged in the records: {card.images_damaged}")
    typer.echo(
        f"{len(raised)} alarms; without drift, at most {alarm:.1%} of such runs have any" if cards
        else "no image was read in the recent days"
    )  # fmt: skip


def _try_alert() -> None:
    from lungkit.gateway import alerts

    alerts.send_test()
    typer.echo("the test message was taken everywhere")


def _keep(as_json: bool) -> None:
    """Look at the days up to yesterday, keep what was found, and tell people of it."""
    from lungkit import config, terminal
    from lungkit.clinic.learning import nightly
    from lungkit.gateway import alerts

    with clinic.records() as store:
        kept = nightly.keep(store, config.clinic_name())
        if as_json:
            typer.echo(json.dumps(asdict(kept), default=str))
        for group in [] if as_json else kept.cards:
            title = f"{group['model']}@{group['version']}, images from {group['source']}: {group['images']} images"
            rows = [(check["what"], check["words"]) for check in group["checks"]]
            terminal.table(("what", "verdict"), rows, title, ("verdict",))
        if not as_json and not kept.cards:
            typer.echo(f"kept for {kept.day}: no image was read in the last {kept.settings['days']} days")
        elif not as_json:
            found = "something has changed" if kept.alarm else "nothing has changed"
            every = f"{kept.settings['every']:g}"
            typer.echo(f"{kept.day} was kept already: {found}" if not kept.new else f"kept for {kept.day}: {found}")
            typer.echo(f"without a change, a false alarm comes about once in {every} days")
        if kept.new:
            alerts.tell(store)


learn_app.command("trial")(trials.trial)
learn_app.command("shadow")(trials.shadow)
