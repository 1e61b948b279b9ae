"""The verbs of `lungkit plan`: new, check."""

from pathlib import Path
from typing import Annotated

import typer

from lungkit import terminal
from lungkit.errors import LungkitError

plan_app = typer.Typer(no_args_is_help=True, help="A study's plan: what counts as success, fixed before the test.")


@plan_app.command("new")
def plan_new(file: Annotated[Path, typer.Argument(help="a new file, such as plan.yaml")]) -> None:
    """Write a plan to fill in. `lungkit run --plan FILE` fixes it before notebook 04 reads the test."""
    from lungkit.study import plan

    try:
        with file.expanduser().open("x", encoding="utf-8") as new:
            new.write(plan.TEMPLATE)
    except FileExistsError:
        raise LungkitError(f"{file} exists already; give the name of a new file") from None
    terminal.say(f"{file}: fill it in, and look it over with `lungkit plan check {file}`")


@plan_app.command("check")
def plan_check(file: Annotated[Path, typer.Argument(help="a plan")]) -> None:
    """Read a plan, and show its condition for success and its SHA-256, which can be published beforehand."""
    from lungkit.study import plan

    read = plan.read(file.expanduser())
    terminal.say(f"primary metric: {read.success}")
    terminal.say(f"SHA-256: {read.sha256}")
