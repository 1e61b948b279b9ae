"""The verbs of `lungkit learn` that lead to another version: trial, shadow."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lungkit import terminal
from lungkit.cli import clinic
from lungkit.cli.options import LabelColumns, Labels, Omitted, say_each, source_path
from lungkit.errors import LungkitError

if TYPE_CHECKING:
    from lungkit.clinic.learning.shadow import Compared
    from lungkit.data.review_sets import ReviewSet
    from lungkit.models.registry import Version
    from lungkit.models.verdict import Evidence
    from lungkit.training.trials import Plan


def trial(
    challenger: Annotated[str, typer.Argument(help="NAME@vN: the version that could take the place of the one in use")],
    locked: Annotated[
        Path | None, typer.Option(help="FOLDER/NAME-vN that `lungkit learn collect --locked` wrote")
    ] = None,
    reviews: Annotated[
        list[Path],
        typer.Option(help="FOLDER/NAME-vN that `lungkit learn collect` wrote, also one learned from; again for more"),
    ] = [],  # noqa: B006
    data: Annotated[
        list[str],
        typer.Option("--data", help="a data set: each source that the version in use learned from, and others"),
    ] = [],  # noqa: B006
    margin: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="of AUC: a loss that is smaller does not count as worse")
    ] = 0.02,
    agreement_below: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="limit of the rule for going back, as a share of 0 to 1; default: by the version in use",
        ),
    ] = None,
    left_above: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="likewise, for the share left to a person")
    ] = None,
    label_column: LabelColumns = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    omit: Omitted = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure a version next to the one in use, and keep the evidence for two administrators to sign.

    The margin is to be chosen before the figures are known. A look at a locked set is counted before they are.
    """
    from lungkit.models import registry

    new = registry.find(challenger)
    old = registry.active(new.model)
    if new == old:
        raise LungkitError(f"{new} is in use already; name the version that could take its place")
    if not (locked or reviews or data):
        raise LungkitError("there is nothing to measure on; give --locked, --reviews or --data")
    from lungkit.clinic.learning import trial as of_clinic
    from lungkit.clinic.records import trials as records
    from lungkit.data import relabel, review_sets
    from lungkit.models import verdict
    from lungkit.training import outside

    sets = [_review_set(folder, locked=False) for folder in reviews]
    blind = _review_set(locked, locked=True) if locked else None
    for folder in data:
        _refuse_reviews(folder)
    labels = relabel.Labels.parse(label, omit)
    given = [outside.relabelled(old, source_path(folder), label_column, labels) for folder in data]
    labels.refuse_unused({of.name: of.manifest["label_there"] for of in given})
    plans = _plans(old, new, blind, sets, given)
    with clinic.records() as store:
        look_id, looks = None, 0
        if blind:
            line = [one.sha256 for one in review_sets.before(blind)]
            with store.write() as db:
                records.refuse_unknown_set(db, blind.content_sha256, blind.folder.name)
                look_id, looks = records.look(db, line, str(new), plans[0].images, blind.oldest)
        evidence = _measured(old, new, plans, margin, blind, looks)
        with store.read() as db:
            rule = of_clinic.rollback_rule(db, old, evidence.sets, agreement_below, left_above)
        with store.write() as db:
            trial_id = records.open_trial(db, evidence, rule, look_id)
    said = verdict.judge(evidence)
    if as_json:
        of = {"trial": trial_id, "verdict": said.word, "reasons": said.reasons, "would_tell": said.would_tell}
        typer.echo(json.dumps(of | {"evidence": evidence.to_dict(), "rollback": rule.to_dict()}))
        return
    _show(evidence, str(rule), said.word)


def _review_set(folder: Path, locked: bool) -> "ReviewSet":
    from lungkit.data import review_sets

    found = review_sets.read(folder)
    if found.locked != locked:
        raise LungkitError(
            f"{folder} is no locked set; give it with --reviews"
            if locked
            else f"{folder} is a locked set; give it with --locked, where looks are counted"
        )
    return found


def _refuse_reviews(data: str) -> None:
    """A set of reviews as another data set would be a look that no one counts, and would keep patients by file only."""
    from lungkit.data import review_sets

    folder = Path(data).expanduser()
    if (folder / review_sets.MANIFEST).is_file():
        option = "--locked" if review_sets.read(folder).locked else "--reviews"
        raise LungkitError(f"{folder} is a set of reviews; give it with {option}")


def _plans(
    old: "Version", new: "Version", blind: "ReviewSet | None", sets: "list[ReviewSet]", given: list[Any]
) -> "list[Plan]":
    """What is measured on, the locked set first; a set of reviews of which nothing is left is passed over."""
    from lungkit.training import trials

    elsewhere = trials.seen_elsewhere(old, new, given) if blind or sets else set()
    plans = [trials.of_reviews(old, new, blind, sets, elsewhere)] if blind else []
    for of in sets:
        try:
            plans.append(trials.of_reviews(old, new, of, sets, elsewhere))
        except trials.NothingLeft as reason:
            terminal.say(f"not measured: {reason}")
    return plans + [trials.of_data(old, new, of) for of in given]


def _measured(
    old: "Version", new: "Version", plans: "list[Plan]", margin: float, blind: "ReviewSet | None", looks: int
) -> "Evidence":
    from lungkit.clinic.learning import trial as of_clinic
    from lungkit.clinic.records.tables import now
    from lungkit.models import registry
    from lungkit.models.verdict import Candidate, Evidence
    from lungkit.training import trials

    if not plans:
        raise LungkitError(f"no image is left to measure {old} and {new} on; each learned from some of them")
    sets = trials.measure(old, new, plans, margin)
    before, after, times, images = of_clinic.timed(old, new, [file for plan in plans for file in plan.files])

    def candidate(version: "Version", milliseconds: float) -> Candidate:
        return Candidate(
            version=version.version,
            fingerprint=registry.fingerprint(version),
            milliseconds=milliseconds,
            bytes=registry.size(version),
        )

    return Evidence(
        model=old.model,
        champion=candidate(old, before),
        challenger=candidate(new, after),
        margin=margin,
        sets=tuple(sets),
        not_measured=trials.not_measured(old, sets),
        locked_sha256=blind.sha256 if blind else None,
        looks=looks,
        times_slower=times,
        timed_on=images,
        measured_at=now().isoformat(timespec="seconds"),
    )


def _show(evidence: "Evidence", rule: str, word: str) -> None:
    from lungkit.models import verdict

    rows = [verdict.set_row(evidence, of) for of in evidence.sets]
    terminal.table([*rows[0]], [[*row.values()] for row in rows], str(evidence))
    say_each([verdict.FIGURES, *verdict.says(evidence), rule])
    terminal.say(
        "Two administrators sign it on the screen Trials; nothing is promoted by itself."
        if word == verdict.PROMOTE
        else "The version in use stays. The trial is kept on the screen Trials."
    )


# --- shadow


def shadow(
    challenger: Annotated[
        str, typer.Argument(help="NAME@vN: reads what is read from now on; with --off the name of a model")
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="let no version read in the shadow of the one in use")] = False,
    run: Annotated[bool, typer.Option("--run", help="read now what was not read yet")] = False,
    show: Annotated[bool, typer.Option("--show", help="compare each challenger with the version in use")] = False,
    most: Annotated[int | None, typer.Option(min=1, help="images that --run reads at most")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="with --show: one JSON object")] = False,
) -> None:
    """Let a version read what the one in use reads: kept, and never shown with a case.

    The gateway runs it every few minutes. Without a gateway, --run does one pass.
    """
    if sum((bool(challenger), run, show)) != 1 or (off and not challenger):
        raise LungkitError("give one of: NAME@vN, NAME --off, --run, --show")
    from lungkit.clinic.learning import shadow as learning
    from lungkit.clinic.records import trial_actions

    with clinic.records() as store:
        if challenger:
            model, _, version = challenger.partition("@")
            if not off and not version:
                raise LungkitError(f"{challenger} names no version; give {challenger}@vN, or --off")
            with store.write() as db:
                trial_actions.set_challenger(db, None, model, None if off else version)
            terminal.say(
                f"no version reads in the shadow of {model} now"
                if off
                else f"{challenger} reads in the shadow what the version in use reads from now on"
            )
        elif run:
            passes = learning.run(store, most, show=True)
            for one in passes:
                terminal.say(learning.says(one))
            if not passes:
                terminal.say("no version reads in the shadow; name one with `lungkit learn shadow NAME@vN`")
        else:
            with store.read() as db:
                found = learning.comparisons(db)
            _show_shadows(found, as_json)


def _show_shadows(found: "list[Compared]", as_json: bool) -> None:
    from lungkit.clinic.learning import shadow as learning

    if as_json:
        typer.echo(json.dumps({"challengers": [learning.to_dict(one) for one in found]}))
        return
    if not found:
        terminal.say("no version reads in the shadow")
    for one in found:
        terminal.table(("", ""), learning.rows(one), f"{one.model}@{one.version} in the shadow", prose=[""])
