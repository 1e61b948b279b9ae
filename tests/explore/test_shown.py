"""A widget on a page that is only read is a picture."""

import ipywidgets
import nbformat
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lungkit import notebooks
from lungkit.explore import shown

CELL = """import ipywidgets
from matplotlib.figure import Figure
from lungkit.explore import shown
shown.show(ipywidgets.IntSlider(), Figure(figsize=(1, 1)), "A slider.")"""


def test_a_figure_becomes_the_bytes_of_a_picture():
    image = ipywidgets.Image(value=shown.png(Figure(figsize=(1, 1))))
    assert bytes(image.value).startswith(b"\x89PNG")


# About 4 s: a kernel starts.
def test_an_executed_copy_keeps_the_still_picture_alone_and_leaves_exercises_out(tmp_path):
    solution = new_code_cell("raise ValueError('a solution')", metadata={"tags": ["exercise"]})
    cells = [new_markdown_cell("# t"), new_code_cell("report = ''", metadata={"tags": ["parameters"]})]
    document = new_notebook(cells=[*cells, new_code_cell(CELL), solution])
    document.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(document, tmp_path / "01_first.ipynb")
    run = notebooks.run([tmp_path / "01_first.ipynb"], {}, tmp_path / "run")
    executed = nbformat.read(run.folder / "01_first.ipynb", 4)
    (output,) = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == "A slider."
    assert "widgets" not in executed.metadata
    assert "a solution" not in (run.folder / "01_first.html").read_text()
