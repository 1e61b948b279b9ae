"""What a registered version is worth elsewhere: on sources of which it has not seen an image.

A source is a hospital or a collection. All of its images are scored, at the version's own operating point: whatever
parts the source publishes, none of them was seen. Each source is measured alone, since a figure over several would hide
the worst, and the registry keeps every measurement with the number of times that the source was scored.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lungkit import files
from lungkit.data import dataset, preprocess
from lungkit.data.notes import ColumnMissing, DatasetError, alike
from lungkit.data.relabel import Labels
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import Outside
from lungkit.training import recipes, release

MOST_SEEN = 0.1  # of a source's images: a version that has seen more of them knows the source


def relabelled(version: registry.Version, source: str, columns: list[str], labels: Labels) -> dataset.Dataset:
    """The data set at `source`, its labels in the version's classes; of images to leave out "".

    columns: of labels.csv, for the class; the first one that the set has is taken, by default the version's own.
    Raises DatasetError where a label is none of the classes.
    """
    own = version.card.data.recipe.get("label_column")
    made = release.phantom_of(version, source)
    data = _read(source, [*columns, *([own] if own and not columns else [])], made)
    known = {alike(name): name for name in version.card.classes}
    if unknown := [name for name in labels.classes if alike(name) not in known]:
        raise DatasetError(f"{version} has no class '{unknown[0]}'; it answers {', '.join(version.card.classes)}")
    data = replace(data, name=data.name.removesuffix(f"-{data.label_column}"))
    means = labels.meanings(data.manifest["label"], version.card.classes, data.name)
    classes = {label: known[alike(name)] if name else "" for label, name in means.items()}
    label = data.manifest["label"].map(classes)
    return replace(data, manifest=data.manifest.assign(label_there=data.manifest["label"], label=label))


def _read(source: str, columns: list[str], made: dict[str, Any]) -> dataset.Dataset:
    for column in columns:
        try:
            return dataset.as_given(source, label_column=column, **made)
        except ColumnMissing:
            continue
    return dataset.as_given(source, **made)


def measure(version: registry.Version, data: dataset.Dataset) -> list[Outside]:
    """The version on each source of the data, which is as `relabelled` gives it; nothing is recorded yet.

    Images that the version has seen, by their content, and those stated to be of a modality that it does not read are
    left out and counted. LungkitError where it knows a source: one that it learned from, or of which it has seen more
    than MOST_SEEN of the images.
    """
    rows = data.part().drop_duplicates("file")
    return [_measured(version, data, str(name), of) for name, of in rows.groupby("source")]


def _measured(version: registry.Version, data: dataset.Dataset, source: str, rows: pd.DataFrame) -> Outside:
    why = left_out(version, rows)
    if knows(version, source, rows):
        what = (
            f"{(why == 'seen').sum():,} of its {len(rows):,} images" if (why == "seen").any() else "other images of it"
        )
        raise LungkitError(
            f"{source} is not outside for {version}, which has seen {what}; `lungkit evaluate --data` scores its test "
            "part"
        )
    used = rows[why == ""]
    if used.empty:
        raise LungkitError(f"{source}: no image of it is left to score; {len(rows):,} were left out")
    scored = release.score(version, replace(data, manifest=used), "all", "lungkit evaluate --outside")
    there = used.get("label_there", used["label"])
    renamed = {label: name for label, name in zip(there, used["label"], strict=True) if alike(label) != alike(name)}
    return Outside(
        source=source,
        data=data.name,
        labels=dict(sorted(renamed.items())),
        omitted=int((why == "label").sum()),
        other_modality=int((why == "modality").sum()),
        seen=int((why == "seen").sum()),
        unreadable=len(scored.unreadable),
        measured=replace(scored.evaluation.record, at_half=None, times_scored=_times(version, source) + 1),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def left_out(version: registry.Version, rows: pd.DataFrame) -> pd.Series:
    """Why each image is not scored: "label" (it was to be left out), "modality", or "seen"; empty where it is."""
    why = pd.Series("", rows.index, dtype=str)
    why[rows["sha256"].isin(release.seen_images(version))] = "seen"
    stated, reads = rows["modality"].map(recipes.modality_name), version.card.modality
    if reads != "image":  # which means that the training images stated none
        why[(stated != reads) & (stated != "")] = "modality"
    why[rows["label"] == ""] = "label"
    return why


def knows(version: registry.Version, source: str, rows: pd.DataFrame) -> bool:
    """Whether a version learned from a source, or has seen more than MOST_SEEN of these images of it."""
    learned = alike(source) in map(alike, version.card.data.sources or ())
    return learned or bool(rows["sha256"].isin(release.seen_images(version)).mean() > MOST_SEEN)


def digests(paths: Sequence[Path], spec: preprocess.Preprocessing, name: str) -> list[str]:
    """SHA-256 of each picture as the network sees it: the same for one picture in two files. name: of the set."""
    prepared = preprocess.prepared(paths, spec, label=f"reading {name}")
    return [files.sha256(np.ascontiguousarray(one.tensor).tobytes()) for one in prepared]


def count_look(version: registry.Version, source: str) -> None:
    """Count that a version was scored once more on a source, if the registry keeps its figures there."""
    for one in version.card.outside or ():
        if one.source == source and not one.left_out:
            again = replace(one.measured, times_scored=_times(version, source) + 1)
            registry.record_outside(version, replace(one, measured=again))


def _times(version: registry.Version, source: str) -> int:
    """How often a version was scored on a source before."""
    before = [
        one.measured.times_scored or 1 for one in version.card.outside or () if alike(one.source) == alike(source)
    ]
    return max(before, default=0)
