"""DICOM: from the checked header and the stored values to a picture, by the rules in lungkit.data.images."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import BinaryIO, Literal

import numpy as np
import PIL.Image
from pydicom.filereader import read_dataset

from lungkit.data import lookup
from lungkit.data.decoders import stored_values
from lungkit.data.dicom_header import PIXEL_DATA, SHOWN, Header, Raw, checked_header, more_is_brighter, rescale
from lungkit.data.image import (
    DUMMY_DATES,
    OLDEST_SHOWN,
    Broken,
    Image,
    between,
    can_be_spacings,
    luminance,
    square,
    square_shape,
    squared_note,
    stretched,
    years_in,
)

AIR = -1024.0  # HU

_OLDEST = 130  # years
_SAME_AGE = 1.5  # years that PatientAge, which is whole, and the birth date may differ by
# Of DICOM's CID 4010, in SNOMED CT and as it was coded before.
_VIEW_CODES = {
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399173006", "R-10236"), "LL"),
    **dict.fromkeys(("399198007", "R-10232"), "RL"),
    **dict.fromkeys(("399067008", "R-102CD"), "LATERAL"),
}

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
# The distance between pixels, down and across, is in one of these; the first possible one counts.
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")


def probe(stream: BinaryIO) -> tuple[int, int, str]:
    """(width, height, modality) that `read` gives, from the header alone."""
    header = _checked(stream)
    height, width = size_of(header)
    return width, height, header.modality


def size_of(header: Header) -> tuple[int, int]:
    """(height, width) of the image under a checked header."""
    return square_shape((header.rows, header.columns), *_spacing(header))


def read(stream: BinaryIO, file: str) -> Image:
    """The image in a DICOM stream; `file` is its name."""
    header = _checked(stream)
    return image_of(stored_values(header, _pixel_data(header, stream)), header, file)


def image_of(stored: np.ndarray, header: Header, file: str) -> Image:
    """The image of stored values (rows, columns) or (rows, columns, 3) under a checked header; `file` is its name."""
    notes = list[str]()
    units: Literal["HU", "intensity"]
    if header.is_ct:
        pixels, units = _hounsfield(stored, header, notes), "HU"
    else:
        pixels, units = _intensity(stored, header, notes), "intensity"
    pixels = _squared(pixels, header, notes)
    tags = {ours: header.text(theirs) for ours, theirs in SHOWN.items() if header.text(theirs)}
    tags |= _view_by_code(header, tags) | _axes(header)
    _set_age(tags, header, notes)
    if notes:
        tags["note"] = "; ".join(notes)
    return Image(pixels, units, header.modality, file, tags)


def _view_by_code(header: Header, tags: Mapping[str, str]) -> dict[str, str]:
    """The view that ViewCodeSequence states, where ViewPosition states none."""
    items = header.items.get("ViewCodeSequence")
    if "view" in tags or not items or not items[0]:
        return {}
    code = Header(header.syntax)
    code.raw = items[0]
    view = _VIEW_CODES.get(code.word("CodeValue"), code.text("CodeMeaning").upper())
    return {"view": view} if view else {}


def _axes(header: Header) -> dict[str, str]:
    r"""Where rows and columns of a CT run, as PatientOrientation says it: "L\P" where it lies as usual."""
    cosines = header.numbers("ImageOrientationPatient")
    if not header.is_ct or len(cosines) != 6 or not np.isfinite(cosines).all():
        return {}
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    return {"orientation": f"{_direction(row)}\\{_direction(column)}"}


def _direction(axis: np.ndarray) -> str:
    """The letter of the side that an axis points to most: x to the patient's left, y to the back, z to the head."""
    most = int(np.abs(axis).argmax())
    return ("LPH" if axis[most] >= 0 else "RAF")[most]


def _set_age(tags: dict[str, str], header: Header, notes: list[str]) -> None:
    """Set "age", the patient's at the study, and "study_year". The birth date tells the age where PatientAge does not.

    An age that cannot be is not kept, and of two that contradict each other neither.
    """
    born, taken = _date(header.text("PatientBirthDate")), _date(header.text("StudyDate"))
    if taken:
        tags["study_year"] = str(taken.year)
    text = tags.get("age", "")
    if years_in(text) is not None:
        del tags["age"]
    stated = _possible_age(years_in(text) or None)  # 000Y stands for "not known"
    by_date = _possible_age((taken - born).days / 365.25 if born and taken else None)
    years = by_date if stated is None else stated
    if years is None:
        return
    if stated is not None and by_date is not None and abs(stated - by_date) > _SAME_AGE:
        notes.append("PatientAge contradicts the birth date: the age is taken as not known")
    elif stated is not None and stated < OLDEST_SHOWN:
        tags["age"] = text  # as the file has it
    else:
        tags["age"] = f"{int(years):03}Y" if years >= 1 else f"{int(years * 12):03}M"


def _possible_age(years: float | None) -> float | None:
    """The age as it may be shown; None for none, and for what stands for "not known", such as 999Y."""
    return None if years is None or not 0 <= years <= _OLDEST else min(years, OLDEST_SHOWN)


def _date(text: str) -> date | None:
    """A DICOM date; None where it is none, or stands for "not known"."""
    digits = text.replace(".", "")
    try:
        return None if digits in DUMMY_DATES else datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None


def _checked(stream: BinaryIO) -> Header:
    """The header, its tables checked as well; the stream then stands at the pixels."""
    header = checked_header(stream)
    if header.photometric == "PALETTE COLOR":
        lookup.palette(header)
    elif not header.is_ct:
        _modality_values(np.array([header.lowest]), header)
    return header


# --- the pixels' bytes -------------------------------------------------------------------------------------------


def _pixel_data(header: Header, stream: BinaryIO) -> Raw:
    """PixelData, from a stream that stands there. Raises Broken."""
    elements = read_dataset(
        stream, header.syntax.is_implicit_VR, header.order == "<", stop_when=lambda tag, *_: tag != PIXEL_DATA
    )
    if PIXEL_DATA not in elements:  # pydicom leaves it out if its closing mark is missing
        raise Broken("truncated: the file ends within the pixels", "Copy or download it again.")
    element = elements.get_item(PIXEL_DATA)
    if not element.value:
        raise Broken("no pixel data: PixelData is empty", "Export the image again.")
    return Raw(str(element.VR), element.value)


def _padding(stored: np.ndarray, header: Header) -> np.ndarray:
    """bool (rows, columns): where the detector saw nothing. Raises Broken if that is everywhere."""
    ends = header.numbers("PixelPaddingValue")[:1]
    if not ends or not np.isfinite(ends).all():
        return np.zeros(stored.shape, bool)
    limit = header.numbers("PixelPaddingRangeLimit")[:1]
    ends += limit if np.isfinite(limit).all() else []
    low, high = min(ends), max(ends)
    if high < header.lowest or low > header.highest:  # written with the other sign than the pixels
        ends = [end - 2**16 if header.signed and end >= 2**15 else end + 2**16 * (end < 0) for end in ends]
        low, high = min(ends), max(ends)
    padding = (stored >= low) & (stored <= high)
    if padding.all():
        named = header.named("PixelPaddingValue", *(["PixelPaddingRangeLimit"] if limit else []))
        raise Broken(f"no picture: every pixel is padding ({named})", "Export the image again.")
    return padding


# --- what they mean ----------------------------------------------------------------------------------------------


def _hounsfield(stored: np.ndarray, header: Header, notes: list[str]) -> np.ndarray:
    slope, intercept = rescale(header)
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    hu[_padding(stored, header)] = AIR
    if header.word("RescaleType") == "HU_MOD":
        notes.append("RescaleType HU_MOD taken as Hounsfield units")
    return np.asarray(np.maximum(hu, np.float32(AIR)))


def _intensity(stored: np.ndarray, header: Header, notes: list[str]) -> np.ndarray:
    """float32 0..1 (rows, columns), bright is dense."""
    if header.photometric == "PALETTE COLOR":
        return _coloured(stored, lookup.palette(header))
    if stored.ndim == 3:
        return np.asarray(luminance(PIL.Image.fromarray(stored))) / np.float32(255)
    return _presented(stored, header, notes)


def _coloured(stored: np.ndarray, palette: list[lookup.LookupTable]) -> np.ndarray:
    """The luminance of palette colours, at the depth of the palette."""
    red, green, blue = (table(stored).astype(np.int64) for table in palette)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16  # ITU-R 601-2, as Pillow rounds it
    return (grey / palette[0].white).astype(np.float32)


def _presented(stored: np.ndarray, header: Header, notes: list[str]) -> np.ndarray:
    """float32 0..1, bright is dense; the order of steps is PS3.3, C.11."""
    ends = np.array([header.lowest, header.highest])
    values, reach = (_modality_values(part, header) for part in (stored, ends))
    padding = _padding(stored, header)
    table = _voi_table(header, reach, notes)
    window = None if table else _window(header, notes)
    if table:
        pixels = between(table(values), 0, table.white)
    elif window:
        pixels = apply_window(values, *window)
    elif header.bits_stored <= 8:
        every = _modality_values(np.arange(header.lowest, header.highest + 1), header)
        pixels = between(values, float(every.min()), float(every.max()))
    else:
        pixels = stretched(values, ~padding)
    rises = reach[0] <= reach[1] and (not table or table.entries[0] <= table.entries[-1])
    if _is_negative(header, rises, notes):
        pixels = 1 - pixels
    pixels[padding] = 0
    return pixels


def _is_negative(header: Header, rises: bool, notes: list[str]) -> bool:
    """Whether dense parts are dark so far. rises: whether larger stored values became brighter."""
    more = more_is_brighter(header)
    if more is None:
        return header.photometric == "MONOCHROME1" or header.word("PresentationLUTShape") == "INVERSE"
    relation = header.named("PixelIntensityRelationship", "PixelIntensityRelationshipSign")
    notes.append(f"not made for presentation: {relation}")
    return more == rises


def _modality_values(stored: np.ndarray, header: Header) -> np.ndarray:
    """The stored values after the modality LUT or the rescale, if there is one."""
    if items := header.items.get("ModalityLUTSequence"):
        try:
            return lookup.item_table(items[0], header.order, header.lowest, header.highest)(stored)
        except lookup.Unusable as unusable:
            raise Broken(f"ModalityLUTSequence not usable: {unusable}", "Export the image again.") from unusable
    slope, intercept = rescale(header)
    return stored if (slope, intercept) == (1, 0) else stored * slope + intercept


def _voi_table(header: Header, reach: np.ndarray, notes: list[str]) -> lookup.LookupTable | None:
    """The first usable table for display. reach: the values of the smallest and the largest stored number."""
    for item in header.items.get("VOILUTSequence", ()):
        try:
            return lookup.item_table(item, header.order, float(min(reach)), float(max(reach)))
        except lookup.Unusable as unusable:
            notes.append(f"VOILUTSequence not used: {unusable}")
    return None


def _window(header: Header, notes: list[str]) -> tuple[float, float, str] | None:
    """(centre, width, function) of the first usable window, PS3.3, C.11.2.1; None if there is none."""
    function = header.word("VOILUTFunction").replace(" ", "_") or "LINEAR"
    least = 1 if function == "LINEAR" else np.nextafter(0, 1)
    centres, widths = header.numbers("WindowCenter"), header.numbers("WindowWidth")
    usable = [pair for pair in zip(centres, widths, strict=False) if np.isfinite(pair).all() and pair[1] >= least]
    if usable:
        if function not in _FUNCTIONS:
            notes.append(f"{header.named('VOILUTFunction')} taken as LINEAR")
        return *usable[0], function
    if centres or widths:
        notes.append(f"window not used: {header.named('WindowCenter', 'WindowWidth')}")
    return None


def apply_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """float32 0..1 by PS3.3, C.11.2.1.2 and C.11.2.1.3; any other function counts as LINEAR."""
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * (values - centre) / width))).astype(np.float32)
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    if not width:
        return (values > centre).astype(np.float32)
    return between(values, centre - width / 2, centre + width / 2)


# --- square pixels -----------------------------------------------------------------------------------------------


def _spacing(header: Header) -> tuple[float, float]:
    """Distances between pixels, down and across, in any unit; 1 and 1 if the file gives no usable ones."""
    return next((pair for keyword in _SPACINGS if (pair := _pair(header, keyword))), (1.0, 1.0))


def _pair(header: Header, keyword: str) -> tuple[float, float] | None:
    pair = header.numbers(keyword)
    return (pair[0], pair[1]) if len(pair) == 2 and can_be_spacings(*pair) else None


def _squared(pixels: np.ndarray, header: Header, notes: list[str]) -> np.ndarray:
    wrong = [key for key in _SPACINGS if any(header.numbers(key)) and not _pair(header, key)]  # 0 is not known
    notes += [f"{header.named(keyword)} not used" for keyword in wrong]
    result = square(pixels, *_spacing(header))
    notes += filter(None, [squared_note(pixels.shape, result.shape)])
    return result
