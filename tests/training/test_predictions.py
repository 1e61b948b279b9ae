"""A run's predictions are read with care, and lined up with those of others by file."""

import numpy as np
import pandas as pd
import pytest

from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.training import predictions
from lungkit.training.evaluation import evaluate

HEADER = "file,patient,true,predicted,probability well,probability sick"
ROWS = ["a.png,p1,well,well,0.8,0.2", "b.png,p2,sick,well,0.6,0.4", "c.png,p2,sick,sick,0.1,0.9"]


@pytest.fixture
def table(tmp_path):
    """Write a table of predictions; returns its path."""

    def write(*lines, name="predictions.csv", folder="a-run"):
        (tmp_path / folder).mkdir(exist_ok=True)
        file = tmp_path / folder / name
        file.write_text("\n".join(lines) + "\n", "utf-8")
        return file

    return write


def read(table, *rows, header=HEADER, **options):
    return predictions.read(table(header, *(rows or ROWS), **options))


def test_what_an_evaluation_saves_reads_back_to_the_same_figures(tmp_path):
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40)
    classes = ("NA", "mild, or less", "7")  # text, whatever it looks like
    patients = [f"{i // 2:03d}" for i in range(40)]
    saved = evaluate(y, p, patients, classes, DecisionRule(kind="argmax"), n_boot=50)
    saved.save(tmp_path / "a-run", [f"slices/{i}.png" for i in range(40)])
    answers = predictions.read(tmp_path / "a-run")
    assert (answers.name, answers.classes, answers.patients[2]) == ("a-run", classes, "001")
    again = answers.evaluated()
    for name in ("true", "predicted", "probabilities", "patients"):
        assert np.array_equal(getattr(again, name), getattr(saved, name)), name
    assert again.value("auc")[0] == saved.value("auc")[0]


def test_decisions_are_those_of_the_table_whatever_the_likeliest_class_is(table):
    answers = read(table, "a.png,p1,well,sick,0.8,0.2", *ROWS[1:])
    assert answers.predicted.tolist() == [1, 0, 1]
    assert answers.evaluated().value("accuracy")[0] == pytest.approx(1 / 3)


def test_a_table_of_another_name_gives_the_run_its_name(table):
    assert read(table, name="last night.csv").name == "last night"
    assert read(table, folder="second").name == "second"


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("patient,true,predicted,probability a,probability b", ["p,a,a,1,0"], "has no column 'file'; it has: patient"),
        ("file,patient,true,predicted,probability a", ["f,p,a,a,1"], "needs a column 'probability CLASS' for each"),
        (f"{HEADER},file", [f"{ROWS[0]},x"], "has the column 'file' twice"),
        (f"{HEADER},probability Well", [f"{ROWS[0]},0"], "has the column 'probability well' twice"),
        (HEADER, [ROWS[0], ROWS[1] + ",7"], "line 3: 7 cells; its first line names 6 columns"),
        (HEADER, [ROWS[0], "b.png,p2,sick"], "line 3: 3 cells; its first line names 6 columns"),
        (HEADER, [ROWS[0], ROWS[0]], "line 3: 'a.png' is there twice, first in line 2"),
        (HEADER, [ROWS[0], "b.png,,sick,well,0.6,0.4"], "line 3: the column 'patient' is empty"),
        (HEADER, ["a.png,p1,ill,well,0.8,0.2"], "line 2: 'ill' in the column 'true' is none of the classes well, sick"),
        (HEADER, ["a.png,p1,well,,0.8,0.2"], "line 2: '' in the column 'predicted' is none of the classes"),
        (
            HEADER,
            ["a.png,p1,well,well,high,0.2"],
            "line 2: 'high' in the column 'probability well'; accepted: a number",
        ),
        (HEADER, ["a.png,p1,well,well,nan,0.2"], "line 2: 'nan' in the column 'probability well'"),
        (HEADER, ["a.png,p1,well,well,1.8,-0.8"], "line 2: '1.8' in the column 'probability well'"),
        (HEADER, ["a.png,p1,well,well,0.8,0.8"], "line 2: the probabilities sum to 1.6; accepted: 1"),
        (HEADER, ["a\x1b[31m.png,p1,well,well,0.8,x"], "'x' in the column 'probability sick'"),
        (HEADER, ['a.png,"p1"x,well,well,0.8,0.2'], "is damaged: "),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_line_and_column(table, header, rows, said):
    with pytest.raises(LungkitError) as refused:
        read(table, *rows, header=header)
    assert said in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_an_empty_table_and_one_that_is_not_text_are_refused(table):
    with pytest.raises(LungkitError, match="has no rows; it needs one for each image"):
        predictions.read(table(HEADER))
    file = table(HEADER)
    file.write_bytes(b"\xff\xfe\x00\x01" * 100)
    with pytest.raises(LungkitError, match="is damaged: it is not text in UTF-8"):
        predictions.read(file)


def test_a_folder_without_predictions_is_refused_with_what_would_be_accepted(tmp_path):
    with pytest.raises(LungkitError, match=r"has no predictions.csv: give a model \(NAME or NAME@v2\), a run's folder"):
        predictions.read(tmp_path)


# --- lined up


def test_answers_are_matched_by_file_and_class_whatever_their_order(table):
    one = read(table)
    swapped = "file,patient,true,predicted,probability Sick,probability WELL"
    rows = ["c.png,p2,Sick,Sick,0.7,0.3", "z.png,p9,WELL,WELL,0.1,0.9", "a.png,p1,WELL,Sick,0.6,0.4"]
    first, second = predictions.lined_up([one, read(table, *rows, header=swapped, folder="other")])
    assert first.files.tolist() == second.files.tolist() == ["a.png", "c.png"]
    assert second.classes == ("well", "sick")
    assert (second.true.tolist(), second.predicted.tolist()) == ([0, 1], [1, 1])
    np.testing.assert_allclose(second.probabilities, [[0.4, 0.6], [0.3, 0.7]])


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        (HEADER, [row.replace(".png", ".jpg") for row in ROWS], "no image is common to a-run, other"),
        (
            HEADER,
            ["a.png,p1,sick,well,0.8,0.2"],
            r"true class of a.png is 'well' in a-run and 'sick' in other \(1 of 1",
        ),
        (HEADER, ["a.png,p7,well,well,0.8,0.2"], "the patient of a.png is 'p1' in a-run and 'p7' in other"),
        (HEADER.replace("sick", "ill"), ["a.png,p1,well,well,0.8,0.2"], "other answers well, ill, and not well, sick"),
    ],
)
def test_answers_about_other_images_or_classes_are_refused(table, header, rows, said):
    with pytest.raises(LungkitError, match=said):
        predictions.lined_up([read(table), read(table, *rows, header=header, folder="other")])


def test_a_large_table_is_read_in_a_moment(table):
    n = 20_000
    frame = pd.DataFrame({"file": range(n), "patient": range(n), "true": "well", "predicted": "sick"})
    file = table(HEADER)
    frame.assign(**{"probability well": 0.25, "probability sick": 0.75}).to_csv(file, index=False)
    assert predictions.read(file).probabilities.shape == (n, 2)


# --- what a person names


def test_a_models_name_is_not_taken_for_a_folder_that_lies_here(table, tmp_path, monkeypatch):
    table(HEADER, *ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predictions.registry, "models", lambda: ["a-run"])
    monkeypatch.setattr(predictions.registry, "find", lambda ref: f"the version {ref}")
    assert predictions.contender("a-run@v2") == "the version a-run@v2"
    assert predictions.contender("a-run") == "the version a-run"
    for path in ("./a-run", "a-run/predictions.csv", str(tmp_path / "a-run")):
        assert predictions.contender(path).name == "a-run"
    monkeypatch.setattr(predictions.registry, "models", list)
    assert predictions.contender("a-run").name == "a-run"
