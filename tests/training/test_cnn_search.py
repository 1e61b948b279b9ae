"""lungkit search: one process or several on one data set, kept where notebook 03 looks for it."""

import re
import sys

import pytest

from lungkit import cli
from lungkit.errors import LungkitError
from lungkit.training import cnn_search


@pytest.fixture
def search(monkeypatch, capsys, squares):
    """Run `lungkit search` on the squares; returns what it printed."""
    monkeypatch.setenv("COLUMNS", "150")

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["lungkit", "search", "--data", str(squares), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    return run


def test_one_worker_and_two_search_the_same_space_and_are_compared(search):
    sizes = ("--strategy", "bayesian", "--trials", "2", "--epochs", "1")
    alone = search(*sizes)
    assert re.search(r"2 trials in squares-cnn-", alone)
    assert re.search(r"best: .*filters \d+", alone)
    assert re.search(r"\d+ s with 1 worker\n", alone)
    assert "times as fast" not in alone

    together = search(*sizes, "--workers", "2", "--fresh")
    assert len(re.findall("COMPLETED", together)) == 2
    assert re.search(r"with 2 workers, \d+ s with one: \d\.\d\d times as fast", together)


def test_other_sizes_than_the_profiles_have_a_folder_of_their_own(squares):
    usual, short = cnn_search.task(str(squares)), cnn_search.task(str(squares), epochs=1)
    assert usual.folder != short.folder
    assert (usual.options["epochs"], short.options["epochs"]) == (3, 1)
    assert usual.folder == cnn_search.task(str(squares)).folder


def test_an_unknown_strategy_or_profile_is_refused(squares):
    with pytest.raises(LungkitError, match="no search strategy 'random'; there are: hyperband, bayesian"):
        cnn_search.task(str(squares), strategy="random")
    with pytest.raises(LungkitError, match="no profile 'fast'"):
        cnn_search.task(str(squares), profile="fast")
