"""A datasheet of the data of a run, in the groups of questions of Gebru et al. (CACM 2021), and Croissant 1.0.

What the manifest, the model's card and the data set's own description say is filled in; the rest is the author's.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from lungkit.data import croissant
from lungkit.data.dataset import Dataset
from lungkit.models.card import About
from lungkit.study import limits
from lungkit.study.content import AUTHOR
from lungkit.study.document import Cite, Document, Failure, Paragraph, Section, Table, Text
from lungkit.study.material import Material
from lungkit.wording import count

COLUMNS = {
    "file": "The image, below the data set's folder",
    "label": "The class",
    "patient_id": "The patient's identifier in the data set; image-…: not known",
    "split": "train, val or test; set_aside: another part has the patient; refused: not readable",
    "sha256": "Of the image file",
    "source": "Where the image comes from",
    "width": "Pixels",
    "height": "Pixels",
    "modality": "As the file or the data set says",
}
BEYOND = "images beyond the limit"  # the note of lungkit.data.sources on images that a limit left out
MOST_EXAMPLES = 5  # sources that are named
QUOTED = 300  # letters of what a data set says of itself


def appendix(material: Material) -> Section | None:
    """The datasheet as an appendix of the report; None where nothing is known of the data."""
    if material.data is None:
        return None
    rows = tuple(
        ((group,), (asks,), (answer,) if answer else (Failure(AUTHOR),)) for group, asks, answer in answers(material)
    )
    intro: Text = (
        "The groups of questions are those of datasheets for data sets",
        Cite("gebru2021"),
        ", in own words.",
    )
    head = ("Group", "Question", "Answer")
    return Section("datasheet", "Datasheet of the data", (
        Paragraph(intro), Table("datasheet", f"Datasheet of {material.data.name}", head, rows, wide=(1, 2)),
    ))  # fmt: skip


def frame(material: Material) -> pd.DataFrame:
    """Columns group, question, answer."""
    rows = [(group, asks, answer or AUTHOR) for group, asks, answer in answers(material)]
    return pd.DataFrame(rows, columns=["group", "question", "answer"])


def answers(material: Material) -> Iterator[tuple[str, str, str]]:
    """Group, question and answer; an empty answer is the author's to give."""
    data = material.data
    if data is None:
        return
    about = material.card.about if material.card and material.card.about else About()
    described = (
        f"{material.described[0]} of the data set says: {_flat(material.described[1])}" if material.described else ""
    )
    drawn = "A program drew the images (a phantom); no person is in them."
    yield (
        "Motivation",
        "Why was the data set made, by whom, and who paid for it?",
        drawn if data.synthetic else described,
    )
    yield from (("Composition", asks, answer) for asks, answer in _composition(material, data))
    yield "Collection", "How was the data acquired, and over which time?", drawn if data.synthetic else ""
    yield "Collection", "From whom, how were they sampled, and did they consent?", (
        drawn if data.synthetic else about.population or "")  # fmt: skip
    yield (
        "Collection",
        "Did an ethics committee review it?",
        "Not applicable: no person is in it." if data.synthetic else "",
    )
    yield "Preparation", "What was cleaned, changed or labelled?", _prepared(data)
    yield "Preparation", "Is the raw data kept?", "Yes: lungkit never changes source files."
    learned = f"It trained {material.version}." if material.card and material.card.data.name == data.name else ""
    tested = f"It tested {material.version}." if material.score and material.score.get("data") == data.name else ""
    yield "Uses", "What was it used for?", " ".join(filter(None, (learned, tested)))
    yield "Uses", "What should it not be used for?", (
        "Any decision about a patient. It says nothing about people." if data.synthetic else
        "Any decision about a patient; other uses, the author must state.")  # fmt: skip
    yield "Distribution", "Who gets it, how, and under which licence?", about.licence or ""
    yield "Maintenance", "Who maintains it, and how are errors reported?", ""
    yield (
        "Maintenance",
        "Which version is this?",
        f"SHA-256 of classes, files, labels, patients and split: {data.fingerprint}.",
    )


def _composition(material: Material, data: Dataset) -> Iterator[tuple[str, str]]:
    rows = data.manifest
    kinds = ", ".join(
        f"{count(int(n), 'image')} {kind or 'of no stated modality'}"
        for kind, n in rows["modality"].value_counts().items()
    )
    yield (
        "What is an instance, and how many are there?",
        f"An image: {kinds}, of {count(rows['patient_id'].nunique(), 'patient')}.",
    )
    per_class = ", ".join(
        f"{name} {n:,}" for name, n in rows["label"].value_counts().reindex(list(data.classes)).items()
    )
    yield "Is there a label?", f"Yes, the column {data.label_column}: {per_class}."
    yield "Is it all of a larger set?", "Not applicable: it was drawn." if data.synthetic else _sentence(taken(data))
    sizes = f"{rows['width'].min()} × {rows['height'].min()} to {rows['width'].max()} × {rows['height'].max()} pixels"
    yield "What does an instance consist of?", f"Pixels: {sizes}."
    refused = int((rows["split"] == "refused").sum())
    unknown = (
        f"; the patient of {count(material.without_patient, 'image')} is not known" if material.without_patient else ""
    )
    yield "Is information missing?", f"{count(refused, 'image')} cannot be read{unknown}."
    parts = ", ".join(f"{side} {count(int(n), 'image')}" for side, n in rows["split"].value_counts().items())
    yield "Are there recommended parts?", f"Divided by patient: {parts}."
    yield "Are there errors, noise or duplicates?", _duplicates(material)
    names = data.source_names
    more = f" and {len(names) - MOST_EXAMPLES} more" if len(names) > MOST_EXAMPLES else ""
    yield "Which sources does it have?", f"{'; '.join(names[:MOST_EXAMPLES])}{more}."
    yield (
        "Is there confidential data, and can people be identified?",
        "No: no person is in it." if data.synthetic else "",
    )
    yield "Which groups of people does it tell apart?", "None: no person is in it." if data.synthetic else ""


def taken(data: Dataset) -> str:
    """How many images a limit left, as part of a sentence; "" for a set that was drawn, or where there was no limit."""
    limit = data.recipe.get("limit")
    if not limit or data.synthetic:
        return ""
    if any(note.finding == BEYOND for note in data.notes):
        return f"at most {limit:,} images were taken, as whole patients"
    return f"all {count(len(data.manifest), 'image')} were taken"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _duplicates(material: Material) -> str:
    findings = material.findings
    if findings is None:
        return "It was not audited in this run."
    found = findings[findings["count"] > 0]
    listed = "; ".join(limits.found(row["finding"], row["count"]) for row in found.to_dict("records"))
    return f"The audit found: {listed}." if listed else f"The audit made {len(findings)} checks and found nothing."


def _prepared(data: Dataset) -> str:
    notes = " ".join(map(str, data.notes))
    merged = data.recipe.get("merged") or {}
    joined = " ".join(f"{name} is made of {', '.join(labels)}." for name, labels in merged.items())
    return " ".join(filter(None, (joined, notes))) or "Nothing: labels and files are as the data set gives them."


def _flat(text: str) -> str:
    """The begin of a text, on one line."""
    words = " ".join(text.replace("|", " ").replace("#", " ").split())
    return words if len(words) <= QUOTED else f"{words[:QUOTED].rsplit(' ', 1)[0]} …"


# --- Croissant


def images_csv(data: Dataset) -> str:
    """The images of a data set, with the columns COLUMNS."""
    return str(data.manifest[list(COLUMNS)].to_csv(index=False, lineterminator="\n"))


def croissant_of(material: Material, document: Document, file: str, sha256: str) -> dict[str, Any]:
    """JSON-LD of the run's data. file, sha256: of the table that images_csv gave."""
    data, about = material.data, material.card.about if material.card else None
    if data is None:
        raise ValueError("croissant_of needs a data set")
    return croissant.described(
        data.name,
        f"{count(len(data.manifest), 'image')} of {count(data.manifest['patient_id'].nunique(), 'patient')}, "
        f"{', '.join(data.classes)}, with their parts of the split. The images themselves are not in it.",
        licence=(about and about.licence) or "Not stated",
        url="https://example.org/not-published",
        published=document.started[:10],
        creator="; ".join(data.source_names),
        table=croissant.Table(file, sha256, COLUMNS, numbers=("width", "height")),
    )
