"""A stored reading as its reader may see it: with the model's answer, or as an image to label first."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.page import Page, field, notice, replace, safe
from lungkit.clinic.app.reading import heading, meaning, reading, viewer
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.predictor import REVIEW
from lungkit.clinic.records import opinions
from lungkit.clinic.records.cases import BlindCase, Case, Records
from lungkit.errors import LungkitError
from lungkit.wording import count, listed

FIRST = "Read this image first. The model's answer appears after your label."
THIRD = "Read this image first. The model's answer and the labels of other readers appear after your label."
_BACK = {"opinions": "second opinions"}  # screens that are not called as their name in words


class ReadingScreen(Screen[Records]):
    """One stored reading, with a way back to the screen it was opened from."""

    def refresh(self, reading_id: str = "", back: str = "worklist", label_first: bool = False) -> None:
        """Show this reading instead of the one before; label_first: as in Records.open_case."""
        case = self.records.open_case(reading_id, label_first)
        patient_id = case.patient.id  # the buttons keep this alone, not the case, whose pixels are large
        go, button = self.page.go, self.page.button
        way = [
            button(f"← Back to {_BACK.get(back, back)}", lambda: go(back), "link"),
            button("All images of this patient", lambda: go("patient", patient_id=patient_id), "link"),
        ]
        box = widgets.VBox()
        replace(self.widget, widgets.HBox(way).add_class("screen-way"), box)
        show_case(box, case, self.records, self.page, THIRD if label_first else FIRST)


def show_case(
    box: widgets.Box,
    case: Case | BlindCase,
    records: Records,
    page: Page,
    request: str = FIRST,
    labelled: Callable[[str], None] = lambda reading_id: None,
) -> None:
    """Fill a box with a reading or, where its answer waits for a label, with the form for it, then with the reading.

    request: what the form says. labelled: called with the reading's id after the label was saved.
    """
    if isinstance(case, Case):
        replace(box, reading(case, records, page))
        return

    def answer(label: str) -> None:
        shown = records.case(case_id)
        replace(box, widgets.HTML(_comparison(label, shown)), reading(shown, records, page))
        labelled(case_id)

    case_id = case.reading_id  # the form keeps this alone, not the case, whose pixels are large
    replace(box, _blind_reading(case, BlindForm(case, records, page, request, answer)))


def _blind_reading(case: BlindCase, form: "BlindForm") -> widgets.Widget:
    """The image and the form; nothing that the model said."""
    head = widgets.HTML(heading(case, case.stack))
    columns = widgets.Box([viewer(case, case.stack), form.widget]).add_class("reading-columns").add_class("blind")
    if case.stack:
        columns.add_class("reading-of-series")
    return widgets.VBox([head, columns]).add_class("reading")


class BlindForm:
    """The label of a reader who has not seen the answer: classes, none preselected, a comment and one button.

    answer: called with the label after it was saved.
    """

    def __init__(self, case: BlindCase, records: Records, page: Page, request: str, answer: Callable[[str], None]):
        self._reading_id, self._records, self._answer = case.reading_id, records, answer
        self._saved = False
        self.label = field(
            widgets.RadioButtons,
            "Your finding",
            options=[(meaning(case, name), name) for name in case.classes],
            index=None,
        ).add_class("choices")
        self.comment = field(widgets.Textarea, "Comment (kept with your label)", placeholder="Optional", rows=2)
        save = page.button("Save label and show the answer", self._save, "primary")
        self.widget = widgets.VBox([widgets.HTML(notice(request, "note")), self.label, self.comment, save]).add_class(
            "reading-facts"
        )

    def _save(self) -> None:
        if self._saved:  # a second click that was on its way
            return
        if not self.label.value:
            raise LungkitError("Choose the class that you see first. Nothing was saved.")
        label = self.label.value
        self._records.review(self._reading_id, None, label, self.comment.value)
        self._saved = True
        self._answer(label)


def _comparison(label: str, case: Case) -> str:
    """Whether a label that was given first and the answer agree, and what all readers say, as HTML."""
    graded = case.grades.names if case.grades else ()
    if case.decision == REVIEW:
        words = f"You labelled {label}. The model does not decide; the nearest class is {case.label}."
    else:
        same = label == case.label or label in graded
        words = f"You labelled {label}. The model says {case.decision}: {'you agree' if same else 'you differ'}."
    standing = opinions.standing(case.reviews)
    others = _readers(standing) if len(standing.labels) > 1 else ""
    return notice(words, "done" if label == case.label else "note") + others


def _readers(standing: opinions.Standing) -> str:
    """The label of each reader, and which one counts."""
    said = listed([f"<b>{safe(name)}</b>: {safe(label)}" for name, label in standing.labels.items()], "and")
    number = count(len(standing.labels), "reader")
    if standing.label:
        counts = f"The label {safe(standing.label)} counts."
    elif len(standing.labels) == 2:
        counts = "You differ, so a third doctor is asked. Until then this image stays aside."
    else:
        counts = "There is no majority, so this image stays aside: no data set of reviews has it."
    return f'<p class="readers">{number}: {said}. {counts}</p>'
