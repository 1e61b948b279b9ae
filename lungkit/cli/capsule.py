"""The verbs of `lungkit capsule`: make, verify."""

from pathlib import Path
from typing import Annotated

import typer

from lungkit import terminal
from lungkit.cli.options import say_each
from lungkit.errors import LungkitError

capsule_app = typer.Typer(no_args_is_help=True, help="A study in one archive, which a stranger can check.")


@capsule_app.command("make")
def capsule_make(
    run: Annotated[Path, typer.Argument(help="the folder of a run, below reports/")],
    out: Annotated[Path | None, typer.Option(help="a new file; default: the run's name with .zip, here")] = None,
    title: Annotated[str, typer.Option(help="of the study; default: model and data set")] = "",
    author: Annotated[list[str], typer.Option(help="'Family, Given' or 'Family, Given; ORCID'; again for more")] = [],  # noqa: B006
    licence: Annotated[str, typer.Option(help="of the study's results, as in SPDX: CC-BY-4.0")] = "",
    without_model: Annotated[bool, typer.Option("--without-model", help="leave out the model's weights")] = False,
    without_pictures: Annotated[
        bool, typer.Option("--without-pictures", help="leave out figures and pages, which can show images of the data")
    ] = False,
) -> None:
    """Pack a run for a repository: results, notebooks, model, code, environment, and hashes of the images, not these.

    The same run and options give the same bytes.
    """
    from lungkit import files
    from lungkit.study import capsule, capsule_texts, verify

    authors = tuple(map(capsule_texts.Author.parse, author))
    about = capsule_texts.About(title, authors, capsule_texts.known_licence(licence))
    out = (out or Path(f"{run.resolve().name}.zip")).expanduser()
    contents = capsule.make(run.expanduser(), out, about, not without_model, not without_pictures)
    say_each(capsule.warnings(contents, not without_pictures), most=20, where=f"README.md in {out} lists all")
    if not authors:
        terminal.say("no author is named; --author names one, and CITATION.cff then does")
    if failed := [f"{one.what}: {one.why}" for one in verify.capsule(out) if one.state == verify.FAILED]:
        raise LungkitError(f"{out} was made, but its check failed: {'; '.join(failed)}")
    terminal.say(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, SHA-256 {files.sha256(out)}")


@capsule_app.command("verify")
def capsule_verify(
    file: Annotated[Path, typer.Argument(help="a capsule: a .zip file")],
    data: Annotated[Path | None, typer.Option(help="the folder of the images, to compare each with its hash")] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="with --data: let the model read the test images again")
    ] = False,
) -> None:
    """Check a capsule: every hash, every figure from the predictions, the model's files, the plan.

    The exit code is 1 if a check failed. Nothing of the capsule is executed; --rescore runs the model's graph.
    """
    from lungkit.study import verify

    if rescore and not data:
        raise LungkitError("--rescore needs the images: give their folder with --data")
    checks = verify.capsule(file.expanduser(), data.expanduser() if data else None, rescore)
    terminal.table(("check", "result", "why"), ((one.what, one.state, one.why) for one in checks), prose=["why"])
    if failed := [one for one in checks if one.state == verify.FAILED]:
        raise LungkitError(f"{file}: {len(failed)} of {len(checks)} checks failed")
