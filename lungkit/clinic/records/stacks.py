"""CT series in the records: what is kept of one and of its reading, without the names of files and other header values.

Every slice is kept, encoded again without loss; heat maps are kept of the slices that the reading rests on.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from lungkit.clinic.records import pixels
from lungkit.clinic.records.reserve import no_room
from lungkit.clinic.records.store import StoreError
from lungkit.clinic.records.tables import CtSeries
from lungkit.data.series import Finding, Rule, Series
from lungkit.models.prediction import Check, Prediction

MOST_SLICES = 2000  # of a series that is saved
AT_ONCE = 16  # slices that are inserted together
_TRUSTED = 0.5  # share of the carrying slices that must pass a check, as in the reading
# Findings whose words hold measures alone. Those of the others may repeat names of files or free text of the header.
_MEASURES = {
    *(Rule.SPLIT, Rule.OVERLAP, Rule.APART, Rule.OBLIQUE, Rule.TURNED, Rule.TILT_STATED, Rule.NOT_SQUARE, Rule.GAP),
    *(Rule.UNEVEN, Rule.TILT, Rule.SHIFTED, Rule.ONE_SLICE, Rule.NO_SPACING, Rule.NO_SERIES_UID),
}


@dataclass(frozen=True)
class Extent:
    """How much of the lungs is not normal, by two measures that do not replace each other. Shares are 0..1.

    None of them is a share of lesions. On phantoms, where lesions are known, bench/README.md has the errors.
    """

    millilitres: float  # volume of the lungs in the series, vessels included, large airways not
    whole: bool  # False: the series begins or ends within the lungs, and shares are of the part that it shows
    # By the model: the share of the lungs' volume that lies in slices which it does not call absent, at the operating
    # point. The whole slice counts, however small the lesion; a slice that was not read counts as the nearest that was.
    not_absent: float
    # By density: the share between -600 and -250 HU, "high attenuation areas" (Podolanczuk et al., Eur. Respir. J.
    # 48:1442, 2016). Ground glass, but also what lies heaviest, fibrosis, and edges of vessels: in healthy people who
    # never smoked, the median was 4.3 % (Easthausen et al., Respirology 25:855, 2020).
    high_attenuation: float
    dense: float  # by density: the share from -250 HU up, which that definition leaves out: consolidation, and vessels


class SliceSaid(Protocol):
    """What a version says about one slice, as series_reading.SliceReading."""

    @property
    def number(self) -> int: ...
    @property
    def position(self) -> float: ...
    @property
    def reading(self) -> Prediction: ...


class SeriesSaid(Protocol):
    """What a version says about a series, as series_reading.SeriesReading."""

    @property
    def probabilities(self) -> np.ndarray: ...
    @property
    def label(self) -> str: ...
    @property
    def decision(self) -> str: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def slices(self) -> Sequence[SliceSaid]: ...
    @property
    def carrying(self) -> tuple[int, ...]: ...
    @property
    def without_lungs(self) -> int: ...
    @property
    def absent(self) -> str: ...
    @property
    def affected(self) -> float: ...
    @property
    def extent(self) -> Extent | None: ...
    @property
    def milliseconds(self) -> float: ...


@dataclass(frozen=True)
class ReadSlice:
    """What was said about one slice of a series."""

    number: int  # from 0, in the order of positions
    position: float  # mm along the normal
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True, eq=False)
class Stack:
    """A series of the records without its reading and its pixels. Names and units are those of the table."""

    reading_id: str
    study_id: str
    slices: int
    spacing: tuple[float | None, float | None, float | None]  # mm between rows, columns, slices as stored
    positions: tuple[float, ...]
    orientation: tuple[float, ...]
    readable: str
    findings: tuple[dict[str, str], ...]  # "rule", and "words" where they are kept

    @property
    def straight(self) -> bool:
        """Whether other planes can be drawn: its slices lie one above the other at known distances."""
        crooked = {Rule.TILT, Rule.SHIFTED, Rule.NO_SPACING, Rule.ONE_SLICE}
        return None not in self.spacing and not crooked & {finding["rule"] for finding in self.findings}


@dataclass(frozen=True, eq=False)
class CaseSeries(Stack):
    """A series of the records with its reading, without pixels. Names and units are those of the table."""

    label: str  # of the reading
    read: tuple[ReadSlice, ...]
    carrying: tuple[int, ...]  # places in `read`
    without_lungs: int
    absent: str
    affected: float
    reasons: tuple[str, ...]
    extent: Extent | None
    heat: np.ndarray = field(repr=False)  # float32 (carrying, classes, height, width) 0..1

    def chance(self, one: ReadSlice) -> float:
        """How much a slice speaks for the label or, where that is `absent`, for any other class."""
        chance = one.probabilities[self.label]
        return 1 - chance if self.label == self.absent else chance

    @property
    def key(self) -> ReadSlice:
        """The carrying slice that counts most, by `chance`: of a normal series the least normal one."""
        return max((self.read[place] for place in self.carrying), key=self.chance)


def key_of(said: SeriesSaid) -> SliceSaid:
    """The carrying slice that counts most, as `CaseSeries.key`."""
    carrying = [said.slices[place] for place in said.carrying]
    place, sign = carrying[0].reading.classes.index(said.label), -1 if said.label == said.absent else 1
    return max(carrying, key=lambda one: sign * one.reading.probabilities[place])


def reading_of(said: SeriesSaid) -> Prediction:
    """The reading of a series in the form of that of an image: the heat maps are the key slice's."""
    checks = [check for place in said.carrying for check in said.slices[place].reading.checks]
    names = dict.fromkeys(check.name for check in checks)
    return replace(
        key_of(said).reading,
        probabilities=said.probabilities,
        label=said.label,
        decision=said.decision,
        checks=tuple(_together([check for check in checks if check.name == name]) for name in names),
        milliseconds=said.milliseconds,
    )


def _together(same: list[Check]) -> Check:
    """One check of all carrying slices in words: passed where at least half of them pass it."""
    failed = [check for check in same if not check.passed]
    share = f"{len(failed)} of the {len(same)}" if failed else f"all {len(same)}"
    words = f"{share} slices that decide: {(failed or same)[0].words}"
    value = float(np.median([check.value for check in same]))
    return Check(same[0].name, len(failed) <= _TRUSTED * len(same), value, same[0].limit, words)


def columns(series: Series, said: SeriesSaid) -> dict[str, Any]:
    """The columns of tables.CtSeries but for its reading, JSON-ready."""
    heat = [_heat(said.slices[place].reading) for place in said.carrying]
    return {
        "slices": len(series.slices),
        "spacing": list(_spacing(series)),
        "positions": [round(one.position, 4) for one in series.slices],
        "orientation": list(series.orientation),
        "readable": series.readable,
        "findings": [_kept(finding) for finding in series.findings],
        "read": [
            {
                "number": one.number,
                "position": round(one.position, 4),
                "label": one.reading.label,
                "probabilities": dict(zip(one.reading.classes, map(float, one.reading.probabilities), strict=True)),
            }
            for one in said.slices
        ],
        "carrying": list(said.carrying),
        "without_lungs": said.without_lungs,
        "absent": said.absent,
        "affected": said.affected,
        "reasons": list(said.reasons),
        "extent": asdict(said.extent) if said.extent else None,
        "heat": pixels.encode_heat(np.concatenate(heat)),
    }


def case_series(row: CtSeries, study_id: str, label: str, classes: int) -> CaseSeries:
    """A row with its heat maps, decoded."""
    heat = pixels.decode_heat(row.heat, len(row.carrying) * classes)
    return CaseSeries(
        **vars(stack(row, study_id)),
        label=label,
        read=tuple(ReadSlice(**one) for one in row.read),
        carrying=tuple(row.carrying),
        without_lungs=row.without_lungs,
        absent=row.absent,
        affected=row.affected,
        reasons=tuple(row.reasons),
        extent=Extent(**row.extent) if row.extent else None,
        heat=heat.reshape(len(row.carrying), classes, *heat.shape[1:]),
    )


def stack(row: CtSeries, study_id: str) -> Stack:
    """What a row says of the slices, without what a model said of them."""
    row_spacing, column_spacing, between = row.spacing
    return Stack(
        reading_id=row.reading_id,
        study_id=study_id,
        slices=row.slices,
        spacing=(row_spacing, column_spacing, between),
        positions=tuple(row.positions),
        orientation=tuple(row.orientation),
        readable=row.readable,
        findings=tuple(row.findings),
    )


def without_reading(series: Stack) -> Stack:
    """The slices alone, without what a model said of them."""
    return Stack(**{part.name: getattr(series, part.name) for part in fields(Stack)})


@contextmanager
def spooled(series: Series, tell: Callable[[int], None]) -> Iterator[Callable[[str], Iterator[list[dict[str, Any]]]]]:
    """A function: the id of a study to rows of tables.SeriesSlice, AT_ONCE at a time.

    The encoded slices lie in a file without a name, not in memory. tell: called with the number of those
    that are done. Raises ImageRefused if one cannot be decoded.
    """
    sizes: list[int] = []
    with _room_in_words(), tempfile.TemporaryFile() as file:

        def rows(study_id: str) -> Iterator[list[dict[str, Any]]]:
            file.seek(0)
            for start in range(0, len(sizes), AT_ONCE):
                some = enumerate(sizes[start : start + AT_ONCE], start)
                yield [{"study_id": study_id, "number": number, "pixels": file.read(size)} for number, size in some]

        for image in series.images():
            sizes.append(file.write(pixels.encode(image)))
            tell(len(sizes))
        yield rows


@contextmanager
def _room_in_words() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if no_room(error) or isinstance(error, FileNotFoundError):  # there is no room for any temporary file
            raise StoreError(
                "the disk for temporary files is full; nothing was saved. Tell an administrator, then try again"
            ) from error
        raise


def _spacing(series: Series) -> tuple[float | None, float | None, float | None]:
    """Of the pixels as they are stored, which may be fewer or more than in the files."""
    _, height, width = series.shape
    reduced = max(1.0, max(height, width) / pixels.LONGEST_SIDE)
    row, column, between = series.spacing
    return (
        None if row is None else row * series.rows / height * reduced,
        None if column is None else column * series.columns / width * reduced,
        between,
    )


def _kept(finding: Finding) -> dict[str, str]:
    words = {"words": finding.words} if finding.rule in _MEASURES else {}
    return {"rule": str(finding.rule), **words}


def _heat(reading: Prediction) -> np.ndarray:
    if reading.heat is None:
        raise ValueError("a series is saved with heat maps; read it with a predictor that makes them")
    return reading.heat
