"""Settings: every path can be pointed elsewhere, and a profile is one of the known ones."""

import pytest

from lungkit import config
from lungkit.errors import LungkitError

FOLDERS = {"data": config.data_dir, "artifacts": config.artifacts_dir, "reports": config.reports_dir}


@pytest.mark.parametrize("name", FOLDERS)
def test_each_folder_is_in_the_project_unless_its_variable_names_another(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LUNGKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(f"LUNGKIT_{name.upper()}", "")
    assert FOLDERS[name]() == tmp_path / "home" / name
    monkeypatch.setenv(f"LUNGKIT_{name.upper()}", str(tmp_path / "elsewhere"))
    assert FOLDERS[name]() == tmp_path / "elsewhere"


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUNGKIT_DATA", "here")
    assert config.data_dir() == tmp_path / "here"


def test_the_projects_folder_is_the_one_with_the_notebooks(monkeypatch):
    monkeypatch.delenv("LUNGKIT_HOME", raising=False)
    assert (config.notebooks_dir() / "01_exploration.ipynb").is_file()


def test_the_notebooks_of_the_checkout_are_found_from_a_home_that_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNGKIT_HOME", str(tmp_path))
    assert (config.notebooks_dir() / "01_exploration.ipynb").is_file()
    (tmp_path / "notebooks").mkdir()
    assert config.notebooks_dir() == tmp_path / "notebooks", "a home's own come first"


def test_a_notebook_that_is_not_there_is_refused_with_the_folder_that_was_searched(tmp_path, monkeypatch):
    from lungkit import notebooks

    monkeypatch.setenv("LUNGKIT_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    for asked in (["04"], ["all"]):
        with pytest.raises(LungkitError) as refused:
            notebooks.select(asked)
        expected = f"no notebook {asked[0]}; there is none in {tmp_path / 'notebooks'}"
        assert str(refused.value) == expected


def test_a_notebook_opened_by_hand_reports_to_a_folder_of_its_own(tmp_path):
    assert config.report_folder() == config.reports_dir() / "notebooks"
    assert config.report_folder().is_dir()
    assert config.report_folder(str(tmp_path / "a" / "run")) == tmp_path / "a" / "run"
    assert (tmp_path / "a" / "run").is_dir()


def test_work_that_can_be_continued_is_under_the_reports():
    assert config.work_dir().parent == config.reports_dir()


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(LungkitError, match=r"no profile 'fast'; there are: quick, full"):
        config.profile("fast")


def test_full_takes_every_image_and_quick_only_some():
    quick, full = config.profile("quick"), config.profile("full")
    assert quick.limit("some folder") == quick.images
    assert full.limit("some folder") is None
    assert quick.limit("phantom") == quick.phantom_slices < full.limit("phantom") == full.phantom_slices
