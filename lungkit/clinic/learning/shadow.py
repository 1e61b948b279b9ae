"""A challenger reads what the version in use has read, from the pixels in the records. Never shown with a case.

Pixels in the records are those of the upload, except of images of more than 2048 pixels a side, and of pictures with
more than 8 bits. CT series are left out, because their reading is that of many slices, and so are excluded patients.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import progress
from lungkit.clinic.learning import agreement, reviews
from lungkit.clinic.learning.agreement import Kappa
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records import cases, pixels
from lungkit.clinic.records.accounts import Entry
from lungkit.clinic.records.corrections import still_counts
from lungkit.clinic.records.patients import age_at
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import Challenger, CtSeries, Patient, Reading, ShadowReading, Study, now
from lungkit.data import images
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.class_names import class_name
from lungkit.wording import count, figure, percent

Query = sa.Select[*tuple[Any, ...]]
BATCH = 20  # readings that are saved together


@dataclass(frozen=True)
class Passed:
    """What one pass did for a challenger. left: readings that still wait. problem: why it cannot read at all."""

    challenger: str
    read: int
    unreadable: int
    left: int
    problem: str = ""


def run(store: Store, most: int | None = None, show: bool = False) -> list[Passed]:
    """One pass: each challenger reads what it has not read yet, oldest first, `most` readings at the most.

    show: a progress bar. Readings are saved in batches, so the next pass continues after one that is killed. Two passes
    at a time do some of the work twice, and nothing is saved twice.
    """
    with store.read() as db:
        named = [(one.model, one.version) for one in db.scalars(sa.select(Challenger).order_by(Challenger.model))]
    return [_of_challenger(store, f"{model}@{version}", most, show) for model, version in named]


def _of_challenger(store: Store, ref: str, most: int | None, show: bool) -> Passed:
    model, _, version = ref.partition("@")
    with store.read() as db:
        waiting = db.execute(_waiting(db, model, version).order_by(Reading.read_at, Reading.id)).all()
    if not waiting:
        return Passed(ref, 0, 0, 0)
    try:
        predictor = Predictor(registry.find(ref), heat=False)
    except LungkitError as error:  # removed or damaged: the next pass may find it mended
        return Passed(ref, 0, 0, len(waiting), str(error))
    read = tried = 0
    rows: list[dict[str, object]] = []
    bar = progress.bar(waiting, label=f"{ref} reads in the shadow", unit="image") if show else waiting
    for row in bar:
        if most is not None and read + len(rows) >= most:
            break
        tried += 1
        if said := _read(store, predictor, row):
            rows.append(said)
        if len(rows) >= BATCH:
            read += _save(store, rows)
            rows = []
    read += _save(store, rows)
    return Passed(ref, read, tried - read, len(waiting) - read)


def _waiting(db: orm.Session, model: str, version: str) -> Query:
    """Readings of the version in use that a challenger has still to read: id, study_id, birth_year."""
    since = db.scalar(sa.select(Challenger.since).where(Challenger.model == model))
    read = sa.select(ShadowReading.reading_id).where(ShadowReading.version == version)
    return (
        _of_champion(sa.select(Reading.id, Reading.study_id, Patient.birth_year), model, version)
        .where(Reading.read_at >= since, Reading.id.not_in(read))
        .where(Reading.id.not_in(sa.select(CtSeries.reading_id)))
    )


def _of_champion(query: Query, model: str, version: str) -> Query:
    """Readings by other versions of the model, of patients who are not excluded and images that count."""
    query = query.join(Study, Study.id == Reading.study_id).join(Patient, Patient.id == Study.patient_id)
    return query.where(Reading.model == model, Reading.version != version, ~Patient.excluded, still_counts())


def _read(store: Store, predictor: Predictor, waiting: "sa.Row[Any]") -> dict[str, object] | None:
    """One shadow reading as a row; None where the pixels are damaged or the patient was erased meanwhile."""
    try:
        with store.read() as db:
            png, units = reviews.stored_pixels(db, waiting.study_id)
            kind, tags = db.execute(sa.select(Study.kind, Study.tags).where(Study.id == waiting.study_id)).one()
        started = time.perf_counter()
        image = pixels.image_of(pixels.decode(png, units), units, kind, tags)
        said = predictor.read(image, started, age_at(waiting.birth_year, image.tags))
    except (sa.exc.NoResultFound, pixels.PixelsDamaged, images.ImageRefused):
        return None
    return {
        "reading_id": waiting.id,
        "version": said.version,
        "probabilities": dict(zip(said.classes, said.probabilities.tolist(), strict=True)),
        "label": said.label,
        "decision": said.decision,
        "milliseconds": said.milliseconds,
        "read_at": now(),
    }


def _save(store: Store, rows: list[dict[str, object]]) -> int:
    """Save what is not there yet, of readings that are still there; returns how many were given."""
    if not rows:
        return 0
    with store.write() as db:
        ids = [row["reading_id"] for row in rows]
        there = set(db.scalars(sa.select(Reading.id).where(Reading.id.in_(ids))))
        saved = sa.select(ShadowReading.reading_id, ShadowReading.version).where(ShadowReading.reading_id.in_(ids))
        done = {tuple(row) for row in db.execute(saved)}
        new = [row for row in rows if row["reading_id"] in there and (row["reading_id"], row["version"]) not in done]
        if new:
            db.execute(sa.insert(ShadowReading), new)
    return len(rows)


# --- both compared


@dataclass(frozen=True)
class Compared:
    """A challenger in the shadow next to the versions that were in use.

    refused: of the readings, those of patients or images that the version in use is not for; no label of them is
    compared. changed: (label in use, label of the challenger) to readings, of those that differ. left: shares left to a
    person, in use and by the challenger. right: shares of reviewed readings whose label the review gives, likewise,
    with the difference (challenger minus in use) and its 95 % interval by patient; None without reviews.
    """

    model: str
    version: str
    readings: int
    refused: int
    patients: int
    waiting: int
    series: int  # of CT, which a challenger does not read
    kappa: Kappa | None
    changed: dict[tuple[str, str], int]
    left: tuple[float, float]
    reviewed: int
    shown: int  # of the reviews, those given with the answer of the version in use on screen
    right: tuple[float, float] | None
    difference: tuple[float, float | None, float | None] | None


def compared(entry: Entry) -> list[Compared]:
    """Each challenger next to the version in use, for administrators."""
    with entry.reads("admin") as (db, _):
        return comparisons(db)


def comparisons(db: orm.Session) -> list[Compared]:
    """As `compared`, for the caller's transaction."""
    named = db.scalars(sa.select(Challenger).order_by(Challenger.model))
    return [_compared(db, one.model, one.version) for one in named]


def _compared(db: orm.Session, model: str, version: str) -> Compared:
    latest = cases.latest_review()
    columns = (
        Reading.label, Reading.decision, Reading.checks, ShadowReading.label.label("their_label"),
        ShadowReading.decision.label("their_decision"), Study.patient_id, latest.c.label.label("truth"),
        latest.c.answer_shown, latest.c.agrees,
    )  # fmt: skip
    query = _of_champion(sa.select(*columns), model, version)
    query = query.join(ShadowReading, (ShadowReading.reading_id == Reading.id) & (ShadowReading.version == version))
    rows = db.execute(query.outerjoin(latest, latest.c.reading_id == Reading.id).order_by(Reading.id)).all()
    since = db.scalar(sa.select(Challenger.since).where(Challenger.model == model))
    series = _of_champion(sa.select(sa.func.count()).select_from(Reading), model, version)
    series = series.where(Reading.read_at >= since, Reading.id.in_(sa.select(CtSeries.reading_id)))
    waiting = db.scalar(sa.select(sa.func.count()).select_from(_waiting(db, model, version).subquery())) or 0
    patients = [row.patient_id for row in rows]
    answered = [row for row in rows if not reviews.refused(row.checks)]
    known = [row for row in answered if row.agrees is not None]
    right = np.array([[row.label == row.truth, row.their_label == row.truth] for row in known], float)
    return Compared(
        model=model,
        version=version,
        readings=len(rows),
        refused=len(rows) - len(answered),
        patients=len(set(patients)),
        waiting=waiting,
        series=db.scalar(series) or 0,
        kappa=_kappa([(row.label, row.their_label) for row in answered], [row.patient_id for row in answered]),
        changed=dict(Counter((row.label, row.their_label) for row in answered if row.label != row.their_label)),
        left=(_share([row.decision for row in rows]), _share([row.their_decision for row in rows])),
        reviewed=len(known),
        shown=sum(bool(row.answer_shown) for row in known),
        right=(float(right[:, 0].mean()), float(right[:, 1].mean())) if known else None,
        difference=_difference(right[:, 1] - right[:, 0], [row.patient_id for row in known]) if known else None,
    )


def _share(decisions: list[str]) -> float:
    return float(np.mean([decision == REVIEW for decision in decisions])) if decisions else 0.0


def _kappa(labels: list[tuple[str, str]], patients: list[str]) -> Kappa | None:
    if not labels:
        return None
    classes = sorted({name for pair in labels for name in pair})
    codes = np.array([[classes.index(name) for name in pair] for pair in labels])
    return agreement.cohen_kappa(codes, len(classes), patients)


def _difference(gains: np.ndarray, patients: list[str]) -> tuple[float, float | None, float | None]:
    """Mean with its 95 % interval, drawing patients; None where the draws do not vary."""
    names, of_image = np.unique(patients, return_inverse=True)
    sums, sizes = np.bincount(of_image, gains), np.bincount(of_image)
    draws = np.random.default_rng(7).multinomial(len(names), np.full(len(names), 1 / len(names)), agreement.DRAWS)
    means = (draws @ sums) / (draws @ sizes)
    value = float(gains.mean())
    if np.ptp(means) < 1e-12:
        return value, None, None
    low, high = map(float, np.quantile(means, (0.025, 0.975)))
    return value, low, high


# --- in words


def says(one: Passed) -> str:
    """A line that tells what a pass did."""
    if one.problem:
        return f"{one.challenger} could not read: {one.problem}"
    words = f"{one.challenger} read {count(one.read, 'image')}; {one.left:,} still wait"
    return words + (f", {one.unreadable:,} of them because their pixels cannot be read" if one.unreadable else "")


def rows(one: Compared) -> list[tuple[str, str]]:
    """What people should see of a comparison, as pairs of name and text."""
    named = [
        ("Read by both", f"{count(one.readings, 'image')} of {count(one.patients, 'patient')}; {one.waiting:,} wait"),
        ("Not read", f"{count(one.series, 'CT series', 'CT series')}, which a challenger does not read"),
    ]
    if not one.readings:
        return named
    if one.refused:
        named.append(("Not compared", f"labels of {count(one.refused, 'image')} that the version in use is not for"))
    kappa = one.kappa
    agree = "cannot be computed, all labels are of one class" if kappa else "no label to compare"
    if kappa and kappa.value is not None:
        agree = figure(kappa.value, kappa.low, kappa.high) + f", the same label in {percent(round(kappa.agreed, 9))}"
    moved = sorted(one.changed.items(), key=lambda item: -item[1])
    changed = "; ".join(f"{class_name(old)} → {class_name(new)} {n:,}" for (old, new), n in moved) or "none"
    named += [
        ("Agreement of both (Cohen's kappa)", agree),
        ("Changed labels", changed),
        ("Left to a person", f"{percent(one.left[0])} by the version in use, {percent(one.left[1])} by {one.version}"),
    ]
    if one.right is None or one.difference is None:
        return [*named, ("Right by the reviews", "no review yet")]
    return [
        *named,
        (
            "Right by the reviews",
            f"{percent(one.right[0])} and {percent(one.right[1])}, difference {figure(*one.difference, signed=True)}, "
            f"95 % interval by patient, of {count(one.reviewed, 'review')}; {one.shown:,} were given with an answer on "
            "screen and lean towards the version in use",
        ),
    ]


def to_dict(one: Compared) -> dict[str, Any]:
    """JSON-ready."""
    return asdict(one) | {"changed": [[old, new, n] for (old, new), n in one.changed.items()]}
