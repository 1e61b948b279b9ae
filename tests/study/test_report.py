"""`lungkit report`: which run, which formats, which files."""

import os

import pytest
from typer.testing import CliRunner

from lungkit import cli, config
from lungkit.errors import LungkitError
from lungkit.study import report
from lungkit.study.provenance import RunRecord


def test_a_run_is_found_by_its_folder_its_name_and_as_the_latest(run, tmp_path):
    other = config.reports_dir() / "two"
    other.mkdir()
    RunRecord.of("2026-11-30T14:00:00+00:00", {}, ()).save(other)
    os.utime(other / "run.json", (2e9, 2e9))
    assert report.find(str(run)) == report.find("one") == run
    assert report.find("latest") == other


@pytest.mark.parametrize(("name", "says"), [("three", "no run three: give a folder"), ("latest", "there is no run")])
def test_a_run_that_is_not_there_is_refused(name, says):
    with pytest.raises(LungkitError, match=says):
        report.find(name)


def test_an_unknown_format_is_refused_with_those_there_are(run):
    with pytest.raises(LungkitError, match="no format pdf; there are: html, docx, latex, all"):
        report.write(run, ["pdf"])


def test_all_formats_are_written_and_the_page_links_to_the_others(run):
    written = {str(file.relative_to(run)) for file in report.write(run)}
    assert written == {
        "index.html", "report/report.docx", "report/report.tex", "report/tripod-ai.csv", "report/claim.csv",
        "report/datasheet.csv", "report/croissant.json", "report/images.csv",
    }  # fmt: skip
    page = (run / "index.html").read_text("utf-8")
    for file in ("report/report.docx", "report/report.tex", "report/claim.csv", "report/croissant.json"):
        assert f'href="{file}"' in page


def test_the_same_run_gives_the_same_page_and_source(run):
    report.write(run, ["html", "latex"])
    before = [(run / name).read_bytes() for name in ("index.html", "report/report.tex", "report/croissant.json")]
    report.write(run, ["html", "latex"])
    assert before == [
        (run / name).read_bytes() for name in ("index.html", "report/report.tex", "report/croissant.json")
    ]


def test_the_command_names_the_files_that_it_wrote(run):
    made = CliRunner().invoke(cli.app, ["report", "one", "--format", "html"], catch_exceptions=False)
    assert made.exit_code == 0
    assert "index.html" in made.output and "claim.csv" in made.output and "report.docx" not in made.output


def test_the_command_refuses_an_unknown_format(run):
    with pytest.raises(LungkitError, match="--format pdf: accepted are html, docx, latex and all"):
        CliRunner().invoke(cli.app, ["report", "one", "--format", "pdf"], catch_exceptions=False)
