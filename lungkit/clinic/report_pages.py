"""The pages of a report: head, foot, fonts, and the few ways in which a report puts text on paper.

Texts are set in DejaVu Sans, which knows Latin, Greek, Cyrillic and more; a character that it lacks is printed as �.
Lengths are in mm, sizes of text in pt.
"""

import functools
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fpdf import FPDF
from fpdf.bidi import BidiParagraph
from fpdf.enums import MethodReturnValue

from lungkit import palette
from lungkit.clinic.records import cases

RESEARCH_ONLY = "Research use only, not a diagnosis"
MARGIN, WIDTH = 15, 180  # mm
TOP, BOTTOM = 27, 278  # mm: what lies between belongs to the content, the rest to head and foot of the page
LINE_HEIGHT = 0.3528 * 1.35  # mm for each pt of a text's size
INK, QUIET, LINE, GROUND = map(palette.rgb, (palette.INK, palette.QUIET, palette.LINE, palette.GROUND))
ACCENT, WARN, GOOD = map(palette.rgb, (palette.ACCENT, palette.WARN, palette.GOOD))
PALE = {
    ACCENT: palette.rgb(palette.ACCENT_PALE),
    WARN: palette.rgb(palette.WARN_PALE),
    GOOD: palette.rgb(palette.GOOD_PALE),
}


def utc_text(time: datetime) -> str:
    """ "9 Mar 2026, 14:05 UTC"."""
    utc = time.astimezone(UTC)
    return f"{utc.day} {utc:%b %Y, %H:%M} UTC"


def _font_file(bold: bool) -> Path:
    """The file of DejaVu Sans, which comes with lungkit."""
    return Path(__file__).parent / "fonts" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


@functools.cache
def _known() -> frozenset[int]:
    """Code points that both fonts can print."""
    from fontTools.ttLib import TTFont

    regular, bold = (set(TTFont(_font_file(bold), lazy=True).getBestCmap()) for bold in (False, True))
    return frozenset(regular & bold)


def printable(text: str) -> str:
    """What the fonts can print: composed, without invisible characters, � for each character that they lack."""
    known, shown = _known(), []
    for character in unicodedata.normalize("NFC", text.replace("\r\n", "\n")):
        category = unicodedata.category(character)
        if character == "\n":
            shown.append(character)
        elif category in ("Cf", "Cc") or character.isspace():
            shown.append(" " if character.isspace() else "")
        else:
            # Private-use characters stand for the number of pages, below; no other text may contain them.
            shown.append(character if ord(character) in known and category != "Co" else "�")
    return "".join(shown)


def _in_order_of_print(line: str) -> str:
    """Right-to-left parts of one line turned round, as the page is printed from the left."""
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in line):
        return BidiParagraph(line).get_reordered_string()
    return line


PAGES = "\uef00\uef01"  # stands for the number of pages until that is known


class ReportPages(FPDF):
    """A page with head and foot, and the few ways in which this report puts text on it. Lengths in mm, sizes in pt."""

    def __init__(self, case: cases.Case, clinic: str, printed: datetime):
        super().__init__(format="A4")
        self.case, self.clinic, self.printed = case, clinic, printed
        self.set_margins(MARGIN, TOP)
        self.set_auto_page_break(False)
        self.c_margin = 0
        self.add_font("sans", "", _font_file(bold=False))
        self.add_font("sans", "B", _font_file(bold=True))
        self.set_font("sans", size=9)
        self.alias_nb_pages(PAGES)
        self.set_lang("en")
        # Nothing that names the patient: this is seen in file lists and by search engines of archives.
        self.set_title(f"Reading {case.reading_id}")
        self.set_subject(RESEARCH_ONLY)
        self.set_creator("lungkit")
        self.set_producer("lungkit, with fpdf2")
        self.set_creation_date(printed)

    def header(self) -> None:
        self.fill(0, 0, self.w, 2.2, ACCENT)
        self.set_y(9)
        self.say("Reading of a chest image", MARGIN, 100, size=15, bold=True)
        self.set_y(16)
        name = f"Patient {self.case.patient.number}"
        self.say(f"{self.clinic} · {name}" if self.clinic else name, MARGIN, 100, size=8.5, color=QUIET, most=1)
        self.fill(MARGIN + 108, 9.2, 72, 9, PALE[WARN])
        self.fill(MARGIN + 108, 9.2, 1, 9, WARN)
        self.set_y(11.2)
        self.say(RESEARCH_ONLY, MARGIN + 110, 70, bold=True, color=WARN, align="C")
        self.fill(MARGIN, 22.5, WIDTH, 0.3, LINE)
        self.set_y(TOP)

    def footer(self) -> None:
        self.fill(MARGIN, 283, WIDTH, 0.2, LINE)
        self.set_y(284.5)
        self.say(
            f"Reading {self.case.reading_id} · printed {utc_text(self.printed)}", MARGIN, 140, size=7.5, color=QUIET
        )
        self.set_xy(MARGIN + 140, 284.5)
        self._style(7.5, False, QUIET)
        self.cell(40, 4, f"Page {self.page_no()} of {PAGES}", align="R")

    def heading(self, words: str, x: float = MARGIN, width: float = WIDTH) -> None:
        """A heading with a line below it."""
        self.say(words, x, width, size=10.5, bold=True, color=ACCENT, most=2)
        self.fill(x, self.get_y() + 0.3, width, 0.3, LINE)
        self.gap(1.8)

    def say(
        self,
        text: str,
        x: float,
        width: float,
        *,
        size: float = 9,
        bold: bool = False,
        color: tuple[int, int, int] = INK,
        align: str = "L",
        most: int = 3,
        cut: str = "…",
        beside: str = "",
    ) -> None:
        """Text from the present height down, on at most `most` lines of `width`; the height is below it afterwards.

        cut: ends what was too long for them.
        beside: a short text at the right end of the first line's row, to the right of `width`.
        """
        lines, height = self._lines(text, width, size=size, bold=bold, color=color, most=most, cut=cut)
        height /= max(1, len(lines))
        top = self.get_y()
        if beside:
            self._style(size, False, QUIET)
            self.set_xy(x + width, top)
            self.cell(MARGIN + WIDTH - x - width, height, beside, align="R")
            self._style(size, bold, color)
        for index, line in enumerate(lines):
            self.set_xy(x, top + index * height)
            self.cell(width, height, _in_order_of_print(line), align=align)
        self.set_xy(MARGIN, top + len(lines) * height)

    def _lines(
        self, text: str, width: float, *, size: float = 9, bold: bool = False, color=INK, most: int = 3, cut: str = "…"
    ) -> tuple[list[str], float]:
        """The lines that a text takes, with … where it was cut, and their height together."""
        self._style(size, bold, color)
        lines: Any = self.multi_cell(width, size, printable(text), dry_run=True, output=MethodReturnValue.LINES)
        if len(lines) > most:
            last = lines[most - 1].rstrip()
            while last and self.get_string_width(last + cut) > width:
                last = last[:-1]
            lines = [*lines[: most - 1], last + cut]
        return lines, len(lines) * size * LINE_HEIGHT

    def fill(self, x: float, y: float, width: float, height: float, color: tuple[int, int, int]) -> None:
        """A rectangle of one colour."""
        self.set_fill_color(*color)
        self.rect(x, y, width, height, style="F")

    def box(self, color: tuple[int, int, int], *texts: tuple[str, dict]) -> None:
        """A pale panel with texts below each other (each with its arguments for `say`) and a bar of its colour."""
        x, width, edge = MARGIN + 5, WIDTH - 10, 2.4
        height = sum(self._lines(text, width, **style)[1] for text, style in texts) + 2 * edge
        top = self.get_y()
        self.fill(MARGIN, top, WIDTH, height, PALE[color])
        self.fill(MARGIN, top, 1.2, height, color)
        self.set_y(top + edge)
        for text, style in texts:
            self.say(text, x, width, **style)
        self.set_y(top + height)

    def facts(
        self, rows: Sequence[tuple[str, str]], x: float = MARGIN, width: float = WIDTH, label: float = 34
    ) -> None:
        """Rows of a quiet label and a value; label: the width that the labels take."""
        for name, value in rows:
            top = self.get_y()
            self.say(name, x, label - 1, color=QUIET)
            self.set_y(top)
            self.say(value, x + label, width - label)

    def table_row(self, first: str, rest: Sequence[str], names: float, **style) -> None:
        """A row below a line: a name that takes `names` of the width, and cells that share what is left."""
        self.keep_together(10)
        top, column = self.get_y(), (WIDTH - names) / max(1, len(rest))
        self.fill(MARGIN, top, WIDTH, 0.2, LINE)
        end = top
        for x, width, text in [
            (MARGIN, names - 2, first),
            *((MARGIN + names + i * column, column - 2, text) for i, text in enumerate(rest)),
        ]:
            self.set_y(top + 0.8)
            self.say(text, x, width, most=2, **style)
            end = max(end, self.get_y())
        self.set_y(end + 0.5)

    def gap(self, height: float) -> None:
        """Leave this much room."""
        self.set_y(self.get_y() + height)

    def keep_together(self, height: float) -> None:
        """A new page where less than this height is left on the present one."""
        if self.get_y() + height > BOTTOM:
            self.add_page()

    def _style(self, size: float, bold: bool, color: tuple[int, int, int]) -> None:
        self.set_font("sans", "B" if bold else "", size)
        self.set_text_color(*color)
