"""Write the report of a run: index.html, and in its folder report/ a Word file, LaTeX, checklists and a datasheet."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lungkit import config, files
from lungkit.errors import LungkitError
from lungkit.study import checklists, content, datasheet, html, latex, material
from lungkit.study.answers import answers
from lungkit.study.document import Document, Link, Section, Text, clean
from lungkit.study.material import Material
from lungkit.study.provenance import RECORD

FORMATS = ("html", "docx", "latex")
FOLDER, NAME = "report", "report"  # the folder below the run's, and the name of the files
LATEST = "latest"


def find(run: str) -> Path:
    """The folder of a run: a path, a name below the reports folder, or "latest". LungkitError if there is none."""
    if run == LATEST:
        made = [record.parent for record in config.reports_dir().glob(f"*/{RECORD}")]
        if not made:
            raise LungkitError(f"there is no run below {config.reports_dir()}; `lungkit run` makes one")
        return max(made, key=lambda folder: (folder / RECORD).stat().st_mtime)
    folders = (Path(run).expanduser(), config.reports_dir() / run)
    found = next((folder for folder in folders if (folder / RECORD).is_file()), None)
    if found is None:
        raise LungkitError(
            f"no run {run}: give a folder with {RECORD}, its name below {config.reports_dir()}, or {LATEST}"
        )
    return found.resolve()


def write(folder: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Write a run's report in these formats, with checklists, datasheet and Croissant; the files that were written."""
    asked = tuple(formats)
    if unknown := sorted(set(asked) - set(FORMATS)):
        raise LungkitError(f"no format {', '.join(unknown)}; there are: {', '.join(FORMATS)}, all")
    into = _own(folder / FOLDER)
    known, document, found = _made(folder)
    into.mkdir(exist_ok=True)
    written = [*_checklists(into, document, found), *_datasheet(into, document, known)]
    writers: Mapping[str, Callable[[], Path]] = {
        "docx": lambda: _docx(document, into),
        "latex": lambda: latex.write(document, into, NAME),
    }
    written += [write_one() for name, write_one in writers.items() if name in asked]
    if "html" in asked:  # last: it links to the others
        written.insert(0, _page(document, folder))
    return written


def index(folder: Path) -> Path:
    """Write a run's report as its index.html, with what is known so far; the page links to what `write` made before."""
    _, document, _ = _made(folder)
    return _page(document, folder)


def _own(folder: Path) -> Path:
    """A folder to write to; LungkitError where it is a link, which could lead anywhere, or no folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise LungkitError(f"{folder} is a link or no folder, so nothing is written there; remove it")
    return folder


def _made(folder: Path) -> tuple[Material, Document, dict[str, Text]]:
    _own(folder / material.DATASET)
    known = material.gather(folder)
    material.keep(known)
    sections = content.body(known)
    sheet = datasheet.appendix(known)
    found = answers(known, (*sections, *([sheet] if sheet else [])))
    appendices: Sequence[Section] = [checklists.appendix(each, found) for each in checklists.CHECKLISTS]
    document = content.document(known, sections, (*appendices, *([sheet] if sheet else [])))
    return known, document, found


def _page(document: Document, folder: Path) -> Path:
    there = {
        "Word": f"{NAME}.docx",
        "LaTeX": f"{NAME}.tex",
        **{f"{each.name} (CSV)": checklists.csv_name(each) for each in checklists.CHECKLISTS},
        "datasheet (CSV)": "datasheet.csv",
        "Croissant": "croissant.json",
    }
    links = [Link(name, f"{FOLDER}/{file}") for name, file in there.items() if (folder / FOLDER / file).is_file()]
    page = folder / "index.html"
    files.replace(page, html.page(document, links))
    return page


def _docx(document: Document, into: Path) -> Path:
    from lungkit.study import docx  # needs a package of the extra "notebooks"

    return docx.write(document, into, NAME)


def _checklists(into: Path, document: Document, found: dict[str, Text]) -> Iterable[Path]:
    for each in checklists.CHECKLISTS:
        path = into / checklists.csv_name(each)
        files.replace(path, clean(checklists.frame(each, found, document).to_csv(index=False)))
        yield path


def _datasheet(into: Path, document: Document, known: Material) -> Iterable[Path]:
    """datasheet.csv, croissant.json and its table; nothing where the data set is not known."""
    if known.data is None:
        return
    table = clean(datasheet.images_csv(known.data)).encode()
    described = datasheet.croissant_of(known, document, "images.csv", files.sha256(table))
    contents: dict[str, str | bytes] = {
        "datasheet.csv": datasheet.frame(known).to_csv(index=False),
        "images.csv": table,
        "croissant.json": json.dumps(described, indent=2, ensure_ascii=False) + "\n",
    }
    for name, written in contents.items():
        files.replace(into / name, clean(written))
        yield into / name
