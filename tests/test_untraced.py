"""Coverage sees every line of lungkit around the calls that it does not follow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import untraced

_OTHERS = """
from tests.untraced import untraced

@untraced
def add(numbers):
    total = 0
    for number in numbers:
        total += number
    return total

@untraced
def fail():
    raise ValueError
"""

_OURS = """
from others import add, fail

def sums():
    yield add([1, 2])
    for _ in range(2):
        add([])
    yield add([3])

def survive(failing):
    if failing:
        try:
            fail()
        except ValueError:
            add([])
            return "survived"
    return "well"

def both():
    answers = survive(True), survive(False)
    return answers, sum(sums())

assert both() == (("survived", "well"), 6)
"""


@pytest.fixture
def measured(tmp_path) -> str:
    """What coverage missed, as its report says it, of a module that calls one that is not followed."""
    (tmp_path / "others.py").write_text(_OTHERS)
    (tmp_path / "ours.py").write_text(_OURS)
    variables = os.environ | {"PYTHONPATH": str(Path(untraced.__file__).parents[1])}
    for arguments in ("run --branch --source=. --rcfile= ours.py", "report --show-missing --rcfile="):
        command = [sys.executable, "-m", "coverage", *arguments.split()]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_lines_and_branches_around_a_call_that_is_not_followed_are_seen(measured):
    ours = next(line for line in measured.splitlines() if line.startswith("ours.py"))
    assert ours.split()[-1] == "100%"


def test_the_lines_of_such_a_call_are_not(measured):
    others = next(line for line in measured.splitlines() if line.startswith("others.py"))
    assert "6-9" in others
