"""The clinic's verbs of the `lungkit` command: predict, serve, db, user, audit."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lungkit.errors import LungkitError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session as Session

    from lungkit.clinic.records.store import Store
    from lungkit.models.registry import Version

Reader = Callable[[Iterable[Path]], Iterator[dict[str, Any]]]  # files to their records

db_app = typer.Typer(no_args_is_help=True, help="The clinic's records: upgrade, backup, restore, check.")
user_app = typer.Typer(no_args_is_help=True, help="People who sign in: add, list, disable, reset-password.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit trail: verify.")


# --- predict


def predict(
    files: Annotated[list[str], typer.Argument(help="files, folders or globs: PNG, JPEG, TIFF, DICOM")],
    model: Annotated[str, typer.Option(help="NAME, or NAME@vN; default: the model that the clinic starts with")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    heatmaps: Annotated[Path | None, typer.Option(help="a folder for the heat map of each reading's label")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that decode; default: chosen by the amount of work")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="ADDRESS of a dask scheduler, whose workers read the files")] = "",
    checkpoint: Annotated[
        Path | None, typer.Option(help="a file to keep every answer in; the same command then continues from it")
    ] = None,
    age: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=130,
            help="of the patients in years, where the files do not state it; a model that "
            "states ages does not decide without it",
        ),
    ] = None,
) -> None:
    """Read images with a registered model. A broken file is reported and the rest are read; then the exit code is 1."""
    from lungkit import progress
    from lungkit.clinic import batch
    from lungkit.clinic.predictor import ModelPool
    from lungkit.models import registry

    if scheduler and workers:
        raise LungkitError("--workers counts processes on this machine; leave it out with --scheduler")
    version = registry.find(model or ModelPool().default())
    read = _on_cluster(scheduler, version, heatmaps, age) if scheduler else _here(version, heatmaps, workers, age)
    archive = bool(scheduler or checkpoint)  # is not looked through before it is read
    found = batch.Files(files)
    images = found if archive else list(found)
    if not archive:
        _say_notes(found.notes, as_json)
    if heatmaps:
        batch.make_folder(heatmaps)
    records = _kept(checkpoint, version, files, heatmaps, age, images, read) if checkpoint else read(images)
    failed = bool(found.nothing)
    total = None if isinstance(images, batch.Files) else len(images)
    with progress.bar(total=total, label=str(version), unit="image") as bar:
        # Above the bar if both are on one screen.
        say = bar.write if sys.stdout.isatty() else typer.echo
        for pattern in found.nothing:
            unmatched = {"file": pattern, "error": f"{pattern}: no image file there"}
            say(json.dumps(unmatched) if as_json else unmatched["error"])
        for record in records:
            failed |= batch.failed(record)
            say(json.dumps(record) if as_json else batch.sentence(record))
            bar.update()
    if archive:
        _say_notes(found.notes, as_json)
    raise typer.Exit(1 if failed else 0)


def _here(version: "Version", heatmaps: Path | None, workers: int | None, age: float | None) -> Reader:
    """Reads with this machine."""
    from lungkit.clinic import batch
    from lungkit.clinic.predictor import Predictor

    predictor = Predictor(version, heat=heatmaps is not None, many=True, age=age)
    return lambda files: (batch.told(answer, heatmaps) for answer in batch.read_files(predictor, files, workers))


def _on_cluster(scheduler: str, version: "Version", heatmaps: Path | None, age: float | None) -> Reader:
    """Reads with the workers of a scheduler."""
    from lungkit.clinic import cluster
    from lungkit.models import registry

    job = cluster.job(version, registry.fingerprint(version), heatmaps, age)
    return lambda files: cluster.read_files(scheduler, job, files)


def _kept(
    checkpoint: Path,
    version: "Version",
    files: list[str],
    heatmaps: Path | None,
    age: float | None,
    images: Iterable[Path],
    read: Reader,
) -> Iterator[dict[str, Any]]:
    """All records: those of a checkpoint, and those of the rest."""
    from lungkit.clinic import checkpoint as checkpoints
    from lungkit.models import registry

    asked = checkpoints.asked(version, registry.fingerprint(version), files, heatmaps, age)
    return checkpoints.continued(checkpoint, asked, images, read)


def _say_notes(notes: list[str], as_json: bool) -> None:
    for note in notes:  # standard output is for the files only: one JSON object a line
        typer.echo(note, err=as_json)


# --- serve


def serve(
    port: Annotated[int, typer.Option(help="no other port is tried")] = 8866,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs TLS")] = "127.0.0.1",
    certfile: Annotated[Path | None, typer.Option(help="TLS certificate with its chain (PEM)")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="its key (PEM, without a pass phrase)")] = None,
    pool: Annotated[int, typer.Option(min=0, help="pages that are started ahead for the next visitors")] = 2,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="trust X-Forwarded-*: only the proxy may reach the port")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="make an admin and a doctor if there are no accounts")] = False,
) -> None:
    """Serve the clinic until Ctrl-C: sign in, upload, read, review, administer."""
    from lungkit.clinic.web import supervisor

    if demo:
        _make_demo_accounts()
    supervisor.serve(port, host, certfile, keyfile, pool, behind_proxy, announce=_announce)


def _announce(url: str) -> None:
    typer.echo(f"The clinic is open at {url} (Ctrl-C stops it). Research use only, not a diagnosis.")


def _make_demo_accounts() -> None:
    from lungkit.clinic.records import accounts

    with writing() as db:
        if accounts.list_users(db):
            typer.echo("There are accounts already. If you forgot a password: lungkit user reset-password NAME")
            return
        passwords = {role: accounts.add_user(db, role, f"Demo {role.title()}", role) for role in ("admin", "doctor")}
    typer.echo("Accounts of this demo; their passwords are shown only once:")
    for name, password in passwords.items():
        typer.echo(f"  user name {name:<8} password {password}")


# --- the records


def _store() -> "Store":
    from lungkit.clinic.records.store import Store

    return Store()


@contextmanager
def records() -> "Iterator[Store]":
    """The records, brought up to date."""
    from lungkit.clinic.records import maintenance

    store = _store()
    maintenance.upgrade(store)
    yield store
    store.close()


@contextmanager
def writing() -> "Iterator[Session]":
    """A write transaction on records that are up to date."""
    with records() as store, store.write() as db:
        yield db


def _head(store: "Store") -> str:
    from lungkit.clinic.records import audit_trail

    with store.read() as db:
        return audit_trail.head(db)


def _report(complaints: list[str]) -> None:
    """Print each complaint as a line; if there are any, the exit code is 1."""
    for complaint in complaints:
        typer.echo(f"- {complaint}")
    if complaints:
        raise typer.Exit(1)


# --- db


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Make the tables of the records, or bring them up to date."""
    from lungkit.clinic.records import maintenance

    store = _store()
    maintenance.upgrade(store)
    maintenance.keep_reserve(store)
    typer.echo("the records are up to date")


@db_app.command("backup")
def db_backup(path: Annotated[str, typer.Argument(help="a new file, or a folder")]) -> None:
    """Copy the records to one file while people continue to work; keep it as safe as the records themselves."""
    from lungkit.clinic.records import maintenance

    store = _store()
    file = maintenance.backup(store, path)
    typer.echo(f"{file}\nhead of the audit trail; note it somewhere else: {_head(store)}")


@db_app.command("restore")
def db_restore(path: Annotated[Path, typer.Argument(help="a file that `lungkit db backup` made")]) -> None:
    """Replace the records by a backup; the earlier records are kept next to it. Stop the server first."""
    from lungkit.clinic.records import maintenance

    store = _store()
    kept = maintenance.restore(store, path)
    typer.echo(f"{path} is in place" + (f"; the earlier records: {kept}" if kept else ""))
    _report(maintenance.check(store))


@db_app.command("check")
def db_check() -> None:
    """Look for damage, files that others can read, old tables and a broken audit trail; any gives exit code 1."""
    from lungkit.clinic.records import maintenance

    _report(maintenance.check(_store()))
    typer.echo("the records are sound")


# --- user

Name = Annotated[str, typer.Argument(help="user name")]
Ask = Annotated[bool, typer.Option("--ask", help="type the password here; otherwise a random one is shown")]


@user_app.command("add")
def user_add(
    name: Annotated[str, typer.Argument(help="what the person types to sign in")],
    full_name: Annotated[str, typer.Option(help="how the person is shown, also on reports")] = "",
    role: Annotated[str, typer.Option(help="doctor or admin")] = "doctor",
    ask: Ask = False,
) -> None:
    """Make an account and show its password, only this once."""
    from lungkit.clinic.records import accounts

    typed = _typed_password() if ask else None
    with writing() as db:
        password = accounts.add_user(db, name, full_name or name, role, typed)
    typer.echo(f"{name} can sign in as {role}" + ("" if typed else f" with the password {password}"))


@user_app.command("list")
def user_list() -> None:
    """Show every account: number, name, role, whether it can sign in, last sign-in."""
    from lungkit import terminal, times
    from lungkit.clinic.records import accounts

    rows = []
    with writing() as db:
        for user in accounts.list_users(db):
            last = times.sortable_time(user.last_sign_in) or "–"
            rows.append((user.user_id, user.name, user.full_name, user.role, "yes" if user.active else "no", last))
    terminal.table(("number", "user", "full name", "role", "can sign in", f"last sign-in ({times.zone_name()})"), rows)


@user_app.command("disable")
def user_disable(name: Name) -> None:
    """End the person's sessions now and refuse further sign-ins; what the person did stays."""
    from lungkit.clinic.records import accounts

    with writing() as db:
        accounts.disable_user(db, name)
    typer.echo(f"{name} is signed out and cannot sign in any more")


@user_app.command("reset-password")
def user_reset_password(name: Name, ask: Ask = False) -> None:
    """Set a new password, show it only this once, and end the person's sessions."""
    from lungkit.clinic.records import accounts

    typed = _typed_password() if ask else None
    with writing() as db:
        password = accounts.reset_password(db, name, typed)
    typer.echo(f"{name} has a new password" + ("" if typed else f": {password}"))


def _typed_password() -> str:
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


# --- audit


@audit_app.command("verify")
def audit_verify(
    since: Annotated[str, typer.Option(help="a head noted earlier; shows a trail cut off or rebuilt")] = "",
) -> None:
    """Check that no row of the trail was changed, removed or inserted; only --since shows rows cut off its end."""
    from lungkit.clinic.records import audit_trail

    store = _store()
    head = _head(store)  # first, so that the check covers it
    rows = audit_trail.verify(store, since)
    typer.echo(f"{_result(rows, since)}\nhead of the audit trail; note it somewhere else: {head}")


def _result(rows: int, since: str) -> str:
    """What the check of so many rows has shown, and no more than that."""
    if since:
        noted = since.strip().partition(":")[0]
        return (
            f"{rows} rows; those up to {noted} are the ones whose head was noted, and none between them and the last "
            "one was changed, removed or inserted"
        )
    return (
        f"{rows} rows; none before the last one was changed, removed or inserted. Only --since HEAD, a head noted "
        "earlier, shows rows cut off at the end or a trail that was rebuilt as a whole"
    )
