"""The verbs for programs: gateway, and key to make and revoke the keys that they call it with."""

from pathlib import Path
from typing import Annotated

import typer

from lungkit.cli import clinic

key_app = typer.Typer(no_args_is_help=True, help="API keys of programs that call the gateway: add, list, revoke.")


def gateway(
    port: Annotated[int, typer.Option(help="no other port is tried")] = 8877,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs TLS")] = "127.0.0.1",
    tls_cert: Annotated[Path | None, typer.Option(help="TLS certificate with its chain (PEM)")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its key (PEM, without a pass phrase)")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="threads that read images")] = 1,
    insecure: Annotated[bool, typer.Option("--insecure", help="plain HTTP also on other addresses")] = False,
) -> None:
    """Serve programs over REST until Ctrl-C: images in, results out. Needs a key that `lungkit key add` made."""
    from lungkit.gateway import serve

    serve.serve(port, host, tls_cert, tls_key, workers, insecure, announce=_announce)


def _announce(url: str) -> None:
    typer.echo(f"The gateway is open at {url} (Ctrl-C stops it). Research use only, not a diagnosis.")


@key_app.command("add")
def key_add(
    name: Annotated[str, typer.Argument(help="the program that gets the key; it may have several")],
    scope: Annotated[list[str], typer.Option(help="predict, read or admin; once for each")],
    expires: Annotated[float, typer.Option(help="days until the key is refused")] = 365,
    rate: Annotated[int, typer.Option(help="most requests a minute")] = 120,
) -> None:
    """Make a key for a program and show it, only this once."""
    from lungkit.clinic.records import keys

    with clinic.writing() as db:
        key = keys.add_key(db, name, scope, expires, rate)
    typer.echo(key)


@key_app.command("list")
def key_list() -> None:
    """Show every key: program, scopes, requests a minute, expiry, last use, state. The secrets are not kept."""
    from lungkit import terminal
    from lungkit.clinic.records import keys

    with clinic.writing() as db:
        rows = [
            (key.id, key.program, ", ".join(key.scopes), str(key.per_minute), f"{key.expires_at:%Y-%m-%d}",
             f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "–", key.state)
            for key in keys.list_keys(db)
        ]  # fmt: skip
    terminal.table(("key", "program", "scopes", "a minute", "expires", "last use (UTC)", "state"), rows)


@key_app.command("revoke")
def key_revoke(key: Annotated[str, typer.Argument(help="the key's id, as `lungkit key list` shows it")]) -> None:
    """Refuse a key from now on, and cancel its jobs that wait; results stay."""
    from lungkit.clinic.records import keys

    with clinic.writing() as db:
        keys.revoke_key(db, key)
    typer.echo("the key is revoked")
