"""The `lungkit` command: thin verbs over the package."""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from lungkit.interrupts import EXIT_CODE, ignored, message

import typer
from typer.core import TyperGroup

from lungkit import config, terminal
from lungkit.cli import clinic
from lungkit.data.folders import shown
from lungkit.errors import LungkitError


class _Command(TyperGroup):
    """The whole command: Ctrl-C in any of its verbs is told in one line, where Typer would say nothing."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            with ignored():
                typer.echo(message(sys.argv[1:]), err=True)
            raise SystemExit(EXIT_CODE) from None


# Without rich's panels, which cut names of options where the screen is narrow.
app = typer.Typer(
    cls=_Command, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: fetch, make, audit.")
models_app = typer.Typer(no_args_is_help=True, help="Trained models: versions under artifacts/.")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
clinic.register(app)
NAMED = ("phantom", "pneumoniamnist")  # data sets that are no path

Source = Annotated[str, typer.Option("--data", help="phantom, pneumoniamnist, a folder, or a MedMNIST .npz")]


def main() -> None:
    """Run the command; what goes wrong is shown as one message, without a traceback."""
    try:
        app()
    except LungkitError as error:
        terminal.error(str(error))
        raise SystemExit(1) from None
    except MemoryError:
        terminal.error("the memory is not enough; close other programs, or give fewer or smaller images")
        raise SystemExit(1) from None
    except OSError as error:
        terminal.error(terminal.refusal(error))
        raise SystemExit(1) from None
    finally:
        _flush()


def _flush() -> None:
    """Write what still waits to be shown; at the interpreter's end Python itself would complain where it cannot."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            terminal.error(f"standard output: {terminal.refusal(error)}")
        raise SystemExit(1) from None


def _value(text: str):
    """A parameter's value as JSON where it is (3, 0.5, true, null), otherwise the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _source(data: str) -> str:
    """Names as they are, folders and files as absolute paths (notebooks run in a folder of their own).

    A name means the same everywhere, also where a folder of that name happens to lie: that one is "./phantom".
    """
    path = Path(data).expanduser()
    if data not in NAMED and path.exists():
        return str(path.resolve())
    if "/" in data:
        raise LungkitError(f"no folder or file {data}; give phantom, pneumoniamnist, a folder or a .npz file")
    return data


@app.command()
def run(
    which: Annotated[list[str], typer.Argument(help="all, or numbers such as 01 03")],
    data: Source = "phantom",
    profile: Annotated[str, typer.Option(help=f"sizes of the run: {', '.join(config.PROFILES)}")] = "quick",
    model_name: Annotated[str, typer.Option(help="name in the registry; default: data set and architecture")] = "",
    parameter: Annotated[list[str], typer.Option("-p", help="key=value, any parameter of the notebooks")] = [],  # noqa: B006
    in_place: Annotated[bool, typer.Option("--in-place", help="execute the committed notebooks themselves")] = False,
) -> None:
    """Run the numbered notebooks; executed copies and an HTML index go to reports/."""
    from lungkit import notebooks

    chosen = notebooks.select(which)
    if in_place:
        for notebook in chosen:
            notebooks.refresh(notebook)
        return
    if malformed := [text for text in parameter if "=" not in text]:
        raise LungkitError(f"-p {malformed[0]}: give key=value")
    config.profile(profile)  # refuse an unknown name before anything starts
    given = {"data": _source(data), "profile": profile} | ({"model_name": model_name} if model_name else {})
    for key, _, value in (text.partition("=") for text in parameter):
        given[key] = _source(value) if key == "data" else _value(value)
    _told(_left_out(given["data"], given.get("label_column")))
    result = notebooks.run(chosen, given)
    for sentence in (notebooks.standing(result), notebooks.headline(result.folder)):
        if sentence:
            terminal.say(sentence)
    seconds = sum(taken for _, taken, _ in result.stages)
    terminal.say(f"{len(result.stages)} notebooks in {seconds:.0f} s: {result.index}")


def _left_out(source: str, label_column: str | None) -> list[str]:
    """What a folder holds that notebooks will not use; nothing where it cannot be read, as the notebook says why."""
    if source in NAMED:
        return []
    from lungkit.data import dataset

    with suppress(LungkitError):
        return dataset.source_notes(source, label_column or None)
    return []


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a name of lungkit.training.recipes; `lungkit train list` shows them")],
    data: Annotated[str, typer.Option("--data", help="the recipe's data set: a folder")] = "",
    outside: Annotated[
        Path | None, typer.Option(help="covid_chestxray, for a chest X-ray model's probes of trust: a folder")
    ] = None,
    compact: Annotated[bool, typer.Option("--compact", help="register the graph alone, with float16 weights")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that share each batch; without: this one")
    ] = None,
    population: Annotated[
        str, typer.Option(help="whose images they are, for the card; needed where the set is not the recipe's own")
    ] = "",
    licence: Annotated[str, typer.Option(help="of the images, for the card; as with --population")] = "",
) -> None:
    """Fine-tune a network by a recipe, measure it on patients it has not seen, and register it.

    A version that is measurably worse than the active one is registered without becoming active.
    """
    from lungkit.training import recipes

    if recipe == "list":
        terminal.table(
            ("recipe", "question", "data", "network", "members"),
            [(row.name, row.question, row.data, row.backbone, len(row.seeds)) for row in recipes.RECIPES.values()],
            prose=["question"],
        )
        return
    chosen = recipes.find(recipe)
    if not data:
        raise LungkitError(f"--data is missing: the folder of {chosen.data}")
    source = _source(data)
    if outside and (chosen.modality != "X-ray" or not outside.is_dir()):
        raise LungkitError(
            f"--outside {outside}: give the folder of covid_chestxray, and only for a chest X-ray recipe"
        )
    from lungkit.training import activation, finetune, probes

    stated = {"population": population, "licence": licence}
    given = recipes.command(recipe, data, outside=outside or "", compact=compact, workers=workers, **stated)
    asked = outside and (lambda candidate, own: probes.chest_xray(candidate, own, outside))
    work = config.work_dir() / chosen.name
    version, history = finetune.train(
        chosen, source, work, probes=asked, compact=compact, workers=workers, command=given, **stated
    )
    terminal.say(history.to_string(index=False))
    terminal.say(f"{activation.sentence(version)}\n{version.folder}")
    if unstated := [name for name, said in version.card["about"].items() if said == recipes.NOT_STATED]:
        options = " and ".join(f"--{name}" for name in unstated)
        terminal.say(f'its card says "{recipes.NOT_STATED}" of {" and ".join(unstated)}: state it with {options}')


@app.command()
def search(
    data: Source,
    workers: Annotated[int, typer.Option(min=1, help="processes that train; 1: this one")] = 1,
    strategy: Annotated[str, typer.Option(help="hyperband or bayesian")] = "hyperband",
    trials: Annotated[int | None, typer.Option(min=1, help="of a bayesian search; default: the profile's")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="most of one trial; default: the profile's")] = None,
    label_column: Annotated[str | None, typer.Option(help="column of labels.csv")] = None,
    profile: Annotated[str, typer.Option(help=f"sizes of the search: {', '.join(config.PROFILES)}")] = "quick",
    seed: Annotated[int, typer.Option(help="of the split, the search and the weights")] = 7,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget an earlier search of the same settings")] = False,
    recipe: Annotated[
        str | None, typer.Option(help="search how this one is trained (bayesian), not the compact CNN")
    ] = None,
    vary: Annotated[list[str] | None, typer.Option(help="a setting of the recipe; again for more")] = None,
    limit: Annotated[int | None, typer.Option(min=40, help="of a recipe's images, at most so many")] = None,
) -> None:
    """Search the compact CNN's settings, or a recipe's, by one or more processes; goes on where it was stopped."""
    config.profile(profile)
    source = _source(data)
    from lungkit.training import recipes

    chosen = recipe and recipes.find(recipe)
    if chosen and label_column:
        raise LungkitError(f"the recipe {recipe} names its label column itself; leave out --label-column")
    from lungkit.models import distributed_search
    from lungkit.training import cnn_search, recipe_search

    asked = {"trials": trials, "epochs": epochs, "seed": seed}
    if chosen:  # which says the rest itself
        asked |= {"limit": limit, "vary": vary}
        task = recipe_search.task(chosen, source, **{name: value for name, value in asked.items() if value is not None})
        asked |= {"recipe": recipe}
    else:
        asked |= {"strategy": strategy, "label_column": label_column, "profile": profile}
        task = cnn_search.task(source, **asked)
    if distributed_search.role():  # KerasTuner's variables are set: one process of a search that another began
        distributed_search.take_part(*task.material, **task.options)
        return
    if fresh:
        shutil.rmtree(task.folder, ignore_errors=True)
    given = [
        f"--{name.replace('_', '-')}={value}"
        for name, values in asked.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None
    ]
    command = [sys.executable, "-c", "from lungkit import cli; cli.main()", "search", f"--data={source}", *given]
    found = distributed_search.search(command, *task.material, workers=workers, settings=task.settings, **task.options)
    trials_found = found.result.trials
    shown = [name for name in trials_found if name != "reason" or trials_found.reason.any()]
    if chosen:  # whose trials all take the same
        shown.remove("epochs")
    rows = [
        [f"{value:.4g}" if isinstance(value, float) else value for value in row]
        for row in trials_found[shown].itertuples(index=False)
    ]
    title = f"{len(trials_found)} trials in {task.folder.parent.name}"
    terminal.table(shown, rows, title, prose=["reason"])
    terminal.say("best: " + ", ".join(f"{name} {value}" for name, value in found.result.best.items()))
    terminal.say(f"{found.seconds:.0f} s with {workers} worker{'s' * (workers > 1)}")
    if found.speed_up(workers):
        terminal.say(f"measured for these settings: {found.speed_up(workers)}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="NAME or NAME@vN")],
    data: Source,
    label_column: Annotated[str | None, typer.Option(help="column of labels.csv; default: the model's own")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; default: the test part that the set publishes, otherwise all"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Score a registered model on a data set, every figure with its 95 % interval.

    A set is scored as it is given: its published test part, or all of it where it has none. Only the set that the model
    was trained on is split as it was then. Images that cannot be read are counted and named.
    """
    from lungkit.models import registry

    version, source = registry.find(model), _source(data)  # refused before TensorFlow takes seconds to load
    from lungkit.training import release

    scored = release.score(version, release.data_for(version, source, label_column), split)
    if as_json:
        typer.echo(json.dumps(scored.to_dict()))
        return
    summary = scored.evaluation.summary()
    title = f"{version} on {scored.data.name}, {scored.scope}"
    terminal.table(("", *summary.columns), ((metric, *cells) for metric, cells in summary.iterrows()), title)
    terminal.say(_reviewed(scored.review))
    _told(scored.remarks)
    if scored.unreadable:
        terminal.say(f"not in these figures, because unreadable: {len(scored.unreadable):,}")
        _told([f"  {one['file']}: {one['reason']}" for one in scored.unreadable], most=5, where="--json lists all")
    _told(map(str, scored.data.notes))


def _told(lines: Iterable[str], most: int = 100, where: str = "") -> None:
    """Each as a line of its own; the first ones where there are many."""
    lines = [shown(line) for line in lines]
    for line in lines[:most]:
        terminal.say(line)
    if len(lines) > most:
        terminal.say(f"  and {len(lines) - most:,} more ({where})")


def _reviewed(review: dict) -> str:
    """In words, what the band of uncertainty leaves to a person."""
    from lungkit.training.evaluation import format_interval

    told = f"left to a person as uncertain: {review['share']:.1%} of the images"
    if review["errors_held"] is not None:
        told += f", with {review['errors_held']:.0%} of the errors"
    if review["accuracy"] is not None:
        told += f"; accuracy of the rest {format_interval(review['accuracy'], *review['interval'])}"
    return told


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="pneumoniamnist")]) -> None:
    """Download a public data set; resumes, and verifies its checksum."""
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
    from lungkit.data import dataset, quality
    from lungkit.training import sentences

    found = quality.audit(dataset.load(_source(data), label_column=label_column))
    columns = ["severity", "finding", "count", "meaning", "examples"]
    rows = found.findings.loc[found.findings["count"] > 0, columns].itertuples(index=False)
    terminal.table(columns, rows, f"Audit of {found.name}", prose=["meaning", "examples"])
    terminal.say(sentences.found_nothing(found.findings))
    if len(found.unreadable):
        terminal.say(f"unreadable: {len(found.unreadable):,}")
        _told(
            [f"  {file}: {reason}" for file, reason in found.unreadable.itertuples(index=False)],
            most=10,
            where="unreadable.csv in the folder of --out lists all",
        )
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("findings", "duplicates", "unreadable"):
            getattr(found, name).to_csv(out / f"{name}.csv", index=False)
        quality.figure(found).savefig(out / "audit.png", bbox_inches="tight")
    if strict and (found.findings["severity"] == "error").any():
        raise typer.Exit(1)


@models_app.command("list")
def models_list() -> None:
    """Every version of every model; the active one is marked."""
    from lungkit.models import registry

    rows = []
    for name in registry.models():
        in_use = _active(name)
        for version in (registry.find(f"{name}@{number}") for number in registry.versions(name)):
            card = version.card
            trained_on = card["data"]["name"] + (" (synthetic)" if card["synthetic"] else "")
            accuracy = card["metrics"].get("val", {}).get("accuracy")
            mark = "●" if version.version == in_use else ""
            rows.append((name, version.version, mark, trained_on, "–" if accuracy is None else f"{accuracy:.3f}"))
    terminal.table(("model", "version", "active", "trained on", "validation accuracy"), rows)


@models_app.command("table")
def models_table(
    markdown: Annotated[bool, typer.Option("--markdown", help="as it stands in README.md")] = False,
) -> None:
    """What each active model was measured on, and its figures with their 95 % intervals, from the cards."""
    from lungkit.models import overview

    rows = overview.table()
    if markdown:
        lines = [rows.columns, ["---"] * len(rows.columns), *rows.itertuples(index=False)]
        typer.echo("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
        return
    for row in rows.to_dict("records"):
        terminal.say(row.pop("model"))
        for name, value in row.items():
            terminal.say(f"  {name:<16} {value}")


def _active(name: str) -> str:
    """The active version; empty where none was promoted yet."""
    from lungkit.models import registry

    try:
        return registry.active(name).version
    except registry.ModelMissing:
        return ""


@models_app.command("verify")
def models_verify(ref: Annotated[str, typer.Argument(help="NAME or NAME@vN")]) -> None:
    """Check every file of a version against its recorded hash."""
    from lungkit.models import registry

    version = registry.find(ref)
    registry.verify(version)
    terminal.say(f"{version}: every file is as registered")


@models_app.command("promote")
def models_promote(ref: Annotated[str, typer.Argument(help="NAME@vN")]) -> None:
    """Make a version the active one."""
    from lungkit.models import registry

    version = registry.find(ref)
    registry.promote(version.model, version.version)
    terminal.say(f"{version} is active")


@models_app.command("rollback")
def models_rollback(name: Annotated[str, typer.Argument(help="a model's name")]) -> None:
    """Make the version that was active before active again."""
    from lungkit.models import registry

    registry.rollback(name)
    terminal.say(f"{registry.active(name)} is active")
