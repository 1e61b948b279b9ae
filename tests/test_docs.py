"""The documentation: short at the front, complete in its reference, and without a link that leads nowhere."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import typer

from lungkit import cli
from tests.shipped import SHIPPED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("bench", "data", "artifacts", "reports")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """docs/generated/ as `make docs` writes it, in a folder of the test."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.GENERATED = tmp_path_factory.mktemp("docs") / "generated"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(ROOT / "artifacts"))
        generate.write()
    return generate.GENERATED


def _commands(command, path: str = "lungkit"):
    """(name as it is typed, command) of every command that does something."""
    below = getattr(command, "commands", None)
    if not below:
        yield path, command
        return
    for name, sub in below.items():
        yield from _commands(sub, f"{path} {name}")


def _anchors(page: Path) -> set[str]:
    """The anchors that the headings of a Markdown page make."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def _toctree_entries(text: str) -> list[str]:
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]


def test_the_readme_is_short_and_begins_with_a_picture_and_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    start = "\n".join(lines[:25])
    assert "![" in start and "make demo" in start and "make test" in start


def test_the_command_reference_shows_every_command_and_every_option(generated):
    reference = (generated / "commands.md").read_text(encoding="utf-8")
    commands = dict(_commands(typer.main.get_command(cli.app)))
    assert len(commands) > 15
    for path, command in commands.items():
        section = re.search(rf"^#+ {path}\n(.*?)(?=^#+ |\Z)", reference, re.MULTILINE | re.DOTALL)
        assert section, path
        for parameter in command.params:
            shown = max(parameter.opts, key=len)
            assert re.search(rf"`{re.escape(shown)}\b", section[1]), f"{path}: {shown}"


def _typed_commands(text: str) -> list[str]:
    """Every `lungkit …` that a page tells its reader to type."""
    blocks = re.findall(r"^```(\S*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    typed = "\n".join(block for language, block in blocks if language in ("", "console"))
    spans = re.findall(r"`(lungkit [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [*re.findall(r"^\$? ?(lungkit [a-z].*)$", typed, re.MULTILINE), *spans]


EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@EACH_PAGE
def test_what_a_page_tells_its_reader_to_type_is_a_command_with_these_options(page):
    commands = dict(_commands(typer.main.get_command(cli.app)))
    for typed in _typed_commands(page.read_text(encoding="utf-8")):
        words = typed.split()
        path = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in commands), None)
        if typed in ("lungkit --help", "lungkit COMMAND --help"):
            continue
        assert path, f"{page.name}: {typed}"
        options = {option for parameter in commands[path].params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, f"{page.name}: {typed}"


@EACH_PAGE
def test_modules_and_functions_that_a_page_names_exist(page):
    for name in re.findall(r"`(lungkit(?:\.\w+)+)`", page.read_text(encoding="utf-8")):
        path, owner = ROOT.joinpath(*name.split(".")), ROOT.joinpath(*name.split(".")[:-1])
        if path.is_dir() or path.with_suffix(".py").exists():
            continue
        source = owner.with_suffix(".py") if owner.with_suffix(".py").exists() else owner / "__init__.py"
        assert re.search(rf"^(def|class) {path.name}\b|^{path.name}\b", source.read_text(), re.MULTILINE), name


@EACH_PAGE
def test_internal_links_lead_somewhere(page, generated):
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = generated / path.removeprefix("generated/") if path.startswith("generated/") else page.parent / path
        file = page if not path else file
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page.name} links to {target}"


def test_every_page_is_in_a_table_of_contents(generated):
    pages = {path.stem for path in DOCS.glob("*.md")}
    listed = {entry for path in DOCS.glob("*.md") for entry in _toctree_entries(path.read_text(encoding="utf-8"))}
    assert pages - listed == {"index"}
    made = {
        path.relative_to(generated).with_suffix("").as_posix()
        for path in generated.rglob("*.*")
        if path.suffix != ".inc"
    }
    index = _toctree_entries((generated / "api" / "index.md").read_text(encoding="utf-8"))
    by_name = {entry.removeprefix("generated/") for entry in listed} | {f"api/{entry}" for entry in index}
    assert {path for path in made if path not in by_name and f"{path.rpartition('/')[0]}/*" not in by_name} == set()


def test_every_notebook_and_every_shipped_model_has_a_page(generated):
    notebooks = {path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {path.name for path in (generated / "notebooks").iterdir()} == notebooks
    assert {path.stem for path in (generated / "models").iterdir()} == set(SHIPPED)
    table = (generated / "models-table.inc").read_text(encoding="utf-8")
    assert all(f"{name}@v" in table for name in SHIPPED)


def test_links_of_the_notebooks_lead_to_pages_of_the_documentation(generated):
    """docs/generated/notebooks/ is where the copies are; the guides are two folders up."""
    for notebook in (generated / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for target in LINK.findall(text):
            if re.match(r"[a-z]+:", target):
                continue
            path = target.partition("#")[0]
            file = DOCS / path.removeprefix("../../") if path.startswith("../../") else notebook.parent / path
            assert file.is_file(), f"{notebook.name} links to {target}"


def test_every_public_function_of_the_described_packages_is_in_the_api_reference(generated):
    for page in (generated / "api").glob("lungkit*.md"):
        module = ROOT.joinpath(*page.stem.split("."))
        source = module.with_suffix(".py") if module.with_suffix(".py").exists() else module / "__init__.py"
        public = [
            node.name
            for node in ast.parse(source.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        text = page.read_text(encoding="utf-8")
        assert public and all(re.search(rf"\{{py:\w+\}} {name}\b", text) for name in public), page.stem
    assert {"lungkit.data.splits", "lungkit.training.evaluation", "lungkit.clinic.predictor"} <= {
        page.stem for page in (generated / "api").glob("*.md")
    }
