"""Progress: a bar on a terminal's standard error, one line that replaces itself in a notebook."""

import sys
import time
import types

import pytest

from lungkit import progress


class Screen:
    """What a notebook's page shows: one entry a display, replaced by its updates."""

    def __init__(self):
        self.shown, self.changes = [], 0

    def display(self, content, display_id=None):
        assert display_id, "only a display with an id can be updated"
        self.shown.append(repr(content))
        return types.SimpleNamespace(update=self._updater(len(self.shown) - 1))

    def _updater(self, place):
        def update(content):
            self.shown[place] = content.data
            self.changes += 1

        return update


@pytest.fixture
def screen(monkeypatch):
    import IPython.display

    class ZMQInteractiveShell:
        """The name that a notebook's kernel gives its shell."""

    page = Screen()
    monkeypatch.setattr(IPython, "get_ipython", ZMQInteractiveShell)
    monkeypatch.setattr(IPython.display, "display", page.display)
    return page


def test_on_a_terminal_the_bar_is_drawn_on_standard_error_only(capsys):
    assert list(progress.bar(range(5), label="reading", unit="image")) == [0, 1, 2, 3, 4]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading" in shown.err
    assert "5/5" in shown.err
    assert "image" in shown.err


def test_in_a_notebook_one_line_is_updated_and_ends_with_the_final_state(screen, capsys):
    assert list(progress.bar(range(5), label="reading", unit="image")) == [0, 1, 2, 3, 4]
    (line,) = screen.shown
    assert screen.changes >= 2
    assert "reading" in line
    assert "5/5" in line
    assert "\n" not in line
    assert capsys.readouterr() == ("", "")


def test_in_a_notebook_a_bar_moved_by_hand_shows_where_it_stopped(screen):
    with progress.bar(total=40, label="epoch 1/2") as bar:
        bar.update(10)
        bar.set_description_str("epoch 2/2")
        bar.update(7)
    (line,) = screen.shown
    assert "17/40" in line
    assert "epoch 2/2" in line


def test_a_closed_bar_stays_as_it_is(screen):
    bar = progress.bar(total=2)
    bar.update(2)
    bar.close()
    changes = screen.changes
    bar.close()
    assert screen.changes == changes


def test_without_ipython_the_terminal_bar_is_used(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    list(progress.bar(range(2)))
    assert "2/2" in capsys.readouterr().err


def test_a_line_is_written_once_on_standard_error(capsys):
    for _ in range(2):
        progress.say_once("3 files were left out of this test")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "3 files were left out of this test\n")


def test_work_in_parallel_keeps_the_order_and_shows_a_bar_only_with_a_label(capsys):
    def slow_first(number):
        time.sleep(0.05 if number == 0 else 0)
        return number**2

    assert list(progress.parallel(slow_first, range(50), workers=4)) == [number**2 for number in range(50)]
    assert capsys.readouterr() == ("", "")
    assert list(progress.parallel(slow_first, range(3), label="squares", unit="number")) == [0, 1, 4]
    assert "3/3" in capsys.readouterr().err


def test_work_in_parallel_stays_a_few_results_ahead_of_its_reader():
    begun = []
    results = progress.parallel(begun.append, range(1000), workers=2)
    next(results)
    results.close()
    assert len(begun) < 50


def test_the_first_exception_ends_work_in_parallel():
    with pytest.raises(ZeroDivisionError):
        list(progress.parallel(lambda number: 1 / number, [1, 0, 2]))
