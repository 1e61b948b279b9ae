"""What can be done about an image of the wrong patient, or one that should not count: withdraw it, or move it."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.browser import Drafts
from lungkit.clinic.app.describe import withdrawn_words
from lungkit.clinic.app.page import Page, field, notice, show_if, when
from lungkit.clinic.app.patient_finder import PatientFinder
from lungkit.clinic.app.screen import Confirm
from lungkit.clinic.records.cases import CaseImage, Records
from lungkit.clinic.records.patients import PatientRow
from lungkit.errors import LungkitError
from lungkit.wording import count

_KEPT = (
    "It stays here and on the patient's page, marked as withdrawn. It counts in no figure, and new data sets will not "
    "have it. Data sets and models that were made before still have it."
)
_NOTE = "A PACS gets a note that rejects them, which not every PACS follows: look there."
_TOLD = f"FHIR and HL7 systems are told of the withdrawal. {_NOTE}"
_TOLD_MOVE = "FHIR and HL7 systems are told of the move. A PACS keeps its objects with the images: look there."


class CorrectionForm:
    """A reason, a button that withdraws the image, and a search for the patient it belongs to; closed at first.

    again: shows the reading with this id after its image was withdrawn or moved.
    """

    def __init__(self, case: CaseImage, records: Records, page: Page, again: Callable[[str], None]):
        # Not the case itself: its pixels would stay in memory for as long as these buttons.
        self._reading_id, self._number, self._shown = case.reading_id, case.patient.number, case.shown
        self._records, self._page, self._again = records, page, again
        self.open = page.button("Wrong patient or image?", lambda: self._show(True), "link")
        self.reason = field(widgets.Textarea, "Reason", placeholder="Such as: image of another patient", rows=2)
        self.drafts = Drafts(page.browser, {f"correction-{case.reading_id}": self.reason})
        self.withdraw = page.button("Withdraw this image …", self._ask_withdraw)
        self.withdraw.disabled = case.corrections.withdrawn is not None
        self.finder = PatientFinder(records, page, self._ask_move, "Number or name of the right patient")
        self.confirm = Confirm(page)
        move = [widgets.HTML("<h4>Move to the right patient</h4>"), self.finder.widget]
        cancel = page.button("Cancel", lambda: self._show(False), "link")
        self.fields = widgets.VBox([self.reason, self.withdraw, *move, self.confirm.widget, cancel])
        self.widget = widgets.VBox([self.open, self.fields.add_class("correction-fields")]).add_class("wrong-image")
        self._show(False)

    def _show(self, shown: bool) -> None:
        self.confirm.close()
        self.finder.clear()
        show_if(shown, self.fields)
        show_if(not shown, self.open)

    def _ask_withdraw(self) -> None:
        self._require_reason()
        sent = self._sent(_TOLD)
        self.confirm.ask(
            f"Withdraw this image of patient {self._number}? {_KEPT} This cannot be undone.{sent}",
            "Withdraw the image",
            lambda: self._done(self._withdraw, "The image is withdrawn."),
        )

    def _ask_move(self, to: PatientRow) -> None:
        self._require_reason()
        _, doubts = self._records.before_correction(self._reading_id, to.id)
        self.confirm.ask(
            f"Move this image, with its reading and reviews, from patient {self._number} to {to.number} · {to.name}? "
            f"{' '.join(doubts)}{self._sent(_TOLD_MOVE)}",
            f"Move to {to.number}",
            lambda: self._done(lambda: self._move(to), f"The image was moved to patient {to.number}."),
        )

    def _sent(self, then: str) -> str:
        """How many results other systems have, and what becomes of them; empty where they have none."""
        sent, _ = self._records.before_correction(self._reading_id)
        were = "was" if sent == 1 else "were"
        return f" {count(sent, 'result')} for this image {were} sent to other systems. {then}" if sent else ""

    def _withdraw(self) -> None:
        self._records.withdraw(self._reading_id, self.reason.value, self._shown)

    def _move(self, to: PatientRow) -> None:
        self._records.move(self._reading_id, to.id, self.reason.value, self._shown)

    def _done(self, act: Callable[[], None], words: str) -> None:
        act()
        self.drafts.forget()
        self._again(self._reading_id)
        self._page.say(words, "done")

    def _require_reason(self) -> None:
        if not self.reason.value.strip():
            raise LungkitError("Write the reason first. Nothing was changed.")


def corrected(case: CaseImage) -> str:
    """That an image was withdrawn or moved, as HTML; empty for most."""
    gone = case.corrections.withdrawn
    said = notice(withdrawn_words(gone), "problem") if gone else ""
    for move in case.corrections.moves:
        before = f"patient {move.before}" if move.before else "a patient who was erased since"
        why = f": {move.reason}" if move.reason else ""  # erased with a patient whom it could name
        said += notice(f"Moved here from {before} by {move.by} on {when(move.at)}{why}", "note")
    return said
