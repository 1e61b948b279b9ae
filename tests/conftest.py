"""What every test shares: quiet TensorFlow, a project folder of its own, and the real data where it lies beside the project."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the project's own data, artifacts or reports."""
    for name in ("data", "artifacts", "reports"):
        monkeypatch.setenv(f"LUNGKIT_{name.upper()}", str(tmp_path / name))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets; tests on real images need it."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED.relative_to(SHARED.parents[2])} beside the project")
    return SHARED
