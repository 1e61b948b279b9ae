"""One progress bar for terminals and notebooks.

tqdm's own notebook bar is a widget, whose saved page would load scripts from the network; here a
notebook shows the same line as plain text that replaces itself, so that the executed copy keeps one line.
"""

import functools
import sys

from tqdm import tqdm


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


class _NotebookBar(tqdm):
    def __init__(self, *args, **kwargs):
        from IPython.display import Pretty, display

        self._wrap = Pretty
        self._handle = display(Pretty(""), display_id=True)
        super().__init__(*args, **(kwargs | {"ncols": 88, "ascii": " ━", "gui": False, "mininterval": 0.5}))

    def display(self, msg=None, pos=None):
        self._handle.update(self._wrap(str(self) if msg is None else msg))
        return True

    def clear(self, *args, **kwargs):
        pass

    def close(self):
        if not self.disable:
            self.disable = True
            self.display()
            self._decr_instances(self)


def bar(iterable=None, *, total: int | None = None, label: str = "", unit: str = "it") -> tqdm:
    """A tqdm bar (iterate it, or call update): text on a terminal's stderr, one line in a notebook."""
    kind = _NotebookBar if _in_notebook() else tqdm
    return kind(iterable, total=total, desc=label, unit=unit, leave=True)


@functools.cache
def say_once(line: str) -> None:
    """A line on standard error, above any bar; a line that was said already is not repeated."""
    tqdm.write(line, file=sys.stderr)
