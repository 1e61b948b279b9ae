"""What is stated of images besides their class: further columns of labels.csv, DICOM tags, the size of the lesion.

Nothing here is part of the manifest or of its fingerprint. It is read where it is asked for, and saved sets stay valid.
What could identify a person is never used: names, numbers, dates, and columns in which almost every value is another.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from numpy.typing import ArrayLike

from lungkit import progress, wording
from lungkit.data import images, labels
from lungkit.data.dataset import Dataset
from lungkit.data.image import years_in
from lungkit.data.notes import DatasetError, Note, alike, note

# Our names, and the DICOM keywords that they come from, the first that a file has. None can identify a person.
TAGS = {
    "sex": ("PatientSex",),
    "age": ("PatientAge",),
    "view": ("ViewPosition",),
    "manufacturer": ("Manufacturer",),
    "scanner model": ("ManufacturerModelName",),
    "convolution kernel": ("ConvolutionKernel",),
    "slice thickness": ("SliceThickness",),
    "pixel spacing": ("PixelSpacing", "ImagerPixelSpacing"),
    "tube voltage": ("KVP",),
    "patient position": ("PatientPosition",),
}
LESION, NO_LESION = "lesion share", "no lesion mask"
NOT_STATED, OTHER = "not stated", "other"
MANY = 6  # different numbers: more are cut into thirds, as so many groups would be small
RARE = 5  # patients: values that fewer have are joined, because five answers measure nothing
MOST = 8  # values of text in one attribute: the commonest are kept, so that a figure stays readable
DECADE = 10  # patients that the first and the last decade of age need: people of 90 and more could be recognised
OLDEST = 120  # years: what is above is a slip of the pen

_PERSON = re.compile(
    r"(?:^|[_\s-])(?:id|uid|name|date|birth|dob|mrn|accession|path|url|address|phone|email|file|hash|sha\d*|of)s?"
    r"(?:$|[_\s-])|^patient(?!.*(?:sex|age|position))|file|birth",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:19|20)\d{2}([-./]?)\d{2}\1\d{2}.*|\d{1,2}[-./]\d{1,2}[-./](?:19|20)\d{2}.*")
_KEPT_APART = {"file", "label", "patient_id", "group_id", "split", "mask", "modality", "source"}


@dataclass(frozen=True, eq=False)
class Attributes:
    """What is stated of some images: `table` has a row for each, a column for each attribute, "" for what is missing.

    notes: on columns that are left out, and why.
    """

    table: pd.DataFrame
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, eq=False)
class Groups:
    """Attributes cut into groups: `table` has ordered categories; `how` says, by attribute, by which rule."""

    table: pd.DataFrame
    how: dict[str, str]
    notes: tuple[Note, ...] = ()

    def chosen(self, names: Iterable[str]) -> "Groups":
        """Only these attributes; "all" is every one. Names may differ in case, blanks and underscores.

        Raises DatasetError with the attributes that there are.
        """
        names, known = list(names), {_plain(str(name)): str(name) for name in self.table}
        if "all" in names:
            return self
        if unknown := [name for name in names if _plain(name) not in known]:
            there = (
                f"there are: all, {', '.join(known.values())}" if known else "nothing more is stated of these images"
            )
            raise DatasetError(f"no attribute '{unknown[0]}'; {there}")
        kept = [known[_plain(name)] for name in dict.fromkeys(names)]
        return Groups(self.table[kept], {name: self.how[name] for name in kept}, self.notes)


def of(data: Dataset, rows: pd.DataFrame | None = None) -> Attributes:
    """The attributes of a set's images. rows: rows of the manifest, whose index the table has; default: all.

    Columns come from labels.csv (except those that the manifest has), then from DICOM headers where labels.csv has no
    column of that name, then from the manifest: source, modality, side of the picture. Where there are lesion masks,
    "lesion share" is the share of the picture that the mask covers.
    """
    rows = data.manifest if rows is None else rows
    stated, notes = _of_table(data, rows)
    known = {_plain(str(name)) for name in stated}
    headers = _of_headers(data.root, rows)
    added = headers[[name for name in headers if _plain(str(name)) not in known]]
    table = pd.concat([stated, added, _of_manifest(data.root, rows)], axis=1).astype(str)
    kept, left_out = _fit(table)
    return Attributes(kept, (*notes, *left_out))


def grouped(table: pd.DataFrame, patients: ArrayLike) -> Groups:
    """Groups of images by each attribute; attributes with a single group are left out with a note.

    table: as of Attributes. patients: (n,), of each row. Ages are cut into decades, other numbers of which there are
    more than MANY into thirds; of text, rare values are joined. What is missing is a group of its own.
    """
    owners = pd.Series(np.asarray(patients).astype(str), index=table.index)
    cut = {str(name): _cut(str(name), table[name], owners) for name in table}
    single = [name for name, (groups, _) in cut.items() if len(groups.cat.categories) < 2]
    kept = {name: both for name, both in cut.items() if name not in single}
    return Groups(
        pd.DataFrame({name: groups for name, (groups, _) in kept.items()}, index=table.index),
        {name: how for name, (_, how) in kept.items()},
        tuple(note("attributes with one group", "info", single, "There is nothing to compare.")),
    )


def _plain(name: str) -> str:
    return alike(name.replace("_", " "))


# --- where they come from


def _of_table(data: Dataset, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Note]]:
    """The further columns of labels.csv, for each row; nothing without one."""
    path = next((file for file in sorted(data.root.iterdir()) if file.name.casefold() == "labels.csv"), None)
    if path is None:
        return pd.DataFrame(index=rows.index), []
    table, _ = labels.read(path, data.label_column)
    there = labels.Files(data.root)
    by_file = table.assign(file=table["file"].map(there.find))
    columns = [name for name in table if name not in (_KEPT_APART - {"label"}) | {data.label_column}]
    again = by_file["file"].duplicated(keep=False)
    differ = by_file[again].groupby("file")[columns].nunique().gt(1) if again.any() else pd.DataFrame()
    doubtful = [f"{file}: {name}" for name in differ for file in differ.index[differ[name]]]
    first = by_file.drop_duplicates("file").set_index("file")[columns]
    for name in differ:
        first.loc[differ.index[differ[name]], name] = ""
    meaning = "The rows of one file say different things: this counts as not stated."
    stated = first.reindex(rows["file"]).fillna("").set_axis(rows.index)
    return stated, note("contradictions in labels.csv", "warning", doubtful, meaning)


def _of_headers(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """What the headers of DICOM files state; "" for other files, and for a header that cannot be read."""
    found = list(progress.parallel(_tags, [root / file for file in rows["file"]]))
    table = pd.DataFrame({name: [each.get(name, "") for each in found] for name in TAGS}, rows.index, dtype=str)
    return table.loc[:, (table != "").any()]


def _tags(path: Path) -> dict[str, str]:
    keywords = [keyword for several in TAGS.values() for keyword in several]
    with suppress(images.ImageRefused), images.opened(path, None) as (stream, kind, _):
        if kind == "DICOM":
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(keywords))
            return {name: next(filter(None, (_text(header.get(k)) for k in of)), "") for name, of in TAGS.items()}
    return {}


def _text(value: object) -> str:
    """A header's value as text; of several values the first, as of the two pixel spacings."""
    several = isinstance(value, list | tuple | pydicom.multival.MultiValue)
    first = next(iter(value), None) if several else value  # type: ignore[call-overload]
    return "" if first is None else str(first).strip()


def _of_manifest(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    side = np.sqrt(rows["width"] * rows["height"]).round().astype(int)
    table = rows[["source", "modality"]].assign(**{"picture side": side})  # pixels of a square of the same area
    if (rows["mask"] != "").any():
        table[LESION] = list(progress.parallel(_share, [root / mask if mask else None for mask in rows["mask"]]))
    return table


def _share(mask: Path | None) -> str:
    """The share of the picture that a mask covers, as text."""
    return f"{np.mean(images.read(mask).pixels > 0.5):.6f}" if mask else NO_LESION


# --- which of them are of use


def _fit(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Note]]:
    """The columns that may form groups, and notes on the others."""
    reasons = {str(name): _unfit(str(name), table[name]) for name in table}
    kept = [name for name, reason in reasons.items() if not reason]
    meanings = {
        "identifying": ("columns that could identify a person or a file", "They form no groups."),
        "constant": ("columns with one value for all images", "There is nothing to compare."),
    }
    notes = [
        each
        for reason, (finding, meaning) in meanings.items()
        for each in note(finding, "info", [name for name in reasons if reasons[name] == reason], meaning)
    ]
    return table[kept], notes


def _unfit(name: str, values: pd.Series) -> str:
    """Why a column forms no groups: "identifying", "constant" or, if it does, ""."""
    stated = values[values != ""]
    if values.nunique() < 2:
        return "constant"
    numbers = _numbers(stated)
    running = stated.nunique() == len(stated) >= 20 and bool((numbers % 1 == 0).all())
    varied = stated[numbers.isna()].nunique() > max(MANY, len(stated) / 2)
    dates = bool(stated.map(lambda text: bool(_DATE.fullmatch(text))).all())
    return "identifying" if _PERSON.search(name) or running or varied or dates else ""


def _numbers(values: pd.Series) -> pd.Series:
    """The values as numbers, ages such as "047Y" in years; NaN for text."""
    plain = pd.to_numeric(values.str.replace(",", "."), errors="coerce")
    return plain.fillna(values.map(years_in).astype(float)).replace([np.inf, -np.inf], np.nan)


# --- how they are cut


def _cut(name: str, values: pd.Series, patients: pd.Series) -> tuple[pd.Series, str]:
    """The group of each image, as ordered categories, and the rule in words."""
    numbers = _numbers(values)
    words = values[numbers.isna() & (values != "")].nunique()
    if "age" in name.casefold().replace("_", " ").split() and numbers.notna().any() and words <= 2:
        return _in_order(values, *_decades(numbers, patients))
    if numbers.nunique() > MANY and words <= 2:
        return _in_order(values, *_thirds(numbers))
    return _joined(values, patients)


def _in_order(values: pd.Series, groups: pd.Series, order: list[str], how: str) -> tuple[pd.Series, str]:
    """Groups of numbers, then the words among them, then what is not stated."""
    named = groups.where(groups != "", values).replace("", NOT_STATED)
    present = set(named)
    rest = sorted(present - {*order, NOT_STATED})
    categories = [*(one for one in order if one in present), *rest, *([NOT_STATED] if NOT_STATED in present else [])]
    return named.astype(pd.CategoricalDtype(categories, ordered=True)), how


def _thirds(numbers: pd.Series) -> tuple[pd.Series, list[str], str]:
    """Three groups of about as many images; fewer where many numbers are equal."""
    first, second = np.quantile(numbers.dropna(), [1 / 3, 2 / 3], method="inverted_cdf")
    least, most = numbers.min(), numbers.max()
    names = [f"up to {_short(first)}", f"over {_short(first)}, up to {_short(second)}", f"over {_short(second)}"]
    if first == least:
        names[0] = _short(least)
    if second == most:
        names[1] = f"over {_short(first)}"
    place = (numbers > first).astype(int) + (numbers > second)
    groups = place.map(dict(enumerate(names))).where(numbers.notna(), "")
    return groups, names, "thirds of the images by its values"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _decades(ages: pd.Series, patients: pd.Series) -> tuple[pd.Series, list[str], str]:
    """Decades; the youngest and the oldest are joined with the next until they have DECADE patients."""
    ages = ages.where((ages >= 0) & (ages <= OLDEST))
    decade = ages // 10 * 10

    def few(of: pd.Series) -> bool:
        return patients[of].nunique() < DECADE

    low, high = decade.min(), decade.max()
    while low < high and few(decade <= low):
        low += 10
    while high > low and few(decade >= high):
        high -= 10
    decade = decade.clip(low, high)
    names = {float(start): f"{start:.0f}–{start + 9:.0f}" for start in np.arange(low, high + 1, 10)}
    names |= {float(high): f"{high:.0f} and over"} | ({float(low): f"under {low + 10:.0f}"} if low < high else {})
    how = f"decades of age, those at both ends joined until they hold {DECADE} patients"
    return decade.map(names).fillna(""), list(names.values()), how


def _joined(values: pd.Series, patients: pd.Series) -> tuple[pd.Series, str]:
    """Values of text, spelled as most often; rare ones, and those beyond the commonest, become one group."""
    values = values.groupby(values.map(alike)).transform(lambda same: same.value_counts().index[0])
    owners = patients.groupby(values).nunique().drop("", errors="ignore")
    common = owners.sort_values(ascending=False, kind="stable").index[:MOST]
    rare = [str(name) for name in owners.index if owners[name] < RARE or name not in common]
    rare = rare if len(rare) > 1 else []
    named = values.where(~values.isin(rare), OTHER).replace("", NOT_STATED)
    last = [name for name in (OTHER, NOT_STATED) if (named == name).any()]
    order = [*sorted(set(named) - set(last), key=_natural), *last]
    how = (
        f"values as stated; {wording.count(len(rare), 'rare value')} joined as {OTHER}" if rare else "values as stated"
    )
    return named.astype(pd.CategoricalDtype(order, ordered=True)), how


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """A key by which CT-2 comes before CT-10."""
    parts = re.split(r"(\d+)", text.casefold())
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
