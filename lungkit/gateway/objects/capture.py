"""A reading as a picture that every viewer shows: Secondary Capture, with heat map and decision in its pixels."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from highdicom.sc import SCImage
from pydicom.dataset import Dataset

from lungkit import palette
from lungkit.clinic.report_pages import FONTS, printable, utc_text
from lungkit.data.overlay import colour_scale, overlay, resized
from lungkit.gateway.objects import provenance
from lungkit.gateway.objects.result import RESEARCH_ONLY, Result
from lungkit.gateway.objects.source import Source, SourceRefused, one_line, source_of
from lungkit.models.class_names import class_name
from lungkit.wording import percent

SIDES = (768, 1024)  # pixels of the longer side: smaller pictures are enlarged, larger ones reduced
_MARGIN, _LARGE, _SMALL = 16, 26, 18  # pixels
_INK, _QUIET, _WARN, _ANSWER = "#ffffff", "#b8c2cc", palette.ORANGE, palette.SKY
_OPPOSITE = str.maketrans("LRPAHF", "RLAPFH")
_NO_FINDING = " Says nothing about what else the image shows."


def secondary_capture(source: Source | Dataset | Sequence[Dataset], result: Result, pixels: np.ndarray) -> SCImage:
    """The picture of the first image that has a heat map, with that map, and the decision below it.

    pixels: (height, width), 0..1, bright is dense, as the model saw it: a CT through its window. A heat map is drawn
    as in the report of a case; without one the picture is left grey. Uncompressed RGB. No name of a patient is drawn.
    Raises SourceRefused for a source that no result can be filed next to, and for other values.
    """
    source = source_of(source)
    shown = _shown(source, result)
    orientation = _orientation(shown)
    picture = _picture(result, np.asarray(pixels), orientation)
    made = SCImage.from_ref_dataset(
        ref_dataset=shown,
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        specific_character_set="ISO_IR 192",
        **provenance.identity(source, result, "capture"),
    )
    made.PatientOrientation = orientation
    made.SourceImageSequence = [_reference(shown)]
    heat = ", with a heat map of what spoke for its answer" if result.heat else ""
    made.DerivationDescription = f"Picture as the model saw it{heat}"
    made.BurnedInAnnotation = "NO"  # nothing that identifies a patient
    made.LossyImageCompression = shown.get("LossyImageCompression", "00")
    provenance.sealed(made, source, result.read_at)
    return made


def _shown(source: Source, result: Result) -> Dataset:
    return source.of([*result.heat][:1] or result.instances[:1])[0]


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def _orientation(header: Dataset) -> list[str]:
    """Where rows and columns point, in letters: by the geometry of a CT, else as the image states, else unknown."""
    if "ImageOrientationPatient" not in header:
        return [str(letters) for letters in header.get("PatientOrientation") or []]
    numbers = [float(number) for number in header.ImageOrientationPatient]
    return [_letters(numbers[:3]), _letters(numbers[3:])]


def _letters(direction: Sequence[float]) -> str:
    """ "L", "PF": the axes that a direction follows by more than a tenth, the strongest first."""
    axes = sorted(zip(direction, ("LR", "PA", "HF"), strict=True), key=lambda axis: -abs(axis[0]))
    return "".join(ends[along < 0] for along, ends in axes if abs(along) > 0.1)


# --- the picture -------------------------------------------------------------------------------------------------


def _picture(result: Result, pixels: np.ndarray, orientation: list[str]) -> np.ndarray:
    """uint8 (height, width, 3): the picture, and below it what the model says."""
    if pixels.ndim != 2 or not pixels.size:
        raise SourceRefused(f"the picture of a result is (height, width); it is {pixels.shape}")
    if pixels.min() < 0 or pixels.max() > 1:
        raise SourceRefused(
            f"the picture of a result has greys from 0 to 1, not {pixels.min():g} to {pixels.max():g}: put a CT "
            "through its window first"
        )
    coloured = _coloured(result, pixels)
    width = max(coloured.width, SIDES[0])
    lines = _lines(result, width - 2 * _MARGIN)
    below = sum(_line_height(size) for _, size, _, _ in lines) + _line_height(_SMALL) * bool(result.heat)
    canvas = PIL.Image.new("RGB", (width, coloured.height + below + 2 * _MARGIN))
    left = (width - coloured.width) // 2
    canvas.paste(coloured, (left, 0))
    _mark_sides(canvas, orientation, (left, coloured.width, coloured.height))
    top = _write(canvas, lines, coloured.height + _MARGIN)
    if result.heat:
        _explain(canvas, f"no to most weight for “{class_name(result.label)}”", top)
    return np.asarray(canvas)


def _coloured(result: Result, pixels: np.ndarray) -> PIL.Image.Image:
    """The picture under its heat map, in its final size."""
    longest = max(pixels.shape)
    scale = min(max(longest, SIDES[0]), SIDES[1]) / longest
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    drawn = np.clip(np.nan_to_num(resized(pixels, (width, height))), 0, 1)
    if result.heat:
        drawn = overlay(drawn, np.nan_to_num(next(iter(result.heat.values()))))
    gray_or_colour = PIL.Image.fromarray(np.rint(drawn * 255).astype(np.uint8))
    return gray_or_colour.convert("RGB")


_Line = tuple[str, int, str, bool]  # text, size, colour, bold


def _lines(result: Result, width: int) -> list[_Line]:
    answer = _WARN if result.uncertain else _ANSWER
    why = result.reason or f"Probability {percent(result.probability)}"
    model = f"{result.version_name}, lungkit {result.lungkit}, read {utc_text(result.read_at)}"
    synthetic = " The model learned from computer-made images." if result.synthetic else ""
    said = [
        (result.headline, _LARGE, answer, True),
        (why, _SMALL, _INK, False),
        (". ".join(filter(None, (model, result.seen))), _SMALL, _QUIET, False),
        (f"{RESEARCH_ONLY}{synthetic}{_NO_FINDING}", _SMALL, _WARN, True),
    ]
    return [
        (part, size, colour, bold)
        for text, size, colour, bold in said
        for part in _wrapped(printable(one_line(text)), _font(size, bold), width)
    ]


def _wrapped(text: str, font: PIL.ImageFont.FreeTypeFont, width: int, most: int = 3) -> list[str]:
    """Text in lines that fit, at most so many; a word that is too long is cut."""
    lines = [""]
    for word in text[:1000].split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: PIL.ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line[:500]
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


@cache
def _font(size: int, bold: bool) -> PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.truetype(FONTS["B" if bold else ""], size)


def _line_height(size: int) -> int:
    return round(size * 1.4)


def _write(canvas: PIL.Image.Image, lines: list[_Line], top: int) -> int:
    """The lines from `top` on; where the next one would begin."""
    draw = PIL.ImageDraw.Draw(canvas)
    for text, size, colour, bold in lines:
        draw.text((_MARGIN, top), text, colour, _font(size, bold))
        top += _line_height(size)
    return top


def _explain(canvas: PIL.Image.Image, text: str, top: int) -> None:
    """The colours of the heat map, and what they mean."""
    colours = PIL.Image.fromarray(np.rint(colour_scale(_SMALL) * 255).astype(np.uint8))
    canvas.paste(colours, (_MARGIN, top + 4))
    left, font = _MARGIN + colours.width + _MARGIN, _font(_SMALL, False)
    line = _cut(printable(one_line(text)), font, canvas.width - left - _MARGIN)
    PIL.ImageDraw.Draw(canvas).text((left, top), line, _QUIET, font)


def _mark_sides(canvas: PIL.Image.Image, orientation: list[str], place: tuple[int, int, int]) -> None:
    """The patient's side at each end of the rows, where it is known. place: left, width and height of the picture."""
    if len(orientation) != 2 or not orientation[0]:
        return
    left, width, height = place
    draw, font = PIL.ImageDraw.Draw(canvas), _font(_LARGE, True)
    ends = {"lm": orientation[0].translate(_OPPOSITE), "rm": orientation[0]}
    for anchor, letters in ends.items():
        at = (left + _MARGIN if anchor == "lm" else left + width - _MARGIN, height // 2)
        draw.text(at, letters, _INK, font, anchor, stroke_width=2, stroke_fill="#000000")
