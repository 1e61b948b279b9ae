"""A data set of reviews, as `lungkit learn collect` writes it: checked against its manifest, and dealt out by patient.

The newest patients are held out: neither learned from nor chosen on, they are what a trial can compare versions on. A
patient counts from the first review, so that no earlier training can have seen a patient who is held out.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lungkit.data import dataset, labels, review_sets, splits
from lungkit.data.notes import alike
from lungkit.data.review_sets import ReviewSet
from lungkit.errors import LungkitError
from lungkit.models.card import ModelCard
from lungkit.training import recipes

HELD_OUT = 0.2  # of the patients: the newest
VALIDATION = 6  # every sixth of the other patients of a class
_CALLED = {"train": "train", "validation": "val", "held_out": "test"}  # in a card, each part of the split
FEWEST = 10  # patients; with fewer there is nothing to hold out


class ReviewsRefused(LungkitError):
    """A data set of reviews that must not, or cannot, be learned from."""


@dataclass(frozen=True, eq=False)
class DealtReviews:
    """A data set of reviews and its rows, as in dataset.Dataset, with `split` and `reviewed_at`."""

    collected: ReviewSet
    rows: pd.DataFrame

    @property
    def folder(self) -> Path:
        return self.collected.folder

    @property
    def name(self) -> str:
        return self.folder.name

    def record(self) -> dict[str, Any]:
        """What a card says of it, JSON-ready: which set, and how many images of how many patients are in each part."""
        of_part = {name: self.rows[self.rows["split"] == part] for name, part in _CALLED.items()}
        parts = {
            name: {"images": len(rows), "patients": rows["patient_id"].nunique()} for name, rows in of_part.items()
        }
        parts["held_out"]["from"] = of_part["held_out"]["reviewed_at"].min().isoformat()
        return {
            "name": self.name,
            "content_sha256": self.collected.content_sha256,
            "manifest_sha256": self.collected.sha256,
            **parts,
        }


def read(folder: Path, card: ModelCard) -> DealtReviews:
    """The set in a folder, for a model with this card. Who is in it was decided when it was collected.

    Raises LungkitError as review_sets.read does, and ReviewsRefused for a locked set, one whose labels or kinds of
    images are not those of the model, and one of fewer than FEWEST patients.
    """
    collected = review_sets.read(folder)
    folder = collected.folder
    if collected.locked:
        raise ReviewsRefused(
            f"{folder.name} is a locked set: a model that learned from it could no longer be tried on it. Give a set "
            "that `lungkit learn collect` made without --locked"
        )
    data = dataset.as_given(folder)
    table, _ = labels.read(folder / "labels.csv")
    if "reviewed_at" not in table:
        raise ReviewsRefused(f"{folder.name}: labels.csv has no column reviewed_at; collect the reviews again")
    at = dict(zip(table["file"], pd.to_datetime(table["reviewed_at"], utc=True, errors="coerce"), strict=True))
    rows = data.manifest.assign(
        label=_in_the_words_of(card, data.manifest["label"], folder.name),
        reviewed_at=data.manifest["file"].map(at),
    )
    if rows["reviewed_at"].isna().any():
        raise ReviewsRefused(f"{folder.name}: an image has no time of review in labels.csv; collect the reviews again")
    stated = set(map(recipes.modality_name, rows["modality"])) - {"", card.modality}
    if card.modality != "image" and (other := sorted(stated)):
        raise ReviewsRefused(f"{folder.name} holds {', '.join(other)} images, and the model reads {card.modality}")
    return DealtReviews(collected, rows.assign(split=_dealt(rows, folder.name)))


def _in_the_words_of(card: ModelCard, given: pd.Series, name: str) -> pd.Series:
    known = {alike(one): one for one in card.classes}
    if unknown := sorted({label for label in given if alike(label) not in known}):
        raise ReviewsRefused(
            f"{name} is labelled {', '.join(unknown)}, and the model answers {', '.join(card.classes)}. Collect with "
            "--model for the reviews of this model alone"
        )
    return given.map(lambda label: known[alike(label)])


def _dealt(rows: pd.DataFrame, name: str) -> pd.Series:
    """The part of each row: "test" for the newest patients; of the others, "val" for every sixth of a class."""
    patients = rows.groupby("patient_id").agg(first=("reviewed_at", "min"), label=("label", "min"))
    if len(patients) < FEWEST:
        raise ReviewsRefused(
            f"{name} has {len(patients)} patients; {FEWEST} or more are needed, to learn from some and hold out others"
        )
    ordered = patients.assign(name=patients.index).sort_values(["first", "name"])
    held_out = math.ceil(HELD_OUT * len(ordered))
    part = dict.fromkeys(ordered.index[-held_out:], "test")
    for _, of_class in ordered.iloc[:-held_out].groupby("label"):
        shuffled = sorted(of_class.index, key=lambda patient: splits.chance(patient, 7))
        part |= {patient: "val" if i % VALIDATION == 2 else "train" for i, patient in enumerate(shuffled)}
    return rows["patient_id"].map(part)
