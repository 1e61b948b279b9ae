"""The verbs of `lungkit models`: list, table, verify, promote, rollback."""

from typing import Annotated

import typer

from lungkit import terminal

models_app = typer.Typer(no_args_is_help=True, help="Trained models: versions under artifacts/.")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list() -> None:
    """Every version of every model; the active one is marked."""
    from lungkit.models import registry

    rows = []
    for name in registry.models():
        in_use = _active(name)
        for version in (registry.find(f"{name}@{number}") for number in registry.versions(name)):
            card = version.card
            trained_on = card["data"]["name"] + (" (synthetic)" if card["synthetic"] else "")
            accuracy = card["metrics"].get("val", {}).get("accuracy")
            mark = "●" if version.version == in_use else ""
            rows.append((name, version.version, mark, trained_on, "–" if accuracy is None else f"{accuracy:.3f}"))
    terminal.table(("model", "version", "active", "trained on", "validation accuracy"), rows)


@models_app.command("table")
def models_table(
    markdown: Annotated[bool, typer.Option("--markdown", help="as it stands in README.md")] = False,
) -> None:
    """What each active model was measured on, and its figures with their 95 % intervals, from the cards."""
    from lungkit.models import overview

    rows = overview.table()
    if markdown:
        lines = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).to_numpy().tolist()]
        typer.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    for row in rows.to_dict("records"):
        terminal.say(row.pop("model"))
        for name, value in row.items():
            terminal.say(f"  {name:<16} {value}")


def _active(name: str) -> str:
    """The active version; empty where none was promoted yet."""
    from lungkit.models import registry

    try:
        return registry.active(name).version
    except registry.ModelMissing:
        return ""


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
