"""The wheel with the extra `clinic` alone, in an environment of its own: it serves and reads without TensorFlow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.e2e.conftest import Visitor

ROOT = Path(__file__).parents[2]
BROUGHT = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "lungkit", "notebooks"]  # what a wheel is made from
UV = Path(sys.executable).with_name("uv")


class Installed:
    """lungkit as installed from its wheel: `run` runs its command, away from the checkout and its settings."""

    def __init__(self, folder: Path, model: Path):
        self.programs, self.home, artifacts = folder / "venv" / "bin", folder / "home", folder / "models"
        self.home.mkdir()
        shutil.copytree(model, artifacts / model.name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LUNGKIT_", "PYTHON"))}
        self.environment = kept | {"LUNGKIT_HOME": str(self.home), "LUNGKIT_ARTIFACTS": str(artifacts)}

    def python(self, *arguments: str) -> str:
        return self._run(self.programs / "python", *arguments).stdout

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        return self._run(self.programs / "lungkit", *arguments)

    def serve(self) -> subprocess.Popen:
        command = [self.programs / "lungkit", "serve", "--port", "0", "--pool", "1"]
        return subprocess.Popen(
            command, env=self.environment, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _run(self, *command: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=120)


def _build(folder: Path) -> Path:
    """The wheel, made from a copy of the sources; the checkout stays as it is."""
    source = folder / "source"
    source.mkdir()
    for name in BROUGHT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    command = [UV, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder / "dist"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("lungkit-*.whl")
    return wheel


def _share_bytecode(packages: Path) -> None:
    """Put what these tests' own environment compiled next to the same packages, for speed; Python checks if it fits."""
    own = Path(sysconfig.get_path("purelib"))
    for folder in [path for path in packages.rglob("*") if path.is_dir() and path.name != "__pycache__"]:
        compiled = own / folder.relative_to(packages) / "__pycache__"
        if compiled.is_dir() and not (folder / "__pycache__").exists():
            shutil.copytree(compiled, folder / "__pycache__")


@pytest.fixture(scope="module")
def installed(tmp_path_factory, shipped) -> Installed:
    """The wheel with its extra `clinic`; the versions are those of the lock file."""
    if not UV.exists():
        pytest.skip("uv, which installs the wheel, is not in this environment")
    folder = tmp_path_factory.mktemp("wheel")
    wheel = _build(folder)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    command = [UV, "pip", "install", "--quiet", "--python", folder / "venv" / "bin" / "python", "--no-verify-hashes"]
    command += ["--constraint", ROOT / "requirements.lock", f"lungkit[clinic] @ {wheel.as_uri()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    if re.search("network|connect|dns", done.stderr, re.IGNORECASE):
        pytest.skip(f"no package can be had here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    _share_bytecode(packages)
    return Installed(folder, shipped / "ct-infection")


def test_the_clinics_extra_brings_nothing_that_trains_or_tests(installed):
    listed = subprocess.run(
        [UV, "pip", "list", "--format", "json", "--python", installed.programs / "python"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    names = {package["name"] for package in json.loads(listed)}
    assert {"lungkit", "openvino", "voila"} <= names
    unwanted = {"tensorflow", "keras", "keras-tuner", "scikit-learn", "matplotlib", "seaborn", "tensorboard"}
    unwanted |= {"jupyterlab", "papermill", "nbval", "pytest", "nncf", "psycopg", "torch"}
    assert not names & unwanted


def test_the_installed_package_is_not_the_checkout_and_has_the_version_of_the_sources(installed):
    script = (
        "import importlib.metadata as m, lungkit; print(lungkit.__file__, m.version('lungkit'), lungkit.__version__)"
    )
    where, *versions = installed.python("-c", script).split()
    assert Path(where).is_relative_to(installed.programs.parent)
    assert versions[0] == versions[1]


def test_without_a_folder_of_its_own_it_keeps_its_files_in_the_persons_home(installed):
    script = "import os; del os.environ['LUNGKIT_HOME']; from lungkit import config; print(config.home())"
    assert installed.python("-c", script).strip() == str(Path.home() / "lungkit")


def test_the_command_answers_and_reads_a_file(installed, slices):
    assert "predict" in installed.run("--help").stdout
    done = installed.run("predict", slices["COVID-19"], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] == "COVID-19"


def test_verbs_of_the_other_extras_say_which_one_they_need(installed):
    installed.environment["LUNGKIT_DATABASE"] = "postgresql://nobody@localhost/none"
    assert "pip install 'lungkit[postgresql]'" in installed.run("db", "check").stderr
    del installed.environment["LUNGKIT_DATABASE"]
    assert "pip install 'lungkit[notebooks]'" in installed.run("run", "01").stderr
    refused = installed.run("search", "--data", "phantom")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "pip install 'lungkit[training]'" in refused.stderr


@pytest.fixture
def served(installed) -> Iterator[SimpleNamespace]:
    """The clinic of the installed wheel, open on a port of this machine; `password` is the doctor's, named dora."""
    added = installed.run("user", "add", "dora", "--full-name", "Dora Doctor")
    password = re.search(r"with the password (\S+)", added.stdout)
    assert password, added.stderr
    process = installed.serve()
    url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert url, "the server did not start"
    yield SimpleNamespace(url=url[0], password=password[1])
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait(30) == 0


def test_the_installed_clinic_serves_signs_in_and_reads_an_image(browser, served, slices):
    dora = Visitor(browser, served, width=1280)
    page = dora.page
    page.goto(served.url)
    page.get_by_role("textbox", name="User name").fill("dora")
    page.get_by_label("Password").fill(served.password)
    page.get_by_role("button", name="Sign in").click()
    page.locator(".clinic-nav").wait_for()
    dora.sees("Dora Doctor, doctor")
    dora.new_patient("WHEEL-1", "Demo Patient")
    dora.upload(slices["COVID-19"])
    assert "COVID-19" in dora.line(slices["COVID-19"])
    dora.context.close()
    assert (dora.faults, dora.elsewhere()) == ([], [])
