"""Pages in docs/generated/, made from the project itself: commands, REST and Python API, model cards, notebooks.

The modules are parsed, not imported: `make docs` needs no TensorFlow for them.
"""

import ast
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "docs" / "generated"
# The packages that are described; the clinic's screens and its server are programs, not something to call.
API = {
    "lungkit": "Settings and errors",
    "lungkit.data": "Data",
    "lungkit.models": "Models",
    "lungkit.training": "Training",
    "lungkit.study": "Studies",
    "lungkit.explore": "Widgets of the notebooks",
    "lungkit.clinic": "Clinic",
    "lungkit.clinic.learning": "Learning from reviews",
    "lungkit.clinic.records": "Records of the clinic",
    "lungkit.gateway.objects": "DICOM objects that answer images",
}
NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name[0].isdigit()]


def setup(app) -> dict:
    """Sphinx calls this; the pages are written before it looks for them."""
    app.connect("config-inited", lambda *_: write())
    return {"parallel_read_safe": True}


def write() -> None:
    """Make all of docs/generated/ again."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    pages = {"commands": commands(), "rest": rest(), **api(), **cards()}
    for name, text in pages.items():
        page = GENERATED / (name if name.endswith(".inc") else f"{name}.md")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    (GENERATED / "notebooks").mkdir()
    for notebook in NOTEBOOKS:
        (GENERATED / "notebooks" / notebook.name).write_text(_linked(notebook.read_text(encoding="utf-8")), "utf-8")


def _linked(notebook: str) -> str:
    """A notebook whose links to the guides and to the README lead to pages of this documentation."""
    guides = re.sub(r"\(\.\./docs/([\w-]+\.md)", r"(../../\1", notebook)
    return re.sub(r"\(\.\./README\.md(?:#[\w-]*)?\)", "(../../notebooks.md)", guides)


# --- commands


def commands() -> str:
    """The command reference, from the help texts of the commands themselves."""
    import typer

    from lungkit.cli import app

    top = typer.main.get_command(app)
    intro = (
        "# Commands\n\n"
        "This page is made from the commands themselves; `lungkit COMMAND --help` prints the same text.\n"
        "`make setup` puts `lungkit` in `.venv/bin`.\n\n"
    )
    listed = [(path, command) for path, command in _commands(top, "lungkit") if not hasattr(command, "commands")]
    rows = "\n".join(
        f"| [`{path}`](#{path.replace(' ', '-')}) | {_first_sentence(command.help)} |" for path, command in listed
    )
    return f"{intro}| command | what it does |\n|---|---|\n{rows}\n\n" + "\n".join(
        _command(path, command) for path, command in _commands(top, "lungkit") if path != "lungkit"
    )


def _commands(command, path: str) -> Iterator[tuple[str, object]]:
    """(name as it is typed, command) of a command and of all below it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{path} {name}")


def _command(path: str, command) -> str:
    """A command's section: what it does, how it is typed, and each argument and option as its help shows it."""
    if hasattr(command, "commands"):
        return f"## {path}\n\n{command.help}\n"
    context = command.make_context(path, [], resilient_parsing=True)
    records = [record for part in command.params if (record := part.get_help_record(context))]
    usage = command.get_usage(context).removeprefix("Usage: ")
    rows = "".join(f"| `{_plain_type(name)}` | {_cell(meaning)} |\n" for name, meaning in records)
    table = f"| argument or option | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"{'#' * len(path.split())} {path}\n\n{command.help}\n\n```text\n{usage}\n```\n\n{table}"


def _plain_type(name: str) -> str:
    """`--workers <int range>` as people say it: `--workers NUMBER`."""
    words = {"str": "TEXT", "path": "PATH", "int": "NUMBER", "int range": "NUMBER", "float": "NUMBER"}
    return re.sub(r"<(?:list\[)?([a-z ]+)\]?>", lambda kind: words.get(kind[1], kind[1].upper()), name)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _first_sentence(text: str) -> str:
    return _cell(re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0])


# --- REST


def rest() -> str:
    """The reference of the gateway's REST API, from its own OpenAPI description."""
    from lungkit.clinic.records.store import Store
    from lungkit.gateway.app import make_app

    described = make_app(Store("sqlite:////never-opened/clinic.db")).openapi()
    intro = (
        "# REST API\n\nThis page is made from the description that a running gateway gives (OpenAPI "
        f"{described['openapi']}, at `/api/v1/openapi.json`).\n[The gateway](../gateway.md) says how to start it, and "
        f"shows each call with `curl`.\n\n{described['info']['description']}\n\n"
    )
    operations = [
        (method.upper(), path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    rows = "".join(f"| `{method} {path}` | {_cell(one.get('summary', ''))} |\n" for method, path, one in operations)
    parts = [f"{intro}| request | what it does |\n|---|---|\n{rows}"]
    parts += [_operation(*one) for one in operations]
    schemas = described["components"]["schemas"]
    parts += ["## Objects\n", *(_schema(name, schema) for name, schema in sorted(schemas.items()))]
    return "\n".join(parts)


def _operation(method: str, path: str, operation: dict) -> str:
    """A request's section: what may be sent, and every answer."""
    text = f"## {method} {path}\n\n{operation.get('summary', '')}. {operation.get('description', '')}\n\n"
    if fields := operation.get("parameters"):
        rows = "".join(
            f"| `{one['name']}` | {one['in']} | {_type(one.get('schema', {}))} | "
            f"{_cell(one.get('description') or one.get('schema', {}).get('description', ''))} |\n"
            for one in fields
        )
        text += f"| field | in | type | meaning |\n|---|---|---|---|\n{rows}\n"
    if body := operation.get("requestBody"):
        text += f"Body: {', '.join(f'`{kind}`' for kind in body['content'])}\n\n"
    rows = "".join(
        f"| {status} | {_cell(answer.get('description', ''))} | {_answers(answer)} |\n"
        for status, answer in sorted(operation["responses"].items())
    )
    return f"{text}| status | when | answer |\n|---|---|---|\n{rows}"


def _answers(answer: dict) -> str:
    return ", ".join(
        f"{_type(content.get('schema', {}))} as `{kind}`" for kind, content in answer.get("content", {}).items()
    )


def _schema(name: str, schema: dict) -> str:
    """An object's section: each field with its type, range and unit."""
    rows = "".join(
        f"| `{field}` | {_type(of)} | {_cell(of.get('description', ''))} |\n"
        for field, of in schema.get("properties", {}).items()
    )
    table = f"\n| field | type | meaning |\n|---|---|---|\n{rows}" if rows else ""
    return f"### {name}\n\n{schema.get('description', '')}\n{table}"


def _type(schema: dict) -> str:
    """A JSON schema in words: "number, 0 to 1"."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    if low is not None:
        return f"{kind}, from {low:g} on"
    longest = schema.get("maxLength")
    return f"{kind}, at most {longest} characters" if longest else kind


# --- API


def api() -> dict[str, str]:
    """One page for each module with public names, and the list of them."""
    pages, lists = {}, []
    for package, title in API.items():
        entries = []
        for path in _modules(package):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            public = list(_public(tree))
            if not public:
                continue
            pages[f"api/{name}"] = _module_page(name, tree, public)
            entries.append((name, _first_sentence(ast.get_docstring(tree) or "")))
        rows = "\n".join(f"| [`{name}`]({name}.md) | {line} |" for name, line in entries)
        hidden = "\n".join(name for name, _ in entries)
        table = f"| module | what it is for |\n|---|---|\n{rows}\n"
        lists.append(f"## {title}\n\n{table}\n```{{toctree}}\n:hidden:\n\n{hidden}\n```\n")
    intro = (
        "# Python API\n\nWhat a notebook or a program of yours can call. The pages are made from the docstrings.\n"
        "A module imports only what lies below it: see [](../../design.md).\n\n"
    )
    return pages | {"api/index": intro + "\n".join(lists)}


def _modules(package: str) -> list[Path]:
    folder = ROOT.joinpath(*package.split("."))
    below = [path for path in folder.glob("*.py") if not path.name.startswith("_")]
    packages = [path for path in folder.glob("*/__init__.py") if f"{package}.{path.parent.name}" not in API]
    return sorted(below + [path for path in packages if package == "lungkit.data"])


def _public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes of a module, in the order of the file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _module_page(name: str, tree: ast.Module, public: list) -> str:
    title, _, rest = (ast.get_docstring(tree) or "").partition("\n\n")
    parts = [f"# {name}", " ".join(title.split()), _prose(rest), f"```{{py:module}} {name}\n```"]
    return "\n\n".join(part for part in [*parts, *(_described(node) for node in public)] if part) + "\n"


def _described(node, inside: str = "") -> str:
    """A function or a class with its public methods, as a directive of Sphinx's Python domain."""
    if isinstance(node, ast.ClassDef):
        methods = [
            _described(part, node.name)
            for part in node.body
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and ast.get_docstring(part)
        ]
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        body = [
            *([f"*Bases: {bases}*"] if bases else []),
            _prose(ast.get_docstring(node) or ""),
            _fields(node),
            *methods,
        ]
        return _directive("class", node.name, [part for part in body if part], fence=":" * 4)
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    body = [_prose(ast.get_docstring(node) or "")]
    if decorators & {"property", "cached_property", "functools.cached_property"}:
        return _directive("property", node.name, body)
    arguments = ast.unparse(node.args)
    if inside:
        arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return _directive("method" if inside else "function", f"{node.name}({arguments}){returned}", body)


def _directive(kind: str, signature: str, body: list[str], fence: str = ":::") -> str:
    return f"{fence}{{py:{kind}}} {signature}\n\n" + "\n\n".join(body) + f"\n{fence}"


def _fields(node: ast.ClassDef) -> str:
    """The annotated fields of a dataclass as a list."""
    fields = [
        f"- `{part.target.id}: {ast.unparse(part.annotation)}`"
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and not part.target.id.startswith("_")
    ]
    return "\n".join(fields)


def _prose(docstring: str) -> str:
    """A docstring as Markdown: "name: meaning" lines become a list, examples a code block."""
    blocks = []
    for block in docstring.split("\n\n"):
        lines = block.splitlines()
        if not block.strip():
            continue
        if lines[0].startswith(">>>"):
            blocks.append(f"```pycon\n{block}\n```")
            continue
        lines = [re.sub(r"^([\w*]+(?:, [\w*]+)*): ", _item, line) for line in lines]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _item(match: re.Match) -> str:
    if match[1] in ("Raises", "Returns", "Yields", "Source", "Sources", "Columns"):
        return f"- {match[1]}: "
    return f"- **{match[1]}**: "


# --- model cards


def cards() -> dict[str, str]:
    """The card of the active version of each model that ships, as its card.json says, and the table of all of them."""
    # What ships is described, whatever else was trained here.
    os.environ["LUNGKIT_ARTIFACTS"] = str(ROOT / "artifacts")
    from lungkit.models import card_text, registry
    from lungkit.training import recipes

    names = set(recipes.RECIPES) & set(registry.models())  # a recipe can come before its model
    shipped = [registry.active(name) for name in sorted(names)]
    pages = {f"models/{version.model}": card_text.markdown(version.card) for version in shipped}
    rows = [row for version in shipped for row in card_text.outside_rows(str(version), version.card)]
    sources = card_text.markdown_table(rows[0], (row.values() for row in rows)) if rows else "None was measured yet.\n"
    return pages | {"models-table.inc": _models_table(names), "models-sources.inc": sources}


def _models_table(shipped: set[str]) -> str:
    """`lungkit models table --markdown` in two tables that fit a page: how good, and how well calibrated."""
    from typer.testing import CliRunner

    from lungkit.cli import app

    printed = CliRunner().invoke(app, ["models", "table", "--markdown"], catch_exceptions=False).output
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    lines = lines[:2] + [line for line in lines[2:] if line[0].split("@")[0] in shipped]
    cut = lines[0].index("macro F1") + 1
    halves = ((line[:cut] for line in lines), ([line[0], *line[cut:]] for line in lines))
    return "\n".join("".join(f"| {' | '.join(line)} |\n" for line in half) for half in halves)
