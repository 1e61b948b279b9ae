"""Checks of a data set before training: unreadable files, duplicates, leaks, imbalance, shortcuts."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
import PIL.Image

from lungkit import progress
from lungkit.data import images, preprocess, splits
from lungkit.data.dataset import Dataset
from lungkit.data.folders import one_line
from lungkit.data.notes import Note

# Near duplicates: perceptual hashes (64 bits) that differ in few bits propose a pair, and the correlation of the two
# pictures at 32 x 32 decides. Both limits come from pairs of seven public sets: of different children's X-rays, about
# 1,000 pairs are within the bits and none above the correlation; re-encoded, re-windowed or annotated copies, and
# neighbouring CT slices, are above it. But slices of one CT protocol resemble each other: 59 pairs of 839 people's
# slices are above it. For pictures of different patients, the limit is therefore raised to a correlation that such
# pairs of this modality in this data set do not reach by chance (`chance_correlation`).
MOST_BITS = 8
LEAST_CORRELATION = 0.97
MOST_CORRELATION = 0.995  # the highest limit: copies of a picture that were encoded again are above it
BY_CHANCE = 0.1  # pairs of different patients expected above the raised correlation, in the whole set
TO_CALIBRATE = 100  # images with a known patient; fewer do not show the tail of the distribution
SAMPLED = 3000  # the most images of a modality, for the tail
CLOSEST = 3  # pairs below the limit that the report shows
GRID = 32  # pixels
ROWS_AT_ONCE = 512  # of the matrix of all pairs

IMBALANCE = 3.0  # largest class by smallest, images
UNEVEN_SOURCE = 0.2  # difference of a class's share in one source from its share of all images
FEW_PATIENTS = 10  # of a class
SMALL_PART = 50  # images of validation or test
STRONG_DIFFERENCE = 0.8  # Cohen's d between classes: conventionally "large"

Row = dict[str, Any]  # of the findings
Pair = tuple[int, int]  # of row numbers, the smaller first

PERCENTILES = (5, 50, 95)
_FACTS = ["mean", "std", *(f"p{q:02d}" for q in PERCENTILES)]


@dataclass(frozen=True, eq=False)
class QualityReport:
    """What the checks of a data set found, as tables.

    findings: finding, severity (error, warning, info), count, share (of the images or patients looked at, 0..1; 0 of
        what is not among them), meaning, examples; worst first. A check that found nothing is an info with count 0.
    duplicates: one row per pair: file_a, file_b, kind (exact: same bytes or same pixels; near), label_a, label_b,
        split_a, split_b, patient_a, patient_b, distance (differing bits of 64), correlation (-1..1), across_splits,
        two_labels, two_patients; pairs across splits first, then under two labels, then exact ones.
    thresholds: by modality: images, patients (known ones), correlation (what a near pair of different patients needs),
        calibrated (whether it comes from this set; else it is LEAST_CORRELATION).
    closest: the most similar pairs of different patients that are not duplicates; columns as in `duplicates`.
    unreadable: file, reason.
    balance: class by split, images and patients.
    spread: per class the patients, images per patient, widths and heights in pixels, and grey values
        (0..1, CT through the lung window): mean over images of each image's mean, std and percentiles, and the
        standard deviation of the means.
    images: one row per readable image: file, label, split, width, height and its grey values.
    """

    name: str
    classes: tuple[str, ...]
    findings: pd.DataFrame
    duplicates: pd.DataFrame
    thresholds: pd.DataFrame
    closest: pd.DataFrame
    unreadable: pd.DataFrame
    balance: pd.DataFrame
    spread: pd.DataFrame
    images: pd.DataFrame


@dataclass(frozen=True)
class _Look:
    """What the checks need of one image."""

    content: str  # SHA-256 of the decoded pixels
    bits: np.ndarray  # bool (64,), perceptual hash
    grid: np.ndarray  # float32 (GRID * GRID,), mean 0 and length 1; zeros for a blank image
    facts: tuple[float, ...]  # _FACTS


def audit(dataset: Dataset) -> QualityReport:
    """Read every image of the manifest once (in threads, with a progress bar) and compare all pairs."""
    rows = dataset.manifest
    files = [dataset.root / file for file in rows["file"]]
    looks = list(progress.parallel(_look, files, label=f"checking {dataset.name}"))
    readable = np.array([isinstance(look, _Look) for look in looks], bool)
    unreadable = pd.DataFrame(
        {"file": rows["file"][~readable], "reason": [look for look in looks if isinstance(look, str)]}
    ).reset_index(drop=True)

    seen = [look for look in looks if isinstance(look, _Look)]
    rows = rows[readable].reset_index(drop=True)
    facts = pd.DataFrame([look.facts for look in seen], columns=_FACTS)
    pictures = pd.concat([rows[["file", "label", "split", "patient_id", "width", "height"]], facts], axis=1)
    thresholds = _thresholds(rows, seen)
    duplicates, closest = _duplicates(rows, seen, thresholds)
    spread = _spread(pictures, dataset.classes)
    findings = _findings(dataset, pictures, duplicates, unreadable)
    return QualityReport(
        dataset.name,
        dataset.classes,
        findings,
        duplicates,
        thresholds,
        closest,
        unreadable,
        _balance(dataset),
        spread,
        pictures.drop(columns="patient_id"),
    )


def _look(path: Path) -> _Look | str:
    """The facts of an image, or why it cannot be read."""
    try:
        image = images.read(path)
    except images.ImageRefused as error:
        return f"{error.rule}. {error.remedy}"
    grey = image.pixels
    if image.units == "HU":
        grey = preprocess.window_level(grey, *preprocess.Preprocessing().window)
    picture = PIL.Image.fromarray(np.round(grey * 255).astype(np.uint8))
    grid = np.asarray(picture.resize((GRID, GRID), PIL.Image.Resampling.BOX), np.float32).ravel()
    grid -= grid.mean()
    length = np.linalg.norm(grid)
    return _Look(
        hashlib.sha256(repr(grey.shape).encode() + image.pixels.tobytes()).hexdigest(),
        imagehash.phash(picture).hash.ravel(),
        grid / length if length > 0 else grid,
        _grey_facts(picture),
    )


def _grey_facts(picture: PIL.Image.Image) -> tuple[float, ...]:
    """_FACTS of an 8-bit image, 0..1, from its histogram (a tenth of the time that sorting its pixels takes)."""
    share = np.array(picture.histogram()) / (picture.width * picture.height)
    level = np.linspace(0, 1, 256)
    mean = share @ level
    percentiles = level[np.searchsorted(share.cumsum(), np.array(PERCENTILES) / 100).clip(max=255)]
    return float(mean), float(np.sqrt(share @ (level - mean) ** 2)), *map(float, percentiles)


# Duplicates -----------------------------------------------------------------------------------------------------


def chance_correlation(grids: np.ndarray, patients: np.ndarray) -> float:
    """The correlation above which BY_CHANCE pairs of different patients are expected, LEAST to MOST_CORRELATION.

    grids: (n, GRID * GRID), mean 0 and length 1. patients: (n,). Fisher's z of the pairs' correlations falls off no
    slower than an exponential beyond its upper quantiles. Two stretches of it are extrapolated, 90 to 99 % and 99 to
    99.9 %, and the lower result counts: real duplicates among the pairs bend the second upwards.
    """
    a, b, correlation = _sampled_pairs(grids)
    people = np.unique(patients, return_inverse=True)[1]  # numbers are compared faster than names
    correlation = correlation[people[a] != people[b]]
    if not len(correlation):
        return LEAST_CORRELATION
    z = np.arctanh(np.clip(correlation, -0.9999, 0.9999))
    q90, q99, q999 = np.quantile(z, [0.9, 0.99, 0.999])
    extrapolated = (
        end + (end - start) / np.log(10) * np.log(beyond * len(z) / BY_CHANCE)
        for start, end, beyond in ((q90, q99, 0.01), (q99, q999, 0.001))
    )
    return float(np.clip(np.tanh(min(extrapolated)), LEAST_CORRELATION, MOST_CORRELATION))


def _thresholds(rows: pd.DataFrame, looks: list[_Look]) -> pd.DataFrame:
    """By modality, from the images of known patients."""
    known = ~rows["patient_id"].str.startswith("image-")
    table = {}
    for modality, of_it in rows.groupby("modality"):
        used = of_it[known[of_it.index]]
        calibrated = len(used) >= TO_CALIBRATE and used["patient_id"].nunique() > 1
        grids = np.array([looks[i].grid for i in used.index], np.float32)
        table[modality] = {
            "images": len(of_it),
            "patients": used["patient_id"].nunique(),
            "correlation": chance_correlation(grids, used["patient_id"].to_numpy(str))
            if calibrated
            else LEAST_CORRELATION,
            "calibrated": calibrated,
        }
    columns = ["images", "patients", "correlation", "calibrated"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns).rename_axis("modality")


def _duplicates(rows: pd.DataFrame, looks: list[_Look], thresholds: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The duplicates, and the closest other pairs of different patients."""
    bits = np.array([look.bits for look in looks], bool).reshape(-1, 64)
    grids = np.array([look.grid for look in looks], np.float32).reshape(-1, GRID * GRID)
    exact = _equal_pairs(rows["sha256"]) | _equal_pairs(pd.Series([look.content for look in looks], index=rows.index))
    alike = _near_pairs(bits, grids)
    needed = rows["modality"].map(thresholds["correlation"]).to_numpy(float)
    patients = rows["patient_id"].to_numpy(str)
    near = {(a, b) for a, b in alike if patients[a] == patients[b] or grids[a] @ grids[b] >= max(needed[a], needed[b])}
    closest = _closest(grids, patients, taken=exact | near)
    return (
        _pairs_table(rows, bits, grids, sorted(exact | near), exact),
        _pairs_table(rows, bits, grids, closest, exact).sort_values("correlation", ascending=False, ignore_index=True),
    )


def _sampled_pairs(grids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows a and b of every pair among SAMPLED images, and the correlation of the two."""
    sampled = np.arange(len(grids))
    if len(grids) > SAMPLED:
        sampled = np.sort(np.random.default_rng(7).choice(len(grids), SAMPLED, replace=False))
    a, b = np.triu_indices(len(sampled), 1)
    return sampled[a], sampled[b], (grids[sampled] @ grids[sampled].T)[a, b]


def _closest(grids: np.ndarray, patients: np.ndarray, taken: set[Pair]) -> list[Pair]:
    """Of SAMPLED images, the CLOSEST pairs of different patients with the highest correlation that are not taken."""
    a, b, correlation = _sampled_pairs(grids)
    people = np.unique(patients, return_inverse=True)[1]  # numbers are compared faster than names
    correlation[people[a] == people[b]] = -1
    most = min(CLOSEST + len(taken), len(correlation))
    least = np.partition(correlation, -most)[-most] if most else 0
    high = np.flatnonzero(correlation >= least)
    order = high[np.argsort(-correlation[high], kind="stable")][:most]
    pairs = [(int(a[i]), int(b[i])) for i in order if correlation[i] > 0]
    return [pair for pair in pairs if pair not in taken][:CLOSEST]


def _pairs_table(
    rows: pd.DataFrame, bits: np.ndarray, grids: np.ndarray, pairs: list[Pair], exact: set[Pair]
) -> pd.DataFrame:
    a, b = np.array(pairs, int).reshape(-1, 2).T
    table = pd.DataFrame(
        {f"{column.removesuffix('_id')}_{side}": rows[column].to_numpy()[index]
         for column in ("file", "label", "split", "patient_id")
         for side, index in (("a", a), ("b", b))}
    )  # fmt: skip
    table["kind"] = ["exact" if pair in exact else "near" for pair in pairs]
    table["distance"] = (bits[a] != bits[b]).sum(axis=1)
    table["correlation"] = np.einsum("ij,ij->i", grids[a], grids[b]).round(4)
    both_dealt = table["split_a"].isin(splits.PARTS) & table["split_b"].isin(splits.PARTS)
    table["across_splits"] = both_dealt & (table["split_a"] != table["split_b"])
    table["two_labels"] = table["label_a"] != table["label_b"]
    table["two_patients"] = table["patient_a"] != table["patient_b"]
    order = ["file_a", "file_b", "kind"] + [f"{what}_{side}" for what in ("label", "split", "patient") for side in "ab"]
    order += ["distance", "correlation", "across_splits", "two_labels", "two_patients"]
    return table[order].sort_values(
        ["across_splits", "two_labels", "kind", "distance", "file_a", "file_b"],
        ascending=[False, False, True, True, True, True],
        ignore_index=True,
    )


def _equal_pairs(content: pd.Series) -> set[Pair]:
    """All pairs of row numbers with equal content."""
    repeated = content.reset_index(drop=True)
    repeated = repeated[repeated.duplicated(keep=False)]
    return {pair for index in repeated.groupby(repeated).groups.values() for pair in combinations(sorted(index), 2)}


def _near_pairs(bits: np.ndarray, grids: np.ndarray) -> set[Pair]:
    """All pairs (a, b), a < b, within MOST_BITS whose grids correlate with LEAST_CORRELATION or more."""
    signs = bits.astype(np.float32) * 2 - 1  # a product of these matrices counts equal bits
    pairs: set[Pair] = set()
    for start in range(0, len(signs), ROWS_AT_ONCE):
        agreement = signs[start : start + ROWS_AT_ONCE] @ signs[start:].T  # 64 - 2 x differing bits
        a, b = np.nonzero(agreement >= 64 - 2 * MOST_BITS)
        a, b = a[a < b] + start, b[a < b] + start
        alike = np.einsum("ij,ij->i", grids[a], grids[b]) >= LEAST_CORRELATION
        pairs.update(zip(a[alike].tolist(), b[alike].tolist(), strict=True))
    return pairs


# Tables ---------------------------------------------------------------------------------------------------------


def _balance(dataset: Dataset) -> pd.DataFrame:
    rows = dataset.manifest.assign(split=dataset.manifest["split"].replace("", "not split"))
    counts = rows.groupby(["label", "split"], sort=False).agg(
        images=("file", "size"), patients=("patient_id", "nunique")
    )
    table = counts.reset_index().rename(columns={"label": "class"})
    order = {name: place for place, name in enumerate((*dataset.classes, *splits.PARTS))}
    return table.sort_values(["class", "split"], key=lambda names: names.map(order).fillna(99), ignore_index=True)


def _spread(pictures: pd.DataFrame, classes: Iterable[str]) -> pd.DataFrame:
    table: dict[str, dict[str, float]] = {}
    for name in classes:
        rows = pictures[pictures["label"] == name]
        per_patient = rows.groupby("patient_id").size()
        table[name] = {"images": len(rows), "patients": len(per_patient)}
        for what, values in {
            "images_per_patient": per_patient,
            "width": rows["width"],
            "height": rows["height"],
        }.items():
            table[name] |= {f"{what}_{end}": getattr(values, end)() for end in ("min", "median", "max")}
        table[name] |= {f"grey_{fact}": rows[fact].mean() for fact in _FACTS}
        table[name]["grey_mean_sd"] = rows["mean"].std()
    return pd.DataFrame(table).T.rename_axis("class")


def _findings(
    dataset: Dataset, pictures: pd.DataFrame, duplicates: pd.DataFrame, unreadable: pd.DataFrame
) -> pd.DataFrame:
    rows = dataset.manifest
    exact, across = duplicates["kind"] == "exact", duplicates["across_splits"]
    findings = [
        _finding(
            "unreadable files", "error", len(unreadable), len(rows),
            "They cannot be used: training and every score leave them out.",
            unreadable["file"] + ": " + unreadable["reason"],
        ),
        _unreadable_classes(pictures, dataset.classes),
        *(_noted(note) for note in dataset.notes),
        _patient_finding(rows),
        *(
            _pair_finding(what, severity, duplicates[pairs], len(rows), meaning)
            for what, severity, pairs, meaning in (
                ("exact duplicates across splits", "error", exact & across,
                 "A test or validation image was seen in training: the scores are too high."),
                ("near duplicates across splits", "error", ~exact & across,
                 "Almost the same picture is on both sides, so scores reward memory."),
                ("same picture under two labels", "error", duplicates["two_labels"],
                 "At least one of the two labels is wrong, or they are neighbouring slices."),
                ("same picture under two patients", "warning", duplicates["two_patients"],
                 "The patient ids do not separate patients; a split by them may leak."),
                ("exact duplicates within one side", "warning", exact & ~across,
                 "They count twice in training and in every score."),
                ("near duplicates within one side", "info", ~exact & ~across,
                 "Copies or neighbouring slices: fewer independent images than files."),
            )
        ),
        _imbalance(rows, dataset.classes),
        _uneven_sources(rows),
        *(_few_patients(rows, name) for name in dataset.classes),
        *(_small_part(rows, part, name) for part, name in (("val", "validation"), ("test", "test"))),
        _unknown_patients(rows),
        _difference(pictures, pictures["mean"], "brightness differs between classes",
                    "A model can tell the classes by mean brightness, without the disease."),
        _difference(pictures, pictures["std"], "contrast differs between classes",
                    "A model can tell the classes by contrast, without the disease."),
        _difference(pictures, pictures["width"] / pictures["height"], "shape differs between classes",
                    "A model can tell the classes by width to height, without the disease."),
        _difference(pictures, (pictures["width"] * pictures["height"]).map(np.log), "size differs between classes",
                    "A model can tell the classes by resolution, without the disease."),
    ]  # fmt: skip
    table = pd.DataFrame([finding for finding in findings if finding])
    rank = table["severity"].map(["error", "warning", "info"].index)
    return table.assign(rank=rank).sort_values(["rank"], kind="stable", ignore_index=True).drop(columns="rank")


def _finding(finding: str, severity: str, count: int, of: int, meaning: str, examples: Iterable[str] = ()) -> Row:
    return {
        "finding": finding,
        "severity": severity if count else "info",
        "count": count,
        "share": round(count / of, 4) if of else 0.0,
        "meaning": meaning if count else "None found.",
        "examples": "; ".join(one_line(example) for example in list(examples)[:3]) if count else "",
    }


def _pair_finding(finding: str, severity: str, pairs: pd.DataFrame, of: int, meaning: str) -> Row:
    """Counts pairs; the share is of the images in any pair."""
    row = _finding(finding, severity, len(pairs), of, meaning, pairs["file_a"] + " = " + pairs["file_b"])
    return row | {"share": round(len(set(pairs["file_a"]) | set(pairs["file_b"])) / of, 4) if of else 0.0}


def _patient_finding(rows: pd.DataFrame) -> Row:
    dealt = rows[rows["split"].isin(splits.PARTS)]
    sides = dealt.groupby("patient_id")["split"].nunique()
    leaking = sides[sides > 1].index
    meaning = "A model is tested on people it was trained on: the scores are too high."
    return _finding("patients on two sides of the split", "error", len(leaking), len(sides), meaning, leaking)


def _imbalance(rows: pd.DataFrame, classes: Iterable[str]) -> Row:
    sizes = rows["label"].value_counts().reindex(list(classes), fill_value=0)
    ratio = sizes.max() / max(sizes.min(), 1)
    count = int(sizes.min()) if ratio > IMBALANCE else 0
    meaning = f"{ratio:.1f} images of {sizes.idxmax()} for each of {sizes.idxmin()}: accuracy alone will mislead."
    return _finding("class imbalance", "warning", count, len(rows), meaning, [str(sizes.idxmin())])


def _uneven_sources(rows: pd.DataFrame) -> Row | None:
    """Counts the sources with a class whose share differs by UNEVEN_SOURCE or more from its share of all images."""
    if rows["source"].nunique() == 1:
        return None
    whole = rows["label"].value_counts(normalize=True).to_dict()
    shares = pd.crosstab(rows["source"], rows["label"], normalize="index")
    gaps = {
        (source, label): (share, whole[label])
        for source, row in shares.to_dict("index").items()
        for label, share in row.items()
        if abs(share - whole[label]) >= UNEVEN_SOURCE
    }
    odd = sorted(gaps, key=lambda one: -abs(gaps[one][0] - gaps[one][1]))
    named = [f"{one[0]}: {gaps[one][0]:.0%} {one[1]}, of all {gaps[one][1]:.0%}" for one in odd]
    meaning = "A model can tell the classes by where an image comes from, without the disease."
    sources = {source for source, _ in odd}
    return _finding("sources with other shares of classes", "warning", len(sources), len(shares), meaning, named)


def _few_patients(rows: pd.DataFrame, label: str) -> Row | None:
    patients = rows.loc[rows["label"] == label, "patient_id"].nunique()
    if patients >= FEW_PATIENTS:
        return None
    meaning = "Too few for results that apply to other patients."
    return _finding(f"few patients of {label}", "warning", patients, rows["patient_id"].nunique(), meaning)


def _small_part(rows: pd.DataFrame, part: str, name: str) -> Row | None:
    images_ = int((rows["split"] == part).sum())
    if not 0 < images_ < SMALL_PART:
        return None
    use = "the threshold, the temperature and the choice between models rest" if part == "val" else "every score rests"
    meaning = f"Too few for precise results: {use} on them."
    return _finding(f"small {name} part", "warning", images_, len(rows), meaning)


def _unreadable_classes(pictures: pd.DataFrame, classes: Sequence[str]) -> Row | None:
    lost = sorted(set(classes) - set(pictures["label"]))
    meaning = "No image of them can be read: nothing can be trained."
    return (
        _finding("classes without a readable image", "error", len(lost), len(classes), meaning, lost) if lost else None
    )


def _noted(note: Note) -> Row:
    """A note of the source; it is not a share of the images."""
    return _finding(note.finding, note.severity, note.count, 0, note.meaning, note.examples)


def _unknown_patients(rows: pd.DataFrame) -> Row:
    files = rows.loc[rows["patient_id"].str.startswith("image-"), "file"]
    meaning = "Each distinct picture counts as a patient of its own: other images of the same person may leak."
    return _finding("images without a patient id", "warning", len(files), len(rows), meaning, files)


def _difference(pictures: pd.DataFrame, values: pd.Series, finding: str, meaning: str) -> Row:
    """Counts the pairs of classes whose means differ by STRONG_DIFFERENCE pooled standard deviations or more."""
    by_class = {name: values[pictures["label"] == name] for name in pictures["label"].unique()}
    strong = {}
    for a, b in combinations(sorted(by_class), 2):
        pooled = np.sqrt((by_class[a].var() + by_class[b].var()) / 2)
        gap = abs(by_class[a].mean() - by_class[b].mean())
        effect = gap / max(pooled, 1e-9) if gap > 1e-9 else 0.0  # equal values differ by rounding
        if effect >= STRONG_DIFFERENCE:
            strong[f"{a} and {b}: {effect:.1f} standard deviations"] = effect
    pairs = len(by_class) * (len(by_class) - 1) // 2
    return _finding(finding, "warning", len(strong), pairs, meaning, sorted(strong, key=lambda pair: -strong[pair]))
