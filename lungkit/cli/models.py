"""The verbs of `lungkit models`: list, show, table, foreign, verify, promote, rollback."""

from typing import Annotated

import typer

from lungkit import terminal
from lungkit.cli.options import source_path
from lungkit.errors import LungkitError

models_app = typer.Typer(no_args_is_help=True, help="Trained models: versions under artifacts/.")


@models_app.command("list")
def models_list() -> None:
    """Every version of every model, how good it was, and where that was measured; the active one is marked."""
    from lungkit.models import card_text, registry

    rows = []
    for name in registry.models():
        in_use = _active(name)
        for version in (registry.find(f"{name}@{number}") for number in registry.versions(name)):
            card, (_, measured) = version.card, version.card.reported
            trained_on = card.data.name + (" (synthetic)" if card.synthetic else "")
            figures = [str(measured.figure(metric)) for metric in ("auc", "accuracy")]
            mark = "●" if version.version == in_use else ""
            rows.append((name, version.version, mark, trained_on, *figures, card_text.reported_on(card)))
    terminal.table(("model", "version", "active", "trained on", "AUC", "accuracy", "measured on"), rows)


@models_app.command("show")
def models_show(ref: Annotated[str, typer.Argument(help="NAME or NAME@vN")]) -> None:
    """The card of a version: its figures, its data, its decision rule, and how it was trained."""
    from lungkit.models import card_text, registry

    version = registry.find(ref)
    card = version.card
    terminal.say(f"{version}. Worst unseen source: {card_text.worst_unseen(card)}")
    if card.synthetic:
        terminal.say(card_text.SYNTHETIC)
    for table in (card_text.figures_table(*of) for of in card.metrics.items()):
        terminal.table(("", *table.columns), [(label, *cells) for label, cells in table.rows], table.title)
    for title, rows in (card_text.sections(card) | {"Files": card_text.files(card)}).items():
        if rows:
            terminal.table((title, ""), rows, prose=[""])
    for sentence in card_text.trust(card):
        terminal.say(sentence)


@models_app.command("table")
def models_table(
    markdown: Annotated[bool, typer.Option("--markdown", help="as it stands in README.md")] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="every model on every source that it has not seen, the worst first")
    ] = False,
) -> None:
    """The worst unseen source of each active model, what it was measured on at home, and the figures of both.

    In brackets: 95 % intervals by patient. `lungkit evaluate --outside` adds a source.
    """
    from lungkit.models import card_text, registry

    versions = registry.in_use()
    if not versions:
        raise LungkitError("no model is active; train one with `lungkit train` or `lungkit run`")
    rows = [card_text.summary_row(str(version), version.card, registry.size(version)) for version in versions]
    if sources:
        rows = [row for version in versions for row in card_text.outside_rows(str(version), version.card)]
    if not rows:
        raise LungkitError("no model was measured on a source that it has not seen; `lungkit evaluate --outside` does")
    if markdown:
        typer.echo(card_text.markdown_table(rows[0], (row.values() for row in rows)), nl=False)
        return
    if sources:
        terminal.table([*rows[0]], ([*row.values()] for row in rows))
        return
    for row in rows:
        terminal.say(row.pop("model"))
        for name, value in row.items():
            terminal.say(f"  {name:<20} {value}")


def _active(name: str) -> str:
    """The active version; empty where none was promoted yet."""
    from lungkit.models import registry

    try:
        return registry.active(name).version
    except registry.ModelMissing:
        return ""


@models_app.command("foreign")
def models_foreign(
    ref: Annotated[str, typer.Argument(help="NAME or NAME@vN")],
    data: Annotated[str, typer.Option("--data", help="what it was trained on")],
    folder: Annotated[
        list[str], typer.Option("--foreign", help="images that it must not judge: a folder, or phantom; again for more")
    ] = [],  # noqa: B006
    markdown: Annotated[bool, typer.Option("--markdown", help="as it stands in docs/models.md")] = False,
) -> None:
    """What share of images that a version must not judge gets no decision, kind by kind, and what stops them."""
    from lungkit.clinic import foreign
    from lungkit.models import card_text, registry
    from lungkit.training import release

    version = registry.find(ref)
    own = release.data_for(version, source_path(data))
    rows = foreign.command(version, own, [source_path(one) for one in folder])
    if markdown:
        typer.echo(card_text.markdown_table(rows[0], (row.values() for row in rows)), nl=False)
    else:
        terminal.table([*rows[0]], ([*row.values()] for row in rows))


@models_app.command("verify")
def models_verify(ref: Annotated[str, typer.Argument(help="NAME or NAME@vN")]) -> None:
    """Check every file of a version against its recorded hash."""
    from lungkit.models import registry

    version = registry.find(ref)
    registry.verify(version)
    terminal.say(f"{version}: every file is as registered")


@models_app.command("promote")
def models_promote(ref: Annotated[str, typer.Argument(help="NAME@vN")]) -> None:
    """Make a version the active one."""
    from lungkit.models import registry

    version = registry.find(ref)
    registry.promote(version.model, version.version)
    terminal.say(f"{version} is active")


@models_app.command("rollback")
def models_rollback(name: Annotated[str, typer.Argument(help="a model's name")]) -> None:
    """Make the version that was active before active again."""
    from lungkit.models import registry

    registry.rollback(name)
    terminal.say(f"{registry.active(name)} is active")
