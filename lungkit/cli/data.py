"""The verbs of `lungkit data`: fetch, phantom, join, audit; and `lungkit series`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lungkit import terminal
from lungkit.cli.options import LabelColumns, Labels, Omitted, say_each, source_path

if TYPE_CHECKING:
    from lungkit.clinic.series_reading import SeriesReading
    from lungkit.data.dataset import Dataset
    from lungkit.data.series import Contents, Series

data_app = typer.Typer(no_args_is_help=True, help="Data sets: fetch, make, audit.")


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="pneumoniamnist")]) -> None:
    """Download a public data set and verify its checksum."""
    from lungkit.data import fetch

    terminal.say(str(fetch.fetch(name)))


@data_app.command("phantom")
def data_phantom(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    slices: Annotated[int, typer.Option(help="how many")] = 1500,
    seed: Annotated[int, typer.Option(help="same seed, same slices")] = 7,
) -> None:
    """Make synthetic chest CT slices (DICOM, with lesion masks)."""
    from lungkit.data import phantom

    terminal.say(str(phantom.make_dataset(folder, n_slices=slices, seed=seed)))


@data_app.command("join")
def data_join(
    folder: Annotated[Path, typer.Argument(help="a new folder, for the joined set")],
    data: Annotated[list[str], typer.Argument(help="two data sets or more: folders, or .npz files")],
    label: Labels = [],  # noqa: B006
    omit: Omitted = [],  # noqa: B006
    label_column: LabelColumns = [],  # noqa: B006
) -> None:
    """Make one data set of several, with links to their images; each image keeps its source.

    Classes of the same name are matched; say with --label which others are the same. The new folder can be given
    wherever a data set can. Images of one patient in two sets are only recognised if the files are identical.
    """
    from lungkit.data import joined, relabel
    from lungkit.data.dataset import load

    given = [source_path(each) for each in data]
    notes = joined.join(folder, given, relabel.Labels.parse(label, omit), label_column)
    say_each(map(str, notes))
    _show_sources(load(folder))
    terminal.say(str(folder))


def _show_sources(data: "Dataset") -> None:
    """Images and patients of each class by source."""
    table = data.by_source()
    columns = ["source", *map(", ".join, table.columns.to_flat_index())]
    terminal.table(columns, ([name, *counts] for name, counts in zip(table.index, table.to_numpy(), strict=True)))


@data_app.command("audit")
def data_audit(
    data: Annotated[str, typer.Argument(help="phantom, pneumoniamnist, a folder, or a .npz")],
    label_column: Annotated[str | None, typer.Option(help="column of labels.csv")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder for the tables and the figure")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit code 1 where a finding is an error")] = False,
) -> None:
    """Look for unreadable files, duplicates, label conflicts and imbalance, and for what is not used at all.

    The exit code is 0 once the set was looked at, whatever was found; with --strict, an error among the findings makes
    it 1.
    """
    from lungkit.data import dataset, figures, quality
    from lungkit.training import sentences

    images = dataset.load(source_path(data), label_column=label_column)
    report = quality.audit(images)
    columns = ["severity", "finding", "count", "meaning", "examples"]
    rows = report.findings.loc[report.findings["count"] > 0, columns].itertuples(index=False)
    terminal.table(columns, rows, f"Audit of {report.name}", prose=["meaning", "examples"])
    terminal.say(sentences.found_nothing(report.findings))
    if len(images.source_names) > 1:
        _show_sources(images)
    if len(report.unreadable):
        terminal.say(f"unreadable: {len(report.unreadable):,}")
        say_each(
            [f"  {file}: {reason}" for file, reason in report.unreadable.itertuples(index=False)],
            most=10,
            where="unreadable.csv in the folder of --out lists all",
        )
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("findings", "duplicates", "unreadable"):
            getattr(report, name).to_csv(out / f"{name}.csv", index=False)
        figures.quality_panels(report).savefig(out / "audit.png", bbox_inches="tight")
    if strict and (report.findings["severity"] == "error").any():
        raise typer.Exit(1)


def series(
    path: Annotated[Path, typer.Argument(help="a folder, a zip file, or a DICOM file")],
    model: Annotated[str, typer.Option(help="NAME or NAME@vN: also read each series as one with this model")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """List the CT series in a folder or zip file: what they are, how they may be read, and what is wrong with them.

    Without --model, only headers are read. What belongs to no series is named with the reason.
    """
    from lungkit.data import series as reader
    from lungkit.errors import LungkitError

    contents = reader.read(path.expanduser(), str(path))
    if as_json:
        typer.echo(json.dumps(_record(contents, model)))
    else:
        _list(contents)
    if not contents.series:
        raise LungkitError(f"{path}: no CT series; give a folder or zip file with the slices of a series in DICOM")
    if model and not as_json:
        _read_each(contents.series, model)


def _list(contents: "Contents") -> None:
    """The series in a table, their findings, and what is in none of them."""
    columns = ["series", "slices", "size", "spacing (mm)", "range (mm)", "orientation", "kernel", "may be read as"]
    if contents.series:
        terminal.table(columns, [[number, *_cells(one)] for number, one in enumerate(contents.series, 1)])
    for number, one in enumerate(contents.series, 1):
        ends = f"{one.slices[0].source} to {one.slices[-1].source}" if one.slices else "no slice"
        say_each([f"{number}: SeriesInstanceUID {one.uid[:64] or 'missing'}, {ends}"])
        say_each([f"{number}: {found.severity}: {found.rule}: {found.words}" for found in one.findings])
    if contents.set_aside:
        terminal.say(f"in no series: {len(contents.set_aside):,}")
        say_each([f"  {one}: {one.rule}: {one.words}" for one in contents.set_aside], most=20, where="--json lists all")


def _read_each(found: "Sequence[Series]", model: str) -> None:
    """What the model says about each series, in a few lines."""
    from lungkit.clinic import series_reading

    for number, said in enumerate(_readings(found, model), 1):
        if said is None:
            terminal.say(f"{number}: not read, because it is refused")
        else:
            say_each([f"{number}: {sentence}" for sentence in series_reading.sentences(said)])


def _readings(found: "Sequence[Series]", model: str) -> "Iterator[SeriesReading | None]":
    """What the model says about each series; None about one that is refused."""
    from lungkit.clinic import series_reading
    from lungkit.clinic.predictor import Predictor
    from lungkit.models import registry

    predictor = Predictor(registry.find(model), heat=False)
    for one in found:
        yield None if one.readable == "refused" else series_reading.read(predictor, one)


def _record(contents: "Contents", model: str) -> dict[str, Any]:
    """All that the command says, JSON-ready. With a model, "reading" is null for a series that is refused."""
    told = [_described(one) for one in contents.series]
    if model:
        from lungkit.clinic import series_reading

        for one, said in zip(told, _readings(contents.series, model), strict=True):
            one["reading"] = series_reading.record(said) if said else None
    aside = [{name: value for name, value in asdict(one).items() if value != ""} for one in contents.set_aside]
    return {"series": told, "set_aside": aside}


def _described(one: "Series") -> dict[str, Any]:
    """A series without its slices, JSON-ready. Spacing is of rows, columns and slices, all places in mm."""
    ends = (one.slices[0], one.slices[-1]) if one.slices else ()
    return {
        "series_instance_uid": one.uid,
        "study_instance_uid": one.study_uid,
        "number": one.number,
        "modality": one.modality,
        "kernel": one.kernel,
        "slices": len(one.slices),
        "rows": one.rows,
        "columns": one.columns,
        "spacing": one.spacing,
        "thickness": one.thickness,
        "range": [end.position for end in ends],
        "files": [end.source for end in ends],  # of the first and the last slice
        "orientation": one.view,
        "read_as": one.readable,
        "findings": [{"severity": found.severity, "rule": found.rule, "words": found.words} for found in one.findings],
    }


def _cells(one: "Series") -> list[str]:
    """A series' row in the table, without its number."""
    spacing = " x ".join("?" if each is None else f"{each:g}" for each in one.spacing)
    ends = [one.slices[0].position, one.slices[-1].position] if one.slices else []
    use = {"volume": "volume", "slicewise": "slices only", "refused": "refused"}[one.readable]
    size = f"{one.columns} x {one.rows}" if one.slices else ""
    return [str(len(one.slices)), size, spacing, " to ".join(f"{end:.1f}" for end in ends), one.view, one.kernel, use]
