"""What a result's objects need of the images it is about: patient, study, references and geometry, made valid.

Headers come from strangers. Every value is decoded from its bytes here and then kept, shortened, or left empty by the
rules for its type (PS3.5, 6.2). A number that identifies a patient or an order is never shortened: cut, it could be
another's. A study, series or instance UID that is none gets a valid one that is always the same for the same text.
"""

import io
import json
import math
import re
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
from pydicom import charset, uid
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat

from lungkit.data import geometry
from lungkit.data.image import can_be_spacings
from lungkit.errors import LungkitError

CT_IMAGES = (uid.CTImageStorage, uid.EnhancedCTImageStorage)
IMAGES = (  # the kinds of objects that lungkit reads
    *CT_IMAGES,
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
)
IDENTIFIERS = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID")  # left empty rather than shortened
KEPT = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "Modality"),
    *("Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "LossyImageCompression"),
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PatientOrientation"),
)
_EMPTY = (  # type 2 in every object: there, with or without a value
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_VALUES = {  # how many values an attribute has, where it is not one
    **dict.fromkeys(("PixelSpacing", "ImagerPixelSpacing", "PatientOrientation"), 2),
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
}
_MOST_BYTES = 1024  # of a value; nothing valid among KEPT is longer
_MOST_UNPACKED = 128 * 2**20  # bytes: the headers of 20,000 slices have 80 MB
_LENGTHS = {"LO": 64, "SH": 16}
_FORMS = {
    "DA": re.compile(r"(19|20)\d{6}", re.ASCII),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d)(\.\d{1,6})?)?)?", re.ASCII),
    "AS": re.compile(r"\d{3}[DWMY]", re.ASCII),
    "CS": re.compile(r"[A-Z0-9 _]{1,16}", re.ASCII),
    "IS": re.compile(r"[+-]?\d{1,9}", re.ASCII),
    "UI": re.compile(r"(?=.{1,64}$)[012](\.\d+)+", re.ASCII),
}
_TERMS = {
    "PatientSex": re.compile("[MFO]"),
    "LossyImageCompression": re.compile("0[01]"),
    "TimezoneOffsetFromUTC": re.compile(r"[+-](0\d|1[0-4])[0-5]\d", re.ASCII),
    "PatientOrientation": re.compile("[LRAPHF]{1,3}"),
}
_ENDS_OF_ESCAPES = set(b"\\^=\r\n\t\f")  # PS3.5, 6.1.2.5.3: after them the first character set counts again


class SourceRefused(LungkitError):
    """Images that no result can be filed next to."""


@dataclass(frozen=True, eq=False)
class Source:
    """The images that a result is about: all of one study and one series."""

    headers: tuple[Dataset, ...]  # of each image what is in KEPT, valid, in the order given
    # What was changed, for people: names attributes, never the values of a patient.
    notes: tuple[str, ...]

    @property
    def is_ct(self) -> bool:
        """Whether it is computed tomography; X-ray otherwise."""
        first = self.headers[0]
        return first.SOPClassUID in CT_IMAGES or first.get("Modality") == "CT"

    @property
    def instances(self) -> tuple[str, ...]:
        """The SOPInstanceUID of each image, as the objects name it."""
        return tuple(str(header.SOPInstanceUID) for header in self.headers)

    def of(self, instances: Sequence[str]) -> list[Dataset]:
        """The headers of these SOPInstanceUIDs; all where there are none. Raises SourceRefused for an unknown one."""
        if not instances:
            return list(self.headers)
        known = dict(zip(self.instances, self.headers, strict=True))
        named = [_valid_uid(instance) or "" for instance in instances]
        if unknown := [given for given, name in zip(instances, named, strict=True) if name not in known]:
            raise SourceRefused(f"the result is about image {unknown[0][:64]!r}, which is not one of its source")
        return [known[name] for name in named]


def source_header(file: bytes | str | Path) -> Dataset:
    """The attributes in KEPT of a DICOM file, as the file has them; everything else is left out.

    For a file that lungkit's reader has accepted. No pixels are read. A value of more than 1024 bytes is cut there,
    which still is too long for every rule. Raises SourceRefused if the file has no DICOM header.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else Path(file)
    wanted = [Tag(keyword) for keyword in ("SpecificCharacterSet", *KEPT)]
    try:
        read = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=wanted)
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, pydicom.errors.InvalidDicomError) as error:
        raise SourceRefused(f"no DICOM header could be read: {type(error).__name__}") from error
    header = Dataset()
    for tag in wanted:
        if tag in read:
            header[tag] = _bounded(read.get_item(tag))
    if not header:
        raise SourceRefused("no DICOM header could be read: it has none of the attributes that results need")
    stated = read.file_meta.get("MediaStorageSOPInstanceUID") if hasattr(read, "file_meta") else None
    if stated and not _texts(header, "SOPInstanceUID", []):
        header.SOPInstanceUID = stated
    return header


def packed(headers: Sequence[Dataset]) -> bytes:
    """What `source_header` gave of some files, for the records: compressed DICOM JSON with the attributes in KEPT.

    Values are kept as texts, valid or not: `source_of` then says the same of them as before.
    """
    return zlib.compress(json.dumps([_as_texts(header).to_json_dict() for header in headers]).encode())


def _as_texts(header: Dataset) -> Dataset:
    codings, made = _codings(header), Dataset()
    for keyword in KEPT:
        if any(texts := _texts(header, keyword, codings)):
            made.add(DataElement(Tag(keyword), "UT", "\\".join(texts)))
    return made


def unpacked(content: bytes) -> list[Dataset]:
    """The headers that were packed. Raises SourceRefused for anything else, and for more than 128 MB of them."""
    decompressing = zlib.decompressobj()
    try:
        text = decompressing.decompress(content, _MOST_UNPACKED)
        if decompressing.unconsumed_tail or not decompressing.eof:
            raise ValueError("too long, or cut")
        return [_from_texts(each) for each in json.loads(text)]
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SourceRefused("the headers in the records are damaged: restore a backup") from error


def _from_texts(stored: Mapping[str, Any]) -> Dataset:
    header = Dataset()
    for tag, element in stored.items():
        (text,) = element["Value"]
        if element["vr"] != "UT" or not isinstance(text, str):
            raise ValueError("not packed here")
        if keyword_for_tag(Tag(f"0x{tag}")) in KEPT:
            header.add(DataElement(Tag(f"0x{tag}"), "UT", text))
    return header


def _bounded(element: DataElement | RawDataElement) -> DataElement | RawDataElement:
    if isinstance(element, RawDataElement) and element.value and len(element.value) > _MOST_BYTES:
        return element._replace(value=element.value[:_MOST_BYTES], length=_MOST_BYTES)
    return element


def source_of(headers: Source | Dataset | Sequence[Dataset]) -> Source:
    """The source with these headers, made valid and complete: one image's, or those of a series in their order.

    A Source is returned as it is.

    Raises SourceRefused, with the attribute's name, where something is missing that may not be made up: the study, the
    kind of image, its rows and columns; and where images are of several studies, series or kinds.
    """
    if isinstance(headers, Source):
        return headers
    given = [headers] if isinstance(headers, Dataset) else list(headers)
    if not given:
        raise SourceRefused("a result needs at least one image that it is about")
    notes: dict[str, None] = {}
    valid = [_valid(header, notes) for header in given]
    for header in valid:
        _measure(header, notes)
        _check(header)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        if len({str(header.get(keyword, "")) for header in valid}) > 1:
            raise SourceRefused(f"the images differ in {keyword}: a result is about one series")
    for number, header in enumerate(valid):
        _complete(header, number, notes)
    unique = {str(header.SOPInstanceUID): header for header in reversed(valid)}
    if len(unique) < len(valid):
        notes["several images have the same SOPInstanceUID: the first of them counts"] = None
    kept = [header for header in valid if unique[str(header.SOPInstanceUID)] is header]
    return Source(tuple(kept), tuple(notes))


_PLACES = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")
_POSSIBLE: dict[str, Callable[[list[float]], object]] = {
    "PixelSpacing": lambda pair: can_be_spacings(*pair),
    "ImagerPixelSpacing": lambda pair: can_be_spacings(*pair),
    "SliceThickness": lambda one: 0 < one[0] < 1000,
    "ImagePositionPatient": geometry.position_of,
    "ImageOrientationPatient": geometry.orientation_of,
    "PatientSize": lambda one: 0 < one[0] < 3,
    "PatientWeight": lambda one: 0 < one[0] < 1000,
}


def _measure(header: Dataset, notes: dict[str, None]) -> None:
    """Leaves out what cannot be: distances of 0, directions that are none; and places of what is no slice."""
    for keyword, possible in _POSSIBLE.items():
        value = header.get(keyword)
        if value is None:
            continue
        if not possible([float(one) for one in (value if isinstance(value, MultiValue) else [value])]):
            del header[keyword]
            notes[f"{keyword} is not possible and was left out"] = None
    for keyword in _PLACES:
        if header.get("SOPClassUID") != uid.CTImageStorage and keyword in header:
            del header[keyword]


def _check(header: Dataset) -> None:
    if "StudyInstanceUID" not in header:
        raise SourceRefused(
            "the image has no StudyInstanceUID, and without it no system can file a result next to the image; "
            "send an image that belongs to a study"
        )
    if header.get("SOPClassUID") not in IMAGES:
        raise SourceRefused(f"SOPClassUID {header.get('SOPClassUID', 'missing')} is none of a CT or X-ray image")
    for keyword in ("Rows", "Columns"):
        if not header.get(keyword):
            raise SourceRefused(f"the image has no {keyword}")


def _complete(header: Dataset, number: int, notes: dict[str, None]) -> None:
    """Adds what is missing and may be made up: empty values of type 2, and UIDs derived from the study's."""
    for keyword in _EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    study = str(header.StudyInstanceUID)
    if "SeriesInstanceUID" not in header:
        header.SeriesInstanceUID = derived_uid("series of", study)
        notes["the image has no SeriesInstanceUID: references name one derived from the study's"] = None
    series = str(header.SeriesInstanceUID)
    if "SOPInstanceUID" not in header:
        place = header.get("ImagePositionPatient") or header.get("InstanceNumber") or number
        header.SOPInstanceUID = derived_uid("image of", series, str(place), str(number))
        notes["an image has no SOPInstanceUID: references name one derived from its series and place"] = None
    if "FrameOfReferenceUID" not in header and "ImagePositionPatient" in header:
        header.FrameOfReferenceUID = derived_uid("frame of reference of", series)
        notes["the image has no FrameOfReferenceUID: one is derived from its series"] = None


def derived_uid(*names: str) -> str:
    """A UID "2.25.…" that is always the same for the same texts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(10).join(('lungkit', *names))).int}"


# --- making values valid -----------------------------------------------------------------------------------------


def _valid(given: Dataset, notes: dict[str, None]) -> Dataset:
    """A data set with the attributes in KEPT that have a valid value, in UTF-8."""
    codings = _codings(given)
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in KEPT:
        texts = _texts(given, keyword, codings)
        if not any(texts):
            continue
        value, note = _value(keyword, texts)
        if value is not None:
            setattr(header, keyword, value)
        if note:
            notes[f"{keyword} {note}"] = None
    return header


def _codings(given: Dataset) -> list[str]:
    """Python's names of the character sets that a header states; Latin-1 where none of them is known."""
    stated = _texts(given, "SpecificCharacterSet", [])
    known = [charset.python_encoding[name] for name in stated if name in charset.python_encoding]
    return known or ["iso8859"]


def _texts(given: Dataset, keyword: str, codings: list[str]) -> list[str]:
    """An attribute's values as texts, whatever its type is said to be; empty if it is absent or cannot be read."""
    if keyword not in given:
        return []
    element = given.get_item(keyword)
    if not isinstance(element, RawDataElement):
        return _texts_of(element.value)
    content = element.value or b""
    if dictionary_VR(keyword) == "US":
        return [str(int.from_bytes(content[:2], "little" if element.is_little_endian else "big"))] if content else []
    text = _decoded(content, codings if dictionary_VR(keyword) in ("PN", "LO", "SH") else [])
    return [part.strip("\0 \t\r\n") for part in text.split("\\")]


def _texts_of(value: object) -> list[str]:
    if value is None or isinstance(value, bytes):
        return []
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [part.strip("\0 \t\r\n") for one in several for part in str(one).split("\\")]


def _decoded(content: bytes, codings: list[str]) -> str:
    try:
        if len(codings) > 1:
            return str(charset.decode_bytes(content, codings, _ENDS_OF_ESCAPES))
        return content.decode(codings[0] if codings else "latin-1", "replace")
    except (LookupError, ValueError):
        return content.decode("latin-1")


def _value(keyword: str, texts: list[str]) -> tuple[object, str]:
    """The value to set, None for none; and what was changed, empty for nothing."""
    kind, count = dictionary_VR(keyword), _VALUES.get(keyword, 1)
    if kind == "UI":
        return _uid_value(keyword, texts)
    if kind in ("PN", "LO", "SH") and keyword not in _TERMS:
        return _text_value(keyword, kind, texts)
    if len(texts) != count and count > 1:
        return None, "does not have the right number of values and was left out"
    values = [_single(keyword, kind, text) for text in texts[:count]]
    if any(value is None for value in values):
        return None, "is not valid and was left out"
    return (values if count > 1 else values[0]), ""


def _single(keyword: str, kind: str, text: str) -> str | int | DSfloat | None:
    """One value of a type that has a form; None if it is not valid."""
    form = _TERMS.get(keyword) or _FORMS.get(kind)
    if kind == "DS":
        return _number(text)
    if form and not form.fullmatch(text):
        return None
    if kind == "DA":
        return text if _is_day(text) else None
    if kind == "US":
        return int(text) if text.isascii() and text.isdecimal() and 0 < int(text[:9]) < 2**16 else None
    return int(text) if kind == "IS" else text


def _is_day(text: str) -> bool:
    try:
        return bool(date(int(text[:4]), int(text[4:6]), int(text[6:])))
    except ValueError:
        return False


def _number(text: str) -> DSfloat | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return DSfloat(number, auto_format=True) if math.isfinite(number) and abs(number) < 1e9 else None


def _uid_value(keyword: str, texts: list[str]) -> tuple[object, str]:
    if keyword == "SOPClassUID" or _FORMS["UI"].fullmatch(texts[0]):
        return texts[0][:64], ""
    return _valid_uid(texts[0]), "is not a UID: the objects name one that is derived from it"


def _valid_uid(text: str) -> str | None:
    """A UID: the text itself; of a UUID the one that the standard derives from it (PS3.5, B.2); otherwise ours."""
    if not text:
        return None
    if _FORMS["UI"].fullmatch(text):
        return text
    try:
        return f"2.25.{uuid.UUID(text).int}"
    except ValueError:
        return derived_uid("not a UID", text)


def _text_value(keyword: str, kind: str, texts: list[str]) -> tuple[object, str]:
    text = one_line(" ".join(texts) if keyword not in IDENTIFIERS else "\\".join(texts))
    if keyword in IDENTIFIERS:
        fits = len(text) <= _LENGTHS[kind] and "\\" not in text and "\ufffd" not in text
        return (text, "") if fits else ("", "is too long or damaged: left empty, as a part could be another's")
    if kind == "PN":
        short = "=".join(_shortened("^".join(group.split("^")[:5]), 64) for group in text.split("=")[:3])
    else:
        short = _shortened(text, _LENGTHS[kind])
    return short, "" if short == text else "is too long: shortened"


def _shortened(text: str, most: int) -> str:
    """Text of at most so many characters; one that is longer is cut to as many bytes, for readers that count those."""
    return text if len(text) <= most else text.encode()[:most].decode(errors="ignore").rstrip()


def one_line(text: str) -> str:
    """Text without control characters, with single blanks."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
