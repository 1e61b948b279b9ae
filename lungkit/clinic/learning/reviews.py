"""Reviewed images with the labels of their readers, as the records have them: what can be learned from, and what not.

An image is one patient's file, whoever uploaded it how often: the same bytes, or the same pixels. A reader's latest
review of an image counts. Where it gives no class, the image is learned from only if most of three readers or more give
one. The same picture under two patients is learned from in neither. Names and numbers of patients are not read at all.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records import opinions, pixels
from lungkit.clinic.records.corrections import reading_still_counts, still_counts
from lungkit.clinic.records.reviewing import WHY_NO_CLASS
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import CLASS, CtSeries, Patient, Reading, Review, Study
from lungkit.errors import LungkitError
from lungkit.models.prediction import Check, refusal

DIFFER, TWO_PATIENTS, DAMAGED = "readers differ", "same picture under two patients", "pixels are damaged"

Row = sa.Row[tuple[Any, ...]]


@dataclass(frozen=True)
class Reviewed:
    """An image and what its readers said. The reading, its study and the answer are those of the review that counts."""

    study_id: str
    reading_id: str
    patient_id: str
    kind: str
    units: str
    pixels_sha256: str
    model: str
    version: str
    model_label: str
    probabilities: dict[str, float]
    labels: dict[int, str]  # account of each reader who gives a class to that class
    said: dict[int, str]  # of each reader: the class, or why none fits
    label: str  # empty where the readers differ, and where they are settled that no class fits
    unusable: str  # why no class fits, where the readers are settled about that; otherwise empty
    reader: int  # of the latest review with that label
    reviewed_at: datetime
    answer_shown: bool  # to any of the readers
    refused: bool  # the version is not for the patient or image: probabilities mean nothing, model_label is empty


@dataclass(frozen=True)
class Aside:
    """An image that is not learned from until a person has looked at it."""

    reason: str
    reading_id: str
    said: dict[int, str]  # of each reader: the class, or why none fits


@dataclass(frozen=True)
class Asked:
    """Which reviews. model: empty for all. since: first day, UTC. locked: only labels given without the answer."""

    model: str = ""
    since: date | None = None
    locked: bool = False


@dataclass(frozen=True)
class Selection:
    """images: by study. aside: by reading. counts: of images, and why others are not among them."""

    images: tuple[Reviewed, ...]
    aside: tuple[Aside, ...]
    counts: dict[str, int]

    @property
    def labelled(self) -> list[Reviewed]:
        """The images whose readers agree, or most of them."""
        return [image for image in self.images if image.label]


def select(db: orm.Session, asked: Asked) -> Selection:
    """The reviewed images. Raises LungkitError where models with other classes are among them.

    Patients with a label that was given without the model's answer are those of the locked set, and of no other.
    """
    rows = db.execute(_query(asked)).all()
    shown = _first_shown(db) if asked.locked else {}
    digests = {row.study_id: _digest(db, row.study_id) for row in rows}
    twins = _under_two_patients(db, rows, digests)
    counts, aside, kept = Counter[str](), list[Aside](), list[Reviewed]()
    # The label of a series is that of many slices, and its study's picture is one of them.
    if series := db.scalar(
        sa.select(sa.func.count(Review.reading_id.distinct()))
        .join(CtSeries, CtSeries.reading_id == Review.reading_id)
        .where(reading_still_counts(Review.reading_id))
    ):
        counts["series, whose label is not that of a slice"] = series
    reviewed = sa.select(sa.func.count(Study.id.distinct())).join(Reading).join(Review)
    if withdrawn := db.scalar(reviewed.where(~still_counts())):
        counts["withdrawn"] = withdrawn
    blind_patients = sa.select(Study.patient_id).join(Reading).join(Review).where(~Review.answer_shown, still_counts())
    blind = set(db.scalars(blind_patients))
    for of_image in _images(rows, digests):
        first, of_pixels = of_image[0], {digests[row.study_id] for row in of_image}
        counts["reviewed"] += 1
        counts["uploaded again"] += len({row.study_id for row in of_image}) - 1
        if first.excluded:
            counts["of excluded patients"] += 1
        elif "" in of_pixels:
            aside.append(Aside(DAMAGED, first.reading_id, _latest(of_image)[0]))
        elif twins & (of_pixels | {row.sha256 for row in of_image}):
            aside.append(Aside(TWO_PATIENTS, first.reading_id, _latest(of_image)[0]))
        elif not asked.locked and first.patient_id in blind:
            counts["kept for the locked set"] += 1
        elif image := _reviewed(_unseen(of_image, shown) if asked.locked else of_image, digests):
            kept.append(image)
        else:
            counts["labelled with the answer on screen"] += 1
    counts.update(image.unusable for image in kept if image.unusable)
    kept = [image for image in kept if not image.unusable]
    aside += [Aside(DIFFER, image.reading_id, image.said) for image in kept if not image.label]
    counts.update(one.reason for one in aside)
    counts["collected"] = sum(bool(image.label) for image in kept)
    refuse_other_classes(kept)
    return Selection(
        tuple(sorted(kept, key=lambda image: image.study_id)),
        tuple(sorted(aside, key=lambda one: one.reading_id)),
        dict(counts),
    )


def selected(store: Store, asked: Asked) -> Selection:
    """As `select`, in a transaction of its own."""
    with store.read() as db:
        return select(db, asked)


def labelled_files(db: orm.Session, asked: Asked) -> list[Reviewed]:
    """The images with a label that counts, blind or not, without a look at their pixels: the same file is one image.

    Of excluded patients there is none. `select` also finds the same pixels in different files, which takes long.
    """
    rows = db.execute(_query(asked)).all()
    files = {row.study_id: row.sha256 for row in rows}
    images = (_reviewed(of_image, files) for of_image in _images(rows, files) if not of_image[0].excluded)
    return [image for image in images if image and image.label]


def stored_pixels(db: orm.Session, study_id: str) -> tuple[bytes, str]:
    """The PNG of a study as the records have it, and its units."""
    png, units = db.execute(sa.select(Study.pixels, Study.units).where(Study.id == study_id)).one()
    return png, units


def refused(checks: Iterable[Mapping[str, Any]]) -> bool:
    """Whether checks, as the records have them of a reading, say that its version is not for the patient or image.

    Label and probabilities of such a reading mean nothing.
    """
    return bool(refusal(Check(**check) for check in checks))


def _query(asked: Asked) -> "sa.Select[*tuple[Any, ...]]":
    """The reviews with reading, study and patient, oldest first."""
    query = (
        sa.select(
            Review.reviewer_id, Review.kind.label("review_kind"), Review.label, Review.at, Review.answer_shown,
            Review.reading_id, Reading.study_id, Reading.model, Reading.version, Reading.label.label("model_label"),
            Reading.probabilities, Reading.checks, Study.kind, Study.units, Study.sha256, Study.patient_id,
            Patient.excluded,
        )
        .join(Reading, Reading.id == Review.reading_id)
        .join(Study, Study.id == Reading.study_id)
        .join(Patient, Patient.id == Study.patient_id)
        .order_by(Review.at, Review.id)
    )  # fmt: skip
    if asked.model:
        query = query.where(Reading.model == asked.model)
    if asked.since:
        query = query.where(Review.at >= datetime.combine(asked.since, time(), UTC))
    return query.where(Reading.id.not_in(sa.select(CtSeries.reading_id)), still_counts())


def _digest(db: orm.Session, study_id: str) -> str:
    """SHA-256 over the pixels as the reader will give them; empty where they are damaged."""
    png, units = stored_pixels(db, study_id)
    try:
        return pixels.digest(pixels.decode(png, units), units)
    except pixels.PixelsDamaged:
        return ""


def _under_two_patients(db: orm.Session, rows: Sequence[Row], digests: dict[str, str]) -> set[str]:
    """The hashes of files, in all of the records, and of pixels, among these rows, that two patients have."""
    patients = sa.func.count(Study.patient_id.distinct())
    files = set(db.scalars(sa.select(Study.sha256).where(still_counts()).group_by(Study.sha256).having(patients > 1)))
    owners = {(digests[row.study_id], row.patient_id) for row in rows} - {("", row.patient_id) for row in rows}
    return files | {pixel for pixel, n in Counter(pixel for pixel, _ in owners).items() if n > 1}


def _images(rows: Sequence[Row], digests: dict[str, str]) -> Iterator[list[Row]]:
    """The rows of each image, oldest first: those of one patient with the same file or the same pixels."""
    of_file: dict[tuple[str, str], str] = {}
    for row in rows:
        of_file.setdefault((row.patient_id, row.sha256), digests[row.study_id] or row.study_id)

    def image(row: Row) -> tuple[str, str]:
        return row.patient_id, of_file[row.patient_id, row.sha256]

    for _, of_image in groupby(sorted(rows, key=image), image):  # the order of times stays
        yield list(of_image)


def _first_shown(db: orm.Session) -> dict[tuple[int, str, str], datetime]:
    """When a reader first gave a label with the answer on screen: by reader, patient and file, of all reviews."""
    rows = (
        sa.select(Review.reviewer_id, Study.patient_id, Study.sha256, sa.func.min(Review.at))
        .join(Reading, Reading.id == Review.reading_id)
        .join(Study, Study.id == Reading.study_id)
        .where(Review.answer_shown)
        .group_by(Review.reviewer_id, Study.patient_id, Study.sha256)
    )
    return {(reader, patient, sha256): at for reader, patient, sha256, at in db.execute(rows)}


def _unseen(rows: list[Row], shown: dict[tuple[int, str, str], datetime]) -> list[Row]:
    """The reviews of readers who had not yet seen an answer for this image, by whatever model and whenever."""
    files = {row.sha256 for row in rows}
    unseen = []
    for row in rows:
        at = [shown[key] for sha256 in files if (key := (row.reviewer_id, row.patient_id, sha256)) in shown]
        if not row.answer_shown and all(row.at < first for first in at):
            unseen.append(row)
    return unseen


def _latest(rows: list[Row]) -> tuple[dict[int, str], list[Row]]:
    """What each reader's latest review says, and those reviews, oldest first."""
    latest = {row.reviewer_id: row for row in rows}
    counted = [row for row in rows if latest[row.reviewer_id] is row]
    return {row.reviewer_id: _says(row) for row in sorted(counted, key=lambda row: row.reviewer_id)}, counted


def _says(row: Row) -> str:
    return WHY_NO_CLASS.get(row.review_kind) or str(row.label)


def _vote(row: Row) -> str:
    return opinions.vote(row.review_kind, row.label)


def _reviewed(rows: list[Row], digests: dict[str, str]) -> Reviewed | None:
    if not rows:
        return None
    said, counted = _latest(rows)
    vote = opinions.settled([_vote(row) for row in counted])
    counts = counted[-1] if vote is None else [row for row in counted if _vote(row) == vote][-1]
    meaningless = refused(counts.checks)
    return Reviewed(
        study_id=counts.study_id,
        reading_id=counts.reading_id,
        patient_id=counts.patient_id,
        kind=counts.kind,
        units=counts.units,
        pixels_sha256=digests[counts.study_id],
        model=counts.model,
        version=counts.version,
        model_label="" if meaningless else counts.model_label,
        probabilities=counts.probabilities,
        labels={row.reviewer_id: row.label for row in counted if row.review_kind == CLASS},
        said=said,
        label=vote or "",
        unusable=_says(counts) if vote == opinions.NO_CLASS else "",
        reader=counts.reviewer_id,
        reviewed_at=counts.at,
        answer_shown=any(row.answer_shown for row in counted),
        refused=meaningless,
    )


def refuse_other_classes(images: list[Reviewed]) -> None:
    """Raises LungkitError where the readings of some images have other classes than the others."""
    classes = {frozenset(image.probabilities): image.model for image in images}
    if len(classes) > 1:
        named = "; ".join(sorted(f"{model}: {', '.join(sorted(names))}" for names, model in classes.items()))
        raise LungkitError(f"the reviewed readings are of models with other classes ({named}); name one with --model")
