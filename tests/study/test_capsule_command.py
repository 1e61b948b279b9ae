"""`lungkit capsule` as a person types it."""

import sys

import pytest

from lungkit import cli, files


@pytest.fixture
def lungkit(monkeypatch, capsys):
    """Run the command; returns (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lungkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def test_a_capsule_is_made_here_by_the_name_of_the_run_and_its_hash_is_shown(lungkit, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = lungkit("capsule", "make", study.run)
    made = tmp_path / "20261130-120000-squares.zip"
    assert code == 0
    assert files.sha256(made) in out
    assert "no author is named" in out
    assert "check that these names may be published" in out


def test_the_exit_code_is_1_and_every_check_is_listed_if_one_failed(lungkit, study, tmp_path):
    out = tmp_path / "x.zip"
    assert lungkit("capsule", "make", study.run, "--out", out, "--without-pictures")[0] == 0
    assert lungkit("capsule", "verify", out)[0] == 0
    content = bytearray(out.read_bytes())
    content[content.index(b"accuracy,,0.")] ^= 1
    out.write_bytes(content)
    code, told, error = lungkit("capsule", "verify", out)
    assert code == 1
    assert told.count("failed") == 2, "the hash, and the figure"
    assert "2 of 12 checks failed" in error


def test_a_run_whose_figures_do_not_follow_from_its_predictions_is_told_at_once(lungkit, study, tmp_path):
    metrics = study.run / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("accuracy,,0.", "accuracy,,0.9", 1))
    code, _, error = lungkit("capsule", "make", study.run, "--out", tmp_path / "x.zip")
    assert code == 1
    assert "its check failed: figures from the predictions: metrics.csv" in error
