"""What a capsule says of itself: a README for a stranger, the licences, CITATION.cff, and metadata for repositories.

CITATION.cff follows the Citation File Format 1.2.0 (Druskat et al., doi:10.5281/zenodo.5171937), the metadata RO-Crate
1.1 (Soiland-Reyes et al., Data Science 2022).
"""

import json
import mimetypes
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import lungkit
from lungkit.errors import LungkitError
from lungkit.models.registry import Version
from lungkit.study import plan_text
from lungkit.study.capsule_layout import (
    CITATION,
    CODE,
    CRATE,
    DATA,
    LICENCES,
    LOCK,
    MANIFEST,
    MODEL,
    PATCH,
    PLAN,
    README,
    RUN,
    SOURCE,
)
from lungkit.study.provenance import RunRecord
from lungkit.training import sentences

_ORCID = re.compile(r"\d{4}-\d{4}-\d{4}-\d{3}[\dX]")
LICENCES_OF_RESULTS = (
    "CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0",
    "ODC-By-1.0", "ODbL-1.0", "PDDL-1.0", "Apache-2.0", "MIT", "BSD-3-Clause", "GPL-3.0-or-later",
)  # fmt: skip
_NO_AUTHOR = "Authors not stated"
_KINDS = {".ipynb": "application/x-ipynb+json", ".md": "text/markdown", ".cff": "application/yaml",
          ".keras": "application/zip", ".h5": "application/x-hdf5", ".npz": "application/zip", ".patch": "text/x-diff",
          ".lock": "text/plain", ".bin": "application/octet-stream", ".csv": "text/csv", ".sha256": "text/plain",
          ".tar": "application/x-tar"}  # fmt: skip


@dataclass(frozen=True)
class Author:
    """A person: "Family, Given", or "Family, Given; ORCID"."""

    family: str
    given: str
    orcid: str = ""  # "0000-0002-1825-0097"

    @classmethod
    def parse(cls, text: str) -> "Author":
        """LungkitError where the text is not of that form, or where an ORCID's check digit is wrong."""
        names, _, orcid = (part.strip() for part in text.partition(";"))
        family, _, given = (part.strip() for part in names.partition(","))
        if not family or not given:
            raise LungkitError(f"--author '{text}': give 'Family, Given' or 'Family, Given; ORCID'")
        if orcid and not _is_orcid(orcid):
            raise LungkitError(f"--author '{text}': '{orcid}' is no ORCID; one looks like 0000-0002-1825-0097")
        return cls(family, given, orcid)


def _is_orcid(text: str) -> bool:
    """Whether it has the form of an ORCID and its check digit, that of ISO 7064 MOD 11-2."""
    if not _ORCID.fullmatch(text):
        return False
    total = 0
    for digit in text.replace("-", "")[:-1]:
        total = (total + int(digit)) * 2
    return text[-1] == "0123456789X"[(12 - total % 11) % 11]


def known_licence(text: str) -> str:
    """An SPDX identifier of LICENCES_OF_RESULTS, or "" where none is given; LungkitError for another."""
    if text and text not in LICENCES_OF_RESULTS:
        raise LungkitError(f"--licence '{text}': accepted: {', '.join(LICENCES_OF_RESULTS)}")
    return text


@dataclass(frozen=True)
class About:
    """What a person says of the study. licence: an SPDX identifier, for what the study adds; empty: not stated."""

    title: str = ""
    authors: tuple[Author, ...] = ()
    licence: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the capsule."""

    what: str
    why: str


@dataclass(frozen=True)
class Contents:
    """What a capsule is of."""

    about: About
    record: RunRecord
    scored: Mapping[str, Any]  # evaluation.json
    version: Version
    left_out: tuple[LeftOut, ...]
    made_by: str  # "lungkit 0.2.0"

    @property
    def title(self) -> str:
        """As a person gave it, or made of model and data set."""
        return self.about.title or f"{self.scored['model']} tested on {self.scored['data']}"

    @property
    def day(self) -> str:
        """When the run began, as 2026-11-30."""
        return self.record.started[:10]


def files(contents: Contents, members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The texts by name; members: what else is in the capsule."""
    texts = {README: _readme(contents, members), LICENCES: _licences(contents, members), CITATION: citation(contents)}
    written = {name: text.encode() for name, text in texts.items()}
    return written | {
        CRATE: (json.dumps(crate(contents, {**members, **written}), indent=1, ensure_ascii=False) + "\n").encode()
    }


# --- README.md


def _readme(contents: Contents, members: Mapping[str, bytes]) -> str:
    scored, code = contents.scored, contents.record.code
    has_manifest = f"{DATA}/manifest.csv" in members
    left_out = "".join(f"- `{one.what}`: {one.why}\n" for one in contents.left_out) or "Nothing.\n"
    return f"""# {contents.title}

{sentences.headline(scored)}.

{_became(members)}

**Research use only. Not a medical device, not for diagnosis.** The brackets are 95 % intervals by patient.

This archive is a study made with lungkit, a research workbench that classifies lung infections on chest images. It has
what is needed to check the figures above, and to make them again from the same images. **The images are not in it.**

## What is where

| place | contents |
|---|---|
| `{RUN}/` | executed notebooks, figures, tables, predictions of every test image, and `run.json`: how it was made |
| `{MODEL}/` | the model version that was tested, with its card and the hashes of its files |
| `{DATA}/` | the data set as a table: each image with its SHA-256, label, patient and part of the split |
| `{CODE}/` | the program's source and the locked packages |
| `{MANIFEST}` | the SHA-256 of every other file |
| `{CITATION}`, `{LICENCES}` | how to cite the study, and what may be done with it |

## Check it

Without lungkit, in the unpacked folder:

```
sha256sum -c {MANIFEST} --quiet
```

With lungkit {lungkit.__version__} or later, on the archive itself. It computes the figures again from the predictions,
and compares the model's files with its card:

```
lungkit capsule verify CAPSULE.zip
lungkit capsule verify CAPSULE.zip --data FOLDER --rescore
```

The second line needs the images: it compares each with its SHA-256, lets the model read the test images again, and
compares the probabilities. Use a lungkit that you trust; `{SOURCE}` is the one that made this study.

## Install lungkit

{_installing(contents, members)}
## Do it again

{_again(contents, members)}
## Where the data come from

{_sources(members, has_manifest)}
## What is not in it

{left_out}
Made by {contents.made_by} from a run of {contents.day}{_commit(code)}.
"""


def _plan(members: Mapping[str, bytes]) -> dict[str, Any] | None:
    """plan.json; None without one."""
    text = members.get(f"{RUN}/plan.json")
    return json.loads(text) if text else None


def _became(members: Mapping[str, bytes]) -> str:
    """The plan's verdict, with the deviations and the readings of the test, a paragraph each."""
    return "\n\n".join(plan_text.became(_plan(members)))


def _commit(code: Mapping[str, Any]) -> str:
    return f", commit {code['commit']}" if code.get("commit") else ""


def _installing(contents: Contents, members: Mapping[str, bytes]) -> str:
    if SOURCE not in members:
        version = contents.record.code.get("lungkit", "")
        return f"The source is not in this archive; the study was made with lungkit {version}.\n"
    python = ".".join(str(contents.record.environment.get("python", "3.11")).split(".")[:2])
    patch = "patch -p1 < ../code/changes.patch\n" if PATCH in members else ""
    lock = f"../.venv/bin/pip install -r {LOCK}         # the locked packages; without this line, recent ones\n"
    lock = lock if f"{CODE}/{LOCK}" in members else ""
    return f"""Python {python}, in the unpacked folder:

```
python{python} -m venv .venv
mkdir source && tar -xf {SOURCE} -C source && cd source
{patch}{lock}../.venv/bin/pip install .                           # enough to check; '.[all]' also trains
../.venv/bin/lungkit --help
```
"""


def _again(contents: Contents, members: Mapping[str, bytes]) -> str:
    phantom, tested = "", ""
    if contents.record.parameters.get("data", "phantom") == "phantom":
        phantom = "The phantom is drawn by lungkit itself; the same seed draws the same images.\n"
    if contents.record.parameters.get("model_name"):
        tested = f"With LUNGKIT_ARTIFACTS={MODEL} in the environment, lungkit finds the model that was tested.\n"
    return f"""In the unpacked folder, with FOLDER for that of the images, this is what was run:

```
{_command(contents, members)}
```

{phantom}{tested}A training on another processor, or with other versions of the packages, ends with other weights.
Expect figures within the intervals, not the same digits. The same model gives an image the same probabilities, to
0.001.
"""


_OPTIONS = ("data", "profile", "model_name", "plan", "report")  # the others are given by -p


def _command(contents: Contents, members: Mapping[str, bytes]) -> str:
    """The run's notebooks and parameters as a command; folders of the machine are left to the reader."""
    parameters = dict(contents.record.parameters)
    numbers = [stage.name[:2] for stage in contents.record.stages]
    data = "phantom" if parameters.get("data", "phantom") == "phantom" else "FOLDER"
    words = ["lungkit", "run", *numbers, "--data", data, "--profile", str(parameters.get("profile", "quick"))]
    words += ["--model-name", shlex.quote(str(parameters["model_name"]))] if parameters.get("model_name") else []
    words += ["--plan", PLAN] if PLAN in members else []
    for name, value in parameters.items():
        if name not in _OPTIONS and value not in ("", None):
            words += ["-p", shlex.quote(f"{name}={value if isinstance(value, str) else json.dumps(value)}")]
    return " ".join(words)


def _sources(members: Mapping[str, bytes], has_manifest: bool) -> str:
    stated = [name for name in (f"{DATA}/SOURCE.md", f"{DATA}/README.md") if name in members]
    text = f"`{stated[0]}` says where they come from, and under which terms.\n" if stated else (
        "The data set came without a file that says where it comes from. Ask the authors.\n"
    )  # fmt: skip
    names = f"`{DATA}/manifest.csv` names each image with its SHA-256.\n" if has_manifest else ""
    return text + names


# --- LICENCES.md


def _licences(contents: Contents, members: Mapping[str, bytes]) -> str:
    about = contents.version.card.about
    synthetic = bool(contents.scored.get("synthetic"))
    images = (about.licence if about else None) or "not stated in the model's card"
    images = "drawn by lungkit; of no patient" if contents.version.card.synthetic else images
    own = contents.about.licence or "not stated by the authors: ask them"
    source = f"`{DATA}/SOURCE.md`" if f"{DATA}/SOURCE.md" in members else "the publisher of the images"
    terms = "drawn by lungkit" if synthetic else f"{source} states their terms"
    pictures = any(name.startswith(RUN) and name.endswith((".png", ".html", ".ipynb")) for name in members)
    shown = (
        "\nFigures, pages and notebooks can show images of the data set, to which the terms of the images apply.\n"
        if pictures and not synthetic
        else ""
    )
    return f"""# Licences

| part | terms |
|---|---|
| results, tables, figures and texts of the study (`{RUN}/`) | {own} |
| lungkit (`{CODE}/`) | Apache-2.0; its text and the terms of files from others are in the source |
| the model (`{MODEL}/`) | terms of the images that it learned from: {images} |
| the images | not in this archive; {terms} |
{shown}
The model's card is carried along unchanged. Whatever the licences allow: nothing here has been validated for clinical
use, and no output is a diagnosis.
"""


# --- CITATION.cff


def citation(contents: Contents) -> str:
    """CITATION.cff of the study, in the Citation File Format 1.2.0."""
    lines = [
        "cff-version: 1.2.0",
        "message: If you use this study, please cite it, and the data set that it names.",
        f"title: {_quoted(contents.title)}",
        "type: dataset",
        "authors:",
        *(line for author in contents.about.authors for line in _author(author)),
    ]
    if not contents.about.authors:
        lines.append(f"  - name: {_NO_AUTHOR}")
    lines.append(f"date-released: {contents.day}")
    lines += [f"license: {contents.about.licence}"] if contents.about.licence else []
    lines += [
        f"abstract: {_quoted(sentences.headline(contents.scored) + '.')}",
        "keywords:",
        "  - chest imaging",
        "  - deep learning",
        "references:",
        "  - type: software",
        '    title: "lungkit: a research workbench that classifies lung infections on chest CT and chest X-ray"',
        "    authors:",
        "      - name: The lungkit authors",
        f"    version: {_quoted(str(contents.record.code.get('lungkit') or lungkit.__version__))}",
        "    license: Apache-2.0",
    ]
    if commit := contents.record.code.get("commit"):
        lines.append(f"    commit: {commit}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text as YAML: a JSON string is one."""
    return json.dumps(text, ensure_ascii=False)


def _author(author: Author) -> list[str]:
    lines = [f"  - family-names: {_quoted(author.family)}", f"    given-names: {_quoted(author.given)}"]
    return [*lines, f"    orcid: https://orcid.org/{author.orcid}"] if author.orcid else lines


# --- ro-crate-metadata.json


def crate(contents: Contents, members: Mapping[str, bytes]) -> dict[str, Any]:
    """The metadata of RO-Crate 1.1, with an entity for each member."""
    licence, authors, about = _licence(contents), _people(contents), contents.record
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": contents.title,
        "description": sentences.headline(contents.scored) + ".",
        "datePublished": contents.day,
        "license": {"@id": licence["@id"]},
        "author": [{"@id": one["@id"]} for one in authors],
        "mentions": {"@id": "#run"},
        "hasPart": [{"@id": quote(name)} for name in sorted(members)],
    }
    program = {
        "@id": "#lungkit",
        "@type": "SoftwareApplication",
        "name": "lungkit",
        "version": about.code.get("lungkit"),
    }
    run = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": "The run of the notebooks",
        "startTime": about.started,
        "instrument": {"@id": "#lungkit"},
        "result": [{"@id": quote(name)} for name in sorted(members) if name.startswith(f"{RUN}/")],
    }
    named = [one for one in (licence, *authors) if one["@id"] not in members]
    parts = [_entity(name, content) for name, content in sorted(members.items())]
    return {
        "@context": "https://w3id.org/ro/crate/1.1/context",
        "@graph": [_DESCRIPTOR, root, program, run, *named, *parts],
    }


_DESCRIPTOR = {
    "@id": CRATE,
    "@type": "CreativeWork",
    "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
    "about": {"@id": "./"},
}


def _entity(name: str, content: bytes) -> dict[str, str]:
    suffix = f".{name.rpartition('.')[2]}"
    kind = _KINDS.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
    return {
        "@id": quote(name),
        "@type": "File",
        "name": name.rpartition("/")[2],
        "contentSize": str(len(content)),
        "encodingFormat": kind,
    }


def _licence(contents: Contents) -> dict[str, str]:
    if not contents.about.licence:
        return {"@id": LICENCES}
    address = f"https://spdx.org/licenses/{contents.about.licence}"
    return {"@id": address, "@type": "CreativeWork", "name": contents.about.licence}


def _people(contents: Contents) -> list[dict[str, str]]:
    if not contents.about.authors:
        return [{"@id": "#authors", "@type": "Organization", "name": _NO_AUTHOR}]
    return [
        {
            "@id": f"https://orcid.org/{author.orcid}" if author.orcid else f"#author-{number}",
            "@type": "Person",
            "name": f"{author.given} {author.family}",
        }
        for number, author in enumerate(contents.about.authors, 1)
    ]
