"""Copies of the notebooks with less to do, to see that they run: python scripts/smoke.py FOLDER.

Notebooks 01 and 02 stay as they are: nbval compares some of their outputs with the committed ones. The phantom stays
too, and with it the data set of all of them.
"""

import json
import re
import shutil
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PROFILE = {"profile": '"smoke"'}
SMALLER = {
    "03": PROFILE,
    "04": PROFILE,
    "05": PROFILE,
    "06": PROFILE | {"images": "120", "epochs": "1"},
    "07": PROFILE | {"patients": "60", "visitors": "20", "remedies": "2"},
    "08": PROFILE | {"folds": "3", "repeats": "2", "starts": "2"},
    "09": PROFILE | {"patients": "60", "before": "12", "since": "8", "a_day": "5", "epochs": "2"},
    "10": PROFILE | {"new_patients": "24"},
    "11": PROFILE,
}


def reduced(text: str, values: dict[str, str]) -> str:
    """The notebook's text with other values in the cell of its parameters; a name that is not there is an error."""
    notebook = json.loads(text)
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    source = "".join(cell["source"])
    for name, value in values.items():
        source, times = re.subn(rf"^{name} = \S+", f"{name} = {value}", source, flags=re.MULTILINE)
        if times != 1:
            raise ValueError(f"{name} is not one of the parameters:\n{source}")
    cell["source"] = source.splitlines(keepends=True)
    return json.dumps(notebook)


def main(folder: Path) -> None:
    """Write the copies."""
    folder.mkdir(parents=True)
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        if values := SMALLER.get(notebook.name[:2]):
            (folder / notebook.name).write_text(reduced(notebook.read_text("utf-8"), values), "utf-8")
        else:
            shutil.copy(notebook, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
