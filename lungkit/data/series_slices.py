"""From files to the CT slices in them, each with its place, and to what is set aside; only headers are read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pydicom import uid

from lungkit.data import dicom, folders, frames, geometry, images
from lungkit.data.archive import MAX_FILES, Archive, is_zip
from lungkit.data.decoders import frame_values
from lungkit.data.dicom_header import MAX_FRAMES, Header, check_slice, frame_header, is_scout, walked_header
from lungkit.data.image import Broken, Image, ImageRefused, can_be_spacings
from lungkit.data.series_rules import Rule, SetAside

MAX_FILE = 2 * 2**30  # bytes of a file with many frames
_ARCHIVE = "an archive among the files", "It is not opened. Give it alone, or unpack it."
_RULES = {"not an image": Rule.NOT_DICOM, _ARCHIVE[0]: Rule.ARCHIVE}  # of what is refused; all else is unreadable
Given = str | Path | bytes  # a file, or its bytes


@dataclass(frozen=True)
class File:
    """A file of the series: what messages call it, and how to get it."""

    name: str
    content: Callable[[], Path | bytes]


@dataclass(frozen=True)
class Placed:
    """A CT slice whose header is in order, with what places it in a series."""

    file: File
    frame: int | None  # counted from 1, as in DICOM; None in a file of one image
    instance_uid: str
    study_uid: str
    series_uid: str
    number: str  # of the series
    frame_of_reference: str
    acquisition: str
    rows: int
    columns: int
    size: tuple[int, int]  # (height, width) as it is read, with square pixels
    spacing: tuple[float, float] | None  # mm between rows, and between columns
    orientation: tuple[float, ...]
    corner: tuple[float, ...]  # the middle of the first pixel, mm
    thickness: float | None  # mm
    tilt: float | None  # degrees, as the scanner's maker states it
    patient_position: str
    kernel: str
    derived: str  # ImageType in words, where it says that the slice was calculated from other images; or ""
    read: Callable[[], Image] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.file.name}{f', frame {self.frame}' if self.frame else ''}"


def files_in(
    source: Given | Sequence[Given | tuple[str, Path | bytes]], name: str | None
) -> tuple[list[File], list[SetAside]]:
    """The files of a folder and below it, of a zip file, or of a list; and what is not looked into.

    Raises ImageRefused if there is no such file or folder, if a zip file breaks a rule, or if there are too many files.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        name = name or str(source)
        if folders.mode(path) == 0:
            raise ImageRefused(name, "no such file or folder", "Check the path.")
        if path.is_dir():
            return _in_folder(path, name)
        if is_zip(path):
            return _in_archive(Archive(path, name))
        return [File(name, partial(Path, path))], []
    if isinstance(source, bytes) and is_zip(source):
        return _in_archive(Archive(source, name or "uploaded zip file"))
    if isinstance(source, bytes):
        return [File(name or "uploaded file", partial(bytes, source))], []
    return _in_list(source), []


def listed(file: File) -> list[Placed | SetAside]:
    """The slices in a file, or why there are none. Raises nothing."""
    try:
        with images.opened(file.content(), file.name, MAX_FILE) as (stream, kind, _):
            if kind != "DICOM":
                return [SetAside(file.name, None, Rule.NOT_DICOM, f"{kind} picture: it has no place in a series.")]
            return list(_slices(stream, file))
    except ImageRefused as refused:
        rule = _RULES.get(refused.rule, Rule.UNREADABLE)
        return [SetAside(file.name, None, rule, f"{refused.rule}. {refused.remedy}")]


# --- which files -------------------------------------------------------------------------------------------------


def _check_count(count: int, name: str) -> None:
    if count > MAX_FILES:
        raise ImageRefused(name, f"too many files: {count:,}", f"At most {MAX_FILES:,} are read at a time.")


def _in_folder(folder: Path, name: str) -> tuple[list[File], list[SetAside]]:
    survey = folders.survey(folder)
    _check_count(len(survey.images), name)
    aside = [
        SetAside(folders.one_line(folders.below(path, folder)), None, rule, words)
        for paths, rule, words in (
            (survey.passed_over, Rule.NOT_DICOM, "not an image. CT slices in DICOM are read."),
            (survey.archives, Rule.ARCHIVE, ". ".join(_ARCHIVE)),
            (survey.broken, Rule.NOT_OPENED, "a link that leads nowhere, or in a circle."),
            (survey.closed, Rule.NOT_OPENED, "no permission to open this folder."),
        )
        for path in paths
    ]
    return [File(folders.one_line(folders.below(path, folder)), partial(Path, path)) for path in survey.images], aside


def _in_archive(archive: Archive) -> tuple[list[File], list[SetAside]]:
    files = [
        File(name, partial(_member, archive, number, name))
        for number, name in enumerate(archive.names())
        if not archive.is_rubbish(number)
    ]
    return files, []


def _member(archive: Archive, number: int, name: str) -> bytes:
    content = archive.read(number)
    if folders.is_archive_start(content):
        raise ImageRefused(name, *_ARCHIVE)
    return content


def _alone(content: Path | bytes, name: str) -> Path | bytes:
    """The content itself; an archive is refused."""
    if is_zip(content):
        raise ImageRefused(name, *_ARCHIVE)
    return content


def _in_list(given: Sequence[Given | tuple[str, Path | bytes]]) -> list[File]:
    _check_count(len(given), "the list of files")
    named = [one if isinstance(one, tuple) else _named(one, number) for number, one in enumerate(given, 1)]
    return [File(name, partial(_alone, content, name)) for name, content in named]


def _named(one: Given, number: int) -> tuple[str, Path | bytes]:
    return (f"file {number}", one) if isinstance(one, bytes) else (folders.one_line(one), Path(one))


# --- what is in a file -------------------------------------------------------------------------------------------


def _slices(stream: BinaryIO, file: File) -> Iterator[Placed | SetAside]:
    header, broken = walked_header(stream)
    if header.kind != uid.EnhancedCTImageStorage:
        yield _slice(stream, header, file, broken)
        return
    try:
        if broken:
            raise broken
        yield from _frames(stream, header, file)
    except Broken as refused:
        yield _aside(header, file, None, Rule.UNREADABLE, ". ".join(refused.args))


def _slice(stream: BinaryIO, header: Header, file: File, broken: Broken | None) -> Placed | SetAside:
    if aside := _not_for_a_series(header, file, None, None if broken else Rule.NO_POSITION):
        return aside
    try:
        if broken:
            raise broken
        check_slice(header)
        frames.places(stream, header, 1)
    except Broken as refused:
        return _aside(header, file, None, Rule.UNREADABLE, ". ".join(refused.args))
    return _placed(header, file, None, partial(_image, file))


def _frames(stream: BinaryIO, header: Header, file: File) -> list[Placed | SetAside]:
    """The frames of an enhanced CT, in the order of the file. Raises Broken if none of them can be read."""
    count = header.whole("NumberOfFrames", 1)
    if not 1 <= count <= MAX_FRAMES or count != len(header.frames):
        rule = f"damaged: {header.named('NumberOfFrames')}, and functional groups of {len(header.frames)} frames"
        raise Broken(rule, f"Up to {MAX_FRAMES:,} frames are read, each with its own group.")
    found: list[Placed | SetAside] = []
    parts: list[tuple[frames.Part, ...]] = []
    for number in range(count):
        own = frame_header(header, number)
        aside = _not_for_a_series(own, file, number + 1, Rule.NO_POSITION)
        if aside is None:
            try:
                check_slice(own)
            except Broken as refused:
                aside = _aside(own, file, number + 1, Rule.UNREADABLE, ". ".join(refused.args))
        if aside is not None:
            found.append(aside)
            continue
        parts = parts or frames.places(stream, own, count)
        found.append(_placed(own, file, number + 1, partial(_frame_image, file, header, number, parts[number])))
    return found


def _not_for_a_series(header: Header, file: File, frame: int | None, no_position: Rule | None) -> SetAside | None:
    """Why this image belongs to no series of CT slices; None if it does.

    no_position: the rule for one without position or orientation; None: do not look at them.
    """
    if header.kind != uid.CTImageStorage:
        stated = folders.one_line(header.kind.name)[:64] or "no SOPClassUID given"
        return _aside(header, file, frame, Rule.NOT_CT, f"{stated}. CT slices are read.")
    if is_scout(header):
        return _aside(header, file, frame, Rule.LOCALIZER, f"{header.named('ImageType')}: a scout view, no slice.")
    if no_position and not (_corner(header) and _orientation(header)):
        stated = header.named("ImagePositionPatient", "ImageOrientationPatient")
        return _aside(header, file, frame, no_position, f"{stated}: its place in the series is not known.")
    return None


def without_derived(placed: list[Placed]) -> tuple[list[Placed], list[SetAside]]:
    """Slices without those of their series that were calculated from others; where all of a series were, they stay."""
    original = {(one.study_uid, one.series_uid) for one in placed if not one.derived}
    kept, aside = list[Placed](), list[SetAside]()
    for one in placed:
        if one.derived and (one.study_uid, one.series_uid) in original:
            words = f"{one.derived}: calculated from other images. Original slices are read."
            aside.append(SetAside(one.file.name, one.frame, Rule.DERIVED, words, one.study_uid, one.series_uid))
        else:
            kept.append(one)
    return kept, aside


def _is_derived(header: Header) -> bool:
    kinds = [word.strip() for word in header.text("ImageType").upper().split("\\")]
    return kinds[0] == "DERIVED" or kinds[1:2] == ["SECONDARY"]


def _aside(header: Header, file: File, frame: int | None, rule: Rule, words: str) -> SetAside:
    study, series = header.whole_text("StudyInstanceUID"), header.whole_text("SeriesInstanceUID")
    return SetAside(file.name, frame, rule, words, study, series)


def _corner(header: Header) -> tuple[float, ...] | None:
    return geometry.position_of(header.numbers("ImagePositionPatient"))


def _orientation(header: Header) -> tuple[float, ...] | None:
    return geometry.orientation_of(header.numbers("ImageOrientationPatient"))


def _placed(header: Header, file: File, frame: int | None, read: Callable[[], Image]) -> Placed:
    corner, orientation = _corner(header), _orientation(header)
    assert corner is not None and orientation is not None  # it would have been set aside
    spacing = header.numbers("PixelSpacing")
    return Placed(
        file=file,
        frame=frame,
        instance_uid=header.whole_text("SOPInstanceUID"),
        study_uid=header.whole_text("StudyInstanceUID"),
        series_uid=header.whole_text("SeriesInstanceUID"),
        number=header.text("SeriesNumber"),
        frame_of_reference=header.whole_text("FrameOfReferenceUID"),
        acquisition=header.text("AcquisitionNumber"),
        rows=header.rows,
        columns=header.columns,
        size=dicom.size_of(header),
        spacing=(spacing[0], spacing[1]) if len(spacing) == 2 and can_be_spacings(*spacing) else None,
        orientation=orientation,
        corner=corner,
        thickness=header.number("SliceThickness"),
        tilt=header.number("GantryDetectorTilt"),
        patient_position=header.word("PatientPosition"),
        kernel=header.text("ConvolutionKernel"),
        derived=header.named("ImageType") if _is_derived(header) else "",
        read=read,
    )


# --- pixels ------------------------------------------------------------------------------------------------------


def _image(file: File) -> Image:
    """The image of a file, as `images.read` gives it. Raises ImageRefused."""
    return images.read(file.content(), file.name)


def _frame_image(file: File, header: Header, number: int, parts: tuple[frames.Part, ...]) -> Image:
    """One frame (from 0) as an image, by the same rules; only its own bytes are read. Raises ImageRefused."""
    name = f"{file.name}, frame {number + 1}"
    with images.opened(file.content(), name, MAX_FILE) as (stream, _, _):
        own = frame_header(header, number)
        check_slice(own)
        image = dicom.image_of(frame_values(own, frames.content(stream, own, parts)), own, name)
        images.check_finite(image)
        return image
