"""Notebooks run with their parameters, fail with a clear message, and leave pages that need no network."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nbformat
import psutil
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lungkit import config, notebooks
from lungkit.errors import LungkitError
from lungkit.study import provenance
from lungkit.training import exhibits

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))
PIPELINE = [file for file in COMMITTED if file.stem != "app"]  # the clinic's page takes no parameters


def _write(file: Path, *cells: str, parameters: str = "data = 'phantom'\nreport = ''") -> Path:
    """A small notebook: a title, its parameters, and code cells."""
    marked = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    document = new_notebook(cells=[new_markdown_cell(f"# {file.stem}"), marked, *map(new_code_cell, cells)])
    document.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(document, file)
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty notebooks folder in the place of the project's."""
    made = tmp_path / "notebooks"
    made.mkdir()
    monkeypatch.setattr(config, "notebooks_dir", lambda: made)
    return made


@pytest.fixture
def three(folder) -> list[Path]:
    names = ("01_first.ipynb", "02_second.ipynb", "03_third.ipynb")
    return [_write(folder / name, "print('ran')") for name in names]


# --- which notebooks


def test_all_selects_every_numbered_notebook_in_order(three, folder):
    _write(folder / "scratch.ipynb")
    assert notebooks.select(["all"]) == three


def test_numbers_select_notebooks_in_order_and_once(three):
    assert notebooks.select(["03", "01", "03"]) == [three[0], three[2]]


@pytest.mark.parametrize(("which", "named"), [(["07"], "07"), (["01", "x", "07"], "x, 07"), ([], "given")])
def test_an_unknown_notebook_is_refused_with_those_there_are(three, which, named):
    with pytest.raises(LungkitError, match=f"no notebook {named}; there are: all, 01, 02, 03"):
        notebooks.select(which)


# --- parameters


def test_an_unknown_parameter_is_refused_by_name_before_anything_runs(three, tmp_path):
    with pytest.raises(LungkitError, match="no parameter colour, size; there are: data, report"):
        notebooks.run(three, {"size": 3, "colour": "red"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# About 4 s: two kernels start.
def test_each_notebook_gets_what_it_knows_and_the_version_of_this_run_and_the_pages_escape_it(folder, tmp_path):
    known = "data = 'phantom'\nreport = ''\nmodel_name = ''"
    show = "from pathlib import Path\nPath(report, f'{data[:1]}{profile}.txt').write_text(f'{data}|{profile}')"
    no_sockets = "import os\nassert all(file.endswith('.ipynb') for file in os.listdir()), os.listdir()"
    register = "assert model_name == 'two'\nPath(report, 'registered.json').write_text('{\"version\": \"two@v1\"}')"
    first = _write(folder / "01_first.ipynb", show, register, parameters=f"{known}\nprofile = 'quick'")
    its_data = "assert data == 'a<b>x' and 'profile' not in dir()"
    later = "assert model_name == 'two@v1', model_name"
    second = _write(folder / "02_second.ipynb", its_data, later, no_sockets, parameters=known)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "registered.json").write_text('{"version": "two@v9"}')  # an earlier run's
    given = {"data": "a<b>x", "profile": "full", "model_name": "two"}
    run = notebooks.run([first, second], given, tmp_path / "run")
    assert (run.folder / "afull.txt").read_text() == "a<b>x|full"
    assert [(stage.name, stage.status) for stage in run.stages] == [("01_first", "done"), ("02_second", "done")]
    assert all(stage.seconds > 0 for stage in run.stages)
    assert provenance.RunRecord.open(run.folder).stages == tuple(run.stages)
    index = run.index.read_text()
    assert "a&lt;b&gt;x" in index
    assert "<b>x" not in index
    assert 'href="01_first.html"' in index
    assert 'href="02_second.html"' in index
    assert nbformat.read(folder / "01_first.ipynb", 4).cells[2].outputs == [], "the notebook itself is not touched"
    assert {file.suffix for file in folder.iterdir()} == {".ipynb"}


# --- pages

LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'\s>]+""")
IMPORTED = re.compile(r"""@import|url\(\s*["']?(?:https?:)?//|\bimport\s*\(?["']https?:|importScripts""")


# About 3 s: a kernel starts.
def test_the_pages_load_nothing_from_the_network(folder, tmp_path):
    cells = (
        "import base64\nfrom IPython.display import HTML, Image, Markdown\nMarkdown('$x^2$ and `code`')",
        "from lungkit import progress\nfor _ in progress.bar(range(3), label='counting'): pass",
        'from IPython.display import SVG\nSVG(\'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\')',
    )
    notebook = _write(folder / "01_first.ipynb", *cells)
    run = notebooks.run([notebook], {}, tmp_path / "run")
    for page in (run.index, run.folder / "01_first.html"):
        text = page.read_text()
        assert LOADED.findall(text) == [], page.name
        assert IMPORTED.findall(text) == [], page.name
    executed = nbformat.read(run.folder / "01_first.ipynb", 4)
    (bar,) = next(cell for cell in executed.cells if "progress" in cell.source).outputs
    assert bar.output_type == "display_data"
    assert "3/3" in bar.data["text/plain"]
    assert set(bar.data) == {"text/plain"}, "a widget's page would load scripts"


def _page_of(folder: Path, name: str, *cells) -> str:
    """The HTML page of a notebook that is not executed."""
    document = new_notebook(cells=list(cells))
    nbformat.write(document, folder / f"{name}.ipynb")
    return notebooks.write_html(folder / f"{name}.ipynb").read_text()


def test_a_page_folds_the_solution_of_an_exercise_and_nothing_else(tmp_path):
    solution = new_code_cell("answer = 42", metadata={"tags": ["exercise", "hide-cell"]})
    text = _page_of(tmp_path, "01_first", new_markdown_cell("Question?"), solution, new_code_cell("other = 1"))
    assert text.count("<details") == 1
    folded = text[text.index("<details") : text.index("</details>")]
    assert "<summary>Show the solution</summary>" in folded
    assert "42" in folded
    assert "Question?" not in folded and "other" not in folded
    assert LOADED.findall(text) == []


NAV = "[← 01 First](01_first.ipynb) · [all notebooks](../docs/notebooks.md) · [03 Third →](03_third.ipynb)"


def test_links_between_notebooks_lead_to_pages_as_soon_as_they_are_written(tmp_path):
    alone = _page_of(tmp_path, "02_second", new_markdown_cell(NAV))
    assert "<a href" not in alone.replace('<a href="#', "") and "← 01 First" in alone, "no link to what is not there"
    _page_of(tmp_path, "03_third", new_markdown_cell("# three"))
    linked = (tmp_path / "02_second.html").read_text()
    assert '<a href="03_third.html">03 Third →</a>' in linked
    assert '<a href="01_first' not in linked
    (tmp_path / "index.html").write_text("<title>report</title>")
    _page_of(tmp_path, "04_fourth", new_markdown_cell("# four"))
    assert '<a href="index.html">all notebooks</a>' in (tmp_path / "02_second.html").read_text()


def test_a_link_into_the_readme_leads_to_the_index_of_the_run_too(tmp_path):
    (tmp_path / "index.html").write_text("<title>report</title>")
    text = _page_of(
        tmp_path,
        "01_first",
        new_markdown_cell(
            "[all](../README.md#notebooks), [a word](../docs/glossary.md#auc), [a paper](https://doi.org/1)"
        ),
    )
    assert '<a href="index.html">all</a>' in text
    assert "https://doi.org/1" in text
    assert "a word</a>" in text and "glossary.md" not in text, "the guides are not in a run's folder"


def test_the_pattern_for_loaded_addresses_finds_them():
    assert LOADED.search('<script defer src="https://cdn.example/x.js">')
    assert LOADED.search("<link rel=stylesheet href='//fonts.example/a'>")
    assert not LOADED.search('<a href="https://example.org">a link is not loaded</a>')


def _run_with(folder: Path, record: dict | None = None) -> notebooks.Run:
    if record:
        (folder / "evaluation.json").write_text(json.dumps(record))
    return notebooks.Run(folder, {"data": "phantom"}, [provenance.Stage("01_first", 1.2, "done")])


RECORD = {
    "model": "m@v3", "data": "set", "split": "test", "synthetic": True, "classes": ["a", "b"], "n": 90, "patients": 17,
    "accuracy": 0.7116, "balanced_accuracy": 0.61, "auc": 0.7, "largest_class": {"class": "b", "share": 0.768},
    "intervals": {"accuracy": [0.6514, 0.76], "balanced_accuracy": [0.5, 0.7], "auc": [0.6, 0.8]},
}  # fmt: skip


def test_the_headline_sets_the_accuracy_next_to_the_largest_class(tmp_path):
    run = _run_with(tmp_path, RECORD)
    sentence = notebooks.headline(run.folder)
    assert sentence == (
        "m@v3 on set (synthetic phantom), test split: accuracy 0.712 (0.651–0.760), where always answering 'b' gives "
        "0.768; balanced accuracy 0.610 (0.500–0.700), by chance 0.500; AUC 0.700 (0.600–0.800); 90 images of "
        "17 patients"
    )


def test_the_headline_does_without_an_interval_where_there_is_one_patient(tmp_path):
    run = _run_with(tmp_path, RECORD | {"intervals": {"accuracy": [None, None]}, "synthetic": False})
    assert "m@v3 on set, test split: accuracy 0.712, where always" in notebooks.headline(run.folder)


def test_without_an_evaluation_there_is_no_headline(tmp_path):
    assert notebooks.headline(tmp_path) == ""


# --- failures


# About 4 s: two kernels start.
def test_a_failing_cell_names_notebook_cell_reason_and_copy_and_the_index_lists_it(folder, tmp_path):
    first = _write(folder / "01_first.ipynb", "print('ran')")
    second = _write(folder / "02_second.ipynb", "x = 1", "raise ValueError('no <such> image')", "print('after')")
    third = _write(folder / "03_third.ipynb", "print('ran')")
    with pytest.raises(notebooks.NotebookFailed) as caught:
        notebooks.run([first, second, third], {}, tmp_path / "run")
    message = str(caught.value)
    page = tmp_path / "run" / "02_second.html"
    # Cell 1 holds the parameters, 2 those that were given, 3 is "x = 1".
    assert message.startswith("02_second.ipynb stopped in its code cell 4: ValueError: no <such> image\n")
    assert str(page) in message
    assert "no &lt;such&gt; image" in page.read_text()
    index = (tmp_path / "run" / "index.html").read_text()
    assert '<td class="failed">ValueError: no &lt;such&gt; image</td>' in index
    assert index.count(">done</td>") == 1
    assert "03_third" not in index
    assert not (tmp_path / "run" / "03_third.ipynb").exists()


def test_a_kernel_that_dies_is_reported_like_a_failing_cell(folder, tmp_path):
    notebook = _write(folder / "01_first.ipynb", "import os\nos._exit(9)")
    with pytest.raises(notebooks.NotebookFailed, match=r"01_first\.ipynb stopped .*memory"):
        notebooks.run([notebook], {}, tmp_path / "run")
    assert "memory" in (tmp_path / "run" / "index.html").read_text()


def test_a_run_without_a_folder_gets_one_named_by_its_data_under_the_reports(folder, monkeypatch):
    notebook = _write(folder / "01_first.ipynb")
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: None)
    run = notebooks.run([notebook], {"data": "/somewhere/my set"})
    assert run.folder.parent == config.reports_dir()
    assert re.fullmatch(r"\d{8}-\d{6}-my set", run.folder.name)
    assert "Run on my set" in run.index.read_text()


def test_two_runs_that_begin_in_the_same_second_have_a_folder_each(folder, monkeypatch):
    notebook = _write(folder / "01_first.ipynb")
    monkeypatch.setattr(notebooks, "datetime", _Stopped)
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: None)
    made = [notebooks.run([notebook], {"data": "/somewhere/set", "report": ""}).folder.name for _ in range(3)]
    assert made == ["20261128-024116-set", "20261128-024116-set-2", "20261128-024116-set-3"]


class _Stopped(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 28, 2, 41, 16)


def test_a_run_on_data_with_the_longest_name_has_a_folder(folder, monkeypatch):
    notebook = _write(folder / "01_first.ipynb")
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: None)
    run = notebooks.run([notebook], {"data": f"/somewhere/{'ä' * 127}"})
    assert run.index.is_file()


def test_the_index_shows_the_figures_that_the_notebooks_left(folder, tmp_path, monkeypatch):
    notebook = _write(folder / "01_first.ipynb")
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: exhibits.figure(Figure(), tmp_path, "01 #1", "50 % < all"))
    index = notebooks.run([notebook], {}, tmp_path).index.read_text()
    assert 'src="figures/01%20%231.png"' in index
    assert '<span class="label">Figure 1.</span> 50 % &lt; all.' in index


def test_a_report_that_cannot_be_written_costs_the_page_and_not_the_run(folder, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise KeyError("accuracy")

    notebook = _write(folder / "01_first.ipynb")
    monkeypatch.setattr(notebooks, "_papermill", lambda *_: None)
    monkeypatch.setattr(notebooks.report, "index", refuse)
    run = notebooks.run([notebook], {}, tmp_path / "run")
    assert [stage.status for stage in run.stages] == ["done"]
    assert "the report could not be written, KeyError: 'accuracy'" in capsys.readouterr().out


# --- Ctrl-C, and a system that refuses


# About 4 s: a kernel starts.
def test_ctrl_c_ends_kernel_and_command_with_one_line(folder, tmp_path):
    note = "print(os.getpid(), file=open(report + '/pid', 'w'))\ntime.sleep(99)"
    known = "data = 'phantom'\nprofile = 'quick'\nreport = ''"
    _write(folder / "01_first.ipynb", "import os, time", note, parameters=known)
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        command = subprocess.Popen(
            [sys.executable, "-c", "from lungkit import cli; cli.main()", "run", "01"],
            env=os.environ | {"LUNGKIT_HOME": str(folder.parent), "PYTHONPATH": str(ROOT)},
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    pid = _within_a_minute(lambda: next(tmp_path.glob("reports/*/pid"), None))
    kernel = psutil.Process(int(_within_a_minute(pid.read_text)))
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait(30) == 130
    assert not kernel.is_running()
    last = shown.read_text().splitlines()[-1]
    assert last.endswith("interrupted; the same command continues a search or a training where it stopped")
    assert not re.search("Traceback|Error|died", shown.read_text())
    (index,) = config.reports_dir().glob("*/index.html")
    assert '<td class="failed">interrupted</td>' in index.read_text()


def _within_a_minute(look):
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def test_a_copy_that_cannot_be_written_is_an_error_and_no_half_copy_is_left(folder, tmp_path):
    notebook = _write(folder / "01_first.ipynb", "print('x')")
    run = tmp_path / "run"
    (run / "01_first.ipynb").mkdir(parents=True)  # a folder stands where the copy should go
    with pytest.raises(IsADirectoryError, match=r"01_first\.ipynb"):
        notebooks.run([notebook], {}, run)
    assert "it is a folder, not a file" in (run / "index.html").read_text()
    assert not (run / "01_first.html").exists()


# --- the committed notebooks, executed in place


def test_refreshing_leaves_the_committed_metadata_and_no_trace_of_papermill(folder):
    notebook = _write(folder / "01_first.ipynb", "print(6 * 7)")
    before = nbformat.read(notebook, 4)
    notebooks.refresh(notebook)
    after = nbformat.read(notebook, 4)
    assert after.metadata == before.metadata
    assert [cell.metadata for cell in after.cells] == [cell.metadata for cell in before.cells]
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert after.cells[2].outputs[0].text == "42\n"
    assert "papermill" not in notebook.read_text()
    assert [file.name for file in folder.iterdir()] == [notebook.name]


def test_a_notebook_that_fails_while_it_is_refreshed_is_left_as_it_was(folder):
    notebook = _write(folder / "01_first.ipynb", "print(6 * 7)", "1 / 0")
    before = notebook.read_bytes()
    with pytest.raises(notebooks.NotebookFailed, match="ZeroDivisionError"):
        notebooks.refresh(notebook)
    assert notebook.read_bytes() == before


def test_there_are_eleven_numbered_notebooks():
    assert [file.name[:2] for file in PIPELINE] == [f"{number:02}" for number in range(1, 12)]


def _code(document) -> list:
    return [cell for cell in document.cells if cell.cell_type == "code"]


def _outputs(document) -> list:
    return [output for cell in _code(document) for output in cell.outputs]


def _texts(document) -> list[str]:
    """What a person can read in a notebook: sources and textual outputs, no encoded pictures."""
    found = [cell.source for cell in document.cells]
    for output in _outputs(document):
        found.append(output.get("text", ""))
        found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return found


@pytest.fixture(params=COMMITTED, ids=lambda file: file.stem)
def committed(request):
    return nbformat.read(request.param, 4)


# About 5 s each: a kernel starts.
@pytest.mark.parametrize("number", ["04", "05", "10", "11"])
def test_without_a_model_a_notebook_says_at_once_what_to_run(number, tmp_path):
    (notebook,) = [file for file in PIPELINE if file.name.startswith(number)]
    with pytest.raises(notebooks.NotebookFailed) as caught:
        notebooks.run([notebook], {"profile": "quick"}, tmp_path / "run")
    plain = "ModelMissing: no model was trained on phantom-600 yet: run notebook 03 first (`lungkit run 03`)"
    assert plain in str(caught.value)
    assert not config.data_dir().exists(), "nothing was made or read before"
    (error,) = [o for o in _outputs(nbformat.read(tmp_path / "run" / notebook.name, 4)) if o.output_type == "error"]
    assert error.traceback == [plain], "one plain sentence, no traceback"


@pytest.mark.parametrize("file", PIPELINE, ids=lambda file: file.stem)
def test_a_committed_notebook_knows_the_parameters_of_every_run(file):
    assert notebooks.parameter_names(file) >= {"data", "profile", "seed", "report"}


def test_a_committed_notebook_has_no_long_code_cell(committed):
    assert [cell.source for cell in _code(committed) if len(cell.source.splitlines()) > 25] == []


def test_a_committed_notebook_has_run_from_top_to_bottom(committed):
    cells = [cell for cell in _code(committed) if cell.source]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


def test_a_committed_notebook_shows_no_error_and_no_warning(committed):
    assert [o for o in _outputs(committed) if o.output_type == "error" or o.get("name") == "stderr"] == []


def test_a_committed_notebook_names_no_place_on_the_machine_it_ran_on(committed):
    place = re.compile(r"(?<![\w.:/<])(?:/[\w.-]+){2,}|[A-Z]:\\\\?\w+|file://")
    assert [match for text in _texts(committed) for match in place.findall(text)] == []
    assert not any(str(Path.home()) in text for text in _texts(committed) if len(Path.home().parts) > 2)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_a_committed_notebook_is_small_enough_to_review(file):
    assert file.stat().st_size < 1.5e6
    assert "papermill" not in file.read_text()
