"""What a card says, for people: rows of label and value from which every surface draws.

The terminal, the README next to a card, notebooks, the report and the clinic's screens lay the same rows out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lungkit.models import population
from lungkit.models.card import GRADED, Figure, Measured, ModelCard, Outside, Quantization
from lungkit.models.class_names import class_names
from lungkit.models.rule import DecisionRule
from lungkit.wording import count, listed, percent, plain

METRICS = {
    # Of grades; {0}, {1}, {2}: the names of the lowest three.
    "kappa": "Quadratic kappa",
    "kappa_without_second": "Quadratic kappa without {1}",
    "grades_off": "Mean error in grades",
    "auc_first_third": "AUC, {0} against {2} and above",
    "auc_first_second": "AUC, {0} against {1}",
    "auc_second_third": "AUC, {1} against {2} and above",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auc": "AUC",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
    "recall": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "average_precision": "Average precision",
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}  # of a data set, as people call them
SYNTHETIC = (
    "This model learned from computer-made images (a phantom). Its figures say how well the software works, and "
    "nothing about patients."
)
NO_FINDING = "The model knows such images only. Another age, scanner or hospital can change its figures unnoticed."
_SUBJECTS = {"CT": "chest CT", "X-ray": "chest X-rays", "MRI": "brain MRI"}
_TOLD = ("ages", "views", "body_part")  # in words of their own
_VIEWS = {
    **dict.fromkeys(("PA", "AP"), "frontal"),
    **dict.fromkeys(("LL", "RL", "LATERAL"), "lateral"),
}
_QUESTIONS = {"CT": "Chest CT", "X-ray": "Chest X-ray", "MRI": "Brain MRI"}

Row = tuple[str, str]  # label and value


def metric_name(metric: str, classes: tuple[str, ...] | None = None) -> str:
    """What people call a metric of these classes: "Quadratic kappa without CT-1"."""
    name = METRICS.get(metric, metric.replace("_", " "))
    grades = classes if classes and len(classes) > 2 else ("the first grade", "the second grade", "the third grade")
    return name.format(*grades) if metric in GRADED else name


def question(card: ModelCard) -> str:
    """What the model answers: "Chest X-ray: normal or pneumonia?"."""
    stated = card.about.question if card.about else None
    return stated or f"{_QUESTIONS.get(card.modality, 'Chest image')}: {', '.join(class_names(card.classes))}?"


def what_was_read(card: ModelCard | None, kind: str, view: str = "", slices: int | None = None) -> str:
    """The heading of a reading: "Chest X-ray, frontal: normal or pneumonia?"; nothing that names the patient.

    card: of the version that read; None if it is no longer in the registry. kind: of the image, as the records name
    it. view: as its file states it; one that is not known is left out. slices: of a CT series.
    """
    asked_of, _, asked = question(card).rpartition(":") if card else ("", "", "")
    shown = asked_of or {"CT": "CT image", "X-ray": "X-ray image"}.get(kind, "Image")
    if slices:
        shown = f"{shown.removesuffix(' slice').removesuffix(' image')} series, {count(slices, 'slice')}"
    elif view := _VIEWS.get(view.upper(), ""):
        shown = f"{shown}, {view}"
    return f"{shown}: {asked.strip()}" if asked else f"{shown}."


def subject(card: ModelCard) -> str:
    """What its images show: "chest X-rays"."""
    return _SUBJECTS.get(card.modality, "chest images")


def learned_from(card: ModelCard) -> str:
    """Whose images a version was trained on: "children: 2,792 X-ray images of 1,576 patients"."""
    kind = f"{card.modality} " if card.modality in _SUBJECTS else ""
    trained, what = card.data.counts.get("train"), f"{kind}images"
    if trained:
        what = f"{trained.images:,} {kind}images of {trained.patients:,} patients"
    synthetic = ". Synthetic images, not of patients" if card.synthetic else ""
    return f"{(card.about and card.about.population) or card.data.name}: {what}{synthetic}"


def registered(card: ModelCard) -> str:
    """When, and by which lungkit: "9 Mar 2026, 14:05 UTC by lungkit 0.2.0"."""
    try:
        at = datetime.fromisoformat(card.created or "")
    except ValueError:
        return "not stated"
    return f"{at.day} {at:%b %Y, %H:%M} UTC by lungkit {card.lungkit or '(version not stated)'}"


def became(card: ModelCard) -> str:
    """Whether the version became active when it was registered, and why."""
    if card.standing is None:
        return "not stated"
    return f"{'active' if card.standing.active else 'not active'}: {card.standing.reason}"


def rule_rows(rule: DecisionRule, classes: tuple[str, ...]) -> list[Row]:
    """How probabilities become an answer."""
    last, band, conformal = classes[-1], rule.band, rule.conformal
    rows = [("Operating point", "The likeliest class is the answer")]
    if rule.grades:
        return _grade_rows(rule, classes)
    if rule.threshold is not None:
        rows = [("Operating point", f"{last} is the answer from {percent(rule.threshold)} on")]
    if rule.criterion:
        rows.append(("Chosen by", f"{rule.criterion} on {rule.chosen_on}"))
    if band and band.ends:
        low, high = map(percent, band.ends)
        rows.append(("Band of uncertainty", f"{low} to {high} for {last}"))
    elif band and band.times:
        rows.append(("Band of uncertainty", f"less than {band.times:.1f} times as likely as the next, or under 50 %"))
    if conformal:
        least, level = percent(conformal.least), percent(conformal.level)
        rows.append(
            ("Prediction sets", f"name each class from {least} on; made to hold the true one {level} of the time")
        )
    if rule.temperature is not None:
        rows.append(("Temperature", plain(rule.temperature)))
    return rows


def _grade_rows(rule: DecisionRule, classes: tuple[str, ...]) -> list[Row]:
    """How the probabilities of grades become a range of them."""
    rows = [("Operating point", "The middle grade, at which half of the probability is reached")]
    if rule.conformal:
        least, level = percent(rule.conformal.least), percent(rule.conformal.level)
        words = f"the middle grade and its neighbours until they sum to {least}"
        rows.append(("Range", f"{words}; made to hold the true one {level} of the time"))
    if rule.grades:
        meant = [f"{name}: {rule.grades.extent(i, i)}" for i, name in enumerate(classes)]
        rows += [("Grades", "; ".join(meant)), ("Caution", rule.grades.caution)]
    if rule.temperature is not None:
        rows.append(("Temperature", plain(rule.temperature)))
    return rows


def sections(card: ModelCard) -> dict[str, list[Row]]:
    """Everything on a card but its figures, its sentences on trust and its files: title to rows."""
    about = card.about.to_dict() if card.about else {}
    counts = {name: f"{of.images:,} images of {of.patients:,} patients" for name, of in card.data.counts.items()}
    return {
        "On sources that it has not seen": [(one.source, _outside_text(one)) for one in card.worst_first],
        "What it is": [
            ("Question", question(card)),
            ("Answers one of", ", ".join(card.classes)),
            ("Worst unseen source", worst_unseen(card)),
            ("Learned from", learned_from(card)),
            ("Registered", registered(card)),
            ("When registered", became(card)),
        ],
        "Each source alone": [
            (f"{SPLITS.get(split, split).capitalize()}: {source}", _figures_text(of))
            for split, measured in card.metrics.items()
            for source, of in (measured.sources or {}).items()
        ],
        "Data and population": [
            *_labelled({name: value for name, value in about.items() if name not in ("question", *_TOLD)}),
            *_told(card),
            ("Data set", card.data.name),
            ("Data fingerprint", card.data.fingerprint or "not stated"),
            *([("Sources", "; ".join(card.data.sources))] if card.data.sources else []),
            *((SPLITS.get(name, name).capitalize(), text) for name, text in counts.items()),
            *_labelled(card.data.recipe),
            *_labelled(card.data.extra),
        ],
        "Preprocessing": _labelled(card.preprocessing.to_dict()),
        "Decision rule": rule_rows(card.rule, card.classes),
        "Input checks": _labelled(card.checks.to_dict() if card.checks else {}),
        "Training": _labelled({**(card.architecture or {}), **(card.training or {})}),
        "Exported graph": _labelled(card.graph or {}),
        "8 bits": _eight_bits(card.int8) if card.int8 else [],
        "More": _labelled(card.extra),
    }


def _told(card: ModelCard) -> list[Row]:
    """Of whom and of what the images are, as far as the card states it; images of others are no decision."""
    about = card.about
    rows = [
        ("Ages", population.ages_words(about.ages) if about and about.ages else ""),
        ("Views", population.views_words(about.views) if about and about.views else ""),
        ("Body part", (about and about.body_part) or ""),
        ("Modality", card.modality if card.modality in _SUBJECTS else ""),
    ]
    return [(name, words) for name, words in rows if words]


def _figures_text(measured: Measured) -> str:
    """The figures that compare sources, in one line."""
    largest = measured.largest_class
    always = f" (always '{largest['class']}': {Figure(largest['share'])})" if largest else ""
    graded = f"quadratic kappa {measured.figure('kappa')}, " if "kappa" in measured.figures else ""
    return (
        f"{graded}AUC {measured.figure('auc')}, accuracy {measured.figure('accuracy')}{always}, "
        f"ECE {measured.figure('ece')}; {measured.counts}"
    )


def _outside_text(one: Outside) -> str:
    row = outside_row(one)
    labels = "; ".join(f"{label} as {name}" for label, name in one.labels.items())
    more = [
        f"Read {labels}" if labels else "",
        f"Left out: {row['left out']}" if row["left out"] else "",
        "The source was left out of a training like this one" if one.left_out else f"Scored {row['scored']}",
    ]
    return ". ".join(filter(None, [_figures_text(one.measured), *more]))


def worst_unseen(card: ModelCard) -> str:
    """The figures on the source with the lowest AUC of those that a version has not seen."""
    if not card.outside:
        return "not measured"
    worst = card.worst_first[0]
    how = ", left out of a training like this one" if worst.left_out else ""
    return f"{worst.source}: AUC {worst.measured.figure('auc')}, {worst.measured.counts}{how}"


def outside_row(one: Outside) -> dict[str, str]:
    """What a version is worth on a source that it has not seen, in one row of a table."""
    times = one.measured.times_scored or 1
    left_out = {
        "by label": one.omitted,
        "of another modality": one.other_modality,
        "seen in training": one.seen,
        "unreadable": one.unreadable,
    }
    scored = "once" if times == 1 else f"{times} times"
    return source_row(one.source, one.measured) | {
        "left out": ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count),
        "scored": "left out of a training like this one" if one.left_out else scored,
    }


def source_row(source: str, measured: Measured) -> dict[str, str]:
    """The figures that compare sources, in one row of a table."""
    largest = measured.largest_class
    return {
        "source": source,
        "AUC": str(measured.figure("auc")),
        "accuracy": str(measured.figure("accuracy")),
        "largest class": f"{Figure(largest['share'])} {largest['class']}" if largest else "",
        "ECE": str(measured.figure("ece")),
        "images": f"{measured.n or 0:,}",
        "patients": f"{measured.patients or 0:,}",
    }


def outside_rows(name: str, card: ModelCard) -> list[dict[str, str]]:
    """A model on every source that it has not seen, the lowest AUC first; name: "MODEL@vN"."""
    return [{"model": name} | outside_row(one) for one in card.worst_first]


def _eight_bits(tried: Quantization) -> list[Row]:
    """Whether the graph is in 8 bits, and what that changed."""
    before, after = tried.float32, tried.int8
    return [
        ("The graph computes in", f"{'8 bits' if tried.kept else 'float32, not in 8 bits'}: {tried.reason}"),
        ("AUC on validation in float32", str(Figure(before.auc, before.interval))),
        ("AUC on validation in 8 bits", str(Figure(after.auc, after.interval))),
        (
            "Processor time of an image",
            f"{before.milliseconds:.1f} ms in float32, {after.milliseconds:.1f} ms in 8 bits "
            f"({before.milliseconds / after.milliseconds:.1f} times as fast)",
        ),
        ("Left in float32", tried.in_float32),
        ("Ranges of the feature maps from", f"{tried.images} training images, none of validation or test"),
        ("Made by", tried.tool),
    ]


def trust(card: ModelCard) -> list[str]:
    """What probes found, in their sentences."""
    return list((card.trust or {}).get("says", []))


def files(card: ModelCard) -> list[Row]:
    """Each file with its size and hash."""
    return [(name, f"{of.bytes:,} bytes, SHA-256 {of.sha256}") for name, of in card.files.items()]


def _labelled(values: Mapping[str, Any]) -> list[Row]:
    return [(key.replace("_", " ").capitalize(), plain(value)) for key, value in values.items()]


# --- figures


@dataclass(frozen=True)
class FiguresTable:
    """What was measured on one split: a row for each metric, a column for all images and for each class."""

    title: str  # "Test: 200 images of 80 patients"
    columns: tuple[str, ...]  # "All" and the classes
    rows: tuple[tuple[str, tuple[str, ...]], ...]  # label, and a text for each column; empty where not measured


def figures_table(split: str, measured: Measured) -> FiguresTable:
    """The table of a split, with the accuracy of always answering the largest class below the model's."""
    names = [*measured.figures, *(name for of in measured.by_class.values() for name in of)]
    known = [name for name in METRICS if name in names]
    rows = []
    for name in [*known, *(name for name in dict.fromkeys(names) if name not in METRICS)]:
        of_classes = (_text(of.get(name)) for of in measured.by_class.values())
        rows.append((metric_name(name, measured.classes), (_text(measured.figures.get(name)), *of_classes)))
        if name == "accuracy" and measured.largest_class:
            largest = measured.largest_class
            constant = (str(Figure(largest["share"])), *[""] * len(measured.by_class))
            rows.append((f"Always answering '{largest['class']}'", constant))
    if measured.conformal and "kappa" in measured.figures:
        sets = measured.conformal
        held = f"{Figure(sets.coverage, sets.interval)}; {sets.classes_named:.2f} grades in it"
        rows.append(("True grade in the range", (held, *[""] * len(measured.by_class))))
    if measured.support:
        rows.append(("Images", (str(measured.n or ""), *(str(measured.support.get(c, "")) for c in measured.by_class))))
    title = f"{SPLITS.get(split, split).capitalize()}: {measured.counts or 'number of images not stated'}"
    return FiguresTable(title, ("All", *measured.by_class), tuple(rows))


def _text(figure: Figure | None) -> str:
    return "" if figure is None else str(figure)


def reported_on(card: ModelCard) -> str:
    """Where the figures that count come from: "test", "validation only", "4 folds by patient or group"."""
    split, _ = card.reported
    return "validation only" if split == "val" else SPLITS.get(split, split)


def summary_row(name: str, card: ModelCard, size: int) -> dict[str, str]:
    """A model in one row of a table; name: "MODEL@vN", size: of its files, in bytes."""
    _, measured = card.reported
    sets = measured.conformal or (card.metrics["test"].conformal if "test" in card.metrics else None)
    seconds = (card.training or {}).get("seconds")
    ece = card.metrics["val"].figure("ece").value if "val" in card.metrics else None
    graded = f"; quadratic kappa {measured.figure('kappa')}" if "kappa" in measured.figures else ""
    return {
        "model": f"{name}{' (synthetic)' if card.synthetic else ''}",
        "worst unseen source": worst_unseen(card),
        "reported on": ": ".join(filter(None, (reported_on(card), measured.counts))),
        "AUC": str(measured.figure("auc")),
        "accuracy": str(measured.figure("accuracy")),
        "macro F1": f"{measured.figure('macro_f1')}{graded}",
        "ECE": str(measured.figure("ece")),
        "ECE, validation": str(Figure(ece)),
        "90 % sets": f"{Figure(sets.coverage, sets.interval)}, {sets.classes_named:.2f} classes" if sets else "–",
        "MB": f"{size / 1e6:.1f}",
        "training": "–" if seconds is None else f"{seconds / 60:.0f} min",
    }


# --- Markdown


def markdown(card: ModelCard) -> str:
    """The card as README.md, in the order of Mitchell et al., "Model Cards for Model Reporting" (2019)."""
    ref = f"{card.model}@{card.version}"
    parts = sections(card)
    told = "".join(f"\n## {title}\n\n{_bullets(rows)}\n" for title, rows in parts.items() if rows and title != "More")
    says = trust(card)
    return f"""# {ref}

{question(card)} Answers with {listed(card.classes, "or")}.
{f"{chr(10)}> **Synthetic data.** {SYNTHETIC}{chr(10)}" if card.synthetic else ""}
## Intended use

Research only. Not a medical device: not for diagnosis, triage or any decision about a patient.
{told}
## Metrics

In brackets: 95 % interval by patient. An accuracy has to beat that of always answering the largest class.

{"".join(_markdown_table(figures_table(*of)) for of in card.metrics.items()) or "Not measured."}
{f"## Trust{chr(10)}{chr(10)}{_bulleted(says)}{chr(10)}" if says else ""}
## Limits

- {NO_FINDING}
- The network itself answers with one of {len(card.classes)} classes, also for an image of something else. The
  clinic's input checks flag most such images, not all, and it says "uncertain: review" near the operating point.
- Classes were labelled by the source of the data; errors there are learned and measured as if true.
- Intervals cover the chance of having drawn these patients, not a different hospital.
{f"{chr(10)}## More{chr(10)}{chr(10)}{_bullets(parts['More'])}{chr(10)}" if parts["More"] else ""}
## Files

{_bullets(files(card))}

`sha256sum -c SHA256SUMS` in this folder checks all files, this one included. The hashes show damage and careless edits;
they are no protection from someone who can rewrite them too.

## Loading it

```python
from lungkit.models import registry

version = registry.find("{ref}")
registry.verify(version)  # raises ModelDamaged if a file is not the registered one
version.folder, version.card.classes, version.card.preprocessing
```
"""


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *map(list, rows)])


def _markdown_table(table: FiguresTable) -> str:
    rows = ((label, *cells) for label, cells in table.rows)
    return f"**{table.title}**\n\n{markdown_table(('metric', *table.columns), rows)}\n"


def _bullets(rows: Iterable[Row]) -> str:
    return _bulleted(f"{label}: {value}" for label, value in rows)


def _bulleted(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
