"""The clinic's verbs of the `lungkit` command: predict, serve, db, user, audit."""

from pathlib import Path
from typing import Annotated

import typer

db_app = typer.Typer(no_args_is_help=True, help="The clinic's records: upgrade, backup, restore, check.")
user_app = typer.Typer(no_args_is_help=True, help="People who sign in: add, list, disable, reset-password.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit trail: verify.")


def register(app: typer.Typer) -> None:
    """Add the clinic's verbs to the command."""
    for name, part in (("db", db_app), ("user", user_app), ("audit", audit_app)):
        app.add_typer(part, name=name)


# --- predict


# --- serve


# --- db


def _report(complaints: list[str]) -> None:
    """Each complaint as a line; any at all is a failure."""
    for complaint in complaints:
        typer.echo(f"- {complaint}")
    if complaints:
        raise typer.Exit(1)


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Make the tables of the records, or bring them up to date."""
    from lungkit.clinic.store import Store

    Store().upgrade()
    typer.echo("the records are up to date")


@db_app.command("backup")
def db_backup(path: Annotated[Path, typer.Argument(help="a new file, or a folder")]) -> None:
    """Copy the records to one file while people go on working; keep it like the records themselves."""
    from lungkit.clinic import audit
    from lungkit.clinic.store import Store

    store = Store()
    file = store.backup(path)
    with store.read() as db:
        typer.echo(f"{file}\nhead of the audit trail now, to be noted elsewhere: {audit.head(db)}")


@db_app.command("restore")
def db_restore(path: Annotated[Path, typer.Argument(help="a file that `lungkit db backup` made")]) -> None:
    """Put a backup in the place of the records, which are kept beside it. Stop the server first."""
    from lungkit.clinic.store import Store

    store = Store()
    kept = store.restore(path)
    typer.echo(f"{path} is in place" + (f"; what was there before: {kept}" if kept else ""))
    _report(store.check())


@db_app.command("check")
def db_check() -> None:
    """Look for damage, open files, old tables and a broken audit trail; exit code 1 where there is any."""
    from lungkit.clinic.store import Store

    _report(Store().check())
    typer.echo("the records are sound")


# --- user


# --- audit


@audit_app.command("verify")
def audit_verify(
    since: Annotated[str, typer.Option(help="a head noted earlier; shows a trail cut off or made anew")] = "",
) -> None:
    """Check that no row of the audit trail was changed, removed or put in."""
    from lungkit.clinic import audit
    from lungkit.clinic.store import Store

    store = Store()
    with store.read() as db:
        head = audit.head(db)
    rows = audit.verify(store, since)
    typer.echo(f"{rows} rows, none changed, removed or put in; head, to be noted elsewhere: {head}")
