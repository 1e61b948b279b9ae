"""The verbs for results that go out: destination to say where to, dispatch to see what was sent."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lungkit.cli import clinic
from lungkit.errors import LungkitError

if TYPE_CHECKING:
    from lungkit.clinic.records.routing import DestinationRow

destination_app = typer.Typer(
    no_args_is_help=True, help="Systems that get results: add, list, try, on, off, remove. A rule names which of them."
)
dispatch_app = typer.Typer(no_args_is_help=True, help="Results to send: list, again, give-up.")

Name = Annotated[str, typer.Argument(help="what the destination is called")]
Ids = Annotated[list[str] | None, typer.Argument(help="as `lungkit dispatch list` shows them")]
File = Path | None


@destination_app.command("add")
def destination_add(
    name: Annotated[str, typer.Argument(help="what people call it")],
    kind: Annotated[str, typer.Argument(help="dicom, stow, fhir or hl7")],
    host: Annotated[str, typer.Option(help="of dicom and hl7")] = "",
    port: Annotated[int, typer.Option(help="of dicom and hl7")] = 0,
    ae_title: Annotated[str, typer.Option(help="of dicom: what the system calls itself")] = "",
    url: Annotated[str, typer.Option(help="of stow and fhir: the base address")] = "",
    token_file: Annotated[File, typer.Option(help="of stow and fhir: a file with the bearer token, chmod 600")] = None,
    tls_ca: Annotated[File, typer.Option(help="certificates to trust (PEM), instead of the system's")] = None,
    tls_cert: Annotated[File, typer.Option(help="of dicom: our certificate (PEM)")] = None,
    tls_key: Annotated[File, typer.Option(help="of dicom: its key (PEM, chmod 600)")] = None,
    patient_numbers: Annotated[str, typer.Option(help="of fhir: URI of the clinic's patient numbers")] = "",
    application: Annotated[str, typer.Option(help="of hl7: receiving application")] = "",
    facility: Annotated[str, typer.Option(help="of hl7: receiving facility")] = "",
    authority: Annotated[str, typer.Option(help="of hl7: who gave the patient numbers")] = "",
    send: Annotated[list[str] | None, typer.Option(help="report, capture, segmentation; once for each")] = None,
) -> None:
    """Enter a system that can get results. Secrets stay in their files; the records hold the files' names."""
    from lungkit.clinic.records import routing

    files = {"token_file": token_file, "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    address = {
        "host": host, "port": port or None, "ae_title": ae_title, "url": url, "patient_numbers": patient_numbers,
        "application": application, "facility": facility, "authority": authority,
    } | {option: str(file.resolve()) for option, file in files.items() if file}  # fmt: skip
    with clinic.writing() as db:
        row = routing.add_destination(db, name, kind, address, send or ())
    typer.echo(f"'{row.name}' can get {', '.join(row.objects)}; try it with: lungkit destination try '{row.name}'")


@destination_app.command("list")
def destination_list() -> None:
    """Show every destination: address, what it gets, and whether it gets it now. Rules name it by its name."""
    from lungkit import terminal
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        rows = [
            (row.name, row.kind, _where(row), ", ".join(row.objects), "on" if row.active else "off")
            for row in routing.list_destinations(db)
        ]
    terminal.table(("destination", "kind", "address", "gets", "state"), rows)


@destination_app.command("on")
def destination_on(name: Name) -> None:
    """Send results there from now on, and what has waited."""
    _switch(name, True)
    typer.echo(f"results are sent to '{name}'")


@destination_app.command("off")
def destination_off(name: Name) -> None:
    """Send nothing there; what waits stays on the list, and new results are not listed."""
    _switch(name, False)
    typer.echo(f"nothing is sent to '{name}'; what waits is kept")


@destination_app.command("remove")
def destination_remove(name: Name) -> None:
    """Forget a destination that nothing was sent to and no rule uses."""
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        routing.remove_destination(db, _named(db, name).id)
    typer.echo(f"'{name}' is forgotten")


@destination_app.command("try")
def destination_try(
    name: Name,
    calling: Annotated[str, typer.Option(help="of dicom: the AE title that the gateway calls itself")] = "LUNGKIT",
) -> None:
    """Ask a destination whether it is there, without any result: C-ECHO, a small GET, or a connection."""
    from lungkit.gateway import sending

    with clinic.writing() as db:
        row = _named(db, name)
    typer.echo(f"'{name}': {sending.probe(row, calling)}")


@dispatch_app.command("list")
def dispatch_list(
    state: Annotated[str, typer.Option(help="queued, running, done, failed or cancelled; default: all")] = "",
    limit: Annotated[int, typer.Option(min=1, help="how many, newest first")] = 50,
) -> None:
    """Show results to send: what, where to, how often it was tried, and why it did not arrive. Names no patient."""
    from lungkit import terminal, times
    from lungkit.clinic.records import dispatches, routing, tables

    if state not in ("", *tables.STATES):
        raise LungkitError(f"state {state!r}: accepted are {', '.join(tables.STATES)}")
    with clinic.writing() as db:
        names = {row.id: row.name for row in routing.list_destinations(db)}
        rows = [
            (row.id, row.reading_id, row.what, names[row.destination_id],
             row.state, str(row.tries), times.sortable_time(row.ended_at or row.due_at), row.reason)
            for row in dispatches.latest(db, state, limit)
        ]  # fmt: skip
    columns = ("dispatch", "reading", "object", "to", "state", "tries", f"ended or due ({times.zone_name()})", "reason")
    terminal.table(columns, rows, prose=("reason",))


@dispatch_app.command("again")
def dispatch_again(
    ids: Ids = None,
    to: Annotated[str, typer.Option(help="a destination: everything that could not be sent there")] = "",
) -> None:
    """Send what failed or was given up once more, at once."""
    from lungkit.clinic.records import dispatches

    with clinic.writing() as db:
        chosen = list(ids or ())
        if to:
            where = _named(db, to).id
            failed = dispatches.latest(db, "failed", limit=1_000_000)
            chosen += [row.id for row in failed if row.destination_id == where]
        for each in dict.fromkeys(chosen):
            dispatches.again(db, each)
    typer.echo(f"{_count(chosen)} sent again")


@dispatch_app.command("give-up")
def dispatch_give_up(ids: Ids = None) -> None:
    """Stop trying to send results."""
    from lungkit.clinic.records import dispatches

    with clinic.writing() as db:
        for each in ids or ():
            dispatches.give_up(db, each)
    typer.echo(f"{_count(ids or ())} given up")


def _count(chosen: Iterable[str]) -> str:
    from lungkit.wording import count

    if not (number := len(set(chosen))):
        raise LungkitError("name at least one, as `lungkit dispatch list` shows it")
    return f"{count(number, 'result')} {'is' if number == 1 else 'are'}"


def _switch(name: str, active: bool) -> None:
    from lungkit.clinic.records import routing

    with clinic.writing() as db:
        routing.set_destination(db, _named(db, name).id, active)


def _named(db: "clinic.Session", name: str) -> "DestinationRow":
    from lungkit.clinic.records import routing

    rows = routing.list_destinations(db)
    found = next((row for row in rows if row.name == name), None)
    if found is None:
        raise LungkitError(
            f"no destination is called '{name}'; there are: {', '.join(row.name for row in rows) or '–'}"
        )
    return found


def _where(row: "DestinationRow") -> str:
    if "url" in row.address:
        return str(row.address["url"])
    title = f"{row.address['ae_title']}@" if "ae_title" in row.address else ""
    return f"{title}{row.address['host']}:{row.address['port']}"
