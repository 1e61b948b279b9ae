"""Several data sets as one: a folder of links to them, with a labels.csv in which each class has one name.

It is a data set like any other. Its labels.csv says where each image comes from and what its own set called it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lungkit import config, files
from lungkit.data import sources, splits
from lungkit.data.notes import ColumnMissing, DatasetError, Note, alike, note
from lungkit.data.relabel import Labels
from lungkit.data.sources import Listing

_TABLE = ["file", "label", "patient_id", "split", "source", "modality", "mask", "set", "label_there"]


@dataclass(frozen=True)
class Joined:
    """Listings of several sets with the labels of one: rows of each get its name in front of file and patient."""

    rows: pd.DataFrame  # _TABLE
    roots: Mapping[str, Path]  # of each set, by its name
    synthetic: bool
    notes: tuple[Note, ...]

    def write(self, folder: Path) -> None:
        """Make the folder, which must be new."""
        with files.new_folder(folder) as draft:
            for name, root in self.roots.items():
                (draft / name).symlink_to(root, target_is_directory=True)
            (draft / "labels.csv").write_text(self.table, "utf-8")
            if self.synthetic:
                (draft / "dataset.json").write_text(json.dumps({"synthetic": True}), "utf-8")

    @property
    def table(self) -> str:
        """labels.csv."""
        return str(self.rows.to_csv(index=False, lineterminator="\n"))


def join(
    folder: Path, given: Sequence[str | Path], labels: Labels | None = None, columns: Sequence[str] = ()
) -> tuple[Note, ...]:
    """Make a data set of several in a new folder; notes on what is left out.

    given: at least two, as dataset.load takes them. columns: of labels.csv, for the class: a set takes the first of
    them that it has, otherwise "label". Raises DatasetError where the classes do not match.
    """
    if folder.exists():
        raise DatasetError(f"{folder} is already there; give a new folder")
    together = read(given, labels or Labels(), columns)
    together.write(folder)
    return together.notes


def kept(name: str, given: Sequence[str | Path], labels: Labels, columns: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """The folder `name` of a joined set below the data folder, made at the first call; and its notes, one line each."""
    together = read(given, labels, columns)
    content = f"{together.table}{sorted(map(str, together.roots.items()))}"
    folder = config.data_dir() / "joined" / files.sha256(content.encode())[:12] / name
    if not folder.is_dir():
        together.write(folder)
    return folder, [str(each) for each in together.notes]


def read(given: Sequence[str | Path], labels: Labels, columns: Sequence[str] = ()) -> Joined:
    """The sets, read and matched; no image is opened."""
    listings = _by_name([_listing(source, columns) for source in given])
    there = {name: set(listing.rows["label"]) for name, listing in listings.items()}
    labels.refuse_unused(there)
    known = _shared_classes(there, labels)
    parts = [_renamed(listing, name, labels.meanings(there[name], known, name)) for name, listing in listings.items()]
    publish = [name for name, listing in listings.items() if _publishes(listing)]
    rows = pd.concat(parts, ignore_index=True)
    if len(publish) < len(listings):
        rows["split"] = ""
    omitted = rows["label"] == ""
    return Joined(
        rows.loc[~omitted, _TABLE],
        {name: listing.root for name, listing in listings.items()},
        any(listing.synthetic for listing in listings.values()),
        (
            *(replace(each, finding=f"{name}: {each.finding}") for name, of in listings.items() for each in of.notes),
            *_left_out(rows[omitted], publish if len(publish) < len(listings) else []),
        ),
    )


def _by_name(listings: Sequence[Listing]) -> dict[str, Listing]:
    """The listings by the names that mark their images: of their folders."""
    if len(listings) < 2:
        raise DatasetError("give two data sets or more to join")
    names = [listing.name.removesuffix(f"-{listing.label_column}") for listing in listings]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"two of the sets are called {twice[0]}; rename a folder, because the name marks its images")
    return dict(zip(names, listings, strict=True))


def _left_out(omitted: pd.DataFrame, publish: Sequence[str]) -> list[Note]:
    """Notes on the rows that were left out, and on the sets whose published split was."""
    names = (omitted["set"] + ": " + omitted["label_there"]).value_counts()
    meaning = f"By their labels: {', '.join(f'{name} {count:,}' for name, count in names.items())}."
    return [
        *([Note("images left out", "info", len(omitted), meaning)] if len(omitted) else []),
        *note("published splits left out", "info", publish, "Not every set has one: patients are split by source."),
    ]


def _listing(source: str | Path, columns: Sequence[str]) -> Listing:
    """The set with the first of these label columns that it has."""
    for column in columns:
        try:
            return sources.read(source, column, None, 7)
        except ColumnMissing:
            continue
    return sources.read(source, None, None, 7)


def _publishes(listing: Listing) -> bool:
    """Whether every image has a part of a published split."""
    return bool(listing.rows["split"].map(splits.part_named).notna().all())


def _shared_classes(there: Mapping[str, set[str]], labels: Labels) -> list[str]:
    """Classes that were named, or that two sets have, in the spelling of the first set."""
    counts = Counter(key for found in there.values() for key in {alike(label) for label in found})
    shared = {alike(label): label for found in [*there.values()][::-1] for label in sorted(found)}
    stated = {alike(name) for name in (*labels.classes, *labels.stated)}
    return [*labels.classes, *(name for key, name in shared.items() if counts[key] > 1 and key not in stated)]


def _renamed(listing: Listing, name: str, meanings: Mapping[str, str | None]) -> pd.DataFrame:
    """The rows of a set as they stand in the joined one; without a label where it is to be left out."""
    rows = listing.rows

    def below(column: str) -> pd.Series:
        return (f"{name}/" + rows[column]).where(rows[column] != "", "")

    return rows.assign(
        file=below("file"),
        mask=below("mask"),
        patient_id=below("patient_id"),
        set=name,
        label_there=rows["label"],
        label=rows["label"].map(lambda label: meanings[label] or ""),
    )
