"""The pages of a report: head, foot, fonts, and the few ways in which a report puts text on paper.

Texts are set in DejaVu Sans, which knows Latin, Greek, Cyrillic and more; a character that it lacks is printed as �.
Lengths are in mm, sizes of text in pt.
"""

import functools
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, cast

from fpdf import FPDF
from fpdf.bidi import BidiParagraph
from fpdf.enums import Align, MethodReturnValue

from lungkit import palette
from lungkit.clinic.records import cases
from lungkit.times import when_and_zone

RESEARCH_ONLY = "Research use only, not a diagnosis"
MARGIN, WIDTH = 15, 180  # mm
TOP, BOTTOM = 27, 278  # mm: what lies between belongs to the content, the rest to head and foot of the page
FONTS = {style: Path(__file__).parent / "fonts" / f"DejaVuSans{end}.ttf" for style, end in (("", ""), ("B", "-Bold"))}
LINE_HEIGHT = 0.3528 * 1.35  # mm for each pt of a text's size
INK, QUIET, LINE = map(palette.rgb, (palette.INK, palette.QUIET, palette.LINE))
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


@functools.cache
def _known() -> frozenset[int]:
    """Code points that both fonts can print."""
    from fontTools.ttLib import TTFont

    regular, bold = (set(TTFont(file, lazy=True).getBestCmap()) for file in FONTS.values())
    return frozenset(regular & bold)


def printable(text: str) -> str:
    """What the fonts can print: composed, without invisible characters, � for each character that they lack."""
    return "".join(map(_printable, unicodedata.normalize("NFC", text.replace("\r\n", "\n"))))


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\n":
        return character
    if character.isspace():
        return " "
    if category in ("Cf", "Cc"):
        return ""
    # Private-use characters stand for the number of pages, below; no other text may contain them.
    return character if ord(character) in _known() and category != "Co" else "�"


def _in_order_of_print(line: str) -> str:
    """Right-to-left parts of one line turned round, as the page is printed from the left."""
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in line):
        return str(BidiParagraph(line).get_reordered_string())
    return line


PAGES = "\uef00\uef01"  # stands for the number of pages until that is known
Color = tuple[int, int, int]


class Text(NamedTuple):
    """How a text is set. most: lines; what is longer ends with `cut`."""

    size: float = 9
    bold: bool = False
    color: Color = INK
    align: Align = Align.L
    most: int = 3
    cut: str = "…"


PLAIN = Text()


class ReportPages(FPDF):
    """A page with head and foot, and the few ways in which this report puts text on it. Lengths in mm, sizes in pt.

    what: was read, the heading of each page; nothing that names the patient.
    """

    def __init__(self, case: cases.Case, printed: datetime, what: str = "Reading of an image"):
        super().__init__(format="A4")
        self.case, self.printed, self.what = case, printed, what
        self.set_margins(MARGIN, TOP)
        self.set_auto_page_break(True, self.h - BOTTOM)
        self.c_margin = 0
        for style, file in FONTS.items():
            self.add_font("sans", style, file)
        self.set_font("sans", size=9)
        self.alias_nb_pages(PAGES)
        self.set_lang("en")
        # Nothing that names the patient: this is seen in file lists and by search engines of archives.
        self.set_title(printable(f"{what} Reading {case.reading_id}"))
        self.set_subject(RESEARCH_ONLY)
        self.set_creator("lungkit")
        self.set_producer("lungkit, with fpdf2")
        self.set_creation_date(printed)

    def header(self) -> None:
        self.fill(0, 0, self.w, 2.2, ACCENT)
        self.set_y(6.5)
        self.say(self.what, MARGIN, 105, Text(12, bold=True, most=2))
        self.ln(0.4)
        self.say(f"Patient {self.case.patient.number}", MARGIN, 100, Text(8.5, color=QUIET, most=1))
        self.fill(MARGIN + 108, 9.2, 72, 9, PALE[WARN])
        self.fill(MARGIN + 108, 9.2, 1, 9, WARN)
        self.set_y(11.2)
        self.say(RESEARCH_ONLY, MARGIN + 110, 70, Text(bold=True, color=WARN, align=Align.C))
        self.fill(MARGIN, 22.5, WIDTH, 0.3, LINE)
        self.set_y(TOP)

    def footer(self) -> None:
        self.fill(MARGIN, 283, WIDTH, 0.2, LINE)
        self.set_y(284.5)
        words, quiet = f"Reading {self.case.reading_id} · printed {when_and_zone(self.printed)}", Text(7.5, color=QUIET)
        self.say(words, MARGIN, 140, quiet)
        self.set_xy(MARGIN + 140, 284.5)
        self.cell(40, 4, f"Page {self.page_no()} of {PAGES}", align=Align.R)

    def heading(self, words: str, x: float = MARGIN, width: float = WIDTH, space: float = 18) -> None:
        """A heading with a line below it; on a new page if less than `space` is left on the present one."""
        self.keep_together(space)
        self.say(words, x, width, Text(10.5, bold=True, color=ACCENT, most=2))
        self.fill(x, self.get_y() + 0.3, width, 0.3, LINE)
        self.ln(1.8)

    def say(self, text: str, x: float = MARGIN, width: float = WIDTH, style: Text = PLAIN) -> None:
        """Text from the present height down; the height is below it afterwards."""
        for line in self._lines(text, width, style):
            self.set_x(x)
            height = style.size * LINE_HEIGHT
            self.cell(width, height, _in_order_of_print(line), align=style.align, new_x="LMARGIN", new_y="NEXT")

    def _lines(self, text: str, width: float, style: Text) -> list[str]:
        """The lines that a text takes; the last one says where it was cut."""
        self.set_font("sans", "B" if style.bold else "", style.size)
        self.set_text_color(*style.color)
        split = self.multi_cell(width, style.size, printable(text), dry_run=True, output=MethodReturnValue.LINES)
        lines = cast("list[str]", split)
        if len(lines) > style.most:
            last = lines[style.most - 1].rstrip()
            while last and self.get_string_width(last + style.cut) > width:
                last = last[:-1]
            lines = [*lines[: style.most - 1], last + style.cut]
        return lines

    def fill(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """A rectangle of one colour."""
        self.set_fill_color(*color)
        self.rect(x, y, width, height, style="F")

    def in_columns(self, *columns: Callable[[], object]) -> None:
        """Parts next to each other: each begins at the present height, and the page continues below the longest."""
        top, ends = self.get_y(), []
        for column in columns:
            self.set_y(top)
            column()
            ends.append(self.get_y())
        self.set_y(max(ends))

    def box(self, color: Color, *texts: tuple[str, Text]) -> None:
        """A pale panel with texts below each other and a bar of its colour."""
        x, width, edge = MARGIN + 5, WIDTH - 10, 2.4
        height = sum(len(self._lines(text, width, style)) * style.size * LINE_HEIGHT for text, style in texts)
        top = self.get_y()
        self.fill(MARGIN, top, WIDTH, height + 2 * edge, PALE[color])
        self.fill(MARGIN, top, 1.2, height + 2 * edge, color)
        self.ln(edge)
        for text, style in texts:
            self.say(text, x, width, style)
        self.ln(edge)

    def facts(
        self, rows: Iterable[tuple[str, str]], x: float = MARGIN, width: float = WIDTH, label: float = 34
    ) -> None:
        """Rows of a quiet label and a value; label: the width that the labels take."""
        for name, value in rows:
            self.row([(name, label, Text(color=QUIET)), (value, width - label, PLAIN)], x)

    def row(self, cells: Sequence[tuple[str, float, Text]], x: float = MARGIN) -> None:
        """Texts next to each other, each with the width of its column."""
        self.keep_together(10)
        columns = []
        for text, width, style in cells:
            columns.append(functools.partial(self.say, text, x, width - 1.5, style))
            x += width
        self.in_columns(*columns)

    def keep_together(self, height: float) -> None:
        """A new page where less than this height is left on the present one."""
        if self.will_page_break(height):
            self.add_page()
