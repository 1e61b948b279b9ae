"""The report as a page: everything escaped, nothing loaded from elsewhere, every link leads somewhere."""

import html
import json
import re
import struct
import zlib
from urllib.parse import unquote

import docx
import pytest

from lungkit.errors import LungkitError
from lungkit.study import report
from tests.study.conftest import HOSTILE


@pytest.fixture
def page(run) -> str:
    return report.index(run).read_text("utf-8")


def test_what_people_wrote_is_escaped(page):
    assert "<b>all</b>" not in page
    assert page.count(html.escape(HOSTILE)) >= 3, "as caption, as alternative text and as a cell"


def test_each_figure_has_its_caption_as_alternative_text_and_a_number(page):
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(figures) == 3
    for number, figure in enumerate(figures, 1):
        alternative = re.search(r'alt="([^"]+)"', figure)[1]
        assert f'<span class="label">Figure {number}.</span> {alternative}' in figure


def test_a_figure_is_shown_at_the_size_that_it_was_made_for(page):
    (width,) = set(re.findall(r'<img [^>]*width="(\d+)"', page))
    assert 150 < int(width) < 230, "two inches of 96 pixels, cut to what is drawn"


def test_the_page_loads_nothing_but_the_runs_own_files(page, run):
    loaded = re.findall(r"""<(?:img|script|link|iframe)\b[^>]*?(?:src|href)=["']?([^"'\s>]+)""", page)
    assert loaded and all((run / unquote(one)).is_file() for one in loaded)
    assert not re.search(r"@import|url\(", page)


def test_every_link_on_the_page_leads_to_a_place_of_it_or_to_a_file(run):
    report.write(run, ["html", "latex"])
    page = (run / "index.html").read_text("utf-8")
    places = re.findall(r'id="([^"]+)"', page)
    assert len(places) == len(set(places))
    links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', page)]
    assert len(links) > 30
    for link in links:
        if link.startswith("#"):
            assert link[1:] in places, link
        elif not link.startswith("https://"):
            assert (run / unquote(link)).is_file(), link


def test_tables_keep_every_cell(page):
    table = re.search(r'id="table-06_long".*?</table>', page, re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>(\d+)</td>", table) == [str(n) for n in range(25)]


def test_the_page_is_one_document_with_its_language_and_a_contents_list(page, run):
    assert page.startswith('<!doctype html>\n<html lang="en">')
    contents = re.search(r"<nav.*?</nav>", page, re.DOTALL)[0]
    titles = re.findall(r"<h2[^>]*>(?:<span[^>]*>.*?</span>)?(.*?)</h2>", page)
    assert titles[:3] == ["Question", "Data", "Method"]
    assert all(f">{title}</a>" in contents for title in titles)


def test_a_report_shows_and_writes_nothing_outside_of_its_own_folder(run, tmp_path):
    from lungkit.study.provenance import RunRecord, Stage

    other, before = tmp_path / "other", sorted(run.rglob("*"))
    other.mkdir()
    RunRecord.of("2026-11-30T13:00:00+00:00", {"report": str(run)}, (Stage("04_evaluation", 1.0, "done"),)).save(other)
    page = report.index(other).read_text("utf-8")
    assert "<img" not in page and "The notebooks kept figures and tables in another folder" in page
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("name", ["report", "dataset"])
def test_a_folder_to_write_to_that_is_a_link_is_refused(run, tmp_path, name):
    (tmp_path / "precious").mkdir()
    (run / name).symlink_to(tmp_path / "precious")
    with pytest.raises(LungkitError, match=f"{name} is a link or no folder"):
        report.write(run, ["latex"])
    assert not list((tmp_path / "precious").iterdir())


def test_links_in_the_report_folder_are_replaced_and_not_followed(run, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (run / "report").mkdir()
    for name in ("report.tex", "report.docx", "claim.csv", "04-odd-20--23-1.pdf", "04_odd-20--23-1.pdf"):
        (run / "report" / name).symlink_to(precious)
    (run / "index.html").symlink_to(precious)
    report.write(run)
    assert precious.read_text() == "precious" and not (run / "report" / "report.tex").is_symlink()


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"x", b"\x89PNG", _png(0, 0), _png(60_000, 60_000), _png(10_000, 10_000)])
def test_a_picture_that_cannot_be_shown_is_left_out_with_a_sentence(run, content):
    (run / "figures" / "04_roc.png").write_bytes(content)
    (run / "figures" / "04_roc.pdf").write_bytes(b"no PDF")
    report.write(run)
    words = "The picture of this figure, 04_roc, is missing or cannot be read."
    word = docx.Document(str(run / "report" / "report.docx"))
    assert words in (run / "index.html").read_text("utf-8") and "04_roc.png" not in (run / "index.html").read_text()
    assert words.replace("_", r"\_") in (run / "report" / "report.tex").read_text("utf-8")
    assert words in [paragraph.text for paragraph in word.paragraphs] and len(word.inline_shapes) == 2


def test_characters_that_no_format_can_hold_are_replaced_in_all_of_them(run):
    bad = "a\x00b\x0bc\x1bd\ud800e\uffff \u00a0f"
    side = run / "figures" / "04_roc.json"
    side.write_text(json.dumps(json.loads(side.read_text()) | {"caption": bad}))
    record = json.loads((run / "run.json").read_text())
    record["started"] = bad + "x" * 300
    record["parameters"]["data"] = record["stages"][0]["status"] = bad
    (run / "run.json").write_text(json.dumps(record))
    book = {"cells": [{"source": [f"# 04 · {bad}\n**{bad}?**"]}]}
    (run / "04_evaluation.ipynb").write_text(json.dumps(book))
    assert len(report.write(run)) == 8
    for text in ((run / "index.html").read_text("utf-8"), docx.Document(str(run / "report" / "report.docx"))):
        text = text if isinstance(text, str) else "\n".join(paragraph.text for paragraph in text.paragraphs)
        assert "a\ufffdb\ufffdc\ufffdd\ufffde\ufffd \u00a0f" in text and "\x00" not in text
