"""The maker, time and UIDs of an object: the same for the same reading, so a resend is the same object."""

import io
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from lungkit.gateway.objects.result import Result
from lungkit.gateway.objects.source import Source, derived_uid, one_line

MAKER = "lungkit"
SERIES = {"report": 9001, "capture": 9002, "segmentation": 9003, "review": 9004, "rejection": 9005}  # number by kind
_DAYS = ("InstanceCreationDate", "ContentDate", "SeriesDate", "DateOfSecondaryCapture")
_TIMES = ("InstanceCreationTime", "ContentTime", "SeriesTime", "TimeOfSecondaryCapture")
_STUDY = (
    "StudyDescription",
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "TimezoneOffsetFromUTC",
)


def identity(source: Source, result: Result, kind: str, *more: str) -> dict[str, Any]:
    """The arguments of highdicom's classes that say which object it is and what made it.

    kind: one of SERIES. more: what tells several objects of one kind and one reading apart.
    """
    return {
        "series_instance_uid": uid(source, result, "series", kind),
        "series_number": SERIES[kind],
        "sop_instance_uid": uid(source, result, "object", kind, *more),
        "instance_number": 1,
        "series_description": f"lungkit {kind}, research use only",
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": [_short(f"lungkit {result.lungkit}"), _short(result.version_name)],
        "device_serial_number": _short(result.version_name),
    }


def uid(source: Source, result: Result, *names: str) -> str:
    """A UID of this reading of this study, always the same for the same names."""
    return derived_uid(*names, str(source.headers[0].StudyInstanceUID), result.reading)


def device_uid(result: Result) -> str:
    """Of the version that read, on every machine."""
    return derived_uid("device", result.model, result.version)


def sealed(made: Dataset, source: Source, at: datetime) -> None:
    """Sets all dates and times of an object to `at`, and copies what else the study's objects have in common.

    Times are in the zone that the images state, otherwise in that of `at`.
    """
    first = source.headers[0]
    for keyword in _STUDY:
        if keyword in first:
            setattr(made, keyword, first[keyword].value)
    local = at.astimezone(_zone(first) or at.tzinfo or UTC)
    made.SeriesDate, made.SeriesTime = "", ""
    for keyword in _DAYS:
        if keyword in made:
            setattr(made, keyword, DA(local.date()))
    for keyword in _TIMES:
        if keyword in made:
            setattr(made, keyword, TM(local.time().replace(microsecond=0)))
    for equipment in made.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = moment(local)


def moment(at: datetime) -> DT:
    """A time with its offset from UTC, in whole seconds."""
    return DT(f"{at:%Y%m%d%H%M%S%z}")


def study_time(header: Dataset) -> datetime | date | None:
    """When a study was made: with the zone that its images state; without one only the day; None if not known."""
    day = DA(header.get("StudyDate") or None)
    clock, zone = TM(header.get("StudyTime") or None), _zone(header)
    return datetime.combine(day, clock, zone) if day and clock and zone else day


def _zone(header: Dataset) -> timezone | None:
    stated = str(header.get("TimezoneOffsetFromUTC", ""))
    if not stated:
        return None
    offset = timedelta(hours=int(stated[1:3]), minutes=int(stated[3:5]))
    return timezone(-offset if stated.startswith("-") else offset)


def encoded(made: Dataset) -> bytes:
    """The object as a DICOM file."""
    stream = io.BytesIO()
    dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


def _short(text: str) -> str:
    return one_line(text)[:64].rstrip()
