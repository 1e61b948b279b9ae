"""What a data set for research says of itself: README.md for people, croissant.json for programs (Croissant 1.0)."""

from collections.abc import Mapping
from typing import Any

import lungkit
from lungkit.data.croissant import Images, Table, described

COLUMNS = {
    "file": "The image, below this folder",
    "label": "The class that the readers gave",
    "patient": "A random identifier that was made for this data set alone",
    "age": "Group of ages in years, at the patient's first image here",
    "sex": "As entered; any: not told",
    "kind": "CT, X-ray, or image where the file did not say",
    "view": "ViewPosition of the header; unknown: it had none, other: not a term of DICOM, any: not told",
    "year": "Of the patient's first image here, or a span of years",
    "readers": "How many people gave a label",
    "answer_shown": "yes: a reader may have seen a model's answer before the label was given",
}


def croissant(name: str, facts: Mapping[str, Any], table_sha256: str) -> dict[str, Any]:
    """The JSON-LD of a data set. table_sha256: of labels.csv. facts: as `readme`."""
    meaning = "CT as 16-bit DICOM in Hounsfield units, other images as 8-bit PNG"
    return described(
        name,
        f"{facts['images']} images of the chest of {facts['patients']} patients, labelled by clinicians "
        f"at {facts['source']}; {facts['k']}-anonymous. See README.md.",
        licence=facts["licence"],
        url=facts["url"],
        published=facts["year"],
        creator=facts["source"],
        table=Table("labels.csv", table_sha256, COLUMNS, numbers=("readers",)),
        images=Images(meaning, ("application/dicom", "image/png"), ("images/*.dcm", "images/*.png")),
    )


def readme(name: str, facts: Mapping[str, Any]) -> str:
    """The card. facts: source, images, patients, labels, k, smallest, groups, coarser, left_out, counts, licence, …"""
    labels = "\n".join(f"| {label} | {n} |" for label, n in facts["labels"].items())
    columns = "\n".join(f"| `{column}` | {meaning} |" for column, meaning in COLUMNS.items())
    coarser = [column for column, level in facts["coarser"].items() if level]
    left_out = "\n".join(f"- {why}: {n}" for why, n in facts["counts"].items()) or "- none"
    return f"""# {name}

{facts["images"]} images of the chest of {facts["patients"]} patients, labelled by clinicians at {facts["source"]}.
Made with lungkit {lungkit.__version__}. **Research use only. Not for diagnosis.**

- **Licence and terms**: {facts["licence"]}
- **Model whose readings were reviewed**: {facts["models"]}

| label | images |
|---|--:|
{labels}

## labels.csv

| column | meaning |
|---|---|
{columns}

## How patients are protected

- Identifiers are random and new in each export. There are no names, numbers, notes, dates or hashes of uploads.
- Each patient is alike with at least {facts["k"] - 1} others in age, sex, kind, view and year of all images together
  (k = {facts["k"]}). Groups: {facts["groups"]}; the smallest has {facts["smallest"]} patients.
- Made coarser for that: {", ".join(coarser) or "nothing"}. Left out for that: {facts["left_out"]} patients.
- {facts["looked"]}

**What this does not do.** A person who has one of these images from elsewhere finds it here. All patients who are alike
may have the same label. How many images a patient has is not hidden. Do not try to find out who the patients are.

## How labels came about

A label is that of all readers, or of most of three or more. Labels given after a reader saw a model's answer lean
towards it (`answer_shown`). Reviewed images are not a random sample of the clinic's images.

Left out ({facts["reviewed"]} images were reviewed):

{left_out}
"""
