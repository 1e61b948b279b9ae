"""The verbs of the `lungkit` command for a run as a study: report."""

from typing import Annotated

import typer

from lungkit import terminal
from lungkit.errors import LungkitError


def report(
    run: Annotated[str, typer.Argument(help="a run's folder, its name below reports/, or latest")] = "latest",
    form: Annotated[str, typer.Option("--format", help="html, docx, latex or all")] = "all",
) -> None:
    """Write a run's report as a web page, as a Word file and as LaTeX, with checklists and a datasheet.

    The page is the run's index.html. The other files go to the folder report/ of the run: the report, the checklists
    TRIPOD+AI and CLAIM as CSV files, a datasheet of the data, and its description as Croissant.
    """
    from lungkit.study import report

    if form not in (*report.FORMATS, "all"):
        raise LungkitError(f"--format {form}: accepted are {', '.join(report.FORMATS)} and all")
    for file in report.write(report.find(run), report.FORMATS if form == "all" else (form,)):
        terminal.say(str(file))
