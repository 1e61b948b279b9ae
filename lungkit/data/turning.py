"""How a picture can lie, how a DICOM header says it, and turning a picture upright without loss."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lungkit.data.image import Image

Lie = tuple[bool, int]  # mirrored or not, and then rotated counter-clockwise by so many quarters
LIES: tuple[Lie, ...] = tuple((mirrored, quarters) for mirrored in (False, True) for quarters in range(4))
UPRIGHT = LIES[0]
TURNED = "turned"  # a tag of an image whose pixels do not lie as in its file
_OPPOSITE = {"L": "R", "R": "L", "F": "H", "H": "F", "A": "P", "P": "A"}
_TURNED = ("", "turned by 90° to the left", "upside down", "turned by 90° to the right")
_TURNS = ("", "turned by 90° to the right", "turned by 180°", "turned by 90° to the left")  # which make it upright


def lie_words(lie: Lie) -> str:
    """ "turned by 90° to the left and mirrored"; "upright"."""
    mirrored, quarters = lie
    return " and ".join(filter(None, [_TURNED[quarters], "mirrored" if mirrored else ""])) or "upright"


def lie_in(words: str) -> Lie:
    """The lie that `lie_words` named within these words, outside brackets; UPRIGHT where there is none."""
    words = words.partition(" (")[0]
    quarters = next((number for number, named in enumerate(_TURNED) if named and named in words), 0)
    return "mirrored" in words, quarters


def turn_words(lie: Lie) -> str:
    """What `upright` does to a picture that lies so: "turned by 90° to the right and mirrored"."""
    mirrored, quarters = lie
    return " and ".join(filter(None, [_TURNS[quarters], "mirrored" if mirrored else ""])) or "not turned"


def stated(orientation: str, axial: bool = False) -> Lie | None:
    r"""How a frontal X-ray, or an axial slice, lies by its PatientOrientation; None where that says something else.

    The usual display of a chest X-ray is L\F: rows run to the patient's left, columns to the feet; of a slice L\P.

    >>> stated("L\\F"), stated("R\\F"), stated("F\\R"), stated("A\\F"), stated("R\\P", axial=True)
    ((False, 0), (True, 0), (False, 1), None, (True, 0))
    """
    found = _AXIAL if axial else _FRONTAL
    return found.get(tuple(part.strip()[:1] for part in orientation.upper().split("\\")))


def upright(image: Image, lie: Lie) -> Image:
    """The image after a person found that it lies so and it was turned back; its tags "note" and TURNED say so.

    The tag "orientation" is kept, turned as well, where it said the same. Where it did not, the person has judged the
    header wrong, and it goes.
    """
    tags = dict(image.tags)
    turned = "lies upright, unlike its header says" if lie == UPRIGHT else f"{turn_words(lie)} before it was read"
    if lie != UPRIGHT:
        tags[TURNED] = "yes"
    tags["note"] = "; ".join(filter(None, [tags.get("note", ""), turned]))
    before = tags.pop("orientation", "")
    if lie in (stated(before), stated(before, axial=True)):
        tags["orientation"] = _turned_back(before, lie)
    if lie[1] % 2:
        tags |= _swapped(tags)
    return replace(image, pixels=turned_back(image.pixels, lie), tags=tags)


def _swapped(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags whose values for rows and for columns change places with a quarter turn."""
    swapped = {one: tags[other] for one, other in (("rows", "columns"), ("columns", "rows")) if other in tags}
    for name in ("pixel_spacing", "detector_spacing"):
        if name in tags:
            swapped[name] = "\\".join(reversed(tags[name].split("\\")))
    return swapped


def turned_back(picture: np.ndarray, lie: Lie) -> np.ndarray:
    """A picture (height, width) that lies so, made upright."""
    mirrored, quarters = lie
    picture = np.rot90(picture, -quarters)
    return np.ascontiguousarray(picture[:, ::-1] if mirrored else picture)


def _rotated(right: str, down: str) -> tuple[str, str]:
    """Where rows and columns run after a quarter counter-clockwise."""
    return down, _opposite(right)


def _opposite(direction: str) -> str:
    return "".join(_OPPOSITE.get(letter, letter) for letter in direction)


def _turned_back(orientation: str, lie: Lie) -> str:
    right, _, down = orientation.upper().partition("\\")
    mirrored, quarters = lie
    for _ in range(-quarters % 4):
        right, down = _rotated(right, down)
    return f"{_opposite(right) if mirrored else right}\\{down}"


def _lies(usual: str) -> dict[tuple[str, ...], Lie]:
    """Each lie by where rows and columns run in it. usual: where columns run in an upright picture."""
    found: dict[tuple[str, ...], Lie] = {}
    for mirrored, quarters in LIES:
        right, down = "R" if mirrored else "L", usual
        for _ in range(quarters):
            right, down = _rotated(right, down)
        found[right, down] = mirrored, quarters
    return found


_FRONTAL, _AXIAL = _lies("F"), _lies("P")
