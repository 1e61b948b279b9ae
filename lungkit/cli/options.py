"""What the verbs of the `lungkit` command share: the option for a data set, and lists of lines."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from lungkit import terminal
from lungkit.data.folders import one_line
from lungkit.errors import LungkitError

NAMED = ("phantom", "pneumoniamnist")  # data sets that are not a path

Source = Annotated[str, typer.Option("--data", help="phantom, pneumoniamnist, a folder, or a MedMNIST .npz")]

Labels = Annotated[
    list[str],
    typer.Option(help="CLASS=LABEL,LABEL: labels that mean a class; SET:LABEL for a label of one set; again for more"),
]
Omitted = Annotated[list[str], typer.Option(help="LABEL,LABEL: leave their images out, and count them")]
LabelColumns = Annotated[
    list[str], typer.Option(help="column of labels.csv, where a set has it; again for another set's column")
]


def source_path(data: str) -> str:
    """Names as they are, folders and files as absolute paths (notebooks run in a folder of their own).

    A name means the same everywhere, also where a folder of that name happens to lie: that one is "./phantom".
    """
    path = Path(data).expanduser()
    if data not in NAMED and path.exists():
        return str(path.resolve())
    if "/" in data:
        raise LungkitError(f"no folder or file {data}; give phantom, pneumoniamnist, a folder or a .npz file")
    return data


def say_each(lines: Iterable[str], most: int = 100, where: str = "") -> None:
    """Each as a line of its own; the first ones where there are many."""
    lines = [one_line(line) for line in lines]
    for line in lines[:most]:
        terminal.say(line)
    if len(lines) > most:
        terminal.say(f"  and {len(lines) - most:,} more ({where})")
