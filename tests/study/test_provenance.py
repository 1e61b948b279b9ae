"""What a run was made with, and how its record is read."""

import subprocess

import pytest

import lungkit
from lungkit.errors import LungkitError
from lungkit.study import provenance
from lungkit.study.provenance import RunRecord, Stage


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = RunRecord.of("2026-11-30T13:00:00+00:00", {"data": "phantom"}, (Stage("04_evaluation", 3.2, "done"),))
    record.save(tmp_path)
    assert RunRecord.open(tmp_path) == record


def test_the_record_names_versions_and_machine():
    environment = provenance.environment()
    assert environment["packages"]["numpy"].count(".") == 2
    assert environment["cores"] >= 1
    assert environment["memory_gib"] > 0


def test_the_record_names_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lungkit, "__file__", str(tmp_path / "lungkit" / "__init__.py"))
    assert provenance.code()["commit"] is None, "no checkout"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "lungkit").mkdir()
    (tmp_path / "lungkit" / "a.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    assert len(provenance.code()["commit"]) == 40
    assert provenance.code()["changed"] is False
    (tmp_path / "lungkit" / "a.py").write_text("2")
    assert provenance.code()["changed"] is True


def test_the_commit_is_that_of_the_checkout_that_holds_the_package_wherever_results_go(tmp_path, monkeypatch):
    if not (provenance.checkout() / ".git").exists():
        pytest.skip("lungkit is not run from a git checkout")
    before = provenance.code()["commit"]
    monkeypatch.setenv("LUNGKIT_HOME", str(tmp_path))
    assert before is not None and provenance.code()["commit"] == before


@pytest.mark.parametrize(
    ("text", "says"), [(None, "it has no run.json"), ("{", "damaged"), ('{"stages": []}', "damaged")]
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, text, says):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(LungkitError, match=says):
        RunRecord.open(tmp_path)
