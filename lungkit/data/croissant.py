"""A data set as Croissant 1.0 describes one: JSON-LD on schema.org, a table of images, and the files that it names.

The format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html (Akhtar et al., DEEM 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Table:
    """The table of the images. columns: name to meaning. numbers: the columns of whole numbers; the others are text."""

    file: str
    sha256: str
    columns: Mapping[str, str]
    numbers: Sequence[str] = ()


@dataclass(frozen=True)
class Images:
    """The image files. kinds: media types; patterns: of their names, such as "images/*.png"."""

    meaning: str
    kinds: Sequence[str]
    patterns: Sequence[str]


def described(
    name: str,
    meaning: str,
    *,
    licence: str,
    url: str,
    published: str,
    creator: str,
    table: Table,
    images: Images | None = None,
) -> dict[str, Any]:
    """The JSON-LD of a data set. published: a year or an ISO date. images: None where they do not come with it."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"images/{column}",
            "name": column,
            "description": text,
            "dataType": "sc:Integer" if column in table.numbers else "sc:Text",
            "source": {"fileObject": {"@id": table.file}, "extract": {"column": column}},
        }
        for column, text in table.columns.items()
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": meaning,
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": licence,
        "url": url,
        "version": "1.0.0",
        "datePublished": published,
        "creator": {"@type": "sc:Organization", "name": creator},
        "distribution": [_table(table), *([_files(images)] if images else [])],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": fields}],
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": table.file,
        "name": table.file,
        "contentUrl": table.file,
        "encodingFormat": "text/csv",
        "sha256": table.sha256,
    }


def _files(images: Images) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "image-files",
        "name": "image-files",
        "description": images.meaning,
        "encodingFormat": list(images.kinds),
        "includes": list(images.patterns),
    }
