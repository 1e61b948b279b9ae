"""The clinic's verbs of the `lungkit` command: predict, serve, db, user, audit."""

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


# --- user


# --- audit
