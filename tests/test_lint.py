"""The checks of `make lint` that are our own: they find what they are for."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def words(monkeypatch, tmp_path) -> ModuleType:
    """The words check, on a project of the test's own."""
    script = _script("words")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    return script


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.py", 'anew = 1\n"""Starts anew."""\n', 2),
        ("a.py", "x = 1  # lies beside the file\n", 1),
        ("a.py", 'x = f"{x} starts anew"\n', 1),
        ("a.md", "fine\nThe server shall stop.\n", 2),
        ("a.html", "<p>Who types wrong passwords has to wait.</p>\n", 1),
        ("a.md", "Who types wrong passwords has to wait.\n", 1),
    ],
)
def test_an_avoided_turn_of_phrase_is_named_with_its_line(words, tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    (complaint,) = words.complaints(tmp_path / name)
    assert complaint.startswith(f"{name}:{line}: '")
    assert ": write " in complaint


def test_plain_text_and_names_of_variables_are_left_alone(words, tmp_path):
    (tmp_path / "a.py").write_text('anew = shall = 1\n"""Who is signed in. It starts again, next to the file."""\n')
    assert words.complaints(tmp_path / "a.py") == []


def test_the_lines_of_the_layers_add_up_to_the_package(monkeypatch, tmp_path, capsys):
    lines = _script("lines")
    for name, text in {"a.py": "1\n2\n", "cli/b.py": "1\n", "clinic/c.py": "1\n", "clinic/app/d.py": "\n\n\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(lines, "PACKAGE", tmp_path)
    counted = {layer: number for layer, number in lines.layers().items() if number}
    assert counted == {"lungkit": 2, "cli": 1, "clinic": 1, "clinic/app": 3}
    monkeypatch.setattr(lines, "LIMIT", 7)
    assert lines.main() == 0
    monkeypatch.setattr(lines, "LIMIT", 6)
    assert lines.main() == 1
    assert "1 lines too many" in capsys.readouterr().out


def test_pre_commit_runs_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "no hook is fetched"
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert entries == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
