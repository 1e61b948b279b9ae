"""The clinic's verbs of the `lungkit` command: predict, serve, db, user, audit."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

db_app = typer.Typer(no_args_is_help=True, help="The clinic's records: upgrade, backup, restore, check.")
user_app = typer.Typer(no_args_is_help=True, help="People who sign in: add, list, disable, reset-password.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit trail: verify.")


def register(app: typer.Typer) -> None:
    """Add the clinic's verbs to the command."""
    app.command()(predict)
    app.command()(serve)
    for name, part in (("db", db_app), ("user", user_app), ("audit", audit_app)):
        app.add_typer(part, name=name)


# --- predict


def predict(
    files: Annotated[list[str], typer.Argument(help="files, folders or globs: PNG, JPEG, TIFF, DICOM")],
    model: Annotated[str, typer.Option(help="NAME, or NAME@vN; default: the model that the clinic begins with")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    heatmaps: Annotated[Path | None, typer.Option(help="a folder for the heat map of each reading's label")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes that decode; default: as many as help")] = None,
) -> None:
    """Read images with a registered model. A broken file is reported and the rest are read; then the exit code is 1."""
    from lungkit import progress, terminal
    from lungkit.clinic import batch
    from lungkit.clinic.predictor import ModelPool, Predictor
    from lungkit.models import registry

    version = registry.find(model or ModelPool().default())
    predictor = Predictor(version, heat=heatmaps is not None, many=True)
    found, nothing, notes = batch.find(files)
    for note in notes:  # one JSON object a line is for the files alone
        typer.echo(note, err=as_json)
    if heatmaps:
        batch.make_folder(heatmaps)
    failed = bool(nothing)
    with progress.bar(total=len(found), label=str(version), unit="image") as bar:
        # Above the bar where both are on one screen.
        say = bar.write if sys.stdout.isatty() else typer.echo
        for pattern in nothing:
            record = {"file": pattern, "error": f"{pattern}: no image file there"}
            say(json.dumps(record) if as_json else record["error"])
        for answer in batch.read_files(predictor, found, workers):
            drawn, undrawn = None, ""
            try:
                drawn = batch.write_heat(answer, heatmaps) if heatmaps and answer.reading else None
            except OSError as error:  # the other files still have their answers
                undrawn = terminal.refusal(error)
            failed |= answer.reading is None or bool(undrawn)
            say(json.dumps(batch.record(answer, drawn, undrawn)) if as_json else batch.sentence(answer, undrawn))
            bar.update()
    raise typer.Exit(1 if failed else 0)


# --- serve


def serve(
    port: Annotated[int, typer.Option(help="this one and no other")] = 8866,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs TLS")] = "127.0.0.1",
    certfile: Annotated[Path | None, typer.Option(help="TLS certificate with its chain (PEM)")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="its key (PEM, without pass phrase)")] = None,
    pool: Annotated[int, typer.Option(min=0, help="workplaces that wait, warm, for the next visitors")] = 2,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="believe X-Forwarded-*: only the proxy may reach the port")
    ] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="make a first admin and a doctor, if there is nobody yet")
    ] = False,
) -> None:
    """Serve the clinic until Ctrl-C: sign in, upload, read, review, oversee."""
    from lungkit.clinic.web import supervisor

    if demo:
        _demo_people()
    supervisor.serve(
        port=port, host=host, certfile=certfile, keyfile=keyfile, pool=pool, behind_proxy=behind_proxy, announce=_open
    )


def _open(url: str) -> None:
    typer.echo(f"The clinic is open at {url} (Ctrl-C stops it). Research use only, not a diagnosis.")


def _demo_people() -> None:
    from lungkit.clinic.records import accounts, maintenance
    from lungkit.clinic.records.store import Store

    store = Store()
    maintenance.upgrade(store)
    with store.write() as db:
        if accounts.list_users(db):
            typer.echo("There are accounts already; a forgotten password: lungkit user reset-password NAME")
            return
        made = [
            (name, accounts.add_user(db, name, full_name, role))
            for name, full_name, role in (("admin", "Demo Admin", "admin"), ("doctor", "Demo Doctor", "doctor"))
        ]
    store.close()
    typer.echo("Accounts of this demo; their passwords are shown this once:")
    for name, password in made:
        typer.echo(f"  user name {name:<8} password {password}")


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
    from lungkit.clinic.records import maintenance
    from lungkit.clinic.records.store import Store

    maintenance.upgrade(Store())
    typer.echo("the records are up to date")


@db_app.command("backup")
def db_backup(path: Annotated[Path, typer.Argument(help="a new file, or a folder")]) -> None:
    """Copy the records to one file while people go on working; keep it like the records themselves."""
    from lungkit.clinic.records import audit_trail, maintenance
    from lungkit.clinic.records.store import Store

    store = Store()
    file = maintenance.backup(store, path)
    with store.read() as db:
        typer.echo(f"{file}\nhead of the audit trail now, to be noted elsewhere: {audit_trail.head(db)}")


@db_app.command("restore")
def db_restore(path: Annotated[Path, typer.Argument(help="a file that `lungkit db backup` made")]) -> None:
    """Put a backup in the place of the records, which are kept beside it. Stop the server first."""
    from lungkit.clinic.records import maintenance
    from lungkit.clinic.records.store import Store

    store = Store()
    kept = maintenance.restore(store, path)
    typer.echo(f"{path} is in place" + (f"; what was there before: {kept}" if kept else ""))
    _report(maintenance.check(store))


@db_app.command("check")
def db_check() -> None:
    """Look for damage, open files, old tables and a broken audit trail; exit code 1 where there is any."""
    from lungkit.clinic.records import maintenance
    from lungkit.clinic.records.store import Store

    _report(maintenance.check(Store()))
    typer.echo("the records are sound")


# --- user


@user_app.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="what the person types to sign in")],
    full_name: Annotated[str, typer.Option(help="how the person is shown, also on reports")] = "",
    role: Annotated[str, typer.Option(help="doctor or admin")] = "doctor",
    ask: Annotated[bool, typer.Option("--ask", help="type the password here; otherwise a random one is shown")] = False,
) -> None:
    """Make an account and show its password, this once."""
    from lungkit.clinic.records import accounts

    given = _typed_password() if ask else None
    with _accounts() as db:
        password = accounts.add_user(db, name, full_name or name, role, given)
    typer.echo(f"{name} can sign in as {role}" + ("" if given else f" with the password {password}"))


@user_app.command("list")
def user_list() -> None:
    """Every account: name, role, whether it may sign in, last sign-in."""
    from lungkit import terminal
    from lungkit.clinic.records import accounts

    rows = []
    with _accounts() as db:
        for user in accounts.list_users(db):
            last = f"{user.last_sign_in:%Y-%m-%d %H:%M}" if user.last_sign_in else "–"
            rows.append((user.name, user.full_name, user.role, "yes" if user.active else "no", last))
    terminal.table(("user", "full name", "role", "may sign in", "last sign-in (UTC)"), rows)


@user_app.command("disable")
def user_disable(name: Annotated[str, typer.Argument(help="user name")]) -> None:
    """End the person's sessions now and refuse further sign-ins; what the person did stays."""
    from lungkit.clinic.records import accounts

    with _accounts() as db:
        accounts.disable_user(db, name)
    typer.echo(f"{name} is signed out and cannot sign in any more")


@user_app.command("reset-password")
def user_reset_password(
    name: Annotated[str, typer.Argument(help="user name")],
    ask: Annotated[bool, typer.Option("--ask", help="type the password here; otherwise a random one is shown")] = False,
) -> None:
    """Set a new password, show it this once, and end the person's sessions."""
    from lungkit.clinic.records import accounts

    given = _typed_password() if ask else None
    with _accounts() as db:
        password = accounts.reset_password(db, name, given)
    typer.echo(f"{name} has a new password" + ("" if given else f": {password}"))


@contextmanager
def _accounts():
    """A write transaction on records that are up to date."""
    from lungkit.clinic.records import maintenance
    from lungkit.clinic.records.store import Store

    store = Store()
    maintenance.upgrade(store)
    with store.write() as db:
        yield db
    store.close()


def _typed_password() -> str:
    return typer.prompt("Password", hide_input=True, confirmation_prompt=True)


# --- audit


@audit_app.command("verify")
def audit_verify(
    since: Annotated[str, typer.Option(help="a head noted earlier; shows a trail cut off or made anew")] = "",
) -> None:
    """Check that no row of the audit trail was changed, removed or put in; rows cut off at its end need --since."""
    from lungkit.clinic.records import audit_trail
    from lungkit.clinic.records.store import Store

    store = Store()
    with store.read() as db:
        head = audit_trail.head(db)
    rows = audit_trail.verify(store, since)
    typer.echo(f"{_checked(rows, since)}\nhead now, to be noted elsewhere: {head}")


def _checked(rows: int, since: str) -> str:
    """What a trail of so many rows that fit together has been shown to be, and no more than that."""
    if since:
        noted = since.strip().partition(":")[0]
        return (
            f"{rows} rows; those up to {noted} are the ones whose head was noted, and none between them and the last "
            "one was changed, removed or put in"
        )
    return (
        f"{rows} rows; none before the last one was changed, removed or put in. Rows cut off at the end, or a trail "
        "made again as a whole, show only with --since HEAD, a head noted earlier"
    )
