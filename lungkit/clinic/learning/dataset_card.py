"""What a data set for research says of itself: README.md for people, croissant.json for programs.

The second is Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html), JSON-LD on schema.org.
"""

from collections.abc import Mapping
from typing import Any

import lungkit

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
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(name: str, facts: Mapping[str, Any], table_sha256: str) -> dict[str, Any]:
    """The JSON-LD of a data set. table_sha256: of labels.csv. facts: as `readme`."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"images/{column}",
            "name": column,
            "description": meaning,
            "dataType": "sc:Integer" if column == "readers" else "sc:Text",
            "source": {"fileObject": {"@id": "labels.csv"}, "extract": {"column": column}},
        }
        for column, meaning in COLUMNS.items()
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{facts['images']} images of the chest of {facts['patients']} patients, labelled by clinicians "
        f"at {facts['source']}; {facts['k']}-anonymous. See README.md.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": facts["licence"],
        "url": facts["url"],
        "version": "1.0.0",
        "datePublished": facts["year"],
        "creator": {"@type": "sc:Organization", "name": facts["source"]},
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "labels.csv",
                "name": "labels.csv",
                "contentUrl": "labels.csv",
                "encodingFormat": "text/csv",
                "sha256": table_sha256,
            },
            {
                "@type": "cr:FileSet",
                "@id": "image-files",
                "name": "image-files",
                "description": "CT as 16-bit DICOM in Hounsfield units, other images as 8-bit PNG",
                "encodingFormat": ["application/dicom", "image/png"],
                "includes": ["images/*.dcm", "images/*.png"],
            },
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": fields}],
    }


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
