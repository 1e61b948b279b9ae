"""A clinician's review of one reading, and the reviews before it."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit import times
from lungkit.clinic.app.browser import Drafts
from lungkit.clinic.app.page import Page, field, notice, safe, show_if, when
from lungkit.clinic.records.cases import Case, CaseImage, Records
from lungkit.clinic.records.reviewing import WHY_NO_CLASS, ReviewedMeanwhile, ReviewRow, Said
from lungkit.clinic.records.tables import CLASS, NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE
from lungkit.errors import LungkitError
from lungkit.models.class_names import class_name

_CHOICES = [
    ("Not assessable: the image is too poor to judge", NOT_ASSESSABLE),
    ("Wrong image or region", WRONG_IMAGE),
    ("Another finding", OTHER_FINDING),
]


class Saving:
    """Saves what a reader says: a second click saves nothing, and another doctor's new review is told first.

    case: as the page shows it. seen: the latest review that the page shows. told: the words that tell of a review
    (None: it is withheld). saved: called after something was saved.
    """

    def __init__(
        self,
        case: CaseImage,
        seen: str,
        records: Records,
        page: Page,
        told: Callable[[ReviewRow | None], str],
        saved: Callable[[Said], None],
    ):
        self.seen = seen
        # Not the case itself: its pixels would stay in memory for as long as these buttons.
        self._reading_id, self._shown, self._records, self._page = case.reading_id, case.shown, records, page
        self._told, self._saved = told, saved
        self._done: Said | None = None  # was saved, and no field was touched since
        self._asked: Said | None = None  # waits for an answer to the question
        self._news, self._question = "", widgets.HTML()
        answers = widgets.HBox([
            page.button("Save mine too", self._confirm, "primary"), page.button("Do not save mine", self._leave)
        ])  # fmt: skip
        self.widget = widgets.VBox([self._question, answers]).add_class("review-question")
        show_if(False, self.widget)

    def touched(self) -> None:
        """A field was changed: the next click means something new, and an open question is about the old words."""
        self._done = None
        self._leave()

    def save(self, said: Said) -> None:
        """Save, or ask first. Raises LungkitError where nothing was chosen."""
        nothing = said.kind == CLASS and not said.label
        if self._done and (nothing or said.words == self._done.words):
            self._say(self._done)  # a second click that was on its way
        elif nothing:
            raise LungkitError("Choose the class that you see first, or why no class fits. Nothing was saved.")
        elif self._asked:
            self._ask(said)  # only the answer to the question saves
        else:
            self._try(said)

    def _try(self, said: Said) -> None:
        try:
            self._records.review(
                self._reading_id, said.label, said.comment, said.kind, said.finding, self.seen, self._shown
            )
        except ReviewedMeanwhile as meanwhile:
            self._news = self._told(meanwhile.review)
            self.seen = meanwhile.latest
            self._ask(said)
            return
        self._leave()
        self._done = said
        self._saved(said)  # may clear the fields, which counts as touching them
        self._done = said
        self._say(said)

    def _ask(self, said: Said) -> None:
        self._asked = said
        self._question.value = notice(f"{self._news} Yours is not saved yet. Save yours ({said.words}) too?", "problem")
        show_if(True, self.widget)

    def _confirm(self) -> None:
        if self._asked:
            self._try(self._asked)
        elif not self._done:
            raise LungkitError("Your review was changed, so nothing was saved. Save it again.")

    def _leave(self) -> None:
        self._asked = None
        show_if(False, self.widget)

    def _say(self, said: Said) -> None:
        self._page.say(f"Your review is saved: {said.words}.", "done")


class NoClass:
    """Why no class fits, to choose; another finding is named in words, which nothing drops but the reader."""

    def __init__(self, page: Page):
        self.choice = field(widgets.RadioButtons, "If no class fits", options=_CHOICES, index=None).add_class("choices")
        self.finding = field(widgets.Text, "Which finding?", placeholder="In a few words")
        self.empty = page.button("Clear this choice", self.clear, "link")  # radio buttons cannot be switched off
        self.widget = widgets.VBox([self.choice, self.finding, self.empty]).add_class("no-class")
        page.on_change(self._found, self.finding)
        page.on_change(self._show, self.choice, self.finding)
        self._show()

    def said(self, comment: str) -> Said:
        """What is chosen, with a comment; without a class and a reason where nothing is.

        Raises LungkitError where another finding is described and something else is chosen.
        """
        kind = self.choice.value or CLASS
        if self._described() and kind != OTHER_FINDING:
            raise _beside(OTHER_FINDING)
        return Said("", comment, kind, self.finding.value)

    def require_none(self) -> None:
        """Raises LungkitError where a reason is chosen, or another finding described: a class is saved instead."""
        if kind := OTHER_FINDING if self._described() else self.choice.value:
            raise _beside(kind)

    def clear(self) -> None:
        """Nothing is chosen any more."""
        self.choice.index, self.finding.value = None, ""

    def _described(self) -> bool:
        return bool(self.finding.value.strip())

    def _show(self) -> None:
        show_if(self.choice.value == OTHER_FINDING or self._described(), self.finding)
        show_if(self.choice.value or self._described(), self.empty)

    def _found(self) -> None:
        """Text that the browser had kept is put back into a field that is not shown yet."""
        if self._described() and self.choice.value is None:
            self.choice.value = OTHER_FINDING


def _beside(kind: str) -> LungkitError:
    return LungkitError(f"You also chose “{WHY_NO_CLASS[kind]}”: save it, or clear it. Nothing was saved.")


class ReviewForm:
    """Agree with the model, name another class, or say why none fits; the history of reviews, oldest first."""

    def __init__(self, case: Case, records: Records, page: Page):
        # Not the case itself: its pixels would stay in memory for as long as these buttons.
        self._reading_id, self._label, self._records = case.reading_id, case.label, records
        undecided = case.decision != case.label  # a call for review, or a range of grades
        self.comment = field(widgets.Textarea, "Comment (kept with your review)", placeholder="Optional", rows=2)
        agree = page.button(
            f"Agree: {class_name(case.label)}",
            lambda: self._save(self._label),
            "primary",
            tooltip=f"Save that you agree with {class_name(case.label)}",
        )
        show_if(not undecided, agree)
        others = [(meaning(case, name), name) for name in case.classes if undecided or name != case.label]
        self.label = field(
            widgets.Dropdown,
            "Your finding" if undecided else "Correct to",
            options=[("Choose a class", ""), *others],
        )
        correct = page.button("Save finding" if undecided else "Save correction", lambda: self._save(self.label.value))
        choice = widgets.HBox([agree, widgets.HBox([self.label, correct]).add_class("correction")])
        self.no_class = NoClass(page)
        drafts = {f"review-{case.reading_id}": self.comment, f"review-finding-{case.reading_id}": self.no_class.finding}
        self.drafts = Drafts(page.browser, drafts)
        without = page.button("Save without a class", self._save_without)
        self.saving = Saving(case, "", records, page, self._told, self._saved)
        page.on_change(self.saving.touched, self.comment, self.label, self.no_class.choice, self.no_class.finding)
        self.news, self.history = widgets.HTML(), widgets.HTML()
        self.widget = widgets.VBox([
            widgets.HTML("<h3>Your review</h3>"), self.news, self.comment, choice.add_class("review-choice"),
            widgets.VBox([self.no_class.widget, without]).add_class("review-without"), self.saving.widget, self.history,
        ]).add_class("review")  # fmt: skip
        self._show(case)

    def _save(self, label: str) -> None:
        self.no_class.require_none()
        self.saving.save(Said(label, self.comment.value))

    def _save_without(self) -> None:
        self.saving.save(self.no_class.said(self.comment.value))

    def _saved(self, _: Said) -> None:
        self.drafts.forget()
        self._show(self._records.case(self._reading_id))
        self.comment.value = self.label.value = ""
        self.no_class.clear()

    def _told(self, review: ReviewRow | None) -> str:
        self._show(self._records.case(self._reading_id))
        if review is None:
            return "Another doctor has reviewed this in the meantime."
        at = f"{times.local(review.at):%H:%M}"
        return f"While you were reading, {review.reviewer} reviewed this ({review.verdict}, {at})."

    def _show(self, case: Case) -> None:
        latest = case.reviews[-1] if case.reviews else None
        self.saving.seen = latest.id if latest else ""
        self.news.value = notice(_told_first(latest), "note") if latest and not latest.own else ""
        if not latest:
            self.history.value = '<p class="review-history empty" role="status">Not reviewed yet.</p>'
            return
        rows = "".join(_review_line(review) for review in case.reviews)
        note = "<p>The latest review counts.</p>" if len(case.reviews) > 1 else ""
        self.history.value = f'<div class="review-history" role="status"><h4>Reviews</h4><ol>{rows}</ol>{note}</div>'


def meaning(case: CaseImage, name: str) -> str:
    """A class as a clinician chooses it: a grade with what it means."""
    place = case.classes.index(name)
    return f"{name} ({case.rule.grades.extent(place, place)})" if case.rule.grades else class_name(name)


def _told_first(review: ReviewRow) -> str:
    return f"{review.reviewer} reviewed this on {when(review.at)} ({review.verdict}). The latest review counts."


def _review_line(review: ReviewRow) -> str:
    comment = f"<q>{safe(review.comment)}</q>" if review.comment else ""
    blind = "" if review.answer_shown else " <small>before the model's answer was shown</small>"
    return (
        f"<li><b>{safe(review.reviewer)}</b> {safe(review.verdict)} <time>{safe(when(review.at))}</time>{blind}"
        f"{comment}</li>"
    )
