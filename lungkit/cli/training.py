"""The verbs of the `lungkit` command that train and measure: run, train, search, evaluate, compare, runs."""

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lungkit import config, terminal
from lungkit.cli.options import NAMED, LabelColumns, Labels, Omitted, Source, say_each, source_path
from lungkit.errors import LungkitError
from lungkit.wording import count, figure, percent

if TYPE_CHECKING:
    from lungkit.data.dataset import Dataset
    from lungkit.models.registry import Version


def run(
    which: Annotated[list[str], typer.Argument(help="all, or numbers such as 01 03")],
    data: Source = "phantom",
    profile: Annotated[str, typer.Option(help=f"sizes of the run: {', '.join(config.PROFILES)}")] = "quick",
    model_name: Annotated[str, typer.Option(help="name in the registry; default: data set and architecture")] = "",
    parameter: Annotated[list[str], typer.Option("-p", help="key=value, any parameter of the notebooks")] = [],  # noqa: B006
    plan: Annotated[
        Path | None, typer.Option(help="the study's plan (`lungkit plan new`), fixed before notebook 04 reads the test")
    ] = None,
    exercises: Annotated[bool, typer.Option("--exercises", help="run the exercises' solutions too")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="execute the committed notebooks themselves")] = False,
) -> None:
    """Run the numbered notebooks; executed copies and an HTML index go to reports/."""
    from lungkit import notebooks

    numbered = notebooks.select(which)
    if in_place:
        for notebook in numbered:
            notebooks.refresh(notebook)
        return
    if malformed := [text for text in parameter if "=" not in text]:
        raise LungkitError(f"-p {malformed[0]}: give key=value")
    config.profile(profile)  # refuse an unknown name before anything starts
    parameters = {"data": source_path(data), "profile": profile} | ({"model_name": model_name} if model_name else {})
    if plan:
        parameters["plan"] = _checked_plan(plan)
    for key, _, value in (text.partition("=") for text in parameter):
        parameters[key] = _parameter(key, value)
    say_each(_left_out(parameters["data"], parameters.get("label_column")))
    result = notebooks.run(numbered, parameters, exercises=exercises)
    for sentence in (notebooks.standing(result), notebooks.headline(result.folder)):
        if sentence:
            terminal.say(sentence)
    seconds = sum(stage.seconds for stage in result.stages)
    terminal.say(f"{count(len(result.stages), 'notebook')} in {seconds:.0f} s: {result.index}")


def _checked_plan(file: Path) -> str:
    """The plan's file as an absolute path, once it is known to be readable: a run takes long."""
    from lungkit.study import plan

    plan.read(file.expanduser())
    return str(file.expanduser().resolve())


def runs(
    folder: Annotated[Path, typer.Argument(help="where mlruns/ and tensorboard/ are written")],
    only: Annotated[str, typer.Option(help="mlflow or tensorboard; default: both")] = "",
) -> None:
    """Write all trainings and registered versions as MLflow and TensorBoard read them; nothing is sent anywhere."""
    from lungkit.training import run_logs

    ways = {"mlflow": run_logs.write_mlflow, "tensorboard": run_logs.write_tensorboard}
    if only and only not in ways:
        raise LungkitError(f"--only {only}: accepted are {' and '.join(ways)}")
    found = run_logs.collect()
    for name in [only] if only else ways:
        terminal.say(f"{len(found)} runs: {ways[name](found, folder)}")


def _parameter(key: str, text: str) -> Any:
    """A parameter of the notebooks, which run in a folder of their own: what is a path is made absolute."""
    if key == "decisions" and text:
        return str(Path(text).expanduser().resolve())
    return source_path(text) if key == "data" else _value(text)


def _value(text: str) -> Any:
    """A parameter's value as JSON where it is (3, 0.5, true, null), otherwise the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _left_out(source: str, label_column: str | None) -> list[str]:
    """What a folder holds that notebooks will not use; nothing where it cannot be read, as the notebook says why."""
    if source in NAMED:
        return []
    from lungkit.data import dataset

    with suppress(LungkitError):
        return dataset.source_notes(source, label_column or None)
    return []


def train(
    recipe: Annotated[str, typer.Argument(help="a name of lungkit.training.recipes; `lungkit train list` shows them")],
    data: Annotated[
        list[str], typer.Option("--data", help="the recipe's data set: a folder; again for each set that it joins")
    ] = [],  # noqa: B006
    leave_out: Annotated[
        str,
        typer.Option(help="a source: train without it and test on it; each: for the card, without each source in turn"),
    ] = "",
    balance_sources: Annotated[
        bool, typer.Option("--balance-sources", help="in each class, every source weighs alike in training")
    ] = False,
    lungs_first: Annotated[
        bool, typer.Option("--lungs", help="the network sees the square of the lungs alone, not all of the image")
    ] = False,
    decisions: Annotated[
        Path | None, typer.Option(help="a CSV of images that a person excluded or relabelled (notebook 11 writes it)")
    ] = None,
    outside: Annotated[
        Path | None, typer.Option(help="covid_chestxray, for a chest X-ray model's probes of trust: a folder")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="another network: cnn, efficientnet_b0, mobilenet_v2, densenet121, resnet50 or vgg16")
    ] = "",
    compact: Annotated[bool, typer.Option("--compact", help="register the graph alone, with float16 weights")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="put the graph into 8 bits if its AUC on validation hardly moves")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that share each batch; without: this one")
    ] = None,
    population: Annotated[
        str, typer.Option(help="whose images they are, for the card; needed where the set is not the recipe's own")
    ] = "",
    licence: Annotated[str, typer.Option(help="of the images, for the card; as with --population")] = "",
    ages: Annotated[
        str, typer.Option(help="of the patients, for the card, which the clinic then asks for: 1-5, or 18- for adults")
    ] = "",
    views: Annotated[str, typer.Option(help="of X-rays, for the card, as DICOM names them: PA,AP")] = "",
) -> None:
    """Fine-tune a network by a recipe, measure it on patients it has not seen, and register it.

    A version that is measurably worse than the active one is registered without becoming active.
    """
    from lungkit.data import dataset, joined
    from lungkit.data import decisions as decided
    from lungkit.training import recipes

    if recipe == "list":
        terminal.table(
            ("recipe", "question", "data", "network", "members"),
            [
                (row.name, row.question, row.data, row.backbone, len(row.each_member()))
                for row in recipes.RECIPES.values()
            ],
            prose=["question"],
        )
        return
    plan = recipes.find(recipe)
    stated_ages, stated_views = recipes.ages_in(ages), recipes.views_in(views)
    if not data:
        raise LungkitError(f"--data is missing: the folder of {plan.data}")
    source = source_path(data[0])
    if len(data) > 1:
        folder, notes = joined.kept(plan.data, [source_path(each) for each in data], plan.labels, plan.label_columns)
        say_each(notes)
        source = str(folder)
    plan = recipes.suited(plan, source)
    if plan.name != recipe:
        terminal.say(f"these are real images, so the model is trained with other settings, as {plan.name}")
    if backbone:
        plan = recipes.with_backbone(plan, backbone)
    if lungs_first:
        plan = recipes.with_lungs(plan)
    plan = replace(plan, balanced_sources=balance_sources or plan.balanced_sources)
    plan = replace(plan, decisions=decided.kept(decisions))  # refused before anything is read
    if leave_out and leave_out != "each":
        there = dataset.load(source, label_column=plan.label_column, max_images=plan.max_images).source_names
        plan = recipes.without(plan, dataset.source_named(there, leave_out))
    if outside and (plan.modality != "X-ray" or not outside.is_dir()):
        raise LungkitError(
            f"--outside {outside}: give the folder of covid_chestxray, and only for a chest X-ray recipe"
        )
    from lungkit.training import activation, finetune, probes, quantization

    if int8:
        quantization.required()  # refused before hours of training
    command = recipes.command(
        recipe,
        data,
        backbone=backbone,
        outside=outside or "",
        compact=compact,
        int8=int8,
        workers=workers,
        leave_out=leave_out,
        balance_sources=balance_sources,
        lungs=lungs_first,
        decisions=decisions or "",
        population=population,
        licence=licence,
        ages=ages,
        views=views,
    )
    probe = (lambda candidate, own: probes.chest_xray(candidate, own, outside)) if outside else None
    work = config.work_dir() / plan.name
    version, history = finetune.train_recipe(
        plan,
        source,
        work,
        probes=probe,
        compact=compact,
        int8=int8,
        workers=workers,
        each_left_out=leave_out == "each",
        command=command,
        population=population,
        licence=licence,
        ages=stated_ages,
        views=stated_views,
    )
    terminal.say(history.to_string(index=False))
    terminal.say(f"{activation.sentence(version)}\n{version.folder}")
    about = version.card.about.to_dict() if version.card.about else {}
    if unstated := [name for name, stated in about.items() if stated == recipes.NOT_STATED]:
        options = " and ".join(f"--{name}" for name in unstated)
        terminal.say(f'its card says "{recipes.NOT_STATED}" of {" and ".join(unstated)}: state it with {options}')


def lungs(
    kind: Annotated[str, typer.Argument(help="X-ray or CT")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="X-ray: covid_chestxray, for its masks; CT: data sets of slices; again for more"),
    ],
    out: Annotated[Path, typer.Option(help="the file for the weights (.npz)")],
    plausible: Annotated[
        list[str], typer.Option(help="a data set without masks: is what is found there plausible? again for more")
    ] = [],  # noqa: B006
    epochs: Annotated[int, typer.Option(min=1)] = 60,
) -> None:
    """Train the network that finds lungs, and measure it on patients that it has not seen."""
    from lungkit.training import lung_finder

    say_each(lung_finder.command(kind, data, out, plausible, epochs))


def orientation(
    kind: Annotated[str, typer.Argument(help="X-ray or CT")],
    data: Annotated[list[str], typer.Option("--data", help="a data set of upright images; again for more")],
    out: Annotated[Path, typer.Option(help="the file for the weights (.npz)")],
    elsewhere: Annotated[list[str], typer.Option(help="a data set that is measured alone; again for more")] = [],  # noqa: B006
) -> None:
    """Train what tells whether an image is upright, turned or mirrored, and measure it on other patients."""
    from lungkit.training import orientation

    say_each(orientation.command(kind, data, out, elsewhere))


def distil(
    data: Annotated[list[str], typer.Option("--data", help="a data set of CT slices; again for more")],
    teacher: Annotated[Path, typer.Option(help="a folder for the teacher's weights (187 MB, downloaded once)")],
    out: Annotated[Path, typer.Option(help="the file for the student's weights (.npz)")],
    work: Annotated[Path, typer.Option(help="a folder for maps and training; a second call continues there")],
    epochs: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Bring what a large network knows of chest CT into the small one that comes with lungkit."""
    from lungkit.training import distillation

    say_each(distillation.command(data, teacher, work, out, epochs))


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
    """Search the compact CNN's settings, or a recipe's, by one or more processes; continues where it was stopped."""
    config.profile(profile)
    source = source_path(data)
    from lungkit.training import recipes

    plan = recipes.suited(recipes.find(recipe), source) if recipe else None
    if plan and label_column:
        raise LungkitError(f"the recipe {recipe} names its label column itself; leave out --label-column")
    from lungkit.training import search_parallel, tasks

    settings: dict[str, Any] = {"trials": trials, "epochs": epochs, "seed": seed}
    if plan:  # which says the rest itself
        settings |= {"limit": limit, "vary": vary}
        task = tasks.recipe_task(plan, source, **{name: value for name, value in settings.items() if value is not None})
        settings |= {"recipe": recipe}
    else:
        settings |= {"strategy": strategy, "label_column": label_column, "profile": profile}
        task = tasks.cnn_task(source, **settings).search
    if search_parallel.worker_name():  # a worker of a search that another command began
        search_parallel.take_part(task)
        return
    if fresh:
        shutil.rmtree(task.folder, ignore_errors=True)
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, values in settings.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None
    ]
    command = [sys.executable, "-c", "from lungkit import cli; cli.main()", "search", f"--data={source}", *options]
    if workers > 1:
        terminal.say(
            "This command hands out the trials. If it is killed, the trials in training are lost, finished ones are "
            "kept, and the same command continues."
        )
    timed = search_parallel.search_with_workers(command, task, workers)
    table = timed.result.trials
    columns = [str(name) for name in table if name != "reason" or table.reason.any()]
    if plan:  # whose trials all take the same number of epochs
        columns.remove("epochs")
    rows = (
        [f"{value:.4g}" if isinstance(value, float) else value for value in row]
        for row in table[columns].itertuples(index=False)
    )
    terminal.table(columns, rows, f"{len(table)} trials in {task.folder.parent.name}", prose=["reason"])
    terminal.say("best: " + ", ".join(f"{name} {value}" for name, value in timed.result.best.items()))
    terminal.say(f"{timed.seconds:.0f} s with {workers} worker{'s' * (workers > 1)}")
    if timed.speed_up(workers):
        terminal.say(f"measured for these settings: {timed.speed_up(workers)}")


def evaluate(
    model: Annotated[str, typer.Option(help="NAME or NAME@vN")],
    data: Annotated[str, typer.Option("--data", help="phantom, pneumoniamnist, a folder, or a MedMNIST .npz")] = "",
    outside: Annotated[
        list[str], typer.Option(help="a folder of a source that the model has not seen; again for more")
    ] = [],  # noqa: B006
    label_column: LabelColumns = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    omit: Omitted = [],  # noqa: B006
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; default: the test part that the set publishes, otherwise all"),
    ] = None,
    by: Annotated[
        list[str],
        typer.Option(
            help="also each group of an attribute: a column of labels.csv, a DICOM tag, or all; again for more"
        ),
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Score a registered model on a data set, every figure with its 95 % interval.

    A set is scored as it is given: its published test part, or all of it where it has none. Only the set that the model
    was trained on is split as it was then. Images that cannot be read are counted and named.

    With --by, groups of patients are compared with the rest, such as --by sex; --by all takes whatever is stated.

    With --outside, all images of each source are scored, and the model's card keeps the figures. --label and --omit say
    what labels mean that the model does not know. A source that the model learned from is refused.
    """
    from lungkit.models import registry

    version = registry.find(model)  # refused before TensorFlow takes seconds to load
    if bool(data) == bool(outside):
        raise LungkitError("give either --data, or --outside for sources that the model has not seen")
    if outside:
        if split or by:
            raise LungkitError("--split and --by have no use with --outside: every image of a source is scored")
        _evaluate_outside(version, [source_path(folder) for folder in outside], label_column, label, omit, as_json)
        return
    if label or omit or len(label_column) > 1:
        raise LungkitError("--label, --omit and several --label-column are for --outside")
    source = source_path(data)
    from lungkit.models import card_text
    from lungkit.training import release, subgroups

    scored = release.score(version, release.data_for(version, source, *label_column), split, "lungkit evaluate")
    groups = subgroups.of_scored(scored).chosen(by) if by else None
    found = subgroups.measure(scored.evaluation, groups.table) if groups else None
    if as_json:
        typer.echo(json.dumps(scored.to_dict() | ({"subgroups": found.to_dict()} if found else {})))
        return
    summary = scored.evaluation.summary()
    title = f"{version} on {scored.data.name}, {scored.scope}"
    terminal.table(("", *summary.columns), ((metric, *cells) for metric, cells in summary.iterrows()), title)
    if alone := scored.evaluation.record.sources:
        rows = [card_text.source_row(source, measured) for source, measured in alone.items()]
        terminal.table([*rows[0]], ([*row.values()] for row in rows), "each source alone")
    if groups and found:
        table = found.summary().reset_index()
        terminal.table([*table], table.itertuples(index=False), f"groups, for {found.positive}")
        say_each([subgroups.NOTE, *subgroups.says(found, plain=True), *map(str, groups.notes)])
    terminal.say(_reviewed(scored.review))
    say_each(scored.remarks)
    if scored.unreadable:
        terminal.say(f"not in these figures, because unreadable: {len(scored.unreadable):,}")
        say_each([f"  {one['file']}: {one['reason']}" for one in scored.unreadable], most=5, where="--json lists all")
    say_each(map(str, scored.data.notes))


def compare(
    models: Annotated[
        list[str], typer.Argument(help="two or more: NAME or NAME@vN, a run's folder, or its predictions.csv")
    ],
    data: Annotated[
        list[str], typer.Option("--data", help="a data set to score versions on; again for more; runs alone need none")
    ] = [],  # noqa: B006
    margin: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="of AUC: a loss that is smaller does not count as worse")
    ] = 0.02,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="each with each, not only with the first")] = False,
    label_column: LabelColumns = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    omit: Omitted = [],  # noqa: B006
    report: Annotated[Path | None, typer.Option(help="keep the tables and the forest plot in this folder")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Compare models and runs on the same images; of two versions, say whether the second may be promoted.

    The first one is the reference. Versions are scored on each source of the data, without images that one of them was
    trained or chosen on, which leaves the test part of its own set. Runs are compared on the images that all of them
    predicted. Differences have 95 % intervals by patient. The margin is to be chosen before the figures are known.
    """
    from lungkit.training import predictions

    named = [predictions.contender(text) for text in models]  # refused before TensorFlow takes seconds to load
    from lungkit.training import comparison

    given = _compared_data(named, data, label_column, label, omit)
    found = comparison.compare(named, given, margin, all_pairs)
    comparison.count_looks(named, found)
    if report:
        comparison.keep(found, report)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), allow_nan=False))
        return
    title = f"{' and '.join(found.names[1:])} against {found.names[0]}" if not all_pairs else "each against each"
    for table, heading in ((found.table(), title), (found.classes(), "each class against the rest")):
        if len(table):
            terminal.table([*table.columns], table.itertuples(index=False), heading)
    say_each(found.remarks)
    say_each(found.says)
    if report:
        terminal.say(f"kept in {report}: the tables, and the forest plot")


def _compared_data(
    named: list[Any], folders: list[str], columns: list[str], label: list[str], omit: list[str]
) -> "list[Dataset]":
    """The data sets to compare on, their labels in the classes of the first version; none without a version."""
    from lungkit.data import relabel
    from lungkit.models.registry import Version
    from lungkit.training import outside

    versions = [one for one in named if isinstance(one, Version)]
    if not versions:
        if folders or columns or label or omit:
            raise LungkitError("these are predictions that runs have made: leave --data and options of labels out")
        return []
    labels = relabel.Labels.parse(label, omit)
    given = [outside.relabelled(versions[0], source_path(folder), columns, labels) for folder in folders]
    labels.refuse_unused({of.name: of.manifest["label_there"] for of in given})
    return given


def _evaluate_outside(
    version: "Version", folders: list[str], columns: list[str], label: list[str], omit: list[str], as_json: bool
) -> None:
    """Measure a version on the sources in these folders, record it, and show it."""
    from lungkit.data import relabel
    from lungkit.models import card_text, registry
    from lungkit.training import outside

    labels = relabel.Labels.parse(label, omit)
    given = [outside.relabelled(version, folder, columns, labels) for folder in folders]
    labels.refuse_unused({data.name: data.manifest["label_there"] for data in given})
    measured = [one for data in given for one in outside.measure(version, data)]
    for one in measured:
        registry.record_outside(version, one)
    if as_json:
        typer.echo(json.dumps({"model": str(version), "outside": [one.to_dict() for one in measured]}))
        return
    rows = [card_text.outside_row(one) for one in measured]
    terminal.table([*rows[0]], ([*row.values()] for row in rows), f"{version} on sources that it has not seen")
    say_each(str(note) for data in given for note in data.notes)


def _reviewed(review: dict[str, Any]) -> str:
    """In words, what the band of uncertainty leaves to a person."""
    sentence = f"left to a person as uncertain: {100 * review['share']:.1f} % of the images"
    if review["errors_held"] is not None:
        sentence += f", with {percent(review['errors_held'])} of the errors"
    if review["accuracy"] is not None:
        sentence += f"; accuracy of the rest {figure(review['accuracy'], *review['interval'])}"
    return sentence
