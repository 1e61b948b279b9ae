"""What is measured of the readings of a model and a source, image by image, to see whether it drifts.

What comes in, what the model says, and how far reviews agree. Pixels of busy days are those of some images only. The
embedding of an image is not in the records. Its distance to the images that the version was trained on is, as the
check "kind" of each reading: one number, so a program without TensorFlow and without the model's graph can use it.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import progress
from lungkit.clinic.learning.reviews import refused, stored_pixels
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import cases, pixels
from lungkit.clinic.records.corrections import still_counts
from lungkit.clinic.records.tables import CLASS, PROGRAM, Reading, Study, User
from lungkit.models.class_names import class_name

MOST_A_DAY = 50  # images of a day whose pixels are looked at, evenly taken
MOST_NAMES = 8  # of a category that are told apart; the rarer ones are "other"
LEAST_PATIENTS = 5  # that a name from headers of files has: a header can hold anything, also a patient's name
NUMBER, SHARE, CATEGORY, PIXELS = "number", "share", "category", "pixels"
PIXEL_NUMBERS = ("brightness", "contrast")
WHAT = (
    *PIXEL_NUMBERS, "pixels (MMD)", "size", "distance to training images", "kind and view", "device", "classes",
    "left to a person", "reviews agree", "reviews without a class", "calibration",
)  # fmt: skip
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUMBERS = 4 + len(_QUANTILES)  # that `describe` gives
_KIND_CHECK = "kind"  # the input check that has the distance of the embedding

Row = sa.Row[tuple[Any, ...]]
Rows = list[Row]


@dataclass(frozen=True)
class Measure:
    """A figure of some images. values: (rows, features); of a category a column of 0 and 1 for each of its names."""

    what: str
    kind: str  # number, share, category or pixels
    rows: Rows
    values: np.ndarray
    names: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Measured:
    """All measures of a model and a source. version: that of the outputs, the newest in use."""

    version: str
    measures: tuple[Measure, ...]
    damaged: int  # images whose pixels could not be looked at


def groups(db: orm.Session, first: date, last: date, recent: date, clinic: str) -> dict[tuple[str, str], Rows]:
    """The readings of the days from first to last (UTC) by model and source, oldest first, if some are recent.

    recent: the first day that is. clinic: what the images of people are called as their source.
    """

    def key(row: Row) -> tuple[str, str]:
        return row.model, row.name if row.role == PROGRAM else clinic

    rows = db.execute(_query(first, last)).all()
    named = {name: list(group) for name, group in groupby(sorted(rows, key=key), key)}
    return {name: group for name, group in named.items() if group[-1].read_at.date() >= recent}


def _query(first: date, last: date) -> "sa.Select[*tuple[Any, ...]]":
    latest = cases.latest_review()
    start, end = (datetime.combine(day, time(), UTC) for day in (first, last + timedelta(days=1)))
    return (
        sa.select(
            Reading.model, Reading.version, Reading.read_at, Reading.label, Reading.decision, Reading.study_id,
            Reading.probabilities, Reading.checks, Study.patient_id, Study.kind, Study.tags, Study.width,
            Study.height, User.name, User.role, latest.c.agrees,
            latest.c.kind.label("review_kind"),
        )
        .join(Study, Study.id == Reading.study_id)
        .join(User, User.id == Study.uploaded_by)
        .outerjoin(latest, latest.c.reading_id == Reading.id)
        .where(Reading.read_at >= start, Reading.read_at < end, still_counts())
        .order_by(Reading.read_at, Reading.id)
    )  # fmt: skip


def measured(db: orm.Session, rows: Rows, quiet: bool = False) -> Measured:
    """The measures of these readings, in the order of WHAT. quiet: without a bar on the terminal."""
    newest = rows[-1].version
    of_version = [row for row in rows if row.version == newest]
    reviewed = [row for row in of_version if row.review_kind is not None]
    # What the version computed of a patient or image that it is not for says nothing of its classes.
    answered = [row for row in of_version if not refused(row.checks)]
    judged = [row for row in answered if row.agrees is not None]
    some, features, damaged = _features(db, rows, quiet)
    apart = [row for row in of_version if _distance(row) is not None]
    devices = [row for row in rows if _device(row)]
    measures = (
        *(Measure(what, NUMBER, some, features[:, [at]]) for at, what in enumerate(PIXEL_NUMBERS)),
        Measure("pixels (MMD)", PIXELS, some, features),
        _number("size", rows, lambda row: row.width * row.height / 1e6, " MP"),
        _number("distance to training images", apart, _distance),
        _category("kind and view", rows, _from_headers(rows, _view)),
        _category("device", devices, _from_headers(devices, _device)),
        _category("classes", answered, lambda row: class_name(row.label)),
        _share("left to a person", of_version, lambda row: row.decision == REVIEW),
        _share("reviews agree", judged, lambda row: row.agrees),
        _share("reviews without a class", reviewed, lambda row: row.review_kind != CLASS),
        # A label's probability is the share of such answers that is right, if the model is calibrated.
        _number("calibration", judged, lambda row: row.probabilities[row.label] - row.agrees),
    )
    return Measured(newest, measures, damaged)


def _number(what: str, rows: Rows, value: Callable[[Any], Any], unit: str = "") -> Measure:
    return Measure(what, NUMBER, rows, _column([value(row) for row in rows]), unit=unit)


def _share(what: str, rows: Rows, hit: Callable[[Any], Any]) -> Measure:
    return Measure(what, SHARE, rows, _column([bool(hit(row)) for row in rows]))


def _category(what: str, rows: Rows, name: Callable[[Any], str]) -> Measure:
    given = [name(row) for row in rows]
    kept = sorted(one for one, _ in Counter(given).most_common(MOST_NAMES))
    names = (*kept, "other") if len(set(given)) > len(kept) else tuple(kept)
    place = {one: at for at, one in enumerate(kept)}
    codes = np.array([place.get(one, len(kept)) for one in given], int)
    return Measure(what, CATEGORY, rows, np.eye(max(1, len(names)))[codes], names)


def _from_headers(rows: Rows, name: Callable[[Any], str]) -> Callable[[Any], str]:
    """The names that several patients have; the others are one."""
    patients = Counter(one for one, _ in {(name(row), row.patient_id) for row in rows})
    return lambda row: name(row) if patients[name(row)] >= LEAST_PATIENTS else "rare"


def _view(row: Any) -> str:
    return f"{row.kind} {row.tags.get('view', '')}".strip()


def _column(values: list[Any]) -> np.ndarray:
    return np.array(values, float).reshape(-1, 1)


def _device(row: Any) -> str:
    """Manufacturer and model as the header has them; empty where it has none, as studies before that was kept."""
    return " ".join(row.tags.get(tag, "").strip() for tag in ("manufacturer", "device")).strip()


def _distance(row: Any) -> float | None:
    found: Iterable[Any] = (check["value"] for check in row.checks if check.get("name") == _KIND_CHECK)
    return next((float(value) for value in found), None)


def told(measure: Measure, chosen: np.ndarray) -> str:
    """What a measure is on average in the chosen rows, in words; empty for pixels."""
    if measure.kind == PIXELS or not chosen.any():
        return ""
    means = measure.values[chosen].mean(axis=0)
    if measure.kind == CATEGORY:
        return ", ".join(f"{one} {share:.0%}" for one, share in zip(measure.names, means, strict=True))
    return f"{means[0]:.1%}" if measure.kind == SHARE else f"mean {means[0]:.3g}{measure.unit}"


# --- pixels


def _features(db: orm.Session, rows: Rows, quiet: bool) -> tuple[Rows, np.ndarray, int]:
    """Some rows of each day, the features of their pixels (rows, features), and how many more are damaged."""
    chosen = []
    for _, of_day in groupby(rows, lambda row: row.read_at.date()):
        all_of_day = list(of_day)
        chosen += all_of_day[:: max(1, -(-len(all_of_day) // MOST_A_DAY))]
    kept, features = [], []
    bar = chosen if quiet else progress.bar(chosen, label=f"looking at images of {rows[0].model}", unit="image")
    for row in bar:
        png, units = stored_pixels(db, row.study_id)
        try:
            features.append(describe(pixels.decode(png, units), units))
            kept.append(row)
        except pixels.PixelsDamaged:
            continue
    return kept, np.array(features).reshape(len(kept), NUMBERS), len(chosen) - len(kept)


def describe(values: np.ndarray, units: str) -> np.ndarray:
    """Features of a picture, float (9,): mean, standard deviation, five quantiles, detail, and log of its aspect.

    HU count in thousands above air, intensities as they are.
    """
    height, width = values.shape
    step = max(1, max(height, width) // 256)
    some = values[::step, ::step].astype(float)
    some = (some + 1024) / 1000 if units == "HU" else some
    detail = np.abs(np.diff(some, axis=0)).mean() if len(some) > 1 else 0.0
    return np.array([some.mean(), some.std(), *np.quantile(some, _QUANTILES), detail, np.log(width / height)])
