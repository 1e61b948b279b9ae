"""The header of a DICOM file: only the needed elements are read into memory, and then checked.

A header may be as large as the file, and what is not needed is skipped. Values are decoded from their bytes here,
because files break the rules for values more often than any others. Each refusal names the attribute and its value.

`checked_header` is for a file that is read as one image, `walked_header` for a file that may belong to a series.
"""

import io
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from pydicom import uid
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag

from lungkit.data.image import Broken, check_size

JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_MODALITIES = ("CT", "CR", "DX", "DR", "RG", "OT", "SC")
_ENCAPSULATED = "1.2.840.10008.5.1.4.1.1.104."  # PDF, CDA, STL, OBJ, MTL
_XRAY_AND_CT = {
    uid.CTImageStorage: "CT",
    uid.ComputedRadiographyImageStorage: "CR",
    uid.DigitalXRayImageStorageForPresentation: "DX",
    uid.DigitalXRayImageStorageForProcessing: "DX",
    uid.SecondaryCaptureImageStorage: "OT",
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage: "OT",  # with a single frame only
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage: "OT",
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage: "OT",
}
# Not deflated: the whole file would be unpacked before its header can be checked.
TRANSFER_SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    *JPEG,
    *JPEG_LS,
    *JPEG_2000,
    uid.RLELossless,
)
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1} | dict.fromkeys(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"), 3
)
_BITS_ALLOCATED = {1: (8, 16), 3: (8,)}  # by samples of a pixel

# Image.tags: our names, and the DICOM keywords they come from. Nothing here can identify a person.
SHOWN = {
    "view": "ViewPosition",
    "body_part": "BodyPartExamined",
    "image_type": "ImageType",
    "photometric": "PhotometricInterpretation",
    "bits_stored": "BitsStored",
    "rows": "Rows",
    "columns": "Columns",
    "pixel_spacing": "PixelSpacing",
    "detector_spacing": "ImagerPixelSpacing",
    "slice_thickness": "SliceThickness",
    "manufacturer": "Manufacturer",
    "device": "ManufacturerModelName",
    "age": "PatientAge",
    "orientation": "PatientOrientation",
}
PALETTES = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
# Only these are read with an image: never a patient's name or number.
_SEQUENCES: dict[int, str] = {
    Tag(keyword): keyword for keyword in ("ModalityLUTSequence", "VOILUTSequence", "ViewCodeSequence")
}
_TABLES: dict[int, str] = {
    Tag(keyword): keyword
    for keyword in [*(f"{start}{palette}Data" for palette in PALETTES for start in ("", "Segmented")), "LUTData"]
}
_VALUES: dict[int, str] = {
    Tag(keyword): keyword
    for keyword in [
        *SHOWN.values(),
        *(f"{palette}Descriptor" for palette in PALETTES),
        "SOPClassUID",
        "Modality",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PlanarConfiguration",
        "BitsAllocated",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "NominalScannedPixelSpacing",
        "PixelAspectRatio",
        "PresentationIntentType",
        "PixelIntensityRelationship",
        "PixelIntensityRelationshipSign",
        "PresentationLUTShape",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "VOILUTFunction",
        "WindowCenter",
        "WindowWidth",
        "SliceLocation",
        "ImageOrientationPatient",
        # Of these only an age and a year are kept.
        "PatientBirthDate",
        "StudyDate",
    ]
}
# Whose image it is; only `person_header` reads it, and nothing of it is kept with an image.
_PERSON: dict[int, str] = {
    Tag(keyword): keyword
    for keyword in [
        "SpecificCharacterSet",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "PatientIdentityRemoved",
    ]
}
_IN_ITEMS: dict[int, str] = {
    Tag(keyword): keyword for keyword in ("LUTDescriptor", "LUTData", "CodeValue", "CodeMeaning")
}
_META: dict[int, str] = {Tag(keyword): keyword for keyword in ("TransferSyntaxUID", "MediaStorageSOPClassUID")}

# What places an image in a series; only `walked_header` reads it. Descriptions are left out: they may name a patient.
_PLACES: dict[int, str] = {
    Tag(keyword): keyword
    for keyword in [
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "FrameOfReferenceUID",
        "AcquisitionNumber",
        "ImagePositionPatient",
        "PatientPosition",
        "GantryDetectorTilt",
        "ConvolutionKernel",
    ]
}
_OFFSETS: dict[int, str] = {Tag("ExtendedOffsetTable"): "ExtendedOffsetTable"}
# An enhanced CT says for all frames, and then for each frame, what a single image says in its header (PS3.3, C.7.6.16).
_GROUPS: dict[int, str] = {
    Tag("SharedFunctionalGroupsSequence"): "shared",
    Tag("PerFrameFunctionalGroupsSequence"): "frames",
}
_MACROS: set[int] = {
    Tag(keyword)
    for keyword in [
        "CTImageFrameTypeSequence",
        "FrameContentSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "PlaneOrientationSequence",
        "PlanePositionSequence",
    ]
}
_IN_MACROS: dict[int, str] = {  # to the keyword of a single image
    **{
        Tag(keyword): keyword
        for keyword in [
            "ImageOrientationPatient",
            "ImagePositionPatient",
            "PixelSpacing",
            "RescaleIntercept",
            "RescaleSlope",
            "RescaleType",
            "SliceThickness",
        ]
    },
    Tag("FrameAcquisitionNumber"): "AcquisitionNumber",
    Tag("FrameType"): "ImageType",
}

# Bounds on what a hostile file can cost.
_ELEMENTS = 200_000  # in all; a scanner writes a few hundred, some write thousands in sequences
_ELEMENTS_OF_FRAMES = 1_000_000  # of an enhanced CT, which has about 60 for each frame
MAX_FRAMES = 5_000
_VALUE_BYTES = 1024  # of a value other than a table
_KEPT_BYTES = 4 * 2**20  # of all that is kept; a full table of 16 bits has 128 KiB

PIXEL_DATA = Tag("PixelData")
_OTHER_PIXELS: dict[int, str] = {Tag(keyword): keyword for keyword in ("FloatPixelData", "DoubleFloatPixelData")}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_OPEN = 0xFFFFFFFF  # the length of an element that a closing mark ends
_LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}  # their length has 4 bytes
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
_EXPORT = "Export the image again."
_CUT = "truncated: the file ends within the header", "Copy or download it again."


class Raw(NamedTuple):
    """A value as the file has it."""

    kind: str  # the value representation, "" if the file does not state it
    content: bytes


class Element(NamedTuple):
    """Where an attribute is in the file."""

    tag: int
    kind: str
    length: int
    at: int  # where it is in the file
    start: int  # of its value


class Header:
    """What the reader needs of a header. The fields below are set by the checks; `values` takes any keyword."""

    kind: uid.UID  # of object
    modality: str
    rows: int
    columns: int
    samples: int  # of a pixel
    photometric: str
    planar: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool = False

    def __init__(self, syntax: uid.UID):
        self.syntax = syntax
        self.order = "<" if syntax.is_little_endian else ">"
        self.raw: dict[str, Raw] = {}
        self.items: dict[str, list[dict[str, Raw]]] = {}  # of the sequences of lookup tables and codes
        self.pixels: Element | None = None  # PixelData, or what is in its place; set by `walked_header`
        self.shared: dict[str, Raw] = {}  # what an enhanced CT says of all frames, and of each
        self.frames: list[dict[str, Raw]] = []

    def values(self, keyword: str) -> list[Any]:
        """An attribute's values, numbers or stripped text; an empty list if it is absent or empty."""
        kind, content = self.raw.get(keyword, Raw("", b""))
        if kind in ("", "UN"):
            kind = dictionary_VR(Tag(keyword))
        if kind.startswith("US or SS"):
            kind = "SS" if self.signed else "US"
        if kind in _BINARY:
            layout = struct.Struct(self.order + _BINARY[kind])
            return [value for (value,) in layout.iter_unpack(content[: len(content) // layout.size * layout.size])]
        parts = [part.strip("\0 \t\r\n") for part in content.decode("latin-1").split("\\")]
        return parts if any(parts) else []

    def text(self, keyword: str) -> str:
        """The value as one short printable line, "" if there is none; several are joined by a backslash."""
        return _printable("\\".join(map(str, self.values(keyword))))

    def whole_text(self, keyword: str) -> str:
        """The value as it is, of any length and with any letters, for comparing and never for a message."""
        return "\\".join(map(str, self.values(keyword)))

    def word(self, keyword: str) -> str:
        """The first value in capitals, as the standard writes its defined terms."""
        return self.text(keyword).split("\\")[0].strip().upper()

    def numbers(self, keyword: str) -> list[float]:
        """The values as finite numbers, NaN for anything else. A decimal comma counts as a point."""
        return [_number(value) for value in self.values(keyword)]

    def number(self, keyword: str) -> float | None:
        """The single number of an attribute; None if it is absent, NaN if it is anything else."""
        numbers = self.numbers(keyword)
        return None if not numbers else numbers[0] if len(numbers) == 1 else math.nan

    def whole(self, keyword: str, default: int | None = None) -> int:
        """The single whole number of an attribute, `default` if it is absent. Raises Broken."""
        value = self.number(keyword)
        if value is None and default is not None:
            return default
        if value is None:
            raise Broken(f"damaged: the header has no {keyword}", _EXPORT)
        if not value.is_integer():
            raise Broken(f"damaged: {self.named(keyword)}, where one whole number belongs", _EXPORT)
        return int(value)

    def named(self, *keywords: str) -> str:
        """The attributes and their values, for a message."""
        return ", ".join(f"{keyword} {self.text(keyword) or 'missing'}" for keyword in keywords)

    @property
    def is_ct(self) -> bool:
        return self.kind == uid.CTImageStorage

    @property
    def lowest(self) -> int:
        """The smallest value that can be stored."""
        return -(2 ** (self.bits_stored - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """The largest value that can be stored."""
        return self.lowest + (1 << self.bits_stored) - 1


def _printable(words: str) -> str:
    """The part of a value that may be shown: one line, not too long."""
    return "".join(letter for letter in words if letter.isprintable())[:64]


def _number(value: str | float) -> float:
    if isinstance(value, str):
        value = float(value.replace(",", ".")) if _NUMBER.fullmatch(value) else math.nan
    return float(value) if math.isfinite(value) else math.nan


# --- the walk ----------------------------------------------------------------------------------------------------


class _Walk:
    """Walks over the elements of a file; only requested values are read."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._seen = self._kept = 0
        self.most = _ELEMENTS
        self.size = stream.seek(0, io.SEEK_END)
        self.order("<", explicit=True)

    def order(self, order: str, explicit: bool) -> None:
        """Set how the following elements are written."""
        self._explicit = explicit
        self._tag, self._long, self._short = (struct.Struct(order + form) for form in ("2H", "I", "H"))

    def says_kinds(self, position: int) -> bool:
        """Whether the element there states its kind, whatever the transfer syntax says."""
        self._stream.seek(position + 4)
        return _is_kind(self._stream.read(2))

    def elements(self, position: int, end: int | None = None) -> Iterator[Element]:
        """The elements from `position` to `end` or the file's end; the caller may stop at any of them."""
        while position < (self.size if end is None else end):
            element = self._element(position)
            if element is None:
                raise Broken(*_CUT)
            yield element
            position = self._after(element)
        if position > self.size:
            raise Broken(*_CUT)

    def items(self, sequence: Element) -> Iterator[Iterator[Element]]:
        """The elements of each item of a sequence."""
        end = None if sequence.length == _OPEN else sequence.start + sequence.length
        for item in self.elements(sequence.start, end):
            if item.tag == _ITEM_END:
                continue
            if item.tag != _ITEM:
                return
            yield self.elements(item.start, None if item.length == _OPEN else item.start + item.length)

    def value(self, element: Element, most: int) -> Raw:
        """Its value. Raises Broken if it is too long or has no length."""
        self._kept += element.length
        if element.length > most or self._kept > _KEPT_BYTES:
            raise Broken(f"damaged: header value {Tag(element.tag)} is too long or of a wrong type", _EXPORT)
        self._stream.seek(element.start)
        return Raw(element.kind, self._stream.read(element.length))

    def _element(self, position: int) -> Element | None:
        self._stream.seek(position)
        head = self._stream.read(12)
        if len(head) < 8:
            return None
        self._seen += 1
        if self._seen > self.most:
            raise Broken(f"header too long: more than {self.most} elements", "Export it without private elements.")
        group, number = self._tag.unpack_from(head)
        tag = group << 16 | number
        # Items have no kind, and some writers leave it out in the middle of a file that states kinds.
        if not self._explicit or group == 0xFFFE or not _is_kind(head[4:6]):
            return Element(tag, "", self._long.unpack_from(head, 4)[0], position, position + 8)
        kind = head[4:6].decode()
        if kind not in _LONG:
            return Element(tag, kind, self._short.unpack_from(head, 6)[0], position, position + 8)
        if len(head) < 12:
            return None
        return Element(tag, kind, self._long.unpack_from(head, 8)[0], position, position + 12)

    def _after(self, element: Element) -> int:
        """Where the next element starts. One without a length may contain others like it, to any depth."""
        if element.length != _OPEN:
            return element.start + element.length
        position, items = element.start, [element.tag == _ITEM]  # whether each of the open ones is an item
        while items:
            inner = self._element(position)
            if inner is None:
                raise Broken(*_CUT)
            position = inner.start
            if inner.length == _OPEN:
                items.append(inner.tag == _ITEM)
            elif inner.tag == _SEQUENCE_END:  # it also ends the last item: some writers leave out that mark
                while items and items.pop():
                    pass
            elif inner.tag == _ITEM_END:  # others write it although the item has a length
                del items[len(items) - items[-1] :]
            else:
                position += inner.length
        return position


def _is_kind(letters: bytes) -> bool:
    return letters.isalpha() and letters.isupper()


# --- reading and checking ----------------------------------------------------------------------------------------


def checked_header(stream: BinaryIO) -> Header:
    """What the reader needs of a header, checked; leaves the stream at PixelData. Raises Broken."""
    walk = _Walk(stream)
    header, kind, start = _begun(walk)
    pixels = _read(header, walk, start)
    header.kind = uid.UID(header.text("SOPClassUID") or kind)
    _check_kind(header)
    at = _checked_pixels(pixels)
    _check_image(header)
    stream.seek(at)
    return header


def walked_header(stream: BinaryIO) -> tuple[Header, Broken | None]:
    """A header with what places an image in a series, and the functional groups of an enhanced CT; nothing is checked.

    With it: why the rest of the header could not be read, or None. Raises Broken if not even the kind of file is known.
    """
    walk = _Walk(stream)
    header, kind, start = _begun(walk)
    header.kind = uid.UID(kind)
    if kind == uid.EnhancedCTImageStorage:
        walk.most = _ELEMENTS_OF_FRAMES
    try:
        header.pixels = _read(header, walk, start, in_series=True)
    except Broken as broken:
        return header, broken
    finally:
        header.kind = uid.UID(header.text("SOPClassUID") or kind)
    return header, None


def person_header(stream: BinaryIO) -> Header:
    """A header with what it says of the patient, and nothing else. Raises Broken where not even that can be read."""
    walk = _Walk(stream)
    header, _, start = _begun(walk)
    for element in walk.elements(start):
        if element.tag > max(_PERSON):
            break
        if element.tag in _PERSON:
            header.raw[_PERSON[element.tag]] = walk.value(element, _VALUE_BYTES)
    return header


def frame_header(header: Header, number: int) -> Header:
    """The header of a frame (from 0) of an enhanced CT, as if it were a CT image of its own; nothing is checked."""
    own = Header(header.syntax)
    own.kind, own.pixels = uid.CTImageStorage, header.pixels
    own.raw = header.raw | header.shared | header.frames[number]
    own.raw.pop("NumberOfFrames", None)
    return own


def check_slice(header: Header) -> None:
    """What `checked_header` checks, for a header from `walked_header` or `frame_header`. Raises Broken."""
    _check_kind(header)
    _checked_pixels(header.pixels)
    _check_image(header)


def is_scout(header: Header) -> bool:
    """Whether a CT is a scout view (localizer), wherever and in whatever case ImageType says so."""
    words = re.split(r"[^A-Z]+", header.text("ImageType").upper())
    return not {"LOCALIZER", "LOCALISER", "SCOUT"}.isdisjoint(words)


def _begun(walk: _Walk) -> tuple[Header, str, int]:
    """An empty header, the kind of object that the file's start states, and where the header proper starts."""
    syntax, kind, start = _checked_meta(walk)
    header = Header(syntax)
    header.raw["TransferSyntaxUID"] = Raw("UI", syntax.encode())
    walk.order(header.order, walk.says_kinds(start))
    return header, kind, start


def _check_image(header: Header) -> None:
    _check_object(header)
    header.modality = header.word("Modality") or _XRAY_AND_CT[header.kind]
    _check_frame(header)
    _check_format(header)
    if header.is_ct:
        _check_hounsfield(header)
    rescale(header)
    more_is_brighter(header)


def _checked_meta(walk: _Walk) -> tuple[uid.UID, str, int]:
    """The transfer syntax, the kind of object, and where the header proper starts."""
    meta, end = Header(uid.ExplicitVRLittleEndian), walk.size
    for element in walk.elements(132):
        if element.tag >> 16 != 2:
            end = element.at
            break
        if element.tag in _META:
            meta.raw[_META[element.tag]] = walk.value(element, _VALUE_BYTES)
    syntax = uid.UID(meta.text("TransferSyntaxUID"))
    if syntax not in TRANSFER_SYNTAXES:
        raise Broken(
            f"transfer syntax not accepted: {_printable(syntax.name) or 'no TransferSyntaxUID given'}",
            "Export it uncompressed, or as JPEG, JPEG-LS, JPEG 2000 or RLE.",
        )
    return syntax, meta.text("MediaStorageSOPClassUID"), end


def _read(header: Header, walk: _Walk, start: int, in_series: bool = False) -> Element | None:
    """Fill the header from the file. Returns the element with the pixels, or the first one after their place.

    in_series: also with what places it in a series.
    """
    values, tables = (_VALUES | _PLACES, _TABLES | _OFFSETS) if in_series else (_VALUES, _TABLES)
    for element in walk.elements(start):
        if element.tag in (_ITEM_END, _SEQUENCE_END):  # a mark too many
            continue
        if element.tag >= min(_OTHER_PIXELS):
            return element
        if element.tag in _SEQUENCES:
            items = [_item(walk, inner) for inner in walk.items(element)]
            header.items[_SEQUENCES[element.tag]] = items or [{}] * bool(element.length)
        elif element.tag in tables:
            header.raw[tables[element.tag]] = walk.value(element, _KEPT_BYTES)
        elif element.tag in values:
            header.raw[values[element.tag]] = walk.value(element, _VALUE_BYTES)
        elif in_series and element.tag in _GROUPS:
            _read_groups(header, walk, element)
    return None


def _read_groups(header: Header, walk: _Walk, sequence: Element) -> None:
    """The functional groups of all frames, or of each."""
    for number, elements in enumerate(walk.items(sequence)):
        if number >= MAX_FRAMES:
            raise Broken(f"too many frames: more than {MAX_FRAMES}", "Export fewer frames in a file.")
        kept = _group(walk, elements)
        if _GROUPS[sequence.tag] == "frames":
            header.frames.append(kept)
        else:
            header.shared |= kept


def _group(walk: _Walk, elements: Iterator[Element]) -> dict[str, Raw]:
    """What one item of functional groups says, by the keyword that a single image has for it."""
    kept = {}
    for element in elements:
        if element.tag in (_ITEM_END, _SEQUENCE_END):
            break
        if element.tag not in _MACROS:
            continue
        for inner in next(walk.items(element), iter(())):  # a macro has one item
            if inner.tag in (_ITEM_END, _SEQUENCE_END):
                break
            if inner.tag in _IN_MACROS:
                kept[_IN_MACROS[inner.tag]] = walk.value(inner, _VALUE_BYTES)
    return kept


def _item(walk: _Walk, elements: Iterator[Element]) -> dict[str, Raw]:
    kept = {}
    for element in elements:
        if element.tag in (_ITEM_END, _SEQUENCE_END):
            break
        if element.tag in _IN_ITEMS:
            kept[_IN_ITEMS[element.tag]] = walk.value(element, _KEPT_BYTES)
    return kept


def _check_kind(header: Header) -> None:
    modality = header.word("Modality")
    if header.kind.startswith(_ENCAPSULATED):
        raise Broken(f"encapsulated document: {header.kind.name}", "Export the image that it describes instead.")
    if modality and modality not in _MODALITIES:
        raise Broken(f"unsupported modality: {modality}", "Chest CT and X-ray (CT, CR, DX) are read.")


def _checked_pixels(element: Element | None) -> int:
    """The place of PixelData."""
    if element and element.tag == PIXEL_DATA:
        return element.at
    if element and element.tag in _OTHER_PIXELS:
        raise Broken(f"pixel format not accepted: {_OTHER_PIXELS[element.tag]}", "Whole numbers are read.")
    raise Broken("no pixel data", "The file was cut, or holds a report or measurements; send the image itself.")


def _check_object(header: Header) -> None:
    if header.kind not in _XRAY_AND_CT:
        raise Broken(
            f"unsupported DICOM object: {_printable(header.kind.name) or 'no SOPClassUID given'}",
            "CT, CR, DX and secondary capture images of one frame are read.",
        )


def _check_frame(header: Header) -> None:
    frames = header.whole("NumberOfFrames", 1)
    if frames < 0:
        raise Broken(f"damaged: {header.named('NumberOfFrames')}", _EXPORT)
    if frames > 1:
        raise Broken(f"multi-frame: {frames} frames (NumberOfFrames)", "Export the frame to be read as one image.")
    header.rows, header.columns = header.whole("Rows"), header.whole("Columns")
    header.bits_allocated, header.bits_stored = header.whole("BitsAllocated"), header.whole("BitsStored")
    header.high_bit = header.whole("HighBit", header.bits_stored - 1)
    header.signed = header.whole("PixelRepresentation") == 1
    check_size(header.columns, header.rows)


def _check_format(header: Header) -> None:
    header.photometric = header.word("PhotometricInterpretation")
    samples = _SAMPLES.get(header.photometric, 0)
    header.samples = header.whole("SamplesPerPixel", samples)
    header.planar = header.whole("PlanarConfiguration", 0)
    if header.photometric in ("YBR_RCT", "YBR_ICT") and header.syntax not in JPEG_2000:
        raise _format_refused(header, "TransferSyntaxUID", "PhotometricInterpretation")
    if header.samples != samples or header.bits_allocated not in _BITS_ALLOCATED.get(samples, ()):
        raise _format_refused(header, "PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated")
    if header.bits_stored == header.bits_allocated:  # they fill the word, whatever HighBit says
        header.high_bit = header.bits_allocated - 1
    bits, high = header.bits_stored, header.high_bit
    if not (1 <= bits <= high + 1 <= header.bits_allocated) or (samples == 3 and bits != 8):
        raise _format_refused(header, "BitsAllocated", "BitsStored", "HighBit")
    if header.whole("PixelRepresentation") not in (0, 1) or (samples == 3 and header.planar not in (0, 1)):
        raise _format_refused(header, "PixelRepresentation", "PlanarConfiguration")


def _format_refused(header: Header, *keywords: str) -> Broken:
    return Broken(
        f"pixel format not accepted: {header.named(*keywords)}", "Grey of 8 or 16 bits and colour of 8 bits are read."
    )


def _check_hounsfield(header: Header) -> None:
    """Refuse CT images whose values are not Hounsfield units, such as scout views and derived maps."""
    if is_scout(header):
        raise Broken(
            f"scout view, not a CT slice: {header.named('ImageType')}", "Choose the axial slices of the series."
        )
    wrong = None
    if header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        wrong = "PhotometricInterpretation"
    elif header.word("RescaleType") not in ("", "HU", "HU_MOD"):
        wrong = "RescaleType"
    if wrong:
        raise Broken(f"CT not in Hounsfield units: {header.named(wrong)}", "Export the original slice of the scanner.")


def rescale(header: Header) -> tuple[float, float]:
    """(slope, intercept), by default 1 and 0 for an X-ray; a CT must give both. Raises Broken."""
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    rule, remedy = "CT not in Hounsfield units", "Export the original slice of the scanner."
    if not header.is_ct:
        slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
        rule, remedy = "rescale not usable", _EXPORT
    if not slope or intercept is None or not math.isfinite(slope) or not math.isfinite(intercept):
        raise Broken(f"{rule}: {header.named('RescaleSlope', 'RescaleIntercept')}", remedy)
    return slope, intercept


def more_is_brighter(header: Header) -> bool | None:
    """Whether more X-rays give a larger stored value; None if the file says how to display it instead.

    PS3.3, C.8.11.3.1.2: PixelIntensityRelationshipSign is 1 for yes, -1 for no. It counts in images for processing,
    and in CR images that state LIN or LOG and no intent. Raises Broken if an image for processing has no sign.
    """
    intent, sign = header.word("PresentationIntentType"), header.number("PixelIntensityRelationshipSign")
    for_processing = header.kind == uid.DigitalXRayImageStorageForProcessing or intent == "FOR PROCESSING"
    measured = header.kind == uid.ComputedRadiographyImageStorage and not intent and sign in (1, -1)
    if measured and header.word("PixelIntensityRelationship") in ("LIN", "LOG"):
        return sign == 1
    if not for_processing or header.is_ct:
        return None
    if sign not in (1, -1):
        known = header.named("PixelIntensityRelationshipSign")
        rule = f"for processing, and it does not say whether bone is bright: {known}"
        raise Broken(rule, "Export the image for presentation.")
    return sign == 1
