"""What a person decided about single images: keep, exclude, or give another label. A CSV that `load_split` applies.

The set is split first, as without decisions, and they are applied after that: no other image changes its part, so a
version that was trained before and one that was trained after are tested on the same patients.

Images of the test part are a case of their own. Errors there are known only because a model was scored on them, and to
take such images out makes the next score too good. A decision changes a test image only where its own row says "test"
in the column `part`; a note then goes with the data set and into every report.

What was applied is kept below the data folder under its SHA-256, and that is what a recipe and a card name. So the same
split can be made again after the file was changed or lost.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from lungkit import config, files
from lungkit.data.folders import few, one_line
from lungkit.data.notes import DatasetError, Note, alike, note
from lungkit.data.splits import EXCLUDED, PARTS, REFUSED
from lungkit.errors import LungkitError

KEEP, EXCLUDE, RELABEL = KINDS = ("keep", "exclude", "relabel")
FILE = "decisions.csv"
MOST_WORDS = 300  # characters of a reason or a name
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DecisionsGone(LungkitError):
    """The decisions that a recipe names by their SHA-256 are not in the data folder."""


@dataclass(frozen=True)
class Decision:
    """One person's decision about one image. Raises DatasetError where a value is none of those accepted."""

    file: str  # POSIX path below the data set's root, as in the manifest
    sha256: str  # of the file's bytes when it was decided
    decision: str  # one of KINDS
    label: str = ""  # the new one, of RELABEL alone
    part: str = ""  # train, val or test; a test image changes only where this is "test"
    reason: str = ""
    by: str = ""  # who decided
    at: str = ""  # ISO 8601, UTC

    def __post_init__(self) -> None:
        if not self.file or self.file != one_line(self.file):
            raise DatasetError(f"a decision about {self.file!r}: `file` must be the path of an image in one line")
        if not _SHA256.fullmatch(self.sha256):
            raise DatasetError(f"{self.file}: sha256 is {self.sha256!r}; accepted: 64 hexadecimal digits")
        if self.decision not in KINDS:
            raise DatasetError(f"{self.file}: decision is {self.decision!r}; accepted: {', '.join(KINDS)}")
        if (self.decision == RELABEL) != bool(self.label):
            raise DatasetError(f"{self.file}: a label goes with {RELABEL}, and with it alone; it is {self.label!r}")
        if self.part not in ("", *PARTS):
            raise DatasetError(f"{self.file}: part is {self.part!r}; accepted: {', '.join(PARTS)}, or nothing")


COLUMNS = tuple(field.name for field in fields(Decision))


@dataclass(frozen=True)
class Decided:
    """Decisions, at most one for each file, and the SHA-256 of their table."""

    sha256: str
    rows: tuple[Decision, ...]


def now() -> str:
    """The time for a decision's `at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain_words(text: str) -> str:
    """Words of a person as they may stand in a table: one line, not too long, and no formula of a spreadsheet."""
    start = " ".join(text[: 4 * MOST_WORDS].split())
    return one_line(start).lstrip("=+-@ ")[:MOST_WORDS].rstrip()


# --- the file


def read(path: str | Path) -> tuple[Decision, ...]:
    """The decisions in a CSV with at least the columns file, sha256 and decision. DatasetError names file and line.

    Words of a person are cleaned as when they are written (plain_words). Spaces around a value, and the case of the
    columns' names, of a SHA-256, of a decision and of a part do not count.
    """
    name = one_line(path)[:MOST_WORDS]
    try:
        content = Path(path).expanduser().read_text("utf-8-sig")
        table = csv.DictReader(io.StringIO(content, newline=""), strict=True, skipinitialspace=True)
        names = [str(one).strip().lower() for one in table.fieldnames or ()]
        _refuse_header(name, names, content.partition("\n")[0])
        table.fieldnames = names
        rows = tuple(_row(name, table.line_num, row) for row in table)
    except FileNotFoundError:
        raise DatasetError(f"no decisions in {name}: there is no such file") from None
    except (OSError, RuntimeError, ValueError, csv.Error) as error:  # RuntimeError: no such user's home
        why = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{name} is no table of decisions: {why}") from None
    if twice := [file for file, times in Counter(row.file for row in rows).items() if times > 1]:
        raise DatasetError(f"{name}: more than one decision about {few(twice, 10)}; leave one for each file")
    return rows


def _refuse_header(path: str, names: Sequence[str], line: str) -> None:
    """Refuse a first line that lacks a column or has one twice, and say which separator it has instead of a comma."""
    missing = [name for name in COLUMNS[:3] if name not in names]
    if missing and line.lower().startswith("sep="):
        raise DatasetError(f"{path}: take out its first line, {one_line(line.strip())!r}; separate values by commas")
    for separator, said in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if missing and separator in line:
            raise DatasetError(f"{path}: its values are separated by {said}; the separator must be a comma")
    if missing:
        raise DatasetError(f"{path}: no column {', '.join(missing)}; accepted columns: {', '.join(COLUMNS)}")
    if twice := [name for name, times in Counter(names).items() if name and times > 1]:
        raise DatasetError(f"{path}: more than one column {few(twice)}; leave one of each name")


def _row(path: str, line: int, row: Mapping[str | None, str | None]) -> Decision:
    if None in row:
        raise DatasetError(f"{path}, line {line}: more values than columns; put quotes around a value with a comma")
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    values |= {name: values[name].lower() for name in ("sha256", "decision", "part")}
    values |= {name: plain_words(values[name]) for name in ("reason", "by", "at")}
    try:
        return Decision(**values)
    except DatasetError as error:
        raise DatasetError(f"{path}, line {line}: {error}") from None


def text(rows: Iterable[Decision]) -> str:
    """The decisions as CSV, sorted by file."""
    buffer = io.StringIO(newline="")
    table = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.file))
    return buffer.getvalue()


def write(path: Path, rows: Iterable[Decision]) -> None:
    """Replace the file in one step: a reader sees the old decisions or the new ones."""
    files.replace(path, text(rows), durable=True)


def kept(given: str | Path | None) -> str | None:
    """The SHA-256 of the decisions in a CSV, which is copied below the data folder; None where nothing is given.

    This is what a recipe holds (`decisions` of load_split): the file itself may change later.
    """
    return find(given).sha256 if given else None


def find(given: str | Path) -> Decided:
    """The decisions of a CSV, or those kept under a SHA-256. Raises DatasetError, DecisionsGone."""
    if named := _SHA256.fullmatch(str(given)):
        path = _kept_as(named[0])
        if not path.is_file():
            raise DecisionsGone(
                f"the decisions {named[0][:12]}… are needed to split this set as it was, but {path} is missing: copy "
                f"the {FILE} of that run there"
            )
        rows = read(path)
        if files.sha256(text(rows).encode()) != named[0]:
            raise DecisionsGone(f"{path} was changed: its content is not what its name says; copy it there again")
        return Decided(named[0], rows)
    rows = read(given)
    content = text(rows)
    sha256 = files.sha256(content.encode())
    kept_as = _kept_as(sha256)
    if not kept_as.is_file() or files.sha256(kept_as) != sha256:  # it is not kept yet, or was changed
        kept_as.parent.mkdir(parents=True, exist_ok=True)
        files.replace(kept_as, content)
    return Decided(sha256, rows)


def _kept_as(sha256: str) -> Path:
    return config.data_dir() / "decisions" / f"{sha256}.csv"


# --- what they do to a set


def apply(manifest: pd.DataFrame, classes: Sequence[str], decided: Decided) -> tuple[pd.DataFrame, tuple[Note, ...]]:
    """The manifest of a split set after the decisions, and the notes on them.

    Excluded images stay in it, with split "excluded"; those with another label say in `note` which one they had. A
    decision about a file that is not in the set changes nothing and is named in a note. DatasetError where a file's
    content is another one than was decided about, a label is no class of the set, a test image would change without
    `part` "test", or a part would lose a class.
    """
    labels, hashes = (dict(zip(manifest["file"], manifest[name], strict=True)) for name in ("label", "sha256"))
    known = [row for row in decided.rows if row.file in labels]
    _refuse_other_content(known, hashes)
    named = {alike(name): name for name in classes}
    _refuse_other_labels(known, named)
    known = [replace(row, label=named.get(alike(row.label), "")) for row in known]  # spelled as in the set
    changes = {row.file: row for row in known if row.decision == EXCLUDE or row.label not in ("", labels[row.file])}
    of_test = set(manifest.loc[manifest["split"] == "test", "file"])
    _refuse_silent_test([file for file, row in changes.items() if file in of_test and row.part != "test"])
    after = _changed(manifest, changes)
    _refuse_lost_classes(manifest, after)
    on_test = [file for file in changes if file in of_test]
    gone = [row.file for row in decided.rows if row.file not in labels]
    return after, (*_notes(changes.values(), labels), *_other_notes(known, on_test, gone))


def _changed(manifest: pd.DataFrame, changes: Mapping[str, Decision]) -> pd.DataFrame:
    """The manifest with these decisions; what could not be read stays as it is."""
    rows = []
    for row in manifest.to_dict("records"):
        decision = changes.get(row["file"])
        if decision and row["split"] != REFUSED:
            out = decision.decision == EXCLUDE
            what = "excluded" if out else f"was labelled {row['label']}"
            row |= {"split": EXCLUDED} if out else {"label": decision.label}
            row["note"] = f"{what}: {decision.reason or 'no reason given'}"
        rows.append(row)
    return pd.DataFrame(rows, index=manifest.index, columns=manifest.columns).astype(manifest.dtypes.to_dict())


def _refuse_other_content(rows: Iterable[Decision], hashes: Mapping[str, str]) -> None:
    if other := [row.file for row in rows if hashes[row.file] != row.sha256]:
        raise DatasetError(
            f"the content of {few(other, 10)} is not what was decided about (sha256); look at these images again, and "
            "take the old rows out of the decisions"
        )


def _refuse_other_labels(rows: Iterable[Decision], named: Mapping[str, str]) -> None:
    if other := [row for row in rows if row.label and alike(row.label) not in named]:
        labels = ", ".join(f"{row.file} as '{row.label}'" for row in other[:10])
        raise DatasetError(f"the decisions relabel {labels}; the classes are {', '.join(named.values())}")


def _refuse_silent_test(names: Sequence[str]) -> None:
    if names:
        raise DatasetError(
            f"the decisions change {few(names, 10)} of the test part. To take out test images that a model got wrong "
            "makes the next test too good: leave these rows out, or write test into their column `part` to do it with "
            "a warning in every report"
        )


def _refuse_lost_classes(before: pd.DataFrame, after: pd.DataFrame) -> None:
    for part in PARTS:
        had, has = (set(rows.loc[rows["split"] == part, "label"]) for rows in (before, after))
        if lost := sorted(had - has):
            raise DatasetError(f"the decisions leave no image of {', '.join(lost)} in the part {part}")


def _notes(changes: Iterable[Decision], labels: Mapping[str, str]) -> Iterable[Note]:
    changes = list(changes)
    excluded = [row for row in changes if row.decision == EXCLUDE]
    relabelled = [row for row in changes if row.decision == RELABEL]
    names = [f"{row.file}: {labels[row.file]} to {row.label}" for row in relabelled]
    yield from note(
        "images excluded by decision", "warning", [row.file for row in excluded], f"{_reasons(excluded)}. Left out."
    )
    yield from note("images relabelled by decision", "warning", names, f"{_reasons(relabelled)}.")


def _reasons(rows: Iterable[Decision]) -> str:
    """ "Reasons: no lung 3, blurred 1"."""
    counts = Counter(row.reason or "none given" for row in rows).most_common()
    more = f", and {len(counts) - 5} more" if len(counts) > 5 else ""
    return f"Reasons: {', '.join(f'{reason} {times}' for reason, times in counts[:5])}{more}"


def _other_notes(known: Iterable[Decision], on_test: Sequence[str], gone: Sequence[str]) -> Iterable[Note]:
    yield from note(
        "test images changed by decision", "warning", on_test,
        "They were chosen after a model was scored on them, so figures of the test part flatter.",
    )  # fmt: skip
    yield from note(
        "images kept by decision", "info", [row.file for row in known if row.decision == KEEP],
        "A person looked at them and left them as they are.",
    )  # fmt: skip
    yield from note(
        "decisions about other images", "warning", gone, "No such file is among the images taken from this set."
    )
