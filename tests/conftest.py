"""What every test shares: quiet TensorFlow, folders of its own, and the real data where it lies next to the project."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["COLUMNS"] = "200"  # tables are read line by line: none may be folded, however narrow the terminal
if "PYTEST_XDIST_WORKER" in os.environ:  # each core has a worker: more threads would only wait for each other
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(name, "1")

import lungkit.unneeded  # noqa: F401

import hypothesis
import pytest

from tests import untraced

untraced.pause()

# Keras and TensorFlow make millions of small objects that live long: at Python's own threshold, looking through them
# again and again takes a twelfth of the tests' processor time.
gc.set_threshold(50_000, 20, 100)

# Settings of the shell must not change a test, or be handed on to the processes that tests start.
for name in [name for name in os.environ if name.startswith(("LUNGKIT_", "KERASTUNER_"))]:
    del os.environ[name]

# Where a red run stops others, the drawn examples are the same each time; at a desk they are new ones. On a busy
# machine any of them may take long.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")

SHARED = Path(__file__).parents[2] / "shared" / "data"


# Workers take whole files. The longest come first: otherwise one of them keeps a single worker busy at the end.
LONGEST = (
    "training/test_phantom_difficulty.py",
    "training/test_finetune.py",
    "e2e/test_faults.py",
    "training/test_tasks.py",
    "e2e/test_clinic.py",
    "training/test_multiworker.py",
    "models/test_backbones.py",
    "clinic/test_serve.py",
    "clinic/test_sockets.py",
    "clinic/test_supervisor.py",
    "clinic/test_cluster.py",
    "gateway/test_serve.py",
    "gateway/test_description.py",
    "gateway/test_objects.py",
    "training/test_search_parallel.py",
    "training/test_lungs_first.py",
    "training/test_lung_finder.py",
    "training/test_distillation.py",
    "training/test_ct_infection.py",
    "training/test_fit.py",
    "e2e/test_wheel.py",
    "training/test_release.py",
    "test_notebooks.py",
    "clinic/test_administration.py",
    "clinic/test_accounts.py",
    "data/test_decoders.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by how long they take; the order within a file stays."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the project's own data, artifacts or reports."""
    for name in ("data", "artifacts", "reports"):
        monkeypatch.setenv(f"LUNGKIT_{name.upper()}", str(tmp_path / name))


@pytest.fixture(scope="session")
def shipped(tmp_path_factory) -> Path:
    """A registry that holds the models lungkit ships, and nothing that a user trained. Tests only read it."""
    from tests.shipped import export

    return export(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets; tests on real images need it."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED.relative_to(SHARED.parents[2])} next to the project")
    return SHARED


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A tiny data set in the shape of real ones: 32x32 pictures with a bright square left or right, labels.csv."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("data") / "squares"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,label,other,patient_id,split"]
    for patient in range(60):
        label = ("left", "right")[patient % 2]
        for picture in range(2):
            pixels = rng.integers(0, 90, (32, 32))
            row, column = rng.integers(2, 22), rng.integers(1, 8) + (0 if label == "left" else 16)
            pixels[row : row + 8, column : column + 8] += 140
            name = f"p{patient:02d}_{picture}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            lines.append(f"{name},{label},{'ab'[picture]},p{patient:02d},")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
