"""What is read of a run's folder, which can come from anyone: each file fits its types or costs a sentence."""

import json
import re

import pytest

from lungkit.errors import LungkitError
from lungkit.study import content, limits, material, report


def _change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "values",
    [{"seen_in_training": "x"}, {"review": [1]}, {"review": "x"}, {"review": {"share": "x"}}, {"unreadable": 5},
     {"absent_classes": 5}, {"model": 5}, {"scope": 5}, {"largest_class": {}}, {"largest_class": {"share": 0.5}},
     {"confusion": [[1, 2]]}, {"confusion": [[1, 2, 3], [1, 2, 3]]}, {"per_class": {"a": {"auc": 1.0}, "b": {}}}],
    ids=str,
)  # fmt: skip
def test_a_test_of_other_types_is_said_and_never_called_missing(run, values):
    _change(run / "evaluation.json", **values)
    known = material.gather(run)
    said = "\n".join(limits.limits(known))
    assert known.score is None and known.measured is None
    assert "evaluation.json cannot be read: " in said and "was not tested" not in said
    assert content.body(known)


def test_keys_that_a_test_may_leave_empty_are_no_error(run):
    _change(run / "evaluation.json", unreadable=None, absent_classes=None, review=None, seen_in_training=None)
    assert material.gather(run).unknown == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluation.json", '{"a":' * 50_000),
        ("registered.json", "[]"),
        ("plan.json", "{"),
        ("audit.csv", "a,b\n1,2\n"),
        ("audit.csv", "finding,severity,count,share,meaning\nx,warning,many,0.1,y\n"),
        ("audit.csv", "finding,severity,count,share,meaning\nx,warning,,0.1,y\n"),
        ("audit.csv", "finding,severity,count,share,meaning\nx,warning,1e400,0.1,y\n"),
        ("trials.csv", ""),
        ("04_evaluation.ipynb", "[]"),
        ("04_evaluation.ipynb", '{"cells": "xx"}'),
        ("04_evaluation.ipynb", '{"cells": [{}]}'),
        ("04_evaluation.ipynb", '{"cells": [{"source": 5}]}'),
        ("04_evaluation.ipynb", '{"cells": null}'),
        ("04_evaluation.ipynb", '{"cells": [{"source": ["x"], "metadata": {"tags": 5}}]}'),
        ("04_evaluation.ipynb", '{"cells": [{"source": ["x"], "metadata": null}]}'),
    ],
    ids=lambda one: one[:60],
)
def test_a_file_that_cannot_be_understood_is_one_sentence_of_the_limits(run, name, text):
    (run / name).write_text(text)
    known = material.gather(run)
    assert sum(f"{name} cannot be read: " in one for one in limits.limits(known)) == 1
    assert content.body(known)


@pytest.mark.parametrize("name", ["evaluation.json", "audit.csv", "04_evaluation.ipynb"])
def test_a_link_and_bytes_that_are_no_text_are_not_read(run, tmp_path, name):
    (run / name).rename(tmp_path / "other")
    (run / name).symlink_to(tmp_path / "other")
    assert f"{name} cannot be read: it is a link or no plain file." in material.gather(run).unknown
    (run / name).unlink()
    (run / name).write_bytes(b"\xff\x00")
    assert f"{name} cannot be read: " in " ".join(material.gather(run).unknown)


@pytest.mark.parametrize(
    "source", ["a=1\0", "a=" + "(" * 5000 + ")" * 5000, "seed={[]:1}\ndata={1:2}", "x=" + "-" * 9000]
)
def test_parameters_that_are_no_python_are_left_out(run, source):
    cell = {"source": [source], "metadata": {"tags": ["parameters"]}}
    (run / "04_evaluation.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert "a" not in material.gather(run).notebooks[1].defaults


def test_a_share_that_the_audit_leaves_empty_is_a_dash(run):
    (run / "audit.csv").write_text("finding,severity,count,share,meaning\nx,warning,3,,y\n")
    page = report.index(run).read_text("utf-8")
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).split() and "–" in page
    assert "nan %" not in page


_STAGE = {"name": "04_evaluation", "seconds": 1, "status": "done"}


@pytest.mark.parametrize(
    "values",
    [{"started": 5}, {"environment": []}, {"environment": {"packages": ["a"]}}, {"environment": {"cores": "x"}},
     {"code": None}, {"code": {"changed": "x"}}, {"parameters": []}, {"stages": [_STAGE | {"name": 5}]},
     {"stages": [_STAGE | {"name": "../x"}]}, {"stages": [_STAGE | {"seconds": "1"}]}],
    ids=str,
)  # fmt: skip
def test_a_record_of_other_types_is_damaged(run, values):
    _change(run / "run.json", **values)
    with pytest.raises(LungkitError, match=r"run\.json is damaged: "):
        material.gather(run)


@pytest.mark.parametrize("given", ["a\0b", 5, ["x"], "/nowhere/at/all"])
def test_the_folder_that_a_record_names_decides_nothing(run, given):
    record = json.loads((run / "run.json").read_text())
    _change(run / "run.json", parameters=record["parameters"] | {"report": given, "data": "a\0b", "seed": {}})
    assert material.gather(run).measured is not None
