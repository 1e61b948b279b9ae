"""What the report of a run contains, in the order of a paper; lungkit.study.html, docx and latex write it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from lungkit.models import card_text, population
from lungkit.models.card import Measured
from lungkit.study import limits, method, plan_text
from lungkit.study.document import (
    Block,
    Bullets,
    Document,
    Failure,
    Figure,
    Link,
    Paragraph,
    Ref,
    Section,
    Strong,
    Table,
    Text,
)
from lungkit.study.material import PLAN, SCORE, Material, Notebook
from lungkit.training.exhibits import FIGURES, Exhibit
from lungkit.wording import count, listed, percent, plain

ROWS = 25  # of a notebook's table; its CSV has all
_DATA, _PREPARED, _TEST = "01", "02", "04"  # notebooks with a place of their own in the report
_OWN = {"01_findings": "audit", "04_metrics": "figures", "04_confusion": "confusion"}  # a notebook's for one made here
_LEFT_OUT = (
    "01_split",
    "02_split",
    "03_history",
)  # stated by Table 1, and drawn as a figure; their CSV files are there
AUTHOR = "The author must state this."


def body(material: Material) -> tuple[Section, ...]:
    """Every section but the appendices."""
    sections = (
        Section("question", "Question", tuple(_question(material))),
        Section("data", "Data", (*_data(material), *_exhibits(material, _DATA))),
        _method(material),
        Section("results", "Results", tuple(_results(material)), tuple(_by_notebook(material))),
        Section("limits", "Limits", (Bullets(tuple((one,) for one in limits.limits(material))),)),
        Section("reproduction", "Reproduction", tuple(_reproduction(material))),
        Section("declarations", "Declarations", (_declarations(material),)),
    )
    return tuple(section for section in sections if not section.empty)


def document(material: Material, sections: tuple[Section, ...], appendices: tuple[Section, ...]) -> Document:
    """The report itself."""
    record = material.record
    question = card_text.question(material.card) if material.card else f"Run on {material.source}"
    when = _day(record.started)
    subtitle = f"Run on {material.source}, {when}. Research use only; not a medical device."
    return Document(question, subtitle, record.started, material.folder, sections, appendices)


def _day(text: str) -> str:
    """ "30 November 2026, 13:09"; the text itself if it is no time."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{at.day} {at:%B %Y, %H:%M}"


# --- question


def _question(material: Material) -> Iterable[Block]:
    for one in material.notebooks:
        if one.stage.status != "done":
            linked: Text = (" ", Link("Its page", one.page), " shows where.") if one.page else ()
            yield Paragraph((Failure(f"Notebook {one.stage.name} stopped: {one.stage.status}."), *linked), lead=True)
    if material.score and material.measured:
        from lungkit.training import sentences  # loads scikit-learn, which a run without a test does not need

        yield Paragraph((f"{sentences.headline(material.score)}.",), lead=True)
    if material.plan is not None:
        yield from _became(material.plan)
    if card := material.card:
        question = card_text.question(card).rstrip("?")
        answers = listed(card.classes, "or")
        yield Paragraph((f"The study asks: {question}? The model, {material.version}, answers with {answers}.",))
    yield Paragraph(_planned(material))
    if material.notebooks:
        yield Paragraph(("The notebooks of the run, each with its question:",))
        yield Bullets(
            tuple((Strong(one.title), f": {one.question}" if one.question else "") for one in material.notebooks)
        )


def _became(plan: Mapping[str, Any]) -> Iterable[Block]:
    """The plan's verdict for a hurried reader; below it, how the study deviates, and how often the test was read."""
    said, *more = plan_text.became(plan)
    yield Paragraph((said,), lead=True)
    found = plan_text.deviations(plan)
    if more and len(found) > 1:
        yield Paragraph(("Deviations:",))
        yield Bullets(tuple((one,) for one in found))
        more = more[1:]
    if more:
        yield Paragraph((" ".join(more),))


def _planned(material: Material) -> Text:
    if PLAN in material.unread:
        return (f"The run has a {PLAN} that cannot be trusted (see Limits), so nothing is said of a plan.",)
    if material.plan is None:
        return (plan_text.NO_PLAN,) if material.score else ("The run has no plan.",)
    return (plan_text.says(material.plan),)


# --- data


def _data(material: Material) -> Iterable[Block]:
    card, data = material.card, material.data
    if data is None and card is None:
        yield Paragraph((f"The data set is {material.source}. No manifest of it is on this machine.",))
    if card:
        about = card.about
        stated = {
            "Population": about and about.population,
            "Ages": about and about.ages and population.ages_words(about.ages),
            "Licence": about and about.licence,
        }
        known = "".join(f" {label}: {value}." for label, value in stated.items() if value)
        unknown = [label.lower() for label, value in stated.items() if not value]
        not_stated = f" The card does not state the {listed(unknown, 'or')}." if unknown else ""
        sources = f" Sources: {'; '.join(card.data.sources)}." if card.data.sources else ""
        yield Paragraph((f"The model learned from {card_text.learned_from(card)}.{sources}{known}{not_stated}",))
    yield from _counts(material)
    yield Paragraph(_left_out(material))
    yield from _audit(material)
    if material.described:
        name, text = material.described
        lines = (re.sub(r"[#*`]|^- ", "", line).strip() for line in text.splitlines() if "|" not in line)
        quoted = " ".join(filter(None, lines))
        yield Paragraph((f"The data set's own {name} says: “{quoted}”",))


def _counts(material: Material) -> Iterable[Block]:
    """Images and patients of each class in each part; from the card alone where there is no manifest."""
    data, card = material.data, material.card
    caption = "Images of each class in each part of the split; patients in brackets"
    if data is not None:
        summary = data.summary()
        columns = [*data.classes, "all"]
        rows = [
            (
                card_text.SPLITS.get(str(side), str(side).replace("_", " ")).capitalize(),
                *(_counted(of, c) for c in columns),
            )
            for side, of in summary.iterrows()
        ]
        head = ("Part", *data.classes, "All")
        yield Table("counts", f"{data.name}. {caption}", head, tuple(_texts(row) for row in rows))
        if len(data.source_names) > 1:
            by = data.by_source()
            rows = [(str(source), *(_counted(of, c) for c in columns)) for source, of in by.iterrows()]
            head = ("Source", *data.classes, "All")
            yield Table("sources", "Images of each class from each source; patients in brackets", head,
                        tuple(_texts(row) for row in rows))  # fmt: skip
    elif card and card.data.counts:
        rows = [
            (card_text.SPLITS.get(side, side).capitalize(), f"{of.images:,}", f"{of.patients:,}")
            for side, of in card.data.counts.items()
        ]
        yield Table("counts", f"{card.data.name}, as its model's card counts it", ("Part", "Images", "Patients"),
                    tuple(_texts(row) for row in rows))  # fmt: skip


def _counted(row: "pd.Series[Any]", column: str) -> str:
    return f"{row[column, 'images']:,} ({row[column, 'patients']:,})"


def _left_out(material: Material) -> Text:
    if material.data is None:
        return ("What was left out of the data set is not known without its manifest.",)
    data = material.data
    sides = data.manifest["split"].value_counts()
    refused, aside = int(sides.get("refused", 0)), int(sides.get("set_aside", 0))
    said = [
        f"{count(refused, 'image')} could not be read and {'was' if refused == 1 else 'were'} left out."
        if refused
        else "All images could be read.",
        f"{count(aside, 'image')} {'was' if aside == 1 else 'were'} set aside: the patient is also in another part."
        if aside
        else "",
        *(str(one) for one in data.notes),
    ]
    return (" ".join(filter(None, said)),)


def _audit(material: Material) -> Iterable[Block]:
    findings = material.findings
    if findings is None:
        yield Paragraph(("The data set was not audited in this run (notebook 01).",))
        return
    found = findings[findings["count"] > 0]
    kinds = found["severity"].value_counts()
    said = listed([f"{count(int(kinds.get(kind, 0)), kind)}" for kind in ("error", "warning")], "and")
    yield Paragraph((f"The audit made {count(len(findings), 'check')} and found {said}.",))
    if len(found) and "audit" not in _replaced(material):
        rows = tuple(
            _texts((row["finding"], row["severity"], f"{row['count']:,}", _share(row["share"]), row["meaning"]))
            for row in found.to_dict("records")
        )
        head = ("Finding", "Severity", "Count", "Share", "Meaning")
        yield Table(
            "audit", "What the audit of the data set found", head, rows, material.folder / "audit.csv", wide=(4,)
        )


def _share(share: float) -> str:
    """ "12.5 %"; a dash where the audit gives none."""
    return "–" if pd.isna(share) else f"{100 * share:.1f} %"


# --- method and results


def _method(material: Material) -> Section:
    """The method; the figures of notebook 02 stand with the preprocessing."""
    parts = list(method.sections(material))
    shown = tuple(_exhibits(material, _PREPARED))
    at = next((place for place, part in enumerate(parts) if part.name == "preprocessing"), None)
    if at is not None:
        parts[at] = Section("preprocessing", parts[at].title, (*parts[at].blocks, *shown))
    elif shown:
        parts.insert(0, Section("preprocessing", "Preprocessing", shown))
    return Section("method", "Method", (), tuple(parts))


def _results(material: Material) -> Iterable[Block]:
    if material.measured is None:
        unread = f"The figures of the test are in {SCORE}, which cannot be read (see Limits)."
        yield Paragraph((unread if SCORE in material.unread else "No model was tested in this run.",))


def _by_notebook(material: Material) -> Iterable[Section]:
    shown = {one.notebook for one in (*material.figures, *material.tables)} - {_DATA, _PREPARED}
    titles = {one.number: one for one in material.notebooks if one.number not in (_DATA, _PREPARED)}
    numbers = sorted({*shown, *titles} | ({_TEST} if material.measured else set()), key=lambda one: (one == "", one))
    for number in numbers:
        blocks: list[Block] = list(_test(material)) if number == _TEST else []
        blocks += _exhibits(material, number)
        one = titles.get(number)
        intro = (Paragraph(_asked(one)),) if one and one.question else ()
        if blocks:
            yield Section(f"notebook-{number or 'more'}", one.title if one else f"Notebook {number}", (*intro, *blocks))


def _asked(one: Notebook) -> Text:
    linked = (" ", Link(f"Notebook {one.number}", one.page), " shows every step.") if one.page else ()
    return (one.question, *linked)


def _test(material: Material) -> Iterable[Block]:
    """The figures of the test, from evaluation.json."""
    score, measured = material.score, material.measured
    if not score or not measured:
        return
    scope = str(score.get("scope", "")).rstrip(".")
    yield Paragraph((f"Scored: {scope or measured.counts}. In brackets: 95 % intervals by patient.",))
    replaced = _replaced(material)
    if "figures" not in replaced:
        yield from figures_tables(measured, material.folder / "metrics.csv")
    if measured.confusion and measured.classes and "confusion" not in replaced:
        rows = tuple(
            _texts((name, *(f"{n:,}" for n in row)))
            for name, row in zip(measured.classes, measured.confusion, strict=True)
        )
        head = ("True class", *(f"Answer: {name}" for name in measured.classes))
        yield Table("confusion", "Images of each true class by the model's answer", head, rows,
                    _if_there(material.folder / "confusion.csv"))  # fmt: skip
    review = score.get("review") or {}
    if review.get("share") is not None:
        held = f", with {percent(review['errors_held'])} of the errors" if review.get("errors_held") is not None else ""
        yield Paragraph((f"{percent(review['share'])} of the images are left to a person as uncertain{held}.",))


def figures_tables(measured: Measured, file: Path | None = None) -> Iterable[Table]:
    """Two tables of a test: over all images, and class by class."""
    classes = measured.classes
    known = [name for name in card_text.METRICS if name in measured.figures]  # the record also has times
    overall = [(card_text.metric_name(name, classes), str(measured.figures[name])) for name in known]
    if measured.largest_class:
        share = f"{measured.largest_class['share']:.3f}"
        overall.append((f"Accuracy of always answering '{measured.largest_class['class']}'", share))
    there = _if_there(file)
    yield Table("figures", f"Figures over all images: {measured.counts}", ("Metric", "Value (95 % interval)"),
                tuple(map(_texts, overall)), there)  # fmt: skip
    if measured.by_class:
        metrics = list(next(iter(measured.by_class.values())))
        head = ("Metric", *(f"{name} (n = {measured.support[name]:,})" if name in measured.support else name
                            for name in measured.by_class))  # fmt: skip
        rows = tuple(
            _texts((card_text.metric_name(metric), *(str(of[metric]) for of in measured.by_class.values())))
            for metric in metrics
        )
        yield Table("by-class", "Figures of each class against all others", head, rows, there)


def _if_there(file: Path | None) -> Path | None:
    return file if file and file.is_file() else None


# --- what notebooks kept


def _replaced(material: Material) -> set[str]:
    """The tables that would be made here, and that a notebook kept itself."""
    return {_OWN[one.name] for one in material.tables if one.name in _OWN}


def _exhibits(material: Material, number: str) -> Iterable[Block]:
    """A notebook's tables, then its figures."""
    for one in material.tables:
        if one.notebook == number and one.name not in _LEFT_OUT and (table := _kept_table(material, one)):
            yield table
    for one in material.figures:
        if one.notebook == number:
            yield Figure(one.name, caption_of(one), material.folder / FIGURES / one.name)


def caption_of(one: Exhibit) -> str:
    """Its caption; from its name where the notebook gave none."""
    return one.caption.strip() or one.name.partition("_")[2].replace("_", " ").capitalize() or one.name


def _kept_table(material: Material, one: Exhibit) -> Block | None:
    """A notebook's table, its first rows where it is long."""
    file = material.folder / "tables" / f"{one.name}.csv"
    try:
        frame = pd.read_csv(file, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:
        return Paragraph((Failure(f"The table {one.name} cannot be read: {error}"),))
    if frame.empty:
        return Paragraph((f"{caption_of(one).rstrip('.')}: no row.",))
    head = tuple("" if str(name).startswith("Unnamed:") else str(name).replace("_", " ") for name in frame.columns)
    shown = tuple(_texts(map(_rounded, row)) for row in frame.head(ROWS).itertuples(index=False, name=None))
    note = f"The first {ROWS} of {len(frame):,} rows; the CSV file has all." if len(frame) > ROWS else ""
    lengths = [max(len(str(value)) for value in frame[name].head(ROWS)) for name in frame.columns]
    wide = tuple(place for place, length in enumerate(lengths) if length > 40)
    return Table(one.name, caption_of(one), head, shown, file, note, wide)


def _rounded(text: str) -> str:
    """A number with many digits with four of them; any other text as it is."""
    digits = text.replace(".", "").replace("-", "").replace("e", "")
    if "." not in text or not digits.isdigit() or len(digits) < 6:
        return text
    try:
        return f"{float(text):.4g}".replace("-", "−")
    except ValueError:
        return text


def _texts(cells: Iterable[Any]) -> tuple[Text, ...]:
    return tuple((str(cell),) for cell in cells)


# --- reproduction


def _reproduction(material: Material) -> Iterable[Block]:
    record = material.record
    yield Table("notebooks", "Notebooks of the run", ("Notebook", "Time", "Result"),
                tuple(_stage_row(one) for one in material.notebooks), wide=(2,))  # fmt: skip
    yield Table(
        "environment", "What the run was made with", ("What", "Value"), tuple(_environment(material)), wide=(1,)
    )
    if parameters := {key: value for key, value in record.parameters.items() if key != "report"}:
        shown = parameters | ({"data": material.source} if "data" in parameters else {})
        rows = tuple(_texts((key, plain(value))) for key, value in shown.items())
        caption = "Parameters that the command gave; all others are the notebooks' own"
        yield Table("parameters", caption, ("Parameter", "Value"), rows, wide=(1,))
    kept = sorted(file.name for file in material.folder.glob("*.csv"))
    if kept:
        links = [part for name in kept for part in (Link(name, name), ", ")][:-1]
        yield Paragraph(("Data of the run, as CSV files: ", *links, "."))


def _stage_row(one: Notebook) -> tuple[Text, ...]:
    stage = one.stage
    name: Text = (Link(stage.name, one.page),) if one.page else (stage.name,)
    status: Text = (stage.status,) if stage.status == "done" else (Failure(stage.status),)
    return name, (f"{stage.seconds:.0f} s",), status


def _environment(material: Material) -> Iterable[tuple[Text, ...]]:
    environment, code = material.record.environment, material.record.code
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    changed = {True: "; files were changed since", False: "; no file was changed since", None: ""}[code.get("changed")]
    rows = {
        "lungkit": code.get("lungkit"),
        "Commit of the code": f"{code['commit']}{changed}" if code.get("commit") else None,
        "Packages": packages,
        "Python": environment.get("python"),
        "System": environment.get("system"),
        "Processor": f"{environment.get('processor') or 'not known'}, {count(environment.get('cores') or 0, 'core')}",
        "Memory": f"{environment['memory_gib']} GiB" if "memory_gib" in environment else None,
        "Seed": material.parameter("seed"),
        "Started": material.record.started,
        "Model": material.version,
        "Data fingerprint": material.card.data.fingerprint
        if material.card
        else material.data and material.data.fingerprint,
    }
    return (_texts((label, "not known" if value in (None, "") else value)) for label, value in rows.items())


def _declarations(material: Material) -> Bullets:
    """What a paper needs and a program cannot know."""
    asked = ("Ethics approval and consent", "Funding", "Competing interests", "Author contributions",
             "Availability of the data")  # fmt: skip
    code = material.record.code
    commit = f", commit {code['commit']}" if code.get("commit") else ""
    given = (Strong("Availability of the code"), f": lungkit {code.get('lungkit')}{commit}, Apache License 2.0.")
    return Bullets((*((Strong(one), f": {AUTHOR}") for one in asked), given))


def where(names: Sequence[Ref], *wanted: Ref) -> Text:
    """Mentions of those of the wanted figures, tables and sections that the report has: "Section 2, Table 1".

    names: what the report has, in its order. Sections, tables and figures come in the order in which the kinds are
    wanted; those of a kind come in the order of their numbers.
    """
    kinds = [one.kind for one in wanted]
    found = sorted({one for one in wanted if one in names}, key=lambda one: (kinds.index(one.kind), names.index(one)))
    there = [part for one in found for part in (one, ", ")]
    return tuple(there[:-1])
