"""The verbs of learning from reviews: collect, doubts, drift."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lungkit.cli import clinic

if TYPE_CHECKING:
    from lungkit.clinic.learning.reviews import Asked

learn_app = typer.Typer(no_args_is_help=True, help="Learning from reviews: collect, doubts, drift.")

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


@learn_app.command("doubts")
def learn_doubts(
    model: Model = "",
    since: Since = None,
    most: Annotated[int, typer.Option(min=1, help="readings that are shown")] = 50,
) -> None:
    """Show the readings whose reviewed label looks wrong, the most doubtful first: to look at again."""
    from lungkit import terminal
    from lungkit.clinic.learning import doubts

    with clinic.records() as store:
        found, images = doubts.of_records(store, _asked(model, since, False))
    rows = [(one.reading_id, one.label, one.looks_like, f"{one.probability:.3f}", one.model) for one in found[:most]]
    if rows:
        terminal.table(("reading", "label", "looks like", "probability of that", "model"), rows)
    typer.echo(f"{len(found)} of {images} labels look wrong; {len(rows)} are shown")


def _asked(model: str, since: datetime | None, locked: bool) -> "Asked":
    from lungkit.clinic.learning.reviews import Asked

    return Asked(model, since.date() if since else None, locked)
