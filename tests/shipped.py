"""The models that ship with lungkit, apart from what a user trained into the same artifacts/ folder."""

import json
import shutil
import subprocess
from pathlib import Path

from lungkit.training import recipes

ROOT = Path(__file__).parents[1]
SHIPPED = list(recipes.RECIPES)  # a model of each


def export(folder: Path, root: Path = ROOT) -> Path:
    """Write what ships of `root`'s artifacts/ into `folder`, as a registry; returns its path.

    What ships is what git tracks. Without git (an unpacked archive) it is the first version of each recipe's model,
    since a version trained later has a higher number.
    """
    git = ["git", "-C", str(root), "-c", "safe.directory=*"]
    try:
        listed = subprocess.run([*git, "ls-files", "-z", "artifacts"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = b""
    if listed:
        prefix = f"--prefix={folder.resolve()}/"
        subprocess.run([*git, "checkout-index", "-z", "--stdin", "--force", prefix], input=listed, check=True)
    else:
        for name in SHIPPED:
            _first_version(root / "artifacts" / name, folder / "artifacts" / name)
    return folder / "artifacts"


def _first_version(model: Path, to: Path) -> None:
    version = min((path.name for path in model.glob("v*") if path.is_dir()), key=lambda name: int(name[1:]))
    shutil.copytree(model / version, to / version, dirs_exist_ok=True)
    sums = json.loads((model / "active.json").read_text())["sums"]
    (to / "active.json").write_text(json.dumps({"version": version, "history": [], "sums": {version: sums[version]}}))
