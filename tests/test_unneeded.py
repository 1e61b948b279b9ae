"""What is slow to import and never used is left out."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["lungkit.clinic.web", "lungkit.unneeded"])
def test_the_slow_check_of_web_addresses_is_left_out(module):
    script = f"import sys, {module}, jsonschema; print(sys.modules['rfc3987_syntax'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
