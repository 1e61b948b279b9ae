"""Run the numbered notebooks: executed copies, an HTML page of each, and the run's report as index.html."""

import itertools
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import lungkit.unneeded  # noqa: F401
from lungkit.interrupts import ignored

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from lungkit import config, files, terminal
from lungkit.errors import LungkitError
from lungkit.study import report
from lungkit.study.provenance import RunRecord, Stage

_LIVE = "application/vnd.jupyter.widget-view+json"  # as in lungkit.explore.shown, which needs ipywidgets
EXERCISE = "exercise"  # tag of the cells of an exercise and of its solution


class NotebookFailed(LungkitError):
    """A cell raised, or its Python process died; the message names notebook, cell and reason."""

    def __init__(self, notebook: Path, where: str, reason: str, page: Path | None):
        shown = f"\nThe executed copy shows where: {page}" if page else ""
        super().__init__(f"{notebook.name} stopped in {where}: {reason}{shown}")
        self.reason = reason


@dataclass
class Run:
    """A run: its folder, its parameters, and what became of each notebook."""

    folder: Path
    parameters: dict[str, Any]
    stages: list[Stage] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    @property
    def index(self) -> Path:
        """The page to open first."""
        return self.folder / "index.html"


def select(which: list[str]) -> list[Path]:
    """The numbered notebooks that `which` names, in order: ["all"], or numbers such as ["01", "03"]."""
    there_are = {file.name[:2]: file for file in sorted(config.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))}
    if which == ["all"] and there_are:
        return list(there_are.values())
    unknown = [number for number in which if number not in there_are]
    if unknown or not which:
        listed = f"there are: {', '.join(['all', *there_are])}" if there_are else "there is none"
        raise LungkitError(f"no notebook {', '.join(unknown) or 'given'}; {listed} in {config.notebooks_dir()}")
    return [there_are[number] for number in sorted(set(which))]


def parameter_names(notebook: Path) -> set[str]:
    """The names in the notebook's cell tagged `parameters`."""
    return set(papermill.inspect_notebook(str(notebook)))


def run(notebooks: list[Path], parameters: dict[str, Any], folder: Path | None = None, exercises: bool = False) -> Run:
    """Execute `notebooks` in order with papermill, each with those of `parameters` that it knows.

    The executed copies, an HTML page of each and index.html go to `folder` (default: a new one, named by time and
    data set, under the reports folder), and so do the figures and tables of the notebooks. The first cell that raises
    ends the run with NotebookFailed; the pages until then stay readable. A parameter that none of the notebooks knows
    is refused by name before anything runs.

    exercises: also run the exercises' solutions, which are for learners and not part of a study.
    """
    known = {notebook: parameter_names(notebook) for notebook in notebooks}
    everything = set().union(*known.values())
    if unknown := sorted(parameters.keys() - everything):
        raise LungkitError(f"no parameter {', '.join(unknown)}; there are: {', '.join(sorted(everything))}")
    if folder is None:
        folder = _new_folder(Path(str(parameters.get("data", "phantom"))).name)
    folder.mkdir(parents=True, exist_ok=True)
    result = Run(folder, parameters)
    kept = Path(parameters.get("report") or folder)
    (kept / config.REGISTERED).unlink(missing_ok=True)  # an earlier run's
    for notebook in notebooks:
        given = parameters | {"report": str(kept)}
        if record := _record(kept):  # the next notebooks take the version that this run registered
            given["model_name"] = record["version"]
        own = {name: value for name, value in given.items() if name in known[notebook]}
        _execute(notebook, own, result, exercises)
    return result


def _new_folder(data: str) -> Path:
    """A new folder under the reports folder, even if another run begins in the same second."""
    name = files.cut_name(f"{datetime.now():%Y%m%d-%H%M%S}-{data}", 200)
    config.reports_dir().mkdir(parents=True, exist_ok=True)
    folder = config.reports_dir() / name
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = config.reports_dir() / f"{name}-{number}"
    return folder


def standing(result: Run) -> str:
    """Whether the version that this run registered is active, and why; empty if it registered none."""
    return _record(Path(result.parameters.get("report") or result.folder)).get("says", "")


def _record(folder: Path) -> dict[str, str]:
    """What release.register recorded in this folder; empty if it recorded nothing."""
    path = folder / config.REGISTERED
    record: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return record


def _execute(notebook: Path, parameters: dict[str, Any], result: Run, exercises: bool) -> None:
    started = time.perf_counter()
    status = "interrupted"
    try:
        _papermill(notebook, result.folder / notebook.name, parameters, exercises)
        status = "done"
    except NotebookFailed as failure:
        status = failure.reason
        raise
    except OSError as refused:
        status = terminal.refusal(refused)
        raise
    finally:
        result.stages.append(Stage(notebook.stem, round(time.perf_counter() - started, 1), status))
        RunRecord.of(result.started, result.parameters, tuple(result.stages)).save(result.folder)
        _report(result)


def _papermill(notebook: Path, copy: Path, parameters: dict[str, Any], exercises: bool = True) -> None:
    """Execute `notebook` into `copy`, with an HTML page next to it. Raises NotebookFailed if a cell fails."""

    def execute() -> None:
        # The kernel communicates through files that only this user can reach, not through open ports.
        with tempfile.TemporaryDirectory(prefix="lungkit-") as temporary:
            document = nbformat.read(notebook, 4)
            if not exercises:
                document.cells = [c for c in document.cells if EXERCISE not in c.metadata.get("tags", ())]
            given = Path(temporary) / notebook.name
            nbformat.write(document, given)
            papermill.execute_notebook(
                str(given),
                str(copy),
                parameters,
                cwd=str(notebook.parent),
                progress_bar={"desc": f"{notebook.stem:18}"},
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{temporary}/kernel"}}),
            )

    try:
        failed = _in_thread(execute)
        with suppress(FileNotFoundError):  # nothing was executed
            _keep_stills(copy)
    finally:
        unwritten = _page(copy)
    page = None if unwritten else copy.with_suffix(".html")
    match failed:
        case PapermillExecutionError():
            where, reason = f"its code cell {failed.exec_count}", f"{failed.ename}: {failed.evalue}"
            raise NotebookFailed(notebook, where, reason, page)
        case DeadKernelError():
            reason = "its Python process ended without a message; most often there was not enough memory"
            raise NotebookFailed(notebook, "a cell", reason, page)
    if error := failed or unwritten:
        raise error


def _keep_stills(copy: Path) -> None:
    """Leave the still picture of each widget (lungkit.explore) alone: its live view ended with the kernel."""
    document = nbformat.read(copy, 4)
    document.metadata.pop("widgets", None)
    for output in (output for cell in document.cells for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            output.data.pop(_LIVE, None)
    nbformat.write(document, copy)


def _page(copy: Path) -> Exception | None:
    """Write the page of an executed copy, or return the error. Half a copy, as a full disk leaves it, is removed."""
    try:
        write_html(copy)
    except FileNotFoundError as error:  # nothing was executed
        return error
    except (OSError, ValueError) as error:
        with suppress(OSError):
            copy.unlink(missing_ok=True)
        return error
    return None


def _in_thread(work: Callable[[], None]) -> BaseException | None:
    """Do `work` in a thread, and return what it raised. Ctrl-C ends the processes that it started, and is raised.

    In the main thread, Jupyter's client handles Ctrl-C itself: it closes the connection to the kernel, and the errors
    that follow hide that a person stopped the work.
    """
    before = _children()
    future = ThreadPoolExecutor(1).submit(work)
    try:
        return future.exception()
    except KeyboardInterrupt:
        with ignored():
            logging.disable()  # the kernel ends on purpose
            while not future.done():
                for process in _children() - before:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                wait([future], 0.2)
            logging.disable(logging.NOTSET)
        raise


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


# A solution is folded; `super()` is the cell as nbconvert's own template writes it.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{%- block codecell -%}
{%- if 'hide-cell' in cell.metadata.get('tags', []) -%}
<details class="solution"><summary>Show the solution</summary>
{{ super() }}
</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock codecell -%}
{%- block html_head_css -%}
{{ super() }}
<style>
 details.solution { margin: .5rem 0 1rem; border-left: 3px solid #dfe5ea; padding-left: .5rem }
 details.solution > summary { cursor: pointer; color: #00589c; padding: .25rem }
 a[data-page] { color: inherit; text-decoration: none }
</style>
{%- endblock html_head_css -%}
"""
_LINK = re.compile(r'<a href="(?:(\d\d_\w+)\.ipynb|\.\./(?:README|docs/([\w-]+))\.md(?:#[\w-]*)?)">')


def write_html(notebook: Path) -> Path:
    """Write an HTML page next to an executed notebook; it loads nothing from the network.

    Solutions of exercises are folded. A link to another notebook leads to its page, once that has been written.
    """
    exporter = HTMLExporter(theme="light", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.raw_template = _TEMPLATE
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = exporter.mermaid_js_url = ""
    document = nbformat.read(notebook, 4)
    body, _ = exporter.from_notebook_node(document, {"metadata": {"name": notebook.stem}})
    page = notebook.with_suffix(".html")
    files.replace(page, _LINK.sub(_mention, body))
    _link_pages(notebook.parent)
    return page


def _mention(link: re.Match[str]) -> str:
    """A link that leads nowhere from a run's folder, as one that `_link_pages` can bring back."""
    notebook, guide = link.groups()
    return f'<a data-page="{notebook or (guide if guide not in (None, "notebooks") else "index")}">'


def _link_pages(folder: Path) -> None:
    """Turn each mention of a page that is now there into a link to it, on every page of a run's folder."""
    pages = {page.stem for page in folder.glob("*.html")}
    for page in folder.glob("[0-9][0-9]_*.html"):
        text = page.read_text("utf-8")
        linked = re.sub(
            r'<a data-page="([\w-]+)">', lambda one: f'<a href="{one[1]}.html">' if one[1] in pages else one[0], text
        )
        if linked != text:
            files.replace(page, linked)


def refresh(notebook: Path) -> None:
    """Execute a notebook in place, as it is committed: its own parameters, no trace of papermill, time or machine.

    A notebook that fails stays as it was; its executed copy is in the report folder.
    """
    document = nbformat.read(notebook, 4)
    copy = config.report_folder() / notebook.name
    _papermill(notebook, copy, {})
    executed = nbformat.read(copy, 4)
    executed.metadata = document.metadata
    for cell, before in zip(executed.cells, document.cells, strict=True):
        cell.metadata = before.metadata
    nbformat.write(executed, notebook)


def headline(folder: Path) -> str:
    """One sentence with the test result of notebook 04 in `folder`; empty if it did not run."""
    record = folder / "evaluation.json"
    if not record.is_file():
        return ""
    from lungkit.training import sentences

    return sentences.headline(json.loads(record.read_text("utf-8")))


def _report(result: Run) -> None:
    """Write the run's report. What is wrong with it costs the page, not the run, which may have taken hours."""
    try:
        report.index(result.folder)
        _link_pages(result.folder)
    except OSError:
        raise
    except Exception as error:
        terminal.say(
            f"the report could not be written, {type(error).__name__}: {error}; the notebooks' pages are there"
        )
