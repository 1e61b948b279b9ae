"""The inbox: DICOM files from strangers, written with bounds, looked at, made durable, and then noted in the records.

A file lies there under a random name from the moment it is complete; what its header says never becomes a path. Only a
file that is on the disk is noted, so whatever ends the gateway in between leaves a file that `tidy` deletes.
"""

import hashlib
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import PersonName

from lungkit import config
from lungkit.clinic.records import received
from lungkit.clinic.records.jobs import Claimed, SourceHeaders
from lungkit.clinic.records.patients import LONGEST_NAME, NewPatient, RecordRefused
from lungkit.clinic.records.received import Arrival, ArrivalRefused
from lungkit.clinic.records.store import Store, StoreError
from lungkit.clinic.records.tables import new_id
from lungkit.data import images
from lungkit.data.dicom_header import Header, is_scout, walked_header
from lungkit.data.image import DUMMY_DATES, ImageRefused
from lungkit.errors import LungkitError
from lungkit.gateway.objects.provenance import MAKER
from lungkit.gateway.objects.source import IMAGES, one_line, packed, source_header

MOST_BYTES = 2**30  # of a file; an enhanced CT of 2,000 frames
LEAST_FREE = 2**30  # bytes on the disk with the inbox; below, nothing is taken
LEFT_OVER = 3600.0  # s; a file without a row that is older belongs to a sender that broke off
# Studies that are sent whole contain these, too: they are taken and set aside, or their senders would try for ever.
NO_IMAGES = (
    uid.BasicTextSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
    uid.Comprehensive3DSRStorage,
    uid.XRayRadiationDoseSRStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.SegmentationStorage,
)
KINDS = (*IMAGES, *NO_IMAGES)

# Why a file is not taken: statuses of C-STORE (PS3.4, B.2.3), which are the failure reasons of STOW-RS, too.
RESOURCES, MISMATCH, CLASS, NOT_ALLOWED, CANNOT, PROCESSING = 0xA700, 0xA900, 0x0122, 0x0124, 0xC000, 0x0110
FULL = "too little room is left on the disk; send it again later"
_CHECKED_EVERY = 64 * 2**20  # bytes that are written between two looks at the free space
_OF_STUDY = ("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDescription")
_TEXTS: list[BaseTag | int] = [Tag(keyword) for keyword in (*_OF_STUDY, "SeriesDescription", "Manufacturer")]
_LAST = Tag("StudyID")  # nothing that is needed comes after its group
_LONGEST_TEXT = 1024  # bytes; nothing valid among _TEXTS is longer
_SEXES = {"M": "male", "F": "female", "O": "other"}
_ID = re.compile("[0-9a-f-]{36}")
_log = logging.getLogger(__name__)


class NotTaken(LungkitError):
    """A file of which nothing was kept. status: one of the above; the UIDs are empty where they cannot be read."""

    def __init__(self, status: int, words: str, class_uid: str = "", instance_uid: str = ""):
        super().__init__(words)
        self.status, self.class_uid, self.instance_uid = status, class_uid, instance_uid


class Taken(NamedTuple):
    """A file that is in the inbox and in the records."""

    class_uid: str
    instance_uid: str
    again: bool  # it was there already, byte for byte


def has_room() -> bool:
    """Whether files are taken. False also if the folder cannot be made."""
    try:
        return shutil.disk_usage(_folder(config.inbox_dir())).free >= LEAST_FREE
    except OSError:
        return False


class Incoming:
    """A file that is arriving. Writing raises nothing: `take` says what went wrong. It is removed if it is dropped.

    It can take the place of the temporary file that pynetdicom writes to, hence `name` and `file`.
    """

    def __init__(self) -> None:
        self.fault: NotTaken | None = None
        self.bytes, self._sum, self._checked = 0, hashlib.sha256(), -_CHECKED_EVERY
        self.name = str(config.inbox_dir() / "arriving" / new_id())
        self._stream: BinaryIO | None = None
        try:
            _folder(Path(self.name).parent)
            descriptor = os.open(self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._stream = os.fdopen(descriptor, "wb")
            self._dropped = weakref.finalize(self, _drop, self._stream, self.name)
        except OSError as error:
            self._fail(f"the inbox cannot be written: {error.strerror}")

    @property
    def file(self) -> "Incoming":
        """Itself."""
        return self

    def write(self, content: bytes | memoryview) -> int:
        """Add bytes. After a fault they are not kept."""
        self.bytes += len(content)
        if self.fault is None and self.bytes > MOST_BYTES:
            self._fail(f"the file is too large: at most {MOST_BYTES >> 20} MiB are taken")
        elif self.fault is None and self.bytes - self._checked >= _CHECKED_EVERY:
            self._checked = self.bytes
            if not has_room():
                self._fail(FULL)
        if self.fault is None and self._stream is not None:
            try:
                self._stream.write(content)
                self._sum.update(content)
            except (OSError, ValueError) as error:
                self._fail(f"the inbox cannot be written: {getattr(error, 'strerror', None) or 'closed'}")
        return len(content)

    def flush(self) -> None:
        """Nothing: a file that is complete is written by `complete`."""

    def close(self) -> None:
        """Remove it, unless it was kept."""
        if self._stream is not None:
            self._dropped()

    def complete(self) -> Path:
        """Its path, with all bytes on the disk. Raises NotTaken."""
        if self.fault is None and self._stream is not None and not self._stream.closed:
            try:
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
            except OSError as error:
                self._fail(f"the inbox cannot be written: {error.strerror}")
        if self.fault:
            raise self.fault
        return Path(self.name)

    def keep(self, file_id: str) -> None:
        """Move it to its place in the inbox, for good. Raises OSError."""
        place = received.inbox(file_id)
        Path(self.name).replace(_folder(place.parent) / place.name)
        self._dropped.detach()
        descriptor = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._sum.hexdigest()

    def _fail(self, words: str) -> None:
        self.fault = NotTaken(RESOURCES, words)
        self.close()


def _drop(stream: BinaryIO, name: str) -> None:
    with suppress(OSError):
        stream.close()
    with suppress(OSError):
        Path(name).unlink()


def _folder(path: Path) -> Path:
    """The folder, made for its owner only if it is not there. Raises OSError."""
    for folder in (config.inbox_dir(), path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


# --- taking a file


def take(
    store: Store,
    user_id: int,
    caller: str,
    file: Incoming,
    stated: tuple[str, str] = ("", ""),
    study_uid: str = "",
    key_id: str | None = None,
) -> Taken:
    """Put a file that has arrived into the inbox and the records. Raises NotTaken; then nothing of it is kept.

    caller: AE title of the sender; empty: it came over the web, with the API key key_id. stated, study_uid: SOP class
    and instance, and the study, that the sender said, with which the file has to agree.
    """
    try:
        return _taken(store, user_id, caller, file, stated, study_uid, key_id)
    except StoreError as error:
        raise NotTaken(RESOURCES, str(error), *stated) from error
    except OSError as error:
        raise NotTaken(RESOURCES, f"the inbox cannot be written: {error.strerror}", *stated) from error
    finally:
        file.close()


def _taken(
    store: Store,
    user_id: int,
    caller: str,
    file: Incoming,
    stated: tuple[str, str],
    study_uid: str,
    key_id: str | None,
) -> Taken:
    class_uid, arrival = looked_at(file)
    named = class_uid, arrival.instance_uid
    for what, said, is_said in zip(("SOPClassUID", "SOPInstanceUID"), stated, named, strict=True):
        if said and said != is_said:
            raise NotTaken(MISMATCH, f"the file has another {what} than was said", *stated)
    if study_uid and study_uid != arrival.study_uid:
        raise NotTaken(MISMATCH, "the file is of another study than was said", *named)
    if class_uid not in KINDS:
        raise NotTaken(CLASS, f"{uid.UID(class_uid).name[:64]} is not taken", *named)
    file.keep(arrival.id)
    done = False
    try:
        superfluous = received.arrive(store, user_id, caller, arrival, key_id)
        done = superfluous != arrival.id
    except ArrivalRefused as refused:
        raise NotTaken(CANNOT, str(refused), *named) from refused
    finally:
        if not done:
            remove([arrival.id])
    remove([superfluous] if done and superfluous else [])
    return Taken(*named, again=not done)


def looked_at(file: Incoming) -> tuple[str, Arrival]:
    """The SOP class of a file that has arrived, and what its header says. Raises NotTaken."""
    path = file.complete()
    try:
        with images.opened(path, "the file", MOST_BYTES) as (stream, kind, _):
            if kind != "DICOM":
                raise ImageRefused("the file", f"{kind}, not DICOM", "Send DICOM.")
            header, broken = walked_header(stream)
            if broken:
                raise broken
            stream.seek(0)
            texts = read_partial(stream, _is_last, specific_tags=_TEXTS)
            meta = str(texts.file_meta.get("MediaStorageSOPInstanceUID", ""))
            uids = [_uid(header, f"{what}InstanceUID") for what in ("Study", "Series", "SOP")]
            said = _facts(header, texts)
    except ImageRefused as refused:
        raise NotTaken(CANNOT, f"the file cannot be understood: {refused.rule}") from refused
    uids[2] = uids[2] or meta
    for what, one in zip(("Study", "Series", "SOP"), uids, strict=True):
        if not 1 <= len(one) <= 64 or not one.isprintable() or "\\" in one:
            raise NotTaken(CANNOT, f"the file has no usable {what}InstanceUID", str(header.kind)[:64], uids[2][:64])
    said |= zip(("study_uid", "series_uid", "instance_uid"), uids, strict=True)
    return str(header.kind), Arrival(id=new_id(), sha256=file.sha256, bytes=file.bytes, **said)


def _is_last(tag: BaseTag, _kind: str | None, length: int) -> bool:
    """Where pydicom stops reading: after the last text, and at one that is too long."""
    return tag > _LAST or (tag in _TEXTS and length > _LONGEST_TEXT)


def _uid(header: Header, keyword: str) -> str:
    return header.whole_text(keyword).strip("\0 ")


def _facts(header: Header, texts: Dataset) -> dict[str, Any]:
    """What an Arrival says besides its UIDs and its content."""
    number = _accepted_number(_text(texts, "PatientID"))
    return {
        "patient_number": number,
        "patient": {
            "name": _name(texts),
            "birth_year": _birth_year(_text(texts, "PatientBirthDate")),
            "sex": _SEXES.get(_text(texts, "PatientSex").upper(), "unknown"),
        },
        "modality": header.text("Modality")[:16],
        "body_part": header.text("BodyPartExamined")[:64],
        "descriptions": tuple(_text(texts, keyword)[:64] for keyword in ("StudyDescription", "SeriesDescription")),
        "set_aside": _set_aside(header, _text(texts, "Manufacturer")),
    }


def _set_aside(header: Header, manufacturer: str) -> str:
    if header.kind not in IMAGES or header.pixels is None:
        return "no image"
    if manufacturer == MAKER and header.kind == uid.SecondaryCaptureImageStorage:
        return "a result of lungkit"  # a PACS that sends it back would have results of results
    return "localizer" if is_scout(header) else ""


def _text(texts: Dataset, keyword: str) -> str:
    """A value as one line; empty if it is absent, or of a type or in letters that cannot be read."""
    try:
        return one_line(str(texts.get(keyword) or ""))
    except Exception:  # on bad bytes pydicom raises any error
        return ""


def _name(texts: Dataset) -> str:
    """The name as records have it, "Given Family"; empty if there is none. In the first script that has one."""
    try:
        groups = PersonName(str(texts.get("PatientName") or "")).components
    except Exception:  # as above
        return ""
    parts = next((group.split("^") for group in groups if group.strip("^ ")), [])
    family, given, middle, *_ = [*parts, "", "", ""]
    try:
        return NewPatient("any", one_line(" ".join((given, middle, family)))[:LONGEST_NAME]).name
    except RecordRefused:
        return ""


def _accepted_number(text: str) -> str:
    """The PatientID as records accept it; empty if they do not. It is never shortened: it would be another's."""
    try:
        return NewPatient(text, "any").number
    except RecordRefused:
        return ""


def _birth_year(text: str) -> int | None:
    known = re.match("[0-9]{4}", text) and text.replace(".", "") not in DUMMY_DATES
    year = int(text[:4]) if known else 0
    try:
        return NewPatient("any", "any", year).birth_year
    except RecordRefused:
        return None


# --- for a job


def paths(claimed: Claimed) -> list[Path]:
    """Where the files of a job lie; none of one that came over REST.

    Raises LungkitError if one is gone: another file of its study has replaced it, or there are none left.
    """
    found = [received.inbox(file_id) for file_id in claimed.files]
    if (not found and not claimed.content) or not all(path.is_file() for path in found):
        raise LungkitError("a file of the study is no longer in the inbox; send the study again")
    return found


def source_of(given: Iterable[Path | bytes]) -> SourceHeaders | None:
    """What objects that answer images need of their headers; None if they are not DICOM, or not of a study."""
    try:
        headers = [source_header(one) for one in given if isinstance(one, Path) or one[128:132] == b"DICM"]
        uids = [str(headers[0].get(f"{what}InstanceUID") or "") for what in ("Study", "Series")] if headers else [""]
        return SourceHeaders(uids[0][:64], uids[1][:64], packed(headers)) if uids[0] else None
    except Exception:  # the reader has accepted the files: the reading counts without objects, too
        _log.warning("the headers of images could not be kept: their reading has no DICOM objects", exc_info=True)
        return None


# --- tidying


def remove(file_ids: Sequence[str]) -> None:
    """Delete files of the inbox."""
    for file_id in file_ids:
        with suppress(OSError):
            received.inbox(file_id).unlink()


def tidy(store: Store) -> None:
    """Delete files whose study is kept no longer, and those that a sender left behind when it broke off."""
    remove(received.tidy(store))
    late = list(_late(config.inbox_dir() / "arriving"))
    for path in late:
        path.unlink(missing_ok=True)
    for folder in config.inbox_dir().glob("[0-9a-f][0-9a-f]"):
        names = {path.name: path for path in _late(folder)}
        for name in names.keys() - received.known(store, set(names)):
            names[name].unlink(missing_ok=True)


def _late(folder: Path) -> Iterator[Path]:
    """The files of a folder of the inbox that are old enough to be left over."""
    before = time.time() - LEFT_OVER
    try:
        with os.scandir(folder) as entries:
            yield from [
                Path(entry) for entry in entries if _ID.fullmatch(entry.name) and entry.stat().st_mtime < before
            ]
    except OSError:
        return
