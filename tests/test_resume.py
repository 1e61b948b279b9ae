"""Work that is continued: same settings, same folder; other settings are named."""

import pytest

from lungkit import config, resume

SETTINGS = {"rate": 0.1, "size": (96, 96), "seed": 7}


def test_equal_settings_lead_to_the_same_folder_in_any_order():
    turned = dict(reversed(SETTINGS.items()))
    assert resume.work_folder("search", SETTINGS) == resume.work_folder("search", turned)
    assert resume.work_folder("search", SETTINGS).parent == config.work_dir()


@pytest.mark.parametrize("other", [{"seed": 8}, {"rate": 0.2}, {"size": (96, 97)}, {"more": 1}])
def test_other_settings_lead_to_another_folder(other):
    assert resume.work_folder("search", SETTINGS) != resume.work_folder("search", SETTINGS | other)


def test_another_name_leads_to_another_folder():
    assert resume.work_folder("search", SETTINGS) != resume.work_folder("training", SETTINGS)


def test_work_with_the_same_settings_may_continue(tmp_path):
    resume.same_settings(tmp_path / "work", SETTINGS, "search")
    resume.same_settings(tmp_path / "work", SETTINGS, "search")  # the tuple is a list in the record


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (SETTINGS | {"rate": 0.2}, "rate"),
        (SETTINGS | {"rate": 0.2, "seed": 8}, "rate, seed"),
        (SETTINGS | {"more": 1}, "more"),
        ({"rate": 0.1, "seed": 7}, "size"),
    ],
)
def test_changed_settings_are_refused_by_name(tmp_path, now, named):
    resume.same_settings(tmp_path / "work", SETTINGS, "search")
    with pytest.raises(resume.SettingsDiffer, match=rf"work holds a search with other settings \({named} differ\)"):
        resume.same_settings(tmp_path / "work", now, "search")


def test_a_refusal_leaves_the_record_as_it_was(tmp_path):
    resume.same_settings(tmp_path, SETTINGS, "search")
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(resume.SettingsDiffer):
        resume.same_settings(tmp_path, SETTINGS | {"seed": 8}, "search")
    assert (tmp_path / "settings.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]
