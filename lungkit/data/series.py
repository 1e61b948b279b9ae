"""A CT series read as one: which slices belong to it, in what order, and what is wrong with it.

`read` takes a folder, a zip file or a list of files and gives every series in it. Only headers are read; a slice is
decoded when it is asked for, by the reader of single images. Files come from strangers: they are read with the bounds
of that reader, and a zip file is bounded before it is unpacked.

The rules:

- Slices belong together if study, SeriesInstanceUID, FrameOfReferenceUID, rows, columns, pixel spacing and orientation
  agree; where positions repeat, AcquisitionNumber must agree, too. The UID is taken as text, also where it is none.
- Localizers, what is no CT image, and the derived or secondary images of a series with original ones are set aside,
  each by name. A series of derived images alone may only be read slice by slice.
- The order is that of n·ImagePositionPatient, where n is the direction of rows times that of columns. Instance numbers,
  SliceLocation and names of files do not count.
- Of slices at the same position (0.01 mm), those with identical pixels count once. Others make the series refused.
- The spacing is the median distance. SliceThickness is something else.
- A series is a volume if its slices are evenly spaced (1 %), none is missing between two others, and the line of their
  positions is no more than 0.5° from n. Otherwise its slices may only be read one by one.
- Coronal and sagittal series are refused.
- Frames of an enhanced CT are slices like any others, each with its own position, orientation, spacing and rescale.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from lungkit import files, progress
from lungkit.data import folders, geometry
from lungkit.data.image import Image, ImageRefused
from lungkit.data.series_findings import Positions, findings, in_order, of_set_aside, of_split
from lungkit.data.series_rules import Finding, Rule, SetAside, Severity
from lungkit.data.series_slices import Given, Placed, files_in, listed, without_derived

__all__ = ["Contents", "Finding", "Given", "Rule", "Series", "SetAside", "Severity", "Slice", "read"]

Reading = Literal["volume", "slicewise", "refused"]

MAX_SLICES = 40_000  # of all series together, with what is set aside

_WORKERS = 4  # each keeps eight decoded slices ahead, 1 MiB each
_CLASHES = 10  # of slices at one position that are compared; the series is refused after the first


@dataclass(frozen=True)
class Slice:
    """A slice of a series, and how to decode it."""

    source: str  # the file's name
    frame: int | None  # counted from 1, as in DICOM; None in a file of one image
    position: float  # mm along the normal of the series
    corner: tuple[float, ...]  # x, y, z of the middle of the first pixel, mm, in the patient's coordinates
    instance_uid: str  # SOPInstanceUID; "" if the file has none
    read: Callable[[], Image] = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Series:
    """A CT series. All places are in the patient's coordinates, in mm: x to the left, y to the back, z to the head."""

    uid: str  # SeriesInstanceUID as the files have it
    study_uid: str
    number: str  # SeriesNumber
    modality: str  # "CT"
    kernel: str  # ConvolutionKernel, which tells series of one scan apart
    rows: int  # as stored
    columns: int
    spacing: tuple[float | None, float | None, float | None]  # mm between rows, columns, slices; None if unknown
    thickness: float | None  # mm, of the first slice
    orientation: tuple[float, ...]  # direction of rows and of columns; empty if the series has no slice
    view: str  # "axial", "oblique axial", "coronal", ...
    slices: tuple[Slice, ...]  # in the order of their positions
    findings: tuple[Finding, ...]
    _size: tuple[int, int] = field(repr=False)

    @property
    def readable(self) -> Reading:
        """ "volume"; "slicewise", where slices may be read but are no volume; or "refused"."""
        severities = {finding.severity for finding in self.findings}
        if Severity.REFUSED in severities:
            return "refused"
        return "slicewise" if Severity.SLICEWISE in severities else "volume"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, height, width) as they are read, with square pixels."""
        return len(self.slices), *self._size

    @property
    def name(self) -> str:
        """What messages call the series."""
        return f"series {folders.one_line(self.number or self.uid[:64] or 'without a number')}"

    def slice(self, number: int) -> Image:
        """A slice (from 0) in HU, as `images.read` gives it for a file with this slice alone.

        Raises ImageRefused if the series is refused, or if the slice cannot be decoded.
        """
        if self.readable == "refused":
            raise self._refusal(Severity.REFUSED)
        one = self.slices[number]
        image = one.read()
        if image.pixels.shape != self._size:
            raise ImageRefused(one.source, "changed since the series was listed", "Read the series again.")
        return image

    def images(self) -> Iterator[Image]:
        """Every slice in order, decoded by threads; some 30 of them are in memory. Raises as `slice` does."""
        return progress.parallel(self.slice, range(len(self.slices)), workers=_workers())

    def volume(self) -> np.ndarray:
        """int16 (slices, height, width) in whole HU, at most 32,767; in the order of `slices`.

        Raises ImageRefused if the series is no volume, or if a slice cannot be decoded.
        """
        if self.readable != "volume":
            raise self._refusal(Severity.REFUSED, Severity.SLICEWISE)
        volume = np.empty(self.shape, np.int16)
        for number, pixels in enumerate(progress.parallel(self._whole, range(len(self.slices)), workers=_workers())):
            volume[number] = pixels
        return volume

    def _whole(self, number: int) -> np.ndarray:
        pixels = np.minimum(self.slice(number).pixels, np.iinfo(np.int16).max)
        return np.asarray(np.rint(pixels), np.int16)

    def _refusal(self, *severities: Severity) -> ImageRefused:
        first = next(finding for finding in self.findings if finding.severity in severities)
        remedy = "Give a series without this, or read its files one by one."
        if severities[-1] == Severity.SLICEWISE and self.readable == "slicewise":
            remedy = "Read it slice by slice."
        return ImageRefused(self.name, f"{first.rule}: {first.words.rstrip('.')}", remedy)


@dataclass(frozen=True)
class Contents:
    """What was in the folder, zip file or list."""

    series: tuple[Series, ...]  # by study, and by number
    set_aside: tuple[SetAside, ...]  # what is in none of them


def read(
    source: Given | Sequence[Given | tuple[str, Path | bytes]], name: str | None = None, label: str = ""
) -> Contents:
    """Every CT series in a folder and below it, in a zip file, or in a list of files. Only headers are read.

    source: a path, the bytes of a file, or a list of paths, bytes, and pairs of a name and either. name: what messages
    call a folder, zip file or single file. label: of a progress bar, if it is not empty.
    Raises ImageRefused if there is no such file or folder, if a zip file breaks a rule, or if there are too many files.
    """
    given, set_aside = files_in(source, name)
    placed: list[Placed] = []
    for found in progress.parallel(listed, given, label=label, unit="file"):
        placed += [one for one in found if isinstance(one, Placed)]
        set_aside += [one for one in found if isinstance(one, SetAside)]
        if len(placed) + len(set_aside) > MAX_SLICES:
            rule = f"too many slices: more than {MAX_SLICES:,}"
            raise ImageRefused(name or "what was given", rule, "Give fewer series at a time.")
    placed, derived = without_derived(placed)
    set_aside = _by_name([*set_aside, *derived])  # what is said of them does not depend on the order of the files
    found_series, undecodable = _all_series(placed, set_aside)
    return Contents(tuple(found_series), tuple(_by_name([*set_aside, *undecodable])))


def _by_name(aside: list[SetAside]) -> list[SetAside]:
    return sorted(aside, key=lambda one: (one.source, one.frame or 0))


def _workers() -> int:
    return min(_WORKERS, (os.cpu_count() or 1) + 1)


# --- which slices belong together --------------------------------------------------------------------------------


def _groups(placed: list[Placed]) -> Iterator[list[Placed]]:
    """The slices of each series, in no order."""
    exact: dict[tuple[object, ...], list[Placed]] = {}
    for one in placed:
        key = (one.study_uid, one.series_uid, one.frame_of_reference, one.rows, one.columns, one.size, not one.spacing)
        exact.setdefault(key, []).append(one)
    for same in exact.values():
        for alike in _by_orientation(same):
            yield from _by_acquisition(alike)


def _by_orientation(slices: list[Placed]) -> list[list[Placed]]:
    """Groups of the same orientation and pixel spacing; they do not depend on the order of `slices`."""
    slices = sorted(slices, key=lambda one: (one.orientation, one.spacing or ()))
    orientations = np.array([one.orientation for one in slices]) / geometry.SAME_ORIENTATION
    spacings = np.array([one.spacing or (0.0, 0.0) for one in slices]) / geometry.SAME_SPACING
    groups: dict[int, list[Placed]] = {}
    for number, one in zip(geometry.alike(np.hstack([orientations, spacings]), 1.0), slices, strict=True):
        groups.setdefault(number, []).append(one)
    return list(groups.values())


def _by_acquisition(slices: list[Placed]) -> list[list[Placed]]:
    """One group for each acquisition if two of them have a slice at the same position; otherwise all."""
    groups: dict[str, list[Placed]] = {}
    for one in slices:
        groups.setdefault(one.acquisition, []).append(one)
    if len(groups) * 2 > len(slices):  # a scanner that counts each slice as an acquisition
        return [slices]
    repeat = any(len({one.acquisition for one in same}) > 1 for same in _by_position(_in_order(slices)))
    return list(groups.values()) if repeat else [slices]


def _in_order(slices: list[Placed]) -> list[tuple[float, Placed]]:
    """Each slice with its position in mm along the normal, in that order."""
    across = geometry.normal(_model(slices).orientation)
    positions = (float(np.dot(one.corner, across)) for one in slices)
    found = list(zip(positions, slices, strict=True))
    return sorted(found, key=lambda pair: (pair[0], pair[1].instance_uid, str(pair[1])))


def _model(slices: list[Placed]) -> Placed:
    """The slice whose orientation and spacing stand for those of all."""
    return min(slices, key=lambda one: (one.orientation, one.spacing or (), one.corner))


def _by_position(in_order: Iterable[tuple[float, Placed]]) -> Iterator[list[Placed]]:
    """The slices at each position; those within SAME_POSITION of the first one count as at the same."""
    same: list[Placed] = []
    first = -math.inf
    for position, one in in_order:
        if same and position - first > geometry.SAME_POSITION:
            yield same
            same = []
        if not same:
            first = position
        same.append(one)
    if same:
        yield same


# --- slices at one position --------------------------------------------------------------------------------------


def _without_copies(slices: list[Placed]) -> tuple[list[Placed], list[Placed], list[list[Placed]], list[SetAside]]:
    """Slices in order; copies that were left out; slices of one position that differ; what cannot be decoded."""
    kept: list[Placed] = []
    copies: list[Placed] = []
    clashes: list[list[Placed]] = []
    unreadable: list[SetAside] = []
    for same in _by_position(_in_order(slices)):
        different = same
        if len(same) > 1 and len(clashes) < _CLASHES:
            different = _different(same, copies, unreadable)
        kept += different
        if len(different) > 1:
            clashes.append(different)
    return kept, copies, clashes, unreadable


def _different(same: list[Placed], copies: list[Placed], unreadable: list[SetAside]) -> list[Placed]:
    """Slices of one position without copies of the first and without what cannot be decoded, which are listed."""
    first: tuple[Placed, Image] | None = None
    different: list[Placed] = []
    for number, one in enumerate(same):
        if len(different) > 1:
            return different + same[number:]
        try:
            if first and _is_same_file(one, first[0]):
                copies.append(one)
                continue
            image = one.read()
        except ImageRefused as refused:
            words = f"{refused.rule}. {refused.remedy}"
            unreadable.append(SetAside(one.file.name, one.frame, Rule.UNREADABLE, words, one.study_uid, one.series_uid))
            continue
        if first and _is_copy(one, image, *first):
            copies.append(one)
            continue
        first = first or (one, image)
        different.append(one)
    return different


def _is_same_file(one: Placed, first: Placed) -> bool:
    """Whether two files have the same bytes: they need not be decoded then."""
    if one.frame or first.frame:
        return False
    return files.sha256(one.file.content()) == files.sha256(first.file.content())


def _is_copy(one: Placed, image: Image, first: Placed, first_image: Image) -> bool:
    apart = math.dist(one.corner, first.corner)
    return apart <= 2 * geometry.SAME_POSITION and np.array_equal(image.pixels, first_image.pixels)


# --- one series --------------------------------------------------------------------------------------------------


def _all_series(placed: list[Placed], set_aside: list[SetAside]) -> tuple[list[Series], list[SetAside]]:
    """Every series, by study and number; and the slices that could not be decoded when they were compared."""
    groups: dict[tuple[str, str], list[list[Placed]]] = {}
    aside: dict[tuple[str, str], list[SetAside]] = {}
    for group in _groups(placed):
        groups.setdefault((group[0].study_uid, group[0].series_uid), []).append(group)
    for one in set_aside:
        if one.series_uid:
            aside.setdefault((one.study_uid, one.series_uid), []).append(one)
            if one.rule in (Rule.UNREADABLE, Rule.NO_POSITION):
                groups.setdefault((one.study_uid, one.series_uid), [])
    found, undecodable = list[Series](), list[SetAside]()
    for key, same in sorted(groups.items(), key=lambda item: (item[0][0], _number(item[1]), item[0][1])):
        left_out = aside.get(key, [])
        shared = [*of_set_aside(left_out), *of_split(list(map(_model, same)), sum(map(len, same)))]
        if not same:
            found.append(_empty(*key, left_out))
        for group in sorted(same, key=lambda one: (-len(one), one[0].acquisition, _model(one).corner)):
            series, unreadable = _series(group, shared)
            found.append(series)
            undecodable += unreadable
    return found, undecodable


def _number(groups: list[list[Placed]]) -> float:
    number = groups[0][0].number if groups else ""
    return int(number) if number.isascii() and number.isdecimal() else math.inf


def _series(group: list[Placed], shared: list[Finding]) -> tuple[Series, list[SetAside]]:
    """The series of a group of slices, and those that cannot be decoded. shared: findings of all with its UID."""
    kept, copies, clashes, unreadable = _without_copies(group)
    model = _model(group)
    across = geometry.normal(model.orientation)
    along = [float(np.dot(one.corner, across)) for one in kept]
    places = Positions.of([same[0].corner for same in _by_position(zip(along, kept, strict=True))], across)
    between = geometry.spacing(places.along)
    own = findings(model, kept, places, between, copies, clashes)
    row, column = model.spacing or (None, None)
    series = Series(
        uid=model.series_uid,
        study_uid=model.study_uid,
        number=model.number,
        modality="CT",
        kernel=model.kernel,
        rows=model.rows,
        columns=model.columns,
        spacing=(row, column, between),
        thickness=model.thickness,
        orientation=model.orientation,
        view=geometry.view(across),
        slices=tuple(map(_slice, kept, along)),
        findings=tuple(in_order([*own, *shared, *of_set_aside(unreadable)])),
        _size=model.size,
    )
    return series, unreadable


def _slice(one: Placed, position: float) -> Slice:
    return Slice(one.file.name, one.frame, position, one.corner, one.instance_uid, one.read)


def _empty(study: str, uid: str, aside: list[SetAside]) -> Series:
    """A series of which no slice can be read, or none has a place."""
    example = aside[0]
    words = f"None of its {len(aside)} files or frames can be placed, such as {example}: {example.words}"
    return Series(
        uid=uid,
        study_uid=study,
        number="",
        modality="CT",
        kernel="",
        rows=0,
        columns=0,
        spacing=(None, None, None),
        thickness=None,
        orientation=(),
        view="",
        slices=(),
        findings=(Finding(Rule.NO_SLICE, words),),
        _size=(0, 0),
    )
