"""The notebooks that `make test` runs: the committed ones, some of them with less to do."""

import json
from pathlib import Path

import pytest

from scripts import smoke


def _cells(notebook: Path) -> list[tuple[str, list]]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [("".join(cell["source"]), cell.get("outputs", [])) for cell in cells]


def test_a_copy_differs_in_its_parameters_only(tmp_path):
    smoke.main(tmp_path / "copies")
    for notebook in smoke.NOTEBOOKS.glob("*.ipynb"):
        pairs = zip(_cells(notebook), _cells(tmp_path / "copies" / notebook.name), strict=True)
        changed = [(before, after) for before, after in pairs if before != after]
        values = smoke.SMALLER.get(notebook.name[:2], {})
        assert len(changed) == bool(values)
        for (_, before), (source, after) in changed:
            assert before == after
            assert all(f"\n{name} = {value}" in f"\n{source}" for name, value in values.items())


def test_outputs_that_are_compared_come_from_notebooks_that_run_as_committed():
    for notebook in smoke.NOTEBOOKS.glob("*.ipynb"):
        if "NBVAL_CHECK_OUTPUT" in notebook.read_text("utf-8"):
            assert notebook.name[:2] not in smoke.SMALLER


def test_a_parameter_that_a_notebook_lacks_is_an_error():
    text = (smoke.NOTEBOOKS / "03_cnn_search.ipynb").read_text("utf-8")
    with pytest.raises(ValueError, match="colour is not one of the parameters"):
        smoke.reduced(text, {"colour": "1"})
