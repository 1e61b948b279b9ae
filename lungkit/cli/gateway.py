"""The verbs for programs and DICOM systems: gateway; key and caller for who may call it; route for what reads what."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lungkit import terminal, times
from lungkit.cli import clinic
from lungkit.errors import LungkitError

if TYPE_CHECKING:
    from lungkit.clinic.records.routing import RouteRow

caller_app = typer.Typer(no_args_is_help=True, help="DICOM systems that may send images: add, list, on, off.")
route_app = typer.Typer(no_args_is_help=True, help="Which model reads what comes as DICOM: add, list, try, on, off.")
key_app = typer.Typer(no_args_is_help=True, help="API keys of programs that call the gateway: add, list, revoke.")


def gateway(
    port: Annotated[int, typer.Option(help="no other port is tried")] = 8877,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs TLS")] = "127.0.0.1",
    tls_cert: Annotated[Path | None, typer.Option(help="TLS certificate with its chain (PEM)")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its key (PEM, without a pass phrase)")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="threads that read images")] = 1,
    insecure: Annotated[bool, typer.Option("--insecure", help="no TLS also on other addresses")] = False,
    dicom_port: Annotated[int | None, typer.Option(help="also take images by C-STORE, such as on 11112")] = None,
    ae_title: Annotated[str, typer.Option(help="what DICOM systems have to call")] = "LUNGKIT",
    dicom_tls_cert: Annotated[Path | None, typer.Option(help="certificate of the DICOM port (PEM)")] = None,
    dicom_tls_key: Annotated[Path | None, typer.Option(help="its key (PEM, without a pass phrase)")] = None,
    dicom_tls_ca: Annotated[Path | None, typer.Option(help="DICOM systems need a certificate that it signed")] = None,
    quiet: Annotated[float, typer.Option(min=1, help="seconds without a new file; then a study is complete")] = 30,
) -> None:
    """Serve programs over REST, and DICOM systems, until Ctrl-C: images in, results out.

    Programs need a key that `lungkit key add` made; DICOM systems are entered by `lungkit caller add`.
    """
    from lungkit.gateway import dicom, serve

    tls = {"tls_cert": dicom_tls_cert, "tls_key": dicom_tls_key, "tls_ca": dicom_tls_ca}
    if dicom_port is None and any(tls.values()):
        raise LungkitError("the files of DICOM's TLS need --dicom-port")
    door = None if dicom_port is None else dicom.Settings(port=dicom_port, host=host, ae_title=ae_title, **tls)
    serve.serve(port, host, tls_cert, tls_key, workers, insecure, _announce, door, quiet)


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
    from lungkit.clinic.records import keys

    with clinic.writing() as db:
        rows = [
            (key.id, key.program, ", ".join(key.scopes), str(key.per_minute), times.sortable_time(key.expires_at)[:10],
             times.sortable_time(key.last_used_at) or "–", key.state)
            for key in keys.list_keys(db)
        ]  # fmt: skip
    terminal.table(
        ("key", "program", "scopes", "a minute", "expires", f"last use ({times.zone_name()})", "state"), rows
    )


@key_app.command("revoke")
def key_revoke(key: Annotated[str, typer.Argument(help="the key's id, as `lungkit key list` shows it")]) -> None:
    """Refuse a key from now on, and cancel its jobs that wait; results stay."""
    from lungkit.clinic.records import keys

    with clinic.writing() as db:
        keys.revoke_key(db, key)
    typer.echo("the key is revoked")


# --- DICOM systems that send

Title = Annotated[str, typer.Argument(help="the AE title that it calls itself")]


@caller_app.command("add")
def caller_add(
    ae_title: Title,
    network: Annotated[
        list[str], typer.Option(help="address or network that it calls from, such as 10.1.0.0/16; again for more")
    ] = [],  # noqa: B006
) -> None:
    """Let a DICOM system send images."""
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        row = routing.add_caller(db, ae_title, network)
    typer.echo(f"{row.ae_title} may send, from {', '.join(row.networks) or 'any address'}")


@caller_app.command("list")
def caller_list() -> None:
    """Show every DICOM system that may send or might."""
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        rows = [
            (
                row.ae_title,
                ", ".join(row.networks) or "any",
                "on" if row.active else "off",
                times.sortable_time(row.created_at)[:10],
            )
            for row in routing.list_callers(db)
        ]
    terminal.table(("AE title", "from", "state", "entered"), rows)


@caller_app.command("on")
def caller_on(ae_title: Title) -> None:
    """Take what a system sends again."""
    _set_caller(ae_title, True)


@caller_app.command("off")
def caller_off(ae_title: Title) -> None:
    """Refuse a system from now on, and cancel its jobs that wait; results stay."""
    _set_caller(ae_title, False)


def _set_caller(ae_title: str, active: bool) -> None:
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        row = next((row for row in routing.list_callers(db) if row.ae_title == ae_title.strip()), None)
        if row is None:
            raise LungkitError(f"no AE title '{ae_title[:40]}' is entered; `lungkit caller list` shows all")
        routing.set_caller(db, row.id, active)
    typer.echo(f"{row.ae_title} may {'send' if active else 'not send any more'}")


# --- rules

RuleName = Annotated[str, typer.Argument(help="the rule's name")]


@route_app.command("add")
def route_add(
    name: RuleName,
    model: Annotated[str, typer.Option(help="the model that reads")],
    caller: Annotated[str, typer.Option(help="only what this AE title sent")] = "",
    modality: Annotated[str, typer.Option(help="only this modality: CT, DX, CR …")] = "",
    body_part: Annotated[str, typer.Option(help="only this BodyPartExamined, such as CHEST")] = "",
    description: Annotated[str, typer.Option(help="only with this in the description of study or series")] = "",
    priority: Annotated[str, typer.Option(help="batch, routine or urgent")] = "routine",
    to: Annotated[list[str], typer.Option(help="name of a destination of the results; again for more")] = [],  # noqa: B006
    rank: Annotated[int, typer.Option(help="rules are tried from the lowest on; the first that fits counts")] = 100,
) -> None:
    """Make a rule. It is switched off until it has been tried on a study that was received."""
    from lungkit.clinic.records import routing
    from lungkit.models import registry

    registry.active(model)
    conditions = {"caller": caller, "modality": modality, "body_part": body_part, "description": description}
    with clinic.writing() as db:
        known = {row.name: row.id for row in routing.list_destinations(db)}
        if unknown := [one for one in to if one not in known]:
            raise LungkitError(f"no destination '{unknown[0][:64]}'; `lungkit destination list` shows all")
        there = tuple(known[one] for one in to)
        rule = routing.Rule(name=name, model=model, priority=priority, destinations=there, rank=rank, **conditions)
        routing.add_route(db, rule)
    typer.echo(f"the rule '{rule.name}' is made; try it: lungkit route try '{rule.name}'")


@route_app.command("list")
def route_list() -> None:
    """Show every rule, in the order in which they are tried."""
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        names = {row.id: row.name for row in routing.list_destinations(db)}
        rows = [
            (str(row.rule.rank), row.rule.name, _conditions(row), row.rule.model, row.rule.priority,
             ", ".join(names[one] for one in row.rule.destinations) or "–", "on" if row.active else "off",
             times.sortable_time(row.tried_at) or "–")
            for row in routing.list_routes(db)
        ]  # fmt: skip
    terminal.table(
        ("rank", "rule", "fits", "model", "priority", "results to", "state", f"tried ({times.zone_name()})"), rows
    )


@route_app.command("try")
def route_try(
    name: RuleName,
    study: Annotated[str, typer.Option(help="the id of a study that was received; default: the last one")] = "",
) -> None:
    """Show which series of a study that was received a rule takes, and with which model. Nothing is read.

    The trial counts if the rule takes a series; then `lungkit route on` may switch it on.
    """
    from lungkit.clinic.records import received, routing

    with clinic.writing() as db:
        row = _route(db, name)
        last = [one.id for one in received.latest(db, limit=1)]
        if not (study or last):
            raise LungkitError("no study has been received yet, or none is kept any more; send one first")
        series = received.series_of(db, study or last[0])
        others = [one for one in routing.list_routes(db) if one.active and one.id != row.id]
        rows, taken = [], 0
        for number, one in enumerate(series, 1):
            first = (
                routing.route_for(sorted([*others, _switched_on(row)], key=_place), one.facts) if one.files else None
            )
            taken += (mine := first is not None and first.id == row.id)
            says = (
                f"this rule: {row.rule.model}" if mine else f"'{first.rule.name}': {first.rule.model}" if first else "–"
            )
            facts = (one.facts.modality, one.facts.body_part, " / ".join(filter(None, one.facts.descriptions)))
            rows.append((str(number), *facts, str(one.files), str(one.set_aside), says))
        if taken:
            routing.note_trial(db, row.id)
    terminal.table(("series", "modality", "body part", "description", "images", "set aside", "taken by"), rows)
    if not taken:
        raise LungkitError(
            f"the rule '{row.rule.name}' takes no series of that study; change it, or name another --study"
        )
    typer.echo(f"it takes {taken} of {len(series)} series; switch it on: lungkit route on '{row.rule.name}'")


@route_app.command("on")
def route_on(name: RuleName) -> None:
    """Switch a rule on that was tried since its last change."""
    _set_route(name, True)


@route_app.command("off")
def route_off(name: RuleName) -> None:
    """Switch a rule off."""
    _set_route(name, False)


@route_app.command("remove")
def route_remove(name: RuleName) -> None:
    """Forget a rule; readings that it led to stay."""
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        routing.remove_route(db, _route(db, name).id)
    typer.echo("the rule is removed")


def _set_route(name: str, active: bool) -> None:
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        routing.set_route(db, _route(db, name).id, active)
    typer.echo(f"the rule is {'on' if active else 'off'}")


def _route(db: "clinic.Session", name: str) -> "RouteRow":
    from lungkit.clinic.records import routing

    for row in routing.list_routes(db):
        if row.rule.name == name:
            return row
    raise LungkitError(f"no rule '{name[:64]}'; `lungkit route list` shows all")


def _switched_on(row: "RouteRow") -> "RouteRow":
    from dataclasses import replace

    return replace(row, active=True)


def _place(row: "RouteRow") -> Any:
    """The place of a rule among the others."""
    return row.rule.rank, row.id


def _conditions(row: "RouteRow") -> str:
    rule = row.rule
    given = {"from": rule.caller, "modality": rule.modality, "body part": rule.body_part, "text": rule.description}
    return ", ".join(f"{what} {value}" for what, value in given.items() if value) or "everything"
