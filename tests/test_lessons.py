"""The notebooks that teach: how one gets to the next, where theory comes from, and exercises with solutions."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(params=LESSONS, ids=lambda file: file.stem)
def lesson(request):
    return nbformat.read(request.param, 4)


def _of_exercises(document) -> list:
    return [cell for cell in document.cells if "exercise" in cell.metadata.get("tags", ())]


def _markdown(document) -> str:
    return "\n".join(cell.source for cell in document.cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("file", LESSONS, ids=lambda file: file.stem)
def test_a_lesson_leads_to_the_one_before_the_one_after_and_to_all(file):
    links = nbformat.read(file, 4).cells[0].source.splitlines()[2]
    place, names = LESSONS.index(file), [one.name for one in LESSONS]
    neighbours = names[max(0, place - 1) : place] + names[place + 1 : place + 2]
    assert re.findall(r"\]\((\d\d_\w+\.ipynb)\)", links) == neighbours
    assert "[all notebooks](../docs/notebooks.md)" in links


def test_a_lesson_opens_with_the_question_that_it_answers(lesson):
    assert re.match(r"# \d\d · .+\n\n.+\n\n\*\*[^*]+\?\*\* ", lesson.cells[0].source)


def test_a_lesson_names_the_papers_that_its_theory_is_from_with_links(lesson):
    assert len(set(re.findall(r"\]\((https://(?:doi\.org|arxiv\.org)/[^\s]+)\)", _markdown(lesson)))) >= 4


def test_a_lesson_gives_reasons_for_its_values_and_says_what_to_try_next(lesson):
    text = _markdown(lesson)
    assert text.count("Why ") >= 3
    (tried,) = re.findall(r"What to try next\W*\n(.*?)(?:\n## |\Z)", text, re.DOTALL)
    assert 3 <= f"\n{tried}".count("\n- ") <= 6


def test_a_lesson_ends_in_two_exercises_whose_solutions_are_folded_and_say_something(lesson):
    exercises = _of_exercises(lesson)
    assert lesson.cells[-len(exercises) :] == exercises
    asked = [cell.source for cell in exercises if cell.cell_type == "markdown"]
    assert [re.findall(r"(?:^\*\*|Exercise )(\d)[.:]", text, re.MULTILINE) for text in asked] == [["1"], ["2"]]
    solutions = [cell for cell in exercises if cell.cell_type == "code"]
    for cell in solutions:
        assert "hide-cell" in cell.metadata.tags
        assert cell.metadata.jupyter.source_hidden
    for ask, after in zip(exercises, [*exercises[1:], None], strict=True):
        assert ask.cell_type == "code" or after.cell_type == "code", "no exercise is without its solution"
    told = [output for cell in solutions for output in cell.outputs if "text/markdown" in output.get("data", {})]
    assert len(told) >= 2
    assert all(re.search(r"\d", output.data["text/markdown"]) for output in told), "sentences from numbers"


def test_no_lesson_names_its_data_after_one_part_of_the_body(lesson):
    code = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "code")
    assert not re.search(r"\bchest\b", code)
