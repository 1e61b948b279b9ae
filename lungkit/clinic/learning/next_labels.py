"""Which readings to review next, if the model is to learn most from few reviews.

Their order is that of `ordering.spread`: how unsure the model was, and how far the image lies from those that it
learned from, as the input check "kind" has measured it; and how far it lies from what is reviewed or before it.
Blind readings are left out: chance has chosen them for the locked set, and an order would make it a choice.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import progress
from lungkit.clinic.learning import measures, ordering
from lungkit.clinic.learning.reviews import refused, stored_pixels
from lungkit.clinic.records import pixels
from lungkit.clinic.records.accounts import Entry
from lungkit.clinic.records.corrections import still_counts
from lungkit.clinic.records.opinions import WaitingRow
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import CLASS, BlindReading, CtSeries, Patient, Reading, Review, Study
from lungkit.errors import LungkitError

LOOKED_AT = 1000  # readings without a review whose pixels are looked at: the newest
LABELLED = 500  # reviewed readings that they are compared with: the newest
SHOWN_OF = 100, 50  # likewise for a doctor's screen: people wait for it, up to 45 ms for an image
_KIND = "kind"  # the input check that measures how far an image lies from those of the training

Row = sa.Row[tuple[Any, ...]]


def order(store: Store, model: str, most: int = 50) -> list[str]:
    """Ids of at most `most` readings of a model that have no review, the one to review first at the front.

    Of an image that was read several times, the newest reading counts, and none where one of them was reviewed. CT
    series, excluded patients, and images that are damaged, were withdrawn, or that the version is not for are left out.
    """
    with store.read() as db:
        return _order(db, model, most, (LOOKED_AT, LABELLED), quiet=False)


def suggested(access: Entry, most: int = 20) -> list[WaitingRow]:
    """What a doctor could review next: at most `most` readings of each model, in their order among the newest ones."""
    with access.reads("doctor") as (db, _):
        models = sorted(db.scalars(sa.select(Reading.model).distinct()))
        ids = [one for model in models for one in _order(db, model, most, SHOWN_OF, quiet=True)]
        of = (
            sa.select(Reading.id, Patient.number, Patient.name, Study.kind, Reading.model, Reading.read_at)
            .join(Study, Study.id == Reading.study_id)
            .join(Patient, Patient.id == Study.patient_id)
            .where(Reading.id.in_(ids))
        )
        rows = {row.id: WaitingRow(*row) for row in db.execute(of)}
    return [rows[one] for one in ids]


def _order(db: orm.Session, model: str, most: int, looked_at: tuple[int, int], quiet: bool) -> list[str]:
    """looked_at: the newest readings that wait, and reviewed ones that they are compared with."""
    waiting, reviewed = _waiting(db, model, looked_at[0]), _reviewed(db, model, looked_at[1])
    rows, features = _features(db, waiting, quiet)
    _, labelled = _features(db, reviewed, quiet)
    return [rows[at].id for at in ordering.spread(_weights(rows), features, labelled, most)] if rows else []


def read_at(store: Store, reading_ids: Sequence[str]) -> dict[str, datetime]:
    """When each of these readings was made."""
    with store.read() as db:
        return {
            row.id: row.read_at
            for row in db.execute(sa.select(Reading.id, Reading.read_at).where(Reading.id.in_(reading_ids)))
        }


def only_model(store: Store) -> str:
    """The model that has readings, if it is one. Raises LungkitError where there are several, or none."""
    with store.read() as db:
        names = sorted(db.scalars(sa.select(Reading.model).distinct()))
    if len(names) != 1:
        there = f"there are readings of {', '.join(names)}; name one with --model"
        raise LungkitError(there if names else "no image has been read yet")
    return names[0]


def _weights(rows: Sequence[Row]) -> np.ndarray:
    """How much each reading would teach the model."""
    classes = sorted(rows[0].probabilities)
    probabilities = np.array([[row.probabilities.get(name, 0.0) for name in classes] for row in rows])
    return ordering.weights(ordering.entropy(probabilities), np.array([_distance(row.checks) for row in rows]))


def _distance(checks: list[dict[str, Any]]) -> float:
    """Of an image to those of the training, over the limit of its version; 1 where the reading does not say."""
    for check in checks:
        if check["name"] == _KIND and check["limit"] > 0:
            return float(check["value"] / check["limit"])
    return 1.0


def _readings(model: str) -> "sa.Select[*tuple[Any, ...]]":
    """Readings of single images of a model, of patients who are not excluded, newest first."""
    return (
        sa.select(Reading.id, Reading.study_id, Reading.probabilities, Reading.checks, Study.patient_id, Study.sha256)
        .join(Study, Study.id == Reading.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .where(
            Reading.model == model, ~Patient.excluded, Reading.id.not_in(sa.select(CtSeries.reading_id)), still_counts()
        )
        .order_by(Reading.read_at.desc(), Reading.id)
    )


def _waiting(db: orm.Session, model: str, most: int) -> list[Row]:
    """The newest reading of each image that has no review, where its answer means something."""
    reviewed = (
        sa.select(Study.patient_id, Study.sha256)
        .join(Reading, Reading.study_id == Study.id)
        .join(Review, Review.reading_id == Reading.id)
        .where(still_counts())
    )
    done = {tuple(row) for row in db.execute(reviewed)}
    waiting: list[Row] = []
    for row in db.execute(_readings(model).where(Reading.id.not_in(sa.select(BlindReading.reading_id)))):
        image = row.patient_id, row.sha256
        if image not in done:
            done.add(image)
            waiting += [] if refused(row.checks) else [row]
        if len(waiting) == most:
            break
    return waiting


def _reviewed(db: orm.Session, model: str, most: int) -> list[Row]:
    """Of which someone gave a class."""
    labelled = sa.select(Review.reading_id).where(Review.kind == CLASS)
    return list(db.execute(_readings(model).where(Reading.id.in_(labelled)).limit(most)))


def _features(db: orm.Session, rows: list[Row], quiet: bool) -> tuple[list[Row], np.ndarray]:
    """The rows whose pixels can be read, and the numbers that describe these, (rows, 9)."""
    kept, features = [], []
    for row in rows if quiet else progress.bar(rows, label="looking at images", unit="image"):
        png, units = stored_pixels(db, row.study_id)
        try:
            features.append(measures.describe(pixels.decode(png, units), units))
            kept.append(row)
        except pixels.PixelsDamaged:
            continue
    return kept, np.array(features).reshape(len(kept), measures.NUMBERS)
