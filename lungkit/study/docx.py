"""A report as a Word file: heading styles, real tables, captions that Word can number again, figures with alt text."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docx
from docx.enum.section import WD_ORIENT, WD_SECTION
from docx.enum.style import WD_STYLE_TYPE
from docx.enum.table import WD_TABLE_ALIGNMENT
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.shared import Cm, Emu, Pt, RGBColor

from lungkit import files, palette
from lungkit.study import layout, pictures
from lungkit.study.document import (
    Block,
    Bullets,
    Cite,
    Document,
    Failure,
    Figure,
    Inline,
    Link,
    Paragraph,
    Ref,
    Section,
    Strong,
    Table,
    Text,
    sentence,
)
from lungkit.study.references import REFERENCES

if TYPE_CHECKING:
    from docx.document import Document as Word
    from docx.table import _Cell
    from docx.text.paragraph import Paragraph as WordParagraph

_FONT, _MARGIN, _TEXT_WIDTH = "Arial", Cm(2.2), Cm(21.0 - 2 * 2.2)
_TALLEST = Cm(10.5)  # of a figure: two fit a page with their captions
_TABLE_TEXT, _TOGETHER = "Table Text", 12  # a style; the most rows of a table that is kept on one page
_INK, _ACCENT, _WARN = (RGBColor.from_string(one[1:].upper()) for one in (palette.INK, palette.ACCENT, palette.WARN))
_PROPERTY = 255  # letters of a property of the file
_LETTERS = 92  # of a table's type that fit the width of the text
_LONG_SIDE = (29.7 - 2 * 2.2) / (21.0 - 2 * 2.2)  # the width of the text of a page on its side, in those of one upright


def write(document: Document, folder: Path, name: str = "report") -> Path:
    """Write <folder>/<name>.docx."""
    word = docx.Document()
    _styled(word)
    _properties(word, document)
    word.add_paragraph(document.title, style="Title")
    word.add_paragraph(document.subtitle, style="Subtitle")
    for section in document.sections:
        _section(word, document, section, 1)
    _references(word, document)
    for section in document.appendices:
        _section(word, document, section, 1)
    made = io.BytesIO()
    word.save(made)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.docx"
    files.replace(file, made.getvalue())
    return file


# --- the look of it


def _styled(word: "Word") -> None:
    """A4 pages with numbers, and one typeface throughout."""
    page = word.sections[0]
    page.orientation, page.page_width, page.page_height = WD_ORIENT.PORTRAIT, Cm(21), Cm(29.7)
    page.left_margin = page.right_margin = page.top_margin = page.bottom_margin = _MARGIN
    small = word.styles.add_style(_TABLE_TEXT, WD_STYLE_TYPE.PARAGRAPH)
    small.base_style, small.paragraph_format.line_spacing = word.styles["Normal"], 1.0
    small.paragraph_format.space_after = small.paragraph_format.space_before = Pt(1.5)
    sizes = {"Normal": 10, "Title": 20, "Subtitle": 11, "Heading 1": 16, "Heading 2": 13, "Heading 3": 11.5,
             _TABLE_TEXT: 8.5, "Caption": 9.5, "List Bullet": 10, "List Number": 10}  # fmt: skip
    for name, size in sizes.items():
        style = word.styles[name]
        style.font.name, style.font.size, style.font.color.rgb = _FONT, Pt(size), _INK
        style.font.italic, style.font.bold = False, name.startswith(("Heading", "Title"))
        fonts = style.element.get_or_add_rPr().get_or_add_rFonts()
        for attribute in ("w:asciiTheme", "w:hAnsiTheme", "w:eastAsiaTheme", "w:cstheme"):
            fonts.attrib.pop(qn(attribute), None)
        for attribute in ("w:ascii", "w:hAnsi", "w:cs"):
            fonts.set(qn(attribute), _FONT)
    word.styles["Normal"].paragraph_format.space_after = Pt(6)
    word.styles["Normal"].paragraph_format.line_spacing = 1.12
    word.styles["Caption"].paragraph_format.space_after = Pt(10)
    for name, before in (("Heading 1", 18), ("Heading 2", 12), ("Heading 3", 9)):
        word.styles[name].paragraph_format.space_before = Pt(before)
        word.styles[name].paragraph_format.space_after = Pt(4)
    border = word.styles["Title"].element.find(f"{qn('w:pPr')}/{qn('w:pBdr')}")
    if border is not None:
        border.getparent().remove(border)
    footer = page.footer.paragraphs[0]
    footer.alignment = WD_ALIGN_PARAGRAPH.CENTER
    _field(footer, "PAGE", "1")


def _properties(word: "Word", document: Document) -> None:
    about = word.core_properties
    about.title, about.subject, about.author = document.title[:_PROPERTY], document.subtitle[:_PROPERTY], ""
    about.comments, about.keywords, about.language = "Research use only; not a medical device.", "lungkit", "en"
    try:
        about.created = about.modified = datetime.fromisoformat(document.started).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):  # no time, or one that no other zone has
        return


def _field(paragraph: "WordParagraph", code: str, shown: str) -> None:
    """A field that Word computes, with what it shows until then."""
    for kind in ("begin", None, "separate", shown, "end"):
        run = paragraph.add_run()
        if kind in ("begin", "separate", "end"):
            mark = OxmlElement("w:fldChar")
            mark.set(qn("w:fldCharType"), kind)
            run._r.append(mark)
        elif kind is None:
            instruction = OxmlElement("w:instrText")
            instruction.set(qn("xml:space"), "preserve")
            instruction.text = f" {code} "
            run._r.append(instruction)
        else:
            run.text = kind


# --- blocks


def _section(word: "Word", document: Document, section: Section, level: int) -> None:
    number = document.labels[Ref("section", section.name)].removeprefix("Section ")
    _turn(word, WD_ORIENT.PORTRAIT)
    heading = word.add_heading(f"{number}  {section.title}", min(level, 3))
    heading.paragraph_format.keep_with_next = True
    _bookmark(heading, "section", section.name)
    for block in section.blocks:
        _block(word, document, block)
    for part in section.parts:
        _section(word, document, part, level + 1)


def _block(word: "Word", document: Document, block: Block) -> None:
    if not isinstance(block, Table):
        _turn(word, WD_ORIENT.PORTRAIT)
    match block:
        case Paragraph():
            paragraph = word.add_paragraph()
            _text(paragraph, document, block.text)
            for run in paragraph.runs if block.lead else ():
                run.bold = True
        case Bullets():
            for item in block.items:
                paragraph = word.add_paragraph(style="List Bullet")
                paragraph.paragraph_format.space_after = Pt(2)
                _text(paragraph, document, item)
        case Figure():
            _figure(word, document, block)
        case Table():
            wide = layout.needs(document, block) > _LETTERS
            _turn(word, WD_ORIENT.LANDSCAPE if wide else WD_ORIENT.PORTRAIT)
            _table(word, document, block, _LONG_SIDE if wide else 1)


def _turn(word: "Word", orientation: WD_ORIENT) -> None:
    """Begin a page of this orientation, unless the last one has it."""
    if word.sections[-1].orientation == orientation:
        return
    page = word.add_section(WD_SECTION.NEW_PAGE)
    sides = sorted((page.page_width, page.page_height), reverse=orientation == WD_ORIENT.LANDSCAPE)
    page.orientation, (page.page_width, page.page_height) = orientation, sides


def _figure(word: "Word", document: Document, figure: Figure) -> None:
    paragraph = word.add_paragraph()
    paragraph.paragraph_format.keep_with_next = True
    paragraph.paragraph_format.space_before, paragraph.paragraph_format.space_after = Pt(8), Pt(3)
    if (picture := pictures.png(figure)) is not None:
        shape = paragraph.add_run().add_picture(str(picture.file))
        scale = min(_TEXT_WIDTH / shape.width, _TALLEST / shape.height, 1)
        shape.width, shape.height = (Emu(max(1, int(side * scale))) for side in (shape.width, shape.height))
        described = shape._inline.docPr
        described.set("descr", sentence(figure.caption))
        described.set("title", document.labels[Ref("figure", figure.name)])
    else:
        _text(paragraph, document, (Failure(pictures.missing(figure)),))
    _caption(word, document, Ref("figure", figure.name), figure.caption)


def _caption(word: "Word", document: Document, ref: Ref, words: str) -> "WordParagraph":
    """ "Figure 3. What it shows." with a number that Word can count again."""
    kind, number = document.labels[ref].split(" ")
    paragraph = word.add_paragraph(style="Caption")
    paragraph.add_run(f"{kind} ").bold = True
    _field(paragraph, f"SEQ {kind} \\* ARABIC", number)
    for run in paragraph.runs:
        run.bold = True
    paragraph.add_run(". ").bold = True
    paragraph.add_run(sentence(words)).bold = False
    _bookmark(paragraph, ref.kind, ref.name)
    return paragraph


def _table(word: "Word", document: Document, table: Table, across: float = 1) -> None:
    """across: how many times as wide as an upright page's text the table may be."""
    caption = _caption(word, document, Ref("table", table.name), table.caption)
    caption.paragraph_format.keep_with_next = True
    caption.paragraph_format.space_before, caption.paragraph_format.space_after = Pt(8), Pt(3)
    made = word.add_table(rows=1 + len(table.rows), cols=len(table.head))
    made.alignment, made.autofit = WD_TABLE_ALIGNMENT.LEFT, False
    _rules(made)
    widths = _widths(document, table, across)
    numbers = [layout.is_number(document, table, place) for place in range(len(table.head))]
    _row(made.rows[0], document, tuple((Strong(name),) for name in table.head), widths, numbers, True)
    _repeated(made.rows[0])
    short = len(table.rows) <= _TOGETHER
    for place, (row, texts) in enumerate(zip(list(made.rows)[1:], table.rows, strict=True), 1):
        _row(row, document, texts, widths, numbers, short and place < len(table.rows))
    for grid, width in zip(made._tbl.tblGrid.gridCol_lst, widths, strict=True):
        grid.w = width
    after = word.add_paragraph(table.note)
    after.paragraph_format.space_after = Pt(8)


def _widths(document: Document, table: Table, across: float) -> list[Emu]:
    """Of each column, with the gap after it."""
    found = layout.widths(document, table, _LETTERS * across)
    return [Emu(int(_TEXT_WIDTH * (width + layout.GAP) / (_LETTERS + layout.GAP))) for width in found]


def _row(
    row: Any, document: Document, texts: tuple[Text, ...], widths: list[Emu], numbers: list[bool], together: bool
) -> None:
    """Fill a row; together: it stays on the page of the next one."""
    properties = row._tr.get_or_add_trPr()
    properties.append(OxmlElement("w:cantSplit"))
    for cell, words, width, number in zip(row.cells, texts, widths, numbers, strict=True):
        cell.width = width
        paragraph = cell.paragraphs[0]
        paragraph.style = _TABLE_TEXT
        paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT if number else WD_ALIGN_PARAGRAPH.LEFT
        paragraph.paragraph_format.keep_with_next = together
        _text(paragraph, document, words)


def _repeated(row: Any) -> None:
    """The head of a table, on every page that the table reaches."""
    mark = OxmlElement("w:tblHeader")
    mark.set(qn("w:val"), "true")
    row._tr.get_or_add_trPr().append(mark)
    for cell in row.cells:
        _edge(cell, "bottom", 6)


def _rules(table: Any) -> None:
    """A rule above and below, and thin ones between the rows."""
    borders = OxmlElement("w:tblBorders")
    for edge, size, colour in (("top", 10, palette.INK), ("bottom", 10, palette.INK), ("insideH", 4, palette.LINE)):
        borders.append(_line(edge, size, colour))
    table._tbl.tblPr.append(borders)


def _edge(cell: "_Cell", edge: str, size: int) -> None:
    borders = OxmlElement("w:tcBorders")
    borders.append(_line(edge, size, palette.INK))
    cell._tc.get_or_add_tcPr().append(borders)


def _line(edge: str, size: int, colour: str) -> Any:
    """size: in eighths of a point."""
    line = OxmlElement(f"w:{edge}")
    for name, value in (("val", "single"), ("sz", str(size)), ("space", "0"), ("color", colour[1:].upper())):
        line.set(qn(f"w:{name}"), value)
    return line


# --- text


def _text(paragraph: "WordParagraph", document: Document, words: Text) -> None:
    for one in words:
        _inline(paragraph, document, one)


def _inline(paragraph: "WordParagraph", document: Document, inline: Inline) -> None:
    match inline:
        case str():
            paragraph.add_run(inline)
        case Cite():
            _inside(paragraph, _anchor("reference", inline.key), f" [{document.number(inline)}]")
        case Ref():
            _inside(paragraph, _anchor(inline.kind, inline.name), document.labels[inline])
        case Link() if inline.target.startswith(("https://", "http://")):
            _outside(paragraph, inline.target, inline.text)
        case Link():
            paragraph.add_run(inline.text)
        case Strong():
            paragraph.add_run(inline.text).bold = True
        case Failure():
            run = paragraph.add_run(inline.text)
            run.bold, run.font.color.rgb = True, _WARN


def _inside(paragraph: "WordParagraph", anchor: str, words: str) -> None:
    """A link to a place of this file."""
    link = OxmlElement("w:hyperlink")
    link.set(qn("w:anchor"), anchor)
    link.append(paragraph.add_run(words)._r)
    paragraph._p.append(link)


def _outside(paragraph: "WordParagraph", address: str, words: str) -> None:
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/hyperlink"
    link = OxmlElement("w:hyperlink")
    link.set(qn("r:id"), paragraph.part.relate_to(address, kind, is_external=True))
    run = paragraph.add_run(words)
    run.font.color.rgb = _ACCENT
    link.append(run._r)
    paragraph._p.append(link)


def _bookmark(paragraph: "WordParagraph", kind: str, name: str) -> None:
    number = str(len(paragraph._p.getroottree().findall(f".//{qn('w:bookmarkStart')}")) + 1)
    start, end = OxmlElement("w:bookmarkStart"), OxmlElement("w:bookmarkEnd")
    start.set(qn("w:id"), number)
    start.set(qn("w:name"), _anchor(kind, name))
    end.set(qn("w:id"), number)
    paragraph._p.append(start)
    paragraph._p.append(end)


def _anchor(kind: str, name: str) -> str:
    """A name that Word accepts for a bookmark: at most 40 letters, digits and "_"."""
    return "".join(one if one.isascii() and one.isalnum() else "_" for one in f"{kind}_{name}")[:40]


def _references(word: "Word", document: Document) -> None:
    if not document.cited:
        return
    _turn(word, WD_ORIENT.PORTRAIT)
    word.add_heading("References", 1)
    for key in document.cited:
        one = REFERENCES[key]
        paragraph = word.add_paragraph(f"[{document.number(Cite(key))}] {one.text} ")
        paragraph.paragraph_format.left_indent, paragraph.paragraph_format.first_line_indent = Cm(0.8), Cm(-0.8)
        _bookmark(paragraph, "reference", key)
        if one.link:
            _outside(paragraph, one.link, one.link)
