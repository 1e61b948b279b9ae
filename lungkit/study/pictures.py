"""The files of a figure that can be shown: a PNG or PDF that is missing, broken, empty or too large is left out."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from lungkit.study.document import Figure


@dataclass(frozen=True)
class Picture:
    """A PNG, with the size in inches that it was made for."""

    file: Path
    width: float
    height: float


def png(figure: Figure) -> Picture | None:
    """The figure's PNG; None where no program could show it."""
    file = figure.stem.with_name(f"{figure.stem.name}.png")
    try:
        with warnings.catch_warnings(action="error"), PIL.Image.open(file, formats=["PNG"]) as opened:
            opened.verify()
            dpi = float(opened.info.get("dpi", (100, 100))[0]) or 100.0
            found = Picture(file, opened.width / dpi, opened.height / dpi)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        return None
    return found if found.width > 0 and found.height > 0 else None


def pdf(figure: Figure) -> Path | None:
    """The figure's PDF; None where it is none."""
    file = figure.stem.with_name(f"{figure.stem.name}.pdf")
    try:
        with file.open("rb") as opened:
            return file if opened.read(5) == b"%PDF-" else None
    except OSError:
        return None


def missing(figure: Figure) -> str:
    """The sentence in place of a picture."""
    return f"The picture of this figure, {figure.name}, is missing or cannot be read."
