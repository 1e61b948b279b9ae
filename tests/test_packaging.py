"""pyproject.toml is the one source of dependencies; what is made from it agrees with it."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import lungkit
from lungkit import extras

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
TOOLS = PROJECT["dependency-groups"]["dev"]
INSTALLED = [extra for extra in EXTRAS if extra not in ("all", "gpu")]
EVERYTHING = [*PROJECT["project"]["dependencies"], *TOOLS, *(one for name in INSTALLED for one in EXTRAS[name])]
DECLARED = [requirement for requirement in EVERYTHING if not requirement.startswith("lungkit[")]
LOCKS = ["requirements.lock", "requirements-gpu.lock"]


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def _locked(lock: str) -> dict[str, str]:
    """The block of each package in a lock file: its line and its hashes."""
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text())
    return {_name(block): block for block in blocks if "==" in block}


def test_the_conda_environment_brings_everything_and_the_same_tools_as_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    with_pip = next(part["pip"] for part in conda["dependencies"] if isinstance(part, dict))
    assert with_pip == ["-e .[all]", *TOOLS]


def test_the_extra_named_all_is_every_extra_but_cuda():
    assert EXTRAS["all"] == [f"lungkit[{','.join(INSTALLED)}]"]


def test_the_version_is_written_once():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    assert metadata.version("lungkit") == lungkit.__version__


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_every_declared_package_with_a_hash(lock):
    locked = _locked(lock)
    for requirement in DECLARED:
        assert "--hash=sha256:" in locked[_name(requirement)], requirement
    assert all("--hash=sha256:" in block for block in locked.values())


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_index_host(lock):
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links", text)


def test_only_the_gpu_lock_brings_cuda():
    assert not any(name.startswith("nvidia-cu") for name in _locked("requirements.lock"))
    assert any(name.startswith("nvidia-cu") for name in _locked("requirements-gpu.lock"))


def test_ci_runs_what_the_readme_tells_its_reader_to_run_after_a_model_was_trained():
    # Before that it brings what a bare machine lacks, and leaves what the demo leaves.
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert commands[-1] == "make test"
    assert any("lungkit run 03" in line for line in commands[:-1])
    assert not any(word in line for line in commands[:-1] for word in ("make test", "pytest", "nbval"))
    assert "make test" in (ROOT / "README.md").read_text()


# --- each package is in the group whose modules import it

# Packages that others load: plug-ins and programs. Of the int8 and gpu extras, and of what a group brings along.
NOT_IMPORTED = {"pylibjpeg", "pylibjpeg-openjpeg", "tensorboard", "jupyterlab", "nbval", "ipykernel", "nncf",
                "python-multipart", "redis"}  # fmt: skip
BROUGHT_ALONG = {"ipython", "grpc", "starlette", "anyio", "h11"}  # by ipykernel, TensorFlow, FastAPI, uvicorn
CHOSEN_BY_KERAS = {"jax"}  # where it is Keras's backend


def _imports(pattern: str, but: str = "") -> set[str]:
    """The packages that these modules of lungkit, all but one, import at their start or later."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "lungkit").glob(pattern) if file.name != but]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    modules = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"lungkit"}
    return {extras.package(module) for module in modules}


def _group(*names: str) -> set[str]:
    """The packages of the core and of these extras."""
    requirements = PROJECT["project"]["dependencies"] + [one for name in names for one in EXTRAS[name]]
    return {_name(requirement) for requirement in requirements} | BROUGHT_ALONG


@pytest.mark.parametrize(
    ("pattern", "but", "extra"),
    [
        ("data/**/*.py", "figures.py", []),
        ("data/figures.py", "", ["training"]),
        ("cli/*.py", "clinic.py", []),
        ("cli/clinic.py", "", ["clinic"]),
        ("*.py", "", ["training", "notebooks"]),
        ("models/*.py", "", ["training"]),
        ("training/*.py", "", ["training", "int8"]),
        ("clinic/**/*.py", "", ["clinic", "cluster", "postgresql"]),
        ("gateway/**/*.py", "", ["clinic", "gateway"]),
        ("gateway/client.py", "", []),
    ],
)
def test_each_layer_imports_only_what_its_extras_bring(pattern, but, extra):
    imported = _imports(pattern, but)
    assert imported
    assert imported - _group(*extra) - CHOSEN_BY_KERAS == set()


def test_every_package_of_a_group_is_used():
    assert _group(*INSTALLED) - BROUGHT_ALONG - {"lungkit"} - NOT_IMPORTED - _imports("**/*.py") == set()
