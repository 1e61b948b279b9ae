"""Train, validation and test by patient: stratified, deterministic, refused where a patient would be on two sides."""

import hashlib
import re

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lungkit.data.folders import few
from lungkit.errors import LungkitError

PARTS = ("train", "val", "test")
SHARES = (0.7, 0.15, 0.15)  # of each class's images
BY = ("patient", "image", "source")
SET_ASIDE = "set_aside"  # readable, but another part needs all images of its patient
REFUSED = "refused"  # not readable as an image
EXCLUDED = "excluded"  # by a person's decision (lungkit.data.decisions)

_KEPT_FIRST = ("test", "val", "train")  # of a patient on two sides, the first of these keeps its images
_SPELLINGS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class SplitError(LungkitError):
    """The images cannot be split as asked; the message names the class, the rows or the part."""


class SplitLeak(SplitError):
    """A patient has images in more than one of train, val and test; the message names the patients."""


def part_named(text: str) -> str | None:
    """The part that a published split's name means, or None.

    >>> part_named("official_train"), part_named("Validation"), part_named("fold 3")
    ('train', 'val', None)
    """
    return _SPELLINGS.get(re.sub(r"^(official|published)[ _-]", "", text.strip().lower()))


def groups(manifest: pd.DataFrame) -> np.ndarray:
    """The group of each row, an int array (n,): patients, joined where byte-identical files link two of them.

    Needs the columns `patient_id` and `sha256` (rows with an empty sha256 link nothing). Linking is transitive.
    """
    patients, names = pd.factorize(manifest["patient_id"])
    contents, _ = pd.factorize(manifest["sha256"].where(manifest["sha256"] != "", manifest["file"]))
    size = len(names) + len(manifest)
    links = coo_matrix((np.ones(len(manifest)), (patients, len(names) + contents)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return pd.factorize(component[patients])[0]


def assign(
    manifest: pd.DataFrame,
    *,
    seed: int,
    overlap: str = "refuse",
    fold: str | None = None,
    by: str = "patient",
) -> pd.DataFrame:
    """A copy of the manifest with `split` and `note` filled; rows whose split is "refused" stay as they are.

    A published split (every row of `split` filled: official_train, published_test, val, …) is kept; where it has
    no validation part, one is taken from its training patients. Without a published split, patients are distributed to
    train, val and test by SHARES of each class's images. No choice depends on the order of the rows.

    overlap: what to do with a patient on two sides of a published split. "refuse" raises SplitLeak; "set_aside" keeps
        the patient's test images (or else the validation images) and sets the others aside.
    fold: "2/4" makes the second of four parts the test part, whatever split was published, and takes validation
        patients from the rest: four such splits test every patient once.
    by: "image" distributes images instead of patients. The scores are too good then, because a patient is on both
        sides; its purpose is to show by how much. "source", for folds, distributes hospitals or collections: no source
        is in both training and test. Validation patients are still taken from the sources of the training.

    Raises SplitError if a class has too few patients to be in each part, or if the published split is incomplete.
    """
    if by not in BY:
        raise SplitError(f"by is '{by}'; accepted: {', '.join(BY)}")
    if overlap not in ("refuse", "set_aside"):
        raise SplitError(f"overlap is '{overlap}'; accepted: 'refuse', 'set_aside'")
    manifest = manifest.copy()
    use = manifest[manifest["split"] != REFUSED]
    if by == "source" and not fold:
        raise SplitError("by is 'source', which needs a fold such as '1/2'; accepted without one: patient, image")
    if by == "image":
        use = use.assign(patient_id=use["file"], sha256="")
    if fold:
        manifest.loc[use.index, "split"] = _fold(use, fold, seed, by)
        return manifest
    if use["split"].eq("").all() or by == "image":
        manifest.loc[use.index, "split"] = _distributed(use, PARTS, SHARES, seed)
        return manifest

    use = use.assign(split=_published(use))
    manifest.loc[use.index, "split"] = use["split"]
    leaks = _leaks(use)
    if len(leaks) and overlap == "refuse":
        raise SplitLeak(
            f"the published split has {_named(leaks)}. Give each patient one split, or choose overlap 'set_aside': "
            "it keeps the test images of such a patient and sets its other images aside"
        )
    use, set_aside = _keep_one_side(use, leaks)
    manifest.loc[set_aside.index, ["split", "note"]] = set_aside[["split", "note"]]
    if not use["split"].eq("train").any():
        raise SplitError(
            "every training image is of a patient who is also in val or test, which leaves none to train on. "
            "Leave split empty in every row to have the patients split here"
        )
    if not use["split"].eq("val").any():
        train = use[use["split"] == "train"]
        manifest.loc[train.index, "split"] = _validation_taken(train, seed)
    return manifest


def _of_sources(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their sources in the place of patients; sources that share a patient or a file are one."""
    shared = groups(rows).astype(str)
    return rows.assign(patient_id=rows["source"], sha256=shared, source="")


def _fold(rows: pd.DataFrame, fold: str, seed: int, by: str) -> np.ndarray:
    """The part of each row, where this fold is the test."""
    written = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", fold)
    number, folds = map(int, written.groups()) if written else (0, 0)
    if not (1 <= number <= folds and 2 <= folds <= 20):
        raise SplitError(f"fold is '{fold}'; accepted: '1/4' for the first of four, and so on, from 2 to 20")
    names = tuple(str(i) for i in range(1, folds + 1))
    whole, noun = (_of_sources(rows), "source") if by == "source" else (rows, "patient")
    part = _distributed(whole, names, (1 / folds,) * folds, seed, noun)
    is_test = part == str(number)
    part = part.astype(object)
    part[~is_test] = _validation_taken(rows[~is_test], seed)
    part[is_test] = "test"
    return part


def _validation_taken(rows: pd.DataFrame, seed: int) -> np.ndarray:
    """The part of each row, train or val, in the proportion that these two have in SHARES."""
    share = SHARES[1] / (SHARES[0] + SHARES[1])
    return _distributed(rows, ("train", "val"), (1 - share, share), seed)


def refuse_leaks(manifest: pd.DataFrame) -> None:
    """Raises SplitLeak, naming the patients, if a patient (or byte-identical images) is in two of train, val, test."""
    leaks = _leaks(manifest)
    if len(leaks):
        raise SplitLeak(f"the split has {_named(leaks)}. Each patient must be in one part only")


def _published(rows: pd.DataFrame) -> pd.Series:
    """The published split in our spelling; an incomplete or unknown one is refused."""
    empty = rows.loc[rows["split"] == "", "file"]
    if len(empty):
        raise SplitError(
            f"{len(empty)} of {len(rows)} images have no split, {few(empty, 10)} among them: "
            "give every image a split, or none to have the patients split here"
        )
    parts = rows["split"].map(part_named)
    unknown = sorted(set(rows.loc[parts.isna(), "split"]))
    if unknown:
        raise SplitError(f"unknown split {few(map(repr, unknown), 10)}; accepted: train, val, test")
    missing = [part for part in ("train", "test") if not parts.eq(part).any()]
    if missing:
        raise SplitError(
            f"the published split has no {' and no '.join(missing)} images (it has: {', '.join(sorted(set(parts)))}); "
            "it needs train and test, or leave split empty in every row"
        )
    return parts


def _leaks(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows of train, val and test whose group is in more than one of them, with their `group`."""
    rows = manifest[manifest["split"].isin(PARTS)]
    rows = rows.assign(group=groups(rows))
    return rows[rows.groupby("group")["split"].transform("nunique") > 1]


def _keep_one_side(rows: pd.DataFrame, leaks: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows that stay, rows set aside): of each leaking group the images of its first side in test, val, train stay."""
    rank = leaks["split"].map(_KEPT_FIRST.index)
    best = rank.groupby(leaks["group"]).transform("min")
    set_aside = leaks[rank > best]
    kept = best[set_aside.index].map(lambda side: _KEPT_FIRST[side])
    note = "was " + set_aside["split"] + "; its patient, or an identical image, is also in " + kept
    return rows.drop(set_aside.index), set_aside.assign(split=SET_ASIDE, note=note)


def _named(leaks: pd.DataFrame) -> str:
    """How many patients leak, and for the first ten of them a file on each side."""
    named = [
        f"{' = '.join(sorted(set(rows['patient_id'])))} "
        f"({'; '.join(f'{side}: {files.min()}' for side, files in rows.groupby('split')['file'])})"
        for _, rows in leaks.groupby("group")
    ]
    noun = "patient" if len(named) == 1 else "patients"
    return f"{len(named)} {noun} on more than one side: {few(sorted(named), 10)}"


def _distributed(
    rows: pd.DataFrame, parts: tuple[str, ...], shares: tuple[float, ...], seed: int, noun: str = "patient"
) -> np.ndarray:
    """The part of each row: whole groups, distributed to bring the images of each class near the shares, within each
    source.

    The rarest class of a source comes first. Its groups go, the largest first, to the part that has least of its quota
    (apportionment by Sainte-Laguë: every part gets patients with many images), and the last ones to parts that still
    lack the class. Groups of one size are shuffled by a hash of seed and patient. A class that has too few patients in
    one of several sources may be missing in a part there, but not in the part.
    """
    group = groups(rows)
    strata = pd.MultiIndex.from_frame(rows[["source", "label"]])
    stratum, there_are = pd.factorize(strata, sort=True)
    counts = pd.crosstab(group, stratum).to_numpy()  # groups x strata: images of a class in a source
    labels = pd.Series(there_are.get_level_values(1))
    alone = ~labels.duplicated(keep=False)  # classes that have one source
    owners = (counts > 0).sum(axis=0)  # of each stratum: groups with images of it
    key = _own_names(rows).groupby(group).min().map(lambda name: chance(name, seed)).to_numpy()
    quota = counts.sum(axis=0)[:, None] * np.array(shares)  # strata x parts: images
    filled = np.zeros_like(quota)
    part_of = np.full(len(counts), -1)

    for c in np.argsort(owners, kind="stable"):
        if alone[c] and owners[c] < len(parts):
            raise SplitError(
                f"class '{labels[c]}' has images of {owners[c]} {noun}(s) only; to be in each of "
                f"{', '.join(parts)} it needs {len(parts)} or more"
            )
        waiting = sorted(np.flatnonzero((counts[:, c] > 0) & (part_of < 0)), key=lambda g: (-counts[g, c], key[g]))
        for left, g in zip(range(len(waiting), 0, -1), waiting, strict=True):
            lacking = np.flatnonzero(filled[c] == 0)
            choices = lacking if left <= len(lacking) else np.arange(len(parts))
            fullness = (filled[c, choices] + counts[g, c] / 2) / quota[c, choices]
            part_of[g] = choices[np.argmin(fullness)]
            filled[:, part_of[g]] += counts[g]
    there = pd.DataFrame(filled).groupby(labels.to_numpy()).sum()
    if (missing := there.index[(there == 0).any(axis=1)]).size:
        raise SplitError(
            f"class '{missing[0]}' cannot be in each of {', '.join(parts)}: too few of its {noun}s have "
            "images of no rarer class"
        )
    return np.asarray(np.array(parts)[part_of[group]])


def _own_names(rows: pd.DataFrame) -> pd.Series:
    """Each row's patient, without what a joined set puts before a slash: so it keeps the parts of the sets it is of."""
    first, slash, rest = (rows["patient_id"].str.partition("/")[i] for i in range(3))
    shared = first.groupby(rows["source"]).transform("nunique").eq(1) & slash.ne("")
    return rows["patient_id"].mask(shared & first.ne(""), rest)


def chance(name: str, seed: int) -> str:
    """A sort key that shuffles names reproducibly: of the seed and the name only, never of the order of rows."""
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
