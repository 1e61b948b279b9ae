"""The report as a Word file, opened again: styles, real tables, captions, alternative texts, links inside it."""

import docx
import pandas as pd
import pytest
from docx.oxml.ns import qn

from lungkit.study import content, material, report
from lungkit.study.document import Table
from lungkit.training import exhibits


@pytest.fixture
def word(run):
    report.write(run, ["docx"])
    return docx.Document(run / "report" / "report.docx")


def test_headings_have_the_styles_that_word_navigates_by(word):
    first = [one.text for one in word.paragraphs if one.style.name == "Heading 1"]
    assert first[:3] == ["1  Question", "2  Data", "3  Method"]
    assert "3.1  Preprocessing" in [one.text for one in word.paragraphs if one.style.name == "Heading 2"]


def test_tables_are_tables_with_every_cell_and_a_head_on_each_page(word, run):
    known = material.gather(run)
    document = content.document(known, content.body(known), ())
    tables = [block for section in document.walk() for block in section.blocks if isinstance(block, Table)]
    assert len(word.tables) == len(tables) + 3, "two checklists and a datasheet"
    for made, table in zip(word.tables, tables, strict=False):
        assert tuple(cell.text for cell in made.rows[0].cells) == table.head
        # Words: what Word shows of a reference is in a link, which the text of a cell has too.
        assert [[cell.text for cell in row.cells] for row in list(made.rows)[1:]] == [
            [document.plain(cell) for cell in row] for row in table.rows
        ]
        assert made.rows[0]._tr.trPr.find(qn("w:tblHeader")) is not None


def test_figures_have_their_captions_as_alternative_text_and_fit_the_page(word):
    described = [shape._inline.docPr.get("descr") for shape in word.inline_shapes]
    assert described[:2] == ["Some images.", "The curve."]
    page = word.sections[0]
    room = page.page_width - page.left_margin - page.right_margin
    assert all(0 < shape.width <= room for shape in word.inline_shapes)


def test_captions_are_numbered_by_fields_that_word_can_count_again(word):
    captions = [one for one in word.paragraphs if one.style.name == "Caption"]
    figures = [one.text for one in captions if one.text.startswith("Figure")]
    assert figures[0] == "Figure 1. Some images."
    codes = [code.text.strip() for one in captions for code in one._p.iter(qn("w:instrText"))]
    assert codes.count("SEQ Figure \\* ARABIC") == 3
    assert set(codes) == {"SEQ Figure \\* ARABIC", "SEQ Table \\* ARABIC"}


def test_every_link_inside_the_file_has_its_place(word):
    body = word.element.body
    anchors = {link.get(qn("w:anchor")) for link in body.iter(qn("w:hyperlink"))} - {None}
    places = [mark.get(qn("w:name")) for mark in body.iter(qn("w:bookmarkStart"))]
    assert len(anchors) > 10 and anchors <= set(places)
    assert len(places) == len(set(places)) and all(len(name) <= 40 for name in places)


def test_the_file_has_its_title_date_and_page_numbers(word):
    about = word.core_properties
    assert about.title == "Chest image: Left, Right?"
    assert f"{about.created:%Y-%m-%dT%H:%M}" == "2026-11-30T13:00"
    assert "PAGE" in [code.text.strip() for code in word.sections[0].footer._element.iter(qn("w:instrText"))]


def test_a_table_of_many_columns_lies_on_its_side_and_breaks_no_word(run):
    columns = {f"specificity {n}": ["0.670 (0.545–0.784)†", "0.747 (0.566–0.899)†"] for n in range(8)}
    frame = pd.DataFrame({"attribute": ["severity", "brightness"], **columns})
    for name in ("10_subgroups", "10_twice"):
        exhibits.table(frame, run, name, "Groups")
    report.write(run, ["docx"])
    word = docx.Document(run / "report" / "report.docx")
    sides = [page.page_width > page.page_height for page in word.sections]
    assert sides == [False, True, False], "both tables on one"
    (groups, _) = (table for table in word.tables if table.rows[0].cells[0].text == "attribute")
    widths = [cell.width.cm for cell in groups.rows[0].cells]
    assert sum(widths) <= 29.7 - 2 * 2.2 + 0.01
    assert widths[0] > 10 * 0.15, "brightness in 8.5 point type"


def test_control_characters_that_xml_forbids_are_shown_as_unknown(run):
    from lungkit.study.provenance import RunRecord, Stage

    stages = (Stage("04_evaluation", 1.0, "bad \x1b[31m byte \x00"),)
    RunRecord.of("2026-11-30T13:00:00+00:00", {}, stages).save(run)
    report.write(run, ["docx"])
    texts = [cell.text for table in docx.Document(run / "report" / "report.docx").tables for cell in table._cells]
    assert "bad \ufffd[31m byte \ufffd" in texts
