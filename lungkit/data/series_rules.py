"""What can be wrong with, or unusual in, a series of CT slices: each rule has a name and says what follows from it."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a finding means for reading the series."""

    NOTE = "note"  # nothing
    SLICEWISE = "slicewise"  # each slice may be read, but they are no volume
    REFUSED = "refused"  # the series is not read


class Rule(StrEnum):
    """A fixed phrase for each rule."""

    # What is set aside, and is in no series.
    NOT_DICOM = "not a DICOM file"
    NOT_CT = "not a CT image"
    LOCALIZER = "localizer"
    DERIVED = "derived or secondary image"
    NO_POSITION = "no position or orientation"
    UNREADABLE = "unreadable"
    ARCHIVE = "archive in what was given"
    NOT_OPENED = "not opened"

    # Notes.
    INVALID_UID = "invalid UID"
    NO_UID = "missing UID"
    REPEATED_UID = "repeated UID"
    SPLIT = "split series"
    DUPLICATE = "duplicate"
    OVERLAP = "overlapping slices"
    APART = "slices apart"
    OBLIQUE = "oblique"
    FEET_FIRST = "feet first"
    TURNED = "turned or mirrored"
    TILT_STATED = "stated tilt"
    NOT_SQUARE = "pixels not square"

    # Slice by slice only.
    GAP = "missing slices"
    UNEVEN = "uneven spacing"
    TILT = "tilted"
    SHIFTED = "shifted slices"
    ONE_SLICE = "one slice"
    NO_SPACING = "no pixel spacing"
    NO_SERIES_UID = "no series UID"
    ALL_DERIVED = "derived series"

    # Refused.
    SAME_POSITION = "two slices at one position"
    NOT_AXIAL = "not axial"
    NO_SLICE = "no slice"

    @property
    def severity(self) -> Severity:
        """What a finding by this rule means for the series that it is about."""
        return _SEVERITIES.get(self, Severity.NOTE)


_SEVERITIES = dict.fromkeys(
    (
        Rule.GAP,
        Rule.UNEVEN,
        Rule.TILT,
        Rule.SHIFTED,
        Rule.ONE_SLICE,
        Rule.NO_SPACING,
        Rule.NO_SERIES_UID,
        Rule.ALL_DERIVED,
    ),
    Severity.SLICEWISE,
) | dict.fromkeys((Rule.SAME_POSITION, Rule.NOT_AXIAL, Rule.NO_SLICE), Severity.REFUSED)


@dataclass(frozen=True)
class Finding:
    """Something about a series that a person should know."""

    rule: Rule
    words: str  # a plain sentence, with millimetres where it is about places

    @property
    def severity(self) -> Severity:
        """What it means for the series."""
        return self.rule.severity


@dataclass(frozen=True)
class SetAside:
    """A file, or a frame of one, that is in no series."""

    source: str  # the file's name
    frame: int | None  # counted from 1; None where it is a whole file
    rule: Rule
    words: str  # what was wrong, and what would be accepted
    study_uid: str = ""  # where it is known
    series_uid: str = ""

    def __str__(self) -> str:
        return f"{self.source}{f', frame {self.frame}' if self.frame else ''}"
