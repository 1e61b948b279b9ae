"""What became of one file or series that was chosen: a line with a button."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import ipywidgets as widgets

from lungkit.clinic.app.page import FAILED, Page, replace, safe, show_if
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.errors import LungkitError
from lungkit.models.class_names import class_name


class FileLine(widgets.HBox):
    """The result of one file or series, and a button that shows its reading, or reads it."""

    def __init__(self, page: Page, name: str, words: str, show: Callable[[str], None]):
        self.name, self.reading_id, self._offer = name, "", ""
        self.act: Callable[[], None] = lambda: show(self.reading_id)
        self._show = self.act
        self.words, self._details, self._told = widgets.HTML(), "", ""
        self.button = page.button("", lambda: self.act(), tooltip=f"Show the reading of {name}")
        show_if(False, self.button)
        self._page, self.is_asked = page, False
        self.waiting_bytes = 0  # of the file that is kept until the question is answered
        self.answers = widgets.HBox().add_class("file-answers")
        super().__init__([self.words, self.button, self.answers])
        self.add_class("file")
        self.working(words)

    def working(self, words: str) -> None:
        """Something is being done."""
        show_if(False, self.button)
        self._write("working", "…", words)

    def tell(self, details: list[str]) -> None:
        """What else is to be said of it, from now on."""
        self._details = f"<ul>{''.join(f'<li>{safe(words)}</li>' for words in details)}</ul>" if details else ""

    def note(self, words: str) -> None:
        """Nothing is to be done, but this should be known."""
        self._write("known", "i", words)

    def offer(self, words: str, read: Callable[[], None]) -> None:
        """A series that can be read."""
        self._write("known", "?", words)
        self.act, self._offer, self.button.description = read, "Read this series", "Read this series"
        self.button.tooltip = f"Read {self.name}"
        show_if(True, self.button)

    def ask(self, why: Sequence[str], answers: Mapping[str, Callable[[], None]], size: int = 0) -> None:
        """A question before it is saved, and what is done for each answer: one of them, once.

        why: sentences. size: bytes that are kept until a person answers; until then nothing is read or saved.
        """
        self.waiting_bytes = size
        self._told, self.is_asked = self._details, True
        self.tell([*why])
        show_if(False, self.button)
        buttons = [self._page.button(words, partial(self._answered, act)) for words, act in answers.items()]
        replace(self.answers, *buttons)  # before the question, which can be answered as soon as it can be read
        self._write("asked", "?", "Is this the right patient? Nothing is saved until you answer.")

    def _answered(self, act: Callable[[], None]) -> None:
        if not self.is_asked:  # a second click, or one that was on its way
            return
        self._close_question()
        act()

    def _close_question(self) -> None:
        self.is_asked, self._details, self.waiting_bytes = False, self._told, 0
        replace(self.answers)

    def withdraw(self) -> None:
        """It can no longer be read, also by a click that is on its way."""
        if self.is_asked:
            self._close_question()
            self.refused("Not saved: the question was not answered.")
        if self.act is not self._show:
            self.act = self._refuse
            show_if(False, self.button)

    def _refuse(self) -> None:
        raise LungkitError(f"{self.name} was sent for another patient, or is gone. Send it again.")

    def read(self, reading_id: str, decision: str, probability: str, seconds: float, refusal: str = "") -> None:
        """Read and saved. refusal: "Not for this patient", or image, where its checks say so."""
        if refusal:
            self._write("review", "✗", f"{refusal}. The model gives no finding ({seconds:.1f} s)")
        elif decision == REVIEW:
            self._write("review", "?", f"Uncertain. Review needed ({seconds:.1f} s)")
        else:
            self._write("read", "✓", f"{class_name(decision)}, {probability} ({seconds:.1f} s)")
        self._offer_reading(reading_id, "Show")

    def read_blind(self, reading_id: str) -> None:
        """Read and saved; the answer waits for a label."""
        self._write("review", "?", "Saved. Give your label: the model's answer appears after it.")
        self._offer_reading(reading_id, "Show")

    def labelled(self) -> None:
        """The label is given, and the answer is below."""
        self._write("read", "✓", "Your label is saved. The model's answer is shown.")

    def known(self, reading_id: str) -> None:
        """The same bytes were read before for this patient."""
        self._write("known", "=", "This image was already read for this patient. It was not saved again.")
        self._offer_reading(reading_id, "Open the earlier reading")

    def refused(self, words: str) -> None:
        """Not read, and why; a series may be read again, with another model for example."""
        self._write("refused", "✗", words)
        show_if(self.act is not self._show, self.button)

    def mark(self, shown: bool) -> None:
        """Show whether this file's reading is the one below."""
        if not self.reading_id:
            return
        (self.add_class if shown else self.remove_class)("shown")
        self.button.disabled = shown
        self.button.description = "Shown below" if shown else self._offer

    def _offer_reading(self, reading_id: str, words: str) -> None:
        self.reading_id, self._offer, self.act = reading_id, words, self._show
        self.button.description, self.button.tooltip = words, f"Show the reading of {self.name}"
        show_if(True, self.button)

    def _write(self, kind: str, mark: str, words: str) -> None:
        self.is_working = kind == "working"
        role = "alert" if kind == "refused" else "status"
        self.words.value = (
            f'<div class="file-line file-{kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}</span>'
            f"<b>{safe(self.name)}</b> <span>{safe(words)}</span></div>{self._details}"
        )


@contextmanager
def outcome(line: FileLine) -> Iterator[None]:
    """Say in the line why it failed; what is no fault of the file goes on to the page, too."""
    try:
        yield
    except (SignedOut, Forbidden):
        line.refused("Not read.")
        raise
    except LungkitError as problem:
        line.refused(_without_file_name(problem, line.name))
    except Exception:
        line.refused(FAILED)
        raise


def _without_file_name(problem: LungkitError, name: str) -> str:
    """The message without the file's name at its beginning, which stands next to it anyway."""
    words = str(problem).removeprefix(f"{name}: ")
    return words[:1].upper() + words[1:]
