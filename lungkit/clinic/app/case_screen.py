"""A stored reading as its reader may see it: with the model's answer, or as an image to label first."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.browser import Drafts
from lungkit.clinic.app.correction import CorrectionForm
from lungkit.clinic.app.page import Page, field, link_button, notice, replace, safe
from lungkit.clinic.app.read_again import ReadAgain
from lungkit.clinic.app.reading import heading, reading, viewer
from lungkit.clinic.app.review_form import NoClass, Saving, meaning
from lungkit.clinic.app.screen import NO_SUCH_PLACE, Screen
from lungkit.clinic.predictor import REVIEW, ModelPool
from lungkit.clinic.records import opinions
from lungkit.clinic.records.cases import BlindCase, Case, Records
from lungkit.clinic.records.reviewing import Said
from lungkit.clinic.records.tables import CLASS
from lungkit.errors import LungkitError
from lungkit.models.class_names import class_name
from lungkit.wording import count, listed

FIRST = "Read this image first. The model's answer appears after your label."
THIRD = "Read this image first. The model's answer and the labels of other readers appear after your label."
READ_MEANWHILE = "Another doctor has read this image in the meantime."
READ_BEFORE = "Another doctor has read this image already."
LABEL_FIRST = "first"  # in an address
Following = Callable[[str], str | None]  # finds the unread reading that comes after one
_BACK = {"opinions": "second opinions"}  # screens that are not called as their name in words


class ReadingScreen(Screen[Records]):
    """One stored reading, with a way back to the screen it was opened from."""

    def build(self) -> None:
        self._place = ""
        self._from: dict[str, tuple[str, Following | None]] = {}  # place to where it was opened from, and what follows

    def where(self) -> str:
        return self._place

    def open_at(self, place: str) -> None:
        """An address that was opened without the answer stays so: place is "ID" or "ID/first"."""
        reading_id, _, first = place.partition("/")
        if first not in ("", LABEL_FIRST):
            raise LungkitError(NO_SUCH_PLACE)
        back, following = self._from.get(place, ("worklist", None))
        self.refresh(reading_id, back, first == LABEL_FIRST, following)

    def refresh(
        self,
        reading_id: str = "",
        back: str = "worklist",
        label_first: bool = False,
        following: Following | None = None,
    ) -> None:
        """Show this reading instead of the one before; label_first: as in Records.open_case.

        following: without it, there is no button for the next unread reading.
        """
        case = self.records.open_case(reading_id, label_first)
        self._place = f"{case.reading_id}/{LABEL_FIRST}" if label_first else case.reading_id
        self._from[self._place], self.under = (back, following), back
        patient_id = case.patient.id  # the buttons keep this alone, not the case, whose pixels are large
        go, button = self.page.go, self.page.button
        way = [
            button(f"← Back to {_BACK.get(back, back)}", lambda: go(back), "link"),
            button("All images of this patient", lambda: go("patient", patient_id=patient_id), "link"),
            link_button("Copy link to this case"),
        ]
        if following:
            way.append(button("Next unread", lambda: self._next(reading_id, back, following)))

        def again(reading_id: str) -> None:  # as it was opened: the answer may still be withheld
            go("reading", reading_id=reading_id, back=back, label_first=label_first, following=following)

        box = widgets.VBox()
        replace(self.widget, widgets.HBox(way).add_class("screen-way"), box)
        request = THIRD if label_first else FIRST
        show_case(box, case, self.records, self.page, request, models=self.models, again=again)

    def _next(self, reading_id: str, back: str, following: Following) -> None:
        wanted = following(reading_id)
        if wanted is None:
            self.page.go(back)
            self.page.say("No other reading of this list waits for a review.", "done")
        else:
            self.page.show()  # first, or the browser would still draw what is closed now
            self.page.go("reading", reading_id=wanted, back=back, following=following)


def show_case(
    box: widgets.Box,
    case: Case | BlindCase,
    records: Records,
    page: Page,
    request: str = FIRST,
    labelled: Callable[[str], None] = lambda reading_id: None,
    models: ModelPool | None = None,
    again: Callable[[str], None] | None = None,
) -> None:
    """Fill a box with a reading or, where its answer waits for a label, with the form for it, then with the reading.

    request: what the form says. labelled: called with the reading's id after the label was saved. models: what can read
    the image again, where that is offered. again: as in `CorrectionForm`; without it, the reading's own
    screen shows it.
    """
    show_corrected = again or (lambda reading_id: page.go("reading", reading_id=reading_id))

    def show_again(reading_id: str) -> None:
        show_case(box, records.open_case(reading_id), records, page, request, labelled, models, again)

    def whole(case: Case) -> list[widgets.Widget]:
        return [ReadAgain(case, records, page, models, show_again).widget, reading(case, records, page, show_corrected)]

    if isinstance(case, Case):
        replace(box, *whole(case))
        return

    def answer(said: Said) -> None:
        answered = records.case(case_id)
        replace(box, widgets.HTML(_comparison(said, answered)), *whole(answered))
        labelled(case_id)

    case_id = case.reading_id  # the form keeps this alone, not the case, whose pixels are large
    form = BlindForm(case, records, page, request, answer)
    replace(box, _blind_reading(case, form), CorrectionForm(case, records, page, show_corrected).widget)


def _blind_reading(case: BlindCase, form: "BlindForm") -> widgets.Widget:
    """The image and the form; nothing that the model said."""
    head = widgets.HTML(heading(case, case.stack))
    columns = widgets.Box([viewer(case, case.stack), form.widget]).add_class("reading-columns").add_class("blind")
    if case.stack:
        columns.add_class("reading-of-series")
    return widgets.VBox([head, columns]).add_class("reading")


class BlindForm:
    """What a reader says who has not seen the answer: a class or why none fits, a comment, one button.

    Nothing is preselected. answer: called with what the reader says, after it was saved.
    """

    def __init__(self, case: BlindCase, records: Records, page: Page, request: str, answer: Callable[[Said], None]):
        self._answer, self._answered = answer, False
        # What another doctor said is not told: it would no longer be this reader's own opinion.
        self.saving = Saving(case, case.latest_review, records, page, lambda _: READ_MEANWHILE, self._saved)
        self.label = field(
            widgets.RadioButtons,
            "Your finding",
            options=[(meaning(case, name), name) for name in case.classes],
            index=None,
        ).add_class("choices")
        self.comment = field(widgets.Textarea, "Comment (kept with your label)", placeholder="Optional", rows=2)
        self.no_class = NoClass(page)
        page.on_change(self.saving.touched, self.label, self.comment, self.no_class.choice, self.no_class.finding)
        page.on_change(self._one_class, self.label)
        page.on_change(self._no_class, self.no_class.choice)
        drafts = {f"label-{case.reading_id}": self.comment, f"label-finding-{case.reading_id}": self.no_class.finding}
        self.drafts = Drafts(page.browser, drafts)
        save = page.button("Save label and show the answer", self._save, "primary")
        notes = notice(request, "note") + (notice(READ_BEFORE, "note") if case.latest_review else "")
        self.widget = widgets.VBox(
            [widgets.HTML(notes), self.label, self.no_class.widget, self.comment, save, self.saving.widget]
        ).add_class("reading-facts")

    def _one_class(self) -> None:
        if self.label.value:
            self.no_class.choice.index = None  # what is described of another finding stays

    def _no_class(self) -> None:
        if self.no_class.choice.value:
            self.label.index = None

    def _save(self) -> None:
        if self._answered:  # a second click that was on its way
            return
        label, comment = self.label.value, self.comment.value
        if label:
            self.no_class.require_none()
        self.saving.save(Said(label, comment) if label else self.no_class.said(comment))

    def _saved(self, said: Said) -> None:
        self._answered = True
        self.drafts.forget()
        self._answer(said)


def _comparison(said: Said, case: Case) -> str:
    """Whether what a reader said first and the answer agree, and what all readers say, as HTML."""
    graded, label = case.grades.names if case.grades else (), said.label
    agree = False
    own = f"You labelled {class_name(label)}." if said.kind == CLASS else f"You said: {said.words}."
    if case.refusal:
        words = f"{own} {case.refusal}: the model gives no finding."
    elif case.decision == REVIEW:
        words = f"{own} The model does not decide; the nearest class is {class_name(case.label)}."
    elif said.kind != CLASS:
        words = f"{own} The model says {class_name(case.decision)}."
    else:
        agree = label == case.label or label in graded
        words = f"{own} The model says {class_name(case.decision)}: {'you agree' if agree else 'you differ'}."
    standing = opinions.standing(case.reviews)
    others = _readers(standing) if len(standing.said) > 1 else ""
    return notice(words, "done" if agree else "note") + others


def _readers(standing: opinions.Standing) -> str:
    """What each reader says, and what counts."""
    said = listed([f"<b>{safe(name)}</b>: {safe(says)}" for name, says in standing.said.items()], "and")
    number = count(len(standing.said), "reader")
    if standing.label:
        counts = f"The label {safe(class_name(standing.label))} counts."
    elif standing.unusable:
        counts = "You agree that no class fits, so no data set of reviews has this image."
    elif len(standing.said) == 2:
        counts = "You differ, so a third doctor is asked. Until then this image stays aside."
    else:
        counts = "There is no majority, so this image stays aside: no data set of reviews has it."
    return f'<p class="readers">{number}: {said}. {counts}</p>'
