"""The report as a page: everything escaped, nothing loaded from elsewhere, every link leads somewhere."""

import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

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


def test_a_report_elsewhere_shows_the_figures_of_the_folder_that_has_them(run, tmp_path):
    from lungkit.study.provenance import RunRecord, Stage

    other = tmp_path / "other"
    other.mkdir()
    RunRecord.of("2026-11-30T13:00:00+00:00", {"report": str(run)}, (Stage("04_evaluation", 1.0, "done"),)).save(other)
    sources = re.findall(r'<img src="([^"]+)"', report.index(other).read_text("utf-8"))
    assert sources and all((other / unquote(source)).is_file() for source in sources)
    assert not any(Path(source).is_absolute() for source in sources)
